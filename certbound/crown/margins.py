"""Certified lower bounds of classification margins on a ball, by auto_LiRPA's CROWN and IBP."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from certbound import losses, text
from certbound.arrays import F64, I64, as_float64, as_labels, frozen
from certbound.bound import Bound, Claim
from certbound.crown.compat import bounded_module, load_auto_lirpa, package_version
from certbound.errors import CertboundError, InputError
from certbound.io.to_torch import import_torch, to_torch, two_class
from certbound.network import Network, as_network
from certbound.types import SCHEMA_VERSION, Quantity, Rigor, Sense, norm_name, parse_delta, parse_norm

METHODS = {
    "CROWN": "CROWN (Zhang et al. 2018, arXiv:1811.00866), by auto_LiRPA (Xu et al. 2020, arXiv:2002.12920)",
    "IBP": "interval bound propagation (Gowal et al. 2018, arXiv:1810.12715), by auto_LiRPA (arXiv:2002.12920)",
}
"""The methods and their sources."""


@dataclass(frozen=True, eq=False)
class MarginReport:
    """Lower bounds of every margin of every sample over a ball; made by :func:`margins`.

    Parameters
    ----------
    lower : (samples, classes); ``lower[i, j] <= f_y(x) − f_j(x)`` for every x in the ball around sample i,
        ``+∞`` at j = y.
    clean : (samples, classes), the margins at the centres.
    certified : (samples,), every margin bound > 0: no point of the ball is classified otherwise.
    y : labels. delta, norm, clip, method, seconds, package : how the bounds were asked for and made.
    domain, subject : what the claims of its bounds are about.
    """

    lower: F64
    clean: F64
    certified: npt.NDArray[np.bool_]
    y: I64
    delta: float
    norm: float
    clip: tuple[float, float] | None
    method: str
    seconds: float
    package: str
    domain: str = field(repr=False)
    subject: str = field(repr=False)

    @property
    def certified_accuracy(self) -> float:
        """Fraction of samples that no perturbation of this size misclassifies (certified)."""
        return float(np.mean(self.certified))

    @property
    def clean_accuracy(self) -> float:
        """Fraction of samples whose clean margins are all > 0."""
        return float(np.mean(np.all(self.clean > 0, axis=1)))

    @cached_property
    def per_sample_gap(self) -> F64:
        """Upper bounds of ``max_a loss(x + a) − loss(x)``, one per sample: the loss falls in every margin."""
        gap: F64 = losses.loss_of_margins(self.lower) - losses.loss_of_margins(self.clean)
        return frozen(np.maximum(gap, 0.0))

    @property
    def certified_accuracy_bound(self) -> Bound:
        """The certified accuracy as a lower bound of the robust accuracy."""
        return self._bound(self.certified_accuracy, Quantity.ROBUST_ACCURACY, Sense.LOWER)

    @property
    def loss_gap(self) -> Bound:
        """Upper bound of the mean over samples of ``max_a loss(x + a) − loss(x)``."""
        return self._bound(float(np.mean(self.per_sample_gap)), Quantity.LOSS_GAP, Sense.UPPER)

    def _bound(self, value: float, quantity: Quantity, sense: Sense) -> Bound:
        claim = Claim(quantity, self.norm, None, self.domain, "all", self.subject)
        parameters = (("delta", self.delta),)
        return Bound(value, claim, sense, Rigor.NUMERICAL, self.method, METHODS[self.method], parameters=parameters)

    def __str__(self) -> str:
        gap = self.loss_gap
        rows = [
            ("samples", str(len(self.y)), ""),
            ("clean accuracy", text.number(self.clean_accuracy), ""),
            ("robust accuracy", f">= {text.number(self.certified_accuracy)}", str(gap.rigor)),
            ("mean loss gap", f"<= {text.number(gap.value)}", str(gap.rigor)),
            ("smallest margin", f">= {text.number(float(np.min(self.lower)))}", str(gap.rigor)),
            ("domain", self.domain, ""),
            ("method", f"{self.method} ({self.package}, {self.seconds:.3g} s)", ""),
        ]
        return text.table(rows, header=("quantity", "value", "trust"))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with ``schema_version``."""
        return {
            "schema_version": SCHEMA_VERSION,
            "method": self.method,
            "package": self.package,
            "delta": self.delta,
            "norm": norm_name(self.norm),
            "clip": None if self.clip is None else list(self.clip),
            "seconds": self.seconds,
            "y": self.y.tolist(),
            "lower": [[text.json_number(v) for v in row] for row in self.lower],
            "clean": [[text.json_number(v) for v in row] for row in self.clean],
            "certified": self.certified.tolist(),
            "clean_accuracy": self.clean_accuracy,
            "certified_accuracy": self.certified_accuracy,
            "certified_accuracy_bound": self.certified_accuracy_bound.to_dict(),
            "per_sample_gap": [text.json_number(v) for v in self.per_sample_gap],
            "loss_gap": self.loss_gap.to_dict(),
        }


