"""RESULTS.md: one page over all studies, then a section for each; every word of it is computed from the packed rows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from certbound.errors import InputError
from experiments import runner, store, tables
from experiments.controls import NORMS, Norm, attack_checks
from experiments.report import COMPLETE, completeness, judged, main_table, report_text, verdict_text
from experiments.rules import Outcome, Verdict
from experiments.study import MODULES, Row, Study, find
from experiments.tables import NORM_TITLE
from experiments.tracking import Tracker, best, normalised_text, sentence, trackers

PICTURES: Final = 2
"""Pictures that are kept of a study."""

_PREFACE: Final = (
    "Written by `python -m experiments results` from the rows in `results/`; not edited by hand. A rule that was "
    "written before the runs turns rows into verdicts (`rules.py`): a claim is supported when the 95 % intervals of "
    "all its conditions lie on the right side of their thresholds, not supported when one lies on the wrong side, "
    "else inconclusive.\n"
)
Find = Callable[[str], Study]
Tracked = Mapping[Norm, Sequence[Tracker]]
"""Norm → the correlations of a study's bounds and baselines with the gap."""


def results_name(scale: str) -> str:
    """File name of the page of a scale."""
    return "RESULTS.md" if scale == "cpu" else f"RESULTS-{scale}.md"


def write_results(source: Path, into: Path, scale: str = "cpu", *, of: Find = find) -> Path:
    """Pack the stored rows of every study and write reports, pictures and the page; the path of the page.

    Writes ``into/results/<scale>/<study>.jsonl`` (the rows), ``<study>.md`` (the report), ``figures/`` beside them, and
    ``into/RESULTS.md`` (``RESULTS-<scale>.md`` for other scales than cpu). A study of which ``source`` holds no row
    keeps what was packed before. Each file is written whole or not at all.

    Raises
    ------
    InputError : no rows anywhere; rows that were run under another rule; a packed file that is damaged.
    """
    folder = into / "results" / scale
    rows_by_study: dict[str, Sequence[Row]] = {}
    for name in MODULES:
        stored = runner.current_rows(of(name), source, scale)
        path = folder / f"{name}.jsonl"
        if stored:
            tables.checked(of(name), stored)  # what is refused is not packed
            store.write_whole(path, store.pack(stored).encode())
        if path.exists():
            rows_by_study[name] = store.unpack(path.read_text(encoding="utf-8"))
    page = render(rows_by_study, scale=scale, of=of)
    for name, rows in rows_by_study.items():
        _write_study(of(name), rows, folder)
    target = into / results_name(scale)
    store.write_whole(target, page.encode())
    return target


def packed(into: Path, scale: str = "cpu") -> dict[str, tuple[Row, ...]]:
    """Study → the rows that :func:`write_results` packed: ``render(packed(into))`` is its page."""
    paths = {name: into / "results" / scale / f"{name}.jsonl" for name in MODULES}
    return {name: store.unpack(p.read_text(encoding="utf-8")) for name, p in paths.items() if p.exists()}


def _write_study(study: Study, rows: Sequence[Row], folder: Path) -> None:
    from experiments.plots import pictures

    ordered = tables.checked(study, rows)
    drawn = pictures(study, ordered, chosen_pictures(study))
    for name in drawn:
        store.write_whole(folder / "figures" / f"{study.id}-{name}", drawn[name])
    shown = [f"{study.id}-{name}" for name in drawn]
    store.write_whole(folder / f"{study.id}.md", report_text(study, ordered, shown, folder="figures/").encode())


def chosen_pictures(study: Study) -> tuple[str, ...]:
    """The pictures that are kept: those that the study names, or accuracies, and bounds against gaps in its norm."""
    named = tuple(f"{name}.png" for name in study.pictures) or ("accuracy.png", f"tracking_{study.norm}.png")
    return named[:PICTURES]


# ---------------------------------------------------------------- the page


def render(rows_by_study: Mapping[str, Sequence[Row]], *, scale: str = "cpu", of: Find = find) -> str:
    """The page, from the rows alone.

    Raises
    ------
    InputError : no rows; rows of another study or scale, or run under another rule.
    """
    if not any(rows_by_study.values()):
        raise InputError("rows_by_study", got="no rows", needed="rows of a study", fix="run one first")
    names = sorted((name for name, rows in rows_by_study.items() if rows), key=[*MODULES, *rows_by_study].index)
    found = {name: tables.checked(of(name), rows_by_study[name]) for name in names}
    for name, rows in found.items():
        if rows[0].scale != scale:
            raise InputError(
                "rows_by_study", got=f"rows of {name} at the scale {rows[0].scale}", needed=f"the scale {scale}",
                fix="render one scale",
            )  # fmt: skip
    verdicts = {name: judged(of(name), rows) for name, rows in found.items()}
    tracked: dict[str, Tracked] = {name: {norm: trackers(rows, norm) for norm in NORMS} for name, rows in found.items()}
    sections = [_section(of(name), rows, verdicts[name], tracked[name], scale) for name, rows in found.items()]
    return "\n".join([*_summary(found, verdicts, tracked, scale, of), *sections])


