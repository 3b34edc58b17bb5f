"""certbound.compress.training: the loop, penalties, fixed norms, adversaries, early stopping, refusals."""

from __future__ import annotations

import copy
import functools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from certbound.attacks.universal import universal_perturbation
from certbound.compress import training as training_module
from certbound.compress.adversarial import UniversalPerturbation, _random_direction, pgd_examples
from certbound.compress.factorised import relu_network
from certbound.compress.penalties import PENALTIES, PROXIMAL_STEPS
from certbound.compress.training import PROX_EVERY, accuracy, train
from certbound.compress.training_config import PGD, History, Training, UniversalTraining
from certbound.errors import CertboundError, InputError, UnsupportedLayerError


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _net(*widths: int, seed: int = 0) -> nn.Sequential:
    return relu_network(widths or (64, 32, 32, 10), generator=_generator(seed))


@functools.cache
def _digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    x, y = load_digits(return_X_y=True)
    x = (x / 16.0).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = x[order], y[order]
    return x[:1200], y[:1200], x[1200:], y[1200:]


def _weights(model: nn.Module) -> list[torch.Tensor]:
    return [m.weight.detach() for m in model.modules() if isinstance(m, nn.Linear)]


def _same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def _noisy_net() -> nn.Sequential:
    """BatchNorm and Dropout, weights that do not depend on the global state."""
    layers = [_net(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.5), _net(32, 10, seed=1)]
    return nn.Sequential(*layers)


# ---------------------------------------------------------------- the loop


