"""The command line: results on stdout, progress and errors on stderr.

A subcommand is one function ``_add_NAME(subparsers)`` that declares its options and sets ``run``, a
function from the parsed arguments to the object to show; it is listed in ``_COMMANDS``. What ``run``
returns is printed, or with ``--json`` its ``to_dict()``.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from certbound.errors import CertboundError, CertificateError, InputError, LadderError, MissingDependencyError

log = logging.getLogger(__name__)

EXIT_OK: Final = 0
EXIT_CLAIM_FAILS: Final = 1
EXIT_BAD_INPUT: Final = 2
EXIT_MISSING_EXTRA: Final = 3
EXIT_CRASH: Final = 70
"""A defect of certbound (EX_SOFTWARE). Python's own exit code for a crash is 1: a crash is no refuted claim."""

_EPILOG: Final = """\
exit codes:
  0  ok
  1  a claim fails: a lower bound exceeds an upper bound, a certificate does not prove what it says
  2  bad input or usage
  3  a package is missing; the message holds the command that installs it
  70 a defect of certbound

examples:
  certbound doctor
  certbound demo --quick --out results/quick
  certbound demo --seeds 5 --out results/demo
"""

Subparsers = Any  # argparse._SubParsersAction is private


def _add_doctor(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "doctor",
        help="what is installed, what is missing, how to install it",
        description="List the packages that certbound can use, with versions and install commands.",
        epilog="example:\n  certbound doctor --json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--verbose", action="store_true", help="also list torch's devices (imports torch)")

    def run(args: argparse.Namespace) -> object:
        from certbound.doctor import diagnose

        return diagnose(verbose=args.verbose)

    parser.set_defaults(run=run)


def _add_demo(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "demo",
        help="train small networks, compare bounds with attacks, write tables and plots",
        description="Train networks of several ranks and nuclear-norm strengths on MNIST-5k and compare every bound "
        "with the gap that attacks find.",
        epilog="examples:\n  certbound demo --quick\n  certbound demo --seeds 5 --out results/demo",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("results/demo"), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--seeds", type=_count, default=1, metavar="N", help="seeds 0 to N-1; default: %(default)s")
    parser.add_argument("--device", default="cpu", help="torch device; default: %(default)s")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    parser.add_argument("--quick", action="store_true", help="fewer models and samples: a smoke test")

    def run(args: argparse.Namespace) -> object:
        from certbound.demo.run import run_demo

        return run_demo(out=args.out, seeds=args.seeds, device=args.device, quiet=args.quiet, quick=args.quick)

    parser.set_defaults(run=run)


_COMMANDS: Final[tuple[Callable[[Subparsers], None], ...]] = (_add_doctor, _add_demo)


def _count(value: str) -> int:
    try:
        number = int(value)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"got {value!r}; needed an integer >= 1")
    return number


class _Version(argparse.Action):
    """Prints the version; reads the package metadata only when asked for it."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from certbound.doctor import certbound_version

        print(f"certbound {certbound_version()}")
        parser.exit(EXIT_OK)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands."""
    parser = argparse.ArgumentParser(
        prog="certbound",
        description="Certified bounds for compressible neural networks.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    parser.add_argument("--debug", action="store_true", help="debug messages and tracebacks on stderr")
    subparsers = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    for add in _COMMANDS:
        add(subparsers)
    return parser


def _logging_to_stderr(args: argparse.Namespace) -> logging.Handler:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("certbound")
    logger.addHandler(handler)
    quiet = getattr(args, "quiet", False)
    logger.setLevel(logging.DEBUG if args.debug else logging.WARNING if quiet else logging.INFO)
    return handler


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code.

    Parameters
    ----------
    argv : arguments without the program's name; those of the process if None.

    Raises
    ------
    SystemExit : from argparse, with 2 for bad usage and 0 for ``--help`` and ``--version``.
    """
    args = build_parser().parse_args(argv)
    logger = logging.getLogger("certbound")
    level = logger.level
    handler = _logging_to_stderr(args)
    try:
        result = args.run(args)
        if result is not None:
            as_json = getattr(args, "json", False)
            print(json.dumps(result.to_dict(), indent=2, allow_nan=False) if as_json else result, flush=True)
    except BrokenPipeError:
        # the reader (head, less) has gone; Python would report it again when it flushes stdout at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except MissingDependencyError as error:
        return _fail(error, EXIT_MISSING_EXTRA, args)
    except (LadderError, CertificateError) as error:
        return _fail(error, EXIT_CLAIM_FAILS, args)
    except (InputError, OSError) as error:  # OSError: a path that cannot be read or written
        return _fail(error, EXIT_BAD_INPUT, args)
    except CertboundError as error:
        return _fail(error, EXIT_CRASH, args)
    except KeyboardInterrupt:
        log.error("interrupted")
        return 130
    except Exception:  # the boundary of the program: a crash gets its own exit code
        log.exception("a defect of certbound; please report it with this traceback")
        return EXIT_CRASH
    finally:
        # main is also called from Python, by tests for instance: leave logging as it was
        logger.removeHandler(handler)
        logger.setLevel(level)
    return EXIT_OK


def _fail(error: Exception, code: int, args: argparse.Namespace) -> int:
    log.error("certbound: %s", error, exc_info=error if args.debug else None)
    return code


if __name__ == "__main__":
    sys.exit(main())
