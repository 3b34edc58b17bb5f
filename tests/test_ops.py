"""Every operation of the IR against torch in float64, and what it refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from certbound import ops
from certbound.activations import Activation
from certbound.errors import InputError
from certbound.graph import Graph, Node

SLOW = settings(max_examples=60, deadline=None)


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def tensor(array):
    return torch.from_numpy(np.array(array))


def check(op, expected, *values):
    """The formula, the shape rule, and that the value is not changed."""
    before = [v.copy() for v in values]
    got = op.apply(*values)
    np.testing.assert_allclose(got, expected.numpy(), rtol=1e-11, atol=1e-12)
    assert got.dtype == np.float64
    assert op.output_shape(*(v.shape for v in values)) == got.shape == tuple(expected.shape)
    assert all(np.array_equal(v, b) for v, b in zip(values, before, strict=True))


def axes_of(draw, count, low, high):
    return tuple(draw(st.integers(low, high)) for _ in range(count))


# -- convolution ------------------------------------------------------------------------------------------------------


@st.composite
def convolutions(draw):
    n = draw(st.integers(1, 3))
    groups = draw(st.integers(1, 3))
    inner, outer = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    kernel, stride, dilation = axes_of(draw, n, 1, 3), axes_of(draw, n, 1, 3), axes_of(draw, n, 1, 2)
    sizes = axes_of(draw, n, 3, 6 if n < 3 else 4)
    mode = draw(st.sampled_from(sorted(ops.PADDING_MODES)))
    most = min(sizes) - 1
    pads = tuple((draw(st.integers(0, most)), draw(st.integers(0, most))) for _ in range(n))
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    assume(all(s + sum(p) >= span for s, p, span in zip(sizes, pads, spans, strict=True)))
    weight = numbers(groups * outer, inner, *kernel, seed=draw(st.integers(0, 99)))
    bias = numbers(groups * outer) if draw(st.booleans()) else None
    return ops.Conv(weight, bias, stride, pads, dilation, groups, mode), numbers(1, groups * inner, *sizes, seed=1)


@SLOW
@given(convolutions())
def test_convolution(case):
    op, x = case
    n = x.ndim - 2
    around = [p for pair in reversed(op.padding) for p in pair]
    mode = "constant" if op.padding_mode == "zeros" else op.padding_mode
    padded = F.pad(tensor(x), around, mode=mode)
    conv = (F.conv1d, F.conv2d, F.conv3d)[n - 1]
    bias = None if op.bias is None else tensor(op.bias)
    check(op, conv(padded, tensor(op.weight), bias, op.stride, 0, op.dilation, op.groups), x)


def test_convolution_by_hand():
    op = ops.Conv([[[1.0, 10.0]]], [100.0], stride=(2,), padding=((0, 1),))
    np.testing.assert_array_equal(op.apply(np.array([[[1.0, 2.0, 3.0]]])), [[[121.0, 103.0]]])
    assert op.kernel == (2,)
    assert op.in_channels == 1
    assert op.matrix.shape == (1, 2)


def test_convolution_takes_several_rows_of_the_leading_axis():
    x = numbers(3, 2, 5)
    check(ops.Conv(numbers(4, 2, 3)), F.conv1d(tensor(x), tensor(numbers(4, 2, 3))), x)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"weight": numbers(2, 3)}, "weight"),
        ({"weight": numbers(2, 3, 1, 1, 1, 1)}, "weight"),
        ({"weight": np.zeros((0, 1, 1))}, "weight"),
        ({"weight": np.full((1, 1, 1), math.nan)}, "weight"),
        ({"bias": numbers(3)}, "bias"),
        ({"bias": numbers(2, 1)}, "bias"),
        ({"stride": (0, 1)}, "stride"),
        ({"stride": (1,)}, "stride"),
        ({"stride": (1, True)}, "stride"),
        ({"dilation": (1, 0)}, "dilation"),
        ({"padding": ((0, 0),)}, "padding"),
        ({"padding": ((0, -1), (0, 0))}, "padding"),
        ({"groups": 3}, "groups"),
        ({"groups": 0}, "groups"),
        ({"padding_mode": "same"}, "padding_mode"),
    ],
)
def test_convolution_refuses(arguments, name):
    with pytest.raises(InputError) as caught:
        ops.Conv(**({"weight": numbers(2, 3, 2, 2)} | arguments))
    assert caught.value.argument == name


@pytest.mark.parametrize(
    ("op", "shape"),
    [
        (ops.Conv(numbers(2, 3, 2, 2)), (1, 4, 5, 5)),
        (ops.Conv(numbers(2, 3, 2, 2)), (1, 3, 5)),
        (ops.Conv(numbers(2, 3, 2, 2)), (1, 3, 5, 1)),
        (ops.Conv(numbers(2, 3, 2, 2), groups=2), (1, 3, 5, 5)),
        (ops.Conv(numbers(1, 1, 1), padding=((3, 3),), padding_mode="reflect"), (1, 1, 3)),
        (ops.Conv(numbers(1, 1, 1), padding=((4, 4),), padding_mode="circular"), (1, 1, 3)),
        (ops.Linear(numbers(2, 3)), (1, 4)),
        (ops.Linear(numbers(2, 3)), ()),
        (ops.BatchNorm(np.zeros(3), np.ones(3)), (1, 2, 5)),
        (ops.BatchNorm(np.zeros(3), np.ones(3)), (3,)),
        (ops.Scale(numbers(2, 3)), (1, 3)),
        (ops.Shift(numbers(2)), (1, 3)),
        (ops.Shift(numbers(1, 1, 3)), (1, 3)),
        (ops.AvgPool((2, 2), (), ()), (1, 3, 4)),
        (ops.AvgPool((5, 2), (), ()), (1, 3, 4, 4)),
        (ops.MaxPool((2,), (), ()), (1, 3, 1)),
        (ops.MaxPool((2,), (1,), ((2, 1),), (3,)), (1, 3, 1)),  # its only window reads the places -2 and 1
        (ops.AdaptiveAvgPool((2, 2)), (1, 3, 4)),
        (ops.Mean((3,)), (1, 3, 4)),
        (ops.Mean((1, -2)), (1, 3, 4)),
        (ops.Reshape((1, 5)), (1, 3)),
        (ops.Permute((0, 0)), (1, 3)),
        (ops.Permute((0,)), (1, 3)),
        (ops.Slice(1, 0, 4), (1, 3)),
        (ops.Slice(1, 2, 2), (1, 3)),
        (ops.Slice(1, -1, 2), (1, 3)),
        (ops.Slice(2, 0, 1), (1, 3)),
        (ops.Slice(1, 0, 2, drops=True), (1, 3)),
        (ops.Slice(1, 0, 2, 0), (1, 3)),
        (ops.Gather(1, (3,)), (1, 3)),
        (ops.Gather(1, (-1,)), (1, 3)),
        (ops.Pad(((0, 0),)), (1, 3)),
        (ops.Pad(((0, 0), (0, -1))), (1, 3)),
        (ops.Roll((1,), (2,)), (1, 3)),
        (ops.Roll((1, 1), (1,)), (1, 3)),
        (ops.Expand((1, 4)), (1, 3)),
        (ops.Expand((3,)), (1, 3)),
        (ops.Softmax(2), (1, 3)),
        (ops.LayerNorm(3), (1, 3)),
        (ops.LayerNorm(1, weight=numbers(4)), (1, 3)),
        (ops.LayerNorm(2, weight=numbers(3)), (1, 3)),
    ],
)
def test_shapes_that_do_not_fit_are_refused(op, shape):
    with pytest.raises(InputError) as caught:
        op.output_shape(shape)
    assert op.kind in caught.value.argument


@pytest.mark.parametrize(
    ("op", "shapes"),
    [
        (ops.Add(), ((1, 3), (1, 4))),
        (ops.Add(), ((1, 3), (3,))),
        (ops.Multiply(), ((1, 3), (1, 1))),
        (ops.MatMul(), ((1, 3), (1, 3))),
        (ops.MatMul(), ((3,), (3, 1))),
        (ops.MatMul(), ((2, 3, 4), (1, 4, 3))),
        (ops.Concat(1), ((1, 3), (2, 3))),
        (ops.Concat(1), ((1, 3), (1, 3, 1))),
        (ops.Concat(2), ((1, 3), (1, 3))),
    ],
)
def test_pairs_of_shapes_that_do_not_fit_are_refused(op, shapes):
    with pytest.raises(InputError, match=op.kind):
        op.output_shape(*shapes)


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda: ops.Linear(numbers(3)), "weight"),
        (lambda: ops.Linear(numbers(2, 3), numbers(3)), "bias"),
        (lambda: ops.BatchNorm(numbers(3), np.ones(2)), "variance"),
        (lambda: ops.BatchNorm(numbers(3), np.ones(3), weight=numbers(2)), "weight"),
        (lambda: ops.BatchNorm(numbers(2), np.array([1.0, -1.0]), 0.5), "variance"),
        (lambda: ops.BatchNorm(numbers(2), np.zeros(2), 0.0), "variance"),
        (lambda: ops.BatchNorm(numbers(2), np.zeros(2), math.nan), "variance"),
        (lambda: ops.Scale(np.array([1.0, 0.0]), divides=True), "factor"),
        (lambda: ops.Scale(np.array(math.inf)), "factor"),
        (lambda: ops.Shift(np.array([-math.inf])), "offset"),
        (lambda: ops.Constant(np.array([math.nan])), "value"),
        (lambda: ops.Clip(1.0, 0.0), "low"),
        (lambda: ops.Clip(math.nan, 0.0), "low"),
        (lambda: ops.Pad(((0, 1),), math.inf), "value"),
        (lambda: ops.MaxPool((2,), (), ((2, 0),)), "padding"),
        (lambda: ops.MaxPool((2,), (), ((0, 0), (0, 0))), "padding"),
        (lambda: ops.MaxPool((2,), (0,), ()), "stride"),
        (lambda: ops.MaxPool((2,), (), (), (0,)), "dilation"),
        (lambda: ops.MaxPool((), (), ()), "kernel"),
        (lambda: ops.AvgPool((2, 3), (), ((0, 0), (0, 3))), "padding"),
        (lambda: ops.AvgPool((2, 0), (), ()), "kernel"),
        (lambda: ops.AdaptiveAvgPool((0,)), "output"),
        (lambda: ops.LayerNorm(1, 0.0), "eps"),
        (lambda: ops.LayerNorm(1, math.nan), "eps"),
        (lambda: ops.LayerNorm(1, weight=np.array([math.inf])), "weight"),
    ],
)
def test_values_that_cannot_be_used_are_refused(build, name):
    with pytest.raises(InputError) as caught:
        build()
    assert caught.value.argument == name


# -- affine maps ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3,), (1, 3), (1, 4, 3), (2, 1, 4, 3)])
@pytest.mark.parametrize("bias", [None, numbers(2)])
def test_linear(shape, bias):
    x, weight = numbers(*shape), numbers(2, 3, seed=1)
    check(ops.Linear(weight, bias), F.linear(tensor(x), tensor(weight), None if bias is None else tensor(bias)), x)


@pytest.mark.parametrize("shape", [(1, 3), (1, 3, 4), (2, 3, 4, 2), (1, 3, 2, 2, 2)])
@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm(shape, affine):
    x, mean, variance = numbers(*shape), numbers(3, seed=1), numbers(3, seed=2) ** 2
    weight, bias = (numbers(3, seed=3), numbers(3, seed=4)) if affine else (None, None)
    op = ops.BatchNorm(mean, variance, 1e-3, weight, bias)
    given = [None if v is None else tensor(v) for v in (mean, variance, weight, bias)]
    check(op, F.batch_norm(tensor(x), *given, eps=1e-3), x)


def test_batch_norm_by_hand():
    op = ops.BatchNorm(np.array([1.0]), np.array([3.0]), 1.0, np.array([4.0]), np.array([10.0]))
    assert op.scale.tolist() == [2.0]
    assert op.apply(np.array([[3.0]])).tolist() == [[14.0]]


@pytest.mark.parametrize("factor", [np.array(2.5), numbers(3), numbers(2, 1), numbers(1, 2, 3)])
def test_scale_and_shift(factor):
    x = numbers(1, 2, 3, seed=5)
    check(ops.Scale(factor), tensor(x) * tensor(factor), x)
    check(ops.Scale(factor, divides=True), tensor(x) / tensor(factor), x)
    check(ops.Shift(factor), tensor(x) + tensor(factor), x)


@pytest.mark.parametrize(("axes", "keep"), [((1,), False), ((-1, 2), False), ((2, 3), True), ((0, 1, 2, 3), False)])
def test_mean(axes, keep):
    x = numbers(1, 2, 3, 4)
    op = ops.Mean(axes, keep)
    check(op, tensor(x).mean(axes, keepdim=keep), x)
    assert op.count(x.shape) == x.size // op.apply(x).size


# -- pooling ----------------------------------------------------------------------------------------------------------


@st.composite
def windows(draw):
    """Kernel, stride, padding and dilation that torch allows, and an input."""
    n = draw(st.integers(1, 3))
    kernel, stride, dilation = axes_of(draw, n, 1, 3), axes_of(draw, n, 1, 3), axes_of(draw, n, 1, 2)
    pads = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    sizes = axes_of(draw, n, 1, 6 if n < 3 else 4)
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    assume(all(s + 2 * p >= span for s, p, span in zip(sizes, pads, spans, strict=True)))
    return kernel, stride, pads, dilation, numbers(1, 2, *sizes, seed=draw(st.integers(0, 99))) - 3.0


@SLOW
@given(windows())
def test_max_pool(case):
    kernel, stride, pads, dilation, x = case
    pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[x.ndim - 3]
    expected = pool(tensor(x), kernel, stride, pads, dilation)
    assume(bool(torch.isfinite(expected).all()))  # dilated windows of padding alone: refused here
    check(ops.MaxPool(kernel, stride, tuple((p, p) for p in pads), dilation), expected, x)


@SLOW
@given(windows(), st.booleans())
def test_avg_pool(case, include):
    kernel, stride, pads, _, x = case
    room = 0 if x.ndim == 5 else 1  # torch's avg_pool3d wants an input as large as the window
    assume(all(s + 2 * p * room >= k for s, p, k in zip(x.shape[2:], pads, kernel, strict=True)))
    pool = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[x.ndim - 3]
    expected = pool(tensor(x), kernel, stride, pads, count_include_pad=include)
    check(ops.AvgPool(kernel, stride, tuple((p, p) for p in pads), include), expected, x)


def test_pools_with_unequal_padding_by_hand():
    x = np.array([[[-1.0, -2.0, -4.0]]])
    np.testing.assert_array_equal(ops.MaxPool((2,), (2,), ((0, 1),)).apply(x), [[[-1.0, -4.0]]])
    np.testing.assert_array_equal(ops.MaxPool((2,), (1,), ((1, 0),)).apply(x), [[[-1.0, -1.0, -2.0]]])
    np.testing.assert_array_equal(ops.AvgPool((2,), (2,), ((0, 1),)).apply(x), [[[-1.5, -2.0]]])
    np.testing.assert_array_equal(ops.AvgPool((2,), (2,), ((0, 1),), False).apply(x), [[[-1.5, -4.0]]])
    np.testing.assert_array_equal(ops.AvgPool((2,), (2,), ((0, 1),), False).counts((3,)), [2.0, 1.0])
    assert ops.MaxPool((2, 3), (), ()).stride == (2, 3)


@SLOW
@given(st.data(), st.integers(1, 3))
def test_adaptive_average_pool(data, n):
    sizes, output = axes_of(data.draw, n, 1, 5), axes_of(data.draw, n, 1, 7)
    x = numbers(1, 2, *sizes)
    pool = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[n - 1]
    op = ops.AdaptiveAvgPool(output)
    check(op, pool(tensor(x), output), x)
    assert all(np.allclose(m.sum(axis=1), 1.0, atol=1e-15) for m in op.matrices(sizes))


# -- elementwise ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("relu", F.relu), ("leaky_relu", lambda x: F.leaky_relu(x, 0.3)), ("tanh", torch.tanh),
        ("sigmoid", torch.sigmoid), ("gelu", F.gelu), ("gelu_tanh", lambda x: F.gelu(x, approximate="tanh")),
        ("silu", F.silu),
    ],
)  # fmt: skip
def test_activations(name, function):
    x = 3.0 * numbers(1, 50)
    op = ops.Pointwise(Activation(name, 0.3 if name == "leaky_relu" else 0.0))
    check(op, function(tensor(x)), x)
    assert op.kind == name


@pytest.mark.parametrize(("low", "high"), [(0.0, 6.0), (-1.0, 1.0), (0.5, 0.5), (-math.inf, 0.0), (0.0, math.inf)])
def test_clip(low, high):
    x = 4.0 * numbers(1, 20)
    check(ops.Clip(low, high), tensor(x).clamp(low, high), x)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_softmax(axis):
    x = 300.0 * numbers(2, 3, 4)
    check(ops.Softmax(axis), tensor(x).softmax(axis), x)
    masked = np.array([[0.0, -math.inf]])
    np.testing.assert_array_equal(ops.Softmax().apply(masked), [[1.0, 0.0]])


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("affine", [True, False])
def test_layer_norm(axes, affine):
    x = numbers(1, 2, 3, 4)
    shape = x.shape[-axes:]
    weight, bias = (numbers(*shape, seed=1), numbers(*shape, seed=2)) if affine else (None, None)
    given = [None if v is None else tensor(v) for v in (weight, bias)]
    check(ops.LayerNorm(axes, 1e-2, weight, bias), F.layer_norm(tensor(x), shape, *given, eps=1e-2), x)


# -- moving numbers ---------------------------------------------------------------------------------------------------


def test_moving_numbers():
    x = numbers(1, 4, 6)
    t = tensor(x)
    check(ops.Reshape((2, 12)), t.reshape(2, 12), x)
    check(ops.Permute((2, 0, 1)), t.permute(2, 0, 1), x)
    check(ops.Slice(1, 1, 3), t[:, 1:3], x)
    check(ops.Slice(-1, 1, 6, 2), t[..., 1:6:2], x)
    check(ops.Slice(-1, 2, 3, drops=True), t[..., 2], x)
    check(ops.Slice(0, 0, 1, drops=True), t[0], x)
    check(ops.Gather(1, (3, 0, 0)), t[:, [3, 0, 0]], x)
    check(ops.Gather(-1, (5, 4)), t[..., [5, 4]], x)
    check(ops.Pad(((0, 0), (1, 2), (3, 0)), -2.5), F.pad(t, (3, 0, 1, 2), value=-2.5), x)
    check(ops.Roll((1, -2), (1, 2)), t.roll((1, -2), (1, 2)), x)
    check(ops.Expand((3, 4, 6)), t.expand(3, 4, 6), x)
    check(ops.Expand((2, 3, 4, 6)), t.expand(2, 3, 4, 6), x)


def test_several_values():
    a, b = numbers(1, 2, 3), numbers(1, 2, 3, seed=1)
    ta, tb = tensor(a), tensor(b)
    check(ops.Add(), ta + tb, a, b)
    check(ops.Add(subtracts=True), ta - tb, a, b)
    check(ops.Multiply(), ta * tb, a, b)
    check(ops.MatMul(), ta @ tb.mT, a, b.transpose(0, 2, 1))
    check(ops.Concat(-1), torch.cat([ta, tb, ta], -1), a, b, a)
    check(ops.Concat(1), torch.cat([ta], 1), a)


# -- digests ----------------------------------------------------------------------------------------------------------


def test_every_field_is_part_of_the_digest():
    weight, one = numbers(2, 1, 2), np.ones(2)
    different = [
        ops.Conv(weight), ops.Conv(2 * weight), ops.Conv(weight, one), ops.Conv(weight, stride=(2,)),
        ops.Conv(weight, padding=((0, 1),)), ops.Conv(weight, padding=((1, 0),)), ops.Conv(weight, dilation=(2,)),
        ops.Conv(weight, padding=((0, 1),), padding_mode="reflect"),
        ops.MaxPool((2,), (1,), ()), ops.MaxPool((2,), (), ()), ops.MaxPool((2,), (1,), (), (2,)),
        ops.MaxPool((2,), (1,), ((1, 0),)), ops.AvgPool((2,), (1,), ()), ops.AvgPool((2,), (1,), (), False),
        ops.AvgPool((2,), (), ()),
        ops.Mean((2,)), ops.Mean((2,), True), ops.Mean((1,)), ops.Clip(0.0, 1.0), ops.Clip(-1.0, 1.0),
        ops.Scale(one[:1]), ops.Scale(one[:1], True), ops.Shift(one[:1]),
        ops.Slice(1, 0, 1), ops.Slice(1, 0, 1, drops=True), ops.Slice(2, 0, 1), ops.Gather(1, (0,)),
        ops.Gather(2, (0,)),
        ops.Pad(((0, 0),) * 3), ops.Pad(((0, 0),) * 3, 1.0), ops.Softmax(1), ops.Softmax(2),
        ops.LayerNorm(1), ops.LayerNorm(2), ops.LayerNorm(1, 1e-3), ops.LayerNorm(1, weight=np.ones(4)),
        ops.LayerNorm(1, bias=np.ones(4)),
        ops.BatchNorm(one[:1], one[:1]), ops.BatchNorm(2 * one[:1], one[:1]), ops.BatchNorm(one[:1], 2 * one[:1]),
        ops.BatchNorm(one[:1], one[:1], weight=one[:1]), ops.BatchNorm(one[:1], one[:1], bias=one[:1]),
        ops.Pointwise(Activation("relu")), ops.Pointwise(Activation("tanh")),
        ops.Pointwise(Activation("leaky_relu", 0.1)), ops.Pointwise(Activation("leaky_relu", 0.2)),
        ops.Expand((1, 1, 4)), ops.Reshape((1, 1, 4)), ops.Permute((0, 1, 2)), ops.Permute((1, 0, 2)),
        ops.Roll((1,), (1,)), ops.Roll((1,), (2,)), ops.AdaptiveAvgPool((1,)), ops.AdaptiveAvgPool((2,)),
        ops.Linear(np.ones((1, 4))), ops.Linear(np.ones((1, 4)), np.ones(1)),
    ]  # fmt: skip
    digests = [Graph((Node(ops.Input((1, 1, 4))), Node(op, (0,)))).digest for op in different]
    assert len(set(digests)) == len(different)


def test_arrays_cannot_be_changed_afterwards():
    op = ops.Linear([[1.0]])
    with pytest.raises(ValueError, match="read-only"):
        op.weight[0, 0] = 2.0
