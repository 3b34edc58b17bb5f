"""Tail ratios and dispersions, exactly and in torch; one-sided inputs (smaller ε, larger β) from free parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flint import fmpq

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Profile:
    """Numbers of Theorem 3.1 for a vector and one k. ``epsilon2``: the square of the tail ratio for q = 2."""

    k: int
    size: int
    top: fmpq
    l1: fmpq
    l2_squared: fmpq
    epsilon: fmpq
    epsilon2: fmpq
    beta_mean: fmpq
    beta_kth: fmpq


def profile(values: Sequence[fmpq], k: int) -> Profile:
    """Exact ε and β of a vector; the zero vector has tail ratio 0 by convention, and dispersion 0."""
    theta = sorted((abs(v) for v in values), reverse=True)
    top, l1 = theta[0], sum(theta, fmpq(0))
    l2 = sum((v * v for v in theta), fmpq(0))
    if top == 0:
        zero = fmpq(0)
        return Profile(k, len(theta), zero, zero, zero, zero, zero, zero, zero)
    tail, tail2 = sum(theta[k:], fmpq(0)), sum((v * v for v in theta[k:]), fmpq(0))
    kept = l1 - tail
    return Profile(k, len(theta), top, l1, l2, tail / l1, tail2 / l2, 1 - kept / (k * top), 1 - theta[k - 1] / top)


def less(value: Any, s: Any) -> Any:
    """A number in (0, value]: equal at s = 0. Works on rationals and on tensors."""
    return value / (1 + s * s)


def more(value: Any, s: Any) -> Any:
    """A number in [value, 1): equal at s = 0."""
    return 1 - (1 - value) / (1 + s * s)


@dataclass(frozen=True)
class TorchProfile:
    """The same numbers for a batch: each field has shape (batch,)."""

    top: torch.Tensor
    l1: torch.Tensor
    l2: torch.Tensor
    epsilon: torch.Tensor
    epsilon2: torch.Tensor
    beta_mean: torch.Tensor
    beta_kth: torch.Tensor


def torch_profile(values: torch.Tensor, k: int) -> TorchProfile:
    """ε (q = 1), ε² (q = 2) and β of each row of ``values``."""
    theta = values.abs().sort(dim=-1, descending=True).values + 1e-30
    top, l1, l2 = theta[..., 0], theta.sum(-1), theta.square().sum(-1)
    kept = theta[..., :k].sum(-1)
    return TorchProfile(
        top=top,
        l1=l1,
        l2=l2.sqrt(),
        epsilon=theta[..., k:].sum(-1) / l1,
        epsilon2=theta[..., k:].square().sum(-1) / l2,
        beta_mean=1 - kept / (k * top),
        beta_kth=1 - theta[..., k - 1] / top,
    )