def _summary(
    found: Mapping[str, Sequence[Row]], verdicts: Mapping[str, Verdict], tracked: Mapping[str, Tracked], scale: str,
    of: Find,
) -> list[str]:  # fmt: skip
    lines = []
    for name, verdict in verdicts.items():
        decided = deciding(verdict)
        e, condition = decided.estimate, decided.condition
        number = f"{condition.name}: {tables.estimate(e)}, needed {condition.sense} {condition.threshold:g}"
        lines.append((f"[{name}](results/{scale}/{name}.md)", of(name).claim, f"**{verdict.word}**", number, str(e.n)))
    missing = [name for name in MODULES if name not in found]
    return [
        f"# Which of the paper's claims held, at the scale {scale}\n",
        _PREFACE,
        f"{_counts(found)}\n",
        tables.markdown(lines, ("study", "claim", "verdict", "deciding estimate [95 % interval]", "n")),
        *_by_word(verdicts, of),
        *([f"No rows of: {', '.join(missing)}.\n"] if missing else []),
        "## Which bound tracks the gap\n",
        tracking_summary(tracked),
        "## Cells and time\n",
        _cost(found),
        "## Limits of this scale\n",
        _limits(found, scale, of),
    ]


def _counts(found: Mapping[str, Sequence[Row]]) -> str:
    rows = [row for mine in found.values() for row in mine]
    seconds = sum({(r.scale, r.key): r.seconds for r in rows}.values())
    seeds = sorted({len({r.seed for r in mine}) for mine in found.values()})
    n = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    return (
        f"{len(found)} of {len(MODULES)} studies, {n} seeds, {len(rows)} models "
        f"({len({r.key for r in rows})} different ones; {tables.number(seconds / 60)} minutes of one core)."
    )


def _cost(found: Mapping[str, Sequence[Row]]) -> str:
    """Cells of each study and what they cost; a cell that another study computed first costs nothing again."""
    lines, seen = [], set()
    for name, rows in found.items():
        own = {(r.scale, r.key): r.seconds for r in rows if (r.scale, r.key) not in seen}
        seen |= own.keys()
        mean = tables.number(sum(r.seconds for r in rows) / len(rows))
        lines.append((name, str(len(rows)), mean, str(len(own)), tables.number(sum(own.values()) / 60)))
    return tables.markdown(lines, ("study", "cells", "seconds a cell", "new models", "minutes of one core"))


def deciding(verdict: Verdict) -> Outcome:
    """The condition that made the verdict: the first refuted, the first open, or the one that was met most narrowly."""
    if verdict.word != "supported":
        word = "refuted" if verdict.word == "not supported" else "open"
        return next(o for o in verdict.outcomes if o.word == word)
    return min(verdict.outcomes, key=_margin)


def _margin(outcome: Outcome) -> float:
    """Distance of the threshold from the interval's near end, in half-widths of the interval."""
    e, condition = outcome.estimate, outcome.condition
    distance = condition.threshold - e.high if condition.sense == "<" else e.low - condition.threshold
    half = (e.high - e.low) / 2
    return distance / half if half > 0 else math.inf


def _by_word(verdicts: Mapping[str, Verdict], of: Find) -> list[str]:
    titles = {"supported": "Held", "not supported": "Did not hold", "inconclusive": "Stayed open"}
    said = []
    for word, title in titles.items():
        lines = [f"- {name}, {of(name).title}.{_why(v)}\n" for name, v in verdicts.items() if v.word == word]
        said.append(f"**{title}** ({len(lines)}):\n\n{''.join(lines)}" if lines else f"**{title}**: none.\n")
    return said


def _why(verdict: Verdict) -> str:
    """Which conditions and controls a reader must know of beside the word."""
    said = ""
    for word in ("refuted", "open"):
        said += _named(f" {word.capitalize()}: ", verdict.outcomes, word)
    if verdict.word == "supported":
        said += _named(" Controls that were refuted: ", verdict.control_outcomes, "refuted")
        said += _named(" Controls that stayed open: ", verdict.control_outcomes, "open")
    return said


def _named(head: str, outcomes: Sequence[Outcome], word: str) -> str:
    names = [o.condition.name for o in outcomes if o.word == word]
    return f"{head}{'; '.join(names)}." if names else ""


