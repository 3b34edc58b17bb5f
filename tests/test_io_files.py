"""Files of weights and samples: read exactly and strictly, never unpickled; what is ambiguous is refused by name."""

from __future__ import annotations

import json
import logging
import os
import pickle
import struct
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch
from safetensors import numpy as safetensors_numpy
from safetensors.torch import save_file as save_torch_file
from torch import nn
from torch.nn.utils import prune

from certbound.errors import InputError, MissingDependencyError
from certbound.io import npy, weights_file
from certbound.io.factory import load_factory, load_model
from certbound.io.files import natural_key
from certbound.io.layers import named_matrices
from certbound.io.quantised import dequantise, is_exact
from certbound.io.torch_layers import Normalise
from certbound.io.weights_file import chain, load_into, load_weights, to_network
from certbound.network import Affine, Network, ReLU, as_network

RNG = np.random.default_rng(0)
W1, B1, W2 = RNG.standard_normal((4, 3)), RNG.standard_normal(4), RNG.standard_normal((2, 4))


def saved_npz(path, **arrays):
    np.savez(path, **arrays)
    return path


def saved_safetensors(path, **arrays):
    safetensors_numpy.save_file({k.replace("__", "."): np.ascontiguousarray(v) for k, v in arrays.items()}, path)
    return path


def saved_state(path, state):
    torch.save(state, path)
    return path


def refused(*words):
    """A context that wants an InputError whose message has all the words."""

    class Words:
        def __enter__(self):
            self.context = pytest.raises(InputError)
            self.info = self.context.__enter__()

        def __exit__(self, *error):
            done = self.context.__exit__(*error)
            for word in words:
                assert word in str(self.info.value), (word, str(self.info.value))
            return done

    return Words()


