"""The report of one study: verdict, tables, pictures, where the numbers come from.

A pure function of study and rows: the same rows give the same bytes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Final, Literal

from experiments import store, tables
from experiments.controls import attack_checks, matched
from experiments.rules import MatchedChange, Outcome, Verdict
from experiments.studies.common import SHORT
from experiments.study import Row, Study
from experiments.tables import NORM_TITLE, NORMS
from experiments.tracking import CORRELATIONS_HEADER, correlation_rows, tracking_text

COMPLETE: Final = "every cell has one"
MATCHED_ON: Final = ("sa", "loss", "loss_train")
_KEYS: Final = (
    "revision", "device", "device_name", "machine", "threads", "certbound", "python", "numpy", "scipy", "torch",
    "pyautoattack", "auto-lirpa", "scikit-learn", "mlxtend",
)  # fmt: skip


@dataclass(frozen=True)
class Report:
    """What :func:`write_report` wrote."""

    study: str
    scale: str
    verdict: Literal["supported", "not supported", "inconclusive"]
    folder: Path
    files: tuple[Path, ...]

    def __str__(self) -> str:
        return f"{self.study} ({self.scale}): {self.verdict}; {self.folder}"


def write_report(study: Study, rows: Sequence[Row], out: Path) -> Report:
    """``report.md``, ``table.csv``, ``bounds.csv``, ``correlations.csv`` and the pictures, into the folder ``out``.

    The same rows give the same bytes. Each file is written whole or not at all.

    Raises
    ------
    InputError : no rows; rows of another study, of two scales, or run under another rule; one cell twice.
    MissingDependencyError : matplotlib is not installed.
    """
    from experiments.plots import pictures

    rows = tables.checked(study, rows)
    content = {f"{name}.csv": text.encode() for name, text in csv_files(study, rows).items()}
    drawn = pictures(study, rows)
    content |= drawn
    content["report.md"] = report_text(study, rows, tuple(drawn)).encode()
    files = []
    for name, data in content.items():
        store.write_whole(out / name, data)
        files.append(out / name)
    return Report(study.id, rows[0].scale, judged(study, rows).word, out, tuple(files))


def report_text(study: Study, rows: Sequence[Row], pictures: Sequence[str] = (), *, folder: str = "") -> str:
    """The report in markdown. ``pictures``: files that are shown, in ``folder`` (with its slash).

    Raises
    ------
    InputError : see :func:`write_report`.
    """
    rows = tables.checked(study, rows)
    verdict = judged(study, rows)
    shown = "".join(f"![{_caption(name)}]({folder}{name})\n\n" for name in pictures)
    parts = [
        f"# {study.id}: {study.title}\n",
        f"**{verdict.word}**, at the scale {rows[0].scale}: {study.claim}\n",
        _facts(study),
        f"## Verdict: {verdict.word}\n",
        verdict_text(verdict),
        "## Models\n",
        main_table(study, rows),
        _legend(study),
        "## Bounds beside the gap\n",
        bounds_text(study, rows),
        "## Which bound tracks the gap\n",
        tracking_text(rows),
        "## At equal accuracy and loss\n",
        _matched_text(study, rows),
        "## Checks of the attack\n",
        _attack_text(rows),
        *(("## Pictures\n", shown.rstrip() + "\n") if pictures else ()),
        "## Where the numbers come from\n",
        provenance(study, rows),
    ]
    return "\n".join(parts)


def _facts(study: Study) -> str:
    facts = [
        ("source", study.source), ("varies", study.varies), ("fixed", study.fixed),
        ("supported if", study.supported_if), ("refuted if", study.refuted_if), ("note", study.note),
    ]  # fmt: skip
    return "".join(f"- {name}: {text}\n" for name, text in facts if text)


def verdict_text(verdict: Verdict, *, controls: bool = True) -> str:
    """The conditions, what came out, and the controls, which decide nothing."""
    header = ("condition", "statistic", "needed", "estimate, 95 % interval", "n", "outcome")
    text = tables.markdown([_outcome(o) for o in verdict.outcomes], header) + _reasons(verdict.outcomes)
    if controls and verdict.control_outcomes:
        shown = tables.markdown([_outcome(o) for o in verdict.control_outcomes], ("control", *header[1:]))
        text += f"\nControls; they decide nothing.\n\n{shown}{_reasons(verdict.control_outcomes)}"
    return text


def _outcome(found: Outcome) -> tuple[str, ...]:
    condition, e = found.condition, found.estimate
    needed = f"{condition.sense} {condition.threshold:g}"
    return (condition.name, str(condition.statistic), needed, tables.estimate(e), str(e.n), found.word)


def _reasons(outcomes: Sequence[Outcome]) -> str:
    said = [f"- {o.condition.name}: {o.reason}\n" for o in outcomes if o.reason]
    return "\n" + "".join(said) if said else ""


def main_table(study: Study, rows: Sequence[Row]) -> str:
    """Mean and 95 % t interval of every measure that the study names, a line a point."""
    names = tables.level_names(study, rows)
    lines = []
    for (arm, level), mine in tables.by_point(rows).items():
        found = [tables.estimate(tables.spread(mine, m), len(mine)) for m in study.measures]
        lines.append((arm, f"{names[arm]} {level:g}", str(len(mine)), *found))
    return tables.markdown(lines, ("arm", "level", "n", *study.measures))


def _legend(study: Study) -> str:
    known = [(m, tables.meaning(m)) for m in study.measures]
    said = "; ".join(f"`{m}`: {words}" for m, words in known if words)
    return f"Means over n seeds [95 % t interval]. {said}.\n"


def bounds_text(study: Study, rows: Sequence[Row]) -> str:
    """Per norm: the gap found by attack, and every bound with how many times the gap it is; then what is certified."""
    text = ""
    for norm in NORMS:
        names = tables.methods(rows, "bound", norm)
        if not names:
            continue
        text += f"### {NORM_TITLE[norm]}\n\n"
        text += f"Mean loss gap under attack{_radius(rows, norm)}, and bounds of it (× bound / gap of the means).\n\n"
        lines = _bound_lines(study, rows, norm, names)
        text += tables.markdown(lines, ("arm", "level", "n", "gap", *names)) + "\n"
        text += _certified(study, rows, norm)
    return text.rstrip() + "\n" if text else "No bounds were computed.\n"


def _bound_lines(study: Study, rows: Sequence[Row], norm: str, names: Sequence[str]) -> list[tuple[str, ...]]:
    level_names = tables.level_names(study, rows)
    lines = []
    for (arm, level), mine in tables.by_point(rows).items():
        gap = tables.spread(mine, f"attack_{norm}")
        cells = []
        for name in names:
            bound = tables.spread(mine, f"bound_{norm}/{name}")
            counted = f" (n = {bound.n})" if 0 < bound.n != len(mine) else ""
            ratio = times(bound.value, gap.value)
            said = f" (×{tables.number(ratio)})" if ratio < math.inf else ""
            cells.append(tables.number(bound.value) + said + counted)
        lines.append((arm, f"{level_names[arm]} {level:g}", str(len(mine)), tables.estimate(gap, len(mine)), *cells))
    return lines


def times(bound: float, gap: float) -> float:
    """``bound / gap``; NaN without a gap above zero."""
    return bound / gap if gap > 0 else math.nan


def _certified(study: Study, rows: Sequence[Row], norm: str) -> str:
    names = tables.methods(rows, "certified", norm)
    able = [m for m in names if any(row.number(f"certified_{norm}/{m}") > 0 for row in rows)]
    if not names:
        return ""
    if not able:
        return f"No method certifies any sample in {NORM_TITLE[norm]} at this radius.\n\n"
    level_names = tables.level_names(study, rows)
    lines = []
    for (arm, level), mine in tables.by_point(rows).items():
        found = [tables.estimate(tables.spread(mine, f"certified_{norm}/{m}"), len(mine)) for m in able]
        attacked = tables.estimate(tables.spread(mine, f"ra_{norm}"), len(mine))
        lines.append((arm, f"{level_names[arm]} {level:g}", attacked, *found))
    said = "Certified robust accuracy (lower bounds) of the methods that certify anything, beside accuracy under attack"
    return f"{said}.\n\n{tables.markdown(lines, ('arm', 'level', 'under attack', *able))}\n"


def _matched_text(study: Study, rows: Sequence[Row]) -> str:
    """Accuracies under attack less those of each control arm at equal accuracy, test loss and training loss."""
    controls = [arm for arm in control_arms(study) if arm in tables.arms(rows)]
    if not controls:
        return "No arm of this study is there to be compared with at equal accuracy; see the correlations given SA.\n"
    seeds = len({row.seed for row in rows})
    columns = [(f"ra_{norm}", on) for norm in NORMS for on in MATCHED_ON]
    level_names = tables.level_names(study, rows)
    text = "Mean over seeds of the difference [95 % interval]; - where every seed is outside the control's range.\n"
    for control in controls:
        alike = comparable(rows, control)
        found = [matched(alike, measure, on, control) for measure, on in columns]
        lines = [
            (first.arm, f"{level_names[first.arm]} {first.level:g}", *(tables.estimate(m.change, seeds) for m in line))
            for line in zip(*found, strict=True)
            if (first := line[0])
        ]
        header = ("arm", "level", *(f"{measure} at equal {on}" for measure, on in columns))
        text += f"\nLess **{control}**:\n\n{tables.markdown(lines, header)}"
    return text


def comparable(rows: Sequence[Row], arm: str) -> list[Row]:
    """The rows of the data and the architectures that an arm has: others are not equal to it at equal accuracy."""

    def kind(row: Row) -> tuple[object, object]:
        return row.config.get("data"), (row.config.get("architecture") or {}).get("kind")

    kinds = {kind(row) for row in rows if row.arm == arm}
    return [row for row in rows if kind(row) in kinds]


def control_arms(study: Study) -> list[str]:
    """Underfitted networks, and the arms that the study's own rule compares with at equal values."""
    conditions = (*study.rule.conditions, *study.rule.controls)
    named = [c.statistic.control for c in conditions if isinstance(c.statistic, MatchedChange)]
    return list(dict.fromkeys([SHORT, *named]))


