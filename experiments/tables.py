"""Rows to tables: means with intervals, fixed number formats, markdown and CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from typing import Final

from certbound.errors import InputError
from experiments.controls import NORMS
from experiments.statistics import Estimate, mean_interval
from experiments.study import Point, Row, Study

NORM_TITLE: Final = {"inf": "ℓ∞", "2": "ℓ2"}
METHODS: Final = ("printed", "derived", "sharp", "product", "cover", "recursion", "sdp", "IBP", "CROWN")

_MEANING: Final = {
    "sa": "accuracy on clean test samples",
    "sa_train": "accuracy on clean training samples",
    "loss": "mean cross-entropy on test samples",
    "loss_train": "mean cross-entropy on training samples",
    "ra": "accuracy under attack (an upper bound of robust accuracy)",
    "ra_sa": "accuracy under attack divided by clean accuracy",
    "gap": "mean increase of the loss under attack",
    "gap_normalised": "the same with the logits divided by the mean clean margin",
    "attack": "mean increase of the loss under attack on the samples of the bounds",
    "gradient": "mean dual norm of the loss's input gradient",
    "alignment": "alignment of neighbouring layers",
    "structure": "largest singular value (ℓ2) or row sum (ℓ∞) of a layer relative to its Frobenius norm",
    "universal": "success rate of one perturbation for all inputs, on held-out samples",
    "compressibility_spectral": "1 − k/r, k singular values leave 10 % in the tail",
    "compressibility_rows": "1 − k/r, k row norms leave 10 % in the tail",
    "epsilon_spectral": "share of the singular values' sum beyond the first quarter",
    "epsilon_rows": "share of the row norms' sum beyond the first quarter",
    "beta_spectral": "spread of the top 5 % singular values",
    "beta_rows": "spread of the top 5 % row norms",
    "folded_compressibility_rows": "1 − k/r of the rows with BatchNorm multiplied in",
    "folded_epsilon_rows": "share of the row norms' sum beyond the first quarter, BatchNorm multiplied in",
    "folded_beta_rows": "spread of the top 5 % row norms, BatchNorm multiplied in",
    "stable_rank": "‖W‖_F² / σ₁², mean over layers",
    "effective_rank": "exp of the entropy of the singular values, mean over layers",
    "frobenius_product": "product of the layers' Frobenius norms",
    "spectral_product": "product of the layers' spectral norms",
    "inf_product": "product of the layers' largest row sums",
    "attack_energy": "share of the ℓ2 attack in the first layer's top right singular vectors",
    "relative_shift": "‖Φ(x + a) − Φ(x)‖ / ‖Φ(x)‖ under the ℓ2 attack",
    "margin": "mean size of the clean margin",
    "parameters": "weights of the network",
    "nonzero": "weights that are not zero",
    "nonzero_rows": "rows of the encoder that are not zero",
    "ranks": "sum of the encoder layers' ranks",
}


def checked(study: Study, rows: Sequence[Row]) -> tuple[Row, ...]:
    """The rows in order of arm (as the study lists them), level and seed.

    Raises
    ------
    InputError : no rows; rows of another study, of two scales, under another rule; one point and seed twice.
    """
    if not rows:
        raise InputError("rows", got="no rows", needed="at least one", fix=f"run {study.id} first")
    wrong = sorted({row.study for row in rows} - {study.id})
    if wrong:
        raise InputError("rows", got=f"rows of {', '.join(wrong)}", needed=f"rows of {study.id}", fix="filter them")
    scales = sorted({row.scale for row in rows})
    if len(scales) > 1:
        raise InputError("rows", got=f"rows of the scales {', '.join(scales)}", needed="one scale", fix="filter them")
    rules = sorted({row.rule for row in rows} - {study.rule.hash})
    if rules:
        raise InputError(
            "rows", got=f"rows run under the rule {rules[0]}", needed=f"the rule {study.rule.hash}",
            fix="a rule is written before its study is run: run the study again, or restore the rule",
        )  # fmt: skip
    seen: set[tuple[str, float, int]] = set()
    for row in rows:
        place = (row.arm, row.level, row.seed)
        if place in seen:
            raise InputError(
                "rows", got=f"two rows of arm {row.arm}, level {row.level:g}, seed {row.seed}", needed="one",
                fix="remove what is left of an older configuration",
            )  # fmt: skip
        seen.add(place)
    listed = dict.fromkeys(point.arm for point in study.points(base_scale(rows)))
    order = {arm: i for i, arm in enumerate(listed)}
    return tuple(sorted(rows, key=lambda r: (order.get(r.arm, len(order)), r.arm, r.level, r.seed)))


def arms(rows: Iterable[Row]) -> list[str]:
    """Arms in order of first appearance."""
    return list(dict.fromkeys(row.arm for row in rows))


def base_scale(rows: Sequence[Row]) -> str:
    """The scale that the study's points are asked for; smoke runs have a label of their own."""
    return rows[0].scale.removesuffix("-smoke")


def level_names(study: Study, rows: Sequence[Row]) -> dict[str, str]:
    """Arm → what its level is: ranks, epochs and weights of a penalty do not belong on one axis.

    It is the setting that equals the level in every configuration of the arm. The study's first arm has the study's own
    word for it, and so has an arm in which no single setting is the level.
    """
    points = study.points(base_scale(rows))
    listed: dict[str, list[Point]] = {}
    for point in points:
        listed.setdefault(point.arm, []).append(point)
    names = study.level.split(" or ")
    settings = {arm: _setting(mine) for arm, mine in listed.items()}
    main = settings[points[0].arm]
    words = {s: names[0] if s == main else _SETTINGS.get(s or "", names[0]) for s in settings.values()}
    return {arm: words.get(settings.get(arm), names[0]) for arm in arms(rows)}


