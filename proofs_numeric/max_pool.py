"""Max pooling: ``√m`` in ℓ2 and 1 in ℓ∞, m the largest number of windows that one input belongs to.

Statement. Windows S_1 … S_q of the indices 0 … n − 1 (any sets), ``f(x)_i = max_{j∈S_i} x_j``,
``m = max_j #{i : j ∈ S_i}``: ``‖f(x) − f(y)‖_2² <= m ‖x − y‖_2²`` and ``‖f(x) − f(y)‖_∞ <= ‖x − y‖_∞``.

Proof. ``|max_S x − max_S y| <= |x_j − y_j|`` for some j in S (the maximiser of the larger one). Squared and summed,
every j is charged at most by its m windows. Attained: an input far above its neighbours moves all of its m maxima by
as much as itself.

Source: elementary; Gouk et al. 2021, arXiv:1804.04368, section 3.4, for pooling without overlap.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flint import fmpq

from proofs_numeric.harness.exact import Vector, draw_vector
from proofs_numeric.harness.lemma import Broken, Comparison, Lemma, Query, Search, Variant, Witness, compare

if TYPE_CHECKING:
    import torch

NO_OVERLAP = "overlap ignored"


@dataclass(frozen=True)
class Instance:
    """Windows of ``kernel`` entries every ``stride``, with ``padding`` places of −∞ on both sides; two inputs."""

    kernel: int
    stride: int
    padding: int
    x: Vector
    y: Vector

    @property
    def windows(self) -> list[list[int]]:
        """The indices in every window."""
        n, p = len(self.x), self.padding
        starts = range(-p, n + p - self.kernel + 1, self.stride)
        return [[j for j in range(a, a + self.kernel) if 0 <= j < n] for a in starts]


def draw(rng: random.Random, size: int) -> Instance:
    kernel = rng.randint(1, 3)
    n = rng.randint(kernel, 6 + size)
    return Instance(kernel, rng.randint(1, 3), rng.randint(0, kernel // 2), draw_vector(rng, n), draw_vector(rng, n))


def evaluate(x: Instance, broken: Broken) -> list[Comparison]:
    windows = x.windows
    counts = [sum(j in w for w in windows) for j in range(len(x.x))]
    most = fmpq(1 if broken == NO_OVERLAP else max(counts))
    changes = [max(x.x[j] for j in w) - max(x.y[j] for j in w) for w in windows]
    moved = [a - b for a, b in zip(x.x, x.y, strict=True)]
    squares = [sum((v * v for v in vs), fmpq(0)) for vs in (changes, moved)]
    return [
        compare("ℓ2", squares[0], most * squares[1], squared=True),
        compare("ℓ∞", max(abs(v) for v in changes), max(abs(v) for v in moved)),
    ]


def searches(broken: Broken, size: int = 0) -> list[Search]:
    n = 5 + size

    def objective(v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = v[:, :n], v[:, n:]
        change = x.unfold(1, 3, 1).amax(2) - y.unfold(1, 3, 1).amax(2)
        most = 1.0 if broken == NO_OVERLAP else 3.0
        return change.square().sum(1).sqrt(), (most * (x - y).square().sum(1)).sqrt()

    def instance(v: Sequence[Any]) -> Instance:
        return Instance(3, 1, 0, list(v[:n]), list(v[n:]))

    return [Search("windows of 3, stride 1", 2 * n, objective, instance, ("ℓ2",))]


def queries(broken: Broken) -> list[Query]:
    def build() -> tuple[Sequence[Any], Any, Any]:
        import z3

        # two windows {0, 1}, {1, 2}: entry 1 is in both. e_j: squared moves; a change is at most the largest in its
        # window (that step is the exact part's: with maxima written out z3 does not end)
        e = z3.Reals("e0 e1 e2")
        changes = z3.Reals("c0 c1")
        largest = [z3.If(e[i] >= e[i + 1], e[i], e[i + 1]) for i in (0, 1)]
        hypotheses = [*(v >= 0 for v in (*e, *changes)), *(c <= top for c, top in zip(changes, largest, strict=True))]
        return hypotheses, z3.Sum(changes), z3.Sum(e) * (1 if broken == NO_OVERLAP else 2)

    return [Query("two overlapping windows of three entries, squares", build)]


LEMMA = Lemma(
    name="max_pool",
    statement="‖f(x) − f(y)‖_2² <= m ‖x − y‖_2², ‖f(x) − f(y)‖_∞ <= ‖x − y‖_∞ for max pooling, m windows an input",
    source="issue of real architectures",
    draw=draw,
    evaluate=evaluate,
    searches=searches,
    queries=queries,
    witnesses=(
        Witness(
            "the centre alone moves",
            lambda: Instance(3, 1, 0, [fmpq(v) for v in (0, 0, 9, 0, 0)], [fmpq(v) for v in (0, 0, 8, 0, 0)]),
            "ℓ2",
        ),
        Witness(
            "one entry, ∞",
            lambda: Instance(2, 2, 0, [fmpq(3), fmpq(0)], [fmpq(1), fmpq(0)]),
            "ℓ∞",
        ),
    ),
    broken={NO_OVERLAP: Variant("√m taken as 1")},
)
