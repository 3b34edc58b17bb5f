"""The figures: what is drawn, what is refused, and that no global figure state is made."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from certbound.errors import InputError, MissingDependencyError
from certbound.report import plots
from certbound.types import Sense


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved, to look inside them."""
    saved: list[Figure] = []
    save = plots._save

    def spy(figure: Any, path: Any) -> Path:
        saved.append(figure)
        return save(figure, path)

    monkeypatch.setattr(plots, "_save", spy)
    return saved


def _bound_rows() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for family in ("low rank", "nuclear norm"):
        for norm in (2, "inf"):
            for c in (0.8, 0.2, 0.5):
                common = {"model": f"{family} {c}", "family": family, "compressibility": c, "norm": norm}
                rows.append({**common, "method": "product", "value": 100 * (1 + c), "sense": "upper"})
                rows.append({**common, "method": "SDP", "value": 10 * (1 + c), "sense": Sense.UPPER})
                rows.append({**common, "method": "APGD", "value": 1 + c, "sense": Sense.LOWER})
    return rows


def _accuracy_rows() -> list[dict[str, Any]]:
    return [
        {
            "model": model, "norm": norm, "delta": d, "robust_accuracy": 0.9 - d,
            "certified_accuracy": {"CROWN": 0.9 - 2 * d, "IBP": max(0.0, 0.9 - 4 * d), "SDP": None},
        }
        for model in ("dense", "rank 5") for norm in (2.0, math.inf) for d in (0.2, 0.0, 0.1)
    ]  # fmt: skip


def test_bounds_figure_shows_every_value(tmp_path: Path, figures: list[Figure]) -> None:
    path = plots.plot_bounds_against_compressibility(_bound_rows(), tmp_path / "new" / "a.png", xlabel="c")
    image = imread(path)
    assert image.ndim == 3 and image.std() > 0.05  # something is drawn
    axes = figures[0].axes
    assert [ax.get_title() for ax in axes] == [f"{f}, {n}" for n in ("ℓ2", "ℓ∞") for f in ("low rank", "nuclear norm")]
    for ax in axes:
        assert ax.get_yscale() == "log"
        product, sdp, gap = ax.lines
        np.testing.assert_allclose(product.get_xdata(), [0.2, 0.5, 0.8])
        np.testing.assert_allclose(product.get_ydata(), [120, 150, 180])
        np.testing.assert_allclose(sdp.get_ydata(), [12, 15, 18])
        np.testing.assert_allclose(gap.get_ydata(), [1.2, 1.5, 1.8])
        assert gap.get_color() == "black" and gap.get_linestyle() == "None"
    assert [t.get_text() for t in figures[0].legends[0].get_texts()] == ["product", "SDP", "APGD (found by attack)"]


def test_values_a_log_axis_cannot_show_are_counted(tmp_path: Path, figures: list[Figure]) -> None:
    rows = _bound_rows()
    rows[0]["value"], rows[2]["value"] = math.inf, 0.0
    plots.plot_bounds_against_compressibility(rows, tmp_path / "a.png")
    assert figures[0].axes[0].get_title(loc="right").startswith("2 not shown")
    assert figures[0].axes[1].get_title(loc="right") == ""


def test_a_family_without_values_still_draws(tmp_path: Path) -> None:
    rows = [{**row, "value": math.inf} for row in _bound_rows()]
    assert plots.plot_bounds_against_compressibility(rows, tmp_path / "a.png").is_file()


def test_many_methods_keep_distinct_looks() -> None:
    styles = plots._style([f"m{i}" for i in range(20)])
    assert len({tuple(sorted(s.items())) for s in styles.values()}) == 20


def test_accuracy_figure(tmp_path: Path, figures: list[Figure]) -> None:
    plots.plot_accuracy_against_delta(_accuracy_rows(), tmp_path / "b.png", title="t")
    axes = figures[0].axes
    assert [ax.get_title() for ax in axes] == ["dense, ℓ2", "rank 5, ℓ2", "dense, ℓ∞", "rank 5, ℓ∞"]
    crown, ibp, attacked = axes[0].lines
    np.testing.assert_allclose(attacked.get_xdata(), [0.0, 0.1, 0.2])
    np.testing.assert_allclose(attacked.get_ydata(), [0.9, 0.8, 0.7])
    np.testing.assert_allclose(crown.get_ydata(), [0.9, 0.7, 0.5])
    np.testing.assert_allclose(ibp.get_ydata(), [0.9, 0.5, 0.1])
    band = axes[0].collections[0].get_paths()[0].vertices  # between the attack and the best certificate
    assert band[:, 1].max() == pytest.approx(0.9) and band[:, 1].min() == pytest.approx(0.5)
    labels = [t.get_text() for t in figures[0].legends[0].get_texts()]
    assert len(labels) == 4 and labels[-1].startswith("robust accuracy")  # SDP was not computed: no entry


def test_accuracy_rows_may_be_one_per_method(tmp_path: Path, figures: list[Figure]) -> None:
    rows = [
        {"model": "m", "norm": 2, "delta": d, "robust_accuracy": 0.5, "method": m, "certified_accuracy": 0.1}
        for d in (0.0, 1.0) for m in ("CROWN", "IBP")
    ]  # fmt: skip
    plots.plot_accuracy_against_delta(rows, tmp_path / "b.png")
    assert len(figures[0].axes[0].lines) == 3


def test_bad_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no rows"):
        plots.plot_bounds_against_compressibility([], tmp_path / "a.png")
    with pytest.raises(InputError, match=r"rows\[0\].*sense"):
        plots.plot_bounds_against_compressibility([{"model": "m"}], tmp_path / "a.png")
    row = {"model": "m", "norm": 2, "delta": 0.0, "robust_accuracy": 93.0, "certified_accuracy": {}}
    with pytest.raises(InputError, match="fraction"):
        plots.plot_accuracy_against_delta([row], tmp_path / "b.png")
    with pytest.raises(InputError, match="without a method"):
        plots.plot_accuracy_against_delta([{**row, "certified_accuracy": 0.5}], tmp_path / "b.png")
    assert list(tmp_path.iterdir()) == []


def test_no_global_state(tmp_path: Path) -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    pyplot_before = "matplotlib.pyplot" in sys.modules
    plots.plot_accuracy_against_delta(_accuracy_rows(), tmp_path / "b.png")
    assert dict(mpl.rcParams) == before
    assert ("matplotlib.pyplot" in sys.modules) == pyplot_before


def test_missing_matplotlib_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError, match=r"certbound\[report\]"):
        plots.plot_accuracy_against_delta(_accuracy_rows(), tmp_path / "b.png")
