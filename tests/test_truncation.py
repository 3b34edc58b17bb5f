"""low_rank, random_rank, scale_weights: Eckart–Young, exact ranks, exact scaling, what is refused."""

from __future__ import annotations

import copy
import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from module_state import assert_untouched, state
from torch import nn
from torch.nn.utils import parametrizations

from certbound.compress import linear_maps, low_rank, random_rank, relu_network, scale_weights
from certbound.compress.factorised import replace_by_pair
from certbound.errors import InputError, UnsupportedLayerError

METHODS = [low_rank, lambda model, rank, **k: random_rank(model, rank, seed=0, **k)]


def dense(*widths, seed=0, bias=True, dtype=torch.float64):
    layers = []
    generator = torch.Generator().manual_seed(seed)
    for n_in, n_out in pairwise(widths):
        layer = nn.Linear(n_in, n_out, bias=bias, dtype=dtype)
        for parameter in layer.parameters():
            parameter.data.normal_(generator=generator)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def convolutional(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), nn.ReLU(), nn.Conv2d(4, 6, 3, stride=2, padding=1, dilation=2), nn.LeakyReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(24, 5), nn.ReLU(), nn.Linear(5, 3),
    ).to(dtype)  # fmt: skip


def inputs(*shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7), dtype=dtype)


def maps(model):
    return [w.detach().numpy() for w in linear_maps(model)]


# -- low rank ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 2, 5, 7])
def test_it_is_the_best_approximation(rank):
    model = dense(7, 12, 9, 4)
    before = state(model)
    thin = low_rank(model, rank)
    assert_untouched(model, before)
    for W, V in zip(maps(model)[:-1], maps(thin.model)[:-1], strict=True):
        u, s, vt = np.linalg.svd(W, full_matrices=False)
        np.testing.assert_allclose(V, (u[:, :rank] * s[:rank]) @ vt[:rank], atol=1e-12)
        assert np.linalg.matrix_rank(V) == rank
        if rank < len(s):  # Eckart & Young: the errors that no matrix of this rank undercuts
            assert np.linalg.norm(W - V, 2) == pytest.approx(s[rank], rel=1e-10)
            assert np.linalg.norm(W - V) == pytest.approx(np.linalg.norm(s[rank:]), rel=1e-10)
    np.testing.assert_array_equal(maps(model)[-1], maps(thin.model)[-1])
    assert [record.kept for record in thin.layers] == [rank, rank]
    for record, W in zip(thin.layers, maps(model), strict=False):
        s = np.linalg.svd(W, compute_uv=False)
        assert record.tail == pytest.approx(s[rank:].sum() / s.sum(), abs=1e-14)
        assert record.beta == pytest.approx(1 - s[rank - 1] / s[0], abs=1e-14)


@pytest.mark.parametrize("method", METHODS, ids=["low_rank", "random_rank"])
def test_full_rank_reproduces_the_outputs(method):
    model, x = dense(7, 12, 9, 4), inputs(20, 7)
    thin = method(model, 9)
    assert [record.kept for record in thin.layers] == [7, 9]
    assert [type(part) for part in thin.model] == [nn.Sequential, nn.ReLU, nn.Sequential, nn.ReLU, nn.Linear]
    torch.testing.assert_close(thin.model(x), model(x), rtol=1e-11, atol=1e-11)
    assert torch.equal(method(model, 9, factorise=False).model(x), model(x))


@pytest.mark.parametrize("method", METHODS, ids=["low_rank", "random_rank"])
def test_factors_and_product_are_one_function_and_counted(method):
    model, x = dense(30, 40, 9, 4), inputs(20, 30)
    thin, whole = method(model, 3), method(model, 3, factorise=False)
    torch.testing.assert_close(thin.model(x), whole.model(x), rtol=1e-10, atol=1e-10)
    assert sum(p.numel() for p in thin.model.parameters()) == thin.kept_parameters == whole.kept_parameters
    assert thin.total_parameters == sum(p.numel() for p in model.parameters())
    assert [tuple(part.weight.shape) for part in thin.model[0]] == [(3, 30), (40, 3)]
    assert thin.model[0][0].bias is None
    assert torch.equal(thin.model[0][1].bias, model[0].bias)
    assert {n: tuple(v.shape) for n, v in whole.model.state_dict().items()} == {
        n: tuple(v.shape) for n, v in model.state_dict().items()
    }
    # at full rank two factors are more than one matrix, and it says so
    assert method(model, 30).ratio < 0 <= method(model, 30, factorise=False).ratio


