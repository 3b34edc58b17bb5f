"""Rigorous pattern maxima, alignment covers, their certificates and Theorem 3.2, against exact rationals."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from budget import network_settings
from exact_spectra import R, rational, singular_values
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tamper import every_flip_refused, forged

from certbound import check_theorem32, lipschitz_alignment, load_certificate
from certbound.errors import CertificateError, InputError
from certbound.lipschitz import alignment_rigorous, pattern_pair, pattern_pair_verified
from certbound.lipschitz.alignment import cover_bound
from certbound.lipschitz.alignment_certificate import AlignmentCertificate
from certbound.lipschitz.alignment_rigorous import Layer, error_norm, rigorous_pair
from certbound.lipschitz.pattern_pair import active_hidden, decoupled_rows
from certbound.lipschitz.pattern_pair_verified import (
    Balanced,
    PatternProof,
    decoupled_upper,
    enumerated_upper_2,
    enumerated_upper_inf,
    largest_path_sum,
    multipliers_prove,
    pattern_holds,
    pattern_upper,
)
from certbound.network import Affine, Network, Normalise, ReLU
from certbound.norms.verified import Scaled, enclose_induced_norm
from certbound.testing.strategies import compressible_matrices, relu_networks
from certbound.theorems import theorem32_rigorous
from certbound.types import Rigor

both_norms = pytest.mark.parametrize("norm", [2.0, math.inf])
pair_settings = settings(max_examples=2 * network_settings.max_examples)
KINDS = ["integer", "low-rank", "row-sparse", "orthogonal", "power-law", "rank-one", "one-row", "scaled", "float16"]


@st.composite
def pairs(draw, max_hidden=4):
    B, A = (np.asarray(draw(compressible_matrices(max_side=4, kinds=KINDS)), dtype=np.float64) for _ in range(2))
    h = min(B.shape[1], A.shape[0], max_hidden)
    return B[:, :h], A[:h]


def times(b, d, a):
    return [
        [sum((row[m] * a[m][j] for m in range(len(a)) if d[m]), Fraction(0)) for j in range(len(a[0]))] for row in b
    ]


def norm_of(rows, norm):
    if math.isinf(norm):
        return R(max(sum(map(abs, row)) for row in rows))
    return singular_values(rows)[0]


def exact_maximum(B, A, norm):
    b, a = rational(B), rational(A)
    best = R(0)
    for d in itertools.product((0, 1), repeat=len(a)):
        best = best.max(norm_of(times(b, d, a), norm))
    return best


def at_least(value, exact):
    """A rigorous upper bound: not below the exact value by anything."""
    return value == math.inf or Fraction(value) >= exact.lo


# -- pattern maxima ----------------------------------------------------------------------------------------------------


@both_norms
@pair_settings
@given(pair=pairs(), max_patterns=st.sampled_from([1, 2**20]))
@example(pair=(np.array([[1e300, 1e-300]]), np.array([[1e-300], [-1e300]])), max_patterns=1)
@example(pair=(np.array([[1e300, 1e-300]]), np.array([[1e-300], [-1e300]])), max_patterns=16)
@example(pair=(np.array([[5e-324, 1.0]]), np.array([[1.0, 5e-324], [5e-324, -1.0]])), max_patterns=16)
@example(pair=(np.array([[1e300, 1e-300], [5e-324, 1.0]]), np.array([[1e300], [3e-300]])), max_patterns=16)
@example(pair=(np.zeros((1, 2)), np.ones((2, 1))), max_patterns=16)
def test_pattern_bounds_are_above_the_exact_maximum(norm, pair, max_patterns):
    B, A = pair
    exact = exact_maximum(B, A, norm)
    proof = pattern_upper(B, A, norm, max_patterns)
    assert at_least(proof.value, exact)
    if proof.how != "none":
        assert pattern_holds(B, A, norm, proof)
    if proof.exact and 1e-280 < exact.lo < 1e280:
        assert proof.value <= float(exact.hi) * (1 + 1e-11)
    if exact.lo > 0 and math.isfinite(proof.value) and 1e-280 < exact.lo:
        # what is below the truth is refused, whatever it calls itself
        for how in ("enumerated", "decoupled", "multipliers", "none", "magic"):
            assert not pattern_holds(B, A, norm, replace(proof, how=how, value=float(exact.lo) * (1 - 1e-12)))


@both_norms
@pytest.mark.parametrize("h", [1, 3, 6, 11])
def test_proofs_at_sizes_where_enumeration_is_split(norm, h):
    rng = np.random.default_rng(h)
    for p, n in ((1, 3), (4, 1), (15, 14)):
        B, A = rng.standard_normal((p, h)), rng.standard_normal((h, n))
        proof = pattern_upper(B, A, norm, 2**12)
        value = pattern_pair.max_pattern_norm(B, A, norm, 2**12)[0]
        assert proof.how == "enumerated" and value * (1 - 1e-13) <= proof.value <= value * (1 + 1e-11)
        assert pattern_holds(B, A, norm, proof)
        assert not pattern_holds(B, A, norm, replace(proof, value=value * (1 - 1e-11)))


def test_every_pattern_is_covered():
    """Each pattern in turn is the only largest one; the floor is far below it."""
    for h in (1, 2, 3, 13):
        for winner in ({0}, {h - 1}, set(range(h)), set(range(0, h, 2)), set(range(min(h, 3)))):
            A = np.array([[4.0 if m in winner else -1.0] for m in range(h)]) / 4.0
            expected = len(winner) if len(winner) >= h / 5 else (h - len(winner)) / 4
            got = enumerated_upper_2(np.ones((1, h)), A, 0.0)
            assert expected <= got <= expected * (1 + 1e-12)


def test_floats_that_round_down_are_lifted():
    """Sums of thirds: the computed maximum is below the exact one; without the error term it would be reported."""
    seen = {"inf": 0, "two": 0, "decoupled": 0}
    rng = np.random.default_rng(0)
    for _ in range(60):
        h, n = 6, 5
        B, A = rng.random((2, h)) / 3 + 0.1, rng.random((h, n)) / 3 + 0.1
        exact = {norm: norm_of(times(rational(B), (1,) * h, rational(A)), norm) for norm in (2.0, math.inf)}
        seen["inf"] += Fraction(pattern_pair.exact_inf(B, A)) < exact[math.inf].lo
        seen["decoupled"] += Fraction(pattern_pair.decoupled_inf(B, A)) < exact[math.inf].lo
        seen["two"] += Fraction(pattern_pair.exact_2(B, A)) < exact[2.0].lo
        assert at_least(enumerated_upper_inf(B, A), exact[math.inf])
        assert at_least(decoupled_upper(B, A), exact[math.inf])
        assert at_least(enumerated_upper_2(B, A, 0.0), exact[2.0])
    assert min(seen.values()) > 5  # the numerical values do fall below


def test_errors_of_repeated_squaring_are_unrolled():
    """``‖G_0‖ <= 2 (‖G_1‖ + e_1)^{1/2} + e_0``: each error in its place."""
    one = np.ones(1)
    got = pattern_pair_verified._unrolled(one, [0.25 * one, 0.44 * one], [2.0 * one])
    assert 2.0 * 1.2 + 0.25 <= got[0] + 1e-15 and got[0] <= 2.65 * (1 + 1e-13)
    deeper = pattern_pair_verified._unrolled(one, [0.0 * one, 0.0 * one, 0.21 * one], [one, one])
    assert deeper[0] == pytest.approx(1.1**0.5)


def test_error_of_the_enumeration_is_twice_gamma(monkeypatch):
    """An enumeration that is wrong by as much as its analysis allows is still covered, and one beyond is not."""
    B, A = np.ones((1, 3)), np.array([[1.0, -0.5], [0.5, 0.25], [1.0, 1.0]])
    error = largest_path_sum(B, A) * (2 * (3 + 2) + 16) * 2.0**-53
    true = pattern_pair.exact_inf(B, A)
    monkeypatch.setattr(pattern_pair_verified, "exact_inf", lambda *_: true - error * 0.999)
    assert enumerated_upper_inf(B, A) >= true
    monkeypatch.setattr(pattern_pair_verified, "exact_inf", lambda *_: true - error * 1.2)
    assert enumerated_upper_inf(B, A) < true
    for loss in (0.999, 0.5, 0.0):  # and sums of as many terms that lost as much as they can
        wrong = 3.25 * (1 - loss * (3 + 2 + 8) * 2.0**-53)
        monkeypatch.setattr(pattern_pair_verified, "decoupled_inf", lambda *_, v=wrong: v)
        assert decoupled_upper(B, A) >= 3.25
    monkeypatch.undo()
    S = float((np.abs(B) @ np.abs(A).sum(axis=1)).max())
    assert largest_path_sum(B, A) >= S
    assert decoupled_rows(B, A).max() <= S


def test_factors_of_enumeration_are_not_trusted(monkeypatch):
    """A QR that is off by 1e-6 makes the bound larger, not wrong."""
    rng = np.random.default_rng(3)
    B, A = rng.random((9, 3)), rng.random((3, 8))
    true = pattern_pair.exact_2(B, A)
    good = enumerated_upper_2(B, A, 0.0)
    right = pattern_pair.triangular_factor
    for factor in (0.5, 1 - 1e-6, 1 + 1e-6):
        monkeypatch.setattr(pattern_pair_verified, "triangular_factor", lambda W, f=factor: right(W) * f)
        assert true * (1 - 1e-14) <= enumerated_upper_2(B, A, 0.0)
    monkeypatch.setattr(pattern_pair_verified, "triangular_factor", lambda W: right(W) * math.nan)
    assert enumerated_upper_2(B, A, 0.0) >= true * (1 - 1e-14)
    assert good <= true * (1 + 1e-12)


def test_multipliers_are_proved_not_believed():
    rng = np.random.default_rng(5)
    for _ in range(20):
        B, A = rng.uniform(-1, 1, (3, 4)), rng.uniform(-1, 1, (4, 3))
        proof = pattern_upper(B, A, 2.0, 1)
        assert proof.how == "multipliers" and proof.t is not None
        pair = Balanced.of(B, A)
        assert multipliers_prove(pair.left, pair.right, proof.t, proof.rho)
        best = pattern_pair.exact_2(B, A)
        assert proof.value >= best
        below = (best * 2.0**-pair.exponent) ** 2 * (1 - 1e-9)
        assert not multipliers_prove(pair.left, pair.right, proof.t * (below / proof.rho), below)
        assert not multipliers_prove(pair.left, pair.right, -proof.t, proof.rho)
        assert not multipliers_prove(pair.left, pair.right, proof.t * math.nan, proof.rho)
        assert not multipliers_prove(pair.left, pair.right, proof.t[1:], proof.rho)
        assert not multipliers_prove(pair.left, pair.right, proof.t, math.inf)
        assert not pattern_holds(B, A, 2.0, replace(proof, t=proof.t * 0.5))
        assert not pattern_holds(B, A, math.inf, proof)
        assert not pattern_holds(B, A, 2.0, replace(proof, rho=proof.rho * 1.01))  # beyond the value claimed


def test_hints_that_are_wrong_do_no_harm():
    B, A = np.array([[1.0, 1.0]]), np.array([[1.0], [-1.0]])
    bad = [(np.array([1e-3, 1e-3]), 1e-6), (np.array([math.nan, 1.0]), 1.0), (np.zeros(2), 0.0)]
    proof = pattern_upper(B, A, 2.0, 1, bad)
    assert proof.how == "multipliers" and proof.value >= 1.0


def test_balancing_counts_what_underflows():
    B = np.array([[1.0, 2.0**-1074]])
    A = np.array([[1.0, 0.0], [2.0**1000, 2.0**-1074]])
    pair = Balanced.of(B, A)
    assert pair.lost > 0.0 and pair.back(1.0) > 2.0**pair.exponent
    assert Balanced.of(np.ones((1, 2)), np.ones((2, 1))).lost == 0.0


@both_norms
def test_pair_sdp_tightens_and_is_proved(norm):
    rng = np.random.default_rng(0)
    W = [rng.standard_normal((6, 4)), rng.standard_normal((3, 6))]
    plain = lipschitz_alignment(W, norm, max_patterns=1, rigor="rigorous")
    better = lipschitz_alignment(W, norm, max_patterns=1, pair_sdp=True, rigor="rigorous")
    assert better.value <= plain.value and better.certificate.verify(W)
    if norm == 2.0:
        assert better.value < plain.value * 0.999
        assert better.value >= lipschitz_alignment(W, norm).value
        numerical = lipschitz_alignment(W, norm, max_patterns=1, pair_sdp=True).value
        assert better.value <= numerical * (1 + 1e-4)


# -- pairs and covers --------------------------------------------------------------------------------------------------


def layer(W, norm):
    return Layer.of(W, norm, enclose_induced_norm(W, norm)[1])


@both_norms
@pair_settings
@given(pair=pairs(), max_patterns=st.sampled_from([1, 2, 2**20]), k=st.one_of(st.none(), st.integers(1, 4)))
@example(pair=(np.array([[1e300, 1e-300]]), np.array([[1e-300], [-1e300]])), max_patterns=1, k=1)
@example(pair=(np.array([[0.9, 0.0], [0.0, 1.0]]), np.array([[1.0, 0.0], [0.0, 0.9]])), max_patterns=16, k=1)
def test_alignment_of_a_pair(norm, pair, max_patterns, k):
    B, A = pair
    found = rigorous_pair(layer(B, norm), layer(A, norm), 0, k, norm, max_patterns, False)
    exact = exact_maximum(B, A, norm)
    nb, na = norm_of(rational(B), norm), norm_of(rational(A), norm)
    assert at_least(found.pair_norm, exact)
    assert found.value <= 1.0 and Fraction(found.value) * nb.hi * na.hi >= exact.lo
    assert found.rigor is Rigor.RIGOROUS
    if 1e-250 < nb.lo * na.lo < 1e250:
        assert found.pair_norm <= float(nb.hi * na.hi) * (1 + 1e-11)
    alignment_rigorous.check_pair(
        found.evidence, (B, A), (None, None), norm,
        (enclose_induced_norm(B, norm)[1], enclose_induced_norm(A, norm)[1]),
    )  # fmt: skip


@both_norms
@network_settings
@given(network=relu_networks(3, 3, biases=False, max_hidden=6), data=st.data())
def test_cover_is_above_every_pattern(norm, network, data):
    weights = list(network.chain.weights)
    k = data.draw(st.one_of(st.none(), st.integers(1, min(min(w.shape) for w in weights))))
    limit = data.draw(st.sampled_from([1, 2**12]))
    result = lipschitz_alignment(network, norm, k=k, max_patterns=limit, rigor="rigorous")
    assert result.bound.rigor is Rigor.RIGOROUS and result.certificate.verify(network)
    best, rows = R(0), [rational(w) for w in weights]
    for ds in itertools.product(*(itertools.product((0, 1), repeat=len(w)) for w in weights[:-1])):
        J = rows[0]
        for w, d in zip(rows[1:], ds, strict=True):
            J = times(w, d, J)
        best = best.max(norm_of(J, norm))
    assert at_least(result.value, best)
    numerical = lipschitz_alignment(network, norm, k=k, max_patterns=limit).value
    if math.isinf(norm) or limit > 1:
        assert result.value <= numerical * (1 + 1e-10) + 1e-300


@both_norms
def test_folded_layers_count(norm):
    """Division by 3 is rounded: the bound is of the exact composition."""
    rng = np.random.default_rng(0)
    W, V = rng.integers(1, 9, (4, 3)).astype(float), rng.integers(1, 9, (2, 4)).astype(float)
    std = np.array([3.0, 7.0, 0.1])
    net = Network((Normalise(np.zeros(3), std), Affine(W), ReLU(), Affine(V)), (3,))
    assert net.chain.errors[0] is not None
    result = lipschitz_alignment(net, norm, rigor="rigorous")
    true_W = [[v / Fraction(float(s)) for v, s in zip(row, std, strict=True)] for row in rational(W)]
    exact = norm_of(times(rational(V), (1,) * 4, true_W), norm)  # all weights >= 0: D = I is the largest
    assert at_least(result.value, exact) and result.value <= float(exact.hi) * (1 + 1e-10)
    assert result.certificate.verify(net)
    # an error that is large enough to see must be in the bound, whichever layer it belongs to
    weights, small = list(net.chain.weights), 1e-3
    for i in (0, 1):
        errors = [None, None]
        errors[i] = np.full(weights[i].shape, small)
        moved = [w if e is None else w + e for w, e in zip(weights, errors, strict=True)]
        bound = cover_bound(weights, norm, "", rigor=Rigor.RIGOROUS, errors=errors)[0]
        truth = norm_of(times(rational(moved[1]), (1,) * 4, rational(moved[0])), norm)
        assert at_least(bound.value, truth)
    assert error_norm(None, norm) == 0.0 and error_norm(np.full((2, 2), 0.5), norm) >= 1.0


def test_rows_that_are_cut_are_counted():
    """p = ∞, k = 1: what is cut of B competes, what is cut of A adds up."""
    B, A = np.array([[1.0, 0.0], [0.0, 0.9]]), np.array([[0.5, 0.0], [0.0, 1.0]])
    found = rigorous_pair(layer(B, math.inf), layer(A, math.inf), 0, 1, math.inf, 16, False)
    assert at_least(found.pair_norm, exact_maximum(B, A, math.inf))
    assert found.pair_norm >= 0.9


# -- certificates ------------------------------------------------------------------------------------------------------


def networks():
    rng = np.random.default_rng(7)
    small = [rng.integers(-3, 4, (3, 2)).astype(float), rng.integers(-3, 4, (2, 3)).astype(float)]
    deep = [rng.standard_normal(s) for s in ((4, 3), (4, 4), (2, 4))]
    return {"small": small, "deep": deep}


@both_norms
@pytest.mark.parametrize("name", ["small", "deep"])
@pytest.mark.parametrize("options", [{}, {"max_patterns": 1}, {"k": 1}], ids=str)
def test_files_are_tamper_proof(norm, name, options, tmp_path):
    weights = networks()[name]
    certificate = lipschitz_alignment(weights, norm, rigor="rigorous", **options).certificate
    assert every_flip_refused(certificate, weights, tmp_path).flips > 100
    assert certificate.bound.value == certificate.value


@both_norms
@pytest.mark.parametrize("options", [{}, {"max_patterns": 1}, {"k": 2}], ids=str)
def test_forged_values_are_refused(norm, options, tmp_path):
    weights = [np.array([[2.0, 1.0], [-1.0, 1.0], [0.5, -3.0]]), np.array([[1.0, 1.0, -1.0], [2.0, -1.0, 0.5]])]
    if "k" in options:
        weights[0][2] *= 1e-3  # so that the truncation pays
    certificate = lipschitz_alignment(weights, norm, rigor="rigorous", **options).certificate
    assert certificate.pairs
    with pytest.raises(CertificateError, match="multiply to"):
        forged(certificate, tmp_path, value=certificate.value * 0.99).verify(weights)
    fields = dict(certificate.stored().fields)
    true = exact_maximum(weights[1], weights[0], norm)

    def with_pair(**changes):
        return forged(certificate, tmp_path, pairs=[fields["pairs"][0] | changes], value=float(true.lo) * 0.99)

    for changes in ({"value": float(true.lo) * 0.99}, {"value": float(true.lo) * 0.99, "core": float(true.lo) * 0.99},
                    {"value": float(true.lo) * 0.99, "core": 0.0}):  # fmt: skip
        with pytest.raises(CertificateError):
            with_pair(**changes).verify(weights)
    for i in range(2):
        norms = list(certificate.norms)
        norms[i] *= 0.9
        with pytest.raises(CertificateError, match=f"norm of layer {i}"):
            forged(certificate, tmp_path, norms=norms).verify(weights)
    if options == {"k": 2} and fields["pairs"][0]["norms"] is not None:
        for i in range(4):
            norms = list(fields["pairs"][0]["norms"])
            if norms[i]:
                norms[i] *= 0.9
                with pytest.raises(CertificateError, match="truncation"):
                    forged(certificate, tmp_path, pairs=[fields["pairs"][0] | {"norms": norms}]).verify(weights)


def test_claims_that_are_none_are_refused(tmp_path):
    weights = networks()["deep"]
    certificate = lipschitz_alignment(weights, 2, rigor="rigorous").certificate
    fields = dict(certificate.stored().fields)
    for changes, words in (
        ({"blocks": [[0, 1]]}, "cover"),
        ({"blocks": [[0, 1], [1, 1], [2, 1]]}, "cover"),
        ({"blocks": [[0, 2], [1, 2]]}, "cover|evidence"),
        ({"blocks": [[0, 3]]}, "cover"),
        ({"blocks": []}, "cover"),
        ({"blocks": [[0, 1, 2]]}, "block"),
        ({"pairs": []}, "evidence"),
        ({"pairs": [fields["pairs"][0]] * 2}, "cover"),
        ({"pairs": [fields["pairs"][0] | {"how": "magic"}]}, "magic"),
        ({"pairs": [fields["pairs"][0] | {"more": 1}]}, "more"),
        ({"pairs": [1]}, "pair"),
        ({"norms": list(fields["norms"])[:2]}, "norms"),
        ({"norm": 1.0}, "claim"),
        ({"value": -1.0}, "claim"),
    ):
        with pytest.raises(CertificateError, match=words):
            forged(certificate, tmp_path, **changes).verify(weights)
    with pytest.raises(CertificateError, match="about the network"):
        certificate.verify([w * 2 for w in weights])
    with pytest.raises(CertificateError, match="unknown array"):
        forged(certificate, tmp_path, arrays={"spare": np.ones(1)}).verify(weights)


def test_rows_of_a_truncation_are_checked(tmp_path):
    rng = np.random.default_rng(1)
    weights = [rng.standard_normal((4, 3)), rng.standard_normal((3, 4))]
    weights[0][2:] *= 1e-3  # so that the truncation pays
    weights[1][1:] *= 1e-3
    certificate = lipschitz_alignment(weights, "inf", k=2, rigor="rigorous").certificate
    (pair,) = certificate.pairs
    assert pair.truncation is not None and certificate.verify(weights)
    for rows in ([0, 9], [-1, 1]):
        with pytest.raises(CertificateError, match="truncation"):
            forged(certificate, tmp_path, arrays={"left.0": np.array(rows)}).verify(weights)
    with pytest.raises(CertificateError):
        forged(certificate, tmp_path, arrays={"right.0": np.array([3])}).verify(weights)
    path = certificate.save(tmp_path / "c")
    assert isinstance(load_certificate(path), AlignmentCertificate)


def test_numerical_cover_has_no_certificate():
    result = lipschitz_alignment(networks()["deep"], 2)
    assert result.certificate is None and result.bound.rigor is Rigor.NUMERICAL
    pairs_ = cover_bound(networks()["deep"], 2.0, "")[1]
    with pytest.raises(CertificateError):
        AlignmentCertificate.of(Network.from_weights(networks()["deep"]), 2.0, 1.0, pairs_, ((0, 2), (2, 1)))
    with pytest.raises(InputError, match="rigor"):
        lipschitz_alignment(networks()["deep"], 2, rigor="heuristic")


# -- Theorem 3.2 -------------------------------------------------------------------------------------------------------


@both_norms
@network_settings
@given(network=relu_networks(3, 3, biases=False, max_hidden=5), k=st.one_of(st.none(), st.integers(1, 2)))
def test_theorem32(norm, network, k):
    weights = list(network.chain.weights)
    largest = max(w.shape[0] if math.isinf(norm) else min(w.shape) for w in weights)
    k = k if k is None else min(k, largest)
    report = check_theorem32(weights, norm=norm, k=k, rigor="rigorous")
    assert report.holds is not False and report.rigor is Rigor.RIGOROUS
    bounds = [report.product, report.cover, report.printed, report.derived, report.sharp]
    assert {b.rigor for b in (*bounds, report.sampled)} == {Rigor.RIGOROUS}
    best, rows = R(0), [rational(w) for w in weights]
    for ds in itertools.product(*(itertools.product((0, 1), repeat=len(w)) for w in weights[:-1])):
        J = rows[0]
        for w, d in zip(rows[1:], ds, strict=True):
            J = times(w, d, J)
        best = best.max(norm_of(J, norm))
    for b in bounds:
        assert at_least(b.value, best)
    assert Fraction(report.sampled.value) <= best.hi
    numerical = check_theorem32(weights, norm=norm, k=k)
    assert report.sampled.value <= numerical.sampled.value * (1 + 1e-12)
    assert report.sampled.value >= numerical.sampled.value * (1 - 1e-9)
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["rigor"] == "rigorous"
    assert "holds:" in str(report)


@both_norms
def test_products_of_layers_carry_their_errors(norm):
    rng = np.random.default_rng(0)
    for n in (1, 4, 30):
        W, J, d = rng.standard_normal((3, n)), rng.standard_normal((n, 2)), rng.integers(0, 2, n).astype(float)
        d[0] = 1.0
        scaled = Scaled.of(W)
        product, error, unit = theorem32_rigorous._times(scaled, d, (J, 0.0, Fraction(3)), norm)
        exact = times(rational(scaled.matrix), d, rational(J))
        gap = [[abs(x - y) for x, y in zip(r, s, strict=True)] for r, s in zip(exact, rational(product), strict=True)]
        assert 0 < norm_of(gap, norm).hi <= Fraction(error) < Fraction(1, 10**12)
        assert unit == 3 * Fraction(scaled.scale)
        carried = theorem32_rigorous._times(scaled, d, (J, 0.5, Fraction(1)), norm)[1]
        assert Fraction(carried) >= Fraction(0.5) * norm_of(rational(scaled.matrix), norm).lo
        low, high = theorem32_rigorous._enclosed((product, 0.25, Fraction(2)), norm)
        middle = norm_of(rational(product), norm)
        assert low <= max(Fraction(0), 2 * middle.hi - Fraction(1, 2)) and high >= 2 * middle.lo + Fraction(1, 2)


def test_theorem32_verdicts(monkeypatch):
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal((3, 2)), rng.standard_normal((2, 3))]
    pairs_ = check_theorem32(weights, rigor="rigorous").alignment
    report = check_theorem32(weights, rigor="rigorous")
    assert report.holds is True
    values = {n: getattr(report, n).value for n in ("product", "cover", "printed", "derived", "sharp")}
    verdict = theorem32_rigorous.verdict
    assert verdict(weights, 2.0, pairs_, values)[1] is True
    low = report.sampled.value
    for name in values:
        assert verdict(weights, 2.0, pairs_, values | {name: low * 0.9})[1] is False
        assert verdict(weights, 2.0, pairs_, values | {name: low})[1] is None
    assert verdict(weights, 2.0, pairs_, values | {"derived": values["sharp"] * 0.999})[1] is None  # the ladder
    wrong = [replace(p, pair_norm=p.pair_norm * 0.3) for p in pairs_]
    assert verdict(weights, 2.0, wrong, values)[1] is False


@both_norms
@pytest.mark.parametrize("scale", [1e-150, 1e150])
def test_theorem32_at_extreme_scales(norm, scale):
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal((3, 4)), rng.standard_normal((3, 3))]
    plain = check_theorem32(weights, norm=norm, rigor="rigorous")
    scaled = check_theorem32([weights[0] * scale, weights[1] / scale], norm=norm, rigor="rigorous")
    assert scaled.holds is not False
    for name in ("product", "cover", "printed", "derived", "sharp", "sampled"):
        assert getattr(scaled, name).value == pytest.approx(getattr(plain, name).value, rel=1e-6)


@both_norms
def test_theorem32_of_zeros(norm):
    report = check_theorem32([np.ones((2, 3)), np.zeros((2, 2)), np.ones((1, 2))], norm=norm, rigor="rigorous")
    assert report.holds is True
    assert {getattr(report, n).value for n in ("product", "cover", "printed", "derived", "sharp", "sampled")} == {0.0}


def test_patterns_without_hidden_neurons():
    B, A = np.array([[1.0, 0.0]]), np.array([[0.0], [1.0]])
    assert active_hidden(B, A)[1].shape[0] == 0
    proof = pattern_upper(B, A, 2.0, 1)
    assert proof.value == 0.0 and pattern_holds(B, A, 2.0, PatternProof("enumerated", 0.0))
