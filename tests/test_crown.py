"""CROWN and IBP margins: below the truth, equal to it where they must be, and auto_LiRPA's side effects undone."""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from digits import trained
from torch import nn

from certbound import losses
from certbound.attacks.apgd import attack
from certbound.bound import Claim
from certbound.comparison import compare
from certbound.crown import compat
from certbound.crown import margins as margins_module
from certbound.crown.compat import bounded_module, load_auto_lirpa
from certbound.crown.margins import margins
from certbound.errors import CertboundError, InputError, MissingDependencyError
from certbound.io.to_torch import to_torch
from certbound.network import Affine, Network, ReLU, as_network
from certbound.types import Quantity, Rigor, Sense, Status, dual_norm

NORMS = [2.0, math.inf]
METHODS = ["CROWN", "IBP", "alpha-CROWN", "CROWN-IBP", "forward"]


def network(rng, widths, *, final_relu=False):
    layers = []
    for i, (n, m) in enumerate(itertools.pairwise(widths)):
        layers += [ReLU()] if i else []
        layers.append(Affine(rng.standard_normal((m, n)), 0.3 * rng.standard_normal(m)))
    return Network((*layers, ReLU()) if final_relu else tuple(layers))


def exact_linear(w, x, y, delta, norm):
    clean = losses.margins_of(x @ w.T, y)
    for i, label in enumerate(y):
        for j in range(len(w)):
            clean[i, j] -= delta * np.linalg.norm(w[label] - w[j], dual_norm(norm))
    return clean


def grid_margins(net, x, y, delta, norm, clip=None, side=121):
    """Smallest margins over a grid of the ball around each 2-dimensional sample: above the true minimum."""
    axis = np.linspace(-delta, delta, side)
    a = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    a = a[np.linalg.norm(a, norm, axis=1) <= delta]
    out = []
    for centre, label in zip(x, y, strict=True):
        points = centre + a
        if clip is not None:
            points = points[np.all((points >= clip[0]) & (points <= clip[1]), axis=1)]
        logits = losses.class_logits(net.forward(points))
        out.append(losses.margins_of(logits, np.full(len(points), label)).min(axis=0))
    return np.array(out)


# -- the numbers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("norm", NORMS)
def test_linear_model_is_exact(method, norm):
    rng = np.random.default_rng(0)
    w, x, y = rng.standard_normal((4, 5)), rng.random((7, 5)), rng.integers(0, 4, 7)
    report = margins([w], x, y, delta=0.3, norm=norm, method=method)
    np.testing.assert_allclose(report.lower, exact_linear(w, x, y, 0.3, norm), rtol=1e-12, atol=1e-12)
    # clean margins are products with differences of rows: another order of rounding than differences of logits
    np.testing.assert_allclose(report.clean, losses.margins_of(x @ w.T, y), rtol=1e-13, atol=1e-13)
    assert np.all(np.isinf(report.lower[np.arange(7), y]))
    assert report.lower.dtype == np.float64


