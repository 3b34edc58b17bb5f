"""e13: penalising the alignment of adjacent layers lowers A_p and raises robust accuracy."""

from __future__ import annotations

from typing import Final

from experiments.rules import At, Change, Condition, MatchedChange, Rule, Trend
from experiments.studies.common import PAPER_CIFAR, SHORT, digits_or, short_training, with_penalty
from experiments.study import Point, Study

WEIGHTS: Final = (0.0, 0.1, 0.3, 1.0, 3.0)
TWO_WEIGHTS: Final = (0.0, 1.0, 3.0)
INF_ARM: Final = "penalty on A_∞"
TWO_ARM: Final = "penalty on A_2"


def points(scale: str) -> tuple[Point, ...]:
    """Weights of the penalty on a differentiable upper bound of A_∞, and of A_2."""
    base = digits_or(scale, PAPER_CIFAR)
    arms = [Point(INF_ARM, w, with_penalty(base, "alignment-inf", w)) for w in WEIGHTS]
    arms += [Point(TWO_ARM, w, with_penalty(base, "alignment-2", w)) for w in TWO_WEIGHTS]
    return (*arms, *short_training(base))


STUDY: Final = Study(
    id="e13",
    title="Alignment regularisation",
    claim="Penalising inter-layer alignment lowers A_p and raises RA.",
    source="Barsbey et al., ICLR 2026, section 5 (interventions)",
    level="weight",
    varies="weight of the penalty",
    fixed="data, widths, steps, seeds",
    supported_if="A_∞ falls with the weight of its penalty, and RA (ℓ∞) at the largest weight is more than 0.01 higher",
    refuted_if="one of these fails",
    rule=Rule(
        conditions=(
            Condition("A_∞ falls", Trend("alignment_inf", INF_ARM), "<", -0.5),
            Condition("RA rises, ℓ∞", Change("ra_inf", At(INF_ARM, "last"), At(INF_ARM, "first")), ">", 0.01),
        ),
        controls=(
            Condition("A_2 falls with its penalty", Trend("alignment_2", TWO_ARM), "<", -0.5),
            Condition("RA rises with the penalty on A_2, ℓ2", Change("ra_2", At(TWO_ARM, "last"), At(TWO_ARM, "first")), ">", 0.01),
            Condition("RA/SA rises, ℓ∞", Change("ra_sa_inf", At(INF_ARM, "last"), At(INF_ARM, "first")), ">", 0.01),
            Condition("above underfitted nets of equal SA, ℓ∞", MatchedChange("ra_inf", "sa", At(INF_ARM, "last"), SHORT), ">", 0.0),
        ),
    ),
    points=points,
    measures=("sa", "ra_inf", "ra_2", "alignment_inf", "alignment_2", "inf_product", "gap_inf", "gap_2"),
    log_level=True,
    note="cpu scale: digits, 64-64-64-10: one pair of adjacent encoder layers. A_p is relative to the product of norms, which the "
    "penalty is free to raise (column inf_product).",
)  # fmt: skip
