"""Core identity: structure × scale for one vector.

Statement. For θ ≠ 0, every k, exact ε = τ_{1,k}(θ) and β = β_mean:
``‖θ‖_∞ = (1−ε)/((1−β) k) · ‖θ‖_1``. With β_kth, and with any smaller ε or larger β, it is ``<=``.

Proof. ``(1−ε)‖θ‖_1`` is the sum of the top k magnitudes, ``(1−β_mean) k ‖θ‖_∞`` is the same sum, and
``(1−β_kth) k ‖θ‖_∞`` is at most that sum. The right side falls in ε and rises in β.

Source: certbound theory, section 2; the step behind Theorem 3.1 of Barsbey et al., ICLR 2026.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flint import fmpq

from proofs_numeric.harness.exact import Vector, draw_fraction, draw_vector
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
from proofs_numeric.harness.profile import less, more, profile, torch_profile

if TYPE_CHECKING:
    import torch


LABELS = ("one-sided mean", "one-sided kth")


@dataclass(frozen=True)
class Instance:
    """A vector, k, and how far ε and β are from exact (0: exact)."""

    theta: Vector
    k: int
    epsilon_slack: fmpq
    beta_slack: fmpq


def draw(rng: random.Random, size: int) -> Instance:
    d = rng.randint(1, 6 + 2 * size)
    slack = [fmpq(0) if rng.random() < 0.5 else draw_fraction(rng) for _ in range(2)]
    return Instance(draw_vector(rng, d), rng.randint(1, d), *slack)


def _value(epsilon: Any, beta: Any, k: int, l1: Any) -> Any:
    return (1 - epsilon) * l1 / ((1 - beta) * k)


def evaluate(x: Instance, broken: Broken) -> list[Comparison]:
    p = profile(x.theta, x.k)
    mean = fmpq(0) if broken == "beta dropped" else p.beta_mean
    exact = _value(p.epsilon, mean, x.k, p.l1)
    result = [compare("mean, <=", p.top, exact)]
    if broken is None:
        result.append(compare("mean, >=", exact, p.top))
    for label, beta in (("one-sided mean", mean), ("one-sided kth", p.beta_kth)):
        beta = more(beta, x.beta_slack) if broken is None else beta
        claimed = None if beta == 1 else _value(less(p.epsilon, x.epsilon_slack), beta, x.k, p.l1)
        result.append(compare(label, p.top, claimed))
    return result


def _search(d: int, k: int, broken: Broken) -> Search:
    def objective(v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        p = torch_profile(v[:, :d], k)
        epsilon = less(p.epsilon, v[:, d])
        if broken == "beta dropped":
            claims = [_value(epsilon, torch.zeros_like(epsilon), k, p.l1)]
        else:
            claims = [_value(epsilon, more(b, v[:, d + 1]), k, p.l1) for b in (p.beta_mean, p.beta_kth)]
        claimed = torch.stack(claims, 1)
        return p.top[:, None].expand_as(claimed), claimed

    return Search(f"d = {d}, k = {k}", d + 2, objective, lambda v: Instance(list(v[:d]), k, v[d], v[d + 1]), LABELS)


def searches(broken: Broken, size: int = 0) -> list[Search]:
    return [_search(d + 3 * size, k + size, broken) for d, k in ((5, 2), (4, 3))]


def queries(broken: Broken) -> list[Query]:
    def build() -> tuple[Sequence[Any], Any, Any]:
        import z3

        a, b, c, epsilon, beta = z3.Reals("a b c epsilon beta")
        order = [a >= b, b >= c, c >= 0, a > 0]
        tail = [epsilon >= 0, epsilon * (a + b + c) <= c]  # epsilon at most the tail ratio, k = 2
        spread = beta == 0 if broken == "beta dropped" else (1 - beta) * 2 * a <= a + b
        return [*order, *tail, spread, beta >= 0, beta < 1], a * (1 - beta) * 2, (1 - epsilon) * (a + b + c)

    return [Query("d = 3, k = 2, one-sided", build)]


def _kth_is_no_identity() -> Comparison:
    p = profile([fmpq(2), fmpq(1)], 2)
    return compare("kth read as >=", _value(p.epsilon, p.beta_kth, 2, p.l1), p.top)


LEMMA = Lemma(
    name="core_identity",
    statement="‖θ‖_∞ = (1−ε)/((1−β) k) ‖θ‖_1 with exact ε, β_mean; <= with β_kth, smaller ε, larger β",
    source="theory.md section 2",
    draw=draw,
    evaluate=evaluate,
    searches=searches,
    queries=queries,
    witnesses=(
        Witness(
            "any vector, exact inputs",
            lambda: Instance([fmpq(3), fmpq(-2), fmpq(1, 3)], 2, fmpq(0), fmpq(0)),
            "mean, <=",
        ),
    ),
    counterexamples=(Counterexample("β_kth gives equality: θ = (2, 1), k = 2", _kth_is_no_identity),),
    broken={"beta dropped": Variant("β set to 0")},
)
