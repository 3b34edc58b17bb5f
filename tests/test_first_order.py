"""The first-order solver: its derivatives, feasibility of every answer, the barrier's optimum, and odd networks."""

from __future__ import annotations

import math
import sys
import time
from itertools import pairwise

import numpy as np
import pytest
import torch

from certbound.errors import InputError, MissingDependencyError
from certbound.lipschitz import barrier, first_order

both_norms = pytest.mark.parametrize("norm", [2.0, math.inf], ids=["2", "inf"])
both_curvatures = pytest.mark.parametrize("curvature", ["full", "layers"])


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def chain(*sizes, seed=0, norm=2.0):
    """Steps and head of a He-initialised ReLU network; one output for ℓ∞."""
    rng = np.random.default_rng(seed)
    *encoder, head = [rng.standard_normal((b, a)) * math.sqrt(2 / a) for a, b in pairwise(sizes)]
    return [(w, None, None) for w in encoder], head[:1] if math.isinf(norm) else head


def residual(width, hidden, blocks, inputs=None, seed=0, norm=2.0):
    """``z + G φ(W z)`` blocks, after a first layer if ``inputs`` is given."""
    rng = np.random.default_rng(seed)
    steps = [] if inputs is None else chain(inputs, width, 1, seed=seed)[0]
    for _ in range(blocks):
        W = rng.standard_normal((hidden, width)) * math.sqrt(2 / width)
        steps.append((W, np.eye(width), 0.5 * rng.standard_normal((width, hidden)) * math.sqrt(2 / hidden)))
    return steps, rng.standard_normal((1 if math.isinf(norm) else 3, width)) / math.sqrt(width)


def lmi(steps, head, d, t):
    """M in the variables (z_0, v_1, …, v_L), each divided by the root of what P and T put on its diagonal."""
    n = steps[0][0].shape[1]
    at = np.cumsum([n, *(len(W) for W, _, _ in steps)])
    eye = np.eye(at[-1])
    z, M = eye[:n], np.diag(np.concatenate([d, *(2.0 * x for x in t)]))
    for (W, H, G), x, a, b in zip(steps, t, at[:-1], at[1:], strict=True):
        v = eye[a:b]
        cross = v.T @ (x[:, None] * (W @ z))
        M = M - cross - cross.T
        z = (v if G is None else G @ v) + (0.0 if H is None else H @ z)
    root = np.sqrt(np.concatenate([d, *(2.0 * x for x in t)]))
    M = M - (head @ z).T @ (head @ z)
    return M / root / root[:, None]


def smallest(steps, head, answer, factor=1.0):
    """Smallest eigenvalue of M at ``factor`` times the answer's metric (1 + 1e-9 for its T)."""
    d = answer.d * (factor * (answer.value if np.all(answer.d == 1.0) else 1.0))
    return float(np.linalg.eigvalsh(lmi(steps, head, d, [x * (1 + 1e-9) for x in answer.t]))[0])


def check(steps, head, norm, answer):
    """The answer is feasible, its value is what it proves, and no smaller metric of its shape is feasible."""
    assert all(np.all(np.isfinite(x)) and np.all(x > 0.0) for x in (*answer.t, answer.d))
    assert [len(x) for x in answer.t] == [len(W) for W, _, _ in steps] and len(answer.d) == steps[0][0].shape[1]
    if math.isinf(norm):
        assert answer.value == pytest.approx(answer.d.sum(), rel=1e-12)
    else:
        np.testing.assert_array_equal(answer.d, 1.0)
    assert smallest(steps, head, answer, 1.0 + 1e-9) >= -1e-13
    assert smallest(steps, head, answer, 1.0 - 1e-4) < 0.0


def jacobian_squared(steps, head, norm, seed=0, samples=300):
    """Largest squared gain of the Jacobian at random inputs: never above L²."""
    rng = np.random.default_rng(seed)
    largest = 0.0
    for x in rng.standard_normal((samples, steps[0][0].shape[1])):
        J, z = np.eye(len(x)), x
        for W, H, G in steps:
            on = (W @ z > 0.0)[:, None]
            moved, slope = np.maximum(W @ z, 0.0), on * (W @ J)
            moved, slope = (moved, slope) if G is None else (G @ moved, G @ slope)
            z, J = (moved, slope) if H is None else (H @ z + moved, H @ J + slope)
        gain = np.abs(head @ J).sum() if math.isinf(norm) else np.linalg.norm(head @ J, 2)
        largest = max(largest, gain**2)
    return largest


