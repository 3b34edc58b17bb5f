"""A :class:`~certbound.graph.Graph` as a torch module: what attacks, gradients and auto_LiRPA run on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from certbound.errors import InputError
from certbound.graph import Graph
from certbound.io.to_torch import import_torch

if TYPE_CHECKING:
    from torch import nn

DTYPES = ("float64", "float32")


def graph_to_torch(graph: Graph, *, dtype: object = "float64", device: object = "cpu") -> nn.Module:
    """The graph as an ``nn.Module`` in eval mode, without gradients of parameters.

    In float64 its outputs equal ``graph.forward`` up to the order of summation, for batches of any size, and no sample
    depends on another: the batch takes the place of the graph's leading axis of length 1, or, where an operation moves
    that axis, stands in front of it.

    Parameters
    ----------
    graph : the IR. dtype : ``"float64"`` or ``"float32"`` (or the torch dtypes of these names). device : of the
        parameters.

    Returns
    -------
    A new module for input of shape (samples, *graph.input_shape) or (samples, graph.n_inputs) and output of shape
    (samples, outputs).

    Raises
    ------
    InputError : another dtype. MissingDependencyError : no torch.

    >>> import torch
    >>> from certbound.graph import Node
    >>> from certbound.ops import Conv, Input
    >>> difference = Graph((Node(Input((1, 1, 3))), Node(Conv([[[-1.0, 1.0]]]), (0,))))
    >>> graph_to_torch(difference)(torch.tensor([[1.0, 2.0, 4.0]], dtype=torch.float64))
    tensor([[1., 2.]], dtype=torch.float64)
    """
    torch = import_torch("graph_to_torch")
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise InputError("dtype", got=repr(dtype), needed="'float64' or 'float32'", fix="pass dtype='float64'")
    from certbound.io.torch_graph import GraphModule

    kind: Any = getattr(torch, name)
    module: nn.Module = GraphModule(graph, kind, device).eval()
    return module


__all__ = ["graph_to_torch"]
