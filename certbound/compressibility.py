"""(q, k, ε)-compressibility: tail ratios and dispersion, for one k or for all k at once.

For ``θ ∈ R^d`` let ``θ_k`` keep the k largest magnitudes. The tail ratio is
``τ_{q,k}(θ) = ‖θ − θ_k‖_q / ‖θ‖_q``; θ is (q, k, ε)-compressible iff ``τ <= ε`` and *exactly* so iff
``τ = ε``. The zero vector has τ = 0 and β = 0 by definition.

Source: Barsbey, Ribeiro, Simsekli, Birdal, ICLR 2026, section 2; the ``mean`` dispersion is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from certbound.arrays import F64, as_float64, power_of_two_scale
from certbound.errors import InputError

Dispersion = Literal["kth", "mean"]


@dataclass(frozen=True, eq=False)
class Profile:
    """Everything Theorem 3.1 asks of a vector, for k = 1 … d (index k − 1), by cumulative sums.

    ``kept`` is ``1 − epsilon`` computed from the head sum: near ε = 1 the subtraction would lose it.
    """

    epsilon: F64
    kept: F64
    epsilon_2: F64
    beta_kth: F64
    beta_mean: F64
    top: float
    sum: float

    def beta(self, dispersion: Dispersion) -> F64:
        """The dispersion in the reading asked for."""
        return self.beta_kth if dispersion == "kth" else self.beta_mean


def profile(theta: F64) -> Profile:
    """Tail ratios (q = 1 and q = 2) and both dispersions for every k, from one sort.

    ``theta``: shape (d,), finite; its order and signs do not matter.

    >>> p = profile(np.array([3.0, 1.0]))
    >>> p.epsilon.tolist(), p.beta_kth.round(3).tolist(), p.beta_mean.round(3).tolist()
    ([0.25, 0.0], [0.0, 0.667], [0.0, 0.333])
    """
    ordered = -np.sort(-np.abs(theta))
    d = len(ordered)
    if ordered[0] == 0.0:
        zeros = np.zeros(d)
        return Profile(zeros, np.ones(d), zeros, zeros, zeros, 0.0, 0.0)
    # Power-of-two scaling is exact, and keeps sums and squares clear of overflow.
    scale = power_of_two_scale(ordered)
    t = ordered / scale
    head = np.cumsum(t)
    # Tails are summed from the smallest entry up, so that a tiny tail keeps its digits.
    tail = np.concatenate([np.cumsum(t[::-1])[::-1][1:], [0.0]])
    tail_2 = np.concatenate([np.cumsum((t * t)[::-1])[::-1][1:], [0.0]])
    total = float(head[-1])
    k = np.arange(1, d + 1)
    beta_mean = np.maximum(0.0, 1.0 - head / (k * t[0]))
    beta_mean[0] = 0.0
    return Profile(
        epsilon=tail / total,
        kept=head / total,
        epsilon_2=np.sqrt(tail_2 / float(np.sum(t * t))),
        beta_kth=1.0 - t / t[0],
        beta_mean=beta_mean,
        top=float(ordered[0]),
        sum=total * scale,
    )


def row_tails(W: F64) -> F64:
    """Largest (2, k)-tail ratio over the rows of W, for k = 1 … n; zero rows have tail 0.

    ``ε_r(k) = max_i ‖w_i − (w_i)_k‖_2 / ‖w_i‖_2``.

    >>> row_tails(np.array([[3.0, 4.0], [0.0, 2.0]])).tolist()
    [0.6, 0.0]
    """
    magnitudes = np.abs(W)
    # each row by its own power of two: the ratio must survive rows of very different size
    tops = magnitudes.max(axis=1)
    exponents = np.where(tops > 0, np.frexp(tops)[1] - 1, 0)
    ascending = np.sort(np.ldexp(magnitudes, -exponents[:, None]), axis=1)
    squares = np.cumsum(ascending * ascending, axis=1)
    total = squares[:, -1:]
    ratio = np.divide(squares, total, out=np.zeros_like(squares), where=total > 0)
    # squares[:, j] sums the j + 1 smallest: what is left when n − j − 1 entries are kept
    worst = np.sqrt(ratio.max(axis=0))[::-1]
    return np.concatenate([worst[1:], [0.0]])


def tail_ratio(theta: object, k: int, q: int = 1) -> float:
    """``τ_{q,k}(θ) = ‖θ − θ_k‖_q / ‖θ‖_q`` for q in {1, 2}; 0 for θ = 0.

    Raises InputError for k out of 1 … d or another q.

    >>> tail_ratio([3.0, -1.0], k=1)
    0.25
    """
    p, i = _checked(theta, k)
    _check_q(q)
    return float((p.epsilon if q == 1 else p.epsilon_2)[i])


def _check_q(q: object) -> None:
    if q not in (1, 2):
        raise InputError("q", got=repr(q), needed="1 or 2", fix="the theorems use q = 1, the row step q = 2")


def dispersion(theta: object, k: int, kind: Dispersion = "kth") -> float:
    """Dispersion β of the k largest magnitudes; 0 for θ = 0.

    ``kth`` (the paper's): ``1 − |θ|_(k)/|θ|_(1)``; ``mean`` (ours, never larger): ``1 − mean(top k)/|θ|_(1)``.

    >>> dispersion([4.0, 2.0, 1.0], k=2), dispersion([4.0, 2.0, 1.0], k=2, kind="mean")
    (0.5, 0.25)
    """
    p, i = _checked(theta, k)
    return float(p.beta(check_dispersion(kind))[i])


def smallest_k(theta: object, epsilon: float, q: int = 1) -> int:
    """The smallest k with ``τ_{q,k}(θ) <= epsilon``: the k that a target ε asks for.

    >>> smallest_k([3.0, 1.0], 0.25), smallest_k([3.0, 1.0], 0.1)
    (1, 2)
    """
    p, _ = _checked(theta, 1)
    target = check_fraction(epsilon, "epsilon")
    _check_q(q)
    return first_k(p.epsilon if q == 1 else p.epsilon_2, target)


def first_k(tails: F64, target: float) -> int:
    """Index of the first tail <= target, counted from 1; tails fall with k and end in 0."""
    return int(np.argmax(tails <= target)) + 1


def check_dispersion(kind: object) -> Dispersion:
    """Refuse anything but the two readings of β."""
    for word in get_args(Dispersion):
        if isinstance(kind, str) and kind == word:
            return word
    raise InputError(
        "dispersion",
        got=repr(kind),
        needed="'kth' (the paper's) or 'mean' (ours, tighter)",
        fix="pass one of these words",
    )


def check_fraction(value: object, argument: str) -> float:
    """A number in [0, 1]."""
    refused = isinstance(value, (bool, np.bool_, np.complexfloating))
    if refused or not hasattr(value, "__float__") or getattr(value, "ndim", 0):
        raise InputError(argument, got=repr(value), needed="a number in [0, 1]", fix="pass a float")
    number = float(value)  # type: ignore[arg-type]  # __float__ was checked
    if not 0.0 <= number <= 1.0:
        raise InputError(argument, got=repr(value), needed="a number in [0, 1]", fix="it is a ratio of norms")
    return number


def check_k(k: object, largest: int, argument: str = "k") -> int:
    """An integer in 1 … largest."""
    if isinstance(k, bool) or not hasattr(k, "__index__") or getattr(k, "ndim", 0):
        raise InputError(argument, got=repr(k), needed=f"an integer from 1 to {largest}", fix="pass an int")
    try:
        number = int(k.__index__())  # type: ignore[attr-defined]  # __index__ was checked
    except TypeError as error:  # a 0-d array or tensor of floats
        raise InputError(argument, got=repr(k), needed=f"an integer from 1 to {largest}", fix="pass an int") from error
    if not 1 <= number <= largest:
        raise InputError(
            argument,
            got=str(number),
            needed=f"an integer from 1 to {largest}",
            fix="k counts kept entries: rows, or singular values, of which there are min(rows, columns)",
        )
    return number


def _checked(theta: object, k: object) -> tuple[Profile, int]:
    array = as_float64(theta, "theta")
    if array.ndim != 1 or array.size == 0:
        raise InputError("theta", got=f"shape {array.shape}", needed="a vector", fix="flatten it with .ravel()")
    return profile(array), check_k(k, array.size) - 1
