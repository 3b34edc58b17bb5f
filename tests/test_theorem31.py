"""Theorem 3.1 against an independent oracle in exact rationals.

The oracle below is written from the statement alone: it shares no code with the library. Square roots are enclosed
between rationals (relative width below 1e-30), so that a bound on the wrong side cannot hide in rounding. Singular
values are prescribed by exact constructions: integer rotations (Pythagoras), Hadamard matrices, permutations.
"""

from __future__ import annotations

import json
import math
import pickle
import sys
import warnings
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from budget import matrix_settings
from hypothesis import example, given
from hypothesis import strategies as st

from certbound import Rigor, Status, check_theorem31
from certbound.bound import Bound
from certbound.errors import InputError
from certbound.testing.strategies import compressible_matrices, rational_matrices
from certbound.types import SCHEMA_VERSION, Quantity, Sense

U = 2.0**-53
PARTS = ("spectral", "neuron")
forms = st.sampled_from(["derived", "printed"])
dispersions = st.sampled_from(["kth", "mean"])
rationals = rational_matrices(1, 4, largest=5, denominator=2)


# -- the oracle ----------------------------------------------------------------------------------------------------

BITS = 160


def root(q: Fraction) -> tuple[Fraction, Fraction]:
    """Rationals on both sides of √q (q is 0 or at least 1e-20 here)."""
    s = math.isqrt((q.numerator << 2 * BITS) // q.denominator)
    return Fraction(s, 1 << BITS), Fraction(s if Fraction(s * s, 1 << 2 * BITS) == q else s + 1, 1 << BITS)


class Interval:
    """A non-negative number between two rationals; sums, products and quotients by exact numbers."""

    def __init__(self, lo, hi=None):
        self.lo, self.hi = Fraction(lo), Fraction(lo if hi is None else hi)

    @classmethod
    def sqrt(cls, q):
        return cls(*root(Fraction(q)))

    def __add__(self, other):
        return Interval(self.lo + other.lo, self.hi + other.hi)

    def __mul__(self, other):
        if not isinstance(other, Interval):
            other = Interval(other)
        return Interval(self.lo * other.lo, self.hi * other.hi)

    __rmul__ = __mul__

    def contains(self, value: float, relative: float = 1e-12) -> bool:
        return self.lo * (1 - Fraction(relative)) <= Fraction(value) <= self.hi * (1 + Fraction(relative))


def smaller(intervals):
    items = list(intervals)
    return Interval(min(i.lo for i in items), min(i.hi for i in items))


def tail_and_dispersion(theta, k):
    """Exact (ε, β_kth, β_mean) for q = 1; all 0 for θ = 0."""
    ordered = sorted(map(abs, theta), reverse=True)
    if ordered[0] == 0:
        return Fraction(0), Fraction(0), Fraction(0)
    top = ordered[0]
    return sum(ordered[k:]) / sum(ordered), 1 - ordered[k - 1] / top, 1 - sum(ordered[:k]) / (k * top)


def sharp_squared(k, eps, beta, size, reading) -> Fraction:
    """c♯² = 1/(1 + a + t)."""
    if reading == "mean":
        s = max(Fraction(1), k * (1 - beta))
        a = (s - 1) ** 2 / (k - 1) if k > 1 else Fraction(0)
    else:
        s, a = 1 + (k - 1) * (1 - beta), (k - 1) * (1 - beta) ** 2
    t = (eps * s / (1 - eps)) ** 2 / (size - k) if k < size else Fraction(0)
    return 1 / (1 + a + t)


class Oracle:
    """Exact quantities of a matrix with rational entries (and, if given, exact singular values)."""

    def __init__(self, w, sigma=None):
        rows = [[Fraction(float(v)) for v in row] for row in w]
        self.m, self.n = len(rows), len(rows[0])
        self.nu = [sum(map(abs, row)) for row in rows]
        self.square = sum(v * v for row in rows for v in row)
        self.rows = [sorted((v * v for v in row), reverse=True) for row in rows]
        self.sigma = sigma

    def theta(self, part):
        return self.nu if part == "neuron" else self.sigma

    def size(self, part):
        return self.m if part == "neuron" else min(self.m, self.n)

    def row_tail_squared(self, k):
        return max(sum(r[k:], Fraction(0)) / sum(r) if any(r) else Fraction(0) for r in self.rows)

    def row_factor(self, form, k, kr):
        m, n, e2 = self.m, self.n, self.row_tail_squared(kr)
        if form == "sharp":
            e2 = min(e2, Fraction(n - kr, n))
            return Interval.sqrt(kr * (1 - e2)) + Interval.sqrt((n - kr) * e2)
        first, second = Interval.sqrt(m * kr), Interval.sqrt(m * n * e2)
        return (first if form == "printed" else first * Fraction(1, k)) + second * Fraction(1, k)

    def bound(self, part, form, reading, k, eps=None, beta=None, k_row=None):
        """The bound as an Interval; None for ∞. eps and beta are exact unless given."""
        exact = tail_and_dispersion(self.theta(part), k)
        eps = exact[0] if eps is None else eps
        beta = exact[1 if reading == "kth" else 2] if beta is None else beta
        if self.square == 0:
            return Interval(0)
        choices = range(1, self.n + 1) if k_row is None else [k_row]
        fro = Interval.sqrt(self.square)
        if form == "sharp":
            result = Interval.sqrt(self.square * sharp_squared(k, eps, beta, self.size(part), reading))
            return result if part == "spectral" else result * smaller(self.row_factor("sharp", k, c) for c in choices)
        if beta == 1:
            return None
        core = (1 - eps) / (1 - beta)
        if part == "spectral":
            return Interval.sqrt(self.square * self.size(part)) * (core / k)
        return smaller(self.row_factor(form, k, c) for c in choices) * fro * core

    def lower(self, part, k):
        if part == "neuron":
            return Interval.sqrt(self.square) * ((1 - tail_and_dispersion(self.nu, k)[0]) / k)
        head = sorted((s * s for s in self.sigma), reverse=True)[:k]  # (1 − ε²) ‖W‖_F² with the (2, k)-tail
        return Interval.sqrt(sum(head) / Fraction(k))


ROTATIONS = [np.array([[3, -4], [4, 3]]), np.array([[5, -12], [12, 5]]), np.array([[8, 15], [-15, 8]])]
LENGTHS = [5, 13, 17]
H4 = np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]])


