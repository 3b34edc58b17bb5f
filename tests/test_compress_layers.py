"""Which weights are compressed: on chains, convolutions, attention, tied and factorised layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from certbound.compress.factorised import relu_network
from certbound.compress.layers import (
    as_matrix,
    check_finite,
    check_module,
    sequential_children,
    weight_groups,
    weight_parameters,
)
from certbound.errors import InputError, UnsupportedLayerError


class Branches(nn.Module):
    """A container whose order of use its children do not tell."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.up = nn.ConvTranspose2d(4, 4, 2)
        self.first = nn.Linear(4, 5)
        self.second = nn.Linear(5, 5)
        self.head = nn.Linear(5, 2)


def _chain() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))


def test_weights_are_the_parameters_themselves_in_order() -> None:
    net = _chain()
    weights = weight_parameters(net)
    assert list(weights) == ["0.weight", "2.weight"]
    assert all(weights[name] is dict(net.named_parameters())[name] for name in weights)
    assert list(weight_parameters(net, exclude_head=False)) == ["0.weight", "2.weight", "4.weight"]


def test_first_convolution_and_head_are_left_out_of_a_conv_net() -> None:
    net = Branches()
    assert list(weight_parameters(net)) == ["block.0.weight", "first.weight", "second.weight"]
    assert next(iter(weight_parameters(net, exclude_first_conv=False))) == "stem.weight"
    assert list(weight_parameters(net, exclude_head=False))[-1] == "head.weight"
    everything = weight_parameters(net, exclude_head=False, exclude_first_conv=False)
    assert len(everything) == 5 and "up.weight" not in everything  # a transposed convolution is not compressed


@pytest.mark.parametrize("conv", [nn.Conv1d, nn.Conv2d, nn.Conv3d])
def test_all_convolutions_count(conv: type[nn.Module]) -> None:
    net = nn.Sequential(conv(2, 3, 3), nn.ReLU(), conv(3, 4, 3))
    assert list(weight_parameters(net)) == ["2.weight"]  # no linear layer, so no head


def test_a_bare_layer_has_its_own_parameter_name() -> None:
    layer = nn.Linear(3, 2)
    assert list(weight_parameters(layer, exclude_head=False)) == ["weight"]


def test_attention_projections_are_included() -> None:
    encoder = nn.TransformerEncoderLayer(8, 2, 16)
    net = nn.Sequential(encoder, nn.Linear(8, 3))
    expected = ["self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight"]
    assert list(weight_parameters(net)) == [f"0.{name}" for name in expected]
    assert as_matrix(weight_parameters(net)["0.self_attn.in_proj_weight"]).shape == (24, 8)
    other = nn.MultiheadAttention(8, 2, kdim=4, vdim=6)
    names = ["q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"]
    assert list(weight_parameters(other, exclude_head=False)) == names


def test_tied_parameters_appear_once() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    net[2].weight = net[0].weight
    assert list(weight_parameters(net)) == ["0.weight"]
    assert [list(g) for g in weight_groups(net)] == [["0.weight"]]
    net[4].weight = net[0].weight  # the head's weight is the encoder's: left alone
    with pytest.raises(InputError, match="exclude_head"):
        weight_parameters(net)
    shared = nn.Linear(4, 4)
    net = nn.Sequential(shared, nn.ReLU(), shared, nn.ReLU(), nn.Linear(4, 2))
    assert list(weight_parameters(net)) == ["0.weight"]


def test_groups_are_products_of_adjacent_linear_layers() -> None:
    net = relu_network((6, 5, 4, 3), rank=2, generator=torch.Generator().manual_seed(0))
    assert [list(g) for g in weight_groups(net)] == [["0.weight", "1.weight"], ["3.weight", "4.weight"]]
    assert len(weight_groups(net, exclude_head=False)) == 3
    nested = nn.Sequential(nn.Sequential(nn.Linear(3, 2), nn.Dropout()), nn.Identity(), nn.Linear(2, 4), nn.ReLU())
    assert [list(g) for g in weight_groups(nested, exclude_head=False)] == [["0.0.weight", "2.weight"]]
    # the head's whole map is left out, though weight_parameters leaves out its last factor only
    tail = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2), nn.Linear(2, 3))
    assert [list(g) for g in weight_groups(tail)] == [["0.weight"]]
    assert list(weight_parameters(tail)) == ["0.weight", "2.weight"]


