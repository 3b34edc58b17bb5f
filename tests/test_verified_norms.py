"""Rigorous norms of one matrix and their certificates, against exact rationals."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import scipy.linalg
import torch
from budget import matrix_settings
from hypothesis import given
from hypothesis import strategies as st
from rationals import exact_sum, fractions, spectral_norm_at_least, spectral_norm_at_most
from tamper import every_flip_refused

import certbound
from certbound import (
    CertificateError,
    frobenius_norm_lower,
    frobenius_norm_upper,
    inf_norm_lower,
    inf_norm_upper,
    one_norm_lower,
    one_norm_upper,
    spectral_norm_lower,
    spectral_norm_upper,
)
from certbound.arrays import digest
from certbound.norms import verified
from certbound.norms.evidence import NormCertificate
from certbound.types import Quantity, Rigor, Sense

UPPER = (spectral_norm_upper, inf_norm_upper, one_norm_upper, frobenius_norm_upper)
LOWER = (spectral_norm_lower, inf_norm_lower, one_norm_lower, frobenius_norm_lower)
PAIRS = tuple(zip(LOWER, UPPER, strict=True))
names = pytest.mark.parametrize("pair", PAIRS, ids=["spectral", "inf", "one", "Frobenius"])


def exact_holds(name, W, value, sense):
    """Whether ``value`` is on the right side of the norm, in rationals; ∞ is above everything."""
    if value == math.inf:
        return sense is Sense.UPPER
    A, v = fractions(W), Fraction(value)
    if "spectral" in name:
        return spectral_norm_at_most(A, v) if sense is Sense.UPPER else spectral_norm_at_least(A, v)
    if "frobenius" in name:
        true = sum((x * x for row in A for x in row), Fraction(0))
        return true <= v * v if sense is Sense.UPPER else true >= v * v
    sizes = [exact_sum(np.abs(r)) for r in (W if "inf" in name else W.T)]
    return max(sizes) <= v if sense is Sense.UPPER else max(sizes) >= v


@st.composite
def matrices(draw, largest=4):
    """Small matrices of every kind that rounds badly: huge ranges, ties, rank one, nearly orthogonal, few bits."""
    m, n = draw(st.integers(1, largest)), draw(st.integers(1, largest))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    W = {
        "Gaussian": lambda: rng.standard_normal((m, n)),
        "integers": lambda: rng.integers(-3, 4, (m, n)).astype(float),
        "rank one": lambda: np.outer(rng.standard_normal(m), rng.standard_normal(n)),
        "wide range": lambda: np.ldexp(rng.standard_normal((m, n)), rng.integers(-1060, 1000, (m, n))),
        "some range": lambda: np.ldexp(rng.standard_normal((m, n)), rng.integers(-60, 3, (m, n))),
        "orthogonal": lambda: np.linalg.qr(rng.standard_normal((max(m, n), max(m, n))))[0][:m, :n],
        "float16": lambda: rng.standard_normal((m, n)).astype(np.float16).astype(float),
        "diagonal": lambda: np.eye(m, n) * rng.standard_normal(n),
        "ones and a hair": lambda: 1.0 + 2.0**-52 * rng.integers(0, 3, (m, n)),
    }[draw(st.sampled_from(["Gaussian", "integers", "rank one", "wide range", "some range", "orthogonal", "float16",
                            "diagonal", "ones and a hair"]))]()  # fmt: skip
    with np.errstate(over="ignore"):
        scaled = np.ldexp(W, draw(st.sampled_from([0, 0, 0, 1000, -1020, -1060])))
    return scaled if np.all(np.isfinite(scaled)) else W


@names
@matrix_settings
@given(W=matrices())
def test_rigorous_norms_against_rationals(pair, W):
    lower, upper = (f(W, rigor="rigorous") for f in pair)
    assert lower.rigor is upper.rigor is Rigor.RIGOROUS and (lower.sense, upper.sense) == (Sense.LOWER, Sense.UPPER)
    assert lower.claim == upper.claim and lower.claim.subject == digest(W)
    name = pair[1].__name__
    assert exact_holds(name, W, upper.value, Sense.UPPER) and exact_holds(name, W, lower.value, Sense.LOWER)
    assert lower.certificate.verify(W) and upper.certificate.verify(W)
    usual = np.max(np.abs(W)) > 2.0**-900 and upper.value < math.inf
    if usual:  # tight as well: a bound of ∞ would pass everything above
        assert upper.value - lower.value <= 1e-13 * upper.value
    if usual and "spectral" not in name and verified.Scaled.of(W).lost == 0:
        assert upper.value <= lower.value * (1 + 2.0**-49)  # a few neighbouring floats


@pytest.mark.parametrize("shape", [(200, 200), (300, 40), (40, 300), (1, 5000), (5000, 1)])
@pytest.mark.parametrize("kind", ["Gaussian", "orthogonal", "rank one", "float32"])
def test_width_of_larger_matrices(shape, kind):
    rng = np.random.default_rng(sum(shape))
    W = rng.standard_normal(shape)
    if kind == "orthogonal":
        n = max(shape)
        W = np.eye(*shape) if n > 1000 else np.linalg.qr(rng.standard_normal((n, n)))[0][: shape[0], : shape[1]]
    if kind == "rank one":
        W = np.outer(W[:, 0], W[0])
    if kind == "float32":
        W = W.astype(np.float32)
    low, high = (f(W, rigor="rigorous").value for f in PAIRS[0])
    numerical = float(np.linalg.norm(W.astype(np.float64), 2))
    assert low <= numerical * (1 + 1e-14) and numerical <= high * (1 + 1e-14)
    assert high - low <= 1e-11 * high


@pytest.mark.slow
def test_two_thousand_by_two_thousand():
    """Relative width <= 1e-9 (4 times the measured one), and no more than 4 times an SVD without vectors."""
    import time

    W = np.random.default_rng(0).standard_normal((2000, 2000))
    start = time.perf_counter()
    low, high = verified.enclose_spectral_norm(W)
    middle = time.perf_counter()
    true = scipy.linalg.svdvals(W)[0]
    end = time.perf_counter()
    assert low < true < high and high - low <= 1e-9 * true
    assert middle - start <= 4 * (end - middle)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int64, bool, torch.bfloat16, torch.float16])
def test_few_bits_are_exact_inputs(dtype):
    raw = np.array([[1, 0, 3], [0, 2, 1]])
    W = torch.tensor(raw).to(dtype) if isinstance(dtype, torch.dtype) else raw.astype(dtype)
    own = np.asarray(raw.astype(bool) if dtype is bool else raw, dtype=np.float64)
    for f in (*UPPER, *LOWER):
        assert f(W, rigor="rigorous").value == f(own, rigor="rigorous").value


def test_exact_where_it_can_be():
    """Rows, columns and matrices with one entry a row and column have no width where the norm is a float."""
    for W, value in (([[3.0, 4.0]], 5.0), ([[3.0], [4.0]], 5.0), ([[0.0, -7.0], [2.0, 0.0]], 7.0), ([[0.0]], 0.0),
                     (np.zeros((3, 2)), 0.0), (2.0**-1074 * np.eye(3), 2.0**-1074),
                     (np.eye(3) * 2.0**1023, 2.0**1023)):  # fmt: skip
        assert [f(W, rigor="rigorous").value for f in PAIRS[0]] == [value, value], W


def test_overflow():
    W = np.full((2, 2), sys.float_info.max)
    for lower, upper in PAIRS:
        assert upper(W, rigor="rigorous").value == math.inf
        assert upper(W, rigor="rigorous").certificate.verify(W)
        assert lower(W, rigor="rigorous").value == sys.float_info.max
        assert lower(W, rigor="rigorous").certificate.verify(W)


def test_entries_that_scaling_loses_are_counted():
    """1e-300 beside 1e300: what underflows in W / 2^k is an absolute error of the norm."""
    W = np.array([[1e300, 1e-300], [1e-300, 1e300]])
    assert verified.Scaled.of(W).lost > 0
    for lower, upper in PAIRS:
        low, high = lower(W, rigor="rigorous").value, upper(W, rigor="rigorous").value
        name = upper.__name__
        assert exact_holds(name, W, high, Sense.UPPER) and exact_holds(name, W, low, Sense.LOWER)
        assert high < 1.5e300
    assert Fraction(inf_norm_upper(W, rigor="rigorous").value) >= Fraction(1e300) + Fraction(1e-300)
    row = np.array([[2.0**1000, 2.0**-100]])  # its norm is above 2^1000, by 2^-1201
    with pytest.raises(CertificateError, match="not proved"):
        NormCertificate(digest(row), 2.0, Sense.UPPER, 2.0**1000).verify(row)
    assert NormCertificate(digest(row), 2.0, Sense.UPPER, 2.0**1000 * (1 + 2.0**-50)).verify(row)


def test_flushed_subnormals_are_refused_by_name():
    torch.set_flush_denormal(True)
    try:
        for f in (*UPPER, *LOWER):
            with pytest.raises(certbound.CertboundError, match="subnormal"):
                f([[1.0, 2.0], [3.0, 4.0]], rigor="rigorous")
        result = certbound.lipschitz_product([[[1.0, 2.0]]])
        assert result.bound.rigor is Rigor.NUMERICAL and result.certificate is None
        result = certbound.lipschitz_sdp([[[1.0, 2.0]], [[1.0]]])
        assert result.bound.rigor is Rigor.NUMERICAL and "subnormal" in dict(result.stats)["not rigorous because"]
    finally:
        torch.set_flush_denormal(False)


# -- the proof itself ------------------------------------------------------------------------------------


@matrix_settings
@given(W=matrices(), steps=st.integers(-64, 64), v=st.integers(0, 2**32 - 1))
def test_nothing_false_is_proved(W, steps, v):
    """Values a few units around the norm: what verify accepts is on the right side, whatever the vector."""
    rng = np.random.default_rng(v)
    with np.errstate(over="ignore"):
        near = float(np.linalg.norm(W / np.max(np.abs(W)), 2) * np.max(np.abs(W))) if W.any() else 0.0
        near = min(near * (1 + steps * 2.0**-52), sys.float_info.max)
    vector = verified.spectral_norm_below(W)[1] if v % 2 else None
    vector = rng.standard_normal(W.shape[1]) if vector is None else vector
    for sense in Sense:
        certificate = NormCertificate(digest(W), 2.0, sense, near, vector if sense is Sense.LOWER else None)
        if certificate.proves(W):
            assert exact_holds("spectral", W, near, sense)


def test_every_error_enters_the_proof(monkeypatch):
    """Errors are far smaller than their bounds, so that falsification cannot miss one: each is blown up instead."""
    A = np.array([[1.0, 0.5], [0.5, 1.0]])
    assert verified.proves_upper(A, 1.51) and verified.spectral_lower(A, np.ones(2)) > 1.49
    monkeypatch.setattr(verified, "gram_error", lambda _: 0.1)
    assert not verified.proves_upper(A, 1.51)
    monkeypatch.undo()
    monkeypatch.setattr(verified, "gamma", lambda n: 0.01 * n)
    assert 1.0 <= verified.spectral_lower(A, np.ones(2)) < 1.3
    assert verified.easy_upper(A) > 1.5


def norm_certificates(W):
    return [f(W, rigor="rigorous").certificate for f in (*UPPER, *LOWER)]


@pytest.mark.parametrize("seed", range(20))
def test_forged_values_are_refused(seed):
    """A value on the wrong side by 1e-9 is refused by the mathematics: there is no digest to recompute."""
    rng = np.random.default_rng(seed)
    W = rng.standard_normal((rng.integers(1, 9), rng.integers(1, 9)))
    for certificate in norm_certificates(W):
        factor = 1 - 1e-9 if certificate.sense is Sense.UPPER else 1 + 1e-9
        assert replace(certificate, value=certificate.value / factor).verify(W)
        for wrong in (certificate.value * factor, 0.0 if factor < 1 else math.inf, math.nan, -1.0):
            with pytest.raises(CertificateError, match=r"not proved|no claim"):
                replace(certificate, value=wrong).verify(W)


def test_forged_vectors_prove_nothing():
    W = np.array([[2.0, 1.0], [1.0, 2.0]])
    good = spectral_norm_lower(W, rigor="rigorous").certificate
    for vector in (None, np.zeros(2), np.full(2, math.nan), np.full(2, math.inf), np.full(2, 1e300), np.full(2, 1e-300),
                   np.array([1.0, -1.0])):  # fmt: skip
        with pytest.raises(CertificateError, match="not proved"):
            replace(good, vector=vector).verify(W)
    with pytest.raises(CertificateError, match="shape"):
        replace(good, vector=np.ones(3)).verify(W)


def test_another_matrix_is_refused():
    certificate = spectral_norm_upper(np.eye(2), rigor="rigorous").certificate
    for other in (2 * np.eye(2), np.eye(3), np.eye(2)[:, ::-1]):
        with pytest.raises(CertificateError, match="about the matrix"):
            certificate.verify(other)
    assert certificate.verify(certbound.Network.from_weights([np.ones((2, 3)), np.eye(2)]))  # one of its layers
    for norm in (3.0, math.nan):
        with pytest.raises(CertificateError, match="no claim"):
            replace(certificate, norm=norm).verify(np.eye(2))


def test_a_bound_names_what_it_is():
    for f in (*UPPER, *LOWER):
        bound = f([[3.0, 4.0], [0.0, 1.0]], rigor="rigorous")
        frobenius = "frobenius" in f.__name__
        assert bound.claim.quantity is (Quantity.FROBENIUS_NORM if frobenius else Quantity.OPERATOR_NORM)
        assert bound.certificate.bound == bound and "certificate" not in bound.to_dict()
        assert f([[3.0, 4.0], [0.0, 1.0]]).certificate is None


@pytest.mark.parametrize("f", (*UPPER, *LOWER))
def test_saved_and_loaded(f, tmp_path):
    W = np.random.default_rng(0).standard_normal((5, 4))
    certificate = f(W, rigor="rigorous").certificate
    loaded = certbound.load_certificate(certificate.save(tmp_path / "norm.certificate"))
    assert loaded.bound == certificate.bound and loaded.verify(W)
    tried = every_flip_refused(certificate, W, tmp_path)
    assert tried.flips == 8 * tried.cuts and tried.cuts >= 300
