"""``max_D ‖B D A‖``: exact against brute force and exact rationals; upper bounds above it and below the crude ones."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from budget import matrix_settings, network_settings
from hypothesis import given, settings
from hypothesis import strategies as st

from certbound.lipschitz.pattern_pair import (
    active_hidden,
    balanced,
    closed_form_2,
    decoupled_inf,
    decoupled_rows,
    exact_2,
    exact_inf,
    fits,
    ldexp_up,
    max_pattern_norm,
)
from certbound.testing.strategies import compressible_matrices, rational_matrices

exact_settings = settings(max_examples=4 * network_settings.max_examples)
both_norms = pytest.mark.parametrize("norm", [2.0, math.inf])


@st.composite
def pairs(draw, matrices, max_hidden=5):
    """(B, A) with as many columns in B as rows in A."""
    B, A = draw(matrices), draw(matrices)
    h = min(B.shape[1], A.shape[0], max_hidden)
    return B[:, :h], A[:h]


def vectors(h):
    return np.array(list(itertools.product((0.0, 1.0), repeat=h)))


def norm_of(J, norm):
    """In extended precision where it matters: entries of 1e±300, and their squares, are numbers there."""
    top = np.abs(J).max(initial=0)
    if top == 0:
        return np.longdouble(0)
    unit = np.asarray(J / top, dtype=np.float64)
    return top * (np.abs(unit).sum(axis=1).max() if math.isinf(norm) else np.linalg.svd(unit, compute_uv=False)[0])


def brute(B, A, norm):
    wide_b, wide_a = B.astype(np.longdouble), A.astype(np.longdouble)
    return max(norm_of((wide_b * d) @ wide_a, norm) for d in vectors(A.shape[0]))


def fractions(M):
    return [[Fraction(float(v)) for v in row] for row in M]


def products(B, A):
    """``B D A`` for every D, in exact rationals."""
    b, a = fractions(B), fractions(A)
    for d in itertools.product((0, 1), repeat=len(a)):
        yield [
            [sum((row[m] * a[m][j] for m in range(len(a)) if d[m]), Fraction(0)) for j in range(len(a[0]))]
            for row in b
        ]


def positive_definite(M):
    """Symmetric elimination in exact rationals: all pivots > 0."""
    M = [list(row) for row in M]
    for i in range(len(M)):
        if M[i][i] <= 0:
            return False
        for j in range(i + 1, len(M)):
            factor = M[j][i] / M[i][i]
            M[j] = [v - factor * w for v, w in zip(M[j], M[i], strict=True)]
    return True


def norm_below(J, square):
    """Is ‖J‖_2² < square, in exact rationals?"""
    gram = [[-sum(u * v for u, v in zip(r, s, strict=True)) for s in J] for r in J]
    for i in range(len(gram)):
        gram[i][i] += square
    return positive_definite(gram)


# -- exact enumeration -----------------------------------------------------------------------------------


@exact_settings
@given(pairs(rational_matrices(1, 4, denominator=4)))
def test_exact_inf_is_the_rational_maximum(pair):
    best = max(max(sum(abs(v) for v in row) for row in J) for J in products(*pair))
    assert Fraction(exact_inf(*pair)) == best


@exact_settings
@given(pairs(rational_matrices(1, 3)))
def test_exact_2_is_the_rational_maximum(pair):
    """(1 + 1e-12)·value lies above ‖J‖ of every pattern, (1 − 1e-12)·value not: Sylvester in exact rationals."""
    value = Fraction(exact_2(*pair))
    every = list(products(*pair))
    if value == 0:
        assert all(v == 0 for J in every for row in J for v in row)
        return
    assert all(norm_below(J, (value * (1 + Fraction(1, 10**12))) ** 2) for J in every)
    assert any(not norm_below(J, (value * (1 - Fraction(1, 10**12))) ** 2) for J in every)


@both_norms
@matrix_settings
@given(pairs(compressible_matrices(max_side=4), max_hidden=4))
def test_enumeration_and_upper_bounds_against_brute_force(norm, pair):
    """Exact is exact; above its size the value is an upper bound, and not above the crude one."""
    B, A = pair
    best = float(brute(B, A, norm))
    value, exact = max_pattern_norm(B, A, norm, 2**20)
    assert exact
    assert value == pytest.approx(best, rel=1e-12, abs=1e-320)
    upper, enumerated = max_pattern_norm(B, A, norm, 1)
    if active_hidden(B, A)[1].shape[0]:
        assert not enumerated
    assert upper >= best * (1 - 1e-13)
    wide_b, wide_a = B.astype(np.longdouble), A.astype(np.longdouble)
    if math.isinf(norm):
        crude = (np.abs(wide_b) @ np.abs(wide_a).sum(axis=1)).max()
        assert upper <= crude * (1 + 1e-12) + 1e-320


@matrix_settings
@given(pairs(compressible_matrices(max_side=5, kinds=["integer", "low-rank", "orthogonal", "power-law", "row-sparse"])))
def test_decoupled_inf_lies_between(pair):
    B, A = pair
    value = decoupled_inf(B, A)
    assert float(brute(B, A, math.inf)) <= value * (1 + 1e-13)
    assert value <= float((np.abs(B) @ np.abs(A).sum(axis=1)).max()) * (1 + 1e-13)
    assert decoupled_rows(B, A).shape == (len(B),)


@matrix_settings
@given(pairs(compressible_matrices(max_side=5, kinds=["integer", "low-rank", "orthogonal", "power-law", "row-sparse"])))
def test_closed_form_2_lies_between(pair):
    """At least the pattern maximum and ‖B‖‖A‖/√2, at most ‖B‖‖A‖."""
    B, A = pair
    value = closed_form_2(B, A)
    product = float(np.linalg.norm(B, 2) * np.linalg.norm(A, 2))
    assert float(brute(B, A, 2.0)) <= value * (1 + 1e-12)
    assert product / math.sqrt(2) <= value * (1 + 1e-12) + 1e-300
    assert value <= product * (1 + 1e-12)


def test_decoupled_needs_both_signs_of_a_product():
    """One sign alone is below the exact maximum here (|−1| · 2), whichever sign is dropped."""
    B, A = np.array([[1.0, 1.0]]), np.array([[1.0], [-2.0]])
    assert decoupled_inf(B, A) == 2.0 == exact_inf(B, A)
    assert decoupled_inf(B, -A) == 2.0 == exact_inf(B, -A)
    assert decoupled_inf(-B, A) == 2.0 == exact_inf(-B, A)


# -- sizes at which the enumeration is split ------------------------------------------------------------------


def winners(h):
    """Sets of neurons that must be found as the best pattern: ends, halves, alternations."""
    sets = [{0}, {h - 1}, set(range(h)), set(range(1, h)), set(range(h - 1)), set(range(0, h, 2)), set(range(1, h, 2))]
    sets += [set(range(min(h, 10))), set(range(10, h)), {0, h - 1}, set(range(9, h))]
    return [s for s in sets if s]


@pytest.mark.parametrize("h", [1, 2, 9, 10, 11, 12, 13])
def test_each_pattern_can_be_the_best_one(h):
    """a_m = +4 on the winning set, −1 outside: the winner is unique, and every missed pattern would show."""
    for winner in winners(h):
        A = np.array([[4.0 if m in winner else -1.0] for m in range(h)])
        B = np.ones((1, h))
        expected = max(4.0 * len(winner), float(h - len(winner)))
        assert exact_inf(B, A) == expected
        assert exact_2(B, A) == pytest.approx(expected, rel=1e-12)
        assert exact_2(-B, A) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("h", [10, 11, 12, 13])
def test_split_enumeration_against_brute_force(h):
    rng = np.random.default_rng(h)
    D = ((np.arange(2**h)[:, None] >> np.arange(h)) & 1).astype(np.float64)
    for p, n in ((1, 3), (3, 1), (2, 4)):
        B, A = rng.integers(-3, 4, (p, h)).astype(float), rng.integers(-3, 4, (h, n)).astype(float)
        J = np.einsum("pm,dm,mn->dpn", B, D, A, optimize=True)
        assert exact_inf(B, A) == np.abs(J).sum(axis=2).max()
        assert exact_2(B, A) == pytest.approx(np.linalg.norm(J, 2, axis=(1, 2)).max(), rel=1e-12)


# -- edges -----------------------------------------------------------------------------------------------


@both_norms
def test_nothing_left_after_pruning(norm):
    B, A = np.array([[1.0, 0.0], [2.0, 0.0]]), np.array([[0.0, 0.0], [5.0, 6.0]])
    assert max_pattern_norm(B, A, norm, 1) == (0.0, True)
    assert exact_inf(B, A) == 0.0 == exact_2(B, A)
    assert max_pattern_norm(np.zeros((2, 3)), np.ones((3, 2)), norm, 8) == (0.0, True)
    assert closed_form_2(np.ones((1, 2)), np.zeros((2, 2))) == 0.0


@both_norms
def test_pruned_neurons_do_not_count_against_the_limit(norm):
    B = np.hstack([np.ones((1, 3)), np.zeros((1, 30))])
    assert max_pattern_norm(B, np.ones((33, 1)), norm, 8) == (pytest.approx(3.0), True)


def test_limit_on_patterns():
    assert fits(0, 1) and not fits(1, 1) and fits(1, 2) and not fits(2, 3) and fits(20, 2**20)
    B, A = np.ones((1, 3)), np.ones((3, 1))
    assert max_pattern_norm(B, A, math.inf, 8)[1] and not max_pattern_norm(B, A, math.inf, 7)[1]


@both_norms
@pytest.mark.parametrize("exponent", [0, 100, 150, 200, 300])
def test_paths_through_tiny_and_huge_weights(norm, exponent):
    """|x| with one path scaled by 1e−e and 1e+e: all patterns but one would vanish in float64's squares."""
    s = 10.0**exponent
    B, A = np.array([[s, 1 / s]]), np.array([[1 / s], [-s]])
    assert max_pattern_norm(B, A, norm, 2**20)[0] == pytest.approx(1.0, rel=1e-12)
    assert max_pattern_norm(B, A, norm, 1)[0] >= 1.0 - 1e-12


