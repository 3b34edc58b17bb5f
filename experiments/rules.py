"""What turns the rows of a study into a verdict, written down before the study is run.

A rule is a value: conditions on statistics of measures. Its hash covers what it says and the code that computes it, and
every row carries the hash of the rule under which it was run; a verdict of another rule is refused.

A seed counts in a statistic with all of its rows or not at all: one that lacks a row that other seeds have is left out
and named in the estimate's note. A row whose measure is there but has no number (None, NaN; ±inf in a mean) is not left
out: it makes the estimate NaN, because runs fail for reasons that have to do with the result.
"""

from __future__ import annotations

import ast
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from certbound.errors import InputError
from experiments.statistics import (
    Estimate,
    bootstrap_over_seeds,
    mean_interval,
    partial_pearson,
    partial_spearman,
    spearman,
)

if TYPE_CHECKING:
    from experiments.study import Row

MINIMUM_SEEDS: Final = 3
"""With fewer seeds nothing is decided."""


@dataclass(frozen=True)
class At:
    """Where in a study: a level of an arm.

    None: the mean over the whole arm. ``"first"``, ``"last"``: the smallest, the largest level that there is.
    """

    arm: str
    level: float | Literal["first", "last"] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.level, str) and self.level not in ("first", "last"):
            raise InputError(
                "level", got=repr(self.level), needed="a number, None, 'first' or 'last'", fix="name a level"
            )

    def __str__(self) -> str:
        if self.level is None:
            return self.arm
        return f"{self.arm} at " + (f"the {self.level} level" if isinstance(self.level, str) else f"{self.level:g}")


# ---------------------------------------------------------------- statistics


@dataclass(frozen=True)
class Mean:
    """Mean over seeds of a measure at one point."""

    measure: str
    at: At

    def estimate(self, rows: Sequence[Row]) -> Estimate:
        """The number over these rows, with its interval over seeds."""
        return _over_seeds(rows, _seed_values(rows, self.measure, self.at))

    def __str__(self) -> str:
        return f"{self.measure} of {self.at}"


@dataclass(frozen=True)
class Change:
    """Mean over seeds of ``measure(at) − measure(base)``, paired by seed."""

    measure: str
    at: At
    base: At

    def estimate(self, rows: Sequence[Row]) -> Estimate:
        """The number over these rows, with its interval over seeds."""
        values = _combined(lambda a, b: a - b, *(_seed_values(rows, self.measure, p) for p in (self.at, self.base)))
        return _over_seeds(rows, values)

    def __str__(self) -> str:
        return f"{self.measure} of {self.at} less that of {self.base}"


@dataclass(frozen=True)
class Ratio:
    """Geometric mean over seeds of ``measure(at) / measure(base)``, paired by seed; numbers ≤ 0 have none."""

    measure: str
    at: At
    base: At

    def estimate(self, rows: Sequence[Row]) -> Estimate:
        """The number over these rows, with its interval over seeds."""
        values = _combined(_log_ratio, *(_seed_values(rows, self.measure, p) for p in (self.at, self.base)))
        found = _over_seeds(rows, values)
        with np.errstate(over="ignore"):
            value, low, high = (float(v) for v in np.exp([found.value, found.low, found.high]))
        note = found.note
        if math.isnan(value) and found.n:
            note = _joined(note, f"a ratio needs numbers above 0 of {self.measure}")
        return Estimate(value, low, high, found.n, note)

    def __str__(self) -> str:
        return f"{self.measure} of {self.at} as a multiple of that of {self.base}"


@dataclass(frozen=True)
class Difference:
    """Difference in differences: mean over seeds of ``(at1 − base1) − (at2 − base2)``, paired by seed."""

    measure: str
    at1: At
    base1: At
    at2: At
    base2: At

    def estimate(self, rows: Sequence[Row]) -> Estimate:
        """The number over these rows, with its interval over seeds."""
        points = (self.at1, self.base1, self.at2, self.base2)
        values = _combined(lambda a, b, c, d: (a - b) - (c - d), *(_seed_values(rows, self.measure, p) for p in points))
        return _over_seeds(rows, values)

    def __str__(self) -> str:
        first, second = f"{self.at1} less that of {self.base1}", f"{self.at2} less that of {self.base2}"
        return f"({self.measure} of {first}) less ({self.measure} of {second})"


@dataclass(frozen=True)
class Trend:
    """Mean over seeds of Spearman's correlation of a measure with the level (or another measure) within an arm.

    A measure that does not vary has the trend 0.
    """

    measure: str
    arm: str
    against: str = "level"

    def estimate(self, rows: Sequence[Row]) -> Estimate:
        """The number over these rows, with its interval over seeds."""
        return _over_seeds(rows, _trends(rows, self.measure, self.arm, self.against))

    def __str__(self) -> str:
        return f"rank correlation of {self.measure} with {self.against} in {self.arm}"


