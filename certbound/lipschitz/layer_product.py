"""The product of layer norms of any network of the IR: the cheapest proof, with residual blocks and all activations.

``Lip(x ↦ W x + b) = ‖W‖_p``; an activation with slopes in [α, β] has ``max(|α|, |β|)``; a composition multiplies; and
``Lip(x ↦ body(x) + shortcut(x)) <= Lip(body) + Lip(shortcut)``, where an identity counts 1. Affine and normalisation
layers in a row are one map: they are multiplied, with an error bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from certbound.arrays import F64
from certbound.bound import Bound, Claim, multiply_up
from certbound.certificate import Saveable, Stored, finish, take
from certbound.errors import CertificateError
from certbound.lipschitz.product import (
    Outputs,
    error_norm,
    layer_bound,
    plain_outputs,
    proves_norm,
    read_norms,
    read_outputs,
)
from certbound.network import (
    Affine,
    Flatten,
    Layer,
    Network,
    Normalise,
    ReLU,
    Residual,
    affine_layers,
    as_network,
)
from certbound.rounding import U, check_arithmetic, sqrt_up, up
from certbound.types import Quantity, Rigor, Sense

SOURCE = "Lip(g o f) <= Lip(g) Lip(f) and Lip(f + g) <= Lip(f) + Lip(g)"


# ---------------------------------------------------------------- a network in parts


@dataclass(frozen=True, eq=False)
class AffinePart:
    """``x ↦ W x + b`` for a W within ``error``, entry by entry, of ``weight``; None: exactly."""

    weight: F64
    error: F64 | None = None

    def rows(self, outputs: Outputs) -> AffinePart:
        """The map to one output, or to a difference of two; of entries ±∞ where that overflows.

        >>> AffinePart(np.array([[3.0], [1.0]])).rows((0, 1)).weight
        array([[2.]])
        """
        if outputs == "all":
            return self
        if not isinstance(outputs, tuple):
            i = [int(outputs)]
            return AffinePart(self.weight[i], None if self.error is None else self.error[i])
        j, y = outputs
        with np.errstate(over="ignore"):
            row = self.weight[j] - self.weight[y]
        # a difference is rounded once, by u times itself; 0 is only the difference of equals
        rounding = np.where(row == 0.0, 0.0, np.nextafter(np.abs(row) * U, math.inf))
        error = rounding if self.error is None else (rounding + self.error[j] + self.error[y]) * (1 + 4 * U)
        return AffinePart(row[None], error[None])


@dataclass(frozen=True)
class SlopePart:
    """An elementwise activation whose slopes are all in [alpha, beta]."""

    alpha: float
    beta: float

    @property
    def gain(self) -> float:
        """Its Lipschitz constant."""
        return max(abs(self.alpha), abs(self.beta))


@dataclass(frozen=True, eq=False)
class SumPart:
    """``x ↦ body(x) + shortcut(x)``; no parts are the identity."""

    body: tuple[Part, ...]
    shortcut: tuple[Part, ...]


Part = AffinePart | SlopePart | SumPart


def parts_of(network: Network) -> tuple[Part, ...]:
    """Affine maps, activations and sums of two branches; no two affine maps in a row, and no biases.

    A ReLU right after a ReLU is left out. Raises InputError where affine layers in a row multiply to numbers that leave
    the range of float64.

    >>> [type(p).__name__ for p in parts_of(Network.from_weights([[[1.0]], [[2.0]]]))]
    ['AffinePart', 'SlopePart', 'AffinePart']
    """
    return _split(network.layers, network.input_shape, network.n_inputs)[0]


def _split(layers: Sequence[Layer], shape: tuple[int, ...] | None, width: int) -> tuple[tuple[Part, ...], int]:
    """The parts of layers whose input has this shape (None: flat) and width, and the width of their output."""
    parts: list[Part] = []
    run: list[Layer] = []
    after_relu = False
    for layer in layers:
        if isinstance(layer, Flatten):
            shape = None
        elif isinstance(layer, Affine):
            run.append(Affine(layer.weight))
            shape, width, after_relu = None, len(layer.weight), False
        elif isinstance(layer, Normalise):
            # spread now: inside the run the shape is not known any more
            run.append(Normalise(np.zeros(1), layer.per_input(shape, width)[1]))
            after_relu = False
        else:
            parts += _multiplied(run, width)
            run = []
            relu = isinstance(layer, ReLU)
            if isinstance(layer, Residual):
                body, after = _split(layer.body, shape, width)
                parts.append(SumPart(body, _split(layer.shortcut, shape, width)[0]))
                width, shape = after, None if any(affine_layers((layer,))) else shape
            elif isinstance(layer, ReLU):
                parts += [] if after_relu else [SlopePart(0.0, 1.0)]
            else:
                low, high = layer.slopes()
                parts.append(SlopePart(float(low), float(high)))
            after_relu = relu
    parts += _multiplied(run, width)
    return tuple(parts), width


def _multiplied(run: Sequence[Layer], width: int) -> list[Part]:
    """The one map that affine and normalisation layers in a row are; nothing for none."""
    if len(run) == 1 and isinstance(run[0], Affine):
        return [AffinePart(run[0].weight)]
    if not run:
        return []
    identity = () if any(isinstance(x, Affine) for x in run) else (Affine(np.eye(width)),)
    chain = Network((*run, *identity)).chain
    return [AffinePart(chain.weights[0], chain.errors[0])]


# ---------------------------------------------------------------- the rule


Ask = Callable[[AffinePart], float]
"""An upper bound of ``‖W‖_p`` of a map, computed, or taken from a certificate and proved."""


def _times(a: float, b: float) -> float:
    """Product of upper bounds, rounded up; 1 is the identity and costs nothing."""
    return b if a == 1.0 else a if b == 1.0 else multiply_up(a, b)


def _plus(a: float, b: float) -> float:
    """Sum of upper bounds, rounded up; 0 is a constant map and costs nothing."""
    return b if a == 0.0 else a if b == 0.0 else up(a + b)


class _Rule:
    """Walks the parts and asks for the norm of every map once, in order: earlier layers first, body before shortcut."""

    def __init__(self, norm: float, ask: Ask) -> None:
        self._norm = norm
        self._ask = ask
        self._known: dict[tuple[int, Outputs], float] = {}

    def bound(self, parts: Sequence[Part], outputs: Outputs) -> float:
        """Bound of the constant of the parts in a row, of the outputs named."""
        if outputs == "all":
            total = 1.0
            for part in parts:
                total = _times(total, self._one(part))
            return total
        if not parts:  # the identity: ‖e_j‖ or ‖e_j − e_y‖ in the dual norm
            return (2.0 if math.isinf(self._norm) else sqrt_up(2.0)) if isinstance(outputs, tuple) else 1.0
        before, last = parts[:-1], parts[-1]
        if isinstance(last, AffinePart):
            return _times(self.bound(before, "all"), self._norm_of(last, outputs))
        if isinstance(last, SumPart):
            first = self.bound(before, "all")
            return _times(first, _plus(self.bound(last.body, outputs), self.bound(last.shortcut, outputs)))
        if not isinstance(outputs, tuple):
            return _times(self.bound(before, outputs), last.gain)
        # a difference of outputs is none of pre-activations
        whole = _times(self.bound(before, "all"), self.bound((), outputs))
        rows = _plus(self.bound(before, outputs[0]), self.bound(before, outputs[1]))
        return _times(min(whole, rows), last.gain)

    def _one(self, part: Part) -> float:
        if isinstance(part, AffinePart):
            return self._norm_of(part, "all")
        if isinstance(part, SlopePart):
            return part.gain
        return _plus(self.bound(part.body, "all"), self.bound(part.shortcut, "all"))

    def _norm_of(self, part: AffinePart, outputs: Outputs) -> float:
        key = (id(part), outputs)
        if key not in self._known:
            self._known[key] = self._ask(part.rows(outputs))
        return self._known[key]


def norm_above(part: AffinePart, norm: float) -> float:
    """Rigorous upper bound of ``‖W‖_p`` for every W within the part's error; ∞ for entries that are not finite."""
    if not bool(np.all(np.isfinite(part.weight))):
        return math.inf
    return layer_bound(part.weight, norm, "", Rigor.RIGOROUS, part.error).value


