"""The networks of e05, e06 and e16: small ones for 8×8 and 28×28 images, and those of the paper from their packages.

All take images of shape (samples, C, H, W) with pixels in [0, 1] and give logits; the last ``nn.Linear`` is the head.
Nothing in a ``forward`` depends on the data, so that ``torch.export`` can read it. torch is imported here: import this
module inside functions.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final, get_args

import torch
from torch import nn

from certbound.compress.training_inputs import own_state
from certbound.errors import InputError
from certbound.io.weights_file import load_into, load_weights
from experiments.config import Architecture, ArchitectureKind
from experiments.data.local import Root, folder, missing

Shape = tuple[int, int, int]

# ---------------------------------------------------------------- small networks


class Block(nn.Module):
    """``relu(x + F(x))``; F is two 3×3 convolutions, or 1×1, 3×3 of twice the width, 1×1 (``wide``), with BatchNorm.

    With a stride, or another number of channels, x goes through a 1×1 convolution with BatchNorm.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, *, wide: bool) -> None:
        super().__init__()
        inner = 2 * outputs if wide else outputs
        before = [_conv(inputs, inner, 1), nn.BatchNorm2d(inner), nn.ReLU()] if wide else []
        self.path = nn.Sequential(
            *before, _conv(inner if wide else inputs, inner, 3, stride), nn.BatchNorm2d(inner), nn.ReLU(),
            _conv(inner, outputs, 1 if wide else 3), nn.BatchNorm2d(outputs),
        )  # fmt: skip
        same = stride == 1 and inputs == outputs
        self.skip = (
            nn.Identity() if same else nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.skip(x) + self.path(x))


class ResNet(nn.Module):
    """A 3×3 stem, three stages of ``depth`` blocks with 1, 2 and 4 times ``width`` channels, mean pooling, a head."""

    def __init__(self, shape: Shape, n_classes: int, width: int, depth: int, *, wide: bool) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv(shape[0], width, 3), nn.BatchNorm2d(width), nn.ReLU())
        blocks, channels = [], width
        for stage in range(3):
            outputs = width * 2**stage
            for i in range(depth):
                blocks.append(Block(channels, outputs, 2 if stage > 0 and i == 0 else 1, wide=wide))
                channels = outputs
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(channels, n_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.pool(self.blocks(self.stem(x))).flatten(1))


def _conv(inputs: int, outputs: int, size: int, stride: int = 1, *, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=bias)


def _vgg(shape: Shape, n_classes: int, width: int, depth: int) -> nn.Sequential:
    """Two stages of ``depth`` 3×3 convolutions with ReLU and max-pooling, one hidden layer, a head; no BatchNorm."""
    layers: list[nn.Module] = []
    channels, (_, height, breadth) = shape[0], shape
    for stage in range(2):
        for _ in range(depth):
            layers += [_conv(channels, width * 2**stage, 3, bias=True), nn.ReLU()]
            channels = width * 2**stage
        layers.append(nn.MaxPool2d(2))
        height, breadth = height // 2, breadth // 2
    hidden = 4 * width
    layers += [nn.Flatten(), nn.Linear(channels * height * breadth, hidden), nn.ReLU(), nn.Linear(hidden, n_classes)]
    return _he(nn.Sequential(*layers))


def _cnn(shape: Shape, n_classes: int, width: int, depth: int) -> nn.Sequential:
    """A 3×3 convolution, ``depth`` more that halve the image and double the channels, one hidden layer, a head."""
    layers: list[nn.Module] = [_conv(shape[0], width, 3, bias=True), nn.ReLU()]
    channels, (_, height, breadth) = width, shape
    for _ in range(depth):
        layers += [_conv(channels, 2 * channels, 3, 2, bias=True), nn.ReLU()]
        channels, height, breadth = 2 * channels, math.ceil(height / 2), math.ceil(breadth / 2)
    hidden = 4 * width
    layers += [nn.Flatten(), nn.Linear(channels * height * breadth, hidden), nn.ReLU(), nn.Linear(hidden, n_classes)]
    return _he(nn.Sequential(*layers))


