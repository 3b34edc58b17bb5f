"""compare, attacks, radii and gates on graphs: lower bounds below upper ones, and reasons where there is none."""

from __future__ import annotations

import json
import math

import graph_models as models
import numpy as np
import pytest
import torch
from graph_models import RELU, Draft, conv, head, linear
from torch import nn

from certbound import ops
from certbound.activations import Activation
from certbound.attacks.apgd import attack
from certbound.attacks.universal import universal_perturbation
from certbound.ci_gate import Baseline, Limits, gate
from certbound.comparison import compare, compare_curve
from certbound.crown import graph_problem
from certbound.crown.margins import margins
from certbound.errors import InputError, UnsupportedLayerError
from certbound.graph import Graph, Node, as_graph
from certbound.graph_margins import (
    graph_margins,
    head_constants,
    quotient_constants,
    split_head,
)
from certbound.io.graph_to_network import dense_network
from certbound.lipschitz.graph_margin_constants import product_constants
from certbound.lipschitz.layer_product import layer_product
from certbound.lipschitz.sdp import lipschitz_sdp
from certbound.losses import margins_of
from certbound.methods import METHODS
from certbound.model_comparison import certified_radii, compare_models, difference, output_change_bounds
from certbound.network import Activation as Smooth
from certbound.network import Affine, Network, Residual
from certbound.robustness import Samples, gradient_constants, network_margins
from certbound.theorems.corollary33 import check_corollary33, classifier
from certbound.types import Quantity, Sense, Status

NORMS = [2.0, math.inf]
POOL = models.pooled(ops.MaxPool((3, 3), (2, 2), ((1, 1), (1, 1))))
VIT = models.attention()
SWIN = models.attention(folded=True)
THEOREMS = ("printed", "derived", "sharp", "cover", "patterns")


