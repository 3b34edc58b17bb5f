"""LipSDP of residual, leaky and smooth networks and on balls: never below a Jacobian, a quotient or a pattern."""

from __future__ import annotations

import dataclasses
import math
from itertools import pairwise
from itertools import product as every

import numpy as np
import pytest

from certbound import Affine, Network, Normalise, ReLU, lipschitz_sdp
from certbound.activations import Activation
from certbound.errors import InputError
from certbound.lipschitz import sdp
from certbound.lipschitz.patterns import pattern_maximum
from certbound.lipschitz.region_slopes import slopes_on
from certbound.lipschitz.sdp_system import SystemRequest, system_bound
from certbound.lipschitz.system_certificate import SystemCertificate
from certbound.network import Ball, Residual
from certbound.types import Rigor, Status

both_norms = pytest.mark.parametrize("norm", [2.0, math.inf], ids=["2", "inf"])
SMOOTH = ("tanh", "sigmoid", "gelu", "gelu_tanh", "silu")
ACTIVATIONS = (*(Activation(n) for n in SMOOTH), Activation("leaky_relu", 0.1), Activation("leaky_relu", -0.7), ReLU())


# -- networks and what is known of them ----------------------------------------------------------------


def he(rng, m, n, gain=2.0):
    return Affine(rng.standard_normal((m, n)) * math.sqrt(gain / n), 0.5 * rng.standard_normal(m))


def plain(phi, seed=0, sizes=(3, 5, 4, 2)):
    rng = np.random.default_rng(seed)
    layers = [x for a, b in pairwise(sizes) for x in (he(rng, b, a), phi)]
    return Network(tuple(layers[:-1]))


def residual(phi, seed=0, *, after=False):
    """Two blocks, with identity and projection, before or after the activation; normalised inputs; a final one."""
    rng = np.random.default_rng(seed)
    body = (he(rng, 4, 4), phi, he(rng, 4, 4)) if after else (phi, he(rng, 4, 4), phi, he(rng, 4, 4))
    return Network((Normalise([0.1], [0.7]), he(rng, 4, 3), Residual(body, ()), *((phi,) if after else ()),
                    Residual((phi, he(rng, 3, 4)), (Affine(rng.standard_normal((3, 4)) / 2),)), phi,
                    he(rng, 2, 3)))  # fmt: skip


def networks():
    for seed, phi in enumerate(ACTIVATIONS):
        name = phi.name + f"{phi.parameter:g}" if isinstance(phi, Activation) else "relu"
        yield f"{name} chain", plain(phi, seed)
        yield f"{name} residual", residual(phi, seed, after=seed % 2 == 0)
    yield "final tanh", Network((*plain(ReLU(), 3).layers, Activation("tanh")))
    yield "nested", Network((he(np.random.default_rng(5), 3, 3),
                             Residual((Residual((ACTIVATIONS[0], he(np.random.default_rng(6), 3, 3))), ReLU())),
                             he(np.random.default_rng(8), 2, 3)))  # fmt: skip


every_network = pytest.mark.parametrize("net", [pytest.param(n, id=name) for name, n in networks()])


def slope(layer, z):
    """φ′ elsewhere than at kinks."""
    if isinstance(layer, ReLU):
        return (z > 0.0).astype(float)
    name = layer.name
    if name == "leaky_relu":
        return np.where(z > 0.0, 1.0, layer.parameter)
    if name == "tanh":
        return 1.0 / np.cosh(np.clip(z, -300, 300)) ** 2
    gate = 1.0 / (1.0 + np.exp(-np.clip(z, -700, 700)))
    if name == "sigmoid":
        return gate * (1.0 - gate)
    if name == "silu":
        return gate * (1.0 + z * (1.0 - gate))
    if name == "gelu":
        below = np.vectorize(lambda v: 0.5 * math.erfc(-v / math.sqrt(2.0)))(z)
        return below + z * np.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi)
    inner = math.sqrt(2.0 / math.pi) * (z + 0.044715 * z**3)
    own = math.sqrt(2.0 / math.pi) * (1.0 + 3 * 0.044715 * z**2)
    return 0.5 * (1.0 + np.tanh(inner)) + 0.5 * z * own / np.cosh(np.clip(inner, -300, 300)) ** 2


