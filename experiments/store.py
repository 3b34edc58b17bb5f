"""Rows on disk: one JSON file a row, written whole or not at all, ``OUT/<cpu|paper|cpu-smoke|paper-smoke>/<study>/``.

A file is named ``<key>-<place>.json``: the key is that of configuration and seed, the place a digest of arm and level,
since two arms of a study may share a configuration (λ = 0). Only the holder of the folder's lock writes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

from certbound.errors import InputError
from experiments.study import SCALES, Row

log = logging.getLogger(__name__)

SCHEMA_VERSION: Final = 1
"""Of the files; raise it when a field changes its meaning."""

_LOCK: Final = ".lock"
_TEMPORARY: Final = ".tmp"
_DAMAGED: Final = ".damaged"
_LEFT_OVER: Final = ".leftover"
_FIELDS: Final = tuple(f.name for f in fields(Row))
_INFINITE: Final = {"inf": math.inf, "-inf": -math.inf}
_TEXT: Final = "text:"
"""Before a text that would be read as a number."""


class DamagedError(ValueError):
    """A file or a line that is no row as this module writes them."""


def label(scale: str, *, smoke: bool = False) -> str:
    """The folder of a scale; rows of smoke runs never lie beside real ones.

    >>> label("cpu"), label("cpu", smoke=True)
    ('cpu', 'cpu-smoke')

    Raises
    ------
    InputError : no such scale.
    """
    if scale not in SCALES:
        raise InputError("scale", got=repr(scale), needed=f"one of {SCALES}", fix="pass 'cpu' or 'paper'")
    return f"{scale}-smoke" if smoke else scale


def name_of(key: str, arm: str, level: float) -> str:
    """Name of a row's file within its study: the same for the same cell, whenever it is run."""
    place = hashlib.sha256(json.dumps([arm, float(level)]).encode()).hexdigest()[:8]
    return f"{key}-{place}.json"


def file_name(row: Row) -> str:
    """:func:`name_of` a row."""
    return name_of(row.key, row.arm, row.level)


# ---------------------------------------------------------------- a row as text


def encode(row: Row) -> str:
    """One line of JSON with ``schema_version`` and ``digest``; infinite numbers as ``"inf"`` and ``"-inf"``.

    Raises
    ------
    InputError : NaN, or an object that JSON has no form for, named by where it is.
    """
    content = {name: _plain(getattr(row, name), name) for name in _FIELDS}
    content["schema_version"] = SCHEMA_VERSION
    content["digest"] = _digest(content)
    return _json(content)


def decode(line: str) -> Row:
    """The row of :func:`encode`.

    Raises
    ------
    DamagedError : no JSON, other fields, another schema version, content that does not fit its digest.
    """
    try:
        content = json.loads(line, parse_constant=_refuse_constant)
        digest = content.pop("digest")
        if digest != _digest(content):
            raise DamagedError("the content does not fit its digest")
        version = content.pop("schema_version")
        if version != SCHEMA_VERSION or set(content) != set(_FIELDS):
            raise DamagedError(f"schema version {version!r}; needed {SCHEMA_VERSION} and the fields {_FIELDS}")
        return Row(**{name: _rich(value) for name, value in content.items()})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise error if isinstance(error, DamagedError) else DamagedError(f"{type(error).__name__}: {error}") from error


def normalised(value: Any, where: str) -> Any:
    """``value`` as it comes back from the disk; refused where it could not be stored (see :func:`encode`)."""
    return _rich(_plain(value, where))


def pack(rows: Iterable[Row]) -> str:
    """All rows as JSON lines, in the order of study, scale, arm, level, seed: the same rows give the same bytes."""
    ordered = sorted(rows, key=lambda row: (row.study, row.scale, *_order(row)))
    return "".join(encode(row) + "\n" for row in ordered)


def unpack(text: str) -> tuple[Row, ...]:
    """The rows of :func:`pack`.

    Raises
    ------
    InputError : a line that is damaged, a row that comes twice.
    """
    rows: dict[tuple[str, str, str], Row] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            row = decode(line)
        except DamagedError as error:
            raise InputError(
                f"line {number}", got=str(error), needed="a row as pack() writes it", fix="pack the stored rows again"
            ) from error
        name = (row.study, row.scale, file_name(row))
        if name in rows:
            raise InputError(f"line {number}", got=f"{name} again", needed="each row once", fix="remove the line")
        rows[name] = row
    return tuple(rows.values())


def _order(row: Row) -> tuple[str, float, int, str]:
    return row.arm, row.level, row.seed, row.key


def _json(content: Any) -> str:
    return json.dumps(content, sort_keys=True, allow_nan=False)


def _digest(content: Any) -> str:
    return hashlib.sha256(_json(content).encode()).hexdigest()


def _refuse_constant(name: str) -> Any:
    raise DamagedError(f"the number {name}")


