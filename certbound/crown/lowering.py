"""A graph in the few operations that auto_LiRPA 0.3 bounds rightly: Conv2d, Linear, Add, ReLU, Reshape, Permute.

Of its other operators some are wrong without a word, most others refuse. What was found in its code, each kept away
from here, and shown on auto_LiRPA itself in the tests:

* convolutions in "patches" mode (its default): groups are ignored, and the bounds exclude the truth; dilation crashes.
* ``BoundSqrt``, so every LayerNorm: the slope ``−x^(−3/2)/2``, which is no slope of the root.
* max-pools: overlapping ones are refused, but only the first of both strides and paddings is looked at; float32.
* an ℓ2 ball that meets anything but an affine map first becomes its centre (the interval of ``x + c``, of ReLU, of
  ``x + f(x)`` has width 0), so that interval bounds, and all that starts from them, are those of a point.
* leaky ReLUs of slope above 1: the chord below the function is taken for the upper bound.
* tanh and sigmoid: tangents from a table in float32.

So everything is rewritten, exactly but for rounding: normalisations are folded into convolutions; pooling, padding,
slices, concatenation become matrices along one axis (convolutions with 1x1 kernels); ``max(a, b) = a + relu(b − a)``;
leaky ReLU and clipping are sums of ReLUs; an asymmetric padding is a symmetric one with a kernel that begins or ends
with zeros; dilation is zeros in the kernel. What is left has no such form and is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from certbound import ops
from certbound.activations import Activation
from certbound.arrays import F64
from certbound.errors import UnsupportedLayerError
from certbound.graph import Graph, Node
from certbound.ops import Shape

_RELU = ops.Pointwise(Activation("relu"))


@dataclass(frozen=True, eq=False)
class _Value:
    """``scale ∘ (value of a new node) + shift``, not applied yet; arrays broadcast to the value. None: 1 and 0.

    ``node`` None: the constant ``shift``.
    """

    node: int | None
    scale: F64 | None = None
    shift: F64 | None = None


def lowered(graph: Graph, *, native_max_pool: bool = False) -> Graph:
    """An equal graph of the operations named above, ending in a Linear.

    ``native_max_pool``: maxima stay MaxPools, with windows side by side and without padding: what auto_LiRPA's interval
    bounds need, and are exact for; otherwise they become ReLUs, for linear bounds.

    Raises
    ------
    UnsupportedLayerError : an operation that has no such form, by name, with the reason.

    >>> from certbound.ops import Input, MaxPool
    >>> pool = Graph((Node(Input((1, 1, 2, 2))), Node(MaxPool((2, 2), (2, 2), ()), (0,))))
    >>> sorted({node.op.kind for node in lowered(pool).nodes})
    ['Add', 'Conv', 'Input', 'Linear', 'Permute', 'Reshape', 'relu']
    """
    return _Lowering(graph, native_max_pool).run()


class _Lowering:
    """Builds the new graph node by node."""

    def __init__(self, graph: Graph, native_max_pool: bool) -> None:
        self.graph, self.native = graph, native_max_pool
        self.nodes: list[Node] = []
        self.shapes: list[Shape] = []
        self.raw: set[int] = set()  # the input, reshaped or permuted: an ℓ2 ball still
        self.values: list[_Value] = []
        self.name = ""

    def run(self) -> Graph:
        for i, node in enumerate(self.graph.nodes):
            self.name = node.name
            if i == 0:
                self.raw.add(self.add(node.op))
                self.values.append(_Value(0))
                continue
            reason = _refusal(self.graph, i)
            if reason is not None:
                raise UnsupportedLayerError(
                    str(node), got=f"the operation {node.op.kind}", needed=reason[0], fix=reason[1]
                )
            self.values.append(self.step(i, node))
        last = self.plain(self.reshaped(self.values[-1], (1, self.graph.n_outputs)))
        n, op = self.graph.n_outputs, self.nodes[last].op
        # auto_LiRPA's IBP applies a specification to a Linear only, and takes one without a bias for a product
        if not isinstance(op, ops.Linear):
            self.add(ops.Linear(np.eye(n), np.zeros(n)), last)
        elif op.bias is None:
            self.nodes[last] = replace(self.nodes[last], op=replace(op, bias=np.zeros(n)))
        return _pruned(self.nodes)

    def add(self, op: ops.Op, *inputs: int) -> int:
        """A new node; its index."""
        self.nodes.append(Node(op, inputs, self.name))
        self.shapes.append(op.output_shape(*(self.shapes[j] for j in inputs)))
        return len(self.nodes) - 1

    # ------------------------------------------------------------ values

    def shape(self, value: _Value) -> Shape:
        if value.node is None:
            assert value.shift is not None
            return tuple(value.shift.shape)
        return self.shapes[value.node]

    def shift_of(self, value: _Value) -> F64:
        """The shift in full."""
        return np.broadcast_to(np.zeros(1) if value.shift is None else value.shift, self.shape(value))

    def scaled(self, value: _Value) -> _Value:
        """Without a scale that waits."""
        if value.scale is None or value.node is None:
            return value
        node, op, scale = value.node, self.nodes[value.node].op, value.scale
        rows = _per_channel(scale, self.shapes[node])
        if rows is not None and isinstance(op, (ops.Conv, ops.Linear)) and op.bias is None:
            weight = op.weight * rows.reshape(-1, *(1,) * (op.weight.ndim - 1))
            return _Value(self.add(replace(op, weight=weight), *self.nodes[node].inputs), None, value.shift)
        return _Value(self.diagonal(node, scale), None, value.shift)

    def plain(self, value: _Value) -> int:
        """The index of a node that has the value."""
        value = self.scaled(value)
        assert value.node is not None  # a network whose output is constant is refused before
        if value.shift is None or not value.shift.any():
            return value.node
        node, op = value.node, self.nodes[value.node].op
        rows = _per_channel(value.shift, self.shapes[node])
        if rows is not None and isinstance(op, (ops.Conv, ops.Linear)) and op.bias is None:
            return self.add(replace(op, bias=rows), *self.nodes[node].inputs)
        # without the sample's axis, which auto_LiRPA adds to constants itself
        return self.add(ops.Shift(self.shift_of(value)[0]), self.boxed(node))

    def boxed(self, node: int) -> int:
        """The node, behind an identity where it is an ℓ2 ball still, which only an affine map may meet."""
        return self.diagonal(node, np.ones(1)) if node in self.raw else node

    def diagonal(self, node: int, scale: F64) -> int:
        """``scale ∘ value`` by a 1x1 convolution."""
        shape = self.shapes[node]
        rows = _per_channel(scale, shape)
        if scale.size == 1:
            frame, channels = (1, 1, math.prod(shape), 1), 1
        elif rows is not None:
            frame, channels = (1, shape[1], math.prod(shape[2:]), 1), shape[1]
        else:
            frame, channels = (1, math.prod(shape), 1, 1), math.prod(shape)
            rows = np.broadcast_to(scale, shape)
        weight = scale.reshape(1) if scale.size == 1 or rows is None else rows.reshape(-1)
        op = ops.Conv(weight.reshape(channels, 1, 1, 1), groups=channels)
        return self.reframed(self.add(op, self.reframed(node, frame)), shape)

    def reframed(self, node: int, shape: Shape) -> int:
        if self.shapes[node] == shape:
            return node
        made = self.add(ops.Reshape(shape), node)
        if node in self.raw:
            self.raw.add(made)
        return made

    def reshaped(self, value: _Value, shape: Shape) -> _Value:
        return self.moved(value, ops.Reshape(shape))

    def moved(self, value: _Value, op: ops.Reshape | ops.Permute) -> _Value:
        """The numbers in another order; the arrays that wait move along."""
        old = self.shape(value)

        def along(array: F64 | None) -> F64 | None:
            if array is None or array.size == 1:  # without axes: the new value may have fewer than the old one
                return None if array is None else array.reshape(())
            return op.apply(np.broadcast_to(array, old))

        if value.node is None:
            return _Value(None, None, op.apply(self.shift_of(value)))
        if op.output_shape(old) == old and (isinstance(op, ops.Reshape) or op.axes == tuple(range(len(old)))):
            return value
        made = self.add(op, value.node)
        if value.node in self.raw:
            self.raw.add(made)
        return _Value(made, along(value.scale), along(value.shift))

    def along_axis(self, node: int, axis: int, matrix: F64) -> int:
        """``matrix`` applied along one axis: a 1x1 convolution of a value whose channels that axis is."""
        shape = self.shapes[node]
        if matrix.shape[0] == matrix.shape[1] and np.array_equal(matrix, np.eye(len(matrix))):
            return node
        rest = tuple(a for a in range(len(shape)) if a != axis)
        order = (0, axis, *(a for a in rest if a))
        value = self.moved(_Value(node), ops.Permute(order))
        assert value.node is not None
        sizes = tuple(shape[a] for a in order[2:])
        flat = self.reframed(value.node, (1, shape[axis], math.prod(sizes), 1))
        flat = self.add(ops.Conv(matrix[:, :, None, None]), flat)
        back = self.reframed(flat, (1, len(matrix), *sizes))
        inverse = tuple(int(a) for a in np.argsort(order))
        value = self.moved(_Value(back), ops.Permute(inverse))
        assert value.node is not None
        return value.node

    # ------------------------------------------------------------ operations

    def step(self, i: int, node: Node) -> _Value:
        op, inputs = node.op, [self.values[j] for j in node.inputs]
        if all(v.node is None for v in inputs):
            return _Value(None, None, op.apply(*(self.shift_of(v) for v in inputs)))
        if isinstance(op, ops.Conv):
            return self.conv(op, inputs[0])
        if isinstance(op, ops.Linear):
            return self.linear(op, inputs[0])
        if isinstance(op, (ops.BatchNorm, ops.Scale, ops.Shift)):
            return self.affine(op, inputs[0])
        if isinstance(op, (ops.Reshape, ops.Permute)):
            return self.moved(inputs[0], op)
        if isinstance(op, ops.Pointwise):
            return self.pointwise(op.activation, inputs[0])
        if isinstance(op, ops.Clip):
            return self.clip(op, inputs[0])
        if isinstance(op, ops.Add):
            return self.sum(inputs[0], self.negative(inputs[1]) if op.subtracts else inputs[1])
        if isinstance(op, ops.Concat):
            return self.concat(op, i, inputs)
        if isinstance(op, ops.Multiply):  # one of both is constant
            value, constant = inputs if inputs[1].node is None else reversed(inputs)
            return self.times(value, self.shift_of(constant))
        if isinstance(op, ops.MatMul):
            return self.matmul(inputs)
        if isinstance(op, ops.MaxPool):
            return self.max_pool(op, inputs[0])
        return self.by_axes(op, inputs[0], self.graph.shapes[i])

    def conv(self, op: ops.Conv, value: _Value) -> _Value:
        shape = self.shape(value)
        rows = None if value.scale is None else _per_channel(value.scale, shape)
        if rows is None:
            value = self.scaled(value)
        shift = None if value.shift is None else op.apply(self.shift_of(value))
        if shift is None and op.bias is not None:
            shift = op.bias.reshape(1, -1, *(1,) * len(op.kernel))
        assert value.node is not None
        node, axes = value.node, len(op.kernel)
        weight, pads = op.weight, op.padding
        if rows is not None:
            per = rows.reshape(op.groups, -1)  # one row of inputs for each group of outputs
            per = np.repeat(per, len(weight) // op.groups, axis=0)
            weight = weight * per.reshape(*per.shape, *(1,) * axes)
        if op.padding_mode != "zeros":
            mode: Any = ops.PADDING_MODES[op.padding_mode]
            for a, pair in enumerate(pads):
                matrix = np.pad(np.eye(shape[2 + a]), (pair, (0, 0)), mode=mode)
                node = self.along_axis(node, 2 + a, matrix)
            pads = ((0, 0),) * axes
        if axes == 1:
            node = self.reframed(node, (*self.shapes[node], 1))
            weight, pads = weight[..., None], (*pads, (0, 0))
        weight = _undilated(weight, (*op.dilation, 1)[:2])
        weight, padding = _symmetric(weight, pads)
        stride = (*op.stride, 1)[:2]
        node = self.add(ops.Conv(weight, None, stride, padding, groups=op.groups), node)
        if axes == 1:
            node = self.reframed(node, self.shapes[node][:3])
        return _Value(node, None, shift)

    def linear(self, op: ops.Linear, value: _Value) -> _Value:
        shape = self.shape(value)
        shift = None if value.shift is None and op.bias is None else op.apply(self.shift_of(value))
        if len(shape) > 2:
            node = self.scaled(value).node
            assert node is not None
            return _Value(self.along_axis(node, len(shape) - 1, op.weight), None, shift)
        weight = op.weight if value.scale is None else op.weight * np.broadcast_to(value.scale, shape)
        assert value.node is not None
        return _Value(self.add(ops.Linear(weight), value.node), None, shift)

    def affine(self, op: ops.BatchNorm | ops.Scale | ops.Shift, value: _Value) -> _Value:
        rank = len(self.shape(value))
        if isinstance(op, ops.Shift):
            offset = _ranked(op.offset, rank)
            return replace(value, shift=offset if value.shift is None else value.shift + offset)
        if isinstance(op, ops.Scale):
            factor = _ranked(op.factor, rank)
            return self.times(value, 1.0 / factor if op.divides else factor)
        axes = (1, -1, *(1,) * (rank - 2))
        value = self.times(
            replace(value, shift=(0.0 if value.shift is None else value.shift) - op.mean.reshape(axes)),
            op.scale.reshape(axes),
        )
        if op.bias is None:
            return value
        return self.affine(ops.Shift(op.bias.reshape(axes)), value)

    def times(self, value: _Value, factor: F64) -> _Value:
        factor = _ranked(factor, len(self.shape(value)))
        scale = factor if value.scale is None else value.scale * factor
        return _Value(value.node, scale, None if value.shift is None else value.shift * factor)

    def negative(self, value: _Value) -> _Value:
        if value.node is None:
            return _Value(None, None, -self.shift_of(value))
        return self.times(value, np.array(-1.0))

    def sum(self, a: _Value, b: _Value) -> _Value:
        if a.node is None or b.node is None:
            constant, other = (a, b) if a.node is None else (b, a)
            return replace(other, shift=self.shift_of(other) + self.shift_of(constant))
        left, right = (self.boxed(self.plain(v)) for v in (a, b))
        return _Value(self.add(ops.Add(), left, right))

    def relu(self, value: _Value) -> _Value:
        return _Value(self.add(_RELU, self.boxed(self.plain(value))))

    def pointwise(self, phi: Activation, value: _Value) -> _Value:
        if phi.name == "relu":
            return self.relu(value)
        a = phi.parameter  # leaky: a x + (1 − a) relu(x), whose interval bounds are exact for 0 <= a <= 1
        value = _Value(self.plain(value))
        rectified = self.relu(value)
        if a == 0.0:
            return rectified
        return self.sum(self.times(value, np.array(a)), self.times(rectified, np.array(1.0 - a)))

    def clip(self, op: ops.Clip, value: _Value) -> _Value:
        """``low + relu(x − low)``, then ``high − relu(high − x)``: nested, interval bounds stay exact."""
        if math.isfinite(op.low):
            value = self.relu(self.affine(ops.Shift(np.array(-op.low)), value))
            value = self.affine(ops.Shift(np.array(op.low)), value)
        if math.isfinite(op.high):
            value = self.relu(self.affine(ops.Shift(np.array(op.high)), self.negative(value)))
            value = self.affine(ops.Shift(np.array(op.high)), self.negative(value))
        return value

    def concat(self, op: ops.Concat, i: int, values: Sequence[_Value]) -> _Value:
        """The sum of the parts, each in its place among zeros."""
        axis, start, total = op.axis % len(self.graph.shapes[i]), 0, self.graph.shapes[i][op.axis]
        shift = op.apply(*(self.shift_of(v) for v in values))
        whole: _Value | None = None
        for value in values:
            n = self.shape(value)[axis]
            node = self.scaled(value).node
            if node is not None:
                part = _Value(self.along_axis(node, axis, np.eye(total)[:, start : start + n]))
                whole = part if whole is None else self.sum(whole, part)
            start += n
        assert whole is not None
        return replace(whole, shift=shift if shift.any() else None)

    def matmul(self, values: Sequence[_Value]) -> _Value:
        """A product with a constant matrix, the same for all leading axes."""
        left, right = values
        constant = self.shift_of(right if right.node is None else left)
        matrix = constant.reshape(constant.shape[-2:])
        if right.node is None:
            return self.by_matrix(left, len(self.shape(left)) - 1, matrix.T)
        return self.by_matrix(right, len(self.shape(right)) - 2, matrix)

    def by_matrix(self, value: _Value, axis: int, matrix: F64) -> _Value:
        shift = None
        if value.shift is not None:
            shift = np.moveaxis(np.moveaxis(self.shift_of(value), axis, -1) @ matrix.T, -1, axis)
        node = self.scaled(value).node
        assert node is not None
        return _Value(self.along_axis(node, axis, matrix), None, shift)

    def by_axes(self, op: ops.Op, value: _Value, shape: Shape) -> _Value:
        """An affine operation that is one matrix along each of some axes."""
        before = self.shape(value)
        shift = op.apply(self.shift_of(value))
        node = self.scaled(value).node
        assert node is not None
        for axis, matrix in _matrices(op, before):
            node = self.along_axis(node, axis, matrix)
        return _Value(self.reframed(node, shape), None, shift if shift.any() else None)

    def max_pool(self, op: ops.MaxPool, value: _Value) -> _Value:
        """Maxima along one spatial axis after the other."""
        node = self.boxed(self.plain(value))
        for a, size in enumerate(op.kernel):
            n = self.shapes[node][2 + a]
            taps = _taps(n, size, op.stride[a], op.padding[a], op.dilation[a])  # (positions, size)
            if self.native:
                node = self.native_maximum(node, 2 + a, np.eye(n)[taps.reshape(-1)], size)
                continue
            best = self.along_axis(node, 2 + a, np.eye(n)[taps[:, 0]])
            for k in range(1, size):
                # b − a as one matrix for the first two, so that nothing is subtracted from itself
                other = np.eye(n)[taps[:, k]]
                if k == 1:
                    difference = _Value(self.along_axis(node, 2 + a, other - np.eye(n)[taps[:, 0]]))
                else:
                    difference = self.sum(_Value(self.along_axis(node, 2 + a, other)), self.negative(_Value(best)))
                sum_ = self.sum(_Value(best), self.relu(difference))
                assert sum_.node is not None
                best = sum_.node
            node = best
        return _Value(node)

    def native_maximum(self, node: int, axis: int, taps: F64, size: int) -> int:
        """A MaxPool of windows side by side."""
        node = self.along_axis(node, axis, taps)
        shape = self.shapes[node]
        rest = math.prod(shape[axis + 1 :])
        node = self.reframed(node, (1, math.prod(shape[:axis]), shape[axis], rest))
        node = self.add(ops.MaxPool((size, 1), (size, 1), ()), node)
        return self.reframed(node, (*shape[:axis], shape[axis] // size, *shape[axis + 1 :]))


def _pruned(nodes: Sequence[Node]) -> Graph:
    """Without the nodes that the last one does not need."""
    used = {len(nodes) - 1, 0}
    for i in range(len(nodes) - 1, -1, -1):
        if i in used:
            used.update(nodes[i].inputs)
    order = {old: new for new, old in enumerate(sorted(used))}
    return Graph(tuple(replace(nodes[i], inputs=tuple(order[j] for j in nodes[i].inputs)) for i in sorted(used)))


def _ranked(array: F64, rank: int) -> F64:
    """With as many axes as the value."""
    return array.reshape((1,) * (rank - array.ndim) + array.shape)


def _per_channel(array: F64, shape: Shape) -> F64 | None:
    """One number per entry of axis 1, if the array is no more than that."""
    array = _ranked(array, len(shape))
    if len(shape) < 2 or any(n != 1 for a, n in enumerate(array.shape) if a != 1):
        return None
    return np.broadcast_to(array.reshape(-1), (shape[1],))


def _undilated(weight: F64, dilation: Sequence[int]) -> F64:
    """The kernel with the zeros that dilation leaves between its entries."""
    for a, d in enumerate(dilation):
        if d > 1:
            shape = list(weight.shape)
            shape[2 + a] = d * (shape[2 + a] - 1) + 1
            wide = np.zeros(shape)
            wide[(slice(None),) * (2 + a) + (slice(None, None, d),)] = weight
            weight = wide
    return weight


def _symmetric(weight: F64, pads: ops.Pads) -> tuple[F64, ops.Pads]:
    """Kernel and padding with as much on both sides of an axis, and the same windows: zeros fill the kernel up."""
    most = [max(pair) for pair in pads]
    extra = [(p - low, p - high) for p, (low, high) in zip(most, pads, strict=True)]
    return np.pad(weight, ((0, 0), (0, 0), *extra)), tuple((p, p) for p in most)


def _taps(n: int, size: int, stride: int, pad: tuple[int, int], dilation: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Index of every entry of every window, (windows, size); for padding an entry that the window has anyway."""
    count = (n + sum(pad) - dilation * (size - 1) - 1) // stride + 1
    taps = np.arange(count)[:, None] * stride - pad[0] + dilation * np.arange(size)
    inside = (taps >= 0) & (taps < n)
    return np.where(inside, taps, np.where(inside, taps, -1).max(axis=1)[:, None])


