"""experiments.statistics: intervals that cover, correlations by their formulas, seeds as the unit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from scipy import stats

from certbound.errors import InputError
from experiments.statistics import (
    Estimate,
    bootstrap_over_seeds,
    mean_interval,
    partial_pearson,
    partial_spearman,
    pearson,
    spearman,
)
from experiments.study import Row


def row(seed: int, arm: str = "a", level: float = 0.0, **measures: float | None) -> Row:
    return Row("e00", "cpu", arm, level, seed, "k", "r", {}, measures, {}, {}, 0.0, "2026-01-01")


def column(rows: Sequence[Row], name: str) -> list[float]:
    return [r.number(name) for r in rows]


def rank_correlation(rows: Sequence[Row]) -> float:
    return spearman(column(rows, "x"), column(rows, "y"))


def mean_of_x(rows: Sequence[Row]) -> float:
    return float(np.mean(column(rows, "x")))


# ---------------------------------------------------------------- the t interval


@pytest.mark.parametrize(("n", "quantile"), [(2, 12.706), (3, 4.303), (5, 2.776), (10, 2.262), (31, 2.042)])
def test_interval_of_the_t_table(n: int, quantile: float) -> None:
    x = np.arange(1.0, n + 1)
    found = mean_interval(x)
    s = math.sqrt(n * (n + 1) / 12)  # of 1 … n, with n − 1
    assert found.value == pytest.approx((n + 1) / 2)
    assert found.high - found.value == pytest.approx(quantile * s / math.sqrt(n), rel=5e-4)
    assert found.value - found.low == pytest.approx(found.high - found.value)
    assert found.n == n
    assert found.note == ""


def test_interval_is_scipys() -> None:
    x = np.random.default_rng(1).normal(size=7)
    low, high = stats.ttest_1samp(x, 0.0).confidence_interval(0.95)
    found = mean_interval(x)
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-12)


def test_interval_of_equal_values_is_that_value() -> None:
    """0.1 added seven times is not 0.7: rounding must not carry the mean of equal values over a threshold."""
    for n in range(2, 40):
        assert mean_interval([0.1] * n) == Estimate(0.1, 0.1, 0.1, n)


def test_few_or_unusable_values() -> None:
    one, none = mean_interval([2.0]), mean_interval([])
    assert (one.value, one.n) == (2.0, 1)
    assert math.isnan(one.low) and math.isnan(one.high) and "one seed" in one.note
    assert math.isnan(none.value) and none.n == 0 and none.note
    for bad in (math.nan, math.inf, -math.inf):
        found = mean_interval([1.0, bad, 2.0])
        assert all(map(math.isnan, (found.value, found.low, found.high)))
        assert found.n == 3 and "not finite" in found.note


def test_spread_beyond_all_floats() -> None:
    found = mean_interval([1e300, -1e300, 0.0])
    assert (found.low, found.high) == (-math.inf, math.inf)


@pytest.mark.parametrize("n", [3, 5, 10])
def test_t_interval_covers_95_percent(n: int) -> None:
    rng = np.random.default_rng(n)
    found = [mean_interval(x) for x in rng.normal(2.0, 3.0, size=(4000, n))]
    assert np.mean([e.low <= 2.0 <= e.high for e in found]) == pytest.approx(0.95, abs=0.012)  # 3.5 s of a share


# ---------------------------------------------------------------- correlations


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("ties", [False, True])
def test_correlations_are_scipys(seed: int, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(2, 25))
    y = y + 0.5 * x
    if ties:
        x, y = np.round(x), np.round(y)
    assert spearman(x, y) == pytest.approx(float(stats.spearmanr(x, y).statistic), abs=1e-13)
    assert pearson(x, y) == pytest.approx(float(stats.pearsonr(x, y).statistic), abs=1e-13)


def test_spearman_by_hand() -> None:
    # d = (0, −1, 1, 0): 1 − 6·2 / (4·15) = 0.8
    assert spearman([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(0.8, abs=1e-15)
    assert spearman(range(9), np.exp(range(9))) == 1.0
    assert spearman(range(9), -np.arange(9.0) ** 3) == -1.0
    assert spearman([1, 2, 3, 4, 5], [1, 2, 5, 2, 1]) == 0.0


def test_infinite_values_have_ranks_and_no_pearson() -> None:
    assert spearman([1, 2, 3, 4], [-math.inf, 0, math.inf, math.inf]) == spearman([1, 2, 3, 4], [0, 1, 2, 2])
    assert math.isnan(pearson([1, 2, 3, 4], [-math.inf, 0, 1, 2]))


@pytest.mark.parametrize("correlation", [pearson, spearman])
def test_correlation_of_constant_missing_or_too_few(correlation: Any) -> None:
    assert math.isnan(correlation([1, 2, 3], [0.1, 0.1, 0.1]))
    assert math.isnan(correlation([0.1, 0.1, 0.1], [1, 2, 3]))
    assert math.isnan(correlation([1, math.nan, 3], [1, 2, 3]))
    assert math.isnan(correlation([1], [1]))
    with pytest.raises(InputError, match="lengths"):
        correlation([1, 2], [1, 2, 3])
    with pytest.raises(InputError, match="shape"):
        correlation([[1, 2]], [1, 2])


def test_pearson_of_extreme_numbers() -> None:
    x, y = np.array([1.0, 2.0, -1.0]), np.array([1.0, 3.0, 0.0])
    expected = pearson(x, y)
    assert pearson(x * 1e300, y * 1e-300) == pytest.approx(expected, rel=1e-12)
    huge = np.array([1.7e308, 1.6e308, 1e308])  # whose sum is no float
    assert pearson(huge, y) == pytest.approx(pearson(huge / 1e300, y), rel=1e-12)
    assert expected == pytest.approx((13 / 3) / (14 / 3), rel=1e-12)  # sums of products about the means, by hand


# ---------------------------------------------------------------- partial correlations


def by_formula(xy: float, xz: float, yz: float) -> float:
    return (xy - xz * yz) / math.sqrt((1 - xz**2) * (1 - yz**2))


@pytest.mark.parametrize("seed", range(4))
def test_partial_correlation_given_one_is_the_textbook_formula(seed: int) -> None:
    rng = np.random.default_rng(seed)
    z = rng.normal(size=30)
    x, y = z + rng.normal(size=30), np.round(z + rng.normal(size=30), 1)
    expected = by_formula(pearson(x, y), pearson(x, z), pearson(y, z))
    assert partial_pearson(x, y, [z]) == pytest.approx(expected, abs=1e-12)
    expected = by_formula(spearman(x, y), spearman(x, z), spearman(y, z))
    assert partial_spearman(x, y, [z]) == pytest.approx(expected, abs=1e-12)


def test_partial_correlation_given_two_is_pingouins() -> None:
    """pingouin: minus the entry of the inverse covariance of the ranks over the root of the diagonal's product."""
    rng = np.random.default_rng(3)
    data = rng.normal(size=(4, 40)) + rng.normal(size=40)
    V = np.linalg.inv(np.cov([stats.rankdata(v) for v in data]))
    expected = -V[0, 1] / math.sqrt(V[0, 0] * V[1, 1])
    assert partial_spearman(data[0], data[1], [data[2], data[3]]) == pytest.approx(expected, abs=1e-12)