def test_children_in_an_unknown_order_are_no_product() -> None:
    assert [list(g) for g in weight_groups(Branches())] == [["block.0.weight"], ["first.weight"], ["second.weight"]]

    class Backwards(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self[0](torch.relu(self[1](x)))

    net = Backwards(nn.Linear(3, 3), nn.Linear(3, 3))
    assert [len(g) for g in weight_groups(net, exclude_head=False)] == [1, 1]
    assert sequential_children(net) is None


def test_one_shared_activation_still_separates_layers() -> None:
    relu = nn.ReLU()
    net = nn.Sequential(nn.Linear(3, 3), relu, nn.Linear(3, 3), relu, nn.Linear(3, 3), relu, nn.Linear(3, 2))
    assert [list(g) for g in weight_groups(net)] == [["0.weight"], ["2.weight"], ["4.weight"]]


@pytest.mark.parametrize(
    "net",
    [nn.Sequential(nn.ReLU()), nn.Linear(2, 2), nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2)), 3],
    ids=["no weights", "only a head", "first convolution and head", "no module"],
)
def test_nothing_left_is_refused(net: object) -> None:
    for read in (weight_parameters, weight_groups):
        with pytest.raises(InputError, match="module"):
            read(net)  # type: ignore[arg-type]


def test_computed_and_lazy_weights_are_refused_by_name() -> None:
    parametrized = _chain()
    parametrizations.orthogonal(parametrized[2])
    with pytest.raises(UnsupportedLayerError, match=r"^2\.weight: got a weight computed"):
        weight_parameters(parametrized)
    pruned = _chain()
    prune.l1_unstructured(pruned[0], "weight", 0.5)
    with pytest.raises(UnsupportedLayerError, match=r"^0\.weight.*prune\.remove"):
        weight_groups(pruned)
    lazy = nn.Sequential(nn.LazyLinear(3), nn.ReLU(), nn.Linear(3, 2))
    with pytest.raises(UnsupportedLayerError, match="lazy"):
        weight_parameters(lazy)


def test_as_matrix_has_filters_as_rows_and_a_gradient() -> None:
    weight = torch.arange(24.0).reshape(2, 3, 2, 2).requires_grad_(True)
    matrix = as_matrix(weight)
    assert matrix.shape == (2, 12) and matrix[1].tolist() == list(range(12, 24))
    matrix[1].sum().backward()
    assert weight.grad is not None and weight.grad.sum(dim=(1, 2, 3)).tolist() == [0.0, 12.0]
    channels_last = weight.detach().to(memory_format=torch.channels_last)
    assert torch.equal(as_matrix(channels_last), matrix)
    for bad in (torch.zeros(3), torch.zeros(0, 3), torch.zeros(3, 0)):
        with pytest.raises(InputError, match="weight"):
            as_matrix(bad)


def test_guards_name_what_they_refuse() -> None:
    with pytest.raises(InputError, match=r"^0\.weight: got NaN"):
        check_finite("0.weight", torch.tensor([[1.0, float("inf")]]))
    with pytest.raises(InputError, match="got a list"):
        check_module([1.0])  # type: ignore[arg-type]


def test_a_shared_relu_separates_all_the_maps_that_it_stands_between():
    from certbound.compress.factorised import linear_groups

    relu = torch.nn.ReLU()
    net = torch.nn.Sequential(*(part for _ in range(3) for part in (torch.nn.Linear(2, 2), relu)))
    assert [len(group) for group in linear_groups(net)] == [1, 1, 1]
