"""Every Lipschitz bound against sampled slopes, pattern maxima, known constants, dense LMIs and metamorphoses."""

from __future__ import annotations

import itertools
import json
import math
import sys

import numpy as np
import pytest
from budget import network_settings
from hypothesis import given, settings
from hypothesis import strategies as st

from certbound.errors import InputError
from certbound.lipschitz import sdp, sdp_cvxpy
from certbound.lipschitz.alignment import lipschitz_alignment
from certbound.lipschitz.margin_constants import margin_constants
from certbound.lipschitz.patterns import lipschitz_patterns, pattern_bound, pattern_maximum
from certbound.lipschitz.product import lipschitz_product, product_bound, product_of_norms
from certbound.lipschitz.recursion import forward, recursion_2, recursion_inf
from certbound.lipschitz.repair import Multipliers, feasible_point, gain_of, repaired
from certbound.lipschitz.sdp import lipschitz_sdp
from certbound.network import Affine, Network, ReLU
from certbound.testing import zoo
from certbound.testing.strategies import relu_networks
from certbound.types import Quantity, Rigor, Sense, Status

UP = 1 + 1e-9
both_norms = pytest.mark.parametrize("norm", [2.0, math.inf])
METHODS = {
    "patterns": lipschitz_patterns,
    "sdp": lambda net, norm: lipschitz_sdp(net, norm, method="cvxpy"),
    "recursion": lambda net, norm: lipschitz_sdp(net, norm, method="closed-form"),
    "cover": lipschitz_alignment,
    "product": lipschitz_product,
}
every_method = pytest.mark.parametrize("method", METHODS)
cheap_method = pytest.mark.parametrize("method", [m for m in METHODS if m != "sdp"])


def size(v, norm):
    return np.abs(v).max(axis=-1) if math.isinf(norm) else np.linalg.norm(v, axis=-1)


def jacobians(net, points):
    """Jacobians at the points where no pre-activation is near 0."""
    chain = net.chain
    for x in points:
        J, h, smooth = np.eye(len(x)), x, True
        for i, (w, b) in enumerate(zip(chain.weights, chain.biases, strict=True)):
            z, J = w @ h + b, w @ J
            if i < len(chain.weights) - 1 or chain.final_relu:
                smooth = smooth and bool(np.all(np.abs(z) > 1e-9 * (1 + np.abs(w) @ np.abs(h) + np.abs(b))))
                h, J = np.maximum(z, 0.0), J * (z > 0)[:, None]
        if smooth:
            yield J


