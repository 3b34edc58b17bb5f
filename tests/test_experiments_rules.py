"""experiments.rules: numbers by hand, seeds paired, nothing decided without three, and a hash of rule and code."""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from certbound.errors import InputError
from experiments import rules
from experiments.rules import (
    At,
    Change,
    Condition,
    Correlation,
    CorrelationDifference,
    Difference,
    MatchedChange,
    Mean,
    Ratio,
    Rule,
    Trend,
    TrendDifference,
    normalised,
)
from experiments.statistics import bootstrap_over_seeds, mean_interval, partial_spearman, pearson, spearman
from experiments.study import Row

ROOT = Path(__file__).resolve().parents[1]
NAN, INF = math.nan, math.inf


def row(arm: str, level: float, seed: int, rule: str = "", **measures: float | None) -> Row:
    return Row("e00", "cpu", arm, level, seed, "k", rule, {}, measures, {}, {}, 0.0, "2026-01-01")


def table(arm: str, measure: str, values: dict[float, Sequence[float | None]]) -> list[Row]:
    """level → the measure of seeds 0, 1, …"""
    return [row(arm, level, seed, **{measure: v}) for level, mine in values.items() for seed, v in enumerate(mine)]


def numbers(found: Any) -> tuple[float, float, float, int]:
    return found.value, found.low, found.high, found.n


# ---------------------------------------------------------------- each statistic, by hand


RA = table("low", "ra", {1.0: [0.8, 0.7, 0.9], 2.0: [0.5, 0.5, 0.6]}) + table("wide", "ra", {1.0: [0.9, 0.9, 0.9]})


def test_mean_at_a_level_the_ends_and_the_whole_arm() -> None:
    assert numbers(Mean("ra", At("low", 1.0)).estimate(RA)) == numbers(mean_interval([0.8, 0.7, 0.9]))
    assert Mean("ra", At("low", "first")).estimate(RA) == Mean("ra", At("low", 1)).estimate(RA)
    assert Mean("ra", At("low", "last")).estimate(RA).value == pytest.approx(1.6 / 3)
    # the whole arm: .65, .6, .75 of the three seeds, not six numbers
    assert numbers(Mean("ra", At("low")).estimate(RA)) == pytest.approx(numbers(mean_interval([0.65, 0.6, 0.75])))


def test_change_is_paired_by_seed() -> None:
    found = Change("ra", At("low", 2.0), At("low", 1.0)).estimate(RA)
    assert numbers(found) == pytest.approx(numbers(mean_interval([-0.3, -0.2, -0.3])))
    assert found.high < 0  # unpaired: .533 ± .14 and .8 ± .25 would overlap
    assert Change("ra", At("low", 2.0), At("wide")).estimate(RA).value == pytest.approx(-(0.4 + 0.4 + 0.3) / 3)


def test_ratio_is_a_geometric_mean() -> None:
    rows = table("a", "c", {0.0: [1.0, 2.0, 4.0], 1.0: [2.0, 8.0, 16.0]})
    found = Ratio("c", At("a", 1.0), At("a", 0.0)).estimate(rows)
    logs = mean_interval(np.log([2.0, 4.0, 4.0]))
    assert found.value == pytest.approx(32 ** (1 / 3))
    assert (found.low, found.high) == pytest.approx((math.exp(logs.low), math.exp(logs.high)))


@pytest.mark.parametrize("bad", [0.0, -1.0])
def test_ratio_needs_positive_numbers(bad: float) -> None:
    rows = table("a", "c", {0.0: [1.0, bad, 4.0], 1.0: [2.0, 8.0, 16.0]})
    for at, base in ((1.0, 0.0), (0.0, 1.0)):
        found = Ratio("c", At("a", at), At("a", base)).estimate(rows)
        assert math.isnan(found.value) and math.isnan(found.low) and "above 0" in found.note


def test_ratio_beyond_all_floats() -> None:
    rows = table("a", "c", {0.0: [1e-300] * 3, 1.0: [1e300] * 3})
    assert Ratio("c", At("a", 1.0), At("a", 0.0)).estimate(rows).value == INF


def test_difference_in_differences() -> None:
    rows = RA + table("wide", "ra", {2.0: [0.8, 0.7, 0.7]})
    found = Difference("ra", At("low", 2), At("low", 1), At("wide", 2), At("wide", 1)).estimate(rows)
    assert numbers(found) == pytest.approx(numbers(mean_interval([-0.3 + 0.1, -0.2 + 0.2, -0.3 + 0.2])))


