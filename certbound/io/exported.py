"""``nn.Module`` → :class:`~certbound.graph.Graph`: real architectures, read with ``torch.export``.

Why export, and not the ``torch.fx`` tracing that reads dense chains in :mod:`certbound.io.torch_module`: the norm of a
convolution needs the size of its image, and models branch on shapes (Swin pads and shifts by them), so every value's
shape must be known; and export goes down to ATen, a small set of operations, whatever layers the model is written
with. It is exported for one sample (``strict=False``, a batch of one) and made functional by
``run_decompositions({})``: no operation works in place and no view is written through. Tracing with fx needs no shape
and takes milliseconds instead of seconds: it stays for what it can read.

What does not depend on the input is computed by torch itself, in the module's own dtype, and becomes a constant:
parametrizations, position biases, masks. Everything else is translated or refused by name, with its path in the model.

At the end the import is checked twice on random inputs. The exported program, run by torch in float64, must give what
the graph gives, at every node (a model whose head is still zero gives 0 whatever comes before it): so the translation
is right. And a float64 copy of the module must give what the program gives: so export has seen all that forward does.
Where the copy cannot run, or where rounding to the module's dtype is part of the model (casts in forward, weights or
factors that are computed in float32), the module and the program are compared in the module's own dtype, up to eight
times the rounding error that the program shows there.
"""

from __future__ import annotations

import copy
import inspect
import io
import logging
import math
import operator
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn, cast

import numpy as np

from certbound.activations import Activation
from certbound.arrays import F64, as_float64
from certbound.errors import InputError, MissingDependencyError, UnsupportedLayerError
from certbound.graph import Graph
from certbound.io.graph_builder import GraphBuilder, Operand, parse_input_shape
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
    Op,
    Pad,
    Pads,
    Pointwise,
    Roll,
    Scale,
    Shape,
    Slice,
    Softmax,
)

try:
    import torch
    from torch import fx, nn
    from torch.fx.node import map_aggregate as _map_aggregate
    from torch.fx.node import map_arg as _map_arg
    from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

    from certbound.io.torch_module import _refuse_opaque, _unchanged
except ImportError as error:  # pragma: no cover - nobody holds a module without torch
    raise MissingDependencyError("torch", purpose="reading an nn.Module", command="pip install torch") from error

_PURPOSE = "reading an architecture of convolutions or attention"
_SUPPORTED = (
    "linear, convolution, batch, layer, group and instance normalisation, relu, leaky_relu, tanh, sigmoid, gelu, silu, "
    "clamp, max, average and adaptive average pooling, softmax, attention, sums and products, concatenation, "
    "reshaping, indexing and padding"
)
_REWRITE = "replace it, or pass the part of the model before it"
_TRAINING = "call model.eval()"


def from_module(module: nn.Module, *, input_shape: Shape | None = None) -> Graph:
    """Import an ``nn.Module`` as a :class:`~certbound.graph.Graph` that computes the same function of one sample.

    Parameters
    ----------
    module : a model whose ``forward`` takes one batch of real inputs and returns one tensor, in eval mode. Its weights
        are read exactly as stored; it is not changed.
    input_shape : shape of one sample without the batch axis.

    Returns
    -------
    The graph; each node is named by its module's path and names the parameters that it reads.

    Raises
    ------
    UnsupportedLayerError : an operation outside the list, a forward that cannot be exported, named with its path.
    InputError : no ``input_shape``; weights that are NaN, complex or on the meta device; a module whose output is not
        that of the imported graph, or that mixes the samples of a batch.
    MissingDependencyError : a torch that is too old.

    >>> conv = nn.Conv1d(1, 1, 2, bias=False)
    >>> _ = nn.init.ones_(conv.weight)
    >>> graph = from_module(nn.Sequential(conv, nn.ReLU(), nn.Flatten()), input_shape=(1, 3))
    >>> graph.forward([[1.0, 2.0, 5.0]]).tolist(), [str(node) for node in graph.nodes[1:]]
    ([[3.0, 7.0]], ['0 (Conv)', '1 (relu)', '2 (Reshape)'])
    """
    if not isinstance(module, nn.Module):
        raise InputError(
            "model", got=f"a {type(module).__name__}", needed="an nn.Module", fix="pass the model, not its weights"
        )
    if input_shape is None:
        raise InputError(
            "input_shape",
            got="None",
            needed="the shape of one sample, without the batch axis: the size of a convolution depends on it",
            fix="pass input_shape=(3, 224, 224) for colour images of that size",
        )
    shape = parse_input_shape(tuple(input_shape))
    _refuse_state(module)
    with _quietly(module), _unchanged(module):
        program = _export(module, shape)
        translation = _Translation(program, GraphBuilder(shape), _float_dtype(module), _parameter_names(module))
        graph = translation.run()
        _check_round_trip(module, translation, graph)
    return graph


@contextmanager
def _quietly(module: nn.Module) -> Iterator[None]:
    """No gradients, no use of the user's random numbers, no warnings about what is refused or checked here anyway."""
    made_in_inference = any(t.is_inference() for t in _tensors(module))
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    disabled = logger.disabled
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(made_in_inference))
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        logger.disabled = True  # it warns of what cannot be exported, which is then refused
        try:
            yield
        finally:
            logger.disabled = disabled


# -- before the export ------------------------------------------------------------------------------------------------


def _refuse_state(module: nn.Module) -> None:
    """Refuse what export would show badly or not at all."""
    for path, m in module.named_modules():
        where = f"{path or 'the model itself'} ({type(m).__name__})"
        if getattr(m, "_compiled_call_impl", None) is not None or type(m).__module__.startswith("torch._dynamo"):
            raise UnsupportedLayerError(
                "model",
                got=f"{where}, which is compiled",
                needed="the module before torch.compile",
                fix="pass the original module (model._orig_mod)",
            )
        tensors = [*m.named_parameters(recurse=False), *m.named_buffers(recurse=False)]
        for name, tensor in tensors:
            full = f"{path}.{name}".removeprefix(".")
            if isinstance(tensor, (UninitializedBuffer, UninitializedParameter)):
                raise InputError(
                    full,
                    got="a lazy parameter without a shape",
                    needed="weights",
                    fix="run the model once on a batch of inputs",
                )
            if tensor.is_meta:
                raise InputError(
                    full, got="a meta tensor (no data)", needed="real data", fix="materialise the weights first"
                )
            if tensor.is_complex():
                raise InputError(full, got=f"dtype {tensor.dtype}", needed="real numbers", fix="use a real model")
    _refuse_opaque(module)
    hooks = torch.nn.modules.module
    if hooks._global_forward_hooks or hooks._global_forward_pre_hooks:
        raise UnsupportedLayerError(
            "model",
            got="a global forward hook of torch, which may change what every layer computes",
            needed="layers without hooks of your own",
            fix="call .remove() on the handle that register_module_forward_hook returned",
        )
    device = _device(module).type
    if torch.is_autocast_enabled(device):
        raise InputError(
            "model",
            got=f"a call within torch.autocast({device!r})",
            needed="the model's own arithmetic",
            fix="import the model outside of autocast",
        )


