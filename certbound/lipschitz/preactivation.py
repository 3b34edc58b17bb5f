"""Rigorous bounds of every pre-activation of a network over a ball: intervals (IBP) and linear bounds (CROWN).

CROWN: on ``[l, u]`` an activation lies between two lines, ``s x + b <= φ(x) <= s' x + b'``. A linear lower bound
``z >= A h + c`` in terms of some layer's output goes back through that layer: an affine one gives ``A W`` and
``c + A b``, an activation takes the lower line where ``A >= 0`` and the upper one where ``A < 0``, a residual block
adds what its two branches give. At the input ``A x >= A x_0 − r ‖A‖_{p*}``, row by row. Upper bounds are lower
bounds of −z.

Rounding: the slopes s are chosen, hence exact, and the intercepts b are rounded outward. Where A is rounded, entries
off by at most E, ``E |h|`` with the bound of |h| proved before is taken off c. What leaves the range of float64 gives
infinite ends.

Source: Zhang et al., NeurIPS 2018 (CROWN, arXiv:1811.00866); Gowal et al., 2018 (IBP, arXiv:1810.12715).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from certbound.activations import Activation
from certbound.arrays import F64, frozen
from certbound.errors import InputError, UnsupportedLayerError
from certbound.network import Affine, Ball, Flatten, Layer, Network, Normalise, ReLU, Residual, affine_layers
from certbound.rounding import TINY, U, check_arithmetic, gamma

Method = Literal["ibp", "crown"]
_RELU = Activation("relu")


@dataclass(frozen=True, eq=False)
class PreactivationBounds:
    """``lower[i] <= z_i <= upper[i]`` for the input z_i of the i-th activation layer (ReLU or Activation) on a ball.

    Order of execution, depth first; in a Residual the body's come first, then the shortcut's. Ends may be infinite.
    """

    lower: tuple[F64, ...]
    upper: tuple[F64, ...]


def preactivation_bounds(network: Network, ball: Ball, *, method: Method = "crown") -> PreactivationBounds:
    """Enclosures of every pre-activation for all x with ``‖x − center‖_p <= radius``, p = 2 or ∞: rigorous.

    In exact arithmetic of the stored numbers, ``(x − mean)/std`` of normalisations included. ``crown`` is intersected
    with ``ibp`` and never wider; ``ibp`` costs two products with a vector per layer, ``crown`` products of matrices
    back from every activation layer.

    Raises
    ------
    InputError : a centre that is no input of the network, an unknown method.

    >>> net = Network.from_weights([[[1.0, 1.0], [1.0, -1.0]], [[1.0, -1.0]]])  # ReLU after the first
    >>> bounds = preactivation_bounds(net, Ball([3.0, 1.0], 0.5, "inf"))
    >>> bounds.lower[0].round(9).tolist(), bounds.upper[0].round(9).tolist()
    ([3.0, 1.0], [5.0, 3.0])
    """
    check_arithmetic()
    if method not in ("ibp", "crown"):
        raise InputError("method", got=repr(method), needed="'ibp' or 'crown'", fix="crown is tighter, ibp cheaper")
    if ball.center.size != network.n_inputs:
        raise InputError(
            "ball",
            got=f"a centre of {ball.center.size} numbers",
            needed=f"{network.n_inputs}, as many as the network has inputs",
            fix="take one sample, without its batch axis",
        )
    center = ball.center.reshape(-1)
    box = _Box(_down(center - ball.radius), _up(center + ball.radius)) if ball.radius else _Box(center, center)
    walk = _Walk(center, ball.radius, ball.norm, None, [])
    walk.through(network.layers, box, [], network.input_shape)
    if method == "crown":
        walk = _Walk(center, ball.radius, ball.norm, walk.found, [])
        walk.through(network.layers, box, [], network.input_shape)
    return PreactivationBounds(tuple(frozen(b.lower) for b in walk.found), tuple(frozen(b.upper) for b in walk.found))


# ---------------------------------------------------------------- arithmetic


def _down(x: F64) -> F64:
    return np.nextafter(x, -math.inf)


def _up(x: F64) -> F64:
    return np.nextafter(x, math.inf)


def _largest(x: F64) -> float:
    return float(np.max(np.abs(x), initial=0.0))


def _lost(terms: int, *factors: F64) -> float:
    """Bound of what a sum of products loses by underflow; TINY counts subnormal numbers flushed to zero."""
    return 2.0 * terms * TINY * max(1.0, *(_largest(x) for x in factors))


def _above(A: F64, v: F64) -> F64:
    """Upper bound of ``|A| v``, v >= 0 (∞ where it overflows)."""
    n = A.shape[1]
    product = np.abs(A) @ v
    high = _up(_up(product * (1.0 + 2.0 * gamma(n + 4))) + _lost(n, A, v))
    return np.where(np.isnan(high), math.inf, high)


def _row_norms(A: F64, p: float) -> F64:
    """Upper bounds of the ℓp norms of the rows, p = 1 or 2."""
    n = A.shape[1]
    if p == 1:
        return _up(np.abs(A).sum(axis=1) * (1.0 + 2.0 * gamma(n + 4)))
    largest = np.max(np.abs(A), axis=1, initial=0.0)
    exponent = np.frexp(largest)[1]
    scaled = np.ldexp(A, -exponent[:, None])  # below 1: what underflows here is below n TINY in the sum of squares
    squares = np.einsum("ij,ij->i", scaled, scaled)
    norms = _up(np.ldexp(_up(np.sqrt(_up(squares * (1.0 + 2.0 * gamma(n + 4)) + n * TINY))), exponent))
    return np.where(largest == 0.0, 0.0, norms)


@dataclass(frozen=True, eq=False)
class _Box:
    """Intervals of the numbers that a layer gives."""

    lower: F64
    upper: F64

    @property
    def size(self) -> F64:
        """The largest absolute values."""
        return np.maximum(np.abs(self.lower), np.abs(self.upper))

    def intersect(self, other: _Box) -> _Box:
        """Both hold."""
        return _Box(np.maximum(self.lower, other.lower), np.minimum(self.upper, other.upper))

    def __add__(self, other: _Box) -> _Box:
        return _unknown(_down(self.lower + other.lower), _up(self.upper + other.upper))

    def through_affine(self, W: F64, bias: F64 | None) -> _Box:
        """Interval arithmetic by centre and radius."""
        n = W.shape[1]
        endless = np.flatnonzero(~(np.isfinite(self.lower) & np.isfinite(self.upper)))
        low, high = self.lower.copy(), self.upper.copy()
        low[endless] = high[endless] = 0.0
        center = 0.5 * low + 0.5 * high
        radius = np.maximum(_up(np.maximum(high - center, center - low)), 0.0)
        g = gamma(n + 4)
        spread = _above(W, _up(radius + _up(g * np.abs(center)))) + _lost(n, W, center)
        middle = W @ center
        if bias is not None:
            middle = middle + bias
            spread = spread + _up(g * np.abs(bias))
        spread = _up(spread * (1.0 + 8 * U))
        middle = np.where(np.isfinite(middle), middle, math.nan)  # a partial sum overflowed, perhaps not the sum
        box = _unknown(_down(middle - spread), _up(middle + spread))
        if len(endless):
            reached = np.any(W[:, endless] != 0.0, axis=1)
            box = _Box(np.where(reached, -math.inf, box.lower), np.where(reached, math.inf, box.upper))
        return box


def _unknown(lower: F64, upper: F64) -> _Box:
    """NaN, from ∞ − ∞ or 0 · ∞, means that nothing is known."""
    return _Box(np.where(np.isnan(lower), -math.inf, lower), np.where(np.isnan(upper), math.inf, upper))


# ---------------------------------------------------------------- linear lower bounds, backwards


@dataclass(frozen=True, eq=False)
class _Rows:
    """``(z, −z) >= A h + c``, h the output of the layers not yet gone through; A None: ``(I, −I)``.

    A row without a finite bound has A = 0 and c = −∞ (or NaN).
    """

    A: F64 | None
    c: F64

    @classmethod
    def start(cls, width: int) -> _Rows:
        """Of the output itself."""
        return cls(None, np.zeros(2 * width))

    def matrix(self) -> F64:
        """A, written out."""
        if self.A is not None:
            return self.A
        identity = np.eye(len(self.c) // 2)
        return np.concatenate([identity, -identity])

    def then(self, A: F64, constant: F64 | None, loss: F64 | None) -> _Rows:
        """With the next matrix; ``constant`` is added and ``loss >= 0`` taken off, outward."""
        c = self.c
        if loss is not None:
            c = _down(c - loss)
        if constant is not None:  # infinite: a partial sum overflowed, perhaps not the sum
            c = np.where(np.isfinite(constant), _down(c + constant), -math.inf)
        wild = np.flatnonzero(~np.isfinite(A).all(axis=1))
        if len(wild):
            A, c = A.copy(), c.copy()
            A[wild], c[wild] = 0.0, -math.inf
        return _Rows(A, c)


class _Node(Protocol):
    """A layer that bounds have gone through, with what going back needs."""

    def back(self, rows: _Rows) -> _Rows: ...


@dataclass(frozen=True, eq=False)
class _AffineNode:
    """``W h + b``, ``|h| <= size``."""

    weight: F64
    bias: F64 | None
    size: F64

    def back(self, rows: _Rows) -> _Rows:
        W, b = self.weight, self.bias
        if rows.A is None:
            return rows.then(np.concatenate([W, -W]), None if b is None else np.concatenate([b, -b]), None)
        A, n = rows.A, W.shape[0]
        # |fl(A W) − A W| <= γ |A||W| and |fl(A b) − A b| <= γ |A||b|
        reach = _above(W, self.size)
        if b is not None:
            reach = _up(reach + np.abs(b))
        underflow = _lost(n, A, W, np.zeros(1) if b is None else b) * (1.0 + _up(self.size.sum() * (1.0 + 1e-9)))
        loss = _up(_up(gamma(n + 4) * _above(A, reach)) + _up(underflow))
        loss = np.where(A.any(axis=1), loss, 0.0)  # a row of zeros stays one, however large h may be
        return rows.then(A @ W, None if b is None else A @ b, loss)


@dataclass(frozen=True, eq=False)
class _NormaliseNode:
    """``(h − mean)/std``, ``|h| <= size``."""

    mean: F64
    std: F64
    size: F64

    def back(self, rows: _Rows) -> _Rows:
        A, n = rows.matrix(), len(self.std)
        scaled = A / self.std
        shift = self.mean / self.std  # off by U of itself, and by 2^-1074
        loss = _above(scaled, 2.0 * U * self.size) + gamma(n + 6) * _above(A, np.abs(shift))
        loss = loss + _lost(n, A, shift) + 2.0**-1070 * _up((self.size.sum() + np.abs(A).sum(axis=1)) * (1.0 + 1e-9))
        return rows.then(scaled, -(A @ shift), _up(loss * (1.0 + 16 * U)))


@dataclass(frozen=True, eq=False)
class _ActivationNode:
    """An activation between ``low_slope x + low`` and ``high_slope x + high`` on the interval of its input."""

    low_slope: F64
    low: F64
    high_slope: F64
    high: F64
    size: F64

    def back(self, rows: _Rows) -> _Rows:
        A, n = rows.matrix(), len(self.low)
        positive = A >= 0.0
        sloped = np.where(positive, A * self.low_slope, A * self.high_slope)
        # slopes of 0 and ±1 round nothing, even where the input is unbounded
        exact = _plain(self.low_slope) & _plain(self.high_slope)
        size = np.where(exact, 0.0, self.size)
        endless_low, endless_high = ~np.isfinite(self.low), ~np.isfinite(self.high)
        low, high = np.where(endless_low, 0.0, self.low), np.where(endless_high, 0.0, self.high)
        up, down = np.where(positive, A, 0.0), np.where(positive, 0.0, A)
        constant = up @ low + down @ high
        reach = np.maximum(np.abs(low), np.abs(high))
        loss = gamma(2 * n + 6) * _above(A, reach) + _lost(2 * n, A, reach)
        loss = loss + _above(sloped, 2.0 * U * size) + 2.0**-1070 * _up(size.sum() * (1.0 + 1e-9))
        out = rows.then(sloped, constant, _up(loss * (1.0 + 16 * U)))
        if endless_low.any() or endless_high.any():
            hit = np.any(up[:, endless_low] != 0.0, axis=1) | np.any(down[:, endless_high] != 0.0, axis=1)
            out = _Rows(out.A, np.where(hit, -math.inf, out.c))
        return out


def _plain(slope: F64) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    return (slope == 0.0) | (np.abs(slope) == 1.0)


@dataclass(frozen=True, eq=False)
class _ResidualNode:
    """``body(h) + shortcut(h)``, ``|h| <= size``."""

    body: Sequence[_Node]
    shortcut: Sequence[_Node]
    size: F64

    def back(self, rows: _Rows) -> _Rows:
        one = _back(self.body, rows)
        other = _back(self.shortcut, _Rows(rows.A, np.zeros_like(rows.c)))
        A = one.matrix() + other.matrix()
        return one.then(A, other.c, _above(A, 2.0 * U * self.size))


def _back(nodes: Sequence[_Node], rows: _Rows) -> _Rows:
    for node in reversed(nodes):
        rows = node.back(rows)
    return rows


# ---------------------------------------------------------------- forwards


@dataclass(frozen=True, eq=False)
class _Walk:
    """One pass through the network; ``found`` collects the intervals. ``known``: those of IBP; None: find them."""

    center: F64
    radius: float
    norm: float
    known: list[_Box] | None
    found: list[_Box]

    def through(
        self, layers: Sequence[Layer], box: _Box, before: list[_Node], shape: tuple[int, ...] | None
    ) -> tuple[_Box, list[_Node]]:
        """The output's intervals, and the nodes of ``layers``; ``before``: all nodes from the input to here."""
        nodes: list[_Node] = []
        for layer in layers:
            node: _Node
            if isinstance(layer, Affine):
                node = _AffineNode(layer.weight, layer.bias, box.size)
                box, shape = _quiet_affine(box, layer), None
            elif isinstance(layer, Normalise):
                mean, std = layer.per_input(shape, len(box.lower))
                node = _NormaliseNode(mean, std, box.size)
                with np.errstate(over="ignore", under="ignore", invalid="ignore"):
                    low, high = _down(_down(box.lower - mean) / std), _up(_up(box.upper - mean) / std)
                    box = _unknown(low, high)
            elif isinstance(layer, Flatten):
                shape = None
                continue
            elif isinstance(layer, Residual):
                body_box, body = self.through(layer.body, box, [*before, *nodes], shape)
                other_box, shortcut = self.through(layer.shortcut, box, [*before, *nodes], shape)
                node = _ResidualNode(body, shortcut, box.size)
                shape = None if any(affine_layers((layer,))) else shape
                with np.errstate(over="ignore", invalid="ignore"):
                    box = body_box + other_box
            elif isinstance(layer, (ReLU, Activation)):  # pyright: ignore[reportUnnecessaryIsInstance]
                phi = _RELU if isinstance(layer, ReLU) else layer
                if self.known is not None:
                    box = box.intersect(self.known[len(self.found)])
                # without an activation behind it going back is exact: what an ℓ2 ball needs, and costs little
                if self.known is not None or not self.found:
                    box = box.intersect(self.linear([*before, *nodes], len(box.lower)))
                self.found.append(box)
                with np.errstate(over="ignore", under="ignore", invalid="ignore", divide="ignore"):
                    node = _level(phi, box) if self.known is None else _lines(phi, box)
                box = _Box(*phi.enclose(box.lower, box.upper))
            else:
                raise UnsupportedLayerError(
                    "network",
                    got=f"a {type(layer).__name__}",
                    needed="Affine, ReLU, Activation, Residual, Flatten or Normalise",
                    fix="rewrite the network with these layers",
                )
            nodes.append(node)
        return box, nodes

    def linear(self, nodes: Sequence[_Node], width: int) -> _Box:
        """Bounds of the numbers after ``nodes``, by going back to the input."""
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            rows = _back(nodes, _Rows.start(width))
            A, n = rows.matrix(), len(self.center)
            loss = gamma(n + 4) * _above(A, np.abs(self.center)) + _lost(n, A, self.center)
            if self.radius:
                loss = loss + _up(self.radius * _row_norms(A, 1 if self.norm == math.inf else 2))
            c = rows.then(A, A @ self.center, _up(loss * (1.0 + 16 * U))).c
        c = np.where(np.isnan(c), -math.inf, c)
        return _Box(c[:width], -c[width:])