def test_trend() -> None:
    rows = table("a", "ra", {1.0: [4.0, 4.0, 1.0], 2.0: [3.0, 3.0, 1.0], 3.0: [2.0, 2.5, 1.0], 9.0: [1.0, 2.7, 1.0]})
    # −1; (1, 2, 3, 4) against (4, 3, 1, 2) gives 1 − 6·18/60 = −.8; a constant has no trend: 0
    found = Trend("ra", "a").estimate(rows)
    assert numbers(found) == pytest.approx(numbers(mean_interval([-1.0, -0.8, 0.0])))
    assert Trend("ra", "a").estimate(random.Random(0).sample(rows, len(rows))) == found  # order is nothing


def test_trend_against_a_measure_and_of_infinities() -> None:
    rows = [row("a", i, s, k=(3 - i) ** 2, b=v) for s in range(3) for i, v in enumerate([-INF, 1.0, INF])]
    assert numbers(Trend("b", "a").estimate(rows)) == (1, 1, 1, 3)
    assert numbers(Trend("b", "a", against="k").estimate(rows)) == (-1, -1, -1, 3)
    flat = Trend("b", "a", against="c").estimate([replace(r, measures={**r.measures, "c": 1.0}) for r in rows])
    assert math.isnan(flat.value) and "does not vary" in flat.note
    alone = Trend("b", "a").estimate([r for r in rows if r.level == 0])
    assert math.isnan(alone.value) and "does not vary" in alone.note  # one level: no trend, not even 0


def test_trend_difference() -> None:
    rows = table("a", "ra", {1.0: [3, 3, 3], 2.0: [2, 2, 1], 3.0: [1, 1, 2]})
    rows += table("b", "ra", {1.0: [1, 1, 1], 2.0: [1, 2, 2], 3.0: [1, 3, 3]})
    found = TrendDifference("ra", "a", "b").estimate(rows)
    assert numbers(found) == pytest.approx(numbers(mean_interval([-1 - 0, -1 - 1, -0.5 - 1])))


# ---------------------------------------------------------------- matched


def curve(seed: int, points: list[tuple[float, float]], arm: str = "control") -> list[Row]:
    return [row(arm, i, seed, sa=u, ra=v) for i, (u, v) in enumerate(points)]


def test_matched_change_interpolates_within_the_seed() -> None:
    rows = [
        *curve(0, [(0.9, 0.6), (0.8, 0.4)]),  # .85 → .5; by level, not by sa: it has to be sorted
        *curve(1, [(0.5, 0.1), (0.9, 0.5)]),  # .6 → .2
        *curve(2, [(0.7, 0.2), (0.7, 0.4)]),  # equal sa: their mean, .3
    ]
    rows += [row("low", 0, s, sa=sa, ra=ra) for s, (sa, ra) in enumerate([(0.85, 0.45), (0.6, 0.3), (0.7, 0.0)])]
    found = MatchedChange("ra", "sa", At("low", 0), "control").estimate(rows)
    assert numbers(found) == pytest.approx(numbers(mean_interval([-0.05, 0.1, -0.3])))
    assert found.note == ""


def test_matched_change_never_extrapolates() -> None:
    rows = [r for s in range(5) for r in curve(s, [(0.6, 0.2), (0.8, 0.4)])]
    at = {0: 0.8, 1: 0.6, 2: 0.7, 3: 0.81, 4: 0.59}  # the ends belong to the range; .81 and .59 do not
    rows += [row("low", 0, s, sa=sa, ra=0.0) for s, sa in at.items()]
    found = MatchedChange("ra", "sa", At("low", 0), "control").estimate(rows)
    assert numbers(found) == pytest.approx(numbers(mean_interval([-0.4, -0.2, -0.3])))
    assert "2 of 5 points are outside" in found.note and "2 seeds left out: 3, 4" in found.note


def test_matched_change_of_a_whole_arm_takes_the_levels_that_match() -> None:
    rows = [r for s in range(3) for r in curve(s, [(0.6, 0.2), (0.8, 0.4)])]
    rows += [row("low", i, s, sa=sa, ra=0.5) for s in range(3) for i, sa in enumerate([0.7, 0.8, 0.9])]
    found = MatchedChange("ra", "sa", At("low"), "control").estimate(rows)
    assert numbers(found) == pytest.approx((0.15, 0.15, 0.15, 3))  # .2 and .1; sa .9 has no match
    assert "3 of 9" in found.note


