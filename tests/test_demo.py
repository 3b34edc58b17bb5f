"""The demo, small: real images, real training, every method, every radius."""

import csv
import json

import pytest

from certbound.demo.cell import DELTAS, HEADLINE, cells
from certbound.demo.run import run_demo
from certbound.types import norm_name


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "results"
    return run_demo(out=out, quick=True, quiet=True, jobs=1)


def rows(demo):
    with (demo.out / "results.csv").open(encoding="utf-8") as f:
        return list(csv.DictReader(f))


def pick(all_rows, **want):
    return [r for r in all_rows if all(r[k] == v for k, v in want.items())]


def test_full_demo_is_five_ranks_three_strengths_and_dense():
    full = cells(2, device="cpu", quick=False)
    assert len(full) == 2 * 9
    assert sum(c.family == "low rank" for c in full) == 10
    assert sum(c.family == "nuclear norm" for c in full) == 6
    assert all(c.n_samples == 200 for c in full)
    assert all(len(d) == 6 for d in DELTAS.values())
    assert all(HEADLINE[n] in d for n, d in DELTAS.items())


def test_every_method_is_ok_where_it_applies(demo):
    all_rows = rows(demo)
    assert {r["norm"] for r in all_rows} == {"2", "inf"}
    for r in all_rows:
        if r["method"] == "patterns":
            assert (r["status"], r["value"] in ("inf", "0.0")) == ("TOO_LARGE", True)
        else:
            assert r["status"] == "OK", r


def test_accuracies_are_ordered_at_every_radius(demo):
    all_rows = rows(demo)
    for model in {r["model"] for r in all_rows}:
        for norm, deltas in DELTAS.items():
            for delta in deltas:
                here = pick(
                    all_rows,
                    model=model,
                    norm=norm_name(norm),
                    delta=str(delta),
                    quantity="robust accuracy",
                    status="OK",
                )
                robust = min(float(r["value"]) for r in here if r["sense"] == "upper")
                certified = [float(r["value"]) for r in here if r["sense"] == "lower"]
                assert len(certified) == 9
                assert max(certified) <= robust
                if delta == 0:
                    clean = float(here[0]["clean_accuracy"])
                    assert robust == clean
                    assert min(certified) == clean
                    assert clean > 0.3  # it learned something: chance is 0.1
            assert robust <= 0.05  # the largest radius breaks the network


def test_files_hold_the_same_numbers(demo):
    data = json.loads((demo.out / "results.json").read_text(encoding="utf-8"))
    assert data["schema_version"] == 1
    assert data["versions"]["torch"] != "not installed"
    assert len(data["models"]) == 2
    by_csv = {(r["model"], r["norm"], float(r["delta"]), r["method"], r["quantity"]): r["value"] for r in rows(demo)}
    count = 0
    for model in data["models"]:
        for comparison in model["comparisons"]:
            for r in comparison["rows"]:
                key = (model["name"], str(comparison["norm"]).replace("2.0", "2"), comparison["delta"])
                assert float(by_csv[(*key, r["method"], r["quantity"])]) == float(r["value"])
                count += 1
    assert count == len(by_csv)
    for name in ("bounds.png", "accuracy.png"):
        assert (demo.out / name).read_bytes().startswith(b"\x89PNG")
    assert (demo.out / "summary.txt").read_text(encoding="utf-8").strip() == demo.summary().strip()
    assert not list(demo.out.glob("*.part"))
