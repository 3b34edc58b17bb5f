"""The pair's SDP: exact <= repaired optimum <= closed form, whatever the solver says."""

from __future__ import annotations

import math

import numpy as np
import pytest
from budget import network_settings
from hypothesis import given, settings
from hypothesis import strategies as st

from certbound.errors import MissingDependencyError
from certbound.lipschitz import sdp_cvxpy
from certbound.lipschitz.alignment import alignment_pair, lipschitz_alignment
from certbound.lipschitz.exact import lipschitz_exact
from certbound.lipschitz.pair_sdp import pair_sdp_2
from certbound.lipschitz.pattern_pair import active_hidden, balanced, closed_form_2, exact_2
from certbound.lipschitz.product import lipschitz_product
from certbound.lipschitz.repair import Multipliers
from certbound.network import Network
from certbound.types import Status

UP = 1 + 1e-9
SIX = np.array([[1.0, 1.0]]), np.array([[2.0, 1, 0, -1], [-2, 0, -1, -1]])
pair_settings = settings(max_examples=2 * network_settings.max_examples)


def pair(seed, integer=True):
    rng = np.random.default_rng(seed)
    p, h, n = rng.integers(1, 6, 3)
    if integer:
        return rng.integers(-3, 4, (p, h)).astype(float), rng.integers(-3, 4, (h, n)).astype(float)
    return rng.standard_normal((p, h)), rng.standard_normal((h, n))


@pair_settings
@given(seed=st.integers(0, 2**32 - 1), integer=st.booleans())
def test_between_the_exact_value_and_the_closed_form(seed, integer):
    B, A = pair(seed, integer)
    value, status = pair_sdp_2(B, A)
    assert status is Status.OK
    assert exact_2(B, A) <= value * UP
    used_b, used_a = active_hidden(B, A)
    if used_a.size:
        a, b, exponent = balanced(used_a, used_b)
        assert value <= math.ldexp(closed_form_2(b, a), exponent) * UP
        assert value <= math.ldexp(np.linalg.norm(b, 2) * np.linalg.norm(a, 2), exponent) * UP


def test_two_hundred_integer_nets():
    """Never below the exact value, and nearer to it than the closed form."""
    better = 0
    for seed in range(200):
        B, A = pair(seed)
        value, true = pair_sdp_2(B, A)[0], exact_2(B, A)
        assert true <= value * UP
        better += value < closed_form_2(B, A) * (1 - 1e-3)
    assert better > 100


def test_square_root_of_six():
    assert pair_sdp_2(*SIX)[0] == pytest.approx(2.598, abs=1e-3)  # the relaxation's optimum; the maximum is sqrt 6


@pytest.mark.parametrize("exponents", [(600, 600), (-600, -600), (900, -900), (-1000, 20)])
def test_powers_of_two(exponents):
    B, A = pair(7)
    value = math.frexp(pair_sdp_2(B, A)[0])
    got = math.frexp(pair_sdp_2(np.ldexp(B, exponents[0]), np.ldexp(A, exponents[1]))[0])
    if abs(sum(exponents)) < 1000:
        assert got[0] == pytest.approx(value[0], rel=1e-6) and got[1] == value[1] + sum(exponents)
    else:
        assert got[0] == math.inf if sum(exponents) > 0 else got[0] > 0  # on the upper side


def test_degenerate_pairs():
    assert pair_sdp_2(np.zeros((2, 3)), np.ones((3, 2))) == (0.0, Status.OK)
    assert pair_sdp_2(np.array([[0.0, 2.0]]), np.array([[5.0], [0.0]])) == (0.0, Status.OK)
    assert pair_sdp_2(np.array([[2.0]]), np.array([[-3.0]]))[0] == pytest.approx(6.0, rel=1e-9)


