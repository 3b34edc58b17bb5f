"""Enclosures of ALL singular values of one matrix: every rounding counted, LAPACK not trusted.

Let ``U`` (m, r), ``s``, ``V`` (n, r), ``r = min(m, n)``, be whatever a factorisation routine returned for W, and
``E = W − U diag(s) Vᵀ``, ``α >= ‖I − UᵀU‖_2``, ``β >= ‖I − VᵀV‖_2``. With s sorted decreasingly,

``s_i √((1−α)(1−β)) − ‖E‖_2  <=  σ_i(W)  <=  s_i √((1+α)(1+β)) + ‖E‖_2``  (below cut off at 0).

Proof. The squares of the singular values of U are the eigenvalues of ``UᵀU = I − (I − UᵀU)``, so they lie in
``[1 − α, 1 + α]``; likewise for V. For factors with at least as many rows as columns
``σ_r(U) σ_i(S) σ_r(V) <= σ_i(U S Vᵀ) <= σ_1(U) σ_i(S) σ_1(V)`` (Ostrowski's theorem for singular values; if α or β is
1 or more, the left side is replaced by 0). Weyl: ``|σ_i(W) − σ_i(U S Vᵀ)| <= ‖E‖_2``. Frobenius norms bound 2-norms. ∎

Source: Ostrowski 1959; Weyl 1912; Horn & Johnson, *Topics in Matrix Analysis*, theorems 3.3.16 and 4.5.9; Rump,
*Verified bounds for singular values*, BIT 51 (2011), for the use made of them here.
"""

from __future__ import annotations

import math

import numpy as np

from certbound.arrays import F64
from certbound.errors import NumericalError
from certbound.norms.verified import Scaled
from certbound.rounding import TINY, Interval, U, down, enclose_norm, gamma, quick_norm, up


def enclose_singular_values(W: F64) -> tuple[Interval, float]:
    """``(σ, scale)``: all ``min(m, n)`` singular values of ``W / scale``, decreasing; ``scale`` a power of two.

    Exact up to the last digit for one row, one column, and at most one entry a row and column; otherwise every value
    has the same absolute error, about ``n^1.5 u ‖W‖_F`` (observed), so that tiny ones beside a large one have none of
    their digits. W: finite, at least one entry.

    Raises NumericalError if the SVD fails or returns what is not finite.

    >>> sigma, scale = enclose_singular_values(np.array([[0.0, -2.0], [5.0, 0.0], [0.0, 0.0]]))
    >>> (sigma.low * scale).tolist(), (sigma.high * scale).tolist()
    ([5.0, 2.0], [5.0, 2.0])
    >>> sigma, _ = enclose_singular_values(np.array([[1.0, 0.0], [1.0, 1.0]]))  # the golden ratio and its inverse
    >>> bool(sigma.low.prod() <= 1 <= sigma.high.prod()), bool(sigma.low.sum() <= 5**0.5 <= sigma.high.sum())
    (True, True)
    >>> bool(np.all(sigma.high - sigma.low < 1e-14))
    True
    """
    s = Scaled.of(W)
    low, high = _enclose(s.matrix)
    if s.lost:  # Weyl, once more
        low, high = np.maximum(down(low - s.lost), 0.0), up(high + s.lost)
    return Interval(low, high), s.scale


def _enclose(A: F64) -> tuple[F64, F64]:
    """Both ends for a matrix with entries below 2."""
    r = min(A.shape)
    if r == 1:
        low, high = enclose_norm(A)
        return np.array([low]), np.array([high])
    filled = A != 0.0
    if bool(np.all(filled.sum(axis=0) <= 1)) and bool(np.all(filled.sum(axis=1) <= 1)):
        values = -np.sort(-np.abs(A), axis=None)[:r]
        return values, values
    try:
        left, s, right = np.linalg.svd(A, full_matrices=False)
    except np.linalg.LinAlgError as error:
        raise NumericalError(f"the SVD of a {A.shape[0]} x {A.shape[1]} matrix did not converge") from error
    return enclose_from_factors(A, left, s, right)


def enclose_from_factors(A: F64, left: F64, s: F64, right: F64) -> tuple[F64, F64]:
    """Both ends of the singular values of A (entries below 2) from ``A ≈ left diag(s) right``, wherever it came from.

    ``left`` (m, r), ``s`` (r,), ``right`` (r, n). Poor factors give wide enclosures, never wrong ones.

    >>> A = np.diag([1.0, 0.5])
    >>> low, high = enclose_from_factors(A, np.eye(2), np.array([0.5, 1.0]), np.eye(2))  # swapped: off by 1/2
    >>> bool(np.all(low <= [1.0, 0.5]) and np.all(high >= [1.0, 0.5]))
    True
    """
    r = min(A.shape)
    fits = left.shape == (A.shape[0], r) and s.shape == (r,) and right.shape == (r, A.shape[1])
    if not fits or not all(bool(np.all(np.abs(x) < 2.0**400)) for x in (left, s, right)):  # so that NaN fails
        raise NumericalError(f"the SVD of a {A.shape[0]} x {A.shape[1]} matrix returned numbers that are not finite")
    scaled = left * s
    error = distance(A, scaled, right)
    alpha, beta = distance(np.eye(r), left.T, left), distance(np.eye(r), right, right.T)
    shrink = down(math.sqrt(down(max(0.0, down(1.0 - alpha)) * max(0.0, down(1.0 - beta)))))
    grow = up(math.sqrt(up(up(1.0 + alpha) * up(1.0 + beta))))
    ordered = -np.sort(-np.abs(s))  # the sign of s_i may as well be that of a column of `left`
    return np.maximum(down(down(ordered * shrink) - error), 0.0), up(up(ordered * grow) + error)


def distance(target: F64, A: F64, B: F64) -> float:
    """Bound of ``‖target − A B‖_F`` for the exact product, also where the entries of A were rounded once.

    The computed distance and ``γ_{n+2} ‖A‖_F ‖B‖_F`` for rounding, and what underflows.

    >>> t = np.array([[1.0 + 2.0**-30]])  # t² = 1 + 2^-29 + 2^-60, of which the last is lost
    >>> bool(np.array_equal(t @ t, [[1.0 + 2.0**-29]])), 2.0**-60 < distance(t @ t, t, t) < 1e-15
    (True, True)
    """
    n = A.shape[1]
    seen = up(quick_norm(target - A @ B)[1] * (1.0 + 4 * U))
    a, b = quick_norm(A)[1], quick_norm(B)[1]
    size = max(2.0, float(np.max(np.abs(A))), float(np.max(np.abs(B))))
    return up(seen + up(up(gamma(n + 2) * up(a * b)) + up(4.0 * n * target.size * TINY * size)))
