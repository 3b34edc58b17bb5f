"""Builds a :class:`~certbound.graph.Graph` node by node: what the importers of ``nn.Module`` and ONNX share.

Operations of :mod:`certbound.ops` broadcast nothing and know only one value or several; here a sum, product or product
of matrices with constants and broadcasting, as torch and ONNX write it, is translated into them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn, cast

import numpy as np

from certbound.arrays import F64
from certbound.errors import InputError, UnsupportedLayerError
from certbound.graph import Graph, Node
from certbound.ops import (
    Add,
    Concat,
    Constant,
    Expand,
    Input,
    Linear,
    MatMul,
    Multiply,
    Op,
    Permute,
    Reshape,
    Scale,
    Shape,
    Shift,
    Slice,
    Softmax,
)

if TYPE_CHECKING:
    from typing_extensions import TypeIs  # no dependency: for the type checker only

Operand = int | F64
"""A node's index, or an array: a constant."""


def parse_input_shape(shape: object, name: str = "input_shape") -> Shape:
    """The shape of one sample, without the batch axis; InputError if it is none.

    >>> parse_input_shape([3, 32, 32])
    (3, 32, 32)
    """
    entries = tuple(cast("Sequence[Any]", shape)) if isinstance(shape, (tuple, list)) else ()
    if not entries or not all(isinstance(s, (int, np.integer)) and not isinstance(s, bool) and s > 0 for s in entries):
        raise InputError(
            name,
            got=repr(shape),
            needed="a tuple of positive integers, the shape of one sample without the batch axis",
            fix="pass (3, 224, 224) for colour images of that size, (784,) for flat input",
        )
    return tuple(int(s) for s in entries)


