"""A LOWER bound of a graph's Lipschitz constant: difference quotients along the steepest directions at sampled points.

At a point x torch's autograd gives a Jacobian; its top direction v (p = 2: the first right singular vector; p = ∞: the
signs of the row with the largest ℓ1 norm) is tried: ``‖f(x + tv) − f(x − tv)‖ / (2t ‖v‖)`` is at most the constant
whatever v is, so a wrong Jacobian at a kink costs tightness, not truth. The outputs are evaluated in float64 without
error bounds: *numerical*.
"""

from __future__ import annotations

import math
import time
from typing import Any, cast

import numpy as np

from certbound.arrays import F64
from certbound.bound import Bound, Claim, Result, vacuous_bound
from certbound.graph import Graph
from certbound.io.graph_to_torch import graph_to_torch
from certbound.io.to_torch import import_torch
from certbound.lipschitz.product import Outputs
from certbound.network import Ball
from certbound.types import GLOBAL, Quantity, Rigor, Sense, Status

METHOD = "difference quotients along sampled Jacobians"
_STEP = 1e-5  # of a quotient, relative to the size of the point or the ball: 1e-16/1e-5 of rounding


def graph_sampled(
    graph: Graph,
    norm: float,
    outputs: Outputs = "all",
    *,
    region: Ball | None = None,
    n_samples: int = 100,
    seed: int = 0,
) -> Result:
    """The largest quotient found; 0 with status FAILED if none was finite.

    Parameters
    ----------
    graph : any graph. norm : 2.0 or ∞. outputs : ``"all"``, an index, or a pair.
    region : a ball to sample in; None: all inputs, of sizes 10^−2 … 10^1.
    n_samples : points; each costs one Jacobian by autograd (outputs times a backward pass).
    seed : the same seed, the same answer.

    >>> from certbound.graph import Node
    >>> from certbound.ops import Input, Linear
    >>> linear = Graph((Node(Input((1, 2))), Node(Linear([[3.0, 4.0]]), (0,))))
    >>> round(graph_sampled(linear, 2.0, n_samples=3).value, 6)
    5.0
    """
    start = time.perf_counter()
    claim = Claim(Quantity.LIPSCHITZ, norm, norm, GLOBAL if region is None else str(region), outputs, graph.digest)
    rng, best = np.random.default_rng(seed), 0.0
    jacobian = _jacobians(graph)
    if region is None or region.radius > 0.0:
        for _ in range(n_samples):
            x, step = _point(rng, graph.n_inputs, region)
            J = _rows(jacobian(x), outputs)
            if bool(np.all(np.isfinite(J))):
                best = max(best, _quotient(graph, x, _direction(J, norm), step, norm, outputs))
    stats = (("samples", float(n_samples)),)
    if best == 0.0:
        nothing = vacuous_bound(claim, Sense.LOWER, method=METHOD, source="definition")
        constant = region is not None and region.radius == 0.0
        return Result(nothing, Status.OK if constant else Status.FAILED, None, time.perf_counter() - start, stats)
    bound = Bound(best, claim, Sense.LOWER, Rigor.NUMERICAL, METHOD, "definition of the constant")
    return Result(bound, Status.OK, None, time.perf_counter() - start, stats)


def _jacobians(graph: Graph) -> Any:
    """``x ↦ J(x)``, shape (outputs, inputs), by autograd in float64."""
    torch = cast("Any", import_torch("graph_sampled"))
    net = graph_to_torch(graph)

    def at(x: F64) -> F64:
        point = torch.from_numpy(x.copy()).requires_grad_(True)
        out = net(point.reshape(1, *graph.input_shape))[0]
        rows = [torch.autograd.grad(value, point, retain_graph=True, allow_unused=True)[0] for value in out]
        return np.stack([np.zeros_like(x) if row is None else row.numpy() for row in rows])

    return at


def _point(rng: np.random.Generator, n: int, region: Ball | None) -> tuple[F64, float]:
    """A point, and how far a quotient may reach from it on either side (in the ball's norm, or ℓ∞)."""
    move = rng.standard_normal(n)
    if region is None:
        size = 10.0 ** rng.uniform(-2.0, 1.0)
        return size * move, _STEP * size
    move *= rng.random() * (1.0 - 2.0 * _STEP) / float(np.linalg.norm(move, np.inf if math.isinf(region.norm) else 2))
    return region.center.reshape(-1) + region.radius * move, _STEP * region.radius


def _rows(J: F64, outputs: Outputs) -> F64:
    if isinstance(outputs, tuple):
        return J[[outputs[0]]] - J[[outputs[1]]]
    return J if outputs == "all" else J[[int(outputs)]]


def _direction(J: F64, norm: float) -> F64:
    """Of norm 1."""
    if math.isinf(norm):
        return np.where(J[np.abs(J).sum(axis=1).argmax()] >= 0.0, 1.0, -1.0)
    v: F64 = np.linalg.svd(J, full_matrices=False)[2][0]
    return v


def _quotient(graph: Graph, x: F64, v: F64, step: float, norm: float, outputs: Outputs) -> float:
    ends = np.stack([x + step * v, x - step * v])
    order = np.inf if math.isinf(norm) else 2
    length = float(np.linalg.norm(ends[0] - ends[1], order))
    with np.errstate(over="ignore", invalid="ignore"):
        out = graph.forward(ends)
        change = _rows((out[0] - out[1])[:, None], outputs)[:, 0]
        value = float(np.linalg.norm(change, order)) / length if length > 0.0 else 0.0
    return value if math.isfinite(value) else 0.0


__all__ = ["graph_sampled"]
