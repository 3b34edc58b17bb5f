"""The truth about one matrix in exact arithmetic: integers, their characteristic polynomial, and Arb balls for roots.

W is written as integers times one power of two. The polynomial ``p`` of ``W Wᵀ`` (smaller side) has real roots σ_i²
only, so Descartes' rule of signs is exact on ``p(y + t²)``: its sign changes count the σ_i > t, its zero roots those
= t. No float decides anything here.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from flint import arb, ctx, fmpq, fmpz, fmpz_mat, fmpz_poly

PRECISION = 256  # bits of a ball

Number = float | Fraction
Pair = tuple[int, int]


def integers(W: npt.NDArray[np.float64]) -> tuple[list[list[int]], int]:
    """``(A, e)``: W = A 2^e, exactly; e as large as possible, 0 for W = 0.

    >>> integers(np.array([[0.5, 3.0]]))
    ([[1, 6]], -1)
    """
    mantissas, exponents = np.frexp(W)
    whole = np.ldexp(mantissas, 53).astype(np.int64).tolist()
    exponents = (exponents - 53).tolist()
    filled = [e for ms, es in zip(whole, exponents, strict=True) for v, e in zip(ms, es, strict=True) if v]
    if not filled:
        return [[0] * len(row) for row in whole], 0
    least = min(filled)
    A = [
        [v << (e - least) if v else 0 for v, e in zip(ms, es, strict=True)]
        for ms, es in zip(whole, exponents, strict=True)
    ]
    bits = 0
    for row in A:
        for v in row:
            bits |= v
    zeros = (bits & -bits).bit_length() - 1
    return [[v >> zeros for v in row] for row in A], least + zeros


@dataclass(frozen=True, eq=False)
class Vector:
    """θ, decreasing, as integers (row norms) or balls (singular values): what Theorem 3.1's formulas ask for."""

    values: list[Any]

    @cached_property
    def heads(self) -> list[Any]:
        """``Σ_{i<=k} θ_i``."""
        sums, total = [], 0
        for v in self.values:
            total = total + v
            sums.append(total)
        return sums

    @cached_property
    def tails(self) -> list[Any]:
        """``Σ_{i>k} θ_i``."""
        sums, total = [], 0
        for v in reversed(self.values):
            sums.append(total)
            total = total + v
        return sums[::-1]


