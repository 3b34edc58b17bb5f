"""LipLT: a Lipschitz bound from the norms of products of weights, between the product of norms and the SDP in price.

Of an activation with slopes in [α, β], ``φ(v) = c v + ψ(v)`` with ``c = (α + β)/2`` and ψ of slopes in [−h, h],
``h = (β − α)/2``. For ``f = W_{m+1} φ(W_m … φ(W_1 x))`` let ``Q_{k,j} = W_k C_{k−1} W_{k−1} ⋯ C_{j+1} W_{j+1} H_j``,
``C = diag(c)``, ``H = diag(h)``, ``H_0 = I``. Then pre-activations change by ``Δv_k = Σ_{j<k} Q_{k,j} u_j`` with
``u_0 = Δx`` and ``|u_j| <= |Δv_j|`` entry by entry. So, with ``Γ = diag(max(|α|, |β|))``,

* ℓ2: ``m_0 = 1``, ``m_k = min(Σ_{j<k} ‖Q_{k,j}‖ m_j, ‖W_k Γ_{k−1}‖ m_{k−1})``, and ``Lip(f) <= m_{m+1}``;
* ℓ∞: for ``‖Δx‖_∞ <= 1`` bounds of every entry are carried along with those of the lengths: ``b_0 = 1``, ``m_0 = √n``,
  ``b_k = Σ_{j<k} min(|Q_{k,j}| b_j, row lengths of Q_{k,j} · m_j)``, or the same of ``W_k Γ_{k−1}`` alone if that is
  less; ``m_k`` as before, or ``‖b_k‖_2`` if that is less. ``Lip(f) <= max b_{m+1}``, never above LipLT with ∞-norms.

It is never above the product of norms, and its price is ``m²/2`` products of matrices and their spectral norms.

Everything is proved: each product is carried with a bound of its error's 2-norm. Weights are first divided by powers of
two, which move through the whole recursion to the end.

Source: Fazlyab et al., NeurIPS 2023 (LipLT), for slopes in [0, 1] and one norm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from certbound.arrays import F64, frozen, power_of_two_scale
from certbound.bound import Bound, Claim, multiply_up
from certbound.certificate import Saveable, Stored, finish, take, take_array
from certbound.errors import CertificateError, InputError, UnsupportedLayerError
from certbound.lipschitz.layer_product import (
    AffinePart,
    SlopePart,
    SumPart,
    checked_subject,
    norm_above,
    parts_of,
)
from certbound.lipschitz.product import Outputs, error_norm, plain_outputs, proves_norm, read_norms, read_outputs
from certbound.network import Network
from certbound.rounding import TINY, U, check_arithmetic, enclose_norm, gamma, product_error, quick_norm, sqrt_up, up
from certbound.types import Quantity, Rigor, Sense

SOURCE = "LipLT (Fazlyab et al., NeurIPS 2023)"
LIMIT = 3e12
"""Floating-point operations, about, that a bound may take: a minute or two on one core."""
ON_SLOPES = "inputs on which the slopes given hold"

_AIR = 4.0
"""Errors of products are published so much larger: another machine's products are off to the other side."""
_PLAIN_AIR = 1.0 + 2.0**-20
_RANGE = 2.0**400
_EXPONENTS = 2200

Slopes = tuple[npt.ArrayLike, npt.ArrayLike]
"""``(α, β)`` of one activation layer: numbers, or one a neuron."""


# ---------------------------------------------------------------- what the recursion works on


