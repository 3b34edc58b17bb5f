"""Auto-PGD: inputs near the samples on which the loss is high, so a LOWER bound of the loss gap.

The attack itself is pyautoattack's (or the user's official autoattack). What is done here keeps its traps away:
it clamps inputs to [0, 1] without a word, runs in float32 (so that its points lie outside the ball and its losses
are off), does not attack samples that are misclassified already unless ``best_loss=True``, and does not seed its
random start when it is. The points are moved into the ball in float64 and the losses computed anew.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import time
from dataclasses import dataclass, field
from functools import cached_property
from importlib import metadata
from typing import Any

import numpy as np
import numpy.typing as npt

from certbound import losses, text
from certbound.arrays import F64, I64, as_labels, digest, frozen
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
    seed_generators,
    sizes,
    torch_device,
)
from certbound.attacks.pair import AttackPair
from certbound.bound import Bound, Claim
from certbound.errors import CertboundError, InputError, MissingDependencyError
from certbound.io.to_torch import import_torch, two_class
from certbound.network import Network
from certbound.types import SCHEMA_VERSION, Quantity, Rigor, Sense, norm_name, parse_delta, parse_norm

_PAPER = "Croce & Hein 2020, arXiv:2003.01690 (Auto-PGD on "
METHODS = {
    "apgd-ce": _PAPER + "the cross-entropy)",
    "apgd-dlr": _PAPER + "the difference of logits ratio)",
    "apgd-t": _PAPER + "the targeted difference of logits ratio)",
    "worst": _PAPER + "each of its losses, the worst point of each sample)",
}
"""The attacks and their sources."""

LEAST_CLASSES = {"apgd-ce": 2, "apgd-dlr": 3, "apgd-t": 4}
"""Classes that an attack's loss needs: the DLR divides by the first less the third logit, the targeted one by the
first less the mean of the third and the fourth."""

TARGETS = 9
"""Classes tried by ``"apgd-t"`` per sample, those of the highest logits: AutoAttack's own number."""

INSTALL = "pip install 'certbound[attack]'"

_PACKAGES = ("autoattack", "pyautoattack")


