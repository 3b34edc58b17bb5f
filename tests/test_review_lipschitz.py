"""What a reading by fresh eyes found in the Lipschitz constants of general networks: each stays fixed."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from certbound import Activation, Affine, Ball, Network, Normalise, ReLU, Residual, as_network, lipschitz_sdp


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("slope", [0.1, 1.1])
def test_a_leaky_slope_is_the_one_that_torch_multiplies_by(dtype, slope):
    """A float32 kernel rounds it: the double would be another network, and bounds of it below the true constant."""
    module = nn.Sequential(nn.Linear(1, 1, bias=False), nn.LeakyReLU(slope)).to(dtype).eval()
    with torch.no_grad():
        module[0].weight.fill_(1.0)
    network = as_network(module)
    assert network.layers[-1] == Activation("leaky_relu", float(np.float32(slope)))
    assert as_network(module.double()).layers[-1] == Activation("leaky_relu", slope)
    if dtype is torch.float32:
        with torch.no_grad():
            seen = [module.float()(torch.tensor([[x]])).double().item() for x in (-1.0, -2.0)]  # exact: powers of two
        result = lipschitz_sdp(network, region=Ball([-1.5], 0.5, 2))
        assert result.value >= abs(seen[0] - seen[1]) and result.certificate.verify(network)


def test_channels_are_known_after_a_block_without_weights():
    """Normalisation per channel after a residual sum: every part of the library takes the same numbers for it."""
    inner = Residual((ReLU(),))
    images = Network((inner, Normalise([0.0, 0.0], [1.0, 0.5]), Affine(np.ones((1, 4)))), (2, 2, 1))
    x = np.array([[1.0, 1.0, 1.0, 1.0]])
    assert images.forward(x)[0, 0] == 2 * (1 + 1) + 2 * (2 + 2)
    slope = 2 * math.sqrt(2 * 1 + 2 * 4)  # of positive inputs: each is doubled, the second channel by two once more
    for region in (None, Ball(np.full(4, 2.0), 1.0, 2)):
        result = lipschitz_sdp(images, region=region)
        assert result.value >= slope * (1 - 1e-12) and result.certificate.verify(images)
    assert lipschitz_sdp(images, region=Ball(np.full(4, 2.0), 1.0, 2)).value == pytest.approx(slope)


def test_weights_that_leave_the_range_between_layers():
    """Sizes of 1e-148 beside 1e17: a weaker bound is shown, no LinAlgError."""
    rng = np.random.default_rng(0)
    for small, large in ((1e-148, 1e17), (1e-170, 1e120), (1e-5, 1e150)):
        body = (Affine(small * rng.standard_normal((3, 3))), ReLU(), Affine(large * rng.standard_normal((3, 3))))
        network = Network((Affine(rng.standard_normal((3, 3))), Residual(body), Affine(rng.standard_normal((2, 3)))))
        for norm in (2, math.inf):
            result = lipschitz_sdp(network, norm)
            assert result.value > 0.0 and result.certificate.verify(network)


def test_negative_metric_and_factor_prove_nothing():
    """Their product is positive; value_of() would take the smallest of them (found by forging)."""
    import dataclasses

    from certbound.errors import CertificateError

    network = Network((Affine([[1.0, 2.0], [-1.0, 1.0]]), Activation("tanh"), Affine([[1.0, 1.0]])))
    certificate = lipschitz_sdp(network, method="barrier").certificate
    (proof,) = certificate.proofs
    flipped = dataclasses.replace(proof, d=-proof.d, s=-proof.s, value=0.0)
    with pytest.raises(CertificateError):
        dataclasses.replace(certificate, proofs=(flipped,), value=0.0).verify(network)
