"""``--model``: a Python file and the function in it that makes the module, which ``--weights`` fills; or an ONNX file.

A Python file is code and it is run: it is the user's, as any script. ONNX files and weights are data and never run.
"""

from __future__ import annotations

import importlib
import logging
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any

from certbound.arrays import is_torch
from certbound.errors import CertboundError, InputError, MissingDependencyError, UnsupportedLayerError
from certbound.graph import Graph, Node
from certbound.io.files import existing_file, listed
from certbound.io.graph_to_network import dense_network, rounded_parts
from certbound.io.onnx_file import load_onnx
from certbound.io.weights_file import load_into, load_weights, to_network
from certbound.network import Network
from certbound.ops import Add, Input, Linear, Pointwise, Reshape, Shift

logger = logging.getLogger(__name__)

_numbers = count()
_USAGE = "'file.py:factory', a Python file and the function in it that returns the model, or a file net.onnx"


def load_factory(spec: str, argument: str = "model") -> Callable[[], Any]:
    """The function ``factory`` of ``file.py``, given as ``file.py:factory``.

    The file runs as a module with a name of its own: nothing of that name is replaced, no bytecode is written. Beside
    it, its folder is searched for imports while the file and the factory run; what they import from there is
    forgotten again, so that another model's ``layers.py`` is not mistaken for this one's.

    Raises
    ------
    InputError : no such file or function, an error in the file. MissingDependencyError : it needs torch.
    """
    path, _, name = spec.rpartition(":")
    if not path or not name.isidentifier():
        suffix = Path(spec).suffix.lower()
        if suffix == ".pt2":
            raise _no_pt2(spec, argument)
        if suffix == ".onnx":
            raise InputError(
                argument, got=f"the ONNX file {Path(spec).name} for a module", needed="a factory that makes a module",
                fix="use certbound.load_onnx, or certbound.load_model, which reads both",
            )  # fmt: skip
        raise InputError(argument, got=repr(spec), needed=_USAGE, fix="write for instance net.py:make")
    file = existing_file(path, argument)
    if file.suffix.lower() != ".py":
        raise InputError(argument, got=f"the file {file.name}", needed=_USAGE, fix="write for instance net.py:make")
    module = ModuleType(f"_certbound_model_{sha256(str(file.resolve()).encode()).hexdigest()[:8]}_{next(_numbers)}")
    module.__file__ = str(file.resolve())
    with _importable(file.resolve().parent, module), _errors_named(file, "the file", argument):
        exec(compile(file.read_bytes(), str(file.resolve()), "exec"), vars(module))
    factory = vars(module).get(name)
    if not callable(factory):
        public = [n for n, v in vars(module).items() if callable(v) and getattr(v, "__module__", "") == module.__name__]
        raise InputError(
            argument,
            got=f"{spec!r}: {file.name} has no function {name!r}",
            needed=f"one of {listed(public)}" if public else "a function in the file",
            fix="check the name after the colon",
        )

    def call() -> Any:
        with _importable(file.resolve().parent, module), _errors_named(file, f"{name}()", argument):
            return factory()

    return call


@contextmanager
def _importable(folder: Path, module: ModuleType) -> Iterator[None]:
    """``module`` is registered and its folder searched; afterwards sys.path and sys.modules are as they were."""
    before, path, bytecode = set(sys.modules), list(sys.path), sys.dont_write_bytecode
    sys.modules[module.__name__] = module
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = path
        sys.dont_write_bytecode = bytecode
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None)
            # packages installed elsewhere stay: importing torch twice would break it
            if name == module.__name__ or (file is not None and _beside(Path(file), folder)):
                del sys.modules[name]


def _beside(file: Path, folder: Path) -> bool:
    inside = file.resolve().is_relative_to(folder)
    return inside and "site-packages" not in file.resolve().relative_to(folder).parts


@contextmanager
def _errors_named(file: Path, what: str, argument: str) -> Iterator[None]:
    """Whatever the user's code raises becomes an InputError that names file and line."""
    try:
        yield
    except CertboundError:
        raise
    except ModuleNotFoundError as error:
        if error.name == "torch":
            raise MissingDependencyError(
                "torch", purpose=f"the model in {file.name}", command="pip install 'certbound[torch]'"
            ) from error
        raise _raised(file, what, argument, error, f"install {error.name or 'what is missing'}") from error
    except (Exception, SystemExit) as error:  # the user's code: anything
        raise _raised(file, what, argument, error, "run the file by itself") from error


def _raised(file: Path, what: str, argument: str, error: BaseException, fix: str) -> InputError:
    line, trace = getattr(error, "lineno", None), error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(file.resolve()):
            line = trace.tb_lineno
        trace = trace.tb_next
    where = f"{file.name}, line {line}" if line else file.name
    return InputError(
        argument, got=f"{type(error).__name__} from {what} ({where}): {error}", needed="a factory that runs", fix=fix
    )


