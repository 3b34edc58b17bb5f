"""Two-sided form: what membership "τ <= ε" does prove.

Statement (q = 2, spectral). Any ε >= τ_{2,k}(σ): ``σ_1 >= √(1−ε²)/√k · ‖W‖_F``. Any ε <= τ_{2,k}(σ) and β >= β_kth:
``σ_1 <= √(1−ε²)/((1−β)√k) · ‖W‖_F``; β_mean is enough for this too. Rows (q = 1), any ε_ν >= τ_{1,k}(ν):
``‖W‖_∞ >= (1−ε_ν)/k_ν · ‖W‖_F``.

Proof. ``(1−τ²)‖σ‖² = Σ_{i<=k} σ_i² <= k σ_1²``, and ``>= (Σ_{i<=k} σ_i)²/k = k (1−β_mean)² σ_1²``. Rows:
``(1−τ)‖ν‖_1 <= k ν_1`` and ``‖ν‖_1 >= ‖W‖_F``.

Source: certbound theory, section 2 (which asks for β_kth in the upper form; the mean is enough by the proof above).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flint import fmpq, fmpq_mat

from proofs_numeric.harness.exact import Vector, draw_fraction, draw_matrix, draw_vector, frobenius2, row_l1
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

LABELS = ("σ_1 >=", "σ_1 <=, kth", "σ_1 <=, mean", "‖W‖_∞ >=")
NO_ROOT = "sqrt(k) dropped"


@dataclass(frozen=True)
class Instance:
    """σ with its k, a matrix for the row statement with its k, and slacks of ε (either way) and β."""

    sigma: Vector
    k: int
    W: fmpq_mat
    k_rows: int
    epsilon_slack: fmpq
    beta_slack: fmpq


def draw(rng: random.Random, size: int) -> Instance:
    r, m, n = (rng.randint(1, 5 + size) for _ in range(3))
    slack = [fmpq(0) if rng.random() < 0.5 else draw_fraction(rng) for _ in range(2)]
    return Instance(
        draw_vector(rng, r), rng.randint(1, r), draw_matrix(rng, m, n), rng.randint(1, m), slack[0], slack[1]
    )


def evaluate(x: Instance, broken: Broken) -> list[Comparison]:
    p = profile(x.sigma, x.k)
    k = 1 if broken == NO_ROOT else x.k
    larger = more(p.epsilon2, x.epsilon_slack)  # ε² enters, so slacks act on it
    smaller = less(p.epsilon2, x.epsilon_slack)
    result = [compare("σ_1 >=", (1 - larger) / k * p.l2_squared, p.top * p.top, squared=True)]
    for label, beta in (("σ_1 <=, kth", p.beta_kth), ("σ_1 <=, mean", p.beta_mean)):
        b = fmpq(0) if broken == "beta dropped" else more(beta, x.beta_slack)
        claimed = None if b == 1 else (1 - smaller) / ((1 - b) ** 2 * x.k) * p.l2_squared
        result.append(compare(label, p.top * p.top, claimed, squared=True))
    nu = profile(row_l1(x.W), x.k_rows)
    if nu.top > 0:
        e = more(nu.epsilon, x.epsilon_slack)
        result.append(compare("‖W‖_∞ >=", ((1 - e) / x.k_rows) ** 2 * frobenius2(x.W), nu.top * nu.top, squared=True))
    return result


def _search(r: int, k: int, broken: Broken) -> Search:
    m, n, k_rows = 3, 3, 2
    d = r + m * n

    def objective(v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        p = torch_profile(v[:, :r], k)
        W = v[:, r:d].reshape(-1, m, n)
        nu = torch_profile(W.abs().sum(2), k_rows)
        e, b = v[:, d], v[:, d + 1]
        divisor = 1 if broken == NO_ROOT else k
        computed = [((1 - more(p.epsilon2, e)) / divisor).sqrt() * p.l2, p.top, p.top]
        claimed = [p.top]
        for beta in (p.beta_kth, p.beta_mean):
            b = beta * 0 if broken == "beta dropped" else more(beta, v[:, d + 1])
            claimed.append(((1 - less(p.epsilon2, e)) / k).sqrt() / (1 - b) * p.l2)
        computed.append((1 - more(nu.epsilon, e)) / k_rows * W.square().sum((1, 2)).sqrt())
        claimed.append(nu.top)
        return torch.stack(computed, 1), torch.stack(claimed, 1)

    def instance(v: Sequence[Any]) -> Instance:
        W = fmpq_mat([list(v[r + i * n : r + (i + 1) * n]) for i in range(m)])
        return Instance(list(v[:r]), k, W, k_rows, v[d], v[d + 1])

    return Search(f"r = {r}, k = {k}", d + 2, objective, instance, LABELS)


def searches(broken: Broken, size: int = 0) -> list[Search]:
    return [_search(5 + 2 * size, 2 + size, broken), _search(4 + size, 3, broken)]


def queries(broken: Broken) -> list[Query]:
    def spectrum() -> tuple[Any, Any, Any, list[Any], Any]:
        import z3

        b, c, square, beta = z3.Reals("b c epsilon_squared beta")  # σ = (1, b, c), k = 2
        return b, c, square, [0 <= c, c <= b, b <= 1, square >= 0, square <= 1], beta

    def lower() -> tuple[Sequence[Any], Any, Any]:
        b, c, square, order, _ = spectrum()
        fro2 = 1 + b * b + c * c
        return [*order, square * fro2 >= c * c], (1 - square) * fro2, 1 if broken == NO_ROOT else 2 + 0 * b

    def upper() -> tuple[Sequence[Any], Any, Any]:
        b, c, square, order, beta = spectrum()
        fro2 = 1 + b * b + c * c
        spread = beta == 0 if broken == "beta dropped" else 2 * (1 - beta) <= 1 + b
        hypotheses = [*order, square * fro2 <= c * c, spread, beta >= 0, beta < 1]
        return hypotheses, 2 * (1 - beta) * (1 - beta), (1 - square) * fro2

    def rows() -> tuple[Sequence[Any], Any, Any]:
        import z3

        a, b, c, e = z3.Reals("a b c e")  # W = [[1, a], [b, c]], k_ν = 1: first row the larger
        order = [a >= 0, b >= 0, c >= 0, 1 + a >= b + c, e >= 0, e <= 1, e * (1 + a + b + c) >= b + c]
        fro = z3.Real("fro")
        norm = [fro >= 0, fro * fro == 1 + a * a + b * b + c * c]
        return [*order, *norm], (1 - e) * fro, 1 + a

    named = {"σ_1 >=, r = 3, k = 2": lower, "σ_1 <=, r = 3, k = 2, mean": upper, "rows, 2 x 2, k = 1": rows}
    return [Query(label, build) for label, build in named.items()]


def _too_small_epsilon() -> Comparison:
    p = profile([fmpq(1)] * 4, 1)
    return compare("σ_1 >= with ε = 0 < τ", p.l2_squared, p.top * p.top, squared=True)


def _flat(k: int) -> Instance:
    W = fmpq_mat([[fmpq(3), fmpq(0)], [fmpq(0), fmpq(0)]])
    return Instance([fmpq(2), fmpq(2), fmpq(2), fmpq(1)], k, W, 1, fmpq(0), fmpq(0))


LEMMA = Lemma(
    name="two_sided",
    statement="√(1−ε²)/√k ‖W‖_F <= σ_1 <= √(1−ε²)/((1−β)√k) ‖W‖_F (q = 2); ‖W‖_∞ >= (1−ε_ν)/k_ν ‖W‖_F",
    source="theory.md section 2",
    draw=draw,
    evaluate=evaluate,
    searches=searches,
    queries=queries,
    witnesses=(
        Witness("flat top, from below", lambda: _flat(3), "σ_1 >="),
        Witness("flat top, from above", lambda: _flat(3), "σ_1 <=, kth"),
        Witness("one entry", lambda: _flat(3), "‖W‖_∞ >="),
    ),
    counterexamples=(Counterexample("lower form with ε below τ: I_4, k = 1, ε = 0", _too_small_epsilon),),
    broken={
        NO_ROOT: Variant("1/√k left out of the lower form"),
        "beta dropped": Variant("β set to 0 in the upper form"),
    },
)
