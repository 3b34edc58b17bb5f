"""Certificates on disk: one safetensors file with canonical JSON inside, and a digest over all of it.

Layout: 8 bytes header length (little endian), JSON header, tensors. The header's ``__metadata__`` has one entry,
``certbound``: canonical JSON ``{"digest", "fields", "format", "format_version", "kind"}``. Any safetensors reader opens
it. :func:`from_bytes` accepts a file only if writing what it read gives the same bytes: so every byte counts.

The digest guards against accidents. Against forgery only ``verify`` helps: it redoes the mathematics.

Our own reader and writer, not the safetensors package: which bytes that package writes is up to its version, so they
could not be compared, and verifying must need numpy only. Nothing is ever unpickled or executed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Final, NoReturn, Self, TypeVar, cast, overload

import numpy as np
import numpy.typing as npt

from certbound.errors import CertboundError, CertificateError, InputError
from certbound.text import json_number

Json = Any
"""None, bool, int (64 bits), float, str, and lists and dictionaries of these."""
Array = npt.NDArray[Any]

FORMAT: Final = "certbound certificate"
FORMAT_VERSION: Final = 1
SUFFIX: Final = ".certificate"
"""Customary; nothing depends on it."""

MAX_FILE: Final = 2**31
MAX_HEADER: Final = 2**26
_MAX_DEPTH: Final = 16
_MAX_DIMENSIONS: Final = 8
_MAX_NESTING: Final = 100
_KEY: Final = "certbound"
_METADATA: Final = "__metadata__"
_NAME: Final = re.compile(r"[A-Za-z0-9_.\-]{1,200}")
_DTYPES: Final = {"F64": np.dtype("<f8"), "I64": np.dtype("<i8"), "BOOL": np.dtype("|b1")}
_WORDS: Final = {"f": "F64", "i": "I64", "b": "BOOL"}

_HOMES: Final = {
    "attack pair": ("certbound.attacks.pair", "AttackPair"),
    "smooth point": ("certbound.lipschitz.sampled", "SmoothPoint"),
    "operator norm": ("certbound.norms.evidence", "NormCertificate"),
    "norm of a convolution": ("certbound.norms.conv_certificate", "ConvNormCertificate"),
    "product of norms": ("certbound.lipschitz.product", "ProductCertificate"),
    "product of layer norms": ("certbound.lipschitz.layer_product", "LayerProductCertificate"),
    "constants of a graph": ("certbound.lipschitz.graph_product", "GraphProductCertificate"),
    "LipLT path norms": ("certbound.lipschitz.path_norms", "PathCertificate"),
    "LipSDP multipliers": ("certbound.lipschitz.sdp_certificate", "SdpCertificate"),
    "LipSDP storage matrices": ("certbound.lipschitz.system_certificate", "SystemCertificate"),
    "LipSDP branch and bound": ("certbound.lipschitz.tree_certificate", "TreeCertificate"),
    "alignment cover": ("certbound.lipschitz.alignment_certificate", "AlignmentCertificate"),
}
"""Where the class of each kind is: they use this module, so it finds them by name, when one is loaded."""


@dataclass(frozen=True, eq=False)
class Stored:
    """What a file holds.

    Parameters
    ----------
    kind : which certificate it is; a key of the table of kinds.
    fields : JSON. Infinities are written as the words ``"inf"`` and ``"-inf"``, which ``take(…, float)`` reads back.
    arrays : float64, int64 or bool, of at most 8 dimensions; names of letters, digits, ``_``, ``.`` and ``-``.
    """

    kind: str
    fields: Mapping[str, Json]
    arrays: Mapping[str, Array] = field(default_factory=dict[str, Array])


class Saveable(ABC):
    """A certificate that can be saved: what each kind implements.

    ``bound`` (field or property) is what it claims, ``verify`` proves it anew, ``stored`` and ``restored`` go to the
    file and back: ``to_bytes(cls.restored(s).stored()) == to_bytes(s)``, or the file is refused.
    """

    kind: ClassVar[str]

    @abstractmethod
    def verify(self, network_or_weights: object) -> bool:
        """True, or raises CertificateError with the reason."""

    @abstractmethod
    def stored(self) -> Stored:
        """What :meth:`save` writes."""

    @classmethod
    @abstractmethod
    def restored(cls, stored: Stored) -> Self:
        """The certificate again; CertificateError for fields that are missing, unknown or of another type."""

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the certificate, whole or not at all; a file of that name is replaced.

        Raises
        ------
        InputError : no such folder, or a folder at ``path``.
        CertificateError : what could not be loaded again, such as NaN.
        OSError : the file cannot be written; whatever was there before still is.
        """
        target = Path(path)
        if target.is_dir() or not target.parent.is_dir():
            raise InputError(
                "path",
                got=f"a folder at {str(path)!r}" if target.is_dir() else f"no folder at {str(target.parent)!r}",
                needed="the name of a file in a folder that exists",
                fix=f"for instance bound{SUFFIX}",
            )
        data = to_bytes(self.stored())
        type(self).restored(from_bytes(data))  # what could not be loaded is not written
        _write_atomically(target, data)
        return target


