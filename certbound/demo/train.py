"""Train the small ReLU networks of the demo: dense, of low rank, or with a nuclear-norm penalty."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from certbound.compress.low_rank import PURPOSE, relu_network
from certbound.compress.penalties import nuclear_norm_proximal_step
from certbound.demo.data import Split
from certbound.errors import CertboundError, InputError
from certbound.io.to_torch import import_torch

if TYPE_CHECKING:
    import torch
    from torch import nn

log = logging.getLogger(__name__)

PROX_EVERY: Final = 8
"""Optimiser steps between two proximal steps: an SVD each step would take most of the training time."""


RANKS: Final = (100, 50, 20, 10, 5)
"""The ranks of the demo; on MNIST-5k test accuracy falls from 0.95 (100) to 0.88 (5)."""

NUCLEAR_STRENGTHS: Final = (0.003, 0.01, 0.03)
"""The λ of the demo; effective rank of the first layer 160, 14 and 7 of 200, test accuracy 0.95, 0.94, 0.91."""


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides the trained weights, but for the data and the machine."""

    hidden: tuple[int, ...] = (200, 200)
    rank: int | None = None
    nuclear: float = 0.0
    seed: int = 0
    epochs: int = 20
    lr: float = 0.04
    momentum: float = 0.9
    batch_size: int = 64
    bias: bool = True
    device: str = "cpu"

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", tuple(self.hidden))
        for name in ("epochs", "batch_size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(name, got=repr(value), needed="an integer >= 1", fix="pass a count")
        for name, limit in (("nuclear", math.inf), ("lr", math.inf), ("momentum", 1.0)):
            value = getattr(self, name)
            if not math.isfinite(value) or not 0 <= value < limit:
                raise InputError(
                    name, got=repr(value), needed=f"a finite number in [0, {limit:g})", fix="see TrainConfig's defaults"
                )
        if self.rank is not None and self.nuclear > 0:
            raise InputError(
                "nuclear",
                got=f"{self.nuclear:g} together with rank={self.rank}",
                needed="one of the two",
                fix="leave out rank or nuclear",
            )

    @property
    def name(self) -> str:
        """Short name for tables.

        >>> TrainConfig(rank=5).name, TrainConfig(nuclear=0.01).name, TrainConfig().name
        ('rank 5', 'nuclear 0.01', 'dense')
        """
        if self.rank is not None:
            return f"rank {self.rank}"
        return f"nuclear {self.nuclear:g}" if self.nuclear > 0 else "dense"


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """A trained network.

    Parameters
    ----------
    module : a flat ``nn.Sequential`` in eval mode on the CPU, parameters not requiring gradients.
    config : how it was trained.
    train_accuracy, test_accuracy : fractions in [0, 1].
    seconds : wall time of the training loop.
    """

    module: nn.Sequential
    config: TrainConfig
    train_accuracy: float
    test_accuracy: float
    seconds: float

    @property
    def name(self) -> str:
        """Short name for tables."""
        return self.config.name

    def __str__(self) -> str:
        return (
            f"{self.name}: accuracy {self.train_accuracy:.3f} (train) {self.test_accuracy:.3f} (test), "
            f"{self.seconds:.1f} s"
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; the weights are not in it."""
        return {
            "schema_version": 1,
            "name": self.name,
            "config": {**asdict(self.config), "hidden": list(self.config.hidden)},
            "train_accuracy": self.train_accuracy,
            "test_accuracy": self.test_accuracy,
            "seconds": self.seconds,
        }


def train_fcn(
    split: Split,
    *,
    hidden: tuple[int, ...] = (200, 200),
    rank: int | None = None,
    nuclear: float = 0.0,
    seed: int = 0,
    epochs: int = 20,
    lr: float = 0.04,
    momentum: float = 0.9,
    batch_size: int = 64,
    bias: bool = True,
    device: str = "cpu",
) -> TrainedModel:
    """Train a ReLU network with mean cross-entropy and SGD with momentum μ.

    The learning rate falls linearly, ``η_t = lr · (1 − t/T)``. ``nuclear`` = λ adds ``λ Σ_l ‖W^l‖_*`` (head
    excluded) by proximal gradient: after every 8 steps, and after the last, the singular values are
    soft-thresholded by ``τ = Σ_t η_t λ / (1 − μ)`` over the steps since the last time. ``η / (1 − μ)`` is how
    far one gradient moves the weights in total under momentum, so that gradient and threshold balance
    where the penalised loss is stationary.

    Parameters
    ----------
    rank : rank of every layer but the head (``W = A B``); None for dense.
    seed : decides initial weights and batch order; the same seed on the same machine, device and number
        of threads gives the same weights. No global state is drawn from or changed.
    device : where to train; the returned module is on the CPU.

    Raises
    ------
    InputError : a configuration that cannot be used; both ``rank`` and ``nuclear``.
    MissingDependencyError : torch is not installed.
    CertboundError : the loss became NaN or infinite.
    """
    config = TrainConfig(hidden, rank, nuclear, seed, epochs, lr, momentum, batch_size, bias, device)
    torch = import_torch(PURPOSE)
    generator = torch.Generator().manual_seed(config.seed)
    n_classes = int(split.y_train.max()) + 1
    widths = (split.x_train.shape[1], *config.hidden, n_classes)
    model: Any = relu_network(widths, rank=config.rank, bias=config.bias, generator=generator)
    try:
        target = torch.device(config.device)
        model.to(target)
    except (RuntimeError, AssertionError) as error:  # "not compiled with CUDA" is an AssertionError
        raise InputError(
            "device", got=repr(config.device), needed="a device that torch can use here", fix="pass device='cpu'"
        ) from error
    x = torch.tensor(split.x_train, device=target)
    y = torch.tensor(split.y_train, device=target)
    started = time.perf_counter()
    _fit(model, x, y, config, generator)
    seconds = time.perf_counter() - started
    model.eval().requires_grad_(False)
    train_accuracy = _accuracy(model, x, y)
    test_accuracy = _accuracy(
        model, torch.tensor(split.x_test, device=target), torch.tensor(split.y_test, device=target)
    )
    trained = TrainedModel(model.cpu(), config, train_accuracy, test_accuracy, seconds)
    log.info("trained %s", trained)
    return trained


def _fit(
    model: nn.Module, x: torch.Tensor, y: torch.Tensor, config: TrainConfig, generator: torch.Generator
) -> None:
    torch = import_torch(PURPOSE)
    optimiser = torch.optim.SGD(model.parameters(), lr=config.lr, momentum=config.momentum)
    n_steps = config.epochs * math.ceil(len(x) / config.batch_size)
    per_step = config.nuclear / (1.0 - config.momentum)  # singular-value threshold per step and unit of η
    owed = 0.0  # threshold of the steps since the last proximal step
    model.train()
    step = 0
    for epoch in range(config.epochs):
        total = torch.zeros((), device=x.device)
        # drawn on the CPU, so that the order is the same on every device
        order = torch.randperm(len(x), generator=generator).to(x.device)
        for batch in order.split(config.batch_size):
            eta = config.lr * (1.0 - step / n_steps)
            optimiser.param_groups[0]["lr"] = eta
            loss = torch.nn.functional.cross_entropy(model(x[batch]), y[batch])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            total += loss.detach() * len(batch)
            step += 1
            owed += eta * per_step
            # at the last step too, so that the weights returned are ones that the proximal map has made
            if owed > 0 and (step % PROX_EVERY == 0 or step == n_steps):
                nuclear_norm_proximal_step(model, owed)
                owed = 0.0
        mean = float(total) / len(x)
        log.debug("%s epoch %d: mean loss %.4f", config.name, epoch + 1, mean)
        if not math.isfinite(mean):
            raise CertboundError(f"training diverged: mean loss {mean} in epoch {epoch + 1}; lower lr={config.lr:g}")


def _accuracy(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    torch = import_torch(PURPOSE)
    with torch.no_grad():
        return float((model(x).argmax(dim=1) == y).double().mean())
