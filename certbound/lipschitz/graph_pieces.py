"""Linear pieces of a graph whose norm has to be proved: a matrix, a convolution, averages, each with what proves it.

Diagonal maps next to a layer (batch normalisation, factors per channel) are folded into it: one map, with an enclosed
rounding error, instead of a product of two norms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from certbound.arrays import F64
from certbound.bound import multiply_up
from certbound.lipschitz.product import error_norm, proves_norm
from certbound.norms.blocks import (
    Factors,
    average_matrices,
    average_norm,
    kernel_error_norm,
    matrix_norm_up,
    padding_multiplicity,
    scaled_kernel,
)
from certbound.norms.conv_certificate import ConvNormCertificate
from certbound.norms.convolution import conv_digest
from certbound.norms.operator import conv_norm_bound
from certbound.ops import PADDING_MODES, AdaptiveAvgPool, AvgPool, Conv, Shape
from certbound.rounding import U, down, up
from certbound.types import Sense

RELATIVE_ERROR = 16 * U
"""Of a folded kernel, entry by entry; what is further off (sums that cancel, underflow) is bounded apart."""


@dataclass(frozen=True)
class Proof:
    """A proved norm and how: of a convolution the method and grid of its certificate."""

    value: float
    method: str = ""
    points: tuple[int, ...] = ()
    shifts: tuple[int, ...] = ()


class Piece(Protocol):
    """A linear map with a norm."""

    def prove(self, norm: float, tier: str) -> Proof:
        """Find an upper bound of the norm, and its proof."""
        ...

    def proves(self, norm: float, proof: Proof) -> bool:
        """True proves that ``proof.value`` bounds the norm; no SVD, no search."""
        ...


@dataclass(frozen=True, eq=False)
class MatrixPiece:
    """``x ↦ W x`` for a W within ``error``, entry by entry, of ``weight``.

    >>> piece = MatrixPiece(np.array([[3.0, 4.0]]))
    >>> piece.prove(2.0, "fast").value, piece.proves(2.0, Proof(5.0)), piece.proves(2.0, Proof(4.9))
    (5.0, True, False)
    """

    weight: F64
    error: F64 | None = None

    def prove(self, norm: float, tier: str) -> Proof:
        """By a verified Cholesky factorisation, or sums."""
        return Proof(matrix_norm_up(self.weight, norm, self.error))

    def proves(self, norm: float, proof: Proof) -> bool:
        """As ``prove``, from the value."""
        if proof.value == math.inf or proof != Proof(proof.value):
            return proof == Proof(math.inf)
        arrays = (self.weight,) if self.error is None else (self.weight, self.error)
        finite = all(bool(np.all(np.isfinite(a))) for a in arrays)
        return finite and proves_norm(self.weight, norm, proof.value, error_norm(self.error, norm))


@dataclass(frozen=True, eq=False)
class ConvPiece:
    """A convolution on images of shape ``input_shape`` (C, *spatial); its kernel is within ``error`` of the stored."""

    conv: Conv
    input_shape: Shape
    error: F64 | None = None

    def _off(self, norm: float) -> tuple[float, float]:
        """The relative error that the proof carries, and a bound of the norm of what is further off."""
        if self.error is None:
            return 0.0, 0.0
        rest = np.where(self.error <= RELATIVE_ERROR * np.abs(self.conv.weight), 0.0, self.error)
        copies = padding_multiplicity(self.input_shape[1:], self.conv.padding, PADDING_MODES[self.conv.padding_mode])
        return RELATIVE_ERROR, kernel_error_norm(rest, norm, self.conv.groups, copies) if rest.any() else 0.0

    def prove(self, norm: float, tier: str) -> Proof:
        """:func:`certbound.norms.operator.operator_norm_upper`."""
        if not bool(np.all(np.isfinite(self.conv.weight))):
            return Proof(math.inf)
        relative, rest = self._off(norm)
        bound = conv_norm_bound(self.conv, self.input_shape, norm, Sense.UPPER, tier, relative_error=relative)
        found = bound.certificate
        assert isinstance(found, ConvNormCertificate)
        value = found.value if rest == 0.0 else up(up(found.value + rest))
        return Proof(value, found.method, found.points, found.shifts)

    def proves(self, norm: float, proof: Proof) -> bool:
        """The grid or the factorisation again."""
        if proof.value == math.inf:
            return True
        if not bool(np.all(np.isfinite(self.conv.weight))):
            return False
        relative, rest = self._off(norm)
        value = proof.value if rest == 0.0 else down(proof.value - rest)
        return value >= 0.0 and ConvNormCertificate(
            conv_digest(self.conv, self.input_shape), self.input_shape, norm, Sense.UPPER, value,
            proof.method, proof.points, proof.shifts, None, relative,
        ).proves(self.conv)  # fmt: skip


@dataclass(frozen=True, eq=False)
class AveragePiece:
    """Average pooling of images of these spatial sizes.

    >>> from certbound.ops import AvgPool
    >>> round(AveragePiece(AvgPool((2,), (2,), ((0, 0),)), (4,)).prove(2.0, "fast").value, 12)  # 1/√2
    0.707106781187
    """

    op: AvgPool | AdaptiveAvgPool
    sizes: Shape

    def prove(self, norm: float, tier: str) -> Proof:
        """The product over the axes, with room for another machine's factorisation."""
        value = 1.0
        for matrix in average_matrices(self.op, self.sizes):
            value = multiply_up(value, average_norm(matrix, norm))
        return Proof(value * (1.0 + 2.0**-40))

    def proves(self, norm: float, proof: Proof) -> bool:
        """Computed again."""
        return proof == Proof(proof.value) and proof.value >= self.prove(norm, "fast").value * (1.0 - 2.0**-41)


