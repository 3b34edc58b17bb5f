"""``lipschitz_bracket``: the Lipschitz constant between two certified ends, by branch and bound over ReLU patterns.

The upper end is the largest LipSDP bound over the leaves of a tree that fixes one neuron after the other, off or on
(:mod:`certbound.lipschitz.tree_certificate`); the leaf with the largest bound is split next. A leaf whose bound is not
above the lower end is left alone; one whose cell no input realises is dropped, with exact evidence. The lower end is a
Jacobian norm at a smooth point, sampled, or found in a cell.

What to split: the dual of the node's SDP, rounded and improved by flips, is a pattern of large norm. Where the node's
bound is far above that norm, the neuron is split that the dual has decided least. Else, if an input realises the
pattern, it raises the lower end; if not, some of its signs contradict each other, and one of these neurons is split,
that whose flip costs most: on one side the bound falls, on the other the contradiction comes nearer. (Of all
contradictions one of neurons whose flips cost much: with that, 4-32-1 closes in 50 splits, else not in 1,000.)

Source: Fazlyab et al., NeurIPS 2019; Land & Doig 1960; certbound theory, sections 5 and 8.
"""

from __future__ import annotations

import heapq
import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from certbound import text
from certbound.arrays import F64, I64
from certbound.bound import Bound, Claim, Result, vacuous_bound
from certbound.errors import CertboundError, InputError, NumericalError
from certbound.io.graph_to_network import dense_model
from certbound.lipschitz.barrier import Limits
from certbound.lipschitz.empty_cells import Chain
from certbound.lipschitz.node_sdp import NodeBound, best_pattern, free, members, node_bound, pattern_norms
from certbound.lipschitz.product import Outputs
from certbound.lipschitz.region_slopes import slopes_on
from certbound.lipschitz.sampled import SmoothPoint, lipschitz_sampled
from certbound.lipschitz.sdp import assuming, lipschitz_sdp, parse_outputs
from certbound.lipschitz.system import Slopes, System
from certbound.lipschitz.tree_certificate import (
    EMPTY,
    METHOD,
    PROVED,
    SOURCE,
    Neurons,
    Path,
    Tree,
    TreeCertificate,
    cell_is_empty,
)
from certbound.network import Ball, Network
from certbound.progress import steps_bar
from certbound.rounding import check_arithmetic
from certbound.types import GLOBAL, SCHEMA_VERSION, Quantity, Sense, Status, parse_norm

MAX_NEURONS = 512
"""Beyond it a node costs seconds, and nothing is split."""
_POINT_INPUTS = 1024  # up to here a linear programme looks for an input of a pattern
_CELL_INPUTS = 128  # up to here a contradiction is checked in exact integers in a fraction of a second
_INSIDE = 1e-9  # distance to every boundary that an inner point of a cell must have
_DECIDED = 0.25  # part of a node's gap that is between bound and pattern, below which contradictions are split
_LOOSE = 0.1  # tolerance of a node's SDP, at most: what is proved is much nearer to the optimum
_AIR = 2.0**-30  # how much the pre-activation bounds are widened: other machines round otherwise
_GROWTH = 1.0 + 1e-9  # by which a point must raise the lower end


