"""Attribution: the steps sum to the whole, and each is the factor it says."""

import json
import math

import numpy as np
import pytest

from certbound import InputError, as_network, check_theorem31, compare
from certbound.attribution import STARTS

RNG = np.random.default_rng(3)
W = [RNG.standard_normal(s) * math.sqrt(2 / s[1]) for s in ((6, 8), (5, 6), (3, 5))]
X = RNG.random((12, 8))
Y = as_network(W).forward(X).argmax(axis=1)


@pytest.fixture(scope="module", params=[2, "inf"])
def comparison(request):
    return compare(W, X, Y, delta=0.1, norm=request.param)


@pytest.mark.parametrize("start", STARTS)
def test_steps_sum_to_the_log_ratio_of_the_row(comparison, start):
    a = comparison.attribution(start)
    ratio = comparison.row(start).ratio
    assert math.isclose(a.total, math.log(ratio), rel_tol=1e-12)
    assert math.isclose(sum(s.log for s in a.steps), a.total, rel_tol=1e-9)
    assert math.isclose(sum(a.by_name().values()), a.total, rel_tol=1e-9)
    assert a.largest in a.steps
    assert all(s.log <= a.largest.log for s in a.steps)
    json.dumps(a.to_dict(), allow_nan=False)
    assert str(a).count("%") == len(a.steps) + 1


def test_theorem31_steps_are_its_slack_per_layer(comparison):
    a = comparison.attribution("printed")
    for layer, w in enumerate(W[:-1]):
        report = check_theorem31(w, form="printed")
        part = report.spectral if comparison.norm == 2 else report.neuron
        mine = [s.log for s in a.steps if s.layer == layer]
        assert math.isclose(sum(mine), math.log(part.slack), rel_tol=1e-9, abs_tol=1e-12)
        assert min(mine) >= -1e-12
    assert {s.layer for s in a.steps} == {0, 1, None}


def test_local_steps_are_ratios_of_rows(comparison):
    a = comparison.attribution("recursion").by_name()
    crown = min(comparison.row(m).value for m in ("CROWN", "IBP"))
    assert math.isclose(a["local certificate against attack"], math.log(crown / comparison.empirical_gap), rel_tol=1e-9)
    assert math.isclose(a["global instead of local"], math.log(comparison.row("patterns").value / crown), rel_tol=1e-9)


def test_cauchy_schwarz_is_to_blame_at_rank_one():
    # rank one: bound / norm is √r from Cauchy–Schwarz alone (k = 1: no dispersion), in each of the two layers
    u = np.ones((16, 16)) / 16
    net = [u, u, np.array([[0.01] * 16, [-0.01] * 16])]
    x = np.full((3, 16), 0.5)
    c = compare(net, x, np.zeros(3), delta=0.1, norm=2, methods=["apgd-ce", "printed", "recursion"])
    a = c.attribution("printed")
    per_layer = [s for s in a.steps if s.name.startswith("Theorem 3.1, Cauchy")]
    assert [s.layer for s in per_layer] == [0, 1]
    for s in per_layer:
        assert math.isclose(math.exp(s.log), 4.0, rel_tol=1e-9)
    assert a.largest.name.startswith("Theorem 3.1, Cauchy")


def test_without_a_local_certificate_one_step_closes_the_gap():
    c = compare(W, X, Y, delta=0.1, norm=2, methods=["apgd-ce", "product", "recursion"])
    a = c.attribution("product")
    assert a.steps[-1].name == "global instead of local, relaxation and attack"
    assert math.isclose(sum(s.log for s in a.steps), a.total, rel_tol=1e-9)


def test_linear_classifier_has_no_encoder_steps():
    c = compare(W[:1], X, np.zeros(12), delta=0.1, norm=2)
    a = c.attribution("printed")
    assert all(s.layer is None for s in a.steps)
    assert math.isclose(sum(s.log for s in a.steps), a.total, rel_tol=1e-9)


@pytest.mark.parametrize(
    ("methods", "delta", "start"),
    [
        (["product"], 0.1, "product"),  # no attack
        (["apgd-ce"], 0.1, "product"),  # no bound
        (["apgd-ce", "product"], 0.0, "product"),  # nothing to take a logarithm of
        (["apgd-ce", "product"], 0.1, "CROWN"),
    ],
)
def test_what_cannot_be_taken_apart_is_refused(methods, delta, start):
    c = compare(W, X, Y, delta=delta, norm=2, methods=methods)
    with pytest.raises(InputError, match=r"^bound"):
        c.attribution(start)
