"""``lipschitz_sampled``: the largest Jacobian norm found at smooth points, a LOWER bound of the Lipschitz constant.

At x where no pre-activation is 0 (or where a pre-activation that is 0 does not depend on x) f is affine near x, so
``Lip_p(f) >= ‖J(x)‖_p``. At a kink a 0/1 pattern may belong to no neighbourhood and its Jacobian can exceed the
constant: a point counts only if every pre-activation exceeds its own a-priori rounding error,
``|z_l − ẑ_l| <= |W_l| err_{l−1} + γ (|W_l||ĥ_{l−1}| + |b_l|)``.

Sampling is followed by a local search: from the best points, steps just across the activation boundaries, kept where
the norm grows.

Source: certbound theory, sections 6 and 8.
"""

from __future__ import annotations

import math
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from certbound import text
from certbound.arrays import F64, frozen, power_of_two_scale
from certbound.bound import Bound, Claim, Result, vacuous_bound
from certbound.certificate import Saveable, Stored, finish, take, take_array
from certbound.errors import CertificateError, InputError, NumericalError, UnsupportedLayerError
from certbound.graph import Graph, read_model
from certbound.io.graph_to_network import dense_model
from certbound.lipschitz.graph_sampled import graph_sampled
from certbound.lipschitz.jacobian import float_norm_below, norm_below
from certbound.lipschitz.product import Outputs, output_row
from certbound.lipschitz.sdp import assuming, parse_outputs
from certbound.network import Ball, Network, as_network
from certbound.rounding import check_arithmetic
from certbound.types import GLOBAL, Quantity, Rigor, Sense, Status, parse_norm

SOURCE = "a.e. Jacobian of a piecewise affine map (Rademacher); certbound theory, section 8"
_CHUNK = 2**22  # numbers in one batch of Jacobians
_STARTS = 8  # points that the local search starts from
_PATIENCE = 10  # rounds of the search in which no start grows
_BOUNDARIES = 32  # of a point's region, the nearest first, that one round crosses
_STEPS_ACROSS = (1e-3, 0.1, 1.0)  # how far beyond a boundary, relative to the distance to it
_TINY = 2.0**-1000
_EXACT_WEIGHTS = 20_000  # up to here rationals take a second at most
_SCALES = 12  # log-uniform range of sample sizes, in powers of 2 beyond the breakpoints


def head_rows(network: Network, outputs: Outputs) -> F64:
    """The rows of the head that the outputs select; the network must not end in a ReLU."""
    return network.chain.head if outputs == "all" else output_row(network, outputs)[None]


def fraction_rows(W: F64) -> list[list[Fraction]]:
    """The matrix in exact rationals."""
    return [[Fraction(float(v)) for v in row] for row in W]


def head_fractions(network: Network, outputs: Outputs) -> list[list[Fraction]]:
    """:func:`head_rows` in exact rationals: differences without rounding."""
    head = network.chain.head
    if outputs == "all":
        return fraction_rows(head)
    if isinstance(outputs, tuple):
        first, second = fraction_rows(head[list(outputs)])
        return [[a - b for a, b in zip(first, second, strict=True)]]
    assert isinstance(outputs, int)
    return fraction_rows(head[[outputs]])


def norm_of_fractions(J: Sequence[Sequence[Fraction]], norm: float, sense: Sense) -> float:
    """``‖J‖_p`` of an exact matrix: row sums rounded to the side asked for (p = ∞), by SVD (p = 2, numerical).

    >>> norm_of_fractions([[Fraction(3), Fraction(-4)]], math.inf, Sense.UPPER)
    7.0
    """
    top = max((abs(v) for row in J for v in row), default=Fraction(0))
    if top == 0:
        return 0.0
    exponent = top.numerator.bit_length() - top.denominator.bit_length()
    unit = Fraction(2) ** exponent
    if math.isinf(norm):
        exact = max(sum((abs(v) for v in row), Fraction(0)) for row in J) / unit
        value = float(exact)
        if sense is Sense.UPPER and Fraction(value) < exact:
            value = math.nextafter(value, math.inf)
        if sense is Sense.LOWER and Fraction(value) > exact:
            value = math.nextafter(value, 0.0)
    else:
        value = float(np.linalg.norm(np.array([[float(v / unit) for v in row] for row in J]), 2))
    return scaled_to(value, exponent, sense)


