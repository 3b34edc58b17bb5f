"""certbound compress: what is written, exit codes, and nothing half written."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_runs import run
from safetensors.numpy import load_file, save_file

from certbound import cli
from certbound.compress import epsilon_prune, low_rank, spectral_prune, uniform_prune
from certbound.io.factory import load_model

MODEL = """\
import torch
from torch import nn
print("noise on stdout")
def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
def small():
    return make().half()
def convolutional():
    return nn.Sequential(nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.Conv2d(2, 4, 2), nn.Flatten(), nn.Linear(16, 2))
def tied():
    model = make()
    model[4].weight = nn.Parameter(model[4].weight.detach().clone())
    model.append(nn.ReLU())
    model.append(nn.Linear(3, 3))
    model.append(nn.Linear(3, 3))
    model[6].weight = model[7].weight
    return model
def matrices():
    return [[[1.0, 2.0], [3.0, 4.0]], [[1.0, -1.0]]]
def network():
    from certbound import Activation, Affine, Network
    return Network((Affine([[1.0]]), Activation("tanh")))
def ends_in_relu():
    from certbound import Affine, Network, ReLU
    return Network((Affine([[1.0]]), ReLU(), Affine([[1.0]]), ReLU()))
def head():
    return nn.Linear(3, 2)
def stateful():
    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"a": 1}
        def set_extra_state(self, state):
            pass
    return nn.Sequential(Extra(3, 4), nn.ReLU(), nn.Linear(4, 2))
def broken_buffer():
    model = make()
    model.register_buffer("statistics", torch.tensor(float("nan")))
    return model
