"""Tail ratios and dispersions against exact rationals, for every k."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from budget import matrix_settings
from hypothesis import given
from hypothesis import strategies as st

from certbound.compressibility import (
    check_dispersion,
    check_fraction,
    check_k,
    dispersion,
    first_k,
    profile,
    row_tails,
    smallest_k,
    tail_ratio,
)
from certbound.errors import InputError
from certbound.testing.strategies import rational_matrices

U = 2.0**-53


def heavy_tailed(seed: int) -> list[float]:
    """Entries between 1e-12 and 1e12: one seed is far cheaper to draw than seven floats."""
    rng = np.random.default_rng(seed)
    return list(rng.choice([-1, 1], d := 1 + seed % 7) * 10.0 ** rng.uniform(-12, 12, d))


seeds = st.integers(0, 2**20).map(heavy_tailed)
small = st.lists(st.integers(-12, 12), min_size=1, max_size=7).map(lambda v: [x / 4 for x in v])
vectors = st.one_of(small, seeds)
wild_vectors = st.lists(
    st.sampled_from([0.0, 5e-324, -1e-310, 1e-300, -1e300, 1.7e308, 1.0, -1.0, 1e-8, 1 / 3]), min_size=1, max_size=6
)


def near(value: float, exact: Fraction, relative: float = 1e-14, absolute: float = 0.0) -> bool:
    return abs(Fraction(value) - exact) <= Fraction(relative) * abs(exact) + Fraction(absolute)


@matrix_settings
@given(vectors)
def test_profile_against_exact_rationals(entries):
    p = profile(np.array(entries))
    theta = sorted((abs(Fraction(v)) for v in entries), reverse=True)
    total, squares, d = sum(theta), sum(t * t for t in theta), len(theta)
    for k in range(1, d + 1):
        i = k - 1
        if total == 0:
            assert (p.epsilon[i], p.kept[i], p.epsilon_2[i], p.beta_kth[i], p.beta_mean[i]) == (0, 1, 0, 0, 0)
            continue
        assert near(p.epsilon[i], sum(theta[k:]) / total)
        assert near(p.kept[i], sum(theta[:k]) / total)
        # epsilon_2 is a square root: its square is compared (squares below 1e-290 of the largest may vanish)
        assert near(Fraction(p.epsilon_2[i]) ** 2, sum(t * t for t in theta[k:]) / squares, absolute=1e-290)
        assert near(p.beta_kth[i], 1 - theta[i] / theta[0], 0, 4 * U)
        assert near(p.beta_mean[i], 1 - sum(theta[:k]) / (k * theta[0]), 0, 4 * d * U)
    assert near(p.top, theta[0], 0) and near(p.sum, total)
    assert p.beta("kth") is p.beta_kth and p.beta("mean") is p.beta_mean


@matrix_settings
@given(wild_vectors)
def test_profile_keeps_its_order_on_anything(entries):
    p = profile(np.array(entries))
    for array in (p.epsilon, p.kept, p.epsilon_2, p.beta_kth, p.beta_mean):
        assert array.shape == (len(entries),)
        assert np.all(np.isfinite(array)) and np.all(array >= 0) and np.all(array <= 1)
    assert np.all(np.diff(p.epsilon) <= 0) and p.epsilon[-1] == 0
    assert np.all(np.diff(p.kept) >= 0) and p.kept[-1] == 1
    assert np.all(np.diff(p.epsilon_2) <= 0) and p.epsilon_2[-1] == 0
    assert np.all(np.diff(p.beta_kth) >= 0) and p.beta_kth[0] == 0
    assert p.beta_mean[0] == 0
    assert np.all(p.beta_mean <= p.beta_kth + 8 * len(entries) * U)
    assert np.allclose(p.epsilon + p.kept, 1.0, rtol=0, atol=1e-14)


@matrix_settings
@given(vectors, st.integers(-900, 900))
def test_profile_does_not_see_scale_order_or_sign(entries, j):
    p = profile(np.array(entries))
    other = [math.ldexp(v, j) * (-1) ** i for i, v in enumerate(entries)]
    other = other[j % len(other) :: -1] + other[: j % len(other) : -1]  # backwards, from somewhere
    q = profile(np.array(other))
    for name in ("epsilon", "kept", "epsilon_2", "beta_kth", "beta_mean"):
        assert np.array_equal(getattr(p, name), getattr(q, name)), name
    assert q.top == math.ldexp(p.top, j)


@matrix_settings
@given(rational_matrices(1, 4, largest=5, denominator=4))
def test_row_tails_against_exact_rationals(w):
    tails = row_tails(w)
    m, n = w.shape
    rows = [sorted((Fraction(v) ** 2 for v in row), reverse=True) for row in w]
    for k in range(1, n + 1):
        exact = max((sum(r[k:], Fraction(0)) / sum(r) if any(r) else Fraction(0)) for r in rows)
        assert near(Fraction(tails[k - 1]) ** 2, exact)
    assert tails[-1] == 0 and np.all(np.diff(tails) <= 0)
    # each row in its own units: nothing changes
    units = np.array([2.0 ** (600 * (-1) ** i) for i in range(m)])
    assert np.array_equal(row_tails(w * units[:, None]), tails)
    assert np.array_equal(row_tails(-w[::-1, ::-1]), tails)


@matrix_settings
@given(vectors, st.integers(0, 40))
def test_smallest_k_is_the_smallest(entries, fortieths):
    target = fortieths / 40
    for q in (1, 2):
        k = smallest_k(entries, target, q)
        assert tail_ratio(entries, k, q) <= target
        assert k == 1 or tail_ratio(entries, k - 1, q) > target


def test_values_by_hand():
    theta = [-1.0, 4.0, 2.0, 0.0, -1.0]
    assert [tail_ratio(theta, k) for k in range(1, 6)] == [0.5, 0.25, 0.125, 0.0, 0.0]
    assert tail_ratio(theta, 2, q=2) == pytest.approx(math.sqrt(2 / 22), rel=1e-15)
    assert [dispersion(theta, k) for k in range(1, 6)] == [0.0, 0.5, 0.75, 0.75, 1.0]
    assert dispersion(theta, 3, "mean") == pytest.approx(1 - 7 / 12, rel=1e-15)
    assert dispersion(theta, 5, kind="mean") == 1 - 8 / 20
    assert [smallest_k(theta, e) for e in (1.0, 0.5, 0.49, 0.125, 0.1, 0.0)] == [1, 1, 2, 3, 4, 4]
    assert row_tails(np.array([[3.0, 4.0], [0.0, 2.0], [0.0, 0.0]])).tolist() == [0.6, 0.0]
    assert first_k(np.array([0.5, 0.0]), 0.0) == 2


def test_extremes():
    assert tail_ratio([0.0, 0.0], 1) == dispersion([0.0, 0.0], 2) == 0.0
    assert tail_ratio([5.0], 1) == dispersion([5.0], 1) == 0.0
    assert tail_ratio([5e-324, 5e-324], 1) == 0.5
    assert tail_ratio([1.7e308] * 4, 1) == pytest.approx(0.75)  # the sum overflows
    assert tail_ratio([1.7e308] * 4, 1, q=2) == pytest.approx(math.sqrt(0.75))
    assert dispersion([1e300, 1e-300], 2) == 1.0
    assert tail_ratio([1.0, 1e-20], 1) == pytest.approx(1e-20)  # 1 − kept would lose it
    assert row_tails(np.array([[5e-324, 5e-324]])).tolist() == pytest.approx([math.sqrt(0.5), 0.0])
    assert row_tails(np.array([[1e200, 1e200], [1e-200, 0.0]])).tolist() == pytest.approx([math.sqrt(0.5), 0.0])


# -- bad arguments -------------------------------------------------------------------------------------------------


def refused(argument, call):
    with pytest.raises(InputError) as info:
        call()
    assert info.value.argument == argument
    assert info.value.got and info.value.needed and info.value.fix


@pytest.mark.parametrize(
    "k",
    [0, -1, 3, 10**30, 1.0, 1.5, "1", None, True, False, np.True_, [1], np.array([1]), np.array(1.0), math.nan, 1j],
)
def test_bad_k(k):
    refused("k", lambda: check_k(k, 2))
    refused("k", lambda: tail_ratio([1.0, 2.0], k))
    refused("k", lambda: dispersion([1.0, 2.0], k))


@pytest.mark.parametrize("k", [1, 2, np.int64(2), np.uint8(1), np.array(2)])
def test_good_k(k):
    assert check_k(k, 2) == int(k) and type(check_k(k, 2)) is int


@pytest.mark.parametrize(
    "value",
    [
        -0.1,
        1.1,
        2,
        -1,
        math.nan,
        math.inf,
        True,
        np.True_,
        "0.5",
        None,
        [0.5],
        np.array([0.5]),
        0.5j,
        np.complex128(0.5),
    ],
)
def test_bad_fractions(value):
    refused("epsilon", lambda: check_fraction(value, "epsilon"))
    refused("epsilon", lambda: smallest_k([1.0, 2.0], value))


@pytest.mark.parametrize("value", [0, 1, 0.5, Fraction(1, 2), np.float32(0.5), np.array(0.5)])
def test_good_fractions(value):
    assert check_fraction(value, "epsilon") == float(value)


@pytest.mark.parametrize("q", [0, 3, math.inf, -1, "1", None, 1.5])
def test_bad_q(q):
    refused("q", lambda: tail_ratio([1.0], 1, q))
    refused("q", lambda: smallest_k([1.0], 0.5, q))


@pytest.mark.parametrize("kind", ["max", "", None, 1, "Mean", ["kth"], np.array(["kth", "mean"])])
def test_bad_dispersion(kind):
    refused("dispersion", lambda: check_dispersion(kind))
    refused("dispersion", lambda: dispersion([1.0], 1, kind))


@pytest.mark.parametrize("theta", [[], [[1.0]], 1.0, [math.nan], [1j], None, "a", [1.0, math.inf]])
def test_bad_vectors(theta):
    refused("theta", lambda: tail_ratio(theta, 1))
    refused("theta", lambda: dispersion(theta, 1))
    refused("theta", lambda: smallest_k(theta, 0.5))
