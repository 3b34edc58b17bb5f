"""Local constants of graphs: above Jacobians and quotients in the ball, enclosures that hold, and known limits."""

from __future__ import annotations

import math

import flint
import numpy as np
import pytest
import torch
from graph_cases import KINDS, Builder, jacobian, matrix_norm, quotient, random_graph, transformer
from hypothesis import given, settings
from hypothesis import strategies as st

from certbound import Ball
from certbound.activations import Activation
from certbound.errors import InputError
from certbound.graph import Graph, Node
from certbound.lipschitz import graph_local
from certbound.lipschitz.graph_boxes import Box, exponentials, probabilities, values_of
from certbound.lipschitz.graph_local import lipschitz_local
from certbound.lipschitz.graph_product import graph_product
from certbound.lipschitz.graph_tangents import tangents_of
from certbound.ops import (
    BatchNorm,
    Clip,
    Conv,
    Input,
    LayerNorm,
    Linear,
    MatMul,
    MaxPool,
    Mean,
    Multiply,
    Pointwise,
    Scale,
    Softmax,
)
from certbound.rounding import Interval
from certbound.types import Rigor, Status

NORMS = (2.0, math.inf)


def chain(shape, *ops):
    return Graph((Node(Input(shape)), *(Node(op, (i,)) for i, op in enumerate(ops))))


def in_ball(rng, ball, count):
    """Points of the ball: on its border, inside, and (ℓ∞) at corners."""
    n = ball.center.size
    for k in range(count):
        step = rng.standard_normal(n)
        step = np.sign(step) if math.isinf(ball.norm) and k % 2 else step
        step /= np.linalg.norm(step, np.inf if math.isinf(ball.norm) else 2)
        yield ball.center.reshape(-1) + ball.radius * (1 - 1e-12) * step * rng.choice([1.0, rng.random()])


def holds(graph, ball, seed, *, outputs="all"):
    """The bound against Jacobians and quotients in the ball."""
    rng = np.random.default_rng(seed)
    value = lipschitz_local(graph, ball, outputs=outputs).value
    points = list(in_ball(rng, ball, 4))
    for x in (*points, ball.center.reshape(-1)):
        J = jacobian(graph, x)
        if outputs != "all":
            J = J[[outputs[0]]] - J[[outputs[1]]] if isinstance(outputs, tuple) else J[[outputs]]
        assert matrix_norm(J, ball.norm) <= value * (1 + 1e-9)
    if outputs == "all" and ball.radius > 1e-3:
        assert quotient(graph, points[0], points[1], ball.norm) <= value * (1 + 1e-7)
    return value


# ---------------------------------------------------------------- soundness


@pytest.mark.parametrize("entries", [4_000_000, 0], ids=["with Jacobians", "constants only"])
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**20), st.integers(1, 2), st.sampled_from([0.0, 1e-4, 1e-2, 0.3]), st.sampled_from(NORMS))
def test_attention_blocks(entries, seed, blocks, radius, norm):
    graph = transformer(seed, blocks)
    ball = Ball(np.random.default_rng(seed).standard_normal(graph.input_shape), radius, norm)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph_local, "ENTRIES", entries)
        holds(graph, ball, seed)


@pytest.mark.parametrize("entries", [4_000_000, 0], ids=["with Jacobians", "constants only"])
@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from(KINDS), min_size=1, max_size=4), st.integers(0, 2**20),
    st.sampled_from([1e-3, 0.1, 1.0]), st.sampled_from(NORMS), st.sampled_from(["all", 1, (2, 0)]),
)  # fmt: skip
def test_convolutional_nets(entries, kinds, seed, radius, norm, outputs):
    graph = random_graph(kinds, seed)
    ball = Ball(np.random.default_rng(seed).standard_normal(graph.input_shape), radius, norm)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph_local, "ENTRIES", entries)
        value = holds(graph, ball, seed, outputs=outputs)
        assert value <= graph_product(graph, norm, outputs).value * (1 + 1e-6)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(KINDS), min_size=1, max_size=3), st.integers(0, 2**20), st.sampled_from([0.0, 0.1]))
def test_boxes_hold_every_value(kinds, seed, radius):
    """Interval arithmetic by itself, node by node, against the values at points of the box."""
    for graph in (random_graph(kinds, seed), transformer(seed)):
        rng = np.random.default_rng(seed)
        center = rng.standard_normal(graph.shapes[0])
        boxes = [Box.around(center, radius) if radius else Box.point(center)]
        for node in graph.nodes[1:]:
            boxes.append(values_of(node.op, [boxes[j] for j in node.inputs]))
        for _ in range(3):
            x = center + radius * rng.choice([-1.0, 1.0, 0.5], center.shape)
            for box, value in zip(boxes, graph.values(x), strict=True):
                slack = 1e-12 * (1 + np.abs(value))  # of the values: they are rounded too
                assert np.all(box.low <= value + slack)
                assert np.all(value - slack <= box.high)
                if radius == 0.0:
                    assert np.max(box.high - box.low) < 1e-8


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(KINDS), min_size=1, max_size=3), st.integers(0, 2**20), st.sampled_from([0.0, 0.05]))
def test_tangents_hold_every_jacobian(kinds, seed, radius):
    for graph in (random_graph(kinds, seed), transformer(seed)):
        rng = np.random.default_rng(seed)
        center = rng.standard_normal(graph.shapes[0])
        boxes = [Box.around(center, radius) if radius else Box.point(center)]
        tangents = [Box.point(np.eye(graph.n_inputs).reshape(-1, *graph.shapes[0]))]
        for node in graph.nodes[1:]:
            inputs = [boxes[j] for j in node.inputs]
            boxes.append(values_of(node.op, inputs))
            tangents.append(tangents_of(node.op, inputs, [tangents[j] for j in node.inputs]))
        low, high = (t.reshape(graph.n_inputs, -1).T for t in (tangents[-1].low, tangents[-1].high))
        for _ in range(2):
            J = jacobian(graph, center + radius * rng.choice([-1.0, 1.0, 0.3], center.shape))
            assert np.all(low - 1e-9 <= J)
            assert np.all(high + 1e-9 >= J)