def _matrices(op: ops.Op, shape: Shape) -> list[tuple[int, F64]]:
    """The matrix along each axis of which the operation's linear part is made."""
    rank = len(shape)
    if isinstance(op, ops.AdaptiveAvgPool):
        return [(2 + a, m) for a, m in enumerate(op.matrices(shape[2:]))]
    if isinstance(op, ops.AvgPool):
        return [(2 + a, _averages(op, a, n)) for a, n in enumerate(shape[2:])]
    if isinstance(op, ops.Mean):
        kept = np.ones((1, 1))
        return [(a % rank, kept * np.full((1, shape[a]), 1.0 / shape[a])) for a in op.axes]
    if isinstance(op, ops.Slice):
        return [(op.axis % rank, np.eye(shape[op.axis])[op.start : op.stop : op.step])]
    if isinstance(op, ops.Gather):
        return [(op.axis % rank, np.eye(shape[op.axis])[list(op.indices)])]
    if isinstance(op, ops.Pad):
        return [(a, np.pad(np.eye(n), (pair, (0, 0)))) for a, (n, pair) in enumerate(zip(shape, op.pads, strict=True))
                if any(pair)]  # fmt: skip
    if isinstance(op, ops.Roll):
        return [(a % rank, np.roll(np.eye(shape[a]), s, axis=0)) for a, s in zip(op.axes, op.shifts, strict=True)]
    assert isinstance(op, ops.Expand)
    return [(a, np.ones((m, 1))) for a, (n, m) in enumerate(zip(shape, op.shape, strict=True)) if n != m]