def _parse_clip(clip: object) -> tuple[float, float] | None:
    if clip is None:
        return None
    pair = as_float64(clip, "clip")
    if pair.shape != (2,) or not pair[0] < pair[1]:
        raise InputError(
            "clip", got=repr(clip), needed="None or (low, high) with low < high", fix="pass (0.0, 1.0) for pixels"
        )
    return float(pair[0]), float(pair[1])


def _network(model: object, x: F64) -> Network:
    # the sample's shape tells the channels of a per-channel normalisation
    return as_network(model, input_shape=tuple(x.shape[1:]) if x.ndim > 2 else None)


def _stable(torch: Any, bounded: Any, inputs: tuple[Any]) -> dict[str, list[Any]]:
    """Bounds of the neurons that IBP shows to be always on or always off, sample by sample; −∞ and ∞ for others.

    Where IBP shows it, auto_LiRPA does not run CROWN on the neuron, whose bounds can be looser: but only if IBP
    shows it for every sample of the batch. With these bounds given for reference a sample's margins do not depend
    on the samples that it shares a batch with.
    """
    bounded.compute_bounds(x=inputs, method="IBP")
    found: dict[str, list[Any]] = {}
    for node in bounded.modules():
        if type(node).__name__ == "BoundRelu":
            before = node.inputs[0]
            low, high = before.lower.detach(), before.upper.detach()
            fixed = (low >= 0) | (high <= 0)
            found[before.name] = [torch.where(fixed, low, -math.inf), torch.where(fixed, high, math.inf)]
    return found


def _bounded(
    network: Network, x: F64, y: I64, delta: float, norm: float, clip: tuple[float, float] | None, method: str,
    batch_size: int,
) -> F64:
    """auto_LiRPA's lower bounds, shape (samples, classes), one batch after the other."""
    torch = import_torch("margins")
    package = load_auto_lirpa()
    with torch.no_grad():  # auto_LiRPA would keep a graph of everything
        module = to_torch(network)[1:]  # x is flat already, and a traced Flatten fixes nothing worth having
        if network.n_outputs == 1:
            module = two_class(module)
        classes = max(network.n_outputs, 2)
        bounded = bounded_module(module, torch.zeros((1, x.shape[1]), dtype=torch.float64))
        parts: list[F64] = []
        for start in range(0, len(x), batch_size):
            centre, labels = x[start : start + batch_size], y[start : start + batch_size]
            # row j of sample i is e_y − e_j: the margin is bounded as one function; the row j = y is 0
            specification = np.eye(classes)[labels][:, None, :] - np.eye(classes)[None, :, :]
            box: dict[str, Any] = {}
            if math.isinf(norm):
                low, high = centre - delta, centre + delta
                if clip is not None:
                    low, high = np.maximum(low, clip[0]), np.minimum(high, clip[1])
                box = {"x_L": torch.from_numpy(low), "x_U": torch.from_numpy(high)}
            ball = package.PerturbationLpNorm(norm=np.inf if math.isinf(norm) else norm, eps=delta, **box)
            inputs = (package.BoundedTensor(torch.from_numpy(centre.copy()), ball),)
            low_bound, _ = bounded.compute_bounds(
                x=inputs,
                C=torch.from_numpy(specification),
                method=method,
                bound_upper=False,
                reference_bounds=_stable(torch, bounded, inputs) if method == "CROWN" else None,
            )
            parts.append(low_bound.detach().numpy())
    lower: F64 = np.concatenate(parts)
    if lower.dtype != np.float64:
        raise CertboundError(f"auto_LiRPA returned {lower.dtype} bounds of a float64 model")
    return lower


