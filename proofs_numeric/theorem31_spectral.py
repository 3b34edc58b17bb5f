"""Theorem 3.1, spectral part.

Statement. W of shape (m, n), r = min(m, n), singular values σ, any k <= r, exact ε = τ_{1,k}(σ) or smaller, exact β
(mean or kth) or larger: ``‖W‖_2 <= (1−ε)/(1−β) · √r/k · ‖W‖_F``.

Proof. The core identity for θ = σ, then Cauchy–Schwarz ``‖σ‖_1 <= √r ‖σ‖_2 = √r ‖W‖_F``. Equality with β_mean iff
the spectrum is flat.

Source: Barsbey et al., ICLR 2026, Theorem 3.1; certbound theory, section 2.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flint import fmpq

from proofs_numeric.harness.exact import (
    Real,
    Vector,
    draw_fraction,
    draw_skew,
    draw_vector,
    frobenius2,
    identity,
    is_psd,
    skew_size,
    snapped,
    sqrt,
    with_spectrum,
)
from proofs_numeric.harness.lemma import Broken, Comparison, Lemma, Query, Search, Variant, Witness, compare
from proofs_numeric.harness.profile import less, more, profile, torch_profile

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Instance:
    """W = U diag(σ) Vᵀ (U, V from Cayley parameters), k, and the slack of ε and β (0: exact)."""

    shape: tuple[int, int]
    sigma: Vector
    K_u: Vector
    K_v: Vector
    k: int
    epsilon_slack: fmpq
    beta_slack: fmpq


def draw(rng: random.Random, size: int) -> Instance:
    m, n = (rng.randint(1, 4 + size) for _ in range(2))
    r = min(m, n)
    slack = [fmpq(0) if rng.random() < 0.5 else draw_fraction(rng) for _ in range(2)]
    return Instance(
        (m, n), draw_vector(rng, r), draw_skew(rng, m), draw_skew(rng, n), rng.randint(1, r), slack[0], slack[1]
    )


def inputs(epsilon: Any, beta: Any, x: tuple[Any, Any], broken: Broken) -> tuple[Any, Any]:
    """(ε, β) as they enter: exact or one-sided valid, or broken."""
    e, b = less(epsilon, x[0]), more(beta, x[1])
    if broken == "beta dropped":
        b = beta * 0
    if broken == "epsilon too large":
        e = epsilon + (1 - epsilon) / 4
    return e, b


def evaluate(x: Instance, broken: Broken) -> list[Comparison]:
    m, n = x.shape
    W = with_spectrum(x.sigma, m, n, x.K_u, x.K_v)
    p = profile(x.sigma, x.k)
    if p.top == 0:
        return [compare("zero", fmpq(0), fmpq(0))]
    # the construction is not taken on trust: p.top is the norm of this W
    gap = p.top * p.top * identity(n) - W.transpose() * W
    if gap.det() * (1 if m >= n else 0) != 0 or not is_psd(gap):
        raise AssertionError("the prescribed spectrum is not the spectrum")
    rank_term: Real | int = sqrt(p.size) if broken == "r^(1/4) for sqrt(r)" else p.size
    result = []
    for label, beta in (("mean", p.beta_mean), ("kth", p.beta_kth)):
        e, b = inputs(p.epsilon, beta, (x.epsilon_slack, x.beta_slack), broken)
        claimed = None if b == 1 else ((1 - e) / ((1 - b) * x.k)) ** 2 * frobenius2(W) * rank_term
        result.append(compare(label, p.top * p.top, claimed, squared=True))
    return result


def _claimed(v: torch.Tensor, sigma: torch.Tensor, k: int, slack: int, broken: Broken) -> tuple[Any, Any]:
    import torch

    p = torch_profile(sigma, k)
    power = 0.25 if broken == "r^(1/4) for sqrt(r)" else 0.5
    claims = []
    for beta in (p.beta_mean, p.beta_kth):
        e, b = inputs(p.epsilon, beta, (v[:, slack], v[:, slack + 1]), broken)
        claims.append((1 - e) / ((1 - b) * k) * sigma.shape[1] ** power * p.l2)
    claimed = torch.stack(claims, 1)
    return p.top[:, None].expand_as(claimed), claimed


def _over_spectra(r: int, k: int, broken: Broken) -> Search:
    skew = [fmpq(i + 1, 3) for i in range(skew_size(r))]
    return Search(
        f"spectra, r = {r}, k = {k}",
        r + 2,
        lambda v: _claimed(v, v[:, :r], k, r, broken),
        lambda v: Instance((r, r), list(v[:r]), skew, skew, k, v[r], v[r + 1]),
        ("mean", "kth"),
    )


def _over_entries(m: int, n: int, k: int, broken: Broken) -> Search:
    def instance(v: Sequence[Any]) -> Instance:
        import numpy as np

        W = np.array([float(a) for a in v[: m * n]]).reshape(m, n)
        sigma = [snapped(float(s), 10**6) for s in np.linalg.svd(W, compute_uv=False)]
        return Instance(
            (m, n), sigma, [fmpq(1, 2)] * skew_size(m), [fmpq(1, 3)] * skew_size(n), k, v[m * n], v[m * n + 1]
        )

    def objective(v: torch.Tensor) -> tuple[Any, Any]:
        import torch

        sigma = torch.linalg.svdvals(v[:, : m * n].reshape(-1, m, n))
        return _claimed(v, sigma, k, m * n, broken)

    return Search(f"entries, {m} x {n}, k = {k}", m * n + 2, objective, instance, ("mean", "kth"))


def searches(broken: Broken, size: int = 0) -> list[Search]:
    return [
        _over_spectra(5 + size, 2, broken),
        _over_spectra(4 + size, 4, broken),
        _over_entries(3, 4 + size, 2, broken),
    ]


def queries(broken: Broken) -> list[Query]:
    def build() -> tuple[Sequence[Any], Any, Any]:
        import z3

        b, c, d, epsilon, beta = z3.Reals("b c d epsilon beta")  # σ = (1, b, c, d): the claim is scale-invariant
        l1, fro2 = 1 + b + c + d, 1 + b * b + c * c + d * d
        hypotheses = [b <= 1, c <= b, d <= c, d >= 0, epsilon >= 0, epsilon < 1, beta >= 0, beta < 1]
        too_large = epsilon * l1 == c + d + (1 + b) / 4
        hypotheses.append(too_large if broken == "epsilon too large" else epsilon * l1 <= c + d)
        hypotheses.append(beta == 0 if broken == "beta dropped" else (1 - beta) * 2 <= 1 + b)
        size = z3.Real("size")  # r, or √r = 2 where r^(1/4) is squared
        hypotheses += [size == 2] if broken == "r^(1/4) for sqrt(r)" else [size == 4]
        return hypotheses, 4 * (1 - beta) * (1 - beta), (1 - epsilon) * (1 - epsilon) * size * fro2

    return [Query("r = 4, k = 2, one-sided", build)]


LEMMA = Lemma(
    name="theorem31_spectral",
    statement="‖W‖_2 <= (1−ε)/(1−β) · √r/k · ‖W‖_F",
    source="Barsbey et al., ICLR 2026, Theorem 3.1",
    draw=draw,
    evaluate=evaluate,
    searches=searches,
    queries=queries,
    witnesses=(
        Witness(
            "flat spectrum",
            lambda: Instance((3, 4), [fmpq(2)] * 3, [fmpq(1)] * 3, [fmpq(1, 2)] * 6, 2, fmpq(0), fmpq(0)),
            "mean",
        ),
    ),
    broken={
        "beta dropped": Variant("β set to 0"),
        "epsilon too large": Variant("ε above the exact tail ratio (membership only)"),
        "r^(1/4) for sqrt(r)": Variant("√r replaced by r^(1/4)"),
    },
    weight=0.7,
)
