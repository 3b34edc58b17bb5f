"""Tensors of ONNX files as float64, int64 or bool arrays, every number as stored; sizes are checked before reading."""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from certbound.errors import InputError
from certbound.io.onnx_wire import OnnxLimits, import_onnx, short

Array = npt.NDArray[Any]

_FIELDS: Final = {
    "FLOAT": "float_data", "DOUBLE": "double_data", "INT64": "int64_data", "UINT64": "uint64_data",
    "UINT32": "uint64_data",
    **dict.fromkeys(("INT32", "INT16", "INT8", "UINT16", "UINT8", "BOOL", "FLOAT16", "BFLOAT16", "FLOAT8E4M3FN",
                     "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ", "INT4", "UINT4"), "int32_data"),
}  # fmt: skip
"""Element types that are read, and the field that holds them where they are not raw."""
_BITS: Final = {
    "DOUBLE": 64, "INT64": 64, "UINT64": 64, "FLOAT": 32, "INT32": 32, "UINT32": 32, "FLOAT16": 16, "BFLOAT16": 16,
    "INT16": 16, "UINT16": 16, "INT4": 4, "UINT4": 4,
}  # fmt: skip
FLOATS: Final = ("FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16")


@dataclass
class TensorReader:
    """Reads tensors of one model; counts what they hold together.

    ``folder``: the model's own, in which files of external data must lie.
    """

    folder: Path
    limits: OnnxLimits
    argument: str
    elements: int = 0
    external: int = 0

    def count(self, elements: int, what: str) -> None:
        """Add numbers that are about to be made; InputError beyond a limit."""
        self.elements += elements
        if elements > self.limits.elements or self.elements > self.limits.total_elements:
            raise InputError(
                self.argument,
                got=f"{what} of {elements:,} numbers, {self.elements:,} in all constants so far",
                needed=f"at most {self.limits.elements:,} each and {self.limits.total_elements:,} together",
                fix="pass limits=OnnxLimits(…) if you trust the file and have the memory",
            )

    def read(self, tensor: Any, name: str) -> Array:
        """The array of a ``TensorProto``."""
        onnx = import_onnx()
        what = f"the tensor {short(name)}"
        types = onnx.TensorProto.DataType
        kind = types.Name(tensor.data_type) if tensor.data_type in types.values() else str(tensor.data_type)
        if kind not in _FIELDS:
            raise self._bad(f"{what} of type {kind}", "floats, integers or booleans", "convert it")
        shape = tuple(tensor.dims)
        if any(n < 0 for n in shape) or len(shape) > 32:
            raise self._bad(f"{what} of shape {short(shape)}", "at most 32 axes of length >= 0", "write it again")
        n = math.prod(shape)
        self.count(n, what)
        if tensor.HasField("segment"):
            raise self._bad(f"{what} in segments", "whole tensors", "write it again")
        raw = self._raw(tensor, kind, n, what)
        plain = onnx.TensorProto(dims=shape, data_type=tensor.data_type)
        if raw is not None:
            plain.raw_data = raw
        else:
            self._check_field(tensor, kind, n, what)
            getattr(plain, _FIELDS[kind]).extend(getattr(tensor, _FIELDS[kind]))
        try:
            array = np.asarray(onnx.numpy_helper.to_array(plain))
        except (ValueError, TypeError, OverflowError) as error:
            raise self._bad(f"{what}, which onnx cannot read ({error})", "a whole tensor", "write it again") from error
        if array.dtype == np.uint64 and bool(np.any(array > np.uint64(2**63 - 1))):
            raise self._bad(f"{what} with integers of 64 bits", "integers below 2**63", "convert it")
        return as_kept(array)

    def _bad(self, got: str, needed: str, fix: str) -> InputError:
        return InputError(self.argument, got=got, needed=needed, fix=fix)

    def _raw(self, tensor: Any, kind: str, n: int, what: str) -> bytes | None:
        """Its raw bytes, from the tensor or from a file; None if they are in a typed field."""
        needed = (n * _BITS.get(kind, 8) + 7) // 8
        if tensor.data_location == 1:  # EXTERNAL
            return self._external(tensor.external_data, needed, what)
        if tensor.external_data:
            raise self._bad(f"{what} with external data that it does not use", "one place for its data", "write it new")
        if not tensor.HasField("raw_data"):
            return None
        if len(tensor.raw_data) != needed:
            raise self._bad(
                f"{what} of shape {tuple(tensor.dims)} and type {kind} with {len(tensor.raw_data):,} bytes",
                f"{needed:,} bytes", "write it again",
            )  # fmt: skip
        return bytes(tensor.raw_data)

    def _check_field(self, tensor: Any, kind: str, n: int, what: str) -> None:
        field = _FIELDS[kind]
        found = getattr(tensor, field)
        needed = (n + 1) // 2 if kind in ("INT4", "UINT4") else n
        if len(found) != needed:
            raise self._bad(
                f"{what} of shape {tuple(tensor.dims)} and type {kind} with {len(found):,} numbers",
                f"{needed:,} numbers", "write it again",
            )  # fmt: skip
        bits = _BITS.get(kind, 8)
        if field == "int32_data" and bits < 32 and n:
            values = np.fromiter(found, np.int64, len(found))
            signed = kind in ("INT8", "INT16")
            low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if signed else (0, 2 ** max(bits, 8))
            if not bool(np.all((values >= low) & (values < high))):
                raise self._bad(f"{what} with numbers outside {kind}", f"numbers of {bits} bits", "write it again")

    # -- files beside the model ---------------------------------------------------------------------------------------

    def _external(self, entries: Any, needed: int, what: str) -> bytes:
        given = {entry.key: entry.value for entry in entries}
        strange = sorted(set(given) - {"location", "offset", "length", "checksum"})
        if strange or len(given) != len(entries) or "location" not in given:
            raise self._bad(
                f"{what} with external data described by {short([e.key for e in entries][:8])}",
                "a location, and perhaps an offset and a length", "write it again",
            )  # fmt: skip
        offset = self._whole(given.get("offset", "0"), "offset", what)
        length = self._whole(given.get("length", str(needed)), "length", what)
        if length != needed:
            raise self._bad(f"{what} with {length:,} bytes of external data", f"{needed:,} bytes", "write it again")
        self.external += length
        if self.external > self.limits.external_bytes:
            raise self._bad(
                f"external data of more than {self.limits.external_bytes:,} bytes", "less",
                "pass limits=OnnxLimits(…) if you trust the file and have the memory",
            )  # fmt: skip
        file = self._inside(given["location"], what)
        # O_NOFOLLOW: the path is resolved, so a link here was made since; O_NONBLOCK: opening a pipe would wait
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        try:
            with open(os.open(file, flags), "rb") as stream:
                status = os.fstat(stream.fileno())
                if not stat.S_ISREG(status.st_mode):
                    raise self._bad(f"{what} in {short(given['location'])}", "a plain file", "check the folder")
                if offset + length > status.st_size:
                    raise self._bad(
                        f"{what} at bytes {offset:,} to {offset + length:,} of {file.name}, which has "
                        f"{status.st_size:,}", "data within its file", "download both files again",
                    )  # fmt: skip
                stream.seek(offset)
                return stream.read(length)
        except OSError as error:
            raise self._bad(
                f"{what} in {short(given['location'])}, which cannot be read ({error.strerror or error})",
                "the file of external data in the model's folder", "download it too",
            ) from error  # fmt: skip

    def _whole(self, text: str, name: str, what: str) -> int:
        if not (text.isascii() and text.isdecimal() and len(text) <= 18):
            raise self._bad(f"{what} with the {name} {short(text)}", "an integer >= 0", "write it again")
        return int(text)

    def _inside(self, location: str, what: str) -> Path:
        """The file's path: below the model's folder, through no '..' and no link that leads out."""
        path = PurePosixPath(location)
        odd = not location or path.is_absolute() or ".." in path.parts or any(c in location for c in "\\:\0")
        if not odd:
            folder = self.folder.resolve()
            try:
                found = (folder / path).resolve()
            except (OSError, RuntimeError):  # a loop of links, a name too long
                found = folder.parent
            odd = not found.is_relative_to(folder) or found == folder
            if not odd:
                return found
        raise self._bad(
            f"{what} in {short(location)}", "a plain file inside the model's folder, by a relative path",
            "move the data there; nothing outside is read",
        )  # fmt: skip


def as_kept(array: Array) -> Array:
    """Floats of any width as float64, integers as int64, booleans as they are: exact."""
    if array.dtype == np.bool_:
        return array
    if array.dtype.kind in "iu":
        return array.astype(np.int64)
    if array.dtype.kind == "V" or array.dtype.kind == "f":  # ml_dtypes' kinds are V or f
        name = array.dtype.name
        return array.astype(np.int64) if name in ("int4", "uint4", "int2", "uint2") else array.astype(np.float64)
    raise InputError("model", got=f"an array of {array.dtype}", needed="numbers", fix="convert it")


def whole_numbers(values: Array) -> Sequence[int]:
    """The integers of an array, flat."""
    return [int(v) for v in values.reshape(-1)]


__all__ = ["FLOATS", "TensorReader", "as_kept", "whole_numbers"]
