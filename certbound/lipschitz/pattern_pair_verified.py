"""Upper bounds of ``max_D ‖B D A‖_p`` over diagonal D with entries in [0, 1], every rounding enclosed.

A is (h, n), B is (p, h). Hidden coordinates are first balanced by powers of two (exact but for what underflows, which
is counted). Then, with ``S = max_i Σ_m |b_im| ‖a_m‖_1`` and the standard model ``|fl(xᵀy) − xᵀy| <= γ_n |x|ᵀ|y|``:

* p = ∞, decoupled: sums of numbers >= 0, off by a factor of at most ``1 + γ_{h+n+8}``.
* p = ∞, enumerated: each pattern's ``‖d^T diag(b_i) A‖_1`` is computed to within ``γ_{h+n+4} S``: the product b a is
  rounded once, sums of at most h terms, in table and offset, γ_h more, n absolute values are added. What pruning
  compares (ceilings of blocks of patterns, and the decoupled bounds of rows) is off by no more than ``γ_{h+n+8} S``
  either, and is at most the largest number found. So the true maximum is at most that number plus
  ``γ_{2(h+n)+16} S``.
* p = 2, enumerated: B and A are replaced by factors L, R with ``‖BᵀB − LᵀL‖_F <= δ_B``, ``‖AAᵀ − RRᵀ‖_F <= δ_A`` (any
  L and R will do, so no QR is trusted): ``‖B D A‖² <= ‖L D R‖² + δ_A ‖L‖_F² + δ_B ‖A‖_F²``. For every pattern
  ``‖L D R‖`` is bounded by repeated squaring of the Gram matrix: ``‖G‖ <= (‖fl(GGᵀ)‖ + γ_r ‖G‖_F²)^{1/2}``, at the end
  Frobenius; after j squarings that is at most ``r^(2^{-j-2})`` too large. No pattern is left out: pruned ones are those
  whose bound is below the number reported.
* p = 2, multipliers: ``t >= 0`` and ρ with ``[[ρI, −AᵀT, 0], [−TA, 2T, −Bᵀ], [0, −B, I]] ⪰ 0``, proved by a verified
  Cholesky factorisation, give ``‖B D A‖_2² <= ρ``: for ``z = D A x``, ``zᵀT(Ax − z) >= 0``, so
  ``ρ|x|² − |Bz|² >= ρ|x|² − 2zᵀTAx + zᵀ(2T − BᵀB)z >= 0``.

Source: certbound theory, sections 3 and 6; Fazlyab et al., NeurIPS 2019, for the last.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from certbound.arrays import F64, frozen
from certbound.lipschitz.pattern_pair import (
    active_hidden,
    balanced,
    closed_form_2,
    decoupled_inf,
    exact_2,
    exact_inf,
    fits,
    ldexp_up,
    triangular_factor,
)
from certbound.rounding import TINY, U, block_definite, gamma, quick_norm, sqrt_up, up

AIR = 4.0
"""Bounds are published with this many times the error that their proof needs: another machine's sums differ."""

_CHUNK = 4096
_SQUARINGS = 44
_BUMPS = (1e-13, 1e-12, 1e-11, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3)


@dataclass(frozen=True, eq=False)
class PatternProof:
    """What proves ``max_D ‖B D A‖_p <= value``: ``how`` is enumerated, decoupled, multipliers or none.

    ``t``, ``rho``: the multipliers, for the balanced pair. ``how = "none"``: value ∞, to be replaced by a product.
    """

    how: str
    value: float
    t: F64 | None = None
    rho: float = 0.0

    @property
    def exact(self) -> bool:
        """True where all patterns were visited: the value is the maximum, up to rounding."""
        return self.how == "enumerated"


@dataclass(frozen=True, eq=False)
class Balanced:
    """``B D A = 2^exponent (left D right + Δ)`` for every D, ``‖Δ‖_2, ‖Δ‖_∞ <= lost``; entries at most 1."""

    left: F64
    right: F64
    exponent: int
    lost: float

    @classmethod
    def of(cls, B: F64, A: F64) -> Balanced:
        """Balance a pair without dead hidden coordinates, at least one."""
        right, left, exponent = balanced(A, B)
        rows = np.frexp(np.abs(A).max(axis=1))[1]
        with np.errstate(over="ignore", under="ignore"):
            exact = np.array_equal(np.ldexp(right, rows[:, None]), A) and np.array_equal(
                np.ldexp(left, exponent - rows), B
            )
        # an entry is off by at most 2^-1074, an entry of the product by 3 h 2^-1074
        lost = 0.0 if exact else B.shape[0] * A.shape[1] * A.shape[0] * 2.0**-1070
        return cls(left, right, exponent, lost)

    def back(self, value: float) -> float:
        """In the units of the pair, rounded up."""
        return ldexp_up(value if self.lost == 0.0 else up(value + self.lost), self.exponent)

    def claimed(self, value: float) -> float:
        """A number a little below ``value`` in balanced units, whose :meth:`back` is at most ``value``; 0 if none."""
        if not 0.0 < value < math.inf:
            return 0.0
        mantissa, e = math.frexp(math.nextafter(value, 0.0))
        size = math.ldexp(mantissa, max(-900, min(900, e - self.exponent)))
        return max(0.0, size * (1.0 - 8 * U) - 2.0 * self.lost)