class Payload:
    """Its unpickling makes a file."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return (os.mkdir, (self.target,))


# -- .npy and .npz ----------------------------------------------------------------------------------------


def test_npy_is_one_matrix(tmp_path):
    np.save(tmp_path / "W.npy", W1)
    net = load_model(None, tmp_path / "W.npy")
    assert len(net.layers) == 1 and np.array_equal(net.layers[0].weight, W1)


def test_npz_pairs_are_taken_in_order_of_their_numbers(tmp_path):
    eye = {f"W{i}": np.eye(3) * i for i in (10, 9, 2)}
    path = saved_npz(tmp_path / "net.npz", **eye, b9=np.ones(3))
    found = npy.load_matrices(path)
    assert list(found) == ["W2", "W9", "W10"]
    assert [b is None for _, b in found.values()] == [True, False, True]
    net = npy.load_network(path)
    assert [type(layer) for layer in net.layers] == [Affine, ReLU, Affine, ReLU, Affine]
    assert np.array_equal(net.layers[2].bias, np.ones(3))


def test_npz_without_names_is_in_order(tmp_path):
    np.savez(tmp_path / "net.npz", *[np.eye(2) * i for i in range(12)])
    assert [w[0, 0] for w, _ in npy.load_matrices(tmp_path / "net.npz").values()] == list(range(12))


def test_npz_with_explicit_layers(tmp_path):
    path = saved_npz(tmp_path / "net.npz", head=W2, body=W1, shift=B1, other=np.zeros((9, 9)))
    with refused("head, body, shift", "order", "--layers"):
        npy.load_matrices(path)
    net = load_model(None, path, layers=["body", "shift", "head"])
    x = RNG.random((5, 3))
    np.testing.assert_allclose(net.forward(x), np.maximum(x @ W1.T + B1, 0) @ W2.T, rtol=1e-12)
    for keys in (["body", "nonsense"], ["body", "body"], []):
        with refused("layers"):
            npy.load_matrices(path, layers=keys)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"W1": W1, "b2": B1}, ["b2", "without a matrix"]),
        ({"W1": W1, "W01": W1}, ["each number once"]),
        ({"W1": RNG.random((2, 3, 3, 3))}, ["W1", "matrix"]),
        ({"W1": W1 + 1j}, ["W1", "real"]),
        ({"W1": W1 * np.nan}, ["W1", "nan"]),
        ({}, ["without arrays"]),
    ],
)
def test_bad_npz(tmp_path, arrays, words):
    path = saved_npz(tmp_path / "bad.npz", **arrays)
    with refused(*words):
        npy.load_network(path)


@pytest.mark.parametrize("name", ["evil.npy", "evil.npz"])
def test_a_numpy_file_with_a_pickle_runs_nothing(tmp_path, name):
    mark = tmp_path / "ran"
    payload = np.array([Payload(mark)], dtype=object)
    with open(tmp_path / name, "wb") as stream:
        (np.save if name.endswith("npy") else np.savez)(stream, payload)
    with refused(name, "pickle", "any code"):
        npy.load_arrays(tmp_path / name)
    assert not mark.exists()
    with open(tmp_path / name, "wb") as stream:  # a plain pickle under that name
        pickle.dump(Payload(mark), stream)
    with refused(name):
        npy.load_arrays(tmp_path / name)
    assert not mark.exists()


def test_damaged_missing_and_empty_files(tmp_path):
    good = saved_npz(tmp_path / "good.npz", W1=W1)
    content = good.read_bytes()
    for cut in (0, 10, len(content) // 2, len(content) - 10):
        (tmp_path / "cut.npz").write_bytes(content[:cut])
        with refused("cut.npz"):
            npy.load_arrays(tmp_path / "cut.npz")
    with refused("no file"):
        npy.load_arrays(tmp_path / "none.npz")
    with refused("a folder"):
        npy.load_arrays(tmp_path)


def test_samples(tmp_path):
    path = saved_npz(tmp_path / "data.npz", x=np.float32(RNG.random((5, 3))), y=np.arange(5), extra=np.ones(2))
    x, y = npy.load_samples(path)
    assert x.dtype == np.float64 and y.tolist() == list(range(5))
    with refused("no y", "np.savez(path, x=x, y=y)"):
        npy.load_samples(saved_npz(tmp_path / "bad.npz", x=W1, label=B1))


def test_natural_order():
    assert sorted(["a10", "a9", "a1b2", "b"], key=natural_key) == ["a1b2", "a9", "a10", "b"]


# -- quantised weights --------------------------------------------------------------------------------------


def exactly(q, scale, zero):
    return Fraction(float(scale)) * (int(q) - int(zero))


@pytest.mark.parametrize("seed", range(5))
def test_float32_scales_are_exact(seed):
    rng = np.random.default_rng(seed)
    q = rng.integers(-128, 128, (6, 5), dtype=np.int8)
    scales = np.float32(10.0 ** rng.uniform(-6, 3, 6))
    zeros = rng.integers(-128, 128, 6)
    values = dequantise(q, scales, zeros, axis=0)
    assert is_exact(q, scales, zeros, axis=0)
    for i in range(6):
        for j in range(5):
            assert Fraction(values[i, j]) == exactly(q[i, j], scales[i], zeros[i])
    assert np.array_equal(dequantise(q.T, scales, zeros, axis=1), values.T)
    assert np.array_equal(dequantise(q.T, scales, zeros, axis=-1), values.T)


def test_float64_scales_are_rounded_once_and_said_so(caplog):
    q = np.arange(-128, 128)
    with caplog.at_level(logging.WARNING):
        values = dequantise(q, 0.1, 3)
    assert "rounded" in caplog.text and not is_exact(q, 0.1, 3)
    for a, v in zip(q, values, strict=True):
        exact = exactly(a, 0.1, 3)
        assert abs(Fraction(float(v)) - exact) <= abs(exact) / 2**53
    caplog.clear()
    assert is_exact([1, 2, -4], 0.1) and dequantise([1, 2, -4], 0.1)[0] == 0.1  # powers of two never round
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (([0.5], 1.0), "q"),
        (([1], 0.0), "scale"),
        (([1], -1.0), "scale"),
        (([1], np.nan), "scale"),
        (([1], 1.0, 0.5), "zero_point"),
        (([[1, 2]], [1.0, 2.0]), "axis"),
        (([[1, 2]], [1.0, 2.0, 3.0], 0, 1), "scale"),
        (([[1, 2]], [1.0, 2.0], 0, 2), "axis"),
        (([1], 5e-324), "scale"),
        (([2**20], 1e308), "scale"),
    ],
)
def test_bad_quantisation(arguments, word):
    with pytest.raises(InputError) as info:
        dequantise(*arguments)
    assert info.value.argument == word


@pytest.mark.filterwarnings("ignore")
def test_torch_quantised_tensors(tmp_path):
    weight = torch.from_numpy(np.float32(W1))
    tensor = torch.quantize_per_tensor(weight, float(np.float32(0.03)), 7, torch.quint8)
    channels = torch.quantize_per_channel(
        torch.from_numpy(np.float32(W2)), torch.tensor([0.02, 0.5]), torch.tensor([0, 0]), 0, torch.qint8
    )
    path = saved_state(tmp_path / "q.pt", {"0.weight": tensor, "2.weight": channels})
    arrays = load_weights(path).arrays
    scale = channels.q_per_channel_scales().numpy()
    for i in range(4):
        for j in range(3):
            assert Fraction(arrays["0.weight"][i, j]) == exactly(tensor.int_repr()[i, j], np.float32(0.03), 7)
    for i in range(2):
        for j in range(4):
            assert Fraction(arrays["2.weight"][i, j]) == exactly(channels.int_repr()[i, j], scale[i], 0)
    module = load_model(write_model(tmp_path), path)  # a float32 module cannot hold these numbers
    assert module[0].weight.dtype == torch.float64
    assert np.array_equal(module[0].weight.detach().numpy(), arrays["0.weight"])


def test_int8_with_scales_beside_them(tmp_path):
    q1, q2 = RNG.integers(-128, 128, (4, 3), dtype=np.int8), RNG.integers(0, 255, (2, 4), dtype=np.uint8)
    tensors = {
        "fc1.weight": q1, "fc1.weight_scale": np.float32([[0.1], [0.2], [0.3], [0.4]]), "fc1.bias": np.float32(B1),
        "fc2.weight": q2, "fc2.weight_scale": np.float32([0.01]), "fc2.weight_zero_point": np.int32([128]),
    }  # fmt: skip
    path = tmp_path / "q.safetensors"
    safetensors_numpy.save_file(tensors, path)
    found = chain(load_weights(path))
    assert list(found) == ["fc1.weight", "fc2.weight"]
    assert np.array_equal(found["fc1.weight"][0], np.float64(np.float32([0.1, 0.2, 0.3, 0.4]))[:, None] * q1)
    assert np.array_equal(found["fc2.weight"][0], np.float64(np.float32(0.01)) * (q2.astype(float) - 128))
    del tensors["fc2.weight_scale"]
    safetensors_numpy.save_file(tensors, path)
    with refused("fc2.weight", "without a scale"):
        load_weights(path)
    tensors["fc2.weight_scale"] = np.float32([1, 2, 3, 4])  # per column, or per group: which?
    safetensors_numpy.save_file(tensors, path)
    with refused("fc2.weight_scale", "one per row"):
        load_weights(path)


def test_quantised_modules_are_refused_with_the_reason(tmp_path):
    state = {"fc.scale": torch.tensor(1.0), "fc._packed_params._packed_params": torch.ones(2)}
    with refused("_packed_params", "rounds activations"):
        load_weights(saved_state(tmp_path / "q.pt", state))


# -- safetensors and state dicts --------------------------------------------------------------------------------


def test_safetensors_chain_is_in_order_of_its_numbers(tmp_path, caplog):
    layers = {f"net__{i}__weight": np.eye(3) * i for i in (2, 10, 0, 9, 21, 100)}
    path = saved_safetensors(tmp_path / "w.safetensors", **layers, net__2__bias=np.ones(3))
    with caplog.at_level(logging.INFO):
        net = load_model(None, path)
    assert [layer.weight[0, 0] for layer in net.layers if isinstance(layer, Affine)] == [0, 2, 9, 10, 21, 100]
    assert np.array_equal(net.layers[2].bias, np.ones(3))
    assert "read as a ReLU network of net.0.weight, net.2.weight, net.9.weight, net.10.weight" in caplog.text


def test_every_float_is_exact(tmp_path):
    state = {f"{d}": torch.randn(3, 3, dtype=torch.float64).to(d) for d in (torch.float16, torch.bfloat16,
                                                                           torch.float32, torch.float64)}  # fmt: skip
    save_torch_file(state, tmp_path / "w.safetensors")
    saved_state(tmp_path / "w.pt", state)
    for name in ("w.safetensors", "w.pt"):
        arrays = load_weights(tmp_path / name).arrays
        for key, tensor in state.items():
            assert np.array_equal(arrays[key], tensor.double().numpy()), (name, key)


def raw_safetensors(path, header, data=b""):
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def test_bad_safetensors(tmp_path):
    path = saved_safetensors(tmp_path / "w.safetensors", fc__weight=W1)
    content = path.read_bytes()
    for cut in (0, 4, 20, len(content) - 1):
        path.write_bytes(content[:cut])
        with refused("w.safetensors", "no safetensors file"):
            load_weights(path)
    entry = {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}
    with refused("F8_E4M3", "a.weight"):
        load_weights(raw_safetensors(path, {"a.weight": entry}, b"12"))
    with refused("without tensors"):
        load_weights(raw_safetensors(path, {}))
    with refused("net.h5", "safetensors"):
        (tmp_path / "net.h5").write_bytes(b"x")
        load_weights(tmp_path / "net.h5")
    saved_safetensors(path, fc__weight=np.array([[np.inf]]))
    with refused("fc.weight", "inf"):
        load_weights(path)


def test_a_missing_package_names_the_command(tmp_path, monkeypatch):
    path = saved_safetensors(tmp_path / "w.safetensors", fc__weight=W1)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(MissingDependencyError, match=r"certbound\[io\]"):
        load_weights(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("form", ["zip", "legacy", "plain pickle"])
def test_a_malicious_state_dict_runs_nothing(tmp_path, form, monkeypatch):
    mark = tmp_path / "ran"
    state = {"fc.weight": torch.ones(2, 2), "evil": Payload(mark)}
    path = tmp_path / "evil.pt"
    if form == "plain pickle":
        path.write_bytes(pickle.dumps(Payload(mark)))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form == "zip")
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # meant to switch the protection off
    with refused("evil.pt", "run code", "state dict"):
        load_weights(path)
    assert not mark.exists()
    torch_load = torch.load  # the payload is a real one
    with pytest.raises(Exception, match=r".*"):
        torch_load(path, weights_only=False)["no such key"]
    assert mark.exists()


def test_old_torch_is_not_trusted(tmp_path, monkeypatch):
    path = saved_state(tmp_path / "w.pt", {"weight": torch.ones(1, 1)})
    monkeypatch.setattr(torch, "__version__", "2.5.1+cpu")
    with refused("2.5.1", "CVE-2025-32434"):
        load_weights(path)


@pytest.mark.filterwarnings("ignore")
def test_other_torch_files_are_refused_by_name(tmp_path):
    layer = nn.Linear(2, 2)
    torch.save(layer, tmp_path / "module.pt")
    with refused("module.pt", "run code"):
        load_weights(tmp_path / "module.pt")
    torch.jit.save(torch.jit.trace(layer, torch.ones(1, 2)), tmp_path / "script.pt")
    with refused("TorchScript"):
        load_weights(tmp_path / "script.pt")
    for content in (b"", b"garbage"):
        (tmp_path / "bad.pt").write_bytes(content)
        with refused("bad.pt"):
            load_weights(tmp_path / "bad.pt")
    with refused("a Tensor"):
        load_weights(saved_state(tmp_path / "t.pt", torch.ones(2)))
    with refused("'epoch'", "int"):
        load_weights(saved_state(tmp_path / "c.pt", {"epoch": 3, "fc.weight": torch.ones(2, 2)}))


def test_checkpoints_with_a_state_dict_inside(tmp_path):
    inner = {"fc.weight": torch.ones(2, 3)}
    path = saved_state(tmp_path / "c.ckpt", {"epoch": 3, "state_dict": inner, "optimizer": {"lr": 0.1}})
    assert list(load_weights(path).arrays) == ["fc.weight"]
    with refused("'state_dict'"):
        load_weights(saved_state(path, {"state_dict": inner, "model": inner}))


FOREIGN = {
    "kernel": ({"0.weight": torch.ones(2, 1, 3, 3)}, ["0.weight", "convolution", "no architecture"]),
    "batch norm": (
        {"0.weight": torch.ones(2, 2), "1.running_mean": torch.ones(2)},
        ["1.running_mean", "batch normalisation", "no architecture"],
    ),
    "layer norm": ({"0.weight": torch.ones(2, 2), "1.weight": torch.ones(2)}, ["1.weight", "normalisation"]),
    "pruned": ({"0.weight_orig": torch.ones(2, 2), "0.weight_mask": torch.ones(2, 2)}, ["0.weight_orig", "pruning"]),
    "free parameter": ({"0.weight": torch.ones(2, 2), "temperature": torch.ones(1)}, ["temperature", "neither"]),
    "lonely bias": ({"0.weight": torch.ones(2, 2), "1.bias": torch.ones(2)}, ["1.bias", "without a weight"]),
    "widths": ({"0.weight": torch.ones(2, 2), "1.weight": torch.ones(2, 3)}, ["widths", "no architecture"]),
    "order": ({"2.weight": torch.ones(2, 2), "0.weight": torch.ones(2, 2)}, ["order", "not known"]),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_no_plain_chain_is_refused(tmp_path, name):
    state, words = FOREIGN[name]
    weights = load_weights(saved_state(tmp_path / "w.pt", state))
    with refused(*words, "--model file.py:factory"):
        to_network(weights)


def test_names_without_numbers_have_an_order_in_a_state_dict_only(tmp_path):
    state = {"first.weight": torch.eye(2), "beyond.weight": 2 * torch.eye(2)}
    assert list(chain(load_weights(saved_state(tmp_path / "w.pt", state)))) == ["first.weight", "beyond.weight"]
    path = saved_safetensors(tmp_path / "w.safetensors", first__weight=np.eye(2), beyond__weight=np.eye(2))
    with refused("beyond, first", "order of application is not known"):
        chain(load_weights(path))
    saved_safetensors(path, only__weight=np.eye(2))
    assert list(chain(load_weights(path))) == ["only.weight"]


# -- factories --------------------------------------------------------------------------------------------------

MODEL = """\
from torch import nn
print("hello from the model file")
def make():
    return nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False))
