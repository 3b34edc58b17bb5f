"""Newton on the barrier of the LipSDP: derivatives, the optimum against cvxpy, and what becomes of its answers."""

from __future__ import annotations

import dataclasses
import math
from itertools import pairwise

import numpy as np
import pytest

from certbound import Affine, Network, ReLU, lipschitz_product, lipschitz_sampled, lipschitz_sdp
from certbound.errors import InputError
from certbound.lipschitz import barrier, sdp, sdp_chain, sdp_cvxpy
from certbound.types import Rigor, Status

both_norms = pytest.mark.parametrize("norm", [2.0, math.inf], ids=["2", "inf"])


def gaussian(*sizes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((b, a)) * math.sqrt(2 / a) for a, b in pairwise(sizes)]


def unit(weights):
    return [w / np.linalg.norm(w, 2) for w in weights]


@both_norms
def test_derivatives_against_differences(norm):
    """Gradient and Hessian of −log det M by central differences of it and of the gradient."""
    *encoder, head = unit(gaussian(3, 4, 2, 1))
    lmi = barrier.chain_lmi(encoder, head, math.isinf(norm))
    n = 3 if math.isinf(norm) else 1
    p = np.concatenate([np.full(n, 9.0), np.full(6, 4.0)]) * np.linspace(0.9, 1.1, n + 6)

    def value(q):
        sign, log = np.linalg.slogdet(lmi.matrix(q))
        assert sign > 0
        return -log

    gradient, hessian = lmi.derivatives(np.linalg.inv(lmi.matrix(p)))
    h = 1e-5
    for j in range(len(p)):
        e = h * np.eye(len(p))[j]
        assert (value(p + e) - value(p - e)) / (2 * h) == pytest.approx(gradient[j], rel=1e-6, abs=1e-8)
        up, down = (lmi.derivatives(np.linalg.inv(lmi.matrix(q)))[0] for q in (p + e, p - e))
        np.testing.assert_allclose((up - down) / (2 * h), hessian[j], rtol=1e-5, atol=1e-7)


@both_norms
@pytest.mark.parametrize("sizes", [(3, 4, 2), (4, 4, 4, 3), (6, 3, 5, 2), (2, 8, 1), (10, 4, 4, 4, 2)], ids=str)
def test_the_optimum_is_cvxpys(norm, sizes):
    W = gaussian(*sizes, seed=sum(sizes))
    ours, theirs = (lipschitz_sdp(W, norm, method=m, tolerance=1e-5) for m in ("barrier", "cvxpy"))
    assert ours.value == pytest.approx(theirs.value, rel=5e-5)
    assert ours.status is Status.OK and ours.bound.rigor is Rigor.RIGOROUS and ours.certificate.verify(W)
    assert ours.gap is not None and 0.0 <= ours.gap <= 1.1e-5
    assert lipschitz_sampled(W, norm).value <= ours.value <= lipschitz_product(W, norm).value


@both_norms
@pytest.mark.parametrize("outputs", [0, (0, 2), None])
def test_outputs(norm, outputs):
    W = gaussian(4, 5, 4, 3, seed=3)
    ours, theirs = (lipschitz_sdp(W, norm, outputs=outputs, method=m) for m in ("barrier", "cvxpy"))
    assert ours.value == pytest.approx(theirs.value, rel=2e-4) and ours.certificate.verify(W)
    assert ours.value <= lipschitz_sdp(W, norm, outputs=outputs, method="closed-form").value


@pytest.mark.parametrize("tolerance", [1e-1, 1e-2, 1e-3, 1e-5])
def test_the_gap_is_what_was_asked_for(tolerance):
    W = gaussian(6, 8, 8, 3)
    best = lipschitz_sdp(W, method="barrier", tolerance=1e-7).value
    result = lipschitz_sdp(W, method="barrier", tolerance=tolerance)
    assert result.gap <= 1.1 * tolerance
    assert best * (1 - 1e-6) <= result.value <= best * (1 + 1.2 * result.gap)


def test_odd_networks():
    """Deep, one neuron, dead neurons, rank one, wide input, scalar: never above the closed form, always proved."""
    dead = gaussian(5, 6, 4, 2)
    dead[0][2] = 0.0
    dead[1][:, 4] = 0.0
    thin = gaussian(4, 5, 4, 2)
    thin[1] = np.outer(thin[1][:, 0], thin[1][0])
    nets = {
        "deep": gaussian(*[6] * 31, 2), "one neuron": gaussian(3, 1, 1), "dead": dead, "rank one": thin,
        "wide": gaussian(60, 4, 4, 1), "scalar": gaussian(1, 1, 1, 1), "ill-conditioned":
        [w * np.logspace(0, -6, w.shape[1]) for w in gaussian(5, 5, 5, 2)],
    }  # fmt: skip
    for name, W in nets.items():
        for norm in (2.0, math.inf):
            result = lipschitz_sdp(W, norm, method="barrier")
            closed = lipschitz_sdp(W, norm, method="closed-form").value
            assert result.value <= closed and result.certificate.verify(W), name
            assert lipschitz_sampled(W, norm).value <= result.value * (1 + 1e-12), name
            assert result.status in (Status.OK, Status.FAILED), name
            assert name == "ill-conditioned" or result.status is Status.OK, name


