"""``nn.Module`` → Network.

The model is traced with ``torch.fx``, not walked child by child: what a network computes is in its ``forward``, not
in its list of children, and a residual sum, an ``F.gelu`` or a layer called twice is seen only there. Every traced
node is either translated or refused by name; nothing is skipped.

Where two values are added, both must come from one value before them, and what lies between belongs to this sum
alone: then it is a residual block. Blocks may lie in a row or inside one another; paths that cross are refused. So is
an operation in place whose old value is read again (``x + nn.ReLU(inplace=True)(x)``): torch would read the new one.

At the end the module itself is run on random inputs
and compared with the imported network, for whatever tracing cannot see.

Tracing replaces ``nn.Module.__call__`` while it runs: do not import models from two threads at once.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn, cast

import numpy as np

from certbound.arrays import F64, as_float64, as_matrix
from certbound.errors import InputError, MissingDependencyError, UnsupportedLayerError
from certbound.network import (
    Activation,
    Affine,
    Flatten,
    Layer,
    Network,
    Normalise,
    Residual,
    affine_layers,
)

try:
    import torch
    from torch import fx, nn
    from torch.nn import functional
    from torch.nn.utils import parametrize, prune
    from torch.nn.utils.spectral_norm import SpectralNorm
    from torch.nn.utils.weight_norm import WeightNorm

    from certbound.io.torch_layers import FlatInput
    from certbound.io.torch_layers import Normalise as NormaliseModule
    from certbound.io.torch_layers import Residual as ResidualModule
except ImportError as error:  # pragma: no cover - nobody holds a module without torch
    raise MissingDependencyError("torch", purpose="reading an nn.Module", command="pip install torch") from error

_SUPPORTED = (
    "nn.Linear, nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.Flatten, nn.Identity, nn.Dropout in "
    "eval mode, Normalise / torchvision Normalize, nn.Sequential, residual sums of two such chains that start from one "
    "value, and in forward these activations as functions, flatten, view or reshape to (batch, n) and F.linear"
)
_REWRITE = "rewrite the model with these, or pass the part of it that has only these"

# The identical class only: a subclass may compute anything. The second one is nn.Linear under another name.
_LINEAR: tuple[type[nn.Module], ...] = (nn.Linear, nn.modules.linear.NonDynamicallyQuantizableLinear)
_ACTIVATIONS: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.LeakyReLU: "leaky_relu",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
    nn.GELU: "gelu",
    nn.SiLU: "silu",
}
_LEAVES = (*_LINEAR, *_ACTIVATIONS, nn.Flatten, nn.Identity, nn.Dropout, NormaliseModule, FlatInput)
# with the names of their arguments after the input, in torch's order
_FUNCTIONS: dict[Any, tuple[str, tuple[str, ...]]] = {
    functional.relu: ("relu", ("inplace",)),
    torch.relu: ("relu", ()),
    torch.relu_: ("relu", ()),  # functional.relu_ is the same object
    functional.leaky_relu: ("leaky_relu", ("negative_slope", "inplace")),
    functional.leaky_relu_: ("leaky_relu", ("negative_slope",)),
    torch.tanh: ("tanh", ()),
    torch.tanh_: ("tanh", ()),
    torch.sigmoid: ("sigmoid", ()),
    torch.sigmoid_: ("sigmoid", ()),
    torch.special.expit: ("sigmoid", ()),
    functional.gelu: ("gelu", ("approximate",)),
    functional.silu: ("silu", ("inplace",)),
}
_METHODS = {name + end: name for name in ("relu", "tanh", "sigmoid") for end in ("", "_")}
_SUM_FUNCTIONS = (operator.add, operator.iadd, torch.add)
_SUM_METHODS = ("add", "add_")

_WRAPPED = "model"  # the name of the user's module inside the wrapper that is traced


def from_module(module: nn.Module, *, input_shape: tuple[int, ...] | None = None) -> Network:
    """Import an ``nn.Module`` as a :class:`~certbound.network.Network` that computes the same function.

    Parameters
    ----------
    module : a model whose ``forward`` takes one batch and is a chain of affine maps, activations, residual blocks,
        flattening and normalisation. Its weights are read exactly as stored; it is not changed.
    input_shape : shape of one input, without the batch axis; needed for per-channel normalisation, and for a
        ``forward`` that accepts only its own shape.

    Raises
    ------
    UnsupportedLayerError : a layer or operation outside the list, named with its path in the model.
    InputError : weights that are NaN, complex or on the meta device; a shape that does not fit; a module whose
        output is not that of the imported network (a hook that alters it, say).

    >>> layer = nn.Linear(2, 1)
    >>> _ = nn.init.ones_(layer.weight), nn.init.zeros_(layer.bias)
    >>> from_module(nn.Sequential(layer, nn.ReLU())).forward([[3.0, 1.0], [-3.0, 1.0]])
    array([[4.],
           [0.]])
    """
    if not isinstance(module, nn.Module):
        raise InputError(
            "model", got=f"a {type(module).__name__}", needed="an nn.Module", fix="pass the model, not its weights"
        )
    shape = _parse_shape(input_shape)
    _refuse_opaque(module)
    # Its own wrapper for root: fx runs neither the hooks nor an instance-level forward of the root, and it would
    # store tensor constants on it.
    wrapper = _Wrapper(module)
    with _unchanged(module), torch.no_grad():
        importer = _Importer(wrapper, shape)
        importer.run(_trace(wrapper))
        network = Network(tuple(importer.layers), shape)
        _check_round_trip(module, network, importer)
    return network


class _Wrapper(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.add_module(_WRAPPED, module)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.get_submodule(_WRAPPED)(x)


class _Proxy(fx.Proxy):
    """fx reads ``a += b`` as ``a = a + b``; on tensors it overwrites a, which others may read."""

    def __iadd__(self, other: object) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})


class _Tracer(fx.Tracer):
    """Stops at torch's layers, at subclasses of those we know, and at torchvision's transforms: they are named."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, _LEAVES) or _is_torchvision_normalize(m):
            return True
        return type(m).__module__.startswith(("torch.nn.", "torch.ao.")) and not isinstance(m, nn.Sequential)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)


