"""``compare``: one network, one data set → every bound and gap side by side, the ladder checked.

Whatever is found by an attack lies below whatever is proved; where theory orders two bounds, their numbers must
stand in that order. A link that breaks raises LadderError: somebody's bound is wrong.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from certbound import text
from certbound.arrays import F64, I64, as_float64, as_labels
from certbound.attribution import Attribution, attribute
from certbound.bound import Bound, Claim
from certbound.crown.graph_problem import WorkLimitError
from certbound.errors import InputError, LadderError, UnsupportedLayerError
from certbound.methods import LADDER, METHODS, Attacked, Constants, Method, Problem, empirical_gap
from certbound.progress import track
from certbound.robustness import Certified, Samples, certify_by_constants
from certbound.theorems.corollary33 import classifier
from certbound.types import SCHEMA_VERSION, Quantity, Rigor, Sense, Status, norm_name, parse_delta, parse_norm

logger = logging.getLogger(__name__)

_TOLERANCE = 1e-9
"""Relative rounding allowance of the ladder: float64 evaluations of networks and solvers' repaired points."""

_FAILURES = (np.linalg.LinAlgError, ArithmeticError, RuntimeError, MemoryError)
"""What a method may die of; bad input and broken bounds (CertboundError) are never swallowed."""

_OUT_OF_REACH = (UnsupportedLayerError, WorkLimitError)
"""What a method may say of a network that it does not know, or that is too large for it."""


def _status(error: Exception) -> Status:
    return Status.TOO_LARGE if isinstance(error, WorkLimitError) else Status.UNSUPPORTED


@dataclass(frozen=True)
class Row:
    """One number of one method. ``ratio``: bound / empirical gap, for loss gaps only."""

    method: str
    quantity: Quantity
    value: float
    sense: Sense
    rigor: Rigor
    status: Status
    seconds: float
    ratio: float | None
    note: str
    bound: Bound

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "method": self.method,
            "quantity": str(self.quantity),
            "value": text.json_number(self.value),
            "sense": str(self.sense),
            "rigor": str(self.rigor),
            "status": self.status.name,
            "seconds": self.seconds,
            "ratio": text.json_number(self.ratio),
            "note": self.note,
            "bound": self.bound.to_dict(),
        }


@dataclass(frozen=True)
class Link:
    """One link of the ladder: every entry of ``lower`` is at most that of ``upper``.

    ``closest``: the largest excess of lower over upper, relative to the size of the numbers (negative: room).
    """

    name: str
    closest: float
    holds: bool


