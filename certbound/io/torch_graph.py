"""The module that runs a :class:`~certbound.graph.Graph` in torch; imported by the torch adapter only."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from certbound import ops
from certbound.activations import Activation
from certbound.arrays import F64
from certbound.errors import UnsupportedLayerError
from certbound.graph import Graph, Node

Tensor = torch.Tensor
_CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_MAX = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_AVG = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}
_ADAPTIVE = {
    1: functional.adaptive_avg_pool1d,
    2: functional.adaptive_avg_pool2d,
    3: functional.adaptive_avg_pool3d,
}


def keeps_sample_axis(graph: Graph) -> bool:
    """Whether axis 0 of every value is the axis of the sample, untouched: then a batch may take its place.

    False where windows or heads are folded into it, as Swin does.

    >>> from certbound.ops import Input, Permute
    >>> keeps_sample_axis(Graph((Node(Input((1, 2))), Node(Permute((1, 0)), (0,)))))
    False
    """
    constant = graph.constant_nodes()
    return all(
        graph.shapes[i][:1] == (1,)
        and (i in constant or leaves_axis_0(node.op, [graph.shapes[j] for j in node.inputs]))
        for i, node in enumerate(graph.nodes)
    )


def leaves_axis_0(op: ops.Op, shapes: Sequence[ops.Shape]) -> bool:
    """Whether an operation on values of these shapes does nothing across axis 0.

    >>> leaves_axis_0(ops.Softmax(0), [(1, 2)]), leaves_axis_0(ops.Softmax(-1), [(1, 2)])
    (False, True)
    """
    rank = len(shapes[0]) if shapes else 0
    if isinstance(op, ops.Permute):
        return op.axes[0] == 0
    if isinstance(op, (ops.Slice, ops.Gather, ops.Concat, ops.Softmax)):
        return op.axis % rank != 0
    if isinstance(op, (ops.Roll, ops.Mean)):
        return all(axis % rank != 0 for axis in op.axes)
    if isinstance(op, ops.Pad):
        return op.pads[0] == (0, 0)
    if isinstance(op, ops.LayerNorm):
        return op.axes < rank
    if isinstance(op, ops.MatMul):
        return rank > 2
    if isinstance(op, ops.Linear):
        return rank > 1
    if isinstance(op, ops.Expand):
        return rank == len(op.shape)
    return True


class GraphModule(nn.Module):
    """Runs the nodes of a graph on a batch: input (samples, …), output (samples, outputs).

    ``lead``: 0 where the batch takes the place of axis 0; else 1, an axis in front of every value.
    """

    def __init__(self, graph: Graph, dtype: torch.dtype, device: Any) -> None:
        super().__init__()
        self.graph = graph
        self.lead = 0 if keeps_sample_axis(graph) else 1
        self._constant = _constants(graph)
        for i, node in enumerate(graph.nodes):
            for name, array in _arrays(self, i, node).items():
                # .copy(): the arrays of the IR are read-only, which torch.from_numpy warns about
                value = torch.from_numpy(np.array(array)).to(dtype=dtype, device=device)
                self.register_parameter(f"node{i}_{name}", nn.Parameter(value, requires_grad=False))

    def array(self, i: int, name: str) -> Tensor | None:
        """An array of node i; None if it has none."""
        return cast("Tensor | None", getattr(self, f"node{i}_{name}", None))

    def shape_at(self, i: int) -> tuple[int, ...]:
        """Shape of node i's value for a batch, −1 for the samples."""
        return (-1, *self.graph.shapes[i][1 - self.lead :])

    def forward(self, x: Tensor) -> Tensor:
        """Outputs of a batch, flat."""
        kept: dict[int, Tensor] = {}
        for i, node in enumerate(self.graph.nodes):
            if i == 0:
                # by its number of axes: sizes would be tensors while auto_LiRPA traces
                kept[0] = x if x.dim() == len(self.shape_at(0)) else x.reshape(self.shape_at(0))
            elif i in self._constant:
                if self.array(i, "constant") is None:
                    continue
                constant = cast("Tensor", self.array(i, "constant"))
                kept[i] = constant.expand(len(x), *self.shape_at(i)[1:])
            else:
                kept[i] = _run(self, i, node.op, [kept[j] for j in node.inputs])
            for j in node.inputs:
                if self.graph.last_uses[j] <= i:
                    kept.pop(j, None)
        out = kept[len(self.graph.nodes) - 1]
        return out if out.dim() == 2 else out.reshape(-1, self.graph.n_outputs)


def _constants(graph: Graph) -> dict[int, F64]:
    """The values of nodes that do not depend on the input."""
    found: dict[int, F64] = {}
    for i in sorted(graph.constant_nodes()):
        node = graph.nodes[i]
        found[i] = node.op.apply(*(found[j] for j in node.inputs))
    return found


