"""Transfer: a trained network without its head, frozen, below a new head for other classes."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

from certbound.compress.factorised import PURPOSE
from certbound.compress.layers import sequential_children
from certbound.compress.training_inputs import check_module
from certbound.errors import InputError, UnsupportedLayerError
from certbound.io.to_torch import import_torch

if TYPE_CHECKING:
    from torch import nn


def frozen_encoder(model: nn.Module, n_classes: int, *, seed: int) -> nn.Sequential:
    """``Sequential(encoder, head)``: a frozen copy of the model without its head, and a new head to train.

    The head of the model is its last ``nn.Linear``; in the copy an ``nn.Identity`` stands in its place. The encoder's
    parameters require no gradients and it is in eval mode, in which :func:`certbound.compress.training.train` leaves
    it: only the new head moves. (``.train()`` called on the result would put the encoder into train mode too.) The
    head's weights are drawn from N(0, 1/inputs), its biases are 0.

    Parameters
    ----------
    model : is not changed. The output of its last ``nn.Linear`` must be the model's output; that is checked for an
        ``nn.Sequential``, and assumed of other modules.
    n_classes : outputs of the new head, at least 2.
    seed : decides the head's initial weights; no global state is drawn from.

    Raises
    ------
    InputError : no module; no layers besides the head; bad n_classes or seed.
    UnsupportedLayerError : an ``nn.Sequential`` in which an operation follows the last ``nn.Linear``.
    MissingDependencyError : torch is not installed.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 10))
    >>> downstream = frozen_encoder(model, 5, seed=0)
    >>> downstream(torch.zeros(2, 4)).shape
    torch.Size([2, 5])
    >>> [name for name, p in downstream.named_parameters() if p.requires_grad]
    ['1.weight', '1.bias']
    """
    torch = import_torch(PURPOSE)
    check_module(model)
    for name, value, least in (("n_classes", n_classes, 2), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**63:
            raise InputError(name, got=repr(value), needed=f"an integer >= {least}", fix=f"pass {name}={least}")
    encoder: Any = copy.deepcopy(model)
    path, head = _head(torch, encoder)
    parent, _, leaf = path.rpartition(".")
    setattr(encoder.get_submodule(parent), leaf, torch.nn.Identity())
    encoder.requires_grad_(False).eval()
    return torch.nn.Sequential(encoder, _new_head(torch, head, n_classes, seed))


def _head(torch: Any, model: Any) -> tuple[str, Any]:
    """Path and module of the last nn.Linear."""
    linear = [(path, m) for path, m in model.named_modules() if isinstance(m, torch.nn.Linear)]
    if not linear or sum(1 for _ in model.parameters()) == sum(1 for _ in linear[-1][1].parameters()):
        raise InputError(
            "model", got="no nn.Linear" if not linear else "a head alone", needed="an encoder and a head",
            fix="pass the trained model, whose last nn.Linear is the head",
        )  # fmt: skip
    path, head = linear[-1]
    after = _leaf_modules(model)
    for other in after[after.index(head) + 1 :] if head in after else []:
        if not isinstance(other, (torch.nn.Identity, torch.nn.Dropout)):  # these leave the head's output the model's
            raise UnsupportedLayerError(
                "model", got=f"a {type(other).__name__} after the last nn.Linear", needed="a head that comes last",
                fix="leave it out, and put it into the loss",
            )  # fmt: skip
    return path, head


def _leaf_modules(part: nn.Module) -> list[nn.Module]:
    """The modules of nested nn.Sequentials in the order in which they are used; other containers are one."""
    children = sequential_children(part)
    return [part] if children is None else [leaf for _, child in children for leaf in _leaf_modules(child)]


def _new_head(torch: Any, head: Any, n_classes: int, seed: int) -> Any:
    weight = head.weight
    # skip_init: nn.Linear's own initialisation would draw from the global generator
    new = torch.nn.utils.skip_init(
        torch.nn.Linear, head.in_features, n_classes, bias=True, dtype=weight.dtype, device=weight.device
    )
    drawn = torch.randn(new.weight.shape, generator=torch.Generator().manual_seed(seed), dtype=weight.dtype)
    with torch.no_grad():
        new.weight.copy_(drawn / math.sqrt(head.in_features))
        new.bias.zero_()
    return new
