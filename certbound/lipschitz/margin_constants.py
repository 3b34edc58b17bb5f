"""Lipschitz constants of all margins ``f_j − f_y`` of a plain ReLU chain at once.

``closed-form``: one recursion serves every pair. ``sdp``: the optimum, or where that is too much for every pair, the
multipliers of a few solved ones, which prove a bound of every pair: M of another margin differs in its last block only.
"""

from __future__ import annotations

import math
import time
from typing import Literal

import numpy as np

from certbound.arrays import F64
from certbound.bound import multiply_up
from certbound.lipschitz import sdp_cvxpy
from certbound.lipschitz.product import Outputs, functional_bound, product_of_norms
from certbound.lipschitz.recursion import forward, head_norm_2, recursion_inf
from certbound.lipschitz.sdp_certificate import certify
from certbound.lipschitz.sdp_chain import BARRIER_LIMIT, Options, ask, solved, status_of
from certbound.losses import class_head
from certbound.network import Network
from certbound.types import Status

_WORK = 4e11
"""Operations that ``sdp`` may spend on solving: some ten seconds of one core. A count, not a time: the same networks
give the same numbers on every machine."""
_PER_SOLVE = 160.0


def margin_constants(
    network: Network,
    norm: float,
    method: Literal["closed-form", "sdp", "cvxpy"],
    time_limit: float | None = None,
    effort: float = 1.0,
) -> tuple[F64, Status]:
    """Lipschitz constants of all margins ``f_j − f_y``: symmetric, 0 on the diagonal; and the worst status.

    A network with one output is read as the two classes (0, z). Each entry is at most the product of norms.
    ``effort``: operations that ``sdp`` may spend, in units of some ten seconds of one core; it solves one programme at
    least, and the fewer it solves the looser the other margins' constants are.
    """
    network = network.open_ended
    chain = network.chain
    head = class_head(chain.head)
    ceiling = product_of_norms(chain.encoder, norm, "").value
    run = forward(chain.encoder, np.ones(network.n_inputs))  # ℓ2: one run serves every pair
    rows = {(j, y): head[j] - head[y] for y in range(len(head)) for j in range(y)}
    values: dict[tuple[int, int], float] = {}
    for pair, row in rows.items():
        value = recursion_inf(chain.encoder, row)[0] if math.isinf(norm) else head_norm_2(run, row[None])
        values[pair] = min(value, multiply_up(ceiling, functional_bound(row, norm, pair).value))
    status = Status.OK
    if method != "closed-form" and chain.encoder:
        status = _solve(network, norm, method, time_limit, effort, values)
    constants = np.zeros((len(head), len(head)))
    for (j, y), value in values.items():
        constants[j, y] = constants[y, j] = value
    return constants, status


def _solve(
    network: Network,
    norm: float,
    method: Literal["sdp", "cvxpy"],
    time_limit: float | None,
    effort: float,
    values: dict[tuple[int, int], float],
) -> Status:
    """Lower ``values`` in place, the largest first; the worst status."""
    if max(values.values(), default=0.0) == 0.0:
        return Status.OK  # constant margins
    deadline = None if time_limit is None else time.perf_counter() + time_limit

    def options() -> Options:
        left = None if deadline is None else deadline - time.perf_counter()
        return Options("cvxpy" if method == "cvxpy" else "barrier", left=left)

    size = sdp_cvxpy.lmi_size(network.chain.encoder, norm)
    if method == "sdp" and size > BARRIER_LIMIT:
        return Status.TOO_LARGE
    solves = len(values) if method == "cvxpy" else max(1, int(effort * _WORK / (_PER_SOLVE * size**3)))
    status = Status.OK
    if solves < len(values):
        # one solution for the outputs together serves each pair well; that of a single pair serves no other
        status = _share(network, norm, options(), values)
        solves -= 1
    for pair in sorted(values, key=lambda pair: -values[pair])[:solves]:
        found, _ = solved(network, norm, _outputs(network, pair), options())
        values[pair] = min(values[pair], found.proof.value)
        status = status if found.status is Status.OK else found.status
        if found.status is Status.TIME_LIMIT:
            break
    return status


def _share(network: Network, norm: float, options: Options, values: dict[tuple[int, int], float]) -> Status:
    """The multipliers that are best for all outputs about their mean, proved for each pair."""
    chain = network.chain
    together = Network.from_weights([*chain.encoder, chain.head - chain.head.mean(axis=0)])
    hint, said, _, excess = ask(together, "all", norm, options)
    for pair in values if hint is not None else ():
        assert hint is not None
        proved = certify(network, _outputs(network, pair), norm, hint.d, hint.t)
        if proved is not None:
            values[pair] = min(values[pair], proved[0].value)
    return Status.FAILED if hint is None else status_of(said, excess <= options.tolerance)


def _outputs(network: Network, pair: tuple[int, int]) -> Outputs:
    return 0 if network.n_outputs == 1 else pair


__all__ = ["margin_constants"]
