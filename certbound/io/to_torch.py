"""The network IR as a torch module: what attacks and auto_LiRPA run on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from certbound.errors import InputError, MissingDependencyError
from certbound.network import Activation, Affine, Flatten, Layer, Network, Normalise, ReLU, Residual

if TYPE_CHECKING:
    from collections.abc import Iterable

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


def _linear(torch: Any, weight: F64, bias: F64 | None, dtype: Any, device: Any) -> Any:
    # skip_init: nn.Linear would draw random weights first and so move the user's random state
    layer = torch.nn.utils.skip_init(
        torch.nn.Linear, weight.shape[1], weight.shape[0], bias=bias is not None, dtype=dtype, device=device
    )
    with torch.no_grad():
        # .copy(): the IR's arrays are read-only, which torch.from_numpy warns about
        layer.weight.copy_(torch.from_numpy(weight.copy()))
        if bias is not None:
            layer.bias.copy_(torch.from_numpy(bias.copy()))
    return layer


def _dtype(torch: Any, dtype: object) -> Any:
    name = str(dtype).removeprefix("torch.")
    if name not in _DTYPES:
        raise InputError("dtype", got=repr(dtype), needed="'float64' or 'float32'", fix="pass dtype='float64'")
    return getattr(torch, name)


def to_torch(network: Network, *, dtype: object = "float64", device: object = "cpu") -> nn.Sequential:
    """The network as an ``nn.Sequential`` that begins with the flattening of its input.

    Of a ReLU chain ``network.chain``: Flatten, Linear, ReLU, Linear, …, with a last ReLU if the chain has one. Any
    other network layer by layer, with :class:`certbound.io.torch_layers.Residual` for its blocks: importing the module
    gives the same digest, if the normalisation had one number in all or one per input.

    In float64 its outputs equal ``network.forward`` up to the order of summation. It is in eval mode and no
    parameter requires a gradient.

    Parameters
    ----------
    network : the IR; normalisation of a ReLU chain is folded into its first layer.
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
    if not network.is_relu_chain:
        return _layer_by_layer(torch, network, kind, device)
    chain = network.chain
    last = len(chain.weights) - 1
    layers: list[Any] = [torch.nn.Flatten()]
    for i, (weight, bias) in enumerate(zip(chain.weights, chain.biases, strict=True)):
        layers.append(_linear(torch, weight, bias, kind, device))
        if i < last or chain.final_relu:
            layers.append(torch.nn.ReLU())
    module: nn.Sequential = torch.nn.Sequential(*layers).eval().requires_grad_(False)
    return module


def _layer_by_layer(torch: Any, network: Network, dtype: Any, device: Any) -> Any:
    from certbound.io.torch_layers import FlatInput

    modules: list[Any] = [FlatInput()]
    for i, layer in enumerate(network.layers):
        if isinstance(layer, Normalise):
            modules.append(_normalise(torch, layer, network.statistics[i], dtype, device))
        elif isinstance(layer, Flatten):
            modules.append(torch.nn.Flatten())
        else:
            modules += _modules(torch, (layer,), dtype, device)
    module: nn.Sequential = torch.nn.Sequential(*modules).eval().requires_grad_(False)
    return module


def _normalise(torch: Any, layer: Normalise, per_input: tuple[F64, F64], dtype: Any, device: Any) -> Any:
    from certbound.io.torch_layers import Normalise as NormaliseModule

    module = NormaliseModule(0.0, 1.0)  # would round numbers given here to torch's default dtype
    for name, values, spread in zip(("mean", "std"), (layer.mean, layer.std), per_input, strict=True):
        # one number stays one, so that the digest stays
        own = values.reshape(()) if values.size == 1 else spread
        setattr(module, name, torch.tensor(own, dtype=dtype, device=device))
    return module


def _modules(torch: Any, layers: Iterable[Layer], dtype: Any, device: Any) -> list[Any]:
    """One module for each layer of a network or of a block."""
    from certbound.io.torch_layers import Residual as ResidualModule

    made: list[Any] = []
    for layer in layers:  # Flatten and Normalise are in no block
        if isinstance(layer, Affine):
            made.append(_linear(torch, layer.weight, layer.bias, dtype, device))
        elif isinstance(layer, ReLU):
            made.append(torch.nn.ReLU())
        elif isinstance(layer, Activation):
            made.append(_activation(torch.nn, layer))
        elif isinstance(layer, Residual):
            parts = (_modules(torch, part, dtype, device) for part in (layer.body, layer.shortcut))
            made.append(ResidualModule(*(torch.nn.Sequential(*part) for part in parts)))
    return made


def _activation(nn: Any, layer: Activation) -> Any:
    if layer.name == "leaky_relu":
        return nn.LeakyReLU(layer.parameter)
    if layer.name.startswith("gelu"):
        return nn.GELU(approximate="tanh" if layer.name == "gelu_tanh" else "none")
    return {"relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "silu": nn.SiLU}[layer.name]()


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
