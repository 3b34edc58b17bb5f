"""Outward rounding, a-priori error bounds of sums and products, and proofs of positive definiteness.

The model (GUARANTEES.md): IEEE binary64, rounding to nearest; ``+ − × ÷ √`` of numpy correctly rounded; a BLAS product
is a sum of the n products in any order, with or without fused operations, so
``|fl(AB) − AB| <= γ_n |A||B| + underflow`` with ``γ_n = n u/(1 − n u)``, ``u = 2^-53``. LAPACK is not trusted: what
Cholesky returns is multiplied out again. Underflow inside BLAS is counted as if subnormal numbers were flushed to zero.

Source: Higham, *Accuracy and Stability of Numerical Algorithms*, 2002, ch. 3; Rump, BIT 46 (2006) for the idea of
proving ``A ⪰ 0`` by a shifted Cholesky factorisation; certbound theory, section 6.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import overload

import numpy as np
import numpy.typing as npt

from certbound.arrays import F64, flushes_subnormals
from certbound.errors import NumericalError

U = 2.0**-53
"""Unit roundoff: a rounded result is off by at most U times its size."""

TINY = 2.0**-1020
"""Absolute error of one product by underflow, for factors below 2, flushed subnormals included."""

_PROBES = [1.0, 2.0**-53]  # in a list: the compiler must not compute with them
_EXACT_SIZE = 2**16  # up to here sums are rounded once, above it an a-priori factor does: a float costs 50 ns in fsum


@overload
def up(x: float) -> float: ...
@overload
def up(x: F64) -> F64: ...
def up(x: float | F64) -> float | F64:
    """The next float above: an upper bound of what was rounded to nearest into x. NaN stays NaN.

    >>> up(1.0) == 1 + 2**-52
    True
    """
    return math.nextafter(x, math.inf) if isinstance(x, float) else np.nextafter(x, math.inf)


@overload
def down(x: float) -> float: ...
@overload
def down(x: F64) -> F64: ...
def down(x: float | F64) -> float | F64:
    """The next float below; 0 stays 0, since everything here is a size.

    >>> down(1.0) == 1 - 2**-53, down(0.0)
    (True, 0.0)
    """
    if isinstance(x, float):
        return 0.0 if x == 0.0 else math.nextafter(x, -math.inf)
    return np.where(x == 0.0, 0.0, np.nextafter(x, -math.inf))


def gamma(n: int) -> float:
    """``γ_n = n u/(1 − n u)``, rounded up.

    >>> gamma(1) > 2.0**-53, gamma(0)
    (True, 0.0)
    """
    if n == 0:
        return 0.0
    if n >= 2**52:
        raise NumericalError(f"no error bound for sums of {n} terms: at most 2^52")
    return up(n * U / (1.0 - n * U))  # n·u and 1 − n·u are exact


def check_arithmetic() -> None:
    """Refuse to prove anything on a processor set to another rounding, or to flush subnormal numbers to zero.

    ``torch.set_flush_denormal(True)`` and libraries built with ``-ffast-math`` do the latter.

    >>> check_arithmetic()
    """
    # floats of Python and arrays of numpy are computed by the same unit, under one setting a thread
    one, eps = _PROBES
    nearest = one + eps == one and one + 1.5 * eps == 1.0 + 2.0 * eps * 1.0 and -one - eps == -one
    gradual = not flushes_subnormals()
    if not (nearest and gradual):
        what = "does not round to nearest" if not nearest else "flushes subnormal numbers to zero"
        raise NumericalError(
            f"rigorous bounds need IEEE arithmetic, and this thread {what}: undo torch.set_flush_denormal(True) or the "
            "like, or ask for rigor='numerical'"
        )


# ---------------------------------------------------------------- sums and norms of vectors


def _directed(terms: list[float]) -> tuple[float, float]:
    """``(below, above)``: the exact sum, rounded down and up. math.fsum rounds once; the rest's sign says which way."""
    nearest = math.fsum(terms)
    rest = math.fsum([*terms, -nearest])
    return (math.nextafter(nearest, -math.inf) if rest < 0 else nearest, up(nearest) if rest > 0 else nearest)


def enclose_sum(values: F64, *, exact: bool = False) -> tuple[float, float]:
    """Lower and upper bound of the sum of numbers >= 0; neighbouring floats (or equal) up to 65,536 terms, or any
    number of them if ``exact``.

    >>> enclose_sum(np.array([1.0, 2.0])), enclose_sum(np.array([1.0, 2.0**-60])) == (1.0, 1 + 2**-52)
    ((3.0, 3.0), True)
    """
    if exact or values.size <= _EXACT_SIZE:
        return _directed(values.ravel().tolist())
    total = float(values.sum())
    g = gamma(values.size)
    return max(0.0, down(total * (1.0 - g) * (1.0 - 4 * U))), up(total * (1.0 + g) * (1.0 + 4 * U))


