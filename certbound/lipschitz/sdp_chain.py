"""The LipSDP of a plain ReLU chain over all inputs, by every solver. See :mod:`certbound.lipschitz.sdp`.

Every answer is the smallest of what the method found, the closed form and the product of norms (a solver's optimum can
be above the product), and is proved.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from certbound.arrays import F64
from certbound.bound import Bound, Claim, Result
from certbound.errors import MissingDependencyError
from certbound.lipschitz import barrier, first_order, sdp_cvxpy
from certbound.lipschitz.pattern_pair import triangular_factor
from certbound.lipschitz.product import Outputs, certified_product, output_row, product_bound
from certbound.lipschitz.recursion import recursion_2, recursion_inf
from certbound.lipschitz.repair import Multipliers, gain_of
from certbound.lipschitz.sdp_certificate import SOURCE, Problem, Proof, SdpCertificate, certify
from certbound.network import Network
from certbound.types import Quantity, Rigor, Sense, Status

FIRST_ORDER = 1e-3
"""Where the first-order solver ends at the earliest: its own estimate is some hundred times too careful."""

Solver = Literal["barrier", "first-order", "cvxpy"]

BARRIER_LIMIT = 4000
"""Rows of M that the barrier takes: a step costs about 4 N³ operations and 6 N² numbers, a solve 40 to 100 steps."""


@dataclass(frozen=True)
class Found:
    """What proves the outputs' constant, and how the method ended."""

    proof: Proof
    method: str
    status: Status = Status.OK
    stats: tuple[tuple[str, float | str], ...] = ()


def _metric(network: Network, norm: float, outputs: Outputs) -> F64:
    """The input metric d of the closed form: 1 for ℓ2, the refined one of :func:`recursion_inf` for ℓ∞."""
    if not math.isinf(norm):
        return np.ones(network.n_inputs)
    return recursion_inf(network.chain.encoder, output_row(network, outputs))[1]


def closed_form(network: Network, norm: float, outputs: Outputs) -> Found:
    """The smaller of the closed form and the product of norms, proved."""
    product = Proof.by_product(network, norm, outputs)
    row = None if outputs == "all" else output_row(network, outputs)
    if product.value == 0.0 or not network.chain.encoder or (row is not None and not np.all(np.isfinite(row))):
        return Found(product, "product of norms")  # one affine map or a constant: the product is exact
    found = certify(network, outputs, norm, _metric(network, norm, outputs))
    if found is None or product.value <= found[0].value:
        return Found(product, "product of norms")
    return Found(found[0], "closed-form recursion")


@dataclass(frozen=True)
class Options:
    """How a solver is asked: which, how closely (relative, of L), for how long, where, and who is told of its steps.

    ``above``: the barrier may end once the constant is known to be above this.
    """

    solver: Solver
    tolerance: float = 1e-4
    left: float | None = None
    device: object = None
    above: float = math.inf
    progress: Callable[[int, float], None] | None = None


def _answer(
    unit: list[F64], head: F64, norm: float, options: Options
) -> tuple[sdp_cvxpy.SolverAnswer | None, str, float]:
    """A solver's answer for weights of about unit norm, what it said, and the relative excess over the optimum (of L;
    infinite where the solver does not know).
    """
    if options.solver == "barrier":
        limits = barrier.Limits(0.9 * options.tolerance, options.left, options.above, options.progress)
        reached = barrier.solve(unit, head, norm, limits)
        if reached is None:
            return None, "barrier (no interior point)", math.inf
        answer = sdp_cvxpy.SolverAnswer(reached.multipliers, reached.value, "barrier", reached.status)
        return answer, f"barrier ({reached.status}, {reached.steps} steps)", reached.excess
    if options.solver == "first-order":
        found = first_order.solve(
            [(w, None, None) for w in unit], head, norm, device=options.device, time_limit=options.left,
            tolerance=max(options.tolerance, FIRST_ORDER), progress=options.progress,
        )  # fmt: skip
        if found is None:
            return None, "first-order (a constant network)", math.inf
        answer = sdp_cvxpy.SolverAnswer(Multipliers(found.t, found.d), found.value, "first-order", found.status)
        return answer, f"first-order ({found.status}, {found.steps} steps)", math.inf
    answer = sdp_cvxpy.solve(unit, head, norm, options.left)
    return answer, f"{answer.solver} ({answer.status})", math.inf


