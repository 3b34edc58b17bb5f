"""LipLT with a proof: sound against rationals and samples, never above the product; certificates refused if altered."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from itertools import product as every

import numpy as np
import pytest
from budget import network_settings
from hypothesis import given
from hypothesis import strategies as st
from rationals import fractions, product, spectral_norm_at_most
from tamper import every_flip_refused, forged
from test_layer_product import (
    SMOOTH,
    accepts,
    bounds_exactly,
    identity,
    kinked_networks,
    pattern_jacobians,
    rows_of,
    sampled_norm,
    some_outputs,
    through,
    verified_with_numpy_only,
)

from certbound import Affine, CertificateError, InputError, Network, Normalise, ReLU, UnsupportedLayerError
from certbound.bound import Claim
from certbound.certificate import load_certificate
from certbound.lipschitz import path_norms as module
from certbound.lipschitz.layer_product import AffinePart, layer_product
from certbound.lipschitz.path_norms import (
    Centred,
    Matrix,
    PathProof,
    PathRecursion,
    path_bound,
    path_bounds,
    path_cost,
)
from certbound.lipschitz.product import certified_product
from certbound.network import Activation, Flatten, Residual
from certbound.testing.strategies import relu_networks
from certbound.types import Quantity, Rigor, Sense

both_norms = pytest.mark.parametrize("norm", [2.0, math.inf], ids=["2", "inf"])
ABS_VALUE = Network.from_weights([[[1.0], [-1.0]], [[1.0, 1.0]]])


def gaussian(*sizes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((b, a)) * math.sqrt(2 / a) for a, b in pairwise(sizes)]


def plain_liplt(W, norm, centre=0.5, half=0.5):
    """The recursion of the paper in floats, in one norm, for one pair of slopes."""
    p = np.inf if math.isinf(norm) else 2
    m = []
    for k in range(len(W)):
        A, total = W[k], 0.0
        for j in range(k - 1, -1, -1):  # A = W_k C … C W_{j+1}
            total += np.linalg.norm(A * half, p) * m[j]
            A = A * centre @ W[j]
        m.append(total + np.linalg.norm(A, p))
    return m[-1]


def chain(weights, name, parameter=0.0):
    layers = [Affine(weights[0])]
    for w in weights[1:]:
        layers += [Activation(name, parameter), Affine(w)]
    return Network(tuple(layers))


# -- soundness -----------------------------------------------------------------------------------------


@both_norms
@network_settings
@given(net=relu_networks(4, 3, max_hidden=5), data=st.data())
def test_it_bounds_every_pattern_exactly(norm, net, data):
    outputs = some_outputs(data.draw, net.n_outputs)
    bound = path_bound(net, norm, outputs)
    assert bound.claim == Claim(Quantity.LIPSCHITZ, norm, norm, outputs=outputs, subject=net.digest)
    assert (bound.rigor, bound.sense, bound.assumptions) == (Rigor.RIGOROUS, Sense.UPPER, ())
    assert all(bounds_exactly(rows_of(J, outputs), norm, bound.value) for J in pattern_jacobians(net))
    assert bound.certificate.verify(net)
    assert bound.value <= certified_product(net, norm, outputs).value * (1 + 1e-12)


@both_norms
@network_settings
@given(net=kinked_networks(blocks=False, max_neurons=5), data=st.data())
def test_leaky_chains_that_start_and_end_with_anything(norm, net, data):
    outputs = some_outputs(data.draw, net.n_outputs)
    bound = path_bound(net, norm, outputs)
    assert all(bounds_exactly(rows_of(J, outputs), norm, bound.value) for J in pattern_jacobians(net))
    assert bound.certificate.verify(net)
    if outputs == "all":
        assert bound.value <= layer_product(net, norm).value * (1 + 1e-12)


@both_norms
@network_settings
@given(net=relu_networks(3, 3, max_hidden=5), data=st.data())
def test_slopes_of_each_neuron(norm, net, data):
    """Any intervals: fixed neurons, dead ones, negative slopes; every vertex of them obeys the bound."""
    hidden = [len(w) for w in net.chain.encoder]
    ends = st.integers(-8, 16)
    slopes = []
    for n in hidden:
        pairs = [sorted(data.draw(st.tuples(ends, ends))) for _ in range(n)]
        slopes.append(tuple(np.array(pairs, dtype=float).T / 8))
    outputs = some_outputs(data.draw, net.n_outputs)
    bound = path_bound(net, norm, outputs, slopes, domain="somewhere")
    assert (bound.certificate, bound.claim.domain, len(bound.assumptions)) == (None, "somewhere", 1)
    for bits in every((0, 1), repeat=sum(hidden)):
        left = iter(bits)
        layer = iter(slopes)

        def chosen(_, n, left=left, layer=layer):
            pair = next(layer)
            return [Fraction(pair[next(left)][i]) for i in range(n)]

        J = through(net.layers, identity(net.n_inputs), chosen)
        assert bounds_exactly(rows_of(J, outputs), norm, bound.value)
    value, proof = PathRecursion(net, norm, slopes).proof(outputs)
    assert value == bound.value and proof.proved(net, norm, outputs, slopes) <= value


@both_norms
@pytest.mark.parametrize("name", [*SMOOTH, "leaky_relu"])
def test_it_bounds_sampled_jacobians(norm, name):
    rng = np.random.default_rng(3)
    act = Activation(name, 0.1)
    net = Network((Affine(rng.standard_normal((6, 4))), act, Affine(rng.standard_normal((6, 6)) / 2), act,
                   Affine(rng.standard_normal((3, 6)) / 2), act))  # fmt: skip
    for outputs in ("all", 1, (2, 0)):
        bound = path_bound(net, norm, outputs)
        assert sampled_norm(net, norm, outputs) <= bound.value and bound.certificate.verify(net)
        assert bound.value <= layer_product(net, norm, outputs).value * (1 + 1e-12) or outputs == (2, 0)


@st.composite
def folded_networks(draw):
    """Normalisation and several affine maps between activations, with numbers that round when they are folded."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n = draw(st.integers(1, 3))
    layers = [Normalise(rng.random(n), rng.uniform(0.1, 3.0, n))]
    for _ in range(2):
        for _ in range(draw(st.integers(1, 2))):
            m = int(rng.integers(1, 3))
            layers.append(Affine(rng.standard_normal((m, n)) * 10.0 ** rng.integers(-3, 4)))
            n = m
        layers += [draw(st.sampled_from([ReLU(), Activation("leaky_relu", 0.3)])), Flatten()]
    return Network((*layers, Normalise(np.zeros(1), rng.uniform(0.1, 3.0, n)), Affine(rng.standard_normal((2, n)))))