def sampled(net, norm, seed=0, n=60):
    """Largest slope seen: difference quotients, near and far, and Jacobian norms."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, net.n_inputs)) * rng.choice([0.3, 1.0, 5.0], (n, 1))
    best = 0.0
    for y in (rng.permutation(x), x + 1e-3 * rng.choice([-1.0, 1.0], x.shape), x + 1e-2 * rng.standard_normal(x.shape)):
        gap = size(x - y, norm)
        far = gap > 0
        # a quotient's rounding error is u · |f| / gap: far below 1e-9 of the slopes seen here
        best = max(best, float(np.max((size(net.forward(x) - net.forward(y), norm)[far] / gap[far]), initial=0.0)))
    order = 2 if norm == 2 else np.inf
    return max([best, *(float(np.linalg.norm(J, order)) for J in jacobians(net, x[:30]))])


# -- sandwich --------------------------------------------------------------------------------------------


@every_method
@both_norms
@network_settings
@given(net=relu_networks(3, 4, max_hidden=6))
def test_sandwich(method, norm, net):
    """Sampled slopes <= pattern maximum <= every upper bound <= product of norms."""
    result = METHODS[method](net, norm)
    patterns = pattern_bound(net, norm).value
    assert result.status is Status.OK
    assert sampled(net, norm) <= patterns * UP
    assert patterns <= result.value * UP
    assert result.value <= lipschitz_product(net, norm).value * UP
    bound = result.bound
    rigor = Rigor.NUMERICAL if method in ("patterns", "cover") else Rigor.RIGOROUS
    assert (bound.sense, bound.rigor, bound.claim.quantity) == (Sense.UPPER, rigor, Quantity.LIPSCHITZ)
    assert (bound.claim.norm_in, bound.claim.norm_out, bound.claim.outputs) == (norm, norm, "all")
    assert bound.claim.subject == net.digest
    json.dumps(result.to_dict(), allow_nan=False)


@both_norms
@network_settings
@given(net=relu_networks(3, 4, max_hidden=5))
def test_patterns_against_brute_force(norm, net):
    """Every pattern of every layer, by numpy alone."""
    weights = net.chain.weights
    best = 0.0
    for pattern in itertools.product((0.0, 1.0), repeat=sum(len(w) for w in weights[:-1])):
        J, at = np.eye(net.n_inputs), 0
        for w in weights[:-1]:
            J = np.array(pattern[at : at + len(w)])[:, None] * (w @ J)
            at += len(w)
        best = max(best, float(np.linalg.norm(weights[-1] @ J, 2 if norm == 2 else np.inf)))
    assert pattern_bound(net, norm).value == pytest.approx(best, rel=1e-9, abs=1e-300)


@pytest.mark.parametrize("method", ["closed-form", "cvxpy", "auto"])
@both_norms
@settings(max_examples=max(10, network_settings.max_examples // 5))
@given(net=relu_networks(3, 3, n_outputs=3, max_hidden=5), data=st.data())
def test_every_form_of_outputs(method, norm, net, data):
    i = data.draw(st.integers(0, 2))
    j, y = data.draw(st.permutations(range(3)))[:2]
    for outputs, row in ((i, net.chain.head[i]), ((j, y), net.chain.head[j] - net.chain.head[y])):
        result = lipschitz_sdp(net, norm, outputs=outputs, method=method)
        assert pattern_maximum(net.chain.encoder, row[None], norm) <= result.value * UP
        assert result.bound.claim.outputs == outputs and result.status is Status.OK
    if method == "closed-form":
        single = [lipschitz_sdp(net, norm, outputs=o, method=method).value for o in range(3)]
        whole = lipschitz_sdp(net, norm, method=method).value
        if norm == math.inf:
            # the product's minimum is taken of the whole, so that it may lie above the largest of its parts
            assert max(single) <= whole * UP
        else:
            assert max(single) <= whole * UP
        margins = lipschitz_sdp(net, norm, outputs="margins", method=method)
        assert [m.bound.claim.outputs for m in margins] == [(0, 1), (0, 2), (1, 2)]
        for m in margins:
            a, b = m.bound.claim.outputs
            row = net.chain.head[a] - net.chain.head[b]
            assert pattern_maximum(net.chain.encoder, row[None], norm) <= m.value * UP


@both_norms
@network_settings
@given(net=relu_networks(3, 4, max_hidden=6))
def test_margin_constants(norm, net):
    values, status = margin_constants(net, norm, "closed-form")
    head = net.chain.head if net.n_outputs > 1 else np.vstack([0 * net.chain.head, net.chain.head])
    assert status is Status.OK
    assert np.array_equal(values, values.T) and not values.diagonal().any()
    product = product_of_norms(net.chain.encoder, norm, "").value
    for j, y in itertools.combinations(range(len(head)), 2):
        row = head[j] - head[y]
        assert pattern_maximum(net.chain.encoder, row[None], norm) <= values[j, y] * UP
        assert values[j, y] <= product * np.linalg.norm(row, 1 if norm == math.inf else 2) * UP + 1e-300


@both_norms
def test_margin_constants_by_cvxpy(norm):
    rng = np.random.default_rng(3)
    net = Network.from_weights([rng.standard_normal((4, 3)), rng.standard_normal((3, 4))])
    values, status = margin_constants(net, norm, "cvxpy")
    closed, _ = margin_constants(net, norm, "closed-form")
    assert status is Status.OK and np.all(values <= closed * UP) and np.any(values < 0.9 * closed)
    late, status = margin_constants(net, norm, "cvxpy", time_limit=1e-9)
    assert status is Status.TIME_LIMIT and np.all(late >= values * (1 - 1e-9)) and np.all(late <= closed * UP)


# -- known constants -----------------------------------------------------------------------------------------


@every_method
@both_norms
@pytest.mark.parametrize("entry", zoo, ids=lambda e: e.name)
def test_zoo(entry, norm, method):
    result = METHODS[method](entry.network, norm)
    exact, pattern = (entry.lipschitz_2, entry.pattern_2) if norm == 2 else (entry.lipschitz_inf, entry.pattern_inf)
    assert result.status is Status.OK
    assert exact <= pattern <= result.value * UP
    if method == "patterns" or len(entry.network.chain.weights) == 1:
        assert result.value == pytest.approx(pattern, rel=1e-9)
    if entry.name == "zero layer":
        assert result.value == 0.0
    assert sampled(entry.network, norm) <= exact * UP


def test_square_root_of_six():
    """Theory, section 8: the SDP is a relaxation of the pattern maximum, 2.598076 against √6."""
    W = [[[2, 1, 0, -1], [-2, 0, -1, -1]], [[1, 1]]]
    assert lipschitz_patterns(W, 2).value == pytest.approx(math.sqrt(6), rel=1e-12)
    assert lipschitz_sdp(W, 2, method="cvxpy").value == pytest.approx(2.598076, rel=1e-5)
    assert lipschitz_alignment(W, 2).value == pytest.approx(math.sqrt(6), rel=1e-12)


def test_the_neuron_version_is_used_and_it_is_tight():
    """The *network* version of LipSDP is below the true constant on two of three nets; the neuron one close above."""
    rng = np.random.default_rng(0)
    ratios = []
    for _ in range(20):
        W = [rng.standard_normal((4, 4)), rng.standard_normal((4, 4)), rng.standard_normal((1, 4))]
        true, result = lipschitz_patterns(W, 2).value, lipschitz_sdp(W, 2, method="cvxpy")
        assert result.status is Status.OK
        assert "repaired" in result.bound.method
        ratios.append(result.value / true)
    assert min(ratios) >= 1 - 1e-9
    assert np.median(ratios) < 1.1 and max(ratios) < 1.6


def test_relaxation_is_better_than_the_product():
    rng = np.random.default_rng(1)
    W = [rng.standard_normal((8, 6)), rng.standard_normal((8, 8)), rng.standard_normal((1, 8))]
    for norm in (2.0, math.inf):
        tight = lipschitz_sdp(W, norm, method="cvxpy").value
        closed = lipschitz_sdp(W, norm, method="closed-form").value
        product = lipschitz_product(W, norm).value
        assert pattern_maximum([np.array(w) for w in W[:-1]], np.array(W[-1]), norm) <= tight * UP
        assert tight < 0.9 * closed and closed < 0.9 * product


# -- the recursion and the repair, against the dense LMI --------------------------------------------------------


def dense(encoder, head, metric, t):
    """M(P, T) of the theory, written down block by block."""
    sizes = [encoder[0].shape[1], *(len(w) for w in encoder)]
    starts = np.concatenate([[0], np.cumsum(sizes)])
    M = np.zeros((starts[-1], starts[-1]))
    cut = [slice(starts[i], starts[i + 1]) for i in range(len(sizes))]
    M[cut[0], cut[0]] = np.diag(metric)
    for i, (w, ti) in enumerate(zip(encoder, t, strict=True), start=1):
        M[cut[i], cut[i]] = 2 * np.diag(ti)
        M[cut[i], cut[i - 1]] = -np.diag(ti) @ w
        M[cut[i - 1], cut[i]] = M[cut[i], cut[i - 1]].T
    M[cut[-1], cut[-1]] -= head.T @ head
    return M


def feasible(M):
    """PSD up to rounding, after scaling to a unit diagonal where it is positive."""
    scale = 1 / np.sqrt(np.maximum(np.diag(M), 1e-300))
    return np.linalg.eigvalsh(scale[:, None] * M * scale)[0] >= -1e-9


encoders = relu_networks(4, 4, min_layers=2, biases=False).filter(lambda n: all(w.any() for w in n.chain.weights))


def metric_of(data, n, norm):
    entry = st.sampled_from([1.0]) if norm == 2 else st.sampled_from([1.0, 0.5, 0.1, 1e-3])
    return np.array(data.draw(st.lists(entry, min_size=n, max_size=n)))


@both_norms
@network_settings
@given(net=encoders, data=st.data())
def test_closed_form_point_satisfies_the_dense_lmi(norm, net, data):
    """It is feasible, and ρ cannot be lowered for its T: so the recursion's number is that of the LMI."""
    encoder, head = [w / np.linalg.norm(w, 2) for w in net.chain.encoder], net.chain.head
    point = feasible_point(encoder, head, metric_of(data, net.n_inputs, norm))
    if point is None:
        return
    assert feasible(dense(encoder, head, point.d, point.t))
    low = 1 - 1e-4
    shrunk = dense(encoder, head, point.d * low, [t * low for t in point.t])
    assert not feasible(shrunk)