def _quiet_affine(box: _Box, layer: Affine) -> _Box:
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return box.through_affine(layer.weight, layer.bias)


# ---------------------------------------------------------------- lines below and above an activation


def _level(phi: Activation, box: _Box) -> _ActivationNode:
    """Constants: what intervals know."""
    low, high = phi.enclose(box.lower, box.upper)
    zero = np.zeros_like(low)
    return _ActivationNode(zero, low, zero, high, box.size)


def _lines(phi: Activation, box: _Box) -> _ActivationNode:
    """Two lines on each interval, level ones where an end is infinite."""
    level = _level(phi, box)
    kinked = phi.name in ("relu", "leaky_relu")
    usable = np.isfinite(box.upper - box.lower)
    if kinked:  # one line, exact, on either side of the kink
        usable = usable | (box.lower >= 0.0) | (box.upper <= 0.0)
    columns = np.flatnonzero(usable)
    if len(columns) == 0:
        return level
    left, right = box.lower[columns], box.upper[columns]
    found = _kinked_lines(phi, left, right) if kinked else _smooth_lines(phi, left, right)
    whole = [x.copy() for x in (level.low_slope, level.low, level.high_slope, level.high)]
    for array, values in zip(whole, found, strict=True):
        array[columns] = values
    return _ActivationNode(whole[0], whole[1], whole[2], whole[3], box.size)


