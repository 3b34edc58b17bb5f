"""Certified lower bounds of classification margins on a ball, by auto_LiRPA's CROWN, α-CROWN, IBP and their kin."""

from __future__ import annotations

import functools
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
from certbound.crown.compat import bounded_module, load_auto_lirpa, package_version, watch_slopes
from certbound.crown.graph_problem import GraphProblem
from certbound.errors import CertboundError, InputError, NumericalError
from certbound.graph import Graph, as_graph
from certbound.io.to_torch import import_torch, to_torch, two_class
from certbound.network import Network
from certbound.robustness import is_chain, network_margins, read_network
from certbound.types import SCHEMA_VERSION, Quantity, Rigor, Sense, Status, norm_name, parse_delta, parse_norm

_LIRPA = "by auto_LiRPA (Xu et al. 2020, arXiv:2002.12920)"
METHODS = {
    "CROWN": f"CROWN (Zhang et al. 2018, arXiv:1811.00866), {_LIRPA}",
    "IBP": f"interval bound propagation (Gowal et al. 2018, arXiv:1810.12715), {_LIRPA}",
    "alpha-CROWN": f"CROWN with optimised slopes (Xu et al. 2021, arXiv:2011.13824), {_LIRPA}",
    "CROWN-IBP": f"CROWN for the margins, IBP for the neurons (Zhang et al. 2020, arXiv:1906.06316), {_LIRPA}",
    "forward": f"forward linear bounds (Xu et al. 2020, arXiv:2002.12920), {_LIRPA}",
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
    status, note : FAILED if α-CROWN did not optimise, and why; the bounds are CROWN's then, and hold all the same.
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
    status: Status = Status.OK
    note: str = ""

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
            ("robust accuracy", text.at_least(self.certified_accuracy), str(gap.rigor)),
            ("mean loss gap", text.at_most(gap.value), str(gap.rigor)),
            ("smallest margin", text.at_least(float(np.min(self.lower))), str(gap.rigor)),
            ("domain", self.domain, ""),
            ("method", f"{self.method} ({self.package}, {self.seconds:.3g} s)", ""),
            ("status", f"{self.status}{self.note and ': ' + self.note}", ""),
        ]
        return text.table(rows, header=("quantity", "value", "trust"))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with ``schema_version``."""
        return {
            "schema_version": SCHEMA_VERSION,
            "method": self.method,
            "package": self.package,
            "status": self.status.name,
            "note": self.note,
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


_DENSE = {
    "sparse_features_alpha": False,
    "sparse_spec_alpha": False,
    "sparse_intermediate_bounds": False,
    "verbosity": 0,
}
"""Bound options of α-CROWN. With all of them at their defaults (True) auto_LiRPA 0.3 crashes where many neurons are
stable. The third also keeps which neurons are bounded, and so where the slopes start, independent of the batch."""

_PATIENCE = 10**9
"""Iterations without improvement after which auto_LiRPA stops (all samples together), and prints that it does."""


class _Problem:
    """One network, ready to be bounded batch by batch."""

    def __init__(
        self, network: Network | Graph, delta: float, norm: float, clip: tuple[float, float] | None, method: str,
        iterations: int, samples: int,
    ) -> None:
        self.torch, self.package = import_torch("margins"), load_auto_lirpa()
        self.delta, self.norm, self.clip, self.method, self.iterations = delta, norm, clip, method, iterations
        self.classes = max(network.n_outputs, 2)
        self.graph = GraphProblem(network, method, samples) if isinstance(network, Graph) else None
        if isinstance(network, Graph):
            assert self.graph is not None
            self.module, self.example = self.graph.module, self.graph.example
        else:
            self.module = to_torch(network)[1:]  # x is flat already, and a traced Flatten fixes nothing worth having
            if network.n_outputs == 1:
                self.module = two_class(self.module)
            self.example = self.torch.zeros((1, network.n_inputs), dtype=self.torch.float64)
        self.bounded = self.fresh()

    def fresh(self, options: dict[str, Any] | None = None) -> Any:
        """A new bounded module."""
        if self.graph is not None:
            return self.graph.bounded(options)
        return bounded_module(self.module, self.example, options)

    def inputs(self, centre: F64) -> tuple[Any]:
        """The ball around each sample."""
        torch, box = self.torch, dict[str, Any]()
        centre = centre.reshape(len(centre), *self.example.shape[1:])
        if math.isinf(self.norm):
            low, high = centre - self.delta, centre + self.delta
            if self.clip is not None:
                low, high = np.maximum(low, self.clip[0]), np.minimum(high, self.clip[1])
            box = {"x_L": torch.from_numpy(low), "x_U": torch.from_numpy(high)}
        norm = np.inf if math.isinf(self.norm) else self.norm
        ball = self.package.PerturbationLpNorm(norm=norm, eps=self.delta, **box)
        return (self.package.BoundedTensor(torch.from_numpy(centre.copy()), ball),)

    def bound(self, centre: F64, y: I64) -> tuple[F64, str]:
        """Lower bounds of the margins, shape (samples, classes), and why α-CROWN did not optimise, if so."""
        # row j of sample i is e_y − e_j: the margin is bounded as one function; the row j = y is 0
        margins_of_outputs = np.eye(self.classes)[y][:, None, :] - np.eye(self.classes)[None, :, :]
        specification = self.torch.from_numpy(margins_of_outputs)
        inputs = self.inputs(centre)
        with self.torch.no_grad():  # auto_LiRPA would keep a graph of everything
            backward = self.method in ("CROWN", "alpha-CROWN")
            known = self.neurons(inputs) if backward else dict[str, dict[str, list[Any]]]()
            low, _ = self.bounded.compute_bounds(
                x=inputs, C=specification, method="CROWN" if backward else self.method, bound_upper=False, **known
            )
        lower: F64 = low.detach().numpy()
        if lower.dtype != np.float64:
            raise CertboundError(f"auto_LiRPA returned {lower.dtype} bounds of a float64 model")
        if self.method != "alpha-CROWN":
            return lower, ""
        try:
            better, note = self.optimised(centre, specification, known)
        except (RuntimeError, LookupError, TypeError, AttributeError, AssertionError) as error:
            return lower, f"alpha-CROWN failed ({type(error).__name__}: {error}), CROWN's bounds are shown"
        # each is a lower bound; and a NaN of the optimisation is none
        return np.fmax(lower, better), note

    def neurons(self, inputs: tuple[Any]) -> dict[str, dict[str, list[Any]]]:
        """What is known of the neurons, as an argument of ``compute_bounds``."""
        if self.graph is not None:
            return {"intermediate_layer_bounds": self.graph.intermediate(self.bounded, inputs)}
        return {"reference_bounds": _stable(self.torch, self.bounded, inputs)}

    def optimised(
        self, centre: F64, specification: Any, known: dict[str, dict[str, list[Any]]]
    ) -> tuple[F64, str]:
        """The best bounds of all iterations, kept here: auto_LiRPA's own are rounded to float32, or crash on it."""
        torch = self.torch
        best: list[Any] = []

        def keep(low: Any) -> bool:
            with torch.no_grad():
                best[:] = [torch.fmax(best[0], low.detach()) if best else low.detach().clone()]
            return False

        options = {
            "iteration": self.iterations + 1,  # no step follows the last one
            "early_stop_patience": _PATIENCE,
            "stop_criterion_func": keep,
            "keep_best": False,
        }
        bounded = self.fresh({**_DENSE, "optimize_bound_args": options})
        if self.graph is not None and self.graph.optimises_neurons(len(centre)):
            with torch.no_grad():
                known = {"reference_bounds": _stable(torch, self.bounded, self.inputs(centre))}
        elif self.graph is not None:  # its first pass would find them itself
            bounded.init_slope = functools.partial(bounded.init_slope, **known)
        watch = watch_slopes(bounded)
        with torch.enable_grad():
            bounded.compute_bounds(
                x=self.inputs(centre), C=specification, method="alpha-CROWN", bound_upper=False, **known
            )
        if not best or best[0].dtype != torch.float64:
            raise RuntimeError("auto_LiRPA showed no float64 bounds on its way")
        stuck = watch.wanted and not watch.reached
        note = "alpha-CROWN did not optimise (no gradient reached a slope), CROWN's bounds are shown" if stuck else ""
        return best[0].numpy(), note


