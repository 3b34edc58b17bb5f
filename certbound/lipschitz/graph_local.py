"""``lipschitz_local``: the Lipschitz constant of a graph on a ball, attention and layer normalisation included.

For x, x' in the ball B(c, r) the rule of :mod:`certbound.lipschitz.graph_product` holds with the constants that the
operations have on the values that occur. Node by node, in order: with ``L_v`` of a value v on the ball,
``‖v(x) − v(c)‖ <= L_v r``, so v stays in the intersection of ``v(c) ± L_v r`` with what interval arithmetic gives, and
that set bounds the constants of the operations that read v:

* ``A B``: ``‖AB − A'B'‖ <= sup‖B‖ L_A + sup‖A‖ L_B``. Entries as a vector: in ℓ2 (Frobenius) the norms of A and B are
  spectral, ``sup‖A‖_2 <= ‖A(c)‖_2 + L_A r``; in ℓ∞ they are the largest row sum of A and the largest column sum of B.
  Rows of a softmax sum to 1. Elementwise products: ``sup|b| L_a + sup|a| L_b``;
* softmax: from an enclosure of its probabilities on that set; layer normalisation: from its smallest variance there;
* activations: the slopes on that set.

For graphs of up to :data:`ENTRIES` entries of a Jacobian, all Jacobians on the ball are enclosed beside that
(:mod:`certbound.lipschitz.graph_tangents`), entry by entry: ``v_i`` stays within ``v_i(c) ± ‖row i‖_{p*} r``, and the
norm of the enclosure of the last one is a bound, which tends to ``‖J(c)‖`` as the radius goes to 0. The smaller of the
two bounds is given.

All sets are convex, so that every point between two values belongs to them. Values are enclosed, every rounding
counted (:mod:`certbound.lipschitz.graph_boxes`): the bound is rigorous.

Source: Kim, Papamakarios & Mnih, ICML 2021 (why there is no global constant); the product rule.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np

from certbound.arrays import F64
from certbound.bound import Bound, Claim, Result, multiply_up
from certbound.errors import InputError
from certbound.graph import Graph, Node, as_graph
from certbound.lipschitz.graph_boxes import Box, centred, probabilities, row_sizes, values_of
from certbound.lipschitz.graph_pieces import Piece
from certbound.lipschitz.graph_product import Plan, Rule, check_outputs, check_tier, plus, times
from certbound.lipschitz.graph_tangents import Tangents, jacobian_norm, row_distances, tangents_of
from certbound.lipschitz.product import Outputs
from certbound.network import Ball
from certbound.norms.blocks import layer_norm_constant, matrix_norm_up, softmax_local_constant
from certbound.norms.conv_certificate import of_inputs
from certbound.norms.verified import enclose_inf_norm
from certbound.ops import LayerNorm, MatMul, Multiply, Permute, Pointwise, Reshape, Softmax
from certbound.rounding import Interval, check_arithmetic, sqrt_up, up
from certbound.types import Quantity, Rigor, Sense, Status, parse_norm

METHOD = "local constant of a graph"
ENTRIES = 4_000_000
"""Up to so many entries of its largest Jacobian (inputs times the largest value) a graph's Jacobians are enclosed."""
SOURCE = "product rule on a ball; Kim, Papamakarios & Mnih 2021 (no global constant of dot-product attention)"


@dataclass(frozen=True, eq=False)
class _Known:
    """What is known of a value: its enclosure at the centre, and on the ball; its Jacobians on the ball."""

    center: Box
    ball: Box
    tangent: Tangents = None


class _LocalRule(Rule):
    """The rule with the constants that operations have on the ball; they are put into ``gains`` before they are asked.

    ``gains[i]``: of an activation, a softmax or a layer normalisation (without its weight); ``factors[i]``: of a
    product ``(sup‖a‖, sup‖b‖)``.
    """

    def __init__(self, graph: Graph, norm: float, tier: str) -> None:
        super().__init__(graph, norm, lambda piece: self._proved(piece))
        self._tier = tier
        self.gains: dict[int, float] = {}
        self.factors: dict[int, tuple[float, float]] = {}

    def _proved(self, piece: Piece) -> float:
        return piece.prove(self.norm, self._tier).value

    def gain(self, i: int) -> float:
        op = self.reader.nodes[i].op
        if i not in self.gains:
            return super().gain(i)
        if isinstance(op, LayerNorm) and op.weight is not None:
            return times(self.gains[i], float(np.max(np.abs(op.weight))))
        return self.gains[i]

    def normalisation(self, i: int, op: LayerNorm, n: int) -> float:
        return self.gains[i] if i in self.gains else super().normalisation(i, op, n)

    def product(self, i: int, node: Node) -> Plan:
        a, b = node.inputs
        if a in self.reader.constants or b in self.reader.constants:
            found = self.constant_product(node)
            if found is not None:
                return found

        def value() -> float:
            size_a, size_b = self.factors[i]
            return plus(times(size_b, self.constant(a)), times(size_a, self.constant(b)))

        return (a, b), value


