"""A toy study and rows for it, made up, so that every number of a report can be computed by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from experiments.config import Config
from experiments.rules import At, Change, Condition, Rule, Trend
from experiments.studies.common import SHORT
from experiments.study import Point, Row, Study

LEVELS = (2.0, 4.0, 8.0, 16.0)
LOW = "low rank"
EPOCHS = (1.0, 10.0)
METHODS = {"printed": 400.0, "derived": 300.0, "sharp": 20.0, "product": 800.0, "cover": 60.0, "recursion": 30.0,
           "sdp": 15.0, "IBP": 90.0, "CROWN": 8.0}  # fmt: skip
_NOISE = (0.010, -0.005, 0.003, -0.012, 0.004, 0.007, -0.007)


def points(scale: str) -> tuple[Point, ...]:
    base = Config()
    ranks = tuple(Point(LOW, v, replace(base, rank=int(v))) for v in LEVELS)
    return (*ranks, *(Point(SHORT, e, base.trained(epochs=int(e))) for e in EPOCHS))


def study(id: str = "e04", *, conditions: Sequence[Condition] | None = None, **changes: Any) -> Study:
    rule = Rule(
        conditions=tuple(conditions) if conditions is not None else (RISES, FALLS),
        controls=(Condition("ℓ2 too", Change("ra_2", At(LOW, "first"), At(LOW, "last")), "<", -0.02),),
    )
    made = Study(
        id=id, title="Toy", claim="Low rank lowers accuracy under attack.", source="nowhere", level="rank",
        varies="rank", fixed="everything else", supported_if="it falls", refuted_if="it does not", rule=rule,
        points=points, measures=("sa", "ra_inf", "ra_2", "bound_inf/sharp"), log_level=True, note="Made up.",
    )  # fmt: skip
    return replace(made, **changes)


RISES = Condition("RA rises with rank, ℓ∞", Trend("ra_inf", LOW), ">", 0.5)
FALLS = Condition("lowest against full, ℓ∞", Change("ra_inf", At(LOW, "first"), At(LOW, "last")), "<", -0.02)
NEVER = Condition("the reverse, ℓ∞", Change("ra_inf", At(LOW, "first"), At(LOW, "last")), ">", 0.02)
UNDECIDED = Condition("by 0.27, ℓ∞", Change("ra_inf", At(LOW, "first"), At(LOW, "last")), "<", -0.27)


def rows(
    of: Study, *, seeds: int = 5, scale: str = "cpu", details: bool = False,
    changes: Mapping[tuple[str, float, int], Mapping[str, float | None]] | None = None,
) -> list[Row]:  # fmt: skip
    """One row for each cell; ``changes``: (arm, level, seed) → measures that are set there."""
    made = []
    for cell in of.cells(scale.removesuffix("-smoke"), seeds, smoke=scale.endswith("-smoke")):
        point = cell.point
        at = math.log2(point.level) / 4 if point.arm == LOW else 0.3 + point.level / 20
        measures = {**measured(at, cell.seed), **((changes or {}).get((point.arm, point.level, cell.seed), {}))}
        made.append(Row(
            study=of.id, scale=scale, arm=point.arm, level=point.level, seed=cell.seed, key=cell.key,
            rule=of.rule.hash, config=point.config.to_dict(), measures=measures,
            details=pictured(at, cell.seed) if details else {},
            environment={"revision": "abc123", "dirty": False, "numpy": "2.0", "torch": "2.5", "device": "cpu",
                         "device_name": None, "threads": 1, "machine": "toy"},
            seconds=2.0 + cell.seed, finished="2026-01-01T00:00:00+00:00",
        ))  # fmt: skip
    return made


def measured(at: float, seed: int) -> dict[str, float | None]:
    """``at`` in [0, 1]: how little is compressed. The sharp bound has the gap's order, the printed one the reverse."""
    noise = _NOISE[seed % len(_NOISE)]
    found: dict[str, float | None] = {
        "sa": 0.80 + 0.15 * at + noise, "sa_train": 0.85 + 0.15 * at, "loss": 0.9 - 0.6 * at + noise,
        "loss_train": 0.7 - 0.6 * at, "compressibility_spectral": 0.9 - 0.8 * at, "parameters": 12000.0 * at + 1000,
    }  # fmt: skip
    for norm, drop in (("inf", 0.25), ("2", 0.15)):
        ra = 0.30 + 0.35 * at + noise
        gap = 2.0 - 1.2 * at - 5 * noise
        found |= {f"ra_{norm}": ra, f"ra_sa_{norm}": ra / (0.80 + 0.15 * at + noise), f"gap_{norm}": gap}
        for i, delta in enumerate((0.02, 0.05, 0.1)):
            found[f"ra_{norm}@{delta:g}"] = max(0.0, ra + 0.1 - i * drop)
            found[f"gap_{norm}@{delta:g}"] = gap * (i + 1) / 2
        found[f"attack_{norm}"] = gap
        found[f"gradient_{norm}"] = 3.0 * gap + 0.2 * math.sin(7 * at + seed)
        for method, factor in METHODS.items():
            found[f"bound_{norm}/{method}"] = factor * (1 / gap if method == "printed" else gap)
            found[f"certified_{norm}/{method}"] = 0.1 * at if method == "CROWN" else 0.0
            found[f"lipschitz_{norm}/{method}"] = 2 * factor
        found |= {f"ra_{norm}_{name}": ra + by for name, by in (("square", 0.01), ("double_steps", -0.001))}
    found |= {"frobenius_product": 40.0 + 3 * at, "spectral_product": 9.0 - 5 * at, "inf_product": 80.0 - 20 * at}
    return found


def pictured(at: float, seed: int) -> dict[str, Any]:
    clean = [[math.cos(i) * (3 + i % 4), math.sin(i) * (1 + i % 3)] for i in range(60)]
    moved = [[x + 1.5 - at, y + 0.3 * math.sin(i)] for i, (x, y) in enumerate(clean)]
    weights = [math.exp(-(1 - at) * i / 3) + 0.01 * seed for i in range(20)]
    return {"pca": {"clean": clean, "adversarial": moved}, "energy": [w / sum(weights) for w in weights]}
