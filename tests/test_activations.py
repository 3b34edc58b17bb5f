"""Values and slopes of activations against certified real balls (Arb)."""

import math
import time
from fractions import Fraction

import numpy as np
import pytest
from flint import arb, ctx

import certbound.activations as module
from certbound.activations import Activation
from certbound.errors import InputError, NumericalError

SMOOTH = ["tanh", "sigmoid", "gelu", "gelu_tanh", "silu"]
GATED = ["gelu", "gelu_tanh", "silu"]
LEAKY = [-2.0, -1.0, -0.1, 0.0, 0.01, 0.3, 1.0, 3.0]
FLOAT_MAX = float(np.finfo(float).max)


@pytest.fixture(autouse=True)
def precision():
    before, ctx.prec = ctx.prec, 2400  # enough for 1 − tanh(700)
    yield
    ctx.prec = before


def kappa():
    return arb(44715) / 1000000


def sigmoid(x):
    return 1 / (1 + (-x).exp())


def gate(name, x):
    """A(−x) and its derivative, x an arb."""
    if name == "gelu":
        half = x / arb(2).sqrt()
        return (-half).erfc() / 2, (-(x * x) / 2).exp() / (2 * arb.pi()).sqrt()
    if name == "silu":
        return sigmoid(x), sigmoid(x) * sigmoid(-x)
    scale = 2 * (2 / arb.pi()).sqrt()
    w = scale * (x + kappa() * x**3)
    return sigmoid(w), scale * (1 + 3 * kappa() * x * x) * sigmoid(w) * sigmoid(-w)


def exact_value(name, x):
    if name == "tanh":
        return x.tanh()
    return sigmoid(x) if name == "sigmoid" else x * gate(name, x)[0]


def exact_slope(name, x):
    if name == "tanh":
        return 1 / (x.cosh() * x.cosh())
    if name == "sigmoid":
        return sigmoid(x) * sigmoid(-x)
    A, B = gate(name, x)
    return A + x * B


def points():
    rng = np.random.default_rng(0)
    at = [0.0, 5e-324, -5e-324, 1e-310, -1e-310, 1e-200, -1e-30, 1e-9, -1e-5, 0.5, -0.5, 1.5, np.nextafter(1.5, 0), 2.0]
    at += [np.nextafter(3.0, 0), 3.0, 3.1]
    at += [p.left for ps in module._SLOPE_EXTREMES.values() for p in ps] + [p.right for p in module._MINIMA.values()]
    at += [
        sign * x for sign in (1, -1) for x in (10, 20, 30, 37, 38, 39, 40, 41, 99, 101, 354, 372, 700, 744, 746, 799)
    ]
    return np.array([*at, *rng.normal(size=60), *(5 * rng.normal(size=40)), *(30 * rng.normal(size=30))])


def holds(low, exact, high):
    # the ball may be wider than the distance of an end (1 − tanh 1000): an end that is wrong by more is seen
    return not bool(arb(low) > exact) and not bool(exact > arb(high))


@pytest.mark.parametrize("name", SMOOTH)
def test_values_and_slopes_at_points_hold_the_exact_ones_tightly(name):
    x, phi = points(), Activation(name)
    low, high = phi.enclose(x, x)
    slope_low, slope_high = phi.slopes(x, x)
    near = phi.forward(x)
    for i, at in enumerate(x):
        value, slope = exact_value(name, arb(at)), exact_slope(name, arb(at))
        assert holds(low[i], value, high[i]), (name, at)
        assert holds(slope_low[i], slope, slope_high[i]), (name, at)
        assert high[i] - low[i] <= max(2e-12 * abs(low[i]), 1e-300), (name, at)
        assert slope_high[i] - slope_low[i] <= 5e-14, (name, at)
        assert slope_high[i] <= {"tanh": 1.0, "sigmoid": 0.25}.get(name, 1.13)
        assert abs(near[i] - float(value)) <= 2e-15 * max(1.0, abs(at))


@pytest.mark.parametrize("name", SMOOTH)
def test_slopes_of_tails_are_tight_relative_to_their_size(name):
    x = np.array([-30.0, -20.0, -12.0, -8.0])
    if name == "gelu_tanh":  # e^-11400 is 0
        x = x[2:] / 2
    low, high = Activation(name).slopes(x, x)
    assert np.all(high - low <= 1e-11 * np.abs(low))
    assert np.all(np.sign(low) == np.sign(high))


