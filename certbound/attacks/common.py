"""What the attacks share: a borrowed global state, copies of the model, points that are exactly in the ball."""

from __future__ import annotations

import contextlib
import copy
import math
import random
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from certbound.arrays import F64, as_float64, is_torch
from certbound.errors import InputError
from certbound.graph import Graph
from certbound.io.graph_to_torch import graph_to_torch
from certbound.io.to_torch import to_torch
from certbound.network import Network, as_network
from certbound.robustness import read_network

BOX = (0.0, 1.0)
"""The attack library's own range of inputs."""

_UNIT = 2.0**-53


def seed_generators(torch: Any, device: Any, seed: int) -> None:
    """Seed torch's generator of the CPU, and those of CUDA if ``device`` is one.

    Not ``torch.manual_seed``: it also seeds a CUDA that has not started yet, which could not be taken back.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed_all(seed)


@contextlib.contextmanager
def own_state(torch: Any, device: Any, seed: int) -> Iterator[None]:
    """Run with seeded generators and torch's default settings; put everything global back, also after an error.

    Global are: the random states of torch, numpy and ``random``, ``sys.settrace``, torch's default dtype (the
    library draws its random start in it), inference, gradient and autocast mode.
    """
    on_cuda = device.type == "cuda"
    trace, dtype = sys.gettrace(), torch.get_default_dtype()
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002  # the user's global state
    cpu_state = torch.get_rng_state()
    # asking for the states would start CUDA, which a run on the CPU must not
    cuda_states = torch.cuda.get_rng_state_all() if on_cuda or torch.cuda.is_initialized() else None
    try:
        torch.set_default_dtype(torch.float32)
        seed_generators(torch, device, seed)
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_rng_state(cpu_state)
        if cuda_states is not None:
            torch.cuda.set_rng_state_all(cuda_states)
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)
        if sys.gettrace() is not trace:
            sys.settrace(trace)


def _as_module(network: Network | Graph, dtype: str, device: Any) -> Any:
    if isinstance(network, Graph):
        return graph_to_torch(network, dtype=dtype, device=device)
    return to_torch(network, dtype=dtype, device=device)


def module_copy(torch: Any, model: Any, network: Network | Graph | None, dtype: str, device: Any) -> Any:
    """A copy of the model in eval mode, without parameter gradients, of the given dtype."""
    if network is not None and not is_torch(model, "Module"):
        return _as_module(network, dtype, device)
    try:
        twin = copy.deepcopy(model)
    except (RuntimeError, TypeError) as error:
        if network is not None:  # pruned modules hold tensors that torch will not copy; their IR was checked at import
            return _as_module(network, dtype, device)
        raise InputError(
            "model", got=f"a module that cannot be copied ({error})", needed="a module that copy.deepcopy takes",
            fix="load its weights into a fresh module",
        ) from error
    return twin.to(device=device, dtype=getattr(torch, dtype)).eval().requires_grad_(False)


def logits_of(torch: Any, module: Any, x: F64, dtype: str, device: Any, batch_size: int) -> F64:
    """Outputs as float64, shape (samples, outputs), computed in ``dtype``; what is no such thing is refused."""
    parts: list[F64] = []
    for start in range(0, len(x), batch_size):
        batch = x[start : start + batch_size]
        with torch.no_grad():
            try:
                out = module(torch.tensor(batch, dtype=getattr(torch, dtype), device=device))
            except (RuntimeError, ValueError, TypeError, IndexError) as error:
                raise InputError(
                    "model", got=f"an error on x of shape {batch.shape} and dtype {dtype}: {error}",
                    needed="a module that maps samples to logits in float32 and in float64",
                    fix="check the shape of x, and that forward makes no tensor of a fixed dtype or device",
                ) from error
        if not is_torch(out, "Tensor") or out.ndim != 2 or len(out) != len(batch) or out.shape[1] == 0:
            raise InputError(
                "model", got=f"outputs {tuple(out.shape)}" if is_torch(out, "Tensor") else f"a {type(out).__name__}",
                needed=f"logits of shape ({len(batch)}, classes), or ({len(batch)}, 1) for two classes",
                fix="return logits only, with the batch axis first",
            )
        parts.append(out.detach().to(device="cpu", dtype=torch.float64).numpy())
    logits = np.concatenate(parts)
    if not np.all(np.isfinite(logits)):
        bad = int(np.argwhere(~np.isfinite(logits))[0][0])
        raise InputError(
            "model", got=f"NaN or infinite outputs in {dtype} (sample {bad})", needed="finite outputs",
            fix="check its weights; an attack cannot tell what such an output is worth",
        )
    return logits


def into_ball(x: F64, found: F64, delta: float, norm: float, box: tuple[float, float] | None = BOX) -> F64:
    """Points near ``found`` with ``‖· − x‖ <= delta`` and entries in ``box``, in exact arithmetic.

    ∞: clipped to ``[x − δ, x + δ]`` with both ends one float inwards. 2: shrunk towards x to a radius below δ by
    more than the rounding of the norm (relative n u), of the product and of the sum (absolute √n u, since the
    entries are at most 1). Both take less from δ than 1e-12 for a million inputs, and what float64 computes as the
    size of the perturbation is at most δ as well. An entry that is NaN or infinite becomes that of x.

    >>> x = np.array([[0.5, 0.5]])
    >>> into_ball(x, np.array([[0.8, 0.1]]), 0.25, 2.0).round(9)  # from (0.3, −0.4), of length 0.5
    array([[0.65, 0.3 ]])
    >>> into_ball(x, np.array([[0.8, 0.1]]), 0.25, math.inf).round(9)
    array([[0.75, 0.25]])
    """
    found = np.where(np.isfinite(found), found, x)
    if math.isinf(norm):
        high = np.maximum(np.nextafter(x + delta, -math.inf), x)
        low = np.minimum(np.nextafter(x - delta, math.inf), x)
        points = np.clip(found, low, high)
    else:
        shift = (found - x).reshape(len(x), -1)
        n = shift.shape[1]
        length = np.linalg.norm(shift, axis=1)
        radius = delta * (1.0 - (2 * n + 16) * _UNIT) - 2.0 * math.sqrt(n) * _UNIT
        outside = length > max(radius, 0.0)
        scale = np.ones(len(x))
        scale[outside] = max(radius, 0.0) / length[outside]
        points = np.where(outside[:, None], x.reshape(shift.shape) + shift * scale[:, None], found.reshape(shift.shape))
        points = points.reshape(x.shape)
    inside: F64 = points if box is None else np.clip(points, *box)
    return inside


def sizes(a: F64, norm: float) -> F64:
    """``‖a‖`` of each sample, computed in float64.

    >>> sizes(np.array([[3.0, -4.0]]), 2.0), sizes(np.array([[3.0, -4.0]]), math.inf)
    (array([5.]), array([4.]))
    """
    flat = a.reshape(len(a), -1)
    size: F64 = np.abs(flat).max(axis=1) if math.isinf(norm) else np.linalg.norm(flat, axis=1)
    return size


def torch_device(torch: Any, device: str | None) -> Any:
    """The named device; without a name CUDA if there is one, else the CPU."""
    try:
        return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device is None else device)
    except RuntimeError as error:
        raise InputError("device", got=repr(device), needed="a torch device", fix="pass 'cpu' or 'cuda'") from error


@contextlib.contextmanager
def differentiable() -> Iterator[None]:
    """Torch's complaint about outputs that do not depend on the input, as an InputError."""
    try:
        yield
    except RuntimeError as error:
        if "does not require grad" not in str(error) and "not have been used in the graph" not in str(error):
            raise
        raise InputError(
            "model", got="outputs through which no gradient reaches the input", needed="a differentiable model",
            fix="remove detach() and no_grad() from its forward",
        ) from error


