"""The LipSDP of a system: residual, leaky and smooth networks, every network on a ball.

See :mod:`certbound.lipschitz.sdp`.

Every answer is proved: the closed form of the Riccati recursion, or what a solver made of it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from certbound.arrays import F64
from certbound.errors import MissingDependencyError, NumericalError
from certbound.lipschitz import first_order, sdp_chain
from certbound.lipschitz.barrier import Limits, Lmi, Row, newton
from certbound.lipschitz.product import Outputs
from certbound.lipschitz.region_slopes import slopes_on
from certbound.lipschitz.riccati import closed_form, metric, storage
from certbound.lipschitz.sdp_chain import gap_of, status_of
from certbound.lipschitz.system import Map, Slopes, System, reduced
from certbound.lipschitz.system_certificate import SystemCertificate, SystemProof, certify
from certbound.network import Ball, Network
from certbound.types import Status

_THETAS = (0.0, 1e-8, 1e-6, 1e-4, 1e-2)
_AIR = 2.0**-30  # how much the pre-activation bounds are widened: other machines round otherwise

Stats = tuple[tuple[str, float | str], ...]


@dataclass(frozen=True)
class SystemRequest:
    """Which solver, how closely (relative, of L), for how long, on which device.

    ``above``: the barrier may end once the constant is known to be above this.
    """

    solver: Literal["barrier", "first-order", "closed-form"]
    tolerance: float = 1e-4
    left: float | None = None
    device: object = None
    above: float = math.inf
    progress: Callable[[int, float], None] | None = None


@dataclass(frozen=True, eq=False)
class _Found:
    proof: SystemProof
    method: str
    status: Status = Status.OK
    stats: Stats = ()


def system_lmi(system: System, infinity: bool) -> tuple[Lmi, list[npt.NDArray[np.bool_]]]:
    """The dense LMI of a system, and which neurons are in it: one that no input reaches is 0, and its multiplier free.

    Layer i reads ``A_i (x, v_1, …)``, found by running the steps symbolically.
    """
    Z = np.eye(system.n_inputs)
    rows: list[Row] = []
    alive: list[npt.NDArray[np.bool_]] = []
    for W, H, G in system.plain:
        A = W @ Z
        keep = np.any(A != 0.0, axis=1)
        alive.append(keep)
        rows.append(Row(0, A[keep]))
        fresh = np.eye(len(W))[:, keep] if G is None else G[:, keep]
        old = np.zeros((len(fresh), Z.shape[1])) if H is None else H @ Z
        Z = np.hstack([old, fresh])
    return Lmi(system.n_inputs, tuple(rows), Row(0, system.head.matrix @ Z), not infinity), alive


def _closed(system: System, outputs: Outputs, norm: float) -> tuple[_Found | None, tuple[F64, ...] | None]:
    """The proved closed form of one block of outputs, and its multipliers."""
    if not system.steps:
        proof = certify(system, outputs, norm, (), None)
        return (None if proof is None else _Found(proof, "linear on the region")), None
    t = closed_form(system)
    proof = None if t is None else certify(system, outputs, norm, t, None)
    return (None if proof is None else _Found(proof, "Riccati recursion")), t


def _solved(
    system: System, outputs: Outputs, norm: float, request: SystemRequest, closed: _Found, start: tuple[F64, ...]
) -> _Found:
    """What the solver reaches from the closed form, proved; the closed form where that is no better."""
    infinity = math.isinf(norm)
    small = system if infinity else reduced(system)[0]
    P = storage(small, start)
    if P is None:
        return replace(closed, status=Status.FAILED)
    rho = metric(P[0]) if infinity else np.full(small.n_inputs, float(np.linalg.eigvalsh(P[0])[-1]))
    unit = float(rho.sum()) if infinity else float(rho[0])
    if not 0.0 < unit < math.inf:
        return replace(closed, status=Status.FAILED)
    # L² of about 1
    small = replace(small, head=Map(small.head.matrix / math.sqrt(unit)))
    d, t0 = rho / unit, [x / unit for x in start]
    excess = math.inf
    stats: list[tuple[str, float | str]] = [("LMI size", float(small.size))]
    if request.solver == "barrier":
        if small.size > sdp_chain.BARRIER_LIMIT:
            sizes = (("LMI size", float(small.size)), ("limit", float(sdp_chain.BARRIER_LIMIT)))
            return replace(closed, status=Status.TOO_LARGE, stats=sizes)
        lmi, alive = system_lmi(small, infinity)
        limits = Limits(0.9 * request.tolerance, request.left, request.above**2 / unit, request.progress)
        reached = newton(lmi, d, [x[a] for x, a in zip(t0, alive, strict=True)], limits)
        if reached is None:
            return replace(closed, status=Status.FAILED, stats=(("solver", "barrier (no interior point)"),))
        t, own_d, value, said, excess = [], reached.multipliers.d, reached.value, reached.status, reached.excess
        for x, a, found in zip(t0, alive, reached.multipliers.t, strict=True):
            whole = x.copy()
            whole[a] = found
            t.append(whole)
        stats.append(("solver", f"barrier ({said}, {reached.steps} steps)"))
    else:
        try:
            answer = first_order.solve(
                small.plain, small.head.matrix, norm, device=request.device, time_limit=request.left,
                tolerance=max(request.tolerance, sdp_chain.FIRST_ORDER),
                start=tuple(t0), progress=request.progress,
            )  # fmt: skip
        except MissingDependencyError as error:
            return replace(closed, status=Status.NOT_INSTALLED, stats=(("install", error.command),))
        if answer is None:
            return replace(closed, status=Status.FAILED)
        t, own_d, value, said = list(answer.t), answer.d, answer.value, answer.status
        stats.append(("solver", f"first-order ({said}, {answer.steps} steps)"))
    proof = None
    for theta in _THETAS:
        mixed = [unit * ((1.0 - theta) * a + 1.05 * theta * b) for a, b in zip(t, t0, strict=True)]
        proof = certify(system, outputs, norm, mixed, own_d if infinity else None)
        if proof is not None:
            break
    best = closed.proof.value if proof is None else min(proof.value, closed.proof.value)
    gap = gap_of(best, math.sqrt(max(value, 0.0) * unit), excess)
    if gap is not None:
        stats.append(("gap", gap))
    status = status_of(said, excess <= request.tolerance, gap, request.tolerance)
    if proof is None or closed.proof.value <= proof.value:
        return replace(closed, status=Status.FAILED if proof is None else status, stats=tuple(stats))
    return _Found(proof, f"LipSDP-neuron ({request.solver}), proved", status, tuple(stats))


def _block(network: Network, outputs: Outputs, slopes: Sequence[Slopes] | None) -> System | None:
    try:
        return System.of(network, outputs, slopes)
    except NumericalError:
        return None


def system_bound(
    network: Network, norm: float, outputs: Outputs, ball: Ball | None, request: SystemRequest
) -> tuple[SystemCertificate | None, Status, Stats]:
    """The best certificate that the request gives; None where nothing was proved.

    Against ∞ outputs are bounded one by one: of several the largest counts, and only those are solved whose closed form
    is above every one solved before.
    """
    start = time.perf_counter()
    slopes = None if ball is None else tuple(slopes_on(network, ball, air=_AIR))
    several = outputs == "all" and math.isinf(norm) and network.n_outputs > 1
    blocks: list[Outputs] = list(range(network.n_outputs)) if several else [outputs]
    found: dict[Outputs, _Found] = {}
    starts: dict[Outputs, tuple[F64, ...] | None] = {}
    systems: dict[Outputs, System] = {}
    for block in blocks:
        system = _block(network, block, slopes)
        closed, t = (None, None) if system is None else _closed(system, block, norm)
        if system is None or closed is None:
            return None, Status.FAILED, (("not proved", f"outputs {block!r}"),)
        systems[block], found[block], starts[block] = system, closed, t
    largest = 0.0
    for block in sorted(blocks, key=lambda b: -found[b].proof.value):
        t = starts[block]
        if request.solver == "closed-form" or t is None or found[block].proof.value <= largest:
            break
        left = None if request.left is None else request.left - (time.perf_counter() - start)
        if left is not None and left <= 0.0:
            found[block] = replace(found[block], status=Status.TIME_LIMIT)
            break
        found[block] = _solved(systems[block], block, norm, replace(request, left=left), found[block], t)
        largest = max(largest, found[block].proof.value)
    every = [found[b] for b in blocks]
    worst = max(every, key=lambda f: f.proof.value)
    method = "; ".join(dict.fromkeys([worst.method, *(f.method for f in every)]))
    certificate = SystemCertificate(
        network.digest, norm, outputs, worst.proof.value, tuple(f.proof for f in every), method, ball, slopes or ()
    )
    status = next((f.status for f in every if f.status is not Status.OK), Status.OK)
    return certificate, status, worst.stats


def numerical_value(network: Network, norm: float, outputs: Outputs) -> float:
    """The closed form without a proof, over all inputs; ∞ where it gives nothing."""
    several = outputs == "all" and math.isinf(norm)
    values: list[float] = []
    for block in range(network.n_outputs) if several else [outputs]:
        system = _block(network, block, None)
        t = None if system is None else closed_form(system)
        P = None if system is None or t is None else storage(system, t)
        if P is None:
            return math.inf
        gain = float(metric(P[0]).sum()) if math.isinf(norm) else float(np.linalg.eigvalsh(P[0])[-1])
        values.append(math.sqrt(max(gain, 0.0)) * (1.0 + 1e-9))
    return max(values)


__all__ = ["SystemRequest", "numerical_value", "system_bound", "system_lmi"]
