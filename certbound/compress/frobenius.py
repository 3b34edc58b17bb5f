"""Frobenius normalisation: hold ‖W‖_F of every layer at its initial value while training.

Compression and the scale of the weights both change the Lipschitz constant. With the scale held, what remains
is the effect of the structure (Barsbey et al., ICLR 2026, the study on MNIST).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from certbound.compress.factorised import PURPOSE
from certbound.compress.layers import as_matrix, check_finite, weight_groups
from certbound.compress.penalties import frobenius_norm
from certbound.errors import InputError
from certbound.io.to_torch import import_torch

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class FrobeniusNorms:
    """‖W‖_F of the layers of one module at one time.

    Parameters
    ----------
    layers : for each layer the names of its weights; more than one where ``W = A B`` is a product of ``nn.Linear``.
    norms : ‖W‖_F of each layer, of the product where it is one.
    exclude_head : whether the head was left out.

    >>> import torch
    >>> layer = torch.nn.Linear(2, 1)
    >>> _ = layer.weight.data.copy_(torch.tensor([[5.0, 0.0]]))
    >>> before = FrobeniusNorms.of(layer, exclude_head=False)
    >>> _ = layer.weight.data.copy_(torch.tensor([[0.6, 0.8]]))
    >>> before.restore(layer)
    >>> [round(w, 6) for w in layer.weight[0].tolist()]
    [3.0, 4.0]
    """

    layers: tuple[tuple[str, ...], ...]
    norms: tuple[float, ...]
    exclude_head: bool = True

    @classmethod
    def of(cls, module: nn.Module, exclude_head: bool = True) -> FrobeniusNorms:
        """The norms of every layer, the first convolution included, of the head too if asked for.

        Raises
        ------
        InputError, UnsupportedLayerError : see :func:`certbound.compress.layers.weight_groups`; NaN or infinite
            weights; a norm above the range of float64.
        """
        groups = weight_groups(module, exclude_head=exclude_head, exclude_first_conv=False)
        return cls(tuple(tuple(group) for group in groups), tuple(_norm(group) for group in groups), exclude_head)

    def restore(self, module: nn.Module) -> None:
        """Rescale every layer in place to the norm recorded here: ``W ← W ‖W_0‖_F / ‖W‖_F``.

        Of a product ``W = A B`` both factors take the square root of the ratio. Biases stay as they are. A layer
        that already has its norm keeps every bit. A zero layer has no direction to rescale and is left zero; one
        that was recorded as zero becomes zero.

        Raises
        ------
        InputError : the layers are not those recorded; NaN or infinite weights (nothing is changed).
        """
        torch = import_torch(PURPOSE)
        groups = weight_groups(module, exclude_head=self.exclude_head, exclude_first_conv=False)
        names = tuple(tuple(group) for group in groups)
        if names != self.layers:
            raise InputError(
                "module", got=f"layers {names}", needed=f"the layers {self.layers}", fix="pass the module measured"
            )
        norms = [_norm(group) for group in groups]
        with torch.no_grad():
            for group, norm, target in zip(groups, norms, self.norms, strict=True):
                if norm not in (0.0, target):
                    for weight in group.values():
                        _rescale(weight, norm, target, len(group))


def _rescale(weight: Any, norm: float, target: float, factors: int) -> None:
    """``W ← W (target / norm)^(1/factors)``: in float64, and divided first, so that the ratio cannot overflow."""
    root = 1.0 / factors
    weight.copy_(weight.double() / norm**root * target**root)


def _norm(group: dict[str, nn.Parameter]) -> float:
    torch = import_torch(PURPOSE)
    product: Any = None
    for name, weight in group.items():
        check_finite(name, weight)
        factor = as_matrix(weight.detach()).to(torch.float64)
        product = factor if product is None else factor @ product
    norm = float(frobenius_norm(product))
    if not math.isfinite(norm):
        raise InputError(
            ", ".join(group), got="a Frobenius norm above float64", needed="a finite norm", fix="rescale the weights"
        )
    return norm
