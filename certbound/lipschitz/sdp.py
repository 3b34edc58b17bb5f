"""``lipschitz_sdp``: certified Lipschitz constants from feasible points of the LipSDP-neuron relaxation.

A plain ReLU chain over all inputs goes to :mod:`certbound.lipschitz.sdp_chain`; residual and smooth networks, and every
network on a ball, to :mod:`certbound.lipschitz.sdp_system`. Every answer is rigorous, carries a certificate, and is the
smallest of what the method found, the closed form, the norms along paths and the product of norms.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal, cast, get_args

import numpy as np

from certbound.bound import Bound, Claim, Result
from certbound.errors import InputError, NumericalError
from certbound.io.graph_to_network import dense_model
from certbound.lipschitz import sdp_chain, sdp_cvxpy
from certbound.lipschitz.first_order import FULL_LIMIT
from certbound.lipschitz.layer_product import layer_product
from certbound.lipschitz.path_norms import path_bound
from certbound.lipschitz.product import Outputs
from certbound.lipschitz.sdp_system import SystemRequest, numerical_value, system_bound
from certbound.lipschitz.system import activation_widths
from certbound.network import Ball, Network, Residual
from certbound.progress import steps_bar
from certbound.rounding import check_arithmetic
from certbound.types import Quantity, Rigor, Sense, Status, parse_norm

Method = Literal["auto", "barrier", "first-order", "closed-form", "path-norms", "cvxpy"]

AUTO_SECONDS = 60.0
"""What ``auto`` may spend on one result, by its estimate, where no time limit is given."""
_RATE = 3e10
"""Operations a second of one core, for estimates."""
_REFINED = 5


@dataclass(frozen=True)
class _Request:
    """What the caller asked for, apart from network, norm and outputs."""

    method: Method
    tolerance: float
    time_limit: float | None
    device: object
    progress: bool
    ball: Ball | None = None
    above: float = math.inf


def _widths(network: Network, norm: float) -> list[int]:
    """Inputs, then neurons of each hidden layer, as the solvers see them."""
    if network.is_relu_chain:
        encoder = network.chain.encoder
        if not encoder:
            return [network.n_inputs]
        inputs = sdp_cvxpy.lmi_size(encoder, norm) - sum(len(w) for w in encoder)
        return [inputs, *(len(w) for w in encoder)]
    return [network.n_inputs, *activation_widths(network)]


def _choose(network: Network, norm: float, request: _Request) -> tuple[Method, str]:
    """The method that ``auto`` stands for, and why."""
    if request.method != "auto":
        return request.method, ""
    widths = _widths(network, norm)
    size = sum(widths)
    budget = AUTO_SECONDS if request.time_limit is None else min(request.time_limit, AUTO_SECONDS)
    barrier = 120.0 * size**3 / _RATE
    # sweeps for every pair of layers, and up to first_order.FULL_LIMIT variables one Hessian
    pairs = len(widths) ** 2 * max(max(a, b) ** 3 for a, b in pairwise(widths)) if len(widths) > 1 else 0
    hidden = sum(widths[1:])
    first = 60.0 * (15.0 * pairs + (hidden**3 / 3 if hidden <= FULL_LIMIT else 0)) / _RATE
    if len(widths) == 1:
        return "closed-form", "auto: one affine map: exact"
    if request.device is not None:
        return "first-order", f"auto: device {request.device!r} was asked for: first-order"
    said = f"auto: LMI of {size} rows, estimated {barrier:.2g} s by the barrier"
    if barrier <= budget and size <= sdp_chain.BARRIER_LIMIT:
        return "barrier", f"{said}: barrier"
    if first <= 4.0 * budget and _has_torch():
        return "first-order", f"{said}, {first:.2g} s by the first-order method: first-order"
    return "closed-form", f"{said}, more than {budget:g} s: closed form"


def _has_torch() -> bool:
    from importlib.util import find_spec

    return find_spec("torch") is not None


def _on_chain(network: Network, norm: float, outputs: Outputs, chosen: Method, request: _Request) -> Result:
    options = None
    with steps_bar(f"LipSDP by {chosen}", enabled=request.progress and chosen != "closed-form") as show:
        if chosen in get_args(sdp_chain.Solver):
            options = sdp_chain.Options(
                cast("sdp_chain.Solver", chosen),
                request.tolerance,
                request.time_limit,
                request.device,
                request.above,
                show,
            )
        return sdp_chain.chain_result(network, norm, outputs, options)


def _on_system(network: Network, norm: float, outputs: Outputs, chosen: Method, request: _Request) -> Result:
    start = time.perf_counter()
    if chosen == "cvxpy":
        raise InputError(
            "method", got="'cvxpy'", needed="another method for this network or region",
            fix="cvxpy is the reference for plain ReLU chains over all inputs",
        )  # fmt: skip
    with steps_bar(f"LipSDP by {chosen}", enabled=request.progress and chosen != "closed-form") as show:
        asked = SystemRequest(
            cast("Any", chosen), request.tolerance, request.time_limit, request.device, request.above, show,
        )  # fmt: skip
        certificate, status, stats = system_bound(network, norm, outputs, request.ball, asked)
    bound = layer_product(network, norm, outputs) if certificate is None else certificate.bound
    return Result(bound, status, bound.certificate, time.perf_counter() - start, stats)


def _along_paths(network: Network, norm: float, outputs: Outputs) -> Bound | None:
    """The norms along paths; None where they cost too much, or the network has residual sums."""
    if any(isinstance(layer, Residual) for layer in network.layers):
        return None
    return path_bound(network, norm, outputs)


def _by_paths(network: Network, norm: float, outputs: Outputs, ball: Ball | None) -> Result:
    if ball is not None:
        raise InputError(
            "region", got=str(ball), needed="None with method 'path-norms'", fix="use another method on a ball"
        )
    bound = _along_paths(network, norm, outputs)
    if bound is not None:
        return Result(bound, Status.OK, bound.certificate)
    product = layer_product(network, norm, outputs)
    status = Status.UNSUPPORTED if any(isinstance(x, Residual) for x in network.layers) else Status.TOO_LARGE
    return Result(product, status, product.certificate)


def _cheapest(network: Network, norm: float, outputs: Outputs, chosen: Method, result: Result) -> Result:
    """The result, or the norms along paths or the product where they are smaller."""
    others = [] if network.is_relu_chain else [layer_product(network, norm, outputs)]
    if chosen == "auto":
        path = _along_paths(network, norm, outputs)
        others += [] if path is None else [path]
    best = min(others, key=lambda b: b.value, default=result.bound)
    if best.value >= result.value:
        return result
    stats = dict(result.stats)
    gap = result.gap
    if gap is not None:  # to the same dual bound
        stats["gap"] = max(0.0, (1.0 + gap) * best.value / result.value - 1.0)
    return replace(result, bound=best, certificate=best.certificate, stats=tuple(stats.items()))


def _one(network: Network, norm: float, outputs: Outputs, request: _Request) -> Result:
    start = time.perf_counter()
    try:
        check_arithmetic()
    except NumericalError as error:
        return _numerical(network, norm, outputs, request.ball, str(error))
    chosen, why = _choose(network, norm, request)
    if chosen == "path-norms":
        result = _by_paths(network, norm, outputs, request.ball)
    elif request.ball is None and network.is_relu_chain:
        result = _on_chain(network, norm, outputs, chosen, request)
        if result.status is Status.FAILED and result.value > 0.0:
            # no input may reach the outputs: a system drops dead neurons, and proves 0
            other = _on_system(network, norm, outputs, "closed-form", request)
            result = other if other.value == 0.0 else result
    else:
        result = _on_system(network, norm, outputs, chosen, request)
    if request.ball is None:
        # a method asked for by name answers for itself; the product of norms is the ceiling of all
        result = _cheapest(
            network, norm, outputs, "auto" if request.method == "auto" and chosen == "closed-form" else chosen, result
        )
    else:
        result = _never_worse(network, norm, outputs, chosen, request, result, start)
    stats = result.stats if not why else (*result.stats, ("choice", why))
    return replace(result, seconds=time.perf_counter() - start, stats=stats)


def _never_worse(
    network: Network, norm: float, outputs: Outputs, chosen: Method, request: _Request, local: Result, start: float
) -> Result:
    """The result on the ball, or the one over all inputs where that is smaller: its claim holds on the ball too.

    The solver over all inputs ends as soon as it knows its optimum to be above the local bound.
    """
    left = None if request.time_limit is None else request.time_limit - (time.perf_counter() - start)
    method: Method = "closed-form" if left is not None and left <= 0.0 else chosen
    everywhere = replace(request, ball=None, method=method, time_limit=left, above=local.value)
    whole = _one(network, norm, outputs, everywhere)
    if whole.value >= local.value:
        return local
    claim = replace(whole.bound.claim, domain=str(request.ball))
    return replace(whole, bound=replace(whole.bound, claim=claim), stats=(*whole.stats, ("region", "all inputs")))


def _numerical(network: Network, norm: float, outputs: Outputs, ball: Ball | None, reason: str) -> Result:
    """Where :func:`certbound.rounding.check_arithmetic` refuses to prove anything: the closed form without a proof."""
    if ball is None and network.is_relu_chain:
        return sdp_chain.numerical(network.open_ended, norm, outputs, reason)
    claim = Claim(Quantity.LIPSCHITZ, norm, norm, outputs=outputs, subject=network.digest)
    value = numerical_value(network, norm, outputs)
    bound = Bound(value, claim, Sense.UPPER, Rigor.NUMERICAL, "Riccati recursion", sdp_chain.SOURCE)
    return Result(bound, Status.OK, stats=(("not rigorous because", reason),))


def parse_outputs(outputs: object, n_outputs: int) -> Outputs:
    """None → "all"; an output index; a pair (j, y); "margins" is handled by :func:`lipschitz_sdp`."""
    if outputs is None or (isinstance(outputs, str) and outputs == "all"):
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


def _parse_region(region: object, network: Network) -> Ball | None:
    if region is None:
        return None
    if not isinstance(region, Ball):
        raise InputError(
            "region",
            got=f"a {type(region).__name__}",
            needed="None, or a Ball(center, radius, norm)",
            fix="certbound.Ball(x, 0.1, 'inf')",
        )
    if region.center.size != network.n_inputs:
        raise InputError(
            "region",
            got=f"a center of {region.center.size} numbers",
            needed=f"{network.n_inputs}, one for each input of the network",
            fix="the center is one sample, without the batch axis",
        )
    return region


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


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
    input_shape: tuple[int, ...] | None = None,
) -> Result | tuple[Result, ...]:
    """Upper bound of the Lipschitz constant by the LipSDP-neuron relaxation; never above the product of norms.

    The bound is rigorous: ``.certificate.verify(network)`` proves it anew with numpy only. (On a processor that flushes
    subnormal numbers to zero it is ``numerical``, and the stats say why.)

    Parameters
    ----------
    network : nn.Module, Network, small Graph, or list of weight matrices (bias-free ReLU net). Residual sums, leaky
        ReLU, tanh, sigmoid, GELU and SiLU are read by their true slopes; any other layer is refused by name.
    norm : 2 (ℓ2 → ℓ2) or ∞. For ∞, ``outputs=None`` bounds ∞ → ∞ (the largest over outputs).
    outputs : None, an output index, a pair ``(j, y)`` for the margin ``f_j − f_y``, or ``"margins"``: a tuple of
        Results, one for each pair j < y.
    region : None (all inputs), or a :class:`~certbound.Ball`: ``|f(x) − f(y)| <= L |x − y|`` for x, y in it. Slopes
        come from certified pre-activation bounds; never above the bound over all inputs.
    method : ``barrier`` (the optimum, up to 4,000 rows of M), ``first-order`` (anytime, torch, on any device),
        ``closed-form`` (any size), ``path-norms`` (LipLT: no SDP), ``cvxpy`` (the reference for plain chains, up to
        300 rows), ``auto``: the barrier where it is estimated to take at most a minute (or the time limit), else
        first-order, else the smaller of closed form and path norms; of margins the largest five are solved (any other
        method solves all). ``stats`` say what was chosen and why.
    tolerance : relative distance to the optimum of the relaxation at which the barrier ends; first-order ends at 1e-3
        of an estimate of its own, or at this if it is larger. ``.gap`` is what was reached, by a dual bound
        (numerical); None where it is not known.
    time_limit : seconds for each result; on time-out the best bound so far, with status TIME_LIMIT.
    device : of the first-order solver, as torch names it (``"cpu"``, ``"cuda"``).
    progress : a bar on stderr.
    input_shape : of one sample, (C, H, W), for modules with convolutions: a small one becomes dense layers, see
        :func:`certbound.io.graph_to_network.dense_network`.

    Raises
    ------
    InputError : unknown norm, outputs, region, method. UnsupportedLayerError : a layer outside the IR.

    Source: Fazlyab et al., NeurIPS 2019; Xu & Sivaranjani 2024 (closed form).

    >>> lipschitz_sdp([[[3.0]], [[2.0]]], norm=2, method="closed-form").value.__round__(9)
    6.0
    >>> inside = Ball([2.0], 1.0, 2)  # |x| does not bend here
    >>> lipschitz_sdp([[[1.0], [-1.0]], [[1.0, 1.0]]], region=inside).value.__round__(9)
    1.0
    """
    (net, assumes), p = dense_model(network, input_shape), parse_norm(norm)
    ball = _parse_region(region, net)
    if method not in get_args(Method):
        raise InputError("method", got=repr(method), needed=f"one of {get_args(Method)}", fix="'auto' chooses by size")
    if not _is_number(tolerance) or not 0 < tolerance < 1:
        raise InputError("tolerance", got=repr(tolerance), needed="a number in (0, 1)", fix="1e-4 is the default")
    if time_limit is not None and not (_is_number(time_limit) and time_limit > 0):
        raise InputError("time_limit", got=repr(time_limit), needed="seconds > 0", fix="None means no limit")
    if device is not None and method not in ("auto", "first-order"):
        raise InputError("device", got=repr(device), needed=f"None for method {method!r}", fix="method='first-order'")
    request = _Request(method, tolerance, time_limit, device, progress, ball)
    if isinstance(outputs, str) and outputs == "margins":
        pairs = [(j, y) for y in range(net.n_outputs) for j in range(y)]
        if not pairs:
            raise InputError(
                "outputs",
                got="'margins' of a network with one output",
                needed="at least two outputs",
                fix="pass outputs=0",
            )
        return tuple(replace(r, bound=assuming(r.bound, assumes)) for r in _margins(net, p, pairs, request))
    result = _one(net, p, parse_outputs(outputs, net.n_outputs), request)
    return replace(result, bound=assuming(result.bound, assumes))


def assuming(bound: Bound, assumes: tuple[str, ...]) -> Bound:
    """The bound with what its claim takes for granted about the model that it was read from."""
    return replace(bound, assumptions=(*bound.assumptions, *assumes)) if assumes else bound


def _margins(net: Network, norm: float, pairs: list[tuple[int, int]], request: _Request) -> tuple[Result, ...]:
    """All margins; ``auto`` takes the closed form and solves for the largest few."""
    if request.method != "auto":
        return tuple(_one(net, norm, pair, request) for pair in pairs)
    results = [_one(net, norm, pair, replace(request, method="closed-form")) for pair in pairs]
    for i in sorted(range(len(pairs)), key=lambda i: -results[i].value)[:_REFINED]:
        results[i] = _one(net, norm, pairs[i], request)
    return tuple(results)


__all__ = ["AUTO_SECONDS", "Method", "assuming", "lipschitz_sdp", "parse_outputs"]
