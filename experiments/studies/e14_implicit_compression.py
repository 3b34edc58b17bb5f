"""e14: compressibility that learning dynamics make lowers robustness too."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from experiments.rules import At, Change, Condition, Rule, Trend
from experiments.studies.common import PAPER_CIFAR, digits_or
from experiments.study import Point, Study

DECAYS: Final = (0.0, 0.001, 0.003, 0.01)
SLOW, FAST = "smaller step size", "larger step size"
RATES: Final = {SLOW: 0.01, FAST: 0.04}


def points(scale: str) -> tuple[Point, ...]:
    """Weight decay times step size on full-rank products W = A B."""
    base = digits_or(scale, PAPER_CIFAR)
    full = replace(base, rank=64 if scale == "cpu" else 2000)
    return tuple(
        Point(arm, d, full.trained(weight_decay=d, lr=lr)) for arm, lr in RATES.items() for d in DECAYS
    )


STUDY: Final = Study(
    id="e14",
    title="Implicit compression",
    claim="Learning dynamics (weight decay, step size) compress factorised networks and lower their robustness.",
    source="Barsbey et al., ICLR 2026, section 4 (source-invariance)",
    level="weight decay",
    varies="weight decay and step size of full-rank factors W = A B",
    fixed="data, widths, steps, seeds",
    supported_if="with the larger step size, effective rank falls with weight decay (by more than 2 from first to last) and RA "
    "(ℓ∞) is more than 0.02 lower at the largest decay",
    refuted_if="one of these fails",
    rule=Rule(
        conditions=(
            Condition("effective rank falls", Trend("effective_rank", FAST), "<", -0.5),
            Condition("… from first to last", Change("effective_rank", At(FAST, "last"), At(FAST, "first")), "<", -2.0),
            Condition("RA falls, ℓ∞", Change("ra_inf", At(FAST, "last"), At(FAST, "first")), "<", -0.02),
        ),
        controls=(
            Condition("RA falls, ℓ2", Change("ra_2", At(FAST, "last"), At(FAST, "first")), "<", -0.02),
            Condition("smaller step size: RA falls, ℓ∞", Change("ra_inf", At(SLOW, "last"), At(SLOW, "first")), "<", -0.02),
            Condition("larger steps compress more", Change("effective_rank", At(FAST, "last"), At(SLOW, "last")), "<", 0.0),
            Condition("RA follows effective rank", Trend("ra_inf", FAST, "effective_rank"), ">", 0.5),
        ),
    ),
    points=points,
    measures=("sa", "ra_inf", "ra_2", "effective_rank", "stable_rank", "compressibility_spectral", "frobenius_product", "gap_inf"),
    log_level=True,
    note="cpu scale: digits, 64-64-64-10 with layers W = A B of full rank. Weight decay lowers the norms along "
    "with the rank, and there is no arm with fixed norms: the two are not told apart.",
)
