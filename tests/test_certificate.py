"""Certificates on disk: the same bytes for the same content, and a reason for every other sequence of bytes."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import os
import re
import stat
import subprocess
import sys
import textwrap
import tracemalloc
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import tamper
from budget import network_settings
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors import safe_open

import certbound
from certbound import certificate as module
from certbound.attacks.pair import AttackPair
from certbound.certificate import Saveable, Stored, finish, from_bytes, load_certificate, take, take_array, to_bytes
from certbound.errors import CertificateError, InputError
from certbound.network import Ball, as_network

ABOUT = {"fields": {"a": 1}, "format": module.FORMAT, "format_version": 1, "kind": "k"}
TENSOR = {"t": {"data_offsets": [0, 16], "dtype": "F64", "shape": [2]}}
TWO = np.array([1.0, 2.0]).tobytes()


def crafted(tensors, data, *, about=None, **change):
    """A file as a forger would write it: any header, the digest computed for it."""
    about = {**ABOUT, **(about or {}), **change}
    return tamper.raw({**about, "digest": module._digest(about, tensors, [data])}, tensors, data)


def canonical(data):
    """The same header in canonical JSON, so that only what is wrong is wrong."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    about = json.loads(header["__metadata__"]["certbound"])
    text = module._canonical({**header, "__metadata__": {"certbound": module._canonical(about)}}).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


# -- round trips -----------------------------------------------------------------------------------------

NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
SCALARS = st.none() | st.booleans() | NUMBERS | st.text()
VALUES = st.recursive(SCALARS, lambda s: st.lists(s, max_size=3) | st.dictionaries(st.text(), s, max_size=3))
FIELDS = st.dictionaries(st.text(), VALUES, max_size=4)
NAMES = st.from_regex(r"[A-Za-z0-9_.\-]{1,20}", fullmatch=True).filter(lambda n: n != "__metadata__")
ARRAYS = st.dictionaries(
    NAMES,
    hnp.arrays(st.sampled_from([np.float64, np.int64, np.bool_]), hnp.array_shapes(min_dims=0, min_side=0, max_side=4)),
    max_size=4,
)


@network_settings
@given(kind=st.text(), fields=FIELDS, arrays=ARRAYS)
def test_round_trip(kind, fields, arrays):
    data = to_bytes(Stored(kind, fields, arrays))
    assert data == to_bytes(Stored(kind, dict(reversed(fields.items())), dict(reversed(arrays.items()))))
    again = from_bytes(data)
    assert (again.kind, dict(again.fields)) == (kind, fields)
    assert list(again.arrays) == sorted(arrays)
    for name, array in arrays.items():
        own = again.arrays[name]
        assert own.dtype == array.dtype and own.shape == array.shape
        assert own.tobytes() == array.tobytes()  # NaN, -0.0
        assert not own.flags.writeable and own.flags.aligned
    assert to_bytes(again) == data


def test_floats_come_back_bit_by_bit():
    fields = {"x": [0.1, 5e-324, -0.0, 1.7976931348623157e308, 1.0], "inf": math.inf, "minus": -math.inf}
    again = from_bytes(to_bytes(Stored("k", fields)))
    assert [v.hex() for v in again.fields["x"]] == [v.hex() for v in fields["x"]]
    assert (take(again, "inf", float), take(again, "minus", float)) == (math.inf, -math.inf)
    assert take(Stored("k", fields), "inf", float) == math.inf  # before writing, too


def test_any_order_and_byte_order_gives_the_same_bytes():
    a = np.arange(6.0).reshape(2, 3)
    data = to_bytes(Stored("k", {}, {"a": a}))
    assert to_bytes(Stored("k", {}, {"a": np.asfortranarray(a)})) == data
    assert to_bytes(Stored("k", {}, {"a": a.astype(">f8")})) == data
    assert to_bytes(Stored("k", {}, {"a": np.repeat(a, 2, axis=1)[:, ::2]})) == data


