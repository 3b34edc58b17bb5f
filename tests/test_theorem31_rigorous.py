"""``check_theorem31(rigor="rigorous")`` against exact arithmetic: bounds on the right side, verdicts proved."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from budget import matrix_settings
from exact_spectra import R, rational, singular_values, total
from hypothesis import example, given
from hypothesis import strategies as st

from certbound import Rigor, Status, check_theorem31
from certbound.compressibility import profile
from certbound.rounding import Interval
from certbound.testing.strategies import compressible_matrices
from certbound.theorems import theorem31_rigorous as verified
from certbound.theorems.theorem31 import measure

PARTS = ("spectral", "neuron")
forms = st.sampled_from(["derived", "printed"])
dispersions = st.sampled_from(["kth", "mean"])
EXTREME = np.array([[1e300, 0.0, 3.0], [1e-300, 2.0, 1e-8], [5e-324, 1e300, -1e300]])
HUGE = Fraction(float(np.finfo(float).max))


class Oracle:
    """Theorem 3.1 from its statement alone, on intervals with rational ends. Shares no code with the library."""

    def __init__(self, W, part):
        rows = rational(W)
        self.part, self.m, self.n = part, len(rows), len(rows[0])
        self.fro = R(sum(v * v for r in rows for v in r)).sqrt()
        self.squares = [sorted((v * v for v in r), reverse=True) for r in rows]
        if part == "neuron":
            self.theta = sorted((R(sum(map(abs, r))) for r in rows), key=lambda x: -x.lo)
        else:
            self.theta = singular_values(rows)
        self.size = len(self.theta)
        self.norm = self.theta[0]
        self.zero = self.norm.hi == 0

    def epsilon(self, k):
        if self.zero:
            return R(0)
        head, tail = total(self.theta[:k]), total(self.theta[k:])
        return R(tail.lo / (head.hi + tail.lo), tail.hi / (head.lo + tail.hi))

    def spread(self, k, reading):
        """1 − β."""
        if self.zero or k == 1:
            return R(1)
        return self.theta[k - 1] / self.norm if reading == "kth" else total(self.theta[:k]) / (self.norm * k)

    def row_epsilon(self, k):
        return R(max(sum(r[k:], Fraction(0)) / sum(r) if any(r) else Fraction(0) for r in self.squares)).sqrt()

    def rows(self, form, k, kr):
        m, n, eps = self.m, self.n, self.row_epsilon(kr)
        if form == "sharp":
            eps = eps.min(R(Fraction(n - kr, n)).sqrt())
            return R(kr).sqrt() * (R(1) - eps * eps).sqrt() + R(n - kr).sqrt() * eps
        first, second = R(m * kr).sqrt(), R(m * n).sqrt() * eps
        return first + second / k if form == "printed" else (first + second) / k

    def bound(self, form, reading, k, eps=None, spread=None, k_row=None):
        """The form's value; None for ∞. ``eps``, ``spread``: R, exact unless given."""
        if self.zero:
            return R(0)
        eps = self.epsilon(k) if eps is None else eps
        spread = self.spread(k, reading) if spread is None else spread
        choices = range(1, self.n + 1) if k_row is None else [k_row]
        factor = R(self.size).sqrt() / k
        if form == "sharp":
            if reading == "mean":
                s = R(1).max(spread * k)
                a = (s - 1) * (s - 1) / (k - 1) if k > 1 else R(0)
            else:
                s, a = R(1) + spread * (k - 1), spread * spread * (k - 1)
            t = R(0)
            if k < self.size:
                if eps.hi >= 1:
                    return R(0)
                odds = eps / (R(1) - eps) * s
                t = odds * odds / (self.size - k)
            result = self.fro / (R(1) + a + t).sqrt()
            if self.part == "spectral":
                return result
            factor = self.rows("sharp", k, choices[0])
            for c in choices[1:]:
                factor = factor.min(self.rows("sharp", k, c))
            return result * factor
        if self.part == "neuron":
            factor = self.rows(form, k, choices[0])
            for c in choices[1:]:
                factor = factor.min(self.rows(form, k, c))
        if spread.lo == 0:
            return None
        return (R(1) - eps) / spread * factor * self.fro

    def lower(self, k):
        if self.zero:
            return R(0)
        if self.part == "spectral":
            return (total([s * s for s in self.theta[:k]]) / k).sqrt()
        return total(self.theta[:k]) / total(self.theta) / k * self.fro


