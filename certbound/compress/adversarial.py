"""Points to train on: projected gradient ascent for each sample, or one running perturbation for all of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from certbound.compress.factorised import PURPOSE
from certbound.compress.training_inputs import class_logits, count, eval_mode, positive, share
from certbound.errors import InputError
from certbound.io.to_torch import import_torch
from certbound.types import parse_delta, parse_norm

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class PGD:
    """Adversarial training: a part of each batch is replaced by the outcome of projected gradient ascent.

    Parameters
    ----------
    delta : radius of the ball around each sample, in the units of x; norm : 2 or ∞.
    steps : steps of ascent from a random point of the ball. step_size : length of a step as a fraction of delta.
    fraction : share of each batch that is replaced, in (0, 1]; at least one sample.

    Raises InputError for anything else.

    Source: Madry et al. 2018, arXiv:1706.06083.

    >>> PGD(8 / 255, "inf").norm
    inf
    """

    delta: float
    norm: float
    steps: int = 7
    step_size: float = 0.25
    fraction: float = 0.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "delta", parse_delta(self.delta))
        object.__setattr__(self, "norm", parse_norm(self.norm))
        count(self.steps, "steps")
        object.__setattr__(self, "step_size", positive(self.step_size, "step_size"))
        object.__setattr__(self, "fraction", share(self.fraction, "fraction"))


@dataclass(frozen=True)
class UniversalTraining:
    """Training against one perturbation of all samples: it makes a step of ascent on each batch before it is used.

    Parameters
    ----------
    delta : largest norm of the perturbation, in the units of x; norm : 2 or ∞.
    step_size : length of a step as a fraction of delta. Long steps, so that the perturbation turns faster than the
        network learns the last one: on digits (ℓ∞ 0.1, 3 networks) the success rate of universal perturbations made
        afterwards was 0.15 without this training, 0.12 with steps of 0.1 δ and 0.06 with steps of δ; with ℓ2 0.5 it
        was 0.09, 0.12 and 0.04.
    fraction : share of each batch that is perturbed, in (0, 1]; at least one sample.

    Raises InputError for anything else.

    Source: Shafahi et al. 2020, arXiv:1811.11304.

    >>> UniversalTraining(0.1, 2).fraction
    1.0
    """

    delta: float
    norm: float
    step_size: float = 1.0
    fraction: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "delta", parse_delta(self.delta))
        object.__setattr__(self, "norm", parse_norm(self.norm))
        object.__setattr__(self, "step_size", positive(self.step_size, "step_size"))
        object.__setattr__(self, "fraction", share(self.fraction, "fraction"))


def pgd_examples(
    model: nn.Module, x: torch.Tensor, y: torch.Tensor, attack: PGD, *, generator: torch.Generator
) -> torch.Tensor:
    """Points of ``{x' : ‖x' − x‖ <= δ, 0 <= x' <= 1}`` with a raised cross-entropy of the true labels.

    From a point drawn uniformly from the ball, ``steps`` steps of length ``step_size · δ`` along the sign of the
    gradient (∞) or along the gradient (2), each followed by the projection on the ball and the clipping to [0, 1].
    The last point is returned. The model is in eval mode meanwhile; its parameters gather no gradients.

    Parameters
    ----------
    x : samples in [0, 1], shape (samples, …). y : labels, shape (samples,). Both on the model's device.
    generator : on the CPU; draws the starts, the same on every device.

    Returns
    -------
    A tensor like x, detached; inside the ball up to the rounding of x's dtype.

    >>> import torch
    >>> pgd_examples(torch.nn.Identity(), torch.tensor([[0.5, 0.5]]), torch.tensor([0]), PGD(0.25, "inf"),
    ...              generator=torch.Generator().manual_seed(0))  # label 0: lower x_0, raise x_1
    tensor([[0.2500, 0.7500]])
    """
    torch = import_torch(PURPOSE)
    radius = _radius(attack, x)
    shift = radius * _random_direction(torch, x, attack.norm, generator)
    with eval_mode(model):
        for _ in range(attack.steps):
            points = (x + shift).clamp(0.0, 1.0)
            gradient = _gradient(torch, model, points, y)
            moved = points + attack.step_size * radius * _steepest(gradient, attack.norm) - x
            shift = _into_ball(moved, radius, attack.norm)
    return (x + shift).clamp(0.0, 1.0)


class UniversalPerturbation:
    """The running perturbation of :class:`UniversalTraining`; ``a`` has the shape of one sample and begins at 0."""

    def __init__(self, attack: UniversalTraining, a: torch.Tensor) -> None:
        self.attack = attack
        self.a = a

    def ascend(self, model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Make one step on a batch and return ``clip(x + a, 0, 1)`` with the new a."""
        torch = import_torch(PURPOSE)
        moved = x + self.a
        with eval_mode(model):
            each = _gradient(torch, model, moved.clamp(0.0, 1.0), y)
        # Where a point is at a limit of [0, 1] only the way inwards counts. (The gradient of clamp would stop both
        # ways there: pixels that are 0 in all samples would never move.)
        blocked = ((moved <= 0.0) & (each < 0)) | ((moved >= 1.0) & (each > 0))
        gradient = each.masked_fill(blocked, 0.0).sum(dim=0, keepdim=True)
        radius = _radius(self.attack, x)
        step = self.attack.step_size * radius * _steepest(gradient, self.attack.norm)
        self.a = _into_ball(self.a + step, radius, self.attack.norm)[0]
        return (x + self.a).clamp(0.0, 1.0)


def part_of(batch: int, fraction: float) -> int:
    """How many samples of a batch are perturbed: the nearest integer to their share, at least 1.

    >>> part_of(64, 0.5), part_of(1, 0.1)
    (32, 1)
    """
    return max(1, round(fraction * batch))


def _gradient(torch: Any, model: Any, points: Any, y: Any) -> Any:
    """The gradient of the summed cross-entropy by the points."""
    with torch.enable_grad():
        points = points.detach().requires_grad_()
        loss = torch.nn.functional.cross_entropy(class_logits(model(points)), y, reduction="sum")
        gradient = torch.autograd.grad(loss, [points], allow_unused=True)[0] if loss.requires_grad else None
    if gradient is None:
        raise InputError(
            "model", got="outputs through which no gradient reaches the input", needed="a differentiable model",
            fix="remove detach() and no_grad() from its forward",
        )  # fmt: skip
    return gradient


def _radius(attack: PGD | UniversalTraining, x: Any) -> float:
    """δ, but no more than the diameter of [0, 1]^n: a larger ball adds no points, and its arithmetic would overflow."""
    return min(attack.delta, 1.0 if math.isinf(attack.norm) else math.sqrt(x[0].numel()))


def _flat_norm(a: Any) -> Any:
    """``‖a_i‖_2`` of each sample, shaped to be multiplied with a."""
    return a.flatten(1).norm(dim=1).reshape(-1, *[1] * (a.dim() - 1))


def _steepest(gradient: Any, norm: float) -> Any:
    """The direction of length 1 in the norm that raises the linearised loss most; 0 where the gradient is 0."""
    if math.isinf(norm):
        return gradient.sign()
    tiny = 1e-30
    # scaled first: the gradients of confident samples are so small that their squares are 0
    top = gradient.flatten(1).abs().amax(dim=1).reshape(-1, *[1] * (gradient.dim() - 1))
    scaled = gradient / top.clamp_min(tiny)
    return scaled / _flat_norm(scaled).clamp_min(tiny)


def _into_ball(shift: Any, delta: float, norm: float) -> Any:
    """The nearest points of the ball around 0."""
    if math.isinf(norm):
        return shift.clamp(-delta, delta)
    return shift * (delta / _flat_norm(shift).clamp_min(1e-30)).clamp_max(1.0)


def _random_direction(torch: Any, x: Any, norm: float, generator: Any) -> Any:
    """Points drawn uniformly from the unit ball, like x; drawn on the CPU, so that every device gets the same."""
    if math.isinf(norm):
        unit = 2.0 * torch.rand(x.shape, generator=generator, dtype=x.dtype) - 1.0
    else:
        direction = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        length = torch.rand(len(x), generator=generator, dtype=x.dtype) ** (1.0 / x[0].numel())
        unit = direction / _flat_norm(direction).clamp_min(1e-30) * length.reshape(-1, *[1] * (x.dim() - 1))
    return unit.to(x.device)