class _Walk:
    """One pass through the graph: enclosures and constants, node by node."""

    def __init__(self, graph: Graph, ball: Ball, norm: float, outputs: Outputs, tier: str) -> None:
        self.graph = graph
        self.radius = ball.radius
        self.norm = norm
        self.rule = _LocalRule(graph, norm, tier)
        self._needed = self.rule.needed(outputs)
        self._known: dict[int, _Known] = {}
        center = ball.center.reshape(graph.shapes[0])
        around = Box.around(center, ball.radius) if ball.radius else Box.point(center)
        self.encloses = graph.n_inputs * max(math.prod(s) for s in graph.shapes) <= ENTRIES
        identity = Box.point(np.eye(graph.n_inputs).reshape(-1, *graph.shapes[0])) if self.encloses else None
        self._known[0] = _Known(Box.point(center), around, identity)
        self.last: Tangents = identity

    def run(self) -> None:
        """All nodes, in order; a value is dropped after its last use."""
        for i, node in enumerate(self.graph.nodes):
            if i:
                self._one(i, node)
            for j in (*node.inputs, i):
                if self.graph.last_uses[j] <= i:
                    self._known.pop(j, None)

    def _one(self, i: int, node: Node) -> None:
        inputs = [self._known[j] for j in node.inputs]
        center = values_of(node.op, [k.center for k in inputs])
        if i in self.rule.reader.constants:
            self._known[i] = _Known(center, center)
            self.last = None
            return
        ball = values_of(node.op, [k.ball for k in inputs])
        self._gain(i, node, inputs)
        if i in self._needed:
            moved = multiply_up(self.rule.constant(i), self.radius)
            if moved < math.inf:
                ball = ball.within(center.grown(moved))
        tangent = tangents_of(node.op, [k.ball for k in inputs], [k.tangent for k in inputs])
        if tangent is not None:
            moves = row_distances(tangent, self.radius, self.norm)
            ball = ball.within(center.grown(np.where(np.isnan(moves), math.inf, moves)))
        self._known[i] = _Known(center, ball, tangent)
        self.last = tangent

    def _distance(self, j: int) -> float:
        """How far value j moves from its centre, in the claim's norm."""
        if j in self.rule.reader.constants:
            return 0.0
        return multiply_up(self.rule.constant(j), self.radius)

    def _gain(self, i: int, node: Node, inputs: list[_Known]) -> None:
        """The constants of one operation on the ball."""
        op = node.op
        if isinstance(op, Pointwise):
            low, high = op.activation.slopes(inputs[0].ball.low, inputs[0].ball.high)
            self.rule.gains[i] = max(float(np.max(np.abs(low))), float(np.max(np.abs(high))))
        elif isinstance(op, Softmax):
            p = probabilities(op, inputs[0].ball)
            self.rule.gains[i] = softmax_local_constant(p.low, p.high, self.norm) if p.low.shape[op.axis] > 1 else 0.0
        elif isinstance(op, LayerNorm):
            self.rule.gains[i] = self._normalisation(op, inputs[0], node.inputs[0])
        elif isinstance(op, (MatMul, Multiply)):
            sizes = [
                self._factor_size(op, side, known, j)
                for side, (known, j) in enumerate(zip(inputs, node.inputs, strict=True))
            ]
            self.rule.factors[i] = (sizes[0], sizes[1])

    def _normalisation(self, op: LayerNorm, known: _Known, source: int) -> float:
        """From the smallest variance of a row on the ball."""
        n = math.prod(known.center.low.shape[-op.axes :])
        distance = self._distance(source)
        if math.isinf(self.norm):
            distance = up(sqrt_up(float(n)) * distance)
        near, _ = row_sizes(centred(op, known.center), distance)
        boxed, _ = row_sizes(centred(op, known.ball))
        size = Interval.of(float(np.min(np.maximum(near, boxed))))
        variance = float((size * size / Interval.of(float(n))).low)
        return layer_norm_constant(op, self.norm, n, variance, scaled=False)

    def _factor_size(self, op: MatMul | Multiply, side: int, known: _Known, j: int) -> float:
        """``sup‖·‖`` on the ball of the factor on one side."""
        if isinstance(op, Multiply):
            return float(np.max(known.ball.size, initial=0.0))
        if math.isinf(self.norm):
            if side == 0 and self._sums_to_one(j):
                return 1.0
            sizes = known.ball.size
            return _largest_sum(sizes if side == 0 else np.swapaxes(sizes, -1, -2))
        limits = [plus(_spectral(known.center), self._distance(j)), _by_sums(known.ball.size)]
        if side == 0 and self._sums_to_one(j):
            # ‖A‖_2² <= ‖A‖_1 ‖A‖_∞ with ‖A‖_∞ = 1
            columns = _largest_sum(np.swapaxes(known.ball.size, -1, -2))
            limits.append(sqrt_up(min(columns, float(known.ball.size.shape[-2]))))
        return min(limits)

    def _sums_to_one(self, j: int) -> bool:
        """Whether the rows of a value are those of a softmax."""
        nodes, shapes = self.graph.nodes, self.graph.shapes
        while isinstance(nodes[j].op, (Reshape, Permute)):
            (source,) = nodes[j].inputs
            op = nodes[j].op
            kept = op.axes[-1] == len(op.axes) - 1 if isinstance(op, Permute) else shapes[j][-1] == shapes[source][-1]
            if not kept:
                return False
            j = source
        op = nodes[j].op
        return isinstance(op, Softmax) and op.axis % len(shapes[j]) == len(shapes[j]) - 1


