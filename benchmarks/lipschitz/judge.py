"""Is a reported value really valid? Compared with what is proved, never with what a method says of itself.

``INVALID``: an upper bound below a sampled lower bound of the Lipschitz constant (or the converse): it is false.
``wrong side``: below the optimum of the relaxation that it claims to solve or to be feasible for, by more than 1e-6; it
may still happen to bound the network, but nothing the tool knows shows it. ``proved``: its certificate verified.
``valid``: not below a bound that is proved. ``not shown``: none of these.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

SLACK: Final = 1e-6
"""Relative: how far below the optimum a value may be before it counts as on the wrong side."""
ROUNDING: Final = 1e-9
"""Relative: how far a value without a proof may be below a lower bound; what its own rounding does is not judged."""
TIGHT: Final = 1e-4
"""The optimum counts as known if it is bracketed this closely."""


@dataclass(frozen=True)
class Facts:
    """What is known of one network and problem.

    Parameters
    ----------
    lower : the largest lower bound of the Lipschitz constant (0: none).
    least : the largest lower bound of the relaxation's optimum (0: none), by duality.
    proved : the smallest upper bound with a certificate that verified (∞: none).
    solved : the reference's value, numerical (∞: none).
    product : the product of norms.
    """

    lower: float = 0.0
    least: float = 0.0
    proved: float = math.inf
    solved: float = math.inf
    product: float | None = None

    @property
    def optimum(self) -> tuple[float, bool] | None:
        """What gaps are counted from: the relaxation's optimum, True if known to 1e-4; else the best proved, False."""
        if self.least > 0.0 and min(self.proved, self.solved) <= self.least * (1.0 + TIGHT):
            return self.least, True
        return (self.proved, False) if self.proved < math.inf else None


@dataclass(frozen=True)
class Verdict:
    """A word and the numbers behind it."""

    word: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.word} ({self.detail})" if self.detail else self.word


def facts(cells: Sequence[Mapping[str, Any]]) -> Facts:
    """From every cell of one network and problem."""
    valued = [c for c in cells if c["value"] is not None and math.isfinite(c["value"])]
    # a network's own sampled Jacobian is numerical on traps, where certbound has no certificate of it
    lower = max((c["value"] for c in valued if c["kind"] == "lower" and c["proved"] is not False), default=0.0)
    least = max((c["least"] for c in cells if c["least"] is not None), default=0.0)
    # what is below a lower bound is no fact, whatever its certificate says: judge() shows it
    proved = [c["value"] for c in valued if c["kind"] != "lower" and c["proved"] and c["value"] >= lower]
    product = next((c["value"] for c in valued if c["method"] == "product"), None)
    solved = next((c["value"] for c in valued if c["method"] == "reference"), math.inf)
    return Facts(lower, least, min(proved, default=math.inf), solved, product)


def judge(cell: Mapping[str, Any], known: Facts) -> Verdict:
    """The verdict on one value.

    >>> known = Facts(lower=1.0, least=2.0, proved=2.00001)
    >>> cell = {"value": 1.98, "kind": "relaxation", "proved": None}
    >>> str(judge(cell, known)), judge(cell | {"value": 0.5}, known).word, judge(cell | {"value": 2.1}, known).word
    ('wrong side (1.0e-02 below the optimum)', 'INVALID', 'valid')
    """
    value = cell["value"]
    if value is None:
        return Verdict("-")
    if math.isnan(value) or value < 0.0:
        return Verdict("INVALID", "no bound at all")
    if cell["kind"] == "lower":
        if value > known.proved:
            return Verdict("INVALID", "above a proved upper bound")
        return Verdict("proved" if cell["proved"] else "numerical")
    if value < known.lower * (1.0 if cell["proved"] else 1.0 - ROUNDING):
        return Verdict("INVALID", f"{value / known.lower:.3g} of a sampled lower bound")
    if cell["kind"] == "relaxation" and value < known.least * (1.0 - SLACK):
        return Verdict("wrong side", f"{1.0 - value / known.least:.1e} below the optimum")
    if cell["proved"]:
        return Verdict("proved")
    return Verdict("valid") if value >= known.proved else Verdict("not shown")