@pytest.mark.parametrize("method", METHODS, ids=["low_rank", "random_rank"])
@pytest.mark.parametrize("factorise", [True, False])
def test_convolutions(method, factorise):
    model, x = convolutional(), inputs(3, 1, 12, 12)
    full = method(model, 6, factorise=factorise)
    assert [record.name for record in full.layers] == ["2.weight", "6.weight"]
    torch.testing.assert_close(full.model(x), model(x), rtol=1e-10, atol=1e-10)
    thin = method(model, 2, factorise=factorise)
    if factorise:
        assert [type(part) for part in thin.model[2]] == [nn.Conv2d, nn.Conv2d]
        assert tuple(thin.model[2][1].weight.shape) == (6, 2, 1, 1)
        kernel = torch.einsum("or,rihw->oihw", thin.model[2][1].weight[:, :, 0, 0], thin.model[2][0].weight)
    else:
        kernel = thin.model[2].weight
    assert np.linalg.matrix_rank(kernel.detach().reshape(6, -1).numpy(), tol=1e-10) == 2
    direct = nn.functional.conv2d(inputs(3, 4, 10, 10), kernel, model[2].bias, stride=2, padding=1, dilation=2)
    torch.testing.assert_close(thin.model[2](inputs(3, 4, 10, 10)), direct)


def test_rank_one_and_zero_layers():
    model = dense(4, 4, 4, 2)
    model[0].weight.data.zero_()
    model[2].weight.data.copy_(torch.outer(torch.arange(1.0, 5.0), torch.tensor([1.0, -1.0, 2.0, 0.5])))
    thin = low_rank(model, 1)
    torch.testing.assert_close(thin.model(inputs(5, 4)), model(inputs(5, 4)))
    assert [record.tail for record in thin.layers] == [0.0, pytest.approx(0.0, abs=1e-15)]
    assert not maps(random_rank(model, 2, seed=0).model)[0].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("method", METHODS, ids=["low_rank", "random_rank"])
def test_dtypes_stay(method, dtype):
    model = dense(6, 8, 3, dtype=dtype)
    for factorise in (True, False):
        made = method(model, 2, factorise=factorise).model
        assert {p.dtype for p in made.parameters()} == {dtype}
    u, s, vt = np.linalg.svd(model[0].weight.detach().double().numpy(), full_matrices=False)
    whole = low_rank(model, 2, factorise=False).model[0].weight.detach().double().numpy()
    np.testing.assert_allclose(whole, (u[:, :2] * s[:2]) @ vt[:2], atol=4 * torch.finfo(dtype).eps)


def test_huge_and_tiny_weights():
    for scale in (1e-300, 1e300):
        model = dense(4, 5, 2)
        model[0].weight.data.mul_(scale)
        u, s, vt = np.linalg.svd(model[0].weight.detach().numpy() / scale, full_matrices=False)
        found = maps(low_rank(model, 2).model)[0]
        np.testing.assert_allclose(found / scale, (u[:, :2] * s[:2]) @ vt[:2], rtol=1e-10)


def test_the_head_on_request_and_a_layer_by_itself():
    model, layer = dense(5, 6, 4), dense(5, 4)[0]
    assert [r.name for r in low_rank(model, 2, exclude_head=False).layers] == ["0.weight", "2.weight"]
    alone = low_rank(layer, 2, exclude_head=False)
    assert isinstance(alone.model, nn.Sequential)
    assert np.linalg.matrix_rank((alone.model[1].weight @ alone.model[0].weight).detach().numpy()) == 2


