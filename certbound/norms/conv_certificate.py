"""What proves a norm of a convolution; checking needs numpy only, and no search.

* upper, norm 2: the symbol is evaluated again on the stored grid (``torus``), or ``s²I − AᵀA ⪰ 0`` is proved again
  (``cholesky``);
* lower, norm 2: ``‖A v‖ >= s ‖v‖`` for the stored v (``vector``);
* norm ∞: the rows are summed again (``rows``).

Proving an upper bound anew takes as long as its last step took. Source: :mod:`certbound.norms.conv_torus`,
:mod:`certbound.norms.conv_gram`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from certbound.arrays import F64, frozen
from certbound.bound import Bound, Claim
from certbound.certificate import Saveable, Stored, finish, take, take_array
from certbound.errors import CertificateError
from certbound.norms.conv_gram import proves_gram
from certbound.norms.conv_lanczos import proved_lower
from certbound.norms.conv_torus import Grid, symbol_of, torus_proves
from certbound.norms.convolution import (
    check_input_shape,
    conv_axes,
    conv_digest,
    enclose_conv_inf_norm,
    underflow_allowance,
    with_weight,
)
from certbound.norms.verified import Scaled
from certbound.rounding import check_arithmetic, down, up
from certbound.types import Quantity, Rigor, Sense, norm_name

if TYPE_CHECKING:
    from certbound.ops import Conv

_METHODS = {
    "torus": (
        "symbol on a twisted torus, Gram iteration",
        "Sedghi et al. 2019; Delattre et al. 2023 (Gram iteration); skew-circulant embedding",
    ),
    "cholesky": ("verified block Cholesky of s²I − AᵀA", "definition"),
    "vector": ("one vector: ‖Av‖/‖v‖ (Lanczos)", "definition"),
    "rows": ("largest row sum, rounded outward", "definition"),
}


def of_inputs(shape: tuple[int, ...]) -> str:
    """The assumption of every bound that depends on the size of its inputs: the digest says it, but to nobody's eye.

    >>> of_inputs((3, 32, 32))
    'inputs of shape (3, 32, 32)'
    """
    return f"inputs of shape {shape}"


@dataclass(frozen=True, eq=False)
class ConvNormCertificate(Saveable):
    """``value`` bounds the norm of the convolution ``subject`` on inputs of shape ``input_shape``, from ``sense``.

    ``norm``: 2 or ∞; ``method``: ``torus`` (with ``points`` and ``shifts`` of its grid), ``cholesky``, ``vector`` (with
    ``vector``), ``rows``; ``relative_error``: the claim is about every kernel within it of the stored one, entry by
    entry; ``parameters``: what the bound says beside its value, not proved anew.
    """

    kind: ClassVar[str] = "norm of a convolution"

    subject: str
    input_shape: tuple[int, ...]
    norm: float
    sense: Sense
    value: float
    method: str
    points: tuple[int, ...] = ()
    shifts: tuple[int, ...] = ()
    vector: F64 | None = None
    relative_error: float = 0.0
    parameters: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "sense", Sense(self.sense))
        if self.vector is not None:
            object.__setattr__(self, "vector", frozen(np.array(self.vector, dtype=np.float64)))

    @property
    def bound(self) -> Bound:
        """The claim, as a bound that carries this certificate."""
        method, source = _METHODS[self.method]
        claim = Claim(Quantity.OPERATOR_NORM, self.norm, self.norm, subject=self.subject)
        return Bound(
            self.value, claim, self.sense, Rigor.RIGOROUS, method, source, (of_inputs(self.input_shape),),
            parameters=self.parameters, certificate=self,
        )  # fmt: skip

    def verify(self, network_or_weights: object) -> bool:
        """Prove the bound anew for the layer: an ``ops.Conv`` or ``nn.Conv1d/2d/3d``.

        Raises CertificateError with the reason: no claim, another layer, a value that cannot be proved.
        """
        # imported here: it uses this module
        from certbound.norms.operator import as_conv

        check_arithmetic()
        conv = as_conv(network_or_weights)
        if conv is None:
            raise self._refusal("it is about a convolution, not a matrix")
        shape = check_input_shape(conv, self.input_shape)
        name = conv_digest(conv, shape)
        if name != self.subject:
            raise self._refusal(f"it is about the convolution {self.subject!r}, not {name!r}")
        if math.isnan(self.value) or self.value < 0.0 or not 0.0 <= self.relative_error < 1.0:
            raise self._refusal(f"value {self.value!r} with relative error {self.relative_error!r} is no claim")
        if not self.proves(conv):
            side = "an upper" if self.sense is Sense.UPPER else "a lower"
            raise self._refusal(f"{self.value!r} is not proved to be {side} bound of its {norm_name(self.norm)}-norm")
        return True

    def proves(self, conv: Conv) -> bool:
        """The mathematics of :meth:`verify`, for a layer whose digest was compared."""
        if self.value == (math.inf if self.sense is Sense.UPPER else 0.0):
            return True
        if self.value == math.inf:
            return False
        s = Scaled.of(conv.weight)
        lost = Fraction(underflow_allowance(s, conv, self.input_shape))
        scaled = Fraction(self.value) / Fraction(s.scale)
        conv = with_weight(conv, s.matrix)
        if self.sense is Sense.UPPER:
            exact = scaled - lost
            if exact < 0 or exact > 2**300:
                return exact > 0
            claimed = float(exact)
            return self._upper_holds(conv, claimed if Fraction(claimed) <= exact else down(claimed))
        exact = scaled + lost
        if exact > 2**300:
            return False
        claimed = float(exact)
        return self._lower_holds(conv, claimed if Fraction(claimed) >= exact else up(claimed))

    def _upper_holds(self, conv: Conv, value: float) -> bool:
        if math.isinf(self.norm):
            axes = conv_axes(conv, self.input_shape)
            return self.method == "rows" and value >= enclose_conv_inf_norm(conv, axes, self.relative_error)[1]
        if self.method == "cholesky":
            return proves_gram(conv, self.input_shape, value, relative_error=self.relative_error)
        if self.method != "torus":
            return False
        symbol, axes = symbol_of(conv, self.input_shape), len(self.input_shape) - 1
        if len(self.points) != axes or len(self.shifts) != axes or min(self.points) < 1 or max(self.points) > 2**16:
            raise self._refusal(f"a grid of {self.points} points, shifted by {self.shifts} quarters")
        grid = Grid(self.points, self.shifts)
        return torus_proves(symbol, grid, value, relative_error=self.relative_error)

    def _lower_holds(self, conv: Conv, value: float) -> bool:
        if math.isinf(self.norm):
            axes = conv_axes(conv, self.input_shape)
            return self.method == "rows" and value <= enclose_conv_inf_norm(conv, axes, self.relative_error)[0]
        if self.method != "vector" or self.vector is None:
            return False
        if self.vector.shape != self.input_shape:
            raise self._refusal(f"a vector of shape {self.vector.shape} for inputs of shape {self.input_shape}")
        return value <= proved_lower(conv, self.vector, times=1.0, relative_error=self.relative_error)

    def stored(self) -> Stored:
        """For :func:`certbound.certificate.to_bytes`."""
        fields = {
            "input_shape": list(self.input_shape),
            "method": self.method,
            "norm": norm_name(self.norm),
            "parameters": dict(self.parameters),
            "points": list(self.points),
            "relative_error": self.relative_error,
            "sense": str(self.sense),
            "shifts": list(self.shifts),
            "subject": self.subject,
            "value": self.value,
        }
        return Stored(self.kind, fields, {} if self.vector is None else {"vector": self.vector})

    @classmethod
    def restored(cls, stored: Stored) -> ConvNormCertificate:
        """From a file; CertificateError names the field that is wrong."""
        norm, sense, method = (take(stored, name, str) for name in ("norm", "sense", "method"))
        if norm not in {"2", "inf"} or sense not in {"upper", "lower"} or method not in _METHODS:
            raise CertificateError(f"{cls.kind}: norm {norm!r}, sense {sense!r}, method {method!r}")
        whole = {name: take(stored, name, list) for name in ("input_shape", "points", "shifts")}
        if any(type(v) is not int for values in whole.values() for v in values):
            raise CertificateError(f"{cls.kind}: input_shape, points and shifts are lists of integers")
        parameters = take(stored, "parameters", dict)
        if any(type(v) is not float for v in parameters.values()):
            raise CertificateError(f"{cls.kind}: parameters are numbers")
        result = cls(
            take(stored, "subject", str),
            tuple(whole["input_shape"]),
            float(norm),
            Sense(sense),
            take(stored, "value", float),
            method,
            tuple(whole["points"]),
            tuple(whole["shifts"]),
            take_array(stored, "vector") if "vector" in stored.arrays else None,
            take(stored, "relative_error", float),
            tuple(sorted(parameters.items())),
        )
        fields = (
            "input_shape", "method", "norm", "parameters", "points",
            "relative_error", "sense", "shifts", "subject", "value",
        )  # fmt: skip
        finish(stored, fields=fields, arrays=("vector",))
        return result

    def _refusal(self, reason: str) -> CertificateError:
        return CertificateError(f"{self.kind}: {reason}")