@dataclass(frozen=True, eq=False)
class AttackReport:
    """What an attack found; made by :func:`attack`.

    "Correct" means that every margin is > 0: a tie is a mistake, as it is for certified margins.

    Parameters
    ----------
    x_adv : float64, the shape of x: of the found points those of the highest cross-entropy, exactly in the ball and
        in [0, 1]; the sample itself where nothing worse than it was found.
    x_wrong : likewise, but a point that is misclassified, wherever one was found: ``x_adv`` if it is one, else the
        first (with three classes or more a point can have the highest loss and the right class). Where none was
        found it is ``x_adv``.
    y : labels.
    clean_loss, adversarial_loss : (samples,), cross-entropy at x and at ``x_adv``, in float64.
    clean_correct, adversarial_correct : (samples,), whether x is classified correctly, and whether ``x_wrong`` is:
        no found point of the sample, x included, is misclassified.
    delta, norm, method, steps, restarts, seed, device, package, seconds : how the points were asked for and made.
    ran : the attacks that ran; for ``"worst"`` those that the number of classes allows.
    largest_perturbation : largest ``‖x_adv − x‖`` and ``‖x_wrong − x‖``, computed in float64.
    tolerance : what ``largest_perturbation`` may exceed delta by; 0, since the points are moved inwards.
    domain, subject : what the claims of its bounds are about; no subject for a module that is no chain of dense layers
        (its Graph has one).
    certificate : x and ``x_adv``, with which the gap can be verified without torch; its own bound is *rigorous*, and
        less than ``loss_gap`` by what rounding may have added. None without a subject, and for a Graph, whose
        roundings it does not enclose.
    """

    x_adv: F64 = field(repr=False)
    x_wrong: F64 = field(repr=False)
    y: I64
    clean_loss: F64
    adversarial_loss: F64
    clean_correct: npt.NDArray[np.bool_]
    adversarial_correct: npt.NDArray[np.bool_]
    delta: float
    norm: float
    method: str
    ran: tuple[str, ...]
    steps: int
    restarts: int
    seed: int
    device: str
    package: str
    seconds: float
    largest_perturbation: float
    tolerance: float
    domain: str = field(repr=False)
    subject: str = field(repr=False)
    certificate: AttackPair | None = field(repr=False)

    @cached_property
    def per_sample_gap(self) -> F64:
        """``loss(x_adv) − loss(x)``, one per sample; never negative, since a = 0 is allowed."""
        return frozen(self.adversarial_loss - self.clean_loss)

    @property
    def clean_accuracy(self) -> float:
        """Fraction of samples classified correctly."""
        return float(np.mean(self.clean_correct))

    @property
    def robust_accuracy(self) -> float:
        """Fraction of samples classified correctly at x and at every found point: an upper bound."""
        return float(np.mean(self.clean_correct & self.adversarial_correct))

    @property
    def loss_gap(self) -> Bound:
        """The mean loss gap found: a lower bound of the largest one."""
        return self._bound(float(np.mean(self.per_sample_gap)), Quantity.LOSS_GAP, Sense.LOWER)

    @property
    def robust_accuracy_bound(self) -> Bound:
        """The robust accuracy found, as an upper bound of the robust accuracy."""
        return self._bound(self.robust_accuracy, Quantity.ROBUST_ACCURACY, Sense.UPPER)

    def _bound(self, value: float, quantity: Quantity, sense: Sense) -> Bound:
        claim = Claim(quantity, self.norm, None, self.domain, "all", self.subject)
        parameters = (
            ("delta", self.delta),
            ("steps", float(self.steps)),
            ("restarts", float(self.restarts)),
            ("seed", float(self.seed)),
        )
        return Bound(value, claim, sense, Rigor.NUMERICAL, self.method, METHODS[self.method], parameters=parameters)

    def __str__(self) -> str:
        gap = self.loss_gap
        name = self.method if self.ran == (self.method,) else f"{self.method} of {', '.join(self.ran) or 'none'}"
        settings = f"{self.steps} steps, {self.restarts} restarts, seed {self.seed}"
        rows = [
            ("samples", str(len(self.y)), ""),
            ("clean accuracy", text.number(self.clean_accuracy), ""),
            ("robust accuracy", text.at_most(self.robust_accuracy), str(gap.rigor)),
            ("mean loss gap", text.at_least(gap.value), str(gap.rigor)),
            ("largest perturbation", text.number(self.largest_perturbation), ""),
            ("domain", self.domain, ""),
            ("method", f"{name}, {settings} ({self.package}, {self.device}, {self.seconds:.3g} s)", ""),
        ]
        return text.table(rows, header=("quantity", "value", "trust"))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with ``schema_version``; of ``x_adv`` the shape and the digest."""
        return {
            "schema_version": SCHEMA_VERSION,
            "method": self.method,
            "ran": list(self.ran),
            "package": self.package,
            "device": self.device,
            "delta": self.delta,
            "norm": norm_name(self.norm),
            "steps": self.steps,
            "restarts": self.restarts,
            "seed": self.seed,
            "seconds": self.seconds,
            "y": self.y.tolist(),
            "x_adv_shape": list(self.x_adv.shape),
            "x_adv_digest": digest(self.x_adv),
            "x_wrong_digest": digest(self.x_wrong),
            "clean_loss": [text.json_number(v) for v in self.clean_loss],
            "adversarial_loss": [text.json_number(v) for v in self.adversarial_loss],
            "clean_correct": self.clean_correct.tolist(),
            "adversarial_correct": self.adversarial_correct.tolist(),
            "clean_accuracy": self.clean_accuracy,
            "robust_accuracy": self.robust_accuracy,
            "robust_accuracy_bound": self.robust_accuracy_bound.to_dict(),
            "loss_gap": self.loss_gap.to_dict(),
            "largest_perturbation": self.largest_perturbation,
            "tolerance": self.tolerance,
        }


def attack_library(name: str = "APGDAttack", module: str = "autopgd_base") -> tuple[Any, str]:
    """AutoAttack's class of this name, and the name and version of the package that brings it.

    Raises
    ------
    MissingDependencyError : neither the official autoattack nor pyautoattack is installed.
    """
    for package_name in _PACKAGES:
        try:
            package = importlib.import_module(package_name)
            home = importlib.import_module(f"{package_name}.{module}")
        except ImportError:
            continue
        version = getattr(package, "__version__", None)
        if version is None:
            with contextlib.suppress(metadata.PackageNotFoundError):
                version = metadata.version(package_name)
        return getattr(home, name), f"{package_name} {version or 'of unknown version'}"
    raise MissingDependencyError("pyautoattack", purpose="attack", command=INSTALL)


class _Silent:
    """A logger for the library, which warns of points with zero gradient otherwise: no fault of the caller's."""

    def warning(self, message: str) -> None:
        """Say nothing."""

    log = info = warning


def _recording(base: Any, visited: list[Any]) -> Any:
    """A subclass that keeps the points of every single run: of the highest loss, and the last misclassified ones."""

    class Recorder(base):
        def attack_single_run(self, x: Any, y: Any, x_init: Any = None) -> Any:
            result = super().attack_single_run(x, y, x_init=x_init)
            visited.extend((result[0], result[3]))
            return result

    return Recorder