def largest_path_sum(B: F64, A: F64) -> float:
    """Upper bound of ``S = max_i Σ_m |b_im| ‖a_m‖_1``, entries at most 1.

    >>> largest_path_sum(np.array([[0.5, -0.5]]), np.array([[1.0, 1.0], [0.5, 0.0]])) >= 1.25
    True
    """
    h, n = A.shape
    sums = np.abs(B) @ np.abs(A).sum(axis=1)
    return up(up(float(sums.max()) * (1.0 + gamma(2 * (h + n) + 16))) + h * n * TINY)


def decoupled_upper(B: F64, A: F64, times: float = 1.0) -> float:
    """:func:`pattern_pair.decoupled_inf`, rounded up. Entries at most 1.

    >>> value = decoupled_upper(np.array([[1.0, 1.0]]), np.array([[1.0], [-1.0]]))
    >>> 1.0 <= value < 1.0 + 1e-14
    True
    """
    h, n = A.shape
    g = gamma(h + n + 8)
    return up(up(decoupled_inf(B, A) * (1.0 + 2.0 * times * g)) + 8 * h * n * TINY)


def enumerated_upper_inf(B: F64, A: F64, times: float = 1.0) -> float:
    """:func:`pattern_pair.exact_inf` plus what its roundings and prunings can hide. Entries at most 1."""
    h, n = A.shape
    error = up(up(times * gamma(2 * (h + n) + 16)) * largest_path_sum(B, A))
    return up(up(exact_inf(B, A) + error) + 8 * h * n * TINY)


def enumerated_upper_2(B: F64, A: F64, floor: float, times: float = 1.0) -> float:
    """A bound of ``max_D ‖B D A‖_2``, at least ``floor`` (about the maximum; below it patterns cost little).

    >>> B, A = np.array([[1.0, 1.0]]), np.array([[1.0], [-1.0]])
    >>> 1.0 <= enumerated_upper_2(B, A, 1.0) < 1.0 + 1e-13, enumerated_upper_2(B, A, 3.0)
    (True, 3.0)
    """
    h = A.shape[0]
    left, gap_b = _factor(B)
    right_t, gap_a = _factor(A.T)
    right = right_t.T
    # ‖B D A‖² <= ‖L D R‖² + extra
    a, b = quick_norm(A)[1], quick_norm(left)[1]
    extra = up(up(gap_a * up(b * b)) + up(gap_b * up(a * a)))
    if left.shape[0] > right.shape[1]:  # the Gram matrix takes the smaller side
        left, right = right.T, left.T
    # fl((L D) R) is off by γ_h |L| D |R|, whatever D
    spread = np.abs(left) @ np.abs(right)
    off = up(up(gamma(h + 1) * up(quick_norm(spread)[1] * (1.0 + 2.0 * gamma(h)))) + h * spread.size * TINY)
    worst = floor
    for start in range(0, 2**h, _CHUNK):
        index = np.arange(start, min(start + _CHUNK, 2**h))
        d = ((index[:, None] >> np.arange(h)) & 1).astype(np.float64)
        products = (left * d[:, None, :]) @ right
        worst = max(worst, _largest(products, off, extra, worst))
    if times == 1.0:
        return worst
    return up(math.sqrt(worst * worst + times * extra) * (1.0 + times * gamma(32 * (h + 4))) + times * off)


def _factor(B: F64) -> tuple[F64, float]:
    """``(L, δ)`` with at most h rows and ``‖BᵀB − LᵀL‖_F <= δ``; L is B itself where it has no more."""
    p, h = B.shape
    if p <= h:
        return B, 0.0
    L = triangular_factor(B)
    if not bool(np.all(np.abs(L) < 2.0**100)):  # so that NaN fails
        return B, 0.0
    seen = up(quick_norm(B.T @ B - L.T @ L)[1] * (1.0 + 4 * U))
    b, small = quick_norm(B)[1], quick_norm(L)[1]
    rounding = up(up(gamma(p) * up(b * b)) + up(gamma(h) * up(small * small)))
    return L, up(up(seen + rounding) + 8 * p * h * h * TINY * max(1.0, small))


