"""The weight matrices of a model, one by one and with their names: what Theorem 3.1 is checked on."""

from __future__ import annotations

import logging
from typing import Any

from certbound.arrays import F64, as_matrix, is_torch
from certbound.errors import InputError
from certbound.graph import Graph
from certbound.network import Network, affine_layers, as_network
from certbound.ops import Conv, Linear

logger = logging.getLogger(__name__)


def named_matrices(model: object, argument: str = "model") -> dict[str, F64]:
    """Matrices by name, in the order of definition.

    Of an ``nn.Module`` all ``nn.Linear`` layers, with their effective weights (pruning masks, weight norm applied).
    The rest of the module need not be one that certbound models: a matrix is a matrix. Layers that are none are
    named in the log. Of a Graph, as an ONNX file gives one, its linear layers. Of a Network, ``layers[i]`` and
    ``layers[i].body[j]``; of a list, ``weights[i]``.

    Raises
    ------
    InputError : no matrix at all, or one that is no finite real matrix.
    """
    if is_torch(model, "Module"):
        return _of_module(model, argument)
    if isinstance(model, Graph):
        return _of_graph(model, argument)
    if isinstance(model, Network):
        return {path: layer.weight for path, layer in affine_layers(model.layers)}
    weights = (layer.weight for _, layer in affine_layers(as_network(model).layers))
    return {f"weights[{i}]": weight for i, weight in enumerate(weights)}


def _of_graph(graph: Graph, argument: str) -> dict[str, F64]:
    found: dict[str, F64] = {}
    skipped: list[str] = []
    for i, node in enumerate(graph.nodes):
        if isinstance(node.op, Linear):
            name = next(iter(node.parameters), f"{node.name}.weight" if node.name else "weight")
            found[name if name not in found else f"{name}[{i}]"] = node.op.weight
        elif isinstance(node.op, Conv):
            skipped.append(str(node))
    if skipped:
        logger.warning("left out, being no matrices: %s", ", ".join(skipped))
    if not found:
        raise InputError(
            argument, got="a graph without a linear layer", needed="a weight matrix", fix="see certbound layers"
        )
    return found


def _of_module(module: Any, argument: str) -> dict[str, F64]:
    from certbound.io import torch_module as tm

    found: dict[str, F64] = {}
    skipped: list[str] = []
    for path, m in module.named_modules():
        name = path or "weight"
        if tm._exact_class(m) in tm._LINEAR:
            found[name] = as_matrix(tm._effective(m, "weight", name), f"{name}.weight")
        elif getattr(m, "weight", None) is not None:
            skipped.append(f"{name} ({tm._exact_class(m).__name__})")
    if skipped:
        logger.warning("left out, being no matrices: %s", ", ".join(skipped))
    if not found:
        raise InputError(
            argument,
            got=f"a {type(module).__name__} without nn.Linear layers",
            needed="at least one weight matrix",
            fix="pass the matrix itself as a .npy file",
        )
    return found


__all__ = ["named_matrices"]
