"""The product of layer norms: sound for residual blocks and every activation; certificates refused if altered."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from itertools import product as every
from pathlib import Path

import numpy as np
import pytest
from budget import network_settings
from hypothesis import given
from hypothesis import strategies as st
from rationals import fractions, product, spectral_norm_at_most
from tamper import every_flip_refused, forged

from certbound import Affine, CertificateError, Network, Normalise, ReLU
from certbound.bound import Claim
from certbound.certificate import load_certificate
from certbound.lipschitz import layer_product as module
from certbound.lipschitz.layer_product import (
    AffinePart,
    LayerProductCertificate,
    SlopePart,
    SumPart,
    layer_product,
    parts_of,
    proves_above,
)
from certbound.lipschitz.product import certified_product
from certbound.network import Activation, Flatten, Residual
from certbound.testing.strategies import relu_networks
from certbound.types import Quantity, Rigor, Sense

both_norms = pytest.mark.parametrize("norm", [2.0, math.inf], ids=["2", "inf"])
SMOOTH = ["tanh", "sigmoid", "gelu", "gelu_tanh", "silu"]


# -- oracles: exact Jacobians of every pattern, and sampled ones ---------------------------------------


def ends(layer):
    """The two slopes of a kinked activation."""
    return (Fraction(0), Fraction(1)) if isinstance(layer, ReLU) else (Fraction(layer.parameter), Fraction(1))


def through(layers, J, slopes):
    """The Jacobian after the layers, in rationals; ``slopes(layer, neurons)`` gives those of an activation."""
    for layer in layers:
        if isinstance(layer, Affine):
            J = product(fractions(layer.weight), J)
        elif isinstance(layer, Normalise):
            std = layer.per_input(None, len(J))[1].tolist()
            J = [[x / Fraction(s) for x in row] for row, s in zip(J, std, strict=True)]
        elif isinstance(layer, Residual):
            first, second = through(layer.body, J, slopes), through(layer.shortcut, J, slopes)
            J = [[a + b for a, b in zip(r, s, strict=True)] for r, s in zip(first, second, strict=True)]
        elif not isinstance(layer, Flatten):
            J = [[d * x for x in row] for d, row in zip(slopes(layer, len(J)), J, strict=True)]
    return J


def identity(n):
    return [[Fraction(int(i == j)) for j in range(n)] for i in range(n)]


def pattern_jacobians(network):
    """The Jacobian of every choice of one of two slopes a neuron, exactly."""
    met = []

    def count(layer, n):
        met.append((layer, n))
        return [Fraction(1)] * n

    through(network.layers, identity(network.n_inputs), count)
    for bits in every((0, 1), repeat=sum(n for _, n in met)):
        left = iter(bits)

        def chosen(layer, n, left=left):
            return [ends(layer)[next(left)] for _ in range(n)]

        yield through(network.layers, identity(network.n_inputs), chosen)


def rows_of(J, outputs):
    if outputs == "all":
        return J
    if isinstance(outputs, tuple):
        return [[a - b for a, b in zip(J[outputs[0]], J[outputs[1]], strict=True)]]
    return [J[outputs]]


def bounds_exactly(J, norm, value):
    if value == math.inf:
        return True
    if math.isinf(norm):
        return max(sum((abs(x) for x in row), Fraction(0)) for row in J) <= Fraction(value)
    return spectral_norm_at_most(J, Fraction(value))


def slope_at(layer, h, step=1e-5):
    return (layer.forward(h + step) - layer.forward(h - step)) / (2 * step)


def sampled_norm(network, norm, outputs, n=300, scale=3.0, seed=0):
    """The largest norm of Jacobians at random points: central differences of activations, rounded a little down."""
    rng = np.random.default_rng(seed)
    best = 0.0

    def run(layers, h, J):
        for layer in layers:
            if isinstance(layer, Affine):
                h, J = layer.weight @ h + (0.0 if layer.bias is None else layer.bias), layer.weight @ J
            elif isinstance(layer, Residual):
                (h1, J1), (h2, J2) = run(layer.body, h, J), run(layer.shortcut, h, J)
                h, J = h1 + h2, J1 + J2
            elif isinstance(layer, ReLU):
                h, J = np.maximum(h, 0), (h > 0)[:, None] * J
            else:
                h, J = layer.forward(h), slope_at(layer, h)[:, None] * J
        return h, J

    for _ in range(n):
        x = rng.standard_normal(network.n_inputs) * scale * rng.random()
        J = run(network.layers, x, np.eye(network.n_inputs))[1]
        if outputs != "all":
            J = (J[outputs[0]] - J[outputs[1]] if isinstance(outputs, tuple) else J[outputs])[None]
        best = max(best, np.linalg.norm(J, np.inf if math.isinf(norm) else 2))
    return best * (1 - 1e-6)


def accepts(certificate, network):
    try:
        return certificate.verify(network)
    except CertificateError:
        return False


@st.composite
def kinked_networks(draw, *, blocks=True, max_neurons=7):
    """Small integer networks of ReLU and leaky ReLU, with residual blocks, that start and end with anything."""
    n = draw(st.integers(1, 3))
    left = [max_neurons]

    def affine(m, n):
        entries = draw(st.lists(st.integers(-3, 3), min_size=m * n, max_size=m * n))
        return Affine(np.array(entries, dtype=float).reshape(m, n))

    def activation(n):
        if n > left[0]:
            return []
        left[0] -= n
        a = draw(st.sampled_from([0.0, 0.25, -0.5, 2.0]))
        return [ReLU() if a == 0.0 else Activation("leaky_relu", a)]

    layers = [*(activation(n) if draw(st.booleans()) else [])]
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["affine", "block", "block with a shortcut"] if blocks else ["affine"]))
        m = n if kind == "block" else draw(st.integers(1, 3))
        if kind == "affine":
            layers += [affine(m, n), *activation(m)]
        else:
            h = draw(st.integers(1, 2))
            body = (affine(h, n), *activation(h), affine(m, h), *(activation(m) if draw(st.booleans()) else []))
            layers.append(Residual(body, (affine(m, n),) if kind != "block" else ()))
        n = m
    if draw(st.booleans()) or not any(isinstance(x, Affine) for x in layers):
        layers.append(affine(draw(st.integers(1, 3)), n))
    return Network(tuple(layers))


def some_outputs(draw, n):
    return draw(st.sampled_from(["all", *range(n), *[(j, y) for j in range(n) for y in range(n) if j != y]]))


def residual_network(seed=0, activation="silu", end=True):
    rng = np.random.default_rng(seed)

    def affine(m, n):
        return Affine(rng.standard_normal((m, n)) / math.sqrt(n), rng.standard_normal(m))

    act = ReLU() if activation == "relu" else Activation(activation)
    inner = Residual((affine(3, 3), act))
    layers = [affine(5, 4), act, Residual((affine(3, 5), act, inner, affine(5, 3))), act]
    layers += [Residual((affine(3, 5), act, affine(3, 3)), (affine(3, 5),))]
    return Network((*layers, act, affine(3, 3)) if end else tuple(layers))


# -- soundness -----------------------------------------------------------------------------------------


@both_norms
@network_settings
@given(net=kinked_networks(), data=st.data())
def test_it_bounds_every_pattern_exactly(norm, net, data):
    outputs = some_outputs(data.draw, net.n_outputs)
    bound = layer_product(net, norm, outputs)
    assert bound.claim == Claim(Quantity.LIPSCHITZ, norm, norm, outputs=outputs, subject=net.digest)
    assert (bound.rigor, bound.sense) == (Rigor.RIGOROUS, Sense.UPPER)
    assert all(bounds_exactly(rows_of(J, outputs), norm, bound.value) for J in pattern_jacobians(net))
    assert bound.certificate.verify(net)


@both_norms
@pytest.mark.parametrize("name", [*SMOOTH, "relu"])
@pytest.mark.parametrize("end", [True, False])
def test_it_bounds_sampled_jacobians(norm, name, end):
    net = residual_network(1, name, end)
    for outputs in ("all", 1, (2, 0)):
        bound = layer_product(net, norm, outputs)
        assert sampled_norm(net, norm, outputs) <= bound.value and bound.certificate.verify(net)


@both_norms
@network_settings
@given(net=relu_networks(4, 5), data=st.data())
def test_of_a_chain_it_is_the_product_of_norms(norm, net, data):
    outputs = some_outputs(data.draw, net.n_outputs)
    ours, theirs = layer_product(net, norm, outputs), certified_product(net, norm, outputs)
    assert ours.certificate.norms == theirs.certificate.norms
    assert theirs.value * (1 - 1e-14) <= ours.value <= theirs.value  # 1 · 1 is not rounded here
    after = Network((*net.layers, ReLU()))
    assert layer_product(after, norm, outputs).value <= certified_product(after, norm, outputs).value
    folded = Network((Normalise([0.5], [0.3]), *net.layers, Flatten(), Affine(np.eye(net.n_outputs) * 0.7)))
    ours, theirs = layer_product(folded, norm, outputs), certified_product(folded, norm, outputs)
    assert ours.certificate.norms == theirs.certificate.norms
    assert theirs.value * (1 - 1e-14) <= ours.value <= theirs.value


# -- values known by hand ------------------------------------------------------------------------------


def about(x):
    return pytest.approx(x, rel=1e-12)


def value(layers, norm, outputs="all"):
    return layer_product(Network(tuple(layers)), norm, outputs).value


def test_residual_blocks_add():
    two, three = Affine([[2.0, 0.0], [0.0, -2.0]]), Affine([[3.0, 0.0], [0.0, 3.0]])
    for norm in (2.0, math.inf):
        assert value([Residual((two, ReLU()))], norm) == about(3)
        assert value([Residual((two,), (three,))], norm) == about(5)
        assert value([two, Residual((three, ReLU(), two))], norm) == about(2 * 7)
        assert value([Residual((Residual((two,)), three), (two,))], norm) == about(3 * 3 + 2)
        assert value([Residual((Activation("sigmoid"),)), two], norm) == about(2.5)


def test_rows_of_the_last_branches_count():
    body, short = Affine([[1.0, 2.0], [4.0, 0.0]]), Affine([[3.0, 0.0], [0.0, 1.0]])
    block = Residual((ReLU(), body), (short,))
    assert value([block], math.inf, 0) == about(3 + 3) and value([block], math.inf, 1) == about(4 + 1)
    assert value([block], math.inf, (0, 1)) == about((3 + 2) + (3 + 1))
    assert value([block], 2.0, 1) == about(4 + 1) and value([block], 2.0, 0) == about(5**0.5 + 3)
    plain = Residual((ReLU(), body))
    assert value([plain], math.inf, 0) == about(3 + 1) and value([plain], math.inf, (0, 1)) == about(5 + 2)
    assert value([plain], 2.0, (0, 1)) == about(13**0.5 + 2**0.5)
    assert Fraction(value([Residual((ReLU(), Affine(np.zeros((2, 2)))))], 2.0, (0, 1))) ** 2 >= 2


def test_a_difference_after_an_activation_is_no_row():
    """(relu(x), relu(−x)) moves its difference twice as far as (x) − (x) would."""
    W = Affine([[1.0], [1.0]])  # the difference of pre-activations is 0
    leaky = Activation("leaky_relu", -1.0)
    for norm in (2.0, math.inf):
        assert value([W, ReLU()], norm, (0, 1)) >= 1 and value([W, leaky], norm, (0, 1)) >= 2**0.5
    eye = Affine(np.eye(2))
    assert value([eye, ReLU()], 2.0, (0, 1)) == about(2**0.5)
    assert value([eye, ReLU()], math.inf, (0, 1)) == 2
    assert value([Affine([[8.0, 0.0], [0.0, 1.0]]), ReLU()], 2.0, (0, 1)) == about(9)  # not 8 √2
    assert value([eye, Activation("sigmoid")], math.inf, (0, 1)) == about(0.5)
    assert value([eye, Activation("leaky_relu", -3.0)], math.inf, 0) == about(3)


def test_parts():
    net = Network((Normalise([0.0], [2.0]), Affine([[6.0]]), ReLU(), Flatten(), ReLU(), Activation("tanh"), ReLU()))
    first, relu, tanh, last = parts_of(net)
    assert first.weight.tolist() == [[3.0]] and 0 < first.error[0, 0] < 1e-14
    assert (relu, last) == (SlopePart(0.0, 1.0), SlopePart(0.0, 1.0)) and tanh.gain == 1.0
    assert SlopePart(-3.0, 1.0).gain == 3.0 and SlopePart(0.5, 2.0).gain == 2.0
    block = parts_of(Network((Residual((Affine([[1.0]]), Affine([[2.0]]))), Normalise([0.0], [0.5]))))
    assert isinstance(block[0], SumPart) and block[0].body[0].weight.tolist() == [[2.0]] and block[0].shortcut == ()
    assert block[1].weight.tolist() == [[2.0]]
    # ReLU, block, ReLU: the second one is kept
    kinds = [type(p).__name__ for p in parts_of(Network((ReLU(), Residual((Affine([[1.0]]),)), ReLU())))]
    assert kinds == ["SlopePart", "SumPart", "SlopePart"]


def test_channels():
    """Normalisation per channel, before and after a block that keeps the shape, and spread before it is flattened."""
    std = [0.5, 0.25]
    for first in ((), (Residual((ReLU(),)),)):
        net = Network((*first, Normalise([0.0], std), Flatten(), Affine(np.eye(4))), (2, 1, 2))
        part = parts_of(net)[-1]
        assert part.weight.tolist() == np.diag([2.0, 2.0, 4.0, 4.0]).tolist()
    flat = Residual((Affine(np.ones((2, 6))),), (Affine(np.ones((2, 6))),))  # two numbers, of no channel
    net = Network((flat, Normalise([0.0], std)), (2, 1, 3))
    assert parts_of(net)[-1].weight.tolist() == [[2.0, 0.0], [0.0, 4.0]]


def test_rounding_of_differences_and_folding():
    """1 − (−1e-17) is 1 in floats; and 1/0.3 is no float."""
    head = np.array([[1.0], [-1e-17]])
    exact = Fraction(1) + Fraction(1e-17)
    part = AffinePart(head).rows((0, 1))
    assert Fraction(part.weight[0, 0]) + Fraction(part.error[0, 0]) >= exact
    for norm in (2.0, math.inf):
        assert Fraction(value([ReLU(), Affine(head)], norm, (0, 1))) >= exact
        assert Fraction(value([Normalise([0.0], [0.3]), Affine([[1.0]])], norm)) >= 1 / Fraction(0.3)
    carried = AffinePart(head, np.array([[0.25], [0.5]]))
    assert carried.rows(1).error.tolist() == [[0.5]] and 0.75 <= carried.rows((0, 1)).error[0, 0] < 0.76
    assert carried.rows("all") is carried
    assert not proves_above(carried, 2.0, 1.5) and proves_above(carried, 2.0, 1.6)  # 1 + ‖(¼, ½)‖
    assert module.norm_above(carried, math.inf) >= 1.5


def test_extreme_scales():
    for norm in (2.0, math.inf):
        assert value([Affine([[1e200]]), ReLU(), Affine([[1e200]])], norm) == math.inf
        assert 0 < value([Affine([[1e-200]]), ReLU(), Affine([[1e-200]])], norm) < 1e-300
        assert value([Affine([[0.0]]), ReLU(), Affine([[1e200]]), ReLU(), Affine([[1e200]])], norm) == 0
        net = Network((Affine([[1.0]]), ReLU(), Affine([[1e308], [-1e308]])))
        bound = layer_product(net, norm, (0, 1))
        assert bound.value == math.inf and bound.certificate.verify(net)
        assert not accepts(replace(bound.certificate, norms=(bound.certificate.norms[0], 1e308)), net)
        nothing = Affine([[0.0]])
        dead = Network((Affine([[1.0]]), Activation("leaky_relu", 0.5), Residual((nothing,), (nothing,))))
        assert layer_product(dead, norm).value == 0 and layer_product(dead, norm).certificate.verify(dead)


# -- certificates --------------------------------------------------------------------------------------


def certificates(norm):
    yield residual_network(0, "relu"), "all"
    yield residual_network(0, "gelu"), (0, 1)
    yield residual_network(0, "tanh", False), 2
    yield residual_network(0, "tanh", False), (1, 2)
    yield Network((Affine(np.array([[1.0, 2.0], [0.3, 1.0]])), Activation("silu"))), (0, 1)


@both_norms
def test_every_byte_counts(norm, tmp_path):
    for net, outputs in certificates(norm):
        certificate = layer_product(net, norm, outputs).certificate
        loaded = load_certificate(certificate.save(tmp_path / "c"))
        assert loaded.bound == certificate.bound and loaded.verify(net) and loaded.norms == certificate.norms
        assert every_flip_refused(certificate, net, tmp_path).flips > 300


@both_norms
def test_what_is_not_proved_is_refused(norm, tmp_path):
    for net, outputs in certificates(norm):
        certificate = layer_product(net, norm, outputs).certificate
        assert forged(certificate, tmp_path, value=certificate.value * 2).verify(net)
        for wrong in (certificate.value * (1 - 1e-9), 0.0, -1.0):
            assert not accepts(forged(certificate, tmp_path, value=wrong), net)
        assert not accepts(replace(certificate, value=math.nan), net)
        for i in range(len(certificate.norms)):
            norms = [v * (1 - 1e-6 * (j == i)) for j, v in enumerate(certificate.norms)]
            assert not accepts(forged(certificate, tmp_path, norms=norms), net)
        assert not accepts(forged(certificate, tmp_path, norms=list(certificate.norms[:-1])), net)
        assert not accepts(forged(certificate, tmp_path, norms=[*certificate.norms, 0.0]), net)
        for field in ({"norm": 1.0}, {"outputs": 9}, {"outputs": [0, 9]}, {"subject": "0" * 16}):
            assert not accepts(forged(certificate, tmp_path, **field), net)
        for field in ({"norms": [-1.0]}, {"norms": "x"}, {"outputs": [1, 1]}, {"more": 1}, {"value": 1}):
            with pytest.raises(CertificateError):
                forged(certificate, tmp_path, **field)
        other = Network((*net.layers, ReLU()))
        with pytest.raises(CertificateError, match="unknown field 'more'"):
            forged(certificate, tmp_path, more=1)
        with pytest.raises(CertificateError, match="about the network"):
            certificate.verify(other)


def test_another_norm_is_another_claim():
    net = Network((Affine(np.ones((3, 3))), Activation("tanh"), Affine(np.ones((1, 3)) / 3)))
    certificate = layer_product(net, 2.0, 0).certificate  # 3 · 1/√3
    assert not accepts(replace(certificate, norm=math.inf, norms=(3.0, 0.9), value=2.7), net)
    assert replace(certificate, norm=math.inf, norms=(3.0, 1.0 + 1e-12), value=3.1).verify(net)
    assert not accepts(replace(certificate, norm=math.nan), net)


NUMPY_ONLY = """
import sys
for name in ("scipy", "torch", "cvxpy", "safetensors", "matplotlib", "rich", "hypothesis", "auto_LiRPA", "joblib"):
    sys.modules[name] = None