# ---------------------------------------------------------------- folding


def linear_piece(weight: F64, rows: Factors | None, columns: Factors | None) -> MatrixPiece:
    """``diag(rows) W diag(columns)`` as one matrix."""
    return MatrixPiece(*scaled_kernel(weight, rows, columns))


def conv_piece(conv: Conv, shape: Shape, rows: Factors | None, columns: Factors | None) -> ConvPiece:
    """A convolution between factors per channel; ``shape``: (1, C, *spatial) of its input."""
    if columns is not None and conv.groups > 1:
        # axis 1 of the kernel counts channels within a group: one row of factors an output
        width = conv.in_channels // conv.groups
        split = [np.repeat(a.reshape(conv.groups, width), len(conv.weight) // conv.groups, axis=0)
                 for a in (columns.value, columns.low, columns.high)]  # fmt: skip
        weight, error = _scaled_rowwise(conv.weight, rows, Factors(*split))
    else:
        weight, error = scaled_kernel(conv.weight, rows, columns)
    return ConvPiece(with_finite(conv, weight), tuple(shape[1:]), error)


def _scaled_rowwise(weight: F64, rows: Factors | None, columns: Factors) -> tuple[F64, F64 | None]:
    """As ``scaled_kernel`` with factors (out, in/groups): output by output."""
    parts = [
        scaled_kernel(
            weight[o : o + 1],
            None if rows is None else Factors(rows.value[o : o + 1], rows.low[o : o + 1], rows.high[o : o + 1]),
            Factors(columns.value[o], columns.low[o], columns.high[o]),
        )
        for o in range(len(weight))
    ]
    return np.concatenate([w for w, _ in parts]), np.concatenate([e for _, e in parts if e is not None])


def with_finite(conv: Conv, weight: F64) -> Conv:
    """The geometry around another kernel; one that overflowed keeps its ∞ (its norm is ∞ then)."""
    if bool(np.all(np.isfinite(weight))):
        return replace(conv, weight=weight.copy(), bias=None)
    plain = replace(conv, bias=None)
    object.__setattr__(plain, "weight", np.where(np.isfinite(weight), weight, math.inf))
    return plain


# ---------------------------------------------------------------- sums of linear branches


@dataclass(frozen=True, eq=False)
class Branch:
    """One linear branch of a sum, with its sign: a matrix (``conv`` None), a convolution, or (``weight`` None) a
    diagonal map ``diag(rows)``, the identity for None.
    """

    negative: bool
    conv: Conv | None = None
    weight: F64 | None = None
    rows: Factors | None = None
    columns: Factors | None = None


def summed_matrix(branches: Sequence[Branch], n: int) -> MatrixPiece | None:
    """The sum of matrices and diagonal maps as one matrix; None where a branch is a convolution.

    >>> branches = [Branch(False), Branch(True, weight=np.eye(2))]  # x − I x
    >>> summed_matrix(branches, 2).prove(2.0, "fast").value < 1e-14
    True
    """
    if any(b.conv is not None for b in branches) or all(b.weight is None for b in branches):
        return None
    kernels: list[tuple[F64, F64 | None, bool]] = []
    for b in branches:
        weight = np.eye(n) if b.weight is None else b.weight
        if weight.shape != (n if b.weight is None else len(weight), n):
            return None
        kernels.append((*scaled_kernel(weight, b.rows, b.columns), b.negative))
    if len({k.shape for k, _, _ in kernels}) != 1:
        return None
    return MatrixPiece(*_sum(kernels))


def summed_convolution(branches: Sequence[Branch], shape: Shape, out: Shape) -> ConvPiece | None:
    """The sum of convolutions and diagonal maps as one convolution, where stride, groups and dilation allow.

    ``shape``: (1, C, *spatial) of the input, ``out`` of the sum. Zero padding only. None where they do not fit.
    """
    given = [b.conv for b in branches if b.conv is not None]
    if not given or any(b.weight is not None for b in branches):
        return None
    first = given[0]
    axes, channels = len(first.kernel), shape[1]
    same = all(c.stride == first.stride and c.groups == first.groups and c.padding_mode == "zeros" for c in given)
    plain = all(d == 1 or k == 1 for c in given for d, k in zip(c.dilation, c.kernel, strict=True))
    identity = any(b.conv is None for b in branches)
    if not same or not plain or (identity and (set(first.stride) != {1} or out != shape)):
        return None
    one = np.zeros((channels, channels // first.groups, *(1,) * axes))
    if identity:
        width = channels // first.groups
        one[np.arange(channels), np.arange(channels) % width] = 1.0
    # output j reads position j·stride + t − low: all kernels are written over the same range of t − low
    lows = [tuple(p[0] for p in c.padding) for c in given] + ([(0,) * axes] if identity else [])
    ends = [tuple(k - 1 - p[0] for k, p in zip(c.kernel, c.padding, strict=True)) for c in given]
    ends += [(0,) * axes] if identity else []
    low = tuple(max(x[a] for x in lows) for a in range(axes))
    end = tuple(max(x[a] for x in ends) for a in range(axes))
    if any(a + e < 0 for a, e in zip(low, end, strict=True)):
        return None
    kernels: list[tuple[F64, F64 | None, bool]] = []
    for b in branches:
        if b.conv is None:
            kernel = conv_piece(replace(first, weight=one, stride=(), padding=(), dilation=()), shape, b.rows, None)
            mine = (0,) * axes
        else:
            kernel, mine = conv_piece(b.conv, shape, b.rows, b.columns), tuple(p[0] for p in b.conv.padding)
        place = [
            (c - d, c + e + 1 - (k + c - d))
            for c, d, e, k in zip(low, mine, end, kernel.conv.kernel, strict=True)
        ]
        if any(min(p) < 0 for p in place):
            return None
        pads = ((0, 0), (0, 0), *place)
        error = None if kernel.error is None else np.pad(kernel.error, pads)
        kernels.append((np.pad(kernel.conv.weight, pads), error, b.negative))
    weight, error = _sum(kernels)
    length = weight.shape[2:]
    needed = [
        (m - 1) * s + k - n - c
        for m, s, k, n, c in zip(out[2:], first.stride, length, shape[2:], low, strict=True)
    ]
    conv = Conv(
        np.zeros_like(weight), None, first.stride, tuple((c, max(0, h)) for c, h in zip(low, needed, strict=True)),
        (), first.groups,
    )  # fmt: skip
    if conv.output_shape(shape) != out:
        return None
    return ConvPiece(with_finite(conv, weight), tuple(shape[1:]), error)


def _sum(kernels: Sequence[tuple[F64, F64 | None, bool]]) -> tuple[F64, F64]:
    """Of arrays with errors and signs; rounded once a term."""
    with np.errstate(over="ignore", invalid="ignore"):
        total, error = np.zeros_like(kernels[0][0]), np.zeros_like(kernels[0][0])
        for weight, off, negative in kernels:
            total = total - weight if negative else total + weight
            error = error + np.abs(total) * U + (0.0 if off is None else off)
        return total, up(error * (1.0 + 8 * len(kernels) * U))


__all__ = [
    "AveragePiece", "Branch", "ConvPiece", "MatrixPiece", "Piece", "Proof", "conv_piece", "linear_piece",
    "summed_convolution", "summed_matrix",
]  # fmt: skip