def _split(x: F64) -> tuple[F64, F64]:
    """Veltkamp: x = high + low, each of at most 26 bits, for |x| < 2^990."""
    c = 134217729.0 * x
    high = c - (c - x)
    return high, x - high


def enclose_square_sum(values: F64, *, exact: bool = False) -> tuple[float, float]:
    """Lower and upper bound of ``Σ v²`` for |v| < 2^500; neighbouring floats up to 32,768 terms of ordinary size
    (or any number of them, if ``exact``).

    >>> enclose_square_sum(np.array([3.0, 4.0]))
    (25.0, 25.0)
    """
    v = np.abs(values.ravel())
    if not exact and 2 * v.size > _EXACT_SIZE:
        low, high = enclose_sum(v * v)
        loss = v.size * TINY
        return max(0.0, down(down(low * (1.0 - 2 * U)) - loss)), up(up(high * (1.0 + 2 * U)) + loss)
    normal = v >= 2.0**-480
    w = v[normal]
    square = w * w
    high, low = _split(w)
    error = low * low - ((square - high * high) - 2.0 * (high * low))  # Dekker: square + error = w², exactly
    below, above = _directed([*square.tolist(), *error.tolist()])
    # what is below 2^-480 adds less than 2^-960 each
    rest = float(np.count_nonzero(v[~normal])) * 2.0**-960
    return max(0.0, below), above if rest == 0.0 else up(above + rest)


def sqrt_down(x: float) -> float:
    """The largest float whose square is at most x, for x >= 0."""
    root = math.sqrt(x)
    return math.nextafter(root, 0.0) if math.isfinite(root) and Fraction(root) ** 2 > Fraction(x) else root


def sqrt_up(x: float) -> float:
    """The smallest float whose square is at least x, for x >= 0.

    >>> sqrt_up(4.0), sqrt_up(2.0) ** 2 > 2
    (2.0, True)
    """
    root = math.sqrt(x)
    return up(root) if math.isfinite(root) and Fraction(root) ** 2 < Fraction(x) else root


def enclose_norm(values: F64, *, exact: bool = False) -> tuple[float, float]:
    """Lower and upper bound of the Euclidean (Frobenius) norm, for |v| < 2^500.

    >>> enclose_norm(np.array([3.0, 4.0]))
    (5.0, 5.0)
    """
    low, high = enclose_square_sum(values, exact=exact)
    return sqrt_down(low), sqrt_up(high)


def quick_norm(values: F64) -> tuple[float, float]:
    """As :func:`enclose_norm`, by one BLAS product and an a-priori factor: relative width ``n u``.

    >>> low, high = quick_norm(np.array([3.0, 4.0]))
    >>> low <= 5.0 <= high, high - low < 1e-14
    (True, True)
    """
    v = values.ravel()
    square, g, loss = float(v @ v), gamma(v.size + 4), v.size * TINY
    return sqrt_down(max(0.0, down(square * (1.0 - g)) - loss)), sqrt_up(up(up(square * (1.0 + g)) + loss))


# ---------------------------------------------------------------- intervals of sizes


@dataclass(frozen=True, eq=False)
class Interval:
    """Arrays of numbers >= 0, each known to lie in [low, high]; operations round outward, ``0 · ∞ = 0``.

    ``a − b`` is cut off at 0: every quantity of this library that is written so is a size.

    >>> third = Interval.of(1.0) / Interval.of(3.0)
    >>> one = third * Interval.of(3.0)
    >>> bool(third.low < third.high), bool(one.low <= 1 <= one.high)
    (True, True)
    """

    low: F64
    high: F64

    @classmethod
    def of(cls, low: npt.ArrayLike, high: npt.ArrayLike | None = None) -> Interval:
        """From numbers known exactly, or from two ends."""
        a = np.asarray(low, dtype=np.float64)
        return cls(a, a if high is None else np.asarray(high, dtype=np.float64))

    def __post_init__(self) -> None:
        if not bool(np.all((self.low >= 0.0) & (self.low <= self.high))):  # so that NaN fails
            raise NumericalError("an interval of sizes needs 0 <= low <= high: the input left the range of float64")

    def __add__(self, other: Interval) -> Interval:
        return Interval(_floor(self.low + other.low), up(self.high + other.high))

    def __sub__(self, other: Interval) -> Interval:
        with np.errstate(invalid="ignore"):
            low, high = self.low - other.high, self.high - other.low
        return Interval(_floor(np.where(np.isnan(low), 0.0, low)), np.maximum(up(np.maximum(high, 0.0)), 0.0))

    def __mul__(self, other: Interval) -> Interval:
        return Interval(_floor(_times(self.low, other.low)), _times_up(self.high, other.high))

    def __truediv__(self, other: Interval) -> Interval:
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            low = np.where((other.high > 0) & np.isfinite(other.high), self.low / other.high, 0.0)
            high = np.where(other.low > 0, up(self.high / other.low), math.inf)
        low = np.where(np.isfinite(low), low, np.finfo(float).max)
        return Interval(_floor(low), np.where(self.high == 0, 0.0, high))

    def sqrt(self) -> Interval:
        """Elementwise square root."""
        return Interval(_floor(np.sqrt(self.low)), np.where(self.high == 0, 0.0, up(np.sqrt(self.high))))

    def maximum(self, other: Interval) -> Interval:
        """Elementwise maximum."""
        return Interval(np.maximum(self.low, other.low), np.maximum(self.high, other.high))

    def minimum(self, other: Interval) -> Interval:
        """Elementwise minimum."""
        return Interval(np.minimum(self.low, other.low), np.minimum(self.high, other.high))

    def cumsum(self) -> Interval:
        """Cumulative sums of a vector."""
        g = up(np.array([gamma(i) for i in range(len(self.low))]))
        low = np.cumsum(self.low) * (1.0 - g) * (1.0 - 4 * U)
        return Interval(_floor(low), up(np.cumsum(self.high) * (1.0 + g) * (1.0 + 4 * U)))

    def __getitem__(self, index: slice | int | npt.NDArray[np.int64]) -> Interval:
        return Interval(np.asarray(self.low[index]), np.asarray(self.high[index]))


