"""``certbound study``: run, report and check the studies of the paper, from a checkout of the repository."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from certbound.commands.options import Subparsers, add_command, natural, positive

_EXAMPLES = """\
`python -m experiments ...` is the same. A run that is killed goes on where it was when it is started again; stored
cells are kept, and cells that two studies share run once.

exit codes: 0 ok; 1 a cell failed, or a stored number does not come back; 2 bad input; 3 a package is missing.

examples:
  certbound study list
  certbound study run e04 e07 --scale cpu --seeds 5 --jobs 2
  certbound study run all --smoke
  certbound study run all --scale paper --dask tcp://host:8786 --device cuda --root /data
  certbound study report all
  certbound study check e04 --sample 3
  certbound study results"""


def add(subparsers: Subparsers) -> None:
    """Declare the options."""
    parser = subparsers.add_parser(
        "study",
        help="run the studies of the paper (from a checkout)",
        description="Run, report and check the studies of the paper. They lie in the folder experiments/ of the "
        "repository, which is not part of the installed package.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(title="actions", dest="action", metavar="ACTION", required=True)

    listed = _action(actions, "list", "listing", "the studies, their cells, what is stored")
    listed.add_argument("--seeds", type=positive, default=5, metavar="N", help="count cells with N seeds; default: 5")
    _add_out(listed)

    run_ = _action(actions, "run", "run", "compute and store the cells that have no row yet")
    _add_studies(run_)
    _add_where(run_)
    run_.add_argument("--seeds", type=positive, default=5, metavar="N", help="seeds 0 to N-1; default: %(default)s")
    _add_how(run_)
    run_.add_argument(
        "--dask",
        metavar="ADDRESS",
        help="compute on the workers of this Dask scheduler (tcp://HOST:8786) instead of processes here. The workers "
        "import experiments and certbound from their own environment: start them from a checkout, with --nthreads 1",
    )
    run_.add_argument("--fresh", action="store_true", help="compute anew what is stored")

    report = _action(actions, "report", "report", "tables, plots, verdict of stored rows, into OUT/SCALE/STUDY/report")
    _add_studies(report)
    _add_where(report)

    check = _action(actions, "check", "check", "run stored cells again and compare every number")
    check.add_argument("study", metavar="STUDY", help="for instance e04")
    check.add_argument("--sample", type=positive, default=3, metavar="N", help="how many cells; default: %(default)s")
    check.add_argument("--seed", type=natural, default=0, metavar="N", help="of the draw; default: %(default)s")
    _add_where(check)
    _add_how(check)

    results = _action(actions, "results", "results", "write RESULTS.md from stored rows")
    results.add_argument(
        "--from", dest="source", type=Path, default=Path("results/studies"), metavar="DIR", help="default: %(default)s"
    )
    results.add_argument("--scale", choices=("cpu", "paper"), default="cpu", help="default: %(default)s")
    results.add_argument("--into", type=Path, default=Path("experiments"), metavar="DIR", help="default: %(default)s")


def _action(actions: Subparsers, name: str, function: str, help: str) -> Any:
    parser = add_command(actions, name, help=help, description=help.capitalize() + ".", examples=_EXAMPLES)
    parser.set_defaults(run=run, function=function)
    return parser


def _add_studies(parser: Any) -> None:
    parser.add_argument("studies", nargs="+", metavar="STUDY", help="for instance e04; all: every study")


def _add_where(parser: Any) -> None:
    parser.add_argument(
        "--scale", choices=("cpu", "paper"), default="cpu", help="small data and nets, or the paper's; default: cpu"
    )
    parser.add_argument("--smoke", action="store_true", help="the ends of every arm, in seconds; other rows")
    _add_out(parser)


def _add_out(parser: Any) -> None:
    parser.add_argument(
        "--out", type=Path, default=Path("results/studies"), metavar="DIR", help="of the rows; default: %(default)s"
    )


def _add_how(parser: Any) -> None:
    parser.add_argument("--jobs", type=positive, default=1, metavar="N", help="processes; default: %(default)s")
    parser.add_argument("--device", default="cpu", help="torch device; default: %(default)s")
    parser.add_argument("--root", metavar="DIR", help="folder of the data sets that come by no package")


def run(args: argparse.Namespace) -> object:
    """Do what the action is, by the function of its name in ``experiments.actions``."""
    from certbound.errors import InputError

    # another package may have this name: ask for the module that is needed
    if importlib.util.find_spec("experiments") is None or importlib.util.find_spec("experiments.actions") is None:
        raise InputError(
            "study",
            got="an installation without the folder experiments/",
            needed="a checkout of the repository",
            fix="run `python -m experiments` in its root",
        )
    actions: Any = importlib.import_module("experiments.actions")
    with _messages():
        return getattr(actions, args.function)(args)


@contextmanager
def _messages() -> Iterator[None]:
    """What ``experiments`` logs is shown as what certbound logs."""
    ours, theirs = logging.getLogger("certbound"), logging.getLogger("experiments")
    level, handlers = theirs.level, tuple(ours.handlers)
    theirs.setLevel(ours.level)
    for handler in handlers:
        theirs.addHandler(handler)
    try:
        yield
    finally:
        theirs.setLevel(level)
        for handler in handlers:
            theirs.removeHandler(handler)
