"""Small graphs as dense networks: what the semidefinite, path and branching methods of :class:`Network` need.

Every linear operation becomes its matrix, so this is for nets of at most a few thousand numbers a layer; real
architectures stay graphs. What rounding the lowering does is part of the network's definition (see
:func:`dense_network`).
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from certbound.arrays import F64
from certbound.errors import UnsupportedLayerError
from certbound.graph import Graph, Node, read_model
from certbound.network import Affine, Layer, Network, Normalise, ReLU, Residual, as_network
from certbound.ops import (
    PADDING_MODES,
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
    Shape,
    Shift,
    Slice,
    Softmax,
)

_MOVING = (Reshape, Permute, Slice, Gather, Roll, Expand, Pad)
_CHUNK = 64  # unit vectors that go through a convolution at a time

_REASONS: dict[type[Op], str] = {
    MaxPool: "a maximum over windows is no elementwise activation",
    Softmax: "softmax is no elementwise activation",
    LayerNorm: "it divides by a deviation of its own input",
    MatMul: "a product of two values is not affine in either branch alone (attention)",
    Multiply: "a product of two values is not affine in either branch alone",
}


def dense_network(graph: Graph, *, limit: int = 4_000_000) -> Network:
    """The graph as a :class:`Network` of dense matrices, at most ``limit`` entries in all.

    Convolutions, linear layers, batch normalisation, average pooling, elementwise activations, clipping, moving of
    entries, sums and concatenations in series and in parallel (a Residual whose shortcut is the other branch).

    Entries are the stored weights, exactly, with these exceptions, whose rounded numbers *define* the network (its
    digest is the subject of every claim): the scale and shift of a batch normalisation, folded into the layer before
    (relative 5u an entry), other factors, ``1/count`` of averages, and constants that are computed. The network so
    defined differs from the graph by less than 1e-14 of each such entry; claims that hold for the graph itself are
    those of :func:`certbound.lipschitz.graph_product.graph_product`.

    Raises
    ------
    UnsupportedLayerError : max-pooling, softmax, layer normalisation, products of two values, a value that two
        different joins share (overlapping skips, as in a DenseNet), more entries than ``limit``: named with the node.

    >>> from certbound.ops import Conv, Input
    >>> conv = Node(Conv([[[1.0, 2.0]]], padding=((1, 0),)), (0,))
    >>> net = dense_network(Graph((Node(Input((1, 1, 3))), conv)))
    >>> net.layers[0].weight.tolist()
    [[2.0, 0.0, 0.0], [1.0, 2.0, 0.0], [0.0, 1.0, 2.0]]
    """
    lowering = _Lowering(graph, limit)
    last = len(graph.nodes) - 1
    if last in graph.constant_nodes():
        lowering.spend(graph.nodes[last], graph.n_outputs, graph.n_inputs)
        zero = np.zeros((graph.n_outputs, graph.n_inputs))
        return Network((Affine(zero, lowering.value(last).reshape(-1).copy()),))
    layers = lowering.between(0, last, top=True)
    if not any(isinstance(layer, Affine) for layer in layers):
        # a Network knows its width from its first matrix
        layers.append(Affine(lowering.identity(graph.nodes[-1], graph.n_outputs)))
    return Network(tuple(layers))


def immediate_dominators(graph: Graph) -> tuple[int, ...]:
    """For each node the last earlier one through which every path from the input goes; −1 for those of constants, and
    0 for the input itself.

    >>> from certbound.activations import Activation
    >>> from certbound.ops import Input
    >>> relu = Pointwise(Activation("relu"))
    >>> nodes = (Node(Input((1, 2))), Node(relu, (0,)), Node(relu, (1,)), Node(Add(), (1, 2)))
    >>> immediate_dominators(Graph(nodes))
    (0, 0, 1, 1)
    """
    constants = graph.constant_nodes()
    found: list[int] = []
    for i, node in enumerate(graph.nodes):
        if i in constants:
            found.append(-1)
            continue
        sources = [j for j in node.inputs if j not in constants]
        dominator = sources[0] if sources else 0
        for j in sources[1:]:
            while dominator != j:  # the later of two goes up; both chains end in the input
                dominator, j = (found[dominator], j) if dominator > j else (dominator, found[j])
        found.append(dominator)
    return tuple(found)


class _Lowering:
    """One graph on its way to layers; ``left``: entries that may still be made."""

    def __init__(self, graph: Graph, limit: int) -> None:
        self._graph = graph
        self._limit = limit
        self._used = 0
        self._dominators = immediate_dominators(graph)
        self._constants = graph.constant_nodes()
        self._done: set[int] = set()

    def between(self, start: int, end: int, *, top: bool) -> list[Layer]:
        """Layers from the value of ``start``, which dominates ``end``, to that of ``end``. ``top``: in no Residual."""
        if end == start:
            return []
        node = self._graph.nodes[end]
        if not isinstance(node.op, (*_MOVING, Shift)) and end in self._done:
            raise UnsupportedLayerError(
                str(node),
                got="a value that two joins share (overlapping skips)",
                needed="branches that join before they are used again",
                fix="use lipschitz_product, which takes any graph",
            )
        self._done.add(end)
        if isinstance(node.op, (Add, Concat)):
            dominator = self._dominators[end]
            layers = self.between(start, dominator, top=top)
            self._join(layers, node, dominator)
            return layers
        if type(node.op) in _REASONS:
            local = isinstance(node.op, (MatMul, Multiply))
            raise UnsupportedLayerError(
                str(node), got=f"a {node.op.kind}: {_REASONS[type(node.op)]}",
                needed="affine maps and elementwise activations",
                fix="use lipschitz_local, on a ball" if local else "use lipschitz_product, which takes such graphs",
            )  # fmt: skip
        (source,) = node.inputs
        layers = self.between(start, source, top=top)
        self._one(layers, node, self._graph.shapes[source], top=top)
        return layers

    # ------------------------------------------------------------ several values

    def _join(self, layers: list[Layer], node: Node, dominator: int) -> None:
        """A sum or a concatenation, as a sum of placed branches."""
        shapes = [self._graph.shapes[j] for j in node.inputs]
        rows: list[npt.NDArray[np.int64] | None] = [None] * len(shapes)
        size = math.prod(shapes[0])
        if isinstance(node.op, Concat):
            size = math.prod(node.op.output_shape(*shapes))
            first = np.cumsum([0, *(math.prod(s) for s in shapes)])
            joined = node.op.apply(*(_numbers(s) + f for s, f in zip(shapes, first, strict=False)))
            order = joined.reshape(-1).astype(np.int64)
            # place[k]: where entry k of the values in a row goes
            place = np.empty_like(order)
            place[order] = np.arange(size)
            rows = [place[a:b] for a, b in pairwise(first)]
        constant = np.zeros(size)
        branches: list[list[Layer]] = []
        for k, (j, at) in enumerate(zip(node.inputs, rows, strict=True)):
            negative = isinstance(node.op, Add) and node.op.subtracts and k == 1
            if j in self._constants:
                value = self.value(j).reshape(-1)
                constant[slice(None) if at is None else at] += -value if negative else value
                continue
            branch = self.between(dominator, j, top=False)
            if at is not None:
                self._placed(branch, node, at, size)
            if negative:
                self._diagonal(branch, node, np.full(size, -1.0))
            branches.append(branch)
        total = branches[0]
        for branch in branches[1:]:
            # the identity is the shortcut; a Residual has a body
            body, shortcut = (branch, total) if branch else (total, branch)
            if not body:  # x + x
                body = [Affine(self.identity(node, size))]
            total = [Residual(tuple(body), tuple(shortcut))]
        layers += total
        if constant.any():
            self._diagonal(layers, node, None, constant)

    def _placed(self, layers: list[Layer], node: Node, rows: npt.NDArray[np.int64], size: int) -> None:
        """Entries go to ``rows`` of a longer vector of zeros."""
        indices = np.full(size, -1, dtype=np.int64)
        indices[rows] = np.arange(len(rows))
        self._selected(layers, node, indices, len(rows), 0.0)

    def value(self, node: int) -> F64:
        """Of a constant node."""
        op = self._graph.nodes[node].op
        if isinstance(op, Constant):
            return op.value
        return op.apply(*(self.value(j) for j in self._graph.nodes[node].inputs))

    # ------------------------------------------------------------ one value

    def _one(self, layers: list[Layer], node: Node, shape: Shape, *, top: bool) -> None:
        op, n = node.op, math.prod(shape)
        m = math.prod(op.output_shape(shape))
        if isinstance(op, _MOVING):
            value = op.value if isinstance(op, Pad) else 0.0
            moved = (np.pad(_numbers(shape), op.pads, constant_values=-1) if isinstance(op, Pad)
                     else op.apply(_numbers(shape)))  # fmt: skip
            self._selected(layers, node, moved.reshape(-1).astype(np.int64), n, value)
        elif isinstance(op, Pointwise):
            layers.append(ReLU() if op.activation.name == "relu" else op.activation)
        elif isinstance(op, Clip):
            self._clipped(layers, node, n)
        elif isinstance(op, BatchNorm):
            zero = np.zeros(shape)
            scale = np.broadcast_to(op.scale.reshape((-1, *(1,) * (len(shape) - 2))), shape)
            self._diagonal(layers, node, scale.reshape(-1), op.apply(zero).reshape(-1))
        elif isinstance(op, Scale):
            factor = np.broadcast_to(op.factor, shape).reshape(-1)
            if top and op.divides and not any(isinstance(x, Affine) for x in layers) and bool(np.all(factor > 0)):
                layers.append(Normalise(np.zeros(n), factor.copy()))  # exact: the quotient itself
            else:
                self._diagonal(layers, node, 1.0 / factor if op.divides else factor)
        elif isinstance(op, Shift):
            offset = np.broadcast_to(op.offset, shape).reshape(-1)
            if top and not any(isinstance(x, Affine) for x in layers):
                layers.append(Normalise(-offset, np.ones(n)))
            else:
                self._diagonal(layers, node, None, offset)
        elif isinstance(op, Linear):
            tokens = n // op.weight.shape[1]
            self.spend(node, m, n)
            bias = None if op.bias is None else np.tile(op.bias, tokens)
            layers.append(Affine(np.asarray(np.kron(np.eye(tokens), op.weight), dtype=np.float64), bias))
        elif isinstance(op, Conv):
            self._convolved(layers, node, op, shape)
        elif isinstance(op, (AvgPool, AdaptiveAvgPool)):
            self.spend(node, m, n)
            layers.append(Affine(_materialised(op, shape)))
        elif isinstance(op, Mean):
            self.spend(node, m, n)
            axes = tuple(a % len(shape) for a in op.axes)
            last = tuple(range(len(shape) - len(axes), len(shape)))
            groups = np.moveaxis(_numbers(shape), axes, last).reshape(m, n // m).astype(np.int64)
            matrix = np.zeros((m, n))
            matrix[np.arange(m)[:, None], groups] = 1.0 / (n // m)
            layers.append(Affine(matrix))
        else:
            raise UnsupportedLayerError(
                str(node), got=f"a {node.op.kind}", needed="an operation of certbound.ops with a matrix",
                fix="use lipschitz_product",
            )  # fmt: skip

    def _convolved(self, layers: list[Layer], node: Node, op: Conv, shape: Shape) -> None:
        if op.padding_mode != "zeros":
            # two exact matrices: where taps of a kernel meet on one pixel, their sum would be rounded
            mode = PADDING_MODES[op.padding_mode]
            moved = np.pad(_numbers(shape), ((0, 0), (0, 0), *op.padding), mode=mode)  # type: ignore[call-overload]
            self._selected(layers, node, moved.reshape(-1).astype(np.int64), math.prod(shape), 0.0)
            op, shape = replace(op, padding=((0, 0),) * len(op.kernel), padding_mode="zeros"), tuple(moved.shape)
        out = op.output_shape(shape)
        self.spend(node, math.prod(out), math.prod(shape))
        bias = None if op.bias is None else np.tile(np.repeat(op.bias, math.prod(out[2:])), out[0])
        layers.append(Affine(_materialised(replace(op, bias=None), shape), bias))

    def _clipped(self, layers: list[Layer], node: Node, n: int) -> None:
        """``min(max(x, low), high) = low + relu(x − low) − relu(x − high)``."""
        op = node.op
        assert isinstance(op, Clip)
        one = self.identity(node, n)
        if math.isinf(op.low) and math.isinf(op.high):
            return
        if math.isinf(op.high):
            layers += [Affine(one, np.full(n, -op.low)), ReLU(), Affine(self.identity(node, n), np.full(n, op.low))]
        elif math.isinf(op.low):
            layers += [Affine(-one, np.full(n, op.high)), ReLU(), Affine(-self.identity(node, n), np.full(n, op.high))]
        else:
            self.spend(node, n, 2 * n)
            bends = np.concatenate([np.full(n, -op.low), np.full(n, -op.high)])
            layers += [Affine(np.vstack([one, one]), bends), ReLU(), Affine(np.hstack([one, -one]), np.full(n, op.low))]

    def _diagonal(self, layers: list[Layer], node: Node, scale: F64 | None, shift: F64 | None = None) -> None:
        """``scale ∘ x + shift``, folded into an affine layer before it."""
        n = len(scale) if scale is not None else len(shift) if shift is not None else 0
        last = layers[-1] if layers else None
        if not isinstance(last, Affine):
            layers.append(Affine(self.identity(node, n) if scale is None else np.diag(scale), shift))
            if scale is not None:
                self.spend(node, n, n)
            return
        weight: F64 = last.weight if scale is None else scale[:, None] * last.weight
        bias = last.bias if last.bias is None or scale is None else scale * last.bias
        if shift is not None:
            bias = shift if bias is None else bias + shift
        layers[-1] = Affine(weight.copy(), None if bias is None else bias.copy())

    def _selected(
        self, layers: list[Layer], node: Node, indices: npt.NDArray[np.int64], n: int, value: float
    ) -> None:
        """``y_k = x[indices[k]]``, or ``value`` where the index is −1."""
        if len(indices) == n and bool(np.all(indices == np.arange(n))):
            return
        outside = indices < 0
        offset = np.where(outside, value, 0.0)
        last = layers[-1] if layers else None
        if isinstance(last, Affine):
            self.spend(node, len(indices), last.weight.shape[1])
            weight = np.where(outside[:, None], 0.0, last.weight[indices])
            bias = offset if last.bias is None else np.where(outside, value, last.bias[indices])
            layers[-1] = Affine(weight, bias if bias.any() else None)
            return
        self.spend(node, len(indices), n)
        matrix = np.zeros((len(indices), n))
        inside = np.flatnonzero(~outside)
        matrix[inside, indices[inside]] = 1.0
        layers.append(Affine(matrix, offset if offset.any() else None))

    def identity(self, node: Node, n: int) -> F64:
        """An identity matrix, counted."""
        self.spend(node, n, n)
        return np.eye(n)

    def spend(self, node: Node, rows: int, columns: int) -> None:
        """Count the entries of one more matrix."""
        self._used += rows * columns
        if self._used > self._limit:
            raise UnsupportedLayerError(
                str(node),
                got=f"a matrix of {rows} x {columns}, {self._used:,} entries with those before it",
                needed=f"at most {self._limit:,} dense entries",
                fix="use lipschitz_product, which forms no dense operator, or a larger limit",
            )


def _numbers(shape: Shape) -> F64:
    """0, 1, 2, … in that shape: moved as values are, they tell where those go. Exact below 2^53."""
    return np.arange(math.prod(shape), dtype=np.float64).reshape(shape)


def _materialised(op: Op, shape: Shape) -> F64:
    """The matrix of a linear operation on images, from what it makes of unit vectors."""
    n = math.prod(shape)
    columns: list[F64] = []
    for first in range(0, n, _CHUNK):
        units: F64 = np.eye(n)[first : first + _CHUNK] if n <= _CHUNK else _units(n, first, min(first + _CHUNK, n))
        columns.append(op.apply(units.reshape(-1, *shape[1:])).reshape(len(units), -1))
    return np.ascontiguousarray(np.concatenate(columns).T)


def _units(n: int, first: int, stop: int) -> F64:
    units = np.zeros((stop - first, n))
    units[np.arange(stop - first), np.arange(first, stop)] = 1.0
    return units


def rounded_parts(graph: Graph) -> tuple[str, ...]:
    """The nodes whose numbers :func:`dense_network` rounds, so that its network is not exactly the graph.

    >>> from certbound.ops import Input
    >>> rounded_parts(Graph((Node(Input((1, 2))), Node(Linear([[1.0, 2.0]]), (0,)))))
    ()
    """
    kinds = (BatchNorm, Scale, AvgPool, AdaptiveAvgPool, Mean)
    return tuple(str(node) for node in graph.nodes if isinstance(node.op, kinds))


def dense_model(model: object, input_shape: tuple[int, ...] | None = None) -> tuple[Network, tuple[str, ...]]:
    """A model as a Network of dense layers, and what a claim on it takes for granted about the model.

    ``model``: what :func:`~certbound.network.as_network` reads; or, with ``input_shape`` (of one sample, without the
    batch axis), a module that :func:`certbound.graph.as_graph` reads and :func:`dense_network` lowers.

    >>> dense_model([[[1.0, 2.0]]])[0].n_inputs, dense_model([[[1.0, 2.0]]])[1]
    (2, ())
    """
    found = model if isinstance(model, Graph) or input_shape is None else read_model(model, input_shape=input_shape)
    rounded = rounded_parts(found) if isinstance(found, Graph) else ()
    assumes = "it is about the dense network in which {} are rounded to float64 numbers, each within 1e-14 of itself"
    return as_network(found), (assumes.format(", ".join(rounded)),) if rounded else ()


__all__ = ["dense_model", "dense_network", "immediate_dominators", "rounded_parts"]
