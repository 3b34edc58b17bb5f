"""The paper-scale configuration of every study, for one step of training: it must run as it stands on full data.

The data are a few images in each set's own format; architecture, attack and bounds are those of the paper scale.
"""

import itertools
import math
from contextlib import contextmanager

import open_clip
import pytest
import torch
from image_files import write_cifar_binary, write_imagenet_classes, write_mnist, write_svhn
from safetensors.torch import save_file
from torchvision import models

from experiments.cell import run_config
from experiments.studies import e05_row_sparsity as e05
from experiments.studies import e06_fine_tuning as e06
from experiments.studies import e16_other_networks as e16
from experiments.study import MODULES, find

pytestmark = pytest.mark.slow

WIDTH = 2000
DENSE_CIFAR = 3072 * WIDTH + 3 * WIDTH**2 + WIDTH * 10
DENSE_MNIST = 784 * WIDTH + 3 * WIDTH**2 + WIDTH * 10
WEIGHTS = {
    "e01": DENSE_MNIST, "e02": DENSE_MNIST, "e03": DENSE_CIFAR, "e08": DENSE_CIFAR, "e09": DENSE_CIFAR,
    "e10": DENSE_CIFAR, "e11": DENSE_CIFAR, "e12": DENSE_CIFAR, "e13": DENSE_CIFAR, "e14": DENSE_CIFAR,
    "e15": DENSE_CIFAR, "e04": DENSE_CIFAR, "e07": 784 * 1000 + 1000**2 + 1000 * 2,
}  # fmt: skip
"""Weights of the model as matrices, biases left out; products W = A B multiplied out."""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_mnist(folder)
    write_cifar_binary(folder, "cifar10")
    write_cifar_binary(folder, "cifar100", n=100)  # every class once
    return folder


@contextmanager
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("name", [name for name in MODULES if name in WEIGHTS])
def test_one_step_at_paper_scale(name, root):
    study = find(name)
    cell = study.cells("paper", 1, smoke=True)[0]
    whole = next(p.config for p in study.points("paper") if (p.arm, p.level) == (cell.point.arm, cell.point.level))
    assert cell.point.config.hidden == whole.hidden, "the smoke run is of another model"
    with one_thread():
        numbers, _ = run_config(cell.point.config, 0, root=str(root))
    steps = 2 if cell.point.config.transfer is not None else 1  # encoder and head
    assert numbers["steps"] == steps
    assert numbers["parameters"] == WEIGHTS[name]
    for loss in ("loss", "loss_train"):
        assert math.isfinite(numbers[loss]) and numbers[loss] > 0
    for norm in ("2", "inf"):
        assert 0 <= numbers[f"ra_{norm}"] <= 1
        assert numbers[f"gap_{norm}"] >= 0
        for method in cell.point.config.measure.methods:
            bound = numbers[f"bound_{norm}/{method}"]
            assert bound is not None, f"{method} did not finish"
            assert bound >= numbers[f"attack_{norm}"] >= 0


# ---------------------------------------------------------------- the paper's own architectures

_VGG = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
RESNET18 = 9 * 3 * 64 + 36 * 64**2 + sum(9 * c * c // 2 + 27 * c * c + c * c // 2 for c in (128, 256, 512)) + 512 * 10
# patches; positions and class; blocks; head or projection and texts
VIT = 16 * 16 * 3 * 768 + (196 + 1 + 1) * 768 + 12 * 12 * 768**2 + 768 * 10
CLIP = 32 * 32 * 3 * 768 + (49 + 1) * 768 + 12 * 12 * 768**2 + 768 * 512 + 512 * 4


def _wide(classes):
    """WRN-101-2: bottlenecks of twice ResNet-101's inner width."""
    total, inputs = 9 * 3 * 64, 64
    for inner, blocks in ((128, 3), (256, 4), (512, 23), (1024, 3)):
        outputs = 2 * inner
        total += inputs * outputs  # the skip of the first block
        for _ in range(blocks):
            total += inputs * inner + 9 * inner**2 + inner * outputs
            inputs = outputs
    return total + inputs * classes


ARCHITECTURES = {
    ("e05", e05.SPARSE): RESNET18,
    ("e06", e06.TUNED): VIT,
    ("e06", e06.HEAD): CLIP,
    ("e16", e16.VGG): sum(9 * a * b for a, b in itertools.pairwise(_VGG)) + 512 * 10,
    ("e16", e16.WIDE): _wide(100),
    ("e16", e16.SWIN): 27_442_410,  # by hand in test_experiments_architectures.py
    ("e16", e16.DATA): RESNET18,
}


@pytest.fixture(scope="module")
def small_root(tmp_path_factory):
    """Few images, so that all of them are seen by WRN-101-2 in seconds; random weights in the published formats."""
    folder = tmp_path_factory.mktemp("architectures")
    write_cifar_binary(folder, "cifar10", n=1)
    write_cifar_binary(folder, "cifar100", n=3)
    write_svhn(folder, sizes=(4, 3))
    write_imagenet_classes(folder)
    (folder / "weights").mkdir()
    (folder / "clip").mkdir()
    torch.save(models.vit_b_16().state_dict(), folder / "weights" / "vit-b-16.pth")
    clip = open_clip.CLIP(**open_clip.get_model_config("ViT-B-32"))
    save_file(clip.state_dict(), folder / "clip" / "ViT-B-32.safetensors")
    return folder


@pytest.mark.parametrize(("name", "arm"), ARCHITECTURES)
def test_one_step_of_the_papers_architectures(name, arm, small_root):
    """With the penalty, at the largest λ; attacks at one radius."""
    study = find(name)
    cell = [c for c in study.cells("paper", 1, smoke=True) if c.point.arm == arm][-1]
    whole = next(p.config for p in study.points("paper") if (p.arm, p.level) == (arm, cell.point.level))
    config = cell.point.config
    assert config.architecture == whole.architecture, "the smoke run is of another model"
    assert config.training.penalties == whole.training.penalties != ()
    with one_thread():
        numbers, details = run_config(config, 0, root=str(small_root))
    assert numbers["steps"] == 1 and details["data"]
    assert numbers["parameters"] == ARCHITECTURES[name, arm]
    assert math.isfinite(numbers["loss"]) and numbers["loss"] > 0
    for norm in ("2", "inf"):
        assert 0 <= numbers[f"ra_{norm}"] <= 1
        assert numbers[f"gap_{norm}"] >= 0
        assert numbers[f"alignment_{norm}"] is None
    assert 0 <= numbers["compressibility_rows"] < 1 and numbers["spectral_product"] > 0
    assert ("folded_compressibility_rows" in numbers) == (arm not in (e06.TUNED, e06.HEAD, e16.SWIN))
