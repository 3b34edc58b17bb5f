"""Small hand-made graphs: conv nets, residual nets, attention; and their dense equals."""

from __future__ import annotations

import itertools
import math

import numpy as np

from certbound import ops
from certbound.activations import Activation
from certbound.graph import Graph, Node
from certbound.network import Affine, Network, ReLU

RELU = ops.Pointwise(Activation("relu"))


class Draft:
    """Nodes one after the other; ``add`` returns the index of the new one."""

    def __init__(self, shape):
        self.nodes = [Node(ops.Input((1, *shape)), name="x")]

    def add(self, op, *inputs, name=""):
        self.nodes.append(Node(op, inputs or (len(self.nodes) - 1,), name or f"n{len(self.nodes)}"))
        return len(self.nodes) - 1

    @property
    def graph(self):
        return Graph(tuple(self.nodes))

    @property
    def shape(self):
        return self.graph.shapes[-1]


def conv(rng, outputs, inputs, size=3, *, axes=2, gain=1.0, **options):
    groups = options.get("groups", 1)
    shape = (outputs, inputs // groups, *(size,) * axes)
    weight = gain * rng.standard_normal(shape) / math.sqrt(math.prod(shape[1:]))
    options.setdefault("padding", ((size // 2, size // 2),) * axes)
    return ops.Conv(weight, 0.1 * rng.standard_normal(outputs), **options)


def linear(rng, outputs, inputs):
    return ops.Linear(rng.standard_normal((outputs, inputs)) / math.sqrt(inputs), 0.1 * rng.standard_normal(outputs))


def batch_norm(rng, channels):
    return ops.BatchNorm(
        0.2 * rng.standard_normal(channels), 0.5 + rng.random(channels), 1e-5, 0.5 + rng.random(channels),
        0.2 * rng.standard_normal(channels),
    )  # fmt: skip


def head(draft, rng, classes=3):
    n = math.prod(draft.shape)
    draft.add(ops.Reshape((1, n)))
    draft.add(linear(rng, classes, n), name="head")
    return draft.graph


def cnn(seed=0, *, side=6, classes=3, **options):
    """Two strided convolutions and a linear head."""
    rng = np.random.default_rng(seed)
    d = Draft((2, side, side))
    d.add(conv(rng, 4, 2, **options), name="conv1")
    d.add(RELU)
    d.add(conv(rng, 4, 4, stride=(2, 2)), name="conv2")
    d.add(RELU)
    return head(d, rng, classes)


def pooled(pool, seed=0, *, side=6, pad=1):
    """A convolution, a pool, a linear head; values before the pool of both signs."""
    rng = np.random.default_rng(seed)
    d = Draft((2, side, side))
    d.add(conv(rng, 3, 2, padding=((pad, pad),) * 2), name="conv1")
    d.add(pool, name="pool")
    d.add(conv(rng, 3, 3), name="conv2")
    d.add(RELU)
    return head(d, rng)


def resnet(seed=0, *, side=6, norms=True, width=4, classes=3):
    """A stem, a block with an identity, a strided block with a projection, global average pooling, a head."""
    rng = np.random.default_rng(seed)
    d = Draft((2, side, side))
    d.add(conv(rng, width, 2), name="stem")
    if norms:
        d.add(batch_norm(rng, width), name="stem.bn")
    x = d.add(RELU)
    for k, (stride, wide) in enumerate(((1, width), (2, 2 * width))):
        narrow = d.graph.shapes[x][1]
        d.add(conv(rng, wide, narrow, stride=(stride, stride)), x, name=f"block{k}.conv1")
        if norms:
            d.add(batch_norm(rng, wide))
        d.add(RELU)
        body = d.add(conv(rng, wide, wide), name=f"block{k}.conv2")
        if norms:
            body = d.add(batch_norm(rng, wide))
        short = x
        if stride > 1:
            short = d.add(conv(rng, wide, narrow, 1, stride=(stride, stride), padding=((0, 0), (0, 0))), x)
        d.add(ops.Add(), body, short, name=f"block{k}")
        x = d.add(RELU)
    d.add(ops.AdaptiveAvgPool((1, 1)), name="avgpool")
    return head(d, rng, classes)


def mlp(seed=0, widths=(5, 8, 8, 3)):
    """A plain chain, and the same as a Network."""
    rng = np.random.default_rng(seed)
    d, layers = Draft((widths[0],)), []
    for i, (n, m) in enumerate(itertools.pairwise(widths)):
        if i:
            d.add(RELU)
            layers.append(ReLU())
        op = linear(rng, m, n)
        d.add(op)
        layers.append(Affine(op.weight, op.bias))
    return d.graph, Network(tuple(layers))


def attention(seed=0, *, folded=False, side=4, dim=4, heads=2, classes=3):
    """A vision transformer of one block: patches, class token, positions, LayerNorm, attention, GELU MLP.

    ``folded``: heads go into axis 0, as torch's own functional attention puts them.
    """
    rng = np.random.default_rng(seed)
    d = Draft((1, side, side))
    d.add(ops.Conv(rng.standard_normal((dim, 1, 2, 2)), rng.standard_normal(dim), stride=(2, 2)), name="patch")
    patches = math.prod(d.shape[2:])
    d.add(ops.Reshape((1, dim, patches)))
    tokens = d.add(ops.Permute((0, 2, 1)))
    token = d.add(ops.Constant(rng.standard_normal((1, 1, dim))), *())
    d.nodes[token] = Node(d.nodes[token].op, (), "class_token")
    d.add(ops.Concat(1), token, tokens)
    n = patches + 1
    x = d.add(ops.Shift(rng.standard_normal((1, n, dim))), name="positions")
    normal = d.add(ops.LayerNorm(1, 1e-5, 1.0 + 0.1 * rng.standard_normal(dim), rng.standard_normal(dim)), name="norm1")
    per = dim // heads

    def split(order):
        d.add(linear(rng, dim, dim), normal)
        if folded:  # (N, heads, per) → (heads, N, per)
            d.add(ops.Reshape((n, heads, per)))
            return d.add(ops.Permute((1, 0, 2) if order == "n" else (1, 2, 0)))
        d.add(ops.Reshape((1, n, heads, per)))
        return d.add(ops.Permute((0, 2, 1, 3) if order == "n" else (0, 2, 3, 1)))

    q, k, v = split("n"), split("t"), split("n")
    d.add(ops.MatMul(), q, k, name="scores")
    d.add(ops.Scale(np.array(1.0 / math.sqrt(per))))
    p = d.add(ops.Softmax(-1), name="softmax")
    d.add(ops.MatMul(), p, v)
    d.add(ops.Permute((1, 0, 2) if folded else (0, 2, 1, 3)))
    d.add(ops.Reshape((1, n, dim)))
    d.add(linear(rng, dim, dim), name="out")
    x = d.add(ops.Add(), len(d.nodes) - 1, x)
    d.add(ops.LayerNorm(1), x)
    d.add(linear(rng, 2 * dim, dim), name="mlp1")
    d.add(ops.Pointwise(Activation("gelu")), name="gelu")
    d.add(linear(rng, dim, 2 * dim), name="mlp2")
    d.add(ops.Add(), len(d.nodes) - 1, x)
    d.add(ops.Slice(1, 0, 1, drops=True))
    d.add(linear(rng, classes, dim), name="head")
    return d.graph


def dense(graph):
    """The matrix and the bias of an affine graph, by its unit vectors."""
    n = graph.n_inputs
    bias = graph.forward(np.zeros((1, n)))[0]
    return (graph.forward(np.eye(n)) - bias).T, bias


def dense_cnn(graph):
    """A graph of affine operations with ReLUs between, as a dense Network."""
    layers, run = [], []

    def close():
        if run:
            shape = graph.shapes[run[0] - 1][1:]
            nodes = [Node(ops.Input((1, *shape)))]
            nodes += [Node(graph.nodes[i].op, (k,)) for k, i in enumerate(run)]
            layers.append(Affine(*dense(Graph(tuple(nodes)))))
            run.clear()

    for i, node in enumerate(graph.nodes):
        if i and node.inputs != (i - 1,):
            raise ValueError("no chain")
        if node.op is RELU:
            close()
            layers.append(ReLU())
        elif i:
            run.append(i)
    close()
    return Network(tuple(layers))