def test_partial_correlation_removes_a_confounder() -> None:
    """x and y have nothing in common but z: .5 pooled, 0 given z; and nothing given is the plain correlation."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=4000)
    x, y = z + rng.normal(size=4000), z + rng.normal(size=4000)
    assert spearman(x, y) == pytest.approx(0.48, abs=0.04)
    assert partial_spearman(x, y, [z]) == pytest.approx(0.0, abs=0.05)
    assert partial_spearman(x, y, []) == spearman(x, y)


def test_partial_correlation_that_means_nothing_is_nan() -> None:
    z = np.arange(6.0)
    y = np.array([3.0, 1, 2, 5, 4, 0])
    assert math.isnan(partial_spearman(z**3, y, [z]))  # the same ranks: no residual but rounding
    assert math.isnan(partial_pearson(0.1 * z + 7, y, [z]))
    assert math.isnan(partial_spearman([1, 2, 3], [2, 1, 3], [[3, 1, 2]]))  # ±1 by construction
    assert math.isnan(partial_spearman(np.ones(6), y, [z]))
    assert math.isnan(partial_spearman(z, y, [[math.nan, 1, 2, 3, 4, 5]]))
    assert partial_spearman(z, y, [np.ones(6)]) == pytest.approx(spearman(z, y), abs=1e-12)  # a constant holds nothing


# ---------------------------------------------------------------- the cluster bootstrap


def rows_with_seed_effect(rng: np.random.Generator, seeds: int, levels: int, seed_effect: float) -> list[Row]:
    t = np.linspace(-1.5, 1.5, levels)
    noise = rng.normal(size=(2, seeds, levels)) * 0.5 + rng.normal(size=(2, seeds, 1)) * seed_effect
    return [
        row(s, level=i, x=t[i] + noise[0, s, i], y=t[i] + noise[1, s, i]) for s in range(seeds) for i in range(levels)
    ]


@pytest.mark.parametrize("n", [2, 5, 7])
def test_bootstrap_of_a_mean_is_the_t_interval(n: int) -> None:
    """Enumerated: Σ over all n^n draws gives s²(n−1)/n² exactly, and the correction makes it s²/n."""
    x = np.random.default_rng(n).normal(size=n)
    found = bootstrap_over_seeds([row(s, x=v) for s, v in enumerate(x)], mean_of_x)
    e = mean_interval(x)
    assert (found.value, found.low, found.high) == pytest.approx((e.value, e.low, e.high), rel=1e-12)
    assert found.n == n


def test_random_resamples_agree_with_the_t_interval_and_are_deterministic() -> None:
    x = np.random.default_rng(2).normal(size=12)
    rows = [row(s, x=v) for s, v in enumerate(x)]
    found, expected = bootstrap_over_seeds(rows, mean_of_x, resamples=4000), mean_interval(x)
    assert found.high - found.low == pytest.approx(expected.high - expected.low, rel=0.05)
    assert bootstrap_over_seeds(rows, mean_of_x) == bootstrap_over_seeds(rows, mean_of_x)
    again = bootstrap_over_seeds(rows[::-1], mean_of_x)
    assert again.high == pytest.approx(bootstrap_over_seeds(rows, mean_of_x).high, rel=1e-12)  # the order is nothing
    assert bootstrap_over_seeds(rows, mean_of_x) != bootstrap_over_seeds(rows, mean_of_x, seed=1)


def test_whole_seeds_are_drawn() -> None:
    """Eight equal rows a seed are one number: the interval is that of five numbers, not of forty."""
    x = np.random.default_rng(4).normal(size=5)
    many = [row(s, level=i, x=v) for s, v in enumerate(x) for i in range(8)]
    found, expected = bootstrap_over_seeds(many, mean_of_x), mean_interval(x)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-12)
    drawn = []
    bootstrap_over_seeds(many, lambda rows: drawn.append([r.seed for r in rows]) or 0.0)
    assert len(drawn) == 1 + 126  # the rows themselves; multisets of 5 out of 5
    assert all(seeds.count(s) % 8 == 0 and len(seeds) == 40 for seeds in drawn for s in range(5))


@pytest.mark.parametrize(("seeds", "runs"), [(3, 500), (5, 200), (12, 80)])
def test_cluster_bootstrap_covers_95_percent(seeds: int, runs: int) -> None:
    """Pooled Spearman of rows whose seeds have effects of their own. (The percentile interval: .77 at five seeds.)"""
    truth = rank_correlation(rows_with_seed_effect(np.random.default_rng(0), 20_000, 5, 0.3))
    rng = np.random.default_rng(seeds)
    hit = []
    for _ in range(runs):
        rows = rows_with_seed_effect(rng, seeds, 5, 0.3)
        found = bootstrap_over_seeds(rows, rank_correlation, resamples=200, bound=1.0)
        hit.append(found.low <= truth <= found.high)
    assert 0.95 - 3.5 * math.sqrt(0.95 * 0.05 / runs) <= np.mean(hit) <= 1.0


def test_interval_of_a_correlation_stays_inside() -> None:
    rng = np.random.default_rng(7)
    rows = rows_with_seed_effect(rng, 3, 5, 1.0)
    found = bootstrap_over_seeds(rows, rank_correlation, bound=1.0)
    assert -1 < found.low < found.value < found.high < 1
    free = bootstrap_over_seeds(rows, rank_correlation)
    assert not (-1 < free.low and free.high < 1)  # without Fisher's scale it does not


def test_fishers_scale_by_hand() -> None:
    """Two seeds, a mean of ±.5 about 0: half width h on the scale of the statistic; tanh(±h/(1 − 0²)) at θ = 0."""
    rows = [row(0, x=0.05), row(1, x=-0.05)]
    h = mean_interval([0.05, -0.05]).high
    assert h == pytest.approx(0.6353, abs=1e-4)
    found = bootstrap_over_seeds(rows, mean_of_x, bound=1.0)
    assert (found.value, found.low, found.high) == pytest.approx((0.0, -math.tanh(h), math.tanh(h)), abs=1e-12)
    double = bootstrap_over_seeds(rows, mean_of_x, bound=2.0)
    assert double.high == pytest.approx(2 * math.tanh(h / 2), abs=1e-12)
    off = bootstrap_over_seeds([row(0, x=0.55), row(1, x=0.45)], mean_of_x, bound=1.0)
    assert off.high == pytest.approx(math.tanh(math.atanh(0.5) + h / 0.75), abs=1e-12)


def test_perfect_correlation_has_a_point_for_an_interval() -> None:
    rows = [row(s, level=i, x=i + 0.1 * s, y=i + 0.1 * s) for s in range(4) for i in range(4)]
    assert bootstrap_over_seeds(rows, rank_correlation, bound=1.0) == Estimate(1.0, 1.0, 1.0, 4)


def test_value_at_the_bound_with_spread_keeps_inside() -> None:
    rows = [row(s, x=float(s)) for s in range(3)]
    found = bootstrap_over_seeds(rows, lambda r: min(1.0, mean_of_x(r)), bound=1.0)
    assert found.value == 1.0 and found.high == 1.0 and -1.0 <= found.low < 1.0


def test_undefined_statistics() -> None:
    rows = [row(s, x=0.0 if s else 1.0, y=float(s)) for s in range(3)]
    # One row a seed: the draws of one seed alone (3 of 27) have no correlation, and that is more than 5 %.
    found = bootstrap_over_seeds(rows, rank_correlation, bound=1.0)
    assert found.value == pytest.approx(-math.sqrt(3) / 2)
    assert math.isnan(found.low) and math.isnan(found.high) and "resamples" in found.note
    few = [row(s, x=float(s), y=float(s)) for s in range(5)]  # 5 of 3125: left out
    assert bootstrap_over_seeds(few, rank_correlation, bound=1.0) == Estimate(1.0, 1.0, 1.0, 5)
    constant = bootstrap_over_seeds([row(s, x=1.0, y=1.0) for s in range(3)], rank_correlation)
    assert math.isnan(constant.value) and math.isnan(constant.low) and constant.n == 3 and constant.note
    alone = bootstrap_over_seeds([row(0, x=1.0)], mean_of_x)
    assert alone.value == 1.0 and math.isnan(alone.low) and alone.n == 1
    assert bootstrap_over_seeds([], mean_of_x).n == 0
    with pytest.raises(InputError, match="resamples"):
        bootstrap_over_seeds(rows, mean_of_x, resamples=10)


def test_bootstrap_leaves_the_global_generator_alone() -> None:
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    bootstrap_over_seeds([row(s, x=float(s)) for s in range(12)], mean_of_x)
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002


def test_hundred_rows_are_counted_in_a_second() -> None:
    """Counted, not timed: two thousand resamples are the most there are; five seeds need 126."""
    calls = []
    rows = rows_with_seed_effect(np.random.default_rng(0), 10, 10, 0.3)
    bootstrap_over_seeds(rows, lambda r: calls.append(len(r)) or rank_correlation(r), bound=1.0)
    assert len(calls) == 2001 and set(calls) == {100}
