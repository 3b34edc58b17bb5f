"""Theorem 3.1 with every rounding enclosed: the formulas of :mod:`theorem31` on intervals, all k at once.

ε, β, ‖W‖_F, the row tails and the norms are enclosed from the stored weights; each form is then evaluated on intervals.
The upper end is the bound; the lower end decides whether "norm <= bound" is proved. User-supplied ε and β enter as
they are where they are provably one-sided valid; within rounding of the exact value, its enclosure enters instead.

Source: certbound theory, sections 2 and 6.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from certbound.arrays import F64
from certbound.compressibility import Dispersion, first_k, row_tails
from certbound.norms.dense import rescale
from certbound.norms.singular_values import enclose_singular_values
from certbound.norms.verified import Scaled
from certbound.rounding import Interval, check_arithmetic, down, enclose_norm, enclose_sum, gamma, up
from certbound.theorems.theorem31 import Form, Measured, PaperForm, Part, Sweep, Theorem31Part
from certbound.types import Rigor, Sense

_ONE = Interval.of(1.0)
_MOST = np.finfo(np.float64).max


@dataclass(frozen=True, eq=False)
class Enclosed:
    """What Theorem 3.1 asks of a vector θ, for k = 1 … d (index k − 1), each between two floats.

    ``epsilon``: tail ratio; ``kept``: 1 − ε; ``odds``: ε/(1 − ε); ``spread_kth``, ``spread_mean``: 1 − β; ``top``: θ_1;
    ``root``: ``√(Σ_{i<=k} θ_i²/k)``.
    """

    top: Interval
    epsilon: Interval
    kept: Interval
    odds: Interval
    spread_kth: Interval
    spread_mean: Interval
    root: Interval

    @classmethod
    def of(cls, theta: Interval) -> Enclosed:
        """From the entries of θ, decreasing at both ends; ``θ_1 > 0``.

        >>> e = Enclosed.of(Interval.of([3.0, 1.0]))
        >>> bool(e.epsilon.low[0] <= 0.25 <= e.epsilon.high[0]), float(e.epsilon.high[1]), float(e.kept.low[1])
        (True, 0.0, 1.0)
        """
        low, high = theta.low, theta.high
        d = len(low)
        k = np.arange(1.0, d + 1)
        steps = 3 * d + 16  # two sums of at most d terms below and one above the bar, and a few more operations
        head, head_up = np.cumsum(low), np.cumsum(high)
        tail, tail_up = _tails(low), _tails(high)
        top = theta[0]
        safe = np.where(low > 2.0**-500, low, 0.0)  # squares that do not underflow
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            return cls(
                top,
                # ε = T/(H + T) grows with T and falls with H
                _at_most_one(_widened(_ratio(tail, head_up + tail), _ratio(tail_up, head + tail_up), steps)),
                _at_most_one(
                    _widened(_ratio(head, head + tail_up), _ratio(head_up, head_up + tail), steps), tail_up == 0
                ),
                _widened(_ratio(tail, head_up), _ratio(tail_up, head), steps),
                _at_most_one(_widened(_ratio(low, top.high), _ratio(high, top.low), steps), k == 1),
                _at_most_one(_widened(_ratio(head, k * top.high), _ratio(head_up, k * top.low), steps), k == 1),
                _widened(np.sqrt(np.cumsum(safe * safe) / k), np.sqrt(np.cumsum(high * high) / k), steps),
            )

    def spread(self, dispersion: Dispersion) -> Interval:
        """1 − β in the reading asked for."""
        return self.spread_kth if dispersion == "kth" else self.spread_mean


def _widened(low: F64, high: F64, steps: int) -> Interval:
    """Ends from expressions in numbers >= 0 that took at most ``steps`` roundings, each a factor in [1 − u, 1 + u].

    Sums, products, quotients and roots of numbers >= 0 keep relative errors, so ``γ_steps`` covers them all; what falls
    below the normal numbers is off by less than the two floats added here. 0 stays 0: nothing is added to nothing.
    """
    g = gamma(2 * steps)  # (1 + u)^steps in the denominator too
    with np.errstate(over="ignore"):
        below, above = np.minimum(low, _MOST) * (1.0 - g), high * (1.0 + g)
    return Interval(np.maximum(down(down(below)), 0.0), np.where(high == 0.0, 0.0, up(up(above))))


def _ratio(a: F64, b: F64) -> F64:
    """``a/b`` with 0/0 = 0."""
    return np.where(a == 0.0, 0.0, a / b)


def _tails(theta: F64) -> F64:
    """``Σ_{i>k} θ_i``; exactly 0 where nothing is left."""
    return np.append(np.cumsum(theta[::-1])[::-1][1:], 0.0)


def _at_most_one(x: Interval, one: npt.NDArray[np.bool_] | None = None) -> Interval:
    """Parts of a whole: cut off at 1, and 1 where they are known to be all of it."""
    low, high = np.minimum(x.low, 1.0), np.minimum(x.high, 1.0)
    return Interval(low, high) if one is None else Interval(np.where(one, 1.0, low), np.where(one, 1.0, high))


@dataclass(frozen=True, eq=False)
class Enclosure:
    """A matrix as Theorem 3.1 sees it, in units of ``scale``: the rigorous companion of :class:`Measured`."""

    shape: tuple[int, int]
    scale: float
    frobenius: Interval
    spectral: Enclosed | None
    neuron: Enclosed | None
    row_epsilon: Interval

    def vector(self, part: Part) -> Enclosed:
        """The enclosures of σ or of ν; only for W ≠ 0."""
        found = self.spectral if part == "spectral" else self.neuron
        assert found is not None
        return found

    @property
    def zero(self) -> bool:
        """True for W = 0."""
        return self.neuron is None

    def size(self, part: Part) -> int:
        """The largest k of a part."""
        return min(self.shape) if part == "spectral" else self.shape[0]


def enclose(W: F64) -> Enclosure:
    """Enclose all that any form and any k needs: one SVD with factors, one sort per row, exact row sums.

    Raises NumericalError where the processor does not round as IEEE asks, or the SVD fails.

    >>> e = enclose(np.array([[3.0, 0.0], [0.0, 4.0]]))
    >>> float(e.frobenius.low * e.scale), float(e.vector("spectral").top.high * e.scale)
    (5.0, 4.0)
    """
    check_arithmetic()
    shape = (W.shape[0], W.shape[1])
    s = Scaled.of(W)
    if not s.matrix.any():
        nothing = Interval.of(np.zeros(shape[1]))
        return Enclosure(shape, s.scale, Interval.of(0.0), None, None, nothing)
    low, high = enclose_norm(s.matrix)
    sigma, _ = enclose_singular_values(W)
    sizes = np.abs(s.matrix)
    ends = np.array([enclose_sum(row) for row in sizes])
    nu_low, nu_high = -np.sort(-ends[:, 0]), -np.sort(-ends[:, 1])
    if s.lost:
        lost = up(s.lost * up(math.sqrt(shape[1])))  # ‖Δ_i‖_1 <= √n ‖Δ‖_F
        low, high = max(0.0, down(low - s.lost)), up(high + s.lost)
        nu_low, nu_high = np.maximum(down(nu_low - lost), 0.0), up(nu_high + lost)
    return Enclosure(
        shape,
        s.scale,
        Interval.of(low, high),
        Enclosed.of(sigma),
        Enclosed.of(Interval(nu_low, nu_high)),
        enclose_row_tails(W),
    )


def enclose_row_tails(W: F64) -> Interval:
    """``ε_r(k) = max_i ‖w_i − (w_i)_k‖_2/‖w_i‖_2`` for k = 1 … n; exactly 0 where every row is kept whole.

    :func:`row_tails` divides each row by its own power of two, so that its top is in [1, 2). Its sums of squares and
    their quotient are off by factors of at most ``1 + γ_{3n+8}``; what underflows adds at most ``n 2^-1070`` to the
    squares, ``√n 2^-535`` to the ratio.

    >>> tails = enclose_row_tails(np.array([[3.0, 4.0], [0.0, 2.0]]))
    >>> bool(tails.low[0] <= 0.6 <= tails.high[0]), float(tails.high[1])
    (True, 0.0)
    """
    n = W.shape[1]
    computed = row_tails(W)
    g, loss = gamma(3 * n + 12), math.sqrt(n) * 2.0**-534
    low = np.maximum(down(down(computed * down(1.0 - g)) - loss), 0.0)
    high = np.minimum(up(up(computed * up(1.0 + g)) + loss), 1.0)
    filled = int(np.max(np.sum(W != 0.0, axis=1)))
    whole = np.arange(1.0, n + 1) >= filled
    return Interval(np.where(whole, 0.0, low), np.where(whole, 0.0, high))


# ---------------------------------------------------------------- the formulas


class Inputs(NamedTuple):
    """ε and β as they enter the formulas, for an array of k: 1 − ε, ε/(1 − ε), 1 − β, and the sharp form's reading."""

    k: F64
    kept: Interval
    odds: Interval
    spread: Interval
    reading: Dispersion
    exact: bool