@dataclass(frozen=True)
class TrendDifference:
    """Trend of an arm less the trend of another, paired by seed."""

    measure: str
    arm: str
    base_arm: str
    against: str = "level"

    def estimate(self, rows: Sequence[Row]) -> Estimate:
        """The number over these rows, with its interval over seeds."""
        both = (_trends(rows, self.measure, arm, self.against) for arm in (self.arm, self.base_arm))
        return _over_seeds(rows, _combined(lambda a, b: a - b, *both))

    def __str__(self) -> str:
        return f"rank correlation of {self.measure} with {self.against} in {self.arm} less that in {self.base_arm}"


@dataclass(frozen=True)
class MatchedChange:
    """Mean over seeds of a measure less what the control arm has at the same value of ``on``.

    The control's measure is interpolated linearly in ``on`` within the seed (equal values of ``on`` are averaged). A
    point outside the control's range has no value, never an extrapolated one; a seed with no such point has none.
    """

    measure: str
    on: str
    at: At
    control: str

    def estimate(self, rows: Sequence[Row]) -> Estimate:
        """The number over these rows, with its interval over seeds."""
        found = matched_changes(rows, self.measure, self.on, self.at, self.control)
        pairs = {s: [d for _, d in changes if d is not None] for s, changes in found.by_seed.items()}
        outside = sum(d is None for changes in found.by_seed.values() for _, d in changes)
        notes = list(found.notes)
        if outside:
            total = sum(map(len, found.by_seed.values()))
            notes.append(f"{outside} of {total} points are outside the range of {self.on} that {self.control} has")
        return _over_seeds(rows, PerSeed({s: float(np.mean(v)) for s, v in pairs.items() if v}, tuple(notes)))

    def __str__(self) -> str:
        return f"{self.measure} of {self.at} less that of {self.control} at equal {self.on}"


@dataclass(frozen=True)
class Correlation:
    """Correlation of two measures over the rows of some arms, given others.

    Pooled over seeds with a cluster bootstrap, or the mean over seeds of the correlation within each.
    """

    x: str
    y: str
    arms: tuple[str, ...]
    given: tuple[str, ...] = ()
    pooled: bool = True
    kind: Literal["spearman", "pearson"] = "spearman"

    def __post_init__(self) -> None:
        _check_arms(self.arms)
        if self.kind not in ("spearman", "pearson"):
            raise InputError("kind", got=repr(self.kind), needed="'spearman' or 'pearson'", fix="choose one")

    def estimate(self, rows: Sequence[Row]) -> Estimate:
        """The number over these rows, with its interval over seeds."""
        by_seed, notes = _whole_seeds(rows, self.arms, (self.x, self.y, *self.given))
        if self.pooled:
            return _bootstrapped(rows, by_seed, notes, self.of, bound=1.0)
        return _over_seeds(rows, PerSeed({s: self.of(mine) for s, mine in by_seed.items()}, notes))

    def of(self, rows: Sequence[Row]) -> float:
        """The correlation over these rows, whatever their seeds."""
        x, y, *given = (_column(rows, name) for name in (self.x, self.y, *self.given))
        return partial_spearman(x, y, given) if self.kind == "spearman" else partial_pearson(x, y, given)

    def __str__(self) -> str:
        name = "rank correlation" if self.kind == "spearman" else "correlation"
        given = f" given {', '.join(self.given)}" if self.given else ""
        how = "pooled over" if self.pooled else "within each seed of"
        return f"{name} of {self.x} with {self.y}{given}, {how} {', '.join(self.arms)}"


@dataclass(frozen=True)
class CorrelationDifference:
    """Spearman's ``corr(x, y) − corr(baseline, y)`` over the rows of some arms; cluster bootstrap over seeds."""

    x: str
    baseline: str
    y: str
    arms: tuple[str, ...]

    def __post_init__(self) -> None:
        _check_arms(self.arms)

    def estimate(self, rows: Sequence[Row]) -> Estimate:
        """The number over these rows, with its interval over seeds."""
        by_seed, notes = _whole_seeds(rows, self.arms, (self.x, self.baseline, self.y))
        return _bootstrapped(rows, by_seed, notes, self.of, bound=2.0)

    def of(self, rows: Sequence[Row]) -> float:
        """The difference over these rows, whatever their seeds."""
        x, baseline, y = (_column(rows, name) for name in (self.x, self.baseline, self.y))
        return spearman(x, y) - spearman(baseline, y)

    def __str__(self) -> str:
        pair = f"{self.x} with {self.y} less that of {self.baseline}"
        return f"rank correlation of {pair}, pooled over {', '.join(self.arms)}"


