"""The network IR: folding, refusals, digests."""

import math

import numpy as np
import pytest

from certbound import Affine, Ball, Flatten, InputError, Network, Normalise, ReLU, as_network
from certbound.errors import UnsupportedLayerError

EYE = np.eye(2)


def test_chain_folds_normalisation_and_merges_affine_layers():
    net = Network((Normalise(0.5, 0.25), Affine([[1.0, 2.0]], [3.0]), Affine([[2.0]], [1.0]), ReLU(), Affine([[4.0]])))
    assert len(net.chain.weights) == 2
    np.testing.assert_array_equal(net.chain.weights[0], [[8.0, 16.0]])
    # 2 * (3 - (1 + 2) * 0.5 / 0.25) + 1
    np.testing.assert_array_equal(net.chain.biases[0], [-5.0])
    x = np.array([[0.25, 0.75], [1.0, 1.0]])
    by_hand = 4 * np.maximum(2 * ((x - 0.5) / 0.25 @ [1.0, 2.0] + 3) + 1, 0)
    np.testing.assert_allclose(net.forward(x)[:, 0], by_hand, rtol=1e-14)


def test_channel_normalisation_uses_the_input_shape():
    w = np.arange(8.0).reshape(1, 8)
    layers = (Normalise([0.0, 1.0], [1.0, 2.0]), Flatten(), Affine(w))
    x = np.random.default_rng(0).random((3, 2, 2, 2))
    want = ((x - np.array([0.0, 1.0])[:, None, None]) / np.array([1.0, 2.0])[:, None, None]).reshape(3, 8) @ w.T
    np.testing.assert_allclose(Network(layers, (2, 2, 2)).forward(x), want, rtol=1e-14)
    with pytest.raises(InputError, match="input_shape"):
        Network(layers)


def test_relu_twice_is_once_and_final_relu_is_kept():
    net = Network((Affine(EYE), ReLU(), ReLU()))
    assert net.chain.final_relu
    assert len(net.chain.weights) == 1
    np.testing.assert_array_equal(net.forward([[-1.0, 2.0]]), [[0.0, 2.0]])


def test_relu_before_the_first_layer_is_a_layer():
    net = Network((ReLU(), Affine([[1.0, 1.0]])))
    np.testing.assert_array_equal(net.forward([[-1.0, 2.0]]), [[2.0]])


def test_weights_are_copied_and_read_only():
    w = EYE.copy()
    net = Network.from_weights([w])
    w[0, 0] = 9.0
    assert net.chain.weights[0][0, 0] == 1.0
    with pytest.raises(ValueError, match="read-only"):
        net.chain.weights[0][0, 0] = 2.0
    with pytest.raises(ValueError, match="read-only"):
        net.layers[0].weight[0, 0] = 2.0


def test_digest_tells_networks_apart():
    nets = [
        Network((Affine(EYE),)),
        Network((Affine(2 * EYE),)),
        Network((Affine(EYE, [0.0, 1.0]),)),
        Network((Affine(EYE), ReLU())),
        Network((Normalise(0.0, 2.0), Affine(EYE))),
        Network((Normalise(1.0, 2.0), Affine(EYE))),
    ]
    assert len({n.digest for n in nets}) == len(nets)
    assert nets[0].digest == Network.from_weights([EYE]).digest


@pytest.mark.parametrize(
    ("layers", "word"),
    [
        ((Affine([[1e200]]), Affine([[1e200]])), "product"),
        ((Affine([[1e-200]]), Affine([[1e-200]])), "product"),  # 0 would be a constant network
        ((Normalise(0.0, 5e-324), Affine([[1.0]])), "range"),
        ((Affine([[1e300]], [1e300]), Affine([[1.0]]), Normalise(0.0, 1e-300)), "overflow"),
    ],
)
def test_folding_that_leaves_float64_is_refused(layers, word):
    with pytest.raises(InputError, match=word):
        Network(layers)


def test_products_with_exact_zeros_are_fine():
    net = Network((Affine([[0.0]]), Affine([[1e-300]])))
    assert net.chain.weights[0][0, 0] == 0.0


@pytest.mark.parametrize("shape", [(-1, -2), (0,), ("2",), (2.0,), (3,), (1, 1)])
def test_bad_input_shape(shape):
    with pytest.raises(InputError, match="input_shape"):
        Network((Affine(EYE),), shape)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: Network(()), "layers"),
        (lambda: Network((ReLU(),)), "layers"),
        (lambda: Network((Affine(EYE), ReLU(), Affine([[1.0]]))), "layers"),
        (lambda: Affine(EYE, [1.0]), "bias"),
        (lambda: Affine([[math.nan]]), "weight"),
        (lambda: Normalise(0.0, 0.0), "std"),
        (lambda: Normalise(0.0, -1.0), "std"),
        (lambda: Network.from_weights(EYE), "weights"),
        (lambda: Network.from_weights([EYE], [None, None]), "biases"),
        (lambda: Network.from_weights([EYE, np.ones((1, 3))]), "layers"),
        (lambda: Network.from_weights([]), "layers"),
        (lambda: as_network("net"), "model"),
        (lambda: as_network(EYE), "model"),
        (lambda: Network.from_weights([EYE]).forward([1.0, 2.0]), "x"),
        (lambda: Network.from_weights([EYE]).forward(np.zeros((0, 2))), "x"),
        (lambda: Network.from_weights([EYE]).forward([[1.0, 2.0, 3.0]]), "x"),
        (lambda: Ball([0.0], -1.0, 2), "radius"),
        (lambda: Ball([math.nan], 1.0, 2), "center"),
        (lambda: Ball([0.0], 1.0, 3), "norm"),
    ],
)
def test_bad_input_names_the_argument(make, word):
    with pytest.raises(InputError, match=rf"^{word}") as caught:
        make()
    assert "Fix:" in str(caught.value)


def test_a_foreign_layer_is_refused_by_name():
    class Conv:
        pass

    with pytest.raises(UnsupportedLayerError, match="Conv"):
        Network((Affine(EYE), Conv()))  # type: ignore[arg-type]
