"""The trap: membership "τ <= ε" does not prove Theorem 3.1.

Statement. With ε at most the exact tail ratio and β at least the exact dispersion the spectral, the derived neuron
and the sharp form hold. Their right sides fall in ε, so with ε ABOVE the tail ratio, which the definition of
(q, k, ε)-compressibility allows, they may fail: W = I_4, k = 1, ε = 0.9 is a legal membership and "bounds" 1 by 0.4.
For EVERY non-zero W and k some membership ε < 1 fails, since the right side tends to 0 as ε → 1.

Proof. Monotone: ``(1−ε)`` falls, ``t = (ε S/(1−ε))²/(r−k)`` rises in ε.

Source: certbound theory, section 2.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flint import fmpq

from proofs_numeric.harness.exact import Vector, diagonal, draw_fraction, draw_vector, frobenius2, identity
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
from proofs_numeric.sharp_forms import sharp_squared

if TYPE_CHECKING:
    import torch

MEMBERSHIP = "epsilon too large"


@dataclass(frozen=True)
class Instance:
    """The diagonal matrix W = diag(σ), whose rows and singular values are σ; k; slacks of ε and β."""

    sigma: Vector
    k: int
    epsilon_slack: fmpq
    beta_slack: fmpq


def draw(rng: random.Random, size: int) -> Instance:
    r = rng.randint(1, 5 + size)
    return Instance(draw_vector(rng, r), rng.randint(1, r), draw_fraction(rng) * 3, draw_fraction(rng))


def _epsilon(exact: Any, slack: Any, broken: Broken) -> Any:
    return more(exact, slack) if broken == MEMBERSHIP else less(exact, slack)


def evaluate(x: Instance, broken: Broken) -> list[Comparison]:
    p, W = profile(x.sigma, x.k), diagonal(x.sigma)
    r, fro2, norm2 = p.size, frobenius2(W), p.top * p.top
    e = _epsilon(p.epsilon, x.epsilon_slack, broken)
    b = more(p.beta_mean, x.beta_slack)
    result = []
    if b < 1:
        spectral = ((1 - e) / ((1 - b) * x.k)) ** 2 * r * fro2
        result.append(compare("spectral", norm2, spectral, squared=True))
        # the rows of a diagonal matrix are (1, 0, …) scaled: k_r = 1, ε_r = 0, √(m k_r) = √r
        result.append(compare("neuron, derived", norm2, spectral, squared=True))
    if e < 1:
        sharp = fro2 / sharp_squared(x.k, e, b, r, "mean")
        result.append(compare("sharp", norm2, sharp, squared=True))
    if broken is None and b < 1:
        # some membership fails: ε with (1 − ε)² (scale) = norm²/4, if it is at least τ
        scale = r * fro2 / ((1 - b) * x.k) ** 2
        bad = 1 - min(1 - p.epsilon, norm2 / (2 * scale))
        claimed = (1 - bad) ** 2 * scale
        result.append(compare("a failing membership exists", p.epsilon, bad))
        result.append(compare("and fails", claimed, norm2 / 2))
    return result


def _search(r: int, k: int, broken: Broken) -> Search:
    def objective(v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        p = torch_profile(v[:, :r], k)
        e = _epsilon(p.epsilon, v[:, r], broken)
        b = more(p.beta_mean, v[:, r + 1])
        S = (k * (1 - b)).clamp(min=1.0)
        a = (S - 1) ** 2 / max(k - 1, 1) if k > 1 else 0 * S
        t = (e * S / (1 - e)) ** 2 / (r - k)
        claimed = torch.stack([(1 - e) / ((1 - b) * k) * r**0.5 * p.l2, p.l2 / (1 + a + t).sqrt()], 1)
        return p.top[:, None].expand_as(claimed), claimed

    def instance(v: Sequence[Any]) -> Instance:
        return Instance(list(v[:r]), k, v[r], v[r + 1])

    return Search(f"r = {r}, k = {k}", r + 2, objective, instance, ("spectral", "sharp"))


def searches(broken: Broken, size: int = 0) -> list[Search]:
    return [_search(4 + size, 1, broken), _search(5 + 2 * size, 2 + size, broken)]


def queries(broken: Broken) -> list[Query]:
    def build() -> tuple[Sequence[Any], Any, Any]:
        import z3

        b, c, epsilon = z3.Reals("b c epsilon")  # σ = (1, b, c), k = 1, β = 0
        l1, tail = 1 + b + c, b + c
        side = epsilon * l1 >= tail if broken == MEMBERSHIP else epsilon * l1 <= tail
        hypotheses = [0 <= c, c <= b, b <= 1, epsilon >= 0, epsilon < 1, side]
        return hypotheses, z3.RealVal(1), (1 - epsilon) * (1 - epsilon) * 3 * (1 + b * b + c * c)

    return [Query("r = 3, k = 1", build)]


def _identity4(form: str) -> Comparison:
    W, epsilon = identity(4), fmpq(9, 10)
    p = profile([W[i, i] for i in range(4)], 1)
    if p.epsilon > epsilon:
        raise AssertionError("0.9 must be a legal membership")
    if form == "sharp":
        return compare("sharp", fmpq(1), frobenius2(W) / sharp_squared(1, epsilon, fmpq(0), 4, "mean"), squared=True)
    return compare(form, fmpq(1), (1 - epsilon) ** 2 * 4 * frobenius2(W), squared=True)


LEMMA = Lemma(
    name="trap",
    statement="ε <= τ is needed: Theorem 3.1 and the sharp form hold for it, and fail for memberships ε > τ",
    source="theory.md section 2",
    draw=draw,
    evaluate=evaluate,
    searches=searches,
    queries=queries,
    witnesses=(Witness("I_4, exact ε", lambda: Instance([fmpq(1)] * 4, 1, fmpq(0), fmpq(0)), "spectral"),),
    counterexamples=(
        Counterexample("membership ε = 0.9, spectral: W = I_4, k = 1", lambda: _identity4("spectral")),
        Counterexample("membership ε = 0.9, neuron: W = I_4, k = k_r = 1", lambda: _identity4("neuron")),
        Counterexample("membership ε = 0.9, sharp: W = I_4, k = 1", lambda: _identity4("sharp")),
    ),
    broken={MEMBERSHIP: Variant("any ε >= τ accepted (membership)")},
)
