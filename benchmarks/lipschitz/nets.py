"""The networks: random ones, ones trained on MNIST-5k, and modules that a tool may misread ("traps").

Names: ``64-3`` is width 64 and three weight matrices (64 inputs, 10 outputs); ``784-256-5`` has 784 inputs;
``mnist-64-64`` is 784-64-64-10 with biases, trained. Weights are He-initialised.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from certbound import Network, ReLU
from certbound.network import Affine, as_network

if TYPE_CHECKING:
    from torch import nn

F64 = npt.NDArray[np.float64]

N_INPUTS: Final = 64
N_OUTPUTS: Final = 10


@dataclass(frozen=True, eq=False)
class Net:
    """A fully connected ReLU network: ``weights[i]`` of shape (outputs, inputs), first layer first."""

    name: str
    weights: tuple[F64, ...]
    biases: tuple[F64, ...]

    @property
    def digest(self) -> str:
        """Of the numbers, so that results of other weights are not taken for these."""
        seen = hashlib.sha256()
        for x in (*self.weights, *self.biases):
            seen.update(f"{x.shape}".encode())
            seen.update(np.ascontiguousarray(x).tobytes())
        return seen.hexdigest()[:16]

    @property
    def sizes(self) -> str:
        """``784-64-64-10``."""
        return "-".join(str(n) for n in (self.weights[0].shape[1], *(len(w) for w in self.weights)))

    def network(self) -> Network:
        """As certbound's own representation."""
        layers: list[Any] = []
        for w, b in zip(self.weights, self.biases, strict=True):
            layers += [Affine(w, b), ReLU()]
        return Network(tuple(layers[:-1]))

    def module(self) -> nn.Sequential:
        """As a torch module in float64."""
        import torch

        layers: list[nn.Module] = []
        for w, b in zip(self.weights, self.biases, strict=True):
            linear = torch.nn.utils.skip_init(torch.nn.Linear, w.shape[1], len(w), dtype=torch.float64)
            with torch.no_grad():
                linear.weight.copy_(torch.tensor(w))
                linear.bias.copy_(torch.tensor(b))
            layers += [linear, torch.nn.ReLU()]
        return torch.nn.Sequential(*layers[:-1]).eval().requires_grad_(False)


def check_name(name: str) -> None:
    """ValueError for a name that says nothing."""
    if re.fullmatch(r"mnist(-\d+)+", name):
        numbers = [int(n) for n in name.split("-")[1:]]
    elif re.fullmatch(r"(\d+-)?\d+-\d+", name):
        numbers = [int(n) for n in name.split("-")]
        if numbers[-1] < 2:
            raise ValueError(f"{name!r}: there are at least two weight matrices")
    else:
        raise ValueError(f"{name!r} names no network: 64-3 (width, weight matrices), 784-256-5 or mnist-64-64")
    if min(numbers) < 1:
        raise ValueError(f"{name!r}: widths are at least 1")


def build(name: str, seed: int = 0) -> Net:
    """The network of that name; ValueError for a name that says nothing.

    >>> build("32-3").sizes, build("784-256-5").sizes
    ('64-32-32-10', '784-256-256-256-256-10')
    """
    check_name(name)
    first, *others = name.split("-")
    if first == "mnist":
        return _trained(name, [int(n) for n in others], seed)
    *before, width, depth = first, *others
    n_inputs = int(before[0]) if before else N_INPUTS
    sizes = (n_inputs, *[int(width)] * (int(depth) - 1), N_OUTPUTS)
    rng = np.random.default_rng([seed, *sizes])
    weights = tuple(rng.standard_normal((b, a)) * math.sqrt(2.0 / a) for a, b in pairwise(sizes))
    return Net(name, weights, tuple(np.zeros(len(w)) for w in weights))


def _trained(name: str, hidden: list[int], seed: int) -> Net:
    from certbound.demo.data import mnist5k
    from certbound.demo.train import train_fcn

    network = as_network(train_fcn(mnist5k(seed), hidden=tuple(hidden), seed=seed).module)
    return Net(name, network.chain.weights, network.chain.biases)


def stored(name: str, seed: int, folder: Path) -> Net:
    """The network of that name, from its file if there is one (training is not bit-for-bit the same everywhere)."""
    path = folder / f"{name}.seed{seed}.npz"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        net = build(name, seed)
        arrays = {f"{kind}{i}": x for kind, xs in (("w", net.weights), ("b", net.biases)) for i, x in enumerate(xs)}
        partial = path.with_suffix(f".{os.getpid()}.tmp")
        with partial.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        partial.replace(path)
    with np.load(path, allow_pickle=False) as data:
        n = len(data.files) // 2
        return Net(name, tuple(data[f"w{i}"] for i in range(n)), tuple(data[f"b{i}"] for i in range(n)))


# ---------------------------------------------------------------- traps


def _skip() -> nn.Module:
    """``head(h + B(relu(A h)))`` with a small branch, as residual networks are initialised."""
    import torch

    class Residual(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.inner = torch.nn.Linear(8, 32), torch.nn.Linear(32, 32)
            self.outer, self.head = torch.nn.Linear(32, 32), torch.nn.Linear(32, 4)
            with torch.no_grad():
                self.outer.weight.mul_(0.1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = torch.relu(self.stem(x))
            return self.head(h + self.outer(torch.relu(self.inner(h))))

    return Residual()


def _batch_norm() -> nn.Module:
    """BatchNorm that has seen inputs of size 0.1: it multiplies by about ten."""
    import torch

    norm = torch.nn.BatchNorm1d(32, momentum=None)
    model = torch.nn.Sequential(torch.nn.Linear(8, 32), norm, torch.nn.ReLU(), torch.nn.Linear(32, 4))
    with torch.no_grad():
        model.train()(0.1 * torch.randn(256, 8))
    return model


def _conv() -> nn.Module:
    """A convolution whose kernel has norm above 1, before two linear layers."""
    import torch

    conv = torch.nn.Conv2d(1, 4, 3, padding=1)
    with torch.no_grad():
        conv.weight.mul_(4.0)
    return torch.nn.Sequential(
        conv, torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(64, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4)
    )  # fmt: skip


def _silu() -> nn.Module:
    """Identity maps with biases that put every SiLU where its slope is 1.0998: the constant is about 1.0998³."""
    import torch

    layers: list[nn.Module] = []
    for bias in (2.4, 0.2, 0.2, 0.0):
        linear = torch.nn.Linear(4, 4)
        with torch.no_grad():
            linear.weight.copy_(torch.eye(4))
            linear.bias.fill_(bias)
        layers += [linear, torch.nn.SiLU()]
    return torch.nn.Sequential(*layers[:-1])


@dataclass(frozen=True)
class Trap:
    """A module with one thing that is no chain of Linear and ReLU."""

    name: str
    what: str
    input_shape: tuple[int, ...]
    make: Callable[[], Any]

    def module(self) -> nn.Module:
        """The module in float64, eval mode; the same weights every time."""
        import torch

        with torch.random.fork_rng():
            torch.manual_seed(0)
            return self.make().double().eval().requires_grad_(False)


TRAPS: Final = {
    t.name: t
    for t in (
        Trap("skip", "a skip connection", (8,), _skip),
        Trap("batchnorm", "BatchNorm1d in eval mode", (8,), _batch_norm),
        Trap("conv", "a convolution", (1, 4, 4), _conv),
        Trap("silu", "SiLU, slopes up to 1.0998", (4,), _silu),
    )
}
