"""The product of norms: the oldest Lipschitz bound, and the ceiling of every other one here.

``Lip_p(f) <= Π_l ‖W^l‖_p``, since ReLU is 1-Lipschitz in every p-norm.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, cast

import numpy as np

from certbound.arrays import F64, digest
from certbound.bound import Bound, Claim, Result, compose, multiply_up
from certbound.certificate import Saveable, Stored, finish, take
from certbound.errors import CertificateError, NumericalError
from certbound.graph import Graph, read_model
from certbound.network import Network, as_network
from certbound.norms.bounds import matrix_norm_bound
from certbound.norms.dense import check_rigor, induced_norm, row_dual_norms
from certbound.norms.evidence import NormCertificate
from certbound.norms.verified import enclose_dual_norm, enclose_frobenius_norm, enclose_inf_norm
from certbound.rounding import U, check_arithmetic, down, up
from certbound.types import GLOBAL, Quantity, Rigor, Sense, Status, norm_name, parse_norm

Outputs = str | int | tuple[int, int]

_AIR = 1.0 + 2.0**-20
"""Errors are published a little larger: another machine's rounding of them must not refuse a certificate."""


def error_norm(error: F64 | None, norm: float) -> float:
    """Bound of the operator norm of every matrix within ``error``, entry by entry (None: exact); ``‖·‖_F`` for ℓ2.

    >>> error_norm(np.array([[3.0, 4.0]]), 2.0), error_norm(np.array([[3.0, 4.0]]), math.inf)
    (5.0, 7.0)
    """
    if error is None:
        return 0.0
    return (enclose_inf_norm(error) if math.isinf(norm) else enclose_frobenius_norm(error))[1]


def proves_norm(W: F64, norm: float, value: float, off: float = 0.0) -> bool:
    """True proves ``‖W‖_p + off <= value``, without an SVD. A value below ``off`` proves nothing.

    >>> proves_norm(np.eye(2), 2.0, 1.6, 0.5), proves_norm(np.eye(2), 2.0, 1.4, 0.5)
    (True, False)
    >>> proves_norm(np.zeros((2, 2)), 2.0, 0.1, 0.5)
    False
    """
    if value == math.inf:
        return True
    rest = value if off == 0.0 else down(value - off)
    return rest >= 0.0 and NormCertificate(digest(W), norm, Sense.UPPER, rest).proves(W)


def _widened(value: float, error: float) -> float:
    return value if error == 0.0 else up(value + _AIR * error)


def layer_bound(
    W: F64, norm: float, subject: str = "", rigor: Rigor = Rigor.NUMERICAL, error: F64 | None = None
) -> Bound:
    """``‖W‖_p`` of one layer as a bound; rigorous: of every matrix within ``error``, entry by entry, of W."""
    if rigor is Rigor.RIGOROUS:
        bound = matrix_norm_bound(W, norm, Sense.UPPER, rigor, subject=subject)
        if error is None:
            return bound
        value = _widened(bound.value, error_norm(error, norm))
        return Bound(value, bound.claim, bound.sense, rigor, f"{bound.method}, with the error of folding", bound.source)
    method = "largest row sum" if math.isinf(norm) else "largest singular value (LAPACK)"
    claim = Claim(Quantity.OPERATOR_NORM, norm, norm, subject=subject)
    return Bound(induced_norm(W, norm), claim, Sense.UPPER, Rigor.NUMERICAL, method, "definition")


def functional_bound(
    c: F64,
    norm: float,
    outputs: Outputs,
    rigor: Rigor = Rigor.NUMERICAL,
    error: F64 | None = None,
) -> Bound:
    """``‖c‖_{p*}`` of one output row or difference of rows: its norm as a map from ``‖·‖_p`` to R.

    Rigorous: of every row within ``error``, entry by entry, of c.
    """
    claim = Claim(Quantity.OPERATOR_NORM, norm, norm, outputs=outputs)
    method = f"dual norm of a row (p = {norm_name(norm)})"
    if rigor is Rigor.RIGOROUS:
        # a difference of rows may overflow
        value = enclose_dual_norm(c, norm)[1] if bool(np.all(np.isfinite(c))) else math.inf
        if error is not None and value < math.inf:
            value = _widened(value, enclose_dual_norm(error, norm)[1])
        return Bound(value, claim, Sense.UPPER, rigor, f"{method}, rounded outward", "Hölder")
    scale = float(np.max(np.abs(c), initial=0.0)) or 1.0
    value = math.nextafter(float(row_dual_norms((c / scale)[None], norm)[0]) * scale, math.inf) if c.any() else 0.0
    return Bound(value, claim, Sense.UPPER, Rigor.NUMERICAL, method, "Hölder")


