"""Low rank by construction: every layer but the head is a product ``W = A B`` of two thin matrices.

A layer is two plain ``nn.Linear``, the first without a bias and with no activation between, so every
tool that reads ``nn.Sequential`` (certbound's own IR, auto_LiRPA, attacks, ONNX export) reads it too.
:func:`replace_by_pair` puts such a pair in the place of a layer that is there already.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from certbound.arrays import F64
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
            # named_children() would name a ReLU that all layers share only once
            for name, child in part._modules.items():
                if child is not None:
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


def copy_values(target: torch.Tensor, values: F64, name: str) -> None:
    """Write float64 ``values`` into a weight or bias, rounded to its dtype.

    Raises
    ------
    InputError : a value that the dtype cannot hold (a float16 weight beyond 65504, say); nothing is written.

    >>> import numpy as np, torch
    >>> weight = torch.zeros(2, dtype=torch.float16)
    >>> copy_values(weight, np.array([0.5, 3.0]), "weight")
    >>> weight.tolist()
    [0.5, 3.0]
    """
    torch = import_torch(PURPOSE)
    rounded = torch.from_numpy(values).to(target.dtype)
    if not bool(torch.isfinite(rounded).all()):
        raise InputError(
            name, got=f"numbers beyond the range of {target.dtype}", needed="finite weights",
            fix="convert the model to a wider dtype first",
        )  # fmt: skip
    with torch.no_grad():
        target.copy_(rounded.reshape(target.shape))


def replace_by_pair(module: nn.Module, name: str, A: F64, B: F64) -> nn.Module:
    """Put the two thin layers ``x ↦ A (B x) + b`` in the place of the layer with the weight ``name``.

    An ``nn.Linear`` becomes two; a convolution becomes one of the same kernel, stride and padding to r channels and
    one with a 1×1 kernel. The pair has the layer's bias, dtype, device and mode.

    Parameters
    ----------
    module : changed in place, but where the layer is the module itself.
    name : of the weight, as in ``module.named_parameters()``.
    A : shape (outputs, r). B : shape (r, inputs), for a convolution (r, inputs · kernel), row by row as the weight.

    Returns
    -------
    ``module``, or the pair if ``module`` is that layer.

    Raises
    ------
    UnsupportedLayerError : no plain ``nn.Linear`` or ungrouped convolution; one with hooks; one inside a module of
        torch's own that reads its weight (``nn.MultiheadAttention``, ``nn.TransformerEncoderLayer``).
    InputError : numbers that the layer's dtype cannot hold.

    >>> import numpy as np, torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(3, 2))
    >>> _ = replace_by_pair(net, "0.weight", np.array([[1.0], [2.0]]), np.array([[1.0, 0.0, 1.0]]))
    >>> (net[0][1].weight @ net[0][0].weight).tolist()
    [[1.0, 0.0, 1.0], [2.0, 0.0, 2.0]]
    """
    path, _, leaf = name.rpartition(".")
    layer: Any = module.get_submodule(path)
    _check_replaceable(module, path, leaf, layer)
    pair = _pair(layer, A, B, name)
    # a layer that is used in several places is at several paths
    for other, found in list(module.named_modules(remove_duplicate=False)):
        if found is layer and other:
            parent, _, child = other.rpartition(".")
            setattr(module.get_submodule(parent), child, pair)
    return pair if layer is module else module


def _check_replaceable(module: Any, path: str, leaf: str, layer: Any) -> None:
    nn_ = import_torch(PURPOSE).nn
    plain = leaf == "weight" and type(layer) in (nn_.Linear, nn_.Conv1d, nn_.Conv2d, nn_.Conv3d)
    reason = ""
    if not plain:
        reason = f"the {leaf} of a {type(layer).__name__}"
    elif getattr(layer, "groups", 1) != 1:
        reason = f"a convolution in {layer.groups} groups"
    elif layer._forward_hooks or layer._forward_pre_hooks:
        reason = f"a {type(layer).__name__} with hooks"
    elif path:
        parent: Any = module.get_submodule(path.rpartition(".")[0])
        containers = (nn_.Sequential, nn_.ModuleList, nn_.ModuleDict)
        if type(parent).__module__.startswith("torch.nn.") and not isinstance(parent, containers):
            reason = f"a layer of a {type(parent).__name__}, which reads its weight"
    tied = [n for n, p in module.named_parameters(remove_duplicate=False) if p is getattr(layer, leaf, None)]
    if not reason and any(module.get_submodule(n.rpartition(".")[0]) is not layer for n in tied):
        reason = f"one weight of several layers ({', '.join(tied)})"
    if reason:
        raise UnsupportedLayerError(
            path or "module",
            got=reason,
            needed="a plain nn.Linear or convolution of its own",
            fix="pass factorise=False, which keeps the shapes",
        )


def _pair(layer: Any, A: F64, B: F64, name: str) -> Any:
    torch = import_torch(PURPOSE)
    outputs, rank = A.shape
    bias = layer.bias is not None
    place = {"dtype": layer.weight.dtype, "device": layer.weight.device}
    cls = type(layer)
    # skip_init: torch's own initialisation would draw from the global generator
    make = torch.nn.utils.skip_init
    if cls is torch.nn.Linear:
        first = make(cls, layer.in_features, rank, bias=False, **place)
        second = make(cls, rank, outputs, bias=bias, **place)
    else:
        first = make(
            cls, layer.in_channels, rank, layer.kernel_size, stride=layer.stride, padding=layer.padding,
            dilation=layer.dilation, padding_mode=layer.padding_mode, bias=False, **place,
        )  # fmt: skip
        second = make(cls, rank, outputs, 1, bias=bias, **place)
    copy_values(first.weight, B, name)
    copy_values(second.weight, A, name)
    first.weight.requires_grad_(layer.weight.requires_grad)
    second.weight.requires_grad_(layer.weight.requires_grad)
    if bias:
        second.bias = layer.bias  # the parameter itself: it may be shared
    return torch.nn.Sequential(first, second).train(layer.training)
