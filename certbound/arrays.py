"""Read arrays from whoever brings them (numpy, torch, nn.Linear, lists) as exact float64."""

from __future__ import annotations

import hashlib
import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from certbound.errors import InputError

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]


def is_torch(value: object, kind: str) -> bool:
    """True if ``value`` is a torch ``Tensor`` / ``nn.Linear`` / ``nn.Module``, without importing torch."""
    torch = sys.modules.get("torch")
    if torch is None:
        return False
    cls = {"Tensor": "Tensor", "Linear": "nn.Linear", "Module": "nn.Module"}[kind]
    found: Any = torch
    for part in cls.split("."):
        found = getattr(found, part)
    return isinstance(value, found)


def _from_tensor(value: Any, name: str) -> Any:
    torch = sys.modules["torch"]
    if value.is_complex():
        raise _dtype_error(name, str(value.dtype))
    if value.device.type == "meta":
        raise InputError(name, got="a meta tensor (no data)", needed="real data", fix="materialise the weights first")
    if value.layout is not torch.strided:
        value = value.to_dense()
    if value.is_quantized:
        from certbound.io.quantised import from_torch

        return from_torch(value, name)  # torch's own dequantize() rounds to float32
    # bfloat16 has no numpy dtype; every torch float but float64 fits into float64 exactly.
    value = value.detach().resolve_neg()
    if value.is_floating_point() and flushes_subnormals():
        bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}.get(value.element_size())
        if bits is not None:
            exponent = {torch.float16: 10, torch.bfloat16: 7, torch.float32: 23, torch.float64: 52}.get(value.dtype, 0)
            _refuse_subnormals(value.cpu().contiguous().view(bits).numpy(), exponent, name)
    return value.to(device="cpu", dtype=torch.float64 if value.is_floating_point() else value.dtype).numpy()


_PROBE = [2.0**-1022]  # in a list: the compiler must not compute with it


def flushes_subnormals() -> bool:
    """True on a thread that takes subnormal numbers for 0 (``torch.set_flush_denormal(True)``, ``-ffast-math``).

    >>> flushes_subnormals()
    False
    """
    return not _PROBE[0] * 0.5 > 0.0


def _refuse_subnormals(bits: npt.NDArray[Any], mantissa: int, name: str) -> None:
    """Refuse numbers that this thread would silently read as 0, from their bit patterns."""
    if mantissa == 0:
        return
    width = 8 * bits.dtype.itemsize
    exponents = (bits >> mantissa) & ((1 << (width - 1 - mantissa)) - 1)
    if bool(np.any((exponents == 0) & ((bits & ((1 << mantissa) - 1)) != 0))):
        raise InputError(
            name,
            got="subnormal numbers, on a thread that flushes them to zero",
            needed="arithmetic that keeps them",
            fix="call torch.set_flush_denormal(False) first, or set them to 0 yourself",
        )


def _dtype_error(name: str, got: str) -> InputError:
    return InputError(
        name,
        got=f"dtype {got}",
        needed="real numbers (float16/32/64, bfloat16 or integers)",
        fix="convert with .astype(float), or take the real part if that is what you mean",
    )