@both_norms
@network_settings
@given(net=folded_networks(), data=st.data())
def test_folded_networks_as_they_are(norm, net, data):
    outputs = some_outputs(data.draw, 2)
    bound = path_bound(net, norm, outputs)
    assert all(bounds_exactly(rows_of(J, outputs), norm, bound.value) for J in pattern_jacobians(net))
    assert bound.certificate.verify(net)


@both_norms
@pytest.mark.parametrize("seed", range(4))
def test_errors_of_layers_enter_everywhere(norm, seed, monkeypatch):
    """Errors as large as the weights: every corner of what the layers may be obeys the bound, and it is not ∞."""
    rng = np.random.default_rng(seed)
    W = [rng.integers(-2, 3, s).astype(float) for s in ((2, 2), (3, 2), (2, 3), (2, 2))]
    off = [rng.integers(0, 3, w.shape) / 4 for w in W]
    net = Network.from_weights(W)
    exactly = path_bound(net, norm, "all").certificate
    true_parts = module.parts_of

    def with_errors(network):
        left = iter(off)
        return tuple(AffinePart(p.weight, next(left)) if isinstance(p, AffinePart) else p for p in true_parts(network))

    monkeypatch.setattr(module, "parts_of", with_errors)
    assert not accepts(exactly, net)
    for outputs in ("all", 0, (1, 0)):
        bound = path_bound(net, norm, outputs)
        assert bound.certificate.verify(net) and bound.value < math.inf
        for _ in range(30):
            moved = [w + rng.choice([-1.0, 1.0], w.shape) * e for w, e in zip(W, off, strict=True)]
            assert bounds_exactly(rows_of(some_jacobian(moved, rng), outputs), norm, bound.value)