def _bounded(
    network: Network | Graph, x: F64, y: I64, delta: float, norm: float, clip: tuple[float, float] | None, method: str,
    batch_size: int, iterations: int,
) -> tuple[F64, str]:
    """auto_LiRPA's lower bounds, shape (samples, classes), one batch after the other, and what failed."""
    torch = import_torch("margins")
    with torch.inference_mode(False), torch.no_grad():
        # residual sums: auto_LiRPA's own way with them fails on flat values
        form = network if is_chain(network) else as_graph(network)
        problem = _Problem(form, delta, norm, clip, method, iterations, len(x))
        batches = range(0, len(x), batch_size)
        parts = [problem.bound(x[i : i + batch_size], y[i : i + batch_size]) for i in batches]
    notes = dict.fromkeys(note for _, note in parts if note)
    return np.concatenate([lower for lower, _ in parts]), "; ".join(notes)


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
    iterations: int = 20,
) -> MarginReport:
    """Certified lower bounds of ``f_y − f_j`` on the ball ``‖a‖ <= delta`` around every sample.

    Parameters
    ----------
    model : an ``nn.Module``, a Network, a Graph, or a list of weight matrices; one logit z is read as the classes
        (0, z). Of graphs auto_LiRPA bounds what :mod:`certbound.crown.lowering` can write in the operations that it
        bounds rightly; CROWN needs time for every neuron that can switch (see ``WorkLimitError``), CROWN-IBP and IBP
        take networks of any size; ``"alpha-CROWN"`` of more than 2^18 pairs of neurons leaves those at CROWN's bounds.
    x : samples, shape (samples, …).
    y : labels 0…C−1 (0/1 with one logit).
    delta : radius of the perturbation a, in the units of x.
    norm : 2 or ∞, the norm of a.
    method : ``"CROWN"``; ``"alpha-CROWN"``, never below it and slower; ``"IBP"``, ``"CROWN-IBP"`` and ``"forward"``,
        faster and looser.
    clip : ``(low, high)``: only inputs with every entry in this range count. With norm ∞ the bounds use it; with
        norm 2 they are those of the whole ball, which hold on the smaller set as well.
    batch_size : samples bounded together; it changes time and memory, not the bounds (but for their rounding).
    iterations : gradient steps of α-CROWN's optimisation; the best bound on the way counts.

    Returns
    -------
    A frozen :class:`MarginReport`; its bounds are *numerical* (float64, rounding not accounted for). If α-CROWN could
    not optimise, they are CROWN's, with the status FAILED and a note.

    Raises
    ------
    InputError : unusable arguments, a method that is not there, samples outside ``clip``.
    UnsupportedLayerError : an operation that auto_LiRPA does not bound rightly, named, with the reason.
    WorkLimitError : an InputError: CROWN would take too long on this network at this radius.
    MissingDependencyError : auto_LiRPA is not installed.
    NumericalError : auto_LiRPA returned NaN.
    CertboundError : a bound above the margin at the centre, which is in the ball.

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
    for name, value, usual in (("batch_size", batch_size, 32), ("iterations", iterations, 20)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(name, got=repr(value), needed="an integer >= 1", fix=f"pass {name}={usual}")
    box = _parse_clip(clip)
    array = as_float64(x, "x")
    network = read_network(model, array)
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
    clean = network_margins(network, flat, labels)
    rows, note = np.arange(len(labels)), ""
    if radius == 0.0:
        lower = clean.copy()  # the ball is its centre; auto_LiRPA would be off by its own 1e-8 at kinks
    else:
        lower, note = _bounded(network, flat, labels, radius, p, box, method, batch_size, iterations)
        lower[rows, labels] = math.inf
        if np.any(np.isnan(lower)):
            raise NumericalError(f"{method} returned NaN for {int(np.isnan(lower).any(axis=1).sum())} samples")
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
        Status.FAILED if note else Status.OK, note,
    )
