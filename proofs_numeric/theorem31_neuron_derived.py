"""Theorem 3.1, neuron part, derived form.

Statement. W of shape (m, n), row ℓ1 norms ν, exact (or one-sided valid) ε_ν, β_ν at k_ν, every row with tail ratio at
most ε_r at k_r (q_r = 2 or 1): ``‖W‖_∞ <= (1−ε_ν)/(1−β_ν) · (√(m k_r) + √(m n) ε_r)/k_ν · ‖W‖_F``.

Proof. The core identity for ν; per row ``‖w‖_1 <= √k_r ‖w_top‖_2 + ‖w_tail‖_1 <= (√k_r + √n ε_r)‖w‖_2``; then
Cauchy–Schwarz over the m rows.

Source: certbound theory, section 2 (its reading of Theorem 3.1 of Barsbey et al., ICLR 2026).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from flint import fmpq

from proofs_numeric.harness.exact import matrix
from proofs_numeric.harness.lemma import Broken, Comparison, Lemma, Query, Search, Variant, Witness
from proofs_numeric.harness.rows import RowInstance, draw_rows, evaluate_rows, row_query_hypotheses, row_search


def factor(
    root: Callable[[int], Any], m: int, n: int, k_row: int, k: int, epsilon_row: Any, broken: Broken = None
) -> Any:
    """``(√(m k_r) + √(m n) ε_r)/k_ν``."""
    row_term = root(m * n) * epsilon_row
    if broken == "row term halved":
        row_term = row_term / 2
    return (root(m * k_row) + row_term) / k


def evaluate(x: RowInstance, broken: Broken) -> list[Comparison]:
    return evaluate_rows(x, factor, broken)


def searches(broken: Broken, size: int = 0) -> list[Search]:
    sizes = ((3, 6, 2, 1, 2), (4, 3, 2, 1, 1), (2, 5, 1, 3, 2))
    return [row_search(m + size, n + size, k, kr, q, factor, broken) for m, n, k, kr, q in sizes]


def queries(broken: Broken) -> list[Query]:
    def row_step() -> tuple[Sequence[Any], Any, Any]:
        import z3

        # the row step alone, which is where the lemma can fail: n = 5, k_r = 1, q_r = 2, row (1, x, x, x, x)
        x, epsilon, norm, root5 = z3.Reals("x epsilon norm root5")
        hypotheses = [0 <= x, x <= 1, norm >= 0, norm * norm == 1 + 4 * x * x, root5 > 0, root5 * root5 == 5]
        hypotheses += [epsilon >= 0, epsilon <= 1, epsilon * norm >= 2 * x]
        half = 2 if broken == "row term halved" else 1
        return hypotheses, 1 + 4 * x, (1 + root5 * epsilon / half) * norm

    def whole() -> tuple[Sequence[Any], Any, Any]:
        hypotheses, v = row_query_hypotheses()
        l1 = 2 * (1 + v["b"])
        # k_ν = m = 2: ε_ν = 0 and (1 − β_mean) k_ν ‖W‖_∞ = Σν, so the claim reads Σν <= (√2 + 2 ε_r) ‖W‖_F
        return hypotheses, l1, (v["root2"] + 2 * v["epsilon_row"]) * v["fro"]

    row = Query("row step, n = 5, k_r = 1, q_r = 2", row_step)
    return [row] if broken else [row, Query("2 x 2 with equal rows, k_ν = 2, k_r = 1, q_r = 1", whole)]


LEMMA = Lemma(
    name="theorem31_neuron_derived",
    statement="‖W‖_∞ <= (1−ε_ν)/(1−β_ν) · (√(m k_r) + √(m n) ε_r)/k_ν · ‖W‖_F",
    source="theory.md section 2; Barsbey et al., ICLR 2026, Theorem 3.1",
    draw=draw_rows,
    evaluate=evaluate,
    searches=searches,
    queries=queries,
    witnesses=(
        Witness(
            "flat matrix, k_r = n",
            lambda: RowInstance(matrix([[1, -1, 1], [1, 1, 1]]), 1, 3, 2, fmpq(0), fmpq(0), fmpq(0)),
            "mean",
        ),
    ),
    broken={
        "row term halved": Variant("√(m n) ε_r replaced by half of it"),
        "beta dropped": Variant("β_ν set to 0", ("exact", "ascent")),
    },
)
