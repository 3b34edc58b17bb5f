"""Certificates of residual, smooth and local LipSDP bounds: saved, loaded, verified, and refused when altered."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from tamper import every_flip_refused, forged

from certbound import Affine, CertificateError, Network, Normalise, ReLU, lipschitz_sdp
from certbound.activations import Activation
from certbound.certificate import Stored, load_certificate, to_bytes
from certbound.errors import InputError
from certbound.lipschitz import system_certificate
from certbound.lipschitz.region_slopes import slopes_on
from certbound.lipschitz.sdp_system import SystemRequest, system_bound
from certbound.lipschitz.system import Map, System
from certbound.lipschitz.system_certificate import SystemCertificate, SystemProof, linear
from certbound.network import Ball, Residual
from certbound.types import GLOBAL, Rigor

both_norms = pytest.mark.parametrize("norm", [2.0, math.inf], ids=["2", "inf"])
CENTER = np.array([0.3, -0.2, 0.5])


def he(rng, m, n):
    return Affine(rng.standard_normal((m, n)) * math.sqrt(2 / n), 0.3 * rng.standard_normal(m))


def chain(phi, seed=0, sizes=(3, 4, 3)):
    rng = np.random.default_rng(seed)
    return Network(tuple([x for a, b in pairwise(sizes) for x in (he(rng, b, a), phi)][:-1]))


def residual(seed=0):
    rng = np.random.default_rng(seed)
    return Network((he(rng, 4, 3), Residual((Activation("silu"), he(rng, 4, 4)), ()), ReLU(), he(rng, 3, 4)))


def certificate_of(net, norm, outputs="all", ball=None, solver="closed-form"):
    certificate, _, _ = system_bound(net, norm, outputs, ball, SystemRequest(solver))
    assert certificate is not None
    return certificate


def certificates(norm):
    """Everywhere and on balls; of one output, a margin, all; linear on the ball."""
    tanh, net = chain(Activation("tanh")), residual()
    yield net, certificate_of(net, norm)
    yield net, certificate_of(net, norm, 1)
    yield net, certificate_of(net, norm, (0, 2), Ball(CENTER, 0.2, "inf"))
    yield tanh, certificate_of(tanh, norm, "all", Ball(CENTER, 0.5, 2))
    relu = chain(ReLU(), 2)
    yield relu, certificate_of(relu, norm, "all", Ball(CENTER, 1e-6, 2))


def accepts(certificate, net):
    try:
        return certificate.verify(net)
    except CertificateError as error:
        assert str(error).startswith(certificate.kind)
        return False


@both_norms
def test_saved_loaded_and_every_byte_counts(norm, tmp_path):
    for net, certificate in certificates(norm):
        loaded = load_certificate(certificate.save(tmp_path / "c"))
        assert isinstance(loaded, SystemCertificate)
        assert loaded.bound == certificate.bound and loaded.verify(net)
        assert loaded.bound.rigor is Rigor.RIGOROUS
        assert loaded.bound.claim.domain == (GLOBAL if certificate.ball is None else str(certificate.ball))
        assert every_flip_refused(certificate, net, tmp_path).flips > 500


@both_norms
def test_results_carry_them(norm):
    for net, outputs, ball in ((residual(), None, None), (residual(), (0, 1), Ball(CENTER, 0.1, 2))):
        result = lipschitz_sdp(net, norm, outputs=outputs, region=ball, method="barrier")
        assert isinstance(result.certificate, SystemCertificate) and result.certificate.verify(net)
        assert result.certificate.bound.claim == result.bound.claim and result.certificate.value == result.value


@both_norms
def test_values_below_what_is_proved_are_refused(norm):
    """The mathematics refuses them: no digest is involved here."""
    for net, certificate in certificates(norm):
        assert replace(certificate, value=certificate.value * 2).verify(net)
        worst = max(certificate.proofs, key=lambda p: p.value)
        for value in (worst.value * (1 - 1e-6), 0.0, -1.0, math.nan):
            assert not accepts(replace(certificate, value=value), net)
            lowered = tuple(replace(p, value=value) if p is worst else p for p in certificate.proofs)
            assert not accepts(replace(certificate, proofs=lowered), net)
            assert not accepts(replace(certificate, proofs=lowered, value=value), net)


@both_norms
@pytest.mark.parametrize("where", ["everywhere", "ball"])
def test_multipliers_that_prove_less_are_refused(norm, where):
    net = residual(1)
    ball = None if where == "everywhere" else Ball(CENTER, 0.5, 2)
    certificate = certificate_of(net, norm, 0, ball)
    (p,) = certificate.proofs
    assert len(p.t) == 2 and certificate.verify(net)
    small = 1 - 1e-6
    changed = {
        "s": replace(p, s=p.s * small, value=p.value * math.sqrt(small)),
        "s and a value that is kept": replace(p, s=p.s * small),
        "s above what the value holds": replace(p, s=p.s * (1 + 1e-6)),
        "d": replace(p, d=p.d * small),
        "d = 0": replace(p, d=np.where(np.arange(3) == 0, 0.0, p.d)),
        "d < 0": replace(p, d=-p.d),
        "d and s < 0": replace(p, d=-p.d * np.array([1.0, 2.0, 4.0]), s=-p.s),
        "one d < 0": replace(p, d=np.where(np.arange(3) == 0, -p.d, p.d)),
        "no d": replace(p, d=None),
        "d of another size": replace(p, d=np.ones(2)),
        "d of two axes": replace(p, d=p.d[None]),
        "s NaN": replace(p, s=math.nan),
        "s inf": replace(p, s=math.inf),
        "s < 0": replace(p, s=-p.s),
        "d inf": replace(p, d=p.d * math.inf),
        "d huge, s tiny": replace(p, d=p.d * 1e308, s=p.s * 1e-308),
        "T times 1.5": replace(p, t=tuple(1.5 * x for x in p.t)),
        "one multiplier": replace(p, t=(np.where(np.arange(4) == 1, 3 * p.t[0], p.t[0]), p.t[1])),
        "T = 0": replace(p, t=tuple(0 * x for x in p.t)),
        "T < 0": replace(p, t=tuple(-x for x in p.t)),
        "T NaN": replace(p, t=tuple(x * math.nan for x in p.t)),
        "T inf": replace(p, t=tuple(x * math.inf for x in p.t)),
        "T of another size": replace(p, t=tuple(x[:-1] for x in p.t)),
        "a layer less": replace(p, t=p.t[:-1]),
        "a layer more": replace(p, t=(*p.t, p.t[-1])),
        "layers swapped": replace(p, t=p.t[::-1]),
        "no multipliers": replace(p, t=(), d=None),
        "slack NaN": replace(p, slack=math.nan),
        "slack < 0": replace(p, slack=-p.slack),
        "slack 1": replace(p, slack=1.0),
        "more slack": replace(p, slack=1e-3),
        "no slack": replace(p, slack=0.0),
        "another output": replace(p, outputs=1),
        "all outputs": replace(p, outputs="all"),
    }
    for name, proof in changed.items():
        assert not accepts(replace(certificate, proofs=(proof,)), net), name
        lower = min(proof.value, certificate.value)
        assert not accepts(replace(certificate, proofs=(proof,), value=lower), net), name
    assert not accepts(replace(certificate, proofs=()), net)
    assert not accepts(replace(certificate, proofs=(p, p)), net)
    for field, value in (("norm", 1.0), ("norm", math.nan), ("outputs", 7), ("outputs", (0, 1)), ("outputs", "all"),
                         ("outputs", 1)):  # fmt: skip
        assert not accepts(replace(certificate, **{field: value}), net), field
    if norm == 2.0:  # the other way round it is true: √(s max d) <= √(s Σd)
        assert not accepts(replace(certificate, norm=math.inf), net)


@both_norms
def test_the_ball_is_part_of_the_claim(norm):
    """A ball that reaches further, or elsewhere, needs other slopes; one inside does not."""
    net = residual(1)
    certificate = certificate_of(net, norm, 0, Ball(CENTER, 0.5, 2))
    for ball in (Ball(CENTER + np.array([1.0, 0.0, 0.0]), 0.5, 2), Ball(CENTER, 0.6, 2), Ball(CENTER, 0.5, "inf"),
                 Ball(-CENTER, 0.5, 2), Ball(np.zeros(3), 5.0, 2), Ball(CENTER[:2], 0.5, 2), Ball(np.ones(4), 0.5, 2),
                 None):  # fmt: skip
        assert not accepts(replace(certificate, ball=ball), net), ball
    assert replace(certificate, ball=Ball(CENTER, 0.4, 2)).verify(net)
    assert replace(certificate, ball=Ball(CENTER.reshape(3, 1), 0.5, 2)).verify(net)
    everywhere = certificate_of(net, norm, 0)
    assert not accepts(replace(everywhere, ball=Ball(CENTER, 0.5, 2)), net)  # it has no slopes
    assert not accepts(replace(everywhere, slopes=certificate.slopes), net)


@both_norms
def test_narrowed_slopes_are_refused(norm):
    """Each end of each neuron's slopes; wider ones are true, and prove less."""
    net = residual(1)
    ball = Ball(CENTER, 0.5, 2)
    certificate = certificate_of(net, norm, 0, ball)
    needed = slopes_on(net, ball)
    for layer, ((low, high), (least, most)) in enumerate(zip(certificate.slopes, needed, strict=True)):
        assert np.all(low <= least) and np.all(high >= most)

        def with_layer(own, layer=layer):
            slopes = list(certificate.slopes)
            slopes[layer] = own
            return replace(certificate, slopes=tuple(slopes))

        for j in range(len(low)):
            one = np.arange(len(low)) == j
            moved = {"narrower below": (np.where(one, least + 1e-9, low), high),
                     "narrower above": (low, np.where(one, most - 1e-9, high)),
                     "NaN below": (np.where(one, math.nan, low), high),
                     "NaN above": (low, np.where(one, math.nan, high)),
                     "-inf": (np.where(one, -math.inf, low), high), "inf": (low, np.where(one, math.inf, high)),
                     "swapped": (np.where(one, high + 1.0, low), np.where(one, low - 1.0, high))}  # fmt: skip
            for name, own in moved.items():
                with np.errstate(invalid="ignore"):
                    assert not accepts(with_layer(own), net), (layer, j, name)
        assert not accepts(with_layer((low[:-1], high[:-1])), net)
        assert not accepts(with_layer((low[:1], high[:1])), net)
        assert not accepts(with_layer((low - 3.0, high + 3.0)), net)  # true, but T no longer proves s
    assert not accepts(replace(certificate, slopes=certificate.slopes[:-1]), net)
    assert not accepts(replace(certificate, slopes=(*certificate.slopes, certificate.slopes[0])), net)
    assert not accepts(replace(certificate, slopes=()), net)
    assert not accepts(replace(certificate, slopes=certificate.slopes[::-1]), net)