@dataclass(frozen=True, eq=False)
class Centred:
    """Slopes in ``[centre − half, centre + half]``, and at most ``gain`` in size, of each neuron of a layer.

    >>> s = Centred.of(0.0, 1.0, 2)
    >>> s.centre.tolist(), s.half.tolist(), s.gain.tolist()
    ([0.5, 0.5], [0.5, 0.5], [1.0, 1.0])
    """

    centre: F64
    half: F64
    gain: F64

    @classmethod
    def of(cls, alpha: npt.ArrayLike, beta: npt.ArrayLike, n: int) -> Centred:
        """From the ends, for n neurons; InputError for ends that are no intervals."""
        ends = [np.asarray(x, dtype=np.float64) for x in (alpha, beta)]
        if any(e.shape not in ((), (n,)) for e in ends) or not bool(np.all((ends[0] <= ends[1]) & _finite(*ends))):
            raise InputError(
                "slopes",
                got=f"shapes {ends[0].shape} and {ends[1].shape}, or ends that are no intervals",
                needed=f"finite α <= β, numbers or of shape ({n},)",
                fix="pass one pair (α, β) for each activation layer",
            )
        a, b = (np.broadcast_to(e, (n,)) for e in ends)
        # within [a, b], since rounding is monotone; half is the larger distance from it, rounded up unless exact
        centre = np.clip(a / 2 + b / 2, a, b)
        half = np.maximum(_distance(b, centre), _distance(centre, a))
        return cls(centre, half, np.maximum(np.abs(a), np.abs(b)))

    @property
    def symmetric(self) -> bool:
        """``half = gain/2`` everywhere, as for slopes in [0, 1]: ``‖W H‖`` is half of ``‖W Γ‖``."""
        return np.array_equal(2.0 * self.half, self.gain)


def _finite(*arrays: F64) -> bool:
    return all(bool(np.all(np.isfinite(a))) for a in arrays)


def _distance(top: F64, bottom: F64) -> F64:
    """``top − bottom >= 0``, rounded up where it is not exact."""
    with np.errstate(over="ignore", invalid="ignore"):
        d = top - bottom
        # TwoSum: what the rounding of the difference lost
        back = d - top
        lost = (top - (d - back)) + (-bottom - back)
    return np.where(lost == 0.0, d, up(d))


@dataclass(frozen=True, eq=False)
class Matrix:
    """A matrix within ``error``, entry by entry, of ``value``."""

    value: F64
    error: F64

    @classmethod
    def shrunk(cls, part: AffinePart, exponent: int) -> Matrix:
        """``W / 2^exponent``; entries that this makes subnormal count as errors.

        >>> Matrix.shrunk(AffinePart(np.array([[6.0]])), 2).value
        array([[1.5]])
        """
        with np.errstate(over="ignore", under="ignore"):
            value = np.ldexp(part.weight, -exponent)
            error = np.where(np.ldexp(value, exponent) == part.weight, 0.0, TINY)
            if part.error is not None:
                moved = np.ldexp(part.error, -exponent)
                error = np.where(part.error > 0.0, up(up(moved) + error), error)
        return cls(value, error)

    def columns(self, factors: F64) -> Matrix:
        """``W diag(factors)``."""
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            value = self.value * factors
            exact = (value == 0.0) & ((self.value == 0.0) | (factors == 0.0))
            exact |= (np.abs(value) >= 2.0**-1000) & (np.abs(np.frexp(factors)[0]) == 0.5)
            error = np.where(exact, 0.0, up(U * np.abs(value)))  # at least the least number: enough for underflow too
            carried = np.where(self.error > 0.0, np.where(factors == 0.0, 0.0, up(self.error * np.abs(factors))), 0.0)
        both = (error > 0.0) & (carried > 0.0)
        return Matrix(value, np.where(both, up(error + carried), error + carried))

    @property
    def columns_filled(self) -> npt.NDArray[np.bool_]:
        """Columns that are not exactly 0."""
        return np.any((self.value != 0.0) | (self.error != 0.0), axis=0)


def _in_range(*arrays: F64) -> bool:
    """Finite, and small enough for the error bounds to hold."""
    return all(bool(np.all(np.abs(a) < _RANGE)) for a in arrays)  # so that NaN fails


def _sums_up(M: F64, v: F64) -> F64:
    """Upper bounds of ``M v`` for entries >= 0 and below 2^500; sums of zeros are 0."""
    n = M.shape[1]
    sums = M @ v
    size = max(2.0, float(np.max(M, initial=0.0)), float(np.max(v, initial=0.0)))
    filled = (M != 0.0).astype(np.float64) @ (v != 0.0) > 0.0
    return np.where(filled, up(up(sums * (1.0 + 2.0 * gamma(n + 4))) + 2 * n * TINY * size), 0.0)


