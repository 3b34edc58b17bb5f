"""Decoupled bound of ``max_D ‖B D A‖_∞``.

Statement. A (h, n), B (p, h), D diagonal with entries in [0, 1]:
``max_D ‖B D A‖_∞ <= max_i Σ_j max(Σ_m [b_im a_mj]_+, Σ_m [b_im a_mj]_−) <= max_i Σ_m |b_im| ‖a_m‖_1``, with
``[x]_− = max(−x, 0)``. The maximum over [0, 1] is at a 0/1 vertex. Equality where n = 1.

Proof. ``|Σ_m d_m b_im a_mj|`` is at most the positive or the negative part of its terms, whichever is larger: every
entry (i, j) picks its own D. ``D ↦ ‖B D A‖`` is convex, so a vertex attains the maximum. A local search over vertices
gives a LOWER bound and may stop early.

Source: certbound theory, section 3.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flint import fmpq, fmpq_mat

from proofs_numeric.harness.exact import (
    Vector,
    diagonal,
    draw_fraction,
    draw_matrix,
    identity,
    matrix,
    norm_inf,
    patterns,
    row_l1,
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

ONE_SIGN = "[x]_- dropped"


@dataclass(frozen=True)
class Instance:
    """B, A and one interior D."""

    B: fmpq_mat
    A: fmpq_mat
    d: Vector


def draw(rng: random.Random, size: int) -> Instance:
    p, h, n = (rng.randint(1, 4 + min(size, 3)) for _ in range(3))
    return Instance(draw_matrix(rng, p, h), draw_matrix(rng, h, n), [draw_fraction(rng) for _ in range(h)])


def decoupled(B: fmpq_mat, A: fmpq_mat, broken: Broken = None) -> fmpq:
    """The decoupled bound."""
    rows = []
    for b in B.tolist():
        total = fmpq(0)
        for j in range(A.ncols()):
            terms = [bm * A[m, j] for m, bm in enumerate(b)]
            plus = sum((t for t in terms if t > 0), fmpq(0))
            minus = sum((-t for t in terms if t < 0), fmpq(0))
            total += plus if broken == ONE_SIGN else max(plus, minus)
        rows.append(total)
    return max(rows)


def pattern_maximum(B: fmpq_mat, A: fmpq_mat) -> fmpq:
    """``max_D ‖B D A‖_∞`` over all 0/1 patterns."""
    return max(norm_inf(B * diagonal(d) * A) for d in patterns(A.nrows()))


def evaluate(x: Instance, broken: Broken) -> list[Comparison]:
    true = pattern_maximum(x.B, x.A)
    bound = decoupled(x.B, x.A, broken)
    result = [compare("max_D <= decoupled", true, bound)]
    if broken is None:
        product = max(sum((abs(b) * v for b, v in zip(row, row_l1(x.A), strict=True)), fmpq(0)) for row in x.B.tolist())
        result.append(compare("interior D <= vertices", norm_inf(x.B * diagonal(x.d) * x.A), true))
        result.append(compare("decoupled <= Σ |b_im| ‖a_m‖_1", bound, product))
        if x.A.ncols() == 1:
            result.append(compare("n = 1: decoupled <= max_D", bound, true))
    return result


def _search(p: int, h: int, n: int, broken: Broken) -> Search:
    cut, end = p * h, p * h + h * n

    def objective(v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        B, A = v[:, :cut].reshape(-1, p, h), v[:, cut:end].reshape(-1, h, n)
        D = torch.tensor(patterns(h), dtype=v.dtype)
        true = ((B[:, None] * D[None, :, None, :]) @ A[:, None]).abs().sum(3).amax((1, 2))
        terms = B[:, :, :, None] * A[:, None]
        plus, minus = terms.clamp(min=0).sum(2), (-terms).clamp(min=0).sum(2)
        return true, (plus if broken == ONE_SIGN else torch.maximum(plus, minus)).sum(2).amax(1)

    def instance(v: Sequence[Any]) -> Instance:
        B = fmpq_mat([list(v[i * h : (i + 1) * h]) for i in range(p)])
        A = fmpq_mat([list(v[cut + i * n : cut + (i + 1) * n]) for i in range(h)])
        return Instance(B, A, [fmpq(1, 2)] * h)

    return Search(f"{p} x {h} x {n}", end, objective, instance, ("max_D <= decoupled",))


def searches(broken: Broken, size: int = 0) -> list[Search]:
    return [_search(2, 4 + min(size, 2), 3, broken), _search(1, 3 + min(size, 2), 1, broken)]


def queries(broken: Broken) -> list[Query]:
    def build() -> tuple[Sequence[Any], Any, Any]:
        import z3

        # p = 1, h = 3, n = 2: only the products g_mj = b_m a_mj matter, and D
        g = [[z3.Real(f"g{m}{j}") for j in range(2)] for m in range(3)]
        d = [z3.Bool(f"d{m}") for m in range(3)]
        zero = z3.RealVal(0)

        def positive(v: Any) -> Any:
            return z3.If(v > 0, v, zero)

        computed, claimed = zero, zero
        for j in range(2):
            entry = sum((z3.If(d[m], g[m][j], zero) for m in range(3)), zero)
            plus = sum((positive(g[m][j]) for m in range(3)), zero)
            minus = sum((positive(-g[m][j]) for m in range(3)), zero)
            computed += z3.If(entry >= 0, entry, -entry)
            claimed += plus if broken == ONE_SIGN else z3.If(plus >= minus, plus, minus)
        return [], computed, claimed

    return [Query("1 x 3 x 2, all D", build)]


_LOCAL_B = matrix([[1, 1, 1]])
_LOCAL_A = matrix([[2, 0], [-3, 0], [-3, 0]])


def _local_search() -> Comparison:
    """Single flips from the first unit pattern: a local maximum, below the true one."""
    h = _LOCAL_A.nrows()

    def value(d: Sequence[int]) -> fmpq:
        return norm_inf(_LOCAL_B * diagonal(d) * _LOCAL_A)

    best = [1, 0, 0]
    improved = True
    while improved:
        improved = False
        for i in range(h):
            other = [1 - v if j == i else v for j, v in enumerate(best)]
            if value(other) > value(best):
                best, improved = other, True
    return compare("max_D against local search", pattern_maximum(_LOCAL_B, _LOCAL_A), value(best))


LEMMA = Lemma(
    name="decoupled",
    statement="max_D ‖B D A‖_∞ <= max_i Σ_j max(Σ_m [b_im a_mj]_+, Σ_m [b_im a_mj]_−) <= max_i Σ_m |b_im| ‖a_m‖_1",
    source="theory.md section 3",
    draw=draw,
    evaluate=evaluate,
    searches=searches,
    queries=queries,
    witnesses=(
        Witness(
            "n = 1",
            lambda: Instance(matrix([[1, -2, 3]]), matrix([[2], [5], [-1]]), [fmpq(1)] * 3),
            "n = 1: decoupled <= max_D",
        ),
        Witness(
            "identity: no entry competes",
            lambda: Instance(identity(2), identity(2), [fmpq(1)] * 2),
            "max_D <= decoupled",
        ),
    ),
    counterexamples=(Counterexample("local search over D read as an upper bound", _local_search),),
    broken={ONE_SIGN: Variant("only the positive parts kept")},
)