def _write_atomically(target: Path, data: bytes) -> None:
    # in the same folder: a rename across file systems is a copy, which can stop half-way
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:100]}.", suffix=".part")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())  # before the rename: a crash must not leave the new name with old blocks
        temporary.chmod(0o666 & ~_umask())  # mkstemp's 0600 is not what open() gives
        temporary.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _umask() -> int:
    current = os.umask(0o077)
    os.umask(current)
    return current


def load_certificate(path: str | os.PathLike[str]) -> Saveable:
    """Read a certificate. It is whole; whether it is true, its ``verify`` says. Needs numpy only.

    Parameters
    ----------
    path : a file that ``certificate.save`` wrote.

    Raises
    ------
    InputError : no such file, or a folder.
    CertificateError : with the reason: a damaged or shortened file, another format, a kind or fields that this version
        does not know.
    """
    file = Path(path)
    if not file.is_file():
        got = "a folder" if file.is_dir() else "no file"
        raise InputError("path", got=f"{got} at {str(path)!r}", needed="a certificate file", fix="check the path")
    if file.stat().st_size > MAX_FILE:  # before reading it
        _refuse(f"the file has {file.stat().st_size} bytes; at most {MAX_FILE} are read")
    data = file.read_bytes()
    stored = from_bytes(data)
    if stored.kind not in _HOMES:
        _refuse(f"unknown kind {stored.kind[:80]!r}; this version knows {', '.join(_HOMES)}")
    module, name = _HOMES[stored.kind]
    cls: type[Saveable] = getattr(import_module(module), name)
    try:
        certificate = cls.restored(stored)
        again = to_bytes(certificate.stored())
    except CertificateError:
        raise
    except CertboundError as error:  # a field that the class's own checks refuse
        raise CertificateError(f"{stored.kind}: {error}") from error
    if again != data:
        _refuse("the fields are not written as this certificate writes them", stored.kind)
    return certificate


# ---------------------------------------------------------------- reading what a class stored

T = TypeVar("T")
U = TypeVar("U")
V = TypeVar("V")


@overload
def take(stored: Stored, name: str, kind: type[T], /) -> T: ...
@overload
def take(stored: Stored, name: str, kind: type[T], other: type[U], /) -> T | U: ...
@overload
def take(stored: Stored, name: str, kind: type[T], other: type[U], third: type[V], /) -> T | U | V: ...
def take(stored: Stored, name: str, /, *kinds: type[Any]) -> Any:
    """A field of one of the given types: bool, int, float (also an infinity in words), str, list, dict, NoneType.

    An int is no float and a bool no int. Raises CertificateError, naming the field.

    >>> take(Stored("k", {"norm": "inf", "n": 3}), "norm", float)
    inf
    """
    if name not in stored.fields:
        _refuse(f"the field {name!r} is missing", stored.kind)
    value = stored.fields[name]
    for kind in kinds:
        if kind is float and isinstance(value, str) and value in ("inf", "-inf"):
            return float(value)
        if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)) and value == value:  # no NaN
            return value
    wanted = " or ".join(k.__name__ for k in kinds)
    return _refuse(f"the field {name!r} is a {type(value).__name__}; needed {wanted}", stored.kind)