def test_the_safetensors_package_reads_our_files(tmp_path):
    arrays = {"b": np.array([True, False, True]), "n": np.array([[1], [-2]]), "x": np.array(2.5), "e": np.empty((0, 3))}
    path = tmp_path / "c.safetensors"
    path.write_bytes(to_bytes(Stored("k", {"a": "ü\ud800"}, arrays)))
    with safe_open(path, "numpy") as file:
        assert set(file.keys()) == set(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(file.get_tensor(name), array, strict=True)
        assert json.loads(file.metadata()["certbound"])["fields"] == {"a": "ü\ud800"}


# -- what cannot be written ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stored", "word"),
    [
        (Stored("k", {"a": math.nan}), "fields.a is NaN"),
        (Stored("k", {"a": [{"b": math.nan}]}), "NaN"),
        (Stored("k", {"a": 2**63}), "beyond 64 bits"),
        (Stored("k", {"a": -(2**63) - 1}), "beyond 64 bits"),
        (Stored("k", {"a": 1j}), "complex"),
        (Stored("k", {"a": np.float32(1)}), "float32"),
        (Stored("k", {"a": {1: 2}}), "key that is a int"),
        (Stored("k", {"a": b"x"}), "bytes"),
        (Stored("k", {}, {"a b": np.ones(1)}), "named"),
        (Stored("k", {}, {"__metadata__": np.ones(1)}), "named"),
        (Stored("k", {}, {"": np.ones(1)}), "named"),
        (Stored("k", {}, {"t\n": np.ones(1)}), "named"),
        (Stored("k", {}, {"t": np.ones(1, np.float32)}), "float32"),
        (Stored("k", {}, {"t": np.ones(1, np.uint64)}), "uint64"),
        (Stored("k", {}, {"t": np.array([None])}), "object"),
        (Stored("k", {}, {"t": np.ones(1, complex)}), "complex"),
        (Stored("k", {}, {"t": np.ones((1,) * 9)}), "shape"),
        (Stored("k", {}, {"t": np.broadcast_to(np.ones(1), (2**29,))}), "shape|2147483648 bytes"),
        (Stored("k", {}, {"t": np.empty((0, 2**32))}), "shape"),
    ],
)
def test_what_the_format_does_not_know_is_not_written(stored, word):
    with pytest.raises(CertificateError, match=word):
        to_bytes(stored)


def test_depth_and_header_are_limited(monkeypatch):
    def nested(depth):
        return json.loads("[" * depth + "]" * depth)

    assert from_bytes(to_bytes(Stored("k", {"a": nested(15)})))
    with pytest.raises(CertificateError, match="deeper"):
        to_bytes(Stored("k", {"a": nested(17)}))
    with pytest.raises(CertificateError, match="header"):
        monkeypatch.setattr(module, "MAX_HEADER", 100)
        to_bytes(Stored("k", {"a": "x" * 100}))


# -- what is refused -------------------------------------------------------------------------------------


def test_every_byte_counts():
    stored = Stored(
        "k", {"v": 1.5, "w": [1, "x", None]}, {"t": np.array([1.0, 2.0]), "b": np.array([True]), "e": np.empty(0)}
    )
    data = to_bytes(stored)
    for i, byte in enumerate(data):
        for other in range(256):
            if other != byte:
                tamper.refused(data[:i] + bytes([other]) + data[i + 1 :], f"byte {i}")
    for length in range(len(data)):
        tamper.refused(data[:length], f"cut to {length}")


def test_the_forger_s_tools_write_what_we_write():
    """Else the refusals below would be for another reason."""
    stored = Stored("k", {"a": 1}, {"t": np.array([1.0, 2.0])})
    assert canonical(crafted(TENSOR, TWO)) == to_bytes(stored)


