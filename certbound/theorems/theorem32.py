"""Theorem 3.2: the Lipschitz bound L̂ of an encoder from layer norms and inter-layer alignment.

``Φ(x) = φ(W^L φ(… φ(W^1 x)))``, φ ReLU. ``Lip_p(Φ) <= Π`` over the blocks of a cover: ``‖W^l‖_p`` for a block of one
layer, ``A_p(l) ‖W^{l+1}‖_p ‖W^l‖_p`` for two. L̂ puts Theorem 3.1's value in place of every ``‖W^l‖_p`` (A is computed
from the true norms). Biases do not matter.

Source: Barsbey et al., ICLR 2026, Theorem 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from certbound import text
from certbound.arrays import F64, as_matrix
from certbound.bound import Bound, Claim, compose
from certbound.compressibility import Dispersion
from certbound.lipschitz.alignment import (
    MAX_PATTERNS,
    AlignmentPair,
    Cover,
    check_cover_k,
    check_max_patterns,
    cover_bound,
    pair_bound,
)
from certbound.lipschitz.product import product_of_norms
from certbound.network import Network
from certbound.norms.dense import check_rigor, induced_norm
from certbound.robustness import activation_pattern
from certbound.theorems.theorem31 import Form, Measured, Part, best_value, measure
from certbound.types import SCHEMA_VERSION, Quantity, Rigor, Sense, norm_name, parse_norm

_SOURCE = "Barsbey et al., ICLR 2026, Theorem 3.2"
_SAMPLES = 64
_WORDS = {True: "yes", False: "NO", None: "undecided"}


@dataclass(frozen=True)
class Theorem32Report:
    """Bounds of ``Lip_p(Φ)``, loosest idea first.

    ``product``: Π‖W^l‖; ``cover``: with alignment and the true norms; ``printed``, ``derived``, ``sharp``: L̂ with that
    form of Theorem 3.1 inside; ``alignment``: one per adjacent pair; ``blocks``: the cover, (first layer, length);
    ``sampled``: largest Jacobian norm seen at sampled inputs (a lower bound of Lip_p(W^L φ(…)), not of the last φ's
    output); ``holds``: no pattern tried exceeds a bound and the ladder
    ``cover <= product``, ``cover <= sharp <= derived <= printed`` stands. Rigorous: True only if all of that is proved
    of the numbers shown, False only if a pattern provably exceeds a bound, None if undecided.
    """

    norm: float
    k: int | None
    product: Bound
    cover: Bound
    printed: Bound
    derived: Bound
    sharp: Bound
    sampled: Bound
    alignment: tuple[AlignmentPair, ...]
    blocks: tuple[tuple[int, int], ...]
    holds: bool | None
    rigor: Rigor = Rigor.NUMERICAL

    def __str__(self) -> str:
        rows = [
            (name, text.number(b.value), str(b.rigor))
            for name, b in (
                ("sampled (lower)", self.sampled),
                ("cover", self.cover),
                ("product", self.product),
                ("sharp", self.sharp),
                ("derived", self.derived),
                ("printed", self.printed),
            )
        ]
        pairs = ", ".join(f"A({p.layer})={p.value:.3g}{'' if p.exact else '*'}" for p in self.alignment)
        title = f"Theorem 3.2, norm {norm_name(self.norm)}"
        lines = [text.table(rows, (title, "value", "rigor")), f"holds: {_WORDS[self.holds]}"]
        if pairs:
            lines.append(f"alignment: {pairs} (* upper bound, not enumerated)")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with ``schema_version``."""
        bounds = ("product", "cover", "printed", "derived", "sharp", "sampled")
        return {
            "schema_version": SCHEMA_VERSION,
            "norm": text.json_number(self.norm),
            "k": self.k,
            "holds": self.holds,
            "rigor": str(self.rigor),
            "alignment": [p.to_dict() for p in self.alignment],
            "blocks": [list(b) for b in self.blocks],
        } | {name: getattr(self, name).to_dict() for name in bounds}


