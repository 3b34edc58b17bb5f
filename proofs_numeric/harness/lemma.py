"""A lemma, as a thing that can be attacked: instances, an exact decision on each, searches, queries, witnesses.

Every statement has the form ``computed <= claimed``. ``evaluate(instance, broken)`` decides it exactly; ``broken``
names a deliberately false variant (or is None), and the same code then runs on the false statement.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from flint import fmpq, fmpq_mat

from proofs_numeric.harness.exact import Number, UndecidedError, is_psd, real

if TYPE_CHECKING:
    import torch

Part = Literal["exact", "ascent", "smt"]
Broken: TypeAlias = "str | None"
Instance: TypeAlias = Any

_ENLARGED = 1 + fmpq(1, 2**200)


@dataclass(frozen=True)
class Comparison:
    """One decided comparison. ``sign``: of computed − claimed, exact; ``holds`` iff it is not 1."""

    label: str
    computed: float
    claimed: float
    sign: int
    ratio: float
    excess: float | None = None

    @property
    def holds(self) -> bool:
        """``computed <= claimed``."""
        return self.sign <= 0

    @property
    def margin(self) -> float:
        """``(computed − claimed)/(|computed| + |claimed|)``, in [−1, 1]; for the report, not for the decision.

        ``excess`` replaces it where the difference is below what computed and claimed hold as floats.
        """
        if self.excess is not None:
            return self.excess
        scale = abs(self.computed) + abs(self.claimed)
        return (self.computed - self.claimed) / scale if 0 < scale < math.inf else -1.0 if scale else 0.0


def compare(label: str, computed: Number, claimed: Number | None, *, squared: bool = False) -> Comparison:
    """Decide ``computed <= claimed`` (None: +∞). ``squared``: both are squares; the ratio shown is of their roots.

    Sums of square roots are decided exactly, ties included. Numbers known by enclosures alone (2-norms that are no
    square roots, logarithms) cannot be seen to be equal: what 3,072 bits leave open must hold with a claim larger by
    2^-200 of itself.
    """
    a = real(computed)
    if claimed is None:
        return Comparison(label, float(a), math.inf, -1, 0.0)
    b = real(claimed)
    try:
        sign = (a - b).sign()
    except UndecidedError:
        sign = (a - b * _ENLARGED).sign()
    x, y = float(a), float(b)
    if squared:
        x, y = math.sqrt(max(x, 0.0)), math.copysign(math.sqrt(abs(y)), y)
    return Comparison(label, x, y, sign, _ratio(x, y, sign))


def _ratio(x: float, y: float, sign: int) -> float:
    """computed/claimed; on the side of 1 that was decided, whatever the floats say."""
    if sign == 0:
        return 1.0
    if y <= 0:
        return math.inf if sign > 0 else 0.0
    return max(x / y, math.nextafter(1.0, 2.0)) if sign > 0 else min(x / y, math.nextafter(1.0, 0.0))


def compare_psd(label: str, smaller: fmpq_mat, larger: fmpq_mat) -> Comparison:
    """Decide ``smaller ⪯ larger`` for symmetric matrices; floats only describe how close it is."""
    a = np.array([[float(v) for v in row] for row in smaller.tolist()])
    b = np.array([[float(v) for v in row] for row in larger.tolist()])
    gap = larger - smaller
    holds = is_psd(gap)
    values, vectors = np.linalg.eigh(b)
    if values[0] > 1e-12 * abs(values[-1]):
        half = vectors / np.sqrt(values)
        v = np.linalg.eigh(half.T @ a @ half)[1]
        x = half @ v[:, -1]
    else:
        x = np.linalg.eigh(b - a)[1][:, 0]
    computed, claimed = float(x @ a @ x), float(x @ b @ x)
    sign = 1 if not holds else 0 if gap.det() == 0 else -1
    return Comparison(label, computed, claimed, sign, _ratio(computed, claimed, sign))


@dataclass(frozen=True)
class Search:
    """A gradient-ascent search over ``size`` real parameters.

    ``objective``: (restarts, size) → (computed, claimed), each (restarts,) or (restarts, comparisons); ``instance``:
    the exact instance of one parameter vector, so that what the floats found is decided by ``evaluate``; ``labels``:
    the comparison that each column is, by which the two formulas are held against each other (empty: none is);
    ``candidates``: how many of the best points are decided.
    """

    label: str
    size: int
    objective: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
    instance: Callable[[Sequence[Any]], Instance]
    labels: tuple[str, ...] = ()
    candidates: int = 3


@dataclass(frozen=True)
class Query:
    """An SMT query: ``build()`` returns (hypotheses, computed, claimed) over the reals, for a fixed small size."""

    label: str
    build: Callable[[], tuple[Sequence[Any], Any, Any]]


@dataclass(frozen=True)
class Witness:
    """An instance that comes close: the comparison ``label`` must reach ``at_least`` (1: equality, decided exactly)."""

    label: str
    instance: Callable[[], Instance]
    comparison: str
    at_least: float = 1.0


@dataclass(frozen=True)
class Counterexample:
    """A false reading and an instance that refutes it: ``check()`` must come out violated, exactly."""

    label: str
    check: Callable[[], Comparison]


@dataclass(frozen=True)
class Variant:
    """A deliberately broken statement, and the parts that must find it false."""

    description: str
    parts: tuple[Part, ...] = ("exact", "ascent", "smt")


@dataclass(frozen=True)
class Lemma:
    """One lemma and everything that tries to break it.

    ``draw(rng, size)``: a random exact instance (``size`` 0 in short runs, larger in deep ones). ``evaluate``: the
    decided comparisons. ``searches(broken, size)``: what gradient ascent climbs. ``no_smt``: why there is no query,
    where there is none. ``weight`` scales the number of examples (one costs 1/weight of a usual one).
    """

    name: str
    statement: str
    source: str
    draw: Callable[[random.Random, int], Instance]
    evaluate: Callable[[Instance, Broken], Sequence[Comparison]]
    searches: Callable[[Broken, int], Sequence[Search]]
    queries: Callable[[Broken], Sequence[Query]] | None = None
    no_smt: str = ""
    witnesses: Sequence[Witness] = ()
    counterexamples: Sequence[Counterexample] = ()
    broken: Mapping[str, Variant] = field(default_factory=dict)
    weight: float = 1.0