@st.composite
def known_spectra(draw):
    """(W, σ): integer matrices whose singular values are known exactly (σ padded with zeros to min(m, n))."""
    seed = draw(st.integers(0, 2**20))
    s = draw(st.lists(st.integers(0, 6), min_size=4, max_size=4))
    kind = draw(st.sampled_from(["diagonal", "rotated", "hadamard", "rotated and diagonal"]))
    rng = np.random.default_rng(seed)
    if kind == "hadamard":
        core, sigma = H4 @ np.diag(s) @ H4[:, rng.permutation(4)].T, [4 * v for v in s]
    else:
        rotated = [0, 2] if kind == "rotated" else [0] if kind == "rotated and diagonal" else []
        core, sigma = np.diag(s), list(s)
        for i in rotated:
            a, b = rng.integers(0, 3, 2)
            core[i : i + 2, i : i + 2] = ROTATIONS[a] @ np.diag(s[i : i + 2]) @ ROTATIONS[b].T
            sigma[i : i + 2] = [LENGTHS[a] * LENGTHS[b] * v for v in s[i : i + 2]]
    m, n = (4 + int(v) for v in rng.integers(0, 2, 2))  # rows or columns of zeros around it
    w = np.zeros((m, n))
    w[:4, :4] = core
    w = w[rng.permutation(m)][:, rng.permutation(n)] * rng.choice([-1, 1], n) * 2.0 ** int(rng.integers(-3, 4))
    unit = Fraction(float(np.abs(w).max())) / max(1, int(np.abs(core).max()))
    return w, [unit * int(v) for v in sigma] + [Fraction(0)] * (min(m, n) - 4)


def assert_value(got: float, exact: Interval | None, relative: float = 1e-12) -> None:
    if exact is None:  # ∞; a numerical SVD may see a zero singular value as 1e-17 of the largest
        assert got > 1e12
    else:
        assert exact.contains(got, relative), (got, float(exact.lo), float(exact.hi))


def pick(n: int, seed: int) -> int:
    """An index 1 … n from a drawn integer."""
    return 1 + seed % n


# -- against the oracle --------------------------------------------------------------------------------------------


@matrix_settings
@given(rationals, st.integers(0, 11), forms, dispersions)
@example(np.eye(4), 1, "printed", "kth")
@example(np.zeros((2, 3)), 1, "derived", "kth")
def test_neuron_part_against_exact_rationals(w, seed, form, reading):
    o = Oracle(w)
    k = pick(o.m, seed)
    part = check_theorem31(w, k={"neuron": k, "spectral": 1}, form=form, dispersion=reading).neuron
    eps, kth, mean = tail_and_dispersion(o.nu, k)
    assert abs(Fraction(part.exact_epsilon) - eps) <= 16 * U
    assert abs(Fraction(part.exact_beta) - (kth if reading == "kth" else mean)) <= 16 * U
    assert part.epsilon == part.exact_epsilon and part.beta == part.exact_beta and part.hypothesis_met
    assert Interval(max(o.nu)).contains(part.norm, 1e-14)
    exact = o.bound("neuron", form, reading, k)
    assert_value(part.bound.value, exact)
    sharp = o.bound("neuron", "sharp", reading, k)
    assert_value(part.sharp.value, sharp)
    assert_value(part.lower.value, o.lower("neuron", k))
    # the theorem itself, with no rounding anywhere: the oracle's reading is true
    assert o.lower("neuron", k).lo <= max(o.nu) <= sharp.hi
    assert exact is None or sharp.lo <= exact.hi
    # and the reported number is on the right side of the exact norm, up to its stated tolerance
    allowed = 1 + Fraction(64 * U * max(w.shape))
    assert max(o.nu) <= Fraction(part.sharp.value) * allowed
    assert part.bound.value == math.inf or max(o.nu) <= Fraction(part.bound.value) * allowed
    assert Fraction(part.lower.value) <= max(o.nu) * allowed
    if exact is not None:  # k_row is the best for this form
        assert_value(part.bound.value, o.bound("neuron", form, reading, k, k_row=part.k_row))
        assert abs(Fraction(part.epsilon_row) ** 2 - o.row_tail_squared(part.k_row)) <= 16 * U
    assert part.holds is True and part.status is Status.OK


@matrix_settings
@given(known_spectra(), st.integers(0, 11), dispersions)
def test_spectral_part_against_known_singular_values(known, seed, reading):
    w, sigma = known
    o = Oracle(w, sigma)
    assert sum(s * s for s in sigma) == o.square  # the construction is what it says
    k = pick(len(sigma), seed)
    part = check_theorem31(w, k={"spectral": k, "neuron": 1}, dispersion=reading).spectral
    eps, kth, mean = tail_and_dispersion(sigma, k)
    assert abs(Fraction(part.exact_epsilon) - eps) <= 256 * U
    assert abs(Fraction(part.exact_beta) - (kth if reading == "kth" else mean)) <= 256 * U
    assert Interval(max(sigma)).contains(part.norm, 1e-13)
    exact, sharp = o.bound("spectral", "derived", reading, k), o.bound("spectral", "sharp", reading, k)
    assert_value(part.bound.value, exact, 1e-10)
    assert_value(part.sharp.value, sharp, 1e-10)
    assert_value(part.lower.value, o.lower("spectral", k), 1e-10)
    assert o.lower("spectral", k).lo <= max(sigma) <= sharp.hi
    assert exact is None or sharp.lo <= exact.hi
    allowed = 1 + Fraction(64 * U * max(w.shape))
    assert max(sigma) <= Fraction(part.sharp.value) * allowed
    assert part.bound.value == math.inf or max(sigma) <= Fraction(part.bound.value) * allowed
    assert Fraction(part.lower.value) <= max(sigma) * allowed
    assert part.holds is True and part.status is Status.OK
    assert (part.k_row, part.epsilon_row) == (None, None)


