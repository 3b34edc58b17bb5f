"""Activations and normalisation that exporters write out in parts, recognised in the nodes of a builder.

``x · (1 + erf(x/√2))/2`` is GELU, ``x · (1 + tanh p(x))/2`` with ``p = √(2/π)(x + 0.044715 x³)`` its tanh form, ``x ·
sigmoid(s x)`` is ``silu(s x)/s``, ``(x − mean)/√(mean((x − mean)²) + eps)`` is LayerNorm. The constants √2 and √(2/π)
count if they are the exact numbers rounded to float32 or better: then the exact function is taken.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Final

import numpy as np

from certbound.activations import Activation
from certbound.arrays import F64
from certbound.io.graph_builder import GraphBuilder
from certbound.io.onnx_values import Pending
from certbound.ops import Add, Expand, LayerNorm, Linear, Mean, Multiply, Op, Pointwise, Reshape, Scale, Shift

_RELATIVE: Final = 4 * 2.0**-24
"""A few roundings to float32."""

Affine = tuple[float, float, int]
"""``a · node + b``."""


def scalar(array: F64) -> float | None:
    """The number, if the array is a single one."""
    return float(array.reshape(-1)[0]) if array.size == 1 else None


def affine(builder: GraphBuilder, node: int) -> Affine:
    """``(a, b, base)``: the node as ``a · base + b``, followed through scalar scales and shifts to the first."""
    a, b = 1.0, 0.0
    while True:
        op = builder.nodes[node].op
        if isinstance(op, Scale) and (s := scalar(op.factor)) is not None:
            a = a / s if op.divides else a * s
        elif isinstance(op, Shift) and (s := scalar(op.offset)) is not None:
            b += a * s
        else:
            return a, b, node
        (node,) = builder.nodes[node].inputs


def polynomial(builder: GraphBuilder, node: int, x: int, most: int = 64) -> dict[int, float] | None:
    """Coefficients of the node as a polynomial of degree <= 3 in the node ``x``; None if it is none."""
    if node == x:
        return {1: 1.0}
    if most <= 0:
        return None
    op, inputs = builder.nodes[node].op, builder.nodes[node].inputs
    parts = [polynomial(builder, i, x, (most - 1) // max(len(inputs), 1)) for i in inputs]
    if not parts or any(p is None for p in parts):
        return None
    first: dict[int, float] = parts[0] or {}
    if isinstance(op, Scale) and (s := scalar(op.factor)) is not None:
        return {k: v / s if op.divides else v * s for k, v in first.items()}
    if isinstance(op, Shift) and (s := scalar(op.offset)) is not None:
        return {**first, 0: first.get(0, 0.0) + s}
    if isinstance(op, Add):
        second = parts[1] or {}
        sign = -1.0 if op.subtracts else 1.0
        return {k: first.get(k, 0.0) + sign * second.get(k, 0.0) for k in {*first, *second}}
    if isinstance(op, Multiply):
        found: dict[int, float] = {}
        for j, u in first.items():
            for k, v in (parts[1] or {}).items():
                found[j + k] = found.get(j + k, 0.0) + u * v
        return found if max(found) <= 3 else None
    return None


def close(found: float, exact: float) -> bool:
    """Is it the exact number, but for a few roundings to float32 or better?"""
    return abs(found - exact) <= _RELATIVE * abs(exact)


def gated(builder: GraphBuilder, a: int, b: int, name: str) -> int | None:
    """``a ∘ b`` as GELU, its tanh form or SiLU; None if it is neither."""
    for value, gate in ((a, b), (b, a)):
        found = _gated(builder, value, gate, name)
        if found is not None:
            return found
    return None


def _gated(builder: GraphBuilder, value: int, gate: int, name: str) -> int | None:
    scale, offset, atom = affine(builder, gate)
    op = builder.nodes[atom].op
    if isinstance(op, Pending) and op.step == "Erf":
        kind = "gelu"
    elif isinstance(op, Pointwise) and op.activation.name in ("tanh", "sigmoid"):
        kind = "gelu_tanh" if op.activation.name == "tanh" else "silu"
    else:
        return None
    (inner,) = builder.nodes[atom].inputs
    for x, outer in _sources(builder, value):
        if kind == "silu":
            # outer x · scale sigmoid(s x) = (outer scale/s) silu(s x)
            steepness, shifted, base = affine(builder, inner) if inner != x else (1.0, 0.0, x)
            if offset != 0.0 or shifted != 0.0 or base != x or steepness == 0.0:
                continue
            silu = builder.add(Pointwise(Activation("silu")), inner, name=name)
            return scaled(builder, divided(builder, silu, steepness, name), outer * scale, name)
        if scale == 0.0 or scale != offset:
            continue
        coefficients = polynomial(builder, inner, x)
        wanted = {"gelu": (math.sqrt(0.5), 0.0), "gelu_tanh": _TANH}[kind]
        if coefficients is None or any(coefficients.get(k, 0.0) != 0.0 for k in (0, 2)):
            continue
        if close(coefficients.get(1, 0.0), wanted[0]) and (
            close(coefficients.get(3, 0.0), wanted[1]) if wanted[1] else coefficients.get(3, 0.0) == 0.0
        ):
            activation = Activation("gelu" if kind == "gelu" else "gelu_tanh")
            return scaled(builder, builder.add(Pointwise(activation), x, name=name), 2.0 * outer * scale, name)
    return None


_TANH: Final = (math.sqrt(2.0 / math.pi), math.sqrt(2.0 / math.pi) * 0.044715)


def _sources(builder: GraphBuilder, value: int) -> list[tuple[int, float]]:
    """The node itself, and what it is a scalar multiple of, with the factors."""
    found = [(value, 1.0)]
    factor = 1.0
    while isinstance(op := builder.nodes[value].op, Scale) and (s := scalar(op.factor)) is not None:
        factor = factor / s if op.divides else factor * s
        (value,) = builder.nodes[value].inputs
        found.append((value, factor))
    return found


def scaled(builder: GraphBuilder, node: int, factor: float, name: str) -> int:
    """``factor · node``; a power of two joins one that is there already."""
    op = builder.nodes[node].op
    if isinstance(op, Scale) and not op.divides and (s := scalar(op.factor)) is not None and _binary(s, factor):
        factor *= s
        (node,) = builder.nodes[node].inputs
    return node if factor == 1.0 else builder.add(Scale(np.array(factor)), node, name=name)


def _binary(*factors: float) -> bool:
    return all(math.frexp(abs(f))[0] == 0.5 and 2.0**-100 < abs(f) < 2.0**100 for f in factors)


def divided(builder: GraphBuilder, node: int, divisor: float, name: str) -> int:
    """``node / divisor``."""
    return node if divisor == 1.0 else builder.add(Scale(np.array(divisor), divides=True), node, name=name)


# ---------------------------------------------------------------- LayerNorm


def normalised(builder: GraphBuilder, centred: int, root: int, name: str) -> int | None:
    """``centred / root`` as LayerNorm; None if it is not that. Both have one shape."""
    op = builder.nodes[centred].op
    if not isinstance(op, Add) or not op.subtracts:
        return None
    x, mean = builder.nodes[centred].inputs
    axes = _mean_of(builder, mean, x)
    found = _step(builder, _unexpanded(builder, root), Pending, "Sqrt")
    if axes is None or found is None:
        return None
    shift = builder.nodes[found].op
    eps = scalar(shift.offset) if isinstance(shift, Shift) else None
    if eps is None or eps <= 0.0:
        return None
    (variance,) = builder.nodes[found].inputs
    op = builder.nodes[variance].op
    if not isinstance(op, Mean):
        return None
    (squares,) = builder.nodes[variance].inputs
    n = len(builder.shape(x))
    same = sorted(a % n for a in op.axes) == axes and op.keepdims
    product = builder.nodes[squares]
    # the centred value may have been computed twice
    if not same or not isinstance(product.op, Multiply) or not all(_same(builder, i, centred) for i in product.inputs):
        return None
    return builder.add(LayerNorm(len(axes), eps), x, name=name)


def _unexpanded(builder: GraphBuilder, node: int) -> int:
    return builder.nodes[node].inputs[0] if isinstance(builder.nodes[node].op, Expand) else node


def _step(builder: GraphBuilder, node: int, kind: type[Pending], step: str) -> int | None:
    op = builder.nodes[node].op
    return builder.nodes[node].inputs[0] if isinstance(op, kind) and op.step == step else None


def _mean_of(builder: GraphBuilder, node: int, x: int) -> list[int] | None:
    """The last axes over which the node is the mean of ``x``, expanded to its shape again."""
    node = _unexpanded(builder, node)
    op = builder.nodes[node].op
    if not isinstance(op, Mean) or builder.nodes[node].inputs != (x,) or not op.keepdims:
        return None
    n = len(builder.shape(x))
    axes = sorted(a % n for a in op.axes)
    return axes if axes == list(range(n - len(axes), n)) else None


def _same(builder: GraphBuilder, a: int, b: int, most: int = 8) -> bool:
    """Are the two nodes one computation?"""
    if a == b:
        return True
    one, other = builder.nodes[a], builder.nodes[b]
    if most <= 0 or len(one.inputs) != len(other.inputs) or not one.inputs or not _same_op(one.op, other.op):
        return False
    return all(_same(builder, i, j, most - 1) for i, j in zip(one.inputs, other.inputs, strict=True))


def _same_op(a: Op, b: Op) -> bool:
    if type(a) is not type(b) or not isinstance(a, (Add, Mean, Expand, Reshape)):
        return False
    return [p.tobytes() for p in a.parts()] == [p.tobytes() for p in b.parts()]


# ---------------------------------------------------------------- weights and biases written apart


def with_weight(builder: GraphBuilder, node: int, factor: F64, name: str, parameters: tuple[str, ...]) -> int | None:
    """``factor ∘ node`` where the node is a LayerNorm without a weight."""
    op, (inputs, names) = builder.nodes[node].op, (builder.nodes[node].inputs, builder.nodes[node].parameters)
    if not isinstance(op, LayerNorm) or op.weight is not None or op.bias is not None:
        return None
    shape = builder.shape(node)[-op.axes :]
    if factor.ndim > op.axes or np.broadcast_shapes(factor.shape, shape) != shape:
        return None
    weight = np.broadcast_to(factor, shape).copy()
    return builder.add(replace(op, weight=weight), *inputs, name=name, parameters=(*names, *parameters))


def with_bias(builder: GraphBuilder, node: int, offset: F64, name: str, parameters: tuple[str, ...]) -> int | None:
    """``node + offset`` where the node is a Linear or a LayerNorm without a bias."""
    op, (inputs, names) = builder.nodes[node].op, (builder.nodes[node].inputs, builder.nodes[node].parameters)
    shape = builder.shape(node)
    if isinstance(op, Linear) and op.bias is None:
        if offset.size != shape[-1] or offset.shape[-1:] != shape[-1:] or offset.ndim > len(shape):
            return None
        bias = offset.reshape(-1).copy()
        return builder.add(replace(op, bias=bias), *inputs, name=name, parameters=(*names, *parameters))
    if isinstance(op, LayerNorm) and op.bias is None and offset.shape == shape[-op.axes :]:
        return builder.add(replace(op, bias=offset.copy()), *inputs, name=name, parameters=(*names, *parameters))
    return None


__all__ = ["affine", "close", "gated", "normalised", "polynomial", "scalar", "scaled", "with_bias", "with_weight"]
