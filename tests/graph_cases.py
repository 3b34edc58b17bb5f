"""Small random graphs and their Jacobians, for the tests of bounds of graphs."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch.func import jacrev

from certbound.activations import Activation
from certbound.graph import Graph, Node
from certbound.io.graph_to_torch import graph_to_torch
from certbound.ops import (
    AdaptiveAvgPool,
    Add,
    AvgPool,
    BatchNorm,
    Clip,
    Concat,
    Conv,
    Gather,
    Input,
    LayerNorm,
    Linear,
    MatMul,
    MaxPool,
    Mean,
    Pad,
    Permute,
    Pointwise,
    Reshape,
    Roll,
    Scale,
    Shift,
    Slice,
    Softmax,
)

KINDS = (
    "conv", "stride", "bn", "relu", "gelu", "clip", "maxpool", "avgpool", "adaptive", "residual", "linear residual",
    "branches", "concat", "slices", "scale", "pad", "roll", "gather", "group", "softmax", "norm",
)  # fmt: skip


class Builder:
    """A graph in the making: images of (1, C, H, W) first, rows of tokens after ``tokens``."""

    def __init__(self, shape, seed):
        self.rng = np.random.default_rng(seed)
        self.nodes = [Node(Input((1, *shape)))]
        self.last = 0

    @property
    def shape(self):
        return Graph(tuple(self.nodes)).shapes[self.last]

    def add(self, op, *inputs):
        self.nodes.append(Node(op, inputs or (self.last,), f"node{len(self.nodes)}"))
        self.last = len(self.nodes) - 1
        return self.last

    def relu(self):
        return self.add(Pointwise(Activation("relu")))

    def conv(self, out=None, kernel=3, stride=1, pad=1, groups=1, mode="zeros"):
        width = self.shape[1]
        out = width if out is None else out
        weight = self.rng.standard_normal((out, width // groups, kernel, kernel)) / math.sqrt(width * kernel)
        bias = self.rng.standard_normal(out)
        return self.add(Conv(weight, bias, (stride,) * 2, ((pad, pad),) * 2, (), groups, mode))

    def bn(self):
        n, rng = self.shape[1], self.rng
        return self.add(BatchNorm(rng.standard_normal(n), rng.random(n) + 0.2, 1e-3, rng.standard_normal(n)))

    def linear(self, out):
        n = self.shape[-1]
        return self.add(Linear(self.rng.standard_normal((out, n)) / math.sqrt(n), self.rng.standard_normal(out)))

    def norm(self):
        n = self.shape[-1]
        return self.add(LayerNorm(1, 0.1, self.rng.standard_normal(n), self.rng.standard_normal(n)))

    def attention(self, heads=2):
        """One block: LayerNorm, dot-product attention, residual sum."""
        _, n, d = self.shape
        start = self.last
        self.norm()
        self.linear(3 * d)
        self.add(Reshape((1, n, 3, heads, d // heads)))
        stacked = self.add(Permute((2, 0, 3, 1, 4)))
        q, k, v = (self.add(Slice(0, i, i + 1, 1, True), stacked) for i in range(3))
        transposed = self.add(Permute((0, 1, 3, 2)), k)
        self.add(MatMul(), q, transposed)
        self.add(Scale(np.array(1.0 / math.sqrt(d // heads))))
        weights = self.add(Softmax())
        self.add(MatMul(), weights, v)
        self.add(Permute((0, 2, 1, 3)))
        self.add(Reshape((1, n, d)))
        self.linear(d)
        return self.add(Add(), start, self.last)

    def mlp(self):
        start, d = self.last, self.shape[-1]
        self.norm()
        self.linear(2 * d)
        self.add(Pointwise(Activation("gelu")))
        self.linear(d)
        return self.add(Add(), start, self.last)

    def tokens(self):
        _, c, h, w = self.shape
        self.add(Reshape((1, c, h * w)))
        return self.add(Permute((0, 2, 1)))

    def block(self, kind):
        """One block on images."""
        rng, start = self.rng, self.last
        _, c, h, w = self.shape
        if kind == "conv":
            modes = ["zeros", "circular", "replicate", "reflect"]
            # the image must be larger than what is mirrored
            self.conv(out=3, mode=str(rng.choice(modes if min(h, w) > 3 else modes[:-1])))
        elif kind == "stride":
            self.conv(out=4, stride=2)
        elif kind == "group":
            self.conv(groups=c)
        elif kind == "bn":
            self.conv()
            self.bn()
        elif kind in ("relu", "gelu"):
            self.add(Pointwise(Activation(kind)))
        elif kind == "clip":
            self.add(Clip(-0.5, 1.5))
        elif kind == "maxpool":
            self.add(MaxPool((3, 2), (1, 2), ((1, 1), (0, 0))) if min(h, w) >= 3 else MaxPool((1, 1), (1, 1), ()))
        elif kind == "avgpool":
            self.add(AvgPool((2, 2), (1, 1), ((1, 0), (0, 1)), bool(rng.integers(2))))
        elif kind == "adaptive":
            self.add(AdaptiveAvgPool((max(1, h - 1), max(1, w - 1))))
        elif kind == "residual":
            self.conv()
            self.bn()
            self.relu()
            self.conv()
            self.add(Add(bool(rng.integers(2))), start, self.last)
        elif kind == "linear residual":
            self.conv()
            self.bn()
            self.add(Add(), start, self.last)
        elif kind == "branches":
            self.bn() if c == 0 else self.conv()
            first = self.bn()
            self.last = start
            second = self.conv(kernel=1, pad=0)
            both = self.add(Add(), first, second)
            n = self.add(BatchNorm(rng.standard_normal(c), rng.random(c) + 0.5, 1e-3, rng.standard_normal(c)), start)
            self.add(Add(), both, n)
        elif kind == "concat":
            one = self.conv(out=2)
            self.last = start
            self.conv(out=1)
            self.relu()
            self.add(Concat(1), one, self.last, start)
            self.conv(out=3, kernel=1, pad=0)
        elif kind == "slices":
            parts = [self.add(Slice(2, i, h, 2), start) for i in range(min(2, h))]
            self.add(Concat(2), *parts)
        elif kind == "scale":
            self.add(Shift(rng.standard_normal((1, c, 1, 1))))
            self.add(Scale(rng.random((1, c, 1, 1)) + 0.5, bool(rng.integers(2))))
            self.conv()
        elif kind == "pad":
            self.add(Pad(((0, 0), (0, 0), (1, 0), (0, 1)), 0.5))
        elif kind == "roll":
            self.add(Roll((1, 2), (2, 3)))
        elif kind == "gather":
            self.add(Gather(3, tuple(int(i) for i in rng.integers(0, w, w))))
        elif kind == "softmax":
            self.add(Softmax(1))
        elif kind == "norm":
            self.add(LayerNorm(1, 0.1, rng.standard_normal(w)))

    def graph(self):
        return Graph(tuple(self.nodes))


def random_graph(kinds, seed, shape=(2, 5, 4), outputs=3):
    """Blocks on a small image, then a linear head."""
    b = Builder(shape, seed)
    for kind in kinds:
        b.block(kind)
    b.add(Reshape((1, math.prod(b.shape))))
    b.linear(outputs)
    return b.graph()


def transformer(seed, blocks=1, tokens=4, width=4, outputs=3):
    """LayerNorm, attention and GELU blocks, then the mean of the tokens and a head."""
    b = Builder((tokens, width), seed)
    for _ in range(blocks):
        b.attention()
        b.mlp()
    b.add(Mean((1,)))
    b.linear(outputs)
    return b.graph()


def jacobian(graph, x):
    """By torch's autograd in float64, shape (outputs, inputs)."""
    net = graph_to_torch(graph)
    flat = torch.tensor(np.asarray(x, dtype=np.float64).reshape(-1))
    return jacrev(lambda v: net(v.reshape(1, *graph.input_shape))[0])(flat).detach().numpy()


def matrix_norm(J, norm):
    return float(np.abs(J).sum(axis=1).max()) if math.isinf(norm) else float(np.linalg.norm(J, 2))


def quotient(graph, x, y, norm):
    """``‖f(x) − f(y)‖/‖x − y‖``."""
    fx, fy = graph.forward(np.stack([np.ravel(x), np.ravel(y)]))
    order = np.inf if math.isinf(norm) else 2
    return float(np.linalg.norm(fx - fy, order) / np.linalg.norm(np.ravel(x) - np.ravel(y), order))