def take_array(
    stored: Stored,
    name: str,
    *,
    ndim: int | None = None,
    shape: tuple[int, ...] | None = None,
    dtype: npt.DTypeLike = np.float64,
    finite: bool = True,
) -> Array:
    """A read-only array of that dtype, and of ``ndim`` dimensions or that shape; finite unless told.

    >>> take_array(Stored("k", {}, {"t": np.ones(2)}), "t", ndim=1)
    array([1., 1.])
    """
    if name not in stored.arrays:
        _refuse(f"the array {name!r} is missing", stored.kind)
    array = stored.arrays[name]
    if array.dtype != np.dtype(dtype):
        _refuse(f"the array {name!r} is of {array.dtype}; needed {np.dtype(dtype)}", stored.kind)
    if (ndim is not None and array.ndim != ndim) or (shape is not None and array.shape != shape):
        needed = f"{ndim} dimensions" if shape is None else f"shape {shape}"
        _refuse(f"the array {name!r} has shape {array.shape}; needed {needed}", stored.kind)
    if finite and array.dtype.kind == "f" and not bool(np.all(np.isfinite(array))):
        _refuse(f"the array {name!r} has entries that are NaN or infinite", stored.kind)
    return _own(array)


def finish(stored: Stored, *, fields: Collection[str], arrays: Collection[str] = ()) -> None:
    """Refuse fields and arrays that are not named here: what nobody reads, nobody checks.

    >>> finish(Stored("k", {"a": 1}), fields=("b",))
    Traceback (most recent call last):
        ...
    certbound.errors.CertificateError: k: unknown field 'a'
    """
    for what, given, known in (("field", stored.fields, fields), ("array", stored.arrays, arrays)):
        unknown = sorted(set(given) - set(known))
        if unknown:
            _refuse(f"unknown {what} {unknown[0][:80]!r}", stored.kind)


def _own(array: Array) -> Array:
    """A read-only array of native byte order, in C order, that nobody else can write to."""
    if not array.flags.writeable and array.base is None and array.flags.c_contiguous:
        return array
    own = np.array(array, dtype=array.dtype.newbyteorder("="), order="C")
    own.flags.writeable = False
    return own


def _refuse(reason: str, of: str = "certificate") -> NoReturn:
    raise CertificateError(f"{of[:80]}: {reason}")


# ---------------------------------------------------------------- bytes


def to_bytes(stored: Stored) -> bytes:
    """The file; the same content always gives the same bytes.

    Raises
    ------
    CertificateError : NaN, integers beyond 64 bits, other types, names or dtypes that the format does not know,
        more than 2 GiB, or 64 MiB of header.

    >>> data = to_bytes(Stored("k", {"value": 1.5}, {"t": np.ones(2)}))
    >>> int.from_bytes(data[:8], "little") == len(data) - 8 - 16, dict(from_bytes(data).fields)
    (True, {'value': 1.5})
    """
    fields = cast("dict[str, Json]", _plain(dict(stored.fields), "fields", 0))
    kind = cast("str", _plain(stored.kind, "kind", 0))
    header: dict[str, Json] = {}
    blocks: list[bytes] = []
    offset = 0
    for name in sorted(stored.arrays):
        array = stored.arrays[name]
        if not _NAME.fullmatch(name) or name == _METADATA:
            _refuse(f"an array named {name[:80]!r}; needed at most 200 letters, digits, '_', '.' and '-'")
        if (array.dtype.kind, array.dtype.itemsize) not in (("f", 8), ("i", 8), ("b", 1)):
            _refuse(f"the array {name!r} is of {array.dtype}; needed float64, int64 or bool")
        if not _fits(array.shape):
            _refuse(f"the array {name!r} has shape {array.shape}; at most {_MAX_DIMENSIONS} sizes, of product 2^31")
        word = _WORDS[array.dtype.kind]
        end = offset + array.nbytes
        if end > MAX_FILE:  # before copying it
            _refuse(f"the arrays take more than {MAX_FILE} bytes")
        block = array.astype(_DTYPES[word]).tobytes()  # C order
        header[name] = {"data_offsets": [offset, end], "dtype": word, "shape": list(array.shape)}
        blocks.append(block)
        offset = end
    about = {"fields": fields, "format": FORMAT, "format_version": FORMAT_VERSION, "kind": kind}
    inside = _canonical({**about, "digest": _digest(about, header, blocks)})
    text = _canonical({**header, _METADATA: {_KEY: inside}}).encode("ascii")
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8, for readers that map the file
    size = 8 + len(text) + offset
    if len(text) > MAX_HEADER or size > MAX_FILE:
        _refuse(f"a header of {len(text)} bytes in {size}; at most {MAX_HEADER} in {MAX_FILE}")
    return b"".join([len(text).to_bytes(8, "little"), text, *blocks])


