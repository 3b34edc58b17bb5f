"""Upper bounds of the Lipschitz constants of all margins of a graph, by the product rule."""

from __future__ import annotations

import numpy as np

from certbound.arrays import F64
from certbound.graph import Graph
from certbound.graph_margins import head_constants, split_head
from certbound.lipschitz.graph_product import graph_product
from certbound.network import Network


def product_constants(network: Network | Graph, norm: float) -> F64:
    """Upper bounds of the margins' Lipschitz constants: the encoder's product bound times the norm of the head's rows.

    Raises
    ------
    UnsupportedLayerError : the network is not globally Lipschitz, or not known to be, with the node and the reason.

    >>> from certbound.graph import as_graph
    >>> product_constants(as_graph([[[2.0]], [[1.0], [-1.0]]]), 2.0).round(9)
    array([[0., 4.],
           [4., 0.]])
    """
    encoder, head = split_head(network)
    constant = 1.0 if len(encoder.nodes) == 1 else graph_product(encoder, norm).value
    if head is not None:
        return head_constants(constant, head.weight, norm)
    n = max(encoder.n_outputs, 2)
    if encoder.n_outputs == 1:
        return constant * (1.0 - np.eye(2))
    return head_constants(constant, np.eye(n), norm)


__all__ = ["product_constants"]