def some_jacobian(W, rng):
    """The Jacobian of one random pattern."""
    J = fractions(W[0])
    for w in W[1:]:
        J = product(fractions(w), [[Fraction(int(keep)) * x for x in row]
                                   for keep, row in zip(rng.random(len(J)) < 0.7, J, strict=True)])  # fmt: skip
    return J


# -- how good it is --------------------------------------------------------------------------------------


@both_norms
@pytest.mark.parametrize("sizes", [(5, 7, 3), (6, 6, 6, 6, 2), (20, 30, 30, 10), (4,) * 32, (3, 1, 4), (1, 8, 8, 1)])
def test_the_ladder(norm, sizes):
    for seed in range(1 if len(sizes) > 6 else 3):
        W = gaussian(*sizes, seed=seed)
        net = Network.from_weights(W)
        n = sizes[-1]
        for outputs in ("all", 0, (0, n - 1)) if n > 1 else ("all", 0):
            bound = path_bound(net, norm, outputs)
            rows = W[-1] if outputs == "all" else W[-1][:1] if outputs == 0 else W[-1][:1] - W[-1][-1:]
            plain = plain_liplt([*W[:-1], rows], norm)
            assert bound.value <= plain * (1 + 1e-12 * len(W))  # what proofs leave as air
            assert bound.value <= certified_product(net, norm, outputs).value * (1 + 1e-12)
            if norm == 2.0:
                assert bound.value >= plain * (1 - 1e-12)


@pytest.mark.parametrize(("a", "b"), [(0.1, 1.0), (-0.5, 1.0), (0.0, 0.25), (1.0, 1.0), (2.0, 3.0)])
def test_the_recursion_for_other_slopes(a, b):
    W = gaussian(5, 6, 6, 3)
    bound = path_bound(Network.from_weights(W), 2.0, "all", [(a, b)] * 2)
    assert bound.value == pytest.approx(plain_liplt(W, 2.0, (a + b) / 2, (b - a) / 2), rel=1e-11)
    if a == b:  # a linear map
        assert bound.value == pytest.approx(np.linalg.norm(W[2] @ W[1] @ W[0] * a * a, 2), rel=1e-11)


def test_known_by_hand():
    """|x|; 6 relu(x) twice; a dead neuron; (x, −x) ↦ |x| in two inputs."""
    for norm in (2.0, math.inf):
        assert path_bound(ABS_VALUE, norm).value == pytest.approx(1, rel=1e-12)
        assert path_bound(Network.from_weights([[[2.0]], [[3.0]]]), norm).value == pytest.approx(6, rel=1e-12)
        dead = path_bound(Network.from_weights([np.eye(2), [[5.0, 1.0]]]), norm, 0, [([0.0, 1.0], [0.0, 1.0])])
        assert dead.value == pytest.approx(1, rel=1e-12)
        # relu(relu(x)) = relu(x): m_1 = 1, ‖1/2‖ + 1/2
        assert path_bound(Network((ReLU(), Affine([[1.0]]), ReLU(), ReLU())), norm).value == pytest.approx(1, rel=1e-12)
    # W_2 W_1 = 0: half of ‖W_2‖ ‖W_1‖ = √2 √2; each ψ sees one input with 1, so b_2 = 1/2 + 1/2
    swap = Network.from_weights([[[1.0, 1.0], [1.0, 1.0]], [[1.0, -1.0]]])
    assert path_bound(swap, 2.0).value == pytest.approx(2 * math.sqrt(2) / 2, rel=1e-12)
    assert path_bound(swap, math.inf).value == pytest.approx(2, rel=1e-12)


def test_lengths_help_in_inf():
    """A scalar output of wide layers: entries alone give LipLT in the ∞-norm, which is far above."""
    W = gaussian(30, 40, 40, 1)
    value = path_bound(Network.from_weights(W), math.inf).value
    assert value <= 0.35 * plain_liplt(W, math.inf)
    assert value <= math.sqrt(30) * path_bound(Network.from_weights(W), 2.0).value * (1 + 1e-12)
    # entries help where the weights are of one sign: here they are exact
    ones = Network.from_weights([np.ones((4, 4))] * 3)
    assert path_bound(ones, math.inf).value == pytest.approx(64, rel=1e-12)


