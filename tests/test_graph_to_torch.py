"""Graphs in torch: the same numbers as numpy's, sample by sample, for every operation."""

from __future__ import annotations

import math

import graph_models as models
import numpy as np
import pytest
import torch
from graph_models import RELU, Draft

from certbound import ops
from certbound.activations import Activation
from certbound.errors import InputError, UnsupportedLayerError
from certbound.graph import Graph, Node
from certbound.io.graph_to_torch import graph_to_torch
from certbound.io.torch_graph import keeps_sample_axis

RNG = np.random.default_rng(0)


def of(shape, *steps):
    d = Draft(shape)
    for step in steps:
        d.add(step)
    return d.graph


def pads(*pairs):
    return tuple(pairs)


GRAPHS = {
    "cnn": models.cnn(),
    "resnet": models.resnet(),
    "attention": models.attention(),
    "attention, heads in axis 0": models.attention(folded=True),
    "conv1d": of((2, 7), models.conv(RNG, 3, 2, axes=1, padding=pads((2, 0)))),
    "conv3d": of((2, 4, 5, 3), models.conv(RNG, 3, 2, 2, axes=3, padding=pads((1, 0), (0, 0), (1, 1)))),
    "dilation and groups": of(
        (4, 9, 7), models.conv(RNG, 6, 4, groups=2, dilation=(2, 3), stride=(2, 1), padding=pads((1, 2), (3, 3)))
    ),
    **{
        mode: of((2, 5, 6), models.conv(RNG, 3, 2, padding=pads((2, 1), (0, 3)), padding_mode=mode))
        for mode in ("reflect", "replicate", "circular")
    },
    "batch norm": of((3, 4, 4), models.batch_norm(RNG, 3)),
    "batch norm of vectors": of((3,), models.batch_norm(RNG, 3)),
    "batch norm without weights": of((3, 2), ops.BatchNorm([0.1, 0.2, 0.3], [1.0, 2.0, 0.5])),
    "scale and shift": of(
        (3, 4), ops.Scale(RNG.random((3, 1))), ops.Shift(RNG.random((1, 3, 4))), ops.Scale([2.0, 3.0, 4.0, 5.0], True)
    ),
    "average": of((2, 7, 6), ops.AvgPool((3, 2), (2, 2), pads((1, 0), (1, 1)))),
    "average without padding": of((2, 7, 6), ops.AvgPool((3, 2), (2, 2), pads((1, 0), (1, 1)), False)),
    "average 1d": of((2, 7), ops.AvgPool((3,), (2,), pads((0, 1)))),
    "adaptive": of((2, 7, 5), ops.AdaptiveAvgPool((3, 2))),
    "adaptive 3d": of((2, 7, 5, 4), ops.AdaptiveAvgPool((3, 2, 1))),
    "mean": of((2, 7, 5), ops.Mean((-1, 2))),
    "mean kept": of((2, 7, 5), ops.Mean((1,), True)),
    "max": of((2, 7, 7), ops.MaxPool((3, 2), (2, 2), pads((1, 1), (0, 1)))),
    "max, dilated": of((2, 9), ops.MaxPool((3,), (2,), pads((2, 1)), (3,))),
    "clip": of((5,), ops.Clip(-0.2, 0.7)),
    **{
        name: of((7,), ops.Shift(np.linspace(-3, 3, 7)), ops.Pointwise(Activation(name, parameter)))
        for name, parameter in (
            ("relu", 0.0), ("leaky_relu", 0.2), ("tanh", 0.0), ("sigmoid", 0.0), ("gelu", 0.0), ("gelu_tanh", 0.0),
            ("silu", 0.0),
        )
    },
    "slices": of((6, 5, 4), ops.Slice(-2, 1, 5, 2), ops.Slice(1, 4, 5, drops=True), ops.Slice(-1, 1, 3)),
    "gather": of((6, 5), ops.Gather(-2, (5, 0, 0, 3))),
    "pad": of((2, 3), ops.Pad(pads((0, 0), (1, 0), (2, 3)), -1.5)),
    "pad of axis 0": of((2, 3), ops.Pad(pads((1, 0), (0, 0), (0, 1)), 0.5)),
    "roll": of((4, 5, 2), ops.Roll((1, -2), (1, -2))),
    "expand": of((4, 1), ops.Expand((1, 4, 3))),
    "expand with a new axis": of((4, 1), ops.Expand((2, 1, 4, 3))),
    "windows in axis 0": of(
        (4, 4, 2),
        ops.Reshape((1, 2, 2, 2, 2, 2)),
        ops.Permute((0, 1, 3, 2, 4, 5)),
        ops.Reshape((4, 4, 2)),
        ops.Softmax(0),
        ops.Gather(0, (3, 1, 0, 2)),
        models.linear(RNG, 3, 2),
        ops.LayerNorm(3),
        ops.Mean((0, 1)),
    ),
    "convolution of windows": of(
        (4, 2, 6), ops.Permute((1, 0, 2, 3)), models.conv(RNG, 2, 1), ops.MaxPool((2, 2), (2, 2), ()), RELU
    ),
    "softmax of channels": of((3, 2), ops.Softmax(1)),
    "layer norm of two axes": of((3, 2), ops.LayerNorm(2, 0.1, RNG.random((3, 2)), RNG.random((3, 2)))),
    "layer norm of all axes": of((3, 2), ops.LayerNorm(3, 0.1)),
}


