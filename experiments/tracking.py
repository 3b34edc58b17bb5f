"""Which bound tracks the gap found by attack, over the models of a study; baselines that bound nothing beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from experiments import tables
from experiments.controls import NORMS, Correlated, Norm, correlation_table, predictors
from experiments.statistics import Estimate
from experiments.study import Row
from experiments.tables import NORM_TITLE

CORRELATIONS_HEADER: Final = ("norm", "gap", "of", "kind", "n", "rho", "low", "high", "rows", "missing", "note")


@dataclass(frozen=True)
class Tracker:
    """Spearman's correlations of a bound or a baseline with the gap; ``name``: the method, or the measure."""

    name: str
    is_bound: bool
    found: Correlated

    @property
    def within(self) -> Estimate:
        """Mean over seeds of the correlation within each."""
        return self.found.within

    @property
    def tracks(self) -> bool:
        """Within a seed, a larger value goes with a larger gap: the whole interval is above 0."""
        return self.within.low > 0


def gap_measure(rows: Sequence[Row], norm: Norm) -> str:
    """The gap on the samples of the bounds; that of all attacked samples where no bounds were computed."""
    name = f"attack_{norm}"
    return name if any(not math.isnan(row.number(name)) for row in rows) else f"gap_{norm}"


def trackers(rows: Sequence[Row], norm: Norm, gap: str | None = None) -> tuple[Tracker, ...]:
    """Of every bound in the norm, then of the baselines; over the models of all arms. ``gap``: another measure."""
    head = f"bound_{norm}/"
    bounds = [head + method for method in tables.methods(rows, "bound", norm)]
    measures = [*bounds, *(x for x in predictors(rows, norm) if not x.startswith(head))]
    lines = correlation_table(rows, gap or gap_measure(rows, norm), measures)
    return tuple(Tracker(line.x.removeprefix(head), line.x.startswith(head), line) for line in lines)


def best(found: Sequence[Tracker]) -> tuple[Tracker, ...]:
    """Of those that track: the one with the largest within-seed correlation, then those inside its interval."""
    able = sorted((t for t in found if t.tracks), key=lambda t: -t.within.value)
    return tuple(t for t in able if t.within.value >= able[0].within.low)


def sentence(found: Sequence[Tracker], norm: Norm, gap: str = "the gap") -> str:
    """What the correlations say, in words."""
    bounds, baselines = [t for t in found if t.is_bound], [t for t in found if not t.is_bound]
    where = f"In {NORM_TITLE[norm]}"
    if not bounds:
        return f"{where} no bounds were computed."
    if max(t.within.n for t in bounds) < 2:
        return f"{where} nothing is said about tracking: there is one seed."
    first = best(bounds)
    if first:
        top = first[0].found
        # bounds that order the models alike have the very same correlations
        tied = [t for t in first if t.within.value == first[0].within.value]
        names = "**, **".join(t.name for t in tied)
        said = (
            f"{where}, **{names}** tracks {gap} best: ρ = {tables.estimate(top.within)} within seeds, "
            f"{tables.estimate(top.pooled)} pooled, {tables.estimate(top.partial)} given SA."
        )
        others = [t.name for t in first if t not in tied]
        if others:
            said += f" Inside its within-seed interval: {', '.join(others)}."
    else:
        said = f"{where} **no bound tracks {gap}**: no within-seed correlation has its interval above 0."
    against = [t.name for t in bounds if t.within.high < 0]
    if against:
        said += f" Falling where the gap rises: {', '.join(against)}."
    ahead = best(baselines)
    if ahead:
        said += f" Best baseline: {ahead[0].name}, ρ = {tables.estimate(ahead[0].within)} within seeds."
    elif baselines:
        said += " No baseline tracks it."
    return said


def tracking_text(rows: Sequence[Row]) -> str:
    """A table of correlations and a sentence for each norm."""
    text = ""
    for norm in NORMS:
        found = trackers(rows, norm)
        if not found:
            continue
        lines = [
            (
                t.name if t.is_bound else f"{t.name} (baseline)",
                *map(tables.estimate, (t.within, t.found.pooled, t.found.partial)),
                f"{t.found.rows} of {len(rows)}",
            )
            for t in found
        ]
        header = ("of", "within each seed", "pooled", "pooled, given SA", "models")
        said = f"{sentence(found, norm)}\n\n{tables.markdown(lines, header)}"
        text += f"### {NORM_TITLE[norm]}\n\n{said}\n{normalised_text(rows, norm)}"
    said = "Spearman's correlations with the gap under attack, over the models of all arms; 95 % intervals over seeds."
    return f"{said}\n\n{text.rstrip()}\n" if text else "Nothing was measured that could track the gap.\n"


def normalised_text(rows: Sequence[Row], norm: Norm) -> str:
    """The same of margin-normalised gaps, which rescaling a network does not change; of the printed bound by name."""
    gap = f"gap_normalised_{norm}"
    if all(math.isnan(row.number(gap)) for row in rows):
        return ""
    found = trackers(rows, norm, gap)
    printed = next((t for t in found if t.name == "printed"), None)
    said = sentence(found, norm, "the margin-normalised gap")
    if printed is not None and f"**{printed.name}**" not in said:
        said += f" The printed bound: ρ = {tables.estimate(printed.within)} within seeds."
    return f"{said}\n\n"


def correlation_rows(rows: Sequence[Row]) -> list[tuple[object, ...]]:
    """Lines of ``correlations.csv``."""
    lines: list[tuple[object, ...]] = []
    for norm in NORMS:
        gap = gap_measure(rows, norm)
        for t in trackers(rows, norm):
            found = t.found
            for kind, e in (("within", found.within), ("pooled", found.pooled), ("pooled given sa", found.partial)):
                numbers = (e.n, e.value, e.low, e.high, found.rows, found.missing)
                lines.append((norm, gap, found.x, kind, *numbers, e.note))
    return lines


__all__ = [
    "CORRELATIONS_HEADER", "Tracker", "best", "correlation_rows", "gap_measure", "normalised_text",
    "sentence", "trackers",
    "tracking_text",
]  # fmt: skip