def test_the_last_activation_alone_may_be_better():
    """Slopes 1 and −1 … 1: C = diag(1, 0), H = diag(0, 1), so that the paths add up to 2; Γ = I says 1."""
    net = Network.from_weights([np.eye(2), np.eye(2)])
    for norm in (2.0, math.inf):
        assert path_bound(net, norm, slopes=[([1.0, -1.0], 1.0)]).value == pytest.approx(1, rel=1e-12)


def test_lengths_of_vectors_whose_entries_are_bounded():
    """4 of 16 inputs, then orthogonal layers: b_1 = 1 gives m_1 = 2 where ‖W_1‖ √16 is 4; so m_2 = 2 and
    b_3 = 1/4 + 1/4 + 1 = 1.5, not 2.5.
    """
    half = np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2.0
    net = Network.from_weights([np.eye(4, 16), half, half[:1]])
    assert path_bound(net, math.inf).value == pytest.approx(1.5, rel=1e-12)


@both_norms
def test_many_outputs_at_once(norm):
    net = Network.from_weights(gaussian(5, 6, 6, 4))
    chosen = ["all", 0, 3, (1, 2), (2, 1)]
    for outputs, bound in zip(chosen, path_bounds(net, norm, chosen), strict=True):
        alone = path_bound(net, norm, outputs)
        assert bound == alone and bound.certificate.verify(net)
        assert bound.certificate.proof.norms == alone.certificate.proof.norms


def test_what_costs_too_much():
    net = Network.from_weights(gaussian(5, 6, 6, 4))
    cost = path_cost(net)
    assert path_bound(net, 2.0, limit=cost) is not None and path_bound(net, 2.0, limit=cost * 0.99) is None
    assert path_bounds(net, 2.0, ["all"], limit=0.0) is None
    deep = Network.from_weights([np.eye(40)] * 30)
    assert path_cost(deep) > 30 * path_cost(Network.from_weights([np.eye(40)] * 5)) and path_cost(deep) < module.LIMIT
    with pytest.raises(UnsupportedLayerError, match="Residual"):  # whatever it costs
        path_bound(Network((Residual((Affine([[1.0]]),)),)), 2.0, limit=0.0)


@pytest.mark.parametrize(
    "slopes",
    [
        [],
        [(0, 1)] * 2,
        [(1, 0)],
        [(0, math.inf)],
        [(math.nan, 1)],
        [(np.zeros(3), np.ones(3))],
        [(np.zeros((2, 1)), 1)],
    ],
)
def test_slopes_that_are_none(slopes):
    with pytest.raises(InputError, match="slopes"):
        path_bound(ABS_VALUE, 2.0, slopes=slopes)


# -- extreme numbers -----------------------------------------------------------------------------------


@both_norms
def test_extreme_scales(norm):
    W = gaussian(4, 4, 4, 2)
    plain = path_bound(Network.from_weights(W), norm).value
    for a, b, c in ((2.0**600, 2.0**-600, 1.0), (2.0**-1000, 2.0**900, 2.0**100), (1.0, 2.0**-900, 2.0**900)):
        net = Network.from_weights([W[0] * a, W[1] * b, W[2] * c])
        bound = path_bound(net, norm)
        assert bound.value == pytest.approx(plain, rel=1e-9) and bound.certificate.verify(net)
    tiny = Network.from_weights([w * 2.0**-500 for w in W])
    bound = path_bound(tiny, norm)
    assert 0.0 < bound.value < 1e-300 and bound.certificate.verify(tiny)
    huge = Network.from_weights([w * 2.0**500 for w in W])
    bound = path_bound(huge, norm)
    assert bound.value == math.inf and bound.certificate.verify(huge)
    far = Network.from_weights([[[1e100, 1e-100], [0.0, 1e-100]], [[1e-100, 1e100]]])  # 2, in ℓ2 √2
    bound = path_bound(far, norm)
    assert bound.certificate.verify(far) and (norm == 2.0 or bound.value < 2.0 + 1e-9)  # ‖W_2‖ ‖W_1‖ = 1e200 in ℓ2
    assert all(bounds_exactly(J, norm, bound.value) for J in pattern_jacobians(far))
    subnormal = Network.from_weights([[[5e-324]], [[5e-324]]])
    assert 0.0 < path_bound(subnormal, norm).value < 1e-320
    steep = chain([np.ones((2, 2)), np.ones((1, 2))], "leaky_relu", 1e200)
    bound = path_bound(steep, norm)
    assert 2e200 <= bound.value < 1e201 and bound.certificate.verify(steep)
    steeper = chain([np.ones((2, 2)) * 1e200, np.ones((1, 2)) * 1e-300], "leaky_relu", 1e200)
    assert 2e100 <= path_bound(steeper, norm).value < 1e101


