"""The operations of a :class:`~certbound.graph.Graph`: one frozen dataclass each, with its shape rule and its formula.

Values are float64 arrays of one sample with a leading axis of length 1, as a torch model sees a batch of one: an image
is (1, C, H, W), a sequence of tokens (1, N, D). Reshaping may move that axis (attention folds heads or windows into
it), so nothing below treats it specially. Weights are those of the model, as stored; nothing is folded here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, cast

import numpy as np
import numpy.typing as npt

from certbound.activations import Activation
from certbound.arrays import F64, as_float64, as_matrix, frozen
from certbound.errors import InputError

Shape = tuple[int, ...]
Pads = tuple[tuple[int, int], ...]

PADDING_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
"""torch's name of a padding mode → numpy's."""


class Op:
    """One operation. ``arity``: how many values it takes (None: one or more)."""

    arity: ClassVar[int | None] = 1

    @property
    def kind(self) -> str:
        """The name that tables and errors show."""
        return type(self).__name__

    def output_shape(self, *shapes: Shape) -> Shape:
        """Shape of the value; InputError where the shapes do not fit."""
        raise NotImplementedError

    def apply(self, *values: F64) -> F64:
        """The value, in float64."""
        raise NotImplementedError

    def parts(self) -> tuple[npt.NDArray[Any], ...]:
        """Tag, plain fields and arrays: from them a digest is taken, and no two operations have the same."""
        plain, arrays = [type(self).__name__], list[npt.NDArray[Any]]()
        for field in fields(cast("Any", self)):
            value = getattr(self, field.name)
            if isinstance(value, np.ndarray):
                plain.append(f"{field.name}: array")
                arrays.append(value)
            else:
                plain.append(f"{field.name}={value!r}")
        return (np.frombuffer("; ".join(plain).encode(), dtype=np.uint8), *arrays)


def _misfit(op: Op, got: str, needed: str) -> InputError:
    return InputError(op.kind, got=got, needed=needed, fix="check which value the layer is applied to")


def _vector(value: object, name: str, length: int | None = None) -> F64:
    array = as_float64(value, name)
    if array.ndim != 1 or (length is not None and array.shape != (length,)):
        raise InputError(
            name,
            got=f"shape {array.shape}",
            needed="a vector" if length is None else f"({length},), one number per output",
            fix="check which layer it belongs to",
        )
    return frozen(array)


def _whole(values: object, name: str, *, count: int | None = None, least: int = 0) -> tuple[int, ...]:
    """A tuple of integers >= ``least``."""
    given = tuple(cast("Sequence[Any]", values)) if isinstance(values, (tuple, list)) else ()
    good = all(isinstance(v, (int, np.integer)) and not isinstance(v, bool) and v >= least for v in given)
    if not given or not good or (count is not None and len(given) != count):
        raise InputError(
            name,
            got=repr(values),
            needed=f"a tuple of {'' if count is None else f'{count} '}integers >= {least}",
            fix="give one number per spatial axis",
        )
    return tuple(int(v) for v in given)


# ---------------------------------------------------------------- sources


@dataclass(frozen=True, eq=False)
class Input(Op):
    """The sample; ``shape`` with the leading axis 1."""

    arity: ClassVar[int | None] = 0
    shape: Shape

    def output_shape(self, *shapes: Shape) -> Shape:
        """``shape``."""
        return self.shape

    def apply(self, *values: F64) -> F64:
        """The graph puts the sample here itself."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Constant(Op):
    """A value that does not depend on the input (a class token, position embeddings)."""

    arity: ClassVar[int | None] = 0
    value: F64

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", frozen(as_float64(self.value, "value")))

    def output_shape(self, *shapes: Shape) -> Shape:
        """Shape of the constant."""
        return tuple(self.value.shape)

    def apply(self, *values: F64) -> F64:
        """The constant."""
        return self.value


# ---------------------------------------------------------------- affine maps