class Exact:
    """All that the checks ask of one matrix."""

    def __init__(self, W: npt.NDArray[np.float64]) -> None:
        ctx.prec = PRECISION
        self.shape: Pair = (W.shape[0], W.shape[1])
        self.rows, self.exponent = integers(W)

    # ------------------------------------------------------------ units of 2^exponent

    def units(self, x: Number) -> Pair:
        """``(N, D)``: x = N/D 2^exponent, D > 0."""
        num, den = x.as_integer_ratio()
        if self.exponent >= 0:
            den <<= self.exponent
        else:
            num <<= -self.exponent
        if not den & (den - 1):  # a float: cancel the power of two
            common = ((num | den) & -(num | den)).bit_length() - 1
            return num >> common, den >> common
        return num, den

    def ball(self, x: Number) -> Any:
        """x as a ball in units of 2^exponent; exact for a float."""
        num, den = self.units(x)
        return arb(fmpz(num)) / arb(fmpz(den))

    # ------------------------------------------------------------ norms that are sums

    @cached_property
    def row_sums(self) -> list[int]:
        """ν, decreasing."""
        return sorted((sum(map(abs, row)) for row in self.rows), reverse=True)

    @cached_property
    def column_sum(self) -> int:
        """‖W‖_1."""
        return max(sum(map(abs, column)) for column in zip(*self.rows, strict=True))

    @cached_property
    def square_sum(self) -> int:
        """‖W‖_F²."""
        return sum(v * v for row in self.rows for v in row)

    def against(self, x: Number, truth: int) -> int:
        """Sign of x − truth (truth in units)."""
        num, den = self.units(x)
        return _sign(num - truth * den)

    def against_root(self, x: Number, square: int) -> int:
        """Sign of x − √square, for x >= 0."""
        num, den = self.units(x)
        return _sign(num * num - square * den * den) if num >= 0 else -1

    # ------------------------------------------------------------ singular values

    @cached_property
    def polynomial(self) -> Any:
        """Characteristic polynomial of W Wᵀ or WᵀW, whichever is smaller."""
        A = fmpz_mat(self.rows)
        T = A.transpose()
        return (A * T if self.shape[0] <= self.shape[1] else T * A).charpoly()

    def count(self, x: Number) -> Pair:
        """``(singular values > x, singular values >= x)``, for x >= 0."""
        num, den = self.units(x)
        p = self.polynomial
        if den != 1:
            degree, square, power, coefficients = p.degree(), den * den, 1, p.coeffs()
            for k in range(degree, -1, -1):
                coefficients[k] *= power
                power *= square
            p = fmpz_poly(coefficients)
        q = p(fmpz_poly([num * num, 1])).coeffs()
        signs = [c > 0 for c in q if c != 0]
        above = sum(a != b for a, b in pairwise(signs))
        equal = next(i for i, c in enumerate(q) if c != 0)
        return above, above + equal

    def sigma_at_most(self, x: Number, i: int = 1) -> bool:
        """σ_i <= x?"""
        return x >= 0 and self.count(x)[0] < i

    def sigma_at_least(self, x: Number, i: int = 1) -> bool:
        """σ_i >= x?"""
        return x <= 0 or self.count(x)[1] >= i

    @property
    def sigma_is_affordable(self) -> bool:
        """Whether :attr:`sigma` ends: FLINT isolates roots that lie 2^1000 apart for minutes, or for ever."""
        return max((int(c).bit_length() for c in self.polynomial.coeffs()), default=0) <= 1500

    @cached_property
    def sigma(self) -> Vector:
        """Singular values as balls, decreasing, from certified roots."""
        coefficients = self.polynomial.coeffs()
        zeros = next(i for i, c in enumerate(coefficients) if c != 0)
        roots: list[Any] = []
        if zeros < len(coefficients) - 1:
            for root, times in fmpz_poly(coefficients[zeros:]).complex_roots():
                roots += [root.real] * times  # real by symmetry: the imaginary part is rounding
        roots.sort(key=lambda b: b.mid(), reverse=True)
        return Vector([b.sqrt() for b in roots] + [arb(0)] * zeros)

    # ------------------------------------------------------------ Theorem 3.1 as balls, in units of 2^exponent

    @cached_property
    def frobenius(self) -> Any:
        """‖W‖_F."""
        return arb(fmpz(self.square_sum)).sqrt()

    @cached_property
    def neuron(self) -> Vector:
        """ν as exact integers."""
        return Vector(self.row_sums)

    def vector(self, part: str) -> Vector:
        """σ or ν."""
        return self.sigma if part == "spectral" else self.neuron

    @cached_property
    def row_tails_squared(self) -> list[Any]:
        """``max_i ‖w_i − (w_i)_k‖²/‖w_i‖²`` for k = 1 … n, as exact fractions (fmpq)."""
        n = self.shape[1]
        worst = [fmpq(0)] * n
        for row in self.rows:
            squares = sorted(v * v for v in row)
            total = sum(squares)
            left = 0
            if total:
                for j in range(n - 1):  # the j + 1 smallest are left when n − j − 1 are kept
                    left += squares[j]
                    if left:
                        worst[n - j - 2] = max(worst[n - j - 2], fmpq(left, total))
        return worst

    @cached_property
    def row_tails(self) -> list[Any]:
        """ε_r for each k_r, as balls."""
        return [arb(q).sqrt() for q in self.row_tails_squared]

    def row_factor(self, form: str, k: int, k_row: int | None) -> Any:
        """The least factor over k_r (or the one at ``k_row``); see theory, section 2."""
        m, n = self.shape
        chosen = range(1, n + 1) if k_row is None else (k_row,)
        found: list[Any] = []
        for kr in chosen:
            eps = self.row_tails[kr - 1]
            if form == "sharp":
                square = self.row_tails_squared[kr - 1]
                if square > fmpq(n - kr, n):
                    square = fmpq(n - kr, n)
                found.append((arb(kr) * arb(1 - square)).sqrt() + (arb(n - kr) * arb(square)).sqrt())
            elif form == "derived":
                found.append((arb(m * kr).sqrt() + arb(m * n).sqrt() * eps) / k)
            else:
                found.append(arb(m * kr).sqrt() + arb(m * n).sqrt() * eps / k)
        least = found[0]
        for ball in found[1:]:
            least = least.min(ball)
        return least

    def spread(self, part: str, dispersion: str, k: int) -> Any:
        """1 − β, as a ball."""
        v = self.vector(part)
        if k == 1:
            return arb(1)
        if part == "neuron":  # rational: 1 exactly where rows tie
            num, den = (v.values[k - 1], v.values[0]) if dispersion == "kth" else (v.heads[k - 1], k * v.values[0])
            return arb(fmpq(num, den))
        top = _ball(v.values[0])
        return _ball(v.values[k - 1]) / top if dispersion == "kth" else _ball(v.heads[k - 1]) / (k * top)

    def epsilon(self, part: str, k: int) -> Any:
        """The exact tail ratio, as a ball."""
        v = self.vector(part)
        return _ball(v.tails[k - 1]) / _ball(v.heads[-1])

    def form(self, part: str, form: str, dispersion: str, k: int, k_row: int | None = None) -> Any:
        """The value of the form with exact ε and β; None where 1 − β = 0 (the bound is ∞). W ≠ 0."""
        v = self.vector(part)
        size = len(v.values)
        head, tail, top = _ball(v.heads[k - 1]), _ball(v.tails[k - 1]), _ball(v.values[0])
        if form == "sharp":
            kth = _ball(v.values[k - 1]) / top
            if dispersion == "mean":
                s = head / top  # S >= 1: θ_1 is one of the head
                a = (_ball(v.heads[k - 1] - v.values[0]) / top) ** 2 / (k - 1) if k > 1 else arb(0)
            else:
                s, a = 1 + (k - 1) * kth, (k - 1) * kth**2
            t = (tail / head * s) ** 2 / (size - k) if k < size else arb(0)
            c = 1 / (1 + a + t).sqrt()
            return c * self.frobenius * (1 if part == "spectral" else self.row_factor("sharp", k, k_row))
        spread = self.spread(part, dispersion, k)
        if not spread > 0:
            return None
        factor = arb(size).sqrt() / k if part == "spectral" else self.row_factor(form, k, k_row)
        return head / _ball(v.heads[-1]) / spread * factor * self.frobenius

    def two_sided(self, part: str, k: int) -> Any:
        """The lower bound's exact value: ``√(Σ_{i<=k} σ_i²/k)``, ``(1 − ε)/k ‖W‖_F``."""
        v = self.vector(part)
        if part == "spectral":
            total = arb(0)
            for s in v.values[:k]:
                total = total + s * s
            return (total / k).sqrt()
        return _ball(v.heads[k - 1]) / _ball(v.heads[-1]) / k * self.frobenius


