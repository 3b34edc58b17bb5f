"""Lower bounds of ``‖A‖_2`` of a convolution: ``‖A v‖/‖v‖`` for one vector, with every rounding enclosed.

The vector comes from Lanczos' iteration on ``AᵀA``, with full orthogonalisation and a start that is always the same;
nothing about it is taken on trust. Source: Golub & Van Loan, *Matrix Computations*, 4th ed., 10.1; the evaluation is
that of :func:`certbound.norms.verified.spectral_lower`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from certbound.arrays import F64
from certbound.norms.convolution import conv_adjoint, conv_apply, with_weight
from certbound.rounding import TINY, U, down, gamma, quick_norm, up

if TYPE_CHECKING:
    from certbound.ops import Conv

_BASIS = 2**25  # numbers in the basis of the Krylov space: 256 MiB


def top_vector(conv: Conv, input_shape: Sequence[int], *, steps: int = 60, tolerance: float = 1e-5) -> F64:
    """A unit vector (C, *spatial) with ``‖A v‖`` about ``‖A‖_2``, after at most ``steps`` products with ``AᵀA``.

    Lanczos, restarted with the best vector when the basis is full; it ends early when the largest Ritz value grew by
    less than ``tolerance`` (relative) in five steps.

    >>> from certbound.ops import Conv
    >>> conv = Conv(np.ones((1, 1, 3)), padding=((1, 1),))
    >>> bool(abs(np.linalg.norm(conv_apply(conv, top_vector(conv, (1, 3)))) - (1 + 2**0.5)) < 1e-12)
    True
    """
    size = math.prod(input_shape)
    # an isotropic start has a part in every eigenspace
    v = np.random.default_rng(0).standard_normal(size)
    v /= np.linalg.norm(v)
    best = v
    room = max(3, min(_BASIS // size, 40, size))
    done, last = 0, 0.0
    while done < steps:
        length = min(room, steps - done)
        best, value, converged = _lanczos(conv, input_shape, best, length, tolerance)
        done += length
        if converged or value <= last * (1.0 + tolerance):
            break
        last = value
    return best.reshape(tuple(input_shape))


def _lanczos(conv: Conv, shape: Sequence[int], start: F64, length: int, tolerance: float) -> tuple[F64, float, bool]:
    """``(ritz vector, ritz value, converged)`` of ``AᵀA`` after at most ``length`` steps."""
    basis = np.zeros((length, start.size))
    diagonal, beside, tops = list[float](), list[float](), list[float]()
    basis[0] = start
    k, converged = 1, False
    while True:
        w = conv_adjoint(conv, conv_apply(conv, basis[k - 1].reshape(tuple(shape))), shape).ravel()
        diagonal.append(float(w @ basis[k - 1]))
        values, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1))
        tops.append(float(values[-1]))
        for _ in range(2):  # twice is enough (Kahan, Parlett)
            w -= basis[:k].T @ (basis[:k] @ w)
        rest = float(np.linalg.norm(w))
        converged = rest <= 1e-14 * tops[-1] or (k > 5 and tops[-1] <= tops[-6] * (1.0 + tolerance))
        if k == length or converged or not math.isfinite(rest):
            break
        beside.append(rest)
        basis[k] = w / rest
        k += 1
    ritz = basis[:k].T @ vectors[:, -1]
    size = float(np.linalg.norm(ritz))
    return (ritz / size if size > 0.0 else start), tops[-1], converged


def proved_lower(conv: Conv, v: F64, *, times: float = 2.0, relative_error: float = 0.0) -> float:
    """A lower bound of ``‖A‖_2``: ``‖A v‖/‖v‖`` less the rounding; kernel entries below 2, ``|v| <= 2``.

    ``times`` the rounding error is taken off; once is a proof, bounds are published with twice, for another machine's
    rounding. It holds for every kernel within ``relative_error`` of the stored one, entry by entry.

    >>> from certbound.ops import Conv
    >>> bool(3.0 - 1e-13 < proved_lower(Conv([[[3.0]]]), np.ones((1, 4))) <= 3.0)
    True
    """
    if not bool(np.all(np.abs(v) <= 2.0)):  # so that NaN fails
        return 0.0
    terms = conv.weight[0].size + 2
    image = conv_apply(conv, v)
    # entrywise γ (|A||v|)_i, itself computed to a relative γ
    sizes = quick_norm(conv_apply(with_weight(conv, np.abs(conv.weight)), np.abs(v)))[1]
    rate = up(times * gamma(2 * terms + 8) + up(relative_error * (1.0 + 4 * gamma(terms + 8))))
    error = up(up(rate * up(sizes * (1.0 + 4 * U))) + 8.0 * terms * image.size * TINY)
    length = quick_norm(v)[1]
    return down(max(0.0, down(quick_norm(image)[0] - error)) / length) if length > 0.0 else 0.0
