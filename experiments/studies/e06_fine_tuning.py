"""e06: fine-tuning a backbone towards sparsity, nothing else, makes it vulnerable."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from experiments.config import Config, Training
from experiments.rules import At, Change, Condition, MatchedChange, Rule, Trend
from experiments.studies.common import PAPER_NETWORKS, TRANSFORMERS, architecture, changed, with_penalty
from experiments.study import Point, Study

LAMBDAS: Final = {"cpu": (0.0, 0.1, 0.3, 0.6, 1.0), "paper": (0.0, 0.001, 0.003, 0.01, 0.03)}
OTHER_LAMBDAS: Final = {"cpu": (0.0, 0.3, 1.0), "paper": (0.0, 0.003, 0.03)}
EPOCHS: Final = {"cpu": (15, 20, 28), "paper": (1, 2, 4)}
TUNED: Final = "sparsity fine-tuning"
HEAD: Final = "sparsity fine-tuning below a fixed head (paper scale: CLIP zero-shot)"
FIXED: Final = "sparsity fine-tuning, ‖W‖_F fixed"
YOUNGER: Final = "no penalty, backbone of fewer epochs"
"""Control arm: what fine-tuning without the penalty makes of worse backbones, to compare with at equal accuracy."""
UNSTRUCTURED: Final = "no penalty, unstructured pruning"


def _base(scale: str) -> Config:
    if scale == "cpu":
        tuning, backbone = Training(epochs=8, lr=0.02), Training(epochs=40)
        return replace(architecture("vit", "digits", tuning, TRANSFORMERS, width=32, depth=2), backbone=backbone)
    tuning = Training(epochs=10, lr=0.003, batch_size=128)
    return architecture("vit-b-16", "cifar10", tuning, PAPER_NETWORKS, pretrained=True, resize=224)


def _zero_shot(scale: str, base: Config) -> Config:
    if scale == "cpu":
        return replace(base, fixed_head=True)
    tuning = Training(epochs=2, lr=0.0003, batch_size=128)
    clip = architecture("clip-vit-b-32", "imagenet", tuning, PAPER_NETWORKS, pretrained=True)
    return replace(clip, fixed_head=True, n_train=10_000, n_test=5_000)


def _younger(scale: str, base: Config) -> tuple[Point, ...]:
    """Worse starts, then the same fine-tuning; the last one is the base."""
    if scale == "cpu":
        assert base.backbone is not None
        starts = [replace(base, backbone=replace(base.backbone, epochs=e)) for e in EPOCHS[scale]]
        return tuple(Point(YOUNGER, float(c.backbone.epochs), c) for c in (*starts, base) if c.backbone is not None)
    # published weights have no epochs to leave out: fine-tuning is cut short instead
    whole = base.training.epochs
    return tuple(Point(YOUNGER, float(e), base.trained(epochs=e)) for e in (*EPOCHS[scale], whole))


def points(scale: str) -> tuple[Point, ...]:
    """λ in fine-tuning from the same weights; controls: λ = 0 from worse weights, fixed norms, unstructured pruning."""
    base = _base(scale)
    arms = [Point(TUNED, v, with_penalty(base, "row-sparsity", v)) for v in LAMBDAS[scale]]
    zero = _zero_shot(scale, base)
    arms += [Point(HEAD, v, with_penalty(zero, "row-sparsity", v)) for v in OTHER_LAMBDAS[scale]]
    arms += [Point(FIXED, v, with_penalty(base, "row-sparsity", v, frobenius=True)) for v in OTHER_LAMBDAS[scale]]
    return (*arms, *changed(base, "unstructured", (0.3, 0.5), UNSTRUCTURED), *_younger(scale, base))


STUDY: Final = Study(
    id="e06",
    title="Sparsity fine-tuning, ViT",
    claim="Fine-tuning a backbone towards row sparsity, nothing else, lowers RA at equal SA.",
    source="Barsbey et al., ICLR 2026, section 4 (ViT, CIFAR-10; CLIP, ImageNet zero-shot)",
    level="λ",
    varies="λ of the scale-invariant row sparsity in fine-tuning",
    fixed="the weights it starts from, data, steps, learning rate, seeds",
    supported_if="row compressibility rises with λ; RA (ℓ∞) at the largest λ is more than 0.02 below λ = 0, with the head trained and with "
    "it fixed; and more than 0.02 below what networks of the same SA have that were fine-tuned without the penalty",
    refuted_if="one of these fails",
    rule=Rule(
        conditions=(
            Condition("row compressibility rises", Trend("compressibility_rows", TUNED), ">", 0.5),
            Condition("RA falls, ℓ∞", Change("ra_inf", At(TUNED, "last"), At(TUNED, "first")), "<", -0.02),
            Condition("RA falls at equal accuracy, ℓ∞", MatchedChange("ra_inf", "sa", At(TUNED, "last"), YOUNGER), "<", -0.02),
            Condition("fixed head: row compressibility rises", Trend("compressibility_rows", HEAD), ">", 0.5),
            Condition("fixed head: RA falls, ℓ∞", Change("ra_inf", At(HEAD, "last"), At(HEAD, "first")), "<", -0.02),
        ),
        controls=(
            Condition("SA stays within 0.02", Change("sa", At(TUNED, "last"), At(TUNED, "first")), ">", -0.02),
            Condition("RA/SA falls, ℓ∞", Change("ra_sa_inf", At(TUNED, "last"), At(TUNED, "first")), "<", -0.02),
            Condition("RA falls, ℓ2", Change("ra_2", At(TUNED, "last"), At(TUNED, "first")), "<", -0.02),
            Condition("RA falls at equal accuracy, ℓ2", MatchedChange("ra_2", "sa", At(TUNED, "last"), YOUNGER), "<", -0.02),
            Condition("RA falls at equal test loss, ℓ∞", MatchedChange("ra_inf", "loss", At(TUNED, "last"), YOUNGER), "<", -0.02),
            Condition("RA falls with ‖W‖_F fixed, ℓ∞", Change("ra_inf", At(FIXED, "last"), At(FIXED, "first")), "<", -0.02),
            Condition("fixed head: RA falls, ℓ2", Change("ra_2", At(HEAD, "last"), At(HEAD, "first")), "<", -0.02),
            Condition("unstructured pruning lowers RA as well, ℓ∞", Change("ra_inf", At(UNSTRUCTURED, "last"), At(TUNED, "first")), "<", -0.02),
        ),
    ),
    points=points,
    measures=("sa", "ra_inf", "ra_2", "ra_sa_inf", "compressibility_rows", "spectral_product", "gap_inf", "gap_2"),
    log_level=True,
    note="cpu scale: digits, a ViT of two blocks trained here for 40 epochs and tuned for 8; the paper tunes a published ViT on "
    "CIFAR-10 and CLIP. There are no pretrained CLIP weights at this scale: the same ViT is tuned below its own fixed head instead. "
    "RA at ℓ∞ 0.03 and ℓ2 0.2. No bounds: dot-product attention has no Lipschitz constant, and CROWN here does not read LayerNorm.",
)  # fmt: skip
