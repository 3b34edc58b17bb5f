"""Sampled lower bounds: never above the constant, only smooth points, in the ball, the same for a seed."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import tamper
from budget import network_settings
from hypothesis import given, settings
from hypothesis import strategies as st

from certbound.certificate import load_certificate
from certbound.errors import CertificateError, InputError, NumericalError
from certbound.lipschitz import jacobian
from certbound.lipschitz import sampled as module
from certbound.lipschitz.exact import lipschitz_exact
from certbound.lipschitz.jacobian import norm_below
from certbound.lipschitz.sampled import SmoothPoint, exact_jacobian, lipschitz_sampled, norm_of_fractions, scaled_to
from certbound.network import Affine, Ball, Network, Normalise, ReLU
from certbound.rounding import gamma
from certbound.testing import zoo
from certbound.testing.strategies import relu_networks
from certbound.types import Quantity, Rigor, Sense, Status

UP = 1 + 1e-12
both_norms = pytest.mark.parametrize("norm", [2.0, math.inf])
some = settings(max_examples=network_settings.max_examples)


def deep(seed, sizes):
    rng = np.random.default_rng(seed)
    weights = [rng.standard_normal((b, a)) for a, b in itertools.pairwise(sizes)]
    return Network.from_weights(weights, [rng.standard_normal(b) for b in sizes[1:]])


@both_norms
@pytest.mark.parametrize("entry", zoo, ids=lambda e: e.name)
def test_zoo(entry, norm):
    """Not above the constant, and on these it reaches it."""
    true = entry.lipschitz_2 if norm == 2 else entry.lipschitz_inf
    result = lipschitz_sampled(entry.network, norm)
    assert result.status is Status.OK
    assert result.value <= true
    assert result.value == pytest.approx(true, rel=1e-12)
    assert result.certificate.verify(entry.network)
    claim = result.bound.claim
    assert (claim.quantity, claim.norm_in, claim.norm_out, claim.domain) == (
        Quantity.LIPSCHITZ, norm, norm, "all inputs",
    )  # fmt: skip
    assert claim.subject == entry.network.digest
    folded = any(isinstance(layer, Normalise) for layer in entry.network.layers)
    assert (result.bound.sense, result.bound.rigor) == (Sense.LOWER, Rigor.NUMERICAL if folded else Rigor.RIGOROUS)
    assert bool(result.bound.assumptions) == folded
    json.dumps([result.to_dict(), result.certificate.to_dict()], allow_nan=False)


# -- smooth points only ----------------------------------------------------------------------------------


def lattice_network(seed, step=0.1):
    """Multiples of 0.1: at lattice points pre-activations cancel up to rounding, to either side."""
    rng = np.random.default_rng(seed)
    sizes = (2, 3, 3, 2)
    weights = [rng.integers(-3, 4, (b, a)) * step for a, b in itertools.pairwise(sizes)]
    return Network.from_weights(weights, [rng.integers(-3, 4, b) * step * step for b in sizes[1:]])


@both_norms
def test_every_point_that_counts_has_the_norm_in_rationals(norm):
    """At points where sums cancel a float's sign may be wrong: those are left out; at the others the norm is true."""
    counted = left_out = wrong_sign = 0
    for seed in range(12):
        net = lattice_network(seed)
        model = module._Model.of(net, "all", norm)
        x = np.array(list(itertools.product(np.arange(-3, 4) * 0.1, repeat=2)))
        batch = model.evaluate(x)
        for point, value, smooth in zip(x, batch.norms, batch.smooth, strict=True):
            exact = [Fraction(v) for v in point.tolist()]
            if not smooth:
                left_out += 1
                assert value == 0.0
                continue
            counted += 1
            J, pattern = exact_jacobian(net, exact, "all")  # raises on a kink
            assert scaled_to(float(value), model.exponent, Sense.LOWER) <= norm_of_fractions(J, norm, Sense.UPPER) * UP
            # and the float's pattern there is the exact one
            h = point
            for w, b, on in zip(net.chain.encoder, net.chain.biases, pattern, strict=False):
                z = w @ h + b
                wrong_sign += int(np.any((z > 0) != np.array(on, dtype=bool)))
                h = np.maximum(z, 0)
    assert counted > 100 and left_out > 20 and wrong_sign == 0