def optimum(steps, head, norm):
    """L² at the optimum of a chain, by the barrier, of weights of unit norm."""
    norms = [np.linalg.norm(W, 2) for W, _, _ in steps]
    weights = [W / n for (W, _, _), n in zip(steps, norms, strict=True)]
    size = np.linalg.norm(head, 2)
    answer = barrier.solve(weights, head / size, norm, barrier.Limits(tolerance=1e-6))
    return answer.value * (math.prod(norms) * size) ** 2


@both_norms
@pytest.mark.parametrize(
    "network",
    [chain(3, 4, 2, 5, 2), residual(3, 4, 3), residual(3, 2, 2, inputs=5)],
    ids=["chain", "residual", "with a first layer"],
)
def test_derivatives_against_differences(network, norm):
    """Gradient and Hessian of the barrier by central differences of it and of the gradient."""
    steps, head = network
    s, t = first_order._normalised(torch, steps, head, math.isinf(norm), torch.float64, "cpu")
    x = 1.3 * t * torch.linspace(0.9, 1.1, len(t), dtype=torch.float64)
    if math.isinf(norm):
        x = torch.cat([1.2 * first_order._tight(s, first_order._sweep(s, x).P)[0], x])
    found, tau, h = first_order._derivatives(s, first_order._at(s, x, 2.0), 2.0, True), 2.0, 1e-5

    def gradient(y):
        return first_order._derivatives(s, first_order._at(s, y, tau), tau, False).gradient

    at = 0
    for block in found.blocks:
        here = slice(at, at + len(block))
        if math.isinf(norm):  # for ℓ2 the blocks lack what ρ puts between them
            np.testing.assert_allclose(found.hessian[here, here], block, rtol=1e-12)
        at += len(block)
    assert at == len(x)
    for j in range(len(x)):
        e = h * torch.eye(len(x), dtype=torch.float64)[j]
        up, down = (first_order._at(s, y, tau).merit for y in (x + e, x - e))
        assert (up - down) / (2 * h) == pytest.approx(float(found.gradient[j]), rel=1e-5, abs=1e-7)
        np.testing.assert_allclose((gradient(x + e) - gradient(x - e)) / (2 * h), found.hessian[j], 1e-4, 1e-6)


def test_the_logarithms_are_those_of_m():
    """Σ log det of the recursion is log det M: the sweep eliminates, it does not approximate."""
    steps, head = residual(3, 4, 2, inputs=2)
    answer = first_order.solve(steps, head, 2.0, max_steps=3)
    d = np.full(2, 2.0 * answer.value)
    root = np.concatenate([d, *(2 * x for x in answer.t)])
    whole = np.linalg.slogdet(lmi(steps, head, d, answer.t))[1] + np.log(root).sum()
    s = first_order._System(torch, *(tuple(None if a is None else torch.tensor(a) for a in part)
                                     for part in zip(*steps, strict=True)), torch.tensor(head),
                            torch.ones(12, dtype=torch.bool), False, (0,) * 3, 0)  # fmt: skip
    sweep = first_order._sweep(s, torch.tensor(np.concatenate(answer.t)))
    first = np.linalg.slogdet(np.diag(d) - sweep.P.numpy())[1]
    assert sweep.logdet + first == pytest.approx(whole, rel=1e-10)


@both_norms
@both_curvatures
@pytest.mark.parametrize("sizes", [(3, 4, 2), (8, 8, 8, 8, 3), (20, 6, 9, 2), (2, 16, 1), (16, 24, 24, 24, 5)], ids=str)
def test_the_optimum_is_the_barriers(sizes, norm, curvature):
    steps, head = chain(*sizes, seed=sum(sizes), norm=norm)
    answer = first_order.solve(steps, head, norm, curvature=curvature)
    best = optimum(steps, head, norm)
    assert answer.status == "converged" and answer.steps > 5
    assert best * (1 - 3e-6) <= answer.value <= best * (1 + 2e-3)
    assert jacobian_squared(steps, head, norm) <= answer.value
    check(steps, head, norm, answer)


@pytest.mark.parametrize("sizes", [(64, 64, 64, 10), (64, 64, 64, 64, 64, 10)], ids=["64-3", "64-5"])
def test_larger_chains(sizes):
    steps, head = chain(*sizes)
    best = optimum(steps, head, 2.0)
    for curvature, worst in (("full", 1e-4), ("layers", 4e-3)):
        answer = first_order.solve(steps, head, 2.0, curvature=curvature)
        assert best * (1 - 3e-6) <= answer.value <= best * (1 + worst)
        check(steps, head, 2.0, answer)