def within(low, x, high):
    """The enclosure holds the exact value (known to 30 digits)."""
    return Fraction(low) <= x.hi and (high == math.inf or x.lo <= Fraction(high))


def check_upper(value, exact, norm):
    """At least the exact value and the norm."""
    if value == math.inf:
        return
    assert exact is not None and exact.lo <= Fraction(value)
    assert norm.lo <= Fraction(value)


def close(value, exact, relative=1e-11):
    """A rigorous number that is useless would be right as well."""
    if exact is not None and Fraction(1e-290) < exact.lo and exact.hi < Fraction(1e290):
        assert Fraction(value) <= exact.hi * (1 + Fraction(relative)), (value, float(exact.hi))
        assert Fraction(value) >= exact.lo * (1 - Fraction(relative)), (value, float(exact.lo))


def pick(size, seed):
    return 1 + seed % size


@matrix_settings
@given(compressible_matrices(max_side=6), st.integers(0, 59), forms, dispersions, st.booleans())
@example(EXTREME, 1, "derived", "kth", True)
@example(EXTREME.T, 2, "printed", "mean", False)
@example(np.full((2, 3), 5e-324), 1, "derived", "kth", True)
@example(np.array([[5e-324, 0.0, 1e-310], [0.0, 1e-322, 5e-324]]), 1, "derived", "kth", True)
@example(np.full((3, 2), np.finfo(float).max), 1, "printed", "mean", True)
@example(np.zeros((2, 3)), 1, "derived", "mean", True)
@example(np.outer([1.0, 1e-200, 1e200], [1.0, 3.0, 1e-150]), 1, "derived", "kth", True)
@example(np.array([[0.1, 0.1, 0.1, 0.7, 0.3]]), 0, "printed", "mean", False)
def test_every_bound_is_on_the_right_side_of_the_exact_one(W, seed, form, reading, sweeping):
    W = np.asarray(W, dtype=np.float64)
    m, n = W.shape
    ks = {"spectral": pick(min(m, n), seed), "neuron": pick(m, seed)}
    report = check_theorem31(W, k=None if sweeping else ks, form=form, dispersion=reading, rigor="rigorous")
    assert report.rigor is Rigor.RIGOROUS and report.holds is not False and report.hypothesis_met
    for name in PARTS:
        o, part = Oracle(W, name), getattr(report, name)
        assert {part.bound.rigor, part.sharp.rigor, part.lower.rigor} == {Rigor.RIGOROUS}
        k = part.k
        bound, sharp, lower = o.bound(form, reading, k), o.bound("sharp", reading, k), o.lower(k)
        check_upper(part.bound.value, bound, o.norm)
        check_upper(part.sharp.value, sharp, o.norm)
        assert Fraction(part.lower.value) <= min(lower.hi, o.norm.hi)
        assert within(part.norm_interval[0], o.norm, part.norm_interval[1])
        assert within(part.epsilon_interval[0], o.epsilon(k), part.epsilon_interval[1])
        beta = R(1) - o.spread(k, reading)
        assert within(part.beta_interval[0], beta, part.beta_interval[1])
        # proofs: what is said to hold or to be better than the trivial bound, does and is
        assert part.holds is not False
        trivial = o.fro if name == "spectral" else o.fro * R(n).sqrt()
        assert part.vacuous or bound is None or bound.lo < trivial.hi
        if part.holds:
            assert lower.lo <= o.norm.hi and o.norm.lo <= sharp.hi and (bound is None or o.norm.lo <= bound.hi)
        # and they are tight, unless rounding drowns the small singular values
        if name == "neuron" or k == 1:
            close(part.bound.value, bound)
        close(part.sharp.value, sharp)
        close(part.lower.value, lower)
        if name == "neuron" and part.bound.value < math.inf and not o.zero:
            check_upper(part.bound.value, o.bound(form, reading, k), o.norm)
        if sweeping:
            sweep = report.sweep[name]
            assert sweep.holds is not False and (not part.holds or sweep.holds)
            for j in range(o.size):
                check_upper(sweep.bound[j], o.bound(form, reading, j + 1), o.norm)
                check_upper(sweep.sharp[j], o.bound("sharp", reading, j + 1), o.norm)
                assert Fraction(float(sweep.lower[j])) <= min(o.lower(j + 1).hi, o.norm.hi)