def test_a_time_limit_gives_what_there_is():
    W = gaussian(64, 128, 128, 128, 10)
    closed, product = lipschitz_sdp(W, method="closed-form").value, lipschitz_product(W).value
    for limit in (1e-6, 0.1):
        result = lipschitz_sdp(W, method="barrier", time_limit=limit, tolerance=1e-9)
        assert result.status is Status.TIME_LIMIT and result.value <= closed <= product
        assert result.certificate.verify(W)


def test_too_large(monkeypatch):
    monkeypatch.setattr(sdp_chain, "BARRIER_LIMIT", 20)
    W = gaussian(4, 12, 12, 2)
    result = lipschitz_sdp(W, method="barrier")
    assert result.status is Status.TOO_LARGE and result.value <= lipschitz_product(W).value
    assert result.certificate.verify(W)


def test_auto_chooses_by_size_and_says_why(monkeypatch):
    small = lipschitz_sdp(gaussian(4, 4, 2))
    assert "barrier" in dict(small.stats)["choice"] and "barrier" in small.bound.method
    deep = gaussian(*[8] * 20, 2)
    monkeypatch.setattr(sdp, "AUTO_SECONDS", 1e-6)
    result = lipschitz_sdp(deep)
    assert "closed form" in dict(result.stats)["choice"] and result.status is Status.OK
    monkeypatch.setattr(sdp, "AUTO_SECONDS", 0.01)  # less than the barrier needs, four times it enough for the other
    assert "first-order" in dict(lipschitz_sdp(deep).stats)["choice"]


def test_auto_refines_the_largest_margins():
    W = gaussian(4, 6, 6, 5)
    mixed = lipschitz_sdp(W, outputs="margins")
    every = lipschitz_sdp(W, outputs="margins", method="barrier")
    closed = lipschitz_sdp(W, outputs="margins", method="closed-form")
    refined = [i for i, r in enumerate(mixed) if "choice" in dict(r.stats)]
    assert len(mixed) == 10 and len(refined) == 5
    assert set(refined) == set(sorted(range(10), key=lambda i: -closed[i].value)[:5])
    assert all(e.value <= m.value <= c.value for e, m, c in zip(every, mixed, closed, strict=True))
    assert all(mixed[i].value == pytest.approx(every[i].value) for i in refined)


def test_the_largest_output_counts():
    """Only outputs that may be the largest are solved; the bound is that of solving all."""
    W = gaussian(4, 6, 6, 5, seed=7)
    whole = lipschitz_sdp(W, math.inf, method="barrier")
    each = [lipschitz_sdp(W, math.inf, outputs=i, method="barrier").value for i in range(5)]
    assert whole.value == pytest.approx(max(each)) and len(whole.certificate.proofs) == 5
    assert whole.certificate.verify(W)


def test_solver_answers_are_hints(monkeypatch):
    """Multipliers of another problem prove nothing of this one, whatever the solver says of them."""
    W = gaussian(4, 5, 4, 2)
    true = barrier.solve
    closed = lipschitz_sdp(W, method="closed-form").value
    best = lipschitz_sdp(W, method="barrier").value
    for factor in (0.0, 0.5, 1.5, 100.0):

        def lie(*args, factor=factor, **options):
            answer = true(*args, **options)
            t = tuple(factor * x for x in answer.multipliers.t)
            wrong = barrier.Multipliers(t, answer.multipliers.d)
            return barrier.BarrierAnswer(wrong, answer.value * 1e-3, 0.0, answer.steps, "optimal")

        monkeypatch.setattr(barrier, "solve", lie)
        result = lipschitz_sdp(W, method="barrier")
        assert best * (1 - 2e-4) <= result.value <= closed and result.certificate.verify(W)


def test_progress(capsys):
    seen = []
    *encoder, head = unit(gaussian(4, 5, 4, 2))
    answer = barrier.solve(encoder, head, 2.0, barrier.Limits(progress=lambda step, gap: seen.append((step, gap))))
    assert len(seen) == answer.steps and seen[-1][1] <= 1e-4
    lipschitz_sdp(gaussian(4, 5, 4, 2), method="barrier", progress=True)
    assert "LipSDP by barrier" in capsys.readouterr().err
    lipschitz_sdp(gaussian(4, 5, 4, 2), method="barrier")
    assert capsys.readouterr().err == ""