def scaled_to(value: float, exponent: int, sense: Sense) -> float:
    """``value · 2^exponent``, on the side asked for where it leaves the range of float64.

    >>> scaled_to(1.0, 3000, Sense.UPPER), scaled_to(1.0, -3000, Sense.LOWER), scaled_to(1.0, -3000, Sense.UPPER) > 0
    (inf, 0.0, True)
    """
    try:
        result = math.ldexp(value, exponent)
    except OverflowError:
        return math.inf if sense is Sense.UPPER else sys.float_info.max
    if value > 0 and result < 2.0**-1020:
        return math.nextafter(result, math.inf) if sense is Sense.UPPER else math.nextafter(result, 0.0)
    return result


def exact_jacobian(
    network: Network, point: Sequence[Fraction], outputs: Outputs
) -> tuple[list[list[Fraction]], tuple[tuple[int, ...], ...]]:
    """Jacobian and activation pattern at a rational point, without any rounding.

    Raises CertificateError where a pre-activation is 0 and depends on the input: no Jacobian exists there.
    """
    net = network.open_ended
    chain = net.chain
    h = list(point)
    # rows: gradients of h, only as far as needed to tell a constant 0 from a kink
    layers: list[tuple[list[list[Fraction]], list[int]]] = []
    for i, (w, b) in enumerate(zip(chain.encoder, chain.biases[:-1], strict=True)):
        rows = fraction_rows(w)
        z = [
            sum((c * v for c, v in zip(row, h, strict=True) if c and v), Fraction(float(offset)))
            for row, offset in zip(rows, b, strict=True)
        ]
        for j, value in enumerate(z):
            if value == 0 and any(_pull_back(rows[j], layers)):
                raise CertificateError(f"pre-activation {j} of hidden layer {i} is 0 at the point: f may have a kink")
        on = [int(value > 0) for value in z]
        layers.append((rows, on))
        h = [max(value, Fraction(0)) for value in z]
    J = [_pull_back(row, layers) for row in head_fractions(net, outputs)]
    return J, tuple(tuple(on) for _, on in layers)


def _pull_back(row: list[Fraction], layers: list[tuple[list[list[Fraction]], list[int]]]) -> list[Fraction]:
    """``row · D_l W_l … D_1 W_1``."""
    for rows, on in reversed(layers):
        used = [(c, rows[k]) for k, c in enumerate(row) if c and on[k]]
        row = [sum((c * r[j] for c, r in used), Fraction(0)) for j in range(len(rows[0]))]
    return row


