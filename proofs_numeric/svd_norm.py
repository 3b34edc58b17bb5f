"""Spectral norm from an approximate SVD.

Statement. Any W (m, n), U (m, n), diagonal S >= 0 with largest entry s_1, and SQUARE V (n, n) with ``‖I − VᵀV‖ < 1``:
``‖W‖_2 <= (s_1 √(1 + ‖I − UᵀU‖) + ‖W V − U S‖) / √(1 − ‖I − VᵀV‖)``. With a thin V (fewer columns) it is false.

Proof. ``‖WV‖ <= ‖U‖ s_1 + ‖WV − US‖``, ``‖U‖² = ‖UᵀU‖ <= 1 + ‖I − UᵀU‖``; V is invertible with
``σ_min(V)² >= 1 − ‖I − VᵀV‖`` and ``‖W‖ <= ‖WV‖/σ_min(V)``. A thin V says nothing of the rest of W.

Source: certbound theory, section 6.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flint import fmpq, fmpq_mat

from proofs_numeric.harness.exact import (
    Vector,
    cayley,
    diagonal,
    draw_rational,
    draw_skew,
    identity,
    matrix,
    root,
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

NO_RESIDUAL = "residual dropped"
NO_V = "V taken as orthogonal"


@dataclass(frozen=True)
class Instance:
    """W and an approximate SVD of it, however poor."""

    W: fmpq_mat
    U: fmpq_mat
    s: Vector
    V: fmpq_mat


def draw(rng: random.Random, size: int) -> Instance:
    m, n = rng.randint(2, 3), 2
    noise = fmpq(1, rng.choice((2, 10, 1000)))

    def near(M: fmpq_mat) -> fmpq_mat:
        if rng.random() < 0.2:
            return M
        return fmpq_mat([[v + noise * draw_rational(rng, 1) / 2 for v in row] for row in M.tolist()])

    s = [abs(draw_rational(rng)) for _ in range(n)]
    U, V = cayley(draw_skew(rng, m), m), cayley(draw_skew(rng, n), n)
    thin = fmpq_mat([row[:n] for row in U.tolist()])
    W = thin * diagonal(s) * V.transpose()
    return Instance(near(W), near(thin), s, near(V))


def evaluate(x: Instance, broken: Broken) -> list[Comparison]:
    n = x.W.ncols()
    off_v = spectral_norm(identity(n) - x.V.transpose() * x.V)
    if (1 - off_v).sign() <= 0:
        return []
    off_u = spectral_norm(identity(len(x.s)) - x.U.transpose() * x.U)
    rest = spectral_norm(x.W * x.V - x.U * diagonal(x.s))
    top = root(off_u + 1) * max(x.s)
    if broken != NO_RESIDUAL:
        top = top + rest
    return [compare("‖W‖", spectral_norm(x.W), top if broken == NO_V else top / root(1 - off_v))]


def _search(broken: Broken) -> Search:
    def objective(v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        eye = torch.eye(2, dtype=v.dtype)
        W, U = v[:, :4].reshape(-1, 2, 2), v[:, 4:8].reshape(-1, 2, 2)
        V, s = v[:, 8:12].reshape(-1, 2, 2) / 4 + eye, v[:, 12:14].square()

        def norm(M: torch.Tensor) -> torch.Tensor:
            return torch.linalg.matrix_norm(M + 1e-13 * v[:, :1, None], 2)

        off_u, off_v = norm(eye - U.transpose(1, 2) @ U), norm(eye - V.transpose(1, 2) @ V)
        top = s.amax(1) * (1 + off_u).sqrt()
        if broken != NO_RESIDUAL:
            top = top + norm(W @ V - U * s[:, None, :])
        claimed = top if broken == NO_V else top / (1 - off_v).clamp(min=1e-12).sqrt()
        # outside the hypothesis there is no claim
        return norm(W), torch.where(off_v < 1, claimed, 1e6 + 0 * claimed)

    def instance(v: Sequence[Any]) -> Instance:
        W, U = (fmpq_mat([list(v[i : i + 2]), list(v[i + 2 : i + 4])]) for i in (0, 4))
        V = identity(2) + fmpq_mat([list(v[8:10]), list(v[10:12])]) * fmpq(1, 4)
        return Instance(W, U, [v[12] * v[12], v[13] * v[13]], V)

    return Search("2 x 2, any factors", 14, objective, instance, ("‖W‖",))


def searches(broken: Broken, size: int = 0) -> list[Search]:
    return [_search(broken)]


def queries(broken: Broken) -> list[Query]:
    def build() -> tuple[Sequence[Any], Any, Any]:
        import z3

        # 1 × 1, W = 1: numbers u, s, v with p = √(1 + |1 − u²|), q = √(1 − |1 − v²|)
        u, s, v, p, q = z3.Reals("u s v p q")

        def size(a: Any) -> Any:
            return z3.If(a >= 0, a, -a)

        hypotheses = [s >= 0, p >= 0, q > 0, p * p == 1 + size(1 - u * u), q * q == 1 - size(1 - v * v)]
        rest = 0 if broken == NO_RESIDUAL else size(v - u * s)
        return hypotheses, z3.RealVal(1) if broken == NO_V else q, s * p + rest

    return [Query("1 x 1", build)]


def _thin() -> Comparison:
    """W = diag(1, 2) with V = U = e_1, S = 1: no residual, orthonormal columns, and "bounds" 2 by 1."""
    W, e1 = matrix([[1, 0], [0, 2]]), matrix([[1], [0]])
    rest = spectral_norm(W * e1 - e1)
    off = spectral_norm(identity(1) - e1.transpose() * e1)
    return compare("thin V", spectral_norm(W), (root(off + 1) + rest) / root(1 - off))


LEMMA = Lemma(
    name="svd_norm",
    statement="‖W‖_2 <= (s_1 √(1+‖I−UᵀU‖) + ‖WV−US‖)/√(1−‖I−VᵀV‖), V square",
    source="theory.md section 6",
    draw=draw,
    evaluate=evaluate,
    searches=searches,
    queries=queries,
    witnesses=(
        Witness(
            "an exact SVD",
            lambda: Instance(matrix([[0, 2], [1, 0]]), identity(2), [fmpq(2), fmpq(1)], matrix([[0, 1], [1, 0]])),
            "‖W‖",
        ),
    ),
    counterexamples=(Counterexample("thin V: W = diag(1, 2), V = e_1", _thin),),
    broken={
        NO_RESIDUAL: Variant("‖WV − US‖ left out"),
        NO_V: Variant("√(1 − ‖I − VᵀV‖) left out"),
    },
)
