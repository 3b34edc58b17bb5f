"""The README's certificate: proved by a script that knows nothing of certbound, and refused by it when forged."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from certbound import CertificateError, lipschitz_product, lipschitz_sampled, load_certificate

HERE = Path(__file__).parents[1] / "docs" / "certificate"
WEIGHTS = HERE / "weights.npz"


def run(certificate, weights=WEIGHTS):
    # -I: neither the folder nor the environment may bring certbound in
    command = [sys.executable, "-I", str(HERE / "check.py"), str(certificate), str(weights)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def weights():
    with np.load(WEIGHTS) as data:
        return list(data.values())


def test_the_script_is_short_and_needs_numpy_only():
    source = (HERE / "check.py").read_text(encoding="utf-8")
    assert len([line for line in source.splitlines() if line.strip()]) < 30
    imports = {line.split()[1] for line in source.splitlines() if line.startswith(("import ", "from "))}
    assert imports == {"json", "sys", "fractions", "pathlib", "numpy"}


def test_script_and_library_accept_it():
    certificate = load_certificate(HERE / "lipschitz.certificate")
    assert certificate.verify(weights())
    done = run(HERE / "lipschitz.certificate")
    assert done.returncode == 0 and repr(certificate.value) in done.stdout, done.stderr
    assert lipschitz_sampled(weights()).value <= certificate.value <= 0.9 * lipschitz_product(weights()).value


@pytest.mark.parametrize("what", ["value", "s", "T", "d", "weights"])
def test_forgeries_are_refused_by_both(what, tmp_path):
    """Written with a fresh digest: only the mathematics can refuse them."""
    certificate = load_certificate(HERE / "lipschitz.certificate")
    (proof,) = certificate.proofs
    lower = 1 - 1e-5
    forged = {
        "value": replace(certificate, value=certificate.value * lower,
                         proofs=(replace(proof, value=certificate.value * lower),)),
        "s": replace(certificate, proofs=(replace(proof, s=proof.s * lower),)),
        "T": replace(certificate, proofs=(replace(proof, t=(proof.t[0] * 1.5, proof.t[1])),)),
        "d": replace(certificate, proofs=(replace(proof, d=proof.d * lower),)),
        "weights": certificate,
    }[what]  # fmt: skip
    path = forged.save(tmp_path / "forged")
    other = WEIGHTS
    if what == "weights":
        other = tmp_path / "weights.npz"
        np.savez(other, *[w * np.float32(1.001) for w in weights()])
    with np.load(other) as data, pytest.raises(CertificateError):
        load_certificate(path).verify(list(data.values()))
    done = run(path, other)
    assert done.returncode != 0 and "proved:" not in done.stdout