@dataclass(frozen=True, eq=False)
class SmoothPoint(Saveable):
    """A point near which the network is affine, and the norm of its Jacobian there: evidence of a lower bound.

    Parameters
    ----------
    point : exact rational coordinates, shape (inputs,).
    norm, outputs, value : the claim ``‖J(point)‖_p >= value`` of the outputs' rows, p in {2, ∞}.
    pattern : 0/1, one tuple a hidden layer (a final ReLU is one), or nothing.
    subject : digest of the network; empty: of whichever network, and checked as a *numerical* claim.
    region : the ball that the point lies in; None: the claim is about all inputs.
    direction : for p = 2 a vector v: ``‖J v‖_2 / ‖v‖_2`` needs no SVD. None: the SVD is believed (*numerical*).
    numerical : why the value is *numerical* even so; empty if it is not.
    """

    kind: ClassVar[str] = "smooth point"

    point: tuple[Fraction, ...]
    norm: float
    outputs: Outputs
    value: float
    pattern: tuple[tuple[int, ...], ...] = ()
    subject: str = ""
    region: Ball | None = None
    direction: F64 | None = field(default=None, repr=False)
    numerical: str = ""

    @classmethod
    def proving(
        cls,
        network: Network,
        point: tuple[Fraction, ...],
        norm: float,
        outputs: Outputs,
        found: float,
        *,
        pattern: tuple[tuple[int, ...], ...] = (),
        region: Ball | None = None,
    ) -> Self:
        """The certificate of ``found``, or of the less that can be proved at a smooth point of a network.

        Where nothing can be proved in a few seconds, of ``found`` itself, as a *numerical* value with the reason.
        """
        net, reason, value, direction = network.open_ended, _folding(network), found, None
        if not reason and norm == 2.0:
            direction = _direction(net, point, outputs, pattern)
        if not reason:
            value = min(found, _proved(network, point, norm, outputs, direction))
            constant = False
            if value <= 0.0 < found and sum(w.size for w in net.chain.weights) <= _EXACT_WEIGHTS:
                J, _ = exact_jacobian(network, point, outputs)
                value, constant = min(found, norm_below(J, norm, direction)), not any(any(row) for row in J)
            if value <= 0.0 < found and not constant:
                value, direction, reason = found, None, "error bounds in float64 prove nothing here"
        return cls(point, norm, outputs, value, pattern, network.digest, region, direction, reason)

    @property
    def x(self) -> F64:
        """The point in float64, shape (inputs,). Where the region is narrower than float64 resolves it, outside it."""
        return frozen(np.array([float(v) for v in self.point]))

    @property
    def rigor(self) -> Rigor:
        """*rigorous* if :meth:`verify` proves the value without any tolerance."""
        proved = math.isinf(self.norm) or self.direction is not None or self.value == 0.0
        return Rigor.RIGOROUS if self.subject and not self.numerical and proved else Rigor.NUMERICAL

    @property
    def bound(self) -> Bound:
        """The claim: a lower bound of the Lipschitz constant."""
        domain = GLOBAL if self.region is None else str(self.region)
        claim = Claim(Quantity.LIPSCHITZ, self.norm, self.norm, domain, self.outputs, self.subject)
        reasons = (self.numerical,) if self.numerical else ()
        method = "Jacobian norm at a smooth point"
        return Bound(self.value, claim, Sense.LOWER, self.rigor, method, SOURCE, reasons, certificate=self)

    def verify(self, network_or_weights: object) -> bool:
        """Evaluate the network there, every rounding enclosed or in exact rationals.

        Raises
        ------
        CertificateError : with the reason: another network, a kink, another pattern, a point outside the region, a
            value that is not proved (of a *numerical* one: above the true value by more than 1e-12 of it).

        >>> SmoothPoint((Fraction(2),), math.inf, "all", 1.0).verify([[[1.0], [-1.0]], [[1.0, 1.0]]])  # |x| at 2
        True
        """
        network = as_network(network_or_weights)
        if self.subject and network.digest != self.subject:
            raise _error(f"it is about the network {self.subject!r}, not {network.digest!r}")
        if len(self.point) != network.n_inputs:
            raise _error(f"a point of {len(self.point)} numbers for a network of {network.n_inputs} inputs")
        self._check_claim(network)
        if self.rigor is Rigor.RIGOROUS:
            folding = _folding(network)
            if folding:
                raise _error(folding)
            # quick, and where it proves too little, exact rationals decide; only they know a pattern to compare
            if not self.pattern and self.value <= _proved(network, self.point, self.norm, self.outputs, self.direction):
                return True
        J, pattern = exact_jacobian(network, self.point, self.outputs)
        if self.pattern and pattern != self.pattern:
            raise _error("the activation pattern at the point is another one")
        if self.value == 0.0:
            return True
        if self.rigor is Rigor.RIGOROUS:
            true = norm_below(J, self.norm, self.direction)
        else:
            true = norm_of_fractions(J, self.norm, Sense.UPPER)
            true = max(true, true * (1 + 1e-12))  # for the SVD
        if not self.value <= true:
            raise _error(f"the Jacobian's norm at the point is {true!r}, below {self.value!r}")
        return True

    def _check_claim(self, network: Network) -> None:
        if self.norm not in (2.0, math.inf) or not 0.0 <= self.value < math.inf:
            raise _error(f"norm {self.norm!r} or value {self.value!r} that no such bound has")
        try:
            chosen = parse_outputs(self.outputs, network.n_outputs)
        except InputError as error:
            raise _error(str(error)) from error
        if chosen != self.outputs:
            raise _error(f"outputs {self.outputs!r}")
        v = self.direction
        if v is not None and (v.shape != (network.n_inputs,) or not bool(np.all(np.isfinite(v)))):
            raise _error(f"a direction of shape {v.shape} for {network.n_inputs} inputs, or one that is not finite")
        if self.region is None:
            return
        if self.region.center.size != network.n_inputs or self.region.radius == 0.0:
            raise _error("a region of another dimension, or of radius 0, on which every constant is 0")
        moves = [abs(a - Fraction(b)) for a, b in zip(self.point, self.region.center.reshape(-1).tolist(), strict=True)]
        radius = Fraction(self.region.radius)
        square = max(moves) ** 2 if math.isinf(self.region.norm) else sum((m * m for m in moves), Fraction(0))
        if square > radius**2:
            raise _error(f"the point is outside the {self.region}")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; coordinates as exact fractions in words."""
        return {
            "point": [str(v) for v in self.point],
            "norm": text.json_number(self.norm),
            "outputs": list(self.outputs) if isinstance(self.outputs, tuple) else self.outputs,
            "value": text.json_number(self.value),
            "pattern": [list(layer) for layer in self.pattern],
            "subject": self.subject,
            "rigor": str(self.rigor),
        }

    def stored(self) -> Stored:
        """Fields and arrays, for :meth:`save`; coordinates as fractions in hexadecimal (decimal has a limit)."""
        if not self.subject:
            raise _error("a point without a network's digest is no certificate that can be saved")
        ball = self.region
        fields = {
            "norm": float(self.norm),
            "numerical": self.numerical,
            "outputs": list(self.outputs) if isinstance(self.outputs, tuple) else self.outputs,
            "pattern": [list(layer) for layer in self.pattern],
            "point": [f"{v.numerator:#x}/{v.denominator:#x}" for v in self.point],
            "region": None if ball is None else [float(ball.norm), float(ball.radius)],
            "subject": self.subject,
            "value": float(self.value),
        }
        arrays = {} if ball is None else {"center": ball.center}
        return Stored(self.kind, fields, arrays if self.direction is None else {**arrays, "direction": self.direction})

    @classmethod
    def restored(cls, stored: Stored) -> Self:
        """The point again; :meth:`verify` checks what it says."""
        names = ("norm", "numerical", "outputs", "pattern", "point", "region", "subject", "value")
        ball, outputs = take(stored, "region", list, type(None)), take(stored, "outputs", str, int, list)
        center = () if ball is None else ("center",)
        vector = ("direction",) if "direction" in stored.arrays else ()
        finish(stored, fields=names, arrays=(*center, *vector))
        region = None
        if ball is not None:
            parts = Stored(stored.kind, {f"region[{i}]": v for i, v in enumerate(ball)})
            finish(parts, fields=("region[0]", "region[1]"))
            norm, radius = (take(parts, f"region[{i}]", float) for i in range(2))
            region = Ball(take_array(stored, "center"), radius, norm)
        if isinstance(outputs, list):
            if [type(i) for i in outputs] != [int, int]:
                raise _error("the field 'outputs' needs two integers")
            outputs = (int(outputs[0]), int(outputs[1]))
        pattern = take(stored, "pattern", list)
        if not all(isinstance(row, list) and all(type(v) is int and v in (0, 1) for v in row) for row in pattern):
            raise _error("the field 'pattern' needs lists of 0 and 1")
        point = tuple(_fraction(v) for v in take(stored, "point", list))
        subject = take(stored, "subject", str)
        if not subject:
            raise _error("no digest of a network")
        return cls(
            point, take(stored, "norm", float), outputs, take(stored, "value", float),
            tuple(tuple(row) for row in pattern), subject, region,
            take_array(stored, "direction", ndim=1) if vector else None, take(stored, "numerical", str),
        )  # fmt: skip


def _error(reason: str) -> CertificateError:
    return CertificateError(f"smooth point: {reason}")


_FRACTION = re.compile(r"(-?)0x([0-9a-f]+)/0x([0-9a-f]+)")


def _fraction(word: object) -> Fraction:
    match = _FRACTION.fullmatch(word) if isinstance(word, str) else None
    if match is None or not int(match[3], 16):
        raise _error("the field 'point' needs fractions such as '-0x3/0x4'")
    return Fraction(int(match[1] + match[2], 16), int(match[3], 16))


def _folding(network: Network) -> str:
    """Why a bound on this network is not rigorous; empty if it can be."""
    chain = network.chain
    if all(e is None for e in (*chain.errors, *chain.bias_errors)):
        return ""
    return "the folding of normalisation or affine layers in a row was rounded"


def _proved(network: Network, point: Sequence[Fraction], norm: float, outputs: Outputs, direction: F64 | None) -> float:
    """:func:`float_norm_below` at a point of floats; 0 where it proves nothing."""
    try:
        check_arithmetic()
        x = np.array([float(v) for v in point])
    except (NumericalError, OverflowError):
        return 0.0
    if not all(Fraction(a) == b for a, b in zip(x.tolist(), point, strict=True)):
        return 0.0
    net = network.open_ended
    return float_norm_below(net.chain, head_rows(net, outputs), x, norm, direction)


def _direction(
    network: Network, point: Sequence[Fraction], outputs: Outputs, pattern: tuple[tuple[int, ...], ...]
) -> F64 | None:
    """A vector v with ``‖J v‖ ≈ ‖J‖ ‖v‖``, of an open-ended network; nothing depends on how good it is."""
    h = np.array([float(v) for v in point])
    masks = [np.array(on, dtype=np.float64) for on in pattern]
    with np.errstate(all="ignore"):
        for w, b in zip(network.chain.encoder, network.chain.biases[:-1], strict=True):
            if not pattern:
                z = w @ h + b
                masks.append((z > 0.0).astype(np.float64))
                h = np.maximum(z, 0.0)
        J = head_rows(network, outputs)
        for w, mask in zip(reversed(network.chain.encoder), reversed(masks), strict=True):
            J = (J / power_of_two_scale(J) * mask) @ (w / power_of_two_scale(w))
        if not bool(np.all(np.isfinite(J))):
            return None
        J = J / power_of_two_scale(J)
        gram = J @ J.T if len(J) <= J.shape[1] else J.T @ J
    top = np.linalg.eigh(gram)[1][:, -1]
    v = top @ J if len(J) <= J.shape[1] else top
    size = float(np.max(np.abs(v), initial=0.0))
    return frozen(v / size) if size > 0.0 and math.isfinite(size) else None


@dataclass(frozen=True, eq=False)
class _Batch:
    """What is known at points: ``norms`` (0 where not smooth), and of hidden layers z and gradients if asked for."""

    norms: F64
    smooth: npt.NDArray[np.bool_]
    z: tuple[F64, ...] = ()
    gradients: tuple[F64, ...] = ()


@dataclass(frozen=True, eq=False)
class _Model:
    """The network divided by powers of two layer by layer (exact up to underflow), without a final ReLU."""

    weights: tuple[F64, ...]
    biases: tuple[F64, ...]
    head: F64
    norm: float
    exponent: int  # the Jacobian is 2^exponent times that of the scaled network

    @classmethod
    def of(cls, network: Network, outputs: Outputs, norm: float) -> _Model:
        net = network.open_ended
        chain = net.chain
        weights, biases, total = [], [], 0
        for w, b in zip(chain.encoder, chain.biases[:-1], strict=True):
            e = int(math.log2(power_of_two_scale(w)))
            total += e
            weights.append(np.ldexp(w, -e))
            with np.errstate(over="ignore"):
                biases.append(np.ldexp(b, -total))  # z_l and h_l are divided by the powers so far
        head = head_rows(net, outputs)
        e = int(math.log2(power_of_two_scale(head)))
        return cls(tuple(weights), tuple(biases), np.ldexp(head, -e), norm, total + e)

    def evaluate(self, x: F64, *, details: bool = False) -> _Batch:
        """Lower bounds of the scaled Jacobian norms at x, shape (points, inputs), in chunks; 0 where not smooth."""
        widest = max([self.head.shape[0], *(w.shape[0] for w in self.weights)]) if details else self.head.shape[0]
        step = max(1, _CHUNK // (max(widest, 1) * x.shape[1]))
        parts = [self._evaluate(x[i : i + step], details) for i in range(0, len(x), step)]
        return _Batch(
            np.concatenate([p.norms for p in parts]),
            np.concatenate([p.smooth for p in parts]),
            tuple(np.concatenate(z) for z in zip(*(p.z for p in parts), strict=True)),
            tuple(np.concatenate(g) for g in zip(*(p.gradients for p in parts), strict=True)),
        )

    def _evaluate(self, x: F64, details: bool) -> _Batch:
        h, error = x, np.zeros_like(x)
        smooth = np.all(np.isfinite(x), axis=1)
        moves = np.ones(x.shape)  # 1 where h depends on x
        masks: list[F64] = []
        zs: list[F64] = []
        with np.errstate(over="ignore", invalid="ignore"):
            for w, b in zip(self.weights, self.biases, strict=True):
                size = np.abs(w)
                gamma = (w.shape[1] + 4) * 2.0**-52  # twice γ_{n+2}: the bound itself is rounded too
                z = h @ w.T + b
                error = error @ size.T * (1 + gamma) + gamma * (np.abs(h) @ size.T + np.abs(b))
                error += _TINY * (1 + np.max(np.abs(h), axis=1, keepdims=True))  # what under- or overflowed in scaling
                depends = moves @ (w != 0).T > 0
                certain = np.abs(z) > error
                smooth &= np.all(certain | ~depends, axis=1) & np.all(np.isfinite(error), axis=1)
                h = np.maximum(z, 0.0)
                moves = ((z > 0) & depends).astype(np.float64)
                masks.append(moves)
                zs.append(z)
            J = np.broadcast_to(self.head, (len(x), *self.head.shape))
            slack = np.abs(J)  # Σ of absolute values over paths: what rounding errors are relative to
            for w, mask in zip(reversed(self.weights), reversed(masks), strict=True):
                J, slack = (J * mask[:, None, :]) @ w, (slack * mask[:, None, :]) @ np.abs(w)
            terms = sum(w.shape[0] + w.shape[1] for w in self.weights)
            lost = terms * 2.0**-52 * slack
            if math.isinf(self.norm):
                norms = np.max(np.sum(np.abs(J) * (1 - J.shape[2] * 2.0**-52) - lost, axis=2), axis=1)
            else:
                norms = _spectral_norms(np.where(np.isfinite(J), J, 0.0)) - np.linalg.norm(lost, axis=(1, 2))
            gradients = self._gradients(len(x), masks) if details else ()
        usable = smooth & np.isfinite(norms)
        norms = np.where(usable, np.maximum(norms - _TINY, 0.0), 0.0)
        return _Batch(norms, usable, tuple(zs) if details else (), gradients)

    def _gradients(self, points: int, masks: list[F64]) -> tuple[F64, ...]:
        """Gradients of the pre-activations, shape (points, neurons, inputs) for each hidden layer."""
        out: list[F64] = []
        for i, w in enumerate(self.weights):
            out.append(np.broadcast_to(w, (points, *w.shape)) if i == 0 else w @ (masks[i - 1][:, :, None] * out[-1]))
        return tuple(out)


def _spectral_norms(J: F64) -> F64:
    """σ_1 of each matrix of a batch from the smaller Gram matrix, rounded down by more than its error (numerical)."""
    top = np.max(np.abs(J), axis=(1, 2))
    scale = np.exp2(np.floor(np.log2(np.where(top > 0, top, 1.0))))
    J = J / scale[:, None, None]
    few, many = sorted(J.shape[1:])
    gram = J @ J.transpose(0, 2, 1) if J.shape[1] == few else J.transpose(0, 2, 1) @ J
    squares = gram[:, 0, 0] if few == 1 else np.linalg.eigvalsh(gram)[:, -1]
    # λ_max is off by a few (many + few) u ‖J‖_F² <= (many + few) few u λ_max
    norms: F64 = np.sqrt(np.maximum(squares, 0.0)) * scale * (1 - 8 * (many + few) * few * 2.0**-53)
    return norms


def _inside(x: F64, ball: Ball) -> npt.NDArray[np.bool_]:
    """Points of the ball with room for rounding."""
    size = np.linalg.norm(x - ball.center.reshape(-1), ord=ball.norm, axis=1)
    return np.asarray(size <= ball.radius * (1 - 1e-9))


def _pulled_in(x: F64, ball: Ball) -> F64:
    """Nearest points of a slightly smaller ball (ℓ∞: clipped; ℓ2: along the ray)."""
    center, radius = ball.center.reshape(-1), ball.radius * (1 - 1e-6)
    move = x - center
    if math.isinf(ball.norm):
        return center + np.clip(move, -radius, radius)
    size = np.linalg.norm(move, axis=1, keepdims=True)
    return center + move * np.minimum(1.0, radius / np.maximum(size, sys.float_info.min))


def _samples(model: _Model, n_inputs: int, n: int, ball: Ball | None, rng: np.random.Generator) -> F64:
    """Points to start from: in the ball, or of all sizes at which the first layer's breakpoints lie."""
    directions = rng.standard_normal((n, n_inputs))
    if ball is not None:
        radius, center = ball.radius, ball.center.reshape(-1)
        if math.isinf(ball.norm):
            return _pulled_in(center + radius * rng.uniform(-1.0, 1.0, (n, n_inputs)), ball)
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        return _pulled_in(center + directions * radius * rng.random((n, 1)) ** (1.0 / n_inputs), ball)
    if not any(b.any() for b in model.biases):
        return directions  # bias-free: the Jacobian is the same along a ray
    w, b = model.weights[0], model.biases[0]
    lengths = np.linalg.norm(w, axis=1)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        distances = np.abs(b) / lengths
    at = np.log2(distances[np.isfinite(distances) & (distances > 0)])
    low, high = (float(at.min()), float(at.max())) if at.size else (0.0, 0.0)
    exponents = np.clip(rng.uniform(low - 2.0, high + _SCALES, (n, 1)), -900.0, 900.0)
    x = directions / math.sqrt(n_inputs) * 2.0**exponents
    # every other point near the breakpoint of a neuron: a step of its own size from the foot of the perpendicular
    rows = np.flatnonzero((lengths > 0) & np.isfinite(distances))
    if len(rows):
        pick = rows[rng.integers(0, len(rows), len(x[::2]))]
        with np.errstate(over="ignore", invalid="ignore"):
            feet = -(b[pick] / lengths[pick])[:, None] * (w[pick] / lengths[pick][:, None])
        x[::2] = feet + x[::2] * 2.0 ** rng.uniform(-8.0, 0.0, (len(pick), 1))
    return x


