"""Enclosures of a graph's values over a set of inputs: intervals, every rounding counted.

``values_of(op, boxes)`` encloses the operation's exact value for all inputs in the boxes. With boxes of one point it is
a running error analysis. Linear operations go by centre and radius, ``A [c − r, c + r] = A c ± |A| r``; products of
matrices likewise; softmax and layer normalisation by formulas in which each quantity occurs on its better side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from certbound.activations import Activation
from certbound.arrays import F64
from certbound.errors import UnsupportedLayerError
from certbound.norms.blocks import batch_norm_factors
from certbound.ops import (
    AdaptiveAvgPool,
    Add,
    AvgPool,
    BatchNorm,
    Clip,
    Concat,
    Constant,
    Conv,
    Expand,
    Gather,
    LayerNorm,
    Linear,
    MatMul,
    MaxPool,
    Mean,
    Multiply,
    Op,
    Pad,
    Permute,
    Pointwise,
    Reshape,
    Roll,
    Scale,
    Shift,
    Slice,
    Softmax,
)
from certbound.rounding import TINY, Interval, gamma

_SIGMOID = Activation("sigmoid")
_MONOTONE = (Clip, MaxPool, Reshape, Permute, Slice, Gather, Pad, Roll, Expand, Concat)


def lower_end(x: F64) -> F64:
    """One float down."""
    return np.nextafter(x, -math.inf)


def upper_end(x: F64) -> F64:
    """One float up."""
    return np.nextafter(x, math.inf)


@dataclass(frozen=True, eq=False)
class Box:
    """``low <= x <= high``, entry by entry.

    >>> Box.around(np.array([1.0]), 0.5).high > 1.5
    array([ True])
    """

    low: F64
    high: F64

    @classmethod
    def point(cls, x: F64) -> Box:
        """Numbers that are known exactly."""
        return cls(x, x)

    @classmethod
    def around(cls, x: F64, radius: float | F64) -> Box:
        """``x ± radius``, rounded outward; an x that is not finite (a sum that overflowed on its way) is unknown."""
        with np.errstate(invalid="ignore", over="ignore"):
            x = np.where(np.isfinite(x), x, math.nan)
            return cls.known(lower_end(x - radius), upper_end(x + radius))

    @classmethod
    def known(cls, low: F64, high: F64) -> Box:
        """NaN, from ∞ − ∞ or 0 · ∞, means that nothing is known."""
        return cls(np.where(np.isnan(low), -math.inf, low), np.where(np.isnan(high), math.inf, high))

    @property
    def size(self) -> F64:
        """The largest absolute values."""
        return np.maximum(np.abs(self.low), np.abs(self.high))

    def halves(self) -> tuple[F64, F64]:
        """A point near the middle, and what the box reaches from there (∞ where an end is)."""
        low, high = np.where(np.isfinite(self.low), self.low, 0.0), np.where(np.isfinite(self.high), self.high, 0.0)
        center = np.where(low == high, low, 0.5 * low + 0.5 * high)
        with np.errstate(invalid="ignore"):
            reach = np.maximum(self.high - center, center - self.low)
        return center, np.where(self.low == self.high, 0.0, upper_end(reach))

    def within(self, other: Box) -> Box:
        """Both hold."""
        return Box(np.maximum(self.low, other.low), np.minimum(self.high, other.high))

    def grown(self, radius: float | F64) -> Box:
        """Every entry up to ``radius`` further out."""
        with np.errstate(invalid="ignore", over="ignore"):
            return Box.known(lower_end(self.low - radius), upper_end(self.high + radius))


def _largest(x: F64) -> float:
    return float(np.max(np.abs(x), initial=0.0))


def values_of(op: Op, boxes: Sequence[Box]) -> Box:
    """Enclosure of ``op`` on all values in the boxes; ∞ where it leaves the range of float64.

    Raises UnsupportedLayerError for an operation that is none of :mod:`certbound.ops`.

    >>> box = values_of(Linear([[1.0, -1.0]]), [Box(np.array([[0.0, 0.0]]), np.array([[1.0, 2.0]]))])
    >>> box.low.round(9).tolist(), box.high.round(9).tolist()
    ([[-2.0]], [[1.0]])
    """
    with np.errstate(all="ignore"):
        return _values(op, boxes)


def _values(op: Op, boxes: Sequence[Box]) -> Box:
    if isinstance(op, Constant):
        return Box.point(op.value)
    if isinstance(op, _MONOTONE):
        return Box(op.apply(*(b.low for b in boxes)), op.apply(*(b.high for b in boxes)))
    if isinstance(op, Pointwise):
        return Box(*op.activation.enclose(boxes[0].low, boxes[0].high))
    if isinstance(op, Add):
        a, b = boxes
        b = Box(-b.high, -b.low) if op.subtracts else b
        return add_boxes(a, b)
    if isinstance(op, Shift):
        return Box.known(lower_end(boxes[0].low + op.offset), upper_end(boxes[0].high + op.offset))
    if isinstance(op, (Multiply, MatMul)):
        return products(boxes[0], boxes[1]) if isinstance(op, Multiply) else matrix_products(boxes[0], boxes[1])
    if isinstance(op, Scale):
        factor = np.broadcast_to(op.factor, boxes[0].low.shape)
        ends = [e / factor if op.divides else e * factor for e in (boxes[0].low, boxes[0].high)]
        return Box.known(lower_end(np.minimum(*ends)), upper_end(np.maximum(*ends)))
    if isinstance(op, BatchNorm):
        return batch_norm_box(op, boxes[0])
    if isinstance(op, Softmax):
        return probabilities(op, boxes[0])
    if isinstance(op, LayerNorm):
        return _layer_norm(op, boxes[0])
    if isinstance(op, (Linear, Conv, AvgPool, AdaptiveAvgPool, Mean)):
        return linear_box(op, boxes[0])
    raise UnsupportedLayerError(op.kind, got="an operation without an enclosure", needed="one of certbound.ops",
                                fix="see certbound.lipschitz.graph_boxes")  # fmt: skip


def add_boxes(a: Box, b: Box) -> Box:
    """The sum."""
    return Box.known(lower_end(a.low + b.low), upper_end(a.high + b.high))


def linear_box(op: Linear | Conv | AvgPool | AdaptiveAvgPool | Mean, box: Box) -> Box:
    """``A c + b ± (|A| (r + γ |c|) + γ |b|)`` and what underflows."""
    shape, bias, largest = box.low.shape, np.zeros(1), 1.0
    size: Op = op  # |A| as an operation
    if isinstance(op, (Linear, Conv)):
        size = replace(op, weight=np.abs(op.weight), bias=None)
        terms, largest = int(op.weight[0].size), _largest(op.weight)
        axes = 0 if isinstance(op, Linear) else len(op.kernel)
        bias = bias if op.bias is None else np.abs(op.bias).reshape(-1, *(1,) * axes)
    elif isinstance(op, Mean):
        terms = op.count(shape)
    else:
        terms = math.prod(op.kernel if isinstance(op, AvgPool) else shape[2:])
    center, reach = box.halves()
    g = gamma(terms + 16)  # the sum, its products, averages' quotients, and what the operation itself rounds once more
    middle = op.apply(center)
    finite = np.where(np.isfinite(reach), reach, 0.0)
    spread = size.apply(upper_end(finite + upper_end(g * np.abs(center)))) * (1.0 + 4.0 * g) + 2.0 * g * bias
    spread = upper_end(spread + 4.0 * terms * TINY * max(1.0, largest, _largest(center)))
    out = Box.around(middle, upper_end(spread * (1.0 + 4.0 * g)))
    if bool(np.all(np.isfinite(reach))):
        return out
    # an endless input makes every output endless that reads it
    touched = size.apply(np.where(np.isfinite(reach), 0.0, 1.0)) > 0.0
    return Box(np.where(touched, -math.inf, out.low), np.where(touched, math.inf, out.high))


def batch_norm_box(op: BatchNorm, box: Box) -> Box:
    """``(x − mean) ∘ scale + bias``, the scale enclosed."""
    axes = (-1, *(1,) * (box.low.ndim - 2))
    factors = batch_norm_factors(op)
    mean = op.mean.reshape(axes)
    low, high = lower_end(box.low - mean), upper_end(box.high - mean)
    # the weight's: the scale may underflow to 0
    sign = np.where((op.scale if op.weight is None else op.weight) < 0.0, -1.0, 1.0)
    scale = Box(np.where(sign < 0.0, -factors.high, factors.low), np.where(sign < 0.0, -factors.low, factors.high))
    scale = Box(scale.low.reshape(axes), scale.high.reshape(axes))
    out = products(Box(low, high), scale)
    if op.bias is None:
        return out
    bias = op.bias.reshape(axes)
    return Box.known(lower_end(out.low + bias), upper_end(out.high + bias))


def products(a: Box, b: Box) -> Box:
    """Elementwise; ``0 · ∞`` is 0 here: an end at ∞ stands for finite numbers without a bound."""
    every = [x * y for x in (a.low, a.high) for y in (b.low, b.high)]
    every = [np.where(np.isnan(e), 0.0, e) for e in every]
    low, high = np.minimum.reduce(every), np.maximum.reduce(every)
    return Box(lower_end(low), upper_end(high))


def matrix_products(a: Box, b: Box) -> Box:
    """``A B ± (|A| R_B + R_A (|B| + R_B) + γ |A||B|)``, A and B the centres."""
    (x, r), (y, s) = a.halves(), b.halves()
    n = x.shape[-1]
    g = gamma(n + 8)
    size_x, size_y = np.abs(x), np.abs(y)
    spread = size_x @ (s + 2.0 * g * size_y) + r @ upper_end(size_y + s)
    spread = upper_end(spread * (1.0 + 8.0 * g) + 8.0 * n * TINY * max(1.0, _largest(x), _largest(y)))
    return Box.around(x @ y, spread)


# ---------------------------------------------------------------- softmax


def exponentials(t: Interval) -> Interval:
    """``e^−t`` for t >= 0, as ``σ(−t)/σ(t)`` from the enclosures of the sigmoid.

    >>> e = exponentials(Interval.of([0.0, 1.0]))
    >>> bool(e.low[1] < 0.36787944117144233 < e.high[1]), float(e.high[1] - e.low[1]) < 1e-10
    (True, True)
    """
    at_low, at_high = _SIGMOID.enclose(-t.high, -t.high), _SIGMOID.enclose(-t.low, -t.low)
    under, over = _SIGMOID.enclose(t.low, t.low), _SIGMOID.enclose(t.high, t.high)
    small = Interval(np.maximum(at_low[0], 0.0), np.maximum(at_low[1], 0.0)) / Interval(*over)
    large = Interval(np.maximum(at_high[0], 0.0), np.maximum(at_high[1], 0.0)) / Interval(*under)
    return Interval(small.low, np.minimum(large.high, 1.0))


def probabilities(op: Softmax, box: Box) -> Box:
    """Softmax of all logits in the box: ``p_i`` is least where z_i is least and the others are largest.

    >>> p = probabilities(Softmax(), Box(np.array([[0.0, 0.0]]), np.array([[0.0, 0.0]])))
    >>> bool(np.all((p.low <= 0.5) & (p.high >= 0.5) & (p.high - p.low < 1e-9)))
    True
    """
    low, high = np.moveaxis(box.low, op.axis, -1), np.moveaxis(box.high, op.axis, -1)
    if not bool(np.all(np.isfinite(low) & np.isfinite(high))):
        return Box(np.zeros_like(box.low), np.ones_like(box.low))
    top = high.max(axis=-1, keepdims=True)
    up_gap, down_gap = top - high, top - low
    # the differences are rounded once
    largest = exponentials(Interval(np.maximum(lower_end(up_gap), 0.0), np.maximum(upper_end(up_gap), 0.0)))
    least = exponentials(Interval(np.maximum(lower_end(down_gap), 0.0), upper_end(down_gap)))
    others_high, others_low = _sums_of_others(largest.high, up=True), _sums_of_others(least.low, up=False)
    floor = (Interval.of(least.low) / (Interval.of(least.low) + Interval.of(others_high))).low
    ceiling = Interval.of(largest.high) / (Interval.of(largest.high) + Interval.of(others_low))
    p_low, p_high = np.maximum(floor, 0.0), np.minimum(ceiling.high, 1.0)
    return Box(np.moveaxis(p_low, -1, op.axis), np.moveaxis(p_high, -1, op.axis))


def _sums_of_others(x: F64, *, up: bool) -> F64:
    """``Σ_{j≠i} x_j`` along the last axis, for numbers >= 0, rounded to one side."""
    n = x.shape[-1]
    zero = np.zeros_like(x[..., :1])
    before = np.concatenate([zero, np.cumsum(x, axis=-1)[..., :-1]], axis=-1)
    after = np.concatenate([np.cumsum(x[..., ::-1], axis=-1)[..., ::-1][..., 1:], zero], axis=-1)
    total, g = before + after, 2.0 * gamma(n + 4)
    return upper_end(total * (1.0 + g)) if up else np.maximum(total * (1.0 - g), 0.0)


# ---------------------------------------------------------------- layer normalisation


def centred(op: LayerNorm, box: Box) -> Box:
    """``x − mean(x)`` of rows, flattened to (rows, n)."""
    n = math.prod(box.low.shape[-op.axes :])
    center, reach = (x.reshape(-1, n) for x in box.halves())
    g = gamma(n + 8)
    middle = center - center.mean(axis=1, keepdims=True)
    # |P| r <= r (1 − 1/n) + (sum of the others)/n <= r + mean r
    size = np.abs(center)
    spread = reach + reach.mean(axis=1, keepdims=True) + 2.0 * g * (size + size.mean(axis=1, keepdims=True))
    return Box.around(middle, upper_end(spread * (1.0 + 8.0 * g) + 8.0 * n * TINY))


def row_sizes(rows: Box, distance: float = 0.0) -> tuple[F64, F64]:
    """Lower and upper bounds of the ℓ2 norm of each row, of all rows at most ``distance`` (in ℓ2) from the box.

    >>> low, high = row_sizes(Box.point(np.array([[3.0, 4.0]])), 1.0)
    >>> bool(low[0] <= 4.0 and high[0] >= 6.0), float(high[0] - low[0]) < 2.0 + 1e-13
    (True, True)
    """
    center, reach = rows.halves()
    n = center.shape[1]
    g = 4.0 * gamma(n + 8)
    with np.errstate(over="ignore"):
        size, off = _lengths(center), _lengths(reach)
        off = (off + distance) * (1.0 + g) + n * 2.0**-500
        low = np.maximum(np.minimum(size, np.finfo(np.float64).max) * (1.0 - g) - off * (1.0 + g), 0.0)
        return low, upper_end(size * (1.0 + g) + off * (1.0 + g))


def _lengths(rows: F64) -> F64:
    """ℓ2 norms of rows, by about γ; squares of large entries do not overflow, as a lower bound could not tell."""
    top = np.abs(rows).max(axis=1)
    usual = (top > 0.0) & np.isfinite(top)
    scale = np.where(usual, np.ldexp(1.0, np.frexp(np.where(usual, top, 1.0))[1] - 1), 1.0)
    length: F64 = np.sqrt(np.square(rows / scale[:, None]).sum(axis=1)) * scale
    return length


def _layer_norm(op: LayerNorm, box: Box) -> Box:
    rows = centred(op, box)
    n = rows.low.shape[1]
    low, high = row_sizes(rows)
    size = Interval(low, high)
    variance = size * size / Interval.of(float(n))
    s = (variance + Interval.of(op.eps)).sqrt()
    inverse = Interval.of(1.0) / s
    # (c_i/s)² <= n v/(v + ε) < n, whatever the box
    out = products(rows, Box(inverse.low[:, None], inverse.high[:, None]))
    limit = float(np.nextafter(math.sqrt(n), math.inf))
    out = Box(np.maximum(out.low, -limit), np.minimum(out.high, limit))
    out = Box(out.low.reshape(box.low.shape), out.high.reshape(box.low.shape))
    if op.weight is not None:
        out = products(out, Box.point(op.weight))
    if op.bias is None:
        return out
    return Box.known(lower_end(out.low + op.bias), upper_end(out.high + op.bias))


__all__ = [
    "Box", "add_boxes", "batch_norm_box", "centred", "exponentials", "linear_box", "lower_end", "matrix_products",
    "probabilities", "products", "row_sizes", "upper_end", "values_of",
]  # fmt: skip
