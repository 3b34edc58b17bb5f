"""One row of a layer report: what Theorem 3.1 and the true norms say of one weight.

See :mod:`certbound.theorems.layer_numbers` for the two readings of a convolution and for what is proved.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from certbound import text
from certbound.arrays import F64
from certbound.compressibility import Dispersion
from certbound.norms.convolution import with_weight
from certbound.norms.dense import rescale
from certbound.norms.operator import operator_norm_lower, operator_norm_upper
from certbound.ops import Conv, Linear, Shape
from certbound.theorems import layer_numbers as numbers
from certbound.theorems.layer_numbers import Numbers
from certbound.theorems.theorem31 import Theorem31Part, check_theorem31
from certbound.types import Rigor, Sense

ReadingName = Literal["matrix", "filters", "operator"]

READINGS: dict[ReadingName, str] = {
    "matrix": "guaranteed: the matrix is the layer's operator (on each vector, where it is applied to several)",
    "filters": "NO guarantee for the layer: the paper's statistic, of the out x (in · kernel) matrix, is no operator",
    "operator": "guaranteed: the convolution as the linear map of the whole image, padding and stride included",
}
"""What each reading promises."""


@dataclass(frozen=True)
class Settings:
    """How every row is measured."""

    tier: str
    rigor: Rigor
    dispersion: Dispersion
    share: float | None


@dataclass(frozen=True)
class Reading:
    """One matrix that a weight is read as.

    ``shape``: (outputs, inputs); ``norm_2``, ``norm_inf``: (lower, upper) bounds of its norms; ``rigor``: of these two
    (those of convolutions are always rigorous; Theorem 3.1's numbers have their own).
    """

    name: ReadingName
    shape: tuple[int, int]
    frobenius: float
    norm_2: tuple[float, float]
    norm_inf: tuple[float, float]
    spectral: Numbers
    neuron: Numbers
    rigor: Rigor

    @property
    def guaranteed(self) -> bool:
        """True where the numbers bound the layer's own norms."""
        return self.name != "filters"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "reading": self.name,
            "guaranteed": self.guaranteed,
            "meaning": READINGS[self.name],
            "shape": list(self.shape),
            "frobenius": text.json_number(self.frobenius),
            "norm_2": [text.json_number(v) for v in self.norm_2],
            "norm_inf": [text.json_number(v) for v in self.norm_inf],
            "rigor": str(self.rigor),
            "spectral": self.spectral.to_dict(),
            "neuron": self.neuron.to_dict(),
        }


@dataclass(frozen=True)
class Alignment:
    """``A_2`` and ``A_∞`` of a matrix with the one before it; None where not defined or too large, as ``note`` says."""

    two: float | None
    inf: float | None
    note: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"A_2": text.json_number(self.two), "A_inf": text.json_number(self.inf), "note": self.note}


@dataclass(frozen=True)
class LayerRow:
    """One weight.

    ``name``: path of the layer; ``parameters``: names of the model's parameters in it; ``shape``: of the weight;
    ``input_shape``, ``output_shape``: of the layer, without the batch axis; ``kind``: what it is; ``operator``: the
    reading with a guarantee; ``filters``: of convolutions, the kernel matrix, without one; ``with_batchnorm``: upper
    bounds (2, ∞) of the convolution and the BatchNorm behind it (and factors before it, such as a normalisation of the
    input) as one map, which is what enters the network's bound.
    """

    name: str
    parameters: tuple[str, ...]
    shape: tuple[int, ...]
    kind: str
    input_shape: Shape = ()
    output_shape: Shape = ()
    operator: Reading | None = None
    filters: Reading | None = None
    with_batchnorm: tuple[float, float] | None = None
    alignment: Alignment | None = None
    seconds: float = field(default=0.0, compare=False)

    @property
    def readings(self) -> tuple[Reading, ...]:
        """Filters first, where there are any."""
        return tuple(r for r in (self.filters, self.operator) if r is not None)

    @property
    def factor_2(self) -> float | None:
        """Upper bound of the operator norm over the kernel matrix's: how far the filters' statistic is below."""
        return self._factor("norm_2")

    @property
    def factor_inf(self) -> float | None:
        """The same in ℓ∞, where both are exact."""
        return self._factor("norm_inf")

    def _factor(self, which: str) -> float | None:
        if self.filters is None or self.operator is None:
            return None
        below: float = getattr(self.filters, which)[1]
        above: float = getattr(self.operator, which)[1]
        return above / below if below > 0.0 else 1.0

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        joined = self.with_batchnorm
        return {
            "name": self.name,
            "parameters": list(self.parameters),
            "shape": list(self.shape),
            "kind": self.kind,
            "input_shape": list(self.input_shape),
            "output_shape": list(self.output_shape),
            "filters": None if self.filters is None else self.filters.to_dict(),
            "operator": None if self.operator is None else self.operator.to_dict(),
            "operator_over_kernel": {"2": text.json_number(self.factor_2), "inf": text.json_number(self.factor_inf)},
            "with_batchnorm": None if joined is None else [text.json_number(v) for v in joined],
            "alignment": None if self.alignment is None else self.alignment.to_dict(),
            "seconds": self.seconds,
        }