def margins(
    model: object,
    x: object,
    y: object,
    *,
    delta: object,
    norm: object,
    method: str = "CROWN",
    clip: object = None,
    batch_size: int = 32,
) -> MarginReport:
    """Certified lower bounds of ``f_y − f_j`` on the ball ``‖a‖ <= delta`` around every sample.

    Parameters
    ----------
    model : an ``nn.Module``, a Network, or a list of weight matrices; one logit z is read as the classes (0, z).
    x : samples, shape (samples, …).
    y : labels 0…C−1 (0/1 with one logit).
    delta : radius of the perturbation a, in the units of x.
    norm : 2 or ∞, the norm of a.
    method : ``"CROWN"`` or ``"IBP"``.
    clip : ``(low, high)``: only inputs with every entry in this range count. With norm ∞ the bounds use it; with
        norm 2 they are those of the whole ball, which hold on the smaller set as well.
    batch_size : samples bounded together; it changes time and memory, not the bounds (but for their rounding).

    Returns
    -------
    A frozen :class:`MarginReport`; its bounds are *numerical* (float64, rounding not accounted for).

    Raises
    ------
    InputError : unusable arguments, a method that is not there, samples outside ``clip``.
    MissingDependencyError : auto_LiRPA is not installed.
    CertboundError : auto_LiRPA returned NaN, or a bound above the margin at the centre, which is in the ball.

    Source: see :data:`METHODS`.

    >>> report = margins([[[1.0, 0.0], [0.0, 1.0]]], [[0.8, 0.2]], [0], delta=0.1, norm="inf")
    >>> report.lower.round(9)  # 0.6 − 0.1 · ‖(1, −1)‖_1
    array([[inf, 0.4]])
    >>> report.certified_accuracy
    1.0
    """
    begin = time.perf_counter()
    radius, p = parse_delta(delta), parse_norm(norm)
    if method not in METHODS:
        raise InputError(
            "method", got=repr(method), needed=" or ".join(repr(m) for m in METHODS), fix="pass method='CROWN'"
        )
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise InputError("batch_size", got=repr(batch_size), needed="an integer >= 1", fix="pass batch_size=32")
    box = _parse_clip(clip)
    array = as_float64(x, "x")
    network = _network(model, array)
    flat = network.flat_inputs(array)
    labels = as_labels(y, len(flat), max(network.n_outputs, 2))
    if box is not None and (flat.min() < box[0] or flat.max() > box[1]):
        raise InputError(
            "x", got=f"values from {flat.min():g} to {flat.max():g}",
            needed=f"values in clip = [{box[0]:g}, {box[1]:g}]", fix="scale the samples, or leave clip out",
        )
    package = load_auto_lirpa()
    logits = losses.class_logits(network.forward(flat))
    if not np.all(np.isfinite(logits)):
        raise InputError("model", got="outputs that overflow", needed="finite outputs", fix="check its weights")
    clean = losses.margins_of(logits, labels)
    rows = np.arange(len(labels))
    if radius == 0.0:
        lower = clean.copy()  # the ball is its centre; auto_LiRPA would be off by its own 1e-8 at kinks
    else:
        lower = _bounded(network, flat, labels, radius, p, box, method, batch_size)
        lower[rows, labels] = math.inf
        if np.any(np.isnan(lower)):
            raise CertboundError(f"{method} returned NaN for {int(np.isnan(lower).any(axis=1).sum())} samples")
        # The centre is in the ball: a bound above the clean margin can be rounding, or else it is wrong.
        allowed = 1e-6 * max(float(np.abs(logits).max()), 1e-6)
        excess = np.where(np.isinf(clean), -math.inf, lower - np.where(np.isinf(clean), 0.0, clean))
        if excess.max() > allowed:
            raise CertboundError(
                f"{method} returned a margin bound {float(excess.max()):.3g} above the margin at the centre of the ball"
            )
        lower = np.minimum(lower, clean)
    certified = np.all(lower > 0, axis=1)
    certified.flags.writeable = labels.flags.writeable = False
    return MarginReport(
        frozen(lower), frozen(clean), certified, labels, radius, p, box, method, time.perf_counter() - begin,
        package_version(package), losses.perturbation_domain(flat, labels, radius, p, box), network.digest,
    )
