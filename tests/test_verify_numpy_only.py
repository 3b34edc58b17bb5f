"""Certificates of every kind are loaded and verified where numpy is the only package."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import certbound
from certbound.certificate import _HOMES
from certbound.network import Network, Normalise

SCRIPT = """
import sys
for name in ("scipy", "torch", "cvxpy", "safetensors", "matplotlib", "rich", "hypothesis", "auto_LiRPA", "joblib"):
    sys.modules[name] = None  # importing it raises
import numpy as np
import certbound
from certbound import Affine, Network, Normalise, ReLU
with np.load(sys.argv[2]) as data:
    weights = [data[k] for k in sorted(data.files)]
model = weights
if "folded" in sys.argv[1]:
    model = Network((Normalise([0.1], [0.3]), Affine(weights[0]), ReLU(), Affine(weights[1])))
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
    return weights, {
        "norm above": certbound.spectral_norm_upper(weights[0], rigor="rigorous").certificate,
        "norm below": certbound.spectral_norm_lower(weights[0], rigor="rigorous").certificate,
        "product": certbound.lipschitz_product(weights, 2).certificate,
        "product folded": certbound.lipschitz_product(folded, 2).certificate,
        "sdp": certbound.lipschitz_sdp(weights, 2, method="closed-form").certificate,
        "sdp inf": certbound.lipschitz_sdp(weights, "inf", method="closed-form").certificate,
        "sdp folded": certbound.lipschitz_sdp(folded, 2, method="closed-form").certificate,
        "cover": certbound.lipschitz_alignment(weights, 2, rigor="rigorous").certificate,
        "cover inf": certbound.lipschitz_alignment(weights, "inf", rigor="rigorous").certificate,
        "cover folded": certbound.lipschitz_alignment(folded, 2, rigor="rigorous").certificate,
        "attack": certbound.attack(weights, x, y, delta=0.1, norm=2, steps=5).certificate,
        "witness": certbound.lipschitz_sampled(weights, 2).certificate,
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
