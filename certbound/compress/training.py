"""The training loop of the project: SGD on the cross-entropy, with penalties, fixed Frobenius norms, adversaries."""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from certbound.compress.adversarial import PGD, UniversalPerturbation, part_of, pgd_examples
from certbound.compress.factorised import PURPOSE
from certbound.compress.frobenius import FrobeniusNorms
from certbound.compress.layers import weight_parameters
from certbound.compress.penalties import PENALTIES, PROXIMAL_STEPS
from certbound.compress.training_config import History, Training
from certbound.compress.training_inputs import (
    check_module,
    class_logits,
    eval_mode,
    generator_of,
    hold_back,
    own_state,
    samples,
    to_device,
)
from certbound.errors import CertboundError, InputError
from certbound.io.to_torch import import_torch
from certbound.progress import track

if TYPE_CHECKING:
    import torch
    from torch import nn

log = logging.getLogger(__name__)

PROX_EVERY: Final = 8
"""Optimiser steps between two proximal steps: an SVD each step would take most of the training time."""

_EVAL_BATCH: Final = 1024
"""Samples in one forward pass where no gradient is wanted."""


def train(
    model: nn.Module,
    x: object,
    y: object,
    training: Training,
    *,
    seed: int | torch.Generator,
    device: str = "cpu",
    progress: bool = False,
) -> History:
    """Train a module in place with mean cross-entropy and SGD with momentum μ.

    The loss of a batch is the cross-entropy at the (perturbed) samples plus ``Σ λ · penalty``. A penalty with a
    proximal step is none of these terms: after every 8 steps, and after the last (with patience, also after each
    epoch), its proximal map is applied with the threshold ``τ = Σ_t η_t λ / (1 − μ)``, summed over the steps since
    the last time. ``η / (1 − μ)`` is how far one gradient moves the weights in total under momentum, so that gradient
    and threshold balance where the penalised loss is stationary.

    Afterwards the model is on ``device`` and in eval mode. Parameters that require no gradient are not moved, and a
    submodule all of whose parameters require none stays in eval mode while the others train (so that a frozen encoder
    keeps its BatchNorm statistics and drops nothing).

    Parameters
    ----------
    model : any module from x's batch to logits (samples, classes); (samples, 1) is read as the two classes (0, z).
    x : samples, shape (samples, …), converted to the dtype of the model; in [0, 1] if they are to be perturbed.
    y : labels 0…C−1.
    seed : decides the batches' order, the samples held back, the starts of PGD and Dropout. The same seed on the same
        machine, device and number of threads gives the same weights (on CUDA as far as torch's kernels do). torch's
        random state is put back. A torch.Generator on the CPU: the order is drawn from it as it stands.
    device : where to train.
    progress : a bar of the epochs on stderr.

    Raises
    ------
    InputError : unusable arguments, by name; penalties or Frobenius norms where all weights but the head are frozen.
    CertboundError : training diverged: a loss became NaN or infinite. The model is then of no use.
    MissingDependencyError : torch is not installed.

    >>> import torch
    >>> from certbound.compress.factorised import relu_network
    >>> net = relu_network((1, 8, 2), generator=torch.Generator().manual_seed(0))
    >>> history = train(net, [[0.0], [1.0]], [0, 1], Training(epochs=50, lr=0.1), seed=0)
    >>> history.steps, history.train_accuracy
    (50, 1.0)
    """
    torch = import_torch(PURPOSE)
    _check_model(torch, model, training)
    generator = generator_of(torch, seed)
    target = to_device(torch, model, device)
    perturbed = training.adversarial is not None or training.universal is not None
    data, labels = samples(torch, model, x, y, target, in_unit_box=perturbed)
    # apart from the order, so that neither Dropout, PGD nor validation changes what the order is drawn from
    streams = np.random.SeedSequence(generator.initial_seed()).generate_state(3, np.uint64).tolist()
    held = None
    if training.validation > 0:
        part, rest = hold_back(torch, len(data), training.validation, streams[0])
        held, data, labels = (data[part], labels[part]), data[rest], labels[rest]
    with own_state(torch, target, streams[1]):
        noise = torch.Generator().manual_seed(streams[2])
        return _Fit(torch, model, training, generator, noise, len(data)).run(data, labels, held, progress)