def test_all_outputs_in_inf_need_all_proofs():
    for net, ball in ((residual(), None), (residual(), Ball(CENTER, 0.3, 2))):
        certificate = certificate_of(net, math.inf, "all", ball)
        assert [p.outputs for p in certificate.proofs] == [0, 1, 2]
        smallest = min(certificate.proofs, key=lambda p: p.value)
        for proofs in (certificate.proofs[:-1], (smallest,), (smallest,) * 3, certificate.proofs[::-1],
                       (*certificate.proofs, smallest)):  # fmt: skip
            assert not accepts(replace(certificate, proofs=proofs, value=max(p.value for p in proofs)), net)


def test_one_proof_of_several_outputs_says_nothing_against_inf():
    """√(s Σd) bounds the ℓ2 length of the outputs against ‖x‖_∞: not what ∞ → ∞ asks for, and refused as such."""
    net = residual()
    euclid = certificate_of(net, 2.0, "all")
    (p,) = euclid.proofs
    wide = replace(p, value=p.value * 10.0)
    assert not accepts(replace(euclid, norm=math.inf, proofs=(wide,), value=wide.value), net)
    single = chain(Activation("tanh"), 1, (3, 4, 1))
    certificate = certificate_of(single, math.inf, "all")
    assert [q.outputs for q in certificate.proofs] == ["all"] and certificate.verify(single)


