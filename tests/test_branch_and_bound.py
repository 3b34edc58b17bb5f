"""Brackets by branch and bound: every leaf against exact patterns, both ends against enumeration, forgeries refused."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from itertools import product as every

import numpy as np
import pytest
from rationals import fractions, product, spectral_norm_at_most
from tamper import every_flip_refused, forged

from certbound import (
    Affine,
    Ball,
    CertificateError,
    InputError,
    Network,
    ReLU,
    lipschitz_exact,
    lipschitz_patterns,
    lipschitz_sampled,
    lipschitz_sdp,
)
from certbound.activations import Activation
from certbound.certificate import load_certificate
from certbound.errors import CertboundError
from certbound.lipschitz import branch_and_bound, node_sdp
from certbound.lipschitz.barrier import Limits, solve
from certbound.lipschitz.branch_and_bound import lipschitz_bracket
from certbound.lipschitz.empty_cells import Chain, contradiction
from certbound.lipschitz.node_sdp import best_pattern, members, node_bound, pattern_norms
from certbound.lipschitz.region_slopes import slopes_on
from certbound.lipschitz.system import System
from certbound.lipschitz.tree_certificate import EMPTY, PROVED, Neurons, Tree, TreeCertificate
from certbound.network import Normalise, Residual
from certbound.types import Rigor, Sense, Status

both_norms = pytest.mark.parametrize("norm", [2.0, math.inf], ids=["2", "inf"])
HAT = Network.from_weights([[[1.0], [1.0], [1.0]], [[1.0, -2.0, 1.0]]], [[0.0, -1.0, -2.0], None])


def gaussian(*sizes, seed=0, bias=True):
    rng = np.random.default_rng(seed)
    weights = [rng.standard_normal((b, a)) * math.sqrt(2 / a) for a, b in pairwise(sizes)]
    return Network.from_weights(weights, [rng.standard_normal(len(w)) * 0.5 for w in weights] if bias else None)


def integers(*sizes, seed=0):
    rng = np.random.default_rng(seed)
    weights = [rng.integers(-2, 3, (b, a)).astype(float) for a, b in pairwise(sizes)]
    return Network.from_weights(weights, [rng.integers(-2, 3, len(w)).astype(float) for w in weights])


def leaves(tree):
    """(mark, what it is proved by, path) of every leaf of a tree."""
    nodes, proofs, empty = iter(tree.nodes), iter(tree.proofs), iter(tree.empty)

    def walk(path):
        node = next(nodes)
        if node == PROVED:
            yield node, next(proofs), path
        elif node == EMPTY:
            yield node, next(empty), path
        else:
            for on in (False, True):
                yield from walk({**path, node: on})

    yield from walk({})


def leaf_of(tree, signs):
    """The one leaf that a whole pattern is in."""
    (found,) = [x for x in leaves(tree) if all(signs[n] == on for n, on in x[2].items())]
    return found


def jacobian(weights, signs, off):
    J, at = fractions(weights[0]), 0
    for W in weights[1:]:
        slopes = [Fraction(1) if signs[at + i] else off for i in range(len(J))]
        at += len(J)
        J = product(fractions(W), [[s * v for v in row] for s, row in zip(slopes, J, strict=True)])
    return J


def bounded(J, norm, value):
    if math.isinf(norm):
        return all(sum((abs(v) for v in row), Fraction(0)) <= Fraction(value) for row in J)
    return spectral_norm_at_most(J, Fraction(value))


def accepts(certificate, network):
    try:
        return certificate.verify(network)
    except CertificateError:
        return False


# -- the upper end -----------------------------------------------------------------------------------------


@both_norms
def test_every_leaf_bounds_every_pattern_in_it_exactly(norm):
    """In rationals, pattern by pattern: proved leaves bound it; no sampled input is in an empty one."""
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((4000, 2)) * rng.choice([0.3, 1.0, 4.0], (4000, 1))
    empty = 0
    for seed, slope in [(0, 0.0), (1, 0.0), (2, 0.25), (3, -0.5), (4, 1.5)]:
        W = [x.weight for x in gaussian(2, 4, 3, 2, seed=seed).layers if isinstance(x, Affine)]
        b = [np.round(rng.standard_normal(len(w)), 2) for w in W]
        phi = ReLU() if slope == 0.0 else Activation("leaky_relu", slope)
        network = Network((Affine(W[0], b[0]), phi, Affine(W[1], b[1]), phi, Affine(W[2], b[2])))
        certificate = lipschitz_bracket(network, norm, tolerance=1e-6, max_nodes=40).upper.certificate
        assert isinstance(certificate, TreeCertificate) and certificate.verify(network)
        z1 = inputs @ W[0].T + b[0]
        z2 = np.where(z1 > 0, z1, slope * z1) @ W[1].T + b[1]
        realised = {tuple(row) for row in np.hstack([z1 > 0, z2 > 0]).tolist()}
        for tree in certificate.trees:
            for signs in every((False, True), repeat=7):
                mark, proof, _ = leaf_of(tree, signs)
                if mark == EMPTY:
                    empty += 1
                    assert signs not in realised
                    continue
                J = jacobian(W, signs, Fraction(slope))
                J = J if tree.outputs == "all" else [J[tree.outputs]]
                assert bounded(J, norm, proof.value) and proof.value <= certificate.value
    assert empty > 50


@both_norms
@pytest.mark.parametrize("seed", range(4))
def test_the_bracket_is_around_the_exact_constant(norm, seed):
    network = gaussian(3, 5, 4, 2, seed=seed) if seed % 2 else integers(3, 5, 4, 2, seed=seed)
    exact = lipschitz_exact(network, norm)
    assert exact.exact
    bracket = lipschitz_bracket(network, norm, tolerance=1e-4)
    assert bracket.lower.value <= exact.value * (1 + 1e-12) and bracket.upper.value >= exact.lower.value * (1 - 1e-12)
    assert dict(bracket.stats)["ended"] == "gap closed" and bracket.gap <= 1e-4 and bracket.status is Status.OK
    assert bracket.lower.sense is Sense.LOWER and bracket.upper.sense is Sense.UPPER
    assert bracket.lower.rigor is bracket.upper.rigor is Rigor.RIGOROUS
    assert bracket.lower.claim == bracket.upper.claim
    assert bracket.lower.certificate.verify(network) and bracket.upper.certificate.verify(network)


@both_norms
@pytest.mark.parametrize("seed", range(3))
def test_without_cells_the_upper_end_falls_to_the_largest_pattern(norm, seed, monkeypatch):
    monkeypatch.setattr(branch_and_bound, "_CELL_INPUTS", 0)
    network = gaussian(3, 5, 4, 2, seed=seed, bias=False)
    largest = lipschitz_patterns(network, norm).value
    bracket = lipschitz_bracket(network, norm, tolerance=1e-3)
    stats = dict(bracket.stats)
    assert largest * (1 - 1e-9) <= bracket.upper.value <= largest * (1 + 1.1e-3)
    assert stats["ended"] in ("pattern maximum reached", "gap closed") and stats["empty cells"] == 0
    assert bracket.status is Status.OK and bracket.upper.certificate.verify(network)
    assert stats["largest pattern found"] <= largest * (1 + 1e-9)


def test_without_cells_an_open_gap_is_said_to_be_the_patterns(monkeypatch):
    """The hat's slopes are 0, ±1; the pattern (0, 1, 0) has 2, and no input realises it."""
    monkeypatch.setattr(branch_and_bound, "_CELL_INPUTS", 0)
    for inputs in (0, 1):
        monkeypatch.setattr(branch_and_bound, "_POINT_INPUTS", inputs)
        bracket = lipschitz_bracket(HAT)
        assert dict(bracket.stats)["ended"] == "pattern maximum reached"
        assert bracket.upper.value == pytest.approx(2.0, rel=2e-3) and bracket.lower.value == pytest.approx(1.0)
        assert bracket.gap == pytest.approx(1.0, abs=0.01)


