"""RESULTS.md: computed from the packed rows and from nothing else; the committed page is that of the committed rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import experiments_rows as toy
import pytest
from experiments_rows import LOW

from certbound.errors import InputError
from experiments import plots, results, store
from experiments.rules import Condition
from experiments.study import MODULES, Row, Study

STUDIES = {
    "e01": toy.study("e01", pictures=("radius", "bounds_2", "accuracy")),
    "e03": toy.study("e03", conditions=[toy.RISES, toy.NEVER]),
    "e04": toy.study("e04", conditions=[toy.UNDECIDED]),
}
SEEDS = 3
"""Few: the bootstrap takes all resamples of the seeds."""
CHANGES = {(LOW, 16.0, s): {"ra_inf": 0.65 + v} for s, v in enumerate((0.02, -0.02, 0.01))}


def of(name: str) -> Study:
    return STUDIES.get(name) or toy.study(name)


@pytest.fixture(scope="module")
def rows() -> dict[str, list[Row]]:
    return {name: toy.rows(study, seeds=SEEDS, changes=CHANGES) for name, study in STUDIES.items()}


@pytest.fixture(scope="module")
def page(rows: dict[str, list[Row]]) -> str:
    return results.render(rows, of=of)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of everything but pictures, which take seconds."""
    monkeypatch.setattr(plots, "pictures", lambda study, rows, names: {names[0]: b"not drawn"})


@pytest.fixture
def source(rows: dict[str, list[Row]], tmp_path: Path) -> Path:
    for row in (row for mine in rows.values() for row in mine):
        store.save_row(tmp_path / "out", row)
    return tmp_path / "out"


def line_of(text: str, start: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(f"| {start}"))
    return [cell.strip() for cell in line.strip("|").split("|")]


# ---------------------------------------------------------------- the page


def test_summary_names_verdict_estimate_and_seeds(page: str) -> None:
    # e03's rule asks for a rise of 0.02 and finds a fall; Student's t with 2 degrees of freedom is 4.3027
    values = [0.3875 + n - 0.65 - v for n, v in ((0.010, 0.02), (-0.005, -0.02), (0.003, 0.01))]
    mean = sum(values) / 3
    half = 4.302652729696142 * math.sqrt(sum((v - mean) ** 2 for v in values) / 2 / 3)
    interval = f"{mean:.3g} [{mean - half:.3g}, {mean + half:.3g}]"
    assert line_of(page, "[e03]")[2:] == ["**not supported**", f"the reverse, ℓ∞: {interval}, needed > 0.02", "3"]
    assert line_of(page, "[e04]")[2:] == ["**inconclusive**", f"by 0.27, ℓ∞: {interval}, needed < -0.27", "3"]
    assert line_of(page, "[e01]")[2] == "**supported**"


def test_what_held_what_did_not_what_stayed_open(page: str) -> None:
    assert "**Held** (1):\n\n- e01, Toy.\n" in page
    assert "**Did not hold** (1):\n\n- e03, Toy. Refuted: the reverse, ℓ∞.\n" in page
    assert "**Stayed open** (1):\n\n- e04, Toy. Open: by 0.27, ℓ∞.\n" in page
    assert f"No rows of: {', '.join(m for m in MODULES if m not in STUDIES)}." in page
    assert f"3 of {len(MODULES)} studies, 3 seeds, 54 models (18 different ones; 0.9 minutes of one core)." in page


def test_controls_beside_a_supported_claim() -> None:
    against = Condition("the reverse in ℓ2", replace(toy.NEVER.statistic, measure="ra_2"), ">", 0.02)
    study = toy.study("e01")
    study = replace(study, rule=replace(study.rule, controls=(against,)))
    page = results.render({"e01": toy.rows(study, seeds=SEEDS)}, of=lambda name: study)
    assert "- e01, Toy. Controls that were refuted: the reverse in ℓ2.\n" in page
    assert "Controls, which decide nothing. Refuted: the reverse in ℓ2." in page


def test_deciding_condition_of_a_supported_claim_is_the_narrowest() -> None:
    # the trend 1 [1, 1] has no half-width; the change −0.263 ± 0.034 passes −0.02 by more of them than −0.2
    narrow = replace(toy.UNDECIDED, name="by 0.2", threshold=-0.2)
    study = toy.study("e01", conditions=[toy.RISES, toy.FALLS, narrow])
    verdict = study.rule.verdict(toy.rows(study, seeds=SEEDS, changes=CHANGES))
    assert verdict.word == "supported" and results.deciding(verdict).condition.name == "by 0.2"


def test_tracking_over_all_studies(page: str) -> None:
    # in every study and norm the printed bound falls where the gap rises, all others rise with it
    assert "most often: in 6 of 6 pairs of study and norm" in page
    assert line_of(page, "sharp |")[1:] == ["6 of 6", "6 of 6", "0 of 6"]
    assert line_of(page, "printed |")[1:] == ["0 of 6", "0 of 6", "6 of 6"]
    assert "higher correlation than every bound in 0 of 6" in page