def exact_inputs(vector: Enclosed, dispersion: Dispersion, k: int | None = None) -> Inputs:
    """The exact ε and β of a vector, for one k or for all."""
    d = len(vector.kept.low)
    at = slice(None) if k is None else slice(k - 1, k)
    ks = np.arange(1.0, d + 1)[at]
    return Inputs(ks, vector.kept[at], vector.odds[at], vector.spread(dispersion)[at], dispersion, True)


def sharp_constant(inputs: Inputs, size: int) -> Interval:
    """``c♯ = (1 + a + t)^(−1/2)``, see :func:`certbound.theorems.theorem31.sharp_constant`.

    >>> vector = Enclosed.of(Interval.of([1.0, 1.0, 1.0, 1.0]))  # the flat vector: 1/√4
    >>> c = sharp_constant(exact_inputs(vector, "kth", 1), 4)
    >>> bool(c.low[0] <= 0.5 <= c.high[0]), bool(c.high[0] - c.low[0] < 1e-13)
    (True, True)
    """
    # c falls with the odds and with 1 − β. S − 1 is off by 3 u S, its square over k − 1 by at most 7 u (1 + a), S being
    # at most k: a relative error of 1 + a + t like the others
    low, high = (
        _sharp(inputs.k, odds, spread, size, inputs.reading)
        for odds, spread in ((inputs.odds.high, inputs.spread.high), (inputs.odds.low, inputs.spread.low))
    )
    return _widened(low, high, 16)