import numpy as np
import certbound
from certbound.network import Activation, Affine, Network, Residual
W = np.load(sys.argv[1])
net = Network((Affine(W), Activation("silu"), Affine(W)))
if len(sys.argv) > 3:
    net = Network((Residual(net.layers), Affine(W)))
certificate = certbound.load_certificate(sys.argv[2])
assert certificate.verify(net) and certificate.bound.rigor is certbound.Rigor.RIGOROUS
"""


def verified_with_numpy_only(certificate, W, folder, *flags):
    np.save(folder / "W.npy", W)
    path = certificate.save(folder / "c.certificate")
    command = [sys.executable, "-c", NUMPY_ONLY, str(folder / "W.npy"), str(path), *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
    return done.returncode == 0 or done.stderr


def test_verifying_needs_numpy_only(tmp_path):
    W = np.random.default_rng(0).standard_normal((70, 70)) / 8
    net = Network((Residual((Affine(W), Activation("silu"), Affine(W))), Affine(W)))
    assert verified_with_numpy_only(layer_product(net, 2.0).certificate, W, tmp_path, "residual") is True


def test_it_explains_itself():
    bound = layer_product(residual_network(), 2.0)
    assert isinstance(bound.certificate, LayerProductCertificate) and bound.method == "product of layer norms"
    assert bound.certificate.bound == bound
