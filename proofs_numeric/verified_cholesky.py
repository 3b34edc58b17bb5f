"""Verified Cholesky: a floating-point factorisation that completes on A − cI proves A ⪰ 0.

Statement. A finite, exactly symmetric, ``a_ii >= 0``, ``3(n+1)u < 1``; ``c >= γ_{n+1}/(1−γ_{n+1}) tr A +
6n(n + max a_ii) 2^{-1074}``, taken off the diagonal rounding down: if floating-point Cholesky completes with every
pivot finite and > 0, then A ⪰ 0. And :func:`certbound.rounding.positive_definite`, which multiplies its factor out
again: True means that every symmetric matrix within ``error`` of A is ⪰ 0, whatever shift it is told to use.

Proof. The computed factor satisfies ``R̂ᵀR̂ = A − cI + Δ`` with ``|Δ_ij| <= γ_{n+1} ‖r̂_i‖‖r̂_j‖``, and
``‖r̂_i‖² <= a_ii/(1 − γ_{n+1})``; so ``A ⪰ cI − ‖Δ‖ I ⪰ 0``. With c = 0 the factorisation completes on matrices that
are indefinite by less than the rounding.

Source: Rump, BIT 46 (2006); certbound theory, section 6; certbound/rounding.py.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from flint import arb, ctx, fmpq, fmpq_mat

from certbound.arrays import F64
from certbound.rounding import positive_definite
from proofs_numeric.harness.exact import identity, is_psd, rational
from proofs_numeric.harness.lemma import Broken, Comparison, Counterexample, Lemma, Search, Variant, Witness

if TYPE_CHECKING:
    import torch

ZERO = "Cholesky shift zero"
U = Fraction(1, 2**53)


@dataclass(frozen=True, eq=False)
class Instance:
    """A symmetric matrix of floats, and shifts to tell the library's function."""

    A: F64
    shifts: tuple[float | None, ...] = (None, 0.0)
    error: float = 0.0


def theory_shift(A: F64) -> float:
    """The least c of the statement, rounded up."""
    n = len(A)
    g = (n + 1) * U / (1 - (n + 1) * U)
    diagonal = [Fraction(float(v)) for v in np.diagonal(A)]
    c = g / (1 - g) * sum(diagonal) + 6 * n * (n + max(diagonal)) * Fraction(1, 2**1074)
    near = float(c)
    return near if Fraction(near) >= c else math.nextafter(near, math.inf)


def completes(A: F64, c: float) -> bool:
    """Floating-point Cholesky of A − cI (the diagonal rounded down) completes with finite positive pivots."""
    shifted = A.copy()
    for i, v in enumerate(np.diagonal(A)):
        moved = float(v) - c
        too_large = Fraction(moved) > Fraction(float(v)) - Fraction(c)
        shifted[i, i] = math.nextafter(moved, -math.inf) if too_large else moved
    try:
        factor = np.linalg.cholesky(shifted)
    except np.linalg.LinAlgError:
        return False
    return bool(np.all(np.isfinite(factor)) and np.all(np.diagonal(factor) > 0))


def _decided(label: str, A: F64, error: float = 0.0) -> Comparison:
    """``tr A − λ_min <= tr A − error``, decided exactly: λ_min(A) >= error."""
    n = len(A)
    exact = fmpq_mat([[rational(float(v)) for v in row] for row in A])
    trace = sum((exact[i, i] for i in range(n)), fmpq(0))
    holds = is_psd(exact - rational(error) * identity(n))
    before, ctx.prec = ctx.prec, 400
    try:
        roots = exact.charpoly().numer().complex_roots()
        least = min((r.real for r, _ in roots), key=lambda r: float(r.mid()))
        gap = float((arb(rational(error)) - least) / arb(trace)) if trace != 0 else 0.0
    finally:
        ctx.prec = before
    return Comparison(label, 1.0 + gap, 1.0, -1 if holds else 1, 1.0 + gap if holds else math.inf, excess=gap)


def draw(rng: random.Random, size: int) -> Instance:
    n = rng.randint(1, 4 + size)
    kind = rng.randrange(4)
    generator = np.random.default_rng(rng.getrandbits(32))
    rank = max(1, n - 1)
    V = generator.standard_normal((n, rank)) if kind else generator.integers(-3, 4, (n, rank)).astype(np.float64)
    A = V @ V.T
    A = np.asarray((A + A.T) / 2, dtype=np.float64)
    trace = float(np.trace(A))
    # from indefinite by rounding (the Gram matrix is singular) to clearly definite, dense where proofs begin
    lift = rng.choice((0.0, 0.0, rng.uniform(-4, 4), rng.uniform(0, 12) * n, rng.uniform(0, 1e6))) * 2.0**-53 * trace
    A[np.diag_indices(n)] += lift
    A *= 2.0 ** rng.choice((0, 0, -40, 200))
    trace = float(np.trace(A))
    shifts = (None, 0.0, rng.uniform(0, 30) * n * 2.0**-53 * trace, 2.0**-1074, -(2.0**-50) * trace)
    return Instance(A, shifts, rng.choice((0.0, 0.0, rng.uniform(0, 20) * 2.0**-53 * trace)))


