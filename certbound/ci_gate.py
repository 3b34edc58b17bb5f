"""A gate for continuous integration: limits on what is proved about a network, each check with its proof.

Fail closed: a check passes only if a method that finished (status OK, not heuristic) proves it. A vacuous bound, a
method that is not installed, one that ran out of time and NaN prove nothing.

``min_certified_accuracy`` is met by the largest LOWER bound of the robust accuracy, ``max_lipschitz`` and
``max_loss_gap`` by the smallest UPPER bound. ``min_robust_accuracy`` is the odd one: it looks at the accuracy that the
strongest attack leaves, an UPPER bound. Below the limit the network is refuted; above it nothing is proved, and the
check says "found" where the others say "proved".
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal
from xml.etree import ElementTree as ET

from certbound import text
from certbound.comparison import Comparison, Row
from certbound.errors import InputError
from certbound.graph import as_graph
from certbound.network import Network
from certbound.types import SCHEMA_VERSION, Quantity, Rigor, Sense, Status, norm_name

Direction = Literal["at least", "at most"]


@dataclass(frozen=True)
class _Measure:
    """One gated number: which rows give it, and which way it must go."""

    name: str
    limit: str
    quantity: Quantity
    sense: Sense
    direction: Direction
    word: str

    @property
    def is_accuracy(self) -> bool:
        return self.quantity is Quantity.ROBUST_ACCURACY


_MEASURES: Final = (
    _Measure(
        "certified accuracy", "min_certified_accuracy", Quantity.ROBUST_ACCURACY, Sense.LOWER, "at least", "proved"
    ),
    _Measure("Lipschitz constant", "max_lipschitz", Quantity.LIPSCHITZ, Sense.UPPER, "at most", "proved"),
    _Measure("loss gap", "max_loss_gap", Quantity.LOSS_GAP, Sense.UPPER, "at most", "proved"),
    _Measure("robust accuracy", "min_robust_accuracy", Quantity.ROBUST_ACCURACY, Sense.UPPER, "at least", "found"),
)


@dataclass(frozen=True)
class Limits:
    """What is asked of a network; None asks nothing.

    Parameters
    ----------
    min_certified_accuracy : in (0, 1]; share of the samples proved robust.
    max_lipschitz : largest Lipschitz constant of a margin ``f_j − f_y``, in the comparison's input norm.
    max_loss_gap : mean over samples of the largest rise of the loss.
    min_robust_accuracy : in (0, 1]; share that the attacks leave correct. Evidence, not proof.
    rigor : the least rigor of a bound that counts.

    >>> Limits(min_certified_accuracy=1.5)
    Traceback (most recent call last):
        ...
    certbound.errors.InputError: min_certified_accuracy: got 1.5; needed a number in (0, 1]. Fix: 0.9 asks for 90 %.
    """

    min_certified_accuracy: float | None = None
    max_lipschitz: float | None = None
    max_loss_gap: float | None = None
    min_robust_accuracy: float | None = None
    rigor: Rigor = Rigor.NUMERICAL

    def __post_init__(self) -> None:
        object.__setattr__(self, "rigor", Rigor.parse(self.rigor))
        if self.rigor is Rigor.HEURISTIC:
            needed = "'numerical' or 'rigorous'"
            raise InputError("rigor", got="'heuristic'", needed=needed, fix="a guess proves nothing")
        for measure in _MEASURES:
            value = getattr(self, measure.limit)
            if value is None:
                continue
            number = float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
            good = 0 < number <= 1 if measure.is_accuracy else 0 <= number < math.inf
            if not good:  # NaN too: it is neither
                raise InputError(
                    measure.limit,
                    got=repr(value),
                    needed="a number in (0, 1]" if measure.is_accuracy else "a finite number >= 0",
                    fix="0.9 asks for 90 %" if measure.is_accuracy else "leave it out to ask nothing",
                )
            object.__setattr__(self, measure.limit, number)

    @property
    def asked(self) -> dict[str, float]:
        """The limits that are set."""
        return {m.limit: getattr(self, m.limit) for m in _MEASURES if getattr(self, m.limit) is not None}


@dataclass(frozen=True)
class Evidence:
    """The best usable bound of one measure, or None with the reason why there is none."""

    value: float | None
    method: str
    rigor: Rigor | None
    why_not: str


@dataclass(frozen=True)
class GateCheck:
    """One check. ``value``: what was measured, None if nothing was; ``method``: which bound it is."""

    name: str
    kind: Literal["limit", "baseline"]
    direction: Direction
    limit: float
    value: float | None
    method: str
    rigor: Rigor | None
    passed: bool
    reason: str

    def __str__(self) -> str:
        return f"{self.name} {'>=' if self.direction == 'at least' else '<='} {text.number(self.limit)} ({self.kind})"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "name": self.name,
            "kind": self.kind,
            "direction": self.direction,
            "limit": self.limit,
            "value": text.json_number(self.value),
            "method": self.method,
            "rigor": None if self.rigor is None else str(self.rigor),
            "passed": self.passed,
            "reason": self.reason,
        }


@dataclass(frozen=True)
class Baseline:
    """What an earlier network reached; :meth:`of` takes it from a comparison.

    ``samples`` names samples, radius, norm and box, with a digest; ``shape`` is the network's widths, input first.
    ``values``: per measure the number, None where nothing was proved.
    """

    shape: tuple[int, ...]
    delta: float
    norm: float
    samples: str
    n_samples: int
    values: Mapping[str, float | None]
    subject: str = ""

    @classmethod
    def of(cls, comparison: Comparison, *, rigor: Rigor = Rigor.NUMERICAL) -> Baseline:
        """The baseline that a comparison sets."""
        return cls(
            shape=_widths(comparison),
            delta=comparison.delta,
            norm=comparison.norm,
            samples=_samples(comparison),
            n_samples=comparison.n_samples,
            values={m.name: _evidence(comparison, m, rigor).value for m in _MEASURES},
            subject=comparison.subject,
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with ``schema_version``."""
        return {
            "schema_version": SCHEMA_VERSION,
            "kind": _BASELINE,
            "shape": list(self.shape),
            "delta": self.delta,
            "norm": norm_name(self.norm),
            "samples": self.samples,
            "n_samples": self.n_samples,
            "subject": self.subject,
            "values": dict(self.values),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as JSON, all or nothing."""
        write_atomically(Path(path), json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Baseline:
        """Read what :meth:`save` wrote.

        Raises
        ------
        InputError : no such file, no baseline, another schema version, a number that is none.
        """
        file = Path(path)
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
            if data["kind"] != _BASELINE or data["schema_version"] != SCHEMA_VERSION:
                raise ValueError(f"kind {data['kind']!r}, schema_version {data['schema_version']!r}")
            values = {m.name: None if data["values"][m.name] is None else float(data["values"][m.name])
                      for m in _MEASURES}  # fmt: skip
            if any(v is not None and not math.isfinite(v) for v in values.values()):
                raise ValueError("a value that is not finite")
            return cls(
                shape=tuple(int(s) for s in data["shape"]),
                delta=float(data["delta"]),
                norm=float(data["norm"]),
                samples=str(data["samples"]),
                n_samples=int(data["n_samples"]),
                values=values,
                subject=str(data["subject"]),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                "baseline",
                got=f"{file} ({type(error).__name__}: {error})",
                needed=f"a baseline of schema version {SCHEMA_VERSION}",
                fix="write one with certbound gate --write-baseline",
            ) from error


_BASELINE: Final = "certbound gate baseline"


def write_atomically(path: Path, content: str) -> None:
    """All or nothing: a killed run leaves the old file or the new one."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        temporary.write_text(content, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@dataclass(frozen=True)
class GateReport:
    """One check per limit and per baseline value, in this order; made by :func:`gate`."""

    checks: tuple[GateCheck, ...]
    delta: float
    norm: float
    n_samples: int
    samples: str
    subject: str
    clean_accuracy: float
    seconds: float = field(compare=False)

    @property
    def passed(self) -> bool:
        """True if every check passed (there may be none: then nothing was asked)."""
        return all(c.passed for c in self.checks)

    @property
    def exit_code(self) -> int:
        """0 if every check passed, else 1."""
        return 0 if self.passed else 1

    def __str__(self) -> str:
        head = (
            f"{self.n_samples} samples, ||a||_{norm_name(self.norm)} <= {self.delta:g}, "
            f"clean accuracy {self.clean_accuracy:.3f}"
        )
        if not self.checks:
            return f"{head}\nno checks asked for"
        columns = ("check", "value", "by", "rigor", "result", "")
        rows = [
            (
                str(c),
                text.number(c.value),
                c.method or "-",
                "-" if c.rigor is None else str(c.rigor),
                "pass" if c.passed else "FAIL",
                c.reason,
            )
            for c in self.checks
        ]
        failed = sum(not c.passed for c in self.checks)
        verdict = "passed" if not failed else f"FAILED ({failed} of {len(self.checks)} checks)"
        return f"{head}\n{text.table(rows, columns)}\ngate: {verdict}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with ``schema_version``."""
        return {
            "schema_version": SCHEMA_VERSION,
            "passed": self.passed,
            "delta": self.delta,
            "norm": text.json_number(self.norm),
            "n_samples": self.n_samples,
            "samples": self.samples,
            "subject": self.subject,
            "clean_accuracy": self.clean_accuracy,
            "seconds": self.seconds,
            "checks": [c.to_dict() for c in self.checks],
        }

    def to_junit(self) -> str:
        """JUnit XML: one test case per check, a failure with its reason where it failed."""
        failures = str(sum(not c.passed for c in self.checks))
        counts = {"tests": str(len(self.checks)), "failures": failures, "errors": "0", "skipped": "0"}
        root = ET.Element("testsuites", counts)
        suite = ET.SubElement(root, "testsuite", {"name": "certbound gate", **counts, "time": f"{self.seconds:.3f}"})
        properties = ET.SubElement(suite, "properties")
        about = {"delta": repr(self.delta), "norm": norm_name(self.norm), "samples": self.samples,
                 "network": self.subject}  # fmt: skip
        for name, value in about.items():
            ET.SubElement(properties, "property", {"name": name, "value": _printable(value)})
        for check in self.checks:
            attributes = {"classname": "certbound.gate", "name": _printable(str(check)), "time": "0"}
            case = ET.SubElement(suite, "testcase", attributes)
            if not check.passed:
                failure = ET.SubElement(case, "failure", {"message": _printable(check.reason), "type": check.kind})
                failure.text = _printable(f"{check}: {check.reason}")
        ET.indent(root)
        return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _printable(value: str) -> str:
    """Without the characters that XML 1.0 cannot hold: a note may quote anything."""
    return re.sub("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "?", value)


def _widths(comparison: Comparison) -> tuple[int, ...]:
    """The network's widths, input first; a ReLU after the last matrix is refused by ``compare`` already.

    Of what is no plain chain the sizes of all values of its graph.
    """
    network = comparison.problem.samples.network
    if isinstance(network, Network) and network.is_relu_chain:
        return (network.n_inputs, *(w.shape[0] for w in network.chain.weights))
    return tuple(math.prod(shape) for shape in as_graph(network).shapes)


def _samples(comparison: Comparison) -> str:
    """Samples, radius, norm and box in words with a digest: the domain of the claims on loss gaps."""
    domains = {r.bound.claim.domain for r in comparison.rows if r.quantity is not Quantity.LIPSCHITZ}
    return min(domains) if domains else ""


def _usable(row: Row, rigor: Rigor) -> str | None:
    """None if the row's number may be relied on, else the reason."""
    bound = row.bound
    if row.status is not Status.OK:
        return f"{row.method}: {row.status}" + (f" ({row.note})" if row.note else "")
    if row.value != bound.value or bound.sense is not row.sense:  # NaN differs from everything
        return f"{row.method}: {row.value} is no bound"
    if min(row.rigor, bound.rigor) < rigor:
        return f"{row.method}: only {min(row.rigor, bound.rigor)}"
    if bound.vacuous and not (row.quantity is Quantity.ROBUST_ACCURACY and row.sense is Sense.UPPER):
        return f"{row.method}: vacuous ({text.number(row.value)})"
    if not math.isfinite(row.value):
        return f"{row.method}: {row.value} is no bound"
    return None


def _evidence(comparison: Comparison, measure: _Measure, rigor: Rigor) -> Evidence:
    """The strongest usable row of a measure.

    Strongest: the largest lower bound of the accuracy, the smallest upper bound of anything else. For attacks that is
    the one that leaves the least accuracy.
    """
    rows = [r for r in comparison.rows if r.quantity is measure.quantity and r.sense is measure.sense]
    reasons = [(r, _usable(r, rigor)) for r in rows]
    usable = [r for r, reason in reasons if reason is None]
    if not usable:
        why = "; ".join(reason for _, reason in reasons if reason is not None)
        return Evidence(None, "", None, f"nothing {measure.word}: {why or 'no method of this kind was run'}")
    best = min(usable, key=lambda r: -r.value if measure.sense is Sense.LOWER else r.value)
    return Evidence(best.value, best.method, min(best.rigor, best.bound.rigor), "")


def _check(measure: _Measure, kind: Literal["limit", "baseline"], limit: float, evidence: Evidence) -> GateCheck:
    value = evidence.value
    at_least = measure.direction == "at least"
    passed = value is not None and (value >= limit if at_least else value <= limit)  # comparisons with NaN are False
    if value is None:
        reason = evidence.why_not
    else:
        sign = ">=" if at_least else "<="
        word = f"{measure.word} by {evidence.method}"
        reason = f"{text.number(value)} {word}" + ("" if passed else f"; needed {sign} {text.number(limit)}")
    return GateCheck(
        measure.name, kind, measure.direction, limit, value, evidence.method, evidence.rigor, passed, reason
    )


def _same_setting(comparison: Comparison, baseline: Baseline) -> None:
    """Refuse a baseline that is about something else: its numbers would compare with nothing."""
    here = {"network shape": _widths(comparison), "delta": comparison.delta, "norm": norm_name(comparison.norm),
            "number of samples": comparison.n_samples, "samples": _samples(comparison)}  # fmt: skip
    there = {"network shape": baseline.shape, "delta": baseline.delta, "norm": norm_name(baseline.norm),
             "number of samples": baseline.n_samples, "samples": baseline.samples}  # fmt: skip
    for what, value in here.items():
        if value != there[what]:
            raise InputError(
                "baseline",
                got=f"a baseline with {what} {there[what]}",
                needed=f"{what} {value}, as in this run",
                fix="write a new baseline with --write-baseline, or run with the old settings",
            )


def gate(
    comparison: Comparison,
    limits: Limits | None = None,
    baseline: Baseline | None = None,
    *,
    tolerance: float = 1e-6,
    seconds: float = 0.0,
) -> GateReport:
    """Check a comparison against limits and against what an earlier network reached.

    Parameters
    ----------
    comparison : made by ``compare``. limits : what is asked. baseline : numbers not to fall behind.
    tolerance : how far to fall behind a baseline: absolute for accuracies, relative for the others.
    seconds : that the comparison took, for the reports.

    Returns
    -------
    GateReport: one check per limit; with a baseline one more for every number that it holds.

    Raises
    ------
    InputError : a baseline about another network shape, delta, norm or samples, or one that holds no number; a
        tolerance outside [0, 1).
    """
    limits = Limits() if limits is None else limits
    if isinstance(tolerance, bool) or not isinstance(tolerance, (int, float)) or not 0 <= tolerance < 1:
        raise InputError("tolerance", got=repr(tolerance), needed="a number in [0, 1)", fix="pass 0.01")
    checks = [
        _check(m, "limit", limits.asked[m.limit], _evidence(comparison, m, limits.rigor))
        for m in _MEASURES
        if m.limit in limits.asked
    ]
    if baseline is not None:
        _same_setting(comparison, baseline)
        before = {m: baseline.values.get(m.name) for m in _MEASURES}
        if all(v is None for v in before.values()):
            raise InputError(
                "baseline", got="a baseline without numbers", needed="at least one", fix="write a new baseline"
            )
        for measure, value in before.items():
            if value is None:
                continue
            if measure.is_accuracy:
                limit = value - tolerance
            else:
                limit = value * (1.0 + tolerance)
            check = _check(measure, "baseline", limit, _evidence(comparison, measure, limits.rigor))
            note = f"baseline {text.number(value)}, tolerance {tolerance:g}"
            checks.append(replace(check, reason=f"{check.reason} ({note})"))
    return GateReport(
        tuple(checks),
        comparison.delta,
        comparison.norm,
        comparison.n_samples,
        _samples(comparison),
        comparison.subject,
        comparison.clean_accuracy,
        seconds,
    )


__all__ = ["Baseline", "Evidence", "GateCheck", "GateReport", "Limits", "gate", "write_atomically"]
