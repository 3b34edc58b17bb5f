"""An imported graph against the exported program, and that against the module, on random inputs."""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, cast

import numpy as np
import torch
from torch import fx, nn
from torch.fx.node import map_aggregate as _map_aggregate

from certbound.arrays import F64
from certbound.errors import InputError
from certbound.graph import Graph
from certbound.io.exported_program import ASSERTIONS, Const, Translation, Value


class _Replay(fx.Interpreter):
    """The exported program, run by torch on the tensors ``state``.

    ``double``: every float dtype that the program names is read as float64, as ``state`` is, and what does not depend
    on the input is taken as it was computed in the module's own dtype; ``traces``: of the graph's values at the first
    sample that is evaluated, each compared with torch's.
    """

    def __init__(
        self,
        translation: Translation,
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
        if self.double and isinstance(known, Const) and n.op == "call_function":
            return _as_double(known.value)
        result = super().run_node(n)
        if isinstance(known, Value):
            self._compare(n, known, result)
        return result

    def _compare(self, node: fx.Node, value: Value, theirs: torch.Tensor) -> None:
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
        if kind in ASSERTIONS:
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


def _state(t: Translation, twin: nn.Module | None) -> list[Any]:
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


def check_round_trip(module: nn.Module, t: Translation, graph: Graph, device: torch.device) -> None:
    """Compare graph, exported program and module on three inputs: zeros, small and large, of both signs."""
    rng = np.random.default_rng(0)  # the user's random numbers are not ours to use up
    shape = graph.input_shape
    rows = np.stack([rng.random(shape), np.zeros(shape), 3.0 * rng.standard_normal(shape)])
    x = torch.from_numpy(rows).to(t.dtype)
    exact = x.to(torch.float64)
    ours, sizes, traces = _evaluate(graph, exact.numpy())
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


def _check_own_dtype(module: nn.Module, t: Translation, x: torch.Tensor, exact: F64, sizes: _Sizes) -> None:
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


__all__ = ["check_round_trip"]
