"""Auto-PGD: the gaps found are true lower bounds, and none of the library's traps gets through."""

from __future__ import annotations

import copy
import itertools
import json
import math
import random
import sys
import types

import numpy as np
import pytest
import torch
from digits import trained
from torch import nn

from certbound import losses
from certbound.attacks import apgd
from certbound.attacks.apgd import attack
from certbound.bound import Claim
from certbound.comparison import compare
from certbound.errors import CertboundError, InputError, MissingDependencyError
from certbound.io.to_torch import to_torch, two_class
from certbound.methods import METHODS, Attacked
from certbound.network import Affine, Flatten, Network, Normalise, ReLU, as_network
from certbound.types import Quantity, Rigor, Sense, Status, dual_norm

NORMS = [2.0, math.inf]


def network(rng, widths, *, final_relu=False):
    layers = []
    for i, (n, m) in enumerate(itertools.pairwise(widths)):
        layers += [ReLU()] if i else []
        layers.append(Affine(rng.standard_normal((m, n)), 0.3 * rng.standard_normal(m)))
    return Network((*layers, ReLU()) if final_relu else tuple(layers))


def run(model, x, y, delta=0.1, norm=math.inf, **more):
    return attack(model, x, y, delta=delta, norm=norm, **{"device": "cpu", "steps": 20, **more})


class Plain(nn.Module):
    """A module outside the IR (ELU), with a custom forward."""

    def __init__(self, classes=3):
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, classes)

    def forward(self, x):
        return self.b(torch.nn.functional.elu(self.a(x.flatten(1))))


# -- to_torch -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("final_relu", [False, True])
def test_to_torch_computes_the_network(final_relu):
    rng = np.random.default_rng(0)
    net = network(rng, [8, 7, 5, 3], final_relu=final_relu)
    x = rng.standard_normal((6, 2, 4))
    before = torch.get_rng_state()
    module = to_torch(net)
    assert torch.equal(before, torch.get_rng_state())
    assert not module.training
    assert all(not p.requires_grad for p in module.parameters())
    np.testing.assert_allclose(module(torch.from_numpy(x)).numpy(), net.forward(x), rtol=1e-12, atol=1e-12)
    assert to_torch(net, dtype=torch.float32)(torch.from_numpy(x).float()).dtype == torch.float32
    with pytest.raises(InputError, match="dtype"):
        to_torch(net, dtype="float16")


def test_to_torch_folds_normalisation():
    rng = np.random.default_rng(1)
    norm = Normalise(np.array([0.5, 0.2]), np.array([0.25, 2.0]))
    net = Network((norm, Flatten(), Affine(rng.standard_normal((3, 8)))), input_shape=(2, 2, 2))
    x = rng.random((5, 2, 2, 2))
    by_hand = (x - norm.mean[:, None, None]) / norm.std[:, None, None]
    expected = by_hand.reshape(5, -1) @ net.layers[2].weight.T
    np.testing.assert_allclose(to_torch(net)(torch.from_numpy(x)).numpy(), expected, rtol=1e-12, atol=1e-12)


def test_two_class_is_zero_and_z():
    rng = np.random.default_rng(2)
    net = network(rng, [4, 5, 1])
    x = rng.random((6, 4))
    out = two_class(to_torch(net))(torch.from_numpy(x)).numpy()
    np.testing.assert_array_equal(out, losses.class_logits(to_torch(net)(torch.from_numpy(x)).numpy()))


# -- what is found ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", NORMS)
def test_two_class_linear_model_reaches_the_closed_form(norm):
    # the margin of a linear model falls by delta ||c||_{p*}, attained inside [0, 1] for x near 1/2
    rng = np.random.default_rng(3)
    w = rng.standard_normal((2, 5))
    x, y, delta = 0.4 + 0.2 * rng.random((8, 5)), np.array([0, 1] * 4), 0.05
    report = run([w], x, y, delta, norm, steps=50)
    margins = losses.margins_of(x @ w.T, y)
    drop = delta * np.linalg.norm(w[0] - w[1], dual_norm(norm))
    exact = losses.loss_of_margins(margins - drop) - losses.loss_of_margins(margins)
    np.testing.assert_allclose(report.per_sample_gap, exact, rtol=2e-5)
    assert np.all(report.per_sample_gap <= exact * (1 + 1e-12))
    assert report.loss_gap.value == pytest.approx(exact.mean(), rel=2e-5)


def test_samples_that_are_misclassified_already_are_attacked_too():
    # guard: best_loss=True; without it the library leaves such samples where they are
    w = np.array([[1.0, -1.0], [-1.0, 1.0]])
    report = run([w], [[0.3, 0.7]], [0], 0.1)
    assert report.clean_accuracy == 0.0
    margin = -0.8
    exact = math.log1p(math.exp(-(margin - 0.4))) - math.log1p(math.exp(-margin))
    assert report.loss_gap.value == pytest.approx(exact, rel=1e-5)


