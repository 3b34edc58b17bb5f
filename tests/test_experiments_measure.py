"""What is measured of a model, against values known by hand, torch's autograd and the other side of the ladder."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from certbound.compress.factorised import linear_groups, relu_network
from certbound.errors import InputError, LadderError
from certbound.io.torch_module import from_module
from certbound.network import Network
from certbound.robustness import network_margins
from experiments import measure as measuring
from experiments.cell import run_config, task, trained, transformed
from experiments.checks import square
from experiments.config import INF, Config, Measure, Training, Transfer, Transform
from experiments.measure import Model, encode, input_gradients, measure, normalised
from experiments.studies.common import short_training

FAST = Measure(n_attack=40, n_bounds=10, steps=10, methods=("printed", "sharp", "product", "CROWN"))
SMALL = Config(hidden=(12, 12), training=Training(epochs=3), measure=FAST)


@pytest.fixture(scope="module")
def model():
    images = task(SMALL, 0, None)
    module, _ = trained(SMALL, images, 0, "cpu", None)
    return Model(module, from_module(module), images, 0, "cpu")



@pytest.fixture
def samples(model):
    return samples_of(model)


def samples_of(model):
    return model.images.x_test[:30].astype(np.float64), model.images.y_test[:30]


def test_input_gradients_are_autograds(model, samples):
    x, y = samples
    points = torch.tensor(x, requires_grad=True)
    loss = torch.nn.functional.cross_entropy(model.module.double()(points), torch.tensor(y), reduction="sum")
    (expected,) = torch.autograd.grad(loss, points)
    model.module.float()
    np.testing.assert_allclose(input_gradients(model.network, x, y), expected.numpy(), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("label", [0, 1])
def test_input_gradient_of_one_logit_by_hand(label):
    """f(x) = 2 max(3x, 0): the logistic loss's slope at x = 0.1 is ∓6 σ(∓0.6)."""
    net = Network.from_weights([[[3.0]], [[2.0]]])
    sign = 2 * label - 1
    expected = -sign * 6.0 / (1.0 + math.exp(sign * 0.6))
    found = input_gradients(net, np.array([[0.1]]), np.array([label]))
    assert found[0, 0] == pytest.approx(expected, rel=1e-12)


def test_encode_is_what_the_head_reads(model, samples):
    x, _ = samples
    with torch.no_grad():
        z = model.module[:-1](torch.tensor(x, dtype=torch.float32)).numpy()
    np.testing.assert_allclose(encode(model.network, x), z, rtol=1e-4, atol=1e-5)


def test_normalised_logits_have_margins_of_mean_size_one_and_the_same_classes(model, samples):
    x, y = samples
    scaled = normalised(model.network, x, y)
    before, after = network_margins(model.network, x, y), network_margins(scaled, x, y)
    assert np.mean(np.abs(after.min(axis=1))) == pytest.approx(1.0)
    assert np.array_equal(before > 0, after > 0)


def test_normalising_a_network_without_margins_leaves_it():
    net = Network.from_weights([np.zeros((2, 2)), np.zeros((2, 2))])
    assert normalised(net, np.zeros((1, 2)), np.array([0])) is net


def test_numbers_stand_on_their_sides(model):
    numbers, details = measure(model, FAST)
    assert details == {}
    assert all(v is None or not math.isnan(v) for v in numbers.values())
    for norm in ("2", "inf"):
        assert numbers[f"ra_{norm}"] <= numbers["sa"] + 0.2  # of other samples: 40 of 360
        assert 0 <= numbers[f"attack_{norm}"] <= numbers[f"bound_{norm}/CROWN"]
        assert numbers[f"attack_{norm}"] <= numbers[f"bound_{norm}/sharp"] <= numbers[f"bound_{norm}/printed"]
        assert numbers[f"certified_{norm}/CROWN"] <= 1.0
        curve = [numbers[f"ra_{norm}@{d:g}"] for d in measuring.radii(FAST, 2.0 if norm == "2" else INF)]
        assert curve == sorted(curve, reverse=True)
        assert numbers[f"ra_{norm}"] == numbers[f"ra_{norm}@{measuring.headline(FAST, 2.0 if norm == '2' else INF):g}"]
    assert numbers["gap_2"] == numbers["gap_2@0.5"]
    assert 0 < numbers["attack_energy"] <= 1 and numbers["relative_shift"] > 0
    assert numbers["parameters"] == 64 * 12 + 12 * 12 + 12 * 10