@pytest.mark.parametrize("bad", [NAN, INF, None])
@pytest.mark.parametrize("where", ["low", "control"])
@pytest.mark.parametrize("measure", ["sa", "ra"])
def test_matched_change_of_missing_numbers(bad: float | None, where: str, measure: str) -> None:
    rows = [r for s in range(4) for r in curve(s, [(0.6, 0.2), (0.8, 0.4)])]
    rows += [row("low", 0, s, sa=0.7, ra=0.0) for s in range(4)]
    broken = [
        replace(r, measures={**r.measures, measure: bad}) if (r.arm, r.level, r.seed) == (where, 0, 1) else r
        for r in rows
    ]
    statistic = MatchedChange("ra", "sa", At("low", 0), "control")
    assert statistic.estimate(rows).value == pytest.approx(-0.3)
    found = statistic.estimate(broken)
    assert math.isnan(found.value) and found.n == 4
    assert f"{measure} is {'infinite' if bad == INF else 'missing'}: {where} at 0, seed 1" in found.note


# ---------------------------------------------------------------- correlations


def cloud(seeds: int = 5, levels: int = 6) -> list[Row]:
    rng = np.random.default_rng(0)
    rows = []
    for s in range(seeds):
        for arm in ("a", "b", "other"):
            for i in range(levels):
                z = rng.normal()
                x, y, base = z + rng.normal(), z + rng.normal() + s, rng.normal()
                rows.append(row(arm, i, s, x=x, y=y, z=z, base=base))
    return rows


def test_pooled_correlation() -> None:
    rows = cloud()
    mine = [r for r in rows if r.arm != "other"]
    x, y, z = ([r.number(m) for r in mine] for m in "xyz")
    for statistic, value in (
        (Correlation("x", "y", ("a", "b")), spearman(x, y)),
        (Correlation("x", "y", ("a", "b"), kind="pearson"), pearson(x, y)),
        (Correlation("x", "y", ("a", "b"), given=("z",)), partial_spearman(x, y, [z])),
    ):
        found = statistic.estimate(rows)
        assert found.value == pytest.approx(value, abs=1e-12)
        expected = bootstrap_over_seeds(mine, statistic.of, bound=1.0)
        assert numbers(found) == pytest.approx(numbers(expected))
        assert -1 < found.low < found.value < found.high < 1


def test_correlation_within_seeds_is_not_the_pooled_one() -> None:
    """Simpson: within each seed y falls with x; over the seeds both rise together."""
    rows = [row("a", i, s, x=10 * s + i, y=10 * s - i) for s in range(4) for i in range(4)]
    within = Correlation("x", "y", ("a",), pooled=False).estimate(rows)
    assert numbers(within) == (-1, -1, -1, 4)
    assert Correlation("x", "y", ("a",)).estimate(rows).value > 0.8


def test_correlation_difference() -> None:
    rows = cloud()
    mine = [r for r in rows if r.arm == "a"]
    x, y, base = ([r.number(m) for r in mine] for m in ("x", "y", "base"))
    found = CorrelationDifference("x", "base", "y", ("a",)).estimate(rows)
    assert found.value == pytest.approx(spearman(x, y) - spearman(base, y), abs=1e-12)
    assert -2 < found.low < found.value < found.high < 2
    expected = bootstrap_over_seeds(mine, CorrelationDifference("x", "base", "y", ("a",)).of, bound=2.0)
    assert numbers(found) == pytest.approx(numbers(expected))


@pytest.mark.parametrize("statistic", [Correlation("x", "y", ("a",)), CorrelationDifference("x", "base", "y", ("a",))])
def test_correlation_of_infinite_and_missing_measures(statistic: Correlation | CorrelationDifference) -> None:
    rows = cloud()
    first = rows[0]
    assert first.arm == "a"
    infinite = [replace(first, measures={**first.measures, "x": INF}), *rows[1:]]
    largest = [replace(first, measures={**first.measures, "x": 1e9}), *rows[1:]]
    assert statistic.estimate(infinite) == statistic.estimate(largest)
    for bad in (NAN, None):
        found = statistic.estimate([replace(first, measures={**first.measures, "x": bad}), *rows[1:]])
        assert math.isnan(found.value) and "x is missing: a at 0, seed 0" in found.note
    pearsons = Correlation("x", "y", ("a",), kind="pearson").estimate(infinite)
    assert math.isnan(pearsons.value)