@pytest.mark.parametrize("norm", NORMS)
def test_linear_model_in_two_layers_needs_margins_as_such(norm):
    # the margin of x ↦ W₂W₁x is a linear function; a difference of logit bounds would be looser
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((6, 5)), rng.standard_normal((3, 6))
    x, y = rng.random((4, 5)), np.array([0, 1, 2, 0])
    # a ReLU that never switches: large biases
    net = Network((Affine(a, np.full(6, 100.0)), ReLU(), Affine(b, -b @ np.full(6, 100.0))))
    report = margins(net, x, y, delta=0.3, norm=norm)
    np.testing.assert_allclose(report.lower, exact_linear(b @ a, x, y, 0.3, norm), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("clip", [None, (0.0, 1.0)])
def test_clip_shrinks_the_box(clip):
    w = np.array([[1.0, 0.0], [0.0, 1.0]])
    report = margins([w], [[0.95, 0.02]], [0], delta=0.1, norm="inf", clip=clip)
    # x_0 falls by 0.1, x_1 rises by 0.1: the box does not matter; for label 1 it does
    np.testing.assert_allclose(report.lower, [[math.inf, 0.73]], rtol=1e-12)
    other = margins([w], [[0.95, 0.02]], [1], delta=0.1, norm="inf", clip=clip)
    np.testing.assert_allclose(other.lower, [[-1.13 if clip is None else -1.0, math.inf]], rtol=1e-12)
    assert ("in [0, 1]" in other.loss_gap.claim.domain) == (clip is not None)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("clip", [None, (0.0, 1.0)])
@pytest.mark.parametrize(("widths", "final"), [([2, 6, 6, 3], False), ([2, 5, 3], True), ([2, 7, 1], False)])
def test_below_a_grid_of_the_ball(method, norm, clip, widths, final):
    rng = np.random.default_rng(2)
    net = network(rng, widths, final_relu=final)
    x, y = rng.random((6, 2)), rng.integers(0, max(widths[-1], 2), 6)
    report = margins(net, x, y, delta=0.15, norm=norm, method=method, clip=clip)
    truth = grid_margins(net, x, y, 0.15, norm, clip)
    assert np.all(report.lower <= truth + 1e-12)
    assert np.all(report.lower <= report.clean)
    gap = losses.loss_of_margins(truth) - losses.loss_of_margins(report.clean)
    assert np.all(report.per_sample_gap >= gap - 1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_stable_neurons_make_crown_exact(norm):
    # in a tiny ball no ReLU switches: the network is affine there
    rng = np.random.default_rng(3)
    net = network(rng, [2, 6, 6, 3])
    x, y = rng.random((5, 2)), rng.integers(0, 3, 5)
    report = margins(net, x, y, delta=1e-5, norm=norm)
    truth = grid_margins(net, x, y, 1e-5, norm, side=401)
    np.testing.assert_allclose(report.lower, truth, atol=2e-6)
    assert np.all(report.lower[np.isfinite(truth)] < report.clean[np.isfinite(truth)])


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("method", METHODS)
def test_below_the_margins_that_an_attack_reaches(norm, method):
    rng = np.random.default_rng(4)
    net = network(rng, [6, 12, 12, 4])
    x, y = rng.random((8, 6)), rng.integers(0, 4, 8)
    found = attack(net, x, y, delta=0.1, norm=norm, steps=30, device="cpu")
    report = margins(net, x, y, delta=0.1, norm=norm, method=method, clip=(0.0, 1.0))
    reached = losses.margins_of(net.forward(found.x_adv), y)
    assert np.all(report.lower <= reached + 1e-12)
    assert report.certified_accuracy <= found.robust_accuracy
    assert report.loss_gap.value >= found.loss_gap.value > 0
    assert report.loss_gap.claim == found.loss_gap.claim
    assert report.certified_accuracy_bound.claim == found.robust_accuracy_bound.claim


@pytest.mark.parametrize("final", [False, True])
def test_delta_zero_is_the_clean_margin(final):
    rng = np.random.default_rng(5)
    net = network(rng, [4, 6, 3], final_relu=final)
    x, y = rng.random((5, 4)), rng.integers(0, 3, 5)
    report = margins(net, x, y, delta=0, norm=2)
    np.testing.assert_allclose(report.lower, report.clean, atol=1e-9)
    assert report.loss_gap.value == 0.0
    nearly = margins(net, x, y, delta=1e-12, norm=2)  # through auto_LiRPA
    np.testing.assert_allclose(nearly.lower, report.clean, atol=1e-9)


def direct_margins(net, x, y, delta, norm, method, **options):
    """auto_LiRPA as its manual says, on one sample after the other."""
    package = load_auto_lirpa()
    out = []
    for sample, label in zip(torch.tensor(x)[:, None], y, strict=True):
        bounded = bounded_module(to_torch(net), sample)
        if options:
            bounded.bound_opts.update(options)
        c = torch.zeros(1, net.n_outputs, net.n_outputs, dtype=torch.float64)
        c[0, :, label] += 1
        c[0] -= torch.eye(net.n_outputs)
        ball = package.PerturbationLpNorm(norm=np.inf if math.isinf(norm) else 2, eps=delta)
        low, _ = bounded.compute_bounds(x=(package.BoundedTensor(sample, ball),), C=c, method=method, bound_upper=False)
        out.append(low.detach().numpy()[0])
    return np.array(out)


@pytest.mark.parametrize("method", [m for m in METHODS if m != "alpha-CROWN"])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("delta", [0.01, 0.1])
def test_auto_lirpa_called_directly_gives_the_same(method, norm, delta):
    rng = np.random.default_rng(6)
    net = network(rng, [5, 20, 20, 4])
    x, y = rng.random((7, 5)), rng.integers(0, 4, 7)
    # minimum_sparsity: without it auto_LiRPA drops what IBP shows if nine in ten neurons are not stable
    direct = direct_margins(net, x, y, delta, norm, method, minimum_sparsity=1.0)
    ours = margins(net, x, y, delta=delta, norm=norm, method=method).lower
    rest = np.isfinite(ours)
    np.testing.assert_allclose(ours[rest], direct[rest], rtol=1e-12, atol=1e-12)
    plain = direct_margins(net, x, y, delta, norm, method)
    np.testing.assert_allclose(ours[rest], plain[rest], rtol=0.05, atol=0.05)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("norm", NORMS)
def test_the_samples_beside_it_do_not_matter(method, norm):
    # guard: auto_LiRPA's CROWN bounds of a sample depend on the batch it is in
    rng = np.random.default_rng(7)
    net = network(rng, [5, 9, 9, 9, 3])
    n = 6 if method == "alpha-CROWN" else 20
    x, y = rng.random((n, 5)), rng.integers(0, 3, n)
    whole = margins(net, x, y, delta=0.1, norm=norm, method=method)
    for size in (1, 3):
        parts = margins(net, x, y, delta=0.1, norm=norm, method=method, batch_size=size)
        np.testing.assert_allclose(parts.lower, whole.lower, rtol=1e-12, atol=1e-12)
    back = margins(net, x[::-1], y[::-1], delta=0.1, norm=norm, method=method)
    np.testing.assert_allclose(back.lower[::-1], whole.lower, rtol=1e-12, atol=1e-12)


# -- alpha-CROWN --------------------------------------------------------------------------------------------------


class _OpenClamp(torch.autograd.Function):
    """Clamp to [0, 1] with gradient 1 on the closed interval: another implementation of the one in compat."""

    @staticmethod
    def forward(ctx, alpha):
        ctx.save_for_backward(alpha)
        return alpha.clamp(0, 1)

    @staticmethod
    def backward(ctx, gradient):
        (alpha,) = ctx.saved_tensors
        return gradient * ((alpha >= 0) & (alpha <= 1))


def _mask_alpha(lower, upper, below, above):
    on, off = (lower >= 0).to(lower), (upper <= 0).to(lower)
    parts = [None if a is None else _OpenClamp.apply(a) * (1 - on) * (1 - off) + on for a in (below, above)]
    return (*parts, (upper <= 0).all())


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("delta", [0.02, 0.1])
def test_auto_lirpa_called_directly_gives_the_same_alpha_crown(norm, delta, monkeypatch):
    # sample by sample; its default dtype is what auto_LiRPA rounds its result to
    package = load_auto_lirpa()
    from auto_LiRPA.operators.activation import BoundRelu

    rng = np.random.default_rng(6)
    net = network(rng, [5, 12, 12, 4])
    x, y = rng.random((5, 5)), rng.integers(0, 4, 5)
    ours = margins(net, x, y, delta=delta, norm=norm, method="alpha-CROWN")
    assert ours.status is Status.OK
    assert ours.note == ""
    crown = margins(net, x, y, delta=delta, norm=norm).lower
    monkeypatch.setattr(BoundRelu, "_relu_mask_alpha", staticmethod(_mask_alpha))
    torch.set_default_dtype(torch.float64)
    try:
        for i in range(5):
            options = {
                "sparse_features_alpha": False,
                "sparse_spec_alpha": False,
                "sparse_intermediate_bounds": False,
                "optimize_bound_args": {"iteration": 21, "early_stop_patience": 100},
            }
            sample = torch.tensor(x[i : i + 1])
            bounded = bounded_module(to_torch(net), sample, options)
            ball = package.PerturbationLpNorm(norm=np.inf if math.isinf(norm) else 2, eps=delta)
            inputs = (package.BoundedTensor(sample, ball),)
            c = torch.eye(4)[y[i : i + 1]][:, None] - torch.eye(4)[None]
            with torch.no_grad():
                stable = margins_module._stable(torch, bounded, inputs)
            low, _ = bounded.compute_bounds(
                x=inputs, C=c, method="alpha-CROWN", bound_upper=False, reference_bounds=stable
            )
            rest = np.isfinite(ours.lower[i])
            expected = np.maximum(low.detach().numpy()[0], crown[i])[rest]
            np.testing.assert_allclose(ours.lower[i][rest], expected, rtol=1e-9, atol=1e-9)
    finally:
        torch.set_default_dtype(torch.float32)
    assert np.any(ours.lower > crown + 1e-3)


@pytest.mark.parametrize("norm", NORMS)
def test_alpha_crown_is_better_than_crown_on_a_trained_network(norm):
    # guard: the gradient of clamp at its limits; without it the bounds are CROWN's
    model, x, y = trained()
    x, y, delta = x[1400:1410], y[1400:1410], 0.1 if math.isinf(norm) else 0.6
    crown = margins(model, x, y, delta=delta, norm=norm)
    optimised = margins(model, x, y, delta=delta, norm=norm, method="alpha-CROWN")
    assert crown.status is optimised.status is Status.OK
    assert optimised.lower.dtype == np.float64
    rest = np.isfinite(crown.lower)
    assert np.all(optimised.lower >= crown.lower)
    gain = np.mean(optimised.lower[rest] - crown.lower[rest]) / abs(np.mean(crown.lower[rest]))
    assert gain >= 0.01
    assert optimised.loss_gap.value < crown.loss_gap.value
    assert optimised.loss_gap.claim == crown.loss_gap.claim
    found = attack(model, x, y, delta=delta, norm=norm, method="worst", steps=50, device="cpu")
    for points in (found.x_adv, found.x_wrong):
        reached = losses.margins_of(as_network(model).forward(points), y)
        assert np.all(optimised.lower[rest] <= reached[rest])


def test_alpha_crown_that_does_not_optimise_says_so(monkeypatch):
    model, x, y = trained()
    x, y = x[1400:1404], y[1400:1404]
    crown = margins(model, x, y, delta=0.1, norm="inf")
    stuck = compat.clamp_stops_gradients()
    monkeypatch.setattr(compat, "clamp_stops_gradients", lambda: False)
    report = margins(model, x, y, delta=0.1, norm="inf", method="alpha-CROWN")
    if stuck:
        assert report.status is Status.FAILED
        assert "no gradient reached a slope" in report.note
        assert "no gradient reached a slope" in str(report)
        assert report.to_dict()["status"] == "FAILED"
        np.testing.assert_allclose(report.lower, crown.lower, rtol=1e-7, atol=1e-7)
        assert np.all(report.lower >= crown.lower)
    else:
        assert report.status is Status.OK


def test_alpha_crown_with_nothing_to_optimise_is_ok():
    # no ReLU at all, and none that can switch
    assert margins(**{**GOOD, "method": "alpha-CROWN"}).status is Status.OK
    a, b = np.random.default_rng(1).standard_normal((2, 4, 4))
    net = Network((Affine(a, np.full(4, 100.0)), ReLU(), Affine(b)))
    report = margins(net, [[0.5] * 4], [0], delta=0.1, norm=2, method="alpha-CROWN")
    assert report.status is Status.OK
    np.testing.assert_array_equal(report.lower, margins(net, [[0.5] * 4], [0], delta=0.1, norm=2).lower)


@pytest.mark.parametrize("error", [RuntimeError("inside"), IndexError("inside"), AssertionError("inside")])
def test_alpha_crown_that_crashes_gives_crown(monkeypatch, error):
    def crash(*_):
        raise error

    monkeypatch.setattr(margins_module._Problem, "optimised", crash)
    report = margins(**{**GOOD, "method": "alpha-CROWN"})
    assert report.status is Status.FAILED
    assert "inside" in report.note
    np.testing.assert_array_equal(report.lower, margins(**GOOD).lower)


def test_an_auto_lirpa_that_shows_no_bounds_on_its_way_gives_crown(monkeypatch):
    # its own result is float32: on the wrong side, perhaps
    monkeypatch.setattr(
        margins_module,
        "bounded_module",
        lambda module, example, options=None: bounded_module(
            module, example, None if options is None else {**options, "optimize_bound_args": {"keep_best": False}}
        ),
    )
    report = margins(**{**GOOD, "model": [np.eye(2), np.eye(2)], "method": "alpha-CROWN"})
    assert report.status is Status.FAILED
    assert "no float64 bounds" in report.note


def test_alpha_crown_runs_where_many_neurons_are_stable():
    # guard: with auto_LiRPA's default options for sparse slopes this crashes, sample by sample
    rng = np.random.default_rng(7)
    net = network(rng, [5, 20, 20, 20, 3])
    x, y = rng.random((4, 5)), rng.integers(0, 3, 4)
    whole, single = (
        margins(net, x, y, delta=0.02, norm="inf", method="alpha-CROWN", iterations=6, batch_size=n) for n in (4, 1)
    )
    assert whole.status is single.status is Status.OK
    np.testing.assert_allclose(single.lower, whole.lower, rtol=1e-9, atol=1e-9)


def test_a_nan_of_the_optimisation_is_no_bound(monkeypatch):
    nan = np.full((1, 2), math.nan)
    monkeypatch.setattr(margins_module._Problem, "optimised", lambda *_: (nan, ""))
    np.testing.assert_array_equal(margins(**{**GOOD, "method": "alpha-CROWN"}).lower, margins(**GOOD).lower)


def test_compare_runs_every_margin_method(monkeypatch):
    model, x, y = trained()
    x, y = x[1400:1404], y[1400:1404]
    names = ["apgd-ce", "IBP", "CROWN-IBP", "forward", "CROWN", "alpha-CROWN"]
    both = compare(model, x, y, delta=0.08, norm="inf", methods=names)
    assert [r.method for r in both.rows[::2]] == names
    assert {r.status for r in both.rows} == {Status.OK}
    gap = {name: both.row(name).value for name in names}
    assert gap["apgd-ce"] < gap["alpha-CROWN"] < gap["CROWN"] < gap["CROWN-IBP"] < gap["IBP"] < math.inf
    assert gap["CROWN"] < gap["forward"]
    assert len(both.ladder) == 2 * 5
    monkeypatch.setattr(margins_module._Problem, "optimised", lambda *_: (np.full((4, 10), -math.inf), "it did not"))
    row = compare(model, x, y, delta=0.08, norm="inf", methods=["alpha-CROWN"]).row("alpha-CROWN")
    assert row.status is Status.FAILED  # CROWN's numbers are not shown under its name
    assert "it did not" in row.note
    assert row.value == math.inf


def test_more_iterations_are_never_worse():
    model, x, y = trained()
    few, more = (
        margins(model, x[1400:1403], y[1400:1403], delta=0.1, norm="inf", method="alpha-CROWN", iterations=n).lower
        for n in (1, 6)
    )
    assert np.all(more >= few - 1e-12)
    assert np.any(more > few + 1e-3)


def test_one_logit_is_two_classes():
    w, x = np.array([[1.0, -2.0]]), np.array([[0.5, 0.4], [0.9, 0.1]])
    report = margins([w], x, [1, 0], delta=0.1, norm="inf")
    z = x @ w[0]
    np.testing.assert_allclose(report.lower, [[z[0] - 0.3, math.inf], [math.inf, -z[1] - 0.3]], rtol=1e-12)


def test_accuracies_gap_and_claim():
    w, x, y = np.eye(2), np.array([[0.9, 0.1], [0.55, 0.45], [0.2, 0.8]]), np.array([0, 0, 0])
    report = margins([w], x, y, delta=0.1, norm="inf")
    assert report.certified.tolist() == [True, False, False]
    assert report.certified_accuracy == pytest.approx(1 / 3)
    assert report.clean_accuracy == pytest.approx(2 / 3)
    exact = [math.log1p(math.exp(-(m - 0.2))) - math.log1p(math.exp(-m)) for m in (0.8, 0.1, -0.6)]
    np.testing.assert_allclose(report.per_sample_gap, exact, rtol=1e-12)
    gap, accuracy = report.loss_gap, report.certified_accuracy_bound
    assert gap.value == pytest.approx(np.mean(exact))
    assert (gap.sense, gap.rigor, accuracy.sense) == (Sense.UPPER, Rigor.NUMERICAL, Sense.LOWER)
    domain = losses.perturbation_domain(x, y, 0.1, math.inf, None)
    assert gap.claim == Claim(Quantity.LOSS_GAP, math.inf, None, domain, "all", as_network([w]).digest)


def test_report_prints_and_converts():
    report = margins([np.eye(2)], [[0.6, 0.4]], [0], delta=0.05, norm=2)
    assert "mean loss gap" in str(report)
    assert "auto_LiRPA" in str(report)
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert data["schema_version"] == 1
    assert data["lower"][0][0] == "inf"
    with pytest.raises(ValueError, match="read-only"):
        report.lower[0, 0] = 0.0


# -- what is refused ----------------------------------------------------------------------------------------------

GOOD = {"model": [np.eye(2)], "x": [[0.6, 0.4]], "y": [0], "delta": 0.1, "norm": 2}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"x": [[math.nan, 0.5]]}, "x"),
        ({"x": np.empty((0, 2)), "y": []}, "x"),
        ({"x": [0.5, 0.5]}, "x"),
        ({"x": [[0.5, 0.5, 0.5]]}, "2 numbers"),
        ({"x": [[0.5, 1.5]], "clip": (0.0, 1.0)}, "clip"),
        ({"clip": (1.0, 0.0)}, "clip"),
        ({"clip": 1.0}, "clip"),
        ({"y": [2]}, r"0\.\.1"),
        ({"y": [0.5]}, "y"),
        ({"y": [0, 1]}, "y"),
        ({"delta": -0.1}, "delta"),
        ({"delta": math.inf}, "delta"),
        ({"norm": 1}, "norm"),
        ({"method": "crown"}, "'CROWN' or 'IBP' or 'alpha-CROWN'"),
        ({"method": "beta-CROWN"}, "'CROWN' or 'IBP'"),
        ({"batch_size": 0}, "batch_size"),
        ({"iterations": 0}, "iterations"),
        ({"iterations": True}, "iterations"),
        ({"model": nn.Sequential(nn.Linear(2, 2), nn.SiLU())}, "silu"),
        ({"model": 3.0}, "model"),
        ({"model": [np.full((2, 2), 1e308), np.full((2, 2), 1e308)]}, "overflow"),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the overflow
