"""How each ATen operation becomes nodes of a :class:`~certbound.graph.Graph`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn, cast

import numpy as np
import torch
from torch import fx

from certbound.activations import Activation
from certbound.arrays import F64
from certbound.io.exported_program import TRAINING, Call, Const, Translation, Value, parameters_of, per_axis
from certbound.ops import (
    AdaptiveAvgPool,
    AvgPool,
    BatchNorm,
    Clip,
    Conv,
    Gather,
    LayerNorm,
    Linear,
    MaxPool,
    Mean,
    Pad,
    Pads,
    Pointwise,
    Roll,
    Scale,
    Shape,
    Slice,
    Softmax,
)

Method = Callable[[Translation, Call], Any]

# -- affine operations ------------------------------------------------------------------------------------------------


def _linear(t: Translation, c: Call) -> int:
    op = Linear(t.weight(c, "weight"), t.weight(c, "bias"))
    return t.add(c, op, t.value(c, c["input"]), reads=(c["weight"], c["bias"]))


def _matmul(t: Translation, c: Call) -> int:
    one, other = (c[key] for key in (("self", "mat2") if "mat2" in c.args else ("self", "other")))
    return t.both(c, t.builder.matmul, one, other)


def _addmm(t: Translation, c: Call) -> int:
    b = t.builder
    left, right = (c[k] for k in (("mat1", "mat2") if "mat1" in c.args else ("batch1", "batch2")))
    product = t.both(c, b.matmul, left, right)
    product = _times(t, c, product, c["alpha"])
    bias = c["self"]
    if c["beta"] != 1:
        bias = Value(_times(t, c, t.value(c, bias), c["beta"]))
    return b.sum(product, t.operand(bias, c.name), name=c.name, parameters=parameters_of(bias))


def _conv(t: Translation, c: Call) -> int:
    weight = t.weight(c, "weight")
    axes = weight.dim() - 2
    stride, dilation = per_axis(c["stride"], axes, 1), per_axis(c["dilation"], axes, 1)
    if c.args.get("transposed"):
        t.refuse(c.node, "a transposed convolution")
    if c["padding"] == "valid":
        pads = ((0, 0),) * axes
    elif c["padding"] == "same":
        spans = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
        pads = tuple((n // 2, n - n // 2) for n in spans)
    else:
        pads = tuple((n, n) for n in per_axis(c["padding"], axes, 0))
    x, mode = t.value(c, c["input"]), "zeros"
    if x in t.padded and not any(map(any, pads)):
        source, around, found = t.padded[x]
        if len(around) == axes + 2 and not any(map(any, around[:2])):
            x, pads, mode = source, around[2:], found
    op = Conv(weight, t.weight(c, "bias"), stride, pads, dilation, int(c["groups"]), mode)
    return t.add(c, op, x, reads=(c["weight"], c["bias"]))


def _batch_norm(t: Translation, c: Call) -> list[int | None]:
    if c.args.get("training") or c["running_mean"] is None:
        _refuse_batch_statistics(t, c)
    return [_eval_batch_norm(t, c), None, None, None, None]


def _plain_batch_norm(t: Translation, c: Call) -> int:
    return cast("int", _batch_norm(t, c)[0])


def _eval_batch_norm(t: Translation, c: Call) -> int:
    mean, variance = (t.weight(c, key) for key in ("running_mean", "running_var"))
    op = BatchNorm(mean, variance, float(c["eps"]), t.weight(c, "weight"), t.weight(c, "bias"))
    return t.add(c, op, t.value(c, c["input"]), reads=(c["weight"], c["bias"]))


def _refuse_batch_statistics(t: Translation, c: Call) -> NoReturn:
    t.refuse(
        c.node,
        "a batch normalisation by the statistics of the batch itself (in training mode, or without running statistics)",
        fix="call model.eval(), and train with track_running_stats=True",
    )


def _instance_norm(t: Translation, c: Call) -> int:
    if not c["use_input_stats"]:
        return _eval_batch_norm(t, c)
    return _per_group(t, c, t.builder.shape(t.value(c, c["input"]))[1])


def _group_norm(t: Translation, c: Call) -> int:
    return _per_group(t, c, int(c["num_groups"]))


def _per_group(t: Translation, c: Call, groups: int) -> int:
    """Each group of channels is normalised as one vector, then each channel has its own weight and bias."""
    b, x = t.builder, t.value(c, c["input"])
    shape = b.shape(x)
    flat = b.reshape(x, (shape[0], groups, math.prod(shape[1:]) // groups), name=c.name)
    y = b.reshape(t.add(c, LayerNorm(1, float(c["eps"])), flat), shape, name=c.name)
    channels = (-1, *(1,) * (len(shape) - 2))
    weight, bias = t.array(c, "weight"), t.array(c, "bias")
    if weight is not None:
        y = b.product(y, weight.reshape(channels), name=c.name, parameters=parameters_of(c["weight"]))
    if bias is not None:
        y = b.sum(y, bias.reshape(channels), name=c.name, parameters=parameters_of(c["bias"]))
    return y


def _layer_norm(t: Translation, c: Call) -> int:
    op = LayerNorm(len(c["normalized_shape"]), float(c["eps"]), t.weight(c, "weight"), t.weight(c, "bias"))
    return t.add(c, op, t.value(c, c["input"]), reads=(c["weight"], c["bias"]))


def _native_layer_norm(t: Translation, c: Call) -> list[int | None]:
    return [_layer_norm(t, c), None, None]


# -- arithmetic -------------------------------------------------------------------------------------------------------


def _times(t: Translation, c: Call, x: int, factor: Any) -> int:
    number = t.number(factor)
    return x if number == 1.0 else t.add(c, Scale(np.array(number)), x)


def _sum(t: Translation, c: Call, *, subtracts: bool = False) -> int:
    left, right = c["self"], c["other"]
    if c.args.get("alpha", 1) != 1:
        right = Value(_times(t, c, t.value(c, right), c["alpha"]))
    return t.both(c, partial(t.builder.sum, subtracts=subtracts), left, right)


def _difference(t: Translation, c: Call) -> int:
    return _sum(t, c, subtracts=True)


def _reversed_difference(t: Translation, c: Call) -> int:
    turned = {**c.args, "self": c["other"], "other": c["self"]}
    return _sum(t, Call(c.node, c.name, turned), subtracts=True)


def _product(t: Translation, c: Call) -> int:
    left, right = c["self"], c["other"]
    if isinstance(left, Value) and isinstance(right, Value):
        for x, gate in ((left.index, right.index), (right.index, left.index)):
            found = _gated(t, c, x, gate)
            if found is not None:
                return found
    return t.both(c, t.builder.product, left, right)


def _gated(t: Translation, c: Call, x: int, gate: int) -> int | None:
    """``x sigmoid(a x)`` is ``silu(a x)/a``, which is Lipschitz; the product of two values is not."""
    nodes = t.builder.nodes
    sigmoid = nodes[gate].op
    if not (isinstance(sigmoid, Pointwise) and sigmoid.activation.name == "sigmoid"):
        return None
    silu, (before,) = Pointwise(Activation("silu")), nodes[gate].inputs
    if before == x:
        return t.add(c, silu, x)
    scale = nodes[before].op
    if not isinstance(scale, Scale) or nodes[before].inputs != (x,):
        return None
    if scale.factor.size != 1 or not scale.factor.any():
        return None
    return t.add(c, Scale(scale.factor, not scale.divides), t.add(c, silu, before))


def _quotient(t: Translation, c: Call) -> int:
    if c.args.get("rounding_mode") is not None:
        t.refuse(c.node, "which rounds")
    left, right = c["self"], c["other"]
    if isinstance(right, Value):
        t.refuse(c.node, "a division by a value computed from the input: it has no bounded slope")
    return t.both(c, t.builder.quotient, left, right)


def _negative(t: Translation, c: Call) -> int:
    return t.add(c, Scale(np.array(-1.0)), c["self"].index)


def _power(t: Translation, c: Call) -> int:
    if not isinstance(c["self"], Value) or c["exponent"] not in (1, 2):
        t.refuse(c.node, "with another exponent than 1 and 2")
    x = c["self"].index
    return x if c["exponent"] == 1 else t.builder.product(x, x, name=c.name)


def _square(t: Translation, c: Call) -> int:
    return t.builder.product(c["self"].index, c["self"].index, name=c.name)


def _where(t: Translation, c: Call) -> int:
    if not isinstance(c["condition"], Const):
        t.refuse(c.node, "a choice that depends on the input")
    return _chosen(t, c, c["condition"].value, c["self"], c["other"])


def _masked_fill(t: Translation, c: Call) -> int:
    if not isinstance(c["mask"], Const):
        t.refuse(c.node, "a mask that depends on the input")
    return _chosen(t, c, ~c["mask"].value, c["self"], c["value"])


def _chosen(t: Translation, c: Call, keep: torch.Tensor, one: Any, other: Any) -> int:
    """``one`` where ``keep``, else ``other``: ``one ∘ keep + other ∘ (1 − keep)``."""
    mask = Const(keep.to(torch.float64))
    kept, filled = t.both(c, t.builder.product, one, mask), t.both(c, t.builder.product, other, Const(1 - mask.value))
    return t.builder.sum(kept, filled, name=c.name)


def _mean(t: Translation, c: Call) -> int:
    x = c["self"].index
    dims: Any = c.args.get("dim")
    dims = [dims] if isinstance(dims, int) else dims
    axes = tuple(cast("Sequence[int]", dims)) if dims else tuple(range(len(t.builder.shape(x))))
    return t.add(c, Mean(axes, bool(c.args.get("keepdim", False))), x)


def _total(t: Translation, c: Call) -> int:
    y = _mean(t, c)
    count = cast("Mean", t.builder.nodes[y].op).count(t.builder.shape(c["self"].index))
    return y if count == 1 else t.add(c, Scale(np.array(float(count))), y)


# -- activations and pooling ------------------------------------------------------------------------------------------


def _pointwise(name: str) -> Callable[[Translation, Call], int]:
    def translate(t: Translation, c: Call) -> int:
        return t.add(c, Pointwise(Activation(cast("Any", name))), c["self"].index)

    return translate


def _gelu(t: Translation, c: Call) -> int:
    name = {"none": "gelu", "tanh": "gelu_tanh"}.get(c["approximate"])
    if name is None:
        t.refuse(c.node, f"with approximate={c['approximate']!r}")
    return t.add(c, Pointwise(Activation(cast("Any", name))), c["self"].index)


def _leaky_relu(t: Translation, c: Call) -> int:
    return t.add(c, Pointwise(Activation("leaky_relu", t.number(c["negative_slope"]))), c["self"].index)


def _prelu(t: Translation, c: Call) -> int:
    slope = cast("F64", t.array(c, "weight"))
    if slope.size != 1:
        t.refuse(c.node, "with a slope for each channel")
    return t.add(c, Pointwise(Activation("leaky_relu", slope.item())), c["self"].index, reads=(c["weight"],))


def _clip(t: Translation, c: Call) -> int:
    low = next((c[k] for k in ("min", "min_val") if c.args.get(k) is not None), -math.inf)
    high = next((c[k] for k in ("max", "max_val") if c.args.get(k) is not None), math.inf)
    if any(isinstance(v, Value) or (isinstance(v, Const) and v.value.numel() != 1) for v in (low, high)):
        t.refuse(c.node, "with limits that are not numbers")
    return t.add(c, Clip(t.number(low), t.number(high)), c["self"].index)


def _relu6(t: Translation, c: Call) -> int:
    return t.add(c, Clip(0.0, 6.0), c["self"].index)


def _hard_sigmoid(t: Translation, c: Call) -> int:
    """``min(max(x + 3, 0), 6)/6``."""
    moved = t.builder.sum(c["self"].index, np.array(3.0), name=c.name)
    return t.add(c, Scale(np.array(6.0), divides=True), t.add(c, Clip(0.0, 6.0), moved))


def _hard_swish(t: Translation, c: Call) -> int:
    return t.builder.product(c["self"].index, _hard_sigmoid(t, c), name=c.name)


def _softmax(t: Translation, c: Call) -> int:
    return t.add(c, Softmax(int(c["dim"])), c["self"].index)


def _attention(t: Translation, c: Call) -> int:
    if c["is_causal"] or c.args.get("enable_gqa"):
        t.refuse(c.node, "with is_causal or enable_gqa")
    if c["dropout_p"] != 0.0:
        t.refuse(c.node, "with dropout", fix=TRAINING)
    mask = c["attn_mask"]
    if isinstance(mask, Const) and not bool(torch.isfinite(mask.value).all()):
        t.refuse(c.node, "with a mask that holds −∞")
    if isinstance(mask, Const) and mask.value.dtype is torch.bool:
        if not bool(mask.value.all()):
            t.refuse(c.node, "with a mask that excludes tokens")
        mask = None
    query, key, value = (t.value(c, c[k]) for k in ("query", "key", "value"))
    scale = None if c["scale"] is None else float(c["scale"])
    given = None if mask is None else t.operand(mask, c.name)
    return t.builder.attention(query, key, value, scale=scale, mask=given, name=c.name)


def _pool_arguments(c: Call, axes: int) -> tuple[Shape, Shape, Shape]:
    kernel = per_axis(c["kernel_size"], axes)
    return kernel, per_axis(c["stride"], axes) or kernel, per_axis(c["padding"], axes, 0)


def _rest(n: int, span: int, step: int, pad: int, ceil_mode: bool) -> int:
    """How far the last window of an axis reaches beyond the padding: with ``ceil_mode`` one more may begin inside."""
    room = n + 2 * pad - span
    count = -(-room // step) if ceil_mode else room // step
    if ceil_mode and count * step >= n + pad:
        count -= 1
    return max(0, count * step + span - n - 2 * pad)


def _max_pool(axes: int) -> Callable[[Translation, Call], int]:
    def translate(t: Translation, c: Call) -> int:
        x = c["self"].index
        kernel, stride, padding = _pool_arguments(c, axes)
        dilation = per_axis(c["dilation"], axes, 1)
        sizes = t.builder.shape(x)[-axes:]
        pads = tuple(
            (p, p + _rest(n, d * (k - 1) + 1, s, p, bool(c["ceil_mode"])))
            for n, k, s, p, d in zip(sizes, kernel, stride, padding, dilation, strict=True)
        )
        return t.add(c, MaxPool(kernel, stride, pads, dilation), x)

    return translate


def _avg_pool(axes: int) -> Callable[[Translation, Call], int]:
    def translate(t: Translation, c: Call) -> int:
        x, b = c["self"].index, t.builder
        kernel, stride, padding = _pool_arguments(c, axes)
        rest = tuple(
            _rest(n, k, s, p, bool(c["ceil_mode"]))
            for n, k, s, p in zip(b.shape(x)[-axes:], kernel, stride, padding, strict=True)
        )
        divisor: Any = c.args.get("divisor_override")
        counts = bool(c["count_include_pad"]) or divisor is not None
        if counts and divisor is None and any(rest):
            # padding counts, what lies beyond it does not: so the padding becomes part of the value
            around = ((0, 0),) * (len(b.shape(x)) - axes) + tuple((p, p) for p in padding)
            x = t.add(c, Pad(around), x) if any(padding) else x
            padding, counts = (0,) * axes, False
        pads = tuple((p, p + r) for p, r in zip(padding, rest, strict=True))
        y = t.add(c, AvgPool(kernel, stride, pads, counts), x)
        return y if divisor is None else t.add(c, Scale(np.array(math.prod(kernel) / divisor)), y)

    return translate


def _adaptive_avg_pool(axes: int) -> Callable[[Translation, Call], int]:
    def translate(t: Translation, c: Call) -> int:
        return t.add(c, AdaptiveAvgPool(per_axis(c["output_size"], axes)), c["self"].index)

    return translate


def _adaptive_max_pool(axes: int) -> Callable[[Translation, Call], list[int | None]]:
    def translate(t: Translation, c: Call) -> list[int | None]:
        x = c["self"].index
        sizes, output = t.builder.shape(x)[-axes:], per_axis(c["output_size"], axes)
        if any(n % m for n, m in zip(sizes, output, strict=True)):
            t.refuse(c.node, f"from {sizes} to {output}: windows of different sizes")
        kernel = tuple(n // m for n, m in zip(sizes, output, strict=True))
        return [t.add(c, MaxPool(kernel, kernel, ((0, 0),) * axes), x), None]

    return translate


def _first(method: Callable[[Translation, Call], int]) -> Callable[[Translation, Call], list[int | None]]:
    """Of an operation that returns a second result (indices), which is not modelled."""
    return lambda t, c: [method(t, c), None]


# -- moving numbers ---------------------------------------------------------------------------------------------------


def _same(t: Translation, c: Call) -> int:
    """Copies, casts between floats and dropout that is off change no number."""
    dtype = c.node.meta["val"].dtype
    # numbers of 8 bits are a quantisation, which saturates (at 448 or less), not a rounding of the last digits
    if not dtype.is_floating_point or dtype.itemsize < 2:
        t.refuse(c.node, f"a cast to {dtype}")
    if c.args.get("train"):
        t.refuse(c.node, "dropout in training mode", fix=TRAINING)
    return cast("Value", next(iter(c.args.values()))).index


def _random(t: Translation, c: Call) -> NoReturn:
    t.refuse(c.node, "which is random: dropout in training mode", fix=TRAINING)


def _reshape(t: Translation, c: Call) -> int:
    return t.builder.reshape(c["self"].index, c.shape, name=c.name)


def _expand(t: Translation, c: Call) -> int:
    return t.builder.expand(c["self"].index, c.shape, name=c.name)


def _permute(t: Translation, c: Call) -> int:
    return t.builder.permute(c["self"].index, c["dims"], name=c.name)


def _transpose(t: Translation, c: Call) -> int:
    order = list(range(len(c.shape)))
    i, j = (c.args.get("dim0", 0), c.args.get("dim1", 1)) if len(order) > 1 else (0, 0)
    order[i], order[j] = order[j], order[i]
    return t.builder.permute(c["self"].index, order, name=c.name)


def _select(t: Translation, c: Call) -> int:
    x = c["self"].index
    i = int(c["index"]) % t.builder.shape(x)[c["dim"]]
    return t.add(c, Slice(int(c["dim"]), i, i + 1, drops=True), x)


def _slice(t: Translation, c: Call) -> int:
    x, axis = c["self"].index, int(c["dim"])
    start, stop, step = slice(c["start"], c["end"], c["step"]).indices(t.builder.shape(x)[axis])
    return t.builder.slice(x, axis, start, stop, step, name=c.name)


def _narrow(t: Translation, c: Call) -> int:
    x, axis = c["self"].index, int(c["dim"])
    start = int(c["start"]) % t.builder.shape(x)[axis]
    return t.builder.slice(x, axis, start, start + int(c["length"]), name=c.name)


def _parts(t: Translation, c: Call) -> list[int]:
    """``split``, ``chunk``: parts one after the other, of the lengths that torch found."""
    x, axis, start, found = c["self"].index, int(c["dim"]), 0, list[int]()
    for part in c.node.meta["val"]:
        stop = start + int(part.shape[axis])
        found.append(t.builder.slice(x, axis, start, stop, name=c.name))
        start = stop
    return found


def _unbind(t: Translation, c: Call) -> list[int]:
    x, axis = c["self"].index, int(c["dim"])
    return [t.add(c, Slice(axis, i, i + 1, drops=True), x) for i in range(t.builder.shape(x)[axis])]


def _index(t: Translation, c: Call) -> int:
    places: Any = [(axis, i) for axis, i in enumerate(c["indices"]) if i is not None]
    if not isinstance(c["self"], Value) or not all(isinstance(i, Const) for _, i in places):
        t.refuse(c.node, "with indices that depend on the input")
    if len(places) != 1:
        t.refuse(c.node, f"with {len(places)} index tensors")
    axis, tensor = places[0][0], places[0][1].value
    return t.builder.reshape(_gathered(t, c, axis, tensor), c.shape, name=c.name)


def _index_select(t: Translation, c: Call) -> int:
    if not isinstance(c["index"], Const):
        t.refuse(c.node, "with indices that depend on the input")
    return _gathered(t, c, int(c["dim"]), c["index"].value)


def _gathered(t: Translation, c: Call, axis: int, tensor: torch.Tensor) -> int:
    x = c["self"].index
    n = t.builder.shape(x)[axis]
    return t.add(c, Gather(axis, tuple(int(i) % n for i in tensor.reshape(-1).tolist())), x)


def _flip(t: Translation, c: Call) -> int:
    x = c["self"].index
    for axis in c["dims"]:
        x = t.add(c, Gather(int(axis), tuple(range(t.builder.shape(x)[axis]))[::-1]), x)
    return x


def _roll(t: Translation, c: Call) -> int:
    b, x = t.builder, c["self"].index
    if c["dims"]:
        return t.add(c, Roll(per_axis(c["shifts"], 1), per_axis(c["dims"], 1)), x)
    flat = b.reshape(x, (math.prod(c.shape),), name=c.name)
    return b.reshape(t.add(c, Roll(per_axis(c["shifts"], 1), (0,)), flat), c.shape, name=c.name)


def _repeat(t: Translation, c: Call) -> int:
    b, x = t.builder, c["self"].index
    times = tuple(c["repeats"])
    shape = (1,) * (len(times) - len(b.shape(x))) + b.shape(x)
    apart = b.reshape(x, tuple(n for size in shape for n in (1, size)), name=c.name)
    apart = b.expand(apart, tuple(n for pair in zip(times, shape, strict=True) for n in pair), name=c.name)
    return b.reshape(apart, c.shape, name=c.name)


def _concat(t: Translation, c: Call) -> int:
    nodes = [t.value(c, x) for x in c["tensors"]]
    # torch leaves out empty vectors
    return t.builder.concat([i for i in nodes if t.builder.shape(i) != (0,)], int(c["dim"]), name=c.name)


def _stack(t: Translation, c: Call) -> int:
    axis = int(c["dim"]) % len(c.shape)
    shape = (*c.shape[:axis], 1, *c.shape[axis + 1 :])
    parts = [t.builder.reshape(t.value(c, x), shape, name=c.name) for x in c["tensors"]]
    return t.builder.concat(parts, axis, name=c.name)


def _pad(t: Translation, c: Call) -> int:
    x, given = c["self"].index, list(cast("Sequence[int]", c.args.get("pad", c.args.get("padding"))))
    name = cast("fx.Node", c.node).target._schema.name  # type: ignore[union-attr]
    mode = "reflect" if "reflection" in name else "replicate" if "replication" in name else c.args.get("mode")
    n = len(t.builder.shape(x))
    pads = [(0, 0)] * n
    for i in range(len(given) // 2):
        pads[n - 1 - i] = (int(given[2 * i]), int(given[2 * i + 1]))
    if mode not in (None, "constant"):
        return _pad_by_copies(t, c, x, tuple(pads), str(mode))
    for axis, (low, high) in enumerate(pads):  # a negative pad cuts off
        size = t.builder.shape(x)[axis]
        x = t.builder.slice(x, axis, max(0, -low), size - max(0, -high), name=c.name)
    outer = tuple((max(0, low), max(0, high)) for low, high in pads)
    value = 0.0 if c.args.get("value") is None else t.number(c["value"])
    return t.add(c, Pad(outer, value), x) if any(map(any, outer)) else x


def _pad_by_copies(t: Translation, c: Call, x: int, pads: Pads, mode: str) -> int:
    source, how = x, {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}[mode]
    if any(min(p) < 0 for p in pads):
        t.refuse(c.node, f"with negative {mode} padding")
    for axis, pad in enumerate(pads):
        if any(pad):
            copies = np.pad(np.arange(t.builder.shape(x)[axis]), pad, mode=cast("Any", how))
            x = t.add(c, Gather(axis, tuple(copies.tolist())), x)
    t.padded[x] = (source, pads, mode)  # a convolution of it knows the mode itself
    return x


def _slice_scatter(t: Translation, c: Call) -> int:
    b, base, part = t.builder, t.value(c, c["self"]), t.value(c, c["src"])
    axis = int(c["dim"])
    size = b.shape(base)[axis]
    start, stop, step = slice(c["start"], c["end"], c["step"]).indices(size)
    if step != 1:
        t.refuse(c.node, "writing to every second entry or fewer")
    return _spliced(t, c, base, part, axis, start, stop)


def _select_scatter(t: Translation, c: Call) -> int:
    b, base, axis = t.builder, t.value(c, c["self"]), int(c["dim"]) % len(c.shape)
    i = int(c["index"]) % c.shape[axis]
    part = b.reshape(t.value(c, c["src"]), (*c.shape[:axis], 1, *c.shape[axis + 1 :]), name=c.name)
    return _spliced(t, c, base, part, axis, i, i + 1)


def _spliced(t: Translation, c: Call, base: int, part: int, axis: int, start: int, stop: int) -> int:
    """``base`` with ``part`` in the place of ``[start:stop]``."""
    b, size = t.builder, t.builder.shape(base)[axis]
    if start >= stop:
        return base
    pieces = [part]
    if start > 0:
        pieces.insert(0, b.slice(base, axis, 0, start, name=c.name))
    if stop < size:
        pieces.append(b.slice(base, axis, stop, size, name=c.name))
    return b.concat(pieces, axis, name=c.name)


def _copy(t: Translation, c: Call) -> int:
    return t.builder.expand(t.value(c, c["src"]), c.shape, name=c.name)


def _pixel_shuffle(t: Translation, c: Call) -> int:
    b, x, r = t.builder, c["self"].index, int(c["upscale_factor"])
    *lead, channels, height, width = b.shape(x)
    n = len(lead)
    apart = b.reshape(x, (*lead, channels // r**2, r, r, height, width), name=c.name)
    turned = b.permute(apart, (*range(n), n, n + 3, n + 1, n + 4, n + 2), name=c.name)
    return b.reshape(turned, c.shape, name=c.name)


_TABLE: tuple[tuple[str, Method], ...] = (
    ("linear", _linear),
    ("matmul mm bmm", _matmul),
    ("addmm baddbmm", _addmm),
    ("convolution conv1d conv2d conv3d", _conv),
    ("_native_batch_norm_legit_no_training native_batch_norm cudnn_batch_norm miopen_batch_norm", _batch_norm),
    ("batch_norm", _plain_batch_norm),
    ("_native_batch_norm_legit _native_batch_norm_legit_functional", _refuse_batch_statistics),
    ("_batch_norm_with_update _batch_norm_with_update_functional", _refuse_batch_statistics),
    ("instance_norm", _instance_norm),
    ("group_norm", _group_norm),
    ("layer_norm", _layer_norm),
    ("native_layer_norm", _native_layer_norm),
    ("add", _sum),
    ("sub", _difference),
    ("rsub", _reversed_difference),
    ("mul", _product),
    ("div", _quotient),
    ("neg", _negative),
    ("pow", _power),
    ("square", _square),
    ("where", _where),
    ("masked_fill", _masked_fill),
    ("mean", _mean),
    ("sum", _total),
    *((name, _pointwise(name)) for name in ("relu", "tanh", "sigmoid", "silu")),
    ("gelu", _gelu),
    ("leaky_relu", _leaky_relu),
    ("prelu _prelu_kernel", _prelu),
    ("relu6", _relu6),
    ("clamp clamp_min clamp_max hardtanh clip", _clip),
    ("hardsigmoid", _hard_sigmoid),
    ("hardswish", _hard_swish),
    ("softmax _softmax", _softmax),
    ("scaled_dot_product_attention", _attention),
    *((f"max_pool{n}d", _max_pool(n)) for n in (1, 2, 3)),
    *((f"max_pool{n}d_with_indices", _first(_max_pool(n))) for n in (1, 2, 3)),
    *((f"avg_pool{n}d", _avg_pool(n)) for n in (1, 2, 3)),
    *((f"adaptive_avg_pool{n}d _adaptive_avg_pool{n}d", _adaptive_avg_pool(n)) for n in (1, 2, 3)),
    *((f"adaptive_max_pool{n}d", _adaptive_max_pool(n)) for n in (1, 2, 3)),
    ("clone contiguous alias detach lift_fresh_copy _to_copy to type_as positive", _same),
    ("dropout feature_dropout alpha_dropout feature_alpha_dropout", _same),
    ("native_dropout bernoulli rand_like randn_like rrelu_with_noise rrelu", _random),
    ("view reshape _unsafe_view _reshape_alias view_as reshape_as flatten unflatten", _reshape),
    ("unsqueeze squeeze atleast_2d atleast_3d", _reshape),
    ("expand expand_as broadcast_to", _expand),
    ("permute", _permute),
    ("transpose t numpy_T swapaxes", _transpose),
    ("select", _select),
    ("slice", _slice),
    ("narrow", _narrow),
    ("split split_with_sizes chunk", _parts),
    ("unbind", _unbind),
    ("index", _index),
    ("index_select", _index_select),
    ("flip", _flip),
    ("roll", _roll),
    ("repeat", _repeat),
    ("cat concat", _concat),
    ("stack", _stack),
    ("pad constant_pad_nd", _pad),
    ("reflection_pad1d reflection_pad2d reflection_pad3d", _pad),
    ("replication_pad1d replication_pad2d replication_pad3d", _pad),
    ("slice_scatter", _slice_scatter),
    ("select_scatter", _select_scatter),
    ("copy", _copy),
    ("pixel_shuffle", _pixel_shuffle),
)
METHODS: dict[str, Method] = {name: method for names, method in _TABLE for name in names.split()}

__all__ = ["METHODS"]
