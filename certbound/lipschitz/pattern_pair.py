"""``max_D ‖B D A‖`` over diagonal D with entries in [0, 1]: exact, or an upper bound.

``D ↦ ‖B D A‖`` is convex, so its maximum over [0, 1] is at a 0/1 vertex. Shapes: A is (h, n), B is (p, h).

* :func:`exact_inf`, :func:`exact_2`: all 2^h patterns, with pruning that loses nothing;
* :func:`decoupled_inf`: ``max_i Σ_j max(Σ_m [b_im a_mj]_+, Σ_m [b_im a_mj]_−)``, an upper bound;
* :func:`closed_form_2`: the closed-form point of the one-hidden-layer SDP, an upper bound.

Source: certbound theory, section 3.
"""

from __future__ import annotations

import math

import numpy as np

from certbound.arrays import F64
from certbound.lipschitz.recursion import forward_solve

_LOW_BITS = 10  # patterns are split into 2^10 low halves, held as a table, and the rest


def active_hidden(B: F64, A: F64) -> tuple[F64, F64]:
    """Drop the hidden coordinates that no pattern can use: a zero column of B or a zero row of A."""
    keep = np.any(B != 0, axis=0) & np.any(A != 0, axis=1)
    return B[:, keep], A[keep]


def balanced(A: F64, B: F64) -> tuple[F64, F64, int]:
    """``(A', B', e)`` with ``B D A = 2^e B' D A'`` for every diagonal D, entries of about unit size at most.

    Row m of A is divided by a power of two and column m of B multiplied by it, so that a path through a tiny and a
    huge weight neither under- nor overflows. Exact but for entries 2^1000 below the largest path.

    >>> A, B, e = balanced(np.array([[2.0**-600], [2.0**600]]), np.array([[2.0**600, 2.0**-600]]))
    >>> A.tolist(), B.tolist(), e
    ([[0.5], [0.5]], [[0.5, 0.5]], 2)
    """
    rows = np.frexp(np.abs(A).max(axis=1))[1]
    columns = np.where(np.any(B != 0, axis=0), rows + np.frexp(np.abs(B).max(axis=0))[1], -(2**20))
    exponent = int(columns.max())
    return np.ldexp(A, -rows[:, None]), np.ldexp(B, rows - exponent), exponent


def ldexp_up(value: float, exponent: int) -> float:
    """``value · 2^exponent``, rounded up where it under- or overflows.

    >>> ldexp_up(1.0, -2000) > 0, ldexp_up(1.0, 2000)
    (True, inf)
    """
    try:
        scaled = math.ldexp(value, exponent)
    except OverflowError:
        return math.inf
    return math.nextafter(scaled, math.inf) if 0 < value and scaled < 2.0**-1020 else scaled


def _patterns(bits: int) -> F64:
    """All 0/1 rows of length ``bits``."""
    return ((np.arange(2**bits)[:, None] >> np.arange(bits)) & 1).astype(np.float64)


def decoupled_rows(B: F64, A: F64) -> F64:
    """The decoupled bound of each output row: shape (p,)."""
    up = np.maximum(B, 0) @ np.maximum(A, 0) + np.maximum(-B, 0) @ np.maximum(-A, 0)
    down = np.maximum(B, 0) @ np.maximum(-A, 0) + np.maximum(-B, 0) @ np.maximum(A, 0)
    rows: F64 = np.maximum(up, down).sum(axis=1)
    return rows


def decoupled_inf(B: F64, A: F64) -> float:
    """Upper bound of ``max_D ‖B D A‖_∞``: every entry of the product picks its own D.

    >>> decoupled_inf(np.array([[1.0, 1.0]]), np.array([[1.0, 1.0], [-1.0, 1.0]]))
    3.0
    """
    return float(decoupled_rows(B, A).max(initial=0.0))


def exact_inf(B: F64, A: F64) -> float:
    """``max_D ‖B D A‖_∞`` by enumeration; output rows do not share their pattern's cost, so each has its own.

    >>> exact_inf(np.array([[1.0, 1.0]]), np.array([[1.0, 1.0], [-1.0, 1.0]]))
    2.0
    """
    B, A = active_hidden(B, A)
    best = 0.0
    ceilings = decoupled_rows(B, A)
    for i in np.argsort(-ceilings):
        if ceilings[i] <= best:
            break  # no later row can beat what was found
        best = max(best, _exact_row(B[i, :, None] * A, best))
    return best


