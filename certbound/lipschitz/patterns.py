"""``lipschitz_patterns``: the largest Jacobian norm over ALL 0/1 activation patterns of a tiny network.

``max_D ‖W_{m+1} D_m W_m … D_1 W_1‖_p`` is an upper bound of the Lipschitz constant (a bias-free net with one
hidden layer attains it often; in general not every pattern is realised by an input: 1.2x typical, 2.6x seen).
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from certbound.arrays import F64
from certbound.bound import Bound, Claim, Result
from certbound.errors import InputError
from certbound.lipschitz.pattern_pair import balanced, ldexp_up, max_pattern_norm
from certbound.lipschitz.product import Outputs, best_rigor, output_row, product_bound
from certbound.network import Network, as_network
from certbound.norms.dense import induced_norm
from certbound.types import Quantity, Rigor, Sense, Status, parse_norm

MAX_HIDDEN = 20
_SOURCE = "piecewise linearity of ReLU networks (a.e. Jacobian), certbound theory, section 3"


def pattern_maximum(encoder: Sequence[F64], head: F64, norm: float) -> float:
    """``max_D ‖H D_m W_m … D_1 W_1‖_p``: the earlier layers' patterns by brute force, the last by the pair's engine.

    >>> round(pattern_maximum([np.array([[2.0, 1, 0, -1], [-2, 0, -1, -1]])], np.array([[1.0, 1.0]]), 2.0) ** 2, 9)
    6.0
    """
    if not encoder:
        return induced_norm(head, norm)
    # powers of two move through the ReLUs to the end: products of many matrices neither under- nor overflow
    weights, exponent = [*encoder, head], 0
    for i in range(len(encoder)):
        weights[i], weights[i + 1], e = balanced(weights[i], weights[i + 1])
        exponent += e
    return ldexp_up(_descend(weights[0], weights[1:-1], weights[-1], norm, 0.0), exponent)


def _descend(product: F64, rest: list[F64], head: F64, norm: float, best: float) -> float:
    if not rest:
        value, exact = max_pattern_norm(head, product, norm, 2**MAX_HIDDEN)
        if not exact:
            raise InputError(
                "network",
                got=f"{product.shape[0]} neurons in one layer",
                needed=f"at most {MAX_HIDDEN}",
                fix="use lipschitz_sdp",
            )
        return max(best, value)
    active = np.flatnonzero(np.any(product != 0, axis=1) & np.any(rest[0] != 0, axis=0))
    for bits in range(2 ** len(active)):
        mask = np.zeros(product.shape[0])
        mask[active] = (bits >> np.arange(len(active))) & 1
        best = max(best, _descend(rest[0] @ (mask[:, None] * product), rest[1:], head, norm, best))
    return best


def pattern_bound(network: Network, norm: float, outputs: Outputs = "all") -> Bound:
    """The pattern maximum of the network, of one output, or of one margin; InputError above 2^20 patterns."""
    if outputs != "all":
        network = network.open_ended
    chain = network.chain
    hidden = sum(w.shape[0] for w in chain.encoder)
    if hidden > MAX_HIDDEN:
        raise InputError(
            "network",
            got=f"{hidden} hidden neurons (2^{hidden} patterns)",
            needed=f"at most {MAX_HIDDEN}",
            fix="use lipschitz_sdp, which bounds networks of any size",
        )
    head = chain.head if outputs == "all" else output_row(network, outputs)[None]
    value = pattern_maximum(chain.encoder, head, norm)
    claim = Claim(Quantity.LIPSCHITZ, norm, norm, outputs=outputs, subject=network.digest)
    return Bound(value, claim, Sense.UPPER, Rigor.NUMERICAL, "all 0/1 activation patterns", _SOURCE)


def lipschitz_patterns(network: object, norm: object = 2) -> Result:
    """UPPER bound of the Lipschitz constant of a tiny network: the largest Jacobian norm over all patterns.

    At most 20 hidden neurons; more give the product of norms with status TOO_LARGE. Not the exact constant: biased
    nets do not realise every pattern.

    >>> lipschitz_patterns([[[1.0], [-1.0]], [[1.0, 1.0]]], norm="inf").value  # |x|
    1.0
    """
    start = time.perf_counter()
    net, p = as_network(network), parse_norm(norm)
    hidden = sum(w.shape[0] for w in net.chain.encoder)
    if hidden > MAX_HIDDEN:
        return Result(product_bound(net, p, "all", best_rigor()), Status.TOO_LARGE, seconds=time.perf_counter() - start)
    bound = pattern_bound(net, p)
    return Result(bound, Status.OK, seconds=time.perf_counter() - start, stats=(("hidden neurons", float(hidden)),))
