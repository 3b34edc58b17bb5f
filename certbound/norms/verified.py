"""Enclosures of the norms of one dense matrix: every rounding counted, LAPACK not trusted.

``‖W‖_∞``, ``‖W‖_1``, ``‖W‖_F``: sums rounded outward. ``‖W‖_2`` from above: ``s² I − W Wᵀ ⪰ 0`` is proved for an s
slightly above the computed norm; from below: ``‖W v‖/‖v‖`` for a computed v. W is first divided by a power of two,
which is exact but for entries 2^1000 below the largest; those count as an absolute error.

Source: certbound theory, section 6.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from certbound.arrays import F64, power_of_two_scale
from certbound.norms.dense import rescale
from certbound.rounding import (
    TINY,
    U,
    check_arithmetic,
    default_shift,
    down,
    enclose_norm,
    enclose_sum,
    gamma,
    positive_definite,
    quick_norm,
    sqrt_up,
    up,
)
from certbound.types import Sense

Enclosure = tuple[float, float]
"""``(low, high)`` with low <= the exact value <= high; high is ∞ where it leaves float64."""

_SMALL = 64  # up to here LAPACK's whole spectrum costs less than choosing one eigenvalue


@dataclass(frozen=True, eq=False)
class Scaled:
    """``W = scale (matrix + Δ)`` with entries of ``matrix`` below 2 and ``‖Δ‖_F <= lost``."""

    matrix: F64
    scale: float
    lost: float

    @classmethod
    def of(cls, W: F64) -> Scaled:
        """Divide by the power of two of the largest entry."""
        scale = power_of_two_scale(W)
        matrix = W / scale
        with np.errstate(over="ignore", under="ignore"):
            exact = bool(np.all(matrix * scale == W))
        return cls(matrix, scale, 0.0 if exact else up(up(math.sqrt(W.size)) * TINY))

    def back(self, low: float, high: float) -> Enclosure:
        """An enclosure in units of ``scale``, widened by what scaling lost, in the units of W."""
        if self.lost:
            low, high = max(0.0, down(low - self.lost)), up(high + self.lost)
        return rescale(low, self.scale, Sense.LOWER), rescale(high, self.scale, Sense.UPPER)


def enclose_inf_norm(W: F64, *, exact: bool = False) -> Enclosure:
    """``‖W‖_∞ = max_i Σ_j |w_ij|``: neighbouring floats, but for rows of more than 65,536 entries (unless ``exact``)
    and ties by the hundred.

    >>> enclose_inf_norm(np.array([[1.0, -2.0], [0.5, 0.0]]))
    (3.0, 3.0)
    """
    check_arithmetic()
    s = Scaled.of(W)
    sizes = np.abs(s.matrix)
    sums = sizes.sum(axis=1)
    g = 2.0 * gamma(W.shape[1] + 4)
    # only rows that can be the largest are summed exactly
    rows = np.flatnonzero(sums * (1.0 + g) >= sums.max() * (1.0 - g))
    summed = rows if exact else rows[:256]
    ends = [enclose_sum(sizes[i], exact=exact) for i in summed]
    low, high = max(e[0] for e in ends), max(e[1] for e in ends)
    if len(rows) > len(summed):  # ties by the hundred: the a-priori factor does
        high = max(high, up(float(sums.max()) * (1.0 + g)))
    return s.back(low, high)


def enclose_one_norm(W: F64, *, exact: bool = False) -> Enclosure:
    """``‖W‖_1 = max_j Σ_i |w_ij|``.

    >>> enclose_one_norm(np.array([[1.0, -2.0], [0.5, 0.0]]))
    (2.0, 2.0)
    """
    return enclose_inf_norm(np.ascontiguousarray(W.T), exact=exact)


def enclose_frobenius_norm(W: F64) -> Enclosure:
    """``‖W‖_F = sqrt(Σ w_ij²)``.

    >>> enclose_frobenius_norm(np.array([[3.0, 4.0]]))
    (5.0, 5.0)
    """
    check_arithmetic()
    s = Scaled.of(W)
    return s.back(*enclose_norm(s.matrix))


def enclose_spectral_norm(W: F64) -> Enclosure:
    """``‖W‖_2 = σ_1``; relative width about ``n² u``: 1e-14 at 10 x 10, 6e-10 at 2000 x 2000.

    >>> low, high = enclose_spectral_norm(np.array([[2.0, 1.0], [1.0, 2.0]]))
    >>> low <= 3.0 <= high, high - low < 1e-13
    (True, True)
    """
    check_arithmetic()
    s = Scaled.of(W)
    exact = monomial(s.matrix)
    if exact is not None:
        return s.back(*exact)
    square, v = _top(s.matrix)
    return s.back(spectral_lower(s.matrix, v), spectral_upper(s.matrix, square))


def spectral_norm_above(W: F64) -> float:
    """The upper end of :func:`enclose_spectral_norm`.

    >>> 3.0 <= spectral_norm_above(np.array([[2.0, 1.0], [1.0, 2.0]])) < 3.0 + 1e-13
    True
    """
    check_arithmetic()
    s = Scaled.of(W)
    exact = monomial(s.matrix)
    return s.back(0.0, spectral_upper(s.matrix, _top(s.matrix)[0]) if exact is None else exact[1])[1]


def spectral_norm_below(W: F64) -> tuple[float, F64 | None]:
    """The lower end of :func:`enclose_spectral_norm`, and the vector that proves it (None where none is needed).

    >>> 3.0 - 1e-13 < spectral_norm_below(np.array([[2.0, 1.0], [1.0, 2.0]]))[0] <= 3.0
    True
    """
    check_arithmetic()
    s = Scaled.of(W)
    exact = monomial(s.matrix)
    if exact is not None:
        return s.back(exact[0], exact[1])[0], None
    v = _top(s.matrix)[1]
    low = spectral_lower(s.matrix, v)
    return s.back(low, max(low, 1.0))[0], v


def enclose_induced_norm(W: F64, norm: float) -> Enclosure:
    """The operator norm from norm to norm, norm in {2, ∞}."""
    return enclose_inf_norm(W) if math.isinf(norm) else enclose_spectral_norm(W)


def enclose_dual_norm(row: F64, norm: float) -> Enclosure:
    """``‖c‖_1`` (norm = ∞) or ``‖c‖_2`` (norm = 2) of a vector: its norm as a map from ``‖·‖_p`` to R.

    >>> enclose_dual_norm(np.array([3.0, -4.0]), math.inf)
    (7.0, 7.0)
    """
    W = row.reshape(1, -1)
    return enclose_inf_norm(W) if math.isinf(norm) else enclose_frobenius_norm(W)


# ---------------------------------------------------------------- the spectral norm, in scaled units


def monomial(A: F64) -> Enclosure | None:
    """The exact norm of one row, one column, or at most one entry a row and column; None for other matrices."""
    if min(A.shape) == 1:
        return enclose_norm(A)
    filled = A != 0
    if bool(np.all(filled.sum(axis=0) <= 1)) and bool(np.all(filled.sum(axis=1) <= 1)):
        top = float(np.max(np.abs(A)))
        return top, top
    return None


def _smaller_side(A: F64) -> F64:
    return A if A.shape[0] <= A.shape[1] else np.ascontiguousarray(A.T)


def _gram(A: F64) -> F64:
    """``A Aᵀ``, exactly symmetric."""
    gram = A @ A.T
    return gram if np.array_equal(gram, gram.T) else np.tril(gram) + np.tril(gram, -1).T


def _top(A: F64) -> tuple[float, F64]:
    """``(λ, v)``: about ``σ_1²`` and a unit vector with ``‖A v‖`` about ``σ_1``. Nothing here is taken on trust."""
    side = _smaller_side(A)
    gram = _gram(side)
    r = len(gram)
    if r <= _SMALL:
        values, vectors = np.linalg.eigh(gram)
        value, u = float(values[-1]), vectors[:, -1]
    else:
        # imported here: certbound and its numerical checks do without scipy
        from scipy.linalg import eigh

        values, vectors = eigh(gram, subset_by_index=[r - 1, r - 1])
        value, u = float(values[0]), vectors[:, 0]
    v = side.T @ u if side.shape == A.shape and A.shape[0] <= A.shape[1] else u
    size = float(np.linalg.norm(v))
    if not (math.isfinite(value) and math.isfinite(size) and size > 0.0):
        return math.inf, np.ones(A.shape[1])
    return value, v / size


def spectral_lower(A: F64, v: F64, times: float = 2.0) -> float:
    """A lower bound of ``‖A‖_2``: ``‖A v‖/‖v‖``, or the largest row or column norm if that is more. Entries below 2.

    ``times`` the rounding error is taken off. Once is enough for the proof; bounds are published with twice, so that
    another machine's rounding does not refuse them.
    """
    best = max(enclose_norm(A[int(np.argmax(np.linalg.norm(A, axis=1)))])[0],
               enclose_norm(A[:, int(np.argmax(np.linalg.norm(A, axis=0)))])[0])  # fmt: skip
    if not bool(np.all(np.abs(v) <= 2.0)):  # so that NaN fails
        return best
    image = quick_norm(A @ v)[0]
    # entrywise error γ_n (|A||v|)_i; its norm, itself computed to a relative γ
    n = A.shape[1]
    error = up(up(gamma(2 * n + 8) * quick_norm(np.abs(A) @ np.abs(v))[1] * (1 + 4 * U)) + 8 * n * len(A) * TINY)
    length = quick_norm(v)[1]
    return max(best, down(max(0.0, down(image - times * error)) / length)) if length > 0.0 else best


def easy_upper(A: F64) -> float:
    """``min(‖A‖_F, √(‖A‖_1 ‖A‖_∞))``, rounded up: an upper bound of ``‖A‖_2`` without a proof by Cholesky.

    >>> easy_upper(np.ones((2, 2))) < 2.0 + 1e-12
    True
    """
    rows, columns = float(np.abs(A).sum(axis=1).max()), float(np.abs(A).sum(axis=0).max())
    g = gamma(2 * max(A.shape) + 8)
    return min(quick_norm(A)[1], sqrt_up(up(up(rows * (1 + g)) * up(columns * (1 + g)))))


def gram_error(A: F64) -> float:
    """Bound of ``‖fl(A Aᵀ) − A Aᵀ‖_2``: ``γ_n ‖A‖_F²`` and underflow, for entries below 2."""
    squares = quick_norm(A)[1]
    return up(up(gamma(A.shape[1]) * up(squares * squares)) + 4.0 * A.size * max(A.shape) * TINY)


def proves_upper(A: F64, s: float) -> bool:
    """True proves ``‖A‖_2 <= s``, by ``s² I − A Aᵀ ⪰ 0`` on the smaller side. Entries below 2.

    >>> A = np.array([[2.0, 1.0], [1.0, 2.0]])
    >>> proves_upper(A / 2, 1.5001), proves_upper(A / 2, 1.4999)
    (True, False)
    """
    if not 0.0 < s < 2.0**400:
        return s == 0.0 and not A.any()
    side = _smaller_side(A)
    square = down(s * s)
    matrix = -_gram(side)
    diagonal = square + np.diagonal(matrix)
    matrix[np.diag_indices_from(matrix)] = diagonal
    # the sums on the diagonal are rounded once more
    return positive_definite(matrix, up(gram_error(side) + up(2 * U * float(np.max(np.abs(diagonal))))))


def spectral_upper(A: F64, square: float) -> float:
    """An upper bound of ``‖A‖_2``, for entries below 2; ``square``: about ``σ_1²``, on no particular side.

    The least of what Cholesky proves, ``‖A‖_F`` and ``√(‖A‖_1 ‖A‖_∞)``.
    """
    easy, frobenius = easy_upper(A), quick_norm(A)[1]
    side = _smaller_side(A)
    r, trace = len(side), frobenius * frobenius
    # what the proof will take off the diagonal, as in rounding.default_shift, a little more, and the error of `square`
    needed = default_shift([np.full(r, max(0.0, square - trace / r))], gram_error(side))
    margin = 1.05 * needed + 4 * r * U * square
    for _ in range(12):
        s = sqrt_up(up(square + margin))
        if not s < easy:
            break
        if proves_upper(A, s):
            return s
        margin *= 4.0
    return up(easy * (1.0 + 4 * U))  # a few units of air for another machine's sums


__all__ = [
    "Enclosure",
    "Scaled",
    "easy_upper",
    "enclose_dual_norm",
    "enclose_frobenius_norm",
    "enclose_induced_norm",
    "enclose_inf_norm",
    "enclose_one_norm",
    "enclose_spectral_norm",
    "monomial",
    "proves_upper",
    "spectral_norm_above",
    "spectral_norm_below",
    "spectral_lower",
    "spectral_upper",
]
