"""Certificates of LipSDP bounds and products of norms: sound against rationals, and refused when altered."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from itertools import product as every

import numpy as np
import pytest
from budget import network_settings
from hypothesis import given
from hypothesis import strategies as st
from rationals import exact_sum, fractions, product, spectral_norm_at_most
from tamper import every_flip_refused

from certbound import Affine, CertificateError, Network, Normalise, ReLU, lipschitz_product, lipschitz_sdp
from certbound.certificate import load_certificate
from certbound.lipschitz import sdp_certificate
from certbound.lipschitz.product import ProductCertificate, certified_product
from certbound.lipschitz.recursion import recursion_2
from certbound.lipschitz.sdp_certificate import Problem, SdpCertificate, certify, proves
from certbound.network import Flatten, _Folding
from certbound.testing.strategies import relu_networks
from certbound.types import Rigor, Status

both_norms = pytest.mark.parametrize("norm", [2.0, math.inf], ids=["2", "inf"])
ABS_VALUE = [np.array([[1.0], [-1.0]]), np.array([[1.0, 1.0]])]


def gaussian(*sizes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((b, a)) * math.sqrt(2 / a) for a, b in pairwise(sizes)]


def exact_layers(network):
    """Affine maps between ReLUs of a network in rationals: normalisation and products without rounding."""
    maps, now = [], None
    n = network.n_inputs
    for layer in network.layers:
        if isinstance(layer, Affine):
            W = fractions(layer.weight)
            now = W if now is None else product(W, now)
        elif isinstance(layer, Normalise):
            _, std = layer.per_input(network.input_shape, n if now is None else len(now))
            if now is None:
                now = [[Fraction(int(i == j)) for j in range(n)] for i in range(n)]
            now = [[x / Fraction(s) for x in row] for row, s in zip(now, std.tolist(), strict=True)]
        elif isinstance(layer, ReLU):
            maps.append(now)
            now = None
        else:
            assert isinstance(layer, Flatten)
    if now is not None:
        maps.append(now)
    return maps


def pattern_jacobians(maps):
    """The Jacobian of every 0/1 pattern, exactly."""
    hidden = [len(m) for m in maps[:-1]]
    for bits in every(*[every((0, 1), repeat=h) for h in hidden]):
        J = maps[0]
        for mask, W in zip(bits, maps[1:], strict=True):
            J = product(W, [row if keep else [Fraction(0)] * len(row) for keep, row in zip(mask, J, strict=True)])
        yield J


def bounds_exactly(J, norm, value):
    if value == math.inf:
        return True
    if math.isinf(norm):
        return max(sum((abs(x) for x in row), Fraction(0)) for row in J) <= Fraction(value)
    return spectral_norm_at_most(J, Fraction(value))


def rows_of(J, outputs):
    if outputs == "all":
        return J
    if isinstance(outputs, tuple):
        return [[a - b for a, b in zip(J[outputs[0]], J[outputs[1]], strict=True)]]
    return [J[outputs]]


def accepts(certificate, network):
    try:
        return certificate.verify(network)
    except CertificateError:
        return False


# -- soundness -----------------------------------------------------------------------------------------


@both_norms
@network_settings
@given(net=relu_networks(3, 3, max_hidden=5), data=st.data())
def test_the_closed_form_bounds_every_pattern_exactly(norm, net, data):
    n = net.n_outputs
    choices = ["all", *range(n), *[(j, y) for j in range(n) for y in range(n) if j != y]]
    outputs = data.draw(st.sampled_from(choices))
    result = lipschitz_sdp(net, norm, outputs=None if outputs == "all" else outputs, method="closed-form")
    assert result.bound.rigor is Rigor.RIGOROUS and result.status is Status.OK
    maps = exact_layers(net.open_ended)
    for J in pattern_jacobians(maps):
        assert bounds_exactly(rows_of(J, outputs), norm, result.value)
    assert result.certificate.verify(net)
    assert result.certificate.bound.claim == result.bound.claim and result.certificate.bound.value == result.value


@both_norms
@network_settings
@given(net=relu_networks(3, 3, max_hidden=5))
def test_the_product_bounds_every_pattern_exactly(norm, net):
    result = lipschitz_product(net, norm)
    for J in pattern_jacobians(exact_layers(net.open_ended)):
        assert bounds_exactly(J, norm, result.value)
    assert result.certificate.verify(net) and result.bound.rigor is Rigor.RIGOROUS


@both_norms
@pytest.mark.parametrize("seed", range(6))
def test_cvxpy_bounds_every_pattern_exactly(norm, seed):
    rng = np.random.default_rng(seed)
    W = [rng.integers(-3, 4, (3, 2)).astype(float), rng.integers(-3, 4, (3, 3)).astype(float),
         rng.integers(-3, 4, (2, 3)).astype(float)]  # fmt: skip
    result = lipschitz_sdp(W, norm, method="cvxpy")
    assert result.bound.rigor is Rigor.RIGOROUS
    for J in pattern_jacobians([fractions(w) for w in W]):
        assert bounds_exactly(J, norm, result.value)
    assert result.certificate.verify(W)


@both_norms
@network_settings
@given(net=relu_networks(3, 3, max_hidden=4), factor=st.floats(0.2, 3.0), shake=st.floats(0.0, 0.5),
       seed=st.integers(0, 999))  # fmt: skip
def test_whatever_is_proved_is_true(norm, net, factor, shake, seed):
    """Arbitrary multipliers, metric and s: if M is proved, every pattern obeys the bound."""
    network = net.open_ended
    problem = Problem.of(network, "all")
    if not problem.encoder or (math.isinf(norm) and network.n_outputs > 1):
        return
    rng = np.random.default_rng(seed)
    d = rng.uniform(0.5, 1.0, network.n_inputs)
    t = sdp_certificate.closed_form_multipliers(problem, d)
    if t is None:
        return
    t = tuple(x * np.exp(rng.uniform(-shake, shake, len(x))) for x in t)
    s = sdp_certificate.least_factor(problem, t, d)
    if not s:
        return
    if proves(problem, t, d, s * factor):
        value = sdp_certificate.value_of(problem, d, s * factor, norm)
        for J in pattern_jacobians(exact_layers(network)):
            assert bounds_exactly(J, norm, value)
    else:
        assert factor < 1 + 1e-6 or shake > 0


@pytest.mark.parametrize("sizes", [(5, 5, 5, 3), (40, 20, 20, 10), (20, 40, 40, 4), (8,) + (8,) * 30 + (2,), (3, 1, 1)])
def test_hardly_above_the_recursion_without_a_proof(sizes):
    W = gaussian(*sizes)
    value = lipschitz_sdp(W, 2, method="closed-form").value
    assert recursion_2(W[:-1], W[-1]) * (1 - 1e-12) <= value <= recursion_2(W[:-1], W[-1]) * (1 + 1e-8)


@both_norms
def test_hardly_above_the_solver(norm):
    result = lipschitz_sdp(gaussian(8, 8, 8, 3), norm, method="cvxpy")
    said = dict(result.stats)["solver value (heuristic)"]
    assert said * (1 - 1e-5) <= result.value <= said * (1 + 1e-5)
    assert isinstance(result.certificate, SdpCertificate)


@both_norms
def test_extreme_scales(norm):
    """Weights of 1e±200 multiply to a constant that float64 holds; one beyond it is ∞, and one below it is above 0."""
    W = gaussian(4, 4, 4, 2)
    plain = lipschitz_sdp(W, norm, method="closed-form").value
    for a, b, c in ((2.0**600, 2.0**-600, 1.0), (2.0**-1000, 2.0**900, 2.0**100), (1.0, 2.0**-900, 2.0**900)):
        moved = [W[0] * a, W[1] * b, W[2] * c]
        result = lipschitz_sdp(moved, norm, method="closed-form")
        assert result.value == pytest.approx(plain, rel=1e-9) and result.certificate.verify(moved)
    tiny = [w * 2.0**-500 for w in W]
    result = lipschitz_sdp(tiny, norm, method="closed-form")
    assert 0.0 < result.value < 1e-300 and result.certificate.verify(tiny)
    huge = [w * 2.0**500 for w in W]
    assert lipschitz_sdp(huge, norm, method="closed-form").value == math.inf


# -- folded layers and differences of rows -------------------------------------------------------------


@st.composite
def folded_networks(draw):
    """Normalisation and several affine maps between ReLUs, with numbers that round when they are folded."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n = draw(st.integers(1, 3))
    layers = [Normalise(rng.random(n), rng.uniform(0.1, 3.0, n))]
    for _ in range(draw(st.integers(1, 2))):
        for _ in range(draw(st.integers(1, 2))):
            m = int(rng.integers(1, 4))
            layers.append(Affine(rng.standard_normal((m, n)) * 10.0 ** rng.integers(-3, 4), rng.standard_normal(m)))
            n = m
            if draw(st.booleans()):
                layers.append(Normalise(rng.random(n), rng.uniform(0.1, 3.0, n)))
        layers.append(ReLU())
    m = int(rng.integers(1, 4))
    return Network((*layers, Affine(rng.standard_normal((m, n)))))


