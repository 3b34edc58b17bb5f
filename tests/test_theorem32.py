"""Theorem 3.2: the ladder of its five bounds, what they are made of, and what is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from budget import network_settings
from hypothesis import given
from hypothesis import strategies as st

from certbound.errors import InputError
from certbound.lipschitz.patterns import pattern_maximum
from certbound.norms.dense import induced_norm
from certbound.testing.strategies import relu_networks
from certbound.theorems import theorem32
from certbound.theorems.theorem31 import check_theorem31
from certbound.theorems.theorem32 import check_theorem32, encoder_bounds
from certbound.types import Rigor, Sense

both_norms = pytest.mark.parametrize("norm", [2.0, math.inf])
FORMS = ("product", "cover", "printed", "derived", "sharp")


def encoders(**kwargs):
    return relu_networks(3, 4, biases=False, max_hidden=8, **kwargs).map(lambda n: list(n.chain.weights))


@both_norms
@network_settings
@given(weights=encoders(), data=st.data())
def test_ladder(norm, weights, data):
    k = data.draw(st.one_of(st.none(), st.integers(1, 2)))
    largest = max(w.shape[0] if math.isinf(norm) else min(w.shape) for w in weights)
    k = k if k is None else min(k, largest)
    report = check_theorem32(weights, norm=norm, k=k, max_patterns=data.draw(st.sampled_from([1, 2**20])))
    assert report.holds
    true = pattern_maximum(weights[:-1], weights[-1], norm)
    up = 1 + 1e-9
    assert report.sampled.value <= true * up
    assert true <= report.cover.value * up
    assert report.cover.value <= report.product.value * up
    assert report.cover.value <= report.sharp.value * up
    assert report.sharp.value <= report.derived.value * up
    assert report.derived.value <= report.printed.value * up
    assert report.sampled.sense is Sense.LOWER
    assert all(getattr(report, name).sense is Sense.UPPER for name in FORMS)
    assert all(getattr(report, name).rigor is Rigor.NUMERICAL for name in FORMS)
    json.dumps(report.to_dict(), allow_nan=False)
    assert "holds: yes" in str(report)
    assert sum(n for _, n in report.blocks) == len(weights)
    assert len(report.alignment) == len(weights) - 1


@both_norms
@network_settings
@given(weights=encoders(min_layers=2), data=st.data())
def test_bounds_are_made_of_theorem31_and_the_blocks(norm, weights, data):
    """L̂ = Π (Theorem 3.1 of each layer) · Π (A of the blocks of two); the cover the same with the norms."""
    part = "neuron" if math.isinf(norm) else "spectral"
    largest = min((w.shape[0] if math.isinf(norm) else min(w.shape)) for w in weights)
    k = data.draw(st.integers(1, largest))
    report = check_theorem32(weights, norm=norm, k=k)
    a = math.prod(report.alignment[i].value for i, n in report.blocks if n == 2)
    tiny = {"rel": 1e-9, "abs": 1e-300}
    for form in ("derived", "printed"):
        parts = [getattr(check_theorem31(w, k={part: k}, form=form), part) for w in weights]
        assert getattr(report, form).value == pytest.approx(math.prod(p.bound.value for p in parts) * a, **tiny)
        assert report.sharp.value == pytest.approx(math.prod(p.sharp.value for p in parts) * a, **tiny)
    assert report.product.value == pytest.approx(math.prod(induced_norm(w, norm) for w in weights), **tiny)
    assert report.cover.value == pytest.approx(report.product.value * a, **tiny)


def test_hand_example():
    """|x| doubled: product 4, alignment 1/2, so every bound is halved."""
    report = check_theorem32([[[1.0], [-1.0]], [[1.0, 1.0]], [[2.0]]], norm="inf")
    assert report.product.value == pytest.approx(4.0)
    assert report.cover.value == pytest.approx(2.0)
    assert report.blocks == ((0, 2), (2, 1))
    assert report.alignment[0].value == pytest.approx(0.5) and report.alignment[0].exact
    assert report.sampled.value == pytest.approx(2.0)


@both_norms
def test_zero_layer(norm):
    report = check_theorem32([np.ones((2, 3)), np.zeros((2, 2)), np.ones((1, 2))], norm=norm)
    assert report.holds
    assert {getattr(report, name).value for name in FORMS} == {0.0} == {report.sampled.value}


@both_norms
def test_encoder_without_layers_is_the_identity(norm):
    bounds, pairs, cover = encoder_bounds([], norm, "subject")
    assert {b.value for b in bounds.values()} == {1.0} and set(bounds) == set(FORMS)
    assert pairs == () and cover.value == 1.0


@both_norms
@pytest.mark.parametrize("scale", [1e-100, 1e100])
def test_extreme_scales(norm, scale):
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal((3, 4)), rng.standard_normal((3, 3))]
    plain = check_theorem32(weights, norm=norm)
    scaled = check_theorem32([weights[0] * scale, weights[1] / scale], norm=norm)
    assert scaled.holds
    for name in (*FORMS, "sampled"):
        assert getattr(scaled, name).value == pytest.approx(getattr(plain, name).value, rel=1e-6)


@both_norms
def test_holds_says_no_when_a_bound_is_wrong(norm, monkeypatch):
    weights = [[[1.0, 2.0], [3.0, 4.0]], [[1.0, -1.0]]]
    assert check_theorem32(weights, norm=norm).holds
    with monkeypatch.context() as m:
        m.setattr(theorem32, "_largest_sampled", lambda *_: (1e9, True))
        assert not check_theorem32(weights, norm=norm).holds
    with monkeypatch.context() as m:
        m.setattr(theorem32, "_largest_sampled", lambda *_: (0.0, False))
        assert not check_theorem32(weights, norm=norm).holds
    for name in ("product", "sharp", "derived", "printed"):
        with monkeypatch.context() as m:

            def wrong(*args, _name=name, **kwargs):
                bounds, pairs, cover = encoder_bounds(*args, **kwargs)
                return bounds | {_name: replace(bounds[_name], value=bounds[_name].value * 0.01)}, pairs, cover

            m.setattr(theorem32, "encoder_bounds", wrong)
            assert not check_theorem32(weights, norm=norm).holds, name


def test_holds_sees_a_pair_bound_that_a_pattern_beats(monkeypatch):
    """Random patterns are tried on every pair, whether or not an input realises them."""
    real = theorem32.cover_bound

    def wrong(*args, **kwargs):
        bound, pairs, cover = real(*args, **kwargs)
        return bound, tuple(replace(p, pair_norm=p.pair_norm * 0.3) for p in pairs), cover

    monkeypatch.setattr(theorem32, "cover_bound", wrong)
    assert not check_theorem32([np.ones((3, 2)), np.ones((1, 3))], norm=2).holds


def test_sampled_leaves_kinks_out(monkeypatch):
    """The only sample, (1, 0), is a kink of the second neuron: nothing may be taken from there."""

    class OneSample:
        def standard_normal(self, shape):
            return np.tile([1.0, 0.0], (shape[0], 1))

        def integers(self, low, high, size):
            return np.zeros(size, dtype=int)

    monkeypatch.setattr(theorem32.np.random, "default_rng", lambda _seed: OneSample())
    assert check_theorem32([np.eye(2), [[1.0, 1.0]]], norm=2).sampled.value == 0.0
    assert check_theorem32([[[1.0, 0.0], [1.0, 1.0]], [[1.0, 1.0]]], norm=2).sampled.value == pytest.approx(5**0.5)


@pytest.mark.parametrize("k", [0, -1, 4, 1.5, True, "2"])
def test_k_out_of_range(k):
    with pytest.raises(InputError, match="k"):
        check_theorem32([np.ones((3, 2)), np.ones((1, 3))], norm="inf", k=k)


def test_k_is_clamped_to_each_layer():
    report = check_theorem32([np.ones((3, 2)), np.ones((1, 3))], norm="inf", k=3)
    assert report.k == 3 and report.holds


@pytest.mark.parametrize("limit", [0, 2**24 + 1, 3.0, True, None, "8"])
def test_bad_max_patterns(limit):
    with pytest.raises(InputError, match="max_patterns"):
        check_theorem32([np.eye(2), np.eye(2)], max_patterns=limit)


@pytest.mark.parametrize("weights", [[np.ones((3, 2)), np.ones((1, 2))], [], np.eye(2), [np.ones(3)], [[[math.nan]]]])
def test_bad_weights(weights):
    with pytest.raises(InputError):
        check_theorem32(weights)


@pytest.mark.parametrize("norm", [1, 3, "1", None, math.nan, True])
def test_bad_norm(norm):
    with pytest.raises(InputError, match="norm"):
        check_theorem32([np.eye(2)], norm=norm)


def test_rigor_is_not_given_away():
    with pytest.raises(InputError, match="rigor"):
        check_theorem32([np.eye(2)], rigor="heuristic")


def test_pairs_above_the_limit_are_marked():
    rng = np.random.default_rng(1)
    report = check_theorem32([rng.standard_normal((6, 4)), rng.standard_normal((2, 6))], norm=2, max_patterns=2**5)
    assert not report.alignment[0].exact
    assert "*" in str(report).splitlines()[-2] or "*" in str(report)
    exact = check_theorem32([rng.standard_normal((6, 4)), rng.standard_normal((2, 6))], norm=2, max_patterns=2**6)
    assert exact.alignment[0].exact