def encoder_bounds(
    weights: Sequence[F64],
    norm: float,
    subject: str,
    *,
    k: int | None = None,
    max_patterns: int = MAX_PATTERNS,
    dispersion: Dispersion = "kth",
    measured: Sequence[Measured] | None = None,
    rigor: Rigor = Rigor.NUMERICAL,
    errors: Sequence[F64 | None] = (),
) -> tuple[dict[str, Bound], tuple[AlignmentPair, ...], Cover]:
    """The five bounds of an encoder (possibly without layers: the identity), by name.

    ``rigor``: rigorous encloses every rounding; ``errors``: what folding rounded, entry by entry (``chain.errors``).
    """
    if not weights:
        identity = product_of_norms((), norm, subject)
        names = ("product", "cover", "sharp", "derived", "printed")
        return dict.fromkeys(names, identity), (), Cover((), 1.0)
    cover, pairs, blocks = cover_bound(
        weights, norm, subject, k=k, max_patterns=max_patterns, rigor=rigor, errors=errors
    )
    result = {"product": product_of_norms(tuple(weights), norm, subject, rigor, errors or None), "cover": cover}
    part: Part = "neuron" if math.isinf(norm) else "spectral"
    forms: tuple[Form, ...] = ("sharp", "derived", "printed")
    if rigor is Rigor.RIGOROUS:
        from certbound.theorems.theorem32_rigorous import layer_bounds  # imported here: numerical checks do without

        norms = [b.value for b in result["product"].terms]
        off = tuple(errors) or (None,) * len(weights)
        by_form = layer_bounds(weights, off, part, forms, dispersion, norm, k, norms)
    else:
        every = [measure(w) for w in weights] if measured is None else measured
        by_form = {form: [_layer_bound(m, part, form, dispersion, norm, k) for m in every] for form in forms}
    for form in forms:
        layers = by_form[form]
        factors = [_alignment_factor(pairs[first], norm) for first, length in blocks.blocks if length == 2]
        result[form] = compose(*layers, *factors, subject=subject)
    return result, pairs, blocks


def _layer_bound(m: Measured, part: Part, form: Form, dispersion: Dispersion, norm: float, k: int | None) -> Bound:
    at = None if k is None else min(k, m.size(part))
    value = best_value(m, part, form, dispersion, at)
    claim = Claim(Quantity.OPERATOR_NORM, norm, norm)
    method = f"Theorem 3.1, {part}, {form}, {dispersion}"
    return Bound(value, claim, Sense.UPPER, Rigor.NUMERICAL, method, "Barsbey et al., ICLR 2026, Theorem 3.1")


def _alignment_factor(pair: AlignmentPair, norm: float) -> Bound:
    """A_p as a factor of the product: the pair's bound with both norms set to 1."""
    bound = pair_bound(pair)
    return Bound(
        pair.value, Claim(Quantity.PATTERN_NORM, norm, norm), Sense.UPPER, bound.rigor, bound.method, bound.source
    )


def _largest_sampled(weights: Sequence[F64], norm: float, pairs: Sequence[AlignmentPair]) -> tuple[float, bool]:
    """Largest ``‖W^L D … D W^1‖_p`` at sampled inputs, and whether any random pattern beats a pair's bound."""
    rng = np.random.default_rng(0)  # local: the same report for the same weights
    x = rng.standard_normal((_SAMPLES, weights[0].shape[1]))
    best = 0.0
    for row in x:
        actives = activation_pattern(weights[:-1], [np.zeros(len(w)) for w in weights[:-1]], row)
        if actives is None:
            continue
        jacobian = weights[0]
        for w, active in zip(weights[1:], actives, strict=True):
            jacobian = w @ (active[:, None] * jacobian)
        best = max(best, induced_norm(jacobian, norm))
    fine = True
    for pair in pairs:
        b, a = weights[pair.layer + 1], weights[pair.layer]
        for d in rng.integers(0, 2, size=(_SAMPLES, a.shape[0])):
            fine = fine and induced_norm(b @ (d[:, None] * a), norm) <= pair.pair_norm * (1 + 1e-9)
    return best, fine


