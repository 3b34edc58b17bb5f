"""Pictures of a study, from its rows; matplotlib's object API, so no global figure state.

Means over seeds with bands of the 95 % t interval. What a log axis cannot show (0, ∞) is left out and counted on the
panel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

from certbound.report import plots as house
from experiments import tables
from experiments.drawing import (
    axes_of_arms,
    colours_of,
    columns_of,
    draw_across,
    draw_line,
    ends_of,
    few_ticks,
    grid,
    legend_of_levels,
    levels_of,
    panel_width,
    rows_of,
    title_panel,
    to_png,
)
from experiments.study import Row, Study


def pictures(study: Study, rows: Sequence[Row], names: Collection[str] | None = None) -> dict[str, bytes]:
    """File name → PNG of every picture that the rows give; the same bytes for the same rows.

    Parameters
    ----------
    rows : as :func:`experiments.tables.checked` returns them.
    names : only these are drawn; None for all.
    """
    drawers: dict[str, Callable[[], bytes | None]] = {
        "accuracy.png": lambda: accuracy(study, rows),
        "radius.png": lambda: radius(study, rows),
        "bounds_inf.png": lambda: bounds(study, rows, "inf"),
        "bounds_2.png": lambda: bounds(study, rows, "2"),
        "tracking_inf.png": lambda: tracking(rows, "inf"),
        "tracking_2.png": lambda: tracking(rows, "2"),
        "energy.png": lambda: energy(study, rows),
        "pca.png": lambda: pca(study, rows),
    }
    made = {name: draw() for name, draw in drawers.items() if names is None or name in names}
    return {name: png for name, png in made.items() if png is not None}


def accuracy(study: Study, rows: Sequence[Row]) -> bytes:
    """Clean accuracy and accuracy under attack in both norms against level; a line an arm.

    Arms that have the same kind of level share a row of panels. An arm of one level is a dashed line across the first.
    """
    panels = [("sa", "clean"), *((f"ra_{n}", f"under attack, {tables.NORM_TITLE[n]}") for n in tables.NORMS)]
    axis_of = axes_of_arms(study, rows)
    swept = [place for arm, place in axis_of.items() if len(levels_of(rows, arm)) > 1]
    groups = list(dict.fromkeys(swept or axis_of.values()))
    figure, axes = house._new_figure(len(groups), len(panels), height=2.7, width=3.6)
    styles = house._style(tables.arms(rows))
    handles: dict[str, Any] = {}
    for i, place in enumerate(groups):
        for ax, (measure, title) in zip(axes[i], panels, strict=True):
            for arm in tables.arms(rows):
                mine = rows_of(rows, arm)
                if axis_of[arm] is place:
                    draw_line(ax, place, mine, measure, styles[arm], handles, arm)
                elif i == 0 and len(levels_of(rows, arm)) == 1:
                    draw_across(ax, tables.spread(mine, measure), styles[arm], handles, arm)
            ax.set_ylim(-0.03, 1.03)
            place.axis(ax)
            if i == 0:
                ax.set_title(title, fontsize=11)
        axes[i][0].set_ylabel("accuracy")
    house._legend(figure, handles, None)
    return to_png(figure)


def bounds(study: Study, rows: Sequence[Row], norm: str) -> bytes | None:
    """Every bound of the mean loss gap, and the gap found by attack, against level; a panel an arm."""
    names = tables.methods(rows, "bound", norm)
    shown = [arm for arm in tables.arms(rows) if tables.methods(rows_of(rows, arm), "bound", norm)]
    if not names:
        return None
    figure, axes = grid(len(shown), height=3.0)
    axis_of = axes_of_arms(study, rows)
    styles = house._style(names)
    handles: dict[str, Any] = {}
    for i, (ax, arm) in enumerate(zip(axes, shown, strict=True)):
        ax.set_yscale("log")
        mine, hidden, place = rows_of(rows, arm), 0, axis_of[arm]
        for name in names:
            hidden += draw_line(ax, place, mine, f"bound_{norm}/{name}", styles[name], handles, name, positive=True)
        black = {"color": "black", "marker": "*", "linestyle": "-"}
        hidden += draw_line(ax, place, mine, f"attack_{norm}", black, handles, "found by attack", positive=True)
        title_panel(ax, f"{arm}, {tables.NORM_TITLE[norm]}", hidden)
        few_ticks(ax.yaxis)
        place.axis(ax)
        if i == 0:
            ax.set_ylabel("mean loss gap")
    house._share_y(axes)
    house._legend(figure, handles, None)
    return to_png(figure)


def tracking(rows: Sequence[Row], norm: str) -> bytes | None:
    """Bound against the gap found by attack, a point a model; a panel a method, a colour an arm."""
    names = tables.methods(rows, "bound", norm)
    if not names:
        return None
    figure, axes = grid(len(names), height=2.7)
    styles = house._style(tables.arms(rows))
    handles: dict[str, Any] = {}
    for i, (ax, name) in enumerate(zip(axes, names, strict=True)):
        hidden, drawn = 0, False
        for arm in tables.arms(rows):
            points = [(r.number(f"attack_{norm}"), r.number(f"bound_{norm}/{name}")) for r in rows_of(rows, arm)]
            points = [p for p in points if not any(math.isnan(v) for v in p)]
            finite = [p for p in points if all(0 < v < math.inf for v in p)]
            hidden += len(points) - len(finite)
            if finite:
                drawn = True
                look = {**styles[arm], "linestyle": "none", "markersize": 4, "alpha": 0.75, "markeredgewidth": 0}
                (line,) = ax.plot(*zip(*finite, strict=True), **look)
                handles.setdefault(arm, line)
        if drawn:
            ax.set_xscale("log")
            ax.set_yscale("log")
        title_panel(ax, f"{name}, {tables.NORM_TITLE[norm]}", hidden)
        few_ticks(ax.xaxis)
        few_ticks(ax.yaxis)
        house._finish(ax)
        if i % columns_of(len(names)) == 0:
            ax.set_ylabel("bound")
        if i + columns_of(len(names)) >= len(names):
            ax.set_xlabel("gap found by attack")
    house._legend(figure, handles, None)
    return to_png(figure)


def radius(study: Study, rows: Sequence[Row]) -> bytes | None:
    """Accuracy under attack against radius, beginning with the clean accuracy; a colour a level, a panel an arm."""
    curves = {n: [m for m in tables.measures(rows) if m.startswith(f"ra_{n}@")] for n in tables.NORMS}
    if not any(curves.values()):
        return None
    shown = tables.arms(rows)
    figure, axes = house._new_figure(2, len(shown), height=2.6, width=panel_width(len(shown)))
    names, colours = tables.level_names(study, rows), colours_of(study, rows)
    handles: dict[tuple[str, float], Any] = {}
    for j, arm in enumerate(shown):
        for i, norm in enumerate(tables.NORMS):
            ax = axes[i][j]
            for (_, level), mine in tables.by_point(rows_of(rows, arm)).items():
                named = [(0.0, "sa"), *sorted((float(m.partition("@")[2]), m) for m in curves[norm])]
                means = [(delta, tables.spread(mine, m).value) for delta, m in named]
                means = [p for p in means if not math.isnan(p[1])]
                if means:
                    colour = colours[names[arm], level]
                    (line,) = ax.plot(*zip(*means, strict=True), color=colour, marker="o", markersize=3)
                    handles[names[arm], level] = line
            ax.set_ylim(-0.03, 1.03)
            title_panel(ax, f"{arm}, {tables.NORM_TITLE[norm]}")
            few_ticks(ax.xaxis)
            house._finish(ax)
            if i == 1:
                ax.set_xlabel("radius δ")
            if j == 0:
                ax.set_ylabel("accuracy under attack")
    legend_of_levels(figure, handles, colours)
    return to_png(figure)


def energy(study: Study, rows: Sequence[Row]) -> bytes | None:
    """Mean share of the attack along each right singular vector of the first layer; a panel an arm."""
    kept = [row for row in rows if row.details.get("energy")]
    if not kept:
        return None
    figure, axes = grid(len(tables.arms(kept)), height=2.9)
    names, colours = tables.level_names(study, kept), colours_of(study, kept)
    handles: dict[tuple[str, float], Any] = {}
    for i, (ax, arm) in enumerate(zip(axes, tables.arms(kept), strict=True)):
        for (_, level), mine in tables.by_point(rows_of(kept, arm)).items():
            length = min(len(row.details["energy"]) for row in mine)
            mean = np.mean([row.details["energy"][:length] for row in mine], axis=0)
            (line,) = ax.plot(range(1, length + 1), mean, color=colours[names[arm], level], marker="o", markersize=3)
            handles[names[arm], level] = line
        title_panel(ax, arm)
        ax.set_xlabel("right singular vector of the first layer", fontsize=9)
        ax.set_ylim(bottom=0.0)
        few_ticks(ax.xaxis, integer=True)
        house._finish(ax)
        if i == 0:
            ax.set_ylabel("share of the ℓ2 attack")
    house._share_y(axes)
    legend_of_levels(figure, handles, colours)
    return to_png(figure)


def pca(study: Study, rows: Sequence[Row]) -> bytes | None:
    """Representations before and after the attack on the two main axes, of the lowest and highest level of each arm."""
    kept = [row for row in rows if row.details.get("pca")]
    if not kept:
        return None
    seed = min(row.seed for row in kept)
    kept = [row for row in kept if row.seed == seed]
    shown = [row for arm in tables.arms(kept) for row in ends_of(rows_of(kept, arm))]
    names = tables.level_names(study, rows)
    figure, axes = grid(len(shown), height=3.0)
    handles: dict[str, Any] = {}
    for ax, row in zip(axes, shown, strict=True):
        clean, moved = (np.array(row.details["pca"][k], dtype=float).reshape(-1, 2) for k in ("clean", "adversarial"))
        step = moved - clean
        ax.quiver(*clean.T, *step.T, angles="xy", scale_units="xy", scale=1, color="#999999", width=0.004)
        handles["clean"] = ax.plot(*clean.T, "o", color="#0072B2", markersize=3)[0]
        handles["under attack"] = ax.plot(*moved.T, "^", color="#D55E00", markersize=3)[0]
        title_panel(ax, f"{row.arm}, {names[row.arm]} {row.level:g}")
        ax.set_xlabel("first main axis", fontsize=9)
        house._finish(ax)
    axes[0].set_ylabel("second main axis", fontsize=9)
    house._legend(figure, handles, f"representations, seed {seed}")
    return to_png(figure)
