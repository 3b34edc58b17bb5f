"""The attack pair proves its lower bound to whoever has the network, and nothing that was altered does."""

from __future__ import annotations

import dataclasses
import itertools
import math
import subprocess
import sys
import textwrap
from decimal import ROUND_CEILING, Decimal, Inexact, localcontext
from fractions import Fraction
from pathlib import Path

import flint
import numpy as np
import pytest
import tamper
import torch
from budget import network_settings
from digits import trained
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from certbound import losses
from certbound.attacks import gap as gap_module
from certbound.attacks.apgd import attack
from certbound.attacks.gap import margin_bounds, mean_gap_below
from certbound.attacks.pair import TOLERANCE, AttackPair, mean_gap
from certbound.bound import Certificate
from certbound.certificate import load_certificate
from certbound.errors import CertificateError, InputError, NumericalError
from certbound.network import Affine, Network, Normalise, ReLU, as_network
from certbound.rounding import gamma
from certbound.types import Rigor, Sense

NORMS = [2.0, math.inf]
IDENTITY = Network.from_weights([np.eye(2)])
BY_HAND = math.log(2) - math.log1p(math.exp(-0.5))


def hand(norm=math.inf, **more):
    """Margin 1/2 before and 0 after: log 2 − log(1 + e^−1/2) = 0.2190701963798…; the claim is 1e-14 below."""
    return AttackPair(**{
        "x": [[0.75, 0.25]], "x_adv": [[0.5, 0.5]], "y": [0], "delta": 0.25 if math.isinf(norm) else 0.3536,
        "norm": norm, "value": BY_HAND - 1e-14, "subject": IDENTITY.digest, **more,
    })


@pytest.mark.parametrize("norm", NORMS)
def test_a_pair_by_hand(norm):
    pair = hand(norm)
    assert pair.verify(IDENTITY) is True
    assert pair.verify([np.eye(2)])
    bound = pair.bound
    assert bound.value == pair.value
    assert bound.certificate is pair
    assert (bound.sense, bound.rigor, bound.assumptions) == (Sense.LOWER, Rigor.RIGOROUS, ())
    assert bound.claim.subject == IDENTITY.digest
    assert bound.claim.domain == losses.perturbation_domain(pair.x, pair.y, pair.delta, norm, (0.0, 1.0))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("method", ["apgd-ce", "worst"])
def test_the_report_of_an_attack_proves_its_bound(norm, method):
    model, x, y = trained()
    report = attack(model, x[1400:1430], y[1400:1430], delta=0.07, norm=norm, method=method, steps=20, device="cpu")
    pair: Certificate = report.certificate
    assert pair.verify(model)
    assert pair.verify(as_network(model))
    assert pair.value == pytest.approx(report.loss_gap.value, rel=1e-11)
    assert pair.value <= report.loss_gap.value
    assert pair.bound.rigor is Rigor.RIGOROUS and not pair.numerical
    assert pair.bound.claim == report.loss_gap.claim
    assert pair.method == method
    np.testing.assert_array_equal(pair.x_adv, report.x_adv)
    with pytest.raises(CertificateError, match="about the network"):
        pair.verify([np.zeros((10, 64))])


def test_images_normalisation_and_one_logit():
    rng = np.random.default_rng(0)
    net = Network(
        (Normalise(np.array([0.5, 0.2]), np.array([0.3, 0.2])), *Network.from_weights([rng.random((1, 8))]).layers),
        input_shape=(2, 2, 2),
    )
    report = attack(net, rng.random((4, 2, 2, 2)), [0, 1, 0, 1], delta=0.1, norm=2, steps=10, device="cpu")
    assert report.certificate.verify(net)
    assert report.certificate.x.shape == (4, 2, 2, 2)
    assert report.certificate.bound.claim == report.loss_gap.claim


def test_a_module_outside_the_ir_has_no_certificate():
    model = nn.Sequential(nn.Linear(2, 3), nn.ELU(), nn.Linear(3, 2))
    assert attack(model, [[0.5, 0.5]], [0], delta=0.1, norm=2, steps=3, device="cpu").certificate is None


