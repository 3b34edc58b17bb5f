"""The always-valid forward recursion of the LipSDP-neuron relaxation, in closed form.

For ``f = W_{m+1} φ(W_m … φ(W_1 x))`` with slopes in [0, 1] and any diagonal ``T_i >= 0``:
``X_0 = diag(d)`` (``d = 1`` for ℓ2), ``X_i = 2T_i − T_i W_i X_{i−1}^{-1} W_iᵀ T_i``; if all ``X_i ≻ 0``,
``L² <= λ_max(W_{m+1} X_m^{-1} W_{m+1}ᵀ)``, times ``Σd`` for one output against ‖·‖_∞.

With ``K_i = W_i X_{i−1}^{-1} W_iᵀ`` and ``T_i = I/λ_max(K_i)`` every ``X_i`` is positive definite by
construction: ``X_i = Y_i/λ_i`` with ``I ⪯ Y_i = 2I − K_i/λ_i ⪯ 2I``. So this is a bound for every network.

Source: Fazlyab et al., NeurIPS 2019 (LipSDP-neuron); Xu & Sivaranjani, 2024 (ECLipsE-Fast's closed form);
certbound theory, section 5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from certbound.arrays import F64, power_of_two_scale

Floats = npt.NDArray[np.floating[Any]]
_REFINEMENTS = 4
_FLOOR = 1e-9  # smallest entry of d relative to the largest: 1/d must stay finite


def forward_solve(L: Floats, B: Floats, *, transposed: bool = False) -> F64:
    """``L^{-1} B`` (or ``L^{-T} B``) for a lower triangular L.

    >>> forward_solve(np.array([[2.0, 0.0], [1.0, 1.0]]), np.array([2.0, 3.0])).tolist()
    [1.0, 2.0]
    """
    # imported here: what verifies certificates needs numpy only
    from scipy.linalg import solve_triangular

    return np.asarray(solve_triangular(L, B, lower=True, trans=1 if transposed else 0), dtype=np.float64)


@dataclass(frozen=True, eq=False)
class Forward:
    """The recursion up to the last hidden layer, for weights divided by powers of two.

    ``factors[i]`` is the lower Cholesky factor of Y_{i+1}; ``kappas[i] = λ_{i+1}/λ_i``, so that
    ``T_i = I/(κ_1 … κ_i)``. ``log2_scale``: the powers of two taken out of the weights.
    ``zero``: some K_i vanished, so the network is constant.
    """

    weights: tuple[F64, ...]
    d: F64
    factors: tuple[F64, ...]
    kappas: tuple[float, ...]
    log2_scale: int
    zero: bool

    def log2_gain(self) -> float:
        """``log2 Π κ_i`` (the gain in L²)."""
        return math.fsum(math.log2(k) for k in self.kappas)


def forward(encoder: Sequence[F64], d: F64) -> Forward:
    """Run the recursion through the hidden layers from the metric ``X_0 = diag(d)``, d > 0."""
    weights, log2_scale = [], 0
    for w in encoder:
        scale = power_of_two_scale(w)
        weights.append(w / scale)
        log2_scale += int(math.log2(scale))
    factors: list[F64] = []
    kappas: list[float] = []
    half = None if not weights else weights[0] / np.sqrt(d)
    for i, w in enumerate(weights):
        if i:
            # W Y^{-1} Wᵀ = HHᵀ with H = W R^{-T}
            half = forward_solve(factors[-1], w.T).T
        assert half is not None  # set above for i = 0
        K = half @ half.T
        kappa = float(np.linalg.eigvalsh(K)[-1])
        if not kappa > 0.0:
            return Forward(tuple(weights), d, tuple(factors), tuple(kappas), log2_scale, True)
        factors.append(np.asarray(np.linalg.cholesky(2.0 * np.eye(len(K)) - K / kappa), dtype=np.float64))
        kappas.append(kappa)
    return Forward(tuple(weights), d, tuple(factors), tuple(kappas), log2_scale, False)


def _finish(run: Forward, half_norm: float, head_log2: int, extra: float = 1.0) -> float:
    """``sqrt(extra · Π κ) · half_norm · 2^(scales)``, rounded up; overflow gives ∞."""
    if run.zero or half_norm == 0.0:
        return 0.0
    log2 = 0.5 * (run.log2_gain() + math.log2(extra)) + math.log2(half_norm) + run.log2_scale + head_log2
    whole = math.floor(log2)
    try:
        # a log2 of size e carries an error of about e·u, hence the outward factor
        value = math.ldexp(2.0 ** (log2 - whole) * (1.0 + (abs(log2) + 64.0) * 2.0**-50), whole)
    except OverflowError:
        return math.inf
    return math.nextafter(value, math.inf)


def head_norm_2(run: Forward, head: F64) -> float:
    """``sqrt λ_max(H X_m^{-1} Hᵀ)`` for head rows H: the ℓ2 bound of the network with that head."""
    scale = power_of_two_scale(head)
    h = head / scale
    if run.zero:
        return 0.0
    if not run.weights:  # no hidden layer: X_0 = diag(d)
        return _finish(run, float(np.linalg.norm(h / np.sqrt(run.d), 2)), int(math.log2(scale)))
    half = forward_solve(run.factors[-1], h.T)
    return _finish(run, float(np.linalg.norm(half, 2)), int(math.log2(scale)))


def rows_norm_2(run: Forward, rows: F64) -> list[float]:
    """ℓ2 bounds of several scalar heads (one a row) from one run."""
    return [head_norm_2(run, row[None]) for row in rows]


def recursion_2(encoder: Sequence[F64], head: F64) -> float:
    """ℓ2 → ℓ2 Lipschitz bound of the network; never above the product of norms (up to rounding).

    >>> round(recursion_2([np.array([[3.0]])], np.array([[2.0]])), 9)
    6.0
    """
    n = (encoder[0] if encoder else head).shape[1]
    return head_norm_2(forward(encoder, np.ones(n)), head)


def recursion_inf(encoder: Sequence[F64], row: F64) -> tuple[float, F64]:
    """Bound of ``|f(x) − f(y)| / ‖x − y‖_∞`` for one scalar head row, and the metric d that gives it.

    Any d > 0 gives a bound. It starts from ``d = |c| |W_m| … |W_1|`` (exact for one layer: ``‖c‖_1``) and is
    moved, for fixed T, to the minimiser of ``Σd · Σ_j g_j²/d_j``, which is ``d ∝ |g|``; the best is kept.

    >>> round(recursion_inf([], np.array([1.0, -2.0]))[0], 9)
    3.0
    """
    sensitivity = np.abs(row) / power_of_two_scale(row)
    for w in reversed(encoder):
        sensitivity = sensitivity @ (np.abs(w) / power_of_two_scale(w))
    d = _positive(sensitivity)
    best, best_d = math.inf, d
    scale = power_of_two_scale(row)
    c = row / scale
    for _ in range(_REFINEMENTS):
        run = forward(encoder, d)
        if run.zero or not c.any():
            return 0.0, d
        vectors = _adjoint(run, c)
        half = float(np.linalg.norm(vectors[1]))
        value = _finish(run, half, int(math.log2(scale)), extra=float(d.sum()))
        if value < best:
            best, best_d = value, d
        elif value > best * (1 - 1e-3):
            break
        d = _positive(np.sqrt(d * np.abs(vectors[0]) / (np.abs(vectors[0]).max() or 1.0)))
    return best, best_d


def _adjoint(run: Forward, c: F64) -> tuple[F64, F64]:
    """``g = W_1ᵀT_1 X_1^{-1} … W_mᵀT_m X_m^{-1} c`` up to a positive factor, and ``R_m^{-1} c``."""
    if not run.weights:
        return c, c / np.sqrt(run.d)
    half = forward_solve(run.factors[-1], c)
    p = c
    for w, factor in zip(reversed(run.weights), reversed(run.factors), strict=True):
        p = forward_solve(factor, forward_solve(factor, p), transposed=True)
        p = w.T @ p  # T is a multiple of I here, and factors do not matter
    return p, half


def _positive(d: F64) -> F64:
    """Scale to a largest entry of 1 and lift the entries to a floor; all ones for zeros."""
    top = float(d.max(initial=0.0))
    if not (math.isfinite(top) and top > 0.0):
        return np.ones_like(d)
    return np.maximum(d / top, _FLOOR)
