"""What is measured of a network that is no chain of dense layers: any ``nn.Module`` from images to logits.

What a chain has and such a network has not (the right singular vectors of the first layer, alignment of adjacent
layers) is None. The structure of a layer is that of its weight as a matrix, a filter a row: the reading of the paper's
statistics. It is no statement about the operator of a convolution, whose norm is another number.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from certbound.arrays import F64, I64
from certbound.compress.layers import as_matrix, weight_parameters
from certbound.losses import class_logits, margins_of

BATCH = 128
"""Samples in one forward pass."""


def margins(module: Any, x: Any, y: I64, device: str = "cpu", dtype: str = "float64") -> F64:
    """``f_y − f_j`` of every sample and class, ``+∞`` at j = y; the outputs computed in ``dtype``."""
    import torch

    fast = _copy(module, device, dtype)
    parts = []
    with torch.no_grad():
        for start in range(0, len(x), BATCH):
            out = fast(torch.tensor(x[start : start + BATCH], dtype=getattr(torch, dtype), device=device))
            parts.append(out.double().cpu().numpy())
    return margins_of(class_logits(np.concatenate(parts)), y)


def input_gradients(module: Any, x: Any, y: I64, device: str = "cpu") -> F64:
    """``∇_x`` of each sample's cross-entropy, flat, in float64."""
    import torch

    exact = _copy(module, device, "float64")
    parts = []
    for start in range(0, len(x), BATCH):
        points = torch.tensor(x[start : start + BATCH], dtype=torch.float64, device=device, requires_grad=True)
        labels = torch.tensor(y[start : start + BATCH], device=device)
        with torch.enable_grad():
            loss = torch.nn.functional.cross_entropy(exact(points), labels, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, points)
        parts.append(gradient.reshape(len(labels), -1).cpu().numpy())
    gradients: F64 = np.concatenate(parts)
    return gradients


def encode(module: Any, x: Any, device: str = "cpu") -> F64:
    """The representation: what the head, the last ``nn.Linear``, reads; shape (samples, features), in float64."""
    import torch

    exact = _copy(module, device, "float64")
    head = [m for m in exact.modules() if isinstance(m, torch.nn.Linear)][-1]
    seen: list[F64] = []

    def keep(_: Any, inputs: tuple[Any, ...]) -> None:
        seen.append(inputs[0].reshape(len(inputs[0]), -1).cpu().numpy())

    head.register_forward_pre_hook(keep)
    with torch.no_grad():
        for start in range(0, len(x), BATCH):
            exact(torch.tensor(x[start : start + BATCH], dtype=torch.float64, device=device))
    return np.concatenate(seen)


def encoder_matrices(module: Any) -> list[F64]:
    """The weights that a penalty acts on (neither head nor first convolution), as matrices ``out × (in·kh·kw)``."""
    return [_matrix(weight) for weight in weight_parameters(module).values()]


def folded_matrices(module: Any) -> list[F64] | None:
    """The same with every BatchNorm multiplied into the convolution before it; None for a module without any.

    BatchNorm undoes the size of a filter: a row that a penalty made small may carry as much as before.
    """
    import torch
    from torch.fx.experimental.optimization import fuse

    if not any(isinstance(m, torch.nn.BatchNorm2d) for m in module.modules()):
        return None
    folded = dict(fuse(_copy(module, "cpu", "float64")).named_parameters())
    return [_matrix(folded[name]) for name in weight_parameters(module)]


def count_weights(module: Any) -> tuple[int, int]:
    """Entries of all parameters with two or more axes (head and first convolution too), and how many are not zero."""
    weights = [p.detach() for p in module.parameters() if p.ndim >= 2]
    return sum(w.numel() for w in weights), sum(int(w.count_nonzero()) for w in weights)


def singular_values(w: F64) -> F64:
    """Descending, from the smaller Gram matrix: right to 1e-8 of the largest, in a tenth of an SVD's time."""
    scale = float(np.max(np.abs(w), initial=0.0))
    if scale == 0.0:
        return np.zeros(min(w.shape))
    u = w / scale
    gram = u @ u.T if len(u) <= u.shape[1] else u.T @ u
    values: F64 = scale * np.sqrt(np.maximum(np.linalg.eigvalsh(gram)[::-1], 0.0))
    return values


def _matrix(weight: Any) -> F64:
    return as_matrix(weight.detach()).double().cpu().numpy()


def _copy(module: Any, device: str, dtype: str) -> Any:
    import torch

    return copy.deepcopy(module).to(device=device, dtype=getattr(torch, dtype)).eval().requires_grad_(False)


__all__ = [
    "BATCH", "count_weights", "encode", "encoder_matrices", "folded_matrices", "input_gradients", "margins",
    "singular_values",
]  # fmt: skip