def _no_pt2(path: str, argument: str) -> InputError:
    return InputError(
        argument,
        got=f"the exported program {Path(path).name}",
        needed="a file that can be read without running it: torch.export.load unpickles (it says so, and loads "
        "constants with weights_only=False)",
        fix="save its weights with safetensors, and pass --model file.py:factory with --weights",
    )


def make_module(spec: str, argument: str = "model") -> Any:
    """What the factory returns: an ``nn.Module`` in eval mode, a Network, or a list of weight matrices."""
    model = load_factory(spec, argument)()
    if is_torch(model, "Module"):
        return model.eval()
    if isinstance(model, (Network, list, tuple)):
        return model
    raise InputError(
        argument,
        got=f"{spec}, which returned a {type(model).__name__}",
        needed="an nn.Module, a certbound Network, or a list of weight matrices",
        fix="return the model",
    )


def is_onnx(model: str) -> bool:
    """True for the name of an ONNX file.

    >>> is_onnx("net.onnx"), is_onnx("net.py:make")
    (True, False)
    """
    return Path(model).suffix.lower() == ".onnx"


def _of_onnx(model: str, input_shape: Sequence[int] | None) -> Network | Graph:
    """A Network where the file is a chain of dense layers on vectors, which no number of it is rounded for."""
    graph = load_onnx(model, input_shape=input_shape)
    dense = all(isinstance(n.op, (Input, Linear, Pointwise, Reshape, Shift, Add)) for n in graph.nodes)
    vectors = all(math.prod(s[:-1]) == 1 for n, s in zip(graph.nodes, graph.shapes, strict=True) if _is_linear(n))
    if not (dense and vectors) or rounded_parts(graph):
        return graph
    numbers = sum(n.op.weight.size for n in graph.nodes if isinstance(n.op, Linear))
    try:
        return dense_network(graph, limit=max(4_000_000, 2 * numbers))
    except UnsupportedLayerError as error:
        logger.info("%s stays a graph: %s", Path(model).name, error)
        return graph


def _is_linear(node: Node) -> bool:
    return isinstance(node.op, Linear)


def load_model(
    model: str | None,
    weights: str | os.PathLike[str] | None = None,
    *,
    layers: Sequence[str] | None = None,
    input_shape: Sequence[int] | None = None,
) -> Any:
    """A model as the command line takes it: what ``compare`` and ``as_network`` accept.

    Parameters
    ----------
    model : ``file.py:factory`` or ``net.onnx``; None if the weights are a plain chain. weights : ``.safetensors``, a
        torch state dict, or ``.npy`` / ``.npz`` matrices (those without a factory). layers : keys of a ``.npz``, in
        order. input_shape : of one sample, for an ONNX file that leaves axes open; else not looked at.

    An ONNX file is a Network where it is a chain of dense layers, else a Graph.

    Raises
    ------
    InputError : neither of the two, an exported ``.pt2`` program (which torch unpickles), weights that do not fit.
    """
    suffix = "" if weights is None else Path(weights).suffix.lower()
    if suffix == ".onnx":
        raise InputError(
            "weights", got=f"the ONNX file {Path(str(weights)).name}", needed="a file of weights",
            fix="an ONNX file is a whole model: pass it as model, on the command line --model",
        )  # fmt: skip
    if model is not None and is_onnx(model):
        if weights is not None:
            raise InputError(
                "weights", got="weights for an ONNX file, which has its own", needed="one source of weights",
                fix="leave --weights out",
            )  # fmt: skip
        if layers is not None:
            raise InputError("layers", got=f"{list(layers)}", needed="weights in a .npz", fix="leave it out")
        return _of_onnx(model, input_shape)
    if layers is not None and suffix != ".npz":
        raise InputError("layers", got=f"{list(layers)}", needed="weights in a .npz", fix="leave it out")
    if suffix == ".pt2" and weights is not None:
        raise _no_pt2(str(weights), "weights")
    if model is None:
        if weights is None:
            raise InputError("model", got="neither a model nor weights", needed=_USAGE, fix="pass --model or --weights")
        if suffix in (".npy", ".npz"):
            from certbound.io import npy

            return npy.load_network(weights, layers=layers)
        return to_network(load_weights(weights))
    made = make_module(model)
    if weights is None:
        return made
    if not is_torch(made, "Module"):
        raise InputError(
            "weights", got=f"weights for a {type(made).__name__}, which has its own", needed="an nn.Module to fill",
            fix="leave --weights out, or return an nn.Module from the factory",
        )  # fmt: skip
    if suffix in (".npy", ".npz"):
        raise InputError(
            "weights", got=f"{Path(weights).name} for a module", needed="named weights: safetensors or a state dict",
            fix="leave --model out to read the matrices as a ReLU network",
        )  # fmt: skip
    return load_into(made, load_weights(weights))


__all__ = ["is_onnx", "load_factory", "load_model", "make_module"]