def _neighbours(x: F64, batch: _Batch, rng: np.random.Generator) -> Iterator[F64]:
    """Points just across each activation boundary: along its normal, and along random directions in order."""
    z = np.concatenate(batch.z, axis=1)  # (points, neurons)
    g = np.concatenate(batch.gradients, axis=1)  # (points, neurons, inputs)
    with np.errstate(all="ignore"):
        square = np.sum(g * g, axis=2)
        distance = np.where(square > 0, np.abs(z) / np.sqrt(square), np.inf)
        near = np.argsort(distance, axis=1)[:, :_BOUNDARIES]
        rows = np.arange(len(x))[:, None]
        z, g, square = z[rows, near], g[rows, near], square[rows, near]
        foot = -(z / square)[:, :, None] * g
        for beyond in _STEPS_ACROSS:
            yield x[:, None, :] + (1 + beyond) * foot
        d = rng.standard_normal((len(x), 1, x.shape[1]))
        t = -z / np.sum(g * d, axis=2)
        t = np.sort(np.where(np.isfinite(t), t, 0.0), axis=1)
        yield x[:, None, :] + ((t[:, 1:] + t[:, :-1]) / 2)[:, :, None] * d
        yield x[:, None, :] + (2 * t[:, [0, -1]])[:, :, None] * d