def _tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _float_dtype(module: nn.Module) -> torch.dtype:
    """Dtype of the first weight: what the input is given in."""
    return next((t.dtype for t in _tensors(module) if t.is_floating_point()), torch.get_default_dtype())


def _parameter_names(module: nn.Module) -> dict[int, str]:
    """The first name of each parameter, by identity: export calls a shared one by its last name."""
    return {id(p): name for name, p in module.named_parameters()}


def _device(module: nn.Module) -> torch.device:
    return next((t.device for t in _tensors(module)), torch.device("cpu"))


def _export(module: nn.Module, shape: Shape) -> Any:
    """The module as a functional program for one sample."""
    export = getattr(getattr(torch, "export", None), "export", None)
    if export is None or "strict" not in inspect.signature(export).parameters:
        raise MissingDependencyError("torch>=2.5", purpose=_PURPOSE, command="pip install -U 'torch>=2.5'")
    sample = torch.zeros((1, *shape), dtype=_float_dtype(module), device=_device(module))
    try:
        with redirect_stderr(io.StringIO()):  # where it prints the graph of what it cannot read
            return export(module, (sample,), strict=False).run_decompositions({})
    except Exception as error:  # forward is the user's code: it may raise anything
        reason = str(error).strip().splitlines()
        why = f"{type(error).__name__}: {reason[0] if reason else 'no message'}"
        if "data-dependent" in why:
            why = f"control flow that depends on the input's values; {why}"
        raise UnsupportedLayerError(
            "model",
            got=f"{type(module).__name__}, which torch.export cannot read for an input of shape {(1, *shape)} ({why})",
            needed="a forward(x) of one batch of real numbers, without control flow that depends on the data",
            fix="check input_shape (without the batch axis); take asserts and branches on values out of forward",
        ) from error


# -- the translation --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Value:
    """A value that depends on the input: a node of the graph."""

    index: int


@dataclass(frozen=True)
class _Const:
    """A value that does not: a tensor (or several, or a number), and the parameters that it is computed from."""

    value: Any
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Call:
    """One operation of the program with its arguments by name: _Value, _Const, lists of them, plain numbers."""

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
class _Translation:
    """Walks an exported program in order; ``dtype``: of the input; ``names``: of parameters, by identity."""

    program: Any
    builder: GraphBuilder
    dtype: torch.dtype
    names: Mapping[int, str]
    env: dict[fx.Node, Any] = field(default_factory=dict[fx.Node, Any])
    padded: dict[int, tuple[int, Pads, str]] = field(default_factory=dict[int, tuple[int, Pads, str]])
    rounded: bool = False  # a constant of the graph is not what float64 arithmetic would give

    def run(self) -> Graph:
        """Translate every operation that the output needs; raise for the others."""
        graph = self.program.graph
        self._place_state()
        for node in graph.nodes:
            if node.op == "get_attr":
                self.env[node] = _Const(operator.attrgetter(str(node.target))(self.program.graph_module))
            elif node.op == "call_function":
                self.env[node] = self._evaluate(node)
        return self.builder.finish(self._output())

    def _place_state(self) -> None:
        specs = self.program.graph_signature.input_specs
        nodes = [n for n in self.program.graph.nodes if n.op == "placeholder"]
        for node, spec in zip(nodes, specs, strict=True):
            if spec.kind.name == "USER_INPUT":
                self.env[node] = _Value(0)
            else:
                tensor = self.state(spec)
                name = self.names.get(id(tensor), str(spec.target))
                self.env[node] = _Const(tensor, (name,) if spec.kind.name == "PARAMETER" else ())

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
                fix=_TRAINING,
            )
        if len(outputs) != 1 or not self.program.call_spec.out_spec.is_leaf() or not isinstance(outputs[0], fx.Node):
            raise UnsupportedLayerError(
                "model",
                got=f"{len(outputs)} outputs, or one that is no plain tensor (a tuple, a dict)",
                needed="one tensor",
                fix="wrap the model in a module whose forward returns the one that you mean",
            )
        result = self.env[outputs[0]]
        if isinstance(result, _Const):
            raise InputError(
                "model",
                got="an output that does not depend on the input",
                needed="a function of the input",
                fix="check which tensor forward returns",
            )
        return cast("_Value", result).index

    def _evaluate(self, node: fx.Node) -> Any:
        if node.target is operator.getitem:
            source, i = self.env[cast("fx.Node", node.args[0])], cast("Any", node.args[1])
            if isinstance(source, _Const):
                return _Const(source.value[i], source.names)
            if source[i] is None:
                self._refuse(node, "of which another result than the first is used")
            return source[i]
        if not any(isinstance(self.env[n], (_Value, list)) for n in node.all_input_nodes):
            return self._constant(node)
        if not isinstance(node.target, torch._ops.OpOverload):
            self._refuse(node)
        kind = node.target._schema.name.removeprefix("aten::")
        if kind in _ASSERTIONS:
            return _Const(None)
        if kind in _OF_SHAPE:
            return self._of_shape(node, kind)
        method = _METHODS.get(kind)
        if method is None:
            self._refuse(node)
        value = node.meta["val"]
        results = value if isinstance(value, (tuple, list)) else (value,)
        if not all(isinstance(n, int) for result in results for n in result.shape):
            self._refuse(node, "whose shape depends on the values of a tensor")
        call = _Call(node, self.name(node), self._arguments(node))
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
            return [None if i is None else _Value(cast("int", i)) for i in cast("list[Any]", result)]
        shape, expected = self.builder.shape(result), tuple(node.meta["val"].shape)
        if shape != expected:
            self._refuse(node, f"whose result has the shape {expected} where {shape} was expected")
        return _Value(result)

    def _constant(self, node: fx.Node) -> _Const:
        """What does not depend on the input is computed by torch, as forward would."""
        target: Any = node.target
        if torch.Tag.nondeterministic_seeded in getattr(target, "tags", ()):
            self._refuse(node, "which is random", fix=_TRAINING)
        args, kwargs = _map_arg((node.args, node.kwargs), lambda n: self.env[n].value)
        names = [name for n in node.all_input_nodes for name in self.env[n].names]
        value = target(*cast("Any", args), **cast("Any", kwargs))
        parts = value if isinstance(value, (tuple, list)) else (value,)
        floats = any(isinstance(t, torch.Tensor) and t.is_floating_point() for t in parts)
        self.rounded |= floats and self.dtype is not torch.float64
        return _Const(value, tuple(dict.fromkeys(names)))

    def _of_shape(self, node: fx.Node, kind: str) -> _Const:
        """``new_zeros`` and the like, of a value that depends on the input: only its shape and dtype count."""
        if kind.endswith("empty") or "empty_" in kind:
            return _Const(_zeros(node.meta["val"]))

        def stand_in(n: fx.Node) -> Any:
            known = self.env[n]
            return known.value if isinstance(known, _Const) else _zeros(n.meta["val"])

        if kind == "fill" and not isinstance(self.env.get(cast("Any", node.args[1]), _Const(None)), _Const):
            self._refuse(node, "with a value computed from the input")
        args, kwargs = _map_arg((node.args, node.kwargs), stand_in)
        return _Const(cast("Any", node.target)(*cast("Any", args), **cast("Any", kwargs)))

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

    def _refuse(self, node: fx.Node, why: str = "", *, fix: str = _REWRITE) -> NoReturn:
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
        if isinstance(x, _Value):
            return x.index
        number = not isinstance(x, _Const)
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
        value = float(cast("Any", x.value if isinstance(x, _Const) else x))
        if self.dtype is torch.float64 or not math.isfinite(value):
            return value
        single = float(np.float32(value))
        self.rounded |= single != value
        return single

    def both(self, call: _Call, join: Callable[..., int], left: Any, right: Any) -> int:
        """A sum, product, quotient or product of matrices of two arguments."""
        pair = (self.operand(left, call.name), self.operand(right, call.name))
        return join(*pair, name=call.name, parameters=_names(left, right))

    def value(self, call: _Call, x: Any) -> int:
        """Node of an argument; a constant becomes a Constant."""
        return self.builder.node(self.operand(x, call.name), name=call.name, parameters=_names(x))

    def weight(self, call: _Call, key: str) -> Any:
        """A weight's tensor, which operations read exactly themselves; refused if it is computed from the input."""
        x = call[key]
        if x is None:
            return None
        if not isinstance(x, _Const):
            self._refuse(call.node, f"with a {key} that is computed from the input")
        return x.value

    def array(self, call: _Call, key: str) -> F64 | None:
        """A weight as an array."""
        found = self.weight(call, key)
        return None if found is None else as_float64(found, key)

    def add(self, call: _Call, op: Op, *inputs: int, reads: Sequence[Any] = ()) -> int:
        """Append a node of this call; ``reads``: its constant arguments."""
        return self.builder.add(op, *inputs, name=call.name, parameters=_names(*reads))


