"""Upper bounds of ``‖A‖_2`` of a convolution from its symbol on a torus: every rounding enclosed, no FFT, no LAPACK.

**Bound.** Extend the image by zeros to a torus of ``N >= n + padding`` points an axis, quasi-periodically: going once
around multiplies by ``e^{2πiθ}``. The zero-padded convolution is a compression (some rows and columns) of the
convolution on that torus: whatever wraps around meets zeros. The latter is block-diagonalised by the waves
``e^{iωp}``, ``ω = 2π(m + θ)/N``, so

``‖A‖_2 <= max_m ‖K(ω_m)‖_2``,  ``K(ω) = Σ_t W_t e^{iωt}``  (O x C complex; groups: one a group),

for **every** θ. With stride s the inputs are split into their s phases a axis (polyphase form, O x C·s^d, N/s points).
θ = 1/2 is the good choice where the symbol peaks at frequency 0: the grid then misses the peak by as much as the
largest mode of the image does. For the kernel (1, 1, 1) on n points, N = n + 1 and θ = 1/2 give ``1 + 2 cos(π/(n+1))``,
which is the norm itself; θ = 0 gives 3.

**Coarse grids.** For every u, v the number ``u* K(ω) v`` is a trigonometric polynomial of degree ``D = span/2`` along
each axis, span = last offset − first. M equispaced points on an axis, wherever they start, catch its maximum up to
``cos(πD/M)`` (M. Riesz: next to a maximum such a polynomial is at least ``‖f‖ cos(D·distance)``), so
``sup_ω ‖K(ω)‖ <= max_grid ‖K‖ / Π cos(π D_a/M_a)``: that bounds ``‖A‖`` for images of every size.

**Other padding modes.** ``A = Z P``, P the padding (``‖P‖²`` = how often one input is copied, an axis at a time), Z
the convolution of the padded image, without padding. Circular padding whose outputs go around exactly is the torus
itself, θ = 0.

**Norm of each K.** Gram iteration: ``‖M‖_2² = ‖M M*‖_2`` and ``‖M‖_2 <= min(‖M‖_F, √(‖M‖_1 ‖M‖_∞))``; every M M* is
scaled by a power of two and its rounding error is added on the way back. The number of squarings only decides how tight
the bound is. Frequencies whose bound falls below what another one is known to reach are left there.

Source: Sedghi, Gupta & Long, ICLR 2019 (symbol); Delattre, Barthélemy, Araujo & Allauzen, ICML 2023, "Efficient bound
of Lipschitz constant for convolutional layers by Gram iteration"; Pfister & Bresler, IEEE TSP 2019 and Delattre et al.,
2024 (grids; zero padding); M. Riesz 1914, see Zygmund, *Trigonometric Series*, X.7 (the lemma); the twisted torus is
the classical skew-circulant embedding (Davis, *Circulant Matrices*, 1979).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from certbound.arrays import F64, I64
from certbound.errors import NumericalError
from certbound.norms.convolution import Axis, conv_axes
from certbound.rounding import TINY, down, gamma, sqrt_up, up

if TYPE_CHECKING:
    from certbound.ops import Conv

_BITS = 192  # of the fixed-point numbers from which twiddle factors are rounded
_TWIDDLE = 2.0**-48  # error of a product of at most three of them, in each of its two parts; 8 u would do
_CHUNK = 2**20  # complex numbers of the symbol that are held at once
_SQUARINGS = 40
_FAST = (1e10, 2e11)  # operations of one grid in the fast tier: see coarse_points
_THOROUGH = (1e12, 4e12)  # and in the tight one, also for all its grids together
_MORE = 2e10  # up to which the fast tier tries more than one torus,
_NEAR = 1.001  # times the known lower bound: near enough to try no other
_SMALL = 20  # where an axis has at most so many points
_QUARTERS = 4  # θ is a multiple of 1/4


@dataclass(frozen=True)
class Grid:
    """Where the symbol is evaluated: ``points`` M and ``shifts`` 4θ (0…3) of every axis."""

    points: tuple[int, ...]
    shifts: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of frequencies."""
        return math.prod(self.points)