def _attack_text(rows: Sequence[Row]) -> str:
    words = {True: "yes", False: "**no**", None: "not measured"}
    lines = [
        (NORM_TITLE[c.norm], c.name, words[c.passed], *map(tables.number, (c.worst, c.allowed)), c.where, str(c.rows))
        for c in attack_checks(rows)
    ]
    return tables.markdown(lines, ("norm", "check", "holds", "worst", "allowed", "where", "rows"))


def _radius(rows: Sequence[Row], norm: str) -> str:
    found = {row.config.get("measure", {}).get(f"headline_{norm}") for row in rows} - {None}
    return f" at radius {', '.join(f'{v:.4g}' for v in sorted(found))}" if found else ""


def provenance(study: Study, rows: Sequence[Row]) -> str:
    """Seeds, cells, seconds, revisions, versions, the hash of the rule; cells that are missing."""
    seconds = [row.seconds for row in rows]
    facts = [
        ("rows", f"{len(rows)}, {completeness(study, rows)}"),
        ("seeds", ", ".join(map(str, sorted({row.seed for row in rows})))),
        ("seconds", f"{tables.number(fmean(seconds))} a cell, {tables.number(sum(seconds))} in all"),
        ("rule", f"`{study.rule.hash}`"),
    ]  # fmt: skip
    dirty = sum(bool(row.environment.get("dirty")) for row in rows)
    if dirty:
        facts.append(("uncommitted changes", f"when {dirty} of the {len(rows)} rows were computed"))
    for key in _KEYS:
        found = Counter(str(v) for row in rows if (v := row.environment.get(key)) is not None)
        if found:
            facts.append((key, ", ".join(f"{v} ({c} rows)" if len(found) > 1 else v for v, c in sorted(found.items()))))
    return "".join(f"- {name}: {text}\n" for name, text in facts)


