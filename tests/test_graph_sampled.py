"""Lower bounds of graphs: below every upper bound, exact where the answer is known, inside their ball."""

from __future__ import annotations

import math

import numpy as np
import pytest
from graph_cases import random_graph, transformer
from hypothesis import given, settings
from hypothesis import strategies as st

import certbound
from certbound import Ball
from certbound.graph import Graph, Node
from certbound.lipschitz.graph_local import lipschitz_local
from certbound.lipschitz.graph_product import graph_product
from certbound.lipschitz.graph_sampled import graph_sampled
from certbound.ops import Input, Linear, MaxPool, Multiply
from certbound.types import Rigor, Sense, Status

NORMS = (2.0, math.inf)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from(["bn", "maxpool", "residual", "gelu", "concat"]), min_size=1, max_size=3),
       st.integers(0, 2**20), st.sampled_from(NORMS), st.sampled_from(["all", 1, (0, 2)]))  # fmt: skip
def test_below_the_upper_bound(kinds, seed, norm, outputs):
    graph = random_graph(kinds, seed)
    low = graph_sampled(graph, norm, outputs, n_samples=5, seed=seed)
    assert 0.0 < low.value <= graph_product(graph, norm, outputs).value * (1 + 1e-6)
    assert (low.bound.sense, low.bound.rigor) == (Sense.LOWER, Rigor.NUMERICAL)
    assert low.value == graph_sampled(graph, norm, outputs, n_samples=5, seed=seed).value


@pytest.mark.parametrize("norm", NORMS)
def test_between_sampled_and_local_on_a_ball(norm):
    graph = transformer(3)
    ball = Ball(np.random.default_rng(3).standard_normal(graph.input_shape), 1e-5, norm)
    low, high = graph_sampled(graph, norm, region=ball, n_samples=5), lipschitz_local(graph, ball)
    assert low.value <= high.value <= 1.5 * low.value
    assert low.bound.claim == high.bound.claim


def test_linear_maps_are_found_exactly():
    W = np.array([[3.0, 4.0], [-5.0, 1.0]])
    graph = Graph((Node(Input((1, 2))), Node(Linear(W), (0,))))
    assert graph_sampled(graph, 2.0, n_samples=2).value == pytest.approx(np.linalg.norm(W, 2), rel=1e-8)
    assert graph_sampled(graph, math.inf, n_samples=2).value == pytest.approx(7.0, rel=1e-8)
    assert graph_sampled(graph, 2.0, (0, 1), n_samples=2).value == pytest.approx(math.sqrt(73.0), rel=1e-8)


def test_quotients_stay_in_the_ball():
    """x² on [2, 4]: at most 8, and nearly that."""
    square = Graph((Node(Input((1, 1))), Node(Multiply(), (0, 0))))
    value = graph_sampled(square, 2.0, region=Ball([3.0], 1.0, 2), n_samples=200).value
    assert 7.5 < value <= 8.0 * (1 + 1e-9)


def test_constant_maps_and_single_points():
    graph = Graph((Node(Input((1, 2))), Node(Linear([[0.0, 0.0]]), (0,))))
    failed = graph_sampled(graph, 2.0, n_samples=2)
    assert (failed.value, failed.status) == (0.0, Status.FAILED)
    point = graph_sampled(graph, 2.0, region=Ball([0.0, 0.0], 0.0, 2))
    assert (point.value, point.status) == (0.0, Status.OK)


def test_lipschitz_sampled_takes_graphs_and_modules():
    torch = pytest.importorskip("torch")
    pool = Graph((Node(Input((1, 1, 3))), Node(MaxPool((2,), (1,), ()), (0,))))
    assert certbound.lipschitz_sampled(pool, 2, n_samples=30).value == pytest.approx(math.sqrt(2.0), rel=1e-8)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 2), torch.nn.GELU(), torch.nn.Flatten()).double().eval()
    low = certbound.lipschitz_sampled(model, 2, n_samples=5, input_shape=(1, 3, 3))
    assert 0.0 < low.value <= certbound.lipschitz_product(model, 2, input_shape=(1, 3, 3)).value
    with pytest.raises(certbound.InputError, match="region"):
        certbound.lipschitz_sampled(pool, 2, region=Ball([0.0], 1.0, 2))