def product_of_norms(
    weights: tuple[F64, ...],
    norm: float,
    subject: str,
    rigor: Rigor = Rigor.NUMERICAL,
    errors: Sequence[F64 | None] | None = None,
) -> Bound:
    """``Π_l ‖W^l‖_p`` over the matrices given; the empty product is the identity's constant 1."""
    if not weights:
        claim = Claim(Quantity.LIPSCHITZ, norm, norm, subject=subject)
        return Bound(1.0, claim, Sense.UPPER, Rigor.RIGOROUS, "identity", "definition")
    off = (None,) * len(weights) if errors is None else errors
    return compose(*(layer_bound(w, norm, "", rigor, e) for w, e in zip(weights, off, strict=True)), subject=subject)


def output_row(network: Network, outputs: Outputs) -> F64:
    """The row of the head that an output index or a pair ``(j, y)`` (``f_j − f_y``) selects; no ReLU may follow it."""
    if network.chain.final_relu:
        raise AssertionError("rows of the head select outputs only in an open-ended network")
    head = network.chain.head
    if isinstance(outputs, tuple):
        with np.errstate(over="ignore"):  # ±∞ then: every bound of it is ∞
            return head[outputs[0]] - head[outputs[1]]
    assert isinstance(outputs, int)  # "all" is handled by the callers
    return head[outputs]


def row_error(network: Network, outputs: Outputs) -> F64 | None:
    """Entrywise error of :func:`output_row`: a difference is rounded once, and folded rows are off themselves."""
    folded = network.chain.errors[-1]
    if not isinstance(outputs, tuple):
        return None if folded is None else folded[int(outputs)]
    # a rounded difference is off by u times itself; subnormal ones are exact, and 0 is only the difference of equals
    row = np.abs(output_row(network, outputs))
    rounding = np.where(row == 0.0, 0.0, np.nextafter(row * U, math.inf))
    return rounding if folded is None else (rounding + folded[outputs[0]] + folded[outputs[1]]) * (1 + 4 * U)


def product_bound(network: Network, norm: float, outputs: Outputs = "all", rigor: Rigor = Rigor.NUMERICAL) -> Bound:
    """Product of norms of the whole network, of one output, or of one margin ``f_j − f_y``."""
    if outputs == "all":
        chain = network.chain
        return product_of_norms(chain.weights, norm, network.digest, rigor, chain.errors)
    network = network.open_ended
    chain = network.chain
    functional = functional_bound(output_row(network, outputs), norm, outputs, rigor, row_error(network, outputs))
    if not chain.encoder:
        return compose(functional, subject=network.digest)
    layers = (layer_bound(w, norm, "", rigor, e) for w, e in zip(chain.encoder, chain.errors, strict=False))
    return compose(*layers, functional, subject=network.digest)


