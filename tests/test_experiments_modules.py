"""What is measured of networks that are no chain: against chains written as modules, formulas, finite differences."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from certbound.compress.factorised import relu_network
from certbound.errors import InputError, UnsupportedLayerError
from certbound.io.torch_module import from_module
from experiments import measure as measuring
from experiments import modules
from experiments.architectures import build
from experiments.cell import _Data, _pretrained, run_config, task, trained
from experiments.checks import square
from experiments.config import INF, Architecture, Config, Measure, Training, Transfer, Transform
from experiments.measure import Model, measure
from experiments.studies.common import with_penalty

FAST = Measure(n_attack=30, n_bounds=5, steps=5, methods=(), deltas_2=(0.5,), deltas_inf=(0.05,))
CNN = Config(architecture=Architecture("cnn", 4), training=Training(epochs=2, lr=0.02), measure=FAST)
KINDS = ("cnn", "vgg", "resnet", "wide-resnet", "vit", "windowed")


def net_of(kind, seed=0):
    width = 16 if kind in ("vit", "windowed") else 4
    return build(Architecture(kind, width), (1, 8, 8), tuple(range(10)), seed, data="digits").eval()


@pytest.fixture(scope="module")
def images():
    return task(CNN, 0, None)


@pytest.fixture(scope="module")
def dense(images):
    """One ReLU chain, as a chain and as a module that takes images."""
    chain = relu_network((64, 12, 12, 10), generator=torch.Generator().manual_seed(0))
    for layer in chain:
        if isinstance(layer, nn.Linear):
            layer.bias.data.uniform_(-0.2, 0.2, generator=torch.Generator().manual_seed(1))
    chain.eval().requires_grad_(False)
    as_chain = Model(chain, from_module(chain), images, 0, "cpu")
    as_module = Model(nn.Sequential(nn.Flatten(), *chain).eval(), None, images, 0, "cpu")
    return as_chain, as_module


def test_a_chain_measured_as_a_module_has_the_numbers_of_the_chain(dense):
    """Only float32 margins of whole sets, and singular values from Gram matrices, differ in the last digits."""
    settings = replace(FAST, pictures=True, steps=20)
    (expected, drawn), (found, also) = (measure(model, settings) for model in dense)
    undefined = {"attack_energy", "alignment_2", "alignment_inf"}
    assert set(found) == set(expected)
    for name, value in expected.items():
        if name in undefined:
            assert found[name] is None
        else:
            assert found[name] == pytest.approx(value, rel=2e-5, abs=1e-7), name
    np.testing.assert_allclose(np.abs(also["pca"]["clean"]), np.abs(drawn["pca"]["clean"]), atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_input_gradients_are_finite_differences(kind):
    """∂loss/∂x of three pixels, by central differences in float64; digits have kinks: ReLUs at 0 on black pixels."""
    net, x, y = net_of(kind), np.random.default_rng(0).uniform(size=(3, 1, 8, 8)), np.array([0, 3, 9])
    found = modules.input_gradients(net, x, y).reshape(x.shape)
    step = 1e-5

    def loss(points):
        return np.logaddexp.reduce(-np.where(np.isinf(m := modules.margins(net, points, y)), 0.0, m), axis=1)

    for i, j in ((2, 3), (4, 4), (6, 2)):
        moved = np.zeros_like(x)
        moved[:, 0, i, j] = step
        slope = (loss(x + moved) - loss(x - moved)) / (2 * step)
        np.testing.assert_allclose(found[:, 0, i, j], slope, rtol=1e-4, atol=1e-7)


def test_margins_by_hand_in_parts():
    """Logits (x, 2 − x): the margin of label 0 is 2x − 2. More samples than one forward pass takes."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(1, 2))
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        net[1].bias.copy_(torch.tensor([0.0, 2.0]))
    x = np.linspace(0.0, 3.0, modules.BATCH + 7).reshape(-1, 1, 1, 1)
    y = (np.arange(len(x)) % 2).astype(np.int64)
    found = modules.margins(net, x, y)
    sign = np.where(y == 0, 1.0, -1.0)
    np.testing.assert_allclose(found[np.arange(len(y)), 1 - y], sign * (2 * x.ravel() - 2), atol=1e-12)
    assert np.isposinf(found[np.arange(len(y)), y]).all()
    assert net[1].weight.dtype == torch.float32, "the given module was changed"


def test_encode_is_what_the_head_reads(images):
    net, x = net_of("resnet"), images.as_images()[1][:5].astype(np.float64)
    z = modules.encode(net, x)
    assert z.shape == (5, 16)
    head = net.head.double()
    with torch.no_grad():
        np.testing.assert_allclose(head(torch.tensor(z)).numpy(), net.double()(torch.tensor(x)).numpy(), atol=1e-10)


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (1, 4), (3, 3)])
def test_singular_values_are_those_of_the_svd(shape):
    w = np.random.default_rng(0).standard_normal(shape) * 1e160
    np.testing.assert_allclose(modules.singular_values(w), np.linalg.svd(w, compute_uv=False), rtol=1e-7)
    assert modules.singular_values(np.zeros(shape)).tolist() == [0.0] * min(shape)


