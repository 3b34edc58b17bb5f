"""Constants of single operations: exact values, attained suprema, sampled Jacobians, adversarial search."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from graph_cases import jacobian, matrix_norm, quotient
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from certbound.activations import Activation
from certbound.errors import InputError
from certbound.graph import Graph, Node
from certbound.norms.blocks import (
    Factors,
    activation_constant,
    average_matrices,
    average_pool_constant,
    batch_norm_factors,
    clip_constant,
    kernel_error_norm,
    layer_norm_constant,
    matrix_norm_up,
    max_pool_constant,
    mean_constant,
    multiplicity_constant,
    padding_multiplicity,
    scale_factors,
    scaled_kernel,
    softmax_constant,
    softmax_local_constant,
    windows_of_an_input,
)
from certbound.ops import (
    AdaptiveAvgPool,
    AvgPool,
    BatchNorm,
    Clip,
    Conv,
    Input,
    LayerNorm,
    MaxPool,
    Mean,
    Scale,
    Softmax,
)

NORMS = (2.0, math.inf)


def alone(op, shape):
    return Graph((Node(Input(shape)), Node(op, (0,))))


def matrix_of(op, shape):
    n = math.prod(shape)
    return np.stack([op.apply(row.reshape(shape)).reshape(-1) for row in np.eye(n)], axis=1)


# ---------------------------------------------------------------- pooling

@st.composite
def axes(draw):
    """Kernel, stride, padding below and above, and size of one axis."""
    kernel = draw(st.integers(1, 3))
    low, high = draw(st.integers(0, kernel - 1)), draw(st.integers(0, kernel - 1))
    return kernel, draw(st.integers(1, 3)), low, high, draw(st.integers(max(1, kernel - low - high), 7))


@settings(max_examples=150, deadline=None)
@given(axes(), axes(), st.integers(1, 2))
def test_max_pool_is_exact_and_attained(one, two, dilation):
    (k, s, a, b, n), (j, t, c, d, m) = one, two
    shape = (1, 2, n, m)
    try:
        op = MaxPool((k, j), (s, t), ((a, b), (c, d)), (dilation, dilation))
        op.output_shape(shape)
    except InputError:  # a dilated window larger than the image, or on padding alone
        assume(False)
    # counted by brute force: raise one pixel and see how many outputs follow
    counts = np.array([
        np.count_nonzero(op.apply(5.0 * row.reshape(shape)) == 5.0) for row in np.eye(math.prod(shape))
    ])  # fmt: skip
    assert windows_of_an_input(op, (n, m)) == counts.max()
    value = max_pool_constant(op, 2.0, shape)
    assert value == pytest.approx(math.sqrt(counts.max()), rel=1e-15)
    if counts.max():
        # a peak attains it
        peak = np.zeros(shape).reshape(-1)
        peak[counts.argmax()] = 1.0
        graph = alone(op, shape)
        assert quotient(graph, peak, 2 * peak, 2.0) == pytest.approx(value)
        assert max_pool_constant(op, math.inf, shape) == quotient(graph, peak, 2 * peak, math.inf) == 1.0
    rng = np.random.default_rng(n + 10 * m)
    for norm in NORMS:
        x, y = rng.standard_normal((2, math.prod(shape)))
        assert quotient(alone(op, shape), x, y, norm) <= max_pool_constant(op, norm, shape) * (1 + 1e-12)


@settings(max_examples=150, deadline=None)
@given(axes(), axes(), st.booleans())
def test_average_pooling_is_the_norm_of_its_matrix(one, two, include):
    (k, s, a, b, n), (j, t, c, d, m) = one, two
    shape = (1, 1, n, m)
    try:
        op = AvgPool((k, j), (s, t), ((a, b), (c, d)), include)
        A = matrix_of(op, shape)
    except InputError:  # a window on padding alone
        assume(False)
    assume(bool(np.all(np.isfinite(A))))
    for norm in NORMS:
        value, exact = average_pool_constant(op, norm, (1, 3, n, m)), matrix_norm(A, norm)
        assert exact * (1 - 1e-14) <= value <= exact * (1 + 1e-10)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
def test_adaptive_average_pooling(n, m, out, wide):
    op, shape = AdaptiveAvgPool((out, wide)), (1, 1, n, m)
    A = matrix_of(op, shape)
    for norm in NORMS:
        value, exact = average_pool_constant(op, norm, shape), matrix_norm(A, norm)
        assert exact * (1 - 1e-14) <= value <= exact * (1 + 1e-10)


def test_averages_in_exact_rationals():
    """Entries of 1/3 are rounded below the true ones: the bound counts that."""
    op = AvgPool((3,), (3,), ((0, 0),))
    assert Fraction(average_pool_constant(op, math.inf, (1, 1, 9))) >= 1
    assert Fraction(average_pool_constant(op, 2.0, (1, 1, 9))) ** 2 >= Fraction(1, 3)
    assert average_matrices(op, (9,))[0].shape == (3, 9)
    assert Fraction(mean_constant(Mean((2,)), 2.0, (1, 1, 3))) ** 2 >= Fraction(1, 3)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("axes", [(1,), (2, 3), (-1,), (1, 2, 3)])
def test_means(axes, norm):
    op, shape = Mean(axes), (1, 2, 3, 4)
    exact = matrix_norm(matrix_of(op, shape), norm)
    assert exact * (1 - 1e-14) <= mean_constant(op, norm, shape) <= exact * (1 + 1e-14)


def test_copies():
    assert multiplicity_constant(3, 2.0) ** 2 >= 3.0
    assert [multiplicity_constant(n, math.inf) for n in (0, 1, 5)] == [0.0, 1.0, 1.0]


# ---------------------------------------------------------------- diagonal maps


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**20))
def test_batch_norm_scales_are_enclosed(seed):
    rng = np.random.default_rng(seed)
    n = 5
    op = BatchNorm(rng.standard_normal(n), 10.0 ** rng.uniform(-8, 3, n), 10.0 ** rng.uniform(-8, -2),
                   rng.standard_normal(n) * 10.0 ** rng.uniform(-5, 5))  # fmt: skip
    f = batch_norm_factors(op)
    for i in range(n):
        # (w/√t)² = w²/t in exact rationals
        square = Fraction(op.weight[i]) ** 2 / (Fraction(op.variance[i]) + Fraction(op.eps))
        assert Fraction(float(f.low[i])) ** 2 <= square <= Fraction(float(f.high[i])) ** 2
        assert f.low[i] <= abs(f.value[i]) <= f.high[i]
        assert f.high[i] - f.low[i] <= 2e-15 * f.high[i]
        assert np.sign(f.value[i]) == np.sign(op.weight[i])
    assert f.largest == f.high.max()


def test_divisors_are_enclosed():
    f = scale_factors(Scale(np.array([3.0, -7.0]), divides=True))
    for i, exact in enumerate((Fraction(1, 3), Fraction(1, 7))):
        assert Fraction(float(f.low[i])) < exact < Fraction(float(f.high[i]))
    assert scale_factors(Scale(np.array([3.0, -7.0]))).largest == 7.0


def test_scaled_kernels_count_underflow():
    weight, factors = np.array([[1e-300]]), Factors.exact(np.array([1e-300]))
    kernel, error = scaled_kernel(weight, factors, None)
    assert kernel[0, 0] == 0.0
    assert error[0, 0] > 0.0
    assert scaled_kernel(weight, None, None)[1] is None


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**20), st.sampled_from(["zeros", "reflect", "replicate", "circular"]), st.sampled_from([1, 2]))
def test_bound_of_an_error_kernel(seed, mode, groups):
    rng = np.random.default_rng(seed)
    # up to three times as many outputs as inputs: then columns weigh more than rows
    E = rng.random((int(rng.choice([2, 4, 12])), 4 // groups, 3))
    conv = Conv(E, None, (int(rng.integers(1, 3)),), ((2, 1),), (), groups, mode)
    A = matrix_of(conv, (1, 4, 5))
    words = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
    copies = padding_multiplicity((5,), conv.padding, words[mode])
    for norm in NORMS:
        assert matrix_norm(A, norm) <= kernel_error_norm(E, norm, groups, copies) * (1 + 1e-12)


# ---------------------------------------------------------------- softmax


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 6), st.integers(0, 2**20), st.sampled_from(NORMS))
def test_softmax(n, seed, norm):
    rng = np.random.default_rng(seed)
    z = rng.standard_normal(n) * 10.0 ** rng.uniform(-1, 1.5)
    p = Softmax().apply(z)
    J = np.diag(p) - np.outer(p, p)
    assert matrix_norm(J, norm) <= softmax_constant(n) + 1e-15
    local = softmax_local_constant(p * (1 - 1e-12), np.minimum(p * (1 + 1e-12), 1.0), norm)
    assert matrix_norm(J, norm) <= local * (1 + 1e-12) + 1e-15
    assert local <= 0.5
    # rows of an interval of probabilities: every member is bounded
    other = Softmax().apply(z + 0.1 * rng.standard_normal(n))
    both = softmax_local_constant(np.minimum(p, other), np.maximum(p, other), norm)
    assert matrix_norm(J, norm) <= both + 1e-12


@pytest.mark.parametrize("norm", NORMS)
def test_softmax_attains_one_half(norm):
    assert matrix_norm(jacobian(alone(Softmax(), (1, 2)), np.zeros(2)), norm) == pytest.approx(0.5)
    almost = np.array([0.0, 0.0, -40.0, -40.0])
    assert matrix_norm(jacobian(alone(Softmax(), (1, 4)), almost), norm) == pytest.approx(0.5, rel=1e-12)


# ---------------------------------------------------------------- layer normalisation


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 7), st.integers(0, 2**20), st.sampled_from(NORMS), st.sampled_from([1e-5, 0.01, 1.0]))
def test_layer_norm(n, seed, norm, eps):
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal(n) if rng.random() < 0.5 else None
    op = LayerNorm(1, eps, weight)
    x = rng.standard_normal(n) * math.sqrt(eps) * 10.0 ** rng.uniform(-1, 1.5)
    size = matrix_norm(jacobian(alone(op, (1, n)), x), norm)
    assert size <= layer_norm_constant(op, norm, n) * (1 + 1e-9)
    variance = float(np.var(x)) * (1 - 1e-9)
    assert size <= layer_norm_constant(op, norm, n, variance) * (1 + 1e-7) + 1e-12
    assert layer_norm_constant(op, norm, n, variance) <= layer_norm_constant(op, norm, n) * (1 + 1e-12)
    gain = 1.0 if weight is None else float(np.max(np.abs(weight)))
    assert layer_norm_constant(op, norm, n) == pytest.approx(gain * layer_norm_constant(op, norm, n, scaled=False))


def test_layer_norm_in_two_and_in_one_dimension():
    """n = 1: constant. n = 2: at two equal numbers the Jacobian is P/√ε, of norm 1/√ε."""
    op = LayerNorm(1, 0.04)
    assert layer_norm_constant(op, 2.0, 1) == layer_norm_constant(op, math.inf, 1) == 0.0
    assert matrix_norm(jacobian(alone(op, (1, 1)), np.array([3.0])), 2.0) == 0.0
    for n in (2, 3, 5):
        attained = matrix_norm(jacobian(alone(op, (1, n)), np.full(n, 0.7)), 2.0)
        assert attained == pytest.approx(5.0) == pytest.approx(layer_norm_constant(op, 2.0, n))


@pytest.mark.parametrize("n", [3, 5])
def test_local_constant_of_layer_norm_is_attained_in_l2(n):
    op, x = LayerNorm(1, 0.04), np.arange(float(n))
    attained = matrix_norm(jacobian(alone(op, (1, n)), x), 2.0)
    assert attained == pytest.approx(layer_norm_constant(op, 2.0, n, float(np.var(x))), rel=1e-9)


@pytest.mark.parametrize(("n", "ratio"), [(2, 1.2), (3, 1.3), (8, 1.15), (64, 1.05), (768, 1.05)])
def test_the_linf_constant_of_layer_norm_is_close(n, ratio):
    """Search over the family that its proof suggests: one large entry, half of the others to each side."""
    op, best = LayerNorm(1, 1.0), 0.0
    k = (n - 1) // 2
    for first in np.linspace(0.0, math.sqrt(n), 30):
        for other in np.linspace(0.0, 2.0, 15):
            x = np.zeros(n)
            x[0] = first
            x[1 : 1 + k], x[1 + k :] = other, -other
            c = x - x.mean()
            s = math.sqrt(np.mean(c * c) + 1.0)
            row = -c[0] * c / (n * s * s) - 1.0 / n
            row[0] += 1.0
            best = max(best, float(np.abs(row).sum()) / s)
    bound = layer_norm_constant(op, math.inf, n)
    assert best <= bound * (1 + 1e-12)
    assert bound <= ratio * best
    assert n < 8 or bound < math.sqrt(n - 1)


# ---------------------------------------------------------------- the rest


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "tanh", "sigmoid", "gelu", "gelu_tanh", "silu"])
def test_activations(name):
    phi = Activation(name, -2.0 if name == "leaky_relu" else 0.0)
    x = np.linspace(-8, 8, 20001)
    slopes = np.abs(np.diff(phi.forward(x)) / np.diff(x))
    assert slopes.max() <= activation_constant(phi) * (1 + 1e-9) <= slopes.max() * (1 + 1e-3)


def test_clip():
    assert clip_constant(Clip(-math.inf, math.inf)) == 1.0
    assert clip_constant(Clip(2.0, 2.0)) == 0.0


def test_matrices():
    W = np.array([[3.0, 0.0], [0.0, 1.0]])
    for norm in NORMS:
        assert matrix_norm_up(W, norm) == pytest.approx(3.0)
        assert matrix_norm_up(W, norm, np.eye(2)) >= 4.0
        assert matrix_norm_up(np.array([[math.inf]]), norm) == math.inf
        assert matrix_norm_up(W, norm, np.full((2, 2), math.inf)) == math.inf
