"""Bounds of pre-activations on a ball: against exact arithmetic (fractions, Arb), intervals, and auto_LiRPA."""

import itertools
import math
import time
from fractions import Fraction

import numpy as np
import pytest
from flint import arb, ctx

import certbound.lipschitz.preactivation as module
from certbound.activations import Activation
from certbound.errors import InputError, NumericalError
from certbound.lipschitz.preactivation import preactivation_bounds
from certbound.network import Affine, Ball, Flatten, Network, Normalise, ReLU, Residual

RELU = ReLU()
METHODS = ["ibp", "crown"]
SMOOTH = ["tanh", "sigmoid", "gelu", "gelu_tanh", "silu"]


@pytest.fixture(autouse=True)
def precision():
    before, ctx.prec = ctx.prec, 300
    yield
    ctx.prec = before


# ---------------------------------------------------------------- exact evaluation


def number(x, kind):
    return Fraction(float(x)) if kind is Fraction else arb(float(x))


def curve(name, x):
    def gate(w):
        return 1 / (1 + (-w).exp())

    if name == "tanh":
        return x.tanh()
    if name == "sigmoid":
        return gate(x)
    if name == "gelu":
        return x * (-x / arb(2).sqrt()).erfc() / 2
    if name == "silu":
        return x * gate(x)
    return x * gate(2 * (2 / arb.pi()).sqrt() * (x + arb(44715) / 1000000 * x**3))


def run(layers, x, kind, found, shape=None):
    """The output of the layers at x; pre-activations are added to ``found``."""
    for layer in layers:
        if isinstance(layer, Affine):
            bias = np.zeros(len(layer.weight)) if layer.bias is None else layer.bias
            x = [
                sum((number(w, kind) * v for w, v in zip(row, x, strict=True)), number(b, kind))
                for row, b in zip(layer.weight, bias, strict=True)
            ]
        elif isinstance(layer, Normalise):
            mean, std = layer.per_input(shape, len(x))
            x = [(v - number(m, kind)) / number(s, kind) for v, m, s in zip(x, mean, std, strict=True)]
        elif isinstance(layer, Residual):
            body = run(layer.body, x, kind, found)
            x = [a + b for a, b in zip(body, run(layer.shortcut, x, kind, found), strict=True)]
        elif isinstance(layer, (ReLU, Activation)):
            found.append(x)
            name = "relu" if isinstance(layer, ReLU) else layer.name
            if name in ("relu", "leaky_relu"):
                a = number(layer.parameter, kind) if name == "leaky_relu" else 0
                x = [v if v > 0 else a * v for v in x]
            else:
                x = [curve(name, v) for v in x]
    return x


def points(ball, rng, count=6):
    """Exact points of the ball: the centre, corners, points on the sphere."""
    center = [Fraction(float(c)) for c in ball.center.reshape(-1)]
    radius, n = Fraction(ball.radius), len(ball.center.reshape(-1))
    yield center
    if ball.radius == 0:
        return
    directions = list(itertools.product((-1, 1), repeat=n)) if n <= 3 else list(rng.choice([-1, 1], size=(16, n)))
    if ball.norm == math.inf:
        for d in directions:
            yield [c + radius * int(s) for c, s in zip(center, d, strict=True)]
    for _ in range(count):
        d = [Fraction(float(v)) for v in rng.normal(size=n)]
        if ball.norm == math.inf:
            size = max(abs(v) for v in d)
        else:  # a root, rounded up
            size = Fraction(math.nextafter(math.sqrt(float(sum(v * v for v in d))) * (1 + 1e-15), 9e9))
        yield [c + radius * v / size for c, v in zip(center, d, strict=True)]


def widths(bounds):
    return [high - low for low, high in zip(bounds.lower, bounds.upper, strict=True)]


def check(network, ball, rng, method, bounds=None, count=6):
    """Every pre-activation at every point is inside; returns the bounds."""
    bounds = bounds or preactivation_bounds(network, ball, method=method)
    smooth = "Activation(name='" in repr(network.layers) and "leaky" not in repr(network.layers)
    kind = arb if smooth else Fraction
    ends = [
        [(number_or_inf(a), number_or_inf(b)) for a, b in zip(low, high, strict=True)]
        for low, high in zip(bounds.lower, bounds.upper, strict=True)
    ]
    for x in points(ball, rng, count):
        found = []
        run(
            network.layers,
            [arb(v.numerator) / v.denominator for v in x] if smooth else x,
            kind,
            found,
            network.input_shape,
        )
        assert [len(z) for z in found] == [len(e) for e in ends]
        for z, layer in zip(found, ends, strict=True):
            for v, (low, high) in zip(z, layer, strict=True):
                if smooth:  # the ball around v may touch an end
                    assert low is None or not v < arb(low.numerator) / low.denominator
                    assert high is None or not v > arb(high.numerator) / high.denominator
                else:
                    assert low is None or low <= v
                    assert high is None or v <= high
    return bounds


