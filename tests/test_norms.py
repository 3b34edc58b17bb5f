"""Norms of one matrix, against exact rationals and matrices whose singular values are known."""

from __future__ import annotations

import json
import math
import sys
import warnings
from fractions import Fraction

import numpy as np
import pytest
from budget import matrix_settings
from hypothesis import example, given
from hypothesis import strategies as st

from certbound import frobenius_norm_upper, inf_norm_upper, spectral_norm_lower, spectral_norm_upper
from certbound.arrays import digest
from certbound.bound import compose, tightest
from certbound.errors import InputError
from certbound.norms.dense import (
    check_rigor,
    frobenius_norm,
    induced_norm,
    inf_norm,
    rescale,
    row_dual_norms,
    singular_values,
    spectral_norm,
)
from certbound.testing.strategies import compressible_matrices, rational_matrices
from certbound.types import Quantity, Rigor, Sense

U = 2.0**-53
HUGE = sys.float_info.max
H4 = np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]], dtype=float)

KNOWN = {
    "identity": (np.eye(4), 1.0, 1.0, 2.0),
    "Hadamard": (H4, 2.0, 4.0, 4.0),
    "Pythagoras": (np.array([[3.0, -4.0], [4.0, 3.0]]), 5.0, 7.0, math.sqrt(50)),
    "diagonal": (np.diag([1.0, -8.0, 3.0]), 8.0, 8.0, math.sqrt(74)),
    "permutation": (np.eye(5)[[2, 0, 1, 4, 3]] * 3, 3.0, 3.0, 3 * math.sqrt(5)),
    "ones": (np.ones((2, 8)), 4.0, 8.0, 4.0),
    "row": (np.array([[3.0, 4.0]]), 5.0, 7.0, 5.0),
    "column": (np.array([[3.0], [4.0]]), 5.0, 4.0, 5.0),
    "shear": (np.array([[1.0, 1.5], [0.0, 1.0]]), 2.0, 2.5, math.sqrt(4.25)),  # σ = 2, 1/2
    "zero": (np.zeros((2, 3)), 0.0, 0.0, 0.0),
    "one": (np.array([[-7.0]]), 7.0, 7.0, 7.0),
}


@pytest.mark.parametrize("j", [0, 900, -900, 1017, -1060], ids=lambda j: f"2**{j}")
@pytest.mark.parametrize("name", KNOWN)
def test_known_norms(name, j):
    w, two, inf, fro = KNOWN[name]
    scaled = np.ldexp(w, j)
    if not np.array_equal(np.ldexp(scaled, -j), w):
        pytest.skip("rounded in the subnormal range")
    absolute = 2 * 5e-324 if j == -1060 else 0.0
    for f, value in ((spectral_norm, two), (inf_norm, inf), (frobenius_norm, fro)):
        assert f(scaled) == pytest.approx(math.ldexp(value, j), rel=1e-14, abs=absolute)
    assert spectral_norm_upper(scaled).value == spectral_norm(scaled)
    assert spectral_norm_lower(scaled).value == pytest.approx(spectral_norm(scaled), rel=1e-14, abs=absolute)
    assert inf_norm_upper(scaled).value == inf_norm(scaled)
    assert frobenius_norm_upper(scaled).value == frobenius_norm(scaled)
    assert induced_norm(scaled, math.inf) == inf_norm(scaled)
    assert induced_norm(scaled, 2.0) == spectral_norm(scaled)


@matrix_settings
@given(rational_matrices(1, 4, largest=7, denominator=8))
def test_row_sums_and_sums_of_squares_are_exact_to_rounding(w):
    entries = [[abs(Fraction(v)) for v in row] for row in w]
    inf, square = max(map(sum, entries)), sum(v * v for row in entries for v in row)
    tolerance = Fraction(4 * w.size * U)
    assert abs(Fraction(inf_norm(w)) - inf) <= tolerance * inf
    assert abs(Fraction(frobenius_norm(w)) ** 2 - square) <= 2 * tolerance * square


@matrix_settings
@given(rational_matrices(1, 4, largest=5, denominator=2))
def test_spectral_norm_is_a_root_of_the_characteristic_polynomial(w):
    """σ² is the largest eigenvalue of WᵀW: σ²(1+τ) I − WᵀW is positive definite, σ²(1−τ) I − WᵀW is not (exactly)."""
    gram = [
        [sum(Fraction(w[i, a]) * Fraction(w[i, b]) for i in range(w.shape[0])) for b in range(w.shape[1])]
        for a in range(w.shape[1])
    ]
    square = Fraction(spectral_norm(w)) ** 2
    if not w.any():
        assert square == 0
        return
    tolerance = Fraction(1, 10**13)
    assert positive_definite(gram, square * (1 + tolerance))
    assert not positive_definite(gram, square * (1 - tolerance))
    assert not positive_definite(gram, Fraction(spectral_norm_lower(w).value) ** 2 * (1 - tolerance))


def positive_definite(gram, shift) -> bool:
    """Whether ``shift·I − gram`` is positive definite, by exact elimination."""
    n = len(gram)
    a = [[(shift if i == j else Fraction(0)) - gram[i][j] for j in range(n)] for i in range(n)]
    for i in range(n):
        if a[i][i] <= 0:
            return False
        for r in range(i + 1, n):
            factor = a[r][i] / a[i][i]
            a[r] = [x - factor * y for x, y in zip(a[r], a[i], strict=True)]
    return True