def check_theorem32(
    weights: object,
    *,
    norm: object = 2,
    k: int | None = None,
    max_patterns: int = MAX_PATTERNS,
    rigor: Rigor | str = "numerical",
) -> Theorem32Report:
    """Check Theorem 3.2 on an encoder's weights (first layer first, each (outputs, inputs)).

    Parameters
    ----------
    weights : list of matrices ``W^1 … W^L`` (numpy, torch, nn.Linear). norm : 2 or ∞.
    k : entries kept in the alignment and in Theorem 3.1 (clamped to each layer's size); None: alignment without
        truncation where it can be computed so, and the best k of Theorem 3.1.
    max_patterns : patterns enumerated for a pair; above it a certified upper bound (``.alignment[i].exact`` False).
    rigor : ``rigorous`` encloses every rounding, that of ``.sampled`` too.

    Raises
    ------
    InputError : weights that do not chain, are not finite or empty; k or max_patterns out of range.

    Source: Barsbey et al., ICLR 2026, Theorem 3.2.

    >>> report = check_theorem32([[[1.0], [-1.0]], [[1.0, 1.0]]], norm=math.inf)  # |x|
    >>> round(report.product.value, 9), round(report.cover.value, 9), report.holds
    (2.0, 1.0, True)
    >>> report = check_theorem32([[[1.0], [-1.0]], [[1.0, 1.0]]], norm=math.inf, rigor="rigorous")
    >>> 1.0 <= report.cover.value < 1.0 + 1e-13, str(report.sharp.rigor), report.holds
    (True, 'rigorous', True)
    """
    p = parse_norm(norm)
    word = check_rigor(rigor)
    network = Network.from_weights(weights)  # type: ignore[arg-type]  # from_weights refuses what is no list
    matrices = [as_matrix(w) for w in network.chain.weights]
    kk = check_cover_k(k, matrices, p)
    bounds, pairs, cover = encoder_bounds(
        matrices, p, network.digest, k=kk, max_patterns=check_max_patterns(max_patterns), rigor=word
    )
    if word is Rigor.RIGOROUS:
        from certbound.theorems.theorem32_rigorous import verdict

        largest, holds = verdict(matrices, p, pairs, {name: bound.value for name, bound in bounds.items()})
        return _report(p, kk, bounds, pairs, cover, largest, network.digest, holds, word)
    largest, fine = _largest_sampled(matrices, p, pairs)
    tol = 1 + 64 * 2.0**-53 * max(max(w.shape) for w in matrices) * len(matrices)
    b = {name: bound.value for name, bound in bounds.items()}
    ladder = (
        b["cover"] <= b["product"] * tol
        and b["cover"] <= b["sharp"] * tol
        and b["sharp"] <= b["derived"] * tol
        and b["derived"] <= b["printed"] * tol
    )
    holds = ladder and fine and largest <= b["cover"] * tol
    return _report(p, kk, bounds, pairs, cover, largest, network.digest, holds, word)


def _report(
    norm: float,
    k: int | None,
    bounds: Mapping[str, Bound],
    pairs: tuple[AlignmentPair, ...],
    cover: Cover,
    largest: float,
    subject: str,
    holds: bool | None,
    rigor: Rigor,
) -> Theorem32Report:
    sampled = Bound(
        min(largest, np.finfo(float).max),
        Claim(Quantity.LIPSCHITZ, norm, norm, subject=subject),
        Sense.LOWER,
        rigor,
        f"largest Jacobian norm at {_SAMPLES} sampled inputs",
        "definition",
    )
    return Theorem32Report(
        norm,
        k,
        bounds["product"],
        bounds["cover"],
        bounds["printed"],
        bounds["derived"],
        bounds["sharp"],
        sampled,
        pairs,
        cover.blocks,
        holds,
        rigor,
    )
