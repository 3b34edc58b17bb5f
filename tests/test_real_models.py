"""Coverage counted on the six architectures (shrunken), and the bars of time and memory on the real ResNet18."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import open_clip
import pytest
import torch
import torchvision

from certbound.theorems.layer_report import ADDITIVE, layer_report

ROOT = Path(__file__).parents[1]


def _resnet(block, layers, **options):
    return torchvision.models.ResNet(block, layers, num_classes=3, **options)


def resnet():
    from torchvision.models.resnet import BasicBlock

    net = _resnet(BasicBlock, [1, 1, 1, 1])
    for stage in (net.layer2, net.layer3, net.layer4):  # the last stages would cost seconds
        assert stage[0].downsample is not None
    net.layer3, net.layer4, net.fc = torch.nn.Identity(), torch.nn.Identity(), torch.nn.Linear(128, 3)
    return net, (3, 16, 16)


def wide_resnet():
    from torchvision.models.resnet import Bottleneck

    net = _resnet(Bottleneck, [1, 1, 1, 1], width_per_group=128)
    net.layer2, net.layer3, net.layer4 = (torch.nn.Identity() for _ in range(3))
    net.fc = torch.nn.Linear(256, 3)
    return net, (3, 16, 16)


def vgg():
    from torchvision.models.vgg import VGG, make_layers

    net = VGG(make_layers([8, "M", 16, 16, "M"]), num_classes=3)
    net.classifier = torch.nn.Sequential(
        torch.nn.Linear(16 * 49, 20), torch.nn.ReLU(True), torch.nn.Dropout(), torch.nn.Linear(20, 3)
    )
    return net, (3, 28, 28)


def vit():
    net = torchvision.models.VisionTransformer(
        image_size=16, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=3
    )
    return net, (3, 16, 16)


def swin():
    net = torchvision.models.SwinTransformer(
        patch_size=[2, 2], embed_dim=8, depths=[2, 2], num_heads=[2, 2], window_size=[4, 4], num_classes=3
    )
    return net, (3, 16, 16)


def clip():
    net = open_clip.transformer.VisionTransformer(
        image_size=16, patch_size=8, width=16, layers=2, heads=2, mlp_ratio=2.0, output_dim=6
    )
    return net, (3, 16, 16)


# what is added: class tokens, position embeddings, tables of relative position bias
ADDED = {resnet: 0, wide_resnet: 0, vgg: 0, vit: 2, swin: 4, clip: 1}


@pytest.mark.parametrize("make", list(ADDED), ids=lambda make: make.__name__)
def test_every_parameter_of_two_dimensions_has_a_row(make):
    torch.manual_seed(0)
    net, shape = make()
    report = layer_report(net.eval(), input_shape=shape, weights="random")
    wanted = {n: p.numel() for n, p in net.named_parameters() if p.ndim >= 2}
    listed = [n for row in report.rows for n in row.parameters]
    assert sorted(listed) == sorted(wanted)  # each once: none twice, none forgotten
    added = [row for row in report.rows if row.kind == ADDITIVE]
    assert len(added) == ADDED[make] and all(row.operator is None for row in added)
    c = report.coverage
    assert (c.parameters, c.numbers, c.unread, c.share) == (len(wanted), sum(wanted.values()), 0, 1.0)
    assert c.additive == sum(math.prod(row.shape) for row in added)
    assert report.n_parameters == sum(p.numel() for p in net.parameters())
    for row in report.operator_rows:
        for reading in row.readings:
            assert reading.norm_2[0] <= reading.norm_2[1] * (1 + 1e-9)
            assert reading.spectral.bound >= reading.norm_2[0] * (1 - 1e-9)
            assert reading.neuron.bound >= reading.norm_inf[0] * (1 - 1e-9)
    attention = make in (vit, swin, clip)
    assert [part.bound is None for part in report.network] == [attention] * 2
    names = {n.rsplit(".", 1)[-1] for row in report.operator_rows for n in row.parameters}
    assert ("in_proj_weight" in names) == (make in (vit, clip))
    assert [row.alignment.two is not None for row in report.operator_rows].count(True) == (1 if make is vgg else 0)


@pytest.mark.slow
def test_resnet18_at_full_size_in_time_and_memory():
    """60 s on two cores and 2 GiB. Counted in CPU seconds: the machine may be shared."""
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "real_models.py", "one", "resnet18", "--no-rows"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    m = json.loads(done.stdout.splitlines()[-1])
    assert m["cpu"] < 2 * 60 and m["peak"] < 2.0
    assert m["coverage"]["share"] == 1.0 and m["conv"] == 20 and m["linear"] == 1
    assert m["gap_max"] < 0.05