def _climb(model: _Model, x: F64, norms: F64, ball: Ball | None, rng: np.random.Generator) -> tuple[F64, F64]:
    """One step of the local search: each start moves to its best neighbour if the norm grows.

    A start that is stuck takes a neighbour of the same norm at random: regions form plateaus.
    """
    batch = model.evaluate(x, details=True)
    near = np.concatenate(list(_neighbours(x, batch, rng)), axis=1)
    flat = np.where(np.isfinite(near), near, 0.0).reshape(-1, x.shape[1])
    if ball is not None:
        flat = _pulled_in(flat, ball)
    found = _norms_in(model, flat, ball)[0].reshape(len(x), -1)
    near = flat.reshape(len(x), -1, x.shape[1])
    rows, best = np.arange(len(x)), np.argmax(found, axis=1)
    grown = found[rows, best] > norms
    level = found >= norms[:, None]
    take = np.where(grown, best, np.argmax(level * rng.random(level.shape), axis=1))
    moved = level[rows, take]
    return np.where(moved[:, None], near[rows, take], x), np.where(moved, found[rows, take], norms)


def _norms_in(model: _Model, x: F64, ball: Ball | None) -> tuple[F64, npt.NDArray[np.bool_]]:
    """Norms at points (0 outside the ball and where not smooth), and which points count."""
    batch = model.evaluate(x)
    if ball is None:
        return batch.norms, batch.smooth
    inside = _inside(x, ball)
    return np.where(inside, batch.norms, 0.0), batch.smooth & inside