def test_another_network_is_refused():
    net = residual()
    for ball in (None, Ball(CENTER, 0.5, 2)):
        certificate = certificate_of(net, 2.0, "all", ball)
        with pytest.raises(CertificateError, match="about the network"):
            certificate.verify(residual(5))
        with pytest.raises(CertificateError, match="about the network"):
            certificate.verify(Network((*net.layers, ReLU())))
        # and the mathematics refuses where only the digest is changed
        other = Network((*net.layers[:-1], Affine(2.0 * net.layers[-1].weight, net.layers[-1].bias)))
        assert not accepts(replace(certificate, subject=other.digest), other)
        assert accepts(certificate, net)
    moved = Network((Affine(net.layers[0].weight, net.layers[0].bias + 3.0), *net.layers[1:]))
    local = certificate_of(net, 2.0, "all", Ball(CENTER, 0.1, 2))
    assert not accepts(replace(local, subject=moved.digest), moved)  # other biases, other slopes


@both_norms
def test_linear_on_the_ball(norm):
    net = chain(ReLU(), 2)
    certificate = certificate_of(net, norm, "all", Ball(CENTER, 1e-6, 2))
    assert len(certificate.proofs) == (1 if norm == 2.0 else 3) and certificate.verify(net)
    p = max(certificate.proofs, key=lambda p: p.value)
    assert p.t == () and p.d is None

    def with_proof(own, **fields):
        return replace(certificate, proofs=tuple(own if q is p else q for q in certificate.proofs), **fields)

    less = p.value * (1 - 1e-9)
    assert not accepts(with_proof(replace(p, value=less), value=less), net)
    # a ball on which it is not linear
    bent = tuple(slopes_on(net, Ball(CENTER, 50.0, 2)))
    assert not accepts(replace(certificate, ball=Ball(CENTER, 50.0, 2), slopes=bent), net)
    assert not accepts(with_proof(replace(p, t=(np.ones(4),), d=np.ones(3), s=1e-9)), net)


