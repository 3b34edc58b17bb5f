"""Layers that users put into their torch models; imported by the torch adapter only, never by the core."""

from __future__ import annotations

import torch
from torch import nn

from certbound.errors import InputError


class Normalise(nn.Module):
    """``x ↦ (x − mean) / std`` as the first layer of a model, so that δ stays in the units of the raw input.

    Parameters
    ----------
    mean, std : numbers or arrays of equal shape (a single number goes with any shape):
        ``()`` one for all inputs; ``(C,)`` one per entry of axis 1, that is per channel of ``(N, C, H, W)`` and
        per feature of ``(N, n)``; any other shape is the shape of one whole input, axes of size 1 broadcast.

    Both are buffers in torch's default dtype: they follow ``.to(...)`` and are not trained.

    Raises
    ------
    InputError : std <= 0, numbers that are not finite, shapes that differ.

    >>> Normalise([1.0, 2.0], 2.0)(torch.tensor([[3.0, 2.0]]))
    tensor([[1., 0.]])
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, mean: object, std: object) -> None:
        super().__init__()
        tensors = [_constant(value, name) for value, name in ((mean, "mean"), (std, "std"))]
        if tensors[0].dim() and tensors[1].dim() and tensors[0].shape != tensors[1].shape:
            raise InputError(
                "std",
                got=f"shape {tuple(tensors[1].shape)} beside a mean of shape {tuple(tensors[0].shape)}",
                needed="equal shapes, or one number",
                fix="give mean and std per channel, or both per input",
            )
        if bool((tensors[1] <= 0).any()):
            raise InputError(
                "std", got=f"{float(tensors[1].min())}", needed="numbers > 0", fix="set constant features' std to 1"
            )
        self.register_buffer("mean", tensors[0])
        self.register_buffer("std", tensors[1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalised batch, of the shape of ``x``."""
        return (x - _aligned(self.mean, x)) / _aligned(self.std, x)

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f"shape={tuple(torch.broadcast_shapes(self.mean.shape, self.std.shape))}"


class FlatInput(nn.Module):
    """``x.flatten(1)`` for input of any shape; the importer reads it as nothing where the input is flat already.

    >>> FlatInput()(torch.zeros(2, 3, 4)).shape
    torch.Size([2, 12])
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The batch, one axis per sample."""
        return x.flatten(1)


class Residual(nn.Module):
    """``x ↦ body(x) + shortcut(x)``; no shortcut is the identity.

    >>> Residual(nn.ReLU())(torch.tensor([[1.0, -1.0]]))
    tensor([[ 2., -1.]])
    """

    def __init__(self, body: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.body = body
        self.shortcut = nn.Identity() if shortcut is None else shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The sum; both parts must give the same shape."""
        return self.body(x) + self.shortcut(x)


def _constant(value: object, name: str) -> torch.Tensor:
    try:
        tensor = torch.as_tensor(value, dtype=torch.get_default_dtype()).detach().clone()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            name, got=f"{type(value).__name__} ({error})", needed="a number or an array of numbers", fix="pass floats"
        ) from error
    if tensor.numel() == 0 or not bool(torch.isfinite(tensor).all()):
        raise InputError(name, got=repr(value), needed="finite numbers, at least one", fix="check the statistics")
    return tensor


def _aligned(constant: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """``constant`` shaped to broadcast over the batch ``x``; never one that makes ``x`` larger."""
    if constant.numel() == 1:
        return constant.reshape(())
    shape = (-1,) + (1,) * (x.dim() - 2) if constant.dim() == 1 else tuple(constant.shape)
    aligned = constant.reshape(shape)
    # broadcasting would turn one channel into three without a word
    fits = all(mine in (1, its) for mine, its in zip(aligned.shape, x.shape[1:], strict=False))
    if aligned.dim() != x.dim() - 1 or not fits:
        raise InputError(
            "x",
            got=f"a batch of shape {tuple(x.shape)}",
            needed=f"one that a mean and std of shape {tuple(constant.shape)} fit",
            fix="one number per channel goes with (N, C, H, W), one per feature with (N, n)",
        )
    return aligned
