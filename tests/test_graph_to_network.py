"""Small graphs as dense networks: the same function, exact weights, refusals with numbers, and what uses them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from graph_cases import KINDS, jacobian, matrix_norm, random_graph, transformer
from hypothesis import given, settings
from hypothesis import strategies as st

import certbound
from certbound.activations import Activation
from certbound.errors import UnsupportedLayerError
from certbound.graph import Graph, Node
from certbound.io.graph_to_network import dense_model, dense_network, immediate_dominators, rounded_parts
from certbound.lipschitz.graph_product import graph_product
from certbound.network import Affine, Network, Normalise, Residual, as_network
from certbound.ops import Add, BatchNorm, Clip, Constant, Conv, Input, Linear, MaxPool, Pointwise, Scale, Shift
from certbound.types import Rigor

RELU = Pointwise(Activation("relu"))
DENSE = sorted(set(KINDS) - {"maxpool", "softmax", "norm"})


def chain(shape, *ops):
    return Graph((Node(Input(shape)), *(Node(op, (i,)) for i, op in enumerate(ops))))


@settings(max_examples=80, deadline=None)
@given(st.lists(st.sampled_from(DENSE), min_size=1, max_size=5), st.integers(0, 2**20))
def test_the_same_function(kinds, seed):
    graph = random_graph(kinds, seed)
    network = dense_network(graph)
    x = np.random.default_rng(seed).standard_normal((4, *graph.input_shape))
    expected = graph.forward(x)
    np.testing.assert_allclose(network.forward(x), expected, rtol=1e-9, atol=1e-9 * (1 + np.abs(expected).max()))
    assert (network.n_inputs, network.n_outputs) == (graph.n_inputs, graph.n_outputs)
    assert as_network(graph).digest == network.digest


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_entries_are_the_stored_weights(mode):
    rng = np.random.default_rng(0)
    conv = Conv(rng.standard_normal((2, 1, 3, 3)), rng.standard_normal(2), (), ((1, 1), (1, 1)), (), 1, mode)
    network = dense_network(chain((1, 1, 4, 4), conv))
    weights = [x.weight for x in network.layers if isinstance(x, Affine)]
    assert set(np.unique(weights[-1])) <= {0.0, *conv.weight.ravel().tolist()}
    if mode != "zeros":  # a padding that copies is a matrix of its own, so that no two weights are added up
        assert set(np.unique(weights[0])) == {0.0, 1.0}


def test_standardisation_stays_exact():
    graph = chain((1, 1, 2, 2), Shift(np.full((1, 1, 1, 1), -0.3)), Scale(np.full((1, 1, 1, 1), 0.7), divides=True),
                  Conv(np.ones((1, 1, 2, 2))))  # fmt: skip
    network = dense_network(graph)
    assert [type(x) for x in network.layers] == [Normalise, Normalise, Affine]
    assert rounded_parts(graph) == (str(graph.nodes[2]),)


def test_residual_blocks_and_clips():
    graph = Graph((
        Node(Input((1, 3))), Node(Linear(np.diag([1.0, 2.0, 3.0])), (0,)), Node(RELU, (1,)), Node(Add(True), (0, 2)),
        Node(Clip(0.0, 6.0), (3,)), Node(Clip(-1.0, math.inf), (4,)), Node(Clip(-math.inf, 2.0), (5,)),
        Node(Constant(np.array([[1.0, 2.0, 3.0]]))), Node(Add(True), (6, 7)),
    ))  # fmt: skip
    network = dense_network(graph)
    assert isinstance(network.layers[0], Residual)
    x = np.array([[1.0, -20.0, 4.0], [100.0, -3.0, 0.0]])
    np.testing.assert_allclose(network.forward(x), graph.forward(x), atol=1e-12)


def test_dominators():
    graph = Graph((
        Node(Input((1, 2))), Node(RELU, (0,)), Node(RELU, (1,)), Node(RELU, (2,)), Node(Add(), (1, 3)),
        Node(Constant(np.ones((1, 2)))), Node(Add(), (4, 5)), Node(Add(), (0, 6)),
    ))  # fmt: skip
    assert immediate_dominators(graph) == (0, 0, 1, 2, 1, -1, 4, 0)


# ---------------------------------------------------------------- refusals


def test_reasons_are_given():
    big = chain((1, 3, 32, 32), Conv(np.ones((8, 3, 3, 3)), padding=((1, 1), (1, 1))))
    with pytest.raises(UnsupportedLayerError, match=r"8192 x 3072, 25,165,824 entries.*4,000,000"):
        dense_network(big)
    with pytest.raises(UnsupportedLayerError, match="maximum over windows"):
        dense_network(chain((1, 1, 4), MaxPool((2,), (2,), ())))
    with pytest.raises(UnsupportedLayerError, match=r"MatMul.*attention.*lipschitz_local"):
        dense_network(transformer(0))
    # two sums that share a value which neither dominates: z = f(x) + g(x), z + f(x)
    shared = Graph((
        Node(Input((1, 2))), Node(Linear(np.eye(2)), (0,), "f"), Node(RELU, (0,), "g"), Node(Add(), (1, 2)),
        Node(RELU, (3,)), Node(Add(), (4, 1)),
    ))  # fmt: skip
    with pytest.raises(UnsupportedLayerError, match=r"f \(Linear\).*overlapping skips"):
        dense_network(shared)
    assert graph_product(shared, 2).value > 0.0


# ---------------------------------------------------------------- what uses it


def residual_net(seed):
    rng = np.random.default_rng(seed)
    conv = Conv(0.5 * rng.standard_normal((2, 2, 3, 3)), rng.standard_normal(2), (), ((1, 1), (1, 1)))
    back = Conv(0.5 * rng.standard_normal((2, 2, 3, 3)), None, (), ((1, 1), (1, 1)))
    nodes = [Node(Input((1, 2, 3, 3))), Node(conv, (0,)), Node(RELU, (1,)), Node(back, (2,)), Node(Add(), (0, 3))]
    return Graph(tuple(nodes))


@pytest.mark.parametrize("seed", range(3))
def test_sdp_of_a_residual_block_is_below_one_plus_the_norm(seed):
    graph = residual_net(seed)
    product = graph_product(graph, 2).value
    result = certbound.lipschitz_sdp(graph, 2, method="barrier", tolerance=1e-3)
    rng = np.random.default_rng(seed)
    sampled = max(matrix_norm(jacobian(graph, 3 * rng.standard_normal(18)), 2.0) for _ in range(50))
    assert sampled <= result.value * (1 + 1e-9)
    assert result.value < 0.95 * product
    assert result.bound.rigor is Rigor.RIGOROUS
    assert result.bound.assumptions == ()
    assert result.certificate.verify(dense_network(graph))


def test_the_ladder_on_a_small_convolutional_net():
    rng = np.random.default_rng(0)
    graph = chain((1, 1, 4, 4), Conv(rng.standard_normal((2, 1, 3, 3)), rng.standard_normal(2)), RELU,
                  Conv(rng.standard_normal((3, 2, 2, 2))))  # fmt: skip
    for norm in (2, math.inf):
        low = certbound.lipschitz_sampled(graph, norm, n_samples=200)
        bracket = certbound.lipschitz_bracket(graph, norm, outputs=0, time_limit=10.0)
        sdp = certbound.lipschitz_sdp(graph, norm)
        product = graph_product(graph, norm)
        assert 0.0 < low.value <= sdp.value * (1 + 1e-9) <= product.value * (1 + 1e-6)
        assert bracket.lower.value <= bracket.upper.value <= graph_product(graph, norm, 0).value * (1 + 1e-6)
        assert low.certificate.verify(graph)


def test_rounded_scales_are_named():
    graph = chain((1, 1, 3), Conv(np.ones((2, 1, 2))), BatchNorm([0.0, 0.0], [2.0, 3.0]), RELU)
    network, assumes = dense_model(graph)
    assert isinstance(network, Network)
    assert "BatchNorm" in assumes[0]
    for bound in (
        certbound.lipschitz_sdp(graph, 2).bound, certbound.lipschitz_sampled(graph, 2, n_samples=50).bound,
        certbound.lipschitz_bracket(graph, 2, outputs=0, time_limit=2.0).upper,
    ):  # fmt: skip
        assert assumes[0] in bound.assumptions
    assert dense_model([[[1.0]]])[1] == ()


def test_modules_with_their_input_shape():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 2), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(8, 2))
    model = model.double().eval()
    result = certbound.lipschitz_sdp(model, 2, input_shape=(1, 3, 3))
    low = certbound.lipschitz_sampled(model, 2, n_samples=100, input_shape=(1, 3, 3))
    assert low.value <= result.value <= certbound.lipschitz_product(model, 2, input_shape=(1, 3, 3)).value * (1 + 1e-6)
    with pytest.raises(UnsupportedLayerError):
        certbound.lipschitz_sdp(model, 2)