def test_a_point_of_a_cell_raises_the_lower_end(monkeypatch):
    """A lower end that was not sampled at all: the cells' points find it."""
    monkeypatch.setattr(branch_and_bound, "_lower_end", lambda net, norm, outputs, *_: lipschitz_sampled(
        net, norm, outputs=None if outputs == "all" else outputs, n_samples=1, ascent_steps=0).bound)  # fmt: skip
    network = gaussian(4, 6, 4, 2, seed=3)
    for norm in (2.0, math.inf):
        bracket = lipschitz_bracket(network, norm)
        assert bracket.gap <= 1e-3 and bracket.lower.method == "Jacobian norm at a point of a cell"
        assert bracket.lower.rigor is Rigor.RIGOROUS and bracket.lower.certificate.verify(network)


@both_norms
def test_never_above_the_sdp_bound(norm):
    for seed in range(3):
        network = gaussian(8, 12, 12, 2, seed=seed)
        bracket = lipschitz_bracket(network, norm, outputs=1, max_nodes=seed)
        assert bracket.upper.value <= lipschitz_sdp(network, norm, outputs=1).value
        assert dict(bracket.stats)["splits"] <= seed
    assert bracket.status is Status.TIME_LIMIT and dict(bracket.stats)["ended"] == "node limit"


def test_the_first_splits_help():
    network = gaussian(6, 10, 10, 3)
    first, later = (lipschitz_bracket(network, "inf", outputs=0, max_nodes=n).upper.value for n in (0, 25))
    assert later < 0.97 * first


def test_a_time_limit_is_kept():
    network = gaussian(16, 32, 32, 4)
    start = time.perf_counter()
    bracket = lipschitz_bracket(network, 2, time_limit=1.0)
    assert time.perf_counter() - start < 6.0  # shared machines stall
    assert bracket.status is Status.TIME_LIMIT and dict(bracket.stats)["ended"] == "time limit"
    assert 0.0 < bracket.lower.value < bracket.upper.value and bracket.upper.certificate.verify(network)


# -- other networks ----------------------------------------------------------------------------------------


def test_residual_networks():
    """Against every pattern of x ↦ c·(z + V relu(U z)), z = W x, in floating point."""
    better = 0
    for seed in range(3):
        rng = np.random.default_rng(seed)
        W, U, V, c = (rng.standard_normal(s) for s in ((4, 3), (6, 4), (4, 6), (2, 4)))
        network = Network((Affine(W), Residual((Affine(U), ReLU(), Affine(V)), ()), Affine(c)))
        bracket = lipschitz_bracket(network, "inf", outputs=1)
        rows = [c[1] @ (np.eye(4) + V @ np.diag(d) @ U) @ W for d in every((0.0, 1.0), repeat=6)]
        largest = max(float(np.abs(r).sum()) for r in rows)
        assert largest * (1 - 1e-9) <= bracket.upper.value <= largest * 1.0011
        better += bracket.upper.value < 0.999 * lipschitz_sdp(network, "inf", outputs=1).value
        assert bracket.upper.certificate.verify(network)
        assert bracket.lower.value == 0.0 and bracket.gap == math.inf
    assert better


