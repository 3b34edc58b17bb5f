"""The report of a study, on rows that are made up: numbers by hand, verdicts, what is missing, refusals, pictures."""

from __future__ import annotations

import csv
import io
import math
import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import experiments_rows as toy
import numpy as np
import pytest
from experiments_rows import LOW, SHORT
from PIL import Image
from scipy.stats import spearmanr

from certbound.errors import InputError
from experiments import drawing, plots, report, store, tables, tracking
from experiments.report import judged, report_text
from experiments.rules import At, Condition, MatchedChange, Mean
from experiments.statistics import Estimate
from experiments.study import MODULES, Point, Row, Study, find

T4 = 2.7764451051977934  # Student's t, 97.5 %, 4 degrees of freedom (any table)


@pytest.fixture(scope="module")
def study() -> Study:
    return toy.study()


@pytest.fixture(scope="module")
def rows(study: Study) -> list[Row]:
    return toy.rows(study)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of everything but pictures, which take seconds."""
    monkeypatch.setattr(plots, "pictures", lambda study, rows: {"accuracy.png": b"not drawn"})


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and t interval of five numbers, by the formula."""
    assert len(values) == 5
    mean = sum(values) / 5
    half = T4 * math.sqrt(sum((v - mean) ** 2 for v in values) / 4) / math.sqrt(5)
    return mean, mean - half, mean + half


