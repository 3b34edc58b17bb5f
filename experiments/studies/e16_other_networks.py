"""e16: row sparsity lowers robust accuracy in other networks and on other data too."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from experiments.config import Config, Training
from experiments.rules import At, Change, Condition, MatchedChange, Rule, Trend
from experiments.studies.common import CONVOLUTIONAL, PAPER_NETWORKS, TRANSFORMERS, architecture, with_penalty
from experiments.study import Point, Study

VGG, WIDE, SWIN, DATA = "VGG", "wide ResNet", "Swin", "other data"
ARMS: Final = (VGG, WIDE, SWIN, DATA)
LAMBDAS: Final = {
    VGG: (0.0, 0.3, 1.0, 2.0), WIDE: (0.0, 0.03, 0.1, 0.3), SWIN: (0.0, 0.03, 0.1, 0.3), DATA: (0.0, 0.3, 1.0, 3.0),
}  # fmt: skip
PAPER_LAMBDAS: Final = (0.0, 0.001, 0.003, 0.01)
EPOCHS: Final = (1, 3)


def _bases(scale: str) -> dict[str, Config]:
    if scale == "cpu":
        mnist = replace(
            CONVOLUTIONAL, deltas_2=(0.5, 1.0, 3.0), deltas_inf=(0.03, 0.07, 0.3), headline_2=1.0, headline_inf=0.07
        )
        return {
            VGG: architecture("vgg", "digits", Training(epochs=15, lr=0.02), CONVOLUTIONAL, width=8, depth=2),
            WIDE: architecture("wide-resnet", "digits", Training(epochs=10), CONVOLUTIONAL, width=4, depth=1),
            SWIN: architecture("windowed", "digits", Training(epochs=15), TRANSFORMERS, width=16, depth=1),
            DATA: architecture("cnn", "mnist5k", Training(epochs=5), mnist, width=6, depth=1),
        }
    training = Training(epochs=100, lr=0.1, batch_size=128, weight_decay=5e-4)
    return {
        VGG: architecture("vgg16", "svhn", replace(training, lr=0.01), PAPER_NETWORKS),
        WIDE: architecture("wrn-101-2", "cifar100", training, PAPER_NETWORKS),
        SWIN: architecture("swin-t", "cifar10", replace(training, lr=0.01), PAPER_NETWORKS),
        DATA: architecture("resnet18", "svhn", training, PAPER_NETWORKS),
    }


def fewer(arm: str) -> str:
    """Control arm of an arm: the same network trained for fewer epochs without the penalty."""
    return f"{arm}, fewer epochs"


def points(scale: str) -> tuple[Point, ...]:
    """λ in every arm; controls, without bounds: fewer epochs without the penalty."""
    arms = []
    for arm, base in _bases(scale).items():
        lambdas = LAMBDAS[arm] if scale == "cpu" else PAPER_LAMBDAS
        arms += [Point(arm, v, with_penalty(base, "row-sparsity", v)) for v in lambdas]
        plain = base.measured(methods=())
        arms += [Point(fewer(arm), float(e), plain.trained(epochs=e)) for e in EPOCHS]
        arms.append(Point(fewer(arm), float(base.training.epochs), base))  # λ = 0, once
    return tuple(arms)


def _conditions() -> tuple[Condition, ...]:
    found = []
    for arm in ARMS:
        found += [
            Condition(f"{arm}: row compressibility rises", Trend("compressibility_rows", arm), ">", 0.5),
            Condition(f"{arm}: RA falls, ℓ∞", Change("ra_inf", At(arm, "last"), At(arm, "first")), "<", -0.02),
        ]
    return tuple(found)


def _controls() -> tuple[Condition, ...]:
    found = []
    for arm in ARMS:
        found += [
            Condition(f"{arm}: RA falls, ℓ2", Change("ra_2", At(arm, "last"), At(arm, "first")), "<", -0.02),
            Condition(f"{arm}: RA/SA falls, ℓ∞", Change("ra_sa_inf", At(arm, "last"), At(arm, "first")), "<", -0.02),
            Condition(f"{arm}: RA falls at equal accuracy, ℓ∞", MatchedChange("ra_inf", "sa", At(arm, "last"), fewer(arm)), "<", -0.02),
        ]
    return tuple(found)


STUDY: Final = Study(
    id="e16",
    title="Row sparsity in other networks and data",
    claim="Row sparsity lowers RA in other networks and on other data as well.",
    source="Barsbey et al., ICLR 2026, section 4 and appendix (VGG16, WideResNet-101-2, Swin; SVHN, CIFAR-100)",
    level="λ",
    varies="λ of the scale-invariant row sparsity; the network and the data",
    fixed="within an arm: data, architecture, steps, learning rate, seeds",
    supported_if="in every arm row compressibility rises with λ and RA (ℓ∞) at the largest λ is more than 0.02 below λ = 0",
    refuted_if="in one of them it does not",
    rule=Rule(conditions=_conditions(), controls=_controls()),
    points=points,
    measures=("sa", "ra_inf", "ra_2", "ra_sa_inf", "compressibility_rows", "folded_compressibility_rows", "gap_inf", "gap_2"),
    log_level=True,
    note="cpu scale: small networks of these kinds on digits (VGG without BatchNorm, bottleneck blocks of twice the width with it, "
    "windowed attention), and a CNN on MNIST-5k as other data; the paper uses VGG16, WRN-101-2 and Swin, SVHN and CIFAR-100. The "
    "largest λ of an arm is one at which pilot runs still trained. Radii differ between arms, so that correlations over the models "
    "of all arms mix them; attention has no bounds.",
)  # fmt: skip
