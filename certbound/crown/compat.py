"""Import auto_LiRPA beside a current torch and numpy, without its import-time side effects.

auto_LiRPA 0.3 is the last release on PyPI and pins torch < 1.13. Beside a current torch and numpy three names
that it uses are gone; each is supplied only if it is missing, so that a newer auto_LiRPA of the user's, or an
older torch, runs untouched:

* ``numpy.lib.arraysetops`` (imported for ``isin``, gone in numpy 2) — there during the import only;
* ``torch.onnx.symbolic_helper._set_opset_version`` (imported by name) — there during the import only;
* ``torch._C.Node.__getitem__`` (attributes of graph nodes, called whenever a model is converted) — stays, since
  it is needed as long as auto_LiRPA is: one more method on a class of torch's that had none of that name.

Its import also sets the warnings filter, gives the root logger a handler on stdout, lets torch warn about a
deprecation and a missing compiler, and makes its own empty directory among the user's data. All but the last is
undone here. torchvision, which it names as a requirement, is never imported.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import sys
import threading
import types
import warnings
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import numpy as np

from certbound.errors import MissingDependencyError
from certbound.io.to_torch import import_torch

INSTALL = "pip install --no-deps auto-lirpa==0.3 && pip install 'certbound[crown]'"
"""The command for who lacks it: without --no-deps pip would replace torch by one older than 1.13."""

_LOCK = threading.RLock()


def _opset_globals() -> Any:
    """The object in which torch's ONNX exporter keeps the opset version; None if this torch has none."""
    for name in ("torch.onnx._internal.torchscript_exporter._globals", "torch.onnx._globals"):
        with contextlib.suppress(ImportError):
            return importlib.import_module(name).GLOBALS
    return None


def _set_opset_version(version: int) -> None:
    """What ``torch.onnx.symbolic_helper._set_opset_version`` did before torch dropped it."""
    settings = _opset_globals()
    if settings is not None:
        settings.export_onnx_opset_version = version


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Warning filters, the root logger's handlers and the logging threshold are what they were afterwards."""
    root = logging.getLogger()
    handlers, level, disabled = list(root.handlers), root.level, root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(record=True):  # filters alone would not do: auto_LiRPA sets its own
            yield
    finally:
        logging.disable(disabled)
        root.handlers[:] = handlers
        root.setLevel(level)


@contextlib.contextmanager
def _stand_ins(helper: Any) -> Iterator[None]:
    """The two names that auto_LiRPA 0.3 imports and that may be gone, for the time of the import."""
    arraysetops = "numpy.lib.arraysetops"
    lacks_module = False
    try:
        importlib.import_module(arraysetops)
    except ImportError:
        lacks_module = True
        module = types.ModuleType(arraysetops)
        module.isin = np.isin  # type: ignore[attr-defined]  # a module made on the spot
        sys.modules[arraysetops] = module
    lacks_setter = not hasattr(helper, "_set_opset_version")
    if lacks_setter:
        helper._set_opset_version = _set_opset_version
    try:
        yield
    finally:
        # auto_LiRPA holds references by now; others who probe for these names must not find ours
        if lacks_module:
            sys.modules.pop(arraysetops, None)
        if lacks_setter:
            del helper._set_opset_version


def load_auto_lirpa() -> Any:
    """The ``auto_LiRPA`` package, importable and able to convert a model; safe to call again and from threads.

    Raises
    ------
    MissingDependencyError : auto_LiRPA, or a package that it imports, is not installed.

    >>> load_auto_lirpa() is load_auto_lirpa()
    True
    """
    torch = import_torch("margins")
    with _LOCK:
        depth = sys.getrecursionlimit()
        try:
            with _quiet():
                helper = importlib.import_module("torch.onnx.symbolic_helper")
                if "auto_LiRPA" in sys.modules and sys.modules["auto_LiRPA"] is not None:
                    package = sys.modules["auto_LiRPA"]
                else:
                    with _stand_ins(helper):
                        package = importlib.import_module("auto_LiRPA")
        except ImportError as error:
            name = (error.name or "auto_LiRPA").partition(".")[0]
            raise MissingDependencyError(name, purpose="margins (auto_LiRPA)", command=INSTALL) from error
        finally:
            # it asks for a million: a parser of hostile files would then overflow the stack and not raise
            sys.setrecursionlimit(depth)
        node = torch._C.Node
        if not hasattr(node, "__getitem__") and hasattr(helper, "_node_get"):
            node.__getitem__ = lambda self, key: helper._node_get(self, key)
    return package


def package_version(package: Any) -> str:
    """``"auto_LiRPA 0.3"``."""
    version = getattr(package, "__version__", None)
    if version is None:
        with contextlib.suppress(metadata.PackageNotFoundError):
            version = metadata.version("auto-lirpa")
    return f"auto_LiRPA {version or 'of unknown version'}"