def _sharp(k: F64, odds: F64, spread: F64, size: int, reading: Dispersion) -> F64:
    if reading == "mean":
        s = np.maximum(1.0, k * spread)
        a = (s - 1.0) ** 2 / np.maximum(k - 1.0, 1.0)
    else:
        s = 1.0 + (k - 1.0) * spread
        a = (k - 1.0) * spread**2
    with np.errstate(over="ignore", invalid="ignore"):
        t = np.where(k < size, (odds * s) ** 2 / np.maximum(size - k, 1.0), 0.0)
    return 1.0 / np.sqrt(1.0 + a + t)


def row_factor(e: Enclosure, form: Form, k: F64, k_row: int | None = None) -> Interval:
    """The factor of ‖W‖_F that the rows contribute, smallest over k_r; see ``theorem31.row_factor``."""
    m, n = e.shape
    kr = np.arange(1.0, n + 1) if k_row is None else np.array([float(k_row)])
    eps = e.row_epsilon if k_row is None else e.row_epsilon[k_row - 1 : k_row]
    if form == "sharp":
        left = (n - kr) / n
        below, above = (np.minimum(end, np.sqrt(left)) for end in (eps.low, eps.high))
        # √k_r √(1 − ε²) falls with ε, the rest grows. 1 − ε² >= k_r/n, so what is lost in it is below 2 u ρ
        kept = np.sqrt(np.maximum(0.0, 1.0 - np.array([above, below]) ** 2) * kr)
        return _smallest(_widened(kept[0] + np.sqrt(n - kr) * below, kept[1] + np.sqrt(n - kr) * above, 16))
    first, second = np.sqrt(m * kr), math.sqrt(m * n)
    if form == "derived":
        whole = _smallest(_widened(first + second * eps.low, first + second * eps.high, 8))
        return _widened(whole.low / k, whole.high / k, 1)
    low, high = np.empty_like(k), np.empty_like(k)
    for i, kv in enumerate(k):  # the best k_r of the printed form moves with k_ν
        low[i], high[i] = (first + second * eps.low / kv).min(), (first + second * eps.high / kv).min()
    return _widened(low, high, 8)


def _smallest(x: Interval) -> Interval:
    return Interval.of(x.low.min(), x.high.min())


def form_values(e: Enclosure, part: Part, form: Form, inputs: Inputs, k_row: int | None = None) -> Interval:
    """Enclosures of the form's value (in units of ``e.scale``) for each k: the upper end is a bound of the norm."""
    fro = e.frobenius
    if form == "sharp":
        c = sharp_constant(inputs, e.size(part))
        rho = _ONE if part == "spectral" else row_factor(e, "sharp", inputs.k, k_row)
        return _widened(c.low * rho.low * fro.low, c.high * rho.high * fro.high, 2)
    if part == "spectral":
        root = math.sqrt(e.size(part)) / inputs.k
        factor = _widened(root, root, 2)
    else:
        factor = row_factor(e, form, inputs.k, k_row)
    with np.errstate(divide="ignore", over="ignore"):  # β = 1: the value is ∞
        low = inputs.kept.low / inputs.spread.high * factor.low * fro.low
        high = inputs.kept.high / inputs.spread.low * factor.high * fro.high
    return _widened(low, high, 3)


