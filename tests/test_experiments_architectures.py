"""The networks of e05, e06, e16: what they compute, their first weights, what is compressed of them, their files."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torchvision import models

from certbound.compress.layers import weight_parameters
from certbound.errors import InputError
from experiments import modules
from experiments.architectures import Attention, Block, Merge, Pixels, Windows, ZeroShot, build, zero_shot
from experiments.config import Architecture

DIGITS, COLOURED = (1, 8, 8), (3, 32, 32)
TEN = tuple(range(10))
SMALL = {"cnn": 8, "vgg": 8, "resnet": 8, "wide-resnet": 4, "vit": 16, "windowed": 16}


def made(kind, shape=DIGITS, classes=TEN, seed=0, *, data="digits", depth=1, **settings):
    return build(Architecture(kind, SMALL.get(kind, 8), depth, **settings), shape, classes, seed, data=data).eval()


def random(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("kind", SMALL)
def test_small_networks_give_one_row_of_logits_an_image(kind, depth):
    net = made(kind, depth=depth)
    x = random(5, *DIGITS)
    with torch.no_grad():
        logits = net(x)
        one_by_one = torch.cat([net(image[None]) for image in x])
    assert logits.shape == (5, 10)
    assert torch.allclose(logits, one_by_one, atol=1e-5)
    assert logits.std(dim=0).min() > 1e-4, "a logit that no pixel moves"


@pytest.mark.parametrize("kind", SMALL)
def test_small_networks_are_exported_as_they_are(kind):
    """No control flow in a forward depends on the data, so that the importer of graphs can read it."""
    net, x = made(kind), random(1, *DIGITS, seed=1)
    exported = torch.export.export(net, (random(1, *DIGITS),)).module()
    with torch.no_grad():
        assert torch.allclose(exported(x), net(x), atol=1e-6)


@pytest.mark.parametrize("kind", SMALL)
def test_first_weights_are_a_function_of_the_seed_alone(kind):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, other = made(kind, seed=4), made(kind, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(9)
    again = made(kind, seed=4)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(
    ("kind", "shape"),
    [("cnn", (1, 28, 28)), ("vgg", (1, 28, 28)), ("resnet", (1, 28, 28)), ("vit", (1, 28, 28)), ("windowed", COLOURED)],
)
def test_larger_images(kind, shape):
    with torch.no_grad():
        assert made(kind, shape)(random(2, *shape)).shape == (2, 10)


def test_what_is_compressed_of_the_small_resnet_by_hand():
    """Three blocks of two 3×3 convolutions, two 1×1 skips; the stem and the head are left out."""
    shapes = [w.shape for w in modules.encoder_matrices(made("resnet"))]
    assert shapes == [(8, 72), (8, 72), (16, 72), (16, 144), (16, 8), (32, 144), (32, 288), (32, 16)]


def test_what_is_compressed_of_the_small_vit_by_hand():
    names = list(weight_parameters(made("vit")))
    assert [n.removeprefix("encoders.0.") for n in names] == [
        "attention.in_proj.weight", "attention.out_proj.weight", "mlp.0.weight", "mlp.2.weight",
    ]  # fmt: skip


def test_a_block_is_its_formula():
    block = Block(2, 4, 2, wide=False).eval()
    conv1, bn1, _, conv2, bn2 = block.path
    for bn in (bn1, bn2, block.skip[1]):
        bn.running_mean.uniform_(-1, 1)
        bn.running_var.uniform_(0.5, 2)
    x = random(3, 2, 6, 6)
    with torch.no_grad():
        inner = nn.functional.conv2d(torch.relu(bn1(nn.functional.conv2d(x, conv1.weight, stride=2, padding=1))),
                                     conv2.weight, padding=1)  # fmt: skip
        skip = block.skip[1](nn.functional.conv2d(x, block.skip[0].weight, stride=2))
        assert torch.allclose(block(x), torch.relu(skip + bn2(inner)), atol=1e-6)
    assert isinstance(Block(4, 4, 1, wide=True).skip, nn.Identity)


def test_attention_is_that_of_torch():
    """nn.MultiheadAttention with the same weights; one window more in front is one batch more."""
    ours, theirs = Attention(8, 4), nn.MultiheadAttention(8, 4, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(ours.in_proj.weight)
        theirs.in_proj_bias.copy_(ours.in_proj.bias)
        theirs.out_proj.weight.copy_(ours.out_proj.weight)
        theirs.out_proj.bias.copy_(ours.out_proj.bias)
        x = random(3, 5, 8)
        assert torch.allclose(ours(x), theirs(x, x, x, need_weights=False)[0], atol=1e-6)
        stacked = random(3, 2, 5, 8, seed=1)
        assert torch.allclose(ours(stacked)[:, 1], ours(stacked[:, 1]), atol=1e-6)


@pytest.mark.parametrize("shifted", [False, True])
def test_tokens_see_their_window_and_nothing_else(shifted):
    """A 4×4 grid: token (i, j) belongs to window ((i − s)//2, (j − s)//2) on the torus, s = 1 if shifted."""
    layer = Windows(8, shifted=shifted).double().eval()
    x = random(1, 4, 4, 8).double().requires_grad_()
    y = layer(x)

    def window(i, j):
        return ((i - shifted) % 4) // 2, ((j - shifted) % 4) // 2

    for i, j in ((0, 0), (1, 2), (3, 3)):
        (gradient,) = torch.autograd.grad(y[0, i, j].sum(), x, retain_graph=True)
        seen = {(a, b) for a in range(4) for b in range(4) if gradient[0, a, b].abs().max() > 1e-12}
        assert seen == {(a, b) for a in range(4) for b in range(4) if window(a, b) == window(i, j)}


def test_merge_joins_neighbours():
    layer = Merge(2)
    with torch.no_grad():
        layer.reduce.weight.copy_(torch.eye(8)[:4])
    layer.norm = nn.Identity()
    x = torch.arange(32.0).reshape(1, 4, 4, 2)
    with torch.no_grad():
        y = layer(x)
    assert y.shape == (1, 2, 2, 4)
    assert y[0, 1, 0].tolist() == [16.0, 17.0, 18.0, 19.0]  # tokens (2, 0) and (2, 1)


def test_windows_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="grid of 7×7"):
        made("windowed", (1, 28, 28))


