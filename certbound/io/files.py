"""What every reader of a file needs: the file is there, and names like ``fc2.weight`` sort as people count."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from certbound.errors import InputError


def existing_file(path: str | os.PathLike[str], argument: str) -> Path:
    """The path of a readable file; InputError names ``argument`` otherwise."""
    found = Path(path)
    if not found.is_file():
        got = "a folder" if found.is_dir() else "no file"
        raise InputError(argument, got=f"{got} at {str(path)!r}", needed="a file", fix="check the path")
    return found


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key in which numbers inside a name count as numbers.

    >>> sorted(["fc10", "fc9"], key=natural_key)
    ['fc9', 'fc10']
    """
    return tuple((0, int(p), "") if p.isdigit() else (1, 0, p) for p in re.split(r"([0-9]+)", name) if p)


def template(name: str) -> str:
    """The name with its numbers blanked: names of one template are ordered by their numbers.

    >>> template("layers.10.weight")
    'layers.#.weight'
    """
    return re.sub(r"[0-9]+", "#", name)


def numbered(names: Sequence[str]) -> bool:
    """True if the names differ in their numbers only, so that these give an order; a single name always does.

    >>> numbered(["fc1", "fc2"]), numbered(["encoder", "head"])
    (True, False)
    """
    different = {natural_key(n) for n in names}
    return len({template(n) for n in names}) <= 1 and len(different) == len(names)


def listed(names: Sequence[str], most: int = 8) -> str:
    """Names for a message, the first few of many.

    >>> listed(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
