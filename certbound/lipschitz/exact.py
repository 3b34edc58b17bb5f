"""``lipschitz_exact``: the largest Jacobian norm over the activation patterns that some input realises.

``f`` is affine on each cell of its activation patterns, and the cells with non-empty interior cover R^n, so
``Lip_p(f) = max ‖W_{m+1} D_m W_m … D_1 W_1‖_p`` over the patterns ``D`` realised on a set with non-empty interior.
A pattern is given by strict signs of the pre-activations; one that does not depend on the input in the cell (its
composed row is 0) has no sign to choose.

The patterns are searched layer by layer and neuron by neuron, the most promising prefix first, a prefix dropped where

* no input realises it: with an inner point x of the cell before, the linear programme ``max r·x + c`` over that cell
  has no positive value. Weights are float64, hence rational: it is solved in integers (fraction-free simplex), so that
  no tolerance can drop a thin cell, and an inner point is one indeed;
* an upper bound of its norms cannot beat the best found (numerical, with a margin for rounding).

So there is an UPPER bound at every moment, the largest of what was found and what was not searched, and a LOWER one
with its point.

Source: Rademacher; Jordan & Dimakis, NeurIPS 2020 (exact constants of ReLU networks); certbound theory, section 8.
"""

from __future__ import annotations

import heapq
import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np

from certbound.arrays import F64
from certbound.bound import Bound, Claim, Result, vacuous_bound
from certbound.errors import InputError
from certbound.lipschitz.product import Outputs
from certbound.lipschitz.recursion import recursion_2
from certbound.lipschitz.sampled import (
    SmoothPoint,
    exact_jacobian,
    find_best_point,
    fraction_rows,
    head_fractions,
    norm_of_fractions,
    scaled_to,
)
from certbound.lipschitz.sdp import lipschitz_sdp, parse_outputs
from certbound.network import Network, as_network
from certbound.norms.dense import induced_norm
from certbound.types import Quantity, Rigor, Sense, Status, parse_norm

MAX_HIDDEN = 64
_METHOD = "all realised activation patterns"
_SOURCE = "piecewise linearity of ReLU networks; certbound theory, section 8"
_TIE = 1 + 1e-12  # a prefix whose bound is the best norm up to rounding is not searched; the bound counts
_TINY = 2.0**-900  # what is below is never compared in float64

Row = list[int]


# -- the linear programme, in integers ----------------------------------------------------------------------