def lower_values(e: Enclosure, part: Part) -> Interval:
    """The two-sided form for every k: ``√(1−ε²)/√k ‖W‖_F = √(Σ_{i<=k} σ_i²/k)`` (q = 2), ``(1−ε)/k ‖W‖_F`` (rows)."""
    vector = e.vector(part)
    if part == "spectral":
        return vector.root
    k = np.arange(1.0, e.size(part) + 1)
    return _widened(vector.kept.low / k * e.frobenius.low, vector.kept.high / k * e.frobenius.high, 2)


def best_upper(e: Enclosure, part: Part, form: Form, dispersion: Dispersion = "kth", k: int | None = None) -> float:
    """The form's rigorous upper bound of the norm with exact ε and β: at ``k``, or the smallest over all k.

    >>> best_upper(enclose(np.eye(2)), "spectral", "derived") < 1.0 + 1e-14
    True
    """
    if e.zero:
        return 0.0
    values = form_values(e, part, form, exact_inputs(e.vector(part), dispersion, k))
    return rescale(float(values.high.min()), e.scale, Sense.UPPER)


# ---------------------------------------------------------------- verdicts


def _equal_by_algebra(e: Enclosure, part: Part, form: Form | None, inputs: Inputs) -> npt.NDArray[np.bool_]:
    """True for each k where the form IS the norm: no interval could separate them. ``form`` None: the lower one.

    One column: ν is the vector of entries, as σ is. The sharp form assumes equal entries among θ_2 … θ_k and among
    θ_{k+1} … θ_d: with at most one of each it is θ_1. A single number is the other forms too, and the two-sided form of
    σ at k = 1 is σ_1.
    """
    plain = part == "spectral" or e.shape[1] == 1
    size = e.size(part)
    if form is None:
        same = part == "spectral" or e.shape == (1, 1)
        return (inputs.k == 1.0) & same
    alone = (inputs.k <= 2.0) & (size - inputs.k <= 1.0) if form == "sharp" else (inputs.k == 1.0) & (size == 1)
    return np.logical_and(alone, plain and inputs.exact)


def verdict(
    e: Enclosure, part: Part, form: PaperForm, inputs: Inputs, value: Interval, sharp: Interval, lower: Interval
) -> bool | None:
    """True: ``lower <= norm <= sharp, value`` is proved for every k; False: one is disproved; None: undecided."""
    top = e.vector(part).top
    proved = disproved = 0
    kinds: tuple[tuple[Form | None, Interval], ...] = ((form, value), ("sharp", sharp))
    for kind, x in kinds:
        same = _equal_by_algebra(e, part, kind, inputs)
        proved += int(np.count_nonzero(same | (top.high <= x.low)))
        disproved += int(np.count_nonzero(~same & (top.low > x.high)))
    same = _equal_by_algebra(e, part, None, inputs)
    proved += int(np.count_nonzero(same | (lower.high <= top.low)))
    disproved += int(np.count_nonzero(~same & (lower.low > top.high)))
    if disproved:
        return False
    return True if proved == 3 * len(inputs.k) else None


# ---------------------------------------------------------------- one part of the report


def provable_k(e: Enclosure, part: Part, target: float) -> int:
    """The smallest k whose tail ratio is provably at most ``target``; the last tail is 0."""
    return 1 if e.zero else first_k(e.vector(part).epsilon.high, target)