def _add(a: float, b: float) -> float:
    """Sum of sizes, rounded up; exact zeros stay."""
    return b if a == 0.0 else a if b == 0.0 else up(a + b)


def _add_rows(a: F64, b: F64 | float) -> F64:
    """As :func:`_add`, of vectors."""
    return np.where((a == 0.0) | (np.asarray(b) == 0.0), a + b, up(a + b))


def _row_bounds(A: F64, entries: F64, length: float) -> F64:
    """At least ``|A u|`` for all u with ``|u| <= entries`` and ``‖u‖_2 <= length``: of two bounds the smaller."""
    size, n = np.abs(A), A.shape[1]
    squares = up(up((size * size).sum(axis=1) * (1.0 + 2.0 * gamma(n + 4))) + 2 * n * TINY)
    lengths = np.where(size.any(axis=1) & (length > 0.0), up(up(np.sqrt(squares)) * length), 0.0)
    return np.minimum(_sums_up(size, entries), lengths)


@dataclass(frozen=True, eq=False)
class Step:
    """One affine map of the chain, and the slopes of the activation before it (None before the first)."""

    part: AffinePart
    slopes: Centred | None

    def exponent(self) -> int:
        """Of the power of two next to about ``‖W Γ‖``: 0 for zeros. Only the range depends on it, no proof."""
        gain = np.ones(self.part.weight.shape[1]) if self.slopes is None else self.slopes.gain
        a, b = power_of_two_scale(self.part.weight), power_of_two_scale(gain)
        scaled = self.part.weight / a * (gain / b)
        v = np.cos(np.arange(scaled.shape[1], dtype=np.float64))  # a start like any other
        for _ in range(8):
            v = scaled.T @ (scaled @ (v / (float(np.linalg.norm(v)) or 1.0)))
        size = math.sqrt(float(np.linalg.norm(v))) or float(np.linalg.norm(scaled))
        return round(math.log2(size) + math.log2(a) + math.log2(b)) if 0.0 < size < math.inf else 0


# ---------------------------------------------------------------- the recursion


class _UnprovedError(Exception):
    """A number left the range of the error bounds, or one that was stored is not proved."""


class _Source(Protocol):
    """Where the sizes come from: they are computed and recorded, or stored and proved."""

    def norm(self, value: F64, error: float, *, air: float = _AIR) -> float:
        """At least ``‖A‖_2`` for every A within ``error`` (2-norm) of the matrix; what is published, within ``air``
        times the error.
        """
        ...

    def rows(self, least: F64, published: F64) -> F64:
        """At least ``least``, entry by entry."""
        ...


@dataclass(frozen=True, eq=False)
class _Factors:
    """One step of the chain, its weight divided by a power of two."""

    weight: Matrix
    slopes: Centred | None

    @classmethod
    def of(cls, step: Step, exponent: int) -> _Factors:
        """The step's weights, divided by ``2^exponent``."""
        return cls(Matrix.shrunk(step.part, exponent), step.slopes)

    def columns(self, factors: F64 | None) -> Matrix:
        """``W diag(factors)``, or W; refused beyond the range of the error bounds."""
        found = self.weight if factors is None else self.weight.columns(factors)
        if not _in_range(found.value, found.error):
            raise _UnprovedError("weights out of range")
        return found


