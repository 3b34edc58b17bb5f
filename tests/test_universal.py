"""One perturbation for all samples: in the ball exactly, below what single samples' attacks may reach, and honest."""

from __future__ import annotations

import json
import math
import random
from fractions import Fraction

import numpy as np
import pytest
import torch
from digits import trained
from torch import nn

from certbound import losses
from certbound.attacks import universal as module
from certbound.attacks.apgd import attack
from certbound.attacks.universal import universal_perturbation
from certbound.bound import Claim
from certbound.crown.margins import margins
from certbound.errors import CertboundError, InputError
from certbound.network import Affine, Network, as_network
from certbound.types import Quantity, Rigor, Sense, dual_norm

NORMS = [2.0, math.inf]
both_norms = pytest.mark.parametrize("norm", NORMS)
both_optimizers = pytest.mark.parametrize("optimizer", module.OPTIMIZERS)


def run(model, x, y, delta=0.1, norm=math.inf, **more):
    return universal_perturbation(model, x, y, delta=delta, norm=norm, **{"device": "cpu", **more})


def size(delta, norm):
    return delta if math.isinf(norm) else 4 * delta


@both_norms
@both_optimizers
def test_one_label_and_a_linear_model_reach_the_closed_form(norm, optimizer):
    # all samples of label 0 have one worst perturbation, which lowers their margin by delta ||c||_{p*}
    rng = np.random.default_rng(0)
    w = rng.standard_normal((2, 5))
    x = 0.4 + 0.2 * rng.random((30, 5))
    report = run([w], x, [0] * 30, 0.1, norm, optimizer=optimizer, batch_size=8)
    clean = losses.margins_of(x @ w.T, np.zeros(30, dtype=int))
    drop = 0.1 * np.linalg.norm(w[0] - w[1], dual_norm(norm))
    exact = losses.loss_of_margins(clean - drop) - losses.loss_of_margins(clean)
    # Adam's steps are of equal length in all entries: not the way of steepest ascent in the 2-norm
    np.testing.assert_allclose(report.per_sample_gap, exact, rtol=0.2 if (optimizer, norm) == ("adam", 2.0) else 1e-4)
    assert np.all(report.per_sample_gap <= exact * (1 + 1e-12))


@both_norms
@both_optimizers
def test_numbers_are_those_of_the_float64_model(norm, optimizer):
    model, x, y = trained()
    x, y, delta = x[:300], y[:300], size(0.1, norm)
    report = run(model, x, y, delta, norm, optimizer=optimizer, steps=60)
    net = as_network(model)
    points = np.clip(x + report.a, 0, 1)
    np.testing.assert_allclose(
        report.perturbed_loss, losses.cross_entropy(net.forward(points), y), rtol=1e-9, atol=1e-12
    )
    np.testing.assert_allclose(report.clean_loss, losses.cross_entropy(net.forward(x), y), rtol=1e-12, atol=1e-15)
    right = [np.all(losses.margins_of(net.forward(p), y) > 0, axis=1) for p in (x, points)]
    np.testing.assert_array_equal(report.clean_correct, right[0])
    np.testing.assert_array_equal(report.perturbed_correct, right[1])
    assert report.success_rate == np.sum(right[0] & ~right[1]) / right[0].sum()
    assert report.robust_accuracy == np.mean(right[0] & right[1])
    assert report.mean_gap == np.mean(report.per_sample_gap)
    assert report.loss_gap.value == report.mean_gap > 0.3
    assert report.success_rate > 0.08
    assert report.fitted
    assert report.a.shape == (64,)
    assert report.a.dtype == np.float64


@both_norms
@pytest.mark.parametrize("delta", [1e-9, 8 / 255, 0.5, 3.0])
def test_the_perturbation_is_in_the_ball_in_exact_arithmetic(norm, delta):
    rng = np.random.default_rng(1)
    w = rng.standard_normal((3, 7))
    x = rng.random((5, 7))
    x[0, :2] = 0.0, 1.0
    report = run([w], x, [0, 1, 2, 0, 1], delta, norm, steps=40)
    a = [Fraction(float(v)) for v in report.a]
    if math.isinf(norm):
        assert max(abs(v) for v in a) <= Fraction(delta)
    else:
        assert sum(v * v for v in a) <= Fraction(delta) ** 2
    assert 0 < report.largest_perturbation <= delta
    assert report.loss_gap.value > 0


