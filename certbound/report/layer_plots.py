"""The picture of a layer report: norms, Theorem 3.1's bounds, ε and β along the depth of a model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from certbound.errors import InputError
from certbound.report.plots import _COLOURS, _finish, _new_figure, _save

if TYPE_CHECKING:
    from certbound.theorems.layer_report import LayerReport
    from certbound.theorems.layer_rows import LayerRow, Reading

_NAMES = 60  # layers up to which each is named below the axis


def plot_layers(report: LayerReport, path: str | Path, *, title: str | None = None) -> Path:
    """Four panels along the layers: the 2-norm and the ∞-norm with their bounds; ε and β of both parts.

    Above: of convolutions the kernel matrix's norm (filters, no guarantee), the operator's between its lower and upper
    bound, Theorem 3.1's bound of the operator and the sharp form; of Linear layers matrix and operator are one. Below:
    ε and β of the operator; a hollow mark is a lower bound of ε, the filters' ε and β stand beside it.

    Parameters
    ----------
    report : of :func:`certbound.layer_report`; rows without numbers are left out.
    path : the PNG to write; its folder is made.

    Raises
    ------
    InputError : no row with numbers. MissingDependencyError : matplotlib is not installed.
    """
    rows = report.operator_rows
    if not rows:
        raise InputError("report", got="no row with numbers", needed="at least one", fix="plot a model with weights")
    figure, axes = _new_figure(2, 2, height=3.6, width=max(5.0, 0.16 * len(rows) + 2.0))
    handles: dict[str, Any] = {}
    for column, part in enumerate(("spectral", "neuron")):
        _norms(axes[0][column], rows, part, handles)
        _structure(axes[1][column], rows, part, handles)
        for ax in axes[:, column]:
            _finish(ax)
        _names(axes[1][column], rows)
        axes[0][column].tick_params(labelbottom=False)
    if title:
        figure.suptitle(title, fontsize=12)
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower center", ncols=4, frameon=False, fontsize=8
    )
    return _save(figure, path)


def _norms(ax: Any, rows: Sequence[LayerRow], part: str, handles: dict[str, Any]) -> None:
    """Kernel, operator, Theorem 3.1; a log axis, so that zeros are left out."""
    which = "norm_2" if part == "spectral" else "norm_inf"

    def draw(values: Sequence[float | None], label: str, **look: Any) -> None:
        shown = [(i, v) for i, v in enumerate(values) if v is not None and math.isfinite(v) and v > 0.0]
        if shown:
            (line,) = ax.plot(*zip(*shown, strict=True), label=label, **look)
            handles.setdefault(label, line)

    operators = [_operator(row) for row in rows]
    draw(
        [getattr(row.filters, part).bound if row.filters else None for row in rows],
        "Theorem 3.1, filters (no guarantee)", color="#999999", marker="v", markersize=3, linestyle=":", linewidth=0.8,
    )  # fmt: skip
    draw([getattr(r, part).bound for r in operators], "Theorem 3.1, operator", color=_COLOURS[1], marker="s",
         markersize=3.5, linewidth=1.2)  # fmt: skip
    draw([getattr(r, part).sharp for r in operators], "sharp form, operator", color=_COLOURS[4], marker="D",
         markersize=3, linewidth=1.0)  # fmt: skip
    draw([getattr(r, which)[1] for r in operators], "operator norm, upper bound", color=_COLOURS[0], marker="o",
         markersize=3.5, linewidth=1.2)  # fmt: skip
    draw([getattr(r, which)[0] for r in operators], "operator norm, lower bound", color="black", marker="_",
         markersize=7, linestyle="none")  # fmt: skip
    draw(
        [getattr(row.filters, which)[1] if row.filters else None for row in rows], "kernel matrix (no guarantee)",
        color=_COLOURS[2], marker="^", markersize=3.5, linestyle="--", linewidth=1.0,
    )  # fmt: skip
    ax.set_yscale("log")
    ax.set_title("ℓ2 (spectral part)" if part == "spectral" else "ℓ∞ (neuron part)", fontsize=11)
    ax.set_ylabel("norm of the layer" if part == "spectral" else "")


def _structure(ax: Any, rows: Sequence[LayerRow], part: str, handles: dict[str, Any]) -> None:
    """ε and β in [0, 1]."""
    looks = (("operator", (_COLOURS[0], _COLOURS[1]), "o"), ("filters", (_COLOURS[5], _COLOURS[4]), "^"))
    for reading, colours, shape in looks:
        for symbol, key, colour in zip(("ε", "β"), ("epsilon", "beta"), colours, strict=True):
            for exact in (True, False):
                points = []
                for i, row in enumerate(rows):
                    chosen = row.filters if reading == "filters" else _operator(row)
                    if chosen is not None and getattr(chosen, part).exact == exact:
                        points.append((i, getattr(getattr(chosen, part), key)))
                if not points or (key == "beta" and not exact):  # one-sided rows have k = 1: β is 0
                    continue
                label = f"{symbol}, {reading}" + ("" if exact else ", a lower bound")
                (line,) = ax.plot(
                    *zip(*points, strict=True), linestyle="none", marker=shape, markersize=4, color=colour,
                    markerfacecolor=colour if exact else "none", label=label,
                )  # fmt: skip
                handles.setdefault(label, line)
    ax.set_ylim(-0.03, 1.03)
    ax.set_ylabel("ε, β" if part == "spectral" else "")


def _operator(row: LayerRow) -> Reading:
    assert row.operator is not None  # operator_rows has no others
    return row.operator


def _names(ax: Any, rows: Sequence[LayerRow]) -> None:
    if len(rows) <= _NAMES:
        ax.set_xticks(range(len(rows)), [row.name for row in rows], rotation=90, fontsize=6)
        ax.tick_params(axis="x", labelsize=6)
    else:
        ax.set_xlabel(f"layers, {rows[0].name} … {rows[-1].name}")


__all__ = ["plot_layers"]