def _floor(x: F64) -> F64:
    with np.errstate(over="ignore"):
        return np.maximum(down(np.minimum(x, np.finfo(float).max)), 0.0)


def _times(a: F64, b: F64) -> F64:
    with np.errstate(over="ignore", invalid="ignore"):
        return np.where((a == 0) | (b == 0), 0.0, a * b)


def _times_up(a: F64, b: F64) -> F64:
    product = _times(a, b)
    return np.where((a == 0) | (b == 0), 0.0, up(product))


# ---------------------------------------------------------------- matrices


def product_error(A: F64, B: F64) -> float:
    """Bound of ``‖fl(A B) − A B‖_F``: ``γ_n ‖A‖_F ‖B‖_F`` plus underflow. Entries below 2^500.

    >>> 0 < product_error(np.eye(2), np.eye(2)) < 1e-15
    True
    """
    n = A.shape[1]
    a, b = quick_norm(A)[1], quick_norm(B)[1]
    size = max(2.0, float(np.max(np.abs(A), initial=0.0)), float(np.max(np.abs(B), initial=0.0)))
    underflow = up(up(n * TINY * size) * up(math.sqrt(A.shape[0] * B.shape[1])))
    return up(up(gamma(n) * up(a * b)) + underflow)


Block = F64
"""A diagonal block: a matrix, or the vector of a diagonal matrix."""


def _trace(block: Block) -> float:
    return float((block if block.ndim == 1 else np.diagonal(block)).sum())


def default_shift(diagonal: Sequence[Block], error: float = 0.0) -> float:
    """The c that :func:`block_definite` takes off the diagonal, unless told: a little above what it will need.

    ``c = 1.1 γ_{n+16} tr A + 1.001 error``, n the largest inner dimension: the rounding of ``L Lᵀ`` is below
    ``γ_n ‖L‖_F²``, and ``‖L‖_F² ≈ tr A``; what Cholesky itself loses comes from the rest.
    """
    n = _inner(diagonal)
    size = sum(len(b) for b in diagonal)
    return 1.1 * gamma(n + 16) * max(0.0, math.fsum(_trace(b) for b in diagonal)) + 1.001 * error + 4 * size**2 * TINY


def _inner(diagonal: Sequence[Block]) -> int:
    """Terms in the longest sum of ``L Lᵀ``: the rows of two neighbouring blocks."""
    sizes = [len(b) for b in diagonal]
    return max((a + b for a, b in pairwise(sizes)), default=sizes[0])