def _check_arms(arms: tuple[str, ...]) -> None:
    if not isinstance(arms, tuple) or not arms:
        raise InputError("arms", got=repr(arms), needed="a tuple of at least one name", fix="('spectral',) for one arm")


Statistic = (
    Mean | Change | Ratio | Difference | Trend | TrendDifference | MatchedChange | Correlation | CorrelationDifference
)


# ---------------------------------------------------------------- conditions, rules


@dataclass(frozen=True)
class Outcome:
    """What became of a condition. ``reason``: why it is open, and what was left out."""

    condition: Condition
    estimate: Estimate
    word: Literal["met", "refuted", "open"]
    reason: str = ""


@dataclass(frozen=True)
class Condition:
    """A statistic lies below or above a threshold."""

    name: str
    statistic: Statistic
    sense: Literal["<", ">"]
    threshold: float

    def __post_init__(self) -> None:
        if self.sense not in ("<", ">"):
            raise InputError("sense", got=repr(self.sense), needed="'<' or '>'", fix="choose one")
        if not math.isfinite(self.threshold):
            raise InputError("threshold", got=repr(self.threshold), needed="a finite number", fix="choose one")

    def outcome(self, rows: Sequence[Row]) -> Outcome:
        """Met: the whole interval is on the right side. Refuted: all of it on the other (which the threshold is on).

        Open where the interval holds the threshold, seeds are fewer than three, or there is no number.
        """
        found = self.statistic.estimate(rows)
        if found.n < MINIMUM_SEEDS:
            return Outcome(self, found, "open", _joined(f"{found.n} of at least {MINIMUM_SEEDS} seeds", found.note))
        if any(math.isnan(v) for v in (found.value, found.low, found.high)):
            return Outcome(self, found, "open", found.note or "no number")
        if self.sense == "<":
            met, refuted = found.high < self.threshold, found.low >= self.threshold
        else:
            met, refuted = found.low > self.threshold, found.high <= self.threshold
        if met:
            return Outcome(self, found, "met", found.note)
        if refuted:
            return Outcome(self, found, "refuted", found.note)
        return Outcome(self, found, "open", _joined("the interval holds the threshold", found.note))

    def __str__(self) -> str:
        return f"{self.name}: {self.statistic} {self.sense} {self.threshold:g}"


@dataclass(frozen=True)
class Verdict:
    """What a rule says of the rows, and why. The controls' outcomes are beside it and decide nothing."""

    word: Literal["supported", "not supported", "inconclusive"]
    outcomes: tuple[Outcome, ...]
    control_outcomes: tuple[Outcome, ...]


@dataclass(frozen=True)
class Rule:
    """Conditions that must all be met. Each has its own 95 % interval: there is no correction for their number."""

    conditions: tuple[Condition, ...]
    controls: tuple[Condition, ...] = ()

    def __post_init__(self) -> None:
        if not self.conditions:
            raise InputError("conditions", got="none", needed="at least one", fix="a rule without any is always met")
        names = [c.name for c in (*self.conditions, *self.controls)]
        if len(set(names)) != len(names):
            raise InputError("conditions", got=f"names {names}", needed="different names", fix="rename one")

    @property
    def hash(self) -> str:
        """SHA-256 over the rule and the code that computes it; comments and docstrings do not count."""
        content = {"rule": _plain(self), "code": CODE}
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def verdict(self, rows: Sequence[Row]) -> Verdict:
        """Supported: all conditions met. Not supported: any refuted. Else inconclusive.

        Raises
        ------
        InputError : rows that were run under another rule; rows of several studies or scales; the same cell twice.
        """
        mine = self.hash
        others = sorted({row.rule for row in rows} - {mine})
        if others:
            raise InputError(
                "rows",
                got=f"rows of other rules: {', '.join(h[:12] for h in others)}",
                needed=f"rows run under this rule, {mine[:12]}",
                fix="run the study again, or judge the rows by the rule they were run under",
            )
        if len({(row.study, row.scale) for row in rows}) > 1:
            got = sorted({(row.study, row.scale) for row in rows})
            raise InputError("rows", got=str(got), needed="one study at one scale", fix="pass the rows of one")
        outcomes = tuple(c.outcome(rows) for c in self.conditions)
        words = [o.word for o in outcomes]
        word = "supported" if set(words) == {"met"} else "not supported" if "refuted" in words else "inconclusive"
        return Verdict(word, outcomes, tuple(c.outcome(rows) for c in self.controls))


