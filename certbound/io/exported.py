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

import inspect
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr
from functools import partial
from typing import Any

from certbound.errors import InputError, MissingDependencyError, UnsupportedLayerError
from certbound.graph import Graph
from certbound.io.graph_builder import GraphBuilder, parse_input_shape
from certbound.ops import (
    Shape,
)

try:
    import torch
    from torch import nn
    from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

    from certbound.io.exported_check import check_round_trip
    from certbound.io.exported_ops import METHODS
    from certbound.io.exported_program import Translation
    from certbound.io.torch_module import _refuse_opaque, _unchanged
except ImportError as error:  # pragma: no cover - nobody holds a module without torch
    raise MissingDependencyError("torch", purpose="reading an nn.Module", command="pip install torch") from error

_PURPOSE = "reading an architecture of convolutions or attention"


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
        translation = Translation(program, GraphBuilder(shape), _float_dtype(module), _parameter_names(module), METHODS)
        graph = translation.run()
        check_round_trip(module, translation, graph, device_of(module))
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
    device = device_of(module).type
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


def device_of(module: nn.Module) -> torch.device:
    return next((t.device for t in _tensors(module)), torch.device("cpu"))


@contextmanager
def _normalised_without_a_branch(module: nn.Module) -> Iterator[None]:
    """torchvision's Normalize asks whether an std is 0, a branch on values, which export refuses: not in here.

    An std of 0 is refused all the same, as a divisor; and the check of the import runs the module as it is.
    """
    own = "torchvision.transforms.transforms"  # its class itself: a subclass may compute anything
    found = [
        m for m in module.modules()
        if (type(m).__module__, type(m).__name__) == (own, "Normalize") and "forward" not in vars(m)
    ]  # fmt: skip
    for m in found:
        m.forward = partial(_normalised, m)
    try:
        yield
    finally:
        for m in found:
            del m.forward


def _normalised(m: Any, x: torch.Tensor) -> torch.Tensor:
    """``(x − mean)/std`` per channel, both rounded to the dtype of x, as torchvision does."""
    mean, std = (torch.as_tensor(v, dtype=x.dtype, device=x.device) for v in (m.mean, m.std))
    mean, std = (v.reshape(-1, 1, 1) if v.ndim == 1 else v for v in (mean, std))
    return x.sub_(mean).div_(std) if m.inplace else (x - mean) / std


def _export(module: nn.Module, shape: Shape) -> Any:
    """The module as a functional program for one sample."""
    export = getattr(getattr(torch, "export", None), "export", None)
    if export is None or "strict" not in inspect.signature(export).parameters:
        raise MissingDependencyError("torch>=2.5", purpose=_PURPOSE, command="pip install -U 'torch>=2.5'")
    sample = torch.zeros((1, *shape), dtype=_float_dtype(module), device=device_of(module))
    try:
        # stderr: where export prints the graph of what it cannot read
        with redirect_stderr(io.StringIO()), _normalised_without_a_branch(module):
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


__all__ = ["from_module"]
