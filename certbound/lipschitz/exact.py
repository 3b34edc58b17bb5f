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

Source: Rademacher; Jordan & Dimakis, NeurIPS 2020 (exact constants of small ReLU networks); certbound theory, section 8.
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
from certbound.bound import Bound, Claim, Result
from certbound.errors import InputError
from certbound.lipschitz.product import Outputs
from certbound.lipschitz.recursion import recursion_2
from certbound.lipschitz.sampled import (
    SmoothPoint,
    fraction_rows,
    head_fractions,
    norm_of_fractions,
    open_chain,
    find_best_point,
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
