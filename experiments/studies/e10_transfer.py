"""e10: compressible pre-training hurts the robustness of downstream tasks."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from experiments.config import Config, Transfer
from experiments.rules import At, Change, Condition, Rule, Trend
from experiments.studies.common import PAPER_CIFAR, digits_or, with_penalty
from experiments.study import Point, Study

LAMBDAS: Final = (0.0, 0.01, 0.03, 0.1)
RANKS: Final = {"cpu": (4, 8, 16, 64), "paper": (10, 50, 200, 2000)}
NUCLEAR: Final = "nuclear norm in pre-training"
LOW_RANK: Final = "low rank in pre-training"


def _base(scale: str) -> Config:
    if scale == "cpu":
        return replace(digits_or(scale, PAPER_CIFAR), classes=(5, 6, 7, 8, 9), transfer=Transfer(source=(0, 1, 2, 3, 4)))
    return replace(PAPER_CIFAR, transfer=Transfer(source=tuple(range(100)), data="cifar100"))


def points(scale: str) -> tuple[Point, ...]:
    """λ (Frobenius norms fixed) and ranks in pre-training; encoder frozen, a linear head on the other classes."""
    base = _base(scale)
    arms = [Point(NUCLEAR, v, with_penalty(base, "nuclear", v, frobenius=True)) for v in LAMBDAS]
    arms += [Point(LOW_RANK, float(r), replace(base, rank=r)) for r in RANKS[scale]]
    return tuple(arms)


STUDY: Final = Study(
    id="e10",
    title="Transfer from compressible pre-training",
    claim="Compressibility of a pre-trained encoder lowers robust accuracy downstream.",
    source="Barsbey et al., ICLR 2026, section 4 (CIFAR-100 → CIFAR-10)",
    level="λ or rank",
    varies="λ of the nuclear norm in pre-training (‖W‖_F fixed)",
    fixed="downstream data, frozen encoder, training of the head, seeds",
    supported_if="compressibility rises with λ, and downstream RA (ℓ∞) is more than 0.02 lower at the largest λ",
    refuted_if="one of these fails",
    rule=Rule(
        conditions=(
            Condition("compressibility rises", Trend("compressibility_spectral", NUCLEAR), ">", 0.5),
            Condition("downstream RA falls, ℓ∞", Change("ra_inf", At(NUCLEAR, "last"), At(NUCLEAR, "first")), "<", -0.02),
        ),
        controls=(
            Condition("downstream RA/SA falls, ℓ∞", Change("ra_sa_inf", At(NUCLEAR, "last"), At(NUCLEAR, "first")), "<", -0.02),
            Condition("downstream RA falls, ℓ2", Change("ra_2", At(NUCLEAR, "last"), At(NUCLEAR, "first")), "<", -0.02),
            Condition("low-rank pre-training lowers RA, ℓ∞", Change("ra_inf", At(LOW_RANK, "first"), At(LOW_RANK, "last")), "<", -0.02),
            Condition("low-rank pre-training lowers RA/SA, ℓ∞", Change("ra_sa_inf", At(LOW_RANK, "first"), At(LOW_RANK, "last")), "<", -0.02),
        ),
    ),
    points=points,
    measures=("sa", "ra_inf", "ra_2", "ra_sa_inf", "compressibility_spectral", "gap_inf", "gap_2"),
    log_level=True,
    note="cpu scale: digits 0–4 → 5–9, 64-64-64; the paper transfers CIFAR-100 → CIFAR-10.",
)  # fmt: skip