def test_an_unknown_kind_is_refused():
    with pytest.raises(InputError, match="resnet99"):
        made("resnet99")


# ---------------------------------------------------------------- networks of the paper


def test_pixels_are_scaled_up_and_normalised():
    layer = Pixels("imagenet", 4)
    x = torch.full((1, 3, 2, 2), 0.5)
    y = layer(x)
    assert y.shape == (1, 3, 4, 4)
    moments = ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))
    assert y[0, :, 0, 0].tolist() == pytest.approx([(0.5 - mean) / deviation for mean, deviation in moments])
    assert list(layer.parameters()) == []


RESNET18 = (
    9 * 3 * 64 + 4 * 9 * 64**2  # 3×3 stem, first stage
    + sum(9 * c * (c // 2) + 3 * 9 * c**2 + c * (c // 2) for c in (128, 256, 512)) + 512 * 10
)  # fmt: skip
_VGG = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
VGG16 = sum(9 * a * b for a, b in itertools.pairwise(_VGG)) + 512 * 10
_SWIN = ((96, 2, 3), (192, 2, 6), (384, 6, 12), (768, 2, 24))  # dimension, blocks, heads
SWIN = (
    4 * 3 * 96 + sum(12 * d * d * blocks + 49 * heads * blocks for d, blocks, heads in _SWIN)  # 49: positions
    + sum(8 * d * d for d in (96, 192, 384)) + 768 * 10
)  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "weights", "data"), [("resnet18", RESNET18, "cifar10"), ("vgg16", VGG16, "svhn"), ("swin-t", SWIN, "svhn")]
)
def test_networks_of_torchvision_have_the_papers_sizes(kind, weights, data):
    net = build(Architecture(kind), COLOURED, TEN, 0, data=data).eval()
    with torch.no_grad():
        assert net(random(2, *COLOURED)).shape == (2, 10)
    assert modules.count_weights(net)[0] == weights
    assert isinstance(net[0], Pixels)