@both_norms
def test_it_is_below_what_is_chosen_per_sample_and_below_the_certified(norm):
    model, x, y = trained()
    x, y, delta = x[1400:1440], y[1400:1440], size(0.05, norm)
    report = run(model, x, y, delta, norm)
    each = attack(model, x, y, delta=delta, norm=norm, device="cpu", steps=50)
    certified = margins(model, x, y, delta=delta, norm=norm, clip=(0.0, 1.0))
    assert 0 < report.loss_gap.value <= each.loss_gap.value <= certified.loss_gap.value
    assert report.robust_accuracy >= each.robust_accuracy >= certified.certified_accuracy
    assert report.loss_gap.claim == each.loss_gap.claim == certified.loss_gap.claim
    assert np.all(report.per_sample_gap <= certified.per_sample_gap + 1e-12)


def test_pixels_that_are_at_a_limit_in_all_samples_move():
    # guard: the gradient of clamp is 0 at its limits, and a starts at 0 there
    w = np.array([[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0]])
    x = np.array([[1.0, 0.0, 0.5]] * 4)
    for norm in NORMS:
        for optimizer in module.OPTIMIZERS:
            report = run([w], x, [0] * 4, 0.2, norm, optimizer=optimizer)
            length = 0.2 if math.isinf(norm) else 0.2 / math.sqrt(2)
            np.testing.assert_allclose(report.a, [-length, length, 0.0], rtol=0.03, atol=0.01)


@both_norms
def test_held_out_samples(norm):
    model, x, y = trained()
    delta = size(0.1, norm)
    held = x[1400:1600], y[1400:1600]
    report = run(model, x[:400], y[:400], delta, norm, held_out=held, steps=60)
    other = report.held_out
    assert not other.fitted
    assert other.held_out is None
    np.testing.assert_array_equal(other.a, report.a)
    direct = losses.cross_entropy(as_network(model).forward(np.clip(held[0] + report.a, 0, 1)), held[1])
    np.testing.assert_allclose(other.perturbed_loss, direct, rtol=1e-9, atol=1e-12)
    domain = losses.perturbation_domain(*held, delta, norm, (0.0, 1.0))
    assert other.loss_gap.claim == Claim(Quantity.LOSS_GAP, norm, None, domain, "all", report.subject)
    assert 0.2 < other.loss_gap.value
    assert other.loss_gap.value <= attack(model, *held, delta=delta, norm=norm, steps=50, device="cpu").loss_gap.value
    assert "held-out success rate" in str(report)
    assert "not those it was made for" in str(other)
    assert report.to_dict()["held_out"]["fitted"] is False


def test_what_does_good_is_no_bound_below_zero():
    # made for label 0, used on label 1: the mean gap is negative, and the bound 0
    report = run([np.eye(2)], [[0.5, 0.5]] * 3, [0] * 3, 0.2)
    other = report.transfer([np.eye(2)], [[0.5, 0.5]], [1], device="cpu")
    np.testing.assert_allclose(report.a, [-0.2, 0.2])
    gap = math.log1p(math.exp(-0.4)) - math.log(2)
    assert other.mean_gap == pytest.approx(gap)
    assert other.per_sample_gap[0] == pytest.approx(gap)
    assert other.loss_gap.value == 0.0
    assert other.loss_gap.sense is Sense.LOWER
    assert other.loss_gap.rigor is Rigor.NUMERICAL
    assert other.robust_accuracy_bound.sense is Sense.UPPER


def test_on_its_own_samples_it_is_never_worse_than_none():
    # two samples that want opposite perturbations
    report = run([np.eye(2)], [[0.5, 0.5], [0.5, 0.5]], [0, 1], 0.2, steps=30, batch_size=1)
    assert report.mean_gap >= 0.0
    assert report.mean_gap == pytest.approx(np.mean(report.per_sample_gap))


def test_transfer_to_another_model():
    model, x, y = trained()
    report = run(model, x[:400], y[:400], 0.1, steps=60)
    torch.manual_seed(5)
    other = nn.Sequential(nn.Linear(64, 16), nn.ELU(), nn.Linear(16, 10))  # not in the IR
    moved = report.transfer(other, x[1400:1450], y[1400:1450], device="cpu")
    assert moved.subject == ""
    assert not moved.fitted
    assert moved.loss_gap.value >= 0.0
    with pytest.raises(InputError, match="shape of the perturbation"):
        report.transfer(model, np.full((2, 8, 8), 0.5), [0, 1])