def test_delta_zero():
    report = attack([np.eye(2)], [[0.6, 0.4]], [0], delta=0, norm=2, device="cpu")
    assert report.certificate.value == 0.0
    assert report.certificate.verify(IDENTITY)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"subject": "0" * 16}, "about the network"),
        ({"subject": ""}, "about the network"),
        ({"x_adv": [[0.4999, 0.5]]}, "outside the ball"),
        ({"x_adv": [[0.5, math.nextafter(0.5, 1)]]}, "outside the ball"),
        ({"delta": math.nextafter(0.25, 0)}, "outside the ball"),
        ({"delta": 0.0}, "outside the ball"),
        ({"norm": 2.0}, "outside the ball"),  # length 0.354
        ({"x": [[0.75, -0.01]], "delta": 1.0}, r"x has entries outside \[0, 1\]"),
        ({"x_adv": [[0.5, 1.01]], "delta": 1.0}, r"x_adv has entries outside \[0, 1\]"),
        ({"x_adv": [[0.5, -0.01]], "delta": 1.0}, r"x_adv has entries outside \[0, 1\]"),
        ({"x_adv": [[0.5, math.nan]]}, "NaN"),
        ({"x": [[0.75, math.nan]]}, "NaN"),
        ({"value": math.nan}, "value is nan"),
        ({"value": math.inf}, "value is inf"),
        ({"value": BY_HAND + 1e-14}, "is claimed"),
        ({"value": BY_HAND + 2 * TOLERANCE, "numerical": "a reason"}, "is claimed"),
        ({"x_adv": [[0.75, 0.25]]}, "is claimed"),
        ({"y": [1]}, "is claimed"),
        ({"y": [2]}, "labels from 2 to 2 for 2 classes"),
        ({"y": [-1]}, "labels"),
        ({"y": [0, 0]}, "shapes"),
        ({"y": []}, "shapes"),
        ({"x_adv": [[0.5, 0.5], [0.5, 0.5]]}, "shapes"),
        ({"x": [0.75], "x_adv": [0.5]}, "shapes"),
        ({"x": np.empty((0, 2)), "x_adv": np.empty((0, 2)), "y": []}, "shapes"),
        ({"x": [[0.75]], "x_adv": [[0.5]]}, "x"),
        ({"delta": math.nan}, "delta is nan"),
        ({"delta": math.inf}, "delta is inf"),
        ({"delta": -0.25}, "delta is -0.25"),
        ({"norm": 1.0}, "neither 2 nor inf"),
        ({"norm": math.nan}, "neither 2 nor inf"),
    ],
)
def test_what_was_altered_is_refused(change, word):
    with pytest.raises(CertificateError, match=word):
        dataclasses.replace(hand(), **change).verify(IDENTITY)


def test_less_is_proved_too():
    assert dataclasses.replace(hand(), value=0.1).verify(IDENTITY)
    for value in (math.nextafter(BY_HAND, 9), BY_HAND + TOLERANCE / 2):
        with pytest.raises(CertificateError, match="is claimed"):
            dataclasses.replace(hand(), value=value).verify(IDENTITY)
    worse = dataclasses.replace(hand(), x_adv=[[0.8, 0.25]], value=-1.0)
    assert worse.verify(IDENTITY)
    assert worse.bound.value == 0.0  # no perturbation is one too


def test_another_network_is_refused():
    with pytest.raises(CertificateError, match="about the network"):
        hand().verify([np.eye(2) * 2])
    with pytest.raises(CertificateError, match="about the network"):
        hand().verify([np.eye(3)])
    with pytest.raises(InputError):
        hand().verify("no network")


def test_outputs_that_overflow_are_refused():
    huge = Network.from_weights([np.eye(2) * 1e308, np.eye(2) * 1e308])
    with pytest.raises(CertificateError, match="finite"):
        dataclasses.replace(hand(), subject=huge.digest).verify(huge)