@both_norms
def test_what_is_constant_is_0(norm):
    for W in (
        [np.zeros((2, 2))],
        [np.ones((2, 2)), np.zeros((3, 2)), np.ones((1, 3))],
        [np.zeros((2, 2)), np.ones((1, 2))],
        [np.ones((2, 2)), np.zeros((1, 2))],
        [np.diag([1.0, 0.0]) * 0.3, np.diag([0.0, 1.0]) * 0.3],
    ):
        bound = path_bound(Network.from_weights(W), norm)
        zero = W[-1].any() and all(w.any() for w in W)
        assert (bound.value <= 0.05) if zero else bound.value == 0.0
        assert bound.certificate.verify(W)
    flat = path_bound(Network.from_weights(gaussian(2, 3, 2)), norm, slopes=[(0.0, 0.0)])
    assert flat.value == 0.0
    same = Network.from_weights([np.ones((2, 2)), np.ones((2, 2))])
    bound = path_bound(same, norm, (0, 1))
    assert bound.value == 0.0 and bound.certificate.verify(same)


@both_norms
@pytest.mark.filterwarnings("error")
def test_differences_of_rows(norm):
    head = np.array([[1.0], [-1e-17]])
    net = Network.from_weights([[[1.0]], head])
    assert Fraction(path_bound(net, norm, (0, 1)).value) >= Fraction(1) + Fraction(1e-17)
    net = Network.from_weights([[[1.0]], [[1e308], [-1e308]]])
    bound = path_bound(net, norm, (0, 1))
    assert bound.value == math.inf and bound.certificate is None
    proof = path_bound(net, norm, 0).certificate
    assert not accepts(replace(proof, outputs=(0, 1)), net)


@both_norms
def test_one_layer_and_rank_one(norm):
    W = [np.array([[3.0, 4.0]])]
    exact = 7.0 if math.isinf(norm) else 5.0
    assert exact <= path_bound(Network.from_weights(W), norm).value <= exact * (1 + 1e-14)
    rng = np.random.default_rng(0)
    rank_one = [np.outer(rng.standard_normal(5), rng.standard_normal(5)) for _ in range(4)]
    net = Network.from_weights(rank_one)
    bound = path_bound(net, norm)
    assert bound.certificate.verify(net) and sampled_norm(net, norm, "all", 50) <= bound.value
    assert bound.value <= plain_liplt(rank_one, norm) * (1 + 1e-12)


# -- the pieces, against rationals ---------------------------------------------------------------------


def exactly(x):
    return Fraction(float(x))


@network_settings
@given(st.data())
def test_centred_slopes_contain_the_interval(data):
    number = st.floats(-1e3, 1e3) | st.sampled_from([0.0, 1.0, 5e-324, -1e-310, 0.1, 1e300])
    ends = [sorted(data.draw(st.tuples(number, number))) for _ in range(3)]
    a, b = np.array(ends).T
    s = Centred.of(a, b, 3)
    for i in range(3):
        c, h, g, low, high = (exactly(x[i]) for x in (s.centre, s.half, s.gain, a, b))
        assert c - h <= low and high <= c + h and abs(c) <= g == max(abs(low), abs(high))
        assert h <= (high - low) / 2 * (1 + Fraction(1, 2**40)) + Fraction(1, 2**1000) + abs(c) / 2**50
    assert Centred.of(0.0, 1.0, 2).symmetric and Centred.of(0.0, [1.0, 2.0], 2).symmetric
    assert not Centred.of([0.0, 0.5], 1.0, 2).symmetric
    assert not Centred.of(0.1, 1.0, 2).symmetric