OPTIONS: list[dict[str, Any]] = [
    {},
    {"penalties": (("nuclear", 0.01),), "frobenius": True},
    {"penalties": (("row-sparsity", 0.01), ("l1", 0.001)), "weight_decay": 1e-3},
    {"adversarial": PGD(0.1, math.inf, steps=2)},
    {"adversarial": PGD(0.5, 2, steps=2)},
    {"universal": UniversalTraining(0.2, math.inf)},
    {"validation": 0.2, "patience": 1},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_a_seed_decides_everything_and_nothing_global_does(options: dict[str, Any]) -> None:
    x, y, _, _ = _digits()
    how = Training(epochs=2, **options)
    models = [_net(), _net(), _net()]
    histories = []
    for global_seed, seed, model in zip((7, 8, 7), (1, 1, 2), models, strict=True):
        torch.manual_seed(global_seed)
        before, numpy_before = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
        histories.append(train(model, x[:300], y[:300], how, seed=seed))
        assert torch.equal(torch.random.get_rng_state(), before)
        assert np.array_equal(np.random.get_state()[1], numpy_before)  # noqa: NPY002
    assert _same(models[0], models[1]) and histories[0].losses == histories[1].losses
    assert histories[0].validation_losses == histories[1].validation_losses
    assert not _same(models[0], models[2])


def test_dropout_is_seeded_too_and_leaves_the_global_state() -> None:
    x, y, _, _ = _digits()
    models = [_noisy_net() for _ in range(3)]
    for global_seed, seed, model in zip((7, 8, 7), (1, 1, 2), models, strict=True):
        torch.manual_seed(global_seed)
        before = torch.random.get_rng_state()
        train(model, x[:300], y[:300], Training(epochs=1, lr=0.01), seed=seed)
        assert torch.equal(torch.random.get_rng_state(), before)
        assert not model.training
    assert _same(models[0], models[1]) and not _same(models[0], models[2])
    assert int(models[0][1].num_batches_tracked) == math.ceil(300 / 64)


def test_the_loss_falls_and_the_history_says_what_happened() -> None:
    x, y, x_test, y_test = _digits()
    model = _net()
    history = train(model, x, y, Training(epochs=15), seed=0)
    assert (history.steps, history.epochs) == (15 * 19, 15)
    assert len(history.losses) == 15 and history.losses[-1] < 0.1 * history.losses[0]
    assert history.validation_losses == () and not history.stopped_early and history.seconds > 0
    with torch.no_grad():
        right = (model(torch.tensor(x)).argmax(1).numpy() == y).mean()
    assert history.train_accuracy == pytest.approx(right) and accuracy(model, x, y) == history.train_accuracy
    assert accuracy(model, x_test, y_test) > 0.93
    assert not model.training and all(p.requires_grad and p.grad is None for p in model.parameters())
    assert json.loads(json.dumps(history.to_dict()))["steps"] == 285


def test_first_steps_by_hand() -> None:
    """Momentum, weight decay, the falling rate and the loss of the whole batch, on one linear layer."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False)).double()
    start = np.array([[0.3, -0.2], [0.1, 0.4]])
    model[0].weight.data = torch.tensor(start)
    x, y = np.array([[1.0, 0.0], [0.5, 0.5], [0.2, 0.9]]), np.array([0, 1, 1])
    how = Training(epochs=4, lr=0.5, momentum=0.8, weight_decay=0.1, batch_size=3, max_steps=3)
    history = train(model, x, y, how, seed=0)
    w, v, losses = start.copy(), 0.0, []
    for t in range(3):
        z = x @ w.T
        p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
        losses.append(-np.log(p[np.arange(3), y]).mean())
        v = 0.8 * v + (p - np.eye(2)[y]).T @ x / 3 + 0.1 * w
        w = w - 0.5 * (1 - t / 4) * v
    np.testing.assert_allclose(model[0].weight.detach().numpy(), w, rtol=1e-12)
    np.testing.assert_allclose(history.losses, losses, rtol=1e-6)


def test_the_mean_loss_weighs_batches_by_their_size() -> None:
    model = nn.Sequential(nn.Linear(1, 2))
    for p in model.parameters():
        p.data.zero_()
    model[0].bias.data = torch.tensor([1.0, 0.0])  # lr = 0: the loss of a sample depends on its label alone
    history = train(model, np.zeros((3, 1)), [0, 0, 1], Training(epochs=1, lr=0.0, batch_size=2), seed=0)
    expected = (2 * math.log(1 + math.exp(-1)) + math.log(1 + math.exp(1))) / 3
    assert history.losses == pytest.approx((expected,))


def test_one_logit_is_the_two_classes_zero_and_z() -> None:
    model = nn.Sequential(nn.Linear(1, 1, bias=False)).double()
    model[0].weight.data.fill_(0.7)
    history = train(model, [[1.0], [0.5]], [1, 0], Training(epochs=1, lr=1.0, momentum=0.0), seed=0)

    def sigmoid(z: float) -> float:
        return 1 / (1 + math.exp(-z))

    gradient = ((sigmoid(0.7) - 1) * 1.0 + sigmoid(0.35) * 0.5) / 2
    assert model[0].weight.item() == pytest.approx(0.7 - gradient, rel=1e-12)
    assert history.train_accuracy == 0.5  # z > 0 for both


def test_max_steps_is_exact_and_a_prefix_of_the_full_run() -> None:
    x, y, _, _ = _digits()
    full, short, again = _net(), _net(), _net()
    seen: list[dict[str, torch.Tensor]] = []
    hook = full.register_forward_pre_hook(
        lambda m, _: seen.append(copy.deepcopy(m.state_dict())) if m.training else None
    )
    train(full, x, y, Training(epochs=2), seed=0)
    hook.remove()
    history = train(short, x, y, Training(epochs=2, max_steps=23), seed=0)
    assert (history.steps, history.epochs, len(history.losses)) == (23, 2, 2)
    assert all(torch.equal(v, seen[23][k]) for k, v in short.state_dict().items())
    assert train(again, x, y, Training(epochs=2, max_steps=1000), seed=0).steps == 38
    assert _same(full, again)


def test_a_generator_continues_where_it_stands() -> None:
    x, y, _, _ = _digits()
    models = [_net(), _net(), _net()]
    fresh, used = _generator(3), _generator(3)
    torch.rand(5, generator=used)
    for model, seed in zip(models, (3, fresh, used), strict=True):
        train(model, x[:200], y[:200], Training(epochs=1), seed=seed)
    assert _same(models[0], models[1]) and not _same(models[0], models[2])


def test_the_model_decides_the_dtype_and_accuracy_is_over_all_batches() -> None:
    x, y, _, _ = _digits()
    model = _net().double()
    seen = []
    model.register_forward_pre_hook(lambda _m, args: seen.append(args[0].dtype))
    train(model, torch.tensor(x), torch.tensor(y), Training(epochs=1, max_steps=2), seed=0, progress=True)
    assert set(seen) == {torch.float64}
    identity = nn.Identity()
    logits = np.eye(2)[np.r_[np.zeros(1500, dtype=int), np.ones(500, dtype=int)]]
    assert accuracy(identity, logits, np.zeros(2000)) == 0.75


# ---------------------------------------------------------------- penalties


def test_proximal_step_by_hand() -> None:
    """One step: w − ηg, then soft-thresholding by ηλ/(1−μ)."""
    plain, sparse = _net(5, 4, 3), _net(5, 4, 3)
    x, y = np.random.default_rng(0).random((20, 5)), np.arange(20) % 3
    how = Training(epochs=3, lr=0.5, momentum=0.75, max_steps=1)
    train(plain, x, y, how, seed=0)
    train(sparse, x, y, replace(how, penalties=(("l1", 0.1),)), seed=0)
    w, tau = _weights(plain)[0], 0.5 * 0.1 / 0.25
    torch.testing.assert_close(_weights(sparse)[0], w.sign() * (w.abs() - tau).clamp_min(0.0))
    assert torch.equal(_weights(sparse)[1], _weights(plain)[1])  # the head


def test_thresholds_are_the_sums_of_the_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[float] = []
    monkeypatch.setattr(training_module, "PROXIMAL_STEPS", {"l1": lambda _model, threshold: calls.append(threshold)})
    x, y = np.random.default_rng(0).random((40, 5)), np.arange(40) % 3
    train(_net(5, 4, 3), x, y, Training(epochs=5, batch_size=10, lr=0.1, penalties=(("l1", 0.3),)), seed=0)
    rates = [0.1 * (1 - t / 20) * 0.3 / (1 - 0.9) for t in range(20)]
    assert PROX_EVERY == 8
    sums = [sum(rates[:8]), sum(rates[8:16]), sum(rates[16:])]
    assert calls == pytest.approx([0.0, *sums])  # the first is the trial on a copy


def test_loss_penalty_by_hand() -> None:
    plain, penalised = _net(5, 4, 3), _net(5, 4, 3)
    x, y = np.random.default_rng(0).random((20, 5)), np.arange(20) % 3
    how = Training(lr=0.5, max_steps=1, proximal=False)
    start = _weights(copy.deepcopy(plain))[0]
    train(plain, x, y, how, seed=0)
    train(penalised, x, y, replace(how, penalties=(("l1", 0.1),)), seed=0)
    torch.testing.assert_close(_weights(penalised)[0], _weights(plain)[0] - 0.5 * 0.1 * start.sign())


def test_nuclear_norm_makes_singular_values_zero() -> None:
    x, y, x_test, y_test = _digits()
    model = _net()
    train(model, x, y, Training(penalties=(("nuclear", 0.05),), epochs=30), seed=0)
    for weight in _weights(model)[:-1]:
        s = torch.linalg.svdvals(weight.double())
        assert int((s > 1e-6 * s[0]).sum()) <= 12 and float(s[-1]) < 1e-6  # zero up to float32's rounding
    assert accuracy(model, x_test, y_test) > 0.8


@pytest.mark.parametrize(("name", "strength"), [("l1", 0.002), ("group-lasso", 0.02)])
def test_proximal_penalties_make_exact_zeros(name: str, strength: float) -> None:
    x, y, x_test, y_test = _digits()
    model, smooth = _net(), _net()
    how = Training(penalties=((name, strength),), epochs=30)
    train(model, x, y, how, seed=0)
    train(smooth, x, y, replace(how, proximal=False), seed=0)

    def zeros(m: nn.Module) -> float:
        parts = [w if name == "l1" else w.norm(dim=1) for w in _weights(m)[:-1]]
        return float(torch.cat([(p == 0).flatten() for p in parts]).double().mean())

    assert zeros(model) > 0.2
    assert zeros(smooth) == 0.0  # subgradients do not
    assert accuracy(model, x_test, y_test) > 0.8
    assert int((_weights(model)[-1] == 0).sum()) == 0  # the head


@pytest.mark.parametrize(("name", "strength"), [
    ("row-sparsity", 1.0), ("dispersion", 0.1), ("alignment-2", 1.0), ("alignment-inf", 0.3), ("nuclear", 0.03),
])  # fmt: skip
def test_loss_penalties_get_smaller(name: str, strength: float) -> None:
    x, y, x_test, y_test = _digits()
    plain, penalised = _net(), _net()
    how = Training(epochs=15, lr=0.05, proximal=False)
    train(plain, x, y, how, seed=0)
    train(penalised, x, y, replace(how, penalties=((name, strength),)), seed=0)
    values = [PENALTIES[name](model).item() for model in (penalised, plain)]
    assert 0 <= values[0] < 0.8 * values[1]
    assert accuracy(penalised, x_test, y_test) > 0.8


def test_strength_zero_is_no_penalty() -> None:
    x, y, _, _ = _digits()
    plain, zero = _net(), _net()
    train(plain, x, y, Training(epochs=1), seed=0)
    train(zero, x, y, Training(epochs=1, penalties=(("nuclear", 0.0), ("l1", 0.0), ("dispersion", 0))), seed=0)
    assert _same(plain, zero)
    off = Training(penalties=(("alignment-2", 0.0), ("l1", 0.0)), proximal=False)  # nor is it computed
    assert off.loss_penalties == off.proximal_penalties == ()


@pytest.mark.parametrize("penalties", [(), (("nuclear", 0.1),), (("row-sparsity", 1.0),)])
@pytest.mark.parametrize("patience", [None, 50])
def test_frobenius_norms_stay(penalties: tuple[tuple[str, float], ...], patience: int | None) -> None:
    x, y, _, _ = _digits()
    model = _net()
    before = [float(w.double().norm()) for w in _weights(model)]
    how = Training(
        epochs=5, penalties=penalties, frobenius=True, validation=0.1 if patience else 0.0, patience=patience
    )
    train(model, x, y, how, seed=0)
    after = [float(w.double().norm()) for w in _weights(model)]
    assert after[:-1] == pytest.approx(before[:-1], rel=1e-6)
    assert abs(after[-1] / before[-1] - 1) > 0.01  # the head is free
    if penalties and penalties[0][0] == "nuclear":
        s = torch.linalg.svdvals(_weights(model)[0].double())
        assert float(s[-1]) < 1e-6 < float(s[0])


# ---------------------------------------------------------------- adversaries


@functools.cache
def _trained() -> nn.Sequential:
    x, y, _, _ = _digits()
    model = _net()
    train(model, x, y, Training(epochs=10), seed=0)
    return model


def _loss(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    with torch.no_grad():
        return float(nn.functional.cross_entropy(model(x), y))


@pytest.mark.parametrize("norm", [2.0, math.inf])
def test_pgd_stays_in_the_ball_and_beats_noise(norm: float) -> None:
    _, _, x_test, y_test = _digits()
    model, x, y = _trained(), torch.tensor(x_test), torch.tensor(y_test)
    delta = 0.1 if math.isinf(norm) else 0.5
    found = pgd_examples(model, x, y, PGD(delta, norm), generator=_generator())
    assert not found.requires_grad and float(found.min()) >= 0 and float(found.max()) <= 1
    sizes = torch.linalg.vector_norm((found - x).double(), ord=norm, dim=1)
    assert float(sizes.max()) <= delta * (1 + 1e-6) and float(sizes.median()) > 0.8 * delta
    noise = delta * _random_direction(torch, x, norm, _generator(1))
    noisy = _loss(model, (x + noise).clamp(0, 1), y)
    assert _loss(model, found, y) > 3 * noisy
    once = pgd_examples(model, x, y, PGD(delta, norm, steps=1), generator=_generator())
    assert _loss(model, found, y) > _loss(model, once, y)
    again = pgd_examples(model, x, y, PGD(delta, norm), generator=_generator())
    assert torch.equal(found, again)


def test_pgd_of_a_linear_model_is_the_worst_point() -> None:
    """Label 0 of logits (a·x, b·x): the loss rises along b − a."""
    model = nn.Linear(3, 2, bias=False)
    model.weight.data = torch.tensor([[1.0, -2.0, 0.0], [-2.0, 2.0, 0.0]])
    x, y = torch.full((2, 3), 0.5), torch.tensor([0, 1])
    attack = PGD(0.2, 2, steps=100, step_size=0.1)
    found = pgd_examples(model, x, y, attack, generator=_generator())
    way = 0.2 * torch.tensor([-0.6, 0.8, 0.0])
    torch.testing.assert_close(found, x + torch.stack([way, -way]), atol=2e-3, rtol=0)
    box = pgd_examples(model, x, y, PGD(0.7, "inf", steps=20), generator=_generator())
    torch.testing.assert_close(box[:, :2], torch.tensor([[0.0, 1.0], [1.0, 0.0]]))


def test_random_starts_are_uniform_in_the_ball() -> None:
    x = torch.zeros(20000, 3, dtype=torch.float64)
    length = _random_direction(torch, x, 2.0, _generator()).norm(dim=1)
    assert float(length.max()) <= 1 and float((length**3).mean()) == pytest.approx(0.5, abs=0.01)
    cube = _random_direction(torch, x, math.inf, _generator())
    assert float(cube.abs().max()) <= 1 and float(cube.mean()) == pytest.approx(0, abs=0.02)
    assert float((cube**2).mean()) == pytest.approx(1 / 3, abs=0.01)


def test_tiny_gradients_still_make_full_steps_and_zero_ones_none() -> None:
    model = nn.Linear(2, 2, bias=False)
    x, y = torch.full((1, 2), 0.5), torch.tensor([0])
    model.weight.data = 1e-36 * torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    found = pgd_examples(model, x, y, PGD(0.2, 2, steps=50), generator=_generator())
    torch.testing.assert_close(found, x + 0.2 * torch.tensor([[0.6, 0.8]]), atol=2e-2, rtol=0)
    model.weight.data.zero_()
    for norm in (2, math.inf):
        still = pgd_examples(model, x, y, PGD(0.2, norm), generator=_generator())
        assert bool(still.isfinite().all())


def test_a_huge_radius_is_the_box() -> None:
    _, _, x_test, y_test = _digits()
    x, y = torch.tensor(x_test[:20]), torch.tensor(y_test[:20])
    for norm, n in ((math.inf, 1.0), (2, 8.0)):
        huge, whole = (pgd_examples(_trained(), x, y, PGD(d, norm), generator=_generator()) for d in (1e300, n))
        assert torch.equal(huge, whole) and bool(huge.isfinite().all())


def test_radius_zero_moves_nothing() -> None:
    _, _, x_test, y_test = _digits()
    x, y = torch.tensor(x_test[:20]), torch.tensor(y_test[:20])
    for norm in (2, math.inf):
        torch.testing.assert_close(pgd_examples(_trained(), x, y, PGD(0, norm), generator=_generator()), x)


def test_the_inner_maximisation_leaves_the_model_as_it_is() -> None:
    x, y, _, _ = _digits()
    model = _noisy_net().train()
    model[3].eval()  # a mode of its own
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():  # also where gradients are off
        pgd_examples(model, torch.tensor(x[:8]), torch.tensor(y[:8]), PGD(0.1, 2), generator=_generator())
    UniversalPerturbation(UniversalTraining(0.1, 2), torch.zeros(64)).ascend(
        model, torch.tensor(x[:8]), torch.tensor(y[:8])
    )
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())  # BatchNorm's statistics among them
    assert all(p.grad is None for p in model.parameters())
    assert model[1].training and not model[3].training


def _robust_accuracy(model: nn.Module, attack: PGD) -> float:
    _, _, x_test, y_test = _digits()
    x, y = torch.tensor(x_test), torch.tensor(y_test)
    return accuracy(model, pgd_examples(model, x, y, attack, generator=_generator()), y)


@pytest.mark.parametrize(("norm", "delta"), [(math.inf, 0.1), (2, 0.6)])
def test_adversarial_training_raises_robust_accuracy(norm: float, delta: float) -> None:
    x, y, x_test, y_test = _digits()
    attack = PGD(delta, norm, steps=20)
    for seed in range(3):
        plain, robust = _net(seed=seed), _net(seed=seed)
        train(plain, x, y, Training(epochs=15), seed=seed)
        train(robust, x, y, Training(epochs=15, adversarial=PGD(delta, norm)), seed=seed)
        assert _robust_accuracy(robust, attack) > _robust_accuracy(plain, attack) + 0.1
        assert accuracy(robust, x_test, y_test) > 0.9


@pytest.mark.parametrize(("norm", "delta"), [(math.inf, 0.1), (2, 0.5)])
def test_universal_training_lowers_the_success_of_universal_perturbations(norm: float, delta: float) -> None:
    x, y, x_test, y_test = _digits()
    rates = np.zeros((3, 2))
    for seed in range(3):
        for i, universal in enumerate((None, UniversalTraining(delta, norm))):
            model = _net(seed=seed)
            train(model, x, y, Training(epochs=30, universal=universal), seed=seed)
            report = universal_perturbation(model, x_test, y_test, delta=delta, norm=norm, steps=100, device="cpu")
            rates[seed, i] = report.success_rate
            assert report.clean_accuracy > 0.95
    assert np.all(rates[:, 1] < rates[:, 0] - 0.02) and rates[:, 1].mean() < 0.65 * rates[:, 0].mean()


@pytest.mark.parametrize("norm", [2.0, math.inf])
def test_the_universal_perturbation_is_in_its_ball_and_raises_the_loss(norm: float) -> None:
    x, y = (torch.tensor(a) for a in _digits()[:2])
    delta = 0.25 if math.isinf(norm) else 1.0
    running = UniversalPerturbation(UniversalTraining(delta, norm), torch.zeros(64))
    for start in range(0, 1200, 60):
        points = running.ascend(_trained(), x[start : start + 60], y[start : start + 60])
        assert torch.equal(points, (x[start : start + 60] + running.a).clamp(0, 1))
        assert float(torch.linalg.vector_norm(running.a.double(), ord=norm)) <= delta * (1 + 1e-6)
    moved = (x + running.a).clamp(0, 1)
    assert _loss(_trained(), moved, y) > 3 * _loss(_trained(), x, y)


def test_universal_steps_by_hand() -> None:
    model = nn.Linear(2, 2, bias=False)
    model.weight.data = torch.tensor([[3.0, -4.0], [0.0, 0.0]])
    x, y = torch.tensor([[0.5, 1.0], [0.5, 1.0]]), torch.tensor([0, 0])  # the gradient is along (−3, 4)
    running = UniversalPerturbation(UniversalTraining(1.0, "inf", step_size=0.1), torch.zeros(2))
    torch.testing.assert_close(running.ascend(model, x, y), torch.tensor([[0.4, 1.0], [0.4, 1.0]]))
    torch.testing.assert_close(running.a, torch.tensor([-0.1, 0.0]))  # x_1 = 1 can only go down
    running = UniversalPerturbation(UniversalTraining(0.4, 2, step_size=0.25), torch.zeros(2))
    inside = torch.full((2, 2), 0.5)
    for length in (0.1, 0.2, 0.3, 0.4, 0.4, 0.4):
        running.ascend(model, inside, y)
        torch.testing.assert_close(running.a, length * torch.tensor([-0.6, 0.8]))


@pytest.mark.parametrize("make", [lambda f: {"adversarial": PGD(0.1, math.inf, steps=1, fraction=f)},
                                  lambda f: {"universal": UniversalTraining(0.1, math.inf, fraction=f)}])
@pytest.mark.parametrize(("fraction", "counts"), [(0.25, [8, 2]), (1.0, [32, 8]), (0.001, [1, 1])])
def test_the_fraction_is_respected(
    make: Callable[[float], dict[str, Any]], fraction: float, counts: list[int]
) -> None:
    """Batches of 32 and 8: in train mode the model sees so many samples that are none of the given ones."""
    x, y, _, _ = _digits()
    given = {row.tobytes() for row in x[:40]}
    new: list[int] = []
    model = _net()
    model.register_forward_pre_hook(
        lambda m, args: new.append(sum(row.numpy().tobytes() not in given for row in args[0])) if m.training else None
    )
    train(model, x[:40], y[:40], Training(epochs=1, batch_size=32, **make(fraction)), seed=0)
    assert new == counts


def test_adversaries_do_not_change_the_order_of_the_batches() -> None:
    x, y, _, _ = _digits()
    ends = []
    for options in ({}, {"adversarial": PGD(0.0, math.inf)}, {"universal": UniversalTraining(0.0, 2)}):
        model = _net()
        train(model, x, y, Training(epochs=2, **options), seed=0)  # type: ignore[arg-type]
        ends.append(_weights(model)[0])
    torch.testing.assert_close(ends[1], ends[0])
    torch.testing.assert_close(ends[2], ends[0])


# ---------------------------------------------------------------- validation


def test_early_stopping_restores_the_best_weights() -> None:
    """The weights of the best epoch are those of a run that stops after its steps: the same rates, a prefix."""
    x, y, _, _ = _digits()
    y = np.where(np.random.default_rng(1).random(1200) < 0.3, (y + 1) % 10, y)  # wrong labels, to overfit
    model, prefix = _noisy_net(), _noisy_net()
    how = Training(epochs=60, lr=0.1, validation=0.25, patience=3)
    history = train(model, x, y, how, seed=0)
    best = int(np.argmin(history.validation_losses))
    assert history.stopped_early and history.epochs == best + 4 < 60
    assert len(history.losses) == len(history.validation_losses) == history.epochs
    steps_per_epoch = math.ceil(900 / 64)
    assert history.steps == history.epochs * steps_per_epoch
    train(prefix, x, y, replace(how, patience=None, max_steps=(best + 1) * steps_per_epoch), seed=0)
    assert _same(model, prefix)


def test_validation_without_patience_keeps_the_last_weights() -> None:
    x, y, _, _ = _digits()
    history = train(_net(), x, y, Training(epochs=12, lr=0.3, validation=0.1), seed=0)
    assert history.epochs == 12 and len(history.validation_losses) == 12 and not history.stopped_early
    assert history.steps == 12 * math.ceil(1080 / 64)


def test_samples_held_back_are_not_trained_on() -> None:
    x, y, _, _ = _digits()
    seen: set[bytes] = set()
    model = _net()
    model.register_forward_pre_hook(
        lambda m, args: seen.update(row.numpy().tobytes() for row in args[0]) if m.training else None
    )
    history = train(model, x, y, Training(epochs=2, validation=0.9), seed=0)
    kept = [i for i in range(1200) if x[i].tobytes() in seen]
    held = [i for i in range(1200) if x[i].tobytes() not in seen]
    assert len(kept) == len(seen) == 120
    expected = _loss(model, torch.tensor(x[held]), torch.tensor(y[held]))
    assert history.validation_losses[-1] == pytest.approx(expected, rel=1e-5)
    assert history.train_accuracy == pytest.approx(accuracy(model, x[kept], y[kept]))


def test_validated_weights_are_made_by_the_proximal_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three batches an epoch: what is owed is settled after each epoch, after 8 steps and after the last."""
    calls: list[float] = []
    monkeypatch.setattr(training_module, "PROXIMAL_STEPS", {"l1": lambda _model, threshold: calls.append(threshold)})
    x, y, _, _ = _digits()
    how = Training(epochs=3, batch_size=10, lr=0.1, penalties=(("l1", 0.3),), validation=0.25, patience=3)
    train(_net(), x[:40], y[:40], how, seed=0)
    rates = [0.1 * (1 - t / 9) * 0.3 / (1 - 0.9) for t in range(9)]
    assert calls == pytest.approx([0.0, sum(rates[:3]), sum(rates[3:6]), sum(rates[6:8]), rates[8]])


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"lr": math.nan}, "lr"), ({"lr": math.inf}, "lr"), ({"lr": -0.1}, "lr"), ({"lr": "0.1"}, "lr"),
        ({"momentum": 1.0}, "momentum"), ({"weight_decay": -1e-3}, "weight_decay"), ({"epochs": 0}, "epochs"),
        ({"epochs": True}, "epochs"), ({"batch_size": 0}, "batch_size"), ({"batch_size": 2.0}, "batch_size"),
        ({"max_steps": 0}, "max_steps"), ({"patience": 3}, "patience"),
        ({"patience": 0, "validation": 0.1}, "patience"),
        ({"validation": 1.0}, "validation"), ({"validation": math.nan}, "validation"),
        ({"penalties": (("nuclear", -0.1),)}, "nuclear"), ({"penalties": (("nuclear", math.nan),)}, "nuclear"),
        ({"penalties": (("l7", 0.1),)}, "penalties.*l7.*row-sparsity"), ({"penalties": ("l1", 0.1)}, "penalties"),
        ({"penalties": "l1"}, "penalties"), ({"penalties": (("dispersion", 1.0), ("dispersion", 2.0))}, "twice"),
        ({"penalties": (("nuclear", 1.0), ("l1", 2.0))}, "nuclear and l1.*proximal=False"),
        ({"proximal": 1}, "proximal"), ({"frobenius": None}, "frobenius"), ({"adversarial": 0.1}, "adversarial"),
        ({"universal": PGD(0.1, 2)}, "universal"),
        ({"universal": UniversalTraining(0.1, 2), "adversarial": PGD(0.1, 2)}, "one of the two"),
    ],
)  # fmt: skip
def test_bad_configurations_are_refused_by_name(options: dict[str, Any], word: str) -> None:
    with pytest.raises(InputError, match=word):
        Training(**options)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"norm": 1}, "norm"), ({"norm": "l3"}, "norm"), ({"delta": -0.1}, "delta"), ({"delta": math.nan}, "delta"),
        ({"fraction": 0}, "fraction"), ({"fraction": 1.1}, "fraction"), ({"fraction": math.nan}, "fraction"),
        ({"step_size": 0}, "step_size"), ({"step_size": math.inf}, "step_size"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", [PGD, UniversalTraining])
def test_bad_adversaries_are_refused_by_name(kind: Any, options: dict[str, Any], word: str) -> None:
    with pytest.raises(InputError, match=word):
        kind(**{"delta": 0.1, "norm": 2, **options})


def test_steps_of_pgd_are_counted() -> None:
    with pytest.raises(InputError, match="steps"):
        PGD(0.1, 2, steps=0)


X2, Y2 = np.random.default_rng(0).random((8, 4)), np.arange(8) % 2


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"y": [0, 1, 2, 0, 1, 2, 0, 3]}, "y.*0..2"), ({"y": -Y2}, "y"), ({"y": Y2[:5]}, "y"), ({"y": Y2 + 0.5}, "y"),
        ({"x": X2[:0], "y": Y2[:0]}, "x"), ({"x": X2[:, 0]}, "x"), ({"x": np.where(X2 < 0.5, np.nan, X2)}, "x"),
        ({"x": X2[:, :3]}, "model.*shape"),
        ({"x": 2 * X2, "training": Training(adversarial=PGD(0.1, 2))}, r"x.*\[0, 1\]"),
        ({"x": X2 - 1, "training": Training(universal=UniversalTraining(0.1, 2))}, r"x.*\[0, 1\]"),
        ({"model": [[1.0]]}, "model"), ({"model": nn.Flatten()}, "model.*gradient"),
        ({"model": nn.Sequential(nn.Unflatten(1, (2, 2)), nn.Linear(2, 2))}, "model.*logits"),
        ({"seed": -1}, "seed"), ({"seed": 0.5}, "seed"),
        ({"device": "nonsense"}, "device"), ({"device": None}, "device"),
        ({"training": Training(validation=0.99)}, "validation"),
        ({"model": nn.Sequential(nn.Linear(4, 3)), "training": Training(penalties=(("l1", 0.1),))}, "module.*head"),
    ],
)  # fmt: skip
def test_bad_arguments_are_refused_by_name(arguments: dict[str, Any], word: str) -> None:
    given: dict[str, Any] = {
        "model": _net(4, 5, 3), "x": X2, "y": Y2, "training": Training(epochs=1), "seed": 0, **arguments,
    }  # fmt: skip
    model, x, y, how = (given.pop(name) for name in ("model", "x", "y", "training"))
    with pytest.raises(InputError, match=word):
        train(model, x, y, how, **given)