def test_one_logit_is_attacked_with_the_logistic_loss():
    w, x, y, delta = np.array([[1.0, -2.0]]), np.array([[0.5, 0.4], [0.6, 0.5]]), np.array([1, 0]), 0.1
    report = run([w], x, y, delta)
    z = (2 * y - 1) * (x @ w[0])
    np.testing.assert_allclose(report.clean_loss, np.log1p(np.exp(-z)), rtol=1e-12)
    np.testing.assert_allclose(report.adversarial_loss, np.log1p(np.exp(-(z - 0.3))), rtol=1e-6)
    with pytest.raises(InputError, match="y"):
        run([w], x, [1, 2], delta)


@pytest.mark.parametrize("norm", NORMS)
def test_gap_is_below_a_grid_maximum_and_points_are_in_the_ball(norm):
    rng = np.random.default_rng(4)
    net = network(rng, [2, 6, 6, 3])
    x, y, delta = rng.random((5, 2)), np.array([0, 1, 2, 0, 1]), 0.2
    report = run(net, x, y, delta, norm, steps=40, restarts=3)
    side = np.linspace(-delta, delta, 201)
    grid = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
    grid = grid[np.linalg.norm(grid, norm, axis=1) <= delta * (1 + 1e-12)]
    for i in range(5):
        points = np.clip(x[i] + grid, 0, 1)
        best = losses.cross_entropy(net.forward(points), np.full(len(points), y[i])).max()
        spacing = side[1] - side[0]
        slope = np.prod([np.linalg.norm(w, 2) for w in net.chain.weights]) * math.sqrt(2)
        assert report.adversarial_loss[i] <= best + slope * spacing
        assert report.per_sample_gap[i] >= 0.8 * (best - report.clean_loss[i])  # it is no empty attack either
    assert np.all(np.linalg.norm(report.x_adv - x, norm, axis=1) <= delta)
    assert report.x_adv.min() >= 0
    assert report.x_adv.max() <= 1
    assert report.tolerance == 0.0


