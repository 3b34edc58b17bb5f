"""Theorem 3.1 on operators of convolutions: against the operator, materialised column by column, and its exact SVD."""

from __future__ import annotations

import math

import numpy as np
import pytest
from budget import MATRIX_EXAMPLES, PROFILE, matrix_settings
from hypothesis import given, settings
from hypothesis import strategies as st

from certbound import check_theorem31
from certbound.compressibility import profile, row_tails
from certbound.ops import Conv, Linear
from certbound.theorems import layer_numbers as numbers
from certbound.theorems import layer_rows
from certbound.theorems.layer_rows import Settings, conv_row, linear_row, matrix_reading, operator_reading
from certbound.types import Rigor

FAST = Settings("fast", Rigor.NUMERICAL, "kth", None)


def materialised(conv: Conv, shape: tuple[int, ...]) -> np.ndarray:
    """The operator, one column an input, by the op's own forward."""
    n = math.prod(shape)
    bare = Conv(conv.weight, None, conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode)
    return np.stack([bare.apply(e.reshape(1, *shape)).ravel() for e in np.eye(n)], axis=1)


@st.composite
def convolutions(draw, modes=("zeros", "zeros", "zeros", "circular", "reflect", "replicate")):
    """A small convolution with integer weights, and an input shape that it takes."""
    axes = draw(st.integers(1, 2))
    groups = draw(st.integers(1, 2))
    out, inside = groups * draw(st.integers(1, 2)), draw(st.integers(1, 2))
    kernel = [draw(st.integers(1, 3)) for _ in range(axes)]
    sizes = [draw(st.integers(3, 5 if axes == 2 else 8)) for _ in range(axes)]
    stride = tuple(draw(st.integers(1, 3)) for _ in range(axes))
    dilation = tuple(draw(st.integers(1, 2)) for _ in range(axes))
    padding = tuple((draw(st.integers(0, 2)), draw(st.integers(0, 2))) for _ in range(axes))
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    sizes = [max(n, span - sum(p)) for n, span, p in zip(sizes, spans, padding, strict=True)]
    count = out * inside * math.prod(kernel)
    flat = draw(st.lists(st.integers(-3, 3), min_size=count, max_size=count))
    weight = np.array(flat, dtype=float).reshape(out, inside, *kernel)
    mode = draw(st.sampled_from(modes))
    return Conv(weight, None, stride, padding, dilation, groups, mode), (inside * groups, *sizes)


# -- the rows -------------------------------------------------------------------------------------------------------


@matrix_settings
@given(convolutions())
def test_rows_are_those_of_the_operator(case):
    conv, shape = case
    A = materialised(conv, shape)
    rows = numbers.conv_rows(conv, shape)
    every = np.repeat(rows.nu.values, rows.nu.counts)
    assert np.allclose(every, -np.sort(-np.abs(A).sum(axis=1)), rtol=0, atol=1e-12)
    assert math.isclose(rows.frobenius, np.linalg.norm(A), rel_tol=1e-12, abs_tol=1e-12)
    tails = row_tails(A)
    assert np.allclose(rows.tails, tails[: len(rows.tails)], atol=1e-9)
    assert np.all(tails[len(rows.tails) :] == 0.0)
    assert rows.entries >= np.count_nonzero(A, axis=1).max()


def test_rows_by_hand():
    # kernel (1, 2, 4) on 5 points, padded by one: rows (2, 4), three times (1, 2, 4), (1, 2)
    rows = numbers.conv_rows(Conv([[[1.0, 2.0, 4.0]]], padding=((1, 1),)), (1, 5))
    assert rows.nu.values.tolist() == [7.0, 6.0, 3.0] and rows.nu.counts.tolist() == [3, 1, 1]
    part = numbers.neuron_numbers(rows, None, "kth")
    assert part.norm == 7.0 and math.isclose(part.epsilon, 1 - 7 / 30, rel_tol=1e-15)
    # tails: keep one of (1, 2, 4): √5/√21; two: 1/√21 (the row (1, 2) leaves 0); three: 0. Derived, best k_r:
    steps = [math.sqrt(5 * k) + math.sqrt(15) * t for k, t in ((1, math.sqrt(5 / 21)), (2, math.sqrt(1 / 21)), (3, 0))]
    assert math.isclose(part.bound, 7 / 30 * min(steps) * math.sqrt(88), rel_tol=1e-14)
    assert part.k_row == 3 and part.epsilon_row == 0.0