@dataclass(frozen=True, eq=False)
class _State:
    """After k layers: ``products[j]`` is ``Q_{k,j}`` with a 2-norm bound of its error, ``sizes[j]`` is m_j, and for ℓ∞
    ``rows[j]`` is b_j.
    """

    products: tuple[tuple[F64, float], ...]
    sizes: tuple[float, ...]
    rows: tuple[F64, ...]

    @classmethod
    def start(cls, n: int, norm: float) -> _State:
        """The changes of n inputs whose norm is at most 1."""
        return cls((), (sqrt_up(float(n)),), (np.ones(n),)) if math.isinf(norm) else cls((), (1.0,), ())

    @property
    def value(self) -> float:
        """``max b_k``, or m_k."""
        return float(np.max(self.rows[-1])) if self.rows else self.sizes[-1]

    def then(self, step: _Factors, source: _Source) -> _State:
        """Through the activation and the affine map of one step."""
        slopes = step.slopes
        outer = step.columns(None if slopes is None else slopes.gain)
        # not a product: its error is the same on every machine, and the recursion is to stay below the product of norms
        whole = (outer.value, error_norm(outer.error, 2.0))
        direct = source.norm(*whole, air=_PLAIN_AIR)
        if slopes is None:
            products, norms = [whole], [direct]
        else:
            through, added = step.columns(slopes.centre), step.columns(slopes.half)
            products = [_after(through, direct, *p) for p in self.products]
            norms = [source.norm(*p) for p in products]
            products.append((added.value, _frobenius(added.error)))
            norms.append(_half(direct) if slopes.symmetric else source.norm(*products[-1]))
        path = 0.0
        for norm, size in zip(norms, self.sizes, strict=True):
            path = _add(path, multiply_up(norm, size))
        size = min(path, multiply_up(direct, self.sizes[-1]))
        rows = self.rows
        if rows:
            rows = (*rows, self._entries(products, outer, source))
            size = min(size, enclose_norm(rows[-1])[1] if _in_range(rows[-1]) else math.inf)
        return _State(tuple(products), (*self.sizes, size), rows)

    def _entries(self, products: Sequence[tuple[F64, float]], outer: Matrix, source: _Source) -> F64:
        """b_k, of the sum over all paths or of the last activation and weight alone."""
        terms = [_row_bounds(A, b, m) for (A, _), b, m in zip(products, self.rows, self.sizes, strict=True)]
        largest = np.where(outer.error > 0.0, up(np.abs(outer.value) + outer.error), outer.value)
        alone = _row_bounds(largest, self.rows[-1], self.sizes[-1])

        def total(air: float) -> F64:
            path = np.zeros_like(alone)
            for term, (_, error), m in zip(terms, products, self.sizes, strict=True):
                path = _add_rows(path, _add_rows(term, multiply_up(air * error, m)))
            return np.minimum(path, alone)

        most = total(_AIR)
        # another machine rounds its sums to the other side
        n = max(A.shape[1] for A, _ in products)
        return source.rows(total(1.0), np.where(most == 0.0, 0.0, up(most * (1.0 + 4.0 * gamma(n + 16)))))


def _frobenius(error: F64) -> float:
    return quick_norm(error)[1] if error.any() else 0.0


def _half(value: float) -> float:
    return value / 2 if value / 2 * 2 == value else up(value / 2)


def _after(B: Matrix, size: float, A: F64, error: float) -> tuple[F64, float]:
    """``B A`` and its error: A is off by ``error``, and ``size`` bounds the norm of the true B."""
    if not bool(np.any(B.columns_filled & (np.any(A != 0.0, axis=1) | (error > 0.0)))):
        return np.zeros((len(B.value), A.shape[1])), 0.0  # exactly
    product = B.value @ A
    moved = _add(multiply_up(size, error), multiply_up(_frobenius(B.error), quick_norm(A)[1]))
    total = _add(moved, product_error(B.value, A))
    if not (_in_range(product) and total < _RANGE):
        raise _UnprovedError("a product out of range")
    return product, total


def _in_units(value: float, exponents: Sequence[int]) -> float:
    """``value · 2^Σ exponents``, rounded up."""
    if value == 0.0:
        return 0.0
    try:
        moved = math.ldexp(value, sum(exponents))
    except OverflowError:
        return math.inf
    return up(moved) if moved < 2.0**-1020 else moved


# ---------------------------------------------------------------- computing and proving


class _Computed:
    """Computes sizes, and keeps them."""

    def __init__(self) -> None:
        self.norms: list[float] = []
        self.vectors: list[F64] = []

    def norm(self, value: F64, error: float, *, air: float = _AIR) -> float:
        """By a verified Cholesky factorisation."""
        found = norm_above(AffinePart(value), 2.0)
        self.norms.append(found if error == 0.0 else up(found + up(air * error)))
        return self.norms[-1]

    def rows(self, least: F64, published: F64) -> F64:
        """The ones with air."""
        self.vectors.append(frozen(published.copy()))
        return published


