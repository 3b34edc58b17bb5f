"""Train the small ReLU networks of the demo: dense, of low rank, or with a nuclear-norm penalty."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from certbound.compress.factorised import PURPOSE, relu_network
from certbound.compress.training import Training, accuracy, train
from certbound.demo.data import Split
from certbound.errors import InputError
from certbound.io.to_torch import import_torch

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger(__name__)

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
        _ = self.training  # refuses what cannot be used
        if self.rank is not None and self.nuclear > 0:
            raise InputError(
                "nuclear",
                got=f"{self.nuclear:g} together with rank={self.rank}",
                needed="one of the two",
                fix="leave out rank or nuclear",
            )

    @property
    def training(self) -> Training:
        """What :func:`certbound.compress.training.train` is told."""
        return Training(
            self.epochs, self.lr, self.momentum, self.batch_size, penalties=(("nuclear", self.nuclear),)
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
    """Train a ReLU network by :func:`certbound.compress.training.train`, with mean cross-entropy.

    ``nuclear`` = λ adds ``λ Σ_l ‖W^l‖_*`` (head excluded) by proximal steps.

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
    history = train(model, split.x_train, split.y_train, config.training, seed=generator, device=config.device)
    model.requires_grad_(False)
    test_accuracy = accuracy(model, split.x_test, split.y_test)
    trained = TrainedModel(model.cpu(), config, history.train_accuracy, test_accuracy, history.seconds)
    log.info("trained %s", trained)
    return trained
