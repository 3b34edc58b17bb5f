"""Which weights of a module are compressed, and as which matrices.

Weights of ``nn.Linear``, ``nn.Conv1d/2d/3d`` and the input projections of ``nn.MultiheadAttention``. Left out by
default: the head (the last ``nn.Linear``, whose few rows carry the classes) and the first convolution, whose
inputs are the pixels. A convolution is the matrix ``out × (in·kh·kw)``: one filter a row.
Biases, normalisations, embeddings, transposed convolutions and recurrent layers are not compressed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from certbound.compress.factorised import PURPOSE
from certbound.errors import InputError, UnsupportedLayerError
from certbound.io.to_torch import import_torch

if TYPE_CHECKING:
    import torch
    from torch import nn


class _Weight(NamedTuple):
    name: str
    parameter: Any
    kind: str  # linear | conv | attention


def weight_parameters(
    module: nn.Module, *, exclude_head: bool = True, exclude_first_conv: bool = True
) -> dict[str, nn.Parameter]:
    """The weights that are compressed, by their name in ``module.named_parameters()``, in registration order.

    Parameters
    ----------
    module : any module.
    exclude_head : leave out the weight of the last ``nn.Linear``; nothing is left out where there is none.
    exclude_first_conv : leave out the weight of the first convolution, if there is one.

    Returns
    -------
    The parameters themselves, not copies. A tied parameter appears once, under its first name; it is left
    out if any of its uses is the head or the first convolution. The query, key and value projections that
    ``nn.MultiheadAttention`` stores as one ``in_proj_weight`` are one matrix of 3 × embed_dim rows.

    Raises
    ------
    InputError : not a module; nothing is left.
    UnsupportedLayerError : a weight that is no plain parameter (parametrized, pruned by hooks, lazy):
        changing it in place would have no effect.
    MissingDependencyError : torch is not installed.

    >>> from torch import nn
    >>> list(weight_parameters(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))))
    ['0.weight', '2.weight']
    """
    groups = _read(module)
    excluded = _excluded(groups, exclude_head, exclude_first_conv)
    kept: dict[int, _Weight] = {}
    for weight in (w for group in groups for w in group):
        if id(weight.parameter) not in excluded:
            kept.setdefault(id(weight.parameter), weight)
    _check_any(kept)
    return {w.name: w.parameter for w in kept.values()}


def weight_groups(
    module: nn.Module, *, exclude_head: bool = True, exclude_first_conv: bool = True
) -> list[dict[str, nn.Parameter]]:
    """The linear maps of a module, each with the weights that make it up, first factor first.

    ``nn.Linear`` that follow one another in an ``nn.Sequential`` with nothing between (but ``nn.Identity`` and
    ``nn.Dropout``) are one map, ``W = W_last … W_first``: see
    :func:`certbound.compress.factorised.low_rank_linear`. Every other weight is a map of its own. The whole
    map that holds an excluded weight is left out. Parameters and errors as in :func:`weight_parameters`.

    >>> from torch import nn
    >>> net = nn.Sequential(nn.Linear(5, 2, bias=False), nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3))
    >>> [list(group) for group in weight_groups(net)]
    [['0.weight', '1.weight']]
    """
    groups = _read(module)
    excluded = _excluded(groups, exclude_head, exclude_first_conv)
    kept: dict[tuple[int, ...], list[_Weight]] = {}
    for group in groups:
        ids = tuple(id(w.parameter) for w in group)
        if excluded.isdisjoint(ids):
            kept.setdefault(ids, group)
    _check_any(kept)
    return [{w.name: w.parameter for w in group} for group in kept.values()]


def as_matrix(weight: torch.Tensor) -> torch.Tensor:
    """The weight as a matrix of shape ``out × (in·kh·kw)``, differentiable.

    A view wherever the memory layout allows one (not for channels-last filters), so write results back with
    ``weight.copy_(matrix.reshape(weight.shape))``.

    Raises
    ------
    InputError : fewer than two dimensions, or no entries.

    >>> import torch
    >>> as_matrix(torch.zeros(8, 3, 5, 5)).shape
    torch.Size([8, 75])
    """
    if weight.ndim < 2 or weight.numel() == 0:
        raise InputError(
            "weight",
            got=f"shape {tuple(weight.shape)}",
            needed="at least two dimensions and one entry",
            fix="pass the weight of a linear layer or a convolution",
        )
    return weight.reshape(weight.shape[0], -1)


def check_module(module: nn.Module) -> nn.Module:
    """The module, if it is one.

    Raises
    ------
    InputError : it is no ``torch.nn.Module``.

    >>> from torch import nn
    >>> check_module(nn.ReLU())
    ReLU()
    """
    torch = import_torch(PURPOSE)
    if isinstance(module, torch.nn.Module):
        return module
    raise InputError(
        "module", got=f"a {type(module).__name__}", needed="a torch.nn.Module", fix="pass the model itself"
    )


def check_finite(name: str, weight: torch.Tensor) -> None:
    """Refuse NaN and infinite weights by name.

    Raises
    ------
    InputError : an entry is not finite.

    >>> import torch
    >>> check_finite("0.weight", torch.zeros(2, 2))
    """
    if not bool(weight.detach().isfinite().all()):
        raise InputError(
            name, got="NaN or infinite weights", needed="finite weights", fix="lower the step size or the strength"
        )


def sequential_children(part: nn.Module) -> list[tuple[str, nn.Module]] | None:
    """The children of an ``nn.Sequential`` in order of use, repeats included; None for any other module.

    ``named_children()`` names a module that is used twice (one ``nn.ReLU`` shared by all layers, say) only once.

    >>> from torch import nn
    >>> relu = nn.ReLU()
    >>> [name for name, _ in sequential_children(nn.Sequential(relu, nn.Linear(1, 1), relu))]
    ['0', '1', '2']
    """
    sequential = import_torch(PURPOSE).nn.Sequential
    # a subclass with a forward of its own may use its children in any order
    if not isinstance(part, sequential) or type(part).forward is not sequential.forward:
        return None
    return [(name, child) for name, child in part._modules.items() if child is not None]


def layer_weight(layer: nn.Module, path: str, name: str = "weight") -> nn.Parameter:
    """``layer.weight`` if it is a plain parameter.

    Raises
    ------
    UnsupportedLayerError : it is computed from other tensors, or lazy.

    >>> from torch import nn
    >>> layer_weight(nn.Linear(3, 2), "0").shape
    torch.Size([2, 3])
    """
    torch = import_torch(PURPOSE)
    value = getattr(layer, name)
    lazy = torch.nn.parameter.is_lazy(value)
    if isinstance(value, torch.nn.Parameter) and not lazy:
        return value
    raise UnsupportedLayerError(
        _join(path, name),
        got="a lazy parameter without a shape" if lazy else "a weight computed from other tensors",
        needed="a plain parameter",
        fix="run the model once" if lazy else "call torch.nn.utils.parametrize.remove_parametrizations or prune.remove",
    )


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _read(module: nn.Module) -> list[list[_Weight]]:
    nn_ = import_torch(PURPOSE).nn
    groups: list[list[_Weight]] = []
    _walk(nn_, check_module(module), "", groups, False)
    if not groups:
        raise InputError(
            "module",
            got="no nn.Linear, nn.Conv1d/2d/3d or nn.MultiheadAttention",
            needed="at least one",
            fix="pass the model that is trained",
        )
    return groups


def _walk(nn_: Any, part: Any, path: str, groups: list[list[_Weight]], joined: bool) -> bool:
    """Append the maps of ``part``, in registration order.

    ``joined``: nothing but linear maps since the last of ``groups``. Returns the same for what follows.
    """
    children = sequential_children(part)
    if children is not None:
        for name, child in children:
            joined = _walk(nn_, child, _join(path, name), groups, joined)
        return joined
    if isinstance(part, nn_.Linear):
        weight = _Weight(_join(path, "weight"), layer_weight(part, path), "linear")
        if joined:
            groups[-1].append(weight)
        else:
            groups.append([weight])
        return True
    if isinstance(part, (nn_.Identity, nn_.Dropout)):  # these leave a linear map linear
        return joined
    if isinstance(part, (nn_.Conv1d, nn_.Conv2d, nn_.Conv3d)):
        groups.append([_Weight(_join(path, "weight"), layer_weight(part, path), "conv")])
    elif isinstance(part, nn_.MultiheadAttention):
        names = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
        used = [name for name in names if getattr(part, name) is not None]  # the first or the other three
        groups += [[_Weight(_join(path, name), layer_weight(part, path, name), "attention")] for name in used]
    for name, child in part._modules.items():  # in an order of use that is not known
        if child is not None:
            _walk(nn_, child, _join(path, name), groups, False)
    return False


def _excluded(groups: list[list[_Weight]], head: bool, first_conv: bool) -> set[int]:
    weights = [w for group in groups for w in group]
    linear = [id(w.parameter) for w in weights if w.kind == "linear"]
    conv = [id(w.parameter) for w in weights if w.kind == "conv"]
    return set(linear[-1:] if head else []) | set(conv[:1] if first_conv else [])


def _check_any(kept: object) -> None:
    if not kept:
        raise InputError(
            "module",
            got="no layer besides the head and the first convolution",
            needed="a weight that may be compressed",
            fix="pass exclude_head=False or a deeper model",
        )