@dataclass(frozen=True, eq=False)
class Symbol:
    """``K(ω) = Σ_q e^{iω·q} kernels[q]``: per group a trigonometric polynomial of matrices.

    ``kernels``: (groups, offsets, m, n); ``offsets``: (offsets, axes) integers; ``torus``: points per axis from which
    on A is a compression of the operator on the torus; ``exact``: the same, but 1 where the symbol does not depend on
    that axis; ``fixed``: that many points and θ = 0 only (circular padding); ``factor``: what padding by copies costs.
    """

    kernels: F64
    offsets: I64
    torus: tuple[int, ...]
    exact: tuple[int, ...]
    fixed: bool
    factor: float

    @property
    def spans(self) -> tuple[int, ...]:
        """Last offset − first, per axis."""
        return tuple(int(v) for v in self.offsets.max(axis=0) - self.offsets.min(axis=0))

    def correction(self, grid: Grid) -> float:
        """``Π 1/cos(πD/M)`` over the axes where the grid is coarser than the torus; ∞ where it says nothing."""
        product = self.factor
        for span, points, shift, exact in zip(self.spans, grid.points, grid.shifts, self.exact, strict=True):
            covers = points == exact and shift == 0 if self.fixed else points >= exact
            if span == 0 or covers:
                continue
            if span >= points:  # πD/M >= π/2
                return math.inf
            # the cosine of π·span/(2·points), from the table that is proved
            cosine = float(roots(4 * points)[0][span]) - _TWIDDLE
            product = up(product / down(cosine)) if cosine > 0.0 else math.inf
        return product