def from_bytes(data: bytes) -> Stored:
    """Read what :func:`to_bytes` wrote; arrays are read-only.

    Raises
    ------
    CertificateError : with the reason, for every other sequence of bytes.

    >>> from_bytes(to_bytes(Stored("k", {"value": 1.5})) + b" ")
    Traceback (most recent call last):
        ...
    certbound.errors.CertificateError: certificate: 1 bytes beyond the last tensor
    """
    if not 8 <= len(data) <= MAX_FILE:
        _refuse(f"{len(data)} bytes; needed 8 to {MAX_FILE}")
    length = int.from_bytes(data[:8], "little")
    if length > min(MAX_HEADER, len(data) - 8):
        _refuse(f"a header of {length} bytes in a file of {len(data)}; the file is cut off, or no certificate")
    header = _parsed(data[8 : 8 + length], "header")
    metadata = header.pop(_METADATA, None)
    if not isinstance(metadata, dict) or not isinstance(metadata.get(_KEY), str):
        _refuse(f"no {_METADATA}.{_KEY} in the header: this is no certificate")
    about = _parsed(metadata[_KEY].encode("utf-8", "replace"), "metadata")
    version, kind, fields = about.get("format_version"), about.get("kind"), about.get("fields")
    if about.get("format") != FORMAT or type(version) is not int:
        _refuse(f"the format is {str(about.get('format'))[:80]!r}, not {FORMAT!r}")
    if version != FORMAT_VERSION:
        _refuse(f"format version {version}; this certbound reads {FORMAT_VERSION}")
    if not isinstance(kind, str) or not isinstance(fields, dict):
        _refuse("no kind or no fields in the metadata")
    arrays = _tensors(header, memoryview(data)[8 + length :])
    stored = Stored(kind, MappingProxyType(fields), MappingProxyType(arrays))
    again = to_bytes(stored)
    if again != data:
        _refuse(_difference(about.get("digest"), again))
    return stored


def _difference(claimed: object, again: bytes) -> str:
    """Why bytes that could be read are not those that would be written."""
    header = json.loads(again[8 : 8 + int.from_bytes(again[:8], "little")])
    true = json.loads(header[_METADATA][_KEY])["digest"]
    if claimed != true:
        return f"the digest is {str(claimed)[:64]!r}, the content's is {true!r}: something was altered"
    return "the header is not written as certbound writes it: something was altered"


def _tensors(header: Mapping[str, Json], data: memoryview) -> dict[str, Array]:
    """The arrays; shapes, offsets and sizes are checked before anything is allocated."""
    arrays: dict[str, Array] = {}
    offset = 0
    for name in sorted(header):
        entry = header[name]
        if not isinstance(entry, dict) or set(entry) != {"data_offsets", "dtype", "shape"}:
            _refuse(f"the tensor {name[:80]!r} needs data_offsets, dtype and shape")
        word, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(word, str) or word not in _DTYPES:
            _refuse(f"the tensor {name[:80]!r} has dtype {str(word)[:80]!r}; needed {', '.join(_DTYPES)}")
        if not _sizes(shape) or not _fits(shape) or not _sizes(offsets) or len(offsets) != 2:
            _refuse(f"the tensor {name[:80]!r} has a shape or offsets that no tensor of this format has")
        count = math.prod(shape)
        size = count * _DTYPES[word].itemsize
        if offsets != [offset, offset + size]:
            _refuse(f"the tensor {name[:80]!r} of {size} bytes is at {offsets}; needed {[offset, offset + size]}")
        offset += size
        if offset > len(data):
            _refuse(f"the tensor {name[:80]!r} ends {offset - len(data)} bytes beyond the file: it is cut off")
        array = np.frombuffer(data, _DTYPES[word], count, offset - size) if count else np.empty(0, _DTYPES[word])
        # a byte 2 is a true value of numpy's that equals neither True nor False
        if word == "BOOL" and bool(np.any(array.view(np.uint8) > 1)):
            _refuse(f"the tensor {name[:80]!r} has truth values other than 0 and 1")
        arrays[name] = _own(array.reshape(shape))
    if offset != len(data):
        _refuse(f"{len(data) - offset} bytes beyond the last tensor")
    return arrays