def test_bad_input(change, word):
    with pytest.raises(InputError, match=word):
        margins(**{**GOOD, **change})


def test_a_bound_above_the_centre_is_an_error(monkeypatch):
    monkeypatch.setattr(margins_module, "_bounded", lambda *_: (np.array([[0.0, 0.2 + 1e-5]]), ""))
    with pytest.raises(CertboundError, match="above the margin at the centre"):
        margins(**GOOD)
    monkeypatch.setattr(margins_module, "_bounded", lambda *_: (np.array([[0.0, 0.2 + 1e-9]]), ""))
    np.testing.assert_array_equal(margins(**GOOD).lower, margins(**GOOD).clean)  # rounding: cut off
    monkeypatch.setattr(margins_module, "_bounded", lambda *_: (np.array([[0.0, math.nan]]), ""))
    with pytest.raises(CertboundError, match="NaN"):
        margins(**GOOD)


@pytest.mark.parametrize("name", ["auto_LiRPA", "appdirs"])
def test_missing_package(monkeypatch, name):
    for loaded in [m for m in sys.modules if m.partition(".")[0] == "auto_LiRPA"]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match=r"--no-deps auto-lirpa==0.3.*certbound\[crown\]") as caught:
        margins(**GOOD)
    assert caught.value.package == name
    assert not hasattr(np.lib, "arraysetops") or "numpy.lib.arraysetops" in sys.modules


