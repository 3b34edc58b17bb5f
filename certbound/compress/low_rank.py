"""Low rank by construction: every layer but the head is a product ``W = A B`` of two thin matrices.

A layer is two plain ``nn.Linear``, the first without a bias and with no activation between, so every
tool that reads ``nn.Sequential`` (certbound's own IR, auto_LiRPA, attacks, ONNX export) reads it too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from certbound.errors import InputError, UnsupportedLayerError
from certbound.io.to_torch import import_torch

if TYPE_CHECKING:
    import torch
    from torch import nn


PURPOSE: Final = "training and compressing models"
"""What MissingDependencyError says torch is needed for."""


def _positive(value: object, argument: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(argument, got=repr(value), needed="an integer >= 1", fix="pass a number of units")
    return value


def _linear(n_in: int, n_out: int, *, bias: bool, gain: float, generator: torch.Generator) -> nn.Linear:
    """A Linear with weights N(0, gain²/n_in) from ``generator`` and zero bias; the global RNG is not drawn from."""
    torch = import_torch(PURPOSE)
    # skip_init: nn.Linear's own initialisation would draw from the global generator
    layer = torch.nn.utils.skip_init(torch.nn.Linear, n_in, n_out, bias=bias)
    with torch.no_grad():
        layer.weight.normal_(0.0, gain / math.sqrt(n_in), generator=generator)
        if bias:
            layer.bias.zero_()
    return layer


def low_rank_linear(
    n_in: int, n_out: int, rank: int, *, bias: bool = True, generator: torch.Generator
) -> nn.Sequential:
    """The layer ``x ↦ A (B x) + b`` with ``B`` of shape (rank, n_in) and ``A`` of shape (n_out, rank).

    Entries of B have variance 1/n_in and those of A have variance 2/n_out, so that the spectral norms
    start near 1 and √2 whatever the rank. (Variance 2/rank, He's rule for A taken alone, makes the
    spectral norm grow as the rank falls: at rank 20 training diverged with the step size of dense layers.)

    Parameters
    ----------
    rank : 1 … min(n_in, n_out); the rank that ``W = A B`` cannot exceed.
    generator : the CPU generator that draws the weights; the global one is left alone.

    Raises
    ------
    InputError : sizes below 1; a rank above min(n_in, n_out), where the product limits nothing.
    MissingDependencyError : torch is not installed.

    >>> import torch
    >>> pair = low_rank_linear(6, 5, 2, generator=torch.Generator().manual_seed(0))
    >>> [tuple(p.weight.shape) for p in pair]
    [(2, 6), (5, 2)]
    """
    torch = import_torch(PURPOSE)
    limit = min(_positive(n_in, "n_in"), _positive(n_out, "n_out"))
    if _positive(rank, "rank") > limit:
        raise InputError(
            "rank",
            got=str(rank),
            needed=f"at most {limit} for a {n_out}×{n_in} layer",
            fix="use a dense layer (rank=None) if no limit is wanted",
        )
    return torch.nn.Sequential(
        _linear(n_in, rank, bias=False, gain=1.0, generator=generator),
        _linear(rank, n_out, bias=bias, gain=math.sqrt(2.0 * rank / n_out), generator=generator),
    )


def relu_network(
    widths: Sequence[int], *, rank: int | None = None, bias: bool = True, generator: torch.Generator
) -> nn.Sequential:
    """A ReLU network, one flat ``nn.Sequential``; every layer but the head has rank ``rank`` if given.

    Parameters
    ----------
    widths : inputs, hidden widths, outputs, e.g. ``(784, 200, 200, 10)``.
    rank : None for dense layers. The head is always dense.
    bias : whether the layers have a bias.

    Raises
    ------
    InputError : fewer than two widths; a rank above the smallest width that it applies to.

    >>> import torch
    >>> net = relu_network((4, 3, 2), rank=1, generator=torch.Generator().manual_seed(0))
    >>> [type(layer).__name__ for layer in net]
    ['Linear', 'Linear', 'ReLU', 'Linear']
    """
    torch = import_torch(PURPOSE)
    if len(widths) < 2:
        raise InputError(
            "widths", got=f"{tuple(widths)}", needed="at least inputs and outputs", fix="pass e.g. (784, 200, 10)"
        )
    sizes = [_positive(w, f"widths[{i}]") for i, w in enumerate(widths)]
    layers: list[Any] = []
    for n_in, n_out in pairwise(sizes[:-1]):
        if rank is None:
            layers.append(_linear(n_in, n_out, bias=bias, gain=math.sqrt(2.0), generator=generator))
        else:
            layers += list(low_rank_linear(n_in, n_out, rank, bias=bias, generator=generator))
        layers.append(torch.nn.ReLU())
    layers.append(_linear(sizes[-2], sizes[-1], bias=bias, gain=1.0, generator=generator))
    return torch.nn.Sequential(*layers)


def linear_groups(module: nn.Module) -> list[list[nn.Linear]]:
    """The linear maps of an ``nn.Sequential`` in order, each with the ``nn.Linear`` that make it up.

    Linear layers with nothing between them are one map, ``W = W_last … W_first``.

    Raises
    ------
    UnsupportedLayerError : a container other than ``nn.Sequential``, whose order of use is not known.
    InputError : no linear layer at all.

    >>> import torch
    >>> net = relu_network((4, 3, 2), rank=1, generator=torch.Generator().manual_seed(0))
    >>> [len(group) for group in linear_groups(net)]
    [2, 1]
    """
    torch = import_torch(PURPOSE)
    nn_ = torch.nn
    groups: list[list[Any]] = []
    after_linear = False

    def visit(part: Any, path: str) -> None:
        nonlocal after_linear
        if isinstance(part, nn_.Sequential):
            for name, child in part.named_children():
                visit(child, f"{path}.{name}")
        elif isinstance(part, nn_.Linear):
            if after_linear:
                groups[-1].append(part)
            else:
                groups.append([part])
            after_linear = True
        elif not isinstance(part, nn_.Module) or any(True for _ in part.children()):
            raise UnsupportedLayerError(
                path,
                got=f"a {type(part).__name__}",
                needed="nn.Sequential of layers",
                fix="write the model as an nn.Sequential",
            )
        elif not isinstance(part, (nn_.Identity, nn_.Dropout)):  # these leave a linear map linear
            after_linear = False

    visit(module, "module")
    if not groups:
        raise InputError("module", got="no nn.Linear", needed="at least one", fix="pass the model that is trained")
    return groups


def linear_maps(module: nn.Module) -> list[torch.Tensor]:
    """The weight matrices of :func:`linear_groups`, multiplied out and differentiable; first layer first.

    >>> import torch
    >>> net = relu_network((4, 3, 2), rank=1, generator=torch.Generator().manual_seed(0))
    >>> [(tuple(w.shape), int(torch.linalg.matrix_rank(w))) for w in linear_maps(net)]
    [((3, 4), 1), ((2, 3), 2)]
    """
    maps: list[Any] = []
    for group in linear_groups(module):
        product: Any = group[0].weight
        for layer in group[1:]:
            product = layer.weight @ product
        maps.append(product)
    return maps