def semidefinite(M: npt.NDArray[np.float64], error: float = 0.0) -> bool:
    """``M − error I ⪰ 0`` for a symmetric M? All roots are real, so the signs of the coefficients decide."""
    rows, _ = integers(np.vstack([M, np.full((1, len(M)), error)]))
    shift = rows.pop()[0]
    for i, row in enumerate(rows):
        row[i] -= shift
    coefficients = fmpz_mat(rows).charpoly().coeffs()  # Π (x − λ_i): signs alternate, or vanish
    return all(c * (-1) ** (len(M) - k) >= 0 for k, c in enumerate(coefficients))


def gram_difference(A: npt.NDArray[np.float64], computed: npt.NDArray[np.float64]) -> Fraction:
    """``‖computed − A Aᵀ‖_F²``."""
    rows = [[Fraction(float(v)) for v in row] for row in A]
    total = Fraction(0)
    for i, a in enumerate(rows):
        for j, b in enumerate(rows):
            total += (Fraction(float(computed[i, j])) - sum(x * y for x, y in zip(a, b, strict=True))) ** 2
    return total


def float_ball(x: Number | int) -> Any:
    """x as a ball; exact for a float."""
    num, den = x.as_integer_ratio()
    return arb(fmpz(num)) / arb(fmpz(den))


def _ball(x: Any) -> Any:
    return arb(fmpz(x)) if isinstance(x, int) else x


def _sign(x: int) -> int:
    return (x > 0) - (x < 0)