# -- nothing of the caller's is changed ---------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_model_and_modes_and_random_state_are_untouched(method, capfd, recwarn):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state, own = torch.get_rng_state(), load_auto_lirpa().operators.BoundRelu._relu_mask_alpha
    x = np.random.default_rng(8).random((3, 4))
    report = margins(model, torch.tensor(x), torch.tensor([0, 1, 2]), delta=0.1, norm=2, method=method)
    assert report.status is Status.OK
    with torch.inference_mode():
        again = margins(model, x, [0, 1, 2], delta=0.1, norm=2, method=method)
    np.testing.assert_array_equal(again.lower, report.lower)
    assert again.status is Status.OK
    with torch.no_grad():
        again = margins(model, x, [0, 1, 2], delta=0.1, norm=2, method=method)
    np.testing.assert_array_equal(again.lower, report.lower)
    assert torch.equal(state, torch.get_rng_state())
    assert load_auto_lirpa().operators.BoundRelu._relu_mask_alpha is own
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.is_grad_enabled()
    assert capfd.readouterr() == ("", "")
    assert len(recwarn) == 0


@pytest.mark.parametrize("method", ["CROWN", "alpha-CROWN"])
def test_threads(method):
    rng = np.random.default_rng(9)
    net = network(rng, [4, 6, 3])
    x, y = rng.random((3, 4)), np.array([0, 1, 2])
    expected = margins(net, x, y, delta=0.1, norm=2, method=method).lower
    with ThreadPoolExecutor(4) as pool:
        for lower in pool.map(lambda _: margins(net, x, y, delta=0.1, norm=2, method=method).lower, range(8)):
            np.testing.assert_array_equal(lower, expected)