@dataclass(frozen=True, eq=False)
class Linear(Op):
    """``x ↦ W x + b`` along the last axis; ``weight`` has shape (outputs, inputs).

    >>> Linear([[1.0, 2.0]], [3.0]).apply(np.array([[[1.0, 1.0]]]))
    array([[[6.]]])
    """

    weight: F64
    bias: F64 | None = None

    def __post_init__(self) -> None:
        weight = frozen(as_matrix(self.weight, "weight"))
        object.__setattr__(self, "weight", weight)
        if self.bias is not None:
            object.__setattr__(self, "bias", _vector(self.bias, "bias", len(weight)))

    def output_shape(self, *shapes: Shape) -> Shape:
        """The last axis becomes the number of outputs."""
        (shape,) = shapes
        if not shape or shape[-1] != self.weight.shape[1]:
            raise _misfit(self, f"a value of shape {shape}", f"a last axis of {self.weight.shape[1]}")
        return (*shape[:-1], self.weight.shape[0])

    def apply(self, *values: F64) -> F64:
        """``x Wᵀ + b``."""
        y: F64 = values[0] @ self.weight.T
        return y if self.bias is None else y + self.bias


@dataclass(frozen=True, eq=False)
class Conv(Op):
    """Cross-correlation, as ``nn.Conv1d`` / ``2d`` / ``3d``: ``weight`` has shape (out, in/groups, *kernel).

    ``padding``: (low, high) of every spatial axis; ``padding_mode``: zeros, reflect, replicate or circular.

    >>> conv = Conv([[[1.0, 1.0]]], padding=((1, 0),))  # 1d: x[i − 1] + x[i]
    >>> conv.apply(np.array([[[1.0, 2.0, 3.0]]]))
    array([[[1., 3., 5.]]])
    """

    weight: F64
    bias: F64 | None = None
    stride: tuple[int, ...] = ()
    padding: Pads = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    padding_mode: str = "zeros"

    def __post_init__(self) -> None:
        weight = frozen(as_float64(self.weight, "weight"))
        axes = weight.ndim - 2
        if axes not in (1, 2, 3) or weight.size == 0:
            raise InputError(
                "weight",
                got=f"shape {weight.shape}",
                needed="(out, in/groups, *kernel) with one to three spatial axes",
                fix="pass the layer's weight as torch stores it",
            )
        object.__setattr__(self, "weight", weight)
        if self.bias is not None:
            object.__setattr__(self, "bias", _vector(self.bias, "bias", len(weight)))
        for name in ("stride", "dilation"):
            given = getattr(self, name) or (1,) * axes
            object.__setattr__(self, name, _whole(given, name, count=axes, least=1))
        pads = self.padding or ((0, 0),) * axes
        if len(pads) != axes:
            raise InputError("padding", got=repr(pads), needed=f"{axes} pairs (low, high)", fix="one pair per axis")
        object.__setattr__(self, "padding", tuple(_pair(p, "padding") for p in pads))
        (groups,) = _whole((self.groups,), "groups", least=1)
        if len(weight) % groups:
            raise InputError(
                "groups", got=f"{groups} for {len(weight)} outputs", needed="a divisor of the number of outputs",
                fix="check the layer",
            )  # fmt: skip
        if self.padding_mode not in PADDING_MODES:
            raise InputError(
                "padding_mode", got=repr(self.padding_mode), needed=f"one of {list(PADDING_MODES)}", fix="see nn.Conv2d"
            )

    @property
    def kernel(self) -> tuple[int, ...]:
        """Lengths of the kernel's spatial axes."""
        return tuple(self.weight.shape[2:])

    @property
    def in_channels(self) -> int:
        """Channels of the input."""
        return int(self.weight.shape[1]) * self.groups

    @property
    def matrix(self) -> F64:
        """The kernel as a matrix (out, in/groups · kernel): the statistic of the paper, no operator."""
        return self.weight.reshape(len(self.weight), -1)

    def output_shape(self, *shapes: Shape) -> Shape:
        """(1, out, *spatial)."""
        (shape,) = shapes
        if len(shape) != 2 + len(self.kernel) or shape[1] != self.in_channels:
            needed = f"(1, {self.in_channels}, …) with {len(self.kernel)} spatial axes"
            raise _misfit(self, f"a value of shape {shape}", needed)
        if any(
            (self.padding_mode == "reflect" and max(p) >= n) or (self.padding_mode == "circular" and max(p) > n)
            for n, p in zip(shape[2:], self.padding, strict=True)
        ):
            raise _misfit(self, f"an image of {shape[2:]}", f"one larger than its {self.padding_mode} padding")
        spans = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel, strict=True)]
        return (shape[0], len(self.weight), *_windows(self, shape[2:], spans, self.stride, self.padding))

    def apply(self, *values: F64) -> F64:
        """By one product of matrices per group."""
        x = values[0]
        spatial = self.output_shape(tuple(x.shape))[2:]
        mode: Any = PADDING_MODES[self.padding_mode]
        x = np.pad(x, ((0, 0), (0, 0), *self.padding), mode=mode)
        windows = _view(x, self.kernel, self.stride, self.dilation, spatial)
        axes = len(self.kernel)
        groups, width = self.groups, int(self.weight.shape[1])
        # (batch, groups, out/groups, taps) @ (batch, groups, taps, positions)
        order = (0, 1, *range(2 + axes, 2 + 2 * axes), *range(2, 2 + axes))
        columns = windows.transpose(order).reshape(len(x), groups, width * math.prod(self.kernel), math.prod(spatial))
        kernels = self.weight.reshape(groups, len(self.weight) // groups, -1)
        y: F64 = (kernels @ columns).reshape(len(x), len(self.weight), *spatial)
        return y if self.bias is None else y + self.bias.reshape(-1, *(1,) * axes)


def _pair(value: object, name: str) -> tuple[int, int]:
    low, high = _whole(value, name, count=2)
    return low, high


def _windows(
    op: Op, sizes: Sequence[int], spans: Sequence[int], stride: Sequence[int], padding: Pads
) -> tuple[int, ...]:
    """How many windows fit on each axis."""
    found: list[int] = []
    for n, span, s, (low, high) in zip(sizes, spans, stride, padding, strict=True):
        if n + low + high < span:
            raise _misfit(op, f"an axis of {n} with padding {(low, high)}", f"at least {span}, the window's length")
        found.append((n + low + high - span) // s + 1)
    return tuple(found)


def _view(x: F64, kernel: Shape, stride: Shape, dilation: Shape, spatial: Shape) -> F64:
    """Windows of a padded (B, C, *sizes) as (B, C, *spatial, *kernel), without copying."""
    a, b, *strides = x.strides
    steps = [t * s for t, s in zip(strides, stride, strict=True)]
    taps = [t * d for t, d in zip(strides, dilation, strict=True)]
    return np.lib.stride_tricks.as_strided(
        x, (*x.shape[:2], *spatial, *kernel), (a, b, *steps, *taps), writeable=False
    )


@dataclass(frozen=True, eq=False)
class BatchNorm(Op):
    """BatchNorm in eval mode: ``x ↦ (x − mean)/√(variance + eps) · weight + bias`` per channel (axis 1)."""

    mean: F64
    variance: F64
    eps: float = 1e-5
    weight: F64 | None = None
    bias: F64 | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", _vector(self.mean, "mean"))
        n = len(self.mean)
        for name in ("variance", "weight", "bias"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _vector(getattr(self, name), name, n))
        if not math.isfinite(self.eps) or not np.all(self.variance + self.eps > 0):
            raise InputError(
                "variance", got=f"{self.variance.min():g} with eps {self.eps:g}", needed="variance + eps > 0",
                fix="check the running statistics",
            )  # fmt: skip

    @property
    def scale(self) -> F64:
        """``weight/√(variance + eps)``, rounded: within a relative 4u of the exact numbers."""
        scale: F64 = 1.0 / np.sqrt(self.variance + self.eps)
        return scale if self.weight is None else self.weight / np.sqrt(self.variance + self.eps)

    def output_shape(self, *shapes: Shape) -> Shape:
        """Unchanged."""
        (shape,) = shapes
        if len(shape) < 2 or shape[1] != len(self.mean):
            raise _misfit(self, f"a value of shape {shape}", f"{len(self.mean)} channels on axis 1")
        return shape

    def apply(self, *values: F64) -> F64:
        """Channel by channel."""
        x = values[0]
        axes = (-1, *(1,) * (x.ndim - 2))
        y: F64 = (x - self.mean.reshape(axes)) * self.scale.reshape(axes)
        return y if self.bias is None else y + self.bias.reshape(axes)


@dataclass(frozen=True, eq=False)
class Scale(Op):
    """``x ↦ factor ∘ x`` (or ``x / factor`` if ``divides``); the factor broadcasts to the value, never the reverse."""

    factor: F64
    divides: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "factor", frozen(as_float64(self.factor, "factor")))
        if self.divides and not np.all(self.factor != 0):
            raise InputError("factor", got="0 as a divisor", needed="numbers that are not 0", fix="check the layer")

    def output_shape(self, *shapes: Shape) -> Shape:
        """Unchanged."""
        return _kept(self, shapes[0], self.factor)

    def apply(self, *values: F64) -> F64:
        """Elementwise."""
        return values[0] / self.factor if self.divides else values[0] * self.factor


@dataclass(frozen=True, eq=False)
class Shift(Op):
    """``x ↦ x + offset``; the offset broadcasts to the value, never the reverse."""

    offset: F64

    def __post_init__(self) -> None:
        object.__setattr__(self, "offset", frozen(as_float64(self.offset, "offset")))

    def output_shape(self, *shapes: Shape) -> Shape:
        """Unchanged."""
        return _kept(self, shapes[0], self.offset)

    def apply(self, *values: F64) -> F64:
        """Elementwise."""
        return values[0] + self.offset


def _kept(op: Op, shape: Shape, constant: F64) -> Shape:
    try:
        fits = np.broadcast_shapes(shape, constant.shape) == shape
    except ValueError:
        fits = False
    if not fits:
        raise _misfit(op, f"a value of shape {shape} and a constant of {constant.shape}", "a constant that broadcasts")
    return shape


@dataclass(frozen=True, eq=False)
class AvgPool(Op):
    """Average over windows; ``count_include_pad``: padded zeros count in the divisor."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: Pads
    count_include_pad: bool = True

    def __post_init__(self) -> None:
        _check_pool(self, _whole(self.kernel, "kernel", least=1))

    def output_shape(self, *shapes: Shape) -> Shape:
        """Channels unchanged."""
        return _pooled(self, shapes[0], self.kernel, self.stride, self.padding)

    def apply(self, *values: F64) -> F64:
        """Mean of each window."""
        x = values[0]
        spatial = self.output_shape(tuple(x.shape))[2:]
        one = (1,) * len(self.kernel)
        axes = tuple(range(-len(self.kernel), 0))
        padded = np.pad(x, ((0, 0), (0, 0), *self.padding))
        total = _view(padded, self.kernel, self.stride, one, spatial).sum(axis=axes)
        return total / self.counts(tuple(x.shape[2:]))

    def counts(self, sizes: Shape) -> F64:
        """The divisor at every output position."""
        total = float(math.prod(self.kernel))
        spatial = self.output_shape((1, 1, *sizes))[2:]
        if self.count_include_pad:
            return np.full(spatial, total)
        inside = np.pad(np.ones((1, 1, *sizes)), ((0, 0), (0, 0), *self.padding))
        windows = _view(inside, self.kernel, self.stride, (1,) * len(self.kernel), spatial)
        counts: F64 = windows.sum(axis=tuple(range(-len(self.kernel), 0)))[0, 0]
        return counts


@dataclass(frozen=True, eq=False)
class AdaptiveAvgPool(Op):
    """Average pooling to a given size, bins as torch cuts them: ``⌊i n/m⌋ … ⌈(i + 1) n/m⌉``."""

    output: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "output", _whole(self.output, "output", least=1))

    def output_shape(self, *shapes: Shape) -> Shape:
        """The spatial axes become ``output``."""
        (shape,) = shapes
        if len(shape) != 2 + len(self.output):
            raise _misfit(self, f"a value of shape {shape}", f"{len(self.output)} spatial axes")
        return (*shape[:2], *self.output)

    def matrices(self, sizes: Shape) -> tuple[F64, ...]:
        """For each spatial axis the (outputs, inputs) matrix of averages; the map is their Kronecker product."""
        found: list[F64] = []
        for n, m in zip(sizes, self.output, strict=True):
            matrix = np.zeros((m, n))
            for i in range(m):
                start, stop = i * n // m, -((-(i + 1) * n) // m)
                matrix[i, start:stop] = 1.0 / (stop - start)
            found.append(matrix)
        return tuple(found)

    def apply(self, *values: F64) -> F64:
        """One axis after the other."""
        y = values[0]
        for i, matrix in enumerate(self.matrices(tuple(y.shape[2:]))):
            y = np.moveaxis(np.moveaxis(y, 2 + i, -1) @ matrix.T, -1, 2 + i)
        return y


@dataclass(frozen=True, eq=False)
class Mean(Op):
    """Mean over some axes, which are dropped or kept with length 1."""

    axes: tuple[int, ...]
    keepdims: bool = False

    def output_shape(self, *shapes: Shape) -> Shape:
        """Without the axes, or with 1 in their place."""
        (shape,) = shapes
        axes = _axes(self, self.axes, len(shape))
        if self.keepdims:
            return tuple(1 if i in axes else n for i, n in enumerate(shape))
        return tuple(n for i, n in enumerate(shape) if i not in axes)

    def count(self, shape: Shape) -> int:
        """How many numbers one mean is taken of."""
        return math.prod(shape[i] for i in _axes(self, self.axes, len(shape)))

    def apply(self, *values: F64) -> F64:
        """The mean."""
        y: F64 = values[0].mean(axis=_axes(self, self.axes, values[0].ndim), keepdims=self.keepdims)
        return y


def _axes(op: Op, axes: Sequence[int], n: int) -> tuple[int, ...]:
    if not all(-n <= a < n for a in axes) or len({a % n for a in axes}) < len(axes):
        raise _misfit(op, f"axes {tuple(axes)} of a value with {n} axes", "different axes that it has")
    return tuple(a % n for a in axes)


# ---------------------------------------------------------------- elementwise and pooling


@dataclass(frozen=True, eq=False)
class Pointwise(Op):
    """An elementwise activation with bounded slopes."""

    activation: Activation

    @property
    def kind(self) -> str:
        """The activation's name."""
        return self.activation.name

    def output_shape(self, *shapes: Shape) -> Shape:
        """Unchanged."""
        return shapes[0]

    def apply(self, *values: F64) -> F64:
        """Elementwise."""
        return self.activation.forward(values[0])


@dataclass(frozen=True, eq=False)
class Clip(Op):
    """``x ↦ min(max(x, low), high)``: ReLU6, hardtanh; slopes 0 and 1."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise InputError("low", got=f"{self.low!r} above {self.high!r}", needed="low <= high", fix="swap them")

    def output_shape(self, *shapes: Shape) -> Shape:
        """Unchanged."""
        return shapes[0]

    def apply(self, *values: F64) -> F64:
        """Elementwise."""
        return np.clip(values[0], self.low, self.high)


@dataclass(frozen=True, eq=False)
class MaxPool(Op):
    """Maximum over windows; padding never wins."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: Pads
    dilation: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        kernel = _whole(self.kernel, "kernel", least=1)
        given = _whole(self.dilation or (1,) * len(kernel), "dilation", count=len(kernel), least=1)
        object.__setattr__(self, "dilation", given)
        _check_pool(self, self.spans(kernel))

    def spans(self, kernel: Shape) -> Shape:
        """Lengths of a window, with the entries that the dilation leaves out."""
        return tuple(d * (k - 1) + 1 for d, k in zip(self.dilation, kernel, strict=True))

    def output_shape(self, *shapes: Shape) -> Shape:
        """Channels unchanged; a window that lies on padding alone has no maximum and is refused."""
        out = _pooled(self, shapes[0], self.spans(self.kernel), self.stride, self.padding)
        axes = zip(shapes[0][2:], out[2:], self.kernel, self.stride, self.padding, self.dilation, strict=True)
        for n, m, k, step, (low, _), d in axes:
            starts = np.arange(m) * step - low
            first = np.maximum(0, -(starts // d))  # the first tap at or behind the beginning
            if not np.all((first < k) & (starts + first * d < n)):
                raise _misfit(self, f"an axis of {n} with padding {low}", "windows that reach the value itself")
        return out

    def apply(self, *values: F64) -> F64:
        """Largest entry of each window."""
        x = values[0]
        spatial = self.output_shape(tuple(x.shape))[2:]
        padded = np.pad(x, ((0, 0), (0, 0), *self.padding), constant_values=-math.inf)
        windows = _view(padded, self.kernel, self.stride, self.dilation, spatial)
        y: F64 = windows.max(axis=tuple(range(-len(self.kernel), 0)))
        return y


def _check_pool(op: AvgPool | MaxPool, spans: Shape) -> None:
    kernel = _whole(op.kernel, "kernel", least=1)
    object.__setattr__(op, "kernel", kernel)
    object.__setattr__(op, "stride", _whole(op.stride or kernel, "stride", count=len(kernel), least=1))
    pads = tuple(_pair(p, "padding") for p in (op.padding or ((0, 0),) * len(kernel)))
    if len(pads) != len(kernel) or any(max(p) >= k for p, k in zip(pads, spans, strict=True)):
        raise InputError(
            "padding", got=repr(pads), needed="one pair per axis, each smaller than the window",
            fix="a window of padding alone has no maximum and no mean",
        )  # fmt: skip
    object.__setattr__(op, "padding", pads)


def _pooled(op: Op, shape: Shape, spans: Shape, stride: Shape, padding: Pads) -> Shape:
    if len(shape) != 2 + len(spans):
        raise _misfit(op, f"a value of shape {shape}", f"(1, channels, …) with {len(spans)} spatial axes")
    return (*shape[:2], *_windows(op, shape[2:], spans, stride, padding))


# ---------------------------------------------------------------- moving numbers


@dataclass(frozen=True, eq=False)
class Reshape(Op):
    """The same numbers in row-major order, in another shape (no −1)."""

    shape: Shape

    def output_shape(self, *shapes: Shape) -> Shape:
        """``shape``."""
        if math.prod(self.shape) != math.prod(shapes[0]):
            raise _misfit(self, f"{shapes[0]} to {self.shape}", "equally many numbers")
        return self.shape

    def apply(self, *values: F64) -> F64:
        """The same numbers."""
        return values[0].reshape(self.shape)


@dataclass(frozen=True, eq=False)
class Permute(Op):
    """Axes in another order."""

    axes: tuple[int, ...]

    def output_shape(self, *shapes: Shape) -> Shape:
        """Permuted."""
        (shape,) = shapes
        if sorted(self.axes) != list(range(len(shape))):
            raise _misfit(self, f"axes {self.axes} for shape {shape}", "a permutation of its axes")
        return tuple(shape[a] for a in self.axes)

    def apply(self, *values: F64) -> F64:
        """Transposed."""
        return values[0].transpose(self.axes)


@dataclass(frozen=True, eq=False)
class Slice(Op):
    """``x[start:stop:step]`` along one axis, ``0 <= start < stop <= length``, ``step >= 1``.

    ``drops``: a single entry, without its axis.
    """

    axis: int
    start: int
    stop: int
    step: int = 1
    drops: bool = False

    def output_shape(self, *shapes: Shape) -> Shape:
        """The axis shortened, or dropped."""
        (shape,) = shapes
        (axis,) = _axes(self, (self.axis,), len(shape))
        if not (0 <= self.start < self.stop <= shape[axis] and self.step >= 1):
            raise _misfit(self, f"[{self.start}:{self.stop}:{self.step}] of an axis of {shape[axis]}", "a part of it")
        n = len(range(self.start, self.stop, self.step))
        if self.drops and n != 1:
            raise _misfit(self, f"{n} entries", "one entry where the axis is dropped")
        rest = (*shape[:axis], *shape[axis + 1 :])
        return rest if self.drops else (*shape[:axis], n, *shape[axis + 1 :])

    def apply(self, *values: F64) -> F64:
        """The part."""
        axis = self.axis % values[0].ndim
        part: F64 = values[0][(*(slice(None),) * axis, slice(self.start, self.stop, self.step))]
        return part.squeeze(axis) if self.drops else part


@dataclass(frozen=True, eq=False)
class Gather(Op):
    """Entries ``indices`` of one axis, in that order, some perhaps several times."""

    axis: int
    indices: tuple[int, ...]

    def output_shape(self, *shapes: Shape) -> Shape:
        """The axis gets the number of indices."""
        (shape,) = shapes
        (axis,) = _axes(self, (self.axis,), len(shape))
        if not all(0 <= i < shape[axis] for i in self.indices):
            raise _misfit(self, f"indices of an axis of {shape[axis]}", "indices within it")
        return (*shape[:axis], len(self.indices), *shape[axis + 1 :])

    def apply(self, *values: F64) -> F64:
        """The entries."""
        y: F64 = np.take(values[0], np.array(self.indices, dtype=np.int64), axis=self.axis)
        return y


@dataclass(frozen=True, eq=False)
class Pad(Op):
    """A constant around the value: (low, high) of every axis."""

    pads: Pads
    value: float = 0.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise InputError("value", got=repr(self.value), needed="a finite number", fix="see MaxPool's own padding")

    def output_shape(self, *shapes: Shape) -> Shape:
        """Larger by the pads."""
        (shape,) = shapes
        if len(self.pads) != len(shape) or not all(min(p) >= 0 for p in self.pads):
            raise _misfit(self, f"pads {self.pads} for shape {shape}", "a pair of numbers >= 0 per axis")
        return tuple(n + low + high for n, (low, high) in zip(shape, self.pads, strict=True))

    def apply(self, *values: F64) -> F64:
        """Padded."""
        return np.pad(values[0], self.pads, constant_values=self.value)


@dataclass(frozen=True, eq=False)
class Roll(Op):
    """Cyclic shifts."""

    shifts: tuple[int, ...]
    axes: tuple[int, ...]

    def output_shape(self, *shapes: Shape) -> Shape:
        """Unchanged."""
        if len(_axes(self, self.axes, len(shapes[0]))) != len(self.shifts):
            raise _misfit(self, f"shifts {self.shifts} of axes {self.axes}", "one shift per axis")
        return shapes[0]

    def apply(self, *values: F64) -> F64:
        """Rolled."""
        return np.roll(values[0], self.shifts, self.axes)


@dataclass(frozen=True, eq=False)
class Expand(Op):
    """Broadcast to a larger shape: numbers are repeated."""

    shape: Shape

    def output_shape(self, *shapes: Shape) -> Shape:
        """``shape``."""
        try:
            fits = np.broadcast_shapes(shapes[0], self.shape) == self.shape
        except ValueError:
            fits = False
        if not fits:
            raise _misfit(self, f"{shapes[0]} to {self.shape}", "a shape that it broadcasts to")
        return self.shape

    def apply(self, *values: F64) -> F64:
        """Repeated."""
        return np.broadcast_to(values[0], self.shape)


@dataclass(frozen=True, eq=False)
class Concat(Op):
    """Values one after the other along an axis."""

    arity: ClassVar[int | None] = None
    axis: int

    def output_shape(self, *shapes: Shape) -> Shape:
        """The axis gets the sum of lengths."""
        (axis,) = _axes(self, (self.axis,), len(shapes[0]))
        rest = {(*s[:axis], *s[axis + 1 :]) for s in shapes}
        if len(rest) != 1 or len({len(s) for s in shapes}) != 1:
            raise _misfit(self, f"shapes {shapes}", f"equal shapes but for axis {axis}")
        return (*shapes[0][:axis], sum(s[axis] for s in shapes), *shapes[0][axis + 1 :])

    def apply(self, *values: F64) -> F64:
        """Joined."""
        return np.concatenate(values, axis=self.axis)


# ---------------------------------------------------------------- several values


@dataclass(frozen=True, eq=False)
class Add(Op):
    """``a + b``, or ``a − b`` if ``subtracts``; equal shapes, nothing is broadcast."""

    arity: ClassVar[int | None] = 2
    subtracts: bool = False

    def output_shape(self, *shapes: Shape) -> Shape:
        """That of both."""
        return _equal(self, *shapes)

    def apply(self, *values: F64) -> F64:
        """The sum or difference."""
        return values[0] - values[1] if self.subtracts else values[0] + values[1]


@dataclass(frozen=True, eq=False)
class Multiply(Op):
    """``a ∘ b`` elementwise: not globally Lipschitz."""

    arity: ClassVar[int | None] = 2

    def output_shape(self, *shapes: Shape) -> Shape:
        """That of both."""
        return _equal(self, *shapes)

    def apply(self, *values: F64) -> F64:
        """The product."""
        return values[0] * values[1]


def _equal(op: Op, *shapes: Shape) -> Shape:
    if shapes[0] != shapes[1]:
        raise _misfit(op, f"shapes {shapes[0]} and {shapes[1]}", "equal shapes (Expand broadcasts)")
    return shapes[0]


@dataclass(frozen=True, eq=False)
class MatMul(Op):
    """``a @ b`` over the last two axes, the others equal: bilinear, so not globally Lipschitz."""

    arity: ClassVar[int | None] = 2

    def output_shape(self, *shapes: Shape) -> Shape:
        """(…, rows of a, columns of b)."""
        a, b = shapes
        if min(len(a), len(b)) < 2 or a[:-2] != b[:-2] or a[-1] != b[-2]:
            raise _misfit(self, f"shapes {a} and {b}", "(…, n, k) and (…, k, m) with equal leading axes")
        return (*a[:-1], b[-1])

    def apply(self, *values: F64) -> F64:
        """Products of matrices."""
        y: F64 = values[0] @ values[1]
        return y


@dataclass(frozen=True, eq=False)
class Softmax(Op):
    """Softmax along one axis; ``x`` may hold −∞ from a mask, not a whole row of them."""

    axis: int = -1

    def output_shape(self, *shapes: Shape) -> Shape:
        """Unchanged."""
        _axes(self, (self.axis,), len(shapes[0]))
        return shapes[0]

    def apply(self, *values: F64) -> F64:
        """Shifted by the maximum before exp."""
        x = values[0]
        e = np.exp(x - x.max(axis=self.axis, keepdims=True))
        y: F64 = e / e.sum(axis=self.axis, keepdims=True)
        return y


@dataclass(frozen=True, eq=False)
class LayerNorm(Op):
    """``(x − mean)/√(variance + eps) ∘ weight + bias`` over the last ``axes`` axes together."""

    axes: int
    eps: float = 1e-5
    weight: F64 | None = None
    bias: F64 | None = None

    def __post_init__(self) -> None:
        for name in ("weight", "bias"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, frozen(as_float64(getattr(self, name), name)))
        if not (math.isfinite(self.eps) and self.eps > 0):
            raise InputError(
                "eps", got=repr(self.eps), needed="a number > 0", fix="without it the map is not Lipschitz"
            )

    def output_shape(self, *shapes: Shape) -> Shape:
        """Unchanged."""
        (shape,) = shapes
        if not 1 <= self.axes <= len(shape):
            raise _misfit(self, f"a value of shape {shape}", f"at least {self.axes} axes")
        for array in (self.weight, self.bias):
            if array is not None and tuple(array.shape) != shape[-self.axes :]:
                raise _misfit(self, f"weights of shape {array.shape} for {shape}", f"{shape[-self.axes :]}")
        return shape

    def apply(self, *values: F64) -> F64:
        """Normalised."""
        x = values[0]
        axes = tuple(range(-self.axes, 0))
        centred = x - x.mean(axis=axes, keepdims=True)
        y: F64 = centred / np.sqrt((centred * centred).mean(axis=axes, keepdims=True) + self.eps)
        y = y if self.weight is None else y * self.weight
        return y if self.bias is None else y + self.bias


__all__ = [
    "AdaptiveAvgPool", "Add", "AvgPool", "BatchNorm", "Clip", "Concat", "Constant", "Conv", "Expand", "Gather",
    "Input", "LayerNorm", "Linear", "MatMul", "MaxPool", "Mean", "Multiply", "Op", "Pad", "Permute", "Pointwise",
    "Reshape", "Roll", "Scale", "Shape", "Shift", "Slice", "Softmax",
]  # fmt: skip
