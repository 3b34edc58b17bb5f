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


def bounded_module(module: Any, example: Any) -> Any:
    """A fresh ``BoundedModule`` of ``module`` for inputs like ``example``.

    Converting sets the opset version of torch's ONNX exporter (a global that the user's own exports read); it is
    put back.
    """
    package = load_auto_lirpa()
    with _LOCK:
        settings = _opset_globals()
        before = None if settings is None else settings.export_onnx_opset_version
        try:
            return package.BoundedModule(module, example)
        finally:
            if settings is not None:
                settings.export_onnx_opset_version = before
