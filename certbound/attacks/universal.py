"""One perturbation for all samples: its mean loss gap is a lower bound of the mean worst-case gap, on any samples.

Whoever may choose a perturbation per sample can choose the same one for all, so what one perturbation reaches is
below what :func:`certbound.attacks.apgd.attack` looks for; and that holds on samples and on models that it was not
made for, where its mean gap can be negative (then the bound is 0, that of no perturbation).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from certbound import losses, text
from certbound.arrays import F64, I64, as_float64, as_labels, digest, frozen
from certbound.attacks.common import (
    BOX,
    differentiable,
    integer,
    into_ball,
    logits_of,
    module_copy,
    own_state,
    read_model,
    read_samples,
    sizes,
    torch_device,
)
from certbound.bound import Bound, Claim
from certbound.errors import CertboundError, InputError
from certbound.io.to_torch import import_torch, two_class
from certbound.types import SCHEMA_VERSION, Quantity, Rigor, Sense, norm_name, parse_delta, parse_norm

OPTIMIZERS = ("sgd", "adam")
SOURCE = (
    "Moosavi-Dezfooli et al. 2017, arXiv:1610.08401 (universal perturbations); "
    "Shafahi et al. 2020, arXiv:1811.11304 (stochastic projected gradient ascent)"
)

_CHECKS = 20
"""How many times on its way the perturbation is evaluated on all samples in float64; the best one is kept."""


@dataclass(frozen=True, eq=False)
class UniversalReport:
    """One perturbation on one sample set; made by :func:`universal_perturbation` and by :meth:`transfer`.

    Sample i is moved to ``x_i + a``, clipped to [0, 1] (which shortens the way).

    Parameters
    ----------
    a : float64, the shape of one sample; ``‖a‖ <= delta`` in exact arithmetic.
    y : labels.
    clean_loss, perturbed_loss : (samples,), cross-entropy at x and at the moved points, in float64.
    clean_correct, perturbed_correct : (samples,), whether they are classified correctly.
    delta, norm, optimizer, steps, batch_size, seed, device, seconds : how the perturbation was asked for and made.
    fitted : whether it was made for these samples and this model; False for held-out samples and transfers.
    largest_perturbation : largest way of a sample, computed in float64; at most delta.
    domain, subject : what the claims of its bounds are about; no subject for a module that is not in the IR.
    held_out : the same perturbation on the held-out samples; None without any.
    """

    a: F64 = field(repr=False)
    y: I64
    clean_loss: F64
    perturbed_loss: F64
    clean_correct: npt.NDArray[np.bool_]
    perturbed_correct: npt.NDArray[np.bool_]
    delta: float
    norm: float
    optimizer: str
    steps: int
    batch_size: int
    seed: int
    device: str
    seconds: float
    fitted: bool
    largest_perturbation: float
    domain: str = field(repr=False)
    subject: str = field(repr=False)
    held_out: UniversalReport | None = field(default=None, repr=False)

    @cached_property
    def per_sample_gap(self) -> F64:
        """``loss(x + a) − loss(x)``, one per sample; of either sign, since a was not chosen for the sample."""
        return frozen(self.perturbed_loss - self.clean_loss)

    @property
    def mean_gap(self) -> float:
        """The mean of ``per_sample_gap``: what this perturbation does, which can be a good turn (negative)."""
        return float(np.mean(self.per_sample_gap))

    @property
    def loss_gap(self) -> Bound:
        """``max(mean_gap, 0)``, a lower bound of the mean over samples of ``max_a loss(x + a) − loss(x)``."""
        return self._bound(max(self.mean_gap, 0.0), Quantity.LOSS_GAP, Sense.LOWER)

    @property
    def clean_accuracy(self) -> float:
        """Fraction of samples classified correctly."""
        return float(np.mean(self.clean_correct))

    @property
    def success_rate(self) -> float:
        """Of the samples classified correctly, the fraction that the perturbation gets misclassified; 0 of none."""
        fooled = int(np.sum(self.clean_correct & ~self.perturbed_correct))
        return fooled / max(int(np.sum(self.clean_correct)), 1)

    @property
    def robust_accuracy(self) -> float:
        """Fraction of samples classified correctly with and without it: an upper bound."""
        return float(np.mean(self.clean_correct & self.perturbed_correct))

    @property
    def robust_accuracy_bound(self) -> Bound:
        """``robust_accuracy`` as an upper bound of the robust accuracy."""
        return self._bound(self.robust_accuracy, Quantity.ROBUST_ACCURACY, Sense.UPPER)

    def transfer(self, model: object, x: object, y: object, *, device: str | None = None) -> UniversalReport:
        """The same perturbation on other samples, or another model: a lower bound of *their* gap.

        Raises InputError as :func:`universal_perturbation` does, also if the samples have another shape than a.
        """
        begin = time.perf_counter()
        clean = read_samples(x)
        _check_shape(clean, self.a.shape, "x")
        torch = import_torch("universal_perturbation")
        where = torch_device(torch, device)
        with own_state(torch, where, self.seed):
            network = read_model(model, clean)
            victim = _Victim(torch, module_copy(torch, model, network, "float64", where), where)
            clean_logits = victim.logits(clean)
            labels = as_labels(y, len(clean), clean_logits.shape[1])
            found = _evaluate(victim, clean, labels, clean_logits, self.a, self.delta, self.norm)
        return self._like(found, labels, clean, "" if network is None else network.digest, str(where), begin)

    def _like(self, found: _Evaluation, y: I64, x: F64, subject: str, device: str, begin: float) -> UniversalReport:
        return UniversalReport(
            self.a, y, *found.fields, self.delta, self.norm, self.optimizer, self.steps, self.batch_size, self.seed,
            device, time.perf_counter() - begin, False, found.largest, _domain(x, y, self.delta, self.norm), subject,
        )

    def _bound(self, value: float, quantity: Quantity, sense: Sense) -> Bound:
        claim = Claim(quantity, self.norm, None, self.domain, "all", self.subject)
        parameters = (("delta", self.delta), ("steps", float(self.steps)), ("seed", float(self.seed)))
        return Bound(value, claim, sense, Rigor.NUMERICAL, "universal", SOURCE, parameters=parameters)

    def __str__(self) -> str:
        gap = self.loss_gap
        settings = f"{self.optimizer}, {self.steps} steps, batches of {self.batch_size}, seed {self.seed}"
        rows = [
            ("samples", f"{len(self.y)}{'' if self.fitted else ' (not those it was made for)'}", ""),
            ("clean accuracy", text.number(self.clean_accuracy), ""),
            ("robust accuracy", text.at_most(self.robust_accuracy), str(gap.rigor)),
            ("success rate", text.number(self.success_rate), ""),
            ("mean gap of this a", text.number(self.mean_gap), ""),
            ("mean loss gap", text.at_least(gap.value), str(gap.rigor)),
        ]
        if self.held_out is not None:
            rows += [
                ("held-out mean gap", f"{text.number(self.held_out.mean_gap)} on {len(self.held_out.y)} samples", ""),
                ("held-out success rate", text.number(self.held_out.success_rate), ""),
            ]
        rows += [
            ("domain", self.domain, ""),
            ("method", f"universal, {settings} ({self.device}, {self.seconds:.3g} s)", ""),
        ]
        return text.table(rows, header=("quantity", "value", "trust"))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with ``schema_version``; of ``a`` the shape and the digest."""
        return {
            "schema_version": SCHEMA_VERSION,
            "method": "universal",
            "optimizer": self.optimizer,
            "steps": self.steps,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "device": self.device,
            "seconds": self.seconds,
            "fitted": self.fitted,
            "delta": self.delta,
            "norm": norm_name(self.norm),
            "y": self.y.tolist(),
            "a_shape": list(self.a.shape),
            "a_digest": digest(self.a),
            "clean_loss": [text.json_number(v) for v in self.clean_loss],
            "perturbed_loss": [text.json_number(v) for v in self.perturbed_loss],
            "clean_correct": self.clean_correct.tolist(),
            "perturbed_correct": self.perturbed_correct.tolist(),
            "clean_accuracy": self.clean_accuracy,
            "success_rate": self.success_rate,
            "mean_gap": text.json_number(self.mean_gap),
            "loss_gap": self.loss_gap.to_dict(),
            "robust_accuracy": self.robust_accuracy,
            "robust_accuracy_bound": self.robust_accuracy_bound.to_dict(),
            "largest_perturbation": self.largest_perturbation,
            "held_out": None if self.held_out is None else self.held_out.to_dict(),
        }