def value(layer, z):
    return np.maximum(z, 0.0) if isinstance(layer, ReLU) else layer.forward(z)


def run(layers, x, J):
    """Values and Jacobians of a batch, forward."""
    for layer in layers:
        if isinstance(layer, Affine):
            x, J = x @ layer.weight.T + (0.0 if layer.bias is None else layer.bias), layer.weight @ J
        elif isinstance(layer, Normalise):
            x, J = (x - layer.mean) / layer.std, J / np.broadcast_to(layer.std, x.shape[1:])[:, None]
        elif isinstance(layer, Residual):
            (a, A), (b, B) = run(layer.body, x, J), run(layer.shortcut, x, J)
            x, J = a + b, A + B
        else:
            x, J = value(layer, x), slope(layer, x)[:, :, None] * J
    return x, J


def jacobians(net, x):
    return run(net.layers, x, np.broadcast_to(np.eye(net.n_inputs), (len(x), net.n_inputs, net.n_inputs)))[1]


def selected(J, outputs):
    if outputs is None:
        return J
    return J[:, [outputs]] if isinstance(outputs, int) else J[:, [outputs[0]]] - J[:, [outputs[1]]]


def norms(J, norm):
    if math.isinf(norm):
        return np.abs(J).sum(axis=2).max(axis=1)
    return np.linalg.svd(J, compute_uv=False)[:, 0]