def problem(graph, n=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.random((n, *graph.input_shape)), rng.integers(0, max(graph.n_outputs, 2), n)


def radius(norm):
    return 0.04 if math.isinf(norm) else 0.15


def smooth_network(seed=0):
    rng = np.random.default_rng(seed)
    inner, outer = 0.3 * rng.standard_normal((2, 5, 5))
    block = Residual((Affine(inner), Smooth("tanh"), Affine(outer)))
    return Network((Affine(rng.standard_normal((5, 4)), rng.random(5)), block, Affine(rng.standard_normal((3, 5)))))


def check_table(comparison):
    """Every lower bound of a quantity is at most every upper one; failures say why; nothing failed."""
    for quantity in (Quantity.LOSS_GAP, Quantity.ROBUST_ACCURACY, Quantity.LIPSCHITZ):
        rows = [r for r in comparison.rows if r.quantity is quantity and r.status is Status.OK]
        low = [r.value for r in rows if r.sense is Sense.LOWER]
        high = [r.value for r in rows if r.sense is Sense.UPPER]
        assert not low or not high or max(low) <= min(high) + 1e-9
    for row in comparison.rows:
        assert row.status in (Status.OK, Status.UNSUPPORTED, Status.TOO_LARGE), (row.method, row.note)
        assert (row.status is Status.OK) or (row.note and row.bound.vacuous)
    assert all(link.holds for link in comparison.ladder)
    json.dumps(comparison.to_dict(), allow_nan=False)


def statuses(comparison):
    return {r.method: r.status for r in comparison.rows}


# ---------------------------------------------------------------- compare


@pytest.mark.parametrize("norm", NORMS)
def test_a_small_cnn_is_compared_as_its_dense_network(norm):
    graph = models.cnn()
    x, y = problem(graph)
    methods = ["apgd-ce", "gradient", "printed", "product", "cover", "recursion", "IBP", "CROWN"]
    of_graph, of_network = (
        compare(net, x, y, delta=radius(norm), norm=norm, methods=methods) for net in (graph, models.dense_cnn(graph))
    )
    assert set(statuses(of_graph).values()) == {Status.OK}
    for ours, theirs in zip(of_graph.rows, of_network.rows, strict=True):
        assert ours.value == pytest.approx(theirs.value, rel=1e-9), ours.method
    check_table(of_graph)
    assert of_graph.subject == dense_network(graph).digest
    assert of_graph.attribution("printed").total == pytest.approx(of_network.attribution("printed").total, rel=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_a_max_pool_stays_a_graph(norm):
    x, y = problem(POOL)
    comparison = compare(POOL, x, y, delta=radius(norm), norm=norm)
    check_table(comparison)
    found = statuses(comparison)
    for name in ("apgd-ce", "gradient", "product", "IBP", "CROWN"):
        assert found[name] is Status.OK, name
    for name in (*THEOREMS, "recursion", "sdp"):
        assert found[name] is Status.UNSUPPORTED, name
    assert comparison.subject == POOL.digest
    assert comparison.row("CROWN").value <= comparison.row("product").value
    assert 0 < comparison.row("apgd-ce").value
    assert "chains of fully connected layers" in comparison.row("printed").note
    assert "MaxPool" in comparison.row("sdp").note
    assert "unsupported (printed, derived, sharp, cover): Theorems 3.1 and 3.2" in str(comparison)
    pairs = {link.name for link in comparison.ladder}
    assert "gradient <= product (Lipschitz constants of margins)" in pairs
    assert "apgd-ce <= CROWN (loss gap of each sample)" in pairs


@pytest.mark.parametrize("graph", [VIT, SWIN], ids=["vit", "folded"])
def test_attention_keeps_attacks_and_gradients(graph):
    x, y = problem(graph)
    (comparison,) = compare_curve(graph, x, y, deltas=[0.05], norm=math.inf, methods=list(METHODS))
    check_table(comparison)
    found = statuses(comparison)
    assert {name for name, status in found.items() if status is Status.OK} == {"apgd-ce", "apgd-dlr", "gradient"}
    assert found["apgd-t"] is Status.UNSUPPORTED  # three classes
    assert "(MatMul): got dot-product attention" in comparison.row("product").note
    assert "norm1 (LayerNorm)" in comparison.row("CROWN").note
    assert comparison.row("gradient", Quantity.LIPSCHITZ).value > 0


@pytest.mark.parametrize("norm", NORMS)
def test_residual_and_smooth_networks(norm):
    for network in (dense_network(models.resnet(width=2, side=4)), smooth_network()):
        x, y = np.random.default_rng(0).random((3, network.n_inputs)), np.array([0, 1, 2])
        comparison = compare(network, x, y, delta=radius(norm), norm=norm, effort=0.2)
        check_table(comparison)
        found = statuses(comparison)
        assert all(found[name] is Status.UNSUPPORTED for name in THEOREMS)
        assert found["product"] is found["gradient"] is found["recursion"] is Status.OK
        smooth = any(isinstance(v, Residual) and "tanh" in str(v) for v in network.layers)
        assert found["CROWN"] is found["IBP"] is (Status.UNSUPPORTED if smooth else Status.OK)
        order = ("gradient", "sdp", "recursion", "product")
        values = [comparison.row(name, Quantity.LIPSCHITZ).value for name in order]
        assert values == sorted(values)
        with pytest.raises(UnsupportedLayerError, match="chain of fully connected"):
            comparison.attribution("product")


def test_how_many_margins_of_a_residual_network_are_solved_is_a_count(monkeypatch):
    network = dense_network(models.resnet(width=2, side=4))
    x, y = np.random.default_rng(0).random((3, network.n_inputs)), np.array([0, 1, 2])
    solved = []

    def counted(*arguments, method, **options):
        solved.append((options["outputs"], method))
        return lipschitz_sdp(*arguments, method=method, **options)

    monkeypatch.setattr("certbound.lipschitz.sdp.lipschitz_sdp", counted)
    found = {}
    for effort in (0.0, 1e6):
        solved.clear()
        comparison = compare(network, x, y, delta=0.01, norm=2, methods=["recursion", "sdp"], effort=effort)
        assert set(statuses(comparison).values()) == {Status.OK}
        assert [m for _, m in solved].count("closed-form") == 2 * 3  # both rows
        found[effort] = [outputs for outputs, method in solved if method == "barrier"]
    closed = comparison.constants["recursion"]
    largest = max(((j, i) for i in range(3) for j in range(i)), key=lambda pair: closed[pair])
    assert found[0.0] == [largest]
    assert sorted(found[1e6]) == [(0, 1), (0, 2), (1, 2)]
    assert np.all(comparison.constants["sdp"] <= closed)


def test_margins_that_would_take_hours_are_rows(monkeypatch):
    monkeypatch.setattr("certbound.methods.LIPSDP_WORK", 1e3)
    network = dense_network(models.resnet(width=2, side=4))
    x, y = np.random.default_rng(0).random((3, network.n_inputs)), np.array([0, 1, 2])
    comparison = compare(network, x, y, delta=0.01, norm=2, methods=["recursion", "sdp", "product"])
    assert statuses(comparison) == {
        "recursion": Status.TOO_LARGE, "sdp": Status.TOO_LARGE, "product": Status.OK,
    }  # fmt: skip
    assert "for each of 3 margins" in comparison.row("sdp").note


def test_crown_that_would_take_too_long_is_a_row(monkeypatch):
    monkeypatch.setattr(graph_problem, "WORK_LIMIT", 1e3)
    x, y = problem(POOL)
    comparison = compare(POOL, x, y, delta=0.04, norm="inf", methods=["apgd-ce", "IBP", "CROWN"])
    assert statuses(comparison)["CROWN"] is Status.TOO_LARGE
    assert "unstable neurons" in comparison.row("CROWN").note
    assert statuses(comparison)["IBP"] is Status.OK


class Net(nn.Module):
    """What only torch.export reads: a convolution, a max-pool, a sum."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.conv1, self.conv2 = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.head = nn.Linear(27, 3)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3, generator=generator)

    def forward(self, x):
        h = torch.relu(self.conv1(x))
        h = torch.nn.functional.max_pool2d(h + self.conv2(h), 2)
        return self.head(h.flatten(1))


def test_a_module_that_only_the_graph_importer_reads():
    model = Net().eval()
    x, y = np.random.default_rng(0).random((3, 1, 6, 6)), np.array([0, 1, 2])
    methods = ["apgd-ce", "gradient", "product", "IBP", "CROWN"]
    comparison = compare(model, x, y, delta=0.03, norm="inf", methods=methods)
    check_table(comparison)
    assert set(statuses(comparison).values()) == {Status.OK}
    graph = as_graph(model, input_shape=(1, 6, 6))
    assert comparison.subject == graph.digest
    found = attack(model, x, y, delta=0.03, norm="inf", steps=10, device="cpu")
    assert found.subject == ""  # importing it would take longer than the attack
    assert found.certificate is None
    assert margins(model, x, y, delta=0.03, norm="inf").subject == graph.digest


def test_classifier_reads_what_there_is():
    x = np.zeros((1, 2, 6, 6))
    assert isinstance(classifier(POOL, x), Graph)
    assert isinstance(classifier(models.cnn(), x), Network)
    d = Draft((4,))
    d.add(linear(np.random.default_rng(0), 3, 4))
    d.add(RELU)
    with pytest.raises(InputError, match="ends in a ReLU"):
        classifier(d.graph, np.zeros((1, 4)))
    d = Draft((2, 4, 4))
    d.add(ops.MaxPool((2, 2), (2, 2), ()))
    d.add(conv(np.random.default_rng(0), 3, 2))
    d.add(RELU)
    with pytest.raises(InputError, match="ends in a ReLU"):
        classifier(d.graph, np.zeros((1, 2, 4, 4)))
    with pytest.raises(UnsupportedLayerError, match=r"Corollary 3\.3.*proved for those"):
        check_corollary33(POOL, np.zeros((1, *POOL.input_shape)), [0], delta=0.1, norm=2)


# ---------------------------------------------------------------- margins and constants


def test_margins_of_a_graph():
    for graph in (POOL, VIT, models.cnn(classes=1)):
        x, y = problem(graph, n=5)
        found = network_margins(graph, x.reshape(5, -1), y)
        logits = graph.forward(x)
        logits = np.hstack([0 * logits, logits]) if logits.shape[1] == 1 else logits
        np.testing.assert_allclose(found, margins_of(logits, y), rtol=1e-12, atol=1e-12)


def test_equal_rows_tie_exactly():
    # guard: logits of equal rows come out one rounding apart, far from each other in a matrix
    rng = np.random.default_rng(0)
    d = Draft((2, 8, 8))
    d.add(ops.MaxPool((2, 2), (2, 2), ()))
    d.add(ops.Reshape((1, 32)))
    rows = rng.standard_normal((11, 32))
    rows[-1] = rows[0]
    d.add(ops.Linear(rows, np.full(11, 0.1)))
    x = rng.standard_normal((50, 128))
    logits = d.graph.forward(x)
    assert np.any(logits[:, 0] != logits[:, -1])
    assert np.all(network_margins(d.graph, x, np.zeros(50, dtype=np.int64))[:, -1] == 0.0)


def test_margins_that_overflow_are_refused():
    d = Draft((1, 2, 2))
    d.add(ops.MaxPool((2, 2), (2, 2), ()))
    d.add(ops.Reshape((1, 1)))
    d.add(ops.Linear(np.array([[1e308], [-1e308]])))
    with pytest.raises(InputError, match="overflow"):
        network_margins(d.graph, np.full((1, 4), 5.0), np.array([0]))


@pytest.mark.parametrize("norm", NORMS)
def test_constants_of_an_affine_graph_are_exact(norm):
    # f = A x + b, A a strided convolution: the margins' constants are dual norms of differences of rows
    rng = np.random.default_rng(1)
    d = Draft((2, 4, 4))
    d.add(conv(rng, 3, 2, stride=(4, 4), padding=((0, 0), (0, 0))))
    d.add(ops.Reshape((1, 3)))
    matrix, _ = models.dense(d.graph)
    exact = np.array([[np.linalg.norm(a - b, 1 if math.isinf(norm) else 2) for a in matrix] for b in matrix])
    np.testing.assert_allclose(quotient_constants(d.graph, rng.random((3, 32)), norm), exact, rtol=1e-8, atol=1e-8)
    # no linear head: the product rule takes all outputs' constant, times ‖e_j − e_y‖
    whole = np.abs(matrix).sum(axis=1).max() if math.isinf(norm) else np.linalg.norm(matrix, 2)
    length = 2.0 if math.isinf(norm) else math.sqrt(2.0)
    assert product_constants(d.graph, norm)[0, 1] == pytest.approx(length * whole, rel=1e-2)
    assert np.all(product_constants(d.graph, norm) >= exact - 1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_the_product_of_a_residual_network_is_the_layers_product(norm):
    network = smooth_network()
    expected = np.zeros((3, 3))
    for y in range(3):
        for j in range(y):
            expected[j, y] = expected[y, j] = layer_product(network, norm, (j, y)).value
    np.testing.assert_allclose(product_constants(network, norm), expected, rtol=1e-9)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("graph", [POOL, VIT, SWIN, models.resnet()], ids=["pool", "vit", "folded", "resnet"])
def test_quotients_are_reached(graph, norm):
    # a difference quotient of nearby points is about the gradient there
    x, _ = problem(graph, n=4)
    flat = x.reshape(4, -1)
    found = quotient_constants(graph, flat, norm)
    rows = []
    for centre in flat:
        step = 1e-6 * np.eye(graph.n_inputs)
        values = graph.forward(np.concatenate([centre + step, centre - step])).reshape(2, graph.n_inputs, -1)
        slopes = (values[0] - values[1]).T / 2e-6
        rows.append([[np.linalg.norm(a - b, 1 if math.isinf(norm) else 2) for a in slopes] for b in slopes])
    expected = np.max(rows, axis=0)
    np.testing.assert_allclose(found, expected, rtol=0.02)
    np.testing.assert_array_equal(found, found.T)


def test_a_kink_does_not_deceive_a_quotient():
    # f = relu(x) − relu(−x) = x has slope 1; at 0 autograd's gradient of an equal form may be 0 or 2
    d = Draft((1,))
    d.add(ops.Linear(np.array([[1.0], [-1.0]])))
    d.add(RELU)
    d.add(ops.Linear(np.array([[1.0, -1.0], [0.0, 0.0]])))
    for at in (0.0, 1e-20, 0.3):
        found = quotient_constants(d.graph, np.array([[at]]), 2.0)
        assert found[0, 1] <= 1.0 + 1e-9
    # max(x, x) − max(−x, −x): every gradient at 0 is one of 0, 1, 2
    pool = Draft((1, 1, 2))
    pool.add(ops.MaxPool((1, 2), (1, 2), ()))
    pool.add(ops.Reshape((1, 1)))
    pool.add(ops.Linear(np.array([[1.0], [0.0]])))
    assert quotient_constants(pool.graph, np.array([[0.5, 0.5]]), math.inf)[0, 1] <= 1.0 + 1e-9


def test_gradients_of_graphs_are_quotients():
    x, y = problem(POOL)
    samples = Samples.of(POOL, x.reshape(3, -1), y, 2.0, (0.0, 1.0))
    np.testing.assert_array_equal(gradient_constants(samples), quotient_constants(POOL, samples.x, 2.0))
    assert samples.clean_accuracy == np.mean(POOL.forward(x).argmax(axis=1) == y)


def test_split_head():
    encoder, last = split_head(POOL)
    assert last is POOL.nodes[-1].op
    x, _ = problem(POOL)
    np.testing.assert_allclose(encoder.forward(x) @ last.weight.T + last.bias, POOL.forward(x))
    assert split_head(VIT)[1] is VIT.nodes[-1].op
    d = Draft((2, 4, 4))
    d.add(conv(np.random.default_rng(0), 3, 2))
    graph = d.graph
    assert split_head(graph) == (graph, None)
    np.testing.assert_allclose(head_constants(2.0, np.array([[3.0]]), 2.0), [[0.0, 6.0], [6.0, 0.0]])
    assert graph_margins(POOL, x.reshape(3, -1), np.zeros(3, dtype=np.int64)).shape == (3, 3)


# ---------------------------------------------------------------- attacks


@pytest.mark.parametrize("graph", [POOL, VIT, SWIN], ids=["pool", "vit", "folded"])
@pytest.mark.parametrize("norm", NORMS)
def test_attack_on_a_graph(graph, norm):
    x, y = problem(graph, n=4)
    report = attack(graph, x, y, delta=radius(norm), norm=norm, steps=20, device="cpu")
    assert report.subject == graph.digest
    assert report.certificate is None
    assert report.x_adv.shape == x.shape
    assert report.loss_gap.value > 0
    assert report.largest_perturbation <= radius(norm)
    gap = network_margins(graph, report.x_adv.reshape(4, -1), y)
    assert report.adversarial_loss == pytest.approx(np.logaddexp.reduce(np.hstack([np.zeros((4, 1)), -gap]), axis=1))
    alone = attack(graph, x[:1], y[:1], delta=radius(norm), norm=norm, steps=20, device="cpu", batch_size=1)
    assert alone.clean_loss == pytest.approx(report.clean_loss[:1], rel=1e-12)


def test_universal_perturbation_of_a_graph():
    x, y = problem(POOL, n=6)
    report = universal_perturbation(POOL, x, y, delta=0.1, norm="inf", steps=20, device="cpu", held_out=(x, y))
    assert report.subject == report.held_out.subject == POOL.digest
    assert report.a.shape == POOL.input_shape
    assert report.mean_gap >= 0
    assert report.held_out.mean_gap == pytest.approx(report.mean_gap)


# ---------------------------------------------------------------- radii, two models, gates


@pytest.mark.parametrize("norm", NORMS)
def test_certified_radii_of_a_graph(norm):
    x, _ = problem(POOL)
    y = POOL.forward(x).argmax(axis=1)
    simple = certified_radii(POOL, x, y, norm=norm)
    better = certified_radii(POOL, x, y, norm=norm, method="CROWN", max_radius=0.5)
    assert np.all((simple > 0) & (better >= np.minimum(simple, 0.5)))
    assert np.any(better > 1.5 * simple)
    product = product_constants(POOL, norm)
    clean = network_margins(POOL, x.reshape(3, -1), y)
    by_hand = [min(clean[i, j] / product[j, y[i]] for j in range(3) if j != y[i]) for i in range(3)]
    np.testing.assert_allclose(simple, by_hand, rtol=1e-12)
    # just inside the larger radius an attack finds nothing
    for i in range(3):
        found = attack(POOL, x[i : i + 1], y[i : i + 1], delta=0.999 * better[i], norm=norm, steps=20, device="cpu")
        assert found.robust_accuracy == 1.0
    assert np.all(certified_radii(VIT, *_right(VIT), norm=norm) == 0.0)  # nothing global holds


def _right(graph):
    x, _ = problem(graph)
    return x, graph.forward(x).argmax(axis=1)


def test_the_difference_of_two_graphs():
    other = models.pooled(ops.AvgPool((2, 2), (2, 2), ()), seed=1)
    x, _ = problem(POOL, n=4)
    for pair in ((POOL, other), (other, POOL), (POOL, POOL)):
        gap = difference(*pair)
        np.testing.assert_allclose(gap.forward(x), pair[0].forward(x) - pair[1].forward(x), rtol=1e-12, atol=1e-12)
    flat = as_graph(Network((Affine(np.ones((3, 72))),)))  # the same numbers in another shape
    mixed = difference(POOL, flat)
    np.testing.assert_allclose(mixed.forward(x), POOL.forward(x) - flat.forward(x.reshape(4, -1)), atol=1e-12)
    with pytest.raises(InputError, match="72 inputs and 3 outputs"):
        difference(POOL, VIT)


@pytest.mark.parametrize("norm", NORMS)
def test_the_change_of_outputs_is_bounded(norm):
    nodes = list(POOL.nodes)
    last = nodes[-1].op
    nodes[-1] = Node(ops.Linear(last.weight.round(1), last.bias), nodes[-1].inputs)
    rounded = Graph(tuple(nodes))
    x, y = problem(POOL)
    report = compare_models(POOL, rounded, x, y, delta=radius(norm), norm=norm, methods=["apgd-ce", "CROWN"])
    gap = difference(POOL, rounded)
    rng = np.random.default_rng(0)
    for i in range(3):
        way = rng.standard_normal((300, 72))
        way /= np.linalg.norm(way, norm, axis=1, keepdims=True)
        seen = np.abs(gap.forward(x[i].reshape(1, -1) + radius(norm) * way)).max()
        assert seen <= report.output_change[i] + 1e-12
    assert report.output_change_bound.claim.subject == gap.digest
    assert np.all(report.measured_change <= report.output_change)
    json.dumps(report.to_dict(), allow_nan=False)
    zero = output_change_bounds(difference(POOL, POOL), x.reshape(3, -1), radius(norm), norm)
    assert np.all(zero >= 0)
    still = output_change_bounds(gap, x.reshape(3, -1), 0.0, norm)
    np.testing.assert_array_equal(still, np.abs(gap.forward(x)).max(axis=1))


def test_the_change_of_what_nothing_bounds_is_infinite():
    x, _ = problem(VIT)
    change = output_change_bounds(difference(VIT, VIT), x.reshape(3, -1), 0.1, 2.0)
    assert np.all(np.isinf(change))


def test_a_gate_on_a_graph():
    x, _ = problem(POOL)
    y = POOL.forward(x).argmax(axis=1)
    comparison = compare(POOL, x, y, delta=0.01, norm="inf", methods=["apgd-ce", "product", "CROWN", "printed"])
    report = gate(comparison, Limits(min_certified_accuracy=1.0, max_lipschitz=1e9))
    assert report.passed, str(report)
    baseline = Baseline.of(comparison)
    assert baseline.shape == tuple(math.prod(s) for s in POOL.shapes)
    assert gate(comparison, None, baseline).passed
    shrunk = models.pooled(ops.MaxPool((2, 2), (1, 1), ()))
    other = compare(shrunk, x, y, delta=0.01, norm="inf", methods=["CROWN"])
    with pytest.raises(InputError, match="network shape"):
        gate(other, None, baseline)


def test_a_plain_graph_of_dense_layers_is_a_network_with_all_methods():
    graph, network = models.mlp()
    x, y = np.random.default_rng(0).random((3, 5)), np.array([0, 1, 2])
    of_graph, of_network = (compare(net, x, y, delta=0.05, norm=2) for net in (graph, network))
    assert statuses(of_graph) == statuses(of_network)
    for ours, theirs in zip(of_graph.rows, of_network.rows, strict=True):
        assert ours.value == pytest.approx(theirs.value, rel=1e-9)


def test_a_smooth_graph_without_torch_names_is_attacked():
    rng = np.random.default_rng(0)
    d = Draft((1, 4, 4))
    d.add(ops.MaxPool((2, 2), (2, 2), ()))
    d.add(ops.Pointwise(Activation("silu")))
    graph = head(d, rng)
    x, y = problem(graph)
    comparison = compare(graph, x, y, delta=0.1, norm=2, methods=["apgd-ce", "gradient", "product", "CROWN"])
    check_table(comparison)
    assert statuses(comparison)["product"] is Status.OK
    assert "(silu)" in comparison.row("CROWN").note