def _largest(products: F64, off: float, extra: float, floor: float) -> float:
    """The largest bound of ``√((‖M‖ + off)² + extra)`` over a stack of M; those proved below floor count as it."""
    r, c = products.shape[1:]
    squares = np.square(products).sum(axis=(1, 2))
    frobenius = squares * (1.0 + gamma(r * c + 8)) + r * c * TINY  # ‖M‖_F², rounded up
    worst, alive = floor, _root(frobenius, off, extra) > floor
    M, frobenius = products[alive], frobenius[alive]
    if not len(M):
        return worst
    gram = M @ M.transpose(0, 2, 1)
    errors = [gamma(c + 1) * frobenius + c * r * r * TINY]
    scales: list[F64] = []
    for level in range(_SQUARINGS):
        size = np.square(gram).sum(axis=(1, 2)) * (1.0 + gamma(r * r + 8)) + r * r * TINY  # ‖G‖_F², rounded up
        bound = _root(_unrolled(np.sqrt(size) * (1.0 + 4 * U), errors, scales), off, extra)
        if level == _SQUARINGS - 1:
            return max(worst, float(bound.max()))
        keep = bound > worst
        if not keep.any():
            return worst
        gram, size = gram[keep], size[keep]
        errors, scales = [e[keep] for e in errors], [s[keep] for s in scales]
        # G / 2^k has Frobenius norm in [1/2, 2): exact but for what underflows
        k = np.ldexp(1.0, -np.frexp(np.sqrt(size))[1])
        gram = gram * k[:, None, None]
        scales.append(1.0 / k)
        errors.append(gamma(r + 1) * (size * k * k * (1.0 + 8 * U)) + 4 * r**3 * TINY)
        gram = gram @ gram.transpose(0, 2, 1)  # ‖G Gᵀ‖ = ‖G‖² whether or not rounding kept G symmetric
    return worst


def _unrolled(last: F64, errors: list[F64], scales: list[F64]) -> F64:
    """``‖G_0‖`` from ``‖G_j‖ <= last``: ``‖G_{i−1}‖ <= 2^k (‖G_i‖ + e_i)^{1/2}``, and the first error on top."""
    size = last
    for error, scale in zip(reversed(errors[1:]), reversed(scales), strict=True):
        size = scale * np.sqrt((size + error) * (1.0 + 8 * U)) * (1.0 + 8 * U)
    return (size + errors[0]) * (1.0 + 8 * U)


def _root(square: F64, off: float, extra: float) -> F64:
    """``√((√square + off)² + extra)``, rounded up."""
    size = (np.sqrt(square) * (1.0 + 4 * U) + off) * (1.0 + 4 * U)
    return np.sqrt((size * size + extra) * (1.0 + 8 * U)) * (1.0 + 8 * U)