@pytest.mark.parametrize("name", GATED)
def test_tables_of_extremes_are_proved(name):
    def bend(x):  # the sign of φ″ at x > 0: falls, see the module
        if name == "gelu":
            return 2 - x * x
        if name == "silu":
            return 2 - x * (x / 2).tanh()
        c, s = (2 / arb.pi()).sqrt(), 3 * kappa() * x * x
        return (1 + 2 * s) / (1 + s) ** 2 - c * x * (c * (x + kappa() * x**3)).tanh()

    at_minus, at_plus = module._SLOPE_EXTREMES[name]
    assert (at_minus.left, at_minus.right) == (-at_plus.right, -at_plus.left)
    assert at_plus.right == np.nextafter(at_plus.left, 9)
    assert bend(arb(at_plus.left)) > 0
    assert bend(arb(at_plus.right)) < 0
    for p in (at_minus, at_plus):  # an enclosure over the whole bracket
        bracket = arb(p.left).union(arb(p.right))
        values = [exact_slope(name, arb(p.left)), exact_slope(name, arb(p.right))]
        # within the bracket φ′ moves by at most its width times max |φ″| < 1 times the width
        width = arb(p.right - p.left) ** 2
        assert bracket.contains(arb(p.left))
        for value in values:
            assert value - width > p.low
            assert value + width < p.high
        assert p.high - p.low <= 5e-16

    bottom = module._MINIMA[name]
    assert bottom.right == np.nextafter(bottom.left, 9)
    assert exact_slope(name, arb(bottom.left)) < 0 < exact_slope(name, arb(bottom.right))
    for end in (bottom.left, bottom.right):
        value = exact_value(name, arb(end))
        assert value - arb(bottom.right - bottom.left) ** 2 > bottom.low
        assert value < bottom.high
    assert bottom.high - bottom.low <= 1e-16


def test_constants_are_enclosed():
    ctx.prec = 300
    rest = arb(2).log() - arb(module._LN2_FIRST)
    assert holds(float(module._LN2_REST.low), rest, float(module._LN2_REST.high))
    assert module._LN2_FIRST * 2.0**40 == int(module._LN2_FIRST * 2.0**40) < 2**40
    density = 1 / (2 * arb.pi()).sqrt()
    assert holds(float(module._DENSITY.low), density, float(module._DENSITY.high))
    assert Fraction(float(module._KAPPA.low)) < Fraction(44715, 10**6) < Fraction(float(module._KAPPA.high))


@pytest.mark.parametrize("name", SMOOTH)
def test_exponential_and_normal_tail_hold_arb(name):
    del name
    x = np.array(
        [0.0, 1e-300, 1e-20, 0.3, 0.6931471805599453, 1.0, 50.5, 700.0, 708.5, 730.25, 744.9, 745.5, 800.0, 1e308]
    )
    e = module._exp_minus(module._point(x))
    for i, at in enumerate(x[:-1]):
        assert holds(e.low[i], (-arb(at)).exp(), e.high[i])
    assert (e.low[-1], e.high[-1]) == (0.0, 5e-324)
    assert np.all(e.high[:8] - e.low[:8] <= 2e-14 * e.low[:8])


def test_what_series_and_fractions_leave_out_is_enclosed():
    x = np.array([0.0, 0.1, 0.7, 1.3])
    few = module._series(module._point(x), 2, float)  # of e^x
    ratios = [module._inverse_mills(module._point(np.array([1.5, 2.0, 9.0])), terms) for terms in (0, 1, 2, 3)]
    for i, at in enumerate(x):
        assert holds(few.low[i], arb(at).exp(), few.high[i])
    for ratio in ratios:
        for i, at in enumerate((1.5, 2.0, 9.0)):
            exact = gate("gelu", arb(at))[1] / gate("gelu", -arb(at))[0]
            assert holds(ratio.low[i], exact, ratio.high[i])
            assert ratio.high[i] < 2 * ratio.low[i]


def test_nothing_is_proved_in_other_arithmetic(monkeypatch):
    def flushed():
        raise NumericalError("flushes")

    monkeypatch.setattr(module, "check_arithmetic", flushed)
    for call in (Activation("silu").slopes, lambda: Activation("silu").enclose(np.zeros(1), np.ones(1))):
        with pytest.raises(NumericalError, match="flushes"):
            call()