@both_norms
@network_settings
@given(net=encoders, data=st.data())
def test_recursion_value_is_that_of_its_multipliers(norm, net, data):
    """The number that is reported, from the dense LMI alone: L² = ρ Σd."""
    encoder, head = [w / np.linalg.norm(w, 2) for w in net.chain.encoder], net.chain.head[:1]
    if not head.any():
        return
    if norm == 2:
        value, d = recursion_2(encoder, head), np.ones(net.n_inputs)
    else:
        value, d = recursion_inf(encoder, head[0])
    point = feasible_point(encoder, head, d)
    if point is None:
        assert value == 0.0 or pattern_maximum(encoder, head, norm) <= value * UP
        return
    total = point.d[0] if norm == 2 else point.d.sum()
    assert value == pytest.approx(math.sqrt(total), rel=1e-9)
    assert feasible(dense(encoder, head, point.d, point.t))


def bisected_gain(encoder, head, t, d):
    """Smallest s with M(s d, T) ⪰ 0; None if none is."""
    low, high = 0.0, 1.0
    while not feasible_strict(dense(encoder, head, high * d, t)):
        high *= 4
        if high > 1e12:
            return None
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if feasible_strict(dense(encoder, head, middle * d, t)) else (middle, high)
    return high


def feasible_strict(M):
    return np.linalg.eigvalsh(M)[0] >= -1e-13