@both_norms
def test_the_norm_of_the_last_map_alone_proves_nothing(norm):
    """Where there are activations, a proof without multipliers is none, however small the last layer."""
    net = Network((Affine([[100.0]]), Activation("tanh"), Affine([[0.5]])))
    proof = SystemProof("all", 0.6)
    assert not accepts(SystemCertificate(net.digest, norm, "all", 0.6, (proof,)), net)


@both_norms
def test_errors_of_the_head_enter_the_linear_proof(norm):
    system = System(2, (), Map(np.array([[1.0, 2.0]]), np.full((1, 2), 0.25)))
    proof = linear(system, "all", norm)
    truth = math.hypot(1.25, 2.25) if norm == 2.0 else 3.5
    assert proof is not None and truth <= proof.value <= truth * 1.2
    exact = linear(System(2, (), Map(np.array([[1.0, 2.0]]))), "all", norm)
    assert exact is not None and exact.value == pytest.approx(math.sqrt(5.0) if norm == 2.0 else 3.0, rel=1e-9)


def test_errors_of_the_network_enter_the_verification():
    """A sum that cancels: what the floats forget is larger than the whole."""
    rng = np.random.default_rng(0)
    a, b = rng.uniform(1e8, 2e8, 2)
    net = Network((Affine([[1.0]]), Residual((Affine([[a]]), Affine([[b]])), (Affine([[-a * b]]),)),
                   Activation("leaky_relu", 0.5), Affine([[1.0]])))  # fmt: skip
    result = lipschitz_sdp(net, 2, method="barrier")
    from fractions import Fraction

    assert Fraction(result.value) >= abs(Fraction(a) * Fraction(b) - Fraction(a * b))
    assert result.certificate.verify(net)


