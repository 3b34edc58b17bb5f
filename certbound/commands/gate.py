"""``certbound gate``: fail a build when a network proves less than it should."""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path

from certbound.commands.compare import add_methods
from certbound.commands.options import Subparsers, add_command, add_data, add_model, number

logger = logging.getLogger(__name__)

_EXAMPLES = """\
A check passes only on a bound of a method that finished: a lower bound of the certified accuracy, upper bounds of the
Lipschitz constant (the largest of a margin f_j - f_y, in the given norm) and of the mean loss gap. What is vacuous,
missing or out of time fails. --min-robust-accuracy looks at what the attack leaves: below it the network is refuted,
above it nothing is proved. Nothing is cached.

exit codes: 0 all checks pass; 1 a check fails; 2 bad input, or a baseline of another network shape, delta, norm or
samples; 3 a package is missing.

examples:
  certbound gate --model net.py:make --weights w.safetensors --data test.npz --delta 8/255 --norm inf \\
    --min-certified-accuracy 0.8 --max-loss-gap 1.5 --junit gate.xml
  certbound gate ... --write-baseline base.json
  certbound gate ... --baseline base.json --tolerance 0.01"""


def add(subparsers: Subparsers) -> None:
    """Declare the options."""
    parser = add_command(
        subparsers,
        "gate",
        help="fail (exit code 1) when a network proves less than it should",
        description="Check limits on certified accuracy, Lipschitz constant, loss gap and accuracy under attack, and "
        "compare with a baseline: for continuous integration.",
        examples=_EXAMPLES,
    )
    add_model(parser)
    add_data(parser)
    add_methods(parser)
    group = parser.add_argument_group("limits")
    group.add_argument("--min-certified-accuracy", type=number, metavar="A", help="proved on at least this share")
    group.add_argument("--max-lipschitz", type=number, metavar="L", help="proved to be at most this")
    group.add_argument("--max-loss-gap", type=number, metavar="G", help="proved to be at most this, in the mean")
    group.add_argument("--min-robust-accuracy", type=number, metavar="A", help="left by the attack: evidence, no proof")
    group.add_argument("--rigor", default="numerical", help="least rigor of a bound that counts; default: %(default)s")
    group = parser.add_argument_group("baseline and report")
    group.add_argument("--baseline", type=Path, metavar="JSON", help="do not fall behind these numbers")
    group.add_argument(
        "--tolerance",
        type=number,
        default=1e-6,
        metavar="T",
        help="by more than this: absolute for accuracies, relative for the others; default: %(default)s",
    )
    group.add_argument("--write-baseline", type=Path, metavar="JSON", help="write this run's numbers, if it passes")
    group.add_argument("--junit", type=Path, metavar="XML", help="write a JUnit report")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> object:
    """Compare, then check."""
    from certbound.ci_gate import Baseline, Limits, gate, write_atomically
    from certbound.commands.inputs import read_problem
    from certbound.comparison import compare
    from certbound.errors import InputError

    limits = Limits(
        min_certified_accuracy=args.min_certified_accuracy,
        max_lipschitz=args.max_lipschitz,
        max_loss_gap=args.max_loss_gap,
        min_robust_accuracy=args.min_robust_accuracy,
        rigor=args.rigor,
    )
    if not limits.asked and args.baseline is None and args.write_baseline is None:
        raise InputError(
            "limits",
            got="no limit and no baseline",
            needed="at least one: a gate that asks nothing lets everything pass",
            fix="see certbound gate --help",
        )
    baseline = None if args.baseline is None else Baseline.load(args.baseline)
    problem = read_problem(args)
    start = time.perf_counter()
    comparison = compare(
        problem.network,
        problem.x,
        problem.y,
        delta=args.delta,
        norm=args.norm,
        methods=args.methods,
        n_samples=args.n_samples,
        time_limit=args.time_limit,
        seed=args.seed,
        progress=not args.quiet,
    )
    seconds = time.perf_counter() - start
    report = gate(comparison, limits, baseline, tolerance=args.tolerance, seconds=seconds)
    if args.junit is not None:
        write_atomically(args.junit, report.to_junit())
    if args.write_baseline is not None:
        if report.passed:
            Baseline.of(comparison, rigor=limits.rigor).save(args.write_baseline)
            logger.info("wrote %s", args.write_baseline)
        else:
            logger.warning("%s is not written: a check failed", args.write_baseline)
    return report
