"""What a review of the bounds of graphs found: each of these failed once."""

from __future__ import annotations

import math

import numpy as np
import pytest

from certbound.activations import Activation
from certbound.graph import Graph, Node
from certbound.io.graph_to_network import dense_network
from certbound.lipschitz.graph_boxes import Box, row_sizes, values_of
from certbound.lipschitz.graph_local import lipschitz_local
from certbound.lipschitz.graph_product import graph_product
from certbound.network import Ball
from certbound.ops import (
    Add,
    AvgPool,
    BatchNorm,
    Constant,
    Conv,
    Input,
    LayerNorm,
    Linear,
    MatMul,
    Mean,
    Pointwise,
    Reshape,
)
from certbound.theorems.layer_report import layer_report

RELU = Pointwise(Activation("relu"))
HUGE = np.array([1.7e308, 1.7e308, 1.7e308, 1.7e308])


def chain(shape, *ops):
    return Graph((Node(Input((1, *shape))), *(Node(op, (i,)) for i, op in enumerate(ops))))


# ---------------------------------------------------------------- wrong sides


@pytest.mark.parametrize("norm", [2, math.inf])
def test_a_ball_larger_than_a_huge_centre_has_rows_without_variance(norm):
    # the ball holds 0, where LayerNorm's slope is about 1/√eps = 316; the squares of its centre overflow
    bound = lipschitz_local(chain((3,), LayerNorm(1)), Ball([1e160, -1e160, 0.0], 1e170, norm)).value
    assert bound >= 316.0


def test_row_sizes_do_not_overflow():
    low, high = row_sizes(Box.point(np.array([[3e200, 4e200], [3e-200, 4e-200]])))
    assert low[0] <= 5e200 <= high[0] <= 5.001e200
    assert low[0] >= 4.999e200
    assert low[1] <= 5e-200 <= high[1]
    # the centre's length is 1.5e154, its square more than float64 holds; 1e154 of it may be missing
    low, _ = row_sizes(Box.point(np.array([[1.5e154, 0.0]])), 1e154)
    assert low[0] <= 0.5e154


@pytest.mark.parametrize("norm", [2, math.inf])
def test_a_sum_that_overflows_on_its_way_is_unknown(norm):
    # −a − b + c + d = 0 at the centre, so the ReLU is active for some inputs of the ball, and its slope 1
    graph = chain((4,), Linear([[-1.0, -1.0, 1.0, 1.0]]), RELU)
    assert lipschitz_local(graph, Ball([1e308] * 4, 1e300, norm)).value >= (2.0 if norm == 2 else 4.0) * (1 - 1e-12)


@pytest.mark.parametrize(
    ("op", "values"),
    [
        (Linear([[1.0, 1.0, -1.0, -1.0]]), [HUGE[None]]),
        (Conv([[[1.0, 1.0, -1.0, -1.0]]]), [HUGE[None, None]]),
        (AvgPool((4,), (4,), ((0, 0),)), [np.array([[[1.7e308, 1.7e308, -1.7e308, -1.7e308]]])]),
        (Mean((1,)), [np.array([[1.7e308, 1.7e308, -1.7e308, -1.7e308]])]),
        (MatMul(), [np.array([[1.0, 1.0, -1.0, -1.0]]), HUGE[:, None]]),
    ],
)
def test_enclosures_hold_the_exact_zero_of_sums_that_overflow(op, values):
    box = values_of(op, [Box.point(v) for v in values])
    assert np.all(box.low <= 0.0)
    assert np.all(box.high >= 0.0)


def test_a_negative_scale_that_underflows_keeps_its_sign():
    op = BatchNorm([0.0], [1e10], 0.0, [-5e-324])  # the scale is −5e-329
    box = values_of(op, [Box.point(np.array([[[1e308, -1e308]]]))])
    assert box.low[0, 0, 0] <= -4.9e-21
    assert box.high[0, 0, 1] >= 4.9e-21


# ---------------------------------------------------------------- crashes


