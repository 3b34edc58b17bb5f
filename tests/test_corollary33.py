"""Corollary 3.3: against worst cases in closed form, with the right dual norm and the worst class."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from budget import network_settings
from hypothesis import given, settings
from hypothesis import strategies as st

from certbound.errors import InputError
from certbound.network import Affine, Network, ReLU
from certbound.testing.strategies import labelled_batches, relu_networks
from certbound.theorems import corollary33
from certbound.theorems.corollary33 import check_corollary33
from certbound.types import Quantity, Rigor, Sense

both_norms = pytest.mark.parametrize("norm", [2.0, math.inf])
FORMS = ("printed", "derived", "sharp", "product", "cover")


def softplus(z):
    return np.logaddexp(0.0, z)


def dual(c, norm):
    return float(np.abs(c).sum() if math.isinf(norm) else np.linalg.norm(c))


# -- closed forms ----------------------------------------------------------------------------------------


@both_norms
@pytest.mark.parametrize("labels", [[0, 1, 1], [1, 0, 1]])
def test_one_logit_linear_model(norm, labels):
    """No encoder: L̂ = 1, and the bound is δ‖C‖_{p*} exactly; the worst loss is softplus(−y m + δ‖C‖_{p*})."""
    C, delta = np.array([[3.0, -4.0]]), 0.05
    x, y = np.array([[0.5, 0.5], [0.25, 0.75], [0.75, 0.25]]), np.array(labels)
    report = check_corollary33([C], x, y, delta=delta, norm=norm)
    size = 7.0 if norm == math.inf else 5.0
    assert [report.by_form[f].value for f in FORMS] == pytest.approx([delta * size] * 5, rel=1e-12)
    z = (x @ C.T)[:, 0] * np.where(y == 1, 1.0, -1.0)
    worst = softplus(-z + delta * size) - softplus(-z)
    assert np.allclose(report.per_sample["measured"], worst, rtol=1e-3)
    assert np.all(report.per_sample["measured"] <= worst + 1e-12)
    assert np.allclose(report.per_sample["clean_loss"], softplus(-z))
    assert report.holds


@both_norms
def test_linear_encoder(norm):
    """Active ReLUs all through the ball: the worst case is that of the row C·W; the bound is L̂ ‖C‖_{p*} above it."""
    W, C, delta = np.array([[1.0, 2.0], [3.0, 1.0]]), np.array([[2.0, 1.0]]), 0.05
    x, y = np.array([[0.5, 0.5], [0.25, 0.75]]), np.array([1, 0])
    report = check_corollary33([W, C], x, y, delta=delta, norm=norm)
    size = dual(C @ W, norm)
    z = (x @ W.T @ C.T)[:, 0] * np.array([1.0, -1.0])
    worst = softplus(-z + delta * size) - softplus(-z)
    assert np.allclose(report.per_sample["measured"], worst, rtol=1e-3)
    encoder = np.linalg.norm(W, 2 if norm == 2 else np.inf)
    expected = delta * encoder * dual(C[0], norm)
    assert report.by_form["product"].value == pytest.approx(expected, rel=1e-12)
    assert report.by_form["cover"].value == pytest.approx(expected, rel=1e-12)  # one layer: nothing to align
    assert report.by_form["derived"].value >= expected * (1 - 1e-12)
    assert report.holds


@both_norms
def test_the_wrong_dual_norm_would_be_caught(norm, monkeypatch):
    """Far on the wrong side the loss is linear: the attack reaches δ‖C‖_{p*}, and a smaller factor breaks ``holds``."""
    C = np.full((1, 9), 2.0)
    x, y = np.full((1, 9), 0.5), np.array([0])  # logit 9 for the class 0: loss = 9 to 1e-4
    report = check_corollary33([C], x, y, delta=0.05, norm=norm)
    exact = 0.05 * (18.0 if norm == math.inf else 6.0)
    assert report.holds
    assert report.measured_gap.value == pytest.approx(exact, rel=1e-3)
    assert report.loss_gap_bound.value == pytest.approx(exact, rel=1e-12)
    real = corollary33.head_constants

    def other_norm(encoder, head, p):
        return real(encoder, head, 2.0) * (1.0 if p == math.inf else 1 / 9)

    monkeypatch.setattr(corollary33, "head_constants", other_norm)
    assert not check_corollary33([C], x, y, delta=0.05, norm=norm).holds


@both_norms
def test_the_worst_class_decides(norm, monkeypatch):
    """Three classes, the true one hopelessly behind class 2: δ‖C_2 − C_0‖_{p*} is reached, class 1's is not enough."""
    head, bias = np.array([[0.0, 0.0], [0.5, 0.0], [-3.0, 4.0]]), np.array([0.0, 0.0, 30.0])
    net = Network((Affine(head, bias),))
    x = np.array([[0.5, 0.5]])
    report = check_corollary33(net, x, [0], delta=0.1, norm=norm)
    size = 7.0 if norm == math.inf else 5.0
    assert report.holds
    assert report.per_sample["bound"][0] == pytest.approx(0.1 * size, rel=1e-12)
    assert report.measured_gap.value == pytest.approx(0.1 * size, rel=1e-3)
    other = check_corollary33(net, x, [1], delta=0.1, norm=norm)
    assert other.per_sample["bound"][0] == pytest.approx(0.1 * (7.5 if norm == math.inf else math.hypot(3.5, 4)))


