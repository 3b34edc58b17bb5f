"""Theorem 3.1 on the layers of real models: matrices of any size, and convolutions as the operators that they are.

For a matrix A of shape (m outputs, n inputs), ``r = min(m, n)``, singular values σ and row ℓ1 norms ν:

* spectral: ``‖A‖_2 <= (1−ε_σ)/(1−β_σ) · √r/k_σ · ‖A‖_F``;
* neuron, derived form: ``‖A‖_∞ <= (1−ε_ν)/(1−β_ν) · (√(m k_r) + √(m s) ε_r)/k_ν · ‖A‖_F``, s the largest number of
  entries that a row has. (The theorem's n inputs bound s. Its proof needs ``‖tail of a row‖_1 <= √s ‖tail‖_2`` only, so
  that the zeros of a convolution's rows do not count. For a dense matrix s = n.)

**A convolution is read twice, and the two readings must not be mixed up.**

*Filters*: the kernel reshaped to (out, in/groups · taps), which the paper's statistics use. Theorem 3.1 holds for that
matrix; it is not the layer's operator, whose norm may be larger by up to √taps. No guarantee for the layer.

*Operator*: the matrix A that maps the image at its size (zero padding, stride, dilation, groups). Guaranteed. A is
never formed:

* **Rows.** The row of channel o at output position p holds the kernel's entries whose taps read inside the image, so
  rows of one channel differ only at the borders: for every kind of position (interior, borders, corners) one row is
  looked at, with the number of positions of that kind. ν, ``‖A‖_F`` and the row tails are exact (up to rounding).
* **Singular values**, where windows do not overlap and nothing is padded (1x1 kernels, patch embeddings): A is then,
  up to the order of rows and columns, ``K ⊗ I`` per group, and σ(A) is σ(K), each as often as there are positions.
* **Singular values elsewhere**: k = 1, where β is 0 by definition, and a number ``ε' <= ε`` in place of ε: the bound
  falls in ε, so a smaller one is allowed (a larger one is not: the trap of section 2). With ``U >= σ_1`` and
  ``0 < S <= Σσ_i``, ``1 − ε = σ_1/Σσ_i <= U/S``, so ``ε' = max(0, 1 − U/S)``. For S, by Hölder's inequality,
  ``Σσ² = Σ σ^{2/3} σ^{4/3} <= (Σσ)^{2/3} (Σσ⁴)^{1/3}``, that is ``Σσ >= ‖A‖_F³/√(Σσ⁴)``; and ``Σσ⁴ <= Q`` from
  :func:`fourth_moment` (zero padding), or ``Σσ⁴ <= U² ‖A‖_F²`` (always). The sharp form at k = 1 is
  ``‖A‖_F (1 + t)^{−1/2}``, ``t = (ε/(1−ε))²/(r−1)``: it falls in ε as well.
* **Lower bound** of ``‖A‖_2``: ``σ_1 >= √(1−ε²)/√k ‖A‖_F`` with any valid membership of q = 2: here k = r, ε = 0.

Source: Barsbey et al., ICLR 2026, Theorem 3.1; certbound theory, section 2.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from certbound import text
from certbound.arrays import F64, I64, power_of_two_scale
from certbound.compressibility import Dispersion
from certbound.norms.convolution import conv_axes, row_kinds
from certbound.norms.dense import rescale
from certbound.theorems.theorem31 import Part, sharp_constant
from certbound.types import Rigor, Sense

if TYPE_CHECKING:
    from certbound.ops import Conv

SVD_SIDE = 64
"""Matrices whose shorter side is at most this get an SVD, larger ones the eigenvalues of their Gram matrix."""

_CHUNK = 2**18  # entries of a matrix whose rows are sorted at once: they stay in the cache
_PLAIN = 2.0**200  # weights between 2^-200 and 2^200 need no scaling: their fourth powers are in range


@dataclass(frozen=True, eq=False)
class Weighted:
    """A vector >= 0 in which ``values[i]`` (decreasing) occurs ``counts[i]`` times: what Theorem 3.1 asks, at any k.

    >>> theta = Weighted.of(np.array([1.0, 3.0]), np.array([2, 1]))  # (3, 1, 1)
    >>> theta.length, theta.at(1)
    (3, (0.4, 0.6, 0.0, 0.0))
    >>> theta.at(2)  # kept 4 of 5; β_kth = 1 − 1/3, β_mean = 1 − 2/3
    (0.2, 0.8, 0.6666666666666667, 0.33333333333333337)
    """

    values: F64
    counts: I64

    @classmethod
    def of(cls, values: F64, counts: I64 | None = None) -> Weighted:
        """Sorted; every value once if there are no counts."""
        order = np.argsort(-values, kind="stable")
        many = np.ones(len(values), dtype=np.int64) if counts is None else counts
        return cls(values[order], many[order])

    @property
    def length(self) -> int:
        """Number of entries."""
        return int(self.counts.sum())

    @property
    def top(self) -> float:
        """The largest entry."""
        return float(self.values[0])

    @property
    def sum(self) -> float:
        """``Σ θ_i``."""
        return float(self.values @ self.counts)

    def at(self, k: int) -> tuple[float, float, float, float]:
        """``(ε, 1 − ε, β_kth, β_mean)`` at k (q = 1); the zero vector has ε = β = 0."""
        if self.top == 0.0:
            return 0.0, 1.0, 0.0, 0.0
        theta = self.values / power_of_two_scale(self.values)
        reached = np.cumsum(self.counts)
        i = int(np.searchsorted(reached, k))  # θ_(k) is values[i]
        inside = k - (int(reached[i - 1]) if i else 0)
        head = float(theta[:i] @ self.counts[:i]) + inside * float(theta[i])
        # summed without the head: a tiny tail keeps its digits
        tail = float(theta[i + 1 :] @ self.counts[i + 1 :]) + (int(self.counts[i]) - inside) * float(theta[i])
        beta_mean = 0.0 if k == 1 else max(0.0, 1.0 - head / (k * float(theta[0])))
        return tail / (head + tail), head / (head + tail), 1.0 - float(theta[i] / theta[0]), beta_mean


@dataclass(frozen=True)
class Numbers:
    """One part of Theorem 3.1 on one matrix or operator.

    ``norm``: the norm that is bounded (where it is not known exactly, its upper bound); ``epsilon``, ``beta``: as they
    entered; ``exact``: they are the tail ratio and the dispersion at k, else ``epsilon`` is at most and ``beta`` at
    least these, which is allowed; ``bound``, ``sharp``: upper bounds of the norm; ``lower``: the two-sided form's lower
    bound; ``slack``: bound / norm; ``vacuous``: no better than ``‖A‖_F`` (neuron part: ``√s ‖A‖_F``).
    """

    part: Part
    k: int
    epsilon: float
    beta: float
    exact: bool
    norm: float
    bound: float
    sharp: float
    lower: float
    vacuous: bool
    rigor: Rigor = Rigor.NUMERICAL
    k_row: int | None = None
    epsilon_row: float | None = None

    @property
    def slack(self) -> float:
        """``bound / norm``; 1 for a zero matrix."""
        return self.bound / self.norm if self.norm > 0.0 else 1.0

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        floats = ("epsilon", "beta", "norm", "bound", "sharp", "lower", "slack", "epsilon_row")
        return {
            "part": self.part, "k": self.k, **{name: text.json_number(getattr(self, name)) for name in floats},
            "exact": self.exact, "vacuous": self.vacuous, "rigor": str(self.rigor), "k_row": self.k_row,
        }  # fmt: skip


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of a matrix or an operator: ν, ``‖·‖_F``, ``tails[k_r − 1]`` = largest (2, k_r)-tail of a row.

    ``entries``: the largest number of entries that a row can have.
    """

    nu: Weighted
    frobenius: float
    tails: F64
    entries: int


