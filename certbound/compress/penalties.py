"""Penalties on the weights: terms of the loss, and exact proximal steps where they are known.

All take the weights of :mod:`certbound.compress.layers` (head and first convolution excluded, a filter is a row)
and sum over layers. What each does with a layer stored as a product ``W = A B`` of two ``nn.Linear``: the nuclear
norm and the alignment act on the product, all others on A and on B.

Source: Barsbey et al., ICLR 2026 (nuclear norm, group lasso, scale-invariant row sparsity; dispersion and alignment
are the quantities of its Theorems 3.1 and 3.2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import pairwise
from numbers import Real
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from certbound.compress.factorised import PURPOSE
from certbound.compress.layers import (
    as_matrix,
    check_finite,
    check_module,
    layer_weight,
    sequential_children,
    weight_groups,
    weight_parameters,
)
from certbound.errors import InputError, UnsupportedLayerError
from certbound.io.to_torch import import_torch
from certbound.types import parse_norm

if TYPE_CHECKING:
    import torch
    from torch import nn


# ---------------------------------------------------------------- norms with gradients


def row_norms(matrix: torch.Tensor) -> torch.Tensor:
    """``‖w_i‖_2`` of every row, differentiable, the gradient of a zero row being 0.

    Rows are divided by their largest magnitude first, so that no square over- or underflows.

    >>> import torch
    >>> row_norms(torch.tensor([[3e30, -4e30], [0.0, 0.0]])).tolist() == [torch.tensor(5e30).item(), 0.0]
    True
    """
    torch = import_torch(PURPOSE)
    top = matrix.detach().abs().amax(dim=1)
    scale = torch.where(top > 0, top, torch.ones_like(top))
    return scale * torch.linalg.vector_norm(matrix / scale[:, None], dim=1)


def frobenius_norm(matrix: torch.Tensor) -> torch.Tensor:
    """``‖W‖_F``, differentiable, with gradient 0 at W = 0.

    >>> import torch
    >>> frobenius_norm(torch.tensor([[3.0, 0.0], [0.0, -4.0]])).item()
    5.0
    """
    return row_norms(row_norms(matrix)[None, :])[0]


def _matrices(module: nn.Module, exclude_head: bool) -> list[torch.Tensor]:
    """One matrix per stored weight."""
    weights = weight_parameters(module, exclude_head=exclude_head)
    for name, weight in weights.items():
        check_finite(name, weight)
    return [as_matrix(weight) for weight in weights.values()]


def _total(terms: list[torch.Tensor]) -> torch.Tensor:
    torch = import_torch(PURPOSE)
    return torch.stack(terms).sum()


# ---------------------------------------------------------------- sparsity


def l1_penalty(module: nn.Module, *, exclude_head: bool = True) -> torch.Tensor:
    """``Σ_l Σ_ij |w_ij|``, differentiable; the gradient at 0 is 0.

    Parameters
    ----------
    module : any module; see :func:`certbound.compress.layers.weight_parameters`, also for what is raised.
    exclude_head : leave out the last ``nn.Linear``. The first convolution is always left out.

    Raises
    ------
    InputError, UnsupportedLayerError : no weights that can be compressed; NaN or infinite weights.

    >>> import torch
    >>> layer = torch.nn.Linear(2, 1)
    >>> _ = layer.weight.data.copy_(torch.tensor([[3.0, -4.0]]))
    >>> l1_penalty(layer, exclude_head=False).item()
    7.0
    """
    return _total([w.abs().sum() for w in _matrices(module, exclude_head)])


def group_lasso_penalty(module: nn.Module, *, exclude_head: bool = True) -> torch.Tensor:
    """``Σ_l Σ_i ‖w_i‖_2`` over the rows (output neurons, filters), differentiable; 0 is a zero row's gradient.

    Parameters and errors as in :func:`l1_penalty`.

    >>> import torch
    >>> layer = torch.nn.Linear(2, 2)
    >>> _ = layer.weight.data.copy_(torch.tensor([[3.0, -4.0], [0.0, 2.0]]))
    >>> group_lasso_penalty(layer, exclude_head=False).item()
    7.0
    """
    return _total([row_norms(w).sum() for w in _matrices(module, exclude_head)])


def row_sparsity_penalty(module: nn.Module, *, exclude_head: bool = True) -> torch.Tensor:
    """``Σ_l Σ_i ‖w_i‖_2 / ‖W‖_F``: group lasso that no rescaling of a layer changes; a zero layer counts 0.

    Between 1 (one row) and √rows (equal rows) for each layer, so it measures how few rows carry the layer.
    Parameters and errors as in :func:`l1_penalty`.

    >>> import torch
    >>> layer = torch.nn.Linear(1, 2)
    >>> _ = layer.weight.data.copy_(torch.tensor([[3.0], [4.0]]))
    >>> round(row_sparsity_penalty(layer, exclude_head=False).item(), 6)
    1.4
    """
    return _total([_row_sparsity(w) for w in _matrices(module, exclude_head)])


def _row_sparsity(matrix: torch.Tensor) -> torch.Tensor:
    torch = import_torch(PURPOSE)
    rows = row_norms(matrix)
    whole = frobenius_norm(matrix)
    # 0/1 at a zero layer: value and gradient are 0
    return (rows / torch.where(whole > 0, whole, torch.ones_like(whole))).sum()


def dispersion_penalty(module: nn.Module, *, share: float = 0.05, exclude_head: bool = True) -> torch.Tensor:
    """``Σ_l Var(‖w_i‖_2, i in the top rows)``: what keeps the dispersion β of the largest rows low.

    Top rows: the ⌈share · rows⌉ of largest ℓ2 norm, at least 2, if the layer has 2. The variance is that of the
    population (divided by the count), so a layer of one row counts 0. Differentiable where the selection is unique.

    Parameters
    ----------
    share : in (0, 1]. Others as in :func:`l1_penalty`.

    Raises
    ------
    InputError : share outside (0, 1]; see also :func:`l1_penalty`.

    >>> import torch
    >>> layer = torch.nn.Linear(1, 3)
    >>> _ = layer.weight.data.copy_(torch.tensor([[1.0], [-5.0], [3.0]]))
    >>> dispersion_penalty(layer, exclude_head=False).item()  # of 5 and 3
    1.0
    """
    if isinstance(share, bool) or not isinstance(share, Real) or not 0 < share <= 1:
        raise InputError("share", got=repr(share), needed="a number in (0, 1]", fix="0.05 is the top 5 % of the rows")
    return _total([_top_variance(row_norms(w), float(share)) for w in _matrices(module, exclude_head)])


def _top_variance(norms: torch.Tensor, share: float) -> torch.Tensor:
    rows = len(norms)
    # 0.07 · 100 is 7.000000000000001 in floating point, and 7 rows are meant
    count = min(rows, max(2, math.ceil(share * rows * (1 - 1e-12))))
    return norms.topk(count).values.var(correction=0)


# ---------------------------------------------------------------- spectrum


def nuclear_norm_penalty(module: nn.Module, *, exclude_head: bool = True) -> torch.Tensor:
    """``Σ_l ‖W^l‖_*``, the sum of all singular values of all layers, differentiable.

    Where W has full rank, the gradient is ``U Vᵀ`` of the thin SVD ``W = U S Vᵀ``; at a zero singular
    value the norm has a kink and one subgradient is returned (0 at W = 0). For a layer that is a product
    ``W = A B`` of ``nn.Linear`` in an ``nn.Sequential`` the norm is that of the product.

    Parameters
    ----------
    module : any module; see :func:`certbound.compress.layers.weight_groups`, also for what is raised.
    exclude_head : leave out the last linear map, whose few rows carry the classes.

    Raises
    ------
    InputError, UnsupportedLayerError : no weights that can be compressed; NaN or infinite weights.

    >>> import torch
    >>> layer = torch.nn.Linear(2, 2, bias=False)
    >>> _ = layer.weight.data.copy_(torch.diag(torch.tensor([3.0, -4.0])))
    >>> nuclear_norm_penalty(torch.nn.Sequential(layer), exclude_head=False).item()
    7.0
    """
    torch = import_torch(PURPOSE)
    terms: list[Any] = []
    for group in weight_groups(module, exclude_head=exclude_head):
        for name, weight in group.items():
            check_finite(name, weight)
        singular = torch.linalg.svdvals(_product([as_matrix(w) for w in group.values()]))
        # a singular value that is exactly 0 gets no gradient
        terms.append(torch.where(singular > 0, singular, torch.zeros_like(singular)).sum())
    return _total(terms)


def _product(factors: list[Any]) -> Any:
    """``W_last … W_first``; the first factor is applied first."""
    product = factors[0]
    for factor in factors[1:]:
        product = factor @ product
    return product


# ---------------------------------------------------------------- alignment


def alignment_penalty(module: nn.Module, *, norm: object = 2, exclude_head: bool = True) -> torch.Tensor:
    """The mean of an upper bound of ``A_p(l) = max_D ‖B D A‖_p / (‖B‖_p ‖A‖_p)`` over adjacent layers ``A``, ``B``.

    D ranges over the diagonal matrices with entries in [0, 1]. Differentiable (almost everywhere), between 0
    and 1, and unchanged by rescaling a layer. Every entry of ``B D A`` is at most that of
    ``M = max(Σ_m [b_im a_mj]_+, Σ_m [b_im a_mj]_−) = (|B| |A| + |B A|) / 2`` in magnitude. The bounds:

    * p = ∞: ``‖M‖_∞``, the decoupled bound;
    * p = 2: the smallest of ``‖M‖_2`` and the closed-form points of the one-hidden-layer SDP for the pair and for its
      transpose, with both matrices divided by their norms: ``‖B (2I − A Aᵀ)^(−1/2)‖_2``, ``‖(2I − Bᵀ B)^(−1/2) A‖_2``.
      Both are between ‖B‖‖A‖/√2 and ‖B‖‖A‖; ``‖M‖_2`` may be lower or higher.

    One encoder layer, or a pair with no path through its hidden layer (a zero layer): 0, with gradient 0.

    Parameters
    ----------
    module : an ``nn.Sequential`` in which all layers between two ``nn.Linear`` are element-wise with slopes in [0, 1]
        (ReLU, ReLU6, LeakyReLU, Hardtanh, Tanh, Sigmoid), Identity, Dropout or Flatten. Products ``W = A B`` of
        ``nn.Linear`` are multiplied out. Anything may stand before the first ``nn.Linear``.
    norm : 2 or ∞. exclude_head : leave out the last linear map.

    Raises
    ------
    UnsupportedLayerError : other layers between two ``nn.Linear``; containers other than ``nn.Sequential``.
    InputError : another norm; no linear layer besides the head; shapes that do not chain; NaN or infinite weights.

    Source: certbound theory, section 3; Barsbey et al., ICLR 2026, Theorem 3.2.

    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(1, 2), torch.nn.ReLU(), torch.nn.Linear(2, 1))
    >>> _ = net[0].weight.data.copy_(torch.tensor([[1.0], [-1.0]]))
    >>> _ = net[2].weight.data.fill_(1.0)
    >>> alignment_penalty(net, norm="inf", exclude_head=False).item()  # |x|: half of the product of norms
    0.5
    """
    torch = import_torch(PURPOSE)
    bound = _alignment_inf if math.isinf(parse_norm(norm)) else _alignment_2
    maps = _chain(check_module(module))
    if exclude_head:
        maps = maps[:-1]
    if not maps:
        raise InputError(
            "module",
            got="no linear layer besides the head",
            needed="a layer of the encoder",
            fix="pass exclude_head=False or a deeper model",
        )
    terms: list[Any] = [_pair_bound(bound, B, A) for A, B in pairwise(maps)]
    if not terms:
        return _zero(maps[0])
    return torch.stack(terms).mean()


def _pair_bound(bound: Callable[[Any, Any], Any], B: Any, A: Any) -> Any:
    used = (B.detach() != 0).any(dim=0) & (A.detach() != 0).any(dim=1)
    if not bool(used.any()):  # no path through the hidden layer: 0, where norms have no gradient
        return _zero(B, A)
    # largest entry 1, so that no square over- or underflows; a constant factor changes neither A_p nor its gradient
    return bound(*(W / W.detach().abs().amax() for W in (B, A)))


def _zero(*matrices: torch.Tensor) -> torch.Tensor:
    """0 that depends on the matrices, so that ``backward()`` works on it."""
    zero: Any = sum(0.0 * matrix.reshape(-1)[0] for matrix in matrices)
    return zero


def _alignment_inf(B: Any, A: Any) -> Any:
    B, A = (W / W.abs().sum(dim=1).amax() for W in (B, A))
    return _decoupled(B, A).sum(dim=1).amax()


def _alignment_2(B: Any, A: Any) -> Any:
    torch = import_torch(PURPOSE)
    B, A = (W / _spectral_norm(W) for W in (B, A))
    bounds = _closed_form(B, A), _closed_form(A.mT, B.mT), _spectral_norm(_decoupled(B, A))
    return torch.stack(bounds).amin()


def _spectral_norm(W: Any) -> Any:
    """From the smaller Gram matrix: faster than an SVD, and as exact for the largest singular value."""
    torch = import_torch(PURPOSE)
    gram = W @ W.mT if W.shape[0] <= W.shape[1] else W.mT @ W
    return torch.linalg.eigvalsh(gram).amax().sqrt()


def _decoupled(B: Any, A: Any) -> Any:
    """``max(Σ_m [b_im a_mj]_+, Σ_m [b_im a_mj]_−)``: max(u, v) = (u + v + |u − v|) / 2."""
    return (B.abs() @ A.abs() + (B @ A).abs()) / 2


def _closed_form(B: Any, A: Any) -> Any:
    """``‖B (2I − A Aᵀ)^(−1/2)‖_2`` for ‖A‖_2 = 1; the matrix in brackets has eigenvalues in [1, 2]."""
    torch = import_torch(PURPOSE)
    Y = 2.0 * torch.eye(len(A), dtype=A.dtype, device=A.device) - A @ A.mT
    half = torch.linalg.solve_triangular(torch.linalg.cholesky(Y), B.mT, upper=False)
    return _spectral_norm(half)


def _leaves(part: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    children = sequential_children(part)
    if children is None:
        yield path, part
    for name, child in children or ():
        yield from _leaves(child, f"{path}.{name}")


def _chain(module: nn.Module) -> list[torch.Tensor]:
    """The linear maps of a chain, products multiplied out; refuses what is no slope in [0, 1] between two of them."""
    nn_ = import_torch(PURPOSE).nn
    maps: list[Any] = []
    joined = False  # nothing but linear maps since the last one
    foreign: UnsupportedLayerError | None = None  # matters only if another nn.Linear follows
    for path, leaf in _leaves(module, "module"):
        if any(True for _ in leaf.children()):
            raise _unsupported(path, leaf)
        if isinstance(leaf, nn_.Linear):
            if foreign is not None:
                raise foreign
            weight = layer_weight(leaf, path)
            check_finite(f"{path}.weight", weight)
            _check_chains(path, weight, maps)
            if joined:
                maps[-1] = weight @ maps[-1]
            else:
                maps.append(weight)
            joined = True
        elif not isinstance(leaf, (nn_.Identity, nn_.Dropout)):
            joined = False
            if maps and not _slopes_in_0_1(nn_, leaf):
                foreign = _unsupported(path, leaf)
    return maps


def _slopes_in_0_1(nn_: Any, leaf: Any) -> bool:
    if isinstance(leaf, nn_.LeakyReLU):
        return 0 <= leaf.negative_slope <= 1
    return isinstance(leaf, (nn_.ReLU, nn_.ReLU6, nn_.Hardtanh, nn_.Tanh, nn_.Sigmoid, nn_.Flatten))


def _check_chains(path: str, weight: Any, maps: list[Any]) -> None:
    if maps and weight.shape[1] != maps[-1].shape[0]:
        raise InputError(
            path,
            got=f"{weight.shape[1]} inputs after {maps[-1].shape[0]} outputs",
            needed="layers that chain",
            fix="pass a model that runs on vectors",
        )


def _unsupported(path: str, leaf: nn.Module) -> UnsupportedLayerError:
    return UnsupportedLayerError(
        path,
        got=f"a {type(leaf).__name__}",
        needed="an nn.Sequential with activations of slope in [0, 1] between its nn.Linear",
        fix="write the model as such a chain, or train without the alignment penalty",
    )


# ---------------------------------------------------------------- proximal steps


def shrink_singular_values(weight: torch.Tensor, threshold: float) -> torch.Tensor:
    """Soft-threshold the singular values: ``U max(S − τ, 0) Vᵀ``, the proximal map of ``τ ‖·‖_*``.

    It minimises ``½‖X − W‖_F² + τ‖X‖_*`` over X exactly (Cai, Candès & Shen 2010, theorem 2.1).

    Raises
    ------
    InputError : a threshold that is negative or not finite; no matrix; NaN or infinite weights.

    >>> import torch
    >>> shrink_singular_values(torch.diag(torch.tensor([3.0, 1.0])), 2.0).abs()
    tensor([[1., 0.],
            [0., 0.]])
    """
    torch = import_torch(PURPOSE)
    tau = _threshold(threshold)
    _check_matrix(weight)
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    return (u * (s - tau).clamp_min(0.0)) @ vh


def shrink_rows(weight: torch.Tensor, threshold: float) -> torch.Tensor:
    """``w_i ↦ max(0, 1 − τ/‖w_i‖_2) w_i``, the proximal map of ``τ Σ_i ‖w_i‖_2``: rows of norm up to τ become zero.

    Source: Yuan & Lin 2006; Parikh & Boyd 2014, section 6.5.1. Raises InputError as :func:`shrink_singular_values`.

    >>> import torch
    >>> shrink_rows(torch.tensor([[6.0, 8.0], [0.0, 1.0]]), 5.0)
    tensor([[3., 4.],
            [0., 0.]])
    """
    torch = import_torch(PURPOSE)
    tau = _threshold(threshold)
    _check_matrix(weight)
    norms = row_norms(weight)
    divisor = torch.where(norms > 0, norms, torch.ones_like(norms))  # a zero row stays zero
    return weight * ((norms - tau).clamp_min(0.0) / divisor)[:, None]


def l1_proximal_step(module: nn.Module, threshold: float, *, exclude_head: bool = True) -> None:
    """Soft-threshold every weight in place: ``w ↦ sign(w) max(|w| − τ, 0)``, the proximal map of ``τ Σ|w|``.

    Frozen weights (``requires_grad=False``) are left alone, here and in the other proximal steps.

    Raises
    ------
    InputError : a threshold that is negative or not finite; all weights frozen; see also :func:`l1_penalty`.

    >>> import torch
    >>> layer = torch.nn.Linear(2, 1)
    >>> _ = layer.weight.data.copy_(torch.tensor([[-3.0, 0.5]]))
    >>> l1_proximal_step(layer, 1.0, exclude_head=False)
    >>> layer.weight.tolist()
    [[-2.0, 0.0]]
    """
    torch = import_torch(PURPOSE)
    tau = _threshold(threshold)
    weights = weight_parameters(module, exclude_head=exclude_head)
    _step(weights, partial(torch.nn.functional.softshrink, lambd=tau))


def group_lasso_proximal_step(module: nn.Module, threshold: float, *, exclude_head: bool = True) -> None:
    """Apply :func:`shrink_rows` in place to every weight. Raises as :func:`l1_proximal_step`.

    >>> import torch
    >>> layer = torch.nn.Linear(2, 1)
    >>> _ = layer.weight.data.copy_(torch.tensor([[6.0, 8.0]]))
    >>> group_lasso_proximal_step(layer, 5.0, exclude_head=False)
    >>> layer.weight.tolist()
    [[3.0, 4.0]]
    """
    tau = _threshold(threshold)
    _step(weight_parameters(module, exclude_head=exclude_head), lambda matrix: shrink_rows(matrix, tau))


def nuclear_norm_proximal_step(module: nn.Module, threshold: float, *, exclude_head: bool = True) -> None:
    """Apply :func:`shrink_singular_values` in place to every weight.

    Why a proximal step and no loss term: subgradient steps never make a singular value exactly zero (they
    jitter around it), while this step does, and it may be taken every k steps with k times the threshold,
    which costs 1/k of the decompositions.

    Raises
    ------
    UnsupportedLayerError : a layer given as a product ``W = A B``: the proximal map of ‖A B‖_* is no
        function of the factors.
    InputError : as :func:`l1_proximal_step`.

    >>> import torch
    >>> layer = torch.nn.Linear(2, 2)
    >>> _ = layer.weight.data.copy_(torch.diag(torch.tensor([3.0, 1.0])))
    >>> nuclear_norm_proximal_step(layer, 2.0, exclude_head=False)
    >>> nuclear_norm_penalty(layer, exclude_head=False).item()
    1.0
    """
    tau = _threshold(threshold)
    groups = weight_groups(module, exclude_head=exclude_head)
    for group in groups:
        if len(group) != 1:
            raise UnsupportedLayerError(
                "module",
                got=f"a layer made of {len(group)} nn.Linear ({', '.join(group)})",
                needed="one nn.Linear per layer",
                fix="use either a low rank or a nuclear norm, or nuclear_norm_penalty as a term of the loss",
            )
    weights = {name: weight for group in groups for name, weight in group.items()}
    _step(weights, lambda matrix: shrink_singular_values(matrix, tau))


def _step(weights: Mapping[str, nn.Parameter], shrink: Callable[[Any], Any]) -> None:
    torch = import_torch(PURPOSE)
    trained = {name: weight for name, weight in weights.items() if weight.requires_grad}
    if not trained:
        raise InputError(
            "module",
            got=f"{len(weights)} weights, all frozen",
            needed="a weight that requires a gradient",
            fix="call module.requires_grad_(True), or train without this penalty",
        )
    for name, weight in trained.items():  # before the first is changed
        check_finite(name, weight)
    with torch.no_grad():
        for weight in trained.values():
            weight.copy_(shrink(as_matrix(weight)).reshape(weight.shape))


def _check_matrix(weight: torch.Tensor) -> None:
    check_finite("weight", weight)
    if weight.ndim != 2 or weight.numel() == 0:
        raise InputError(
            "weight", got=f"shape {tuple(weight.shape)}", needed="a matrix with entries", fix="pass as_matrix(weight)"
        )


def _threshold(threshold: object) -> float:
    if isinstance(threshold, bool) or not isinstance(threshold, Real):
        raise InputError("threshold", got=repr(threshold), needed="a number", fix="pass step × strength")
    value = float(threshold)
    if not math.isfinite(value) or value < 0:
        raise InputError("threshold", got=repr(threshold), needed="a finite number >= 0", fix="pass step × strength")
    return value


PENALTIES: Final[Mapping[str, Callable[..., torch.Tensor]]] = MappingProxyType(
    {
        "l1": l1_penalty,
        "nuclear": nuclear_norm_penalty,
        "group-lasso": group_lasso_penalty,
        "row-sparsity": row_sparsity_penalty,
        "dispersion": dispersion_penalty,
        "alignment-2": partial(alignment_penalty, norm=2),
        "alignment-inf": partial(alignment_penalty, norm=math.inf),
    }
)
"""Every penalty by name: ``(module, *, exclude_head=True) -> scalar tensor``."""

PROXIMAL_STEPS: Final[Mapping[str, Callable[..., None]]] = MappingProxyType(
    {
        "l1": l1_proximal_step,
        "nuclear": nuclear_norm_proximal_step,
        "group-lasso": group_lasso_proximal_step,
    }
)
"""The proximal maps known in closed form: ``(module, threshold, *, exclude_head=True) -> None``, in place."""