@both_norms
@network_settings
@given(net=encoders, data=st.data())
def test_gain_is_the_smallest_feasible_one(norm, net, data):
    encoder = [w / np.linalg.norm(w, 2) for w in net.chain.encoder]
    head = net.chain.head / np.linalg.norm(net.chain.head, 2)
    d = metric_of(data, net.n_inputs, norm)
    point = feasible_point(encoder, head, d)
    if point is None:
        return
    factors = st.floats(1.05, 1.4)  # well inside the feasible set, where both routes are accurate
    t = [ti * data.draw(factors) for ti in point.t]
    gain = gain_of(encoder, head, t, d)
    by_bisection = bisected_gain(encoder, head, t, d)
    if gain is None or by_bisection is None:
        assert by_bisection is None or by_bisection > 1e6
        return
    assert gain == pytest.approx(by_bisection, rel=1e-4, abs=1e-9)


HINTS = ("scaled", "zeros", "tiny", "huge", "random", "one neuron", "solver")


@both_norms
@pytest.mark.parametrize("kind", HINTS)
@network_settings
@given(net=encoders, data=st.data(), seed=st.integers(0, 2**16))
def test_repair_of_any_hint_is_feasible(kind, norm, net, data, seed):
    """Whatever the hint: the point returned satisfies the dense LMI, and its number is above the pattern maximum."""
    rng = np.random.default_rng(seed)
    encoder = [w / np.linalg.norm(w, 2) for w in net.chain.encoder]
    head = net.chain.head[:1] / (np.linalg.norm(net.chain.head[:1]) or 1.0)
    d = metric_of(data, net.n_inputs, norm)
    point = feasible_point(encoder, head, d)
    if point is None or sum(len(w) for w in encoder) > 8:
        return
    make = {
        "scaled": lambda t: t * rng.choice([0.3, 0.9, 1.0, 1.1, 3.0], t.shape),
        "zeros": np.zeros_like,
        "tiny": lambda t: t * 1e-200,
        "huge": lambda t: t * 1e12,
        "random": lambda t: rng.exponential(size=t.shape) * 10.0 ** rng.integers(-6, 6),
        "one neuron": lambda t: np.eye(1, len(t))[0],
        "solver": lambda t: np.maximum(t * (1 + 1e-4 * rng.standard_normal(t.shape)), 0.0),
    }[kind]
    metric = d if norm == 2 else np.where(rng.random(len(d)) < 0.3, 0.0, d) + np.eye(1, len(d))[0]
    fixed = repaired(encoder, head, Multipliers(tuple(make(t) for t in point.t), metric))
    assert fixed is not None
    s, found, _ = fixed
    assert np.all(found.d > 0) and all(np.all(t >= 0) for t in found.t)
    assert feasible(dense(encoder, head, s * found.d * (1 + 1e-9), found.t))
    constant = math.sqrt(s * (1.0 if norm == 2 else found.d.sum()))
    assert pattern_maximum(encoder, head, norm) <= constant * UP


@pytest.mark.filterwarnings("ignore:invalid value")
@both_norms
def test_hints_that_are_not_numbers(norm):
    rng = np.random.default_rng(0)
    encoder, head = [rng.standard_normal((3, 2)), rng.standard_normal((2, 3))], rng.standard_normal((1, 2))
    for bad in (math.nan, math.inf):
        t = (np.array([1.0, bad, 1.0]), np.ones(2))
        fixed = repaired(encoder, head, Multipliers(t, np.ones(2)))
        assert fixed is None or math.sqrt(fixed[0]) >= pattern_maximum(encoder, head, 2.0) * (1 - 1e-9)


def test_infeasible_multipliers_give_no_gain():
    encoder, head = [np.eye(2)], np.ones((1, 2))
    assert gain_of(encoder, head, [np.array([0.4, 0.4])], np.ones(2)) is None  # 2T − hhᵀ has a negative eigenvalue
    assert gain_of(encoder, head, [np.zeros(2)], np.ones(2)) is None
    assert gain_of(encoder, head, [np.full(2, math.nan)], np.ones(2)) is None
    assert gain_of(encoder, head, [np.full(2, 1.01)], np.ones(2)) is not None


