"""``python -m experiments``: the same as ``certbound study``, from a checkout; the options are declared there."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from certbound import cli


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    return cli.main(["study", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
