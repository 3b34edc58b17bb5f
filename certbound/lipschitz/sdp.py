"""``lipschitz_sdp``: certified Lipschitz constants from feasible points of the LipSDP-neuron relaxation.

``closed-form``: the always-valid recursion (milliseconds, any size). ``cvxpy``: the optimum of a small LMI, its
multipliers repaired before they count. Every answer is the smallest of what the method found, the closed form and
the product of norms: a solver's optimum can be above the product.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal, get_args

import numpy as np

from certbound.arrays import F64, power_of_two_scale
from certbound.bound import Bound, Claim, Result, multiply_up
from certbound.errors import InputError, MissingDependencyError
from certbound.lipschitz import sdp_cvxpy
from certbound.lipschitz.pattern_pair import triangular_factor
from certbound.lipschitz.product import Outputs, functional_bound, output_row, product_bound, product_of_norms
from certbound.lipschitz.recursion import forward, head_norm_2, recursion_inf
from certbound.lipschitz.repair import repaired
from certbound.losses import class_head
from certbound.network import Network, as_network
from certbound.types import Quantity, Rigor, Sense, Status, parse_norm

Method = Literal["auto", "closed-form", "cvxpy"]
_SOURCE = "LipSDP-neuron (Fazlyab et al., NeurIPS 2019); certbound theory, section 5"


@dataclass(frozen=True)
class _Found:
    """A value on the upper side, how it was found, and how the method ended."""

    value: float
    method: str
    status: Status = Status.OK
    stats: tuple[tuple[str, float | str], ...] = ()


def _bound(network: Network, norm: float, outputs: Outputs, found: _Found) -> Bound:
    """The smaller of the value found and the product of norms, as a bound."""
    product = product_bound(network, norm, outputs)
    claim = Claim(Quantity.LIPSCHITZ, norm, norm, outputs=outputs, subject=network.digest)
    if product.value < found.value:
        # the claim of `product` is the same; only the way there differs
        return Bound(product.value, claim, Sense.UPPER, product.rigor, product.method, product.source, terms=(product,))
    return Bound(found.value, claim, Sense.UPPER, Rigor.NUMERICAL, found.method, _SOURCE)


def _heads(network: Network, norm: float, outputs: Outputs) -> list[F64]:
    """The head blocks to bound: the whole head (ℓ2), or one row each (ℓ∞ bounds outputs one by one)."""
    if outputs != "all":
        return [output_row(network, outputs)[None]]
    head = network.chain.head
    return [row[None] for row in head] if math.isinf(norm) else [head]


def _closed_form(network: Network, norm: float, heads: list[F64]) -> _Found:
    encoder = network.chain.encoder
    if math.isinf(norm):
        # output by output, the product can be the smaller one
        ceiling = product_of_norms(encoder, norm, "").value
        value = max(
            min(recursion_inf(encoder, h[0])[0], multiply_up(ceiling, functional_bound(h[0], norm, "all").value))
            for h in heads
        )
    else:
        run = forward(encoder, np.ones(network.n_inputs))
        value = max(head_norm_2(run, h) for h in heads)
    return _Found(value, "closed-form recursion")


def _cvxpy(network: Network, norm: float, heads: list[F64], time_limit: float | None) -> _Found:
    """The SDP for each head block, repaired; the closed form where it fails."""
    start = time.perf_counter()
    fallback = _closed_form(network, norm, heads)
    encoder = network.chain.encoder
    if not encoder or any(not w.any() for w in encoder):
        return fallback  # one affine map or a constant: the closed form is exact
    size = sdp_cvxpy.lmi_size(encoder, norm)
    if size > sdp_cvxpy.SCS_LIMIT:
        sizes = (("LMI size", float(size)), ("limit", float(sdp_cvxpy.SCS_LIMIT)))
        return _Found(fallback.value, fallback.method, Status.TOO_LARGE, sizes)
    try:
        sdp_cvxpy.import_cvxpy()
    except MissingDependencyError as error:
        return _Found(fallback.value, fallback.method, Status.NOT_INSTALLED, (("install", error.command),))
    # powers of two first: the norm of weights near 1e308 is no float
    powers = [power_of_two_scale(w) for w in encoder]
    reduced = [w / p for w, p in zip(encoder, powers, strict=True)]
    if not math.isinf(norm) and encoder[0].shape[1] > encoder[0].shape[0]:
        # ‖·‖_2 does not see an orthogonal change of input: the LQ factor has h_1 columns (false for ℓ∞)
        reduced[0] = triangular_factor(reduced[0].T).T
    norms = [float(np.linalg.norm(w, 2)) for w in reduced]
    unit = [w / n for w, n in zip(reduced, norms, strict=True)]
    worst, status = 0.0, Status.OK
    stats: dict[str, Any] = {}
    singles = [fallback.value] if len(heads) == 1 else [_closed_form(network, norm, [h]).value for h in heads]
    for h, single in zip(heads, singles, strict=True):
        head_norm = float(np.linalg.norm(h, 2))
        if head_norm == 0.0:
            continue
        left = None if time_limit is None else time_limit - (time.perf_counter() - start)
        if left is not None and left <= 0:
            worst, status = max(worst, single), Status.TIME_LIMIT
            continue
        answer = sdp_cvxpy.solve(unit, h / head_norm, norm, left)
        scale = reduce(multiply_up, [*norms, head_norm, *sorted(powers, reverse=True)])
        stats["solver"] = f"{answer.solver} ({answer.status})"
        if answer.multipliers is not None:
            said = math.sqrt(max(answer.value, 0.0)) * scale
            stats["solver value (heuristic)"] = max(said, stats.get("solver value (heuristic)", 0.0))
        if "limit" in answer.status:
            status = Status.TIME_LIMIT  # what the solver had by then is repaired all the same
        fixed = None if answer.multipliers is None else repaired(unit, h / head_norm, answer.multipliers)
        if fixed is None:
            worst, status = max(worst, single), Status.FAILED
            continue
        s, point, name = fixed
        extra = float(point.d.sum()) if math.isinf(norm) else 1.0
        stats["repair"] = name
        worst = max(worst, min(single, multiply_up(math.sqrt(s * extra) * (1 + 1e-12), scale)))
    return _Found(worst, "LipSDP-neuron (cvxpy), repaired", status, (("LMI size", float(size)), *stats.items()))


def _one(network: Network, norm: float, outputs: Outputs, method: Method, time_limit: float | None) -> Result:
    start = time.perf_counter()
    network = network.open_ended
    heads = _heads(network, norm, outputs)
    chosen, why = method, ""
    if method == "auto":
        encoder = network.chain.encoder
        small = bool(encoder) and sdp_cvxpy.lmi_size(encoder, norm) <= sdp_cvxpy.CLARABEL_LIMIT
        chosen = "cvxpy" if small else "closed-form"
        why = f"auto: LMI {'within' if small else 'above'} {sdp_cvxpy.CLARABEL_LIMIT}, hence {chosen}"
    found = _closed_form(network, norm, heads) if chosen == "closed-form" else _cvxpy(network, norm, heads, time_limit)
    if method == "auto" and found.status is Status.NOT_INSTALLED:
        found = _Found(found.value, found.method, Status.OK, found.stats)  # auto may do without cvxpy
    stats = (*found.stats, *((("choice", why),) if why else ()))
    bound = _bound(network, norm, outputs, found)
    return Result(bound, found.status, seconds=time.perf_counter() - start, stats=stats)


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
) -> Result | tuple[Result, ...]:
    """Upper bound of the Lipschitz constant by the LipSDP-neuron relaxation; never above the product of norms.

    Parameters
    ----------
    network : nn.Module, Network, or list of weight matrices (bias-free ReLU net).
    norm : 2 (ℓ2 → ℓ2) or ∞. For ∞, ``outputs=None`` bounds ∞ → ∞ (the largest over outputs).
    outputs : None, an output index, a pair ``(j, y)`` for the margin ``f_j − f_y``, or ``"margins"``: a tuple of
        Results, one for each pair j < y.
    method : ``closed-form`` (any size, milliseconds), ``cvxpy`` (LMI up to 300), ``auto``.
    time_limit : seconds; on time-out the closed form's bound, with status TIME_LIMIT.
    region, tolerance, device : reserved for local bounds and the fast solver; region must be None in this version.

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
        return tuple(_one(net, p, pair, method, time_limit) for pair in pairs)
    return _one(net, p, parse_outputs(outputs, net.n_outputs), method, time_limit)


def margin_constants(
    network: Network, norm: float, method: Literal["closed-form", "cvxpy"], time_limit: float | None = None
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
                found = _cvxpy(network, norm, [row[None]], left)
                value, status = found.value, status if found.status is Status.OK else found.status
            product = multiply_up(ceiling, functional_bound(row, norm, (j, y)).value)
            constants[j, y] = constants[y, j] = min(value, product)
    return constants, status