def bounded_module(module: Any, example: Any, options: dict[str, Any] | None = None) -> Any:
    """A fresh ``BoundedModule`` of ``module`` for inputs like ``example``, with auto_LiRPA's bound options.

    Converting sets the opset version of torch's ONNX exporter (a global that the user's own exports read); it is
    put back.
    """
    package = load_auto_lirpa()
    with _LOCK:
        settings = _opset_globals()
        before = None if settings is None else settings.export_onnx_opset_version
        try:
            return package.BoundedModule(module, example, bound_opts=options)
        finally:
            if settings is not None:
                settings.export_onnx_opset_version = before


def exact_l2_convolutions(bounded: Any) -> None:
    """Interval bounds of ``bounded``'s convolutions on an ℓ2 ball by the norm of the rows that they really have.

    auto_LiRPA takes the norm of the whole kernel at every place, also where some of it lies on the padding. The
    functions are attributes of this module's own nodes.
    """
    for node in bounded.modules():
        if type(node).__name__ == "BoundConv":
            node.interval_propagate = _exact_l2(node, node.interval_propagate)


def _exact_l2(node: Any, original: Any) -> Any:
    functional = importlib.import_module("torch.nn.functional")

    def propagate(*values: Any, **options: Any) -> Any:
        ball = getattr(values[0], "ptb", None)
        if ball is None or ball.norm != 2:
            return original(*values, **options)
        centre, weight = values[0][0], values[1][0]
        how = (node.stride, node.padding, node.dilation, node.groups)
        middle = functional.conv2d(centre, weight, values[2][0] if node.has_bias else None, *how)
        room = functional.conv2d(centre.new_ones(centre[:1].shape), weight * weight, None, *how).sqrt() * ball.eps
        return middle - room, middle + room

    return propagate


class SlopeWatch:
    """What α-CROWN's optimisation was seen to do: whether there was anything to optimise, and whether it could.

    ``wanted``: the bounds depended on some slope α, ``reached``: a gradient arrived at one.
    """

    def __init__(self) -> None:
        self.wanted = False
        self.reached = False


def clamp_stops_gradients() -> bool:
    """Whether the gradient of ``torch.clamp`` at its limits is 0: so from torch 2.14 on, it was 1 before.

    >>> isinstance(clamp_stops_gradients(), bool)
    True
    """
    torch = import_torch("margins")
    with torch.inference_mode(False), torch.enable_grad():
        limits = torch.tensor([0.0, 1.0], dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(torch.clamp(limits, min=0.0, max=1.0).sum(), [limits])
    return bool((gradient == 0).any())


def watch_slopes(bounded: Any) -> SlopeWatch:
    """Watch the slopes α of ``bounded``'s ReLUs, and give their clamp to [0, 1] the gradient 1 at 0 and 1.

    auto_LiRPA's slopes start at 0 and at 1. Where the gradient of clamp is 0 there they stay, and α-CROWN returns
    CROWN's bounds without a word. What is added to the clamped slope is ``α − α``, which is exactly 0 and brings the
    gradient; where clamp's own gradient is 1 nothing is added. The functions are attributes of this module's own
    nodes: nothing of torch's or auto_LiRPA's is changed.
    """
    watch, stops = SlopeWatch(), clamp_stops_gradients()
    for node in bounded.modules():
        if type(node).__name__ == "BoundRelu" and hasattr(node, "_relu_mask_alpha"):
            node._relu_mask_alpha = _watched(node._relu_mask_alpha, watch, stops)
    return watch


def _watched(original: Any, watch: SlopeWatch, stops: bool) -> Any:
    def reached(gradient: Any) -> None:
        watch.reached = watch.reached or bool((gradient != 0).any())

    def wanted(gradient: Any) -> None:
        watch.wanted = watch.wanted or bool((gradient != 0).any())

    def open_at_limits(alpha: Any, clamped: Any, unstable: Any) -> Any:
        if alpha is None or not alpha.requires_grad:
            return clamped
        alpha.register_hook(reached)
        if stops:
            at_limit = ((alpha <= 0) | (alpha >= 1)).to(clamped.dtype) * unstable
            clamped = clamped + at_limit * (alpha - alpha.detach())
        if clamped.requires_grad:
            clamped.register_hook(lambda gradient: wanted(gradient * unstable))  # a stable ReLU's slope is fixed
        return clamped

    def mask_alpha(lower: Any, upper: Any, below: Any, above: Any) -> Any:
        low, high, *rest = original(lower, upper, below, above)
        unstable = ((lower < 0) & (upper > 0)).to(lower.dtype)
        return (open_at_limits(below, low, unstable), open_at_limits(above, high, unstable), *rest)

    return mask_alpha