@network_settings
@given(st.data())
def test_scaled_matrices_are_within_their_errors(data):
    number = st.floats(-4, 4) | st.sampled_from([0.0, 1.0, 3e-300, 2.0**-1000, 5e-324, 1e-160])
    draw = lambda k: np.array(data.draw(st.lists(number, min_size=k, max_size=k)))  # noqa: E731
    W, f, off = draw(4).reshape(2, 2), draw(2), np.abs(draw(4)).reshape(2, 2)
    k = data.draw(st.sampled_from([0, 3, -5, 40, 900, 1100]))
    true = fractions(W)
    shrunk = Matrix.shrunk(AffinePart(W, off), k)
    columns = shrunk.columns(f)
    exact_columns = Matrix.shrunk(AffinePart(W), k).columns(f)
    for i, j in np.ndindex(2, 2):
        scaled, spread = true[i][j] / Fraction(2) ** k, exactly(off[i, j]) / Fraction(2) ** k
        assert abs(exactly(shrunk.value[i, j]) - scaled) + spread <= exactly(shrunk.error[i, j])
        assert abs(exactly(columns.value[i, j]) - scaled * exactly(f[j])) + spread * abs(exactly(f[j])) <= exactly(
            columns.error[i, j]
        )
        assert abs(exactly(exact_columns.value[i, j]) - scaled * exactly(f[j])) <= exactly(exact_columns.error[i, j])
        if W[i, j] == 0.0 or f[j] == 0.0:
            assert exact_columns.error[i, j] == 0.0
    assert not Matrix.shrunk(AffinePart(np.eye(2)), 0).columns(np.full(2, 0.5)).error.any()


@pytest.mark.parametrize("seed", range(20))
def test_products_are_within_their_errors(seed):
    """Factors that are off by errors of any size, and by nothing: what is left is the rounding."""
    rng = np.random.default_rng(seed)
    size = [0.0, 1e-16, 1e-3, 0.5][seed % 4]
    B, A = rng.standard_normal((3, 4)), rng.standard_normal((4, 2))
    G, E = np.abs(rng.standard_normal(B.shape)) * size, rng.standard_normal(A.shape) * size
    true_B = B + G * rng.uniform(-1, 1, B.shape)
    true_A = A + E
    value, error = module._after(
        Matrix(B, G), float(np.linalg.norm(true_B, 2)) * (1 + 1e-9), A, float(np.linalg.norm(E, 2)) * (1 + 1e-9)
    )
    exact = product(fractions(true_B), fractions(true_A))
    difference = [[x - exactly(v) for x, v in zip(r, row, strict=True)] for r, row in zip(exact, value, strict=True)]
    assert any(x != 0 for row in difference for x in row) and spectral_norm_at_most(difference, exactly(error))
    assert error <= 1e-14 if size == 0.0 else error < 60 * size + 1e-14
    zero = module._after(Matrix(np.diag([1.0, 0.0]), np.zeros((2, 2))), 1.0, np.diag([0.0, 3.0]), 0.0)
    assert zero[1] == 0.0 and not zero[0].any()
    assert module._after(Matrix(np.diag([1.0, 0.0]), np.zeros((2, 2))), 1.0, np.diag([0.0, 3.0]), 1.0)[1] >= 1.0
    assert module._after(Matrix(np.zeros((2, 2)), np.diag([1.0, 0.0])), 1.0, np.diag([2.0, 0.0]), 0.0)[1] >= 2.0


def test_numbers_beyond_the_range_of_the_error_bounds_are_refused():
    step = module.Step(AffinePart(np.ones((1, 1))), None)
    assert module._Factors.of(step, -300).columns(None).value[0, 0] == 2.0**300
    with pytest.raises(module._UnprovedError):
        module._Factors.of(step, -500).columns(None)
    with pytest.raises(module._UnprovedError):
        module._Factors.of(step, -300).columns(np.full(1, 2.0**200))
    large = np.full((1, 1), 2.0**300)
    with pytest.raises(module._UnprovedError):
        module._after(Matrix(large, np.zeros((1, 1))), 1.0, large, 0.0)
    with pytest.raises(module._UnprovedError):  # the product is small, the error is not
        module._after(Matrix(np.eye(1), np.zeros((1, 1))), 2.0**300, np.eye(1), 2.0**300)
    for value in (2.0**500, math.inf, math.nan):
        with pytest.raises(module._UnprovedError):
            module._Stored(PathProof((), (), (np.full(1, value),))).rows(np.ones(1), np.ones(1))