def test_smooth_activations_are_never_split():
    rng = np.random.default_rng(6)
    layers = (Affine(rng.standard_normal((3, 2))), Activation("tanh"), Affine(rng.standard_normal((4, 3))), ReLU(),
              Affine(rng.standard_normal((1, 4))))  # fmt: skip
    network = Network(layers)
    bracket = lipschitz_bracket(network, 2, max_nodes=30)
    certificate = bracket.upper.certificate
    assert isinstance(certificate, TreeCertificate) and certificate.verify(network)
    assert bracket.upper.value < 0.999 * lipschitz_sdp(network, 2).value
    assert all(node < 0 or node >= 3 for node in certificate.trees[0].nodes)
    x, y = rng.standard_normal((2, 20000, 2))
    slopes = np.abs(network.forward(x) - network.forward(y))[:, 0] / np.linalg.norm(x - y, axis=1)
    assert float(slopes.max()) <= bracket.upper.value
    (tree,) = certificate.trees
    split = replace(certificate, trees=(replace(tree, nodes=(0, PROVED, PROVED), proofs=tree.proofs[:1] * 2),))
    with pytest.raises(CertificateError, match="no two values"):
        split.verify(network)


@both_norms
def test_on_a_ball(norm):
    network = gaussian(3, 8, 6, 2, seed=5)
    ball = Ball(np.array([0.3, -0.2, 0.5]), 0.3, norm)
    bracket = lipschitz_bracket(network, norm, region=ball)
    whole = lipschitz_bracket(network, norm, tolerance=0.2)
    certificate = bracket.upper.certificate
    assert isinstance(certificate, TreeCertificate) and certificate.verify(network) and certificate.ball == ball
    assert str(ball) == bracket.upper.claim.domain == bracket.lower.claim.domain
    sampled = lipschitz_sampled(network, norm, region=ball, n_samples=4000).value
    assert sampled <= bracket.upper.value * (1 + 1e-12) < whole.upper.value
    assert bracket.upper.value <= lipschitz_sdp(network, norm, region=ball).value
    # slopes of fewer inputs than those of the ball are refused
    least, most = slopes_on(network, ball)[0]
    open_ = int(np.flatnonzero(least < most)[0])
    low = certificate.slopes[0][0].copy()
    low[open_] = 1.0
    narrow = replace(certificate, slopes=((low, certificate.slopes[0][1]), *certificate.slopes[1:]))
    for wrong in (narrow, replace(certificate, slopes=certificate.slopes[1:]), replace(certificate, slopes=()),
                  replace(certificate, ball=None), replace(certificate, ball=Ball([0.0], 0.3, norm)),
                  replace(certificate, ball=Ball(ball.center, 3.0, norm))):  # fmt: skip
        assert not accepts(wrong, network)
    with pytest.raises(CertificateError, match="not those of every input"):
        narrow.verify(network)


@pytest.mark.parametrize(
    "weights",
    [
        [[[1.0]], [[1.0]]],
        [[[0.0]], [[1.0]]],
        [[[1.0], [0.0]], [[1.0, 1.0], [0.0, 0.0]], [[1.0, 2.0]]],
        [[[2.0, -1.0]]],
        [[[1.0], [2.0]], [[0.0, 0.0]]],
    ],
)
@both_norms
def test_degenerate_networks(weights, norm):
    """Dead neurons, no hidden layer, constants: a valid bracket around the exact constant."""
    network = Network.from_weights(weights)
    exact = lipschitz_exact(network, norm)
    bracket = lipschitz_bracket(network, norm, time_limit=5.0)
    assert bracket.lower.value <= exact.value * (1 + 1e-12)
    assert exact.lower.value * (1 - 1e-12) <= bracket.upper.value <= exact.value * (1 + 1.1e-3) + 1e-6
    assert bracket.upper.certificate.verify(network)


def test_a_final_relu_and_margins():
    network = gaussian(3, 5, 3, seed=2)
    ended = Network((*network.layers, ReLU()))
    for net, outputs in ((network, (0, 2)), (ended, (0, 2)), (ended, None)):
        exact = lipschitz_exact(net, 2, outputs=outputs)
        bracket = lipschitz_bracket(net, 2, outputs=outputs)
        assert bracket.lower.value <= exact.value * (1 + 1e-12)
        assert exact.lower.value * (1 - 1e-12) <= bracket.upper.value <= exact.value * 1.0011
        assert bracket.upper.certificate.verify(net)


# -- neurons that the system drops -------------------------------------------------------------------------