def _sizes(values: object) -> bool:
    """A list of integers from 0 to 2^31, and not of True and False."""
    return isinstance(values, list) and all(type(v) is int and 0 <= v <= MAX_FILE for v in cast("list[object]", values))


def _fits(shape: Sequence[int]) -> bool:
    """Sizes that numpy takes, also of an array without entries: it multiplies those that are not 0."""
    return len(shape) <= _MAX_DIMENSIONS and math.prod(s for s in shape if s) <= MAX_FILE


def _depth(data: bytes) -> int:
    """How deep brackets are nested, those in strings counted too.

    >>> _depth(b'{"a":[[1],[2]]}')
    3
    """
    raw = np.frombuffer(data, np.uint8)
    steps = np.isin(raw, (0x5B, 0x7B)).astype(np.int32) - np.isin(raw, (0x5D, 0x7D))
    return int(np.max(np.cumsum(steps), initial=0))


def _parsed(data: bytes, what: str) -> dict[str, Json]:
    """A JSON object in ASCII without duplicate keys, NaN or infinities."""
    if _depth(data) > _MAX_NESTING:  # whoever raised Python's recursion limit gets no RecursionError, but a crash
        _refuse(f"the {what} is nested too deeply")
    try:
        value = json.loads(data.decode("ascii"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except CertificateError:
        raise
    except RecursionError:
        _refuse(f"the {what} is nested too deeply")
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError, integers of thousands of digits
        raise CertificateError(f"certificate: the {what} is no JSON text ({error})") from error
    if not isinstance(value, dict):
        _refuse(f"the {what} is no JSON object")
    return cast("dict[str, Json]", value)


def _unique(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    found = dict(pairs)
    if len(found) != len(pairs):
        _refuse("a key appears twice in one JSON object")
    return found


def _no_constant(word: str) -> NoReturn:
    _refuse(f"{word} is no number of JSON")


def _canonical(value: Json) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _plain(value: object, where: str, depth: int) -> Json:
    """A copy of plain JSON types; infinities become words, so ``"inf"`` reads as a number where one is expected."""
    if depth > _MAX_DEPTH:
        _refuse(f"{where} is nested deeper than {_MAX_DEPTH}")
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            _refuse(f"{where} is an integer beyond 64 bits")
        return int(value)
    if isinstance(value, float):
        if math.isnan(value):
            _refuse(f"{where} is NaN")
        return json_number(value)
    if isinstance(value, (list, tuple)):
        return [_plain(v, f"{where}[]", depth + 1) for v in cast("list[object]", value)]
    if isinstance(value, Mapping):
        items = cast("Mapping[object, object]", value)
        for key in items:
            if not isinstance(key, str):
                _refuse(f"{where} has a key that is a {type(key).__name__}")
        return {str(k): _plain(v, f"{where}.{str(k)[:40]}", depth + 1) for k, v in items.items()}
    return _refuse(f"{where} is a {type(value).__name__}, which JSON does not have")


def _digest(about: Mapping[str, Json], header: Mapping[str, Json], blocks: list[bytes]) -> str:
    """SHA-256 over kind, fields, names, dtypes, shapes and bytes."""
    h = hashlib.sha256(_canonical({**about, "tensors": header}).encode("ascii"))
    for block in blocks:
        h.update(block)
    return h.hexdigest()


__all__ = [
    "FORMAT", "FORMAT_VERSION", "MAX_FILE", "MAX_HEADER", "SUFFIX", "Json", "Saveable", "Stored", "finish",
    "from_bytes", "load_certificate", "take", "take_array", "to_bytes",
]  # fmt: skip
