"""Hypothesis strategies for matrices, networks and batches.

What can be drawn as small integers is, so that failures shrink to something readable; heavy-tailed and spectral kinds
draw one seed for a numpy generator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from certbound.arrays import F64, I64
from certbound.errors import InputError
from certbound.network import Network

Draw = Callable[[st.SearchStrategy[Any]], Any]
Matrix = npt.NDArray[np.floating[Any]]


def _generator(draw: Draw) -> np.random.Generator:
    return np.random.default_rng(draw(st.integers(0, 2**16 - 1)))


def _integers(draw: Draw, m: int, n: int, largest: int = 3) -> F64:
    entries = draw(st.lists(st.integers(-largest, largest), min_size=m * n, max_size=m * n))
    return np.array(entries, dtype=np.float64).reshape(m, n)


def _orthonormal(rng: np.random.Generator, m: int, n: int) -> F64:
    """m × n with orthonormal columns (m ≥ n) or rows."""
    tall = np.linalg.qr(rng.standard_normal((max(m, n), min(m, n))))[0]
    return tall if m >= n else tall.T


def _zero(draw: Draw, m: int, n: int, span: float) -> F64:
    return np.zeros((m, n))


def _integer(draw: Draw, m: int, n: int, span: float) -> F64:
    return _integers(draw, m, n)


def _one_row(draw: Draw, m: int, n: int, span: float) -> F64:
    return _integers(draw, 1, n)


def _one_column(draw: Draw, m: int, n: int, span: float) -> F64:
    return _integers(draw, m, 1)


def _rank_one(draw: Draw, m: int, n: int, span: float) -> F64:
    u, v = (draw(st.lists(st.integers(-3, 3).filter(bool), min_size=k, max_size=k)) for k in (m, n))
    return np.outer(np.array(u, dtype=np.float64), np.array(v, dtype=np.float64))


def _low_rank(draw: Draw, m: int, n: int, span: float) -> F64:
    rank = draw(st.integers(1, max(1, min(m, n) - 1)))
    return _integers(draw, m, rank) @ _integers(draw, rank, n)


def _row_sparse(draw: Draw, m: int, n: int, span: float) -> F64:
    """A few rows carry everything, the others a small remainder or nothing."""
    matrix = _integers(draw, m, n)
    kept = draw(st.sets(st.integers(0, m - 1), max_size=max(1, m // 2)))
    tail = draw(st.sampled_from([0.0, 2.0**-4, 2.0**-10]))
    matrix[[i for i in range(m) if i not in kept]] *= tail
    return matrix


def _half(draw: Draw, m: int, n: int, span: float) -> F64:
    """Entries that float16 holds: normal, subnormal and its largest."""
    special = st.sampled_from([0.0, 1.0, -1.0, 2.0**-24, 2.0**-14, 65504.0, -65504.0, 1.0 + 2.0**-10])
    entry = st.one_of(special, st.floats(width=16, allow_nan=False, allow_infinity=False))
    return np.array(draw(st.lists(entry, min_size=m * n, max_size=m * n)), dtype=np.float64).reshape(m, n)


def _orthogonal(draw: Draw, m: int, n: int, span: float) -> F64:
    """Orthonormal rows or columns times a scale: with dispersion ``mean`` Theorem 3.1 is an equality here."""
    return _orthonormal(_generator(draw), m, n) * 2.0 ** draw(st.integers(-4, 4))


def _near_orthogonal(draw: Draw, m: int, n: int, span: float) -> F64:
    rng = _generator(draw)
    noise = 10.0 ** -draw(st.integers(1, 15))
    return _orthonormal(rng, m, n) + noise * rng.standard_normal((m, n))


def _power_law(draw: Draw, m: int, n: int, span: float) -> F64:
    """Singular values i^(-a) between random orthonormal factors."""
    rng, r = _generator(draw), min(m, n)
    sigma = np.arange(1.0, r + 1) ** -float(draw(st.sampled_from([0.0, 0.5, 1.0, 2.0, 4.0])))
    return (_orthonormal(rng, m, r) * sigma) @ _orthonormal(rng, r, n)


def _cauchy(draw: Draw, m: int, n: int, span: float) -> F64:
    # clipped so that every dtype holds its square too
    return np.clip(_generator(draw).standard_cauchy((m, n)), -(10.0**span), 10.0**span)


def _scaled(draw: Draw, m: int, n: int, span: float) -> F64:
    """Rows and columns in units that differ by up to 10^(2 · span)."""
    half = int(span / 2)
    rows, columns = (
        np.array(draw(st.lists(st.sampled_from([0, -half, half, -1, 1]), min_size=k, max_size=k))) for k in (m, n)
    )
    signs = np.array(draw(st.lists(st.sampled_from([1, -1, 0]), min_size=m * n, max_size=m * n))).reshape(m, n)
    return signs * 10.0 ** (rows[:, None] + columns[None, :]).astype(np.float64)


# from simple to hard: hypothesis shrinks towards the first
_MAKERS: Final[dict[str, Callable[[Draw, int, int, float], F64]]] = {
    "zero": _zero,
    "integer": _integer,
    "one-row": _one_row,
    "one-column": _one_column,
    "rank-one": _rank_one,
    "low-rank": _low_rank,
    "row-sparse": _row_sparse,
    "float16": _half,
    "orthogonal": _orthogonal,
    "near-orthogonal": _near_orthogonal,
    "power-law": _power_law,
    "cauchy": _cauchy,
    "scaled": _scaled,
}

KINDS: Final[tuple[str, ...]] = tuple(_MAKERS)
"""The kinds of matrix that :func:`compressible_matrices` draws, simplest first."""

# entries up to 10^span and down to 10^-span: their squares, and sums of a few thousand of those, stay finite
_SPANS: Final[dict[str, float]] = {"float64": 150.0, "float32": 18.0, "float16": 2.0}


def compressible_matrices(
    min_side: int = 1,
    max_side: int = 8,
    kinds: Iterable[str] | None = None,
    dtype: npt.DTypeLike = np.float64,
) -> st.SearchStrategy[Matrix]:
    """Matrices on which theorems about compressibility are easy, tight, or easy to break.

    Parameters
    ----------
    min_side, max_side : of rows and columns each; "one-row" and "one-column" have one of them equal to 1 whatever
        ``min_side`` is.
    kinds : which of :data:`KINDS`; all by default.
    dtype : float64, float32 or float16. Numbers are rounded to it, so that spectral kinds have theirs to that
        accuracy. Entries of "scaled" reach from 1e-150 to 1e150 (float32: 1e-18 to 1e18, float16: 1e-2 to 1e2).

    Raises
    ------
    InputError : an unknown kind, sides that are not 1 ≤ min ≤ max, another dtype.

    >>> compressible_matrices(kinds=["flat"])
    Traceback (most recent call last):
        ...
    certbound.errors.InputError: kinds: got ['flat']; needed some of zero, integer, one-row, one-column, rank-one, \
