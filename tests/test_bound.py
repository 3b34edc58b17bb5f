"""The algebra of trust, against exact rationals: a product is never below the exact product, trust is never raised."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import operator
import pickle
from fractions import Fraction

import numpy as np
import pytest
from budget import matrix_settings
from hypothesis import example, given
from hypothesis import strategies as st

from certbound.bound import Bound, Claim, Result, compose, multiply_up, tightest, vacuous_bound
from certbound.errors import (
    CertboundError,
    CertificateError,
    ClaimMismatchError,
    InputError,
    LadderError,
    MissingDependencyError,
    UnsupportedLayerError,
)
from certbound.types import (
    GLOBAL,
    SCHEMA_VERSION,
    Quantity,
    Rigor,
    Sense,
    Status,
    dual_norm,
    norm_name,
    parse_delta,
    parse_norm,
)

L2 = Claim(Quantity.LIPSCHITZ, 2.0, 2.0)
TINY, HUGE = 5e-324, 1.7976931348623157e308

special = st.sampled_from([0.0, TINY, 2.0**-1074 * 3, 2.0**-1022, 1.0, 1.0 + 2.0**-52, HUGE, math.inf])
values = st.one_of(special, st.floats(min_value=0.0, allow_nan=False), st.floats(0.5, 2.0))
trust = st.sampled_from(list(Rigor))
words = st.sampled_from(["none", "data is i.i.d.", "no batch norm", "weights as stored"])


def bound(value=1.0, claim=L2, sense=Sense.UPPER, rigor=Rigor.NUMERICAL, **kwargs) -> Bound:
    return Bound(value, claim, sense, rigor, kwargs.pop("method", "m"), kwargs.pop("source", "s"), **kwargs)


def exact_product(factors) -> Fraction | float:
    """The least number that bounds the product of the true norms: 0 wins over ∞ (a constant map)."""
    if 0.0 in factors:
        return Fraction(0)
    return math.inf if math.inf in factors else math.prod(map(Fraction, factors), start=Fraction(1))


# -- products ------------------------------------------------------------------------------------------------------


@matrix_settings
@given(values, values)
@example(TINY, 0.5)
@example(HUGE, HUGE)
@example(1.1, 1.1)
@example(1.0 + 2.0**-52, 1.0 - 2.0**-53)
@example(1e-200, 1e-200)
@example(0.1, 3.0)
def test_multiply_up_is_never_below_the_exact_product(a, b):
    exact, got = exact_product([a, b]), multiply_up(a, b)
    assert got == multiply_up(b, a)
    if got == math.inf:  # from ∞, or from a product that the largest float bounds without a step to spare
        assert exact == math.inf or exact * (1 + Fraction(1, 2**51)) >= Fraction(HUGE)
        return
    assert Fraction(got) >= exact
    # and no looser than two units in the last place
    assert Fraction(got) <= exact + 2 * Fraction(math.ulp(got))


@matrix_settings
@given(st.lists(st.tuples(values, trust, st.lists(words, max_size=3)), min_size=1, max_size=5))
def test_compose_bounds_the_exact_product_and_never_raises_trust(parts):
    bounds = [bound(v, rigor=r, assumptions=tuple(a), method=f"m{i % 2}") for i, (v, r, a) in enumerate(parts)]
    whole = compose(*bounds)
    exact = exact_product([v for v, _, _ in parts])
    if exact == math.inf:
        assert whole.value == math.inf
    else:
        assert whole.value == math.inf or Fraction(whole.value) >= exact
        if exact == 0:
            assert whole.value == 0.0
    assert all(whole.rigor <= b.rigor for b in bounds)
    assert whole.rigor in {b.rigor for b in bounds}
    assert set(whole.assumptions) == {a for b in bounds for a in b.assumptions}
    assert len(whole.assumptions) == len(set(whole.assumptions))
    assert whole.terms == tuple(bounds)
    assert whole.sense is Sense.UPPER
    assert whole.claim.quantity is Quantity.LIPSCHITZ
    json.dumps(whole.to_dict(), allow_nan=False)


def test_compose_takes_the_ends_of_the_chain():
    first = bound(2.0, Claim(Quantity.OPERATOR_NORM, math.inf, 2.0, domain="ball 1", subject="a"))
    middle = bound(3.0, Claim(Quantity.PATTERN_NORM, 2.0, 2.0, subject="b"))
    last = bound(5.0, Claim(Quantity.OPERATOR_NORM, 2.0, 1.0, outputs=(3, 0), subject="c"))
    whole = compose(first, middle, last)
    assert whole.claim == Claim(Quantity.LIPSCHITZ, math.inf, 1.0, "ball 1", (3, 0), "a then b then c")
    assert 30.0 <= whole.value <= 30.0 * (1 + 1e-15)
    assert compose(first, middle, subject="net").claim.subject == "net"
    # one unknown subject makes the whole unknown: it must not pass for another network's
    assert compose(bound(1.0), middle).claim.subject == ""


def test_composing_one_bound_changes_no_value():
    assert compose(bound(0.1)).value == 0.1
    assert compose(bound(0.1, Claim(Quantity.OPERATOR_NORM, 2.0, 2.0))).claim.quantity is Quantity.LIPSCHITZ


@pytest.mark.parametrize(
    ("parts", "words_in_message"),
    [
        ([bound(1.0, sense=Sense.LOWER)], "lower bound"),
        ([bound(), bound(1.0, sense=Sense.LOWER)], "part 1 is a lower bound"),
        ([bound(), bound(1.0, Claim(Quantity.LIPSCHITZ, math.inf, 2.0))], "norms do not chain"),
        ([bound(1.0, Claim(Quantity.LIPSCHITZ, 2.0, 1.0)), bound()], "norms do not chain"),
        ([bound(), bound(1.0, Claim(Quantity.LIPSCHITZ, 2.0, 2.0, domain="ball"))], "only the first map may be local"),
        ([bound(1.0, Claim(Quantity.LIPSCHITZ, 2.0, 2.0, outputs=1)), bound()], "the next map sees all"),
        ([bound(1.0, Claim(Quantity.LIPSCHITZ, 2.0, 2.0, outputs=(0, 1))), bound()], "the next map sees all"),
        ([bound(1.0, Claim(Quantity.MARGIN, 2.0, 2.0))], "does not multiply"),
        ([bound(1.0, Claim(Quantity.LOSS_GAP, 2.0, 2.0))], "does not multiply"),
        ([bound(1.0, Claim(Quantity.FROBENIUS_NORM, 2.0, 2.0))], "does not multiply"),
        ([bound(1.0, Claim(Quantity.ROBUST_ACCURACY, 2.0, 2.0))], "does not multiply"),
        ([bound(1.0, Claim(Quantity.LIPSCHITZ)), bound(1.0, Claim(Quantity.LIPSCHITZ))], "no norms"),
        ([bound(1.0, Claim(Quantity.LIPSCHITZ, 2.0))], "no norms"),
    ],
)
def test_compose_refuses_what_does_not_chain(parts, words_in_message):
    with pytest.raises(ClaimMismatchError, match=words_in_message):
        compose(*parts)


def test_nothing_to_compose_or_choose_from():
    for f in (compose, lambda: tightest([]), lambda: tightest(iter(()))):
        with pytest.raises(InputError, match="at least one bound"):
            f()


# -- tightest ------------------------------------------------------------------------------------------------------


@matrix_settings
@given(st.lists(st.tuples(values, st.sampled_from([Rigor.NUMERICAL, Rigor.RIGOROUS])), min_size=1, max_size=6))
def test_tightest_is_the_best_of_its_inputs(parts):
    upper = [bound(v, rigor=r) for v, r in parts]
    best = tightest(upper)
    assert best in upper
    assert best.value == min(v for v, _ in parts)
    assert best.rigor is max(r for v, r in parts if v == best.value)
    lower = [bound(min(v, HUGE), rigor=r, sense=Sense.LOWER) for v, r in parts]
    best = tightest(iter(lower))
    assert best in lower
    assert best.value == max(b.value for b in lower)
    assert best.rigor is max(b.rigor for b in lower if b.value == best.value)


def test_tightest_refuses_heuristics_even_as_the_worst():
    for rigor_of_first, rigor_of_second in [(Rigor.HEURISTIC, Rigor.RIGOROUS), (Rigor.RIGOROUS, Rigor.HEURISTIC)]:
        with pytest.raises(InputError, match="heuristic"):
            tightest([bound(1.0, rigor=rigor_of_first), bound(2.0, rigor=rigor_of_second)])
    with pytest.raises(InputError, match="heuristic"):
        tightest([bound(1.0, rigor=Rigor.HEURISTIC)])


@pytest.mark.parametrize(
    "other",
    [
        Claim(Quantity.PATTERN_NORM, 2.0, 2.0),
        Claim(Quantity.LIPSCHITZ, math.inf, 2.0),
        Claim(Quantity.LIPSCHITZ, 2.0, math.inf),
        Claim(Quantity.LIPSCHITZ, 2.0, 2.0, domain="ball"),
        Claim(Quantity.LIPSCHITZ, 2.0, 2.0, outputs=0),
        Claim(Quantity.LIPSCHITZ, 2.0, 2.0, subject="another network"),
    ],
)
def test_tightest_refuses_other_claims(other):
    with pytest.raises(ClaimMismatchError):
        tightest([bound(), bound(2.0, other)])
    with pytest.raises(ClaimMismatchError):
        tightest([bound(), bound(2.0, sense=Sense.LOWER)])


# -- a bound alone -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", [operator.lt, operator.le, operator.gt, operator.ge])
def test_bounds_are_not_ordered(op):
    for other in (bound(2.0), 3.0, math.inf, None):
        with pytest.raises(ClaimMismatchError, match=r"compare \.value"):
            op(bound(), other)
    with pytest.raises(ClaimMismatchError):
        max(bound(), bound(2.0))
    with pytest.raises(ClaimMismatchError):
        sorted([bound(), bound(2.0)])


@pytest.mark.parametrize("value", [math.nan, np.float64("nan"), -1.0, -TINY, -math.inf])
@pytest.mark.parametrize("sense", list(Sense))
@pytest.mark.parametrize("quantity", [q for q in Quantity if q is not Quantity.MARGIN])
def test_nan_and_negative_values_are_refused(value, sense, quantity):
    with pytest.raises(InputError) as info:
        bound(value, Claim(quantity, 2.0, 2.0), sense)
    assert info.value.argument == "value"
    assert info.value.fix


def test_margins_may_be_negative_but_not_nan():
    claim = Claim(Quantity.MARGIN, math.inf)
    assert bound(-3.0, claim, Sense.LOWER).value == -3.0
    assert bound(-math.inf, claim, Sense.LOWER).vacuous
    assert not bound(0.0, claim, Sense.LOWER).vacuous
    with pytest.raises(InputError):
        bound(math.nan, claim)


@pytest.mark.parametrize("quantity", list(Quantity))
def test_an_infinite_lower_bound_is_refused(quantity):
    with pytest.raises(InputError, match="finite lower bound"):
        bound(math.inf, Claim(quantity), Sense.LOWER)


@pytest.mark.parametrize("quantity", list(Quantity))
@pytest.mark.parametrize("sense", list(Sense))
def test_vacuous_values(quantity, sense):
    b = vacuous_bound(Claim(quantity), sense, method="m", source="s")
    assert b.vacuous
    assert b.rigor is Rigor.RIGOROUS
    upper = 1.0 if quantity is Quantity.ROBUST_ACCURACY else math.inf
    lower = -math.inf if quantity is Quantity.MARGIN else 0.0
    assert b.value == (upper if sense is Sense.UPPER else lower)
    assert not bound(0.5, Claim(quantity), sense).vacuous


def test_a_bound_is_frozen_and_normalises_its_words():
    b = Bound(np.float32(1.5), L2, "upper", "rigorous", "m", "s")  # type: ignore[arg-type]
    assert type(b.value) is float and b.sense is Sense.UPPER and b.rigor is Rigor.RIGOROUS
    with pytest.raises(dataclasses.FrozenInstanceError):
        b.value = 0.0  # type: ignore[misc]
    with pytest.raises(InputError):
        bound(rigor="certified")
    with pytest.raises(ValueError):
        bound(sense="above")
    with pytest.raises(ValueError):
        Claim("speed")  # type: ignore[arg-type]


def test_rigor_is_ordered_and_parsed():
    assert Rigor.HEURISTIC < Rigor.NUMERICAL < Rigor.RIGOROUS
    for r in Rigor:
        assert Rigor.parse(str(r)) is r and Rigor.parse(r) is r and Rigor.parse(str(r).upper()) is r
    for bad in (1, None, "", "rigour", True, 2.0):
        with pytest.raises(InputError) as info:
            Rigor.parse(bad)  # type: ignore[arg-type]
        assert info.value.argument == "rigor"


@pytest.mark.parametrize("value", [2, 2.0, "2", "L2", " l2 ", np.float64(2.0)])
def test_norm_two(value):
    assert parse_norm(value) == 2.0


@pytest.mark.parametrize("value", [math.inf, "inf", "Linf", "∞", np.inf])
def test_norm_infinity(value):
    assert parse_norm(value) == math.inf


@pytest.mark.parametrize("value", [1, 3, 0, True, -2, math.nan, -math.inf, None, "two", "-inf", [2], 2 + 0j])
def test_other_norms_are_refused(value):
    with pytest.raises(InputError) as info:
        parse_norm(value, "norm_in")
    assert info.value.argument == "norm_in"


def test_names_of_norms():
    assert [norm_name(n) for n in (None, 1.0, 2.0, math.inf)] == ["-", "1", "2", "inf"]
    assert (dual_norm(2.0), dual_norm(math.inf)) == (2.0, 1.0)


@pytest.mark.parametrize("value", [0, 0.5, 8 / 255, np.float32(0.25), Fraction(1, 4)])
def test_delta(value):
    assert parse_delta(value) == float(value)


@pytest.mark.parametrize("value", [-1, -TINY, math.nan, math.inf, True, "0.1", None, [0.1], 1j])
def test_bad_delta(value):
    with pytest.raises(InputError) as info:
        parse_delta(value)
    assert info.value.argument == "delta"


# -- leaving the process -------------------------------------------------------------------------------------------

EXTREME = [bound(math.inf), bound(0.0, sense=Sense.LOWER), bound(TINY), bound(HUGE)]


@pytest.mark.parametrize("value", EXTREME, ids=lambda b: repr(b.value))
def test_to_dict_is_json_without_nan(value):
    inner = dataclasses.replace(value, slack=(("row step", math.inf),), parameters=(("k", 1.0),), terms=(value,))
    for thing in (inner, Result(inner, Status.FAILED, stats=(("gap", math.inf), ("solver", "scs")))):
        data = thing.to_dict()
        assert data["schema_version"] == SCHEMA_VERSION
        again = json.loads(json.dumps(data, allow_nan=False))
        assert again == data
    assert float(inner.to_dict()["value"]) == value.value
    assert inner.to_dict()["slack"] == {"row step": "inf"}
    assert len(inner.to_dict()["terms"]) == 1


def test_claims_in_json():
    data = Claim(Quantity.LIPSCHITZ, math.inf, 1.0, outputs=(3, 1), subject="abc").to_dict()
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert data == {
        "quantity": "Lipschitz constant",
        "norm_in": "inf",
        "norm_out": 1.0,
        "domain": GLOBAL,
        "outputs": [3, 1],
        "subject": "abc",
    }


@pytest.mark.parametrize("status", list(Status))
def test_results_pickle_and_print(status):
    result = Result(compose(bound(2.0, assumptions=("a",)), bound(3.0)), status, stats=(("gap", 0.5),))
    for again in (pickle.loads(pickle.dumps(result)), copy.deepcopy(result)):
        assert again == result
        assert again.status is status and again.bound.terms == result.bound.terms
    assert result.gap == 0.5 and result.value == result.bound.value
    assert status.word in str(result) and status.sentence in str(result)
    assert "assumes" in str(result)
    assert Result(bound(), status).gap is None


@pytest.mark.parametrize(
    "error",
    [
        InputError("W", got="a", needed="b", fix="c"),
        UnsupportedLayerError("model", got="a", needed="b", fix="c"),
        ClaimMismatchError("x"),
        MissingDependencyError("scs", purpose="p", command="c"),
        LadderError("x"),
        CertificateError("x"),
    ],
)
def test_errors_pickle(error):
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)
    assert isinstance(error, CertboundError)


def test_an_error_teaches():
    error = InputError("delta", got="-1", needed="a number >= 0", fix="pass a radius")
    assert str(error) == "delta: got -1; needed a number >= 0. Fix: pass a radius."
    assert isinstance(error, ValueError)
    assert isinstance(ClaimMismatchError("x"), TypeError)
    assert isinstance(MissingDependencyError("scs", purpose="p", command="c"), ImportError)
