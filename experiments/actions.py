"""What the actions of ``certbound study`` do: each takes the parsed arguments and gives back what is to be shown."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from certbound import text
from certbound.errors import InputError
from certbound.types import SCHEMA_VERSION
from experiments import runner, store
from experiments import study as studies
from experiments.study import SCALES, Row, Study

log = logging.getLogger(__name__)

_LABELS: Final = tuple(store.label(scale, smoke=smoke) for scale in SCALES for smoke in (False, True))


@dataclass(frozen=True)
class Listing:
    """The studies: cells of each scale, and what is stored."""

    seeds: int
    rows: tuple[dict[str, Any], ...]

    def __str__(self) -> str:
        header = ("study", "title", *(f"{scale} cells" for scale in SCALES), "stored (seconds a cell)")
        lines = [
            (row["study"], row["title"], *(str(row["cells"][scale]) for scale in SCALES), _stored_words(row["stored"]))
            for row in self.rows
        ]
        return f"{text.table(lines, header)}\n\ncells: with {self.seeds} seeds; cells that two studies share run once"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"schema_version": SCHEMA_VERSION, "seeds": self.seeds, "studies": list(self.rows)}


@dataclass(frozen=True)
class Written:
    """Reports that were written: their folder or file, and what each says in a line."""

    paths: tuple[str, ...]
    lines: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(self.lines)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"schema_version": SCHEMA_VERSION, "wrote": list(self.paths), "lines": list(self.lines)}


def listing(args: argparse.Namespace) -> Listing:
    """``list``."""
    rows = []
    for name in studies.MODULES:
        study = studies.find(name)
        cells = {scale: len(study.cells(scale, args.seeds)) for scale in SCALES}
        stored = {label: found for label in _LABELS if (found := _stored(study, args.out, label)) is not None}
        rows.append({"study": name, "title": study.title, "cells": cells, "stored": stored})
    return Listing(args.seeds, tuple(rows))


def _stored(study: Study, out: Path, label: str) -> dict[str, float] | None:
    rows = runner.current_rows(study, out, label)
    if not rows:
        return None
    stale = sum(row.rule != study.rule.hash for row in rows)
    return {"rows": len(rows), "stale": stale, "seconds": fmean(row.seconds for row in rows)}


def _stored_words(stored: dict[str, dict[str, float]]) -> str:
    said = []
    for label, found in stored.items():
        stale = f", {found['stale']} stale" if found["stale"] else ""
        said.append(f"{label} {found['rows']}{stale} ({found['seconds']:.2f})")
    return "; ".join(said) or "-"


def run(args: argparse.Namespace) -> runner.RunReport:
    """``run``."""
    return runner.run(
        chosen(args.studies), scale=args.scale, seeds=args.seeds, out=args.out, jobs=args.jobs, smoke=args.smoke,
        fresh=args.fresh, device=args.device, root=args.root, dask=args.dask, progress=not args.quiet,
    )  # fmt: skip


def report(args: argparse.Namespace) -> Written:
    """``report``: of each study that has rows; of a study that was named it must have some."""
    from experiments.report import write_report

    label = store.label(args.scale, smoke=args.smoke)
    paths, lines = [], []
    for study in chosen(args.studies):
        rows = runner.current_rows(study, args.out, label)
        folder = store.folder_of(args.out, label, study.id)
        if not rows:
            _no_rows(study, folder, named=study.id in args.studies)
            continue
        _warn_of_missing(study, args, rows)
        lines.append(str(write_report(study, rows, folder / "report")))
        paths.append(str(folder / "report"))
    return Written(tuple(paths), tuple(lines))


def _no_rows(study: Study, folder: Path, *, named: bool) -> None:
    if named:
        raise InputError(
            "study", got=f"{study.id}, of which {folder} holds no row", needed="stored rows",
            fix=f"run it first: python -m experiments run {study.id}",
        )  # fmt: skip
    log.warning("%s has no rows in %s and gets no report", study.id, folder)


def _warn_of_missing(study: Study, args: argparse.Namespace, rows: Sequence[Row]) -> None:
    """A report of a run that was cut off is one of fewer cells: say so."""
    seeds = 1 + max(row.seed for row in rows)
    missing = len(study.cells(args.scale, seeds, smoke=args.smoke)) - len(rows)
    if missing:
        log.warning("%s: %d cells of %d seeds have no row; `run` computes them", study.id, missing, seeds)


def check(args: argparse.Namespace) -> runner.CheckReport:
    """``check``."""
    studies.find(args.study)  # an unknown one is refused as such
    return runner.check(
        args.study, scale=args.scale, out=args.out, smoke=args.smoke, sample=args.sample, seed=args.seed,
        jobs=args.jobs, device=args.device, root=args.root,
    )  # fmt: skip


def results(args: argparse.Namespace) -> Written:
    """``results``."""
    from experiments.results import write_results

    page = write_results(args.source, args.into, args.scale)
    return Written((str(page),), (f"wrote {page}",))


def chosen(names: Sequence[str]) -> tuple[Study, ...]:
    """The studies with these ids, each once; ``all`` for all.

    Raises
    ------
    InputError : no such study.
    """
    wanted: list[str] = []
    for name in names:
        wanted += list(studies.MODULES) if name == "all" else [name]
    return tuple(studies.find(name) for name in dict.fromkeys(wanted))


__all__ = ["Listing", "Written", "check", "chosen", "listing", "report", "results", "run"]