@given(st.lists(st.integers(0, 5), min_size=1, max_size=8), st.data())
def test_weighted_vectors_are_the_vectors_they_stand_for(values, data):
    counts = data.draw(st.lists(st.integers(1, 4), min_size=len(values), max_size=len(values)))
    theta = numbers.Weighted.of(np.array(values, dtype=float), np.array(counts))
    p = profile(np.repeat(np.array(values, dtype=float), counts))
    assert theta.length == sum(counts) and theta.top == p.top and math.isclose(theta.sum, p.sum)
    for k in range(1, theta.length + 1):
        found = theta.at(k)
        wanted = (p.epsilon[k - 1], p.kept[k - 1], p.beta_kth[k - 1], p.beta_mean[k - 1])
        assert np.allclose(found, wanted, rtol=1e-13, atol=1e-15), (k, found, wanted)


@pytest.mark.parametrize("shape", [(3, 7), (7, 3), (70, 90), (90, 70)])
def test_singular_values_and_tails_of_any_size(shape):
    W = np.random.default_rng(0).standard_normal(shape)
    assert np.allclose(numbers.matrix_singular_values(W), np.linalg.svd(W, compute_uv=False), rtol=1e-9)
    assert np.allclose(numbers.largest_tails(W), row_tails(W), atol=1e-12)


def test_singular_values_below_the_gram_matrix_digits_are_zero():
    # rank one: the Gram matrix's other eigenvalues are rounding, their roots would be 1e-8 and raise ε
    W = np.outer(np.arange(1.0, 81.0), np.arange(1.0, 101.0))
    sigma = numbers.matrix_singular_values(W)
    assert np.all(sigma[1:] == 0.0) and math.isclose(sigma[0], np.linalg.norm(W), rel_tol=1e-12)


# -- Theorem 3.1 ----------------------------------------------------------------------------------------------------


@matrix_settings
@given(convolutions())
def test_fourth_moment_is_above_and_exact_without_padding(case):
    conv, shape = case
    if conv.padding_mode != "zeros":
        return
    A = materialised(conv, shape)
    out = conv.output_shape((1, *shape))[2:]
    moment, exact = numbers.fourth_moment(conv, out), float(np.sum((A @ A.T) ** 2))
    assert moment >= exact * (1 - 1e-12)
    if not any(map(any, conv.padding)):
        assert math.isclose(moment, exact, rel_tol=1e-12, abs_tol=1e-12)


