"""Progress bars on stderr for long work; silent without tqdm, or when asked to be."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
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


@contextmanager
def steps_bar(label: str, *, enabled: bool) -> Iterator[Callable[[int, float], None] | None]:
    """A bar for work that does not know how many steps it will take: called with the step and the gap that is left.

    >>> with steps_bar("work", enabled=False) as show:
    ...     print(show)
    None
    """
    if not enabled:
        yield None
        return
    try:
        from tqdm import tqdm
    except ImportError:
        yield None
        return
    with tqdm(desc=label, unit="step", dynamic_ncols=True) as bar:

        def show(step: int, gap: float) -> None:
            bar.update(1)
            bar.set_postfix_str(f"gap at most {gap:.1e}")

        yield show
