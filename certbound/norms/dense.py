"""Norms of one dense matrix of shape (m outputs, n inputs) as plain floats: numerical, without a proof.

``‖W‖_2 = σ_1``, ``‖W‖_∞`` = largest row ℓ1 norm, ``‖W‖_1`` = largest column ℓ1 norm, ``‖W‖_F``.
All are computed on W divided by a power of two (exact), so entries of 1e±300 neither overflow nor vanish.
"""

from __future__ import annotations

import math
import sys

import numpy as np

from certbound.arrays import F64, power_of_two_scale
from certbound.errors import InputError
from certbound.types import Rigor, Sense


def rescale(value: float, scale: float, sense: Sense) -> float:
    """``value · scale``, never rounded to the wrong side by under- or overflow.

    >>> rescale(1.5, 5e-324, Sense.UPPER) == 2 * 5e-324, rescale(1.5, 5e-324, Sense.LOWER) == 5e-324
    (True, True)
    """
    product = value * scale
    if sense is Sense.UPPER:
        if 0 < value and product < sys.float_info.min and product / scale < value:
            return math.nextafter(product, math.inf)
        return product
    if product == math.inf:
        return sys.float_info.max
    # <=: what is a hair below the smallest normal number is rounded up to it
    if product <= sys.float_info.min and product / scale > value:
        return math.nextafter(product, 0.0)
    return product


def singular_values(W: F64) -> tuple[F64, float]:
    """Singular values of ``W / scale``, decreasing, and the power-of-two ``scale``."""
    scale = power_of_two_scale(W)
    return np.asarray(np.linalg.svd(W / scale, compute_uv=False), dtype=np.float64), scale


def spectral_norm(W: F64, sense: Sense = Sense.UPPER) -> float:
    """σ_1 by SVD (numerical); ``sense`` is the side taken where the result under- or overflows."""
    values, scale = singular_values(W)
    return rescale(float(values[0]), scale, sense)


def inf_norm(W: F64) -> float:
    """Largest row ℓ1 norm (numerical)."""
    scale = power_of_two_scale(W)
    return rescale(float(np.abs(W / scale).sum(axis=1).max()), scale, Sense.UPPER)


def frobenius_norm(W: F64) -> float:
    """``sqrt(Σ w_ij²)`` (numerical)."""
    scale = power_of_two_scale(W)
    return rescale(float(np.linalg.norm(W / scale)), scale, Sense.UPPER)


def induced_norm(W: F64, norm: float) -> float:
    """The operator norm from norm to norm, norm in {2, ∞} (numerical)."""
    return inf_norm(W) if math.isinf(norm) else spectral_norm(W)


def row_dual_norms(rows: F64, norm: float) -> F64:
    """Dual norm of each row: ``‖c‖_1`` for attacks in ℓ∞, ``‖c‖_2`` for ℓ2.

    ``|c·(u − v)| <= ‖c‖_{p*} ‖u − v‖_p`` (Hölder).

    >>> row = np.array([[3.0, -4.0]])
    >>> row_dual_norms(row, math.inf).tolist(), row_dual_norms(row, 2.0).tolist()
    ([7.0], [5.0])
    """
    result: F64 = np.linalg.norm(rows, ord=1 if math.isinf(norm) else 2, axis=1)
    return result


def check_rigor(rigor: Rigor | str) -> Rigor:
    """``numerical`` or ``rigorous``; a heuristic number is no bound."""
    word = Rigor.parse(rigor)
    if word is Rigor.HEURISTIC:
        raise InputError(
            "rigor",
            got=f"'{word}'",
            needed="'numerical' or 'rigorous'",
            fix="a heuristic number may be on the wrong side: it is never given as a bound",
        )
    return word
