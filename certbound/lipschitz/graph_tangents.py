"""Enclosures of Jacobians of a graph's values over a set of inputs, forwards: for graphs of a few thousand numbers.

Tangents of a value of shape S are an array (inputs, *S) of intervals that hold every (generalised) Jacobian of the
value on the set: column by column the chain rule in interval arithmetic, every rounding counted. As the set shrinks to
a point where the graph is differentiable they shrink to its Jacobian there, so the norm bound tends to the exact one.

Why that bounds differences: a composition of these operations is locally Lipschitz, differentiable almost everywhere,
and on a convex set ``f(x) − f(y) = M (x − y)`` for a matrix M in the closed convex hull of its Jacobians there (Clarke
1983, Prop. 2.6.5, for the chain rule Thm 2.6.6); an interval matrix is closed and convex.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from certbound.arrays import F64
from certbound.lipschitz.graph_boxes import (
    Box,
    add_boxes,
    batch_norm_box,
    centred,
    linear_box,
    matrix_products,
    probabilities,
    products,
    row_sizes,
    upper_end,
)
from certbound.lipschitz.product import Outputs
from certbound.norms.blocks import matrix_norm_up
from certbound.norms.verified import enclose_inf_norm
from certbound.ops import (
    AdaptiveAvgPool,
    Add,
    AvgPool,
    BatchNorm,
    Clip,
    Conv,
    LayerNorm,
    Linear,
    MatMul,
    MaxPool,
    Mean,
    Multiply,
    Op,
    Pad,
    Pointwise,
    Scale,
    Shift,
    Softmax,
)
from certbound.rounding import Interval, gamma, up

Tangents = Box | None
"""None: of a constant."""


def tangents_of(op: Op, values: Sequence[Box], tangents: Sequence[Tangents]) -> Tangents:
    """Tangents of ``op`` on values in the boxes.

    >>> t = tangents_of(Multiply(), [Box.point(np.array([3.0]))] * 2, [Box.point(np.array([[1.0]]))] * 2)
    >>> t.low.round(9).tolist()  # (x²)' at 3
    [[6.0]]
    """
    if all(t is None for t in tangents):
        return None
    with np.errstate(all="ignore"):
        return _tangents(op, values, tangents)


def _tangents(op: Op, values: Sequence[Box], tangents: Sequence[Tangents]) -> Box:
    if isinstance(op, Add):
        a, b = tangents
        if b is not None and op.subtracts:
            b = Box(-b.high, -b.low)
        return add_boxes(a, b) if a is not None and b is not None else a or b or Box.point(np.zeros(1))
    if isinstance(op, (Multiply, MatMul)):
        join = products if isinstance(op, Multiply) else matrix_products
        parts = [join(t, v) if i == 0 else join(v, t) for i, (t, v) in enumerate(
            zip(tangents, reversed(values), strict=True)) if t is not None]  # fmt: skip
        return parts[0] if len(parts) == 1 else add_boxes(parts[0], parts[1])
    if len(tangents) > 1:  # Concat
        return _moved(op, values, tangents)
    value, tangent = values[0], tangents[0]
    assert tangent is not None
    if isinstance(op, Shift):
        return tangent
    if isinstance(op, (Pointwise, Clip)):
        return products(tangent, _slopes(op, value))
    if isinstance(op, (BatchNorm, Linear, Conv, AvgPool, AdaptiveAvgPool, Mean)):
        return _linear(op, tangent)
    if isinstance(op, Scale):
        factor = np.broadcast_to(op.factor, value.low.shape)
        low, high = (tangent.low / factor, tangent.high / factor) if op.divides else (
            tangent.low * factor, tangent.high * factor)  # fmt: skip
        return Box.known(np.nextafter(np.minimum(low, high), -math.inf), upper_end(np.maximum(low, high)))
    if isinstance(op, Softmax):
        return _softmax(op, value, tangent)
    if isinstance(op, LayerNorm):
        return _layer_norm(op, value, tangent)
    if isinstance(op, MaxPool):
        return _max_pool(op, value, tangent)
    return _moved(op, values, tangents)


def _slopes(op: Pointwise | Clip, value: Box) -> Box:
    if isinstance(op, Pointwise):
        return Box(*op.activation.slopes(value.low, value.high))
    inside = (value.low >= op.low) & (value.high <= op.high)
    outside = (value.high <= op.low) | (value.low >= op.high)
    return Box(np.where(inside & ~outside, 1.0, 0.0), np.where(outside, 0.0, 1.0))


def _moved(op: Op, values: Sequence[Box], tangents: Sequence[Tangents]) -> Box:
    """Column by column; beside them constants have tangent 0."""
    count = next(len(t.low) for t in tangents if t is not None)
    plain = replace(op, value=0.0) if isinstance(op, Pad) else op
    zero = [np.zeros_like(v.low) for v in values]
    ends = [
        np.stack([
            plain.apply(*(zero[j] if t is None else (t.high if high else t.low)[k] for j, t in enumerate(tangents)))
            for k in range(count)
        ])
        for high in (False, True)
    ]  # fmt: skip
    return Box(ends[0], ends[1])


def _linear(op: BatchNorm | Linear | Conv | AvgPool | AdaptiveAvgPool | Mean, tangent: Box) -> Box:
    """A linear operation (its bias dropped) on all columns as a batch."""
    shape = tangent.low.shape
    if isinstance(op, Mean):
        # its axes count those of one value; the columns come first
        rank = len(shape) - 1
        moved = replace(op, axes=tuple(1 + a % rank for a in op.axes))
        return linear_box(moved, tangent)
    if isinstance(op, Linear):
        return linear_box(replace(op, bias=None), tangent)
    batch = Box(tangent.low.reshape(-1, *shape[2:]), tangent.high.reshape(-1, *shape[2:]))
    if isinstance(op, BatchNorm):
        out = batch_norm_box(replace(op, mean=np.zeros_like(op.mean), bias=None), batch)
    else:
        out = linear_box(replace(op, bias=None) if isinstance(op, Conv) else op, batch)
    new = (*shape[:2], *out.low.shape[1:])
    return Box(out.low.reshape(new), out.high.reshape(new))


def _softmax(op: Softmax, value: Box, tangent: Box) -> Box:
    """``dp = p (dz − Σ_j p_j dz_j)``."""
    p = probabilities(op, value)
    axis = op.axis % value.low.ndim + 1
    weighted = products(tangent, p)
    n = weighted.low.shape[axis]
    ends = [e.sum(axis=axis, keepdims=True) for e in (weighted.low, weighted.high)]
    off = 2.0 * gamma(n + 4) * np.maximum(np.abs(weighted.low), np.abs(weighted.high)).sum(axis=axis, keepdims=True)
    mean = Box.known(np.nextafter(ends[0] - off, -math.inf), upper_end(ends[1] + off))
    return products(add_boxes(tangent, Box(-mean.high, -mean.low)), p)


def _layer_norm(op: LayerNorm, value: Box, tangent: Box) -> Box:
    """``dy = (dc − a (a·dc)/n)/s ∘ γ`` with ``c = x − mean``, ``a = c/s``; see ``layer_norm_constant``."""
    rows = centred(op, value)
    count, n = len(tangent.low), rows.low.shape[1]
    low, high = row_sizes(rows)
    size, total = Interval(low, high), Interval.of(float(n))
    s = (size * size / total + Interval.of(op.eps)).sqrt()
    inverse = Interval.of(1.0) / s
    inverse_box = Box(inverse.low[:, None], inverse.high[:, None])
    a = products(rows, inverse_box)
    dc = centred(op, tangent)
    dc = Box(dc.low.reshape(count, -1, n), dc.high.reshape(count, -1, n))
    weighted = products(dc, a)
    off = 2.0 * gamma(n + 4) * np.maximum(np.abs(weighted.low), np.abs(weighted.high)).sum(axis=2, keepdims=True)
    low_sum = weighted.low.sum(axis=2, keepdims=True) - off
    high_sum = weighted.high.sum(axis=2, keepdims=True) + off
    dot = Box.known(np.nextafter(low_sum / n, -math.inf), upper_end(high_sum / n))
    pulled = products(a, dot)
    out = products(add_boxes(dc, Box(-pulled.high, -pulled.low)), inverse_box)
    out = Box(out.low.reshape(tangent.low.shape), out.high.reshape(tangent.low.shape))
    return out if op.weight is None else products(out, Box.point(op.weight))


def _max_pool(op: MaxPool, value: Box, tangent: Box) -> Box:
    """The hull of the tangents of the entries that can be the largest of their window."""
    shape = value.low.shape
    spatial = op.output_shape(shape)[2:]
    grids = np.meshgrid(*(np.arange(m) * s - p[0] for m, s, p in zip(spatial, op.stride, op.padding, strict=True)),
                        indexing="ij")  # fmt: skip
    taps = np.stack([g.reshape(-1) for g in np.meshgrid(*(np.arange(k) for k in op.kernel), indexing="ij")])
    taps = taps * np.array(op.dilation)[:, None]
    where = np.stack([g.reshape(-1) for g in grids])[:, :, None] + taps[:, None, :]
    sizes = np.array(shape[2:])[:, None, None]
    inside = np.all((where >= 0) & (where < sizes), axis=0)
    index = np.ravel_multi_index(tuple(np.clip(where, 0, sizes - 1)), shape[2:])

    def windows(x: F64, lead: int, missing: float) -> F64:
        flat = x.reshape(*x.shape[:lead], -1)
        return np.where(inside, flat[..., index], missing)

    low, high = windows(value.low, 2, -math.inf), windows(value.high, 2, -math.inf)
    candidate = inside & (high >= low.max(axis=-1, keepdims=True))
    least = np.where(candidate, windows(tangent.low, 3, math.inf), math.inf).min(axis=-1)
    most = np.where(candidate, windows(tangent.high, 3, -math.inf), -math.inf).max(axis=-1)
    new = (len(tangent.low), *shape[:2], *spatial)
    return Box(least.reshape(new), most.reshape(new))


# ---------------------------------------------------------------- norms


def row_distances(tangent: Box, radius: float, norm: float) -> F64:
    """How far each entry of a value moves on a ball: ``radius`` times the dual norm of its row of tangents."""
    sizes = tangent.size
    g = 2.0 * gamma(len(sizes) + 8)
    with np.errstate(all="ignore"):
        if math.isinf(norm):
            total = sizes.sum(axis=0) * (1.0 + g)
        else:
            total = np.sqrt(np.square(sizes).sum(axis=0)) * (1.0 + g) + len(sizes) * 2.0**-500
        return upper_end(upper_end(total) * radius)


def jacobian_norm(tangent: Box, norm: float, outputs: Outputs) -> float:
    """Bound of ``‖J‖_p`` of the outputs' rows, for every J within the tangents."""
    count = len(tangent.low)
    low, high = tangent.low.reshape(count, -1).T, tangent.high.reshape(count, -1).T
    if isinstance(outputs, tuple):
        j, y = outputs
        low, high = np.nextafter(low[[j]] - high[[y]], -math.inf), upper_end(high[[j]] - low[[y]])
    elif outputs != "all":
        low, high = low[[int(outputs)]], high[[int(outputs)]]
    box = Box.known(low, high)
    if not bool(np.all(np.isfinite(box.size))):
        return math.inf
    if math.isinf(norm):
        return enclose_inf_norm(np.ascontiguousarray(box.size))[1]
    center, reach = box.halves()
    spread = matrix_norm_up(np.ascontiguousarray(reach), 2.0)  # ‖E‖_2 <= ‖|E|‖_2 <= ‖R‖_2 for |E| <= R
    return up(matrix_norm_up(np.ascontiguousarray(center), 2.0) + spread)


__all__ = ["Tangents", "jacobian_norm", "row_distances", "tangents_of"]