# -- a solver that errs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [0.0, 1e-3, 0.5, 0.9, 2.0, 1e3])
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_wrong_multipliers(monkeypatch, factor, seed):
    B, A = pair(seed + 20)
    solve = sdp_cvxpy.solve

    def wrong(*args):
        answer = solve(*args)
        rng = np.random.default_rng(seed)
        t = tuple(x * factor * rng.uniform(0.5, 1.5, x.shape) for x in answer.multipliers.t)
        return sdp_cvxpy.SolverAnswer(Multipliers(t, answer.multipliers.d), 0.0, answer.solver, "optimal")

    monkeypatch.setattr(sdp_cvxpy, "solve", wrong)
    value, status = pair_sdp_2(B, A)
    assert status in (Status.OK, Status.FAILED)
    assert exact_2(B, A) <= value * UP and value <= closed_form_2(B, A) * UP


def test_statuses(monkeypatch):
    B, A = pair(3)
    fallback = closed_form_2(B, A)

    def answers(status):
        return lambda *_: sdp_cvxpy.SolverAnswer(None, math.nan, "CLARABEL", status)

    for said, status in (("solver error", Status.FAILED), ("user_limit", Status.TIME_LIMIT)):
        monkeypatch.setattr(sdp_cvxpy, "solve", answers(said))
        assert pair_sdp_2(B, A) == (pytest.approx(fallback), status)

    def missing(*_):
        raise MissingDependencyError("cvxpy", purpose="a test", command="pip")

    monkeypatch.setattr(sdp_cvxpy, "solve", missing)
    assert pair_sdp_2(B, A) == (pytest.approx(fallback), Status.NOT_INSTALLED)
    monkeypatch.setattr(sdp_cvxpy, "SCS_LIMIT", 1)
    large = np.ones((3, 3))
    assert pair_sdp_2(large, large) == (pytest.approx(9.0), Status.TOO_LARGE)


def test_wide_and_tall(monkeypatch):
    """Only the triangular factors go to the solver; the norm is the same."""
    rng = np.random.default_rng(1)
    B, A = rng.standard_normal((30, 4)), rng.standard_normal((4, 200))
    seen = []
    solve = sdp_cvxpy.solve

    def recorded(encoder, head, *rest):
        seen.append((encoder[0].shape, head.shape))
        return solve(encoder, head, *rest)

    monkeypatch.setattr(sdp_cvxpy, "solve", recorded)
    value = pair_sdp_2(B, A)[0]
    assert seen == [((4, 4), (4, 4))]
    assert exact_2(B, A) <= value * UP and value <= closed_form_2(B, A) * UP


# -- in the alignment cover ------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_alignment_pair_with_the_sdp(seed):
    B, A = pair(seed)
    for k in (None, 1, 2):
        plain = alignment_pair(B, A, norm=2.0, k=k, max_patterns=1)
        better = alignment_pair(B, A, norm=2.0, k=k, max_patterns=1, pair_sdp=True)
        assert better.pair_norm <= plain.pair_norm * UP
        assert exact_2(B, A) <= better.pair_norm * UP
        assert not plain.sdp
    assert alignment_pair(B, A, norm=2.0, pair_sdp=True).sdp is False  # enumerated: nothing to solve
    assert alignment_pair(B, A, norm=math.inf, max_patterns=1, pair_sdp=True).sdp is False


def test_cover_with_the_sdp():
    for seed in range(5):
        rng = np.random.default_rng(seed)
        W = [rng.standard_normal(s) for s in ((6, 4), (5, 6), (3, 5))]
        plain = lipschitz_alignment(W, 2, max_patterns=1)
        better = lipschitz_alignment(W, 2, max_patterns=1, pair_sdp=True)
        assert lipschitz_exact(W).value <= better.value * UP
        assert better.value < plain.value <= lipschitz_product(W).value * UP
        assert "pair SDP, repaired" in str(better.bound.method) and "closed-form" in plain.bound.method
    # biases do not matter
    net = Network.from_weights(W, [np.ones(w.shape[0]) for w in W])
    assert lipschitz_alignment(net, 2, max_patterns=1, pair_sdp=True).value == pytest.approx(better.value, rel=1e-9)
