"""Operator norms of convolutions against the matrices that torch builds from unit vectors, and against rationals."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import flint
import numpy as np
import pytest
from budget import network_settings
from conv_cases import Case, cases, kernel, materialised, scaled_svd
from hypothesis import given
from hypothesis import strategies as st
from rationals import exact_sum, fractions, spectral_norm_at_least, spectral_norm_at_most

from certbound.errors import NumericalError
from certbound.norms import conv_torus
from certbound.norms.conv_gram import proves_gram, strips_of
from certbound.norms.conv_lanczos import proved_lower, top_vector
from certbound.norms.conv_torus import (
    Grid,
    _frequencies,
    _losses,
    _twiddles,
    best_torus,
    coarse_points,
    cost,
    norms_above,
    roots,
    symbol_of,
    torus_bound,
)
from certbound.norms.convolution import (
    conv_adjoint,
    conv_apply,
    conv_axes,
    conv_frobenius,
    conv_kernel_norm,
    conv_output_shape,
    conv_row_sums,
    torus_singular_values,
)
from certbound.norms.operator import conv_norm_bound, operator_norm_lower, operator_norm_upper
from certbound.ops import Conv
from certbound.types import Rigor, Sense

ORDINARY = ("integers", "gaussian", "half", "one tap", "spread")
NEAR = 1e-12  # what LAPACK's own value may be off by


def of(case: Case, norm, sense, tier="fast"):
    call = operator_norm_upper if sense is Sense.UPPER else operator_norm_lower
    return call(case.conv, norm, case.shape, tier=tier)


# ---------------------------------------------------------------- the operator


@given(cases(kinds=ORDINARY), st.integers(0, 2**32 - 1))
@network_settings
def test_products_are_those_of_the_matrix(case, seed):
    rng = np.random.default_rng(seed)
    A = materialised(case.conv, case.shape)
    x = rng.standard_normal(case.shape)
    y = rng.standard_normal(conv_output_shape(case.conv, case.shape))
    assert y.size == len(A)
    assert conv_apply(case.conv, x).ravel() == pytest.approx(A @ x.ravel(), abs=1e-12)
    assert conv_apply(case.conv, x) == pytest.approx(case.conv.apply(x[None])[0], abs=1e-12)
    assert conv_adjoint(case.conv, y, case.shape).ravel() == pytest.approx(A.T @ y.ravel(), abs=1e-12)


@given(cases(kinds=("integers",)))
@network_settings
def test_sums_of_entries_against_rationals(case):
    A = materialised(case.conv, case.shape)
    low, high = conv_frobenius(case.conv, case.shape)
    square = exact_sum(A * A)
    assert Fraction(low) ** 2 <= square <= Fraction(high) ** 2
    assert high - low <= 1e-12 * high
    values, counts = conv_row_sums(case.conv, case.shape)
    assert sorted(np.repeat(values, counts).tolist()) == sorted(np.abs(A).sum(axis=1).tolist())


@given(cases(kinds=(*ORDINARY, "zeros")))
@network_settings
def test_sums_of_entries_of_other_kernels(case):
    A = materialised(case.conv, case.shape)
    low, high = conv_frobenius(case.conv, case.shape)
    assert low * (1 - 1e-13) <= np.linalg.norm(A) <= high * (1 + 1e-13)
    values, counts = conv_row_sums(case.conv, case.shape)
    # entries that cancel are known up to the sizes of what cancelled
    size = np.abs(case.conv.weight[0]).size * np.abs(case.conv.weight).max()
    assert np.sort(np.repeat(values, counts)) == pytest.approx(np.sort(np.abs(A).sum(axis=1)), abs=1e-13 * size)


@given(cases(kinds=ORDINARY, modes=("zeros",)))
@network_settings
def test_kernel_norm_is_below_the_operator_norm_by_at_most_the_root_of_the_taps(case):
    conv = case.conv
    if conv.groups > 1 or not all(np.any(np.all(a.index >= 0, axis=1)) for a in conv_axes(conv, case.shape)):
        return
    true = scaled_svd(materialised(conv, case.shape))[0] * scaled_svd(materialised(conv, case.shape))[1]
    statistic, taps = conv_kernel_norm(conv), math.prod(conv.kernel)
    assert statistic * (1 - NEAR) <= true <= math.sqrt(taps) * statistic * (1 + NEAR)
    assert statistic <= math.sqrt(taps) * max(
        np.linalg.norm(conv.weight[(..., *t)], 2) for t in np.ndindex(*conv.kernel)
    ) * (1 + NEAR)


def test_kernel_norm_without_an_interior_output_can_be_far_above():
    conv = Conv(np.where(np.arange(3) == 1, 1.0, 10.0).reshape(1, 1, 3), padding=((1, 1),))
    assert conv_kernel_norm(conv) > 14
    assert operator_norm_upper(conv, 2, (1, 1)).value == pytest.approx(1.0, rel=1e-9)


# ---------------------------------------------------------------- upper and lower bounds


@given(cases(), st.sampled_from(("fast", "tight")))
@network_settings
def test_bounds_hold_and_are_near(case, tier):
    lower, upper = (of(case, 2, sense, tier) for sense in (Sense.LOWER, Sense.UPPER))
    A = materialised(case.conv, case.shape)
    true, scale = scaled_svd(A)
    assert lower.rigor is Rigor.RIGOROUS and upper.rigor is Rigor.RIGOROUS
    assert lower.value / scale <= true * (1 + NEAR)
    assert upper.value / scale >= true * (1 - NEAR)
    if true == 0.0 and case.kind != "zeros":
        return
    # small operators are proved by Cholesky where the torus is not near
    assert upper.value / scale <= true * 1.0101 + 1e-12 * np.abs(case.conv.weight).max() / scale
    assert lower.value / scale >= true * 0.99 - 1e-12 * np.abs(case.conv.weight).max() / scale
    assert upper.certificate.verify(case.conv)
    assert lower.certificate.verify(case.conv)


@given(cases(kinds=("integers", "one tap", "half"), largest=3))
@network_settings
def test_bounds_hold_in_rationals(case):
    A = materialised(case.conv, case.shape)
    if min(A.shape) > 7 or (case.kind != "integers" and case.conv.padding_mode != "zeros"):
        return
    exact = fractions(A)
    assert spectral_norm_at_most(exact, Fraction(of(case, 2, Sense.UPPER).value))
    assert spectral_norm_at_least(exact, Fraction(of(case, 2, Sense.LOWER).value))


@given(cases(kinds=(*ORDINARY, "zeros")), st.sampled_from((0.0, 0.5, 0.25, 0.75)), st.integers(0, 2))
@network_settings
def test_every_torus_is_an_upper_bound(case, theta, larger):
    true, scale = scaled_svd(materialised(case.conv, case.shape))
    symbol = symbol_of(case.conv, case.shape)
    grid = Grid(tuple(n + larger for n in symbol.exact), (int(4 * theta),) * len(symbol.exact))
    bound = torus_bound(symbol, grid)
    assert bound >= true * scale * (1 - NEAR)
    half = Grid(tuple(max(1, n // 2) for n in symbol.exact), grid.shifts)  # coarser: corrected, or refused
    assert torus_bound(symbol, half) >= true * scale * (1 - NEAR)


@pytest.mark.parametrize(
    ("size", "taps", "more", "points"),
    [
        (5, 3, {"padding": ((1, 1),)}, 6),
        (5, 3, {"padding": ((0, 2),)}, 7),
        (5, 3, {"padding": ((2, 0),)}, 7),
        (5, 3, {}, 5),
        (5, 1, {"padding": ((1, 1),)}, 7),  # seven outputs need seven rows
        (5, 3, {"padding": ((2, 2),), "dilation": (2,)}, 7),
        (5, 3, {"padding": ((1, 1),), "stride": (2,)}, 3),
        (6, 3, {"padding": ((1, 1),), "stride": (2,)}, 4),
        (6, 2, {"stride": (2,)}, 3),
        (5, 3, {"padding": ((1, 1),), "padding_mode": "circular"}, 5),
        (5, 3, {"padding": ((1, 1),), "padding_mode": "circular", "stride": (2,)}, 4),  # 5 is odd: a padded image
        (5, 3, {"padding_mode": "circular", "stride": (2,)}, 3),  # so too, though its outputs would fit
        (5, 3, {"padding": ((1, 1),), "padding_mode": "reflect"}, 7),
    ],
)
def test_points_of_the_torus(size, taps, more, points):
    assert symbol_of(Conv(np.ones((1, 1, taps)), **more), (1, size)).torus == (points,)


@given(cases(kinds=("integers",), modes=("zeros",)))
@network_settings
def test_what_wraps_around_meets_zeros_only(case):
    for axis, points in zip(conv_axes(case.conv, case.shape), symbol_of(case.conv, case.shape).torus, strict=True):
        around = points * axis.stride
        assert len({j * axis.stride % around for j in range(axis.out)}) == axis.out
        for (j, t), read in np.ndenumerate(axis.index):
            place = (j * axis.stride + t * axis.dilation - axis.low) % around
            assert place == read if read >= 0 else place >= axis.size


@given(cases(kinds=ORDINARY, modes=("circular",)))
@network_settings
def test_full_circular_padding_is_the_torus_itself(case):
    axes = conv_axes(case.conv, case.shape)
    if not all(a.out * a.stride == a.size for a in axes):
        return
    true, scale = scaled_svd(materialised(case.conv, case.shape))
    symbol = symbol_of(case.conv, case.shape)
    assert symbol.fixed
    bound = torus_bound(symbol, Grid(symbol.exact, (0,) * len(axes)), tolerance=1e-9)
    assert bound == pytest.approx(true * scale, rel=1e-7)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 12])
def test_half_a_twist_is_exact_for_the_moving_sum(n):
    conv = Conv(np.ones((1, 1, 3)), padding=((1, 1),))
    symbol = symbol_of(conv, (1, n))
    bound = torus_bound(symbol, Grid((n + 1,), (2,)))
    true = 1 + 2 * math.cos(math.pi / (n + 1))
    assert true * (1 - 1e-15) <= bound <= true * (1 + 1e-9)
    if n > 1:
        assert torus_bound(symbol, Grid((n + 1,), (0,))) == pytest.approx(3.0, rel=1e-9)


def test_a_torus_too_small_is_corrected_or_refused():
    conv = Conv(np.ones((1, 1, 3)), padding=((1, 1),))
    symbol = symbol_of(conv, (1, 50))
    assert symbol.exact == (51,)
    assert symbol.correction(Grid((51,), (2,))) == symbol.correction(Grid((80,), (3,))) == 1.0
    assert symbol.correction(Grid((50,), (2,))) == pytest.approx(1 / math.cos(math.pi / 50), rel=1e-12)
    # the symbol 1 + 2 cos ω has degree 1: M points catch its maximum up to cos(π/M)
    for points in (3, 4, 8, 20):
        grid = Grid((points,), (2,))
        reached = 1 + 2 * math.cos(math.pi / points)
        assert torus_bound(symbol, grid) == pytest.approx(max(reached, 1.0) / math.cos(math.pi / points), rel=1e-6)
        assert torus_bound(symbol, grid) >= 3.0
    assert torus_bound(symbol, Grid((2,), (2,))) == math.inf


@pytest.mark.parametrize("theta", [0, 1, 2, 3])
def test_coarse_grids_bound_every_size(theta):
    rng = np.random.default_rng(theta)
    for _ in range(5):
        conv = Conv(rng.standard_normal((2, 2, 3, 2)), padding=((1, 1), (0, 1)))
        symbol = symbol_of(conv, (2, 200, 200))
        caught = math.cos(math.pi / 61) * math.cos(math.pi / 128)
        dense = torus_bound(symbol, Grid((61, 64), (0, 0)), tolerance=1e-8) * caught
        for points in ((5, 4), (9, 9), (16, 12)):
            coarse = torus_bound(symbol, Grid(points, (theta, theta)))
            assert coarse >= dense * (1 - 1e-6)
            loss = math.cos(math.pi / points[0]) * math.cos(math.pi / (2 * points[1]))
            assert coarse <= dense / loss / caught * (1 + 1e-4)


def test_large_images_get_a_coarse_grid():
    conv = Conv(np.random.default_rng(0).standard_normal((4, 4, 3, 3)), padding=((1, 1), (1, 1)))
    symbol = symbol_of(conv, (4, 500, 500))
    points = coarse_points(symbol, (1e7, 1e7))
    assert 44 <= points[0] < 501
    assert cost(symbol, Grid(points, (0, 0))) <= 1e7
    assert coarse_points(symbol, (0.0, 1e12)) == (44, 44)  # 22 spans
    assert coarse_points(symbol, (0.0, 0.0)) == (16, 16)  # never below 8
    assert coarse_points(symbol, (1e12, 1e12)) == (501, 501)
    low = proved_lower(conv, top_vector(conv, (4, 500, 500), steps=25))
    for grid, near in ((Grid((44, 44), (2, 2)), 1.01), (Grid((16, 16), (2, 2)), 1.05)):
        assert low <= torus_bound(symbol, grid) <= near * low


def test_a_known_lower_bound_saves_work_and_changes_no_truth():
    conv = Conv(np.random.default_rng(1).standard_normal((3, 3, 3)), padding=((1, 1),))
    symbol = symbol_of(conv, (3, 9))
    grid = Grid(symbol.exact, (2,))
    true, scale = scaled_svd(materialised(conv, (3, 9)))
    tight, loose = torus_bound(symbol, grid), torus_bound(symbol, grid, known=100.0)
    assert true * scale <= tight <= loose
    assert torus_bound(symbol, grid, stop=0.5 * tight) == math.inf
    assert torus_bound(symbol, grid, stop=1.01 * tight) == tight


# ---------------------------------------------------------------- the proof by Cholesky


@given(cases(kinds=ORDINARY), st.sampled_from((0.9, 0.999, 1.0001, 1.1)), st.booleans())
@network_settings
def test_cholesky_proves_what_is_true_and_nothing_else(case, factor, wide):
    case = Case(Conv(case.conv.weight / max(1e-30, np.abs(case.conv.weight).max()), None, case.conv.stride,
                     case.conv.padding, case.conv.dilation, case.conv.groups, case.conv.padding_mode),
                case.shape, case.kind)  # fmt: skip
    true, scale = scaled_svd(materialised(case.conv, case.shape))
    if true * scale < 1e-6:  # everything cancels, or only zeros are read
        return
    error = 2.0**-40 if wide else 0.0
    assert proves_gram(case.conv, case.shape, factor * true * scale, relative_error=error) == (factor > 1)


@pytest.mark.parametrize(
    ("conv", "shape", "inputs", "thick"),
    [
        (Conv(np.ones((1, 1, 3, 3)), padding=((1, 1),) * 2), (1, 9, 4), True, 2),
        (Conv(np.ones((1, 1, 3, 3)), padding=((1, 1),) * 2, stride=(2, 2)), (1, 9, 4), False, 1),
        (Conv(np.ones((1, 4, 3, 3)), padding=((1, 1),) * 2), (4, 9, 4), False, 2),
        (Conv(np.ones((1, 1, 3)), padding=((2, 2),), dilation=(2,)), (1, 9), True, 4),
        (Conv(np.ones((1, 1, 3)), padding=((1, 1),), padding_mode="circular"), (1, 9), True, 8),
    ],
)
def test_strips_are_the_thinnest_that_meet_only_neighbours(conv, shape, inputs, thick):
    strips = strips_of(conv, conv_axes(conv, shape))
    assert (strips.inputs, strips.thick) == (inputs, thick)
    A = materialised(conv, shape)
    gram = A.T @ A if inputs else A @ A.T
    side = conv.weight.shape[1 if inputs else 0]
    rows = len(strips.members)
    # order (rows, others, channels), as the strips have it
    gram = gram.reshape(side, rows, -1, side, rows, strips.row // side)
    met = np.abs(gram).sum(axis=(0, 2, 3, 5)) > 0
    assert max(abs(i - j) for i, j in np.argwhere(met)) == thick


# ---------------------------------------------------------------- parts


@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(0, 3)), min_size=1, max_size=3), st.sampled_from((True, False))
)
@network_settings
def test_half_of_the_frequencies_stand_for_all(axes, even):
    axes = [(n, 2 * (shift // 2) if even else shift) for n, shift in axes]
    grid = Grid(tuple(n for n, _ in axes), tuple(shift for _, shift in axes))
    kept, times = _frequencies(grid)

    def angles(m, sign):
        return tuple(sign * Fraction(4 * i + h, 4 * n) % 1 for i, (n, h) in zip(m, axes, strict=True))

    every = {angles(m, 1) for m in np.ndindex(*grid.points)}
    assert every == {a for m in kept.tolist() for a in (angles(m, 1), angles(m, -1))} & every
    assert times.sum() == len(every) == grid.count
    for m, t in zip(kept.tolist(), times.tolist(), strict=True):
        assert t == 1 or (angles(m, -1) in every and angles(m, -1) != angles(m, 1))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 12, 33, 360])
def test_roots_of_unity_are_rounded_once(n):
    c, s = roots(n)
    flint.ctx.prec = 200
    for m in range(n):
        angle = flint.fmpq(2 * m, n)
        for value, function in ((c[m], flint.arb.cos_pi), (s[m], flint.arb.sin_pi)):
            error = abs(function(flint.arb(angle)) - flint.arb(float(value)))
            assert error <= flint.arb(2.0) ** -54 * 1.0001


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**32 - 1), st.sampled_from((1.0, 1e-60, 1e60)))
@network_settings
def test_gram_iteration_is_above_the_norm_and_near(m, n, seed, size):
    rng = np.random.default_rng(seed)
    re, im = (rng.standard_normal((4, m, n)) for _ in range(2))
    re[0], im[0] = np.ones((m, n)), 0.0
    re[1], im[1] = np.eye(m, n), 0.0  # many equal singular values
    true = np.linalg.svd(re + 1j * im, compute_uv=False)[:, 0]
    bounds, reached = norms_above(re * size, im * size, 0.0, 1e-8)
    assert np.all(bounds >= true * size * (1 - 1e-14))
    assert bounds.max() <= true.max() * size * (1 + 1e-7)
    assert reached == pytest.approx(true.max() * size, rel=1e-7)


@given(st.integers(1, 3), st.integers(1, 3), st.integers(0, 2**32 - 1))
@network_settings
def test_gram_iteration_holds_in_rationals(m, n, seed):
    """Without any air, and squared until nothing changes: what rounding loses must have been added."""
    rng = np.random.default_rng(seed)
    re = rng.standard_normal((6, m, n))
    bounds, _ = norms_above(re, np.zeros_like(re), 0.0, 0.0)
    for A, bound in zip(re, bounds, strict=True):
        assert spectral_norm_at_most(fractions(A), Fraction(float(bound)))


def test_what_a_long_sum_loses_is_counted():
    """Large entries first, then thousands whose squares are lost beside them, in each of BLAS's partial sums."""
    row = np.full((1, 1, 20_000), 2.0**-25)
    row[0, 0, :512] = 1.0
    bounds, _ = norms_above(row, np.zeros_like(row), 0.0, 0.0)
    assert Fraction(float(bounds[0])) ** 2 >= sum(Fraction(x) ** 2 for x in row.ravel().tolist())


