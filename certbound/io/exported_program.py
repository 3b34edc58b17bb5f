"""The walk over an exported program: what is constant is computed by torch, everything else becomes a node."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, cast

import numpy as np
import torch
from torch import fx
from torch.fx.node import map_arg as _map_arg

from certbound.arrays import F64, as_float64
from certbound.errors import InputError, UnsupportedLayerError
from certbound.graph import Graph
from certbound.io.graph_builder import GraphBuilder, Operand
from certbound.ops import Op, Pads, Shape

_SUPPORTED = (
    "linear, convolution, batch, layer, group and instance normalisation, relu, leaky_relu, tanh, sigmoid, gelu, silu, "
    "clamp, max, average and adaptive average pooling, softmax, attention, sums and products, concatenation, "
    "reshaping, indexing and padding"
)
_REWRITE = "replace it, or pass the part of the model before it"
TRAINING = "call model.eval()"
ASSERTIONS = ("_assert_tensor_metadata", "_assert_scalar", "_assert_async", "sym_constrain_range")
_OF_SHAPE = (
    "new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided", "zeros_like", "ones_like", "full_like",
    "empty_like", "fill",
)  # fmt: skip


@dataclass(frozen=True)
class Value:
    """A value that depends on the input: a node of the graph."""

    index: int


@dataclass(frozen=True)
class Const:
    """A value that does not: a tensor (or several, or a number), and the parameters that it is computed from."""

    value: Any
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Call:
    """One operation of the program with its arguments by name: Value, Const, lists of them, plain numbers."""

    node: fx.Node
    name: str
    args: Mapping[str, Any]

    def __getitem__(self, key: str) -> Any:
        return self.args[key]

    @property
    def shape(self) -> Shape:
        """Shape of the result, as export computed it."""
        return tuple(int(n) for n in self.node.meta["val"].shape)


@dataclass
class Translation:
    """Walks an exported program in order.

    ``dtype``: of the input; ``names``: of parameters, by identity; ``methods``: how each ATen operation is translated.
    """

    program: Any
    builder: GraphBuilder
    dtype: torch.dtype
    names: Mapping[int, str]
    methods: Mapping[str, Callable[[Translation, Call], Any]]
    env: dict[fx.Node, Any] = field(default_factory=dict[fx.Node, Any])
    padded: dict[int, tuple[int, Pads, str]] = field(default_factory=dict[int, tuple[int, Pads, str]])
    rounded: bool = False  # a constant of the graph is not what float64 arithmetic would give

    def run(self) -> Graph:
        """Translate every operation that the output needs; raise for the others."""
        graph = self.program.graph
        self._place_state()
        for node in graph.nodes:
            if node.op == "get_attr":
                self.env[node] = Const(operator.attrgetter(str(node.target))(self.program.graph_module))
            elif node.op == "call_function":
                self.env[node] = self._evaluate(node)
        return self.builder.finish(self._output())

    def _place_state(self) -> None:
        specs = self.program.graph_signature.input_specs
        nodes = [n for n in self.program.graph.nodes if n.op == "placeholder"]
        for node, spec in zip(nodes, specs, strict=True):
            if spec.kind.name == "USER_INPUT":
                self.env[node] = Value(0)
            else:
                tensor = self.state(spec)
                name = self.names.get(id(tensor), str(spec.target))
                self.env[node] = Const(tensor, (name,) if spec.kind.name == "PARAMETER" else ())

    def state(self, spec: Any) -> Any:
        """The tensor that an input of the program stands for."""
        found = self.program.state_dict.get(spec.target)
        return self.program.constants[spec.target] if found is None else found

    def _output(self) -> int:
        specs = self.program.graph_signature.output_specs
        (results,) = next(n for n in self.program.graph.nodes if n.op == "output").args
        written = [spec.target for spec in specs if spec.kind.name == "BUFFER_MUTATION"]
        outputs = [r for r, spec in zip(results, specs, strict=True) if spec.kind.name == "USER_OUTPUT"]
        if written:
            raise UnsupportedLayerError(
                "model",
                got=f"a forward that changes the model's buffer {written[0]!r}",
                needed="a function of the input alone",
                fix=TRAINING,
            )
        if len(outputs) != 1 or not self.program.call_spec.out_spec.is_leaf() or not isinstance(outputs[0], fx.Node):
            raise UnsupportedLayerError(
                "model",
                got=f"{len(outputs)} outputs, or one that is no plain tensor (a tuple, a dict)",
                needed="one tensor",
                fix="wrap the model in a module whose forward returns the one that you mean",
            )
        result = self.env[outputs[0]]
        if isinstance(result, Const):
            raise InputError(
                "model",
                got="an output that does not depend on the input",
                needed="a function of the input",
                fix="check which tensor forward returns",
            )
        return cast("Value", result).index

    def _evaluate(self, node: fx.Node) -> Any:
        if node.target is operator.getitem:
            source, i = self.env[cast("fx.Node", node.args[0])], cast("Any", node.args[1])
            if isinstance(source, Const):
                return Const(source.value[i], source.names)
            if source[i] is None:
                self.refuse(node, "of which another result than the first is used")
            return source[i]
        if not any(isinstance(self.env[n], (Value, list)) for n in node.all_input_nodes):
            return self._constant(node)
        if not isinstance(node.target, torch._ops.OpOverload):
            self.refuse(node)
        kind = node.target._schema.name.removeprefix("aten::")
        if kind in ASSERTIONS:
            return Const(None)
        if kind in _OF_SHAPE:
            return self._of_shape(node, kind)
        method = self.methods.get(kind)
        if method is None:
            self.refuse(node)
        value = node.meta["val"]
        results = value if isinstance(value, (tuple, list)) else (value,)
        if not all(isinstance(n, int) for result in results for n in result.shape):
            self.refuse(node, "whose shape depends on the values of a tensor")
        call = Call(node, self.name(node), self._arguments(node))
        try:
            return self._placed(node, method(self, call))
        except UnsupportedLayerError:
            raise
        except InputError as error:
            where = f"{self.where(node)}: {error.argument}"
            raise InputError(where, got=error.got, needed=error.needed, fix=error.fix) from error

    def _placed(self, node: fx.Node, result: Any) -> Any:
        """The result, if its shape is the one that torch found."""
        if isinstance(result, list):
            return [None if i is None else Value(cast("int", i)) for i in cast("list[Any]", result)]
        shape, expected = self.builder.shape(result), tuple(node.meta["val"].shape)
        if shape != expected:
            self.refuse(node, f"whose result has the shape {expected} where {shape} was expected")
        return Value(result)

    def _constant(self, node: fx.Node) -> Const:
        """What does not depend on the input is computed by torch, as forward would."""
        target: Any = node.target
        if torch.Tag.nondeterministic_seeded in getattr(target, "tags", ()):
            self.refuse(node, "which is random", fix=TRAINING)
        args, kwargs = _map_arg((node.args, node.kwargs), lambda n: self.env[n].value)
        names = [name for n in node.all_input_nodes for name in self.env[n].names]
        value = target(*cast("Any", args), **cast("Any", kwargs))
        parts = value if isinstance(value, (tuple, list)) else (value,)
        floats = any(isinstance(t, torch.Tensor) and t.is_floating_point() for t in parts)
        self.rounded |= floats and self.dtype is not torch.float64
        return Const(value, tuple(dict.fromkeys(names)))

    def _of_shape(self, node: fx.Node, kind: str) -> Const:
        """``new_zeros`` and the like, of a value that depends on the input: only its shape and dtype count."""
        if kind.endswith("empty") or "empty_" in kind:
            return Const(_zeros(node.meta["val"]))

        def stand_in(n: fx.Node) -> Any:
            known = self.env[n]
            return known.value if isinstance(known, Const) else _zeros(n.meta["val"])

        if kind == "fill" and not isinstance(self.env.get(cast("Any", node.args[1]), Const(None)), Const):
            self.refuse(node, "with a value computed from the input")
        args, kwargs = _map_arg((node.args, node.kwargs), stand_in)
        return Const(cast("Any", node.target)(*cast("Any", args), **cast("Any", kwargs)))

    def _arguments(self, node: fx.Node) -> dict[str, Any]:
        """All arguments of the schema by name, torch's defaults where none is given."""
        schema = cast("Any", node.target)._schema
        given = dict(zip((a.name for a in schema.arguments), node.args, strict=False)) | dict(node.kwargs)
        return {a.name: self._resolve(given.get(a.name, a.default_value)) for a in schema.arguments}

    def _resolve(self, argument: Any) -> Any:
        if isinstance(argument, fx.Node):
            return self.env[argument]
        if isinstance(argument, (list, tuple)):
            return [self._resolve(a) for a in cast("Sequence[Any]", argument)]
        return argument

    # -- names and refusals -----------------------------------------------------------------------------------------

    def name(self, node: fx.Node) -> str:
        """Path of the innermost module that computes the node."""
        path, _ = self._module(node)
        return path

    def _module(self, node: fx.Node) -> tuple[str, str]:
        """Path and class of the innermost module."""
        stack: Any = list((node.meta.get("nn_module_stack") or {}).values())
        path, cls = stack[-1] if stack else ("", "")
        cls = cls if isinstance(cls, str) else getattr(cls, "__name__", "")
        return str(path).split("@")[0], cls.rpartition(".")[2]

    def where(self, node: fx.Node) -> str:
        """Path and class of the node's module, for errors."""
        path, cls = self._module(node)
        return f"{path or 'the model itself'} ({cls})" if cls else path or "the model itself"

    def refuse(self, node: fx.Node, why: str = "", *, fix: str = _REWRITE) -> NoReturn:
        """Raise, naming the operation and where it is."""
        schema = getattr(node.target, "_schema", None)
        operation = str(node.target) if schema is None else schema.name.replace("aten::", "aten.")
        raise UnsupportedLayerError(
            "model",
            got=f"{self.where(node)}, which uses the operation {operation}{f', {why}' if why else ''}",
            needed=f"operations that can be bounded: {_SUPPORTED}",
            fix=fix,
        )

    # -- operands ---------------------------------------------------------------------------------------------------

    def operand(self, x: Any, name: str = "constant") -> Operand:
        """Index of a value, array of a constant."""
        if isinstance(x, Value):
            return x.index
        number = not isinstance(x, Const)
        tensor = torch.tensor(self.number(x), dtype=torch.float64) if number else torch.as_tensor(x.value)
        if (number or not x.names) and tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise UnsupportedLayerError(
                "model",
                got=f"{name or 'the model itself'} with a constant that is not finite (a mask of −∞, say)",
                needed="finite constants",
                fix="such a mask excludes tokens, which is not modelled: use one of large negative numbers",
            )
        return as_float64(tensor, name if number else " + ".join(x.names) or name)

    def number(self, x: Any) -> float:
        """A number that torch multiplies by: it rounds it to float32, unless it computes in float64."""
        value = float(cast("Any", x.value if isinstance(x, Const) else x))
        if self.dtype is torch.float64 or not math.isfinite(value):
            return value
        single = float(np.float32(value))
        self.rounded |= single != value
        return single

    def both(self, call: Call, join: Callable[..., int], left: Any, right: Any) -> int:
        """A sum, product, quotient or product of matrices of two arguments."""
        pair = (self.operand(left, call.name), self.operand(right, call.name))
        return join(*pair, name=call.name, parameters=parameters_of(left, right))

    def value(self, call: Call, x: Any) -> int:
        """Node of an argument; a constant becomes a Constant."""
        return self.builder.node(self.operand(x, call.name), name=call.name, parameters=parameters_of(x))

    def weight(self, call: Call, key: str) -> Any:
        """A weight's tensor, which operations read exactly themselves; refused if it is computed from the input."""
        x = call[key]
        if x is None:
            return None
        if not isinstance(x, Const):
            self.refuse(call.node, f"with a {key} that is computed from the input")
        return x.value

    def array(self, call: Call, key: str) -> F64 | None:
        """A weight as an array."""
        found = self.weight(call, key)
        return None if found is None else as_float64(found, key)

    def add(self, call: Call, op: Op, *inputs: int, reads: Sequence[Any] = ()) -> int:
        """Append a node of this call; ``reads``: its constant arguments."""
        return self.builder.add(op, *inputs, name=call.name, parameters=parameters_of(*reads))


def parameters_of(*arguments: Any) -> tuple[str, ...]:
    """Parameters behind constant arguments."""
    return tuple(name for x in arguments if isinstance(x, Const) for name in x.names)


def _zeros(fake: Any) -> torch.Tensor:
    return torch.zeros(tuple(fake.shape), dtype=fake.dtype, device=fake.device)


def per_axis(value: Any, axes: int, default: int | None = None) -> tuple[int, ...]:
    """One integer per axis, as torch reads one number or a list of one."""
    entries = [value] if isinstance(value, int) else list(cast("Sequence[int]", value or ()))
    if not entries and default is not None:
        entries = [default]
    return tuple(entries * axes) if len(entries) == 1 else tuple(entries)


__all__ = ["ASSERTIONS", "TRAINING", "Call", "Const", "Translation", "Value", "parameters_of", "per_axis"]