def test_larger_radii_are_never_more_robust_even_if_the_attack_is_weak(model, monkeypatch):
    """A sample that fell at a small radius counts as fallen at a larger one, whatever the attack finds there."""
    real = measuring.attack

    def lazy(network, x, y, *, delta, **options):
        return real(network, x, y, delta=delta if delta == 0.25 else 1e-9, **options)

    monkeypatch.setattr(measuring, "attack", lazy)
    numbers, _ = measure(model, replace(FAST, methods=()))
    assert numbers["ra_2@1"] == numbers["ra_2@0.25"] < 1.0


def test_structure_of_a_known_encoder():
    """diag(3, 1, 0, 0): tail of k = 1 is 1/4, σ₁/‖W‖_F = 3/√10, exp of the entropy of (3/4, 1/4)."""
    w = np.diag([3.0, 1.0, 0.0, 0.0])
    numbers = measuring._structure(Network.from_weights([w, np.ones((2, 4))]))
    assert numbers["compressibility_spectral"] == 1 - 2 / 4
    assert numbers["epsilon_spectral"] == 0.25
    assert numbers["beta_spectral"] == pytest.approx(1 - 1 / 3)
    assert numbers["structure_2"] == pytest.approx(3 / math.sqrt(10))
    assert numbers["structure_inf"] == pytest.approx(3 / (2 * math.sqrt(10)))
    assert numbers["stable_rank"] == pytest.approx(10 / 9)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert numbers["effective_rank"] == pytest.approx(math.exp(entropy))
    assert numbers["spectral_product"] == numbers["inf_product"] == pytest.approx(3.0)
    assert numbers["frobenius_product"] == pytest.approx(math.sqrt(10))
    assert (numbers["ranks"], numbers["nonzero_rows"], numbers["nonzero"]) == (2, 2, 2 + 8)
    assert numbers["alignment_2"] is None  # one encoder layer has no neighbour


def test_alignment_of_a_known_pair():
    """W₁ = (1, −1)ᵀ, both rows of W₂ (1, 1)/√2: one neuron at a time, so half of the product of norms."""
    layers = [np.array([[1.0], [-1.0]]), np.array([[1.0, 1.0], [1.0, 1.0]]) / math.sqrt(2)]
    numbers = measuring._structure(Network.from_weights([*layers, np.ones((2, 2))]))
    assert numbers["alignment_2"] == pytest.approx(0.5, abs=5e-3)
    assert numbers["alignment_inf"] == pytest.approx(0.5)


def test_a_dead_encoder_is_measured():
    numbers = measuring._structure(Network.from_weights([np.zeros((3, 4)), np.zeros((3, 3)), np.ones((2, 3))]))
    assert numbers["spectral_product"] == 0.0
    assert all(v is None or math.isfinite(v) for v in numbers.values())


def test_scaling_the_head_changes_the_gap_but_not_the_normalised_one(model):
    last = model.module[-1]
    loud = torch.nn.Sequential(*model.module[:-1], torch.nn.Linear(12, 10)).requires_grad_(False)
    loud[-1].weight.copy_(3.0 * last.weight)
    loud[-1].bias.copy_(3.0 * last.bias)
    settings = replace(FAST, methods=(), deltas_2=(0.1,), headline_2=0.1, deltas_inf=(0.01,), headline_inf=0.01)
    quiet, _ = measure(model, settings)
    found, _ = measure(replace(model, module=loud, network=from_module(loud)), settings)
    assert found["gap_2"] > 1.5 * quiet["gap_2"]
    assert found["gap_normalised_2"] == pytest.approx(quiet["gap_normalised_2"], rel=0.05)


