"""Pruning: rows and filters, singular values, or single entries; one ε for all layers, or one ratio.

*ε-pruning* gives every layer the same tail ratio ε and solves for its k, so that a layer whose weight is spread out
keeps more than one whose weight is concentrated. A uniform ratio gives every layer the same share, whatever that
share holds; one threshold for all layers (``scope="global"``) can remove a layer altogether.

What is measured is the θ of the theory: for rows ``ν_i = ‖w_i‖_1``, for ranks the singular values, for single entries
their magnitudes. Every function returns a changed copy; the model that is given stays as it was.

Source: Barsbey, Ribeiro, Simsekli, Birdal, ICLR 2026, section 2 (compressibility) and its ε-pruning; Li et al.,
*Pruning Filters for Efficient ConvNets*, ICLR 2017 (filters by their ℓ1 norm).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import numpy as np

from certbound import text
from certbound.arrays import F64, I64, as_float64, power_of_two_scale
from certbound.compress.factorised import PURPOSE, copy_values, replace_by_pair
from certbound.compress.layers import as_matrix, weight_parameters
from certbound.compressibility import check_fraction, check_k, first_k, profile
from certbound.errors import InputError, NumericalError
from certbound.io.to_torch import import_torch
from certbound.types import SCHEMA_VERSION

if TYPE_CHECKING:
    from torch import nn

Kind = Literal["rows", "spectral", "unstructured"]
Scope = Literal["layer", "global"]

_BIAS_OF: Final = {"weight": "bias", "in_proj_weight": "in_proj_bias"}
_PROJECTIONS: Final = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
"""Of an nn.MultiheadAttention with inputs of different sizes; their biases lie in one vector, in this order."""


@dataclass(frozen=True)
class PrunedLayer:
    """What became of one weight.

    Parameters
    ----------
    name : of the weight in the given model. shape : (rows, columns) of its matrix.
    kept, total : units kept, and units there were: rows, singular values or entries.
    tail, beta : ``τ_{q,k}`` and the dispersion ``1 − θ_(k)/θ_(1)`` for k = kept, of the weight as it was given; None
        where units were not chosen by size. For kept = 0 they are 1 (0 for a zero weight) and 0.
    kept_parameters, total_parameters : with the biases; see :class:`Pruned`.
    """

    name: str
    shape: tuple[int, int]
    kept: int
    total: int
    tail: float | None
    beta: float | None
    kept_parameters: int
    total_parameters: int

    @property
    def collapsed(self) -> bool:
        """True if nothing is left: the layer's weight is zero."""
        return self.kept == 0

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "kept": self.kept,
            "total": self.total,
            "tail": self.tail,
            "beta": self.beta,
            "collapsed": self.collapsed,
            "kept_parameters": self.kept_parameters,
            "total_parameters": self.total_parameters,
        }


