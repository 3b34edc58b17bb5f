"""LayerNorm: its Jacobian, over all inputs and where the variance is bounded below.

Statement. ``c = x − mean(x)``, ``v = ‖c‖²/n``, ``s = √(v + ε)``, ``J = diag(γ) (P − c cᵀ/(n s²))/s`` with
``P = I − 1 1ᵀ/n`` (the Jacobian of LayerNorm), ``τ = v/(v + ε)``: ``‖J‖_2 <= max|γ|/s <= max|γ|/√ε``, and ``‖J‖_∞`` is
at most ``max|γ|/s`` times each of ``1 − τ/2 + √(1 − τ + n τ²/4)`` and ``2 (n − 1)/n + (1 + √n) τ/2``.

Proof. ``P − c cᵀ/(n s²)`` is symmetric with eigenvalues 0 (on 1), ``1 − v/s² = ε/s²`` (on c) and 1. With a = c/s,
``‖a‖² = n τ`` and ``w = a_i²``, row i has the ℓ1 norm ``|1 − 1/n − w/n| + Σ_{j≠i} |1 + a_i a_j|/n``. First: by
Cauchy–Schwarz over j ≠ i, ``Σ_{j≠i} (1 + a_i a_j)² = n − 1 + (nτ − 2) w − w²``, and then over w. Second: row i of P has
``2 (n − 1)/n``, and ``|a_i| ‖a‖_1 <= w + √((n − 1) w (nτ − w)) <= nτ (1 + √n)/2``.

The first claim is attained at c = 0 for n >= 2.

Source: certbound.norms.blocks.layer_norm_constant; Kim, Papamakarios & Mnih 2021, arXiv:2006.04710, appendix N
(LayerNorm is Lipschitz by its ε).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flint import fmpq, fmpq_mat

from proofs_numeric.harness.exact import Vector, draw_vector, norm_inf, spectral_norm, sqrt
from proofs_numeric.harness.lemma import (
    Broken,
    Comparison,
    Counterexample,
    Lemma,
    Query,
    Search,
    Variant,
    Witness,
    compare,
)

if TYPE_CHECKING:
    import torch

MEAN_GAMMA = "mean |γ| for the largest"


@dataclass(frozen=True)
class Instance:
    """An input, γ and ε > 0."""

    x: Vector
    gamma: Vector
    eps: fmpq


def draw(rng: random.Random, size: int) -> Instance:
    n = rng.randint(2, 4 + size)
    return Instance(draw_vector(rng, n), draw_vector(rng, n), fmpq(1, rng.choice((1, 3, 100, 10**5))))


def evaluate(x: Instance, broken: Broken) -> list[Comparison]:
    n = len(x.x)
    mean = sum(x.x, fmpq(0)) / n
    c = [v - mean for v in x.x]
    variance = sum((v * v for v in c), fmpq(0)) / n
    s2 = variance + x.eps
    # everything times s, which may be irrational: sJ is rational
    sJ = fmpq_mat(
        [[g * ((i == j) - fmpq(1, n) - a * b / (n * s2)) for j, b in enumerate(c)]
         for i, (g, a) in enumerate(zip(x.gamma, c, strict=True))]
    )  # fmt: skip
    sizes = [abs(g) for g in x.gamma]
    top = sum(sizes, fmpq(0)) / n if broken == MEAN_GAMMA else max(sizes)
    over = sqrt(s2 / x.eps)
    tau = variance / s2
    root = sqrt(1 - tau + n * tau * tau / 4)
    two, infinity = spectral_norm(sJ), norm_inf(sJ)
    return [
        compare("‖J‖_2, here", two, top),
        compare("‖J‖_2, everywhere", two, over * top),
        compare("‖J‖_∞, Cauchy–Schwarz", infinity, (root + (1 - tau / 2)) * top),
        compare("‖J‖_∞, split", infinity, ((sqrt(fmpq(n)) + 1) * (tau / 2) + fmpq(2 * (n - 1), n)) * top),
    ]


def searches(broken: Broken, size: int = 0) -> list[Search]:
    n = 3 + size

    def objective(v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        x, gamma, eps = v[:, :n], v[:, n : 2 * n], v[:, 2 * n].square() + 1e-3
        c = x - x.mean(1, keepdim=True)
        variance = c.square().mean(1)
        s2 = variance + eps
        P = torch.eye(n, dtype=v.dtype) - 1.0 / n
        sJ = gamma[:, :, None] * (P - c[:, :, None] * c[:, None, :] / (n * s2[:, None, None]))
        top = gamma.abs().mean(1) if broken == MEAN_GAMMA else gamma.abs().amax(1)
        tau = variance / s2
        schwarz = (1 - tau / 2 + (1 - tau + n * tau * tau / 4).sqrt()) * top
        split = (2 * (n - 1) / n + (1 + n**0.5) * tau / 2) * top
        two = torch.linalg.matrix_norm(sJ + 1e-13 * v[:, :1, None], 2)
        rows = sJ.abs().sum(2).amax(1)
        return torch.stack([two, rows, rows], dim=1), torch.stack([top, schwarz, split], dim=1)

    def instance(v: Sequence[Any]) -> Instance:
        return Instance(list(v[:n]), list(v[n : 2 * n]), v[2 * n] * v[2 * n] + fmpq(1, 1000))

    labels = ("‖J‖_2, here", "‖J‖_∞, Cauchy–Schwarz", "‖J‖_∞, split")
    return [Search(f"{n} entries", 2 * n + 1, objective, instance, labels)]


def queries(broken: Broken) -> list[Query]:
    def build() -> tuple[Sequence[Any], Any, Any]:
        import z3

        # n = 2, γ = (g, h), x = (c, −c): s J = diag(g, h) ((1, −1), (−1, 1)) k, k = (1 − 2c²/(2 (c² + ε)))/2
        c, eps, g, h, k = z3.Reals("c eps g h k")
        hypotheses = [eps > 0, g >= 0, h >= 0, g >= h, 2 * k * (c * c + eps) == eps]
        claimed = (g + h) / 2 if broken == MEAN_GAMMA else g
        # the ∞-norm is 2 g k; τ = 1 − 2k, and what it adds is left out: two entries do not need it
        return hypotheses, 2 * g * k, claimed

    return [Query("two entries, ‖J‖_∞", build)]


def _without_tau() -> Comparison:
    """One entry of n = 20 apart, the others ±: its row has ℓ1 norm about √n/2."""
    n = 20
    x = [fmpq(3), *(fmpq((-1) ** i) for i in range(n - 1))]
    mean = sum(x, fmpq(0)) / n
    c = [v - mean for v in x]
    s2 = sum((v * v for v in c), fmpq(0)) / n + fmpq(1, 10**6)
    row = sum((abs((j == 0) - fmpq(1, n) - c[0] * b / (n * s2)) for j, b in enumerate(c)), fmpq(0))
    return compare("‖sJ‖_∞", row, fmpq(2 * (n - 1), n))


def _apart() -> Instance:
    """Nine entries for which all ``|1 + a_i a_j|`` are equal: Cauchy–Schwarz is an equality, up to ε."""
    x = [fmpq(8), *[fmpq(4)] * 6, *[fmpq(-4)] * 2]
    return Instance(x, [fmpq(1)] * 9, fmpq(1, 10**6))


LEMMA = Lemma(
    name="layer_norm",
    statement="J of LayerNorm: ‖J‖_2 <= max|γ|/s <= max|γ|/√ε; ‖J‖_∞ <= max|γ|/s (1 − τ/2 + √(1 − τ + nτ²/4))",
    source="issue of real architectures; Kim et al. 2021 for the map",
    draw=draw,
    evaluate=evaluate,
    searches=searches,
    queries=queries,
    witnesses=(
        Witness(
            "a constant input",
            lambda: Instance([fmpq(1)] * 3, [fmpq(2)] * 3, fmpq(1, 100)),
            "‖J‖_2, everywhere",
        ),
        Witness(
            "a constant input, ∞",
            lambda: Instance([fmpq(1)] * 3, [fmpq(2)] * 3, fmpq(1, 100)),
            "‖J‖_∞, split",
        ),
        Witness("one entry apart, ∞", _apart, "‖J‖_∞, Cauchy–Schwarz", at_least=0.99999),
    ),
    counterexamples=(Counterexample("‖J‖_∞ <= 2 (1 − 1/n) max|γ|/s, without the term of τ", _without_tau),),
    broken={MEAN_GAMMA: Variant("the mean of |γ|")},
)