def proved_product(network: Network, norm: float, outputs: Outputs, norms: Sequence[float]) -> float:
    """The product of ``norms``, one a layer, each proved anew; CertificateError if one is too small.

    The last is the head's, or that of the row that ``outputs`` selects (of an open-ended network).

    >>> proved_product(Network.from_weights([[[3.0]], [[-2.0]]]), 2.0, "all", [3.0, 2.0]).__round__(9)
    6.0
    """
    chain = network.chain
    last: tuple[F64, F64 | None] = (chain.head, chain.errors[-1])
    if outputs != "all":
        last = (output_row(network, outputs)[None], row_error(network, outputs))
    layers = [*zip(chain.encoder, chain.errors, strict=False), last]
    if len(norms) != len(layers):
        raise CertificateError(f"{len(norms)} norms for {len(layers)} layers")
    total = 1.0
    for i, ((W, error), value) in enumerate(zip(layers, norms, strict=True)):
        functional = i == len(norms) - 1 and outputs != "all"
        off = 0.0
        if error is not None and value < math.inf:  # ∞ needs no proof, and a difference of rows may be ∞ itself
            off = enclose_dual_norm(error, norm)[1] if functional else error_norm(error, norm)
        # a row's dual norm is the operator norm of a one-row matrix, in ℓ2 as in ℓ∞
        if not proves_norm(W, norm, value, off):
            raise CertificateError(f"{value!r} is not proved to bound the norm of layer {i}")
        total = value if i == 0 else multiply_up(total, value)
    return total


@dataclass(frozen=True, eq=False)
class ProductCertificate(Saveable):
    """``Lip_p(f) <= value`` by the product of norms. :meth:`verify` bounds every norm anew, without an SVD.

    >>> ProductCertificate("", 2.0, "all", 6.0).kind
    'product of norms'
    """

    kind: ClassVar[str] = "product of norms"

    subject: str
    norm: float
    outputs: Outputs
    value: float
    norms: tuple[float, ...] = ()

    @property
    def bound(self) -> Bound:
        """The claim, as a bound that carries this certificate."""
        claim = Claim(Quantity.LIPSCHITZ, self.norm, self.norm, outputs=self.outputs, subject=self.subject)
        source = "Lip(g o f) <= Lip(g) Lip(f)"
        return Bound(self.value, claim, Sense.UPPER, Rigor.RIGOROUS, "product of norms", source, certificate=self)

    def verify(self, network_or_weights: object) -> bool:
        """Multiply the norms anew; CertificateError with the reason if the value is not proved."""
        check_arithmetic()
        if self.norm not in (2.0, math.inf):
            raise self._refusal(f"norm {self.norm!r} is neither 2 nor inf")
        network = as_network(network_or_weights)
        if network.digest != self.subject:
            raise self._refusal(f"it is about the network {self.subject!r}, not {network.digest!r}")
        indices = () if self.outputs == "all" else np.atleast_1d(np.array(self.outputs)).tolist()
        if not all(0 <= i < network.n_outputs for i in indices):
            raise self._refusal(f"outputs {self.outputs!r} of a network with {network.n_outputs}")
        network = network if self.outputs == "all" else network.open_ended
        proved = proved_product(network, self.norm, self.outputs, self.norms)
        if not proved <= self.value:
            raise self._refusal(f"the norms multiply to {proved!r}, {self.value!r} is claimed")
        return True

    def stored(self) -> Stored:
        """For :func:`certbound.certificate.to_bytes`."""
        fields = {"subject": self.subject, "norm": self.norm, "outputs": plain_outputs(self.outputs),
                  "value": self.value, "norms": list(self.norms)}  # fmt: skip
        return Stored(self.kind, fields, {})

    @classmethod
    def restored(cls, stored: Stored) -> ProductCertificate:
        """From a file; CertificateError names the field that is wrong."""
        outputs = read_outputs(stored, "outputs")
        norms = read_norms(stored, "norms")
        finish(stored, fields=("subject", "norm", "outputs", "value", "norms"))
        subject, norm, value = take(stored, "subject", str), take(stored, "norm", float), take(stored, "value", float)
        return cls(subject, norm, outputs, value, norms)

    def _refusal(self, reason: str) -> CertificateError:
        return CertificateError(f"{self.kind}: {reason}")


def certified_product(network: Network, norm: float, outputs: Outputs = "all") -> Bound:
    """:func:`product_bound`, rigorous, with its certificate.

    >>> certified_product(Network.from_weights([[[3.0]], [[-2.0]]]), 2.0).certificate.verify([[[3.0]], [[-2.0]]])
    True
    """
    bound = product_bound(network, norm, outputs, Rigor.RIGOROUS)
    norms = tuple(t.value for t in bound.terms)
    return replace(bound, certificate=ProductCertificate(network.digest, norm, outputs, bound.value, norms))


