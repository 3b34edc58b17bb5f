"""ε-pruning, uniform pruning: k against exact rationals, what is zeroed, what is counted, what is refused."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from module_state import assert_untouched, state
from torch import nn
from torch.nn.utils import parametrizations, prune

from certbound import compress
from certbound.compress import epsilon_prune, ratio_for_size, spectral_prune, uniform_prune
from certbound.errors import InputError, NumericalError, UnsupportedLayerError

EPSILONS = [0.0, 0.1, 0.25, 0.5, 0.9]
KINDS = ["rows", "spectral", "unstructured"]


def dense(*widths, seed=0, bias=True):
    """A ReLU network with weights and biases that are all nonzero."""
    layers = []
    generator = torch.Generator().manual_seed(seed)
    for n_in, n_out in pairwise(widths):
        layer = nn.Linear(n_in, n_out, bias=bias)
        for parameter in layer.parameters():
            parameter.data.normal_(generator=generator)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def layer_of(rows, bias=None, dtype=torch.float64):
    matrix = torch.tensor(rows, dtype=dtype)
    layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=bias is not None, dtype=dtype)
    layer.weight.data.copy_(matrix)
    if bias is not None:
        layer.bias.data.copy_(torch.tensor(bias, dtype=dtype))
    return layer


def convolutional():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 5), nn.ReLU(),
        nn.Linear(5, 3),
    )  # fmt: skip


def numbers(weight):
    """The weight as a float64 matrix."""
    return weight.detach().double().numpy().reshape(len(weight), -1)


def row_sizes(weight):
    return np.abs(numbers(weight)).sum(axis=1)


# -- the smallest k, in exact arithmetic ------------------------------------------------------------------------------


def exact_k(sizes, epsilon, q):
    """The smallest k >= 1 with τ_{q,k} <= ε, for integer sizes, ε as the float it is."""
    powers = sorted((Fraction(int(s)) ** q for s in sizes), reverse=True)
    target = Fraction(epsilon) ** q * sum(powers)
    return next(k for k in range(1, len(powers) + 1) if sum(powers[k:]) <= target)


integer_matrices = st.integers(1, 6).flatmap(
    lambda n: st.lists(st.lists(st.integers(-9, 9), min_size=n, max_size=n), min_size=1, max_size=8)
)
# powers of two and their sums: τ <= ε is then often an equality, and the float division exact
dyadic = st.integers(0, 63).map(lambda i: i / 64)


@settings(max_examples=150, deadline=None)
@given(rows=integer_matrices, epsilon=dyadic, q=st.sampled_from([1, 2]))
def test_k_is_the_smallest_rows(rows, epsilon, q):
    sizes = [sum(abs(v) for v in row) for row in rows]
    pruned = epsilon_prune(layer_of(rows), epsilon, q=q, exclude_head=False)
    assert pruned.layers[0].kept == exact_k(sizes, epsilon, q)


@settings(max_examples=100, deadline=None)
@given(rows=integer_matrices, epsilon=dyadic, q=st.sampled_from([1, 2]))
def test_k_is_the_smallest_entries(rows, epsilon, q):
    sizes = [abs(v) for row in rows for v in row]
    pruned = epsilon_prune(layer_of(rows), epsilon, q=q, by="unstructured", exclude_head=False)
    assert pruned.layers[0].kept == exact_k(sizes, epsilon, q)
    assert int(torch.count_nonzero(pruned.model.weight)) == min(
        exact_k(sizes, epsilon, q), sum(s > 0 for s in sizes)
    )


@settings(max_examples=100, deadline=None)
@given(diagonal=st.lists(st.integers(0, 9), min_size=1, max_size=8), epsilon=dyadic, q=st.sampled_from([1, 2]))
def test_k_is_the_smallest_rank(diagonal, epsilon, q):
    # the singular values of a diagonal matrix are its entries
    pruned = spectral_prune(layer_of(np.diag(diagonal).tolist()), epsilon, q=q, exclude_head=False)
    k = exact_k(diagonal, epsilon, q)
    assert pruned.layers[0].kept == k
    kept = np.sort(np.diag(numbers(pruned.model.weight)))[::-1]
    np.testing.assert_allclose(kept, (sorted(diagonal, reverse=True)[:k] + [0] * len(diagonal))[: len(diagonal)])


def test_by_hand():
    # row ℓ1 norms 6, 1, 3: τ_1 = 0.4 and τ_2 = 0.1 for q = 1; for q = 2 τ_1 = √(10/46) = 0.466, τ_2 = √(1/46) = 0.147
    layer = layer_of([[6.0, 0.0], [-1.0, 0.0], [2.0, -1.0]], bias=[1.0, 2.0, 3.0])
    for q, epsilon, kept in [(1, 0.41, 1), (1, 0.39, 2), (1, 0.09, 3), (2, 0.47, 1), (2, 0.4, 2), (2, 0.14, 3)]:
        assert epsilon_prune(layer, epsilon, q=q, exclude_head=False).layers[0].kept == kept
    pruned = epsilon_prune(layer, 0.2, exclude_head=False)
    assert pruned.model.weight.tolist() == [[6.0, 0.0], [0.0, 0.0], [2.0, -1.0]]
    assert pruned.model.bias.tolist() == [1.0, 0.0, 3.0]
    (record,) = pruned.layers
    assert record.tail == pytest.approx(0.1, abs=1e-15)
    assert record.beta == pytest.approx(0.5, abs=1e-15)  # 1 − 3/6
    assert (record.kept, record.total, record.shape, record.name) == (2, 3, (3, 2), "weight")
    assert (record.kept_parameters, record.total_parameters) == (6, 9)
    assert (pruned.kept_parameters, pruned.total_parameters, pruned.ratio) == (6, 9, pytest.approx(1 / 3))


# -- what the pruned model is -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("q", [1, 2])
@pytest.mark.parametrize("epsilon", EPSILONS)
def test_the_tail_removed_is_at_most_epsilon_and_one_less_is_more(epsilon, q):
    model = dense(7, 20, 20, 4)
    before = state(model)
    pruned = epsilon_prune(model, epsilon, q=q)
    assert_untouched(model, before)
    for i in (0, 2):
        old, new = row_sizes(model[i].weight), row_sizes(pruned.model[i].weight)
        removed = old - new
        assert np.linalg.norm(removed, q) <= epsilon * np.linalg.norm(old, q) * (1 + 1e-12)
        gone = new == 0
        smallest_kept = np.where(gone, np.inf, old).min()
        assert (removed[gone] <= smallest_kept).all()
        # one row more would be too many
        assert np.linalg.norm([*removed[gone], smallest_kept], q) > epsilon * np.linalg.norm(old, q)
        assert torch.equal(pruned.model[i].bias == 0, torch.from_numpy(gone))
        keep = ~torch.from_numpy(gone)
        assert torch.equal(pruned.model[i].weight[keep], model[i].weight[keep])
        assert torch.equal(pruned.model[i].bias[keep], model[i].bias[keep])
    assert torch.equal(pruned.model[4].weight, model[4].weight)
    assert torch.equal(pruned.model[4].bias, model[4].bias)


@pytest.mark.parametrize("q", [1, 2])
def test_the_spectral_tail_is_the_error(q):
    model = dense(7, 20, 20, 4)
    before = state(model)
    pruned = spectral_prune(model, 0.3, q=q)
    assert_untouched(model, before)
    for i, record in zip((0, 2), pruned.layers, strict=True):
        W, V = numbers(model[i].weight), numbers(pruned.model[i].weight)
        sigma = np.linalg.svd(W, compute_uv=False)
        k = record.kept
        tails = [np.linalg.norm(sigma[j:], q) / np.linalg.norm(sigma, q) for j in (k - 1, k)]
        assert tails[1] <= 0.3 < tails[0]
        assert record.tail == pytest.approx(tails[1], rel=1e-9)
        assert np.linalg.norm(W - V, 2) == pytest.approx(sigma[k], rel=1e-5)
        assert np.linalg.norm(W - V) == pytest.approx(np.linalg.norm(sigma[k:]), rel=1e-5)
        assert torch.equal(pruned.model[i].bias, model[i].bias)


def test_factorised_it_is_the_same_function_with_as_many_parameters_as_said():
    model = dense(30, 40, 40, 4)
    x = torch.randn(8, 30, generator=torch.Generator().manual_seed(1))
    whole, thin = spectral_prune(model, 0.5), spectral_prune(model, 0.5, factorise=True)
    torch.testing.assert_close(thin.model(x), whole.model(x), rtol=1e-4, atol=1e-4)
    assert sum(p.numel() for p in thin.model.parameters()) == thin.kept_parameters == whole.kept_parameters
    assert thin.kept_parameters < thin.total_parameters == sum(p.numel() for p in model.parameters())
    # where two factors would be larger, the layer stays one
    assert isinstance(spectral_prune(model, 0.0, factorise=True).model[0], nn.Linear)


def test_a_filter_is_a_row_and_the_first_convolution_stays():
    model = convolutional()
    pruned = epsilon_prune(model, 0.4)
    assert [layer.name for layer in pruned.layers] == ["2.weight", "5.weight"]
    assert [layer.shape for layer in pruned.layers] == [(6, 36), (5, 24)]
    assert torch.equal(pruned.model[0].weight, model[0].weight)
    gone = row_sizes(pruned.model[2].weight) == 0
    assert gone.sum() == 6 - pruned.layers[0].kept > 0
    x = torch.randn(2, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    maps = pruned.model[:3](x)
    assert not maps[:, torch.from_numpy(gone)].any()  # whole channels are 0, so the bias went too
    assert maps[:, torch.from_numpy(~gone)].abs().sum(dim=(0, 2, 3)).min() > 0


def test_attention_projections_lose_their_biases_too():
    torch.manual_seed(0)
    model = nn.ModuleDict({"mha": nn.MultiheadAttention(4, 2, kdim=3, vdim=5), "head": nn.Linear(4, 2)})
    model["mha"].in_proj_bias.data.uniform_(1, 2)
    model["mha"].out_proj.bias.data.uniform_(1, 2)
    pruned = uniform_prune(model, 0.5)
    names = ["mha.q_proj_weight", "mha.k_proj_weight", "mha.v_proj_weight", "mha.out_proj.weight"]
    assert sorted(layer.name for layer in pruned.layers) == sorted(names)
    attention = pruned.model["mha"]
    gone = [row_sizes(getattr(attention, f"{p}_proj_weight")) == 0 for p in "qkv"]
    assert [int(g.sum()) for g in gone] == [2, 2, 2]
    assert np.array_equal(attention.in_proj_bias.detach().numpy() == 0, np.concatenate(gone))
    one = nn.ModuleDict({"mha": nn.MultiheadAttention(4, 2), "head": nn.Linear(4, 2)})
    one["mha"].in_proj_bias.data.fill_(1.0)
    attention = uniform_prune(one, 0.5).model["mha"]
    assert np.array_equal(row_sizes(attention.in_proj_weight) == 0, attention.in_proj_bias.detach().numpy() == 0)


def test_tied_weights_are_pruned_once_and_all_their_biases():
    first, second, head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
    second.weight = first.weight
    first.bias.data.fill_(1.0)
    second.bias.data.fill_(2.0)
    model = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), head)
    pruned = uniform_prune(model, 0.5)
    (record,) = pruned.layers
    assert (record.kept, record.kept_parameters, record.total_parameters) == (2, 12, 24)
    gone = row_sizes(pruned.model[0].weight) == 0
    assert gone.sum() == 2
    for i in (0, 2):
        assert np.array_equal(pruned.model[i].bias.detach().numpy() == 0, gone)
    assert pruned.model[0].weight is pruned.model[2].weight


@pytest.mark.parametrize("method", [epsilon_prune, spectral_prune])
def test_zero_layer_keeps_one(method):
    model = dense(3, 4, 2)
    model[0].weight.data.zero_()
    (record,) = method(model, 0.0).layers
    assert (record.kept, record.tail, record.beta) == (1, 0.0, 0.0)
    assert not method(model, 0.0).model[0].weight.any()


def test_rank_one():
    u, v = [1.0, -2.0, 4.0], [1.0, 0.5]
    layer = layer_of(np.outer(u, v).tolist())
    (record,) = spectral_prune(layer, 1e-12, exclude_head=False).layers
    assert record.kept == 1
    assert record.tail < 1e-14
    # rows have the norms 1.5, 3, 6 of 10.5
    assert epsilon_prune(layer, 0.43, exclude_head=False).layers[0].kept == 1
    assert epsilon_prune(layer, 0.42, exclude_head=False).layers[0].kept == 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_stay(dtype):
    model = dense(6, 8, 3).to(dtype)
    before = state(model)
    for pruned in (
        epsilon_prune(model, 0.3),
        spectral_prune(model, 0.3),
        spectral_prune(model, 0.6, factorise=True),
        uniform_prune(model, 0.5, kind="unstructured"),
    ):
        assert {p.dtype for p in pruned.model.parameters()} == {dtype}
    assert_untouched(model, before)
    old, new = row_sizes(model[0].weight), row_sizes(epsilon_prune(model, 0.3).model[0].weight)
    assert 0 < (old - new).sum() <= 0.3 * old.sum()


def test_extreme_scales():
    rows = [[3.0, 0.0], [0.0, 1.0]]
    for scale in (1e-300, 1.0, 1e308 / 4):
        layer = layer_of((np.array(rows) * scale).tolist())
        for method in (epsilon_prune, spectral_prune):
            pruned = method(layer, 0.3, exclude_head=False)
            assert pruned.layers[0].kept == 1
            np.testing.assert_allclose(numbers(pruned.model.weight), np.array([[3, 0], [0, 0]]) * scale, rtol=1e-14)
    # a sum of rows that float64 cannot hold
    layer = layer_of([[1.5e308, 1.5e308], [1e308, 0.0]])
    assert epsilon_prune(layer, 0.26, exclude_head=False).layers[0].kept == 1
    assert epsilon_prune(layer, 0.24, exclude_head=False).layers[0].kept == 2
    assert uniform_prune(layer, 0.5, scope="global", exclude_head=False).model.weight[0].tolist() == [1.5e308, 1.5e308]


def test_a_truncation_beyond_the_dtype_is_refused():
    # the best rank-one approximation has a corner of 70249, float16 ends at 65504
    layer = layer_of([[6e4, 6e4], [6e4, 0.0]], dtype=torch.float16)
    before = state(layer)
    with pytest.raises(InputError, match=r"weight: got numbers beyond the range of torch.float16"):
        spectral_prune(layer, 0.5, exclude_head=False)
    assert_untouched(layer, before)


def test_equal_rows_keep_the_first():
    layer = layer_of([[1.0], [1.0], [1.0], [1.0]])
    assert epsilon_prune(layer, 0.5, exclude_head=False).model.weight.ravel().tolist() == [1.0, 1.0, 0.0, 0.0]


# -- one ratio --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_uniform_counts(kind):
    model = dense(6, 10, 5, 3)
    totals = {"rows": (10, 5), "spectral": (6, 5), "unstructured": (60, 50)}[kind]
    for ratio in (0.0, 0.3, 0.29, 0.5, 0.77, 0.999):
        pruned = uniform_prune(model, ratio, kind=kind)
        assert [layer.total for layer in pruned.layers] == list(totals)
        # the nearest number of units, half to even, and one at least
        expected = [max(1, d - round(Fraction(ratio).limit_denominator(1000) * d)) for d in totals]
        assert [layer.kept for layer in pruned.layers] == expected
        assert torch.equal(pruned.model[4].weight, model[4].weight)
        for i, k in zip((0, 2), expected, strict=True):
            W = numbers(pruned.model[i].weight)
            found = {
                "rows": (row_sizes(pruned.model[i].weight) > 0).sum(),
                "spectral": np.linalg.matrix_rank(W, tol=1e-5),
                "unstructured": np.count_nonzero(W),
            }[kind]
            assert found == k
        if ratio == 0.0:
            assert_untouched(pruned.model, state(model))


def test_unstructured_by_hand():
    model = nn.Sequential(layer_of([[1.0, -5.0], [2.0, -3.0]], bias=[0.1, 0.2]), nn.ReLU(), layer_of([[1.0, 1.0]]))
    pruned = uniform_prune(model, 0.5, kind="unstructured")
    assert pruned.model[0].weight.tolist() == [[0.0, -5.0], [0.0, -3.0]]
    assert pruned.model[0].bias.tolist() == [0.1, 0.2]
    (record,) = pruned.layers
    assert record.tail == pytest.approx(3 / 11)
    assert (record.kept, record.kept_parameters, pruned.kept_parameters) == (2, 4, 6)


@pytest.mark.parametrize("kind", KINDS)
def test_one_threshold_collapses_a_layer_and_epsilon_does_not(kind):
    model = dense(6, 10, 10, 3)
    model[2].weight.data.mul_(1e-3)  # a layer that is smaller, and matters as much
    model[4].weight.data.mul_(1e3)
    everywhere = uniform_prune(model, 0.7, kind=kind, scope="global")
    assert everywhere.layers[1].collapsed
    assert everywhere.layers[1].kept == 0
    assert everywhere.layers[1].tail == 1.0
    assert not everywhere.model[2].weight.any()
    units = [layer.total for layer in everywhere.layers]
    assert sum(layer.kept for layer in everywhere.layers) == sum(units) - round(0.7 * sum(units))
    assert "nothing is left of 2.weight" in str(everywhere)
    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
    assert everywhere.model(x).std(dim=0).max() == 0.0  # the network is constant

    for epsilon in (0.5, 0.9, 0.999):
        pruned = epsilon_prune(model, epsilon, by=kind)
        assert not any(layer.collapsed for layer in pruned.layers)
        assert all(pruned.model[i].weight.any() for i in (0, 2))
    assert "nothing is left" not in str(pruned)
    assert not any(layer.collapsed for layer in uniform_prune(model, 0.999, kind=kind).layers)


def test_one_threshold_by_hand():
    # row norms 5, 1 and 4, 3 and 2: of five, round(0.6 · 5) = 3 go
    first, second = layer_of([[5.0], [1.0]]), layer_of([[4.0, 0.0], [0.0, -3.0], [2.0, 0.0]])
    pruned = uniform_prune(nn.Sequential(first, nn.ReLU(), second), 0.6, scope="global", exclude_head=False)
    assert pruned.model[0].weight.tolist() == [[5.0], [0.0]]
    assert pruned.model[2].weight.tolist() == [[4.0, 0.0], [0.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("kind", KINDS)
def test_ratio_of_a_size_is_the_nearest_there_is(kind, scope):
    model = dense(5, 7, 4, 3)

    def size(ratio):
        return uniform_prune(model, ratio, kind=kind, scope=scope).kept_parameters

    sizes = sorted({size(r) for r in [*(i / 300 for i in range(300)), math.nextafter(1.0, 0.0)]})
    assert len(sizes) >= 5
    for wanted in range(sizes[0], sizes[-1] + 1):
        found = size(ratio_for_size(model, wanted, kind=kind, scope=scope))
        assert abs(found - wanted) == min(abs(s - wanted) for s in sizes)
    assert ratio_for_size(model, sizes[-1], kind=kind, scope=scope) == 0.0
    for wanted in (sizes[0] - 1, sizes[-1] + 1, 0, 1.5, True):
        with pytest.raises(InputError, match="kept_parameters"):
            ratio_for_size(model, wanted, kind=kind, scope=scope)


def test_equal_size_as_epsilon_pruning():
    model = dense(20, 64, 64, 5)
    pruned = epsilon_prune(model, 0.4)
    ratio = ratio_for_size(model, pruned.kept_parameters)
    uniform = uniform_prune(model, ratio)
    # one step removes a row of 21 and one of 65 parameters
    assert abs(uniform.kept_parameters - pruned.kept_parameters) <= (21 + 65) / 2


# -- records ----------------------------------------------------------------------------------------------------------


def test_records_print_and_are_json():
    pruned = epsilon_prune(dense(6, 10, 5, 3), 0.3)
    data = json.loads(json.dumps(pruned.to_dict(), allow_nan=False))
    assert data["schema_version"] == 1
    assert data["kept_parameters"] == pruned.kept_parameters
    assert [layer["name"] for layer in data["layers"]] == ["0.weight", "2.weight"]
    assert data["layers"][0]["kept"] == pruned.layers[0].kept
    assert str(pruned).startswith(f"epsilon 0.3, rows: {pruned.kept_parameters} of {pruned.total_parameters} parameter")
    assert "2.weight" in str(pruned)
    with pytest.raises(AttributeError):
        pruned.q = 2


def test_the_copy_keeps_mode_and_gradients():
    model = dense(4, 6, 2).eval()
    model[0].weight.requires_grad_(False)
    for pruned in (epsilon_prune(model, 0.3), spectral_prune(model, 0.9, factorise=True)):
        assert not pruned.model.training
        assert not any(part.training for part in pruned.model.modules())
        assert pruned.model[2].weight.requires_grad
    assert not any(p.requires_grad for n, p in pruned.model[0].named_parameters() if n.endswith("weight"))


# -- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [-0.1, 1.0, 1.5, math.nan, math.inf, True, "0.1", None])
def test_fractions_are_checked(value):
    model = dense(3, 4, 2)
    for call, name in (
        (lambda: epsilon_prune(model, value), "epsilon"),
        (lambda: spectral_prune(model, value), "epsilon"),
        (lambda: uniform_prune(model, value), "ratio"),
    ):
        with pytest.raises(InputError) as caught:
            call()
        assert caught.value.argument == name


def test_words_are_checked():
    model = dense(3, 4, 2)
    for q in (0, 3, 1.5, "1", True, None):
        for method in (epsilon_prune, spectral_prune):
            with pytest.raises(InputError, match=r"^q: "):
                method(model, 0.1, q=q)
    with pytest.raises(InputError, match=r"^by: "):
        epsilon_prune(model, 0.1, by="columns")
    with pytest.raises(InputError, match=r"^kind: "):
        uniform_prune(model, 0.1, kind="columns")
    with pytest.raises(InputError, match=r"^scope: "):
        uniform_prune(model, 0.1, scope="model")


@pytest.mark.parametrize("model", [nn.Linear(3, 2), nn.ReLU(), "model", None], ids=repr)
def test_nothing_to_compress(model):
    for call in (epsilon_prune, spectral_prune, uniform_prune):
        with pytest.raises(InputError):
            call(model, 0.1)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_not_finite(bad):
    model = dense(3, 4, 2)
    model[0].weight.data[1, 1] = bad
    for call in (epsilon_prune, spectral_prune, uniform_prune):
        with pytest.raises(InputError, match=r"0\.weight: got (nan|inf)"):
            call(model, 0.1)


def test_computed_weights_are_refused():
    model = dense(3, 4, 2)
    masked = copy.deepcopy(model)
    prune.l1_unstructured(masked[0], "weight", 0.5)
    normed = copy.deepcopy(model)
    parametrizations.weight_norm(normed[0])
    for computed in (masked, normed):
        with pytest.raises(UnsupportedLayerError, match=r"0\.weight"):
            epsilon_prune(computed, 0.1)


def test_an_svd_that_fails_is_named(monkeypatch):
    def fails(*_, **__):
        raise np.linalg.LinAlgError("no convergence")

    monkeypatch.setattr(np.linalg, "svd", fails)
    with pytest.raises(NumericalError, match=r"0\.weight: the SVD did not converge"):
        spectral_prune(dense(3, 4, 2), 0.1)


def test_layers_that_cannot_be_two():
    grouped = nn.Sequential(nn.Conv1d(1, 4, 1), nn.Conv1d(4, 8, 3, groups=2), nn.Flatten(), nn.Linear(8, 2))
    transformer = nn.TransformerEncoderLayer(4, 2, dim_feedforward=64, batch_first=True)
    hooked = dense(9, 9, 2)
    hooked[0].register_forward_hook(lambda *_: None)
    tied = dense(9, 9, 9, 2)
    tied[2].weight = tied[0].weight
    for model in (grouped, transformer, hooked, tied):
        before = state(model)
        with pytest.raises(UnsupportedLayerError, match="factorise=False"):
            spectral_prune(model, 0.9, factorise=True)
        assert_untouched(model, before)
        assert spectral_prune(model, 0.9).kept_parameters > 0


# -- the package ------------------------------------------------------------------------------------------------------


def test_public_names():
    assert set(compress.__all__) == set(compress._HOME_OF)
    for name in compress.__all__:
        assert getattr(compress, name) is not None
        assert name in dir(compress)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = compress.nonsense


def test_import_is_light_and_modules_do_not_shadow_functions():
    code = (
        "import sys, certbound.compress as c; print('torch' in sys.modules)\n"
        "import pkgutil; names = {m.name for m in pkgutil.iter_modules(c.__path__)}\n"
        "for name in names: __import__(f'certbound.compress.{name}')\n"
        "print(sorted(names & set(c.__all__)), callable(c.low_rank), callable(c.train), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.split("\n")[:2] == ["False", "[] True True False"], done.stderr