def test_images_and_one_logit():
    rng = np.random.default_rng(2)
    net = Network((Affine(rng.standard_normal((1, 12)), np.array([0.1])),))
    x, y = rng.random((6, 3, 2, 2)), np.array([1] * 6)
    report = run(net, x, y, 0.1, 2.0, held_out=(x[:2], y[:2]))
    assert report.a.shape == (3, 2, 2)
    z = (np.clip(x + report.a, 0, 1).reshape(6, 12) @ net.layers[0].weight.T)[:, 0] + 0.1
    np.testing.assert_allclose(report.perturbed_loss, np.log1p(np.exp(-z)), rtol=1e-9)
    assert report.loss_gap.value > 0
    assert report.held_out.a.shape == (3, 2, 2)


def test_delta_zero_and_no_sample_right():
    report = run([np.eye(2)], [[0.4, 0.6]], [0], 0.0)
    np.testing.assert_array_equal(report.a, [0.0, 0.0])
    assert report.loss_gap.value == report.success_rate == report.robust_accuracy == 0.0


def test_seed_and_global_state(capfd, recwarn):
    model, x, y = trained()

    def states():
        return torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state()[1].tolist()), (  # noqa: NPY002
            torch.is_grad_enabled(), torch.get_default_dtype(),
        )

    before = states()
    a = run(model, x[:200], y[:200], batch_size=20, steps=15, seed=1)
    assert states() == before
    with torch.no_grad():
        b = run(model, x[:200], y[:200], batch_size=20, steps=15, seed=1)
    with torch.inference_mode():
        c = run(model, x[:200], y[:200], batch_size=20, steps=15, seed=1)
    np.testing.assert_array_equal(a.a, b.a)
    np.testing.assert_array_equal(a.a, c.a)
    assert np.any(a.a != run(model, x[:200], y[:200], batch_size=20, steps=15, seed=2).a)
    assert all(p.grad is None for p in model.parameters())
    assert capfd.readouterr() == ("", "")
    assert len(recwarn) == 0


def test_report_prints_and_converts():
    report = run([np.eye(2)], [[0.6, 0.4]], [0], 0.2)
    assert "mean loss gap" in str(report)
    assert "success rate" in str(report)
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert data["loss_gap"]["sense"] == "lower"
    assert data["held_out"] is None
    with pytest.raises(ValueError, match="read-only"):
        report.a[0] = 0.0


GOOD = {"model": [np.eye(2)], "x": [[0.6, 0.4]], "y": [0], "delta": 0.1, "norm": 2}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"x": [[0.5, 1.5]]}, r"first layer"),
        ({"x": [[math.nan, 0.5]]}, "x"),
        ({"x": [0.5, 0.5]}, "x"),
        ({"x": [[0.5]]}, "1 numbers|2 numbers|x"),
        ({"y": [2]}, r"0\.\.1"),
        ({"y": [0, 1]}, "y"),
        ({"delta": -0.1}, "delta"),
        ({"norm": 1}, "norm"),
        ({"steps": 0}, "steps"),
        ({"seed": -1}, "seed"),
        ({"batch_size": 0}, "batch_size"),
        ({"step_size": -1.0}, "step_size"),
        ({"step_size": math.nan}, "step_size"),
        ({"optimizer": "lbfgs"}, "'sgd' or 'adam'"),
        ({"held_out": [[0.5, 0.5]]}, "held_out"),
        ({"held_out": ([[0.5]], [0])}, "held_out.*shape of the perturbation"),
        ({"held_out": ([[0.5, 0.5]], [7])}, r"0\.\.1"),
        ({"held_out": ([[0.5, 1.5]], [0])}, r"\[0, 1\]"),
        ({"device": "nowhere"}, "device"),
        ({"model": 3.0}, "model"),
    ],
)
def test_bad_input(change, word):
    with pytest.raises(InputError, match=word):
        universal_perturbation(**{**GOOD, "device": "cpu", **change})


def test_no_gradient():
    class Detached(nn.Module):
        def forward(self, x):
            return x.detach()

    with pytest.raises(InputError, match="gradient"):
        run(Detached(), [[0.6, 0.4]], [0])


def test_a_perturbation_outside_the_ball_is_never_reported(monkeypatch):
    monkeypatch.setattr(module, "into_ball", lambda x, found, *_, **__: found + 1e-3)
    with pytest.raises(CertboundError, match="left its ball"):
        run([np.eye(2)], [[0.6, 0.4]], [0], 0.1)
