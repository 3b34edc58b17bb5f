"""A lower bound of the mean loss gap between given points, every rounding enclosed.

Forward in float64 with an entrywise error bound, ``|z − ẑ| <= |W| e + E (|ĥ| + e) + γ (|W||ĥ| + |b|)`` (e: error of
ĥ, E: error of folded weights); margins from differences of head rows; losses in decimal arithmetic, whose exp and ln
are correctly rounded (General Decimal Arithmetic specification), which no libm promises.

Source: certbound theory, section 6; Higham, *Accuracy and Stability of Numerical Algorithms*, 2002, ch. 3.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from decimal import MAX_EMAX, MIN_EMIN, ROUND_CEILING, ROUND_FLOOR, Context, Decimal, DivisionByZero, InvalidOperation
from decimal import Overflow as DecimalOverflow

import numpy as np

from certbound import losses
from certbound.arrays import F64, I64
from certbound.errors import NumericalError
from certbound.network import Network
from certbound.rounding import TINY, check_arithmetic, gamma, up

_PRECISION = 30
_FAR = 80.0  # exp(−80) < 10^−34: a term that far below the largest is not worth its exp


def _context(rounding: str) -> Context:
    # not the thread's own context, which anybody may change; exp and ln round to nearest whatever it says
    traps = [InvalidOperation, DivisionByZero, DecimalOverflow]
    return Context(prec=_PRECISION, rounding=rounding, Emin=MIN_EMIN, Emax=MAX_EMAX, traps=traps)


_UP, _DOWN = _context(ROUND_CEILING), _context(ROUND_FLOOR)
_REST = _UP.next_plus(_UP.exp(Decimal(-_FAR)))


def _affine(h: F64, e: F64, w: F64, b: F64, w_error: F64 | None, b_error: F64 | None) -> tuple[F64, F64]:
    """``W h + b`` and a bound of its error, for |true h − h| <= e; one rounding in each entry of W and b is covered."""
    size_w, size_h = np.abs(w), np.abs(h)
    n = w.shape[1]
    g = gamma(n + 4)  # n products, their sum, the bias, the difference of two rows
    z: F64 = h @ w.T + b
    error = (e + g * size_h) @ size_w.T + g * np.abs(b)
    if w_error is not None:
        error = error + (size_h + e) @ w_error.T
    if b_error is not None:
        error = error + b_error
    largest = max(1.0, float(np.max(size_w, initial=0.0)), float(np.max(size_h + e, initial=0.0)))
    # 1 + 8 g for the roundings of the bound itself; the rest for what underflows in three products
    return z, up(error * (1.0 + 8.0 * g) + 4.0 * n * TINY * largest)


def margin_bounds(network: Network, x: F64, y: I64, *, room: float = 1.0) -> tuple[F64, F64]:
    """Lower and upper bounds of ``f_y − f_j`` in exact arithmetic, ``+∞`` at j = y; shape (samples, classes).

    Parameters
    ----------
    x : flat inputs, shape (samples, inputs). y : labels 0…C−1.
    room : >= 1, how many error bounds the two are away from the computed margins; 1 is proof.

    Raises
    ------
    NumericalError : bounds that leave the range of float64; arithmetic that is not IEEE's.

    >>> net = Network.from_weights([[[1.0, 0.0], [0.0, 3.0]]])
    >>> low, high = margin_bounds(net, np.array([[1.0, 0.1]]), np.array([0]))
    >>> bool(low[0, 1] < 0.7 < high[0, 1]), bool(high[0, 1] - low[0, 1] < 1e-14)  # 1 − 3 · fl(0.1) < 0.7
    (True, True)
    """
    check_arithmetic()
    chain = network.open_ended.chain
    errors, bias_errors = chain.errors, chain.bias_errors
    head, bias = losses.class_head(chain.head), losses.class_head(chain.biases[-1][:, None])[:, 0]
    head_error = None if errors[-1] is None else losses.class_head(errors[-1])
    bias_error = None if bias_errors[-1] is None else losses.class_head(bias_errors[-1][:, None])[:, 0]
    low, high = (np.full((len(x), len(head)), math.inf) for _ in range(2))
    with np.errstate(all="ignore"):  # what is not finite is refused below
        h, e = x, np.zeros_like(x)
        for i, (w, b) in enumerate(zip(chain.encoder, chain.biases[:-1], strict=True)):
            z, e = _affine(h, e, w, b, errors[i], bias_errors[i])
            h, e = np.maximum(z, 0.0), np.where(z <= -e, 0.0, e)  # max(·, 0) moves nothing apart
        for label in np.unique(y):
            rows = np.flatnonzero(y == label)
            own = None if head_error is None else up(head_error + head_error[label])
            shift = None if bias_error is None else up(bias_error + bias_error[label])
            m, e_m = _affine(h[rows], e[rows], head[label] - head, bias[label] - bias, own, shift)
            e_m = up(room * e_m)
            low[rows], high[rows] = np.nextafter(m - e_m, -math.inf), up(m + e_m)
        others = np.arange(len(head)) != y[:, None]
    if not (np.all(np.isfinite(low[others])) and np.all(np.isfinite(high[others]))):
        raise NumericalError("the enclosure of the outputs leaves the range of float64")
    low[~others] = high[~others] = math.inf
    return low, high


def _loss(margins: list[float], context: Context) -> Decimal:
    """``log(1 + Σ exp(−m))`` rounded to the context's side; margins finite or ``+∞``, which adds nothing.

    >>> below, above = _loss([0.0], _DOWN), _loss([0.0], _UP)  # log 2
    >>> bool(below < above), f"{below:.15f}", f"{above:.15f}"
    (True, '0.693147180559945', '0.693147180559945')
    """
    upwards = context is _UP
    outward = context.next_plus if upwards else context.next_minus
    exponents = [0.0, *(-m for m in margins if m != math.inf)]
    top = max(exponents)
    largest = Decimal(top)
    total = Decimal(0)
    for t in exponents:
        if t == top:
            term = Decimal(1)
        elif t - top < -_FAR:  # rounding is monotone: the exact difference is below it too
            term = _REST if upwards else Decimal(0)
        else:
            term = outward(context.exp(context.subtract(Decimal(t), largest)))
        total = context.add(total, term)
    rest = Decimal(0) if total == 1 else outward(context.ln(total))
    return context.add(largest, rest)


def _float_below(value: Decimal) -> float:
    """The largest float that is at most ``value``."""
    nearest = float(value)
    if math.isinf(nearest):
        return sys.float_info.max if nearest > 0 else nearest
    return nearest if Decimal(nearest) <= value else math.nextafter(nearest, -math.inf)


def _mean_below(gaps: Iterable[Decimal], n: int) -> float:
    total = Decimal(0)
    for gap in gaps:
        total = _DOWN.add(total, gap)
    return _float_below(_DOWN.divide(total, Decimal(n)))


def mean_gap_below(network: Network, x: F64, x_adv: F64, y: I64, *, room: float = 1.0) -> float:
    """Lower bound of the mean over samples of ``loss(x_adv) − loss(x)``, cross-entropy, in exact real arithmetic.

    About 0.3 s for 1,000 samples of 10 classes, most of it for exp. A sample with ``x_adv = x`` has gap 0.

    Parameters
    ----------
    x, x_adv : flat inputs, shape (samples, inputs). y : labels 0…C−1.
    room : as in :func:`margin_bounds`.

    Raises
    ------
    NumericalError : as :func:`margin_bounds`.

    >>> net = Network.from_weights([[[1.0, 0.0], [0.0, 1.0]]])
    >>> gap = mean_gap_below(net, np.array([[0.75, 0.25]]), np.array([[0.5, 0.5]]), np.array([0]))
    >>> 0 < math.log(2) - math.log1p(math.exp(-0.5)) - gap < 1e-14
    True
    """
    moved = np.any(x_adv != x, axis=1)
    if not moved.any():
        return 0.0
    labels = y[moved]
    before = margin_bounds(network, x[moved], labels, room=room)[0]
    after = margin_bounds(network, x_adv[moved], labels, room=room)[1]
    # the loss falls with every margin
    gaps = (
        _DOWN.subtract(_loss(high, _DOWN), _loss(low, _UP))
        for low, high in zip(before.tolist(), after.tolist(), strict=True)
    )
    return _mean_below(gaps, len(y))


__all__ = ["margin_bounds", "mean_gap_below"]
