"""What the two neuron forms of Theorem 3.1 share: instances, row tails, searches. The forms are in the lemma files."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from flint import fmpq, fmpq_mat

from proofs_numeric.harness.exact import Real, draw_fraction, draw_matrix, frobenius2, real, row_l1, sqrt
from proofs_numeric.harness.lemma import Broken, Comparison, Search, compare
from proofs_numeric.harness.profile import less, more, profile, torch_profile

if TYPE_CHECKING:
    import torch

# (√, m, n, k_r, k_ν, ε_r) -> the factor of (1−ε)/(1−β) ‖W‖_F; √ is exact or torch's
Factor: TypeAlias = Callable[[Callable[[int], Any], int, int, int, int, Any, Broken], Any]


@dataclass(frozen=True)
class RowInstance:
    """W, k_ν, k_r, q_r, and slacks (0: exact): ε_ν smaller, β_ν larger, ε_r larger."""

    W: fmpq_mat
    k: int
    k_row: int
    q_row: int
    epsilon_slack: fmpq
    beta_slack: fmpq
    row_slack: fmpq


def draw_rows(rng: random.Random, size: int) -> RowInstance:
    m, n = (rng.randint(1, 5 + size) for _ in range(2))
    slack = [fmpq(0) if rng.random() < 0.6 else draw_fraction(rng) for _ in range(3)]
    return RowInstance(
        draw_matrix(rng, m, n), rng.randint(1, m), rng.randint(1, n), rng.choice((1, 2)), slack[0], slack[1], slack[2]
    )


def row_tail(W: fmpq_mat, k_row: int, q_row: int) -> Real:
    """The largest row tail ratio τ_{q_r, k_r}."""
    rows = [profile(row, k_row) for row in W.tolist()]
    if q_row == 2:
        return sqrt(max(p.epsilon2 for p in rows))
    return real(max(p.epsilon for p in rows))


def evaluate_rows(x: RowInstance, factor: Factor, broken: Broken) -> list[Comparison]:
    """``‖W‖_∞ <= (1−ε)/(1−β) · factor · ‖W‖_F`` for both readings of β."""
    m, n = x.W.nrows(), x.W.ncols()
    nu = row_l1(x.W)
    p = profile(nu, x.k)
    if p.top == 0:
        return []
    epsilon_row = row_tail(x.W, x.k_row, x.q_row) * (1 + x.row_slack * x.row_slack)
    size = factor(sqrt, m, n, x.k_row, x.k, epsilon_row, broken) * sqrt(frobenius2(x.W))
    result = []
    for label, beta in (("mean", p.beta_mean), ("kth", p.beta_kth)):
        e, b = less(p.epsilon, x.epsilon_slack), more(beta, x.beta_slack)
        if broken == "beta dropped":
            b = fmpq(0)
        result.append(compare(label, p.top, None if b == 1 else size * ((1 - e) / (1 - b))))
    return result


def row_search(m: int, n: int, k: int, k_row: int, q_row: int, factor: Factor, broken: Broken) -> Search:
    """Ascent over all entries and slacks."""
    d = m * n

    def objective(v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        W = v[:, :d].reshape(-1, m, n)
        p, rows = torch_profile(W.abs().sum(2), k), torch_profile(W, k_row)
        tails = rows.epsilon2.sqrt() if q_row == 2 else rows.epsilon
        epsilon_row = tails.max(1).values * (1 + v[:, d + 2].square())
        size = factor(lambda a: a**0.5, m, n, k_row, k, epsilon_row, broken) * W.square().sum((1, 2)).sqrt()
        claims = []
        for beta in (p.beta_mean, p.beta_kth):
            e, b = less(p.epsilon, v[:, d]), more(beta, v[:, d + 1])
            if broken == "beta dropped":
                b = beta * 0
            claims.append((1 - e) / (1 - b) * size)
        claimed = torch.stack(claims, 1)
        return p.top[:, None].expand_as(claimed), claimed

    def instance(v: Sequence[Any]) -> RowInstance:
        W = fmpq_mat([list(v[i * n : (i + 1) * n]) for i in range(m)])
        return RowInstance(W, k, k_row, q_row, v[d], v[d + 1], v[d + 2])

    return Search(f"{m} x {n}, k = {k}, k_r = {k_row}, q_r = {q_row}", d + 3, objective, instance, ("mean", "kth"))


def row_query_hypotheses() -> tuple[list[Any], dict[str, Any]]:
    """SMT variables for W = [[1, b], [1, b]], k_ν = 2, k_r = 1, q_r = 1: (hypotheses, variables).

    The claim is scale-invariant and signs do not matter; equal rows are where Cauchy–Schwarz is tight.
    """
    import z3

    v = {name: z3.Real(name) for name in ("b", "epsilon_row", "fro", "root2")}
    b = v["b"]
    hypotheses = [b >= 0, b <= 1, v["epsilon_row"] * (1 + b) >= b]
    hypotheses += [v["fro"] >= 0, v["fro"] * v["fro"] == 2 * (1 + b * b)]
    hypotheses += [v["root2"] > 0, v["root2"] * v["root2"] == 2]
    return hypotheses, v
