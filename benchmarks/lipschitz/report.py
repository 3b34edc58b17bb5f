"""The table, the result file and the picture."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import numpy as np
import scipy

from benchmarks.lipschitz import cells as store
from benchmarks.lipschitz.judge import Facts, Verdict, facts, judge
from certbound import text

Row = Mapping[str, Any]

HEADER: Final = ("net", "problem", "method", "bound", "/ product", "above optimum", "valid?", "CPU s", "MiB", "status")
_COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#000000")
_MARKERS: Final = ("o", "s", "^", "D", "v", "P", "*", "<", ">", "h", "p", "d")


def judged(found: Sequence[Row]) -> list[tuple[Row, Facts, Verdict]]:
    """Every cell with what is known of its network and problem, and the verdict."""
    known = {key: facts(list(group)) for key, group in groupby(sorted(found, key=_place), key=_place)}
    return [(c, known[_place(c)], judge(c, known[_place(c)])) for c in found]


def _place(cell: Row) -> tuple[bool, str, str]:
    return bool(cell["trap"]), str(cell["net"]), str(cell["problem"])


def above_optimum(cell: Row, known: Facts) -> str:
    """``+5.6e-05``; a question mark where the optimum is not known and the best proved bound stands for it."""
    if cell["value"] is None or cell["kind"] == "lower" or known.optimum is None or not known.optimum[0] > 0.0:
        return "-"
    optimum, sure = known.optimum
    return f"{cell['value'] / optimum - 1.0:+.1e}" + ("" if sure else " ?")


def _line(cell: Row, known: Facts, verdict: Verdict) -> tuple[str, ...]:
    value = cell["value"]
    share = "-" if value is None or not known.product else f"{value / known.product:.4g}"
    seconds = "-" if cell["cpu_seconds"] is None else f"{cell['cpu_seconds']:.3g}"
    if cell["status"] == "time-out":
        seconds = f"> {cell['limit']:g}"
    memory = "-" if cell["peak_bytes"] is None else f"{cell['peak_bytes'] / 2**20:.0f}"
    shown = "-" if value is None else f"{value:.6g}"
    gap = above_optimum(cell, known)
    return (cell["net"], cell["problem"], cell["label"], shown, share, gap, str(verdict), seconds, memory,
            cell["status"])  # fmt: skip


def remarks(found: Sequence[Row]) -> list[str]:
    """What the cells said, one line each where they said something worth reading (not how fast a proof was checked)."""
    lines = []
    for c in found:
        notes = [n for n in c["notes"] if not n.startswith("verified in")]
        if notes and c["status"] not in ("not applicable", "not available"):
            said = "; ".join(notes)
            lines.append(f"{c['net']} {c['problem']} {c['label']}: {said[:137] + '...' if len(said) > 140 else said}")
    return lines


def tally(rows: Sequence[tuple[Row, Facts, Verdict]]) -> str:
    """How often each method's value was what."""
    words = ("proved", "valid", "numerical", "not shown", "wrong side", "INVALID")
    labels = dict.fromkeys(c["label"] for c, _, _ in rows)
    lines = []
    for label in labels:
        own = [v.word for c, _, v in rows if c["label"] == label]
        none = sum(w == "-" for w in own)
        lines.append((label, *(str(own.count(w)) for w in words), str(none)))
    return text.table(lines, ("method", *words, "no value"))


def speed(rows: Sequence[tuple[Row, Facts, Verdict]]) -> str:
    """CPU time of cvxpy + SCS over that of the barrier, proof and its check included, where both finished."""
    times: dict[tuple[bool, str, str], dict[str, float]] = {}
    for c, _, _ in rows:
        if c["status"] == "ok" and c["cpu_seconds"] is not None:
            times.setdefault(_place(c), {})[c["method"]] = c["cpu_seconds"]
    lines = [
        (net, problem, f"{t['scs'] / t['barrier']:.3g}x")
        for (_, net, problem), t in times.items()
        if "scs" in t and t.get("barrier", 0.0) > 0.0
    ]
    if not lines:
        return ""
    return text.table(lines, ("net", "problem", "cvxpy + SCS time / certbound barrier time"))


