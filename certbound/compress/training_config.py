"""What a training is told, and what it reports."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from certbound.compress.adversarial import PGD, UniversalTraining
from certbound.compress.penalties import PENALTIES, PROXIMAL_STEPS
from certbound.compress.training_inputs import below, count
from certbound.errors import InputError
from certbound.types import norm_name


@dataclass(frozen=True)
class Training:
    """How a network is trained; everything but the model, the data, the seed and the machine.

    Parameters
    ----------
    epochs, batch_size : counts >= 1; the last batch of an epoch may be smaller.
    lr, momentum, weight_decay : of ``torch.optim.SGD``; weight decay acts on all parameters. The learning rate
        falls linearly, ``η_t = lr · (1 − t/T)`` with T the steps of all epochs.
    penalties : pairs (name in :data:`certbound.compress.penalties.PENALTIES`, strength λ >= 0).
    proximal : do the penalty that has an exact proximal step (l1, nuclear, group-lasso) by that, which makes exact
        zeros; there can be one such penalty, since the proximal map of a sum is not known. False: all penalties are
        terms of the loss, whose subgradients make none.
    frobenius : hold the Frobenius norm of every weight but the head at its initial value, after each step.
    adversarial, universal : train on perturbed samples; one of the two.
    validation : share of the samples that is held back, in [0, 1).
    patience : stop after so many epochs without a new smallest validation loss. With it the weights of the best epoch
        are restored at the end in any case. None: no early stopping, the last weights are kept.
    max_steps : stop after so many optimiser steps. The learning rate still falls as if all epochs were run.

    Raises
    ------
    InputError : a configuration that cannot be used.

    >>> Training(penalties=(("nuclear", 0.01),), adversarial=PGD(0.1, "inf")).to_dict()["adversarial"]["norm"]
    'inf'
    """

    epochs: int = 20
    lr: float = 0.04
    momentum: float = 0.9
    batch_size: int = 64
    weight_decay: float = 0.0
    penalties: tuple[tuple[str, float], ...] = ()
    proximal: bool = True
    frobenius: bool = False
    adversarial: PGD | None = None
    universal: UniversalTraining | None = None
    validation: float = 0.0
    patience: int | None = None
    max_steps: int | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            count(getattr(self, name), name)
        for name in ("patience", "max_steps"):
            if getattr(self, name) is not None:
                count(getattr(self, name), name)
        for name, limit in (("lr", math.inf), ("momentum", 1.0), ("weight_decay", math.inf), ("validation", 1.0)):
            object.__setattr__(self, name, below(getattr(self, name), name, limit))
        for name in ("proximal", "frobenius"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(name, got=repr(getattr(self, name)), needed="True or False", fix=f"pass {name}=True")
        for name, kind in (("adversarial", PGD), ("universal", UniversalTraining)):
            if getattr(self, name) is not None and not isinstance(getattr(self, name), kind):
                raise InputError(
                    name, got=repr(getattr(self, name)), needed=f"None or a {kind.__name__}",
                    fix=f"pass {kind.__name__}(delta, norm)",
                )  # fmt: skip
        object.__setattr__(self, "penalties", _read_penalties(self.penalties))
        if len(self.proximal_penalties) > 1:
            raise InputError(
                "penalties", got=" and ".join(name for name, _ in self.proximal_penalties),
                needed="at most one penalty with a proximal step", fix="pass proximal=False, or leave one out",
            )  # fmt: skip
        if self.adversarial is not None and self.universal is not None:
            raise InputError(
                "universal", got="both adversarial and universal", needed="one of the two", fix="leave one out"
            )
        if self.patience is not None and self.validation == 0:
            raise InputError(
                "patience", got=f"{self.patience} with validation=0", needed="samples to validate on",
                fix="pass validation=0.1",
            )  # fmt: skip

    @property
    def proximal_penalties(self) -> tuple[tuple[str, float], ...]:
        """The penalties that are done by proximal steps; those of strength 0 are no penalties."""
        return tuple((n, s) for n, s in self.penalties if self.proximal and s > 0 and n in PROXIMAL_STEPS)

    @property
    def loss_penalties(self) -> tuple[tuple[str, float], ...]:
        """The penalties that are terms of the loss."""
        return tuple(p for p in self.penalties if p[1] > 0 and p not in self.proximal_penalties)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; the norms by name."""
        data = {**asdict(self), "penalties": [list(p) for p in self.penalties]}
        for name in ("adversarial", "universal"):
            if data[name] is not None:
                data[name]["norm"] = norm_name(data[name]["norm"])
        return data


@dataclass(frozen=True)
class History:
    """What happened in a training.

    Parameters
    ----------
    steps, epochs : optimiser steps made; epochs begun.
    losses : per epoch, the mean cross-entropy of the batches as they were trained on, without penalties.
    validation_losses : per epoch, the mean cross-entropy of the samples held back, unperturbed; empty without any.
    train_accuracy : fraction of the samples trained on that the final model classifies correctly, unperturbed.
    seconds : wall time of the loop.
    stopped_early : whether patience ended it.
    """

    steps: int
    epochs: int
    losses: tuple[float, ...] = field(repr=False)
    validation_losses: tuple[float, ...] = field(repr=False)
    train_accuracy: float
    seconds: float
    stopped_early: bool

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "schema_version": 1, **asdict(self), "losses": list(self.losses),
            "validation_losses": list(self.validation_losses),
        }  # fmt: skip


def _read_penalties(penalties: object) -> tuple[tuple[str, float], ...]:
    read: dict[str, float] = {}
    pairs = penalties if isinstance(penalties, (tuple, list)) else (penalties,)
    for pair in pairs:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise InputError(
                "penalties", got=repr(pair), needed="pairs (name, strength)", fix="pass (('nuclear', 0.01),)"
            )
        name, strength = pair
        if name not in PENALTIES or name in read:
            raise InputError(
                "penalties", got=f"{name!r} twice" if name in read else repr(name),
                needed="different names out of " + ", ".join(PENALTIES), fix="pass for instance ('nuclear', 0.01)",
            )  # fmt: skip
        read[name] = below(strength, f"penalties: strength of {name}", math.inf)
    return tuple(read.items())
