"""``python -m proofs_numeric``: try to break every lemma, print a table, exit 1 if one breaks.

``--self-test`` runs each falsifier on deliberately broken statements and exits 1 unless every violation is found.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # before numpy is imported: two processes share the cores

from dataclasses import replace  # noqa: E402

from proofs_numeric.harness.runner import (  # noqa: E402
    TINY,
    Budget,
    LemmaResult,
    check_all,
    lemma_names,
    load,
    merge,
    self_test_all,
    to_dict,
)
from proofs_numeric.harness.table import lemma_rows, render, self_test_rows  # noqa: E402


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m proofs_numeric", description=__doc__)
    parser.add_argument("command", nargs="?", choices=["run", "list"], default="run")
    parser.add_argument("--only", action="append", metavar="NAME", help="this lemma only (may be repeated)")
    parser.add_argument("--self-test", action="store_true", help="break each statement; every violation must be found")
    parser.add_argument("--deep", nargs="?", type=float, const=1.0, metavar="HOURS", help="larger and more, for HOURS")
    parser.add_argument("--tiny", action="store_true", help="a few examples each: checks the runner, not the lemmas")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results")
    arguments = parser.parse_args(argv)
    if arguments.deep is not None and (arguments.self_test or arguments.tiny or not arguments.deep > 0):
        parser.error("--deep needs a positive number of hours, and neither --self-test nor --tiny")
    unknown = set(arguments.only or ()) - set(lemma_names())
    if unknown:
        parser.error(f"no lemma {', '.join(sorted(unknown))}; there are {', '.join(lemma_names())}")
    return arguments


def _run(names: Sequence[str], budget: Budget, jobs: int, hours: float | None) -> list[LemmaResult]:
    """One pass, or passes of growing size with new seeds until the time is used."""
    results = list(check_all(names, budget, jobs))
    deadline = time.monotonic() + 3600 * (hours or 0.0)
    while hours and time.monotonic() < deadline and all(r.passed for r in results):
        round_ = budget.round_ + 1
        budget = replace(
            budget,
            round_=round_,
            size=round_ % 4,
            examples=5000,
            restarts=512,
            steps=300,
        )
        results = merge(results, list(check_all(names, budget, jobs)))
    return results


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 0 if everything held (or, with --self-test, every violation was found)."""
    arguments = _arguments(argv)
    names = [n for n in lemma_names() if not arguments.only or n in arguments.only]
    out = sys.stdout.write
    if arguments.command == "list":
        for name in names:
            lemma = load(name)
            out(f"{name}: {lemma.statement}\n")
            for variant, v in lemma.broken.items():
                out(f"    broken: {variant} ({v.description})\n")
        return 0
    started = time.perf_counter()
    budget = replace(TINY if arguments.tiny else Budget(), seed=arguments.seed)
    if arguments.self_test:
        tests = list(self_test_all(names, budget, arguments.jobs))
        header, rows = self_test_rows(tests)
        passed = bool(tests) and all(t.passed for t in tests)
        notes = [f"{t.name}, {t.variant}: {note}" for t in tests for note in t.notes]
        results: Sequence[object] = tests
        title = "self-test: margins by which each part found the broken statement false"
    else:
        checks = _run(names, budget, arguments.jobs, arguments.deep)
        header, rows = lemma_rows(checks)
        passed = bool(checks) and all(c.passed for c in checks)
        notes = [f"{c.name}: {failure}" for c in checks for failure in c.failures]
        results = checks
        title = f"proofs_numeric, seed {arguments.seed}"
    seconds = time.perf_counter() - started
    out(render(header, rows, title) + "\n")
    for note in notes:
        out(note + "\n")
    out(f"{'passed' if passed else 'FAILED'} in {seconds:.1f} s\n")
    if arguments.json:
        data = to_dict(results, budget, seconds) | {"self_test": arguments.self_test, "passed": passed}  # type: ignore[arg-type]
        arguments.json.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
