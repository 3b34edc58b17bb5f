"""e12: holding the dispersion of the largest rows down keeps robustness at equal compressibility."""

from __future__ import annotations

from typing import Final

from experiments.rules import At, Change, Condition, Rule, Trend
from experiments.studies.common import PAPER_CIFAR, digits_or
from experiments.study import Point, Study

WEIGHTS: Final = (0.0, 0.001, 0.01, 0.1)
SPARSITY: Final = 0.01
CONTROLLED: Final = "group lasso and β-control"
ALONE: Final = "β-control alone"


def points(scale: str) -> tuple[Point, ...]:
    """Weights of the β penalty beside a group lasso, and alone."""
    base = digits_or(scale, PAPER_CIFAR)
    arms = []
    for w in WEIGHTS:
        control = (("dispersion", w),) if w > 0 else ()
        arms.append(Point(CONTROLLED, w, base.trained(penalties=(("group-lasso", SPARSITY), *control))))
        arms.append(Point(ALONE, w, base.trained(penalties=control)))
    return tuple(arms)


STUDY: Final = Study(
    id="e12",
    title="β-control",
    claim="Penalising the variance of the largest row norms raises RA without lowering compressibility.",
    source="Barsbey et al., ICLR 2026, section 5 (interventions)",
    level="weight",
    varies="weight of the penalty on the variance of the top 5 % row norms",
    fixed="group lasso with λ = 0.01, data, steps, seeds",
    supported_if="β falls with the weight, RA (ℓ∞) at the largest weight is more than 0.01 higher, and the tail ε of the rows "
    "moves by less than 0.05",
    refuted_if="one of these fails",
    rule=Rule(
        conditions=(
            Condition("β falls", Trend("beta_rows", CONTROLLED), "<", -0.5),
            Condition("RA rises, ℓ∞", Change("ra_inf", At(CONTROLLED, "last"), At(CONTROLLED, "first")), ">", 0.01),
            Condition("ε does not rise", Change("epsilon_rows", At(CONTROLLED, "last"), At(CONTROLLED, "first")), "<", 0.05),
            Condition("ε does not fall", Change("epsilon_rows", At(CONTROLLED, "last"), At(CONTROLLED, "first")), ">", -0.05),
        ),
        controls=(
            Condition("RA rises, ℓ2", Change("ra_2", At(CONTROLLED, "last"), At(CONTROLLED, "first")), ">", 0.01),
            Condition("RA/SA rises, ℓ∞", Change("ra_sa_inf", At(CONTROLLED, "last"), At(CONTROLLED, "first")), ">", 0.01),
            Condition("without the lasso RA rises too, ℓ∞", Change("ra_inf", At(ALONE, "last"), At(ALONE, "first")), ">", 0.01),
            Condition("SA stays", Change("sa", At(CONTROLLED, "last"), At(CONTROLLED, "first")), ">", -0.02),
        ),
    ),
    points=points,
    measures=("sa", "ra_inf", "ra_2", "beta_rows", "epsilon_rows", "compressibility_rows", "gap_inf"),
    log_level=True,
    note="cpu scale: digits, 64-64-64-10; the top 5 % are 4 of 64 rows.",
)
