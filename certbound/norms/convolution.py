"""Convolutions as linear operators: their geometry, the product with a vector, sums of their entries.

Shapes: an image is (C, *spatial), without a batch axis; a kernel is (O, C/groups, *kernel). The operator is

``y[o, j] = Σ_t Σ_c w[o, c, t] x[c, index(j, t)]``,  ``index(j, t) = j·stride + t·dilation − low`` along every axis,

where a position outside the image reads 0 (padding mode ``zeros``) or the input that the padding mode puts there. So
``A = Σ_t W_t ⊗ S_t``: ``W_t`` the matrix of one tap, ``S_t`` the 0/1 matrix "output j reads input index(j, t)", itself
a Kronecker product of one such matrix an axis. Nothing here forms A.

**Kernel norm and operator norm.** Papers often report the spectral norm of the reshaped kernel
``K = [W_1 … W_T]`` of shape (O, C·T), T the number of taps. With zero padding, one group, and an image on which every
tap of some output reads an input (an interior output exists),

``‖K‖_2 / √T <= max_t ‖W_t‖_2 <= ‖A‖_2 <= √T ‖K‖_2``, and ``‖K‖_2 <= ‖A‖_2``.

Proof. An interior output ``j`` has ``y[:, j] = K p``, p the patch that it reads, any vector of C·T numbers is such a
patch: ``‖A‖ >= ‖K‖``. With ``p_j`` the patch of output j, ``‖A x‖² = Σ_j ‖K p_j‖² <= ‖K‖² Σ_j ‖p_j‖²``, and an input
is in at most T patches (once a tap: ``S_t`` is injective): ``Σ_j ‖p_j‖² <= T ‖x‖²``. ∎  With strides an input is in at
most ``Π ⌈k/s⌉`` patches (dilation 1). So the statistic of the papers is a **lower** bound of the operator norm,
below it by up to √T (3 for 3 x 3); it bounds nothing from above. Without an interior output even that fails: a 3 x 3
kernel on a 1 x 1 image uses its centre only. With groups the inequalities hold for the kernel of every group; the
norm of the whole (O, C/groups · T) matrix, which mixes groups that share no input, can be above the operator's.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from certbound.arrays import F64, I64, digest
from certbound.errors import InputError
from certbound.norms.dense import singular_values
from certbound.norms.verified import Scaled
from certbound.rounding import (
    TINY,
    check_arithmetic,
    down,
    enclose_square_sum,
    enclose_sum,
    gamma,
    quick_norm,
    sqrt_down,
    sqrt_up,
    up,
)

if TYPE_CHECKING:
    from certbound.ops import Conv

_COLUMNS = 2**23  # numbers in the columns of one product: 64 MiB
_EXACT_ROWS = 256  # rows that may be the largest and are summed exactly; for more ties the a-priori factor does
_NUMPY_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


@dataclass(frozen=True, eq=False)
class Axis:
    """One spatial axis: ``index[j, t]`` is the input that output j reads through tap t, −1 for a padded zero."""

    size: int
    low: int
    high: int
    stride: int
    dilation: int
    index: I64

    @property
    def out(self) -> int:
        """Number of outputs."""
        return len(self.index)

    @property
    def taps(self) -> int:
        """Length of the kernel."""
        return self.index.shape[1]

    def patterns(self) -> tuple[I64, I64]:
        """``(patterns, counts)``: what rows look like. Equal labels: taps that read one input; −1: a zero."""
        labels = np.full_like(self.index, -1)
        for j, row in enumerate(self.index):
            seen: dict[int, int] = {}
            for t, i in enumerate(row.tolist()):
                if i >= 0:
                    labels[j, t] = seen.setdefault(i, len(seen))
        found, counts = np.unique(labels, axis=0, return_counts=True)
        return found, counts.astype(np.int64)


def check_input_shape(conv: Conv, input_shape: object) -> tuple[int, ...]:
    """``(C, *spatial)`` as a tuple of integers that fits the convolution; InputError says what does not."""
    axes = len(conv.kernel)
    needed = f"({conv.in_channels}, {', '.join('DHW'[3 - axes :])})"
    given = tuple(cast("Sequence[Any]", input_shape)) if isinstance(input_shape, (tuple, list)) else ()
    whole = all(isinstance(v, (int, np.integer)) and not isinstance(v, bool) and v >= 1 for v in given)
    if len(given) != axes + 1 or not whole:
        raise InputError(
            "input_shape",
            got=repr(input_shape),
            needed=f"{needed}: the shape of one input, channels first, without the batch axis",
            fix="a convolution's norm depends on the size of its input: pass it",
        )
    shape = tuple(int(v) for v in given)
    if shape[0] != conv.in_channels:
        raise InputError(
            "input_shape",
            got=f"{shape}, {shape[0]} channels",
            needed=f"{needed}: {conv.in_channels} input channels",
            fix="channels come first; check which value the layer is applied to",
        )
    conv.output_shape((1, *shape))  # padding and windows that do not fit are refused there
    return shape


def conv_axes(conv: Conv, input_shape: Sequence[int]) -> tuple[Axis, ...]:
    """The geometry of every spatial axis, for a shape that :func:`check_input_shape` accepted."""
    axes: list[Axis] = []
    outs = conv.output_shape((1, *input_shape))[2:]
    for a, (n, out) in enumerate(zip(input_shape[1:], outs, strict=True)):
        low, high = conv.padding[a]
        if conv.padding_mode == "zeros":
            source = np.full(n + low + high, -1, dtype=np.int64)
            source[low : low + n] = np.arange(n)
        else:
            mode: Any = _NUMPY_MODES[conv.padding_mode]
            source = np.pad(np.arange(n, dtype=np.int64), (low, high), mode=mode)
        reads = np.arange(out)[:, None] * conv.stride[a] + np.arange(conv.kernel[a])[None, :] * conv.dilation[a]
        axes.append(Axis(n, low, high, conv.stride[a], conv.dilation[a], source[reads]))
    return tuple(axes)


def conv_output_shape(conv: Conv, input_shape: Sequence[int]) -> tuple[int, ...]:
    """``(O, *spatial)``.

    >>> from certbound.ops import Conv
    >>> conv_output_shape(Conv(np.ones((2, 1, 3)), stride=(2,), padding=((1, 1),)), (1, 8))
    (2, 4)
    """
    return tuple(conv.output_shape((1, *check_input_shape(conv, input_shape)))[1:])


def conv_digest(conv: Conv, input_shape: Sequence[int]) -> str:
    """Names the operator: kernel, geometry and size of the input; the bias is no part of it."""
    words = f"{conv.stride} {conv.padding} {conv.dilation} {conv.groups} {conv.padding_mode} {tuple(input_shape)}"
    return digest(conv.weight, np.frombuffer(words.encode(), dtype=np.uint8))


def with_weight(conv: Conv, weight: F64) -> Conv:
    """The same geometry around another kernel, without a bias."""
    # imported here: certbound.ops reads activations, which nothing else here needs
    from certbound.ops import Conv as Operation

    return Operation(
        weight, None, conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode
    )  # fmt: skip


# ---------------------------------------------------------------- products


def _tap_chunks(conv: Conv, shape: Sequence[int], positions: int) -> Iterator[list[tuple[int, ...]]]:
    """The taps, so many at a time that the columns of one product stay within ``_COLUMNS`` numbers."""
    taps = list(itertools.product(*(range(k) for k in conv.kernel)))
    step = max(1, _COLUMNS // (shape[0] * positions))
    for i in range(0, len(taps), step):
        yield taps[i : i + step]


def _slices(conv: Conv, tap: Sequence[int], outs: Sequence[int]) -> tuple[slice, ...]:
    """Where one tap reads in the padded image."""
    starts = [t * d for t, d in zip(tap, conv.dilation, strict=True)]
    return tuple(
        slice(a, a + (out - 1) * s + 1, s) for a, out, s in zip(starts, outs, conv.stride, strict=True)
    )  # fmt: skip


def _filters(conv: Conv, taps: Sequence[tuple[int, ...]]) -> F64:
    """(groups, out/groups, taps · in/groups), the part of the kernel that these taps are."""
    g, width = conv.groups, conv.weight.shape[1]
    parts = np.stack([conv.weight[(..., *tap)] for tap in taps], axis=1)
    return parts.reshape(g, len(conv.weight) // g, len(taps) * width)


def conv_apply(conv: Conv, x: F64) -> F64:
    """``A x`` for one image (C, *spatial): the convolution without its bias, by matrix products.

    >>> from certbound.ops import Conv
    >>> conv_apply(Conv([[[1.0, 1.0]]], padding=((1, 0),)), np.array([[1.0, 2.0, 3.0]]))
    array([[1., 3., 5.]])
    """
    shape = check_input_shape(conv, x.shape)
    out = conv_output_shape(conv, shape)
    mode: Any = _NUMPY_MODES[conv.padding_mode]
    padded = np.pad(x, ((0, 0), *conv.padding), mode=mode)
    g, width, positions = conv.groups, conv.weight.shape[1], math.prod(out[1:])
    y = np.zeros((g, out[0] // g, positions))
    for taps in _tap_chunks(conv, shape, positions):
        columns = np.empty((g, len(taps), width, *out[1:]))
        for i, tap in enumerate(taps):
            columns[:, i] = padded[(slice(None), *_slices(conv, tap, out[1:]))].reshape(g, width, *out[1:])
        y += _filters(conv, taps) @ columns.reshape(g, len(taps) * width, positions)
    return y.reshape(out)


def conv_adjoint(conv: Conv, y: F64, input_shape: Sequence[int]) -> F64:
    """``Aᵀ y`` for one output (O, *spatial).

    >>> from certbound.ops import Conv
    >>> conv_adjoint(Conv([[[1.0, 1.0]]], padding=((1, 0),)), np.array([[1.0, 3.0, 5.0]]), (1, 3))
    array([[4., 8., 5.]])
    """
    shape = check_input_shape(conv, input_shape)
    out = conv_output_shape(conv, shape)
    if y.shape != out:
        raise InputError("y", got=f"shape {y.shape}", needed=f"{out}, an output of the layer", fix="check input_shape")
    g, positions = conv.groups, math.prod(out[1:])
    rows = y.reshape(g, out[0] // g, positions)
    padded = np.zeros((shape[0], *(n + sum(p) for n, p in zip(shape[1:], conv.padding, strict=True))))
    for taps in _tap_chunks(conv, shape, positions):
        parts = (_filters(conv, taps).transpose(0, 2, 1) @ rows).reshape(g, len(taps), -1, *out[1:])
        for i, tap in enumerate(taps):
            padded[(slice(None), *_slices(conv, tap, out[1:]))] += parts[:, i].reshape(shape[0], *out[1:])
    return _unpad(conv, padded, shape)


def _unpad(conv: Conv, padded: F64, shape: Sequence[int]) -> F64:
    """The transpose of padding: what was read from a copy goes back to its original."""
    if conv.padding_mode == "zeros":
        inside = tuple(slice(p[0], p[0] + n) for n, p in zip(shape[1:], conv.padding, strict=True))
        return np.ascontiguousarray(padded[(slice(None), *inside)])
    mode: Any = _NUMPY_MODES[conv.padding_mode]
    for a, (n, pads) in enumerate(zip(shape[1:], conv.padding, strict=True), start=1):
        source = np.pad(np.arange(n), pads, mode=mode)
        moved = np.moveaxis(padded, a, 0)
        folded = np.zeros((n, *moved.shape[1:]))
        np.add.at(folded, source, moved)
        padded = np.moveaxis(folded, 0, a)
    return np.ascontiguousarray(padded)


# ---------------------------------------------------------------- sums of entries


def _merge(labels: I64) -> F64:
    """(cells, taps): which taps add up in each entry of a row of this pattern."""
    cells = int(labels.max(initial=-1)) + 1
    return np.asarray(labels[None, :] == np.arange(cells)[:, None], dtype=np.float64)


@dataclass(frozen=True, eq=False)
class RowKind:
    """Rows of one shape: ``entries`` (O, C/groups, *cells), up to ``error · sizes``; ``count`` outputs a channel.

    ``merges``: per axis, (cells, taps) of 0 and 1; ``error`` is 0 where no two taps meet.
    """

    entries: F64
    sizes: F64
    merges: tuple[F64, ...]
    error: float
    count: int


def row_kinds(conv: Conv, axes: Sequence[Axis]) -> Iterator[RowKind]:
    """Every kind of row that the operator has: interior, borders, corners."""
    per_axis = [list(zip(*axis.patterns(), strict=True)) for axis in axes]
    sizes = np.abs(conv.weight)
    for combination in itertools.product(*per_axis):
        merges = tuple(_merge(labels) for labels, _ in combination)
        entries, absolute = conv.weight, sizes
        for a, merge in enumerate(merges, start=2):
            entries = np.moveaxis(np.tensordot(entries, merge, axes=(a, 1)), -1, a)
            absolute = np.moveaxis(np.tensordot(absolute, merge, axes=(a, 1)), -1, a)
        meets = any(bool(np.any(merge.sum(axis=1) > 1.0)) for merge in merges)
        error = gamma(sum(conv.kernel) + 2) if meets else 0.0
        yield RowKind(entries, absolute, merges, error, math.prod(int(count) for _, count in combination))


def conv_row_sums(conv: Conv, input_shape: Sequence[int]) -> tuple[F64, I64]:
    """``(values, counts)``: the ℓ1 norms of the rows of the operator, and how many rows have each.

    One value an output channel and kind of row (interior, borders, corners); relative error at most ``n u``, n the
    entries of a row (where padding makes taps meet, relative to the sum of their sizes). ``Σ counts`` = rows.

    >>> from certbound.ops import Conv
    >>> values, counts = conv_row_sums(Conv([[[1.0, 2.0, 4.0]]], padding=((1, 1),)), (1, 5))
    >>> sorted(zip(values.tolist(), counts.tolist()))
    [(3.0, 1), (6.0, 1), (7.0, 3)]
    """
    axes = conv_axes(conv, check_input_shape(conv, input_shape))
    values, counts = list[F64](), list[I64]()
    for kind in row_kinds(conv, axes):
        sums = np.abs(kind.entries).reshape(len(kind.entries), -1).sum(axis=1)
        values.append(sums)
        counts.append(np.full(len(sums), kind.count, dtype=np.int64))
    return np.concatenate(values), np.concatenate(counts)


def conv_frobenius(conv: Conv, input_shape: Sequence[int]) -> tuple[float, float]:
    """``(low, high)`` around ``‖A‖_F`` of the operator: every entry counted as often as it occurs.

    >>> from certbound.ops import Conv
    >>> low, high = conv_frobenius(Conv([[[1.0, 2.0, 4.0]]], padding=((1, 1),)), (1, 5))  # 4·1 + 5·4 + 4·16 = 88
    >>> low <= 88**0.5 <= high, high - low < 1e-14
    (True, True)
    """
    check_arithmetic()
    shape = check_input_shape(conv, input_shape)
    s = Scaled.of(conv.weight)
    total_low = total_high = Fraction(0)
    for kind in row_kinds(with_weight(conv, s.matrix), conv_axes(conv, shape)):
        below, above = enclose_square_sum(kind.entries)
        if kind.error:
            # ‖exact − computed‖_F <= error ‖sizes‖_F
            off = up(kind.error * quick_norm(kind.sizes)[1])
            root_low, root_high = max(0.0, down(sqrt_down(below) - off)), up(sqrt_up(above) + off)
            below, above = down(root_low * root_low), up(root_high * root_high)
        total_low += Fraction(below) * kind.count
        total_high += Fraction(above) * kind.count
    low, high = float(total_low), float(total_high)
    low, high = low if Fraction(low) <= total_low else down(low), high if Fraction(high) >= total_high else up(high)
    if s.lost:  # each row loses at most `lost` per tap combination: far below the smallest digit
        loss = up(s.lost * math.prod(conv_output_shape(conv, shape)))
        return s.back(max(0.0, down(sqrt_down(low) - loss)), up(sqrt_up(high) + loss))
    return s.back(sqrt_down(low), sqrt_up(high))


def enclose_conv_inf_norm(conv: Conv, axes: Sequence[Axis], relative_error: float = 0.0) -> tuple[float, float]:
    """``(low, high)`` around ``‖A‖_∞``, the largest ℓ1 norm of a row; kernel entries below 2.

    Neighbouring floats, but for ties by the hundred. Where padding lets taps meet, they are added before their absolute
    value is taken: the sign of each entry is that of a sum that was rounded once.
    """
    kinds = list(row_kinds(conv, axes))
    sums = np.stack([np.abs(kind.entries).reshape(len(kind.entries), -1).sum(axis=1) for kind in kinds])
    sizes = np.stack([kind.sizes.reshape(len(kind.sizes), -1).sum(axis=1) for kind in kinds])
    g = gamma(2 * conv.weight[0].size + sum(conv.kernel) + 8)
    error = 2.0 * g * sizes + conv.weight[0].size * TINY
    above, below = sums + error, float(np.max(sums - error))
    places = np.argwhere(above >= below)
    ends = [_exact_row(conv, kinds[k], o) for k, o in places[:_EXACT_ROWS].tolist()]
    low, high = max(e[0] for e in ends), max(e[1] for e in ends)
    if len(places) > len(ends):
        high = max(high, float(up(np.array(above.max()))))
    if relative_error:
        widened = up(relative_error * up(float(sizes.max()) * (1.0 + 2.0 * g)))
        low, high = max(0.0, down(low - widened)), up(high + widened)
    return low, high


def _exact_row(conv: Conv, kind: RowKind, channel: int) -> tuple[float, float]:
    """``Σ |entry|`` of one row, rounded down and up once."""
    if not kind.error:
        return enclose_sum(np.abs(kind.entries[channel]), exact=True)
    terms: list[float] = []
    axes = len(kind.merges)
    for cell in itertools.product(*(range(len(m)) for m in kind.merges)):
        taps = np.ix_(*(np.flatnonzero(m[i]) for m, i in zip(kind.merges, cell, strict=True)))
        for filters in conv.weight[channel]:
            values = np.asarray(filters[taps] if axes else filters).ravel().tolist()
            sign = math.copysign(1.0, math.fsum(values))
            terms += [sign * v for v in values]
    return enclose_sum(np.array(terms), exact=True)


def conv_kernel_norm(conv: Conv) -> float:
    """``‖K‖_2`` of the kernel reshaped to (out, in/groups · taps): the papers' statistic (numerical).

    With groups: the whole (out, in/groups · taps) matrix, as papers reshape it. It is no upper bound of the operator:
    see the top of this module for the inequalities between the two.

    >>> from certbound.ops import Conv
    >>> conv_kernel_norm(Conv([[[3.0, 4.0]]]))
    5.0
    """
    values, scale = singular_values(conv.matrix)
    return float(values[0]) * scale


def underflow_allowance(scaled: Scaled, conv: Conv, shape: Sequence[int]) -> float:
    """Bound of the norm (2, ∞ or Frobenius) of the operator that was lost when its kernel was scaled."""
    if not scaled.lost:
        return 0.0
    entries = math.prod(conv.kernel) * math.prod(conv_output_shape(conv, shape))
    return up(up(scaled.lost * entries) + TINY)


def torus_singular_values(conv: Conv, input_shape: Sequence[int]) -> F64:
    """Numbers, decreasing, of which the i-th is at least ``σ_i(A)``, by LAPACK on the torus (numerical).

    A is a compression of an operator C on the torus (:mod:`certbound.norms.conv_torus`, θ = 1/2), so
    ``σ_i(A) <= σ_i(C)`` for every i; with padding by copies times their factor. There are as many as the torus has: at
    least ``min`` of A's sides. Cost: one SVD of (O, C·s^d) for half of the frequencies.

    >>> from certbound.ops import Conv
    >>> torus_singular_values(Conv([[[2.0]]]), (1, 3)).tolist()
    [2.0, 2.0, 2.0]
    """
    # imported here: it uses this module
    from certbound.norms.conv_torus import singular_values_above

    s = Scaled.of(conv.weight)
    return singular_values_above(with_weight(conv, s.matrix), check_input_shape(conv, input_shape)) * s.scale