def _trace(wrapper: _Wrapper) -> fx.Graph:
    tracer = _Tracer()
    try:
        return tracer.trace(wrapper)
    except InputError:
        raise
    except Exception as error:  # forward is the user's code: it may raise anything when it meets a symbolic value
        where = _enclosing(tracer.module_stack.values())
        reason = str(error).strip().splitlines()
        raise UnsupportedLayerError(
            "model",
            got=f"{where}, whose forward torch.fx cannot trace "
            f"({type(error).__name__}: {reason[0] if reason else 'no message'})",
            needed="a forward(x) of one input without control flow that depends on the data",
            fix="take asserts and branches on x out of forward, unwrap compiled or scripted models",
        ) from error


@dataclass(frozen=True)
class _Value:
    """What one node computes: ``layers`` applied to the value of ``above``, the nearest one that every path crosses."""

    above: fx.Node | None
    layers: list[Layer]
    shape: tuple[int, ...] | None  # without batch axis; None: flat
    width: int | None  # numbers per sample; None: not known yet
    declared: bool  # the width is the caller's input_shape
    memory: fx.Node  # the first value that was stored where this one is


@dataclass
class _Importer:
    """Walks a traced graph that must be series-parallel: each node takes one value, or adds two of one origin.

    ``layers``, ``shape``, ``width`` and ``declared`` are those of the node being translated, as in ``_Value``.
    """

    root: _Wrapper
    shape: tuple[int, ...] | None
    layers: list[Layer] = field(default_factory=list)
    width: int | None = None
    dtype: torch.dtype | None = None  # of the first weight: what the round trip runs in
    device: torch.device | None = None
    declared: bool = False
    image: bool = False  # torchvision's Normalize wants at least three axes
    values: dict[fx.Node, _Value] = field(default_factory=dict)  # in order of execution
    used: set[fx.Node] = field(default_factory=set)  # values that are part of the network
    overwritten: dict[fx.Node, fx.Node] = field(default_factory=dict)  # values, and what was written over them

    def run(self, graph: fx.Graph) -> None:
        """Translate every node, or raise."""
        if self.shape is not None:
            self.width, self.declared = math.prod(self.shape), True
        self._look_ahead(graph)
        sizes: dict[fx.Node, int | None] = {}  # nodes that hold a size: the axis, or None for the whole shape
        for node in graph.nodes:
            if node.op == "placeholder":
                self._store(node, None, node)
            elif node.op == "get_attr":
                continue  # a weight: whoever uses it is translated or refused
            elif node.op == "output":
                self._finish(node)
            elif not self._is_size(node, sizes):
                self._value(node, sizes)

    def _finish(self, node: fx.Node) -> None:
        start, result = next(iter(self.values)), node.args[0]
        if not isinstance(result, fx.Node) or result is not next(reversed(self.values)):
            self._refuse(
                node,
                "an output that is not the last value alone (several outputs, a value that "
                "is computed and dropped, or a constant)",
            )
        self.layers = self._path(start, result, None)
        for value in self.values:
            if value is not start and value not in self.used:
                self._refuse(
                    node,
                    f"{self._name(value)}, whose value does not reach the output: some value is used "
                    "twice (a branch that is never joined), or not at all",
                )

    def _value(self, node: fx.Node, sizes: dict[fx.Node, int | None]) -> None:
        if node.target in _SUM_FUNCTIONS or (node.op == "call_method" and node.target in _SUM_METHODS):
            self._sum(node)
            return
        inputs = [n for n in node.all_input_nodes if n.op != "get_attr" and n not in sizes]
        if len(inputs) > 1:
            self._refuse(
                node,
                f"{self._name(node)}, which joins {len(inputs)} values other than by adding them (a "
                "concatenation, a product)",
            )
        if not inputs:
            self._refuse(
                node,
                f"{self._name(node)}, which takes no value computed from the input (a computed weight, a constant)",
            )
        source = self.values[inputs[0]]
        self._read(node, inputs[0])
        self.layers, self.shape, self.width, self.declared = [], source.shape, source.width, source.declared
        self._translate(node, sizes)
        # flatten, view, Identity and the like may return the very numbers they got
        moved = any(not isinstance(layer, Flatten) for layer in self.layers)
        inplace = moved and self._inplace(node)
        self._store(node, inputs[0], node if moved and not inplace else source.memory, overwrites=inplace)

    def _store(self, node: fx.Node, above: fx.Node | None, memory: fx.Node, *, overwrites: bool = False) -> None:
        if overwrites:
            self.overwritten |= {n: node for n, value in self.values.items() if value.memory is memory}
        self.values[node] = _Value(above, self.layers, self.shape, self.width, self.declared, memory)

    def _read(self, node: fx.Node, value: fx.Node) -> None:
        """Refuse a value that is no more what it was when it was computed."""
        if value in self.overwritten:
            self._refuse(
                self.overwritten[value],
                f"{self._name(self.overwritten[value])}, which works in place on a value that is read again "
                f"afterwards, by {self._name(node)}",
                fix="pass inplace=False, or use the operation without the trailing underscore",
            )

    # -- residual blocks --------------------------------------------------------------------------------------------

    def _sum(self, node: fx.Node) -> None:
        name = self._name(node)
        left, right = _argument(node, 0, "input", None), _argument(node, 1, "other", None)
        alpha: Any = node.kwargs.get("alpha", 1)
        if not all(isinstance(x, fx.Node) and x in self.values for x in (left, right)):
            self._refuse(node, f"{name}, which adds something other than two values computed from the input")
        if alpha != 1 or len(node.args) > 2 or node.kwargs.keys() - {"input", "other", "alpha"}:
            self._refuse(node, f"{name} with other arguments than the two values (alpha, out)")
        a, b = self.values[left], self.values[right]
        self._read(node, left)
        self._read(node, right)
        shape = _common_shape(a, b)
        if a.width != b.width or shape == ():
            self._refuse(
                node,
                f"{name}, which broadcasts: it adds {a.shape or (a.width,)} and {b.shape or (b.width,)} numbers",
                fix="give both the same shape, the shortcut by an nn.Linear of its own",
            )
        above = self._fork(left, right)
        body, shortcut = self._path(above, left, node), self._path(above, right, node)
        if not body and not shortcut:
            self._refuse(node, f"{name}, which adds a value to itself", fix="scale the weights of the layer before it")
        # Which of the two is called the shortcut changes no number: where it is not clear, the second.
        clear = not body or (_is_affine(body) and not _is_affine(shortcut) and not self._in_own_block(node))
        if clear:
            body, shortcut = shortcut, body
        inplace = self._inplace(node)
        self.layers, self.shape, self.width = [Residual(tuple(body), tuple(shortcut))], shape, a.width
        self.declared = a.declared and b.declared
        self._store(node, above, a.memory if inplace else node, overwrites=inplace)

    def _fork(self, left: fx.Node, right: fx.Node) -> fx.Node:
        """The last value that every path to either of the two crosses."""
        crossed: set[fx.Node] = set()
        node: fx.Node | None = left
        while node is not None:
            crossed.add(node)
            node = self.values[node].above
        while right not in crossed:
            right = cast("fx.Node", self.values[right].above)  # the input itself is crossed by both
        return right

    def _path(self, top: fx.Node, node: fx.Node, block: fx.Node | None) -> list[Layer]:
        """Layers from the value ``top`` to ``node``, as a branch of the sum ``block`` if given; no value twice."""
        found: list[list[Layer]] = []
        while node is not top:
            if node in self.used:
                where = "" if block is None else f", seen at {self._name(block)}"
                self._refuse(
                    node,
                    f"{self._name(node)}, whose value is used twice (a branch) and not within one "
                    f"residual block alone{where}: blocks may lie in a row or inside one another, not overlap",
                )
            self.used.add(node)
            value = self.values[node]
            above = cast("fx.Node", value.above)  # only the input has none, and top is never below it
            found.append(value.layers if block is None else self._inside(node, self.values[above].shape))
            node = above
        return [layer for layers in reversed(found) for layer in layers]

    def _inside(self, node: fx.Node, before: tuple[int, ...] | None) -> list[Layer]:
        """The node's layers as part of a residual block: flattening what is flat is nothing."""
        kept: list[Layer] = []
        for layer in self.values[node].layers:
            if isinstance(layer, Normalise):
                self._refuse(
                    node,
                    f"{self._name(node)}, a normalisation inside a residual block",
                    fix="normalise before the block, or write it as an nn.Linear",
                )
            if not isinstance(layer, Flatten):
                kept.append(layer)
            elif before is not None and len(before) > 1:
                self._refuse(
                    node,
                    f"{self._name(node)}, which flattens an input of shape {before} inside a residual block",
                    fix="flatten before the block",
                )
        return kept

    def _in_own_block(self, node: fx.Node) -> bool:
        stack = list(_stack(node))
        return bool(stack) and type(self.root.get_submodule(stack[-1][0])) is ResidualModule

    # -- single nodes -----------------------------------------------------------------------------------------------

    def _translate(self, node: fx.Node, sizes: dict[fx.Node, int | None]) -> None:
        if node.op == "call_module":
            if len(node.args) != 1 or node.kwargs:
                self._refuse(node, f"{self._name(node)}, called with several or named arguments")
            self._module(node, self.root.get_submodule(str(node.target)))
        elif node.op == "call_function" and node.target in _FUNCTIONS:
            self._activation_function(node, *_FUNCTIONS[node.target])
        elif node.op == "call_method" and node.target in _METHODS:
            self._activation_function(node, _METHODS[str(node.target)], ())
        elif node.target is functional.linear:
            self._functional_linear(node)
        elif node.target is functional.dropout:
            if _argument(node, 2, "training", True) is not False:
                self._refuse(node, f"{self._name(node)} that is active", fix="call model.eval() and pass self.training")
        elif node.target is torch.flatten or (node.op == "call_method" and node.target == "flatten"):
            start, end = _argument(node, 1, "start_dim", 0), _argument(node, 2, "end_dim", -1)
            if (start, end) != (1, -1):
                self._refuse(node, f"{self._name(node)} of the axes {start} to {end}", fix="use flatten(x, 1)")
            self._flatten()
        elif node.target is torch.reshape or (node.op == "call_method" and node.target in ("view", "reshape")):
            self._reshape(node, sizes)
        elif node.op == "call_method" and node.target == "contiguous":
            pass  # same numbers, other memory layout
        else:
            self._refuse(node, self._name(node))

    def _module(self, node: fx.Node, m: nn.Module) -> None:
        cls, name, path = _exact_class(m), self._name(node), _path(str(node.target))
        if "forward" in vars(m):
            self._refuse(node, f"{name}, whose forward was replaced on the instance")
        if cls in _LINEAR:
            weight, bias = _effective(m, "weight", path), _effective(m, "bias", path)
            self._affine(node, weight, bias, path)
        elif cls in _ACTIVATIONS:
            given = {key: getattr(m, key) for key in ("negative_slope", "approximate") if hasattr(m, key)}
            self._activation(node, _ACTIVATIONS[cls], given)
        elif cls is nn.Flatten:
            if (m.start_dim, m.end_dim) != (1, -1):
                self._refuse(node, f"{name} of the axes {m.start_dim} to {m.end_dim}", fix="use nn.Flatten()")
            self._flatten()
        elif cls is nn.Dropout:
            if m.training:
                self._refuse(node, f"{name} in training mode", fix="call model.eval()")
        elif cls is NormaliseModule:
            self._normalise(node, cast("Any", m.mean), cast("Any", m.std), path, axis=0)
        elif _is_torchvision_normalize(m) and cls.__name__ == "Normalize":
            # as its forward does: the numbers are rounded to the dtype of the input
            mean, std = (torch.as_tensor(v, dtype=self.dtype) for v in (m.mean, m.std))
            self.image = True
            self._normalise(node, mean, std, path, axis=-3)
        elif cls is FlatInput:
            if self.shape is not None:
                self._flatten()
        elif cls is not nn.Identity:
            self._refuse(node, name)

    def _activation_function(self, node: fx.Node, name: str, parameters: tuple[str, ...]) -> None:
        given = dict(zip(parameters, node.args[1:], strict=False)) | dict(node.kwargs)
        if len(node.args) > 1 + len(parameters) or given.keys() - {"input", *parameters}:
            self._refuse(node, f"{self._name(node)} with an argument that is not known")
        self._activation(node, name, given)

    def _activation(self, node: fx.Node, name: str, given: Mapping[str, Any]) -> None:
        """``given``: ``negative_slope`` and ``approximate``, where they are not torch's defaults."""
        slope: Any = given.get("negative_slope", 0.01)
        approximate: Any = given.get("approximate", "none")
        number = isinstance(slope, (int, float)) and not isinstance(slope, bool) and math.isfinite(slope)
        if approximate not in ("none", "tanh") or not number:
            wrong = f"approximate={approximate!r}" if number else f"negative_slope={slope!r}"
            self._refuse(node, f"{self._name(node)} with {wrong}")
        if name == "gelu" and approximate == "tanh":
            name = "gelu_tanh"
        parameter = float(slope) if name == "leaky_relu" else 0.0
        if self.dtype is not torch.float64:
            # torch multiplies by the slope as a float32, in half precision too
            parameter = float(np.float32(parameter))
        self.layers.append(Activation(cast("Any", name), parameter))

    def _inplace(self, node: fx.Node) -> bool:
        """The node's operation writes its result over its first argument."""
        if node.op == "call_module":
            return bool(getattr(self.root.get_submodule(str(node.target)), "inplace", False))
        _, parameters = _FUNCTIONS.get(node.target, ("", ()))
        if "inplace" in parameters:
            return bool(_argument(node, 1 + parameters.index("inplace"), "inplace", False))
        name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
        return node.target is operator.iadd or name.endswith("_")

    def _functional_linear(self, node: fx.Node) -> None:
        tensors: list[Any] = []
        for i, argument in ((1, "weight"), (2, "bias")):
            given = _argument(node, i, argument, None)
            if given is None and argument == "bias":
                tensors.append(None)
            elif isinstance(given, fx.Node) and given.op == "get_attr":
                tensors.append(operator.attrgetter(str(given.target))(self.root))
            else:
                self._refuse(node, f"{self._name(node)} with a computed {argument}")
        self._affine(node, tensors[0], tensors[1], f"{_enclosing(_stack(node))}: {node.name}")

    def _affine(self, node: fx.Node, weight: torch.Tensor, bias: torch.Tensor | None, path: str) -> None:
        matrix = as_matrix(weight, f"{path}.weight")
        if not weight.is_floating_point():
            self._refuse(node, f"{self._name(node)} with weights of dtype {weight.dtype}")
        if self.shape is not None and math.prod(self.shape[:-1]) != 1:
            self._refuse(
                node,
                f"{self._name(node)}, which acts on the last axis of an input of shape {self.shape}",
                fix="flatten before it, or correct input_shape",
            )
        if self.width is not None and self.width != matrix.shape[1]:
            raise InputError(
                "input_shape" if self.declared else "model",
                got=f"{self.width} numbers per sample where {path} takes {matrix.shape[1]}",
                needed="widths that chain",
                fix="pass the shape of one input, without the batch axis",
            )
        self.layers.append(Affine(matrix, None if bias is None else as_float64(bias, f"{path}.bias")))
        self.width, self.shape, self.declared = matrix.shape[0], None, False

    def _normalise(self, node: fx.Node, mean: torch.Tensor, std: torch.Tensor, path: str, axis: int) -> None:
        """``axis``: of one input, along which a vector of statistics runs."""
        flat = self.shape is None
        arrays: list[F64] = []
        for value, name in ((mean, "mean"), (std, "std")):
            array = as_float64(value, f"{path}.{name}")
            if array.size == 1:
                arrays.append(array.reshape(1))
                continue
            shape = (self.width or array.size,) if self.shape is None else self.shape
            if array.ndim == 1 and -axis <= len(shape):
                aligned = [1] * len(shape)
                aligned[axis] = array.size
                array = array.reshape(aligned)
            try:
                per_input = np.broadcast_to(array, shape)
            except ValueError:
                per_input = np.empty(0)
            # A vector over channels fits no flat input, and torchvision's transform takes no flat input at all.
            if not per_input.size or (flat and axis == -3):
                raise InputError(
                    "input_shape",
                    got=str(self.shape),
                    needed=f"the shape (channels, height, width) of the input of {self._name(node)}, "
                    f"which has {value.numel()} values of {name} per channel",
                    fix="pass input_shape=(channels, height, width), without the batch axis",
                )
            arrays.append(per_input.reshape(-1).copy())
        if np.any(arrays[1] <= 0):
            raise InputError(
                f"{path}.std", got=f"{arrays[1].min()}", needed="numbers > 0", fix="set constant features' std to 1"
            )
        self.layers.append(Normalise(arrays[0], arrays[1]))

    def _flatten(self) -> None:
        self.layers.append(Flatten())
        self.shape = None

    def _reshape(self, node: fx.Node, sizes: dict[fx.Node, int | None]) -> None:
        """``view`` and ``reshape`` to (batch, all the rest)."""
        given: Sequence[Any] = node.args[1:] or tuple(v for k, v in node.kwargs.items() if k in ("shape", "size"))
        if len(given) == 1 and isinstance(given[0], (tuple, list)):
            given = given[0]
        entries: list[Any] = [v if not isinstance(v, fx.Node) else "batch" if sizes.get(v) == 0 else "?" for v in given]
        fits = len(entries) == 2 and entries[0] in (-1, "batch") and isinstance(entries[1], int)
        if fits and entries[1] != -1:
            # with a width that is not known yet, the layer after it decides
            fits = self.width in (None, entries[1])
            self.width = entries[1]
        if not fits or entries == [-1, -1]:
            self._refuse(
                node,
                f"{self._name(node)} to {tuple(entries)}",
                fix="flatten all axes but the batch with x.flatten(1)",
            )
        self._flatten()

    # -- bookkeeping ------------------------------------------------------------------------------------------------

    def _look_ahead(self, graph: fx.Graph) -> None:
        """Dtype, device and number of inputs of the first weight: normalisation comes before it."""
        for node in graph.nodes:
            weight: Any = None
            if node.op == "call_module" and _exact_class(self.root.get_submodule(str(node.target))) in _LINEAR:
                weight = _effective(self.root.get_submodule(str(node.target)), "weight", _path(str(node.target)))
            elif node.target is functional.linear:
                source = _argument(node, 1, "weight", None)
                if isinstance(source, fx.Node) and source.op == "get_attr":
                    weight = operator.attrgetter(str(source.target))(self.root)
            if isinstance(weight, torch.Tensor) and weight.dim() == 2:
                self.dtype, self.device = weight.dtype, weight.device
                if self.width is None:
                    self.width = int(weight.shape[1])
                return

    def _is_size(self, node: fx.Node, sizes: dict[fx.Node, int | None]) -> bool:
        """Note ``x.size()``, ``x.shape``, ``x.size(0)``, ``x.shape[0]`` of a value: all have the same batch axis."""
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node):
            return False
        if source in self.values and node.op == "call_method" and node.target == "size":
            sizes[node] = _argument(node, 1, "dim", None)
        elif source in self.values and node.target is getattr and node.args[1] == "shape":
            sizes[node] = None
        elif source in sizes and sizes[source] is None and node.target is operator.getitem:
            axis: Any = node.args[1]
            sizes[node] = axis if isinstance(axis, int) else -1
        else:
            return False
        return True

    def _name(self, node: fx.Node) -> str:
        """``blocks.1.conv (Conv2d)``, or the operation, its node and the module it is in."""
        if node.op == "call_module":
            m = self.root.get_submodule(str(node.target))
            return f"{_path(str(node.target))} ({_exact_class(m).__name__})"
        if node.op == "call_method":
            what = f"the method {node.target}"
        else:
            module = getattr(node.target, "__module__", None) or ""
            name = getattr(node.target, "__name__", str(node.target))
            what = f"the function {module.lstrip('_')}.{name}".replace(" .", " ")
        return f"{what} (node {node.name!r} in {_enclosing(_stack(node))})"

    def _refuse(self, node: fx.Node, got: str, *, fix: str = _REWRITE) -> NoReturn:
        raise UnsupportedLayerError("model", got=got, needed=f"a chain of {_SUPPORTED}", fix=fix)


