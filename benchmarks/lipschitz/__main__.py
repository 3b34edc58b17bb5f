"""``python -m benchmarks.lipschitz``: run, print the table, keep it and the picture under ``--out``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks import lipschitz
from benchmarks.lipschitz import cells, nets, report
from benchmarks.lipschitz.methods import METHODS, find
from benchmarks.lipschitz.run import Plan, describe_methods, parse_problem, run

NETS = ("64-3", "64-5", "64-8", "128-5", "128-8", "256-5", "784-256-5", "64-512-3", "64-512-5", "mnist-64-64",
        "mnist-200-200")  # fmt: skip
QUICK = ("32-3", "64-3")


def _names(value: str) -> tuple[str, ...]:
    return tuple(x for x in value.split(",") if x)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.lipschitz",
        description=lipschitz.__doc__,
        epilog=f"methods:\n{describe_methods(tuple(METHODS.values()))}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--nets", type=_names, default=NETS, help=f"default {','.join(NETS)}")
    parser.add_argument("--problems", type=_names, default=("l2", "linf-0-1"), help="l2, linf-J-Y; default l2,linf-0-1")
    parser.add_argument("--methods", type=_names, default=tuple(METHODS), help="default all; also module:function")
    parser.add_argument("--traps", type=_names, default=tuple(nets.TRAPS), help=f"default {','.join(nets.TRAPS)}")
    parser.add_argument("--no-traps", dest="traps", action="store_const", const=())
    parser.add_argument("--quick", action="store_true", help=f"nets {','.join(QUICK)}, 30 s a cell")
    parser.add_argument("--limit", type=float, default=300.0, help="wall-clock seconds a cell; default 300")
    parser.add_argument("--grace", type=float, default=10.0, help="seconds more before a cell is killed; default 10")
    parser.add_argument("--memory", type=float, default=8.0, help="GiB a cell may take; default 8")
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time (1 for times worth reporting)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/lipschitz"))
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0; 2 for arguments that name nothing; 130 if interrupted (what was measured is kept)."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.quick:
        options.nets, options.limit = QUICK, min(options.limit, 30.0)
    plan = Plan(options.nets, options.problems, options.methods, options.traps, options.seed, options.limit,
                options.memory, options.grace, options.jobs, options.out)  # fmt: skip
    try:
        for name in plan.methods:
            find(name)
        for name in plan.problems:
            parse_problem(name, nets.N_OUTPUTS)
        for name in plan.nets:
            nets.check_name(name)
        for name in set(plan.traps) - set(nets.TRAPS):
            raise ValueError(f"{name!r} is no trap: {', '.join(nets.TRAPS)}")
        if not (plan.limit > 0 and plan.memory > 0 and plan.jobs > 0 and min(plan.grace, plan.seed) >= 0):
            raise ValueError("--limit, --memory and --jobs are positive, --grace and --seed not negative")
    except ValueError as error:
        parser.error(str(error))
    try:
        found = run(plan, quiet=options.quiet)
    except KeyboardInterrupt:
        print("interrupted: what was measured is kept; the same command goes on", file=sys.stderr)
        return 130
    text = report.table(found)
    print(text)
    plan.out.mkdir(parents=True, exist_ok=True)
    (plan.out / "table.txt").write_text(text + "\n", encoding="utf-8")
    cells.write(plan.out / "results.json", report.to_json(found))
    pictures = report.draw(found, plan.out)
    print("\n" + "\n".join(str(p) for p in (plan.out / "table.txt", plan.out / "results.json", *pictures)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
