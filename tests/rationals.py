"""Matrices in exact rationals: the oracle of the rigorous bounds."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import numpy.typing as npt

Rows = list[list[Fraction]]


def fractions(A: npt.NDArray[np.float64]) -> Rows:
    """The matrix that the floats stand for."""
    return [[Fraction(x) for x in row] for row in A.tolist()]


def exact_sum(v: npt.NDArray[np.float64]) -> Fraction:
    """The sum without rounding."""
    return sum((Fraction(x) for x in v.ravel().tolist()), Fraction(0))


def product(A: Rows, B: Rows) -> Rows:
    """``A B``."""
    columns = list(zip(*B, strict=True))
    return [[sum((x * y for x, y in zip(row, c, strict=True)), Fraction(0)) for c in columns] for row in A]


def transposed(A: Rows) -> Rows:
    """``Aᵀ``."""
    return [list(column) for column in zip(*A, strict=True)]


def semidefinite(A: Rows) -> bool:
    """``A ⪰ 0``: symmetric elimination; a zero pivot needs a zero row."""
    n = len(A)
    A = [row[:] for row in A]
    for i in range(n):
        if A[i][i] < 0 or (A[i][i] == 0 and any(A[i][j] != 0 for j in range(i, n))):
            return False
        if A[i][i] == 0:
            continue
        for j in range(i + 1, n):
            factor = A[j][i] / A[i][i]
            for k in range(i, n):
                A[j][k] -= factor * A[i][k]
    return True


def moved(A: Rows, by: Fraction) -> Rows:
    """``A + by I``."""
    return [[x + (by if i == j else 0) for j, x in enumerate(row)] for i, row in enumerate(A)]


def spectral_norm_at_most(A: Rows, s: Fraction) -> bool:
    """``‖A‖_2 <= s``: ``s² I − A Aᵀ ⪰ 0``."""
    gram = product(A, transposed(A)) if len(A) <= len(A[0]) else product(transposed(A), A)
    return semidefinite(moved([[-x for x in row] for row in gram], s * s))


def spectral_norm_at_least(A: Rows, s: Fraction) -> bool:
    """``‖A‖_2 >= s``: an s a hair smaller is no upper bound (exact unless ‖A‖ is within 2^-200 of s)."""
    return s == 0 or not spectral_norm_at_most(A, s * (1 - Fraction(1, 2**200)))