def _common_shape(a: _Value, b: _Value) -> tuple[int, ...] | None:
    """Shape of the sum of two values of one width; () if torch would broadcast."""
    if a.shape == b.shape:
        return a.shape
    shapes = [value.shape for value in (a, b) if value.shape is not None]
    if len(shapes) == 2:
        return ()
    # the other comes from nn.Linear, which keeps the number of axes
    return shapes[0] if math.prod(shapes[0][:-1]) == 1 else ()


def _is_affine(layers: Sequence[Layer]) -> bool:
    return all(
        isinstance(x, Affine) or (isinstance(x, Residual) and _is_affine(x.body) and _is_affine(x.shortcut))
        for x in layers
    )


def _argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _path(target: str) -> str:
    """Path in the user's model, without the wrapper's part."""
    return target.removeprefix(_WRAPPED).removeprefix(".") or "the model itself"


def _stack(node: fx.Node) -> Any:
    return node.meta.get("nn_module_stack", {}).values()


def _enclosing(stack: Any) -> str:
    """The innermost module of an fx module stack, pairs (path, class)."""
    path, cls = list(stack)[-1] if stack else (_WRAPPED, None)
    name = getattr(cls, "__name__", cls)
    return f"{_path(path)} ({name})" if name else _path(path)


def _exact_class(m: nn.Module) -> type[nn.Module]:
    """The class; for a parametrized layer the one that torch derived its own from."""
    return type(m).__bases__[0] if parametrize.is_parametrized(m) else type(m)


