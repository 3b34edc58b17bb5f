"""check, compare, attack, gate: exit codes, streams, the cache, what is refused with which words."""

from __future__ import annotations

import json
import logging
import os
import pickle
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from cli_runs import run
from safetensors.numpy import save_file

from certbound import cli
from certbound import comparison as comparison_module
from certbound.commands import cache
from certbound.commands.options import number, per_part
from certbound.network import Network

ROOT = Path(__file__).resolve().parent.parent
FAST = ["--methods", "product,recursion,gradient", "--quiet"]
BALL = ["--delta", "0.02", "--norm", "inf"]

MODEL = """\
from torch import nn
from torch.nn.utils import prune
print("noise on stdout")
def make():
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
def convolutional():
    return nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2))
def smooth():
    return nn.Sequential(nn.Linear(3, 4), nn.ELU(), nn.Linear(4, 2))
def pruned():
    model = make()
    prune.l1_unstructured(model[0], "weight", 0.5)
    return model
def ends_in_relu():
    return nn.Sequential(nn.Linear(3, 2), nn.ReLU())
"""


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A small network and its samples, in the working folder; a cache of its own."""
    rng = np.random.default_rng(0)
    W1, W2 = rng.standard_normal((4, 3)) / 2, rng.standard_normal((2, 4))
    b1 = 0.1 * rng.standard_normal(4)
    x = rng.random((20, 3))
    y = Network.from_weights([W1, W2], [b1, None]).forward(x).argmax(axis=1)
    np.savez(tmp_path / "net.npz", W1=W1, b1=b1, W2=W2)
    np.savez(tmp_path / "data.npz", x=x, y=y)
    np.save(tmp_path / "W.npy", W1)
    (tmp_path / "net.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CERTBOUND_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path


def run_json(capsys, *arguments, code=0):
    """All of stdout is one JSON document with a schema version."""
    found, out, err = run(capsys, *arguments, "--json")
    assert found == code, err
    data = json.loads(out)
    assert data["schema_version"] == 1
    return data


def process(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "certbound.cli", *map(str, arguments)], capture_output=True, text=True, check=False,
        timeout=120, env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )  # fmt: skip


NET = ["--weights", "net.npz", "--data", "data.npz", *BALL]


# -- check ---------------------------------------------------------------------------------------------------


def test_check_a_matrix(files, capsys):
    code, out, _ = run(capsys, "check", "W.npy")
    assert code == 0
    assert "Theorem 3.1 (derived, dispersion kth" in out and "4x3" in out and out.count("yes") == 2
    data = run_json(capsys, "check", "W.npy", "--k", "2", "--dispersion", "mean", "--form", "printed")
    (layer,) = data["layers"]
    assert data["holds"] is True and layer["spectral"]["k"] == layer["neuron"]["k"] == 2
    assert layer["dispersion"] == "mean" and layer["form"] == "printed"
    data = run_json(capsys, "check", "W.npy", "--k", "spectral=1,neuron=3", "--k-row", "2")
    assert [data["layers"][0][p]["k"] for p in ("spectral", "neuron")] == [1, 3]
    assert data["layers"][0]["neuron"]["k_row"] == 2
    data = run_json(capsys, "check", "W.npy", "--rigor", "rigorous")
    assert data["layers"][0]["spectral"]["bound"]["rigor"] == "rigorous" and data["holds"] is not False
    assert run(capsys, "check", "W.npy", "--rigor", "heuristic")[0] == 2
    data = run_json(capsys, "check", "W.npy", "--target-epsilon", "0.9")
    assert data["layers"][0]["spectral"]["exact_epsilon"] <= 0.9


def test_a_hypothesis_that_is_not_met_is_an_answer(files, capsys):
    code, out, _ = run(capsys, "check", "W.npy", "--k", "1", "--epsilon", "0.99", "--beta", "0")
    assert code == 0 and "hypothesis not met" in out
    data = run_json(capsys, "check", "W.npy", "--k", "1", "--epsilon", "0.99", "--beta", "0")
    assert data["holds"] is None and data["layers"][0]["spectral"]["status"] == "HYPOTHESIS_NOT_MET"
    # numbers that make no sense are bad input
    for arguments in (["--epsilon", "0.1"], ["--k", "99"], ["--k", "1", "--beta", "7"], ["--form", "x"]):
        assert run(capsys, "check", "W.npy", *arguments)[0] == 2


def test_a_theorem_that_fails_is_1(files, capsys, monkeypatch):
    from certbound.theorems import theorem31

    monkeypatch.setattr(theorem31, "form_values", lambda measured, part, form, dispersion, k, *_: 0.0 * k)
    code, out, _ = run(capsys, "check", "net.npz")
    assert code == 1 and "NO" in out
    assert run_json(capsys, "check", "W.npy", code=1)["holds"] is False


def test_check_layers_of_files_and_models(files, capsys):
    names = [layer["name"] for layer in run_json(capsys, "check", "net.npz")["layers"]]
    assert names == ["W1", "W2"]
    data = run_json(capsys, "check", "--model", "net.py:convolutional")
    assert [(layer["name"], layer["shape"]) for layer in data["layers"]] == [("3", [2, 4])]
    data = run_json(capsys, "check", "--model", "net.py:make", "--layer", "2")
    assert [layer["name"] for layer in data["layers"]] == ["2"]
    code, out, err = run(capsys, "check", "--model", "net.py:make", "--layer", "fc9")
    assert (code, out) == (2, "") and "fc9" in err and "0, 2" in err
    assert len(run_json(capsys, "check", "net.npz", "W.npy")["layers"]) == 3
    names = [layer["name"] for layer in run_json(capsys, "check", "--weights", "net.npz")["layers"]]
    assert names == ["layers[0]", "layers[2]"]
    assert run(capsys, "check")[0] == run(capsys, "check", "W.npy", "--model", "net.py:make")[0] == 2


def test_check_a_file_of_weights(files, capsys):
    arrays = {"conv.weight": np.ones((2, 1, 3, 3)), "fc.weight": np.eye(3), "fc.bias": np.ones(3)}
    save_file(arrays, "w.safetensors")
    code, out, err = run(capsys, "check", "w.safetensors", "--layer", "fc")
    assert code == 0 and "fc.weight" in out and "conv.weight" in err


# -- compare and its cache ------------------------------------------------------------------------------------


def counted(monkeypatch):
    """Count the comparisons that are really made."""
    calls = []
    real = comparison_module.compare

    def compare(*arguments, **options):
        calls.append(options)
        return real(*arguments, **options)

    monkeypatch.setattr(comparison_module, "compare", compare)
    return calls


def test_compare_prints_and_passes_its_options(files, capsys, monkeypatch):
    calls = counted(monkeypatch)
    data = run_json(
        capsys, "compare", "--weights", "net.npz", "--data", "data.npz", "--delta", "8/255", "--norm", "2",
        "--methods", "product,recursion", "--n-samples", "7", "--seed", "3", "--time-limit", "100", "--quiet",
    )  # fmt: skip
    assert calls == [
        {"delta": 8 / 255, "norm": "2", "methods": ["product", "recursion"], "n_samples": 7, "time_limit": 100.0,
         "seed": 3, "progress": False}
    ]  # fmt: skip
    assert (data["delta"], data["norm"], data["n_samples"]) == (8 / 255, 2.0, 7)
    assert {r["method"] for r in data["rows"]} == {"product", "recursion"}


def test_cache_hit_miss_and_off(files, capsys, monkeypatch):
    calls = counted(monkeypatch)
    first = run(capsys, "compare", *NET, *FAST)
    assert first[0] == 0 and len(calls) == 1
    assert run(capsys, "compare", *NET, *FAST) == first and len(calls) == 1  # the very same text, seconds and all
    entries = list((files / "cache").iterdir())
    assert len(entries) == 1 and entries[0].suffix == ".json"
    data = run_json(capsys, "compare", *NET, *FAST)  # the table's entry serves JSON too
    assert len(calls) == 1
    run(capsys, "compare", *NET, *FAST, "--no-cache")
    assert len(calls) == 2
    run(capsys, "compare", *NET, *FAST, "--cache-dir", files / "other")
    assert len(calls) == 3 and len(list((files / "other").iterdir())) == 1
    # what else a result depends on
    for change in (["--delta", "0.03"], ["--norm", "2"], ["--seed", "1"], ["--n-samples", "5"], ["--time-limit", "99"],
                   ["--methods", "product"]):  # fmt: skip
        before = len(calls)
        assert run(capsys, "compare", *NET, *FAST, *change)[0] == 0
        assert len(calls) == before + 1, change
    before = len(calls)
    with np.load("net.npz") as arrays:
        np.savez("net2.npz", **{**arrays, "W2": arrays["W2"] * (1 + 2**-52)})
    run(capsys, "compare", "--weights", "net2.npz", *NET[2:], *FAST)
    with np.load("data.npz") as arrays:
        np.savez("data2.npz", x=arrays["x"], y=1 - arrays["y"])
    run(capsys, "compare", "--weights", "net.npz", "--data", "data2.npz", *BALL, *FAST)
    monkeypatch.setattr(cache, "_versions", lambda: {"certbound": "9"})
    run(capsys, "compare", *NET, *FAST)
    monkeypatch.setattr(cache, "_source_digest", lambda: "other source")
    run(capsys, "compare", *NET, *FAST)
    assert len(calls) == before + 4
    assert data["rows"]


@pytest.mark.parametrize(
    "damage", ["empty", "cut", "not json", "a list", "number changed", "another entry's", "binary", "a folder"]
)
def test_a_damaged_entry_is_computed_anew_and_replaced(files, capsys, monkeypatch, damage):
    calls = counted(monkeypatch)
    good = run_json(capsys, "compare", *NET, *FAST)
    (entry,) = (files / "cache").iterdir()
    content = entry.read_text()
    if damage == "number changed":
        changed = json.loads(content)
        changed["payload"]["data"]["rows"][0]["value"] = 1e-9
        entry.write_text(json.dumps(changed))
    elif damage == "another entry's":
        run(capsys, "compare", *NET, *FAST, "--seed", "1")
        (other,) = set((files / "cache").iterdir()) - {entry}
        entry.write_text(other.read_text())
        calls.pop()
    elif damage == "a folder":
        entry.unlink()
        entry.mkdir()
    else:
        texts = {"empty": b"", "cut": content[:-20].encode(), "not json": b"x", "a list": b"[1]", "binary": b"\xff\x00"}
        entry.write_bytes(texts[damage])
    code, out, err = run(capsys, "compare", *NET, *FAST, "--json")
    again = json.loads(out)
    assert code == 0 and len(calls) == 2 and "damaged" in err and str(entry) in err
    assert [r["value"] for r in again["rows"]] == [r["value"] for r in good["rows"]]
    if damage != "a folder":
        assert run_json(capsys, "compare", *NET, *FAST) == again and len(calls) == 2
    assert not list((files / "cache").glob("*.part"))


def test_results_that_depend_on_the_moment_are_not_kept(files, capsys, monkeypatch):
    """Out of time, failed, not installed: the next run may do better."""
    calls = counted(monkeypatch)
    for _ in range(2):
        run(capsys, "compare", *NET, *FAST, "--time-limit", "1e-9")
    assert len(calls) == 2 and not (files / "cache").exists()


def test_a_cache_that_cannot_be_written_is_no_failure(files, capsys):
    (files / "cache").write_text("a file where the folder should be")
    code, out, err = run(capsys, "compare", *NET, *FAST)
    assert code == 0 and "product" in out and "not cached" in err


def test_default_folder(monkeypatch):
    monkeypatch.delenv("CERTBOUND_CACHE_DIR", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache.default_folder() == Path("/x/certbound")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache.default_folder() == Path.home() / ".cache" / "certbound"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache.default_folder() == Path.home() / "Library" / "Caches" / "certbound"


def test_streams(files, capsys):
    """Nothing but the result on stdout, whatever a model file prints; nothing on stderr with --quiet."""
    arguments = ["compare", "--model", "net.py:make", "--data", "data.npz", *BALL, "--methods", "product", "--no-cache"]
    code, out, err = run(capsys, *arguments, "--json")
    assert code == 0 and json.loads(out)["schema_version"] == 1
    assert "noise on stdout" in err
    code, out, err = run(capsys, "compare", *NET, *FAST)
    assert (code, err) == (0, "")
    assert run(capsys, "compare", *NET, "--methods", "product")[2] != ""
    logger = logging.getLogger("certbound")
    assert not logger.handlers


# -- attack ------------------------------------------------------------------------------------------------------


def test_attack_saves_its_points(files, capsys):
    arguments = ["attack", *NET, "--n-samples", "6", "--steps", "5", "--restarts", "2", "--seed", "1"]
    arguments += ["--device", "cpu"]
    data = run_json(capsys, *arguments, "--save", "adv.npz")
    assert (data["steps"], data["restarts"], data["seed"], data["x_adv_shape"]) == (5, 2, 1, [6, 3])
    with np.load("adv.npz") as saved, np.load("data.npz") as clean:
        index = np.sort(np.random.default_rng(1).choice(20, 6, replace=False))
        assert np.all(np.abs(saved["x_adv"] - clean["x"][index]) <= 0.02)
        assert saved["y"].tolist() == clean["y"][index].tolist() == data["y"]
    assert not list(files.glob("*.part"))
    for bad in ("adv.txt", "no/such/folder/adv.npz"):
        code, out, err = run(capsys, *arguments, "--save", bad)
        assert (code, out) == (2, "") and "save" in err
    assert run(capsys, *arguments, "--method", "nonsense")[0] == 2


def test_attack_on_pruned_and_on_foreign_modules(files, capsys):
    """Pruned: torch cannot copy the module. ELU: outside the IR, but it has gradients."""
    more = ["--data", "data.npz", *BALL, "--steps", "3", "--device", "cpu"]
    code, out, err = run(capsys, "attack", "--model", "net.py:pruned", *more)
    assert code == 0 and "mean loss gap" in out, err
    code, out, err = run(capsys, "attack", "--model", "net.py:smooth", *more)
    assert code == 0 and "mean loss gap" in out and "ELU" in err


def test_attack_and_compare_take_the_same_samples(files):
    from certbound.commands.attack import subset

    x, y = np.arange(20.0)[:, None], np.arange(20)
    index = comparison_module._subset(20, 6, 1)
    ours, theirs = subset(x, y, 6, 1), (x[index], y[index])
    assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


# -- gate --------------------------------------------------------------------------------------------------------


def test_gate_passes_fails_and_reports(files, capsys):
    arguments = ["gate", *NET, *FAST]
    assert run(capsys, *arguments, "--max-lipschitz", "1000")[0] == 0
    code, out, _ = run(capsys, *arguments, "--max-lipschitz", "0.01", "--max-loss-gap", "100", "--junit", "out.xml")
    assert code == 1 and "FAIL" in out and "recursion" in out
    suite = ET.parse("out.xml").getroot().find("testsuite")
    assert [c.find("failure") is None for c in suite.findall("testcase")] == [False, True]
    data = run_json(capsys, *arguments, "--max-lipschitz", "0.01", code=1)
    assert data["passed"] is False
    # the attack was not run: nothing was found
    code, out, _ = run(capsys, *arguments, "--min-robust-accuracy", "0.01")
    assert code == 1 and "no method of this kind was run" in out
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "") and "asks nothing" in err
    assert run(capsys, *arguments, "--max-lipschitz", "nan")[0] == 2


def test_gate_baseline(files, capsys):
    arguments = ["gate", *NET, *FAST]
    assert run(capsys, *arguments, "--write-baseline", "base.json")[0] == 0
    assert run(capsys, *arguments, "--baseline", "base.json")[0] == 0
    with np.load("net.npz") as arrays:
        np.savez("worse.npz", **{**arrays, "W1": arrays["W1"] * 1.05})
        np.savez("wider.npz", W1=np.ones((5, 3)), W2=np.ones((2, 5)))
    worse = ["gate", "--weights", "worse.npz", *NET[2:], *FAST, "--baseline", "base.json"]
    code, out, _ = run(capsys, *worse)
    assert code == 1 and "baseline" in out
    assert run(capsys, *worse, "--tolerance", "0.5")[0] == 0
    code, out, err = run(capsys, *worse, "--write-baseline", "new.json")
    assert code == 1 and not Path("new.json").exists() and "not written" in err
    for change, word in ((["--delta", "0.03"], "delta"), (["--norm", "2"], "norm"), (["--n-samples", "5"], "samples"),
                         (["--weights", "wider.npz"], "network shape")):  # fmt: skip
        code, out, err = run(capsys, *arguments, "--baseline", "base.json", *change)
        assert (code, out) == (2, "") and word in err and "base" in err, change
    code, _, err = run(capsys, *arguments, "--baseline", "none.json")
    assert code == 2 and "none.json" in err


# -- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        ("smooth", ["ELU", "aten.elu", "gelu"]),
        ("convolutional", ["(1, 1, 1, 3)", "Kernel size"]),
        ("ends_in_relu", ["ReLU", "logits"]),
        ("nothing", ["no function 'nothing'", "make"]),
    ],
)
@pytest.mark.parametrize("command", ["compare", "gate"])
def test_bad_networks(files, capsys, factory, words, command):
    more = ["--max-lipschitz", "1"] if command == "gate" else ["--no-cache"]
    code, out, err = run(
        capsys, command, "--model", f"net.py:{factory}", "--data", "data.npz", *BALL, *FAST, *more,
        *(["--input-shape", "1,1,3"] if factory == "convolutional" else []),
    )  # fmt: skip
    assert (code, out) == (2, "")
    assert all(w in err for w in words), err


def test_bad_files(files, capsys):
    (files / "evil.npy").write_bytes(pickle.dumps(print))
    (files / "text.npz").write_text("x,y\n1,2\n")
    np.savez("pixels.npz", x=np.full((2, 3), 255.0), y=[0, 1])
    np.savez("labels.npz", x=np.zeros((2, 3)), y=[0, 7])
    np.savez("nolabels.npz", x=np.zeros((2, 3)))
    for arguments, words in (
        (["--weights", "evil.npy", "--data", "data.npz"], ["evil.npy", "pickle"]),
        (["--weights", "text.npz", "--data", "data.npz"], ["text.npz"]),
        (["--weights", "none.npz", "--data", "data.npz"], ["no file"]),
        (["--weights", "program.pt2", "--data", "data.npz"], ["unpickles"]),
        (["--weights", "net.npz", "--data", "pixels.npz"], ["[0, 1]", "255"]),
        (["--weights", "net.npz", "--data", "labels.npz"], ["7"]),
        (["--weights", "net.npz", "--data", "nolabels.npz"], ["no y"]),
        (["--weights", "net.npz", "--data", "imagenet"], ["imagenet", "mnist5k"]),
        (["--weights", "net.npz", "--data", "digits"], ["64"]),
        (["--weights", "net.npz", "--data", "data.npz", "--input-shape", "2,2"], ["input_shape"]),
        (["--weights", "net.npz", "--data", "data.npz", "--methods", "magic"], ["magic"]),
        (["--weights", "net.npz", "--data", "data.npz", "--delta", "-1"], ["delta"]),
        (["--weights", "net.npz", "--data", "data.npz", "--norm", "1"], ["norm"]),
        (["--data", "data.npz"], ["--weights"]),
    ):
        code, out, err = run(capsys, "compare", *BALL, *FAST[2:], "--no-cache", *arguments)
        assert (code, out) == (2, ""), arguments
        assert all(w in err for w in words), err


@pytest.mark.parametrize(
    "arguments",
    [
        ["compare", "--data", "x.npz"],
        ["compare", *NET, "--delta", "8/0"],
        ["compare", *NET, "--delta", "abc"],
        ["compare", *NET, "--seed", "-1"],
        ["compare", *NET, "--methods", "a,,b"],
        ["attack", *NET, "--steps", "0"],
        ["check", "W.npy", "--k", "spectral=1"],
    ],
)
def test_bad_usage(arguments, capsys):
    with pytest.raises(SystemExit) as info:
        cli.main(arguments)
    assert info.value.code == 2
    out, err = capsys.readouterr()
    assert out == "" and "usage: certbound" in err


@pytest.mark.parametrize("command", ["check", "compare", "attack", "gate", "demo", "doctor"])
def test_help_has_examples_and_common_options(command, capsys):
    with pytest.raises(SystemExit) as info:
        cli.main([command, "--help"])
    assert info.value.code == 0
    out = capsys.readouterr().out
    assert "example" in out and f"certbound {command}" in out and "--json" in out and "--quiet" in out
    if command not in ("demo", "doctor"):
        assert "exit codes" in out


def test_numbers_of_the_command_line():
    assert number("8/255") == 8 / 255 and number("1e-3") == 0.001 and number(" 1/4 ") == 0.25
    assert per_part("2") == 2 and isinstance(per_part("2"), int)
    assert per_part("neuron=0.5,spectral=2") == {"spectral": 2, "neuron": 0.5}


def test_data_sets_by_name(files, capsys):
    from certbound.commands.inputs import load_samples

    x, y = load_samples("digits", seed=0)
    assert x.shape == (1797, 64) and x.min() == 0.0 and x.max() == 1.0 and set(y) == set(range(10))
    x, y = load_samples("mnist5k", seed=0)
    assert x.shape == (1000, 784) and len(y) == 1000


# -- real processes ---------------------------------------------------------------------------------------------------


def test_exit_codes_of_real_processes(files):
    ok = process("check", "W.npy", "--json")
    assert ok.returncode == 0 and json.loads(ok.stdout)["schema_version"] == 1
    fails = process("gate", *NET, *FAST, "--max-lipschitz", "0.01")
    assert fails.returncode == 1 and "FAIL" in fails.stdout and fails.stderr == ""
    bad = process("check", "none.npy")
    assert bad.returncode == 2 and bad.stdout == "" and "no file" in bad.stderr
    assert "Traceback" not in bad.stderr


def test_a_missing_extra_is_3(files):
    code = (
        "import sys; sys.modules['safetensors'] = None;"
        "from certbound.cli import main; sys.exit(main(['check', 'w.safetensors']))"
    )
    (files / "w.safetensors").write_bytes(b"x")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False,
                          env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=60)  # fmt: skip
    assert done.returncode == 3 and "certbound[io]" in done.stderr and done.stdout == ""


def test_the_parser_imports_nothing_heavy():
    code = (
        "import sys; from certbound.cli import build_parser; build_parser();"
        "print(sorted({'torch', 'numpy', 'scipy', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