@pytest.mark.parametrize("norm", NORMS)
def test_the_ball_is_checked_in_exact_arithmetic(norm):
    # the distance is 1/2 + 2**-55: more than delta, and computed it is 1/2
    x, x_adv = [[3 * 2.0**-55, 0.9]], [[0.5 + 2.0**-53, 0.9]]
    assert x_adv[0][0] - x[0][0] == 0.5
    with pytest.raises(CertificateError, match="ball"):
        hand(norm, x=x, x_adv=x_adv, delta=0.5, value=-9.0).verify(IDENTITY)
    assert hand(norm, x=x, x_adv=x_adv, delta=math.nextafter(0.5, 1), value=-9.0).verify(IDENTITY)
    # here it is 1/2 - 2**-60
    assert hand(norm, x=[[2.0**-60, 0.9]], x_adv=[[0.5, 0.9]], delta=0.5, value=-9.0).verify(IDENTITY)


@pytest.mark.parametrize("norm", NORMS)
def test_random_points_about_the_border_of_the_ball(norm):
    rng, net = np.random.default_rng(1), Network.from_weights([np.ones((2, 40))])
    inside = 0
    for _ in range(300):
        x = rng.random((1, 40))
        x_adv = np.clip(x + rng.normal(size=(1, 40)) * 0.1, 0, 1)
        delta = float(np.linalg.norm((x_adv - x)[0], norm))
        a = [Fraction(v) - Fraction(u) for u, v in zip(x[0].tolist(), x_adv[0].tolist(), strict=True)]
        size = max(abs(v) for v in a) ** 2 if math.isinf(norm) else sum(v * v for v in a)
        for radius in (delta, math.nextafter(delta, 0), math.nextafter(delta, 1)):
            pair = AttackPair(x, x_adv, [0], radius, norm, -99.0, net.digest)
            allowed = size <= Fraction(radius) ** 2
            inside += allowed
            try:
                verdict = pair.verify(net)
            except CertificateError:
                verdict = False
            assert verdict == allowed
    assert 200 < inside < 700


def test_the_pair_owns_its_numbers():
    x, x_adv, y = np.array([[0.75, 0.25]]), np.array([[0.5, 0.5]]), np.array([0])
    pair = hand(x=x, x_adv=x_adv, y=y)
    x_adv[:] = 0.0
    y[:] = 1
    assert pair.verify(IDENTITY)
    with pytest.raises(ValueError, match="read-only"):
        pair.x_adv[0, 0] = 0.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        pair.value = 1.0


def test_verifying_needs_no_torch():
    script = """
        import sys
        sys.modules["torch"] = None
        import numpy as np
        from certbound.attacks.pair import AttackPair
        from certbound.network import Network
        net = Network.from_weights([np.eye(2)])
        assert AttackPair([[0.75, 0.25]], [[0.5, 0.5]], [0], 0.25, float("inf"), 0.21, net.digest).verify(net)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 0, done.stderr


def test_a_module_in_training_mode_is_verified_as_its_network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)).train()
    report = attack(model, [[0.5, 0.5]], [0], delta=0.1, norm=2, steps=5, device="cpu")
    assert report.certificate.verify(model)
    assert model.training


# -- the gap, every rounding enclosed --------------------------------------------------------------------


def true_gap(net, pair):
    """Enclosure of the mean loss gap in 300-bit interval arithmetic, from the network's own layers."""
    arb = flint.arb
    total = arb(0)
    for point, moved, label in zip(pair.x, pair.x_adv, pair.y, strict=True):
        values = []
        for x in (moved, point):
            h, shape = [arb(v) for v in x.reshape(-1).tolist()], x.shape
            for layer in net.layers:
                if isinstance(layer, Affine):
                    rows = layer.weight.tolist()
                    b = [0.0] * len(rows) if layer.bias is None else layer.bias.tolist()
                    dot = [sum((arb(w) * v for w, v in zip(row, h, strict=True)), arb(0)) for row in rows]
                    h = [v + arb(c) for v, c in zip(dot, b, strict=True)]
                    shape = (len(h),)
                elif isinstance(layer, Normalise):
                    mean, std = layer.per_input(shape if len(shape) > 1 else None, len(h))
                    h = [(v - arb(m)) / arb(s) for v, m, s in zip(h, mean.tolist(), std.tolist(), strict=True)]
                elif isinstance(layer, ReLU):
                    h = [v.max(arb(0)) for v in h]
            h = [arb(0), *h] if len(h) == 1 else h
            values.append(sum(((h[j] - h[label]).exp() for j in range(len(h)) if j != label), arb(1)).log())
        total += values[0] - values[1]
    return total / len(pair.y)