def _names(*arguments: Any) -> tuple[str, ...]:
    """Parameters behind constant arguments."""
    return tuple(name for x in arguments if isinstance(x, _Const) for name in x.names)


def _zeros(fake: Any) -> torch.Tensor:
    return torch.zeros(tuple(fake.shape), dtype=fake.dtype, device=fake.device)


def _tuple(value: Any, axes: int, default: int | None = None) -> tuple[int, ...]:
    """One integer per axis, as torch reads one number or a list of one."""
    entries = [value] if isinstance(value, int) else list(cast("Sequence[int]", value or ()))
    if not entries and default is not None:
        entries = [default]
    return tuple(entries * axes) if len(entries) == 1 else tuple(entries)


# -- affine operations ------------------------------------------------------------------------------------------------


def _linear(t: _Translation, c: _Call) -> int:
    op = Linear(t.weight(c, "weight"), t.weight(c, "bias"))
    return t.add(c, op, t.value(c, c["input"]), reads=(c["weight"], c["bias"]))


def _matmul(t: _Translation, c: _Call) -> int:
    one, other = (c[key] for key in (("self", "mat2") if "mat2" in c.args else ("self", "other")))
    return t.both(c, t.builder.matmul, one, other)


def _addmm(t: _Translation, c: _Call) -> int:
    b = t.builder
    left, right = (c[k] for k in (("mat1", "mat2") if "mat1" in c.args else ("batch1", "batch2")))
    product = t.both(c, b.matmul, left, right)
    product = _times(t, c, product, c["alpha"])
    bias = c["self"]
    if c["beta"] != 1:
        bias = _Value(_times(t, c, t.value(c, bias), c["beta"]))
    return b.sum(product, t.operand(bias, c.name), name=c.name, parameters=_names(bias))