@both_norms
def test_a_kink_is_no_point(norm):
    """max(x, y) around (3, 1) with y's kink there: the pattern with both off has gradient (1, −1)."""
    net = Network.from_weights([[[1, -1], [0, 1], [0, -1]], [[1, 1, -1]]], [[0, -1, 1], None])
    result = lipschitz_sampled(net, norm, region=Ball([3.0, 1.0], 1e-20, 2))
    assert result.status is Status.FAILED and result.value == 0.0 and result.certificate is None
    near = lipschitz_sampled(net, norm, region=Ball([3.0, 1.0], 0.5, 2))
    assert near.status is Status.OK and near.value == pytest.approx(1.0) and near.value <= 1.0


@both_norms
def test_constant_neurons_do_not_spoil_every_point(norm):
    """A pruned neuron has pre-activation 0 everywhere, and so has one fed by dead ones."""
    net = Network.from_weights([[[1.0, 2.0], [0.0, 0.0]], [[1.0, 5.0], [0.0, 1.0]], [[3.0, 1.0]]])
    assert lipschitz_sampled(net, norm).value == pytest.approx(3 * math.sqrt(5) if norm == 2 else 9.0)


# -- soundness and quality -------------------------------------------------------------------------------


@both_norms
@some
@given(net=relu_networks(3, 4, max_hidden=6), seed=st.integers(0, 99), data=st.data(), last=st.booleans())
def test_the_witness_verifies(norm, net, seed, data, last):
    net = Network((*net.layers, ReLU())) if last else net
    outputs = None if net.n_outputs == 1 else data.draw(st.sampled_from([None, 0, (0, net.n_outputs - 1)]))
    region = data.draw(st.sampled_from([None, 2, "inf"]))
    ball = None if region is None else Ball(np.ones(net.n_inputs), 0.7, region)
    result = lipschitz_sampled(net, norm, outputs=outputs, region=ball, n_samples=30, ascent_steps=4, seed=seed)
    assert result.status in (Status.OK, Status.FAILED)
    if result.status is Status.OK:
        witness = result.certificate
        assert witness.verify(net) and witness.value == result.value
        J, _ = exact_jacobian(net, witness.point, result.bound.claim.outputs)
        assert result.value <= norm_of_fractions(J, norm, Sense.UPPER) * UP
        if ball is not None:
            assert np.linalg.norm(witness.x - 1.0, ball.norm) <= ball.radius
            assert result.bound.claim.domain == str(ball)


