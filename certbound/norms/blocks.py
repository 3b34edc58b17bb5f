"""Lipschitz constants of single operations of a :class:`~certbound.graph.Graph`, ℓ2 → ℓ2 and ℓ∞ → ℓ∞: rigorous.

Every number is an upper bound in exact real arithmetic of the operation as stored, rounded outward; where the word
*exact* stands, the supremum over all inputs is that number (up to the last digit). Values are vectors of all their
entries: the ℓ2 norm of an image is the root of the sum of all squares.

Convolutions are :func:`certbound.norms.operator.operator_norm_upper`. What is here:

====================  ======================================  =====================================
operation             ℓ2                                      ℓ∞
====================  ======================================  =====================================
moving entries        √(largest multiplicity)                 1
MaxPool               √(largest number of windows an input    1
                      is in)
AvgPool, Adaptive     Π of the norms of the axes' matrices    the same
Mean over n           1/√n                                    1
Softmax               1/2                                     1/2
LayerNorm             max|γ|/√ε                               :func:`layer_norm_constant`
Pointwise, Clip       largest slope                           largest slope
====================  ======================================  =====================================
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from certbound.activations import Activation
from certbound.arrays import F64
from certbound.bound import multiply_up
from certbound.norms.verified import enclose_frobenius_norm, enclose_inf_norm, spectral_norm_above
from certbound.ops import AdaptiveAvgPool, AvgPool, BatchNorm, Clip, LayerNorm, MaxPool, Mean, Pads, Scale, Shape
from certbound.rounding import Interval, U, down, enclose_norm, sqrt_up, up

# ---------------------------------------------------------------- factors per channel


@dataclass(frozen=True, eq=False)
class Factors:
    """Numbers ``value``, each within ``[low, high]`` in size and of the sign of ``value``: of a diagonal map.

    >>> batch_norm_factors(BatchNorm([0.0], [3.0], 1.0)).value
    array([0.5])
    """

    value: F64
    low: F64
    high: F64

    @classmethod
    def exact(cls, value: F64) -> Factors:
        """Numbers that are what they are."""
        return cls(value, np.abs(value), np.abs(value))

    def times(self, other: Factors) -> Factors:
        """The product, rounded outward."""
        size = Interval(self.low, self.high) * Interval(other.low, other.high)
        with np.errstate(over="ignore", under="ignore"):
            return Factors(self.value * other.value, size.low, size.high)

    @property
    def largest(self) -> float:
        """The diagonal map's norm, in ℓ2 as in ℓ∞: the largest size."""
        return float(np.max(self.high, initial=0.0))


def batch_norm_factors(op: BatchNorm) -> Factors:
    """``weight/√(variance + eps)`` of every channel, enclosed: the sum, the root and the quotient are rounded.

    >>> f = batch_norm_factors(BatchNorm([0.0], [2.0], 0.0, [3.0]))
    >>> bool(f.low[0] < 3 / 2**0.5 < f.high[0]), float(f.high[0] - f.low[0]) < 3e-15
    (True, True)
    """
    total = op.variance + op.eps
    root = Interval(down(total), up(total)).sqrt()
    size = Interval.of(1.0 if op.weight is None else np.abs(op.weight)) / root
    with np.errstate(over="ignore"):
        return Factors(op.scale, np.broadcast_to(size.low, total.shape), np.broadcast_to(size.high, total.shape))


def scale_factors(op: Scale) -> Factors:
    """``factor``, or ``1/factor`` enclosed, in the shape of the operation's constant."""
    if not op.divides:
        return Factors.exact(op.factor)
    size = Interval.of(1.0) / Interval.of(np.abs(op.factor))
    with np.errstate(over="ignore"):
        return Factors(1.0 / op.factor, size.low, size.high)


def scaled_kernel(weight: F64, rows: Factors | None, columns: Factors | None) -> tuple[F64, F64 | None]:
    """``(K', E)``: the kernel with every output and every input channel times its factor, and its entrywise error.

    ``weight`` has outputs on axis 0 and inputs on axis 1 (``columns`` counts those of axis 1). A convolution between
    two diagonal maps is the convolution with this kernel, up to E: about 4u of each entry for a batch normalisation.

    >>> kernel, error = scaled_kernel(np.array([[2.0, 4.0]]), Factors.exact(np.array([0.5])), None)
    >>> kernel, bool(np.all(error < 1e-15))
    (array([[1., 2.]]), True)
    """
    if rows is None and columns is None:
        return weight, None
    size, value = Interval.of(np.abs(weight)), weight
    for factors, shape in (
        (rows, (-1, *(1,) * (weight.ndim - 1))),
        (columns, (1, -1, *(1,) * (weight.ndim - 2))),
    ):
        if factors is None:
            continue
        size = size * Interval(factors.low.reshape(shape), factors.high.reshape(shape))
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            value = value * factors.value.reshape(shape)
    here = np.abs(value)
    with np.errstate(invalid="ignore"):
        error = np.maximum(size.high - here, here - size.low)
    error = np.where((here == 0.0) & (size.high == 0.0), 0.0, up(np.maximum(error, 0.0) * (1.0 + 4 * U)))
    return value, error