def evaluate(x: Instance, broken: Broken) -> list[Comparison]:
    result = []
    c = 0.0 if broken == ZERO else theory_shift(x.A)
    if completes(x.A, c):
        result.append(_decided("Cholesky of A − cI", x.A))
    if broken is None:
        for shift in x.shifts:
            if positive_definite(x.A, shift=shift):
                result.append(_decided("positive_definite", x.A))
            if x.error and positive_definite(x.A, x.error, shift=shift):
                result.append(_decided("positive_definite, error", x.A, x.error))
    return result


def _search(n: int, broken: Broken) -> Search:
    """A singular Gram matrix lifted by e units of u·tr: the ascent lowers e as far as the factorisation completes."""
    rank = n - 1

    def build(v: Any, xp: Any) -> Any:
        V = v[..., : n * rank].reshape((-1, n, rank))
        A = V @ xp.swapaxes(V, 1, 2)
        A = (A + xp.swapaxes(A, 1, 2)) / 2
        trace = xp.diagonal(A, 0, 1, 2).sum(-1)
        lift = 4 * v[..., -1] * 2.0**-53 * trace
        return A + lift[:, None, None] * xp.eye(n, dtype=xp.float64), trace

    def objective(v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        A, trace = build(v.detach(), torch)
        # a little above what is needed: the exact shift is computed from the exact trace
        c = torch.zeros_like(trace) if broken == ZERO else 1.001 * (n + 1) * 2.0**-53 * trace
        done = torch.linalg.cholesky_ex(A - c[:, None, None] * torch.eye(n, dtype=v.dtype)).info == 0
        # the lift is what pulls λ_min down; a factorisation that stops proves nothing
        one = torch.ones_like(trace)
        return 1 - 4 * v[:, -1] / 1000, torch.where(done, one, 3 * one)

    def instance(v: Sequence[Any]) -> Instance:
        A = build(np.array([[float(u) for u in v]]), np)[0][0]
        return Instance(np.asarray(A), (None, 0.0))

    return Search(f"n = {n}", n * rank + 1, objective, instance, candidates=24)


def searches(broken: Broken, size: int = 0) -> list[Search]:
    return [_search(3, broken), _search(6 + size, broken)]


def _lifted(units: float) -> Instance:
    V = np.array([[3.0, 1.0], [1.0, -2.0], [0.5, 7.0]])
    A = V @ V.T
    A[np.diag_indices(3)] += units * 2.0**-53 * float(np.trace(A))
    return Instance(A)


def _rounded() -> Comparison:
    """[[2, b], [b, k]] with b the first float whose square exceeds 2k: indefinite, and plain Cholesky completes."""
    for k in range(3, 100):  # k = 3 with OpenBLAS; another LAPACK may round otherwise
        b = math.sqrt(2 * k)
        while Fraction(b) ** 2 <= 2 * k:
            b = math.nextafter(b, math.inf)
        A = np.array([[2.0, b], [b, float(k)]])
        if completes(A, 0.0):
            return _decided(f"Cholesky without a shift, k = {k}", A)
    raise AssertionError("no indefinite matrix passed plain Cholesky")


LEMMA = Lemma(
    name="verified_cholesky",
    statement="fl-Cholesky of A − cI completes ⟹ A ⪰ 0; rounding.positive_definite(A, e) ⟹ A ⪰ e I",
    source="Rump, BIT 46 (2006); theory.md section 6",
    draw=draw,
    evaluate=evaluate,
    searches=searches,
    no_smt="a statement about IEEE rounding, not an inequality over the reals",
    witnesses=(
        Witness("λ_min = 12 u tr A", lambda: _lifted(12.0), "Cholesky of A − cI", 1 - 1e-14),
        Witness("λ_min = 60 u tr A", lambda: _lifted(60.0), "positive_definite", 1 - 1e-14),
    ),
    counterexamples=(Counterexample("Cholesky without a shift, 2 x 2", _rounded),),
    broken={ZERO: Variant("c = 0: plain Cholesky read as a proof", ("exact", "ascent"))},
    weight=0.4,
)
