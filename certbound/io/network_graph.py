"""Network → Graph: a chain of dense layers in the IR of real architectures."""

from __future__ import annotations

import math
from collections.abc import Iterable

from certbound.graph import Graph
from certbound.io.graph_builder import GraphBuilder
from certbound.network import Activation, Affine, Flatten, Layer, Network, Normalise, ReLU
from certbound.ops import Add, Linear, Pointwise, Scale, Shift


def from_network(network: Network) -> Graph:
    """The same function, layer by layer; nodes are named as :func:`certbound.network.affine_layers` names layers.

    Weights are those of the network: nothing is folded.

    >>> from certbound.network import Residual
    >>> block = Residual((Affine([[2.0, 0.0], [0.0, 2.0]]), ReLU()))
    >>> graph = from_network(Network((block, Affine([[1.0, 1.0]]))))
    >>> graph.forward([[3.0, -1.0]]).tolist(), [str(node) for node in graph.nodes[1:]]
    ([[8.0]], ['layers[0].body[0] (Linear)', 'layers[0].body[1] (relu)', 'layers[0] (Add)', 'layers[1] (Linear)'])
    """
    builder = GraphBuilder(network.input_shape or (network.n_inputs,))
    return builder.finish(_append(builder, network, network.layers, 0, "layers"))


def _append(builder: GraphBuilder, network: Network, layers: Iterable[Layer], value: int, path: str) -> int:
    """The layers applied to a node's value."""
    for i, layer in enumerate(layers):
        where = f"{path}[{i}]"
        if isinstance(layer, Affine):
            value = builder.add(Linear(layer.weight, layer.bias), _flat(builder, value, where), name=where)
        elif isinstance(layer, ReLU):
            value = builder.add(Pointwise(Activation("relu")), value, name=where)
        elif isinstance(layer, Activation):
            value = builder.add(Pointwise(layer), value, name=where)
        elif isinstance(layer, Flatten):
            value = _flat(builder, value, where)
        elif isinstance(layer, Normalise):
            shape = builder.shape(value)
            mean, std = (statistic.reshape(shape) for statistic in network.statistics[i])
            value = builder.add(Shift(-mean), value, name=where)
            value = builder.add(Scale(std, divides=True), value, name=where)
        else:
            shortcut = _append(builder, network, layer.shortcut, value, f"{where}.shortcut")
            body = _append(builder, network, layer.body, value, f"{where}.body")
            if builder.shape(shortcut) != builder.shape(body):
                shortcut, body = _flat(builder, shortcut, where), _flat(builder, body, where)
            value = builder.add(Add(), shortcut, body, name=where)
    return value


def _flat(builder: GraphBuilder, value: int, name: str) -> int:
    return builder.reshape(value, (1, math.prod(builder.shape(value))), name=name)


__all__ = ["from_network"]