def _is_torchvision_normalize(m: nn.Module) -> bool:
    """By name, so that torchvision need not be installed; subclasses too, for them to be refused by name."""
    return any(c.__name__ == "Normalize" and c.__module__.startswith("torchvision.") for c in type(m).__mro__)


def _parse_shape(shape: object) -> tuple[int, ...] | None:
    if shape is None:
        return None
    entries = tuple(shape) if isinstance(shape, (tuple, list, torch.Size)) else ()
    if not entries or not all(isinstance(s, (int, np.integer)) and not isinstance(s, bool) and s > 0 for s in entries):
        raise InputError(
            "input_shape",
            got=repr(shape),
            needed="a tuple of positive integers",
            fix="pass the shape of one input without the batch axis, (784,) or (1, 28, 28)",
        )
    return tuple(int(s) for s in entries)


# -- hooks and parametrizations: what forward really uses -------------------------------------------------------------


def _computed_name(hook: object) -> str | None:
    """The tensor that one of torch's own pre-hooks recomputes before each forward; None: not one of them."""
    if isinstance(hook, (WeightNorm, SpectralNorm)):
        return hook.name
    if isinstance(hook, prune.BasePruningMethod):
        return hook._tensor_name
    return None


def _refuse_opaque(module: nn.Module) -> None:
    """A hook is code in forward that the trace of a layer does not show: only torch's own, known ones are read.

    Refused even if it only observes: whether it alters the output for some input cannot be seen from outside.
    """
    for path, m in module.named_modules():
        if isinstance(m, torch.jit.ScriptModule):
            raise UnsupportedLayerError(
                "model",
                got=f"{path or 'the model itself'} (a TorchScript {type(m).__name__})",
                needed="an nn.Module whose forward is Python",
                fix="pass the model that was scripted",
            )
        hooks = [*m._forward_hooks.values(), *m._forward_pre_hooks.values()]
        for hook in hooks:
            if _computed_name(hook) is None:
                raise UnsupportedLayerError(
                    "model",
                    got=f"{path or 'the model itself'} ({type(m).__name__}) with the forward hook "
                    f"{getattr(hook, '__name__', type(hook).__name__)!r}, which may change what the layer computes",
                    needed="layers without hooks of your own",
                    fix="call .remove() on the handle that register_forward_hook returned",
                )


