"""Penalties that make weights compressible: the nuclear norm, as a term of the loss and as a proximal step."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from certbound.compress.low_rank import PURPOSE, linear_groups, linear_maps
from certbound.errors import InputError, UnsupportedLayerError
from certbound.io.to_torch import import_torch

if TYPE_CHECKING:
    import torch
    from torch import nn


def nuclear_norm_penalty(module: nn.Module, exclude_head: bool = True) -> torch.Tensor:
    """``Σ_l ‖W^l‖_*``, the sum of all singular values of all layers, differentiable.

    Where W has full rank, the gradient is ``U Vᵀ`` of the thin SVD ``W = U S Vᵀ``; at a zero singular
    value the norm has a kink and torch returns one subgradient. For a layer that is a product
    ``W = A B`` the norm is that of the product.

    Parameters
    ----------
    module : an ``nn.Sequential``.
    exclude_head : leave out the last linear map, whose few rows carry the classes.

    Raises
    ------
    UnsupportedLayerError, InputError : see :func:`certbound.compress.low_rank.linear_groups`; also when
        nothing is left once the head is excluded.

    >>> import torch
    >>> layer = torch.nn.Linear(2, 2, bias=False)
    >>> _ = layer.weight.data.copy_(torch.diag(torch.tensor([3.0, -4.0])))
    >>> nuclear_norm_penalty(torch.nn.Sequential(layer), exclude_head=False).item()
    7.0
    """
    torch = import_torch(PURPOSE)
    maps = linear_maps(module)
    if exclude_head:
        maps = maps[:-1]
    if not maps:
        raise InputError(
            "module", got="one linear layer, the head", needed="a layer besides the head", fix="pass exclude_head=False"
        )
    return torch.stack([torch.linalg.matrix_norm(w, ord="nuc") for w in maps]).sum()


def shrink_singular_values(weight: torch.Tensor, threshold: float) -> torch.Tensor:
    """Soft-threshold the singular values: ``U max(S − τ, 0) Vᵀ``, the proximal map of ``τ ‖·‖_*``.

    It minimises ``½‖X − W‖_F² + τ‖X‖_*`` over X exactly (Cai, Candès & Shen 2010, theorem 2.1).

    Raises
    ------
    InputError : a threshold that is negative or not finite.

    >>> import torch
    >>> shrink_singular_values(torch.diag(torch.tensor([3.0, 1.0])), 2.0).abs()
    tensor([[1., 0.],
            [0., 0.]])
    """
    torch = import_torch(PURPOSE)
    if not math.isfinite(threshold) or threshold < 0:
        raise InputError("threshold", got=repr(threshold), needed="a finite number >= 0", fix="pass step × strength")
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    return (u * (s - threshold).clamp_min(0.0)) @ vh


def nuclear_norm_proximal_step(module: nn.Module, threshold: float, exclude_head: bool = True) -> None:
    """Apply :func:`shrink_singular_values` in place to every linear layer but the head.

    Why a proximal step and no loss term: subgradient steps never make a singular value exactly zero (they
    jitter around it), while this step does, and it may be taken every k steps with k times the threshold,
    which costs 1/k of the decompositions.

    Raises
    ------
    UnsupportedLayerError : a layer given as a product ``W = A B``: the proximal map of ‖A B‖_* is no
        function of the factors.
    """
    torch = import_torch(PURPOSE)
    groups = linear_groups(module)
    for group in groups[:-1] if exclude_head else groups:
        if len(group) != 1:
            raise UnsupportedLayerError(
                "module",
                got=f"a layer made of {len(group)} nn.Linear",
                needed="one nn.Linear per layer",
                fix="use either a low rank or a nuclear norm, or nuclear_norm_penalty as a term of the loss",
            )
        weight = group[0].weight
        with torch.no_grad():
            weight.copy_(shrink_singular_values(weight, threshold))
