"""What a review by fresh eyes found in the rigorous code, each with the case that showed it."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch

import certbound
from certbound import CertificateError, InputError, frobenius_norm_lower, spectral_norm_lower
from certbound.lipschitz.product import ProductCertificate
from certbound.lipschitz.sdp_certificate import Proof, SdpCertificate
from certbound.losses import perturbation_domain
from certbound.network import Affine, Ball, Network, ReLU

CANCELLING = np.array([[1.0, 2.0**-60, -1.0]])


def test_lower_bounds_at_the_smallest_normal_number():
    """A sum of squares of 2^104 − 1 in units of 2^-1074: its root is a hair below 2^-1022."""
    rest, entries = 2**104 - 1, []
    entries.append(math.isqrt(3 * rest // 4))
    rest -= entries[0] ** 2
    while rest:
        entries.append(math.isqrt(rest))
        rest -= entries[-1] ** 2
    W = np.array([[x * 2.0**-1074 for x in entries]])
    exact = sum(Fraction(x) ** 2 for x in W[0].tolist())
    assert exact == Fraction(2**104 - 1, 2**2148)
    for f in (frobenius_norm_lower, spectral_norm_lower):
        bound = f(W, rigor="rigorous")
        assert Fraction(bound.value) ** 2 <= exact and bound.value > 0
        assert bound.certificate.verify(W)
        assert Fraction(f(W).value) ** 2 <= exact * (1 + Fraction(1, 2**40))
    low = certbound.check_theorem31(W, rigor="rigorous").spectral.norm_interval[0]
    assert Fraction(low) ** 2 <= exact


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_subnormal_weights_are_not_read_as_zeros(dtype):
    exponents = {torch.float16: -20, torch.bfloat16: -130, torch.float32: -140, torch.float64: -1060}
    tiny = 2.0 ** exponents[dtype]
    W = torch.tensor([[1.0, tiny]], dtype=torch.float64).to(dtype)
    assert float(W[0, 1]) == tiny
    plain = torch.tensor([[1.0, 0.0]]).to(dtype)
    own = None if dtype is torch.bfloat16 else W.numpy()
    assert torch.set_flush_denormal(True)
    try:
        for value in (W, own):
            if value is not None:
                with pytest.raises(InputError, match="subnormal numbers, on a thread that flushes"):
                    certbound.check_theorem31(value)
        assert certbound.check_theorem31(plain).spectral.norm == 1.0
    finally:
        torch.set_flush_denormal(False)
    assert certbound.inf_norm_upper(W, rigor="rigorous").value == pytest.approx(1.0 + tiny)


@pytest.mark.parametrize("norm", [2.0, math.inf])
@pytest.mark.parametrize("outputs", ["all", 0])
def test_a_layer_stored_as_zero_is_not_proved_to_be_zero(norm, outputs):
    """1 + 2^-60 − 1 is 0 in floats: the folded layer is 0 with an error, and a norm below that error is refused."""
    net = Network((Affine(np.ones((3, 1)) * 2.0**300), Affine(CANCELLING * 2.0**300)))
    assert net.chain.weights[0][0, 0] == 0.0
    for norms in ((0.0,), (2.0**500,), (-1.0,)):
        value = max(norms[0], 0.0)
        with pytest.raises(CertificateError, match="not proved"):
            ProductCertificate(net.digest, norm, outputs, value, norms).verify(net)
        with pytest.raises(CertificateError, match="not proved"):
            SdpCertificate(net.digest, norm, outputs if norm == 2.0 else 0, value,
                           (Proof(outputs if norm == 2.0 else 0, value, norms=norms),)).verify(net)  # fmt: skip
    result = certbound.lipschitz_product(net, norm)
    assert result.value >= 2.0**540 and result.certificate.verify(net)


@pytest.mark.parametrize("norm", [2.0, math.inf])
def test_folding_through_subnormal_numbers(norm):
    """2^-1020 · 2^860 (1 + x): two scalings, one after the other, lost bits that no error counted."""
    W1 = np.array([[2.0**900], [2.0**860 * (1 + 0.49 * 2.0**-14)]])
    W2 = np.array([[0.0, 2.0**-1020]])
    net = Network((Affine(W1), Affine(W2)))
    exact = Fraction(W1[1, 0]) * Fraction(W2[0, 1])
    results = (certbound.lipschitz_product(net, norm), certbound.lipschitz_sdp(net, norm),
               certbound.lipschitz_alignment(net, norm, rigor="rigorous"))  # fmt: skip
    for result in results:
        assert exact <= Fraction(result.value) <= exact * (1 + Fraction(1, 2**40))
        assert result.certificate.verify(net)


@pytest.mark.parametrize("order", [[0, 1, 2], [1, 0, 2], [0, 2, 1]])
def test_errors_of_tiny_weights_are_amplified(order):
    """The error of a weight of 2^-1040 is below all floats; a layer of 2^1000 after it makes it count."""
    A = CANCELLING[:, order] * 2.0**1000
    net = Network((Affine(np.full((3, 1), 2.0**-1040)), Affine(A)))
    exact = abs(sum(Fraction(a) * Fraction(2.0**-1040) for a in A[0].tolist()))
    for norm in (2.0, math.inf):
        result = certbound.lipschitz_product(net, norm)
        assert Fraction(result.value) >= exact and result.certificate.verify(net)
        assert result.value < 2.0**-80  # and it is not simply huge


def test_errors_of_tiny_biases_are_amplified():
    A = np.array([[2.0**1000, 2.0**940, -(2.0**1000), 2.0**510]])
    for shift in range(4):
        order = np.roll(np.arange(4), shift)
        W = np.array([0.0, 0.0, 0.0, 2.0**-610])[order][:, None]
        b = np.array([2.0**-1040] * 3 + [0.0])[order]
        net = Network((Affine(W, b), Affine(A[:, order]), ReLU(), Affine(np.array([[2.0**100]]))))
        exact = sum(Fraction(u) * Fraction(v) for u, v in zip(A[0, order].tolist(), b.tolist(), strict=True))
        off = abs(Fraction(net.chain.biases[0][0]) - exact)
        assert net.chain.bias_errors[0] is not None and off <= Fraction(net.chain.bias_errors[0][0])


def test_domains_that_print_alike_are_told_apart():
    assert str(Ball([0.0], 1.0, "inf")) != str(Ball([0.0], 1.0000004, "inf"))
    x, y = np.zeros((1, 2)), np.array([0])
    one, other = (perturbation_domain(x, y, 0.1, 2.0, (0.0, high)) for high in (1.0, 1.0000004))
    assert one != other


def test_a_bias_is_not_mistaken_for_a_layer():
    row = np.ones((1, 2))
    digests = {Network((Affine(row, [float(i)]),)).digest for i in range(4)}
    digests |= {Network((Affine(row), ReLU())).digest, Network((Affine(row),)).digest}
    assert len(digests) == 6


@pytest.mark.parametrize("rho", [-1.0, 0.0, math.nan, math.inf])
def test_a_forged_factor_of_a_pair_is_refused(rho):
    W = [np.array([[2.0, 1.0], [0.0, 1.0]]), np.array([[1.0, -1.0]])]
    certificate = certbound.lipschitz_alignment(W, 2, rigor="rigorous", max_patterns=1).certificate
    assert certificate.pairs and certificate.pairs[0].core.how == "multipliers"
    pair = certificate.pairs[0]
    forged = replace(certificate, pairs=(replace(pair, core=replace(pair.core, rho=rho)),))
    with pytest.raises(CertificateError):
        forged.verify(W)


@pytest.mark.parametrize("norm", [2.0, math.inf])
@pytest.mark.parametrize("method", ["closed-form", "barrier"])
def test_differences_of_rows_that_overflow(norm, method):
    W = [np.eye(2), np.array([[1.7e308, 0.0], [-1.7e308, 0.0]])]
    result = certbound.lipschitz_sdp(W, norm, outputs=(0, 1), method=method)
    assert result.value == math.inf and result.certificate.verify(W)
