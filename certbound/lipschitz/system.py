"""A network as a system of steps with slopes in [0, 1], for the LipSDP of residual, leaky, smooth and local nets.

Each step takes a state z to ``z⁺ = H z + G ψ(W z)``, ψ elementwise with slopes in [0, 1]; the output is ``C z``. An
activation with slopes in [α, β] is ``φ(u) = α u + (β − α) ψ(u)``, so that α moves into H and β − α into G; a neuron
with α = β (a ReLU that cannot switch) is linear and drops out of ψ. What a residual sum will need later is kept in the
state. Biases do not matter.

Every matrix is stored with a bound of how far it is, entry by entry, from the exact one: the weights of the network are
exact, products of two are rounded.

Source: certbound theory, section 5 (residual, local and other activations).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from certbound.activations import Activation
from certbound.arrays import F64
from certbound.errors import NumericalError
from certbound.lipschitz.product import Outputs
from certbound.network import Affine, Flatten, Layer, Network, Normalise, ReLU, Residual, affine_layers
from certbound.rounding import TINY, U, gamma

_AIR = 1.0 + 2.0**-20  # on every error bound: covers the rounding of its own few operations
_RANGE = 2.0**400  # beyond it, products of three matrices may leave the range of float64

Slopes = tuple[F64, F64]
"""Enclosure of one activation layer's slopes: lower and upper ends, one a neuron or shape ()."""


@dataclass(frozen=True, eq=False)
class Map:
    """A matrix known up to an error: ``|true − matrix| <= error`` entry by entry; None: exact."""

    matrix: F64
    error: F64 | None = None

    def __post_init__(self) -> None:
        size = np.abs(self.matrix)
        if not bool(np.all(size < _RANGE)) or (self.error is not None and not bool(np.all(self.error < _RANGE))):
            raise NumericalError("the network's weights multiply to numbers that leave the range of float64")

    @property
    def off(self) -> F64:
        """The error, as an array."""
        return np.zeros_like(self.matrix) if self.error is None else self.error

    def after(self, first: Map) -> Map:
        """The map that follows ``first``: the product ``self @ first``.

        >>> Map(np.array([[2.0]])).after(Map(np.array([[3.0]]))).matrix
        array([[6.]])
        """
        A, B = self.matrix, first.matrix
        if first.error is None and _selects(B):
            # parts of a state: nothing is rounded
            return Map(A @ B, None if self.error is None else self.error @ B)
        with np.errstate(under="ignore"):
            product = A @ B
            n = A.shape[1]
            error = gamma(n + 4) * (np.abs(A) @ np.abs(B))
            if first.error is not None:
                error += np.abs(A) @ first.error
            if self.error is not None:
                error += self.error @ (np.abs(B) + first.off)
        # what underflows in a product or in its error: each term loses at most TINY times a factor's size
        lost = 8 * (n + 1) * TINY * (2.0 + _top(A) + _top(B))
        return Map(product, error * (_AIR + 2 * gamma(n + 4)) + lost)

    def plus(self, other: Map) -> Map:
        """The sum of two maps."""
        total = self.matrix + other.matrix
        return Map(total, (self.off + other.off + U * np.abs(total)) * _AIR + 4 * TINY)

    def scaled(self, rows: F64) -> Map:
        """``diag(rows) @ self``."""
        if bool(np.all((rows == 1.0) | (rows == 0.0))):
            return Map(rows[:, None] * self.matrix, None if self.error is None else rows[:, None] * self.error)
        with np.errstate(under="ignore"):
            matrix = rows[:, None] * self.matrix
            error = np.abs(rows)[:, None] * self.off + U * np.abs(matrix)
        return Map(matrix, error * _AIR + 8 * TINY)

    def divided(self, rows: F64) -> Map:
        """``diag(rows)^{-1} @ self``."""
        with np.errstate(under="ignore", over="ignore"):
            matrix = self.matrix / rows[:, None]
            error = self.off / rows[:, None] + U * np.abs(matrix)
        return Map(matrix, error * _AIR + 8 * TINY)

    def rows(self, keep: npt.NDArray[np.bool_] | list[int]) -> Map:
        """Some rows."""
        return Map(self.matrix[keep], None if self.error is None else self.error[keep])