class _Stored:
    """Takes sizes from a proof, and proves them."""

    def __init__(self, proof: PathProof) -> None:
        self._norms, self._vectors = iter(proof.norms), iter(proof.vectors)

    def norm(self, value: F64, error: float, *, air: float = _AIR) -> float:
        """The next one, if ``‖value‖_2 + error`` is not above it."""
        stored = next(self._norms, math.nan)
        if not (stored >= 0.0 and proves_norm(value, 2.0, stored, error)):
            raise _UnprovedError(f"{stored!r} is not proved to bound the norm of a product of layers")
        return stored

    def rows(self, least: F64, published: F64) -> F64:
        """The next ones, if no smaller."""
        stored = next(self._vectors, np.zeros(0))
        if stored.shape != least.shape or not (_in_range(stored) and bool(np.all(stored >= least))):
            raise _UnprovedError("row bounds of a layer are not proved")
        return stored

    def finish(self) -> None:
        """Refuse what is left over."""
        if next(self._norms, None) is not None or next(self._vectors, None) is not None:
            raise _UnprovedError("more sizes than the network has products")


@dataclass(frozen=True, eq=False)
class PathProof:
    """The sizes of the recursion for weights divided by ``2^exponents[k]``: all norms, in the order in which it needs
    them, and for ℓ∞ the vectors b_k.
    """

    exponents: tuple[int, ...]
    norms: tuple[float, ...] = ()
    vectors: tuple[F64, ...] = ()

    def proved(self, network: Network, norm: float, outputs: Outputs, slopes: Sequence[Slopes] | None = None) -> float:
        """The bound that the sizes prove, each of them proved anew; CertificateError with the reason otherwise.

        ``slopes``: as for :func:`path_bound`; taken for granted.
        """
        check_arithmetic()
        steps = steps_of(network, slopes)
        if len(self.exponents) != len(steps) or any(abs(e) > _EXPONENTS for e in self.exponents):
            raise CertificateError(f"exponents {self.exponents!r:.80} for {len(steps)} layers")
        steps[-1] = replace(steps[-1], part=steps[-1].part.rows(outputs))
        source, state = _Stored(self), _State.start(network.n_inputs, norm)
        try:
            for step, exponent in zip(steps, self.exponents, strict=True):
                state = state.then(_Factors.of(step, exponent), source)
            source.finish()
        except _UnprovedError as reason:
            raise CertificateError(str(reason)) from None
        return _in_units(state.value, self.exponents)


def steps_of(network: Network, slopes: Sequence[Slopes] | None = None) -> list[Step]:
    """Affine maps and the slopes before each; an identity where activations follow one another, begin or end it.

    Raises UnsupportedLayerError for residual blocks, InputError for slopes that do not fit.

    >>> [s.slopes is None for s in steps_of(Network.from_weights([[[1.0]], [[2.0]]]))]
    [True, False]
    """
    steps: list[Step] = []
    before: Centred | None = None
    waiting = True  # for an affine map
    width, used = network.n_inputs, 0
    parts = parts_of(network)
    layers = sum(isinstance(p, SlopePart) for p in parts)
    if slopes is not None and len(slopes) != layers:
        raise InputError(
            "slopes",
            got=f"{len(slopes)}",
            needed=f"{layers}, one pair (α, β) for each activation layer",
            fix="see help",
        )
    for part in parts:
        if isinstance(part, SumPart):
            raise UnsupportedLayerError(
                "layers",
                got="a Residual",
                needed="a chain of affine layers and activations",
                fix="use layer_product, which takes residual blocks",
            )
        if isinstance(part, AffinePart):
            steps.append(Step(part, before))
            width, waiting = len(part.weight), False
            continue
        if waiting:
            steps.append(Step(AffinePart(np.eye(width)), before))
        ends = (part.alpha, part.beta) if slopes is None else slopes[used]
        before, waiting, used = Centred.of(*ends, width), True, used + 1
    if waiting:
        steps.append(Step(AffinePart(np.eye(width)), before))
    return steps