def test_energy_of_attacks_on_a_network_that_reads_one_direction():
    u = np.array([0.6, 0.8])
    net = Network.from_weights([np.array([u, -u]), np.array([[1.0, 0.0], [0.0, 1.0]])])
    images = task(replace(SMALL, classes=(0, 1)), 0, None)
    images = replace(images, x_train=images.x_train[:, :2].copy(), x_test=np.full((20, 2), 0.5, np.float32),
                     y_test=images.y_test[:20], shape=(1, 1, 2))  # fmt: skip
    numbers, details = measure(Model(None, net, images, 0, "cpu"), replace(FAST, methods=(), pictures=True))
    assert numbers["attack_energy"] == pytest.approx(1.0, abs=1e-6)
    assert details["energy"][0] == pytest.approx(1.0, abs=1e-6)
    assert len(details["pca"]["clean"]) == len(details["pca"]["adversarial"]) == 20


def test_large_weights_do_not_hide_universal_perturbations(model):
    """Logits of 10^4 saturate the cross-entropy in float32: an attack that follows its gradient finds nothing."""
    loud = torch.nn.Sequential(*model.module[:-1], torch.nn.Linear(12, 10)).requires_grad_(False)
    loud[-1].weight.copy_(1e4 * model.module[-1].weight)
    loud[-1].bias.copy_(1e4 * model.module[-1].bias)
    settings = replace(FAST, steps=30)
    quiet = measuring._universal(model, INF, settings)
    assert quiet > 0.2
    found = measuring._universal(replace(model, module=loud, network=from_module(loud)), INF, settings)
    assert found == pytest.approx(quiet, abs=0.02)


def test_square_stays_in_its_ball(model, samples):
    x, y = samples
    for norm, delta in ((INF, 0.05), (2.0, 0.5)):
        points = square(model, x, y, norm, delta, replace(FAST, steps=20))
        assert points.min() >= 0.0 and points.max() <= 1.0
        size = np.abs(points - x).max(axis=1) if norm == INF else np.linalg.norm(points - x, axis=1)
        assert size.max() <= delta
        assert np.any(points != x)


def test_checks_run_and_find_less_than_the_attack():
    config = SMALL.measured(checks=True, steps=20, methods=())
    numbers, _ = run_config(config, 0)
    for norm in ("2", "inf"):
        assert numbers[f"ra_{norm}_square"] >= numbers[f"ra_{norm}"] - 0.05
        assert numbers[f"ra_{norm}_transfer"] >= numbers[f"ra_{norm}"] - 0.05
        assert abs(numbers[f"ra_{norm}_double_steps"] - numbers[f"ra_{norm}"]) <= 0.05


def test_a_cell_is_a_pure_function_of_configuration_and_seed():
    torch.manual_seed(5)
    first, details = run_config(SMALL.measured(universal=True), 3)
    torch.manual_seed(6)
    np.random.seed(7)  # noqa: NPY002
    again, _ = run_config(SMALL.measured(universal=True), 3)
    other, _ = run_config(SMALL.measured(universal=True), 4)
    assert first == again
    assert first != other
    assert details["data"] == task(SMALL, 3, None).digest != task(SMALL, 4, None).digest


def test_a_broken_bound_is_no_row(monkeypatch):
    """Theorem 3.1's product made too small by a factor of a thousand: the attack is above it."""
    from certbound import methods

    real = methods.head_constants
    monkeypatch.setattr(methods, "head_constants", lambda encoder, head, norm: real(encoder, head, norm) / 1000)
    with pytest.raises(LadderError):
        run_config(SMALL, 0)


def test_transfer_measures_the_downstream_task():
    config = replace(SMALL, classes=(5, 6, 7), transfer=Transfer(source=(0, 1, 2, 3), epochs=3))
    images = task(config, 0, None)
    assert images.n_classes == 3
    module, history = trained(config, images, 0, "cpu", None)
    assert module(torch.zeros(1, 64)).shape == (1, 3)
    plain = replace(config, transfer=replace(config.transfer, epochs=1))
    encoder, _ = trained(plain, images, 0, "cpu", None)
    assert torch.equal(linear_groups(module)[0][0].weight, linear_groups(encoder)[0][0].weight), "the encoder moved"
    assert history["steps"] > 0