@both_norms
@network_settings
@given(net=relu_networks(4, 5, biases=False))
def test_recursion_and_product(norm, net):
    """ℓ2: the closed form is never above the product. Reported: never above it for either norm."""
    if norm == 2:
        raw = recursion_2(net.chain.encoder, net.chain.head)
        assert raw <= lipschitz_product(net, 2).value * UP
    assert lipschitz_sdp(net, norm, method="closed-form").value <= lipschitz_product(net, norm).value


def test_closed_form_inf_can_exceed_the_product_and_is_then_replaced():
    rng = np.random.default_rng(0)
    seen = 0
    for _ in range(200):
        W = [np.abs(rng.standard_normal((3, 3))) ** 3 for _ in range(4)] + [np.eye(1, 3)]
        raw, product = recursion_inf(W[:-1], W[-1][0])[0], lipschitz_product(W, "inf").value
        if raw > product * 1.01:
            seen += 1
            result = lipschitz_sdp(W, "inf", method="closed-form")
            assert result.value == product and "largest row sum" in result.bound.method
            constants, _ = margin_constants(Network.from_weights(W), math.inf, "closed-form")
            assert constants[0, 1] <= product * UP
    assert seen >= 3


# -- what a solver may answer ---------------------------------------------------------------------------------


NETS = {
    "one hidden": [[[2.0, 1.0, 0.0, -1.0], [-2.0, 0.0, -1.0, -1.0]], [[1.0, 1.0]]],
    "two hidden": [[[1.0, 2.0], [-1.0, 1.0]], [[1.0, -1.0], [2.0, 1.0]], [[1.0, -2.0]]],
}
every_net = pytest.mark.parametrize("name", NETS)


def answering(monkeypatch, change):
    real = sdp_cvxpy.solve

    def solve(*args):
        return change(real(*args))

    monkeypatch.setattr(sdp.sdp_cvxpy, "solve", solve)


def closed_form(W, norm):
    return lipschitz_sdp(W, norm, method="closed-form").value


@both_norms
@every_net
def test_a_solver_value_is_never_the_bound(monkeypatch, name, norm):
    W = NETS[name]
    honest = lipschitz_sdp(W, norm, method="cvxpy").value
    answering(monkeypatch, lambda a: sdp_cvxpy.SolverAnswer(a.multipliers, 1e-3, a.solver, "optimal"))
    result = lipschitz_sdp(W, norm, method="cvxpy")
    assert result.status is Status.OK and result.value == pytest.approx(honest, rel=1e-9)


@both_norms
@every_net
@pytest.mark.parametrize("factor", [0.0, 0.1, 0.5, 0.999, 1.001, 100.0, 1e-12, 1e12])
def test_wrong_multipliers_are_repaired(monkeypatch, name, norm, factor):
    """Scaled T (and d for ℓ∞), a too small value: the result stays above the patterns, below the closed form."""
    W = NETS[name]

    def change(a):
        t = tuple(factor * x for x in a.multipliers.t)
        return sdp_cvxpy.SolverAnswer(Multipliers(t, a.multipliers.d), factor * a.value, a.solver, "optimal")

    answering(monkeypatch, change)
    result = lipschitz_sdp(W, norm, method="cvxpy")
    assert lipschitz_patterns(W, norm).value <= result.value * UP
    assert result.value <= closed_form(W, norm) * UP
    assert result.status is Status.OK


@both_norms
@every_net
@pytest.mark.parametrize("seed", range(5))
def test_rubbish_multipliers(monkeypatch, name, norm, seed):
    rng = np.random.default_rng(seed)

    def change(a):
        t = tuple(rng.exponential(size=x.shape) * 10.0 ** rng.integers(-9, 9) for x in a.multipliers.t)
        d = rng.exponential(size=a.multipliers.d.shape) if norm == math.inf else a.multipliers.d
        return sdp_cvxpy.SolverAnswer(Multipliers(t, d), 0.0, a.solver, "optimal")

    answering(monkeypatch, change)
    result = lipschitz_sdp(NETS[name], norm, method="cvxpy")
    assert lipschitz_patterns(NETS[name], norm).value <= result.value * UP <= closed_form(NETS[name], norm) * UP**2


@both_norms
@every_net
def test_no_answer_from_the_solver(monkeypatch, name, norm):
    answering(monkeypatch, lambda a: sdp_cvxpy.SolverAnswer(None, math.nan, a.solver, "infeasible"))
    result = lipschitz_sdp(NETS[name], norm, method="cvxpy")
    assert result.status is Status.FAILED
    assert result.value == closed_form(NETS[name], norm)