@matrix_settings
@given(compressible_matrices(max_side=5))
def test_norm_inequalities(w):
    m, n = w.shape
    two, inf, fro, one = spectral_norm(w), inf_norm(w), frobenius_norm(w), inf_norm(w.T)
    slack = 1 + 64 * U * max(m, n)
    tiny = 4 * 5e-324
    assert two <= fro * slack + tiny
    assert fro <= two * math.sqrt(min(m, n)) * slack + tiny
    assert inf <= two * math.sqrt(n) * slack + tiny
    assert two <= inf * math.sqrt(m) * slack + tiny
    assert two <= math.sqrt(one) * math.sqrt(inf) * slack + tiny
    assert spectral_norm_lower(w).value <= spectral_norm_upper(w).value
    assert inf_norm(w) == pytest.approx(max(math.fsum(abs(row)) for row in w), rel=1e-14)
    values, scale = singular_values(w)
    assert len(values) == min(m, n) and np.all(np.diff(values) <= 0)
    assert values[0] * scale == two


# -- the ends of the number line -----------------------------------------------------------------------------------


@matrix_settings
@given(st.floats(0.0, 1e6), st.integers(-1074, 1023))
@example(1.5, -1074)
@example(0.5, -1074)
@example(1e-300, -1074)
@example(2.0, 1023)
@example(0.0, -1074)
def test_rescale_never_errs_to_the_wrong_side(value, exponent):
    scale = math.ldexp(1.0, exponent)
    exact = Fraction(value) * Fraction(scale)
    upper, lower = rescale(value, scale, Sense.UPPER), rescale(value, scale, Sense.LOWER)
    assert upper == math.inf or Fraction(upper) >= exact
    assert 0 <= lower < math.inf and Fraction(lower) <= exact
    assert lower <= upper <= math.nextafter(lower, math.inf)
    if exact == 0:
        assert upper == lower == 0
    if Fraction(sys.float_info.min) <= exact <= Fraction(HUGE):
        assert upper == lower == value * scale


def test_subnormal_matrices_have_their_lower_bound_below():
    w = [[5e-324, 5e-324]]  # σ = √2 · 2^-1074, between one and two units
    assert spectral_norm_lower(w).value == 5e-324
    assert spectral_norm_upper(w).value == 1e-323
    assert inf_norm_upper(w).value == 1e-323
    assert frobenius_norm_upper(w).value == 1e-323


def test_norms_beyond_the_largest_float():
    w = np.full((2, 2), HUGE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        assert spectral_norm_upper(w).value == math.inf and spectral_norm_upper(w).vacuous
        assert spectral_norm_lower(w).value == HUGE
        assert inf_norm_upper(w).value == frobenius_norm_upper(w).value == math.inf


@pytest.mark.parametrize("factor", [1e300, 1e-300, 1e-310])
def test_large_and_small_entries(factor):
    w = np.array([[3.0, 0.0], [0.0, 4.0]]) * factor
    for bound in (spectral_norm_upper, inf_norm_upper, spectral_norm_lower):
        assert bound(w).value == pytest.approx(4.0 * factor, rel=1e-12)
    assert frobenius_norm_upper(w).value == pytest.approx(5.0 * factor, rel=1e-12)


def test_row_dual_norms():
    rows = np.array([[3.0, -4.0], [0.0, 0.0], [1.0, 1.0]])
    assert row_dual_norms(rows, math.inf).tolist() == [7.0, 0.0, 2.0]
    assert row_dual_norms(rows, 2.0).tolist() == pytest.approx([5.0, 0.0, math.sqrt(2)])


# -- as bounds -----------------------------------------------------------------------------------------------------

ALL = [spectral_norm_upper, spectral_norm_lower, inf_norm_upper, frobenius_norm_upper]


@pytest.mark.parametrize("f", ALL)
def test_the_claim_says_what_is_bounded(f):
    w = np.array([[1.0, 2.0], [3.0, 4.0]])
    bound = f(w)
    lower = f is spectral_norm_lower
    assert bound.sense is (Sense.LOWER if lower else Sense.UPPER)
    assert bound.rigor is Rigor.NUMERICAL
    assert bound.claim.subject == digest(w)
    fro = f is frobenius_norm_upper
    assert bound.claim.quantity is (Quantity.FROBENIUS_NORM if fro else Quantity.OPERATOR_NORM)
    norm = None if fro else math.inf if f is inf_norm_upper else 2.0
    assert (bound.claim.norm_in, bound.claim.norm_out) == (norm, norm)
    json.dumps(bound.to_dict(), allow_nan=False)
    if not fro and not lower:
        assert compose(bound, bound).value >= bound.value**2
        assert tightest([bound]) is bound


@pytest.mark.parametrize("f", ALL)
@pytest.mark.parametrize("bad", [[1.0], [[math.nan]], [[]], None, [[1j]], np.ones((2, 2, 2))])
def test_bad_matrices(f, bad):
    with pytest.raises(InputError) as info:
        f(bad)
    assert info.value.argument == "W"


@pytest.mark.parametrize("f", ALL)
@pytest.mark.parametrize("rigor", ["heuristic", Rigor.HEURISTIC, "certain", None, 1])
def test_a_word_is_not_given_for_less(f, rigor):
    with pytest.raises(InputError) as info:
        f([[1.0]], rigor)
    assert info.value.argument == "rigor"


def test_the_rigor_that_is_built():
    assert check_rigor("numerical") is check_rigor(Rigor.NUMERICAL) is Rigor.NUMERICAL
