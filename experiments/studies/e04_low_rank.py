"""e04: low-rank layers lower robust accuracy."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from experiments.rules import At, Change, Condition, MatchedChange, Rule, Trend
from experiments.studies.common import NARROW, PAPER_CIFAR, SHORT, changed, digits_or, narrow, short_training
from experiments.study import Point, Study

RANKS: Final = {"cpu": (4, 8, 16, 32, 64), "paper": (10, 20, 50, 100, 500, 2000)}
LOW_RANK: Final = "low rank"
RANDOM: Final = "random projection of that rank"
SPARSE: Final = "dense, unstructured pruning"


def points(scale: str) -> tuple[Point, ...]:
    """Ranks; controls: narrow nets of equal size, random projections, unstructured sparsity, fewer epochs."""
    base = digits_or(scale, PAPER_CIFAR).measured(checks=True)
    plain = digits_or(scale, PAPER_CIFAR)
    ranks = RANKS[scale]
    inputs = 64 if scale == "cpu" else 3072
    arms = [Point(LOW_RANK, float(r), replace(base, rank=r)) for r in ranks]
    arms += [Point(RANDOM, float(r), replace(plain, rank=r, random_factor=True)) for r in ranks]
    arms += narrow(plain, inputs, 10, ranks[:-1])
    arms += changed(plain, "unstructured", (0.5, 0.75), SPARSE)
    return (*arms, *short_training(plain))


STUDY: Final = Study(
    id="e04",
    title="Low rank, FCN",
    claim="The lower the rank of the layers, the lower the robust accuracy.",
    source="Barsbey et al., ICLR 2026, section 4 (low-rank factorisation)",
    level="rank",
    varies="rank of every layer but the head (W = A B, trained)",
    fixed="widths, data, steps, learning rate, seeds",
    supported_if="RA rises with the rank within each seed, and RA at the lowest rank is more than 0.02 below full rank, "
    "in both norms",
    refuted_if="one of these fails",
    rule=Rule(
        conditions=(
            Condition("RA rises with rank, ℓ∞", Trend("ra_inf", LOW_RANK), ">", 0.8),
            Condition("RA rises with rank, ℓ2", Trend("ra_2", LOW_RANK), ">", 0.8),
            Condition("lowest against full rank, ℓ∞", Change("ra_inf", At(LOW_RANK, "first"), At(LOW_RANK, "last")), "<", -0.02),
            Condition("lowest against full rank, ℓ2", Change("ra_2", At(LOW_RANK, "first"), At(LOW_RANK, "last")), "<", -0.02),
        ),
        controls=(
            Condition("RA/SA falls too, ℓ∞", Change("ra_sa_inf", At(LOW_RANK, "first"), At(LOW_RANK, "last")), "<", -0.02),
            Condition("below underfitted dense nets of equal SA, ℓ∞", MatchedChange("ra_inf", "sa", At(LOW_RANK, "first"), SHORT), "<", -0.02),
            Condition("below underfitted dense nets of equal test loss, ℓ∞", MatchedChange("ra_inf", "loss", At(LOW_RANK, "first"), SHORT), "<", -0.02),
            Condition("below dense nets of equal product of spectral norms, ℓ2", MatchedChange("ra_2", "spectral_product", At(LOW_RANK, "first"), SHORT), "<", -0.02),
            Condition("below narrow nets of equal size, ℓ∞", Change("ra_inf", At(LOW_RANK, 8.0), At(NARROW, 8.0)), "<", -0.02),
            Condition("below random projections of equal rank, ℓ∞", Change("ra_inf", At(LOW_RANK, 8.0), At(RANDOM, 8.0)), "<", -0.02),
            Condition("unstructured pruning lowers RA as well, ℓ∞", Change("ra_inf", At(SPARSE, "last"), At(SHORT, "last")), "<", -0.02),
        ),
    ),
    points=points,
    measures=("sa", "ra_inf", "ra_2", "ra_sa_inf", "compressibility_spectral", "structure_2", "gap_inf", "gap_2"),
    log_level=True,
    note="cpu scale: digits (8×8), 64-64-64-10; the paper uses CIFAR-10. At paper scale the controls at rank 8 are open: "
    "the ranks there are others.",
)  # fmt: skip