# ---------------------------------------------------------------- limits and known values


@pytest.mark.parametrize("norm", NORMS)
def test_at_radius_zero_it_is_the_norm_of_the_jacobian(norm):
    graph = transformer(5, 2)
    x = np.random.default_rng(5).standard_normal(graph.input_shape)
    exact = matrix_norm(jacobian(graph, x), norm)
    value = lipschitz_local(graph, Ball(x, 0.0, norm)).value
    assert exact <= value * (1 + 1e-9)
    assert value <= exact * (1 + 1e-4)


@pytest.mark.parametrize("norm", NORMS)
def test_it_grows_with_the_radius(norm):
    graph = transformer(6)
    x = np.random.default_rng(6).standard_normal(graph.input_shape)
    values = [lipschitz_local(graph, Ball(x, r, norm)).value for r in (0.0, 1e-6, 1e-4, 1e-2)]
    assert values == sorted(values)
    assert values[1] < 1.5 * values[0]


def test_products_on_a_ball():
    square = Graph((Node(Input((1, 1))), Node(Multiply(), (0, 0))))
    assert lipschitz_local(square, Ball([3.0], 1.0, 2)).value == pytest.approx(8.0)
    gram = Graph((
        Node(Input((1, 2, 2))), Node(Linear(np.eye(2)), (0,)), Node(MatMul(), (0, 1)),
    ))  # fmt: skip  # X X at X = diag(3, 1): J = X ⊗ I + I ⊗ X, norm 6
    x = np.diag([3.0, 1.0])
    assert lipschitz_local(gram, Ball(x, 0.0, 2)).value == pytest.approx(6.0)
    value = lipschitz_local(gram, Ball(x, 0.5, 2)).value
    assert 6.99 <= value <= 8.0  # the Jacobian at diag(3.5, 1) is 7


def test_a_dead_relu_costs_nothing_on_the_ball():
    graph = chain((1, 2), Linear(np.diag([1.0, 100.0]), [0.0, -1000.0]), Pointwise(Activation("relu")))
    assert lipschitz_local(graph, Ball([5.0, 0.0], 1.0, 2)).value == pytest.approx(1.0)
    assert lipschitz_local(graph, Ball([5.0, 0.0], 11.0, 2)).value == pytest.approx(100.0)


def test_clipped_and_pooled_values():
    clip = chain((1, 1), Clip(0.0, 1.0))
    assert [lipschitz_local(clip, Ball([c], 0.5, 2)).value for c in (2.0, 0.8, -3.0)] == pytest.approx([0, 1, 0])
    pool = chain((1, 1, 3), MaxPool((2,), (1,), ((0, 0),)))
    # the middle is the largest of both windows: √2; with the largest at the left border two inputs win one each
    assert lipschitz_local(pool, Ball([[0.0, 5.0, 0.0]], 1.0, 2)).value == pytest.approx(math.sqrt(2.0))
    assert lipschitz_local(pool, Ball([[5.0, 1.0, -5.0]], 1.0, 2)).value == pytest.approx(1.0)


def test_layer_norm_uses_the_variance_on_the_ball(monkeypatch):
    monkeypatch.setattr(graph_local, "ENTRIES", 0)
    graph = chain((1, 1, 4), LayerNorm(1, 1e-6))
    x = np.array([[10.0, -10.0, 10.0, -10.0]])
    # ‖c‖ = 20, on a ball of radius 2 at least 18: variance 81
    assert lipschitz_local(graph, Ball(x, 2.0, 2)).value == pytest.approx(1 / 9, rel=1e-5)
    assert graph_product(graph, 2).value == pytest.approx(1000.0)