@matrix_settings
@given(
    compressible_matrices(max_side=5, kinds=["integer", "low-rank", "float16", "power-law", "scaled", "one-column"]),
    st.integers(0, 59),
    st.integers(-3, 3),
    st.integers(-3, 3),
    st.sampled_from([0.0, 2.0**-52, 2.0**-48, 2.0**-40, 2.0**-10]),
    forms,
    dispersions,
)
def test_users_epsilon_and_beta_near_the_exact_ones(W, seed, up, down, step, form, reading):
    """Whatever is said to be met gives bounds of the norm, whether the user's number is rounded up, down or not."""
    W = np.asarray(W, dtype=np.float64)
    m, n = W.shape
    ks = {"spectral": pick(min(m, n), seed), "neuron": pick(m, seed)}
    base = check_theorem31(W, k=ks, dispersion=reading)
    eps = {p: min(1.0, max(0.0, getattr(base, p).exact_epsilon + up * step)) for p in PARTS}
    beta = {p: min(1.0, max(0.0, getattr(base, p).exact_beta + down * step)) for p in PARTS}
    report = check_theorem31(W, k=ks, epsilon=eps, beta=beta, form=form, dispersion=reading, rigor="rigorous")
    for name in PARTS:
        o, part = Oracle(W, name), getattr(report, name)
        assert Fraction(part.lower.value) <= min(o.lower(part.k).hi, o.norm.hi)
        if not part.hypothesis_met:
            assert part.holds is None and part.bound.value == part.sharp.value == math.inf
            assert part.status is Status.HYPOTHESIS_NOT_MET
            mean = R(1) - o.spread(part.k, "mean")
            assert Fraction(eps[name]) > o.epsilon(part.k).lo or Fraction(beta[name]) < mean.hi
            continue
        assert part.holds is not False
        for b in (part.bound, part.sharp):
            assert b.value == math.inf or o.norm.lo <= Fraction(b.value)
        assert part.sharp.value <= part.bound.value * (1 + 1e-13)
        # the value itself: with the exact numbers where the user's are not valid, else with one or the other
        k, e, spread = part.k, o.epsilon(part.k), o.spread(part.k, reading)
        given_eps, given_spread = R(Fraction(eps[name])), R(1 - Fraction(beta[name]))
        best_eps = e.max(given_eps) if given_eps.hi <= e.lo else e
        values = [o.bound(form, reading, k, best_eps, s) for s in (spread, given_spread)]
        if not o.zero and all(v is not None for v in values):
            least = min(v.lo for v in values)
            assert part.bound.value == math.inf or Fraction(part.bound.value) >= least


@pytest.mark.parametrize("reading", ["kth", "mean"])
@pytest.mark.parametrize("form", ["derived", "printed"])
def test_one_sided_numbers_enter_as_they_are(form, reading):
    W = np.array([[4.0, 1.0, 0.5], [0.25, 2.0, -1.0], [0.0, 1.0, 1.0]])
    for name in PARTS:
        o = Oracle(W, name)
        for k in (1, 2, 3):
            exact = Fraction(check_theorem31(W, k=k).__getattribute__(name).exact_epsilon)
            eps = float(exact) / 2
            for extra in (0.25, 0.5, 1.0):
                spread = o.spread(k, reading)
                beta = float(1 - spread.lo) * (1 - extra) + extra
                report = check_theorem31(
                    W, k=k, epsilon=eps, beta=beta, form=form, dispersion=reading, rigor="rigorous"
                )
                part = getattr(report, name)
                assert part.hypothesis_met and "one-sided" in part.hypothesis
                want = o.bound(form, reading, k, R(Fraction(eps)), R(1 - Fraction(beta)))
                sharp = o.bound("sharp", reading, k, R(Fraction(eps)), R(1 - Fraction(beta)))
                check_upper(part.bound.value, want or R(HUGE), o.norm)
                check_upper(part.sharp.value, sharp, o.norm)
                close(part.bound.value, want)
                close(part.sharp.value, sharp)
                assert part.holds is True