def accuracy(model: nn.Module, x: object, y: object) -> float:
    """Fraction of samples that the model classifies correctly, in eval mode; ties go to the lower class.

    Parameters
    ----------
    x : samples, shape (samples, …), converted to the model's dtype and device. y : labels 0…C−1.

    Raises
    ------
    InputError : unusable arguments, by name.

    >>> import torch
    >>> accuracy(torch.nn.Identity(), [[0.2, 0.8], [0.9, 0.1]], [1, 1])
    0.5
    """
    torch = import_torch(PURPOSE)
    check_module(model)
    first = next(model.parameters(), None)
    data, labels = samples(torch, model, x, y, "cpu" if first is None else first.device)
    return _evaluate(torch, model, data, labels)[1]


class _Fit:
    """One run of the loop: the optimiser, and what is done to the weights after its steps."""

    def __init__(self, torch: Any, model: Any, training: Training, generator: Any, noise: Any, n: int) -> None:
        self.torch, self.model, self.training = torch, model, training
        self.generator, self.noise = generator, noise
        self.optimiser = torch.optim.SGD(
            [p for p in model.parameters() if p.requires_grad],
            lr=training.lr, momentum=training.momentum, weight_decay=training.weight_decay,
        )  # fmt: skip
        self.schedule = training.epochs * math.ceil(n / training.batch_size)
        self.last = min(self.schedule, training.max_steps or self.schedule)
        self.norms = FrobeniusNorms.of(model) if training.frobenius else None
        self.universal: UniversalPerturbation | None = None
        self.step = 0
        # threshold per step and unit of η, and that of the steps since the last proximal step
        self.per_step = sum(strength for _, strength in training.proximal_penalties) / (1.0 - training.momentum)
        self.owed = 0.0

    def run(self, x: Any, y: Any, held: tuple[Any, Any] | None, progress: bool) -> History:
        """All epochs; the model is left in eval mode, with the weights that are wanted."""
        patience = self.training.patience
        losses: list[float] = []
        validation: list[float] = []
        best_state, best_epoch, stopped = None, 0, False
        started = time.perf_counter()
        for epoch in track(range(self.training.epochs), "training", enabled=progress):
            losses.append(self._epoch(x, y))
            log.debug("epoch %d: mean loss %.4f", epoch + 1, losses[-1])
            self._finite(losses[-1], "mean loss", epoch)
            if held is not None:
                validation.append(_evaluate(self.torch, self.model, *held)[0])
                self._finite(validation[-1], "validation loss", epoch)
            if patience is not None:
                if best_state is None or validation[-1] < validation[best_epoch]:
                    best_state, best_epoch = copy.deepcopy(self.model.state_dict()), epoch
                stopped = epoch - best_epoch >= patience
            if stopped or self.step == self.last:
                break
        seconds = time.perf_counter() - started
        if best_state is not None:
            self.model.load_state_dict(best_state)
        self.model.eval()
        self.optimiser.zero_grad(set_to_none=True)
        loss, train_accuracy = _evaluate(self.torch, self.model, x, y)
        self._finite(loss, "loss after the last step", len(losses) - 1)
        return History(self.step, len(losses), tuple(losses), tuple(validation), train_accuracy, seconds, stopped)

    def _epoch(self, x: Any, y: Any) -> float:
        """Train on all batches, or until the last step; the mean loss."""
        _train_mode(self.model)
        total, seen = self.torch.zeros((), device=x.device), 0
        # drawn on the CPU, so that the order is the same on every device
        order = self.torch.randperm(len(x), generator=self.generator).to(x.device)
        for batch in order.split(self.training.batch_size):
            total += self._descend(x[batch], y[batch]) * len(batch)
            seen += len(batch)
            if self.step == self.last:
                break
        # weights that are validated and may be kept are ones that the proximal map has made
        if self.training.patience is not None:
            self._correct(settle=True)
        return float(total) / seen

    def _descend(self, x: Any, y: Any) -> Any:
        """One step of the optimiser on a batch; the cross-entropy."""
        training = self.training
        eta = training.lr * (1.0 - self.step / self.schedule)
        self.optimiser.param_groups[0]["lr"] = eta
        points = self._perturbed(x, y)
        with _batch_norm_needs_two(len(x)):
            loss = self.torch.nn.functional.cross_entropy(class_logits(self.model(points)), y)
        objective = loss
        with self._weights_are_finite():
            for name, strength in training.loss_penalties:
                objective = objective + strength * PENALTIES[name](self.model)
        self.optimiser.zero_grad(set_to_none=True)
        objective.backward()
        self.optimiser.step()
        self.step += 1
        self.owed += eta * self.per_step
        # at the last step too, so that the weights returned are ones that the proximal map has made
        self._correct(settle=self.step % PROX_EVERY == 0 or self.step == self.last)
        return loss.detach()

    def _correct(self, *, settle: bool) -> None:
        """What follows a step: the proximal step that is owed, if it is time to settle it, and the Frobenius norms."""
        with self._weights_are_finite():
            if settle and self.owed > 0:
                for name, _ in self.training.proximal_penalties:  # one at most
                    PROXIMAL_STEPS[name](self.model, self.owed)
                self.owed = 0.0
            if self.norms is not None:
                self.norms.restore(self.model)

    @contextlib.contextmanager
    def _weights_are_finite(self) -> Iterator[None]:
        """Penalties and norms refuse NaN weights; before the first step they were finite, so training diverged."""
        try:
            yield
        except (InputError, self.torch.linalg.LinAlgError) as error:
            raise CertboundError(
                f"training diverged: {error} (step {self.step}); lower lr={self.training.lr:g}"
            ) from error

    def _perturbed(self, x: Any, y: Any) -> Any:
        """The batch with its first samples perturbed: the order is random, so they are any samples."""
        attack = self.training.adversarial or self.training.universal
        if attack is None:
            return x
        n = part_of(len(x), attack.fraction)
        if isinstance(attack, PGD):
            moved = pgd_examples(self.model, x[:n], y[:n], attack, generator=self.noise)
        else:
            if self.universal is None:
                self.universal = UniversalPerturbation(attack, self.torch.zeros_like(x[0]))
            moved = self.universal.ascend(self.model, x[:n], y[:n])
        return self.torch.cat([moved, x[n:]])

    def _finite(self, value: float, what: str, epoch: int) -> None:
        if not math.isfinite(value):
            raise CertboundError(
                f"training diverged: {what} {value} in epoch {epoch + 1}; lower lr={self.training.lr:g}"
            )