def _arrays(module: GraphModule, i: int, node: Node) -> dict[str, F64]:
    """What the node's operation needs as tensors."""
    op, graph = node.op, module.graph
    if i in module._constant:
        users = (k for k, other in enumerate(graph.nodes) if i in other.inputs)
        needed = i == len(graph.nodes) - 1 or any(k not in module._constant for k in users)
        return {"constant": module._constant[i][None] if module.lead else module._constant[i]} if needed else {}
    if isinstance(op, ops.BatchNorm):
        axes = (-1, *(1,) * (len(graph.shapes[i]) - 2))
        found = {"mean": op.mean.reshape(axes), "scale": op.scale.reshape(axes)}
        return found if op.bias is None else {**found, "bias": op.bias.reshape(axes)}
    if isinstance(op, ops.AvgPool) and not op.count_include_pad:
        return {"counts": math.prod(op.kernel) / op.counts(graph.shapes[node.inputs[0]][2:])}
    names = ("weight", "bias", "factor", "offset")
    return {name: value for name in names if (value := getattr(op, name, None)) is not None}


def _run(module: GraphModule, i: int, op: ops.Op, values: list[Tensor]) -> Tensor:
    step = _STEPS.get(type(op))
    if step is None:
        raise UnsupportedLayerError(
            str(module.graph.nodes[i]), got=f"the operation {op.kind}", needed="one that torch runs here",
            fix="see certbound.io.torch_graph",
        )  # fmt: skip
    return step(module, i, op, values)


# ---------------------------------------------------------------- operations

Step = Callable[[GraphModule, int, Any, list[Tensor]], Tensor]


def _axis(module: GraphModule, i: int, axis: int) -> int:
    """The axis of a value that node i reads, in a batch."""
    rank = len(module.graph.shapes[module.graph.nodes[i].inputs[0]])
    return axis % rank + module.lead