def test_a_beta_between_mean_and_kth_takes_the_mean_formula():
    W = np.diag([4.0, 2.0, 1.0])
    for name in PARTS:
        o = Oracle(W, name)
        # k = 2: β_mean = 1/4, β_kth = 1/2
        part = getattr(check_theorem31(W, k=2, beta=0.375, rigor="rigorous"), name)
        assert part.hypothesis_met
        close(part.sharp.value, o.bound("sharp", "mean", 2, spread=R(Fraction(5, 8))))
        check_upper(part.sharp.value, o.bound("sharp", "mean", 2, spread=R(Fraction(5, 8))), o.norm)
        part = getattr(check_theorem31(W, k=2, beta=0.625, rigor="rigorous"), name)
        close(part.sharp.value, o.bound("sharp", "kth", 2, spread=R(Fraction(3, 8))))


@pytest.mark.parametrize("scale", [1.0, 1e-300, 1e300, 5e-324])
def test_the_trap_is_still_one(scale):
    report = check_theorem31(np.eye(4) * scale, k=1, epsilon=0.9, rigor="rigorous")
    assert report.holds is None and report.spectral.bound.value == math.inf
    assert report.spectral.status is Status.HYPOTHESIS_NOT_MET
    report = check_theorem31(np.eye(4) * scale, k=2, beta=0.0, epsilon=0.5, rigor="rigorous")
    assert report.hypothesis_met


# -- verdicts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("W", [np.eye(3), np.array([[1.0, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]])])
def test_equality_is_undecided(W):
    """Orthogonal matrices with ``mean``: bound = norm, and no enclosure can tell."""
    report = check_theorem31(W, dispersion="mean", rigor="rigorous")
    assert report.spectral.holds is None and report.holds is None
    norm = report.spectral.norm
    assert norm <= report.spectral.bound.value <= norm * (1 + 1e-13)
    assert check_theorem31(W, dispersion="mean").holds is True  # numerically, within its tolerance


@pytest.mark.parametrize(
    "W",
    [[[3.0]], [[-2.0], [1.0]], [[3.0, 4.0]], [[1.0, 2.0], [3.0, 4.0]], np.zeros((2, 2)), [[5.0, 1.0, 0.0], [0, 2, 1]]],
)
@pytest.mark.parametrize("reading", ["kth", "mean"])
def test_forms_that_are_the_norm_by_algebra_hold(W, reading):
    """One or two singular values: the sharp form IS σ_1, for every k; σ_1 is its own lower bound at k = 1."""
    part = check_theorem31(W, dispersion=reading, rigor="rigorous").spectral
    assert part.holds is True
    assert part.sharp.value == pytest.approx(part.norm, rel=1e-13)


def test_verdicts_are_three():
    W = np.array([[3.0, 1.0, 0.0], [0.5, 2.0, 1.0], [0.0, 1.0, 1.0]])
    e = verified.enclose(W)
    for part in PARTS:
        inputs = verified.exact_inputs(e.vector(part), "kth")
        top = e.vector(part).top

        def around(below, above, top=top):
            return Interval.of(np.full(3, float(top.low) * below), np.full(3, float(top.high) * above))

        good, tie, bad = around(1.1, 1.2), around(0.999, 1.001), around(0.5, 0.9)
        low = around(0.1, 0.2)
        args = (e, part, "derived", inputs)
        assert verified.verdict(*args, good, good, low) is True
        assert verified.verdict(*args, tie, good, low) is None
        assert verified.verdict(*args, good, tie, low) is None
        assert verified.verdict(*args, bad, good, low) is False
        assert verified.verdict(*args, good, bad, low) is False
        assert verified.verdict(*args, tie, bad, low) is False
        assert verified.verdict(*args, good, good, tie) is None
        one = Interval(np.array([1.1, 0.5, 1.1]) * float(top.low), np.array([1.2, 0.9, 1.2]) * float(top.high))
        assert verified.verdict(*args, one, good, low) is False  # one k is enough
        high = Interval(np.array([0.1, 1.1, 0.1]) * float(top.low), np.array([0.2, 1.2, 0.2]) * float(top.high))
        for i in range(3):  # three singular values: the sharp form is the norm at k = 2 only
            ends = np.full(3, 1.1)
            ends[i] = 0.9
            lone = Interval(ends * float(top.low), np.full(3, 1.2) * float(top.high))
            known = part == "spectral" and i == 1
            assert verified.verdict(*args, good, lone, low) is (True if known else None)
        assert verified.verdict(*args, good, good, high) is False