def test_numbers_out_of_range_are_a_refusal():
    net = Network((Affine([[2.0**300]]), Affine([[2.0**300]]), Activation("tanh"), Affine([[1.0]])))
    proof = SystemProof("all", 1.0, (np.ones(1),), np.ones(1), 1.0, 1e-12)
    certificate = SystemCertificate(net.digest, 2.0, "all", 1.0, (proof,))
    with pytest.raises(CertificateError, match="range of float64"):
        certificate.verify(net)


def test_slopes_are_found_with_a_little_air():
    """The stored slopes come from wider bounds, so that another machine's bounds still fit."""
    net, ball = residual(1), Ball(CENTER, 0.5, 2)
    for (low, high), (least, most) in zip(slopes_on(net, ball, air=2.0**-30), slopes_on(net, ball), strict=True):
        assert np.all(low <= least) and np.all(high >= most)
        assert np.any(low < least) or np.any(high > most) or np.all(least == low)
        np.testing.assert_allclose(low, least, atol=1e-7)
        np.testing.assert_allclose(high, most, atol=1e-7)
    # neurons without a finite bound are no obstacle to the others
    phi = Activation("leaky_relu", 0.5)
    far = Network((Affine([[1e160], [1.0]]), Affine([[1e160, 0.0], [0.0, 1.0]]), phi, Affine([[1.0, 1.0]])))
    for air in (0.0, 2.0**-30):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            (found,) = slopes_on(far, Ball([5.0], 0.1, 2), air=air)
        assert found[0].tolist() in ([0.5, 1.0], [1.0, 1.0]) and found[1].tolist() == [1.0, 1.0]


# -- files ---------------------------------------------------------------------------------------------


def test_fields_that_make_no_sense_are_refused_on_loading(tmp_path):
    net = residual()
    certificate = certificate_of(net, math.inf, "all", Ball(CENTER, 0.3, 2))
    stored = certificate.stored()
    assert forged(certificate, tmp_path).verify(net)
    n = len(stored.fields["proofs"])
    assert n == 3 and stored.fields["slopes"] == 2
    first = dict(stored.fields["proofs"][0])

    def proofs(**changed):
        return [{**first, **changed}, *stored.fields["proofs"][1:]]

    wrong = [
        {"method": "magic"}, {"method": ""}, {"slopes": -1}, {"slopes": 10**9}, {"slopes": 1.0}, {"slopes": True},
        {"slopes": 1}, {"slopes": 3}, {"radius": -1.0}, {"radius": "nan"}, {"radius": None}, {"ball norm": None},
        {"ball norm": 1.0}, {"ball norm": 3.0}, {"proofs": 1}, {"proofs": [1]}, {"proofs": [{}]}, {"proofs": []},
        {"outputs": -1}, {"outputs": [0, 0]}, {"outputs": 1.5}, {"outputs": "some"}, {"value": "large"},
        {"value": None},
        {"norm": "two"}, {"subject": 3}, {"extra": 1}, {"proofs": proofs(layers=-1)}, {"proofs": proofs(layers=10**6)},
        {"proofs": proofs(layers=1)}, {"proofs": proofs(layers=3)}, {"proofs": proofs(extra=1)},
        {"proofs": proofs(s="x")}, {"proofs": proofs(slack=None)}, {"proofs": proofs(outputs="x")},
        {"proofs": proofs(layers=0)}, {"proofs": proofs(layers=True)},
    ]  # fmt: skip
    for fields in wrong:
        with pytest.raises((CertificateError, InputError)) as error:
            assert forged(certificate, tmp_path, **fields).verify(net), fields
        assert isinstance(error.value, CertificateError), fields
    for name in stored.arrays:
        with pytest.raises(CertificateError):
            forged(certificate, tmp_path, drop=(name,))
        with pytest.raises(CertificateError):
            forged(certificate, tmp_path, arrays={name: np.ones((2, 2, 2))}).verify(net)
    for name in stored.fields:
        with pytest.raises(CertificateError):
            forged(certificate, tmp_path, drop=(name,))
    with pytest.raises(CertificateError):
        forged(certificate, tmp_path, arrays={"more": np.ones(2)})
    for center in (np.array([math.nan, 0.0, 0.0]), np.array([math.inf, 0.0, 0.0])):
        with pytest.raises(CertificateError):
            forged(certificate, tmp_path, arrays={"center": center}).verify(net)
    whole = certificate_of(net, 2.0)
    with pytest.raises(CertificateError, match="without its radius"):
        forged(whole, tmp_path, **{"ball norm": 2.0})


