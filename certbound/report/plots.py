"""The two figures of the demo, from plain rows; matplotlib's object API, so no global figure state.

A row is a mapping; keys beyond those named are ignored. Values that a log axis cannot show (0, ∞, NaN)
are left out of the drawing and counted in a note on the panel: they are never silently dropped.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from certbound.errors import InputError, MissingDependencyError
from certbound.types import norm_name, parse_norm

Row = Mapping[str, Any]

# Okabe & Ito's palette: distinct in all common forms of colour blindness. Black is the empirical gap's,
# and the pale yellow is left out because it cannot be read on white.
_COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
# shape repeats what colour says, for print in grey
_MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X")
_DASHES: Final = ("-", "--", "-.", ":")


def _new_figure(n_rows: int, n_columns: int, *, height: float, width: float = 4.2) -> tuple[Any, Any]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(
            "matplotlib", purpose="plotting", command="pip install 'certbound[report]'"
        ) from error
    figure = Figure(figsize=(width * n_columns + 0.4, height * n_rows + 1.1), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(n_rows, n_columns, squeeze=False)


def _save(figure: Any, path: str | Path) -> Path:
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=150, format="png")
    return target


def _check(rows: Sequence[Row], keys: Iterable[str]) -> None:
    if not rows:
        raise InputError("rows", got="no rows", needed="at least one", fix="plot after something was measured")
    for i, row in enumerate(rows):
        missing = [key for key in keys if key not in row]
        if missing:
            raise InputError(
                f"rows[{i}]", got=f"keys {sorted(row)}", needed=f"also {missing}", fix="see the function's docstring"
            )


def _distinct(values: Iterable[Any]) -> list[Any]:
    """Distinct values in order of first appearance."""
    return list(dict.fromkeys(values))


def _norm_title(norm: float) -> str:
    return "ℓ∞" if math.isinf(norm) else f"ℓ{norm_name(norm)}"


def _style(methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """A colour, marker and dash for each method, the same in every panel."""
    styles: dict[str, dict[str, Any]] = {}
    for i, method in enumerate(methods):
        turn, j = divmod(i, len(_COLOURS))
        # a colour that comes round again comes with another marker and dash
        marker = _MARKERS[(j + 3 * turn) % len(_MARKERS)]
        styles[method] = {"color": _COLOURS[j], "marker": marker, "linestyle": _DASHES[turn % len(_DASHES)]}
    return styles


def _mean_by(points: Iterable[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    """Mean of y at each distinct x, x ascending."""
    groups: dict[float, list[float]] = {}
    for x, y in points:
        groups.setdefault(x, []).append(y)
    xs = sorted(groups)
    return np.array(xs), np.array([float(np.mean(groups[x])) for x in xs])


def plot_bounds_against_compressibility(
    rows: Sequence[Row],
    path: str | Path,
    *,
    xlabel: str = "compressibility",
    ylabel: str = "mean loss gap",
    empirical: str = "lower",
    title: str | None = None,
) -> Path:
    """Bounds and empirical gaps against compressibility; one panel per norm (rows) and family (columns).

    Parameters
    ----------
    rows : mappings with the keys ``model``, ``family``, ``compressibility`` (a number), ``norm`` (2 or ∞),
        ``method``, ``value`` and ``sense`` (``"upper"`` or ``"lower"``; a ``Sense`` will do).
    path : the PNG to write; its folder is made.
    empirical : the sense that is drawn as the empirical gap, in black.

    Returns the path. One line per method through its models in order of compressibility; the y axis is
    logarithmic and shared by the panels of a norm.

    Raises
    ------
    InputError : no rows, or a row without one of the keys.
    MissingDependencyError : matplotlib is not installed.
    """
    _check(rows, ("model", "family", "compressibility", "norm", "method", "value", "sense"))
    norms = sorted({parse_norm(row["norm"]) for row in rows})
    families = _distinct(row["family"] for row in rows)
    uppers = _distinct(row["method"] for row in rows if str(row["sense"]) != empirical)
    styles = _style(uppers)
    figure, axes = _new_figure(len(norms), len(families), height=3.1)
    handles: dict[str, Any] = {}
    for i, norm in enumerate(norms):
        for j, family in enumerate(families):
            ax = axes[i][j]
            here = [row for row in rows if parse_norm(row["norm"]) == norm and row["family"] == family]
            hidden = 0
            for is_gap, method in _distinct((str(row["sense"]) == empirical, row["method"]) for row in here):
                mine = [r for r in here if r["method"] == method and (str(r["sense"]) == empirical) == is_gap]
                points = [(float(r["compressibility"]), float(r["value"])) for r in mine]
                shown = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y) and y > 0]
                hidden += len(points) - len(shown)
                if not shown:
                    continue
                x, y = _mean_by(shown)
                look: dict[str, Any] = (
                    {"color": "black", "marker": "*", "markersize": 10, "linestyle": "none", "zorder": 5}
                    if is_gap
                    else {**styles[method], "markersize": 5}
                )
                label = f"{method} (found by attack)" if is_gap else method
                (line,) = ax.plot(x, y, linewidth=1.5, **look)
                handles.setdefault(label, line)
            ax.set_yscale("log")
            ax.set_title(f"{family}, {_norm_title(norm)}", fontsize=11)
            if hidden:  # above the axes, where no curve can be
                note = f"{hidden} not shown:\n0 or not finite"
                ax.set_title(note, fontsize=8, color="#555555", loc="right")
            _finish(ax)
            if i == len(norms) - 1:
                ax.set_xlabel(xlabel)
            if j == 0:
                ax.set_ylabel(ylabel)
        _share_y(axes[i])
    _legend(figure, handles, title)
    return _save(figure, path)


def plot_accuracy_against_delta(
    rows: Sequence[Row],
    path: str | Path,
    *,
    xlabel: str = "perturbation radius δ",
    title: str | None = None,
) -> Path:
    """Robust accuracy under attack (an upper bound) above certified accuracies (lower bounds).

    Parameters
    ----------
    rows : mappings with the keys ``model``, ``norm`` (2 or ∞), ``delta``, ``robust_accuracy`` (a fraction) and
        ``certified_accuracy``, a mapping from method to fraction; or one row per method with the keys
        ``method`` and ``certified_accuracy`` (a number). None means not computed.
    path : the PNG to write; its folder is made.

    Returns the path. Small multiples: one row per norm, one column per model. The shaded band between
    the attack and the best certificate is where the true robust accuracy lies.

    Raises
    ------
    InputError : no rows, a row without one of the keys, an accuracy outside [0, 1].
    MissingDependencyError : matplotlib is not installed.
    """
    _check(rows, ("model", "norm", "delta", "robust_accuracy", "certified_accuracy"))
    flat = [entry for i, row in enumerate(rows) for entry in _certified(i, row)]
    norms = sorted({parse_norm(row["norm"]) for row in rows})
    models = _distinct(row["model"] for row in rows)
    styles = _style(_distinct(method for _, method, _ in flat))
    figure, axes = _new_figure(len(norms), len(models), height=2.5, width=max(2.1, min(4.2, 13.0 / len(models))))
    handles: dict[str, Any] = {}
    for i, norm in enumerate(norms):
        for j, model in enumerate(models):
            ax = axes[i][j]
            here = [r for r in rows if parse_norm(r["norm"]) == norm and r["model"] == model]
            attacked = [
                (float(r["delta"]), _fraction(r["robust_accuracy"], "robust_accuracy"))
                for r in here
                if r["robust_accuracy"] is not None
            ]
            x_top, top = _mean_by(attacked)
            curves: dict[str, list[tuple[float, float]]] = {}
            for row, method, value in flat:
                if parse_norm(row["norm"]) == norm and row["model"] == model:
                    curves.setdefault(method, []).append((float(row["delta"]), value))
            best: dict[float, float] = {}
            for method, points in curves.items():
                x, y = _mean_by(points)
                (line,) = ax.plot(x, y, linewidth=1.5, markersize=4, **styles[method])
                handles.setdefault(f"{method} (certified, lower bound)", line)
                for d, v in zip(x.tolist(), y.tolist(), strict=True):
                    best[d] = max(v, best.get(d, 0.0))
            if len(x_top):
                (line,) = ax.plot(x_top, top, color="black", marker="*", markersize=8, linewidth=1.5, zorder=5)
                handles.setdefault("robust accuracy under attack (upper bound)", line)
                both = [d for d in x_top.tolist() if d in best]
                above = dict(zip(x_top.tolist(), top.tolist(), strict=True))
                band = ax.fill_between(
                    both, [best[d] for d in both], [above[d] for d in both], color="#BBBBBB", alpha=0.45, linewidth=0
                )
                if both:
                    handles.setdefault("undecided", band)
            ax.set_ylim(-0.03, 1.03)
            ax.set_title(f"{model}, {_norm_title(norm)}", fontsize=10)
            _finish(ax)
            if i == len(norms) - 1:
                ax.set_xlabel(xlabel)
            if j == 0:
                ax.set_ylabel("accuracy")
            else:
                ax.tick_params(labelleft=False)
    _legend(figure, handles, title)
    return _save(figure, path)


def plot_attribution(
    rows: Sequence[Row],
    path: str | Path,
    *,
    ylabel: str = "log10(bound / empirical gap)",
    title: str | None = None,
) -> Path:
    """Stacked bars: how much of ``log10(bound / empirical gap)`` each step loses; one panel per norm, one bar a model.

    Parameters
    ----------
    rows : mappings with the keys ``model``, ``norm`` (2 or ∞), ``step`` and ``log`` (natural logarithm; rows of one
        model, norm and step are averaged). Negative steps (gains) hang below zero; a black mark shows the sum.
    path : the PNG to write; its folder is made.

    Raises
    ------
    InputError : no rows, a row without one of the keys, a log that is not finite.
    MissingDependencyError : matplotlib is not installed.
    """
    _check(rows, ("model", "norm", "step", "log"))
    for i, row in enumerate(rows):
        if not math.isfinite(float(row["log"])):
            raise InputError(f"rows[{i}]", got=f"log = {row['log']}", needed="a finite number", fix="drop the model")
    norms = sorted({parse_norm(row["norm"]) for row in rows})
    # a step that loses nothing anywhere has no bar, and would only fill the legend
    steps = _distinct(row["step"] for row in rows if abs(float(row["log"])) > 1e-9)
    colours = {step: (_COLOURS[i % len(_COLOURS)], ("", "///", "...")[i // len(_COLOURS) % 3]) for i, step in
               enumerate(steps)}  # fmt: skip
    models = _distinct(row["model"] for row in rows)
    figure, axes = _new_figure(len(norms), 1, height=3.1, width=max(8.5, 1.05 * len(models) + 2.0))
    handles: dict[str, Any] = {}
    for i, norm in enumerate(norms):
        ax = axes[i][0]
        up, down = np.zeros(len(models)), np.zeros(len(models))
        for step in steps:
            heights = np.zeros(len(models))
            for j, model in enumerate(models):
                mine = [float(r["log"]) for r in rows
                        if r["model"] == model and parse_norm(r["norm"]) == norm and r["step"] == step]  # fmt: skip
                heights[j] = np.mean(mine) / math.log(10) if mine else 0.0
            colour, hatch = colours[step]
            bars = ax.bar(
                range(len(models)), heights, bottom=np.where(heights >= 0, up, down), color=colour, hatch=hatch,
                edgecolor="white", linewidth=0.5, width=0.7,
            )  # fmt: skip
            handles.setdefault(step, bars)
            up, down = up + np.maximum(heights, 0.0), down + np.minimum(heights, 0.0)
        (mark,) = ax.plot(range(len(models)), up + down, "_", color="black", markersize=18, markeredgewidth=2)
        handles.setdefault("sum", mark)
        ax.axhline(0.0, color="black", linewidth=0.8)
        ax.set_xticks(range(len(models)), models)
        ax.set_title(_norm_title(norm), fontsize=11)
        ax.set_ylabel(ylabel)
        _finish(ax)
    if title:
        figure.suptitle(title, fontsize=12)
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower center", ncols=2, frameon=False, fontsize=8
    )
    return _save(figure, path)


def _fraction(value: object, name: str) -> float:
    number = float(value)  # type: ignore[arg-type]  # anything else raises with its own message
    if not 0.0 <= number <= 1.0:
        raise InputError(name, got=repr(value), needed="a fraction in [0, 1]", fix="divide a percentage by 100")
    return number


def _certified(index: int, row: Row) -> list[tuple[Row, str, float]]:
    """(row, method, certified accuracy) for each method of a row."""
    value = row["certified_accuracy"]
    if not isinstance(value, Mapping):
        if "method" not in row:
            raise InputError(
                f"rows[{index}]",
                got="one certified_accuracy without a method",
                needed="a mapping from method to accuracy, or the key 'method'",
                fix="name the method that certified it",
            )
        value = {row["method"]: value}
    return [(row, str(m), _fraction(v, "certified_accuracy")) for m, v in value.items() if v is not None]


def _finish(ax: Any) -> None:
    ax.grid(visible=True, which="major", color="#DDDDDD", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.tick_params(labelsize=9)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)


def _share_y(row_of_axes: Any) -> None:
    """One y range for the panels of a norm, over the panels that show something."""
    used = [ax for ax in row_of_axes if ax.lines]
    if used:
        low, high = min(ax.get_ylim()[0] for ax in used), max(ax.get_ylim()[1] for ax in used)
        for ax in row_of_axes:
            ax.set_ylim(low, high)


def _legend(figure: Any, handles: dict[str, Any], title: str | None) -> None:
    if title:
        figure.suptitle(title, fontsize=12)
    # the attack last: uppers are drawn above it in most panels
    labels = sorted(handles, key=lambda label: "attack" in label)
    columns = max(1, min(len(labels), int(figure.get_figwidth() // 3.0)))
    figure.legend(
        [handles[label] for label in labels], labels,
        loc="outside lower center", ncols=columns, frameon=False, fontsize=9,
    )  # fmt: skip
