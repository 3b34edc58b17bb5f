"""What the campaign draws: Hypothesis draws a compact recipe, numpy fills the matrices from it.

A draw is (kind, shape, seed, option, shift); it yields ``FAMILY`` matrices, since a draw costs as much as the checks
of one. The numpy seed joins the draw's number to the chunk's and to the draw's place in it, so that Hypothesis's taste
for small numbers repeats nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

F64 = npt.NDArray[np.float64]
Rng = np.random.Generator

FAMILY: Final = 4
SIDE: Final = 6
_LARGEST: Final = (1, 3, 10, 1000, 2**20, 2**53)
_SMALLEST: Final = 5e-324


@dataclass(frozen=True, eq=False)
class Drawn:
    """One matrix; ``turn`` decides which of the rotated checks it gets."""

    kind: str
    matrix: F64
    turn: int


def _gaussian(rng: Rng, m: int, n: int, option: int) -> F64:
    return rng.standard_normal((m, n))


def _integers(rng: Rng, m: int, n: int, option: int) -> F64:
    largest = _LARGEST[option % len(_LARGEST)]
    return rng.integers(-largest, largest + 1, (m, n)).astype(np.float64)


def _either(rng: Rng, m: int, n: int, option: int) -> F64:
    return (_gaussian, _integers, _hard_sums)[option % 3](rng, m, n, option // 3)


def _one_row(rng: Rng, m: int, n: int, option: int) -> F64:
    return _either(rng, 1, n, option)


def _one_column(rng: Rng, m: int, n: int, option: int) -> F64:
    return _either(rng, m, 1, option)


def _rank_one(rng: Rng, m: int, n: int, option: int) -> F64:
    return _either(rng, m, 1, option % 2) @ _either(rng, 1, n, option % 2)


def _orthonormal(rng: Rng, m: int, n: int) -> F64:
    tall = np.linalg.qr(rng.standard_normal((max(m, n), min(m, n))))[0]
    return np.asarray(tall if m >= n else tall.T, dtype=np.float64)


def _orthogonal(rng: Rng, m: int, n: int, option: int) -> F64:
    """Hadamard, signed permutation, Givens rotations in floats, QR: Theorem 3.1 with ``mean`` is an equality here."""
    if option % 4 == 0:
        H = np.ones((1, 1))
        while 2 * len(H) <= max(m, n):
            H = np.block([[H, H], [H, -H]])
        return H * rng.choice([-1.0, 1.0], len(H)) * float(rng.integers(1, 8))
    if option % 4 == 1:
        P = np.zeros((m, n))
        r = min(m, n)
        P[rng.permutation(m)[:r], rng.permutation(n)[:r]] = rng.choice([-1.0, 1.0], r)
        return P * float(rng.integers(1, 8))
    if option % 4 == 2:
        G = np.eye(m, n)
        for _ in range(m):
            i, angle = int(rng.integers(max(1, m - 1))), float(rng.uniform(0, 2 * math.pi))
            if m > 1:
                c, s = math.cos(angle), math.sin(angle)
                G[[i, i + 1]] = np.array([[c, -s], [s, c]]) @ G[[i, i + 1]]
        return G
    return _orthonormal(rng, m, n)


def _spectrum(rng: Rng, m: int, n: int, option: int) -> F64:
    """Singular values i^-a, or one and a flat tail."""
    r = min(m, n)
    sigma = np.arange(1.0, r + 1) ** -float((0, 0.5, 1, 2, 4, 12)[option % 6])
    if option >= 12:
        sigma = np.where(np.arange(r) == 0, 1.0, 2.0 ** -float(option))
    return np.asarray((_orthonormal(rng, m, r) * sigma) @ _orthonormal(rng, r, n), dtype=np.float64)


def _decaying_rows(rng: Rng, m: int, n: int, option: int) -> F64:
    return _either(rng, m, n, option % 2) * 2.0 ** (-float(option) * np.arange(m))[:, None]


def _powers_of_two(rng: Rng, m: int, n: int, option: int) -> F64:
    span = (2, 30, 60, 500)[option % 4]
    rows, columns = rng.integers(-span, span + 1, (m, 1)), rng.integers(-span, span + 1, (1, n))
    return np.ldexp(rng.integers(-7, 8, (m, n)).astype(np.float64), rows + columns)


def _huge_range(rng: Rng, m: int, n: int, option: int) -> F64:
    """1e±300 in one matrix; powers of two (whose sums round least) in half of them."""
    exponents = rng.integers(-1074, 1021, (m, n))
    mantissas = rng.choice([-1.0, 0.0, 1.0], (m, n)) if option % 2 else rng.standard_normal((m, n))
    return np.ldexp(mantissas, exponents)


def _subnormal(rng: Rng, m: int, n: int, option: int) -> F64:
    if option % 3 == 0:
        return rng.integers(-9, 10, (m, n)) * _SMALLEST
    if option % 3 == 1:
        return rng.integers(-(2**52), 2**52, (m, n)) * _SMALLEST
    return np.ldexp(rng.standard_normal((m, n)), rng.integers(-1060, -1000, (m, n)))


def _near_equal(rng: Rng, m: int, n: int, option: int) -> F64:
    value = float(rng.standard_normal()) if option % 2 else 1.0
    return value * (1.0 + rng.integers(-4, 5, (m, n)) * 2.0**-52) * rng.choice([1.0, -1.0], (m, n))


def _low_precision(rng: Rng, m: int, n: int, option: int) -> F64:
    """Gaussian entries rounded to float16, float32 or bfloat16."""
    raw = rng.standard_normal((m, n)) * 10.0 ** float(rng.integers(-6, 4))
    if option % 3 == 0:
        return raw.astype(np.float16).astype(np.float64)
    single = raw.astype(np.float32)
    if option % 3 == 1:
        return single.astype(np.float64)
    return (single.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32).astype(np.float64)


def _sparse(rng: Rng, m: int, n: int, option: int) -> F64:
    """Zeros, or nearly all zeros; at most a few entries."""
    return _either(rng, m, n, option) * (rng.random((m, n)) < (0.0, 0.1, 0.3, 0.6)[option % 4])


def _duplicate_rows(rng: Rng, m: int, n: int, option: int) -> F64:
    few = _either(rng, max(1, m // 2), n, option)
    return few[rng.integers(0, len(few), m)] * rng.choice([1.0, -1.0], (m, 1))


def _nearly_deficient(rng: Rng, m: int, n: int, option: int) -> F64:
    r = max(1, min(m, n) - 1)
    noise = 10.0 ** -float(option + 2)
    return rng.standard_normal((m, r)) @ rng.standard_normal((r, n)) + noise * rng.standard_normal((m, n))


def _hard_sums(rng: Rng, m: int, n: int, option: int) -> F64:
    """1 beside multiples of 2^-53 or less: a sum in floats loses them, or ties, or is just below a float."""
    step = (2.0**-53, 2.0**-54, 2.0**-60, 2.0**-106, 2.0**-52 * (1 - 2.0**-20))[option % 5]
    small = rng.integers(-3, 4, (m, n)) * step
    return np.where(rng.random((m, n)) < 0.4, rng.integers(1, 4, (m, n)).astype(np.float64), small)


def _tie_rows(rng: Rng, m: int, n: int, option: int) -> F64:
    """Rows with the same magnitudes in another order: all row sums are equal."""
    row = _either(rng, 1, n, option)[0]
    return np.array([rng.permutation(row) for _ in range(m)]) * rng.choice([1.0, -1.0], (m, n))


def _near_overflow(rng: Rng, m: int, n: int, option: int) -> F64:
    return np.ldexp(rng.uniform(-1, 1, (m, n)), 1024 - (option % 4))


_MAKERS: Final[dict[str, Callable[[Rng, int, int, int], F64]]] = {
    "gaussian": _gaussian,  # first: Hypothesis draws it most, and no two are the same
    "integers": _integers,
    "one-row": _one_row,
    "one-column": _one_column,
    "rank-one": _rank_one,
    "orthogonal": _orthogonal,
    "spectrum": _spectrum,
    "decaying-rows": _decaying_rows,
    "powers-of-two": _powers_of_two,
    "huge-range": _huge_range,
    "subnormal": _subnormal,
    "near-equal": _near_equal,
    "low-precision": _low_precision,
    "sparse": _sparse,
    "duplicate-rows": _duplicate_rows,
    "nearly-deficient": _nearly_deficient,
    "hard-sums": _hard_sums,
    "tie-rows": _tie_rows,
    "near-overflow": _near_overflow,
}
_RAW: Final = "raw"
KINDS: Final[tuple[str, ...]] = (*_MAKERS, _RAW)

# a whole matrix is moved by 2^shift in a third of the draws; what leaves the range of floats stays where it was
_SHIFTS: Final = (0, 0, 0, 0, 0, 0, 0, 0, 500, -500, -1000, -1060)


@st.composite
def _recipes(draw: Callable[[st.SearchStrategy[Any]], Any]) -> tuple[str, int, int, int, int, list[float] | None]:
    code = draw(st.integers(0, len(KINDS) * 12 * 16 - 1))  # one draw for three small numbers: draws are what costs
    code, kind = divmod(code, len(KINDS))
    option, shift = divmod(code, 12)
    side = draw(st.integers(0, SIDE * SIDE - 1))
    m, n = side // SIDE + 1, side % SIDE + 1
    raw = None
    if KINDS[kind] == _RAW:
        m, n = min(m, 3), min(n, 4)
        entries = st.floats(allow_nan=False, allow_infinity=False)
        raw = draw(st.lists(entries, min_size=m * n, max_size=m * n))
    return KINDS[kind], m, n, draw(st.integers(0, 2**64 - 1)), option * 12 + shift, raw


def _fill(recipe: tuple[str, int, int, int, int, list[float] | None], chunk: int, place: int) -> Iterator[Drawn]:
    kind, m, n, number, code, raw = recipe
    option, shift = code // 12, _SHIFTS[code % 12]
    rng = np.random.Generator(np.random.PCG64([number, chunk, place]))
    for member in range(1 if raw is not None else FAMILY):
        with np.errstate(all="ignore"):  # what overflows is not used
            W = np.array(raw).reshape(m, n) if raw is not None else _MAKERS[kind](rng, m, n, (option + member) % 16)
            moved = np.ldexp(W, shift) if shift else W
        if bool(np.all(np.isfinite(moved))):
            W = moved
        elif not bool(np.all(np.isfinite(W))):
            continue
        yield Drawn(kind, np.ascontiguousarray(W, dtype=np.float64), int(rng.integers(2**30)))


class _Enough(Exception):  # noqa: N818  # no error: the chunk is full
    pass


def each_matrix(chunk_seed: int, count: int, visit: Callable[[Drawn], None]) -> None:
    """Call ``visit`` with exactly ``count`` matrices, the same ones for the same seed."""
    left, place = count, 0

    @seed(chunk_seed)
    @settings(
        max_examples=count,  # more than needed: a draw gives up to FAMILY matrices
        database=None,
        deadline=None,
        derandomize=False,  # the seed above decides
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    @given(_recipes())
    def run(recipe: tuple[str, int, int, int, int, list[float] | None]) -> None:
        nonlocal left, place
        place += 1
        for drawn in _fill(recipe, chunk_seed, place):
            if left == 0:
                raise _Enough
            left -= 1
            visit(drawn)

    with suppress(_Enough):
        run()
    if left:
        raise RuntimeError(f"seed {chunk_seed}: {left} of {count} matrices could not be drawn")