def plain_outputs(outputs: Outputs) -> str | int | list[int]:
    """What :func:`read_outputs` reads.

    >>> plain_outputs((1, 0)), plain_outputs("all")
    ([1, 0], 'all')
    """
    return list(outputs) if isinstance(outputs, tuple) else outputs


def read_outputs(stored: Stored, name: str) -> Outputs:
    """``"all"``, an index >= 0, or a pair of two different ones, from a certificate's field."""
    value: object = take(stored, name, str, int, list)
    if value == "all" or (isinstance(value, int) and value >= 0):
        return cast("Outputs", value)
    if isinstance(value, list) and len(value) == 2 and all(type(i) is int and i >= 0 for i in value):
        first, second = cast("list[int]", value)
        if first != second:
            return (first, second)
    raise CertificateError(f"{stored.kind}: the field {name!r} is {str(value)[:80]!r}, which selects no outputs")


def read_norms(stored: Stored, name: str) -> tuple[float, ...]:
    """A list of numbers >= 0 (∞ as a word), from a certificate's field."""
    values = [take(Stored(stored.kind, {name: v}, {}), name, float) for v in take(stored, name, list)]
    if not all(v >= 0.0 for v in values):
        raise CertificateError(f"{stored.kind}: the field {name!r} has numbers below 0")
    return tuple(values)


def lipschitz_product(
    network: object,
    norm: object = 2,
    *,
    rigor: Rigor | str | None = None,
    input_shape: tuple[int, ...] | None = None,
    tier: str = "fast",
) -> Result:
    """Upper bound of the Lipschitz constant from ``‖·‖_p`` to ``‖·‖_p``: the product of layer norms.

    ``network``: nn.Module, Network, Graph, or list of weight matrices (bias-free ReLU net). Biases do not matter. A
    residual sum adds its two branches' constants; an activation counts with its largest slope. Of convolutional nets
    and other graphs see :func:`certbound.lipschitz.graph_product.graph_product`: always rigorous.
    ``input_shape``: of one sample, (C, H, W), for modules with convolutions: their constants depend on it.
    ``tier``: ``fast`` or ``tight``, of the convolutions' norms (:func:`certbound.norms.operator.operator_norm_upper`).
    ``rigor``: ``rigorous`` (every rounding enclosed, that of folded normalisation too; with a certificate),
    ``numerical`` (LAPACK's norms), or None: rigorous unless the processor is set to flush subnormal numbers.
    Raises InputError / UnsupportedLayerError for what is no such network.

    >>> weights = [[[3.0, 0.0], [0.0, 1.0]], [[2.0, 0.0]]]
    >>> result = lipschitz_product(weights, norm=2)
    >>> result.value.__round__(9), str(result.bound.rigor), result.certificate.verify(weights)
    (6.0, 'rigorous', True)
    """
    start = time.perf_counter()
    net, p = read_model(network, input_shape=input_shape), parse_norm(norm)
    word = best_rigor() if rigor is None else check_rigor(rigor)
    if isinstance(net, Graph):
        # graphs and residual sums: modules above this one, which they use
        from certbound.lipschitz.graph_product import graph_product

        bound = graph_product(net, p, tier=tier)
    elif not net.is_relu_chain:
        from certbound.lipschitz.layer_product import layer_product

        bound = layer_product(net, p)
    else:
        bound = certified_product(net, p) if word is Rigor.RIGOROUS else product_bound(net, p)
    return Result(bound, Status.OK, bound.certificate, seconds=time.perf_counter() - start)


def best_rigor() -> Rigor:
    """Rigorous, or numerical where :func:`certbound.rounding.check_arithmetic` refuses."""
    try:
        check_arithmetic()
    except NumericalError:
        return Rigor.NUMERICAL
    return Rigor.RIGOROUS


__all__ = ["GLOBAL", "Outputs", "ProductCertificate", "lipschitz_product", "product_bound", "product_of_norms"]