@dataclass(frozen=True, eq=False)
class Comparison:
    """Rows of all methods, the ladder, and what the samples are; made by :func:`compare`."""

    rows: tuple[Row, ...]
    ladder: tuple[Link, ...]
    delta: float
    norm: float
    n_samples: int
    clean_accuracy: float
    clean_loss: float
    seed: int
    subject: str
    certified: Mapping[str, Certified] = field(repr=False)
    attacked: Mapping[str, Attacked] = field(repr=False)
    constants: Mapping[str, F64] = field(repr=False)
    problem: Problem = field(repr=False)

    def attribution(self, bound: str = "printed") -> Attribution:
        """Which factor is to blame: ``log(bound / empirical gap)`` as a sum of the losses of single steps.

        ``bound``: printed, derived, sharp, product, cover or recursion. The steps: Theorem 3.1's factors per layer,
        blocks of layers against all layers together, head norm, worst class, relaxation, global against local, and
        what lies between the best certificate and the attack. Negative steps gain.

        Raises InputError where the bound or the attack did not run, or one of them is 0 or ∞.
        """
        gaps = {
            r.method: r.value
            for r in self.rows
            if r.quantity is Quantity.LOSS_GAP and r.sense is Sense.UPPER and r.status is Status.OK
        }
        return attribute(self.problem, self.constants, gaps, self.empirical_gap, self.delta, bound)

    def row(self, method: str, quantity: Quantity | str = Quantity.LOSS_GAP) -> Row:
        """The row of a method; KeyError if there is none."""
        for row in self.rows:
            if row.method == method and row.quantity == Quantity(quantity):
                return row
        raise KeyError(f"no row for method {method!r} and quantity {quantity!r}")

    @property
    def empirical_gap(self) -> float | None:
        """Mean over samples of the largest loss gap that any attack found; None without an attack."""
        return empirical_gap(self.attacked)

    def __str__(self) -> str:
        head = (
            f"{self.n_samples} samples, ||a||_{norm_name(self.norm)} <= {self.delta:g}, "
            f"clean accuracy {self.clean_accuracy:.3f}, clean loss {self.clean_loss:.4g}"
        )
        columns = ("method", "loss gap", "/ empirical", "robust accuracy", "Lipschitz", "rigor", "status", "seconds")
        lines = []
        for name in dict.fromkeys(r.method for r in self.rows):
            mine = {r.quantity: r for r in self.rows if r.method == name}
            any_row = next(iter(mine.values()))
            gap, acc = mine.get(Quantity.LOSS_GAP), mine.get(Quantity.ROBUST_ACCURACY)
            lines.append(
                (
                    name,
                    _cell(gap),
                    "-" if gap is None else text.number(gap.ratio),
                    _cell(acc),
                    _cell(mine.get(Quantity.LIPSCHITZ)),
                    str(any_row.rigor),
                    str(any_row.status),
                    f"{any_row.seconds:.2f}",
                )
            )
        plain = list(dict.fromkeys(r.method for r in self.rows if r.rigor is Rigor.NUMERICAL))
        word = f"numerical, so rounding is not accounted for: {', '.join(plain)}\n" if plain else ""
        reasons: dict[str, list[str]] = {}
        for name in dict.fromkeys(r.method for r in self.rows if r.status is Status.UNSUPPORTED):
            note = next(r.note for r in self.rows if r.method == name)
            reasons.setdefault(note, []).append(name)
        why = "".join(f"unsupported ({', '.join(names)}): {note}\n" for note, names in reasons.items())
        return f"{head}\n{text.table(lines, columns)}\n{why}{word}ladder: {len(self.ladder)} links hold"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with ``schema_version``."""
        return {
            "schema_version": SCHEMA_VERSION,
            "delta": self.delta,
            "norm": text.json_number(self.norm),
            "n_samples": self.n_samples,
            "clean_accuracy": self.clean_accuracy,
            "clean_loss": self.clean_loss,
            "seed": self.seed,
            "effort": self.problem.effort,
            "subject": self.subject,
            "rows": [r.to_dict() for r in self.rows],
            "ladder": [
                {"name": k.name, "closest": text.json_number(k.closest), "holds": k.holds} for k in self.ladder
            ],
        }


def _cell(row: Row | None) -> str:
    if row is None or (row.bound.vacuous and row.status is not Status.OK):
        return "-"
    return text.at_most(row.value) if row.sense is Sense.UPPER else text.at_least(row.value)


def _link(name: str, lower: F64, upper: F64) -> Link:
    """Largest ``(lower − upper)/(1 + |upper|)``; infinite uppers (and lowers of −∞) leave room."""
    with np.errstate(invalid="ignore"):
        size = 1.0 + np.where(np.isfinite(upper), np.abs(upper), 0.0)
        excess = np.where(np.isposinf(upper) | np.isneginf(lower), -math.inf, (lower - upper) / size)
    closest = float(np.max(excess, initial=-math.inf))
    return Link(name, closest, closest <= _TOLERANCE)


def _relative_link(name: str, lower: F64, upper: F64) -> Link:
    """As :func:`_link`, but for each pair of classes relative to its constant (the diagonal is 0 <= 0)."""
    pairs = ~np.eye(len(upper), dtype=bool)
    low, high = lower[pairs], upper[pairs]
    scale = np.where(np.isfinite(high) & (high > 0), high, 1.0)
    with np.errstate(invalid="ignore"):
        excess = np.where(np.isposinf(high), -math.inf, (low - high) / scale)
    closest = float(np.max(excess, initial=-math.inf))
    return Link(name, closest, closest <= _TOLERANCE)


def ladder_links(
    constants: Mapping[str, F64], certified: Mapping[str, Certified], attacked: Mapping[str, Attacked]
) -> tuple[Link, ...]:
    """Every link between what was found and what was proved (theory, section 8)."""
    links = [
        _relative_link(f"{lower} <= {upper} (Lipschitz constants of margins)", constants[lower], constants[upper])
        for lower, upper in LADDER
        if lower in constants and upper in constants
    ]
    if "gradient" in constants:
        links += [
            _relative_link(f"gradient <= {upper} (Lipschitz constants of margins)", constants["gradient"], values)
            for upper, values in constants.items()
            if upper != "gradient"
        ]
    for attack, found in attacked.items():
        for name, proof in certified.items():
            links.append(_link(f"{attack} <= {name} (loss gap of each sample)", found.loss_gap, proof.loss_gap))
            finite = np.isfinite(found.margins)  # +∞ stands at the sample's own class
            links.append(
                _link(
                    f"{name} <= {attack} (margin of each sample and class)",
                    proof.margins[finite],
                    found.margins[finite],
                )
            )
    return tuple(links)


def _check_ladder(links: Sequence[Link], subject: str) -> None:
    broken = [link for link in links if not link.holds]
    if broken:
        lines = "; ".join(f"'{link.name}' exceeded by {link.closest:.3g} (relative)" for link in broken)
        raise LadderError(f"a lower bound exceeds an upper bound on network {subject}: {lines}")


@dataclass(frozen=True, eq=False)
class _Outcome:
    """One method's δ-independent part."""

    method: Method
    status: Status
    note: str
    seconds: float
    constants: F64 | None