@both_norms
@pytest.mark.parametrize("what", ["error", "no value", "nan", "negative"])
def test_what_cvxpy_itself_may_do(monkeypatch, norm, what):
    import cvxpy

    if what == "error":

        def solve(self, *args, **kwargs):
            raise cvxpy.error.SolverError("stopped")
    else:

        def solve(self, *args, **kwargs):
            fill = {"no value": None, "nan": math.nan, "negative": -1.0}[what]
            for v in self.variables():
                v.save_value(None if fill is None else np.full(v.shape, fill))
            if fill == -1.0:  # a value of -1 and negative multipliers: cut to 0, then repaired
                self._value, self._status = -1.0, "optimal"

    monkeypatch.setattr(cvxpy.Problem, "solve", solve)
    W = NETS["two hidden"]
    result = lipschitz_sdp(W, norm, method="cvxpy")
    assert result.value == pytest.approx(closed_form(W, norm)) or what == "negative"
    assert result.value <= closed_form(W, norm)
    assert result.status is (Status.OK if what == "negative" and norm == 2 else Status.FAILED)
    assert lipschitz_patterns(W, norm).value <= result.value


def test_too_large_for_the_solver(monkeypatch):
    monkeypatch.setattr(sdp_cvxpy, "SCS_LIMIT", 3)
    result = lipschitz_sdp(NETS["two hidden"], 2, method="cvxpy")
    assert result.status is Status.TOO_LARGE and result.value == closed_form(NETS["two hidden"], 2)
    rng = np.random.default_rng(0)
    wide = [rng.standard_normal((400, 5)), rng.standard_normal((400, 400)), rng.standard_normal((1, 400))]
    monkeypatch.setattr(sdp, "AUTO_SECONDS", 1e-3)
    auto = lipschitz_sdp(wide, 2)
    assert auto.status is Status.OK and auto.value <= closed_form(wide, 2)


def test_more_patterns_than_can_be_listed():
    W = [np.ones((21, 2)), np.ones((1, 21))]
    result = lipschitz_patterns(W, 2)
    assert result.status is Status.TOO_LARGE and result.value == lipschitz_product(W, 2).value
    with pytest.raises(InputError, match="hidden"):
        pattern_bound(Network.from_weights(W), 2.0)


@both_norms
def test_cvxpy_not_installed(monkeypatch, norm):
    monkeypatch.setitem(sys.modules, "cvxpy", None)
    W = NETS["two hidden"]
    result = lipschitz_sdp(W, norm, method="cvxpy")
    assert result.status is Status.NOT_INSTALLED and result.value == closed_form(W, norm)
    assert "pip install" in str(dict(result.stats)["install"])
    auto = lipschitz_sdp(W, norm)  # solves without it
    assert auto.status is Status.OK and auto.value < closed_form(W, norm) and "barrier" in auto.bound.method


@both_norms
def test_time_limit(norm):
    W = NETS["two hidden"]
    result = lipschitz_sdp(W, norm, method="cvxpy", time_limit=1e-9)
    assert result.status is Status.TIME_LIMIT and result.value == closed_form(W, norm)


# -- metamorphoses -----------------------------------------------------------------------------------------


def value(method, weights, norm):
    result = METHODS[method](weights, norm)
    assert result.status is Status.OK
    return result.value


def random_weights(seed, widths=(3, 4, 3, 2), integer=False):
    rng = np.random.default_rng(seed)
    pairs = itertools.pairwise(widths)
    return [rng.integers(-3, 4, (m, n)) * 1.0 if integer else rng.standard_normal((m, n)) for n, m in pairs]


few = pytest.mark.parametrize("seed", range(4))


@every_method
@both_norms
@few
def test_permuting_hidden_neurons(seed, norm, method):
    W = random_weights(seed)
    order = np.random.default_rng(seed).permutation(4)
    moved = [W[0][order], W[1][:, order], W[2]]
    assert value(method, moved, norm) == pytest.approx(value(method, W, norm), rel=1e-4 if method == "sdp" else 1e-9)


@every_method
@both_norms
@few
@pytest.mark.parametrize("span", [1.0, 6.0])
def test_rescaling_between_layers_keeps_the_function(seed, norm, method, span):
    """Rows times s, columns of the next layer divided by s > 0: bounds may change, but stay above the same truth."""
    W = random_weights(seed)
    s = 10.0 ** np.random.default_rng(seed).uniform(-span, span, 4)
    moved = [s[:, None] * W[0], W[1] / s, W[2]]
    true = pattern_maximum(W[:-1], W[-1], norm)
    assert true <= value(method, moved, norm) * UP
    if method == "patterns":
        assert value(method, moved, norm) == pytest.approx(true, rel=1e-9)