def test_arms_are_a_tuple_of_names() -> None:
    for make in (lambda a: Correlation("x", "y", a), lambda a: CorrelationDifference("x", "z", "y", a)):
        for bad in ((), "low"):
            with pytest.raises(InputError, match="arms"):
                make(bad)


# ---------------------------------------------------------------- seeds, levels, what is missing


def test_unequal_seeds_are_dropped_and_counted() -> None:
    rows = [row("a", 0, s, ra=0.5) for s in (0, 1, 2, 3)] + [row("a", 1, s, ra=0.1 * s) for s in (1, 2, 3, 4)]
    found = Change("ra", At("a", 1), At("a", 0)).estimate(rows)
    assert numbers(found) == pytest.approx(numbers(mean_interval([-0.4, -0.3, -0.2])))
    assert "2 seeds left out: 0, 4" in found.note
    # a whole arm and a trend take only the seeds that have every level
    assert Mean("ra", At("a")).estimate(rows).n == Trend("ra", "a").estimate(rows).n == 3
    assert Correlation("level", "ra", ("a",)).estimate(rows).n == 3


def test_missing_numbers_are_not_dropped() -> None:
    """A measure that has no number in one seed decides nothing: runs fail for reasons of their result."""
    for bad, word in ((None, "missing"), (NAN, "missing"), (INF, "infinite"), (-INF, "infinite")):
        rows = table("a", "ra", {0.0: [0.5, 0.5, bad, 0.5], 1.0: [0.1] * 4})
        for statistic in (Mean("ra", At("a", 0)), Change("ra", At("a", 1), At("a", 0)), Mean("ra", At("a"))):
            found = statistic.estimate(rows)
            assert math.isnan(found.value) and found.n == 4
            assert f"ra is {word}: a at 0, seed 2" in found.note
            outcome = Condition("c", statistic, "<", 1.0).outcome(rows)
            assert outcome.word == "open" and word in outcome.reason
    trend = Trend("ra", "a").estimate(table("a", "ra", {0.0: [0.5, None, 0.5], 1.0: [0.1] * 3}))
    assert math.isnan(trend.value) and "ra is missing: a at 0, seed 1" in trend.note
    found = Mean("absent", At("a", 0)).estimate(table("a", "ra", {0.0: [0.1] * 6}))
    assert "absent is missing: a at 0, seed 0" in found.note and "and 3 more" in found.note


def test_points_that_do_not_exist() -> None:
    for at, said in ((At("b"), "no rows of 'b'; there are ['a']"), (At("a", 7), "its levels are [0.0]")):
        found = Mean("ra", at).estimate(table("a", "ra", {0.0: [0.1] * 3}))
        assert found.n == 0 and math.isnan(found.value) and said in found.note
    assert Mean("ra", At("a", "last")).estimate([]).n == 0
    assert Trend("ra", "a").estimate([]).n == Correlation("x", "y", ("a",)).estimate([]).n == 0


def test_levels_are_equal_up_to_rounding() -> None:
    rows = table("a", "ra", {0.1 * 3: [0.1] * 3, 0.3001: [0.9] * 3})
    assert Mean("ra", At("a", 0.3)).estimate(rows).value == 0.1
    assert Mean("ra", At("a", 0.30005)).estimate(rows).n == 0


def test_the_same_cell_twice_is_refused() -> None:
    rows = table("a", "ra", {0.0: [0.1] * 3})
    for statistic in (Mean("ra", At("a", 0)), Trend("ra", "a"), Correlation("level", "ra", ("a",))):
        with pytest.raises(InputError, match="twice"):
            statistic.estimate([*rows, rows[1]])


def test_nonsense_is_refused() -> None:
    mean = Mean("ra", At("a"))
    fine = Condition("c", mean, "<", 0.0)
    for make, said in (
        (lambda: At("a", "middle"), "level"),  # type: ignore[arg-type]
        (lambda: Condition("c", mean, "=", 0.0), "sense"),  # type: ignore[arg-type]
        (lambda: Condition("c", mean, "<", NAN), "threshold"),
        (lambda: Condition("c", mean, "<", INF), "threshold"),
        (lambda: Correlation("x", "y", ("a",), kind="kendall"), "kind"),  # type: ignore[arg-type]
        (lambda: Rule(()), "conditions"),
        (lambda: Rule((fine,), controls=(fine,)), "names"),
    ):
        with pytest.raises(InputError, match=said):
            make()


