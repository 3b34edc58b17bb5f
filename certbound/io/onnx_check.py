"""The round trip: every node of an ONNX file against the onnx package's own reference implementation.

The reference is slow Python, made for clarity, which is what one wants of a second opinion; it is run in float64, one
operator at a time, on the values that the graph computed for a random sample. So an error cannot hide behind later
layers, none is amplified by them, and the node where it arises is known. Convolutions and pooling of large images are
compared on a part of the image and of the channels, since the operation is the same at every place.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from certbound.arrays import F64
from certbound.errors import InputError
from certbound.graph import Graph
from certbound.io.onnx_tensors import Array
from certbound.io.onnx_values import Const, LimitedBuilder, OnnxNode, Value, kept
from certbound.io.onnx_wire import import_onnx
from certbound.ops import AvgPool, BatchNorm, Conv, Linear, MatMul, MaxPool, Op, Pointwise

logger = logging.getLogger(__name__)

_TOLERANCE: Final = 1e-10
"""Relative to the sum of the absolute values of what is added: 1e5 terms are rounded by 1e5 · 2^-53 = 1e-11."""
_ROUNDED: Final = 1e-6
"""For GELU: the file's √2 or √(2/π), and those of the reference, are float32 (relative 2^-24, a few times)."""
_SIDE: Final = 20
_WORK: Final = 2**22
"""Entries of the reference's table of windows, above which a part is compared."""
_SLOW: Final = frozenset({"ScatterND", "GatherND", "GatherElements", "CumSum"})
"""Loops in Python, left out for large constants."""
_STATED: Final = frozenset({"Constant", "ConstantOfShape", "DequantizeLinear"})
"""Only state numbers: the reference would round them to float32."""
_KEPT: Final = frozenset({"Cast", "CastLike", "Dropout", "Identity"})
"""The identity, in exact arithmetic and evaluation mode."""


@dataclass
class Traced:
    """What reading a file leaves for the check: the builder, the nodes in order, and the value of every name."""

    builder: LimitedBuilder
    opset: int
    values: dict[str, Value]
    input: str
    nodes: list[OnnxNode] = field(default_factory=list[OnnxNode])
    output: int = 0


def check_round_trip(traced: Traced, graph: Graph, argument: str, seed: int = 0) -> None:
    """Compare every value of the graph at a random sample with what ONNX says its node gives.

    Raises
    ------
    InputError : they differ; the node is named.
    """
    sample = np.random.default_rng(seed).standard_normal(graph.n_inputs)
    env = _Values(traced, graph, sample)
    reference: dict[str, Array | None] = {}  # of values that the graph does not have: steps of patterns
    last_use = {name: i for i, node in enumerate(traced.nodes) for name in node.proto.input}
    for i, node in enumerate(traced.nodes):
        with np.errstate(all="ignore"):
            _compare(node, env, reference, traced, argument)
        for name in [*node.proto.input, *node.proto.output]:
            if last_use.get(name, -1) <= i:
                reference.pop(name, None)
                env.drop(name)


class _Values:
    """The graph's values by their names in the file, computed as they are asked for."""

    def __init__(self, traced: Traced, graph: Graph, sample: F64) -> None:
        self.traced = traced
        places = _places(traced.builder, traced.output)
        self.place = {name: places[v] for name, v in traced.values.items() if isinstance(v, int) and v in places}
        self.op = {name: graph.nodes[at].op for name, at in self.place.items()}
        self.graph = graph
        self.names: dict[int, set[str]] = {}
        for name, at in self.place.items():
            self.names.setdefault(at, set()).add(name)
        self.values: Iterator[F64] = graph.values(sample)
        self.found: list[F64 | None] = []

    def get(self, name: str) -> Array | None:
        """A constant, a value of the graph, or None."""
        value = self.traced.values.get(name)
        if isinstance(value, Const):
            return value.array
        at = self.place.get(name)
        if at is None:
            return None
        with np.errstate(all="ignore"):
            while len(self.found) <= at:
                value_at = next(self.values)
                self.found.append(value_at if len(self.found) in self.names else None)
        return self.found[at]

    def is_gelu(self, name: str) -> bool:
        """Is the value a GELU, perhaps scaled?"""
        at = self.place.get(name, 0)
        ops = [self.graph.nodes[i].op for i in (at, *self.graph.nodes[at].inputs[:1])]
        return any(isinstance(op, Pointwise) and op.activation.name.startswith("gelu") for op in ops)

    def drop(self, name: str) -> None:
        """Forget a value that no later node takes."""
        at = self.place.get(name)
        if at is not None and at < len(self.found):
            self.names[at].discard(name)
            if not self.names[at]:
                self.found[at] = None


