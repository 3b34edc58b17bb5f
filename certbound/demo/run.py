"""The demo: what the analytic bounds say, what certified bounds say, what AutoPGD finds, on real images."""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from certbound import text
from certbound.demo.cell import DELTAS, HEADLINE, TARGET_EPSILON, CellConfig, CellResult, cells, run_cell
from certbound.demo.data import mnist5k
from certbound.errors import InputError, MissingDependencyError
from certbound.progress import track
from certbound.report.plots import (
    plot_accuracy_against_delta,
    plot_attribution,
    plot_bounds_against_compressibility,
)
from certbound.types import SCHEMA_VERSION, Quantity, norm_name, parse_norm

_UPPER = ("printed", "sharp", "product", "cover", "recursion", "sdp", "IBP", "CROWN")
"""The methods of the summary. The derived form is in the tables too: with the paper's dispersion the best k is 1,
where it equals the printed one."""


@dataclass(frozen=True)
class DemoReport:
    """What the demo found and where it was written."""

    results: tuple[CellResult, ...]
    out: Path
    seconds: float

    def summary(self) -> str:
        """One line per model and norm at the headline radius, seeds averaged; then the median over models."""
        columns = ("model", "norm", "delta", "SA", "RA <=", "certified >=", "gap >=", *(f"{m} /gap" for m in _UPPER))
        lines: list[tuple[str, ...]] = []
        for norm in DELTAS:
            ratios: dict[str, list[float]] = {m: [] for m in _UPPER}
            for name in dict.fromkeys(r.name for r in self.results):
                cell = _at_headline(self.results, name, norm)
                found = [_mean(cell, m, Quantity.LOSS_GAP) for m in _UPPER]
                gap = _mean(cell, "apgd-ce", Quantity.LOSS_GAP)
                for method, value in zip(_UPPER, found, strict=True):
                    if gap is not None and gap > 0 and value is not None:
                        ratios[method].append(value / gap)
                certified = [_mean(cell, m, Quantity.ROBUST_ACCURACY) or 0.0 for m in _UPPER]
                lines.append(
                    (
                        name,
                        norm_name(norm),
                        f"{HEADLINE[norm]:g}",
                        f"{statistics.fmean(row['clean_accuracy'] for row in cell):.3f}",
                        f"{_mean(cell, 'apgd-ce', Quantity.ROBUST_ACCURACY) or 0.0:.3f}",
                        f"{max(certified):.3f}",
                        text.number(gap),
                        *(f"{v / gap:.3g}" if gap and v is not None else "-" for v in found),
                    )
                )
            medians = [f"{statistics.median(ratios[m]):.3g}" if ratios[m] else "-" for m in _UPPER]
            lines.append(("median", norm_name(norm), f"{HEADLINE[norm]:g}", "", "", "", "", *medians))
        return text.table(lines, columns)

    def __str__(self) -> str:
        names = ", ".join(sorted(p.name for p in self.out.iterdir()))
        return f"{self.summary()}\n\n{len(self.results)} networks in {self.seconds:.0f} s; {self.out}: {names}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with ``schema_version``, seeds, configuration and versions."""
        return {
            "schema_version": SCHEMA_VERSION,
            "versions": _versions(),
            "deltas": {norm_name(n): list(d) for n, d in DELTAS.items()},
            "target_epsilon": TARGET_EPSILON,
            "seconds": self.seconds,
            "models": [{k: v for k, v in asdict(r).items() if k != "rows"} for r in self.results],
        }


def _at_headline(results: Sequence[CellResult], name: str, norm: float) -> list[dict[str, Any]]:
    return [
        row
        for r in results
        if r.name == name
        for row in r.rows
        if row["norm"] == norm_name(norm) and row["delta"] == HEADLINE[norm]
    ]