def test_random_factors_are_orthonormal_and_not_trained():
    config = replace(SMALL, rank=4, random_factor=True)
    images = task(config, 0, None)
    short, _ = trained(config.trained(epochs=1), images, 0, "cpu", None)
    longer, _ = trained(config, images, 0, "cpu", None)
    for before, after in zip(linear_groups(short)[:-1], linear_groups(longer)[:-1], strict=True):
        inner = after[0].weight
        assert torch.equal(before[0].weight, inner)
        assert torch.allclose(inner @ inner.T, torch.eye(4), atol=1e-5)
        assert not torch.equal(before[1].weight, after[1].weight)


def test_unstructured_pruning_removes_its_share_of_every_layer(model):
    changed = transformed(model.module, Transform("unstructured", 0.5))
    assert measuring._structure(from_module(changed.eval()))["nonzero"] == (64 * 12 + 12 * 12) / 2 + 120
    assert measuring._structure(model.network)["nonzero"] == 64 * 12 + 12 * 12 + 120, "the given model was changed"


def test_transforms_that_there_are_none_are_refused(model):
    with pytest.raises(InputError, match="uniform-tows"):
        transformed(model.module, Transform("uniform-tows", 0.5))


def test_matched_rows_keep_as_many_parameters_as_epsilon_pruning(model):
    def size(kind):
        layers = from_module(transformed(model.module, Transform(kind, 0.3))).chain.encoder
        return sum(np.count_nonzero(np.abs(w).sum(axis=1)) * w.shape[1] for w in layers)

    step = 64 + 12  # of both layers one row
    wanted, found = size("epsilon-rows"), size("matched-rows")
    assert abs(wanted - found) <= step
    assert found < 12 * step


@pytest.mark.parametrize("epsilon", [0.05, 0.1, 0.3, 0.5])
def test_matched_ranks_keep_the_sum_of_ranks_of_epsilon_pruning(epsilon):
    """Also above half of the rank, where two factors have more parameters than the matrix."""
    net = relu_network((64, 64, 64, 10), generator=torch.Generator().manual_seed(0))
    net[2].weight.data[:, 8:] *= 0.1  # another spectrum than the first layer's

    def ranks(kind):
        layers = from_module(transformed(net, Transform(kind, epsilon))).chain.encoder
        return [int(np.linalg.matrix_rank(w, tol=1e-5)) for w in layers]

    wanted, found = ranks("epsilon-spectral"), ranks("matched-ranks")
    assert wanted[0] != wanted[1] and found[0] == found[1]
    assert abs(sum(wanted) - sum(found)) <= 1


def test_the_control_arm_ends_with_the_base():
    points = short_training(SMALL, (1, 2, 50))
    assert [p.level for p in points] == [1.0, 2.0, 3.0]
    assert points[-1].config == SMALL


def test_init_scale_is_held_by_frobenius_normalisation():
    config = replace(SMALL.trained(frobenius=True), init_scale=4.0)
    plain = SMALL.trained(frobenius=True)
    images = task(config, 0, None)
    norms = []
    for c in (plain, config):
        module, _ = trained(c, images, 0, "cpu", None)
        norms.append([float(g[0].weight.norm()) for g in linear_groups(module)[:-1]])
    np.testing.assert_allclose(norms[1], 4.0 * np.array(norms[0]), rtol=1e-4)


def test_models_of_one_seed_start_alike_whatever_the_training():
    first = relu_network((64, 12, 12, 10), generator=torch.Generator().manual_seed(0))
    images = task(SMALL, 0, None)
    module, _ = trained(SMALL.trained(epochs=1, lr=1e-12), images, 0, "cpu", None)
    assert torch.allclose(first[0].weight, module[0].weight)