def test_a_layer_used_twice_is_replaced_at_both_places():
    square = dense(4, 4)[0]
    model = nn.Sequential(square, nn.ReLU(), square, nn.ReLU(), dense(4, 2)[0])
    thin = low_rank(model, 2)
    assert thin.model[0] is thin.model[2]
    assert isinstance(thin.model[0], nn.Sequential)
    assert thin.kept_parameters == sum(p.numel() for p in thin.model.parameters()) == 4 * 2 * 2 + 4 + 10
    assert model[0] is square


def test_records_are_json():
    for thin in (low_rank(dense(5, 6, 4), 2), random_rank(dense(5, 6, 4), 2, seed=1)):
        data = json.loads(json.dumps(thin.to_dict(), allow_nan=False))
        assert data["layers"][0]["kept"] == 2
        assert data["method"] == thin.method
        assert str(thin).splitlines()[2].split()[:4] == ["0.weight", "6x5", "2", "5"]


# -- a random subspace ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 3, 6])
@pytest.mark.parametrize("widths", [(6, 10, 2), (10, 6, 2)])
def test_random_rank_is_a_projection_of_exactly_that_rank(rank, widths):
    model = dense(*widths)
    before = state(model)
    V, W = maps(random_rank(model, rank, seed=3).model)[0], maps(model)[0]
    assert_untouched(model, before)
    s = np.linalg.svd(V, compute_uv=False)
    assert (s > 1e-8).sum() == rank
    assert s[rank:].max(initial=0.0) < 1e-14 * s[0] * 10
    # V = P W or W P with P orthogonal: ‖W‖² = ‖V‖² + ‖W − V‖², and P V = V
    assert np.sum(W**2) == pytest.approx(np.sum(V**2) + np.sum((W - V) ** 2), rel=1e-12)
    P = V @ np.linalg.pinv(W) if widths[0] > widths[1] else np.linalg.pinv(W) @ V
    np.testing.assert_allclose(P, P.T, atol=1e-10)
    np.testing.assert_allclose(P @ P, P, atol=1e-10)


def test_seeds():
    model = dense(6, 8, 8, 2)
    torch.manual_seed(0)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002  # is it left alone?
    first, again, other = (maps(random_rank(model, 2, seed=s).model) for s in (5, 5, 6))
    low_rank(model, 2)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002  # as above
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.allclose(first[0], other[0])
    same = nn.Sequential(model[2], nn.ReLU(), copy.deepcopy(model[2]), nn.ReLU(), model[4])
    one, two, _ = maps(random_rank(same, 2, seed=0).model)
    assert not np.allclose(one, two)  # each layer draws a subspace of its own


def test_random_rank_is_no_better_than_low_rank():
    model = dense(20, 20, 2)
    W = maps(model)[0]
    best = np.linalg.norm(W - maps(low_rank(model, 5).model)[0])
    errors = [np.linalg.norm(W - maps(random_rank(model, 5, seed=s).model)[0]) for s in range(20)]
    assert min(errors) > best
    # E‖W − PW‖² = (1 − r/m)‖W‖² for a uniform subspace
    assert np.mean(np.square(errors)) == pytest.approx(0.75 * np.sum(W**2), rel=0.05)


# -- scale ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [8.0, 2.0, 0.5, 1.0])
@pytest.mark.parametrize("bias", [True, False])
def test_logits_are_scaled_exactly_for_powers_of_two(factor, bias):
    model, x = dense(6, 8, 8, 8, 3, bias=bias), inputs(50, 6)
    before = state(model)
    scaled = scale_weights(model, factor)
    assert_untouched(model, before)
    assert torch.equal(scaled(x), factor**3 * model(x))  # three layers before the head
    for i in (0, 2, 4):
        assert torch.equal(scaled[i].weight, factor * model[i].weight)
    assert torch.equal(scaled[6].weight, model[6].weight)
    if bias:
        for power, i in enumerate((0, 2, 4), start=1):
            assert torch.equal(scaled[i].bias, factor**power * model[i].bias)
        assert torch.equal(scaled[6].bias, factor**3 * model[6].bias)