ONES = Affine([[1.0, 1.0, 1.0]])
DROPPED = {
    "ReLU after ReLU": (Affine([[1.0], [-2.0]]), ReLU(), ReLU(), Affine([[-2.0, 1.0]], [1.0]), ReLU()),
    "zero after ReLU after ReLU": (Affine([[1.0]]), ReLU(), ReLU(), Affine([[-2.0]]), ReLU(), Affine([[1.0]])),
    "zero rows": (Affine([[1.0], [0.0], [0.0]], [-1.0, -1.0, 0.0]), ReLU(),
                  Affine([[2.0, -1.0, -2.0], [-2.0, -1.0, 2.0], [0.0, -2.0, -1.0]]), ReLU(), ONES),
    "zero row, leaky": (Affine([[0.0, 1.0], [-1.0, 0.0], [0.0, 0.0]], [-2.0, 1.0, 0.0]),
                        Activation("leaky_relu", -0.5),
                        Affine([[1.0, -1.0, 0.0], [-2.0, 2.0, -3.0], [-2.0, 0.0, 2.0]]), ReLU(), ONES),
    "dead state": (Affine([[0.0], [1.0]], [1.0, 0.0]), ReLU(), Affine([[1.0, 0.0], [0.0, 1.0], [2.0, -1.0]],
                   [-2.0, 1.0, 0.0]), ReLU(), Affine([[1.0, 0.0, 0.0], [1.0, 1.0, -2.0]], [1.0, 1.0]), ReLU(),
                   Affine([[3.0, -1.0]])),
    "constant that counts": (Affine([[0.0, -1.0], [0.0, 0.0]], [0.0, 1.0]), ReLU(),
                             Affine([[1.0, 4.0], [1.0, 1.0], [-2.0, -1.0]]), ReLU(), Affine([[2.0, -1.0, 5.0]])),
}  # fmt: skip


@both_norms
@pytest.mark.parametrize("layers", DROPPED.values(), ids=DROPPED.keys())
def test_neurons_that_the_system_drops(layers, norm):
    """Against sampled slopes of the small nets, dense enough to reach every piece, up to what the tolerance allows."""
    network = Network(layers)
    bracket = lipschitz_bracket(network, norm, outputs=0, time_limit=20.0)
    # a leaky net has no lower end to close the gap with
    assert dict(bracket.stats)["ended"] == "gap closed" if network.is_relu_chain else bracket.gap == math.inf
    assert bracket.upper.certificate.verify(network)
    x = np.random.default_rng(0).uniform(-6, 6, (20_000, network.n_inputs))
    step = 1e-4
    values = network.forward(x)
    partial = [(network.forward(x + step * e) - values)[:, 0] / step for e in np.eye(network.n_inputs)]
    gradient = np.stack(partial, axis=1)
    largest = float(np.max(np.linalg.norm(gradient, 1 if math.isinf(norm) else 2, axis=1)))
    assert largest * (1 - 1e-6) <= bracket.upper.value <= largest * 1.0011 + 1e-12


def test_points_raise_the_lower_end_of_a_network_with_dropped_neurons(monkeypatch):
    monkeypatch.setattr(branch_and_bound, "_lower_end", lambda net, norm, outputs, *_: replace(
        lipschitz_sampled(net, norm, n_samples=1, ascent_steps=0).bound, value=0.0))  # fmt: skip
    for name in ("constant that counts", "zero rows", "dead state"):
        bracket = lipschitz_bracket(Network(DROPPED[name]))
        assert bracket.gap <= 1e-3 and bracket.lower.method == "Jacobian norm at a point of a cell"


def awkward(rng):
    """Zero rows, ReLU after ReLU, leaky and smooth layers, residual sums, rows of very different size."""
    n, h = (int(v) for v in rng.integers(1, 4, 2))

    def matrix(*shape):
        return np.round(rng.standard_normal(shape) * 1.2)

    def active():
        leaky = Activation("leaky_relu", float(rng.choice([-0.5, 0.25, 1.5])))
        kinds = [[ReLU()], [ReLU(), ReLU()], [leaky], [Activation("tanh"), ReLU()]]
        return kinds[int(rng.choice(4, p=[0.4, 0.3, 0.2, 0.1]))]

    first = matrix(h, n) * np.exp2(rng.choice([0, 0, 0, 30, -30], (h, 1)))
    layers = [Affine(first, matrix(h)), *active()]
    if rng.random() < 0.2:
        layers.append(Residual((Affine(matrix(h, h)), ReLU()), ()))
    if rng.random() < 0.2:
        layers.insert(0, Normalise(np.zeros(n), np.full(n, 0.3)))
    return Network((*layers, Affine(matrix(2, h), matrix(2)), *active(), Affine(matrix(1, 2))))


def test_awkward_networks_never_crash():
    rng = np.random.default_rng(1)
    verified = 0
    for i in range(60):  # what may escape is a CertboundError
        network, norm = awkward(rng), (2.0, math.inf)[i % 2]
        ball = Ball(rng.standard_normal(network.n_inputs), 1.0, norm) if i % 4 == 3 else None
        try:
            bracket = lipschitz_bracket(network, norm, region=ball, time_limit=1.0, max_nodes=12)
        except CertboundError:
            continue
        x = rng.uniform(-1.0, 1.0, (2, 200, network.n_inputs))
        x = x * 5.0 if ball is None else ball.center + 0.5 * x
        order = np.inf if math.isinf(norm) else 2
        moved = np.abs(network.forward(x[0]) - network.forward(x[1]))[:, 0]
        slopes = moved / np.linalg.norm(x[0] - x[1], order, axis=1)
        assert float(slopes.max()) <= bracket.upper.value * (1 + 1e-9)
        assert bracket.lower.value <= bracket.upper.value * (1 + 1e-12)
        if bracket.upper.certificate is not None:
            assert bracket.upper.certificate.verify(network)
            verified += isinstance(bracket.upper.certificate, TreeCertificate)
    assert verified > 20


