"""Parts of the pictures: axes of levels, lines with bands, grids of panels, small PNG files."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np

from certbound.report import plots as house
from experiments import tables
from experiments.statistics import Estimate
from experiments.study import Row, Study

_SHADES: Final = 96
_PIXELS_PER_INCH: Final = 100


class LevelAxis:
    """Where a level stands on the x axis: a log axis shows 0 one step left of the smallest, ∞ one step to the right."""

    def __init__(self, name: str, levels: Sequence[float], *, log: bool) -> None:
        finite = [v for v in levels if math.isfinite(v)]
        positive = [v for v in finite if v > 0]
        self.log = log and len(positive) > 0 and all(v >= 0 for v in finite)
        self.name = name
        if self.log:
            ratio = max(2.0, (positive[-1] / positive[0]) ** (1 / max(1, len(positive) - 1)))
            left, right = positive[0] / ratio, positive[-1] * ratio
        else:
            width = (finite[-1] - finite[0]) / max(1, len(finite) - 1) if len(finite) > 1 else 1.0
            left, right = 0.0, (finite[-1] if finite else 0.0) + width
        self.at = {v: right if v == math.inf else left if self.log and v == 0 else v for v in levels}

    def axis(self, ax: Any) -> None:
        """Scale, ticks at the levels themselves, label."""
        from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

        if self.log:
            ax.set_xscale("log")
        levels = list(self.at)
        if self.log or len(levels) <= 6 or math.inf in levels:
            kept = _thinned([self.at[v] for v in levels], levels, log=self.log)
            ax.xaxis.set_major_locator(FixedLocator([self.at[v] for v in kept]))
            ax.xaxis.set_minor_locator(NullLocator())
            ax.xaxis.set_minor_formatter(NullFormatter())
            ax.set_xticklabels(["∞" if v == math.inf else f"{v:g}" for v in kept])
        else:
            few_ticks(ax.xaxis)
        ax.set_xlabel(self.name)
        house._finish(ax)
        ax.tick_params(axis="x", labelsize=8)


def axes_of_arms(study: Study, rows: Sequence[Row]) -> dict[str, LevelAxis]:
    """Arm → its axis; arms with the same kind of level share one."""
    names = tables.level_names(study, rows)
    shared = {
        name: LevelAxis(name, sorted({row.level for row in rows if names[row.arm] == name}), log=study.log_level)
        for name in dict.fromkeys(names.values())
    }
    return {arm: shared[names[arm]] for arm in names}


def _thinned(positions: Sequence[float], levels: Sequence[float], *, log: bool) -> list[float]:
    """Levels whose labels do not run into one another; first and last stay."""
    x = np.log(positions) if log else np.asarray(positions, dtype=float)
    least = (float(np.max(x)) - float(np.min(x))) / 7.0
    kept = [0]
    for i in range(1, len(levels)):
        if x[i] - x[kept[-1]] >= least:
            kept.append(i)
    if kept[-1] != len(levels) - 1:
        kept = [*(kept[:-1] if len(kept) > 1 else kept), len(levels) - 1]
    return [levels[i] for i in kept]


def draw_line(
    ax: Any, place: LevelAxis, rows: Sequence[Row], measure: str, style: dict[str, Any], handles: dict[str, Any],
    label: str, *, positive: bool = False,
) -> int:  # fmt: skip
    """Mean and band against level; the number of levels whose mean cannot be drawn."""
    found = {level: tables.spread(mine, measure) for (_, level), mine in tables.by_point(rows).items()}
    found = {level: e for level, e in found.items() if not math.isnan(e.value)}
    shown = {level: e for level, e in found.items() if math.isfinite(e.value) and (e.value > 0 or not positive)}
    if shown:
        x, y = [place.at[level] for level in shown], [e.value for e in shown.values()]
        (line,) = ax.plot(x, y, linewidth=1.5, markersize=5, **style)
        handles.setdefault(label, line)
        low, high = zip(*(_band(e, positive) for e in shown.values()), strict=True)
        if len(shown) > 1:
            ax.fill_between(x, low, high, color=style["color"], alpha=0.18, linewidth=0)
        else:
            ax.plot([x[0], x[0]], [low[0], high[0]], color=style["color"], linewidth=1.2)
    return len(found) - len(shown)


def draw_across(ax: Any, found: Estimate, style: dict[str, Any], handles: dict[str, Any], label: str) -> None:
    """A number without a level: a dashed line over the whole panel."""
    if math.isfinite(found.value):
        line = ax.axhline(found.value, color=style["color"], linestyle="--", linewidth=1.3)
        handles.setdefault(label, line)
        low, high = _band(found, positive=False)
        ax.axhspan(low, high, color=style["color"], alpha=0.12, linewidth=0)


def _band(found: Estimate, positive: bool) -> tuple[float, float]:
    if math.isnan(found.low):
        return found.value, found.value
    # a log axis has no room below zero: the band ends a factor of ten under the mean there
    return (max(found.low, found.value / 10) if positive else found.low), found.high


def title_panel(ax: Any, title: str, hidden: int = 0) -> None:
    """A title in as many lines as the panel's width asks for; how much is not drawn, inside the panel's top."""
    width = ax.figure.get_figwidth() / ax.get_gridspec().ncols
    ax.set_title(textwrap.fill(title, max(12, int(11 * width))), fontsize=10)
    if hidden:
        ax.annotate(
            f"{hidden} not shown (0 or ∞)", (0.98, 0.98), xycoords="axes fraction", ha="right", va="top", fontsize=7,
            color="#555555",
        )  # fmt: skip


def few_ticks(axis: Any, *, integer: bool = False) -> None:
    """At most six labels, as panels are narrow; a log axis of less than a decade has labels between powers of 10."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    low, high = axis.get_view_interval()
    axis.set_minor_formatter(NullFormatter())
    if axis.get_scale() == "log" and high >= 10 * low:
        axis.set_major_locator(LogLocator(numticks=6))
    else:
        axis.set_major_locator(MaxNLocator(5, integer=integer))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def grid(n: int, *, height: float) -> tuple[Any, list[Any]]:
    """A figure of ``n`` panels in rows of at most four; what is left over is removed."""
    columns = columns_of(n)
    lines = math.ceil(n / columns)
    figure, axes = house._new_figure(lines, columns, height=height, width=panel_width(columns))
    panels = list(axes.flat)
    for ax in panels[n:]:
        figure.delaxes(ax)
    return figure, panels[:n]


