"""Fuzzing of everything that reads bytes from a file: certificates, .npy and .npz, safetensors, state dicts, ONNX.

    python tests/fuzz_bytes.py TARGET [libFuzzer options, for instance -max_total_time=60 -seed=1]

A finding is any exception but certbound's own, a hang (-timeout), memory beyond -rss_limit_mb, or certificate bytes
that are accepted although they are not those that would be written. Needs ``pip install atheris``; test_fuzz_bytes.py
replays the corpus and mutations of it without.
"""

from __future__ import annotations

import atexit
import io
import json
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    import atheris

    with atheris.instrument_imports(include=["certbound", "numpy.lib", "zipfile", "json", "tokenize"]):
        import certbound.attacks.pair
        import certbound.io.npy
        import certbound.io.onnx_file
        import certbound.io.weights_file
        import certbound.lipschitz.sampled  # noqa: F401  # imported here, they are instrumented

import numpy as np

from certbound.attacks.pair import AttackPair
from certbound.certificate import FORMAT, Saveable, Stored, from_bytes, to_bytes
from certbound.errors import CertboundError, CertificateError
from certbound.io import npy
from certbound.io.onnx_file import OnnxLimits, load_onnx
from certbound.io.weights_file import load_weights
from certbound.lipschitz.sampled import SmoothPoint
from certbound.network import Ball

_FOLDER = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None, prefix="certbound-fuzz-"))
if __name__ != "__main__":  # a fuzzer's findings stay
    atexit.register(shutil.rmtree, _FOLDER, ignore_errors=True)


def certificate(data: bytes) -> None:
    """from_bytes of the bytes, of them behind their own length, and as the metadata of a file."""
    header = json.dumps({"__metadata__": {"certbound": data.decode("latin-1")}}).encode()
    for candidate in (data, len(data).to_bytes(8, "little") + data, len(header).to_bytes(8, "little") + header):
        try:
            stored = from_bytes(candidate)
        except CertificateError as error:
            assert str(error)
        else:
            assert to_bytes(stored) == candidate, "accepted, and written otherwise"


def fields(data: bytes) -> None:
    """What each kind makes of any fields; the first byte chooses the kind and the arrays."""
    try:
        given = json.loads(data[1:])
    except (ValueError, RecursionError):
        return
    if not isinstance(given, dict):
        return
    arrays = {n: a for i, (n, a) in enumerate(_ARRAYS.items()) if data[0] >> (i + 1) & 1}
    kind: type[Saveable] = (AttackPair, SmoothPoint)[data[0] & 1]
    try:
        stored = from_bytes(to_bytes(Stored(kind.kind, given, arrays)))
        made = kind.restored(stored)
        to_bytes(made.stored())
        made.verify([[[1.0, -1.0]], [[2.0], [0.5]]])
    except CertboundError as error:
        assert str(error)


def arrays(data: bytes) -> None:
    """A .npy or .npz file of any content."""
    path = _FOLDER / "a.npz"
    path.write_bytes(data)
    for read in (npy.load_arrays, npy.load_matrices, npy.load_samples):
        try:
            read(path)
        except CertboundError as error:
            assert str(error)


def safetensors(data: bytes) -> None:
    """A .safetensors file of any content."""
    _weights(_FOLDER / "w.safetensors", data)
    _weights(_FOLDER / "w.safetensors", len(data).to_bytes(8, "little") + data)


def state_dict(data: bytes) -> None:
    """A torch file of any content."""
    _weights(_FOLDER / "w.pt", data)


def _weights(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    try:
        load_weights(path)
    except CertboundError as error:
        assert str(error)


_SMALL = OnnxLimits(elements=2**20, total_elements=2**22, work=10**8)
"""A mutated length may ask for as much as it is allowed, which takes seconds with the limits of a real model."""


def onnx(data: bytes) -> None:
    """A .onnx file of any content."""
    path = _FOLDER / "m.onnx"
    path.write_bytes(data)
    try:
        load_onnx(path, input_shape=(2, 4, 4) if data[-1:] == b"\1" else None, limits=_SMALL)
    except CertboundError as error:
        assert str(error)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "certificate": certificate, "fields": fields, "npy": arrays, "safetensors": safetensors, "state_dict": state_dict,
    "onnx": onnx,
}  # fmt: skip

_PAIR = AttackPair([[0.75, 0.25]], [[0.5, 0.5]], [0], 0.25, 2.0, 0.21, "a" * 16, "m")
_POINT = SmoothPoint(
    (Fraction(1, 3), Fraction(-2)), 2.0, (0, 1), 1.0, ((1, 0),), "a" * 16, Ball([0.0, 0.0], 3.0, 2), np.ones(2)
)  # fmt: skip
_ARRAYS = {
    "x": _PAIR.x, "x_adv": _PAIR.x_adv, "y": _PAIR.y, "center": np.zeros(2), "direction": np.array([1.0, 0.5])
}  # fmt: skip