def _selects(B: F64) -> bool:
    """Whether each row and each column has at most one entry that is not 0, and that a 1."""
    ones = B == 1.0
    alone = bool(np.all(ones.sum(axis=0) <= 1)) and bool(np.all(ones.sum(axis=1) <= 1))
    return alone and bool(np.all(ones | (B == 0.0)))


def _difference_up(a: F64, b: F64) -> F64:
    """``a − b``, rounded up where it is rounded at all: a wider interval of slopes is still an enclosure.

    >>> _difference_up(np.array([1.0, 1.0]), np.array([0.5, 2.0**-60])).tolist()
    [0.5, 1.0]
    """
    d = a - b
    shifted = d - a
    error = (a - (d - shifted)) + (-b - shifted)  # exactly what rounding took (Knuth)
    return np.where(error > 0.0, np.nextafter(d, math.inf), d)


def _top(A: F64) -> float:
    return float(np.max(np.abs(A), initial=0.0))


def _identity(n: int) -> Map:
    return Map(np.eye(n))


def _stacked(parts: Sequence[Map]) -> Map:
    matrix = np.vstack([p.matrix for p in parts])
    if all(p.error is None for p in parts):
        return Map(matrix)
    return Map(matrix, np.vstack([p.off for p in parts]))


@dataclass(frozen=True, eq=False)
class Step:
    """``z⁺ = H z + G ψ(W z)``; H None: 0; G None: the identity (it is exact in any case)."""

    W: Map
    H: Map | None = None
    G: F64 | None = None

    @property
    def n_out(self) -> int:
        """Size of the state after the step."""
        if self.G is not None:
            return len(self.G)
        return len(self.W.matrix) if self.H is None else len(self.H.matrix)


@dataclass(frozen=True, eq=False)
class System:
    """Steps and the head that reads the outputs off the last state."""

    n_inputs: int
    steps: tuple[Step, ...]
    head: Map

    @property
    def plain(self) -> list[tuple[F64, F64 | None, F64 | None]]:
        """``(W, H, G)`` of every step, as they are stored."""
        return [(s.W.matrix, None if s.H is None else s.H.matrix, s.G) for s in self.steps]

    @property
    def size(self) -> int:
        """Rows of the LMI: inputs and neurons."""
        return self.n_inputs + sum(len(s.W.matrix) for s in self.steps)

    @classmethod
    def of(cls, network: Network, outputs: Outputs = "all", slopes: Sequence[Slopes] | None = None) -> System:
        """Read a network. ``slopes``: of every activation layer in order of execution (of a residual block the body
        first), for inputs in some region; None: over all numbers.

        Raises NumericalError where products of weights leave the range of float64.

        >>> leaky = Activation("leaky_relu", 0.5)
        >>> step = System.of(Network((Affine([[1.0], [2.0]]), leaky, Affine([[1.0, 1.0]])))).steps[0]
        >>> step.H.matrix.tolist(), step.G.tolist()
        ([[0.5], [1.0]], [[0.5, 0.0], [0.0, 0.5]])
        """
        builder = _Builder(_identity(network.n_inputs), None if slopes is None else list(slopes))
        builder.run(network.layers, network.input_shape)
        if builder.slopes:
            raise ValueError("more slopes than activation layers")
        head = builder.now
        if outputs != "all":
            index = outputs if isinstance(outputs, tuple) else (int(outputs),)
            rows = head.rows([index[0]])
            if len(index) == 2:
                other = head.rows([index[1]])
                rows = rows.plus(Map(-other.matrix, other.error))
            head = rows
        if not head.matrix.any() and not head.off.any():  # constant: nothing is read
            head, builder.steps = Map(np.zeros((len(head.matrix), network.n_inputs))), []
        system = cls(network.n_inputs, tuple(builder.steps), head)
        return balanced(system) if any(_uneven(step.W.matrix) for step in system.steps) else system