def _places(builder: LimitedBuilder, output: int) -> dict[int, int]:
    """Builder's index → graph's, as :meth:`GraphBuilder.finish` numbers them."""
    needed = {output}
    for i in range(output, -1, -1):
        if i in needed:
            needed.update(builder.nodes[i].inputs)
    return {old: new for new, old in enumerate(sorted(needed))}


def _compare(
    node: OnnxNode, env: _Values, reference: dict[str, Array | None], traced: Traced, argument: str
) -> None:
    """One node: what the graph has of its outputs against the reference, which also gives what the graph lacks."""
    inputs: list[Array | None] = []
    for name in node.proto.input:
        own = env.get(name) if name else None
        if name and own is None:
            own = reference.get(name)
            if own is None:
                return  # a branch that leads to no output
        inputs.append(own)
    names = [n for n in node.proto.output if n]
    if not names or node.op in _STATED or (node.op in _SLOW and _all_constant(node) and _numbers(inputs) > 10**5):
        return
    mine = [env.get(n) for n in names]
    part = _part(node, inputs, env.op.get(names[0]), mine[0])
    if part is not None:
        inputs, mine = part
    found = _reference(node, inputs, traced.opset, argument)
    for name, own, other in zip(names, mine, found, strict=False):
        if own is None:
            reference[name] = other
            continue
        if own.shape != other.shape:
            raise _failed(node, argument, f"shape {own.shape} instead of {other.shape}")
        tolerance = _ROUNDED if env.is_gelu(name) else _TOLERANCE
        error = _error(own, other)
        if error > tolerance * _size(own, *inputs) and error > tolerance * _magnitude(env.op.get(name), inputs, own):
            raise _failed(node, argument, f"values that differ by {error:.3g}")


def _all_constant(node: OnnxNode) -> bool:
    return all(isinstance(v, Const) for v in node.inputs if v is not None)


def _numbers(arrays: list[Array | None]) -> int:
    return sum(a.size for a in arrays if a is not None)


def _failed(node: OnnxNode, argument: str, got: str) -> InputError:
    return InputError(
        argument, got=f"{node.label}: {got} in the round trip through onnx.reference", needed="equal values",
        fix="please report it, with the file: certbound or the onnx package reads this operator wrongly",
    )  # fmt: skip