def intervals():
    rng = np.random.default_rng(1)
    centre = np.concatenate([rng.normal(size=150) * 2, rng.normal(size=30) * 20, np.zeros(10)])
    half = 10.0 ** rng.uniform(-17, 1, size=len(centre))
    return centre - half, centre + half


@pytest.mark.parametrize("name", SMOOTH)
def test_intervals_hold_what_is_inside_and_little_more(name):
    ctx.prec = 200
    left, right = intervals()
    phi = Activation(name)
    (low, high), (slope_low, slope_high) = phi.enclose(left, right), phi.slopes(left, right)
    special = [p.left for p in module._SLOPE_EXTREMES[name]]
    if name in GATED:
        special.append(module._MINIMA[name].left)
    for i in range(len(left)):
        inside = [
            *np.clip(np.linspace(left[i], right[i], 9), left[i], right[i]),
            *(s for s in special if left[i] <= s <= right[i]),
        ]
        values = [exact_value(name, arb(float(x))) for x in inside]
        slopes = [exact_slope(name, arb(float(x))) for x in inside]
        assert all(holds(low[i], v, high[i]) for v in values), (name, left[i], right[i])
        assert all(holds(slope_low[i], s, slope_high[i]) for s in slopes), (name, left[i], right[i])
        # the extremes are at ends and special points, all of which were looked at
        for lows, highs, exact, floor in ((low, high, values, 1e-290), (slope_low, slope_high, slopes, 0.05)):
            least, most = min(map(float, exact)), max(map(float, exact))
            slack = 1e-12 * max(abs(least), abs(most), floor)
            assert least - lows[i] <= slack, (name, left[i], right[i])
            assert highs[i] - most <= slack, (name, left[i], right[i])


def test_slopes_shrink_to_the_derivative():
    x = np.linspace(-6, 6, 301)
    for name in SMOOTH:
        low, high = Activation(name).slopes(x, x + 1e-9)
        assert np.all(high - low <= 2e-9)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("relu", 0.0, 1.0),
        ("tanh", 0.0, 1.0),
        ("sigmoid", 0.0, 0.25),
        ("gelu", -0.1289041451851548, 1.128904145185155),
        ("gelu_tanh", -0.12899306865877178, 1.128993068658772),
        ("silu", -0.09983932012886693, 1.099839320128867),
    ],
)
def test_slopes_over_all_numbers(name, low, high):
    got = Activation(name).slopes()
    assert got[0].shape == got[1].shape == ()
    assert (got[0], got[1]) == (low, high)
    half = Activation(name).slopes(None, np.array([[1e9, -1e9]]))
    assert half[0].shape == (1, 2)
    assert (half[0][0, 0], half[1][0, 0]) == (low, high)
    assert -1e-300 <= half[0][0, 1] <= 0.0 <= half[1][0, 1] <= 1e-300
    at_infinity = Activation(name).slopes(np.array([1e9]))
    limit = 0.0 if name in ("tanh", "sigmoid") else 1.0
    assert at_infinity[0][0] <= limit <= at_infinity[1][0]
    assert at_infinity[1][0] - at_infinity[0][0] <= 1e-15


@pytest.mark.parametrize("name", SMOOTH)
def test_infinite_and_huge_ends(name):
    phi = Activation(name)
    big = np.array([1e3, 1e308, FLOAT_MAX])
    low, high = phi.enclose(-big, big)
    gated = name in GATED
    bottom = module._MINIMA[name].low if gated else {"tanh": -1.0, "sigmoid": 0.0}[name]
    assert np.all(low == bottom)
    assert np.all(high == (big if gated else 1.0))
    low, high = phi.enclose(big, big)
    limit = big if gated else np.ones(3)
    assert np.all((limit * (1 - 1e-15) <= low) & (low <= limit) & (high == limit))
    low, high = phi.enclose(-big, -big)
    limit = {"tanh": -1.0}.get(name, 0.0)
    assert np.all((limit - 1e-300 <= low) & (low <= limit) & (limit <= high) & (high <= limit + 1e-15))
    infinite = phi.enclose(np.array([-math.inf]), np.array([math.inf]))
    assert infinite[0] == bottom
    assert infinite[1] == (math.inf if gated else 1.0)
    half = phi.enclose(np.array([-math.inf]), np.array([-900.0]))
    assert limit - 1e-300 <= half[0] <= limit <= half[1]
    half = phi.enclose(np.array([3.0]), np.array([math.inf]))
    assert half[0] <= float(exact_value(name, arb(3))) <= half[0] * (1 + 1e-12)
    assert half[1] == (math.inf if gated else 1.0)