def test_only_provable_numbers_of_the_user_enter():
    """With enclosures of one per cent, ε and β inside them are replaced by them."""
    W = np.diag([4.0, 2.0, 1.0])
    e, measured = verified.enclose(W), measure(W)
    blurred = verified.Enclosed.of(Interval.of([0.99, 0.49, 0.24], [1.01, 0.51, 0.26]))
    e = verified.Enclosure(e.shape, e.scale, e.frobenius, blurred, blurred, e.row_epsilon)
    for part in PARTS:
        exact = verified.exact_inputs(blurred, "mean", 2)
        for epsilon, own in ((1 / 7 - 0.001, False), (1 / 7 - 0.05, True)):  # ε = 1/7 at k = 2
            used = verified.used_inputs(e, measured, part, 2, epsilon, None, "mean")
            assert used.exact is not own
            want = (1 - epsilon, 1 - epsilon) if own else (float(exact.kept.low[0]), float(exact.kept.high[0]))
            assert (used.kept.low[0], used.kept.high[0]) == pytest.approx(want)
            assert used.odds.high[0] == pytest.approx(epsilon / (1 - epsilon) if own else exact.odds.high[0])
        for beta, own in ((0.25 + 0.001, False), (0.25 + 0.1, True)):  # β = 1/4
            used = verified.used_inputs(e, measured, part, 2, None, beta, "mean")
            want = (1 - beta, 1 - beta) if own else (float(exact.spread.low[0]), float(exact.spread.high[0]))
            assert (used.spread.low[0], used.spread.high[0]) == pytest.approx(want) and used.reading == "mean"
        for beta, reading in ((0.505, "mean"), (0.6, "kth")):  # β_kth = 1/2
            assert verified.used_inputs(e, measured, part, 2, None, beta, "kth").reading == reading


def test_a_wrong_formula_is_disproved(monkeypatch):
    W = np.array([[3.0, 1.0, 0.0], [0.5, 2.0, 1.0], [0.0, 1.0, 1.0]])
    true_values = verified.form_values

    def halved(*args, **kwargs):
        x = true_values(*args, **kwargs)
        return Interval(x.low / 2, x.high / 2)

    assert check_theorem31(W, rigor="rigorous").holds is True
    monkeypatch.setattr(verified, "form_values", halved)
    assert check_theorem31(W, rigor="rigorous").holds is False
    assert check_theorem31(W, k=1, rigor="rigorous").holds is False


# -- k by target, types, edges ----------------------------------------------------------------------------------------


@matrix_settings
@given(compressible_matrices(max_side=5), st.floats(0, 1), st.booleans())
def test_target_epsilon_is_provably_reached(W, target, at_a_tail):
    W = np.asarray(W, dtype=np.float64)
    if at_a_tail:  # exactly at a computed tail: rounding decides whether it is provable
        tails = profile(np.linalg.svd(W, compute_uv=False)).epsilon
        target = float(tails[len(tails) // 2])
    report = check_theorem31(W, target_epsilon=target, rigor="rigorous")
    for name in PARTS:
        o, part = Oracle(W, name), getattr(report, name)
        assert o.epsilon(part.k).lo <= Fraction(target)
        assert part.k == 1 or o.epsilon(part.k - 1).hi > Fraction(target) - Fraction(1, 10**12)
        assert part.k >= getattr(check_theorem31(W, target_epsilon=min(1.0, target + 1e-9)), name).k


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int8, np.int64, np.uint16, bool])
def test_other_types_are_exact_inputs(dtype):
    W = np.array([[3, 1, 0], [1, 0, 1]]).astype(dtype)
    part = check_theorem31(W, rigor="rigorous")
    same = check_theorem31(W.astype(np.float64), rigor="rigorous")
    assert part.to_dict() == same.to_dict()
    tenth = np.full((2, 2), 0.1).astype(np.float32)  # 0.1 in float32 is not 0.1 in float64
    part = check_theorem31(tenth, rigor="rigorous").neuron
    assert part.norm_interval == (2 * float(np.float32(0.1)),) * 2