@pytest.mark.parametrize("seed", range(20))
def test_row_bounds(seed):
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((4, 6)) * 10.0 ** rng.integers(-9, 9, (4, 1)) * (rng.random((4, 6)) < 0.7)
    b, m = np.abs(rng.standard_normal(6)) * 10.0 ** rng.integers(-2, 3, 6), float(rng.uniform(0.1, 10.0))
    found = module._row_bounds(A, b, m)
    for row, bound in zip(fractions(A), found.tolist(), strict=True):
        by_entries = sum((abs(x) * exactly(v) for x, v in zip(row, b, strict=True)), Fraction(0))
        squared = sum((x * x for x in row), Fraction(0)) * exactly(m) ** 2
        least = min(by_entries, Fraction(math.sqrt(squared)))
        assert exactly(bound) >= by_entries or exactly(bound) ** 2 >= squared
        assert exactly(bound) <= least * (1 + Fraction(1, 10**12)) + Fraction(1, 10**150)
        assert bound > 0 or not any(row)
    assert not module._row_bounds(np.ones((2, 2)), np.zeros(2), 1.0).any()
    assert not module._row_bounds(np.ones((2, 2)), np.ones(2), 0.0).any()


# -- certificates --------------------------------------------------------------------------------------


def certificates(norm):
    W = gaussian(3, 3, 3, seed=1)
    smooth = chain(W, "gelu")
    for net, outputs in ((Network.from_weights(W), (0, 2)), (smooth, 1), (Network((*smooth.layers, ReLU())), "all")):
        yield net, path_bound(net, norm, outputs).certificate


@both_norms
def test_every_byte_counts(norm, tmp_path):
    for net, certificate in certificates(norm):
        loaded = load_certificate(certificate.save(tmp_path / "c"))
        assert loaded.bound == certificate.bound and loaded.verify(net)
        assert every_flip_refused(certificate, net, tmp_path).flips > 500


@both_norms
def test_what_is_not_proved_is_refused(norm, tmp_path):
    for net, certificate in certificates(norm):
        assert forged(certificate, tmp_path, value=certificate.value * 2).verify(net)
        for wrong in (certificate.value * (1 - 1e-6), 0.0, -1.0):
            assert not accepts(forged(certificate, tmp_path, value=wrong), net)
        assert not accepts(replace(certificate, value=math.nan), net)
        proof = certificate.proof
        for i in range(len(proof.norms)):
            norms = tuple(v * (1 - 1e-6 * (j == i)) for j, v in enumerate(proof.norms))
            assert not accepts(replace(certificate, proof=replace(proof, norms=norms)), net)
        for k, v in enumerate(proof.vectors):
            for i in range(len(v)):
                smaller = v * np.where(np.arange(len(v)) == i, 1 - 1e-6, 1.0)
                vectors = (*proof.vectors[:k], smaller, *proof.vectors[k + 1 :])
                assert not accepts(replace(certificate, proof=replace(proof, vectors=vectors)), net)
            assert not accepts(forged(certificate, tmp_path, arrays={f"b.{k}": v[:-1]}), net)
            assert not accepts(forged(certificate, tmp_path, arrays={f"b.{k}": np.append(v, 1.0)}), net)
        for norms in (proof.norms[:-1], (*proof.norms, 1e9)):
            assert not accepts(forged(certificate, tmp_path, norms=list(norms)), net)
        more = replace(proof, vectors=(*proof.vectors, np.ones(3)))
        assert not accepts(replace(certificate, proof=more), net)
        for i, e in enumerate(proof.exponents):
            for wrong in (e - 1, e + 3000, 2**70) if i else (2200, -(10**6), e - 1):
                moved = (*proof.exponents[:i], wrong, *proof.exponents[i + 1 :])
                assert not accepts(replace(certificate, proof=replace(proof, exponents=moved)), net), wrong
        fewer = replace(proof, exponents=proof.exponents[:-1])
        assert not accepts(replace(certificate, proof=fewer), net)
        fields = [{"norm": 1.0}, {"outputs": 9}, {"subject": "0" * 16}]
        for field in fields:
            assert not accepts(forged(certificate, tmp_path, **field), net)
        for field in ({"norms": [-1.0]}, {"exponents": [0.0]}, {"more": 1}, {"vectors": 99}, {"vectors": -1},
                      {"vectors": 0 if proof.vectors else 1}, {"outputs": [1, 1]}):  # fmt: skip
            with pytest.raises(CertificateError):
                forged(certificate, tmp_path, **field)
        with pytest.raises(CertificateError, match="99 vectors"):  # before anything is read or allocated for them
            forged(certificate, tmp_path, vectors=99)
        with pytest.raises(CertificateError, match="unknown field 'more'"):
            forged(certificate, tmp_path, more=1)
        with pytest.raises(CertificateError, match="about the network"):
            certificate.verify(Network((*net.layers, Activation("tanh"))))


