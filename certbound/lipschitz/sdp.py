"""``lipschitz_sdp``: certified Lipschitz constants from feasible points of the LipSDP-neuron relaxation.

``closed-form``: the always-valid recursion (milliseconds, any size). ``cvxpy``: the optimum of a small LMI, its
multipliers proved before they count. Every answer is the smallest of what the method found, the closed form and
the product of norms (a solver's optimum can be above the product), is rigorous, and carries a certificate.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, Literal, get_args

import numpy as np

from certbound.arrays import F64
from certbound.bound import Bound, Claim, Result, multiply_up
from certbound.errors import InputError, MissingDependencyError, NumericalError
from certbound.lipschitz import barrier, sdp_cvxpy
from certbound.lipschitz.pattern_pair import triangular_factor
from certbound.lipschitz.product import (
    Outputs,
    certified_product,
    functional_bound,
    output_row,
    product_bound,
    product_of_norms,
)
from certbound.lipschitz.recursion import forward, head_norm_2, recursion_2, recursion_inf
from certbound.lipschitz.repair import gain_of
from certbound.lipschitz.sdp_certificate import SOURCE, Problem, Proof, SdpCertificate, certify
from certbound.losses import class_head
from certbound.network import Network, as_network
from certbound.progress import steps_bar
from certbound.rounding import check_arithmetic
from certbound.types import Quantity, Rigor, Sense, Status, parse_norm

Method = Literal["auto", "barrier", "closed-form", "cvxpy"]
Solver = Literal["barrier", "cvxpy"]

BARRIER_LIMIT = 2200
"""Rows of M that the barrier takes: a step costs about 8 N³ operations, and a solve 50 to 130 steps."""
AUTO_LIMIT = 600
"""Rows of M up to which ``auto`` solves: some ten seconds."""
_REFINED = 5

@dataclass(frozen=True)
class _Found:
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


def _closed_form(network: Network, norm: float, outputs: Outputs) -> _Found:
    """The smaller of the closed form and the product of norms, proved."""
    product = Proof.by_product(network, norm, outputs)
    row = None if outputs == "all" else output_row(network, outputs)
    if product.value == 0.0 or not network.chain.encoder or (row is not None and not np.all(np.isfinite(row))):
        return _Found(product, "product of norms")  # one affine map or a constant: the product is exact
    found = certify(network, outputs, norm, _metric(network, norm, outputs))
    if found is None or product.value <= found[0].value:
        return _Found(product, "product of norms")
    return _Found(found[0], "closed-form recursion")


@dataclass(frozen=True)
class Options:
    """How a solver is asked: which one, how closely (relative, of L), for how long, and who is told of its steps."""

    solver: Solver
    tolerance: float = 1e-4
    left: float | None = None
    progress: Callable[[int, float], None] | None = None


def _hint(network: Network, outputs: Outputs, norm: float, options: Options) -> tuple[Hint | None, str, float, float]:
    """The solver's multipliers for the weights of :class:`Problem`, what it said, its value (heuristic), and the
    relative excess of that over the optimum (0 where the solver does not say).
    """
    problem = Problem.of(network, outputs)
    weights = list(problem.encoder)
    if not math.isinf(norm) and weights[0].shape[1] > weights[0].shape[0]:
        # ‖·‖_2 does not see an orthogonal change of input: the LQ factor has h_1 columns (false for ℓ∞)
        weights[0] = triangular_factor(weights[0].T).T
    norms = [float(np.linalg.norm(w, 2)) for w in weights]
    head_norm = float(np.linalg.norm(problem.head, 2))
    unit = [w / n for w, n in zip(weights, norms, strict=True)]
    excess = 0.0
    if options.solver == "barrier":
        reached = barrier.solve(
            unit, problem.head / head_norm, norm, tolerance=options.tolerance, time_limit=options.left,
            progress=options.progress,
        )  # fmt: skip
        if reached is None:
            return None, "barrier (no interior point)", math.nan, 0.0
        answer = sdp_cvxpy.SolverAnswer(reached.multipliers, reached.value, "barrier", reached.status)
        said, excess = f"barrier ({reached.status}, {reached.steps} steps)", reached.excess
    else:
        answer = sdp_cvxpy.solve(unit, problem.head / head_norm, norm, options.left)
        said = f"{answer.solver} ({answer.status})"
    if answer.multipliers is None:
        return None, said, math.nan, 0.0
    d = answer.multipliers.d
    # T keeps its units of L²: of the factors s that fit it, the solver's own may be too small, or T's least too large
    own = float(np.max(d)) if math.isinf(norm) else answer.value
    least = gain_of(unit, problem.head / head_norm, answer.multipliers.t, np.maximum(d, 1e-9 * float(np.max(d))))
    s = max(own, 0.0) if least is None else least * (float(np.max(d)) if math.isinf(norm) else 1.0)
    if not (s > 0.0 and math.isfinite(s)):
        s = 1.0  # a hint of no use: the closed form takes over as it is moved
    # T of unit weights in units of L² becomes T/s, and the norms so far are taken out of it
    gains = np.cumprod(np.square(norms))
    t = tuple(x / (s * g) for x, g in zip(answer.multipliers.t, gains, strict=True))
    scale = math.sqrt(gains[-1]) * head_norm
    value = math.sqrt(max(answer.value, 0.0)) * scale * 2.0 ** min(1000, max(-1000, sum(problem.exponents)))
    return Hint(t, d if math.isinf(norm) else np.ones(network.n_inputs)), said, value, excess


@dataclass(frozen=True, eq=False)
class Hint:
    """Multipliers and a metric that a solver proposed: nothing is believed of them."""

    t: tuple[F64, ...]
    d: F64


def _solved(
    network: Network, norm: float, outputs: Outputs, options: Options, closed_form: _Found | None = None
) -> _Found:
    """The SDP of one block of outputs, its multipliers proved; the closed form where that fails."""
    start = time.perf_counter()
    fallback = _closed_form(network, norm, outputs) if closed_form is None else closed_form
    row = None if outputs == "all" else output_row(network, outputs)
    if fallback.proof.value == 0.0 or not network.chain.encoder or (row is not None and not np.all(np.isfinite(row))):
        return fallback
    size = sdp_cvxpy.lmi_size(network.chain.encoder, norm)
    limit = sdp_cvxpy.SCS_LIMIT if options.solver == "cvxpy" else BARRIER_LIMIT
    if size > limit:
        sizes = (("LMI size", float(size)), ("limit", float(limit)))
        return _Found(fallback.proof, fallback.method, Status.TOO_LARGE, sizes)
    if options.solver == "cvxpy":
        try:
            sdp_cvxpy.import_cvxpy()
        except MissingDependencyError as error:
            return _Found(fallback.proof, fallback.method, Status.NOT_INSTALLED, (("install", error.command),))
    left = None if options.left is None else options.left - (time.perf_counter() - start)
    if left is not None and left <= 0:
        return _Found(fallback.proof, fallback.method, Status.TIME_LIMIT)
    hint, said, value, excess = _hint(network, outputs, norm, replace(options, left=left))
    # what the solver had at its time limit is proved all the same
    status = Status.TIME_LIMIT if "limit" in said else Status.OK
    if "stalled" in said and excess > options.tolerance:
        status = Status.FAILED  # rounding took over before the gap that was asked for
    stats: list[tuple[str, float | str]] = [("LMI size", float(size)), ("solver", said)]
    if hint is None:
        return _Found(fallback.proof, fallback.method, Status.FAILED, tuple(stats))
    stats.append(("solver value (heuristic)", value))
    found = certify(network, outputs, norm, hint.d, hint.t)
    if found is None:
        return _Found(fallback.proof, fallback.method, Status.FAILED, tuple(stats))
    proof, theta = found
    stats.append(("repair", "kept T" if theta == 0.0 else f"mixed with the closed form (theta = {theta:g})"))
    best = min(proof.value, fallback.proof.value)
    if options.solver == "barrier" and value > 0.0 and math.isfinite(best):
        # L² at the last centre, less N/τ, is below the optimum (numerical: no more than a measure of progress)
        least = value * math.sqrt(max(0.0, 1.0 - 2.0 * excess))
        stats.append(("gap", best / least - 1.0 if least > 0.0 else math.inf))
    if fallback.proof.value <= proof.value:
        return _Found(fallback.proof, fallback.method, status, tuple(stats))
    return _Found(proof, f"LipSDP-neuron ({options.solver}), repaired and proved", status, tuple(stats))


def _numerical(network: Network, norm: float, outputs: Outputs, reason: str) -> Result:
    """Where :func:`certbound.rounding.check_arithmetic` refuses to prove anything: the closed form without a proof."""
    product = product_bound(network, norm, outputs)
    rows = network.chain.head if outputs == "all" else output_row(network, outputs)[None]
    encoder = network.chain.encoder
    value = max(recursion_inf(encoder, r)[0] for r in rows) if math.isinf(norm) else recursion_2(encoder, rows)
    claim = Claim(Quantity.LIPSCHITZ, norm, norm, outputs=outputs, subject=network.digest)
    bound = Bound(min(value, product.value), claim, Sense.UPPER, Rigor.NUMERICAL, "closed-form recursion", SOURCE)
    return Result(bound, Status.OK, stats=(("not rigorous because", reason),))


def _worst(statuses: Iterable[Status]) -> Status:
    """OK only if all are: the last that is not."""
    return reduce(lambda a, b: a if b is Status.OK else b, statuses, Status.OK)


@dataclass(frozen=True)
class _Request:
    """What the caller asked for, apart from the outputs."""

    method: Method
    tolerance: float
    time_limit: float | None
    progress: bool


def _choose(network: Network, norm: float, method: Method) -> tuple[Method, str]:
    """The method that ``auto`` stands for, and why."""
    if method != "auto":
        return method, ""
    encoder = network.chain.encoder
    size = sdp_cvxpy.lmi_size(encoder, norm) if encoder else 0
    chosen: Method = "barrier" if 0 < size <= AUTO_LIMIT else "closed-form"
    return chosen, f"auto: LMI of {size} rows, {'within' if size <= AUTO_LIMIT else 'above'} {AUTO_LIMIT}: {chosen}"


def _blocks(network: Network, norm: float, outputs: Outputs, chosen: Method, options: Options | None) -> list[_Found]:
    """What proves each block of outputs, in order; ∞ bounds outputs one by one.

    Of several outputs the largest counts: solved are those whose closed form is above every one solved before.
    """
    several = outputs == "all" and math.isinf(norm)
    blocks: list[Outputs] = list(range(network.n_outputs)) if several else [outputs]
    if options is None or not several:
        return [
            _closed_form(network, norm, x) if options is None else _solved(network, norm, x, options) for x in blocks
        ]
    deadline = None if options.left is None else time.perf_counter() + options.left
    found = {x: _closed_form(network, norm, x) for x in blocks}
    largest = 0.0
    for x in sorted(blocks, key=lambda x: -found[x].proof.value):
        if found[x].proof.value <= largest:
            break
        left = None if deadline is None else deadline - time.perf_counter()
        found[x] = _solved(network, norm, x, replace(options, left=left), found[x])
        largest = max(largest, found[x].proof.value)
    return [found[x] for x in blocks]


def _one(network: Network, norm: float, outputs: Outputs, request: _Request) -> Result:
    start = time.perf_counter()
    network = network.open_ended
    try:
        check_arithmetic()
    except NumericalError as error:
        return _numerical(network, norm, outputs, str(error))
    chosen, why = _choose(network, norm, request.method)
    with steps_bar("LipSDP by the barrier", enabled=request.progress and chosen == "barrier") as show:
        options = None
        if chosen == "barrier" or chosen == "cvxpy":
            options = Options(chosen, request.tolerance, request.time_limit, show)
        found = _blocks(network, norm, outputs, chosen, options)
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
    if why:
        stats["choice"] = why
    status = _worst(f.status for f in found)
    return Result(bound, status, certificate, time.perf_counter() - start, tuple(stats.items()))


def parse_outputs(outputs: object, n_outputs: int) -> Outputs:
    """None → "all"; an output index; a pair (j, y); "margins" is handled by :func:`lipschitz_sdp`."""
    if outputs is None or outputs == "all":
        return "all"
    items: tuple[Any, ...] = outputs if isinstance(outputs, tuple) else (outputs,)
    good = all(isinstance(i, (int, np.integer)) and not isinstance(i, bool) and 0 <= i < n_outputs for i in items)
    if not good or len(items) not in (1, 2) or (len(items) == 2 and items[0] == items[1]):
        raise InputError(
            "outputs",
            got=repr(outputs),
            needed=f"None, an output 0..{n_outputs - 1}, a pair (j, y) of two different outputs, or 'margins'",
            fix="class indices count from 0",
        )
    return (int(items[0]), int(items[1])) if len(items) == 2 else int(items[0])


def lipschitz_sdp(
    network: object,
    norm: object = 2,
    *,
    outputs: object = None,
    region: object = None,
    tolerance: float = 1e-4,
    time_limit: float | None = None,
    method: Method = "auto",
    device: object = None,
    progress: bool = False,
) -> Result | tuple[Result, ...]:
    """Upper bound of the Lipschitz constant by the LipSDP-neuron relaxation; never above the product of norms.

    The bound is rigorous: ``.certificate.verify(network)`` proves it anew with numpy only. (On a processor that flushes
    subnormal numbers to zero it is ``numerical``, and the stats say why.)

    Parameters
    ----------
    network : nn.Module, Network, or list of weight matrices (bias-free ReLU net).
    norm : 2 (ℓ2 → ℓ2) or ∞. For ∞, ``outputs=None`` bounds ∞ → ∞ (the largest over outputs).
    outputs : None, an output index, a pair ``(j, y)`` for the margin ``f_j − f_y``, or ``"margins"``: a tuple of
        Results, one for each pair j < y.
    method : ``barrier`` (the optimum, up to 2,200 rows of M), ``closed-form`` (any size, milliseconds), ``cvxpy`` (the
        optimum by Clarabel or SCS, up to 300 rows), ``auto``: barrier up to 600 rows, else closed form; of margins the
        largest five by the barrier (``method="barrier"`` solves all).
    tolerance : relative distance to the optimum at which the barrier ends; ``.gap`` is what was reached (numerical).
    time_limit : seconds for each result; on time-out the best bound so far, with status TIME_LIMIT.
    progress : a bar on stderr.
    region, device : reserved for local bounds and the first-order solver; region must be None in this version.

    Raises
    ------
    InputError : unknown norm, outputs, method; a region. UnsupportedLayerError : a layer outside the IR.

    Source: Fazlyab et al., NeurIPS 2019; Xu & Sivaranjani 2024 (closed form).

    >>> lipschitz_sdp([[[3.0]], [[2.0]]], norm=2, method="closed-form").value.__round__(9)
    6.0
    """
    net, p = as_network(network), parse_norm(norm)
    if region is not None:
        raise InputError("region", got=repr(region), needed="None", fix="bounds on a ball are not part of this version")
    if method not in get_args(Method):
        raise InputError("method", got=repr(method), needed=f"one of {get_args(Method)}", fix="'auto' chooses by size")
    if not 0 < tolerance < 1:
        raise InputError("tolerance", got=repr(tolerance), needed="a number in (0, 1)", fix="1e-4 is the default")
    if time_limit is not None and not time_limit > 0:
        raise InputError("time_limit", got=repr(time_limit), needed="seconds > 0", fix="None means no limit")
    if outputs == "margins":
        pairs = [(j, y) for y in range(net.n_outputs) for j in range(y)]
        if not pairs:
            raise InputError(
                "outputs",
                got="'margins' of a network with one output",
                needed="at least two outputs",
                fix="pass outputs=0",
            )
        return _margins(net, p, pairs, _Request(method, tolerance, time_limit, progress))
    return _one(net, p, parse_outputs(outputs, net.n_outputs), _Request(method, tolerance, time_limit, progress))


def _margins(net: Network, norm: float, pairs: list[tuple[int, int]], request: _Request) -> tuple[Result, ...]:
    """All margins; ``auto`` takes the closed form and solves for the largest few."""
    if request.method != "auto":
        return tuple(_one(net, norm, pair, request) for pair in pairs)
    results = [_one(net, norm, pair, replace(request, method="closed-form")) for pair in pairs]
    for i in sorted(range(len(pairs)), key=lambda i: -results[i].value)[:_REFINED]:
        results[i] = _one(net, norm, pairs[i], request)
    return tuple(results)


def margin_constants(
    network: Network, norm: float, method: Literal["closed-form", "barrier", "cvxpy"], time_limit: float | None = None
) -> tuple[F64, Status]:
    """Lipschitz constants of all margins ``f_j − f_y``: symmetric, 0 on the diagonal; and the worst status.

    A network with one output is read as the two classes (0, z). Each entry is at most the product of norms.
    """
    network = network.open_ended
    chain = network.chain
    head = class_head(chain.head)
    n = len(head)
    status = Status.OK
    deadline = None if time_limit is None else time.perf_counter() + time_limit
    ceiling = product_of_norms(chain.encoder, norm, "").value
    run = forward(chain.encoder, np.ones(network.n_inputs))  # ℓ2: one run serves every pair
    constants = np.zeros((n, n))
    for y in range(n):
        for j in range(y):
            row = head[j] - head[y]
            if method == "closed-form":
                value = recursion_inf(chain.encoder, row)[0] if math.isinf(norm) else head_norm_2(run, row[None])
            else:
                left = None if deadline is None else deadline - time.perf_counter()
                which: Outputs = 0 if network.n_outputs == 1 else (j, y)
                found = _solved(network, norm, which, Options(method, left=left))
                value, status = found.proof.value, status if found.status is Status.OK else found.status
            product = multiply_up(ceiling, functional_bound(row, norm, (j, y)).value)
            constants[j, y] = constants[y, j] = min(value, product)
    return constants, status
