"""What the handlers of ONNX operators work with: constants and values, a node with its attributes, a builder with
limits, and operations that are only steps of a pattern (erf, √, a division) until the pattern is recognised.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NoReturn

import numpy as np

from certbound.arrays import F64
from certbound.errors import InputError, UnsupportedLayerError
from certbound.io.graph_builder import GraphBuilder
from certbound.io.onnx_tensors import Array, TensorReader, as_kept, whole_numbers
from certbound.io.onnx_wire import OnnxLimits, import_onnx, short
from certbound.ops import AvgPool, Conv, Linear, MatMul, MaxPool, Op, Shape


@dataclass(frozen=True, eq=False)
class Const:
    """A value that does not depend on the input: float64, int64 or bool; ``names``: the initializers it comes from."""

    array: Array
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "array", np.asarray(self.array))  # numpy's scalars are no arrays


Value = int | Const
"""A node of the builder, or a constant."""


# ---------------------------------------------------------------- steps of patterns


@dataclass(frozen=True, eq=False)
class Pending(Op):
    """An operation that the IR does not have: part of a pattern, or refused at the end by the node's name."""

    step: str

    _functions: ClassVar[dict[str, Any]] = {
        "Erf": np.frompyfunc(math.erf, 1, 1), "Sqrt": np.sqrt, "Reciprocal": np.reciprocal,
    }  # fmt: skip

    def output_shape(self, *shapes: Shape) -> Shape:
        """Unchanged."""
        return shapes[0]

    def apply(self, *values: F64) -> F64:
        """Elementwise; of constants only."""
        with np.errstate(all="ignore"):
            return np.asarray(self._functions[self.step](values[0]), dtype=np.float64)


@dataclass(frozen=True, eq=False)
class PendingQuotient(Op):
    """``a / b`` of two values of one shape."""

    arity: ClassVar[int | None] = 2

    def output_shape(self, *shapes: Shape) -> Shape:
        """That of both."""
        return shapes[0]

    def apply(self, *values: F64) -> F64:
        """Elementwise; of constants only."""
        with np.errstate(all="ignore"):
            quotient: F64 = values[0] / values[1]
        return quotient


# ---------------------------------------------------------------- the builder


def work_of(op: Op, shapes: Sequence[Shape], out: Shape) -> int:
    """Multiplications of one operation, about."""
    n = math.prod(out)
    if isinstance(op, Linear):
        return n * op.weight.shape[1]
    if isinstance(op, Conv):
        return n * math.prod(op.weight.shape[1:])
    if isinstance(op, MatMul):
        return n * shapes[0][-1]
    if isinstance(op, (MaxPool, AvgPool)):
        return n * math.prod(op.kernel)
    return n + sum(math.prod(s) for s in shapes)


