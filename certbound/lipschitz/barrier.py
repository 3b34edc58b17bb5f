"""The optimum of the LipSDP-neuron relaxation by Newton's method on its barrier. Its answer is a hint, never a bound.

For weights of about unit norm, minimise ``c(p) = ρ`` (ℓ2) or ``Σd`` (ℓ∞, one output) over ``p = (ρ or d, T)``
subject to ``M(p) ⪰ 0``, M block tridiagonal with ``ρ I`` or ``diag(d)``, then ``2 T_i``, the blocks ``−T_i W_i``
below, and the last less ``HᵀH``. Newton minimises ``τ c(p) − log det M(p)`` for growing τ; every iterate is feasible,
and at the exact minimum ``N/τ`` bounds what c is above its optimum (N the rows of M).

With ``∂M/∂p_j = e_j u_jᵀ + u_j e_jᵀ`` (``u_j = e_j − w_j`` for t_j, ``w_j`` row j of W_i in block i − 1;
``u_j = e_j/2`` for d_j), ``G = M^{-1}``, ``P = UᵀG E``, ``Q = UᵀG U``, ``R = EᵀG E``: the gradient of −log det is
``−2 diag P``, its Hessian ``2 (P∘Pᵀ + Q∘R)``. All dense products, O(N³) a step.

Source: Fazlyab et al., NeurIPS 2019 (the relaxation); Boyd & Vandenberghe, *Convex Optimization*, ch. 11 (the method);
certbound theory, section 5.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from certbound.arrays import F64
from certbound.lipschitz.recursion import forward_solve
from certbound.lipschitz.repair import Multipliers, feasible_point

_GROWTH = 12.0  # of τ, from one centre to the next
_CENTRED = 0.05  # half the squared Newton decrement below which a centre counts as reached
_STEPS = 400


@dataclass(frozen=True, eq=False)
class BarrierAnswer:
    """What Newton reached: multipliers (units of L²), the objective there, and how far at most it is above the optimum.

    ``value``: ρ or Σd; ``excess``: relative, from N/τ; ``steps``: Newton steps; ``status``: ``optimal``,
    ``time limit`` or ``stalled``. Nothing here is a bound: see :mod:`certbound.lipschitz.sdp_certificate`.
    """

    multipliers: Multipliers
    value: float
    excess: float
    steps: int
    status: str


@dataclass(frozen=True, eq=False)
class _Lmi:
    """M as a function of p: rows of E and U for each variable, the constant part, and the objective.

    ``rho``: the first variable is ρ, which multiplies the whole first block.
    """

    sizes: tuple[int, ...]
    E: F64  # (N, variables without ρ): unit vectors
    U: F64
    constant: F64
    cost: F64
    rho: bool

    def matrix(self, p: F64) -> F64:
        """``M(p)``."""
        t = p[1:] if self.rho else p
        half = (self.E * t) @ self.U.T
        M = self.constant + half + half.T
        if self.rho:
            n = self.sizes[0]
            M[np.arange(n), np.arange(n)] += p[0]
        return M

    def derivatives(self, G: F64) -> tuple[F64, F64]:
        """Gradient and Hessian of ``−log det M`` from ``G = M^{-1}``."""
        GE, GU = G @ self.E, G @ self.U
        P, Q, R = self.U.T @ GE, self.U.T @ GU, self.E.T @ GE
        gradient, hessian = -2.0 * np.diagonal(P), 2.0 * (P * P.T + Q * R)
        if not self.rho:
            return gradient, hessian
        n = self.sizes[0]
        top = G[:n]
        row = 2.0 * np.sum((top @ self.U) * (top @ self.E), axis=0)
        gradient = np.concatenate([[-float(np.trace(top[:, :n]))], gradient])
        whole = np.empty((len(gradient), len(gradient)))
        whole[0, 0] = float(np.sum(top[:, :n] ** 2))
        whole[0, 1:] = whole[1:, 0] = row
        whole[1:, 1:] = hessian
        return gradient, whole


def _lmi(encoder: Sequence[F64], head: F64, infinity: bool) -> _Lmi:
    n0 = encoder[0].shape[1]
    sizes = (n0, *(len(w) for w in encoder))
    at = np.cumsum([0, *sizes])
    N = int(at[-1])
    hidden = N - n0
    E, U = np.zeros((N, hidden)), np.zeros((N, hidden))
    E[n0:] = np.eye(hidden)
    U[n0:] = np.eye(hidden)
    for i, w in enumerate(encoder):
        columns = slice(at[i + 1] - n0, at[i + 2] - n0)
        U[at[i] : at[i + 1], columns] -= w.T
    constant = np.zeros((N, N))
    constant[at[-2] :, at[-2] :] = -head.T @ head
    if infinity:
        first = np.zeros((N, n0))
        first[:n0] = np.eye(n0)
        E, U = np.hstack([first, E]), np.hstack([0.5 * first, U])
        cost = np.concatenate([np.ones(n0), np.zeros(hidden)])
    else:
        cost = np.concatenate([[1.0], np.zeros(hidden)])
    return _Lmi(sizes, E, U, constant, cost, not infinity)


def _alive(encoder: Sequence[F64]) -> list[npt.NDArray[np.bool_]]:
    """Neurons that some input reaches, layer by layer."""
    masks: list[npt.NDArray[np.bool_]] = []
    before = np.ones(encoder[0].shape[1], dtype=np.bool_)
    for w in encoder:
        before = np.any(w[:, before] != 0.0, axis=1)
        masks.append(before)
    return masks


def _cholesky(M: F64) -> F64 | None:
    try:
        L = np.linalg.cholesky(M)
    except np.linalg.LinAlgError:
        return None
    return np.asarray(L, dtype=np.float64) if bool(np.all(np.isfinite(L))) else None


def solve(
    encoder: Sequence[F64],
    head: F64,
    norm: float,
    *,
    tolerance: float = 1e-4,
    time_limit: float | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> BarrierAnswer | None:
    """Minimise the relaxation for an encoder and a head of about unit norm; None for a constant network.

    ``tolerance``: relative, of L; ``progress``: called with the step and the relative excess after every step.

    >>> answer = solve([np.array([[1.0], [-1.0]])], np.array([[1.0, 1.0]]) / math.sqrt(2), 2.0)  # |x|/√2
    >>> round(math.sqrt(answer.value), 3), answer.status
    (0.707, 'optimal')
    """
    start = time.perf_counter()
    alive = _alive(encoder)
    if not all(bool(np.all(a)) for a in alive):
        # the multiplier of a neuron that no input reaches has no cost: the barrier would take it to infinity
        inner = [np.ones(encoder[0].shape[1], dtype=np.bool_), *alive]
        small = [w[a][:, b] for w, a, b in zip(encoder, alive, inner, strict=False)]
        if any(w.size == 0 for w in small):
            return None
        found = solve(small, head[:, alive[-1]], norm, tolerance=tolerance, time_limit=time_limit, progress=progress)
        if found is None:
            return None
        full = tuple(np.full(len(a), float(np.mean(x))) for a, x in zip(alive, found.multipliers.t, strict=True))
        for whole, a, x in zip(full, alive, found.multipliers.t, strict=True):
            whole[a] = x
        return replace(found, multipliers=Multipliers(full, found.multipliers.d))
    infinity = math.isinf(norm)
    d = np.ones(encoder[0].shape[1])
    point = feasible_point(encoder, head, d)
    if point is None:
        return None
    # each hidden block in units in which its multipliers are about 1: deep networks need it
    scales = [math.sqrt(float(np.mean(t))) for t in point.t]
    before = [1.0, *scales[:-1]]
    weights = [w * (s / b) for w, s, b in zip(encoder, scales, before, strict=True)]
    lmi = _lmi(weights, head / scales[-1], infinity)
    t = np.concatenate([x / (s * s) for x, s in zip(point.t, scales, strict=True)])
    p = np.concatenate([point.d if infinity else point.d[:1], t]) * 1.05
    N = sum(lmi.sizes)

    def answer(status: str, tau: float, steps: int) -> BarrierAnswer:
        rest = p[1:] if lmi.rho else p[lmi.sizes[0] :]
        parts = np.split(rest, np.cumsum(lmi.sizes[1:-1]))
        own = tuple(x * (s * s) for x, s in zip(parts, scales, strict=True))
        metric = p[: lmi.sizes[0]] if infinity else np.ones(lmi.sizes[0])
        value = float(lmi.cost @ p)
        # ρ = L²: half its relative excess is that of L
        return BarrierAnswer(Multipliers(own, metric), value, 0.5 * N / (tau * value), steps, status)

    L = _cholesky(lmi.matrix(p))
    if L is None:
        return None
    tau = N / float(lmi.cost @ p)  # as if the gap were the whole value
    for step in range(1, _STEPS + 1):
        if time_limit is not None and time.perf_counter() - start > time_limit:
            return answer("time limit", tau, step - 1)
        inverse = forward_solve(L, np.eye(N))
        gradient, hessian = lmi.derivatives(inverse.T @ inverse)
        gradient = tau * lmi.cost + gradient
        factor = _cholesky(hessian)
        if factor is None:  # rounding has taken over: what there is so far counts
            return answer("stalled", tau, step)
        move = -forward_solve(factor, forward_solve(factor, gradient), transposed=True)
        decrement = float(-gradient @ move)
        size, merit = 1.0, _merit(lmi, tau, p, L)
        while size > 1e-12:
            trial = p + size * move
            L_trial = _cholesky(lmi.matrix(trial))
            enough = merit - 0.1 * size * decrement + 1e-12 * abs(merit)
            if L_trial is not None and _merit(lmi, tau, trial, L_trial) <= enough:
                p, L = trial, L_trial
                break
            size *= 0.5
        else:
            return answer("stalled", tau, step)
        excess = 0.5 * N / (tau * float(lmi.cost @ p))
        if progress is not None:
            progress(step, excess)
        if 0.5 * decrement * size <= _CENTRED and size == 1.0:
            if excess <= tolerance:
                return answer("optimal", tau, step)
            tau *= _GROWTH
    return answer("stalled", tau, _STEPS)


def _merit(lmi: _Lmi, tau: float, p: F64, L: F64) -> float:
    return tau * float(lmi.cost @ p) - 2.0 * float(np.sum(np.log(np.diagonal(L))))


__all__ = ["BarrierAnswer", "solve"]
