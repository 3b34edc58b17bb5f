"""Auto-PGD: inputs near the samples on which the loss is high, so a LOWER bound of the loss gap.

The attack itself is pyautoattack's (or the user's official autoattack). What is done here keeps its traps away:
it clamps inputs to [0, 1] without a word, runs in float32 (so that its points lie outside the ball and its losses
are off), does not attack samples that are misclassified already unless ``best_loss=True``, and does not seed its
random start when it is. The points are moved into the ball in float64 and the losses computed anew.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import math
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from importlib import metadata
from typing import Any

import numpy as np
import numpy.typing as npt

from certbound import losses, text
from certbound.arrays import F64, I64, as_float64, as_labels, digest, frozen, is_torch
from certbound.bound import Bound, Claim
from certbound.errors import CertboundError, InputError, MissingDependencyError
from certbound.io.to_torch import import_torch, to_torch, two_class
from certbound.network import Network, as_network
from certbound.types import SCHEMA_VERSION, Quantity, Rigor, Sense, norm_name, parse_delta, parse_norm

METHODS = ("apgd-ce",)
"""The attacks that are there."""

SOURCE = "Croce & Hein 2020, arXiv:2003.01690 (Auto-PGD on the cross-entropy)"
INSTALL = "pip install 'certbound[attack]'"
BOX = (0.0, 1.0)
"""The attack library's own range of inputs."""

_PACKAGES = ("autoattack", "pyautoattack")
_UNIT = 2.0**-53