@both_norms
@pytest.mark.parametrize("exponent", [-300, -150, 150, 300])
def test_extreme_scales(norm, exponent):
    rng = np.random.default_rng(0)
    B, A = rng.integers(-3, 4, (2, 4)).astype(float), rng.integers(-3, 4, (4, 3)).astype(float)
    unit = max_pattern_norm(B, A, norm, 2**20)[0]
    s = 2.0 ** round(exponent / math.log10(2))
    assert max_pattern_norm(B * s, A / s, norm, 2**20)[0] == pytest.approx(unit, rel=1e-12)
    squared = max_pattern_norm(B * s, A * s, norm, 2**20)[0]
    if exponent == -300:
        assert 0.0 < squared < 1e-300  # underflow ends above 0: the true value is positive
    elif exponent == 300:
        assert squared == math.inf
    else:
        assert squared == pytest.approx(unit * s * s, rel=1e-12)


@network_settings
@given(pairs(compressible_matrices(max_side=4, kinds=["integer", "scaled", "float16", "one-row"]), max_hidden=4))
def test_balanced_keeps_every_product(pair):
    B, A = active_hidden(*pair)
    if A.shape[0] == 0:
        return
    a, b, e = balanced(A, B)
    assert np.all(np.isfinite(a)) and np.all(np.isfinite(b))
    assert np.abs(b).max() <= 1.0
    before = B.T[:, :, None].astype(np.longdouble) * A[:, None, :]
    after = np.ldexp(b.T[:, :, None].astype(np.longdouble) * a[:, None, :], e)
    assert np.all(np.abs(after - before) <= 2.0**-900 * np.abs(before).max())


def test_ldexp_up_never_rounds_down():
    assert ldexp_up(0.0, -5000) == 0.0 and ldexp_up(0.0, 5000) == 0.0
    assert ldexp_up(1.0, -5000) == 5e-324 and ldexp_up(1.5, -1074) >= 1.5 * 2.0**-1074
    assert ldexp_up(1.5, 3) == 12.0 and ldexp_up(1.0, 5000) == math.inf


@pytest.mark.parametrize("h", [1, 2, 3, 4])
def test_exact_2_visits_all_patterns(h):
    """Each set of neurons in turn is the only one that gives the largest norm."""
    for winner in itertools.product((0, 1), repeat=h):
        if any(winner):
            A = np.array([[4.0 if w else -1.0] for w in winner])
            assert exact_2(np.ones((1, h)), A) == pytest.approx(4.0 * sum(winner), rel=1e-12)
            assert exact_inf(np.ones((1, h)), A) == 4.0 * sum(winner)
