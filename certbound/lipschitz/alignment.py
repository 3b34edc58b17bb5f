"""Inter-layer alignment ``A_p(l)`` and the best cover of a chain by blocks of one or two layers.

``A_p(l) = max_D ‖W_k^{l+1} D W_k^l‖_p / (‖W^{l+1}‖_p ‖W^l‖_p) + R_p(l)``, and
``max_D ‖W^{l+1} D W^l‖_p <= A_p(l) ‖W^{l+1}‖_p ‖W^l‖_p``. Truncations ``W = W_k + E``: best rank k (p = 2),
the k rows of largest ℓ1 norm (p = ∞). Remainder ``R_p = (‖W_k^{l+1}‖‖E^l‖ + ‖E^{l+1}‖‖W^l‖)/(‖W^{l+1}‖‖W^l‖)``
or with the roles exchanged, whichever is smaller; for p = ∞ output rows compete instead of adding up:
``max(core + ‖W_k^{l+1}‖‖E^l‖, ‖E^{l+1}‖‖W^l‖)``.

Source: Barsbey et al., ICLR 2026, Theorem 3.2; certbound theory, section 3.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from certbound import text
from certbound.arrays import F64
from certbound.bound import Bound, Claim, Result, compose, multiply_up
from certbound.compressibility import check_k
from certbound.errors import InputError
from certbound.lipschitz.pair_sdp import pair_sdp_2
from certbound.lipschitz.pattern_pair import active_hidden, fits, max_pattern_norm
from certbound.lipschitz.product import layer_bound
from certbound.network import as_network
from certbound.norms.dense import check_rigor, induced_norm
from certbound.types import Quantity, Rigor, Sense, Status, norm_name, parse_norm

if TYPE_CHECKING:
    from certbound.lipschitz.alignment_rigorous import PairEvidence

MAX_PATTERNS = 2**20
_SOURCE = "Barsbey et al., ICLR 2026, Theorem 3.2"


@dataclass(frozen=True)
class AlignmentPair:
    """Alignment of layers ``layer`` and ``layer + 1`` (0-based).

    ``value``: the factor A used, <= 1; ``exact``: the pattern maximum inside was enumerated (it may still be
    of truncated matrices: ``remainder`` > 0); ``core``: max_D of the truncated pair, divided by both norms;
    ``remainder``: R_p; ``k``: entries kept; ``pair_norm``: the bound of ``max_D ‖W^{l+1} D W^l‖_p``; ``sdp``: the core
    is the repaired optimum of the pair's SDP. Rigorous: ``value`` is ``pair_norm`` over lower bounds of both norms, and
    ``evidence`` proves ``pair_norm``.
    """

    layer: int
    value: float
    exact: bool
    core: float
    remainder: float
    k: int
    norm: float
    pair_norm: float
    sdp: bool = False
    rigor: Rigor = Rigor.NUMERICAL
    evidence: PairEvidence | None = field(default=None, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {name: text.json_number(getattr(self, name)) for name in ("value", "core", "remainder", "pair_norm")} | {
            "layer": self.layer,
            "exact": self.exact,
            "k": self.k,
            "norm": text.json_number(self.norm),
            "rigor": str(self.rigor),
        }


@dataclass(frozen=True)
class Cover:
    """The chain as blocks ``(first layer, number of layers)``, and the Lipschitz bound it gives."""

    blocks: tuple[tuple[int, int], ...]
    value: float


def truncate(W: F64, k: int, norm: float) -> tuple[F64, F64]:
    """``(W_k, E)`` with ``W = W_k + E``: best rank k (p = 2) or the k rows of largest ℓ1 norm (p = ∞)."""
    if k >= (W.shape[0] if math.isinf(norm) else min(W.shape)):
        return W, np.zeros_like(W)
    if math.isinf(norm):
        kept = np.zeros_like(W)
        rows = np.argsort(-np.abs(W).sum(axis=1), kind="stable")[:k]
        kept[rows] = W[rows]
    else:
        u, s, vt = np.linalg.svd(W, full_matrices=False)
        kept = (u[:, :k] * s[:k]) @ vt[:k]
    return kept, W - kept


def _pair(B: F64, A: F64, layer: int, k: int, norm: float, max_patterns: int, pair_sdp: bool) -> AlignmentPair:
    """A_p of the pair (first A, then B) at one k."""
    nb, na = induced_norm(B, norm), induced_norm(A, norm)
    if nb == 0.0 or na == 0.0:
        return AlignmentPair(layer, 0.0, True, 0.0, 0.0, k, norm, 0.0)
    # unit norms: every product below stays finite, and norms come out as fractions
    raw = (B, A)
    B, A = B / nb, A / na
    if any(bool(np.any((w != 0) & (np.abs(v) < 2.0**-1000))) for w, v in zip(raw, (B, A), strict=True)):
        # what vanishes beside the norm (all of it, beside a norm beyond float64) may be what the other layer amplifies
        return AlignmentPair(layer, 1.0, False, 1.0, 0.0, k, norm, multiply_up(nb, na))
    bk, eb = truncate(B, k, norm)
    ak, ea = truncate(A, k, norm)
    core, exact = max_pattern_norm(bk, ak, norm, max_patterns)
    relaxed = pair_sdp_2(bk, ak)[0] if pair_sdp and not exact and not math.isinf(norm) else math.inf
    core, sdp = min(core, relaxed), relaxed < core
    value, remainder = core, 0.0
    if eb.any() or ea.any():
        nbk, neb, nak, nea = (induced_norm(x, norm) for x in (bk, eb, ak, ea))
        # B D A = B_k D A_k + B_k D E_A + E_B D A = B_k D A_k + B D E_A + E_B D A_k
        remainder = min(nbk * nea + neb, nea + neb * nak)
        value = core + remainder
        if math.isinf(norm):
            value = min(value, max(core + nbk * nea, neb))
    value = min(1.0, value)
    return AlignmentPair(layer, value, exact, core, remainder, k, norm, multiply_up(multiply_up(value, nb), na), sdp)


def alignment_pair(
    B: F64,
    A: F64,
    *,
    norm: float,
    layer: int = 0,
    k: int | None = None,
    max_patterns: int = MAX_PATTERNS,
    pair_sdp: bool = False,
) -> AlignmentPair:
    """``A_p`` of two consecutive layers, ``A`` (h, n) first, then ``B`` (p, h).

    ``k=None``: no truncation (R = 0); where that cannot be enumerated and p = ∞, also the largest k that can,
    whichever is smaller. ``pair_sdp``: for p = 2 and what cannot be enumerated, also solve the pair's SDP (seconds
    at 50 neurons).

    >>> pair = alignment_pair(np.array([[1.0, 1.0]]), np.array([[1.0], [-1.0]]), norm=math.inf)
    >>> pair.value, pair.exact  # |x| has constant 1; the product of norms is 2
    (0.5, True)
    """
    if k is not None:
        return _pair(B, A, layer, k, norm, max_patterns, pair_sdp)
    full = max(*A.shape, *B.shape)
    whole = _pair(B, A, layer, full, norm, max_patterns, pair_sdp)
    hidden = active_hidden(B, A)[1].shape[0]
    if math.isinf(norm) and not fits(hidden, max_patterns):
        part = _pair(B, A, layer, max(1, max_patterns.bit_length() - 1), norm, max_patterns, pair_sdp)
        return min(whole, part, key=lambda p: p.value)
    return whole


def best_cover(norms: Sequence[float], pairs: Sequence[AlignmentPair]) -> Cover:
    """The best cover by dynamic programming, O(L).

    ``f(0) = 1``, ``f(1) = ‖W^1‖``, ``f(l) = min(‖W^l‖ f(l−1), A(l−1) ‖W^l‖ ‖W^{l−1}‖ f(l−2))``. Blocks are chosen
    on logarithms, where long chains neither over- nor underflow; ``value`` multiplies the chosen blocks up.
    """

    def log(v: float) -> float:
        return math.log(v) if v > 0 else -math.inf

    best: list[tuple[float, tuple[tuple[int, int], ...]]] = [(0.0, ())]
    for i, norm in enumerate(norms):
        options = [(best[i][0] + log(norm), (*best[i][1], (i, 1)))]
        if i:
            options.append((best[i - 1][0] + log(pairs[i - 1].pair_norm), (*best[i - 1][1], (i - 1, 2))))
        best.append(min(options, key=lambda o: o[0]))
    blocks = best[-1][1]
    value = 1.0
    for first, length in blocks:
        value = multiply_up(value, norms[first] if length == 1 else pairs[first].pair_norm)
    return Cover(blocks, value)


def alignment_pairs(
    weights: Sequence[F64], norm: float, k: int | None, max_patterns: int, pair_sdp: bool = False
) -> tuple[AlignmentPair, ...]:
    """One :class:`AlignmentPair` for each two adjacent layers."""
    return tuple(
        alignment_pair(
            weights[i + 1], weights[i], norm=norm, layer=i, k=k, max_patterns=max_patterns, pair_sdp=pair_sdp
        )
        for i in range(len(weights) - 1)
    )


def cover_bound(
    weights: Sequence[F64],
    norm: float,
    subject: str,
    *,
    k: int | None = None,
    max_patterns: int = MAX_PATTERNS,
    pair_sdp: bool = False,
    rigor: Rigor = Rigor.NUMERICAL,
    errors: Sequence[F64 | None] = (),
) -> tuple[Bound, tuple[AlignmentPair, ...], Cover]:
    """The cover's Lipschitz bound with the blocks it was made of.

    ``rigor``: rigorous encloses every rounding; ``errors``: entrywise distances of the weights from those meant, None
    for exact ones (of a network: ``chain.errors``; counted in rigorous mode).
    """
    off = tuple(errors) or (None,) * len(weights)
    layers = [layer_bound(w, norm, "", rigor, e) for w, e in zip(weights, off, strict=True)]
    if rigor is Rigor.RIGOROUS:
        pairs = _rigorous_pairs(weights, norm, k, max_patterns, pair_sdp, [b.value for b in layers], off)
    else:
        pairs = alignment_pairs(weights, norm, k, max_patterns, pair_sdp)
    cover = best_cover([b.value for b in layers], pairs)
    parts = [layers[first] if length == 1 else pair_bound(pairs[first]) for first, length in cover.blocks]
    bound = compose(*parts, subject=subject)
    return bound, pairs, cover


def _rigorous_pairs(
    weights: Sequence[F64],
    norm: float,
    k: int | None,
    max_patterns: int,
    pair_sdp: bool,
    norms: Sequence[float],
    errors: Sequence[F64 | None],
) -> tuple[AlignmentPair, ...]:
    from certbound.lipschitz.alignment_rigorous import Layer, rigorous_pair

    layers = [Layer.of(w, norm, high, e) for w, high, e in zip(weights, norms, errors, strict=True)]
    return tuple(
        rigorous_pair(layers[i + 1], layers[i], i, k, norm, max_patterns, pair_sdp) for i in range(len(layers) - 1)
    )


def pair_bound(pair: AlignmentPair) -> Bound:
    """``max_D ‖W^{l+1} D W^l‖_p`` of one pair as a bound."""
    how = "enumerated" if pair.exact else "decoupled" if math.isinf(pair.norm) else "closed-form SDP point"
    how = "pair SDP, repaired" if pair.sdp else how
    if pair.evidence is not None and pair.evidence.core.how == "none":
        how = "product of norms"
    return Bound(
        pair.pair_norm,
        Claim(Quantity.PATTERN_NORM, pair.norm, pair.norm),
        Sense.UPPER,
        pair.rigor,
        f"alignment A_{norm_name(pair.norm)} ({how})",
        _SOURCE,
        parameters=(("A", pair.value), ("R", pair.remainder), ("k", float(pair.k))),
    )


def check_max_patterns(max_patterns: object) -> int:
    """A positive int; 2^24 at most, since 2^h patterns are visited."""
    if isinstance(max_patterns, bool) or not isinstance(max_patterns, int) or not 1 <= max_patterns <= 2**24:
        raise InputError(
            "max_patterns", got=repr(max_patterns), needed="an int from 1 to 2**24", fix="2**20 takes seconds a pair"
        )
    return max_patterns


def check_cover_k(k: object, weights: Sequence[F64], norm: float) -> int | None:
    """k within the largest number of entries (rows, or singular values) that a layer has."""
    if k is None:
        return None
    return check_k(k, max(w.shape[0] if math.isinf(norm) else min(w.shape) for w in weights))


def lipschitz_alignment(
    network: object,
    norm: object = 2,
    *,
    k: int | None = None,
    max_patterns: int = 2**12,
    pair_sdp: bool = False,
    rigor: Rigor | str = Rigor.NUMERICAL,
) -> Result:
    """Upper bound of the Lipschitz constant from the best alignment cover of the whole network.

    Never above the product of norms. ``pair_sdp``: for p = 2, the SDP of each pair of layers too large to enumerate
    (cvxpy; seconds at 50 neurons). ``rigor``: ``rigorous`` encloses every rounding, that of folded layers too, and
    gives a certificate that needs neither a solver nor an SVD. Raises InputError for bad k, max_patterns or rigor.

    >>> lipschitz_alignment([[[1.0], [-1.0]], [[1.0, 1.0]]], norm="inf").value.__round__(9)  # |x|
    1.0
    >>> weights = [[[1.0], [-1.0]], [[1.0, 1.0]]]
    >>> result = lipschitz_alignment(weights, norm="inf", rigor="rigorous")
    >>> 1.0 <= result.value < 1.0 + 1e-12, str(result.bound.rigor), result.certificate.verify(weights)
    (True, 'rigorous', True)
    """
    start = time.perf_counter()
    net, p, word = as_network(network), parse_norm(norm), check_rigor(rigor)
    weights = net.chain.weights
    bound, pairs, cover = cover_bound(
        weights,
        p,
        net.digest,
        k=check_cover_k(k, weights, p),
        max_patterns=check_max_patterns(max_patterns),
        pair_sdp=pair_sdp,
        rigor=word,
        errors=net.chain.errors,
    )
    certificate = None
    if word is Rigor.RIGOROUS:
        from certbound.lipschitz.alignment_certificate import AlignmentCertificate

        certificate = AlignmentCertificate.of(net, p, bound.value, pairs, cover.blocks)
        bound = replace(bound, certificate=certificate)
    stats = (("blocks", str(cover.blocks)), ("pairs enumerated", float(sum(q.exact for q in pairs))))
    return Result(bound, Status.OK, certificate, seconds=time.perf_counter() - start, stats=stats)