@dataclass(frozen=True)
class Bracket:
    """``lower.value <= Lipschitz constant <= upper.value``, both with certificates where they say anything.

    ``stats``: how the search ended, counts, the SDP bound before any split, and the largest norm of a pattern that was
    found (heuristic: no input need realise it).
    """

    lower: Bound
    upper: Bound
    status: Status
    seconds: float = 0.0
    stats: tuple[tuple[str, float | str], ...] = field(default=())

    @property
    def gap(self) -> float:
        """``upper/lower − 1``; ∞ where the lower end says nothing, 0 for a constant of 0.

        >>> lipschitz_bracket([[[1.0], [-1.0]], [[1.0, 1.0]]]).gap < 1e-3
        True
        """
        if self.upper.value == 0.0:
            return 0.0
        return self.upper.value / self.lower.value - 1.0 if self.lower.value > 0.0 else math.inf

    def __str__(self) -> str:
        rows = [
            ("Lipschitz constant", f"{text.at_least(self.lower.value)}  ({self.lower.rigor})"),
            ("", f"{text.at_most(self.upper.value)}  ({self.upper.rigor})"),
            ("gap", text.number(self.gap)),
            ("claim", str(self.upper.claim)),
            ("lower end", self.lower.method),
            ("upper end", self.upper.method),
            ("source", self.upper.source),
            ("status", f"{self.status}: {self.status.sentence}"),
            ("seconds", f"{self.seconds:.3g}"),
        ]
        rows += [(k, text.number(v) if isinstance(v, float) else str(v)) for k, v in self.stats]
        return text.table(rows)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with ``schema_version``."""
        return {
            "schema_version": SCHEMA_VERSION,
            "lower": self.lower.to_dict(),
            "upper": self.upper.to_dict(),
            "gap": text.json_number(self.gap),
            "status": self.status.name,
            "status_sentence": self.status.sentence,
            "seconds": self.seconds,
            "stats": {k: v if isinstance(v, str) else text.json_number(v) for k, v in self.stats},
        }


# -- cells --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Conditions:
    """``A x + c > 0``, row by row, with rows of length 1; ``neurons``: whose signs they are."""

    A: F64
    c: F64
    neurons: npt.NDArray[np.int64]

    @classmethod
    def of(cls, chain: Chain, neurons: Neurons, path: Path, layers: int | None = None) -> _Conditions:
        """The signs of the path, as far as they are affine in the input; of the first layers only."""
        with np.errstate(over="ignore", invalid="ignore"):
            forms = chain.forms(neurons.slopes[:layers])
        A = np.concatenate([np.zeros((0, chain.n_inputs)), *(f[0] for f in forms)])
        c = np.concatenate([np.zeros(0), *(f[1] for f in forms)])
        known = np.concatenate([np.zeros(0, dtype=np.bool_), *(f[2] for f in forms)])
        index = np.array([n for n, _ in path], dtype=np.int64)
        sign = np.array([1.0 if on else -1.0 for _, on in path])
        keep = index < len(known)
        keep[keep] = known[index[keep]]
        index, sign = index[keep], sign[keep]
        with np.errstate(over="ignore", invalid="ignore"):
            A, c = sign[:, None] * A[index], sign * c[index]
            size = np.linalg.norm(A, axis=1)
        fine = np.isfinite(size) & np.isfinite(c)  # a hint, like all of this: what overflows is left out
        A, c, size, index = A[fine], c[fine], size[fine], index[fine]
        size = np.where(size > 0.0, size, 1.0)
        return cls(A / size[:, None], c / size, index)

    def inside(self, x: F64) -> bool:
        """Whether the point satisfies them with room to spare (floating point)."""
        return bool(np.all(self.A @ x + self.c > _INSIDE))

    def point_or_contradiction(self) -> tuple[F64 | None, tuple[int, ...]]:
        """An inner point, or neurons whose signs contradict each other, or neither (floating point)."""
        from scipy.optimize import linprog

        m, n = self.A.shape
        if m == 0:
            return np.zeros(n), ()
        # the largest margin, at most 1
        answer = linprog(
            np.append(np.zeros(n), -1.0),
            A_ub=np.hstack([-self.A, np.ones((m, 1))]),
            b_ub=self.c,
            bounds=[(None, None)] * n + [(None, 1.0)],
            method="highs",
        )
        if answer.status != 0:
            return None, ()
        if answer.x[-1] > _INSIDE:
            return np.asarray(answer.x[:-1], dtype=np.float64), ()
        return None, self._used(-np.asarray(answer.ineqlin.marginals))

    def _used(self, weights: F64) -> tuple[int, ...]:
        return tuple(int(i) for i in self.neurons[weights > 1e-9 * float(np.max(weights, initial=0.0))])

    def cheapest_contradiction(self, cost: F64) -> tuple[int, ...]:
        """The neurons of weights ``y >= 0``, ``Σy = 1``, ``yᵀA = 0``, ``y·c <= 0`` with least ``cost·y``, or none."""
        from scipy.optimize import linprog

        m, n = self.A.shape
        answer = linprog(
            cost,
            A_ub=self.c[None],
            b_ub=[0.0],
            A_eq=np.vstack([self.A.T, np.ones((1, m))]),
            b_eq=np.append(np.zeros(n), 1.0),
            bounds=(0.0, None),
            method="highs",
        )
        return self._used(np.asarray(answer.x)) if answer.status == 0 else ()


# -- the search ---------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Node:
    """A part of the patterns. ``children``: nodes, or the evidence of an empty cell; off first.

    ``value``: no larger than that of the node above. ``bound``: of the node above where nothing was proved of this one
    (``proved`` False): it holds for all of its parts, but its proof is no proof for this one alone.
    ``decided``: the bound is near the norm of a pattern; so it stays below the node.
    """

    neurons: Neurons
    path: Path
    bound: NodeBound
    value: float
    proved: bool = True
    x: F64 | None = None
    decided: bool = False
    split: int = PROVED
    children: tuple[_Node | tuple[int, ...], ...] = ()


@dataclass(eq=False)
class _Block:
    """The tree of one block of outputs."""

    outputs: Outputs
    system: System
    index: I64  # of each row of the system its neuron
    root: _Node


@dataclass(eq=False)
class _Search:
    """Best first, over the trees of all blocks at once."""

    network: Network
    norm: float
    outputs: Outputs
    ball: Ball | None
    tolerance: float
    deadline: float
    max_nodes: int | None
    lower: Bound
    blocks: list[_Block] = field(default_factory=list["_Block"])
    heap: list[tuple[float, int, _Block, _Node]] = field(default_factory=list["tuple[float, int, _Block, _Node]"])
    nodes: int = 0
    empty: int = 0
    pattern: float = 0.0
    ended: str = ""

    def __post_init__(self) -> None:
        self.count = itertools.count()
        chain = Chain.of(self.network)
        self.chain = chain if chain is not None and chain.n_inputs <= _POINT_INPUTS else None
        self.drops = self.chain is not None and self.chain.n_inputs <= _CELL_INPUTS

    @property
    def left(self) -> float:
        return self.deadline - time.perf_counter()

    @property
    def upper(self) -> float:
        """Of everything that is open or was left alone."""
        return -self.heap[0][0] if self.heap else 0.0

    def start(self, neurons: Neurons) -> bool:
        """The roots; False if one could not be proved."""
        several = self.outputs == "all" and math.isinf(self.norm)
        outputs: list[Outputs] = list(range(self.network.n_outputs)) if several else [self.outputs]
        for block in outputs:
            # a root is near to its optimum, whatever the time: it is the bound where nothing can be split
            limits = Limits(min(1e-4, self.tolerance), max(self.left, 0.05))
            bound = node_bound(self.network, neurons, block, self.norm, None, limits)
            if bound is None:
                return False
            root = _Node(neurons, (), bound, bound.value)
            system = System.of(self.network, block, neurons.slopes)
            tree = _Block(block, system, members(self.network, neurons, system), root)
            self.blocks.append(tree)
            self._push(tree, root)
        return True

    def run(self, show: Callable[[int, float], None] | None) -> None:
        """Split until the gap is closed, or a limit comes first."""
        while self.heap:
            if self.upper <= self.lower.value * (1.0 + self.tolerance):
                self.ended = "gap closed"
            elif self.left <= 0.0:
                self.ended = "time limit"
            elif self.max_nodes is not None and self.nodes >= self.max_nodes:
                self.ended = "node limit"
            if self.ended:
                return
            _, _, block, node = self.heap[0]
            neuron, reason = self._choose(block, node)
            if neuron is None:
                # the lower end may have grown, and closed the gap
                self.ended = "gap closed" if self.upper <= self.lower.value * (1.0 + self.tolerance) else reason
                return
            self._expand(block, node, neuron)
            heapq.heappop(self.heap)
            for child in node.children:
                if isinstance(child, _Node):
                    self._push(block, child)
            if show is not None:
                show(self.nodes, self.upper / self.lower.value - 1.0 if self.lower.value > 0.0 else math.inf)
        self.ended = "gap closed"

    def _push(self, block: _Block, node: _Node) -> None:
        heapq.heappush(self.heap, (-node.value, next(self.count), block, node))

    def _expand(self, block: _Block, node: _Node, neuron: int) -> None:
        """Split a node; a child that could not be proved keeps the node's bound."""
        children: list[_Node | tuple[int, ...]] = []
        for on, half in zip((False, True), node.neurons.split(neuron), strict=True):
            path = (*node.path, (neuron, on))
            x: F64 | None = node.x
            if self.chain is not None:
                conditions = _Conditions.of(self.chain, half, path)
                if x is None or not conditions.inside(x):
                    x, against = conditions.point_or_contradiction()
                    if against and self.drops and cell_is_empty(self.chain, half, path, against):
                        self.empty += 1
                        children.append(against)
                        continue
                    if x is not None:
                        self.offer(x)
            target = self.lower.value * (1.0 + 0.5 * self.tolerance)
            excess = node.value / target - 1.0 if target > 0.0 else math.inf
            limits = Limits(max(0.25 * self.tolerance, min(_LOOSE, 0.5 * excess)), max(self.left, 0.0), below=target)
            bound = node_bound(self.network, half, block.outputs, self.norm, node.bound, limits)
            value = node.value if bound is None else min(bound.value, node.value)
            children.append(_Node(half, path, bound or node.bound, value, bound is not None, x, node.decided))
        self.nodes += 1
        node.split, node.children = neuron, tuple(children)

    def _choose(self, block: _Block, node: _Node) -> tuple[int | None, str]:
        """The neuron to split, or why there is none."""
        neurons = node.neurons
        unproved = "a node could not be proved"
        try:
            system = System.of(self.network, block.outputs, neurons.slopes)
            index = members(self.network, neurons, system)
        except NumericalError:
            return None, unproved
        splittable = neurons.open[index]
        if not splittable.any():
            return None, "pattern maximum reached" if node.proved else unproved
        on, whole, t = (x[index] for x in (node.bound.on, node.bound.whole, node.bound.t))
        known = (whole > 0.0) & (t > 0.0)  # so that NaN is not
        start = np.where(known & (2.0 * on > whole), 1.0, 0.0)
        pattern, value, losses = best_pattern(system, start, self.norm)
        self.pattern = max(self.pattern, value)
        room = node.value - self.lower.value
        node.decided = node.decided or node.value - value <= _DECIDED * room
        candidates: npt.NDArray[np.bool_] | None = None
        if self.chain is not None and splittable.all() and node.decided:
            # ψ = 1 is on, but for a leaky ReLU of slope above 1
            positive = (pattern > 0.5) == (neurons.off[index] < 1.0)
            candidates = self._against(node, index, positive, 1.0 / (0.05 + np.maximum(losses, 0.0) / room))
        if not self.drops:
            candidates = None
            if node.proved and value * (1.0 + self.tolerance) >= node.value:
                return None, "pattern maximum reached"
        if candidates is not None and bool(np.any(candidates & splittable)):
            score = np.where(candidates & splittable, losses, -math.inf)
        else:
            mixed = np.where(known, np.minimum(on, whole - on) * t, 0.0)
            score = np.where(splittable, mixed + 1e-12 * np.maximum(losses, 0.0), -math.inf)
        return int(index[int(np.argmax(score))]), ""

    def _against(
        self, node: _Node, index: npt.NDArray[np.int64], positive: npt.NDArray[np.bool_], cost: F64
    ) -> npt.NDArray[np.bool_] | None:
        """Open neurons among those whose signs keep the pattern from being realised; None if an input realises it.

        ``cost``: of each open neuron's part in the contradiction.
        """
        assert self.chain is not None
        neurons, path = node.neurons, list(node.path)
        for n, on in zip(index.tolist(), positive.tolist(), strict=True):
            neurons = neurons.fixed(n, on=on)
            path.append((n, on))
        costs = dict(zip(index.tolist(), cost.tolist(), strict=True))
        layer_of = np.array([neurons.place(n)[0] for n in index.tolist()])
        for layers in range(1, len(neurons.widths) + 1):
            conditions = _Conditions.of(self.chain, neurons, tuple(path), layers)
            x, against = conditions.point_or_contradiction()
            if against:
                deepest = max(neurons.place(n)[0] for n in against)
                if int(layer_of[0]) < deepest:  # what they read is not affine before the layers below are fixed
                    return layer_of < deepest
                better = conditions.cheapest_contradiction(np.array([costs.get(n, 0.0) for n in conditions.neurons]))
                return np.isin(index, better if any(n in costs for n in better) else against)
            if x is None:
                return None
            if layers == len(neurons.widths):
                self.offer(x)
        return None

    def offer(self, x: F64) -> None:
        """Raise the lower end if the Jacobian at the point is larger."""
        if self.chain is None or self.ball is not None or not self.network.is_relu_chain:
            return
        with np.errstate(over="ignore", invalid="ignore"):
            pattern = self.chain.pattern(x)
        found = max(float(pattern_norms(b.system, pattern[None, b.index], self.norm)[0]) for b in self.blocks)
        if not found > self.lower.value * _GROWTH:
            return
        point = tuple(Fraction(float(v)) for v in x)
        try:
            witness = SmoothPoint.proving(self.network, point, self.norm, self.outputs, found)
            if witness.value > self.lower.value and witness.verify(self.network):
                self.lower = replace(witness.bound, method="Jacobian norm at a point of a cell")
        except (CertboundError, np.linalg.LinAlgError):  # a kink, within rounding
            return

    def certificate(self, slopes: tuple[Slopes, ...]) -> TreeCertificate:
        trees = tuple(_tree(b) for b in self.blocks)
        value = max(t.value for t in trees)
        return TreeCertificate(self.network.digest, self.norm, self.outputs, value, trees, self.ball, slopes)


