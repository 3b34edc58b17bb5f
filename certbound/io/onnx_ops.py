"""Operators of ONNX on values: one handler each, which adds nodes of the IR or refuses by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from certbound.activations import Activation
from certbound.arrays import F64
from certbound.io.onnx_constants import cast, cast_name, gather_elements_map, gather_nd_map
from certbound.io.onnx_patterns import gated, normalised, scalar, with_bias, with_weight
from certbound.io.onnx_tensors import Array
from certbound.io.onnx_values import Const, OnnxNode, Pending, PendingQuotient, Value
from certbound.io.quantised import dequantise
from certbound.ops import (
    AvgPool,
    BatchNorm,
    Clip,
    Concat,
    Conv,
    Expand,
    Gather,
    LayerNorm,
    Linear,
    MaxPool,
    Mean,
    Multiply,
    Op,
    Pad,
    Permute,
    Pointwise,
    Reshape,
    Scale,
    Shape,
    Shift,
    Slice,
    Softmax,
)

Result = Value | tuple[Value, ...]
Handler = Callable[[OnnxNode], Result]
Pairs = tuple[tuple[int, int], ...]
_MOST_INDICES: Final = 2**22
"""Of a Gather, which keeps them as Python's integers."""

# ---------------------------------------------------------------- arithmetic


def _sum(node: OnnxNode, a: Value, b: Value, *, subtracts: bool = False) -> Value:
    _counted(node, a, b)
    names = node.names(a, b)
    if not subtracts:
        for value, constant in ((a, b), (b, a)):
            if isinstance(value, int) and isinstance(constant, Const):
                joined = with_bias(node.builder, value, node.as_floats(constant), node.path, names)
                if joined is not None:
                    return joined
    operands = node.operand(a), node.operand(b)
    return node.result(node.builder.sum(*operands, subtracts=subtracts, name=node.path, parameters=names))


def _counted(node: OnnxNode, *values: Value) -> None:
    """Refuse a result beyond the limits before broadcasting makes it."""
    shapes = [node.shape(v) for v in values]
    try:
        shape = np.broadcast_shapes(*shapes)
    except ValueError:
        node.refuse(f"values of shapes {shapes}", "shapes that broadcast", "check the model")
    if math.prod(shape) > node.builder.limits.elements:
        node.refuse(f"a value of shape {shape}", "fewer numbers", "pass limits=OnnxLimits(…) if you trust the file")


def _product(node: OnnxNode, a: Value, b: Value) -> Value:
    _counted(node, a, b)
    names = node.names(a, b)
    for value, constant in ((a, b), (b, a)):
        if isinstance(value, int) and isinstance(constant, Const):
            factor = node.as_floats(constant)
            joined = with_weight(node.builder, value, factor, node.path, names)
            if joined is not None:
                return joined
            found = _unscaled(node, value, scalar(factor))
            if found is not None and node.shape(found) == np.broadcast_shapes(node.shape(value), factor.shape):
                return found
    if isinstance(a, int) and isinstance(b, int):
        for value, other in ((a, b), (b, a)):
            root = _unexpanded_step(node, other, "Reciprocal")
            if root is not None:
                return _quotient(node, value, root)
        if node.builder.shape(a) == node.builder.shape(b):
            found = gated(node.builder, a, b, node.path)
            if found is not None:
                return node.result(found)
    return node.result(node.builder.product(node.operand(a), node.operand(b), name=node.path, parameters=names))


def _unscaled(node: OnnxNode, value: int, factor: float | None) -> int | None:
    """What the value is 1/factor of, both powers of two: GELU's two halves."""
    op = node.builder.nodes[value].op
    if factor is None or not isinstance(op, Scale) or op.divides or math.frexp(factor)[0] != 0.5:
        return None
    return node.builder.nodes[value].inputs[0] if scalar(op.factor) == 1.0 / factor else None


def _unexpanded_step(node: OnnxNode, value: int, step: str) -> int | None:
    made = node.builder.nodes[value]
    if isinstance(made.op, Expand):
        made = node.builder.nodes[made.inputs[0]]
    return made.inputs[0] if isinstance(made.op, Pending) and made.op.step == step else None


def _quotient(node: OnnxNode, a: Value, b: Value) -> Value:
    _counted(node, a, b)
    if isinstance(b, Const):
        operands = node.operand(a), node.as_floats(b)
        return node.result(node.builder.quotient(*operands, name=node.path, parameters=node.names(a, b)))
    if isinstance(a, Const):
        if a.array.size == 1 and scalar(node.as_floats(a)) == 1.0 and node.shape(a) in ((), (1,)):
            return node.add(Pending("Reciprocal"), b)
        return node.add(PendingQuotient(), *_expanded(node, a, b))
    one, other = _expanded(node, a, b)
    found = normalised(node.builder, node.node(one), node.node(other), node.path)
    return node.add(PendingQuotient(), one, other) if found is None else node.result(found)


def _expanded(node: OnnxNode, a: Value, b: Value) -> tuple[Value, Value]:
    shape = tuple(np.broadcast_shapes(node.shape(a), node.shape(b)))
    return _expand_to(node, a, shape), _expand_to(node, b, shape)


def _expand_to(node: OnnxNode, value: Value, shape: Shape) -> Value:
    if node.shape(value) == shape:
        return value
    if isinstance(value, Const):
        node.reader.count(math.prod(shape), node.label)
        return Const(np.broadcast_to(value.array, shape), value.names)
    return node.add(Expand(shape), value)