def _prepare(problem: Problem, method: Method) -> _Outcome:
    """Check that the method can run; compute its constants if it has some."""
    command = method.missing()
    if command is not None:
        return _Outcome(method, Status.NOT_INSTALLED, f"install with: {command}", 0.0, None)
    reason = method.unsupported(problem)
    if reason is not None:
        return _Outcome(method, Status.UNSUPPORTED, reason, 0.0, None)
    reason = method.too_large(problem)
    if reason is not None:
        return _Outcome(method, Status.TOO_LARGE, reason, 0.0, None)
    left = problem.seconds_left()
    if left is not None and left <= 0:
        return _Outcome(method, Status.TIME_LIMIT, "not started", 0.0, None)
    if method.constants is None:
        return _Outcome(method, Status.OK, "", 0.0, None)
    start = time.perf_counter()
    try:
        result: Constants = method.constants(problem)
    except _OUT_OF_REACH as error:
        return _Outcome(method, _status(error), str(error), time.perf_counter() - start, None)
    except _FAILURES as error:
        logger.warning("method %s failed: %s", method.name, error)
        return _Outcome(method, Status.FAILED, f"{type(error).__name__}: {error}", time.perf_counter() - start, None)
    seconds = time.perf_counter() - start if result.seconds is None else result.seconds
    return _Outcome(method, result.status, "", seconds, result.values)


def _chosen(methods: Sequence[str] | None) -> list[Method]:
    if methods is None:
        return [method for method in METHODS.values() if method.default]
    if isinstance(methods, str):
        methods = [methods]
    unknown = [m for m in methods if m not in METHODS]
    if unknown or not methods:
        raise InputError(
            "methods", got=repr(unknown or methods), needed=f"names among {list(METHODS)}", fix="None runs the defaults"
        )
    return [METHODS[name] for name in METHODS if name in methods]


def _subset(n: int, n_samples: int | None, seed: int) -> I64:
    """Indices of a random subset, ascending; of all samples without ``n_samples``."""
    if n_samples is None:
        return np.arange(n)
    if isinstance(n_samples, bool) or not isinstance(n_samples, int) or n_samples < 1:
        raise InputError("n_samples", got=repr(n_samples), needed="an int >= 1", fix="None takes all samples")
    if n_samples >= n:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).choice(n, n_samples, replace=False))