def test_relu_is_exact():
    phi = Activation("relu")
    left = np.array([-1.0, -1.0, 0.0, 5e-324, -5e-324, -2.0, -math.inf, 1.0, -0.1])
    right = np.array([1.0, 0.0, 0.0, 5e-324, -5e-324, -1.0, math.inf, math.inf, 1e308])
    low, high = phi.slopes(left, right)
    assert low.tolist() == [0, 0, 1, 1, 0, 0, 0, 1, 0]
    assert high.tolist() == [1, 0, 1, 1, 0, 0, 1, 1, 1]
    low, high = phi.enclose(left, right)
    assert low.tolist() == [0, 0, 0, 5e-324, 0, 0, 0, 1, 0]
    assert high.tolist() == [1, 0, 0, 5e-324, 0, 0, math.inf, math.inf, 1e308]
    assert phi.forward(np.array([-1.0, 2.0])).tolist() == [0.0, 2.0]


@pytest.mark.parametrize("a", LEAKY)
def test_leaky_relu_against_fractions(a):
    phi = Activation("leaky_relu", a)
    left, right = intervals()
    left, right = np.append(left, [-3.0, 1.0, -5e-324, 0.0]), np.append(right, [-1.0, 2.0, 5e-324, 0.0])
    (low, high), (slope_low, slope_high) = phi.enclose(left, right), phi.slopes(left, right)

    def exact(x):
        return Fraction(x) if x >= 0 else Fraction(a) * Fraction(x)

    for i in range(len(left)):
        ends = [exact(float(left[i])), exact(float(right[i])), *([Fraction(0)] if left[i] <= 0 <= right[i] else [])]
        for bound, true, sign in ((low[i], min(ends), 1), (high[i], max(ends), -1)):
            assert 0 <= sign * (true - Fraction(float(bound))) <= abs(true) / 2**51 + Fraction(5e-324)
        slopes = ([1.0] if right[i] > 0 or left[i] >= 0 else []) + ([a] if left[i] < 0 else [])
        assert (slope_low[i], slope_high[i]) == (min(slopes), max(slopes))
    assert phi.slopes() == (min(a, 1.0), max(a, 1.0))
    low, high = phi.enclose(np.array([-math.inf]), np.array([math.inf]))
    assert low == (-math.inf if a > 0 else 0.0)
    assert high == math.inf
    assert phi.forward(np.array([-2.0, 2.0])).tolist() == [-2 * a, 2.0]


def test_parameter_of_others_is_not_used():
    assert Activation("relu", 0.5).slopes() == (0.0, 1.0)
    assert Activation("silu", 7.0).slopes() == Activation("silu").slopes()


@pytest.mark.parametrize("name", ["relu", *SMOOTH])
def test_bad_intervals_are_refused(name):
    phi = Activation(name)
    for left, right in ((1.0, 0.0), (math.nan, 1.0), (0.0, math.nan)):
        with pytest.raises(InputError, match="lower <= upper"):
            phi.slopes(np.array([0.0, left]), np.array([0.0, right]))
        with pytest.raises(InputError, match="at 1"):
            phi.enclose(np.array([0.0, left]), np.array([0.0, right]))
    with pytest.raises(InputError):
        phi.slopes(None, np.array([math.nan]))


def test_bad_activations_are_refused():
    with pytest.raises(InputError, match="name"):
        Activation("elu")  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="parameter"):
        Activation("leaky_relu", math.inf)


@pytest.mark.parametrize("name", SMOOTH)
def test_thousands_of_neurons_are_cheap(name):
    left, right = intervals()
    left, right = np.resize(left, 2000), np.resize(right, 2000)
    start = time.perf_counter()
    Activation(name).slopes(left, right)
    Activation(name).enclose(left, right)
    assert time.perf_counter() - start < 1.0
    empty = Activation(name).slopes(np.zeros(0), np.zeros(0))
    assert empty[0].shape == (0,)


@pytest.mark.parametrize("name", ["relu", *SMOOTH])
def test_forward_of_extreme_numbers_is_quiet_and_finite(name):
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        got = Activation(name).forward(np.array([[-1e308, 1e308], [-5e-324, 0.0]]))
    assert got.shape == (2, 2)
    assert got[0, 0] == (-1.0 if name == "tanh" else 0.0)
    assert got[0, 1] == (1.0 if name in ("tanh", "sigmoid") else 1e308)