def _tree(block: _Block) -> Tree:
    """The tree in preorder; a node whose children prove no more than itself is a leaf."""
    best: dict[int, float] = {}
    order: list[_Node] = [block.root]
    for node in order:
        order += [c for c in node.children if isinstance(c, _Node)]
    for node in reversed(order):
        below = max((best[id(c)] for c in node.children if isinstance(c, _Node)), default=0.0)
        own = node.bound.value if node.proved else math.inf
        best[id(node)] = min(below, own) if node.children else own
    nodes: list[int] = []
    proofs = []
    empty: list[tuple[int, ...]] = []
    waiting: list[_Node | tuple[int, ...]] = [block.root]
    while waiting:
        node = waiting.pop()
        if isinstance(node, tuple):
            nodes.append(EMPTY)
            empty.append(node)
        elif not node.children or (node.proved and node.bound.value <= best[id(node)]):
            nodes.append(PROVED)
            proofs.append(node.bound.proof)
        else:
            nodes.append(node.split)
            waiting += reversed(node.children)
    return Tree(block.outputs, tuple(nodes), tuple(proofs), tuple(empty))


# -- the public function ------------------------------------------------------------------------------------


def _lower_end(
    network: Network, norm: float, outputs: Outputs, ball: Ball | None, time_limit: float, seed: int
) -> Bound:
    """A sampled Jacobian norm; nothing for networks that cannot be sampled."""
    quick = time_limit < 10.0
    try:
        return lipschitz_sampled(
            network, norm, outputs=None if outputs == "all" else outputs, region=ball,
            n_samples=200 if quick else 1000, ascent_steps=10 if quick else 30, seed=seed,
        ).bound  # fmt: skip
    except (CertboundError, np.linalg.LinAlgError):
        claim = Claim(Quantity.LIPSCHITZ, norm, norm, GLOBAL if ball is None else str(ball), outputs, network.digest)
        return vacuous_bound(claim, Sense.LOWER, method="nothing was sampled", source=SOURCE)