@pytest.mark.parametrize("factor", [3.0, 1.1, 0.3, 7, np.float64(2.5)])
def test_other_factors_up_to_rounding(factor):
    model, x = dense(6, 8, 8, 3), inputs(200, 6)
    scaled = scale_weights(model, factor)
    torch.testing.assert_close(scaled(x), float(factor) ** 2 * model(x), rtol=1e-12, atol=1e-12)
    assert torch.equal(scaled(x).argmax(1), model(x).argmax(1))
    for i in (0, 2):
        assert scaled[i].weight.norm().item() == pytest.approx(float(factor) * model[i].weight.norm().item())


def test_scaling_every_homogeneous_layer():
    model, x = convolutional(), inputs(3, 1, 12, 12)
    assert torch.equal(scale_weights(model, 4.0)(x), 4.0**3 * model(x))
    nested = nn.Sequential(
        nn.Tanh(),  # before the first weight nothing is scaled yet
        nn.Sequential(nn.Linear(6, 5), nn.PReLU(), nn.Dropout(0.5)),
        nn.Linear(5, 4),
        nn.AvgPool1d(2),
        nn.Linear(2, 3),
    ).double().eval()  # fmt: skip
    assert torch.equal(scale_weights(nested, 2.0)(inputs(9, 6)), 4.0 * nested(inputs(9, 6)))


def test_two_factors_are_one_matrix():
    model = relu_network((6, 8, 8, 3), rank=2, generator=torch.Generator().manual_seed(0)).double()
    for p in model.parameters():
        p.data.add_(0.1)
    x = inputs(30, 6)
    scaled = scale_weights(model, 2.0)
    assert torch.equal(scaled(x), 4.0 * model(x))
    for new, old, factor in zip(maps(scaled), maps(model), (2, 2, 1), strict=True):
        np.testing.assert_array_equal(new, factor * old)
    # a bias inside the pair comes after the layers before it only
    inner = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2), nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2))
    assert torch.equal(scale_weights(inner, 2.0)(x[:, :3].float()), 4.0 * inner(x[:, :3].float()))


# -- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [0, -1, 6, 1.5, True, "2", None, math.nan])
@pytest.mark.parametrize("method", METHODS, ids=["low_rank", "random_rank"])
def test_ranks_are_checked(method, rank):
    with pytest.raises(InputError, match=r"^rank: "):
        method(dense(5, 7, 5, 2), rank)  # the largest is 5


@pytest.mark.parametrize("seed", [-1, 1.5, "0", None, True])
def test_seeds_are_checked(seed):
    with pytest.raises(InputError, match=r"^seed: "):
        random_rank(dense(5, 7, 2), 2, seed=seed)


@pytest.mark.parametrize("factor", [0.0, -1.0, math.nan, math.inf, "2", None, True, 1j])
def test_factors_are_checked(factor):
    with pytest.raises(InputError, match=r"^factor: .* a finite number > 0"):
        scale_weights(dense(5, 7, 2), factor)


@pytest.mark.parametrize("method", [lambda m: low_rank(m, 1), lambda m: random_rank(m, 1, seed=0),
                                    lambda m: scale_weights(m, 2.0)])  # fmt: skip
@pytest.mark.parametrize("model", [nn.Linear(3, 2), nn.Sequential(nn.ReLU()), "model", None], ids=repr)
def test_nothing_to_change(method, model):
    with pytest.raises(InputError, match=r"^(module|model): "):
        method(model)


def test_weights_that_are_not_finite():
    model = dense(3, 4, 2)
    model[0].weight.data[1, 1] = math.nan
    for call in (lambda: low_rank(model, 1), lambda: random_rank(model, 1, seed=0), lambda: scale_weights(model, 2.0)):
        with pytest.raises(InputError, match=r"0\.weight: got nan"):
            call()


