"""Plain-text tables for ``print(result)`` and JSON-ready numbers; the core has no other printer."""

from __future__ import annotations

import math
from collections.abc import Sequence


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


def json_number(value: float | None) -> float | str | None:
    """A float that ``json.dumps(..., allow_nan=False)`` takes: infinities become strings.

    >>> json_number(math.inf), json_number(1.5)
    ('inf', 1.5)
    """
    if value is None:
        return None
    value = float(value)
    return value if math.isfinite(value) else repr(value)