def _averages(op: ops.AvgPool, axis: int, n: int) -> F64:
    """Averages along one axis: their Kronecker product is the pool, also where padding does not count."""
    low, high = op.padding[axis]
    size, stride = op.kernel[axis], op.stride[axis]
    count = (n + low + high - size) // stride + 1
    where = np.arange(count)[:, None] * stride - low
    inside = (np.arange(n)[None, :] >= where) & (np.arange(n)[None, :] < where + size)
    total = float(size) if op.count_include_pad else inside.sum(axis=1, keepdims=True)
    averages: F64 = inside / total
    return averages


# ---------------------------------------------------------------- what is refused

_ATTENTION = "an operation that auto_LiRPA 0.3 bounds rightly; "
_ELSE = "use an attack, or the gradients, or a network without it; IBP and CROWN have no answer here"


def _refusal(graph: Graph, i: int) -> tuple[str, str] | None:
    """Why node i cannot be bounded: what is needed, and what to do."""
    node, constant = graph.nodes[i], graph.constant_nodes()
    op, moving = node.op, [j for j in node.inputs if j not in constant]
    if i in constant:
        return None
    reason = None
    if graph.shapes[i][:1] != (1,) or not _keeps(op, [graph.shapes[j] for j in node.inputs]):
        reason = "the sample's own axis stays first in it, and here windows or heads are folded into that axis"
    elif isinstance(op, ops.LayerNorm):
        reason = "its square root has the slope -x^(-3/2)/2 there, which is none of the root: bounds above the truth"
    elif isinstance(op, ops.Softmax):
        reason = "of the maximum that its softmax subtracts it has no linear bound (NotImplementedError)"
    elif isinstance(op, (ops.MatMul, ops.Multiply)) and len(moving) > 1:
        reason = "a product of two values that both depend on the input is none whose bounds were checked"
    elif isinstance(op, ops.MatMul) and math.prod(graph.shapes[_other(node, moving)][:-2]) != 1:
        reason = "a constant factor must be one matrix here, not one for each head"
    elif isinstance(op, ops.Pointwise) and op.activation.name not in ("relu", "leaky_relu"):
        reason = _SMOOTH.get(op.activation.name, "it has no relaxation of this activation")
    elif isinstance(op, ops.Conv) and len(op.kernel) > 2:
        reason = "its convolutions have two spatial axes"
    return None if reason is None else (_ATTENTION + reason, _ELSE)


def _other(node: Node, moving: Sequence[int]) -> int:
    return next(j for j in node.inputs if j not in moving)


def _keeps(op: ops.Op, shapes: Sequence[Shape]) -> bool:
    from certbound.io.torch_graph import leaves_axis_0

    return leaves_axis_0(op, shapes)


_SMOOTH: dict[str, str] = {
    "tanh": "its tangents of tanh come from a table in float32, off by more than rounding",
    "sigmoid": "its tangents of the sigmoid come from a table in float32, off by more than rounding",
}

Lowered = Callable[[Graph], Graph]

__all__ = ["lowered"]