@settings(matrix_settings, max_examples=MATRIX_EXAMPLES[PROFILE] // 4)  # 15 ms each
@given(convolutions(), st.sampled_from([None, 0.1, 0.5, 1.0]), st.sampled_from(["kth", "mean"]))
def test_operator_reading_is_sound(case, share, dispersion):
    """Norms enclosed, ε on the allowed side, every bound above the norm, every lower bound below it."""
    conv, shape = case
    reading = operator_reading(conv, shape, Settings("fast", Rigor.NUMERICAL, dispersion, share))
    A = materialised(conv, shape)
    assert reading.shape == A.shape and reading.rigor is Rigor.RIGOROUS
    sigma, nu = np.linalg.svd(A, compute_uv=False), np.abs(A).sum(axis=1)
    up, down = 1 + 1e-10, 1 - 1e-10
    assert reading.norm_2[0] * down <= sigma[0] <= reading.norm_2[1] * up + 1e-12
    assert reading.norm_inf[0] * down <= nu.max() <= reading.norm_inf[1] * up
    for part, theta in ((reading.spectral, sigma), (reading.neuron, nu)):
        exact = profile(theta)
        i = part.k - 1
        if part.exact:
            assert math.isclose(part.epsilon, exact.epsilon[i], rel_tol=1e-9, abs_tol=1e-9)
        else:
            assert part.k == 1 and part.beta == 0.0
            assert part.epsilon <= exact.epsilon[0] + 1e-10
        assert part.beta >= exact.beta_mean[i] - 1e-9
        assert theta.max() <= part.bound * up + 1e-12
        assert theta.max() <= part.sharp * up + 1e-12
        assert part.lower <= theta.max() * up + 1e-12


@matrix_settings
@given(convolutions(modes=("zeros",)))
def test_exact_where_windows_are_apart(case):
    conv, shape = case
    if not numbers.windows_apart(conv):
        return
    A = materialised(conv, shape)
    positions = math.prod(conv.output_shape((1, *shape))[2:])
    sigma = numbers.apart_singular_values(conv, positions, min(A.shape))
    every = np.repeat(sigma.values, sigma.counts)
    assert len(every) == min(A.shape)
    assert np.allclose(every, np.linalg.svd(A, compute_uv=False), atol=1e-9)


def test_inputs_that_no_output_reads_count_as_singular_values():
    """(0; 1) at every second of three points: σ = (1, 1, 0); at k = 3 β is 1/3 (mean), 1 (kth), not 0."""
    conv = Conv([[[0.0]], [[1.0]]], stride=(2,))
    for dispersion, beta in (("mean", 1 / 3), ("kth", 1.0)):
        part = operator_reading(conv, (1, 3), Settings("fast", Rigor.NUMERICAL, dispersion, 1.0)).spectral
        assert part.k == 3 and math.isclose(part.beta, beta) and part.bound >= 1.0


@matrix_settings
@given(convolutions(modes=("zeros",)), st.integers(1, 4))
def test_smaller_images_have_smaller_norms(case, size):
    """The operator at the size where the lower bound is looked for is a submatrix of the layer's."""
    conv, shape = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layer_rows, "LOWER_SIZE", size)
        smaller = layer_rows.lower_shape(conv, shape, "fast")
    A, B = materialised(conv, shape), materialised(conv, smaller)
    assert all(n <= m for n, m in zip(smaller, shape, strict=True))
    inputs = np.arange(A.shape[1]).reshape(shape)[tuple(slice(n) for n in smaller)].ravel()
    out = conv.output_shape((1, *smaller))[1:]
    outputs = np.arange(A.shape[0]).reshape(conv.output_shape((1, *shape))[1:])[tuple(slice(n) for n in out)].ravel()
    assert np.array_equal(A[np.ix_(outputs, inputs)], B)


def test_only_zero_padding_is_cut_and_only_in_the_fast_tier():
    conv = Conv(np.ones((1, 1, 3)), padding=((1, 1),), padding_mode="circular")
    assert layer_rows.lower_shape(conv, (1, 100), "fast") == (1, 100)
    assert layer_rows.lower_shape(Conv(np.ones((1, 1, 3))), (1, 100), "tight") == (1, 100)
    assert layer_rows.lower_shape(Conv(np.ones((1, 1, 80))), (1, 100), "fast") == (1, 80)


def test_one_sided_part_by_hand():
    # A = (1 1 0; 0 1 1): σ² = 3, 1; Σσ⁴ = 10, ‖A‖_F = 2. Hölder: Σσ >= 8/√10. ε' = 1 − √3 √10/8 <= 1 − √3/(√3 + 1)
    conv = Conv([[[1.0, 1.0]]])
    assert numbers.fourth_moment(conv, (2,)) == 10.0
    part = numbers.one_sided_spectral(math.sqrt(3), 2, 2.0, 10.0)
    assert math.isclose(part.epsilon, 1 - math.sqrt(30) / 8) and not part.exact
    assert part.epsilon < 1 - math.sqrt(3) / (math.sqrt(3) + 1)
    assert math.isclose(part.bound, math.sqrt(30) / 8 * math.sqrt(2) * 2)
    assert math.isclose(part.lower, math.sqrt(2))
    # without a fourth moment: Σσ⁴ <= 3 · 4, Σσ >= 4/√3, ε' = 1 − 3/4
    assert math.isclose(numbers.one_sided_spectral(math.sqrt(3), 2, 2.0, None).epsilon, 0.25)