def test_the_stem_of_a_resnet_is_that_of_small_images():
    net = build(Architecture("resnet18"), COLOURED, TEN, 0, data="cifar10")[1]
    assert (net.conv1.kernel_size, net.conv1.stride) == ((3, 3), (1, 1))
    assert isinstance(net.maxpool, nn.Identity)


def test_pretrained_weights_come_from_the_root_and_the_head_is_new(tmp_path, monkeypatch):
    """With a smaller ViT in torchvision's place, so that the file is small."""
    real = models.vit_b_16

    def tiny(num_classes):
        return models.VisionTransformer(224, 56, 1, 2, 16, 32, num_classes=num_classes)

    assert real(num_classes=3).heads.head.out_features == 3
    monkeypatch.setattr(models, "vit_b_16", tiny)
    architecture = Architecture("vit-b-16", pretrained=True, resize=224)
    with pytest.raises(InputError, match="pass --root"):
        build(architecture, COLOURED, TEN, 0, data="cifar10")
    with pytest.raises(InputError, match=r"weights/vit-b-16\.safetensors.*nothing is downloaded"):
        build(architecture, COLOURED, TEN, 0, data="cifar10", root=tmp_path)
    published = tiny(1000)
    (tmp_path / "weights").mkdir()
    torch.save(published.state_dict(), tmp_path / "weights" / "vit-b-16.pth")
    net = build(architecture, COLOURED, TEN, 0, data="cifar10", root=str(tmp_path)).eval()
    mine = dict(net[1].named_parameters())
    for name, value in published.named_parameters():
        if not name.startswith("heads."):
            assert torch.equal(mine[name], value), name
    assert mine["heads.head.weight"].shape == (10, 16)
    with torch.no_grad():
        assert net(random(1, *COLOURED)).shape == (1, 10)
    assert net[0].resize == 224
    assert net[0].mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])  # as it was trained


def test_pretrained_weights_that_would_not_fit_are_refused(tmp_path):
    with pytest.raises(InputError, match="resnet18"):
        build(Architecture("resnet18", pretrained=True), COLOURED, TEN, 0, data="cifar10", root=tmp_path)


class Clip:
    """Texts of two letters: the embedding of a class is its place in the alphabet."""

    def __init__(self):
        self.model = nn.Module()
        self.model.visual = nn.Flatten()
        self.model.logit_scale = nn.Parameter(torch.tensor(math.log(5.0)))
        self.model.encode_text = lambda tokens: tokens
        self.normalise = nn.Identity()
        self.seen = []

    def tokenizer(self, texts):
        self.seen += texts
        return torch.tensor([[3.0, 4.0] if "cat" in t else [0.0, -2.0] for t in texts])


def test_zero_shot_logits_are_scaled_cosines_and_the_head_is_fixed():
    clip = Clip()
    net = zero_shot(clip, ["cat", "dog"])
    assert clip.seen == ["a photo of a cat.", "a photo of a dog."]
    x = torch.tensor([[[[3.0, 4.0]]], [[[7.0, 0.0]]]])
    assert net(x).tolist() == [pytest.approx([5.0, -4.0]), pytest.approx([3.0, 0.0])]
    assert isinstance(net, ZeroShot) and not net.head.weight.requires_grad


def test_many_texts_are_embedded_in_parts():
    names = [f"cat {i}" if i % 2 else f"dog {i}" for i in range(150)]
    weights = zero_shot(Clip(), names).head.weight
    assert weights.shape == (150, 2)
    assert np.allclose(weights[1].detach(), [3.0, 4.0]) and np.allclose(weights[148].detach(), [0.0, -5.0])


def test_clip_needs_classes_with_names():
    with pytest.raises(InputError, match="zero-shot"):
        build(Architecture("clip-vit-b-32", pretrained=True), (3, 224, 224), TEN, 0, data="cifar10")