"""
ROWS = ["--method", "epsilon-rows", "--epsilon", "0.3"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    W1, W2 = rng.standard_normal((5, 4)), rng.standard_normal((3, 5))
    b1 = rng.standard_normal(5)
    np.savez(tmp_path / "net.npz", W1=W1, b1=b1, W2=W2)
    x = rng.random((12, 4))
    np.savez(tmp_path / "data.npz", x=x, y=np.arange(12) % 3)
    (tmp_path / "net.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CERTBOUND_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path


def compress(capsys, *arguments, out="p.safetensors"):
    return run(capsys, "compress", *arguments, "--out", out)


def made():
    return load_model("net.py:make")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["epsilon-rows", "--epsilon", "1/4"], lambda m: epsilon_prune(m, 0.25)),
        (["epsilon-rows", "--epsilon", "0.3", "--q", "2"], lambda m: epsilon_prune(m, 0.3, q=2)),
        (["epsilon-rows", "--epsilon", "0"], lambda m: epsilon_prune(m, 0.0)),
        (["epsilon-spectral", "--epsilon", "0.3"], lambda m: spectral_prune(m, 0.3)),
        (["uniform-rows", "--ratio", "0.5"], lambda m: uniform_prune(m, 0.5)),
        (["uniform-rows", "--ratio", "0.5", "--scope", "global"], lambda m: uniform_prune(m, 0.5, scope="global")),
        (["uniform-spectral", "--ratio", "0.5"], lambda m: uniform_prune(m, 0.5, kind="spectral")),
        (["unstructured", "--ratio", "0.7"], lambda m: uniform_prune(m, 0.7, kind="unstructured")),
        (["unstructured", "--ratio", "0.7", "--include-head"],
         lambda m: uniform_prune(m, 0.7, kind="unstructured", exclude_head=False)),
        (["low-rank", "--rank", "2"], lambda m: low_rank(m, 2, factorise=False)),
    ],
)  # fmt: skip
def test_what_is_written_is_what_the_library_returns(folder, capsys, options, expected):
    code, out, err = compress(capsys, "--model", "net.py:make", "--method", *options)
    assert code == 0, err
    pruned = expected(made())
    assert out == f"{pruned}\nwrote p.safetensors\n"
    written = load_file("p.safetensors")
    state = {name: value.numpy() for name, value in pruned.model.state_dict().items()}
    assert set(written) == set(state)
    for name, value in state.items():
        assert written[name].dtype == value.dtype
        np.testing.assert_array_equal(written[name], value)
    # and the same factory takes it
    back = load_model("net.py:make", "p.safetensors")
    x = torch.rand(5, 6, generator=torch.Generator().manual_seed(1))
    assert torch.equal(back(x), pruned.model(x))


def test_json(folder, capsys):
    code, out, err = compress(capsys, "--model", "net.py:make", *ROWS, "--json")
    assert code == 0, err
    data = json.loads(out)
    assert data == {**epsilon_prune(made(), 0.3).to_dict(), "file": "p.safetensors"}
    assert data["schema_version"] == 1


def test_weights_of_a_file_and_quiet(folder, capsys):
    state = {name: value.numpy() * 2 for name, value in made().state_dict().items()}
    save_file(state, "w.safetensors")
    code, _, err = compress(capsys, "--model", "net.py:make", "--weights", "w.safetensors", *ROWS, "--quiet")
    assert code == 0
    assert "wrote" not in err
    expected = epsilon_prune(load_model("net.py:make", "w.safetensors"), 0.3).model.state_dict()
    for name, value in load_file("p.safetensors").items():
        np.testing.assert_array_equal(value, expected[name].numpy())
    # the file that was read may be the one that is written
    before = load_file("p.safetensors")
    again = compress(capsys, "--model", "net.py:make", "--weights", "p.safetensors", *ROWS[:3], "0.0")
    assert again[0] == 0
    assert all(np.array_equal(value, before[name]) for name, value in load_file("p.safetensors").items())


def test_matrices_are_written_as_a_relu_network(folder, capsys):
    code, out, err = compress(capsys, "--weights", "net.npz", "--method", "low-rank", "--rank", "1")
    assert code == 0, err
    assert "low rank 1" in out
    dense, back = load_model(None, "net.npz"), load_model(None, "p.safetensors")
    u, s, vt = np.linalg.svd(dense.chain.weights[0])
    np.testing.assert_allclose(back.chain.weights[0], s[0] * np.outer(u[:, 0], vt[0]), atol=1e-14)
    np.testing.assert_array_equal(back.chain.weights[1], dense.chain.weights[1])
    np.testing.assert_array_equal(back.chain.biases[0], dense.chain.biases[0])
    assert not back.chain.final_relu
    ball = ["--delta", "0.02", "--norm", "inf", "--methods", "product,recursion", "--quiet"]
    for model in (["--weights", "net.npz"], ["--weights", "p.safetensors"]):
        code, out, err = run(capsys, "compare", *model, "--data", "data.npz", *ball)
        assert code == 0, err
    assert compress(capsys, "--model", "net.py:matrices", "--method", "uniform-rows", "--ratio", "0.5")[0] == 0
    np.testing.assert_array_equal(load_model(None, "p.safetensors").chain.weights[0], [[0.0, 0.0], [3.0, 4.0]])


def test_other_dtypes_buffers_and_tied_weights(folder, capsys):
    assert compress(capsys, "--model", "net.py:small", *ROWS)[0] == 0
    assert {value.dtype for value in load_file("p.safetensors").values()} == {np.dtype("float16")}
    assert compress(capsys, "--model", "net.py:convolutional", *ROWS)[0] == 0
    assert load_file("p.safetensors")["1.num_batches_tracked"].dtype == np.int64
    load_model("net.py:convolutional", "p.safetensors")
    assert compress(capsys, "--model", "net.py:tied", *ROWS)[0] == 0
    written = load_file("p.safetensors")
    np.testing.assert_array_equal(written["6.weight"], written["7.weight"])
    load_model("net.py:tied", "p.safetensors")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--model", "net.py:make", "--method", "epsilon-rows"], "epsilon: got no --epsilon"),
        (["--model", "net.py:make", "--method", "epsilon-rows", "--ratio", "0.5"], "ratio: got --ratio with"),
        (["--model", "net.py:make", *ROWS, "--rank", "2"], "rank: got --rank with"),
        (["--model", "net.py:make", *ROWS, "--scope", "global"], "scope: got --scope with"),
        (["--model", "net.py:make", "--method", "low-rank", "--rank", "2", "--q", "2"], "q: got --q with"),
        (["--model", "net.py:make", "--method", "epsilon-rows", "--epsilon", "1"], "epsilon: got 1.0"),
        (["--model", "net.py:make", "--method", "epsilon-rows", "--epsilon", "nan"], "epsilon: got nan"),
        (["--model", "net.py:make", "--method", "epsilon-rows", "--epsilon", "-0.1"], "epsilon: got -0.1"),
        (["--model", "net.py:make", *ROWS, "--q", "3"], "q: got 3"),
        (["--model", "net.py:make", "--method", "uniform-rows", "--ratio", "1"], "ratio: got 1.0"),
        (["--model", "net.py:make", "--method", "uniform-rows", "--ratio", "0.1", "--scope", "no"], "scope: got 'no'"),
        (["--model", "net.py:make", "--method", "low-rank", "--rank", "9"], "rank: got 9"),
        (["--model", "net.py:head", *ROWS], "module: got no layer besides the head"),
        (["--model", "net.py:network", *ROWS], "model: got a Network that is more"),
        (["--model", "net.py:ends_in_relu", *ROWS], "model: got a Network that is more"),
        (["--model", "net.py:stateful", *ROWS], "extra state"),
        (["--model", "net.py:broken_buffer", *ROWS], "statistics: got nan"),
        (["--model", "net.py:absent", *ROWS], "has no function 'absent'"),
        (["--model", "net.py:make", "--weights", "absent.safetensors", *ROWS], "no file"),
        (ROWS, "neither a model nor weights"),
    ],
)
@pytest.mark.parametrize("existing", [None, b"precious"])
def test_bad_input_writes_nothing(folder, capsys, arguments, word, existing):
    if existing is not None:
        Path("p.safetensors").write_bytes(existing)
    before = sorted(os.listdir())
    code, out, err = compress(capsys, *arguments)
    assert (code, out) == (2, "")
    assert word in err
    assert sorted(os.listdir()) == before
    if existing is not None:
        assert Path("p.safetensors").read_bytes() == existing


@pytest.mark.parametrize("out", ["p.npz", "p", "no/such/p.safetensors", "folder.safetensors"])
def test_a_bad_place_is_refused_before_the_work(folder, capsys, monkeypatch, out):
    Path("folder.safetensors").mkdir()
    monkeypatch.setattr("certbound.io.factory.load_model", lambda *_, **__: pytest.fail("the model was read"))
    code, _, err = compress(capsys, "--model", "net.py:make", *ROWS, out=out)
    assert code == 2
    assert "out: got" in err


def test_a_failed_write_leaves_the_old_file(folder, capsys, monkeypatch):
    Path("p.safetensors").write_bytes(b"precious")
    before = sorted(os.listdir())

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full)
    code, out, err = compress(capsys, "--model", "net.py:make", *ROWS)
    assert (code, out) == (2, "")
    assert "no space left" in err
    assert Path("p.safetensors").read_bytes() == b"precious"
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize(
    "arguments", [[*ROWS], ["--method", "prune", "--epsilon", "0.1"], ["--method", "low-rank", "--rank", "0"], []]
)
def test_usage(folder, arguments):
    with pytest.raises(SystemExit) as caught:
        cli.main(["compress", "--model", "net.py:make", *arguments])  # no --out
    assert caught.value.code == 2


@pytest.mark.parametrize("package", ["safetensors", "torch"])
def test_a_missing_package_is_named(folder, capsys, monkeypatch, package):
    for name in [n for n in sys.modules if n == package or (package != "torch" and n.startswith(f"{package}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, package, None)
    code, _, err = compress(capsys, "--weights", "net.npz", *ROWS)
    assert code == 3
    assert f"needs the package '{package}'" in err
    assert not Path("p.safetensors").exists()


def test_help_lists_it(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    assert "compress" in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        cli.main(["compress", "--help"])
    assert caught.value.code == 0
    assert "epsilon-spectral" in capsys.readouterr().out
