"""What torch exports to ONNX, by both exporters: the graph is the module, and the one that the torch importer makes."""

from __future__ import annotations

import json
import logging
import warnings

import cli_runs
import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from certbound.graph import Graph, as_graph
from certbound.io.factory import load_model
from certbound.io.onnx_file import load_onnx
from certbound.network import Network


class Block(nn.Module):
    """A residual block with a shortcut, BatchNorm and a stride."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 6, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 6, 3, padding=1, groups=2), nn.BatchNorm2d(6)
        self.down = nn.Sequential(nn.Conv2d(3, 6, 1, stride=2), nn.BatchNorm2d(6))
        self.fc = nn.Linear(6, 4)

    def forward(self, x):
        h = torch.relu(self.bn1(self.conv1(x)))
        h = torch.relu(self.bn2(self.conv2(h)) + self.down(x))
        return self.fc(h.mean((2, 3)))


class Encoder(nn.Module):
    """A transformer's layer, and a class token."""

    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu", norm_first=True)
        self.token = nn.Parameter(torch.randn(1, 1, 8))

    def forward(self, x):
        return self.layer(torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1))[:, 0]


class Normalised(nn.Module):
    """The input's normalisation as users write it, and a concatenation."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.5, 0.25]).reshape(1, 2, 1, 1))
        self.register_buffer("std", torch.tensor([0.2, 0.3]).reshape(1, 2, 1, 1))
        self.a, self.b = nn.Conv2d(2, 3, 1), nn.Conv2d(2, 2, 3, padding=1, dilation=1)

    def forward(self, x):
        x = (x - self.mean) / self.std
        return torch.flatten(torch.cat([self.a(x), torch.tanh(self.b(x))], 1), 1)


def swin():
    return torchvision.models.SwinTransformer([4, 4], 8, [2, 2], [1, 2], [4, 4], num_classes=5)


def vit():
    model = torchvision.models.VisionTransformer(16, 8, 1, 2, 8, 16, num_classes=5)
    nn.init.normal_(model.heads.head.weight)  # torchvision's is 0
    return model


POOLS = [
    nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"), nn.SiLU(), nn.GELU("tanh"),
    nn.AvgPool2d(2, padding=1, count_include_pad=False), nn.AdaptiveAvgPool2d((2, 3)), nn.ReLU6(),
    nn.Conv2d(4, 4, 3, padding=1, padding_mode="replicate"), nn.Hardtanh(), nn.MaxPool2d(2, 2, 1, ceil_mode=True),
    nn.Dropout(), nn.Flatten(), nn.LazyLinear(5), nn.LeakyReLU(0.2), nn.Softmax(-1),
]  # fmt: skip
MODELS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), (6,)),
    "block": (Block, (3, 9, 7)),
    "pools": (lambda: nn.Sequential(*POOLS), (2, 10, 10)),
    "normalised": (Normalised, (2, 4, 5)),
    "encoder": (Encoder, (3, 8)),
    "vit": (vit, (3, 16, 16)),
    "swin": (swin, (3, 16, 16)),
}

def module(name):
    """The model with random statistics, the same each time."""
    make, shape = MODELS[name]
    torch.manual_seed(7)
    model = make().eval()
    x = torch.randn(2, *shape)
    model(x)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2.0)
            nn.init.normal_(layer.weight)
            nn.init.normal_(layer.bias)
    return model, x


def exported(model, x, path, *, dynamo, **options):
    """Written by one of torch's exporters."""
    logging.getLogger("torch.onnx").setLevel(logging.CRITICAL)
    if dynamo:
        options.setdefault("external_data", False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (x,), path, dynamo=dynamo, verbose=False, **options)
    return path


def close(graph, model, x, *, tolerance=2e-6):
    """Outputs in float64, where torch's float32 weights are exact; GELU and LayerNorm keep constants in float32."""
    with torch.no_grad():
        y = model.double()(x.double()).numpy().reshape(len(x), -1)
    model.float()
    got = graph.forward(x.numpy())
    assert np.abs(y).max() > 1e-3
    np.testing.assert_allclose(got, y, atol=tolerance * np.abs(y).max(), rtol=0)


@pytest.mark.parametrize("dynamo", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_the_graph_is_the_module(name, dynamo, tmp_path):
    model, x = module(name)
    graph = load_onnx(exported(model, x[:1], tmp_path / "m.onnx", dynamo=dynamo))
    close(graph, model, x)
    other = as_graph(model, input_shape=tuple(x.shape[1:]))
    np.testing.assert_allclose(graph.forward(x.numpy()), other.forward(x.numpy()), atol=1e-6, rtol=1e-5)


def test_bins_of_different_sizes(tmp_path):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(2, 3, 1), nn.AdaptiveAvgPool2d((3, 4))).eval(), torch.randn(1, 2, 7, 5)
    close(load_onnx(exported(model, x, tmp_path / "m.onnx", dynamo=True)), model, x)