def ask(network: Network, outputs: Outputs, norm: float, options: Options) -> tuple[Hint | None, str, float, float]:
    """The solver's multipliers for the weights of :class:`Problem`, what it said, its value (heuristic), and the
    relative excess of that over the optimum.
    """
    problem = Problem.of(network, outputs)
    weights = list(problem.encoder)
    if not math.isinf(norm) and weights[0].shape[1] > weights[0].shape[0]:
        # ‖·‖_2 does not see an orthogonal change of input: the LQ factor has h_1 columns (false for ℓ∞)
        weights[0] = triangular_factor(weights[0].T).T
    norms = [float(np.linalg.norm(w, 2)) for w in weights]
    head_norm = float(np.linalg.norm(problem.head, 2))
    unit = [w / n for w, n in zip(weights, norms, strict=True)]
    # T of unit weights in units of L² becomes T/s, and the norms so far are taken out of it
    gains = np.cumprod(np.square(norms))
    scale = math.sqrt(gains[-1]) * head_norm * 2.0 ** min(1000, max(-1000, sum(problem.exponents)))
    above = (options.above / scale) ** 2 if 0.0 < scale < math.inf else math.inf
    answer, said, excess = _answer(unit, problem.head / head_norm, norm, replace(options, above=above))
    if answer is None or answer.multipliers is None:
        return None, said, math.nan, math.inf
    d = answer.multipliers.d
    # T keeps its units of L²: of the factors s that fit it, the solver's own may be too small, or T's least too large
    own = float(np.max(d)) if math.isinf(norm) else answer.value
    least = gain_of(unit, problem.head / head_norm, answer.multipliers.t, np.maximum(d, 1e-9 * float(np.max(d))))
    s = max(own, 0.0) if least is None else least * (float(np.max(d)) if math.isinf(norm) else 1.0)
    if not (s > 0.0 and math.isfinite(s)):
        s = 1.0  # a hint of no use: the closed form takes over as it is moved
    t = tuple(x / (s * g) for x, g in zip(answer.multipliers.t, gains, strict=True))
    value = math.sqrt(max(answer.value, 0.0)) * scale
    return Hint(t, d if math.isinf(norm) else np.ones(network.n_inputs)), said, value, excess


@dataclass(frozen=True, eq=False)
class Hint:
    """Multipliers and a metric that a solver proposed: nothing is believed of them."""

    t: tuple[F64, ...]
    d: F64


def is_exact(network: Network, outputs: Outputs, cheap: Found) -> bool:
    """Whether the closed form leaves nothing to solve: a constant, one affine map, or a row that overflows."""
    row = None if outputs == "all" else output_row(network, outputs)
    finite = row is None or bool(np.all(np.isfinite(row)))
    return cheap.proof.value == 0.0 or not network.chain.encoder or not finite


def solved(
    network: Network, norm: float, outputs: Outputs, options: Options, cheap: Found | None = None
) -> tuple[Found, Hint | None]:
    """The SDP of one block of outputs, proved, and its multipliers; the closed form where that fails."""
    start = time.perf_counter()
    fallback = closed_form(network, norm, outputs) if cheap is None else cheap
    if is_exact(network, outputs, fallback):
        return fallback, None
    size = sdp_cvxpy.lmi_size(network.chain.encoder, norm)
    limit = {"cvxpy": sdp_cvxpy.SCS_LIMIT, "barrier": BARRIER_LIMIT}.get(options.solver)
    if limit is not None and size > limit:
        sizes = (("LMI size", float(size)), ("limit", float(limit)))
        return replace(fallback, status=Status.TOO_LARGE, stats=sizes), None
    left = None if options.left is None else options.left - (time.perf_counter() - start)
    if left is not None and left <= 0:
        return replace(fallback, status=Status.TIME_LIMIT), None
    try:
        hint, said, value, excess = ask(network, outputs, norm, replace(options, left=left))
    except MissingDependencyError as error:
        return replace(fallback, status=Status.NOT_INSTALLED, stats=(("install", error.command),)), None
    stats: list[tuple[str, float | str]] = [("LMI size", float(size)), ("solver", said)]
    if hint is None:
        return replace(fallback, status=Status.FAILED, stats=tuple(stats)), None
    stats.append(("solver value (heuristic)", value))
    found = certify(network, outputs, norm, hint.d, hint.t)
    if found is None:
        return replace(fallback, status=Status.FAILED, stats=tuple(stats)), None
    proof, theta = found
    stats.append(("repair", "kept T" if theta == 0.0 else f"mixed with the closed form (theta = {theta:g})"))
    gap = gap_of(min(proof.value, fallback.proof.value), value, excess)
    if gap is not None:
        stats.append(("gap", gap))
    status = status_of(said, excess <= options.tolerance, gap, options.tolerance)
    if fallback.proof.value <= proof.value:
        return replace(fallback, status=status, stats=tuple(stats)), hint
    return Found(proof, f"LipSDP-neuron ({options.solver}), repaired and proved", status, tuple(stats)), hint


