"""Margins, loss gaps and accuracies from Lipschitz constants: sound against grids, exact where they can be."""

from __future__ import annotations

import math

import numpy as np
import pytest
from budget import network_settings
from hypothesis import given
from hypothesis import strategies as st

from certbound.lipschitz.margin_constants import margin_constants
from certbound.lipschitz.patterns import pattern_maximum
from certbound.losses import class_head, class_logits, cross_entropy, loss_of_margins, margins_of
from certbound.network import Network
from certbound.robustness import (
    Samples,
    certify_by_constants,
    gap_of_margins,
    gradient_constants,
    head_constants,
    scaled,
)
from certbound.testing import zoo
from certbound.testing.strategies import labelled_batches, relu_networks

both_norms = pytest.mark.parametrize("norm", [2.0, math.inf])


def pattern_constants(network, norm):
    rows = class_head(network.chain.head)
    n = len(rows)
    values = np.zeros((n, n))
    for y in range(n):
        for j in range(n):
            if j != y:
                values[j, y] = pattern_maximum(network.chain.encoder, (rows[j] - rows[y])[None], norm)
    return values


def grid(x, delta, norm, steps=13):
    """Points of the ball around x, its corners and axes' ends included, in [0, 1]."""
    line = np.linspace(-1.0, 1.0, steps)
    points = np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2)
    if norm == 2.0:
        angles = np.linspace(0, 2 * np.pi, 33)
        circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        points = np.concatenate([points[np.linalg.norm(points, axis=1) <= 1.0], circle])
    return np.clip(x + delta * points * (1 - 1e-12), 0.0, 1.0)


@both_norms
@network_settings
@given(network=relu_networks(3, 3, n_inputs=2, max_hidden=5), data=st.data())
def test_certified_numbers_against_a_grid(norm, network, data):
    x, y = data.draw(labelled_batches(network, 3))
    delta = data.draw(st.sampled_from([1e-3, 0.05, 0.25, 1.0]))
    samples = Samples.of(network, x, y, norm, (0.0, 1.0))
    closed, _ = margin_constants(network, norm, "closed-form")
    for constants in (pattern_constants(network, norm), closed):
        assert np.array_equal(constants, constants.T) and not constants.diagonal().any()
        plain = certify_by_constants(samples, constants, delta, corollary=False)
        corollary = certify_by_constants(samples, constants, delta, corollary=True)
        assert np.all(plain.loss_gap <= corollary.loss_gap)
        assert np.array_equal(plain.margins, corollary.margins)
        for i, label in enumerate(y):
            points = grid(x[i], delta, norm)
            labels = np.full(len(points), label)
            logits = class_logits(network.forward(points))
            assert np.all(plain.margins[i] <= margins_of(logits, labels).min(axis=0) + 1e-9)
            gap = cross_entropy(logits, labels).max() - samples.loss[i]
            assert gap <= plain.loss_gap[i] + 1e-9
            if plain.correct[i]:
                assert np.all(margins_of(logits, labels) > 0)
        assert np.mean(plain.correct) <= samples.clean_accuracy


@both_norms
@network_settings
@given(network=relu_networks(3, 4, max_hidden=6), data=st.data())
def test_gradient_constants_are_lower_bounds(norm, network, data):
    x, y = data.draw(labelled_batches(network, 5))
    found = gradient_constants(Samples.of(network, x, y, norm, None))
    assert np.array_equal(found, found.T)
    assert np.all(found <= pattern_constants(network, norm) * (1 + 1e-9))


@both_norms
def test_gradient_constants_are_the_gradients(norm):
    """Three classes, a linear region of two active neurons: differences of rows of C · W."""
    W, C = np.array([[1.0, 2.0], [-1.0, 0.5]]), np.array([[1.0, 0.0], [0.0, 3.0], [-2.0, 1.0]])
    net = Network.from_weights([W, C], [[5.0, 5.0], None])
    J = C @ W
    expected = np.array([[np.linalg.norm(a - b, 1 if norm == math.inf else 2) for a in J] for b in J])
    found = gradient_constants(Samples.of(net, np.array([[0.5, 0.5]]), np.array([0]), norm, None))
    assert np.allclose(found, expected)


@both_norms
def test_gradient_at_a_kink_is_left_out(norm):
    """f = 5 relu(x + 10) − 3 relu(x) + 3 relu(−x) = 2x + 50 near 0; at x = 0 the pattern (1, 0, 0) has slope 5."""
    net = Network.from_weights([[[1.0], [1.0], [-1.0]], [[5.0, -3.0, 3.0]]], [[10.0, 0.0, 0.0], None])
    y = np.array([0])
    assert gradient_constants(Samples.of(net, np.array([[0.0]]), y, norm, None))[0, 1] == 0.0
    assert gradient_constants(Samples.of(net, np.array([[0.25]]), y, norm, None))[0, 1] == pytest.approx(2.0)
    both = Samples.of(net, np.array([[0.0], [0.25]]), np.array([0, 0]), norm, None)
    assert gradient_constants(both)[1, 0] == pytest.approx(2.0)