def activation_widths(network: Network) -> list[int]:
    """Neurons of every activation layer, in order of execution.

    >>> activation_widths(Network.from_weights([[[1.0], [2.0]], [[1.0, 1.0]]]))
    [2]
    """
    found: list[int] = []

    def walk(layers: Sequence[Layer], width: int) -> int:
        for layer in layers:
            if isinstance(layer, Affine):
                width = len(layer.weight)
            elif isinstance(layer, Residual):
                after = walk(layer.body, width)
                walk(layer.shortcut, width)
                width = after
            elif isinstance(layer, (ReLU, Activation)):
                found.append(width)
        return width

    walk(network.layers, network.n_inputs)
    return found


class _Builder:
    """Walks the layers; the current value, and what residual sums wait for, are linear maps of the current state."""

    def __init__(self, start: Map, slopes: list[Slopes] | None) -> None:
        self.now = start
        self.waiting: list[Map] = []
        self.slopes = slopes
        self.steps: list[Step] = []

    def run(self, layers: Sequence[Layer], shape: tuple[int, ...] | None) -> None:
        for layer in layers:
            if isinstance(layer, Affine):
                first = self._is_identity(self.now)
                self.now = Map(layer.weight) if first else Map(layer.weight).after(self.now)
                shape = None
            elif isinstance(layer, Normalise):
                self.now = self.now.divided(layer.per_input(shape, len(self.now.matrix))[1])
            elif isinstance(layer, Flatten):
                shape = None
            elif isinstance(layer, Residual):
                self._residual(layer)
                shape = None if any(affine_layers((layer,))) else shape
            else:
                self._activation(layer)

    def _residual(self, block: Residual) -> None:
        self.waiting.append(self.now)
        self.run(block.body, None)
        body, self.now = self.now, self.waiting.pop()
        self.waiting.append(body)
        self.run(block.shortcut, None)
        self.now = self.waiting.pop().plus(self.now)

    def _activation(self, layer: ReLU | Activation) -> None:
        n = len(self.now.matrix)
        activation = Activation("relu") if isinstance(layer, ReLU) else layer
        low, high = activation.slopes() if self.slopes is None else self.slopes.pop(0)
        low, high = np.broadcast_to(low, (n,)).astype(np.float64), np.broadcast_to(high, (n,)).astype(np.float64)
        width = _difference_up(high, low)
        # what no input moves is as good as linear
        moves = np.any(self.now.matrix != 0.0, axis=1) | np.any(self.now.off != 0.0, axis=1)
        open_ = (width > 0.0) & moves
        linear = self.now.scaled(low)
        if not bool(np.any(open_)):
            self.now = linear
            return
        kept = self.waiting
        sizes = [len(w.matrix) for w in kept]
        H: Map | None = _stacked([*kept, linear])
        assert H is not None
        if not H.matrix.any() and not H.off.any():
            H = None
        top = sum(sizes)
        G: F64 | None = None
        if kept or not bool(np.all(open_ & (width == 1.0))):
            G = np.zeros((top + n, int(open_.sum())))
            G[top + np.flatnonzero(open_), np.arange(G.shape[1])] = width[open_]
        self.steps.append(Step(self.now.rows(open_), H, G))
        # a part of the state that is 0 for every input is not read: what depends on it alone drops out in its turn
        filled = np.ones(top + n, dtype=np.bool_) if G is None else np.any(G != 0.0, axis=1)
        if H is not None:
            filled = filled | np.any(H.matrix != 0.0, axis=1) | np.any(H.off != 0.0, axis=1)
        whole = np.diag(filled.astype(np.float64))
        starts = np.cumsum([0, *sizes])
        self.waiting = [Map(whole[a : a + s]) for a, s in zip(starts, sizes, strict=False)]
        self.now = Map(whole[top:])

    def _is_identity(self, m: Map) -> bool:
        A = m.matrix
        return m.error is None and A.shape[0] == A.shape[1] and bool(np.array_equal(A, np.eye(len(A))))


def _powers(A: F64) -> npt.NDArray[np.int64]:
    """For each row the exponent of two of its largest entry; 0 for a row of zeros."""
    top = np.max(np.abs(A), axis=1, initial=0.0)
    return np.where(top > 0.0, np.frexp(top)[1], 0).astype(np.int64)