def steepest(net, norm, outputs, rng, center, radius, ball_norm, count=150, rounds=5):
    """The largest Jacobian norm found: random points of the ball, then around the best ones; corners too."""
    n = net.n_inputs

    def inside(x):
        off = x - center
        if math.isinf(ball_norm):
            return center + np.clip(off, -radius, radius)
        return center + off * np.minimum(1.0, radius / np.maximum(np.linalg.norm(off, axis=1, keepdims=True), 1e-300))

    corners = radius * np.array(list(every((-1.0, 1.0), repeat=n)))
    x = inside(np.vstack([center[None], center + corners, center + radius * rng.standard_normal((count, n))]))
    best, at = 0.0, center
    for k in range(rounds):
        found = norms(selected(jacobians(net, x), outputs), norm)
        i = int(np.argmax(found))
        if found[i] > best:
            best, at = float(found[i]), x[i]
        x = inside(at + radius * 0.5**k * rng.standard_normal((count // 2, n)))
    return best


def quotients(net, norm, outputs, rng, center, radius, ball_norm, count=200):
    """The largest difference quotient between points of the ball, near and far."""
    off = rng.uniform(-1, 1, (2, count, net.n_inputs))
    if not math.isinf(ball_norm):
        off /= np.maximum(1.0, np.linalg.norm(off, axis=2, keepdims=True))
    off[1, ::2] = off[0, ::2] + 0.02 * (off[1, ::2] - off[0, ::2])
    x, y = center + radius * off
    change = (net.forward(x) - net.forward(y)).T[None].transpose(2, 1, 0)
    p = 2 if norm == 2.0 else math.inf
    moved, apart = np.linalg.norm(selected(change, outputs)[:, :, 0], p, axis=1), np.linalg.norm(x - y, p, axis=1)
    good = apart > 1e-6 * radius
    return float(np.max(moved[good] / apart[good], initial=0.0))


# -- over all inputs -----------------------------------------------------------------------------------


@both_norms
@every_network
def test_no_jacobian_is_steeper(net, norm):
    """Random, extreme and sought-out inputs; all outputs, one, a margin; each with its certificate."""
    rng = np.random.default_rng(1)
    for outputs in (None, 0) if norm == 2.0 else (0, (0, 1)):
        result = lipschitz_sdp(net, norm, outputs=outputs, method="barrier" if outputs != 0 else "closed-form")
        for radius in (1e-2, 3.0, 1e4):
            center = rng.standard_normal(3)
            assert steepest(net, norm, outputs, rng, center, radius, 2.0) <= result.value * (1 + 1e-9)
            assert quotients(net, norm, outputs, rng, center, radius, 2.0) <= result.value * (1 + 1e-6)
        assert result.certificate.verify(net) and result.bound.rigor is Rigor.RIGOROUS
        if outputs != 0:
            assert result.status is Status.OK and result.gap is not None and result.gap <= 1e-4


@both_norms
def test_residual_bounds_dominate_every_pattern(norm):
    """Kinked networks: the maximum over all α/β choices of each neuron is below, and not far."""
    ratios = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        leaky = [Activation("leaky_relu", a) for a in (0.1, -0.5, 2.0)][seed % 3]
        net = Network((he(rng, 3, 2), Residual((leaky, he(rng, 3, 3)), ()), ReLU(), he(rng, 1, 3)))
        first, block, head = net.layers[0].weight, net.layers[1], net.layers[3].weight
        most = 0.0
        for bits in every((0.0, 1.0), repeat=6):
            low, high = sorted((1.0, leaky.parameter))
            a = low + (high - low) * np.array(bits[:3])
            middle = (np.eye(3) + block.body[1].weight * a) @ first
            most = max(most, float(norms((head @ (np.array(bits[3:])[:, None] * middle))[None], norm)[0]))
        result = lipschitz_sdp(net, norm, method="barrier")
        assert result.value >= most * (1 - 1e-12)
        ratios.append(result.value / most)
    assert np.median(ratios) < (1.05 if norm == 2.0 else 1.3)


@both_norms
@pytest.mark.parametrize("seed", range(6))
def test_both_ways_to_the_same_optimum(norm, seed):
    """A plain ReLU chain as a chain and as a system."""
    rng = np.random.default_rng(seed)
    sizes = [(3, 4, 2), (4, 5, 5, 3), (2, 6, 1), (5, 3, 4, 3, 2), (9, 3, 3, 1), (1, 4, 4, 2)][seed]
    net = Network.from_weights([rng.standard_normal((b, a)) * math.sqrt(2 / a) for a, b in pairwise(sizes)])
    for outputs in (None, 0, *([(0, 1)] if sizes[-1] > 1 else [])):
        chain = lipschitz_sdp(net, norm, outputs=outputs, method="barrier")
        own = "all" if outputs is None else outputs
        certificate, status, stats = system_bound(net, norm, own, None, SystemRequest("barrier"))
        assert certificate is not None and certificate.verify(net) and status is Status.OK
        assert certificate.value == pytest.approx(chain.value, rel=2e-4)
        assert 0.0 <= dict(stats)["gap"] <= 1e-4


# -- on balls ------------------------------------------------------------------------------------------


@both_norms
@every_network
def test_no_jacobian_inside_a_ball_is_steeper(net, norm):
    """From a point to everything; the ball's norm need not be the constant's. Never above the bound over all inputs."""
    rng = np.random.default_rng(2)
    outputs = None if norm == 2.0 else 0
    whole = lipschitz_sdp(net, norm, outputs=outputs, method="barrier").value
    center = rng.standard_normal(3)
    for ball_norm, radii in ((2.0, (0.0, 1e-9, 1e-3, 0.3, 1e6)), (math.inf, (1e-2, 3.0))):
        found = []
        for radius in radii:
            result = lipschitz_sdp(net, norm, outputs=outputs, region=Ball(center, radius, ball_norm), method="barrier")
            steep = steepest(net, norm, outputs, rng, center, radius, ball_norm)
            assert steep <= result.value * (1 + 1e-9), radius
            if radius >= 1e-3:
                assert quotients(net, norm, outputs, rng, center, radius, ball_norm) <= result.value * (1 + 1e-6)
            assert result.value <= whole * (1 + 1e-12), radius
            assert result.certificate.verify(net) and result.bound.rigor is Rigor.RIGOROUS
            assert "ball" in result.bound.claim.domain
            found.append((steep, result.value))
        values = [v for _, v in found]
        assert all(a <= b * (1 + 2e-4) for a, b in pairwise(values)), values  # a larger ball is no smaller
        for (steep, value), radius in zip(found, radii, strict=True):
            assert radius > 1e-9 or value <= steep * (1 + 1e-3) + 1e-300


@both_norms
def test_small_balls_of_relu_networks_are_exact(norm):
    """Where no ReLU can switch the network is linear: the norm of its Jacobian, to 1e-9."""
    for seed in range(10):
        net = plain(ReLU(), seed)
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((1, 3))
        truth = float(norms(jacobians(net, x), norm)[0])
        for radius in (0.0, 1e-8):
            result = lipschitz_sdp(net, norm, region=Ball(x[0], radius, 2))
            assert truth * (1 - 1e-12) <= result.value <= truth * (1 + 1e-9) + 1e-300
            assert result.certificate.verify(net) and isinstance(result.certificate, SystemCertificate)


@both_norms
def test_every_pattern_that_the_slopes_allow_is_below(norm):
    """Exact maximum over the patterns of neurons that may switch on the ball, for tiny ReLU networks."""
    switched = local = 0
    for seed in range(25):
        rng = np.random.default_rng(seed)
        sizes = [(2, 4, 1), (3, 3, 3, 1), (2, 3, 2, 2)][seed % 3]
        net = plain(ReLU(), seed, sizes)
        ball = Ball(rng.standard_normal(sizes[0]), float(rng.choice([0.1, 0.5, 1.5])), rng.choice([2, math.inf]))
        allowed = slopes_on(net, ball)
        options = [[sorted({a, b}) for a, b in zip(low, high, strict=True)] for low, high in allowed]
        weights = [x.weight for x in net.layers if isinstance(x, Affine)]
        most = 0.0
        for pattern in every(*[every(*layer) for layer in options]):
            J = weights[0]
            for D, w in zip(pattern, weights[1:], strict=True):
                J = w @ (np.array(D)[:, None] * J)
            most = max(most, float(norms(J[None], norm)[0]))
        result = lipschitz_sdp(net, norm, region=ball, method="barrier")
        assert result.value >= most * (1 - 1e-12)
        switched += any(len(o) > 1 for layer in options for o in layer)
        local += result.value < lipschitz_sdp(net, norm, method="barrier").value * (1 - 1e-3)
    assert switched > 10 and local > 10


def test_dead_neurons_and_constants_on_balls():
    """Dead for the whole ball, by bias or by weight; a network that is constant there."""
    W = [np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]), np.array([[1.0, 1.0, 5.0]])]
    net = Network.from_weights(W, [np.array([-10.0, 0.0, 1.0]), None])
    result = lipschitz_sdp(net, 2, region=Ball([0.0, 0.0], 1.0, 2), method="barrier")
    assert 1.0 <= result.value <= 1.0 + 1e-3 and result.certificate.verify(net)
    off = Network.from_weights(W, [np.full(3, -10.0), None])
    result = lipschitz_sdp(off, 2, region=Ball([0.0, 0.0], 1.0, 2), method="barrier")
    assert 0.0 <= result.value < 1e-300 and result.certificate.verify(off)
    leaky = Network((Affine(W[0]), Activation("leaky_relu", 0.1), Affine(W[1])))
    for norm, truth in ((2.0, math.sqrt(2.0)), (math.inf, 2.0)):
        result = lipschitz_sdp(leaky, norm, method="barrier")
        assert truth <= result.value <= truth * (1 + 1e-4)


def test_a_network_that_is_constant_on_the_ball_before_its_last_activation():
    """What is left of the weights is rounding: no crash, and nothing wrong."""
    relu = plain(ReLU(), 7)
    center = np.random.default_rng(2).standard_normal(3)
    net = Network((*relu.layers, Activation("tanh")))
    assert float(norms(jacobians(net, center[None]), 2.0)[0]) == 0.0
    for norm in (2.0, math.inf):
        for outputs in (None, 0, (0, 1)):
            result = lipschitz_sdp(net, norm, outputs=outputs, region=Ball(center, 1e-3, 2), method="barrier")
            whole = lipschitz_sdp(net, norm, outputs=outputs, method="barrier")
            assert 0.0 <= result.value <= whole.value and result.certificate.verify(net)


@pytest.mark.parametrize("method", ["barrier", "closed-form", "auto", "first-order"])
def test_methods_on_systems_and_balls(method):
    net = residual(Activation("silu"), 3)
    closed = lipschitz_sdp(net, 2, method="closed-form").value
    result = lipschitz_sdp(net, 2, method=method)
    assert result.value <= closed * (1 + 1e-9) and result.certificate.verify(net)
    ball = Ball(np.zeros(3), 0.1, "inf")
    local = lipschitz_sdp(net, 2, region=ball, method=method)
    assert local.value < result.value and local.certificate.verify(net)
    rng = np.random.default_rng(0)
    assert steepest(net, 2.0, None, rng, np.zeros(3), 0.1, math.inf) <= local.value


@both_norms
def test_neurons_that_no_input_reaches_cost_nothing(norm):
    """Chains with dead neurons, dead ones that feed dead ones, and ones that nobody reads: the pattern maximum."""
    W = [np.array([[-3.0], [-3.0], [2.0], [0.0]]), np.array([[-1.0, 1.0, 2.0, -3.0]])]
    result = lipschitz_sdp(W, norm, method="barrier")
    assert 7.0 <= result.value <= 7.0 * (1 + 1e-4) and result.status is Status.OK
    deep = [np.array([[1.0], [0.0], [0.0]]), np.array([[1.0, 5.0, 0.0], [0.0, 7.0, 9.0], [0.0, 0.0, 8.0]]),
            np.array([[2.0, 6.0, 9.0], [0.0, 3.0, 0.0]]), np.array([[1.0, 4.0]])]  # fmt: skip
    result = lipschitz_sdp(deep, norm, method="barrier")
    assert 2.0 <= result.value <= 2.0 * (1 + 1e-4) and result.certificate.verify(deep)


@both_norms
@pytest.mark.parametrize("scale", [(1e8, 1.0, 1e-8, 1e4), (1e-6, 1e6, 1.0, 1.0)], ids=str)
def test_badly_scaled_rows_keep_their_multipliers(norm, scale):
    """Rows of 1e±8, multipliers of 1e±16: within a hair of the pattern maximum, which one row decides."""
    rng = np.random.default_rng(3)
    W = [
        rng.standard_normal((4, 3)) * np.array(scale)[:, None],
        rng.standard_normal((4, 4)),
        rng.standard_normal((1, 4)),
    ]
    result = lipschitz_sdp(W, norm, method="barrier")
    most = pattern_maximum(W[:-1], W[-1], norm)
    assert most * (1 - 1e-9) <= result.value <= most * (1 + 1e-2) and result.certificate.verify(W)


def test_margins_on_balls():
    net = plain(Activation("tanh"), 1, (3, 4, 3))
    ball = Ball(np.zeros(3), 0.5, 2)
    results = lipschitz_sdp(net, math.inf, outputs="margins", region=ball, method="barrier")
    rng = np.random.default_rng(0)
    for result, pair in zip(results, [(0, 1), (0, 2), (1, 2)], strict=True):
        assert result.bound.claim.outputs == pair and result.certificate.verify(net)
        assert steepest(net, math.inf, pair, rng, np.zeros(3), 0.5, 2.0) <= result.value * (1 + 1e-9)


def test_time_limits_give_what_there_is():
    net = residual(Activation("gelu"), 3)
    result = lipschitz_sdp(net, 2, method="barrier", time_limit=1e-9)
    assert result.status is Status.TIME_LIMIT and result.certificate.verify(net)
    assert result.value <= lipschitz_sdp(net, 2, method="closed-form").value * (1 + 1e-9)


def test_weights_out_of_range_give_a_product():
    """Products of weights that leave the range of the system: the product of norms, or ∞, never a wrong number."""
    huge = Network((Affine([[2.0**300]]), Affine([[2.0**300]]), Activation("leaky_relu", 0.1), Affine([[2.0**-600]])))
    tiny = Network((Affine([[2.0**-300]]), Affine([[2.0**-300]]), Activation("leaky_relu", 0.1), Affine([[2.0**600]])))
    for net in (huge, tiny):
        for region in (None, Ball([0.5], 0.1, 2)):
            result = lipschitz_sdp(net, 2, region=region)
            assert result.value >= 1.0 and result.certificate.verify(net)


# -- refusals ------------------------------------------------------------------------------------------

NET = plain(ReLU(), 0)
SMOOTH_NET = plain(Activation("tanh"), 0)
BALL = Ball(np.zeros(3), 0.1, 2)


@pytest.mark.parametrize(
    ("argument", "net", "options"),
    [
        ("region", NET, {"region": (np.zeros(3), 0.1)}),
        ("region", NET, {"region": 0.1}),
        ("region", NET, {"region": Ball(np.zeros(4), 0.1, 2)}),
        ("region", NET, {"region": BALL, "method": "path-norms"}),
        ("method", NET, {"region": BALL, "method": "cvxpy"}),
        ("method", SMOOTH_NET, {"method": "cvxpy"}),
        ("method", NET, {"method": "newton"}),
        ("method", NET, {"method": None}),
        ("device", NET, {"method": "barrier", "device": "cpu"}),
        ("device", SMOOTH_NET, {"method": "closed-form", "device": "cuda"}),
        ("tolerance", NET, {"tolerance": 0.0}),
        ("tolerance", NET, {"tolerance": math.nan}),
        ("tolerance", NET, {"tolerance": 1.0}),
        ("time_limit", NET, {"time_limit": 0.0}),
        ("time_limit", NET, {"time_limit": math.nan}),
        ("norm", NET, {"norm": 1}),
        ("norm", NET, {"norm": math.nan}),
        ("outputs", NET, {"outputs": 2}),
        ("outputs", NET, {"outputs": -1}),
        ("outputs", NET, {"outputs": (0, 0)}),
        ("outputs", NET, {"outputs": True}),
        ("outputs", NET, {"outputs": 0.0}),
        ("outputs", NET, {"outputs": (0, 1, 1)}),
        ("outputs", NET, {"outputs": "margin"}),
        ("outputs", plain(ReLU(), 0, (2, 3, 1)), {"outputs": "margins"}),
        ("model", "a network", {}),
    ],
    ids=lambda x: str(x)[:40] if isinstance(x, (str, dict)) else "",
)
def test_errors_name_the_argument(argument, net, options):
    with pytest.raises(InputError) as error:
        lipschitz_sdp(net, **options)
    assert str(error.value).startswith(argument) or argument in str(error.value).split(":")[0]


@pytest.mark.parametrize(
    ("argument", "values"),
    [("center", ([math.nan, 0.0, 0.0], 0.1, 2)), ("center", ([math.inf, 0.0, 0.0], 0.1, 2)),
     ("radius", (np.zeros(3), math.nan, 2)), ("radius", (np.zeros(3), -0.1, 2)), ("radius", (np.zeros(3), math.inf, 2)),
     ("norm", (np.zeros(3), 0.1, 1))],
)  # fmt: skip
def test_balls_that_are_none(argument, values):
    with pytest.raises(InputError, match=argument):
        Ball(*values)


def test_the_metric_of_nothing_is_positive():
    """Nothing to bound, or what underflows: a direction is needed all the same, and no warning."""
    from certbound.lipschitz.riccati import metric

    for size in (0.0, 5e-324, 1e-290):
        d = metric(size * np.ones((3, 3)))
        assert np.all(d > 0.0) and np.all(np.isfinite(d))


def test_the_gap_follows_the_bound_that_is_shown(monkeypatch):
    """A product of norms below what the solver had: the gap is to the same dual bound, not 0."""
    net = Network((Affine(np.eye(3)), Activation("tanh"), Affine(np.eye(3)), Activation("tanh"), Affine(np.eye(3))))
    real = sdp.system_bound

    def worse(*args):
        certificate, status, _ = real(*args)
        return dataclasses.replace(certificate, value=2.0), status, (("gap", 1.5),)  # the optimum: at least 0.8

    monkeypatch.setattr(sdp, "system_bound", worse)
    result = lipschitz_sdp(net, method="barrier")
    assert result.value == pytest.approx(1.0) and result.gap == pytest.approx(0.25) and result.certificate.verify(net)