def k_of(share: float | None, size: int) -> int:
    """``⌈share · size⌉``, at least 1; 1 without a share.

    >>> k_of(None, 512), k_of(0.1, 512), k_of(1.0, 7)
    (1, 52, 7)
    """
    # the ceiling of 0.1 · 30 = 3.0000000000000004 is meant to be 3
    return 1 if share is None else min(size, max(1, math.ceil(share * size * (1.0 - 2.0**-50))))


# ---------------------------------------------------------------- measuring


def moderate(weight: F64) -> tuple[F64, float]:
    """``(weight / scale, scale)``, scale a power of two: 1, without a copy, where nothing can over- or underflow.

    >>> moderate(np.array([[3.0]]))[1], moderate(np.array([[6e-300]]))[0].item() < 2
    (1.0, True)
    """
    top = max(float(weight.max(initial=0.0)), -float(weight.min(initial=0.0)))
    if top == 0.0 or 1.0 / _PLAIN < top < _PLAIN:
        return weight, 1.0
    scale = power_of_two_scale(weight)
    return weight / scale, scale


def matrix_singular_values(W: F64) -> F64:
    """All ``min(m, n)`` singular values, decreasing (numerical).

    Above :data:`SVD_SIDE` as square roots of the eigenvalues of the smaller Gram matrix: five times faster, and no copy
    of W. An eigenvalue is off by about ``n u σ_1²``, so σ_i by ``n u σ_1²/(2 σ_i)``: 1e-10 σ_1 at σ_i = 1e-3 σ_1,
    n = 2000. What is below ``2 √(n u) σ_1`` has no digits and becomes 0: that makes ε smaller, which is allowed.

    >>> matrix_singular_values(np.array([[3.0, 0.0], [0.0, 4.0], [0.0, 0.0]])).tolist()
    [4.0, 3.0]
    """
    if min(W.shape) <= SVD_SIDE:
        return np.asarray(np.linalg.svd(W, compute_uv=False), dtype=np.float64)
    gram = W @ W.T if W.shape[0] <= W.shape[1] else W.T @ W
    values: F64 = np.asarray(np.linalg.eigvalsh(gram)[::-1], dtype=np.float64)
    return np.sqrt(np.where(values > 4.0 * max(W.shape) * 2.0**-53 * values[0], values, 0.0))


