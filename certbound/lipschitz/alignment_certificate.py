"""Certificates of alignment covers: what proves each block, checked without a solver or an SVD.

``Lip_p(f) <= value`` where value is the product over the blocks of a cover: ``‖W^l‖_p`` for one layer, and for two
``max_D ‖W^{l+1} D W^l‖_p``, proved by enumeration, the decoupled bound, multipliers, or the product of both norms.

Source: certbound theory, sections 3 and 6.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np

from certbound.arrays import F64, I64, frozen
from certbound.bound import Bound, Claim, multiply_up
from certbound.certificate import Saveable, Stored, finish, take, take_array
from certbound.errors import CertificateError
from certbound.lipschitz.alignment import AlignmentPair
from certbound.lipschitz.alignment_rigorous import PairEvidence, Truncation, check_pair
from certbound.lipschitz.pattern_pair_verified import PatternProof
from certbound.lipschitz.product import error_norm, layer_bound, proves_norm, read_norms
from certbound.network import Network, as_network
from certbound.rounding import check_arithmetic
from certbound.types import Quantity, Rigor, Sense

SOURCE = "Barsbey et al., ICLR 2026, Theorem 3.2"
_METHODS = ("enumerated", "decoupled", "multipliers", "none")
_PAIR_FIELDS = ("core", "how", "layer", "norms", "rho", "value")
_FIELDS = ("blocks", "norm", "norms", "pairs", "subject", "value")


@dataclass(frozen=True, eq=False)
class AlignmentCertificate(Saveable):
    """``Lip_p(f) <= value``, by a cover of the chain with blocks of one or two layers.

    ``norms``: claimed bounds of ``‖W^l‖_p``, one a layer; ``blocks``: (first layer, length); ``pairs``: evidence for
    each block of two, in order.

    >>> from certbound.lipschitz.alignment import lipschitz_alignment
    >>> weights = [[[1.0], [-1.0]], [[1.0, 1.0]]]
    >>> certificate = lipschitz_alignment(weights, "inf", rigor="rigorous").certificate
    >>> certificate.pairs[0].core.how, certificate.blocks, certificate.verify(weights)
    ('enumerated', ((0, 2),), True)
    """

    kind: ClassVar[str] = "alignment cover"

    subject: str
    norm: float
    value: float
    norms: tuple[float, ...]
    blocks: tuple[tuple[int, int], ...]
    pairs: tuple[PairEvidence, ...] = ()

    @classmethod
    def of(
        cls,
        network: Network,
        norm: float,
        value: float,
        pairs: Sequence[AlignmentPair],
        blocks: tuple[tuple[int, int], ...],
    ) -> AlignmentCertificate:
        """From a rigorous cover of the network."""
        chain = network.chain
        norms = tuple(
            layer_bound(w, norm, "", Rigor.RIGOROUS, e).value for w, e in zip(chain.weights, chain.errors, strict=True)
        )
        evidence = [pairs[first].evidence for first, length in blocks if length == 2]
        if any(e is None for e in evidence):
            raise CertificateError(f"{cls.kind}: a numerical pair proves nothing")
        return cls(network.digest, norm, value, norms, blocks, tuple(cast("list[PairEvidence]", evidence)))

    @property
    def bound(self) -> Bound:
        """The claim, as a bound that carries this certificate."""
        claim = Claim(Quantity.LIPSCHITZ, self.norm, self.norm, subject=self.subject)
        return Bound(self.value, claim, Sense.UPPER, Rigor.RIGOROUS, "alignment cover", SOURCE, certificate=self)

    def verify(self, network_or_weights: object) -> bool:
        """Prove every block anew and multiply; CertificateError with the reason if the value is not proved."""
        check_arithmetic()
        if self.norm not in (2.0, math.inf) or not self.value >= 0.0:
            raise self._refusal(f"norm {self.norm!r} with value {self.value!r} is no claim")
        network = as_network(network_or_weights)
        if network.digest != self.subject:
            raise self._refusal(f"it is about the network {self.subject!r}, not {network.digest!r}")
        chain = network.chain
        if len(self.norms) != len(chain.weights):
            raise self._refusal(f"{len(self.norms)} norms for {len(chain.weights)} layers")
        for i, (W, error, value) in enumerate(zip(chain.weights, chain.errors, self.norms, strict=True)):
            if not proves_norm(W, self.norm, value, error_norm(error, self.norm)):
                raise self._refusal(f"{value!r} is not proved to bound the norm of layer {i}")
        evidence = list(self.pairs)
        after, factors = 0, list[float]()
        for first, length in self.blocks:
            if first != after or length not in (1, 2) or first + length > len(chain.weights):
                raise self._refusal(f"the blocks {self.blocks} are no cover of {len(chain.weights)} layers")
            after = first + length
            if length == 1:
                factors.append(self.norms[first])
                continue
            if not evidence or evidence[0].layer != first:
                raise self._refusal(f"no evidence for layers {first} and {first + 1}")
            pair = evidence.pop(0)
            check_pair(
                pair,
                (chain.weights[first + 1], chain.weights[first]),
                (chain.errors[first + 1], chain.errors[first]),
                self.norm,
                (self.norms[first + 1], self.norms[first]),
            )
            factors.append(pair.value)
        if after != len(chain.weights) or evidence:
            raise self._refusal(f"the blocks {self.blocks} and their evidence do not cover the network once")
        total = factors[0]
        for factor in factors[1:]:
            total = multiply_up(total, factor)
        if not total <= self.value:
            raise self._refusal(f"the blocks multiply to {total!r}, {self.value!r} is claimed")
        return True

    def stored(self) -> Stored:
        """For :func:`certbound.certificate.to_bytes`."""
        pairs: list[dict[str, Any]] = []
        arrays: dict[str, F64 | I64] = {}
        for e in self.pairs:
            cut = e.truncation
            pairs.append(
                {
                    "core": e.core.value,
                    "how": e.core.how,
                    "layer": e.layer,
                    "norms": None if cut is None else list(cut.norms),
                    "rho": e.core.rho,
                    "value": e.value,
                }
            )
            if e.core.t is not None:
                arrays[f"t.{e.layer}"] = e.core.t
            if cut is not None:
                arrays[f"left.{e.layer}"], arrays[f"right.{e.layer}"] = cut.left, cut.right
        fields = {
            "blocks": [list(b) for b in self.blocks],
            "norm": self.norm,
            "norms": list(self.norms),
            "pairs": pairs,
            "subject": self.subject,
            "value": self.value,
        }
        return Stored(self.kind, fields, arrays)

    @classmethod
    def restored(cls, stored: Stored) -> AlignmentCertificate:
        """From a file; CertificateError names the field that is wrong."""
        norm = take(stored, "norm", float)
        blocks: list[tuple[int, int]] = []
        for block in take(stored, "blocks", list):
            if not (isinstance(block, list) and len(block) == 2 and all(type(v) is int for v in block)):
                raise CertificateError(f"{cls.kind}: {block!r} is no block (first layer, length)")
            blocks.append((int(block[0]), int(block[1])))
        pairs: list[PairEvidence] = []
        names: list[str] = []
        for given in take(stored, "pairs", list):
            if not isinstance(given, dict):
                raise CertificateError(f"{cls.kind}: {str(given)[:80]!r} is no pair")
            one = Stored(cls.kind, cast("dict[str, Any]", given), stored.arrays)
            finish(one, fields=_PAIR_FIELDS, arrays=tuple(stored.arrays))
            pair, used = _pair(one, norm)
            pairs.append(pair)
            names += used
        finish(stored, fields=_FIELDS, arrays=names)
        return cls(
            take(stored, "subject", str), norm, take(stored, "value", float), read_norms(stored, "norms"),
            tuple(blocks), tuple(pairs),
        )  # fmt: skip

    def _refusal(self, reason: str) -> CertificateError:
        return CertificateError(f"{self.kind}: {reason}")


def _pair(one: Stored, norm: float) -> tuple[PairEvidence, list[str]]:
    """One pair's evidence and the names of the arrays that it uses."""
    layer, how = take(one, "layer", int), take(one, "how", str)
    if how not in _METHODS:
        raise CertificateError(f"{one.kind}: unknown method {how[:80]!r}")
    t, names = None, list[str]()
    if f"t.{layer}" in one.arrays:
        t = frozen(take_array(one, f"t.{layer}", ndim=1))
        names.append(f"t.{layer}")
    truncation = None
    if take(one, "norms", list, type(None)) is not None:
        norms = read_norms(one, "norms")
        if len(norms) != 4:
            raise CertificateError(f"{one.kind}: {len(norms)} norms of a truncation; needed 4")
        rows: dict[str, Any] = {"ndim": 1, "dtype": np.int64} if math.isinf(norm) else {"ndim": 2}
        left, right = (take_array(one, f"{side}.{layer}", **rows) for side in ("left", "right"))
        names += [f"left.{layer}", f"right.{layer}"]
        truncation = Truncation(left, right, (norms[0], norms[1], norms[2], norms[3]))
    core = PatternProof(how, take(one, "core", float), t, take(one, "rho", float))
    return PairEvidence(layer, take(one, "value", float), core, truncation), names
