"""Turn any multipliers T, whatever a solver says of them, into a bound; or say that they prove nothing.

For diagonal ``T_i >= 0`` and a metric direction ``d > 0``, the smallest s with ``M(s·diag(d), T) ⪰ 0`` comes from the
backward recursion ``Y_m = 2T_m − W_{m+1}ᵀW_{m+1}``, ``Y_{i−1} = 2T_{i−1} − W_iᵀT_i Y_i^{-1} T_i W_i``,
``s = λ_max(D^{-1/2} W_1ᵀT_1 Y_1^{-1} T_1 W_1 D^{-1/2})``, all Y_i ≻ 0. Then ``L² <= s`` (ℓ2, d = 1) or ``L² <= s Σd``
(ℓ∞, one output). Repair 1 keeps T. Repair 2 moves T towards a strictly feasible point until Y_i ≻ 0.

Source: certbound theory, section 5 (repairs 1 and 2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from certbound.arrays import F64
from certbound.lipschitz.recursion import forward, forward_solve, head_norm_2


@dataclass(frozen=True, eq=False)
class Multipliers:
    """A point of the dual: diagonals ``t[i]`` of T_{i+1} and the input metric ``d``, in L² units."""

    t: tuple[F64, ...]
    d: F64


def gain_of(encoder: Sequence[F64], head: F64, t: Sequence[F64], d: F64) -> float | None:
    """The smallest s for which (s·d, T) is feasible; None if some Y_i is not positive definite.

    ``encoder`` must not be empty. Y_i counts as positive definite if Cholesky succeeds after a shift of
    ``8 n u``, in units in which the diagonal of 2T is 1 (numerical, not a proof).

    >>> w, h = np.array([[3.0]]), np.array([[2.0]])
    >>> round(gain_of([w], h, [np.array([4.0])], np.ones(1)), 9)  # t = ‖h‖² gives the square of 6
    36.0
    """
    half: F64 = head.T
    for w, ti in zip(reversed(encoder), reversed(t), strict=True):
        # in units in which the diagonal of 2T is 1: multipliers may differ by many orders
        root = np.sqrt(2.0 * ti)
        if not np.all(root > 0.0):
            return None
        with np.errstate(over="ignore"):  # refused below
            half = half / root[:, None]
            Y = np.eye(len(ti)) - half @ half.T
        try:
            factor = np.linalg.cholesky(Y - 8 * len(Y) * 2.0**-53 * np.eye(len(Y)))
        except np.linalg.LinAlgError:
            return None
        if not np.all(np.isfinite(factor)):  # LAPACK completes on NaN
            return None
        half = forward_solve(factor, (0.5 * root)[:, None] * w).T
    return float(np.linalg.norm(half / np.sqrt(d)[:, None], 2)) ** 2


def feasible_point(encoder: Sequence[F64], head: F64, d: F64) -> Multipliers | None:
    """The closed-form recursion's point, scaled to L² units; None for a constant network.

    ``T_i = ρ/(κ_1 … κ_i) I`` and metric ``ρ d`` with ρ = λ_max(H X_m^{-1} Hᵀ); weights near unit norm are assumed.
    """
    run = forward(encoder, d)
    rho = head_norm_2(run, head) ** 2
    if run.zero or rho == 0.0 or not math.isfinite(rho):
        return None
    # forward() divided each layer by a power of two: undo it in the multipliers (T_i scales with 1/(norms so far)²)
    t, gain = [], 1.0
    for w, scaled, kappa in zip(encoder, run.weights, run.kappas, strict=True):
        ratio = float(np.max(np.abs(w)) / np.max(np.abs(scaled)))
        gain *= kappa * ratio * ratio
        t.append(np.full(w.shape[0], rho / gain))
    return Multipliers(tuple(t), rho * d)


def repaired(encoder: Sequence[F64], head: F64, hint: Multipliers) -> tuple[float, Multipliers, str] | None:
    """The smallest ``s·Σ`` reached from the hint: (s, multipliers, which repair); None for a constant network."""
    d = np.maximum(hint.d, 1e-9 * float(hint.d.max()))
    t = tuple(np.maximum(x, 1e-12 * max(float(x.max()), 1e-300)) for x in hint.t)
    safe = feasible_point(encoder, head, d / float(d.max()))
    best: tuple[float, Multipliers, str] | None = None
    for theta in (0.0, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0):
        if theta and safe is None:
            break
        mixed = (
            t
            if safe is None or theta == 0.0
            else tuple((1 - theta) * a + 1.5 * theta * b for a, b in zip(t, safe.t, strict=True))
        )
        s = gain_of(encoder, head, mixed, d)
        if s is not None and (best is None or s < best[0]):
            name = "repair 1 (kept T)" if theta == 0.0 else f"repair 2 (theta = {theta:g})"
            best = (s, Multipliers(mixed, d), name)
    return best
