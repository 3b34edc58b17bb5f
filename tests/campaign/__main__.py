"""``python tests/campaign run | report | self-test | sdp``; exit code 1 on any violation or surviving mutant."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

# before numpy is loaded: one thread for each process
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

if __name__ == "__main__":
    _here = Path(__file__).resolve().parent
    # run as a folder, the folder itself is first on the path: its modules are `campaign.…` only
    sys.path[:] = [str(_here.parent), *(p for p in sys.path if Path(p or ".").resolve() != _here)]

from campaign.runner import Plan, run, say, summarise, table  # noqa: E402


def main(arguments: list[str] | None = None) -> int:
    """Parse and run."""
    parser = argparse.ArgumentParser(prog="campaign", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    go = commands.add_parser("run", help="check matrices, in chunks; resumes")
    show = commands.add_parser("report", help="add up the chunks of a folder")
    test = commands.add_parser("self-test", help="every mutant must be caught")
    for p in (go, show):
        p.add_argument("--out", type=Path, default=Path("results/campaign"))
    go.add_argument("--matrices", type=int, default=1_000_000)
    go.add_argument("--chunk", type=int, default=2000, help="matrices in each file")
    go.add_argument("--seed", type=int, default=Plan(0, Path()).seed)
    go.add_argument("--jobs", type=int, choices=(1, 2), default=1)
    go.add_argument("--quiet", action="store_true")
    show.add_argument("--digest", default=None, help="of the sources; the current ones by default")
    test.add_argument("--matrices", type=int, default=8000, help="at most, for each mutant")
    test.add_argument("--seed", type=int, default=1)
    test.add_argument("--only", default=None, help="mutants whose name contains this")
    nets = commands.add_parser("sdp", help="check small networks against lipschitz_sdp; resumes")
    nets.add_argument("--networks", type=int, default=10_000)
    nets.add_argument("--out", type=Path, default=Path("results/campaign/sdp.jsonl"))
    nets.add_argument("--seed", type=int, default=Plan(0, Path()).seed)
    nets.add_argument("--quiet", action="store_true")
    nets.add_argument("--report", action="store_true", help="add up what is there, and run nothing")
    given = parser.parse_args(arguments)
    if given.command == "run":
        plan = Plan(given.matrices, given.out, given.seed, given.chunk)
        return run(plan, jobs=given.jobs, quiet=given.quiet)
    if given.command == "report":
        summary = summarise(Plan(0, given.out), given.digest)
        say(table(summary))
        return int(summary["violations"] > 0 or summary["matrices"] == 0)
    if given.command == "sdp":
        from campaign import sdp

        if not given.report:
            return sdp.run(given.networks, given.out, given.seed, quiet=given.quiet)
        summary = sdp.summarise(given.out, given.seed)
        say(sdp.table(summary))
        return int(summary["wrong"] > 0 or summary["networks"] == 0)
    from campaign.mutants import self_test

    return self_test(given.matrices, given.seed, given.only)


if __name__ == "__main__":
    sys.exit(main())
