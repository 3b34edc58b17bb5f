"""Alignment factors are valid for every truncation, the remainder is needed, and the best cover is the best."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from budget import matrix_settings, network_settings
from hypothesis import given, settings
from hypothesis import strategies as st

from certbound.errors import InputError
from certbound.lipschitz.alignment import (
    AlignmentPair,
    alignment_pair,
    best_cover,
    cover_bound,
    lipschitz_alignment,
    truncate,
)
from certbound.lipschitz.patterns import pattern_maximum
from certbound.lipschitz.product import lipschitz_product
from certbound.norms.dense import induced_norm
from certbound.testing.strategies import compressible_matrices, relu_networks
from certbound.types import Quantity, Sense, Status

both_norms = pytest.mark.parametrize("norm", [2.0, math.inf])
pair_settings = settings(max_examples=4 * network_settings.max_examples)
KINDS = ["integer", "low-rank", "row-sparse", "orthogonal", "power-law", "rank-one", "one-row"]


@st.composite
def pairs(draw, max_hidden=4):
    B, A = (draw(compressible_matrices(max_side=4, kinds=KINDS)) for _ in range(2))
    h = min(B.shape[1], A.shape[0], max_hidden)
    return B[:, :h], A[:h]


def brute(B, A, norm):
    every = itertools.product((0.0, 1.0), repeat=A.shape[0])
    return max(float(np.linalg.norm((B * np.array(d)) @ A, 2 if norm == 2 else np.inf)) for d in every)


# -- one pair --------------------------------------------------------------------------------------------


@both_norms
@pair_settings
@given(pair=pairs(), max_patterns=st.sampled_from([1, 4, 2**20]))
def test_alignment_is_an_upper_bound_for_every_k(norm, pair, max_patterns):
    B, A = pair
    true = brute(B, A, norm)
    nb, na = induced_norm(B, norm), induced_norm(A, norm)
    for k in [None, *range(1, max(*A.shape, *B.shape) + 1)]:
        found = alignment_pair(B, A, norm=norm, k=k, max_patterns=max_patterns)
        assert 0.0 <= found.value <= 1.0
        assert true <= found.value * nb * na * (1 + 1e-9)
        assert true <= found.pair_norm * (1 + 1e-12)
        assert found.pair_norm <= nb * na * (1 + 1e-12) + 1e-300
    if max_patterns == 2**20:
        whole = alignment_pair(B, A, norm=norm)
        assert whole.exact and whole.remainder == 0.0
        assert whole.pair_norm == pytest.approx(true, rel=1e-9, abs=1e-300)


@both_norms
@pair_settings
@given(pair=pairs(), data=st.data())
def test_core_and_remainder_are_those_of_the_theorem(norm, pair, data):
    """R = (‖B_k‖‖E_A‖ + ‖E_B‖‖A‖)/(‖B‖‖A‖) or with the roles exchanged; the core is that of the truncations."""
    B, A = pair
    nb, na = induced_norm(B, norm), induced_norm(A, norm)
    if nb == 0 or na == 0:
        return
    k = data.draw(st.integers(1, max(*A.shape, *B.shape)))
    found = alignment_pair(B, A, norm=norm, k=k)
    # of unit norms, as alignment_pair does: rows of equal norm may be truncated either way
    (bk, eb), (ak, ea) = truncate(B / nb, k, norm), truncate(A / na, k, norm)
    nbk, neb, nak, nea = (induced_norm(x, norm) for x in (bk, eb, ak, ea))
    assert found.remainder == pytest.approx(min(nbk * nea + neb, nea + neb * nak), abs=1e-9)
    if norm == math.inf:  # (spectral truncations of equal singular values are not unique)
        assert found.core == pytest.approx(brute(bk, ak, norm), rel=1e-9, abs=1e-12)
    assert found.value <= found.core + found.remainder + 1e-15
    assert found.k == k


@both_norms
@pair_settings
@given(W=compressible_matrices(max_side=5, kinds=KINDS), data=st.data())
def test_truncation(norm, W, data):
    size = W.shape[0] if math.isinf(norm) else min(W.shape)
    k = data.draw(st.integers(1, size))
    kept, rest = truncate(W, k, norm)
    assert np.allclose(kept + rest, W, rtol=0, atol=1e-12 * (1 + np.abs(W).max()))
    top = 1e-9 * (1 + np.abs(W).max())
    if math.isinf(norm):
        rows = np.any(kept != 0, axis=1)
        assert rows.sum() <= k
        assert np.abs(rest).sum(axis=1).max() <= np.sort(np.abs(W).sum(axis=1))[::-1][k - 1] + top
    else:
        s = np.append(np.linalg.svd(W, compute_uv=False), 0.0)
        assert induced_norm(kept, 2.0) == pytest.approx(s[0], abs=top)
        assert induced_norm(rest, 2.0) == pytest.approx(s[k], abs=top)
    if k == size:
        assert not rest.any()


REMAINDER_NEEDED = [
    # norm, B, A, k, ‖B D A‖ / (‖B‖‖A‖): the truncated core alone is below it
    (math.inf, [[1.0, 1.0]], [[1.0], [1.0]], 1, 1.0),
    (math.inf, [[0.0, 1.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 0.5]], 1, 1.0),
    (math.inf, [[1.0, 0.0], [0.0, 0.9]], [[0.5, 0.0], [0.0, 1.0]], 1, 0.9),
    (2.0, [[0.9, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 0.9]], 1, 0.9),
]


@pytest.mark.parametrize(("norm", "B", "A", "k", "true"), REMAINDER_NEEDED)
def test_without_the_remainder_the_truncated_maximum_is_too_small(norm, B, A, k, true):
    B, A = np.array(B), np.array(A)
    found = alignment_pair(B, A, norm=norm, k=k)
    assert brute(B, A, norm) == pytest.approx(true * induced_norm(B, norm) * induced_norm(A, norm))
    assert found.value >= true - 1e-12
    if norm == 2.0 or B.shape[0] == 1 or B[1, 1] == 0.9:
        assert found.core < true - 1e-3


def test_competing_rows_make_the_remainder_smaller_for_inf():
    """Row 2 of B is cut: it competes with row 1 instead of adding to it."""
    B, A = np.array([[1.0, 0.0], [0.0, 0.5]]), np.array([[1.0], [1.0]])
    found = alignment_pair(B, A, norm=math.inf, k=1)
    assert found.core == 1.0 and found.remainder >= 0.5
    assert found.value == 1.0  # core + 0 against ‖E_B‖ = 1/2, not their sum (cut at 1 here)
    B[0, 0] = 0.6  # norms 0.6 and 1: the core is 1, the cut row 5/6
    A[0, 0] = 0.5
    found = alignment_pair(B, A, norm=math.inf, k=1)  # keeps the second row of A
    assert found.core == 0.0
    assert found.value == pytest.approx(0.5 / 0.6)
    assert found.value < found.core + found.remainder - 0.1


def test_dead_pairs_and_limits():
    zero = alignment_pair(np.zeros((1, 2)), np.ones((2, 1)), norm=2.0)
    assert (zero.value, zero.pair_norm, zero.exact) == (0.0, 0.0, True)
    disjoint = alignment_pair(np.array([[1.0, 0.0]]), np.array([[0.0], [1.0]]), norm=2.0)
    assert disjoint.value == 0.0 == disjoint.pair_norm
    wide = alignment_pair(np.ones((1, 30)), np.ones((30, 1)), norm=2.0)
    assert not wide.exact and wide.pair_norm >= 30 * (1 - 1e-12)


def test_above_the_limit_the_smaller_of_truncated_and_decoupled_is_taken():
    """Two strong rows and many weak ones: enumerating the strong ones wins; without them the decoupled bound does."""
    A = np.vstack([[[2.0, 2.0], [-2.0, 2.0]], 1e-3 * np.ones((28, 2))])
    B = np.ones((1, 30))
    found = alignment_pair(B, A, norm=math.inf, max_patterns=16)
    assert found.k == 4
    assert found.pair_norm >= 4.0
    assert found.pair_norm < alignment_pair(B, A, norm=math.inf, k=30, max_patterns=16).pair_norm
    flat = alignment_pair(B, np.ones((30, 1)), norm=math.inf, max_patterns=16)
    assert flat.pair_norm == pytest.approx(30.0)


@both_norms
@pytest.mark.parametrize("exponent", [-200, -100, 100, 200])
def test_pairs_of_extreme_scale(norm, exponent):
    s = 10.0**exponent
    B, A = np.array([[1.0, -2.0], [3.0, 0.0]]), np.array([[1.0, 1.0], [-1.0, 2.0]])
    plain = alignment_pair(B, A, norm=norm)
    for k in (None, 1):
        scaled = alignment_pair(B * s, A / s, norm=norm, k=k)
        assert scaled.value == pytest.approx(alignment_pair(B, A, norm=norm, k=k).value, rel=1e-9)
        assert scaled.pair_norm >= plain.pair_norm * (1 - 1e-9)
    skewed = alignment_pair(np.array([[s, 1 / s]]), np.array([[1 / s], [-s]]), norm=norm)  # |x|
    assert skewed.pair_norm >= 1.0 - 1e-12
    huge = alignment_pair(np.full((2, 2), 1.5e308), np.array([[1e-308, 0.0], [0.0, -1e-308]]), norm=norm)
    assert huge.pair_norm >= 1.5


@both_norms
@pair_settings
@given(pair=pairs(), seed=st.integers(0, 99))
def test_permuting_neurons_or_powers_of_two_change_nothing(norm, pair, seed):
    B, A = pair
    order = np.random.default_rng(seed).permutation(A.shape[0])
    plain = alignment_pair(B, A, norm=norm)
    moved = alignment_pair(B[:, order] * 8.0, A[order] / 4.0, norm=norm)
    assert moved.value == pytest.approx(plain.value, rel=1e-9, abs=1e-300)
    assert moved.pair_norm == pytest.approx(2.0 * plain.pair_norm, rel=1e-9, abs=1e-300)


# -- covers ------------------------------------------------------------------------------------------------


def covers(n):
    """All ways to write a chain of n layers as blocks of one or two."""
    if n == 0:
        yield ()
    if n >= 1:
        for rest in covers(n - 1):
            yield (*rest, (n - 1, 1))
    if n >= 2:
        for rest in covers(n - 2):
            yield (*rest, (n - 2, 2))


def pair_of(layer, value, norm=2.0):
    return AlignmentPair(layer, value, True, value, 0.0, 1, norm, value)


def value_of(blocks, norms, pair_values):
    return math.prod(norms[i] if n == 1 else pair_values[i] for i, n in blocks)


sizes = st.one_of(st.floats(1e-3, 1e3), st.sampled_from([0.0, 1.0, 2.0]))


@matrix_settings
@given(norms=st.lists(sizes, min_size=1, max_size=8), data=st.data())
def test_best_cover_is_the_best_of_all(norms, data):
    """Pairs may be above the product too: the programme must not rely on A <= 1."""
    values = data.draw(st.lists(sizes, min_size=len(norms) - 1, max_size=len(norms) - 1))
    cover = best_cover(norms, [pair_of(i, v) for i, v in enumerate(values)])
    every = list(covers(len(norms)))
    assert cover.blocks in every  # a cover: no gap, no overlap
    best = min(value_of(blocks, norms, values) for blocks in every)
    assert cover.value == pytest.approx(best, rel=1e-9)
    assert cover.value == pytest.approx(value_of(cover.blocks, norms, values), rel=1e-9)


def test_covers_of_long_chains():
    for size in (1e-10, 1e10):
        cover = best_cover([size] * 501, [pair_of(i, size * size / 2) for i in range(500)])
        assert sum(n for _, n in cover.blocks) == 501
        assert sum(n == 2 for _, n in cover.blocks) == 250
        assert cover.value == math.inf if size > 1 else cover.value > 0.0


@both_norms
@network_settings
@given(network=relu_networks(4, 3, biases=False, max_hidden=8), data=st.data())
def test_cover_lies_between_patterns_and_product(norm, network, data):
    weights = list(network.chain.weights)
    k = data.draw(st.one_of(st.none(), st.integers(1, 3)))
    limit = data.draw(st.sampled_from([1, 2, 2**12]))
    bound, found, cover = cover_bound(weights, norm, network.digest, k=k, max_patterns=limit)
    true = pattern_maximum(weights[:-1], weights[-1], norm)
    assert true <= bound.value * (1 + 1e-9)
    product = math.prod(induced_norm(w, norm) for w in weights)
    assert bound.value <= product * (1 + 1e-9) + 1e-300
    assert len(found) == len(weights) - 1
    assert cover.value == pytest.approx(bound.value, rel=1e-9)
    assert bound.sense is Sense.UPPER and bound.claim.quantity is Quantity.LIPSCHITZ
    if len(weights) == 2 and k is None and limit == 2**12:
        assert bound.value == pytest.approx(true, rel=1e-9)


def test_lipschitz_alignment_result():
    W = [[[1.0], [-1.0]], [[1.0, 1.0]], [[2.0]]]
    result = lipschitz_alignment(W, norm=2)
    assert result.status is Status.OK
    # blocks: |x| (√2·√2 becomes 1) then 2; the cover beats the product
    assert result.value == pytest.approx(2.0) and result.value < lipschitz_product(W, 2).value
    assert dict(result.stats)["blocks"] == "((0, 2), (2, 1))"
    json.dumps(result.to_dict(), allow_nan=False)
    alone = lipschitz_alignment([[[3.0, -4.0]]], norm="inf")
    assert alone.value == pytest.approx(7.0)


@pytest.mark.parametrize("k", [0, -1, 3, 1.5, True, "1"])
def test_bad_k(k):
    with pytest.raises(InputError, match="k"):
        lipschitz_alignment([np.eye(2), np.eye(2)], k=k)


@pytest.mark.parametrize("limit", [0, -1, 2**25, 1.0, True, None])
def test_bad_max_patterns(limit):
    with pytest.raises(InputError, match="max_patterns"):
        lipschitz_alignment([np.eye(2), np.eye(2)], max_patterns=limit)