@dataclass(frozen=True, eq=False)
class Pruned:
    """A compressed copy of a model, and what was kept of each layer.

    Parameters are counted as they would be stored: rows without the removed ones and their biases, a matrix of rank k
    as ``k (rows + columns)`` numbers or as it is if that is less, single entries one by one without their places.
    Columns that read removed rows are counted: which they are is a matter of the model's architecture.

    Parameters
    ----------
    model : the compressed copy. layers : one record for each compressed weight, in registration order.
    method : what was done, in words. q : of the tails in ``layers``.
    total_parameters : of the whole model that was given, layers that are not compressed included.
    """

    model: nn.Module = field(repr=False)
    layers: tuple[PrunedLayer, ...]
    method: str
    q: int
    total_parameters: int

    @property
    def kept_parameters(self) -> int:
        """Parameters left in the whole model."""
        return self.total_parameters - sum(layer.total_parameters - layer.kept_parameters for layer in self.layers)

    @property
    def ratio(self) -> float:
        """The share of the whole model's parameters that was removed; below 0 where a factorisation added some."""
        return 1.0 - self.kept_parameters / self.total_parameters

    def __str__(self) -> str:
        header = ("layer", "shape", "kept", "of", "tail", "beta", "parameters", "of")
        rows = [
            (
                layer.name,
                "x".join(str(s) for s in layer.shape),
                str(layer.kept),
                str(layer.total),
                text.number(layer.tail),
                text.number(layer.beta),
                str(layer.kept_parameters),
                str(layer.total_parameters),
            )
            for layer in self.layers
        ]
        head = f"{self.method}: {self.kept_parameters} of {self.total_parameters} parameters kept"
        collapsed = [layer.name for layer in self.layers if layer.collapsed]
        notes = [f"nothing is left of {', '.join(collapsed)}"] if collapsed else []
        return "\n".join([head, text.table(rows, header), *notes])

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with ``schema_version``; the weights are not in it."""
        return {
            "schema_version": SCHEMA_VERSION,
            "method": self.method,
            "q": self.q,
            "kept_parameters": self.kept_parameters,
            "total_parameters": self.total_parameters,
            "ratio": self.ratio,
            "layers": [layer.to_dict() for layer in self.layers],
        }


# -- what may be removed ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Measured:
    """A weight matrix in float64 and the sizes of its units, ``sizes · scale``; ``scale`` a power of two.

    ``factors``: ``U, V^T`` of ``matrix / scale = U diag(sizes) V^T``, for singular values only.
    ``biases``: the number of bias parameters of its rows.
    """

    name: str
    kind: Kind
    matrix: F64
    sizes: F64
    scale: float
    factors: tuple[F64, F64] | None
    biases: int

    def parameters(self, k: int) -> int:
        """Parameters of the layer with k units kept, see :class:`Pruned`."""
        m, n = self.matrix.shape
        if self.kind == "rows":
            return k * n + k * (self.biases // m)
        return (min(k * (m + n), m * n) if self.kind == "spectral" else k) + self.biases

    def reduced(self, k: int) -> F64:
        """The matrix with its k largest units only; of equal ones the first are kept."""
        if self.factors is not None:
            left, right = self.factors
            return (left[:, :k] * self.sizes[:k]) @ right[:k] * self.scale
        kept = np.argsort(-self.sizes, kind="stable")[:k]
        units = self.matrix if self.kind == "rows" else self.matrix.reshape(-1)
        out = np.zeros_like(units)
        out[kept] = units[kept]
        return out.reshape(self.matrix.shape)

    def pair(self, k: int) -> tuple[F64, F64]:
        """``A = U_k Σ_k^½`` and ``B = Σ_k^½ V_k^T``: both factors have the spectral norm ``√σ_1``."""
        assert self.factors is not None  # of singular values only
        roots = np.sqrt(self.sizes[:k]) * np.sqrt(self.scale)
        return self.factors[0][:, :k] * roots, roots[:, None] * self.factors[1][:k]

    def record(self, k: int, q: int, kept_parameters: int | None = None) -> PrunedLayer:
        """The record for k units kept."""
        found = profile(self.sizes)
        tails = found.epsilon if q == 1 else found.epsilon_2
        whole = self.matrix.size + self.biases
        return PrunedLayer(
            name=self.name,
            shape=(self.matrix.shape[0], self.matrix.shape[1]),
            kept=k,
            total=len(self.sizes),
            tail=float(tails[k - 1]) if k else float(found.top > 0),
            beta=float(found.beta_kth[k - 1]) if k else 0.0,
            kept_parameters=self.parameters(k) if kept_parameters is None else kept_parameters,
            total_parameters=whole,
        )


def measure(model: nn.Module, kind: Kind, exclude_head: bool) -> list[Measured]:
    """Every weight that is compressed, with the sizes of its units.

    Raises
    ------
    InputError, UnsupportedLayerError : see :func:`certbound.compress.layers.weight_parameters`; NaN, infinite weights.
    NumericalError : an SVD did not converge.

    >>> import torch
    >>> layer = torch.nn.Linear(2, 2, bias=False)
    >>> _ = layer.weight.data.copy_(torch.tensor([[3.0, -1.0], [0.0, 2.0]]))
    >>> (found,) = measure(layer, "rows", exclude_head=False)
    >>> (found.sizes * found.scale).tolist()
    [4.0, 2.0]
    """
    weights = weight_parameters(model, exclude_head=exclude_head)
    found: list[Measured] = []
    for name, weight in weights.items():
        matrix = as_float64(as_matrix(weight), name)
        scale = power_of_two_scale(matrix)  # sums and the SVD stay clear of overflow
        scaled = matrix / scale
        factors = None
        if kind == "spectral":
            try:
                left, sizes, right = np.linalg.svd(scaled, full_matrices=False)
            except np.linalg.LinAlgError as error:
                raise NumericalError(f"{name}: the SVD did not converge") from error
            factors = (left, right)
        else:
            sizes = np.abs(scaled).sum(axis=1) if kind == "rows" else np.abs(scaled).reshape(-1)
        biases = sum(bias.numel() for bias in _row_biases(model, weight))
        found.append(Measured(name, kind, matrix, sizes, scale, factors, biases))
    return found


def _row_biases(model: nn.Module, weight: Any) -> list[Any]:
    """Biases with one entry for each row of a weight; those of all its layers where it is tied."""
    found: dict[int, Any] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        path, _, leaf = name.rpartition(".")
        if parameter is not weight or (leaf not in _BIAS_OF and leaf not in _PROJECTIONS):
            continue
        bias = getattr(model.get_submodule(path), _BIAS_OF.get(leaf, "in_proj_bias"), None)
        if bias is not None:
            first = _PROJECTIONS.index(leaf) * len(weight) if leaf in _PROJECTIONS else 0
            found[id(bias)] = bias.detach()[first : first + len(weight)]  # a view: what is written is kept
    return list(found.values())


def build(
    model: nn.Module, measured: Sequence[Measured], counts: Sequence[int], *, method: str, q: int, factorise: bool
) -> Pruned:
    """A copy of the model in which each measured weight keeps so many of its units.

    ``factorise``: a layer whose two thin factors have fewer parameters than it has becomes them.
    """
    made = copy.deepcopy(model)
    weights: dict[str, Any] = dict(made.named_parameters(remove_duplicate=False))
    layers: list[PrunedLayer] = []
    for layer, k in zip(measured, counts, strict=True):
        weight = weights[layer.name]
        m, n = layer.matrix.shape
        if factorise and 0 < k * (m + n) < m * n:
            made = replace_by_pair(made, layer.name, *layer.pair(k))
        elif k < len(layer.sizes):
            with np.errstate(over="ignore"):  # an overflow is refused by copy_values
                copy_values(weight, layer.reduced(k), layer.name)
            if layer.kind == "rows":
                _zero_biases(made, weight, np.argsort(-layer.sizes, kind="stable")[k:])
        layers.append(layer.record(k, q))
    return Pruned(made, tuple(layers), method, q, count_parameters(model))


def _zero_biases(model: nn.Module, weight: Any, rows: I64) -> None:
    torch = import_torch(PURPOSE)
    with torch.no_grad():
        for bias in _row_biases(model, weight):
            bias[torch.from_numpy(rows).to(bias.device)] = 0.0


def count_parameters(model: nn.Module) -> int:
    """Parameters of the whole model, shared ones once.

    >>> import torch
    >>> count_parameters(torch.nn.Linear(3, 2))
    8
    """
    return sum(p.numel() for p in model.parameters())


# -- one ε for all layers ---------------------------------------------------------------------------------------------


def epsilon_prune(
    model: nn.Module, epsilon: float, *, q: int = 1, by: Kind = "rows", exclude_head: bool = True
) -> Pruned:
    """Give every layer the same ε: keep the smallest k units with ``τ_{q,k}(θ) <= ε``, zero the others.

    ``θ`` are the row ℓ1 norms ``ν_i = ‖w_i‖_1`` (a filter of a convolution is a row). A removed row is zeroed with its
    bias; a row of zeros is removed at every ε, its constant output with it. No layer collapses: the largest unit
    always stays (of a zero weight the first one, k = 1).

    Parameters
    ----------
    model : any module; weights as :func:`certbound.compress.layers.weight_parameters` lists them, each on its own (the
        two factors of a low-rank layer too). A normalisation behind a removed row is left as it is.
    epsilon : the tail ratio, in [0, 1).
    q : 1 or 2, the norm of the tail ratio.
    by : ``"rows"``; ``"spectral"`` for singular values (see :func:`spectral_prune`), ``"unstructured"`` for entries.
    exclude_head : leave the last ``nn.Linear`` as it is.

    Raises
    ------
    InputError : ε outside [0, 1), another q or ``by``, no weight left to compress, weights that are not finite.
    UnsupportedLayerError : a weight that is no plain parameter.
    MissingDependencyError : torch is not installed.

    >>> import torch
    >>> layer = torch.nn.Linear(2, 3)
    >>> _ = layer.weight.data.copy_(torch.tensor([[6.0, 0.0], [-1.0, 0.0], [2.0, -1.0]]))
    >>> pruned = epsilon_prune(layer, 0.1, exclude_head=False)  # tails 0.4, 0.1, 0
    >>> pruned.layers[0].kept, pruned.model.weight.tolist()
    (2, [[6.0, 0.0], [0.0, 0.0], [2.0, -1.0]])
    """
    target = _below_one(epsilon, "epsilon")
    _check_q(q)
    measured = measure(model, check_kind(by, "by"), exclude_head)
    counts = [_smallest(layer.sizes, target, q) for layer in measured]
    return build(model, measured, counts, method=f"epsilon {target:g}, {by}", q=q, factorise=False)


def spectral_prune(
    model: nn.Module, epsilon: float, *, q: int = 1, exclude_head: bool = True, factorise: bool = False
) -> Pruned:
    """Give every layer the smallest rank k with ``τ_{q,k}(σ) <= ε``, by the truncated SVD.

    The truncated SVD is the best approximation of that rank (Eckart & Young 1936), and for q = 2 its error is
    ``‖W − W_k‖_F = τ_{2,k} ‖W‖_F``. Biases stay. A zero weight keeps k = 1. Singular values are those of LAPACK: at
    ε = 0 the rounding errors of a matrix of low rank count as singular values too.

    Parameters
    ----------
    model, epsilon, q, exclude_head : as in :func:`epsilon_prune`.
    factorise : replace a layer by two thin ones, ``W_k = A B``, where they have fewer parameters. Otherwise every
        weight keeps its shape, and has rank k up to its dtype's rounding.

    Raises
    ------
    InputError, UnsupportedLayerError, MissingDependencyError : as :func:`epsilon_prune`; with ``factorise`` also for
        layers that cannot be replaced, see :func:`certbound.compress.factorised.replace_by_pair`.
    NumericalError : an SVD did not converge.

    >>> import torch
    >>> layer = torch.nn.Linear(3, 3)
    >>> _ = layer.weight.data.copy_(torch.diag(torch.tensor([6.0, 3.0, 1.0])))
    >>> pruned = spectral_prune(layer, 0.1, exclude_head=False)  # tails 0.4, 0.1, 0
    >>> pruned.layers[0].kept, pruned.model.weight.diagonal().tolist()
    (2, [6.0, 3.0, 0.0])
    """
    target = _below_one(epsilon, "epsilon")
    _check_q(q)
    measured = measure(model, "spectral", exclude_head)
    counts = [_smallest(layer.sizes, target, q) for layer in measured]
    return build(model, measured, counts, method=f"epsilon {target:g}, spectral", q=q, factorise=factorise)


def _smallest(sizes: F64, target: float, q: int) -> int:
    found = profile(sizes)
    return first_k(found.epsilon if q == 1 else found.epsilon_2, target)


# -- one ratio for all layers -----------------------------------------------------------------------------------------


def uniform_prune(
    model: nn.Module, ratio: float, *, kind: Kind = "rows", scope: Scope = "layer", exclude_head: bool = True
) -> Pruned:
    """Remove the same share of every layer's units, or all units below one threshold.

    ``scope="layer"``: of d units the smallest ``round(ratio · d)`` (half to even) are removed, at least one stays.
    ``scope="global"``: the same rule for the units of all layers together, by their absolute sizes. This **can remove
    a layer altogether** (``PrunedLayer.collapsed``), and with it all that the network computes: layers differ in
    scale by more than their importance. :func:`epsilon_prune` cannot.

    Parameters
    ----------
    model, exclude_head : as in :func:`epsilon_prune`.
    ratio : the share of units removed, in [0, 1).
    kind : ``"rows"`` by ℓ1 norm, zeroed with their biases; ``"spectral"`` for singular values, ``"unstructured"`` for
        entries.

    Raises
    ------
    InputError, UnsupportedLayerError, NumericalError, MissingDependencyError : as :func:`epsilon_prune`.

    >>> import torch
    >>> layer = torch.nn.Linear(2, 2)
    >>> _ = layer.weight.data.copy_(torch.tensor([[1.0, -2.0], [3.0, 4.0]]))
    >>> uniform_prune(layer, 0.5, exclude_head=False).model.weight.tolist()
    [[0.0, 0.0], [3.0, 4.0]]
    >>> uniform_prune(layer, 0.25, kind="unstructured", exclude_head=False).model.weight.tolist()
    [[0.0, -2.0], [3.0, 4.0]]
    """
    share = _below_one(ratio, "ratio")
    measured = measure(model, check_kind(kind, "kind"), exclude_head)
    counts = _counting(measured, scope)(share)
    method = f"uniform ratio {share:g}, {kind}" + (", one threshold" if scope == "global" else "")
    return build(model, measured, counts, method=method, q=1, factorise=False)


def ratio_for_size(
    model: nn.Module,
    kept_parameters: int,
    *,
    kind: Kind = "rows",
    scope: Scope = "layer",
    exclude_head: bool = True,
) -> float:
    """The ratio at which :func:`uniform_prune` keeps as many parameters: for comparisons at equal size.

    A count need not be attainable, as whole units are removed: the ratio returned has the nearest one, the
    smaller of two. Layers of one width lose a unit at the same ratio, so that the steps are several units large.

    Parameters
    ----------
    kept_parameters : of the whole model, as ``Pruned.kept_parameters`` says.
    model, kind, scope, exclude_head : as for :func:`uniform_prune`.

    Raises
    ------
    InputError : more parameters than the model has, or fewer than any ratio below 1 leaves.

    >>> import torch
    >>> layer = torch.nn.Linear(2, 10)  # 3 parameters a row
    >>> ratio = ratio_for_size(layer, 12, exclude_head=False)
    >>> uniform_prune(layer, ratio, exclude_head=False).kept_parameters
    12
    """
    measured = measure(model, check_kind(kind, "kind"), exclude_head)
    counts = _counting(measured, scope)
    whole = count_parameters(model)
    others = whole - sum(layer.matrix.size + layer.biases for layer in measured)

    def size(ratio: float) -> int:
        return others + sum(layer.parameters(k) for layer, k in zip(measured, counts(ratio), strict=True))

    low, high = 0.0, float(np.nextafter(1.0, 0.0))
    wanted = _size(kept_parameters, size(high), whole)
    if wanted == whole:
        return low
    # the size falls with the ratio: size(low) > wanted >= size(high), down to neighbouring floats
    while low < (middle := 0.5 * (low + high)) < high:
        if size(middle) > wanted:
            low = middle
        else:
            high = middle
    return low if size(low) - wanted < wanted - size(high) else high


def _size(value: object, least: int, most: int) -> int:
    number = check_k(value, max(most, 1), "kept_parameters")
    if number < least:
        raise InputError(
            "kept_parameters",
            got=str(number),
            needed=f"an integer from {least} to {most}",
            fix="head, biases and one unit a layer stay at every ratio below 1",
        )
    return number


def _counting(measured: Sequence[Measured], scope: Scope) -> Callable[[float], list[int]]:
    """The function from the ratio to the number of units that each layer keeps."""
    if scope not in get_args(Scope):
        raise InputError("scope", got=repr(scope), needed="'layer' or 'global'", fix="pass one of these words")
    totals = [len(layer.sizes) for layer in measured]
    if scope == "layer":
        return lambda ratio: [_left(d, ratio) for d in totals]
    with np.errstate(over="ignore"):  # infinite sizes are the largest, which is right
        sizes = np.concatenate([layer.sizes * layer.scale for layer in measured])
    owners = np.repeat(np.arange(len(totals)), totals)[np.argsort(-sizes, kind="stable")]

    def counts(ratio: float) -> list[int]:
        return np.bincount(owners[: _left(len(owners), ratio)], minlength=len(totals)).tolist()

    return counts


def _left(total: int, ratio: float) -> int:
    return total - min(round(ratio * total), total - 1)


def _below_one(value: object, argument: str) -> float:
    number = check_fraction(value, argument)
    if number == 1.0:
        raise InputError(argument, got=repr(value), needed="a number in [0, 1)", fix="1 would remove everything")
    return number


def _check_q(q: object) -> None:
    if isinstance(q, bool) or not isinstance(q, (int, np.integer)) or q not in (1, 2):
        raise InputError("q", got=repr(q), needed="1 or 2", fix="the theorems use q = 1")


def check_kind(kind: object, argument: str) -> Kind:
    """Refuse anything but the three kinds of units.

    >>> check_kind("rows", "kind")
    'rows'
    """
    for word in get_args(Kind):
        if isinstance(kind, str) and kind == word:
            return word
    raise InputError(
        argument, got=repr(kind), needed="'rows', 'spectral' or 'unstructured'", fix="pass one of these words"
    )