@matrix_settings
@given(rationals, st.integers(0, 11), st.integers(0, 16), st.integers(0, 16), forms, dispersions)
def test_any_smaller_epsilon_and_larger_beta_is_valid(w, seed, shrink, grow, form, reading):
    """One-sided validity, both parts; β from the mean dispersion up to 1, so also between mean and kth."""
    o = Oracle(w)
    ks = {"neuron": pick(o.m, seed), "spectral": pick(min(o.m, o.n), seed)}
    exact = check_theorem31(w, k=ks, form=form, dispersion="mean")
    base = {name: getattr(exact, name) for name in PARTS}
    eps = {name: p.exact_epsilon * (16 - shrink) / 16 for name, p in base.items()}
    beta = {name: p.exact_beta + (1 - p.exact_beta) * grow / 16 for name, p in base.items()}
    report = check_theorem31(w, k=ks, epsilon=eps, beta=beta, form=form, dispersion=reading)
    assert report.holds is True and report.hypothesis_met
    allowed = 1 + 64 * U * max(w.shape)
    for name in PARTS:
        part = getattr(report, name)
        assert part.hypothesis_met and part.status is Status.OK and part.holds is True
        assert part.norm <= part.bound.value * allowed and part.norm <= part.sharp.value * allowed
        assert part.sharp.value <= part.bound.value * (1 + 1e-12)
        assert part.epsilon == pytest.approx(eps[name], abs=1e-13)
        assert part.beta == pytest.approx(beta[name], abs=1e-13)
        # worse numbers never give a better bound
        assert base[name].bound.value <= part.bound.value * (1 + 1e-12)
        assert base[name].sharp.value <= part.sharp.value * (1 + 1e-12)
    part, k = report.neuron, ks["neuron"]
    _, kth, mean = tail_and_dispersion(o.nu, k)
    e, b = Fraction(part.epsilon), max(Fraction(part.beta), mean)
    if abs(b - kth) > Fraction(1, 10**13):
        # the sharp form of the k-th reading needs β ≥ β_kth; below it the mean's formula is the valid one
        sharp = o.bound("neuron", "sharp", "kth" if reading == "kth" and b > kth else "mean", k, e, b)
        assert_value(part.sharp.value, sharp)
        assert max(o.nu) <= sharp.hi * (1 + Fraction(1, 10**13))
    if b < 1 - Fraction(1, 10**13):
        assert_value(part.bound.value, o.bound("neuron", form, reading, k, e, b))


@matrix_settings
@given(rationals, st.integers(0, 11), st.integers(1, 16), st.integers(0, 4), dispersions, forms)
def test_a_larger_epsilon_or_smaller_beta_is_not_a_hypothesis(w, seed, step, trial, reading, form):
    """Membership τ ≤ ε proves nothing: no bound, no verdict, no violated theorem."""
    m, n = w.shape
    ks = {"neuron": pick(m, seed), "spectral": pick(min(m, n), seed)}
    base = check_theorem31(w, k=ks, dispersion="mean")
    epsilon, beta = {}, {}
    for name in PARTS:
        p = getattr(base, name)
        above, below = p.exact_epsilon + (1 - p.exact_epsilon) * step / 16, p.exact_beta * (1 - step / 16)
        numbers = [(above, None), (None, below), (above, below), (0.0, below), (above, 1.0)][trial]
        if p.exact_beta < 1e-9:  # no β is too small here
            numbers = (above, None)
        epsilon[name], beta[name] = numbers
    report = check_theorem31(w, k=ks, epsilon=epsilon, beta=beta, dispersion=reading, form=form)
    assert report.hypothesis_met is False and report.holds is None
    for name in PARTS:
        part = getattr(report, name)
        assert part.hypothesis_met is False and part.holds is None
        assert part.status is Status.HYPOTHESIS_NOT_MET
        assert part.bound.value == part.sharp.value == part.slack == math.inf
        assert part.bound.vacuous and part.vacuous
        assert part.hypothesis.startswith("not met")
        assert part.exact_epsilon == getattr(base, name).exact_epsilon
        assert part.lower.value <= part.norm * (1 + 1e-12)  # true whatever the user says
        for got, value in ((part.epsilon, epsilon[name]), (part.beta, beta[name])):
            assert value is None or got == pytest.approx(value, abs=1e-13)


# -- on everything the strategies draw -----------------------------------------------------------------------------


@matrix_settings
@given(compressible_matrices(max_side=6))
def test_the_ladder_holds_on_every_matrix_and_every_k(w):
    """lower ≤ norm ≤ sharp ≤ derived ≤ printed, and mean ≤ kth, for every k of both parts."""
    m, n = w.shape
    allowed = 1 + 64 * U * max(m, n)
    kth, mean = check_theorem31(w), check_theorem31(w, dispersion="mean")
    printed, printed_mean = check_theorem31(w, form="printed"), check_theorem31(w, form="printed", dispersion="mean")
    norms = {"neuron": max(math.fsum(abs(row)) for row in w), "spectral": kth.spectral.norm}
    for report in (kth, mean, printed, printed_mean):
        assert report.holds is True and report.hypothesis_met is True
        for name in PARTS:
            part, sweep, norm = getattr(report, name), report.sweep[name], norms[name]
            assert part.norm == pytest.approx(norm, rel=1e-14)
            assert np.all(norm <= sweep.sharp * allowed) and np.all(norm <= sweep.bound * allowed)
            assert np.all(sweep.lower <= norm * allowed)
            assert np.all(sweep.sharp <= sweep.bound * (1 + 1e-12))
            assert len(sweep.k) == (m if name == "neuron" else min(m, n)) and sweep.holds
            assert part.k == 1 and part.bound.value == sweep.bound[0] and part.sharp.value == sweep.sharp[0]
            assert part.bound.value <= sweep.bound.min() * (1 + 1e-12)
            assert part.status is Status.OK and part.bound.rigor is Rigor.NUMERICAL
            check_derived_fields(part, norm, w)
    for name in PARTS:
        a, b = kth.sweep[name], mean.sweep[name]
        c, d = printed.sweep[name], printed_mean.sweep[name]
        assert np.all(b.bound <= a.bound * (1 + 1e-12)) and np.all(b.sharp <= a.sharp * (1 + 1e-12))
        assert np.all(a.bound <= c.bound * (1 + 1e-12)) and np.all(b.bound <= d.bound * (1 + 1e-12))
        assert np.array_equal(a.lower, b.lower) and np.array_equal(a.sharp, c.sharp)
        if name == "spectral":
            assert np.array_equal(a.bound, c.bound)
        # the core identity: with exact numbers and `mean`, the derived bound does not depend on k
        assert np.all(b.bound <= b.bound[0] * (1 + 1e-11)) and np.all(b.bound >= b.bound[0] * (1 - 1e-11))