Lines = tuple[F64, F64, F64, F64]
"""Slope and intercept of the line below, and of the one above."""


def _kinked_lines(phi: Activation, left: F64, right: F64) -> Lines:
    """The chord on one side; on the other the branch that is longer (which bounds the smaller area)."""
    a = float(phi.slopes(np.array(-1.0), np.array(-1.0))[0])
    chord = (0.5 * right - a * (0.5 * left)) / (0.5 * right - 0.5 * left)
    chord = np.clip(np.where(np.isnan(chord), a, chord), min(a, 1.0), max(a, 1.0))
    branch = np.where(right > -left, 1.0, a)
    low_slope, high_slope = (branch, chord) if a <= 1.0 else (chord, branch)
    one_sided, slope = (left >= 0.0) | (right <= 0.0), np.where(left >= 0.0, 1.0, a)
    zero = np.zeros_like(left)
    low_slope, high_slope = np.where(one_sided, slope, low_slope), np.where(one_sided, slope, high_slope)
    # φ(x) − s x is (a − s) x left of 0 and (1 − s) x right of it: extreme at an end or at 0
    low = np.minimum(_times_difference(left, a, low_slope)[0], _times_difference(right, 1.0, low_slope)[0])
    high = np.maximum(_times_difference(left, a, high_slope)[1], _times_difference(right, 1.0, high_slope)[1])
    return (
        low_slope,
        np.where(one_sided, zero, np.minimum(low, 0.0)),
        high_slope,
        np.where(one_sided, zero, np.maximum(high, 0.0)),
    )