def table(found: Sequence[Row]) -> str:
    """Everything for people."""
    rows = judged(found)
    parts = []
    plain = [r for r in rows if not r[0]["trap"]]
    traps = [r for r in rows if r[0]["trap"]]
    if plain:
        parts.append(text.table([_line(*r) for r in plain], HEADER))
    if traps:
        lines = [
            (c["net"], c["label"], "-" if c["value"] is None else f"{c['value']:.5g}",
             "-" if not k.lower else f"{k.lower:.5g}", str(v), c["status"])
            for c, k, v in traps
        ]  # fmt: skip
        header = ("module", "method", "bound", "sampled lower", "valid?", "status")
        parts.append(f"Modules that are no chain of Linear and ReLU (l2):\n\n{text.table(lines, header)}")
    parts.append(tally(rows))
    fast = speed(rows)
    if fast:
        parts.append(fast)
    said = remarks(found)
    if said:
        parts.append("Remarks:\n" + "\n".join(f"  {line}" for line in said))
    return "\n\n".join(parts)


def environment() -> dict[str, str]:
    """What the times depend on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    versions = {p: store.version(p) for p in ("certbound", "torch", "cvxpy", "scs", "clarabel", "eclipse-nn")}
    return {"python": platform.python_version(), "platform": platform.platform(), "cpu": cpu, "threads": "1",
            "numpy": np.__version__, "scipy": scipy.__version__} | versions  # fmt: skip


def to_json(found: Sequence[Row]) -> dict[str, Any]:
    """Everything for programs."""
    rows = []
    for c, known, verdict in judged(found):
        optimum = known.optimum
        rows.append({
            **c,
            "verdict": verdict.word,
            "verdict_detail": verdict.detail,
            "product": known.product,
            "lower": known.lower,
            "optimum": None if optimum is None else optimum[0],
            "optimum_known": optimum is not None and optimum[1],
        })  # fmt: skip
    return {"schema_version": store.FORMAT, "environment": environment(), "rows": rows}


def draw(found: Sequence[Row], folder: Path) -> list[Path]:
    """Bound over optimum against CPU time, one panel a problem, as png and svg; [] without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import FuncFormatter, NullFormatter
    except ImportError:
        return []
    rows = [r for r in judged(found) if not r[0]["trap"] and r[0]["kind"] != "lower" and r[0]["method"] != "reference"
            and r[0]["value"] and r[0]["cpu_seconds"] and r[1].optimum and math.isfinite(r[0]["value"])]  # fmt: skip
    if not rows:
        return []
    problems = list(dict.fromkeys(c["problem"] for c, _, _ in rows))
    labels = list(dict.fromkeys(c["label"] for c, _, _ in rows))
    figure = Figure(figsize=(5.2 * len(problems) + 2.2, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(problems), squeeze=False)[0]
    handles: dict[str, Any] = {}
    below: Any = None
    for ax, problem in zip(axes, problems, strict=True):
        for i, label in enumerate(labels):
            own = [(c, k, v) for c, k, v in rows if c["problem"] == problem and c["label"] == label]
            if not own:
                continue
            xs = [c["cpu_seconds"] for c, _, _ in own]
            ys = [c["value"] / k.optimum[0] for c, k, _ in own]  # type: ignore[index]
            handles[label] = ax.scatter(xs, ys, s=34, color=_COLOURS[i % len(_COLOURS)],
                                        marker=_MARKERS[i % len(_MARKERS)], alpha=0.85)  # fmt: skip
            bad = [(x, y) for x, y, (_, _, v) in zip(xs, ys, own, strict=True) if v.word in ("wrong side", "INVALID")]
            if bad:
                below = ax.scatter(*zip(*bad, strict=True), s=150, facecolors="none", edgecolors="red", linewidths=1.4)
        ax.axhline(1.0, color="black", linewidth=0.8)
        ax.set(xscale="log", yscale="log", xlabel="CPU seconds, one thread", title=problem)
        ax.grid(alpha=0.25, which="both")
        plain = FuncFormatter(lambda y, _: f"{y:g}")
        ax.yaxis.set_major_formatter(plain)
        low, high = ax.get_ylim()
        # over many decades the labels between them would lie on one another
        ax.yaxis.set_minor_formatter(plain if high < 10.0 * low else NullFormatter())
    axes[0].set_ylabel("bound / optimum of the relaxation")
    if below is not None:
        handles["below what it claims to bound"] = below
    figure.legend(handles.values(), handles.keys(), loc="outside right center", frameon=False, fontsize=8)
    paths = [folder / f"tightness.{kind}" for kind in ("png", "svg")]
    folder.mkdir(parents=True, exist_ok=True)
    for path in paths:
        figure.savefig(path, dpi=150)
    return paths