def path_cost(network: Network) -> float:
    """Floating-point operations, about, of the bound of all outputs; what a norm costs apart from them counts too.

    >>> path_cost(Network.from_weights([np.eye(10)] * 3)) < 1e8
    True
    """
    return _cost(steps_of(network))


def _cost(steps: Sequence[Step]) -> float:
    widths = [steps[0].part.weight.shape[1], *(len(s.part.weight) for s in steps)]
    total = 0.0
    for k in range(1, len(widths)):
        for n in widths[:k]:
            small, large = sorted((widths[k], n))
            total += 2.0 * widths[k] * widths[k - 1] * n + 4.0 * small**2 * large + 12.0 * small**3 + 3e6
    return total


class PathRecursion:
    """The recursion through the hidden layers, run once; :meth:`proof` finishes it for any outputs.

    Parameters as for :func:`path_bound`.
    """

    def __init__(self, network: Network, norm: float, slopes: Sequence[Slopes] | None = None) -> None:
        check_arithmetic()
        *hidden, self._head = steps_of(network, slopes)
        self._exponents = tuple(s.exponent() for s in hidden)
        self._source = _Computed()
        self._state: _State | None = _State.start(network.n_inputs, norm)
        try:
            for step, exponent in zip(hidden, self._exponents, strict=True):
                self._state = self._state.then(_Factors.of(step, exponent), self._source)
        except _UnprovedError:
            self._state = None

    def proof(self, outputs: Outputs) -> tuple[float, PathProof | None]:
        """The bound, and what proves it; ``(∞, None)`` where numbers left float64."""
        head = replace(self._head, part=self._head.part.rows(outputs))
        if self._state is None or not bool(np.all(np.isfinite(head.part.weight))):
            return math.inf, None
        source = _Computed()
        exponents = (*self._exponents, head.exponent())
        try:
            state = self._state.then(_Factors.of(head, exponents[-1]), source)
        except _UnprovedError:
            return math.inf, None
        proof = PathProof(exponents, (*self._source.norms, *source.norms), (*self._source.vectors, *source.vectors))
        return _in_units(state.value, exponents), proof


# ---------------------------------------------------------------- bound and certificate


@dataclass(frozen=True, eq=False)
class PathCertificate(Saveable):
    """``Lip_p(f) <= value`` by the recursion of the module. :meth:`verify` multiplies the layers and proves every size
    anew, with numpy only.

    >>> weights = [[[1.0], [-1.0]], [[1.0, 1.0]]]  # |x|
    >>> path_bound(Network.from_weights(weights), 2.0).certificate.verify(weights)
    True
    """

    kind: ClassVar[str] = "LipLT path norms"

    subject: str
    norm: float
    outputs: Outputs
    value: float
    proof: PathProof

    @property
    def bound(self) -> Bound:
        """The claim, as a bound that carries this certificate."""
        claim = Claim(Quantity.LIPSCHITZ, self.norm, self.norm, outputs=self.outputs, subject=self.subject)
        return Bound(self.value, claim, Sense.UPPER, Rigor.RIGOROUS, self.kind, SOURCE, certificate=self)

    def verify(self, network_or_weights: object) -> bool:
        """Prove the bound anew; CertificateError with the reason if that fails."""
        network = checked_subject(self, network_or_weights)
        try:
            proved = self.proof.proved(network, self.norm, self.outputs)
        except UnsupportedLayerError as error:
            raise CertificateError(f"{self.kind}: {error}") from error
        if not proved <= self.value:
            raise CertificateError(f"{self.kind}: the sizes prove {proved!r}, {self.value!r} is claimed")
        return True

    def stored(self) -> Stored:
        """For :func:`certbound.certificate.to_bytes`."""
        fields = {"subject": self.subject, "norm": self.norm, "outputs": plain_outputs(self.outputs),
                  "value": self.value, "exponents": list(self.proof.exponents), "norms": list(self.proof.norms),
                  "vectors": len(self.proof.vectors)}  # fmt: skip
        return Stored(self.kind, fields, {f"b.{k}": v for k, v in enumerate(self.proof.vectors)})

    @classmethod
    def restored(cls, stored: Stored) -> PathCertificate:
        """From a file; CertificateError names the field that is wrong."""
        count = take(stored, "vectors", int)
        exponents = take(stored, "exponents", list)
        if not 0 <= count <= len(exponents) or not all(type(e) is int for e in exponents):
            raise CertificateError(f"{cls.kind}: {count} vectors, or exponents that are no integers")
        names = [f"b.{k}" for k in range(count)]
        finish(stored, fields=("subject", "norm", "outputs", "value", "exponents", "norms", "vectors"), arrays=names)
        proof = PathProof(tuple(exponents), read_norms(stored, "norms"),
                          tuple(take_array(stored, n, ndim=1) for n in names))  # fmt: skip
        return cls(take(stored, "subject", str), take(stored, "norm", float), read_outputs(stored, "outputs"),
                   take(stored, "value", float), proof)  # fmt: skip


