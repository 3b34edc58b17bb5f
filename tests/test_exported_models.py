"""Architectures that users bring: imported whole, with every parameter named, at input sizes that keep this quick."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import torchvision
from PIL import Image

from certbound import ops
from certbound.errors import UnsupportedLayerError
from certbound.io.exported import from_module


def built(name, **given):
    torch.manual_seed(0)
    return torchvision.models.get_model(name, weights=None, **given).eval()


def kinds(graph):
    return {kind: sum(node.op.kind == kind for node in graph.nodes) for kind in {n.op.kind for n in graph.nodes}}


def check(model, shape):
    """The graph of a model; its outputs on an input of its own, and its parameters, are the model's."""
    graph = from_module(model, input_shape=shape)
    read = {name for node in graph.nodes for name in node.parameters}
    assert read == {name for name, _ in model.named_parameters()}
    x = np.random.default_rng(7).standard_normal((1, *shape)).astype(np.float32).astype(np.float64)
    with torch.no_grad():
        expected = copy.deepcopy(model).double()(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(graph.forward(x), expected, rtol=1e-7, atol=1e-9 * np.abs(expected).max())
    return graph


def test_resnet18():
    graph = check(built("resnet18"), (3, 32, 32))
    assert kinds(graph) == {
        "Input": 1, "Conv": 20, "BatchNorm": 20, "relu": 17, "MaxPool": 1, "Add": 8, "AdaptiveAvgPool": 1,
        "Reshape": 1, "Linear": 1,
    }  # fmt: skip
    names = [node.name for node in graph.nodes]
    assert "layer2.0.downsample.0" in names
    assert "fc" in names


@pytest.mark.slow
def test_vgg16():
    assert kinds(check(built("vgg16"), (3, 32, 32)))["Linear"] == 3


@pytest.mark.slow
def test_wide_resnet101():
    assert kinds(check(built("wide_resnet101_2"), (3, 32, 32)))["Conv"] == 104


def test_vision_transformer():
    torch.manual_seed(0)
    model = torchvision.models.VisionTransformer(32, 16, 3, 2, 16, 32, num_classes=10).eval()
    torch.nn.init.normal_(model.heads.head.weight)  # torchvision's is zero: so would the output be
    graph = check(model, (3, 32, 32))
    assert kinds(graph)["Softmax"] == 3
    assert kinds(graph)["MatMul"] == 6
    assert kinds(graph)["Constant"] == 1  # the class token


@pytest.mark.slow
def test_vit_b_16():
    graph = check(built("vit_b_16"), (3, 224, 224))
    assert kinds(graph)["Softmax"] == 12
    assert graph.n_outputs == 1000


@pytest.mark.slow
def test_swin_t():
    """64 pixels: windows are padded, shifted and masked, with a mask of −100 that is computed from constants."""
    graph = check(built("swin_t"), (3, 64, 64))
    assert kinds(graph)["Softmax"] == 12
    assert kinds(graph)["Roll"] == 4
    biases = [p for node in graph.nodes for p in node.parameters if p.endswith("relative_position_bias_table")]
    assert len(biases) == 12


@pytest.mark.slow
def test_clip_visual():
    torch.manual_seed(0)
    graph = check(open_clip.create_model("ViT-B-32", pretrained=None).visual.eval(), (3, 224, 224))
    assert kinds(graph)["Softmax"] == 12
    assert graph.n_outputs == 512
    assert graph.nodes[-1].parameters == ("proj",)


def test_clip_with_quick_gelu_has_no_product_of_values():
    from open_clip.transformer import QuickGELU, VisionTransformer

    assert open_clip
    torch.manual_seed(0)
    model = VisionTransformer(32, 16, 16, 2, 2, 4.0, output_dim=8, act_layer=QuickGELU).eval()
    found = kinds(check(model, (3, 32, 32)))
    assert found["silu"] == 2
    assert "Multiply" not in found


def test_mobilenet_v2():
    assert kinds(check(built("mobilenet_v2"), (3, 32, 32)))["Clip"] == 35


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind", "count"),
    [
        ("densenet121", "Concat", 58),
        ("convnext_tiny", "LayerNorm", 23),
        ("efficientnet_b0", "Multiply", 16),  # squeeze and excitation
        ("mobilenet_v3_small", "Multiply", 28),  # the same, and hard swish
        ("shufflenet_v2_x0_5", "Concat", 16),
        ("regnet_y_400mf", "Multiply", 16),
        ("squeezenet1_0", "Concat", 8),
        ("resnext50_32x4d", "Add", 16),
    ],
)
def test_other_architectures(name, kind, count):
    assert kinds(check(built(name), (3, 64, 64)))[kind] == count


def test_an_architecture_that_is_refused():
    """MaxViT writes its attention with einsum."""
    torch.manual_seed(0)
    block = torchvision.models.maxvit.RelativePositionalMultiHeadAttention(8, 4, 4).eval()
    with pytest.raises(UnsupportedLayerError, match=r"RelativePositionalMultiHeadAttention.*aten\.einsum"):
        from_module(block, input_shape=(2, 4, 8))


# -- real weights, real images ----------------------------------------------------------------------------------------


def folder_of(package, inside):
    return Path(importlib.util.find_spec(package).origin).parent / inside


def cifar_images():
    """The 20 CIFAR-10 test images of foolbox, pixels in [0, 1], and their labels."""
    files = sorted(folder_of("foolbox", "data").glob("cifar10_*.png"))
    pixels = [np.asarray(Image.open(file), dtype=np.float64).transpose(2, 0, 1) / 255.0 for file in files]
    return np.stack(pixels), np.array([int(file.stem.split("_")[-1]) for file in files])


def shipped_resnet():
    folder = folder_of("pyautoattack", "examples")
    source = importlib.util.spec_from_file_location("shipped_resnet", folder / "resnet.py")
    module = importlib.util.module_from_spec(source)
    source.loader.exec_module(module)
    model = module.ResNet18()
    model.load_state_dict(torch.load(folder / "model_test.pt", weights_only=True, map_location="cpu"))
    return model.eval()


def test_the_trained_cifar_resnet_on_real_images():
    images, labels = cifar_images()
    model = shipped_resnet()
    graph = from_module(model, input_shape=(3, 32, 32))
    logits = graph.forward(images)
    with torch.no_grad():
        own = model(torch.from_numpy(images.astype(np.float32))).numpy()
        exact = copy.deepcopy(model).double()(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(logits, exact, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(logits, own, atol=1e-3)
    assert np.mean(logits.argmax(axis=1) == labels) >= 0.8
    stem = graph.nodes[1].op
    assert isinstance(stem, ops.Conv)
    np.testing.assert_array_equal(stem.weight, model.conv1.weight.detach().double().numpy())
