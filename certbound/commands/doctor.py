"""``certbound doctor``."""

from __future__ import annotations

import argparse

from certbound.commands.options import Subparsers, add_command


def add(subparsers: Subparsers) -> None:
    """Declare the options."""
    parser = add_command(
        subparsers,
        "doctor",
        help="what is installed, what is missing, how to install it",
        description="List the packages that certbound can use, with versions and install commands.",
        examples="example:\n  certbound doctor --json",
    )
    parser.add_argument("--verbose", action="store_true", help="also list torch's devices (imports torch)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> object:
    """The doctor's table."""
    from certbound.doctor import diagnose

    return diagnose(verbose=args.verbose)
