"""Certificates of LipSDP-neuron bounds: multipliers, and the proof by one verified factorisation. No solver is needed.

For ``f = H φ(W_m … φ(W_1 x))``, slopes in [0, 1], diagonals ``T_i = diag(t_i)``, ``d > 0`` and a number s, let M be
block tridiagonal with diagonal blocks ``diag(d), 2T_1, …, 2T_m, s I`` and blocks ``−T_i W_i`` and ``−H`` below.
Then ``M ⪰ 0`` implies ``‖f(x) − f(y)‖_2² <= s Σ_j d_j (x_j − y_j)²``, hence

* ``Lip_2(f) <= √(s max d)``, and
* ``|f(x) − f(y)| <= √(s Σd) ‖x − y‖_∞`` for one output.

(The Schur complement of the last block is the matrix of the theorem; t >= 0 follows from M ⪰ 0.) Weights are first
divided by powers of two, which move through the ReLUs to the end. Rounding in ``T_i W_i``, in differences of head rows
and in folded layers is an error that M must bear.

Source: Fazlyab et al., NeurIPS 2019 (LipSDP-neuron); certbound theory, sections 5 and 6.
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
from certbound.errors import CertificateError
from certbound.lipschitz.product import (
    Outputs,
    plain_outputs,
    product_bound,
    proved_product,
    read_norms,
    read_outputs,
)
from certbound.lipschitz.recursion import forward, forward_solve
from certbound.network import Network, as_network
from certbound.norms.dense import spectral_norm
from certbound.rounding import (
    TINY,
    U,
    block_definite,
    check_arithmetic,
    default_shift,
    quick_norm,
    sqrt_up,
    up,
)
from certbound.types import Quantity, Rigor, Sense

SOURCE = "LipSDP-neuron (Fazlyab et al., NeurIPS 2019); certbound theory, section 5"
_THETAS = (0.0, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0)
_FLOOR = 2.0**-900
METHODS = (
    "LipSDP multipliers",
    "closed-form recursion",
    "product of norms",
    "LipSDP-neuron (barrier), repaired and proved",
    "LipSDP-neuron (first-order), repaired and proved",
    "LipSDP-neuron (cvxpy), repaired and proved",
)
"""What a certificate may say of how its multipliers were found: words of ours beside the word rigorous."""


@dataclass(frozen=True, eq=False)
class Proof:
    """What bounds one block of outputs: multipliers with metric d, factor s and the exponents of the powers of two
    taken out of the weights (head last); or, if ``t`` is empty, the product of ``norms``, one a layer.
    """

    outputs: Outputs
    value: float
    t: tuple[F64, ...] = ()
    d: F64 | None = None
    s: float = 0.0
    exponents: tuple[int, ...] = ()
    norms: tuple[float, ...] = ()

    @classmethod
    def by_product(cls, network: Network, norm: float, outputs: Outputs) -> Proof:
        """The product of norms of an open-ended network."""
        bound = product_bound(network, norm, outputs, Rigor.RIGOROUS)
        return cls(outputs, bound.value, norms=tuple(t.value for t in bound.terms))


@dataclass(frozen=True, eq=False)
class Problem:
    """A network's weights, divided by powers of two, and what each is off by (Frobenius): what M is made of."""

    encoder: tuple[F64, ...]
    errors: tuple[float, ...]
    head: F64
    head_error: float
    exponents: tuple[int, ...]

    @classmethod
    def of(cls, network: Network, outputs: Outputs, exponents: Sequence[int] | None = None) -> Problem:
        """Read an open-ended network; ``exponents`` None: those next to the norms."""
        chain = network.chain
        weights, errors = list(chain.encoder), [0.0 if e is None else quick_norm(e)[1] for e in chain.errors]
        head = chain.head
        if isinstance(outputs, tuple):
            with np.errstate(over="ignore"):  # ±∞ then, which proves nothing
                difference = head[outputs[0]] - head[outputs[1]]
            # each difference is rounded once, and its two rows may be off
            head, errors[-1] = difference[None], up(up(U * quick_norm(difference)[1]) + up(2.0 * errors[-1]))
        elif outputs != "all":
            head = head[[int(outputs)]]
        if exponents is None:
            exponents = [_exponent(w) for w in (*weights, head)]
        scaled, off = [], []
        for w, e, k in zip((*weights, head), errors, exponents, strict=True):
            with np.errstate(over="ignore", under="ignore"):
                small = np.ldexp(w, -k)
                exact = bool(np.all(np.ldexp(small, k) == w))
            loss = 0.0 if exact else up(up(math.sqrt(w.size)) * TINY)
            try:
                error = 0.0 if e == 0.0 else up(math.ldexp(e, -k))
            except OverflowError:
                error = math.inf
            scaled.append(small)
            off.append(up(error + loss) if error or loss else 0.0)
        return cls(tuple(scaled[:-1]), tuple(off[:-1]), scaled[-1], off[-1], tuple(int(k) for k in exponents))