def number_or_inf(x):
    assert not math.isnan(x)
    return Fraction(float(x)) if math.isfinite(x) else None


# ---------------------------------------------------------------- soundness

LEAKY, STEEP, FOLDED = (Activation("leaky_relu", a) for a in (0.1, 3.0, -0.7))


def weights(rng, kind, *shape):
    if kind == "integer":
        return rng.integers(-3, 4, size=shape).astype(float)
    if kind == "cancelling":
        return rng.choice([1e16, -1e16, 1e16, -1e16, 1.0, -1.0, 0.1, 3.3, 0.0], size=shape)
    if kind == "scales":
        return rng.normal(size=shape) * 10.0 ** rng.integers(-12, 12, size=shape)
    return rng.normal(size=shape)


def layout(name, rng, kind, phi=RELU):
    def affine(m, n, bias=True):
        return Affine(weights(rng, kind, m, n), weights(rng, kind, m) if bias else None)

    norm = Normalise(weights(rng, kind, 3), np.abs(weights(rng, kind, 3)) + 0.3)
    layers = {
        "chain": (affine(4, 3), phi, affine(4, 4, False), phi, affine(3, 4), phi),
        "activation first": (phi, affine(3, 3), phi, affine(2, 3)),
        "twice": (affine(3, 3), phi, phi, affine(3, 3, False), phi, phi),
        "one layer": (affine(4, 3),),
        "affine maps in a row": (affine(4, 3), affine(3, 4), phi, affine(3, 3), affine(4, 3), phi),
        "normalised": (Flatten(), norm, affine(4, 3), phi, affine(2, 4), phi),
        "normalised twice": (norm, affine(3, 3), phi, norm, affine(2, 3), phi),
        "residual": (affine(3, 3), Residual((affine(4, 3), phi, affine(3, 4))), phi, affine(2, 3), phi),
        "residual first": (Residual((affine(2, 3), phi), (affine(2, 3),)), phi, affine(2, 2, False), phi),
        "residual of activations": (affine(3, 3), Residual((phi,), (affine(3, 3), phi)), phi),
        "residual in residual": (
            Residual((affine(4, 3), phi, Residual((phi, affine(4, 4)), ()), affine(3, 4)), (affine(3, 3), phi)),
            Residual((affine(3, 3),), ()),
            phi,
            affine(2, 3),
            phi,
        ),
        "identity residual": (Residual((affine(3, 3),)), affine(2, 3), phi),
    }[name]
    return Network(layers)


LAYOUTS = [
    "chain",
    "activation first",
    "twice",
    "one layer",
    "affine maps in a row",
    "normalised",
    "normalised twice",
    "residual",
    "residual first",
    "residual of activations",
    "residual in residual",
    "identity residual",
]