def used_inputs(
    e: Enclosure,
    measured: Measured,
    part: Part,
    k: int,
    epsilon: float | None,
    beta: float | None,
    dispersion: Dispersion,
) -> Inputs:
    """(ε, β) of a met hypothesis as they may enter: the user's where they are provably one-sided valid.

    ε must be at most the exact tail ratio: it counts if it is at most the LOWER end of its enclosure. β must be at
    least the mean dispersion (the k-th, for the sharp form of that reading): 1 − β at most the lower end of that
    spread. In between the user meant the exact value and rounded it: its enclosure enters, never the rounded number.
    """
    vector, p, tol = e.vector(part), measured.vector(part), measured.tolerance
    inputs, i = exact_inputs(vector, dispersion, k), k - 1
    if epsilon is not None and epsilon < p.epsilon[i] - tol and epsilon <= vector.epsilon.low[i]:
        kept = _ONE - Interval.of([epsilon])
        inputs = inputs._replace(kept=kept, odds=Interval.of([epsilon]) / kept, exact=False)
    if beta is not None and abs(beta - float(p.beta(dispersion)[i])) > tol:
        spread = _ONE - Interval.of([beta]) if beta < 1.0 else Interval.of([0.0])
        if bool(spread.high[0] <= vector.spread_mean.low[i]):
            kth = dispersion == "kth" and bool(spread.high[0] <= vector.spread_kth.low[i])
            return inputs._replace(spread=spread, reading="kth" if kth else "mean", exact=False)
        return inputs._replace(spread=vector.spread_mean[i : i + 1], reading="mean", exact=False)
    return inputs


def refine(
    part: Theorem31Part,
    sweep: Sweep | None,
    e: Enclosure,
    measured: Measured,
    form: PaperForm,
    dispersion: Dispersion,
    k_row: int | None,
    epsilon: float | None,
    beta: float | None,
) -> tuple[Theorem31Part, Sweep | None]:
    """A numerically checked part (and its sweep) with every number that is a bound replaced by a rigorous one.

    ``k_row``, ``epsilon``, ``beta``: what the user gave, checked. ``part.k`` stays: any k is allowed.
    """
    if e.zero:
        return _zero(part), sweep
    name, scale, vector = part.part, e.scale, e.vector(part.part)
    lowers = lower_values(e, name)

    def outward(x: Interval, sense: Sense) -> F64:
        ends = x.high if sense is Sense.UPPER else x.low
        return np.array([rescale(float(v), scale, sense) for v in ends])

    i = part.k - 1
    lower = lowers[i : i + 1]
    if sweep is not None:
        every = exact_inputs(vector, dispersion)
        values = form_values(e, name, form, every, k_row)
        sharps = form_values(e, name, "sharp", every, k_row)
        holds = verdict(e, name, form, every, values, sharps, lowers)
        sweep = replace(
            sweep,
            bound=outward(values, Sense.UPPER),
            sharp=outward(sharps, Sense.UPPER),
            lower=outward(lowers, Sense.LOWER),
            holds=holds,
        )
        value, sharp = values[i : i + 1], sharps[i : i + 1]
    elif part.hypothesis_met:
        inputs = used_inputs(e, measured, name, part.k, epsilon, beta, dispersion)
        value = form_values(e, name, form, inputs, k_row)
        sharp = form_values(e, name, "sharp", inputs, k_row)
        holds = verdict(e, name, form, inputs, value, sharp, lower)
    else:
        value = sharp = Interval.of([math.inf])
        holds = None

    top, fro = vector.top, e.frobenius
    reference = fro if name == "spectral" else fro * Interval.of(float(e.shape[1])).sqrt()
    bound = rescale(float(value.high[0]), scale, Sense.UPPER)
    spread = vector.spread(dispersion)
    return (
        replace(
            part,
            bound=replace(part.bound, value=bound, rigor=Rigor.RIGOROUS),
            sharp=replace(part.sharp, value=rescale(float(sharp.high[0]), scale, Sense.UPPER), rigor=Rigor.RIGOROUS),
            lower=replace(part.lower, value=rescale(float(lower.low[0]), scale, Sense.LOWER), rigor=Rigor.RIGOROUS),
            slack=float(value.high[0]) / measured.vector(name).top,
            vacuous=bool(value.high[0] >= reference.low),  # False is a proof
            holds=holds,
            norm_interval=(
                rescale(float(top.low), scale, Sense.LOWER),
                rescale(float(top.high), scale, Sense.UPPER),
            ),
            epsilon_interval=(float(vector.epsilon.low[i]), float(vector.epsilon.high[i])),
            beta_interval=(
                max(0.0, down(1.0 - float(spread.high[i]))),
                min(1.0, up(1.0 - float(spread.low[i])) if spread.low[i] < 1.0 else 0.0),
            ),
        ),
        sweep,
    )


def _zero(part: Theorem31Part) -> Theorem31Part:
    """W = 0: every number is exact already."""
    exact = (0.0, 0.0)
    bounds = {n: replace(getattr(part, n), rigor=Rigor.RIGOROUS) for n in ("bound", "sharp", "lower")}
    return replace(part, norm_interval=exact, epsilon_interval=exact, beta_interval=exact, **bounds)