def _check_model(torch: Any, model: Any, training: Training) -> None:
    """Refuse a model on which the training cannot be done, before anything is changed."""
    check_module(model)
    if not any(p.requires_grad for p in model.parameters()):
        raise InputError(
            "model", got="no parameter that requires a gradient", needed="something to train",
            fix="call model.requires_grad_(True)",
        )  # fmt: skip
    names = [name for name, _ in (*training.proximal_penalties, *training.loss_penalties)]
    for argument, wanted, all_convs in (("penalties", names, False), ("frobenius", training.frobenius, True)):
        weights = weight_parameters(model, exclude_first_conv=not all_convs) if wanted else {}
        if wanted and not any(weight.requires_grad for weight in weights.values()):
            raise InputError(
                argument, got=f"{argument} for a model whose weights besides the head are frozen",
                needed="a weight that is trained", fix="leave it out where the encoder is frozen",
            )  # fmt: skip
    for name, _ in training.loss_penalties:
        with torch.no_grad():
            PENALTIES[name](model)
    for name, _ in training.proximal_penalties:
        PROXIMAL_STEPS[name](copy.deepcopy(model), 0.0)


@contextlib.contextmanager
def _batch_norm_needs_two(n: int) -> Iterator[None]:
    """Torch's complaint about a batch of one sample, as an InputError."""
    try:
        yield
    except ValueError as error:
        if n > 1 or "more than 1 value per channel" not in str(error):
            raise
        raise InputError(
            "batch_size", got="a batch of one sample, on which BatchNorm cannot be trained",
            needed="batches, also the last, of at least two samples", fix="pass another batch_size",
        ) from error  # fmt: skip


def _train_mode(model: Any) -> None:
    """Train mode, but eval mode for submodules all of whose parameters are frozen."""
    model.train()
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            module.eval()


def _evaluate(torch: Any, model: Any, x: Any, y: Any) -> tuple[float, float]:
    """Mean cross-entropy and accuracy in eval mode."""
    loss, correct = 0.0, 0
    with eval_mode(model), torch.no_grad():
        for points, labels in zip(x.split(_EVAL_BATCH), y.split(_EVAL_BATCH), strict=True):
            logits = class_logits(model(points))
            loss += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
            correct += int((logits.argmax(dim=1) == labels).sum())
    return loss / len(x), correct / len(x)