def other():
    return 42
size = 3
"""


def write_model(folder, text=MODEL, name="net.py"):
    (folder / name).write_text(text)
    return f"{folder / name}:make"


def test_factory_with_weights_strictly(tmp_path):
    spec = write_model(tmp_path)
    path = saved_safetensors(tmp_path / "w.safetensors", **{"0__weight": np.float32(W1), "2__weight": np.float32(W2)})
    module = load_model(spec, path)
    assert not module.training
    x = RNG.random((5, 3))
    net = as_network(module)
    expected = np.maximum(x @ np.float64(np.float32(W1)).T, 0) @ np.float64(np.float32(W2)).T
    np.testing.assert_allclose(net.forward(x), expected, rtol=1e-12)
    assert module[0].weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"0__weight": W1}, ["missing: 2.weight"]),
        ({"0__weight": W1, "2__weight": W2, "2__bias": np.ones(2)}, ["unexpected: 2.bias"]),
        ({"0__weight": W1, "2__weight": W2.T}, ["another shape: 2.weight (4, 2) for (2, 4)"]),
        ({"0__weight": W1, "3__weight": W2}, ["missing: 2.weight", "unexpected: 3.weight"]),
    ],
)
def test_weights_that_do_not_fit(tmp_path, arrays, words):
    path = saved_safetensors(tmp_path / "w.safetensors", **arrays)
    with refused(*words):
        load_model(write_model(tmp_path), path)


def test_float64_weights_are_not_rounded_into_a_float32_module(tmp_path):
    path = saved_safetensors(tmp_path / "w.safetensors", **{"0__weight": W1, "2__weight": W2})
    assert np.array_equal(as_network(load_model(write_model(tmp_path), path)).layers[0].weight, W1)


def test_shared_weights_with_two_values(tmp_path):
    shared = nn.Linear(2, 2, bias=False)
    module = nn.Sequential(shared, nn.ReLU(), shared)
    path = saved_safetensors(tmp_path / "w.safetensors", **{"0__weight": np.eye(2), "2__weight": np.eye(2)})
    load_into(module, load_weights(path))
    saved_safetensors(path, **{"0__weight": np.eye(2), "2__weight": 2 * np.eye(2)})
    with refused("two values for one tensor", "0.weight"):
        load_into(module, load_weights(path))


def test_buffers_are_loaded_too(tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 4)
            self.register_buffer("count", torch.zeros((), dtype=torch.int64))

        def forward(self, x):
            return self.fc(x)

    module = Net()
    state = {**module.state_dict(), "count": torch.tensor(7)}
    load_into(module, load_weights(saved_state(tmp_path / "w.pt", state)))
    assert module.count == 7
    with refused("count", "fraction"):
        load_into(module, load_weights(saved_state(tmp_path / "w.pt", {**state, "count": torch.tensor(0.5)})))


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("net.py", ["file.py:factory"]),
        ("net.py:", ["file.py:factory"]),
        ("net.py:none", ["no function 'none'", "make, other"]),
        ("net.py:size", ["no function 'size'"]),
        ("net.py:other", ["returned a int", "nn.Module"]),
        ("missing.py:make", ["no file"]),
        ("net.txt:make", ["net.txt"]),
        ("program.pt2", ["unpickles", "safetensors"]),
        ("model.onnx", ["no file"]),
    ],
)
def test_bad_factories(tmp_path, spec, words):
    write_model(tmp_path)
    (tmp_path / "net.txt").write_text("")
    with refused(*words):
        load_model(str(tmp_path / spec))


def test_exported_programs_are_refused_and_not_opened(tmp_path):
    mark = tmp_path / "ran"
    (tmp_path / "p.pt2").write_bytes(pickle.dumps(Payload(mark)))
    for arguments in ((str(tmp_path / "p.pt2"), None), (None, tmp_path / "p.pt2")):
        with refused("p.pt2", "torch.export.load unpickles"):
            load_model(*arguments)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import no_such_package\ndef make(): pass", ["ModuleNotFoundError", "line 1", "install no_such_package"]),
        ("x = 1\ny = (", ["SyntaxError", "line 2"]),
        ("def make():\n    pass\n    return 1 / 0", ["ZeroDivisionError from make()", "line 3"]),
        ("import sys\nsys.exit(0)", ["SystemExit", "line 2"]),
        ("def make(size): pass", ["TypeError", "size"]),
    ],
)
def test_errors_in_the_users_file_name_the_line(tmp_path, text, words):
    with refused("net.py", *words):
        load_model(write_model(tmp_path, text))


def test_the_users_file_is_run_in_isolation(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    before, path = set(sys.modules), list(sys.path)
    results = []
    for folder, width in (("a", 3), ("b", 5)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "layers_of_mine.py").write_text(f"WIDTH = {width}")
        text = (
            "from __future__ import annotations\n"
            "import dataclasses, torch\nfrom layers_of_mine import WIDTH\n"
            "@dataclasses.dataclass\nclass Config:\n    width: int = WIDTH\n"
            "def make():\n    import layers_of_mine as again\n    assert again.WIDTH == WIDTH\n"
            "    return torch.nn.Linear(Config().width, 1)\n"
        )
        results.append(load_model(write_model(tmp_path / folder, text)))
    assert [m.in_features for m in results] == [3, 5]  # not the other folder's layers_of_mine
    assert sys.path == path
    assert not {m for m in set(sys.modules) - before if "layers_of_mine" in m or m.startswith("_certbound_model")}
    assert not list(tmp_path.rglob("__pycache__"))


def test_a_changed_file_is_read_anew(tmp_path):
    for width in (3, 4):
        spec = write_model(tmp_path, f"from torch import nn\ndef make(): return nn.Linear({width}, 1)")
        assert load_factory(spec)().in_features == width


def test_no_torch_in_the_users_file(tmp_path, monkeypatch):
    spec = write_model(tmp_path, "raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')")
    with pytest.raises(MissingDependencyError, match=r"certbound\[torch\]"):
        load_model(spec)


def test_combinations_that_mean_nothing(tmp_path):
    spec = write_model(tmp_path)
    np.save(tmp_path / "W.npy", W1)
    with refused("neither a model nor weights"):
        load_model(None)
    with refused("W.npy", "safetensors or a state dict"):
        load_model(spec, tmp_path / "W.npy")
    with refused("layers"):
        load_model(spec, None, layers=["W1"])
    numbers = write_model(tmp_path, "def make(): return [[[1.0, 2.0]]]", "list.py")
    assert as_network(load_model(numbers)).n_inputs == 2
    with refused("weights for a list"):
        load_model(numbers, saved_safetensors(tmp_path / "w.safetensors", fc__weight=W1))


# -- compressed models: pruned, factored, normalised -----------------------------------------------------------------


def compressed():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), Normalise([0.1307] * 6, [0.3081] * 6), nn.Linear(6, 3, bias=False), nn.Linear(3, 8), nn.ReLU(),
        nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2, bias=False), nn.Linear(2, 4),
    )  # fmt: skip
    prune.l1_unstructured(model[5], "weight", 0.7)
    prune.ln_structured(model[2], "weight", 0.3, n=2, dim=0)
    return model.eval()


def test_pruned_factored_and_normalised_model_is_the_same_function(tmp_path):
    model = compressed()
    net = as_network(model)
    x = np.random.default_rng(0).random((20, 6))
    twin = compressed().double()
    with torch.no_grad():
        np.testing.assert_allclose(net.forward(x), twin(torch.from_numpy(x)).numpy(), rtol=1e-6, atol=1e-7)
    assert [w.shape for w in net.chain.weights] == [(8, 6), (8, 8), (4, 8)]  # the pairs are multiplied
    masked = named_matrices(model)
    assert list(masked) == ["2", "3", "5", "7", "8"]
    assert np.mean(masked["5"] == 0) == pytest.approx(0.7, abs=0.01)
    # through a file: the factory makes the pruned model, the state dict has weight_orig and weight_mask
    saved_state(tmp_path / "w.pt", model.state_dict())
    twin = compressed()
    for parameter in twin.parameters():
        parameter.data.zero_()
    again = as_network(load_into(twin, load_weights(tmp_path / "w.pt")))
    assert np.array_equal(again.forward(x), net.forward(x))
    with refused("weight_orig", "pruning"):
        to_network(load_weights(tmp_path / "w.pt"))


def test_matrices_of_models_outside_the_ir(caplog):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.GELU(), nn.Flatten(), nn.Linear(8, 3))
    with caplog.at_level(logging.INFO):
        assert [w.shape for w in named_matrices(model).values()] == [(3, 8)]
    assert "0 (Conv2d)" in caplog.text
    with refused("without nn.Linear"):
        named_matrices(nn.Sequential(nn.Conv2d(1, 2, 3)))
    assert list(named_matrices(nn.Linear(2, 1))) == ["weight"]
    assert list(named_matrices([W1, W2])) == ["weights[0]", "weights[1]"]
    net = Network((Affine(W1), ReLU(), Affine(W2)))
    assert list(named_matrices(net)) == ["layers[0]", "layers[2]"]


def test_suffixes_do_not_overlap():
    assert not set(weights_file.SAFETENSORS) & set(weights_file.TORCH)
