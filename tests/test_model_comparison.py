"""Dense against compressed: the difference network, the certified change, certified radii."""

import csv
import itertools
import json
import math

import numpy as np
import pytest
from budget import network_settings
from hypothesis import given
from hypothesis import strategies as st

from certbound import InputError, LadderError, Network, as_network, model_comparison
from certbound.difference import difference_network, two_sided
from certbound.model_comparison import certified_radii, compare_models, output_change_bounds
from certbound.network import Affine, ReLU
from certbound.testing import relu_networks

RNG = np.random.default_rng(5)


def net(*sizes):
    return [RNG.standard_normal((b, a)) * math.sqrt(2 / a) for a, b in itertools.pairwise(sizes)]


F = net(6, 10, 8, 3)
G = [w + 0.05 * RNG.standard_normal(w.shape) for w in F]
X = RNG.random((10, 6))
Y = as_network(F).forward(X).argmax(axis=1)
QUICK = ["apgd-ce", "recursion", "CROWN"]


@network_settings
@given(st.data())
def test_difference_network_is_the_difference(data):
    n_in, n_out = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    f = data.draw(relu_networks(n_inputs=n_in, n_outputs=n_out))
    g = data.draw(relu_networks(n_inputs=n_in, n_outputs=n_out))
    x = np.random.default_rng(0).normal(size=(7, n_in)) * 3
    a, b = f.forward(x), g.forward(x)
    scale = 1 + np.abs(a).max() + np.abs(b).max()
    np.testing.assert_allclose(difference_network(f, g).forward(x), a - b, atol=1e-12 * scale)
    h = two_sided(f).forward(x)
    np.testing.assert_allclose(h, np.hstack([np.zeros((7, 1)), a, -a]), atol=1e-12 * scale)


@pytest.mark.parametrize("norm", [2, "inf"])
def test_change_bound_holds_at_sampled_points(norm):
    p = math.inf if norm == "inf" else 2.0
    f, g = as_network(F), as_network(G)
    bounds = output_change_bounds(difference_network(f, g), X, 0.1, p)
    rng = np.random.default_rng(0)
    for _ in range(300):
        a = rng.normal(size=X.shape)
        a *= 0.1 / (np.abs(a).max(axis=1, keepdims=True) if norm == "inf" else np.linalg.norm(a, axis=1)[:, None])
        inside = np.clip(X + a, 0, 1)
        change = np.abs(f.forward(inside) - g.forward(inside)).max(axis=1)
        assert np.all(change <= bounds)


def test_change_bound_of_linear_maps_is_exact():
    # h(x) = (w − v)·x: max |h| over an ℓ2 ball is |h(x)| + δ‖w − v‖
    w, v = np.array([[3.0, 0.0]]), np.array([[0.0, 4.0]])
    x = np.array([[0.5, 0.25]])
    h = difference_network(as_network([w]), as_network([v]))
    bound = output_change_bounds(h, x, 0.1, 2.0)
    assert math.isclose(bound[0], abs(1.5 - 1.0) + 0.1 * 5, rel_tol=1e-9)
    bound = output_change_bounds(h, x, 0.1, math.inf)
    assert math.isclose(bound[0], 0.5 + 0.1 * 7, rel_tol=1e-9)


def test_change_bound_holds_without_crown(monkeypatch):
    monkeypatch.setattr(model_comparison, "find_spec", lambda _: None)
    f, g = as_network(F), as_network(G)
    h = difference_network(f, g)
    bounds = output_change_bounds(h, X, 0.1, 2.0)
    monkeypatch.undo()
    assert np.all(output_change_bounds(h, X, 0.1, 2.0) <= bounds)


def test_identical_networks_do_not_differ():
    r = compare_models(F, F, X, Y, delta=0.05, norm=2, methods=QUICK)
    assert r.measured_change.max() <= 1e-12
    assert set(r.changes.values()) == {0.0}
    np.testing.assert_array_equal(r.radii["dense"], r.radii["compressed"])


