"""Softmax is 1/2-Lipschitz, from ℓ2 to ℓ2 and from ℓ∞ to ℓ∞.

Statement. p in the simplex (p_i >= 0, Σ p_i = 1), ``J = diag(p) − p pᵀ`` (the Jacobian of softmax at any x with
softmax(x) = p): ``‖J‖_∞ <= 1/2`` and ``‖J‖_2 <= 1/2``. Both are attained at p = (1/2, 1/2).

Proof. The absolute row sum i is ``p_i (1 − p_i) + p_i Σ_{j≠i} p_j = 2 p_i (1 − p_i) <= 1/2``; J is symmetric, so
``‖J‖_2 <= ‖J‖_∞``. The mean value theorem gives the Lipschitz constants.

Source: Gao & Pavel 2017, arXiv:1704.00805 (with the constant 1); Nair 2025, arXiv:2510.23012 (1/2 in every ℓp).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from flint import fmpq, fmpq_mat

from proofs_numeric.harness.exact import Vector, draw_rational, norm_inf, spectral_norm
from proofs_numeric.harness.lemma import Broken, Comparison, Lemma, Query, Search, Variant, Witness, compare

if TYPE_CHECKING:
    import torch

QUARTER = "1/4 as for the sigmoid"


def draw(rng: random.Random, size: int) -> Vector:
    weights = [abs(draw_rational(rng)) for _ in range(rng.randint(1, 4 + size))]
    return weights if any(weights) else [fmpq(1), *weights]


def jacobian(weights: Vector) -> fmpq_mat:
    """``diag(p) − p pᵀ`` for p proportional to the weights."""
    total = sum(weights, fmpq(0))
    p = [w / total for w in weights]
    return fmpq_mat([[(a if i == j else fmpq(0)) - a * b for j, b in enumerate(p)] for i, a in enumerate(p)])


def evaluate(weights: Vector, broken: Broken) -> list[Comparison]:
    J, claimed = jacobian(weights), fmpq(1, 4 if broken == QUARTER else 2)
    return [compare("‖J‖_∞", norm_inf(J), claimed), compare("‖J‖_2", spectral_norm(J), claimed)]


def searches(broken: Broken, size: int = 0) -> list[Search]:
    n = 3 + size

    def objective(v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        w = v.square() + 1e-12
        p = w / w.sum(1, keepdim=True)
        J = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
        computed = torch.stack([J.abs().sum(2).amax(1), torch.linalg.matrix_norm(J, 2)], dim=1)
        return computed, torch.full_like(computed, 0.25 if broken == QUARTER else 0.5)

    def instance(v: Sequence[Any]) -> Vector:
        return [x * x + fmpq(1, 10**12) for x in v]

    return [Search(f"{n} classes", n, objective, instance, ("‖J‖_∞", "‖J‖_2"))]


def queries(broken: Broken) -> list[Query]:
    def build() -> tuple[Sequence[Any], Any, Any]:
        import z3

        p = z3.Reals("p q r")
        hypotheses = [*(x >= 0 for x in p), z3.Sum(p) == 1]
        row = p[0] * (1 - p[0]) + p[0] * p[1] + p[0] * p[2]
        return hypotheses, row, z3.Q(1, 4 if broken == QUARTER else 2)

    return [Query("three classes, one row", build)]


LEMMA = Lemma(
    name="softmax",
    statement="J = diag(p) − p pᵀ, p in the simplex: ‖J‖_∞ <= 1/2 and ‖J‖_2 <= 1/2",
    source="issue of real architectures; Gao & Pavel 2017 for the map",
    draw=draw,
    evaluate=evaluate,
    searches=searches,
    queries=queries,
    witnesses=(
        Witness("two equal classes, ∞", lambda: [fmpq(1), fmpq(1)], "‖J‖_∞"),
        Witness("two equal classes, 2", lambda: [fmpq(1), fmpq(1), fmpq(0)], "‖J‖_2"),
    ),
    broken={QUARTER: Variant("the sigmoid's constant")},
)
