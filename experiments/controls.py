"""What a reviewer asks of every study: matched comparisons, correlations beside baselines, checks of the attack.

Tables for the report. They decide nothing; what decides is a study's rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Final, Literal

from certbound.errors import InputError
from experiments.rules import At, Correlation, MatchedChange
from experiments.statistics import Estimate, bootstrap_over_seeds, mean_interval

if TYPE_CHECKING:
    from experiments.study import Row

Norm = Literal["inf", "2"]
NORMS: Final[tuple[Norm, ...]] = ("inf", "2")

BASELINES: Final = ("gradient", "frobenius_product", "spectral_product", "inf_product")
"""What bounds nothing and must be beaten; ``gradient`` is that of the norm."""

STRONGER: Final = 0.02
"""Robust accuracy by which no other attack, and no longer one, may be below APGD."""

BROKEN: Final = 0.05
"""Robust accuracy that an attack has to reach at the largest radius."""

_ROUNDING: Final = 1e-9


# ---------------------------------------------------------------- matched


@dataclass(frozen=True)
class Matched:
    """A point beside the control arm at equal ``on``: means over seeds, and the change with its interval."""

    arm: str
    level: float
    on: float
    value: float
    change: Estimate


def matched(rows: Sequence[Row], measure: str, on: str, control_arm: str) -> tuple[Matched, ...]:
    """Every point of the other arms, by arm and level: see :class:`experiments.rules.MatchedChange`.

    ``on``: ``"sa"``, ``"loss"``, ``"loss_train"`` … Where a point is outside the control's range in every seed, its
    change is NaN: there is nothing to compare it with.

    Raises
    ------
    InputError : there is no such arm.
    """
    arms = list(dict.fromkeys(row.arm for row in rows))
    if control_arm not in arms:
        raise InputError("control_arm", got=repr(control_arm), needed=f"one of {arms}", fix="name an arm of the rows")
    lines = []
    for arm in arms:
        if arm == control_arm:
            continue
        for level in sorted({row.level for row in rows if row.arm == arm}):
            mine = [row for row in rows if (row.arm, row.level) == (arm, level)]
            change = MatchedChange(measure, on, At(arm, level), control_arm).estimate(rows)
            lines.append(Matched(arm, level, _mean(mine, on), _mean(mine, measure), change))
    return tuple(lines)


def _mean(rows: Sequence[Row], measure: str) -> float:
    return mean_interval([row.number(measure) for row in rows]).value


# ---------------------------------------------------------------- correlations


@dataclass(frozen=True)
class Correlated:
    """Spearman's correlation of ``x`` with a measure: pooled, within seeds, pooled given others.

    ``rows``: those in ``pooled`` and ``within``. ``missing``: those left out because a number is missing.
    """

    x: str
    pooled: Estimate
    within: Estimate
    partial: Estimate
    rows: int
    missing: int


def predictors(rows: Sequence[Row], norm: Norm) -> tuple[str, ...]:
    """The bounds of the gap in a norm that some row has, in order of first appearance, then the baselines."""
    present = dict.fromkeys(name for row in rows for name, value in row.measures.items() if value is not None)
    bounds = [name for name in present if name.startswith(f"bound_{norm}/")]
    baselines = [f"gradient_{norm}" if name == "gradient" else name for name in BASELINES]
    return (*bounds, *(name for name in baselines if name in present))


def correlation_table(
    rows: Sequence[Row], y: str, xs: Sequence[str], given: Sequence[str] = ("sa",)
) -> tuple[Correlated, ...]:
    """A line for each of ``xs``, over the rows of all arms.

    Pooled correlations have cluster-bootstrap intervals over seeds; the mean of those within seeds has a t interval.
    Unlike in a rule, a row without one of the numbers is left out, and counted: a method that ran on few models has a
    line, of those models. A seed in which a correlation is undefined leaves the mean undefined.

    Raises
    ------
    InputError : ``y`` or an ``x`` is among ``given``; nothing remains of it then.
    """
    for x in (y, *xs):
        if x in given:
            raise InputError("given", got=f"{x!r} among {list(given)}", needed="other measures", fix="leave it out")
    return tuple(_correlated(rows, y, x, tuple(given)) for x in xs)


def _correlated(rows: Sequence[Row], y: str, x: str, given: tuple[str, ...]) -> Correlated:
    whole = tuple(row for row in rows if not any(math.isnan(row.number(name)) for name in (x, y)))
    arms = tuple(dict.fromkeys(row.arm for row in rows)) or ("none",)
    plain = Correlation(x, y, arms)
    seeds = sorted({row.seed for row in whole})
    within = mean_interval([plain.of([row for row in whole if row.seed == seed]) for seed in seeds])
    return Correlated(
        x=x,
        pooled=bootstrap_over_seeds(whole, plain.of, bound=1.0),
        within=within,
        partial=_partial(whole, replace(plain, given=given)),
        rows=len(whole),
        missing=len(rows) - len(whole),
    )


def _partial(rows: Sequence[Row], correlation: Correlation) -> Estimate:
    held = [row for row in rows if not any(math.isnan(row.number(name)) for name in correlation.given)]
    found = bootstrap_over_seeds(held, correlation.of, bound=1.0)
    if len(held) == len(rows):
        return found
    lacking = f"{len(rows) - len(held)} rows lack what is given"
    return replace(found, note=f"{found.note}; {lacking}" if found.note else lacking)


# ---------------------------------------------------------------- checks of the attack


@dataclass(frozen=True)
class Check:
    """A property that the numbers of a sound attack have. ``passed``: None where it was not measured.

    ``worst``: the number that is judged, where it is worst; it may be ``allowed`` at most. ``where``: that row.
    """

    name: str
    norm: Norm
    passed: bool | None
    worst: float
    allowed: float
    where: str
    rows: int

    def __str__(self) -> str:
        head = f"{'ℓ∞' if self.norm == 'inf' else 'ℓ2'}, {self.name}: "
        if self.passed is None:
            return head + "not measured"
        word = "yes" if self.passed else "NO"
        return f"{head}{word}; {self.worst:.3g} at worst ({self.where}), {self.allowed:.3g} allowed, {self.rows} rows"


def attack_checks(rows: Sequence[Row]) -> tuple[Check, ...]:
    """The checks in both norms; each is judged on the row where it is worst, not on a mean.

    At radius 0 robust accuracy is the clean one of the attacked samples; attack never raises accuracy; robust accuracy
    falls along the radii and the loss gap rises (by 2 % of it less at most: one run of an attack may be lucky); the
    largest radius breaks the model; neither Square nor points made for another model get 0.02 below APGD; twice the
    steps do not either. A curve that stays above 0.05 does not show a fault, but neither that there is none.
    """
    return tuple(check for norm in NORMS for check in _checks(rows, norm))


def _checks(rows: Sequence[Row], norm: Norm) -> tuple[Check, ...]:
    headline = f"ra_{norm}"

    def below_apgd(measure: str) -> Callable[[Row], float]:
        return lambda row: row.number(headline) - row.number(measure)

    properties: tuple[tuple[str, Callable[[Row], float], float], ...] = (
        ("RA at radius 0 is clean accuracy", lambda r: abs(r.number(f"ra_{norm}@0") - _clean(r, norm)), 0.0),
        ("RA never above clean accuracy", lambda r: r.number(f"ra_sa_{norm}") - 1.0, 0.0),
        ("RA falls along the radii", lambda r: _largest_step(_curve(r, headline)), 0.0),
        ("loss gap rises along the radii", lambda r: _largest_drop(_curve(r, f"gap_{norm}")), 0.02),
        ("RA at the largest radius is near 0", lambda r: _last(_curve(r, headline)), BROKEN),
        ("Square is not stronger than APGD", below_apgd(f"{headline}_square"), STRONGER),
        ("transferred points are not stronger than APGD", below_apgd(f"{headline}_transfer"), STRONGER),
        (
            "twice the steps change little",
            lambda r: abs(r.number(headline) - r.number(f"{headline}_double_steps")),
            STRONGER,
        ),
    )
    return tuple(_check(name, norm, rows, number, allowed) for name, number, allowed in properties)


def _check(name: str, norm: Norm, rows: Sequence[Row], number: Callable[[Row], float], allowed: float) -> Check:
    found = [(value, row) for row in rows if not math.isnan(value := number(row))]
    if not found:
        return Check(name, norm, None, math.nan, allowed, "", 0)
    worst, row = max(found, key=lambda pair: pair[0])
    where = f"{row.arm} at {row.level:g}, seed {row.seed}"
    return Check(name, norm, worst <= allowed + _ROUNDING, worst, allowed, where, len(found))


def _clean(row: Row, norm: Norm) -> float:
    """Clean accuracy of the attacked samples, which ``ra_sa`` divides by; ``sa`` is that of all test samples."""
    share = row.number(f"ra_sa_{norm}")
    if math.isnan(share):
        return row.number("sa")
    return row.number(f"ra_{norm}") / share if share > 0 else math.nan  # 0 of anything is 0


def _curve(row: Row, name: str) -> list[float]:
    """A measure along ascending radii; the missing ones left out."""
    head = f"{name}@"
    found = sorted((float(m.removeprefix(head)), row.number(m)) for m in row.measures if m.startswith(head))
    return [value for _, value in found if not math.isnan(value)]


def _largest_step(curve: Sequence[float]) -> float:
    return max((b - a for a, b in pairwise(curve)), default=math.nan)


def _largest_drop(curve: Sequence[float]) -> float:
    """Largest fall from one radius to the next, as a share of the larger value."""
    drops = [0.0 if b >= a else 1.0 - b / a if a > 0 else 1.0 for a, b in pairwise(curve)]
    return max(drops, default=math.nan)


def _last(curve: Sequence[float]) -> float:
    return curve[-1] if curve else math.nan


__all__ = [
    "BASELINES", "BROKEN", "NORMS", "STRONGER", "Check", "Correlated", "Matched", "attack_checks", "correlation_table",
    "matched", "predictors",
]  # fmt: skip