# ---------------------------------------------------------------- outcomes


def spread(centre: float, half: float) -> list[Row]:
    """Three seeds whose interval is [centre − half, centre + half]."""
    step = half / (4.302652729911275 / math.sqrt(3))
    return table("a", "ra", {0.0: [centre - step, centre, centre + step]})


@pytest.mark.parametrize(
    ("sense", "centre", "half", "word"),
    [
        ("<", -1.0, 0.5, "met"),
        ("<", 1.0, 0.5, "refuted"),
        ("<", 0.1, 0.5, "open"),
        ("<", -0.1, 0.5, "open"),
        (">", 1.0, 0.5, "met"),
        (">", -1.0, 0.5, "refuted"),
        (">", 0.1, 0.5, "open"),
    ],
)
def test_outcome_is_that_of_the_whole_interval(sense: Any, centre: float, half: float, word: str) -> None:
    outcome = Condition("c", Mean("ra", At("a")), sense, 0.0).outcome(spread(centre, half))
    assert outcome.word == word
    assert (outcome.reason == "the interval holds the threshold") == (word == "open")


@pytest.mark.parametrize("seeds", [3, 5, 7])
@pytest.mark.parametrize("sense", ["<", ">"])
def test_touching_the_threshold_is_not_being_beyond_it(sense: Any, seeds: int) -> None:
    rows = table("a", "ra", {0.0: [0.1] * seeds})
    assert Condition("c", Mean("ra", At("a")), sense, 0.1).outcome(rows).word == "refuted"
    beyond = math.nextafter(0.1, 1.0 if sense == "<" else 0.0)
    assert Condition("c", Mean("ra", At("a")), sense, beyond).outcome(rows).word == "met"


def test_interval_that_ends_at_the_threshold() -> None:
    found = Mean("ra", At("a")).estimate(rows := spread(1.0, 0.5))
    below, above = (Condition("c", Mean("ra", At("a")), s, found.low) for s in ("<", ">"))
    assert below.outcome(rows).word == "refuted"  # touching it from the wrong side
    assert above.outcome(rows).word == "open"  # the threshold itself is in the interval
    assert Condition("c", Mean("ra", At("a")), "<", found.high).outcome(rows).word == "open"
    assert Condition("c", Mean("ra", At("a")), ">", found.high).outcome(rows).word == "refuted"


@pytest.mark.parametrize("seeds", [0, 1, 2, 3])
def test_fewer_than_three_seeds_decide_nothing(seeds: int) -> None:
    rows = table("a", "ra", {0.0: [0.1] * seeds})
    outcome = Condition("c", Mean("ra", At("a")), "<", 0.5).outcome(rows)
    assert outcome.word == ("met" if seeds == 3 else "open")
    assert (f"{seeds} of at least 3 seeds" in outcome.reason) == (seeds < 3)


# each statistic: rows whose number goes from clearly negative over undecided to clearly positive with `sign`
NOISE = (0.5, -0.5, 0.1, -0.1, 0.3)


def sloped(sign: float) -> list[Row]:
    rng = np.random.default_rng(1)
    rows = []
    for s in range(5):
        for i in range(5):
            clear = {"ra": sign * i + 0.1 * NOISE[(s + i) % 5], "x": float(i), "base": -1.0 * i, "sa": 1.0 * i}
            noise = {"ra": float(rng.normal()), "x": float(rng.normal()), "base": float(rng.normal()), "sa": 1.0 * i}
            rows += [row("a", i, s, **(clear if sign else noise), c=math.exp(clear["ra"] if sign else rng.normal()))]
            rows += [row("b", i, s, ra=0.01 * NOISE[(s * i) % 5], sa=1.0 * i, x=float(i), base=0.0)]
    return rows


LAST, FIRST, OTHER, OTHER_FIRST = At("a", "last"), At("a", "first"), At("b", "last"), At("b", "first")


