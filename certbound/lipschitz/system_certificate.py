"""Certificates of LipSDP bounds for systems: residual, leaky and smooth networks, and every network on a ball.

For steps ``z⁺ = H z + G ψ(W z)`` with slopes in [0, 1], multipliers ``T > 0`` and symmetric ``P_0, …, P_L``: if
``P_L ⪰ CᵀC`` and, for every step,

    [[P_{l−1} − HᵀP_l H,   −(HᵀP_l G + WᵀT)],
     [·,                    2T − GᵀP_l G   ]]  ⪰ 0,

then ``z_lᵀP_l z_l`` of a difference of two runs never grows, so with ``P_0 = s diag(d)``
``‖f(x) − f(y)‖_2² <= s Σ_j d_j (x_j − y_j)²``: ``Lip_2 <= √(s max d)``, and ``√(s Σd)`` bounds one output against
``‖·‖_∞``. The P_l need no proof of their own: the Riccati recursion gives them, a little slack makes room for rounding,
and each inequality is proved by a verified factorisation, with every rounding in its entries counted.

On a ball the slopes are those that the certified pre-activation bounds allow; :meth:`SystemCertificate.verify` finds
those bounds anew.

Source: Fazlyab et al., NeurIPS 2019 (multipliers); certbound theory, sections 5 and 6.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from certbound.arrays import F64, frozen
from certbound.bound import Bound, Claim
from certbound.certificate import Saveable, Stored, finish, take, take_array
from certbound.errors import CertificateError, NumericalError
from certbound.lipschitz.product import Outputs, error_norm, plain_outputs, proves_norm, read_outputs
from certbound.lipschitz.region_slopes import FIELDS, check_region, restore_region, store_region
from certbound.lipschitz.riccati import largest_in, metric, storage
from certbound.lipschitz.sdp_certificate import SOURCE
from certbound.lipschitz.system import Map, Slopes, Step, System
from certbound.network import Ball, Network, as_network
from certbound.rounding import TINY, U, check_arithmetic, positive_definite, quick_norm, sqrt_up, up
from certbound.types import GLOBAL, Quantity, Rigor, Sense

_SLACKS = (1e-12, 1e-11, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5)
_AIR = 4.0  # a proof is kept only if it bears four times its rounding: another machine rounds otherwise
_FLOOR = 2.0**-400
METHODS = (
    "LipSDP storage matrices",
    "Riccati recursion",
    "linear on the region",
    "LipSDP-neuron (barrier), proved",
    "LipSDP-neuron (first-order), proved",
)
"""What a certificate may say of how its multipliers were found: words of ours beside the word rigorous."""


@dataclass(frozen=True, eq=False)
class SystemProof:
    """Multipliers t of each step, metric d, factor s and slack of the recursion, for one block of outputs.

    ``t`` is empty where the network is linear (on the ball): the norm of the head is the constant.
    """

    outputs: Outputs
    value: float
    t: tuple[F64, ...] = ()
    d: F64 | None = None
    s: float = 0.0
    slack: float = 0.0


def proves(system: System, t: Sequence[F64], d: F64, s: float, slack: float, *, air: float = 1.0) -> bool:
    """True proves the inequalities of the module for the system and everything within its errors.

    ``air``: how many times its rounding each inequality must bear.

    >>> system = System.of(Network.from_weights([[[1.0]], [[1.0]]]))
    >>> [proves(system, [np.array([1.0])], np.ones(1), s, 1e-12) for s in (1.0001, 0.9999)]
    [True, False]
    """
    d = np.asarray(d, dtype=np.float64)
    # d and s each: of a negative d and a negative s the product is positive, and value_of() would take the smallest
    for v in (d, np.array([s]), d * s, *t):
        if not bool(np.all((v > _FLOOR) & (v < 1.0 / _FLOOR))):  # so that NaN fails
            return False
    if not 0.0 <= slack < 1.0:
        return False
    P = storage(system, t, slack)
    if P is None:
        return False
    try:
        # s·d is rounded once: what is proved must hold for the product that value_of() takes, so it is rounded down
        P[0] = np.diag(np.nextafter(d * s, 0.0))
        C = system.head
        last = Map(P[-1]).plus(_negative(_transposed(C).after(C)))
        if not _semidefinite(last, air):
            return False
        return all(
            _semidefinite(_inequality(step, ti, before, after), air)
            for step, ti, before, after in zip(system.steps, t, P[:-1], P[1:], strict=True)
        )
    except NumericalError:
        return False


def _transposed(m: Map) -> Map:
    return Map(m.matrix.T, None if m.error is None else m.error.T)


def _negative(m: Map) -> Map:
    return Map(-m.matrix, m.error)


def _inequality(step: Step, t: F64, before: F64, after: F64) -> Map:
    """The step's matrix, with its error."""
    P = Map(after)
    n, h = len(before), len(t)
    G = Map(np.eye(len(after)) if step.G is None else step.G)
    PG = P if step.G is None else P.after(G)
    top_left, low_left = Map(before), step.W.scaled(t)
    if step.H is not None:
        PH = P.after(step.H)
        top_left = top_left.plus(_negative(_transposed(step.H).after(PH)))
        low_left = low_left.plus(PH if step.G is None else _transposed(G).after(PH))
    inner = PG if step.G is None else _transposed(G).after(PG)
    low_right = Map(np.diag(2.0 * t)).plus(_negative(inner))
    Q, E = np.empty((n + h, n + h)), np.empty((n + h, n + h))
    for out, a, b, c in ((Q, top_left.matrix, -low_left.matrix, low_right.matrix),
                         (E, top_left.off, low_left.off, low_right.off)):  # fmt: skip
        out[:n, :n], out[n:, :n], out[:n, n:], out[n:, n:] = a, b, b.T, c
    return Map(Q, E)