@network_settings
@given(net=folded_networks())
def test_folding_errors_are_bounds_entry_by_entry(net):
    """What the chain says it is off by, against rationals; and it is not wildly more."""
    for W, error, exact in zip(net.chain.weights, net.chain.errors, exact_layers(net), strict=True):
        off = np.zeros_like(W) if error is None else error
        for i, j in np.ndindex(W.shape):
            assert abs(Fraction(W[i, j]) - exact[i][j]) <= Fraction(off[i, j])
        assert float(np.max(off)) <= 1e-13 * float(np.max(np.abs(W))) * 100


@network_settings
@given(net=folded_networks())
def test_biases_of_folded_layers(net):
    """Biases too, by evaluating the affine maps at 0."""
    now = [Fraction(0)] * net.n_inputs
    biases = []
    for layer in net.layers:
        if isinstance(layer, Affine):
            b = np.zeros(len(layer.weight)) if layer.bias is None else layer.bias
            now = [sum((w * x for w, x in zip(row, now, strict=True)), Fraction(c))
                   for row, c in zip(fractions(layer.weight), b.tolist(), strict=True)]  # fmt: skip
        elif isinstance(layer, Normalise):
            mean, std = layer.per_input(None, len(now))
            now = [(x - Fraction(m)) / Fraction(s) for x, m, s in zip(now, mean.tolist(), std.tolist(), strict=True)]
        else:
            biases.append(now)
            now = [Fraction(0)] * len(now)
    biases.append(now)
    for b, error, exact in zip(net.chain.biases, net.chain.bias_errors, biases, strict=True):
        off = np.zeros_like(b) if error is None else error
        for x, e, true in zip(b.tolist(), off.tolist(), exact, strict=True):
            assert abs(Fraction(x) - true) <= Fraction(e)


