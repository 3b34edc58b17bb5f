"""The backward Riccati recursion of a system: a storage matrix a state, and multipliers in closed form.

For steps ``z⁺ = H z + G ψ(W z)`` with slopes in [0, 1], output ``C z`` and diagonal multipliers T:
``P_L = CᵀC``, ``P⁻ = HᵀPH + (HᵀPG + WᵀT)(2T − GᵀPG)^{-1}(HᵀPG + WᵀT)ᵀ`` with ``2T ≻ GᵀPG``. Then
``‖f(x) − f(y)‖_2² <= (x − y)ᵀ P_0 (x − y)``. Nothing here is proved: see :mod:`certbound.lipschitz.system_certificate`.

Source: certbound theory, section 5 (residual).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from certbound.arrays import F64
from certbound.lipschitz.system import Step, System

_TAUS = tuple(0.5 * (1.0 + 2.0**k) for k in np.arange(-6.0, 3.01, 0.75))  # T over λ_max(GᵀPG): above one half


def storage(system: System, t: Sequence[F64], slack: float = 0.0) -> list[F64] | None:
    """``P_0, …, P_L``, each above what the recursion needs by ``slack`` of its diagonal; None where some
    ``2T − GᵀPG`` is not positive definite.

    >>> from certbound.network import Network
    >>> system = System.of(Network.from_weights([[[3.0]], [[2.0]]]))
    >>> [P.tolist() for P in storage(system, [np.array([4.0])])]
    [[[36.0]], [[4.0]]]
    """
    C = system.head.matrix
    P = _lifted(C.T @ C, slack)
    result = [P]
    for step, ti in zip(reversed(system.steps), reversed(t), strict=True):
        before = _before(step, P, ti)
        if before is None:
            return None
        P = _lifted(before, slack)
        result.append(P)
    return result[::-1]


def _lifted(P: F64, slack: float) -> F64:
    P = 0.5 * (P + P.T)
    if slack:
        diagonal = np.diagonal(P)
        P = P + np.diag(slack * (diagonal + 1e-6 * float(np.max(diagonal, initial=0.0))))
    return P


def _before(step: Step, P: F64, t: F64) -> F64 | None:
    W, G = step.W.matrix, step.G
    PG = P if G is None else P @ G
    S = np.diag(2.0 * t) - (PG if G is None else G.T @ PG)
    N = W.T * t
    if step.H is not None:
        N = N + step.H.matrix.T @ PG
    if not bool(np.all(np.isfinite(S))):
        return None
    try:
        R = np.linalg.cholesky(0.5 * (S + S.T))
        half = np.linalg.solve(R, N.T)  # R is triangular; numpy alone has no solver that knows
    except np.linalg.LinAlgError:
        return None
    before = half.T @ half
    if step.H is not None:
        before = before + step.H.matrix.T @ (P @ step.H.matrix)
    return before if bool(np.all(np.isfinite(before))) else None


def closed_form(system: System) -> tuple[F64, ...] | None:
    """Multipliers ``T = τ I``, step by step from the output, each τ the one that keeps ``λ_max(P⁻)`` smallest.

    None where a state does not reach the output, or the numbers leave the range of float64.

    >>> from certbound.network import Network
    >>> [t.tolist() for t in closed_form(System.of(Network.from_weights([[[3.0]], [[2.0]]])))]
    [[4.0]]
    """
    C = system.head.matrix
    P = C.T @ C
    found: list[F64] = []
    for step in reversed(system.steps):
        n = len(step.W.matrix)
        GPG = P if step.G is None else step.G.T @ P @ step.G
        if not bool(np.all(np.isfinite(GPG))):
            return None
        values, vectors = np.linalg.eigh(0.5 * (GPG + GPG.T))
        top = float(values[-1])
        if not top > 0.0:
            return None
        best, best_tau = math.inf, top
        W = step.W.matrix.T @ vectors
        PG = P if step.G is None else P @ step.G
        M = None if step.H is None else (step.H.matrix.T @ PG) @ vectors
        base = None if step.H is None else step.H.matrix.T @ P @ step.H.matrix
        for ratio in (*_TAUS, 1.0):
            tau = ratio * top
            N = tau * W if M is None else M + tau * W
            half = N / np.sqrt(2.0 * tau - np.minimum(values, top))
            value = _top(base, half)
            if value < best:
                best, best_tau = value, tau
        t = np.full(n, best_tau)
        before = _before(step, P, t)
        if before is None:
            return None
        P = 0.5 * (before + before.T)
        found.append(t)
    return tuple(reversed(found))


def _top(base: F64 | None, half: F64, steps: int = 12) -> float:
    """``λ_max(base + half halfᵀ)``, roughly, by power iteration."""
    x = np.linspace(1.0, 2.0, len(half))
    value = 0.0
    for _ in range(steps):
        y = half @ (half.T @ x)
        if base is not None:
            y = y + base @ x
        value = float(np.linalg.norm(y))
        if not (value > 0.0 and math.isfinite(value)):
            return value if value == 0.0 else math.inf
        x = y / value
    return value


def metric(P: F64) -> F64:
    """A diagonal d with ``diag(d) ⪰ P`` and a small sum, for ℓ∞: the best of a few.

    >>> metric(np.array([[1.0, -1.0], [-1.0, 1.0]])).round(9).tolist()  # (x_1 − x_2)² <= 2 x_1² + 2 x_2²
    [2.0, 2.0]
    """
    rows = np.abs(P).sum(axis=1)
    top = float(np.max(rows, initial=0.0))
    if not top > 2.0**-900:  # 0, or so small that its parts underflow: any direction will do
        return np.full(len(P), max(top, 2.0**-900))
    best, best_sum = np.full(len(P), top), math.inf
    for shape in (rows, np.sqrt(rows * top), np.ones(len(P))):
        d = np.maximum(shape, 1e-9 * float(np.max(shape)))
        s = largest_in(P, d)
        if s is not None and s * float(d.sum()) < best_sum:
            best, best_sum = s * d, s * float(d.sum())
    return best


def largest_in(P: F64, d: F64) -> float | None:
    """The smallest s with ``s diag(d) ⪰ P``; None where it leaves the range of float64.

    >>> round(largest_in(np.diag([4.0, 1.0]), np.array([2.0, 1.0])), 9)
    2.0
    """
    root = 1.0 / np.sqrt(d)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        scaled = root[:, None] * P * root
    if not bool(np.all(np.isfinite(scaled))):
        return None
    s = float(np.linalg.eigvalsh(scaled)[-1])
    return s if math.isfinite(s) else None


__all__ = ["closed_form", "largest_in", "metric", "storage"]