def test_members_are_the_rows_of_the_system():
    """At nodes too: the system with other slopes has one row for each, in order."""
    rng = np.random.default_rng(2)
    dropped = 0
    for _ in range(60):
        network = awkward(rng)
        neurons = Neurons.of(network)
        for n in np.flatnonzero(neurons.open)[::2].tolist():
            neurons = neurons.fixed(n, on=bool(rng.random() < 0.5))
            system = System.of(network, "all", neurons.slopes)
            found = members(network, neurons, system)
            assert len(found) == sum(len(s.W.matrix) for s in system.steps)
            dropped += int(np.sum(neurons.low < neurons.high)) - len(found)
    assert dropped > 60
    # which: of a first layer the rows that are not 0, of a second those that read one of these
    layers = (Affine([[0.0], [1.0]], [1.0, 0.0]), ReLU(), Affine([[1.0, 0.0], [1.0, 1.0], [0.0, 3.0]]), ReLU(), ONES)
    network = Network(layers)
    assert members(network, Neurons.of(network), System.of(network)).tolist() == [1, 3, 4]


def test_a_constant_neuron_is_known_to_contradictions():
    """relu(0 x + 1) = 1 and leaky(0 x − 4) = −1 whatever their slopes; relu(x) is not constant, tanh not known."""
    leaky = Activation("leaky_relu", 0.25)
    for kind, b, constant in ((ReLU(), 1.0, Fraction(1)), (leaky, -4.0, Fraction(-1)), (ReLU(), -1.0, Fraction(0))):
        network = Network((Affine([[0.0], [2.0]], [b, 0.0]), kind, Affine([[3.0, 1.0]]), ReLU(), Affine([[1.0]])))
        chain, neurons = Chain.of(network), Neurons.of(network)
        assert chain.form(1, 0, neurons.slopes) is None
        slopes = neurons.fixed(1, on=True).slopes
        assert chain.form(1, 0, slopes) == ([Fraction(2)], 3 * constant)
        A, c, known = chain.forms(slopes)[1]
        assert known.all() and A.tolist() == [[2.0]] and c.tolist() == [3.0 * float(constant)]
    smooth = Network((Affine([[0.0]], [1.0]), Activation("tanh"), Affine([[3.0]]), ReLU(), Affine([[1.0]])))
    assert Chain.of(smooth).form(1, 0, Neurons.of(smooth).slopes) is None


def test_a_node_that_cannot_be_proved_keeps_the_bound_above(monkeypatch):
    network = gaussian(2, 4, 3, 2, seed=1)
    exact = lipschitz_exact(network, 2).value
    whole = node_bound(network, Neurons.of(network), "all", 2.0, None, Limits(1e-4)).value

    def failing(depths):
        def bound(net, neurons, *rest):
            fixed = int(np.sum(neurons.low == neurons.high))
            return None if fixed in depths else node_bound(net, neurons, *rest)

        monkeypatch.setattr(branch_and_bound, "node_bound", bound)
        bracket = lipschitz_bracket(network, 2)
        assert bracket.lower.value <= exact * (1 + 1e-12) and exact * (1 - 1e-12) <= bracket.upper.value
        assert bracket.upper.certificate.verify(network)
        return bracket

    # the search goes on below nodes without a proof
    through = failing((1, 3))
    assert dict(through.stats)["ended"] == "gap closed" and through.upper.value < 0.99 * whole
    never = failing(range(1, 8))
    assert never.status is Status.FAILED and never.upper.value == pytest.approx(whole, rel=1e-3)
    assert dict(never.stats)["ended"] == "a node could not be proved"


def test_what_linear_algebra_refuses_is_no_bound(monkeypatch):
    def broken(*_):
        raise np.linalg.LinAlgError("array must not contain infs or NaNs")

    network = gaussian(2, 4, 3, 2, seed=1)
    for name in ("_solved", "closed_form"):
        with monkeypatch.context() as m:
            m.setattr(node_sdp, name, broken)
            found = node_bound(network, Neurons.of(network), "all", 2.0, None, Limits(1e-4))
            assert (found is None) == (name == "closed_form")
            bracket = lipschitz_bracket(network, 2, max_nodes=3)
            assert bracket.upper.certificate.verify(network)


def test_newton_ends_once_the_objective_is_below_a_value():
    W = [np.asarray(x.weight) for x in gaussian(3, 5, 4, 2).layers if isinstance(x, Affine)]
    best = solve(W[:-1], W[-1], 2.0, Limits(1e-9))
    below = solve(W[:-1], W[-1], 2.0, Limits(1e-9, below=1.1 * best.value))
    assert best.status == "optimal" and below.status == "below"
    assert best.value < below.value < 1.1 * best.value and below.steps < best.steps
    assert solve(W[:-1], W[-1], 2.0, Limits(1e-9, below=0.9 * best.value)).status == "optimal"


# -- the result --------------------------------------------------------------------------------------------