def _he(module: nn.Sequential) -> nn.Sequential:
    """He's first weights: with those of ``nn.Conv2d`` several layers without BatchNorm do not begin to learn."""
    for layer in module:
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
    return module


class Attention(nn.Module):
    """Dot-product self-attention over the tokens, the last axis but one; written out, so that every step is an op."""

    def __init__(self, dimension: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj = nn.Linear(dimension, 3 * dimension)
        self.out_proj = nn.Linear(dimension, dimension)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        dimension = x.shape[-1]
        size = dimension // self.heads
        q, k, v = (
            part.unflatten(-1, (self.heads, size)).transpose(-2, -3) for part in self.in_proj(x).split(dimension, -1)
        )
        weights = torch.softmax((q @ k.transpose(-1, -2)) * size**-0.5, dim=-1)
        return self.out_proj((weights @ v).transpose(-2, -3).flatten(-2))


class Encoder(nn.Module):
    """``x + attention(norm(x))``, then ``x + mlp(norm(x))``."""

    def __init__(self, dimension: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dimension), nn.LayerNorm(dimension)
        self.attention = Attention(dimension, heads)
        self.mlp = nn.Sequential(nn.Linear(dimension, 2 * dimension), nn.GELU(), nn.Linear(2 * dimension, dimension))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """2×2 patches (4×4 of larger images), learned positions, ``depth`` encoders, the mean of the tokens, a head."""

    def __init__(self, shape: Shape, n_classes: int, width: int, depth: int) -> None:
        super().__init__()
        patch, tokens = _patches(shape)
        self.patches = nn.Conv2d(shape[0], width, patch, patch)
        self.positions = nn.Parameter(0.02 * torch.randn(1, tokens[0] * tokens[1], width))
        self.encoders = nn.Sequential(*(Encoder(width, _HEADS) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, n_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.norm(self.encoders(tokens)).mean(1))


class Windows(nn.Module):
    """An encoder on 2×2 windows of a grid (samples, h, w, dimension), moved by one token if ``shifted``.

    The grid is a torus: the window at its end holds tokens of its beginning, and they see one another. (Swin masks
    them.)
    """

    def __init__(self, dimension: int, *, shifted: bool) -> None:
        super().__init__()
        self.shifted = shifted
        self.encoder = Encoder(dimension, _HEADS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.shifted:
            x = torch.roll(x, (-1, -1), (1, 2))
        n, h, w, d = x.shape
        windows = x.reshape(n, h // 2, 2, w // 2, 2, d).transpose(2, 3).reshape(n, (h // 2) * (w // 2), 4, d)
        seen = self.encoder(windows).reshape(n, h // 2, w // 2, 2, 2, d).transpose(2, 3).reshape(n, h, w, d)
        return torch.roll(seen, (1, 1), (1, 2)) if self.shifted else seen


class Merge(nn.Module):
    """2×2 neighbours become one token of twice the dimension."""

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dimension)
        self.reduce = nn.Linear(4 * dimension, 2 * dimension, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, h, w, d = x.shape
        joined = x.reshape(n, h // 2, 2, w // 2, 2, d).transpose(2, 3).reshape(n, h // 2, w // 2, 4 * d)
        return self.reduce(self.norm(joined))


class Windowed(nn.Module):
    """Swin's plan in small: patches, ``depth`` pairs of windows and shifted windows, a merge, windows, mean, head."""

    def __init__(self, shape: Shape, n_classes: int, width: int, depth: int) -> None:
        super().__init__()
        patch, tokens = _patches(shape)
        if tokens[0] % 4 or tokens[1] % 4:
            raise InputError(
                "architecture", got=f"'windowed' on a grid of {tokens[0]}×{tokens[1]} patches",
                needed="multiples of 4: 2×2 windows before and after a merge", fix="take images of 8×8 or 32×32",
            )  # fmt: skip
        self.patches = nn.Conv2d(shape[0], width, patch, patch)
        first = [Windows(width, shifted=shifted) for _ in range(depth) for shifted in (False, True)]
        self.stages = nn.Sequential(*first, Merge(width), Windows(2 * width, shifted=False))
        self.norm = nn.LayerNorm(2 * width)
        self.head = nn.Linear(2 * width, n_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        grid = self.stages(self.patches(x).permute(0, 2, 3, 1))
        return self.head(self.norm(grid).flatten(1, 2).mean(1))


_HEADS: Final = 4


def _patches(shape: Shape) -> tuple[int, tuple[int, int]]:
    """Side of a patch, and how many there are each way."""
    _, height, breadth = shape
    patch = 2 if height <= 8 else 4
    return patch, (height // patch, breadth // patch)


# ---------------------------------------------------------------- networks of the paper

_MOMENTS: Final = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "svhn": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""Mean and deviation of each channel, as they are usually given for these data."""


class Pixels(nn.Module):
    """Pixels to what a network takes: scaled up bilinearly if asked for, then normalised by channel."""

    def __init__(self, data: str, resize: int | None) -> None:
        super().__init__()
        mean, deviation = (torch.tensor(v).reshape(3, 1, 1) for v in _MOMENTS[data])
        self.mean, self.deviation = nn.Buffer(mean), nn.Buffer(deviation)
        self.resize = resize

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images with pixels in [0, 1], shape (samples, 3, H, W)."""
        if self.resize is not None:
            x = nn.functional.interpolate(x, size=(self.resize, self.resize), mode="bilinear", align_corners=False)
        return (x - self.mean) / self.deviation


def _large(architecture: Architecture, shape: Shape, n_classes: int, data: str, root: Root) -> nn.Module:
    """A network of torchvision behind its normalisation; ResNets with the 3×3 stem of small images."""
    from torchvision import models

    kind = architecture.kind
    if architecture.pretrained and kind != "vit-b-16":
        raise InputError(
            "architecture", got=f"pretrained={architecture.pretrained} for {kind!r}", needed="'vit-b-16'",
            fix="train it from random weights: its stem or head is another one here than in published weights",
        )  # fmt: skip
    made: Any
    if kind in ("resnet18", "wrn-101-2"):
        made = (models.resnet18 if kind == "resnet18" else models.wide_resnet101_2)(num_classes=n_classes)
        made.conv1, made.maxpool = _conv(shape[0], 64, 3), nn.Identity()
    elif kind == "vgg16":
        made = models.vgg16_bn(num_classes=n_classes)
        made.avgpool, made.classifier = nn.Identity(), nn.Linear(512 * (shape[1] // 32) * (shape[2] // 32), n_classes)
    elif kind == "swin-t":
        made = models.SwinTransformer(
            patch_size=[2, 2], embed_dim=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24], window_size=[4, 4],
            num_classes=n_classes,
        )  # fmt: skip
    else:
        made = models.vit_b_16(num_classes=1000 if architecture.pretrained else n_classes)
        if architecture.pretrained:
            load_into(made, load_weights(_weights_file(kind, root), "root"), "root")
            if n_classes != 1000:
                made.heads.head = nn.Linear(made.hidden_dim, n_classes)
    # published weights were trained on images that were normalised like ImageNet's, whatever they are tuned on
    return nn.Sequential(Pixels("imagenet" if architecture.pretrained else data, architecture.resize), made)


def _weights_file(kind: str, root: Root) -> Path:
    host = "download.pytorch.org/models"
    obtain = f"save torchvision's ViT_B_16_Weights.IMAGENET1K_V1 there ({host}/vit_b_16-c867db91.pth)"
    names = [f"weights/{kind}{suffix}" for suffix in (".safetensors", ".pt", ".pth")]
    base = folder(kind, root, names, obtain)
    path = next((base / name for name in names if (base / name).is_file()), None)
    if path is None:
        raise missing(kind, [base / name for name in names], "one of these", obtain)
    return path


class ZeroShot(nn.Module):
    """CLIP's image encoder below fixed text embeddings: logits are ``exp(scale) cos(image, text)``."""

    def __init__(self, normalise: nn.Module, visual: nn.Module, texts: torch.Tensor) -> None:
        super().__init__()
        self.normalise, self.visual = normalise, visual
        self.head = nn.Linear(texts.shape[1], texts.shape[0], bias=False)
        self.head.weight = nn.Parameter(texts, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of images with pixels in [0, 1]."""
        features = self.visual(self.normalise(x))
        return self.head(features / features.norm(dim=1, keepdim=True))


_TEXTS: Final = 64


def zero_shot(clip: Any, names: list[str], device: str = "cpu") -> ZeroShot:
    """The classifier of these classes: one text each, "a photo of a NAME.", its embedding of length ``exp(scale)``.

    ``clip``: see :class:`experiments.data.clip.Clip`. The texts are embedded once, on ``device``.
    """
    model = clip.model.to(device)
    parts = []
    with torch.no_grad():
        for start in range(0, len(names), _TEXTS):
            tokens = clip.tokenizer([f"a photo of a {name}." for name in names[start : start + _TEXTS]])
            parts.append(nn.functional.normalize(model.encode_text(tokens.to(device)), dim=1))
        texts = (torch.cat(parts) * model.logit_scale.exp()).cpu()
    return ZeroShot(clip.normalise, model.visual.cpu(), texts)


def _clip(data: str, classes: tuple[int, ...], root: Root, device: str) -> ZeroShot:
    from open_clip import IMAGENET_CLASSNAMES

    from experiments.data.clip import clip_model

    if data != "imagenet":
        raise InputError(
            "data", got=f"{data!r} for zero-shot CLIP", needed="'imagenet', whose classes have names here",
            fix="take another architecture",
        )  # fmt: skip
    return zero_shot(clip_model(root, "ViT-B-32"), [IMAGENET_CLASSNAMES[c] for c in classes], device)


# ---------------------------------------------------------------- by configuration


def build(
    architecture: Architecture, shape: Shape, classes: tuple[int, ...], seed: int, *, data: str, root: Root = None,
    device: str = "cpu",
) -> nn.Module:  # fmt: skip
    """The network with its first weights, which are a function of ``seed``; torch's own random state is put back.

    Parameters
    ----------
    shape : (C, H, W) of an image. classes : what the data set calls the classes (CLIP needs their names).
    data : the data set, for its normalisation. root : where pretrained weights lie. device : where CLIP embeds texts.

    Raises
    ------
    InputError : a kind that there is none, one that does not fit the images, pretrained weights that are not there.
    """
    kind, width, depth, n = architecture.kind, architecture.width, architecture.depth, len(classes)
    if kind not in get_args(ArchitectureKind):
        raise InputError(
            "architecture", got=repr(kind), needed=f"one of {get_args(ArchitectureKind)}", fix="see Architecture"
        )
    with own_state(torch, torch.device("cpu"), seed):
        if kind == "cnn":
            return _cnn(shape, n, width, depth)
        if kind == "vgg":
            return _vgg(shape, n, width, depth)
        if kind in ("resnet", "wide-resnet"):
            return ResNet(shape, n, width, depth, wide=kind == "wide-resnet")
        if kind == "vit":
            return ViT(shape, n, width, depth)
        if kind == "windowed":
            return Windowed(shape, n, width, depth)
        if kind == "clip-vit-b-32":
            return _clip(data, classes, root, device)
        return _large(architecture, shape, n, data, root)


__all__ = ["Pixels", "Shape", "ZeroShot", "build", "zero_shot"]