@pytest.fixture(autouse=True)
def precise():
    before, flint.ctx.prec = flint.ctx.prec, 300
    yield
    flint.ctx.prec = before


@network_settings
@given(seed=st.integers(0, 10**6), data=st.data())
def test_the_proved_gap_is_never_above_the_true_one(seed, data):
    rng = np.random.default_rng(seed)
    sizes = data.draw(st.sampled_from([(3, 2), (3, 1), (2, 5, 3), (4, 8, 8, 3), (3, 30, 1)]))
    scale = data.draw(st.sampled_from([0.01, 1.0, 30.0]))
    layers = []
    if data.draw(st.booleans()):
        layers.append(Normalise(rng.random(sizes[0]), rng.random(sizes[0]) + 0.1))
    for i, (a, b) in enumerate(itertools.pairwise(sizes)):
        layers += [ReLU()] * bool(i) + [Affine(scale * rng.standard_normal((b, a)), rng.standard_normal(b))]
        if data.draw(st.booleans()):  # two affine maps in a row: folded
            layers.append(Affine(rng.standard_normal((b, b))))
    if data.draw(st.booleans()):
        layers.append(ReLU())
    net = Network(tuple(layers))
    n = 5
    x, x_adv = rng.random((2, n, sizes[0]))
    y = rng.integers(0, max(2, sizes[-1]), n)
    pair = AttackPair.proving(net, x, x_adv, y, 1.0, math.inf, "", math.inf)
    gap = mean_gap_below(net, x, x_adv, y)
    true = true_gap(net, pair)
    assert flint.arb(gap) <= true
    magnitude = max(1.0, float(np.abs(margin_bounds(net, np.vstack([x, x_adv]), np.tile(y, 2))[0]).clip(max=1e9).max()))
    assert float((true - flint.arb(gap)).mid()) <= 1e-12 * magnitude * scale**2 * 10
    assert max(0.0, gap - 1e-10 * magnitude * scale**2) <= pair.value <= max(gap, 0.0)
    assert pair.verify(net) and pair.bound.rigor is Rigor.RIGOROUS
    low, high = margin_bounds(net, x, y)
    assert np.all(low <= high)


def test_the_proved_gap_is_close():
    model, x, y = trained()
    report = attack(model, x[:200], y[:200], delta=0.05, norm=math.inf, steps=5, device="cpu")
    pair = report.certificate
    gap = mean_gap_below(as_network(model), pair.x.reshape(200, -1), pair.x_adv.reshape(200, -1), pair.y)
    assert 0 <= report.loss_gap.value - pair.value < 1e-11
    assert abs(report.loss_gap.value - gap) < 1e-12
    assert pair.value <= gap


def test_samples_that_were_not_moved_count_in_the_mean():
    x, x_adv = np.array([[0.75, 0.25], [0.5, 0.25]]), np.array([[0.5, 0.5], [0.5, 0.25]])
    gap = mean_gap_below(IDENTITY, x, x_adv, np.array([0, 0]))
    assert gap == pytest.approx(BY_HAND / 2, rel=1e-12) and gap < BY_HAND / 2
    assert mean_gap_below(IDENTITY, x, x, np.array([0, 0])) == 0.0


def test_no_more_is_claimed_than_was_measured():
    x, x_adv, y = np.array([[0.75, 0.25]]), np.array([[0.5, 0.5]]), np.array([0])
    assert AttackPair.proving(IDENTITY, x, x_adv, y, 0.25, math.inf, "", 0.1).value == 0.1
    assert AttackPair.proving(IDENTITY, x, x_adv, y, 0.25, math.inf, "", -0.1).value == 0.0
    assert 0.1 < AttackPair.proving(IDENTITY, x, x_adv, y, 0.25, math.inf, "", 9.0).value < BY_HAND


