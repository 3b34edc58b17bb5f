"""Activation patterns that no input realises: evidence that numpy and exact rationals can check.

Some neurons of a ReLU or leaky chain are on (``z > 0``) or off (``z <= 0``). Where every neuron that z reads has its
slope fixed, or is the same number for every input, ``z = a·x + c`` is affine on the cell. If weights ``y > 0`` and
signs s (on: 1, off: −1) give ``Σ y_i s_i a_i = 0`` and ``γ = Σ y_i s_i c_i <= 0``, then a sum of numbers >= 0 is γ: no
input is in the cell if γ < 0 or some neuron of the sum is on, and else only inputs with ``a_i·x + c_i = 0``, a set of
measure 0 if ``a_i ≠ 0``. A Lipschitz constant is a supremum over almost every input, so such a cell does not count.

Of a minimal contradiction y is the null vector of its rows, unique up to a factor: the neurons' numbers are evidence
enough, and y is found anew in exact integers.

Source: Farkas' lemma, Carathéodory; certbound theory, section 8.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from certbound.activations import Activation
from certbound.arrays import F64
from certbound.lipschitz.system import Slopes
from certbound.network import Affine, Network, Normalise, ReLU, Residual

Form = tuple[list[Fraction], Fraction]
"""An affine form of the input: coefficients and offset."""


@dataclass(frozen=True, eq=False)
class _Linear:
    """``h ↦ (W h + b)``, or with ``W`` None ``h ↦ (h − mean)/std``."""

    W: F64 | None
    b: F64
    std: F64 | None = None


@dataclass(frozen=True, eq=False)
class Chain:
    """A network without residual sums, as affine maps (``stages``) and activation layers (None) in turn.

    ``off``: of each activation layer the slope below 0 (above: 1); NaN for smooth ones.
    """

    n_inputs: int
    stages: tuple[_Linear | None, ...]
    off: tuple[float, ...]
    _rows: dict[tuple[int, int], list[Fraction]] = field(default_factory=dict[tuple[int, int], list[Fraction]])

    @classmethod
    def of(cls, network: Network) -> Chain | None:
        """None for a network with residual sums.

        >>> len(Chain.of(Network.from_weights([[[1.0]], [[2.0]]])).stages)
        3
        """
        stages: list[_Linear | None] = []
        off: list[float] = []
        for i, layer in enumerate(network.layers):
            if isinstance(layer, Residual):
                return None
            if isinstance(layer, Affine):
                bias = np.zeros(len(layer.weight)) if layer.bias is None else layer.bias
                stages.append(_Linear(layer.weight, bias))
            elif isinstance(layer, Normalise):
                stages.append(_Linear(None, *network.statistics[i]))
            elif isinstance(layer, (ReLU, Activation)):
                stages.append(None)
                kind = Activation("relu") if isinstance(layer, ReLU) else layer
                off.append({"relu": 0.0, "leaky_relu": kind.parameter}.get(kind.name, math.nan))
        return cls(network.n_inputs, tuple(stages), tuple(off))

    def form(self, layer: int, j: int, slopes: Sequence[Slopes]) -> Form | None:
        """What neuron j of an activation layer reads, exactly; None where a slope that it depends on is not fixed.

        >>> chain = Chain.of(Network.from_weights([[[1.0], [3.0]], [[1.0, 2.0]], [[1.0]]], [[4.0, 0.0], None, None]))
        >>> off, on = np.zeros(2), np.ones(2)
        >>> chain.form(1, 0, [(on, on)])  # 1 (x + 4) + 2 (3 x)
        ([Fraction(7, 1)], Fraction(4, 1))
        >>> chain.form(1, 0, [(off, on)]) is None
        True
        """
        at = [i for i, s in enumerate(self.stages) if s is None][layer]
        row: dict[int, Fraction] = {j: Fraction(1)}
        offset = Fraction(0)
        before = layer
        for i in range(at - 1, -1, -1):
            stage = self.stages[i]
            if stage is None:
                before -= 1
                low, high = slopes[before]
                for k in [k for k in row if low[k] != high[k]]:
                    value = self._constant(before, k, slopes)
                    if value is None:
                        return None
                    offset += row.pop(k) * value
                row = {k: v * Fraction(float(low[k])) for k, v in row.items() if low[k]}
            elif stage.W is None:
                assert stage.std is not None
                scale = {k: Fraction(float(stage.std[k])) for k in row}
                offset -= sum((v * Fraction(float(stage.b[k])) / scale[k] for k, v in row.items()), Fraction(0))
                row = {k: v / scale[k] for k, v in row.items()}
            else:
                offset += sum((v * Fraction(float(stage.b[k])) for k, v in row.items()), Fraction(0))
                total = [Fraction(0)] * stage.W.shape[1]
                for k, v in row.items():
                    total = [t + v * w if w else t for t, w in zip(total, self._row(i, k), strict=True)]
                row = {k: v for k, v in enumerate(total) if v}
        return [row.get(k, Fraction(0)) for k in range(self.n_inputs)], offset

    def _constant(self, layer: int, k: int, slopes: Sequence[Slopes]) -> Fraction | None:
        """What a neuron puts out, if that is the same for every input; None where that is not known."""
        form = None if math.isnan(self.off[layer]) else self.form(layer, k, slopes)
        if form is None or any(form[0]):
            return None
        return form[1] if form[1] > 0 else form[1] * Fraction(self.off[layer])

    def _row(self, stage: int, k: int) -> list[Fraction]:
        found = self._rows.get((stage, k))
        if found is None:
            W = self.stages[stage]
            assert W is not None and W.W is not None
            found = self._rows[stage, k] = [Fraction(v) for v in W.W[k].tolist()]
        return found

    def pattern(self, x: F64) -> F64:
        """Which neurons of a chain of ReLUs are on at an input, all layers in turn (floating point).

        >>> Chain.of(Network.from_weights([[[1.0], [-1.0]], [[1.0, 1.0]]])).pattern(np.array([2.0])).tolist()
        [1.0, 0.0]
        """
        h, found = x, [np.zeros(0)]
        for stage in self.stages:
            if stage is None:
                found.append((h > 0.0).astype(np.float64))
                h = np.maximum(h, 0.0)
            elif stage.W is None:
                assert stage.std is not None
                h = (h - stage.b) / stage.std
            else:
                h = stage.W @ h + stage.b
        return np.concatenate(found)

    def forms(self, slopes: Sequence[Slopes]) -> list[tuple[F64, F64, npt.NDArray[np.bool_]]]:
        """What every activation layer reads, in floating point: coefficients, offsets, and which are affine."""
        A, c = np.eye(self.n_inputs), np.zeros(self.n_inputs)
        known = np.ones(self.n_inputs, dtype=np.bool_)
        found: list[tuple[F64, F64, npt.NDArray[np.bool_]]] = []
        for stage in self.stages:
            if stage is None:
                if len(found) == len(slopes):
                    break
                low, high = slopes[len(found)]
                off = self.off[len(found)]
                found.append((A, c, known))
                fixed = low == high
                constant = known & ~np.any(A != 0.0, axis=1) & (not math.isnan(off))
                known = (known & fixed) | (fixed & (low == 0.0)) | constant
                slope = np.where(fixed, low, np.where(constant, np.where(c > 0.0, 1.0, off), 0.0))
                A, c = slope[:, None] * A, slope * c
            elif stage.W is None:
                assert stage.std is not None
                A, c = A / stage.std[:, None], (c - stage.b) / stage.std
            else:
                known = np.all((stage.W == 0.0) | known, axis=1)
                A, c = stage.W @ A, stage.W @ c + stage.b
        return found


def contradiction(forms: Sequence[Form], on: Sequence[bool]) -> bool:
    """True proves that almost no input has ``form > 0`` for those that are on and ``form <= 0`` for the others.

    Every form must be needed: True is given only where the null vector of their coefficients is unique.

    >>> x, one = [Fraction(1)], Fraction(1)
    >>> contradiction([(x, -one), (x, one)], [True, False])  # x > 1 and x <= −1
    True
    >>> contradiction([(x, -one), (x, one)], [False, True])
    False
    """
    if not forms or len(forms) != len(on):
        return False
    rows: list[list[int]] = []
    for (row, offset), positive in zip(forms, on, strict=True):
        scale = math.lcm(*(v.denominator for v in row), offset.denominator) * (1 if positive else -1)
        rows.append([int(v * scale) for v in (*row, offset)])
    y = _null_vector([r[:-1] for r in rows])
    if y is None or not all(v > 0 for v in y):
        return False
    total = sum(v * r[-1] for v, r in zip(y, rows, strict=True))
    return total < 0 or (total == 0 and (len(forms) > 1 or on[0]))


def _null_vector(rows: list[list[int]]) -> list[int] | None:
    """y with ``y · rows = 0``, if it is unique up to a factor; of positive sum.

    >>> _null_vector([[1, 2], [2, 1], [-4, -5]])
    [6, 3, 3]
    >>> _null_vector([[1, 0], [0, 1]]) is None
    True
    """
    m = len(rows)
    A = [list(column) for column in zip(*rows, strict=True)]  # A y = 0, eliminated without fractions
    pivots: list[int] = []
    D = 1
    for j in range(m):
        r = len(pivots)
        at = next((i for i in range(r, len(A)) if A[i][j]), None)
        if at is None:
            continue
        A[r], A[at] = A[at], A[r]
        p = A[r][j]
        for i, row in enumerate(A):
            if i != r:
                f = row[j]
                row[:] = [(v * p - f * q) // D for v, q in zip(row, A[r], strict=True)]
        pivots.append(j)
        D = p
    if len(pivots) != m - 1:
        return None
    free = next(j for j in range(m) if j not in pivots)
    # after the elimination every pivot is D
    y = [0] * m
    y[free] = D
    for i, j in enumerate(pivots):
        y[j] = -A[i][free]
    return y if sum(y) > 0 else [-v for v in y]


__all__ = ["Chain", "Form", "contradiction"]