@dataclass(frozen=True)
class _Settings:
    """What every attack of one call has in common."""

    torch: Any
    module: Any
    delta: float
    norm: float
    steps: int
    restarts: int
    seed: int
    device: Any

    def attacker(self, name: str, visited: list[Any]) -> Any:
        """The library's object of the attack, which records in ``visited``."""
        loss = {} if name == "apgd-t" else {"loss": name.removeprefix("apgd-")}
        base, _ = attack_library("APGDAttack_targeted" if name == "apgd-t" else "APGDAttack")
        made = _recording(base, visited)(
            self.module, n_iter=self.steps, norm="Linf" if math.isinf(self.norm) else "L2", n_restarts=self.restarts,
            eps=self.delta, seed=self.seed, verbose=False, device=self.device, **loss,
        )
        made.logger = _Silent()
        return made

    def points(self, name: str, x: F64, y: I64, batch_size: int) -> list[F64]:
        """Sets of points, each of the shape of x, that the attack went to: float32 numbers near the ball."""
        parts: list[list[F64]] = []
        for start in range(0, len(x), batch_size):
            batch = self.torch.tensor(x[start : start + batch_size], dtype=self.torch.float32, device=self.device)
            labels = self.torch.tensor(y[start : start + batch_size], device=self.device)
            visited: list[Any] = []
            attacker = self.attacker(name, visited)
            with differentiable():
                if name == "apgd-t":
                    self._targeted(attacker, batch, labels)
                else:
                    # best_loss: the points of highest loss, also of samples that are misclassified already
                    visited.insert(0, attacker.perturb(batch, labels, best_loss=True))
            parts.append([p.detach().to(device="cpu", dtype=self.torch.float64).numpy() for p in visited])
        return [np.concatenate(of_batches) for of_batches in zip(*parts, strict=True)]

    def _targeted(self, attacker: Any, x: Any, y: Any) -> None:
        """Every sample towards each of its targets, all restarts.

        As the library's own ``perturb``, which returns no point of highest loss, skips samples that are
        misclassified (already, or by an earlier target) and seeds torch (and CUDA, started or not) for good.
        """
        torch = self.torch
        attacker.init_hyperparam(x)
        with torch.no_grad():
            logits = self.module(x).clone()
        logits[torch.arange(len(y), device=y.device), y] = -math.inf  # no sample has its own class for a target
        order = logits.sort(dim=1)[1]
        for target in range(1, min(TARGETS, logits.shape[1] - 1) + 1):
            for _ in range(self.restarts):
                attacker.y_target = order[:, -target]
                attacker.attack_single_run(x, y)


def _that_apply(method: str, classes: int) -> tuple[str, ...]:
    """The attacks to run.

    >>> _that_apply("worst", 3)
    ('apgd-ce', 'apgd-dlr')
    """
    if method == "worst":
        return tuple(name for name, least in LEAST_CLASSES.items() if classes >= least)
    least = LEAST_CLASSES[method]
    if classes < least:
        raise InputError(
            "method", got=f"{method!r} for a model of {classes} classes",
            needed=f"at least {least} classes, since its loss compares {least} logits", fix="pass method='apgd-ce'",
        )
    return (method,)