def integer(value: object, name: str, least: int) -> int:
    """``value`` as an int in [least, 2**63), or InputError.

    >>> integer(np.int64(3), "steps", 1)
    3
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least or value >= 2**63:
        raise InputError(name, got=repr(value), needed=f"an integer >= {least}", fix=f"pass {name}={max(least, 1)}")
    return int(value)


def read_model(model: object, x: F64) -> Network | Graph | None:
    """The model in the IR; None for a module that is no chain of dense layers: attacks need gradients only.

    Importing a module as a Graph would take longer than attacking it, for the sake of a digest; who wants that passes
    the Graph.
    """
    if not is_torch(model, "Module"):
        return read_network(model, x)
    try:
        return as_network(model, input_shape=tuple(x.shape[1:]) if x.ndim > 2 else None)
    except InputError:
        return None


def read_samples(x: object) -> F64:
    """Samples of shape (samples, …) in [0, 1], or InputError."""
    array = as_float64(x, "x")
    if array.ndim < 2 or array.size == 0:
        raise InputError(
            "x", got=f"shape {array.shape}", needed="(samples, …) with at least one sample",
            fix="add a batch axis with x[None]" if array.ndim == 1 and array.size else "pass at least one sample",
        )
    if array.min() < BOX[0] or array.max() > BOX[1]:
        raise InputError(
            "x", got=f"values from {array.min():g} to {array.max():g}",
            needed="values in [0, 1], the range to which Auto-PGD clamps its points",
            fix="scale the samples to [0, 1] and put the scaling back into the model as its first layer "
            "(Normalise, or an nn.Linear); delta is then in the new units",
        )
    return array