def proves_above(part: AffinePart, norm: float, value: float) -> bool:
    """True proves that ``value`` bounds ``‖W‖_p`` for every W within the part's error.

    >>> proves_above(AffinePart(np.eye(2)), 2.0, 1.0), proves_above(AffinePart(np.eye(2)), 2.0, 0.99)
    (True, False)
    """
    if value == math.inf:
        return True
    finite = bool(np.all(np.isfinite(part.weight)))
    return finite and proves_norm(part.weight, norm, value, error_norm(part.error, norm))


# ---------------------------------------------------------------- bound and certificate


@dataclass(frozen=True, eq=False)
class LayerProductCertificate(Saveable):
    """``Lip_p(f) <= value`` by the rule of the module. :meth:`verify` bounds every norm anew, without an SVD.

    ``norms``: of every affine map in order of execution, the body of a block before its shortcut; the last affine map
    counts by the rows that ``outputs`` needs.

    >>> LayerProductCertificate("", 2.0, "all", 6.0).kind
    'product of layer norms'
    """

    kind: ClassVar[str] = "product of layer norms"

    subject: str
    norm: float
    outputs: Outputs
    value: float
    norms: tuple[float, ...] = ()

    @property
    def bound(self) -> Bound:
        """The claim, as a bound that carries this certificate."""
        claim = Claim(Quantity.LIPSCHITZ, self.norm, self.norm, outputs=self.outputs, subject=self.subject)
        return Bound(self.value, claim, Sense.UPPER, Rigor.RIGOROUS, self.kind, SOURCE, certificate=self)

    def verify(self, network_or_weights: object) -> bool:
        """Prove the norms and combine them anew; CertificateError with the reason if the value is not proved."""
        network = checked_subject(self, network_or_weights)
        left = list(reversed(self.norms))

        def next_norm(part: AffinePart) -> float:
            if not left:
                raise self._refusal(f"{len(self.norms)} norms are too few for this network")
            value = left.pop()
            if not proves_above(part, self.norm, value):
                raise self._refusal(f"{value!r} is not proved to bound norm {len(self.norms) - len(left) - 1}")
            return value

        proved = _Rule(self.norm, next_norm).bound(parts_of(network), self.outputs)
        if left:
            raise self._refusal(f"{len(left)} of {len(self.norms)} norms belong to no layer")
        if not proved <= self.value:
            raise self._refusal(f"the norms combine to {proved!r}, {self.value!r} is claimed")
        return True

    def stored(self) -> Stored:
        """For :func:`certbound.certificate.to_bytes`."""
        fields = {"subject": self.subject, "norm": self.norm, "outputs": plain_outputs(self.outputs),
                  "value": self.value, "norms": list(self.norms)}  # fmt: skip
        return Stored(self.kind, fields, {})

    @classmethod
    def restored(cls, stored: Stored) -> LayerProductCertificate:
        """From a file; CertificateError names the field that is wrong."""
        finish(stored, fields=("subject", "norm", "outputs", "value", "norms"))
        return cls(take(stored, "subject", str), take(stored, "norm", float), read_outputs(stored, "outputs"),
                   take(stored, "value", float), read_norms(stored, "norms"))  # fmt: skip

    def _refusal(self, reason: str) -> CertificateError:
        return CertificateError(f"{self.kind}: {reason}")