@dataclass(frozen=True)
class _Victim:
    """The float64 model."""

    torch: Any
    module: Any
    device: Any

    def logits(self, x: F64) -> F64:
        return losses.class_logits(logits_of(self.torch, self.module, x, "float64", self.device, 1024))


@dataclass(frozen=True, eq=False)
class _Evaluation:
    """Losses and correctness at x and at the moved points."""

    fields: tuple[F64, F64, npt.NDArray[np.bool_], npt.NDArray[np.bool_]]
    largest: float

    @property
    def mean_gap(self) -> float:
        return float(np.mean(self.fields[1] - self.fields[0]))


def _evaluate(victim: _Victim, x: F64, y: I64, logits: F64, a: F64, delta: float, norm: float) -> _Evaluation:
    points = into_ball(x, np.clip(x + a, *BOX), delta, norm)
    largest = float(sizes(points - x, norm).max())
    if largest > delta or points.min() < BOX[0] or points.max() > BOX[1]:
        raise CertboundError(f"the perturbation left its ball: size {largest!r} for delta = {delta!r}")
    before, after = losses.margins_of(logits, y), losses.margins_of(victim.logits(points), y)
    correct = [np.all(m > 0, axis=1) for m in (before, after)]
    for own in (*correct, y):
        own.flags.writeable = False
    loss = [frozen(losses.loss_of_margins(m)) for m in (before, after)]
    return _Evaluation((loss[0], loss[1], correct[0], correct[1]), largest)


