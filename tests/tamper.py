"""Every altered file of a certificate is refused: for the tests of all kinds of certificates."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from certbound.certificate import Stored, from_bytes, load_certificate, to_bytes
from certbound.errors import CertificateError

SMALL = 3_000
"""Bytes up to which all eight single-bit flips of every byte are tried; beyond it one other random value a byte."""


@dataclass(frozen=True)
class Tried:
    """How many altered files were refused."""

    flips: int
    cuts: int
    appended: int


def every_flip_refused(certificate, network, folder: Path, *, seed: int = 0) -> Tried:
    """The whole file loads and verifies; every flip, every truncation, and every appended byte is refused.

    Flips: of files up to SMALL bytes all 8 single-bit flips of every byte, of larger ones one random other value of
    every byte. Truncations: to every length from 0. Each refusal is a CertificateError with a reason.
    """
    path = certificate.save(folder / "whole.certificate")
    data = path.read_bytes()
    again = load_certificate(path)
    assert type(again) is type(certificate)
    assert again.verify(network)
    assert to_bytes(again.stored()) == data

    rng = np.random.default_rng(seed)
    flips = cuts = appended = 0
    for i, byte in enumerate(data):
        others = [byte ^ (1 << k) for k in range(8)] if len(data) <= SMALL else [byte ^ int(rng.integers(1, 256))]
        for other in others:
            assert other != byte
            refused(data[:i] + bytes([other]) + data[i + 1 :], f"byte {i}: {byte} -> {other}")
            flips += 1
    for length in range(len(data)):
        refused(data[:length], f"cut to {length}")
        cuts += 1
    for extra in (b"\0", b" ", b"\n", b"}", data):
        refused(data + extra, f"{len(extra)} bytes appended")
        refused(extra + data, f"{len(extra)} bytes before it")
        appended += 2
    # what load_certificate does with such a file, a few times: it costs more
    for i in rng.integers(0, len(data), 20):
        path.write_bytes(data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :])
        try:
            load_certificate(path)
        except CertificateError as error:
            assert str(error)
        else:
            raise AssertionError(f"loaded with byte {i} altered")
    return Tried(flips, cuts, appended)


def refused(data: bytes, what: str) -> str:
    """The reason for which these bytes are refused."""
    try:
        from_bytes(data)
    except CertificateError as error:
        assert str(error).strip(), what
        return str(error)
    raise AssertionError(f"accepted: {what}")


def forged(certificate, folder: Path, *, arrays=None, drop=(), **fields):
    """The certificate of a file with other fields or arrays and all digests computed anew; may raise on loading."""
    stored = certificate.stored()
    changed = {**stored.fields, **fields}
    tensors = {**stored.arrays, **(arrays or {})}
    kept = Stored(
        stored.kind,
        {k: v for k, v in changed.items() if k not in drop},
        {k: v for k, v in tensors.items() if k not in drop},
    )
    path = folder / "forged.certificate"
    path.write_bytes(to_bytes(kept))
    return load_certificate(path)


def raw(about: dict, tensors: dict, data: bytes = b"", *, pad: bool = True) -> bytes:
    """A safetensors file with this metadata and these header entries, as they are."""
    header = json.dumps({"__metadata__": {"certbound": json.dumps(about)}, **tensors}).encode()
    header += b" " * (-len(header) % 8 if pad else 0)
    return len(header).to_bytes(8, "little") + header + data