def _times_difference(x: F64, p: float, s: F64) -> tuple[F64, F64]:
    """Enclosure of ``x (p − s)``: rounded twice, 0 only where it is."""
    product = x * (p - s)
    zero = (x == 0.0) | (s == p)
    return np.where(zero, 0.0, _down(_down(_down(product)))), np.where(zero, 0.0, _up(_up(_up(product))))


_MARKS = np.array([-10.0, -6.0, -3.5, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 3.5, 6.0, 10.0])
_PARTS = 8
_CHUNK = 2000  # neurons at a time: 484 pairs of points each


def _smooth_lines(phi: Activation, left: F64, right: F64) -> Lines:
    """Near the lines that are best at the middle of the interval, moved outward until they are proved.

    The best line below is the supporting line of the convex hull there. It is guessed from pairs of points, and its
    intercept is a lower bound of ``φ(x) − s x`` from values and slopes on a grid.
    """
    pieces = [_smooth_chunk(phi, left[i : i + _CHUNK], right[i : i + _CHUNK]) for i in range(0, len(left), _CHUNK)]
    stacked = [np.concatenate(part) for part in zip(*pieces, strict=True)]
    return stacked[0], stacked[1], stacked[2], stacked[3]


def _smooth_chunk(phi: Activation, left: F64, right: F64) -> Lines:
    middle = np.clip(0.5 * left + 0.5 * right, left, right)
    first, second = _grid(left, middle), _grid(middle, right)
    grid = np.concatenate([first, second])
    value_low, value_high = phi.enclose(grid, grid)
    value = 0.5 * value_low + 0.5 * value_high
    least, most = phi.slopes(left, right)
    k = len(first)
    # chords over the middle, each with its height there
    run = second[None] - first[:, None]
    tilt = (value[k:][None] - value[:k][:, None]) / run
    height = value[:k][:, None] + tilt * (middle - first[:, None])
    tilt, height = tilt.reshape(k * k, -1), height.reshape(k * k, -1)
    # the middle itself is on every chord that ends there, whatever its slope
    beside = (first < middle)[:, None] & (second > middle)[None]
    valid = np.isfinite(height) & beside.reshape(k * k, -1)
    slopes: list[F64] = []
    for score in (np.where(valid, height, math.inf), np.where(valid, -height, math.inf)):
        chosen = np.take_along_axis(tilt, score.argmin(axis=0)[None], axis=0)[0]
        slopes.append(np.clip(np.where(np.isfinite(chosen), chosen, 0.5 * least + 0.5 * most), least, most))
    enclosed = phi.slopes(grid[:-1], grid[1:])
    low = _least(grid, value_low, enclosed, slopes[0])
    # above φ is below −φ
    high = -_least(grid, -value_high, (-enclosed[1], -enclosed[0]), -slopes[1])
    return slopes[0], low, slopes[1], high


