"""e05: scale-invariant row sparsity lowers the robust accuracy of a ResNet."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from experiments.config import Config, Training
from experiments.rules import At, Change, Condition, MatchedChange, Rule, Trend
from experiments.studies.common import (
    CONVOLUTIONAL,
    PAPER_NETWORKS,
    SHORT,
    architecture,
    changed,
    short_training,
    tuned,
    with_penalty,
)
from experiments.study import Point, Study

LAMBDAS: Final = {"cpu": (0.0, 0.03, 0.1, 0.3, 1.0), "paper": (0.0, 0.001, 0.003, 0.01, 0.03)}
FIXED_LAMBDAS: Final = {"cpu": (0.0, 0.1, 0.3), "paper": (0.0, 0.003, 0.01)}
SPARSE: Final = "row sparsity"
FIXED: Final = "row sparsity, ‖W‖_F fixed"
UNSTRUCTURED: Final = "dense, unstructured pruning"


def _base(scale: str) -> Config:
    if scale == "cpu":
        return architecture("resnet", "digits", Training(epochs=12), CONVOLUTIONAL, width=8, depth=1)
    training = Training(epochs=100, lr=0.1, batch_size=128, weight_decay=5e-4)
    return architecture("resnet18", "cifar10", training, PAPER_NETWORKS)


def points(scale: str) -> tuple[Point, ...]:
    """λ; without bounds: with fixed Frobenius norms, fewer epochs, weight decay, unstructured pruning."""
    base = _base(scale)
    lambdas = LAMBDAS[scale]
    checked = {lambdas[0], lambdas[-1]}
    arms = [
        Point(SPARSE, v, with_penalty(base.measured(checks=v in checked), "row-sparsity", v)) for v in lambdas
    ]
    plain = base.measured(methods=())
    arms += [Point(FIXED, v, with_penalty(plain, "row-sparsity", v, frobenius=True)) for v in FIXED_LAMBDAS[scale]]
    *short, whole = short_training(plain, (1, 2, 4))
    arms += [*short, replace(whole, config=arms[0].config)]  # λ = 0, once
    arms += [*tuned(plain, (1e-3, 5e-3)), *changed(plain, "unstructured", (0.3, 0.5), UNSTRUCTURED)]
    return tuple(arms)


STUDY: Final = Study(
    id="e05",
    title="Scale-invariant row sparsity, ResNet",
    claim="A scale-invariant penalty makes the filters of a ResNet row-sparse and lowers RA and RA/SA.",
    source="Barsbey et al., ICLR 2026, section 4 (ResNet18, CIFAR-10)",
    level="λ",
    varies="λ of Σ ‖w_i‖_2 / ‖W‖_F over the filters w_i of every layer but the first and the head",
    fixed="data, architecture, steps, learning rate, seeds",
    supported_if="row compressibility of the filters rises with λ, and RA and RA/SA at the largest λ are more than 0.02 below λ = 0 (ℓ∞)",
    refuted_if="one of these fails",
    rule=Rule(
        conditions=(
            Condition("row compressibility rises", Trend("compressibility_rows", SPARSE), ">", 0.5),
            Condition("RA falls, ℓ∞", Change("ra_inf", At(SPARSE, "last"), At(SPARSE, "first")), "<", -0.02),
            Condition("RA/SA falls, ℓ∞", Change("ra_sa_inf", At(SPARSE, "last"), At(SPARSE, "first")), "<", -0.02),
        ),
        controls=(
            Condition("RA falls, ℓ2", Change("ra_2", At(SPARSE, "last"), At(SPARSE, "first")), "<", -0.02),
            Condition("RA falls with ‖W‖_F fixed, ℓ∞", Change("ra_inf", At(FIXED, "last"), At(FIXED, "first")), "<", -0.02),
            Condition("RA falls at equal accuracy, ℓ∞", MatchedChange("ra_inf", "sa", At(SPARSE, "last"), SHORT), "<", -0.02),
            Condition("RA falls at equal test loss, ℓ∞", MatchedChange("ra_inf", "loss", At(SPARSE, "last"), SHORT), "<", -0.02),
            Condition("λ = 0.1 against λ = 0, where SA hardly moves, ℓ∞", Change("ra_inf", At(SPARSE, 0.1), At(SPARSE, "first")), "<", -0.02),
            Condition(
                "rows stay compressible with BatchNorm multiplied in",
                Change("folded_compressibility_rows", At(SPARSE, "last"), At(SPARSE, "first")), ">", 0.2,
            ),
            Condition("unstructured pruning lowers RA as well, ℓ∞", Change("ra_inf", At(UNSTRUCTURED, "last"), At(SHORT, "last")), "<", -0.02),
        ),
    ),
    points=points,
    measures=("sa", "ra_inf", "ra_2", "ra_sa_inf", "compressibility_rows", "folded_compressibility_rows", "gap_inf", "gap_2"),
    log_level=True,
    note="cpu scale: digits (8×8), a ResNet of 7 convolutions with 8 to 32 channels; the paper uses ResNet18 on CIFAR-10. "
    "Compressibility is that of the filters as rows, the penalty's and the paper's reading; BatchNorm divides a filter by the size "
    "of its output, so what the network computes may be far less compressible (folded_compressibility_rows).",
)  # fmt: skip