def test_zero_and_overflow():
    part = check_theorem31(np.zeros((2, 3)), rigor="rigorous")
    assert part.holds is True and part.spectral.bound.value == 0.0 == part.neuron.sharp.value
    assert part.spectral.norm_interval == (0.0, 0.0) and part.spectral.bound.rigor is Rigor.RIGOROUS
    part = check_theorem31(np.full((2, 2), sys.float_info.max), rigor="rigorous").neuron
    assert part.norm_interval == (sys.float_info.max, math.inf) and part.bound.value == math.inf
    assert part.lower.value <= sys.float_info.max


def test_beta_one_gives_infinity_not_an_error():
    W = np.diag([2.0, 1.0, 0.0])
    sweep = check_theorem31(W, rigor="rigorous").sweep["spectral"]
    assert sweep.bound[2] == math.inf and sweep.holds is not False
    assert check_theorem31(W, k=1, beta=1.0, rigor="rigorous").spectral.bound.value == math.inf
    rank_one = check_theorem31(np.outer([1.0, 3.0, 7.0], [2.0, 5.0, 11.0]), k=2, rigor="rigorous").spectral
    assert rank_one.bound.value > 1e12 and rank_one.holds is not False


def test_k_row_is_used():
    W = np.array([[4.0, 1.0, 0.5], [0.25, 2.0, -1.0]])
    o = Oracle(W, "neuron")
    for k_row in (1, 2, 3):
        for form in ("derived", "printed"):
            part = check_theorem31(W, k=1, k_row=k_row, form=form, rigor="rigorous").neuron
            assert part.k_row == k_row
            check_upper(part.bound.value, o.bound(form, "kth", 1, k_row=k_row), o.norm)
            close(part.bound.value, o.bound(form, "kth", 1, k_row=k_row))
            close(part.sharp.value, o.bound("sharp", "kth", 1, k_row=k_row))


def test_best_upper_is_the_sweeps_best():
    W = np.array([[4.0, 1.0, 0.5], [0.25, 2.0, -1.0], [1.0, 1.0, 1.0]])
    e, report = verified.enclose(W), check_theorem31(W, rigor="rigorous")
    for part in PARTS:
        assert verified.best_upper(e, part, "derived") == report.sweep[part].bound.min()
        assert verified.best_upper(e, part, "sharp", k=2) == report.sweep[part].sharp[1]
    assert verified.best_upper(verified.enclose(np.zeros((2, 2))), "neuron", "derived") == 0.0