@dataclass
class LimitedBuilder(GraphBuilder):
    """A builder that refuses values and work beyond the limits before anything is computed."""

    limits: OnnxLimits = field(default_factory=OnnxLimits)
    work: int = field(default=0, init=False)

    def add(self, op: Op, *inputs: int, name: str = "", parameters: Sequence[str] = ()) -> int:
        """As in the builder; InputError beyond a limit."""
        shapes = [self.shape(i) for i in inputs]
        if isinstance(op, (Conv, MaxPool, AvgPool)):  # before anything looks at its windows
            spatial = [n + low + high for n, (low, high) in zip(shapes[0][2:], op.padding, strict=False)]
            self._at_most(op, math.prod(shapes[0][:2]) * math.prod(spatial), "numbers of one value", "elements")
            if isinstance(op, MaxPool):  # which tries its windows one by one
                taps = [n * k for n, k in zip(spatial, op.kernel, strict=False)]
                self._at_most(op, 16 * max(taps, default=0), "sixteenths of steps of a window", "elements")
        out = op.output_shape(*shapes)
        self._at_most(op, math.prod(out), "numbers of one value", "elements")
        self.work += work_of(op, shapes, out)
        self._at_most(op, self.work, "multiplications", "work")
        self._at_most(op, len(self.nodes) // 10, "operations, in tens,", "nodes")
        return super().add(op, *inputs, name=name, parameters=parameters)


    def _at_most(self, op: Op, got: int, what: str, limit: str) -> None:
        most = getattr(self.limits, limit)
        if got > most:
            raise InputError(
                op.kind, got=f"{got:,} {what}", needed=f"at most {most:,}",
                fix=f"pass limits=OnnxLimits({limit}=…) if you trust the file",
            )  # fmt: skip


# ---------------------------------------------------------------- a node of the file

_SCOPE = re.compile(r"'((?:[^'\\]|\\.)*)'")
_UNSET: Any = object()


def module_path(proto: Any) -> str:
    """Path of the module that the node was exported from, as torch's exporters write it; else the node's name."""
    for entry in proto.metadata_props:
        if entry.key == "pkg.torch.onnx.name_scopes":
            scopes = _SCOPE.findall(entry.value)
            return scopes[-2] if len(scopes) > 1 else ""
    parts = proto.name.split("/")
    if len(parts) < 2 or parts[0]:
        return proto.name or next(iter(proto.output), "")
    path: list[str] = []
    for part in parts[1:-1]:
        if path and part.startswith(path[-1] + "."):
            path[-1] = part  # /layer1/layer1.0/conv1: the second names the first again
        else:
            path.append(part)
    return ".".join(path)


@dataclass
class OnnxNode:
    """A node: its operator, the values it takes (None for one left out), its attributes."""

    proto: Any
    opset: int
    inputs: list[Value | None]
    attributes: dict[str, Any]
    argument: str
    builder: LimitedBuilder
    reader: TensorReader
    used: set[str] = field(default_factory=set[str])

    @property
    def op(self) -> str:
        """The operator."""
        return str(self.proto.op_type)

    @property
    def label(self) -> str:
        """For messages."""
        return label(self.proto)

    @property
    def path(self) -> str:
        """The name in the graph."""
        return module_path(self.proto)

    def refuse(self, got: str, needed: str, fix: str = "pass the part of the model before it") -> NoReturn:
        """UnsupportedLayerError that names the node."""
        raise UnsupportedLayerError(self.argument, got=f"{self.label}: {got}", needed=needed, fix=fix)

    # -- attributes ---------------------------------------------------------------------------------------------------

    def attribute(self, name: str, kind: type | tuple[type, ...], default: Any = _UNSET) -> Any:
        """One attribute of a type; ``default`` where the node does not have it."""
        self.used.add(name)
        if name not in self.attributes:
            if default is _UNSET:
                self.refuse(f"no attribute {name}", "all attributes that its operator needs", "write it again")
            return default
        value = self.attributes[name]
        if not isinstance(value, kind):
            self.refuse(f"the attribute {name} is {short(value)}", "a value of the type that ONNX says", "write it new")
        return value

    def integer(self, name: str, default: Any = _UNSET) -> Any:
        """An integer attribute."""
        return self.attribute(name, int, default)

    def number(self, name: str, default: float) -> float:
        """A float32 attribute, as stored."""
        return float(self.attribute(name, float, default))

    def integers(self, name: str, default: Any = None) -> tuple[int, ...] | None:
        """A list of integers; an empty list is one of any type."""
        found = self.attribute(name, list, default)
        if found is None:
            return None
        if not all(isinstance(v, int) for v in found):
            self.refuse(f"the attribute {name} is {short(found)}", "integers", "write it again")
        return tuple(found)

    def text(self, name: str, default: str) -> str:
        """A string attribute."""
        return str(self.attribute(name, str, default))

    def all_used(self) -> None:
        """Refuse what no handler has looked at: an attribute that is not understood is never ignored."""
        left = sorted(set(self.attributes) - self.used)
        if left:
            self.refuse(f"the attributes {short(left)}", "attributes that this operator has in ONNX", "write it again")

    # -- inputs -------------------------------------------------------------------------------------------------------

    def given(self, i: int) -> bool:
        """Is there an input ``i``?"""
        return i < len(self.inputs) and self.inputs[i] is not None

    def value(self, i: int) -> Value:
        """Input ``i``."""
        found = self.inputs[i] if i < len(self.inputs) else None
        if found is None:
            self.refuse(f"no input {i}", "all inputs that its operator needs", "write it again")
        return found

    def const(self, i: int, what: str) -> Const:
        """Input ``i``, a constant."""
        found = self.value(i)
        if not isinstance(found, Const):
            self.refuse(f"{what} that depends on the input", f"a constant {what}")
        return found

    def floats(self, i: int, what: str) -> F64:
        """A constant of floats."""
        return self.as_floats(self.const(i, what), what)

    def as_floats(self, const: Const, what: str = "a constant") -> F64:
        """Its array, if it holds floats."""
        if const.array.dtype != np.float64:
            self.refuse(f"{what} of integers or booleans", "floats", "export the model anew")
        return const.array

    def whole(self, i: int, what: str) -> list[int]:
        """A constant vector of integers."""
        array = self.const(i, what).array
        if array.dtype != np.int64 or array.ndim > 1:
            self.refuse(f"{what} of {array.dtype} with {array.ndim} axes", "a vector of integers", "write it again")
        if array.size > 10**6:
            self.refuse(f"{what} of {array.size:,} integers", "at most a million", "write it again")
        return list(whole_numbers(array))

    def whole_or_attribute(self, i: int, name: str, since: int) -> list[int] | None:
        """Integers that became an input with the opset ``since``."""
        if self.opset >= since:
            return self.whole(i, name) if self.given(i) else None
        found = self.integers(name)
        return None if found is None else list(found)

    def axis(self, value: int, n: int) -> int:
        """An axis of a value with ``n`` axes, counted from the front."""
        if not -n <= value < n:
            self.refuse(f"the axis {value} of a value with {n} axes", "an axis that it has", "write it again")
        return value % n if n else 0

    def shape(self, value: Value) -> Shape:
        """Shape of a constant or a value."""
        return tuple(value.array.shape) if isinstance(value, Const) else self.builder.shape(value)

    # -- results ------------------------------------------------------------------------------------------------------

    def node(self, value: Value) -> int:
        """The builder's node of a value."""
        if isinstance(value, Const):
            array = self.as_floats(value)
            return self.builder.node(array, name=self.path, parameters=value.names)
        return value

    def operand(self, value: Value) -> int | F64:
        """What the builder's arithmetic takes."""
        return self.as_floats(value) if isinstance(value, Const) else value

    def names(self, *values: Value | None) -> tuple[str, ...]:
        """Names of the initializers of constants."""
        return tuple(dict.fromkeys(n for v in values if isinstance(v, Const) for n in v.names))

    def add(self, op: Op, *inputs: Value, parameters: Sequence[str] = ()) -> Value:
        """An operation on values."""
        nodes = [self.node(v) for v in inputs]
        return self.result(self.builder.add(op, *nodes, name=self.path, parameters=parameters))

    def result(self, node: int) -> Value:
        """A node, or a constant where the builder has computed one."""
        array = self.builder.array(node)
        if array is None:
            return node
        self.reader.count(array.size, self.label)
        return Const(array, self.builder.nodes[node].parameters)


def label(proto: Any) -> str:
    """A node for messages."""
    name = proto.name or next(iter(proto.output), "")
    return f"the node {short(name)} ({proto.op_type[:40]})"


def attributes_of(proto: Any, reader: TensorReader, argument: str) -> dict[str, Any]:
    """A node's attributes as Python values; subgraphs, functions' attributes and odd types are refused."""
    kinds = import_onnx().AttributeProto.AttributeType
    found: dict[str, Any] = {}
    for attribute in proto.attribute:
        kind = kinds.Name(attribute.type) if attribute.type in kinds.values() else str(attribute.type)
        if attribute.name in found or attribute.ref_attr_name or kind in ("GRAPH", "GRAPHS"):
            what = "a subgraph" if kind.startswith("GRAPH") else f"the attribute {short(attribute.name)} twice"
            raise UnsupportedLayerError(
                argument,
                got=f"{label(proto)} with {'an attribute of a function' if attribute.ref_attr_name else what}",
                needed="operators without branches and loops", fix="export the model for one input, in eval mode",
            )  # fmt: skip
        value: Any = None
        if kind == "FLOAT":
            value = float(attribute.f)
        elif kind == "INT":
            value = int(attribute.i)
        elif kind == "STRING":
            value = attribute.s.decode("utf-8", "replace")
        elif kind == "TENSOR":
            value = reader.read(attribute.t, f"{attribute.name} of {proto.name}")
        elif kind == "FLOATS":
            value = [float(v) for v in attribute.floats]
        elif kind == "INTS":
            value = [int(v) for v in attribute.ints]
        elif kind == "STRINGS":
            value = [v.decode("utf-8", "replace") for v in attribute.strings]
        else:
            raise UnsupportedLayerError(
                argument, got=f"{label(proto)} with the attribute {short(attribute.name)} of type {kind}",
                needed="numbers, strings, tensors and lists of them", fix="export the model anew",
            )  # fmt: skip
        found[attribute.name] = value
    return found


def kept(array: Any) -> Array:
    """An array that came out of numpy, in one of the three types."""
    return as_kept(np.asarray(array))


__all__ = [
    "Const", "LimitedBuilder", "OnnxNode", "Pending", "PendingQuotient", "Value", "attributes_of", "kept", "label",
    "module_path", "work_of",
]  # fmt: skip
