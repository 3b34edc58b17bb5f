"""Sampled lower bounds: never above the constant, only smooth points, in the ball, the same for a seed."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from budget import network_settings
from hypothesis import given, settings
from hypothesis import strategies as st

from certbound.errors import CertificateError, InputError
from certbound.lipschitz import sampled as module
from certbound.lipschitz.sampled import SmoothPoint, exact_jacobian, lipschitz_sampled, norm_of_fractions, scaled_to
from certbound.network import Affine, Ball, Network, ReLU
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
    assert (result.bound.sense, result.bound.rigor) == (Sense.LOWER, Rigor.NUMERICAL)
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
    with pytest.raises(CertificateError, match="below"):
        replace(witness, value=witness.value * (1 + 1e-9)).verify(net)
    with pytest.raises(CertificateError, match="pattern"):
        replace(witness, pattern=((2, 2, 2, 2),)).verify(net)
    with pytest.raises(CertificateError, match="kink"):
        SmoothPoint((Fraction(0),), 2.0, "all", 0.5).verify([[[1.0]], [[1.0]]])
    with pytest.raises(CertificateError, match="inputs"):
        SmoothPoint((Fraction(0),), 2.0, "all", 0.5).verify([[[1.0, 1.0]]])
