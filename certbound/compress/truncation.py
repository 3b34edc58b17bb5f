"""One rank for all layers, and two controls: a random subspace of that rank, and weights that are only scaled.

Low rank changes a network's structure and its scale at once. :func:`random_rank` has the same rank without the choice
of the strongest directions; :func:`scale_weights` changes the scale and no prediction.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from certbound.arrays import F64, as_float64
from certbound.compress.factorised import PURPOSE, copy_values, replace_by_pair
from certbound.compress.layers import layer_weight, sequential_children, weight_parameters
from certbound.compress.pruning import Measured, Pruned, PrunedLayer, count_parameters, measure
from certbound.compressibility import check_k
from certbound.errors import InputError, UnsupportedLayerError
from certbound.io.to_torch import import_torch

if TYPE_CHECKING:
    from torch import nn


def low_rank(model: nn.Module, rank: int, *, exclude_head: bool = True, factorise: bool = True) -> Pruned:
    """Every layer but the head at rank ``r`` by the truncated SVD, ``W ≈ A B``: two thin layers in its place.

    No matrix of that rank is nearer to W in the spectral and the Frobenius norm (Eckart & Young 1936). The factors
    ``A = U_r Σ_r^½`` and ``B = Σ_r^½ V_r^T`` share the scale evenly. A layer with ``min(rows, columns) <= r`` keeps all
    of its rank, and is a pair all the same, with more parameters than before.

    Parameters
    ----------
    model : any module; ``nn.Linear`` becomes two, a convolution one of the same kernel to r channels and one of
        kernel 1. The given model stays as it was.
    rank : from 1 to the largest ``min(rows, columns)`` among the layers.
    exclude_head : leave the last ``nn.Linear`` as it is (and, as everywhere, the first convolution).
    factorise : False keeps each weight's shape and name; it then has rank r up to its dtype's rounding.

    Returns
    -------
    A record whose ``model`` is the copy.

    Raises
    ------
    InputError : a rank out of range, no layer left, weights that are not finite.
    UnsupportedLayerError : a weight that is no plain parameter; with ``factorise`` a layer that cannot be replaced, see
        :func:`certbound.compress.factorised.replace_by_pair`.
    NumericalError : an SVD did not converge. MissingDependencyError : torch is not installed.

    >>> import torch
    >>> layer = torch.nn.Linear(2, 2, bias=False)
    >>> _ = layer.weight.data.copy_(torch.tensor([[4.0, 0.0], [0.0, 1.0]]))
    >>> low_rank(layer, 1, exclude_head=False).model(torch.tensor([1.0, 1.0])).tolist()
    [4.0, 0.0]
    """
    measured = measure(model, "spectral", exclude_head)
    r = check_k(rank, max(len(layer.sizes) for layer in measured), "rank")
    return _at_rank(model, measured, r, Measured.pair, method=f"low rank {r}", chosen=True, factorise=factorise)


def random_rank(
    model: nn.Module, rank: int, *, seed: int, exclude_head: bool = True, factorise: bool = True
) -> Pruned:
    """The control of :func:`low_rank`: every layer projected on a random subspace of ``r`` dimensions.

    ``W ← Q Qᵀ W`` (or ``W Q Qᵀ`` where there are more outputs than inputs), the columns of Q an orthonormal basis of
    a uniformly drawn subspace of the smaller side. The rank is r, or that of W if it is less; with
    ``r = min(rows, columns)`` the projection is the identity. Norms shrink by about ``√(r / min(rows, columns))``.

    Parameters
    ----------
    seed : of numpy's generator; one seed gives one result. The global state is left alone.
    model, rank, exclude_head, factorise : as for :func:`low_rank`.

    Returns
    -------
    A record whose ``model`` is the copy; ``tail`` and ``beta`` of its layers are None: nothing was chosen by size.

    Raises
    ------
    InputError, UnsupportedLayerError, MissingDependencyError : as :func:`low_rank`; a seed that is no integer >= 0.

    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.ReLU(), torch.nn.Linear(5, 2))
    >>> thin = random_rank(net, 2, seed=0).model[0]
    >>> [tuple(part.weight.shape) for part in thin]
    [(2, 4), (5, 2)]
    """
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise InputError("seed", got=repr(seed), needed="an integer >= 0", fix="pass seed=0")
    measured = measure(model, "rows", exclude_head)
    r = check_k(rank, max(min(layer.matrix.shape) for layer in measured), "rank")
    generator = np.random.default_rng(seed)

    def project(layer: Measured, k: int) -> tuple[F64, F64]:
        m, n = layer.matrix.shape
        basis, _ = np.linalg.qr(generator.standard_normal((min(m, n), k)))
        return (basis, basis.T @ layer.matrix) if m <= n else (layer.matrix @ basis, basis.T)

    return _at_rank(model, measured, r, project, method=f"random rank {r}", chosen=False, factorise=factorise)


def _at_rank(
    model: nn.Module,
    measured: list[Measured],
    rank: int,
    pair: Callable[[Measured, int], tuple[F64, F64]],
    *,
    method: str,
    chosen: bool,
    factorise: bool,
) -> Pruned:
    """A copy in which every layer is ``A B`` with ``A, B = pair(layer, rank)``, as two layers or multiplied out."""
    made = copy.deepcopy(model)
    weights: dict[str, Any] = dict(made.named_parameters(remove_duplicate=False))
    layers: list[PrunedLayer] = []
    for layer in measured:
        m, n = layer.matrix.shape
        k = min(rank, m, n)
        size = k * (m + n) if factorise else min(k * (m + n), m * n)
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused by copy_values
            A, B = pair(layer, k)
            if factorise:
                made = replace_by_pair(made, layer.name, A, B)
            elif k < min(m, n):
                copy_values(weights[layer.name], A @ B, layer.name)
        if chosen:
            layers.append(layer.record(k, 1, size + layer.biases))
        else:
            whole = layer.matrix.size + layer.biases
            layers.append(PrunedLayer(layer.name, (m, n), k, min(m, n), None, None, size + layer.biases, whole))
    return Pruned(made, tuple(layers), method, 1, count_parameters(model))


# -- scale without structure ------------------------------------------------------------------------------------------


def scale_weights(model: nn.Module, factor: float) -> nn.Module:
    """A copy whose encoder has every weight matrix times ``s``, and the same predictions: logits times ``s^depth``.

    ``depth`` is the number of weight matrices before the head. A network of positively homogeneous layers passes a
    factor on, so the bias of layer l is multiplied by ``s^l`` and that of the head by ``s^depth``; the head's
    weight stays. In the Frobenius norm every encoder layer grows by exactly ``s``, in no other way: the control for
    "compression, not scale".

    Linear layers with nothing between (``W = A B``) are one matrix, whose last factor is scaled. Products are rounded
    to the dtype; for s a power of two nothing is rounded.

    Parameters
    ----------
    model : an ``nn.Sequential`` (nested ones too) of ``nn.Linear``, convolutions, ReLU, LeakyReLU, PReLU, pooling,
        flattening and dropout; the last weight is the head. What precedes the first weight is arbitrary, if it has
        no parameters: a normalisation of the input, say.
    factor : s, positive and finite.

    Raises
    ------
    InputError : a factor out of range, or one that takes weights out of the dtype's range; no layer before the head.
    UnsupportedLayerError : a layer that is not positively homogeneous, or used twice; not an ``nn.Sequential``.
    MissingDependencyError : torch is not installed.

    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    >>> x = torch.ones(1, 3)
    >>> bool(torch.equal(scale_weights(net, 2.0)(x), 2.0 * net(x)))
    True
    """
    s = _factor(factor)
    weight_parameters(model, exclude_head=False, exclude_first_conv=False)  # a module, and one with weights
    if len(_affine_groups(model)) < 2:
        raise InputError(
            "model", got="one linear layer, the head", needed="a layer before the head", fix="pass a deeper model"
        )
    made = copy.deepcopy(model)
    groups = _affine_groups(made)
    for depth, group in enumerate(groups):
        for path, layer in group:
            scaled = layer is group[-1][1] and depth < len(groups) - 1
            _times(layer.weight, s, 1 if scaled else 0, f"{path}.weight")
            if layer.bias is not None:
                _times(layer.bias, s, depth + scaled, f"{path}.bias")
    return made


def _factor(value: object) -> float:
    number = math.nan if isinstance(value, (bool, str)) or not hasattr(value, "__float__") else float(value)  # type: ignore[arg-type]  # __float__ was checked
    if not (math.isfinite(number) and number > 0.0):
        raise InputError("factor", got=repr(value), needed="a finite number > 0", fix="pass a positive factor")
    return number


def _times(parameter: Any, factor: float, power: int, name: str) -> None:
    """Multiply in place by ``factor^power``; what leaves the range of normal numbers is refused."""
    if power == 0:
        return
    torch = import_torch(PURPOSE)
    values = as_float64(parameter, name)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        product = values * np.float64(factor) ** power
    tiny = torch.finfo(parameter.dtype).tiny
    if bool(np.any((np.abs(values) >= tiny) & (np.abs(product) < tiny))):
        raise InputError(
            "factor", got=f"{factor:g}, for which {name} falls below the range of {parameter.dtype}",
            needed="a factor that keeps the digits of every weight", fix="take a factor nearer to 1",
        )  # fmt: skip
    copy_values(parameter, product, name)


def _affine_groups(model: nn.Module) -> list[list[tuple[str, Any]]]:
    """Layers with weights in order of use; those with nothing between that is not linear are one group."""
    nn_ = import_torch(PURPOSE).nn
    affine = (nn_.Linear, nn_.Conv1d, nn_.Conv2d, nn_.Conv3d)
    neutral = (nn_.Identity, nn_.Flatten, nn_.Unflatten, nn_.Dropout, nn_.Dropout1d, nn_.Dropout2d, nn_.Dropout3d)
    homogeneous = (
        nn_.ReLU, nn_.LeakyReLU, nn_.PReLU,
        nn_.MaxPool1d, nn_.MaxPool2d, nn_.MaxPool3d, nn_.AvgPool1d, nn_.AvgPool2d, nn_.AvgPool3d,
        nn_.AdaptiveMaxPool1d, nn_.AdaptiveMaxPool2d, nn_.AdaptiveMaxPool3d,
        nn_.AdaptiveAvgPool1d, nn_.AdaptiveAvgPool2d, nn_.AdaptiveAvgPool3d,
    )  # fmt: skip
    groups: list[list[tuple[str, Any]]] = []
    seen: set[int] = set()
    joined = False

    def visit(part: Any, path: str) -> None:
        nonlocal joined
        children = sequential_children(part)
        if children is not None:
            for name, child in children:
                visit(child, f"{path}.{name}" if path else name)
        elif type(part) in affine:
            weight = layer_weight(part, path)
            if id(weight) in seen or id(part.bias) in seen:
                raise _refused(path, "a layer that is used twice", "weights of its own for every layer")
            seen.update(id(p) for p in part.parameters())
            if not joined:
                groups.append([])
            groups[-1].append((path, part))
            joined = True
        elif type(part) not in neutral:
            before = not groups and not any(True for _ in part.parameters())
            if not before and type(part) not in homogeneous:
                raise _refused(path, f"a {type(part).__name__}", "layers that pass a positive factor on")
            joined = False

    visit(model, "")
    return groups


def _refused(path: str, got: str, needed: str) -> UnsupportedLayerError:
    return UnsupportedLayerError(
        path or "model", got=got, needed=needed, fix="write the model as an nn.Sequential of linear layers and ReLU"
    )
