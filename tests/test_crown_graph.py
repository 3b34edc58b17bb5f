"""CROWN and IBP on graphs: equal to the dense network's where there is one, below all that is found, else refused."""

from __future__ import annotations

import math
from dataclasses import replace

import graph_models as models
import numpy as np
import pytest
import torch
from graph_models import RELU, Draft, conv, head, linear

from certbound import ops
from certbound.activations import Activation
from certbound.attacks.apgd import attack
from certbound.crown import graph_problem
from certbound.crown.compat import bounded_module, load_auto_lirpa
from certbound.crown.lowering import lowered
from certbound.crown.margins import margins
from certbound.errors import InputError, UnsupportedLayerError
from certbound.graph import Graph, Node
from certbound.io.graph_to_network import dense_network
from certbound.io.graph_to_torch import graph_to_torch
from certbound.losses import margins_of
from certbound.network import Affine, Network, ReLU, Residual
from certbound.types import Status

NORMS = [2.0, math.inf]
PLAIN = ["CROWN", "IBP", "CROWN-IBP", "forward"]


def problem(graph, n=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.random((n, *graph.input_shape)), rng.integers(0, max(graph.n_outputs, 2), n)


def radius(norm):
    return 0.04 if math.isinf(norm) else 0.15


def ball_points(x, delta, norm, clip=None, n=2000, seed=0):
    """Points of the ball around a sample: inside, on its surface and, for ℓ∞, at its corners."""
    rng = np.random.default_rng(seed)
    d = rng.standard_normal((n, x.size))
    if math.isinf(norm):
        d[: n // 2] = np.sign(d[: n // 2])
        d[n // 2 :] /= np.abs(d[n // 2 :]).max(axis=1, keepdims=True)
    else:
        d /= np.linalg.norm(d, axis=1, keepdims=True)
    d[::5] *= rng.random((len(d[::5]), 1))
    points = x.reshape(-1) + delta * d
    return points if clip is None else np.clip(points, *clip)


def smallest(graph, x, y, delta, norm, clip=None, n=2000):
    """The smallest margins at points of the balls: above the truth."""
    module = graph_to_torch(graph)
    found = []
    for sample, label in zip(x, y, strict=True):
        logits = module(torch.tensor(ball_points(sample, delta, norm, clip, n))).numpy()
        logits = np.hstack([np.zeros_like(logits), logits]) if logits.shape[1] == 1 else logits
        found.append(margins_of(logits, np.full(len(logits), label)).min(axis=0))
    return np.array(found)


def block(*steps, shape=(2, 7, 6), seed=0):
    """The steps, a ReLU, a convolution or Linear, a ReLU and a head."""
    rng = np.random.default_rng(seed)
    d = Draft(shape)
    for step in steps:
        d.add(step)
    d.add(RELU)
    if len(d.shape) == 4:
        d.add(conv(rng, 3, d.shape[1]))
        d.add(RELU)
    return head(d, rng)


def affine_graphs():
    rng = np.random.default_rng(0)
    return {
        "conv": block(conv(rng, 3, 2)),
        "stride": block(conv(rng, 3, 2, stride=(2, 3), padding=((0, 0), (1, 1)))),
        "dilation": block(conv(rng, 3, 2, dilation=(2, 1), padding=((2, 2), (1, 1)))),
        "groups": block(conv(rng, 4, 2, groups=2)),
        "dilated groups": block(conv(rng, 4, 4, groups=4, dilation=(1, 2)), shape=(4, 7, 6)),
        "uneven padding": block(conv(rng, 3, 2, padding=((2, 0), (0, 1)), stride=(1, 2))),
        "uneven kernel": block(ops.Conv(rng.standard_normal((3, 2, 1, 4)), rng.random(3), padding=((0, 0), (1, 2)))),
        "no bias": block(ops.Conv(rng.standard_normal((3, 2, 3, 3)), None, padding=((1, 1), (1, 1)))),
        "conv1d": block(conv(rng, 3, 2, axes=1, padding=((2, 1),)), ops.Reshape((1, 3, 4, 2)), shape=(2, 7)),
        **{
            mode: block(conv(rng, 3, 2, padding=((1, 2), (0, 1)), padding_mode=mode))
            for mode in ("reflect", "replicate", "circular")
        },
        "normalised input": block(
            ops.Shift([[[-0.4]], [[-0.5]]]), ops.Scale([[[0.2]], [[0.3]]], True), conv(rng, 3, 2)
        ),
        "mean image": block(ops.Shift(-rng.random((2, 7, 6))), conv(rng, 3, 2)),
        "input scaled pixel by pixel": block(ops.Scale(0.5 + rng.random((2, 7, 6))), conv(rng, 3, 2)),
        "batch norm": block(conv(rng, 3, 2), models.batch_norm(rng, 3)),
        "batch norm of the input": block(models.batch_norm(rng, 2), conv(rng, 3, 2)),
        "scaled and shifted in the middle": block(conv(rng, 3, 2), ops.Scale(rng.random((3, 1, 1))), ops.Shift([0.3])),
        "pixel by pixel": block(conv(rng, 3, 2), ops.Scale(rng.random((7, 6)) - 0.5), ops.Shift(rng.random((7, 6)))),
        "average": block(conv(rng, 3, 2), ops.AvgPool((3, 2), (2, 2), ((1, 0), (1, 1)))),
        "average without padding": block(conv(rng, 3, 2), ops.AvgPool((3, 2), (2, 2), ((1, 0), (1, 1)), False)),
        "average of the input": block(ops.AvgPool((2, 2), (2, 2), ())),
        "adaptive": block(conv(rng, 3, 2), ops.AdaptiveAvgPool((3, 4))),
        "mean": block(conv(rng, 6, 2), ops.Mean((2, 3))),
        "slices": block(conv(rng, 3, 2), ops.Slice(1, 0, 3, 2), ops.Slice(3, 1, 5)),
        "gather, roll, pad": block(
            conv(rng, 3, 2), ops.Gather(1, (2, 0, 0)), ops.Roll((1, 2), (2, 3)),
            ops.Pad(((0, 0), (0, 1), (1, 0), (0, 2)), 0.3),
        ),
        "channels last": block(
            ops.Permute((0, 2, 3, 1)), linear(rng, 4, 2), ops.Permute((0, 3, 1, 2)), conv(rng, 3, 4)
        ),
        "flat": block(linear(rng, 8, 5), shape=(5,)),
        "flat, scaled": block(ops.Shift(-rng.random(5)), ops.Scale(rng.random(5)), linear(rng, 8, 5), shape=(5,)),
        "ReLU of the input": block(ops.Shift([-0.5]), shape=(5,)),
    }  # fmt: skip


AFFINE = affine_graphs()


@pytest.mark.parametrize("name", AFFINE)
def test_lowered_graphs_are_equal(name):
    graph = AFFINE[name]
    x, _ = problem(graph)
    low = lowered(graph)
    np.testing.assert_allclose(low.forward(x), graph.forward(x), rtol=1e-12, atol=1e-12)
    kinds = {node.op.kind for node in low.nodes}
    assert kinds <= {"Input", "Conv", "Linear", "Add", "relu", "Reshape", "Permute", "Shift"}
    for node in low.nodes:
        if isinstance(node.op, ops.Conv):
            assert node.op.dilation == (1, 1)
            assert all(a == b for a, b in node.op.padding)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", AFFINE)
def test_crown_of_a_graph_is_crown_of_the_dense_network(name, norm):
    # an exact oracle: the same function as a chain of matrices, bounded by the code for chains
    graph = AFFINE[name]
    x, y = problem(graph)
    dense = models.dense_cnn(graph)
    ours, theirs = (margins(net, x, y, delta=radius(norm), norm=norm) for net in (graph, dense))
    np.testing.assert_allclose(ours.lower, theirs.lower, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(ours.clean, theirs.clean, rtol=1e-9, atol=1e-9)
    assert np.any(ours.lower < ours.clean - 1e-3)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("method", [*PLAIN, "alpha-CROWN"])
def test_every_method_is_that_of_the_dense_network(method, norm):
    graph = models.cnn()  # one affine map between two ReLUs: then interval bounds are equal too
    x, y = problem(graph)
    for clip in (None, (0.0, 1.0)):
        ours, theirs = (
            margins(net, x, y, delta=radius(norm), norm=norm, method=method, clip=clip, iterations=4)
            for net in (graph, models.dense_cnn(graph))
        )
        np.testing.assert_allclose(ours.lower, theirs.lower, rtol=1e-9, atol=1e-9)
        assert ours.status is theirs.status is Status.OK


@pytest.mark.parametrize("name", ["groups", "dilated groups"])
def test_alpha_crown_of_grouped_kernels_is_that_of_the_dense_network(name):
    # guard: the neurons' bounds are auto_LiRPA's own here, whose "patches" ignore groups
    rng = np.random.default_rng(1)
    grouped = {"groups": conv(rng, 4, 2, groups=2), "dilated groups": conv(rng, 2, 2, groups=2, dilation=(2, 1))}[name]
    d = Draft((2, 5, 4))
    d.add(conv(rng, 2, 2))
    d.add(RELU)
    d.add(grouped)
    d.add(RELU)
    graph = head(d, rng)
    x, y = problem(graph, n=1)
    ours, theirs = (
        margins(net, x, y, delta=0.1, norm="inf", method="alpha-CROWN", iterations=3)
        for net in (graph, models.dense_cnn(graph))
    )
    assert ours.status is theirs.status is Status.OK, ours.note
    np.testing.assert_allclose(ours.lower, theirs.lower, rtol=1e-9, atol=1e-9)


# ---------------------------------------------------------------- our own interval bounds, and points


def intervals(graph, x, delta, clip=None):
    """Interval bounds of every node in numpy, ℓ∞: (low, high) of the output."""
    low, high = x.reshape(-1) - delta, x.reshape(-1) + delta
    if clip is not None:
        low, high = np.maximum(low, clip[0]), np.minimum(high, clip[1])
    kept = [tuple(v.reshape(graph.shapes[0]) for v in (low, high))]
    for node in graph.nodes[1:]:
        values, op = [kept[j] for j in node.inputs], node.op
        if isinstance(op, (ops.Conv, ops.Linear)):
            (a, b), size = values[0], replace(op, weight=np.abs(op.weight), bias=None)
            middle, room = op.apply((a + b) / 2), size.apply((b - a) / 2)
            kept.append((middle - room, middle + room))
        elif isinstance(op, ops.BatchNorm):  # weights here are positive
            kept.append(tuple(op.apply(v) for v in values[0]))
        elif isinstance(op, ops.Add):
            kept.append((values[0][0] + values[1][0], values[0][1] + values[1][1]))
        elif isinstance(op, ops.Concat):
            kept.append(tuple(op.apply(*(v[k] for v in values)) for k in (0, 1)))
        else:  # monotone: ReLU, pooling, clipping, moving
            kept.append(tuple(op.apply(v) for v in values[0]))
    return kept[-2]  # of the head's input


def interval_margins(graph, x, y, delta, clip=None):
    last = graph.nodes[-1].op
    found = []
    for sample, label in zip(x, y, strict=True):
        low, high = intervals(graph, sample, delta, clip)
        rows, shift = last.weight[label] - last.weight, last.bias[label] - last.bias
        bound = rows @ ((low + high) / 2).ravel() - np.abs(rows) @ ((high - low) / 2).ravel() + shift
        bound[label] = math.inf
        found.append(bound)
    return np.array(found)


def concat_graph():
    rng = np.random.default_rng(3)
    d = Draft((2, 5, 5))
    a = d.add(conv(rng, 3, 2), 0)
    a = d.add(RELU)
    b = d.add(conv(rng, 2, 2, 1, padding=((0, 0),) * 2), 0)
    b = d.add(RELU)
    d.add(ops.Concat(1), a, b, a)
    d.add(conv(rng, 3, 8))
    d.add(RELU)
    return head(d, rng)


POOLS = {
    "side by side": ops.MaxPool((2, 2), (2, 2), ()),
    "overlapping": ops.MaxPool((3, 3), (2, 2), ((1, 1), (1, 1))),
    "uneven windows": ops.MaxPool((2, 3), (2, 2), ()),
    "padding of one axis": ops.MaxPool((2, 2), (2, 2), ((0, 0), (1, 1))),
    "uneven padding": ops.MaxPool((3, 2), (1, 2), ((2, 0), (0, 1))),
    "dilated": ops.MaxPool((2, 2), (1, 1), ((1, 1), (0, 0)), (2, 3)),
}
NETS = {
    "cnn": models.cnn(),
    "resnet": models.resnet(),
    "concat": concat_graph(),
    **{f"max-pool, {name}": models.pooled(pool) for name, pool in POOLS.items()},
    "max-pool of the input": block(ops.MaxPool((3, 2), (2, 2), ((1, 0), (0, 1)))),
    "relu6": block(conv(np.random.default_rng(0), 3, 2, gain=8.0), ops.Clip(0.0, 1.0)),
}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("clip", [None, (0.0, 1.0)])
def test_interval_bounds_are_those_computed_here(name, clip):
    graph = NETS[name]
    x, y = problem(graph)
    report = margins(graph, x, y, delta=0.03, norm="inf", method="IBP", clip=clip)
    np.testing.assert_allclose(report.lower, interval_margins(graph, x, y, 0.03, clip), rtol=1e-9, atol=1e-9)


LEAKY = {
    f"leaky ReLU of slope {slope}": block(
        conv(np.random.default_rng(1), 3, 2), ops.Pointwise(Activation("leaky_relu", slope)), conv(
            np.random.default_rng(2), 2, 3)
    )
    for slope in (0.1, -0.5, 2.0)
}  # fmt: skip
ODD = {
    "clip between": block(conv(np.random.default_rng(1), 3, 2, gain=4.0), ops.Clip(-0.3, 0.2)),
    "clip below": block(conv(np.random.default_rng(1), 3, 2), ops.Clip(-math.inf, 0.1)),
    "max-pool of both signs": block(
        conv(np.random.default_rng(4), 3, 2, gain=3.0), ops.MaxPool((3, 3), (1, 1), ((1, 1), (1, 1)))
    ),
}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", [*NETS, *LEAKY, *ODD])
def test_below_the_margins_at_points_of_the_ball(name, norm):
    graph = {**NETS, **LEAKY, **ODD}[name]
    x, y = problem(graph, n=2)
    delta = 3 * radius(norm)  # so that many neurons and maxima change
    for clip in (None, (0.0, 1.0)):
        truth = smallest(graph, x, y, delta, norm, clip)
        for method in ("CROWN", "IBP", "CROWN-IBP"):
            report = margins(graph, x, y, delta=delta, norm=norm, method=method, clip=clip)
            assert np.all(report.lower <= truth + 1e-9), method
            assert np.all(np.isfinite(report.lower[np.isfinite(report.clean)]))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", ["resnet", "max-pool, overlapping", "concat"])
def test_below_the_margins_that_an_attack_reaches(name, norm):
    graph = NETS[name]
    x, y = problem(graph, n=4)
    found = attack(graph, x, y, delta=radius(norm), norm=norm, method="worst", steps=20, device="cpu")
    for method in ("CROWN", "IBP", "alpha-CROWN"):
        report = margins(
            graph, x, y, delta=radius(norm), norm=norm, method=method, clip=(0.0, 1.0), iterations=3
        )
        for points in (found.x_adv, found.x_wrong):
            assert np.all(report.lower <= margins_of(graph.forward(points), y) + 1e-9)
        assert report.loss_gap.value >= found.loss_gap.value > 0
        assert report.loss_gap.claim == found.loss_gap.claim


@pytest.mark.parametrize("norm", NORMS)
def test_in_a_tiny_ball_crown_is_exact(norm):
    # nothing switches: the margin falls by the radius times the dual norm of its gradient
    graph = NETS["resnet"]
    x, y = problem(graph)
    delta = 1e-6
    report = margins(graph, x, y, delta=delta, norm=norm)
    module = graph_to_torch(graph)
    for i, label in enumerate(y):
        t = torch.tensor(x[i : i + 1], requires_grad=True)
        for j in range(3):
            if j == label:
                continue
            logits = module(t)[0]
            (slope,) = torch.autograd.grad(logits[label] - logits[j], [t])
            size = float(slope.abs().sum() if math.isinf(norm) else slope.norm())
            assert report.clean[i, j] - report.lower[i, j] == pytest.approx(delta * size, rel=1e-5)


# ---------------------------------------------------------------- residual nets


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("method", ["CROWN", "CROWN-IBP"])
def test_a_residual_net_is_the_network_of_residual_blocks(method, norm):
    graph = models.resnet(width=2)
    network = dense_network(graph)
    assert not network.is_relu_chain
    x, y = problem(graph)
    ours, theirs = (margins(net, x, y, delta=radius(norm), norm=norm, method=method) for net in (graph, network))
    rest = np.isfinite(ours.lower)
    if method == "CROWN":  # interval bounds of merged matrices are another thing
        np.testing.assert_allclose(ours.lower[rest], theirs.lower[rest], rtol=1e-9, atol=1e-9)
    assert theirs.subject == network.digest


@pytest.mark.parametrize("norm", NORMS)
def test_a_residual_block_by_hand(norm):
    # x + relu(3 x) for x > 0 is 4 x: margins of the classes (4 x, 0) at x = 0.5, radius 0.25
    network = Network((Residual((Affine([[3.0]]), ReLU())), Affine([[1.0], [0.0]])))
    report = margins(network, [[0.5]], [0], delta=0.25, norm=norm)
    assert report.lower[0, 1] == pytest.approx(1.0, rel=1e-12)
    # where it switches: on [-0.25, 0.75] the chord of relu(3x) is 0.75·3x·… ; below it 0 or 3x, slope by the larger end
    switching = margins(network, [[0.25]], [0], delta=0.5, norm=norm)
    assert switching.lower[0, 1] == pytest.approx(4 * -0.25, rel=1e-12)
    other = margins(network, [[0.25]], [1], delta=0.5, norm=norm)  # −x − relu(3x) >= −0.75 − 2.25
    assert other.lower[0, 0] == pytest.approx(-3.0, rel=1e-12)


# ---------------------------------------------------------------- samples, chunks, limits


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("method", ["CROWN", "IBP", "CROWN-IBP", "alpha-CROWN"])
def test_the_samples_beside_it_do_not_matter(method, norm):
    graph = NETS["resnet"]
    x, y = problem(graph, n=5)
    options = {"delta": radius(norm), "norm": norm, "method": method, "iterations": 3}
    whole = margins(graph, x, y, **options)
    alone = margins(graph, x, y, batch_size=1, **options)
    np.testing.assert_allclose(alone.lower, whole.lower, rtol=1e-9, atol=1e-9)
    back = margins(graph, x[::-1], y[::-1], **options)
    np.testing.assert_allclose(back.lower[::-1], whole.lower, rtol=1e-9, atol=1e-9)


def test_chunks_do_not_matter(monkeypatch):
    graph = NETS["max-pool, overlapping"]
    x, y = problem(graph)
    whole = margins(graph, x, y, delta=0.05, norm=2)
    monkeypatch.setattr(graph_problem, "_CHUNK_NUMBERS", 20_000)
    np.testing.assert_allclose(margins(graph, x, y, delta=0.05, norm=2).lower, whole.lower, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("joint", [True, False])
def test_alpha_crown_gains_with_and_without_the_neurons(joint, monkeypatch):
    graph = NETS["max-pool, side by side"]
    x, y = problem(graph)
    crown = margins(graph, x, y, delta=0.1, norm="inf")
    if not joint:
        monkeypatch.setattr(graph_problem, "_JOINT_NUMBERS", 0)
    report = margins(graph, x, y, delta=0.1, norm="inf", method="alpha-CROWN", iterations=5)
    rest = np.isfinite(crown.lower)
    assert report.status is Status.OK, report.note
    assert np.all(report.lower[rest] >= crown.lower[rest])
    assert np.any(report.lower[rest] > crown.lower[rest] + 1e-4)
    assert np.all(report.lower <= smallest(graph, x, y, 0.1, math.inf) + 1e-9)


@pytest.mark.parametrize("method", ["IBP", "CROWN", "CROWN-IBP", "forward", "alpha-CROWN"])
def test_a_head_without_a_bias(method):
    # auto_LiRPA takes it for a product of two values
    rng = np.random.default_rng(3)
    draft = Draft((1, 5, 5))
    draft.add(conv(rng, 2, 1, 2, padding=((0, 0), (0, 0))))
    for op in (RELU, ops.AvgPool((2, 2), (2, 2), ()), ops.Reshape((1, 8))):
        draft.add(op)
    draft.add(ops.Linear(rng.standard_normal((3, 8))))
    graph = draft.graph
    x, y = rng.uniform(size=(2, 25)), np.array([0, 2])
    report = margins(graph, x, y, delta=0.02, norm=math.inf, method=method)
    assert report.status is Status.OK
    found = attack(graph, x, y, delta=0.02, norm=math.inf)
    assert np.all(report.lower <= margins_of(graph.forward(found.x_adv.reshape(2, -1)), y) + 1e-9)


def test_one_logit_and_radius_zero():
    graph = models.cnn(classes=1)
    x, y = problem(graph)
    report = margins(graph, x, y, delta=0.05, norm=2)
    assert np.all(report.lower <= smallest(graph, x, y, 0.05, 2.0) + 1e-9)
    np.testing.assert_allclose(
        report.lower, margins(models.dense_cnn(graph), x, y, delta=0.05, norm=2).lower, rtol=1e-9, atol=1e-9
    )
    np.testing.assert_array_equal(margins(graph, x, y, delta=0, norm=2).lower, report.clean)


def test_too_much_work_is_refused_with_the_numbers(monkeypatch):
    graph = NETS["resnet"]
    x, y = problem(graph)
    monkeypatch.setattr(graph_problem, "WORK_LIMIT", 1e3)
    with pytest.raises(graph_problem.WorkLimitError, match=r"unstable neurons.*CROWN-IBP"):
        margins(graph, x, y, delta=0.05, norm=2)
    assert margins(graph, x, y, delta=0.05, norm=2, method="CROWN-IBP").status is Status.OK
    # nothing is unstable in a tiny ball
    assert margins(graph, x, y, delta=1e-9, norm=2).status is Status.OK


def test_a_wrong_bound_is_caught(monkeypatch):
    graph = NETS["cnn"]
    x, y = problem(graph)
    monkeypatch.setattr("certbound.crown.margins._Problem.bound", lambda self, c, y: (np.full((len(c), 3), 9.0), ""))
    with pytest.raises(Exception, match="above the margin at the centre"):
        margins(graph, x, y, delta=0.05, norm=2)


# ---------------------------------------------------------------- what is refused, and why

ATTENTION = models.attention()


def refused(*steps, shape=(3, 4)):
    d = Draft(shape)
    for step in steps:
        d.add(step)
    return head(d, np.random.default_rng(0))


def bilinear(op):
    d = Draft((3, 3))
    d.add(op, 0, 0)
    return head(d, np.random.default_rng(0))


REFUSED = {
    "LayerNorm": (refused(ops.LayerNorm(1)), r"n1 \(LayerNorm\).*square root"),
    "Softmax": (refused(ops.Softmax(-1)), r"\(Softmax\).*maximum"),
    "MatMul": (bilinear(ops.MatMul()), r"\(MatMul\).*two values"),
    "Multiply": (bilinear(ops.Multiply()), r"\(Multiply\).*two values"),
    "tanh": (refused(ops.Pointwise(Activation("tanh"))), r"\(tanh\).*float32"),
    "gelu": (refused(ops.Pointwise(Activation("gelu"))), r"\(gelu\).*relaxation"),
    "conv3d": (
        refused(conv(np.random.default_rng(0), 1, 1, 1, axes=3, padding=((0, 0),) * 3), shape=(1, 2, 2, 2)),
        r"\(Conv\).*two spatial axes",
    ),
    "heads in axis 0": (refused(ops.Reshape((3, 1, 4)), ops.Reshape((1, 3, 4))), r"\(Reshape\).*folded"),
    "attention": (ATTENTION, r"norm1 \(LayerNorm\)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_name_the_operation_and_the_reason(name):
    graph, match = REFUSED[name]
    x, y = problem(graph)
    for method in ("CROWN", "IBP"):
        with pytest.raises(UnsupportedLayerError, match=match):
            margins(graph, x, y, delta=0.05, norm=2, method=method)


def test_products_with_constants_are_bounded():
    rng = np.random.default_rng(5)
    d = Draft((3, 4))
    d.nodes.append(Node(ops.Constant(rng.standard_normal((1, 4, 5)))))
    d.nodes.append(Node(ops.Constant(rng.standard_normal((1, 2, 3)))))
    d.nodes.append(Node(ops.Constant(rng.standard_normal((1, 2, 5)))))
    d.add(ops.MatMul(), 0, 1)
    d.add(ops.MatMul(), 2, len(d.nodes) - 1)
    d.add(ops.Multiply(), 3, len(d.nodes) - 1)
    d.add(ops.Add(), len(d.nodes) - 1, 3)
    d.add(RELU)
    graph = head(d, rng)
    x, y = problem(graph)
    for norm in NORMS:
        report = margins(graph, x, y, delta=0.1, norm=norm)
        encoder = Graph(graph.nodes[: next(i for i, n in enumerate(graph.nodes) if n.op is RELU)])
        matrix, bias = models.dense(encoder)
        last = graph.nodes[-1].op
        dense = Network((Affine(matrix, bias), ReLU(), Affine(last.weight, last.bias)))
        np.testing.assert_allclose(
            report.lower, margins(dense, x, y, delta=0.1, norm=norm).lower, rtol=1e-9, atol=1e-9
        )


def test_float32_and_shapes_are_refused():
    graph = NETS["cnn"]
    with pytest.raises(InputError, match="72 numbers"):
        margins(graph, np.zeros((1, 5)), [0], delta=0.1, norm=2)


# -- auto_LiRPA itself: why these operations are kept away from it ---------------------------------------------------


def direct(module, x, delta, norm, method, options=None):
    package = load_auto_lirpa()
    x = torch.tensor(x, dtype=torch.float64)
    bounded = bounded_module(module.double().eval().requires_grad_(False), torch.zeros_like(x), options)
    bounded.parameters = lambda recurse=True: iter([x])  # it asks for the dtype, in a way that a current torch refuses
    ball = package.PerturbationLpNorm(norm=np.inf if math.isinf(norm) else norm, eps=delta)
    with torch.no_grad():
        return bounded.compute_bounds(x=(package.BoundedTensor(x, ball),), method=method)


def identity_then(module):
    linear = torch.nn.Linear(1, 1)
    torch.nn.init.ones_(linear.weight)
    torch.nn.init.zeros_(linear.bias)
    return torch.nn.Sequential(linear, module)


def test_auto_lirpa_takes_an_l2_ball_for_a_point_behind_a_relu():
    low, high = direct(torch.nn.Sequential(torch.nn.ReLU()), [[0.5, 0.5]], 0.25, 2.0, "IBP")
    assert torch.equal(low, high)  # and the true interval is [0.25, 0.75]


class Root(torch.nn.Module):
    def forward(self, x):
        return torch.sqrt(x)


def test_auto_lirpa_bounds_the_root_wrongly():
    _, high = direct(identity_then(Root()), [[4.0]], 3.0, math.inf, "CROWN")
    assert float(high) < math.sqrt(7.0)  # of the root on [1, 7]


def test_auto_lirpa_bounds_a_steep_leaky_relu_wrongly():
    low, _ = direct(identity_then(torch.nn.LeakyReLU(2.0)), [[0.0]], 1.0, math.inf, "CROWN")
    assert float(low) > -2.0  # of 2x at x = −1


def test_auto_lirpa_ignores_groups_in_its_patches():
    generator = torch.Generator().manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Conv2d(2, 2, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(2, 2, 3, padding=1, groups=2),
        torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(128, 2),
    ).double()  # fmt: skip
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    x = torch.rand((1, 2, 8, 8), generator=generator, dtype=torch.float64)
    options = {"sparse_intermediate_bounds": False, "sparse_conv_intermediate_bounds": False}
    true = module(x)
    inside = {}
    for mode in ("patches", "matrix"):
        low, high = direct(module, x.numpy(), 1e-3, math.inf, "CROWN", {**options, "conv_mode": mode})
        inside[mode] = bool(torch.all((low <= true) & (true <= high)))
    assert inside == {"patches": False, "matrix": True}
