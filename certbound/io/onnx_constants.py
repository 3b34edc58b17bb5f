"""Operators of ONNX on constants: shapes, indices, masks and weights, computed while the file is read.

Integers are computed as int64, floats as float64: what a runtime rounds to float32 is not rounded here, but for Cast,
which rounds as it says. Sizes are checked before anything is allocated.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from certbound.io.onnx_tensors import Array
from certbound.io.onnx_values import OnnxNode, kept
from certbound.io.onnx_wire import import_onnx

_CAST: Final = {
    "FLOAT": "float32", "DOUBLE": "float64", "FLOAT16": "float16", "BFLOAT16": "bfloat16", "BOOL": "bool",
    "INT8": "int8", "INT16": "int16", "INT32": "int32", "INT64": "int64", "UINT8": "uint8", "UINT16": "uint16",
    "UINT32": "uint32",
}  # fmt: skip


def cast_name(node: OnnxNode, number: int) -> str:
    """numpy's (or ml_dtypes') name of an element type that Cast may go to."""
    types = import_onnx().TensorProto.DataType
    name = types.Name(number) if number in types.values() else str(number)
    if name not in _CAST:
        node.refuse(f"a cast to {name}", "floats, integers or booleans")
    return _CAST[name]


def cast(node: OnnxNode, array: Array, number: int) -> Array:
    """A constant rounded to a type."""
    name = cast_name(node, number)
    if name == "bool":
        return array != 0
    if name.startswith("float"):
        with np.errstate(all="ignore"):
            return array.astype(name).astype(np.float64)
    if name == "bfloat16":
        import ml_dtypes  # a dependency of onnx

        return array.astype(ml_dtypes.bfloat16).astype(np.float64)
    info = np.iinfo(name)
    whole = np.trunc(array) if array.dtype == np.float64 else array.astype(np.int64)
    if array.size and not bool(np.all((whole >= info.min) & (whole <= info.max) & (np.abs(whole) < 2**63))):
        node.refuse(f"a cast of numbers outside {name}", "numbers that it holds")
    return whole.astype(np.int64)


def _elementwise(node: OnnxNode, arrays: list[Array], function: Callable[..., Any]) -> Array:
    shape = np.broadcast_shapes(*(a.shape for a in arrays))
    node.reader.count(math.prod(shape), node.label)
    with np.errstate(all="ignore"):
        return kept(function(*arrays))


def _divide(a: Array, b: Array) -> Any:
    if a.dtype == np.float64:
        return a / b
    quotient = np.floor_divide(np.abs(a), np.abs(b))  # ONNX rounds towards 0
    return np.where((a < 0) == (b < 0), quotient, -quotient)


def _modulo(node: OnnxNode) -> Callable[..., Any]:
    return np.fmod if node.integer("fmod", 0) else np.mod


_BINARY: Final[dict[str, Callable[..., Any]]] = {
    "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": _divide, "Pow": np.power, "And": np.logical_and,
    "Or": np.logical_or, "Xor": np.logical_xor, "Equal": np.equal, "Less": np.less, "LessOrEqual": np.less_equal,
    "Greater": np.greater, "GreaterOrEqual": np.greater_equal,
}  # fmt: skip
_UNARY: Final[dict[str, Callable[..., Any]]] = {
    "Neg": np.negative, "Abs": np.abs, "Sqrt": np.sqrt, "Exp": np.exp, "Log": np.log, "Floor": np.floor,
    "Ceil": np.ceil, "Round": np.round, "Sign": np.sign, "Not": np.logical_not, "Sin": np.sin, "Cos": np.cos,
    "Reciprocal": np.reciprocal, "IsNaN": np.isnan,
}  # fmt: skip
_FLOAT_ONLY: Final = ("Sqrt", "Exp", "Log", "Floor", "Ceil", "Round", "Sin", "Cos", "Reciprocal", "IsNaN")
_VARIADIC: Final[dict[str, Callable[..., Any]]] = {"Min": np.minimum, "Max": np.maximum, "Sum": np.add}
_REDUCTIONS: Final[dict[str, Callable[..., Any]]] = {
    "ReduceSum": np.sum, "ReduceProd": np.prod, "ReduceMax": np.max, "ReduceMin": np.min, "ReduceMean": np.mean,
}  # fmt: skip


def fold(node: OnnxNode, arrays: list[Array]) -> Array | None:
    """The operator on constants; None if it is none of those that are computed here.

    Raises
    ------
    InputError : types or values that the operator does not take, too many numbers.
    """
    op = node.op
    if op in _BINARY and len(arrays) == 2:
        a, b = arrays
        if a.dtype != b.dtype and op != "Pow":
            node.refuse(f"constants of {a.dtype} and {b.dtype}", "one type", "write it again")
        integers = np.int64 in (a.dtype, b.dtype) and a.dtype != np.float64
        if integers and op == "Div" and np.any(b == 0):
            node.refuse("a division of integers by 0", "a divisor that is not 0", "write it again")
        if integers and op == "Pow" and np.any(b < 0):
            node.refuse("a negative power of integers", "floats", "write it again")
        return _elementwise(node, arrays, _BINARY[op])
    if op == "Mod" and len(arrays) == 2:
        if arrays[0].dtype == np.int64 and np.any(arrays[1] == 0):
            node.refuse("a division of integers by 0", "a divisor that is not 0", "write it again")
        return _elementwise(node, arrays, _modulo(node))
    if op in _UNARY and len(arrays) == 1:
        if op in _FLOAT_ONLY and arrays[0].dtype != np.float64:
            node.refuse(f"a constant of {arrays[0].dtype}", "floats", "write it again")
        return _elementwise(node, arrays, _UNARY[op])
    if op in _VARIADIC and arrays:
        return _elementwise(node, arrays, lambda *a: _reduced(_VARIADIC[op], a))
    if op == "Where" and len(arrays) == 3:
        return _elementwise(node, arrays, lambda c, a, b: np.where(c.astype(bool), a, b))
    if op in _REDUCTIONS and arrays:
        return _reduce(node, arrays)
    special = _SPECIAL.get(op)
    return None if special is None else kept(special(node, arrays))


def _reduced(function: Callable[..., Any], arrays: tuple[Array, ...]) -> Any:
    total: Any = arrays[0]
    for array in arrays[1:]:
        total = function(total, array)
    return total


def _reduce(node: OnnxNode, arrays: list[Array]) -> Array:
    array = arrays[0]
    axes = node.whole_or_attribute(1, "axes", 13 if node.op == "ReduceSum" else 18)
    keep = bool(node.integer("keepdims", 1))
    nothing = bool(node.integer("noop_with_empty_axes", 0))
    if not axes and nothing:
        return array
    chosen = tuple(node.axis(a, array.ndim) for a in axes) if axes else None
    if array.size == 0:
        node.refuse("a reduction of no numbers", "numbers", "write it again")
    with np.errstate(all="ignore"):
        return kept(_REDUCTIONS[node.op](array, axis=chosen, keepdims=keep))


def _range(node: OnnxNode, arrays: list[Array]) -> Array:
    start, stop, step = (a.reshape(-1)[0] if a.size == 1 else _refuse_range(node) for a in arrays)
    if step == 0 or not all(np.isfinite(v) for v in (start, stop, step)):
        _refuse_range(node)
    n = max(0, math.ceil((float(stop) - float(start)) / float(step)))
    node.reader.count(n, node.label)
    return start + np.arange(n) * step


def _refuse_range(node: OnnxNode) -> Any:
    node.refuse("a range that does not end", "a start, a stop and a step that is not 0", "write it again")


def _constant_of_shape(node: OnnxNode, _arrays: list[Array]) -> Array:
    shape = node.whole(0, "shape")
    if any(n < 0 for n in shape):
        node.refuse(f"the shape {shape}", "lengths >= 0", "write it again")
    node.reader.count(math.prod(shape), node.label)
    value = node.attribute("value", np.ndarray, np.zeros(1))
    if value.size != 1:
        node.refuse("several values to fill with", "one", "write it again")
    return np.full(shape, value.reshape(()))


def _tile(node: OnnxNode, arrays: list[Array]) -> Array:
    repeats = node.whole(1, "repeats")
    if len(repeats) != arrays[0].ndim or any(n < 0 for n in repeats):
        node.refuse(f"repeats {repeats} for {arrays[0].shape}", "one number >= 0 per axis", "write it again")
    node.reader.count(arrays[0].size * math.prod(repeats), node.label)
    return np.tile(arrays[0], repeats)


def gather_elements_map(node: OnnxNode, shape: tuple[int, ...], indices: Array) -> Any:
    """Flat positions that GatherElements takes."""
    axis = node.axis(node.integer("axis", 0), len(shape))
    n = shape[axis]
    if indices.ndim != len(shape) or not bool(np.all((indices >= -n) & (indices < n))):
        node.refuse(f"indices of shape {indices.shape} for {shape}", "indices within the value", "write it again")
    if any(i != s for k, (i, s) in enumerate(zip(indices.shape, shape, strict=True)) if k != axis):
        node.refuse(f"indices of shape {indices.shape} for {shape}", f"equal lengths but for axis {axis}")
    places: list[Array] = list(np.indices(indices.shape, sparse=True))
    places[axis] = np.where(indices < 0, indices + n, indices)
    return np.ravel_multi_index(tuple(np.broadcast_arrays(*places)), shape)


def gather_nd_map(node: OnnxNode, shape: tuple[int, ...], indices: Array) -> Any:
    """Flat positions that GatherND takes."""
    if node.integer("batch_dims", 0) or not indices.ndim or not 1 <= indices.shape[-1] <= len(shape):
        node.refuse(f"indices of shape {indices.shape} for {shape}", "indices of its axes, no batch_dims")
    last = indices.shape[-1]
    rest = shape[last:]
    node.reader.count(math.prod(indices.shape[:-1]) * math.prod(rest), node.label)
    first = _places(node, shape[:last], indices)
    return first[(..., *(None,) * len(rest))] * math.prod(rest) + np.arange(math.prod(rest)).reshape(rest)


def _places(node: OnnxNode, shape: tuple[int, ...], indices: Array) -> Any:
    sizes = np.array(shape, dtype=np.int64)
    if indices.dtype != np.int64 or not bool(np.all((indices >= -sizes) & (indices < sizes))):
        node.refuse(f"indices outside {shape}", "indices within the value", "write it again")
    positive = np.where(indices < 0, indices + sizes, indices)
    return np.ravel_multi_index(tuple(np.moveaxis(positive, -1, 0)), shape)


def _gather_elements(node: OnnxNode, arrays: list[Array]) -> Array:
    return arrays[0].reshape(-1)[gather_elements_map(node, arrays[0].shape, arrays[1])]


def _gather_nd(node: OnnxNode, arrays: list[Array]) -> Array:
    return arrays[0].reshape(-1)[gather_nd_map(node, arrays[0].shape, arrays[1])]


def _scatter_nd(node: OnnxNode, arrays: list[Array]) -> Array:
    data, indices, updates = arrays
    if node.text("reduction", "none") != "none":
        node.refuse("a reduction", "none")
    if data.dtype != updates.dtype:
        node.refuse(f"constants of {data.dtype} and {updates.dtype}", "one type", "write it again")
    where = gather_nd_map(node, data.shape, indices)
    if updates.shape != where.shape:
        node.refuse(f"updates of shape {updates.shape}", f"{where.shape}", "write it again")
    node.reader.count(data.size, node.label)
    out: Array = data.reshape(-1).copy()
    np.put(out, where, updates)
    return out.reshape(data.shape)


def _trilu(node: OnnxNode, arrays: list[Array]) -> Array:
    offset = node.whole(1, "k")[0] if node.given(1) else 0
    size = 2 * max((*arrays[0].shape, 1))
    offset = max(-size, min(size, offset))
    return np.triu(arrays[0], offset) if node.integer("upper", 1) else np.tril(arrays[0], offset)


def _cumsum(node: OnnxNode, arrays: list[Array]) -> Array:
    if node.integer("exclusive", 0) or node.integer("reverse", 0) or arrays[1].size != 1:
        node.refuse("exclusive or reverse sums", "plain ones")
    return np.cumsum(arrays[0], axis=node.axis(int(arrays[1].reshape(-1)[0]), arrays[0].ndim))


_SPECIAL: Final[dict[str, Callable[[OnnxNode, list[Array]], Any]]] = {
    "Range": _range, "ConstantOfShape": _constant_of_shape, "Tile": _tile, "GatherElements": _gather_elements,
    "GatherND": _gather_nd, "ScatterND": _scatter_nd, "Trilu": _trilu, "CumSum": _cumsum,
}  # fmt: skip


__all__ = ["cast", "cast_name", "fold", "gather_elements_map", "gather_nd_map"]