@both_norms
@network_settings
@given(net=folded_networks())
def test_bounds_of_folded_networks_hold_for_the_exact_layers(norm, net):
    for result in (lipschitz_sdp(net, norm, method="closed-form"), lipschitz_product(net, norm)):
        for J in pattern_jacobians(exact_layers(net)):
            assert bounds_exactly(J, norm, result.value)
        assert result.certificate.verify(net)


def test_products_of_layers_are_rounded():
    """Two affine layers and nothing else: what the product loses is within the error, and some of it is lost."""
    rng = np.random.default_rng(0)
    rounded = 0
    for _ in range(30):
        net = Network((Affine(rng.standard_normal((3, 4))), Affine(rng.standard_normal((2, 3)))))
        (W,), (error,), (exact,) = net.chain.weights, net.chain.errors, exact_layers(net)
        for i, j in np.ndindex(W.shape):
            off = abs(Fraction(W[i, j]) - exact[i][j])
            assert off <= Fraction(error[i, j]) <= Fraction(1, 2**40)
            rounded += off > 0
    assert rounded > 100


def test_errors_of_earlier_layers_are_carried_on():
    """Through weights and through a division, for weights and biases."""
    off = _Folding(np.eye(2), np.ones(2), np.full((2, 2), 1e-3), np.full(2, 1e-2))
    after = off.then_affine(Affine(np.array([[3.0, -4.0]])))
    assert after.error is not None and after.bias_error is not None
    assert np.all(after.error >= 7e-3) and np.all(after.bias_error >= 7e-2)
    after = off.then_normalise(np.zeros(2), np.full(2, 0.5))
    assert after.error is not None and after.bias_error is not None
    assert np.all(after.error >= 2e-3) and np.all(after.bias_error >= 2e-2)