def _plain(value: Any, where: str) -> Any:
    """``value`` in JSON's own types."""
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        if math.isnan(value):
            raise InputError(where, got="NaN", needed="a number, or None where there is none", fix="repair the cell")
        # float(): numpy's float64 is a float with another repr
        return float(value) if math.isfinite(value) else ("inf" if value > 0 else "-inf")
    if isinstance(value, str):
        return _TEXT + value if value in _INFINITE or value.startswith(_TEXT) else value
    if isinstance(value, Mapping):
        if not all(isinstance(name, str) for name in value):
            raise InputError(where, got=f"keys {list(value)[:5]}", needed="texts as keys", fix="repair the cell")
        return {name: _plain(inner, f"{where}.{name}") for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner, f"{where}[{i}]") for i, inner in enumerate(value)]
    if hasattr(value, "tolist"):  # arrays and scalars of numpy and torch
        return _plain(value.tolist(), where)
    raise InputError(where, got=type(value).__name__, needed="numbers, texts, lists, mappings", fix="repair the cell")


def _rich(value: Any) -> Any:
    """The inverse of :func:`_plain`, tuples and arrays as lists."""
    if isinstance(value, str):
        return _INFINITE[value] if value in _INFINITE else value.removeprefix(_TEXT)
    if isinstance(value, dict):
        return {name: _rich(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_rich(inner) for inner in value]
    return value


# ---------------------------------------------------------------- files


def write_bytes(descriptor: int, data: bytes) -> None:
    """All of ``data``, on the disk when this returns."""
    while data:
        data = data[os.write(descriptor, data) :]
    os.fsync(descriptor)


def write_whole(path: Path, data: bytes) -> None:
    """The file has its old content or all of ``data``, whenever the process is killed or the power fails.

    Raises
    ------
    OSError : no space, no permission; the file is then as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{_TEMPORARY}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            write_bytes(descriptor, data)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """The new name is on the disk too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save_row(out: Path, row: Row) -> Path:
    """Store a row, over one of the same cell.

    Raises
    ------
    InputError : NaN in it. OSError : it cannot be written.
    """
    path = folder_of(out, row.scale, row.study) / file_name(row)
    write_whole(path, encode(row).encode() + b"\n")
    return path


def folder_of(out: Path, scale: str, study: str) -> Path:
    """Where the rows of a study lie; ``scale`` is a :func:`label`."""
    return Path(out) / scale / study


def read_row(path: Path) -> Row:
    """The row of a file that fits its name and its folders.

    Raises
    ------
    DamagedError : see :func:`decode`; or the row of another cell, study or scale. OSError : it cannot be read.
    """
    try:
        row = decode(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise DamagedError(str(error)) from error
    place = (path.parent.parent.name, path.parent.name, path.name)
    if place != (row.scale, row.study, file_name(row)):
        raise DamagedError(f"the row of {row.scale}/{row.study}/{file_name(row)}")
    return row


def load_rows(out: Path, scale: str, study: str) -> tuple[Row, ...]:
    """The stored rows of a study, sorted by arm, level, seed; ``scale`` is a :func:`label`.

    A damaged file is left out with a warning: the next run sets it aside and computes its cell.
    """
    rows = []
    for path in sorted(folder_of(out, scale, study).glob("*.json")):
        try:
            rows.append(read_row(path))
        except DamagedError as error:
            log.warning("%s is damaged and left out: %s", path, error)
    return tuple(sorted(rows, key=_order))


def files_by_key(out: Path, scale: str) -> dict[str, list[Path]]:
    """The files of every study of this scale, by the key in their name."""
    found: dict[str, list[Path]] = {}
    for path in sorted((Path(out) / scale).glob("*/*.json")):
        found.setdefault(path.name.partition("-")[0], []).append(path)
    return found


def tidy(out: Path, scale: str, study: str) -> None:
    """Remove the temporary files of dead runs and set damaged files aside.

    The lock must be held: who holds it is the only writer, so that every temporary file there is a dead one's.
    """
    folder = folder_of(out, scale, study)
    for path in folder.glob(f".*{_TEMPORARY}"):
        path.unlink()
    for path in sorted(folder.glob("*.json")):
        try:
            read_row(path)
        except DamagedError as error:
            log.warning("%s is damaged (%s): set aside as %s", path, error, set_aside(path, _DAMAGED).name)


def set_left_over_aside(out: Path, row: Row) -> Path:
    """Rename the file of a row that no cell of its study has any more, so that it is in no table."""
    return set_aside(folder_of(out, row.scale, row.study) / file_name(row), _LEFT_OVER)


def set_aside(path: Path, suffix: str) -> Path:
    """Rename a file out of the rows, over none that was set aside before."""
    new, count = path.with_name(path.name + suffix), 1
    while new.exists():
        count += 1
        new = path.with_name(f"{path.name}{suffix}-{count}")
    path.rename(new)
    return new


@contextmanager
def locked(out: Path, scale: str, study: str) -> Iterator[None]:
    """Hold the lock of a study's folder. The system gives it back when the process ends, however it ends.

    Raises
    ------
    InputError : another process holds it.
    """
    import fcntl  # not on Windows, where the rest of this module works

    path = folder_of(out, scale, study) / _LOCK
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise InputError(
                "out", got=f"{path.parent}, where process {file.read().strip() or '?'} is running this study",
                needed="one run of a study at a time", fix="wait for that run, or pass another --out",
            ) from None  # fmt: skip
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


__all__ = [
    "SCHEMA_VERSION", "DamagedError", "decode", "encode", "file_name", "files_by_key", "folder_of", "label",
    "load_rows", "locked", "name_of", "normalised", "pack", "read_row", "save_row", "set_aside", "set_left_over_aside",
    "tidy", "unpack", "write_bytes", "write_whole",
]  # fmt: skip