def compare(
    model: object,
    x: object,
    y: object,
    *,
    delta: object,
    norm: object,
    methods: Sequence[str] | None = None,
    n_samples: int | None = None,
    time_limit: float | None = None,
    seed: int = 0,
    effort: float = 1.0,
    progress: bool = False,
) -> Comparison:
    """Set every bound beside the gap that an attack really finds.

    Parameters
    ----------
    model : nn.Module, Network, Graph or list of weight matrices, ending in logits (one logit: two classes). What is
        small enough to be a Network of dense layers is compared as one; of others the methods that do not apply give
        rows with the status UNSUPPORTED or TOO_LARGE and the reason.
    x, y : samples in [0, 1], shape (samples, …), and class indices. delta : radius in the units of x. norm : 2 or ∞.
    methods : names from ``certbound.methods.METHODS``; None runs those that are defaults.
    n_samples : a random subset (``seed``) of this size. time_limit : seconds; methods not started in time get
        status TIME_LIMIT and a vacuous row. effort : how much the SDP row may compute, 1 is some ten seconds of a
        core; a count of operations, so that equal calls give equal numbers. progress : a bar on stderr.

    Returns
    -------
    Comparison. ``.rows``: per method the mean loss gap and the robust accuracy (upper or lower), for Lipschitz methods
    the largest constant of a margin too. A method that cannot run keeps its row: a vacuous bound with its status.

    Raises
    ------
    LadderError : a lower bound exceeds an upper bound. InputError : bad arguments.
    UnsupportedLayerError : a layer that is not modelled.
    """
    return compare_curve(
        model,
        x,
        y,
        deltas=[delta],
        norm=norm,
        methods=methods,
        n_samples=n_samples,
        time_limit=time_limit,
        seed=seed,
        effort=effort,
        progress=progress,
    )[0]


def compare_curve(
    model: object,
    x: object,
    y: object,
    *,
    deltas: Sequence[object],
    norm: object,
    methods: Sequence[str] | None = None,
    n_samples: int | None = None,
    time_limit: float | None = None,
    seed: int = 0,
    effort: float = 1.0,
    progress: bool = False,
) -> tuple[Comparison, ...]:
    """:func:`compare` at several radii; Lipschitz constants are computed once."""
    samples_x = as_float64(x, "x")
    network = classifier(model, samples_x)
    flat = network.flat_inputs(samples_x)
    if flat.min() < 0.0 or flat.max() > 1.0:
        raise InputError(
            "x",
            got=f"values from {flat.min():g} to {flat.max():g}",
            needed="values in [0, 1]: attack and box are in pixel units",
            fix="scale the data to [0, 1] and put the standardisation into the model as a Normalise layer",
        )
    labels = as_labels(y, len(flat), max(2, network.n_outputs))
    radii = [parse_delta(d) for d in deltas]
    p = parse_norm(norm)
    if time_limit is not None and not time_limit > 0:
        raise InputError("time_limit", got=repr(time_limit), needed="seconds > 0", fix="None means no limit")
    if isinstance(effort, bool) or not isinstance(effort, (int, float)) or not 0 <= effort < math.inf:
        raise InputError("effort", got=repr(effort), needed="a finite number >= 0", fix="1 is the default")
    chosen = _chosen(methods)
    indices = _subset(len(flat), n_samples, seed)
    flat, labels = flat[indices], labels[indices]
    deadline = None if time_limit is None else time.perf_counter() + time_limit
    problem = Problem(Samples.of(network, flat, labels, p, (0.0, 1.0)), seed, indices, deadline, float(effort))
    outcomes = [_prepare(problem, m) for m in track(chosen, "methods", enabled=progress)]
    return tuple(_evaluate(problem, outcomes, radius) for radius in track(radii, "deltas", enabled=progress))