def _conv(t: _Translation, c: _Call) -> int:
    weight = t.weight(c, "weight")
    axes = weight.dim() - 2
    stride, dilation = _tuple(c["stride"], axes, 1), _tuple(c["dilation"], axes, 1)
    if c.args.get("transposed"):
        t._refuse(c.node, "a transposed convolution")
    if c["padding"] == "valid":
        pads = ((0, 0),) * axes
    elif c["padding"] == "same":
        spans = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
        pads = tuple((n // 2, n - n // 2) for n in spans)
    else:
        pads = tuple((n, n) for n in _tuple(c["padding"], axes, 0))
    x, mode = t.value(c, c["input"]), "zeros"
    if x in t.padded and not any(map(any, pads)):
        source, around, found = t.padded[x]
        if len(around) == axes + 2 and not any(map(any, around[:2])):
            x, pads, mode = source, around[2:], found
    op = Conv(weight, t.weight(c, "bias"), stride, pads, dilation, int(c["groups"]), mode)
    return t.add(c, op, x, reads=(c["weight"], c["bias"]))


def _batch_norm(t: _Translation, c: _Call) -> list[int | None]:
    if c.args.get("training") or c["running_mean"] is None:
        _refuse_batch_statistics(t, c)
    return [_eval_batch_norm(t, c), None, None, None, None]


def _plain_batch_norm(t: _Translation, c: _Call) -> int:
    return cast("int", _batch_norm(t, c)[0])


def _eval_batch_norm(t: _Translation, c: _Call) -> int:
    mean, variance = (t.weight(c, key) for key in ("running_mean", "running_var"))
    op = BatchNorm(mean, variance, float(c["eps"]), t.weight(c, "weight"), t.weight(c, "bias"))
    return t.add(c, op, t.value(c, c["input"]), reads=(c["weight"], c["bias"]))


def _refuse_batch_statistics(t: _Translation, c: _Call) -> NoReturn:
    t._refuse(
        c.node,
        "a batch normalisation by the statistics of the batch itself (in training mode, or without running statistics)",
        fix="call model.eval(), and train with track_running_stats=True",
    )


def _instance_norm(t: _Translation, c: _Call) -> int:
    if not c["use_input_stats"]:
        return _eval_batch_norm(t, c)
    return _per_group(t, c, t.builder.shape(t.value(c, c["input"]))[1])


def _group_norm(t: _Translation, c: _Call) -> int:
    return _per_group(t, c, int(c["num_groups"]))


def _per_group(t: _Translation, c: _Call, groups: int) -> int:
    """Each group of channels is normalised as one vector, then each channel has its own weight and bias."""
    b, x = t.builder, t.value(c, c["input"])
    shape = b.shape(x)
    flat = b.reshape(x, (shape[0], groups, math.prod(shape[1:]) // groups), name=c.name)
    y = b.reshape(t.add(c, LayerNorm(1, float(c["eps"])), flat), shape, name=c.name)
    channels = (-1, *(1,) * (len(shape) - 2))
    weight, bias = t.array(c, "weight"), t.array(c, "bias")
    if weight is not None:
        y = b.product(y, weight.reshape(channels), name=c.name, parameters=_names(c["weight"]))
    if bias is not None:
        y = b.sum(y, bias.reshape(channels), name=c.name, parameters=_names(c["bias"]))
    return y


def _layer_norm(t: _Translation, c: _Call) -> int:
    op = LayerNorm(len(c["normalized_shape"]), float(c["eps"]), t.weight(c, "weight"), t.weight(c, "bias"))
    return t.add(c, op, t.value(c, c["input"]), reads=(c["weight"], c["bias"]))


def _native_layer_norm(t: _Translation, c: _Call) -> list[int | None]:
    return [_layer_norm(t, c), None, None]


# -- arithmetic -------------------------------------------------------------------------------------------------------


def _times(t: _Translation, c: _Call, x: int, factor: Any) -> int:
    number = t.number(factor)
    return x if number == 1.0 else t.add(c, Scale(np.array(number)), x)


def _sum(t: _Translation, c: _Call, *, subtracts: bool = False) -> int:
    left, right = c["self"], c["other"]
    if c.args.get("alpha", 1) != 1:
        right = _Value(_times(t, c, t.value(c, right), c["alpha"]))
    return t.both(c, partial(t.builder.sum, subtracts=subtracts), left, right)


def _difference(t: _Translation, c: _Call) -> int:
    return _sum(t, c, subtracts=True)


def _reversed_difference(t: _Translation, c: _Call) -> int:
    turned = {**c.args, "self": c["other"], "other": c["self"]}
    return _sum(t, _Call(c.node, c.name, turned), subtracts=True)


def _product(t: _Translation, c: _Call) -> int:
    left, right = c["self"], c["other"]
    if isinstance(left, _Value) and isinstance(right, _Value):
        for x, gate in ((left.index, right.index), (right.index, left.index)):
            found = _gated(t, c, x, gate)
            if found is not None:
                return found
    return t.both(c, t.builder.product, left, right)


def _gated(t: _Translation, c: _Call, x: int, gate: int) -> int | None:
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


def _quotient(t: _Translation, c: _Call) -> int:
    if c.args.get("rounding_mode") is not None:
        t._refuse(c.node, "which rounds")
    left, right = c["self"], c["other"]
    if isinstance(right, _Value):
        t._refuse(c.node, "a division by a value computed from the input: it has no bounded slope")
    return t.both(c, t.builder.quotient, left, right)


def _negative(t: _Translation, c: _Call) -> int:
    return t.add(c, Scale(np.array(-1.0)), c["self"].index)


def _power(t: _Translation, c: _Call) -> int:
    if not isinstance(c["self"], _Value) or c["exponent"] not in (1, 2):
        t._refuse(c.node, "with another exponent than 1 and 2")
    x = c["self"].index
    return x if c["exponent"] == 1 else t.builder.product(x, x, name=c.name)


def _square(t: _Translation, c: _Call) -> int:
    return t.builder.product(c["self"].index, c["self"].index, name=c.name)


def _where(t: _Translation, c: _Call) -> int:
    if not isinstance(c["condition"], _Const):
        t._refuse(c.node, "a choice that depends on the input")
    return _chosen(t, c, c["condition"].value, c["self"], c["other"])


def _masked_fill(t: _Translation, c: _Call) -> int:
    if not isinstance(c["mask"], _Const):
        t._refuse(c.node, "a mask that depends on the input")
    return _chosen(t, c, ~c["mask"].value, c["self"], c["value"])


def _chosen(t: _Translation, c: _Call, keep: torch.Tensor, one: Any, other: Any) -> int:
    """``one`` where ``keep``, else ``other``: ``one ∘ keep + other ∘ (1 − keep)``."""
    mask = _Const(keep.to(torch.float64))
    kept, filled = t.both(c, t.builder.product, one, mask), t.both(c, t.builder.product, other, _Const(1 - mask.value))
    return t.builder.sum(kept, filled, name=c.name)


def _mean(t: _Translation, c: _Call) -> int:
    x = c["self"].index
    dims: Any = c.args.get("dim")
    dims = [dims] if isinstance(dims, int) else dims
    axes = tuple(cast("Sequence[int]", dims)) if dims else tuple(range(len(t.builder.shape(x))))
    return t.add(c, Mean(axes, bool(c.args.get("keepdim", False))), x)


def _total(t: _Translation, c: _Call) -> int:
    y = _mean(t, c)
    count = cast("Mean", t.builder.nodes[y].op).count(t.builder.shape(c["self"].index))
    return y if count == 1 else t.add(c, Scale(np.array(float(count))), y)


# -- activations and pooling ------------------------------------------------------------------------------------------


def _pointwise(name: str) -> Callable[[_Translation, _Call], int]:
    def translate(t: _Translation, c: _Call) -> int:
        return t.add(c, Pointwise(Activation(cast("Any", name))), c["self"].index)

    return translate


def _gelu(t: _Translation, c: _Call) -> int:
    name = {"none": "gelu", "tanh": "gelu_tanh"}.get(c["approximate"])
    if name is None:
        t._refuse(c.node, f"with approximate={c['approximate']!r}")
    return t.add(c, Pointwise(Activation(cast("Any", name))), c["self"].index)


def _leaky_relu(t: _Translation, c: _Call) -> int:
    return t.add(c, Pointwise(Activation("leaky_relu", t.number(c["negative_slope"]))), c["self"].index)


def _prelu(t: _Translation, c: _Call) -> int:
    slope = cast("F64", t.array(c, "weight"))
    if slope.size != 1:
        t._refuse(c.node, "with a slope for each channel")
    return t.add(c, Pointwise(Activation("leaky_relu", slope.item())), c["self"].index, reads=(c["weight"],))


def _clip(t: _Translation, c: _Call) -> int:
    low = next((c[k] for k in ("min", "min_val") if c.args.get(k) is not None), -math.inf)
    high = next((c[k] for k in ("max", "max_val") if c.args.get(k) is not None), math.inf)
    if any(isinstance(v, _Value) or (isinstance(v, _Const) and v.value.numel() != 1) for v in (low, high)):
        t._refuse(c.node, "with limits that are not numbers")
    return t.add(c, Clip(t.number(low), t.number(high)), c["self"].index)


def _relu6(t: _Translation, c: _Call) -> int:
    return t.add(c, Clip(0.0, 6.0), c["self"].index)


def _hard_sigmoid(t: _Translation, c: _Call) -> int:
    """``min(max(x + 3, 0), 6)/6``."""
    moved = t.builder.sum(c["self"].index, np.array(3.0), name=c.name)
    return t.add(c, Scale(np.array(6.0), divides=True), t.add(c, Clip(0.0, 6.0), moved))


def _hard_swish(t: _Translation, c: _Call) -> int:
    return t.builder.product(c["self"].index, _hard_sigmoid(t, c), name=c.name)


def _softmax(t: _Translation, c: _Call) -> int:
    return t.add(c, Softmax(int(c["dim"])), c["self"].index)


def _attention(t: _Translation, c: _Call) -> int:
    if c["is_causal"] or c.args.get("enable_gqa"):
        t._refuse(c.node, "with is_causal or enable_gqa")
    if c["dropout_p"] != 0.0:
        t._refuse(c.node, "with dropout", fix=_TRAINING)
    mask = c["attn_mask"]
    if isinstance(mask, _Const) and not bool(torch.isfinite(mask.value).all()):
        t._refuse(c.node, "with a mask that holds −∞")
    if isinstance(mask, _Const) and mask.value.dtype is torch.bool:
        if not bool(mask.value.all()):
            t._refuse(c.node, "with a mask that excludes tokens")
        mask = None
    query, key, value = (t.value(c, c[k]) for k in ("query", "key", "value"))
    scale = None if c["scale"] is None else float(c["scale"])
    given = None if mask is None else t.operand(mask, c.name)
    return t.builder.attention(query, key, value, scale=scale, mask=given, name=c.name)


def _pool_arguments(c: _Call, axes: int) -> tuple[Shape, Shape, Shape]:
    kernel = _tuple(c["kernel_size"], axes)
    return kernel, _tuple(c["stride"], axes) or kernel, _tuple(c["padding"], axes, 0)


def _rest(n: int, span: int, step: int, pad: int, ceil_mode: bool) -> int:
    """How far the last window of an axis reaches beyond the padding: with ``ceil_mode`` one more may begin inside."""
    room = n + 2 * pad - span
    count = -(-room // step) if ceil_mode else room // step
    if ceil_mode and count * step >= n + pad:
        count -= 1
    return max(0, count * step + span - n - 2 * pad)


def _max_pool(axes: int) -> Callable[[_Translation, _Call], int]:
    def translate(t: _Translation, c: _Call) -> int:
        x = c["self"].index
        kernel, stride, padding = _pool_arguments(c, axes)
        dilation = _tuple(c["dilation"], axes, 1)
        sizes = t.builder.shape(x)[-axes:]
        pads = tuple(
            (p, p + _rest(n, d * (k - 1) + 1, s, p, bool(c["ceil_mode"])))
            for n, k, s, p, d in zip(sizes, kernel, stride, padding, dilation, strict=True)
        )
        return t.add(c, MaxPool(kernel, stride, pads, dilation), x)

    return translate


def _avg_pool(axes: int) -> Callable[[_Translation, _Call], int]:
    def translate(t: _Translation, c: _Call) -> int:
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


def _adaptive_avg_pool(axes: int) -> Callable[[_Translation, _Call], int]:
    def translate(t: _Translation, c: _Call) -> int:
        return t.add(c, AdaptiveAvgPool(_tuple(c["output_size"], axes)), c["self"].index)

    return translate


def _adaptive_max_pool(axes: int) -> Callable[[_Translation, _Call], list[int | None]]:
    def translate(t: _Translation, c: _Call) -> list[int | None]:
        x = c["self"].index
        sizes, output = t.builder.shape(x)[-axes:], _tuple(c["output_size"], axes)
        if any(n % m for n, m in zip(sizes, output, strict=True)):
            t._refuse(c.node, f"from {sizes} to {output}: windows of different sizes")
        kernel = tuple(n // m for n, m in zip(sizes, output, strict=True))
        return [t.add(c, MaxPool(kernel, kernel, ((0, 0),) * axes), x), None]

    return translate


def _first(method: Callable[[_Translation, _Call], int]) -> Callable[[_Translation, _Call], list[int | None]]:
    """Of an operation that returns a second result (indices), which is not modelled."""
    return lambda t, c: [method(t, c), None]


# -- moving numbers ---------------------------------------------------------------------------------------------------


def _same(t: _Translation, c: _Call) -> int:
    """Copies, casts between floats and dropout that is off change no number."""
    if not c.node.meta["val"].dtype.is_floating_point:
        t._refuse(c.node, f"a cast to {c.node.meta['val'].dtype}")
    if c.args.get("train"):
        t._refuse(c.node, "dropout in training mode", fix=_TRAINING)
    return cast("_Value", next(iter(c.args.values()))).index


def _random(t: _Translation, c: _Call) -> NoReturn:
    t._refuse(c.node, "which is random: dropout in training mode", fix=_TRAINING)


def _reshape(t: _Translation, c: _Call) -> int:
    return t.builder.reshape(c["self"].index, c.shape, name=c.name)


def _expand(t: _Translation, c: _Call) -> int:
    return t.builder.expand(c["self"].index, c.shape, name=c.name)


def _permute(t: _Translation, c: _Call) -> int:
    return t.builder.permute(c["self"].index, c["dims"], name=c.name)


def _transpose(t: _Translation, c: _Call) -> int:
    order = list(range(len(c.shape)))
    i, j = (c.args.get("dim0", 0), c.args.get("dim1", 1)) if len(order) > 1 else (0, 0)
    order[i], order[j] = order[j], order[i]
    return t.builder.permute(c["self"].index, order, name=c.name)


def _select(t: _Translation, c: _Call) -> int:
    x = c["self"].index
    i = int(c["index"]) % t.builder.shape(x)[c["dim"]]
    return t.add(c, Slice(int(c["dim"]), i, i + 1, drops=True), x)


def _slice(t: _Translation, c: _Call) -> int:
    x, axis = c["self"].index, int(c["dim"])
    start, stop, step = slice(c["start"], c["end"], c["step"]).indices(t.builder.shape(x)[axis])
    return t.builder.slice(x, axis, start, stop, step, name=c.name)


def _narrow(t: _Translation, c: _Call) -> int:
    x, axis = c["self"].index, int(c["dim"])
    start = int(c["start"]) % t.builder.shape(x)[axis]
    return t.builder.slice(x, axis, start, start + int(c["length"]), name=c.name)


def _parts(t: _Translation, c: _Call) -> list[int]:
    """``split``, ``chunk``: parts one after the other, of the lengths that torch found."""
    x, axis, start, found = c["self"].index, int(c["dim"]), 0, list[int]()
    for part in c.node.meta["val"]:
        stop = start + int(part.shape[axis])
        found.append(t.builder.slice(x, axis, start, stop, name=c.name))
        start = stop
    return found


def _unbind(t: _Translation, c: _Call) -> list[int]:
    x, axis = c["self"].index, int(c["dim"])
    return [t.add(c, Slice(axis, i, i + 1, drops=True), x) for i in range(t.builder.shape(x)[axis])]


def _index(t: _Translation, c: _Call) -> int:
    places: Any = [(axis, i) for axis, i in enumerate(c["indices"]) if i is not None]
    if not isinstance(c["self"], _Value) or not all(isinstance(i, _Const) for _, i in places):
        t._refuse(c.node, "with indices that depend on the input")
    if len(places) != 1:
        t._refuse(c.node, f"with {len(places)} index tensors")
    axis, tensor = places[0][0], places[0][1].value
    return t.builder.reshape(_gathered(t, c, axis, tensor), c.shape, name=c.name)


def _index_select(t: _Translation, c: _Call) -> int:
    if not isinstance(c["index"], _Const):
        t._refuse(c.node, "with indices that depend on the input")
    return _gathered(t, c, int(c["dim"]), c["index"].value)


def _gathered(t: _Translation, c: _Call, axis: int, tensor: torch.Tensor) -> int:
    x = c["self"].index
    n = t.builder.shape(x)[axis]
    return t.add(c, Gather(axis, tuple(int(i) % n for i in tensor.reshape(-1).tolist())), x)


def _flip(t: _Translation, c: _Call) -> int:
    x = c["self"].index
    for axis in c["dims"]:
        x = t.add(c, Gather(int(axis), tuple(range(t.builder.shape(x)[axis]))[::-1]), x)
    return x


def _roll(t: _Translation, c: _Call) -> int:
    b, x = t.builder, c["self"].index
    if c["dims"]:
        return t.add(c, Roll(_tuple(c["shifts"], 1), _tuple(c["dims"], 1)), x)
    flat = b.reshape(x, (math.prod(c.shape),), name=c.name)
    return b.reshape(t.add(c, Roll(_tuple(c["shifts"], 1), (0,)), flat), c.shape, name=c.name)


def _repeat(t: _Translation, c: _Call) -> int:
    b, x = t.builder, c["self"].index
    times = tuple(c["repeats"])
    shape = (1,) * (len(times) - len(b.shape(x))) + b.shape(x)
    apart = b.reshape(x, tuple(n for size in shape for n in (1, size)), name=c.name)
    apart = b.expand(apart, tuple(n for pair in zip(times, shape, strict=True) for n in pair), name=c.name)
    return b.reshape(apart, c.shape, name=c.name)


def _concat(t: _Translation, c: _Call) -> int:
    nodes = [t.value(c, x) for x in c["tensors"]]
    # torch leaves out empty vectors
    return t.builder.concat([i for i in nodes if t.builder.shape(i) != (0,)], int(c["dim"]), name=c.name)


def _stack(t: _Translation, c: _Call) -> int:
    axis = int(c["dim"]) % len(c.shape)
    shape = (*c.shape[:axis], 1, *c.shape[axis + 1 :])
    parts = [t.builder.reshape(t.value(c, x), shape, name=c.name) for x in c["tensors"]]
    return t.builder.concat(parts, axis, name=c.name)


def _pad(t: _Translation, c: _Call) -> int:
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


def _pad_by_copies(t: _Translation, c: _Call, x: int, pads: Pads, mode: str) -> int:
    source, how = x, {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}[mode]
    if any(min(p) < 0 for p in pads):
        t._refuse(c.node, f"with negative {mode} padding")
    for axis, pad in enumerate(pads):
        if any(pad):
            copies = np.pad(np.arange(t.builder.shape(x)[axis]), pad, mode=cast("Any", how))
            x = t.add(c, Gather(axis, tuple(copies.tolist())), x)
    t.padded[x] = (source, pads, mode)  # a convolution of it knows the mode itself
    return x


def _slice_scatter(t: _Translation, c: _Call) -> int:
    b, base, part = t.builder, t.value(c, c["self"]), t.value(c, c["src"])
    axis = int(c["dim"])
    size = b.shape(base)[axis]
    start, stop, step = slice(c["start"], c["end"], c["step"]).indices(size)
    if step != 1:
        t._refuse(c.node, "writing to every second entry or fewer")
    return _spliced(t, c, base, part, axis, start, stop)


def _select_scatter(t: _Translation, c: _Call) -> int:
    b, base, axis = t.builder, t.value(c, c["self"]), int(c["dim"]) % len(c.shape)
    i = int(c["index"]) % c.shape[axis]
    part = b.reshape(t.value(c, c["src"]), (*c.shape[:axis], 1, *c.shape[axis + 1 :]), name=c.name)
    return _spliced(t, c, base, part, axis, i, i + 1)


def _spliced(t: _Translation, c: _Call, base: int, part: int, axis: int, start: int, stop: int) -> int:
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


def _copy(t: _Translation, c: _Call) -> int:
    return t.builder.expand(t.value(c, c["src"]), c.shape, name=c.name)


def _pixel_shuffle(t: _Translation, c: _Call) -> int:
    b, x, r = t.builder, c["self"].index, int(c["upscale_factor"])
    *lead, channels, height, width = b.shape(x)
    n = len(lead)
    apart = b.reshape(x, (*lead, channels // r**2, r, r, height, width), name=c.name)
    turned = b.permute(apart, (*range(n), n, n + 3, n + 1, n + 4, n + 2), name=c.name)
    return b.reshape(turned, c.shape, name=c.name)


_ASSERTIONS = ("_assert_tensor_metadata", "_assert_scalar", "_assert_async", "sym_constrain_range")
_OF_SHAPE = (
    "new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided", "zeros_like", "ones_like", "full_like",
    "empty_like", "fill",
)  # fmt: skip
_Method = Callable[[_Translation, _Call], Any]
_TABLE: tuple[tuple[str, _Method], ...] = (
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
_METHODS: dict[str, _Method] = {name: method for names, method in _TABLE for name in names.split()}


# -- the round trip ---------------------------------------------------------------------------------------------------


class _Replay(fx.Interpreter):
    """The exported program, run by torch on the tensors ``state``.

    ``double``: every float dtype that the program names is read as float64, as ``state`` is, and what does not depend
    on the input is taken as it was computed in the module's own dtype; ``traces``: of the graph's values at the first
    sample that is evaluated, each compared with torch's.
    """

    def __init__(
        self,
        translation: _Translation,
        state: Sequence[Any],
        *,
        double: bool = True,
        traces: Sequence[_Trace] = (),
    ) -> None:
        super().__init__(translation.program.graph_module)
        self.expected = dict(enumerate(traces))
        self.translation, self.state, self.double = translation, state, double

    def evaluate(self, x: torch.Tensor) -> torch.Tensor:
        """The user's output for one sample."""
        inputs = [x.clone() if t is None else t for t in self.state]
        specs = self.translation.program.graph_signature.output_specs
        results = cast("Sequence[Any]", self.run(*inputs))
        self.expected = {}
        return next(r for r, spec in zip(results, specs, strict=True) if spec.kind.name == "USER_OUTPUT")

    def run_node(self, n: fx.Node) -> Any:
        known = self.translation.env.get(n)
        if self.double and isinstance(known, _Const) and n.op == "call_function":
            return _as_double(known.value)
        result = super().run_node(n)
        if isinstance(known, _Value):
            self._compare(n, known, result)
        return result

    def _compare(self, node: fx.Node, value: _Value, theirs: torch.Tensor) -> None:
        ours = self.expected.get(self.translation.builder.places.get(value.index, -1), None)
        if ours is None:
            return
        found = _trace(_array(theirs), 0.0)
        # not "difference > allowed": NaN must fail
        if not abs(found.projection - ours.projection) <= ours.allowed:
            raise InputError(
                "model",
                got=f"{self.translation.where(node)}, for which torch computes other values than the imported graph "
                f"(projected: {found.projection:.9g} and {ours.projection:.9g})",
                needed="a right translation",
                fix="report this: it is a mistake of certbound",
            )

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        schema = getattr(target, "_schema", None)
        kind = "" if schema is None else schema.name.removeprefix("aten::")
        if kind in _ASSERTIONS:
            return None
        if not self.double:
            return super().call_function(target, args, kwargs)
        args, kwargs = _map_aggregate((args, kwargs), self._argument(kind))
        # what names no dtype (torch.arange(8.0)) has torch's default one
        return _as_double(super().call_function(target, args, kwargs))

    def _argument(self, kind: str) -> Callable[[Any], Any]:
        def convert(a: Any) -> Any:
            if isinstance(a, torch.dtype):
                return torch.float64 if a.is_floating_point else a
            if isinstance(a, float) and kind in _ROUNDS:
                return self.translation.number(a)
            return a

        return convert


@dataclass(frozen=True)
class _Trace:
    """Of a value: its product with a fixed vector, and how far rounding may take that."""

    projection: float
    allowed: float


def _trace(value: F64, largest: float) -> _Trace:
    """``largest``: number on the way; where it cancels, what is left is rounding errors."""
    flat = value.reshape(-1)
    allowed = _EXACT * float(np.abs(flat).sum()) + 1e-13 * largest * flat.size
    return _Trace(float(np.cos(np.arange(flat.size)) @ flat), allowed)


def _as_double(value: Any) -> Any:
    """Floating tensors in float64."""
    if isinstance(value, (tuple, list)):
        return type(value)(_as_double(v) for v in cast("Sequence[Any]", value))
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.to(torch.float64)
    return value


def _state(t: _Translation, twin: nn.Module | None) -> list[Any]:
    """What the program reads, in float64 (the tensors of ``twin``, the module's copy); None in the sample's place."""
    found: list[Any] = []
    for spec in t.program.graph_signature.input_specs:
        if spec.kind.name == "USER_INPUT":
            found.append(None)
        elif twin is not None and spec.kind.name in ("PARAMETER", "BUFFER"):
            found.append(operator.attrgetter(spec.target)(twin))
        else:
            found.append(_as_double(t.state(spec)))
    return found


_ROUNDS = ("leaky_relu", "mul", "div", "add", "sub", "rsub", "clamp", "clamp_min", "clamp_max", "hardtanh", "pad",
           "constant_pad_nd", "where", "masked_fill", "addmm", "baddbmm")  # fmt: skip
_EXACT = 1e-9


@dataclass(frozen=True)
class _Sizes:
    """Per sample: the largest output, and the largest number on the way."""

    outputs: F64
    largest: F64

    @property
    def allowed(self) -> F64:
        """Rounding errors of float64: relative to the outputs, and a little for what cancels on the way."""
        return _EXACT * self.outputs + 1e-12 * self.largest


def _check_round_trip(module: nn.Module, t: _Translation, graph: Graph) -> None:
    """Compare graph, exported program and module on three inputs: zeros, small and large, of both signs."""
    rng = np.random.default_rng(0)  # the user's random numbers are not ours to use up
    shape = graph.input_shape
    rows = np.stack([rng.random(shape), np.zeros(shape), 3.0 * rng.standard_normal(shape)])
    x = torch.from_numpy(rows).to(t.dtype)
    exact = x.to(torch.float64)
    ours, sizes, traces = _evaluate(graph, exact.numpy())
    device = _device(module)
    double = exact.to(device)
    twin = _float64_copy(module, t.dtype)
    replayed = _stacked(_Replay(t, _state(t, twin), traces=traces), double)
    if not _close(replayed, ours, sizes.allowed):
        _mismatch("the exported program", replayed, ours, "report this: the translation of the model is wrong")
    theirs = None if twin is None or t.rounded or _names_dtypes(t.program) else _attempt(twin, double, ours.shape)
    del twin
    if theirs is None:
        _check_own_dtype(module, t, x.to(device), replayed, sizes)
    else:
        _judge(theirs, replayed, sizes.allowed, "the module in float64")


def _names_dtypes(program: Any) -> bool:
    """Whether forward casts: its float64 copy may then compute in another dtype than float64.

    A cast to the dtype that the value has already is seen too: export leaves an ``_assert_tensor_metadata`` of it.
    """
    named = list[Any]()
    for node in program.graph.nodes:
        _map_aggregate((node.args, node.kwargs), named.append)
    return any(isinstance(a, torch.dtype) for a in named)


def _check_own_dtype(module: nn.Module, t: _Translation, x: torch.Tensor, exact: F64, sizes: _Sizes) -> None:
    """Module and program in the module's dtype: both round, the program by what it differs from float64."""
    own = [
        None if spec.kind.name == "USER_INPUT" else t.state(spec) for spec in t.program.graph_signature.input_specs
    ]
    program = _stacked(_Replay(t, own, double=False), x)
    eps = torch.finfo(t.dtype).eps
    noise = np.abs(program - exact).max(axis=1)
    allowed = np.maximum(8.0 * noise + 64.0 * eps * sizes.outputs, sizes.allowed)
    try:
        found = _run(module, x, exact.shape)
    except Exception as error:  # the user's forward: whatever it raises, the import has not been checked
        raise InputError(
            "model",
            got=f"{type(error).__name__} from its forward on a batch of samples ({error})",
            needed="a forward that takes batches of any size",
            fix="let forward read the batch size from x.shape[0]",
        ) from error
    _judge(found, program, allowed, "the module")


def _judge(found: F64, program: F64, allowed: F64, who: str) -> None:
    """Refuse a module that gives something else than the program."""
    if _close(found, program, allowed):
        return
    if _close(found[:1], program[:1], allowed[:1]):
        raise InputError(
            "model",
            got="another output in a batch of two than alone, or in a second call than in the first",
            needed="a function of one sample",
            fix="keep the batch axis first (batch_first=True), and take statistics of the batch, counters and random "
            "numbers out of forward",
        )
    _mismatch(who, found, program, "look for forward code that depends on the input's values or on its dtype")


def _evaluate(graph: Graph, x: F64) -> tuple[F64, _Sizes, list[_Trace]]:
    """Outputs, their sizes, and a trace of each value at the first sample."""
    outputs, largest, traces = list[F64](), list[float](), list[_Trace]()
    for k, sample in enumerate(x):
        top, value = 0.0, np.empty(0)
        with np.errstate(over="ignore", invalid="ignore"):
            for value in graph.values(sample):
                top = max(top, float(np.max(np.abs(value), initial=0.0)))
                if k == 0:
                    traces.append(_trace(value, top))
        outputs.append(value.reshape(-1))
        largest.append(top)
    found = np.stack(outputs)
    if not np.all(np.isfinite(found)):
        raise InputError(
            "model",
            got="outputs that are not finite on random inputs of size 1",
            needed="weights with which the model can be run",
            fix="look for weights that overflow",
        )
    return found, _Sizes(np.abs(found).max(axis=1), np.array(largest)), traces


def _run(module: nn.Module, x: torch.Tensor, shape: tuple[int, ...]) -> F64:
    """The outputs, (samples, outputs): of the first sample alone, then of the others as a batch."""
    parts = [part.clone() for part in (x[:1], x[1:])]  # forward may write to its input
    return np.concatenate([_rows(module(part), (len(part), *shape[1:])) for part in parts])


def _float64_copy(module: nn.Module, dtype: torch.dtype) -> nn.Module | None:
    """A copy in float64; None where the module has that dtype, cannot be copied, or not converted."""
    try:
        return None if dtype is torch.float64 else copy.deepcopy(module).to(torch.float64)
    except Exception:  # noqa: BLE001  # the user's code: then the module itself is run
        return None


def _attempt(module: nn.Module, x: torch.Tensor, shape: tuple[int, ...]) -> F64 | None:
    """The outputs; None where forward fails."""
    try:
        return _run(module, x, shape)
    except Exception:  # noqa: BLE001  # the user's code: then the module itself is run
        return None


def _stacked(replay: _Replay, x: torch.Tensor) -> F64:
    return np.stack([_array(replay.evaluate(sample[None])) for sample in x])


def _array(tensor: torch.Tensor) -> F64:
    return tensor.detach().to("cpu", torch.float64).numpy().reshape(-1)


def _rows(out: Any, shape: tuple[int, ...]) -> F64:
    """The module's output as (samples, outputs); NaN, equal to nothing, if it has another number of them."""
    if not isinstance(out, torch.Tensor) or out.is_complex() or out.numel() != math.prod(shape):
        return np.full(shape, np.nan)
    return _array(out).reshape(shape)


def _close(theirs: F64, ours: F64, allowed: F64) -> bool:
    """NaN is close to nothing."""
    return bool(np.all(np.abs(theirs - ours) <= allowed[:, None]))


def _mismatch(who: str, theirs: F64, ours: F64, fix: str) -> NoReturn:
    difference = np.where(np.isnan(theirs), math.inf, np.abs(theirs - ours))
    i, j = np.unravel_index(int(np.argmax(difference)), difference.shape)
    raise InputError(
        "model",
        got=f"an output of {theirs[i, j]:.9g} of {who} where what was imported gives {ours[i, j]:.9g}",
        needed="a module that computes what torch.export recorded",
        fix=fix,
    )


__all__ = ["from_module"]