# ---------------------------------------------------------------- rows, by seed


@dataclass(frozen=True)
class PerSeed:
    """Something of each seed, and what is to be said about it."""

    by_seed: Mapping[int, Any]
    notes: tuple[str, ...] = ()


def rows_of_arm(rows: Sequence[Row], arm: str) -> PerSeed:
    """Seed → rows of the arm by level, of the seeds that have every level of it.

    Raises
    ------
    InputError : the same level and seed twice.
    """
    mine = sorted((r for r in rows if r.arm == arm), key=lambda r: (r.seed, r.level))
    if not mine:
        return PerSeed({}, (f"no rows of {arm!r}; there are {sorted({r.arm for r in rows})}",))
    levels = sorted({r.level for r in mine})
    by_seed: dict[int, list[Row]] = {}
    for row in mine:
        by_seed.setdefault(row.seed, []).append(row)
    for seed, found in by_seed.items():
        if len({r.level for r in found}) != len(found):
            raise InputError("rows", got=f"a level of {arm!r} twice, seed {seed}", needed="once", fix="drop one")
    return PerSeed({s: found for s, found in by_seed.items() if len(found) == len(levels)})


def rows_at(rows: Sequence[Row], at: At) -> PerSeed:
    """Seed → rows at a point (one row, or those of the whole arm)."""
    if at.level is None:
        return rows_of_arm(rows, at.arm)
    levels = sorted({r.level for r in rows if r.arm == at.arm})
    if not levels:
        return rows_of_arm(rows, at.arm)
    if isinstance(at.level, str):
        level = levels[0 if at.level == "first" else -1]
    else:
        wanted = float(at.level)
        level = min(levels, key=lambda v: abs(v - wanted))
        if not math.isclose(level, wanted, rel_tol=1e-9):
            return PerSeed({}, (f"no rows of {at.arm!r} at {wanted:g}; its levels are {levels}",))
    return rows_of_arm([r for r in rows if r.level == level], at.arm)


def matched_changes(rows: Sequence[Row], measure: str, on: str, at: At, control: str) -> PerSeed:
    """Seed → pairs (row at ``at``, its measure less the control's at equal ``on`` or None outside the control's range).

    See :class:`MatchedChange`; NaN where a number is missing or infinite.
    """
    points, curves = rows_at(rows, at), rows_of_arm(rows, control)
    notes = [*points.notes, *curves.notes]
    found: dict[int, list[tuple[Row, float | None]]] = {}
    for seed in sorted(set(points.by_seed) & set(curves.by_seed)):
        mine, curve = points.by_seed[seed], curves.by_seed[seed]
        lacking = _lacking([*mine, *curve], (on, measure), infinite=True)
        if lacking:
            notes += lacking
            found[seed] = [(row, math.nan) for row in mine]
            continue
        u, v = _column(curve, on), _column(curve, measure)
        knots = np.unique(u)
        heights = np.array([np.mean(v[u == k]) for k in knots])
        found[seed] = [
            (row, float(y - np.interp(x, knots, heights)) if knots[0] <= x <= knots[-1] else None)
            for row, x, y in zip(mine, _column(mine, on), _column(mine, measure), strict=True)
        ]
    return PerSeed(found, tuple(notes))


def _seed_values(rows: Sequence[Row], measure: str, at: At) -> PerSeed:
    """Seed → the measure at a point, or its mean over an arm."""
    points = rows_at(rows, at)
    values, notes = {}, list(points.notes)
    for seed, mine in points.by_seed.items():
        lacking = _lacking(mine, (measure,), infinite=True)
        notes += lacking
        values[seed] = math.nan if lacking else float(np.mean(_column(mine, measure)))
    return PerSeed(values, tuple(notes))


def _trends(rows: Sequence[Row], measure: str, arm: str, against: str) -> PerSeed:
    points = rows_of_arm(rows, arm)
    values, notes = {}, list(points.notes)
    for seed, mine in points.by_seed.items():
        lacking = _lacking(mine, (measure, against), infinite=False)
        x, y = _column(mine, against), _column(mine, measure)
        if lacking or len(set(x.tolist())) < 2:
            values[seed] = math.nan
            notes += lacking or [f"{against} does not vary in {arm}, seed {seed}"]
        else:
            values[seed] = 0.0 if len(set(y.tolist())) == 1 else spearman(x, y)
    return PerSeed(values, tuple(notes))


