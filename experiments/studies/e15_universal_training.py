"""e15: training against universal perturbations lowers the dispersion of the largest terms."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from experiments.config import INF, UniversalTraining
from experiments.rules import At, Change, Condition, Rule
from experiments.studies.common import PAPER_CIFAR, digits_or
from experiments.study import Point, Study

RADII: Final = {"cpu": (0.0, 0.1, 0.2), "paper": (0.0, 8 / 255, 16 / 255)}
DENSE, LOW_RANK = "dense", "rank 8"


def points(scale: str) -> tuple[Point, ...]:
    """Radii of the universal perturbation in training (0: off), dense and at low rank."""
    base = digits_or(scale, PAPER_CIFAR).measured(universal=True)
    arms = []
    for arm, rank in ((DENSE, None), (LOW_RANK, 8)):
        for delta in RADII[scale]:
            universal = UniversalTraining(delta=delta, norm=INF) if delta > 0 else None
            arms.append(Point(arm, delta, replace(base, rank=rank).trained(universal=universal)))
    return tuple(arms)


STUDY: Final = Study(
    id="e15",
    title="Training against universal perturbations",
    claim="Training against universal perturbations lowers the dispersion β of the dominant terms.",
    source="Barsbey et al., ICLR 2026, section 4 (UAE training)",
    level="radius in training",
    varies="radius of the universal perturbation in training",
    fixed="data, widths, steps, seeds",
    supported_if="β of the top singular values and of the top rows are both more than 0.02 lower at the largest radius (dense)",
    refuted_if="one of them is not",
    rule=Rule(
        conditions=(
            Condition("spectral β falls", Change("beta_spectral", At(DENSE, "last"), At(DENSE, "first")), "<", -0.02),
            Condition("row β falls", Change("beta_rows", At(DENSE, "last"), At(DENSE, "first")), "<", -0.02),
        ),
        controls=(
            Condition("UAE success falls: the training works", Change("universal_inf", At(DENSE, "last"), At(DENSE, "first")), "<", -0.02),
            Condition("rank 8: spectral β falls", Change("beta_spectral", At(LOW_RANK, "last"), At(LOW_RANK, "first")), "<", -0.02),
            Condition("rank 8: UAE success falls", Change("universal_inf", At(LOW_RANK, "last"), At(LOW_RANK, "first")), "<", -0.02),
            Condition("RA rises, ℓ∞", Change("ra_inf", At(DENSE, "last"), At(DENSE, "first")), ">", 0.0),
        ),
    ),
    points=points,
    measures=("sa", "ra_inf", "universal_inf", "universal_2", "beta_spectral", "beta_rows", "gap_inf"),
    note="cpu scale: digits, 64-64-64-10; β of the top 5 % (at least two) terms, mean over layers.",
)  # fmt: skip