def entry(**change):
    return {"t": {**TENSOR["t"], **change}}


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "0 bytes"),
        (b"\0" * 7, "7 bytes"),
        (b"\0" * 8, "no JSON"),
        ((2**63).to_bytes(8, "little") + b"{}", "cut off"),
        ((3).to_bytes(8, "little") + b"{}", "cut off"),
        ((2).to_bytes(8, "little") + b"{}", "no certificate"),
        ((2).to_bytes(8, "little") + b"[]", "no JSON object"),
        ((3).to_bytes(8, "little") + b'"\xff"', "no JSON text"),
        (tamper.raw(ABOUT, {}).replace(b"__metadata__", b"__netadata__"), "no certificate"),
        (tamper.raw(ABOUT, {}).replace(b'"certbound":', b'"certbounD":'), "no certificate"),
        (tamper.raw({**ABOUT, "format": "other"}, {}), "format is 'other'"),
        (crafted({}, b"", format_version=2), "format version 2; this certbound reads 1"),
        (crafted({}, b"", format_version="1"), "format"),
        (crafted({}, b"", format_version=True), "format"),
        (crafted({}, b"", kind=3), "no kind"),
        (crafted({}, b"", fields=[]), "no kind or no fields"),
        (crafted({}, b"", extra=1), "altered"),
        (tamper.raw(ABOUT, {}), "digest"),
        (tamper.raw({**ABOUT, "digest": "0" * 64}, {}), "digest"),
        (crafted(entry(dtype="F32"), TWO), "dtype 'F32'"),
        (crafted(entry(dtype=["F64"]), TWO), "dtype"),
        (crafted(entry(shape=[3]), TWO), "24 bytes is at"),
        (crafted(entry(shape=[2, 2]), TWO), "32 bytes is at"),
        (crafted(entry(shape=2), TWO), "shape"),
        (crafted(entry(shape=[2.0]), TWO), "shape"),
        (crafted(entry(shape=[-2]), TWO), "shape"),
        (crafted(entry(shape=[2, True]), TWO), "shape"),
        (crafted(entry(shape=[2] + [1] * 8), TWO), "shape"),
        (crafted(entry(shape=[2**31] * 8), TWO), "shape"),
        (crafted(entry(shape=[0, 2**31, 2**31, 2**31], data_offsets=[0, 0]), b""), "shape"),
        (crafted(entry(shape=[2**62]), TWO), "shape"),
        (crafted(entry(data_offsets=[0, 8]), TWO), "needed"),
        (crafted(entry(data_offsets=[8, 24]), b"\0" * 8 + TWO), "needed"),
        (crafted(entry(data_offsets=[16, 0]), TWO), "needed"),
        (crafted(entry(data_offsets=[0, 16, 16]), TWO), "offsets"),
        (crafted(entry(data_offsets=[False, 16]), TWO), "offsets"),
        (crafted(entry(extra=0), TWO), "needs data_offsets"),
        (crafted({"t": 3}, TWO), "needs data_offsets"),
        (crafted(TENSOR, TWO[:-1]), "cut off"),
        (crafted(TENSOR, TWO + b"\0"), "beyond the last"),
        (crafted({**TENSOR, "u": TENSOR["t"]}, TWO), "needed"),
        (crafted(entry(dtype="BOOL", data_offsets=[0, 2]), b"\1\2"), "truth values"),
        (crafted({"a b": TENSOR["t"]}, TWO), "named 'a b'"),
        (canonical(crafted(TENSOR, TWO)) + b" ", "beyond"),
        (crafted(TENSOR, TWO), "not written as"),  # spaces after its commas
    ],
)
def test_what_is_no_certificate_is_refused(data, word):
    assert word in tamper.refused(data, word)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ('{"a":1,"a":1}', "twice"),
        ('{"a":NaN}', "NaN is no number"),
        ('{"a":Infinity}', "no number"),
        ('{"a":1e999}', "altered"),
        ('{"a":' + "9" * 5000 + "}", "no JSON text"),
        ('{"a":' + "9" * 30 + "}", "64 bits"),
        ('{"a":' + "[" * 100_000 + "}", "no JSON text|nested"),
        ('{"a":' + "[" * 100_000 + "]" * 100_000 + "}", "nested"),
        ('{"a":' + "[" * 100 + "]" * 100 + "}", "nested"),
        ('{"a":1.50}', "altered"),
        ('{"a" :1}', "altered"),
        ('{"b":1,"a":1}', "altered"),
        ('{"a":"é"}', "no JSON text"),
        ('{"a":"\\u0041"}', "altered"),
    ],
)  # fmt: skip
def test_json_that_is_not_canonical_is_refused(text, word):
    inside = f'{{"digest":"x","fields":{text},"format":"{module.FORMAT}","format_version":1,"kind":"k"}}'
    header = json.dumps({"__metadata__": {"certbound": inside}}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    assert re.search(word, tamper.refused(len(header).to_bytes(8, "little") + header, word))
    # in the header itself
    outside = text.encode()
    tamper.refused(len(outside).to_bytes(8, "little") + outside, word)


def test_a_header_padded_otherwise_is_refused():
    data = to_bytes(Stored("k", {"a": "x"}))
    length = int.from_bytes(data[:8], "little")
    for extra in (b" " * 8, b"\n" * 8):
        longer = (length + 8).to_bytes(8, "little") + data[8:] + extra
        assert "altered" in tamper.refused(longer, "padding")


def test_nothing_is_allocated_for_shapes_that_are_lies():
    data = crafted({"t": {"data_offsets": [0, 2**31], "dtype": "F64", "shape": [2**28]}}, b"")
    tracemalloc.start()
    assert "cut off" in tamper.refused(data, "size")
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


# -- classes and files -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Toy(Saveable):
    """value <= 1; ``careless``: fields that it reads without writing them back."""

    kind: ClassVar[str] = "toy"
    value: float
    ball: Ball | None = None

    def verify(self, network_or_weights):
        if not self.value <= 1.0:
            raise CertificateError("toy: value above 1")
        return True

    def stored(self):
        return Stored(self.kind, {"value": self.value})

    @classmethod
    def restored(cls, stored):
        if "radius" in stored.fields:
            return cls(take(stored, "value", float), Ball([0.0], take(stored, "radius", float), 2))
        return cls(take(stored, "value", float))


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setattr(module, "_HOMES", {"toy": (__name__, "Toy")})
    return Toy


def test_save_and_load(toy, tmp_path):
    path = toy(0.5).save(tmp_path / "t.certificate")
    assert path == tmp_path / "t.certificate"
    assert path.read_bytes() == to_bytes(Stored("toy", {"value": 0.5}))
    again = load_certificate(str(path))
    assert type(again) is toy and again.value == 0.5
    assert toy(0.75).save(str(path)) == path  # replaced
    assert load_certificate(path).value == 0.75
    assert [p.name for p in tmp_path.iterdir()] == ["t.certificate"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_bad_paths(toy, tmp_path):
    for bad in (tmp_path, tmp_path / "none" / "t", str(tmp_path)):
        with pytest.raises(InputError, match="path"):
            toy(0.5).save(bad)
    for bad in (tmp_path, tmp_path / "none", ""):
        with pytest.raises(InputError, match="path"):
            load_certificate(bad)


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_nothing_is_half_written(toy, tmp_path, monkeypatch, name):
    path = toy(0.5).save(tmp_path / "t.certificate")
    before = path.read_bytes()

    def full(*_args):
        raise OSError(28, "No space left on device")

    if name == "fsync":
        monkeypatch.setattr(os, name, full)
    else:
        monkeypatch.setattr(Path, name, full)
    with pytest.raises(OSError, match="No space"):
        toy(0.75).save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["t.certificate"]


def test_it_is_on_the_disk_before_it_has_its_name(toy, tmp_path, monkeypatch):
    order = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append(("fsync", os.fstat(fd).st_size)), fsync(fd))[1])
    monkeypatch.setattr(
        Path, "replace", lambda self, to: (order.append(("replace", self.parent)), replace(self, to))[1]
    )
    path = toy(0.5).save(tmp_path / "t.certificate")
    assert order == [("fsync", path.stat().st_size), ("replace", tmp_path)]