@dataclass(frozen=True, eq=False)
class Found:
    """The best smooth point, shape (inputs,), a lower bound of its Jacobian's norm, and counts."""

    x: F64
    value: float
    smooth: int
    stats: tuple[tuple[str, float | str], ...]


def find_best_point(
    network: Network,
    norm: float,
    outputs: Outputs,
    *,
    ball: Ball | None = None,
    n_samples: int = 1000,
    ascent_steps: int = 30,
    seed: int = 0,
) -> Found:
    """Sample, then climb from the best points. Raises nothing: ``smooth = 0`` says that no point counted."""
    rng = np.random.default_rng(seed)
    model = _Model.of(network, outputs, norm)
    x = _samples(model, network.n_inputs, n_samples, ball, rng)
    if ball is not None:
        x = np.vstack([ball.center.reshape(1, -1), x])
    norms, counts = _norms_in(model, x, ball)
    order = np.argsort(np.where(counts, -norms, 1.0), kind="stable")
    best, sampled = x[order[0]], float(norms[order[0]])
    value, neurons = sampled, sum(w.shape[0] for w in model.weights)
    starts = max(1, min(_STARTS, _CHUNK // max(1, neurons * network.n_inputs), int(np.sum(counts))))
    current, reached = x[order[:starts]], norms[order[:starts]]
    idle = 0
    for _ in range(ascent_steps if neurons and counts.any() else 0):
        before = reached
        current, reached = _climb(model, current, reached, ball, rng)
        idle = 0 if bool(np.any(reached > before)) else idle + 1
        if idle == _PATIENCE:
            break
        top = int(np.argmax(reached))
        if reached[top] > value:
            best, value = current[top], float(reached[top])
    stats = (
        ("samples", float(len(x))),
        ("left out", float(len(x) - np.sum(counts))),
        ("best sample", scaled_to(sampled, model.exponent, Sense.LOWER)),
    )
    return Found(best, scaled_to(value, model.exponent, Sense.LOWER), int(np.sum(counts)), stats)


def _check_count(name: str, value: object, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise InputError(name, got=repr(value), needed=f"an int >= {least}", fix="the default serves most networks")
    return int(value)


def _check_region(region: object, network: Network | Graph) -> Ball | None:
    if region is None:
        return None
    if not isinstance(region, Ball) or region.center.size != network.n_inputs:
        what = f"a center of {region.center.size} numbers" if isinstance(region, Ball) else f"a {type(region).__name__}"
        needed = f"None or a Ball with a center of {network.n_inputs} numbers"
        raise InputError("region", got=what, needed=needed, fix="Ball(center, radius, norm)")
    return region


def _read(network: object, input_shape: tuple[int, ...] | None) -> tuple[Network, tuple[str, ...]] | Graph:
    """A chain of ReLU layers with what is assumed of it; the graph itself where it is none."""
    given = network
    if input_shape is not None and not isinstance(network, Graph):
        given = read_model(network, input_shape=input_shape)
    if not isinstance(given, Graph):
        return dense_model(given)
    try:
        net, assumes = dense_model(given)
    except UnsupportedLayerError:
        return given
    return (net, assumes) if net.is_relu_chain else given


def lipschitz_sampled(
    network: object,
    norm: object = 2,
    *,
    outputs: object = None,
    region: object = None,
    n_samples: int = 1000,
    ascent_steps: int = 30,
    seed: int = 0,
    device: object = None,
    input_shape: tuple[int, ...] | None = None,
) -> Result:
    """LOWER bound of the Lipschitz constant: the largest ``‖J(x)‖_p`` found at smooth points x.

    Parameters
    ----------
    network : nn.Module, Network, small Graph, or list of weight matrices (bias-free ReLU net).
    norm : 2 (ℓ2 → ℓ2) or ∞ (∞ → ∞: the largest ℓ1 norm of a row).
    outputs : None, an output index, or a pair ``(j, y)`` for ``f_j − f_y``.
    region : None (all inputs), or a Ball: the constant of f on it.
    n_samples : points drawn; sizes are those at which the first layer's breakpoints lie.
    ascent_steps : rounds of local search, each across every activation boundary of the best points' regions.
    seed : of a generator of its own: the same seed, the same answer.
    device : reserved; None or "cpu".
    input_shape : of one sample, (C, H, W), for modules with convolutions. A small chain of ReLUs becomes dense layers
        (:func:`certbound.io.graph_to_network.dense_network`); of other graphs difference quotients are taken, without a
        certificate (:mod:`certbound.lipschitz.graph_sampled`: *numerical*, ``ascent_steps`` does not apply).

    The point is in ``certificate`` (:class:`SmoothPoint`), whose ``verify(network)`` evaluates it anew, every rounding
    enclosed; the bound is *rigorous* unless the weights were folded with rounding (then an assumption says so).
    Status FAILED, with the vacuous bound 0, if no point counted. A ball of radius 0 has constant 0.

    Raises
    ------
    InputError : unknown norm, outputs, region, device; counts that are no counts.

    Source: Rademacher; certbound theory, section 8.

    >>> round(lipschitz_sampled([[[1.0], [-1.0]], [[1.0, 1.0]]], norm="inf").value, 9)  # |x|
    1.0
    """
    start = time.perf_counter()
    p, model = parse_norm(norm), _read(network, input_shape)
    if isinstance(model, Graph):
        ball, chosen = _check_region(region, model), parse_outputs(outputs, model.n_outputs)
        count = _check_count("n_samples", n_samples, 1)
        return graph_sampled(model, p, chosen, region=ball, n_samples=count, seed=_check_count("seed", seed, 0))
    net, assumes = model
    chosen = parse_outputs(outputs, net.n_outputs)
    ball = _check_region(region, net)
    n, steps = _check_count("n_samples", n_samples, 1), _check_count("ascent_steps", ascent_steps, 0)
    if device not in (None, "cpu"):
        raise InputError("device", got=repr(device), needed="None or 'cpu'", fix="this version samples with numpy")
    claim = Claim(Quantity.LIPSCHITZ, p, p, GLOBAL if ball is None else str(ball), chosen, net.digest)
    method = "sampled Jacobian norms and local search"
    nothing = vacuous_bound(claim, Sense.LOWER, method=method, source=SOURCE)
    if ball is not None and ball.radius == 0.0:
        return Result(nothing, Status.OK, seconds=time.perf_counter() - start)
    with np.errstate(all="ignore"):  # what under- or overflows is left out
        found = find_best_point(
            net, p, chosen, ball=ball, n_samples=n, ascent_steps=steps, seed=_check_count("seed", seed, 0)
        )
    stats = found.stats
    if not found.smooth:
        return Result(nothing, Status.FAILED, seconds=time.perf_counter() - start, stats=stats)
    point = tuple(Fraction(float(v)) for v in found.x)
    witness = SmoothPoint.proving(net, point, p, chosen, found.value, region=ball)
    bound = assuming(replace(witness.bound, method=method), assumes)
    return Result(bound, Status.OK, witness, time.perf_counter() - start, stats)