def _add(node: OnnxNode) -> Result:
    return _sum(node, node.value(0), node.value(1))


def _sub(node: OnnxNode) -> Result:
    return _sum(node, node.value(0), node.value(1), subtracts=True)


def _mul(node: OnnxNode) -> Result:
    return _product(node, node.value(0), node.value(1))


def _div(node: OnnxNode) -> Result:
    return _quotient(node, node.value(0), node.value(1))


def _neg(node: OnnxNode) -> Result:
    return node.add(Scale(np.array(-1.0)), node.value(0))


def _total(node: OnnxNode) -> Result:
    total = node.value(0)
    for i in range(1, len(node.inputs)):
        total = _sum(node, total, node.value(i))
    if node.op == "Mean" and len(node.inputs) > 1:
        return node.add(Scale(np.array(float(len(node.inputs))), divides=True), total)
    return total


def _pow(node: OnnxNode) -> Result:
    x, exponent = node.value(0), scalar(node.const(1, "exponent").array.astype(np.float64))
    if exponent is None or node.shape(node.value(1)) not in ((), (1,)):
        node.refuse("exponents that differ", "one exponent")
    if exponent == 2.0:
        return node.add(Multiply(), x, x)
    if exponent == 3.0:
        return node.add(Multiply(), node.add(Multiply(), x, x), x)
    if exponent == 1.0:
        return x
    if exponent in (0.5, -0.5):
        root = node.add(Pending("Sqrt"), x)
        return root if exponent == 0.5 else node.add(Pending("Reciprocal"), root)
    return node.refuse(f"the exponent {exponent:g}", "1, 2 or 3, or a root within a normalisation")


def _pending(node: OnnxNode) -> Result:
    return node.add(Pending(node.op), node.value(0))


# ---------------------------------------------------------------- affine layers


def _matmul(node: OnnxNode) -> Result:
    return _matrix_product(node, node.value(0), node.value(1))


def _matrix_product(node: OnnxNode, a: Value, b: Value) -> Value:
    one, other = node.shape(a), node.shape(b)
    try:
        batch = np.broadcast_shapes(one[:-2], other[:-2])
    except ValueError:
        node.refuse(f"matrices of shapes {one} and {other}", "shapes that fit", "check the model")
    rows, columns = (one[-2] if len(one) > 1 else 1), (other[-1] if len(other) > 1 else 1)
    biggest = math.prod(batch) * max(rows * columns, math.prod(one[-2:]), math.prod(other[-2:]))
    if biggest > node.builder.limits.elements:
        node.refuse(f"matrices of shapes {one} and {other}", "fewer numbers", "pass limits=OnnxLimits(…)")
    if isinstance(a, Const) and isinstance(b, Const):
        node.reader.count(math.prod(batch) * rows * columns, node.label)
        node.builder.work += math.prod(batch) * rows * columns * (one or (1,))[-1]
        if node.builder.work > node.builder.limits.work:
            node.refuse("too many multiplications", "less work", "pass limits=OnnxLimits(…)")
    found = node.builder.matmul(node.operand(a), node.operand(b), name=node.path, parameters=node.names(a, b))
    return node.result(found)


def _exact_product(factor: float, array: F64) -> F64 | None:
    """``factor · array`` if no product is rounded: both hold numbers of 24 bits, far from the ends of the range."""
    small = np.abs(array)
    short = float(np.float32(factor)) == factor and bool(np.all(array.astype(np.float32) == array))
    inside = short and bool(np.all((small == 0.0) | (small > 2.0**-200))) and 2.0**-200 < abs(factor) < 2.0**200
    return factor * array if inside else None


def _scaled(node: OnnxNode, factor: float, value: Value) -> Value:
    if factor == 1.0:
        return value
    if isinstance(value, Const):
        exact = _exact_product(factor, node.as_floats(value))
        return Const(factor * node.as_floats(value) if exact is None else exact, value.names)
    return node.add(Scale(np.array(factor)), value)


def _gemm(node: OnnxNode) -> Result:
    a, b = node.value(0), node.value(1)
    alpha, beta = node.number("alpha", 1.0), node.number("beta", 1.0)
    turned = bool(node.integer("transA", 0)), bool(node.integer("transB", 0))
    if len(node.shape(a)) != 2 or len(node.shape(b)) != 2:
        node.refuse(f"values of shapes {node.shape(a)} and {node.shape(b)}", "two matrices", "check the model")
    if turned[0]:
        a = _permuted(node, a, (1, 0))
    c = node.value(2) if node.given(2) else None
    if isinstance(b, Const) and not isinstance(a, Const):
        weight = node.floats(1, "weight") if turned[1] else node.floats(1, "weight").T
        exact = weight if alpha == 1.0 else _exact_product(alpha, weight)
        y = node.add(Linear(weight if exact is None else exact), a, parameters=b.names)
        y = _scaled(node, alpha, y) if exact is None else y
    else:
        y = _scaled(node, alpha, _matrix_product(node, a, _permuted(node, b, (1, 0)) if turned[1] else b))
    if c is None or beta == 0.0:
        return y
    if np.broadcast_shapes(node.shape(y), node.shape(c)) != node.shape(y):
        node.refuse(f"C of shape {node.shape(c)} for {node.shape(y)}", "a C that broadcasts", "check the model")
    return _sum(node, y, _scaled(node, beta, c))