def test_layers_that_are_not_homogeneous_are_refused():
    for layer in (nn.Tanh(), nn.Sigmoid(), nn.ReLU6(), nn.BatchNorm1d(4), nn.LayerNorm(4), nn.Softmax(1), nn.GELU()):
        with pytest.raises(UnsupportedLayerError, match=rf"1: got a {type(layer).__name__}"):
            scale_weights(nn.Sequential(nn.Linear(3, 4), layer, nn.Linear(4, 2)), 2.0)
    with pytest.raises(UnsupportedLayerError, match="0: got a BatchNorm1d"):  # its parameters would stay behind
        scale_weights(nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), 2.0)

    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.head = nn.Linear(3, 3), nn.Linear(3, 2)

    with pytest.raises(UnsupportedLayerError, match="model: got a Other"):
        scale_weights(Other(), 2.0)


def test_shared_and_computed_weights_are_refused():
    square = nn.Linear(4, 4)
    with pytest.raises(UnsupportedLayerError, match="2: got a layer that is used twice"):
        scale_weights(nn.Sequential(square, nn.ReLU(), square, nn.ReLU(), nn.Linear(4, 2)), 2.0)
    tied = dense(4, 4, 4, 2)
    tied[2].bias = tied[0].bias
    with pytest.raises(UnsupportedLayerError, match="used twice"):
        scale_weights(tied, 2.0)
    bare = dense(4, 4, 4, 2, bias=False)
    bare[2].weight = bare[0].weight
    with pytest.raises(UnsupportedLayerError, match="used twice"):
        scale_weights(bare, 2.0)
    normed = dense(4, 4, 2)
    parametrizations.weight_norm(normed[0])
    for call in (lambda: scale_weights(normed, 2.0), lambda: low_rank(normed, 1)):
        with pytest.raises(UnsupportedLayerError, match=r"0\.weight"):
            call()


def test_scales_beyond_the_dtype_are_refused():
    model = dense(3, 4, 4, 2, dtype=torch.float32)
    before = state(model)
    for factor, word in ((1e30, "range"), (1e200, "range"), (1e-30, "range"), (1e-200, "range")):
        with pytest.raises(InputError, match=word):
            scale_weights(model, factor)
    assert_untouched(model, before)


def test_pairs_fit_the_layer():
    model = dense(3, 4, 2)
    made = replace_by_pair(model, "0.weight", np.ones((4, 1)), np.ones((1, 3)))
    assert made is model
    np.testing.assert_array_equal(maps(model)[0], np.ones((4, 3)))
    half = dense(3, 4, 2, dtype=torch.float16)
    with pytest.raises(InputError, match=r"0\.weight: got numbers beyond the range"):
        replace_by_pair(half, "0.weight", np.full((4, 1), 1e5), np.ones((1, 3)))
    assert isinstance(half[0], nn.Linear)
    bare = replace_by_pair(dense(3, 4, bias=False), "0.weight", np.ones((4, 1)), np.ones((1, 3)))
    assert len(list(bare.parameters())) == 2


def test_a_layer_whose_weight_is_read_by_its_parent_is_not_replaced():
    layer = nn.TransformerEncoderLayer(4, 2, dim_feedforward=8, batch_first=True)
    for name, word in [
        ("linear1.weight", "a layer of a TransformerEncoderLayer"),
        ("self_attn.out_proj.weight", "the weight of a NonDynamicallyQuantizableLinear"),
        ("self_attn.in_proj_weight", "the in_proj_weight of a MultiheadAttention"),
    ]:
        rows = layer.get_parameter(name).shape[0]
        with pytest.raises(UnsupportedLayerError, match=word):
            replace_by_pair(layer, name, np.ones((rows, 1)), np.ones((1, 4)))
    inside = nn.ModuleDict({"a": nn.ModuleList([nn.Linear(4, 4)]), "head": nn.Linear(4, 2)})
    assert isinstance(low_rank(inside, 1).model["a"][0], nn.Sequential)