# ---------------------------------------------------------------- one matrix


def matrix_reading(name: ReadingName, weight: F64, settings: Settings) -> Reading:
    """Theorem 3.1 of one matrix, of any size.

    >>> import numpy as np
    >>> settings = Settings("fast", Rigor.NUMERICAL, "kth", None)
    >>> reading = matrix_reading("matrix", np.array([[3.0, 0.0], [0.0, 1.0]]), settings)
    >>> reading.norm_2, reading.norm_inf, reading.spectral.epsilon
    ((3.0, 3.0), (3.0, 3.0), 0.25)
    """
    shape = (weight.shape[0], weight.shape[1])
    if settings.rigor is Rigor.RIGOROUS:
        sizes = {"spectral": min(shape), "neuron": shape[0]}
        k = {part: numbers.k_of(settings.share, size) for part, size in sizes.items()}
        report = check_theorem31(weight, k=k, dispersion=settings.dispersion, rigor=settings.rigor)
        spectral, neuron = _of_part(report.spectral), _of_part(report.neuron)
        two, inf = report.spectral.norm_interval, report.neuron.norm_interval
        assert two is not None and inf is not None  # rigorous reports have them
        return Reading(name, shape, report.spectral.frobenius_norm, two, inf, spectral, neuron, Rigor.RIGOROUS)
    scaled, scale = numbers.moderate(weight)
    rows = numbers.matrix_rows(scaled)
    sigma = numbers.Weighted.of(numbers.matrix_singular_values(scaled))
    spectral = numbers.spectral_numbers(sigma, min(shape), rows.frobenius, settings.share, settings.dispersion)
    neuron = numbers.neuron_numbers(rows, settings.share, settings.dispersion)
    spectral, neuron = numbers.rescaled(spectral, scale), numbers.rescaled(neuron, scale)
    frobenius = rescale(rows.frobenius, scale, Sense.UPPER)
    two, inf = (spectral.norm, spectral.norm), (neuron.norm, neuron.norm)
    return Reading(name, shape, frobenius, two, inf, spectral, neuron, Rigor.NUMERICAL)


def _of_part(part: Theorem31Part) -> Numbers:
    """A rigorous part of :func:`check_theorem31`; its norm is the upper end."""
    assert part.norm_interval is not None
    return Numbers(
        part.part, part.k, part.epsilon, part.beta, True, part.norm_interval[1], part.bound.value, part.sharp.value,
        part.lower.value, part.vacuous, Rigor.RIGOROUS, part.k_row, part.epsilon_row,
    )  # fmt: skip


# ---------------------------------------------------------------- one convolution


LOWER_SIZE = 56
"""Images are cut to this size where the fast tier looks for a lower bound of a norm."""


def lower_shape(conv: Conv, input_shape: Shape, tier: str) -> Shape:
    """Of a zero-padded convolution a smaller image whose operator's norm is at most the layer's; else the shape itself.

    Take the inputs in the first n' <= n places of every axis and the outputs that the convolution has at size n'.
    Output j reads the places ``j s + d t − low``; those beyond n' hold 0 in both, those before 0 are padding in both:
    the operator at n' is a submatrix of the one at n, and its norm is no larger. ∎

    >>> lower_shape(Conv([[[[1.0]]]]), (1, 224, 40), "fast"), lower_shape(Conv([[[1.0]]]), (1, 224), "tight")
    ((1, 56, 40), (1, 224))
    """
    if tier != "fast" or conv.padding_mode != "zeros":
        return input_shape
    spans = [d * (k - 1) + 1 for d, k in zip(conv.dilation, conv.kernel, strict=True)]
    return (input_shape[0], *(min(n, max(LOWER_SIZE, span)) for n, span in zip(input_shape[1:], spans, strict=True)))


