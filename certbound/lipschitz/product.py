"""The product of norms: the oldest Lipschitz bound, and the ceiling of every other one here.

``Lip_p(f) <= Π_l ‖W^l‖_p``, since ReLU is 1-Lipschitz in every p-norm.
"""

from __future__ import annotations

import math
import time

import numpy as np

from certbound.arrays import F64
from certbound.bound import Bound, Claim, Result, compose
from certbound.network import Network, as_network
from certbound.norms.dense import induced_norm, row_dual_norms
from certbound.types import GLOBAL, Quantity, Rigor, Sense, Status, norm_name, parse_norm

Outputs = str | int | tuple[int, int]


def layer_bound(W: F64, norm: float, subject: str = "") -> Bound:
    """``‖W‖_p`` of one layer as a bound (numerical)."""
    method = "largest row sum" if math.isinf(norm) else "largest singular value (LAPACK)"
    claim = Claim(Quantity.OPERATOR_NORM, norm, norm, subject=subject)
    return Bound(induced_norm(W, norm), claim, Sense.UPPER, Rigor.NUMERICAL, method, "definition")


def functional_bound(c: F64, norm: float, outputs: Outputs) -> Bound:
    """``‖c‖_{p*}`` of one output row or difference of rows: its norm as a map from ``‖·‖_p`` to R."""
    scale = float(np.max(np.abs(c), initial=0.0)) or 1.0
    value = math.nextafter(float(row_dual_norms((c / scale)[None], norm)[0]) * scale, math.inf) if c.any() else 0.0
    claim = Claim(Quantity.OPERATOR_NORM, norm, norm, outputs=outputs)
    return Bound(value, claim, Sense.UPPER, Rigor.NUMERICAL, f"dual norm of a row (p = {norm_name(norm)})", "Hölder")


def product_of_norms(weights: tuple[F64, ...], norm: float, subject: str) -> Bound:
    """``Π_l ‖W^l‖_p`` over the matrices given; the empty product is the identity's constant 1."""
    if not weights:
        claim = Claim(Quantity.LIPSCHITZ, norm, norm, subject=subject)
        return Bound(1.0, claim, Sense.UPPER, Rigor.RIGOROUS, "identity", "definition")
    return compose(*(layer_bound(w, norm) for w in weights), subject=subject)


def output_row(network: Network, outputs: Outputs) -> F64:
    """The row of the head that an output index or a pair ``(j, y)`` (``f_j − f_y``) selects; no ReLU may follow it."""
    if network.chain.final_relu:
        raise AssertionError("rows of the head select outputs only in an open-ended network")
    head = network.chain.head
    if isinstance(outputs, tuple):
        return head[outputs[0]] - head[outputs[1]]
    assert isinstance(outputs, int)  # "all" is handled by the callers
    return head[outputs]


def product_bound(network: Network, norm: float, outputs: Outputs = "all") -> Bound:
    """Product of norms of the whole network, of one output, or of one margin ``f_j − f_y``."""
    if outputs == "all":
        return product_of_norms(network.chain.weights, norm, network.digest)
    network = network.open_ended
    chain = network.chain
    functional = functional_bound(output_row(network, outputs), norm, outputs)
    if not chain.encoder:
        return compose(functional, subject=network.digest)
    return compose(*(layer_bound(w, norm) for w in chain.encoder), functional, subject=network.digest)


def lipschitz_product(network: object, norm: object = 2) -> Result:
    """Upper bound of the Lipschitz constant from ``‖·‖_p`` to ``‖·‖_p``: the product of layer norms.

    ``network``: nn.Module, Network, or list of weight matrices (bias-free ReLU net). Biases do not matter.
    Raises InputError / UnsupportedLayerError for what is no such network.

    >>> lipschitz_product([[[3.0, 0.0], [0.0, 1.0]], [[2.0, 0.0]]], norm=2).value.__round__(9)
    6.0
    """
    start = time.perf_counter()
    bound = product_bound(as_network(network), parse_norm(norm))
    return Result(bound, Status.OK, seconds=time.perf_counter() - start)


__all__ = ["GLOBAL", "Outputs", "lipschitz_product", "product_bound", "product_of_norms"]