@given(st.integers(2, 40), st.integers(1, 6), st.integers(0, 2**32 - 1))
@network_settings
def test_the_rounding_of_the_symbol_is_allowed_for(points, taps, seed):
    """Scalar symbols in 200 bits: none is above its float by more than ``extra``."""
    flint.ctx.prec = 200
    weight = np.random.default_rng(seed).standard_normal((1, 1, taps))
    symbol = symbol_of(Conv(weight, padding=((taps // 2, taps // 2),)), (1, taps + points))
    grid = Grid((points,), (1,))
    frequencies, _ = _frequencies(grid)
    re, im = _twiddles(symbol, grid, frequencies)
    extra = _losses(symbol, grid, 0.0)[1]
    flat = symbol.kernels.reshape(len(symbol.offsets), 1)
    for (m,), a, b in zip(frequencies.tolist(), re @ flat, im @ flat, strict=True):
        exact = flint.acb(0)
        for q, w in zip(symbol.offsets[:, 0].tolist(), flat[:, 0].tolist(), strict=True):
            exact += w * flint.acb(flint.fmpq(2 * q * (4 * m + 1), 4 * points)).exp_pi_i()
        assert abs(exact - flint.acb(float(a[0]), float(b[0]))) <= extra
    assert extra < 1e-12 * np.abs(weight).sum()


def test_a_symbol_that_overflows_is_no_bound(monkeypatch):
    conv = Conv(np.ones((1, 1, 3)), padding=((1, 1),))
    monkeypatch.setattr(conv_torus, "norms_above", lambda *_: (np.array([math.nan]), 0.0))
    with pytest.raises(NumericalError):
        torus_bound(symbol_of(conv, (1, 4)), Grid((5,), (2,)))


def test_gram_iteration_of_zeros_and_of_one_matrix_alone():
    bounds, _ = norms_above(np.zeros((2, 3, 3)), np.zeros((2, 3, 3)), 0.0, 1e-6)
    assert np.all(bounds < 1e-150)
    bounds, _ = norms_above(np.array([[[1.0, 2.0, 2.0]]]), np.zeros((1, 1, 3)), 0.0, 1e-12)
    assert bounds[0] == pytest.approx(3.0, rel=1e-11)
    assert bounds[0] >= 3.0


@pytest.mark.parametrize("known", [0.0, 2.0])
def test_squaring_stops_for_frequencies_that_cannot_be_the_largest(known):
    re = np.stack([np.diag([2.0, 2.0, 2.0]), np.ones((3, 3)) / 10])
    bounds, reached = norms_above(re, np.zeros_like(re), known, 1e-9)
    assert reached == pytest.approx(2.0)
    assert bounds[0] == pytest.approx(2.0, rel=1e-8)
    assert 0.3 <= bounds[1] <= 2.0


@given(cases(kinds=ORDINARY), st.integers(0, 2**32 - 1))
@network_settings
def test_any_vector_gives_a_lower_bound(case, seed):
    rng = np.random.default_rng(seed)
    v = rng.standard_normal(case.shape) / 4
    true, scale = scaled_svd(materialised(case.conv, case.shape))
    if np.abs(case.conv.weight).max() < 2:
        low = proved_lower(case.conv, v)
        assert low <= true * scale * (1 + NEAR)
        A = materialised(case.conv, case.shape)
        assert low == pytest.approx(np.linalg.norm(A @ v.ravel()) / np.linalg.norm(v), abs=1e-12)


def test_what_a_long_sum_gains_is_taken_off():
    """Three quarters of a last digit, thousands of times, are rounded up to whole ones; then what is large cancels."""
    weight = np.full(20_480, 0.75 * 2.0**-48)
    weight[:512], weight[-512:] = 1.0, -1.0
    v = np.ones((20_480, 1))
    conv = Conv(weight.reshape(1, -1, 1))
    for times in (1.0, 2.0):
        assert Fraction(proved_lower(conv, v, times=times)) ** 2 * v.size <= exact_sum(weight) ** 2
    weight[-512:] = 1.0
    assert proved_lower(Conv(weight.reshape(1, -1, 1)), v) > 1024 / math.sqrt(v.size) * (1 - 1e-10)


def test_vectors_that_prove_nothing():
    conv = Conv([[[1.0]]])
    assert proved_lower(conv, np.zeros((1, 3))) == 0.0
    assert proved_lower(conv, np.full((1, 3), math.nan)) == 0.0
    assert proved_lower(conv, np.full((1, 3), 3.0)) == 0.0


def test_lanczos_restarts_and_is_deterministic():
    conv = Conv(np.random.default_rng(2).standard_normal((2, 2, 3)), padding=((1, 1),))
    one, two = top_vector(conv, (2, 300)), top_vector(conv, (2, 300))
    assert np.array_equal(one, two)
    true, scale = scaled_svd(materialised(conv, (2, 300)))
    assert np.linalg.norm(conv_apply(conv, top_vector(conv, (2, 300), steps=200, tolerance=1e-9))) == pytest.approx(
        true * scale, rel=1e-4
    )


# ---------------------------------------------------------------- the ∞-norm


@given(cases(kinds=("integers",)))
@network_settings
def test_inf_norm_is_exact_on_integers(case):
    A = materialised(case.conv, case.shape)
    exact = float(np.abs(A).sum(axis=1).max())
    assert of(case, math.inf, Sense.LOWER).value == exact == of(case, math.inf, Sense.UPPER).value


@given(cases(kinds=("gaussian", "spread", "half", "tiny", "huge"), modes=("zeros",)))
@network_settings
def test_inf_norm_is_within_neighbouring_floats(case):
    A = materialised(case.conv, case.shape)
    exact = max(exact_sum(np.abs(row)) for row in A)
    low, high = (of(case, math.inf, sense).value for sense in (Sense.LOWER, Sense.UPPER))
    if high == math.inf:
        assert exact > Fraction(1.7e308)
        return
    assert Fraction(low) <= exact <= Fraction(high)
    assert high <= math.nextafter(low, math.inf)


@given(cases(kinds=("gaussian", "spread"), modes=("reflect", "replicate", "circular")))
@network_settings
def test_inf_norm_adds_taps_that_meet_before_their_size(case):
    """The matrix in rationals, by the rule of the padding mode itself."""
    exact = max(sum(map(abs, row.values()), Fraction(0)) for row in rational_rows(case))
    low, high = (of(case, math.inf, sense).value for sense in (Sense.LOWER, Sense.UPPER))
    assert Fraction(low) <= exact <= Fraction(high)
    assert high <= math.nextafter(low, math.inf)


def source(mode: str, i: int, n: int) -> int:
    """The input that position i of the padded axis holds."""
    if mode == "circular":
        return i % n
    if mode == "replicate":
        return min(max(i, 0), n - 1)
    return -i if i < 0 else 2 * (n - 1) - i if i >= n else i


def rational_rows(case: Case):
    conv, (channels, *sizes) = case.conv, case.shape
    outs = conv_output_shape(conv, case.shape)
    per, width = outs[0] // conv.groups, channels // conv.groups
    for o, *j in np.ndindex(*outs):
        row: dict[tuple[int, ...], Fraction] = {}
        for c, *t in np.ndindex(width, *conv.kernel):
            place = tuple(
                source(conv.padding_mode, a * s + b * d - p[0], n)
                for a, b, s, d, p, n in zip(j, t, conv.stride, conv.dilation, conv.padding, sizes, strict=True)
            )
            key = (o // per * width + c, *place)
            row[key] = row.get(key, Fraction(0)) + Fraction(float(conv.weight[(o, c, *t)]))
        yield row


def test_inf_norm_with_ties_by_the_hundred():
    conv = Conv(np.full((600, 1, 3), 0.1), padding=((1, 1),))
    low, high = (conv_norm_bound(conv, (1, 5), math.inf, s).value for s in (Sense.LOWER, Sense.UPPER))
    assert Fraction(low) <= 3 * Fraction(0.1) <= Fraction(high)
    assert high - low < 1e-13


# ---------------------------------------------------------------- uncertain kernels, singular values


@given(cases(kinds=("gaussian", "integers")), st.sampled_from((1e-3, 0.1)), st.integers(0, 2**32 - 1))
@network_settings
def test_a_relative_error_covers_every_kernel_near(case, rate, seed):
    rng = np.random.default_rng(seed)
    conv = case.conv
    signs = rng.choice([-1.0, 1.0], conv.weight.shape) * rng.choice([0.0, 1.0, 1.0])
    others = [conv.weight * (1 + rate * signs), conv.weight * (1 + rate), conv.weight * (1 - rate)]
    for norm in (2.0, math.inf):
        bounds = (conv_norm_bound(conv, case.shape, norm, s, relative_error=rate) for s in (Sense.LOWER, Sense.UPPER))
        low, high = bounds
        for weight in others:
            near = Conv(weight, None, conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode)
            A = materialised(near, case.shape)
            true = np.linalg.norm(A, 2 if norm == 2 else np.inf)
            assert low.value <= true * (1 + NEAR) + 1e-14
            assert high.value >= true * (1 - NEAR)
        assert low.certificate.verify(conv) and high.certificate.verify(conv)


@given(cases(kinds=("gaussian", "integers")))
@network_settings
def test_singular_values_of_the_torus_are_above_those_of_the_operator(case):
    true = np.linalg.svd(materialised(case.conv, case.shape), compute_uv=False)
    above = torus_singular_values(case.conv, case.shape)
    assert len(above) >= len(true)
    assert np.all(above[: len(true)] >= true * (1 - 1e-10) - 1e-12)
    assert np.all(np.diff(above) <= 1e-12)


def test_tight_closes_the_gap_that_tori_leave():
    """Random 3 x 3 kernels on 4 x 4: the plain torus is far above, the tight tier is not."""
    rng = np.random.default_rng(3)
    for _ in range(3):
        conv = Conv(rng.standard_normal((24, 24, 3, 3)) + 0.3, padding=((1, 1),) * 2)
        shape = (24, 4, 4)
        true, scale = scaled_svd(materialised(conv, shape))
        upper, lower = (f(conv, 2, shape, tier="tight") for f in (operator_norm_upper, operator_norm_lower))
        assert lower.value <= true * scale <= upper.value <= 1.01 * lower.value
        symbol = symbol_of(conv, shape)
        assert torus_bound(symbol, Grid((6, 6), (0, 0))) > 1.1 * true * scale
        gap = dict(upper.parameters)
        assert gap["gap"] == pytest.approx(upper.value / gap["lower bound"] - 1)
        assert gap["lower bound"] <= true * scale


def test_combinations_of_shifts_are_tried_where_they_matter():
    """A kernel that peaks at frequency π: the even torus of 6 points is best met by θ = 1/2, the odd one of 5 by 0."""
    conv = Conv(np.array([[[-1.0, 1.0, -1.0]]]), padding=((1, 1),))
    for n, shift in ((4, 0), (5, 2)):
        bound, grid = best_torus(symbol_of(conv, (1, n)), thorough=False)
        assert grid.shifts == (shift,)
        assert bound == pytest.approx(1 + 2 * math.cos(math.pi / (n + 1)), rel=1e-6)


def test_unread_taps_do_not_count():
    weight = np.full((1, 1, 3, 3), 100.0)
    weight[..., 1, 1] = 2.0
    conv = Conv(weight, padding=((1, 1), (1, 1)))
    assert symbol_of(conv, (1, 1, 1)).kernels.shape == (1, 1, 1, 1)
    assert operator_norm_upper(conv, 2, (1, 1, 1)).value == pytest.approx(2.0, rel=1e-9)


def test_layers_that_read_only_zeros_have_norm_zero():
    conv = Conv(np.ones((1, 1, 1)), padding=((0, 5),), stride=(3,))
    assert operator_norm_upper(conv, 2, (1, 1)).value == pytest.approx(1.0, rel=1e-9)
    dead = Conv(np.ones((1, 1, 1)) * 0.0)
    for norm in (2, math.inf):
        assert operator_norm_upper(dead, norm, (1, 4)).value == 0.0
        assert operator_norm_lower(dead, norm, (1, 4)).value == 0.0


def test_entries_that_scaling_loses_are_counted():
    conv = Conv(np.array([[[2.0**600, 2.0**-1074]]]))
    exact = Fraction(2) ** 600 + Fraction(2) ** -1074
    low, high = (f(conv, math.inf, (1, 5)).value for f in (operator_norm_lower, operator_norm_upper))
    assert Fraction(low) <= exact <= Fraction(high)
    below, above = conv_frobenius(conv, (1, 2))
    assert Fraction(below) ** 2 <= Fraction(2) ** 1200 + Fraction(2) ** -2148 <= Fraction(above) ** 2
    upper = operator_norm_upper(conv, 2, (1, 2))  # one row: √(2^1200 + 2^-2148)
    assert upper.value > 2.0**600 and upper.certificate.verify(conv)


@pytest.mark.parametrize("size", [1e-300, 1e-150, 1e150, 1e300])
def test_extreme_sizes_are_only_a_scale(size):
    exponent = round(math.log2(size))
    weight = kernel("gaussian", (3, 2, 3), 5)
    plain, moved = (Conv(weight * f, padding=((1, 1),)) for f in (1.0, 2.0**exponent))
    for norm, call in itertools.product((2, math.inf), (operator_norm_upper, operator_norm_lower)):
        assert call(moved, norm, (2, 7)).value == call(plain, norm, (2, 7)).value * 2.0**exponent