def as_float64(value: object, name: str) -> F64:
    """Read ``value`` as a finite float64 array without changing any number.

    Raises InputError naming ``name`` for complex, object, string or masked data, NaN, inf, ragged
    lists, and numbers that float64 cannot hold (large integers, extended precision).

    >>> as_float64([[1, 2]], "W")
    array([[1., 2.]])
    """
    if is_torch(value, "Tensor"):
        value = _from_tensor(value, name)
    rows = value if isinstance(value, (list, tuple)) else ()
    if isinstance(value, np.ma.MaskedArray) or any(isinstance(row, np.ma.MaskedArray) for row in rows):
        raise InputError(
            name, got="a masked array", needed="plain numbers", fix="call .filled(0) or whatever the mask means"
        )
    try:
        raw = np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:  # RuntimeError: a list of tensors that require grad
        raise InputError(
            name, got=f"{type(value).__name__} ({error})", needed="a rectangular array of numbers", fix="check its rows"
        ) from error
    if raw.dtype.kind == "O" and isinstance(value, (list, tuple)):
        try:  # Fraction, Decimal and the like: numbers, if float() takes them without loss
            converted = raw.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise _dtype_error(name, "object") from error
        except OverflowError:
            converted = np.full(raw.shape, np.nan)  # equal to nothing: refused below
        if not bool(np.all(converted == raw)):
            raise InputError(
                name,
                got="numbers that float64 cannot hold exactly",
                needed="float64 numbers",
                fix="round them yourself and state it",
            )
        raw = converted
    if raw.dtype.kind not in "fiub":
        raise _dtype_error(name, str(raw.dtype))
    if raw.dtype.kind == "f" and raw.dtype.itemsize in (2, 4, 8) and flushes_subnormals():
        native = np.ascontiguousarray(raw.astype(raw.dtype.newbyteorder("="), copy=False))
        mantissa = {2: 10, 4: 23, 8: 52}[raw.dtype.itemsize]
        _refuse_subnormals(native.view(f"i{raw.dtype.itemsize}"), mantissa, name)
    with np.errstate(over="ignore"):
        array = np.array(raw, dtype=np.float64, order="C")
    if raw.dtype.kind in "iu" or (raw.dtype.itemsize > 8 and bool(np.all(np.isfinite(raw)))):
        # compare in the wider type: int64 and longdouble hold values that float64 rounds
        with np.errstate(invalid="ignore"):
            back = array.astype(raw.dtype) if np.all(np.isfinite(array)) else None
        inside = back is not None and (raw.dtype.kind == "f" or bool(np.all(np.abs(array) < 2.0**63)))
        if not inside or not bool(np.all(back == raw)):
            raise InputError(
                name,
                got=f"{raw.dtype} values that float64 cannot hold exactly",
                needed="numbers exact in float64",
                fix="round them to float64 yourself: that is a different matrix",
            )
    if not np.all(np.isfinite(array)):
        bad = np.argwhere(~np.isfinite(array))[0]
        raise InputError(
            name,
            got=f"{array[tuple(bad)]} at index {tuple(int(i) for i in bad)}",
            needed="finite numbers",
            fix="find where training or loading produced it",
        )
    return array


def as_matrix(value: object, name: str = "W") -> F64:
    """Read a weight matrix of shape (outputs, inputs); takes ``nn.Linear`` too.

    >>> as_matrix([[3.0, 4.0]]).shape
    (1, 2)
    """
    if is_torch(value, "Linear"):
        value = value.weight  # type: ignore[attr-defined]  # an nn.Linear, by the line above
    elif is_torch(value, "Module"):
        raise InputError(
            name,
            got=f"a {type(value).__name__}",
            needed="one weight matrix or an nn.Linear",
            fix="pass a layer's weight, or use the network functions for whole modules",
        )
    array = as_float64(value, name)
    if array.ndim != 2:
        raise InputError(
            name,
            got=f"shape {array.shape}",
            needed="a matrix of shape (outputs, inputs)",
            fix="reshape a vector to (1, n) or (n, 1); a convolution is not a matrix",
        )
    if array.size == 0:
        raise InputError(
            name, got=f"shape {array.shape} (empty)", needed="at least one row and one column", fix="drop the layer"
        )
    return array


def as_labels(y: object, n: int, n_classes: int | None = None, name: str = "y") -> I64:
    """Class indices 0…C−1, one per sample."""
    array = as_float64(y, name)
    if array.ndim != 1 or len(array) != n:
        raise InputError(name, got=f"shape {array.shape}", needed=f"({n},) class indices", fix="one label per sample")
    with np.errstate(invalid="ignore"):
        labels = array.astype(np.int64)
    upper = "C-1" if n_classes is None else str(n_classes - 1)
    if np.any(labels != array) or np.any(labels < 0) or (n_classes is not None and np.any(labels >= n_classes)):
        raise InputError(
            name,
            got=f"values from {array.min():g} to {array.max():g}" if n else "none",
            needed=f"integers 0..{upper}",
            fix="pass class indices (binary with one logit: 0/1)",
        )
    return labels


def frozen(array: F64) -> F64:
    """The array, made read-only, so that what a digest was taken of cannot change."""
    array.flags.writeable = False
    return array


def digest(*arrays: npt.NDArray[Any]) -> str:
    """First 16 hex digits of a SHA-256 over dtypes, shapes and bytes."""
    h = hashlib.sha256()
    for array in arrays:
        contiguous = np.ascontiguousarray(array)
        h.update(f"{contiguous.dtype.str}{contiguous.shape}".encode())
        h.update(contiguous.tobytes())
    return h.hexdigest()[:16]


def power_of_two_scale(array: F64) -> float:
    """``2**e`` with max|array| / 2**e in [1, 2); 1.0 for zeros. Dividing by it is exact.

    >>> power_of_two_scale(np.array([[-6.0]]))
    4.0
    """
    top = float(np.max(np.abs(array), initial=0.0))
    return 1.0 if top == 0.0 else float(2.0 ** (np.frexp(top)[1] - 1))