@every_method
@both_norms
@few
def test_identity_layer_changes_no_function(seed, norm, method):
    """relu(I relu(z)) = relu(z)."""
    W = random_weights(seed, (2, 3, 2))
    longer = [W[0], np.eye(3), W[1]]
    true = pattern_maximum(W[:-1], W[-1], norm)
    assert true <= value(method, longer, norm) * UP
    if method in ("patterns", "product"):
        assert value(method, longer, norm) == pytest.approx(value(method, W, norm), rel=1e-9)


@every_method
@both_norms
@few
def test_dead_neurons(seed, norm, method):
    """Neurons without outgoing or without incoming weights."""
    W = random_weights(seed, (3, 3, 2))
    rng = np.random.default_rng(seed)
    no_out = [np.vstack([W[0], rng.standard_normal((1, 3))]), np.hstack([W[1], np.zeros((2, 1))])]
    no_in = [np.vstack([W[0], np.zeros((1, 3))]), np.hstack([W[1], rng.standard_normal((2, 1))])]
    true = pattern_maximum(W[:-1], W[-1], norm)
    for more in (no_out, no_in):
        assert true <= value(method, more, norm) * UP
        if method == "patterns":
            assert value(method, more, norm) == pytest.approx(true, rel=1e-9)
        if method == "sdp" and norm == 2.0:
            assert value(method, more, norm) == pytest.approx(value(method, W, norm), rel=1e-3)


@every_method
@both_norms
@pytest.mark.parametrize("exponent", [-40, 3, 40])
def test_powers_of_two(norm, method, exponent):
    W = random_weights(7)
    expected = value(method, W, norm) * 2.0 ** (3 * exponent)
    scaled = value(method, [w * 2.0**exponent for w in W], norm)
    assert scaled == pytest.approx(expected, rel=1e-4 if method == "sdp" else 1e-9)


@every_method
@both_norms
@pytest.mark.parametrize(
    "scales",
    [
        (1e-100, 1e100, 1.0),
        (1e100, 1e100, 1e-150),
        (1e-200, 1e-200, 1e300),
        (1e160, 1e160, 1e-200),
        (1e-150, 1e-150, 1e-150),
        (1e200, 1e200, 1e200),
    ],
)
def test_extreme_weights(norm, method, scales):
    """No under- or overflow on the way to the wrong side."""
    W = random_weights(3)
    true = np.longdouble(pattern_maximum(W[:-1], W[-1], norm))
    for s in scales:
        true = true * np.longdouble(s)
    found = value(method, [w * s for w, s in zip(W, scales, strict=True)], norm)
    assert np.longdouble(found) >= true * np.longdouble(1 - 1e-9)
    if method == "patterns" and 1e-300 < true < 1e300:
        assert found == pytest.approx(float(true), rel=1e-9)


@every_method
@both_norms
@pytest.mark.parametrize("exponent", [100, 150, 200])
def test_absolute_value_through_huge_and_tiny_weights(norm, method, exponent):
    """|x| = 1e−e relu(1e+e x) + 1e+e relu(−1e−e x): every bound must be at least 1."""
    s = 10.0**exponent
    W = [[[1 / s], [-s]], [[s, 1 / s]]]
    found = METHODS[method](W, norm).value
    assert found >= 1 - 1e-12
    if method == "patterns":
        assert found == pytest.approx(1.0, rel=1e-12)


@every_method
@both_norms
def test_weights_at_the_end_of_float64(norm, method):
    """Norms of 3e308 are no floats; the network's constant is 3 (ℓ2: 3/√2)."""
    W = [[[1.5e308, 1.5e308], [1.5e308, 1.5e308]], [[1e-308, 0.0]]]
    assert METHODS[method](W, norm).value >= (3.0 if norm == math.inf else 3 / math.sqrt(2)) * (1 - 1e-9)


@every_method
@both_norms
@pytest.mark.parametrize("at", [0, 1, 2])
def test_zero_layers(norm, method, at):
    W = random_weights(0)
    W[at] = np.zeros_like(W[at])
    assert value(method, W, norm) == 0.0


@both_norms
def test_wide_inputs(norm):
    """ℓ2: only the LQ factor of W_1 matters; ℓ∞: not so, and the reduction must not be made."""
    rng = np.random.default_rng(5)
    W = [rng.standard_normal((3, 20)), rng.standard_normal((2, 3))]
    result = lipschitz_sdp(W, norm, method="cvxpy")
    assert result.status is Status.OK
    assert dict(result.stats)["LMI size"] == (6.0 if norm == 2 else 23.0)
    assert pattern_maximum(W[:1], W[1], norm) <= result.value * UP
    turned = [W[0] @ np.linalg.qr(rng.standard_normal((20, 20)))[0], W[1]]
    if norm == 2:
        assert lipschitz_sdp(turned, norm, method="cvxpy").value == pytest.approx(result.value, rel=1e-4)
    else:
        assert result.value < 1.5 * pattern_maximum(W[:1], W[1], norm)