class _Claim(Protocol):
    """What :func:`checked_subject` reads of a certificate."""

    kind: ClassVar[str]

    @property
    def subject(self) -> str: ...
    @property
    def norm(self) -> float: ...
    @property
    def outputs(self) -> Outputs: ...


def checked_subject(certificate: _Claim, network_or_weights: object) -> Network:
    """The network, if the certificate makes a claim and it is about this network; CertificateError otherwise."""
    check_arithmetic()
    kind = certificate.kind
    if certificate.norm not in (2.0, math.inf):
        raise CertificateError(f"{kind}: norm {certificate.norm!r} is neither 2 nor inf")
    network = as_network(network_or_weights)
    if network.digest != certificate.subject:
        raise CertificateError(f"{kind}: it is about the network {certificate.subject!r}, not {network.digest!r}")
    indices = () if certificate.outputs == "all" else np.atleast_1d(np.array(certificate.outputs)).tolist()
    if not all(0 <= i < network.n_outputs for i in indices):
        raise CertificateError(f"{kind}: outputs {certificate.outputs!r} of a network with {network.n_outputs}")
    return network


def layer_product(network: Network, norm: float, outputs: Outputs = "all") -> Bound:
    """Upper bound of the Lipschitz constant by the product of layer norms: rigorous, for every network of the IR.

    Parameters
    ----------
    network : any :class:`Network`; of a ReLU chain it is :func:`certbound.lipschitz.product.certified_product`.
    norm : 2.0 or ∞, from which and to which.
    outputs : ``"all"``, one output, or ``(j, y)`` for ``f_j − f_y``: their rows count if the network, or the branches
        of a last residual block, end in an affine layer. After a last activation a difference has the smaller of
        ``‖e_j − e_y‖`` times all outputs' bound and the sum of both outputs' bounds.

    Returns
    -------
    Bound with a :class:`LayerProductCertificate`; ∞ on overflow.

    Raises
    ------
    InputError : affine layers in a row whose product leaves float64.
    NumericalError : on a processor that flushes subnormal numbers.

    >>> block = Residual((Affine([[3.0]]), ReLU()))  # x + relu(3x): its slope is 1 or 4
    >>> net = Network((block, Affine([[2.0]])))
    >>> bound = layer_product(net, 2.0)
    >>> round(bound.value, 9), bound.certificate.verify(net)
    (8.0, True)
    """
    check_arithmetic()
    norms: list[float] = []

    def computed(part: AffinePart) -> float:
        norms.append(norm_above(part, norm))
        return norms[-1]

    value = _Rule(norm, computed).bound(parts_of(network), outputs)
    return LayerProductCertificate(network.digest, norm, outputs, value, tuple(norms)).bound


__all__ = [
    "AffinePart",
    "LayerProductCertificate",
    "Part",
    "SlopePart",
    "SumPart",
    "layer_product",
    "parts_of",
]