def test_what_it_prints_and_writes():
    bracket = lipschitz_bracket(HAT)
    shown = str(bracket)
    assert "gap closed" in shown and ">= 0.99999  (rigorous)" in shown and "<= 1.0" in shown
    data = bracket.to_dict()
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert data["lower"]["value"] == bracket.lower.value and data["upper"]["value"] == bracket.upper.value
    assert replace(bracket, lower=replace(bracket.lower, value=0.0)).gap == math.inf
    zero = replace(bracket, lower=replace(bracket.lower, value=0.0), upper=replace(bracket.upper, value=0.0))
    assert zero.gap == 0.0


@pytest.mark.parametrize(
    "wrong",
    [{"tolerance": 0.0}, {"time_limit": 0.0}, {"max_nodes": -1}, {"max_nodes": True}, {"outputs": 7}, {"norm": 1},
     {"region": 3}],
)  # fmt: skip
def test_wrong_arguments(wrong):
    with pytest.raises(InputError):
        lipschitz_bracket(HAT, **wrong)


def test_too_many_neurons_are_not_split(monkeypatch):
    monkeypatch.setattr(branch_and_bound, "MAX_NEURONS", 2)
    bracket = lipschitz_bracket(HAT)
    assert bracket.status is Status.TOO_LARGE and bracket.upper.value == lipschitz_sdp(HAT, 2).value


# -- its parts ---------------------------------------------------------------------------------------------


def test_forms_are_what_a_neuron_reads():
    rng = np.random.default_rng(3)
    W = [rng.standard_normal((4, 3)), rng.standard_normal((3, 4)), rng.standard_normal((2, 3))]
    b = [rng.standard_normal(4), rng.standard_normal(3), None]
    mean, std = rng.standard_normal(3), rng.uniform(0.5, 2.0, 3)
    leaky = Activation("leaky_relu", 0.25)
    network = Network((Normalise(mean, std), Affine(W[0], b[0]), leaky, Affine(W[1], b[1]), leaky, Affine(W[2])))
    chain = Chain.of(network)
    x = rng.standard_normal(3)
    z = W[0] @ ((x - mean) / std) + b[0]
    h = np.where(z > 0, z, 0.25 * z)
    slope = np.where(z > 0, 1.0, 0.25)
    z2 = W[1] @ h + b[1]
    slopes = [(slope, slope), (np.full(3, 0.25), np.ones(3))]
    for layer, values in ((0, z), (1, z2)):
        A, c, known = chain.forms(slopes)[layer]
        assert known.all() and A @ x + c == pytest.approx(values)
        for j, value in enumerate(values):
            row, offset = chain.form(layer, j, slopes)
            exact = sum((a * Fraction(v) for a, v in zip(row, x.tolist(), strict=True)), offset)
            assert float(exact) == pytest.approx(value)
    unknown = [(np.full(4, 0.25), np.ones(4)), slopes[1]]
    assert chain.form(1, 0, unknown) is None and not chain.forms(unknown)[1][2].any()
    assert Chain.of(Network((Residual((Affine(np.eye(2)), ReLU()), ()),))) is None


def test_contradictions_are_true():
    """Small integers, so that null vectors and ties are frequent: no point has the signs of what is refused."""
    rng = np.random.default_rng(0)
    points = np.vstack([rng.standard_normal((3000, 2)) * s for s in (0.5, 3.0)])
    found = 0
    for _ in range(3000):
        m = int(rng.integers(1, 5))
        A, c, on = rng.integers(-2, 3, (m, 2)), rng.integers(-2, 3, m), rng.random(m) < 0.5
        forms = [([Fraction(int(v)) for v in row], Fraction(int(o))) for row, o in zip(A, c, strict=True)]
        z = points @ A.T + c
        seen = bool(np.any(np.all((z > 0) == on, axis=1)))
        if contradiction(forms, on.tolist()):
            found += 1
            assert not seen, (A, c, on)
    assert found > 100


def test_contradictions_by_hand():
    x, y, zero, one = [Fraction(1)], [Fraction(-1)], [Fraction(0)], Fraction(1)
    assert contradiction([(zero, -one)], [True]) and contradiction([(zero, one)], [False])
    assert contradiction([(zero, 0 * one)], [True])  # 0 > 0
    assert not contradiction([(zero, 0 * one)], [False])  # 0 <= 0
    assert not contradiction([(zero, one)], [True])
    assert contradiction([(x, 0 * one), (y, 0 * one)], [False, False])  # x = 0: measure 0
    assert contradiction([(x, 0 * one), (y, 0 * one)], [True, True])
    assert not contradiction([(x, one), (y, 0 * one)], [True, True])  # −1 < x < 0
    assert not contradiction([(x, 0 * one), (x, 0 * one)], [True, True])
    assert not contradiction([(x, -one), (x, one), (x, 0 * one)], [True, False, True])  # no unique null vector
    assert not contradiction([], []) and not contradiction([(x, one)], [])


def test_patterns_and_their_flips():
    network = gaussian(3, 4, 3, 2)
    system = System.of(network)
    W = [np.asarray(x.weight) for x in network.layers if isinstance(x, Affine)]
    rng = np.random.default_rng(0)
    for norm, order in ((2.0, 2), (math.inf, math.inf)):
        P = rng.integers(0, 2, (5, 7)).astype(float)
        norms = [np.linalg.norm(W[2] @ np.diag(p[4:]) @ W[1] @ np.diag(p[:4]) @ W[0], order) for p in P]
        assert pattern_norms(system, P, norm) == pytest.approx(norms)
        pattern, value, losses = best_pattern(system, P[0], norm)
        assert np.isin(pattern, (0.0, 1.0)).all() and value >= norms[0] and np.all(losses >= 0.0)


