"""Lower bounds of the norm of a Jacobian at one point that are proofs: in floats with error bounds, or in rationals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from certbound.arrays import F64
from certbound.network import Chain
from certbound.rounding import TINY, U, enclose_norm, gamma, up

_LARGE = 2.0**400  # beyond it, or below its inverse, rationals decide
_BITS = 64


def norm_below(J: Sequence[Sequence[Fraction]], norm: float, direction: F64 | None) -> float:
    """Largest float that is proved to be at most ``‖J‖_p``: the largest row sum, or ``‖J v‖_2 / ‖v‖_2`` (0 without v).

    >>> J = [[Fraction(3), Fraction(4)]]
    >>> norm_below(J, math.inf, None), norm_below(J, 2.0, np.array([3.0, 4.0]))
    (7.0, 5.0)
    """
    if math.isinf(norm):
        return float_below(max(sum((abs(v) for v in row), Fraction(0)) for row in J))
    if direction is None:
        return 0.0
    v = [Fraction(x) for x in direction.tolist()]
    length = sum((x * x for x in v), Fraction(0))
    if length == 0:
        return 0.0
    image = sum((sum((a * x for a, x in zip(row, v, strict=True)), Fraction(0)) ** 2 for row in J), Fraction(0))
    square = image / length
    # an even power of 2 brings it to integers of twice 64 bits, whose root is exact to 64
    shift = 2 * max(0, _BITS - (square.numerator.bit_length() - square.denominator.bit_length()) // 2)
    root = math.isqrt((square.numerator << shift) // square.denominator)
    return float_below(Fraction(root, 1 << (shift // 2)))


def float_below(value: Fraction) -> float:
    """The largest finite float that is at most ``value`` >= 0.

    >>> float_below(Fraction(1, 4)), Fraction(float_below(Fraction(1, 3))) < Fraction(1, 3)
    (0.25, True)
    """
    try:
        nearest = float(value)
    except OverflowError:
        return math.nextafter(math.inf, 0.0)
    return nearest if Fraction(nearest) <= value else math.nextafter(nearest, 0.0)


def float_norm_below(chain: Chain, head: F64, x: F64, norm: float, direction: F64 | None) -> float:
    """A lower bound of ``‖J(x)‖_p`` in float64 with every rounding enclosed; 0 where that proves nothing.

    Proves too that x is no kink: every pre-activation exceeds its error bound or does not depend on x.

    Parameters
    ----------
    chain : of a network without a final ReLU, its weights not rounded in folding.
    head : rows that the outputs select, each entry rounded at most once.
    x : shape (inputs,). direction : a vector v, for p = 2.
    """
    with np.errstate(all="ignore"):  # what is not finite proves nothing
        masks = _active(chain, x)
        if masks is None:
            return 0.0
        J, error = head, up(np.abs(head) * U)
        for w, mask in zip(reversed(chain.encoder), reversed(masks), strict=True):
            size, g = np.abs(w), gamma(w.shape[0] + 2)
            J, error = J * mask, error * mask
            J, error = J @ w, _enlarged((error + g * np.abs(J)) @ size, g, w.shape[0], J, size)
        if not (_ordinary(J) and _ordinary(error)):
            return 0.0
        if math.isinf(norm):
            sure = np.maximum(np.nextafter(np.abs(J) - error, -math.inf), 0.0)
            return max((float_below(sum(map(Fraction, row), Fraction(0))) for row in sure.tolist()), default=0.0)
        if direction is None or not _ordinary(direction):
            return 0.0
        size, g = np.abs(direction), gamma(len(direction) + 2)
        image, spread = J @ direction, _enlarged(error @ size + g * (np.abs(J) @ size), g, len(size), J, size)
        sure = np.maximum(np.nextafter(np.abs(image) - spread, -math.inf), 0.0)
        length = enclose_norm(direction)[1]
        if not _ordinary(sure) or length == 0.0:
            return 0.0
        return math.nextafter(enclose_norm(sure)[0] / length, 0.0)


def _active(chain: Chain, x: F64) -> list[F64] | None:
    """0/1 of every hidden neuron whose value moves with x; None where rounding could have flipped one, as at a kink."""
    h, e, moves = x, np.zeros_like(x), np.ones(x.shape)
    masks: list[F64] = []
    for w, b in zip(chain.encoder, chain.biases[:-1], strict=True):
        size, g = np.abs(w), gamma(w.shape[1] + 4)
        z = w @ h + b
        e = _enlarged(size @ (e + g * np.abs(h)) + g * np.abs(b), g, w.shape[1], h, size)
        depends = (w != 0.0) @ moves > 0.0
        if not np.all(np.isfinite(z) & (e < math.inf)) or np.any((np.abs(z) <= e) & depends):
            return None
        moves = np.where((z > 0.0) & depends, 1.0, 0.0)
        masks.append(moves)
        h = np.maximum(z, 0.0)
    return masks


def _enlarged(error: F64, g: float, n: int, a: F64, b: F64) -> F64:
    """An error bound, enlarged by its own rounding and by what underflows in two products of n terms."""
    largest = max(1.0, float(np.max(np.abs(a), initial=0.0)), float(np.max(b, initial=0.0)))
    return up(error * (1.0 + 8.0 * g) + 4.0 * n * TINY * largest)


def _ordinary(values: F64) -> bool:
    return bool(np.all(np.abs(values) < _LARGE))


__all__ = ["float_below", "float_norm_below", "norm_below"]
