"""e03: group lasso lowers robust accuracy."""

from __future__ import annotations

from typing import Final

from experiments.rules import At, Change, Condition, MatchedChange, Rule, Trend
from experiments.studies.common import PAPER_CIFAR, SHORT, digits_or, short_training, tuned, with_penalty
from experiments.study import Point, Study

LAMBDAS: Final = (0.0, 0.003, 0.01, 0.02, 0.03)
FIXED_LAMBDAS: Final = (0.0, 0.01, 0.03, 0.06)
FREE: Final = "group lasso"
FIXED: Final = "group lasso, ‖W‖_F fixed"
SCALE_FREE: Final = "scale-invariant row sparsity"
ROW_LAMBDAS: Final = (0.0, 0.1, 0.3, 1.0)


def points(scale: str) -> tuple[Point, ...]:
    """λ of the group lasso, with and without fixed Frobenius norms; the scale-invariant penalty beside it."""
    base = digits_or(scale, PAPER_CIFAR)
    arms = [Point(FREE, v, with_penalty(base, "group-lasso", v)) for v in LAMBDAS]
    arms += [Point(FIXED, v, with_penalty(base, "group-lasso", v, frobenius=True)) for v in FIXED_LAMBDAS]
    arms += [Point(SCALE_FREE, v, with_penalty(base, "row-sparsity", v)) for v in ROW_LAMBDAS]
    return (*arms, *short_training(base), *tuned(base))


STUDY: Final = Study(
    id="e03",
    title="Group lasso, FCN",
    claim="Group lasso makes fully connected networks row-sparse and lowers RA and RA/SA.",
    source="Barsbey et al., ICLR 2026, section 4 (FCN, CIFAR-10)",
    level="λ",
    varies="λ of the group lasso",
    fixed="data, architecture, steps, learning rate, seeds",
    supported_if="row compressibility rises with λ, and RA and RA/SA at the largest λ are more than 0.02 below λ = 0 (ℓ∞)",
    refuted_if="one of these fails",
    rule=Rule(
        conditions=(
            Condition("row compressibility rises", Trend("compressibility_rows", FREE), ">", 0.5),
            Condition("RA falls, ℓ∞", Change("ra_inf", At(FREE, "last"), At(FREE, "first")), "<", -0.02),
            Condition("RA/SA falls, ℓ∞", Change("ra_sa_inf", At(FREE, "last"), At(FREE, "first")), "<", -0.02),
        ),
        controls=(
            Condition("RA falls with ‖W‖_F fixed, ℓ∞", Change("ra_inf", At(FIXED, "last"), At(FIXED, "first")), "<", -0.02),
            Condition(
                "RA falls with scale-invariant row sparsity, ℓ∞",
                Change("ra_inf", At(SCALE_FREE, "last"), At(SCALE_FREE, "first")), "<", -0.02,
            ),
            Condition("RA falls, ℓ2", Change("ra_2", At(FREE, "last"), At(FREE, "first")), "<", -0.02),
            Condition("RA falls at equal accuracy, ℓ∞", MatchedChange("ra_inf", "sa", At(FREE, "last"), SHORT), "<", -0.02),
        ),
    ),
    points=points,
    measures=("sa", "ra_inf", "ra_2", "ra_sa_inf", "compressibility_rows", "nonzero_rows", "gap_inf"),
    log_level=True,
    note="cpu scale: digits (8×8), 64-64-64-10; the paper uses CIFAR-10.",
)  # fmt: skip