def test_nothing_is_off_where_nothing_was_rounded():
    net = Network((Normalise([0.0], [0.25]), Affine(np.ones((2, 2))), ReLU(), Affine(np.ones((1, 2)))))
    assert net.chain.errors[1] is None and Network.from_weights([np.ones((2, 2))] * 2).chain.errors == (None, None)


@both_norms
def test_a_difference_of_rows_is_rounded(norm):
    """1 − (1e-17) is 1 in floats: the bound must hold for the difference of the rows as they are."""
    head = np.array([[1.0], [-1e-17]])
    exact = Fraction(1) + Fraction(1e-17)
    for W in ([np.array([[1.0]]), head], [head]):
        for method in ("closed-form", "cvxpy"):
            result = lipschitz_sdp(W, norm, outputs=(0, 1), method=method)
            assert Fraction(result.value) >= exact and result.certificate.verify(W)


def test_errors_are_scaled_as_the_weights_are():
    """Whatever exponents a forger writes: the error of a folded layer of zeros must not lag behind its weights."""
    net = Network.from_weights([[[0.0]], [[1.0]]])
    net.__dict__["chain"] = replace(net.chain, errors=(np.full((1, 1), 2.0**-1000), None))
    for k in (-2200, -1100, -1000, -500, 0, 500, 2200):
        problem = Problem.of(net, "all", (k, 0))
        exact = Fraction(2) ** (-1000 - k)
        assert math.isinf(problem.errors[0]) or Fraction(problem.errors[0]) >= exact
    forged = Problem.of(net, "all", (-2200, 0))
    assert not proves(forged, [np.full(1, 2.0**-890)], np.full(1, 2.0**890), 1.0)


def test_a_metric_that_is_not_constant():
    """f(x) = relu(x_1) has constant 1 in ℓ2 and ℓ∞; d weighs its inputs by 1 and 1/4."""
    problem = Problem.of(Network.from_weights([[[1.0, 0.0]], [[1.0]]]), "all")
    d = np.array([1.0, 0.25])
    assert proves(problem, [np.array([1.0])], d, 1.001) and not proves(problem, [np.array([1.0])], d, 0.999)
    assert sdp_certificate.value_of(problem, d, 1.001, 2.0) == pytest.approx(math.sqrt(1.001))
    assert sdp_certificate.value_of(problem, d, 1.001, math.inf) == pytest.approx(math.sqrt(1.25 * 1.001))


def test_folding_enters_the_bounds(monkeypatch):
    """Folding errors are about 1e-16 of the weights, below what proofs leave as air: blown up, they must be seen."""
    net = Network((Normalise([0.0, 0.0], [0.3, 0.7]), Affine(np.eye(2)), ReLU(), Affine(np.ones((1, 2)))))
    before = {p: (lipschitz_sdp(net, p, method="closed-form"), lipschitz_product(net, p)) for p in (2, math.inf)}
    chain = net.chain
    net.__dict__["chain"] = replace(chain, errors=(np.full((2, 2), 0.05), None))
    for norm, (sdp, product_result) in before.items():
        for old in (sdp, product_result):
            assert not accepts(old.certificate, net)
        assert lipschitz_sdp(net, norm, method="closed-form").value > 1.01 * sdp.value
        assert lipschitz_product(net, norm).value > 1.01 * product_result.value
        assert lipschitz_product(net, norm).certificate.verify(net)
        assert lipschitz_sdp(net, norm, method="closed-form").certificate.verify(net)