def test_a_parents_multipliers_start_its_children():
    """Feasible without a step: no worse than the parent."""
    network = gaussian(4, 6, 6, 2)
    neurons = Neurons.of(network)
    parent = node_bound(network, neurons, "all", 2.0, None, Limits(1e-3))
    for n in range(12):
        for half in neurons.split(n):
            child = node_bound(network, half, "all", 2.0, parent, Limits(1.0, time_limit=0.0))
            assert child.value <= parent.value * (1 + 1e-6)


# -- certificates ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small():
    network = gaussian(2, 4, 3, 2, seed=1)
    bracket = lipschitz_bracket(network, 2)
    certificate = bracket.upper.certificate
    assert isinstance(certificate, TreeCertificate) and certificate.trees[0].empty and certificate.trees[0].proofs
    return network, certificate


def test_it_comes_back_from_a_file(small, tmp_path):
    network, certificate = small
    again = load_certificate(certificate.save(tmp_path / "tree.certificate"))
    assert again.verify(network) and again.bound == certificate.bound
    assert [t.nodes for t in again.trees] == [t.nodes for t in certificate.trees]
    several = lipschitz_bracket(network, "inf", region=Ball([0.1, 0.2], 2.0, "inf")).upper.certificate
    assert isinstance(several, TreeCertificate) and [t.outputs for t in several.trees] == [0, 1]
    assert load_certificate(several.save(tmp_path / "two.certificate")).verify(network)


def test_every_altered_byte_is_refused(tmp_path):
    bracket = lipschitz_bracket(HAT)
    assert isinstance(bracket.upper.certificate, TreeCertificate)
    every_flip_refused(bracket.upper.certificate, HAT, tmp_path)


def test_forged_claims_are_refused(small):
    network, certificate = small
    assert certificate.verify(network)
    other = gaussian(2, 4, 3, 2, seed=2)
    for reason, wrong, net in [
        ("is about the network", certificate, other),
        ("is claimed", replace(certificate, value=certificate.value * (1 - 1e-12)), network),
        ("is claimed|no claim", replace(certificate, value=math.nan), network),
        ("no claim", replace(certificate, norm=1.0), network),
        ("no claim", replace(certificate, trees=()), network),
        ("needed", replace(certificate, outputs=0), network),
        ("needed", replace(certificate, trees=certificate.trees * 2), network),
        ("needed", replace(certificate, norm=math.inf), network),
        ("without a ball", replace(certificate, slopes=((np.zeros(4), np.ones(4)),) * 2), network),
    ]:
        with pytest.raises(CertificateError, match=reason):
            wrong.verify(net)
    tree = Tree(5, certificate.trees[0].nodes, tuple(replace(p, outputs=5) for p in certificate.trees[0].proofs))
    with pytest.raises(CertificateError, match="of a network with 2"):
        replace(certificate, outputs=5, trees=(tree,)).verify(network)


def proof_of(network, neurons, outputs="all"):
    return node_bound(network, neurons, outputs, 2.0, None, Limits(1e-3)).proof


def test_forged_trees_are_refused(small):
    """Children missing or too many, a neuron split twice or not at all, evidence of another leaf."""
    network, certificate = small
    neurons = Neurons.of(network)
    off, on = neurons.split(0)

    def refused(reason, nodes, proofs, empty=()):
        wrong = replace(certificate, value=100.0, trees=(Tree("all", nodes, tuple(proofs), tuple(empty)),))
        with pytest.raises(CertificateError, match=reason):
            wrong.verify(network)

    a, b, whole = proof_of(network, off), proof_of(network, on), proof_of(network, neurons)
    both = Tree("all", (0, PROVED, PROVED), (a, b))
    assert replace(certificate, value=max(a.value, b.value), trees=(both,)).verify(network)
    refused("missing", (0, PROVED), [a])
    refused("missing", (), [])
    refused("beyond the last leaf", (0, PROVED, PROVED, PROVED), [a, b, b])
    refused("beyond the last leaf", (PROVED, PROVED), [whole, whole])
    refused("without a proof", (0, PROVED, PROVED), [a])
    refused("evidence without a leaf", (0, PROVED, PROVED), [a, b, b])
    refused("evidence without a leaf", (0, PROVED, PROVED), [a, b], [(0, 1)])
    refused("of 7", (7, PROVED, PROVED), [a, b])
    refused("of 7", (-3, PROVED, PROVED), [a, b])
    # a neuron that is fixed already: one half of what its first split left out would be taken for proved
    refused("fixed already", (0, 0, PROVED, PROVED, PROVED), [a, a, b])
    # proofs of a leaf do not prove another: wider, narrower, or on the other side
    refused("do not prove|other sizes", (0, PROVED, PROVED), [b, a])
    refused("other sizes", (PROVED,), [a])
    refused("other sizes", (0, PROVED, PROVED), [whole, whole])
    refused("without evidence", (0, EMPTY, PROVED), [b])
    for chosen in ((), (0,), (1,), (0, 1), (0, 0)):
        refused("do not contradict", (0, EMPTY, PROVED), [b], [chosen])
    refused("in the tree of", (0, PROVED, PROVED), [a, replace(b, outputs=0)])
    for name, reason in (("t", "do not prove|other sizes"), ("s", "do not prove"), ("value", "is claimed")):
        less = tuple(x * 0.3 for x in b.t) if name == "t" else getattr(b, name) * 0.9
        refused(reason, (0, PROVED, PROVED), [a, replace(b, **{name: less})])
    refused("other sizes", (0, PROVED, PROVED), [a, replace(b, d=None)])
    refused("other sizes", (0, PROVED, PROVED), [a, replace(b, d=np.ones(3))])
    refused("do not prove", (0, PROVED, PROVED), [a, replace(b, d=b.d * 0.5)])
    refused("without multipliers", (0, PROVED, PROVED), [a, replace(b, t=())])