def check_derived_fields(part, norm, w):
    """slack, its items, vacuous: by their definitions."""
    bound, tolerance = part.bound.value, 1e-12
    reference = part.frobenius_norm * (1.0 if part.part == "spectral" else math.sqrt(w.shape[1]))
    if bound >= reference * (1 + tolerance):
        assert part.vacuous
    elif bound <= reference * (1 - tolerance):
        assert not part.vacuous
    if norm == 0:
        assert part.slack == 1.0 and bound == 0.0
        return
    if 1e-290 < norm and bound < 1e290:
        assert part.slack == pytest.approx(bound / norm, rel=1e-12)
    assert math.prod(v for _, v in part.bound.slack) == pytest.approx(part.slack, rel=1e-11)
    assert all(v >= 1 - 1e-11 for _, v in part.bound.slack)


@matrix_settings
@given(rationals, st.integers(-960, 960), dispersions, forms)
def test_scaling_by_a_power_of_two_scales_everything(w, j, reading, form):
    a = check_theorem31(w, dispersion=reading, form=form)
    b = check_theorem31(np.ldexp(w, j), dispersion=reading, form=form)
    for name in PARTS:
        p, q, s, t = getattr(a, name), getattr(b, name), a.sweep[name], b.sweep[name]
        for field in ("k", "epsilon", "beta", "slack", "vacuous", "holds", "k_row", "epsilon_row"):
            assert getattr(p, field) == getattr(q, field), field
        for field in ("bound", "sharp", "lower"):
            x, y = np.ldexp(getattr(s, field), j), getattr(t, field)
            same = x == y
            assert np.all(same | (x > 1e300) | (x < 1e-300)), field
        assert q.norm == math.ldexp(p.norm, j)


@matrix_settings
@given(rationals, st.integers(0, 2**16), forms)
def test_permutations_signs_and_transposition(w, seed, form):
    rng = np.random.default_rng(seed)
    m, n = w.shape
    other = w[rng.permutation(m)][:, rng.permutation(n)] * rng.choice([-1, 1], (m, 1)) * rng.choice([-1, 1], n)
    k = {"spectral": pick(min(m, n), seed), "neuron": pick(m, seed)}
    a, b = (check_theorem31(v, k=k, form=form, dispersion="mean") for v in (w, other))
    c = check_theorem31(other.T, k={"spectral": k["spectral"], "neuron": 1}, dispersion="mean")
    for x, y in ((a.spectral, b.spectral), (a.spectral, c.spectral), (a.neuron, b.neuron)):
        assert x.norm == pytest.approx(y.norm, rel=1e-12)
        assert x.epsilon == pytest.approx(y.epsilon, abs=1e-13)
        for p, q in ((x.bound, y.bound), (x.sharp, y.sharp), (x.lower, y.lower)):
            assert p.value == pytest.approx(q.value, rel=1e-11)


# -- values known by hand ------------------------------------------------------------------------------------------

SQUARE = [[3.0, 0.0], [0.0, 1.0]]  # σ = ν = (3, 1), ‖W‖_F = √10, rows with one entry
WIDE = [[3.0, 4.0, 0.0], [0.0, 0.0, 2.0]]  # σ = (5, 2), ν = (7, 2), ‖W‖_F = √29
R10, R29, R2, R6 = math.sqrt(10), math.sqrt(29), math.sqrt(2), math.sqrt(6)
exactly = {"rel": 1e-14}


@pytest.mark.parametrize(
    ("w", "k", "form", "reading", "spectral", "neuron"),
    [
        (SQUARE, 1, "derived", "kth", 3 / 4 * R2 * R10, 3 / 4 * R2 * R10),
        (SQUARE, 1, "printed", "kth", 3 / 4 * R2 * R10, 3 / 4 * R2 * R10),
        (SQUARE, 2, "derived", "kth", 3 * R2 / 2 * R10, 3 * R2 / 2 * R10),
        (SQUARE, 2, "derived", "mean", 3 / 2 * R2 / 2 * R10, 3 / 2 * R2 / 2 * R10),
        (SQUARE, 2, "printed", "kth", 3 * R2 / 2 * R10, 3 * R2 * R10),
        (SQUARE, 2, "printed", "mean", 3 / 2 * R2 / 2 * R10, 3 / 2 * R2 * R10),
        (WIDE, 1, "derived", "kth", 5 / 7 * R2 * R29, 7 / 9 * 2 * R29),
        (WIDE, 1, "printed", "mean", 5 / 7 * R2 * R29, 7 / 9 * 2 * R29),
        (WIDE, 2, "derived", "kth", 5 / 2 * R2 / 2 * R29, 7 / 2 * 2 / 2 * R29),
        (WIDE, 2, "derived", "mean", 10 / 7 * R2 / 2 * R29, 14 / 9 * 2 / 2 * R29),
        (WIDE, 2, "printed", "kth", 5 / 2 * R2 / 2 * R29, 7 / 2 * 2 * R29),
        (WIDE, 2, "printed", "mean", 10 / 7 * R2 / 2 * R29, 14 / 9 * 2 * R29),
    ],
)
def test_values_by_hand(w, k, form, reading, spectral, neuron):
    report = check_theorem31(w, k=k, form=form, dispersion=reading)
    assert report.spectral.bound.value == pytest.approx(spectral, **exactly)
    assert report.neuron.bound.value == pytest.approx(neuron, **exactly)
    assert report.form == form and report.dispersion == reading and report.shape == np.shape(w)
    assert report.sweep is None
    assert (report.spectral.k, report.neuron.k) == (k, k)


def test_epsilon_and_beta_by_hand():
    one, two = check_theorem31(WIDE, k=1), check_theorem31(WIDE, k=2)
    assert [one.spectral.epsilon, one.neuron.epsilon] == pytest.approx([2 / 7, 2 / 9], **exactly)
    assert [one.spectral.beta, one.neuron.beta] == [0.0, 0.0]
    assert [two.spectral.epsilon, two.neuron.epsilon] == [0.0, 0.0]
    assert [two.spectral.beta, two.neuron.beta] == pytest.approx([3 / 5, 5 / 7], **exactly)
    mean = check_theorem31(WIDE, k=2, dispersion="mean")
    assert [mean.spectral.beta, mean.neuron.beta] == pytest.approx([3 / 10, 5 / 14], **exactly)
    assert [one.spectral.norm, one.neuron.norm] == pytest.approx([5, 7], **exactly)
    assert one.spectral.frobenius_norm == one.neuron.frobenius_norm == pytest.approx(R29, **exactly)
    assert (one.neuron.k_row, one.neuron.epsilon_row) == (2, 0.0)
    assert one.spectral.slack == pytest.approx(5 / 7 * R2 * R29 / 5, **exactly)