def multipliers_prove(B: F64, A: F64, t: F64, rho: float) -> bool:
    """True proves the LMI above, hence ``max_D ‖B D A‖_2 <= √ρ``. Entries at most 1.

    >>> B, A = np.array([[1.0]]), np.array([[1.0]])
    >>> multipliers_prove(B, A, np.array([1.0]), 1.0001), multipliers_prove(B, A, np.array([1.0]), 0.9999)
    (True, False)
    """
    p, h = B.shape
    n = A.shape[1]
    if t.shape != (h,) or not bool(np.all((t > 2.0**-900) & (t < 2.0**900))) or not 2.0**-900 < rho < 2.0**900:
        return False
    # a congruence by powers of two brings the diagonal near 1, exactly
    outer = math.ldexp(1.0, -(math.frexp(rho)[1] // 2))
    inner = np.ldexp(1.0, -(np.frexp(t)[1] // 2))
    with np.errstate(over="ignore"):
        below = -(((t * inner)[:, None] * A) * outer)  # one rounding: t · a
        beside = -(B * inner)
    if not (bool(np.all(np.abs(below) < 2.0**400)) and bool(np.all(np.abs(beside) < 2.0**400))):
        return False
    # what underflows in t · a is multiplied by the congruence's factors
    factor = max(1.0, outer) * max(1.0, float(np.max(t * inner))) * max(1.0, float(np.max(inner)))
    error = up(up(2.0 * U * quick_norm(below)[1]) + up((h * n + p * h) * TINY * factor))
    diagonal = [np.full(n, rho * outer * outer), 2.0 * (t * inner * inner), np.ones(p)]
    return block_definite(diagonal, [below, beside], error=error)


def _multipliers(B: F64, A: F64, hints: list[tuple[F64, float]]) -> tuple[F64, float] | None:
    """The least ρ proved with a hint (t, ρ): both are raised by the same factor until the proof goes through."""
    best: tuple[F64, float] | None = None
    for t, rho in hints:
        for bump in _BUMPS:
            raised = rho * (1.0 + bump)
            if best is not None and raised >= best[1]:
                break
            if multipliers_prove(B, A, t * (1.0 + bump), raised):
                # air: the same matrix with a little more of everything, for another machine's rounding
                best = (t * (1.0 + 2.0 * bump), rho * (1.0 + 2.0 * bump))
                if not multipliers_prove(B, A, *best):
                    best = (t * (1.0 + bump), raised)
                break
    return best


def pattern_upper(
    B: F64, A: F64, norm: float, max_patterns: int, hints: list[tuple[F64, float]] | None = None
) -> PatternProof:
    """``max_D ‖B D A‖_p`` from above: enumerated up to ``max_patterns``, else decoupled (∞) or by multipliers (2).

    ``hints``: (t, ρ) for the balanced pair, as :func:`certbound.lipschitz.pair_sdp.pair_multipliers` gives; the closed
    form's are tried as well. An enumeration is not always the smallest after rounding, but it is the maximum.

    >>> pattern_upper(np.array([[1.0, 1.0]]), np.array([[1.0], [-1.0]]), 2.0, 4).how
    'enumerated'
    """
    B, A = active_hidden(B, A)
    if A.shape[0] == 0:
        return PatternProof("enumerated", 0.0)
    pair = Balanced.of(B, A)
    left, right = pair.left, pair.right
    if fits(A.shape[0], max_patterns):
        if math.isinf(norm):
            value = enumerated_upper_inf(left, right, AIR)
        else:
            value = enumerated_upper_2(left, right, exact_2(left, right), AIR)
        return PatternProof("enumerated", pair.back(value))
    if math.isinf(norm):
        return PatternProof("decoupled", pair.back(decoupled_upper(left, right, AIR)))
    found = _multipliers(left, right, [*(hints or []), *_closed_hint(left, right)])
    if found is None:
        return PatternProof("none", math.inf)
    t, rho = found
    return PatternProof("multipliers", pair.back(sqrt_up(rho)), frozen(np.array(t)), rho)


def _closed_hint(B: F64, A: F64) -> list[tuple[F64, float]]:
    """Closed-form points ``T = (ρ/‖S A‖²) S²`` for a few scalings S of the hidden coordinates, least ρ first.

    The closed form depends on S: as balanced here, as :func:`pattern_pair.max_pattern_norm` balances matrices of unit
    norm, and rows of A and columns of B of equal size.
    """
    found: list[tuple[F64, float]] = []
    with np.errstate(all="ignore"):
        rows, columns = np.linalg.norm(A, axis=1), np.linalg.norm(B, axis=0)
        normed = -np.frexp(np.abs(A / np.linalg.norm(A, 2)).max(axis=1))[1]
        for scaling in (np.ones(len(A)), np.ldexp(1.0, normed), np.sqrt(columns / rows), 1.0 / rows):
            if not bool(np.all((scaling > 2.0**-200) & (scaling < 2.0**200))):
                continue
            left, right = B / scaling, scaling[:, None] * A
            try:
                rho, size = closed_form_2(left, right) ** 2, float(np.linalg.norm(right, 2)) ** 2
            except np.linalg.LinAlgError:
                continue
            t = rho / size * scaling**2
            if rho > 0.0 and bool(np.all(np.isfinite(t))):
                found.append((t, rho))
    return sorted(found, key=lambda hint: hint[1])


def pattern_holds(B: F64, A: F64, norm: float, proof: PatternProof) -> bool:
    """Redo the mathematics of a proof, with numpy only: True if its value is a bound.

    >>> B, A = np.array([[1.0, 1.0]]), np.array([[1.0], [-1.0]])
    >>> pattern_holds(B, A, 2.0, PatternProof("enumerated", 1.001))
    True
    >>> pattern_holds(B, A, 2.0, PatternProof("enumerated", 0.999))
    False
    """
    B, A = active_hidden(B, A)
    if A.shape[0] == 0:
        return proof.value >= 0.0
    pair = Balanced.of(B, A)
    left, right = pair.left, pair.right
    if proof.how == "enumerated" and fits(A.shape[0], 2**24):
        if math.isinf(norm):
            return pair.back(enumerated_upper_inf(left, right)) <= proof.value
        return pair.back(enumerated_upper_2(left, right, pair.claimed(proof.value))) <= proof.value
    if proof.how == "decoupled" and math.isinf(norm):
        return pair.back(decoupled_upper(left, right)) <= proof.value
    if proof.how == "multipliers" and not math.isinf(norm) and proof.t is not None:
        # first the proof: it refuses a ρ that has no root
        return multipliers_prove(left, right, proof.t, proof.rho) and pair.back(sqrt_up(proof.rho)) <= proof.value
    return False