@both_norms
@both_curvatures
@pytest.mark.parametrize("network", [(6, 5, 4, None), (4, 7, 2, 12)], ids=str)
def test_residual(network, norm, curvature):
    steps, head = residual(*network, norm=norm)
    answer = first_order.solve(steps, head, norm, curvature=curvature)
    closer = first_order.solve(steps, head, norm, tolerance=1e-6)
    assert answer.status == "converged" and closer.value <= answer.value <= closer.value * (1 + 2e-3)
    product = np.linalg.norm(head, 2) * math.prod(
        np.linalg.norm(W, 2) if H is None else 1 + np.linalg.norm(W, 2) * np.linalg.norm(G, 2) for W, H, G in steps
    )
    if norm == 2.0:
        assert math.sqrt(answer.value) < 0.5 * product
    assert jacobian_squared(steps, head, norm) <= answer.value
    check(steps, head, norm, answer)


def test_a_chain_written_with_an_identity_and_a_zero():
    """G = I and H = 0 spelt out, with the weights' scale moved between W and G: the same bound."""
    steps, head = chain(5, 6, 7, 3)
    spelt = [(W / 8.0, np.zeros((len(W), W.shape[1])), 8.0 * np.eye(len(W))) for W, _, _ in steps]
    answers = [first_order.solve(x, head, 2.0, tolerance=1e-5) for x in (steps, spelt)]
    assert answers[0].value == pytest.approx(answers[1].value, rel=1e-6)
    check(spelt, head, 2.0, answers[1])


@both_norms
def test_it_can_stop_at_any_time(norm):
    steps, head = chain(16, 20, 20, 5, norm=norm)
    values = []
    for limit in ({"max_steps": 0}, {"max_steps": 1}, {"max_steps": 4}, {"max_steps": 12}, {}):
        answer = first_order.solve(steps, head, norm, **limit)
        check(steps, head, norm, answer)
        values.append(answer.value)
        assert answer.steps <= limit.get("max_steps", 2000)
        assert answer.status == ("step limit" if limit else "converged")
    assert all(b <= a * (1 + 1e-12) for a, b in pairwise(values)) and values[-1] < 0.9 * values[0]


def test_the_best_point_is_kept():
    """The value rises now and then on the way; the answer does not."""
    steps, head = chain(8, 8, 8, 8, 8, 3)
    values = [first_order.solve(steps, head, 2.0, curvature="layers", max_steps=k).value for k in range(13, 28)]
    assert all(b <= a * (1 + 1e-12) for a, b in pairwise(values)) and len(set(values)) < len(values)


def test_past_gradients_couple_the_layers():
    """98 steps; 245 without them."""
    steps, head = chain(16, 24, 24, 24, 5)
    assert first_order.solve(steps, head, 2.0, curvature="layers").steps < 150


def test_the_time_limit():
    steps, head = chain(64, 96, 96, 96, 96, 10)
    begin = time.perf_counter()
    answer = first_order.solve(steps, head, 2.0, time_limit=0.0)
    assert answer.status == "time limit" and answer.steps == 0 and time.perf_counter() - begin < 3.0
    check(steps, head, 2.0, answer)
    later = first_order.solve(steps, head, 2.0, time_limit=1e-9, start=answer.t)
    assert later.status == "time limit" and later.value <= answer.value * (1 + 1e-12)


@both_norms
def test_a_start_is_never_lost(norm):
    steps, head = chain(8, 12, 12, 4, norm=norm)
    good = first_order.solve(steps, head, norm)
    for limit in (0, 1, 3):
        again = first_order.solve(steps, head, norm, start=good.t, max_steps=limit)
        check(steps, head, norm, again)
        cold = first_order.solve(steps, head, norm, max_steps=limit)
        if math.isinf(norm):  # d is sought anew
            assert again.value < cold.value
        else:
            assert again.value <= good.value * (1 + 1e-12) < cold.value
    full = first_order.solve(steps, head, norm, start=good.t)
    assert full.status == "converged" and full.value == pytest.approx(good.value, rel=1e-4)


@pytest.mark.parametrize("factor", [0.0, 1e-9, 0.3, 1e9])
def test_a_start_that_proves_nothing(factor):
    """Infeasible or absurd multipliers: the closed form takes over where it must."""
    steps, head = chain(8, 12, 12, 4)
    good = first_order.solve(steps, head, 2.0)
    answer = first_order.solve(steps, head, 2.0, start=[factor * x for x in good.t])
    assert answer.status == "converged" and answer.value == pytest.approx(good.value, rel=1e-4)