@pytest.mark.parametrize(("name", "opset"), [("block", 11), ("block", 13), ("encoder", 14), ("swin", 16)])
def test_older_opsets(name, opset, tmp_path):
    model, x = module(name)
    graph = load_onnx(exported(model, x[:1], tmp_path / "m.onnx", dynamo=False, opset_version=opset))
    close(graph, model, x)
    kinds = {n.op.kind for n in graph.nodes}
    assert name == "block" or {"gelu", "LayerNorm", "Softmax"} <= kinds  # their parts are recognised


@pytest.mark.parametrize("dynamo", [True, False])
@pytest.mark.parametrize("name", ["block", "encoder"])
def test_an_open_batch_axis(name, dynamo, tmp_path):
    model, x = module(name)
    options = {"dynamic_shapes": ({0: "n"},)} if dynamo else {"input_names": ["x"], "dynamic_axes": {"x": {0: "n"}}}
    graph = load_onnx(exported(model, x, tmp_path / "m.onnx", dynamo=dynamo, **options))
    close(graph, model, x)


def test_batch_norm_that_is_not_folded(tmp_path):
    model, x = module("block")
    path = exported(model, x[:1], tmp_path / "m.onnx", dynamo=False, do_constant_folding=False,
                    training=torch.onnx.TrainingMode.PRESERVE)  # fmt: skip
    graph = load_onnx(path)
    assert sum(n.op.kind == "BatchNorm" for n in graph.nodes) == 3
    close(graph, model, x)


def test_names_are_those_of_the_module(tmp_path):
    for dynamo in (True, False):
        model, x = module("block")
        graph = load_onnx(exported(model, x[:1], tmp_path / "m.onnx", dynamo=dynamo))
        names = [n.name for n in graph.nodes if n.op.kind in ("Conv", "Linear")]
        assert len(names) == 4 and names[-1] == "fc"
        assert graph.nodes[-1].parameters == ("fc.weight", "fc.bias")


def test_external_data_of_the_exporter(tmp_path):
    model, x = module("mlp")
    path = exported(model, x[:1], tmp_path / "m.onnx", dynamo=True, external_data=True)
    assert (tmp_path / "m.onnx.data").is_file()
    close(load_onnx(path), model, x)


def test_half_precision_weights_are_exact(tmp_path):
    model, x = module("mlp")
    model = model.half()
    weight = model[0].weight.detach().double().numpy()
    graph = load_onnx(exported(model, x[:1].half(), tmp_path / "m.onnx", dynamo=False))
    np.testing.assert_array_equal(graph.nodes[1].op.weight, weight)


# ---------------------------------------------------------------- the command line


def samples(tmp_path, x, n_classes):
    path = tmp_path / "data.npz"
    rng = np.random.default_rng(0)
    np.savez(path, x=rng.random((6, *x.shape[1:])).astype(np.float32), y=rng.integers(0, n_classes, 6))
    return str(path)


def test_compare_takes_an_onnx_file(capsys, tmp_path):
    model, x = module("mlp")
    path = str(exported(model, x[:1], tmp_path / "m.onnx", dynamo=False))
    assert isinstance(load_model(path), Network)
    options = ["--data", samples(tmp_path, x, 3), "--delta", "0.05", "--norm", "inf", "--no-cache", "--json"]
    code, out, err = cli_runs.run(capsys, "compare", "--model", path, "--methods", "product,recursion", *options)
    assert code == 0, err
    rows = [r for r in json.loads(out)["rows"] if r["method"] in ("product", "recursion")]
    assert {r["method"] for r in rows} == {"product", "recursion"} and {r["status"] for r in rows} == {"OK"}


def test_compare_takes_a_convolutional_one(capsys, tmp_path):
    model, x = module("block")
    path = str(exported(model, x[:1], tmp_path / "m.onnx", dynamo=False))
    assert isinstance(load_model(path), Graph)
    options = ["--data", samples(tmp_path, x, 4), "--delta", "0.01", "--norm", "2", "--no-cache", "--json"]
    code, out, err = cli_runs.run(capsys, "compare", "--model", path, "--methods", "product", *options)
    assert code == 0, err
    rows = [r for r in json.loads(out)["rows"] if r["method"] == "product"]
    assert rows and {r["status"] for r in rows} == {"OK"}


def test_check_and_attack_take_an_onnx_file(capsys, tmp_path):
    model, x = module("block")
    path = str(exported(model, x[:1], tmp_path / "m.onnx", dynamo=False))
    code, out, err = cli_runs.run(capsys, "check", "--model", path, "--json")
    assert code == 0, err
    assert [layer["name"] for layer in json.loads(out)["layers"]] == ["fc.weight"]
    options = ["--data", samples(tmp_path, x, 4), "--delta", "0.01", "--norm", "2", "--json", "--steps", "3"]
    code, out, err = cli_runs.run(capsys, "attack", "--model", path, *options)
    assert code == 0, err


def test_a_bad_onnx_file_is_exit_code_2(capsys, tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"no model")
    code, _, err = cli_runs.run(capsys, "check", "--model", str(path))
    assert code == 2 and "which is no ONNX model" in err
