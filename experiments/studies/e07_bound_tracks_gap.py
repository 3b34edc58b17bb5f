"""e07: the analytic bound is correlated with the empirical gap (paper: ρ = 0.947)."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from experiments.rules import Condition, Correlation, CorrelationDifference, Rule
from experiments.studies.common import MNIST, NARROW, PAPER_MNIST, narrow, with_penalty
from experiments.study import Point, Study

RANKS: Final = {"cpu": (2, 3, 5, 10, 20, 50, 100, 200), "paper": (5, 10, 20, 50, 100, 200, 500, 1000)}
RANK: Final = "low rank"
DECAY: Final = "weight decay"
ROWS: Final = "scale-invariant row sparsity"
NUCLEAR: Final = "nuclear norm"
ALL: Final = (RANK, DECAY, ROWS, NUCLEAR, NARROW)
BOUND: Final = "bound_2/printed"
GAP: Final = "attack_2"
"""Bound and gap are of the same samples, at the same radius."""


def points(scale: str) -> tuple[Point, ...]:
    """Ranks as in the paper; other ways to make networks differ, to see whether the correlation is of ranks only."""
    cpu = scale == "cpu"
    base = replace(MNIST if cpu else PAPER_MNIST, classes=(3, 8), hidden=(200, 200) if cpu else (1000, 1000))
    arms = [Point(RANK, float(r), replace(base, rank=r)) for r in RANKS[scale]]
    arms += [Point(DECAY, v, base.trained(weight_decay=v)) for v in (0.0, 0.003, 0.01, 0.03)]
    arms += [Point(ROWS, v, with_penalty(base, "row-sparsity", v)) for v in (0.01, 0.03, 0.1)]
    arms += [Point(NUCLEAR, v, with_penalty(base, "nuclear", v)) for v in (0.003, 0.01, 0.03)]
    arms += narrow(base, 784, 2, RANKS[scale][1:6:2])
    return tuple(arms)


STUDY: Final = Study(
    id="e07",
    title="The bound tracks the gap",
    claim="The analytic robustness bound is strongly correlated with the empirical robustness gap (ρ = 0.947).",
    source="Barsbey et al., ICLR 2026, section 4 (two-hidden-layer FCN, binary, spectral rank)",
    level="rank",
    varies="rank (the paper's sweep); beside it weight decay, two penalties and width",
    fixed="data (two classes), depth, steps, seeds",
    supported_if="Spearman's ρ of the printed ℓ2 bound with the ℓ2 gap over all rank models is at least 0.9, interval included",
    refuted_if="the whole interval is below 0.9",
    rule=Rule(
        conditions=(Condition("printed bound and gap over ranks", Correlation(BOUND, GAP, (RANK,)), ">", 0.9),),
        controls=(
            Condition("… within each seed", Correlation(BOUND, GAP, (RANK,), pooled=False), ">", 0.9),
            Condition("… Pearson's", Correlation(BOUND, GAP, (RANK,), kind="pearson"), ">", 0.9),
            Condition("… given SA", Correlation(BOUND, GAP, (RANK,), given=("sa",)), ">", 0.5),
            Condition("… pooled over all families", Correlation(BOUND, GAP, ALL), ">", 0.9),
            Condition("… all families, given SA", Correlation(BOUND, GAP, ALL, given=("sa",)), ">", 0.5),
            Condition("better than the input gradient", CorrelationDifference(BOUND, "gradient_2", GAP, ALL), ">", 0.0),
            Condition("better than the Frobenius product", CorrelationDifference(BOUND, "frobenius_product", GAP, ALL), ">", 0.0),
            Condition("better than the product of norms", CorrelationDifference(BOUND, "bound_2/product", GAP, ALL), ">", 0.0),
            Condition("the SDP tracks better than the printed bound", CorrelationDifference("bound_2/sdp", BOUND, GAP, ALL), ">", 0.0),
            Condition("within the scale-invariant sweep", Correlation(BOUND, GAP, (ROWS,)), ">", 0.0),
        ),
    ),
    points=points,
    measures=("sa", "ra_2", "gap_2", "attack_2", "bound_2/printed", "bound_2/sharp", "bound_2/sdp", "gradient_2"),
    norm="2",
    log_level=True,
    note="cpu scale: MNIST-5k, digits 3 against 8, 784-200-200-2. The printed bound is reported at its best k (kth: k = 1).",
)