_SETTINGS: Final = {
    "rank": "rank", "init_scale": "factor", "epochs": "epochs", "weight_decay": "weight decay", "penalties": "λ",
    "unstructured": "share removed", "backbone": "epochs of the backbone",
}  # fmt: skip


def _setting(points: Sequence[Point]) -> str | None:
    """The name of the setting that is the level at every point (a penalty of weight 0 may be absent)."""

    def settings(point: Point) -> dict[str, float | None]:
        config = point.config
        found: dict[str, float | None] = {
            "rank": config.rank, "init_scale": config.init_scale, "epochs": config.training.epochs,
            "weight_decay": config.training.weight_decay,
        }  # fmt: skip
        weights = [weight for _, weight in config.training.penalties]
        found["penalties"] = point.level if point.level in (0.0, *weights) else None
        if config.backbone is not None:
            found["backbone"] = config.backbone.epochs
        if config.transform is not None:
            found[config.transform.kind] = config.transform.amount
        return found

    each = [(point.level, settings(point)) for point in points]
    return next((name for name in each[0][1] if all(level == has.get(name) for level, has in each)), None)


def by_point(rows: Iterable[Row]) -> dict[tuple[str, float], list[Row]]:
    """(arm, level) → its rows, one a seed."""
    points: dict[tuple[str, float], list[Row]] = {}
    for row in rows:
        points.setdefault((row.arm, row.level), []).append(row)
    return points


def spread(rows: Iterable[Row], measure: str) -> Estimate:
    """Mean and 95 % t interval over the rows that have the measure; without an interval where one is infinite."""
    values = [v for v in (row.number(measure) for row in rows) if not math.isnan(v)]
    if not values:
        return Estimate(math.nan, math.nan, math.nan, 0)
    if not all(math.isfinite(v) for v in values):
        return Estimate(sum(values), math.nan, math.nan, len(values))
    return mean_interval(values)


def methods(rows: Iterable[Row], quantity: str, norm: str) -> list[str]:
    """Methods that any row has a number of: ``methods(rows, "bound", "inf")``."""
    prefix = f"{quantity}_{norm}/"
    found = {m.removeprefix(prefix) for row in rows for m, v in row.measures.items() if m.startswith(prefix)
             and v is not None}  # fmt: skip
    return sorted(found, key=rank_of_method)


def rank_of_method(method: str) -> tuple[int, str]:
    """Sort key: the order in which methods are always listed."""
    return (METHODS.index(method) if method in METHODS else len(METHODS), method)


def measures(rows: Iterable[Row]) -> list[str]:
    """Every measure that any row has, sorted."""
    return sorted({m for row in rows for m in row.measures})


def number(value: float) -> str:
    """Three significant digits, whole numbers in full; ``-`` for nothing."""
    if math.isnan(value):
        return "-"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if abs(value) < 1e-12:  # what rounding leaves of a difference of equal numbers
        return "0"
    if 1000 <= abs(value) < 1e7:
        return f"{value:.0f}"
    return f"{value:.3g}"


def estimate(found: Estimate, n: int | None = None) -> str:
    """``0.71 [0.68, 0.74]``; the number of seeds is added where there is no interval, or where it is not ``n``."""
    if found.n == 0 or math.isnan(found.value):
        return "-"
    interval = "" if math.isnan(found.low) else f" [{number(found.low)}, {number(found.high)}]"
    counted = f" (n = {found.n})" if (not interval and found.n < 2) or (n is not None and found.n != n) else ""
    return f"{number(found.value)}{interval}{counted}"


def meaning(measure: str) -> str | None:
    """What a measure is, in words; None for one that is not known."""
    if measure in _MEANING:
        return _MEANING[measure]
    quantity, _, method = measure.partition("/")
    if method and quantity.removeprefix("bound_") in NORMS:
        return f"the {method} bound of the mean loss gap, {NORM_TITLE[quantity.removeprefix('bound_')]}"
    name, _, norm = measure.partition("@")[0].rpartition("_")
    if norm not in NORMS or name not in _MEANING:
        return None
    _, at, radius = measure.partition("@")
    return f"{_MEANING[name]}, {NORM_TITLE[norm]}" + (f" at radius {radius}" if at else "")


def markdown(rows: Iterable[Sequence[str]], header: Sequence[str]) -> str:
    """A table of GitHub's markdown; a bar inside a cell is escaped."""
    lines = [header, ["---"] * len(header), *rows]
    for line in lines:
        if len(line) != len(header):
            raise InputError("rows", got=f"{len(line)} cells", needed=f"{len(header)} as the header", fix="pad the row")
    return "\n".join("| " + " | ".join(_flat(cell) for cell in line) + " |" for line in lines) + "\n"


def _flat(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")


def csv_text(rows: Iterable[Sequence[object]], header: Sequence[str]) -> str:
    """CSV with full precision; nothing where there is no number."""
    target = io.StringIO()
    writer = csv.writer(target, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        writer.writerow(["" if isinstance(v, float) and math.isnan(v) else v for v in row])
    return target.getvalue()