def test_what_could_not_be_loaded_is_not_saved(toy, tmp_path):
    with pytest.raises(CertificateError, match="NaN"):
        toy(math.nan).save(tmp_path / "t")
    pair = AttackPair([[math.nan]], [[0.0]], [0], 0.1, 2.0, 0.0, "")
    with pytest.raises(CertificateError, match="'x' has entries"):
        pair.save(tmp_path / "t")
    assert not list(tmp_path.iterdir())


def test_files_of_other_content_are_refused(toy, tmp_path):
    path = tmp_path / "t"

    def load(stored):
        path.write_bytes(to_bytes(stored))
        return load_certificate(path)

    assert load(Stored("toy", {"value": 0.5})).value == 0.5
    assert load(Stored("toy", {"value": 2.0})).value == 2.0  # for verify to refuse
    with pytest.raises(CertificateError, match="unknown kind 'os'"):
        load(Stored("os", {"value": 0.5}))
    with pytest.raises(CertificateError, match="'value' is missing"):
        load(Stored("toy", {}))
    with pytest.raises(CertificateError, match="'value' is a int; needed float"):
        load(Stored("toy", {"value": 1}))
    with pytest.raises(CertificateError, match="not written as"):
        load(Stored("toy", {"value": 0.5, "unread": 1}))
    with pytest.raises(CertificateError, match="toy: radius"):  # the class's own check
        load(Stored("toy", {"value": 0.5, "radius": -1.0}))


def test_a_file_beyond_the_limit_is_not_read(toy, tmp_path, monkeypatch):
    path = toy(0.5).save(tmp_path / "t")
    monkeypatch.setattr(module, "MAX_FILE", path.stat().st_size - 1)
    monkeypatch.setattr(Path, "read_bytes", lambda self: pytest.fail("read"))
    with pytest.raises(CertificateError, match="at most"):
        load_certificate(path)
    with pytest.raises(CertificateError, match="bytes; needed"):
        from_bytes(path.open("rb").read())