def test_every_error_enters_the_sdp(monkeypatch):
    """The error that M must bear holds the rounding of T W, the folding, and the difference of head rows."""
    seen = []
    true = sdp_certificate.block_definite

    def watch(diagonal, lower, *, error):
        seen.append(error)
        return true(diagonal, lower, error=error)

    monkeypatch.setattr(sdp_certificate, "block_definite", watch)
    W = [np.array([[1.0, 0.5], [0.25, 1.0]]), np.array([[1.0, 0.3], [0.1, 1.0]])]
    problem = Problem.of(Network.from_weights(W), "all")
    t = [np.array([0.7, 0.9])]
    proves(problem, t, np.ones(2), 10.0)
    assert problem.errors == (0.0,) and problem.head_error == 0.0
    assert seen[-1] >= 2.0**-53 * 0.5  # about u ‖T W‖_F
    proves(replace(problem, errors=(1e-3,)), t, np.ones(2), 10.0)
    assert seen[-1] >= 1e-3 * 0.5
    proves(replace(problem, head_error=1e-3), t, np.ones(2), 10.0)
    assert seen[-1] >= 1e-3 * 0.25
    pair = Problem.of(Network.from_weights(W), (0, 1))
    assert pair.head_error >= 2.0**-53 * float(np.linalg.norm(W[1][0] - W[1][1])) * 0.99


# -- altered certificates ------------------------------------------------------------------------------


def certificates(norm):
    W = gaussian(4, 4, 3, seed=1)
    yield W, lipschitz_sdp(W, norm, method="closed-form").certificate
    yield W, lipschitz_sdp(W, norm, outputs=(0, 2), method="cvxpy").certificate
    yield W, lipschitz_product(W, norm).certificate
    yield W, lipschitz_sdp(W, norm, outputs=1, method="closed-form").certificate


@both_norms
def test_saved_loaded_and_every_byte_counts(norm, tmp_path):
    for W, certificate in certificates(norm):
        loaded = load_certificate(certificate.save(tmp_path / "c"))
        assert loaded.bound == certificate.bound and loaded.verify(W)
        tried = every_flip_refused(certificate, W, tmp_path)
        assert tried.flips > 500


@both_norms
def test_values_below_what_is_proved_are_refused(norm):
    """The mathematics refuses them: no digest is involved here."""
    for W, certificate in certificates(norm):
        assert replace(certificate, value=certificate.value * 2).verify(W)
        for value in (certificate.value * (1 - 1e-6), 0.0, -1.0, math.nan):
            assert not accepts(replace(certificate, value=value), W)
        if isinstance(certificate, ProductCertificate):
            for i in range(len(certificate.norms)):
                norms = tuple(v * (1 - 1e-6 * (j == i)) for j, v in enumerate(certificate.norms))
                assert not accepts(replace(certificate, norms=norms, value=certificate.value), W)
            assert not accepts(replace(certificate, norms=certificate.norms[:-1]), W)
            continue
        lowered = tuple(replace(p, value=p.value * (1 - 1e-6)) for p in certificate.proofs)
        assert not accepts(replace(certificate, proofs=lowered, value=certificate.value * (1 - 1e-6)), W)