def _batch_norm(node: OnnxNode) -> Result:
    if node.integer("training_mode", 0) or node.integer("spatial", 1) != 1:
        node.refuse("training mode", "evaluation mode, one number per channel", "export it in eval mode")
    node.number("momentum", 0.9)
    node.integer("is_test", 1)
    weight, bias, mean, variance = (node.floats(i, what) for i, what in
                                    ((1, "scale"), (2, "bias"), (3, "mean"), (4, "variance")))  # fmt: skip
    op = BatchNorm(mean, variance, node.number("epsilon", float(np.float32(1e-5))), weight, bias)
    return node.add(op, node.value(0), parameters=node.names(*node.inputs[1:]))


def _layer_norm(node: OnnxNode) -> Result:
    n = len(node.shape(node.value(0)))
    axes = n - node.axis(node.integer("axis", -1), n)
    node.integer("stash_type", 1)
    weight = node.floats(1, "scale")
    bias = node.floats(2, "bias") if node.given(2) else None
    shape = node.shape(node.value(0))[-axes:]
    op = LayerNorm(
        axes,
        node.number("epsilon", float(np.float32(1e-5))),
        np.broadcast_to(weight, shape).copy() if weight.ndim <= axes else weight,
        np.broadcast_to(bias, shape).copy() if bias is not None and bias.ndim <= axes else bias,
    )
    return node.add(op, node.value(0), parameters=node.names(*node.inputs[1:]))


# ---------------------------------------------------------------- convolution and pooling


def _pairs(node: OnnxNode, pads: Sequence[int], axes: int) -> Pairs:
    if len(pads) != 2 * axes or any(p < 0 for p in pads):
        node.refuse(f"pads {tuple(pads)}", f"{2 * axes} integers >= 0", "crop by a Slice before it")
    return tuple(zip(pads[:axes], pads[axes:], strict=True))