def lipschitz_bracket(
    network: object,
    norm: object = 2,
    *,
    outputs: object = None,
    region: object = None,
    tolerance: float = 1e-3,
    time_limit: float = 60.0,
    max_nodes: int | None = None,
    seed: int = 0,
    progress: bool = False,
    input_shape: tuple[int, ...] | None = None,
) -> Bracket:
    """Lower and upper end of the Lipschitz constant of a small network, both certified.

    Parameters
    ----------
    network : nn.Module, Network, Graph, or list of weight matrices (bias-free ReLU net), of up to 512 neurons. ReLU
        and leaky ReLU are split; other activations keep the interval of their slopes. Residual sums are read; their
        lower end is 0, since only chains of ReLUs are sampled.
    norm : 2 (ℓ2 → ℓ2) or ∞ (∞ → ∞: the largest over outputs).
    outputs : None, an output index, or a pair ``(j, y)`` for ``f_j − f_y``.
    region : None (all inputs), or a :class:`~certbound.Ball`: the constant of f on it.
    tolerance : relative gap at which the search ends.
    time_limit : seconds; what is reached by then is a valid bracket. max_nodes : splits at most.
    seed : of the samples. progress : show a bar.
    input_shape : of one sample, (C, H, W), for modules with convolutions: a small one becomes dense layers, see
        :func:`certbound.io.graph_to_network.dense_network`.

    The upper end is at most what :func:`lipschitz_sdp` gives, and often far above the lower one where many patterns are
    left: the search is exponential at worst. The stats say how it ended: ``gap closed``; ``time limit``, ``node
    limit``; ``pattern maximum reached``: the upper end is the largest norm over all activation patterns, whether an
    input realises it or not, and no splitting lowers it further (up to 128 inputs contradictory patterns are dropped).

    Raises
    ------
    InputError : unknown norm, outputs, region; limits that are none.

    Source: Fazlyab et al., NeurIPS 2019; certbound theory, sections 5 and 8.

    >>> hat = Network.from_weights([[[1.0], [1.0], [1.0]], [[1.0, -2.0, 1.0]]], [[0.0, -1.0, -2.0], None])
    >>> bracket = lipschitz_bracket(hat)  # slopes 0, 1, −1, 0; all patterns give 2
    >>> round(bracket.lower.value, 6), round(bracket.upper.value, 2), dict(bracket.stats)["ended"]
    (1.0, 1.0, 'gap closed')
    """
    begin = time.perf_counter()
    (net, assumes), p = dense_model(network, input_shape), parse_norm(norm)
    chosen = parse_outputs(outputs, net.n_outputs)
    if not tolerance > 0.0:
        raise InputError("tolerance", got=repr(tolerance), needed="a number > 0", fix="1e-3 is the default")
    if not time_limit > 0.0:
        raise InputError("time_limit", got=repr(time_limit), needed="seconds > 0", fix="60 is the default")
    if max_nodes is not None and (isinstance(max_nodes, bool) or not isinstance(max_nodes, int) or max_nodes < 0):
        raise InputError("max_nodes", got=repr(max_nodes), needed="None or an int >= 0", fix="None means no limit")
    plain: Any = None if chosen == "all" else chosen
    first = max(0.3 * time_limit, 0.05)
    relaxed = cast("Result", lipschitz_sdp(net, p, outputs=plain, region=region, time_limit=first))
    ball = region if isinstance(region, Ball) else None
    lower = _lower_end(net, p, chosen, ball, time_limit, seed)

    def bracket(upper: Bound, low: Bound, status: Status, *stats: tuple[str, float | str]) -> Bracket:
        every = (*stats, ("SDP bound", relaxed.value))
        return Bracket(assuming(low, assumes), assuming(upper, assumes), status, time.perf_counter() - begin, every)

    if relaxed.value == 0.0:
        return bracket(relaxed.bound, lower, Status.OK, ("ended", "gap closed"))
    try:
        check_arithmetic()
        slopes = None if ball is None else tuple(slopes_on(net, ball, air=_AIR))
    except NumericalError as error:
        return bracket(relaxed.bound, lower, relaxed.status, ("ended", str(error)))
    neurons = Neurons.of(net, slopes)
    if int(free(neurons).sum()) > MAX_NEURONS:
        return bracket(relaxed.bound, lower, Status.TOO_LARGE, ("ended", f"more than {MAX_NEURONS} neurons"))
    deadline = begin + time_limit
    search = _Search(net, p, chosen, ball, tolerance, deadline, max_nodes, lower)
    try:
        started = search.start(neurons)
    except NumericalError:
        started = False
    if not started:
        return bracket(relaxed.bound, lower, Status.FAILED, ("ended", "the root could not be proved"))
    with steps_bar(METHOD, enabled=progress) as show:
        search.run(show)
    certificate = search.certificate(slopes or ())
    upper = certificate.bound
    if relaxed.value < upper.value:
        upper = relaxed.bound
    status = Status.TIME_LIMIT if search.ended in ("time limit", "node limit") else Status.OK
    if search.ended == "a node could not be proved":
        status = Status.FAILED
    return bracket(
        upper, search.lower, status,
        ("ended", search.ended),
        ("neurons", float(free(neurons).sum())),
        ("splits", float(search.nodes)),
        ("empty cells", float(search.empty)),
        ("largest pattern found", search.pattern),
    )  # fmt: skip


__all__ = ["MAX_NEURONS", "Bracket", "lipschitz_bracket"]