def tracking_summary(tracked: Mapping[str, Tracked]) -> str:
    """Over all studies and both norms: how often each bound goes with the gap within seeds, how often it is best."""
    counts: Counter[tuple[str, str]] = Counter()
    names: dict[str, None] = {}
    none: list[str] = []
    places, beaten = 0, 0
    for name, by_norm in tracked.items():
        for norm, every in by_norm.items():
            bounds = [t for t in every if t.is_bound and not math.isnan(t.within.low)]
            if not bounds:
                continue
            places += 1
            top = best(bounds)
            none += [] if top else [f"{name} {NORM_TITLE[norm]}"]
            names |= {t.name: None for t in bounds}
            counts.update((t.name, "best") for t in top)
            counts.update((t.name, "tracks") for t in bounds if t.tracks)
            counts.update((t.name, "against") for t in bounds if t.within.high < 0)
            highest = max(t.within.value for t in bounds)
            beaten += any(t.within.value > highest for t in every if not t.is_bound)
    if not places:
        return "No correlations within seeds with an interval: they need bounds and two seeds.\n"
    order = sorted(names, key=lambda m: (-counts[m, "best"], -counts[m, "tracks"], tables.rank_of_method(m)))
    most = counts[order[0], "best"]
    leaders = ", ".join(m for m in order if counts[m, "best"] == most)
    said = (
        f"Within a seed, **{leaders}** goes with the gap best, or inside the best bound's interval, most often: in "
        f"{most} of {places} pairs of study and norm."
        if most else "**No bound** goes with the gap within seeds in any study."
    )  # fmt: skip
    said += f" A baseline that bounds nothing has a higher correlation than every bound in {beaten} of {places}."
    if none:
        said += f" No bound tracks the gap in: {', '.join(none)}."
    lines = [(m, *(f"{counts[m, what]} of {places}" for what in ("tracks", "best", "against"))) for m in order]
    header = ("bound", "tracks: interval above 0", "best, or inside the best's interval", "falls where the gap rises")
    return f"{said}\n\n{tables.markdown(lines, header)}"


def _limits(found: Mapping[str, Sequence[Row]], scale: str, of: Find) -> str:
    rows = [row for mine in found.values() for row in mine]
    data = sorted({str(row.config["data"]) for row in rows})
    dense = [row for row in rows if row.config.get("architecture") is None]
    counts = Counter("-".join(map(str, row.config["hidden"])) for row in dense)
    widths = sorted(w for w, c in counts.items() if c > len(dense) / 20)
    others = sorted({str(row.config["architecture"]["kind"]) for row in rows if row.config.get("architecture")})
    nets = [f"fully connected ReLU networks with hidden layers {', '.join(widths)}"] if dense else []
    nets += [f"small architectures: {', '.join(others)}"] if others and scale == "cpu" else others
    seeds = max(len({r.seed for r in mine}) for mine in found.values())
    said = [f"Data: {', '.join(data)}; {'; '.join(nets)}."]
    if scale == "cpu":
        said.append(
            "Where the paper uses CIFAR or all of MNIST and wider networks, this scale uses digits (8×8) or 4,000 "
            "images of MNIST: a claim that does not hold here may hold there, and the other way round."
        )
    said += [
        f"At most {seeds} seeds: an interval is over seeds (data, first weights, batches); a small effect stays open.",
        "Each condition has its own 95 % interval; there is no correction for how many there are.",
        "Accuracy under attack is an upper bound of robust accuracy: another attack may find more.",
        "All studies but e09 attack with APGD on the cross-entropy alone; e09 has all of AutoPGD's losses.",
        "Cells count models as measured: one trained network that two studies measure differently counts twice.",
        "A correlation over the models of one study says how a bound orders those models, not others.",
    ]
    said += [f"{name}: {note}." for name, mine in found.items() if (note := completeness(of(name), mine)) != COMPLETE]
    return "".join(f"- {line}\n" for line in said)


def _section(study: Study, rows: Sequence[Row], verdict: Verdict, tracked: Tracked, scale: str) -> str:
    link = f"[report](results/{scale}/{study.id}.md), [rows](results/{scale}/{study.id}.jsonl)"
    outcomes = verdict.control_outcomes
    controls = "".join(_named(f" {word.capitalize()}: ", outcomes, word) for word in ("met", "refuted", "open"))
    parts = [
        f"## {study.id}: {study.title}\n",
        f"**{verdict.word}**: {study.claim} ({study.source}; {link})\n",
        *([f"{study.note}\n"] if study.note else []),
        verdict_text(verdict, controls=False),
        *([f"Controls, which decide nothing.{controls}\n"] if controls else []),
        main_table(study, rows),
        *(
            f"{sentence(found, norm)}\n\n{normalised_text(rows, norm)}".rstrip() + "\n"
            for norm, found in tracked.items()
            if found
        ),
        *_failed_checks(rows),
    ]
    return "\n".join(parts)


def _failed_checks(rows: Sequence[Row]) -> list[str]:
    """The attack checks that a study did not pass, with the number at its worst row."""
    failed = [
        f"{c.name}, {NORM_TITLE[c.norm]} ({tables.number(c.worst)}, allowed {tables.number(c.allowed)})"
        for c in attack_checks(rows) if c.passed is False
    ]  # fmt: skip
    return [f"Attack checks that failed: {'; '.join(failed)}.\n"] if failed else []


__all__ = [
    "PICTURES", "chosen_pictures", "deciding", "packed", "render", "results_name", "tracking_summary", "write_results",
]  # fmt: skip