@pytest.mark.parametrize("dispersion", ["kth", "mean"])
@pytest.mark.parametrize("share", [None, 0.3])
def test_matrices_agree_with_check_theorem31(dispersion, share):
    W = np.random.default_rng(1).standard_normal((70, 80)) * np.linspace(0.1, 3, 80)
    reading = matrix_reading("matrix", W, Settings("fast", Rigor.NUMERICAL, dispersion, share))
    k = None if share is None else {"spectral": 21, "neuron": 21}
    report = check_theorem31(W, k=k, dispersion=dispersion)
    for mine, theirs in ((reading.spectral, report.spectral), (reading.neuron, report.neuron)):
        assert mine.k == theirs.k and mine.vacuous == theirs.vacuous and mine.k_row == theirs.k_row
        for name in ("epsilon", "beta", "norm", "slack"):
            assert math.isclose(getattr(mine, name), getattr(theirs, name), rel_tol=1e-9, abs_tol=1e-12), name
        for name in ("bound", "sharp", "lower"):
            assert math.isclose(getattr(mine, name), getattr(theirs, name).value, rel_tol=1e-9), name


def test_rigorous_matrices_are_enclosed():
    W = np.array([[3.0, 0.0], [0.0, 1.0]])
    reading = matrix_reading("matrix", W, Settings("fast", Rigor.RIGOROUS, "kth", None))
    assert reading.rigor is Rigor.RIGOROUS and reading.norm_2 == (3.0, 3.0)
    assert 0 < reading.spectral.bound - 0.75 * math.sqrt(20) < 1e-13
    assert reading.spectral.rigor is Rigor.RIGOROUS


@pytest.mark.parametrize("scale", [2.0**-600, 2.0**500])
def test_scale_of_the_weights_changes_nothing_else(scale):
    weight = np.arange(1.0, 10.0).reshape(1, 1, 3, 3)
    conv, large = (Conv(weight * s, padding=((1, 1),) * 2) for s in (1.0, scale))
    a, b = (conv_row(c, (), "c", (1, 5, 5), FAST) for c in (conv, large))
    for one, other in zip(a.readings, b.readings, strict=True):
        for mine, theirs in ((one.spectral, other.spectral), (one.neuron, other.neuron)):
            assert math.isclose(mine.epsilon, theirs.epsilon, rel_tol=1e-9)
            for name in ("norm", "bound", "sharp", "lower"):
                assert math.isclose(getattr(mine, name) * scale, getattr(theirs, name), rel_tol=1e-6), name


def test_zero_weights_have_zero_numbers():
    row = conv_row(Conv(np.zeros((2, 1, 3, 3)), padding=((1, 1),) * 2), (), "c", (1, 4, 4), FAST)
    for reading in row.readings:
        for part in (reading.spectral, reading.neuron):
            assert (part.norm, part.bound, part.sharp, part.lower, part.epsilon, part.slack) == (0, 0, 0, 0, 0, 1)
    assert row.factor_2 == 1.0


# -- rows of layers -------------------------------------------------------------------------------------------------


def test_factor_between_operator_and_kernel():
    # the kernel (1, 1, 1), same padding, n = 5: operator 1 + 2 cos(π/6), kernel matrix √3
    row = conv_row(Conv([[[1.0, 1.0, 1.0]]], padding=((1, 1),)), (), "c", (1, 5), FAST)
    assert math.isclose(row.factor_2, (1 + 2 * math.cos(math.pi / 6)) / math.sqrt(3), rel_tol=2e-2)
    assert row.factor_2 >= (1 + 2 * math.cos(math.pi / 6)) / math.sqrt(3) * (1 - 1e-12)
    assert row.factor_inf == 1.0 and not row.filters.guaranteed and row.operator.guaranteed


def test_linear_rows_name_how_many_vectors_they_are_applied_to():
    row = linear_row(Linear(np.eye(3)), ("w",), "fc", (7, 3), FAST)
    assert row.kind == "linear on 7 vectors" and row.output_shape == (7, 3)
    assert linear_row(Linear(np.eye(3)), ("w",), "fc", (3,), FAST).kind == "linear"