def _grid(left: F64, right: F64) -> F64:
    """Increasing points from left to right, both included, one row each."""
    steps = np.linspace(0.0, 1.0, _PARTS + 1)[:, None]
    points = np.concatenate([left + steps * (right - left), np.broadcast_to(_MARKS[:, None], (len(_MARKS), len(left)))])
    points = np.sort(np.clip(points, left, right), axis=0)
    points[0], points[-1] = left, right
    return points


def _least(grid: F64, value: F64, slopes: tuple[F64, F64], s: F64) -> F64:
    """Lower bound of ``min φ(x) − s x`` over the whole grid, from ``φ >= value`` at its points and slopes between."""
    at = _down(value - _up(s * grid))
    step_low, step_high = _down(np.diff(grid, axis=0)), _up(np.diff(grid, axis=0))
    # from the left: φ(x) − s x >= (φ(a) − s a) + (α − s)(x − a); from the right likewise; linear, so least at the ends
    fall_left, fall_right = _down(slopes[0] - s), _down(s - slopes[1])
    from_left = _down(at[:-1] + np.minimum(0.0, _down(fall_left * np.where(fall_left < 0.0, step_high, step_low))))
    from_right = _down(at[1:] + np.minimum(0.0, _down(fall_right * np.where(fall_right < 0.0, step_high, step_low))))
    pieces = np.maximum(from_left, from_right)
    pieces = np.where(np.isnan(pieces), -math.inf, pieces)
    return pieces.min(axis=0)