def path_bounds(
    network: Network,
    norm: float,
    outputs: Sequence[Outputs],
    slopes: Sequence[Slopes] | None = None,
    *,
    domain: str = ON_SLOPES,
    limit: float = LIMIT,
) -> list[Bound] | None:
    """:func:`path_bound` of several outputs or margins of one network; the hidden layers are gone through once.

    >>> [round(b.value, 9) for b in path_bounds(Network.from_weights([[[1.0], [2.0]]]), 2.0, [0, 1, (0, 1)])]
    [1.0, 2.0, 1.0]
    """
    if _cost(steps_of(network, slopes)) > limit:  # refuses what it cannot take, whatever it costs
        return None
    recursion = PathRecursion(network, norm, slopes)
    bounds: list[Bound] = []
    for chosen in outputs:
        value, proof = recursion.proof(chosen)
        certificate = PathCertificate(network.digest, norm, chosen, value, proof or PathProof(()))
        bound = replace(certificate.bound, certificate=None if proof is None else certificate)
        if slopes is not None:
            claim = replace(bound.claim, domain=domain)
            bound = replace(bound, claim=claim, certificate=None, assumptions=("slopes within the ones given",))
        bounds.append(bound)
    return bounds


def path_bound(
    network: Network,
    norm: float,
    outputs: Outputs = "all",
    slopes: Sequence[Slopes] | None = None,
    *,
    domain: str = ON_SLOPES,
    limit: float = LIMIT,
) -> Bound | None:
    """Upper bound of the Lipschitz constant from norms of products of layers (LipLT); rigorous, with its certificate.

    It is at most the product of norms (but for rounding), and needs no solver.

    Parameters
    ----------
    network : affine layers with activations between; any of the IR's, but no residual block.
    norm : 2.0 or ∞, from which and to which.
    outputs : ``"all"``, one output, or ``(j, y)`` for ``f_j − f_y``.
    slopes : ``(α, β)`` of each activation layer, numbers or one a neuron, where its slopes are known to lie on some set
        of inputs (a ReLU right after a ReLU is none); None: over all numbers. If given, the bound is a claim on
        ``domain``, with an assumption and no certificate: :meth:`PathRecursion.proof` has what one is made of.
    limit : operations that it may take (:func:`path_cost`); above it the answer is None.

    Raises
    ------
    UnsupportedLayerError : a residual block. InputError : slopes that do not fit.
    NumericalError : on a processor that flushes subnormal numbers.

    >>> net = Network.from_weights([[[1.0], [-1.0]], [[1.0, 1.0]]])  # |x|: m_1 = √2, m_2 = ‖0‖/2 + (√2/2) √2
    >>> round(path_bound(net, 2.0).value, 12), round(path_bound(net, math.inf).value, 12)
    (1.0, 1.0)
    """
    found = path_bounds(network, norm, [outputs], slopes, domain=domain, limit=limit)
    return None if found is None else found[0]


__all__ = [
    "LIMIT",
    "PathCertificate",
    "PathProof",
    "PathRecursion",
    "path_bound",
    "path_bounds",
    "path_cost",
]
