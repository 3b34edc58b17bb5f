"""The words of the project: norms, senses, trust, statuses, quantities."""

from __future__ import annotations

import math
from enum import Enum, IntEnum, StrEnum
from typing import Final

from certbound.errors import InputError

SCHEMA_VERSION: Final = 1
"""Version of every ``to_dict()`` layout; raised when a field changes its meaning."""

GLOBAL: Final = "all inputs"
"""The domain of a claim that holds for every input."""


class Sense(StrEnum):
    """The side of the true value on which a bound lies."""

    UPPER = "upper"
    LOWER = "lower"


class Rigor(IntEnum):
    """How far a number can be trusted (GUARANTEES: the word, never more).

    * ``HEURISTIC``: may be on the wrong side; never shown as a bound.
    * ``NUMERICAL``: the theorem holds in real arithmetic; rounding is not accounted for.
    * ``RIGOROUS``: every rounding is enclosed.

    >>> Rigor.HEURISTIC < Rigor.NUMERICAL < Rigor.RIGOROUS
    True
    >>> str(Rigor.parse("numerical"))
    'numerical'
    """

    HEURISTIC = 0
    NUMERICAL = 1
    RIGOROUS = 2

    def __str__(self) -> str:
        return self.name.lower()

    @classmethod
    def parse(cls, value: object) -> Rigor:
        """Read a trust word; raises InputError for anything else."""
        if isinstance(value, Rigor):
            return value
        if isinstance(value, str) and value.upper() in cls.__members__:
            return cls[value.upper()]
        raise InputError(
            "rigor",
            got=repr(value),
            needed="'heuristic', 'numerical' or 'rigorous'",
            fix="pass one of these words or a Rigor",
        )


class Status(Enum):
    """How a method ended; every status carries its sentence."""

    OK = ("ok", "the method finished and its bound is the one shown")
    HYPOTHESIS_NOT_MET = (
        "hypothesis not met",
        "the numbers given do not satisfy the theorem's hypothesis, so it says nothing",
    )
    UNSUPPORTED = ("unsupported", "the method does not apply to this network, norm or request")
    TOO_LARGE = ("too large", "the problem exceeds the size that the method accepts")
    TIME_LIMIT = ("time limit", "the time limit came first; the best valid bound so far is shown")
    FAILED = ("failed", "the method failed; a weaker valid bound is shown")
    NOT_INSTALLED = ("not installed", "a package that the method needs is missing")

    @property
    def word(self) -> str:
        """Short form for tables."""
        return self.value[0]

    @property
    def sentence(self) -> str:
        """What the status means."""
        return self.value[1]

    def __str__(self) -> str:
        return self.word


class Quantity(StrEnum):
    """What a claim is about."""

    OPERATOR_NORM = "operator norm"
    FROBENIUS_NORM = "Frobenius norm"
    LIPSCHITZ = "Lipschitz constant"
    PATTERN_NORM = "activation-pattern norm"
    LOSS_GAP = "mean loss gap"
    ROBUST_ACCURACY = "robust accuracy"
    MARGIN = "margin"
    OUTPUT_CHANGE = "largest output change"

    def vacuous(self, sense: Sense) -> float:
        """The value that says nothing: ∞ above, 0 below (margins: −∞; accuracies: 1 above)."""
        if sense is Sense.UPPER:
            return 1.0 if self is Quantity.ROBUST_ACCURACY else math.inf
        return -math.inf if self is Quantity.MARGIN else 0.0


def parse_norm(norm: object, argument: str = "norm") -> float:
    """Return 2.0 or ``math.inf``.

    >>> parse_norm("inf"), parse_norm(2)
    (inf, 2.0)
    """
    if isinstance(norm, str):
        text = norm.strip().lower()
        if text in {"inf", "linf", "∞"}:
            return math.inf
        if text in {"2", "l2"}:
            return 2.0
    elif isinstance(norm, (int, float)) and not isinstance(norm, bool) and norm in (2, math.inf):
        return float(norm)
    raise InputError(argument, got=repr(norm), needed="2 or math.inf (also 'inf')", fix="pass norm=2 or norm='inf'")


def norm_name(norm: float | None) -> str:
    """``'2'``, ``'1'``, ``'inf'`` or ``'-'``: how a norm is printed."""
    if norm is None:
        return "-"
    return "inf" if math.isinf(norm) else f"{norm:g}"


def dual_norm(norm: float) -> float:
    """The dual exponent p*, 1/p + 1/p* = 1, for p in {2, ∞}.

    >>> dual_norm(math.inf), dual_norm(2.0)
    (1.0, 2.0)
    """
    return 1.0 if math.isinf(norm) else 2.0


def parse_delta(delta: object, argument: str = "delta") -> float:
    """A perturbation radius: a finite float >= 0."""
    if isinstance(delta, bool) or not hasattr(delta, "__float__"):
        raise InputError(argument, got=repr(delta), needed="a number", fix="pass a float radius")
    value = float(delta)  # type: ignore[arg-type]  # __float__ was checked one line above
    if not math.isfinite(value) or value < 0:
        raise InputError(
            argument,
            got=repr(delta),
            needed="a finite number >= 0, in the units of the model's input",
            fix="pass for instance 8/255 for pixels in [0, 1]",
        )
    return value