@both_norms
def test_two_logits_equal_one(norm):
    """Binary logistic with logit z is cross-entropy of (0, z): the same bound, the same loss."""
    W, C = np.array([[1.0, -1.0], [2.0, 1.0]]), np.array([[1.0, -2.0]])
    x, y = np.array([[0.25, 0.5], [1.0, 0.0]]), [0, 1]
    one = check_corollary33([W, C], x, y, delta=0.1, norm=norm)
    two = check_corollary33([W, np.vstack([0 * C, C])], x, y, delta=0.1, norm=norm)
    for form in FORMS:
        assert one.by_form[form].value == pytest.approx(two.by_form[form].value, rel=1e-12)
    assert np.allclose(one.per_sample["clean_loss"], two.per_sample["clean_loss"])


# -- random networks ---------------------------------------------------------------------------------------


@both_norms
@settings(max_examples=max(8, network_settings.max_examples // 10))
@given(net=relu_networks(3, 4), data=st.data())
def test_holds_on_random_networks(norm, net, data):
    x, y = data.draw(labelled_batches(net, 4))
    delta = data.draw(st.sampled_from([0.01, 0.1, 0.5]))
    report = check_corollary33(net, x, y, delta=delta, norm=norm, steps=10)
    assert report.holds
    values = {f: report.by_form[f].value for f in FORMS}
    up = 1 + 1e-9
    assert values["cover"] <= values["product"] * up and values["cover"] <= values["sharp"] * up
    assert values["sharp"] <= values["derived"] * up and values["derived"] <= values["printed"] * up
    assert report.measured_gap.value <= values["cover"] * up + 1e-9
    assert np.all(report.per_sample["measured"] <= report.per_sample["bound"] * up + 1e-9)
    json.dumps(report.to_dict(), allow_nan=False)


@both_norms
def test_report(norm):
    W, C = np.array([[1.0, -1.0], [2.0, 1.0], [0.5, 0.5]]), np.array([[1.0, -2.0, 0.0], [0.0, 1.0, 1.0]])
    x = np.array([[0.25, 0.5], [1.0, 0.0], [0.5, 0.5]])
    report = check_corollary33([W, C], x, [0, 1, 1], delta=0.1, norm=norm)
    assert report.loss_gap_bound == report.by_form["derived"]
    bound = report.loss_gap_bound
    assert (bound.sense, bound.rigor, bound.claim.quantity) == (Sense.UPPER, Rigor.NUMERICAL, Quantity.LOSS_GAP)
    assert report.measured_gap.sense is Sense.LOWER and report.measured_gap.claim.quantity is Quantity.LOSS_GAP
    assert report.measured_gap.claim == bound.claim  # the same claim on both sides: they can be compared
    assert set(report.per_sample) == {"measured", "clean_loss", "bound"}
    assert {v.shape for v in report.per_sample.values()} == {(3,)}
    assert bound.value == pytest.approx(report.per_sample["bound"].mean())
    assert report.measured_gap.value == pytest.approx(report.per_sample["measured"].mean())
    with pytest.raises(ValueError, match="read-only"):
        report.per_sample["bound"][0] = 0.0
    with pytest.raises(TypeError):
        report.by_form["derived"] = None
    assert "holds: yes" in str(report)


@both_norms
def test_no_perturbation(norm):
    report = check_corollary33([np.eye(2)], [[0.25, 0.5]], [0], delta=0.0, norm=norm)
    assert report.holds
    assert report.measured_gap.value == 0.0 == report.loss_gap_bound.value
    assert not report.per_sample["bound"].any()


@both_norms
def test_bound_grows_in_proportion_to_delta(norm):
    W = [np.array([[1.0, -1.0], [2.0, 1.0]]), np.array([[1.0, -2.0], [0.0, 1.0]])]
    small, large = (check_corollary33(W, [[0.25, 0.5]], [0], delta=d, norm=norm, steps=5) for d in (0.01, 0.04))
    assert large.loss_gap_bound.value == pytest.approx(4 * small.loss_gap_bound.value)


def test_holds_says_no(monkeypatch):
    real = corollary33.head_constants
    monkeypatch.setattr(corollary33, "head_constants", lambda *a: 0.01 * real(*a))
    assert not check_corollary33([np.array([[3.0, -4.0]])], [[0.5, 0.5]], [0], delta=0.1, norm=2).holds


# -- bad input ---------------------------------------------------------------------------------------------


def test_final_relu_is_refused():
    net = Network((Affine(np.eye(2)), ReLU()))
    with pytest.raises(InputError, match="ReLU"):
        check_corollary33(net, [[0.5, 0.5]], [0], delta=0.1, norm=2)


@pytest.mark.parametrize("y", [[2], [-1], [0.5], [0, 1], [[0]], [math.nan], "a"])
def test_bad_labels(y):
    with pytest.raises(InputError, match="y"):
        check_corollary33([np.eye(2)], [[0.5, 0.5]], y, delta=0.1, norm=2)


def test_one_logit_takes_labels_0_and_1_only():
    for bad in (-1, 2):
        with pytest.raises(InputError, match="y"):
            check_corollary33([np.ones((1, 2))], [[0.5, 0.5]], [bad], delta=0.1, norm=2)


@pytest.mark.parametrize("delta", [-0.1, math.inf, math.nan, "0.1", None, True])
def test_bad_delta(delta):
    with pytest.raises(InputError, match="delta"):
        check_corollary33([np.eye(2)], [[0.5, 0.5]], [0], delta=delta, norm=2)


@pytest.mark.parametrize("x", [[[1.5, 0.0]], [[-0.1, 0.0]], [[0.1, 0.2, 0.3]], [0.5, 0.5], [[math.nan, 0.0]]])
def test_bad_samples(x):
    with pytest.raises(InputError, match="x"):
        check_corollary33([np.eye(2)], x, [0], delta=0.1, norm=2)


def test_bad_norm():
    with pytest.raises(InputError, match="norm"):
        check_corollary33([np.eye(2)], [[0.5, 0.5]], [0], delta=0.1, norm=1)