def _exact_row(G: F64, floor: float) -> float:
    """``max_d ‖dᵀ G‖_1`` over 0/1 vectors, or ``floor`` if that is larger."""
    low = min(G.shape[0], _LOW_BITS)
    table = _patterns(low) @ G[:low]
    offsets = _offsets(G[low:])
    # what the low half can still add, entry by entry: prunes high halves without loss
    plus, minus = np.maximum(G[:low], 0).sum(axis=0), np.maximum(-G[:low], 0).sum(axis=0)
    ceilings = np.empty(len(offsets))
    for start in range(0, len(offsets), 4096):  # a block at a time: (2^10, n) temporaries, not 2^h
        part = offsets[start : start + 4096]
        ceilings[start : start + 4096] = np.maximum(part + plus, minus - part).sum(axis=1)
    best = floor
    for j in np.argsort(-ceilings):
        if ceilings[j] <= best:
            break
        best = max(best, float(np.abs(table + offsets[j]).sum(axis=1).max()))
    return best


def _offsets(G: F64) -> F64:
    """``dᵀ G`` for every 0/1 vector d."""
    return _patterns(G.shape[0]) @ G


def exact_2(B: F64, A: F64) -> float:
    """``max_D ‖B D A‖_2`` by enumeration.

    B and A are first replaced by their triangular factors (the norm is invariant); a pattern whose
    Schatten-16 norm, an upper bound of its 2-norm, is below the best found needs no SVD.

    >>> round(exact_2(np.array([[1.0, 1.0]]), np.array([[2.0, 1, 0, -1], [-2, 0, -1, -1]])) ** 2, 9)
    6.0
    """
    B, A = active_hidden(B, A)
    h = A.shape[0]
    if h == 0:
        return 0.0
    left = triangular_factor(B) if B.shape[0] > h else B
    right = triangular_factor(A.T).T if A.shape[1] > h else A
    if left.shape[0] > right.shape[1]:  # the Gram matrix below takes the smaller side
        left, right = right.T, left.T
    best = float(np.linalg.norm(left @ right, 2))
    for start in range(0, 2**h, 4096):
        index = np.arange(start, min(start + 4096, 2**h))
        d = ((index[:, None] >> np.arange(h)) & 1).astype(np.float64)
        products = (left * d[:, None, :]) @ right
        gram = products @ products.transpose(0, 2, 1)
        traces = np.trace(gram, axis1=1, axis2=2)
        scale = np.where(traces > 0, traces, 1.0)
        g = gram / scale[:, None, None]
        for _ in range(3):
            g = g @ g
        # g = (M Mᵀ / s)^8, so s · (tr g)^(1/8) >= σ_1²; the margin is for rounding in the powers
        ceiling = np.sqrt(scale * np.trace(g, axis1=1, axis2=2) ** 0.125) * (1 + 1e-9)
        candidates = products[(ceiling > best) & (traces > 0)]
        if len(candidates):
            best = max(best, float(np.linalg.norm(candidates, 2, axis=(1, 2)).max()))
    return best


def closed_form_2(B: F64, A: F64) -> float:
    """Upper bound of ``max_D ‖B D A‖_2`` from one feasible point of the one-hidden-layer SDP.

    With ``λ = ‖A‖_2²``, ``T = I/λ``: ``L² <= λ · λ_max(B (2I − A Aᵀ/λ)^{-1} Bᵀ)``, between ``‖B‖²‖A‖²/2``
    and ``‖B‖²‖A‖²``.

    >>> round(closed_form_2(np.array([[1.0]]), np.array([[3.0]])), 9)
    3.0
    """
    lam = float(np.linalg.norm(A, 2)) ** 2
    if lam == 0.0:
        return 0.0
    Y = 2.0 * np.eye(A.shape[0]) - (A @ A.T) / lam
    # ‖B Y^{-1/2}‖² through the Cholesky factor Y = R Rᵀ: B Y^{-1} Bᵀ = (R^{-1}Bᵀ)ᵀ(R^{-1}Bᵀ)
    half = forward_solve(np.linalg.cholesky(Y), B.T)
    return math.sqrt(lam) * float(np.linalg.norm(half, 2))


def triangular_factor(W: F64) -> F64:
    """R of ``W = Q R``: the same singular values in a matrix of min(rows, columns) rows."""
    return np.asarray(np.linalg.qr(W, mode="r"), dtype=np.float64)


def fits(hidden: int, max_patterns: int) -> bool:
    """True if 2^hidden patterns are within the limit."""
    return hidden <= max(max_patterns, 1).bit_length() - 1


def max_pattern_norm(B: F64, A: F64, norm: float, max_patterns: int) -> tuple[float, bool]:
    """``max_D ‖B D A‖`` and whether it is exact; an upper bound where 2^h exceeds ``max_patterns``."""
    B, A = active_hidden(B, A)
    if A.shape[0] == 0:
        return 0.0, True
    A, B, exponent = balanced(A, B)
    # power-of-two scaling is exact and keeps the squares inside finite
    exact = fits(A.shape[0], max_patterns)
    if math.isinf(norm):
        value = exact_inf(B, A) if exact else decoupled_inf(B, A)
    else:
        value = exact_2(B, A) if exact else closed_form_2(B, A)
    return ldexp_up(value, exponent), exact
