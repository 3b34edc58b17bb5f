"""e02: the mechanism: attacks on compressible networks point along the top singular directions."""

from __future__ import annotations

from typing import Final

from experiments.rules import At, Change, Condition, Correlation, Rule, Trend
from experiments.studies.e01_nuclear_norm import FIXED, LAMBDAS, fixed_norms
from experiments.study import Point, Study


def points(scale: str) -> tuple[Point, ...]:
    """The models of e01 with fixed Frobenius norms."""
    return tuple(Point(FIXED, v, fixed_norms(scale, v)) for v in LAMBDAS)


STUDY: Final = Study(
    id="e02",
    title="Attacks align with top singular directions",
    claim="As compressibility grows, adversarial perturbations align with the top singular directions and move the "
    "representation more.",
    source="Barsbey et al., ICLR 2026, section 4 (mechanism) and figure of PCA projections",
    level="λ",
    varies="λ of the nuclear norm, Frobenius norms fixed (the models of e01)",
    fixed="as in e01; the attack is APGD-CE in ℓ2 at the headline radius",
    supported_if="the share of an attack's energy in the five top right singular vectors of the first layer, and "
    "‖z_adv − z‖/‖z‖, both rise with λ",
    refuted_if="one of them does not",
    rule=Rule(
        conditions=(
            Condition("energy in the top directions rises with λ", Trend("attack_energy", FIXED), ">", 0.5),
            Condition("energy, from first to last λ", Change("attack_energy", At(FIXED, "last"), At(FIXED, "first")), ">", 0.05),
            Condition("‖z_adv − z‖/‖z‖ rises with λ", Trend("relative_shift", FIXED), ">", 0.5),
            Condition("‖z_adv − z‖/‖z‖, from first to last λ", Change("relative_shift", At(FIXED, "last"), At(FIXED, "first")), ">", 0.02),
        ),
        controls=(
            Condition("energy follows compressibility", Trend("attack_energy", FIXED, "compressibility_spectral"), ">", 0.5),
            Condition(
                "larger shift goes with lower RA, given SA",
                Correlation("relative_shift", "ra_2", (FIXED,), given=("sa",)), "<", 0.0,
            ),
        ),
    ),
    points=points,
    measures=("sa", "ra_2", "ra_inf", "compressibility_spectral", "attack_energy", "relative_shift"),
    norm="2",
    log_level=True,
    pictures=("pca", "energy"),
    note="cpu scale: the models of e01.",
)  # fmt: skip