def _domain(x: F64, y: I64, delta: float, norm: float) -> str:
    return losses.perturbation_domain(np.ascontiguousarray(x.reshape(len(x), -1)), y, delta, norm, BOX)


def _check_shape(x: F64, shape: tuple[int, ...], name: str) -> None:
    if x.shape[1:] != shape:
        raise InputError(
            name, got=f"samples of shape {x.shape[1:]}", needed=f"the shape of the perturbation, {shape}",
            fix="reshape the samples",
        )


def _held_out_pair(held_out: object) -> tuple[object, object] | None:
    if held_out is None:
        return None
    if not isinstance(held_out, (tuple, list)) or len(held_out) != 2:
        raise InputError(
            "held_out", got=f"a {type(held_out).__name__}", needed="None or a pair (x, y)", fix="pass (x_test, y_test)"
        )
    return held_out[0], held_out[1]


def universal_perturbation(
    model: object,
    x: object,
    y: object,
    *,
    delta: object,
    norm: object,
    steps: int = 200,
    seed: int = 0,
    optimizer: str = "sgd",
    step_size: float = 0.1,
    batch_size: int = 128,
    held_out: object = None,
    device: str | None = None,
) -> UniversalReport:
    """Search one perturbation a, ``‖a‖ <= delta``, that raises the mean loss of all samples.

    Stochastic projected gradient ascent on the mean cross-entropy of ``clip(x + a, 0, 1)``, from a = 0. On its way a
    is evaluated on all samples in float64, and the best one is kept (a = 0 among them, so that the mean gap on these
    samples is never negative).

    Parameters
    ----------
    model : any ``nn.Module`` that maps samples to logits, a Network, a Graph, or a list of weight matrices.
    x : samples in [0, 1], shape (samples, …). y : labels 0…C−1 (0/1 with one logit).
    delta : radius of the perturbation, in the units of x. norm : 2 or ∞.
    steps : minibatches. seed : of their order.
    optimizer : ``"sgd"``: steps along the gradient's signs (∞) or along the gradient (2); or ``"adam"``, whose steps
        are along the signs of the gradient more or less, so that with norm 2 it finds less.
    step_size : length of a step as a fraction of delta.
    batch_size : samples of a minibatch.
    held_out : ``(x, y)``: other samples on which the perturbation is evaluated too, ``report.held_out``.
    device : ``"cpu"``, ``"cuda"``, …; None: CUDA if there is one, else the CPU.

    Returns
    -------
    A frozen :class:`UniversalReport`; its bounds are *numerical*: a is in the ball exactly, losses are float64.

    Raises
    ------
    InputError : unusable arguments, samples outside [0, 1], a model with NaN outputs or without gradients.
    MissingDependencyError : no torch.

    Source: see :data:`SOURCE`.

    >>> identity = [[[1.0, 0.0], [0.0, 1.0]]]  # both samples have label 0: lower x_0, raise x_1
    >>> report = universal_perturbation(identity, [[0.8, 0.2], [0.5, 0.3]], [0, 0], delta=0.2, norm="inf", device="cpu")
    >>> report.a.round(6)
    array([-0.2,  0.2])
    >>> report.success_rate  # margins 0.6 and 0.2 fall by 0.4
    0.5
    """
    begin = time.perf_counter()
    radius, p = parse_delta(delta), parse_norm(norm)
    steps, seed = integer(steps, "steps", 1), integer(seed, "seed", 0)
    batch_size = integer(batch_size, "batch_size", 1)
    fraction = parse_delta(step_size, "step_size")
    if optimizer not in OPTIMIZERS:
        raise InputError(
            "optimizer", got=repr(optimizer), needed=" or ".join(repr(o) for o in OPTIMIZERS), fix="pass 'sgd'"
        )
    others = _held_out_pair(held_out)
    clean = read_samples(x)
    if others is not None:
        _check_shape(as_float64(others[0], "held_out"), clean.shape[1:], "held_out")
    torch = import_torch("universal_perturbation")
    where = torch_device(torch, device)
    with own_state(torch, where, seed):
        network = read_model(model, clean)
        victim = _Victim(torch, module_copy(torch, model, network, "float64", where), where)
        raw = logits_of(torch, victim.module, clean, "float64", where, 1024)
        logits = losses.class_logits(raw)
        labels = as_labels(y, len(clean), logits.shape[1])
        a = np.zeros(clean.shape[1:])
        best = _evaluate(victim, clean, labels, logits, a, radius, p)
        if radius > 0.0:
            fast = module_copy(torch, model, network, "float32", where)
            logits_of(torch, fast, clean, "float32", where, 1024)  # refuses what overflows in float32
            if raw.shape[1] == 1:
                fast = two_class(fast, dtype="float32", device=where)
            ascent = _Ascent(torch, fast, radius, p, fraction * radius, optimizer, where)
            checks = {math.ceil(steps * (i + 1) / _CHECKS) for i in range(_CHECKS)}
            for step, tensor in enumerate(ascent.run(clean, labels, steps, batch_size, seed), start=1):
                if step not in checks:
                    continue
                near = tensor.to(device="cpu", dtype=torch.float64).numpy()
                candidate = into_ball(np.zeros((1, *a.shape)), near[None], radius, p, box=None)[0]
                found = _evaluate(victim, clean, labels, logits, candidate, radius, p)
                if found.mean_gap > best.mean_gap:
                    a, best = candidate, found
    report = UniversalReport(
        frozen(a), labels, *best.fields, radius, p, optimizer, steps, batch_size, seed, str(where),
        time.perf_counter() - begin, True, best.largest, _domain(clean, labels, radius, p),
        "" if network is None else network.digest,
    )
    if others is None:
        return report
    return replace(report, held_out=report.transfer(model, *others, device=device))