def test_no_cvxpy_is_needed(monkeypatch):
    monkeypatch.setattr(sdp_cvxpy, "import_cvxpy", lambda: pytest.fail("cvxpy was imported"))
    assert lipschitz_sdp(gaussian(4, 5, 2)).status is Status.OK


def test_a_stall_short_of_the_tolerance_is_no_success(monkeypatch):
    """The bound is proved all the same; the status says that the optimum was not reached."""
    W = gaussian(4, 5, 4, 2)
    true = barrier.solve

    def stalled(encoder, head, norm, limits):
        answer = true(encoder, head, norm, barrier.Limits(tolerance=0.1))
        return barrier.BarrierAnswer(answer.multipliers, answer.value, answer.excess, answer.steps, "stalled")

    monkeypatch.setattr(barrier, "solve", stalled)
    result = lipschitz_sdp(W, method="barrier")
    assert result.status is Status.FAILED and result.gap > 1e-4 and result.certificate.verify(W)
    assert lipschitz_sdp(W, method="barrier", tolerance=0.2).status is Status.OK


@both_norms
def test_networks_that_end_in_a_relu_are_verified(norm):
    """The certificate is about the network itself, whichever bound is the smallest."""
    for layers in ((Affine([[2.0, 1.0]]), ReLU()), (Affine([[2.0], [1.0]]), ReLU(), Affine([[1.0, 0.0]]), ReLU())):
        network = Network(layers)
        for method in ("barrier", "closed-form", "first-order", "path-norms"):
            result = lipschitz_sdp(network, norm, method=method)
            assert result.certificate.verify(network) and result.value >= 2.0


def test_the_gap_is_a_dual_bound():
    """What Newton calls the excess is never below the true one, at any tolerance."""
    *encoder, head = unit(gaussian(8, 12, 12, 12, 3, seed=5))
    best = barrier.solve(encoder, head, 2.0, barrier.Limits(1e-9)).value
    for tolerance in (0.5, 0.1, 1e-2, 1e-4):
        answer = barrier.solve(encoder, head, 2.0, barrier.Limits(tolerance))
        assert answer.value >= best * (1 - 1e-8)
        assert math.sqrt(answer.value / best) - 1.0 <= answer.excess <= tolerance


def test_the_search_ends_once_the_optimum_is_known_to_be_above():
    *encoder, head = unit(gaussian(8, 12, 12, 3, seed=6))
    best = barrier.solve(encoder, head, 2.0).value
    early = barrier.solve(encoder, head, 2.0, barrier.Limits(above=0.5 * best))
    assert early.status == "above" and early.steps < barrier.solve(encoder, head, 2.0).steps
    assert barrier.solve(encoder, head, 2.0, barrier.Limits(above=1.01 * best)).status == "optimal"


def test_rank_deficient_trained_like_networks_need_few_steps():
    """The metric is no variable of a step: with it, such networks took four times the steps along the boundary."""
    rng = np.random.default_rng(0)
    low = rng.standard_normal((40, 4)) @ rng.standard_normal((4, 60))
    W = unit([low, rng.standard_normal((40, 4)) @ rng.standard_normal((4, 40)), rng.standard_normal((1, 40))])
    answer = barrier.solve(W[:-1], W[-1], math.inf)
    assert answer.status == "optimal" and answer.steps <= 80


@both_norms
@pytest.mark.parametrize("method", ["auto", "barrier", "first-order"])
def test_networks_that_no_input_moves_are_proved_constant(norm, method):
    """Dead neurons in a row, no layer of zeros: the product of norms and the closed form see nothing of it."""
    W = [np.array([[0.0, 0.0], [1.0, 0.0]]), np.array([[1.0, 0.0], [1.0, 0.0]]), np.ones((1, 2))]
    result = lipschitz_sdp(W, norm, method=method)
    assert result.value == 0.0 and result.status is Status.OK and result.certificate.verify(W)
    W[1][0, 1] = 1e-3  # now the second neuron is heard
    assert lipschitz_sdp(W, norm, method=method).value >= 1e-3


@pytest.mark.parametrize(
    "bad",
    [{"tolerance": "a"}, {"tolerance": None}, {"time_limit": "a"}, {"time_limit": True}, {"outputs": np.array([0, 1])}],
    ids=str,
)
def test_arguments_of_the_wrong_type(bad):
    with pytest.raises(InputError, match=next(iter(bad))):
        lipschitz_sdp(gaussian(3, 4, 2), **bad)


def test_a_proof_that_loses_the_tolerance_is_no_success(monkeypatch):
    W = gaussian(4, 5, 4, 2)
    real = sdp_chain.certify

    def worse(*args):
        proof, theta = real(*args)
        return dataclasses.replace(proof, value=1.01 * proof.value), theta

    monkeypatch.setattr(sdp_chain, "certify", worse)
    result = lipschitz_sdp(W, method="barrier")
    assert result.status is Status.FAILED and result.gap == pytest.approx(0.01, rel=0.05)