@both_norms
def test_gradients_of_the_zoo(norm):
    rng = np.random.default_rng(0)
    for entry in zoo:
        if entry.network.chain.final_relu or entry.network.n_outputs > 1:
            continue
        x = rng.uniform(-3, 3, (200, entry.network.n_inputs))
        y = np.zeros(200, dtype=np.int64)
        found = gradient_constants(Samples.of(entry.network, x, y, norm, None))[0, 1]
        exact = entry.lipschitz_2 if norm == 2.0 else entry.lipschitz_inf
        assert found == pytest.approx(exact, rel=1e-9), entry.name


def test_head_constants_by_hand():
    C = np.array([[3.0, 0.0], [0.0, 4.0], [3.0, 4.0]])
    two = head_constants(2.0, C, 2.0)
    assert np.allclose(two, 2.0 * np.array([[0, 5, 4], [5, 0, 3], [4, 3, 0]]))
    inf = head_constants(2.0, C, math.inf)
    assert np.allclose(inf, 2.0 * np.array([[0, 7, 4], [7, 0, 3], [4, 3, 0]]))
    assert np.all(two >= 2.0 * np.array([[0, 5, 4], [5, 0, 3], [4, 3, 0]]))  # rounded up, never down
    one = head_constants(1.0, np.array([[3.0, -4.0]]), math.inf)
    assert np.allclose(one, [[0, 7], [7, 0]])
    assert np.allclose(head_constants(1.0, np.array([[3.0, -4.0]]), 2.0), [[0, 5], [5, 0]])


@both_norms
@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_head_constants_of_extreme_heads(norm, scale):
    expected = (7.0 if norm == math.inf else 5.0) * scale
    assert head_constants(1.0, np.array([[3.0 * scale, -4.0 * scale]]), norm)[0, 1] == pytest.approx(expected)
    assert head_constants(1.0, np.array([[3.0 * scale, -4.0 * scale]]), norm)[0, 1] >= expected * (1 - 1e-15)
    assert head_constants(0.0, np.array([[scale, 1.0]]), norm)[0, 1] == 0.0
    assert head_constants(math.inf, np.array([[scale, 1.0]]), norm).diagonal().tolist() == [0.0, 0.0]


def samples_of(logits, y):
    """Samples with these logits: an identity network."""
    logits = np.asarray(logits, dtype=float)
    return Samples.of(Network.from_weights([np.eye(logits.shape[1])]), logits, np.asarray(y), 2.0, None)


def test_gap_of_margins_by_hand():
    samples = samples_of([[2.0, 0.0, 1.0]], [0])
    lower = np.array([[math.inf, 1.0, -0.5]])
    expected = math.log(1 + math.exp(-1.0) + math.exp(0.5)) - math.log(1 + math.exp(-2.0) + math.exp(-1.0))
    assert gap_of_margins(samples, lower)[0] == pytest.approx(expected)
    assert gap_of_margins(samples, samples.margins)[0] == 0.0
    assert gap_of_margins(samples, samples.margins + 1.0)[0] == 0.0  # never negative
    assert gap_of_margins(samples, np.array([[math.inf, -math.inf, 0.0]]))[0] == math.inf
    assert gap_of_margins(samples, np.array([[math.inf, -1e5, 0.0]]))[0] == pytest.approx(1e5, rel=1e-4)
    assert loss_of_margins(lower)[0] > samples.loss[0]


def test_the_worst_class_decides():
    """δ max_j L_jy, not the smallest and not that of the runner-up."""
    samples = samples_of([[2.0, 0.0, 1.0]], [0])
    constants = np.array([[0.0, 1.0, 7.0], [1.0, 0.0, 3.0], [7.0, 3.0, 0.0]])
    found = certify_by_constants(samples, constants, 0.5, corollary=True)
    assert found.loss_gap[0] == pytest.approx(3.5)
    assert found.margins[0].tolist() == [math.inf, 1.5, -2.5]
    assert not found.correct[0]
    other = certify_by_constants(samples_of([[2.0, 0.0, 1.0]], [1]), constants, 0.5, corollary=True)
    assert other.loss_gap[0] == pytest.approx(1.5)


def test_zero_radius_and_infinite_constants():
    samples = samples_of([[2.0, 0.0], [0.0, 1.0], [1.0, 1.0]], [0, 0, 0])
    unknown = np.array([[0.0, math.inf], [math.inf, 0.0]])
    still = certify_by_constants(samples, unknown, 0.0, corollary=True)
    assert not still.loss_gap.any() and still.correct.tolist() == [True, False, False]  # a tie is an error
    assert np.array_equal(still.margins, samples.margins)
    moved = certify_by_constants(samples, unknown, 0.1, corollary=False)
    assert np.all(moved.loss_gap == math.inf) and not moved.correct.any()
    assert np.all(moved.margins[:, 1] == -math.inf)
    assert not np.isnan(scaled(unknown, 0.0)).any()


def test_certified_margin_must_be_positive():
    samples = samples_of([[1.0, 0.0]], [0])
    constants = np.array([[0.0, 1.0], [1.0, 0.0]])
    assert certify_by_constants(samples, constants, 0.5, corollary=False).correct[0]
    assert not certify_by_constants(samples, constants, 1.0, corollary=False).correct[0]  # margin exactly 0