def kernel_error_norm(error: F64 | None, norm: float, groups: int, multiplicity: int) -> float:
    """Bound of the norm of every convolution whose kernel is at most ``error`` in size, entry by entry.

    Proof. A row of the operator holds each entry of one output channel's kernel at most once (padding that repeats
    inputs adds some of them up), so its ℓ1 norm is at most the sum over them: that is ``‖·‖_∞``. A column holds each
    entry of one input channel at most ``multiplicity`` times, the number of copies of one pixel in the padded image:
    ``‖·‖_1``. And ``‖A‖_2 <= √(‖A‖_1 ‖A‖_∞)``.

    >>> round(kernel_error_norm(np.full((1, 1, 3), 1.0), 2.0, 1, 1), 12)
    3.0
    """
    if error is None:
        return 0.0
    if not bool(np.all(np.isfinite(error))):
        return math.inf
    rows = enclose_inf_norm(error.reshape(len(error), -1))[1]
    if math.isinf(norm):
        return rows
    grouped = error.reshape(groups, len(error) // groups, error.shape[1], -1)
    columns = enclose_inf_norm(grouped.transpose(0, 2, 1, 3).reshape(groups * error.shape[1], -1))[1]
    return sqrt_up(up(rows * up(columns * multiplicity)))


# ---------------------------------------------------------------- moving and pooling


def multiplicity_constant(count: int, norm: float) -> float:
    """Of a map that copies entries, each at most ``count`` times: exact.

    ``‖y‖² = Σ_i m_i x_i² <= count ‖x‖²``, attained at the entry that is copied most; ``‖y‖_∞ <= ‖x‖_∞``.

    >>> multiplicity_constant(4, 2.0), multiplicity_constant(4, math.inf), multiplicity_constant(0, 2.0)
    (2.0, 1.0, 0.0)
    """
    if count == 0:
        return 0.0
    return 1.0 if math.isinf(norm) else sqrt_up(float(count))


def windows_of_an_input(op: MaxPool, sizes: Shape) -> int:
    """The largest number of windows that one input of a pooled image of these spatial sizes belongs to.

    An input is in a window iff it is so along every axis, so the largest product is the product of the largest.

    >>> windows_of_an_input(MaxPool((3, 3), (2, 2), ((1, 1), (1, 1))), (7, 7))  # odd rows and columns: in two
    4
    """
    total = 1
    spatial = op.output_shape((1, 1, *sizes))[2:]
    for n, out, k, s, d, (low, _) in zip(sizes, spatial, op.kernel, op.stride, op.dilation, op.padding, strict=True):
        reads = (np.arange(out)[:, None] * s + np.arange(k)[None] * d - low).reshape(-1)
        inside = reads[(reads >= 0) & (reads < n)]
        total *= int(np.bincount(inside).max(initial=0))
    return total


def max_pool_constant(op: MaxPool, norm: float, shape: Shape) -> float:
    """Max-pooling of a value of this shape: √(largest number of windows of one input) in ℓ2, 1 in ℓ∞: exact.

    Proof. ``|max_W x − max_W y| <= max_{i∈W} |x_i − y_i|``: that is ℓ∞. With d = x − y, the square of the ℓ2 norm of
    the difference is at most ``Σ_W max_{i∈W} d_i² <= Σ_W Σ_{i∈W} d_i² = Σ_i m_i d_i² <= max_i m_i ‖d‖²``, m_i the
    number of windows with input i. Attained: at an image with one entry t > 0 where m_i is largest and zeros elsewhere
    all these m_i outputs are t, so moving it changes the output by √m_i as much. ∎  A padded border adds no input.

    >>> max_pool_constant(MaxPool((3, 3), (2, 2), ((1, 1), (1, 1))), 2.0, (1, 8, 112, 112))
    2.0
    """
    return multiplicity_constant(windows_of_an_input(op, shape[2:]), norm)


def average_matrices(op: AvgPool | AdaptiveAvgPool, sizes: Shape) -> tuple[F64, ...]:
    """For each spatial axis the matrix of averages, entries rounded once; the map is their Kronecker product.

    So for AvgPool too: the number of pixels of a window (with or without padding) is a product over the axes.

    >>> average_matrices(AvgPool((2,), (1,), ((0, 0),)), (3,))[0].tolist()
    [[0.5, 0.5, 0.0], [0.0, 0.5, 0.5]]
    """
    if isinstance(op, AdaptiveAvgPool):
        return op.matrices(sizes)
    found: list[F64] = []
    spatial = op.output_shape((1, 1, *sizes))[2:]
    for n, out, k, s, (low, _) in zip(sizes, spatial, op.kernel, op.stride, op.padding, strict=True):
        reads = np.arange(out)[:, None] * s + np.arange(k)[None] - low
        matrix = np.zeros((out, n))
        for j, row in enumerate(reads):
            matrix[j, row[(row >= 0) & (row < n)]] = 1.0
        counts = np.full((out, 1), float(k)) if op.count_include_pad else matrix.sum(axis=1, keepdims=True)
        found.append(matrix / counts)
    return tuple(found)


def average_norm(matrix: F64, norm: float) -> float:
    """Norm of one matrix of averages (entries >= 0, each rounded once).

    Where every input is in at most one window the rows are orthogonal, and the norm is the largest row's: exact. The
    rounding E has ``0 <= |E| <= u A`` entry by entry, and so ``‖E‖ <= ‖|E|‖ <= u ‖A‖``, since the norms grow with
    entries >= 0. Beyond 64 rows and columns ``√(‖A‖_1 ‖A‖_∞)`` is taken (there it is close, and needs numpy only).

    >>> average_norm(np.full((1, 4), 0.25), 2.0) - 0.5 < 1e-15
    True
    """
    if math.isinf(norm):
        value = enclose_inf_norm(matrix)[1]
    elif int(np.count_nonzero(matrix, axis=0).max(initial=0)) <= 1:
        value = max(enclose_norm(row)[1] for row in matrix)
    elif min(matrix.shape) <= 64:
        value = spectral_norm_above(matrix)
    else:
        value = sqrt_up(up(enclose_inf_norm(matrix)[1] * enclose_inf_norm(np.ascontiguousarray(matrix.T))[1]))
    return up(value * (1.0 + 2 * U))


def average_pool_constant(op: AvgPool | AdaptiveAvgPool, norm: float, shape: Shape) -> float:
    """Average pooling of a value of this shape: the norm of a Kronecker product, the product of the axes' norms.

    Channels do not mix (a block diagonal operator with equal blocks). ``‖A ⊗ B‖_p = ‖A‖_p ‖B‖_p`` for p = 2 (singular
    values multiply) and ∞ (row sums multiply).

    >>> round(average_pool_constant(AvgPool((2, 2), (2, 2), ((0, 0), (0, 0))), 2.0, (1, 3, 8, 8)), 12)
    0.5
    >>> round(average_pool_constant(AdaptiveAvgPool((1, 1)), 2.0, (1, 512, 4, 4)), 12)  # one mean of 16
    0.25
    """
    total = 1.0
    for matrix in average_matrices(op, shape[2:]):
        total = multiply_up(total, average_norm(matrix, norm))
    return total


def mean_constant(op: Mean, norm: float, shape: Shape) -> float:
    """Means over disjoint sets of n numbers each: ``1/√n`` in ℓ2 (Cauchy–Schwarz, attained by equal numbers), 1 in ℓ∞.

    >>> round(mean_constant(Mean((-1,)), 2.0, (1, 3, 16)), 12), mean_constant(Mean((-1,)), math.inf, (1, 3, 16))
    (0.25, 1.0)
    """
    if math.isinf(norm):
        return 1.0
    return float((Interval.of(1.0) / Interval.of(float(op.count(shape))).sqrt()).high)


# ---------------------------------------------------------------- softmax and normalisation


def softmax_constant(n: int) -> float:
    """Softmax along rows of n numbers: 1/2 in ℓ2 and in ℓ∞ (0 for n = 1). Exact, in the limit.

    Proof. The Jacobian of a row is ``J = diag(p) − p pᵀ``. Row i has the ℓ1 norm
    ``p_i (1 − p_i) + p_i Σ_{j≠i} p_j = 2 p_i (1 − p_i) <= 1/2``: ``‖J‖_∞``. J is symmetric, so ``‖J‖_2 <= ‖J‖_∞``. Rows
    do not mix. At p = (1/2, 1/2, 0, …), reached for n = 2 and approached for n > 2, both norms are 1/2. ∎
    Source: P. Nair, Softmax is 1/2-Lipschitz, arXiv:2510.23012 (for every ℓp).

    >>> softmax_constant(5), softmax_constant(1)
    (0.5, 0.0)
    """
    return 0.0 if n == 1 else 0.5


def softmax_local_constant(low: F64, high: F64, norm: float) -> float:
    """Softmax where every probability is known to lie in ``[low, high]``, entry by entry (any shape, at most 1).

    ``‖J‖_∞ = max_i 2 p_i (1 − p_i)``, as in :func:`softmax_constant`; in ℓ2 also ``0 ⪯ J ⪯ diag(p)``, so
    ``‖J‖_2 <= max p``.

    >>> round(softmax_local_constant(np.array([0.1, 0.8]), np.array([0.2, 0.9]), math.inf), 12)  # 2 · 0.2 · 0.8
    0.32
    """
    # 2 p (1 − p) is largest at the p of the interval that is nearest to 1/2
    nearest = np.clip(0.5, low, high)
    sizes = Interval.of(2.0) * Interval.of(nearest) * Interval.of(down(1.0 - nearest), up(1.0 - nearest))
    value = min(0.5, float(np.max(sizes.high, initial=0.0)))
    return value if math.isinf(norm) else min(value, float(np.max(high, initial=0.0)))


def layer_norm_constant(op: LayerNorm, norm: float, n: int, variance: float = 0.0, *, scaled: bool = True) -> float:
    """Layer normalisation of rows of n numbers whose variance is at least ``variance``; ``scaled=False``: without γ.

    With c = x − mean, v = ‖c‖²/n, s = √(v + ε), P = I − 11ᵀ/n and a = c/s the Jacobian is

    ``J = diag(γ) (P − a aᵀ/n)/s``.

    *ℓ2*: P − aaᵀ/n has the eigenvalue ``1 − v/s² = ε/s²`` along c, 0 along 1 and 1 elsewhere, so
    ``‖J‖_2 <= max|γ|/s <= max|γ|/√(variance + ε)``: for equal γ attained at v = variance where n >= 3, and at
    variance = 0 where n = 2; n = 1 gives the constant map, 0.

    *ℓ∞*: row i has the ℓ1 norm ``(|1 − 1/n − a_i²/n| + Σ_{j≠i} |1 + a_i a_j|/n)/s``. Let ``τ = v/(v + ε)``, so that
    ``‖a‖² = n τ`` and ``1/s = √((1 − τ)/ε)``; Σ a = 0. Two bounds, of which the smaller is taken:

    - Cauchy–Schwarz over j ≠ i, with ``Σ_{j≠i} (1 + a_i a_j)² = n − 1 + (nτ − 2) w − w²`` for ``w = a_i²``, and then
      over w: the row is at most ``1 − τ/2 + h(τ)``, ``h(τ) = √(1 − τ + n τ²/4)``, over s. With 1/s that is maximised
      over ``τ >= variance/(variance + ε)`` piece by piece: h is convex, the other factors fall.
    - ``‖row i of P‖_1 + |a_i| ‖a‖_1/n <= A + B τ`` with ``A = 2(n − 1)/n``, ``B = (1 + √n)/2`` (better for n up to 4):
      ``f(τ) = √(1 − τ) (A + B τ)`` rises to ``τ* = (2B − A)/(3B)`` and falls from there.

    Both grow as ``0.19 √n max|γ|/√ε``, where Cauchy–Schwarz on a whole row would give ``√(n − 1)``.

    >>> round(layer_norm_constant(LayerNorm(1, 0.01), 2.0, 8), 9)
    10.0
    >>> layer_norm_constant(LayerNorm(1, 0.01), 2.0, 1), round(layer_norm_constant(LayerNorm(1, 0.01), 2.0, 8, 0.08), 9)
    (0.0, 3.333333333)
    """
    if n == 1:
        return 0.0
    gain = 1.0 if op.weight is None or not scaled else float(np.max(np.abs(op.weight)))
    eps, least = Interval.of(op.eps), Interval.of(variance)
    one, size = Interval.of(1.0), Interval.of(float(n))
    if not math.isinf(norm):
        return multiply_up(gain, float((one / (least + eps).sqrt()).high))
    tau = least / (least + eps)
    shrunk = (least + eps).sqrt()
    bounds = [float((_linf_rows(n, float(tau.low)) / eps.sqrt()).high)]
    here, end = Interval.of(float(tau.low)), Interval.of(1.0)
    bounds.append(float(((one - here / Interval.of(2.0) + _root(n, here).maximum(_root(n, end))) / shrunk).high))
    A = Interval.of(2.0) * Interval.of(float(n - 1)) / size
    B = (one + size.sqrt()) / Interval.of(2.0)
    top = (Interval.of(2.0) * B - A) / (Interval.of(3.0) * B)
    if float(tau.low) <= float(top.high):
        # at τ* or, should rounding have hidden it, beyond: f(τ*) = 2/3 (A + B) √((A + B)/(3B)) is the whole maximum
        peak = Interval.of(2.0) / Interval.of(3.0) * (A + B) * ((A + B) / (Interval.of(3.0) * B)).sqrt()
        bounds.append(float((peak / eps.sqrt()).high))
    else:  # f falls here: f(τ)/√ε = (A + B τ)/√(v + ε)
        bounds.append(float(((A + B * tau.minimum(one)) / shrunk).high))
    return multiply_up(gain, min(bounds))


def _root(n: int, tau: Interval) -> Interval:
    """``h(τ) = √(1 − τ + n τ²/4)``."""
    return (Interval.of(1.0) - tau + Interval.of(float(n)) * tau * tau / Interval.of(4.0)).sqrt()


def _linf_rows(n: int, least: float) -> Interval:
    """At least the maximum of ``√(1 − τ) (1 − τ/2 + h(τ))`` over τ in [least, 1], on 2000 pieces."""
    edges = np.linspace(max(0.0, min(least, 1.0)), 1.0, 2001)
    first, last = Interval.of(edges[:-1]), Interval.of(edges[1:])
    falling, one = (Interval.of(1.0) - first).sqrt(), Interval.of(1.0)
    values = falling * (one - first / Interval.of(2.0) + _root(n, first).maximum(_root(n, last)))
    return Interval.of(float(np.max(values.high)))


def activation_constant(activation: Activation) -> float:
    """The largest slope in size, over all inputs.

    >>> activation_constant(Activation("relu")), 1.128 < activation_constant(Activation("gelu")) < 1.13
    (1.0, True)
    """
    low, high = activation.slopes()
    return max(abs(float(low)), abs(float(high)))


def clip_constant(op: Clip) -> float:
    """1, or 0 where both ends are one number.

    >>> clip_constant(Clip(0.0, 6.0)), clip_constant(Clip(1.0, 1.0))
    (1.0, 0.0)
    """
    return 1.0 if op.low < op.high else 0.0


def matrix_norm_up(matrix: F64, norm: float, error: F64 | None = None) -> float:
    """``‖W‖_p``, p in {2, ∞}, of every matrix within ``error`` of W; ∞ for entries that are not finite.

    >>> matrix_norm_up(np.array([[3.0, 4.0]]), 2.0)
    5.0
    """
    if not bool(np.all(np.isfinite(matrix))) or (error is not None and not bool(np.all(np.isfinite(error)))):
        return math.inf
    value = enclose_inf_norm(matrix)[1] if math.isinf(norm) else spectral_norm_above(matrix)
    if error is None:
        return value
    return up(value + (enclose_inf_norm(error) if math.isinf(norm) else enclose_frobenius_norm(error))[1])


def padding_multiplicity(sizes: Sequence[int], padding: Pads, mode: str) -> int:
    """Copies of one pixel in an image padded by ``mode`` (numpy's word).

    >>> padding_multiplicity((4,), ((2, 0),), "edge"), padding_multiplicity((4,), ((2, 0),), "constant")
    (3, 1)
    """
    if mode == "constant":
        return 1
    total = 1
    for n, pads in zip(sizes, padding, strict=True):
        copies = np.pad(np.arange(n), pads, mode=mode)  # type: ignore[call-overload]
        total *= int(np.bincount(copies).max())
    return total


__all__ = [
    "Factors", "activation_constant", "average_matrices", "average_norm", "average_pool_constant",
    "batch_norm_factors", "clip_constant", "kernel_error_norm", "layer_norm_constant", "matrix_norm_up",
    "max_pool_constant", "mean_constant", "multiplicity_constant", "padding_multiplicity", "scale_factors",
    "scaled_kernel", "softmax_constant", "softmax_local_constant", "windows_of_an_input",
]  # fmt: skip
