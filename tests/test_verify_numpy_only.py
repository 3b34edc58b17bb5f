"""Certificates of every kind are loaded and verified where numpy is the only package."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest

import certbound
from certbound.certificate import _HOMES
from certbound.graph import Graph, Node
from certbound.lipschitz.branch_and_bound import lipschitz_bracket
from certbound.lipschitz.graph_product import graph_product
from certbound.lipschitz.layer_product import layer_product
from certbound.lipschitz.path_norms import path_bound
from certbound.network import Activation, Ball, Network, Normalise, Residual
from certbound.norms.operator import operator_norm_lower, operator_norm_upper
from certbound.ops import Add, AvgPool, BatchNorm, Conv, Input, Linear, Reshape

SCRIPT = """
import sys
for name in ("scipy", "torch", "cvxpy", "safetensors", "matplotlib", "rich", "hypothesis", "auto_LiRPA", "joblib"):
    sys.modules[name] = None  # importing it raises
import numpy as np
import certbound
from certbound import Affine, Network, Normalise, ReLU
from certbound.network import Activation, Residual
with np.load(sys.argv[2]) as data:
    weights = [data[k] for k in sorted(data.files)]
model = weights
if "storage" in sys.argv[1]:
    model = Network((Affine(weights[0]), Residual((Activation("silu"),), ()), Affine(weights[1])))
if "folded" in sys.argv[1]:
    model = Network((Normalise([0.1], [0.3]), Affine(weights[0]), ReLU(), Affine(weights[1])))
if "convolution" in sys.argv[1]:
    from certbound.ops import Conv
    model = Conv(weights[0].reshape(10, 7, 70)[:, :, :3], padding=((1, 1),))
if "graph" in sys.argv[1]:
    from certbound.graph import Graph, Node
    from certbound.ops import Add, AvgPool, BatchNorm, Conv, Input, Linear, Reshape
    first = Conv(weights[0].reshape(10, 7, 70)[:7, :, :3], padding=((1, 1),))
    norm = BatchNorm(np.zeros(7), np.arange(1.0, 8.0))
    model = Graph((
        Node(Input((1, 7, 80))), Node(first, (0,)), Node(norm, (1,)), Node(Add(), (0, 2)),
        Node(AvgPool((9,), (8,), ((1, 0),)), (3,)), Node(Reshape((1, 70)), (4,)), Node(Linear(weights[1]), (5,)),
    ))
certificate = certbound.load_certificate(sys.argv[1])
assert certificate.verify(weights[0] if certificate.kind == "operator norm" else model)
assert certificate.bound.rigor is certbound.Rigor.RIGOROUS
print(certificate.kind)
"""


def certificates():
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal((70, 70)) / 8, rng.standard_normal((3, 70))]
    x, y = np.full((4, 70), 0.5), np.array([0, 1, 2, 0])
    layers = Network.from_weights(weights).layers
    folded = Network((Normalise([0.1], [0.3]), *layers))
    block = Network((layers[0], Residual((Activation("silu"),), ()), layers[-1]))
    ball = Ball(np.zeros(70), 0.01, "inf")
    conv = Conv(weights[0].reshape(10, 7, 70)[:, :, :3], padding=((1, 1),))
    square = Conv(conv.weight[:7].copy(), padding=((1, 1),))
    norm = BatchNorm(np.zeros(7), np.arange(1.0, 8.0))
    graph = Graph((
        Node(Input((1, 7, 80))), Node(square, (0,)), Node(norm, (1,)), Node(Add(), (0, 2)),
        Node(AvgPool((9,), (8,), ((1, 0),)), (3,)), Node(Reshape((1, 70)), (4,)), Node(Linear(weights[1]), (5,)),
    ))  # fmt: skip
    return weights, {
        "norm above": certbound.spectral_norm_upper(weights[0], rigor="rigorous").certificate,
        "norm below": certbound.spectral_norm_lower(weights[0], rigor="rigorous").certificate,
        "product": certbound.lipschitz_product(weights, 2).certificate,
        "product folded": certbound.lipschitz_product(folded, 2).certificate,
        "sdp": certbound.lipschitz_sdp(weights, 2, method="closed-form").certificate,
        "sdp inf": certbound.lipschitz_sdp(weights, "inf", method="closed-form").certificate,
        "sdp folded": certbound.lipschitz_sdp(folded, 2, method="closed-form").certificate,
        "storage": certbound.lipschitz_sdp(block, 2, method="closed-form").certificate,
        "storage inf ball": certbound.lipschitz_sdp(block, "inf", region=ball, method="closed-form").certificate,
        "cover": certbound.lipschitz_alignment(weights, 2, rigor="rigorous").certificate,
        "cover inf": certbound.lipschitz_alignment(weights, "inf", rigor="rigorous").certificate,
        "cover folded": certbound.lipschitz_alignment(folded, 2, rigor="rigorous").certificate,
        "attack": certbound.attack(weights, x, y, delta=0.1, norm=2, steps=5).certificate,
        "layer product": layer_product(Network.from_weights(weights), 2.0).certificate,
        "paths": path_bound(Network.from_weights(weights), 2.0).certificate,
        "paths inf": path_bound(Network.from_weights(weights), math.inf).certificate,
        "tree": lipschitz_bracket(weights, 2, outputs=0, max_nodes=3).upper.certificate,
        "witness": certbound.lipschitz_sampled(weights, 2).certificate,
        "graph": graph_product(graph, 2).certificate,
        "graph inf row": graph_product(graph, math.inf, (0, 1)).certificate,
        "convolution above": operator_norm_upper(conv, 2, (7, 9)).certificate,
        "convolution below": operator_norm_lower(conv, 2, (7, 9)).certificate,
        "convolution rows": operator_norm_upper(conv, math.inf, (7, 9)).certificate,
    }


def test_every_kind_is_verified_with_numpy_only(tmp_path):
    weights, every = certificates()
    assert {c.kind for c in every.values()} == set(_HOMES)
    np.savez(tmp_path / "weights.npz", *weights)
    for name, certificate in every.items():
        path = certificate.save(tmp_path / f"{name}.certificate")
        command = [sys.executable, "-c", SCRIPT, str(path), str(tmp_path / "weights.npz")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, f"{name}: {done.stderr}"
        assert done.stdout.strip() == certificate.kind


@pytest.mark.parametrize("kind", sorted(_HOMES))
def test_kinds_have_homes(kind):
    import importlib

    module, name = _HOMES[kind]
    assert getattr(importlib.import_module(module), name).kind == kind
