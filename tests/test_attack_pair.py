"""The attack pair proves its lower bound to whoever has the network, and nothing that was altered does."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
import textwrap
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from digits import trained
from torch import nn

from certbound import losses
from certbound.attacks.apgd import attack
from certbound.attacks.pair import TOLERANCE, AttackPair
from certbound.bound import Certificate
from certbound.errors import CertificateError, InputError
from certbound.network import Network, Normalise, as_network
from certbound.types import Rigor, Sense

NORMS = [2.0, math.inf]
IDENTITY = Network.from_weights([np.eye(2)])


def hand(norm=math.inf, **more):
    """Margin 0.6 before and −0.2 after: loss log(1 + e^0.2) − log(1 + e^−0.6)."""
    return AttackPair(**{
        "x": [[0.75, 0.25]], "x_adv": [[0.5, 0.5]], "y": [0], "delta": 0.25 if math.isinf(norm) else 0.3536,
        "norm": norm, "value": math.log(2) - math.log1p(math.exp(-0.5)), "subject": IDENTITY.digest, **more,
    })


@pytest.mark.parametrize("norm", NORMS)
def test_a_pair_by_hand(norm):
    pair = hand(norm)
    assert pair.verify(IDENTITY) is True
    assert pair.verify([np.eye(2)])
    bound = pair.bound
    assert bound.value == pair.value - TOLERANCE
    assert (bound.sense, bound.rigor) == (Sense.LOWER, Rigor.NUMERICAL)
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
    assert pair.value == pytest.approx(report.loss_gap.value, rel=1e-12)
    assert pair.value <= report.loss_gap.value
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
    model = nn.Sequential(nn.Linear(2, 3), nn.SiLU(), nn.Linear(3, 2))
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
        ({"value": math.log(2) - math.log1p(math.exp(-0.5)) + 2 * TOLERANCE}, "is claimed"),
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
    assert dataclasses.replace(hand(), value=hand().value + TOLERANCE / 2).verify(IDENTITY)
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