def positive_point(A: Sequence[Row], s: Sequence[int], a: Row, g: int) -> tuple[Row, int] | None:
    """A rational y with ``g + a·y > 0`` and ``s + A y >= 0``, as integers over a denominator; None if there is none.

    Exact, given ``s > 0`` and ``g <= 0``: primal simplex from y = 0 on a dictionary of integers over one common
    denominator (every division below is exact), Bland's rule. It stops as soon as the objective is positive.

    Parameters
    ----------
    A : rows of length n. s : their slacks at y = 0. a : the objective's row. g : its value at y = 0.

    >>> positive_point([[-1]], [3], [1], -2)  # y <= 3, want y > 2
    ([3], 1)
    >>> positive_point([[-1]], [2], [1], -2) is None  # y <= 2: never above 2
    True
    """
    n = len(a)
    # x_B = (rows[:, 0] + rows[:, 1:] · x_N)/D; variables: y_j is −1−j, slack i is i
    rows = [[int(si), *map(int, row)] for si, row in zip(s, A, strict=True)]
    target = [int(g), *map(int, a)]
    basis, outside, flipped = list(range(len(rows))), [-1 - j for j in range(n)], [1] * n
    D = 1
    while target[0] <= 0:
        column = next((j for j in range(1, n + 1) if outside[j - 1] < 0 and target[j]), None)
        if column is None:
            rising = [j for j in range(1, n + 1) if target[j] > 0]
            if not rising:
                return None  # no variable can raise it: the optimum, and it is not positive
            column = min(rising, key=lambda j: outside[j - 1])
        elif target[column] < 0:  # a free variable: replaced with its negative
            flipped[-1 - outside[column - 1]] *= -1
            for row in (target, *rows):
                row[column] = -row[column]
        leaving: int | None = None
        for i, row in enumerate(rows):
            if basis[i] < 0 or row[column] >= 0:
                continue
            if leaving is None:
                leaving = i
                continue
            best = rows[leaving]
            here, there = row[0] * -best[column], best[0] * -row[column]
            if here < there or (here == there and basis[i] < basis[leaving]):
                leaving = i
        if leaving is None:  # a ray: as far as makes the objective positive
            step = -target[0] // target[column] + 1
            for row in rows:
                row[0] += step * row[column]
            entering = outside[column - 1]
            ends = {b: r[0] for b, r in zip(basis, rows, strict=True)} | {entering: step * D}
            return [flipped[j] * ends.get(-1 - j, 0) for j in range(n)], D
        pivot = rows[leaving]
        p = pivot[column]  # < 0
        for row in (target, *rows):
            if row is pivot:
                continue
            factor = row[column]
            if factor:
                # the new denominator is −p > 0, hence the signs
                row[:] = [(factor * q - v * p) // D for v, q in zip(row, pivot, strict=True)]
                row[column] = -factor
            elif D != -p:
                row[:] = [v * -p // D for v in row]
        entered = [*pivot]
        entered[column] = -D
        rows[leaving] = entered
        basis[leaving], outside[column - 1] = outside[column - 1], basis[leaving]
        D = -p
    ends = {b: r[0] for b, r in zip(basis, rows, strict=True)}
    return [flipped[j] * ends.get(-1 - j, 0) for j in range(n)], D


# -- the network, in integers -------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Integers:
    """``z_l = N_l h_{l−1} + B_l``, ``h = max(z, 0)``, in integers: the network but for powers of two.

    Each neuron is scaled by a power of two so that the largest entry of its row, times ``2^-shifts[l]``, is in
    [1/2, 1): what a path carries moves to the head. The input is ``y = 2^input_shift x``. The Jacobian is
    ``2^exponent · H D N_m … N_1 · 2^-(Σ shifts)``. ``columns``: of N_1, a basis of its column space: inputs with 0
    elsewhere realise every pattern.
    """

    weights: tuple[list[Row], ...]
    biases: tuple[Row, ...]
    head: list[Row]
    shifts: tuple[int, ...]  # one a weight, then the head's
    input_shift: int
    exponent: int
    columns: tuple[int, ...]
    n_inputs: int

    @classmethod
    def of(cls, network: Network, outputs: Outputs) -> _Integers:
        chain = network.chain
        n = network.n_inputs
        column = [0] * n  # h_j is 2^column[j] times the scaled one
        weights, shifts, scales = [], [], []
        for w, b in zip(chain.encoder, chain.biases[:-1], strict=True):
            n_in = w.shape[1]
            rows = [_shifted(row, column) for row in fraction_rows(w)]
            tops = [max((_top(v) for v in row if v), default=None) for row in rows]
            powers = [_top(Fraction(float(c))) if t is None and c else t or 0 for t, c in zip(tops, b, strict=True)]
            scaled = [_shifted(row, [-k] * n_in) for row, k in zip(rows, powers, strict=True)]
            integers, shift = _to_integers(scaled)
            weights.append(integers)
            shifts.append(shift)
            scales.append([sum(shifts) - k for k in powers])  # z is multiplied with 2^scale
            column = powers
        rows = [_shifted(row, column) for row in head_fractions(network, outputs)]
        exponent = max((_top(v) for row in rows for v in row if v), default=0)
        head, shift = _to_integers([_shifted(row, [-exponent] * len(row)) for row in rows])
        exact = [
            [Fraction(float(c)) * Fraction(2) ** s for c, s in zip(b, scale, strict=True)]
            for b, scale in zip(chain.biases[:-1], scales, strict=True)
        ]
        input_shift = max((-_low(v) for row in exact for v in row if v), default=0)
        biases = tuple([int(v * Fraction(2) ** input_shift) for v in row] for row in exact)
        columns = _column_basis(weights[0]) if weights else ()
        return cls(tuple(weights), biases, head, (*shifts, shift), input_shift, exponent, columns, n)


def _top(v: Fraction) -> int:
    """e with ``2^(e−1) <= |v| < 2^e``, v a multiple of a power of two."""
    return abs(v.numerator).bit_length() - v.denominator.bit_length() + 1


def _low(v: Fraction) -> int:
    """Exponent of the lowest bit of v."""
    m = abs(v.numerator)
    return (m & -m).bit_length() - v.denominator.bit_length()


def _shifted(row: Sequence[Fraction], exponents: Sequence[int]) -> list[Fraction]:
    return [v * Fraction(2) ** e for v, e in zip(row, exponents, strict=True)]


def _to_integers(rows: list[list[Fraction]]) -> tuple[list[Row], int]:
    """``(N, t)`` with ``rows = N 2^-t``."""
    t = max((-_low(v) for row in rows for v in row if v), default=0)
    return [[int(v * Fraction(2) ** t) for v in row] for row in rows], t


def _column_basis(N: list[Row]) -> tuple[int, ...]:
    """Indices of columns that span the column space, by fraction-free elimination.

    >>> _column_basis([[0, 2, 4, 1], [0, 1, 2, 0]])
    (1, 3)
    """
    rows, chosen, D = [list(r) for r in N], [], 1
    for j in range(len(N[0])):
        r = len(chosen)
        if r == len(rows):
            break
        at = next((i for i in range(r, len(rows)) if rows[i][j]), None)
        if at is None:
            continue
        rows[r], rows[at] = rows[at], rows[r]
        p = rows[r][j]
        for i in range(r + 1, len(rows)):
            f = rows[i][j]
            rows[i] = [(v * p - f * q) // D for v, q in zip(rows[i], rows[r], strict=True)]
        chosen.append(j)
        D = p
    return tuple(chosen)


def _times(left: Sequence[Row], mask: Sequence[int] | None, right: Sequence[Row]) -> list[Row]:
    """``left · diag(mask) · right``."""
    n = len(right[0])
    out: list[Row] = []
    for row in left:
        used = [(c, right[k]) for k, c in enumerate(row) if c and (mask is None or mask[k])]
        out.append([sum(c * r[j] for c, r in used) for j in range(n)])
    return out


def _dot(a: Sequence[int], b: Sequence[int]) -> int:
    return sum(u * v for u, v in zip(a, b, strict=True) if u and v)


def _floats(rows: Sequence[Row], shift: int) -> F64:
    """``rows · 2^-shift`` in float64, cut off (relatively 2^-63) towards −∞."""

    def one(v: int) -> float:
        d = max(0, v.bit_length() - 64)
        return scaled_to(float(v >> d), d - shift, Sense.LOWER) if v > 0 else -one(-v) if v else 0.0

    return np.array([[one(v) for v in row] for row in rows], dtype=np.float64).reshape(len(rows), -1)


def _norm_of(J: list[Row], norm: float, shift: int) -> float:
    """``‖J 2^-shift‖_p``: row sums rounded up (p = ∞), by SVD (p = 2); never 0 for a J that is not."""
    if math.isinf(norm):
        total = max(sum(map(abs, row)) for row in J)
        d = max(0, total.bit_length() - 53)
        return scaled_to(float(-(-total >> d)), d - shift, Sense.UPPER)
    top = max((abs(v).bit_length() for row in J for v in row), default=0)
    return scaled_to(induced_norm(_floats(J, top), norm), top - shift, Sense.UPPER)


# -- the search ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Cell:
    """Strict inequalities ``a·y + b > 0`` on the basis columns, and a point ``y = X/W`` that satisfies them."""

    A: tuple[Row, ...]
    b: Row
    X: Row
    W: int

    def beyond(self, row: Row, offset: int) -> _Cell | None:
        """The part where ``row·y + offset > 0``: an open set, so empty (None) or with non-empty interior."""
        A, b = (*self.A, row), [*self.b, offset]
        g = _dot(row, self.X) + offset * self.W
        if g > 0:
            return _Cell(A, b, self.X, self.W)
        slacks = [_dot(a, self.X) + c * self.W for a, c in zip(self.A, self.b, strict=True)]
        found = positive_point(self.A, slacks, row, g)
        if found is None:
            return None
        y, D = found
        # half-way between where the segment from X to X + y/D crosses the new boundary and its end
        end = g * D + _dot(row, y)
        numerator, denominator = end - 2 * g * D, 2 * (end - g * D) * D
        X = [x * denominator + numerator * v for x, v in zip(self.X, y, strict=True)]
        return _Cell(A, b, *_short(A, b, X, self.W * denominator))


def _short(A: Sequence[Row], b: Row, X: Row, W: int) -> tuple[Row, int]:
    """A point of few bits near X/W that satisfies the inequalities too, or X/W itself."""
    top = max((abs(x).bit_length() for x in X), default=0)
    if top:
        for bits in (12, 30, 60, 120):
            s = bits - (top - W.bit_length())
            near = [((x << s) // W if s >= 0 else (x // W >> -s) << -s) for x in X]
            weight = 1 << max(s, 0)
            if all(_dot(a, near) + c * weight > 0 for a, c in zip(A, b, strict=True)):
                return near, weight
    common = math.gcd(W, *X)
    return [x // common for x in X], W // common


@dataclass(frozen=True, eq=False)
class _Stage:
    """One hidden layer with the patterns before it fixed: ``z = Z y + c``; ``R = Z 2^-shift`` in float64."""

    layer: int
    masks: tuple[tuple[int, ...], ...]
    Z: list[Row]
    c: Row
    R: F64
    order: tuple[int, ...]  # the neurons that have a sign to choose, the most influential first


@dataclass(frozen=True, eq=False)
class _Node:
    """A stage with its first ``len(…)`` signs chosen: ``on[i]`` is 1, 0, or −1 for not yet."""

    stage: _Stage
    depth: int
    on: tuple[int, ...]
    cell: _Cell


@dataclass(eq=False)
class _Search:
    """Best-first search; ``best`` and every bound are in units of ``2^exponent``."""

    net: _Integers
    norm: float
    best: float = -1.0
    point: tuple[Fraction, ...] | None = None
    dropped: float = 0.0  # largest bound of a prefix that was not searched
    regions: int = 0
    prefixes: int = 0
    programmes: int = 0
    heap: list[tuple[float, int, int, _Node]] = field(default_factory=list)

    def __post_init__(self) -> None:
        net = self.net
        self.count = itertools.count()
        self.totals = list(itertools.accumulate(net.shifts))
        layers = [_floats(w, t) for w, t in zip((*net.weights, net.head), net.shifts, strict=True)]
        self.head = layers[-1]
        # what a hidden layer's rows are multiplied with at most: entrywise, and in norm
        self.paths, self.tails = [np.abs(self.head)], [induced_norm(self.head, self.norm)]
        for i in range(len(layers) - 2, 0, -1):
            self.paths.insert(0, self.paths[0] @ np.abs(layers[i]))
            tail = self.tails[0] * induced_norm(layers[i], self.norm)
            if not math.isinf(self.norm):
                tail = min(tail, recursion_2(layers[i:-1], self.head))
            self.tails.insert(0, tail)

    def composed(self, row: Row, masks: Sequence[Sequence[int]]) -> Row:
        """``row · D_l N_l … D_1 N_1``."""
        J = [row]
        for w, mask in zip(reversed(self.net.weights[: len(masks)]), reversed(masks), strict=True):
            J = _times(J, mask, w)
        return J[0]

    def offer(self, masks: Sequence[Sequence[int]], point: tuple[Fraction, ...]) -> None:
        """A pattern that is realised at the point."""
        J = [self.composed(row, masks) for row in self.net.head]
        value = _norm_of(J, self.norm, self.totals[-1])
        if value > self.best:
            self.best, self.point = value, point

    def point_of(self, cell: _Cell) -> tuple[Fraction, ...]:
        x = [Fraction(0)] * self.net.n_inputs
        unit = Fraction(2) ** -self.net.input_shift / cell.W
        for j, v in zip(self.net.columns, cell.X, strict=True):
            x[j] = v * unit
        return tuple(x)

    def try_point(self, point: tuple[Fraction, ...]) -> None:
        """Offer the pattern at a point, if it has one."""
        unit = Fraction(2) ** self.net.input_shift
        y = [v * unit for v in point]
        W = math.lcm(*(v.denominator for v in y))
        h = [int(v * W) for v in y]
        masks: list[Row] = []
        for w, b in zip(self.net.weights, self.net.biases, strict=True):
            z = [_dot(row, h) + c * W for row, c in zip(w, b, strict=True)]
            if any(v == 0 and any(self.composed(row, masks)) for row, v in zip(w, z, strict=True)):
                return  # on a boundary; a 0 that does not depend on the input is none
            masks.append([int(v > 0) for v in z])
            h = [max(v, 0) for v in z]
        self.offer(masks, point)

    def enter(self, masks: tuple[tuple[int, ...], ...], Z: list[Row], c: Row, cell: _Cell) -> None:
        """A new layer; rows that are 0 have the sign of their offset (a 0 passes on 0 either way)."""
        layer = len(masks)
        R = _floats(Z, self.totals[layer])
        weight = self.paths[layer].max(axis=0, initial=0.0) * np.abs(R).sum(axis=1)
        free = [i for i in np.argsort(-weight, kind="stable").tolist() if any(Z[i])]
        on = tuple(-1 if any(row) else int(v > 0) for row, v in zip(Z, c, strict=True))
        self.go_on(_Node(_Stage(layer, masks, Z, c, R, tuple(free)), 0, on, cell))

    def go_on(self, node: _Node) -> None:
        """Put a realised prefix on the heap, start the next layer, or count a complete pattern."""
        stage = node.stage
        if node.depth < len(stage.order):
            bound = self.bound(node)
            if bound <= self.best * _TIE:
                self.dropped = max(self.dropped, bound)
            else:
                heapq.heappush(self.heap, (-bound, -stage.layer * 1000 - node.depth, next(self.count), node))
            return
        masks = (*stage.masks, node.on)
        if len(masks) == len(self.net.weights):
            self.regions += 1
            self.offer(masks, self.point_of(node.cell))
            return
        w, b = self.net.weights[len(masks)], self.net.biases[len(masks)]
        passed = [v if on else 0 for v, on in zip(stage.c, node.on, strict=True)]
        c = [_dot(row, passed) + e for row, e in zip(w, b, strict=True)]
        self.enter(masks, _times(w, node.on, stage.Z), c, node.cell)

    def bound(self, node: _Node) -> float:
        """Upper bound of the norms of all patterns that begin like this (numerical, with a margin for rounding)."""
        stage = node.stage
        R, layer = stage.R, stage.layer
        on, free = np.array(node.on) == 1, np.array(node.on) == -1
        some = on | free
        if not some.any():
            value = 0.0
        elif layer < len(self.net.weights) - 1:
            entries = self.paths[layer][:, some] @ np.abs(R[some])
            value = min(induced_norm(entries, self.norm), self.tails[layer] * induced_norm(R[some], self.norm))
        else:
            value = _last_layer_bound(self.head, R, on, free, self.norm)
        return value * (1 + 1e-13) + _TINY

    def run(self, max_patterns: int, deadline: float | None) -> Status:
        """Search until nothing open can beat the best, or a limit; afterwards ``self.heap`` holds what is open."""
        net = self.net
        paths = [[abs(v) for v in row] for row in net.head]
        for w in reversed(net.weights):
            paths = _times(paths, None, [[abs(v) for v in row] for row in w])
        if not net.weights:
            self.offer((), (Fraction(0),) * net.n_inputs)
            return Status.OK
        if not any(map(any, paths)):
            self.best = max(self.best, 0.0)  # constant, whatever the pattern
            return Status.OK
        empty = _Cell((), [], [0] * len(net.columns), 1)
        self.enter((), net.weights[0], net.biases[0], empty)
        while self.heap:
            if -self.heap[0][0] <= self.best * _TIE:
                self.dropped = max(self.dropped, -self.heap[0][0])
                self.heap.clear()
                break
            if self.prefixes >= max_patterns:
                return Status.TOO_LARGE
            if deadline is not None and time.perf_counter() > deadline:
                return Status.TIME_LIMIT
            node = heapq.heappop(self.heap)[3]
            self.prefixes += 1
            self.expand(node)
        return Status.OK

    def expand(self, node: _Node) -> None:
        """Both signs of the next neuron, each if an input realises it."""
        stage = node.stage
        i = stage.order[node.depth]
        row, offset = [stage.Z[i][j] for j in self.net.columns], stage.c[i]
        for on in (1, 0):
            choice = tuple(on if k == i else v for k, v in enumerate(node.on))
            bound = self.bound(_Node(stage, node.depth + 1, choice, node.cell))
            if bound <= self.best * _TIE:
                self.dropped = max(self.dropped, bound)
                continue
            cell = node.cell.beyond(row, offset) if on else node.cell.beyond([-v for v in row], -offset)
            self.programmes += 1
            if cell is None:
                continue
            if (cell.X, cell.W) != (node.cell.X, node.cell.W):
                self.try_point(self.point_of(cell))
            self.go_on(_Node(stage, node.depth + 1, choice, cell))

    @property
    def upper(self) -> float:
        """The largest of what was found and what was not searched."""
        return max(self.best, self.dropped, -self.heap[0][0] if self.heap else 0.0)


def _last_layer_bound(H: F64, R: F64, on: Any, free: Any, norm: float) -> float:
    """Upper bound of ``max_D ‖H_on R_on + H_free D R_free‖_p`` over 0/1 diagonals D.

    p = ∞: every entry picks its own D. p = 2: that, the norm of the entrywise bounds; the middle plus half the spread,
    ``‖H_on R_on + H_free R_free/2‖ + ‖H_free‖‖R_free‖/2``; and ``‖H‖‖R‖`` of all but what is off.
    """
    Hf, Rf = H[:, free], R[free]
    C = H[:, on] @ R[on]
    plus = np.maximum(Hf, 0) @ np.maximum(Rf, 0) + np.maximum(-Hf, 0) @ np.maximum(-Rf, 0)
    minus = np.maximum(Hf, 0) @ np.maximum(-Rf, 0) + np.maximum(-Hf, 0) @ np.maximum(Rf, 0)
    entries = np.maximum(C + plus, minus - C)
    rounding = 2.0**-48 * induced_norm(np.abs(H[:, on]) @ np.abs(R[on]) + plus + minus, norm)
    if math.isinf(norm):
        return induced_norm(entries, norm) + rounding
    middle = induced_norm(C + (plus - minus) / 2, norm) + _balanced_product(Hf, Rf) / 2
    every = _balanced_product(H[:, on | free], R[on | free])
    return min(induced_norm(entries, norm), middle, every) + rounding


def _balanced_product(H: F64, R: F64) -> float:
    """``‖H S‖_2 ‖S^-1 R‖_2``, S diagonal with equal column and row norms: at least ``‖H D R‖_2`` for |D| <= 1."""
    h, r = np.linalg.norm(H, axis=0), np.linalg.norm(R, axis=1)
    used = (h > 0) & (r > 0)
    if not used.any():
        return 0.0
    s = np.sqrt(r[used] / h[used])
    return induced_norm(H[:, used] * s, 2.0) * induced_norm(R[used] / s[:, None], 2.0)


# -- the public function ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ExactResult(Result):
    """The UPPER bound, with the LOWER one of the same claim and its point: ``lower.value <= constant <= value``.

    ``witness`` is None where nothing was searched.
    """

    lower: Bound | None = None
    witness: SmoothPoint | None = None

    @property
    def exact(self) -> bool:
        """Nothing was left open: both bounds are the constant, but for rounding."""
        return dict(self.stats).get("exact") == "yes"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with ``schema_version``."""
        return {
            **super().to_dict(),
            "lower": None if self.lower is None else self.lower.to_dict(),
            "witness": None if self.witness is None else self.witness.to_dict(),
        }


def _relaxed(net: Network, norm: float, outputs: Outputs) -> Bound:
    """The closed-form SDP bound, which any network has."""
    result = lipschitz_sdp(net, norm, outputs=None if outputs == "all" else outputs, method="closed-form")
    assert isinstance(result, Result)
    return result.bound


def lipschitz_exact(
    network: object,
    norm: object = 2,
    *,
    outputs: object = None,
    max_patterns: int = 2**14,
    time_limit: float | None = None,
) -> ExactResult:
    """The Lipschitz constant of a tiny ReLU network, as an UPPER bound that is attained (numerical).

    Parameters
    ----------
    network : nn.Module, Network, or list of weight matrices (bias-free ReLU net); a final ReLU counts.
    norm : 2 (ℓ2 → ℓ2) or ∞ (∞ → ∞: the largest over outputs).
    outputs : None, an output index, or a pair ``(j, y)`` for ``f_j − f_y``.
    max_patterns : prefixes of activation patterns to look at; about a millisecond each.
    time_limit : seconds.

    The constant is that on all inputs. Beyond a limit, the smaller of the bound reached by then and the closed-form SDP
    bound, with status TOO_LARGE or TIME_LIMIT and ``exact`` "no" (more than 64 hidden neurons: nothing is searched).

    Raises
    ------
    InputError : unknown norm, outputs; limits that are none.

    Source: Jordan & Dimakis, NeurIPS 2020; certbound theory, section 8.

    >>> hat = Network.from_weights([[[1.0], [1.0], [1.0]], [[1.0, -2.0, 1.0]]], [[0.0, -1.0, -2.0], None])
    >>> result = lipschitz_exact(hat)  # slopes 0, 1, −1, 0; all patterns give 2
    >>> round(result.value, 9), round(result.lower.value, 9), result.exact
    (1.0, 1.0, True)
    """
    start = time.perf_counter()
    net, p = as_network(network), parse_norm(norm)
    chosen = parse_outputs(outputs, net.n_outputs)
    if isinstance(max_patterns, bool) or not isinstance(max_patterns, int) or max_patterns < 1:
        raise InputError("max_patterns", got=repr(max_patterns), needed="an int >= 1", fix="2**14 takes seconds")
    if time_limit is not None and not time_limit > 0:
        raise InputError("time_limit", got=repr(time_limit), needed="seconds > 0", fix="None means no limit")
    claim = Claim(Quantity.LIPSCHITZ, p, p, outputs=chosen, subject=net.digest)
    opened = net.open_ended
    relaxed = _relaxed(opened, p, chosen)
    relaxed = replace(relaxed, claim=claim)
    hidden = sum(w.shape[0] for w in opened.chain.encoder)
    if hidden > MAX_HIDDEN:
        stats = (("exact", "no"), ("hidden neurons", float(hidden)), ("limit", float(MAX_HIDDEN)))
        return ExactResult(relaxed, Status.TOO_LARGE, seconds=time.perf_counter() - start, stats=stats)
    search = _Search(_Integers.of(opened, chosen), p)
    with np.errstate(all="ignore"):
        hint = find_best_point(net, p, chosen, n_samples=200, ascent_steps=10)
    if hint.smooth:
        search.try_point(tuple(Fraction(float(v)) for v in hint.x))
    status = search.run(max_patterns, None if time_limit is None else start + time_limit)
    exponent = search.net.exponent
    value = scaled_to(search.upper, exponent, Sense.UPPER)
    # below _TINY the bounds of prefixes are no more than that
    exact = status is Status.OK and (search.upper <= search.best * _TIE**2)
    bound = Bound(value, claim, Sense.UPPER, Rigor.NUMERICAL, _METHOD, _SOURCE)
    if not exact and relaxed.value < value:
        bound = relaxed
    lower, witness = _lower(net, p, chosen, search, claim)
    stats = (
        ("exact", "yes" if exact else "no"),
        ("lower", lower.value),
        ("hidden neurons", float(hidden)),
        ("prefixes", float(search.prefixes)),
        ("complete patterns", float(search.regions)),
        ("linear programmes", float(search.programmes)),
        ("undecided", float(len(search.heap))),
    )
    return ExactResult(bound, status, None, time.perf_counter() - start, stats, lower, witness)


def _lower(
    net: Network, norm: float, outputs: Outputs, search: _Search, claim: Claim
) -> tuple[Bound, SmoothPoint | None]:
    """The lower bound at the best pattern's point, evaluated anew in exact rationals."""
    if search.point is None:
        return vacuous_bound(claim, Sense.LOWER, method=_METHOD, source=_SOURCE), None
    J, pattern = exact_jacobian(net, search.point, outputs)
    value = norm_of_fractions(J, norm, Sense.LOWER)
    witness = SmoothPoint.proving(net, search.point, norm, outputs, value, pattern=pattern)
    bound = Bound(witness.value, claim, Sense.LOWER, Rigor.NUMERICAL, "Jacobian norm at an inner point", _SOURCE)
    return bound, witness