def test_vectors_beyond_floats_prove_nothing():
    net = Network.from_weights(gaussian(3, 3, 3, 2))
    certificate = path_bound(net, math.inf).certificate
    for wrong in (math.inf, math.nan, 1e300):
        vectors = (np.full(3, wrong), *certificate.proof.vectors[1:])
        assert not accepts(replace(certificate, proof=replace(certificate.proof, vectors=vectors)), net)


def test_another_norm_is_another_claim():
    W = gaussian(4, 4, 3)
    in_two, in_inf = (path_bound(Network.from_weights(W), p).certificate for p in (2.0, math.inf))
    assert not accepts(replace(in_two, norm=math.inf), W) and not accepts(replace(in_inf, norm=2.0), W)
    without = replace(in_inf.proof, vectors=())
    assert not accepts(replace(in_inf, proof=without), W)
    assert not accepts(replace(in_two, proof=PathProof(())), W)


@both_norms
def test_slopes_are_the_network_s_own(norm):
    """A proof for a smaller interval is none for the network, though its digest fits."""
    net = Network.from_weights(gaussian(4, 4, 3))
    value, proof = PathRecursion(net, norm, [(0.25, 0.5)]).proof("all")
    certificate = path_bound(net, norm).certificate
    assert value < certificate.value and not accepts(replace(certificate, value=value, proof=proof), net)
    with pytest.raises(CertificateError):
        proof.proved(net, norm, "all")


def test_no_certificate_of_a_residual_network():
    net = Network((Residual((Affine([[1.0]]),)),))
    certificate = path_bound(ABS_VALUE, 2.0).certificate
    with pytest.raises(CertificateError, match="Residual"):
        replace(certificate, subject=net.digest).verify(net)


@both_norms
@pytest.mark.parametrize("side", [-1.0, 1.0])
def test_another_machine_may_round_to_the_other_side(norm, side, monkeypatch):
    """Products off by nearly their error bounds, sums by γ: a certificate must bear both."""
    W = gaussian(30, 40, 40, 3)
    net = Network.from_weights(W)
    certificates = [path_bound(net, norm, x).certificate for x in ("all", 1, (0, 2))]
    after, bounds = module._after, module._row_bounds

    def moved(B, size, A, error):
        value, off = after(B, size, A, error)
        return value + side * 0.9 * off / math.sqrt(value.size) * np.sign(value), off

    def otherwise(A, entries, length):
        return bounds(A, entries, length) * (1 + side * A.shape[1] * 2.0**-53)

    monkeypatch.setattr(module, "_after", moved)
    monkeypatch.setattr(module, "_row_bounds", otherwise)
    assert all(c.verify(net) for c in certificates)


def test_verifying_needs_numpy_only(tmp_path):
    W = np.random.default_rng(0).standard_normal((70, 70)) / 8
    net = Network((Affine(W), Activation("silu"), Affine(W)))
    for norm in (2.0, math.inf):
        assert verified_with_numpy_only(path_bound(net, norm).certificate, W, tmp_path) is True


@both_norms
@pytest.mark.parametrize("second", [[[1.0], [1.0]], [[0.0], [0.0]]], ids=["cancels", "zeros"])
def test_layers_that_fold_to_zero_stay_below_the_product(norm, second):
    """Nothing is left but the error of folding: it is no product's, and counts once."""
    net = Network((ReLU(), Affine([[0.0, 0.0, 1.0]]), ReLU(), Affine(second), Affine([[1.0, -1.0]]), ReLU()))
    bound = path_bound(net, norm)
    assert bound.value <= layer_product(net, norm).value * (1 + 1e-12) and bound.certificate.verify(net)
