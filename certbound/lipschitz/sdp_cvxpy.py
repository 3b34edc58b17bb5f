"""LipSDP-neuron through cvxpy: the reference for small networks. Its answer is a hint, never a bound.

minimise ``ρ`` (ℓ2) or ``Σd`` (ℓ∞, one output) subject to ``M(P, T) ⪰ 0``, ``T >= 0``, with M block tridiagonal:
``M_00 = P``, ``M_ii = 2T_i``, ``M_{i,i−1} = −T_i W_i``, ``M_mm`` less ``W_{m+1}ᵀW_{m+1}``.

Source: Fazlyab et al., NeurIPS 2019 (the neuron version; the network version is false).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from certbound.arrays import F64
from certbound.errors import MissingDependencyError
from certbound.lipschitz.repair import Multipliers

CLARABEL_LIMIT = 130
SCS_LIMIT = 300


@dataclass(frozen=True, eq=False)
class SolverAnswer:
    """What the solver said. ``value`` is L² in the solver's view: heuristic until repaired."""

    multipliers: Multipliers | None
    value: float
    solver: str
    status: str


def lmi_size(encoder: Sequence[F64], norm: float) -> int:
    """Rows of M: inputs plus hidden neurons (for ℓ2 a wide input is first reduced to the first layer's width)."""
    inputs = encoder[0].shape[1]
    if not math.isinf(norm):
        inputs = min(inputs, encoder[0].shape[0])
    return inputs + sum(w.shape[0] for w in encoder)


def import_cvxpy() -> Any:
    """cvxpy, or MissingDependencyError with the command."""
    try:
        import cvxpy
    except ImportError as error:
        raise MissingDependencyError(
            "cvxpy", purpose="the LipSDP reference", command="pip install 'certbound[sdp]'"
        ) from error
    return cvxpy


def solve(encoder: Sequence[F64], head: F64, norm: float, time_limit: float | None = None) -> SolverAnswer:
    """Solve the SDP for weights of about unit norm; Clarabel up to an LMI of 130, SCS above.

    The multipliers are None where the solver failed. Nothing here is a bound: see :mod:`certbound.lipschitz.repair`.
    """
    cp = import_cvxpy()
    n0 = encoder[0].shape[1]
    t = [cp.Variable(w.shape[0], nonneg=True) for w in encoder]
    d = cp.Variable(n0, nonneg=True) if math.isinf(norm) else None
    rho: Any = cp.Variable(nonneg=True)  # used for ℓ2 only
    sizes = [n0, *(w.shape[0] for w in encoder)]
    blocks: list[list[Any]] = [[np.zeros((a, b)) for b in sizes] for a in sizes]
    blocks[0][0] = cp.diag(d) if d is not None else rho * np.eye(n0)
    for i, w in enumerate(encoder, start=1):
        blocks[i][i] = 2 * cp.diag(t[i - 1])
        blocks[i][i - 1] = -cp.diag(t[i - 1]) @ w
        blocks[i - 1][i] = blocks[i][i - 1].T
    blocks[-1][-1] = blocks[-1][-1] - head.T @ head
    size = sum(sizes)
    objective = cp.sum(d) if d is not None else rho
    problem = cp.Problem(cp.Minimize(objective), [cp.bmat(blocks) >> 0])
    solver = "CLARABEL" if size <= CLARABEL_LIMIT else "SCS"
    options: dict[str, Any] = {} if solver == "CLARABEL" else {"eps": 1e-6, "max_iters": 20000}
    if time_limit is not None:
        options["time_limit" if solver == "CLARABEL" else "time_limit_secs"] = time_limit
    with warnings.catch_warnings():
        # "solution may be inaccurate": it is repaired or dropped anyway
        warnings.simplefilter("ignore")
        try:
            problem.solve(solver=solver, **options)
        except cp.error.SolverError:
            return SolverAnswer(None, math.nan, solver, "solver error")
    optimum = cast("Any", problem.value)
    values: list[Any] = [x.value for x in t]
    metric: Any = np.ones(n0) if d is None else d.value
    finite = optimum is not None and all(v is not None and bool(np.all(np.isfinite(v))) for v in [*values, metric])
    if not finite or not np.any(metric > 0):
        return SolverAnswer(None, math.nan, solver, str(problem.status))
    point = Multipliers(tuple(np.maximum(v, 0.0) for v in values), np.maximum(metric, 0.0))
    return SolverAnswer(point, float(cast("Any", optimum)), solver, str(problem.status))
