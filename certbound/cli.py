"""The command line: results on stdout, progress and errors on stderr.

A subcommand is a module of :mod:`certbound.commands` with a function ``add(subparsers)`` that declares its options and
sets ``run``, a function from the parsed arguments to the object to show. What ``run`` returns is printed, or with
``--json`` its ``to_dict()``; its ``exit_code``, if it has one, is the program's. Whatever else writes to stdout
meanwhile (a user's model file, a solver) is sent to stderr.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Final

from certbound.commands import attack, check, compare, compress, demo, doctor, gate, layers, study, verify
from certbound.commands.options import Subparsers
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
  0  ok; also where a theorem's hypothesis is not met by the numbers given: that is an answer
  1  a claim fails: a lower bound exceeds an upper bound, a theorem, a gate's check or a certificate does not hold
  2  bad input or usage
  3  a package is missing; the message holds the command that installs it
  70 a defect of certbound

examples:
  certbound doctor
  certbound check W.npy
  certbound layers --model net.py:make --weights w.safetensors --input-shape 3,32,32
  certbound compare --model net.py:make --weights w.safetensors --data mnist5k --delta 8/255 --norm inf
  certbound compare --model net.onnx --data test.npz --delta 8/255 --norm inf
  certbound attack --weights net.npz --data test.npz --delta 0.5 --norm 2 --save adv.npz
  certbound gate --weights net.npz --data test.npz --delta 0.1 --norm 2 --min-certified-accuracy 0.8 --junit gate.xml
  certbound compress --model net.py:make --weights w.safetensors --method epsilon-rows --epsilon 0.1 --out p.safetensors
  certbound study run e04 --seeds 5 --jobs 2
  certbound verify bound.certificate --model net.py:make --weights w.safetensors
  certbound demo --quick --out results/quick
"""

_COMMANDS: Final[tuple[Callable[[Subparsers], None], ...]] = (
    doctor.add,
    check.add,
    layers.add,
    compare.add,
    attack.add,
    gate.add,
    compress.add,
    verify.add,
    demo.add,
    study.add,
)


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
        with contextlib.redirect_stdout(sys.stderr):
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
    code: int = getattr(result, "exit_code", EXIT_OK)
    return code


def _fail(error: Exception, code: int, args: argparse.Namespace) -> int:
    log.error("certbound: %s", error, exc_info=error if args.debug else None)
    return code


if __name__ == "__main__":
    sys.exit(main())