def _uneven(A: F64) -> bool:
    """Whether rows differ by more than 2^8 in size: the units of ordinary networks are left alone."""
    e = _powers(A)[np.any(A != 0.0, axis=1)]
    return len(e) > 0 and int(e.max() - e.min()) > 8


def _shifted(m: Map, rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64]) -> Map | None:
    """``diag(2^−rows) m diag(2^columns)``; None where that is not exact."""
    by = columns[None, :] - rows[:, None]
    moved = np.ldexp(m.matrix, by)
    error = None if m.error is None else np.ldexp(m.error, by)
    exact = bool(np.all(np.ldexp(moved, -by) == m.matrix))
    if error is not None:
        exact = exact and bool(np.all(np.ldexp(error, -by) == m.error))
    return Map(moved, error) if exact else None


def balanced(system: System) -> System:
    """The same outputs from neurons and states in units (powers of two, exact) in which their rows are about 1.

    ψ keeps its slopes in any unit. Without this a network whose neurons have very different scales has multipliers that
    differ as much, and proofs lose what is small.

    >>> step = balanced(System(1, (Step(Map(np.array([[64.0]])), None, None),), Map(np.array([[1.0]])))).steps[0]
    >>> step.W.matrix.tolist()
    [[0.5]]
    """
    columns = np.zeros(system.n_inputs, dtype=np.int64)
    steps: list[Step] = []
    try:
        for step in system.steps:
            zeros = np.zeros(len(step.W.matrix), dtype=np.int64)
            W = _shifted(step.W, zeros, columns)
            r = zeros if W is None else _powers(W.matrix)
            W = None if W is None else _shifted(W, r, np.zeros(len(columns), dtype=np.int64))
            H = None if step.H is None else _shifted(step.H, np.zeros(step.n_out, dtype=np.int64), columns)
            G = _shifted(Map(np.eye(step.n_out) if step.G is None else step.G), np.zeros(step.n_out, dtype=np.int64), r)
            if W is None or G is None or (H is None) != (step.H is None):
                return system
            z = _powers(G.matrix if H is None else np.hstack([H.matrix, G.matrix]))
            # 2^e is the entry above 1/2 … 1: one step lower keeps a plain chain's identity
            z = np.where(np.any(G.matrix != 0.0, axis=1) | (z != 0), z - 1, z)
            H = None if H is None else _shifted(H, z, np.zeros(H.matrix.shape[1], dtype=np.int64))
            G = _shifted(G, z, np.zeros(G.matrix.shape[1], dtype=np.int64))
            if G is None or (H is None) != (step.H is None):
                return system
            plain = step.G is None and bool(np.array_equal(G.matrix, np.eye(step.n_out)))
            steps.append(Step(W, H, None if plain else G.matrix))
            columns = z
        head = _shifted(system.head, np.zeros(len(system.head.matrix), dtype=np.int64), columns)
    except NumericalError:
        return system
    return system if head is None else System(system.n_inputs, tuple(steps), head)


def reduced(system: System) -> tuple[System, F64 | None]:
    """For ℓ2 only, as a hint: the system on the part of the input that is read, and the basis (columns) of that part.

    ``‖·‖_2`` does not see an orthogonal change of the input; false for ℓ∞.
    """
    if not system.steps:
        return system, None
    first = system.steps[0]
    read = [first.W.matrix] if first.H is None else [first.W.matrix, first.H.matrix]
    stack = np.vstack(read)
    stack = np.unique(stack[np.any(stack != 0.0, axis=1)], axis=0)
    if len(stack) >= system.n_inputs or len(stack) == 0:
        return system, None
    basis = np.asarray(np.linalg.qr(stack.T)[0], dtype=np.float64)
    H = None if first.H is None else Map(first.H.matrix @ basis)
    step = replace(first, W=Map(first.W.matrix @ basis), H=H)
    return System(basis.shape[1], (step, *system.steps[1:]), system.head), basis


__all__ = ["Map", "Slopes", "Step", "System", "activation_widths", "balanced", "reduced"]
