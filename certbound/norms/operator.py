"""Operator norms of one layer, a matrix or a convolution, as bounds with certificates."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from certbound.arrays import F64, as_float64, as_matrix, is_torch
from certbound.bound import Bound
from certbound.errors import InputError, UnsupportedLayerError
from certbound.norms.bounds import matrix_norm_bound
from certbound.norms.conv_certificate import ConvNormCertificate
from certbound.norms.conv_gram import gram_cost, proves_gram
from certbound.norms.conv_lanczos import proved_lower, top_vector
from certbound.norms.conv_torus import best_torus, symbol_of
from certbound.norms.convolution import (
    check_input_shape,
    conv_axes,
    conv_digest,
    conv_output_shape,
    enclose_conv_inf_norm,
    underflow_allowance,
    with_weight,
)
from certbound.norms.dense import check_rigor, rescale
from certbound.norms.verified import Scaled
from certbound.rounding import check_arithmetic, down, up
from certbound.types import Rigor, Sense, parse_norm

if TYPE_CHECKING:
    from certbound.ops import Conv

_TIERS = ("fast", "tight")
_GOAL = 0.01  # the relative gap at which the tight tier stops
_AIR = 1.0 + 2.0**-36  # for another machine's sums
_LANCZOS = {"fast": 1e11, "tight": 2e12}  # operations of the search for a lower bound, beyond its first ten steps
_PROOF_SMALL = 2e9  # operations up to which Cholesky is always tried
_PROOF_LARGE = 2e13  # and in the tight tier
_PROOF_MEMORY = 6e9  # bytes


def operator_norm_upper(
    layer: object,
    norm: float | str = 2,
    input_shape: tuple[int, ...] | None = None,
    *,
    tier: str = "fast",
    rigor: Rigor | str | None = None,
) -> Bound:
    """Upper bound of the operator norm of the linear part of a layer, from norm to norm.

    Parameters
    ----------
    layer : a matrix, ``nn.Linear``, ``nn.Conv1d/2d/3d`` or ``certbound.ops.Conv``.
    norm : 2 or ∞.
    input_shape : (C, *spatial) of one input; a convolution's norm depends on it. A matrix needs none.
    tier : of the 2-norm of a convolution. ``"fast"``: the symbol on a twisted torus
        (:mod:`certbound.norms.conv_torus`). ``"tight"``: more tori, and a verified block Cholesky factorisation
        (:mod:`certbound.norms.conv_gram`) where the gap to the lower bound is above 1 % and it takes at most 2·10¹³
        operations and 6 GB; ``bound.parameters`` holds the lower bound and the gap that was reached. The fast tier
        factorises too where that takes less than 2·10⁹ operations. The ∞-norm is exact in both.
    rigor : rigorous unless ``"numerical"`` is asked; that matters for matrices only, convolutions are always rigorous.

    Raises
    ------
    InputError : with the argument's name. UnsupportedLayerError : transposed convolutions, subclasses, other modules.
    NumericalError : arithmetic that is not IEEE's.

    >>> from certbound.ops import Conv
    >>> layer = Conv([[[1.0, 1.0, 1.0]]], padding=((1, 1),))  # the matrix [[1, 1, 0], [1, 1, 1], [0, 1, 1]]
    >>> bound = operator_norm_upper(layer, 2, (1, 3))
    >>> bool(0 <= bound.value - (1 + 2**0.5) < 1e-9), bound.certificate.verify(layer)
    (True, True)
    >>> operator_norm_upper(layer, "inf", (1, 3)).value
    3.0
    """
    return _public(layer, norm, input_shape, Sense.UPPER, tier, rigor)


def operator_norm_lower(
    layer: object,
    norm: float | str = 2,
    input_shape: tuple[int, ...] | None = None,
    *,
    tier: str = "fast",
    rigor: Rigor | str | None = None,
) -> Bound:
    """Lower bound of the operator norm of the linear part of a layer; arguments as :func:`operator_norm_upper`.

    ``‖A v‖/‖v‖`` for a vector that Lanczos' iteration found, matrix-free; ``tier="tight"`` iterates longer.

    >>> from certbound.ops import Conv
    >>> layer = Conv([[[1.0, 1.0, 1.0]]], padding=((1, 1),))
    >>> bound = operator_norm_lower(layer, 2, (1, 3))
    >>> bool(0 <= 1 + 2**0.5 - bound.value < 1e-9), bound.certificate.verify(layer)
    (True, True)
    >>> operator_norm_lower([[3.0, 4.0]], 2).value
    5.0
    """
    return _public(layer, norm, input_shape, Sense.LOWER, tier, rigor)


def _public(
    layer: object, norm: float | str, input_shape: object, sense: Sense, tier: str, rigor: Rigor | str | None
) -> Bound:
    p = parse_norm(norm)
    word = Rigor.RIGOROUS if rigor is None else check_rigor(rigor)
    if tier not in _TIERS:
        raise InputError("tier", got=repr(tier), needed="'fast' or 'tight'", fix="tier='tight' for a gap below 1 %")
    conv = as_conv(layer)
    if conv is not None:
        return conv_norm_bound(conv, input_shape, p, sense, tier)
    W = _matrix(layer)
    shape = tuple(input_shape) if isinstance(input_shape, (tuple, list)) else (input_shape,)
    if input_shape is not None and shape[-1] != W.shape[1]:
        raise InputError(
            "input_shape",
            got=repr(input_shape),
            needed=f"(…, {W.shape[1]}), or nothing: the layer is a matrix of shape {W.shape}",
            fix="leave it out",
        )
    return matrix_norm_bound(W, p, sense, word)


def conv_norm_bound(
    conv: Conv, input_shape: object, norm: float, sense: Sense, tier: str = "fast", *, relative_error: float = 0.0
) -> Bound:
    """The bound of one convolution, for every kernel within ``relative_error`` of the stored one, entry by entry.

    A folded BatchNorm multiplies every output channel by a factor that is rounded: with ``relative_error`` 4·2⁻⁵³, say,
    the bound holds for the exact product.

    >>> from certbound.ops import Conv
    >>> low, high = (conv_norm_bound(Conv([[[3.0]]]), (1, 4), 2.0, s, relative_error=0.5).value for s in Sense)
    >>> bool(4.5 <= low < 4.51), bool(1.49 < high <= 1.5)
    (True, True)
    """
    check_arithmetic()
    if not 0.0 <= relative_error < 1.0:
        raise InputError(
            "relative_error", got=repr(relative_error), needed="a number in [0, 1)", fix="pass for instance 4 * 2**-53"
        )
    shape = check_input_shape(conv, input_shape)
    s = Scaled.of(conv.weight)
    scaled = with_weight(conv, s.matrix)
    lost = underflow_allowance(s, conv, shape)
    found = _Found(scaled, shape, relative_error)
    if math.isinf(norm):
        found.rows(sense)
    elif sense is Sense.UPPER:
        found.upper(tier)
    else:
        found.lower(tier)
    value = found.value
    if lost:
        value = up(value + lost) if sense is Sense.UPPER else max(0.0, down(value - lost))
    parameters = tuple((k, rescale(v, s.scale, Sense.LOWER) if k == "lower bound" else v) for k, v in found.parameters)
    return ConvNormCertificate(
        conv_digest(conv, shape), shape, norm, sense, rescale(value, s.scale, sense), found.method,
        found.points, found.shifts, found.vector, relative_error, parameters,
    ).bound  # fmt: skip


class _Found:
    """The search for one bound, in scaled units, and what it found."""

    def __init__(self, conv: Conv, shape: tuple[int, ...], relative_error: float) -> None:
        self.conv = conv
        self.shape = shape
        self.relative_error = relative_error
        self.value = math.inf
        self.method = "rows"
        self.points: tuple[int, ...] = ()
        self.shifts: tuple[int, ...] = ()
        self.vector: F64 | None = None
        self.parameters: tuple[tuple[str, float], ...] = ()

    def rows(self, sense: Sense) -> None:
        low, high = enclose_conv_inf_norm(self.conv, conv_axes(self.conv, self.shape), self.relative_error)
        self.value = high if sense is Sense.UPPER else low

    def lower(self, tier: str) -> None:
        self.method = "vector"
        self.value, self.vector = self._lower(tier)

    def _lower(self, tier: str) -> tuple[float, F64]:
        steps, tolerance = (40, 1e-4) if tier == "fast" else (200, 1e-7)
        outputs = math.prod(conv_output_shape(self.conv, self.shape)[1:])
        work = 4.0 * self.conv.weight.size * outputs  # of one step
        steps = max(10, min(steps, int(_LANCZOS[tier] / work)))
        v = top_vector(self.conv, self.shape, steps=steps, tolerance=tolerance)
        return proved_lower(self.conv, v, relative_error=self.relative_error), v

    def upper(self, tier: str) -> None:
        if not self.conv.weight.any():
            self.value, self.method = 0.0, "cholesky"
            return
        flops, memory = gram_cost(self.conv, self.shape)
        tight = tier == "tight"
        low = self._lower(tier)[0] if tight or flops <= _PROOF_SMALL else 0.0
        self.method = "torus"
        bound, grid = best_torus(
            symbol_of(self.conv, self.shape),
            thorough=tight,
            relative_error=self.relative_error,
            known=low,
        )
        self.value, self.points, self.shifts = up(bound * _AIR), grid.points, grid.shifts
        limit = _PROOF_LARGE if tight else _PROOF_SMALL
        if low > 0.0 and self.value > low * (1.0 + _GOAL) and flops <= limit and memory <= _PROOF_MEMORY:
            self._prove(low)
        if tight:
            self.parameters = (("gap", self.value / low - 1.0 if low else math.inf), ("lower bound", low))

    def _prove(self, low: float) -> None:
        """The first of a few values above the lower bound that Cholesky proves."""
        for step in (0.1, 0.3, 0.8, 2.0, 5.0):
            s = low * (1.0 + _GOAL * step)
            if s >= self.value:
                return
            if proves_gram(self.conv, self.shape, s, relative_error=self.relative_error):
                self.value, self.method, self.points, self.shifts = s, "cholesky", (), ()
                return


# ---------------------------------------------------------------- reading layers


def as_conv(layer: object) -> Conv | None:
    """The convolution, or None for what is to be read as a matrix; UnsupportedLayerError for other modules."""
    # imported here: certbound.ops reads activations, which matrices do without
    from certbound.ops import Conv as Operation

    if isinstance(layer, Operation):
        return layer
    return _torch_conv(layer) if is_torch(layer, "Module") else None


def _torch_conv(module: Any) -> Conv | None:
    # torch is loaded: `module` is one of its modules
    from certbound.io import torch_module as tm
    from certbound.ops import Conv as Operation

    cls = tm._exact_class(module)
    # the identical class only: a subclass, or a forward put on the layer itself, may compute anything
    plain = not {"forward", "_conv_forward"} & vars(module).keys()
    if not plain or cls not in (*tm._LINEAR, tm.nn.Conv1d, tm.nn.Conv2d, tm.nn.Conv3d):
        raise UnsupportedLayerError(
            "layer",
            got=f"a {cls.__name__}" + ("" if plain else " with a forward of its own"),
            needed="nn.Linear or nn.Conv1d, nn.Conv2d, nn.Conv3d themselves, no subclass and no transposed convolution",
            fix="if you know what it computes, pass a certbound.ops.Conv with its weight",
        )
    tm._refuse_opaque(module)
    if cls in tm._LINEAR:
        return None
    kernel, dilation = module.kernel_size, module.dilation
    if module.padding == "same":  # torch puts the odd one at the end
        totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        padding = tuple((t // 2, t - t // 2) for t in totals)
    else:
        pads = (0,) * len(kernel) if module.padding == "valid" else module.padding
        padding = tuple((p, p) for p in pads)
    return Operation(
        as_float64(tm._effective(module, "weight", "layer"), "layer.weight"), None, tuple(module.stride), padding,
        tuple(dilation), module.groups, module.padding_mode,
    )  # fmt: skip


def _matrix(layer: object) -> F64:
    from certbound.ops import Linear

    if isinstance(layer, Linear):
        return layer.weight
    if is_torch(layer, "Linear"):
        from certbound.io.torch_module import _effective

        layer = _effective(layer, "weight", "layer")  # type: ignore[arg-type]  # an nn.Linear, by the line above
    return as_matrix(layer, "layer")
