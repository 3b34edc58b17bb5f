"""e11: pruning every layer to one ε beats pruning every layer by one ratio."""

from __future__ import annotations

from typing import Final

from experiments.rules import At, Change, Condition, Rule
from experiments.studies.common import PAPER_CIFAR, changed, digits_or
from experiments.study import Point, Study

EPSILONS: Final = (0.1, 0.2, 0.3, 0.4)
ROWS, ROWS_UNIFORM = "ε-pruning of rows", "uniform pruning of rows, equal size"
SPECTRAL, SPECTRAL_UNIFORM = "ε-pruning of ranks", "uniform pruning of ranks, equal sum of ranks"


def points(scale: str) -> tuple[Point, ...]:
    """ε for rows and for ranks, each with the uniform ratio of equal size."""
    base = digits_or(scale, PAPER_CIFAR)
    return (
        *changed(base, "epsilon-rows", EPSILONS, ROWS),
        *changed(base, "matched-rows", EPSILONS, ROWS_UNIFORM),
        *changed(base, "epsilon-spectral", EPSILONS, SPECTRAL),
        *changed(base, "matched-ranks", EPSILONS, SPECTRAL_UNIFORM),
    )


STUDY: Final = Study(
    id="e11",
    title="ε-pruning against uniform pruning",
    claim="At equal size, pruning all layers to the same ε keeps more standard and robust accuracy than one ratio for all.",
    source="Barsbey et al., ICLR 2026, section 5 (interventions)",
    level="ε",
    varies="ε, and how the size is spread over the layers",
    fixed="the trained network, the number of parameters (rows) or the sum of ranks kept, no training afterwards",
    supported_if="averaged over ε, SA and RA (ℓ∞) of row pruning and of rank pruning are higher than uniform ones of equal size",
    refuted_if="one of them is not higher",
    rule=Rule(
        conditions=(
            Condition("rows: SA", Change("sa", At(ROWS), At(ROWS_UNIFORM)), ">", 0.0),
            Condition("rows: RA, ℓ∞", Change("ra_inf", At(ROWS), At(ROWS_UNIFORM)), ">", 0.0),
            Condition("ranks: SA", Change("sa", At(SPECTRAL), At(SPECTRAL_UNIFORM)), ">", 0.0),
            Condition("ranks: RA, ℓ∞", Change("ra_inf", At(SPECTRAL), At(SPECTRAL_UNIFORM)), ">", 0.0),
        ),
        controls=(
            Condition("equal size: no more rows", Change("nonzero_rows", At(ROWS), At(ROWS_UNIFORM)), "<", 2.0),
            Condition("equal size: no fewer rows", Change("nonzero_rows", At(ROWS), At(ROWS_UNIFORM)), ">", -2.0),
            Condition("equal size: no more ranks", Change("ranks", At(SPECTRAL), At(SPECTRAL_UNIFORM)), "<", 2.0),
            Condition("equal size: no fewer ranks", Change("ranks", At(SPECTRAL), At(SPECTRAL_UNIFORM)), ">", -2.0),
            Condition("rows: RA, ℓ2", Change("ra_2", At(ROWS), At(ROWS_UNIFORM)), ">", 0.0),
            Condition("ranks: RA, ℓ2", Change("ra_2", At(SPECTRAL), At(SPECTRAL_UNIFORM)), ">", 0.0),
        ),
    ),
    points=points,
    measures=("sa", "ra_inf", "ra_2", "nonzero_rows", "ranks", "nonzero", "gap_inf"),
    note="cpu scale: digits, 64-64-64-10: two hidden layers of equal width, where the two ways can differ little. "
    "Run a second time: at first ranks were matched by parameters, of which a layer of high rank has no fewer, so that "
    "half of the uniform networks were not pruned at all, and the control of sizes looked at one side only.",
)
