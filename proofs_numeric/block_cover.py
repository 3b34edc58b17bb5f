"""Block cover of a chain: the encoder's Lipschitz bound of Theorem 3.2.

Statement. Cover the layers 1 … L by non-overlapping blocks of one layer (``‖W^l‖``) or two (any bound of
``max_D ‖W^{l+1} D W^l‖``, as of :mod:`proofs_numeric.alignment`). For every cover the product over blocks is at least
``max ‖W^L D^{L−1} W^{L−1} … D^1 W^1‖`` over all patterns, hence a Lipschitz bound. The best cover is ``f(L)``:
``f(0) = 1, f(1) = ‖W^1‖, f(l) = min(‖W^l‖ f(l−1), A(l−1)‖W^l‖‖W^{l−1}‖ f(l−2))``.

Proof. Submultiplicativity between blocks, where ``‖D‖ <= 1``. Blocks that overlap use a layer's alignment twice: false.

Source: Barsbey et al., ICLR 2026, Theorem 3.2; certbound theory, section 3.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any

from flint import fmpq_mat

from proofs_numeric.alignment import bounds, instance_inf, pattern_maximum
from proofs_numeric.harness.exact import (
    Real,
    diagonal,
    draw_matrix,
    largest,
    matrix,
    norm_inf,
    patterns,
    real,
    smallest,
    spectral_norm,
)
from proofs_numeric.harness.lemma import (
    Broken,
    Comparison,
    Counterexample,
    Lemma,
    Query,
    Search,
    Variant,
    Witness,
    compare,
)

if TYPE_CHECKING:
    import torch

OVERLAP = "overlapping blocks"


@dataclass(frozen=True)
class Instance:
    """Layers in order of application, the norm, and k of the truncation (p = ∞; 0: none)."""

    weights: list[fmpq_mat]
    norm: str
    k: int


def draw(rng: random.Random, size: int) -> Instance:
    deep = rng.randint(2, 4)
    widths = [rng.randint(1, 2 + min(size, 1)) for _ in range(deep + 1)]
    norm = "inf" if rng.random() < 0.8 else "2"
    if norm == "2":
        widths = widths[:4]
    weights = [draw_matrix(rng, m, n) for n, m in pairwise(widths)]
    return Instance(weights, norm, rng.choice((0, 0, 1)) if norm == "inf" else 0)


def chain_maximum(weights: Sequence[fmpq_mat], norm: str) -> Real:
    """``max ‖W^L D W^{L−1} … D W^1‖`` over all patterns of all hidden layers."""
    products = [weights[0]]
    for W in weights[1:]:
        products = [W * diagonal(d) * M for M in products for d in patterns(W.ncols())]
    return largest([norm_inf(M) for M in products] if norm == "inf" else [spectral_norm(M) for M in products])


def covers(length: int) -> list[list[int]]:
    """All ways to write the chain as blocks of one or two layers."""
    if length <= 1:
        return [[1] * length]
    return [[*c, 1] for c in covers(length - 1)] + [[*c, 2] for c in covers(length - 2)]


def cover_product(cover: Sequence[int], norms: Sequence[Any], pairs: Sequence[Any]) -> Any:
    """The product over the blocks of one cover."""
    value, at = 1, 0
    for length in cover:
        value = value * (norms[at] if length == 1 else pairs[at])
        at += length
    return value


def best_cover(norms: Sequence[Any], pairs: Sequence[Any], minimum: Callable[[Any, Any], Any]) -> Any:
    """f(L) of the statement."""
    before, now = 1, norms[0]
    for i in range(1, len(norms)):
        before, now = now, minimum(now * norms[i], before * pairs[i - 1])
    return now


def overlapping(norms: Sequence[Any], pairs: Sequence[Any]) -> Any:
    """The false product: every pair's alignment, and every norm once: Π pairs / Π inner norms."""
    value = pairs[0]
    for i in range(1, len(pairs)):
        value = value * pairs[i] / norms[i]
    return value


def _pair(B: fmpq_mat, A: fmpq_mat, x: Instance) -> Real:
    if x.norm == "2" or x.k == 0:
        return pattern_maximum(B, A, x.norm)
    split = instance_inf(B, A, x.k)
    core = pattern_maximum(split.B_k, split.A_k, "inf")
    return smallest(bounds(core, split.norms, "inf", largest, None).values())


def evaluate(x: Instance, broken: Broken) -> list[Comparison]:
    true = chain_maximum(x.weights, x.norm)
    norms = [real(norm_inf(W)) if x.norm == "inf" else spectral_norm(W) for W in x.weights]
    pairs = [_pair(B, A, x) for A, B in zip(x.weights, x.weights[1:], strict=False)]
    if broken == OVERLAP:
        if len(pairs) < 2 or any(n.sign() == 0 for n in norms):
            return []
        return [compare("overlapping", true, overlapping(norms, pairs))]
    if x.norm == "2":
        # a cover of one pair alone is the maximum itself: nothing to decide
        products = [cover_product(c, norms, pairs) for c in covers(len(norms)) if c != [2]]
        return [compare("2: best cover", true, smallest(products))]
    best = best_cover(norms, pairs, lambda a, b: smallest([a, b]))
    every = [cover_product(c, norms, pairs) for c in covers(len(norms))]
    return [
        compare("inf: f(L)", true, best),
        compare("f(L) <= every cover", best, smallest(every)),
        compare("some cover <= f(L)", smallest(every), best),
    ]