def largest_tails(W: F64) -> F64:
    """:func:`certbound.compressibility.row_tails` in chunks of rows: ``ε_r(k) = max_i`` of (2, k)-tail ratios.

    >>> largest_tails(np.array([[3.0, 4.0], [0.0, 2.0]])).tolist()
    [0.6, 0.0]
    """
    n = W.shape[1]
    worst = np.zeros(n)  # of squares: worst[j] for the j + 1 smallest
    step = max(1, _CHUNK // n)
    for start in range(0, len(W), step):
        rows = np.abs(W[start : start + step])
        tops = rows.max(axis=1, keepdims=True)
        rows /= np.where(tops > 0.0, tops, 1.0)  # rows of very different size
        rows.sort(axis=1)
        rows *= rows
        np.cumsum(rows, axis=1, out=rows)
        rows /= np.where(rows[:, -1:] > 0.0, rows[:, -1:], 1.0)
        np.maximum(worst, rows.max(axis=0), out=worst)
    return np.append(np.sqrt(worst)[::-1][1:], 0.0)


def matrix_rows(W: F64) -> Rows:
    """Rows of a dense matrix.

    >>> rows = matrix_rows(np.array([[3.0, 4.0], [0.0, 2.0]]))
    >>> rows.nu.values.tolist(), rows.frobenius == 29**0.5, rows.entries
    ([7.0, 2.0], True, 2)
    """
    sums = np.concatenate([np.abs(part).sum(axis=1) for part in np.array_split(W, max(1, W.size // _CHUNK))])
    return Rows(Weighted.of(sums), float(np.linalg.norm(W)), largest_tails(W), W.shape[1])


def conv_rows(conv: Conv, input_shape: tuple[int, ...]) -> Rows:
    """Rows of a convolution's operator at an input shape (C, *spatial), border rows counted as often as they occur.

    >>> from certbound.ops import Conv
    >>> rows = conv_rows(Conv([[[1.0, 2.0, 4.0]]], padding=((1, 1),)), (1, 5))  # (2, 4), (1, 2, 4) x 3, (1, 2)
    >>> rows.nu.values.tolist(), rows.nu.counts.tolist(), rows.frobenius == 88**0.5, rows.entries
    ([7.0, 6.0, 3.0], [3, 1, 1], True, 3)
    """
    values, counts, square = list[F64](), list[I64](), 0.0
    tails, entries = np.zeros(1), 1
    for kind in row_kinds(conv, conv_axes(conv, input_shape)):
        rows = kind.entries.reshape(len(kind.entries), -1)
        values.append(np.abs(rows).sum(axis=1))
        counts.append(np.full(len(rows), kind.count, dtype=np.int64))
        square += kind.count * float(np.linalg.norm(rows)) ** 2
        if rows.shape[1] == 0:  # a position that reads padding only
            continue
        found = largest_tails(rows)
        entries = max(entries, rows.shape[1])
        longer = np.zeros(entries)  # shorter rows are kept whole from there on: tail 0
        longer[: len(tails)] = tails
        longer[: len(found)] = np.maximum(longer[: len(found)], found)
        tails = longer
    return Rows(Weighted.of(np.concatenate(values), np.concatenate(counts)), math.sqrt(square), tails, entries)


def windows_apart(conv: Conv) -> bool:
    """True where no two outputs of a channel read one input and nothing is padded: 1x1 kernels, patch embeddings."""
    spans = [d * (k - 1) + 1 for d, k in zip(conv.dilation, conv.kernel, strict=True)]
    return not any(map(any, conv.padding)) and all(s >= span for s, span in zip(conv.stride, spans, strict=True))


def apart_singular_values(conv: Conv, positions: int, size: int) -> Weighted:
    """σ of the operator where :func:`windows_apart`: those of the kernel matrix of each group, once a position.

    ``size``: min(m, n) of the operator; inputs between the windows, which no output reads, make the rest of them 0.

    >>> from certbound.ops import Conv
    >>> sigma = apart_singular_values(Conv([[[[3.0]]], [[[4.0]]]]), positions=6, size=8)  # A = (3, 4)ᵀ ⊗ I_6 and zeros
    >>> sigma.values.tolist(), sigma.counts.tolist()
    ([5.0, 0.0], [6, 2])
    """
    kernels = conv.weight.reshape(conv.groups, len(conv.weight) // conv.groups, -1)
    sigma = np.concatenate([matrix_singular_values(kernel) for kernel in kernels])
    counts = np.append(np.full(len(sigma), positions, dtype=np.int64), size - positions * len(sigma))
    return Weighted.of(np.append(sigma, 0.0), counts)


def fourth_moment(conv: Conv, positions: tuple[int, ...]) -> float:
    """Upper bound of ``Σσ_i⁴ = ‖A Aᵀ‖_F²`` for a zero-padded convolution with that many outputs along each axis.

    Let T be the convolution on an infinite image, P the choice of A's outputs, Q that of the inputs inside the image:
    ``A = P T Q``. ``A Aᵀ = P T Q Qᵀ Tᵀ Pᵀ ⪯ P T Tᵀ Pᵀ``, since ``Q Qᵀ`` is a projection; eigenvalues are monotone, so
    ``‖A Aᵀ‖_F <= ‖P T Tᵀ Pᵀ‖_F``. T Tᵀ is Toeplitz in the output's position: its block between two positions that are
    δ apart is ``R_δ = Σ W_t W_t'ᵀ`` over the taps that meet (``d (t' − t) = s δ``), and ``Π (m_a − |δ_a|)`` pairs of
    outputs are δ apart. So ``Σσ⁴ <= Σ_δ Π (m_a − |δ_a|) ‖R_δ‖_F²``, with equality without padding. ∎

    >>> from certbound.ops import Conv
    >>> fourth_moment(Conv([[[1.0, 1.0]]]), (2,))  # A = (1 1 0; 0 1 1), A Aᵀ = (2 1; 1 2)
    10.0
    """
    g = conv.groups
    kernels = conv.weight.reshape(g, len(conv.weight) // g, *conv.weight.shape[1:])
    reaches = [
        min(d * (k - 1) // s, m - 1)
        for d, k, s, m in zip(conv.dilation, conv.kernel, conv.stride, positions, strict=True)
    ]
    total = 0.0
    for delta in itertools.product(*(range(-reach, reach + 1) for reach in reaches)):
        # R_{−δ} is the transpose of R_δ: only the first non-zero entry > 0 is computed, and counted twice
        first = next((v for v in delta if v), 0)
        moves = [s * v for s, v in zip(conv.stride, delta, strict=True)]
        if first < 0 or any(move % d for move, d in zip(moves, conv.dilation, strict=True)):
            continue
        shifts = [move // d for move, d in zip(moves, conv.dilation, strict=True)]
        here = [slice(max(0, -e), k - max(0, e)) for e, k in zip(shifts, conv.kernel, strict=True)]
        there = [slice(max(0, e), k - max(0, -e)) for e, k in zip(shifts, conv.kernel, strict=True)]
        a = kernels[(..., *here)].reshape(*kernels.shape[:2], -1)
        b = kernels[(..., *there)].reshape(*kernels.shape[:2], -1)
        pairs = math.prod(m - abs(v) for m, v in zip(positions, delta, strict=True))
        square = float(np.sum((a @ b.transpose(0, 2, 1)) ** 2))
        total += (2 if first else 1) * pairs * square
    return total


# ---------------------------------------------------------------- the forms


def spectral_numbers(
    sigma: Weighted, size: int, frobenius: float, share: float | None, dispersion: Dispersion
) -> Numbers:
    """The spectral part from singular values that are known; ``size``: min(m, n).

    >>> part = spectral_numbers(Weighted.of(np.array([3.0, 1.0])), 2, 10**0.5, None, "kth")
    >>> part.k, part.epsilon, round(part.bound, 6), part.norm  # (1 − 1/4) √2 √10
    (1, 0.25, 3.354102, 3.0)
    """
    k = k_of(share, size)
    if sigma.top == 0.0:
        return Numbers("spectral", k, 0.0, 0.0, True, 0.0, 0.0, 0.0, 0.0, vacuous=False)
    epsilon, kept, beta_kth, beta_mean = sigma.at(k)
    beta = beta_kth if dispersion == "kth" else beta_mean
    bound = kept / (1.0 - beta) * math.sqrt(size) / k * frobenius if beta < 1.0 else math.inf
    sharp = _sharp(k, kept, beta, size, dispersion) * frobenius
    # q = 2: √(1 − ε²)/√k ‖A‖_F = √(Σ_{i <= k} σ_i²/k)
    squares = Weighted(sigma.values**2, sigma.counts)
    lower = math.sqrt(squares.at(k)[1] / k) * frobenius
    vacuous = bound >= frobenius * (1.0 - 1e-12)
    return Numbers("spectral", k, epsilon, beta, True, sigma.top, bound, sharp, lower, vacuous)


def one_sided_spectral(norm_upper: float, size: int, frobenius: float, fourth: float | None) -> Numbers:
    """The spectral part at k = 1 from ``ε' <= ε``: see the module's text. ``fourth``: ``>= Σσ⁴``, if there is one.

    >>> part = one_sided_spectral(2.0, 4, 4.0, 64.0)  # four singular values 2: Hölder is an equality
    >>> part.epsilon, part.bound, part.sharp, part.lower
    (0.75, 2.0, 2.0, 2.0)
    """
    if frobenius == 0.0:
        return Numbers("spectral", 1, 0.0, 0.0, True, 0.0, 0.0, 0.0, 0.0, vacuous=False)
    moment = (norm_upper * frobenius) ** 2
    moment = moment if fourth is None else min(moment, fourth)
    # the product first: an infinite norm or moment gives 1
    kept = min(1.0, norm_upper * math.sqrt(moment) / frobenius**3)
    bound = kept * math.sqrt(size) * frobenius
    sharp = _sharp(1, kept, 0.0, size, "kth") * frobenius
    lower = frobenius / math.sqrt(size)
    vacuous = bound >= frobenius * (1.0 - 1e-12)
    return Numbers("spectral", 1, 1.0 - kept, 0.0, False, norm_upper, bound, sharp, lower, vacuous)


def neuron_numbers(rows: Rows, share: float | None, dispersion: Dispersion) -> Numbers:
    """The neuron part, derived form, with the best k_r.

    >>> part = neuron_numbers(matrix_rows(np.eye(2)), None, "kth")
    >>> part.epsilon, part.k_row, round(part.bound, 12)  # (1 − 1/2) √2 √2
    (0.5, 1, 1.0)
    """
    m, n = rows.nu.length, rows.entries
    k = k_of(share, m)
    if rows.frobenius == 0.0:
        return Numbers("neuron", k, 0.0, 0.0, True, 0.0, 0.0, 0.0, 0.0, vacuous=False, k_row=1, epsilon_row=0.0)
    epsilon, kept, beta_kth, beta_mean = rows.nu.at(k)
    beta = beta_kth if dispersion == "kth" else beta_mean
    kr = np.arange(1.0, len(rows.tails) + 1)
    steps = np.sqrt(m * kr) + math.sqrt(m * n) * rows.tails
    best = int(np.argmin(steps))
    bound = kept / (1.0 - beta) * float(steps[best]) / k * rows.frobenius if beta < 1.0 else math.inf
    clamped = np.minimum(rows.tails, np.sqrt(np.maximum(0.0, n - kr) / n))
    rho = np.sqrt(kr) * np.sqrt(1.0 - clamped**2) + np.sqrt(np.maximum(0.0, n - kr)) * clamped
    sharp = _sharp(k, kept, beta, m, dispersion) * float(rho.min()) * rows.frobenius
    lower = kept / k * rows.frobenius
    vacuous = bound >= math.sqrt(n) * rows.frobenius * (1.0 - 1e-12)
    return Numbers(
        "neuron", k, epsilon, beta, True, rows.nu.top, bound, sharp, lower, vacuous,
        k_row=best + 1, epsilon_row=float(rows.tails[best]),
    )  # fmt: skip


def _sharp(k: int, kept: float, beta: float, size: int, dispersion: Dispersion) -> float:
    one = np.ones(1)
    return float(sharp_constant(k * one, kept * one, beta * one, size, dispersion)[0])


def rescaled(part: Numbers, scale: float) -> Numbers:
    """The same numbers for the weights times ``scale``; never rounded to the wrong side by under- or overflow."""
    if scale == 1.0:
        return part
    upper, lower = Sense.UPPER, Sense.LOWER
    return Numbers(
        part.part, part.k, part.epsilon, part.beta, part.exact, rescale(part.norm, scale, upper),
        rescale(part.bound, scale, upper), rescale(part.sharp, scale, upper), rescale(part.lower, scale, lower),
        part.vacuous, part.rigor, part.k_row, part.epsilon_row,
    )  # fmt: skip


__all__ = [
    "Numbers", "Rows", "SVD_SIDE", "Weighted", "apart_singular_values", "conv_rows", "fourth_moment", "k_of",
    "largest_tails", "matrix_rows", "matrix_singular_values", "moderate", "neuron_numbers", "one_sided_spectral",
    "rescaled", "spectral_numbers", "windows_apart",
]  # fmt: skip
