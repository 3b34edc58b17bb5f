"""The IR of real architectures: a directed acyclic graph of operations on shaped float64 values of one sample.

A :class:`~certbound.network.Network` is a chain of dense layers, for which everything can be proved; a :class:`Graph`
is a network as users bring them: convolutions, pooling, residual sums, concatenations, normalisation, attention. No
operator is ever formed densely. What an importer cannot translate into :mod:`certbound.ops` is refused, never ignored.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np

from certbound.arrays import F64, as_float64, digest, is_torch
from certbound.errors import InputError, UnsupportedLayerError
from certbound.network import Network, as_network
from certbound.ops import Constant, Input, Op, Shape


@dataclass(frozen=True, eq=False)
class Node:
    """One value: an operation on earlier values.

    ``name``: the path of the module in the user's model (``layer1.0.conv1``), or of what computes it, for errors and
    tables; ``inputs``: indices of earlier nodes; ``parameters``: names of the model's parameters that the operation
    reads (``layer1.0.conv1.weight``).
    """

    op: Op
    inputs: tuple[int, ...] = ()
    name: str = ""
    parameters: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name or 'the model itself'} ({self.op.kind})"


@dataclass(frozen=True, eq=False)
class Graph:
    """An immutable float64 network in single-assignment form; the last node is the output.

    Parameters
    ----------
    nodes : the first is an :class:`~certbound.ops.Input`, every other one reads earlier nodes.

    Raises
    ------
    InputError : an input that is no earlier node, a second Input, a wrong number of values, shapes that do not fit
        (named with the node).

    >>> from certbound.ops import Add, Linear, Pointwise
    >>> from certbound.activations import Activation
    >>> relu = Node(Pointwise(Activation("relu")), (1,))
    >>> block = Graph((Node(Input((1, 2))), Node(Linear([[2.0, 0.0], [0.0, 2.0]]), (0,)), relu, Node(Add(), (0, 2))))
    >>> block.forward([[3.0, -1.0]])  # x + relu(2 x)
    array([[ 9., -1.]])
    """

    nodes: tuple[Node, ...]

    def __post_init__(self) -> None:
        nodes = tuple(cast("Sequence[Node]", self.nodes))
        object.__setattr__(self, "nodes", nodes)
        if not nodes or not isinstance(nodes[0].op, Input):
            raise InputError("nodes", got="no Input first", needed="an Input as the first node", fix="begin with it")
        if nodes[0].op.shape[:1] != (1,) or len(nodes[0].op.shape) < 2:
            raise InputError(
                "nodes", got=f"an Input of shape {nodes[0].op.shape}", needed="(1, …), one sample", fix="add the axis"
            )
        for i, node in enumerate(nodes):
            if i and isinstance(node.op, Input):
                raise InputError(f"nodes[{i}]", got="a second Input", needed="one Input", fix="join the inputs first")
            arity = node.op.arity
            if not all(0 <= j < i for j in node.inputs) or (
                len(node.inputs) != arity if arity is not None else not node.inputs
            ):
                raise InputError(
                    f"nodes[{i}]", got=f"{node} on the values {node.inputs}",
                    needed=f"{'some' if arity is None else arity} earlier values", fix="see the importer",
                )  # fmt: skip
        _ = self.shapes

    @cached_property
    def shapes(self) -> tuple[Shape, ...]:
        """Shape of every value, with the leading axis 1 of the sample."""
        found: list[Shape] = []
        for node in self.nodes:
            try:
                found.append(node.op.output_shape(*(found[j] for j in node.inputs)))
            except InputError as error:
                raise InputError(str(node), got=error.got, needed=error.needed, fix=error.fix) from error
        return tuple(found)

    @property
    def input_shape(self) -> Shape:
        """Shape of one sample, without the leading axis."""
        return self.shapes[0][1:]

    @property
    def n_inputs(self) -> int:
        """Numbers of one sample."""
        return math.prod(self.input_shape)

    @property
    def n_outputs(self) -> int:
        """Numbers of one output."""
        return math.prod(self.shapes[-1])

    @property
    def is_relu_chain(self) -> bool:
        """False: a graph has no :attr:`certbound.network.Network.chain`."""
        return False

    @cached_property
    def digest(self) -> str:
        """Digest of operations, their order and weights: what a claim on this network names as its subject."""
        return digest(*self._digest_parts())

    def _digest_parts(self) -> Iterator[Any]:
        yield np.frombuffer(b"Graph", dtype=np.uint8)
        for node in self.nodes:
            yield np.array(node.inputs, dtype=np.int64)
            yield from node.op.parts()

    @cached_property
    def last_uses(self) -> tuple[int, ...]:
        """For each node the last one that reads it (itself, if none does): its value is not needed after that."""
        last = list(range(len(self.nodes)))
        for i, node in enumerate(self.nodes):
            for j in node.inputs:
                last[j] = i
        return tuple(last)

    def values(self, sample: F64) -> Iterator[F64]:
        """The value of every node at one sample (flat or of the input's shape), in order; each is dropped after its
        last use.
        """
        kept: dict[int, F64] = {}
        for i, node in enumerate(self.nodes):
            if i == 0:
                value = np.asarray(sample, dtype=np.float64).reshape(self.shapes[0])
            else:
                value = node.op.apply(*(kept[j] for j in node.inputs))
            kept[i] = value
            for j in (*node.inputs, i):
                if self.last_uses[j] <= i:
                    kept.pop(j, None)
            yield value

    def forward(self, x: object) -> F64:
        """Outputs in float64, shape (samples, outputs); input of any shape (samples, …)."""
        flat = self.flat_inputs(x)
        return np.stack([self._output(sample) for sample in flat])

    def _output(self, sample: F64) -> F64:
        value = np.empty(0)
        for value in self.values(sample):  # noqa: B007  # the last one is wanted
            pass
        return value.reshape(-1)

    def flat_inputs(self, x: object, name: str = "x") -> F64:
        """Check a batch of inputs and flatten it to (samples, inputs)."""
        array = as_float64(x, name)
        if array.ndim < 2 or array.shape[0] == 0 or math.prod(array.shape[1:]) != self.n_inputs:
            raise InputError(
                name,
                got=f"shape {array.shape}",
                needed=f"(samples, …) with {self.n_inputs} numbers per sample ({self.input_shape}) and at least one",
                fix="add a batch axis with x[None]" if array.size == self.n_inputs else "check the model's input size",
            )
        # images (H, W, C) for a graph of (C, H, W) have as many numbers, in another order; axes of 1 do not matter
        axes, own = (tuple(n for n in shape if n != 1) for shape in (array.shape[1:], self.input_shape))
        if len(axes) > 1 and len(own) > 1 and axes != own:
            raise InputError(
                name,
                got=f"samples of shape {array.shape[1:]}",
                needed=f"{self.input_shape}, or flat ones",
                fix="move the axes, x.transpose(0, 3, 1, 2) for images with their channels last",
            )
        return array.reshape(array.shape[0], -1)

    def constant_nodes(self) -> frozenset[int]:
        """Nodes whose value does not depend on the input."""
        found: set[int] = set()
        for i, node in enumerate(self.nodes):
            if isinstance(node.op, Constant) or (i and node.inputs and all(j in found for j in node.inputs)):
                found.add(i)
        return frozenset(found)

    def __str__(self) -> str:
        return f"Graph of {len(self.nodes)} nodes, {self.input_shape} -> {self.n_outputs} outputs"


def as_graph(model: object, *, input_shape: Shape | None = None) -> Graph:
    """Read an ``nn.Module``, a Graph, a :class:`~certbound.network.Network` or a list of weight matrices.

    ``input_shape``: shape of one sample without the batch axis; needed for an ``nn.Module``, whose convolutions depend
    on it.

    Raises
    ------
    UnsupportedLayerError : an operation outside :mod:`certbound.ops`, named with its path in the module.
    InputError : anything that is no network; an input of another shape.

    >>> as_graph([[[1.0, -1.0]], [[2.0]]]).forward([[3.0, 1.0]])
    array([[4.]])
    """
    if isinstance(model, Graph):
        if input_shape is not None and tuple(input_shape) != model.input_shape:
            raise InputError(
                "input_shape",
                got=str(tuple(input_shape)),
                needed=f"{model.input_shape}, the input of the graph",
                fix="leave it out, or import the model again for the other size",
            )
        return model
    if is_torch(model, "Module"):
        from certbound.io.exported import from_module

        return from_module(cast("Any", model), input_shape=input_shape)
    from certbound.io.network_graph import from_network

    return from_network(as_network(model, input_shape=input_shape))


def read_model(model: object, *, input_shape: Shape | None = None) -> Network | Graph:
    """The model as a Network where it is a chain of dense layers, else as a Graph.

    A Network can have every bound; what only a :class:`Graph` can hold has those that are defined for it.

    Raises
    ------
    UnsupportedLayerError, InputError : the model is neither; without ``input_shape`` why it is no Network, and that a
        Graph needs the shape.

    >>> type(read_model([[[1.0, -1.0]], [[2.0]]])).__name__
    'Network'
    """
    if isinstance(model, Graph):
        return as_graph(model, input_shape=input_shape)
    try:
        return as_network(model, input_shape=input_shape)
    except UnsupportedLayerError as error:
        if not is_torch(model, "Module"):
            raise
        if input_shape is None:
            raise InputError(
                "input_shape",
                got=f"None, for a model that is no chain of dense layers ({error.got})",
                needed="the shape of one sample without the batch axis: the size of a convolution depends on it",
                fix="pass input_shape=(3, 224, 224) for colour images of that size",
            ) from error
    return as_graph(model, input_shape=input_shape)


__all__ = ["Graph", "Node", "as_graph", "read_model"]