def gap_of(proved: float, value: float, excess: float) -> float | None:
    """How far at most the proved bound is above the optimum, whose dual bound is ``value/(1 + excess)``; None: unknown.

    >>> gap_of(1.0, 1.0, 0.5), gap_of(1.0, 1.0, math.inf), gap_of(0.5, 1.0, 0.5)
    (0.5, None, None)
    """
    if not (math.isfinite(excess) and value > 0.0):
        return None
    gap = proved * (1.0 + excess) / value - 1.0
    # a proof below the dual bound: that one is wrong by rounding, and says nothing
    return max(0.0, gap) if gap >= -1e-7 else None


def status_of(said: str, close: bool, gap: float | None = None, tolerance: float = 1.0) -> Status:
    """How a solver ended, from its words: what it had at its time limit is proved all the same.

    >>> str(status_of("barrier (time limit, 3 steps)", False)), str(status_of("barrier (stalled, 9 steps)", True))
    ('time limit', 'ok')
    """
    if "time limit" in said:
        return Status.TIME_LIMIT
    # rounding took over before the gap that was asked for, in the solver or in the proof
    lost = gap is not None and gap > 1.01 * tolerance and "above" not in said
    return Status.FAILED if lost or ("stalled" in said and not close) else Status.OK


def numerical(network: Network, norm: float, outputs: Outputs, reason: str) -> Result:
    """Where :func:`certbound.rounding.check_arithmetic` refuses to prove anything: the closed form without a proof."""
    product = product_bound(network, norm, outputs)
    rows = network.chain.head if outputs == "all" else output_row(network, outputs)[None]
    encoder = network.chain.encoder
    value = max(recursion_inf(encoder, r)[0] for r in rows) if math.isinf(norm) else recursion_2(encoder, rows)
    claim = Claim(Quantity.LIPSCHITZ, norm, norm, outputs=outputs, subject=network.digest)
    bound = Bound(min(value, product.value), claim, Sense.UPPER, Rigor.NUMERICAL, "closed-form recursion", SOURCE)
    return Result(bound, Status.OK, stats=(("not rigorous because", reason),))


def _blocks(network: Network, norm: float, outputs: Outputs, options: Options | None) -> list[Found]:
    """What proves each block of outputs, in order; ∞ bounds outputs one by one.

    Of several outputs the largest counts: solved are those whose closed form is above every one solved before.
    """
    several = outputs == "all" and math.isinf(norm)
    blocks: list[Outputs] = list(range(network.n_outputs)) if several else [outputs]
    found = {x: closed_form(network, norm, x) for x in blocks}
    if options is None:
        return [found[x] for x in blocks]
    deadline = None if options.left is None else time.perf_counter() + options.left
    largest = 0.0
    for x in sorted(blocks, key=lambda x: -found[x].proof.value):
        if several and found[x].proof.value <= largest:
            break
        left = None if deadline is None else deadline - time.perf_counter()
        found[x], _ = solved(network, norm, x, replace(options, left=left), found[x])
        largest = max(largest, found[x].proof.value)
    return [found[x] for x in blocks]


def chain_result(network: Network, norm: float, outputs: Outputs, options: Options | None) -> Result:
    """The SDP of a plain chain (``options`` None: its closed form), never above the product of norms."""
    start = time.perf_counter()
    found = _blocks(network.open_ended, norm, outputs, options)
    worst = max(found, key=lambda f: f.proof.value)
    product = certified_product(network, norm, outputs)
    if product.value <= worst.proof.value:
        bound, certificate = product, product.certificate
    else:
        name = "; ".join(dict.fromkeys([worst.method, *(f.method for f in found)]))
        proofs = tuple(f.proof for f in found)
        certificate = SdpCertificate(network.digest, norm, outputs, worst.proof.value, proofs, name)
        bound = certificate.bound
    said = [float(v) for f in found for k, v in f.stats if k == "solver value (heuristic)"]
    stats: dict[str, float | str] = {k: v for f in found for k, v in f.stats} | dict(worst.stats)
    if said:
        stats["solver value (heuristic)"] = max(said)
    status = next((f.status for f in found if f.status is not Status.OK), Status.OK)
    return Result(bound, status, certificate, time.perf_counter() - start, tuple(stats.items()))


__all__ = [
    "Found",
    "Hint",
    "Options",
    "Solver",
    "ask",
    "chain_result",
    "closed_form",
    "numerical",
    "solved",
    "status_of",
]