@pytest.mark.parametrize(
    ("k", "k_row", "form", "factor"),
    [
        (1, 1, "derived", 7 / 9 * (R2 + 0.6 * R6)),
        (1, 1, "printed", 7 / 9 * (R2 + 0.6 * R6)),
        (1, 2, "derived", 7 / 9 * 2),
        (1, 3, "derived", 7 / 9 * R6),
        (2, 1, "derived", 7 / 2 * (R2 + 0.6 * R6) / 2),
        (2, 1, "printed", 7 / 2 * (R2 + 0.3 * R6)),
        (2, 3, "printed", 7 / 2 * R6),
    ],
)
def test_k_row_by_hand(k, k_row, form, factor):
    part = check_theorem31(WIDE, k=k, k_row=k_row, form=form).neuron
    assert part.bound.value == pytest.approx(factor * R29, **exactly)
    assert part.k_row == k_row and part.epsilon_row == pytest.approx([0.6, 0.0, 0.0][k_row - 1])
    assert dict(part.bound.parameters)["k_row"] == k_row


def test_the_printed_form_chooses_its_own_row_count():
    # ε_r(1) = 0.6 counts less for larger k_ν: k_r = 1 wins at k_ν = 3 in a square matrix of such rows
    w = np.zeros((3, 3))
    w[:, 0], w[:, 1] = 4.0, 3.0
    part = check_theorem31(w, k={"neuron": 3}, form="printed").neuron
    assert part.k_row == 1
    assert part.bound.value == pytest.approx((math.sqrt(3) + 0.6) * math.sqrt(75), **exactly)
    assert check_theorem31(w, k={"neuron": 3}).neuron.bound.value == pytest.approx(
        math.sqrt(6) / 3 * math.sqrt(75), **exactly
    )


def test_sharp_and_lower_by_hand():
    one, two = check_theorem31(WIDE, k=1), check_theorem31(WIDE, k=2)
    assert one.spectral.sharp.value == pytest.approx(5.0, **exactly)  # two singular values: nothing is lost
    assert one.neuron.sharp.value == pytest.approx(R2 * 7 / math.sqrt(53) * R29, **exactly)  # ρ = √2 at k_r = 2
    assert check_theorem31(WIDE, k=1, k_row=1).neuron.sharp.value == pytest.approx(
        (0.8 + 0.6 * R2) * 7 / math.sqrt(53) * R29, **exactly
    )
    assert two.spectral.sharp.value == pytest.approx(5.0, **exactly)
    assert one.spectral.lower.value == pytest.approx(5.0, **exactly)  # √(25/29) √29
    assert two.spectral.lower.value == pytest.approx(R29 / R2, **exactly)
    assert one.neuron.lower.value == pytest.approx(7 / 9 * R29, **exactly)
    assert two.neuron.lower.value == pytest.approx(R29 / 2, **exactly)
    for report in (one, two):
        for part in (report.spectral, report.neuron):
            assert part.lower.sense is Sense.LOWER and part.sharp.sense is part.bound.sense is Sense.UPPER


def test_one_value_a_part():
    report = check_theorem31(
        WIDE,
        k={"spectral": 1, "neuron": 2},
        epsilon={"spectral": 0.25},
        beta={"neuron": 0.75},
    )
    assert (report.spectral.k, report.neuron.k) == (1, 2)
    assert (report.spectral.epsilon, report.neuron.epsilon) == (0.25, 0.0)
    assert (report.spectral.beta, report.neuron.beta) == (0.0, 0.75)
    assert report.spectral.bound.value == pytest.approx(0.75 * R2 * R29, **exactly)
    assert report.neuron.bound.value == pytest.approx(1 / 0.25 * 2 / 2 * R29, **exactly)
    assert report.spectral.sharp.value == pytest.approx(R29 / math.sqrt(1 + 1 / 9), **exactly)
    assert report.spectral.hypothesis.startswith("one-sided") and report.neuron.hypothesis.startswith("one-sided")
    assert report.spectral.exact_epsilon == pytest.approx(2 / 7)
    assert report.holds is True
    half = check_theorem31(WIDE, k={"spectral": 2})
    assert half.spectral.k == 2 and set(half.sweep) == {"neuron"}
    empty = check_theorem31(WIDE, k={})
    assert set(empty.sweep) == set(PARTS)


@pytest.mark.parametrize(
    ("target", "spectral", "neuron"), [(1.0, 1, 1), (0.29, 1, 1), (0.25, 2, 1), (0.2, 2, 2), (0.0, 2, 2), (0, 2, 2)]
)
def test_target_epsilon_takes_the_smallest_k(target, spectral, neuron):
    report = check_theorem31(WIDE, target_epsilon=target)  # tails 2/7 = 0.286 and 2/9 = 0.222
    assert (report.spectral.k, report.neuron.k) == (spectral, neuron)
    assert report.spectral.epsilon <= target and report.sweep is None and report.hypothesis_met
    mixed = check_theorem31(WIDE, target_epsilon={"spectral": target}, k={"neuron": 2})
    assert (mixed.spectral.k, mixed.neuron.k) == (spectral, 2)


# -- the sharp form is attained ------------------------------------------------------------------------------------

PROFILES = [
    (d, k, s, u)
    for d in (1, 2, 3, 5)
    for k in range(1, d + 1)
    for s in (1.0, 0.75, 0.5, 0.125, 0.0)
    for u in (s, s / 2, 0.0)
    if (k > 1 or s == 1.0) and (k < d or u == s)
]


@pytest.mark.parametrize("reading", ["kth", "mean"])
@pytest.mark.parametrize(("d", "k", "s", "u"), PROFILES)
def test_sharp_is_attained(d, k, s, u, reading):
    """θ = (1, s, …, s, u, …, u): for k = 1 all parameters (ε), else every s ∈ [0, 1] and u ∈ [0, s]."""
    theta = np.array([1.0] + [s] * (k - 1) + [u] * (d - k))
    w = np.diag(theta)[::-1] * 3.0
    report = check_theorem31(w, k=k, dispersion=reading)
    for part in (report.spectral, report.neuron):
        assert part.norm == pytest.approx(3.0, rel=1e-15)
        assert part.sharp.value == pytest.approx(part.norm, rel=1e-12)
    # rows of n equal entries: ρ = √n at every k_r, so the neuron part is attained there too
    for k_row in (None, 1, 4):
        flat = check_theorem31(np.outer(theta, np.ones(4)), k={"neuron": k}, k_row=k_row, dispersion=reading).neuron
        assert flat.norm == 4.0 and flat.sharp.value == pytest.approx(4.0, rel=1e-12)