@pytest.mark.parametrize(
    "statistic",
    [
        Mean("ra", LAST),
        Change("ra", LAST, FIRST),
        Ratio("c", LAST, FIRST),
        Difference("ra", LAST, FIRST, OTHER, OTHER_FIRST),
        Trend("ra", "a"),
        TrendDifference("ra", "a", "b"),
        MatchedChange("ra", "sa", LAST, "b"),
        Correlation("x", "ra", ("a",)),
        Correlation("x", "ra", ("a",), pooled=False),
        Correlation("x", "ra", ("a",), kind="pearson"),
        CorrelationDifference("x", "base", "ra", ("a",)),
    ],
    ids=lambda s: type(s).__name__,
)
@pytest.mark.parametrize(
    ("sign", "words"), [(1.0, ("refuted", "met")), (-1.0, ("met", "refuted")), (0.0, ("open", "open"))]
)
def test_every_statistic_has_every_outcome(statistic: Any, sign: float, words: tuple[str, str]) -> None:
    threshold = 1.0 if isinstance(statistic, Ratio) else 0.0
    rows = sloped(sign)
    assert tuple(Condition("c", statistic, s, threshold).outcome(rows).word for s in ("<", ">")) == words
    text = str(Condition("name", statistic, "<", 0.25))
    assert text.startswith("name: ") and text.endswith(" < 0.25") and "object at" not in text


# ---------------------------------------------------------------- verdicts


FALLS = Condition("RA falls", Change("ra", At("a", 1), At("a", 0)), "<", 0.0)
HIGH = Condition("RA is high at first", Mean("ra", At("a", 0)), ">", 0.5)
CONTROL = Condition("RA at the end", Mean("ra", At("a", 1)), ">", 0.9)


def under(rule: Rule, rows: list[Row]) -> list[Row]:
    return [replace(r, rule=rule.hash) for r in rows]


@pytest.mark.parametrize(
    ("first", "last", "word"),
    [
        ([0.8, 0.81, 0.82], [0.1, 0.11, 0.13], "supported"),
        ([0.8, 0.81, 0.82], [0.9, 0.91, 0.93], "not supported"),  # RA rises
        ([0.3, 0.31, 0.32], [0.1, 0.11, 0.13], "not supported"),  # one refuted is enough
        ([0.2, 0.5, 0.9], [0.1, 0.41, 0.79], "inconclusive"),  # met and open
        ([0.3, 0.31, 0.32], [0.1, 0.3, 0.4], "not supported"),  # refuted and open
        ([0.8, 0.9], [0.1, 0.2], "inconclusive"),
    ],
)
def test_verdict(first: list[float], last: list[float], word: str) -> None:
    rule = Rule((FALLS, HIGH), controls=(CONTROL,))
    verdict = rule.verdict(under(rule, table("a", "ra", {0.0: first, 1.0: last})))
    assert verdict.word == word
    assert [o.condition for o in verdict.outcomes] == [FALLS, HIGH]
    assert [o.condition for o in verdict.control_outcomes] == [CONTROL]


def test_controls_decide_nothing() -> None:
    rows = table("a", "ra", {0.0: [0.8, 0.81, 0.82], 1.0: [0.1, 0.11, 0.13]})
    rule = Rule((FALLS,), controls=(CONTROL,))
    verdict = rule.verdict(under(rule, rows))
    assert verdict.control_outcomes[0].word == "refuted"
    assert verdict.word == "supported"


def test_rows_of_another_rule_are_refused() -> None:
    rule, other = Rule((FALLS,)), Rule((replace(FALLS, threshold=0.1),))
    rows = under(rule, table("a", "ra", {0.0: [0.8] * 3, 1.0: [0.1] * 3}))
    assert rule.verdict(rows).word == "supported"
    for bad in (under(other, rows), [*rows[:-1], replace(rows[-1], rule=other.hash)], [replace(rows[0], rule="")]):
        with pytest.raises(InputError, match="other rules"):
            rule.verdict(bad)
    with pytest.raises(InputError, match=rule.hash[:12]):
        rule.verdict(under(other, rows))


def test_rows_of_two_studies_or_scales_are_refused() -> None:
    rule = Rule((FALLS,))
    rows = under(rule, table("a", "ra", {0.0: [0.8] * 3, 1.0: [0.1] * 3}))
    for change in ({"scale": "paper"}, {"study": "e99"}):
        with pytest.raises(InputError, match="one study"):
            rule.verdict([*rows[:-1], replace(rows[-1], **change)])


def test_no_rows_are_inconclusive() -> None:
    verdict = Rule((FALLS,)).verdict([])
    assert verdict.word == "inconclusive"
    assert "0 of at least 3 seeds" in verdict.outcomes[0].reason


# ---------------------------------------------------------------- the hash


BASE = Rule((FALLS, HIGH), controls=(CONTROL,))


