"""The optimum of the LipSDP-neuron relaxation by Newton's method on its barrier. Its answer is a hint, never a bound.

In coordinates ``ξ = (x, v_1, …, v_m)``, the input and what each hidden layer puts out, layer i reads ``A_i ξ`` (only
what comes before it) and the output is ``C ξ``; a plain chain has ``A_i ξ = W_i v_{i−1}``. For weights of about unit
norm, minimise ``c(p) = ρ`` (ℓ2) or ``Σd`` (ℓ∞, one output) over ``p = (ρ or d, T)`` subject to ``M(p) ⪰ 0``, M with
the diagonal blocks ``ρ I`` or ``diag(d)``, then ``2 T_i``, less ``T_i A_i`` in the rows of layer i and its transpose
in its columns, less ``CᵀC``. Newton minimises ``τ c(p) − log det M(p)`` for growing τ; every iterate is feasible.

With ``∂M/∂p_j = e_j u_jᵀ + u_j e_jᵀ`` (``u_j = e_j − a_j`` for t_j, a_j its row of A_i; ``u_j = e_j/2`` for d_j),
``G = M^{-1}``, ``P = UᵀG E``, ``Q = UᵀG U``, ``R = EᵀG E``: the gradient of −log det is ``−2 diag P``, its Hessian
``2 (P∘Pᵀ + Q∘R)``. All dense products, O(N³) a step.

The gap is a dual bound, also off the centre: after a Newton step Δp with decrement at most 1,
``Z = (G − G ΔM G)/τ`` is feasible for the dual, and c is at most ``(N − tr(G ΔM))/τ`` above the optimum.

Source: Fazlyab et al., NeurIPS 2019 (the relaxation); Boyd & Vandenberghe, *Convex Optimization*, ch. 11 (the method,
and section 11.8.3's dual point); certbound theory, section 5.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from certbound.arrays import F64
from certbound.lipschitz.repair import Multipliers, feasible_point

_GROWTH = 4.0  # of τ, from one centre to the next
_FIRST = 3.0  # τ of the first centre, as a multiple of (rows of M)/(value of the start)
_CENTRED = 0.25  # half the squared Newton decrement below which a centre counts as reached
_AT_THE_CENTRE = 1e-6  # squared decrement where the centre itself is asked for
_CLOSE = 0.25  # squared decrement below which the full step is right
_STEPS = 400


@dataclass(frozen=True, eq=False)
class BarrierAnswer:
    """What Newton reached: multipliers (units of L²), the objective there, and how far at most it is above the optimum.

    ``value``: ρ or Σd; ``excess``: relative, of L = √value, from the dual bound (numerical); ``steps``: Newton steps;
    ``status``: ``optimal``, ``above`` (the optimum is above the value asked for), ``below`` (the objective is below the
    one asked for), ``time limit`` or ``stalled``.
    Nothing here is a bound: see :mod:`certbound.lipschitz.sdp_certificate`.
    """

    multipliers: Multipliers
    value: float
    excess: float
    steps: int
    status: str


@dataclass(frozen=True, eq=False)
class Row:
    """What a layer reads: ``matrix`` applied to the coordinates from ``start`` on."""

    start: int
    matrix: F64

    @property
    def columns(self) -> slice:
        """The coordinates that the matrix takes."""
        return slice(self.start, self.start + self.matrix.shape[1])


@dataclass(frozen=True, eq=False)
class Lmi:
    """M as a function of p: what each layer and the head read. ``rho``: the first variable is ρ, for all inputs."""

    n_inputs: int
    layers: tuple[Row, ...]
    head: Row
    rho: bool

    @property
    def sizes(self) -> tuple[int, ...]:
        """Rows of the blocks of M."""
        return (self.n_inputs, *(len(x.matrix) for x in self.layers))

    @property
    def N(self) -> int:
        """Rows of M."""
        return sum(self.sizes)

    @property
    def cost(self) -> F64:
        """Gradient of the objective."""
        hidden = np.zeros(self.N - self.n_inputs)
        return np.concatenate([np.ones(1 if self.rho else self.n_inputs), hidden])

    def matrix(self, p: F64) -> F64:
        """``M(p)``."""
        n0, N = self.n_inputs, self.N
        t = p[1:] if self.rho else p[n0:]
        M = np.zeros((N, N))
        M[np.arange(N), np.arange(N)] = np.concatenate([np.full(n0, p[0]) if self.rho else p[:n0], 2.0 * t])
        at = n0
        for layer in self.layers:
            h = len(layer.matrix)
            block = t[at - n0 : at - n0 + h, None] * layer.matrix
            M[at : at + h, layer.columns] -= block
            M[layer.columns, at : at + h] -= block.T
            at += h
        c = self.head.columns
        M[c, c] -= self.head.matrix.T @ self.head.matrix
        return M

    def derivatives(self, G: F64) -> tuple[F64, F64]:
        """Gradient and Hessian of ``−log det M`` from ``G = M^{-1}``."""
        n0 = self.n_inputs
        V = G[:, n0:].copy()  # G U, of the multipliers t
        at = 0
        for layer in self.layers:
            V[:, at : at + len(layer.matrix)] -= G[:, layer.columns] @ layer.matrix.T
            at += len(layer.matrix)
        if not self.rho:
            V = np.hstack([0.5 * G[:, :n0], V])
        # P = UᵀG E, Q = UᵀG U: of t its rows of E are those of the hidden coordinates, of d those of the inputs
        first = n0 if self.rho else 0
        P, Q = V[first:].T, V[first:].copy()
        if not self.rho:
            Q[:n0] *= 0.5
        at = n0 - first
        for layer in self.layers:
            Q[at : at + len(layer.matrix)] -= layer.matrix @ V[layer.columns]
            at += len(layer.matrix)
        gradient = -2.0 * np.diagonal(P)
        hessian = P * P.T
        Q *= G[first:, first:]
        hessian += Q
        hessian *= 2.0
        if not self.rho:
            return gradient, hessian
        row = 2.0 * np.sum(V[:n0] * G[:n0, n0:], axis=0)
        gradient = np.concatenate([[-float(np.trace(G[:n0, :n0]))], gradient])
        whole = np.empty((len(gradient), len(gradient)))
        whole[0, 0] = float(np.sum(G[:n0, :n0] ** 2))
        whole[0, 1:] = whole[1:, 0] = row
        whole[1:, 1:] = hessian
        return gradient, whole


def chain_lmi(encoder: Sequence[F64], head: F64, infinity: bool) -> Lmi:
    """The LMI of a plain chain: each layer reads the one before."""
    sizes = [encoder[0].shape[1], *(len(w) for w in encoder)]
    starts = np.cumsum([0, *sizes])
    layers = tuple(Row(int(s), w) for s, w in zip(starts, encoder, strict=False))
    return Lmi(sizes[0], layers, Row(int(starts[-2]), head), not infinity)


def _lapack() -> Any:
    from scipy.linalg import lapack  # its functions are made at run time: no annotations

    return lapack


def _cholesky(M: F64) -> F64 | None:
    """The lower factor (upper triangle undefined), or None where M is not positive definite."""
    L, info = _lapack().dpotrf(M, lower=1, clean=0)
    return L if info == 0 and bool(np.all(np.isfinite(np.diagonal(L)))) else None


def _inverse(L: F64) -> F64:
    G, _ = _lapack().dpotri(L, lower=1)
    G = np.ascontiguousarray(np.tril(G))
    G += np.tril(G, -1).T
    return G


def _solved(factor: F64, b: F64) -> F64:
    x, _ = _lapack().dpotrs(factor, b, lower=1)
    return np.asarray(x, dtype=np.float64).reshape(-1)


@dataclass(frozen=True)
class Limits:
    """When Newton ends: at a relative distance to the optimum (of L), after seconds, when the optimum is known to be
    above a value (of the objective), or when what it has is below one. ``progress`` is called with the step and the
    relative excess after every step.
    """

    tolerance: float = 1e-4
    time_limit: float | None = None
    above: float = math.inf
    progress: Callable[[int, float], None] | None = None
    below: float = -math.inf
    centred: bool = False
    """End at a centre only, where M^{-1} is next to a point of the dual."""


def newton(lmi: Lmi, d: F64, t: Sequence[F64], limits: Limits) -> BarrierAnswer | None:
    """Minimise from the strictly feasible point (d, t), d constant for ℓ2; None if it is not feasible."""
    start = time.perf_counter()
    # each hidden block in units in which its multipliers are about 1: deep networks need it
    scales = [math.sqrt(float(np.mean(x))) if len(x) else 1.0 for x in t]
    if not all(0.0 < s < math.inf for s in scales):
        return None
    lmi = _rescaled(lmi, scales)
    infinity = not lmi.rho
    n_metric = lmi.n_inputs if infinity else 1
    p = np.concatenate([d[:n_metric], *(x / (s * s) for x, s in zip(t, scales, strict=True))]) * 1.05
    N, cost = lmi.N, lmi.cost
    least = -math.inf  # the best dual bound so far

    def answer(status: str, steps: int) -> BarrierAnswer:
        parts = np.split(p[n_metric:], np.cumsum(lmi.sizes[1:-1]))
        own = tuple(x * (s * s) for x, s in zip(parts, scales, strict=True))
        metric = p[:n_metric].copy() if infinity else np.ones(lmi.n_inputs)
        return BarrierAnswer(Multipliers(own, metric), float(cost @ p), _excess(float(cost @ p), least), steps, status)

    tau = _FIRST * N / float(cost @ p)
    here = _at(lmi, tau, p)
    for step in range(1, _STEPS + 1):
        if here is None:  # the start is not feasible, or rounding has taken over
            return answer("stalled", step - 1) if step > 1 else None
        p = here.p
        if limits.time_limit is not None and time.perf_counter() - start > limits.time_limit:
            return answer("time limit", step - 1)
        L = _cholesky(lmi.matrix(p))
        if L is None:
            return answer("stalled", step - 1)
        own, hessian = lmi.derivatives(_inverse(L))
        gradient = tau * cost + own
        factor = _cholesky(hessian)
        if factor is None:
            return answer("stalled", step)
        move = -_solved(factor, gradient)
        decrement = float(-gradient @ move)
        if decrement <= 1.0:
            # tr(G ΔM) = −own·Δp
            least = max(least, float(cost @ p) - (N + float(own @ move)) / tau)
        found = _along(lmi, tau, here, move, decrement)
        if found is None:
            close = _excess(float(cost @ p), least) <= limits.tolerance
            return answer("optimal" if close else "stalled", step)
        size, here = found
        p = here.p
        excess = _excess(float(cost @ p), least)
        if limits.progress is not None:
            limits.progress(step, excess)
        if excess <= limits.tolerance:
            if not limits.centred or decrement <= _AT_THE_CENTRE:
                return answer("optimal", step)
            continue
        if least > limits.above:
            return answer("above", step)
        if float(cost @ p) < limits.below:
            return answer("below", step)
        if 0.5 * decrement <= _CENTRED and size == 1.0:
            tau *= _GROWTH
            here = _at(lmi, tau, p)
    return answer("stalled", _STEPS)


def _excess(value: float, least: float) -> float:
    """Relative excess of √value over √least; ∞ where nothing is known."""
    return math.sqrt(value / least) - 1.0 if 0.0 < least < math.inf else math.inf


@dataclass(frozen=True, eq=False)
class _Point:
    p: F64
    merit: float


def _at(lmi: Lmi, tau: float, p: F64) -> _Point | None:
    """The point p with ρ, or d along its ray, moved to where the barrier is smallest; None where none is feasible.

    With ρ among the variables of a step, it could go no farther than the smallest eigenvalue of M allows, and would
    creep along the boundary.
    """
    n0, n_metric = lmi.n_inputs, 1 if lmi.rho else lmi.n_inputs
    if not bool(np.all(p > 0.0)):
        return None
    M = lmi.matrix(p)
    L = _cholesky(M[n0:, n0:])
    if L is None:
        return None
    metric = np.full(n0, p[0]) if lmi.rho else p[:n0]
    half = _below(L, M[n0:, :n0]) / np.sqrt(metric)
    if not bool(np.all(np.isfinite(half))):
        return None
    # det(κD − P_0) with P_0 = halfᵀ half in units of D, plus what the head reads off the input itself
    if lmi.head.start == 0:
        half = np.vstack([half, lmi.head.matrix[:, :n0] / np.sqrt(metric)])
    small = half @ half.T if len(half) < n0 else half.T @ half
    values = np.zeros(n0)
    values[: len(small)] = np.maximum(np.linalg.eigvalsh(small), 0.0)
    slope = tau * float(lmi.cost[:n_metric] @ p[:n_metric])
    kappa = _least_on_ray(values, slope)
    moved = p.copy()
    moved[:n_metric] *= kappa
    logs = 2.0 * float(np.sum(np.log(np.diagonal(L)))) + float(np.sum(np.log(metric)))
    merit = kappa * slope - logs - float(np.sum(np.log(kappa - values)))
    return _Point(moved, merit) if math.isfinite(merit) else None


def _least_on_ray(values: F64, slope: float) -> float:
    """The minimiser of ``κ slope − Σ log(κ − values)`` above the largest value, by Newton from its left.

    >>> round(_least_on_ray(np.array([0.0, 0.0]), 4.0), 12)  # 2/κ = 4
    0.5
    """
    kappa = float(np.max(values)) + 1.0 / slope
    for _ in range(60):
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            inverse = 1.0 / (kappa - values)
            # Newton for 1/Σ(κ − v)^{-1} = 1/slope, a concave function of κ: monotone from the left
            total = float(np.sum(inverse))
            move = (total / slope - 1.0) * total / float(np.sum(inverse**2))
        if not math.isfinite(move):
            break
        kappa += move
        if abs(move) <= 1e-13 * kappa:
            break
    return kappa


def _below(L: F64, B: F64) -> F64:
    """``L^{-1} B``."""
    from scipy.linalg import solve_triangular

    return np.asarray(solve_triangular(L, B, lower=True, check_finite=False), dtype=np.float64)


def _along(lmi: Lmi, tau: float, start: _Point, move: F64, decrement: float) -> tuple[float, _Point] | None:
    """A step where the merit is about smallest along the direction; None if nothing gains.

    Not the first size that gains enough: a point close to the boundary costs dozens of steps to come back from.
    """
    size = 1.0
    while True:
        found = _at(lmi, tau, start.p + size * move)
        if found is not None and found.merit <= start.merit - 0.1 * size * decrement + 1e-12 * abs(start.merit):
            break
        size *= 0.5
        if size < 1e-12:
            return None
    if decrement <= _CLOSE:
        return size, found
    for factor in (0.5, 2.0):
        while size > 1e-6:
            further = _at(lmi, tau, start.p + factor * size * move)
            if further is None or further.merit >= found.merit:
                break
            size, found = factor * size, further
    return size, found


def _rescaled(lmi: Lmi, scales: Sequence[float]) -> Lmi:
    """The LMI in coordinates in which hidden block i is multiplied by ``scales[i]``."""
    units = np.concatenate(
        [np.ones(lmi.n_inputs), *(np.full(n, s) for n, s in zip(lmi.sizes[1:], scales, strict=True))]
    )
    layers = tuple(Row(x.start, s * x.matrix / units[x.columns]) for x, s in zip(lmi.layers, scales, strict=True))
    head = Row(lmi.head.start, lmi.head.matrix / units[lmi.head.columns])
    return replace(lmi, layers=layers, head=head)


def _alive(encoder: Sequence[F64]) -> list[npt.NDArray[np.bool_]]:
    """Neurons that some input reaches, layer by layer."""
    masks: list[npt.NDArray[np.bool_]] = []
    before = np.ones(encoder[0].shape[1], dtype=np.bool_)
    for w in encoder:
        before = np.any(w[:, before] != 0.0, axis=1)
        masks.append(before)
    return masks


def _with_unreached(
    encoder: Sequence[F64], head: F64, alive: Sequence[npt.NDArray[np.bool_]], t: Sequence[F64]
) -> tuple[F64, ...]:
    """T of all neurons. Those that no input reaches get multipliers that cost nothing, so large that what they feed
    hardly notices them: in units of ``Σ t_j w_j²`` over what they feed.
    """
    full: list[F64] = []
    after, weight, reached = np.ones(len(head)), head, np.ones(len(head), dtype=np.bool_)
    for w, a, x in zip(reversed(encoder), reversed(alive), reversed(t), strict=True):
        fed = after[:, None] * weight[:, ~a] ** 2
        own = np.full(len(a), float(np.max(x)))
        # among themselves nothing is lost: they only have to stay in order
        own[~a] += 1e6 * fed[reached].sum(axis=0) + 10.0 * fed[~reached].sum(axis=0)
        own[a] = x
        full.append(own)
        after, weight, reached = own, w, a
    return tuple(reversed(full))


def solve(encoder: Sequence[F64], head: F64, norm: float, limits: Limits | None = None) -> BarrierAnswer | None:
    """Minimise the relaxation for an encoder and a head of about unit norm; None for a constant network.

    >>> answer = solve([np.array([[1.0], [-1.0]])], np.array([[1.0, 1.0]]) / math.sqrt(2), 2.0)  # |x|/√2
    >>> round(math.sqrt(answer.value), 3), answer.status
    (0.707, 'optimal')
    """
    alive = _alive(encoder)
    if not all(bool(np.all(a)) for a in alive):
        # the multiplier of a neuron that no input reaches has no cost: the barrier would take it to infinity
        inner = [np.ones(encoder[0].shape[1], dtype=np.bool_), *alive]
        small = [w[a][:, b] for w, a, b in zip(encoder, alive, inner, strict=False)]
        if any(w.size == 0 for w in small):
            return None
        found = solve(small, head[:, alive[-1]], norm, limits)
        if found is None:
            return None
        full = _with_unreached(encoder, head, alive, found.multipliers.t)
        return replace(found, multipliers=Multipliers(full, found.multipliers.d))
    limits = limits or Limits()
    inner, last, units, unit = _balanced(encoder, head)
    point = feasible_point(inner, last, np.ones(encoder[0].shape[1]))
    if point is None:
        return None
    own = replace(limits, above=limits.above / unit, below=limits.below / unit)
    found = newton(chain_lmi(inner, last, math.isinf(norm)), point.d, point.t, own)
    if found is None:
        return None
    t = tuple(unit * x / (r * r) for x, r in zip(found.multipliers.t, units, strict=True))
    d = unit * found.multipliers.d if math.isinf(norm) else found.multipliers.d
    return replace(found, multipliers=Multipliers(t, d), value=unit * found.value)


def _balanced(encoder: Sequence[F64], head: F64) -> tuple[list[F64], F64, list[F64], float]:
    """The chain with rows of norm 1, by what each ReLU passes on; the rows' factors; and the head's squared norm, by
    which L² was divided. The optimum is the same, with ``t / factor²`` in place of t.
    """
    inner: list[F64] = []
    units: list[F64] = []
    for w in encoder:
        moved = w * units[-1] if units else w
        r = np.linalg.norm(moved, axis=1)
        r = np.where(r > 0.0, r, 1.0)
        inner.append(moved / r[:, None])
        units.append(r)
    last = head * units[-1]
    size = float(np.linalg.norm(last))
    if not 1e-120 < size < 1e120:  # its square might be no number
        return list(encoder), head, [np.ones(len(w)) for w in encoder], 1.0
    return inner, last / size, units, size * size


__all__ = ["BarrierAnswer", "Limits", "Lmi", "Row", "chain_lmi", "newton", "solve"]