@pytest.mark.parametrize("k_row", [1, 2, 3])
@pytest.mark.parametrize("u", [1.0, 0.5, 0.125, 0.0])
def test_row_step_of_the_sharp_form_is_attained(k_row, u):
    row = np.array([1.0] * k_row + [u] * (4 - k_row))
    part = check_theorem31(np.tile(row, (3, 1)), k={"neuron": 3}, k_row=k_row).neuron
    assert part.sharp.value == pytest.approx(part.norm, rel=1e-12)


def test_printed_is_loose_by_the_square_root_of_r_at_rank_one_and_tight_on_orthogonal():
    w = np.outer([1.0, 2.0, 2.0], [2.0, 1.0, 2.0])
    part = check_theorem31(w, k=1).spectral
    assert part.slack == pytest.approx(math.sqrt(3)) and part.sharp.value == pytest.approx(9.0, rel=1e-12)
    assert part.vacuous  # √r ‖W‖_F: looser than ‖W‖_F, which is exact here
    for k in range(1, 5):
        flat = check_theorem31(np.eye(4), k=k, dispersion="mean").spectral
        assert flat.slack == pytest.approx(1.0, rel=1e-14) and not flat.vacuous and flat.holds is True


def test_slack_is_itemised():
    w = [[3.0, 4.0, 0.0], [0.0, 1.0, 2.0], [0.5, 0.25, 0.0]]
    for form, names in (("derived", 3), ("printed", 4)):
        part = check_theorem31(w, k=2, form=form).neuron
        assert len(part.bound.slack) == names == len(dict(part.bound.slack))
        assert math.prod(dict(part.bound.slack).values()) == pytest.approx(part.slack, rel=1e-13)
    part = check_theorem31(w, k=2, epsilon=0.0, beta={"spectral": 0.9, "neuron": 0.95}).spectral
    assert math.prod(dict(part.bound.slack).values()) == pytest.approx(part.slack, rel=1e-13)
    # with exact numbers and `mean` all slack of the spectral part is Cauchy–Schwarz
    items = dict(check_theorem31(w, k=2, dispersion="mean").spectral.bound.slack)
    assert items["epsilon and dispersion"] == pytest.approx(1.0, rel=1e-12)


# -- the trap ------------------------------------------------------------------------------------------------------


def test_the_trap():
    report = check_theorem31(np.eye(4), k=1, epsilon=0.9)
    assert report.holds is None and report.hypothesis_met is False
    for part in (report.spectral, report.neuron):
        assert part.hypothesis_met is False and part.holds is None
        assert part.bound.value == part.sharp.value == math.inf
        assert part.status is Status.HYPOTHESIS_NOT_MET
        assert part.epsilon == 0.9 and part.exact_epsilon == 0.75
        assert "0.9" in part.hypothesis and "0.75" in part.hypothesis
    # what the formula would have said is below the norm: (1 − 0.9) √4 √4 = 0.4 < 1
    assert "hypothesis not met" in str(report) and "not met:" in str(report)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_the_trap_at_every_k(k):
    exact = 1 - k / 4
    for epsilon in (exact + 1e-9, (exact + 1) / 2, 1.0):
        report = check_theorem31(np.eye(4), k=k, epsilon=epsilon)
        assert report.holds is None and report.spectral.bound.value == math.inf
    for epsilon in (exact, exact / 2, 0.0):
        report = check_theorem31(np.eye(4), k=k, epsilon=epsilon)
        assert report.holds is True and report.spectral.bound.value >= 1 - 1e-14
        assert report.spectral.bound.value == pytest.approx((1 - epsilon) * 4 / k, rel=1e-13)


def test_one_part_in_the_trap_does_not_hide_the_other():
    report = check_theorem31(np.eye(4), k=1, epsilon={"spectral": 0.9})
    assert report.holds is None and report.hypothesis_met is False
    assert report.neuron.holds is None or report.neuron.holds is True
    assert report.neuron.status is Status.OK and report.neuron.bound.value == pytest.approx(1.0)


def test_beta_between_mean_and_kth_uses_the_mean_formula():
    w = np.diag([4.0, 2.0, 1.0, 1.0])  # k = 3: β_kth = 3/4, β_mean = 5/12
    for beta, word in ((0.75, "kth"), (0.8, "kth"), (0.6, "mean"), (5 / 12, "mean")):
        part = check_theorem31(w, k=3, beta=beta).spectral
        assert part.hypothesis_met and part.sharp.method.endswith(f"sharp, {word}")
        assert part.sharp.value >= 4.0 * (1 - 1e-14)
        c2 = sharp_squared(3, Fraction(1, 8), Fraction(beta), 4, word)
        assert part.sharp.value == pytest.approx(math.sqrt(22 * c2), rel=1e-13)
        assert part.bound.value == pytest.approx((7 / 8) / (1 - beta) * 2 / 3 * math.sqrt(22), rel=1e-13)
    # β_mean in the kth formula would fall below the norm on the vector that attains the mean's
    flat_top = np.diag([4.0, 4.0, 0.0])
    part = check_theorem31(flat_top, k=3, beta=1 / 3).spectral
    assert part.sharp.value >= 4.0 * (1 - 1e-14)
    assert math.sqrt(32 * sharp_squared(3, Fraction(0), Fraction(1, 3), 3, "kth")) > 4.0
    # β above 1 − 1/k: S is held at 1
    part = check_theorem31(w, k=3, beta=0.9, dispersion="mean").spectral
    assert part.sharp.value == pytest.approx(math.sqrt(22 / (1 + 1 / 49)), rel=1e-13)
    assert part.holds is True


# -- extreme matrices ----------------------------------------------------------------------------------------------

EXTREMES = {
    "zero": np.zeros((3, 2)),
    "one by one": np.array([[-2.0]]),
    "one row": np.array([[3.0, 0.0, -4.0]]),
    "one column": np.array([[3.0], [0.0], [-4.0]]),
    "rank one": np.outer([1.0, -2.0, 3.0], [1.0, 0.0, 2.0, 5.0]),
    "zero row": np.array([[1.0, 2.0], [0.0, 0.0], [3.0, -1.0]]),
    "large": np.array([[1e300, -2e300], [3e300, 1e299]]),
    "small": np.array([[1e-300, -2e-300], [3e-300, 1e-301]]),
    "both": np.array([[1e300, 1e-300], [1e-300, 1e-300]]),
    "subnormal": np.array([[5e-324, 1e-323], [0.0, 5e-324]]),
    "one subnormal": np.array([[5e-324, 0.0], [0.0, 0.0]]),
    "largest": np.array([[1.7e308, 0.0], [0.0, 1.0]]),
    "float16": np.array([[2.0**-24, 65504.0], [1.0, -0.5]], dtype=np.float16),
    "float32": np.array([[1e-45, 3e38], [1.0, -0.5]], dtype=np.float32),
    "int8": np.array([[-128, 127], [1, 0]], dtype=np.int8),
    "non-contiguous": np.arange(48.0).reshape(6, 8)[::-2, 1::3],
    "Fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "read-only": np.broadcast_to(np.arange(3.0), (2, 3)),
}