def roots(n: int) -> tuple[F64, F64]:
    """``cos(2πm/n), sin(2πm/n)`` for m = 0…n−1, each within ``2^-53``; no libm.

    π by Machin's formula and the first root by Taylor's series, in integers of 192 bits; then its powers.

    >>> c, s = roots(12)
    >>> c[[0, 2, 3]].tolist(), s[[0, 1, 3]].tolist()
    ([1.0, 0.5, 0.0], [0.0, 0.5, 1.0])
    """
    one = 1 << _BITS
    angle = 2 * _pi() // n
    # Taylor: the terms fall below one unit after some 80 of them, for angles up to 2π
    terms, k = [one], 1
    while terms[-1] or k < 4:
        terms.append((terms[-1] * angle >> _BITS) // k)
        k += 1
    c1 = sum(t if i % 4 == 0 else -t for i, t in enumerate(terms) if i % 2 == 0)
    s1 = sum(t if i % 4 == 1 else -t for i, t in enumerate(terms) if i % 2 == 1)
    cosines, sines = [one], [0]
    for _ in range(n - 1):
        c, s = cosines[-1], sines[-1]
        cosines.append((c * c1 - s * s1) >> _BITS)
        sines.append((c * s1 + s * c1) >> _BITS)
    # the error of the m-th power is below m·2^-170: rounding to nearest is what counts; less than 2^-150 is a zero
    tables = [np.array([0.0 if abs(v) < 1 << 42 else v / one for v in t]) for t in (cosines, sines)]
    return tables[0], tables[1]


def _pi() -> int:
    """π·2^192, off by less than 2^10 units."""

    def arctan_inverse(x: int) -> int:
        power, total, k = (1 << _BITS) // x, 0, 0
        while power:
            total += power // (2 * k + 1) if k % 2 == 0 else -(power // (2 * k + 1))
            power //= x * x
            k += 1
        return total

    return 16 * arctan_inverse(5) - 4 * arctan_inverse(239)


# ---------------------------------------------------------------- the symbol


def symbol_of(conv: Conv, input_shape: Sequence[int]) -> Symbol:
    """The symbol of the layer at that input size, and the torus on which it bounds the operator."""
    axes = conv_axes(conv, input_shape)
    around = all(a.size % a.stride == 0 and a.out * a.stride <= a.size for a in axes)
    circular = conv.padding_mode == "circular" and around
    if circular or conv.padding_mode == "zeros":
        lows, factor = [a.low for a in axes], 1.0
        torus = tuple(a.size // a.stride if circular else _torus(a, a.size, a.low) for a in axes)
    else:
        lows = [0 for _ in axes]
        torus = tuple(_torus(a, a.size + a.low + a.high, 0) for a in axes)
        factor = sqrt_up(float(math.prod(_copies(a) for a in axes)))
    kernels, offsets = _polyphase(conv, axes, lows)
    exact = tuple(1 if s == 0 else n for s, n in zip(np.ptp(offsets, axis=0).tolist(), torus, strict=True))
    return Symbol(kernels, offsets, torus, exact, circular, factor)


def _torus(axis: Axis, size: int, low: int) -> int:
    """Points of the torus, in units of the stride.

    Reads go from −low to last; an index below 0 or from ``size`` on must not meet another input when it wraps around,
    and all outputs need rows of their own.
    """
    last = (axis.out - 1) * axis.stride + (axis.taps - 1) * axis.dilation - low
    beyond = max(low, last - (size - 1), 0)
    return max(-(-(size + beyond) // axis.stride), axis.out)


def _copies(axis: Axis) -> int:
    """How often one input occurs in the padded axis, counting the positions that are read."""
    reads = np.arange(axis.out)[:, None] * axis.stride + np.arange(axis.taps)[None, :] * axis.dilation
    _, first = np.unique(reads, return_index=True)
    return int(np.bincount(axis.index.ravel()[first]).max())


def _polyphase(conv: Conv, axes: Sequence[Axis], lows: Sequence[int]) -> tuple[F64, I64]:
    """``(kernels, offsets)``: tap ``t`` reads phase r, offset q with ``t·dilation − low = s q + r``. Unread taps go."""
    g = conv.groups
    weight = conv.weight.reshape(g, len(conv.weight) // g, *conv.weight.shape[1:])
    split = []
    for axis, low in zip(axes, lows, strict=True):
        used = [t for t in range(axis.taps) if bool(np.any(axis.index[:, t] >= 0))]
        split.append([(t, *divmod(t * axis.dilation - low, axis.stride)) for t in used])
    pieces: dict[tuple[int, ...], dict[tuple[int, ...], F64]] = {}
    phases: list[tuple[int, ...]] = []
    for combination in itertools.product(*split):
        tap, q, r = (tuple(part[i] for part in combination) for i in range(3))
        pieces.setdefault(q, {})[r] = weight[(..., *tap)]
        if r not in phases:
            phases.append(r)
    if not pieces:  # every tap reads zeros only
        return np.zeros((g, 1, *weight.shape[1:3])), np.zeros((1, len(axes)), dtype=np.int64)
    zero = np.zeros(weight.shape[:3])
    kernels = [np.concatenate([part.get(r, zero) for r in phases], axis=2) for part in pieces.values()]
    return np.stack(kernels, axis=1), np.array(list(pieces), dtype=np.int64)


def _frequencies(grid: Grid) -> tuple[I64, I64]:
    """``(m, times)``: (count, axes), one of each pair ω, −ω where the grid holds both, for ``K(−ω)`` is conjugate."""
    every = np.stack([m.ravel() for m in np.indices(grid.points)], axis=1).astype(np.int64)
    if any(shift % 2 for shift in grid.shifts):
        return every, np.ones(len(every), dtype=np.int64)
    mirrored = (-every - np.array(grid.shifts) // 2) % np.array(grid.points)  # −(m + θ) = (−m − 2θ) + θ
    place = np.ravel_multi_index(tuple(mirrored.T), grid.points)
    own = np.arange(len(every))
    kept = own <= place
    return every[kept], np.where(own == place, 1, 2)[kept].astype(np.int64)


def _twiddles(symbol: Symbol, grid: Grid, frequencies: I64) -> tuple[F64, F64]:
    """``(Re, Im)`` of ``e^{iω·q}``: (frequencies, offsets), each part within ``_TWIDDLE``."""
    re, im = np.ones((len(frequencies), len(symbol.offsets))), np.zeros((len(frequencies), len(symbol.offsets)))
    for a, (points, shift) in enumerate(zip(grid.points, grid.shifts, strict=True)):
        c, s = roots(_QUARTERS * points)
        turn = np.outer(_QUARTERS * frequencies[:, a] + shift, symbol.offsets[:, a]) % (_QUARTERS * points)
        c, s = c[turn], s[turn]
        re, im = re * c - im * s, re * s + im * c
    return re, im


def _upper_norm(x: F64) -> F64:
    """Frobenius norms of a stack (batch, …), rounded up."""
    flat = x.reshape(len(x), -1)
    square = np.einsum("bi,bi->b", flat, flat)
    count = flat.shape[1]
    return up(np.sqrt(up(up(square * (1.0 + gamma(count + 4))) + count * TINY)))


def _frobenius(re: F64, im: F64) -> F64:
    """Frobenius norms of a stack of complex matrices, rounded up."""
    a, b = _upper_norm(re), _upper_norm(im)
    return up(np.sqrt(up(up(a * a) + up(b * b))))


def _row_column_norm(re: F64, im: F64) -> F64:
    """``√(‖M‖_1 ‖M‖_∞)`` of a stack of complex matrices, rounded up: exact for multiples of unitary diagonals."""
    sizes = up(np.sqrt(up(up(re * re) + up(im * im)))) + 2.0**-500  # where squares underflow
    g = 1.0 + gamma(re.shape[1] + re.shape[2] + 8)
    rows, columns = sizes.sum(axis=2).max(axis=1), sizes.sum(axis=1).max(axis=1)
    return up(np.sqrt(up(up(rows * g) * up(columns * g))))


def _gram(re: F64, im: F64) -> tuple[F64, F64]:
    """``M M*`` of a stack; ``X Xᵀ`` with X = [Re, Im] and ``P − Pᵀ``, P = Im Reᵀ: real products only."""
    both = np.concatenate([re, im], axis=2)
    cross = im @ re.transpose(0, 2, 1)
    return both @ both.transpose(0, 2, 1), cross - cross.transpose(0, 2, 1)


@dataclass(eq=False)
class _Chain:
    """``‖M_0‖² <= scales[0] ‖M_1‖ + errors[0]`` and so on, for a stack of matrices."""

    scales: list[F64]
    errors: list[F64]

    def back(self, top: F64) -> F64:
        """A bound of ``‖M_0‖`` from one of the last M."""
        for scale, error in zip(reversed(self.scales), reversed(self.errors), strict=True):
            top = up(np.sqrt(up(up(scale * top) + error)))
        return top

    def guess(self, top: F64) -> F64:
        """About ``‖M_0‖``, from about ‖M‖ of the last: no bound."""
        for scale in reversed(self.scales):
            top = np.sqrt(scale * top)
        return top

    def keep(self, which: npt.NDArray[np.bool_]) -> None:
        """Drop the other matrices."""
        self.scales = [x[which] for x in self.scales]
        self.errors = [x[which] for x in self.errors]


def _normalise(re: F64, im: F64) -> tuple[F64, F64, F64]:
    """Divide each matrix by a power of two so that its Frobenius norm is in [1, 2); zeros stay."""
    size = _frobenius(re, im)
    size = np.where(size > 2.0**-500, size, 0.0)
    scale = np.where(size > 0.0, np.ldexp(1.0, np.frexp(size)[1] - 1), 1.0)
    return re / scale[:, None, None], im / scale[:, None, None], scale


def norms_above(re: F64, im: F64, known: float, tolerance: float) -> tuple[F64, float]:
    """``(bounds, reached)``: an upper bound of the 2-norm of every matrix ``re + i im`` of a stack (batch, m, n).

    Squaring goes on for the matrices whose bound exceeds ``(1 + tolerance)·reached``; ``reached``: about the largest
    norm seen, at least ``known``. It only decides how long to go on: the bounds hold whatever it is. Entries below
    2^400; what is below 2^-500 counts as that much.

    >>> bounds, _ = norms_above(np.array([[[2.0, 1.0], [1.0, 2.0]]]), np.zeros((1, 2, 2)), 0.0, 1e-9)
    >>> bool(3.0 <= bounds[0] < 3.0 + 1e-8)
    True
    """
    if re.shape[1] > re.shape[2]:
        re, im = re.transpose(0, 2, 1), im.transpose(0, 2, 1)
    re, im, first = _normalise(re, im)
    loss = TINY * re.shape[1] * re.shape[2]  # what became subnormal, or was flushed
    size = _frobenius(re, im)
    bounds = up(first * up(np.minimum(size, _row_column_norm(re, im)) + loss))
    alive, reached, chain = np.arange(len(re)), known, _Chain([], [])
    for step in range(_SQUARINGS):
        going = bounds[alive] > reached * (1.0 + tolerance)
        if not np.any(going):
            break
        if not np.all(going):
            alive, re, im, size = alive[going], re[going], im[going], size[going]
            chain.keep(going)
        rows, columns = re.shape[1:]
        error = up(2.0 * gamma(2 * columns + 8) * up(size * size)) + 16 * columns * rows**2 * TINY
        re, im, scale = _normalise(*_gram(re, im))
        chain.scales.append(scale)
        chain.errors.append(error)
        before, size = size, _frobenius(re, im)
        # ‖M M*‖_F <= ‖M‖ ‖M‖_F: what the largest singular value of the M before is at least
        below = scale * size / np.where(before > 0.0, before, 1.0)
        shorter = _Chain(chain.scales[:-1], chain.errors[:-1])
        reached = max(reached, float(np.max(first[alive] * shorter.guess(below))))
        top = size if step else np.minimum(size, _row_column_norm(re, im))  # an orthogonal layer is done here
        top = up(top + TINY * rows**2)
        bounds[alive] = np.minimum(bounds[alive], up(first[alive] * up(chain.back(top) + loss)))
    return bounds, reached


# ---------------------------------------------------------------- the bound


def torus_bound(
    symbol: Symbol,
    grid: Grid,
    *,
    relative_error: float = 0.0,
    tolerance: float = 1e-5,
    known: float = 0.0,
    stop: float = math.inf,
) -> float:
    """An upper bound of ``‖A‖_2`` for every kernel within ``relative_error`` of the stored one, entry by entry.

    ``known``: frequencies whose bound falls below it are not pursued. ``stop``: ∞ is returned as soon as the result
    will be above it.

    >>> from certbound.ops import Conv
    >>> symbol = symbol_of(Conv(np.ones((1, 1, 3)), padding=((1, 1),)), (1, 3))
    >>> skew, plain = torus_bound(symbol, Grid((4,), (2,))), torus_bound(symbol, Grid((4,), (0,)))
    >>> bool(0 <= skew - (1 + 2**0.5) < 1e-9), bool(0 <= plain - 3 < 1e-9)  # the norm is 1 + √2
    (True, True)
    """
    correction, extra, widened = _losses(symbol, grid, relative_error)
    if math.isinf(correction):
        return math.inf
    groups, offsets, m, n = symbol.kernels.shape
    flat = np.ascontiguousarray(symbol.kernels.transpose(1, 0, 2, 3)).reshape(offsets, -1)
    re, im = _twiddles(symbol, grid, _frequencies(grid)[0])
    step = max(1, _CHUNK // flat.shape[1])
    # large Frobenius norms first: they are likely to hold the maximum
    proxy = np.concatenate([
        np.max(_upper_norm((a @ flat).reshape(-1, m * n)).reshape(len(a), groups) ** 2
               + _upper_norm((b @ flat).reshape(-1, m * n)).reshape(len(a), groups) ** 2, axis=1)
        for a, b in _chunks(re, im, step)
    ])  # fmt: skip
    order = np.argsort(-proxy, kind="stable")
    top, reached = 0.0, known
    for a, b in _chunks(re[order], im[order], step):
        bounds, reached = norms_above(
            (a @ flat).reshape(-1, m, n), (b @ flat).reshape(-1, m, n), reached, tolerance
        )  # fmt: skip
        if not bool(np.all(np.isfinite(bounds))):  # max() would drop a NaN
            raise NumericalError("the symbol of a convolution left the range of float64")
        top = max(top, float(np.max(bounds)))
        if reached * correction > stop:
            return math.inf
    return up(up(correction * up(top + extra)) + widened)


def torus_proves(symbol: Symbol, grid: Grid, value: float, *, relative_error: float = 0.0) -> bool:
    """True proves that ``value`` is at least what :func:`torus_bound` bounds; it squares no longer than that takes."""
    correction, extra, widened = _losses(symbol, grid, relative_error)
    enough = ((value - widened) / correction - extra) * (1.0 - 2.0**-44)
    return not math.isinf(correction) and value >= torus_bound(
        symbol, grid, relative_error=relative_error, tolerance=0.0, known=max(0.0, enough)
    )


def _losses(symbol: Symbol, grid: Grid, relative_error: float) -> tuple[float, float, float]:
    """``(correction, extra, widened)``: the bound is ``correction · (largest ‖K‖ + extra) + widened``.

    ``extra``: rounding of the symbol. ``Σ_q |kernels[q]|`` bounds every ``|K(ω)|`` entry by entry, so its Frobenius
    norm times the relative errors of twiddles and sums does. ``widened``: what kernels within ``relative_error`` add.
    """
    offsets, m, n = symbol.kernels.shape[1:]
    total: F64 = np.abs(symbol.kernels).sum(axis=1) * (1.0 + gamma(offsets + 4))
    absolute = float(np.max(_upper_norm(total)))
    extra = up(up(2.0 * up(gamma(offsets + 4) + 2 * _TWIDDLE)) * absolute) + 4 * offsets * m * n * TINY
    return symbol.correction(grid), extra, up(relative_error * up(symbol.factor * absolute)) if relative_error else 0.0


def _chunks(re: F64, im: F64, step: int) -> Iterator[tuple[F64, F64]]:
    for i in range(0, len(re), step):
        yield re[i : i + step], im[i : i + step]


def cost(symbol: Symbol, grid: Grid) -> float:
    """Floating-point operations, about: a Gram matrix and four squarings at half of the frequencies."""
    groups, _, m, n = symbol.kernels.shape
    r, long = min(m, n), max(m, n)
    half = 2.0 if all(s % 2 == 0 for s in grid.shifts) else 1.0
    return grid.count / half * groups * (4.0 * r * r * long + 16.0 * r**3)


def coarse_points(symbol: Symbol, budgets: tuple[float, float]) -> tuple[int, ...]:
    """The torus, or a coarser grid where that costs too many operations.

    Above the first budget down to 22 spans an axis, which loses 0.25 % on each; above the second down to 8 (2 %).
    """
    points = symbol.exact
    for budget, least in zip(budgets, (22, 8), strict=True):
        while cost(symbol, Grid(points, (0,) * len(points))) > budget:
            pairs = zip(points, symbol.spans, strict=True)
            smaller = tuple(min(p, max(least * span, int(0.9 * p), 1)) for p, span in pairs)
            if smaller == points:
                break
            points = smaller
    return points


def best_torus(
    symbol: Symbol, *, thorough: bool, relative_error: float = 0.0, known: float = 0.0
) -> tuple[float, Grid]:
    """The least of the bounds on several tori, with its grid; Gram iteration to 0.1 %.

    θ = 1/2 on every axis first. Where that is cheap and the image has an axis of at most 20 points (on larger ones θ
    matters little), also θ = 0, in all combinations; ``thorough``: always, to 0.01 %, with quarters, and on tori one
    point larger. ``known``: a lower bound of the norm, which saves work.
    """
    points = coarse_points(symbol, _THOROUGH if thorough else _FAST)
    fixed = [n == 1 or (symbol.fixed and n == exact) for n, exact in zip(points, symbol.exact, strict=True)]
    shifts = [(0,) if f else (2, 0) for f in fixed]
    grids = [Grid(points, combination) for combination in itertools.product(*shifts)]
    if thorough and not symbol.fixed and points == symbol.exact:
        wide = [(0,) if n == 1 else (2, 0, 1, 3) for n in points]
        larger = tuple(n + 1 if n > 1 else 1 for n in points)
        grids += [Grid(points, c) for c in itertools.product(*wide)]
        grids += [Grid(larger, c) for c in itertools.product(*shifts)]
    grids = list(dict.fromkeys(grids))
    best, chosen, spent = math.inf, grids[0], 0.0
    small = min((n for n in points if n > 1), default=1) <= _SMALL
    limit = _THOROUGH[1] if thorough else _MORE if small else 0.0
    for grid in grids:
        spent += cost(symbol, grid)
        if grid is not grids[0] and (spent > limit or best <= known * _NEAR):
            break
        bound = torus_bound(
            symbol, grid, relative_error=relative_error, known=known, stop=best, tolerance=1e-4 if thorough else 1e-3
        )
        if bound < best:
            best, chosen = bound, grid
    return best, chosen


def singular_values_above(conv: Conv, input_shape: Sequence[int]) -> F64:
    """See :func:`certbound.norms.convolution.torus_singular_values`."""
    symbol = symbol_of(conv, input_shape)
    fixed = 0 if symbol.fixed else 2
    grid = Grid(symbol.exact, tuple(0 if n == 1 else fixed for n in symbol.exact))
    groups, offsets, m, n = symbol.kernels.shape
    flat = np.ascontiguousarray(symbol.kernels.transpose(1, 0, 2, 3)).reshape(offsets, -1)
    frequencies, times = _frequencies(grid)
    re, im = _twiddles(symbol, grid, frequencies)
    step = max(1, _CHUNK // flat.shape[1])
    values = np.concatenate([
        np.linalg.svd((a @ flat + 1j * (b @ flat)).reshape(len(a), groups, m, n), compute_uv=False)
        for a, b in _chunks(re, im, step)
    ])  # fmt: skip
    # along axes on which the symbol is constant every frequency has the same values
    times = times * (math.prod(symbol.torus) // math.prod(symbol.exact))
    every = np.repeat(values.reshape(len(values), -1), times, axis=0).ravel() * symbol.factor
    outputs = math.prod(a.out for a in conv_axes(conv, input_shape)) * len(conv.weight)
    missing = min(outputs, math.prod(input_shape)) - len(every)  # inputs that no output reads
    values = np.concatenate([every, np.zeros(max(0, missing))])
    return np.asarray(-np.sort(-values), dtype=np.float64)
