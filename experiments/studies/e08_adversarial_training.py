"""e08: the effect of compression persists under adversarial training."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from experiments.config import INF, PGD
from experiments.rules import At, Change, Condition, Difference, Rule, Trend
from experiments.studies.common import PAPER_CIFAR, digits_or
from experiments.study import Point, Study

RANKS: Final = {"cpu": (4, 8, 16, 64), "paper": (10, 50, 200, 2000)}
RADII: Final = {"cpu": (0.03, 0.06), "paper": (4 / 255, 8 / 255)}
PLAIN: Final = "no adversarial training"
LIGHT: Final = "adversarial training, smaller ε"
STRONG: Final = "adversarial training, larger ε"


def points(scale: str) -> tuple[Point, ...]:
    """Ranks times three training radii."""
    base = digits_or(scale, PAPER_CIFAR)
    light, strong = RADII[scale]
    arms = []
    for rank in RANKS[scale]:
        low = replace(base, rank=rank)
        arms.append(Point(PLAIN, float(rank), low))
        for arm, delta in ((LIGHT, light), (STRONG, strong)):
            arms.append(Point(arm, float(rank), low.trained(adversarial=PGD(delta=delta, norm=INF))))
    return tuple(arms)


def _conditions() -> tuple[Condition, ...]:
    found = []
    for arm in (LIGHT, STRONG):
        found += [
            Condition(f"{arm}: RA rises with rank", Trend("ra_inf", arm), ">", 0.5),
            Condition(f"{arm}: lowest against full rank", Change("ra_inf", At(arm, "first"), At(arm, "last")), "<", -0.02),
        ]
    return tuple(found)


STUDY: Final = Study(
    id="e08",
    title="Compression under adversarial training",
    claim="Adversarial training raises RA, but compression lowers it there too.",
    source="Barsbey et al., ICLR 2026, section 4 (adversarial training)",
    level="rank",
    varies="rank, and the radius of PGD training (half of each batch, ℓ∞)",
    fixed="data, widths, steps, seeds",
    supported_if="under either radius RA (ℓ∞) rises with rank and is more than 0.02 lower at the lowest rank",
    refuted_if="under one of them it does not",
    rule=Rule(
        conditions=_conditions(),
        controls=(
            Condition("adversarial training raises RA at full rank", Change("ra_inf", At(STRONG, "last"), At(PLAIN, "last")), ">", 0.02),
            Condition("RA/SA falls too", Change("ra_sa_inf", At(STRONG, "first"), At(STRONG, "last")), "<", -0.02),
            Condition(
                "adversarial training makes the drop smaller",
                Difference("ra_inf", At(STRONG, "first"), At(STRONG, "last"), At(PLAIN, "first"), At(PLAIN, "last")), ">", 0.0,
            ),
        ),
    ),
    points=points,
    log_level=True,
    note="cpu scale: digits, 64-64-64-10, RA at ℓ∞ 0.05.",
)  # fmt: skip
