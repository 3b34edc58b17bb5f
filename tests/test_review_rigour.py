"""What a review by fresh eyes found in the rigorous code, each with the case that showed it."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

import certbound
from certbound import CertificateError, InputError, frobenius_norm_lower, spectral_norm_lower
from certbound.lipschitz.product import ProductCertificate
from certbound.lipschitz.sdp_certificate import Proof, SdpCertificate
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
    tiny = {torch.float16: 2.0**-20, torch.bfloat16: 2.0**-130, torch.float32: 2.0**-140, torch.float64: 2.0**-1060}[dtype]
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