def judged(study: Study, rows: Sequence[Row]) -> Verdict:
    """The rule's verdict; everything is open while cells lack their rows: first and last level may then be one."""
    verdict = study.rule.verdict(rows)
    said = completeness(study, rows)
    if said == COMPLETE:
        return verdict

    def opened(outcomes: Sequence[Outcome]) -> tuple[Outcome, ...]:
        return tuple(replace(o, word="open", reason=said) for o in outcomes)

    return Verdict("inconclusive", opened(verdict.outcomes), opened(verdict.control_outcomes))


def completeness(study: Study, rows: Sequence[Row]) -> str:
    """Whether every cell of the seeds from 0 to the last one has its row."""
    scale, smoke = tables.base_scale(rows), rows[0].scale.endswith("-smoke")
    cells = study.cells(scale, 1 + max(row.seed for row in rows), smoke=smoke)
    wanted = {(c.point.arm, c.point.level, c.seed, c.key) for c in cells}
    have = {(r.arm, r.level, r.seed, r.key) for r in rows}
    said = []
    if wanted - have:
        said.append(f"cells without a row: {len(wanted - have)}")
    if have - wanted:
        said.append(f"rows of no cell that the study has now: {len(have - wanted)}")
    return "; ".join(said) or COMPLETE


def csv_files(study: Study, rows: Sequence[Row]) -> dict[str, str]:
    """Name → text of the tables with all measures in full precision."""
    names = tables.level_names(study, rows)
    every, bounds = [], []
    for (arm, level), mine in tables.by_point(rows).items():
        place = (arm, names[arm], level)
        for measure in tables.measures(mine):
            e = tables.spread(mine, measure)
            every.append((*place, measure, e.n, e.value, e.low, e.high))
        for norm in NORMS:
            gap = tables.spread(mine, f"attack_{norm}").value
            for quantity in ("bound", "certified", "lipschitz"):
                for method in tables.methods(rows, quantity, norm):
                    e = tables.spread(mine, f"{quantity}_{norm}/{method}")
                    ratio = times(e.value, gap) if quantity == "bound" else math.nan
                    bounds.append((*place, norm, quantity, method, e.n, e.value, e.low, e.high, gap, ratio))
    header = ("arm", "level of", "level")
    numbers = ("n", "mean", "low", "high")
    return {
        "table": tables.csv_text(every, (*header, "measure", *numbers)),
        "bounds": tables.csv_text(bounds, (*header, "norm", "quantity", "method", *numbers, "gap", "bound / gap")),
        "correlations": tables.csv_text(correlation_rows(rows), CORRELATIONS_HEADER),
    }


_CAPTIONS: Final = {
    "accuracy": "accuracy, clean and under attack", "radius": "accuracy against radius",
    "bounds_inf": "bounds and gap, ℓ∞", "bounds_2": "bounds and gap, ℓ2", "tracking_inf": "bound against gap, ℓ∞",
    "tracking_2": "bound against gap, ℓ2", "energy": "attack along singular vectors", "pca": "representations",
}  # fmt: skip


def _caption(name: str) -> str:
    stem = name.removesuffix(".png").rpartition("-")[2]
    return _CAPTIONS.get(stem, stem)


__all__ = [
    "COMPLETE", "Report", "comparable", "completeness", "control_arms", "csv_files", "judged", "main_table",
    "provenance", "report_text", "verdict_text", "write_report",
]  # fmt: skip
