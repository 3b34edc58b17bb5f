"""Outward rounding and proofs of positive definiteness, against exact rationals."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from budget import matrix_settings, network_settings
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rationals import exact_sum, fractions, moved, semidefinite

from certbound import rounding
from certbound.errors import NumericalError
from certbound.rounding import (
    TINY,
    Interval,
    U,
    block_definite,
    default_shift,
    down,
    enclose_norm,
    enclose_square_sum,
    enclose_sum,
    gamma,
    positive_definite,
    product_error,
    quick_norm,
    sqrt_down,
    sqrt_up,
    up,
)

sizes = st.floats(0.0, 2.0, allow_subnormal=True)
hard = st.one_of(
    sizes,
    st.integers(-60, 0).map(lambda e: 2.0**e),
    st.tuples(st.integers(1, 9), st.integers(-1074, 0)).map(lambda t: math.ldexp(t[0], t[1])),
)
vectors = st.lists(hard, min_size=1, max_size=12).map(np.array)


# -- sums and norms -------------------------------------------------------------------------------------


@matrix_settings
@given(v=vectors)
def test_sums_are_neighbouring_floats_around_the_exact_sum(v):
    low, high = enclose_sum(v)
    assert Fraction(low) <= exact_sum(v) <= Fraction(high)
    assert high in (low, math.nextafter(low, math.inf))
    assert (low == high) == (Fraction(low) == exact_sum(v))


@matrix_settings
@given(v=vectors)
def test_square_sums_and_norms(v):
    low, high = enclose_square_sum(v)
    true = sum((Fraction(x) ** 2 for x in v.tolist()), Fraction(0))
    assert Fraction(low) <= true <= Fraction(high)
    if np.all((v == 0) | (v >= 2.0**-480)):
        assert high in (low, math.nextafter(low, math.inf))
    for ends in (enclose_norm(v), quick_norm(v)):
        assert Fraction(ends[0]) ** 2 <= true <= Fraction(ends[1]) ** 2
    if np.all((v == 0) | (v >= 2.0**-480)):
        assert enclose_norm(v)[1] <= quick_norm(v)[1]


@matrix_settings
@given(x=st.floats(0.0, 1e300))
def test_square_roots_are_the_nearest_on_their_side(x):
    low, high = sqrt_down(x), sqrt_up(x)
    assert Fraction(low) ** 2 <= Fraction(x) <= Fraction(high) ** 2
    assert Fraction(math.nextafter(low, math.inf)) ** 2 > Fraction(x)
    assert high == 0.0 or Fraction(math.nextafter(high, 0.0)) ** 2 < Fraction(x)


@pytest.mark.parametrize("seed", range(3))
def test_long_sums(seed):
    """Above 65,536 terms an a-priori factor replaces exact summation; ``exact`` brings it back."""
    v = np.random.default_rng(seed).random(70_000)
    v[0] = 2.0**60 if seed == 1 else v[0]
    true = exact_sum(v)
    low, high = enclose_sum(v)
    assert Fraction(low) < true < Fraction(high) and high - low < 1e-10 * high
    low, high = enclose_sum(v, exact=True)
    assert Fraction(low) <= true <= Fraction(high) and high == math.nextafter(low, math.inf)
    true = sum((Fraction(x) ** 2 for x in v.tolist()), Fraction(0))
    for low, high in (enclose_square_sum(v), enclose_square_sum(v, exact=True)):
        assert Fraction(low) <= true <= Fraction(high)


def test_up_and_down():
    assert up(1.0) == 1 + 2 * U and down(1.0) == 1 - U
    assert up(0.0) == 2.0**-1074 and down(0.0) == 0.0 and down(2.0**-1074) == 0.0
    assert up(math.inf) == math.inf and math.isnan(up(math.nan))
    pair = np.array([1.0, 0.0])
    assert up(pair).tolist() == [1 + 2 * U, 2.0**-1074] and down(pair).tolist() == [1 - U, 0.0]


def test_gamma():
    for n in (1, 2, 10, 10**6):
        exact = Fraction(n) / 2**53 / (1 - Fraction(n) / 2**53)
        assert exact <= Fraction(gamma(n)) <= exact * (1 + Fraction(1, 2**50))
    with pytest.raises(NumericalError, match="at most 2"):
        gamma(2**52)


# -- the arithmetic that is assumed ------------------------------------------------------------------------


def test_flushed_subnormals_are_refused():
    assert torch.set_flush_denormal(True), "this processor cannot flush: nothing to test"
    try:
        with pytest.raises(NumericalError, match="flushes subnormal"):
            rounding.check_arithmetic()
    finally:
        torch.set_flush_denormal(False)
    rounding.check_arithmetic()


@pytest.mark.parametrize("mode", [0x400, 0x800, 0xC00], ids=["down", "up", "zero"])
def test_another_rounding_mode_is_refused(mode):
    import ctypes

    libm = ctypes.CDLL("libm.so.6")
    assert libm.fegetround() == 0
    try:
        assert libm.fesetround(mode) == 0
        with pytest.raises(NumericalError, match="round to nearest"):
            rounding.check_arithmetic()
    finally:
        libm.fesetround(0)
    rounding.check_arithmetic()


# -- intervals -------------------------------------------------------------------------------------------


ends = st.tuples(hard, hard).map(lambda p: (min(p), max(p)))


def inside(interval, value):
    high = float(interval.high)
    return Fraction(float(interval.low)) <= value and (math.isinf(high) or value <= Fraction(high))


@matrix_settings
@given(a=ends, b=ends, data=st.data())
def test_intervals_hold_every_result(a, b, data):
    x, y = Interval.of(*a), Interval.of(*b)
    u = Fraction(data.draw(st.sampled_from(a), "u"))
    v = Fraction(data.draw(st.sampled_from(b), "v"))
    assert inside(x + y, u + v) and inside(x * y, u * v) and inside(x - y, max(u - v, Fraction(0)))
    assert inside(x.maximum(y), max(u, v)) and inside(x.minimum(y), min(u, v))
    if v:
        assert inside(x / y, u / v)
    root = x.sqrt()
    assert Fraction(float(root.low)) ** 2 <= u <= Fraction(float(root.high)) ** 2


@matrix_settings
@given(v=vectors)
def test_cumulative_sums(v):
    sums = Interval.of(v).cumsum()
    for i in range(len(v)):
        assert inside(sums[i], exact_sum(v[: i + 1]))


def test_intervals_refuse_what_is_no_size():
    for low, high in ((-1.0, 1.0), (2.0, 1.0), (math.nan, 1.0), (0.0, math.nan)):
        with pytest.raises(NumericalError):
            Interval.of(low, high)
    assert float((Interval.of(1.0) / Interval.of(0.0, 1.0)).high) == math.inf
    assert float((Interval.of(0.0) * Interval.of(1.0, math.inf)).high) == 0.0
    assert float((Interval.of(1.0, math.inf) / Interval.of(1.0, math.inf)).low) == 0.0


# -- matrices ------------------------------------------------------------------------------------------


@st.composite
def nearly_singular(draw):
    """``B Bᵀ`` plus a diagonal of the size of rounding, of either sign: what a careless Cholesky gets wrong."""
    n = draw(st.integers(1, 5))
    rank = draw(st.integers(1, n))
    B = draw(arrays(np.float64, (n, rank), elements=st.integers(-9, 9).map(float)))
    if draw(st.booleans()):
        B = B / draw(st.sampled_from([3.0, 7.0, 10.0]))
    A = B @ B.T
    A = np.tril(A) + np.tril(A, -1).T
    nudge = draw(st.integers(-40, 400)) * U * max(1.0, float(np.trace(A)))
    return A + nudge * np.eye(n)


@matrix_settings
@given(A=nearly_singular())
def test_positive_definite_is_a_proof(A):
    if positive_definite(A):
        assert semidefinite(fractions(A))


@matrix_settings
@given(A=nearly_singular(), error=st.floats(1e-17, 1.0))
def test_a_proof_covers_the_error(A, error):
    """True with an error e proves A − e I ⪰ 0: the worst matrix within e."""
    if positive_definite(A, error):
        assert semidefinite(moved(fractions(A), -Fraction(error)))


@matrix_settings
@given(A=nearly_singular(), part=st.floats(0.0, 1.5))
def test_no_shift_proves_what_is_false(A, part):
    """Also with a shift that is too small, where Cholesky completes on what is not semidefinite."""
    shift = part * default_shift([A])
    if positive_definite(A, shift=shift):
        assert semidefinite(fractions(A))


def test_cholesky_completes_where_nothing_is_proved():
    """What the shift is for: LAPACK factors an indefinite matrix, and we do not believe it."""
    rng = np.random.default_rng(0)
    completed = 0
    for _ in range(400):
        B = rng.standard_normal((4, 2))
        A = B @ B.T
        A = np.tril(A) + np.tril(A, -1).T + rng.integers(0, 3) * U * np.eye(4)
        try:
            np.linalg.cholesky(A)
        except np.linalg.LinAlgError:
            continue
        if not semidefinite(fractions(A)):
            completed += 1
            assert not positive_definite(A) and not positive_definite(A, shift=0.0)
    assert completed > 10


@pytest.mark.parametrize("n", [1, 2, 5, 40, 300])
def test_proofs_succeed_close_to_the_boundary(n):
    """What is definite by four times the shift is proved; by less than 0 it is not."""
    rng = np.random.default_rng(n)
    Q = np.linalg.qr(rng.standard_normal((n, n)))[0]
    d = np.linspace(0.0, 1.0, n) if n > 1 else np.zeros(1)
    A = (Q * d) @ Q.T
    A = np.tril(A) + np.tril(A, -1).T
    shift = default_shift([A + np.eye(n) * 1e-9])
    assert shift < 1e-10
    assert positive_definite(A + (4 * shift + 1e-14) * np.eye(n))
    assert not positive_definite(A - 1e-13 * np.eye(n))


def test_wrong_shifts_prove_nothing_false():
    A = np.array([[1.0, 1.0], [1.0, 1.0]]) - 1e-16 * np.eye(2)  # an eigenvalue below 0
    B = np.array([[1.0, 1.0 + 4e-16], [1.0 + 4e-16, 1.0]])
    for shift in (0.0, -1e-15, -1.0, 1e-17, 1e-15, 1e-3, 2.0, math.inf, math.nan):
        assert not positive_definite(B, shift=shift), shift
    assert not positive_definite(A, shift=0.0)
    assert positive_definite(np.eye(2), shift=0.5) and not positive_definite(np.eye(2), shift=1.5)


@pytest.mark.parametrize(
    "A",
    [
        np.array([[1.0, math.nan], [math.nan, 1.0]]),
        np.array([[math.inf, 0.0], [0.0, 1.0]]),
        np.array([[1.0, 0.0], [0.9, 1.0]]),  # LAPACK reads one triangle
        np.array([[1.0, 0.9], [0.0, 1.0]]),
        np.array([[-1.0]]),
        np.array([[0.0]]),
        np.zeros((2, 2)),
        np.ones((2, 3)),
        np.zeros((0, 0)),
        np.array([[2.0**600]]),
    ],
    ids=str,
)
def test_matrices_that_prove_nothing(A):
    assert not positive_definite(A)


@pytest.mark.parametrize("error", [-1.0, math.nan, math.inf])
def test_an_error_that_is_none(error):
    assert not positive_definite(np.eye(2), error)


@st.composite
def chains(draw):
    """A random block tridiagonal matrix near the boundary of positive definiteness, and it as one matrix."""
    sizes = draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    lower = [rng.integers(-4, 5, (b, a)).astype(float) for a, b in pairwise(sizes)]
    first_vector = draw(st.booleans())
    diagonal = []
    for i, n in enumerate(sizes):
        if (i == 0 and first_vector) or draw(st.booleans()):
            diagonal.append(rng.integers(1, 12, n).astype(float))
        else:
            B = rng.integers(-3, 4, (n, n)).astype(float)
            diagonal.append(B @ B.T + rng.integers(0, 8) * np.eye(n))
    whole = np.zeros((sum(sizes), sum(sizes)))
    start = 0
    for i, block in enumerate(diagonal):
        n = len(block)
        whole[start : start + n, start : start + n] = np.diag(block) if block.ndim == 1 else block
        if i < len(lower):
            m = len(lower[i])
            whole[start + n : start + n + m, start : start + n] = lower[i]
            whole[start : start + n, start + n : start + n + m] = lower[i].T
        start += n
    return diagonal, lower, whole


@matrix_settings
@given(chain=chains())
def test_block_tridiagonal_matrices(chain):
    """Blocks and the whole agree; True is a proof, and clear cases are decided."""
    diagonal, lower, whole = chain
    proved = block_definite(diagonal, lower)
    if proved:
        assert semidefinite(fractions(whole))
    smallest = float(np.linalg.eigvalsh(whole)[0])
    if smallest > 1e-10:
        assert proved and positive_definite(whole)
    if smallest < -1e-10:
        assert not proved


def test_blocks_that_do_not_fit_prove_nothing():
    one = np.ones(1)
    assert block_definite([2 * one, 2 * one], [np.array([[1.0]])])
    assert not block_definite([2 * one, 2 * one], [])
    assert not block_definite([2 * one, 2 * one], [np.ones((2, 1))])
    assert not block_definite([2 * one, np.array([[2.0, 1.0], [0.0, 2.0]])], [np.zeros((2, 1))])
    assert not block_definite([2 * one, 2 * one], [np.array([[math.nan]])])


def test_a_factor_that_is_wrong_is_noticed(monkeypatch):
    """LAPACK is not trusted: whatever it returns is multiplied out."""
    true = np.linalg.cholesky
    for wrong in (lambda A: true(A) * (1 + 1e-13), lambda A: np.eye(len(A)), lambda A: true(A) + 1e-12,
                  lambda A: np.full_like(A, math.nan)):  # fmt: skip
        monkeypatch.setattr(np.linalg, "cholesky", wrong)
        assert not positive_definite(np.array([[2.0, 1.0], [1.0, 2.0]]))
    indefinite = np.array([[1.0, 2.0], [2.0, 1.0]])
    monkeypatch.setattr(np.linalg, "cholesky", lambda A: np.array([[1.0, 0.0], [2.0, 0.0]]))
    assert not positive_definite(indefinite)


def test_the_rounding_of_the_residual_enters_the_proof(monkeypatch):
    """It is far smaller than its bound, so that falsification cannot miss it: it is blown up instead."""
    A = np.array([[2.0, 1.0], [1.0, 2.0]])
    assert positive_definite(A, shift=0.25)
    monkeypatch.setattr(rounding, "gamma", lambda n: 0.1 if n > 0 else 0.0)
    assert not positive_definite(A, shift=0.25)
    monkeypatch.setattr(rounding, "gamma", lambda n: 0.01 if n > 0 else 0.0)
    assert positive_definite(A, shift=0.25)
    monkeypatch.undo()
    assert positive_definite(A, error=0.2, shift=0.25) and not positive_definite(A, error=0.3, shift=0.25)


def test_a_wrong_factor_below_the_diagonal_is_noticed(monkeypatch):
    """The blocks below the diagonal are solved for, by LAPACK as well."""
    diagonal, lower = [np.array([[2.0]]), np.array([[2.0]])], [np.array([[1.0]])]
    assert block_definite(diagonal, lower)
    true = np.linalg.solve
    monkeypatch.setattr(np.linalg, "solve", lambda A, B: 0.5 * true(A, B))
    assert not block_definite(diagonal, lower)


@network_settings
@given(seed=st.integers(0, 2**32 - 1), m=st.integers(1, 4), n=st.integers(1, 40), p=st.integers(1, 4),
       spread=st.sampled_from([0, 30, 500, 560]))  # fmt: skip
def test_product_errors(seed, m, n, p, spread):
    """``‖fl(AB) − AB‖_F`` in rationals, also where products underflow."""
    rng = np.random.default_rng(seed)
    A, B = (np.ldexp(rng.standard_normal(s), -rng.integers(0, spread + 1, s)) for s in ((m, n), (n, p)))
    computed, error = A @ B, Fraction(product_error(A, B))
    FA, FB = fractions(A), fractions(B)
    off = Fraction(0)
    for i in range(m):
        for j in range(p):
            off += (Fraction(computed[i, j]) - sum((FA[i][k] * FB[k][j] for k in range(n)), Fraction(0))) ** 2
    assert off <= error**2
    usual = gamma(n) * float(np.linalg.norm(A)) * float(np.linalg.norm(B))
    assert spread == 560 or float(error) <= 1.01 * usual + 100 * n * m * p * TINY