def _effective(m: nn.Module, name: str, path: str) -> Any:
    """``m.weight`` or ``m.bias`` as the next forward would use it.

    Old-style weight_norm, spectral_norm and pruning leave in ``m.weight`` what the LAST forward used; after an
    optimiser step that is stale.
    """
    hooks = [h for h in m._forward_pre_hooks.values() if _computed_name(h) == name]
    parametrized = parametrize.is_parametrized(m, name)
    table: Any = getattr(m, "parametrizations", {})  # made by torch, where it annotates no such attribute
    moving = m.training if hooks else parametrized and any(p.training for p in table[name].modules())
    if moving and (parametrized or isinstance(hooks[0], SpectralNorm)):
        # spectral_norm takes a power step whenever a training-mode weight is read: it would change the module
        raise UnsupportedLayerError(
            "model",
            got=f"{path} ({_exact_class(m).__name__}) with a parametrized {name} in training mode",
            needed="a weight that reading does not change",
            fix="call model.eval()",
        )
    if len(hooks) > 1:
        raise UnsupportedLayerError(
            "model",
            got=f"{path} ({type(m).__name__}) with {len(hooks)} hooks that compute its {name}",
            needed="at most one",
            fix="make them permanent with prune.remove or remove_weight_norm",
        )
    if not hooks:
        return getattr(m, name)
    hook: Any = hooks[0]
    if isinstance(hook, prune.BasePruningMethod):
        return hook.apply_mask(m)
    return hook.compute_weight(m, False) if isinstance(hook, SpectralNorm) else hook.compute_weight(m)