@dataclass(frozen=True, eq=False)
class AttackReport:
    """What an attack found; made by :func:`attack`.

    "Correct" means that every margin is > 0: a tie is a mistake, as it is for certified margins.

    Parameters
    ----------
    x_adv : float64, the shape of x: the found points, exactly in the ball and in [0, 1]; the sample itself where
        nothing worse than it was found.
    y : labels.
    clean_loss, adversarial_loss : (samples,), cross-entropy at x and at ``x_adv``, in float64.
    clean_correct, adversarial_correct : (samples,), whether x and ``x_adv`` are classified correctly.
    delta, norm, method, steps, restarts, seed, device, package, seconds : how the points were asked for and made.
    largest_perturbation : largest ``‖x_adv − x‖``, computed in float64.
    tolerance : what ``largest_perturbation`` may exceed delta by; 0, since the points are moved inwards.
    domain, subject : what the claims of its bounds are about; no subject for a module that is not in the IR.
    """

    x_adv: F64 = field(repr=False)
    y: I64
    clean_loss: F64
    adversarial_loss: F64
    clean_correct: npt.NDArray[np.bool_]
    adversarial_correct: npt.NDArray[np.bool_]
    delta: float
    norm: float
    method: str
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
        """Fraction of samples classified correctly at x and at ``x_adv``: at least what any attack leaves."""
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
        return Bound(value, claim, sense, Rigor.NUMERICAL, self.method, SOURCE, parameters=parameters)

    def __str__(self) -> str:
        gap = self.loss_gap
        settings = f"{self.steps} steps, {self.restarts} restarts, seed {self.seed}"
        rows = [
            ("samples", str(len(self.y)), ""),
            ("clean accuracy", text.number(self.clean_accuracy), ""),
            ("robust accuracy", f"<= {text.number(self.robust_accuracy)}", str(gap.rigor)),
            ("mean loss gap", f">= {text.number(gap.value)}", str(gap.rigor)),
            ("largest perturbation", text.number(self.largest_perturbation), ""),
            ("domain", self.domain, ""),
            ("method", f"{self.method}, {settings} ({self.package}, {self.device}, {self.seconds:.3g} s)", ""),
        ]
        return text.table(rows, header=("quantity", "value", "trust"))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with ``schema_version``; of ``x_adv`` the shape and the digest."""
        return {
            "schema_version": SCHEMA_VERSION,
            "method": self.method,
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


def _library() -> tuple[Any, str]:
    """The ``APGDAttack`` class, and the name and version of the package that brings it."""
    for name in _PACKAGES:
        try:
            package = importlib.import_module(name)
            module = importlib.import_module(f"{name}.autopgd_base")
        except ImportError:
            continue
        version = getattr(package, "__version__", None)
        if version is None:
            with contextlib.suppress(metadata.PackageNotFoundError):
                version = metadata.version(name)
        return module.APGDAttack, f"{name} {version or 'of unknown version'}"
    raise MissingDependencyError("pyautoattack", purpose="attack", command=INSTALL)


@contextlib.contextmanager
def _own_state(torch: Any, device: Any, seed: int) -> Iterator[None]:
    """Run with seeded generators and torch's default settings; put everything global back, also after an error.

    Global are: the random states of torch, numpy and ``random``, ``sys.settrace``, torch's default dtype (the
    library draws its random start in it), inference, gradient and autocast mode.
    """
    on_cuda = device.type == "cuda"
    trace, dtype = sys.gettrace(), torch.get_default_dtype()
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002  # the user's global state
    cpu_state = torch.get_rng_state()
    # asking for the states would start CUDA, which a run on the CPU must not
    cuda_states = torch.cuda.get_rng_state_all() if on_cuda or torch.cuda.is_initialized() else None
    try:
        torch.set_default_dtype(torch.float32)
        # not torch.manual_seed: it also seeds a CUDA that has not started yet, which could not be taken back
        torch.default_generator.manual_seed(seed)
        if on_cuda:
            torch.cuda.manual_seed_all(seed)
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_rng_state(cpu_state)
        if cuda_states is not None:
            torch.cuda.set_rng_state_all(cuda_states)
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)
        if sys.gettrace() is not trace:
            sys.settrace(trace)


def _copy(torch: Any, model: Any, network: Network | None, dtype: str, device: Any) -> Any:
    """A copy of the model in eval mode, without parameter gradients, of the given dtype."""
    if network is not None and not is_torch(model, "Module"):
        return to_torch(network, dtype=dtype, device=device)
    try:
        twin = copy.deepcopy(model)
    except (RuntimeError, TypeError) as error:
        raise InputError(
            "model", got=f"a module that cannot be copied ({error})", needed="a module that copy.deepcopy takes",
            fix="load its weights into a fresh module",
        ) from error
    return twin.to(device=device, dtype=getattr(torch, dtype)).eval().requires_grad_(False)


def _logits(torch: Any, module: Any, x: F64, dtype: str, device: Any, batch_size: int) -> F64:
    """Outputs as float64, shape (samples, outputs), computed in ``dtype``; what is no such thing is refused."""
    parts: list[F64] = []
    for start in range(0, len(x), batch_size):
        batch = x[start : start + batch_size]
        with torch.no_grad():
            try:
                out = module(torch.tensor(batch, dtype=getattr(torch, dtype), device=device))
            except (RuntimeError, ValueError, TypeError, IndexError) as error:
                raise InputError(
                    "model", got=f"an error on x of shape {batch.shape} and dtype {dtype}: {error}",
                    needed="a module that maps samples to logits in float32 and in float64",
                    fix="check the shape of x, and that forward makes no tensor of a fixed dtype or device",
                ) from error
        if not is_torch(out, "Tensor") or out.ndim != 2 or len(out) != len(batch) or out.shape[1] == 0:
            raise InputError(
                "model", got=f"outputs {tuple(out.shape)}" if is_torch(out, "Tensor") else f"a {type(out).__name__}",
                needed=f"logits of shape ({len(batch)}, classes), or ({len(batch)}, 1) for two classes",
                fix="return logits only, with the batch axis first",
            )
        parts.append(out.detach().to(device="cpu", dtype=torch.float64).numpy())
    logits = np.concatenate(parts)
    if not np.all(np.isfinite(logits)):
        bad = int(np.argwhere(~np.isfinite(logits))[0][0])
        raise InputError(
            "model", got=f"NaN or infinite outputs in {dtype} (sample {bad})", needed="finite outputs",
            fix="check its weights; an attack cannot tell what such an output is worth",
        )
    return logits


def _into_ball(x: F64, found: F64, delta: float, norm: float) -> F64:
    """Points near ``found`` with ``‖· − x‖ <= delta`` and entries in [0, 1], in exact arithmetic.

    ∞: clipped to ``[x − δ, x + δ]`` with both ends one float inwards. 2: shrunk towards x to a radius below δ by
    more than the rounding of the norm (relative n u), of the product and of the sum (absolute √n u, since the
    entries are at most 1). Both take less from δ than 1e-12 for a million inputs, and what float64 computes as the
    size of the perturbation is at most δ as well.

    >>> x = np.array([[0.5, 0.5]])
    >>> _into_ball(x, np.array([[0.8, 0.1]]), 0.25, 2.0).round(9)  # from (0.3, −0.4), of length 0.5
    array([[0.65, 0.3 ]])
    >>> _into_ball(x, np.array([[0.8, 0.1]]), 0.25, math.inf).round(9)
    array([[0.75, 0.25]])
    """
    if math.isinf(norm):
        high = np.maximum(np.nextafter(x + delta, -math.inf), x)
        low = np.minimum(np.nextafter(x - delta, math.inf), x)
        points = np.clip(found, low, high)
    else:
        shift = (found - x).reshape(len(x), -1)
        n = shift.shape[1]
        length = np.linalg.norm(shift, axis=1)
        radius = delta * (1.0 - (2 * n + 16) * _UNIT) - 2.0 * math.sqrt(n) * _UNIT
        outside = length > max(radius, 0.0)
        scale = np.ones(len(x))
        scale[outside] = max(radius, 0.0) / length[outside]
        points = np.where(outside[:, None], x.reshape(shift.shape) + shift * scale[:, None], found.reshape(shift.shape))
        points = points.reshape(x.shape)
    inside: F64 = np.clip(points, *BOX)
    return inside


def _sizes(a: F64, norm: float) -> F64:
    flat = a.reshape(len(a), -1)
    sizes: F64 = np.abs(flat).max(axis=1) if math.isinf(norm) else np.linalg.norm(flat, axis=1)
    return sizes


def _integer(value: object, name: str, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least or value >= 2**63:
        raise InputError(name, got=repr(value), needed=f"an integer >= {least}", fix=f"pass {name}={max(least, 1)}")
    return int(value)


def _read_model(model: object, x: F64) -> Network | None:
    """The model in the IR; None for a module that is not in it: attacks need gradients only."""
    shape = tuple(x.shape[1:]) if x.ndim > 2 else None
    if not is_torch(model, "Module"):
        return as_network(model, input_shape=shape)
    try:
        return as_network(model, input_shape=shape)
    except InputError:
        return None


def _read_samples(x: object) -> F64:
    array = as_float64(x, "x")
    if array.ndim < 2 or array.size == 0:
        raise InputError(
            "x", got=f"shape {array.shape}", needed="(samples, …) with at least one sample",
            fix="add a batch axis with x[None]" if array.ndim == 1 and array.size else "pass at least one sample",
        )
    if array.min() < BOX[0] or array.max() > BOX[1]:
        raise InputError(
            "x", got=f"values from {array.min():g} to {array.max():g}",
            needed="values in [0, 1], the range to which Auto-PGD clamps its points",
            fix="scale the samples to [0, 1] and put the scaling back into the model as its first layer "
            "(Normalise, or an nn.Linear); delta is then in the new units",
        )
    return array


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
    model : any ``nn.Module`` that maps samples to logits, a Network, or a list of weight matrices. One logit z is
        read as the two classes (0, z). A module is copied, and the copy is attacked in eval mode.
    x : samples in [0, 1], shape (samples, …).
    y : labels 0…C−1 (0/1 with one logit).
    delta : radius of the perturbation a, in the units of x.
    norm : 2 or ∞, the norm of a.
    method : ``"apgd-ce"``.
    steps : iterations.
    restarts : random starts.
    seed : of the random starts. Same seed, same result (on a GPU up to its rounding).
    device : ``"cpu"``, ``"cuda"``, …; None: CUDA if there is one, else the CPU.
    batch_size : samples attacked together; the random starts depend on it.

    Returns
    -------
    A frozen :class:`AttackReport`. Its bounds are *numerical*: the points are in the ball exactly, the losses at
    them are computed in float64.

    Raises
    ------
    InputError : unusable arguments, samples outside [0, 1], a model with NaN outputs or without gradients.
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
    steps, restarts = _integer(steps, "steps", 1), _integer(restarts, "restarts", 1)
    seed, batch_size = _integer(seed, "seed", 0), _integer(batch_size, "batch_size", 1)
    clean = _read_samples(x)
    torch = import_torch("attack")
    attacker_class, package = _library()
    try:
        where = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device is None else device)
    except RuntimeError as error:
        raise InputError("device", got=repr(device), needed="a torch device", fix="pass 'cpu' or 'cuda'") from error
    with _own_state(torch, where, seed):
        network = _read_model(model, clean)  # inside: it may run the module, whose forward may be random
        if network is not None:
            network.flat_inputs(clean)
        exact = _copy(torch, model, network, "float64", where)
        logits = _logits(torch, exact, clean, "float64", where, batch_size)
        one_logit = logits.shape[1] == 1
        logits = losses.class_logits(logits)
        labels = as_labels(y, len(clean), logits.shape[1])
        clean_margins = losses.margins_of(logits, labels)
        clean_loss = losses.loss_of_margins(clean_margins)
        points, margins, loss = clean, clean_margins, clean_loss
        if radius > 0.0:
            fast = _copy(torch, model, network, "float32", where)
            _logits(torch, fast, clean, "float32", where, batch_size)  # refuses what overflows in float32
            if one_logit:
                fast = two_class(fast, dtype="float32", device=where)
            attacker = attacker_class(
                fast, n_iter=steps, norm="Linf" if math.isinf(p) else "L2", n_restarts=restarts, eps=radius,
                seed=seed, loss="ce", verbose=False, device=where,
            )
            found = _into_ball(clean, _perturb(torch, attacker, clean, labels, where, batch_size), radius, p)
            logits = losses.class_logits(_logits(torch, exact, found, "float64", where, batch_size))
            found_margins = losses.margins_of(logits, labels)
            found_loss = losses.loss_of_margins(found_margins)
            worse = found_loss > clean_loss  # elsewhere a = 0 is the better attack
            points = np.where(worse.reshape(-1, *([1] * (clean.ndim - 1))), found, clean)
            margins = np.where(worse[:, None], found_margins, clean_margins)
            loss = np.where(worse, found_loss, clean_loss)
    largest, tolerance = float(_sizes(points - clean, p).max()), 0.0
    if largest > radius + tolerance or points.min() < BOX[0] or points.max() > BOX[1]:
        raise CertboundError(f"the attack left its ball: a perturbation of size {largest!r} for delta = {radius!r}")
    correct, still_correct = np.all(clean_margins > 0, axis=1), np.all(margins > 0, axis=1)
    for own in (correct, still_correct, labels):
        own.flags.writeable = False
    flat = np.ascontiguousarray(clean.reshape(len(clean), -1))
    return AttackReport(
        frozen(points), labels, frozen(clean_loss), frozen(loss), correct, still_correct, radius, p, method, steps,
        restarts, seed, str(where), package, time.perf_counter() - begin, largest, tolerance,
        losses.perturbation_domain(flat, labels, radius, p, BOX), "" if network is None else network.digest,
    )


def _perturb(torch: Any, attacker: Any, x: F64, y: I64, device: Any, batch_size: int) -> F64:
    """The library's points as float64, batch by batch."""
    parts: list[F64] = []
    for start in range(0, len(x), batch_size):
        batch = torch.tensor(x[start : start + batch_size], dtype=torch.float32, device=device)
        labels = torch.tensor(y[start : start + batch_size], device=device)
        try:
            # best_loss: the points of highest loss, also of samples that are misclassified already
            found = attacker.perturb(batch, labels, best_loss=True)
        except RuntimeError as error:
            if "does not require grad" not in str(error) and "not have been used in the graph" not in str(error):
                raise
            raise InputError(
                "model", got="outputs through which no gradient reaches the input", needed="a differentiable model",
                fix="remove detach() and no_grad() from its forward",
            ) from error
        parts.append(found.detach().to(device="cpu", dtype=torch.float64).numpy())
    return np.concatenate(parts)
