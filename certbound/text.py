"""Plain-text tables for ``print(result)`` and JSON-ready numbers; the core has no other printer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal


def table(rows: Sequence[Sequence[str]], header: Sequence[str] | None = None) -> str:
    """Left-aligned columns, two spaces apart.

    >>> print(table([("a", "1"), ("bb", "22")], header=("name", "n")))
    name  n
    a     1
    bb    22
    """
    every = [list(header)] if header is not None else []
    every += [list(row) for row in rows]
    if not every:
        return ""
    widths = [max(len(row[i]) for row in every) for i in range(len(every[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in every]
    return "\n".join(line.rstrip() for line in lines)


def number(value: float | None) -> str:
    """Five significant digits, ``-`` for nothing.

    >>> number(3.14159265), number(math.inf), number(None)
    ('3.1416', 'inf', '-')
    """
    return "-" if value is None else f"{value:.5g}"


def at_most(value: float, digits: int = 5) -> str:
    """``<=`` and five (or so many) significant digits, rounded up: what is printed is a bound as well.

    >>> at_most(21.92927), at_most(0.5), at_most(math.inf)
    ('<= 21.93', '<= 0.5', '<= inf')
    """
    return f"<= {_directed(value, ROUND_CEILING, digits)}"


def at_least(value: float, digits: int = 5) -> str:
    """``>=`` and five (or so many) significant digits, rounded down.

    >>> at_least(21.92927), at_least(-0.123456), at_least(21.92927, 2)
    ('>= 21.929', '>= -0.12346', '>= 21')
    """
    return f">= {_directed(value, ROUND_FLOOR, digits)}"


def _directed(value: float, rounding: str, digits: int) -> str:
    if not math.isfinite(value):
        return number(value)
    # a context of our own: the thread's may be set otherwise
    rounded = Context(prec=digits, rounding=rounding, Emin=-9999, Emax=9999).create_decimal(Decimal(value))
    # few digits survive a float and back, but for the very small and the very large
    plain = rounded == 0 or Decimal("1e-300") < abs(rounded) < Decimal("1e300")
    return f"{float(rounded):.{digits}g}" if plain else str(rounded)


def json_number(value: float | None) -> float | str | None:
    """A float that ``json.dumps(..., allow_nan=False)`` takes: infinities become strings.

    >>> json_number(math.inf), json_number(1.5)
    ('inf', 1.5)
    """
    if value is None:
        return None
    value = float(value)
    return value if math.isfinite(value) else repr(value)