def _semidefinite(m: Map, air: float) -> bool:
    """True proves that every symmetric matrix within the error of m is positive semidefinite."""
    Q = 0.5 * (m.matrix + m.matrix.T)  # the true matrix is symmetric: it is as close to this
    E = np.maximum(m.off, m.off.T) + 2.0 * U * np.abs(Q) + 4.0 * TINY
    diagonal = np.diagonal(Q)
    if not bool(np.all(diagonal > _FLOOR * _FLOOR)):
        return False
    # a congruence by powers of two brings the diagonal near 1
    units = np.ldexp(1.0, -(np.frexp(diagonal)[1] // 2))
    with np.errstate(under="ignore", over="ignore", invalid="ignore"):
        A = units[:, None] * Q * units
        B = units[:, None] * E * units
    if not bool(np.all(np.abs(A) < 2.0**100)) or not bool(np.all(np.isfinite(B))):
        return False
    # what underflows in the scaling: at most 2^-1074, times a unit of at most 2^400
    B = B * (1.0 + 2.0**-20) + 2.0**-600
    return positive_definite(A, up(air * quick_norm(B)[1]))


def value_of(d: F64, s: float, norm: float) -> float:
    """``√(s max d)`` (ℓ2) or ``√(s Σd)`` (ℓ∞), rounded up."""
    return sqrt_up(up(s * (up(math.fsum(d)) if math.isinf(norm) else float(np.max(d)))))


def certify(system: System, outputs: Outputs, norm: float, t: Sequence[F64], d: F64 | None) -> SystemProof | None:
    """A proof from multipliers in any units; None where they prove nothing. ``d`` None: the recursion chooses it.

    s and the slack are raised until the proof succeeds.
    """
    if not system.steps:
        return linear(system, outputs, norm)
    if not all(bool(np.all(np.isfinite(x))) for x in t):
        return None
    t = [np.maximum(x, 1e-30 * float(np.max(x))) for x in t]
    for slack in _SLACKS:
        P = storage(system, t, slack)
        if P is None:
            return None
        if d is None:
            own = metric(P[0]) if math.isinf(norm) else np.ones(system.n_inputs)
        else:
            own = d
        own = np.maximum(own / float(np.max(own)), 1e-9)
        least = largest_in(P[0], own)
        if least is None or not least > 0.0:
            return None
        s = least * (1.0 + 1e3 * slack)
        if proves(system, t, own, s, slack, air=_AIR):
            frozen_t = tuple(frozen(np.array(x)) for x in t)
            return SystemProof(outputs, value_of(own, s, norm), frozen_t, frozen(own.copy()), s, slack)
    return None


def linear(system: System, outputs: Outputs, norm: float) -> SystemProof | None:
    """The proof of a network without any step: the norm of its head, a little raised."""
    C = system.head
    off = error_norm(C.error, norm)
    norm_of = float(np.abs(C.matrix).sum(axis=1).max()) if math.isinf(norm) else float(np.linalg.norm(C.matrix, 2))
    if proves_norm(C.matrix, norm, 0.0, off):  # a constant
        return SystemProof(outputs, 0.0)
    step = 1e-13
    while step < 1e-2:
        value = up(norm_of * (1.0 + step) + off * (1.0 + 2.0**-20))
        if proves_norm(C.matrix, norm, value, off):
            return SystemProof(outputs, up(value * (1.0 + 2.0**-50)))
        step *= 4.0
    return None


def check_proof(network: Network, p: SystemProof, norm: float, slopes: Sequence[Slopes] | None, kind: str) -> None:
    """CertificateError unless the proof's value bounds its outputs for a network with these slopes."""
    try:
        system = System.of(network, p.outputs, slopes)
    except NumericalError as error:
        raise CertificateError(f"{kind}: {error}") from error
    if not p.t:
        if system.steps:
            raise CertificateError(f"{kind}: a proof without multipliers for {len(system.steps)} layers")
        if p.d is not None or p.s != 0.0 or p.slack != 0.0:
            raise CertificateError(f"{kind}: a metric for a map that is linear")
        if not proves_norm(system.head.matrix, norm, p.value, error_norm(system.head.error, norm)):
            raise CertificateError(f"{kind}: {p.value!r} is not proved to bound the norm of the linear map")
        return
    if math.isinf(norm) and len(system.head.matrix) != 1:
        raise CertificateError(f"{kind}: multipliers for several outputs say nothing of the largest against inf")
    fits = [len(x) for x in p.t] == [len(s.W.matrix) for s in system.steps]
    if not fits or p.d is None or p.d.shape != (network.n_inputs,):
        raise CertificateError(f"{kind}: multipliers of other sizes than the network's")
    if not proves(system, p.t, p.d, p.s, p.slack):
        raise CertificateError(f"{kind}: the multipliers of outputs {p.outputs!r} do not prove s = {p.s!r}")
    proved = value_of(p.d, p.s, norm)
    if not proved <= p.value:
        raise CertificateError(f"{kind}: the multipliers prove {proved!r}, {p.value!r} is claimed")


@dataclass(frozen=True, eq=False)
class SystemCertificate(Saveable):
    """``Lip_p(f) <= value``, everywhere or on a ball, for the outputs named. :meth:`verify` needs numpy only.

    >>> net = Network.from_weights([[[1.0], [-1.0]], [[1.0, 1.0]]])  # |x|
    >>> proof = certify(System.of(net), "all", 2.0, [np.full(2, 2.0)], None)
    >>> certificate = SystemCertificate(net.digest, 2.0, "all", proof.value, (proof,))
    >>> certificate.verify(net)
    True
    """

    kind: ClassVar[str] = "LipSDP storage matrices"

    subject: str
    norm: float
    outputs: Outputs
    value: float
    proofs: tuple[SystemProof, ...]
    method: str = "LipSDP storage matrices"
    ball: Ball | None = None
    slopes: tuple[Slopes, ...] = ()

    @property
    def bound(self) -> Bound:
        """The claim, as a bound that carries this certificate."""
        domain = GLOBAL if self.ball is None else str(self.ball)
        claim = Claim(Quantity.LIPSCHITZ, self.norm, self.norm, domain, self.outputs, self.subject)
        return Bound(self.value, claim, Sense.UPPER, Rigor.RIGOROUS, self.method, SOURCE, certificate=self)

    def verify(self, network_or_weights: object) -> bool:
        """Prove the bound anew for the network; CertificateError with the reason if that fails."""
        check_arithmetic()
        if self.norm not in (2.0, math.inf) or math.isnan(self.value) or not self.proofs:
            raise self._refusal("it makes no claim")
        network = as_network(network_or_weights)
        if network.digest != self.subject:
            raise self._refusal(f"it is about the network {self.subject!r}, not {network.digest!r}")
        blocks: list[Outputs] = [self.outputs]
        if self.outputs == "all" and math.isinf(self.norm) and len(self.proofs) > 1:
            blocks = list(range(network.n_outputs))
        if [p.outputs for p in self.proofs] != blocks:
            raise self._refusal(f"proofs for the outputs {[p.outputs for p in self.proofs]}; needed {blocks}")
        check_region(network, self.ball, self.slopes, self.kind)
        for p in self.proofs:
            indices = () if p.outputs == "all" else p.outputs if isinstance(p.outputs, tuple) else (int(p.outputs),)
            if not all(0 <= i < network.n_outputs for i in indices):
                raise self._refusal(f"outputs {p.outputs!r} of a network with {network.n_outputs}")
            if not p.value <= self.value:  # so that NaN fails
                raise self._refusal(f"outputs {p.outputs!r} are bounded by {p.value!r}, {self.value!r} is claimed")
            check_proof(network, p, self.norm, None if self.ball is None else self.slopes, self.kind)
        return True

    def stored(self) -> Stored:
        """For :func:`certbound.certificate.to_bytes`."""
        arrays: dict[str, Any] = {}
        proofs: list[dict[str, Any]] = []
        for i, p in enumerate(self.proofs):
            proofs.append({"outputs": plain_outputs(p.outputs), "value": p.value, "s": p.s, "slack": p.slack,
                           "layers": len(p.t)})  # fmt: skip
            arrays |= {f"t.{i}.{j}": x for j, x in enumerate(p.t)}
            if p.d is not None:
                arrays[f"d.{i}"] = p.d
        region, more = store_region(self.ball, self.slopes)
        fields = {"subject": self.subject, "norm": self.norm, "outputs": plain_outputs(self.outputs),
                  "value": self.value, "method": self.method, "proofs": proofs, **region}  # fmt: skip
        arrays |= more
        return Stored(self.kind, fields, arrays)

    @classmethod
    def restored(cls, stored: Stored) -> SystemCertificate:
        """From a file; CertificateError names the field that is wrong."""
        proofs: list[SystemProof] = []
        expected: list[str] = []
        for i, item in enumerate(take(stored, "proofs", list)):
            part = Stored(stored.kind, item if isinstance(item, dict) else {}, {})
            layers = take(part, "layers", int)
            if not 0 <= layers <= 10_000:
                raise CertificateError(f"{cls.kind}: a proof of {layers} layers")
            names = [f"t.{i}.{j}" for j in range(layers)]
            d = take_array(stored, f"d.{i}", ndim=1) if names else None
            expected += [*names, *([f"d.{i}"] if names else [])]
            t = tuple(take_array(stored, n, ndim=1) for n in names)
            proofs.append(SystemProof(read_outputs(part, "outputs"), take(part, "value", float), t, d,
                                      take(part, "s", float), take(part, "slack", float)))  # fmt: skip
            finish(part, fields=("outputs", "value", "s", "slack", "layers"))
        ball, slopes, names = restore_region(stored)
        expected += names
        if not set(take(stored, "method", str).split("; ")) <= set(METHODS):
            raise CertificateError(f"{cls.kind}: the method is {take(stored, 'method', str)[:80]!r}")
        result = cls(take(stored, "subject", str), take(stored, "norm", float), read_outputs(stored, "outputs"),
                     take(stored, "value", float), tuple(proofs), take(stored, "method", str), ball,
                     slopes)  # fmt: skip
        finish(stored, arrays=expected, fields=("subject", "norm", "outputs", "value", "method", "proofs", *FIELDS))
        return result

    def _refusal(self, reason: str) -> CertificateError:
        return CertificateError(f"{self.kind}: {reason}")


__all__ = ["SystemCertificate", "SystemProof", "certify", "check_proof", "proves", "value_of"]
