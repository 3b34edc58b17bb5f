"""Exact arithmetic for tests: rational intervals, singular values by isolated roots, integer orthogonal matrices.

Nothing here is a float computation: characteristic polynomials are exact (python-flint), their roots enclosed to PREC
bits by Arb, square roots rounded outward with isqrt.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from flint import ctx, fmpq, fmpq_mat

PREC = 320
BITS = 240  # of a root


def root_below(q: Fraction) -> Fraction:
    """A rational at most √q, to a relative 2^-BITS."""
    if q <= 0:
        return Fraction(0)
    shift = max(0, 2 * BITS - q.numerator.bit_length() + q.denominator.bit_length())
    shift += shift % 2
    return Fraction(math.isqrt((q.numerator << shift) // q.denominator), 1 << shift // 2)


def root_above(q: Fraction) -> Fraction:
    below = root_below(q)
    return below if below * below == q else below * (1 + Fraction(1, 2 ** (BITS - 4)))


class R:
    """A number >= 0 between two rationals."""

    def __init__(self, lo, hi=None):
        self.lo, self.hi = Fraction(lo), Fraction(lo if hi is None else hi)
        assert 0 <= self.lo <= self.hi

    def __add__(self, o):
        o = o if isinstance(o, R) else R(o)
        return R(self.lo + o.lo, self.hi + o.hi)

    def __sub__(self, o):
        o = o if isinstance(o, R) else R(o)
        return R(max(Fraction(0), self.lo - o.hi), max(Fraction(0), self.hi - o.lo))

    def __mul__(self, o):
        o = o if isinstance(o, R) else R(o)
        return R(self.lo * o.lo, self.hi * o.hi)

    def __truediv__(self, o):
        o = o if isinstance(o, R) else R(o)
        return R(self.lo / o.hi, self.hi / o.lo)

    def sqrt(self):
        return R(root_below(self.lo), root_above(self.hi))

    def max(self, o):
        o = o if isinstance(o, R) else R(o)
        return R(max(self.lo, o.lo), max(self.hi, o.hi))

    def min(self, o):
        o = o if isinstance(o, R) else R(o)
        return R(min(self.lo, o.lo), min(self.hi, o.hi))


def total(items) -> R:
    items = list(items)
    return R(sum((i.lo for i in items), Fraction(0)), sum((i.hi for i in items), Fraction(0)))


def rational(M) -> list[list[Fraction]]:
    """The exact entries of an array of any float or integer type."""
    return [[Fraction(int(v)) if np.asarray(v).dtype.kind in "iu" else Fraction(float(v)) for v in row] for row in M]


def _flint(rows) -> fmpq_mat:
    return fmpq_mat(len(rows), len(rows[0]), [fmpq(v.numerator, v.denominator) for row in rows for v in row])


def _fraction(x) -> Fraction:
    q = x.fmpq()
    return Fraction(int(q.p), int(q.q))


def singular_values(rows: list[list[Fraction]]) -> list[R]:
    """All min(m, n) singular values, decreasing, each between rationals a relative 2^-100 apart or closer."""
    if len(rows) > len(rows[0]):
        rows = [list(c) for c in zip(*rows, strict=True)]
    M = _flint(rows)
    polynomial = (M * M.transpose()).charpoly().numer()
    coefficients = polynomial.coeffs()
    zeros = next(i for i, c in enumerate(coefficients) if c != 0)
    old, ctx.prec = ctx.prec, PREC
    try:
        squares = [
            (max(Fraction(0), _fraction(z.real.lower())), _fraction(z.real.upper()))
            for z, times in type(polynomial)(coefficients[zeros:]).complex_roots()
            for _ in range(times)
        ]
    finally:
        ctx.prec = old
    found = sorted((R(root_below(lo), root_above(hi)) for lo, hi in squares), key=lambda s: -s.hi)
    assert all(s.hi - s.lo <= s.hi / 2**100 for s in found)
    return found + [R(0)] * zeros


def cayley(rng: np.random.Generator, n: int, largest: int = 2) -> tuple[np.ndarray, int]:
    """``(M, d)``: an integer matrix with ``M Mᵀ = d² I``, from ``(I − S)(I + S)^{-1}``, S skew with small integers."""
    upper = np.triu(rng.integers(-largest, largest + 1, (n, n)), 1)
    skew = [[Fraction(int(v)) for v in row] for row in upper - upper.T]
    one = [[Fraction(int(i == j)) for j in range(n)] for i in range(n)]
    minus = _flint([[a - b for a, b in zip(r, s, strict=True)] for r, s in zip(one, skew, strict=True)])
    plus = _flint([[a + b for a, b in zip(r, s, strict=True)] for r, s in zip(one, skew, strict=True)])
    numerator, d = (minus * plus.inv()).numer_denom()
    return np.array([[int(numerator[i, j]) for j in range(n)] for i in range(n)], dtype=object), int(d)