def test_the_file_holds_all_of_it(tmp_path):
    net = residual()
    certificate = certificate_of(net, math.inf, "all", Ball(CENTER, 0.3, "inf"))
    again = load_certificate(certificate.save(tmp_path / "c"))
    assert isinstance(again, SystemCertificate) and isinstance(certificate.stored(), Stored)
    assert to_bytes(again.stored()) == to_bytes(certificate.stored())
    assert again.ball is not None and again.ball.norm == math.inf and again.ball.radius == 0.3
    np.testing.assert_array_equal(again.ball.center, CENTER)
    assert again.method == certificate.method and again.value == certificate.value


def test_integer_arrays_in_a_file_are_no_way_around(tmp_path):
    """Arrays of another type are refused, or are the numbers that they stand for."""
    net = residual()
    certificate = certificate_of(net, 2.0)
    for name, array in certificate.stored().arrays.items():
        for other in (np.zeros(array.shape, dtype=np.int64), np.ones(array.shape, dtype=np.bool_),
                      -np.ones(array.shape, dtype=np.int64)):  # fmt: skip
            with pytest.raises(CertificateError):
                forged(certificate, tmp_path, arrays={name: other}).verify(net)


def test_folded_layers_keep_their_errors():
    """Normalisation inside the walk: the error of every division is in the system that is verified."""
    net = Network((Normalise([0.1, 0.2, 0.3], [0.3, 0.7, 0.9]), *residual().layers))
    certificate = certificate_of(net, 2.0)
    assert certificate.verify(net)
    first = System.of(net).steps[0].W
    assert first.error is not None and np.all(first.error[first.matrix != 0.0] > 0.0)


def test_a_check_of_the_arithmetic_comes_first(monkeypatch):
    from certbound.errors import NumericalError

    def refuse():
        raise NumericalError("flushes")

    net = residual()
    certificate = certificate_of(net, 2.0)
    monkeypatch.setattr(system_certificate, "check_arithmetic", refuse)
    with pytest.raises(NumericalError, match="flushes"):
        certificate.verify(net)


def test_a_proof_bears_four_times_its_rounding(monkeypatch):
    """What is kept was proved with air; verification asks for what is needed only."""
    seen = []
    true = system_certificate._semidefinite

    def watch(m, air):
        seen.append(air)
        return true(m, air)

    monkeypatch.setattr(system_certificate, "_semidefinite", watch)
    net = residual()
    certificate = certificate_of(net, 2.0)
    assert set(seen) == {system_certificate._AIR}
    seen.clear()
    assert certificate.verify(net) and set(seen) == {1.0} and len(seen) == 3