@pytest.mark.parametrize("kind", ["integer", "float", "cancelling", "scales"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_preactivation_is_inside(name, kind):
    rng = np.random.default_rng([LAYOUTS.index(name), len(kind)])
    for trial in range(4):
        network = layout(name, rng, kind, (ReLU(), LEAKY, STEEP, FOLDED)[trial % 4])
        center = weights(rng, "float" if kind == "scales" else kind, 3)
        for radius, p in ((0.0, 2), (0.3, 2), (1e-9, "inf"), (0.7, "inf")):
            ball = Ball(center, radius, p)
            loose, tight = (check(network, ball, rng, method) for method in METHODS)
            for a, b, c, d in zip(loose.lower, tight.lower, tight.upper, loose.upper, strict=True):
                assert np.all(a <= b)
                assert np.all(b <= c)
                assert np.all(c <= d)


@pytest.mark.parametrize("phi", SMOOTH)
@pytest.mark.parametrize(
    "name", ["chain", "activation first", "twice", "normalised", "residual", "residual in residual"]
)
def test_every_preactivation_of_smooth_nets_is_inside(name, phi):
    rng = np.random.default_rng([LAYOUTS.index(name), len(phi)])
    for kind, radius, p in (("float", 0.0, 2), ("float", 0.3, 2), ("scales", 1e-7, "inf"), ("float", 3.0, "inf")):
        network = layout(name, rng, kind, Activation(phi))
        for method in METHODS:
            check(network, Ball(rng.normal(size=3), radius, p), rng, method, count=2)


def test_rounding_of_long_cancelling_products_is_counted():
    # the exact values are of size 1, those that are added of size 1e16
    rng = np.random.default_rng(5)
    for name in ("chain", "twice", "affine maps in a row", "normalised twice", "residual", "residual in residual"):
        for trial in range(25):
            network = layout(name, rng, "cancelling", (ReLU(), STEEP, FOLDED)[trial % 3])
            ball = Ball(rng.choice([1.0, 0.1, 3.0], size=3), 0.0, "inf")
            for method in METHODS:
                check(network, ball, rng, method)


def test_the_cancelling_example_by_hand():
    # z = 1e16 h1 + h2 − 1e16 h3 = h2 = 0.3 exactly: 1e16 + 0.3 rounds to 1e16
    net = Network.from_weights([[[1.0], [0.3], [1.0]], [[1e16, 1.0, -1e16]], [[1.0]]])
    for method in METHODS:
        bounds = preactivation_bounds(net, Ball([1.0], 0.0, 2), method=method)
        assert bounds.lower[1][0] <= 0.3 <= bounds.upper[1][0]
        assert bounds.upper[1][0] - bounds.lower[1][0] <= 100.0


# ---------------------------------------------------------------- one step back, exactly


def exactly(matrix):
    return [[Fraction(float(v)) for v in row] for row in np.atleast_2d(matrix)]


def times(A, B):
    return [
        [sum((a * b for a, b in zip(row, column, strict=True)), Fraction(0)) for column in zip(*B, strict=True)]
        for row in A
    ]


def proves(out, A, constant, size):
    """``out.A h + out.c <= A h + constant`` for all |h| <= size; A and constant exact."""
    got = exactly(out.matrix())
    for i, row in enumerate(A):
        off = sum((abs(a - b) * Fraction(float(s)) for a, b, s in zip(row, got[i], size, strict=True)), Fraction(0))
        assert Fraction(float(out.c[i])) <= constant[i] - off


def step_data(trial):
    rng = np.random.default_rng(trial)
    scale = 10.0 ** rng.uniform(-30, 30, size=5)
    A, c = rng.normal(size=(6, 5)), rng.normal(size=6) * 10.0 ** rng.integers(-20, 1)
    return rng, module._Rows(A, c), np.abs(rng.normal(size=5)) * scale ** (trial % 2)


@pytest.mark.parametrize("trial", range(12))
def test_a_step_through_an_affine_layer_loses_what_rounding_needs(trial):
    rng, rows, size = step_data(trial)
    W, b = rng.normal(size=(5, 5)), rng.normal(size=5)
    for bias in (None, b, b * 1e9, np.zeros(5)):
        out = module._AffineNode(W, bias, size).back(rows)
        shift = np.zeros(5) if bias is None else bias
        constant = times(exactly(rows.matrix()), exactly(shift[:, None]))
        constant = [Fraction(float(c)) + v[0] for c, v in zip(rows.c, constant, strict=True)]
        proves(out, times(exactly(rows.matrix()), exactly(W)), constant, size)


@pytest.mark.parametrize("trial", range(12))
def test_a_step_through_a_normalisation(trial):
    rng, rows, size = step_data(trial)
    std = np.abs(rng.normal(size=5)) + 0.1
    for mean in (rng.normal(size=5), np.zeros(5), rng.normal(size=5) * 1e9):
        for used in (size, size * 1e-9):
            out = module._NormaliseNode(mean, std, used).back(rows)
            s = exactly(std)[0]
            A = [[a / d for a, d in zip(row, s, strict=True)] for row in exactly(rows.matrix())]
            constant = [-v[0] for v in times(A, exactly(mean[:, None]))]
            proves(out, A, [Fraction(float(c)) + v for c, v in zip(rows.c, constant, strict=True)], used)


@pytest.mark.parametrize("trial", range(12))
def test_a_step_through_an_activation(trial):
    rng, rows, size = step_data(trial)
    sl, su = rng.uniform(size=(2, 5))
    for low, high in (rng.normal(size=(2, 5)), np.zeros((2, 5))):  # any numbers: the sums must cancel
        used = size * (trial % 2)  # without an input only the intercepts are rounded
        out = module._ActivationNode(sl, low, su, high, used).back(rows)
        a, lows, highs = exactly(rows.matrix()), exactly([sl, low]), exactly([su, high])
        A = [[v * (lows if v >= 0 else highs)[0][j] for j, v in enumerate(row)] for row in a]
        constant = [sum(v * (lows if v >= 0 else highs)[1][j] for j, v in enumerate(row)) for row in a]
        proves(out, A, [Fraction(float(c)) + v for c, v in zip(rows.c, constant, strict=True)], used)
    # slopes that are exact lose nothing, however large the input
    node = module._ActivationNode(
        np.ones(5), np.zeros(5), np.array([0.0, 1, -1, 0, 1]), np.zeros(5), np.full(5, math.inf)
    )
    assert np.all(np.isfinite(node.back(rows).c))


@pytest.mark.parametrize("trial", range(12))
def test_a_step_through_a_residual_block(trial):
    rng, rows, size = step_data(trial)
    scaled = size * 1e6
    W = np.diag(rng.normal(size=5) * 1e-3)  # the sum is rounded more than the product
    out = module._ResidualNode([module._AffineNode(W, None, scaled * 0.0)], [], scaled).back(rows)
    product = exactly(rows.matrix() @ W)
    A = [[a + b for a, b in zip(x, y, strict=True)] for x, y in zip(product, exactly(rows.matrix()), strict=True)]
    proves(out, A, [Fraction(float(c)) for c in rows.c], scaled)


def test_rows_that_leave_the_range_of_floats_know_nothing():
    rows = module._Rows(np.ones((4, 2)), np.zeros(4))
    wild = np.array([[1.0, 2.0], [math.inf, 0.0], [math.nan, 1.0], [1.0, 1.0]])
    out = rows.then(wild, np.array([1.0, 1.0, 1.0, math.inf]), np.array([1e-9, 0.0, 0.0, 0.0]))
    assert np.array_equal(out.matrix(), [[1.0, 2.0], [0.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    assert out.c[0] < 1.0 - 1e-9
    assert np.all(out.c[1:] == -math.inf)
    # but a row that does not look at h needs nothing of it
    blind = module._Rows(np.array([[0.0, 0.0], [1.0, 0.0]]), np.ones(2))
    with np.errstate(invalid="ignore"):
        seen = module._AffineNode(np.eye(2), None, np.full(2, math.inf)).back(blind).c
    assert seen.tolist() == [1.0 - 2.0**-53, -math.inf]
    unknown = module._ActivationNode(
        *(np.array(v) for v in ([0.0, 0], [-math.inf, 0], [0, 0.0], [0, math.inf], [9.0, 9]))
    )
    signs = module._Rows(np.array([[1.0, 1.0], [-1.0, 1.0], [0.0, -1.0], [0.0, 0.0]]), np.zeros(4))
    assert (unknown.back(signs).c == -math.inf).tolist() == [True, False, True, False]


def test_boxes_round_outward():
    rng = np.random.default_rng(9)
    for trial in range(200):
        W, b = rng.normal(size=(3, 4)), rng.normal(size=3) * 10.0 ** rng.integers(0, 9)
        x = rng.normal(size=4)
        half = np.abs(rng.normal(size=4)) * (trial % 3 == 0)
        box = module._Box(x - half, x + half)
        out = box.through_affine(W, b)
        for row, shift, low, high in zip(exactly(W), exactly(b)[0], out.lower, out.upper, strict=True):
            ends = [(Fraction(float(a)), Fraction(float(c))) for a, c in zip(box.lower, box.upper, strict=True)]
            least = shift + sum(min(w * a, w * c) for w, (a, c) in zip(row, ends, strict=True))
            most = shift + sum(max(w * a, w * c) for w, (a, c) in zip(row, ends, strict=True))
            assert Fraction(float(low)) <= least
            assert Fraction(float(high)) >= most
        both = box + module._Box(x, x)
        assert Fraction(float(both.upper[0])) >= Fraction(float(box.upper[0])) + Fraction(float(x[0]))
        assert Fraction(float(both.lower[0])) <= Fraction(float(box.lower[0])) + Fraction(float(x[0]))


def test_intercepts_of_kinked_lines_are_exact_bounds():
    rng = np.random.default_rng(10)
    x, s = rng.normal(size=500), rng.uniform(size=500)
    low, high = module._times_difference(x, 0.3, s)
    for v, t, a, b in zip(x, s, low, high, strict=True):
        exact = Fraction(float(v)) * (Fraction(0.3) - Fraction(float(t)))
        assert Fraction(float(a)) <= exact <= Fraction(float(b))
    assert module._times_difference(np.array([0.0, 5.0]), 0.3, np.array([7.0, 0.3]))[1].tolist() == [0.0, 0.0]


def test_row_norms_are_above_the_exact_ones():
    rng = np.random.default_rng(11)
    for scale in (1.0, 1e-300, 1e300, 5e-324, 1e160, 1e-170):
        A = rng.normal(size=(40, 5)) * scale
        with np.errstate(all="ignore"):
            one, two = module._row_norms(A, 1), module._row_norms(A, 2)
        for row, a, b in zip(exactly(A), one, two, strict=True):
            assert Fraction(float(a)) >= sum(abs(v) for v in row)
            assert Fraction(float(b)) ** 2 >= sum(v * v for v in row)
            assert float(b) <= float(a) * (1 + 1e-12) + 1e-320
        assert module._row_norms(np.zeros((1, 3)), 2)[0] == 0.0


# ---------------------------------------------------------------- extremes


@pytest.mark.parametrize(
    "scales", [(200, -200), (-200, 200), (200, 200), (-200, -200), (307, 0), (0, -308), (-160, -160)]
)
def test_extreme_weights_stay_sound(scales):
    rng = np.random.default_rng(3)
    for phi in (ReLU(), LEAKY, Activation("tanh"), Activation("silu")):
        first, second = (rng.normal(size=(3, 3)) * 10.0**s for s in scales)
        first, second = np.clip(first, -1e308, 1e308), np.clip(second, -1e308, 1e308)
        network = Network((Affine(first, rng.normal(size=3)), phi, Affine(second), phi, Affine(np.ones((2, 3))), phi))
        for radius, p in ((0.0, 2), (0.5, 2), (0.5, "inf"), (1e200, "inf"), (1e-200, 2)):
            for method in METHODS:
                check(network, Ball(rng.normal(size=3), radius, p), rng, method, count=2)


def test_what_overflows_is_unknown():
    net = Network.from_weights([[[1e200], [-1e200]], [[1e200, 0.0], [0.0, 1.0]], [[1.0, 1.0]], [[1.0]]])
    for method in METHODS:
        bounds = preactivation_bounds(net, Ball([1.0], 0.5, 2), method=method)
        assert bounds.upper[1][0] == math.inf
        assert abs(bounds.lower[1][1]) <= 1e-90  # the neuron that is dead stays known
        assert bounds.upper[2][0] == math.inf
        assert bounds.lower[2][0] <= 0.0


@pytest.mark.parametrize("signs", list(itertools.product((1, -1), repeat=4)))
def test_a_partial_sum_that_overflows_is_no_bound(signs):
    # the sum may be 0 where a partial sum is ∞
    row = 1.5e308 * np.array([signs])
    linear = Network((Affine(row), ReLU(), Affine([[1.0]]), ReLU()))
    hidden = Network((Affine(np.ones((4, 1))), ReLU(), Affine(row), ReLU(), Affine([[1e-300]]), ReLU()))
    biased = Network(
        (Affine(np.ones((4, 1)), np.ones(4)), Affine(np.ones((4, 4)) + np.eye(4)), ReLU(), Affine(row, [1e308]), ReLU())
    )
    rng = np.random.default_rng(0)
    for method in METHODS:
        check(linear, Ball(np.ones(4), 0.0, 2), rng, method)
        check(hidden, Ball(np.ones(1), 0.0, 2), rng, method)
        check(biased, Ball(np.ones(1), 1e-3, "inf"), rng, method)


def test_bounded_activations_are_known_beyond_an_overflow():
    net = Network(
        (Affine([[1e200]]), ReLU(), Affine([[1e200], [-1e200]]), Activation("tanh"), Affine([[1.0, 1.0]]), ReLU())
    )
    for method in METHODS:
        bounds = preactivation_bounds(net, Ball([1.0], 2.0, 2), method=method)
        assert bounds.upper[1][0] == math.inf
        assert -2.001 <= bounds.lower[2][0]
        assert bounds.upper[2][0] <= 2.001


# ---------------------------------------------------------------- tightness


@pytest.mark.parametrize("p", [2, "inf"])
def test_one_affine_layer_is_exact_up_to_rounding(p):
    rng = np.random.default_rng(0)
    W, b, center, radius = rng.normal(size=(5, 7)), rng.normal(size=5), rng.normal(size=7), 0.3
    dual = np.abs(W).sum(axis=1) if p == "inf" else np.linalg.norm(W, axis=1)
    for layers in (
        (Affine(W, b), ReLU()),
        (Normalise(np.full(7, 0.4), np.full(7, 0.3)), Affine(W * 0.3, b + 0.4 * W.sum(axis=1)), ReLU()),
        (Affine(np.eye(7)[::-1]), Affine(W[:, ::-1], b), ReLU()),
        (Residual((Affine(np.eye(7)),)), Affine(W / 2, b), ReLU()),
    ):
        for method in METHODS:
            bounds = preactivation_bounds(Network(layers), Ball(center, radius, p), method=method)
            assert np.allclose(bounds.lower[0], W @ center + b - radius * dual, rtol=0, atol=1e-13)
            assert np.allclose(bounds.upper[0], W @ center + b + radius * dual, rtol=0, atol=1e-13)


def random_net(rng, widths, phi=RELU):
    layers = []
    for n, m in itertools.pairwise(widths):
        layers += [Affine(rng.normal(size=(m, n)) * math.sqrt(2 / n), 0.1 * rng.normal(size=m)), phi]
    return Network(tuple(layers))


ALL = [ReLU(), LEAKY, *(Activation(name) for name in SMOOTH)]


@pytest.mark.parametrize("phi", ALL)
def test_a_ball_of_radius_0_is_a_point(phi):
    rng = np.random.default_rng(1)
    net = random_net(rng, [64, 64, 64, 10], phi)
    for radius in (0.0, 1e-9):
        for method in METHODS:
            bounds = preactivation_bounds(net, Ball(rng.normal(size=64), radius, "inf"), method=method)
            for k, width in enumerate(widths(bounds)):
                size = np.max(np.abs(bounds.upper[k]))
                assert np.all(width <= (3e-12 + 1e4 * radius) * size)


@pytest.mark.parametrize("phi", ALL)
def test_crown_is_clearly_tighter_than_intervals(phi):
    rng = np.random.default_rng(2)
    net = random_net(rng, [64, 64, 64, 64, 10], phi)
    ball = Ball(rng.uniform(size=64), 0.05, "inf")
    tight, loose = (widths(preactivation_bounds(net, ball, method=m)) for m in ("crown", "ibp"))
    ratios = [float(np.mean(a) / np.mean(b)) for a, b in zip(tight, loose, strict=True)]
    assert ratios[0] == pytest.approx(1.0)
    assert ratios[1] < 0.5
    # tanh and sigmoid, near their ends, keep intervals small
    assert ratios[2] < (0.4 if getattr(phi, "name", "") in ("tanh", "sigmoid") else 0.25)
    assert ratios[3] < (0.5 if getattr(phi, "name", "") in ("tanh", "sigmoid") else 0.15)


@pytest.mark.parametrize("phi", ALL)
@pytest.mark.parametrize("p", [2, "inf"])
def test_forward_at_points_of_the_ball(phi, p):
    rng = np.random.default_rng(3)
    net = random_net(rng, [20, 30, 30, 5], phi)
    open_net = Network(net.layers[:-1])
    center, radius = rng.normal(size=20), 0.1
    bounds = {m: preactivation_bounds(net, Ball(center, radius, p), method=m) for m in METHODS}
    steps = rng.normal(size=(20000, 20))
    steps /= np.max(np.abs(steps), axis=1, keepdims=True) if p == "inf" else np.linalg.norm(steps, axis=1)[:, None]
    if p == "inf":
        steps[::2] = np.sign(steps[::2])
    # and a gradient corner for each output, from one-sided differences
    h = 1e-6
    jacobian = (open_net.forward(center + h * np.eye(20)) - open_net.forward(center[None])) / h
    best = np.sign(jacobian.T) if p == "inf" else jacobian.T / np.linalg.norm(jacobian.T, axis=1, keepdims=True)
    out = open_net.forward(center + radius * np.concatenate([steps, best, -best]))
    for b in bounds.values():
        assert np.all(b.lower[-1] - 1e-12 <= out)
        assert np.all(out <= b.upper[-1] + 1e-12)
    # nor is it far from what is reached
    reached = out.max(axis=0) - out.min(axis=0)
    assert np.all(widths(bounds["crown"])[-1] <= 3.5 * reached)


@pytest.mark.parametrize("norm", [2.0, math.inf])
@pytest.mark.parametrize("phi", [ReLU(), LEAKY, Activation("tanh"), Activation("sigmoid")])
def test_about_as_tight_as_auto_lirpa(norm, phi):
    import torch

    from certbound.crown.compat import bounded_module, load_auto_lirpa

    rng = np.random.default_rng(4)
    net = random_net(rng, [12, 16, 16, 16, 4], phi)
    center, radius = rng.normal(size=12), 0.05
    modules = []
    for layer in net.layers[:-1]:
        if isinstance(layer, Affine):
            linear = torch.nn.Linear(layer.weight.shape[1], layer.weight.shape[0])
            linear.weight.data, linear.bias.data = torch.tensor(layer.weight).float(), torch.tensor(layer.bias).float()
            modules.append(linear)
        elif isinstance(layer, ReLU):
            modules.append(torch.nn.ReLU())
        else:
            tanh, leaky = torch.nn.Tanh(), torch.nn.LeakyReLU(0.1)
            modules.append({"tanh": tanh, "leaky_relu": leaky}.get(layer.name, torch.nn.Sigmoid()))
    package = load_auto_lirpa()
    x = torch.tensor(center[None]).float()  # auto_LiRPA's tanh knows no other
    bounded = bounded_module(torch.nn.Sequential(*modules), x)
    ball = package.PerturbationLpNorm(norm=norm, eps=radius)
    low, high = bounded.compute_bounds(x=(package.BoundedTensor(x, ball),), method="CROWN")
    theirs = (high - low).detach().numpy()[0]
    ours = widths(preactivation_bounds(net, Ball(center, radius, norm)))[-1]
    assert np.all(ours <= 1.02 * theirs)
    if isinstance(phi, ReLU):  # the same relaxation, and intervals
        assert np.all(ours >= 0.9 * theirs)


# ---------------------------------------------------------------- the lines


@pytest.mark.parametrize("phi", [*ALL[1:], Activation("relu"), STEEP, FOLDED, Activation("leaky_relu", 1.0)])
def test_lines_are_below_and_above(phi):
    rng = np.random.default_rng(6)
    center = np.concatenate([rng.normal(size=60) * 2, np.zeros(4), rng.normal(size=6) * 40])
    half = 10.0 ** rng.uniform(-9, 1.3, size=len(center))
    left, right = center - half, center + half
    left = np.append(left, [-1.0, 0.0, -math.inf, 1.0, -1e300, 0.0, -5e-324, 2.0, -3.0, -math.inf, -1.7e308])
    right = np.append(right, [0.0, 1.0, 1.0, math.inf, 1e300, 0.0, 5e-324, 2.0, -3.0, math.inf, 1.7e308])
    with np.errstate(all="ignore"):
        node = module._lines(phi, module._Box(left, right))
    for j in range(len(left)):
        ends = np.clip([left[j], right[j]], -1e300, 1e300)
        for x in [*(np.linspace(*ends, 25).clip(*ends)), *np.clip([0.0, -0.75, 1.4, -1.4], *ends)]:
            at = arb(float(x))
            a = arb(phi.parameter) if phi.name == "leaky_relu" else arb(0)
            exact = (at if x > 0 else a * at) if phi.name in ("relu", "leaky_relu") else curve(phi.name, at)
            if math.isfinite(node.low[j]):
                assert not exact < arb(float(node.low_slope[j])) * at + arb(float(node.low[j]))
            if math.isfinite(node.high[j]):
                assert not exact > arb(float(node.high_slope[j])) * at + arb(float(node.high[j]))
    assert not np.any(np.isnan([node.low_slope, node.low, node.high_slope, node.high]))
    assert np.all(np.isfinite([node.low_slope, node.high_slope]))


@pytest.mark.parametrize("name", SMOOTH)
def test_lines_are_near_the_convex_hull_at_the_middle(name):
    rng = np.random.default_rng(7)
    center, half = rng.normal(size=300) * 2, 10.0 ** rng.uniform(-4, 0.8, size=300)
    left, right = center - half, center + half
    phi = Activation(name)
    with np.errstate(all="ignore"):
        node = module._lines(phi, module._Box(left, right))
    middle = 0.5 * left + 0.5 * right
    k = 200
    first, second = (np.linspace(a, b, k)[:-1] for a, b in ((left, middle), (right, middle)))
    f, g = phi.forward(first)[:, None], phi.forward(second)[None]
    chords = f + (g - f) * ((middle - first)[:, None] / (second[None] - first[:, None]))
    low, high = chords.min(axis=(0, 1)), chords.max(axis=(0, 1))
    gap_low = low - (node.low_slope * middle + node.low)
    gap_high = (node.high_slope * middle + node.high) - high
    bend = high - low
    # a few percent of the distance between the hulls, which shrinks as the square of the width
    for gap in (gap_low, gap_high):
        assert np.all(gap <= 0.1 * bend + 1e-13)
        assert np.mean(gap <= 0.01 * bend + 1e-13) > 0.8


# ---------------------------------------------------------------- shape and refusals


def test_one_pair_of_vectors_per_activation_in_order_of_execution():
    def scaled(k, n):
        return Affine(np.full((n, 1), float(k)))

    body = (scaled(1, 2), ReLU(), Affine([[1.0, 1.0]]), Activation("tanh"))
    shortcut = (scaled(-5, 3), Activation("silu"), Affine([[0.0, 0.0, 0.0]]))
    net = Network((scaled(2, 1), Flatten(), ReLU(), ReLU(), Residual(body, shortcut), ReLU(), scaled(1, 4)))
    for method in METHODS:
        bounds = preactivation_bounds(net, Ball([1.0], 0.0, 2), method=method)
        got = [low.round(6).tolist() for low in bounds.lower]
        assert got == [[2.0], [2.0], [2.0, 2.0], [4.0], [-10.0] * 3, [round(math.tanh(4), 6)]]
        assert not bounds.lower[0].flags.writeable
    assert preactivation_bounds(Network.from_weights([[[1.0]]]), Ball([0.0], 1.0, 2)).lower == ()


def test_dead_neurons_and_constant_nets():
    net = Network((Affine(np.zeros((3, 2)), [-1.0, 0.0, 2.0]), ReLU(), Affine([[5.0, 5.0, 1.0]]), ReLU()))
    for method in METHODS:
        bounds = preactivation_bounds(net, Ball([1.0, 1.0], 9.0, 2), method=method)
        assert np.allclose(bounds.lower[0], [-1, 0, 2], atol=1e-12)
        assert np.allclose(bounds.upper[0], [-1, 0, 2], atol=1e-12)
        assert np.allclose([bounds.lower[1], bounds.upper[1]], 2.0, atol=1e-12)


def test_normalisation_per_channel_needs_the_shape():
    layers = (Normalise([0.5, 2.0], [0.1, 3.0]), Flatten(), Affine(np.eye(4)), ReLU())
    net = Network(layers, (2, 1, 2))
    bounds = preactivation_bounds(net, Ball(np.ones((2, 1, 2)), 0.0, 2))
    assert np.allclose(bounds.lower[0], [5, 5, -1 / 3, -1 / 3], atol=1e-12)
    rng = np.random.default_rng(0)
    check(net, Ball(rng.normal(size=(2, 1, 2)), 0.2, "inf"), rng, "crown")


def test_bad_arguments_are_refused():
    net = Network.from_weights([np.eye(2), np.eye(2)])
    with pytest.raises(InputError, match="ball: got a centre of 3 numbers"):
        preactivation_bounds(net, Ball([0.0, 0.0, 0.0], 1.0, 2))
    with pytest.raises(InputError, match="method"):
        preactivation_bounds(net, Ball([0.0, 0.0], 1.0, 2), method="alpha")  # pyright: ignore[reportArgumentType]


def test_nothing_is_proved_in_other_arithmetic(monkeypatch):
    def flushed():
        raise NumericalError("flushes")

    monkeypatch.setattr(module, "check_arithmetic", flushed)
    with pytest.raises(NumericalError, match="flushes"):
        preactivation_bounds(Network.from_weights([np.eye(2), np.eye(2)]), Ball([0.0, 0.0], 1.0, 2))


def test_it_is_quiet_and_cheap():
    rng = np.random.default_rng(8)
    net = random_net(rng, [784, 200, 200, 10], Activation("gelu"))
    start = time.perf_counter()
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        preactivation_bounds(net, Ball(rng.uniform(size=784), 0.01, "inf"))
    assert time.perf_counter() - start < 2.0
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        preactivation_bounds(Network.from_weights([[[1e300]], [[1e300]], [[1.0]], [[1.0]]]), Ball([1.0], 1.0, 2))