def attack(
    model: object,
    x: object,
    y: object,
    *,
    delta: object,
    norm: object,
    method: str = "apgd-ce",
    steps: int = 100,
    restarts: int = 1,
    seed: int = 0,
    device: str | None = None,
    batch_size: int = 1024,
) -> AttackReport:
    """Search the ball ``‖a‖ <= delta`` (and [0, 1]) around every sample for the input with the highest loss.

    The report's ``loss_gap`` is the mean over samples of ``loss(x_adv) − loss(x) >= 0``, a lower bound of the mean
    of ``max_a loss(x + a) − loss(x)``; the loss is the cross-entropy (with one logit the logistic loss).

    Parameters
    ----------
    model : any ``nn.Module`` that maps samples to logits, a Network, a Graph, or a list of weight matrices. One logit
        z is read as the two classes (0, z). A module is copied, and the copy is attacked in eval mode.
    x : samples in [0, 1], shape (samples, …).
    y : labels 0…C−1 (0/1 with one logit).
    delta : radius of the perturbation a, in the units of x.
    norm : 2 or ∞, the norm of a.
    method : ``"apgd-ce"`` (cross-entropy), ``"apgd-dlr"`` (difference of logits ratio, three classes or more),
        ``"apgd-t"`` (the same, towards each of up to 9 classes; four classes or more), or ``"worst"``: all of these
        that the number of classes allows, the worst point of each sample.
    steps : iterations.
    restarts : random starts (``"apgd-t"``: of each target).
    seed : of the random starts. Same seed, same result (on a GPU up to its rounding).
    device : ``"cpu"``, ``"cuda"``, …; None: CUDA if there is one, else the CPU.
    batch_size : samples attacked together; the random starts depend on it.

    Returns
    -------
    A frozen :class:`AttackReport`. Its bounds are *numerical*: the points are in the ball exactly, the losses at
    them are computed in float64. ``report.certificate.bound`` is *rigorous*.

    Raises
    ------
    InputError : unusable arguments, too few classes for the method, samples outside [0, 1], a model with NaN outputs
        or without gradients.
    MissingDependencyError : neither autoattack nor pyautoattack is installed.

    Source: Croce & Hein 2020, arXiv:2003.01690.

    >>> report = attack([[[1.0, 0.0], [0.0, 1.0]]], [[0.8, 0.2]], [0], delta=0.4, norm="inf", device="cpu")
    >>> report.x_adv.round(6)  # the margin 0.6 falls by delta · ‖(1, −1)‖_1
    array([[0.4, 0.6]])
    >>> report.clean_accuracy, report.robust_accuracy
    (1.0, 0.0)
    """
    begin = time.perf_counter()
    radius, p = parse_delta(delta), parse_norm(norm)
    if method not in METHODS:
        raise InputError(
            "method", got=repr(method), needed=" or ".join(repr(m) for m in METHODS), fix="pass method='apgd-ce'"
        )
    steps, restarts = integer(steps, "steps", 1), integer(restarts, "restarts", 1)
    seed, batch_size = integer(seed, "seed", 0), integer(batch_size, "batch_size", 1)
    clean = read_samples(x)
    torch = import_torch("attack")
    _, package = attack_library()
    where = torch_device(torch, device)
    with own_state(torch, where, seed):
        network = read_model(model, clean)  # inside: it may run the module, whose forward may be random
        if network is not None:
            network.flat_inputs(clean)
        exact = module_copy(torch, model, network, "float64", where)
        logits = logits_of(torch, exact, clean, "float64", where, batch_size)
        one_logit = logits.shape[1] == 1
        logits = losses.class_logits(logits)
        labels = as_labels(y, len(clean), logits.shape[1])
        ran = _that_apply(method, logits.shape[1])
        clean_margins = losses.margins_of(logits, labels)
        clean_loss = losses.loss_of_margins(clean_margins)
        correct = _correct(clean_margins)
        # a = 0 is an attack too: the best of nothing better
        points, loss, still_correct = clean.copy(), clean_loss.copy(), correct.copy()
        wrong, best_correct = clean.copy(), correct.copy()
        if radius > 0.0:
            fast = module_copy(torch, model, network, "float32", where)
            logits_of(torch, fast, clean, "float32", where, batch_size)  # refuses what overflows in float32
            if one_logit:
                fast = two_class(fast, dtype="float32", device=where)
            settings = _Settings(torch, fast, radius, p, steps, restarts, seed, where)
            for name in ran:
                seed_generators(torch, where, seed)  # among others an attack finds what it finds alone
                for candidate in settings.points(name, clean, labels, batch_size):
                    found = into_ball(clean, candidate, radius, p)
                    logits = losses.class_logits(logits_of(torch, exact, found, "float64", where, batch_size))
                    margins = losses.margins_of(logits, labels)
                    found_loss, found_correct = losses.loss_of_margins(margins), _correct(margins)
                    worse = found_loss > loss
                    points[worse], loss[worse] = found[worse], found_loss[worse]
                    best_correct[worse] = found_correct[worse]
                    first = still_correct & ~found_correct
                    wrong[first], still_correct[first] = found[first], False
        same = still_correct | ~best_correct
        wrong[same] = points[same]
    reached = np.stack([points, wrong])
    largest, tolerance = max(float(sizes(kind - clean, p).max()) for kind in reached), 0.0
    if largest > radius + tolerance or reached.min() < BOX[0] or reached.max() > BOX[1]:
        raise CertboundError(f"the attack left its ball: a perturbation of size {largest!r} for delta = {radius!r}")
    for own in (correct, still_correct, labels):
        own.flags.writeable = False
    flat = np.ascontiguousarray(clean.reshape(len(clean), -1))
    certificate = None
    if isinstance(network, Network):
        measured = float(np.mean(loss - clean_loss))
        certificate = AttackPair.proving(network, clean, points, labels, radius, p, method, measured)
    return AttackReport(
        frozen(points), frozen(wrong), labels, frozen(clean_loss), frozen(loss), correct, still_correct, radius, p,
        method, ran if radius > 0.0 else (), steps, restarts, seed, str(where), package, time.perf_counter() - begin,
        largest, tolerance, losses.perturbation_domain(flat, labels, radius, p, BOX),
        "" if network is None else network.digest, certificate,
    )


def _correct(margins: F64) -> npt.NDArray[np.bool_]:
    """Every margin > 0."""
    correct: npt.NDArray[np.bool_] = np.all(margins > 0, axis=1)
    return correct