@pytest.mark.parametrize("norm", [2, math.inf])
def test_one_output_of_several_images(norm):
    weight = np.array([[[1.0], [2.0]], [[3.0], [4.0]], [[5.0], [6.0]]])
    graph = chain((4, 6), Reshape((2, 2, 6)), Conv(weight))
    J = graph.forward(np.eye(24)).T
    order = 2 if norm == 2 else 1  # the dual norm of a row
    for outputs in (0, 17, 18, 35):
        bound = graph_product(graph, norm, outputs)
        assert bound.value == pytest.approx(np.linalg.norm(J[outputs], order), rel=1e-9)
        assert bound.certificate.verify(graph)
    for j, y in ((0, 18), (6, 30), (18, 24), (0, 35)):
        assert graph_product(graph, norm, (j, y)).value >= np.linalg.norm(J[j] - J[y], order) * (1 - 1e-12)
    # two channels at one place of the second image: the difference of two rows of the kernel
    assert graph_product(graph, norm, (18, 24)).value == pytest.approx(np.linalg.norm(J[18] - J[24], order), rel=1e-9)


@pytest.mark.parametrize("outputs", ["all", 1])
def test_doubling_forty_times_takes_no_2_to_the_40_steps(outputs):
    graph = Graph((Node(Input((1, 2))), *(Node(Add(), (i, i)) for i in range(40))))
    bound = graph_product(graph, 2, outputs)
    assert 2.0**40 <= bound.value <= 2.0**40 * (1 + 1e-12)
    assert bound.certificate.verify(graph)


def test_one_output_of_a_deep_residual_net():
    nodes = [Node(Input((1, 2)))]
    for _ in range(600):
        last = len(nodes) - 1
        nodes += [Node(Linear(np.eye(2) / 1024), (last,)), Node(RELU, (last + 1,)), Node(Add(), (last, last + 2))]
    graph = Graph(tuple(nodes))
    exact = (1 + 1 / 1024) ** 600  # at positive inputs
    assert exact <= graph_product(graph, 2, 0).value <= exact * (1 + 1e-6)


@pytest.mark.parametrize("outputs", ["all", 8, (1, 8)])
def test_a_constant_output_has_the_constant_zero(outputs):
    graph = Graph((Node(Input((1, 2))), Node(Constant(np.ones((1, 9))))))
    assert lipschitz_local(graph, Ball([1.0, 2.0], 1.0, 2), outputs=outputs).value == 0.0


@pytest.mark.parametrize(
    "op", [BatchNorm([1.0, 2.0], [1.0, 2.0], 0.0, [3.0, -4.0], [5.0, 6.0]), Conv([[[1.0], [2.0]]], [3.0])]
)
def test_several_images_as_a_dense_network(op):
    graph = chain((4, 3), Reshape((2, 2, 3)), op)
    x = np.random.default_rng(0).standard_normal((3, 12))
    np.testing.assert_allclose(dense_network(graph).forward(x), graph.forward(x), rtol=1e-13)


def test_a_constant_as_a_dense_network():
    nodes = (Node(Input((1, 3))), Node(Constant([[1.0, -2.0]])), Node(RELU, (1,)))
    assert dense_network(Graph(nodes)).forward(np.ones((2, 3))).tolist() == [[1.0, 0.0]] * 2


@pytest.mark.parametrize("mode", ["reflect", "replicate"])
def test_layer_report_of_a_convolution_whose_norm_overflows(mode):
    conv = Conv(np.full((2, 1, 3), 1.7e308), padding=((1, 1),), padding_mode=mode)
    reading = layer_report(chain((1, 4), conv), network=False).rows[0].operator
    assert reading.norm_2[1] == reading.spectral.bound == math.inf


def test_layer_report_of_a_linear_on_plain_vectors():
    for shape, kind in (((4,), "linear"), ((2, 4), "linear on 2 vectors"), ((1, 4), "linear")):
        graph = chain((math.prod(shape),), Reshape(shape), Linear(np.ones((2, 4))))
        row = layer_report(graph, network=False).rows[0]
        assert row.kind == kind
        assert row.operator.norm_2[1] == pytest.approx(math.sqrt(8.0))