def corpus(target: str) -> list[bytes]:
    """Valid inputs, and some that are nearly so, to start from."""
    if target == "certificate":
        about = {"format": FORMAT, "format_version": 1, "kind": "k", "digest": "0" * 64}
        empty = {**about, "fields": {"a": [1, 1.5, "inf", None]}}
        whole = [to_bytes(s) for s in (_PAIR.stored(), _POINT.stored(), Stored("k", {}, {"b": np.array([True])}))]
        return [*whole, *(data[8:] for data in whole), json.dumps(empty).encode()]
    if target == "fields":
        pair, point = (json.dumps(dict(c.stored().fields)).encode() for c in (_PAIR, _POINT))
        return [bytes([0b001110]) + pair, bytes([0b110001]) + point, b"\0{}"]
    if target == "npy":
        plain = [_npy(a) for a in (np.eye(2), np.ones(3, np.float32), np.array([(1, 2.0)], "i4,f8"))]
        samples = _npz({"x": np.eye(2), "y": np.array([0, 1])}, compressed=True)
        return [*plain, _npz({"W1": np.eye(2), "b1": np.ones(2)}), samples]
    if target == "safetensors":
        from safetensors.numpy import save

        whole = [save({"0.weight": np.eye(2), "0.bias": np.ones(2, np.float32)}), save({"w": np.ones(2, np.int8),
                 "w_scale": np.ones(1)})]  # fmt: skip
        return [*whole, *(data[8:] for data in whole)]
    if target == "onnx":
        return [m.SerializeToString() for m in _onnx_models()]
    import torch

    made = []
    for old in (False, True):
        stream = io.BytesIO()
        state = {"0.weight": torch.eye(2), "0.bias": torch.ones(2, dtype=torch.bfloat16)}
        torch.save(state, stream, _use_new_zipfile_serialization=not old)
        made.append(stream.getvalue())
    return made


def _onnx_models() -> list[Any]:
    """A chain, a convolutional net, attention with the parts of LayerNorm and GELU, shapes that are computed."""
    from onnx import TensorProto, helper, numpy_helper

    def model(shape: list[Any], nodes: list[Any], raw: bool = True, opset: int = 17, **arrays: Any) -> Any:
        given = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
        made = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
        kept = [
            numpy_helper.from_array(a, n) if raw else helper.make_tensor(
                n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape, a.reshape(-1).tolist())
            for n, a in arrays.items()
        ]  # fmt: skip
        graph = helper.make_graph(nodes, "g", [given], [made], kept)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)

    node = helper.make_node
    f4 = np.float32
    chain = [node("Gemm", ["x", "w", "b"], ["h"], transB=1), node("Relu", ["h"], ["y"])]
    conv = [
        node("Conv", ["x", "k"], ["c"], pads=[1, 1, 1, 1], strides=[2, 2]),
        node("BatchNormalization", ["c", "s", "s", "s", "s"], ["n"], epsilon=0.5),
        node("LeakyRelu", ["n"], ["r"], alpha=0.1), node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2], ceil_mode=1),
        node("AveragePool", ["p"], ["a"], kernel_shape=[1, 1], auto_pad="SAME_UPPER"), node("Flatten", ["a"], ["y"]),
    ]  # fmt: skip
    parts = [
        node("ReduceMean", ["x"], ["m"], axes=[-1]), node("Sub", ["x", "m"], ["d"]), node("Mul", ["d", "d"], ["q"]),
        node("ReduceMean", ["q"], ["v"], axes=[-1]), node("Add", ["v", "eps"], ["e"]), node("Sqrt", ["e"], ["t"]),
        node("Div", ["d", "t"], ["l"]), node("Transpose", ["l"], ["lt"], perm=[0, 2, 1]),
        node("MatMul", ["l", "lt"], ["z"]), node("Softmax", ["z"], ["o"]), node("MatMul", ["o", "l"], ["u"]),
        node("Div", ["u", "r2"], ["g"]), node("Erf", ["g"], ["er"]), node("Add", ["er", "one"], ["e1"]),
        node("Mul", ["u", "e1"], ["ue"]), node("Mul", ["ue", "half"], ["y"]),
    ]  # fmt: skip
    shapes = [
        node("Shape", ["x"], ["s"]), node("Slice", ["s", "zero", "one"], ["n"]),
        node("Concat", ["n", "minus"], ["t"], axis=0), node("Reshape", ["x", "t"], ["r"]),
        node("Split", ["r"], ["p", "q"], axis=1), node("Gather", ["p", "minus"], ["g"], axis=1),
        node("Pad", ["q", "pads"], ["w"], mode="reflect"), node("Concat", ["g", "w", "p"], ["c"], axis=1),
        node("Clip", ["c", "low"], ["y"]),
    ]  # fmt: skip
    whole = {n: np.array([v]) for n, v in (("zero", 0), ("one", 1), ("minus", -1))}
    return [
        model([1, 3], chain, w=np.eye(2, 3, dtype=f4), b=np.ones(2, f4)),
        model(["n", 2, 4, 4], conv, False, k=np.ones((2, 2, 3, 3), f4), s=np.ones(2, f4)),
        model([1, 2, 4], parts, eps=f4(1e-5), r2=f4(2**0.5), one=f4(1), half=f4(0.5)),
        model([1, 4, 2], shapes, False, **whole, pads=np.array([0, 1, 0, 2]), low=np.float32(-1.0)),
    ]


def _npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def _npz(named: dict[str, np.ndarray], *, compressed: bool = False) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED) as archive:
        for name, array in named.items():
            archive.writestr(f"{name}.npy", _npy(array))
    return stream.getvalue()


def main() -> None:
    """Run libFuzzer on one target, from a corpus made here."""
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"usage: python tests/fuzz_bytes.py {'|'.join(TARGETS)} [libFuzzer options]")
    target = sys.argv[1]
    seeds = _FOLDER / f"corpus-{target}"
    seeds.mkdir()
    for i, data in enumerate(corpus(target)):
        (seeds / str(i)).write_bytes(data)
    given = [o for o in sys.argv[2:] if o.startswith("-")]
    defaults = ["-timeout=20", "-rss_limit_mb=6000", "-max_len=4096", f"-artifact_prefix={_FOLDER}/"]
    atheris.Setup([sys.argv[0], *defaults, *given, str(seeds)], TARGETS[target])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