@dataclass
class GraphBuilder:
    """A graph that grows node by node; shapes are known and checked at every step.

    ``places``: after :meth:`finish`, where each node that was kept stands in the graph.

    Parameters
    ----------
    input_shape : shape of one sample without the batch axis; node 0 is the Input ``(1, *input_shape)``.

    >>> from certbound.ops import Linear
    >>> builder = GraphBuilder((2,))
    >>> h = builder.add(Linear([[1.0, 1.0], [0.0, 1.0]]), 0, name="first")
    >>> builder.shape(h), builder.finish(builder.sum(h, 0)).forward([[3.0, 1.0]]).tolist()
    ((1, 2), [[7.0, 2.0]])
    """

    input_shape: Shape
    nodes: list[Node] = field(default_factory=list[Node], init=False)
    places: dict[int, int] = field(default_factory=dict[int, int], init=False)
    _shapes: list[Shape] = field(default_factory=list[Shape], init=False)

    def __post_init__(self) -> None:
        self.input_shape = parse_input_shape(self.input_shape)
        self.add(Input((1, *self.input_shape)), name="input")

    def shape(self, node: int) -> Shape:
        """Shape of a node's value, with the leading axis 1."""
        return self._shapes[node]

    def array(self, node: int) -> F64 | None:
        """The value of a node that is a constant; None where it depends on the input."""
        op = self.nodes[node].op
        return op.value if isinstance(op, Constant) else None

    def add(self, op: Op, *inputs: int, name: str = "", parameters: Sequence[str] = ()) -> int:
        """Append one node and return its index; an operation on constants alone is computed at once.

        Raises
        ------
        InputError : shapes that do not fit, named with the node.
        """
        names = tuple(dict.fromkeys(parameters))
        try:
            shape = op.output_shape(*(self._shapes[i] for i in inputs))
        except InputError as error:
            where = str(Node(op, inputs, name))
            raise InputError(where, got=error.got, needed=error.needed, fix=error.fix) from error
        if inputs and all(isinstance(self.nodes[i].op, Constant) for i in inputs):
            arrays = [cast("Constant", self.nodes[i].op).value for i in inputs]
            names = tuple(dict.fromkeys([*(p for i in inputs for p in self.nodes[i].parameters), *names]))
            op, inputs = Constant(op.apply(*arrays)), ()
        self.nodes.append(Node(op, tuple(inputs), name, names))
        self._shapes.append(shape)
        return len(self.nodes) - 1

    def node(self, operand: Operand, *, name: str = "", parameters: Sequence[str] = ()) -> int:
        """The node of an operand; an array becomes a Constant."""
        if _is_index(operand):
            return int(operand)
        return self.add(Constant(np.asarray(operand)), name=name, parameters=parameters)

    def expand(self, node: int, shape: Shape, *, name: str = "") -> int:
        """Broadcast to ``shape``, if it has another one."""
        return node if self._shapes[node] == shape else self.add(Expand(shape), node, name=name)

    def reshape(self, node: int, shape: Shape, *, name: str = "") -> int:
        """Reshape, if the shape is another one; two in a row become one."""
        while isinstance(self.nodes[node].op, Reshape):
            (node,) = self.nodes[node].inputs
        return node if self._shapes[node] == shape else self.add(Reshape(shape), node, name=name)

    def permute(self, node: int, axes: Sequence[int], *, name: str = "") -> int:
        """Permute the axes, if that changes their order; two in a row become one."""
        n = len(self._shapes[node])
        order = tuple(a % n if -n <= a < n else a for a in axes)
        op = self.nodes[node].op
        if isinstance(op, Permute) and sorted(order) == list(range(n)):
            (node,), order = self.nodes[node].inputs, tuple(op.axes[a] for a in order)
        return node if order == tuple(range(n)) else self.add(Permute(order), node, name=name)

    def swap(self, node: int, *, name: str = "") -> int:
        """Transpose the last two axes."""
        n = len(self._shapes[node])
        return self.permute(node, (*range(n - 2), n - 1, n - 2), name=name)

    # -- broadcasting arithmetic ------------------------------------------------------------------------------------

    def sum(
        self, a: Operand, b: Operand, *, subtracts: bool = False, name: str = "", parameters: Sequence[str] = ()
    ) -> int:
        """``a + b`` or ``a − b`` with numpy's broadcasting; a constant becomes a Shift."""
        a, b, parameters = self._operands(a, b, parameters)
        shape = self._broadcast(a, b, "sum", name)
        if isinstance(a, int) and isinstance(b, int):
            pair = (self.expand(a, shape, name=name), self.expand(b, shape, name=name))
            return self.add(Add(subtracts), *pair, name=name, parameters=parameters)
        if isinstance(a, int):
            value, offset = self.expand(a, shape, name=name), cast("F64", -b if subtracts else b)
        elif isinstance(b, int):
            value, offset = self.expand(b, shape, name=name), a
            if subtracts:
                value = self.add(Scale(np.array(-1.0)), value, name=name)
        else:
            return self.node(a - b if subtracts else a + b, name=name, parameters=parameters)
        return self.add(Shift(offset), value, name=name, parameters=parameters)

    def product(self, a: Operand, b: Operand, *, name: str = "", parameters: Sequence[str] = ()) -> int:
        """``a ∘ b`` with numpy's broadcasting; a constant becomes a Scale."""
        a, b, parameters = self._operands(a, b, parameters)
        if not isinstance(a, int) and not isinstance(b, int):
            return self.node(a * b, name=name, parameters=parameters)
        shape = self._broadcast(a, b, "product", name)
        if isinstance(a, int) and isinstance(b, int):
            pair = (self.expand(a, shape, name=name), self.expand(b, shape, name=name))
            return self.add(Multiply(), *pair, name=name, parameters=parameters)
        value, constant = (a, b) if isinstance(a, int) else (b, a)
        value = self.expand(cast("int", value), shape, name=name)
        return self.add(Scale(cast("F64", constant)), value, name=name, parameters=parameters)

    def quotient(self, a: Operand, b: Operand, *, name: str = "", parameters: Sequence[str] = ()) -> int:
        """``a / b`` for a constant b that is nowhere 0.

        Raises
        ------
        UnsupportedLayerError : b depends on the input: the quotient has no bounded slope.
        """
        a, b, parameters = self._operands(a, b, parameters)
        if isinstance(b, int):
            raise UnsupportedLayerError(
                "model",
                got=f"{name or 'the model itself'}, which divides by a value computed from the input",
                needed="a constant divisor",
                fix="such a quotient has no bounded slope: pass the part of the model before it",
            )
        value = self.expand(self.node(a, name=name), self._broadcast(a, b, "quotient", name), name=name)
        return self.add(Scale(b, divides=True), value, name=name, parameters=parameters)

    def matmul(self, a: Operand, b: Operand, *, name: str = "", parameters: Sequence[str] = ()) -> int:
        """``a @ b`` as ``np.matmul``; a constant matrix becomes a Linear, from the left one of the transposed value."""
        a, b, parameters = self._operands(a, b, parameters)
        if not isinstance(a, int) and not isinstance(b, int):
            return self.node(np.asarray(a @ b), name=name, parameters=parameters)
        if isinstance(a, int) and not isinstance(b, int) and b.ndim == 2:
            return self.add(Linear(b.T), a, name=name, parameters=parameters)
        if isinstance(b, int) and not isinstance(a, int) and a.ndim == 2 and len(self.shape(b)) >= 2:
            product = self.add(Linear(a), self.swap(b, name=name), name=name, parameters=parameters)
            return self.swap(product, name=name)
        left, right = self.node(a, name=name, parameters=parameters), self.node(b, name=name, parameters=parameters)
        rows, columns = self._shapes[left], self._shapes[right]
        if min(len(rows), len(columns)) == 0:
            self._refuse_shapes(rows, columns, "product of matrices", name)
        if len(rows) == 1:
            left = self.reshape(left, (1, *rows), name=name)
        if len(columns) == 1:
            right = self.reshape(right, (*columns, 1), name=name)
        one, other = self._shapes[left], self._shapes[right]
        try:
            batch = tuple(np.broadcast_shapes(one[:-2], other[:-2]))
        except ValueError:
            self._refuse_shapes(rows, columns, "product of matrices", name)
        left = self.expand(left, (*batch, *one[-2:]), name=name)
        right = self.expand(right, (*batch, *other[-2:]), name=name)
        product = self.add(MatMul(), left, right, name=name)
        final = (*batch, *one[-2:-1][: len(rows) - 1], *other[-1:][: len(columns) - 1])
        return self.reshape(product, final, name=name)

    def attention(
        self,
        query: int,
        key: int,
        value: int,
        *,
        scale: float | None = None,
        mask: Operand | None = None,
        name: str = "",
    ) -> int:
        """``softmax(scale · q kᵀ + mask) v`` over the last two axes; ``scale`` None: ``1/√(width of q)``.

        The mask is added to the scores.
        """
        factor = 1.0 / math.sqrt(self._shapes[query][-1]) if scale is None else scale
        scaled = self.product(query, np.array(factor), name=name)
        scores = self.matmul(scaled, self.swap(key, name=name), name=name)
        if mask is not None:
            scores = self.sum(scores, mask, name=name)
        return self.matmul(self.add(Softmax(-1), scores, name=name), value, name=name)

    # -- parts of a value -------------------------------------------------------------------------------------------

    def slice(self, node: int, axis: int, start: int, stop: int, step: int = 1, *, name: str = "") -> int:
        """``x[start:stop:step]`` along one axis; nothing where that is all of it."""
        if (start, step) == (0, 1) and stop == self._shapes[node][axis]:
            return node
        return self.add(Slice(axis, start, stop, step), node, name=name)

    def concat(self, operands: Sequence[Operand], axis: int, *, name: str = "", parameters: Sequence[str] = ()) -> int:
        """Values and constants one after the other along an axis."""
        nodes = [self.node(part, name=name, parameters=parameters) for part in operands]
        return nodes[0] if len(nodes) == 1 else self.add(Concat(axis), *nodes, name=name)

    # -- the end ----------------------------------------------------------------------------------------------------

    def finish(self, output: int | None = None) -> Graph:
        """The graph whose last node is ``output`` (default: the last one added), without nodes that it does not need.

        Raises
        ------
        InputError : the output does not depend on the input.
        """
        last = len(self.nodes) - 1 if output is None else output
        needed = {last}
        for i in range(last, -1, -1):
            if i in needed:
                needed.update(self.nodes[i].inputs)
        if 0 not in needed:
            raise InputError(
                "model",
                got="an output that does not depend on the input",
                needed="a function of the input",
                fix="check which tensors forward combines",
            )
        self.places = place = {old: new for new, old in enumerate(sorted(needed))}
        kept = (self.nodes[old] for old in place)
        return Graph(tuple(Node(n.op, tuple(place[j] for j in n.inputs), n.name, n.parameters) for n in kept))

    # -- helpers ----------------------------------------------------------------------------------------------------

    def _operands(
        self, a: Operand, b: Operand, parameters: Sequence[str]
    ) -> tuple[Operand, Operand, tuple[str, ...]]:
        """Both operands, Constants as arrays, and the parameters that these come from."""
        names, found = list[str](), list[Operand]()
        for operand in (a, b):
            if not _is_index(operand):
                found.append(np.asarray(operand))  # a 0-d array may have become a numpy number
                continue
            array = self.array(operand)
            if array is not None:
                names.extend(self.nodes[operand].parameters)
            found.append(int(operand) if array is None else array)
        return found[0], found[1], tuple(dict.fromkeys([*names, *parameters]))

    def _operand_shape(self, operand: Operand) -> Shape:
        return self._shapes[operand] if _is_index(operand) else tuple(operand.shape)

    def _broadcast(self, a: Operand, b: Operand, what: str, name: str) -> Shape:
        one, other = self._operand_shape(a), self._operand_shape(b)
        try:
            return tuple(np.broadcast_shapes(one, other))
        except ValueError:
            self._refuse_shapes(one, other, what, name)

    def _refuse_shapes(self, one: Shape, other: Shape, what: str, name: str) -> NoReturn:
        raise InputError(
            name or "the model itself",
            got=f"a {what} of shapes {one} and {other}",
            needed="shapes that broadcast",
            fix="check which values it takes",
        )


def _is_index(operand: Operand) -> TypeIs[int]:
    return isinstance(operand, (int, np.integer))


__all__ = ["GraphBuilder", "Operand", "parse_input_shape"]
