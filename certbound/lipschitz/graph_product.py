"""The Lipschitz constant of a graph by the constants of its operations: conv nets, residual nets, any DAG.

``L(v)`` bounds the constant of the value v as a function of the input:

* a linear layer with the batch normalisation and factors around it is one map A: ``L(A v) = ‖A‖ L(v)``;
* another operation with one input: its constant (:mod:`certbound.norms.blocks`) times L;
* ``L(a ± b) = L(a) + L(b)``; a sum of linear maps of one value is one linear map, of the summed matrix or kernel;
* entries gathered from values v_1, v_2, … (concatenation, slices, copies): ``√Σ m_i L(v_i)²`` in ℓ2, m_i the largest
  number of copies of one entry of v_i, and ``max L(v_i)`` in ℓ∞.

A value that several operations read is bounded once. Every rule is homogeneous in the constants of what it reads, so a
block between a fork d and a join has the constant ``L(d) · L(block relative to d)`` without any search for d: a
residual block gives ``L(x) (1 + ‖F‖)``.

Products of two values that both depend on the input are not globally Lipschitz: dot-product attention is refused (Kim,
Papamakarios & Mnih, ICML 2021, arXiv:2006.04710); see :func:`certbound.lipschitz.graph_local.lipschitz_local`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import numpy as np

from certbound.arrays import F64, I64
from certbound.bound import Bound, Claim, multiply_up
from certbound.certificate import Saveable, Stored, finish, take
from certbound.errors import CertificateError, InputError, UnsupportedLayerError
from certbound.graph import Graph, Node, as_graph
from certbound.lipschitz.graph_pieces import (
    AveragePiece,
    Branch,
    ConvPiece,
    MatrixPiece,
    Piece,
    Proof,
    conv_piece,
    linear_piece,
    summed_convolution,
    summed_matrix,
)
from certbound.lipschitz.product import Outputs, plain_outputs, read_outputs
from certbound.norms.blocks import (
    Factors,
    activation_constant,
    batch_norm_factors,
    clip_constant,
    layer_norm_constant,
    max_pool_constant,
    mean_constant,
    multiplicity_constant,
    scale_factors,
    softmax_constant,
)
from certbound.norms.conv_certificate import of_inputs
from certbound.ops import (
    AdaptiveAvgPool,
    Add,
    AvgPool,
    BatchNorm,
    Clip,
    Concat,
    Constant,
    Conv,
    Expand,
    Gather,
    LayerNorm,
    Linear,
    MatMul,
    MaxPool,
    Mean,
    Multiply,
    Pad,
    Permute,
    Pointwise,
    Reshape,
    Roll,
    Scale,
    Shape,
    Shift,
    Slice,
    Softmax,
)
from certbound.rounding import check_arithmetic, sqrt_up, up
from certbound.types import Quantity, Rigor, Sense, parse_norm

SOURCE = "Lip(g o f) <= Lip(g) Lip(f) and Lip(f + g) <= Lip(f) + Lip(g)"
MOVING = (Reshape, Permute, Slice, Gather, Roll, Expand, Pad, Concat)
"""Operations that only move, copy and drop entries (and put constants beside them)."""

Ask = Callable[[Piece], float]
"""An upper bound of a piece's norm, computed, or taken from a certificate and proved."""
Plan = tuple[tuple[int, ...], Callable[[], float]]
"""The nodes whose constants are needed first, and what makes a constant of them."""
_METHODS = ("", "torus", "cholesky", "rows")
TERMS = 64
"""Sums of more terms are not merged: x + x, doubled forty times, has 2⁴⁰."""
DEPTH = 100
"""How many sums, activations and moves one output goes back through; from there on its whole value counts."""


def times(a: float, b: float) -> float:
    """Product of upper bounds, rounded up; 1 is the identity and costs nothing.

    >>> times(1.0, 0.1), times(0.0, float("inf"))
    (0.1, 0.0)
    """
    return b if a == 1.0 else a if b == 1.0 else multiply_up(a, b)


