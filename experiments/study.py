"""A study: a claim of the paper, what varies, and the rule that turns its rows into a verdict."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from certbound.errors import InputError
from experiments.config import Config
from experiments.rules import Rule

Scale = Literal["cpu", "paper"]
SCALES: Final = ("cpu", "paper")


@dataclass(frozen=True)
class Point:
    """One configuration of a study: ``level`` is what varies within its ``arm`` (λ, rank, ε …)."""

    arm: str
    level: float
    config: Config


@dataclass(frozen=True)
class Cell:
    """One point and one seed: what is run, and stored as one row."""

    study: str
    scale: str
    point: Point
    seed: int

    @property
    def key(self) -> str:
        """Digest of configuration and seed; equal cells of two studies have the same."""
        return self.point.config.key(self.seed)


@dataclass(frozen=True)
class Row:
    """A stored cell: its numbers and where they come from.

    ``measures``: name → number, or None where there is none (a bound that did not run). ``details``: lists for
    pictures. ``environment``: versions, git revision, device, threads. ``rule``: hash of the study's rule when it was
    run.
    """

    study: str
    scale: str
    arm: str
    level: float
    seed: int
    key: str
    rule: str
    config: Mapping[str, Any]
    measures: Mapping[str, float | None]
    details: Mapping[str, Any]
    environment: Mapping[str, Any]
    seconds: float
    finished: str

    def number(self, measure: str) -> float:
        """A measure; NaN where there is none."""
        value = self.measures.get(measure)
        return math.nan if value is None else value


@dataclass(frozen=True)
class Study:
    """One claim of the paper.

    Parameters
    ----------
    id, title : ``e04`` and a few words. claim, source : what is claimed, and where.
    level : what ``Point.level`` is ("rank"). varies, fixed : in words.
    supported_if, refuted_if : the outcome that would confirm the claim, the one that would refute it, in words.
    rule : the same, computed; written before the study is run, and its hash is in every row.
    points : scale → configurations, without seeds.
    measures : columns of the report's main table, beside the bounds.
    note : what a reader must know (other data than the paper's, …).
    """

    id: str
    title: str
    claim: str
    source: str
    level: str
    varies: str
    fixed: str
    supported_if: str
    refuted_if: str
    rule: Rule
    points: Callable[[str], tuple[Point, ...]]
    measures: tuple[str, ...] = ("sa", "ra_inf", "ra_2", "gap_inf", "gap_2")
    norm: str = "inf"
    log_level: bool = False
    note: str = ""
    pictures: tuple[str, ...] = field(default=())

    def cells(self, scale: str, seeds: int, *, smoke: bool = False) -> tuple[Cell, ...]:
        """Every point with every seed; for a smoke run first and last of each arm, in seconds (paper: one step)."""
        if scale not in SCALES:
            raise InputError("scale", got=repr(scale), needed=f"one of {SCALES}", fix="pass 'cpu' or 'paper'")
        points = self.points(scale)
        if smoke:
            points = tuple(
                Point(p.arm, p.level, p.config.smoke() if scale == "cpu" else p.config.one_step())
                for p in _ends_of_arms(points)
            )
        return tuple(Cell(self.id, scale, p, seed) for seed in range(seeds) for p in points)


def _ends_of_arms(points: tuple[Point, ...]) -> tuple[Point, ...]:
    kept = []
    for arm in dict.fromkeys(p.arm for p in points):
        mine = sorted((p for p in points if p.arm == arm), key=lambda p: p.level)
        kept += [mine[0], mine[-1]] if len(mine) > 1 else mine
    return tuple(kept)


MODULES: Final = {
    "e01": "e01_nuclear_norm",
    "e02": "e02_alignment_of_attacks",
    "e03": "e03_group_lasso",
    "e04": "e04_low_rank",
    "e05": "e05_row_sparsity",
    "e06": "e06_fine_tuning",
    "e07": "e07_bound_tracks_gap",
    "e08": "e08_adversarial_training",
    "e09": "e09_universal_examples",
    "e10": "e10_transfer",
    "e11": "e11_epsilon_pruning",
    "e12": "e12_beta_control",
    "e13": "e13_alignment_penalty",
    "e14": "e14_implicit_compression",
    "e15": "e15_universal_training",
    "e16": "e16_other_networks",
}
"""Study id → module of ``experiments.studies``. e05, e06 and e16 are of convolutions and transformers."""


def find(study: str) -> Study:
    """The study with this id.

    Raises
    ------
    InputError : no such study.
    """
    if study not in MODULES:
        raise InputError("study", got=repr(study), needed=f"one of {', '.join(MODULES)}", fix="see `list`")
    found: Study = importlib.import_module(f"experiments.studies.{MODULES[study]}").STUDY
    return found


__all__ = ["MODULES", "SCALES", "Cell", "Point", "Row", "Scale", "Study", "find"]
