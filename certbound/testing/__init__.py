"""For tests of bounds, yours and ours: networks whose constants are known, and Hypothesis strategies.

The zoo needs numpy alone; the strategies need hypothesis, which is imported when the first of them is asked for.

>>> [entry.name for entry in zoo][:2]
['identity', 'one layer']
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from certbound.errors import MissingDependencyError
from certbound.testing.zoo import ZooEntry, zoo

if TYPE_CHECKING:
    from certbound.testing.strategies import (
        KINDS,
        compressible_matrices,
        labelled_batches,
        rational_matrices,
        relu_networks,
        tiny_relu_networks,
    )

__all__ = [
    "KINDS",
    "ZooEntry",
    "compressible_matrices",
    "labelled_batches",
    "rational_matrices",
    "relu_networks",
    "tiny_relu_networks",
    "zoo",
]


def __getattr__(name: str) -> Any:
    """The strategies, on first use: hypothesis is a development package."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        import hypothesis  # noqa: F401  # is it there?
    except ImportError as error:
        raise MissingDependencyError(
            "hypothesis", purpose=f"certbound.testing.{name}", command="pip install hypothesis"
        ) from error
    from certbound.testing import strategies

    return getattr(strategies, name)