def cells(text: str, *start: str) -> list[str]:
    """The cells of the first line of a markdown table that begins with these."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {' | '.join(start)} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def section(text: str, head: str) -> str:
    return text.split(f"## {head}\n", 1)[1].split("\n## ", 1)[0]


def read_csv(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


# ---------------------------------------------------------------- numbers


def test_main_table_by_hand(study: Study, rows: list[Row]) -> None:
    # rank 16: SA is 0.95 + (0.010, −0.005, 0.003, −0.012, 0.004): mean 0.95, s² = 2.94e−4/4, half-width 0.010645
    line = cells(section(report.report_text(study, rows), "Models"), LOW, "rank 16")
    assert line[2] == "5"
    assert line[3] == "0.95 [0.939, 0.961]"
    assert line[4] == "0.65 [0.639, 0.661]"


def test_csv_has_every_measure_in_full_precision(study: Study, rows: list[Row]) -> None:
    found = read_csv(report.csv_files(study, rows)["table"])
    assert len(found) == sum(len(toy.measured(0.5, 0)) for _ in study.points("cpu"))
    for line in found:
        mine = [r for r in rows if r.arm == line["arm"] and r.level == float(line["level"])]
        expected = interval([r.number(line["measure"]) for r in mine])
        assert [float(line[k]) for k in ("mean", "low", "high")] == pytest.approx(expected, rel=1e-12)
        assert line["n"] == "5"
        assert line["level of"] == ("epochs" if line["arm"] == SHORT else "rank")


def test_bounds_beside_the_gap(study: Study, rows: list[Row]) -> None:
    # rank 16: the gap is 0.8 − 5 noise, mean 0.8; the sharp bound is 20 times the gap, the printed one 400 / gap
    text = section(report.report_text(study, rows), "Bounds beside the gap")
    assert "at radius 0.05" in text and "at radius 0.5," in text
    line = cells(text, LOW, "rank 16")
    assert line[3] == "0.8 [0.747, 0.853]"
    names = cells(text, "arm", "level")
    assert line[names.index("sharp")] == "16 (×20)"
    gaps = [0.8 - 5 * v for v in (0.010, -0.005, 0.003, -0.012, 0.004)]
    printed = sum(400 / g for g in gaps) / 5
    assert line[names.index("printed")] == f"{printed:.3g} (×{printed / 0.8:.3g})"
    found = {(b["quantity"], b["norm"], b["method"]): b for b in read_csv(report.csv_files(study, rows)["bounds"])
             if b["arm"] == LOW and b["level"] == "16.0"}  # fmt: skip
    assert float(found["bound", "2", "printed"]["mean"]) == pytest.approx(printed)
    assert float(found["bound", "2", "printed"]["bound / gap"]) == pytest.approx(printed / 0.8)
    assert found["certified", "inf", "CROWN"]["bound / gap"] == ""
    assert float(found["lipschitz", "inf", "sdp"]["mean"]) == 30.0


def test_certified_accuracy_only_of_methods_that_certify(study: Study, rows: list[Row]) -> None:
    text = section(report.report_text(study, rows), "Bounds beside the gap")
    assert cells(text, LOW, "rank 16", "0.65 [0.639, 0.661]")[3:] == ["0.1 [0.1, 0.1]"]  # CROWN's column, no other
    none = [replace(r, measures={m: 0.0 if m.startswith("certified") else v for m, v in r.measures.items()})
            for r in rows]  # fmt: skip
    assert "No method certifies any sample in ℓ∞" in report.report_text(study, none)


def test_correlations_are_those_of_scipy(study: Study, rows: list[Row]) -> None:
    found = {(c["norm"], c["of"], c["kind"]): c for c in read_csv(report.csv_files(study, rows)["correlations"])}
    each = [
        spearmanr([r.number("gradient_inf") for r in rows if r.seed == s],
                  [r.number("attack_inf") for r in rows if r.seed == s]).statistic for s in range(5)
    ]  # fmt: skip
    within = found["inf", "gradient_inf", "within"]
    assert [float(within[k]) for k in ("rho", "low", "high")] == pytest.approx(interval(each), rel=1e-9)
    pooled = spearmanr([r.number("gradient_inf") for r in rows], [r.number("attack_inf") for r in rows]).statistic
    assert float(found["inf", "gradient_inf", "pooled"]["rho"]) == pytest.approx(pooled)
    assert float(found["2", "bound_2/sharp", "within"]["rho"]) == 1.0
    assert float(found["2", "bound_2/printed", "within"]["rho"]) == -1.0


def test_matched_comparison(study: Study) -> None:
    # one seed would do, but the means are over five; the control's RA is a line in SA: 0.3 + 0.35 (SA − 0.8) / 0.15
    made = []
    for row in toy.rows(study):
        at = math.log2(row.level) / 4 if row.arm == LOW else row.level / 10 - 0.1
        sa = 0.8 + 0.15 * at
        ra = 0.3 + 0.35 * at - (0.07 if row.arm == LOW else 0.0)
        made.append(replace(row, measures={"sa": sa, "ra_inf": ra}))
    text = section(report.report_text(study, made), "At equal accuracy and loss")
    assert cells(text, LOW, "rank 4")[2] == "-0.07 [-0.07, -0.07]"
    assert cells(text, LOW, "rank 16")[2] == "-"  # SA 0.95 is beyond the control's 0.935: nothing to compare with
    assert cells(text, LOW, "rank 4")[3] == "-"  # no loss was measured


def test_control_arms_are_those_of_the_rule_too() -> None:
    named = Condition("c", MatchedChange("ra_inf", "sa", At(LOW, "first"), "scaled"), "<", 0.0)
    assert report.control_arms(toy.study(conditions=[named])) == [SHORT, "scaled"]


def test_only_networks_of_one_kind_on_one_data_set_are_compared_at_equal_accuracy(study: Study) -> None:
    """A CNN of equal accuracy on other data is no control of a dense network."""
    rows = toy.rows(study)
    cnn = {**rows[0].config, "data": "mnist5k", "architecture": {"kind": "cnn"}}
    foreign = [replace(row, arm="CNN", config=cnn) for row in rows if row.arm == SHORT]
    assert report.comparable([*rows, *foreign], SHORT) == rows
    assert report.comparable([*rows, *foreign], "CNN") == foreign
    other_kind = [replace(row, arm="VGG", config={**cnn, "architecture": {"kind": "vgg"}}) for row in foreign]
    assert report.comparable([*foreign, *other_kind], "VGG") == other_kind


def test_attack_checks_are_shown(study: Study, rows: list[Row]) -> None:
    text = section(report.report_text(study, rows), "Checks of the attack")
    assert cells(text, "ℓ∞", "Square is not stronger than APGD")[2:4] == ["yes", "-0.01"]
    assert cells(text, "ℓ∞", "transferred points are not stronger than APGD")[2] == "not measured"
    assert cells(text, "ℓ∞", "RA at the largest radius is near 0")[2] == "**no**"


# ---------------------------------------------------------------- verdicts


@pytest.mark.parametrize(
    ("condition", "word", "outcome"),
    [
        (toy.FALLS, "supported", "met"),
        (toy.NEVER, "not supported", "refuted"),
        (toy.UNDECIDED, "inconclusive", "open"),
    ],
)
@pytest.mark.usefixtures("undrawn")
def test_three_verdicts(condition: Condition, word: str, outcome: str, tmp_path: Path) -> None:
    study = toy.study(conditions=[toy.RISES, condition])
    # the change from rank 2 to rank 16 is −0.2625 in every seed, but for ±0.02 that leave the third condition open
    changes = {(LOW, 16.0, s): {"ra_inf": 0.65 + v} for s, v in enumerate((0.02, -0.02, 0.01, 0.0, -0.01))}
    rows = toy.rows(study, changes=changes)
    text = report.report_text(study, rows)
    assert text.splitlines()[2].startswith(f"**{word}**")
    assert cells(section(text, f"Verdict: {word}"), condition.name)[-1] == outcome
    assert report.write_report(study, rows, tmp_path).verdict == word
    assert "Controls; they decide nothing." in text


def test_estimate_of_a_condition_by_hand(study: Study) -> None:
    # RA at rank 2 is 0.3875 + (0.010, −0.005, 0.003, −0.012, 0.004): the change is −0.313 ± 0.010645
    rows = toy.rows(study, changes={(LOW, 16.0, s): {"ra_inf": 0.7005} for s in range(5)})
    line = cells(report.report_text(study, rows), "lowest against full, ℓ∞")
    assert line[2:] == ["< -0.02", "-0.313 [-0.324, -0.302]", "5", "met"]


# ---------------------------------------------------------------- what is missing


def test_none_and_infinite_numbers_are_printed_as_such(study: Study) -> None:
    changes = {
        (LOW, 2.0, 0): {"bound_inf/sharp": None, "sa": None},
        (LOW, 4.0, 1): {"bound_inf/sharp": math.inf},
        **{(LOW, 8.0, s): {"bound_inf/sharp": None} for s in range(5)},
        **{(LOW, 16.0, s): {"attack_inf": 0.0} for s in range(5)},
    }
    rows = toy.rows(study, changes=changes)
    text = report.report_text(study, rows)
    models = section(text, "Models")
    assert cells(models, LOW, "rank 2")[6].endswith("] (n = 4)")
    assert cells(models, LOW, "rank 4")[6] == "∞"
    assert cells(models, LOW, "rank 8")[6] == "-"
    bounds = section(text, "Bounds beside the gap")
    sharp = cells(bounds, "arm", "level").index("sharp")
    assert cells(bounds, LOW, "rank 2")[sharp].endswith("(n = 4)")
    assert cells(bounds, LOW, "rank 4")[sharp] == "∞"
    assert cells(bounds, LOW, "rank 16")[sharp] == "16"  # no gap, no ratio
    assert "nan" not in text.lower().replace("dominan", "")
    names = {"accuracy.png", "bounds_inf.png", "tracking_inf.png"}
    assert set(plots.pictures(study, tables.checked(study, rows), names)) == names


def test_no_measures_at_all(study: Study, tmp_path: Path) -> None:
    rows = [replace(r, measures={}) for r in toy.rows(study)]
    made = report.write_report(study, rows, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert made.verdict == "inconclusive"
    assert "No bounds were computed." in text and "Nothing was measured that could track the gap." in text
    assert not (tmp_path / "tracking_inf.png").exists()


@pytest.mark.usefixtures("undrawn")
def test_one_seed_has_no_interval_and_says_so(study: Study, tmp_path: Path) -> None:
    rows = toy.rows(study, seeds=1)
    made = report.write_report(study, rows, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert made.verdict == "inconclusive"
    assert cells(section(text, "Models"), LOW, "rank 16")[2:4] == ["1", "0.96 (n = 1)"]
    assert cells(text, "lowest against full, ℓ∞")[4:] == ["1", "open"]
    assert "nothing is said about tracking: there is one seed" in text
    assert "nan" not in text.lower().replace("dominan", "")


def test_a_run_cut_off_is_reported_as_incomplete(study: Study, rows: list[Row]) -> None:
    assert report.completeness(study, rows) == "every cell has one"
    assert report.completeness(study, rows[1:]) == "cells without a row: 1"
    stale = [replace(rows[0], key="other"), *rows[1:]]
    assert report.completeness(study, stale) == "cells without a row: 1; rows of no cell that the study has now: 1"
    smoke = toy.rows(study, scale="cpu-smoke")
    assert report.completeness(study, smoke) == "every cell has one"


def test_provenance(study: Study, rows: list[Row]) -> None:
    changed = [replace(r, environment={**r.environment, "revision": "def", "dirty": True}) if r.seed == 4 else r
               for r in rows]  # fmt: skip
    text = section(report.report_text(study, changed), "Where the numbers come from")
    assert "- seconds: 4 a cell, 120 in all" in text  # 2, 3, 4, 5, 6 seconds; 30 cells
    assert f"- rule: `{study.rule.hash}`" in text
    assert "- revision: abc123 (24 rows), def (6 rows)" in text
    assert "- uncommitted changes: when 6 of the 30 rows were computed" in text
    assert "- seeds: 0, 1, 2, 3, 4" in text


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: [], "no rows"),
        (lambda rows: [replace(rows[0], rule="0" * 64), *rows[1:]], "rule"),
        (lambda rows: [replace(rows[0], study="e03"), *rows[1:]], "rows of e03"),
        (lambda rows: [replace(rows[0], scale="paper"), *rows[1:]], "scales"),
        (lambda rows: [*rows, rows[0]], "two rows"),
    ],
)
def test_refused_rows(study: Study, rows: list[Row], change: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        report.write_report(study, change(rows), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_rows_of_another_rule_are_refused_by_the_text_too(study: Study, rows: list[Row]) -> None:
    other = toy.study(conditions=[toy.NEVER])
    for use in (report.report_text, tables.checked):
        with pytest.raises(InputError, match=study.rule.hash[:10]):
            use(other, rows)


# ---------------------------------------------------------------- files


def test_same_rows_give_the_same_bytes_in_any_order(study: Study, tmp_path: Path) -> None:
    rows = toy.rows(study, seeds=2, details=True)
    shuffled = random.Random(0).sample(rows, len(rows))
    first, second = (report.write_report(study, r, tmp_path / n) for n, r in (("a", rows), ("b", shuffled)))
    names = sorted(p.name for p in first.files)
    assert names == sorted(p.name for p in second.files) == sorted(p.name for p in (tmp_path / "a").iterdir())
    assert names == sorted([
        "report.md", "table.csv", "bounds.csv", "correlations.csv", "accuracy.png", "radius.png", "bounds_inf.png",
        "bounds_2.png", "tracking_inf.png", "tracking_2.png", "energy.png", "pca.png",
    ])  # fmt: skip
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    text = (tmp_path / "a" / "report.md").read_text()
    assert all(f"({name})" in text for name in names if name.endswith(".png"))


def test_a_changed_number_changes_text_tables_and_pictures(study: Study, rows: list[Row]) -> None:
    changed = toy.rows(study, changes={(LOW, 8.0, 2): {"ra_inf": 0.1, "bound_inf/sharp": 1.0}})
    before, after = (tables.checked(study, r) for r in (rows, changed))
    assert report.report_text(study, before) != report.report_text(study, after)
    old, new = (report.csv_files(study, r) for r in (before, after))
    assert all(old[name] != new[name] for name in ("table", "bounds", "correlations"))
    names = {"accuracy.png", "bounds_inf.png", "tracking_inf.png", "tracking_2.png"}
    old, new = plots.pictures(study, before, names), plots.pictures(study, after, names)
    assert {n for n in names if old[n] != new[n]} == names - {"tracking_2.png"}


@pytest.mark.usefixtures("undrawn")
def test_files_are_written_whole_or_not_at_all(study: Study, rows: list[Row], tmp_path: Path, monkeypatch: Any) -> None:
    report.write_report(study, rows, tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    replace_file = os.replace

    def killed(source: Any, target: Any) -> None:
        if Path(target).name == "bounds.csv":
            raise KeyboardInterrupt
        replace_file(source, target)

    monkeypatch.setattr(os, "replace", killed)
    changed = toy.rows(study, changes={(LOW, 8.0, 2): {"ra_inf": 0.1}})
    with pytest.raises(KeyboardInterrupt):
        report.write_report(study, changed, tmp_path)
    after = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert set(after) == set(before)  # no temporary file is left
    assert {n for n in after if after[n] != before[n]} == {"table.csv"}


def test_rows_that_were_stored_give_the_same_report(study: Study, tmp_path: Path) -> None:
    rows = toy.rows(study, details=True)
    assert report.report_text(study, store.unpack(store.pack(rows))) == report.report_text(study, rows)


# ---------------------------------------------------------------- which bound tracks the gap


def correlated(study: Study, bounds: Mapping[str, Any], gradient: Any = lambda gap, seed: 1.0) -> list[Row]:
    """Rows whose bounds are functions of the gap and the seed."""
    made = []
    for row in toy.rows(study):
        gap = row.number("attack_inf")
        values = {f"bound_inf/{m}": f(gap, row.seed) for m, f in bounds.items()}
        made.append(replace(row, measures={"attack_inf": gap, "sa": row.number("sa"),
                                           "gradient_inf": gradient(gap, row.seed), **values}))  # fmt: skip
    return made


def test_best_tracker_and_those_inside_its_interval(study: Study) -> None:
    # seed by seed: ρ = 1 for sharp but in one seed; sdp the same; IBP always −1; printed no relation
    swing = [1.0, 1.0, 1.0, 1.0, -1.0]
    found = tracking.trackers(correlated(study, {
        "IBP": lambda g, s: -g, "sharp": lambda g, s: g, "sdp": lambda g, s: math.exp(g),
        "printed": lambda g, s: g * swing[s], "cover": lambda g, s: math.floor(2 * g),  # tracks, but has ties
    }, gradient=lambda g, s: g), "inf")  # fmt: skip
    assert [t.name for t in found] == ["printed", "sharp", "cover", "sdp", "IBP", "gradient_inf"]
    assert [t.name for t in tracking.best(found)] == ["sharp", "sdp", "gradient_inf"]
    text = tracking.sentence(found, "inf")
    # bounds that order the models alike are named together
    assert "**sharp**, **sdp** tracks the gap best: ρ = 1 [1, 1] within seeds" in text
    assert "Inside its" not in text
    assert "Falling where the gap rises: IBP." in text
    assert "Best baseline: gradient_inf, ρ = 1 [1, 1]" in text
    assert found[2].tracks and found[2].within.high < 1
    printed = found[0].within
    assert printed.value == pytest.approx(0.6) and printed.low < 0 and not found[0].tracks


def test_bounds_inside_the_interval_of_the_best(study: Study) -> None:
    found = tracking.trackers(correlated(study, {
        "sharp": lambda g, s: g if s > 0 else math.floor(2 * g),
        "sdp": lambda g, s: g if s > 1 else math.floor(2 * g),
    }), "inf")  # fmt: skip
    text = tracking.sentence(found, "inf")
    assert "**sharp** tracks the gap best" in text
    assert "Inside its within-seed interval: sdp." in text


def test_margin_normalised_gaps_have_their_own_sentence(study: Study) -> None:
    """The bound goes with the raw gap and against the normalised one."""
    made = correlated(study, {"sharp": lambda g, s: g, "printed": lambda g, s: -g})
    rows = [replace(r, measures={**r.measures, "gap_normalised_inf": -r.number("attack_inf")}) for r in made]
    text = tracking.normalised_text(rows, "inf")
    assert "**printed** tracks the margin-normalised gap best" in text
    assert "Falling where the gap rises: sharp" in text
    assert text.strip() in tracking.tracking_text(rows)
    assert tracking.normalised_text(made, "inf") == ""
    swapped = [replace(r, measures={**r.measures, "gap_normalised_inf": r.number("attack_inf")}) for r in made]
    assert "The printed bound: ρ = -1 [-1, -1] within seeds." in tracking.normalised_text(swapped, "inf")


def test_no_bound_tracks(study: Study) -> None:
    found = tracking.trackers(correlated(study, {"sharp": lambda g, s: -g}), "inf")
    text = tracking.sentence(found, "inf")
    assert "**no bound tracks the gap**" in text and "No baseline tracks it." in text


def test_gap_of_all_samples_where_no_bounds_were_computed(study: Study, rows: list[Row]) -> None:
    plain = [replace(r, measures={m: v for m, v in r.measures.items() if not m.startswith(("bound", "attack"))})
             for r in rows]  # fmt: skip
    assert tracking.gap_measure(rows, "inf") == "attack_inf"
    assert tracking.gap_measure(plain, "inf") == "gap_inf"
    assert "In ℓ∞ no bounds were computed." in report.report_text(study, plain)


# ---------------------------------------------------------------- levels, numbers, markdown


def test_level_names_of_the_real_studies() -> None:
    for name, expected in {
        "e04": {LOW: "rank", "narrow dense": "rank", SHORT: "epochs", "dense, unstructured pruning": "share removed"},
        "e07": {"low rank": "rank", "weight decay": "weight decay", "nuclear norm": "λ"},
        "e09": {"low rank": "rank", "‖W‖_F times a factor": "factor"},
        "e12": {"group lasso and β-control": "weight", "β-control alone": "weight"},
    }.items():  # fmt: skip
        study = find(name)
        rows = [Row(name, "cpu", p.arm, p.level, 0, "", "", {}, {}, {}, {}, 0.0, "") for p in study.points("cpu")]
        names = tables.level_names(study, rows)
        assert {arm: names[arm] for arm in expected} == expected


def test_level_is_the_weight_of_a_penalty_that_is_absent_at_zero() -> None:
    base = toy.points("cpu")[0].config
    arms = [Point(LOW, 4.0, replace(base, rank=4)), Point("lasso", 0.0, base)]
    arms.append(Point("lasso", 0.1, base.trained(penalties=(("group-lasso", 0.1),))))
    study = toy.study(points=lambda scale: tuple(arms))
    assert tables.level_names(study, toy.rows(study, seeds=1)) == {LOW: "rank", "lasso": "λ"}


def test_no_ratio_to_a_gap_that_is_not_above_zero() -> None:
    assert report.times(3.0, 2.0) == 1.5 and report.times(math.inf, 2.0) == math.inf
    assert math.isnan(report.times(3.0, 0.0)) and math.isnan(report.times(3.0, -1.0))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.12345, "0.123"), (12345.6, "12346"), (1234.5678, "1235"), (999.4, "999"), (-0.0, "0"), (1e-20, "0"),
        (1.5e9, "1.5e+09"), (0.00012, "0.00012"), (math.inf, "∞"), (-math.inf, "-∞"), (math.nan, "-"),
    ],
)  # fmt: skip
def test_number(value: float, text: str) -> None:
    assert tables.number(value) == text


def test_estimate() -> None:
    nan = math.nan
    assert tables.estimate(Estimate(0.5, 0.4, 0.6, 5)) == "0.5 [0.4, 0.6]"
    assert tables.estimate(Estimate(0.5, 0.4, 0.6, 4), 5) == "0.5 [0.4, 0.6] (n = 4)"
    assert tables.estimate(Estimate(0.5, nan, nan, 1), 1) == "0.5 (n = 1)"
    assert tables.estimate(Estimate(0.5, nan, nan, 5)) == "0.5"  # a bootstrap that is undefined: n is not why
    assert tables.estimate(Estimate(nan, nan, nan, 3)) == "-"
    assert tables.estimate(Estimate(nan, nan, nan, 0)) == "-"


def test_bars_in_names_do_not_break_the_table() -> None:
    assert tables.markdown([["a|b", "c\nd"]], ["x", "y"]) == "| x | y |\n| --- | --- |\n| a\\|b | c d |\n"
    with pytest.raises(InputError, match="1 cells"):
        tables.markdown([["a"]], ["x", "y"])


def test_meaning() -> None:
    assert tables.meaning("ra_inf") == "accuracy under attack (an upper bound of robust accuracy), ℓ∞"
    assert tables.meaning("gap_2@0.5") == "mean increase of the loss under attack, ℓ2 at radius 0.5"
    assert tables.meaning("sa") == "accuracy on clean test samples"
    assert tables.meaning("bound_inf/sharp") == "the sharp bound of the mean loss gap, ℓ∞"
    assert tables.meaning("lipschitz_inf/sharp") is None and tables.meaning("bound_7/sharp") is None


def test_measures_that_the_studies_show_have_a_meaning() -> None:
    shown = {m for name in MODULES for m in find(name).measures}
    assert [m for m in sorted(shown) if tables.meaning(m) is None] == []


# ---------------------------------------------------------------- pictures


def test_pictures_are_pngs_that_show_something(study: Study) -> None:
    made = plots.pictures(study, tables.checked(study, toy.rows(study, details=True)))
    for name, png in made.items():
        picture = Image.open(io.BytesIO(png))
        assert picture.format == "PNG" and len(png) < 60_000, name
        assert np.asarray(picture.convert("L")).std() > 5, name


def test_pictures_of_details_only_where_there_are_any(study: Study, rows: list[Row]) -> None:
    assert plots.pictures(study, tables.checked(study, rows), {"energy.png", "pca.png"}) == {}


def test_zero_and_infinite_levels_have_a_place_on_a_log_axis() -> None:
    axis = drawing.LevelAxis("λ", [0.0, 0.01, 0.1, 1.0, math.inf], log=True)
    assert axis.at[0.0] == pytest.approx(0.001) and axis.at[math.inf] == pytest.approx(10.0)
    linear = drawing.LevelAxis("ε", [-1.0, 0.0, 1.0, math.inf], log=True)  # no log axis below zero
    assert not linear.log and linear.at[math.inf] == 2.0 and linear.at[0.0] == 0.0


def test_log_axis_of_a_study_with_level_zero_and_one_of_a_single_point() -> None:
    study = toy.study()
    rows = [replace(r, level=0.0 if r.level == 2.0 else r.level) for r in toy.rows(study) if r.level in (2.0, 8.0, 1.0)]
    names = {"accuracy.png", "radius.png", "bounds_inf.png"}
    assert set(plots.pictures(study, rows, names)) == names


def test_what_a_log_axis_cannot_show_is_counted(study: Study, monkeypatch: Any) -> None:
    said = []
    monkeypatch.setattr(plots, "title_panel", lambda ax, title, hidden=0: said.append((title, hidden)))
    changes = {(LOW, 4.0, 1): {"bound_inf/sharp": math.inf}, (LOW, 8.0, 0): {"bound_inf/sharp": 0.0}}
    rows = tables.checked(study, toy.rows(study, changes=changes))
    plots.tracking(rows, "inf")
    assert dict(said)["sharp, ℓ∞"] == 2 and dict(said)["sdp, ℓ∞"] == 0
    said.clear()
    plots.bounds(study, rows, "inf")
    assert dict(said)[f"{LOW}, ℓ∞"] == 1  # a mean is infinite at rank 4; at rank 8 it is not zero


def test_a_mean_of_one_point_has_a_rule() -> None:
    # a condition on a point that is not there stays open, and the report says why
    study = toy.study(conditions=[Condition("nothing", Mean("sa", At("no such arm")), ">", 0.0)])
    text = report.report_text(study, toy.rows(study))
    assert cells(text, "nothing")[3:] == ["-", "0", "open"] and "no rows of 'no such arm'" in text


def test_a_study_that_lacks_cells_has_no_verdict() -> None:
    """With only the lowest rank, first and last level are one and every change is 0: that refutes nothing."""
    of = toy.study()
    every = toy.rows(of)
    assert judged(of, every).word == of.rule.verdict(every).word == "supported"
    lowest = [row for row in every if row.level == min(toy.LEVELS)]
    assert of.rule.verdict(lowest).word == "not supported"
    for some in (lowest, every[:-1]):
        verdict = judged(of, some)
        assert verdict.word == "inconclusive"
        assert {o.word for o in (*verdict.outcomes, *verdict.control_outcomes)} == {"open"}
        assert all("cells without a row" in o.reason for o in verdict.outcomes)
        assert "**inconclusive**" in report_text(of, some)