def test_reading_fields():
    stored = Stored("toy", {"n": 1, "x": 1.5, "b": True, "s": "a", "i": "inf", "l": [1], "o": None})
    assert take(stored, "n", int) == 1 and take(stored, "x", float) == 1.5 and take(stored, "b", bool) is True
    assert take(stored, "i", str) == "inf" and take(stored, "i", float) == math.inf
    assert take(stored, "o", list, type(None)) is None and take(stored, "l", list, type(None)) == [1]
    assert take(stored, "s", int, float, str) == "a"
    for name, kind in [("b", int), ("n", float), ("n", bool), ("s", float), ("o", str), ("x", int), ("l", dict)]:
        with pytest.raises(CertificateError, match=f"toy: the field '{name}' is a"):
            take(stored, name, kind)
    with pytest.raises(CertificateError, match="needed float"):
        take(Stored("toy", {"x": math.nan}), "x", float)


def test_reading_arrays():
    arrays = {"t": np.ones((2, 3)), "n": np.arange(3), "bad": np.array([1.0, math.nan]), "far": np.array([math.inf])}
    stored = Stored("toy", {}, arrays)
    own = take_array(stored, "t", ndim=2)
    assert take_array(stored, "t", shape=(2, 3)).shape == (2, 3)
    arrays["t"][:] = 7.0
    assert np.all(own == 1.0) and not own.flags.writeable
    assert take_array(stored, "n", dtype=np.int64).tolist() == [0, 1, 2]
    assert np.isnan(take_array(stored, "bad", finite=False)[1])
    for name, options, word in [
        ("t", {"ndim": 1}, "needed 1 dim"),
        ("t", {"shape": (3, 2)}, "needed shape"),
        ("n", {}, "int64; needed float64"),
        ("bad", {}, "NaN"),
        ("far", {}, "infinite"),
        ("u", {}, "missing"),
    ]:
        with pytest.raises(CertificateError, match=word):
            take_array(stored, name, **options)
    with pytest.raises(CertificateError, match="unknown array 'far'"):
        finish(stored, fields=(), arrays=("t", "n", "bad"))
    with pytest.raises(CertificateError, match="unknown field 'z'"):
        finish(Stored("toy", {"z": 1, "a": 2}), fields=("a",))


def test_loading_and_verifying_need_no_torch_and_no_safetensors(tmp_path):
    net = as_network([np.eye(2)])
    pair = AttackPair([[0.75, 0.25]], [[0.5, 0.5]], [0], 0.25, math.inf, 0.219, net.digest)
    path = pair.save(tmp_path / "p.certificate")
    script = f"""
        import sys
        for name in ("torch", "safetensors", "scipy", "cvxpy", "autoattack", "pyautoattack"):
            sys.modules[name] = None
        import numpy as np
        import certbound
        assert certbound.load_certificate({str(path)!r}).verify([np.eye(2)])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False,
        cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert certbound.load_certificate is load_certificate


def test_kinds_are_where_the_table_says():
    for kind, (home, name) in module._HOMES.items():
        if kind in ("attack pair", "smooth point"):
            cls = getattr(importlib.import_module(home), name)
            assert issubclass(cls, Saveable) and cls.kind == kind


@settings(max_examples=300)
@given(data=st.binary(max_size=200))
def test_arbitrary_bytes_have_a_reason(data):
    tamper.refused(data, "random")
    size = len(data).to_bytes(8, "little")
    tamper.refused(size + data, "random header")


def test_a_field_that_changed_changes_the_digest():
    digests = set()
    for stored in (
        Stored("k", {"a": 1}, {"t": np.ones(2)}),
        Stored("l", {"a": 1}, {"t": np.ones(2)}),
        Stored("k", {"a": 2}, {"t": np.ones(2)}),
        Stored("k", {"b": 1}, {"t": np.ones(2)}),
        Stored("k", {"a": 1}, {"u": np.ones(2)}),
        Stored("k", {"a": 1}, {"t": np.ones((2, 1))}),
        Stored("k", {"a": 1}, {"t": np.ones(2).view(np.int64)}),
        Stored("k", {"a": 1}, {"t": np.array([1.0, 2.0])}),
    ):
        data = to_bytes(stored)
        length = int.from_bytes(data[:8], "little")
        digests.add(json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["certbound"])["digest"])
    assert len(digests) == 8 and all(len(d) == 64 for d in digests)


def test_dataclasses_of_certificates_stay_frozen():
    pair = AttackPair([[0.5]], [[0.5]], [0], 0.25, math.inf, 0.0, "")
    with pytest.raises(dataclasses.FrozenInstanceError):
        pair.value = 1.0


def test_depth_is_refused_whatever_the_recursion_limit():
    text = ('{"a":' * 20_000 + "1" + "}" * 20_000).encode()
    before = sys.getrecursionlimit()
    try:
        sys.setrecursionlimit(1_000_000)
        assert "nested" in tamper.refused(len(text).to_bytes(8, "little") + text, "depth")
    finally:
        sys.setrecursionlimit(before)