@pytest.mark.parametrize("reading", ["kth", "mean"])
@pytest.mark.parametrize("form", ["derived", "printed"])
@pytest.mark.parametrize("w", EXTREMES.values(), ids=EXTREMES.keys())
def test_extreme_matrices(w, form, reading):
    before = w.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reports = [check_theorem31(w, form=form, dispersion=reading)]
        reports += [check_theorem31(w, k=k, form=form, dispersion=reading) for k in range(1, min(w.shape) + 1)]
    assert np.array_equal(w, before)
    inf = max(sum(abs(Fraction(float(v))) for v in row) for row in w)
    for report in reports:
        assert report.holds is True
        for part in (report.spectral, report.neuron):
            assert part.norm <= part.sharp.value * (1 + 1e-12) and part.sharp.value <= part.bound.value * (1 + 1e-12)
            assert part.lower.value <= part.norm
            assert math.isfinite(part.lower.value) and not math.isnan(part.slack)
        assert Fraction(report.neuron.lower.value) <= inf * (1 + Fraction(1, 10**12))
        assert report.neuron.bound.value == math.inf or inf <= Fraction(report.neuron.bound.value) * (
            1 + Fraction(1, 10**12)
        )
        json.dumps(report.to_dict(), allow_nan=False)
        str(report)


def test_zero():
    for report in (check_theorem31(np.zeros((3, 2))), check_theorem31(np.zeros((3, 2)), k=2, epsilon=0, beta=0.5)):
        for part in (report.spectral, report.neuron):
            assert part.norm == part.bound.value == part.sharp.value == part.lower.value == 0.0
            assert part.slack == 1.0 and part.holds is True and part.status is Status.OK
            assert part.exact_epsilon == part.exact_beta == 0.0


def test_k_beyond_the_rank():
    w = np.diag([2.0, 1.0, 0.0])
    report = check_theorem31(w, k=3)
    for part in (report.spectral, report.neuron):
        assert part.exact_beta == 1.0 and part.bound.value == math.inf == part.slack
        assert part.hypothesis_met and part.status is Status.OK and part.holds is True and part.vacuous
        assert 2.0 <= part.sharp.value * (1 + 1e-12) and math.isfinite(part.sharp.value)
    assert check_theorem31(w, k=3, dispersion="mean").spectral.bound.value == pytest.approx(
        2 / 3 * math.sqrt(3) * math.sqrt(5), rel=1e-14
    )
    sweep = check_theorem31(w).sweep["spectral"]
    assert sweep.bound[2] == math.inf and sweep.holds
    rank_one = check_theorem31(np.outer([1.0, 3.0, 7.0], [2.0, 5.0, 11.0]), k=2).spectral
    assert rank_one.bound.value > 1e12 * rank_one.norm and rank_one.holds is True  # ∞ up to rounding of the SVD
    assert check_theorem31(w, k=1, beta=1.0).spectral.bound.value == math.inf


def test_a_norm_beyond_the_largest_float():
    w = np.full((2, 2), sys.float_info.max)
    report = check_theorem31(w, k=1)
    for part in (report.spectral, report.neuron):
        assert part.norm == part.bound.value == part.sharp.value == math.inf
        assert part.lower.value <= sys.float_info.max and part.lower.value > 1e308
        assert part.holds is True and math.isfinite(part.slack)


# -- vacuous -------------------------------------------------------------------------------------------------------


def test_vacuous_by_definition():
    w = np.array([[2.0, 0.0], [0.0, 1.0]])  # k = 1: 2/3 √2 √5 = 2.108 < √5 = 2.236
    part = check_theorem31(w, k=1).spectral
    assert not part.vacuous and part.bound.value < part.frobenius_norm
    part = check_theorem31(w, k=1, epsilon=0.0).spectral  # √2 √5 > √5
    assert part.vacuous and part.bound.value > part.frobenius_norm
    part = check_theorem31(w, k=1, epsilon=0.0).neuron  # √2 √5 = √n ‖W‖_F
    assert part.vacuous
    part = check_theorem31(w, k=1, epsilon=0.01).neuron
    assert not part.vacuous and part.bound.value > part.frobenius_norm
    wide = check_theorem31(np.ones((1, 9)), k=1).neuron
    assert wide.bound.value == pytest.approx(9.0) and wide.vacuous  # √9 · 3: exact, and no better than √n ‖W‖_F
    assert check_theorem31(np.eye(4), k=1, epsilon=0.9).spectral.vacuous


# -- bad arguments -------------------------------------------------------------------------------------------------

