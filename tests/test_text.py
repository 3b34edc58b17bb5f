"""Numbers as they are printed: a bound stays one."""

from __future__ import annotations

import math

from budget import matrix_settings
from hypothesis import given
from hypothesis import strategies as st

from certbound import spectral_norm_lower, spectral_norm_upper
from certbound.text import at_least, at_most, number


@matrix_settings
@given(value=st.floats(allow_nan=False))
def test_printed_bounds_are_on_the_right_side(value):
    above, below = at_most(value), at_least(value)
    assert above.startswith("<= ") and below.startswith(">= ")
    assert float(above[3:]) >= value >= float(below[3:])
    if math.isfinite(value) and 1e-300 < abs(value) < 1e300:  # and hardly more is said than was asked for
        assert abs(float(above[3:]) - value) <= 1.01e-4 * abs(value)
        assert len(above) <= 3 + len("-1.2345e-123")


@matrix_settings
@given(digits=st.integers(-99999, 99999), exponent=st.integers(-30, 30))
def test_what_five_digits_hold_is_printed_as_it_is(digits, exponent):
    value = float(f"{digits}e{exponent}")
    if float(number(value)) == value and abs(value) < 2**53 and value == int(value):  # exact, as 0.3 is not
        assert at_most(value) == f"<= {number(value)}" and at_least(value) == f">= {number(value)}"


def test_a_bound_prints_outward():
    W = [[2.0, 1.0], [1.0, 1.0]]  # (3 + √5)/2 = 2.6180…
    assert "<= 2.6181 " in str(spectral_norm_upper(W, rigor="rigorous"))
    assert ">= 2.618 " in str(spectral_norm_lower(W, rigor="rigorous"))
