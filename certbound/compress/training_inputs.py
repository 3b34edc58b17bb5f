"""What training needs around its loop: arguments read and refused, modes and random states put back."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from numbers import Real
from typing import TYPE_CHECKING, Any

from certbound.arrays import as_float64, as_labels, is_torch
from certbound.compress.factorised import PURPOSE
from certbound.errors import InputError
from certbound.io.to_torch import import_torch
from certbound.types import parse_delta

if TYPE_CHECKING:
    import torch
    from torch import nn


def count(value: object, name: str) -> int:
    """``value`` as an int >= 1, or InputError.

    >>> count(3, "epochs")
    3
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(name, got=repr(value), needed="an integer >= 1", fix="pass a count")
    return value


def share(value: object, name: str) -> float:
    """``value`` as a float in (0, 1], or InputError.

    >>> share(1, "fraction")
    1.0
    """
    number = parse_delta(value, name)
    if not 0.0 < number <= 1.0:
        raise InputError(name, got=repr(value), needed="a number in (0, 1]", fix="pass the share of each batch")
    return number


def positive(value: object, name: str) -> float:
    """``value`` as a finite float > 0, or InputError.

    >>> positive(2, "step_size")
    2.0
    """
    number = parse_delta(value, name)
    if number == 0.0:
        raise InputError(name, got=repr(value), needed="a number > 0", fix="pass a fraction of delta, e.g. 0.25")
    return number


def below(value: object, name: str, limit: float) -> float:
    """``value`` as a float in [0, limit), or InputError.

    >>> below(0, "momentum", 1.0)
    0.0
    """
    number = math.nan if isinstance(value, bool) or not isinstance(value, Real) else float(value)
    if not 0 <= number < limit:
        raise InputError(
            name, got=repr(value), needed=f"a finite number in [0, {limit:g})", fix="see Training's defaults"
        )
    return number


@contextlib.contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """The model in eval mode; afterwards each of its modules is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def class_logits(logits: torch.Tensor) -> torch.Tensor:
    """Logits of shape (samples, classes); one logit z is read as the two classes (0, z).

    >>> import torch
    >>> class_logits(torch.tensor([[3.0]]))
    tensor([[0., 3.]])
    """
    torch = import_torch(PURPOSE)
    return torch.cat([torch.zeros_like(logits), logits], dim=1) if logits.shape[1] == 1 else logits


def check_module(model: object) -> None:
    """Refuse what is no nn.Module."""
    if not is_torch(model, "Module"):
        raise InputError("model", got=f"a {type(model).__name__}", needed="an nn.Module", fix="use to_torch(network)")


def generator_of(torch: Any, seed: Any) -> Any:
    """A generator on the CPU: the one given, or a new one with that seed."""
    if isinstance(seed, torch.Generator) and seed.device.type == "cpu":
        return seed
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise InputError(
            "seed", got=repr(seed), needed="an integer in [0, 2**63), or a CPU torch.Generator", fix="pass seed=0"
        )
    return torch.Generator().manual_seed(seed)


def to_device(torch: Any, model: Any, device: Any) -> Any:
    """Move the model there; the torch.device."""
    try:
        target = torch.device(device)
        model.to(target)
    except (RuntimeError, AssertionError, TypeError) as error:  # "not compiled with CUDA" is an AssertionError
        raise InputError(
            "device", got=repr(device), needed="a device that torch can use here", fix="pass device='cpu'"
        ) from error
    return target


def samples(
    torch: Any, model: Any, x: object, y: object, device: Any, *, in_unit_box: bool = False
) -> tuple[Any, Any]:
    """Samples and labels as tensors, checked against one another and against the model's outputs."""
    array = as_float64(x, "x")
    if array.ndim < 2 or array.size == 0:
        raise InputError(
            "x", got=f"shape {array.shape}", needed="(samples, …) with at least one sample", fix="add a batch axis"
        )
    if in_unit_box and (array.min() < 0.0 or array.max() > 1.0):
        raise InputError(
            "x", got=f"values from {array.min():g} to {array.max():g}", needed="values in [0, 1], to perturb them",
            fix="scale the samples to [0, 1] and normalise in the model's first layer",
        )  # fmt: skip
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.get_default_dtype())
    data = torch.tensor(array, dtype=dtype, device=device)
    return data, torch.tensor(as_labels(y, len(data), _n_classes(torch, model, data[:2])), device=device)


def _n_classes(torch: Any, model: Any, x: Any) -> int:
    with eval_mode(model), torch.no_grad():
        try:
            out = model(x)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise InputError(
                "model", got=f"an error on x of shape {tuple(x.shape)}: {error}",
                needed="a module that takes x's batch", fix="check the shape of x",
            ) from error  # fmt: skip
    if not is_torch(out, "Tensor") or out.ndim != 2 or len(out) != len(x) or out.shape[1] == 0:
        raise InputError(
            "model", got=f"outputs {tuple(out.shape)}" if is_torch(out, "Tensor") else f"a {type(out).__name__}",
            needed=f"logits of shape ({len(x)}, classes)", fix="return logits only, with the batch axis first",
        )  # fmt: skip
    return max(2, out.shape[1])


def hold_back(torch: Any, n: int, share: float, seed: int) -> tuple[Any, Any]:
    """Indices of the samples held back and of the others, each in the samples' order."""
    size = max(1, round(share * n))
    if size >= n:
        raise InputError(
            "validation", got=f"{share:g} of {n} samples", needed="at least one sample left to train on",
            fix="hold back less",
        )  # fmt: skip
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return order[:size].sort().values, order[size:].sort().values


@contextlib.contextmanager
def own_state(torch: Any, device: Any, seed: int) -> Iterator[None]:
    """Run with gradients on and torch's global generators seeded (Dropout draws from them); they are put back."""
    cuda = []
    if device.type == "cuda":
        cuda = [torch.cuda.current_device() if device.index is None else device.index]
    with torch.random.fork_rng(devices=cuda), torch.enable_grad():
        # not torch.manual_seed: it also seeds devices whose state is not put back
        torch.default_generator.manual_seed(seed)
        for index in cuda:
            torch.cuda.default_generators[index].manual_seed(seed)
        yield