def two_values():
    d = Draft((2, 3, 3))
    a = d.add(models.conv(RNG, 2, 2), 0)
    b = d.add(ops.Permute((0, 1, 3, 2)), 0)
    c = d.add(ops.MatMul(), a, b)
    e = d.add(ops.Multiply(), c, a)
    f = d.add(ops.Add(subtracts=True), e, b)
    constant = d.add(ops.Constant(RNG.standard_normal((1, 2, 3, 3))))
    d.nodes[constant] = Node(d.nodes[constant].op, ())
    # a constant through operations, to an Add, a Concat and a MatMul
    moved = d.add(ops.Permute((0, 1, 3, 2)), constant)
    g = d.add(ops.Add(), f, moved)
    h = d.add(ops.MatMul(), g, constant)
    d.add(ops.Concat(-1), h, constant, f, moved)
    return d.graph


GRAPHS["several values and a constant"] = two_values()


@pytest.mark.parametrize("name", GRAPHS)
def test_the_same_numbers_as_numpy(name):
    graph = GRAPHS[name]
    rng = np.random.default_rng(1)
    x = rng.standard_normal((5, *graph.input_shape))
    module = graph_to_torch(graph)
    expected = graph.forward(x)
    found = module(torch.tensor(x)).numpy()
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(module(torch.tensor(x.reshape(5, -1))).numpy(), found)
    assert not module.training
    assert not any(p.requires_grad for p in module.parameters())


@pytest.mark.parametrize("name", GRAPHS)
def test_no_sample_depends_on_another(name):
    graph = GRAPHS[name]
    x = torch.tensor(np.random.default_rng(2).standard_normal((4, *graph.input_shape)), requires_grad=True)
    module = graph_to_torch(graph)
    out = module(x)
    (slope,) = torch.autograd.grad(out[1].sum(), [x])
    assert torch.all(slope[[0, 2, 3]] == 0)
    alone = torch.cat([module(row[None]) for row in x])
    torch.testing.assert_close(out, alone, rtol=1e-12, atol=1e-12)


def test_where_the_sample_axis_stays():
    kept = {name: keeps_sample_axis(graph) for name, graph in GRAPHS.items()}
    moved = {name for name, stays in kept.items() if not stays}
    assert moved == {
        "attention, heads in axis 0", "pad of axis 0", "expand with a new axis", "windows in axis 0",
        "convolution of windows", "layer norm of all axes",
    }  # fmt: skip


def test_float32_and_refusals():
    graph = GRAPHS["cnn"]
    x = np.random.default_rng(3).random((2, *graph.input_shape))
    found = graph_to_torch(graph, dtype=torch.float32)(torch.tensor(x, dtype=torch.float32))
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), graph.forward(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="dtype"):
        graph_to_torch(graph, dtype="float16")


def test_an_operation_that_is_not_known_is_named():
    class Odd(ops.Op):
        def output_shape(self, *shapes):
            return shapes[0]

    graph = Graph((Node(ops.Input((1, 2))), Node(Odd(), (0,), "layer4.odd")))
    with pytest.raises(UnsupportedLayerError, match=r"layer4\.odd \(Odd\)"):
        graph_to_torch(graph)(torch.zeros(1, 2, dtype=torch.float64))


def test_gradients_are_those_of_the_graph():
    # by finite differences of numpy's numbers
    graph = GRAPHS["resnet"]
    x = np.random.default_rng(4).random((1, graph.n_inputs))
    t = torch.tensor(x, requires_grad=True)
    (slope,) = torch.autograd.grad(graph_to_torch(graph)(t)[0, 1], [t])
    step = 1e-6
    moved = np.concatenate([x + step * np.eye(graph.n_inputs), x - step * np.eye(graph.n_inputs)])
    values = graph.forward(moved)[:, 1].reshape(2, -1)
    np.testing.assert_allclose(slope[0].numpy(), (values[0] - values[1]) / (2 * step), atol=1e-7)
    assert math.isfinite(float(slope.abs().max()))