low-rank, row-sparse, float16, orthogonal, near-orthogonal, power-law, cauchy, scaled. Fix: leave it out for all kinds.
    """
    _check_sides(min_side, max_side, "max_side")
    chosen = KINDS if kinds is None else tuple(kinds)
    unknown = [k for k in chosen if k not in _MAKERS]
    if unknown or not chosen:
        raise InputError(
            "kinds", got=repr(unknown), needed="some of " + ", ".join(KINDS), fix="leave it out for all kinds"
        )
    name = np.dtype(dtype).name
    if name not in _SPANS:
        raise InputError("dtype", got=name, needed="float64, float32 or float16", fix="convert what is drawn")

    @st.composite
    def matrices(draw: Draw) -> Matrix:
        kind = draw(st.sampled_from(chosen))
        m, n = draw(st.integers(min_side, max_side)), draw(st.integers(min_side, max_side))
        return _MAKERS[kind](draw, m, n, _SPANS[name]).astype(dtype)

    return matrices()


def rational_matrices(
    min_side: int = 1, max_side: int = 4, largest: int = 3, denominator: int = 1
) -> st.SearchStrategy[F64]:
    """Float64 matrices of ``k / denominator``, ``|k| ≤ largest``: for checks in exact arithmetic.

    ``Fraction(float(w))`` is the entry, with no rounding in between.

    Raises
    ------
    InputError : a denominator that is not a power of two (its fractions would be rounded), or bad sides.

    >>> rational_matrices(denominator=3)
    Traceback (most recent call last):
        ...
    certbound.errors.InputError: denominator: got 3; needed a power of two. Fix: pass 1, 2, 4 or 8.
    """
    _check_sides(min_side, max_side, "max_side")
    if denominator < 1 or denominator & (denominator - 1):
        raise InputError("denominator", got=repr(denominator), needed="a power of two", fix="pass 1, 2, 4 or 8")

    @st.composite
    def matrices(draw: Draw) -> F64:
        m, n = draw(st.integers(min_side, max_side)), draw(st.integers(min_side, max_side))
        return _integers(draw, m, n, largest) / denominator

    return matrices()


def relu_networks(
    max_layers: int = 3,
    max_width: int = 5,
    *,
    min_layers: int = 1,
    n_inputs: int | None = None,
    n_outputs: int | None = None,
    biases: bool | None = None,
    integer: bool | None = None,
    max_hidden: int | None = None,
) -> st.SearchStrategy[Network]:
    """ReLU networks with a ReLU between each two layers, none after the last.

    Parameters
    ----------
    min_layers, max_layers : number of affine layers.
    max_width : largest width, of inputs and outputs too where they are not given.
    n_inputs, n_outputs : fixed widths; drawn where None.
    biases : with, without, or (None) either.
    integer : weights and biases that are integers in −3 … 3 (exact checks), Gaussian ones, or (None) either.
    max_hidden : largest total number of hidden neurons, so that 2^max_hidden patterns can be enumerated.

    Raises
    ------
    InputError : limits that no network meets.
    """
    _check_sides(min_layers, max_layers, "max_layers")
    _check_sides(1, max_width, "max_width")
    for name, value in (("n_inputs", n_inputs), ("n_outputs", n_outputs)):
        _check_sides(1, 1 if value is None else value, name)
    if max_hidden is not None and max_hidden < min_layers - 1:
        raise InputError(
            "max_hidden", got=repr(max_hidden), needed=f">= {min_layers - 1}, one per hidden layer", fix="allow more"
        )

    @st.composite
    def networks(draw: Draw) -> Network:
        most = max_layers if max_hidden is None else min(max_layers, max_hidden + 1)
        depth = draw(st.integers(min_layers, most))
        free = (max_width * depth if max_hidden is None else max_hidden) - (depth - 1)  # beyond one for each layer
        widths = [n_inputs if n_inputs is not None else draw(st.integers(1, max_width))]
        for _ in range(depth - 1):
            widths.append(draw(st.integers(1, 1 + min(max_width - 1, free))))
            free -= widths[-1] - 1
        widths.append(n_outputs if n_outputs is not None else draw(st.integers(1, max_width)))
        with_biases = draw(st.booleans()) if biases is None else biases
        gaussian = draw(st.booleans()) if integer is None else not integer
        rng = _generator(draw) if gaussian else None

        def entries(m: int, n: int) -> F64:
            return _integers(draw, m, n) if rng is None else rng.standard_normal((m, n))

        weights = [entries(m, n) for n, m in pairwise(widths)]
        shifts = [entries(1, m)[0] for m in widths[1:]] if with_biases else None
        return Network.from_weights(weights, shifts)

    return networks()


def tiny_relu_networks(
    max_layers: int = 3, *, biases: bool | None = None, integer: bool | None = True
) -> st.SearchStrategy[Network]:
    """Networks with at most 8 hidden neurons in all: 256 activation patterns to enumerate."""
    return relu_networks(max_layers, 5, biases=biases, integer=integer, max_hidden=8)


def labelled_batches(network: Network, max_samples: int = 5) -> st.SearchStrategy[tuple[F64, I64]]:
    """Pairs ``(x, y)`` for a network: x in [0, 1] in eighths, of shape (samples, *one input); y its class indices.

    A network with one output is read as binary, with labels 0 and 1.

    Raises
    ------
    InputError : max_samples < 1.
    """
    _check_sides(1, max_samples, "max_samples")
    shape = network.input_shape or (network.n_inputs,)
    classes = max(2, network.n_outputs)

    @st.composite
    def batches(draw: Draw) -> tuple[F64, I64]:
        s = draw(st.integers(1, max_samples))
        size = s * network.n_inputs
        x = np.array(draw(st.lists(st.integers(0, 8), min_size=size, max_size=size)), dtype=np.float64) / 8
        y = np.array(draw(st.lists(st.integers(0, classes - 1), min_size=s, max_size=s)), dtype=np.int64)
        return x.reshape(s, *shape), y

    return batches()


def _check_sides(smallest: int, largest: int, name: str) -> None:
    if not 1 <= smallest <= largest:
        raise InputError(
            name, got=f"{largest} with a least of {smallest}", needed="1 <= least <= largest", fix="correct the limits"
        )