def _combined(formula: Callable[..., float], *parts: PerSeed) -> PerSeed:
    """Paired by seed: of the seeds that all parts have."""
    seeds = set.intersection(*(set(p.by_seed) for p in parts))
    notes = dict.fromkeys(note for p in parts for note in p.notes)
    return PerSeed({s: formula(*(p.by_seed[s] for p in parts)) for s in sorted(seeds)}, tuple(notes))


def _log_ratio(a: float, b: float) -> float:
    return math.log(a) - math.log(b) if a > 0 and b > 0 else math.nan


def _whole_seeds(
    rows: Sequence[Row], arms: Sequence[str], measures: Sequence[str]
) -> tuple[dict[int, list[Row]], tuple[str, ...]]:
    """Seed → its rows of all arms, of the seeds that have all of them."""
    parts = [rows_of_arm(rows, arm) for arm in dict.fromkeys(arms)]
    seeds = sorted(set.intersection(*(set(p.by_seed) for p in parts))) if parts else []
    by_seed = {s: [row for p in parts for row in p.by_seed[s]] for s in seeds}
    used = [row for mine in by_seed.values() for row in mine]
    return by_seed, (*(n for p in parts for n in p.notes), *_lacking(used, measures, infinite=False))


def _bootstrapped(
    rows: Sequence[Row],
    by_seed: Mapping[int, list[Row]],
    notes: tuple[str, ...],
    statistic: Callable[[Sequence[Row]], float],
    bound: float,
) -> Estimate:
    found = bootstrap_over_seeds([row for mine in by_seed.values() for row in mine], statistic, bound=bound)
    return _noted(rows, by_seed, notes, found)


def _over_seeds(rows: Sequence[Row], values: PerSeed) -> Estimate:
    return _noted(rows, values.by_seed, values.notes, mean_interval(list(values.by_seed.values())))


def _noted(rows: Sequence[Row], used: Mapping[int, Any], notes: tuple[str, ...], found: Estimate) -> Estimate:
    left_out = sorted({row.seed for row in rows} - set(used))
    said = [f"{len(left_out)} seeds left out: {', '.join(map(str, left_out))}"] if left_out else []
    said += notes[:3] + ((f"and {len(notes) - 3} more",) if len(notes) > 3 else ())
    return replace(found, note=_joined(found.note, *said))


def _column(rows: Sequence[Row], name: str) -> np.ndarray:
    return np.array([row.level if name == "level" else row.number(name) for row in rows], dtype=np.float64)


def _lacking(rows: Sequence[Row], measures: Sequence[str], *, infinite: bool) -> list[str]:
    """Where a measure has no number, in words; with ``infinite`` also where it has ±inf, which a mean cannot take."""
    said = []
    for name in measures:
        for row, value in zip(rows, _column(rows, name), strict=True):
            if math.isnan(value) or (infinite and math.isinf(value)):
                what = "missing" if math.isnan(value) else "infinite"
                said.append(f"{name} is {what}: {row.arm} at {row.level:g}, seed {row.seed}")
    return said


def _joined(*notes: str) -> str:
    return "; ".join(note for note in notes if note)


# ---------------------------------------------------------------- the hash


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {"type": type(value).__name__} | {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def normalised(source: str) -> str:
    """Python source without comments, layout and docstrings.

    A dump of the syntax tree that leaves out empty fields: ``ast.dump`` would name those that newer Pythons added, and
    the hash would be one of the interpreter too.

    >>> normalised("x = 1  # one") == normalised("x=1") != normalised("x = 2")
    True
    """
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            node.body = [statement for statement in node.body if not _is_text(statement)]
    return _dumped(tree)


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _dumped(node: Any) -> str:
    if isinstance(node, ast.AST):
        parts = [f"{name}={_dumped(v)}" for name, v in ast.iter_fields(node) if v is not None and v != []]
        return f"{type(node).__name__}({','.join(parts)})"
    if isinstance(node, list):
        return f"[{','.join(_dumped(v) for v in node)}]"
    return repr(node)


def _code() -> str:
    """Digest of the source of the statistics and of this module, as they were when they were imported."""
    texts = [Path(__file__).with_name(name).read_text(encoding="utf-8") for name in ("statistics.py", "rules.py")]
    return hashlib.sha256("\n".join(map(normalised, texts)).encode()).hexdigest()


CODE: Final = _code()

__all__ = [
    "CODE",
    "MINIMUM_SEEDS",
    "At",
    "Change",
    "Condition",
    "Correlation",
    "CorrelationDifference",
    "Difference",
    "MatchedChange",
    "Mean",
    "Outcome",
    "PerSeed",
    "Ratio",
    "Rule",
    "Statistic",
    "Trend",
    "TrendDifference",
    "Verdict",
    "matched_changes",
    "normalised",
    "rows_at",
    "rows_of_arm",
]
