"""Theorem 3.1, neuron part, as printed.

Statement. As in the derived form, with ``(1−ε_ν)/(1−β_ν) · (√(m k_r) + √(m n) ε_r/k_ν) · ‖W‖_F``; in the paper's square
case h = m = n this is its ``√(h k_r) + h ε_r/k_ν``. It is never below the derived form. For m ≠ n, reading h as m, as
n or as min(m, n) is false.

Proof. k_ν >= 1, so ``√(m k_r) >= √(m k_r)/k_ν``, and the derived form holds.

Source: Barsbey et al., ICLR 2026, Theorem 3.1; certbound theory, section 2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from flint import fmpq, fmpq_mat

from proofs_numeric.harness.exact import matrix, sqrt
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
from proofs_numeric.harness.rows import (
    RowInstance,
    draw_rows,
    evaluate_rows,
    row_query_hypotheses,
    row_search,
    row_tail,
)
from proofs_numeric.theorem31_neuron_derived import factor as derived_factor


def factor(
    root: Callable[[int], Any], m: int, n: int, k_row: int, k: int, epsilon_row: Any, broken: Broken = None
) -> Any:
    """``√(m k_r) + √(m n) ε_r/k_ν``."""
    row_term = root(m * n) * epsilon_row
    if broken == "row term halved":
        row_term = row_term / 2
    if broken == "h = min(m, n)":
        h = min(m, n)
        return root(h * k_row) + epsilon_row * h / k
    return root(m * k_row) + row_term / k


def evaluate(x: RowInstance, broken: Broken) -> list[Comparison]:
    result = evaluate_rows(x, factor, broken)
    if broken is None:
        m, n, tail = x.W.nrows(), x.W.ncols(), row_tail(x.W, x.k_row, x.q_row)
        forms = [f(sqrt, m, n, x.k_row, x.k, tail) for f in (derived_factor, factor)]
        result.append(compare("derived <= printed", *forms))
    return result


def searches(broken: Broken, size: int = 0) -> list[Search]:
    sizes = ((3, 6, 1, 1, 2), (4, 3, 2, 1, 1), (2, 5, 1, 3, 2))
    return [row_search(m + size, n + size, k, kr, q, factor, broken) for m, n, k, kr, q in sizes]


def queries(broken: Broken) -> list[Query]:
    def one_row() -> tuple[Sequence[Any], Any, Any]:
        import z3

        # m = 1, n = 5, k_ν = k_r = 1, q_r = 2, row (1, x, x, x, x): here the printed and the derived form agree
        x, epsilon, norm, root5 = z3.Reals("x epsilon norm root5")
        hypotheses = [0 <= x, x <= 1, norm >= 0, norm * norm == 1 + 4 * x * x, root5 > 0, root5 * root5 == 5]
        hypotheses += [epsilon >= 0, epsilon <= 1, epsilon * norm >= 2 * x]
        half = 2 if broken == "row term halved" else 1
        return hypotheses, 1 + 4 * x, (1 + root5 * epsilon / half) * norm

    def whole() -> tuple[Sequence[Any], Any, Any]:
        hypotheses, v = row_query_hypotheses()
        l1 = 2 * (1 + v["b"])
        # k_ν = m = 2: ε_ν = 0, (1 − β_mean) k_ν ‖W‖_∞ = Σν: the claim reads Σν <= 2 (√2 + ε_r) ‖W‖_F
        return hypotheses, l1, 2 * (v["root2"] + v["epsilon_row"]) * v["fro"]

    row = Query("1 x 5, k_r = 1, q_r = 2", one_row)
    return [row] if broken else [row, Query("2 x 2 with equal rows, k_ν = 2, k_r = 1, q_r = 1", whole)]


def _with_h(rows: list[list[int]], h: int, k: int, k_row: int) -> Comparison:
    """The printed form with the given h, on a matrix that is not square."""
    W = matrix(rows)

    def read(root: Callable[[int], Any], m: int, n: int, kr: int, kv: int, epsilon_row: Any, broken: Broken) -> Any:
        return root(h * kr) + epsilon_row * h / kv

    return _mean(W, k, k_row, read)


def _mean(W: fmpq_mat, k: int, k_row: int, read: Any) -> Comparison:
    return evaluate_rows(RowInstance(W, k, k_row, 2, fmpq(0), fmpq(0), fmpq(0)), read, None)[0]


LEMMA = Lemma(
    name="theorem31_neuron_printed",
    statement="‖W‖_∞ <= (1−ε_ν)/(1−β_ν) · (√(m k_r) + √(m n) ε_r/k_ν) · ‖W‖_F",
    source="Barsbey et al., ICLR 2026, Theorem 3.1",
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
    counterexamples=(
        Counterexample("h = m (1 x 9, all ones, k_r = 1)", lambda: _with_h([[1] * 9], 1, 1, 1)),
        Counterexample("h = min(m, n) (1 x 9, all ones, k_r = 1)", lambda: _with_h([[1] * 9], 1, 1, 1)),
        Counterexample("h = n (4 x 1, all ones, k_ν = k_r = 1)", lambda: _with_h([[1]] * 4, 1, 1, 1)),
    ),
    broken={
        "row term halved": Variant("√(m n) ε_r replaced by half of it"),
        "h = min(m, n)": Variant("h of the square case read as min(m, n)", ("exact", "ascent")),
    },
)