def test_the_first_import_leaves_no_trace():
    # In a fresh process, without torchvision and with a home that cannot be written to: auto_LiRPA would print there.
    script = """
        import sys
        sys.modules["torchvision"] = None
        import importlib, logging, random, warnings
        import numpy as np, torch
        import sympy  # torch imports it sooner or later, and it has a warnings filter of its own
        from torch.onnx._internal.torchscript_exporter import _globals

        def state():
            root = logging.getLogger()
            return (list(root.handlers), root.level, root.manager.disable, list(warnings.filters),
                    warnings.showwarning, torch.get_default_dtype(), torch.is_grad_enabled(),
                    torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist(),
                    _globals.GLOBALS.export_onnx_opset_version)

        helper = importlib.import_module("torch.onnx.symbolic_helper")
        had = hasattr(helper, "_set_opset_version"), "numpy.lib.arraysetops" in sys.modules
        before = state()
        from certbound.crown.margins import margins
        report = margins([np.eye(2), np.eye(2)], [[0.9, 0.1]], [0], delta=0.1, norm="inf")
        assert abs(report.lower[0, 1] - 0.6) < 1e-12, report.lower
        assert state() == before
        assert had == (hasattr(helper, "_set_opset_version"), "numpy.lib.arraysetops" in sys.modules)
        assert sys.modules["torchvision"] is None
    """
    done = subprocess.run(
        [sys.executable, "-W", "default", "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[1],
        env={**os.environ, "HOME": "/proc/nowhere", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert done.stderr == ""


def test_importing_auto_lirpa_leaves_the_recursion_limit():
    """It asks for a million, with which a hostile certificate would crash the parser instead of being refused."""
    code = (
        "import sys; before = sys.getrecursionlimit(); from certbound.crown.compat import load_auto_lirpa; "
        "load_auto_lirpa(); assert sys.getrecursionlimit() == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
