"""ONNX files as bytes: measured with limits before the protobuf parser sees them.

The parser trusts its input: two bytes make a node of a hundred in memory, and fields that it does not know are kept
and ignored. So the bytes are walked first, along the schema that the onnx package brings: fields are counted, lengths
and depth checked, and what the schema does not know is refused, as are a second graph or bytes after the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from certbound.errors import InputError, MissingDependencyError

_WIRES: Final = {1: 1, 2: 5, 3: 0, 4: 0, 5: 0, 6: 1, 7: 5, 8: 0, 9: 2, 11: 2, 12: 2, 13: 0, 14: 0}
"""protobuf's number of a field's type → how its bytes are laid out: 0 varint, 1 eight bytes, 2 length first, 5 four."""
_STRING: Final = 9
_MESSAGE: Final = 11
_DEPTH: Final = 16
_STRING_BYTES: Final = 2**24
_PACKED_BYTES: Final = 2**26
"""A byte of packed integers becomes eight in memory."""


@dataclass(frozen=True)
class OnnxLimits:
    """What an ONNX file may ask for; more is refused, so that no file takes all memory or runs for days.

    ``file_bytes``, ``external_bytes``: of the file, and of the files of tensors beside it, together; ``fields``: of
    the protobuf message; ``nodes``; ``elements``: numbers of one tensor or value; ``total_elements``: of all tensors
    and all constants computed from them (8 bytes each); ``work``: multiplications of one forward pass.
    """

    file_bytes: int = 2**31 - 1
    external_bytes: int = 2**33
    fields: int = 1_000_000
    nodes: int = 50_000
    elements: int = 2**28
    total_elements: int = 2**30
    work: int = 10**12


class DamagedError(Exception):
    """The bytes are no ONNX model; the message says why."""


def import_onnx() -> Any:
    """The onnx package, or MissingDependencyError."""
    try:
        import onnx
    except ImportError as error:
        raise MissingDependencyError(
            "onnx", purpose="reading an ONNX file", command="pip install 'certbound[onnx]'"
        ) from error
    return onnx


def short(text: object, most: int = 80) -> str:
    """A name from a file, for a message: quoted, its middle cut out if it is long.

    >>> short("conv1")
    "'conv1'"
    """
    shown = str(text)
    return repr(shown if len(shown) <= most else f"{shown[: most // 2]}…{shown[-most // 2 :]}")


def read_model(file: Path, limits: OnnxLimits, argument: str) -> Any:
    """The ``ModelProto`` of a file, within the limits.

    Raises
    ------
    InputError : too large, damaged, or no ONNX file.
    """
    onnx = import_onnx()
    size = file.stat().st_size
    if size > limits.file_bytes:
        raise InputError(
            argument, got=f"{file.name} of {size:,} bytes", needed=f"at most {limits.file_bytes:,}",
            fix="store the weights as external data beside the file",
        )  # fmt: skip
    data = file.read_bytes()
    model = onnx.ModelProto()
    try:
        _Walk(data, limits.fields).message(model.DESCRIPTOR, 0, len(data), 0)
        if not data:
            raise DamagedError("it is empty")
        try:
            model.ParseFromString(data)
        except Exception as error:  # protobuf's DecodeError, and what its versions raise beside it
            raise DamagedError(f"protobuf cannot read it: {error}") from error
    except DamagedError as error:
        raise InputError(
            argument, got=f"{file.name}, which is no ONNX model ({error})", needed="a whole ONNX file",
            fix="write or download it again; a file of a newer ONNX needs a newer onnx package",
        ) from error  # fmt: skip
    return model


class _Walk:
    """One pass over the bytes; :class:`DamagedError` where they do not follow the schema."""

    def __init__(self, data: bytes, fields: int) -> None:
        self.data = data
        self.fields_left = fields
        self.packed_left = _PACKED_BYTES
        self.known: dict[str, dict[int, tuple[Any, bool]]] = {}

    def fields(self, schema: Any) -> dict[int, tuple[Any, bool]]:
        """The fields of a message by their numbers, and whether they may occur several times."""
        found = self.known.get(schema.full_name)
        if found is None:
            found = {f.number: (f, _is_repeated(f)) for f in schema.fields}
            self.known[schema.full_name] = found
        return found

    def varint(self, at: int, end: int) -> tuple[int, int]:
        """A number and where it ends."""
        value = shift = 0
        while True:
            if at >= end:
                raise DamagedError("it ends in the middle of a number")
            byte = self.data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, at
            shift += 7
            if shift > 63:
                raise DamagedError("a number of more than 64 bits")

    def message(self, schema: Any, at: int, end: int, depth: int) -> None:
        """The fields of one message, and of those within it."""
        if depth > _DEPTH:
            raise DamagedError(f"messages nested more than {_DEPTH} deep")
        fields = self.fields(schema)
        seen: set[int] = set()
        while at < end:
            self.fields_left -= 1
            if self.fields_left < 0:
                raise DamagedError("more fields than the limit")
            key, at = self.varint(at, end)
            number, wire = key >> 3, key & 7
            if number not in fields:
                raise DamagedError(f"field {number} of {schema.name}, which the onnx package does not know")
            known, repeated = fields[number]
            if not repeated and number in seen:
                raise DamagedError(f"{schema.name} with two values of {known.name}")
            seen.add(number)
            at = self.field(known, wire, repeated, at, end, depth)

    def field(self, known: Any, wire: int, repeated: bool, at: int, end: int, depth: int) -> int:
        """One field; returns where it ends."""
        own = _WIRES.get(known.type)
        if wire != own and not (repeated and wire == 2 and own in (0, 1, 5)):
            raise DamagedError(f"{known.full_name} stored as another type")
        if wire == 0:
            _, at = self.varint(at, end)
            return at
        length = {1: 8, 5: 4}.get(wire)
        if length is None:
            length, at = self.varint(at, end)
        stop = at + length
        if stop > end:
            raise DamagedError(f"it ends within {known.full_name}")
        if known.type == _MESSAGE:
            self.message(known.message_type, at, stop, depth + 1)
        elif known.type == _STRING:
            if length > _STRING_BYTES:
                raise DamagedError(f"{known.full_name} of {length:,} bytes")
            try:
                self.data[at:stop].decode()
            except UnicodeDecodeError as error:
                raise DamagedError(f"{known.full_name} is no text") from error
        elif wire == 2 and own == 0:
            self.packed_left -= length
            if self.packed_left < 0:
                raise DamagedError(f"more than {_PACKED_BYTES:,} bytes of packed integers; large tensors have raw data")
        return stop


def _is_repeated(known: Any) -> bool:
    found = getattr(known, "is_repeated", None)  # protobuf >= 6.31
    return bool(found) if found is not None else known.label == known.LABEL_REPEATED


__all__ = ["DamagedError", "OnnxLimits", "import_onnx", "read_model", "short"]
