"""e09: compression makes universal adversarial examples, scale does not."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from experiments.rules import At, Change, Condition, MatchedChange, Rule, Trend
from experiments.studies.common import PAPER_CIFAR, digits_or
from experiments.study import Point, Study

RANKS: Final = {"cpu": (2, 4, 8, 16, 64), "paper": (10, 50, 200, 2000)}
FACTORS: Final = (1.0, 2.0, 4.0, 8.0)
COMPRESSED: Final = "low rank"
SCALED: Final = "‖W‖_F times a factor"


def points(scale: str) -> tuple[Point, ...]:
    """Ranks; and Frobenius norms held at multiples of their initial values."""
    base = digits_or(scale, PAPER_CIFAR).measured(universal=True, attack="worst")
    arms = [Point(COMPRESSED, float(r), replace(base, rank=r)) for r in RANKS[scale]]
    arms += [Point(SCALED, f, replace(base.trained(frobenius=True, lr=base.training.lr / f), init_scale=f)) for f in FACTORS]
    return tuple(arms)


STUDY: Final = Study(
    id="e09",
    title="Universal adversarial examples: compression against scale",
    claim="Compression makes universal adversarial examples; raising the Frobenius norm alone does not.",
    source="Barsbey et al., ICLR 2026, section 4 (compression ≠ norm)",
    level="rank or factor",
    varies="rank; or the factor 1…8 at which every encoder ‖W‖_F is held during training, the step size divided by it",
    fixed="data, widths, steps, seeds; one perturbation made on 1,000 training samples, tested on all test samples",
    supported_if="UAE success rises as the rank falls (by more than 0.05), rises by less than 0.05 with the factor, and is "
    "more than 0.02 higher for compressed nets than for scaled ones of equal RA",
    refuted_if="one of these fails",
    rule=Rule(
        conditions=(
            Condition("UAE success, lowest against full rank", Change("universal_inf", At(COMPRESSED, "first"), At(COMPRESSED, "last")), ">", 0.05),
            Condition("UAE success, largest factor against 1", Change("universal_inf", At(SCALED, "last"), At(SCALED, "first")), "<", 0.05),
            Condition("at equal RA, rank 4", MatchedChange("universal_inf", "ra_inf", At(COMPRESSED, 4.0), SCALED), ">", 0.02),
        ),
        controls=(
            Condition("UAE success falls with rank", Trend("universal_inf", COMPRESSED), "<", -0.5),
            Condition("in ℓ2: lowest against full rank", Change("universal_2", At(COMPRESSED, "first"), At(COMPRESSED, "last")), ">", 0.05),
            Condition("in ℓ2: largest factor against 1", Change("universal_2", At(SCALED, "last"), At(SCALED, "first")), "<", 0.05),
            Condition("scale lowers RA at all", Change("ra_inf", At(SCALED, "last"), At(SCALED, "first")), "<", -0.02),
        ),
    ),
    points=points,
    measures=("sa", "ra_inf", "ra_2", "universal_inf", "universal_2", "gap_inf", "gap_normalised_inf", "frobenius_product"),
    log_level=True,
    note="The perturbation is made on logits divided by their mean margin: with large weights the cross-entropy's gradient "
    "vanishes, and an attack that fails for that reason would pass for robustness. RA is under all of AutoPGD's losses. "
    "The universal perturbation has three times the radius of the RA beside it. Large weights with small steps hardly move: "
    "the scaled encoders stay near their initial directions, so the factor changes what is learned, not only its scale.",
)  # fmt: skip