def test_numerical_report_is_the_same_and_loads_nothing_more():
    code = (
        "import sys, certbound; r = certbound.check_theorem31([[3.0, 1.0], [0.5, 2.0]]);"
        "assert r.spectral.norm_interval is None;"
        "bad = [m for m in sys.modules if m[:5] == 'scipy' or 'theorem31_rigorous' in m or 'singular_values' in m];"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_to_dict_and_print():
    report = check_theorem31([[3.0, 1.0], [0.5, 2.0]], rigor="rigorous")
    data = report.to_dict()
    assert json.loads(json.dumps(data, allow_nan=False)) == data and data["rigor"] == "rigorous"
    assert data["spectral"]["bound"]["rigor"] == "rigorous" and len(data["spectral"]["norm_interval"]) == 2
    assert "holds" in str(report)


# -- single guards, where a random matrix is unlikely to notice them -----------------------------------------------


def test_row_tails_are_enclosed():
    """Entries of very different size in one row, and thirds."""
    cases = [np.array([[1.0, 1e-160, 1e-170]]), np.array([[1e300, 1e-20, 5e-324]]), np.full((2, 7), 1 / 3), EXTREME,
             np.array([[1.0, 2.0**-537, 2.0**-540, 2.0**-538]])]  # fmt: skip
    rng = np.random.default_rng(0)
    cases += [rng.standard_normal((3, 50)) * 10.0 ** rng.integers(-8, 3, (3, 50)) for _ in range(20)]
    for W in cases:
        tails, o = verified.enclose_row_tails(W), Oracle(W[:, :1], "neuron")
        o.squares = [sorted((v * v for v in r), reverse=True) for r in rational(W)]
        for k in range(W.shape[1]):
            assert within(float(tails.low[k]), o.row_epsilon(k + 1), float(tails.high[k]))


def test_vectors_are_enclosed_at_both_ends():
    rng = np.random.default_rng(1)
    for d in (1, 2, 5, 40):
        for _ in range(20):
            theta = -np.sort(-np.abs(rng.standard_normal(d)) * 10.0 ** rng.integers(-9, 3, d))
            e, o = verified.Enclosed.of(Interval.of(theta)), Oracle(np.array([[1.0]]), "neuron")
            o.theta, o.norm = [R(Fraction(float(v))) for v in theta], R(Fraction(float(theta[0])))
            for i in range(d):
                eps = o.epsilon(i + 1)
                for got, want in (
                    (e.epsilon, eps),
                    (e.kept, R(1) - eps),
                    (e.odds, total(o.theta[i + 1 :]) / total(o.theta[: i + 1])),
                    (e.spread_kth, o.spread(i + 1, "kth")),
                    (e.spread_mean, o.spread(i + 1, "mean")),
                    (e.root, (total([t * t for t in o.theta[: i + 1]]) / (i + 1)).sqrt()),
                ):
                    assert within(float(got.low[i]), want, float(got.high[i]))
                    assert got.high[i] - got.low[i] <= 1e-12 * got.high[i]


def test_enclosures_of_wide_intervals_keep_their_sides():
    """Ends far apart: a low end taken for a high one shows at once, where rounding alone would hide it."""
    wide = Interval.of([1.9, 0.9, 0.4], [2.1, 1.1, 0.6])
    e = verified.Enclosed.of(wide)
    rng = np.random.default_rng(2)
    for _ in range(200):
        theta = wide.low + rng.integers(0, 2, 3) * (wide.high - wide.low)
        p = profile(theta)
        slack = 1e-12
        for got, want in ((e.epsilon, p.epsilon), (e.kept, p.kept), (e.spread_kth, 1 - p.beta_kth),
                          (e.spread_mean, 1 - p.beta_mean), (e.odds, p.epsilon / p.kept)):  # fmt: skip
            assert np.all(got.low <= want + slack) and np.all(want <= got.high + slack)
    # and the forms between them
    W = np.array([[3.0, 1.0, 0.0], [0.5, 2.0, 1.0], [0.0, 1.0, 1.0]])
    measured, exact = measure(W), verified.enclose(W)
    blurred = {}
    for part in PARTS:
        v = exact.vector(part)
        theta = v.spread_kth  # θ/θ_1
        blurred[part] = verified.Enclosed.of(Interval.of(theta.low * v.top.low * 0.99, theta.high * v.top.high * 1.01))
    rows = exact.row_epsilon
    e = verified.Enclosure(
        exact.shape, exact.scale, Interval.of(exact.frobenius.low * 0.99, exact.frobenius.high * 1.01),
        blurred["spectral"], blurred["neuron"], Interval.of(rows.low * 0.9, np.minimum(rows.high * 1.1, 1.0)),
    )  # fmt: skip
    from certbound.theorems.theorem31 import form_values, row_factor

    for part in PARTS:
        p, k = measured.vector(part), np.arange(1.0, 4.0)
        for reading in ("kth", "mean"):
            inputs = verified.exact_inputs(e.vector(part), reading)
            for form in ("derived", "printed", "sharp"):
                for k_row in (None, 1, 2, 3):
                    got = verified.form_values(e, part, form, inputs, k_row)
                    want = form_values(measured, part, form, reading, k, p.kept, p.beta(reading), k_row)
                    assert np.all(got.low < want) and np.all(want < got.high)
                    factor, middle = verified.row_factor(e, form, k, k_row), row_factor(measured, form, k, k_row)[0]
                    assert np.all(factor.low <= middle) and np.all(middle <= factor.high)
        lower = verified.lower_values(e, part)
        want = [float(getattr(check_theorem31(W, k=i), part).lower.value) / exact.scale for i in (1, 2, 3)]
        assert np.all(lower.low < want) and np.all(want < lower.high)