def _exponent(w: F64) -> int:
    """The power of two next to ``‖w‖_2``; 0 for zeros."""
    top = float(np.max(np.abs(w), initial=0.0))
    if top == 0.0:
        return 0
    e = int(np.frexp(top)[1])
    return e + round(math.log2(spectral_norm(np.ldexp(w, -e))))


def proves(problem: Problem, t: Sequence[F64], d: F64, s: float) -> bool:
    """True proves ``M ⪰ 0`` for the weights of the problem and for every network within its errors.

    >>> problem = Problem.of(Network.from_weights([[[1.0]], [[1.0]]]), "all")
    >>> proves(problem, [np.array([1.0])], np.ones(1), 1.0001), proves(problem, [np.array([1.0])], np.ones(1), 0.9999)
    (True, False)
    """
    vectors = [np.asarray(d, dtype=np.float64), *t, np.full(len(problem.head), s)]
    if not all(bool(np.all((v > _FLOOR) & (v < 1.0 / _FLOOR))) for v in vectors):  # so that NaN fails
        return False
    # a congruence by powers of two brings the diagonal near 1, exactly
    units = [np.ldexp(1.0, -(np.frexp(v)[1] // 2)) for v in vectors]
    diagonal = [v * u * u for v, u in zip(vectors, units, strict=True)]
    diagonal[1:-1] = [2.0 * v for v in diagonal[1:-1]]
    lower: list[F64] = []
    squares = 0.0
    rows = [*t, np.ones(len(problem.head))]
    weights, errors = (*problem.encoder, problem.head), (*problem.errors, problem.head_error)
    for i, (w, e, row) in enumerate(zip(weights, errors, rows, strict=True)):
        left = row * units[i + 1]
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            block = -(left[:, None] * w) * units[i]
        if not bool(np.all(np.abs(block) < 2.0**400)):
            return False
        lower.append(block)
        # one rounding in T W (none in H); what the weights are off by, scaled as they are
        rounding = up(U * quick_norm(block)[1]) if i < len(t) else 0.0
        lost = up(up(float(np.max(left)) * float(np.max(units[i]))) * e) if e else 0.0
        # the scaling itself underflows at worst to 2^-1022 times what is scaled
        tiny = up(w.size * TINY * max(1.0, float(np.max(units[i]))) * max(1.0, float(np.max(left))))
        off = up(up(rounding + lost) + tiny)
        squares = up(squares + 2.0 * up(off * off))
    return block_definite(diagonal, lower, error=up(math.sqrt(squares)))


def value_of(problem: Problem, d: F64, s: float, norm: float) -> float:
    """``√(s max d)`` (ℓ2) or ``√(s Σd)`` (ℓ∞) times the powers of two, rounded up; ∞ on overflow."""
    gain = up(math.fsum(d)) if math.isinf(norm) else float(np.max(d))
    root = sqrt_up(up(s * gain))
    exponent = sum(problem.exponents)
    try:
        value = math.ldexp(root, exponent)
    except OverflowError:
        return math.inf
    return up(value) if value < 2.0**-1020 else value


def least_factor(problem: Problem, t: Sequence[F64], d: F64) -> float | None:
    """The smallest s for which ``M ⪰ 0`` in real arithmetic, computed (numerical); None where T proves nothing."""
    half: F64 = problem.encoder[0] / np.sqrt(d)
    for i, ti in enumerate(t):
        X = np.diag(2.0 * ti) - (ti[:, None] * half) @ (ti[:, None] * half).T
        if not np.all(np.isfinite(X)):
            return None
        try:
            R = np.linalg.cholesky(X)
        except np.linalg.LinAlgError:
            return None
        after = problem.encoder[i + 1] if i + 1 < len(t) else problem.head
        half = forward_solve(R, after.T).T
    value = float(np.linalg.norm(half, 2)) ** 2
    return value if math.isfinite(value) else None


def closed_form_multipliers(problem: Problem, d: F64) -> tuple[F64, ...] | None:
    """``T_i = I/(κ_1 … κ_i)`` of the closed-form recursion for the problem's weights; None for a constant network."""
    run = forward(problem.encoder, d)
    if run.zero:
        return None
    t: list[F64] = []
    gain = 1.0
    for w, scaled, kappa in zip(problem.encoder, run.weights, run.kappas, strict=True):
        ratio = float(np.max(np.abs(w)) / np.max(np.abs(scaled)))  # forward() takes powers of two of its own
        gain *= kappa * ratio * ratio
        t.append(np.full(len(w), 1.0 / gain))
    return tuple(t)


def certify(
    network: Network, outputs: Outputs, norm: float, d: F64, hint: Sequence[F64] | None = None
) -> tuple[Proof, float] | None:
    """A proof from the multipliers ``hint`` (for :class:`Problem`'s weights), or from the closed form's; and how far T
    was moved, 0 … 1. None for a constant network, or where nothing is proved.

    T is kept if it proves something, else moved towards the closed form's; s is raised until the proof succeeds.
    """
    problem = Problem.of(network, outputs)
    if not problem.encoder or not problem.head.any():
        return None
    d = np.maximum(d / float(np.max(d)), 1e-9)
    safe = closed_form_multipliers(problem, d)
    if safe is None:
        return None
    thetas = (0.0,) if hint is None else _THETAS
    for theta in thetas:
        t = safe
        if hint is not None:
            t = tuple((1.0 - theta) * np.maximum(a, 1e-60 * float(np.max(a))) + theta * b
                      for a, b in zip(hint, safe, strict=True))  # fmt: skip
        s = least_factor(problem, t, d)
        if s is None or s == 0.0:
            continue
        sizes = [np.full(n, 3.0) for n in (1, *(len(x) for x in t), len(problem.head))]
        # a plain dense factorisation, by whoever checks this without certbound, needs a larger shift than ours
        step = 32.0 * default_shift(sizes)
        while step < 1e-2:
            if proves(problem, t, d, s * (1.0 + step)):
                # the next step as well: air for another machine's rounding
                raised = s * (1.0 + 1.25 * step)
                if proves(problem, t, d, raised):
                    value = value_of(problem, d, raised, norm)
                    own = tuple(frozen(x.copy()) for x in t)
                    return Proof(outputs, value, own, frozen(d.copy()), raised, problem.exponents), theta
            step *= 4.0
    return None


@dataclass(frozen=True, eq=False)
class SdpCertificate(Saveable):
    """``Lip_p(f) <= value`` for the outputs named: one :class:`Proof` (ℓ2, one output, one margin), or one an output.

    :meth:`verify` needs numpy only and proves ``M ⪰ 0`` anew for every proof.

    >>> from certbound.lipschitz.sdp import lipschitz_sdp
    >>> weights = [[[1.0], [-1.0]], [[1.0, 1.0]]]  # |x|
    >>> certificate = lipschitz_sdp(weights, method="closed-form").certificate
    >>> certificate.verify(weights)
    True
    """

    kind: ClassVar[str] = "LipSDP multipliers"

    subject: str
    norm: float
    outputs: Outputs
    value: float
    proofs: tuple[Proof, ...]
    method: str = "LipSDP multipliers"

    @property
    def bound(self) -> Bound:
        """The claim, as a bound that carries this certificate."""
        claim = Claim(Quantity.LIPSCHITZ, self.norm, self.norm, outputs=self.outputs, subject=self.subject)
        return Bound(self.value, claim, Sense.UPPER, Rigor.RIGOROUS, self.method, SOURCE, certificate=self)

    def verify(self, network_or_weights: object) -> bool:
        """Prove the bound anew for the network; CertificateError with the reason if that fails."""
        check_arithmetic()
        if self.norm not in (2.0, math.inf) or math.isnan(self.value) or not self.proofs:
            raise self._refusal("it makes no claim")
        network = as_network(network_or_weights)
        if network.digest != self.subject:
            raise self._refusal(f"it is about the network {self.subject!r}, not {network.digest!r}")
        network = network.open_ended
        n = network.n_outputs
        whole: list[Outputs] = [self.outputs]
        if self.outputs == "all" and math.isinf(self.norm):
            whole = list(range(n))
        if [p.outputs for p in self.proofs] != whole:
            raise self._refusal(f"proofs for the outputs {[p.outputs for p in self.proofs]}; needed {whole}")
        for p in self.proofs:
            if p.outputs != "all" and not all(0 <= i < n for i in _indices(p.outputs)):
                raise self._refusal(f"outputs {p.outputs!r} of a network with {n}")
            if not p.value <= self.value:  # so that NaN fails
                raise self._refusal(f"outputs {p.outputs!r} are bounded by {p.value!r}, {self.value!r} is claimed")
            self._check(network, p)
        return True

    def _check(self, network: Network, p: Proof) -> None:
        if not p.t:
            proved = proved_product(network, self.norm, p.outputs, p.norms)
            if not proved <= p.value:
                raise self._refusal(f"the product of norms is {proved!r}, {p.value!r} is claimed")
            return
        sizes = [len(w) for w in network.chain.encoder]
        fits = [len(x) for x in p.t] == sizes and p.d is not None and p.d.shape == (network.n_inputs,)
        if not fits or len(p.exponents) != len(sizes) + 1 or any(abs(e) > 2200 for e in p.exponents):
            raise self._refusal("multipliers of other sizes than the network's")
        assert p.d is not None  # checked in `fits`
        problem = Problem.of(network, p.outputs, p.exponents)
        if not proves(problem, p.t, p.d, p.s):
            raise self._refusal(f"the multipliers of outputs {p.outputs!r} do not prove s = {p.s!r}")
        proved = value_of(problem, p.d, p.s, self.norm)
        if not proved <= p.value:
            raise self._refusal(f"the multipliers prove {proved!r}, {p.value!r} is claimed")

    def stored(self) -> Stored:
        """For :func:`certbound.certificate.to_bytes`."""
        arrays: dict[str, Any] = {}
        proofs: list[dict[str, Any]] = []
        for i, p in enumerate(self.proofs):
            proofs.append({"outputs": plain_outputs(p.outputs), "value": p.value, "s": p.s,
                           "exponents": list(p.exponents), "layers": len(p.t), "norms": list(p.norms)})  # fmt: skip
            arrays |= {f"t.{i}.{j}": x for j, x in enumerate(p.t)}
            if p.d is not None:
                arrays[f"d.{i}"] = p.d
        fields = {"subject": self.subject, "norm": self.norm, "outputs": plain_outputs(self.outputs),
                  "value": self.value, "method": self.method, "proofs": proofs}  # fmt: skip
        return Stored(self.kind, fields, arrays)

    @classmethod
    def restored(cls, stored: Stored) -> SdpCertificate:
        """From a file; CertificateError names the field that is wrong."""
        proofs: list[Proof] = []
        expected: list[str] = []
        for i, item in enumerate(take(stored, "proofs", list)):
            part = Stored(stored.kind, item if isinstance(item, dict) else {}, {})
            layers = take(part, "layers", int)
            if not 0 <= layers <= 10_000:
                raise CertificateError(f"{cls.kind}: a proof of {layers} layers")
            names = [f"t.{i}.{j}" for j in range(layers)]
            d = take_array(stored, f"d.{i}", ndim=1) if layers else None
            exponents = take(part, "exponents", list)
            if not all(type(e) is int for e in exponents):
                raise CertificateError(f"{cls.kind}: exponents that are no integers")
            expected += [*names, *([f"d.{i}"] if layers else [])]
            proofs.append(Proof(read_outputs(part, "outputs"), take(part, "value", float),
                                tuple(take_array(stored, n, ndim=1) for n in names), d, take(part, "s", float),
                                tuple(exponents), read_norms(part, "norms")))  # fmt: skip
            finish(part, fields=("outputs", "value", "s", "exponents", "layers", "norms"))
        if not set(take(stored, "method", str).split("; ")) <= set(METHODS):
            raise CertificateError(f"{cls.kind}: the method is {take(stored, 'method', str)[:80]!r}")
        result = cls(take(stored, "subject", str), take(stored, "norm", float), read_outputs(stored, "outputs"),
                     take(stored, "value", float), tuple(proofs), take(stored, "method", str))  # fmt: skip
        finish(stored, fields=("subject", "norm", "outputs", "value", "method", "proofs"), arrays=expected)
        return result

    def _refusal(self, reason: str) -> CertificateError:
        return CertificateError(f"{self.kind}: {reason}")


def _indices(outputs: Outputs) -> tuple[int, ...]:
    return outputs if isinstance(outputs, tuple) else (int(outputs),)


__all__ = ["SOURCE", "Problem", "Proof", "SdpCertificate", "certify", "proves", "value_of"]
