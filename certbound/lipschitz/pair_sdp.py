"""``max_D ‖B D A‖_2`` over diagonal D with entries in [0, 1], bounded by the optimum of the one-hidden-layer SDP.

``minimise ρ`` over ``T = diag(t) >= 0`` with ``[[ρ I, −AᵀT], [−T A, 2T − BᵀB]] ⪰ 0``: then ``‖B D A‖_2² <= ρ`` for
every such D. It is LipSDP-neuron for ``x ↦ B relu(A x)``, whose Jacobians are ``B D A``; :func:`closed_form_2` is one
feasible point of it. The solver's answer is a hint: its T counts after repair, with the ρ that T proves.

Source: Fazlyab et al., NeurIPS 2019; certbound theory, section 3.
"""

from __future__ import annotations

import math

import numpy as np

from certbound.arrays import F64
from certbound.errors import MissingDependencyError
from certbound.lipschitz import sdp_cvxpy
from certbound.lipschitz.pattern_pair import active_hidden, balanced, closed_form_2, ldexp_up, triangular_factor
from certbound.lipschitz.repair import repaired
from certbound.types import Status


def pair_sdp_2(B: F64, A: F64, time_limit: float | None = None) -> tuple[float, Status]:
    """``(value, status)``: an upper bound of ``max_D ‖B D A‖_2``, never above the closed form
    (:func:`closed_form_2`) or the product of norms of the balanced pair (hidden coordinates rescaled by powers of 2).

    Parameters
    ----------
    B, A : shapes (p, h) and (h, n); ``A`` is applied first.
    time_limit : seconds of the solver; what it had by then is repaired all the same (TIME_LIMIT).

    The value is a bound whatever the status says: the closed form's where the solver fails (FAILED), is not installed
    (NOT_INSTALLED), or the LMI has more than 300 rows (TOO_LARGE).

    >>> B, A = np.array([[1.0, 1.0]]), np.array([[1.0], [-1.0]])  # D = (1, 0): 1; the product of norms is 2
    >>> value, status = pair_sdp_2(B, A)
    >>> round(value, 5), str(status)
    (1.0, 'ok')
    """
    B, A = active_hidden(B, A)
    if A.shape[0] == 0:
        return 0.0, Status.OK
    A, B, exponent = balanced(A, B)
    # the norm does not see an orthogonal change of input or output
    left = triangular_factor(B) if B.shape[0] > B.shape[1] else B
    right = triangular_factor(A.T).T if A.shape[1] > A.shape[0] else A
    nb, na = float(np.linalg.norm(left, 2)), float(np.linalg.norm(right, 2))
    fallback = min(closed_form_2(B, A), nb * na)
    value, status, _ = _optimum(left / nb, right / na, time_limit)
    return ldexp_up(min(fallback, value * nb * na * (1 + 1e-12)), exponent), status


def pair_multipliers(B: F64, A: F64, time_limit: float | None = None) -> list[tuple[F64, float]]:
    """``[(t, ρ)]`` of the repaired optimum for a balanced pair without dead coordinates, or nothing: a hint, no bound.

    >>> [(t, rho)] = pair_multipliers(np.array([[1.0, 1.0]]), np.array([[1.0], [-1.0]]))
    >>> t.shape, round(rho, 3)
    ((2,), 1.0)
    """
    left = triangular_factor(B) if B.shape[0] > B.shape[1] else B
    right = triangular_factor(A.T).T if A.shape[1] > A.shape[0] else A
    nb, na = float(np.linalg.norm(left, 2)), float(np.linalg.norm(right, 2))
    if not (nb > 0.0 and na > 0.0 and math.isfinite(nb * na)):
        return []
    value, _, t = _optimum(left / nb, right / na, time_limit)
    return [] if t is None else [(nb * nb * t, (nb * na * value) ** 2)]


def _optimum(B: F64, A: F64, time_limit: float | None) -> tuple[float, Status, F64 | None]:
    """The repaired SDP bound for matrices of unit norm, with its multipliers; ∞ where there is none."""
    if sdp_cvxpy.lmi_size([A], 2.0) > sdp_cvxpy.SCS_LIMIT:
        return math.inf, Status.TOO_LARGE, None
    try:
        answer = sdp_cvxpy.solve([A], B, 2.0, time_limit)
    except MissingDependencyError:
        return math.inf, Status.NOT_INSTALLED, None
    status = Status.TIME_LIMIT if "limit" in answer.status else Status.OK
    fixed = None if answer.multipliers is None else repaired([A], B, answer.multipliers)
    if fixed is None:
        return math.inf, Status.TIME_LIMIT if status is Status.TIME_LIMIT else Status.FAILED, None
    return math.sqrt(fixed[0]), status, fixed[1].t[0]