def test_a_baseline_that_beats_every_bound_is_counted() -> None:
    study = toy.study("e01")
    made = []
    for row in toy.rows(study, seeds=SEEDS):
        kept = {m: v for m, v in row.measures.items() if not m.startswith("bound") or m.endswith("/printed")}
        made.append(replace(row, measures=kept))
    page = results.render({"e01": made}, of=lambda name: study)
    assert "**No bound** goes with the gap within seeds in any study." in page
    assert "higher correlation than every bound in 2 of 2" in page
    assert "No bound tracks the gap in: e01 ℓ∞, e01 ℓ2." in page


def test_sections_have_tables_notes_and_links(page: str) -> None:
    section = page.split("## e03: Toy\n", 1)[1].split("\n## ", 1)[0]
    assert "[report](results/cpu/e03.md), [rows](results/cpu/e03.jsonl)" in section and "Made up." in section
    assert line_of(section, "the reverse, ℓ∞")[-1] == "refuted"
    assert line_of(section, f"{LOW} | rank 16")[2] == "3"
    assert "tracks the gap best" in section


def test_cells_and_their_seconds_are_counted_once(page: str, rows: dict[str, list[Row]]) -> None:
    """6 points, 3 seeds of 2, 3 and 4 s; the three toy studies have the same configurations."""
    table = page.split("## Cells and time\n", 1)[1].split("\n## ", 1)[0]
    assert line_of(table, "e01") == ["e01", "18", "3", "18", "0.9"]
    assert line_of(table, "e03") == ["e03", "18", "3", "0", "0"]


def test_attack_checks_that_failed_are_named(page: str, rows: dict[str, list[Row]]) -> None:
    section = page.split("## e03: Toy\n", 1)[1].split("\n## ", 1)[0]
    failed = next(line for line in section.splitlines() if line.startswith("Attack checks that failed: "))
    # RA at the largest of three radii, rank 16, seed 0: 0.65 + 0.02 + 0.1 less two drops of 0.15
    assert "largest radius" in failed and "ℓ2 (0.46, allowed 0.05)" in failed
    assert "doubl" not in failed
    broken = {"ra_inf@0.1": 0.0, "ra_2@0.1": 0.0}
    passed = [replace(row, measures={**row.measures, **broken}) for row in rows["e03"]]
    assert "Attack checks that failed" not in results.render({"e03": passed}, of=of)


def test_limits_name_the_networks(rows: dict[str, list[Row]]) -> None:
    cnn = {**rows["e01"][0].config, "data": "mnist5k", "architecture": {"kind": "cnn", "width": 8}}
    mixed = [replace(r, config=cnn) if r.arm == LOW else r for r in rows["e01"]]
    dense = "fully connected ReLU networks with hidden layers 64-64"
    for made, said in (
        (rows["e01"], f"Data: digits; {dense}.\n"),
        (mixed, f"Data: digits, mnist5k; {dense}; small architectures: cnn.\n"),
        ([replace(r, config=cnn) for r in rows["e01"]], "Data: mnist5k; small architectures: cnn.\n"),
    ):
        assert said in results.render({"e01": made}, of=of)


def test_limits_say_what_is_missing(rows: dict[str, list[Row]]) -> None:
    page = results.render({"e01": rows["e01"][1:]}, of=of)
    limits = page.split("## Limits", 1)[1].split("\n## ", 1)[0]
    assert "- e01: cells without a row: 1.\n" in limits
    assert "Data: digits; fully connected ReLU networks with hidden layers 64-64." in limits


def test_any_changed_measure_changes_the_page(rows: dict[str, list[Row]], page: str) -> None:
    assert results.render(rows, of=of) == page
    for measure, value in (("sa", 0.5), ("bound_inf/sharp", 1.0), ("ra_inf", 0.0), ("attack_2", 0.1)):
        first, *others = rows["e03"]
        changed = replace(first, measures={**first.measures, measure: value})
        assert results.render({**rows, "e03": [changed, *others]}, of=of) != page, measure


