"""Enclosures of all singular values, against roots of exact characteristic polynomials."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from budget import matrix_settings
from exact_spectra import cayley, rational, singular_values
from hypothesis import example, given
from hypothesis import strategies as st

from certbound.errors import NumericalError
from certbound.norms.singular_values import distance, enclose_from_factors, enclose_singular_values
from certbound.testing.strategies import compressible_matrices

EXTREME = np.array([[1e300, 0.0, 3.0], [1e-300, 2.0, 1e-8], [5e-324, 1e300, -1e300]])


def assert_encloses(W):
    found, scale = enclose_singular_values(W)
    exact = singular_values(rational(W))
    unit = Fraction(scale)
    assert len(found.low) == len(exact) == min(W.shape)
    for low, high, sigma in zip(found.low, found.high, exact, strict=True):
        assert Fraction(float(low)) * unit <= sigma.lo * (1 + Fraction(1, 2**99))
        assert sigma.hi * (1 - Fraction(1, 2**99)) <= Fraction(float(high)) * unit
    return found, exact


@matrix_settings
@given(compressible_matrices(max_side=6))
@example(np.zeros((2, 3)))
@example(np.full((2, 2), 5e-324))
@example(np.array([[5e-324, 0.0], [5e-324, 5e-324]]))
@example(EXTREME)
@example(EXTREME.T)
@example(np.diag([1e300, 1.0, 1e-300]))
@example(np.array([[1e300, 1e-300], [0.0, 1e-300]]))
@example(np.full((3, 2), np.finfo(float).max))
@example(np.array([[1e300, 1e-10, 1e-300, 5e-324]]))
def test_every_singular_value_lies_in_its_enclosure(W):
    W = np.asarray(W, dtype=np.float64)
    found, _ = assert_encloses(W)
    assert np.all(np.diff(found.high) <= 0) and np.all(np.diff(found.low) <= 0)
    if W.any():
        # one absolute error for all, of a few units of the largest
        assert float(np.max(found.high - found.low)) <= 1e-13 * float(found.high[0])


@matrix_settings
@given(st.integers(0, 2**20), st.integers(2, 5), st.lists(st.integers(0, 9), min_size=5, max_size=5))
def test_prescribed_spectra(seed, n, spectrum):
    """Integer matrices ``M diag(s) N`` with M, N orthogonal up to factors: the singular values are d e s_i, exactly."""
    rng = np.random.default_rng(seed)
    (M, d), (N, e) = cayley(rng, n, 1), cayley(rng, n, 1)
    W = M @ np.diag(np.array(spectrum[:n], dtype=object)) @ N
    if max(abs(int(v)) for v in W.ravel()) >= 2**53:
        return
    found, scale = enclose_singular_values(W.astype(np.float64))
    for low, high, s in zip(found.low, found.high, sorted(spectrum[:n], reverse=True), strict=True):
        assert Fraction(float(low)) * Fraction(scale) <= abs(d * e) * s <= Fraction(float(high)) * Fraction(scale)


@pytest.mark.parametrize(
    ("W", "sigma"),
    [
        ([[3.0, 4.0]], [5.0]),
        ([[3.0], [4.0]], [5.0]),
        ([[0.0, -7.0], [2.0, 0.0], [0.0, 0.0]], [7.0, 2.0]),
        ([[0.0, 0.0], [0.0, 0.0]], [0.0, 0.0]),
        (np.diag([2.0**-900, 2.0**20, 3.0]), [2.0**20, 3.0, 2.0**-900]),
    ],
)
def test_exact_where_it_can_be(W, sigma):
    found, scale = enclose_singular_values(np.array(W))
    assert (found.low * scale).tolist() == sigma == (found.high * scale).tolist()


# -- LAPACK is not trusted: whatever it returns, the enclosure is one ------------------------------------------------


def spoilers(rng):
    """Each takes a true SVD and returns a wrong one."""

    def values(u, s, v):
        return u, s * (1 + 0.1 * rng.standard_normal(len(s))), v

    def left(u, s, v):
        return u + 0.05 * rng.standard_normal(u.shape), s, v

    def right(u, s, v):
        return u, s, v + 0.05 * rng.standard_normal(v.shape)

    def order(u, s, v):
        return u[:, ::-1], s[::-1], v[::-1]

    def signs(u, s, v):
        return -u, -s, v

    def stretched(u, s, v):  # the product is right, and U is not orthogonal: s says nothing by itself
        return u * 4.0, s / 8.0, v * 2.0

    def shrunk(u, s, v):
        return u / 4.0, s * 8.0, v / 2.0

    def mixed(u, s, v):  # the product is right with oblique factors
        T = np.eye(len(s)) + np.triu(0.2 * rng.standard_normal((len(s), len(s))), 1)
        return u @ np.diag(s) @ T, np.ones(len(s)), np.linalg.solve(T, v)

    def zero(u, s, v):
        return np.zeros_like(u), s, v

    def slightly(u, s, v):
        return u, s * (1 + 1e-9), v

    def slightly_oblique(u, s, v):
        return u * (1 + 1e-9), s / (1 + 1e-9), v

    def slightly_oblique_right(u, s, v):
        return u, s / (1 - 1e-9), v * (1 - 1e-9)

    return [values, left, right, order, signs, stretched, shrunk, mixed, zero, slightly, slightly_oblique,
            slightly_oblique_right]  # fmt: skip


@pytest.mark.parametrize("which", range(12))
def test_wrong_factors_give_wide_enclosures_not_wrong_ones(which, monkeypatch):
    rng = np.random.default_rng(which)
    true_svd = np.linalg.svd
    spoil = spoilers(rng)[which]
    for shape in [(2, 2), (4, 3), (3, 5), (5, 5)] * 3:
        W = rng.standard_normal(shape)
        with monkeypatch.context() as m:
            m.setattr(np.linalg, "svd", lambda *a, **k: spoil(*true_svd(*a, **k)))
            assert_encloses(W)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("at", range(3))
def test_numbers_that_are_not_finite_are_refused(bad, at):
    W = np.array([[1.0, 2.0], [3.0, 4.0]])
    factors = [np.array(x) for x in np.linalg.svd(W)]
    factors[at].flat[0] = bad
    with pytest.raises(NumericalError, match="not finite"):
        enclose_from_factors(W, *factors)


def test_factors_of_the_wrong_shape_and_failures_are_refused(monkeypatch):
    W = np.array([[1.0, 2.0, 0.0], [3.0, 4.0, 1.0]])
    u, s, v = np.linalg.svd(W, full_matrices=False)
    for factors in ((u[:, :1], s[:1], v[:1]), (u, s[:1], v), (u, s, v.T)):
        with pytest.raises(NumericalError):
            enclose_from_factors(W, *factors)

    def fails(*_args, **_kwargs):
        raise np.linalg.LinAlgError("no convergence")

    monkeypatch.setattr(np.linalg, "svd", fails)
    with pytest.raises(NumericalError, match="2 x 3"):
        enclose_singular_values(W)
    assert enclose_singular_values(np.eye(3))[0].high.tolist() == [1.0] * 3  # needs none


def test_rounding_of_the_product_counts():
    """The computed product equals the target, the exact one does not: the distance seen is 0, the true one not."""
    rng = np.random.default_rng(0)
    for n in (1, 2, 5, 40):
        for _ in range(20):
            A, B = rng.standard_normal((3, n)), rng.standard_normal((n, 2))
            target = A @ B
            a, b, t = rational(A), rational(B), rational(target)
            square = sum((t[i][j] - sum(a[i][k] * b[k][j] for k in range(n))) ** 2 for i in range(3) for j in range(2))
            assert 0 < square <= Fraction(distance(target, A, B)) ** 2
            moved = target + 1e-10
            assert distance(moved, A, B) >= 1e-10


def test_underflow_by_scaling_counts():
    """5e-324 beside 1e300 vanishes when W is scaled; σ_2 is 5e-324 (rank two), not 0."""
    W = np.array([[1e300, 0.0], [0.0, 5e-324]])
    found, scale = enclose_singular_values(W)
    assert Fraction(float(found.high[1])) * Fraction(scale) >= Fraction(5e-324)
    assert found.low[1] == 0.0
