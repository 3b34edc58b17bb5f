"""``certbound verify``: exit codes, what it prints, and which network or matrix it finds."""

from __future__ import annotations

import json
import math
import sys

import numpy as np
import pytest
import tamper
from safetensors.numpy import save_file

from certbound import cli
from certbound.attacks.pair import AttackPair
from certbound.certificate import Stored, to_bytes
from certbound.errors import NumericalError
from certbound.lipschitz.sampled import lipschitz_sampled
from certbound.network import Network

MODEL = """\
import numpy as np
from torch import nn
def make():
    return nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False)).double()
def weights():
    return [np.load("W1.npy"), np.load("W2.npy")]
def other():
    return [np.ones((4, 3)), np.ones((2, 4))]
"""


@pytest.fixture
def net(tmp_path, monkeypatch):
    """A network as .npz, .safetensors and a factory, with a pair and a point saved beside it."""
    rng = np.random.default_rng(0)
    W1, W2 = rng.standard_normal((4, 3)), rng.standard_normal((2, 4))
    monkeypatch.chdir(tmp_path)
    np.savez("net.npz", W1=W1, W2=W2)
    np.savez("unordered.npz", encoder=W1, head=W2, bias=np.ones(3))
    np.save("W1.npy", W1)
    np.save("W2.npy", W2)
    save_file({"0.weight": W1, "2.weight": W2}, "net.safetensors")
    (tmp_path / "net.py").write_text(MODEL)
    network = Network.from_weights([W1, W2])
    x = rng.random((5, 3))
    x_adv = np.clip(x + 0.1 * rng.choice([-1.0, 1.0], x.shape), 0, 1)
    y = 1 - network.forward(x_adv).argmax(axis=1)
    AttackPair.proving(network, x, x_adv, y, 0.2, math.inf, "apgd-ce", math.inf).save("pair.certificate")
    lipschitz_sampled(network, 2).certificate.save("point.certificate")
    return network