W = np.array([[3.0, 4.0, 0.0], [0.0, 0.0, 2.0]])


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"k": 0}, "k (spectral part)"),
        ({"k": -1}, "k (spectral part)"),
        ({"k": 3}, "k (spectral part)"),
        ({"k": 1.5}, "k (spectral part)"),
        ({"k": 1.0}, "k (spectral part)"),
        ({"k": True}, "k (spectral part)"),
        ({"k": "1"}, "k (spectral part)"),
        ({"k": [1, 2]}, "k (spectral part)"),
        ({"k": np.array([1])}, "k (spectral part)"),
        ({"k": math.nan}, "k (spectral part)"),
        ({"k": {"spectral": 1, "neuron": 0}}, "k (neuron part)"),
        ({"k": {"neuron": 3}}, "k (neuron part)"),
        ({"k": {"spectre": 1}}, "k"),
        ({"k": {1: 1}}, "k"),
        ({"k": 1, "epsilon": {"rows": 0.1}}, "epsilon"),
        ({"k": 1, "beta": {"rows": 0.1}}, "beta"),
        ({"target_epsilon": {"rows": 0.1}}, "target_epsilon"),
        ({"epsilon": 0.1}, "epsilon"),
        ({"beta": 0.1}, "beta"),
        ({"epsilon": 0.1, "target_epsilon": 0.1}, "epsilon"),
        ({"k": {"spectral": 1}, "epsilon": 0.1}, "epsilon"),
        ({"k": {"spectral": 1}, "beta": {"neuron": 0.1}}, "beta"),
        ({"k": 1, "target_epsilon": 0.1}, "target_epsilon"),
        ({"k": {"neuron": 1}, "target_epsilon": 0.1}, "target_epsilon"),
        *[({"k": 1, "epsilon": v}, "epsilon") for v in (math.nan, 2, -1, -1e-9, 1.0001, math.inf, True, "0.1", [0.1])],
        *[({"k": 1, "beta": v}, "beta") for v in (math.nan, 2, -1, math.inf, False, "0.1", np.array([0.1]), 1j)],
        *[({"target_epsilon": v}, "target_epsilon") for v in (math.nan, 2, -1, True, "0.1", [0.1])],
        ({"k_row": 0}, "k_row"),
        ({"k_row": 4}, "k_row"),
        ({"k_row": 1.0}, "k_row"),
        ({"k_row": True}, "k_row"),
        ({"dispersion": "max"}, "dispersion"),
        ({"dispersion": None}, "dispersion"),
        ({"form": "sharp"}, "form"),
        ({"form": "Derived"}, "form"),
        ({"form": None}, "form"),
        ({"rigor": "heuristic"}, "rigor"),
        ({"rigor": "sure"}, "rigor"),
        ({"rigor": None}, "rigor"),
    ],
)
def test_bad_arguments(arguments, name):
    with pytest.raises(InputError) as info:
        check_theorem31(W, **arguments)
    assert info.value.argument == name
    assert info.value.got and info.value.needed and info.value.fix


@pytest.mark.parametrize(
    "w", [[1.0, 2.0], [[math.nan]], [[math.inf]], [[]], None, "w", [[1j]], np.ones((2, 2, 2)), [[1], [1, 2]]]
)
def test_bad_matrices(w):
    with pytest.raises(InputError) as info:
        check_theorem31(w)
    assert info.value.argument == "W"


def test_good_arguments_of_other_types():
    report = check_theorem31(W, k=np.int64(1), epsilon=np.float32(0.125), beta=Fraction(1, 2), k_row=np.uint8(2))
    assert report.holds is True and report.neuron.k_row == 2 and type(report.spectral.k) is int
    assert (report.spectral.epsilon, report.spectral.beta) == (0.125, 0.5)


# -- the report ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reading", ["kth", "mean"])
@pytest.mark.parametrize("form", ["derived", "printed"])
@pytest.mark.parametrize("k_row", [None, 1, 3])
def test_sweep_is_what_single_calls_say(form, reading, k_row):
    w = np.array([[5.0, 1.0, -2.0], [0.5, 0.25, 0.0], [1.0, -1.0, 1.0], [0.0, 0.0, 3.0]])
    report = check_theorem31(w, form=form, dispersion=reading, k_row=k_row)
    for name, size in (("spectral", 3), ("neuron", 4)):
        sweep = report.sweep[name]
        assert sweep.k.tolist() == list(range(1, size + 1))
        for i in range(size):
            part = getattr(check_theorem31(w, k={name: i + 1}, form=form, dispersion=reading, k_row=k_row), name)
            for field in ("epsilon", "beta"):
                assert getattr(sweep, field)[i] == getattr(part, field)
            for field in ("bound", "sharp", "lower"):
                assert getattr(sweep, field)[i] == getattr(part, field).value
        shown = getattr(report, name)
        assert shown.k == 1 and shown.bound.value == sweep.bound[0]


def test_one_svd_only(monkeypatch):
    calls = []
    true_svd = np.linalg.svd
    monkeypatch.setattr(np.linalg, "svd", lambda *a, **kw: (calls.append(1), true_svd(*a, **kw))[1])
    rng = np.random.default_rng(0)
    w = rng.standard_normal((7, 5))
    for arguments in ({}, {"k": 2}, {"target_epsilon": 0.3}, {"form": "printed", "dispersion": "mean"}):
        calls.clear()
        check_theorem31(w, **arguments)
        assert len(calls) == 1


@pytest.mark.parametrize("arguments", [{}, {"k": 2}, {"k": 1, "epsilon": 0.9}, {"k": 2, "beta": 1.0}])
def test_to_dict_pickle_and_print(arguments):
    report = check_theorem31(W, **arguments)
    data = report.to_dict()
    assert data["schema_version"] == SCHEMA_VERSION
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert data["shape"] == [2, 3] and data["holds"] == report.holds and data["rigor"] == "numerical"
    assert data["spectral"]["bound"]["value"] == (
        "inf" if report.spectral.bound.value == math.inf else report.spectral.bound.value
    )
    assert data["spectral"]["status"] == report.spectral.status.name
    if not arguments:
        assert data["sweep"]["neuron"]["k"] == [1.0, 2.0]
    again = pickle.loads(pickle.dumps(report))
    assert again.to_dict() == data
    for word in ("spectral", "neuron", "sharp", "status"):
        assert word in str(report)


def test_the_bounds_say_what_they_are():
    report = check_theorem31(W)
    for part, norm in ((report.spectral, 2.0), (report.neuron, math.inf)):
        for bound in (part.bound, part.sharp, part.lower):
            assert isinstance(bound, Bound)
            assert (bound.claim.quantity, bound.claim.norm_in, bound.claim.norm_out) == (
                Quantity.OPERATOR_NORM,
                norm,
                norm,
            )
            assert bound.claim.subject == report.subject and bound.rigor is Rigor.NUMERICAL
        parameters = dict(part.bound.parameters)
        assert parameters["k"] == part.k and parameters["epsilon"] == part.epsilon and parameters["beta"] == part.beta
        assert parameters["frobenius_norm"] == part.frobenius_norm
    with pytest.raises(AttributeError):
        report.form = "printed"  # type: ignore[misc]


def test_a_sweep_lists_every_k_in_order():
    sweep = check_theorem31(np.diag([5.0, 3.0, 1.0, 1.0])).sweep["spectral"]
    assert all(a >= b for a, b in pairwise(sweep.epsilon)) and all(a <= b for a, b in pairwise(sweep.beta))
    assert sweep.epsilon.tolist() == pytest.approx([0.5, 0.2, 0.1, 0.0])
    assert sweep.beta.tolist() == pytest.approx([0.0, 0.4, 0.8, 0.8])