def plus(a: float, b: float) -> float:
    """Sum of upper bounds, rounded up; 0 costs nothing."""
    return b if a == 0.0 else a if b == 0.0 else up(a + b)


def root_of_squares(values: Sequence[float]) -> float:
    """``√Σ v²`` of numbers >= 0, rounded up; ∞ if one is.

    >>> root_of_squares([3.0, 4.0]) - 5.0 < 1e-14, root_of_squares([7.0]), root_of_squares([0.0, 0.0])
    (True, 7.0, 0.0)
    """
    top = max(values, default=0.0)
    rest = [v for v in values if v > 0.0]
    if len(rest) <= 1 or math.isinf(top):
        return top
    total = 0.0
    for v in rest:
        ratio = up(v / top)
        total = up(total + up(ratio * ratio))
    return up(top * sqrt_up(total))


# ---------------------------------------------------------------- reading the graph


@dataclass(frozen=True, eq=False)
class LinearRun:
    """``diag(rows) A diag(columns)`` applied to the value ``source``, A a Linear or Conv; or (``op`` None) a diagonal
    map alone. ``normalised``: the node of a layer normalisation that the source goes through first, its weight folded.
    """

    source: int
    op: Linear | Conv | None
    rows: Factors | None
    columns: Factors | None
    normalised: int | None = None


def channel_factors(node: Node, shape: Shape, axis: int) -> Factors | None:
    """The factors of a BatchNorm or Scale along one axis of a value; None where they differ along another.

    >>> channel_factors(Node(Scale([[2.0], [3.0]])), (1, 2, 4), 1).value
    array([2., 3.])
    """
    op = node.op
    if isinstance(op, BatchNorm):
        return batch_norm_factors(op) if axis == 1 else None
    if not isinstance(op, Scale):
        return None
    found = scale_factors(op)
    missing = len(shape) - found.value.ndim
    mine = axis - missing
    if any(n != 1 for a, n in enumerate(found.value.shape) if a != mine):
        return None
    spread = [np.broadcast_to(x.reshape(-1), (shape[axis],)) for x in (found.value, found.low, found.high)]
    return Factors(*spread)


