"""Frobenius normalisation: norms recorded, held through optimiser and proximal steps, products and zeros."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from certbound.compress.factorised import linear_maps, relu_network
from certbound.compress.frobenius import FrobeniusNorms
from certbound.compress.penalties import PROXIMAL_STEPS
from certbound.errors import InputError


def _net(*widths: int, rank: int | None = None, seed: int = 0) -> nn.Sequential:
    return relu_network(widths, rank=rank, generator=torch.Generator().manual_seed(seed)).double()


def test_norms_by_hand() -> None:
    net = _net(2, 2, 2, 1)
    net[0].weight.data.copy_(torch.tensor([[1.0, -2.0], [2.0, 4.0]]))
    net[2].weight.data.copy_(torch.tensor([[0.0, 0.0], [3.0, 4.0]]))
    norms = FrobeniusNorms.of(net)
    assert norms.layers == (("0.weight",), ("2.weight",))
    assert norms.norms == pytest.approx((5.0, 5.0), rel=1e-15)
    assert FrobeniusNorms.of(net, exclude_head=False).layers[-1] == ("4.weight",)


def test_restore_rescales_every_layer_and_nothing_else() -> None:
    net = _net(5, 4, 6, 3)
    norms = FrobeniusNorms.of(net)
    start = copy.deepcopy(net)
    for factor, i in ((7.0, 0), (0.01, 2), (3.0, 4)):
        net[i].weight.data.mul_(factor)
        net[i].bias.data.add_(1.0)
    parameters = list(net.parameters())
    norms.restore(net)
    for i in (0, 2):
        torch.testing.assert_close(net[i].weight, start[i].weight, rtol=1e-14, atol=0.0)
        assert torch.equal(net[i].bias, start[i].bias + 1.0)
    assert torch.equal(net[4].weight, start[4].weight * 3.0)  # the head is free
    assert all(a is b and a.requires_grad for a, b in zip(net.parameters(), parameters, strict=True))
    whole = FrobeniusNorms.of(start, exclude_head=False)
    whole.restore(net)
    torch.testing.assert_close(net[4].weight, start[4].weight, rtol=1e-14, atol=0.0)


def test_directions_are_kept() -> None:
    net, other = _net(5, 4, 3), _net(5, 4, 3, seed=1)
    FrobeniusNorms.of(net).restore(other)
    W, V = _net(5, 4, 3, seed=1)[0].weight.detach().numpy(), net[0].weight.detach().numpy()
    expected = W / np.linalg.norm(W) * np.linalg.norm(V)
    np.testing.assert_allclose(other[0].weight.detach().numpy(), expected, rtol=1e-14)


def test_restoring_an_unchanged_module_keeps_every_bit() -> None:
    net = _net(30, 20, 10)  # in float64, where (w / ‖W‖) ‖W‖ is not always w
    before = net[0].weight.detach().clone()
    norms = FrobeniusNorms.of(net)
    assert not torch.equal(before / norms.norms[0] * norms.norms[0], before)
    norms.restore(net)
    assert torch.equal(net[0].weight, before)


@pytest.mark.parametrize("name", PROXIMAL_STEPS)
def test_the_norm_is_held_through_training_steps(name: str) -> None:
    net = relu_network((8, 6, 5, 3), generator=torch.Generator().manual_seed(0))
    norms = FrobeniusNorms.of(net)
    x, y = torch.randn(20, 8, generator=torch.Generator().manual_seed(1)), torch.arange(20) % 3
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for _ in range(10):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimiser.step()
        PROXIMAL_STEPS[name](net, 0.05)
        assert FrobeniusNorms.of(net).norms != pytest.approx(norms.norms, rel=1e-4)
        norms.restore(net)
        assert FrobeniusNorms.of(net).norms == pytest.approx(norms.norms, rel=1e-6)


def test_a_product_is_held_as_a_whole_by_both_factors() -> None:
    net = _net(6, 5, 4, 3, rank=2)
    norms = FrobeniusNorms.of(net)
    assert norms.layers == (("0.weight", "1.weight"), ("3.weight", "4.weight"))
    starts = [w.detach().clone() for w in linear_maps(net)]
    assert norms.norms == pytest.approx([float(w.norm()) for w in starts[:-1]], rel=1e-14)
    before = [net[i].weight.detach().clone() for i in (0, 1)]
    net[0].weight.data.mul_(9.0)
    norms.restore(net)
    torch.testing.assert_close(linear_maps(net)[0], starts[0], rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(net[0].weight, before[0] * 3.0, rtol=1e-13, atol=0.0)  # √(1/9) of 9
    torch.testing.assert_close(net[1].weight, before[1] / 3.0, rtol=1e-13, atol=0.0)


def test_the_first_convolution_is_held_too() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3), nn.Flatten(), nn.Linear(8, 2))
    net = net.to(memory_format=torch.channels_last)
    norms = FrobeniusNorms.of(net)
    assert norms.layers == (("0.weight",), ("2.weight",))
    start = [net[i].weight.detach().clone() for i in (0, 2)]
    for i in (0, 2):
        net[i].weight.data.mul_(5.0)
    norms.restore(net)
    for i, old in zip((0, 2), start, strict=True):
        torch.testing.assert_close(net[i].weight.detach(), old)


def test_zero_layers() -> None:
    net = _net(4, 4, 3, 2)
    norms = FrobeniusNorms.of(net)
    net[0].weight.data.zero_()  # no direction to rescale
    norms.restore(net)
    assert not net[0].weight.detach().any() and bool(net[2].weight.isfinite().all())
    recorded = FrobeniusNorms.of(net)
    assert recorded.norms[0] == 0.0
    net[0].weight.data.fill_(1.0)
    recorded.restore(net)
    assert not net[0].weight.detach().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("start", "now"), [(1.0, 1e-35), (1.0, 1e35), (1e-30, 1e30), (1e30, 1e-30)])
def test_extreme_scales(dtype: torch.dtype, start: float, now: float) -> None:
    base = _net(5, 4, 3)[0].weight.detach()
    base = base / base.norm()
    layer = nn.Linear(5, 4, dtype=dtype)
    layer.weight.data.copy_(base * start)
    norms = FrobeniusNorms.of(layer, exclude_head=False)
    layer.weight.data.copy_(base * now)
    norms.restore(layer)
    torch.testing.assert_close(layer.weight.detach(), (base * start).to(dtype), rtol=1e-5, atol=0.0)


def test_norms_beyond_the_squares_of_float64() -> None:
    layer = nn.Linear(2, 1, dtype=torch.float64)
    layer.weight.data.copy_(torch.tensor([[3e200, 4e200]], dtype=torch.float64))
    assert FrobeniusNorms.of(layer, exclude_head=False).norms == pytest.approx((5e200,), rel=1e-15)
    layer.weight.data.fill_(1.7e308)
    with pytest.raises(InputError, match=r"weight.*above"):
        FrobeniusNorms.of(layer, exclude_head=False)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_bad_weights_are_refused_and_nothing_is_changed(value: float) -> None:
    net = _net(4, 4, 3, 2)
    norms = FrobeniusNorms.of(net)
    net[0].weight.data.mul_(2.0)
    net[2].weight.data[0, 0] = value
    before = net[0].weight.detach().clone()
    with pytest.raises(InputError, match=r"2\.weight: got NaN or infinite"):
        norms.restore(net)
    with pytest.raises(InputError, match=r"2\.weight: got NaN or infinite"):
        FrobeniusNorms.of(net)
    assert torch.equal(net[0].weight, before)


def test_another_module_is_refused() -> None:
    norms = FrobeniusNorms.of(_net(4, 4, 3, 2))
    with pytest.raises(InputError, match="the layers"):
        norms.restore(_net(4, 4, 2))
    with pytest.raises(InputError, match="module"):
        norms.restore("net")  # type: ignore[arg-type]


def test_the_record_cannot_be_changed() -> None:
    norms = FrobeniusNorms.of(_net(4, 4, 2))
    with pytest.raises(AttributeError):
        norms.norms = (1.0,)  # type: ignore[misc]
    assert hash(norms) == hash(FrobeniusNorms.of(_net(4, 4, 2)))