def test_folded_rows_are_filters_times_gamma_over_the_deviation():
    net = net_of("resnet")
    bn = net.blocks[0].path[1]
    with torch.no_grad():
        bn.weight.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
        bn.running_var.copy_(torch.tensor([4.0, 1.0, 0.25, 9.0]))
    plain, folded = modules.encoder_matrices(net), modules.folded_matrices(net)
    assert folded is not None and [w.shape for w in folded] == [w.shape for w in plain]
    factor = np.array([1.0, 2.0, 3.0, 4.0]) / np.sqrt(np.array([4.0, 1.0, 0.25, 9.0]) + bn.eps)
    np.testing.assert_allclose(folded[0], plain[0] * factor[:, None], rtol=1e-6)
    assert modules.folded_matrices(net_of("vgg")) is None


def test_batch_norm_that_undoes_a_small_filter_shows_in_the_folded_numbers():
    """Filters of sizes 1 and 10⁻³ whose outputs BatchNorm brings to one size: compressible by rows, not when folded."""
    layers = nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 1, bias=False), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2)
    net = nn.Sequential(*layers)
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1e-3]])[..., None, None])
        net[2].running_var.copy_(torch.tensor([1.0, 1e-6]))
        net[2].eps = 0.0
    numbers = measuring._structure_of_module(net.eval())
    assert numbers["compressibility_rows"] == 0.5
    assert numbers["folded_compressibility_rows"] == 0.0
    assert numbers["alignment_2"] is None and numbers["alignment_inf"] is None


def test_structure_counts_all_weights_and_means_are_of_those_compressed():
    net = net_of("cnn")  # 4 channels, 8, hidden 16
    numbers = measuring._structure_of_module(net)
    assert numbers["parameters"] == 9 * 4 + 9 * 4 * 8 + 8 * 16 * 16 + 16 * 10
    assert numbers["nonzero_rows"] == 8 + 16
    net[2].weight.data[0] = 0.0
    assert measuring._structure_of_module(net)["nonzero"] == numbers["parameters"] - 36


def test_attention_is_measured_with_its_three_projections():
    net = nn.Sequential(nn.Conv2d(1, 4, 1), nn.MultiheadAttention(4, 2), nn.Linear(4, 2))
    shapes = [w.shape for w in modules.encoder_matrices(net)]
    assert shapes == [(12, 4), (4, 4)]  # in_proj, out_proj


# ---------------------------------------------------------------- cells


@pytest.mark.parametrize("kind", KINDS)
def test_a_cell_of_every_small_network(kind):
    config = replace(CNN, architecture=Architecture(kind, 16 if kind in ("vit", "windowed") else 4))
    config = config.trained(epochs=1, max_steps=10, penalties=(("row-sparsity", 0.1),))
    numbers, details = run_config(config, 0)
    assert all(v is None or math.isfinite(v) for v in numbers.values())
    for norm in ("2", "inf"):
        assert numbers[f"ra_{norm}"] <= 1 and numbers[f"gap_{norm}"] >= 0
    assert numbers["steps"] == 10
    assert ("folded_compressibility_rows" in numbers) == (kind in ("resnet", "wide-resnet"))
    assert details["data"] == task(config, 0, None).digest


def test_a_cell_is_a_pure_function_of_configuration_and_seed():
    torch.manual_seed(5)
    first, _ = run_config(CNN.measured(checks=True), 3)
    torch.manual_seed(6)
    again, _ = run_config(CNN.measured(checks=True), 3)
    other, _ = run_config(CNN, 4)
    assert first == again
    assert {name: first[name] for name in other} != other
    for norm in ("2", "inf"):
        for name in ("square", "transfer", "double_steps"):
            assert 0 <= first[f"ra_{norm}_{name}"] <= 1


def test_square_stays_in_its_ball_of_images(images):
    model = Model(net_of("cnn"), None, images, 0, "cpu")
    x = images.as_images()[1][:10].astype(np.float64)
    with torch.no_grad():  # right at first: what is wrong already is not attacked
        y = model.module(torch.tensor(x, dtype=torch.float32)).argmax(1).numpy()
    for norm, delta in ((INF, 0.05), (2.0, 0.5)):
        points = square(model, x, y, norm, delta, replace(FAST, steps=20))
        assert points.shape == x.shape and np.any(points != x)
        change = (points - x).reshape(len(x), -1)
        size = np.abs(change).max(axis=1) if norm == INF else np.linalg.norm(change, axis=1)
        assert size.max() <= delta and points.min() >= 0 and points.max() <= 1


