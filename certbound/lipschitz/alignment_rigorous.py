"""Alignment of two layers with every rounding enclosed, and the evidence that proves it.

For ``W = W_k + E`` with ANY W_k (that it is the best one matters for the size of the bound only) and weights that are
stored exactly:

``max_D ‖B D A‖ <= core + min(‖B_k‖‖E_A‖ + ‖E_B‖‖A‖, ‖B‖‖E_A‖ + ‖E_B‖‖A_k‖)``, ``core >= max_D ‖B_k D A_k‖``;

for p = ∞, where output rows are in B_k or in E_B, also ``max(core + ‖B_k‖‖E_A‖, ‖E_B‖‖A‖)``. Folded layers are off by
``ΔB, ΔA``: that adds ``‖ΔB‖‖A‖ + ‖B‖‖ΔA‖``, with the norms of the true matrices. Products and sums are rounded up in
true units; nothing is divided.

Source: certbound theory, sections 3 and 6.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from certbound.arrays import F64, I64, power_of_two_scale
from certbound.bound import multiply_up
from certbound.errors import CertificateError
from certbound.lipschitz.alignment import AlignmentPair, truncate
from certbound.lipschitz.pattern_pair import active_hidden, fits
from certbound.lipschitz.pattern_pair_verified import Balanced, PatternProof, pattern_holds, pattern_upper
from certbound.lipschitz.product import error_norm, proves_norm
from certbound.norms.verified import enclose_induced_norm
from certbound.rounding import U, down, up
from certbound.types import Rigor


@dataclass(frozen=True, eq=False)
class Truncation:
    """W_k of both layers: rows kept (p = ∞) or the matrices (p = 2), and the norms claimed of them.

    ``norms``: upper bounds of ``‖B_k‖, ‖E_B‖, ‖A_k‖, ‖E_A‖``.
    """

    left: F64 | I64
    right: F64 | I64
    norms: tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class PairEvidence:
    """What proves ``max_D ‖W^{l+1} D W^l‖_p <= value``; ``core.how = "none"``: the product of the two norms."""

    layer: int
    value: float
    core: PatternProof
    truncation: Truncation | None = None


@dataclass(frozen=True, eq=False)
class Layer:
    """A stored matrix, entrywise bounds of how far folding took it from the true one, and bounds of the true norm."""

    weight: F64
    error: F64 | None
    low: float
    high: float

    @classmethod
    def of(cls, weight: F64, norm: float, high: float, error: F64 | None = None) -> Layer:
        """``high``: a proved upper bound, the error included."""
        low = enclose_induced_norm(weight, norm)[0]
        off = error_norm(error, norm)
        return cls(weight, error, low if off == 0.0 else max(0.0, down(low - off)), high)


def _parts(W: F64, kept: F64 | I64, norm: float) -> tuple[F64, F64, float]:
    """``(W_k, E_s, δ)`` with ``‖W − W_k − E_s‖_2 <= δ``."""
    if math.isinf(norm):
        rows = np.zeros_like(W)
        rows[kept.astype(np.int64)] = W[kept.astype(np.int64)]
        return rows, W - rows, 0.0  # w − w and w − 0 are exact
    matrix = np.asarray(kept, dtype=np.float64)
    with np.errstate(over="ignore"):
        rest = W - matrix
    # each difference is off by at most u of itself; subnormal ones are exact
    return matrix, rest, up(2.0 * U * error_norm(rest, norm)) if rest.any() else 0.0


def combined(
    core: float,
    truncation: Truncation | None,
    norm: float,
    highs: tuple[float, float],
    offs: tuple[float, float],
) -> float:
    """The pair's bound from its claimed parts; every operation rounded up. ``highs``: ``‖B‖, ‖A‖``; ``offs`` of both.

    >>> combined(0.5, None, 2.0, (1.0, 1.0), (0.0, 0.0)), combined(3.0, None, 2.0, (1.0, 1.0), (0.0, 0.0)) > 1
    (0.5, True)
    """
    nb, na = highs
    value = core
    if truncation is not None:
        nbk, neb, nak, nea = truncation.norms
        remainder = min(
            _add_up(multiply_up(nbk, nea), multiply_up(neb, na)), _add_up(multiply_up(nb, nea), multiply_up(neb, nak))
        )
        value = _add_up(core, remainder)
        if math.isinf(norm):
            value = min(value, max(_add_up(core, multiply_up(nbk, nea)), multiply_up(neb, na)))
    value = _add_up(value, _add_up(multiply_up(offs[0], na), multiply_up(nb, offs[1])))
    return min(value, multiply_up(nb, na))


def _add_up(a: float, b: float) -> float:
    return a if b == 0.0 else b if a == 0.0 else up(a + b)


def _ratio_up(value: float, low: float) -> float:
    """``value/low``, rounded up, at most 1."""
    if value == 0.0:
        return 0.0
    if low == 0.0 or value == math.inf or Fraction(value) >= Fraction(low):
        return 1.0
    return min(1.0, up(value / low))


def rigorous_pair(
    B: Layer, A: Layer, layer: int, k: int | None, norm: float, max_patterns: int, pair_sdp: bool
) -> AlignmentPair:
    """A_p of the pair (first A, then B) and its evidence; see :func:`certbound.lipschitz.alignment.alignment_pair`."""
    full = max(*A.weight.shape, *B.weight.shape)
    if k is not None:
        return _pair(B, A, layer, k, norm, max_patterns, pair_sdp)
    whole = _pair(B, A, layer, full, norm, max_patterns, pair_sdp)
    hidden = active_hidden(B.weight, A.weight)[1].shape[0]
    if math.isinf(norm) and not fits(hidden, max_patterns):
        part = _pair(B, A, layer, max(1, max_patterns.bit_length() - 1), norm, max_patterns, pair_sdp)
        return min(whole, part, key=lambda p: p.pair_norm)
    return whole


def _pair(B: Layer, A: Layer, layer: int, k: int, norm: float, max_patterns: int, pair_sdp: bool) -> AlignmentPair:
    highs = (B.high, A.high)
    offs = (error_norm(B.error, norm), error_norm(A.error, norm))
    truncation = _truncation(B.weight, A.weight, k, norm)
    if truncation is None:
        left, right = B.weight, A.weight
    else:
        left, right = _parts(B.weight, truncation.left, norm)[0], _parts(A.weight, truncation.right, norm)[0]
    core = pattern_upper(left, right, norm, max_patterns, _hints(left, right, norm, max_patterns, pair_sdp))
    value = combined(core.value, truncation, norm, highs, offs)
    low = multiply_down(B.low, A.low)
    evidence = PairEvidence(layer, value, core, truncation)
    if value >= multiply_up(*highs):  # nothing gained: the product of norms needs no more evidence
        evidence = PairEvidence(layer, value, PatternProof("none", math.inf))
    share = _ratio_up(core.value, low)
    return AlignmentPair(
        layer,
        _ratio_up(value, low),
        core.exact,
        share,
        0.0 if truncation is None else max(0.0, _ratio_up(value, low) - share),
        k,
        norm,
        value,
        pair_sdp and core.how == "multipliers",
        Rigor.RIGOROUS,
        evidence,
    )


def multiply_down(a: float, b: float) -> float:
    """Lower bound of the exact product of two finite numbers >= 0."""
    product = a * b
    return math.nextafter(product, 0.0) if product < math.inf else float(np.finfo(np.float64).max)


def _hints(B: F64, A: F64, norm: float, max_patterns: int, pair_sdp: bool) -> list[tuple[F64, float]]:
    left, right = active_hidden(B, A)
    if not pair_sdp or math.isinf(norm) or fits(right.shape[0], max_patterns):
        return []
    from certbound.lipschitz.pair_sdp import pair_multipliers

    pair = Balanced.of(left, right)
    return pair_multipliers(pair.left, pair.right)


def _truncation(B: F64, A: F64, k: int, norm: float) -> Truncation | None:
    """The k rows of largest ℓ1 norm, or the best rank k as LAPACK sees it; None where nothing is cut."""
    kept: list[F64 | I64] = []
    norms: list[float] = []
    cut = False
    for W in (B, A):
        if math.isinf(norm):
            with np.errstate(over="ignore"):
                order = np.argsort(-np.abs(W / power_of_two_scale(W)).sum(axis=1), kind="stable")
            choice: F64 | I64 = np.sort(order[:k]).astype(np.int64)
            cut = cut or k < len(W)
        else:
            scale = power_of_two_scale(W)
            choice = truncate(W / scale, k, norm)[0] * scale if k < min(W.shape) else np.array(W)
            cut = cut or k < min(W.shape)
            if not bool(np.all(np.isfinite(choice))):
                return None
        matrix, rest, off = _parts(W, choice, norm)
        if not bool(np.all(np.isfinite(rest))):
            return None
        high = enclose_induced_norm(rest, norm)[1]
        kept.append(choice)
        norms += [enclose_induced_norm(matrix, norm)[1], _add_up(high, 2.0 * off)]
    return Truncation(kept[0], kept[1], (norms[0], norms[1], norms[2], norms[3])) if cut else None


# ---------------------------------------------------------------- verification


def check_pair(
    evidence: PairEvidence,
    weights: tuple[F64, F64],
    errors: tuple[F64 | None, F64 | None],
    norm: float,
    highs: tuple[float, float],
) -> None:
    """Prove a pair's bound anew (``weights``, ``errors``, ``highs`` of B, then of A; highs proved before).

    Raises CertificateError with the reason.
    """
    B, A = weights
    truncation = evidence.truncation
    where = f"layers {evidence.layer} and {evidence.layer + 1}"
    left, right = B, A
    if truncation is not None:
        parts: list[tuple[F64, F64, float]] = []
        for W, kept in ((B, truncation.left), (A, truncation.right)):
            fits_rows = kept.ndim == 1 and bool(np.all((kept >= 0) & (kept < len(W))))
            if not (fits_rows if math.isinf(norm) else kept.shape == W.shape):
                raise CertificateError(f"{where}: a truncation that is none of a matrix of shape {W.shape}")
            parts.append(_parts(W, kept, norm))
        (left, rest_b, off_b), (right, rest_a, off_a) = parts
        for matrix, value, off in zip(
            (left, rest_b, right, rest_a), truncation.norms, (0.0, off_b, 0.0, off_a), strict=True
        ):
            if not bool(np.all(np.isfinite(matrix))) or not proves_norm(matrix, norm, value, off):
                raise CertificateError(f"{where}: {value!r} is not proved to bound the norm of a truncation")
    if evidence.core.how != "none" and not pattern_holds(left, right, norm, evidence.core):
        raise CertificateError(
            f"{where}: {evidence.core.value!r} is not proved ({evidence.core.how}) to bound every activation pattern"
        )
    core = math.inf if evidence.core.how == "none" else evidence.core.value
    offs = (error_norm(errors[0], norm), error_norm(errors[1], norm))
    if not combined(core, truncation, norm, highs, offs) <= evidence.value:
        raise CertificateError(f"{where}: the parts do not give {evidence.value!r}")
