"""Theorem 3.2 with every rounding enclosed: the layers' bounds by Theorem 3.1, and norms of sampled Jacobians.

Source: certbound theory, sections 3 and 6.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np

from certbound.arrays import F64
from certbound.bound import Bound, Claim
from certbound.compressibility import Dispersion
from certbound.lipschitz.alignment import AlignmentPair
from certbound.lipschitz.jacobian import float_below
from certbound.norms.verified import Scaled, enclose_induced_norm
from certbound.robustness import activation_pattern
from certbound.rounding import TINY, check_arithmetic, down, gamma, quick_norm, up
from certbound.theorems.theorem31 import Form, Part
from certbound.theorems.theorem31_rigorous import best_upper, enclose
from certbound.types import Quantity, Rigor, Sense

_SOURCE = "Barsbey et al., ICLR 2026, Theorem 3.1"
_SAMPLES = 64

Product = tuple[F64, float, Fraction]
"""``(J, e, s)``: the exact product is ``s (J + Δ)`` with ``‖Δ‖_p <= e``."""


def layer_bounds(
    weights: Sequence[F64],
    errors: Sequence[F64 | None],
    part: Part,
    forms: Sequence[Form],
    dispersion: Dispersion,
    norm: float,
    k: int | None,
    norms: Sequence[float],
) -> dict[Form, list[Bound]]:
    """Theorem 3.1's rigorous bound of each layer (of the weights meant, if folding rounded), by form.

    ``forms``: each exactly at most the next one, ``norms``: upper bounds of the norms. The upper end of a larger form
    is one of a smaller form too, and no form is shown below the norm: so rounding cannot turn the ladder around.
    """
    claim = Claim(Quantity.OPERATOR_NORM, norm, norm)
    result: dict[Form, list[Bound]] = {form: [] for form in forms}
    for W, error, least in zip(weights, errors, norms, strict=True):
        e = enclose(W)
        off = 0.0 if error is None else enclose_induced_norm(error, norm)[1]
        at = None if k is None else min(k, e.size(part))
        ends = [best_upper(e, part, form, dispersion, at) for form in forms]
        for i, form in enumerate(forms):
            value = min(ends[i:])
            least = max(least, value if off == 0.0 else up(value + off))
            method = f"Theorem 3.1, {part}, {form}, {dispersion}"
            result[form].append(Bound(least, claim, Sense.UPPER, Rigor.RIGOROUS, method, _SOURCE))
    return result


def _size(W: F64, norm: float) -> float:
    """Upper bound of ``‖|W|‖_p``: Frobenius for p = 2."""
    if not math.isinf(norm):
        return quick_norm(W)[1]
    return up(float(np.abs(W).sum(axis=1).max()) * (1.0 + gamma(W.shape[1] + 4)))


def _lost(W: Scaled, norm: float) -> float:
    """Norm of what scaling lost: ``‖Δ‖_∞ <= √n ‖Δ‖_F``."""
    return W.lost if W.lost == 0.0 or not math.isinf(norm) else up(W.lost * up(math.sqrt(W.matrix.shape[1])))


def _times(W: Scaled, active: F64, inner: Product, norm: float) -> Product:
    """``W D J``, with what rounding, underflow and scaling can have moved it."""
    matrix, error, unit = inner
    product: F64 = np.matmul(W.matrix, active[:, None] * matrix)
    lost = _lost(W, norm)
    if lost == 0.0 and (not W.matrix.any() or (error == 0.0 and not matrix.any())):
        return product, 0.0, unit  # exactly 0
    w, j = up(_size(W.matrix, norm) + lost), _size(matrix, norm)
    n, largest = W.matrix.shape[1], max(2.0, float(np.max(np.abs(matrix), initial=0.0)))
    underflow: float = n * W.matrix.shape[0] * matrix.shape[1] * TINY * largest
    off = up(up(gamma(n) * up(w * j)) + up(up(w * error) + up(lost * j)))
    return product, up(off + underflow), unit * Fraction(W.scale)


def _enclosed(product: Product, norm: float) -> tuple[Fraction, Fraction]:
    """Both ends of the norm of the exact product, in true units."""
    matrix, error, unit = product
    low, high = enclose_induced_norm(matrix, norm)
    if error != 0.0:
        low, high = max(0.0, down(low - error)), up(high + error)
    return Fraction(low) * unit, Fraction(high) * unit


def _above(values: Mapping[str, float], end: Fraction) -> bool:
    """Is ``end`` at most every one of the values?"""
    return all(v == math.inf or end <= Fraction(v) for v in values.values())


def verdict(
    weights: Sequence[F64], norm: float, pairs: Sequence[AlignmentPair], bounds: Mapping[str, float]
) -> tuple[float, bool | None]:
    """``(largest, holds)``: a lower bound of the constant from sampled inputs, and what is proved of the report.

    The sampled inputs are those of the numerical check. Their Jacobian, and ``W^{l+1} D W^l`` for random patterns D,
    are enclosed; a pattern counts only where a running error bound proves every sign.
    """
    check_arithmetic()
    scaled = [Scaled.of(w) for w in weights]
    rng = np.random.default_rng(0)  # local: the same report for the same weights
    x = rng.standard_normal((_SAMPLES, weights[0].shape[1]))
    proved, disproved, largest = True, False, Fraction(0)

    def start(i: int) -> Product:
        s = scaled[i]
        return s.matrix, _lost(s, norm), Fraction(s.scale)

    for row in x:
        # powers of two in front of a layer move no sign, and keep the products finite
        actives = activation_pattern([s.matrix for s in scaled[:-1]], [np.zeros(len(w)) for w in weights[:-1]], row)
        if actives is None or any(s.lost for s in scaled[:-1]):
            continue
        product = start(0)
        for s, active in zip(scaled[1:], actives, strict=True):
            product = _times(s, active, product, norm)
        low, high = _enclosed(product, norm)
        largest = max(largest, low)
        proved = proved and _above(bounds, high)
        disproved = disproved or not _above(bounds, low)
    for pair in pairs:
        claim = {"pair": pair.pair_norm}
        a, b = start(pair.layer), scaled[pair.layer + 1]
        for d in rng.integers(0, 2, size=(_SAMPLES, len(weights[pair.layer]))):
            low, high = _enclosed(_times(b, d.astype(np.float64), a, norm), norm)
            proved = proved and _above(claim, high)
            disproved = disproved or not _above(claim, low)
    ladder = (
        bounds["cover"] <= bounds["product"]
        and bounds["cover"] <= bounds["sharp"] <= bounds["derived"] <= bounds["printed"]
    )
    return float_below(largest), False if disproved else True if proved and ladder else None
