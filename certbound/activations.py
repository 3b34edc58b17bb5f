"""Elementwise activations: the function, the interval of its slopes, and enclosures of both, rounded outward.

What a Lipschitz bound needs of an activation φ is an interval [α, β] with ``α (x − y) <= φ(x) − φ(y) <= β (x − y)``
for x >= y, over all numbers or over the interval that its input is known to stay in.

No exp or erf of a library is trusted: both are summed here from series of positive terms (and a continued fraction) in
:class:`certbound.rounding.Interval`, with the rest of the series enclosed, so that only + − × ÷ need to be right.

gelu, gelu_tanh and silu are one family: ``φ(x) = x A(−x)`` with ``A(−x) = 1 − A(x)``. For t >= 0 and ``B = −A′``,
``φ(−t) = −t A(t)``, ``φ(t) = t − t A(t)``, ``φ′(−t) = A(t) − t B(t)``, ``φ′(t) = 1 − φ′(−t)``. Each derivative falls
from 0 to its minimum at −c, rises to its maximum at c, and falls to 1: ``φ″`` has the sign of ``2 − x²`` (gelu),
``2 − x tanh(x/2)`` (silu), and for gelu_tanh, x > 0, with ``s = 3 a x²`` and ``u = √(2/π) (x + a x³)``, of
``(1 + 2s)/(1 + s)² − √(2/π) x tanh u``, in which the first term falls and the second rises. So φ itself falls to one
minimum, where φ′ = 0, and rises from there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from certbound.arrays import F64
from certbound.errors import InputError
from certbound.rounding import Interval, check_arithmetic

Name = Literal["relu", "leaky_relu", "tanh", "sigmoid", "gelu", "gelu_tanh", "silu"]
Enclosure = tuple[F64, F64]
"""Lower and upper ends, elementwise."""


@dataclass(frozen=True)
class _Point:
    """A place within ``[left, right]`` (neighbouring floats) and the value there, within ``[low, high]``."""

    left: float
    right: float
    low: float
    high: float


# Computed with Arb at 200 bits, proved again in tests/test_activations.py.
_SLOPE_EXTREMES: dict[str, tuple[_Point, ...]] = {
    "tanh": (_Point(0.0, 0.0, 1.0, 1.0),),
    "sigmoid": (_Point(0.0, 0.0, 0.25, 0.25),),
    "gelu": (
        _Point(-1.4142135623730951, -1.414213562373095, -0.1289041451851548, -0.12890414518515478),
        _Point(1.414213562373095, 1.4142135623730951, 1.1289041451851547, 1.128904145185155),
    ),
    "gelu_tanh": (
        _Point(-1.4185040087908285, -1.4185040087908283, -0.12899306865877178, -0.12899306865877175),
        _Point(1.4185040087908283, 1.4185040087908285, 1.1289930686587717, 1.128993068658772),
    ),
    "silu": (
        _Point(-2.399357280515468, -2.3993572805154675, -0.09983932012886693, -0.09983932012886691),
        _Point(2.3993572805154675, 2.399357280515468, 1.0998393201288668, 1.099839320128867),
    ),
}
_MINIMA: dict[str, _Point] = {
    "gelu": _Point(-0.7517915246935645, -0.7517915246935644, -0.16997120747990369, -0.16997120747990366),
    "gelu_tanh": _Point(-0.7524614220710163, -0.7524614220710162, -0.17004075057125406, -0.17004075057125403),
    "silu": _Point(-1.278464542761074, -1.2784645427610737, -0.2784645427610738, -0.27846454276107374),
}


@dataclass(frozen=True)
class Activation:
    """An elementwise activation. ``parameter``: the negative slope of ``leaky_relu`` (any finite number), else unused.

    ``gelu`` is ``x Φ(x)``; ``gelu_tanh`` its approximation ``x (1 + tanh(√(2/π) (x + 0.044715 x³)))/2``, constants as
    written, not rounded; ``silu`` is ``x sigmoid(x)``.

    >>> Activation("leaky_relu", 0.1)
    Activation(name='leaky_relu', parameter=0.1)
    """

    name: Name
    parameter: float = 0.0

    def __post_init__(self) -> None:
        if self.name not in get_args(Name):
            raise InputError(
                "name", got=repr(self.name), needed=f"one of {get_args(Name)}", fix="see certbound.activations"
            )
        if not np.isfinite(self.parameter):
            raise InputError(
                "parameter", got=repr(self.parameter), needed="a finite number", fix="0.01 is torch's default"
            )

    def forward(self, x: F64) -> F64:
        """φ(x) in float64, elementwise (numerical).

        >>> Activation("silu").forward(np.array([0.0, 800.0])).tolist()
        [0.0, 800.0]
        """
        if self._kinked:
            return np.where(x >= 0.0, x, self._negative_slope * x)
        if self.name == "tanh":
            return np.tanh(x)
        if self.name == "gelu":
            return np.asarray(x * (np.asarray(_erfc(x * -math.sqrt(0.5)), dtype=np.float64) * 0.5), dtype=np.float64)
        z = x
        if self.name == "gelu_tanh":
            near = np.clip(x, -100.0, 100.0)  # beyond it the gate is 0 or 1, and x³ might overflow
            z = math.sqrt(8.0 / math.pi) * (near + 0.044715 * near**3)
        gate = np.where(z >= 0.0, 1.0, np.exp(-np.abs(z))) / (1.0 + np.exp(-np.abs(z)))
        return gate if self.name == "sigmoid" else x * gate

    def slopes(self, lower: F64 | None = None, upper: F64 | None = None) -> Enclosure:
        """Enclosure of all slopes of φ on each ``[lower_j, upper_j]``: every difference quotient of two of its points.

        Rigorous: lower ends are rounded down, upper ends up, by about 1e-15 (absolute). Ends may be infinite; None
        stands for one that is, and if both are None the answer has shape (). A relu on ``[l, u]`` has [1, 1] for
        l >= 0, else [0, 0] for u <= 0, else [0, 1].

        Raises
        ------
        InputError : NaN, or lower > upper.

        >>> low, high = Activation("tanh").slopes(np.array([-1.0, 0.0]), np.array([2.0, 0.0]))
        >>> high.tolist(), bool(0.0706 < low[0] < 0.0707)  # 1 − tanh(2)² = 0.07065
        ([1.0, 1.0], True)
        """
        check_arithmetic()
        left, right = _ends(lower, upper)
        if self._kinked:
            a = self._negative_slope
            low = np.where(left >= 0.0, 1.0, np.where(right <= 0.0, a, min(a, 1.0)))
            return low, np.where(left >= 0.0, 1.0, np.where(right <= 0.0, a, max(a, 1.0)))
        (low_l, high_l), (low_u, high_u) = _at_ends(lambda x: _slope(self.name, x), left, right)
        low, high = np.minimum(low_l, low_u), np.maximum(high_l, high_u)
        for point in _SLOPE_EXTREMES[self.name]:
            inside = (left <= point.right) & (right >= point.left)
            low = np.where(inside, np.minimum(low, point.low), low)
            high = np.where(inside, np.maximum(high, point.high), high)
        return low, high

    def enclose(self, lower: F64, upper: F64) -> Enclosure:
        """Enclosure of ``{φ(x): lower_j <= x <= upper_j}``: rigorous, within 1e-11 (relative). Ends may be infinite.

        Raises
        ------
        InputError : NaN, or lower > upper.

        >>> low, high = Activation("relu").enclose(np.array([-1.0]), np.array([2.0]))
        >>> low.tolist(), high.tolist()
        ([0.0], [2.0])
        """
        check_arithmetic()
        left, right = _ends(lower, upper)
        (low_l, high_l), (low_u, high_u) = _at_ends(self._values, left, right)
        # each φ is monotone, or V-shaped, or falls to one minimum and rises (for leaky_relu, at 0, to a maximum, if
        # the slopes are so)
        low, high = np.minimum(low_l, low_u), np.maximum(high_l, high_u)
        if self._kinked:
            inside = (left <= 0.0) & (right >= 0.0)
            return np.where(inside, np.minimum(low, 0.0), low), np.where(inside, np.maximum(high, 0.0), high)
        point = _MINIMA.get(self.name)
        if point is not None:
            low = np.where((left <= point.right) & (right >= point.left), np.minimum(low, point.low), low)
        return low, high

    @property
    def _kinked(self) -> bool:
        return self.name in ("relu", "leaky_relu")

    @property
    def _negative_slope(self) -> float:
        return float(self.parameter) if self.name == "leaky_relu" else 0.0

    def _values(self, x: F64) -> Enclosure:
        """φ at points."""
        if not self._kinked:
            return _value(self.name, x)
        a = self._negative_slope
        if a == 0.0:
            return np.maximum(x, 0.0), np.maximum(x, 0.0)
        with np.errstate(over="ignore", under="ignore"):
            scaled = a * x
        return (
            np.where(x >= 0.0, x, np.nextafter(scaled, -math.inf)),
            np.where(x >= 0.0, x, np.nextafter(scaled, math.inf)),
        )


_erfc = np.frompyfunc(math.erfc, 1, 1)


def _ends(lower: F64 | None, upper: F64 | None) -> Enclosure:
    left, right = np.broadcast_arrays(
        np.asarray(-math.inf if lower is None else lower, dtype=np.float64),
        np.asarray(math.inf if upper is None else upper, dtype=np.float64),
    )
    if not bool(np.all(left <= right)):  # so that NaN fails
        wrong = np.flatnonzero(~(left <= right).reshape(-1))[0]
        raise InputError(
            "lower, upper",
            got=f"[{left.reshape(-1)[wrong]}, {right.reshape(-1)[wrong]}] at {wrong}",
            needed="lower <= upper, no NaN",
            fix="check the order of the ends",
        )
    return left, right


def _at_ends(function: Callable[[F64], Enclosure], left: F64, right: F64) -> tuple[Enclosure, Enclosure]:
    """At both ends; every number that occurs is looked at once."""
    points, where = np.unique(np.stack([left, right]), return_inverse=True)
    low, high = function(points)
    at = where.reshape(2, *left.shape)
    return (low[at[0]], high[at[0]]), (low[at[1]], high[at[1]])


# ---------------------------------------------------------------- values and derivatives at points

_ONE = Interval.of(1.0)
# (low, high) of 1/√(2π); √(2/π) is twice that
_DENSITY = Interval.of(0.3989422804014326, 0.39894228040143276)
_KAPPA = Interval.of(0.044715, 0.044715000000000005)  # 0.044715 itself is no float
_CLIP = {"gelu": 40.0, "gelu_tanh": 100.0, "silu": 800.0}


def _value(name: Name, x: F64) -> Enclosure:
    """φ(x), φ smooth."""
    negative = x < 0.0
    if name == "tanh":
        t = _tanh(np.abs(x))
        return np.where(negative, -t.high, t.low), np.where(negative, -t.low, t.high)
    if name == "sigmoid":
        tail, rest = _sigmoid(_point(np.abs(x)))
        return np.where(negative, tail.low, rest.low), np.where(negative, tail.high, rest.high)
    t = np.abs(x)
    # t A(t) and t B(t) fall beyond the clip, where they are below the normal numbers
    near = np.minimum(t, _CLIP[name])
    A, _ = _gate(name, near)
    left = _point(near) * A
    right = _point(t) * (_ONE - A)
    return np.where(negative, -left.high, right.low), np.where(negative, -left.low, np.minimum(right.high, t))


def _slope(name: Name, x: F64) -> Enclosure:
    """φ′(x), φ smooth."""
    t = np.abs(x)
    if name in ("tanh", "sigmoid"):
        tail, rest = _sigmoid(_point(2.0 * np.minimum(t, 1e3) if name == "tanh" else t))
        slope = tail * rest
        scale, most = (4.0, 1.0) if name == "tanh" else (1.0, 0.25)
        return scale * slope.low, np.minimum(scale * slope.high, most)
    near = np.minimum(t, _CLIP[name])
    A, B = _gate(name, near)
    tB = _point(near) * B
    low, high = np.nextafter(A.low - tB.high, -math.inf), np.nextafter(A.high - tB.low, math.inf)
    negative = x < 0.0
    return (
        np.where(negative, low, np.nextafter(1.0 - high, -math.inf)),
        np.where(negative, high, np.nextafter(1.0 - low, math.inf)),
    )


def _point(x: F64) -> Interval:
    return Interval.of(x)


def _gate(name: Name, t: F64) -> tuple[Interval, Interval]:
    """A(t) and B(t) of the family (see the module), 0 <= t <= the clip."""
    x = _point(t)
    if name == "gelu":
        return _normal_tail(t)
    if name == "silu":
        tail, rest = _sigmoid(x)
        return tail, tail * rest
    cubic = _KAPPA * x * x
    scale = Interval.of(4.0) * _DENSITY
    tail, rest = _sigmoid(scale * x * (_ONE + cubic))
    return tail, scale * (_ONE + Interval.of(3.0) * cubic) * tail * rest


def _sigmoid(x: Interval) -> tuple[Interval, Interval]:
    """``1/(1 + e^x)`` and ``1/(1 + e^−x)`` for x >= 0."""
    e = _exp_minus(x)
    return e / (_ONE + e), (_ONE / (_ONE + e)).minimum(_ONE)


def _tanh(t: F64) -> Interval:
    """``tanh t = (1 − e^−x)/(1 + e^−x)``, x = 2t; for small x ``1 − e^−x = x e^−x (1 + x/2 (1 + x/3 (1 + …)))``."""
    x = _point(2.0 * np.minimum(t, 1e3))
    e = _exp_minus(x)
    small = x.low <= 1.0
    y = Interval(np.where(small, x.low, 0.0), np.where(small, x.high, 0.0))
    series = y * e * _series(y, 24, lambda n: float(n + 1))
    rest = _ONE - e
    minus = Interval(np.where(small, series.low, rest.low), np.where(small, series.high, rest.high))
    return (minus / (_ONE + e)).minimum(_ONE)


# ---------------------------------------------------------------- the transcendental functions


def _series(x: Interval, terms: int, divisor: Callable[[int], float]) -> Interval:
    """``1 + x/d_1 (1 + x/d_2 (1 + …))``, x >= 0, whose innermost sum, left out, is within [1, 4.1]."""
    # the two loops in which the time goes are written out, without Interval
    low, high = np.ones_like(x.low), np.full_like(x.high, 4.1)
    for n in range(terms, 0, -1):
        d = divisor(n)
        low = np.nextafter(1.0 + np.nextafter(np.nextafter(x.low * low, 0.0) / d, 0.0), 0.0)
        high = np.nextafter(1.0 + np.nextafter(np.nextafter(x.high * high, math.inf) / d, math.inf), math.inf)
    return Interval(low, high)


# ln 2 = _LN2_FIRST + rest: the first has 40 bits, so that its multiples up to 2^13 are exact
_LN2_FIRST = 762123384785 * 2.0**-40
_LN2_REST = Interval.of(7.371002565167799e-13, 7.3710025651678e-13)


def _exp_minus(x: Interval) -> Interval:
    """``e^−x`` for x >= 0, x of relative width below 1e-12 up to 800 (beyond it the answer is 0 to 2^-1074)."""
    low, high = np.minimum(x.low, 800.0), np.minimum(x.high, 800.0)
    # e^−x = 2^−k e^s with s = k ln 2 − x in [0.69, 1.39]: s stays positive, and the rest of its series below e^1.4
    k = np.floor(high / 0.6931471805599453) + 2.0
    first = k * _LN2_FIRST
    s = (
        Interval(np.nextafter(first - high, -math.inf), np.nextafter(first - low, math.inf))
        + Interval.of(k) * _LN2_REST
    )
    grown = _series(s, 24, float)
    exponent = -k.astype(np.int32)
    with np.errstate(under="ignore"):
        low, high = np.ldexp(grown.low, exponent), np.ldexp(grown.high, exponent)
    # exact but among the subnormal numbers
    return Interval(np.maximum(np.nextafter(low, -math.inf), 0.0), np.minimum(np.nextafter(high, math.inf), 1.0))


def _normal_tail(t: F64) -> tuple[Interval, Interval]:
    """``Φ(−t)`` and the normal density at t, 0 <= t <= 40."""
    x = _point(t)
    density = _DENSITY * _exp_minus(x * x / Interval.of(2.0))
    low, high = np.empty_like(t), np.empty_like(t)
    # the smaller t, the more terms: each band is exact to about 1e-13
    near, far = t < 1.5, t >= 3.0
    for band, terms in ((near, 0), (~(near | far), 150), (far, 45)):
        if not band.any():
            continue
        d, at = Interval(density.low[band], density.high[band]), _point(t[band])
        tail = _near_tail(at, d) if terms == 0 else d / _inverse_mills(at, terms)
        low[band], high[band] = tail.low, tail.high
    return Interval(low, high), density


def _near_tail(t: Interval, density: Interval) -> Interval:
    """``Φ(−t) = 1/2 − density · t (1 + t²/3 (1 + t²/5 (1 + …)))`` for t < 1.5."""
    return Interval.of(0.5) - density * t * _series(t * t, 26, lambda n: 2.0 * n + 1.0)


def _inverse_mills(t: Interval, terms: int) -> Interval:
    """``density/Φ(−t) = t + 1/(t + 2/(t + …))``; what is cut off after n terms lies between t and t + (n + 1)/t."""
    low, high = t.low, (t + Interval.of(terms + 1.0) / t).high
    for n in range(terms, 0, -1):
        low, high = (
            np.nextafter(t.low + np.nextafter(n / high, 0.0), 0.0),
            np.nextafter(t.high + np.nextafter(n / low, math.inf), math.inf),
        )
    return Interval(low, high)
