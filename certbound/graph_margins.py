"""Margins of what is no plain chain: a Graph, or a Network with residual blocks or smooth activations.

Their values, and a lower bound of their Lipschitz constants by difference quotients.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from certbound.arrays import F64, I64
from certbound.bound import multiply_up
from certbound.graph import Graph, as_graph
from certbound.losses import class_head, class_logits, margins_of
from certbound.network import Network
from certbound.norms.dense import row_dual_norms
from certbound.ops import Linear

QUOTIENT_SAMPLES = 64
"""Samples at most at which difference quotients are taken."""

_STEPS = (2.0**-14, 2.0**-18)
"""Lengths of the way from a sample to each of the two points of a difference quotient: less rounding in the first,
fewer kinks in the second."""

_ROUNDING = 2.0**-46
"""What is taken off a difference for rounding, relative to the logits."""


def split_head(network: Network | Graph) -> tuple[Graph, Linear | None]:
    """Encoder and head: the graph without its last Linear, and that; the whole graph and None if it has none.

    >>> encoder, head = split_head(Network.from_weights([[[1.0]], [[2.0], [3.0]]]))
    >>> encoder.nodes[-1].op.kind, head.weight.tolist()
    ('relu', [[2.0], [3.0]])
    """
    graph = as_graph(network)
    last = graph.nodes[-1]
    if not isinstance(last.op, Linear) or len(graph.shapes[-1]) != 2:
        return graph, None
    # what else comes after the head's input is part of no output
    return Graph(graph.nodes[: last.inputs[0] + 1]), last.op


def graph_margins(network: Network | Graph, x: F64, y: I64) -> F64:
    """``f_y − f_j``, ``+∞`` at j = y, shape (samples, classes): by differences of the head's rows, where there is one.

    Classes with equal rows tie exactly then, as in :func:`certbound.robustness.network_margins`. Without a linear head
    they are differences of logits.

    >>> graph_margins(as_graph([[[3.0], [1.0]]]), np.array([[2.0]]), np.array([0]))
    array([[inf,  4.]])
    """
    encoder, head = split_head(network)
    values = encoder.forward(x)
    if head is None:
        return margins_of(class_logits(values), y)
    rows = class_head(head.weight)
    bias = np.zeros(len(rows)) if head.bias is None else class_head(head.bias[:, None])[:, 0]
    margins = np.empty((len(y), len(rows)))
    for label in np.unique(y):
        mine = y == label
        margins[mine] = values[mine] @ (rows[label] - rows).T + (bias[label] - bias)
        margins[mine, label] = math.inf
    return margins


def head_constants(encoder: float, head: F64, norm: float) -> F64:
    """``L_jy = L · ‖C_j − C_y‖_{p*}`` for an encoder constant L; rows of a one-row head are (0, C).

    >>> head_constants(2.0, np.array([[1.0, 0.0], [0.0, 1.0]]), math.inf).round(9).tolist()  # ‖(1, −1)‖_1 = 2
    [[0.0, 4.0], [4.0, 0.0]]
    """
    rows = class_head(head)
    n = len(rows)
    constants = np.zeros((n, n))
    for y in range(n):
        for j in range(y):
            difference = rows[j] - rows[y]
            scale = float(np.max(np.abs(difference), initial=0.0)) or 1.0
            size = multiply_up(float(row_dual_norms((difference / scale)[None], norm)[0]), scale)
            constants[j, y] = constants[y, j] = multiply_up(encoder, size)
    return constants


def quotient_constants(network: Network | Graph, x: F64, norm: float) -> F64:
    """LOWER bounds of the margins' Lipschitz constants: ``|m(x + v) − m(x − v)| / ‖2v‖``, m = f_j − f_y.

    A difference quotient is one whether or not there is a kink between its points, where a gradient need not be. The
    direction v is that in which the gradient at x says that m grows most, at the sample where it says so most, among
    the first :data:`QUOTIENT_SAMPLES`. Two lengths of v are tried.

    >>> quotient_constants(as_graph([[[2.0]], [[1.0], [-1.0]]]), np.array([[0.5]]), 2.0).round(6)
    array([[0., 4.],
           [4., 0.]])
    """
    graph = as_graph(network)
    best: dict[tuple[int, int], tuple[float, F64, F64]] = {}
    for centre, jacobian in _jacobians(graph, x[:QUOTIENT_SAMPLES]):
        n = len(jacobian)
        for y in range(n):
            differences = jacobian[:y] - jacobian[y]
            for j, size in enumerate(row_dual_norms(differences, norm) if y else ()):
                if size > best.get((j, y), (0.0, centre, centre))[0]:
                    best[j, y] = (float(size), centre, differences[j])
    n = max(graph.n_outputs, 2)
    constants = np.zeros((n, n))
    tried = [(pair, best[pair][1], step * _steepest(best[pair][2], norm)) for pair in best for step in _STEPS]
    if not tried:
        return constants
    ends = np.array([(centre + way, centre - way) for _, centre, way in tried])
    values = class_logits(graph.forward(ends.reshape(-1, graph.n_inputs))).reshape(len(tried), 2, n)
    for (pair, _, _), (ahead, behind), (to, fro) in zip(tried, values, ends, strict=True):
        (j, y), way = pair, to - fro  # the way that float64 made of it
        size = float(np.max(np.abs(way)) if math.isinf(norm) else np.linalg.norm(way))
        room = _ROUNDING * max(float(np.max(np.abs(v))) for v in (ahead, behind))
        quotient = (abs((ahead[j] - ahead[y]) - (behind[j] - behind[y])) - room) / size if size > 0.0 else 0.0
        if math.isfinite(quotient):
            constants[j, y] = constants[y, j] = max(constants[j, y], quotient)
    return constants


def _steepest(slope: F64, norm: float) -> F64:
    """The direction of length 1 in which ``slope · v`` is largest."""
    if math.isinf(norm):
        return np.sign(slope)
    scaled = slope / np.max(np.abs(slope))
    direction: F64 = scaled / np.linalg.norm(scaled)
    return direction


def _jacobians(graph: Graph, x: F64) -> Iterator[tuple[F64, F64]]:
    """Each sample with the gradients of its logits, shape (classes, inputs), by torch in float64."""
    from certbound.io.graph_to_torch import graph_to_torch
    from certbound.io.to_torch import import_torch

    torch = import_torch("the gradients of a network that is no plain chain")
    with torch.inference_mode(False), torch.enable_grad():
        module: Any = graph_to_torch(graph)
        for centre in x:
            point = torch.tensor(centre[None], dtype=torch.float64, requires_grad=True)
            logits = module(point)[0]
            rows = [
                torch.autograd.grad(logit, [point], retain_graph=True, allow_unused=True)[0] for logit in logits
            ]
            found = np.array([np.zeros(len(centre)) if r is None else r[0].numpy() for r in rows])
            yield centre, np.nan_to_num(class_head(found), nan=0.0, posinf=0.0, neginf=0.0)


__all__ = [
    "QUOTIENT_SAMPLES", "graph_margins", "head_constants", "quotient_constants", "split_head",
]  # fmt: skip