def test_softmax_probabilities_and_constant():
    z = np.array([[0.0, 1.0, -2.0], [500.0, 0.0, -500.0]])
    exact = np.exp(z - z.max(axis=1, keepdims=True))
    exact /= exact.sum(axis=1, keepdims=True)
    p = probabilities(Softmax(), Box.point(z))
    assert np.all((p.low <= exact + 1e-15) & (exact - 1e-15 <= p.high))
    assert np.max(p.high - p.low) < 1e-9
    # least where its own logit is least and the others are largest
    wide = probabilities(Softmax(), Box(np.array([[0.0, 0.0]]), np.array([[1.0, 2.0]])))
    assert wide.low[0, 0] == pytest.approx(1 / (1 + math.e**2))
    assert wide.high[0, 0] == pytest.approx(math.e / (1 + math.e))
    saturated = chain((1, 2), Softmax())
    assert lipschitz_local(saturated, Ball([100.0, 0.0], 1.0, 2)).value < 1e-14


def test_exponentials_against_arb():
    t = np.concatenate([np.linspace(0, 5, 40), np.array([30.0, 300.0, 700.0, 800.0])])
    e = exponentials(Interval.of(t))
    for value, low, high in zip(t, e.low, e.high, strict=True):
        exact = (-flint.arb(float(value))).exp()
        assert flint.arb(float(low)) <= exact
        assert flint.arb(float(high)) >= exact


def test_rows_of_a_softmax_sum_to_one(monkeypatch):
    """With ℓ∞ the values V alone count in softmax(·) V."""
    monkeypatch.setattr(graph_local, "ENTRIES", 0)
    constant = np.random.default_rng(0).standard_normal((1, 3, 3))
    scores = chain((1, 3, 3), Scale(np.zeros(1)), Softmax())
    graph = Graph((*scores.nodes, Node(MatMul(), (2, 0))))
    assert lipschitz_local(graph, Ball(constant, 0.5, math.inf)).value == pytest.approx(1.0)


# ---------------------------------------------------------------- the claim


def test_the_claim_names_the_ball_and_the_method():
    graph = transformer(1)
    ball = Ball(np.zeros(graph.n_inputs), 1e-3, math.inf)
    result = lipschitz_local(graph, ball, outputs=(0, 1))
    claim = result.bound.claim
    assert (claim.domain, claim.subject, claim.outputs) == (str(ball), graph.digest, (0, 1))
    assert (claim.norm_in, claim.norm_out) == (math.inf, math.inf)
    assert result.bound.rigor is Rigor.RIGOROUS
    assert result.status is Status.OK


def test_bad_arguments_are_refused():
    graph = transformer(1)
    ball = Ball(np.zeros(graph.n_inputs), 0.1, 2)
    for arguments, name in (
        ((graph, None), "region"), ((graph, Ball([0.0], 1.0, 2)), "region"), ((graph, ball, "inf"), "norm"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=name):
            lipschitz_local(*arguments)
    with pytest.raises(InputError, match="tier"):
        lipschitz_local(graph, ball, tier="slow")


def test_a_network_of_weights_and_a_module_are_read():
    weights = [[[1.0], [-1.0]], [[1.0, 1.0]]]
    assert lipschitz_local(weights, Ball([3.0], 1.0, 2)).value == pytest.approx(1.0)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.GELU(), torch.nn.Flatten()).double().eval()
    value = lipschitz_local(model, Ball(np.zeros((1, 4, 4)), 0.1, 2), input_shape=(1, 4, 4)).value
    zero = torch.zeros(1, 4, 4, dtype=torch.float64)
    J = torch.func.jacrev(lambda v: model(v[None])[0])(zero).reshape(8, -1).detach()
    assert float(torch.linalg.matrix_norm(J, 2)) <= value * (1 + 1e-9)


def test_endless_boxes_stay_sound():
    """A ball that overflows gives ∞, not NaN."""
    graph = chain((1, 2), Linear([[1e300, 0.0], [0.0, 1.0]]), Linear([[1e300, 1.0]]), Pointwise(Activation("gelu")))
    assert lipschitz_local(graph, Ball([1e10, 1.0], 1e10, 2)).value == math.inf
    boxes = [Box(np.array([[-math.inf, 0.0]]), np.array([[math.inf, 1.0]]))]
    out = values_of(Linear([[0.0, 1.0], [1.0, 0.0]]), boxes)
    assert out.low[0, 0] <= 0.0
    assert out.high[0, 0] < 1.1
    assert (out.low[0, 1], out.high[0, 1]) == (-math.inf, math.inf)


def test_single_operations_enclose_what_numpy_computes():
    rng = np.random.default_rng(9)
    x = rng.standard_normal((1, 2, 4, 4))
    for op in (
        BatchNorm([0.3, -1.0], [0.5, 2.0], 1e-5, [-3.0, 0.2], [1.0, 2.0]),
        Conv(rng.standard_normal((2, 2, 3, 3)), None, (), ((1, 2), (0, 1)), (), 1, "reflect"),
        Mean((2, 3)), Scale(np.array(-3.0), divides=True),
    ):  # fmt: skip
        box = values_of(op, [Box.around(x, 0.25)])
        for _ in range(20):
            value = op.apply(x + 0.25 * rng.choice([-1.0, 1.0], x.shape))
            assert np.all((box.low <= value + 1e-12) & (value - 1e-12 <= box.high))
        b = Builder((2, 4, 4), 0)
        b.add(op)
        assert lipschitz_local(b.graph(), Ball(x[0], 0.25, 2)).value <= graph_product(b.graph(), 2).value * (1 + 1e-9)