@contextmanager
def _unchanged(module: nn.Module) -> Iterator[None]:
    """Put back every attribute that a forward, traced or run, sets on the module or inside it."""
    parts = ("_parameters", "_buffers", "_modules")
    modules = list(module.modules())
    saved = [(dict(vars(m)), {p: dict(vars(m)[p]) for p in parts}) for m in modules]
    try:
        yield
    finally:
        for m, (attributes, tables) in zip(modules, saved, strict=True):
            for part, table in tables.items():
                _restore(attributes[part], table)
            _restore(vars(m), attributes)


def _restore(now: dict[str, Any], before: dict[str, Any]) -> None:
    for key in now.keys() - before.keys():
        del now[key]
    for key, value in before.items():
        if key not in now or now[key] is not value:
            now[key] = value


# -- the round trip ---------------------------------------------------------------------------------------------------

_EXPONENTS = (16, 8, 0, -8, -24, -60, -110)  # of two: large inputs show clamps, small ones fit beside huge weights


def _check_round_trip(module: nn.Module, network: Network, importer: _Importer) -> None:
    """Compare ``module(x)``, in its own dtype and on its own device, with the network in float64.

    The allowance is a running error analysis: each layer adds ``4 eps √(n+1) (|W||h| + |b|)`` and passes on
    ``|W| err``. The √ is the statistical growth of rounding errors (Higham & Mary 2019) with a factor of 8 to spare;
    the worst case, n, would allow anything in half precision. An activation passes on its largest slope times the error
    and adds ``8 eps`` of its value, or of its input where its formula cancels; the errors of the two sides of a
    residual sum add up.
    """
    dtype = importer.dtype or torch.get_default_dtype()
    device = importer.device or torch.device("cpu")
    # a generator of its own: the user's random numbers are not ours to use up
    rng = np.random.default_rng(0)
    n = network.n_inputs
    rows = [np.zeros((1, n)), rng.random((4, n))]
    rows += [rng.standard_normal((4, n)) * 2.0**e for e in _EXPONENTS]
    x = torch.from_numpy(np.concatenate(rows)).to(dtype)
    exact = x.to(torch.float64).numpy()
    with np.errstate(over="ignore", invalid="ignore"):
        allowed, largest = _allowance(network, exact, dtype, device)
    keep = np.isfinite(exact).all(axis=1) & (largest < torch.finfo(dtype).max / 4)
    if not np.any(keep[1:]):
        raise InputError(
            "model",
            got=f"weights so large that {dtype} overflows on every input tried",
            needed="a model that can be run and compared with what was imported",
            fix="convert it with model.double()",
        )
    x, exact, allowed = x[torch.from_numpy(keep)], exact[keep], allowed[keep]  # copies: forward may write to x
    shape = network.input_shape or ((1, 1, n) if importer.image else (n,))
    try:
        out = module(x.reshape(len(exact), *shape).to(device))
    except Exception as error:  # the user's forward: whatever it raises, the import has not been checked
        raise InputError(
            "model",
            got=f"{type(error).__name__} from its forward on a batch of inputs of shape {shape} ({error})",
            needed="a forward that runs",
            fix="pass input_shape, the shape of one input without the batch axis",
        ) from error
    if not isinstance(out, torch.Tensor) or out.is_complex() or out.numel() != len(exact) * network.n_outputs:
        got = f"{tuple(out.shape)}" if isinstance(out, torch.Tensor) else f"a {type(out).__name__}"
        _mismatch(f"an output of {got} where the imported network gives {(len(exact), network.n_outputs)}")
    ours = network.forward(exact)
    theirs = out.detach().to("cpu", torch.float64).numpy().reshape(ours.shape)
    # not "difference > allowed": NaN must fail
    wrong = ~(np.abs(theirs - ours) <= allowed)
    if np.any(wrong):
        i, j = (int(v) for v in np.argwhere(wrong)[0])
        _mismatch(
            f"an output of {theirs[i, j]:.9g} where the imported network gives {ours[i, j]:.9g} "
            f"(rounding explains {allowed[i, j]:.2g})"
        )