def _padding(
    node: OnnxNode, sizes: Shape, spans: Sequence[int], strides: Sequence[int], *, attribute: bool = True
) -> Pairs:
    """(low, high) of every axis, from pads or auto_pad."""
    axes = len(sizes)
    auto = node.text("auto_pad", "NOTSET")
    pads = node.integers("pads") if attribute else None
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        found: list[tuple[int, int]] = []
        for n, span, s in zip(sizes, spans, strides, strict=True):
            total = max(0, (-(-n // s) - 1) * s + span - n)
            less = total // 2
            found.append((less, total - less) if auto == "SAME_UPPER" else (total - less, less))
        return tuple(found)
    if auto not in ("NOTSET", "VALID"):
        node.refuse(f"auto_pad {auto!r}", "NOTSET, VALID, SAME_UPPER or SAME_LOWER", "write it again")
    return ((0, 0),) * axes if pads is None or auto == "VALID" else _pairs(node, pads, axes)


def _spatial(node: OnnxNode, value: Value) -> Shape:
    shape = node.shape(value)
    if len(shape) < 3:
        node.refuse(f"a value of shape {shape}", "channels and spatial axes", "check the model")
    return shape[2:]


def _per_axis(node: OnnxNode, name: str, axes: int) -> tuple[int, ...]:
    found = node.integers(name) or (1,) * axes
    if len(found) != axes or any(v < 1 for v in found):
        node.refuse(f"{name} {found}", f"{axes} integers >= 1", "write it again")
    return found


def _conv(node: OnnxNode) -> Result:
    x, weight = node.value(0), node.floats(1, "weight")
    sizes = _spatial(node, x)
    kernel = node.integers("kernel_shape") or weight.shape[2:]
    if weight.ndim != 2 + len(sizes) or tuple(kernel) != weight.shape[2:]:
        node.refuse(f"a weight of shape {weight.shape} for a kernel {kernel}", "shapes that fit", "write it again")
    strides, dilations = (_per_axis(node, name, len(sizes)) for name in ("strides", "dilations"))
    spans = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
    padding = _padding(node, sizes, spans, strides)
    bias = node.floats(2, "bias") if node.given(2) else None
    op = Conv(weight, bias, strides, padding, dilations, node.integer("group", 1))
    return node.add(op, x, parameters=node.names(*node.inputs[1:]))


def _window(node: OnnxNode, dilated: bool) -> tuple[Shape, Shape, Shape, Shape, Pairs, Pairs]:
    """kernel, strides, dilations, sizes, pads, and how much more on the high side ceil_mode adds."""
    sizes = _spatial(node, node.value(0))
    n = len(sizes)
    kernel = node.integers("kernel_shape") or ()
    if len(kernel) != n or any(k < 1 for k in kernel):
        node.refuse(f"kernel_shape {kernel} for {n} spatial axes", "one length per axis", "write it again")
    strides, dilations = _per_axis(node, "strides", n), _per_axis(node, "dilations", n)
    if not dilated and any(d != 1 for d in dilations):
        node.refuse(f"dilations {dilations}", "none in an average")
    spans = tuple(d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True))
    pads = _padding(node, sizes, spans, strides)
    more: list[tuple[int, int]] = []
    ceil = bool(node.integer("ceil_mode", 0))
    for size, span, s, (low, high) in zip(sizes, spans, strides, pads, strict=True):
        room = size + low + high - span
        windows = -(-room // s) + 1
        if (windows - 1) * s >= size + low:
            windows -= 1  # a window that begins in the padding is left out
        more.append((0, max(0, (windows - 1) * s - room) if ceil else 0))
    return kernel, strides, dilations, sizes, pads, tuple(more)


def _max_pool(node: OnnxNode) -> Result:
    node.integer("storage_order", 0)
    kernel, strides, dilations, _, pads, more = _window(node, dilated=True)
    padding = tuple((low, high + extra) for (low, high), (_, extra) in zip(pads, more, strict=True))
    return node.add(MaxPool(kernel, strides, padding, dilations), node.value(0))


def _average_pool(node: OnnxNode) -> Result:
    kernel, strides, _, _, pads, more = _window(node, dilated=False)
    counted = bool(node.integer("count_include_pad", 0))
    if any(extra for _, extra in more):
        if counted and any(any(p) for p in pads):
            node.refuse("ceil_mode with padding that counts in the divisor", "one of the two")
        counted = False  # what ceil_mode adds never counts
    padding = tuple((low, high + extra) for (low, high), (_, extra) in zip(pads, more, strict=True))
    if not any(any(p) for p in padding):
        counted = True  # without padding the two are the same: one spelling
    return node.add(AvgPool(kernel, strides, padding, counted), node.value(0))


def _global_average(node: OnnxNode) -> Result:
    sizes = _spatial(node, node.value(0))
    return node.add(Mean(tuple(range(2, 2 + len(sizes))), keepdims=True), node.value(0))


def _global_max(node: OnnxNode) -> Result:
    sizes = _spatial(node, node.value(0))
    return node.add(MaxPool(sizes, (1,) * len(sizes), ((0, 0),) * len(sizes)), node.value(0))


def _reduce(node: OnnxNode) -> Result:
    x = node.value(0)
    n = len(node.shape(x))
    axes = node.whole_or_attribute(1, "axes", 13 if node.op == "ReduceSum" else 18)
    keep = bool(node.integer("keepdims", 1))
    nothing = bool(node.integer("noop_with_empty_axes", 0))
    if not axes and nothing:
        return x
    chosen = tuple(sorted(node.axis(a, n) for a in axes)) if axes else tuple(range(n))
    if not chosen:
        return x
    op = Mean(chosen, keep)
    mean = node.add(op, x)
    return mean if node.op == "ReduceMean" else node.add(Scale(np.array(float(op.count(node.shape(x))))), mean)


# ---------------------------------------------------------------- elementwise and softmax


def _pointwise(name: Any) -> Handler:
    return lambda node: node.add(Pointwise(Activation(name)), node.value(0))


def _leaky_relu(node: OnnxNode) -> Result:
    slope = node.number("alpha", float(np.float32(0.01)))
    return node.add(Pointwise(Activation("leaky_relu", slope)), node.value(0))


def _prelu(node: OnnxNode) -> Result:
    slopes = node.floats(1, "slope")
    if slopes.size == 0 or not bool(np.all(slopes == slopes.reshape(-1)[0])):
        node.refuse("slopes that differ between channels", "one slope")
    _counted(node, node.value(0), node.value(1))
    activation = Activation("leaky_relu", float(slopes.reshape(-1)[0]))
    return node.add(Pointwise(activation), node.value(0), parameters=node.names(node.value(1)))


def _gelu(node: OnnxNode) -> Result:
    form = node.text("approximate", "none")
    if form not in ("none", "tanh"):
        node.refuse(f"approximate {form!r}", "'none' or 'tanh'", "write it again")
    return node.add(Pointwise(Activation("gelu" if form == "none" else "gelu_tanh")), node.value(0))


def _swish(node: OnnxNode) -> Result:
    x, alpha = node.value(0), node.number("alpha", 1.0)
    if alpha == 0.0:
        node.refuse("alpha 0", "a number that is not 0", "divide by 2 instead")
    inner = node.add(Scale(np.array(alpha)), x) if alpha != 1.0 else x
    y = node.add(Pointwise(Activation("silu")), inner)
    return node.add(Scale(np.array(alpha), divides=True), y) if alpha != 1.0 else y


def _hard_sigmoid(node: OnnxNode) -> Result:
    alpha, beta = node.number("alpha", float(np.float32(0.2))), node.number("beta", 0.5)
    return node.add(Clip(0.0, 1.0), node.add(Shift(np.array(beta)), node.add(Scale(np.array(alpha)), node.value(0))))


def _clip_op(low: float, high: float) -> Op:
    return Pointwise(Activation("relu")) if (low, high) == (0.0, math.inf) else Clip(low, high)


def _clip(node: OnnxNode) -> Result:
    ends: list[float] = []
    for i, (name, default) in enumerate((("min", -math.inf), ("max", math.inf))):
        if node.opset >= 11:
            found = scalar(node.floats(i + 1, name)) if node.given(i + 1) else default
        else:
            found = node.number(name, default)
        if found is None:
            node.refuse(f"several numbers as {name}", "one", "write it again")
        outward = -found if name == "min" else found
        open_ = outward >= float(np.finfo(np.float32).max)  # how older exporters write that there is no end
        ends.append(default if open_ else found)
    return node.value(0) if ends == [-math.inf, math.inf] else node.add(_clip_op(*ends), node.value(0))


def _extreme(node: OnnxNode) -> Result:
    """Max or Min with one number: a relu, or a clip with one end."""
    numbers = [v for v in map(node.value, range(len(node.inputs))) if isinstance(v, Const)]
    values = [v for v in map(node.value, range(len(node.inputs))) if not isinstance(v, Const)]
    if len(values) != 1 or any(v.array.size != 1 for v in numbers):
        node.refuse("a maximum or minimum of values", "one value and a number")
    x: Value = values[0]
    for v in numbers:
        found = float(node.as_floats(v).reshape(-1)[0])
        shape = tuple(np.broadcast_shapes(node.shape(x), node.shape(v)))
        x = node.add(_clip_op(*((found, math.inf) if node.op == "Max" else (-math.inf, found))), x)
        x = _reshaped(node, x, shape)
    return x


def _softmax(node: OnnxNode) -> Result:
    x = node.value(0)
    shape = node.shape(x)
    axis = node.axis(node.integer("axis", -1 if node.opset >= 13 else 1), len(shape))
    if node.opset >= 13 or axis == len(shape) - 1:
        return node.add(Softmax(axis - len(shape)), x)
    # until opset 12: of everything from the axis on, as one
    flat = _reshaped(node, x, (math.prod(shape[:axis]), math.prod(shape[axis:])))
    return _reshaped(node, node.add(Softmax(-1), flat), shape)


def _attention(node: OnnxNode) -> Result:
    if any(node.given(i) for i in range(4, len(node.inputs))) or node.integer("is_causal", 0):
        node.refuse("a cache, a causal mask or lengths", "attention of one sample, with a constant mask at most")
    if node.number("softcap", 0.0) or node.integer("qk_matmul_output_mode", 0):
        node.refuse("softcap", "plain softmax")
    if not isinstance(node.attributes.get("softmax_precision", 1), int):
        node.refuse("an odd softmax_precision", "a type", "write it again")
    node.used.add("softmax_precision")
    shapes = [node.shape(node.value(i)) for i in range(3)]
    heads = node.integer("q_num_heads", 0), node.integer("kv_num_heads", 0)
    if any(len(s) != 4 for s in shapes) or any(heads) or len({s[1] for s in shapes}) != 1:
        node.refuse(f"values of shapes {shapes}", "(1, heads, tokens, width) with equally many heads")
    scale = node.number("scale", 0.0) if "scale" in node.attributes else None
    mask = node.floats(3, "mask") if node.given(3) else None
    q, k, v = (node.node(node.value(i)) for i in range(3))
    return node.result(node.builder.attention(q, k, v, scale=scale, mask=mask, name=node.path))


# ---------------------------------------------------------------- moving numbers (values and constants alike)


def _reshaped(node: OnnxNode, value: Value, shape: Shape) -> Value:
    if node.shape(value) == shape:
        return value
    if math.prod(node.shape(value)) != math.prod(shape):
        node.refuse(f"a value of shape {node.shape(value)} to {shape}", "equally many numbers", "see input_shape")
    return Const(value.array.reshape(shape), value.names) if isinstance(value, Const) else node.add(
        Reshape(shape), value)  # fmt: skip


def _permuted(node: OnnxNode, value: Value, axes: Sequence[int]) -> Value:
    n = len(node.shape(value))
    order = tuple(node.axis(a, n) for a in axes)
    if sorted(order) != list(range(n)):
        node.refuse(f"axes {order}", "a permutation", "write it again")
    if isinstance(value, Const):
        return Const(value.array.transpose(order), value.names)
    return value if order == tuple(range(n)) else node.add(Permute(order), value)


def _taken(node: OnnxNode, value: Value, axis: int, indices: Sequence[int]) -> Value:
    """Entries of one axis, by indices >= 0."""
    shape = node.shape(value)
    node.reader.count(math.prod(shape[:axis]) * len(indices) * math.prod(shape[axis + 1 :]), node.label)
    if len(indices) > _MOST_INDICES and not isinstance(indices, range):
        node.refuse(f"{len(indices):,} indices", f"at most {_MOST_INDICES:,}")
    ends = (indices[0], indices[-1]) if isinstance(indices, range) and indices else indices
    if not all(0 <= i < shape[axis] for i in ends):
        node.refuse(f"indices outside an axis of {shape[axis]}", "indices within it", "see input_shape")
    if isinstance(value, Const):
        return Const(np.take(value.array, np.array(indices, dtype=np.int64), axis=axis), value.names)
    if not indices:
        node.refuse("an empty part of a value", "numbers", "check the model")
    start, step = indices[0], (indices[1] - indices[0] if len(indices) > 1 else 1)
    run = range(start, indices[-1] + 1, step) if step >= 1 else range(0)
    if indices == run or (len(indices) == len(run) and all(i == j for i, j in zip(indices, run, strict=True))):
        stop = indices[-1] + 1
        return value if (start, stop, step) == (0, shape[axis], 1) else node.add(Slice(axis, start, stop, step), value)
    return node.add(Gather(axis, tuple(indices)), value)


def _rearranged(node: OnnxNode, value: Value, places: Any) -> Value:
    """The numbers at flat places, in the places' shape."""
    if places.size > _MOST_INDICES:
        node.refuse(f"{places.size:,} indices", f"at most {_MOST_INDICES:,}")
    flat = _reshaped(node, value, (math.prod(node.shape(value)),))
    return _reshaped(node, _taken(node, flat, 0, [int(i) for i in places.reshape(-1)]), tuple(places.shape))


def _identity(node: OnnxNode) -> Result:
    return node.value(0)


def _reshape(node: OnnxNode) -> Result:
    shape, target = node.shape(node.value(0)), node.whole(1, "shape")
    if not node.integer("allowzero", 0):
        if any(n == 0 and i >= len(shape) for i, n in enumerate(target)):
            node.refuse(f"the shape {target}", "a 0 only where there is an axis", "write it again")
        target = [shape[i] if n == 0 else n for i, n in enumerate(target)]
    if target.count(-1) > 1 or any(n < -1 for n in target) or (-1 in target and 0 in target):
        node.refuse(f"the shape {target}", "lengths, at most one of them -1", "write it again")
    rest = math.prod(n for n in target if n != -1)
    if -1 in target and rest:
        target[target.index(-1)] = math.prod(shape) // rest
    return _reshaped(node, node.value(0), tuple(target))


def _flatten(node: OnnxNode) -> Result:
    shape = node.shape(node.value(0))
    axis = node.integer("axis", 1)
    if not -len(shape) <= axis <= len(shape):
        node.refuse(f"axis {axis} of {shape}", "an axis that it has", "write it again")
    axis = axis + len(shape) if axis < 0 else axis
    return _reshaped(node, node.value(0), (math.prod(shape[:axis]), math.prod(shape[axis:])))


def _squeeze(node: OnnxNode) -> Result:
    shape, axes = node.shape(node.value(0)), node.whole_or_attribute(1, "axes", 13)
    chosen = [i for i, n in enumerate(shape) if n == 1] if axes is None else [node.axis(a, len(shape)) for a in axes]
    if any(shape[a] != 1 for a in chosen):
        node.refuse(f"axes {chosen} of {shape}", "axes of length 1", "see input_shape")
    return _reshaped(node, node.value(0), tuple(n for i, n in enumerate(shape) if i not in chosen))


def _unsqueeze(node: OnnxNode) -> Result:
    shape, axes = list(node.shape(node.value(0))), node.whole_or_attribute(1, "axes", 13) or []
    chosen = {node.axis(a, len(shape) + len(axes)) for a in axes}
    if len(chosen) != len(axes):
        node.refuse(f"axes {axes}", "different axes", "write it again")
    for a in sorted(chosen):
        shape.insert(a, 1)
    return _reshaped(node, node.value(0), tuple(shape))


def _transpose(node: OnnxNode) -> Result:
    n = len(node.shape(node.value(0)))
    axes = node.integers("perm")
    return _permuted(node, node.value(0), tuple(reversed(range(n))) if axes is None else axes)


def _slice(node: OnnxNode) -> Result:
    value = node.value(0)
    n = len(node.shape(value))
    if node.opset >= 10:
        starts, stops = node.whole(1, "starts"), node.whole(2, "ends")
        axes = node.whole(3, "axes") if node.given(3) else list(range(len(starts)))
        steps = node.whole(4, "steps") if node.given(4) else [1] * len(starts)
    else:
        starts, stops = list(node.integers("starts") or ()), list(node.integers("ends") or ())
        axes, steps = list(node.integers("axes") or range(len(starts))), [1] * len(starts)
    if not len(starts) == len(stops) == len(axes) == len(steps) or 0 in steps:
        node.refuse("starts, ends, axes and steps that do not fit", "equally many, no step 0", "write it again")
    for start, stop, a, step in zip(starts, stops, axes, steps, strict=True):
        axis = node.axis(a, n)
        value = _taken(node, value, axis, range(*slice(start, stop, step).indices(node.shape(value)[axis])))
    return value


def _gather(node: OnnxNode) -> Result:
    value, indices = node.value(0), node.const(1, "indices").array
    shape = node.shape(value)
    axis = node.axis(node.integer("axis", 0), len(shape))
    if indices.dtype != np.int64 or not shape:
        node.refuse(f"indices of {indices.dtype}", "integers", "write it again")
    flat = [int(i) + (shape[axis] if i < 0 else 0) for i in indices.reshape(-1)]
    found = _taken(node, value, axis, flat)
    return _reshaped(node, found, (*shape[:axis], *indices.shape, *shape[axis + 1 :]))


def _gather_elements(node: OnnxNode) -> Result:
    value = node.value(0)
    return _rearranged(node, value, gather_elements_map(node, node.shape(value), node.const(1, "indices").array))


def _gather_nd(node: OnnxNode) -> Result:
    value = node.value(0)
    return _rearranged(node, value, gather_nd_map(node, node.shape(value), node.const(1, "indices").array))


def _split(node: OnnxNode) -> Result:
    value, n_outputs = node.value(0), len(node.proto.output)
    axis = node.axis(node.integer("axis", 0), len(node.shape(value)))
    length, sizes = node.shape(value)[axis], node.whole_or_attribute(1, "split", 13)
    if sizes is None:
        n = node.integer("num_outputs", n_outputs)
        part = -(-length // max(n, 1))
        sizes = [min(part, length - i * part) for i in range(n_outputs)]
        if n != n_outputs or (node.opset < 18 and length % n):
            node.refuse(f"{n_outputs} parts of {length}", "equal parts", "write it again")
    if len(sizes) != n_outputs or sum(sizes) != length or any(s < 0 for s in sizes):
        node.refuse(f"parts {sizes} of an axis of {length}", "parts that add up", "write it again")
    found, start = list[Value](), 0
    for size in sizes:
        found.append(_taken(node, value, axis, range(start, start + size)))
        start += size
    return tuple(found)


def _concat(node: OnnxNode) -> Result:
    values = [node.value(i) for i in range(len(node.inputs))]
    if not values:
        node.refuse("no values", "at least one", "write it again")
    axis = node.axis(node.integer("axis", 1), len(node.shape(values[0])))
    if all(isinstance(v, Const) for v in values):
        arrays = [v.array for v in values if isinstance(v, Const)]
        node.reader.count(sum(a.size for a in arrays), node.label)
        if len({a.dtype for a in arrays}) != 1:
            node.refuse("constants of different types", "one type", "write it again")
        return Const(np.concatenate(arrays, axis=axis), node.names(*values))
    parts = [v for v in values if 0 not in node.shape(v)]
    return parts[0] if len(parts) == 1 else node.add(Concat(axis), *parts)


def _expand(node: OnnxNode) -> Result:
    target = node.whole(1, "shape")
    if any(n < 0 for n in target):
        node.refuse(f"the shape {target}", "lengths >= 0", "write it again")
    return _expand_to(node, node.value(0), tuple(np.broadcast_shapes(node.shape(node.value(0)), tuple(target))))


def _tile(node: OnnxNode) -> Result:
    value, repeats = node.value(0), node.whole(1, "repeats")
    shape = node.shape(value)
    if len(repeats) != len(shape) or any(n < 1 for n in repeats):
        node.refuse(f"repeats {repeats} for {shape}", "one number >= 1 per axis", "write it again")
    node.reader.count(math.prod(shape) * math.prod(repeats), node.label)
    for axis, times in enumerate(repeats):
        if times > 1:
            value = _taken(node, value, axis, list(range(shape[axis])) * times)
    return value


def _pad(node: OnnxNode) -> Result:
    value = node.value(0)
    shape = node.shape(value)
    mode = node.text("mode", "constant")
    fill = 0.0
    if node.opset >= 11:
        pads = node.whole(1, "pads")
        if node.given(2):
            fill = float(node.const(2, "constant_value").array.reshape(-1)[:1].sum())
    else:
        pads, fill = list(node.integers("pads") or ()), node.number("value", 0.0)
    axes = node.whole(3, "axes") if node.given(3) else list(range(len(shape)))
    if len(pads) != 2 * len(axes):
        node.refuse(f"pads {pads} for {len(axes)} axes", "two per axis", "write it again")
    pairs = {node.axis(a, len(shape)): (pads[i], pads[i + len(axes)]) for i, a in enumerate(axes)}
    names = {"constant": "constant", "reflect": "reflect", "edge": "edge", "wrap": "wrap"}
    if mode not in names or len(pairs) != len(axes):
        node.refuse(f"mode {mode!r} on axes {axes}", f"one of {list(names)}, each axis once", "write it again")
    if any(min(p) < 0 for p in pairs.values()):
        node.refuse(f"pads {pads}", "numbers >= 0", "crop with a Slice")
    positive = tuple(pairs.get(i, (0, 0)) for i in range(len(shape)))
    if not any(any(p) for p in positive):
        return value
    node.reader.count(math.prod(n + low + high for n, (low, high) in zip(shape, positive, strict=True)), node.label)
    if mode != "constant":
        for axis, (low, high) in enumerate(positive):
            n = node.shape(value)[axis]
            if (mode == "reflect" and max(low, high) >= n) or (mode == "wrap" and max(low, high) > n):
                node.refuse(f"pads {(low, high)} of an axis of {n}", f"less for mode {mode}", "check the model")
            if low or high:
                places: Array = np.pad(np.arange(n), (low, high), mode=mode)  # type: ignore[arg-type,call-overload]
                value = _taken(node, value, axis, [int(i) for i in places])
        return value
    if isinstance(value, Const):
        return Const(np.pad(value.array, positive, constant_values=np.asarray(fill, value.array.dtype)), value.names)
    return node.add(Pad(positive, fill), value)


def _where(node: OnnxNode) -> Result:
    chosen = node.const(0, "condition").array
    if chosen.dtype != np.bool_:
        node.refuse(f"a condition of {chosen.dtype}", "booleans", "write it again")
    mask = Const(chosen.astype(np.float64)), Const((~chosen).astype(np.float64))
    _counted(node, *(node.value(i) for i in range(3)))
    parts: list[Value] = []
    for keep, value in zip(mask, (node.value(1), node.value(2)), strict=True):
        if isinstance(value, Const):
            array = np.where(keep.array != 0.0, node.as_floats(value), 0.0)
            parts.append(Const(array, value.names))
        else:
            parts.append(node.result(node.builder.product(value, keep.array, name=node.path)))
    return _sum(node, *parts)


def _depth_to_space(node: OnnxNode) -> Result:
    shape, b = node.shape(node.value(0)), node.integer("blocksize")
    mode = node.text("mode", "DCR")
    if len(shape) != 4 or b < 1 or shape[1] % (b * b) or mode not in ("DCR", "CRD"):
        node.refuse(f"blocks of {b} in {shape}, mode {mode!r}", "an image whose channels they divide", "write it again")
    n, c, h, w = shape
    first = (n, b, b, c // (b * b), h, w) if mode == "DCR" else (n, c // (b * b), b, b, h, w)
    order = (0, 3, 4, 1, 5, 2) if mode == "DCR" else (0, 1, 4, 2, 5, 3)
    apart = _permuted(node, _reshaped(node, node.value(0), first), order)
    return _reshaped(node, apart, (n, c // (b * b), h * b, w * b))


def _space_to_depth(node: OnnxNode) -> Result:
    shape, b = node.shape(node.value(0)), node.integer("blocksize")
    mode = node.text("mode", "DCR")  # since opset 27
    if len(shape) != 4 or b < 1 or shape[2] % b or shape[3] % b or mode not in ("DCR", "CRD"):
        node.refuse(f"blocks of {b} in {shape}, mode {mode!r}", "an image that they divide", "write it again")
    n, c, h, w = shape
    order = (0, 3, 5, 1, 2, 4) if mode == "DCR" else (0, 1, 3, 5, 2, 4)
    apart = _permuted(node, _reshaped(node, node.value(0), (n, c, h // b, b, w // b, b)), order)
    return _reshaped(node, apart, (n, c * b * b, h // b, w // b))


# ---------------------------------------------------------------- the rest


def _constant(node: OnnxNode) -> Result:
    if node.inputs or len(node.attributes) != 1:
        node.refuse("not one attribute", "one value", "write it again")
    ((name, value),) = node.attributes.items()
    kinds = {"value": np.ndarray, "value_float": float, "value_floats": list, "value_int": int, "value_ints": list}
    if name not in kinds:
        node.refuse(f"the attribute {name}", "numbers", "write it again")
    value = node.attribute(name, kinds[name])
    if isinstance(value, np.ndarray):
        return Const(value)
    return Const(np.asarray(value, dtype=np.float64 if name.startswith("value_float") else np.int64))


def _shape_of(node: OnnxNode) -> Result:
    shape = node.shape(node.value(0))
    if node.op == "Size":
        return Const(np.asarray(math.prod(shape), dtype=np.int64))
    start, end = node.integer("start", 0), node.integer("end", len(shape))
    return Const(np.asarray(shape[start:end] if shape else (), dtype=np.int64))


def _cast(node: OnnxNode) -> Result:
    value, number = node.value(0), node.integer("to")
    node.integer("saturate", 1)
    if isinstance(value, Const):
        return Const(cast(node, value.array, number), value.names)
    name = cast_name(node, number)
    if "float" not in name:
        node.refuse(f"a cast of a value to {name}", "a cast to floats: rounding to integers is not Lipschitz")
    return value  # in exact arithmetic a cast between floats changes nothing


def _cast_like(node: OnnxNode) -> Result:
    value, like = node.value(0), node.value(1)
    mine = value.array.dtype if isinstance(value, Const) else np.dtype(np.float64)
    other = like.array.dtype if isinstance(like, Const) else np.dtype(np.float64)
    if mine != other:
        if not isinstance(value, Const) or other != np.float64:
            node.refuse(f"a cast of {mine} to {other}", "a cast to floats")
        return Const(value.array.astype(np.float64), value.names)
    return value


def _dropout(node: OnnxNode) -> Result:
    node.number("ratio", 0.5)
    node.integer("seed", 0)
    node.integer("is_test", 1)
    if node.given(2) and bool(np.any(node.const(2, "training_mode").array)):
        node.refuse("training mode", "evaluation mode", "export it in eval mode")
    return node.value(0)


def _dequantize(node: OnnxNode) -> Result:
    q, scale = node.const(0, "value").array, node.floats(1, "scale")
    zero = node.const(2, "zero point").array if node.given(2) else np.zeros(scale.shape, dtype=np.int64)
    if node.integer("block_size", 0) or node.integer("output_dtype", 0) or scale.shape != zero.shape:
        node.refuse("scales in blocks", "one scale, or one per entry of an axis")
    axis = node.integer("axis", 1)
    node.reader.count(q.size, node.label)
    where = None if scale.size == 1 else node.axis(axis, q.ndim)
    return Const(dequantise(q, scale.reshape(-1), zero.reshape(-1), axis=where), node.names(*node.inputs))


HANDLERS: Final[dict[str, Handler]] = {
    "Add": _add, "Sub": _sub, "Mul": _mul, "Div": _div, "Neg": _neg, "Sum": _total, "Mean": _total, "Pow": _pow,
    "Erf": _pending, "Sqrt": _pending, "Reciprocal": _pending, "MatMul": _matmul, "Gemm": _gemm, "Conv": _conv,
    "BatchNormalization": _batch_norm, "LayerNormalization": _layer_norm, "MaxPool": _max_pool,
    "AveragePool": _average_pool, "GlobalAveragePool": _global_average, "GlobalMaxPool": _global_max,
    "ReduceMean": _reduce, "ReduceSum": _reduce, "Relu": _pointwise("relu"), "Tanh": _pointwise("tanh"),
    "Sigmoid": _pointwise("sigmoid"), "LeakyRelu": _leaky_relu, "PRelu": _prelu, "Gelu": _gelu, "Swish": _swish,
    "HardSigmoid": _hard_sigmoid, "Clip": _clip, "Max": _extreme, "Min": _extreme, "Softmax": _softmax,
    "Attention": _attention, "Identity": _identity, "Reshape": _reshape, "Flatten": _flatten, "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze, "Transpose": _transpose, "Slice": _slice, "Gather": _gather,
    "GatherElements": _gather_elements, "GatherND": _gather_nd, "Split": _split, "Concat": _concat,
    "Expand": _expand, "Tile": _tile, "Pad": _pad, "Where": _where, "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth, "Constant": _constant, "Shape": _shape_of, "Size": _shape_of, "Cast": _cast,
    "CastLike": _cast_like, "Dropout": _dropout, "DequantizeLinear": _dequantize,
}  # fmt: skip
"""Operator → handler. What is not here is refused, unless all its inputs are constants and it is folded."""

MOVES: Final = frozenset(
    {"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Gather", "Split", "Concat",
     "Expand", "Pad", "Constant", "Shape", "Size", "Cast", "CastLike", "Dropout", "DequantizeLinear"}
)  # fmt: skip
"""Handlers that take constants of any type as they are."""

__all__ = ["HANDLERS", "MOVES"]