@both_norms
def test_cancelling_weights_are_rounded_down(norm):
    """0.1 a + 0.2 a − 0.3 a: what the Jacobian's float entries may be off by is taken off."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        net = Network.from_weights(
            [np.tile(rng.standard_normal((1, 6)), (3, 1)), [[0.1, 0.2, -0.3]]], [[99.0] * 3, None]
        )
        result = lipschitz_sampled(net, norm, region=Ball(np.zeros(6), 1.0, 2), n_samples=5)
        J, _ = exact_jacobian(net, [Fraction(0)] * 6, "all")
        assert result.status is Status.OK
        assert result.value <= norm_of_fractions(J, norm, Sense.UPPER)


@both_norms
def test_errors_of_one_layer_reach_the_next(norm):
    """10^8 x − 10^8 y of about 10^-4 carries an error of 10^-8, far above what the next layer adds."""
    rng = np.random.default_rng(1)
    for _ in range(20):
        a, x = 1e8 * (1 + rng.random()), 1 + rng.random()
        h = np.array([a, -a]) @ np.array([x, x - 1e-12])
        h = h if h > 0 else 1e-7
        net = Network.from_weights([[[a, -a]], [[1.0]], [[1.0]]], [None, [-h * (1 - 1e-9)], None])
        batch = module._Model.of(net, "all", norm).evaluate(np.array([[x, x - 1e-12]]))
        assert not batch.smooth[0]


@both_norms
def test_the_search_improves_on_the_samples(norm):
    gains = []
    for seed in range(5):
        net = deep(seed, (8, 12, 12, 2))
        few = lipschitz_sampled(net, norm, n_samples=20, ascent_steps=0)
        more = lipschitz_sampled(net, norm, n_samples=20, ascent_steps=15)
        assert more.value >= few.value
        assert dict(more.stats)["best sample"] == few.value
        gains.append(more.value / few.value)
    assert np.median(gains) > 1.02


@both_norms
def test_breakpoints_of_every_size_are_found(norm):
    """A hat of width 10^k: slopes 1 and −1 at that scale only."""
    for width in (1e-9, 1.0, 1e9):
        hat = Network.from_weights([[[1], [1], [1]], [[1, -2, 1]]], [[0, -width, -2 * width], None])
        assert lipschitz_sampled(hat, norm).value == pytest.approx(1.0)


def test_deterministic_and_without_global_state():
    net = deep(0, (4, 8, 8, 2))
    before = np.random.get_state()[1].copy()  # noqa: NPY002  # that it is untouched is the test
    one, two = (lipschitz_sampled(net, 2, n_samples=40, ascent_steps=5, seed=3) for _ in range(2))
    assert one.value == two.value and one.certificate.point == two.certificate.point
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002
    other = lipschitz_sampled(net, 2, n_samples=40, ascent_steps=0, seed=4)
    assert other.certificate.point != one.certificate.point


# -- balls -----------------------------------------------------------------------------------------------


@both_norms
@pytest.mark.parametrize("ball_norm", [2, "inf"])
def test_what_is_outside_the_ball_does_not_count(norm, ball_norm):
    """x + 9 relu(x − 1): slope 1 on the ball of radius 1 around 0, 10 beyond."""
    net = Network.from_weights([[[1.0], [-1.0], [1.0]], [[1.0, -1.0, 9.0]]], [[0.0, 0.0, -1.0], None])
    assert lipschitz_sampled(net, norm, region=Ball([0.0], 1.0, ball_norm)).value == pytest.approx(1.0)
    assert lipschitz_sampled(net, norm, region=Ball([0.0], 1.1, ball_norm)).value == pytest.approx(10.0)
    assert lipschitz_sampled(net, norm).value == pytest.approx(10.0)
    # in two dimensions: the corner of the box is not in the disc
    net = Network.from_weights([[[1.0, 1.0]], [[1.0]]], [[-1.5], None])
    value = lipschitz_sampled(net, norm, region=Ball([0.0, 0.0], 1.0, ball_norm)).value
    assert value == pytest.approx(0.0 if ball_norm == 2 else math.sqrt(2) if norm == 2 else 2.0)


def test_rounding_does_not_leave_the_ball():
    ball = Ball([1e16], 1.5, 2)
    x = module._pulled_in(np.array([[2e16], [1e16 + 2]]), ball)
    assert not np.any(module._inside(np.array([[1e16 + 2], [1e16 - 2]]), ball))
    assert np.all(module._inside(np.array([[1e16]]), ball))
    # the first float beyond the centre is outside: a slope found there is not the ball's
    net = Network.from_weights([[[1.0]], [[1.0]]], [[-(1e16 + 2)], None])
    assert x.shape == (2, 1)
    assert lipschitz_sampled(net, 2, region=ball).value == 0.0
    beyond = Network.from_weights([[[64.0]], [[1.0]]], [[-64e16 - 96.0], None])  # its kink is at 1e16 + 1.5 or 2
    assert lipschitz_sampled(beyond, 2, region=ball).value == 0.0


@both_norms
def test_a_point_has_constant_0(norm):
    result = lipschitz_sampled([[[2.0]]], norm, region=Ball([1.0], 0.0, 2))
    assert result.status is Status.OK and result.value == 0.0


# -- a final ReLU, extreme numbers, arguments ------------------------------------------------------------


@both_norms
def test_a_final_relu_counts(norm):
    """relu(−1 − relu(x)) = 0; and relu(x) − relu(x − 1) as a margin."""
    off = Network((*Network.from_weights([[[1.0]], [[-1.0]]], [None, [-1.0]]).layers, ReLU()))
    assert lipschitz_sampled(off, norm).value == 0.0
    margin = Network((Affine(np.ones((2, 1)), np.array([0.0, -1.0])), ReLU()))
    assert lipschitz_sampled(margin, norm, outputs=(0, 1)).value == pytest.approx(1.0)
    assert lipschitz_sampled(margin, norm, outputs=1).value == pytest.approx(1.0)


@both_norms
@pytest.mark.parametrize("exponent", [-900, -300, 300, 900])
def test_extreme_weights(norm, exponent):
    s = 2.0**exponent
    assert lipschitz_sampled([[[s]], [[1 / s]]], norm).value == pytest.approx(1.0)
    assert lipschitz_sampled([[[s], [-s]], [[1.0, 1.0]]], norm).value == pytest.approx(s)
    result = lipschitz_sampled([[[s]], [[s]]], norm)
    exact = Fraction(s) ** 2
    assert Fraction(result.value) <= exact and math.isfinite(result.value)
    result = lipschitz_sampled([[[s], [1 / s]], [[1 / s, s]]], norm)
    assert result.value <= 2.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"norm": 3},
        {"outputs": 2},
        {"outputs": "margins"},
        {"region": 1.0},
        {"region": Ball([0.0, 0.0], 1.0, 2)},
        {"n_samples": 0},
        {"n_samples": 1.5},
        {"ascent_steps": -1},
        {"ascent_steps": True},
        {"seed": -1},
        {"device": "cuda"},
    ],
)
def test_bad_arguments(wrong):
    with pytest.raises(InputError):
        lipschitz_sampled([[[1.0]], [[1.0]]], **wrong)


def test_tampered_witness():
    net = deep(5, (2, 4, 2))
    witness = lipschitz_sampled(net).certificate
    J, pattern = exact_jacobian(net, witness.point, "all")
    proved = norm_below(J, 2.0, witness.direction)
    assert replace(witness, value=proved).verify(net)
    assert replace(witness, value=proved, pattern=pattern).verify(net)
    with pytest.raises(CertificateError, match="below"):
        replace(witness, value=math.nextafter(proved, math.inf)).verify(net)
    with pytest.raises(CertificateError, match="below"):
        replace(witness, direction=witness.direction[::-1].copy() * [1.0, -1.0]).verify(net)
    with pytest.raises(CertificateError, match="pattern"):
        replace(witness, pattern=((2, 2, 2, 2),)).verify(net)
    with pytest.raises(CertificateError, match="about the network"):
        witness.verify(deep(6, (2, 4, 2)))
    with pytest.raises(CertificateError, match="kink"):
        SmoothPoint((Fraction(0),), 2.0, "all", 0.5).verify([[[1.0]], [[1.0]]])
    with pytest.raises(CertificateError, match="inputs"):
        SmoothPoint((Fraction(0),), 2.0, "all", 0.5).verify([[[1.0, 1.0]]])


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"norm": 1.0}, "norm 1.0"),
        ({"norm": math.nan}, "norm nan"),
        ({"value": math.nan}, "value nan"),
        ({"value": math.inf}, "value inf"),
        ({"value": -1.0}, "value -1"),
        ({"outputs": 2}, "outputs"),
        ({"outputs": (1, 1)}, "outputs"),
        ({"outputs": "some"}, "outputs"),
        ({"direction": np.ones(3)}, "direction of shape"),
        ({"direction": np.array([1.0, math.nan])}, "not finite"),
        ({"direction": np.zeros(2)}, "below"),
        ({"region": Ball([0.0], 1.0, 2)}, "region"),
        ({"region": Ball([0.5, -0.5], 0.0, 2)}, "radius 0, on which"),
        ({"region": Ball([0.0, 0.0], 0.7, 2)}, "outside"),
        ({"region": Ball([0.0, 0.0], 0.4, "inf")}, "outside"),
        ({"subject": "0" * 16}, "about the network"),
    ],
)
def test_claims_that_make_no_sense_are_refused(change, word):
    net = deep(5, (2, 4, 2))
    corner = (Fraction(1, 2), Fraction(-1, 2))
    witness = SmoothPoint.proving(net, corner, 2.0, "all", math.inf, region=Ball([0.0, 0.0], 0.75, 2))
    assert witness.verify(net) and witness.rigor is Rigor.RIGOROUS and witness.value > 0.1
    assert replace(witness, region=Ball([0.0, 0.0], 0.5, "inf")).verify(net)  # on the border
    with pytest.raises(CertificateError, match=word):
        replace(witness, **change).verify(net)


# -- proofs ----------------------------------------------------------------------------------------------


@both_norms
@some
@given(seed=st.integers(0, 10**6), exponent=st.sampled_from([0, -60, 60]), data=st.data())
def test_floats_with_error_bounds_prove_less_than_rationals(norm, seed, exponent, data):
    """And nearly as much; where they prove nothing, the point is at or near a kink."""
    sizes = data.draw(st.sampled_from([(3, 2), (2, 5, 3), (3, 6, 6, 2)]))
    net = deep(seed, sizes)
    scaled = [np.ldexp(w, exponent) for w in net.chain.weights]
    net = Network.from_weights(scaled, list(net.chain.biases))
    rng = np.random.default_rng(seed)
    outputs = data.draw(st.sampled_from(["all", 0, (0, 1)]))
    point = tuple(Fraction(v) for v in rng.standard_normal(sizes[0]).tolist())
    v = rng.standard_normal(sizes[0])
    J, _ = exact_jacobian(net, point, outputs)
    exact = norm_below(J, norm, v)
    found = module._proved(net, point, norm, outputs, v)
    assert exact * (1 - 1e-11) <= found <= exact or (found == 0.0 and exponent == -60)
    square = Fraction(exact) ** 2
    if norm == 2:
        image = sum(sum(a * Fraction(x) for a, x in zip(row, v.tolist(), strict=True)) ** 2 for row in J)
        ratio = image / sum(Fraction(x) ** 2 for x in v.tolist())
        assert square <= ratio <= Fraction(math.nextafter(exact, math.inf)) ** 2
    else:
        assert square <= max(sum(map(abs, row)) for row in J) ** 2 <= Fraction(math.nextafter(exact, math.inf)) ** 2


@both_norms
def test_floats_prove_nothing_where_a_sign_may_be_wrong(norm):
    """The lattice again: a point whose sign rationals know and floats do not is proved by rationals alone."""
    nothing = proved = 0
    for seed in range(12):
        net = lattice_network(seed)
        for x in itertools.product((np.arange(-3, 4) * 0.1).tolist(), repeat=2):
            point = tuple(Fraction(v) for v in x)
            v = np.array([1.0, 0.5])
            try:
                exact = norm_below(exact_jacobian(net, point, "all")[0], norm, v)
            except CertificateError:
                assert module._proved(net, point, norm, "all", v) == 0.0  # a kink
                continue
            found = module._proved(net, point, norm, "all", v)
            assert found <= exact
            nothing += found == 0.0 < exact
            proved += found > 0.0
    assert nothing > 20 and proved > 100


def proved_and_true(net, x, norm, v, outputs="all"):
    point = tuple(Fraction(c) for c in x)
    exact = norm_below(exact_jacobian(net, point, outputs)[0], norm, np.array(v))
    return module._proved(net, point, norm, outputs, np.array(v)), exact


@both_norms
def test_every_error_of_a_jacobian_counts(norm):
    rng = np.random.default_rng(0)
    for _ in range(50):
        a = rng.standard_normal()
        # 0.1 a + 0.2 a − 0.3 a, as a product of layers, as a difference of rows, as an image of (1, 1, 1)
        product = Network.from_weights([[[a]] * 3, [[0.1, 0.2, -0.3]]], [[99.0] * 3, None])
        found, exact = proved_and_true(product, [0.5], norm, [1.0])
        assert found <= exact
        rows = Network.from_weights([[[rng.random()], [rng.random() * 2.0**-20]]])
        found, exact = proved_and_true(rows, [0.5], norm, [1.0], (0, 1))
        assert found <= exact and found == pytest.approx(exact, rel=1e-14)
        single = Network.from_weights([[[0.1 * a, 0.2 * a, -0.3 * a]]])
        found, exact = proved_and_true(single, [0.5] * 3, 2.0, [1.0, 1.0, 1.0])
        assert found <= exact


@both_norms
def test_errors_of_one_layer_reach_the_next_at_a_point(norm):
    """As above for samples: 10^8 (x − y) of about 10^-4, and a kink within its error."""
    rng = np.random.default_rng(1)
    for _ in range(20):
        a, x = 1e8 * (1 + rng.random()), 1 + rng.random()
        h = np.array([a, -a]) @ np.array([x, x - 1e-12])
        h = h if h > 0 else 1e-7
        net = Network.from_weights([[[a, -a]], [[1.0]], [[1.0]]], [None, [-h * (1 - 1e-9)], None])
        point = tuple(Fraction(c) for c in (x, x - 1e-12))
        assert module._proved(net, point, norm, "all", np.array([1.0, -1.0])) == 0.0


def test_error_bounds_of_points_are_rounded_up_themselves():
    """``(1 + 3 g) error`` in exact rationals, and what underflows in two products of n terms."""
    rng = np.random.default_rng(0)
    for n in (1, 3, 1000):
        g, error = gamma(n + 2), rng.random(20)
        found = jacobian._enlarged(error, g, n, np.array([4.0]), np.array([2.0]))
        for a, b in zip(error.tolist(), found.tolist(), strict=True):
            assert Fraction(b) >= Fraction(a) * (1 + 3 * Fraction(g))
        assert np.all(jacobian._enlarged(np.zeros(1), g, n, np.array([4.0]), np.array([2.0])) >= 2 * n * 2.0**-1020)


@both_norms
def test_rationals_decide_what_floats_cannot(norm, monkeypatch):
    net = deep(3, (3, 4, 2))
    witness = lipschitz_sampled(net, norm).certificate
    calls = []
    monkeypatch.setattr(module, "exact_jacobian", lambda *a: (calls.append(a), exact_jacobian(*a))[1])
    assert witness.verify(net) and not calls  # quick
    monkeypatch.setattr(module, "_proved", lambda *_: 0.0)
    assert witness.verify(net) and calls
    third = replace(witness, point=tuple(v + Fraction(1, 3 * 2**80) for v in witness.point))
    monkeypatch.undo()
    assert module._proved(net, third.point, norm, "all", third.direction) == 0.0  # no floats
    assert third.verify(net)


@both_norms
def test_flushed_arithmetic_proves_nothing_by_floats(norm, monkeypatch):
    def flushed():
        raise NumericalError("flushed")

    net = deep(3, (3, 4, 2))
    witness = lipschitz_sampled(net, norm).certificate
    monkeypatch.setattr(module, "check_arithmetic", flushed)
    assert module._proved(net, witness.point, norm, "all", witness.direction) == 0.0
    assert witness.verify(net)  # rationals need no floats


def test_folded_weights_are_numerical():
    net = Network((Normalise(np.array([0.3]), np.array([0.7])), *deep(2, (3, 4, 2)).layers))
    result = lipschitz_sampled(net)
    assert result.bound.rigor is Rigor.NUMERICAL and "folding" in result.bound.assumptions[0]
    assert result.certificate.verify(net)
    with pytest.raises(CertificateError, match="folding"):
        replace(result.certificate, numerical="", direction=np.ones(3)).verify(net)


def test_a_large_network_is_proved_quickly():
    net = deep(1, (100, 300, 10))
    witness = lipschitz_sampled(net, n_samples=5, ascent_steps=0).certificate
    assert witness.rigor is Rigor.RIGOROUS and witness.verify(net)
    # rationals are too slow for it: where floats prove nothing, the value stays numerical, and says so
    huge = Network.from_weights([np.ldexp(w, 450) for w in net.chain.weights])
    witness = lipschitz_sampled(huge, n_samples=5, ascent_steps=0).certificate
    assert witness.rigor is Rigor.NUMERICAL and "nothing" in witness.numerical and witness.value > 0


def test_where_f_is_constant_nothing_else_is_claimed():
    net = deep(5, (2, 4, 2))
    half = (Fraction(1, 2), Fraction(1, 2))
    assert not any(map(any, exact_jacobian(net, half, "all")[0]))
    for norm in (2.0, math.inf):
        witness = SmoothPoint.proving(net, half, norm, "all", 1.0)
        assert witness.value == 0.0 and not witness.numerical and witness.verify(net)


def test_a_value_of_0_is_always_proved():
    net = Network.from_weights([[[1.0]], [[0.0]]])
    witness = lipschitz_sampled(net).certificate
    assert witness.value == 0.0 and witness.rigor is Rigor.RIGOROUS and witness.verify(net)


# -- on disk ---------------------------------------------------------------------------------------------


@both_norms
@pytest.mark.parametrize("region", [None, Ball([0.5, 0.25], 2.0, 2)])
@pytest.mark.parametrize("outputs", [None, 1, (0, 1)])
def test_save_and_load(norm, region, outputs, tmp_path):
    net = deep(5, (2, 4, 2))
    result = lipschitz_sampled(net, norm, region=region, outputs=outputs)
    witness = result.certificate
    again = load_certificate(witness.save(tmp_path / "p"))
    assert again.verify(net) and replace(again.bound, method=result.bound.method) == result.bound
    for name in ("point", "norm", "outputs", "value", "pattern", "subject", "numerical"):
        assert getattr(again, name) == getattr(witness, name)


def test_exact_s_witness_can_be_saved(tmp_path):
    net = deep(5, (2, 4, 2))
    witness = lipschitz_exact(net).witness
    again = load_certificate(witness.save(tmp_path / "p"))
    assert again.pattern == witness.pattern != () and again.verify(net)


def test_every_altered_file_is_refused(tmp_path):
    net = deep(5, (2, 4, 2))
    witness = lipschitz_sampled(net, region=Ball([0.0, 0.0], 2.0, 2)).certificate
    tried = tamper.every_flip_refused(witness, net, tmp_path)
    assert tried.flips == 8 * tried.cuts > 4_000


def test_forged_files_are_refused(tmp_path):
    net = deep(5, (2, 4, 2))
    witness = lipschitz_sampled(net, region=Ball([0.0, 0.0], 2.0, 2)).certificate
    assert tamper.forged(witness, tmp_path).verify(net)

    def refusal(**changes):
        with pytest.raises(CertificateError) as caught:
            tamper.forged(witness, tmp_path, **changes).verify(net)
        return str(caught.value)

    fields = witness.stored().fields
    proved = norm_below(exact_jacobian(net, witness.point, "all")[0], 2.0, witness.direction)
    assert "below" in refusal(value=math.nextafter(proved, math.inf))
    assert "about the network" in refusal(subject="0" * 16)
    assert "no digest" in refusal(subject="")
    assert "outside" in refusal(arrays={"center": np.array([9.0, 9.0])})
    assert "region of another" in refusal(arrays={"center": np.zeros(3)})
    assert "outside" in refusal(region=[2.0, 1e-9])
    assert "radius" in refusal(region=[2.0, -1.0])
    assert "norm" in refusal(region=[1.0, 1.0])
    assert "region[1]' is missing" in refusal(region=[2.0])
    assert "unknown field 'region[2]'" in refusal(region=[2.0, 1.0, 0])
    assert "'region' is a float" in refusal(region=2.0)
    assert "unknown array 'center'" in refusal(region=None)
    assert "'center' is missing" in refusal(drop=("center",))
    assert "outputs" in refusal(outputs=7)
    assert "two integers" in refusal(outputs=[0])
    assert "two integers" in refusal(outputs=[True, 0])
    assert "lists of 0 and 1" in refusal(pattern=[[2]])
    assert "lists of 0 and 1" in refusal(pattern=[[True]])
    assert "lists of 0 and 1" in refusal(pattern=[1])
    assert "pattern at the point" in refusal(pattern=[[0, 0, 0, 0]])
    assert "not written as" in refusal(point=["0x2/0x4", fields["point"][1]])
    for bad in (1.5, "1/2", "0x1/0x0", "0x1", "-0x1/-0x2", "0X1/0X2", " 0x1/0x2"):
        assert "fractions" in refusal(point=[bad, fields["point"][1]])
    assert "1 numbers" in refusal(point=fields["point"][:1])
    assert "direction" in refusal(arrays={"direction": np.ones(3)})
    assert "unknown array 'z'" in refusal(arrays={"z": np.ones(3)})
    assert "unknown field 'z'" in refusal(z=1)
    for name in fields:
        assert f"{name!r} is missing" in refusal(drop=(name,))
    # without its vector it is a claim by SVD, which says so
    assert tamper.forged(witness, tmp_path, drop=("direction",)).rigor is Rigor.NUMERICAL


def test_a_point_for_any_network_is_not_saved(tmp_path):
    witness = SmoothPoint((Fraction(2),), math.inf, "all", 1.0)
    for save in (witness.stored, lambda: witness.save(tmp_path / "p")):
        with pytest.raises(CertificateError, match="without a network's digest"):
            save()