@cheap_method
@both_norms
@pytest.mark.parametrize("gain", [0.2, 1.0, 5.0])
def test_thirty_layers(norm, method, gain):
    """Orthogonal layers with large biases: nearly linear, so the true constant is seen by sampling."""
    rng = np.random.default_rng(2)
    layers = []
    for i in range(30):
        w = gain * np.linalg.qr(rng.standard_normal((4, 4)))[0]
        layers += [*([ReLU()] if i else []), Affine(w, np.full(4, 3.0) if i < 29 else None)]
    net = Network(tuple(layers))
    result = METHODS[method](net, norm)
    assert result.status is (Status.TOO_LARGE if method == "patterns" else Status.OK)
    assert sampled(net, norm) <= result.value * UP
    assert math.isfinite(result.value)
    if norm == 2 and method != "patterns":
        assert result.value <= gain**30 * (1 + 1e-6)


@both_norms
def test_ten_layers_by_cvxpy(norm):
    W = random_weights(11, (3,) * 10 + (1,))
    result = lipschitz_sdp(W, norm, method="cvxpy")
    closed = closed_form(W, norm)
    assert result.value <= closed * UP
    assert sampled(Network.from_weights(W), norm, n=300) <= result.value * UP
    assert result.status is Status.OK


@every_method
def test_one_layer_is_exact(method):
    W = [[[3.0, -4.0], [1.0, 1.0]]]
    assert value(method, W, math.inf) == pytest.approx(7.0)
    assert value(method, W, 2.0) == pytest.approx(np.linalg.norm(W[0], 2))


def test_final_relu_and_biases_do_not_matter():
    W, b = random_weights(4), [np.ones(4), -np.ones(3), np.ones(2)]
    plain, biased = Network.from_weights(W), Network.from_weights(W, b)
    ended = Network((*biased.layers, ReLU()))
    for method, run in METHODS.items():
        values = [run(net, 2.0).value for net in (plain, biased, ended)]
        assert values == pytest.approx([values[0]] * 3, rel=1e-9), method


# -- bad input -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"norm": 1},
        {"norm": "2.5"},
        {"norm": None},
        {"norm": True},
        {"outputs": 2},
        {"outputs": -1},
        {"outputs": True},
        {"outputs": (0, 0)},
        {"outputs": (0, 5)},
        {"outputs": (0, 1, 1)},
        {"outputs": "some"},
        {"outputs": 0.5},
        {"outputs": ()},
        {"method": "newton"},
        {"tolerance": 0.0},
        {"tolerance": 2.0},
        {"tolerance": math.nan},
        {"time_limit": 0.0},
        {"time_limit": -1.0},
        {"time_limit": math.nan},
        {"region": object()},
    ],
)
def test_bad_arguments(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        lipschitz_sdp([np.ones((3, 2)), np.ones((2, 3))], **wrong)


def test_margins_need_two_outputs():
    with pytest.raises(InputError, match="two outputs"):
        lipschitz_sdp([np.ones((1, 2))], outputs="margins")


@every_method
@pytest.mark.parametrize("network", [[], np.eye(2), [np.ones((2, 2)), np.ones((2, 3))], [[[math.nan]]], "model", None])
def test_bad_networks(method, network):
    with pytest.raises(InputError):
        METHODS[method](network, 2)


def test_forward_reports_a_constant_network():
    assert forward([np.zeros((2, 2))], np.ones(2)).zero
    assert recursion_2([np.ones((2, 2))], np.zeros((1, 2))) == 0.0
    assert recursion_inf([np.ones((2, 2))], np.zeros(2))[0] == 0.0


@both_norms
@pytest.mark.parametrize("method", ["closed-form", "cvxpy", "auto"])
def test_pairs_of_outputs_behind_a_final_relu(norm, method):
    # relu(x) − relu(x − 1) has constant 1, though the rows of the last weight matrix are equal
    net = Network((Affine([[1.0], [1.0]], [0.0, -1.0]), ReLU()))
    for outputs in ((0, 1), (1, 0)):
        result = lipschitz_sdp(net, norm, outputs=outputs, method=method)
        assert result.value >= 1.0
        assert result.bound.claim.subject == net.digest
    assert lipschitz_sdp(net, norm, outputs="margins", method=method)[0].value >= 1.0
    assert product_bound(net, norm, (0, 1)).value >= 1.0
    assert pattern_bound(net, norm, (0, 1)).value >= 1.0
    assert margin_constants(net, norm, "closed-form")[0][0, 1] >= 1.0
    np.testing.assert_array_equal(net.open_ended.forward([[2.0], [-1.0]]), net.forward([[2.0], [-1.0]]))
