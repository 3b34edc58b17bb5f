"""``certbound verify``: check a certificate file against the network it is about."""

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from certbound.commands.options import Subparsers, add_command, add_model
from certbound.types import SCHEMA_VERSION

if TYPE_CHECKING:
    from certbound.arrays import F64
    from certbound.bound import Bound
    from certbound.certificate import Saveable

logger = logging.getLogger(__name__)

_EXAMPLES = """\
exit codes: 0 verified; 1 refused: the file is damaged, or it does not prove what it says of this network (the reason is
shown); 2 bad input, also where no network is given; 3 a package for reading the network is missing.
Verifying itself needs numpy only. What "verified" promises depends on the trust word of the claim: see GUARANTEES.md.

examples:
  certbound verify bound.certificate --model net.py:make --weights w.safetensors
  certbound verify bound.certificate --model net.npz
  certbound verify bound.certificate --model net.onnx
  certbound verify norm.certificate --model W.npy"""


@dataclass(frozen=True)
class VerifyReport:
    """What a certificate claims, and whether it is proved. ``verified`` is None where there was no network."""

    file: str
    kind: str
    bound: Bound | None
    verified: bool | None
    reason: str

    @property
    def exit_code(self) -> int:
        """0 if verified, 1 if refused, 2 if there was nothing to verify it against."""
        return 2 if self.verified is None else 0 if self.verified else 1

    def __str__(self) -> str:
        word = {True: "verified", False: "REFUSED", None: "not verified"}[self.verified]
        lines = [f"{self.file}: {self.kind or 'no certificate'}"]
        if self.bound is not None:
            lines.append(str(self.bound))
        return "\n".join([*lines, word if not self.reason else f"{word}: {self.reason}"])

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with ``schema_version``."""
        return {
            "schema_version": SCHEMA_VERSION,
            "file": self.file,
            "kind": self.kind,
            "verified": self.verified,
            "reason": self.reason,
            "bound": None if self.bound is None else self.bound.to_dict(),
        }


def add(subparsers: Subparsers) -> None:
    """Declare the options."""
    parser = add_command(
        subparsers,
        "verify",
        help="check a certificate file against a network",
        description="Prove a saved certificate anew, without the solver or the attack that found it.",
        examples=_EXAMPLES,
    )
    parser.add_argument("file", metavar="FILE", help="what certificate.save(path) wrote")
    add_model(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> VerifyReport:
    """Load the certificate, then the network, then verify."""
    from certbound.certificate import load_certificate
    from certbound.errors import CertificateError, InputError, NumericalError

    name = Path(args.file).name
    kind, bound = "", None
    try:
        certificate = load_certificate(args.file)
        kind = certificate.kind
        try:
            bound = getattr(certificate, "bound", None)
        except InputError as error:  # NaN, a negative norm: no bound has such a value
            raise CertificateError(str(error)) from error
        if args.model is None and args.weights is None:
            return VerifyReport(name, kind, bound, None, "the file is whole; pass --model or --weights to verify it")
        model = _model(args, certificate)
        logger.info("verifying %s", name)
        certificate.verify(model)
    except (CertificateError, NumericalError) as error:
        return VerifyReport(name, kind, bound, False, str(error))
    return VerifyReport(name, kind, bound, True, "")


def _model(args: argparse.Namespace, certificate: Saveable) -> object:
    """What the certificate is about: a network, or for a norm the matrix of the model that has its digest."""
    from certbound.io.factory import is_onnx, load_model

    spec, weights = args.model, args.weights
    plain = spec is not None and ".py:" not in spec and not spec.endswith(".py") and not is_onnx(spec)
    if plain and weights is None:
        spec, weights = None, spec  # --model W.npy: a file of weights
    if certificate.kind == "operator norm":
        return _matrix(spec, weights, args.layers, str(getattr(certificate, "subject", "")))
    return load_model(spec, weights, layers=args.layers)


def _matrix(spec: str | None, weights: str | None, keys: list[str] | None, subject: str) -> F64:
    from certbound.arrays import as_float64, digest
    from certbound.errors import CertificateError
    from certbound.io.factory import load_model
    from certbound.io.layers import named_matrices
    from certbound.io.npy import load_arrays
    from certbound.io.weights_file import load_weights

    if spec is not None or weights is None:
        named = named_matrices(load_model(spec, weights, layers=keys))
    else:  # no order is needed here
        plain = Path(weights).suffix.lower() in (".npy", ".npz")
        every = load_arrays(weights, "model") if plain else load_weights(weights, "model").arrays
        named = {n: as_float64(a, n) for n, a in every.items() if a.ndim == 2 and n in (keys or every)}
    digests = {name: digest(W) for name, W in named.items()}
    for name, own in digests.items():
        if own == subject:
            logger.info("the certificate is about %s", name)
            return named[name]
    listed = ", ".join(f"{name} {own!r}" for name, own in list(digests.items())[:8]) or "no matrices"
    raise CertificateError(f"operator norm: it is about the matrix {subject!r}; the model has {listed}")
