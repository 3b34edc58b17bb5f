"""``‖A‖_2 <= s`` of a convolution, by a verified block Cholesky factorisation of ``s²I − AᵀA`` (or ``s²I − AAᵀ``).

The first spatial axis is cut into strips of rows, so thick that only neighbouring strips meet in the Gram matrix:
it is block tridiagonal, and no more of it is formed than its blocks. Groups are operators of their own.

Source: certbound theory, section 6; :func:`certbound.rounding.block_definite`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from certbound.arrays import F64
from certbound.norms.convolution import Axis, conv_axes, row_kinds
from certbound.rounding import TINY, U, block_definite, down, gamma, quick_norm, sqrt_up, up

if TYPE_CHECKING:
    from certbound.ops import Conv


Members = list[dict[int, tuple[int, ...]]]
"""Per row of the side that stays: which rows of the other side it meets, and through which taps."""


@dataclass(frozen=True, eq=False)
class Strips:
    """How the Gram matrix is cut.

    ``inputs``: ``AᵀA``, else ``AAᵀ``; ``members``: its rows of pixels; ``thick``: of them a strip; ``row``: numbers in
    one; ``across``: numbers in a row of the other side; ``taps``: of the kernel's first axis.
    """

    inputs: bool
    members: Members
    thick: int
    row: int
    across: int
    taps: int

    @property
    def sizes(self) -> list[int]:
        """Numbers in every strip."""
        rows = len(self.members)
        return [min(self.thick, rows - i) * self.row for i in range(0, rows, self.thick)]

    @property
    def flops(self) -> float:
        """Operations of one proof, about: products of rows, Cholesky, and the factor multiplied out."""
        sizes = self.sizes
        products = self.taps * (self.taps + 1) * self.row**2 * self.across
        return products + sum(3.0 * m**3 for m in sizes) + sum(7.0 * a * a * b for a, b in itertools.pairwise(sizes))

    @property
    def memory(self) -> float:
        """Bytes of one proof, about."""
        products = self.taps * (self.taps + 1) / 2.0 * self.row**2 + self.taps * self.row * self.across
        return 8.0 * (products + 4.0 * sum(m * m for m in self.sizes) + 4.0 * max(self.sizes) ** 2)


def strips_of(conv: Conv, axes: Sequence[Axis]) -> Strips:
    """The cheaper side, for one group."""
    first, rest = axes[0], axes[1:]
    row_in = conv.weight.shape[1] * math.prod(a.size for a in rest)
    row_out = len(conv.weight) // conv.groups * math.prod(a.out for a in rest)
    by_output: Members = [{} for _ in range(first.out)]
    by_input: Members = [{} for _ in range(first.size)]
    for j, reads in enumerate(first.index.tolist()):
        for i in sorted({i for i in reads if i >= 0}):
            taps = tuple(t for t, source in enumerate(reads) if source == i)
            by_output[j][i] = by_input[i][j] = taps
    found = [
        Strips(True, by_input, _reach(by_output), row_in, row_out, first.taps),
        Strips(False, by_output, _reach(by_input), row_out, row_in, first.taps),
    ]
    return min(found, key=lambda s: s.flops)


def _reach(other: Members) -> int:
    """How far apart rows can be that meet in one row of the other side: strips of that many meet neighbours only."""
    return max(1, max((max(row) - min(row) for row in other if row), default=1))


def gram_cost(conv: Conv, input_shape: Sequence[int]) -> tuple[float, float]:
    """``(operations, bytes)`` of :func:`proves_gram`, about.

    >>> from certbound.ops import Conv
    >>> gram_cost(Conv(np.ones((1, 1, 1))), (1, 1))[0] < 100
    True
    """
    strips = strips_of(conv, conv_axes(conv, input_shape))
    return conv.groups * strips.flops, strips.memory


def proves_gram(conv: Conv, input_shape: Sequence[int], s: float, *, relative_error: float = 0.0) -> bool:
    """True proves ``‖A‖_2 <= s`` for every kernel within ``relative_error``, entry by entry. Kernel entries below 2.

    >>> from certbound.ops import Conv
    >>> conv = Conv(np.ones((1, 1, 3)), padding=((1, 1),))  # norm 1 + √2
    >>> proves_gram(conv, (1, 3), 2.4143), proves_gram(conv, (1, 3), 2.4142)
    (True, False)
    """
    if not 0.0 < s < 2.0**400:
        return s == 0.0 and not conv.weight.any()
    axes = conv_axes(conv, input_shape)
    return all(_proves_group(group, axes, s, relative_error) for group in _groups(conv))


def _groups(conv: Conv) -> Iterator[Conv]:
    from certbound.ops import Conv as Operation

    size = len(conv.weight) // conv.groups
    for g in range(conv.groups):
        weight = conv.weight[g * size : (g + 1) * size]
        yield Operation(weight, None, conv.stride, conv.padding, conv.dilation, 1, conv.padding_mode)


def _proves_group(conv: Conv, axes: Sequence[Axis], s: float, relative_error: float) -> bool:
    squares = 0.0
    for kind in row_kinds(conv, axes):
        size = up(quick_norm(kind.sizes)[1] * (1.0 + 4.0 * gamma(sum(conv.kernel) + 4)))
        squares = up(squares + up(up(size * size) * kind.count))
    if relative_error:  # ‖ΔA‖_2 <= relative_error ‖ |A| ‖_F
        s = down(s - up(relative_error * sqrt_up(squares)))
        if not s > 0.0:
            return False
    strips = strips_of(conv, axes)
    square = down(s * s)
    diagonal, lower = _gram_blocks(conv, axes, strips)
    largest = 0.0
    for block in diagonal:
        np.negative(block, out=block)
        block[np.diag_indices_from(block)] += square
        largest = max(largest, float(np.max(np.abs(np.diagonal(block)))))
    for block in lower:
        np.negative(block, out=block)
    # entrywise γ |A|ᵀ|A|: its Frobenius norm is at most γ ‖ |A| ‖_F²; the diagonal is rounded once more
    meeting = max(len(row) for row in strips.members)
    terms = 2 * strips.across + 2 * meeting + 2 * math.prod(conv.kernel) + 16
    entries = sum(strips.sizes)
    error = up(up(gamma(terms) * squares) + up(2 * U * largest))
    return block_definite(diagonal, lower, error=up(error + 16.0 * terms * entries * TINY))


def _gram_blocks(conv: Conv, axes: Sequence[Axis], strips: Strips) -> tuple[list[F64], list[F64]]:
    """Diagonal blocks, exactly symmetric, and those below them."""
    slabs = [_slab(conv.weight[:, :, t], axes[1:]) for t in range(strips.taps)]
    if not strips.inputs:
        slabs = [slab.T for slab in slabs]
    sums: dict[tuple[int, ...], F64] = {}
    products: dict[tuple[tuple[int, ...], tuple[int, ...]], F64] = {}

    def through(taps: tuple[int, ...]) -> F64:
        if taps not in sums:
            sums[taps] = slabs[taps[0]] if len(taps) == 1 else np.sum([slabs[t] for t in taps], axis=0)
        return sums[taps]

    def product(a: tuple[int, ...], b: tuple[int, ...]) -> F64:
        if a > b:
            return product(b, a).T
        if (a, b) not in products:
            found = through(a).T @ through(b)
            products[a, b] = np.tril(found) + np.tril(found, -1).T if a == b else found
        return products[a, b]

    def block(rows: range, columns: range) -> F64:
        m = strips.row
        made = np.zeros((len(rows) * m, len(columns) * m))
        for (x, i), (y, k) in itertools.product(enumerate(rows), enumerate(columns)):
            if rows == columns and k > i:
                continue
            for other in strips.members[i].keys() & strips.members[k].keys():
                part = product(strips.members[i][other], strips.members[k][other])
                made[x * m : (x + 1) * m, y * m : (y + 1) * m] += part
            if rows == columns and k < i:
                made[y * m : (y + 1) * m, x * m : (x + 1) * m] = made[x * m : (x + 1) * m, y * m : (y + 1) * m].T
        return made

    rows = len(strips.members)
    cuts = [range(i, min(i + strips.thick, rows)) for i in range(0, rows, strips.thick)]
    return [block(c, c) for c in cuts], [block(b, a) for a, b in itertools.pairwise(cuts)]


def _slab(weight: F64, rest: Sequence[Axis]) -> F64:
    """One row of outputs from one row of inputs through one tap of the first axis: ``Σ_t W_t ⊗ S_t`` over the others.

    ``weight``: (O, C, *the other axes of the kernel); the result: (outputs · O, inputs · C).
    """
    outs, sizes = [a.out for a in rest], [a.size for a in rest]
    o, c = weight.shape[:2]
    slab = np.zeros((math.prod(outs), math.prod(sizes), o, c))
    where = np.indices(outs).reshape(len(outs), -1) if outs else np.zeros((0, 1), dtype=np.int64)
    for tap in itertools.product(*(range(k) for k in weight.shape[2:])):
        sources = [a.index[where[x], t] for x, (a, t) in enumerate(zip(rest, tap, strict=True))]
        good = np.all([s >= 0 for s in sources], axis=0) if sources else np.ones(1, dtype=bool)
        column = np.zeros(where.shape[1], dtype=np.int64)
        for source, size in zip(sources, sizes, strict=True):
            column = column * size + source
        slab[np.flatnonzero(good), column[good]] += weight[(..., *tap)]
    return slab.transpose(0, 2, 1, 3).reshape(math.prod(outs) * o, math.prod(sizes) * c)