@pytest.mark.parametrize(
    "other",
    [
        Rule((replace(FALLS, threshold=1e-12), HIGH), (CONTROL,)),
        Rule((replace(FALLS, sense=">"), HIGH), (CONTROL,)),
        Rule((replace(FALLS, name="RA drops"), HIGH), (CONTROL,)),
        Rule((replace(FALLS, statistic=Change("ra_2", At("a", 1), At("a", 0))), HIGH), (CONTROL,)),
        Rule((replace(FALLS, statistic=Ratio("ra", At("a", 1), At("a", 0))), HIGH), (CONTROL,)),
        Rule((replace(FALLS, statistic=Change("ra", At("a", 2), At("a", 0))), HIGH), (CONTROL,)),
        Rule((replace(FALLS, statistic=Change("ra", At("a", "last"), At("a", 0))), HIGH), (CONTROL,)),
        Rule((HIGH, FALLS), (CONTROL,)),
        Rule((FALLS, HIGH, CONTROL)),
        Rule((FALLS,), (HIGH, CONTROL)),
        Rule((FALLS, HIGH)),
    ],
    ids=range(11),
)
def test_hash_changes_with_the_rule(other: Rule) -> None:
    assert other.hash != BASE.hash


def test_hash_is_that_of_an_equal_rule() -> None:
    same = Rule(
        (
            Condition("RA falls", Change("ra", At("a", 1.0), At("a", 0.0)), "<", 0),
            Condition("RA is high at first", Mean("ra", At("a", 0)), ">", 0.5),
        ),
        controls=(CONTROL,),
    )
    assert same.hash == BASE.hash
    assert len(BASE.hash) == 64


def hash_with(folder: Path, **sources: str) -> str:
    """The hash of one rule in a fresh interpreter that imports these sources."""
    package = folder / "experiments"
    package.mkdir()
    (package / "__init__.py").touch()
    for name, text in sources.items():
        (package / f"{name}.py").write_text(text, encoding="utf-8")
    program = (
        "from experiments.rules import *\n"
        "print(Rule((Condition('c', Mean('ra', At('a')), '<', 0.0),)).hash)\n"
    )
    paths = os.pathsep.join([str(folder), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths},
    )
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("name", "old", "new", "equal"),
    [
        ("statistics", "\n", "\n", True),
        ("statistics", "LEVEL: Final = 0.95", "LEVEL: Final = 0.90", False),
        ("statistics", "ddof=1", "ddof=0", False),
        ("rules", "found.low >= self.threshold", "found.low > self.threshold", False),
        ("rules", "MINIMUM_SEEDS: Final = 3", "MINIMUM_SEEDS: Final = 2", False),
        ("statistics", '"""Numbers with 95 % intervals.', '"""Other words.', True),
        ("statistics", "LEVEL: Final = 0.95", "LEVEL: Final = 0.95  # as everywhere", True),
        ("rules", '"""With fewer seeds nothing is decided."""', "", True),
        ("rules", "def _plain(", "# a comment\n\n\ndef _plain(", True),
    ],
)
def test_hash_holds_the_code_and_not_its_comments(tmp_path: Path, name: str, old: str, new: str, equal: bool) -> None:
    sources = {n: (ROOT / "experiments" / f"{n}.py").read_text(encoding="utf-8") for n in ("statistics", "rules")}
    assert old in sources[name]
    changed = hash_with(tmp_path, **{**sources, name: sources[name].replace(old, new, 1)})
    here = Rule((Condition("c", Mean("ra", At("a")), "<", 0.0),)).hash
    assert (changed == here) == equal


def test_normalised_source() -> None:
    plain = "def f(x):\n    return x + 1\n"
    assert normalised('def f(x):\n    """Adds."""\n    # one\n    return (x+1)') == normalised(plain)
    assert normalised('"""Module."""\n\nclass A:\n    """Words."""\n    a: int = 1\n    """More."""\n') == normalised(
        "class A:\n    a: int = 1"
    )
    for other in ("x - 1", "x + 2", "x + 1.0", "y + 1", "x + '1'", "x + None", "None", ""):
        assert normalised(plain.replace("x + 1", other)) != normalised(plain)
    assert normalised("x = 'text'") != normalised("x = 'other'")  # a text with a use is no docstring


def test_code_is_that_of_both_files() -> None:
    assert rules.CODE == rules._code()
    assert len(rules.CODE) == 64