@dataclass(frozen=True)
class _Ascent:
    """Stochastic projected gradient ascent in float32."""

    torch: Any
    module: Any
    delta: float
    norm: float
    step: float
    optimizer: str
    device: Any

    def run(self, x: F64, y: I64, steps: int, batch_size: int, seed: int) -> Iterator[Any]:
        """The perturbation after each step: one tensor, overwritten by the next step."""
        torch = self.torch
        data = torch.tensor(x, dtype=torch.float32, device=self.device)
        labels = torch.tensor(y, device=self.device)
        a = torch.zeros(x.shape[1:], dtype=torch.float32, device=self.device, requires_grad=True)
        # Adam moves every entry by its rate: √n of them make a step of the wanted length
        rate = self.step if math.isinf(self.norm) else self.step / math.sqrt(a.numel())
        adam = torch.optim.Adam([a], lr=rate, maximize=True) if self.optimizer == "adam" else None
        order, generator = np.empty(0, dtype=np.int64), np.random.default_rng(seed)
        for _ in range(steps):
            if order.size == 0:
                order = generator.permutation(len(x))
            batch, order = order[:batch_size], order[batch_size:]
            index = torch.tensor(batch, device=self.device)
            with differentiable():
                moved = data[index] + a.detach()
                points = moved.clamp(*BOX).requires_grad_()
                loss = torch.nn.functional.cross_entropy(self.module(points), labels[index])
                (each,) = torch.autograd.grad(loss, [points])
            with torch.no_grad():
                # at a limit of the box only the way inwards counts; the gradient of clamp would stop both ways there,
                # so that pixels which are 0 in all samples would never move
                blocked = ((moved <= BOX[0]) & (each < 0)) | ((moved >= BOX[1]) & (each > 0))
                gradient = each.masked_fill(blocked, 0.0).sum(dim=0)
                if adam is not None:
                    a.grad = gradient
                    adam.step()
                elif math.isinf(self.norm):
                    a += self.step * gradient.sign()
                else:
                    a += self.step * gradient / gradient.norm().clamp(min=1e-30)
                if math.isinf(self.norm):
                    a.clamp_(-self.delta, self.delta)
                else:
                    a *= min(1.0, self.delta / max(float(a.norm()), 1e-30))
            yield a.detach()