def _error(a: Array, b: Array) -> float:
    """Largest difference of the numbers that are finite in both; ∞ where one is NaN alone."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    if not np.array_equal(np.isnan(x), np.isnan(y)):
        return math.inf
    finite = np.isfinite(x) & np.isfinite(y)
    return float(np.max(np.abs(x - y), where=finite, initial=0.0))


def _size(*arrays: Array | None) -> float:
    numbers = [a for a in arrays if a is not None and a.size and a.dtype == np.float64]
    return max((float(np.max(np.abs(a), where=np.isfinite(a), initial=0.0)) for a in numbers), default=0.0)


def _magnitude(op: Op | None, inputs: list[Array | None], own: Array) -> float:
    """The largest sum of absolute values that rounding acts on."""
    x = next((np.abs(a) for a in inputs if a is not None and a.dtype == np.float64), None)
    if x is None:
        return _size(own, *inputs)
    if isinstance(op, (Conv, Linear)) and len(inputs) > 1:
        bias = None if op.bias is None else np.abs(op.bias)
        positive = replace(op, weight=np.abs(op.weight), bias=bias)
        try:
            return _size(positive.apply(x))
        except InputError:
            return _size(own, *inputs)
    if isinstance(op, MatMul) and len(inputs) == 2 and inputs[0] is not None and inputs[1] is not None:
        return _size(np.abs(inputs[0]) @ np.abs(inputs[1]))
    if isinstance(op, BatchNorm):
        around = (np.abs(op.mean) + _size(x)) * np.abs(op.scale) + (0.0 if op.bias is None else np.abs(op.bias))
        return _size(around)
    # a mean or a sum of n numbers of size s
    return _size(own, *inputs) * max(1.0, math.sqrt(max((a.size for a in inputs if a is not None), default=1)))


def _part(
    node: OnnxNode, inputs: list[Array | None], op: Op | None, own: Array | None
) -> tuple[list[Array | None], list[Array | None]] | None:
    """Inputs and output of a large convolution or pooling on a part of its image; None where it is small."""
    x = inputs[0] if inputs else None
    if not isinstance(op, (Conv, MaxPool, AvgPool)) or x is None or own is None:
        return None
    # the reference makes a table of windows for a convolution, and loops in Python for pooling
    windows = math.prod(own.shape[2:])
    size = math.prod(op.weight.shape[1:]) * op.groups if isinstance(op, Conv) else 100 * x.shape[1]
    if size * windows <= _WORK or node.attributes.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return None
    rng = np.random.default_rng(x.size)
    cut = [slice(None), slice(None) if isinstance(op, Conv) else slice(0, 3)]  # the channels of pooling are apart
    dilation = (1,) * len(op.kernel) if isinstance(op, AvgPool) else op.dilation
    for n, k, d, s in zip(x.shape[2:], op.kernel, dilation, op.stride, strict=True):
        length = min(n, max(_SIDE, d * (k - 1) + 1 + 2 * s))
        start = int(rng.integers(0, n - length + 1))
        # what ceil_mode adds depends on the image's length
        cut.append(slice(None) if node.attributes.get("ceil_mode", 0) else slice(start, start + length))
    small = np.ascontiguousarray(x[tuple(cut)])
    return [small, *inputs[1:]], [op.apply(small)]


def _reference(node: OnnxNode, inputs: list[Array | None], opset: int, argument: str) -> list[Array]:
    """The node's outputs by the reference implementation, in float64."""
    onnx = import_onnx()
    from onnx.reference import ReferenceEvaluator

    proto = onnx.NodeProto()
    proto.CopyFrom(node.proto)
    types = onnx.TensorProto
    shape = None
    if node.op in _KEPT and not _all_constant(node):
        return [a for a in inputs[:1] if a is not None]  # no rounding between floats here
    if node.op == "BatchNormalization":
        # before 14 there is no training_mode, and the reference trains wherever momentum is given
        proto.ClearField("attribute")
        proto.attribute.append(onnx.helper.make_attribute("epsilon", node.number("epsilon", float(np.float32(1e-5)))))
        opset = max(opset, 14)
    if node.op == "Softmax" and opset < 13 and inputs[0] is not None:
        # until 12 of all axes from one on together: the reference has the newer operator only
        shape = inputs[0].shape
        axis = node.integer("axis", 1) % len(shape)
        inputs, opset = [inputs[0].reshape(math.prod(shape[:axis]), -1)], 13
        proto.ClearField("attribute")
        proto.attribute.append(onnx.helper.make_attribute("axis", 1))
    kinds = {"f": types.DOUBLE, "i": types.INT64, "b": types.BOOL}
    known = {n: a for n, a in zip(node.proto.input, inputs, strict=True) if n and a is not None}
    infos = [onnx.helper.make_tensor_value_info(n, kinds[a.dtype.kind], a.shape) for n, a in known.items()]
    outputs = [onnx.helper.make_tensor_value_info(n, types.DOUBLE, None) for n in proto.output if n]
    graph = onnx.helper.make_graph([proto], "one", infos, outputs)
    try:
        found = ReferenceEvaluator(graph, opsets={"": opset}).run(None, known)
    # the reference implementation is Python that raises what it likes, and what it cannot do must not pass unchecked
    except Exception as error:
        raise InputError(
            argument, got=f"{node.label}, which onnx.reference cannot evaluate ({type(error).__name__}: "
            f"{str(error)[:200]})", needed="a second opinion on every node", fix="please report it, with the file",
        ) from error  # fmt: skip
    arrays = [kept(np.asarray(a)) for a in found]
    return arrays if shape is None else [arrays[0].reshape(shape)]


__all__ = ["Traced", "check_round_trip"]