def test_order_of_rows_and_studies_does_not_matter(rows: dict[str, list[Row]], page: str) -> None:
    assert results.render({name: rows[name][::-1] for name in reversed(rows)}, of=of) == page


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: {}, "no rows"),
        (lambda rows: {"e01": []}, "no rows"),
        (lambda rows: {"e01": [replace(rows["e01"][0], rule="0" * 64)]}, "rule"),
        (lambda rows: {"e01": rows["e03"]}, "rows of e03"),
        (lambda rows: {"e01": [replace(r, scale="paper") for r in rows["e01"]]}, "the scale paper"),
    ],
)
def test_refused_rows(rows: dict[str, list[Row]], change: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        results.render(change(rows), of=of)


def test_an_unknown_study_is_refused(rows: dict[str, list[Row]]) -> None:
    with pytest.raises(InputError, match="e99"):
        results.render({"e99": rows["e01"]})


# ---------------------------------------------------------------- files


@pytest.mark.usefixtures("undrawn")
def test_written_page_is_that_of_the_packed_rows(source: Path, tmp_path: Path, page: str) -> None:
    into = tmp_path / "into"
    target = results.write_results(source, into, of=of)
    assert target == into / "RESULTS.md" and target.read_text() == page
    packed = results.packed(into)
    assert list(packed) == ["e01", "e03", "e04"] and results.render(packed, of=of) == page
    # a number that is changed in the packed rows does not give the page any more
    path = into / "results" / "cpu" / "e04.jsonl"
    first = packed["e04"][0]
    path.write_text(store.pack([replace(first, measures={**first.measures, "sa": 0.123}), *packed["e04"][1:]]))
    assert results.render(results.packed(into), of=of) != page


def test_reports_and_two_small_pictures_of_each_study(source: Path, tmp_path: Path) -> None:
    into = tmp_path / "into"
    results.write_results(source, into, of=of)
    folder = into / "results" / "cpu"
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        ["figures", *(f"{name}.{kind}" for name in STUDIES for kind in ("jsonl", "md"))]
    )
    figures = sorted(p.name for p in (folder / "figures").iterdir())
    # of e01's three the first two; the others have the default ones
    assert figures == [
        "e01-bounds_2.png", "e01-radius.png", "e03-accuracy.png", "e03-tracking_inf.png", "e04-accuracy.png",
        "e04-tracking_inf.png",
    ]  # fmt: skip
    assert all(p.stat().st_size < 60_000 for p in (folder / "figures").iterdir())
    text = (folder / "e03.md").read_text()
    assert "![accuracy, clean and under attack](figures/e03-accuracy.png)" in text and "# e03: Toy" in text


@pytest.mark.usefixtures("undrawn")
def test_written_twice_the_same(source: Path, tmp_path: Path) -> None:
    into = tmp_path / "into"
    results.write_results(source, into, of=of)
    before = {p: p.read_bytes() for p in sorted(into.rglob("*")) if p.is_file()}
    results.write_results(source, into, of=of)
    assert {p: p.read_bytes() for p in sorted(into.rglob("*")) if p.is_file()} == before


@pytest.mark.usefixtures("undrawn")
def test_a_study_without_stored_rows_keeps_what_was_packed(
    source: Path, tmp_path: Path, rows: dict[str, list[Row]], page: str
) -> None:
    into = tmp_path / "into"
    results.write_results(source, into, of=of)
    changed = [replace(r, measures={**r.measures, "sa": 0.5}) for r in rows["e04"]]
    for row in changed:
        store.save_row(tmp_path / "later", row)
    text = results.write_results(tmp_path / "later", into, of=of).read_text()
    assert text == results.render({**rows, "e04": changed}, of=of) != page


@pytest.mark.usefixtures("undrawn")
def test_rows_of_another_rule_are_not_packed(source: Path, tmp_path: Path, rows: dict[str, list[Row]]) -> None:
    into = tmp_path / "into"
    results.write_results(source, into, of=of)
    before = {p: p.read_bytes() for p in into.rglob("*") if p.is_file()}
    store.save_row(source, replace(rows["e04"][0], rule="0" * 64))
    with pytest.raises(InputError, match="rule"):
        results.write_results(source, into, of=of)
    assert {p: p.read_bytes() for p in into.rglob("*") if p.is_file()} == before


def test_nothing_stored_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no rows"):
        results.write_results(tmp_path / "nothing", tmp_path / "into", of=of)
    assert not (tmp_path / "into" / "RESULTS.md").exists()


def test_another_scale_has_a_page_of_its_own() -> None:
    assert results.results_name("cpu") == "RESULTS.md" and results.results_name("paper") == "RESULTS-paper.md"


def test_pictures_that_are_kept() -> None:
    assert results.chosen_pictures(toy.study(norm="2")) == ("accuracy.png", "tracking_2.png")
    assert results.chosen_pictures(toy.study(pictures=("pca", "energy", "radius"))) == ("pca.png", "energy.png")


# ---------------------------------------------------------------- what is committed


COMMITTED = Path(__file__).resolve().parents[1] / "experiments"


@pytest.mark.slow
def test_committed_page_is_that_of_the_committed_rows() -> None:
    rows: dict[str, Sequence[Row]] = dict(results.packed(COMMITTED))
    assert (COMMITTED / "RESULTS.md").read_text(encoding="utf-8") == results.render(rows)
    name = next(iter(rows))
    first = rows[name][0]
    changed = replace(first, measures={**first.measures, "sa": 0.1234})
    other = results.render({**rows, name: [changed, *rows[name][1:]]})
    assert other != (COMMITTED / "RESULTS.md").read_text(encoding="utf-8")