def block_definite(
    diagonal: Sequence[Block], lower: Sequence[F64], *, error: float = 0.0, shift: float | None = None
) -> bool:
    """True proves that every symmetric matrix within ``error`` (2-norm) of the block tridiagonal A is ⪰ 0.

    ``diagonal[i]``: symmetric block (i, i), or the vector of a diagonal one; ``lower[i]``: block (i + 1, i).
    A shifted factor ``L Lᵀ ≈ A − c I`` is computed and multiplied out: with ``E = A − c I − L Lᵀ``,
    ``A = L Lᵀ + c I + E ⪰ (c − ‖E‖) I``, so ``‖E‖_F + error <= c`` is a proof, however L was found. False proves
    nothing.

    >>> block_definite([np.array([2.0]), np.array([[2.0]])], [np.array([[-1.0]])])
    True
    >>> block_definite([np.array([1.0]), np.array([[1.0]])], [np.array([[1.0]])])  # singular: no proof in floats
    False
    """
    if not _sound(diagonal, lower) or not error >= 0.0:
        return False
    c = default_shift(diagonal, error) if shift is None else shift
    factors = _factor(diagonal, lower, c)
    if factors is None:
        return False
    on, off = factors
    squares = sum_up = 0.0
    for i, (block, L) in enumerate(zip(diagonal, on, strict=True)):
        B = off[i - 1] if i else None
        # fl(a − c) is off by u|a − c|, the second difference by u of itself
        if block.ndim == 1 and B is None:
            moved = block - c
            residual: F64 = moved - L * L
        else:
            moved = np.diagonal(block) - c if block.ndim == 2 else block - c
            full = np.array(block) if block.ndim == 2 else np.diag(block)
            np.fill_diagonal(full, moved)
            gram = np.diag(L * L) if L.ndim == 1 else L @ L.T
            residual = full - (gram if B is None else gram + B @ B.T)
        r = up(quick_norm(residual)[1] * (1.0 + 4 * U))
        r = up(r + up(2 * U * quick_norm(moved)[1]))
        squares = up(squares + up(r * r))
        size_L = quick_norm(L)[1]
        sum_up = up(sum_up + up(size_L * size_L))
    for A, L, B in zip(lower, on[:-1], off, strict=True):
        r = up(quick_norm(A - (B * L if L.ndim == 1 else B @ L.T))[1] * (1.0 + 4 * U))
        squares = up(squares + 2.0 * up(r * r))
        size_B = quick_norm(B)[1]
        sum_up = up(sum_up + up(size_B * size_B))
    size = sum(len(b) for b in diagonal)
    rounding = up(up(gamma(_inner(diagonal) + 4) * sum_up) + up(4.0 * size * size * TINY * max(1.0, sum_up)))
    return up(up(up(math.sqrt(squares)) + rounding) + error) <= c


def _sound(diagonal: Sequence[Block], lower: Sequence[F64]) -> bool:
    """Finite, of sizes that fit, exactly symmetric, below 2^500. LAPACK reads one triangle and completes on NaN."""
    if len(lower) != len(diagonal) - 1:
        return False
    for block in (*diagonal, *lower):
        if block.size == 0 or not bool(np.all(np.abs(block) < 2.0**500)):  # so that NaN fails
            return False
    if any(b.ndim == 2 and (b.shape[0] != b.shape[1] or not np.array_equal(b, b.T)) for b in diagonal):
        return False
    return all(x.shape == (len(diagonal[i + 1]), len(diagonal[i])) for i, x in enumerate(lower))


def _factor(diagonal: Sequence[Block], lower: Sequence[F64], c: float) -> tuple[list[F64], list[F64]] | None:
    """Block Cholesky factor of ``A − c I``: diagonal blocks (a vector for a leading diagonal one), then those below."""
    on: list[F64] = []
    off: list[F64] = []
    for i, block in enumerate(diagonal):
        if block.ndim == 1 and i == 0:
            moved = block - c
            if not bool(np.all(moved > 0.0)):
                return None
            on.append(np.asarray(np.sqrt(moved), dtype=np.float64))
        else:
            schur = np.diag(block) if block.ndim == 1 else np.array(block)
            if i:
                schur = schur - off[-1] @ off[-1].T
            schur[np.diag_indices_from(schur)] -= c
            try:
                on.append(np.asarray(np.linalg.cholesky(schur), dtype=np.float64))
            except np.linalg.LinAlgError:
                return None
        if i < len(lower):
            L = on[-1]
            try:
                below = lower[i] / L if L.ndim == 1 else np.linalg.solve(L, lower[i].T).T
            except np.linalg.LinAlgError:  # a pivot that underflowed
                return None
            off.append(np.asarray(below, dtype=np.float64))
    if not all(bool(np.all(np.isfinite(x))) for x in (*on, *off)):
        return None
    return on, off


def positive_definite(A: F64, error: float = 0.0, *, shift: float | None = None) -> bool:
    """True proves that every symmetric matrix within ``error`` (2-norm) of A is positive semidefinite.

    ``shift``: the c taken off the diagonal before Cholesky; None takes :func:`default_shift`. A poor c gives False,
    never a false True.

    >>> positive_definite(np.array([[2.0, 1.0], [1.0, 2.0]])), positive_definite(np.array([[1.0, 1.0], [1.0, 1.0]]))
    (True, False)
    >>> positive_definite(np.array([[2.0, 1.0], [1.0, 2.0]]), error=1.5)  # an eigenvalue of A is 1
    False
    """
    return block_definite([A], [], error=error, shift=shift)
