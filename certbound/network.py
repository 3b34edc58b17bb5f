"""The network IR: an immutable float64 chain of Affine, ReLU, Activation, Residual, Flatten and Normalise.

What is not in this list is refused at import, never ignored: a bound on a network that is not the
user's network is worse than none.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from certbound.activations import Activation
from certbound.arrays import F64, as_float64, as_matrix, digest, frozen, is_torch, power_of_two_scale
from certbound.errors import InputError, UnsupportedLayerError
from certbound.rounding import TINY, gamma
from certbound.types import GLOBAL, norm_name, parse_delta, parse_norm

__all__ = [
    "GLOBAL",
    "Activation",
    "Affine",
    "Ball",
    "Chain",
    "Flatten",
    "Layer",
    "Network",
    "Normalise",
    "ReLU",
    "Residual",
    "affine_layers",
    "as_network",
]


@dataclass(frozen=True, eq=False)
class Affine:
    """``x ↦ W x + b`` on flat input; ``weight`` has shape (outputs, inputs)."""

    weight: F64
    bias: F64 | None = None

    def __post_init__(self) -> None:
        weight = frozen(as_matrix(self.weight, "weight"))
        object.__setattr__(self, "weight", weight)
        if self.bias is not None:
            bias = as_float64(self.bias, "bias")
            if bias.shape != (weight.shape[0],):
                raise InputError(
                    "bias",
                    got=f"shape {bias.shape}",
                    needed=f"({weight.shape[0]},), one number per output",
                    fix="check which layer the bias belongs to",
                )
            object.__setattr__(self, "bias", frozen(bias))


@dataclass(frozen=True)
class ReLU:
    """``x ↦ max(x, 0)``, elementwise: 1-Lipschitz, slope in [0, 1]."""


@dataclass(frozen=True)
class Flatten:
    """All axes but the batch become one (row-major)."""


@dataclass(frozen=True, eq=False)
class Normalise:
    """``x ↦ (x − mean) / std``; ``mean``, ``std``: one number, one per channel (axis 0), or one per input."""

    mean: F64
    std: F64

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            array = np.atleast_1d(as_float64(getattr(self, name), name))
            object.__setattr__(self, name, frozen(array))
        if np.any(self.std <= 0):
            raise InputError(
                "std", got=f"{self.std.min()}", needed="numbers > 0", fix="drop constant features or set their std to 1"
            )

    def per_input(self, shape: tuple[int, ...] | None, n_inputs: int) -> tuple[F64, F64]:
        """Mean and std as flat vectors, one entry per input, for input of the given shape."""
        return _spread(self.mean, shape, n_inputs, "mean"), _spread(self.std, shape, n_inputs, "std")


def _spread(values: F64, shape: tuple[int, ...] | None, n: int, name: str) -> F64:
    flat = values.reshape(-1)
    if flat.size == 1:
        return np.full(n, flat[0])
    # With an image shape known, C numbers mean one per channel; C numbers for C flat inputs, one each.
    if shape is not None and len(shape) > 1 and flat.size == shape[0]:
        return np.repeat(flat, math.prod(shape[1:]))
    if flat.size == n:
        return flat.copy()
    raise InputError(
        name,
        got=f"{flat.size} values for {n} inputs of shape {shape}",
        needed="one value, one per channel of input_shape, or one per input",
        fix="pass input_shape=(channels, height, width) when importing the model",
    )


def _product(left: F64, right: F64) -> F64:
    """``left @ right`` of two affine maps in a row; refused where it leaves the range of float64.

    A product that underflows to 0 would make a network constant that is not, and every upper bound of it wrong. So
    every factor and every entry must be normal: terms of 2^-500 · 2^-500 are still far above the subnormal numbers.
    """
    a, b = power_of_two_scale(left), power_of_two_scale(right)
    left, right = _unvanished(left, left / a, 2.0**-500), _unvanished(right, right / b, 2.0**-500)
    product = left @ right
    with np.errstate(over="ignore", under="ignore"):
        # scaled once: in two steps the first may lose bits below the normal numbers
        return _unvanished(product, np.ldexp(product, _exponent(a) + _exponent(b)), 2.0**-1000)


def _unvanished(before: F64, after: F64, least: float) -> F64:
    """``after``, unless an entry that is not 0 in ``before`` became smaller than ``least`` or infinite in it."""
    size = np.abs(after)
    if np.any((before != 0.0) & ~((size >= least) & (size < math.inf))):
        raise InputError(
            "layers",
            got="affine or normalisation layers in a row whose product leaves the range of float64",
            needed="weights whose products neither overflow nor vanish",
            fix="rescale the weights: what one layer is divided by, the other is multiplied with",
        )
    return after


@dataclass(frozen=True, eq=False)
class _Folding:
    """The affine map collected since the last ReLU, ``x ↦ W x + b``, and how far rounding took it from the true one.

    ``weight`` None: the identity. ``error``, ``bias_error``: entrywise bounds of |true − stored|; None: exact.
    """

    weight: F64 | None
    bias: F64
    error: F64 | None = None
    bias_error: F64 | None = None

    def then_affine(self, layer: Affine) -> _Folding:
        """Followed by an affine layer."""
        A, n = layer.weight, layer.weight.shape[1]
        with np.errstate(over="ignore", invalid="ignore"):  # refused in _folded
            bias = A @ self.bias
            if layer.bias is not None:
                bias = bias + layer.bias
            touched = bool(self.bias.any()) or self.bias_error is not None
            bias_error = None
            if touched:
                spread = np.zeros(n) if self.bias_error is None else self.bias_error
                own = 0.0 if layer.bias is None else np.abs(layer.bias)
                carried = _carried(A, np.abs(self.bias)[:, None], spread[:, None])[:, 0]
                # own: the sum is rounded once; the floor: what underflows in A @ bias
                bias_error = (carried + _gamma(4) * own) * (1 + 2.0**-20) + 8 * n * TINY
            if self.weight is None:
                return _Folding(A.copy(), bias, None, bias_error)
            product = _product(A, self.weight)
            spread = np.zeros_like(self.weight) if self.error is None else self.error
            error = _carried(A, np.abs(self.weight), spread)
        return _Folding(product, bias, error, bias_error)

    def then_normalise(self, mean: F64, std: F64) -> _Folding:
        """Followed by ``(x − mean)/std``."""
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):  # refused in _folded
            before = np.diag(np.ones(len(std))) if self.weight is None else self.weight
            weight = _unvanished(before, before / std[:, None], 2.0**-1000)
            bias = (self.bias - mean) / std
            spread = 0.0 if self.error is None else self.error / std[:, None]
            exact = self.error is None and bool(np.all(_is_power_of_two(std)))
            error = None if exact else _above(np.abs(weight) * _gamma(4) + spread, 1)
            moved = 0.0 if self.bias_error is None else self.bias_error / std
            plain = self.bias_error is None and not (self.bias.any() or mean.any())
            bias_error = None if plain else _above((np.abs(self.bias) + np.abs(mean)) / std * _gamma(6) + moved, 1)
        return _Folding(weight, bias, error, bias_error)


def _gamma(n: int) -> float:
    """``n u/(1 − n u)`` and a little: see :mod:`certbound.rounding`."""
    return gamma(n) * (1 + 2.0**-20)


def _carried(A: F64, size: F64, spread: F64) -> F64:
    """Upper bound of ``|A| (γ size + spread)``: the error of a product with A, and what its right factor was off by.

    Both factors are scaled first, so that an error far below the normal numbers is not lost before A amplifies it.
    """
    n = A.shape[1]
    a, b = power_of_two_scale(A), power_of_two_scale(np.maximum(size, spread))
    with np.errstate(under="ignore"):
        inner = np.ldexp(size, -_exponent(b)) * _gamma(n + 4) + np.ldexp(spread, -_exponent(b))
        scaled = np.ldexp(np.abs(A), -_exponent(a)) @ inner
    with np.errstate(over="ignore", under="ignore"):
        error = np.ldexp(scaled * (1 + 2.0**-20) + 8 * n * TINY, _exponent(a) + _exponent(b))
        return np.nextafter(error, math.inf)


def _exponent(scale: float) -> int:
    """e of ``2^e``."""
    return math.frexp(scale)[1] - 1


def _above(error: F64, n: int) -> F64:
    """An error bound computed in n steps, made one that its own rounding and underflow cannot falsify."""
    return error * (1 + 2.0**-20) + n * 2.0**-1000


def _is_power_of_two(values: F64) -> npt.NDArray[np.bool_]:
    return np.frexp(values)[0] == 0.5


def _folded(arrays: list[F64], name: str) -> tuple[F64, ...]:
    """Read-only arrays; refused if folding the normalisation overflowed."""
    for array in arrays:
        if not np.all(np.isfinite(array)):
            raise InputError(
                "layers",
                got=f"{name} that overflow when normalisation and affine layers are folded",
                needed="finite numbers",
                fix="check std for values near 0, and the size of the weights",
            )
    return tuple(frozen(x) for x in arrays)


@dataclass(frozen=True, eq=False)
class Residual:
    """``x ↦ shortcut(x) + body(x)``; an empty shortcut is the identity.

    Both hold Affine, ReLU, Activation and further Residual layers, in order of application, and give equally many
    numbers: nothing is broadcast. Widths are checked by the :class:`Network`.

    Raises
    ------
    InputError : an empty body, or something that is no tuple of layers.

    >>> block = Residual((Affine([[2.0, 0.0], [0.0, 2.0]]), ReLU()))
    >>> Network((block, Affine([[1.0, 1.0]]))).forward([[3.0, -1.0]])  # (3 + 6) + (−1 + 0)
    array([[8.]])
    """

    body: tuple[Layer, ...]
    shortcut: tuple[Layer, ...] = ()

    def __post_init__(self) -> None:
        for name in ("body", "shortcut"):
            given = getattr(self, name)
            if not isinstance(given, (tuple, list)):
                raise InputError(
                    name, got=f"a {type(given).__name__}", needed="a tuple of layers", fix="write (layer,) for one"
                )
            object.__setattr__(self, name, _plain(cast("Sequence[Layer]", given)))
        if not self.body:
            raise InputError(
                "body",
                got="no layer",
                needed="at least one",
                fix="write x + x as an Affine with 2 on the diagonal; an identity beside it is the empty shortcut",
            )


Layer = Affine | ReLU | Activation | Flatten | Normalise | Residual


def _plain(layers: Iterable[Layer]) -> tuple[Layer, ...]:
    """The layers, with every activation that is the ReLU written as such."""
    return tuple(ReLU() if isinstance(x, Activation) and _is_relu(x) else x for x in layers)


def _is_relu(activation: Activation) -> bool:
    return activation.name == "relu" or (activation.name == "leaky_relu" and activation.parameter == 0.0)


def affine_layers(layers: Iterable[Layer], path: str = "layers") -> Iterator[tuple[str, Affine]]:
    """Every Affine with its path, those inside residual blocks too.

    >>> [path for path, _ in affine_layers((Residual((ReLU(), Affine([[1.0]]))), Affine([[1.0]])))]
    ['layers[0].body[1]', 'layers[1]']
    """
    for i, layer in enumerate(layers):
        if isinstance(layer, Affine):
            yield f"{path}[{i}]", layer
        elif isinstance(layer, Residual):
            yield from affine_layers(layer.body, f"{path}[{i}].body")
            yield from affine_layers(layer.shortcut, f"{path}[{i}].shortcut")


def _width_after(layers: Iterable[object], width: int, path: str) -> int:
    """Outputs of the layers on ``width`` inputs; refuses what is no layer and widths that do not chain, by path."""
    for i, layer in enumerate(layers):
        where = f"{path}[{i}]"
        if isinstance(layer, Affine):
            if layer.weight.shape[1] != width:
                raise InputError(
                    where,
                    got=f"a weight with {layer.weight.shape[1]} inputs after {width} outputs",
                    needed=f"{width} inputs",
                    fix="pass weights first layer first, each of shape (outputs, inputs)",
                )
            width = layer.weight.shape[0]
        elif isinstance(layer, Residual):
            body = _width_after(layer.body, width, f"{where}.body")
            shortcut = _width_after(layer.shortcut, width, f"{where}.shortcut")
            if body != shortcut:
                raise InputError(
                    where,
                    got=f"a Residual whose body gives {body} numbers and whose shortcut gives {shortcut}",
                    needed="equally many: nothing is broadcast",
                    fix=f"give it a shortcut with {body} outputs, shortcut=(Affine(…),)",
                )
            width = body
        elif isinstance(layer, (Flatten, Normalise)):
            if path != "layers":
                raise UnsupportedLayerError(
                    where,
                    got=f"a {type(layer).__name__} inside a Residual",
                    needed="Affine, ReLU, Activation or Residual",
                    fix="put it before the block; a normalisation in it is an Affine with a diagonal weight",
                )
        elif not isinstance(layer, (ReLU, Activation)):
            raise UnsupportedLayerError(
                where,
                got=f"a {type(layer).__name__}",
                needed="Affine, ReLU, Activation, Residual, Flatten or Normalise",
                fix="rewrite the network with these layers",
            )
    return width


def _digest_parts(layers: Iterable[Layer]) -> Iterator[npt.NDArray[Any]]:
    """Tags and numbers, from which the layers can be read back: no two structures give the same sequence."""
    for layer in layers:
        # a tag of bytes: no bias, an array of floats, can be mistaken for it
        yield _tag(type(layer).__name__)
        if isinstance(layer, Affine):
            yield layer.weight
            if layer.bias is not None:
                yield layer.bias
        elif isinstance(layer, Normalise):
            yield layer.mean
            yield layer.std
        elif isinstance(layer, Activation):
            yield _tag(layer.name)
            yield np.array([layer.parameter], dtype=np.float64)
        elif isinstance(layer, Residual):
            yield from _digest_parts(layer.body)
            yield _tag("shortcut")
            yield from _digest_parts(layer.shortcut)
            yield _tag("end")


def _tag(word: str) -> npt.NDArray[np.uint8]:
    return np.frombuffer(word.encode(), dtype=np.uint8)


def _apply(layers: Iterable[Layer], h: F64) -> F64:
    """The layers on flat values, one after the other; Flatten changes none."""
    for layer in layers:
        if isinstance(layer, Affine):
            h = h @ layer.weight.T if layer.bias is None else h @ layer.weight.T + layer.bias
        elif isinstance(layer, ReLU):
            h = np.maximum(h, 0.0)
        elif isinstance(layer, Activation):
            h = layer.forward(h)
        elif isinstance(layer, Residual):
            h = _apply(layer.shortcut, h) + _apply(layer.body, h)
    return h


@dataclass(frozen=True, eq=False)
class Chain:
    """Canonical form: affine maps with a ReLU between each two (and after the last if ``final_relu``).

    ``weights[i]`` has shape (outputs, inputs), first layer first. Normalisation is folded into the
    affine map after it and consecutive affine maps are multiplied, in float64; ``errors[i]`` and ``bias_errors[i]``
    bound, entry by entry, how far that is from the exact product; None where nothing was rounded.
    """

    weights: tuple[F64, ...]
    biases: tuple[F64, ...]
    final_relu: bool
    errors: tuple[F64 | None, ...] = ()
    bias_errors: tuple[F64 | None, ...] = ()

    def __post_init__(self) -> None:
        for name in ("errors", "bias_errors"):
            if not getattr(self, name):
                object.__setattr__(self, name, (None,) * len(self.weights))

    @property
    def encoder(self) -> tuple[F64, ...]:
        """All weights but the last."""
        return self.weights[:-1]

    @property
    def head(self) -> F64:
        """The last weight matrix."""
        return self.weights[-1]


@dataclass(frozen=True, eq=False)
class Network:
    """An immutable float64 network.

    Parameters
    ----------
    layers : Affine, ReLU, Activation, Residual, Flatten, Normalise, in order of application. An Activation that is
        the ReLU becomes one.
    input_shape : shape of one input, needed only when normalisation is per channel.

    Raises
    ------
    InputError : no affine layer, widths that do not chain, a shape that does not fit.
    UnsupportedLayerError : another layer, or a Flatten or Normalise inside a Residual.

    >>> net = Network.from_weights([[[1.0, -1.0]], [[2.0]]])
    >>> net.forward([[3.0, 1.0]])
    array([[4.]])
    """

    layers: tuple[Layer, ...]
    input_shape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", _plain(self.layers))
        if self.input_shape is not None:
            given = cast("tuple[object, ...]", tuple(self.input_shape))
            if not all(isinstance(s, int) and s > 0 for s in given):
                raise InputError(
                    "input_shape", got=repr(self.input_shape), needed="a tuple of integers >= 1", fix="see x.shape[1:]"
                )
            object.__setattr__(self, "input_shape", tuple(self.input_shape))
        # what comes before the first Affine keeps the width, so its inputs are the network's
        first = next((affine for _, affine in affine_layers(self.layers)), None)
        _width_after(self.layers, 0 if first is None else first.weight.shape[1], "layers")
        if first is None:
            raise InputError("layers", got="no Affine layer", needed="at least one", fix="add the network's weights")
        if self.input_shape is not None and math.prod(self.input_shape) != self.n_inputs:
            raise InputError(
                "input_shape",
                got=f"{self.input_shape} ({math.prod(self.input_shape)} numbers)",
                needed=f"a shape of {self.n_inputs} numbers",
                fix="leave out the batch axis",
            )
        # a bad normalisation is refused here
        _ = self.chain if self.is_relu_chain else self.statistics

    @classmethod
    def from_weights(cls, weights: Sequence[object], biases: Sequence[object | None] | None = None) -> Network:
        """ReLU network with a ReLU between each two matrices, none after the last; bias-free by default."""
        if is_torch(weights, "Tensor") or isinstance(weights, np.ndarray) or not hasattr(weights, "__len__"):
            raise InputError(
                "weights",
                got=f"a {type(weights).__name__}",
                needed="a list of weight matrices, first layer first",
                fix="wrap a single matrix in a list",
            )
        matrices = [as_matrix(w, f"weights[{i}]") for i, w in enumerate(weights)]
        if biases is None:
            # an nn.Linear in the list brings its own bias: ignoring it would be another network
            biases = [cast("Any", w).bias if is_torch(w, "Linear") else None for w in weights]
        if len(biases) != len(matrices):
            raise InputError(
                "biases", got=f"{len(biases)}", needed=f"{len(matrices)}, one per weight", fix="use None for none"
            )
        layers: list[Layer] = []
        for i, (w, b) in enumerate(zip(matrices, biases, strict=True)):
            if i:
                layers.append(ReLU())
            layers.append(Affine(w, None if b is None else as_float64(b, f"biases[{i}]")))
        return cls(tuple(layers))

    @property
    def n_inputs(self) -> int:
        """Number of inputs of one sample."""
        return next(affine.weight.shape[1] for _, affine in affine_layers(self.layers))

    @property
    def n_outputs(self) -> int:
        """Number of outputs of one sample."""
        return _width_after(self.layers, self.n_inputs, "layers")

    @property
    def is_relu_chain(self) -> bool:
        """Affine maps, ReLU, flattening and normalisation only: :attr:`chain` exists.

        >>> [Network((Affine([[1.0]]), x)).is_relu_chain for x in (ReLU(), Activation("tanh"))]
        [True, False]
        """
        return all(isinstance(x, (Affine, ReLU, Flatten, Normalise)) for x in self.layers)

    @cached_property
    def digest(self) -> str:
        """Digest of layers and weights: what a claim on this network names as its subject."""
        return digest(*_digest_parts(self.layers))

    @cached_property
    def chain(self) -> Chain:
        """The canonical chain of affine maps with ReLUs between.

        Raises UnsupportedLayerError, naming the layer, if the network has other activations or residual blocks.
        """
        for i, layer in enumerate(self.layers):
            if isinstance(layer, (Activation, Residual)):
                name = f"Activation {layer.name!r}" if isinstance(layer, Activation) else "Residual"
                raise UnsupportedLayerError(
                    "model",
                    got=f"a network with layers[{i}] ({name})",
                    needed="a chain of affine layers and ReLU, all that this method knows",
                    fix="use a method whose documentation names such layers",
                )
        maps: list[_Folding] = []
        n = self.n_inputs
        start = _Folding(None, np.zeros(n))
        now, final_relu = start, False
        shape: tuple[int, ...] | None = self.input_shape
        for layer in self.layers:
            if isinstance(layer, Affine):
                now = now.then_affine(layer)
                n, shape, final_relu = layer.weight.shape[0], None, False
            elif isinstance(layer, Normalise):
                now, final_relu = now.then_normalise(*layer.per_input(shape, n)), False
            elif isinstance(layer, Flatten):
                shape = None
            else:  # a ReLU
                if final_relu:
                    continue  # ReLU after ReLU is the identity
                maps.append(now)
                now, final_relu = _Folding(None, np.zeros(n)), True
        if now.weight is not None:
            maps.append(now)
        weights = [np.eye(len(f.bias)) if f.weight is None else f.weight for f in maps]
        return Chain(
            _folded(weights, "weights"),
            _folded([f.bias for f in maps], "biases"),
            final_relu,
            tuple(f.error for f in maps),
            tuple(f.bias_error for f in maps),
        )

    @cached_property
    def open_ended(self) -> Network:
        """The same function ending in an affine map: an identity layer follows a final ReLU, activation or block.

        The head of what comes out selects outputs; a difference of outputs is a row of it, which is false for the
        weights before a final ReLU. Claims about it keep this network's digest as their subject.
        """
        last = next(x for x in reversed(self.layers) if not isinstance(x, Flatten))
        if not self.chain.final_relu if self.is_relu_chain else isinstance(last, Affine):
            return self
        opened = Network((*self.layers, Affine(np.eye(self.n_outputs))), self.input_shape)
        opened.__dict__["digest"] = self.digest
        return opened

    @cached_property
    def statistics(self) -> dict[int, tuple[F64, F64]]:
        """Mean and std of each Normalise, by the index of the layer, one number per value that it gets."""
        found: dict[int, tuple[F64, F64]] = {}
        shape, n = self.input_shape, self.n_inputs
        for i, layer in enumerate(self.layers):
            if isinstance(layer, Normalise):
                found[i] = layer.per_input(shape, n)
            elif isinstance(layer, Flatten) or any(affine_layers((layer,))):
                shape = None
            n = _width_after((layer,), n, "layers")
        return found

    def forward(self, x: object) -> F64:
        """Outputs in float64, shape (samples, outputs); input of any shape (samples, …)."""
        h = self.flat_inputs(x)
        if not self.is_relu_chain:
            for i, layer in enumerate(self.layers):
                if i in self.statistics:
                    mean, std = self.statistics[i]
                    h = (h - mean) / std
                else:
                    h = _apply((layer,), h)
            return h
        chain = self.chain
        last = len(chain.weights) - 1
        for i, (w, b) in enumerate(zip(chain.weights, chain.biases, strict=True)):
            h = h @ w.T + b
            if i < last or chain.final_relu:
                h = np.maximum(h, 0.0)
        return h

    def flat_inputs(self, x: object, name: str = "x") -> F64:
        """Check a batch of inputs and flatten it to (samples, inputs)."""
        array = as_float64(x, name)
        if array.ndim < 2 or array.shape[0] == 0 or math.prod(array.shape[1:]) != self.n_inputs:
            raise InputError(
                name,
                got=f"shape {array.shape}",
                needed=f"(samples, …) with {self.n_inputs} numbers per sample and at least one sample",
                fix="add a batch axis with x[None]" if array.size == self.n_inputs else "check the model's input size",
            )
        return array.reshape(array.shape[0], -1)


@dataclass(frozen=True, eq=False)
class Ball:
    """The inputs within ``radius`` of ``center`` in the given norm.

    >>> Ball([0.0, 0.0], 0.1, "inf").norm
    inf
    """

    center: F64
    radius: float
    norm: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "center", frozen(as_float64(self.center, "center")))
        object.__setattr__(self, "radius", parse_delta(self.radius, "radius"))
        object.__setattr__(self, "norm", parse_norm(self.norm))

    def __str__(self) -> str:
        return f"ball of radius {self.radius!r}, norm {norm_name(self.norm)}, center {digest(self.center)}"


def as_network(model: object, *, input_shape: tuple[int, ...] | None = None) -> Network:
    """Read an ``nn.Module``, a Network, a small :class:`~certbound.graph.Graph` (as dense layers, see
    :func:`certbound.io.graph_to_network.dense_network`), or a list of weight matrices (bias-free ReLU net).

    Raises
    ------
    UnsupportedLayerError : a layer outside the IR, named with its path in the module; a graph too large to be dense.
    InputError : anything that is no network.
    """
    if isinstance(model, Network):
        return model
    if is_torch(model, "Module"):
        from certbound.io.torch_module import from_module

        return from_module(cast("Any", model), input_shape=input_shape)
    from certbound.graph import Graph  # which reads networks

    if isinstance(model, Graph):
        from certbound.io.graph_to_network import dense_network

        return dense_network(model)
    if isinstance(model, (list, tuple)):
        return Network.from_weights(cast("Sequence[object]", model))
    raise InputError(
        "model",
        got=f"a {type(model).__name__}",
        needed="an nn.Module, a certbound Network, or a list of weight matrices",
        fix="wrap a single matrix in a list",
    )