def test_row_sparsity_makes_filters_sparse():
    sparse = with_penalty(CNN.trained(epochs=4), "row-sparsity", 3.0)
    plain, _ = run_config(with_penalty(CNN.trained(epochs=4), "row-sparsity", 0.0), 0)
    found, _ = run_config(sparse, 0)
    assert found["epsilon_rows"] < plain["epsilon_rows"] - 0.1


def test_fine_tuning_starts_from_the_backbone(images):
    """A step size of nearly 0 leaves the backbone as it was, whatever the penalty; without a backbone it is another."""
    config = replace(CNN, backbone=Training(epochs=2, lr=0.02)).trained(epochs=1, lr=1e-12)
    start, _ = trained(replace(CNN, training=Training(epochs=2, lr=0.02)), images, 0, "cpu", None)
    for penalties in ((), (("row-sparsity", 1.0),)):
        found, history = trained(config.trained(penalties=penalties), images, 0, "cpu", None)
        assert all(torch.allclose(a, b) for a, b in zip(start.parameters(), found.parameters(), strict=True))
    assert history["steps"] == 23  # of fine-tuning alone
    fresh, _ = trained(replace(config, backbone=None), images, 0, "cpu", None)
    assert not torch.allclose(fresh[0].weight, start[0].weight)


def test_the_backbone_is_trained_once_and_never_changed(images):
    config = replace(CNN, backbone=Training(epochs=1, max_steps=3)).trained(max_steps=5)
    plain = replace(config, training=config.backbone, backbone=None, measure=Measure())
    before = {k: v.clone() for k, v in _pretrained(plain, _Data(images.digest, images), 0, "cpu", None).items()}
    first, _ = trained(config, images, 0, "cpu", None)
    hits = _pretrained.cache_info().hits
    again, _ = trained(config.trained(lr=0.02), images, 0, "cpu", None)
    assert _pretrained.cache_info().hits > hits
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    after = _pretrained(plain, _Data(images.digest, images), 0, "cpu", None)
    assert all(torch.equal(before[k], after[k]) for k in before)
    other = _pretrained(plain, _Data("of other data", images.first(300, None)), 0, "cpu", None)
    assert not torch.equal(other["0.weight"], before["0.weight"])


def test_a_fixed_head_is_not_trained(images):
    config = replace(CNN, backbone=Training(epochs=1, max_steps=3), fixed_head=True)
    plain = replace(config, fixed_head=False, training=config.backbone, backbone=None)
    start, _ = trained(plain, images, 0, "cpu", None)
    found, _ = trained(config, images, 0, "cpu", None)
    assert torch.equal(found[-1].weight, start[-1].weight) and torch.equal(found[-1].bias, start[-1].bias)
    assert not torch.equal(found[2].weight, start[2].weight)
    moved, _ = trained(replace(config, fixed_head=False), images, 0, "cpu", None)
    assert not torch.equal(moved[-1].weight, start[-1].weight)


def test_pruning_and_transfer_of_a_convolutional_network():
    pruned, _ = run_config(replace(CNN, transform=Transform("unstructured", 0.5)), 0)
    compressed = 9 * 4 * 8 + 8 * 16 * 16
    assert pruned["nonzero"] == pruned["parameters"] - compressed / 2
    config = replace(CNN, classes=(5, 6, 7), transfer=Transfer(source=(0, 1, 2), epochs=1))
    numbers, _ = run_config(config, 0)
    assert numbers["steps"] > 0 and 0 <= numbers["sa"] <= 1


def test_universal_perturbations_of_a_convolutional_network_are_refused():
    with pytest.raises(InputError, match="universal"):
        run_config(CNN.measured(universal=True).trained(max_steps=1), 0)


def test_a_network_that_compare_cannot_read_has_no_bounds_and_says_so(images, monkeypatch, caplog):
    def refuse(*args, **kwargs):
        raise UnsupportedLayerError("2", got="a Cosine", needed="another layer", fix="none")

    monkeypatch.setattr(measuring, "compare_curve", refuse)
    settings = replace(FAST, methods=("product", "CROWN"))
    numbers = measuring._bounds(Model(net_of("cnn"), None, images, 0, "cpu"), INF, settings)
    assert numbers == {"bound_inf/product": None, "bound_inf/CROWN": None}
    assert "Cosine" in caplog.text
    chain = relu_network((64, 4, 10), generator=torch.Generator().manual_seed(0)).eval()
    with pytest.raises(UnsupportedLayerError):  # of a dense network this is a fault
        measuring._bounds(Model(chain, from_module(chain), images, 0, "cpu"), INF, settings)


def test_test_samples_are_the_first_of_the_shuffled_ones(images):
    few = task(replace(CNN, n_train=50, n_test=20), 0, None)
    assert (len(few.y_train), len(few.y_test)) == (50, 20)
    assert np.array_equal(few.x_test, images.x_test[:20])