def _mean(rows: Iterable[dict[str, Any]], method: str, quantity: Quantity) -> float | None:
    """Mean over seeds of a method's value; None unless every row of it is OK."""
    mine = [r for r in rows if r["method"] == method and r["quantity"] == str(quantity)]
    if not mine or any(r["status"] != "OK" for r in mine):
        return None
    return statistics.fmean(r["value"] for r in mine)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in ("certbound", "numpy", "scipy", "torch", "auto-LiRPA", "pyautoattack", "cvxpy", "mlxtend"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _write(path: Path, content: str) -> None:
    """All or nothing: a killed run leaves the old file or the new one."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(content, encoding="utf-8")
    os.replace(temporary, path)


def _csv(results: Sequence[CellResult]) -> str:
    buffer = io.StringIO()
    head = ("model", "family", "seed", "train_accuracy", "test_accuracy", "compressibility")
    writer: csv.DictWriter[str] | None = None
    for r in results:
        about = dict(
            zip(
                head,
                (r.name, r.family, r.seed, r.train_accuracy, r.test_accuracy, round(r.compressibility, 6)),
                strict=True,
            )
        )
        for row in r.rows:
            if writer is None:
                writer = csv.DictWriter(buffer, [*head, *row], lineterminator="\n")
                writer.writeheader()
            writer.writerow({**about, **row})
    return buffer.getvalue()


def _plots(results: Sequence[CellResult], out: Path) -> None:
    bounds: list[dict[str, Any]] = []
    accuracies: list[dict[str, Any]] = []
    for r in results:
        for row in r.rows:
            if row["status"] != "OK":
                continue
            norm = parse_norm(row["norm"])
            if row["quantity"] == str(Quantity.LOSS_GAP) and row["delta"] == HEADLINE[norm]:
                # the dense network is the least compressed point of either family
                families = ("low rank", "nuclear norm") if r.family == "dense" else (r.family,)
                bounds += [
                    {**row, "model": r.name, "family": f, "norm": norm, "compressibility": r.compressibility}
                    for f in families
                ]
        for norm, deltas in DELTAS.items():
            for delta in deltas:
                here = [
                    w
                    for w in r.rows
                    if w["norm"] == norm_name(norm)
                    and w["delta"] == delta
                    and w["quantity"] == str(Quantity.ROBUST_ACCURACY)
                    and w["status"] == "OK"
                ]
                certified = {w["method"]: w["value"] for w in here if w["method"] in ("CROWN", "IBP", "sdp", "product")}
                attacked = [w["value"] for w in here if w["sense"] == "upper"]
                accuracies.append(
                    {
                        "model": r.name,
                        "norm": norm,
                        "delta": delta,
                        "robust_accuracy": min(attacked) if attacked else None,
                        "certified_accuracy": certified,
                    }
                )
    plot_bounds_against_compressibility(
        [b for b in bounds if b["method"] in _UPPER or b["method"] == "apgd-ce"],
        out / "bounds.png",
        xlabel=f"spectral compressibility 1 - k/r at tail {TARGET_EPSILON:g}",
        ylabel="mean loss gap",
        title="Analytic, certified and empirical loss gaps (MNIST-5k, 784-200-200-10)",
    )
    plot_attribution(
        [
            {"model": r.name, "norm": parse_norm(a["norm"]), "step": step["name"], "log": step["log"]}
            for r in results
            for a in r.attributions
            for step in _by_name(a)
        ],
        out / "attribution.png",
        title="What the printed bound loses against AutoPGD's gap, step by step",
    )
    plot_accuracy_against_delta(
        accuracies, out / "accuracy.png", title="Robust accuracy under AutoPGD and certified accuracy"
    )


def _by_name(attribution: dict[str, Any]) -> list[dict[str, Any]]:
    """Steps added up over layers."""
    logs: dict[str, float] = {}
    for step in attribution["steps"]:
        logs[step["name"]] = logs.get(step["name"], 0.0) + step["log"]
    return [{"name": name, "log": log} for name, log in logs.items()]


def _run_cells(configs: Sequence[CellConfig], *, jobs: int, quiet: bool) -> Iterator[CellResult]:
    """Cells in worker processes, two by default; in the order of ``configs``."""
    try:
        from joblib import Parallel, delayed
    except ImportError as error:
        raise MissingDependencyError("joblib", purpose="the demo", command="pip install 'certbound[demo]'") from error
    work = Parallel(n_jobs=jobs, return_as="generator")(delayed(run_cell)(c) for c in configs)
    iterator: Iterator[Any] = iter(work)  # type: ignore[arg-type]  # joblib types it as list | Generator
    for _ in track(configs, "networks", enabled=not quiet):
        yield next(iterator)


def run_demo(
    *, out: Path, seeds: int = 1, device: str = "cpu", quiet: bool = False, quick: bool = False, jobs: int | None = None
) -> DemoReport:
    """Train FCNs 784-200-200-10 on MNIST-5k (dense, five ranks, three nuclear-norm strengths), attack and bound them.

    Writes ``results.csv`` (every number), ``results.json`` (with bounds, claims, versions), ``summary.txt``,
    ``bounds.png``, ``accuracy.png`` and ``attribution.png`` into ``out``.

    Raises
    ------
    InputError : bad seeds or jobs. MissingDependencyError : an extra is missing. LadderError : a bound is wrong.
    """
    if isinstance(seeds, bool) or not isinstance(seeds, int) or seeds < 1:
        raise InputError("seeds", got=repr(seeds), needed="an int >= 1", fix="pass seeds=1")
    start = time.perf_counter()
    _ = mnist5k()  # a missing package is found here, not in every worker
    configs = cells(seeds, device=device, quick=quick)
    workers = jobs if jobs is not None else max(1, min(len(configs), len(_cpus())))
    results = tuple(_run_cells(configs, jobs=workers, quiet=quiet))
    out.mkdir(parents=True, exist_ok=True)
    report = DemoReport(results, out, time.perf_counter() - start)
    _write(out / "results.csv", _csv(results))
    _write(out / "results.json", json.dumps(report.to_dict(), indent=1, allow_nan=False) + "\n")
    _write(out / "summary.txt", report.summary() + "\n")
    _plots(results, out)
    return report


def _cpus() -> set[int]:
    """Processors this process may use (all of them where the system cannot say)."""
    if sys.platform == "linux":
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


__all__ = ["DemoReport", "run_demo"]
