"""A lower bound of the relaxation's optimum from any multipliers: it judges values that claim to be optimal.

LipSDP-neuron minimises ``ρ`` (ℓ2) or ``Σd`` (ℓ∞, one output) over ``M(P, T) ⪰ 0``. Its dual maximises ``tr(H Z_mm Hᵀ)``
over ``Z ⪰ 0`` with ``tr Z_00 <= 1`` (ℓ2) or ``diag Z_00 <= 1`` (ℓ∞), and ``Z_jj <= Σ_k w_jk Z_jk`` for every neuron j
(row ``w_j`` acts on the layer before): Z is the covariance of random inputs and neuron values.

Any ``Z ⪰ 0`` is made feasible by a diagonal congruence: scale the inputs to their constraint, then, layer by layer,
neuron j by ``c_j = Σ_k w_jk c_k Z_jk / Z_jj`` (of either sign), which makes its constraint an equality. So every value
here is at most the optimum, up to the rounding of a few products (numerical, not rigorous). With ``Z = M^{-1}`` at a
centre of the barrier the scales are about 1 and it is as tight as the centre; elsewhere it can be loose, never wrong.

Source: weak duality; the congruence is certbound's own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]


def dual_value(encoder: Sequence[F64], head: F64, Z: F64, norm: float) -> float:
    """Lower bound of the optimum of L² from any ``Z ⪰ 0`` over (inputs, neurons); 0 where it says nothing.

    >>> w, h = [np.array([[1.0], [-1.0]])], np.array([[1.0, 1.0]])  # |x|
    >>> Z = np.array([[1.0, 0.5, -0.5], [0.5, 0.5, 0.0], [-0.5, 0.0, 0.5]])
    >>> dual_value(w, h, Z, 2.0), dual_value(w, h, 9.0 * Z, math.inf)
    (1.0, 1.0)
    """
    n = encoder[0].shape[1]
    inputs = np.diagonal(Z)[:n]
    size = inputs if math.isinf(norm) else np.full(n, float(np.sum(inputs)))
    before = np.where(size > 0.0, 1.0 / np.sqrt(np.where(size > 0.0, size, 1.0)), 0.0)
    start, stop = 0, n
    for w in encoder:
        rows = slice(stop, stop + len(w))
        own = np.diagonal(Z)[rows]
        pulled = np.sum((w * before) * Z[rows, start:stop], axis=1)
        # neuron j scaled by c: c² Z_jj <= c Σ w_jk c_k Z_jk, with equality
        before = np.where(own > 0.0, pulled / np.where(own > 0.0, own, 1.0), 0.0)
        start, stop = stop, stop + len(w)
    H = head * before
    value = float(np.sum((H @ Z[start:stop, start:stop]) * H))
    return value if math.isfinite(value) else 0.0


def relaxation_matrix(encoder: Sequence[F64], head: F64, d: F64, t: Sequence[F64]) -> F64:
    """``M(diag(d), T)``: diagonal blocks ``diag(d), 2T_1, …, 2T_m − HᵀH``, below them ``−T_i W_i``.

    >>> relaxation_matrix([np.array([[1.0]])], np.array([[2.0]]), np.array([4.0]), [np.array([4.0])]).tolist()
    [[4.0, -4.0], [-4.0, 4.0]]
    """
    at = np.cumsum([0, len(d), *(len(x) for x in t)])
    M = np.diag(np.concatenate([d, *(2.0 * x for x in t)]))
    M[at[-2] :, at[-2] :] -= head.T @ head
    for i, (w, x) in enumerate(zip(encoder, t, strict=True)):
        block = -x[:, None] * w
        M[at[i + 1] : at[i + 2], at[i] : at[i + 1]] = block
        M[at[i] : at[i + 1], at[i + 1] : at[i + 2]] = block.T
    return M


def dual_bound(encoder: Sequence[F64], head: F64, d: F64, t: Sequence[F64], norm: float) -> float:
    """:func:`dual_value` of ``Z = M(P, T)^{-1}``; 0 where M is not positive definite.

    ``d``: P's diagonal in units of L² (constant for ℓ2).
    """
    from scipy.linalg import solve_triangular

    # blocks in units in which M is about 1: deep networks need it
    units = np.concatenate([np.full(len(x), 1.0 / math.sqrt(float(np.mean(x)))) for x in (d, *t)])
    try:
        root = np.linalg.cholesky(relaxation_matrix(encoder, head, d, t) * units[:, None] * units)
    except np.linalg.LinAlgError:
        return 0.0
    inverse = solve_triangular(root, np.diag(units), lower=True)
    return dual_value(encoder, head, inverse.T @ inverse, norm)