@pytest.mark.parametrize("norm", NORMS)
def test_losses_are_those_of_the_float64_model_at_the_points(norm):
    rng = np.random.default_rng(5)
    net = network(rng, [6, 8, 3])
    x, y = rng.random((7, 6)), rng.integers(0, 3, 7)
    report = run(net, x, y, 0.1, norm)
    logits = net.forward(report.x_adv)
    np.testing.assert_allclose(report.adversarial_loss, losses.cross_entropy(logits, y), rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(report.clean_loss, losses.cross_entropy(net.forward(x), y), rtol=1e-13, atol=1e-15)
    both = np.all(losses.margins_of(net.forward(x), y) > 0, axis=1)
    both &= np.all(losses.margins_of(logits, y) > 0, axis=1)
    assert report.robust_accuracy == both.mean()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("delta", [1e-9, 1e-3, 8 / 255, 0.5, 3.0])
def test_perturbations_are_at_most_delta_in_exact_arithmetic(norm, delta):
    # guard: float32 points are outside the ball by 1e-8; the projection puts them inside, checked with fractions
    from fractions import Fraction

    rng = np.random.default_rng(6)
    x = rng.random((4, 9))
    x[0, :3] = 0.0, 1.0, 0.5
    report = run(network(rng, [9, 5, 3]), x, [0, 1, 2, 0], delta, norm, steps=10)
    for before, after in zip(x, report.x_adv, strict=True):
        a = [Fraction(float(v)) - Fraction(float(u)) for u, v in zip(before, after, strict=True)]
        if math.isinf(norm):
            assert max(abs(v) for v in a) <= Fraction(delta)
        else:
            assert sum(v * v for v in a) <= Fraction(delta) ** 2
    assert report.largest_perturbation <= delta
    if delta > 1e-4:
        assert report.largest_perturbation > 0


def as_library(net, delta, norm, *, kind="APGDAttack", seed=11, restarts=2, steps=20, **more):
    from pyautoattack import autopgd_base

    return getattr(autopgd_base, kind)(
        to_torch(net, dtype="float32"), n_iter=steps, norm="Linf" if math.isinf(norm) else "L2", n_restarts=restarts,
        eps=delta, device="cpu", seed=seed, logger=apgd._Silent(), **more,
    )


def record(monkeypatch):
    """The sets of points that each attack went to, by name, as ``attack`` sees them."""
    seen, original = {}, apgd._Settings.points

    def points(self, name, *arguments):
        seen[name] = original(self, name, *arguments)
        return seen[name]

    monkeypatch.setattr(apgd._Settings, "points", points)
    return seen


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("method", ["apgd-ce", "apgd-dlr"])
@pytest.mark.parametrize("restarts", [1, 2])
def test_the_library_called_directly_finds_the_same_points(norm, method, restarts, monkeypatch):
    rng = np.random.default_rng(7)
    net = network(rng, [6, 8, 4])
    x, y = rng.random((9, 6)), rng.integers(0, 4, 9)
    seen = record(monkeypatch)
    report = run(net, x, y, 0.1, norm, seed=11, restarts=restarts, method=method)
    with torch.random.fork_rng():
        torch.manual_seed(11)
        direct = as_library(net, 0.1, norm, restarts=restarts, loss=method[5:]).perturb(
            torch.tensor(x).float(), torch.tensor(y), best_loss=True
        ).double().numpy()
    np.testing.assert_array_equal(seen[method][0], direct)
    assert len(seen[method]) == 1 + 2 * restarts
    loss = losses.cross_entropy(net.forward(direct), y)
    assert np.all(report.adversarial_loss >= loss - 1e-5)
    if method == "apgd-ce":  # its own loss is the one reported
        np.testing.assert_allclose(report.adversarial_loss, np.maximum(loss, report.clean_loss), rtol=1e-5)
        assert (report.per_sample_gap > 0).sum() >= 8


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("restarts", [1, 2])
def test_the_targeted_library_called_directly_fools_the_same_samples(norm, restarts, monkeypatch):
    # one by one: the library leaves out samples that an earlier target fooled, which shifts the others' random starts
    rng = np.random.default_rng(21)
    net = network(rng, [6, 12, 5])
    x = rng.random((16, 6))
    y = np.argmax(net.forward(x), axis=1)
    fooled, seen = 0, record(monkeypatch)
    for i in range(16):
        report = run(net, x[i : i + 1], y[i : i + 1], 0.12, norm, seed=3, restarts=restarts, method="apgd-t")
        with torch.random.fork_rng():
            direct = as_library(
                net, 0.12, norm, kind="APGDAttack_targeted", n_target_classes=4, seed=3, restarts=restarts
            ).perturb(torch.tensor(x[i : i + 1]).float(), torch.tensor(y[i : i + 1])).detach().double().numpy()
        assert len(seen["apgd-t"]) == 2 * 4 * restarts
        wrong = int(np.argmax(net.forward(direct))) != y[i]
        assert report.robust_accuracy == (not wrong)
        fooled += wrong
        if wrong:
            assert any(np.array_equal(points, direct) for points in seen["apgd-t"])
    assert 4 <= fooled <= 14


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("method", sorted(apgd.METHODS))
def test_every_attack_reports_what_its_points_do(norm, method):
    rng = np.random.default_rng(22)
    net = network(rng, [6, 12, 5])
    x, y = rng.random((20, 6)), rng.integers(0, 5, 20)
    y[:12] = np.argmax(net.forward(x[:12]), axis=1)  # the others are misclassified, most of them
    report = run(net, x, y, 0.08, norm, method=method, steps=15)
    for points in (report.x_adv, report.x_wrong):
        assert np.all(np.linalg.norm(points - x, norm, axis=1) <= 0.08)
        assert 0 <= points.min() <= points.max() <= 1
    loss = losses.cross_entropy(net.forward(report.x_adv), y)
    np.testing.assert_allclose(report.adversarial_loss, loss, rtol=1e-13, atol=1e-15)
    assert np.all(report.per_sample_gap >= 0)
    right = [np.all(losses.margins_of(net.forward(p), y) > 0, axis=1) for p in (x, report.x_adv, report.x_wrong)]
    np.testing.assert_array_equal(report.adversarial_correct, right[2])
    assert not np.any(right[2] & ~right[1])  # a misclassified x_adv is counted
    assert report.robust_accuracy == np.mean(right[0] & right[1] & right[2])
    np.testing.assert_array_equal(report.x_wrong[right[2]], report.x_adv[right[2]])
    assert report.robust_accuracy < report.clean_accuracy
    improved = report.per_sample_gap > 0
    assert improved[12:].mean() > 0.6  # samples that are misclassified already are attacked by all of them
    assert improved.mean() > 0.6
    assert report.ran == (("apgd-ce", "apgd-dlr", "apgd-t") if method == "worst" else (method,))
    assert report.loss_gap.method == method
    assert report.loss_gap.source == apgd.METHODS[method]
    assert report.certificate.verify(net)
    assert report.certificate.value == pytest.approx(report.loss_gap.value, rel=1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_worst_is_the_worst_of_each_sample(norm):
    model, x, y = trained()
    x, y = x[1400:1440], y[1400:1440]
    alone = {m: run(model, x, y, 0.1 if math.isinf(norm) else 0.5, norm, method=m) for m in apgd.METHODS}
    worst = alone.pop("worst")
    assert worst.ran == tuple(alone)
    np.testing.assert_array_equal(worst.adversarial_loss, np.max([r.adversarial_loss for r in alone.values()], axis=0))
    np.testing.assert_array_equal(
        worst.adversarial_correct, np.all([r.adversarial_correct for r in alone.values()], axis=0)
    )
    assert "worst of apgd-ce, apgd-dlr, apgd-t" in str(worst)
    assert worst.to_dict()["ran"] == ["apgd-ce", "apgd-dlr", "apgd-t"]
    assert worst.loss_gap.value > max(r.loss_gap.value for r in alone.values())


def test_worst_leaves_out_what_does_not_apply():
    rng = np.random.default_rng(23)
    for classes, ran in ((1, 1), (2, 1), (3, 2), (4, 3)):
        net = network(rng, [4, 6, classes])
        report = run(net, rng.random((3, 4)), [0, 1, 0], method="worst", steps=3)
        assert report.ran == ("apgd-ce", "apgd-dlr", "apgd-t")[:ran]
    assert run(net, rng.random((3, 4)), [0, 1, 0], 0.0, method="worst").ran == ()


def test_a_misclassified_point_counts_although_another_has_the_higher_loss(monkeypatch):
    # three classes, label 0: A = (0, 0.1, -9) is misclassified with loss 0.744, B = (0, -0.01, -0.01) is not, 1.092
    table = {0.0: (5.0, 0.0, 0.0), 1.0: (0.0, 0.1, -9.0), 2.0: (0.0, -0.01, -0.01)}
    net = Network((Affine(np.eye(3, 2)),))

    def logits(torch_, module, x, *_):
        return np.array([table[float(np.rint(v * 10))] for v in x[:, 0]])

    monkeypatch.setattr(apgd, "logits_of", logits)
    for order in ([0.1, 0.2], [0.2, 0.1]):
        monkeypatch.setattr(apgd._Settings, "points", lambda *_, o=order: [np.array([[v, 0.5]]) for v in o])
        report = run(net, [[0.0, 0.5]], [0], 0.3)
        np.testing.assert_allclose(report.x_adv, [[0.2, 0.5]])
        np.testing.assert_allclose(report.x_wrong, [[0.1, 0.5]])
        assert report.adversarial_loss[0] == pytest.approx(math.log(1 + 2 * math.exp(-0.01)), rel=1e-12)
        assert report.clean_accuracy == 1.0
        assert report.robust_accuracy == report.robust_accuracy_bound.value == 0.0
        assert report.adversarial_correct.tolist() == [False]


def test_points_that_are_no_numbers_are_not_found(monkeypatch):
    bad = np.array([[math.nan, 0.4], [math.inf, 0.4]])
    monkeypatch.setattr(apgd._Settings, "points", lambda *_: [bad])
    for norm in NORMS:
        report = run([np.eye(2)], [[0.6, 0.4], [0.7, 0.3]], [0, 0], 0.1, norm)
        assert np.all(np.isfinite(report.x_adv))
        assert np.all(report.adversarial_loss >= report.clean_loss)


@pytest.mark.parametrize("method", ["apgd-ce", "apgd-dlr", "apgd-t"])
def test_restarts_are_run_and_help(method, monkeypatch):
    from pyautoattack.autopgd_base import APGDAttack

    runs, original = [], APGDAttack.attack_single_run

    def counted(self, *arguments, **more):
        runs.append(original(self, *arguments, **more))
        return runs[-1]

    monkeypatch.setattr(APGDAttack, "attack_single_run", counted)
    rng = np.random.default_rng(24)
    net = network(rng, [6, 30, 30, 5])
    x, y = rng.random((20, 6)), rng.integers(0, 5, 20)
    gaps = []
    for restarts in (1, 4):
        runs.clear()
        gaps.append(run(net, x, y, 0.3, method=method, steps=4, restarts=restarts).per_sample_gap)
        assert len(runs) == restarts * (4 if method == "apgd-t" else 1)
    assert np.all(gaps[1] >= gaps[0] - 1e-12) if method != "apgd-t" else gaps[1].mean() > gaps[0].mean()
    assert gaps[1].mean() > gaps[0].mean()


def test_no_more_than_nine_targets(monkeypatch):
    seen = record(monkeypatch)
    net = network(np.random.default_rng(25), [4, 8, 12])
    run(net, np.full((2, 4), 0.5), [0, 1], method="apgd-t", steps=2)
    assert len(seen["apgd-t"]) == 2 * 9


def test_no_sample_is_its_own_target():
    # label 3 has the second highest logit: the library would take it for the first target, with a gradient of 0
    seen = []

    class Spy(torch.nn.Module):
        def forward(self, x):
            return x

    class Attacker:
        def init_hyperparam(self, x):
            pass

        def attack_single_run(self, x, y):
            seen.append(self.y_target.tolist())

    settings = apgd._Settings(torch, Spy(), 0.1, math.inf, 1, 1, 0, torch.device("cpu"))
    settings._targeted(Attacker(), torch.tensor([[0.9, 0.1, 0.3, 0.5], [0.9, 0.1, 0.3, 0.5]]), torch.tensor([3, 0]))
    assert seen == [[0, 3], [2, 2], [1, 1]]


# -- beside another library ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.filterwarnings("ignore")  # foolbox's own
def test_foolbox_is_not_stronger(norm):
    # An independent PGD of as many steps and random starts, its points measured by us in float64. APGD adapts its
    # steps: ours is at least as strong but for noise, here 1 % of the gap and one sample in fifty.
    import foolbox

    model, x, y = trained()
    x, y = x[1400:1500], y[1400:1500]
    delta = 0.08 if math.isinf(norm) else 0.4
    kind = foolbox.attacks.LinfPGD if math.isinf(norm) else foolbox.attacks.L2PGD
    ours = run(model, x, y, delta, norm, steps=100, restarts=3)
    theirs = np.zeros(100)
    wrong = np.zeros(100, dtype=bool)
    net = as_network(model)
    with torch.random.fork_rng():
        for seed in range(3):
            torch.manual_seed(seed)
            victim = foolbox.PyTorchModel(copy.deepcopy(model), bounds=(0, 1), device="cpu")
            found = kind(steps=100)(victim, torch.tensor(x).float(), torch.tensor(y), epsilons=delta)[1]
            found = found.double().numpy()
            assert np.all(np.linalg.norm(found - x, norm, axis=1) <= delta * (1 + 1e-5))
            logits = net.forward(found)
            theirs = np.maximum(theirs, losses.cross_entropy(logits, y) - ours.clean_loss)
            wrong |= np.argmax(logits, axis=1) != y
    assert ours.loss_gap.value >= 0.99 * theirs.mean()
    assert ours.robust_accuracy <= np.mean(~wrong) + 0.02
    assert theirs.mean() >= 0.5 * ours.loss_gap.value  # it is no empty comparison


# -- in compare ---------------------------------------------------------------------------------------------------


def test_compare_runs_the_attacks_that_apply():
    rng = np.random.default_rng(26)
    names = ["apgd-ce", "apgd-dlr", "apgd-t"]
    for classes in (2, 3, 4):
        net = network(rng, [4, 8, classes])
        x, y = rng.random((10, 4)), rng.integers(0, classes, 10)
        both = compare(net, x, y, delta=0.1, norm=2, methods=[*names, "CROWN"])
        for name, least in zip(names, (2, 3, 4), strict=True):
            row = both.row(name)
            if classes < least:
                assert row.status is Status.UNSUPPORTED
                assert f"{classes} classes" in row.note
                assert row.value == 0.0
                assert both.row(name, "robust accuracy").value == 1.0
            else:
                assert row.status is Status.OK
                assert row.value > 0
        gaps = [a.loss_gap for a in both.attacked.values()]
        assert len(gaps) == classes - 1
        assert both.empirical_gap == np.mean(np.max(gaps, axis=0))
        assert both.row("CROWN").ratio == pytest.approx(both.row("CROWN").value / both.empirical_gap)


def test_the_empirical_gap_takes_the_worst_attack_of_each_sample(monkeypatch):
    import dataclasses

    net, x, y = network(np.random.default_rng(27), [3, 4, 3]), np.full((2, 3), 0.5), [0, 1]
    far = np.full((2, 3), 9.0)
    for name, gap in (("apgd-ce", [0.02, 0.0]), ("apgd-dlr", [0.0, 0.06])):
        found = Attacked(far, np.array(gap))
        changed = dataclasses.replace(METHODS[name], attack=lambda *_, found=found: found)
        monkeypatch.setitem(METHODS, name, changed)
    both = compare(net, x, y, delta=0.1, norm=2, methods=["apgd-ce", "apgd-dlr"])
    assert both.empirical_gap == pytest.approx(0.04)
    assert compare(net, x, y, delta=0.1, norm=2, methods=["cover"]).empirical_gap is None


def test_compare_counts_every_misclassified_sample(monkeypatch):
    net = Network.from_weights([np.eye(3)])
    x = np.array([[0.9, 0.1, 0.1]])

    def attack_(*_, **__):
        return types.SimpleNamespace(
            x_adv=np.array([[0.5, 0.45, 0.45]]), x_wrong=np.array([[0.5, 0.51, 0.0]]), per_sample_gap=np.array([0.1])
        )

    monkeypatch.setattr(apgd, "attack", attack_)
    both = compare(net, x, [0], delta=0.5, norm=math.inf, methods=["apgd-ce"])
    assert both.row("apgd-ce", "robust accuracy").value == 0.0


def test_compare_names_no_slow_method_by_itself():
    slow = {"apgd-dlr", "apgd-t", "alpha-CROWN", "CROWN-IBP", "forward", "sdp-cvxpy"}
    assert {name for name, method in METHODS.items() if not method.default} == slow
    net = network(np.random.default_rng(28), [3, 4, 4])
    rows = {r.method for r in compare(net, np.full((2, 3), 0.5), [0, 1], delta=0.05, norm=2).rows}
    assert rows == set(METHODS) - slow


def test_a_found_point_that_is_no_worse_gives_the_sample_itself(monkeypatch):
    net = Network.from_weights([np.eye(2)])
    _, name = apgd.attack_library()

    class Helpful(_Fake):
        def perturb(self, x, y, best_loss=False):
            return x + torch.tensor([0.05, -0.05])  # raises the margin of class 0

    monkeypatch.setattr(apgd, "attack_library", lambda *_: (Helpful, name))
    report = run(net, [[0.6, 0.4]], [0], 0.1)
    np.testing.assert_array_equal(report.x_adv, [[0.6, 0.4]])
    assert report.loss_gap.value == 0.0
    assert report.largest_perturbation == 0.0


def test_delta_zero_is_the_sample_itself_and_no_attack(monkeypatch):
    class Forbidden(_Fake):
        def perturb(self, x, y, best_loss=False):
            raise AssertionError("called")

    monkeypatch.setattr(apgd, "attack_library", lambda *_: (Forbidden, "x"))
    x = np.array([[0.1, 0.7]])
    report = run([np.eye(2)], x, [0], 0.0)
    np.testing.assert_array_equal(report.x_adv, x)
    assert report.loss_gap.value == 0.0
    assert report.robust_accuracy == report.clean_accuracy == 0.0


def test_a_tie_is_a_mistake():
    report = run([np.eye(2)], [[0.5, 0.5]], [0], 0.0)
    assert report.clean_accuracy == 0.0


# -- inputs of every kind -----------------------------------------------------------------------------------------


def test_shapes_images_single_samples_and_batches():
    rng = np.random.default_rng(8)
    net = network(rng, [12, 6, 3])
    images = rng.random((5, 3, 2, 2))
    report = run(net, images, [0, 1, 2, 0, 1])
    assert report.x_adv.shape == images.shape
    assert report.x_adv.dtype == np.float64
    flat = run(net, images.reshape(5, 12), [0, 1, 2, 0, 1])
    assert flat.loss_gap.claim == report.loss_gap.claim
    single = run(net, images[:1], [0])
    assert single.x_adv.shape == (1, 3, 2, 2)
    assert single.loss_gap.value > 0
    parts = run(net, images, [0, 1, 2, 0, 1], batch_size=2)
    np.testing.assert_allclose(parts.clean_loss, report.clean_loss, rtol=1e-12)
    assert parts.loss_gap.value == pytest.approx(report.loss_gap.value, rel=0.2)


def test_any_module_and_tensors_and_the_claim():
    rng = np.random.default_rng(9)
    x, y = rng.random((6, 4)), np.array([0, 1, 2, 0, 1, 2])
    torch.manual_seed(0)
    outside = run(Plain(), torch.tensor(x), torch.tensor(y))
    assert outside.subject == ""
    assert outside.loss_gap.value > 0
    inside = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    report = run(inside, x, y)
    assert report.subject == as_network(inside).digest
    domain = losses.perturbation_domain(x, y, 0.1, math.inf, (0.0, 1.0))
    assert report.loss_gap.claim == Claim(Quantity.LOSS_GAP, math.inf, None, domain, "all", report.subject)
    assert report.loss_gap.sense is Sense.LOWER
    assert report.loss_gap.rigor is Rigor.NUMERICAL
    assert report.robust_accuracy_bound.sense is Sense.UPPER
    assert report.robust_accuracy_bound.claim.quantity is Quantity.ROBUST_ACCURACY
    assert report.robust_accuracy_bound.value == report.robust_accuracy


def test_a_module_and_its_network_are_attacked_alike():
    rng = np.random.default_rng(10)
    net = network(rng, [4, 6, 3])
    x, y = rng.random((6, 4)), rng.integers(0, 3, 6)
    a, b = run(net, x, y), run(to_torch(net), x, y)
    np.testing.assert_allclose(a.adversarial_loss, b.adversarial_loss, rtol=1e-12)
    assert a.loss_gap.claim.domain == b.loss_gap.claim.domain


def test_report_prints_and_converts():
    report = run([np.eye(2)], [[0.6, 0.4]], [0], 0.2)
    assert "mean loss gap" in str(report)
    assert "pyautoattack" in str(report)
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert data["schema_version"] == 1
    assert data["loss_gap"]["sense"] == "lower"
    with pytest.raises(ValueError, match="read-only"):
        report.x_adv[0, 0] = 0.0


# -- nothing of the caller's is changed ---------------------------------------------------------------------------


class _Fake:
    """The attack library's interface, to be misbehaved in."""

    def __init__(self, model, n_iter=1, norm="Linf", n_restarts=1, eps=None, seed=0, loss="ce", verbose=True,
                 device=None):
        self.model, self.eps, self.verbose = model, eps, verbose


def _states():
    return (
        torch.get_rng_state().tolist(), random.getstate(), [str(s) for s in np.random.get_state()],  # noqa: NPY002
        np.random.get_state()[1].tolist(), torch.get_default_dtype(), torch.is_grad_enabled(),  # noqa: NPY002
        torch.is_inference_mode_enabled(),
    )


@pytest.mark.parametrize("fails", [False, True])
def test_global_state_is_restored(monkeypatch, fails):
    class Rude(_Fake):
        def perturb(self, x, y, best_loss=False):
            torch.manual_seed(1)
            np.random.seed(2)  # noqa: NPY002
            random.seed(3)
            sys.settrace(None)
            torch.set_default_dtype(torch.float64)
            torch.set_grad_enabled(False)
            if fails:
                raise KeyError("from inside")
            return x

    monkeypatch.setattr(apgd, "attack_library", lambda *_: (Rude, "rude"))
    random.random()
    np.random.rand()  # noqa: NPY002
    torch.rand(1)
    before, old = _states(), sys.gettrace()

    def tracer(frame, event, arg):
        return None

    sys.settrace(tracer)
    try:
        if fails:
            with pytest.raises(KeyError):
                run([np.eye(2)], [[0.6, 0.4]], [0])
        else:
            run([np.eye(2)], [[0.6, 0.4]], [0])
        after = sys.gettrace()
    finally:
        sys.settrace(old)
    assert after is tracer
    assert _states() == before


@pytest.mark.parametrize("method", sorted(apgd.METHODS))
def test_the_real_library_moves_no_random_state_and_prints_nothing(method, capfd, recwarn):
    # a network of zeros has no gradient, of which the library warns where the loss is a DLR
    net = Network((Affine(np.eye(4)), ReLU(), Affine(np.eye(4), -np.eye(4)[0])))
    before, tracer = _states(), sys.gettrace()
    run(net, [[0.6, 0.4, 0.1, 0.0], [0.0, 0.0, 0.0, 0.0]], [0, 1], delta=1e-3, method=method, restarts=2)
    dead = Network((Affine(np.zeros((4, 4))), ReLU(), Affine(np.eye(4))))
    run(dead, [[0.6, 0.4, 0.1, 0.0]], [0], method=method)
    assert _states() == before
    assert sys.gettrace() is tracer
    assert capfd.readouterr() == ("", "")
    assert len(recwarn) == 0


def test_same_seed_same_points_whatever_the_global_seed():
    rng = np.random.default_rng(11)
    net = network(rng, [6, 20, 20, 3])
    x, y = rng.random((6, 6)), rng.integers(0, 3, 6)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        a = run(net, x, y, steps=3, seed=5)
        torch.manual_seed(2)
        b = run(net, x, y, steps=3, seed=5)
    np.testing.assert_array_equal(a.x_adv, b.x_adv)
    assert np.any(a.x_adv != run(net, x, y, steps=3, seed=6).x_adv)


def test_under_no_grad_inference_mode_autocast_and_another_default_dtype():
    rng = np.random.default_rng(12)
    net = network(rng, [4, 6, 3])
    x, y = rng.random((3, 4)), np.array([0, 1, 2])
    expected = run(net, x, y)
    with torch.no_grad():
        np.testing.assert_array_equal(run(net, x, y).x_adv, expected.x_adv)
    with torch.inference_mode():
        np.testing.assert_array_equal(run(net, x, y).x_adv, expected.x_adv)
        assert run(to_torch(net), torch.tensor(x), torch.tensor(y)).loss_gap.value > 0
        assert run(Plain(), torch.tensor(x), y).loss_gap.value > 0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        np.testing.assert_array_equal(run(net, x, y).x_adv, expected.x_adv)
    torch.set_default_dtype(torch.float64)
    try:
        np.testing.assert_array_equal(run(net, x, y).x_adv, expected.x_adv)
    finally:
        torch.set_default_dtype(torch.float32)


def test_the_module_is_not_changed():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Dropout(0.5), nn.Linear(5, 3)).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x = np.random.default_rng(13).random((6, 4))
    a, b = (run(model, x, [0, 1, 2, 0, 1, 2]) for _ in range(2))
    np.testing.assert_array_equal(a.clean_loss, b.clean_loss)
    logits = copy.deepcopy(model).double().eval()(torch.tensor(x)).detach().numpy()  # no dropout, stored statistics
    np.testing.assert_allclose(a.clean_loss, losses.cross_entropy(logits, np.array([0, 1, 2, 0, 1, 2])), rtol=1e-12)
    assert model.training
    assert all(p.requires_grad and p.grad is None and p.dtype == torch.float32 for p in model.parameters())
    for k, v in model.state_dict().items():
        assert torch.equal(v, before[k])


# -- what is refused ----------------------------------------------------------------------------------------------

GOOD = {"model": [np.eye(2)], "x": [[0.6, 0.4]], "y": [0], "delta": 0.1, "norm": 2}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"x": [[0.5, 1.5]]}, r"first layer"),
        ({"x": [[-0.1, 0.5]]}, r"\[0, 1\]"),
        ({"x": [[math.nan, 0.5]]}, "x"),
        ({"x": np.empty((0, 2)), "y": []}, "at least one sample"),
        ({"x": [0.5, 0.5]}, r"x\[None\]"),
        ({"x": [[0.5, 0.5, 0.5]]}, "2 numbers"),
        ({"y": [2]}, r"0\.\.1"),
        ({"y": [-1]}, "y"),
        ({"y": [0.5]}, "y"),
        ({"y": [0, 1]}, "y"),
        ({"delta": -0.1}, "delta"),
        ({"delta": math.nan}, "delta"),
        ({"norm": 1}, "norm"),
        ({"method": "apgd-dlr"}, "'apgd-dlr' for a model of 2 classes; needed at least 3.*method='apgd-ce'"),
        ({"method": "apgd-t"}, "'apgd-t' for a model of 2 classes; needed at least 4.*method='apgd-ce'"),
        ({"method": "apgd-t", "model": [np.eye(3, 2)]}, "'apgd-t' for a model of 3 classes"),
        ({"method": "apgd-t", "model": [np.eye(1, 2)]}, "'apgd-t' for a model of 2 classes"),
        ({"method": "apgd"}, "'apgd-ce' or 'apgd-dlr' or 'apgd-t' or 'worst'"),
        ({"method": ""}, "method"),
        ({"steps": 0}, "steps"),
        ({"restarts": 0}, "restarts"),
        ({"restarts": True}, "restarts"),
        ({"seed": -1}, "seed"),
        ({"seed": 0.5}, "seed"),
        ({"batch_size": 0}, "batch_size"),
        ({"device": "nowhere"}, "device"),
        ({"model": 3.0}, "model"),
    ],
)
def test_bad_input(change, word):
    with pytest.raises(InputError, match=word):
        attack(**{**GOOD, "device": "cpu", **change})


