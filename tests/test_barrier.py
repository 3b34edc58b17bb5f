"""Newton on the barrier of the LipSDP: derivatives, the optimum against cvxpy, and what becomes of its answers."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from certbound import lipschitz_product, lipschitz_sampled, lipschitz_sdp
from certbound.lipschitz import barrier, sdp, sdp_cvxpy
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
    lmi = barrier._lmi(encoder, head, math.isinf(norm))
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
    W = gaussian(64, 64, 64, 64, 10)
    closed, product = lipschitz_sdp(W, method="closed-form").value, lipschitz_product(W).value
    for limit in (1e-6, 0.3):
        result = lipschitz_sdp(W, method="barrier", time_limit=limit, tolerance=1e-9)
        assert result.status is Status.TIME_LIMIT and result.value <= closed <= product
        assert result.certificate.verify(W)


def test_too_large():
    W = gaussian(4, 1200, 1200, 2)
    result = lipschitz_sdp(W, method="barrier")
    assert result.status is Status.TOO_LARGE and result.value <= lipschitz_product(W).value


def test_auto_chooses_by_size_and_says_why():
    small = lipschitz_sdp(gaussian(4, 4, 2))
    assert "barrier" in dict(small.stats)["choice"] and "barrier" in small.bound.method
    large = lipschitz_sdp(gaussian(4, sdp.AUTO_LIMIT, 2))
    assert "closed-form" in dict(large.stats)["choice"] and large.status is Status.OK


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
    answer = barrier.solve(encoder, head, 2.0, progress=lambda step, gap: seen.append((step, gap)))
    assert len(seen) == answer.steps and seen[-1][1] <= 1e-4
    lipschitz_sdp(gaussian(4, 5, 4, 2), method="barrier", progress=True)
    assert "LipSDP by the barrier" in capsys.readouterr().err
    lipschitz_sdp(gaussian(4, 5, 4, 2), method="barrier")
    assert capsys.readouterr().err == ""


def test_no_cvxpy_is_needed(monkeypatch):
    monkeypatch.setattr(sdp_cvxpy, "import_cvxpy", lambda: pytest.fail("cvxpy was imported"))
    assert lipschitz_sdp(gaussian(4, 5, 2)).status is Status.OK


def test_a_stall_short_of_the_tolerance_is_no_success(monkeypatch):
    """The bound is proved all the same; the status says that the optimum was not reached."""
    W = gaussian(4, 5, 4, 2)
    true = barrier.solve

    def stalled(*args, **options):
        answer = true(*args, **(options | {"tolerance": 0.1}))
        return barrier.BarrierAnswer(answer.multipliers, answer.value, answer.excess, answer.steps, "stalled")

    monkeypatch.setattr(barrier, "solve", stalled)
    result = lipschitz_sdp(W, method="barrier")
    assert result.status is Status.FAILED and result.gap > 1e-4 and result.certificate.verify(W)
    assert lipschitz_sdp(W, method="barrier", tolerance=0.2).status is Status.OK
