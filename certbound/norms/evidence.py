"""What proves a norm of one matrix: a claimed value, and for ``‖W‖_2`` from below a vector. Checking needs no SVD.

* upper ``‖W‖_2 <= s``: ``s² I − W Wᵀ ⪰ 0`` by a verified Cholesky factorisation, or ``‖W‖_F`` or ``√(‖W‖_1 ‖W‖_∞)``;
* lower ``‖W‖_2 >= s``: ``‖W v‖ >= s ‖v‖`` for the stored v;
* ``‖W‖_∞``, ``‖W‖_1``, ``‖W‖_F``: summed again.

Source: certbound theory, section 6.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import numpy as np

from certbound.arrays import F64, as_matrix, digest, frozen
from certbound.bound import Bound, Claim
from certbound.certificate import Saveable, Stored, finish, take, take_array
from certbound.errors import CertificateError, InputError
from certbound.network import Network, affine_layers, as_network
from certbound.norms import verified
from certbound.rounding import check_arithmetic, down, enclose_norm, up
from certbound.types import Quantity, Rigor, Sense, norm_name

_NAMES = {2.0: "spectral", math.inf: "inf", 1.0: "one", None: "Frobenius"}


@dataclass(frozen=True, eq=False)
class NormCertificate(Saveable):
    """``value`` bounds the norm of the matrix with digest ``subject`` from the side ``sense``.

    ``norm``: 2, ∞ or 1 for the operator norm, None for Frobenius; ``vector``: v for a lower bound of ``‖W‖_2``.

    >>> certificate = NormCertificate(digest(np.eye(2)), 2.0, Sense.UPPER, 1.0)
    >>> certificate.verify(np.eye(2))
    True
    >>> NormCertificate(digest(np.eye(2)), 2.0, Sense.UPPER, 0.999).verify(np.eye(2))
    Traceback (most recent call last):
        ...
    certbound.errors.CertificateError: operator norm: 0.999 is not proved to be an upper bound of the spectral norm
    """

    kind: ClassVar[str] = "operator norm"

    subject: str
    norm: float | None
    sense: Sense
    value: float
    vector: F64 | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "sense", Sense(self.sense))
        if self.vector is not None:
            object.__setattr__(self, "vector", frozen(np.array(self.vector, dtype=np.float64)))

    @property
    def bound(self) -> Bound:
        """The claim, as a bound that carries this certificate."""
        quantity = Quantity.FROBENIUS_NORM if self.norm is None else Quantity.OPERATOR_NORM
        method = {
            2.0: "verified Cholesky of s²I − WWᵀ" if self.sense is Sense.UPPER else "one vector: ‖Wv‖/‖v‖",
            math.inf: "largest row sum, rounded outward",
            1.0: "largest column sum, rounded outward",
            None: "sum of squares, rounded outward",
        }[self.norm]
        claim = Claim(quantity, self.norm, self.norm, subject=self.subject)
        return Bound(self.value, claim, self.sense, Rigor.RIGOROUS, method, "definition", certificate=self)

    def verify(self, network_or_weights: object) -> bool:
        """Prove the bound anew, with numpy only.

        ``network_or_weights``: the matrix, or a network that has it as the weight of a layer. Raises CertificateError
        with the reason: NaN, a norm that is none, another matrix, a value that cannot be proved.
        """
        check_arithmetic()
        if self.norm not in _NAMES or math.isnan(self.value) or self.value < 0.0:
            raise self._refusal(f"norm {self.norm!r} with value {self.value!r} is no claim")
        W = self._matrix(network_or_weights)
        if not self.proves(W):
            raise self._refusal(
                f"{self.value!r} is not proved to be {'an upper' if self.sense is Sense.UPPER else 'a lower'} bound "
                f"of the {_NAMES[self.norm]} norm"
            )
        return True

    def proves(self, W: F64) -> bool:
        """The mathematics of :meth:`verify` for a matrix whose digest was compared."""
        return self._upper_holds(W) if self.sense is Sense.UPPER else self._lower_holds(W)

    def stored(self) -> Stored:
        """For :func:`certbound.certificate.to_bytes`."""
        fields = {
            "norm": "Frobenius" if self.norm is None else norm_name(self.norm),
            "sense": str(self.sense),
            "subject": self.subject,
            "value": self.value,
        }
        return Stored(self.kind, fields, {} if self.vector is None else {"vector": self.vector})

    @classmethod
    def restored(cls, stored: Stored) -> NormCertificate:
        """From a file; CertificateError names the field that is wrong."""
        words: dict[str, float | None] = {"2": 2.0, "inf": math.inf, "1": 1.0, "Frobenius": None}
        norm, sense = take(stored, "norm", str), take(stored, "sense", str)
        if norm not in words or sense not in {"upper", "lower"}:
            raise CertificateError(f"operator norm: norm {norm!r}, sense {sense!r}")
        vector = take_array(stored, "vector", ndim=1) if "vector" in stored.arrays else None
        result = cls(take(stored, "subject", str), words[norm], Sense(sense), take(stored, "value", float), vector)
        finish(stored, fields=("norm", "sense", "subject", "value"), arrays=("vector",))
        return result

    def _refusal(self, reason: str) -> CertificateError:
        return CertificateError(f"{self.kind}: {reason}")

    def _matrix(self, given: object) -> F64:
        candidates: list[F64] = []
        try:
            candidates = [as_matrix(given)]
        except InputError:
            network = given if isinstance(given, Network) else as_network(given)
            candidates = [affine.weight for _, affine in affine_layers(network.layers)]
        for W in candidates:
            if digest(W) == self.subject:
                return W
        raise self._refusal(
            f"it is about the matrix {self.subject!r}, not " + " or ".join(repr(digest(W)) for W in candidates)
        )

    def _scaled_value(self, scale: float) -> Fraction:
        return Fraction(self.value) / Fraction(scale)

    def _upper_holds(self, W: F64) -> bool:
        if self.value == math.inf:
            return True
        if self.norm != 2.0:
            return self.value >= _sums(W, self.norm)[1]
        s = verified.Scaled.of(W)
        exact = self._scaled_value(s.scale) - Fraction(s.lost)
        if exact < 0 or exact > 2**300:
            return exact > 0
        claimed = float(exact)  # to nearest: one step down makes it a floor
        claimed = claimed if Fraction(claimed) <= exact else down(claimed)
        if min(W.shape) == 1 or verified.monomial(s.matrix) is not None:
            bounds = verified.monomial(s.matrix)
            return bounds is not None and claimed >= bounds[1]
        return claimed >= verified.easy_upper(s.matrix) or verified.proves_upper(s.matrix, claimed)

    def _lower_holds(self, W: F64) -> bool:
        if self.value == math.inf:
            return False
        if self.norm != 2.0:
            return self.value <= _sums(W, self.norm)[0]
        s = verified.Scaled.of(W)
        exact = self._scaled_value(s.scale) + Fraction(s.lost)
        if exact > 2**300:
            return False
        claimed = float(exact)
        claimed = claimed if Fraction(claimed) >= exact else up(claimed)
        bounds = verified.monomial(s.matrix)
        if bounds is not None and claimed <= bounds[0]:
            return True
        v = np.zeros(W.shape[1]) if self.vector is None else self.vector
        if v.shape != (W.shape[1],):
            raise self._refusal(f"a vector of shape {v.shape} for a matrix of shape {W.shape}")
        return claimed <= verified.spectral_lower(s.matrix, v, times=1.0)


def _sums(W: F64, norm: float | None) -> verified.Enclosure:
    """The enclosure of a norm that is a sum, each sum rounded once whatever its length."""
    s = verified.Scaled.of(W)
    if norm is None:
        return s.back(*enclose_norm(s.matrix, exact=True))
    return verified.enclose_inf_norm(W, exact=True) if math.isinf(norm) else verified.enclose_one_norm(W, exact=True)