class Odd(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind, self.w = kind, nn.Linear(2, 2)

    def forward(self, x):
        z = self.w(x)
        return {
            "nan": z * math.nan,
            "overflow": z * 1e30 * 1e30,
            "detached": z.detach(),
            "one axis": z[:, 0],
            "pair": (z, z),
        }[self.kind]


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        ("nan", "NaN or infinite outputs in float64"),
        ("overflow", "NaN or infinite outputs in float32"),
        ("detached", "gradient"),
        ("one axis", "logits of shape"),
        ("pair", "tuple"),
    ],
)
def test_modules_that_cannot_be_attacked(kind, word):
    with pytest.raises(InputError, match=word):
        run(Odd(kind), [[0.6, 0.4]], [0])


def test_a_module_that_does_not_fit_the_samples():
    with pytest.raises(InputError, match="check the shape of x"):
        run(Plain(), [[0.6, 0.4]], [0])


def test_a_point_outside_the_ball_is_never_reported(monkeypatch):
    monkeypatch.setattr(apgd, "into_ball", lambda x, found, delta, norm: found + 1e-3)
    with pytest.raises(CertboundError, match="left its ball"):
        run([np.eye(2)], [[0.6, 0.4]], [0], 0.1)


# -- packages -----------------------------------------------------------------------------------------------------


def test_missing_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "autoattack", None)
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'certbound\[attack\]'"):
        run([np.eye(2)], [[0.6, 0.4]], [0])


def test_the_official_package_comes_first(monkeypatch):
    class Official(_Fake):
        def perturb(self, x, y, best_loss=False):
            assert best_loss
            assert not self.verbose
            assert x.dtype == torch.float32
            return (x + torch.tensor([-2 * self.eps, 2 * self.eps])).clamp(0, 1)  # outside: to be put back

    package, module = types.ModuleType("autoattack"), types.ModuleType("autoattack.autopgd_base")
    package.__version__ = "9.9"
    module.APGDAttack = Official
    monkeypatch.setitem(sys.modules, "autoattack", package)
    monkeypatch.setitem(sys.modules, "autoattack.autopgd_base", module)
    for norm, size in ((math.inf, 0.1), (2.0, 0.1 / math.sqrt(2))):
        report = run([np.eye(2)], [[0.6, 0.4]], [0], 0.1, norm)
        assert report.package == "autoattack 9.9"
        np.testing.assert_allclose(report.x_adv, [[0.6 - size, 0.4 + size]], rtol=1e-7)
