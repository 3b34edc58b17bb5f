"""Alignment A_p of two layers: the pattern maximum of truncated layers plus a remainder.

Statement. A (h, n) first, then B (p, h); splits ``A = A_k + E_A``, ``B = B_k + E_B`` (best rank k for p = 2, the k rows
of largest ℓ1 norm for p = ∞); ``core = max_D ‖B_k D A_k‖``. Then ``max_D ‖B D A‖`` is at most
(1) ``core + ‖B_k‖‖E_A‖ + ‖E_B‖‖A‖``, (2) ``core + ‖B‖‖E_A‖ + ‖E_B‖‖A_k‖``, (3) for p = ∞
``max(core + ‖B_k‖‖E_A‖, ‖E_B‖‖A‖)``, never above (1), (4) ``‖B‖‖A‖``.

Proof. ``B D A = B_k D A_k + B_k D E_A + E_B D A = B_k D A_k + B D E_A + E_B D A_k`` and ``‖D‖ <= 1``. For p = ∞ a row
of B is in B_k or in E_B, and the norm is the largest over rows: the two do not add.

Source: Barsbey et al., ICLR 2026, Theorem 3.2; certbound theory, section 3 (its reading of the remainder R_p).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from flint import fmpq, fmpq_mat

from proofs_numeric.harness.exact import (
    Number,
    Real,
    Vector,
    diagonal,
    draw_matrix,
    draw_skew,
    draw_vector,
    largest,
    matrix,
    norm_inf,
    patterns,
    real,
    row_l1,
    skew_size,
    spectral_norm,
    with_spectrum,
)
from proofs_numeric.harness.lemma import Broken, Comparison, Lemma, Query, Search, Variant, Witness, compare

if TYPE_CHECKING:
    import torch

LABELS = ("inf: remainder", "inf: roles exchanged", "inf: competition")
LABELS_2 = ("2: remainder", "2: roles exchanged")
NO_REMAINDER = "R dropped"
NO_SUM = "core left out of the competition"


@dataclass(frozen=True)
class Instance:
    """The truncated and the rest of both layers, and the norms of all six matrices (exact)."""

    norm: Literal["2", "inf"]
    B_k: fmpq_mat
    E_B: fmpq_mat
    A_k: fmpq_mat
    E_A: fmpq_mat
    norms: dict[str, Number]


def keep_rows(W: fmpq_mat, k: int) -> tuple[fmpq_mat, fmpq_mat]:
    """The k rows of largest ℓ1 norm (ties: the first), and the others."""
    order = sorted(range(W.nrows()), key=lambda i: (-row_l1(W)[i], i))[:k]
    kept = fmpq_mat([[v if i in order else fmpq(0) for v in row] for i, row in enumerate(W.tolist())])
    return kept, W - kept


def instance_inf(B: fmpq_mat, A: fmpq_mat, k: int) -> Instance:
    """Both layers truncated to k rows."""
    (bk, eb), (ak, ea) = keep_rows(B, k), keep_rows(A, k)
    norms = {"B": norm_inf(B), "B_k": norm_inf(bk), "E_B": norm_inf(eb)}
    norms |= {"A": norm_inf(A), "A_k": norm_inf(ak), "E_A": norm_inf(ea)}
    return Instance("inf", bk, eb, ak, ea, norms)


def _truncated(s: Vector, k: int) -> tuple[Vector, Vector]:
    order = sorted(range(len(s)), key=lambda i: (-abs(s[i]), i))[:k]
    kept = [v if i in order else fmpq(0) for i, v in enumerate(s)]
    return kept, [v - w for v, w in zip(s, kept, strict=True)]


def instance_2(
    s_b: Vector,
    K_b: tuple[Vector, Vector],
    s_a: Vector,
    K_a: tuple[Vector, Vector],
    sizes: tuple[int, int, int],
    k: int,
) -> Instance:
    """Layers of sizes (p, h), (h, n) with prescribed spectra, both truncated to rank k."""
    p, h, n = sizes
    parts = {}
    norms: dict[str, Number] = {}
    for name, s, K, (m, c) in (("B", s_b, K_b, (p, h)), ("A", s_a, K_a, (h, n))):
        for label, values in zip((f"{name}_k", f"E_{name}"), _truncated(s, k), strict=True):
            parts[label] = with_spectrum(values, m, c, *K)
            norms[label] = max(abs(v) for v in values)
        norms[name] = max(abs(v) for v in s)
    return Instance("2", parts["B_k"], parts["E_B"], parts["A_k"], parts["E_A"], norms)


def draw(rng: random.Random, size: int) -> Instance:
    sizes = (rng.randint(1, 3), rng.randint(1, 3 + min(size, 2)), rng.randint(1, 3))
    p, h, n = sizes
    k = rng.randint(1, 3)
    if rng.random() < 0.6:
        return instance_inf(draw_matrix(rng, p, h), draw_matrix(rng, h, n), k)
    s_b, s_a = draw_vector(rng, min(p, h)), draw_vector(rng, min(h, n))
    turns_b, turns_a = (draw_skew(rng, p), draw_skew(rng, h)), (draw_skew(rng, h), draw_skew(rng, n))
    return instance_2(s_b, turns_b, s_a, turns_a, sizes, k)


def pattern_maximum(B: fmpq_mat, A: fmpq_mat, norm: str) -> Real:
    """``max_D ‖B D A‖`` over all patterns."""
    products = [B * diagonal(d) * A for d in patterns(A.nrows())]
    return largest([norm_inf(M) for M in products] if norm == "inf" else [spectral_norm(M) for M in products])


def bounds(core: Any, v: dict[str, Any], norm: str, maximum: Any, broken: Broken) -> dict[str, Any]:
    """The bounds of the statement, on exact numbers or tensors."""
    if broken == NO_REMAINDER:
        return {"R dropped": core}
    if broken == NO_SUM:
        return {"competition": maximum([v["B_k"] * v["E_A"], v["E_B"] * v["A"]])}
    result = {
        "remainder": core + v["B_k"] * v["E_A"] + v["E_B"] * v["A"],
        "roles exchanged": core + v["B"] * v["E_A"] + v["E_B"] * v["A_k"],
    }
    if norm == "inf":
        result["competition"] = maximum([core + v["B_k"] * v["E_A"], v["E_B"] * v["A"]])
    return result


def evaluate(x: Instance, broken: Broken) -> list[Comparison]:
    if broken == NO_SUM and x.norm == "2":
        return []
    v, B, A = x.norms, x.B_k + x.E_B, x.A_k + x.E_A
    true = pattern_maximum(B, A, x.norm)
    untouched = x.E_A == 0 * x.E_A and x.E_B == 0 * x.E_B
    core = true if untouched else pattern_maximum(x.B_k, x.A_k, x.norm)
    result = []
    for label, claimed in bounds(core, v, x.norm, largest, broken).items():
        if untouched and broken is None and core.terms is None:
            continue  # the same irrational number on both sides: nothing to decide
        result.append(compare(f"{x.norm}: {label}", true, claimed))
    if broken is None:
        result.append(compare(f"{x.norm}: product of norms", true, real(v["B"]) * v["A"]))
        if x.norm == "inf":
            claims = bounds(core, v, "inf", largest, None)
            result.append(compare("competition <= remainder", claims["competition"], claims["remainder"]))
    return result


def _search_inf(p: int, h: int, n: int, k: int, broken: Broken) -> Search:
    cut, end = p * h, p * h + h * n

    def objective(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        B, A = x[:, :cut].reshape(-1, p, h), x[:, cut:end].reshape(-1, h, n)
        D = torch.tensor(patterns(h), dtype=x.dtype)
        v = {}
        for name, W in (("B", B), ("A", A)):
            l1 = W.abs().sum(2)
            rank = l1.argsort(1, descending=True).argsort(1)
            kept = W * (rank < k)[:, :, None]
            v |= {name: W, f"{name}_k": kept, f"E_{name}": W - kept}
        norms = {name: W.abs().sum(2).amax(1) for name, W in v.items()}

        def top(B: torch.Tensor, A: torch.Tensor) -> torch.Tensor:
            return ((B[:, None] * D[None, :, None, :]) @ A[:, None]).abs().sum(3).amax((1, 2))

        claims = bounds(top(v["B_k"], v["A_k"]), norms, "inf", lambda a: torch.maximum(*a), broken)
        claimed = torch.stack(list(claims.values()), 1)
        return top(B, A)[:, None].expand_as(claimed), claimed

    def instance(x: Sequence[Any]) -> Instance:
        B = fmpq_mat([list(x[i * h : (i + 1) * h]) for i in range(p)])
        A = fmpq_mat([list(x[cut + i * n : cut + (i + 1) * n]) for i in range(h)])
        return instance_inf(B, A, k)

    return Search(f"inf: {p} x {h} x {n}, k = {k}", end, objective, instance, LABELS)


def _search_2(h: int, k: int, broken: Broken) -> Search:
    """Square layers of width h: spectra and Cayley parameters."""
    c = skew_size(h)
    cuts = (h, h + c, h + 2 * c)
    half = h + 2 * c

    def objective(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        upper = torch.triu_indices(h, h, 1)
        eye = torch.eye(h, dtype=x.dtype)
        D = torch.tensor(patterns(h), dtype=x.dtype)

        def orthogonal(K: torch.Tensor) -> torch.Tensor:
            S = torch.zeros(len(K), h, h, dtype=x.dtype)
            S[:, upper[0], upper[1]] = K
            S = S - S.transpose(1, 2)
            return torch.linalg.solve(eye + S, eye - S)

        parts, norms = {}, {}
        for name, y in (("B", x[:, :half]), ("A", x[:, half:])):
            s = y[:, :h]
            U, V = orthogonal(y[:, cuts[0] : cuts[1]]), orthogonal(y[:, cuts[1] : cuts[2]])
            kept = s * (s.abs().argsort(1, descending=True).argsort(1) < k)
            for label, values in ((name, s), (f"{name}_k", kept), (f"E_{name}", s - kept)):
                parts[label] = (U * values[:, None, :]) @ V.transpose(1, 2)
                norms[label] = values.abs().amax(1)

        def top(B: torch.Tensor, A: torch.Tensor) -> torch.Tensor:
            products = (B[:, None] * D[None, 1:, None, :]) @ A[:, None]
            return torch.linalg.matrix_norm(products, 2).amax(1)

        claims = bounds(top(parts["B_k"], parts["A_k"]), norms, "2", None, broken)
        claimed = torch.stack(list(claims.values()), 1)
        return top(parts["B"], parts["A"])[:, None].expand_as(claimed), claimed

    def instance(x: Sequence[Any]) -> Instance:
        b, a = list(x[:half]), list(x[half:])
        return instance_2(
            b[:h],
            (b[cuts[0] : cuts[1]], b[cuts[1] :]),
            a[:h],
            (a[cuts[0] : cuts[1]], a[cuts[1] :]),
            (h, h, h),
            k,
        )

    return Search(f"2: width {h}, k = {k}", 2 * half, objective, instance, LABELS_2)


def searches(broken: Broken, size: int = 0) -> list[Search]:
    result = [_search_inf(3, 3 + min(size, 2), 3, 1, broken), _search_inf(2, 3 + min(size, 2), 2, 2, broken)]
    if size and broken != NO_SUM:
        result.append(_search_2(3, 1 + size % 2, broken))
    return result if broken == NO_SUM else [*result, _search_2(2, 1, broken)]


def queries(broken: Broken) -> list[Query]:
    def build() -> tuple[Sequence[Any], Any, Any]:
        import z3

        # p = 1, h = 2, n = 1, k = 1: A keeps its first row, B its only one; all four patterns
        b1, b2, a1, a2 = z3.Reals("b1 b2 a1 a2")

        def size(v: Any) -> Any:
            return z3.If(v >= 0, v, -v)

        d1, d2 = z3.Bools("d1 d2")
        zero = z3.RealVal(0)
        true = size(z3.If(d1, b1 * a1, zero) + z3.If(d2, b2 * a2, zero))
        core = size(b1 * a1)
        norm_b, rest = size(b1) + size(b2), size(a2)
        claimed = core if broken == NO_REMAINDER else core + norm_b * rest
        if broken == NO_SUM:
            claimed = norm_b * rest
        return [size(a1) >= size(a2)], true, claimed

    return [Query("inf: 1 x 2 x 1, k = 1", build)]


LEMMA = Lemma(
    name="alignment",
    statement="max_D ‖B D A‖_p <= max_D ‖B_k D A_k‖_p + R (both remainders; for p = ∞ the competition form)",
    source="theory.md section 3; Barsbey et al., ICLR 2026, Theorem 3.2",
    draw=draw,
    evaluate=evaluate,
    searches=searches,
    queries=queries,
    witnesses=(
        Witness(
            "inf: flat layers, k = 1",
            lambda: instance_inf(matrix([[1, 1]]), matrix([[1, 0], [1, 0]]), 2),
            "inf: remainder",
        ),
        Witness(
            "inf: rows of B compete",
            lambda: instance_inf(matrix([[1, 0], [1, 0]]), matrix([[1], [0]]), 1),
            "inf: competition",
        ),
        Witness(
            "2: A = B = I_1, nothing dropped",
            lambda: instance_2([fmpq(2)], ([], []), [fmpq(3)], ([], []), (1, 1, 1), 1),
            "2: remainder",
        ),
    ),
    broken={
        NO_REMAINDER: Variant("the remainder R_p left out"),
        NO_SUM: Variant("competition form without the core: max(‖B_k‖‖E_A‖, ‖E_B‖‖A‖)"),
    },
    weight=0.6,
)