def test_every_rounding_counts():
    """Sums that cancel: a forward pass without error bounds claims a gap that is not there."""
    rng = np.random.default_rng(3)
    wrong = 0
    for _ in range(200):
        w = rng.standard_normal(6) * 1e8
        net = Network.from_weights([np.vstack([w, w[::-1]]), [[1.0, -1.0], [0.0, 0.0]]])
        x, x_adv, y = rng.random((1, 6)), rng.random((1, 6)), np.array([0])
        x_adv[0, :3] = x[0, :3] = 0.5
        pair = AttackPair(x, x_adv, y, 1.0, math.inf, 0.0, net.digest)
        true = true_gap(net, pair)
        assert flint.arb(mean_gap_below(net, x, x_adv, y)) <= true
        wrong += bool(flint.arb(mean_gap(net, x, x_adv, y)) > true)
    assert wrong > 20  # the float value is above the truth about every second time


def test_the_error_bound_is_rounded_up_itself():
    """Its formula in exact rationals, entry by entry."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        n = int(rng.integers(1, 6))
        h, e, w = rng.standard_normal((1, n)), rng.random((1, n)), rng.standard_normal((3, n))
        b, w_error, b_error = rng.standard_normal(3), rng.random((3, n)), rng.random(3)
        error = gap_module._affine(h, e, w, b, w_error, b_error)[1][0]
        g = Fraction(gamma(n + 4))
        for row, own, c, off, found in zip(w, w_error, b, b_error, error, strict=True):
            terms = zip(*(map(Fraction, np.abs(v).tolist()) for v in (row, own, h[0], e[0])), strict=True)
            exact = sum((a * (y + g * x) + d * (x + y) for a, d, x, y in terms), g * Fraction(abs(c)) + Fraction(off))
            assert Fraction(found) >= exact


def test_products_that_underflow_count():
    """1,000 products of 0.9 · 2^-1076, each 0 in floats; together 225 of the smallest floats."""
    net = Network.from_weights([[[0.9 * 2.0**-576] * 1000, [0.0] * 1000]])
    low, high = margin_bounds(net, np.full((1, 1000), 2.0**-500), np.array([0]))
    true = 1000 * Fraction(0.9) / 2**1076
    assert Fraction(low[0, 1]) <= true <= Fraction(high[0, 1])


@pytest.mark.parametrize("where", ["errors", "bias_errors"])
def test_what_folding_rounded_counts(where):
    """Entrywise errors of the folded weights, made large enough to see."""
    net = Network((Affine([[1.0, 0.0], [0.0, 1.0]], [0.0, 0.0]), ReLU(), Affine(np.eye(2), [0.0, 0.0])))
    x, y = np.array([[0.75, 0.25]]), np.array([0])
    exact = margin_bounds(net, x, y)
    assert exact[1][0, 1] - exact[0][0, 1] < 1e-14
    for layer in range(2):
        error = np.full((2, 2), 1e-3) if where == "errors" else np.full(2, 1e-3)
        given = tuple(error if i == layer else None for i in range(2))
        other = Network(net.layers)
        other.__dict__["chain"] = dataclasses.replace(net.chain, **{where: given})
        low, high = margin_bounds(other, x, y)
        assert 0.5 + 0.99 * 2e-3 <= high[0, 1] and low[0, 1] <= 0.5 - 0.99 * 2e-3


@pytest.mark.parametrize(
    "margins",
    [[0.0], [700.0, -700.0], [5e-324], [-1e-300, 3.0], [90.0, -90.0, 10.0], [79.0, 81.0], [math.inf], [1.0] * 50],
)
def test_losses_in_decimals(margins):
    flint.ctx.prec = 4000
    true = sum(((-flint.arb(v)).exp() for v in margins if v != math.inf), flint.arb(1)).log()
    low, high = (gap_module._loss(margins, c) for c in (gap_module._DOWN, gap_module._UP))
    for bound, side in ((low, 1), (high, -1)):
        numerator, denominator = bound.as_integer_ratio()
        assert bool(side * (true - flint.arb(numerator) / denominator) >= 0)
    assert 0 <= high - low <= Decimal(10) ** -28 * max(1, high)


def test_losses_of_enormous_margins():
    low, high = (gap_module._loss([1e308, -1e308, math.inf], c) for c in (gap_module._DOWN, gap_module._UP))
    assert low <= Decimal.from_float(1e308) <= high and high - low < Decimal(10) ** 280


def test_a_foreign_decimal_context_changes_nothing():
    x, x_adv, y = np.array([[0.75, 0.25]]), np.array([[0.5, 0.5]]), np.array([0])
    pair = AttackPair.proving(IDENTITY, x, x_adv, y, 0.25, math.inf, "", 9.0)
    with localcontext() as context:
        context.prec, context.rounding = 3, ROUND_CEILING
        context.traps[Inexact] = True
        assert pair.verify(IDENTITY)
        assert mean_gap_below(IDENTITY, pair.x, pair.x_adv, pair.y) < BY_HAND


def test_a_mean_is_rounded_down():
    for parts in ([Decimal(1)] * 3 + [Decimal(0)] * 7, [Decimal("0.1")], [Decimal(-1), Decimal(0), Decimal(0)]):
        value = gap_module._mean_below(parts, len(parts))
        exact = sum(map(Fraction, parts), Fraction(0)) / len(parts)
        assert Fraction(value) <= exact < Fraction(math.nextafter(value, math.inf))
    assert gap_module._float_below(Decimal("1e400")) == sys.float_info.max
    assert gap_module._float_below(Decimal("-1e400")) == -math.inf


def test_another_machine_s_sums_verify_too(monkeypatch):
    """A new pair keeps room: products summed in another order, by another BLAS, still prove its value."""
    rng = np.random.default_rng(0)
    affine = gap_module._affine

    def backwards(h, e, w, b, w_error, b_error):
        z, error = affine(h, e, w, b, w_error, b_error)
        other = np.zeros_like(z) + b
        for k in reversed(range(w.shape[1])):
            other = other + h[:, [k]] * w[:, k]
        return other, error

    moved = 0
    for _ in range(30):
        net = Network.from_weights([rng.standard_normal((20, 9)), rng.standard_normal((3, 20))])
        x, x_adv = rng.random((2, 8, 9))
        y = rng.integers(0, 3, 8)
        pair = AttackPair.proving(net, x, x_adv, y, 1.0, math.inf, "", math.inf)
        here = mean_gap_below(net, x, x_adv, y)
        with monkeypatch.context() as patch:
            patch.setattr(gap_module, "_affine", backwards)
            moved += mean_gap_below(net, x, x_adv, y) != here
            assert pair.verify(net)
    assert moved > 10


def test_where_nothing_can_be_proved_it_is_said():
    """2^1020 x − 2^1020 x is 0 also in floats, but its error bound, times 2^80, is infinite."""
    first, second = [[2.0**1000], [2.0**1000], [1.0]], [[2.0**20, -(2.0**20), 0.0], [0.0, 0.0, 1.0]]
    net = Network.from_weights([first, second, [[2.0**80, 0.0], [0.0, 1.0]]])
    x, x_adv, y = np.array([[0.5]]), np.array([[0.75]]), np.array([0])
    with pytest.raises(NumericalError, match="range"):
        mean_gap_below(net, x, x_adv, y)
    pair = AttackPair.proving(net, x, x_adv, y, 0.25, 2.0, "m", 9.0)
    assert "rounding is not enclosed" in pair.numerical and pair.bound.rigor is Rigor.NUMERICAL
    assert pair.value == pytest.approx(math.log1p(math.exp(0.75)) - math.log1p(math.exp(0.5)))
    assert pair.verify(net)
    with pytest.raises(CertificateError, match="range"):
        dataclasses.replace(pair, numerical="").verify(net)


def test_flushed_arithmetic_is_no_proof(monkeypatch):
    def flushed():
        raise NumericalError("this thread flushes subnormal numbers to zero")

    monkeypatch.setattr(gap_module, "check_arithmetic", flushed)
    x, x_adv, y = np.array([[0.75, 0.25]]), np.array([[0.5, 0.5]]), np.array([0])
    pair = AttackPair.proving(IDENTITY, x, x_adv, y, 0.25, math.inf, "m", BY_HAND)
    assert "flushes" in pair.numerical and pair.value == pytest.approx(BY_HAND)
    assert pair.verify(IDENTITY)
    bound = pair.bound
    assert bound.rigor is Rigor.NUMERICAL and bound.value == pair.value - TOLERANCE
    assert bound.assumptions == (pair.numerical,)
    with pytest.raises(CertificateError, match="flushes"):
        dataclasses.replace(pair, numerical="").verify(IDENTITY)


# -- on disk ---------------------------------------------------------------------------------------------


def small():
    rng = np.random.default_rng(5)
    net = Network.from_weights([rng.standard_normal((4, 3)), rng.standard_normal((3, 4))])
    x = rng.random((3, 3))
    labels = net.forward(x).argmax(axis=1)
    near = np.clip(x + 0.1 * np.array(list(itertools.product([-1, 1], repeat=3)))[:, None], 0, 1)
    loss = np.array([losses.cross_entropy(net.forward(points), labels) for points in near])
    worst = near[loss.argmax(axis=0), np.arange(3)]
    return net, AttackPair.proving(net, x, worst, labels, 0.2, math.inf, "by hand", math.inf)


def test_every_altered_file_is_refused(tmp_path):
    net, pair = small()
    tried = tamper.every_flip_refused(pair, net, tmp_path)
    assert tried.flips == 8 * tried.cuts > 5_000


def test_an_attack_s_file_and_images(tmp_path):
    net = Network(
        (Normalise(np.array([0.5, 0.2]), np.array([0.3, 0.2])), *Network.from_weights([np.eye(8)[:3]]).layers),
        input_shape=(2, 2, 2),
    )
    x = np.random.default_rng(0).random((4, 2, 2, 2))
    pair = attack(net, x, [0, 1, 2, 1], delta=0.1, norm=2, steps=5, device="cpu").certificate
    again = load_certificate(pair.save(tmp_path / "p"))
    for name in (f.name for f in dataclasses.fields(pair)):
        np.testing.assert_array_equal(getattr(again, name), getattr(pair, name))
    assert again.verify(net) and again.bound == pair.bound


def test_forged_files_are_refused(tmp_path):
    net, pair = small()
    assert tamper.forged(pair, tmp_path).verify(net)
    assert tamper.forged(pair, tmp_path, value=0.0).verify(net)

    def refusal(**changes):
        with pytest.raises(CertificateError) as caught:
            tamper.forged(pair, tmp_path, **changes).verify(net)
        return str(caught.value)

    proved = mean_gap_below(net, pair.x, pair.x_adv, pair.y)
    assert tamper.forged(pair, tmp_path, value=proved).verify(net)
    assert "is claimed" in refusal(value=math.nextafter(proved, math.inf))
    assert "is claimed" in refusal(value=2 * pair.value)
    assert "value is inf" in refusal(value=math.inf)
    assert "is claimed" in refusal(arrays={"y": (pair.y + 1) % 3})
    assert "is claimed" in refusal(arrays={"x_adv": pair.x})
    assert "outside the ball" in refusal(arrays={"x_adv": np.ones_like(pair.x)})
    assert "outside the ball" in refusal(delta=0.05)
    assert "delta is inf" in refusal(delta=math.inf)
    assert "neither 2 nor inf" in refusal(norm=1.0)
    assert "about the network" in refusal(subject="0" * 16)
    assert "shapes" in refusal(arrays={"x": pair.x[:2]})
    assert "shapes" in refusal(arrays={"y": pair.y[:, None]})
    assert "labels" in refusal(arrays={"y": pair.y + 3})
    assert "NaN" in refusal(arrays={"x": np.full_like(pair.x, math.nan)})
    assert "'x' is of int64" in refusal(arrays={"x": np.ones_like(pair.x, dtype=np.int64)})
    assert "'y' is of float64" in refusal(arrays={"y": pair.y.astype(float)})
    assert "'value' is a int" in refusal(value=0)
    assert "'method' is a int" in refusal(method=0)
    assert "'delta' is missing" in refusal(drop=("delta",))
    assert "'y' is missing" in refusal(drop=("y",))
    assert "unknown field 'more'" in refusal(more=1)
    assert "unknown array 'z'" in refusal(arrays={"z": np.ones(1)})
    other = Network.from_weights([2.0 * w for w in net.chain.weights])
    with pytest.raises(CertificateError, match="about the network"):
        pair.verify(other)
    # called numerical, a value may be off by the tolerance, and the bound is lower by it
    numerical = tamper.forged(pair, tmp_path, numerical="because", value=proved + TOLERANCE / 2)
    assert numerical.verify(net) and numerical.bound.value < proved
    assert "is claimed" in refusal(numerical="because", value=proved + 2 * TOLERANCE)
