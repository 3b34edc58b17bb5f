"""The network IR as a torch module: what attacks and auto_LiRPA run on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from certbound.errors import InputError, MissingDependencyError
from certbound.network import Network

if TYPE_CHECKING:
    from torch import nn

    from certbound.arrays import F64

_DTYPES = ("float64", "float32")


def import_torch(purpose: str) -> Any:
    """The torch module, or MissingDependencyError with the command that installs it."""
    try:
        import torch
    except ImportError as error:
        raise MissingDependencyError("torch", purpose=purpose, command="pip install 'certbound[torch]'") from error
    return torch


def _linear(torch: Any, weight: F64, bias: F64, dtype: Any, device: Any) -> Any:
    # skip_init: nn.Linear would draw random weights first and so move the user's random state
    layer = torch.nn.utils.skip_init(
        torch.nn.Linear, weight.shape[1], weight.shape[0], dtype=dtype, device=device
    )
    with torch.no_grad():
        # .copy(): the IR's arrays are read-only, which torch.from_numpy warns about
        layer.weight.copy_(torch.from_numpy(weight.copy()))
        layer.bias.copy_(torch.from_numpy(bias.copy()))
    return layer


def _dtype(torch: Any, dtype: object) -> Any:
    name = str(dtype).removeprefix("torch.")
    if name not in _DTYPES:
        raise InputError("dtype", got=repr(dtype), needed="'float64' or 'float32'", fix="pass dtype='float64'")
    return getattr(torch, name)


def to_torch(network: Network, *, dtype: object = "float64", device: object = "cpu") -> nn.Sequential:
    """``network.chain`` as Flatten, Linear, ReLU, Linear, …, with a last ReLU if the chain has one.

    In float64 its outputs equal ``network.forward`` up to the order of summation. It is in eval mode and no
    parameter requires a gradient.

    Parameters
    ----------
    network : the IR; normalisation is folded into its first layer.
    dtype : ``"float64"`` or ``"float32"`` (or the torch dtypes of these names).
    device : where the parameters live.

    Returns
    -------
    A new ``nn.Sequential`` for input of shape (samples, …) and output of shape (samples, outputs).

    Raises
    ------
    InputError : another dtype. MissingDependencyError : no torch.

    >>> import torch
    >>> net = Network.from_weights([[[1.0, -1.0]], [[2.0]]])
    >>> to_torch(net)(torch.tensor([[3.0, 1.0]], dtype=torch.float64)).tolist()
    [[4.0]]
    """
    torch = import_torch("to_torch")
    kind = _dtype(torch, dtype)
    chain = network.chain
    last = len(chain.weights) - 1
    layers: list[Any] = [torch.nn.Flatten()]
    for i, (weight, bias) in enumerate(zip(chain.weights, chain.biases, strict=True)):
        layers.append(_linear(torch, weight, bias, kind, device))
        if i < last or chain.final_relu:
            layers.append(torch.nn.ReLU())
    module: nn.Sequential = torch.nn.Sequential(*layers).eval().requires_grad_(False)
    return module


def two_class(model: nn.Module, *, dtype: object = "float64", device: object = "cpu") -> nn.Sequential:
    """The one-logit ``model`` z as the two-class model (0, z): a last Linear with the rows 0 and 1.

    The cross-entropy of (0, z) is the logistic loss, label 0 for −1 and 1 for +1. ``dtype`` and ``device``
    are those of the added layer and must be the model's own.

    >>> import torch
    >>> net = Network.from_weights([[[1.0, -1.0]]])
    >>> two_class(to_torch(net))(torch.tensor([[3.0, 1.0]], dtype=torch.float64)).tolist()
    [[0.0, 2.0]]
    """
    import numpy as np

    torch = import_torch("two_class")
    # A bias of zeros: without one auto_LiRPA reads the layer as a product of matrices, to which its IBP cannot
    # apply a specification.
    head = _linear(torch, np.array([[0.0], [1.0]]), np.zeros(2), _dtype(torch, dtype), device)
    module: nn.Sequential = torch.nn.Sequential(model, head).eval().requires_grad_(False)
    return module