def test_forged_linear_leaves_are_refused():
    network = Network.from_weights([[[3.0]], [[2.0]]])
    neurons = Neurons.of(network)
    off, on = (proof_of(network, x) for x in neurons.split(0))
    certificate = TreeCertificate(network.digest, 2.0, "all", on.value, (Tree("all", (0, PROVED, PROVED), (off, on)),))
    assert certificate.verify(network) and on.value == pytest.approx(6.0)
    for wrong in (replace(on, value=5.9), replace(on, s=1.0), replace(on, slack=0.5), replace(on, d=np.ones(1))):
        with pytest.raises(CertificateError):
            replace(certificate, value=6.1, trees=(Tree("all", (0, PROVED, PROVED), (off, wrong)),)).verify(network)


def test_forged_evidence_of_empty_cells_is_refused(small):
    """Each empty leaf of a real tree, with every other choice of two or three of the path's neurons."""
    network, certificate = small
    (tree,) = certificate.trees
    paths = [path for mark, _, path in leaves(tree) if mark == EMPTY]
    tried = 0
    for i, (path, own) in enumerate(zip(paths, tree.empty, strict=True)):
        for wrong in ((*own, own[0]), own[:-1], (*own[:-1], 6), tuple(n for n in path if n not in own)):
            if set(wrong) == set(own) and len(wrong) == len(own):
                continue
            empty = (*tree.empty[:i], wrong, *tree.empty[i + 1 :])
            assert not accepts(replace(certificate, trees=(replace(tree, empty=empty),)), network)
            tried += 1
    assert tried >= 3
    flipped = tuple(EMPTY if n == PROVED else n for n in tree.nodes)
    assert not accepts(replace(certificate, trees=(replace(tree, nodes=flipped),)), network)


def test_an_empty_cell_of_a_residual_network_is_refused():
    network = Network((Affine(np.ones((2, 1))), Residual((Affine(np.eye(2)), ReLU()), ()), Affine(np.ones((1, 2)))))
    neurons = Neurons.of(network)
    wrong = Tree("all", (0, EMPTY, PROVED), (proof_of(network, neurons.split(0)[1]),), ((0,),))
    with pytest.raises(CertificateError, match="residual"):
        TreeCertificate(network.digest, 2.0, "all", 100.0, (wrong,)).verify(network)


def test_forged_files_are_refused(small, tmp_path):
    network, certificate = small
    arrays = certificate.stored().arrays
    assert forged(certificate, tmp_path).verify(network)
    for name, array in arrays.items():
        for other in (
            array[:-1],
            np.concatenate([array, array[-1:]]),
            array * 1.5 if array.dtype.kind == "f" else array + 1,
        ):
            if np.array_equal(other, array):
                continue
            if name == "factors.0" and other.shape == array.shape:
                other = array * 0.5
            try:
                loaded = forged(certificate, tmp_path, arrays={name: other})
            except CertificateError:
                continue
            assert not accepts(loaded, network) or (name, other.shape) in {("slacks.0", array.shape)}, name
    less = certificate.value * 0.999
    for field, value in [("value", less), ("norm", math.inf), ("outputs", 1), ("subject", "0" * 64),
                         ("trees", []), ("trees", ["all", "all"]), ("slopes", 1), ("slopes", -1), ("radius", 1.0),
                         ("ball norm", 2.0), ("value", 3)]:  # fmt: skip
        try:
            loaded = forged(certificate, tmp_path, **{field: value})
        except CertificateError:
            continue
        assert not accepts(loaded, network), field
    for name in (*arrays, *certificate.stored().fields):
        with pytest.raises(CertificateError):
            forged(certificate, tmp_path, drop=(name,))
    with pytest.raises(CertificateError):
        forged(certificate, tmp_path, more=1)
    with pytest.raises(CertificateError):
        forged(certificate, tmp_path, arrays={"nodes.1": np.array([-1])})
    for name, other in (("t.0", np.append(arrays["t.0"], 1.0)), ("widths.0", -arrays["widths.0"])):
        with pytest.raises(CertificateError, match="do not add up"):
            forged(certificate, tmp_path, arrays={name: other})
    for count in (-1, 10_001):
        with pytest.raises(CertificateError, match="slopes of"):
            forged(certificate, tmp_path, slopes=count)
    with pytest.raises(CertificateError, match="radius"):
        forged(certificate, tmp_path, **{"ball norm": 2.0})