@pytest.mark.parametrize("norm", [2, "inf"])
def test_report(norm, tmp_path):
    r = compare_models(F, G, X, Y, delta=0.05, norm=norm, methods=QUICK)
    assert np.all(r.measured_change <= r.output_change * (1 + 1e-9))
    assert r.output_change_bound.value == r.output_change.max()
    assert r.changes["standard accuracy"] == r.compressed.clean_accuracy - r.dense.clean_accuracy
    attacked = r.compressed.row("apgd-ce", "robust accuracy").value - r.dense.row("apgd-ce", "robust accuracy").value
    assert r.changes["robust accuracy"] == attacked
    json.dumps(r.to_dict(), allow_nan=False)
    assert "certified radius" in str(r)
    with r.save_csv(tmp_path / "radii.csv").open(encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    assert [float(row["certified_radius_dense"]) for row in rows] == r.radii["dense"].tolist()
    assert [int(row["label"]) for row in rows] == Y.tolist()
    assert list(tmp_path.iterdir()) == [tmp_path / "radii.csv"]


def test_a_wrong_change_bound_is_a_broken_ladder(monkeypatch):
    real = model_comparison.output_change_bounds
    monkeypatch.setattr(model_comparison, "output_change_bounds", lambda *a: 0.3 * real(*a))
    with pytest.raises(LadderError, match="f - g"):
        compare_models(F, G, X, Y, delta=0.05, norm=2, methods=QUICK)


@pytest.mark.parametrize("norm", [2, "inf"])
@pytest.mark.parametrize("method", ["recursion", "CROWN"])
def test_no_attack_beats_a_certified_radius(norm, method):
    from certbound import attack

    radii = certified_radii(F, X, Y, norm=norm, method=method, max_radius=0.4)
    assert radii.min() >= 0
    assert radii.max() > 0
    for i in np.flatnonzero(radii > 0):
        found = attack(F, X[i : i + 1], Y[i : i + 1], delta=float(radii[i]), norm=norm, steps=30)
        assert found.robust_accuracy == 1.0
    if method == "CROWN":
        capped = np.minimum(certified_radii(F, X, Y, norm=norm), 0.4)
        assert np.all(radii >= capped)


def test_radius_of_a_wrong_sample_is_zero_and_of_a_linear_map_exact():
    w = np.array([[1.0, 0.0], [0.0, 1.0]])
    x = np.array([[0.75, 0.25], [0.25, 0.75], [0.5, 0.5]])
    two = certified_radii([w], x, [0, 0, 0], norm=2)
    assert math.isclose(two[0], 0.5 / math.sqrt(2), rel_tol=1e-9)
    assert two[1] == 0.0
    assert two[2] == 0.0  # a tie is an error
    assert two[0] <= 0.5 / math.sqrt(2)


def test_classes_that_never_meet_have_infinite_radius():
    # both outputs share their row: the margin is the bias, whatever the input
    n = Network((Affine([[1.0], [1.0]]), ReLU(), Affine([[1.0, 0.0], [1.0, 0.0]], [1.0, 0.0])))
    assert certified_radii(n, [[0.5]], [0], norm=2)[0] > 1e300


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda: compare_models(F, net(5, 3), X, Y, delta=0.1, norm=2), "compressed"),
        (lambda: compare_models(F, net(6, 4), X, Y, delta=0.1, norm=2), "compressed"),
        (lambda: compare_models(F, Network((Affine(F[0]), ReLU())), X, Y, delta=0.1, norm=2), "model"),
        (lambda: compare_models(F, G, X, Y, delta=-1, norm=2), "delta"),
        (lambda: compare_models(F, G, X, Y, delta=0.1, norm=3), "norm"),
        (lambda: certified_radii(F, X, Y, norm=2, method="magic"), "method"),
        (lambda: certified_radii(F, X, Y, norm=2, method="CROWN", max_radius=math.inf), "max_radius"),
        (lambda: certified_radii(F, X * math.nan, Y, norm=2), "x"),
    ],
)
def test_bad_input(call, argument):
    with pytest.raises(InputError, match=f"^{argument}"):
        call()
