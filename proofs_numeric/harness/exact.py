"""Exact real numbers and exact linear algebra over the rationals.

A :class:`Real` is either a sum of rational multiples of square roots of rationals, whose sign is decided exactly, or
a number with an enclosure at every precision (a logarithm, a singular value), whose sign is decided by raising the
precision until zero is excluded. A comparison that stays open raises :class:`UndecidedError`; it is never guessed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import reduce
from itertools import product
from typing import TypeAlias

from flint import arb, ctx, fmpq, fmpq_mat, fmpz

Number: TypeAlias = "int | fmpq | Real"
Vector: TypeAlias = list[fmpq]
Terms: TypeAlias = tuple[tuple[fmpq, fmpq], ...]

_PRECISIONS = (64, 192, 768, 3072)


class UndecidedError(ArithmeticError):
    """The sign of a number could not be decided at the largest precision."""


def rational(value: int | float | Fraction | fmpq, below: int = 1) -> fmpq:
    """``value / below`` without rounding: a float is read as the dyadic rational that it is."""
    if isinstance(value, fmpq):
        return value / below
    exact = Fraction(value)
    return fmpq(exact.numerator, exact.denominator * below)


def snapped(value: float, largest: int) -> fmpq:
    """The rational nearest to ``value`` with denominator at most ``largest``."""
    near = Fraction(value).limit_denominator(largest)
    return fmpq(near.numerator, near.denominator)


def _is_square(x: fmpq) -> bool:
    return fmpz(x.p).is_square() and fmpz(x.q).is_square()


def _enclosed(terms: Terms) -> arb:
    total = arb(0)
    for coefficient, radicand in terms:
        total += arb(coefficient) * arb(radicand).sqrt()
    return total


def _grouped(terms: Terms) -> Terms:
    """One term for each class of radicands modulo squares: such roots are linearly independent over the rationals."""
    groups: list[tuple[fmpq, fmpq]] = []
    for coefficient, radicand in terms:
        if coefficient == 0 or radicand == 0:
            continue
        for i, (c, r) in enumerate(groups):
            if _is_square(r * radicand):
                ratio = radicand / r
                root = fmpq(fmpz(ratio.p).isqrt(), fmpz(ratio.q).isqrt())
                groups[i] = (c + coefficient * root, r)
                break
        else:
            groups.append((coefficient, radicand))
    return tuple((c, r) for c, r in groups if c != 0)


@dataclass(frozen=True, eq=False)
class Real:
    """A real number: ``terms`` (Σ c √r, exact) if not None, else ``enclosure()`` at the precision of ``flint.ctx``."""

    terms: Terms | None
    enclosure: Callable[[], arb]

    def __add__(self, other: Number) -> Real:
        b = real(other)
        if self.terms is not None and b.terms is not None:
            return _from_terms(_grouped(self.terms + b.terms))
        return Real(None, lambda: self.enclosure() + b.enclosure())

    def __mul__(self, other: Number) -> Real:
        b = real(other)
        if self.terms == () or b.terms == ():
            return real(0)  # exactly, whatever the other factor
        if self.terms is not None and b.terms is not None:
            return _from_terms(_grouped(tuple((c * d, r * s) for c, r in self.terms for d, s in b.terms)))
        return Real(None, lambda: self.enclosure() * b.enclosure())

    def __truediv__(self, other: Number) -> Real:
        b = real(other)
        if b.terms == ():
            raise ZeroDivisionError
        if self.terms == ():
            return self
        if self.terms is not None and b.terms is not None and len(b.terms) == 1:
            c, r = b.terms[0]
            return self * _from_terms(((1 / (c * r), r),))
        return Real(None, lambda: self.enclosure() / b.enclosure())

    def __neg__(self) -> Real:
        return self * -1

    def __sub__(self, other: Number) -> Real:
        return self + -real(other)

    __radd__ = __add__
    __rmul__ = __mul__

    def __rsub__(self, other: Number) -> Real:
        return real(other) - self

    def __float__(self) -> float:
        return float(self.enclosure())

    def sign(self) -> int:
        """−1, 0 or 1, decided; raises :class:`UndecidedError`."""
        terms = self.terms
        if terms is not None:
            terms = _grouped(terms)
            if not terms:
                return 0
        before = ctx.prec
        try:
            for precision in _PRECISIONS:
                ctx.prec = precision
                value = self.enclosure() if terms is None else _enclosed(terms)
                if value > 0:
                    return 1
                if value < 0:
                    return -1
                if value.is_zero():
                    return 0
        finally:
            ctx.prec = before
        raise UndecidedError(f"a number within {float(abs(value).upper()):.1e} of 0")


def _from_terms(terms: Terms) -> Real:
    return Real(terms, lambda: _enclosed(terms))


def real(value: Number) -> Real:
    """``value`` as a :class:`Real`."""
    if isinstance(value, Real):
        return value
    x = fmpq(value)
    return _from_terms(() if x == 0 else ((x, fmpq(1)),))


def sqrt(x: int | fmpq) -> Real:
    """√x of a rational x >= 0."""
    if x < 0:
        raise ValueError(f"sqrt of {x}")
    return _from_terms(() if x == 0 else ((fmpq(1), fmpq(x)),))


def root(x: Number) -> Real:
    """√x of a real x >= 0 (an enclosure, unless x is rational)."""
    x = real(x)
    if x.terms is not None and all(r == 1 for _, r in x.terms):
        return sqrt(sum((c for c, _ in x.terms), fmpq(0)))
    return Real(None, lambda: x.enclosure().nonnegative_part().sqrt())


def softplus(x: Number) -> Real:
    """log(1 + e^x)."""
    x = real(x)
    return Real(None, lambda: x.enclosure().exp().log1p())


def log_sum_exp(xs: Sequence[Number]) -> Real:
    """log Σ e^x."""
    ys = [real(x) for x in xs]
    return Real(None, lambda: reduce(lambda a, b: a + b, [y.enclosure().exp() for y in ys]).log())


def largest(values: Iterable[Number]) -> Real:
    """The largest of some numbers; exact if all are sums of roots."""
    items = [real(v) for v in values]
    if all(v.terms is not None for v in items):
        return reduce(lambda a, b: b if (b - a).sign() > 0 else a, items)
    return Real(None, lambda: reduce(lambda a, b: a.max(b), [v.enclosure() for v in items]))


def smallest(values: Iterable[Number]) -> Real:
    """The smallest of some numbers."""
    return -largest([-real(v) for v in values])


# -- linear algebra ------------------------------------------------------------------------------------------------


def matrix(rows: Sequence[Sequence[int | fmpq]]) -> fmpq_mat:
    """A rational matrix from rows."""
    return fmpq_mat([[fmpq(v) for v in row] for row in rows])


def identity(n: int) -> fmpq_mat:
    """The identity."""
    return diagonal([fmpq(1)] * n)


def diagonal(values: Sequence[int | fmpq], rows: int | None = None, columns: int | None = None) -> fmpq_mat:
    """Diagonal matrix, of shape (rows, columns) if given."""
    m, n = rows or len(values), columns or len(values)
    return fmpq_mat([[fmpq(values[i]) if i == j else fmpq(0) for j in range(n)] for i in range(m)])


def frobenius2(W: fmpq_mat) -> fmpq:
    """‖W‖_F²."""
    return sum((v * v for v in W.entries()), fmpq(0))


def row_l1(W: fmpq_mat) -> Vector:
    """The row ℓ1 norms."""
    return [sum((abs(v) for v in row), fmpq(0)) for row in W.tolist()]


def norm_inf(W: fmpq_mat) -> fmpq:
    """‖W‖_∞: the largest row ℓ1 norm."""
    return max(row_l1(W))


def is_psd(A: fmpq_mat) -> bool:
    """A ⪰ 0 for a symmetric rational matrix, by LDLᵀ: a zero pivot must have a zero row."""
    a = A.tolist()
    while a:
        pivots = [i for i in range(len(a)) if a[i][i] != 0]
        if any(a[i][i] < 0 for i in pivots):
            return False
        if not pivots:
            return all(v == 0 for row in a for v in row)
        p = pivots[0]
        rest = [i for i in range(len(a)) if i != p]
        a = [[a[i][j] - a[i][p] * a[p][j] / a[p][p] for j in rest] for i in rest]
    return True


def is_pd(A: fmpq_mat) -> bool:
    """A ≻ 0."""
    return is_psd(A) and A.det() != 0


def spectral_norm(M: fmpq_mat) -> Real:
    """σ_1(M), from the largest root of the characteristic polynomial of the Gram matrix; √rational where it is."""
    gram = M.transpose() * M if M.ncols() <= M.nrows() else M * M.transpose()
    if gram.nrows() == 1:
        return sqrt(gram[0, 0])
    polynomial = gram.charpoly().numer()
    factors = [f for f, _ in polynomial.factor()[1]]
    linear = [fmpq(-f[0], f[1]) for f in factors if f.degree() == 1]
    others = [f for f in factors if f.degree() > 1]
    exact = max(linear, default=None)

    def top() -> arb:
        roots = [r.real for f in others for r, _ in f.complex_roots()]
        return reduce(lambda a, b: a.max(b), roots)

    if not others:
        return sqrt(exact)
    best = Real(None, top)
    if exact is not None and (real(exact) - best).sign() > 0:
        return sqrt(exact)
    return Real(None, lambda: top().nonnegative_part().sqrt())


def cayley(K: Sequence[fmpq], n: int) -> fmpq_mat:
    """The rational orthogonal matrix ``(I + S)^{-1} (I − S)`` of the skew S with upper entries K."""
    s = [[fmpq(0)] * n for _ in range(n)]
    entries = iter(K)
    for i in range(n):
        for j in range(i + 1, n):
            s[i][j] = next(entries)
            s[j][i] = -s[i][j]
    S, one = fmpq_mat(s), identity(n)
    return (one + S).inv() * (one - S)


def with_spectrum(s: Sequence[fmpq], m: int, n: int, K_u: Sequence[fmpq], K_v: Sequence[fmpq]) -> fmpq_mat:
    """The m × n matrix ``U diag(s) Vᵀ`` with U, V from :func:`cayley`: its singular values are |s|."""
    return cayley(K_u, m) * diagonal(list(s), m, n) * cayley(K_v, n).transpose()


def skew_size(n: int) -> int:
    """How many numbers :func:`cayley` takes."""
    return n * (n - 1) // 2


# -- random rationals ----------------------------------------------------------------------------------------------


def draw_rational(rng: random.Random, bound: int = 4, denominators: Sequence[int] = (1, 1, 2, 3, 7)) -> fmpq:
    """A small rational; integers, zeros and ties come often, since degenerate cases break statements."""
    return fmpq(rng.randint(-bound, bound), rng.choice(denominators))


def draw_fraction(rng: random.Random) -> fmpq:
    """A rational in [0, 1], its ends included often."""
    q = rng.choice((1, 1, 2, 3, 5, 12, 100))
    return fmpq(rng.randint(0, q), q)


def draw_vector(rng: random.Random, n: int) -> Vector:
    """A non-zero rational vector of a random kind: generic, flat, flat with signs, sparse or geometric."""
    kind = rng.randrange(5)
    if kind == 0:
        values = [draw_rational(rng) for _ in range(n)]
    elif kind == 1:
        values = [fmpq(1)] * n
    elif kind == 2:
        values = [fmpq(rng.choice((-1, 1))) for _ in range(n)]
    elif kind == 3:
        values = [draw_rational(rng) if rng.random() < 0.4 else fmpq(0) for _ in range(n)]
    else:
        ratio = fmpq(rng.randint(1, 9), 10)
        values = [ratio**i for i in range(n)]
    if all(v == 0 for v in values):
        values[rng.randrange(n)] = fmpq(rng.randint(1, 5))
    return values


def draw_matrix(rng: random.Random, m: int, n: int) -> fmpq_mat:
    """A non-zero rational matrix: independent rows, or scaled copies of one row with signs (where rows are tight)."""
    if rng.random() < 0.5:
        return fmpq_mat([draw_vector(rng, n) for _ in range(m)])
    row, scales = draw_vector(rng, n), draw_vector(rng, m)
    return fmpq_mat([[s * v * rng.choice((-1, 1)) for v in row] for s in scales])


def draw_skew(rng: random.Random, n: int) -> Vector:
    """Numbers for :func:`cayley`; zero (the identity) comes often."""
    if rng.random() < 0.2:
        return [fmpq(0)] * skew_size(n)
    return [draw_rational(rng, 2, (1, 2, 3)) for _ in range(skew_size(n))]


def patterns(n: int) -> list[tuple[int, ...]]:
    """All 0/1 vectors of length n."""
    return list(product((0, 1), repeat=n))