def test_unperturbed_samples_may_leave_the_box() -> None:
    assert train(_net(4, 5, 3), 3 * X2 - 1, Y2, Training(epochs=1), seed=0).steps == 1


def test_what_cannot_be_done_is_refused_before_anything_moves() -> None:
    pair = relu_network((4, 3, 2), rank=1, generator=_generator())
    before = copy.deepcopy(pair)
    with pytest.raises(UnsupportedLayerError, match=r"2 nn\.Linear"):
        train(pair, X2, Y2, Training(penalties=(("nuclear", 0.1),)), seed=0)
    frozen = _net(4, 5, 3)
    frozen[0].requires_grad_(False)
    for options, word in (({"penalties": (("l1", 0.1),)}, "penalties"), ({"frobenius": True}, "frobenius")):
        with pytest.raises(InputError, match=word):
            train(frozen, X2, Y2, Training(**options), seed=0)  # type: ignore[arg-type]
    assert _same(pair, before) and _same(frozen, _net(4, 5, 3))
    with pytest.raises(InputError, match="gradient"):
        train(_net(4, 5, 3).requires_grad_(False), X2, Y2, Training(), seed=0)


def test_models_without_input_gradients_are_refused_by_adversaries() -> None:
    class Detached(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            return super().forward(x.detach())

    for options in ({"adversarial": PGD(0.1, 2)}, {"universal": UniversalTraining(0.1, 2)}):
        with pytest.raises(InputError, match=r"model.*detach"):
            train(Detached(nn.Linear(4, 3)), X2, Y2, Training(**options), seed=0)  # type: ignore[arg-type]


def test_batch_norm_on_one_sample_is_refused() -> None:
    x, y, _, _ = _digits()
    with pytest.raises(InputError, match=r"batch_size.*one sample"):
        train(_noisy_net(), x[:65], y[:65], Training(epochs=1), seed=0)
    train(_noisy_net(), x[:66], y[:66], Training(epochs=1), seed=0)


@pytest.mark.parametrize(
    "options",
    [
        {}, {"frobenius": True}, {"penalties": (("nuclear", 0.01),)}, {"penalties": (("row-sparsity", 0.01),)},
        {"adversarial": PGD(0.1, 2)}, {"validation": 0.2, "patience": 2},
    ],
)  # fmt: skip
def test_divergence_is_an_error_that_names_the_rate(options: dict[str, Any]) -> None:
    x, y, _, _ = _digits()
    with pytest.raises(CertboundError, match=r"diverged.*(epoch 1|step [12]\)).*lr=1e\+25") as raised:
        train(_net(), x[:200], y[:200], Training(epochs=3, lr=1e25, **options), seed=0)
    assert not isinstance(raised.value, InputError)


def test_divergence_in_the_last_step_is_found() -> None:
    x, y, _, _ = _digits()
    with pytest.raises(CertboundError, match=r"diverged.*last step"):
        train(_net(), x[:64], y[:64], Training(epochs=1, lr=1e38, max_steps=1), seed=0)


def test_configurations_are_values() -> None:
    a = Training(penalties=[["l1", 1]], adversarial=PGD(1, "inf"))  # type: ignore[arg-type]
    b = Training(penalties=(("l1", 1.0),), adversarial=PGD(1.0, math.inf))
    assert a == b and hash(a) == hash(b)
    assert json.loads(json.dumps(a.to_dict()))["adversarial"] == {
        "delta": 1.0, "norm": "inf", "steps": 7, "step_size": 0.25, "fraction": 0.5,
    }  # fmt: skip
    assert set(PROXIMAL_STEPS) < set(PENALTIES)
    assert History(1, 1, (0.5,), (), 1.0, 0.1, False).to_dict()["losses"] == [0.5]