class Reader:
    """What a graph's nodes mean for a Lipschitz bound."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.nodes = graph.nodes
        self.shapes = graph.shapes
        self.constants = graph.constant_nodes()
        sizes = [math.prod(s) for s in self.shapes]
        self._first = [int(x) for x in np.cumsum([0, *sizes])]

    def run(self, i: int) -> LinearRun | None:
        """The linear map that node i ends, with the diagonal maps around it; None if it ends none."""
        rows, k = self._factors(i, None)
        op = self.nodes[k].op
        if not isinstance(op, (Linear, Conv)):
            return None
        axis = 1 if isinstance(op, Conv) else len(self.shapes[k]) - 1
        rows, k = self._factors(i, axis)
        if self.nodes[k].op is not op:
            return None  # factors that are not one a channel
        (source,) = self.nodes[k].inputs
        columns, start = self._factors(source, 1 if isinstance(op, Conv) else len(self.shapes[source]) - 1)
        before = self.nodes[start]
        if isinstance(op, Linear) and isinstance(before.op, LayerNorm) and before.op.axes == 1:
            weight = before.op.weight
            if weight is not None:
                own = Factors.exact(weight)
                columns = own if columns is None else columns.times(own)
            return LinearRun(before.inputs[0], op, rows, columns, start)
        return LinearRun(start, op, rows, columns)

    def _factors(self, i: int, axis: int | None) -> tuple[Factors | None, int]:
        """Back through diagonal maps (along ``axis``; None: any), and the node that they start from."""
        total: Factors | None = None
        while True:
            node = self.nodes[i]
            if not isinstance(node.op, Shift):
                if not isinstance(node.op, (BatchNorm, Scale)):
                    return total, i
                if axis is not None:
                    found = channel_factors(node, self.shapes[i], axis)
                    if found is None:
                        return total, i
                    total = found if total is None else total.times(found)
            i = node.inputs[0]

    def piece(self, run: LinearRun) -> Piece:
        """The map of a run."""
        if isinstance(run.op, Conv):
            return conv_piece(run.op, self.shapes[run.source], run.rows, run.columns)
        assert run.op is not None
        return linear_piece(run.op.weight, run.rows, run.columns)

    def linear_sum(self, i: int) -> tuple[int, Piece] | None:
        """Of a sum (of sums) all of whose terms are linear in one and the same value: that value and the one map."""
        terms: list[tuple[bool, int]] = []
        left = [(False, i)]
        while left:
            negative, k = left.pop()
            op = self.nodes[k].op
            if isinstance(op, Add):
                a, b = self.nodes[k].inputs
                left += [(negative != op.subtracts, b), (negative, a)]
                if len(left) + len(terms) > TERMS:
                    return None
            elif k not in self.constants:
                terms.append((negative, k))
        branches: list[tuple[int, Branch]] = []
        for negative, k in terms:
            run = self.run(k)
            if run is not None and run.normalised is None:
                conv = run.op if isinstance(run.op, Conv) else None
                weight = run.op.weight if isinstance(run.op, Linear) else None
                branches.append((run.source, Branch(negative, conv, weight, run.rows, run.columns)))
                continue
            branches.append((k, Branch(negative)))
        sources = {s for s, _ in branches}
        if len(branches) < 2 or len(sources) != 1:
            # a normalised identity branch (RepVGG) starts further back than it seems
            images = any(b.conv is not None for _, b in branches)
            branches = [(s, b) if b.conv is not None or b.weight is not None else self._diagonal(s, b, images=images)
                        for s, b in branches]  # fmt: skip
            sources = {s for s, _ in branches}
            if len(branches) < 2 or len(sources) != 1:
                return None
        source = sources.pop()
        shape, out = self.shapes[source], self.shapes[i]
        parts = [b for _, b in branches]
        piece: Piece | None = summed_convolution(parts, shape, out)
        if piece is None and shape[:-1] == out[:-1]:
            piece = summed_matrix(parts, shape[-1])
        return None if piece is None else (source, piece)

    def _diagonal(self, k: int, branch: Branch, *, images: bool) -> tuple[int, Branch]:
        """A branch of factors per channel (of ``images``, else along the last axis), from where they start."""
        factors, start = self._factors(k, 1 if images else len(self.shapes[k]) - 1)
        return start, Branch(branch.negative, None, None, factors)

    def copies(self, i: int) -> list[tuple[int, I64]]:
        """What a moved value is made of: (node, how often each of its entries occurs); constants left out."""
        ids = self.origins(i).reshape(-1)
        ids = ids[ids >= 0]
        found: list[tuple[int, I64]] = []
        owners = np.searchsorted(np.array(self._first), ids, side="right") - 1
        for owner in np.unique(owners).tolist():
            mine = ids[owners == owner] - self._first[owner]
            found.append((int(owner), np.bincount(mine).astype(np.int64)))
        return found

    def origins(self, i: int) -> I64:
        """For each entry of a value the entry of an unmoved one that it is: numbered over the graph; −1: a constant."""
        node = self.nodes[i]
        if i in self.constants:
            return np.full(self.shapes[i], -1, dtype=np.int64)
        if not isinstance(node.op, MOVING):
            first = self._first[i]
            return np.arange(first, self._first[i + 1], dtype=np.int64).reshape(self.shapes[i])
        parts = [self.origins(j) for j in node.inputs]
        if isinstance(node.op, Pad):
            return np.pad(parts[0], node.op.pads, constant_values=-1)
        # whole numbers below 2^53, which moving does not change
        return node.op.apply(*(p.astype(np.float64) for p in parts)).astype(np.int64)

    def owner(self, number: int) -> tuple[int, int]:
        """Node and index of an entry that :meth:`origins` numbered."""
        node = int(np.searchsorted(np.array(self._first), number, side="right")) - 1
        return node, number - self._first[node]

    def exact_constant(self, i: int) -> F64 | None:
        """The value of a constant node, if nothing but moving is done to it."""
        node = self.nodes[i]
        if isinstance(node.op, Constant):
            return node.op.value
        if i not in self.constants or not isinstance(node.op, MOVING):
            return None
        parts = [self.exact_constant(j) for j in node.inputs]
        return node.op.apply(*(p for p in parts if p is not None)) if all(p is not None for p in parts) else None


def refusal(node: Node) -> UnsupportedLayerError:
    """Why a product of two values that depend on the input has no global constant."""
    what = "dot-product attention, or another product of matrices" if isinstance(node.op, MatMul) else "a product"
    return UnsupportedLayerError(
        str(node),
        got=f"{what} of two values that both depend on the input",
        needed="a network that is globally Lipschitz; such a product is not (Kim et al. 2021, arXiv:2006.04710)",
        fix="lipschitz_local(model, Ball(x, radius, norm)) bounds it on a ball",
    )


# ---------------------------------------------------------------- the rule


class Rule:
    """L of every node that the output needs; asks for the norm of every linear map once, in a fixed order."""

    def __init__(self, graph: Graph, norm: float, ask: Ask) -> None:
        self.reader = Reader(graph)
        self.norm = norm
        self._ask = ask
        self._known: dict[int, float] = {0: 1.0}
        self._plans: dict[int, Plan] = {}
        self._chosen: dict[tuple[int, int | tuple[int, int]], float] = {}

    def bound(self, outputs: Outputs) -> float:
        """Bound of the constant of the outputs named."""
        last = len(self.reader.nodes) - 1
        return self.constant(last) if outputs == "all" else self._selected(last, cast("int | tuple[int, int]", outputs))

    def constant(self, target: int) -> float:
        """L of a node; without recursion, since networks are deep."""
        stack = [target]
        while stack:
            i = stack[-1]
            if i in self._known:
                stack.pop()
                continue
            sources, value = self._planned(i)
            missing = [j for j in sources if j not in self._known]
            if missing:
                stack += reversed(missing)
            else:
                self._known[i] = value()
        return self._known[target]

    def needed(self, outputs: Outputs) -> frozenset[int]:
        """The nodes whose constants the outputs' bound is made of."""
        found: set[int] = set()
        stack = [len(self.reader.nodes) - 1]
        while stack:
            i = stack.pop()
            if i and i not in found:
                found.add(i)
                stack += self._planned(i)[0]
                # one output goes back through what ends the graph by its rows
                stack += [] if outputs == "all" else self._row_sources(i)
        return frozenset(found)

    def _row_sources(self, i: int) -> list[int]:
        op = self.reader.nodes[i].op
        direct = isinstance(op, (*MOVING, Shift, Add, Pointwise, Clip))
        return [] if i in self.reader.constants or not direct else list(self.reader.nodes[i].inputs)

    def _planned(self, i: int) -> Plan:
        if i not in self._plans:
            self._plans[i] = ((), lambda: 0.0) if i in self.reader.constants else self._plan(i)
        return self._plans[i]

    def _plan(self, i: int) -> Plan:
        """What L of node i needs, and how it is made of that."""
        reader, norm, known = self.reader, self.norm, self._known
        node = reader.nodes[i]
        op = node.op
        run = reader.run(i)
        if run is not None:
            found = run
            return (run.source,), lambda: times(self._before(found), self._ask(reader.piece(found)))
        if isinstance(op, Add):
            merged = reader.linear_sum(i)
            if merged is not None:
                source, piece = merged
                return (source,), lambda: times(known[source], self._ask(piece))
            a, b = node.inputs
            return (a, b), lambda: plus(known[a], known[b])
        if isinstance(op, (Concat, Gather, Expand)):
            copies = [(j, int(counts.max())) for j, counts in reader.copies(i)]
            parts = [(j, multiplicity_constant(m, norm)) for j, m in copies]
            join = max if math.isinf(norm) else root_of_squares
            return tuple(j for j, _ in parts), lambda: join([times(m, known[j]) for j, m in parts] or [0.0])
        if isinstance(op, (Multiply, MatMul)):
            return self.product(i, node)
        (source,) = node.inputs
        return (source,), lambda: times(known[source], self.gain(i))

    def _before(self, run: LinearRun) -> float:
        """L of what a run's map is applied to."""
        known = self._known[run.source]
        if run.normalised is None:
            return known
        op = self.reader.nodes[run.normalised].op
        assert isinstance(op, LayerNorm)
        return times(known, self.normalisation(run.normalised, op, self.reader.shapes[run.source][-1]))

    def normalisation(self, i: int, op: LayerNorm, n: int) -> float:
        """The constant of the layer normalisation of node i without its weight."""
        return layer_norm_constant(op, self.norm, n, scaled=False)

    def product(self, i: int, node: Node) -> Plan:
        """A product of two values: one of them must be a constant."""
        found = self.constant_product(node)
        if found is not None:
            return found
        if not any(j in self.reader.constants for j in node.inputs):
            raise refusal(node)
        raise UnsupportedLayerError(
            str(node), got="a product with a constant that the model computes", needed="a stored constant",
            fix="store the constant as a buffer",
        )  # fmt: skip

    def constant_product(self, node: Node) -> Plan | None:
        """A product of which one factor is a stored constant; None for others."""
        reader = self.reader
        fixed = [j for j in node.inputs if j in reader.constants]
        moving = [j for j in node.inputs if j not in reader.constants]
        value = reader.exact_constant(fixed[0]) if fixed else None
        if value is None or len(moving) != 1:
            return None
        (source,) = moving
        if isinstance(node.op, Multiply):
            factor = float(np.max(np.abs(value), initial=0.0))
            return (source,), lambda: times(self._known[source], factor)
        # x ↦ A x or x Bᵀ per matrix of the leading axes: block diagonal
        left = fixed[0] == node.inputs[0]
        blocks = value.reshape(-1, *value.shape[-2:])
        distinct = np.unique(blocks, axis=0)
        pieces = [MatrixPiece(np.ascontiguousarray(b if left else b.T)) for b in distinct]
        return (source,), lambda: times(self._known[source], max(self._ask(p) for p in pieces))

    def gain(self, i: int) -> float:
        """The constant of an operation with one input."""
        node, norm = self.reader.nodes[i], self.norm
        op, shape = node.op, self.reader.shapes[node.inputs[0]]
        if isinstance(op, (Reshape, Permute, Roll, Slice, Pad, Shift)):
            return 1.0
        if isinstance(op, BatchNorm):
            return batch_norm_factors(op).largest
        if isinstance(op, Scale):
            return scale_factors(op).largest
        if isinstance(op, Pointwise):
            return activation_constant(op.activation)
        if isinstance(op, Clip):
            return clip_constant(op)
        if isinstance(op, MaxPool):
            return max_pool_constant(op, norm, shape)
        if isinstance(op, (AvgPool, AdaptiveAvgPool)):
            return self._ask(AveragePiece(op, tuple(shape[2:])))
        if isinstance(op, Mean):
            return mean_constant(op, norm, shape)
        if isinstance(op, Softmax):
            return softmax_constant(shape[op.axis])
        if isinstance(op, LayerNorm):
            return layer_norm_constant(op, norm, math.prod(shape[-op.axes :]))
        raise UnsupportedLayerError(
            str(node), got=f"a {op.kind}", needed="an operation with a known constant", fix="see certbound.norms.blocks"
        )

    # ------------------------------------------------------------ one output, or a difference of two

    def _unit(self, outputs: int | tuple[int, int]) -> float:
        """``‖e_j‖`` or ``‖e_j − e_y‖`` in the dual norm."""
        if not isinstance(outputs, tuple):
            return 1.0
        return 2.0 if math.isinf(self.norm) else sqrt_up(2.0)

    def _both(self, i: int, outputs: tuple[int, int], depth: int) -> float:
        return plus(self._selected(i, outputs[0], depth), self._selected(i, outputs[1], depth))

    def _selected(self, i: int, outputs: int | tuple[int, int], depth: int = 0) -> float:
        """Bound of the constant of ``v_j`` or ``v_j − v_y`` of the flat value of node i; each is found once."""
        key = (i, outputs)
        if key not in self._chosen:
            self._chosen[key] = self._chosen_value(i, outputs, depth + 1)
        return self._chosen[key]

    def _chosen_value(self, i: int, outputs: int | tuple[int, int], depth: int) -> float:
        reader = self.reader
        if i in reader.constants:
            return 0.0
        if depth > DEPTH:
            return times(self.constant(i), self._unit(outputs))
        op = reader.nodes[i].op
        if isinstance(op, MOVING):
            return self._moved(i, outputs, depth)
        rows = self._rows(i, outputs)
        if rows is not None:
            run, piece = rows
            self.constant(run.source)
            return times(self._before(run), self._ask(piece))
        if isinstance(op, Shift):
            return self._selected(reader.nodes[i].inputs[0], outputs, depth)
        if isinstance(op, Add):
            if reader.linear_sum(i) is None:
                return plus(*(self._selected(j, outputs, depth) for j in reader.nodes[i].inputs))
        elif isinstance(op, (Pointwise, Clip)) and isinstance(outputs, tuple):
            # a difference of outputs is none of pre-activations
            return min(times(self.constant(i), self._unit(outputs)), self._both(i, outputs, depth))
        elif isinstance(op, (Pointwise, Clip)):
            return times(self._selected(reader.nodes[i].inputs[0], outputs, depth), self.gain(i))
        return times(self.constant(i), self._unit(outputs))

    def _moved(self, i: int, outputs: int | tuple[int, int], depth: int) -> float:
        """Back to the value that the entry is taken from."""
        origins = self.reader.origins(i).reshape(-1)
        pair = outputs if isinstance(outputs, tuple) else (outputs,)
        places = [self.reader.owner(int(n)) for n in origins[list(pair)] if n >= 0]
        if len(places) == 2 and places[0][0] == places[1][0]:
            if places[0] == places[1]:
                return 0.0
            return self._selected(places[0][0], (places[0][1], places[1][1]), depth)
        total = 0.0
        for node, j in places:
            total = plus(total, self._selected(node, j, depth))
        return total

    def _rows(self, i: int, outputs: int | tuple[int, int]) -> tuple[LinearRun, MatrixPiece] | None:
        """Of a linear layer on its source: the row of one output, or of the difference of two at one position."""
        run = self.reader.run(i)
        if run is None:
            return None
        shape = self.reader.shapes[i]
        pair = outputs if isinstance(outputs, tuple) else (outputs,)
        piece = self.reader.piece(run)
        if isinstance(piece, ConvPiece):
            # taps that meet on one pixel add up: their ℓ2 norm is not the kernel's
            if piece.conv.padding_mode != "zeros" and not math.isinf(self.norm):
                return None
            weight = piece.conv.weight.reshape(shape[1], -1)
            error = None if piece.error is None else piece.error.reshape(shape[1], -1)
            places = [divmod(j, math.prod(shape[2:])) for j in pair]
            # a value may hold several images: (image, channel) and the position
            where = [(row % shape[1], (row // shape[1], at)) for row, at in places]
        else:
            assert isinstance(piece, MatrixPiece)
            weight, error = piece.weight, piece.error
            where = [(j % shape[-1], (j // shape[-1], 0)) for j in pair]
        if len(where) == 1:
            k = [where[0][0]]
            return run, MatrixPiece(weight[k], None if error is None else error[k])
        (j, at), (y, there) = where
        if at != there:
            return None
        if isinstance(piece, ConvPiece) and piece.conv.groups > 1:
            return None  # the two rows read different channels
        return run, _difference(weight, error, j, y)


def _difference(weight: F64, error: F64 | None, j: int, y: int) -> MatrixPiece:
    """``W_j − W_y``, rounded once."""
    from certbound.lipschitz.layer_product import AffinePart  # it imports the network's importers

    part = AffinePart(weight, error).rows((j, y))
    return MatrixPiece(part.weight, part.error)


# ---------------------------------------------------------------- bound and certificate


@dataclass(frozen=True, eq=False)
class GraphProductCertificate(Saveable):
    """``Lip_p(f) <= value`` by the rule of the module. :meth:`verify` proves every norm anew: no SVD, no search.

    ``proofs``: of every linear map, in the order in which the rule asks; ``input_shape``: of one sample, for reading
    the graph from a module.

    >>> GraphProductCertificate("", 2.0, "all", 6.0, (), ()).kind
    'constants of a graph'
    """

    kind: ClassVar[str] = "constants of a graph"

    subject: str
    norm: float
    outputs: Outputs
    value: float
    input_shape: tuple[int, ...]
    proofs: tuple[Proof, ...] = ()

    @property
    def bound(self) -> Bound:
        """The claim, as a bound that carries this certificate."""
        claim = Claim(Quantity.LIPSCHITZ, self.norm, self.norm, outputs=self.outputs, subject=self.subject)
        assumptions = (of_inputs(self.input_shape),)
        return Bound(self.value, claim, Sense.UPPER, Rigor.RIGOROUS, self.kind, SOURCE, assumptions, certificate=self)

    def verify(self, network_or_weights: object) -> bool:
        """Prove the norms and combine them anew; CertificateError with the reason if the value is not proved.

        ``network_or_weights`` : the Graph, or the ``nn.Module`` that it was read from.
        """
        check_arithmetic()
        if self.norm not in (2.0, math.inf):
            raise self._refusal(f"norm {self.norm!r} is neither 2 nor inf")
        given = network_or_weights
        graph = given if isinstance(given, Graph) else as_graph(given, input_shape=self.input_shape)
        if graph.input_shape != self.input_shape:
            raise self._refusal(f"it is about inputs of shape {self.input_shape}, not {graph.input_shape}")
        if graph.digest != self.subject:
            raise self._refusal(f"it is about the graph {self.subject!r}, not {graph.digest!r}")
        indices = () if self.outputs == "all" else np.atleast_1d(np.array(self.outputs)).tolist()
        if not all(0 <= i < graph.n_outputs for i in indices):
            raise self._refusal(f"outputs {self.outputs!r} of a graph with {graph.n_outputs}")
        left = list(reversed(self.proofs))

        def next_norm(piece: Piece) -> float:
            if not left:
                raise self._refusal(f"{len(self.proofs)} norms are too few for this graph")
            proof = left.pop()
            if not proof.value >= 0.0 or not piece.proves(self.norm, proof):
                i = len(self.proofs) - len(left) - 1
                raise self._refusal(f"{proof.value!r} is not proved to bound norm {i}")
            return proof.value

        proved = Rule(graph, self.norm, next_norm).bound(self.outputs)
        if left:
            raise self._refusal(f"{len(left)} of {len(self.proofs)} norms belong to no layer")
        if not proved <= self.value:
            raise self._refusal(f"the norms combine to {proved!r}, {self.value!r} is claimed")
        return True

    def stored(self) -> Stored:
        """For :func:`certbound.certificate.to_bytes`."""
        fields = {
            "input_shape": list(self.input_shape), "norm": self.norm, "outputs": plain_outputs(self.outputs),
            "proofs": [[p.value, p.method, list(p.points), list(p.shifts)] for p in self.proofs],
            "subject": self.subject, "value": self.value,
        }  # fmt: skip
        return Stored(self.kind, fields, {})

    @classmethod
    def restored(cls, stored: Stored) -> GraphProductCertificate:
        """From a file; CertificateError names the field that is wrong."""
        finish(stored, fields=("input_shape", "norm", "outputs", "proofs", "subject", "value"))
        shape = whole_numbers(stored, "input_shape")
        proofs: list[Proof] = []
        for entry in take(stored, "proofs", list):
            if not isinstance(entry, list) or len(cast("list[object]", entry)) != 4:
                raise CertificateError(f"{stored.kind}: a proof is [value, method, points, shifts]")
            parts = Stored(stored.kind, dict(zip(("value", "method", "points", "shifts"), entry, strict=True)))  # type: ignore[arg-type]
            method = take(parts, "method", str)
            if method not in _METHODS:
                raise CertificateError(f"{stored.kind}: the method {method[:80]!r}")
            points, shifts = whole_numbers(parts, "points"), whole_numbers(parts, "shifts")
            proofs.append(Proof(take(parts, "value", float), method, points, shifts))
        return cls(take(stored, "subject", str), take(stored, "norm", float), read_outputs(stored, "outputs"),
                   take(stored, "value", float), shape, tuple(proofs))  # fmt: skip

    def _refusal(self, reason: str) -> CertificateError:
        return CertificateError(f"{self.kind}: {reason}")


def whole_numbers(stored: Stored, name: str) -> tuple[int, ...]:
    """A list of integers >= 0, from a certificate's field."""
    values = cast("list[object]", take(stored, name, list))
    if not all(type(v) is int and v >= 0 for v in values):
        raise CertificateError(f"{stored.kind}: the field {name!r} is no list of integers >= 0")
    return tuple(cast("list[int]", values))


def check_outputs(outputs: object, n: int) -> Outputs:
    """``"all"``, an index, or a pair of two different ones, in range.

    >>> check_outputs(None, 3), check_outputs((0, 2), 3)
    ('all', (0, 2))
    """
    from certbound.lipschitz.sdp import parse_outputs  # it imports the solvers' modules

    return "all" if outputs == "all" else parse_outputs(outputs, n)


def check_tier(tier: object) -> None:
    """``"fast"`` or ``"tight"``; InputError for others.

    >>> check_tier("fast")
    """
    if tier not in ("fast", "tight"):
        raise InputError("tier", got=repr(tier), needed="'fast' or 'tight'", fix="pass tier='tight' for closer norms")


def graph_product(graph: Graph, norm: object = 2, outputs: object = "all", *, tier: str = "fast") -> Bound:
    """Upper bound of the Lipschitz constant of a graph from ``‖·‖_p`` to ``‖·‖_p``: rigorous.

    Parameters
    ----------
    graph : any :class:`~certbound.graph.Graph`.
    norm : 2 or ∞.
    outputs : ``"all"``, one output (an index of the flat output), or ``(j, y)`` for ``f_j − f_y``: their rows count if
        the graph ends in a linear layer.
    tier : of the convolutions' norms, ``"fast"`` or ``"tight"``: see
        :func:`certbound.norms.operator.operator_norm_upper`.

    Returns
    -------
    Bound with a :class:`GraphProductCertificate`; ∞ on overflow.

    Raises
    ------
    UnsupportedLayerError : a product of two values that both depend on the input, named with its module (no such net
        is globally Lipschitz; :func:`certbound.lipschitz.graph_local.lipschitz_local` bounds it on a ball).
    InputError : an unknown norm, outputs or tier. NumericalError : arithmetic that is not IEEE's.

    >>> from certbound.activations import Activation
    >>> from certbound.ops import Input
    >>> layer, relu = Node(Linear([[3.0]]), (0,)), Node(Pointwise(Activation("relu")), (1,))
    >>> block = Graph((Node(Input((1, 1))), layer, relu, Node(Add(), (0, 2))))  # x + relu(3x)
    >>> bound = graph_product(block)
    >>> round(bound.value, 9), bound.certificate.verify(block)
    (4.0, True)
    """
    check_arithmetic()
    p, which = parse_norm(norm), check_outputs(outputs, graph.n_outputs)
    check_tier(tier)
    proofs: list[Proof] = []

    def computed(piece: Piece) -> float:
        proofs.append(piece.prove(p, tier))
        return proofs[-1].value

    value = Rule(graph, p, computed).bound(which)
    return GraphProductCertificate(graph.digest, p, which, value, graph.input_shape, tuple(proofs)).bound


__all__ = [
    "GraphProductCertificate", "Plan", "Reader", "Rule", "check_outputs", "check_tier", "graph_product", "plus",
    "refusal", "times",
]  # fmt: skip
