"""What several studies share: base configurations of both scales, and the control arms.

Equal configurations are computed once, whichever study asks first: the control arms cost nothing the second time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from typing import Any, Final

from experiments.config import Architecture, ArchitectureKind, Config, Kind, Measure, Training, Transform
from experiments.study import Point

PAPER_MEASURE: Final = Measure(
    deltas_2=(0.25, 0.5, 1.0), deltas_inf=(4 / 255, 8 / 255, 16 / 255), headline_2=0.5, headline_inf=8 / 255,
    n_attack=1000, n_bounds=100, attack="worst", restarts=5, time_limit=600.0,
    methods=("printed", "derived", "sharp", "product", "cover", "IBP", "CROWN"),
)  # fmt: skip
"""The paper's attacks: ℓ∞ 8/255 and ℓ2 0.5. Without the recursion and the SDP: a factorisation of size 2,000 per layer
for each of 45 margins would take longer than training."""

DIGITS: Final = Config(training=Training(epochs=30))
MNIST: Final = Config(
    data="mnist5k", hidden=(200, 200), training=Training(epochs=20), measure=Measure(n_attack=300, n_bounds=100)
)
_PAPER_TRAINING: Final = Training(epochs=100, lr=0.01, batch_size=128)
PAPER_MNIST: Final = Config(data="mnist", hidden=(2000,) * 4, training=_PAPER_TRAINING, measure=PAPER_MEASURE)
PAPER_CIFAR: Final = replace(PAPER_MNIST, data="cifar10")

CONVOLUTIONAL: Final = Measure(
    deltas_2=(0.25, 0.5, 2.0), deltas_inf=(0.02, 0.05, 0.2), n_attack=120, steps=40, n_bounds=10,
    methods=("product", "IBP", "CROWN"),
)  # fmt: skip
"""Small convolutional networks on digits: as many attacks as dense ones get would take a minute a model.

Theorems 3.1 and 3.2 are of chains of dense layers and have no row; LipSDP of a network of some thousand neurons takes
longer than training, and ``compare`` would cut it off by the clock.
"""
TRANSFORMERS: Final = replace(
    CONVOLUTIONAL, deltas_2=(0.1, 0.2, 1.0), deltas_inf=(0.015, 0.03, 0.1), headline_2=0.2, headline_inf=0.03,
    methods=(),
)  # fmt: skip
"""Small transformers on digits: at the radii of the others next to nothing survives.

No bounds: dot-product attention has no Lipschitz constant, and ``compare`` refuses its product and LayerNorm's root.
"""
PAPER_NETWORKS: Final = replace(PAPER_MEASURE, methods=())
"""The attacks of the paper on its own architectures; bounds of such networks take longer than training."""


def architecture(
    kind: ArchitectureKind, data: str, training: Training, measure: Measure, **settings: Any
) -> Config:  # fmt: skip
    """A network of ``experiments.architectures``; ``settings`` of :class:`Architecture`."""
    return Config(data=data, training=training, measure=measure, architecture=Architecture(kind, **settings))


SHORT: Final = "dense, fewer epochs"
"""Control arm: underfitted dense networks, to compare with at equal accuracy or loss."""
TUNED: Final = "dense, weight decay and early stopping"
"""Control arm: λ = 0 done well."""
NARROW: Final = "narrow dense"
"""Control arm: dense networks with as many parameters as the low-rank ones."""


def digits_or(scale: str, paper: Config) -> Config:
    """The base of a study that runs on digits at cpu scale."""
    return DIGITS if scale == "cpu" else paper


def with_penalty(base: Config, name: str, strength: float, *, frobenius: bool = False) -> Config:
    """The base trained with λ times a penalty; λ = 0 is the plain base (with its Frobenius norm held if asked)."""
    penalties = ((name, strength),) if strength > 0 else ()
    return base.trained(penalties=penalties, frobenius=frobenius)


def short_training(base: Config, epochs: Iterable[int] = (1, 2, 3, 5, 10)) -> tuple[Point, ...]:
    """Dense networks that were trained for fewer epochs, and the base itself."""
    whole = base.training.epochs
    kept = sorted({e for e in epochs if e < whole} | {whole})
    return tuple(Point(SHORT, float(e), base.trained(epochs=e)) for e in kept)


def tuned(base: Config, decays: Iterable[float] = (1e-4, 1e-3, 5e-3)) -> tuple[Point, ...]:
    """Dense networks with weight decay and early stopping on held-back training samples."""
    return tuple(Point(TUNED, d, base.trained(weight_decay=d, validation=0.1, patience=5)) for d in decays)


def narrow(base: Config, n_inputs: int, n_outputs: int, ranks: Iterable[int]) -> tuple[Point, ...]:
    """Dense networks of the width at which they have about as many weights as ``base`` with each rank."""
    points = []
    for rank in ranks:
        sizes = (n_inputs, *base.hidden)
        wanted = sum(rank * (a + b) for a, b in pairwise(sizes)) + base.hidden[-1] * n_outputs
        width = max(1, min(base.hidden[0], _width(wanted, n_inputs, len(base.hidden), n_outputs)))
        points.append(Point(NARROW, float(rank), replace(base, hidden=(width,) * len(base.hidden))))
    return tuple(points)


def _width(weights: int, n_inputs: int, depth: int, n_outputs: int) -> int:
    """The largest w with ``n_inputs w + (depth − 1) w² + w n_outputs <= weights``."""
    w = 1
    while n_inputs * (w + 1) + (depth - 1) * (w + 1) ** 2 + (w + 1) * n_outputs <= weights:
        w += 1
    return w


def changed(base: Config, kind: Kind, amounts: Iterable[float], arm: str) -> tuple[Point, ...]:
    """The base, trained, then transformed by each amount."""
    return tuple(Point(arm, a, replace(base, transform=Transform(kind, a))) for a in amounts)


__all__ = [
    "CONVOLUTIONAL", "DIGITS", "MNIST", "NARROW", "PAPER_CIFAR", "PAPER_MNIST", "PAPER_NETWORKS", "SHORT",
    "TRANSFORMERS", "TUNED", "architecture", "changed", "digits_or", "narrow", "short_training", "tuned",
    "with_penalty",
]  # fmt: skip
