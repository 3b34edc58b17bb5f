"""The paper-scale configuration of every study, for one step of training: it must run as it stands on full data.

The data are a few images in each set's own format; architecture, attack and bounds are those of the paper scale.
"""

import math

import pytest
import torch
from image_files import write_cifar_binary, write_mnist

from experiments.cell import run_config
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


@pytest.mark.parametrize("name", MODULES)
def test_one_step_at_paper_scale(name, root):
    study = find(name)
    cell = study.cells("paper", 1, smoke=True)[0]
    whole = next(p.config for p in study.points("paper") if (p.arm, p.level) == (cell.point.arm, cell.point.level))
    assert cell.point.config.hidden == whole.hidden, "the smoke run is of another model"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        numbers, _ = run_config(cell.point.config, 0, root=str(root))
    finally:
        torch.set_num_threads(threads)
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