def _mismatch(got: str) -> NoReturn:
    raise InputError(
        "model",
        got=got,
        needed="a module that computes what its traced layers say",
        fix="look for global hooks, autocast, or forward code that depends on the input's size or values",
    )


def _allowance(network: Network, x: F64, dtype: torch.dtype, device: torch.device) -> tuple[F64, F64]:
    """Per output the rounding error to expect, and per sample the largest number on the way."""
    info = torch.finfo(dtype)
    eps = info.eps
    if device.type == "cuda" and dtype is torch.float32 and torch.backends.cuda.matmul.allow_tf32:
        eps = 2.0**-10
    h, shape, n = x, network.input_shape, network.n_inputs
    error = np.zeros_like(h)
    largest = np.max(np.abs(h), axis=1)
    for layer in network.layers:
        if isinstance(layer, Flatten):
            shape = None
            continue
        if isinstance(layer, Normalise):
            mean, std = layer.per_input(shape, n)
            size = (np.abs(h) + np.abs(mean)) / std
            error = error / std + 4 * eps * size + info.smallest_normal * (1 + 1 / std)
            h = (h - mean) / std
        else:
            h, error, size = _step(layer, h, error, eps, info.smallest_normal)
            n = h.shape[1]
            if any(affine_layers((layer,))):
                shape = None
        largest = np.fmax(largest, np.max(np.where(np.isnan(size), math.inf, size), axis=1))
    return error, largest