def operator_reading(
    conv: Conv, input_shape: Shape, settings: Settings, upper: Callable[[float], float] | None = None
) -> Reading:
    """Theorem 3.1 of the operator of a convolution at an input shape (C, *spatial).

    Norms from :func:`certbound.operator_norm_upper` and ``_lower`` (rigorous); of Theorem 3.1 the neuron part with the
    exact rows, the spectral part with exact singular values where windows do not overlap, one-sided at k = 1 elsewhere
    (both numerical). ``upper``: gives an upper bound of the 2-norm from a lower one, where the caller knows a way.
    """
    lower_2 = operator_norm_lower(conv, 2, lower_shape(conv, input_shape, settings.tier), tier=settings.tier).value
    if upper is None:
        upper_2 = operator_norm_upper(conv, 2, input_shape, tier=settings.tier).value
    else:
        upper_2 = upper(lower_2)
    norm_inf = (
        operator_norm_lower(conv, math.inf, input_shape).value,
        operator_norm_upper(conv, math.inf, input_shape).value,
    )
    out = conv.output_shape((1, *input_shape))[1:]
    shape = (math.prod(out), math.prod(input_shape))
    size = min(shape)
    scaled, scale = numbers.moderate(conv.weight)
    unit = conv if scale == 1.0 else with_weight(conv, scaled)
    rows = numbers.conv_rows(unit, input_shape)
    if numbers.windows_apart(conv):
        sigma = numbers.apart_singular_values(unit, math.prod(out[1:]), size)
        spectral = numbers.spectral_numbers(sigma, size, rows.frobenius, settings.share, settings.dispersion)
    else:
        zeros = conv.padding_mode == "zeros" or not any(map(any, conv.padding))
        moment = numbers.fourth_moment(unit, out[1:]) if zeros else None
        spectral = numbers.one_sided_spectral(upper_2 / scale, size, rows.frobenius, moment)
    neuron = numbers.neuron_numbers(rows, settings.share, settings.dispersion)
    return Reading(
        "operator", shape, rescale(rows.frobenius, scale, Sense.UPPER), (lower_2, upper_2), norm_inf,
        numbers.rescaled(spectral, scale), numbers.rescaled(neuron, scale), Rigor.RIGOROUS,
    )  # fmt: skip


# ---------------------------------------------------------------- rows


def linear_row(op: Linear, parameters: tuple[str, ...], name: str, inputs: Shape, settings: Settings) -> LayerRow:
    """The row of a Linear; ``inputs``: shape of its input without the batch axis."""
    vectors = math.prod(inputs[:-1])
    return LayerRow(
        name, parameters, tuple(op.weight.shape), "linear" if vectors == 1 else f"linear on {vectors} vectors", inputs,
        op.output_shape((1, *inputs))[1:], matrix_reading("matrix", op.weight, settings),
    )  # fmt: skip


def conv_row(
    op: Conv,
    parameters: tuple[str, ...],
    name: str,
    inputs: Shape,
    settings: Settings,
    *,
    joined: tuple[float, float] | None = None,
    upper: Callable[[float], float] | None = None,
) -> LayerRow:
    """The row of a convolution with both readings; ``joined``: its norms with BatchNorm; ``upper``: as above."""
    kind = f"conv{len(op.kernel)}d {'x'.join(map(str, op.kernel))}"
    kind += f", stride {'x'.join(map(str, op.stride))}" if any(s > 1 for s in op.stride) else ""
    kind += f", {op.groups} groups" if op.groups > 1 else ""
    return LayerRow(
        name, parameters, tuple(op.weight.shape), kind, inputs, op.output_shape((1, *inputs))[1:],
        operator_reading(op, inputs, settings, upper), matrix_reading("filters", op.matrix, settings), joined,
    )  # fmt: skip


__all__ = [
    "Alignment", "LayerRow", "READINGS", "Reading", "Settings", "conv_row", "linear_row", "matrix_reading",
    "operator_reading",
]  # fmt: skip