@both_norms
@pytest.mark.parametrize("powers", [(333, -333, 333, -333), (-333, 333, -333, 333), (40, 40, 40, 40)], ids=str)
def test_scale_invariance(powers, norm):
    steps, head = chain(6, 7, 8, 5, 2, norm=norm)
    plain = first_order.solve(steps, head, norm)
    *encoder, last = [np.ldexp(a, k) for a, k in zip([*(W for W, _, _ in steps), head], powers, strict=True)]
    scaled = first_order.solve([(W, None, None) for W in encoder], last, norm)
    assert scaled.status == "converged"
    assert scaled.value == plain.value * 4.0 ** sum(powers) and scaled.steps == plain.steps
    # T_l belongs to what comes after it, squared
    for i, (a, b) in enumerate(zip(scaled.t, plain.t, strict=True)):
        np.testing.assert_array_equal(a, np.ldexp(b, 2 * sum(powers[i + 1 :])))


def test_residual_blocks_of_any_scale():
    steps, head = residual(5, 6, 3)
    plain = first_order.solve(steps, head, 2.0)
    moved = [(W * 1e80, H * 1e-60, G * 1e-140) for W, H, G in steps]
    scaled = first_order.solve(moved, head * 1e-60, 2.0)
    assert scaled.value * 1e300 == pytest.approx(plain.value * 1e-180, rel=1e-6)


def test_out_of_range():
    steps, head = chain(3, 4, 2)
    answer = first_order.solve([(W * 1e200, None, None) for W, _, _ in steps], head * 1e200, 2.0)
    assert answer.status == "out of range" and answer.value == math.inf


def dead(steps, head):
    """Neurons without input (one of which feeds the next layer), without output, and a copy."""
    steps = [(W.copy(), H, G) for W, H, G in steps]
    steps[0][0][1] = 0.0
    steps[0][0][3] = steps[0][0][2]
    steps[1][0][0] = 0.0
    steps[1][0][0, 1] = 1.0  # sees the dead neuron only
    steps[1][0][:, 4] = 0.0
    return steps, head


def low_rank(steps, head):
    rng = np.random.default_rng(1)
    return [(rng.standard_normal((len(W), 1)) @ rng.standard_normal((1, W.shape[1])), None, None)
            for W, _, _ in steps], head  # fmt: skip


def nearly_dead(steps, head):
    return [(W * np.where(np.arange(len(W)) == 2, 1e-200, 1.0)[:, None], H, G) for W, H, G in steps], head


@both_norms
@both_curvatures
@pytest.mark.parametrize("spoil", [dead, low_rank, nearly_dead])
def test_degenerate_chains(spoil, norm, curvature):
    steps, head = spoil(*chain(6, 7, 8, 4, norm=norm))
    answer = first_order.solve(steps, head, norm, curvature=curvature)
    assert answer.status == "converged"
    if spoil is not low_rank:  # the barrier has no interior to start from there
        alive = [np.flatnonzero(np.abs(W).max(1) > 1e-100) for W, _, _ in steps]
        if spoil is dead:
            alive[1] = alive[1][alive[1] != 0]
        before = [np.arange(6), *alive]
        cut = [(W[a][:, b], None, None) for (W, _, _), a, b in zip(steps, alive, before, strict=False)]
        best = optimum(cut, head[:, alive[-1]], norm)
        assert best * (1 - 3e-6) <= answer.value <= best * (1 + 2e-3)
    check(steps, head, norm, answer)


def test_a_rank_one_chain():
    """``c φ(b aᵀ x)``: the relaxation takes every slope for itself, so L = ‖a‖ max over subsets of ``Σ c_j b_j``."""
    a, b, c = np.array([3.0, 4.0]), np.array([1.0, -2.0, 0.5]), np.array([2.0, -1.0, 1.0])
    answer = first_order.solve([(np.outer(b, a), None, None)], c[None], 2.0, tolerance=1e-5)
    assert answer.value == pytest.approx((5.0 * 4.5) ** 2, rel=1e-6)
    check([(np.outer(b, a), None, None)], c[None], 2.0, answer)


@both_norms
def test_one_neuron(norm):
    """``−2 φ(3 x)``: the slope is 6."""
    answer = first_order.solve([(np.array([[3.0]]), None, None)], np.array([[-2.0]]), norm, tolerance=1e-6)
    assert 36.0 * (1 - 1e-12) <= answer.value <= 36.0 * (1 + 1e-5)
    assert answer.t[0] == pytest.approx([4.0], rel=1e-2)