def columns_of(n: int) -> int:
    return n if n <= 4 else math.ceil(n / math.ceil(n / 4))


def panel_width(columns: int) -> float:
    return max(2.4, min(4.2, 12.0 / columns)) if columns > 1 else 6.0


def colours_of(study: Study, rows: Sequence[Row]) -> dict[tuple[str, float], Any]:
    """(Kind of level, level) → colour, light to dark; the yellow end of the map cannot be read on white."""
    from matplotlib import colormaps

    names = tables.level_names(study, rows)
    found: dict[tuple[str, float], Any] = {}
    for name in dict.fromkeys(names.values()):
        levels = sorted({row.level for row in rows if names[row.arm] == name})
        for i, level in enumerate(levels):
            found[name, level] = colormaps["viridis_r"](0.12 + 0.88 * i / max(1, len(levels) - 1))
    return found


def legend_of_levels(
    figure: Any, handles: dict[tuple[str, float], Any], colours: dict[tuple[str, float], Any]
) -> None:
    """The drawn levels in order."""
    house._legend(figure, {f"{name} {level:g}": handles[name, level] for name, level in colours
                           if (name, level) in handles}, None)  # fmt: skip


def levels_of(rows: Iterable[Row], arm: str) -> set[float]:
    return {row.level for row in rows if row.arm == arm}


def rows_of(rows: Iterable[Row], arm: str) -> list[Row]:
    return [row for row in rows if row.arm == arm]


def ends_of(rows: Sequence[Row]) -> list[Row]:
    ordered = sorted(rows, key=lambda row: row.level)
    return [ordered[0], ordered[-1]] if len(ordered) > 1 else ordered


def to_png(figure: Any) -> bytes:
    """A PNG of few colours: lines and bands need no more, and the file is a third of the size."""
    from PIL import Image

    raw, packed = io.BytesIO(), io.BytesIO()
    figure.savefig(raw, dpi=_PIXELS_PER_INCH, format="png")
    raw.seek(0)
    picture = Image.open(raw).convert("RGB").quantize(_SHADES, dither=Image.Dither.NONE)
    picture.save(packed, format="PNG", optimize=True)
    return packed.getvalue()