def _evaluate(problem: Problem, outcomes: Sequence[_Outcome], delta: float) -> Comparison:
    """All rows at one radius, and the ladder."""
    samples = problem.samples
    certified: dict[str, Certified] = {}
    attacked: dict[str, Attacked] = {}
    done: list[_Outcome] = []
    for outcome in outcomes:
        method, status, note, seconds = outcome.method, outcome.status, outcome.note, outcome.seconds
        start = time.perf_counter()
        try:
            if outcome.constants is not None:
                if method.sense is Sense.UPPER:
                    certified[method.name] = certify_by_constants(
                        samples, outcome.constants, delta, corollary=method.corollary
                    )
            elif status is Status.OK:
                left = problem.seconds_left()
                if left is not None and left <= 0:
                    status, note = Status.TIME_LIMIT, "not started"
                elif method.certify is not None:
                    certified[method.name] = method.certify(problem, delta)
                elif method.attack is not None:
                    attacked[method.name] = method.attack(problem, delta)
                seconds = time.perf_counter() - start
        except _OUT_OF_REACH as error:
            status, note, seconds = _status(error), str(error), time.perf_counter() - start
        except _FAILURES as error:
            logger.warning("method %s failed: %s", method.name, error)
            status, note, seconds = Status.FAILED, f"{type(error).__name__}: {error}", time.perf_counter() - start
        done.append(_Outcome(method, status, note, seconds, outcome.constants))

    constants = {o.method.name: o.constants for o in done if o.constants is not None}
    links = ladder_links(constants, certified, attacked)
    _check_ladder(links, samples.network.digest)
    empirical = empirical_gap(attacked)
    rows: list[Row] = []
    for outcome in done:
        rows += _rows(
            problem, outcome, delta, certified.get(outcome.method.name), attacked.get(outcome.method.name), empirical
        )
    return Comparison(
        rows=tuple(rows),
        ladder=links,
        delta=delta,
        norm=samples.norm,
        n_samples=len(samples.y),
        clean_accuracy=samples.clean_accuracy,
        clean_loss=float(np.mean(samples.loss)),
        seed=problem.seed,
        subject=samples.network.digest,
        certified=MappingProxyType(certified),
        attacked=MappingProxyType(attacked),
        constants=MappingProxyType(constants),
        problem=problem,
    )


def _rows(
    problem: Problem,
    outcome: _Outcome,
    delta: float,
    proof: Certified | None,
    found: Attacked | None,
    empirical: float | None,
) -> list[Row]:
    samples, method = problem.samples, outcome.method
    domain, subject = samples.domain(delta), samples.network.digest

    def row(quantity: Quantity, value: float | None, sense: Sense) -> Row:
        if quantity is Quantity.LIPSCHITZ:
            claim = Claim(quantity, samples.norm, None, outputs="all margins", subject=subject)
        else:
            claim = Claim(quantity, samples.norm, None, domain, "all", subject)
        rigor = method.rigor if value is not None else Rigor.RIGOROUS  # the vacuous bound is true whatever happens
        number = quantity.vacuous(sense) if value is None else value
        bound = Bound(number, claim, sense, rigor, method.name, method.source, parameters=(("delta", delta),))
        ratio = None
        if quantity is Quantity.LOSS_GAP and sense is Sense.UPPER and value is not None and empirical:
            ratio = value / empirical
        return Row(
            method.name, quantity, number, sense, rigor, outcome.status, outcome.seconds, ratio, outcome.note, bound
        )

    rows: list[Row] = []
    if method.kind == "attack":
        rows.append(row(Quantity.LOSS_GAP, None if found is None else float(np.mean(found.loss_gap)), Sense.LOWER))
        accuracy = None
        if found is not None:
            # a sample that is wrong without any perturbation is not robust either
            right = np.all(found.margins > 0, axis=1) & np.all(samples.margins > 0, axis=1)
            accuracy = float(np.mean(right))
        rows.append(row(Quantity.ROBUST_ACCURACY, accuracy, Sense.UPPER))
        return rows
    if method.sense is Sense.UPPER:
        rows.append(row(Quantity.LOSS_GAP, None if proof is None else float(np.mean(proof.loss_gap)), Sense.UPPER))
        rows.append(
            row(Quantity.ROBUST_ACCURACY, None if proof is None else float(np.mean(proof.correct)), Sense.LOWER)
        )
    if method.kind == "lipschitz":
        constants = outcome.constants
        rows.append(row(Quantity.LIPSCHITZ, None if constants is None else float(constants.max()), method.sense))
    return rows