@pytest.mark.parametrize(
    "network",
    [
        ([(np.zeros((3, 2)), None, None)], np.ones((1, 3))),
        ([(np.ones((3, 2)), None, None)], np.zeros((1, 3))),
        ([(np.ones((3, 2)), np.zeros((2, 2)), np.zeros((2, 3)))], np.ones((1, 2))),
        ([(np.array([[1.0], [0.0]]), None, None), (np.array([[0.0, 1.0]]), None, None)], np.ones((1, 1))),
    ],
    ids=["no input", "no output", "no step", "no path"],
)
def test_constant_networks(network):
    assert first_order.solve(*network, 2.0) is None


@both_norms
def test_blocks_that_do_nothing(norm):
    """W = 0, or G = 0, with H = I: the block is the identity."""
    eye, W = np.eye(3), np.arange(9.0).reshape(3, 3) - 4.0
    steps = [(0.0 * W, eye, eye), (W, eye, 0.0 * eye), (W, 2.0 * eye, eye)]
    head = np.array([[1.0, 2.0, -1.0]])
    answer, alone = (first_order.solve(x, head, norm, tolerance=1e-5) for x in (steps, steps[2:]))
    assert answer.value == pytest.approx(alone.value, rel=1e-4)
    check(steps, head, norm, answer)


def test_sixty_five_layers():
    steps, head = chain(*[5] * 66, 3)
    answer = first_order.solve(steps, head, 2.0, max_steps=60)
    closed = first_order.solve(steps, head, 2.0, max_steps=0)
    assert answer.value < 0.1 * closed.value
    # M has rows of very different sizes: the recursion itself, not eigenvalues of M, is checked here
    P = head.T @ head
    for (W, _, _), t in zip(reversed(steps), reversed(answer.t), strict=True):
        S = np.diag(2.0 * t) - P
        assert np.linalg.eigvalsh(S / np.sqrt(np.outer(t, t)))[0] > 0.0
        P = (t[:, None] * W).T @ np.linalg.solve(S, t[:, None] * W)
    assert np.linalg.eigvalsh(0.5 * (P + P.T))[-1] == pytest.approx(answer.value, rel=1e-6)


@both_norms
@both_curvatures
def test_float32_is_a_hint(norm, curvature):
    steps, head = chain(16, 24, 24, 4, norm=norm)
    answer = first_order.solve(steps, head, norm, dtype="float32", curvature=curvature)
    assert answer.t[0].dtype == np.float64 and answer.d.dtype == np.float64
    assert answer.value <= 1.01 * optimum(steps, head, norm)
    check(steps, head, norm, answer)


def test_nothing_global_is_touched_and_it_repeats():
    steps, head = chain(8, 12, 12, 4)
    state = (torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_rng_state())
    one, two = (first_order.solve(steps, head, 2.0, curvature="layers") for _ in range(2))
    assert state[:3] == (torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled())
    assert torch.equal(state[3], torch.get_rng_state())
    assert one.value == two.value and all(np.array_equal(a, b) for a, b in zip(one.t, two.t, strict=True))


def test_the_choice_of_curvature(monkeypatch):
    """Above the limit no Hessian is formed."""
    asked = []
    inner = first_order._derivatives
    monkeypatch.setattr(
        first_order, "_derivatives", lambda s, p, tau, full: asked.append(full) or inner(s, p, tau, full)
    )
    steps, head = chain(4, 10, 10, 2)
    for limit in (20, 19):
        monkeypatch.setattr(first_order, "FULL_LIMIT", limit)
        first_order.solve(steps, head, 2.0, max_steps=2)
    assert asked == [True, True, False, False]


def test_progress():
    seen = []
    steps, head = chain(8, 12, 12, 4)
    answer = first_order.solve(
        steps, head, 2.0, progress=lambda step, excess: seen.append((step, excess)), tolerance=1e-2
    )
    assert [step for step, _ in seen] == list(range(1, answer.steps + 1))
    assert seen[-1][1] <= 1e-2 < seen[0][1]


def test_refusals(monkeypatch):
    steps, head = chain(3, 4, 2)
    for device in ("cuda:77", "meta", "nowhere"):
        with pytest.raises(InputError, match=r"device: got .*cpu"):
            first_order.solve(steps, head, 2.0, device=device)
    with pytest.raises(InputError, match="not finite"):
        first_order.solve(steps, head * math.nan, 2.0)
    with pytest.raises(InputError, match="one step or more"):
        first_order.solve([], head, 2.0)
    with pytest.raises(InputError, match="norm"):
        first_order.solve(steps, head, 1.0)
    with pytest.raises(InputError, match="dtype"):
        first_order.solve(steps, head, 2.0, dtype="float16")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingDependencyError, match=r"certbound\[torch\]"):
        first_order.solve(steps, head, 2.0)