def run(capsys, *argv):
    code = cli.main(["verify", *argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize(
    "model",
    [
        ["--model", "net.npz"],
        ["--weights", "net.npz"],
        ["--model", "unordered.npz", "--layers", "encoder,head"],
        ["--model", "net.safetensors"],
        ["--model", "net.py:weights"],
        ["--model", "net.py:make", "--weights", "net.safetensors"],
    ],
)
@pytest.mark.parametrize("file", ["pair.certificate", "point.certificate"])
def test_verified(net, capsys, model, file):
    code, out, _ = run(capsys, file, *model)
    assert code == 0
    assert out.rstrip().endswith("verified") and "REFUSED" not in out
    assert "rigorous" in out and ">=" in out and file in out
    word = "mean loss gap" if file.startswith("pair") else "Lipschitz constant"
    assert word in out and ("apgd-ce" in out or "Jacobian" in out)


def test_json(net, capsys):
    code, out, _ = run(capsys, "pair.certificate", "--model", "net.npz", "--json")
    data = json.loads(out)
    assert code == 0 and data["verified"] is True and data["reason"] == "" and data["schema_version"] == 1
    assert data["bound"]["claim"]["subject"] == net.digest and data["bound"]["rigor"] == "rigorous"
    assert (data["kind"], data["file"], data["bound"]["sense"]) == ("attack pair", "pair.certificate", "lower")
    code, out, _ = run(capsys, "pair.certificate", "--model", "net.py:other", "--json")
    data = json.loads(out)
    assert code == 1 and data["verified"] is False and "about the network" in data["reason"]


def test_another_network_is_refused_with_the_claim_shown(net, capsys):
    code, out, _ = run(capsys, "pair.certificate", "--model", "net.py:other")
    assert code == 1 and "REFUSED: attack pair: it is about the network" in out and "mean loss gap" in out


def test_a_damaged_file_is_refused(net, capsys, tmp_path):
    data = (tmp_path / "pair.certificate").read_bytes()
    for altered in (data[:-1], data + b" ", data[:100] + b"\0" + data[101:], b"", b"not a certificate at all"):
        (tmp_path / "bad").write_bytes(altered)
        code, out, _ = run(capsys, "bad", "--model", "net.npz")
        assert code == 1 and "no certificate" in out and "REFUSED: certificate:" in out
        code, out, _ = run(capsys, "bad", "--json")
        assert code == 1 and json.loads(out)["bound"] is None


def test_a_forged_value_is_refused(net, capsys, tmp_path):
    from certbound.certificate import load_certificate

    pair = load_certificate("pair.certificate")
    forged = tamper.forged(pair, tmp_path, value=pair.value + 1e-6)
    forged.save("forged")
    code, out, _ = run(capsys, "forged", "--model", "net.npz")
    assert code == 1 and "is claimed" in out
    stored = pair.stored()
    infinite = Stored(stored.kind, {**stored.fields, "value": math.inf}, stored.arrays)
    (tmp_path / "forged").write_bytes(to_bytes(infinite))
    code, out, _ = run(capsys, "forged", "--model", "net.npz")
    assert code == 1 and "inf" in out and "Traceback" not in out


def test_without_a_network_it_says_so(net, capsys):
    code, out, _ = run(capsys, "pair.certificate")
    assert code == 2 and "not verified: the file is whole" in out and "mean loss gap" in out
    code, out, _ = run(capsys, "pair.certificate", "--json")
    assert code == 2 and json.loads(out)["verified"] is None


@pytest.mark.parametrize(
    "argv",
    [
        ["none.certificate", "--model", "net.npz"],
        [".", "--model", "net.npz"],
        ["pair.certificate", "--model", "none.npz"],
        ["pair.certificate", "--model", "net.py"],
        ["pair.certificate", "--model", "net.py:none"],
        ["pair.certificate", "--model", "model.pt2"],
    ],
)
def test_bad_input(net, capsys, argv):
    code, out, err = run(capsys, *argv)
    assert code == 2 and not out and err.startswith("certbound: ")


def test_usage(net, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["verify"])
    assert caught.value.code == 2
    with pytest.raises(SystemExit) as caught:
        cli.main(["verify", "--help"])
    assert caught.value.code == 0
    assert "exit codes: 0 verified" in capsys.readouterr().out


def test_a_missing_package(net, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    code, out, err = run(capsys, "pair.certificate", "--model", "net.safetensors")
    assert code == 3 and not out and "pip install" in err


def test_arithmetic_that_proves_nothing_is_no_crash(net, capsys, monkeypatch):
    def flushed(*_args):
        raise NumericalError("flushes")

    monkeypatch.setattr(AttackPair, "verify", flushed)
    code, out, _ = run(capsys, "pair.certificate", "--model", "net.npz")
    assert code == 1 and "REFUSED: flushes" in out


# -- norms: one matrix -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model",
    [
        ["--model", "W1.npy"],
        ["--weights", "W1.npy"],
        ["--model", "net.npz"],
        ["--model", "unordered.npz"],
        ["--model", "unordered.npz", "--layers", "encoder"],
        ["--model", "net.safetensors"],
        ["--model", "net.py:weights"],
        ["--model", "net.py:make", "--weights", "net.safetensors"],
    ],
)
def test_a_norm_finds_its_matrix(net, capsys, model):
    from certbound.norms.bounds import spectral_norm_upper

    certificate = spectral_norm_upper(np.load("W1.npy"), rigor="rigorous").certificate
    certificate.save("norm.certificate")
    code, out, _ = run(capsys, "norm.certificate", *model)
    assert code == 0 and out.rstrip().endswith("verified") and "operator norm" in out


@pytest.mark.parametrize("model", ["net.npz", "net.safetensors", "net.py:weights"])
def test_a_norm_of_the_second_layer(net, capsys, model):
    from certbound.norms.bounds import spectral_norm_upper

    spectral_norm_upper(np.load("W2.npy"), rigor="rigorous").certificate.save("norm.certificate")
    assert run(capsys, "norm.certificate", "--model", model)[0] == 0


def test_a_norm_of_another_matrix_is_refused(net, capsys):
    from certbound.norms.bounds import spectral_norm_upper

    spectral_norm_upper(np.load("W1.npy"), rigor="rigorous").certificate.save("norm.certificate")
    for model in (["W2.npy"], ["net.py:other"], ["unordered.npz", "--layers", "head"]):
        code, out, _ = run(capsys, "norm.certificate", "--model", *model)
        assert code == 1 and "REFUSED: operator norm: it is about the matrix" in out
