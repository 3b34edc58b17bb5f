"""experiments.controls: matched tables, correlations beside baselines, and faults of an attack that its checks find."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from certbound.errors import InputError
from experiments.controls import Check, attack_checks, correlation_table, matched, predictors
from experiments.rules import At, Correlation, MatchedChange
from experiments.statistics import mean_interval, partial_spearman, spearman
from experiments.study import Row

INF, NAN = math.inf, math.nan


def row(arm: str, level: float, seed: int, measures: dict[str, float | None]) -> Row:
    return Row("e00", "cpu", arm, level, seed, "k", "r", {}, measures, {}, {}, 0.0, "2026-01-01")


def without(measures: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: v for name, v in measures.items() if name not in names}


# ---------------------------------------------------------------- matched


def matched_rows() -> list[Row]:
    """Control: RA = sa − .4 along sa .6 … .8; rank 4 is .1 below that line, rank 2 beyond its range in every seed."""
    rows = [
        row("dense", i, s, {"sa": sa + 0.01 * s, "ra": sa + 0.01 * s - 0.4, "loss": 1 - sa})
        for s in range(4)
        for i, sa in enumerate([0.6, 0.7, 0.8])
    ]
    for s in range(4):
        rows.append(row("rank", 4, s, {"sa": 0.75 + 0.01 * s, "ra": 0.25 + 0.02 * s, "loss": 0.25}))
        rows.append(row("rank", 2, s, {"sa": 0.5, "ra": 0.1, "loss": 0.5}))
    return rows


def test_matched_table() -> None:
    low, high = matched(matched_rows(), "ra", "sa", "dense")
    assert (low.arm, low.level, high.arm, high.level) == ("rank", 2, "rank", 4)
    assert high.on == pytest.approx(0.765) and high.value == pytest.approx(0.28)
    expected = mean_interval([-0.1, -0.09, -0.08, -0.07])
    assert (high.change.value, high.change.low, high.change.high) == pytest.approx(
        (expected.value, expected.low, expected.high)
    )
    assert low.value == pytest.approx(0.1)  # the point itself is shown
    assert math.isnan(low.change.value) and low.change.n == 0 and "4 of 4 points are outside" in low.change.note
    assert high.change == MatchedChange("ra", "sa", At("rank", 4), "dense").estimate(matched_rows())


def test_matched_on_another_measure_and_with_other_arms() -> None:
    rows = [*matched_rows(), *(row("wide", 1, s, {"sa": 0.7, "ra": 0.3, "loss": 0.3}) for s in range(4))]
    table = matched(rows, "ra", "loss", "dense")
    assert [(line.arm, line.level) for line in table] == [("rank", 2), ("rank", 4), ("wide", 1)]
    # at loss .25 the control has .35 + .01 s
    expected = mean_interval([0.25 + 0.02 * s - 0.35 - 0.01 * s for s in range(4)])
    assert table[1].change.value == pytest.approx(expected.value)


def test_matched_needs_its_control_arm() -> None:
    with pytest.raises(InputError, match="control_arm"):
        matched(matched_rows(), "ra", "sa", "sparse")


# ---------------------------------------------------------------- correlations


def bound_rows(seeds: int = 5, levels: int = 8) -> list[Row]:
    """The gap is what SA is, and noise; the bound knows SA only; the gradient norm knows the gap."""
    rng = np.random.default_rng(0)
    rows = []
    for s in range(seeds):
        for i in range(levels):
            sa = float(rng.normal())
            gap = sa + 0.7 * float(rng.normal()) + 0.3 * s
            measures = {
                "sa": sa,
                "attack_2": gap,
                "bound_2/printed": 10 * sa + float(rng.normal()),
                "bound_2/sdp": 3 * gap + float(rng.normal()),
                "bound_inf/printed": 1.0,
                "gradient_2": gap + 0.05 * float(rng.normal()),
                "gradient_inf": 1.0,
                "frobenius_product": float(rng.normal()),
                "spectral_product": None,
            }
            rows.append(row("a" if i % 2 else "b", i // 2, s, measures))
    return rows


def test_predictors_are_the_bounds_of_the_norm_and_the_baselines_that_were_measured() -> None:
    assert predictors(bound_rows(), "2") == ("bound_2/printed", "bound_2/sdp", "gradient_2", "frobenius_product")
    assert predictors(bound_rows(), "inf") == ("bound_inf/printed", "gradient_inf", "frobenius_product")


def test_correlation_table() -> None:
    rows = bound_rows()
    table = {line.x: line for line in correlation_table(rows, "attack_2", predictors(rows, "2"))}
    gap, sa = ([r.number(m) for r in rows] for m in ("attack_2", "sa"))
    for x, line in table.items():
        mine = [r.number(x) for r in rows]
        assert line.pooled.value == pytest.approx(spearman(mine, gap), abs=1e-12)
        assert line.partial.value == pytest.approx(partial_spearman(mine, gap, [sa]), abs=1e-12)
        each = [spearman(mine[8 * s : 8 * s + 8], gap[8 * s : 8 * s + 8]) for s in range(5)]
        expected = mean_interval(each)
        assert (line.within.value, line.within.low) == pytest.approx((expected.value, expected.low), abs=1e-12)
        assert (line.rows, line.missing, line.pooled.n, line.within.n) == (40, 0, 5, 5)
        for found in (line.pooled, line.partial):
            assert -1 < found.low < found.value < found.high < 1
    # of what the bound knew through SA nothing is left; the gradient knew the gap itself
    assert table["bound_2/printed"].pooled.low > 0.2
    assert table["bound_2/printed"].partial.low < 0 < table["bound_2/printed"].partial.high
    assert table["gradient_2"].partial.low > 0.5
    same = Correlation("gradient_2", "attack_2", ("b", "a"), given=("sa",)).estimate(rows)
    assert table["gradient_2"].partial.low == pytest.approx(same.low)


def test_correlation_table_counts_the_rows_that_lack_a_number() -> None:
    rows = bound_rows()
    rows[0] = replace(rows[0], measures={**rows[0].measures, "bound_2/sdp": None})
    rows[9] = replace(rows[9], measures={**rows[9].measures, "bound_2/sdp": NAN})
    rows[20] = replace(rows[20], measures={**rows[20].measures, "sa": None})
    sdp, printed = correlation_table(rows, "attack_2", ("bound_2/sdp", "bound_2/printed"))
    assert (sdp.rows, sdp.missing, printed.rows, printed.missing) == (38, 2, 40, 0)
    kept = [r for i, r in enumerate(rows) if i not in (0, 9)]
    assert sdp.pooled.value == pytest.approx(
        spearman([r.number("bound_2/sdp") for r in kept], [r.number("attack_2") for r in kept])
    )
    assert sdp.partial.note == printed.partial.note == "1 rows lack what is given"
    assert sdp.pooled.note == ""
    rows[30] = replace(rows[30], measures={**rows[30].measures, "attack_2": None})
    assert [line.rows for line in correlation_table(rows, "attack_2", ("bound_2/sdp", "bound_2/printed"))] == [37, 39]
    (absent,) = correlation_table(rows, "attack_2", ("bound_2/CROWN",))
    assert (absent.rows, absent.missing, absent.pooled.n) == (0, 40, 0) and math.isnan(absent.pooled.value)


def test_correlation_table_takes_infinite_bounds() -> None:
    """A bound of ∞ is a bound, and the largest."""
    rows = bound_rows()
    infinite = [replace(rows[0], measures={**rows[0].measures, "bound_2/sdp": INF}), *rows[1:]]
    largest = [replace(rows[0], measures={**rows[0].measures, "bound_2/sdp": 1e9}), *rows[1:]]
    assert correlation_table(infinite, "attack_2", ("bound_2/sdp",)) == correlation_table(
        largest, "attack_2", ("bound_2/sdp",)
    )


def test_correlation_given_itself_is_refused() -> None:
    for y, xs in (("sa", ("gradient_2",)), ("attack_2", ("gradient_2", "sa"))):
        with pytest.raises(InputError, match="given"):
            correlation_table(bound_rows(), y, xs)


# ---------------------------------------------------------------- checks of the attack


SOUND: dict[str, float | None] = {
    "sa": 0.95,  # of all test samples; .9 of the attacked ones
    "ra_inf@0": 0.9,
    "ra_inf@0.02": 0.72,
    "ra_inf@0.05": 0.45,
    "ra_inf@2": 0.04,
    "ra_inf@10": 0.0,  # as numbers 10 is beyond 2; as text it would not be last
    "ra_inf": 0.45,
    "ra_sa_inf": 0.5,
    "gap_inf@0.02": 0.5,
    "gap_inf@0.05": 1.5,
    "gap_inf@2": 4.0,
    "gap_inf@10": 3.95,
    "ra_inf_square": 0.5,
    "ra_inf_transfer": 0.44,
    "ra_inf_double_steps": 0.435,
}

FAULTS = {
    "RA at radius 0 is clean accuracy": {"ra_inf@0": 0.95},
    "RA never above clean accuracy": {"ra_sa_inf": 1.01},
    "RA falls along the radii": {"ra_inf@0.05": 0.73},
    "loss gap rises along the radii": {"gap_inf@2": 1.4},
    "RA at the largest radius is near 0": {"ra_inf@10": 0.06},
    "Square is not stronger than APGD": {"ra_inf_square": 0.42},
    "transferred points are not stronger than APGD": {"ra_inf_transfer": 0.42},
    "twice the steps change little": {"ra_inf_double_steps": 0.42},
}


def checks_of(change: dict[str, float | None]) -> dict[str, Check]:
    """One row in five has the change."""
    rows = [row("rank", 8, s, {**SOUND, **(change if s == 3 else {})}) for s in range(5)]
    return {c.name: c for c in attack_checks(rows) if c.norm == "inf"}


def test_sound_attack_passes_every_check() -> None:
    found = checks_of({})
    assert set(found) == set(FAULTS)
    assert all(c.passed for c in found.values())
    assert all(c.rows == 5 for c in found.values())


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_found_and_placed(name: str) -> None:
    broken = checks_of(FAULTS[name])[name]
    assert broken.passed is False
    assert broken.worst > broken.allowed
    assert broken.where == "rank at 8, seed 3"
    assert "NO" in str(broken) and "seed 3" in str(broken)


@pytest.mark.parametrize(
    ("name", "change", "worst"),
    [
        ("RA falls along the radii", {"ra_inf@0.05": 0.72}, 0.0),  # equal: no fall, no fault
        ("loss gap rises along the radii", {"gap_inf@10": 3.92}, 0.02),
        ("RA at the largest radius is near 0", {"ra_inf@10": 0.05}, 0.05),
        ("Square is not stronger than APGD", {"ra_inf_square": 0.43}, 0.02),
        ("transferred points are not stronger than APGD", {"ra_inf_transfer": 0.43}, 0.02),
        ("twice the steps change little", {"ra_inf_double_steps": 0.47}, 0.02),
    ],
)
def test_what_is_allowed_is_allowed(name: str, change: dict[str, float | None], worst: float) -> None:
    found = checks_of(change)[name]
    assert found.passed
    assert found.worst == pytest.approx(worst, abs=1e-12)


def test_more_steps_that_find_less_are_a_fault_too() -> None:
    assert checks_of({"ra_inf_double_steps": 0.48})["twice the steps change little"].passed is False


def test_what_was_not_measured_is_neither_passed_nor_failed() -> None:
    rows = [row("a", 0, 0, {"sa": 0.9, "ra_2@0": 0.9, "ra_2_square": None, "ra_2": NAN})]
    found = {(c.norm, c.name): c for c in attack_checks(rows)}
    assert len(found) == 2 * len(FAULTS)
    judged = {key: c for key, c in found.items() if c.passed is not None}
    assert set(judged) == {("2", "RA at radius 0 is clean accuracy"), ("2", "RA at the largest radius is near 0")}
    assert judged["2", "RA at radius 0 is clean accuracy"].passed  # without ra_sa: sa itself
    assert judged["2", "RA at the largest radius is near 0"].passed is False
    assert all("not measured" in str(c) and c.rows == 0 for key, c in found.items() if key not in judged)
    assert all(c.passed is None for c in attack_checks([]))


def test_clean_accuracy_that_cannot_be_known_is_not_judged() -> None:
    change: dict[str, float | None] = {"ra_inf": 0.0, "ra_sa_inf": 0.0}
    assert checks_of(change)["RA at radius 0 is clean accuracy"].rows == 4


@pytest.mark.parametrize(
    ("gaps", "drop"),
    [((0.0, 0.0), 0.0), ((1.0, INF), 0.0), ((INF, INF), 0.0), ((INF, 5.0), 1.0), ((0.0, -1.0), 1.0), ((2.0, 1.0), 0.5)],
)
def test_loss_gap_along_extreme_curves(gaps: tuple[float, float], drop: float) -> None:
    rows = [row("a", 0, 0, {"gap_inf@0.1": gaps[0], "gap_inf@0.2": gaps[1]})]
    (found,) = (c for c in attack_checks(rows) if c.norm == "inf" and c.name.startswith("loss gap"))
    assert found.worst == drop
    assert found.passed == (drop == 0)


def test_worst_row_is_judged_not_the_mean() -> None:
    many: Callable[[float], list[Row]] = lambda low: [  # noqa: E731
        row("a", 0, s, {"ra_inf": 0.5, "ra_inf_square": low if s == 7 else 0.9}) for s in range(20)
    ]
    names = "Square is not stronger than APGD"
    assert [next(c for c in attack_checks(many(v)) if c.name == names).passed for v in (0.48, 0.47)] == [True, False]
