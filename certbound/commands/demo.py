"""``certbound demo``."""

from __future__ import annotations

import argparse
from pathlib import Path

from certbound.commands.options import Subparsers, add_command, positive


def add(subparsers: Subparsers) -> None:
    """Declare the options."""
    parser = add_command(
        subparsers,
        "demo",
        help="train small networks, compare bounds with attacks, write tables and plots",
        description="Train networks of several ranks and nuclear-norm strengths on MNIST-5k and compare every bound "
        "with the gap that attacks find.",
        examples="examples:\n  certbound demo --quick\n  certbound demo --seeds 5 --out results/demo",
    )
    parser.add_argument("--out", type=Path, default=Path("results/demo"), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--seeds", type=positive, default=1, metavar="N", help="seeds 0 to N-1; default: %(default)s")
    parser.add_argument("--device", default="cpu", help="torch device; default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="fewer models and samples: a smoke test")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> object:
    """Run the demo."""
    from certbound.demo.run import run_demo

    return run_demo(out=args.out, seeds=args.seeds, device=args.device, quiet=args.quiet, quick=args.quick)