def _blocks(matrices: F64) -> F64:
    return matrices.reshape(-1, *matrices.shape[-2:])


def _largest_sum(sizes: F64) -> float:
    """Largest sum along the last axis, rounded up; ∞ where an entry is."""
    rows = sizes.reshape(-1, sizes.shape[-1])
    return enclose_inf_norm(np.ascontiguousarray(rows))[1] if bool(np.all(np.isfinite(rows))) else math.inf


def _by_sums(sizes: F64) -> float:
    """``√(‖A‖_1 ‖A‖_∞)`` of the worst block."""
    return sqrt_up(up(_largest_sum(sizes) * _largest_sum(np.swapaxes(sizes, -1, -2))))


def _spectral(box: Box) -> float:
    """The largest spectral norm of a block of matrices in the box."""
    center, reach = (_blocks(x) for x in box.halves())
    if not bool(np.all(np.isfinite(center)) and np.all(np.isfinite(reach))):
        return math.inf
    return max(matrix_norm_up(A, 2.0, off) for A, off in zip(center, reach, strict=True))


def lipschitz_local(
    model: object,
    region: Ball,
    norm: object = None,
    *,
    outputs: object = "all",
    input_shape: tuple[int, ...] | None = None,
    tier: str = "fast",
) -> Result:
    """Upper bound of the Lipschitz constant on a ball: ``‖f(x) − f(y)‖_p <= L ‖x − y‖_p`` for x, y in it. Rigorous.

    For nets that have no global constant (attention), or a poor one (layer normalisation). For small nets of dense
    layers :func:`certbound.lipschitz.sdp.lipschitz_sdp` with ``region=`` is much tighter.

    Parameters
    ----------
    model : Graph, ``nn.Module`` (with ``input_shape``), Network or list of weight matrices.
    region : the ball; its norm is the norm of the claim. The bound grows with the radius, at worst to ∞. As it goes to
        0 the bound tends to the norm of the Jacobian at the centre for graphs of up to :data:`ENTRIES` entries of a
        Jacobian, and to the product of the operations' constants there for larger ones (which is much more).
    norm : the ball's norm, which is the default, or the same in words.
    outputs : ``"all"``, one output, or ``(j, y)`` for ``f_j − f_y``.
    input_shape : of one sample, without the batch axis, for modules.
    tier : of the convolutions' norms, ``"fast"`` or ``"tight"``.

    Raises
    ------
    InputError : no ball, one of another dimension or norm, unknown outputs. UnsupportedLayerError : what the importer
        does not model.

    >>> from certbound.ops import Input
    >>> square = Graph((Node(Input((1, 1))), Node(Multiply(), (0, 0))))  # x²
    >>> round(lipschitz_local(square, Ball([3.0], 1.0, 2)).value, 9)  # |x + y| <= 8
    8.0
    """
    start = time.perf_counter()
    check_arithmetic()
    if not isinstance(region, Ball):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InputError(
            "region", got=f"a {type(region).__name__}", needed="a Ball(center, radius, norm)", fix="Ball(x, 0.01, 2)"
        )
    p = region.norm if norm is None else parse_norm(norm)
    if p != region.norm:
        raise InputError("norm", got=f"{norm!r}, of a {region}", needed="the norm of the ball", fix="leave it out")
    graph = as_graph(model, input_shape=input_shape)
    if region.center.size != graph.n_inputs:
        raise InputError(
            "region", got=f"a center of {region.center.size} numbers", needed=f"{graph.n_inputs}, as the model's input",
            fix="the center is one sample, without the batch axis",
        )  # fmt: skip
    which = check_outputs(outputs, graph.n_outputs)
    check_tier(tier)
    walk = _Walk(graph, region, p, which, tier)
    walk.run()
    value, found = walk.rule.bound(which), "product of constants"
    if walk.encloses:
        jacobian = 0.0 if walk.last is None else jacobian_norm(walk.last, p, which)
        if jacobian < value:
            value, found = jacobian, "Jacobians on the ball, enclosed"
    claim = Claim(Quantity.LIPSCHITZ, p, p, str(region), which, graph.digest)
    assumptions = (of_inputs(graph.input_shape),)
    bound = Bound(value, claim, Sense.UPPER, Rigor.RIGOROUS, f"{METHOD}: {found}", SOURCE, assumptions)
    return Result(bound, Status.OK, seconds=time.perf_counter() - start)


__all__ = ["lipschitz_local"]
