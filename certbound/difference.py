"""The difference of two ReLU networks as one network: ``h(x) = f(x) − g(x)``, block-diagonal inside.

The shallower one is padded with identity layers before its head: what leaves a ReLU is >= 0, so another ReLU does not
change it. Bounds of h on a ball see both networks at the same input, which a difference of two bounds does not.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import block_diag

from certbound.arrays import F64
from certbound.errors import InputError
from certbound.network import Affine, Chain, Layer, Network, ReLU


def _padded(chain: Chain, depth: int) -> tuple[list[F64], list[F64]]:
    """Weights and biases with identity layers before the head, ``depth`` affine maps in all."""
    weights, biases = list(chain.weights), list(chain.biases)
    missing = depth - len(weights)
    if missing and len(weights) == 1:
        # no ReLU to hide behind: x = φ(x) − φ(−x)
        n = weights[0].shape[1]
        split = np.vstack([np.eye(n), -np.eye(n)])
        weights, biases = [split, np.hstack([weights[0], -weights[0]])], [np.zeros(2 * n), biases[0]]
        missing -= 1
    width = weights[-1].shape[1]
    for _ in range(missing):
        weights.insert(-1, np.eye(width))
        biases.insert(-1, np.zeros(width))
    return weights, biases


def difference_network(f: Network, g: Network) -> Network:
    """``f − g`` for two networks with the same inputs and outputs, both ending in an affine layer.

    >>> f, g = Network.from_weights([[[1.0]], [[2.0]]]), Network.from_weights([[[1.0]]])
    >>> difference_network(f, g).forward([[3.0], [-3.0]]).tolist()  # 2 max(x, 0) − x
    [[3.0], [3.0]]
    """
    for name, net in (("dense", f), ("compressed", g)):
        if net.chain.final_relu:
            raise InputError(
                name, got="a network that ends in a ReLU", needed="an affine last layer", fix="drop the ReLU"
            )
    if (f.n_inputs, f.n_outputs) != (g.n_inputs, g.n_outputs):
        raise InputError(
            "compressed",
            got=f"{g.n_inputs} inputs and {g.n_outputs} outputs",
            needed=f"{f.n_inputs} inputs and {f.n_outputs} outputs, as the dense network has",
            fix="compare networks for the same task; merge structural pruning back to the full input",
        )
    depth = max(len(f.chain.weights), len(g.chain.weights))
    wf, bf = _padded(f.chain, depth)
    wg, bg = _padded(g.chain, depth)
    layers: list[Layer] = []
    for i in range(depth):
        if i:
            layers.append(ReLU())
        if depth == 1:
            layers.append(Affine(wf[0] - wg[0], bf[0] - bg[0]))
        elif i == 0:
            layers.append(Affine(np.vstack([wf[0], wg[0]]), np.concatenate([bf[0], bg[0]])))
        elif i == depth - 1:
            layers.append(Affine(np.hstack([wf[i], -wg[i]]), bf[i] - bg[i]))
        else:
            layers.append(
                Affine(np.asarray(block_diag(wf[i], wg[i]), dtype=np.float64), np.concatenate([bf[i], bg[i]]))
            )
    return Network(tuple(layers))


def two_sided(network: Network) -> Network:
    """Outputs ``(0, h, −h)``: margins of output 0 are bounds of ``±h``."""
    chain = network.chain
    layers: list[Layer] = []
    for i, (w, b) in enumerate(zip(chain.weights, chain.biases, strict=True)):
        if i:
            layers.append(ReLU())
        if i == len(chain.weights) - 1:
            zero = np.zeros((1, w.shape[1]))
            layers.append(Affine(np.vstack([zero, w, -w]), np.concatenate([[0.0], b, -b])))
        else:
            layers.append(Affine(w, b))
    return Network(tuple(layers))