def _as_images(module: GraphModule, i: int, x: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
    """Something that torch does with (batch, channels, …): an axis in front goes into the batch for its time."""
    if not module.lead:
        return run(x)
    return run(x.flatten(0, 1)).reshape(module.shape_at(i))


def _flat_pads(pads: Sequence[tuple[int, int]]) -> list[int]:
    """As ``functional.pad`` takes them: the last axis first."""
    return [n for pair in reversed(pads) for n in pair]


def _linear(module: GraphModule, i: int, op: ops.Linear, values: list[Tensor]) -> Tensor:
    return functional.linear(values[0], cast("Tensor", module.array(i, "weight")), module.array(i, "bias"))


def _conv(module: GraphModule, i: int, op: ops.Conv, values: list[Tensor]) -> Tensor:
    even = op.padding_mode == "zeros" and all(low == high for low, high in op.padding)

    def run(x: Tensor) -> Tensor:
        if not even:
            mode = "constant" if op.padding_mode == "zeros" else op.padding_mode
            x = functional.pad(x, _flat_pads(op.padding), mode=mode)
        padding = tuple(low for low, _ in op.padding) if even else (0,) * len(op.kernel)
        return _CONV[len(op.kernel)](
            x, cast("Tensor", module.array(i, "weight")), module.array(i, "bias"), op.stride, padding, op.dilation,
            op.groups,
        )  # fmt: skip

    return _as_images(module, i, values[0], run)


def _batch_norm(module: GraphModule, i: int, op: ops.BatchNorm, values: list[Tensor]) -> Tensor:
    y = (values[0] - cast("Tensor", module.array(i, "mean"))) * cast("Tensor", module.array(i, "scale"))
    bias = module.array(i, "bias")
    return y if bias is None else y + bias


def _scale(module: GraphModule, i: int, op: ops.Scale, values: list[Tensor]) -> Tensor:
    factor = cast("Tensor", module.array(i, "factor"))
    return values[0] / factor if op.divides else values[0] * factor


def _shift(module: GraphModule, i: int, op: ops.Shift, values: list[Tensor]) -> Tensor:
    return values[0] + cast("Tensor", module.array(i, "offset"))


def _max_pool(module: GraphModule, i: int, op: ops.MaxPool, values: list[Tensor]) -> Tensor:
    def run(x: Tensor) -> Tensor:
        if any(max(pair) for pair in op.padding):
            x = functional.pad(x, _flat_pads(op.padding), value=-math.inf)
        return _MAX[len(op.kernel)](x, op.kernel, op.stride, 0, op.dilation)

    return _as_images(module, i, values[0], run)


def _avg_pool(module: GraphModule, i: int, op: ops.AvgPool, values: list[Tensor]) -> Tensor:
    def run(x: Tensor) -> Tensor:
        if any(max(pair) for pair in op.padding):
            x = functional.pad(x, _flat_pads(op.padding))
        y = cast("Tensor", _AVG[len(op.kernel)](x, cast("Any", op.kernel), cast("Any", op.stride)))
        counts = module.array(i, "counts")
        return y if counts is None else y * counts

    return _as_images(module, i, values[0], run)


def _adaptive(module: GraphModule, i: int, op: ops.AdaptiveAvgPool, values: list[Tensor]) -> Tensor:
    run = cast("Any", _ADAPTIVE[len(op.output)])
    return _as_images(module, i, values[0], lambda x: run(x, op.output))


def _mean(module: GraphModule, i: int, op: ops.Mean, values: list[Tensor]) -> Tensor:
    return values[0].mean(dim=tuple(_axis(module, i, a) for a in op.axes), keepdim=op.keepdims)


def _pointwise(module: GraphModule, i: int, op: ops.Pointwise, values: list[Tensor]) -> Tensor:
    return activation(op.activation, values[0])


def activation(phi: Activation, x: Tensor) -> Tensor:
    """φ(x).

    >>> activation(Activation("leaky_relu", 0.5), torch.tensor([-2.0, 2.0]))
    tensor([-1.,  2.])
    """
    if phi.name == "leaky_relu":
        return functional.leaky_relu(x, phi.parameter)
    if phi.name in ("gelu", "gelu_tanh"):
        return functional.gelu(x, approximate="tanh" if phi.name == "gelu_tanh" else "none")
    named: dict[str, Callable[[Tensor], Tensor]] = {
        "relu": functional.relu, "tanh": torch.tanh, "sigmoid": torch.sigmoid, "silu": functional.silu,
    }  # fmt: skip
    return named[phi.name](x)


def _roll(module: GraphModule, i: int, op: ops.Roll, values: list[Tensor]) -> Tensor:
    return torch.roll(values[0], op.shifts, tuple(_axis(module, i, a) for a in op.axes))


def _pad(module: GraphModule, i: int, op: ops.Pad, values: list[Tensor]) -> Tensor:
    return functional.pad(values[0], _flat_pads(op.pads), value=op.value)


def _slice(module: GraphModule, i: int, op: ops.Slice, values: list[Tensor]) -> Tensor:
    axis = _axis(module, i, op.axis)
    if op.drops:
        return values[0].select(axis, op.start)
    return values[0][(*(slice(None),) * axis, slice(op.start, op.stop, op.step))]


def _gather(module: GraphModule, i: int, op: ops.Gather, values: list[Tensor]) -> Tensor:
    where = torch.tensor(op.indices, device=values[0].device)
    return values[0].index_select(_axis(module, i, op.axis), where)


def _expand(module: GraphModule, i: int, op: ops.Expand, values: list[Tensor]) -> Tensor:
    x = values[0]
    # broadcasting adds axes in front of the value's own, behind the batch's
    missing = len(module.shape_at(i)) - x.dim()
    own = x.shape[module.lead :] if module.lead else x.shape[1:]
    x = x.reshape(-1, *(1,) * missing, *own) if missing else x
    return x.expand(len(x), *module.shape_at(i)[1:])


def _add(module: GraphModule, i: int, op: ops.Add, values: list[Tensor]) -> Tensor:
    return values[0] - values[1] if op.subtracts else values[0] + values[1]


_STEPS: dict[type[ops.Op], Step] = {
    ops.Linear: _linear,
    ops.Conv: _conv,
    ops.BatchNorm: _batch_norm,
    ops.Scale: _scale,
    ops.Shift: _shift,
    ops.AvgPool: _avg_pool,
    ops.AdaptiveAvgPool: _adaptive,
    ops.MaxPool: _max_pool,
    ops.Mean: _mean,
    ops.Pointwise: _pointwise,
    ops.Clip: lambda module, i, op, values: values[0].clamp(op.low, op.high),
    ops.Reshape: lambda module, i, op, values: values[0].reshape(module.shape_at(i)),
    ops.Permute: lambda module, i, op, values: values[0].permute(
        *(0,) * module.lead, *(a + module.lead for a in op.axes)
    ),
    ops.Slice: _slice,
    ops.Gather: _gather,
    ops.Pad: _pad,
    ops.Roll: _roll,
    ops.Expand: _expand,
    ops.Concat: lambda module, i, op, values: torch.cat(values, dim=_axis(module, i, op.axis)),
    ops.Add: _add,
    ops.Multiply: lambda module, i, op, values: values[0] * values[1],
    ops.MatMul: lambda module, i, op, values: values[0] @ values[1],
    ops.Softmax: lambda module, i, op, values: torch.softmax(values[0], dim=_axis(module, i, op.axis)),
    ops.LayerNorm: lambda module, i, op, values: functional.layer_norm(
        values[0], values[0].shape[-op.axes :], module.array(i, "weight"), module.array(i, "bias"), op.eps
    ),
}

__all__ = ["GraphModule", "activation", "keeps_sample_axis", "leaves_axis_0"]