@both_norms
def test_multipliers_that_prove_less_are_refused(norm):
    W = gaussian(4, 4, 4, 3, seed=2)
    certificate = lipschitz_sdp(W, norm, outputs=0, method="closed-form").certificate
    (p,) = certificate.proofs
    assert p.t and certificate.verify(W)
    small = 1 - 1e-6
    changed = {
        "s": replace(p, s=p.s * small, value=p.value * math.sqrt(small)),
        "s and a too small value": replace(p, s=p.s * small),
        "d": replace(p, d=p.d * small),
        "d = 0": replace(p, d=np.where(np.arange(4) == 0, 0.0, p.d)),
        "d < 0": replace(p, d=-p.d),
        "T doubled twice": replace(p, t=tuple(4 * x for x in p.t)),
        "T = 0": replace(p, t=tuple(0 * x for x in p.t)),
        "T < 0": replace(p, t=tuple(-x for x in p.t)),
        "T NaN": replace(p, t=tuple(x * math.nan for x in p.t)),
        "T inf": replace(p, t=tuple(x * math.inf for x in p.t)),
        "T of another size": replace(p, t=tuple(x[:-1] for x in p.t)),
        "a layer less": replace(p, t=p.t[:-1]),
        "s NaN": replace(p, s=math.nan),
        "s inf": replace(p, s=math.inf),
        "no d": replace(p, d=None),
        "d of another size": replace(p, d=np.ones(3)),
        "exponents": replace(p, exponents=tuple(e - 1 for e in p.exponents)),
        "one exponent": replace(p, exponents=(p.exponents[0] - 1, *p.exponents[1:])),
        "exponents that are few": replace(p, exponents=p.exponents[:-1]),
        "exponents beyond reason": replace(p, exponents=tuple(10**6 for _ in p.exponents)),
        "another output": replace(p, outputs=1),
        "the product": replace(p, t=(), d=None),
        "norms": replace(p, t=(), d=None, norms=(0.0,) * len(W)),
    }
    for name, proof in changed.items():
        value = max(certificate.value, proof.value) if name == "d" else certificate.value
        assert not accepts(replace(certificate, proofs=(proof,), value=value), W), name
    assert not accepts(replace(certificate, proofs=()), W)
    assert not accepts(replace(certificate, proofs=(p, p)), W)
    for field, value in (("norm", 1.0), ("norm", math.nan), ("outputs", 7), ("outputs", (0, 1)), ("outputs", "all")):
        assert not accepts(replace(certificate, **{field: value}), W), field
    if norm == 2.0:  # the other way round it is true: √(s max d) <= √(s Σd)
        assert not accepts(replace(certificate, norm=math.inf), W)


def test_all_outputs_in_inf_need_all_proofs():
    W = gaussian(4, 4, 4, 3, seed=2)
    certificate = lipschitz_sdp(W, math.inf, method="closed-form").certificate
    assert isinstance(certificate, SdpCertificate) and len(certificate.proofs) == 3
    smallest = min(certificate.proofs, key=lambda p: p.value)
    for proofs in (certificate.proofs[:-1], (smallest,), (smallest,) * 3, certificate.proofs[::-1]):
        assert not accepts(replace(certificate, proofs=proofs), W)


def test_another_network_is_refused():
    W = gaussian(4, 4, 3)
    for certificate in (lipschitz_sdp(W).certificate, lipschitz_product(W).certificate):
        other = [W[0], W[1] * 0.5]
        with pytest.raises(CertificateError, match="about the network"):
            certificate.verify(other)
        with pytest.raises(CertificateError, match="about the network"):
            certificate.verify(Network((*Network.from_weights(W).layers, ReLU())))


def test_a_final_relu():
    """The claim is about the network as it is; a ReLU at the end makes it no larger."""
    net = Network((*Network.from_weights(ABS_VALUE).layers, ReLU()))
    for norm in (2.0, math.inf):
        result = lipschitz_sdp(net, norm)
        assert 1.0 <= result.value < 1.0 + 1e-6 or result.value <= lipschitz_product(net, norm).value
        assert result.certificate.verify(net)


def test_proofs_of_networks_without_hidden_layers():
    W = [np.array([[3.0, 4.0]])]
    assert lipschitz_sdp(W, 2).value == 5.0 and lipschitz_sdp(W, math.inf).value == 7.0
    assert lipschitz_sdp(W, 2).certificate.verify(W)
    assert certify(Network.from_weights(W), "all", 2.0, np.ones(2)) is None
    zero = [np.ones((2, 2)), np.zeros((2, 2)), np.ones((1, 2))]
    assert lipschitz_sdp(zero, 2).value == 0.0 and lipschitz_sdp(zero, 2).certificate.verify(zero)


def test_certified_products_explain_themselves():
    W = gaussian(4, 4, 3)
    bound = certified_product(Network.from_weights(W), 2.0)
    assert len(bound.terms) == 2 and all(t.rigor is Rigor.RIGOROUS for t in bound.terms)
    assert exact_sum(np.array(bound.certificate.norms)) == exact_sum(np.array([t.value for t in bound.terms]))