def _search(widths: Sequence[int], norm: str, broken: Broken) -> Search:
    shapes = list(zip(widths[1:], widths, strict=False))
    size = sum(m * n for m, n in shapes)

    def split(v: Any, make: Callable[[Any, int, int], Any]) -> list[Any]:
        result, at = [], 0
        for m, n in shapes:
            result.append(make(v[..., at : at + m * n] if hasattr(v, "ndim") else v[at : at + m * n], m, n))
            at += m * n
        return result

    def objective(v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        weights = split(v, lambda a, m, n: a.reshape(-1, 1, m, n))

        def size_of(M: torch.Tensor) -> torch.Tensor:
            if norm == "inf":
                return M.abs().sum(3).amax((1, 2))
            return torch.linalg.matrix_norm(M, 2).amax(1)

        def products(parts: Sequence[torch.Tensor]) -> torch.Tensor:
            result = parts[0]
            for W in parts[1:]:
                D = torch.tensor(patterns(W.shape[3]), dtype=v.dtype)
                result = ((W * D[None, :, None, :])[:, None] @ result[:, :, None]).flatten(1, 2)
            return size_of(result)

        norms = [size_of(W) for W in weights]
        pairs = [products(p) for p in pairwise(weights)]
        claimed = overlapping(norms, pairs) if broken == OVERLAP else best_cover(norms, pairs, torch.minimum)
        return products(weights), claimed

    def instance(v: Sequence[Any]) -> Instance:
        make = split(list(v), lambda a, m, n: fmpq_mat([a[i * n : (i + 1) * n] for i in range(m)]))
        return Instance(make, norm, 0)

    labels = ("inf: f(L)",) if norm == "inf" else ("2: best cover",)
    return Search(f"{norm}: widths {'-'.join(map(str, widths))}", size, objective, instance, labels)


def searches(broken: Broken, size: int = 0) -> list[Search]:
    shapes = [((2, 2, 2, 2), "inf"), ((1, 2, 3, 1), "inf"), ((2, 2, 2, 2), "2")]
    if size:
        shapes += [((2, 3, 2, 2, 1), "inf"), ((2, 3, 3, 2), "inf"), ((2, 3, 2, 2), "2")]
    return [_search(widths, norm, broken) for widths, norm in shapes]


def queries(broken: Broken) -> list[Query]:
    def build() -> tuple[Sequence[Any], Any, Any]:
        import z3

        # widths 1-2-2-1 with W^1 = (1, x), W^2 = ((−1, −1), (−1, 0)), W^3 = (1, y): all 16 patterns
        x, y = z3.Reals("x y")

        def size(v: Any) -> Any:
            return z3.If(v >= 0, v, -v)

        def top(values: Sequence[Any]) -> Any:
            result = values[0]
            for v in values[1:]:
                result = z3.If(v >= result, v, result)
            return result

        one = z3.RealVal(1)
        w1, w2, w3 = (one, x), ((-1, -1), (-1, 0)), (one, y)
        bits = list(product((0, 1), repeat=2))
        true, first, second = [], [], []
        for d in bits:
            z = [sum(w2[i][j] * d[j] * w1[j] for j in range(2)) for i in range(2)]
            first += [size(v) for v in z]
            true += [size(sum(w3[i] * e[i] * z[i] for i in range(2))) for e in bits]
            row = [sum(w3[i] * d[i] * w2[i][j] for i in range(2)) for j in range(2)]
            second.append(size(row[0]) + size(row[1]))
        n1, n2, n3 = top([one, size(x)]), z3.RealVal(2), one + size(y)
        p1, p2 = top(first), top(second)
        if broken == OVERLAP:
            return [], 2 * top(true), p1 * p2
        claims = (n1 * n2 * n3, p1 * n3, n1 * p2)
        return [], top(true), -top([-c for c in claims])

    return [Query("inf: 1-2-2-1, two free weights", build)]


def _overlap() -> Comparison:
    weights = [matrix([[1], [-1]]), matrix([[-1, -1], [-1, 0]]), matrix([[1, -2]])]
    return evaluate(Instance(weights, "inf", 0), OVERLAP)[0]


LEMMA = Lemma(
    name="block_cover",
    statement="Π over non-overlapping blocks (‖W^l‖ or A(l)‖W^{l+1}‖‖W^l‖) >= the encoder's constant; f(L) is the best",
    source="theory.md section 3; Barsbey et al., ICLR 2026, Theorem 3.2",
    draw=draw,
    evaluate=evaluate,
    searches=searches,
    queries=queries,
    witnesses=(
        Witness(
            "aligned chain",
            lambda: Instance([matrix([[1, 1], [1, 1]])] * 3, "inf", 0),
            "inf: f(L)",
        ),
    ),
    counterexamples=(Counterexample("blocks that overlap: 1-2-2-1", _overlap),),
    broken={OVERLAP: Variant("every pair's alignment factor used, so that blocks overlap")},
    weight=0.5,
)
