"""Progress bars on stderr for long work; silent without tqdm, or when asked to be."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

T = TypeVar("T")


def track(items: Sequence[T], label: str, *, enabled: bool) -> Iterable[T]:
    """Iterate with a progress bar (items done, time left).

    >>> list(track([1, 2], "work", enabled=False))
    [1, 2]
    """
    if not enabled:
        return items
    try:
        from tqdm import tqdm
    except ImportError:
        return items
    bar: Iterable[T] = tqdm(items, desc=label, unit="step", dynamic_ncols=True)
    return bar