def _step(layer: Layer, h: F64, error: F64, eps: float, tiny: float) -> tuple[F64, F64, F64]:
    """Value and error after the layer, and sizes of the numbers on the way. ``tiny``: less may be flushed to zero."""
    if isinstance(layer, Affine):
        weight = np.abs(layer.weight)
        bias = np.zeros(len(weight)) if layer.bias is None else layer.bias
        size = np.abs(h) @ weight.T + np.abs(bias)
        width = weight.shape[1]
        error = error @ weight.T + 4 * eps * math.sqrt(width + 1) * size + width * tiny
        return h @ layer.weight.T + bias, error, size
    if isinstance(layer, Activation):
        slope = max(float(np.max(np.abs(end))) for end in layer.slopes())
        value, size = layer.forward(h), np.abs(h)
        # 1 + erf(x) and 1 + tanh(x) cancel for x < 0: the error is relative to the input
        scale = size if layer.name in ("gelu", "gelu_tanh") else np.abs(value)
        error = slope * error + 8 * eps * scale + (1 + size) * tiny
        return value, error, np.maximum(size, np.abs(value))
    if isinstance(layer, Residual):
        branches: list[tuple[F64, F64]] = []
        sizes = [np.abs(h)]
        for part in (layer.shortcut, layer.body):
            value, spread = h, error
            for inner in part:
                value, spread, size = _step(inner, value, spread, eps, tiny)
                sizes.append(size)
            branches.append((value, spread))
        total, spread = (one + other for one, other in zip(*branches, strict=True))
        sizes.append(np.abs(total))
        return total, spread + 4 * eps * (np.abs(total) + spread) + tiny, np.concatenate(sizes, axis=1)
    return np.maximum(h, 0.0), error, np.abs(h)
