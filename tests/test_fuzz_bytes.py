"""The corpus of fuzz_bytes.py and mutations of it, without a fuzzer: readers raise certbound's own errors only."""

from __future__ import annotations

import io
import os
import struct
import tokenize
import zlib

import fuzz_bytes
import numpy as np
import pytest
import tamper
import torch
from budget import network_settings
from hypothesis import given, settings
from hypothesis import strategies as st

from certbound.certificate import from_bytes
from certbound.errors import InputError
from certbound.io import npy
from certbound.io.weights_file import load_weights

EXAMPLES = {"certificate": 4, "fields": 4, "npy": 4, "safetensors": 4, "state_dict": 3, "onnx": 4}
"""Times the examples of a property test of networks; one of a state dict takes 2 ms."""

DAMAGED_HEADER = b"\x93NUMPY\x01\x00\x16\x00{'descr': '<f8', (   \n" + b"\0" * 16
"""Found by the fuzzer: numpy's reader raises tokenize.TokenError."""


@st.composite
def mutated(draw, target):
    """A file of the corpus with bytes altered, inserted, removed, doubled, or cut off."""
    data = bytearray(draw(st.sampled_from(fuzz_bytes.corpus(target))))
    for _ in range(draw(st.integers(1, 4))):
        if not data:
            break
        i = draw(st.integers(0, len(data) - 1))
        how = draw(st.sampled_from(["bit", "byte", "insert", "remove", "cut", "double"]))
        if how == "bit":
            data[i] ^= 1 << draw(st.integers(0, 7))
        elif how == "byte":
            data[i] = draw(st.sampled_from([0, 1, 0x20, 0x7F, 0x80, 0xFF, *b'0129-.eE[]{}",:']))
        elif how == "insert":
            data[i:i] = draw(st.binary(min_size=1, max_size=8))
        elif how == "remove":
            del data[i : i + draw(st.integers(1, 8))]
        elif how == "cut":
            del data[i:]
        else:
            data[i:i] = data[i : i + draw(st.integers(1, 64))]
    return bytes(data)


@pytest.mark.parametrize("target", fuzz_bytes.TARGETS)
def test_the_corpus(target):
    seeds = fuzz_bytes.corpus(target)
    assert len(seeds) >= 2
    for data in seeds:
        fuzz_bytes.TARGETS[target](data)


@pytest.mark.filterwarnings("ignore")  # of numpy about invalid literals in damaged headers
@pytest.mark.parametrize("target", fuzz_bytes.TARGETS)
def test_mutations_of_the_corpus(target):
    @settings(max_examples=EXAMPLES[target] * network_settings.max_examples, deadline=None)
    @given(data=mutated(target))
    def check(data):
        fuzz_bytes.TARGETS[target](data)

    check()


def test_what_was_found():
    with pytest.raises(tokenize.TokenError):
        np.load(io.BytesIO(DAMAGED_HEADER))
    fuzz_bytes.TARGETS["npy"](DAMAGED_HEADER)


def test_the_harness_notices(monkeypatch):
    """A reader that raises something else, and one that takes what nobody wrote."""
    data = fuzz_bytes.corpus("npy")[0]
    monkeypatch.setattr(npy, "load_samples", lambda _path: {}["nothing"])
    with pytest.raises(KeyError):
        fuzz_bytes.arrays(data)
    lenient = from_bytes(fuzz_bytes.corpus("certificate")[0])
    monkeypatch.setattr(fuzz_bytes, "from_bytes", lambda _data: lenient)
    with pytest.raises(AssertionError, match="written otherwise"):
        fuzz_bytes.certificate(b"anything")


# AssertionError and struct.error are what torch.load raised on mutations of the corpus
@pytest.mark.parametrize("error", [zlib.error, RuntimeError, TypeError, RecursionError, AssertionError, struct.error])
def test_whatever_numpy_and_torch_raise_is_a_bad_file(error, monkeypatch, tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.eye(2))

    def broken(*_args, **_options):
        raise error("broken")

    monkeypatch.setattr(np, "load", broken)
    with pytest.raises(InputError, match="broken"):
        npy.load_arrays(path)
    monkeypatch.setattr(torch, "load", broken)
    with pytest.raises(InputError, match="broken"):
        load_weights(path.rename(tmp_path / "w.pt"))


def test_valid_certificates_with_one_byte_altered_are_refused_by_the_harness_too():
    data = fuzz_bytes.corpus("certificate")[0]
    rng = np.random.default_rng(int(os.environ.get("SEED", "0")))
    for i in rng.integers(0, len(data), 200):
        tamper.refused(data[:i] + bytes([data[i] ^ 4]) + data[i + 1 :], f"byte {i}")
