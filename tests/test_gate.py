"""The gate: passes on proofs only, says which, and fails closed."""

from __future__ import annotations  # noqa: I001

import dataclasses
import itertools
import json
import math
import xml.etree.ElementTree as ET
from types import SimpleNamespace

import numpy as np
import pytest

from certbound.bound import Bound, Claim
from certbound.comparison import Comparison, Row, compare
from certbound.errors import InputError
from certbound.ci_gate import Baseline, Limits, gate
from certbound.network import Network
from certbound.types import Quantity, Rigor, Sense, Status

DOMAIN = "||a||_inf <= 0.1 around 10 samples (sha256 abc)"


def row(method, quantity, value, sense, *, status=Status.OK, rigor=Rigor.NUMERICAL, note="", domain=DOMAIN):
    if quantity is Quantity.LIPSCHITZ:
        claim = Claim(quantity, math.inf, None, outputs="all margins", subject="net")
    else:
        claim = Claim(quantity, math.inf, None, domain, "all", "net")
    bound = Bound(value, claim, sense, rigor, method, "source")
    return Row(method, quantity, value, sense, rigor, status, 0.0, None, note, bound)


def certified(method, value, **more):
    return row(method, Quantity.ROBUST_ACCURACY, value, Sense.LOWER, **more)


def attacked(method, value, **more):
    return row(method, Quantity.ROBUST_ACCURACY, value, Sense.UPPER, **more)


def lipschitz(method, value, sense=Sense.UPPER, **more):
    return row(method, Quantity.LIPSCHITZ, value, sense, **more)


def gap(method, value, sense=Sense.UPPER, **more):
    return row(method, Quantity.LOSS_GAP, value, sense, **more)


def problem(shape):
    """As much of a Problem as the gate looks at."""
    network = Network.from_weights([np.ones((b, a)) for a, b in itertools.pairwise(shape)])
    return SimpleNamespace(samples=SimpleNamespace(network=network))


def comparison(*rows, shape=(4, 5, 3), **more):
    settings = {
        "rows": rows, "ladder": (), "delta": 0.1, "norm": math.inf, "n_samples": 10, "clean_accuracy": 0.9,
        "clean_loss": 0.3, "seed": 0, "subject": "net", "certified": {}, "attacked": {}, "constants": {},
        "problem": problem(shape),
    }  # fmt: skip
    return Comparison(**{**settings, **more})


FULL = (
    attacked("apgd-ce", 0.8), gap("apgd-ce", 0.5, Sense.LOWER), lipschitz("gradient", 2.0, Sense.LOWER),
    gap("product", 9.0), certified("product", 0.1), lipschitz("product", 40.0),
    gap("CROWN", 1.5), certified("CROWN", 0.7), lipschitz("recursion", 8.0), certified("recursion", 0.3),
)  # fmt: skip


def only(report):
    (check,) = report.checks
    return check


# -- which number is taken ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "good", "bad", "value", "method", "word"),
    [
        ("min_certified_accuracy", 0.7, 0.71, 0.7, "CROWN", "proved"),
        ("max_lipschitz", 8.0, 7.9, 8.0, "recursion", "proved"),
        ("max_loss_gap", 1.5, 1.4, 1.5, "CROWN", "proved"),
        ("min_robust_accuracy", 0.8, 0.81, 0.8, "apgd-ce", "found"),
    ],
)
def test_each_limit_takes_the_best_bound_of_its_side(limit, good, bad, value, method, word):
    check = only(gate(comparison(*FULL), Limits(**{limit: good})))
    assert check.passed and (check.value, check.method) == (value, method)
    assert f"{word} by {method}" in check.reason
    report = gate(comparison(*FULL), Limits(**{limit: bad}))
    check = only(report)
    assert not check.passed and not report.passed and report.exit_code == 1
    assert (check.value, check.method) == (value, method) and "needed" in check.reason
    assert "FAIL" in str(report) and method in str(report)


def test_the_strongest_of_two_attacks_counts():
    both = comparison(attacked("apgd-ce", 0.8), attacked("square", 0.6))
    check = only(gate(both, Limits(min_robust_accuracy=0.7)))
    assert not check.passed and check.method == "square"


def test_a_lower_bound_never_meets_an_upper_limit():
    """The gap that an attack found, and the gradient at samples, are on the wrong side."""
    wrong = comparison(gap("apgd-ce", 0.1, Sense.LOWER), lipschitz("gradient", 0.1, Sense.LOWER), attacked("a", 1.0))
    for limits in (Limits(max_loss_gap=1.0), Limits(max_lipschitz=1.0), Limits(min_certified_accuracy=0.5)):
        check = only(gate(wrong, limits))
        assert not check.passed and check.value is None and "no method of this kind was run" in check.reason
    # and a certified accuracy is no accuracy under attack
    assert not gate(comparison(certified("CROWN", 1.0)), Limits(min_robust_accuracy=0.5)).passed


# -- fail closed -----------------------------------------------------------------------------------------------


UNUSABLE = {
    "vacuous": {},
    "not installed": {"status": Status.NOT_INSTALLED, "note": "install with: pip install x"},
    "time limit": {"status": Status.TIME_LIMIT},
    "failed": {"status": Status.FAILED},
    "too large": {"status": Status.TOO_LARGE},
    "heuristic": {"rigor": Rigor.HEURISTIC},
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_what_proves_nothing_never_passes(name):
    more = UNUSABLE[name]
    weak = name == "vacuous"
    rows = [
        certified("m", 0.0 if weak else 1.0, **more),
        lipschitz("m", math.inf if weak else 0.0, **more),
        gap("m", math.inf if weak else 0.0, **more),
    ]
    if not weak:
        rows.append(attacked("a", 1.0, **more))
    limits = Limits(1e-9, 1e300, 1e300, None if weak else 1e-9)
    report = gate(comparison(*rows), limits)
    assert len(report.checks) == (3 if weak else 4)
    for check in report.checks:
        assert not check.passed and check.value is None and name in check.reason
    # a usable bound beside it counts
    rows += [certified("n", 0.5), lipschitz("n", 3.0), gap("n", 2.0), attacked("b", 0.6)]
    assert gate(comparison(*rows), limits).passed


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 5.0])
def test_a_row_that_is_not_its_bound_never_passes(value):
    """NaN cannot be in a bound; a row that was made by hand can hold it."""
    bad = [dataclasses.replace(r, value=value) for r in (certified("m", 0.9), lipschitz("m", 1.0), gap("m", 1.0))]
    report = gate(comparison(*bad), Limits(1e-9, 1e300, 1e300))
    assert not any(c.passed for c in report.checks)
    assert all("is no bound" in c.reason for c in report.checks)
    upside_down = dataclasses.replace(lipschitz("m", 1.0, Sense.LOWER), sense=Sense.UPPER)
    assert not gate(comparison(upside_down), Limits(max_lipschitz=2.0)).passed


def test_rigor_asked_for():
    both = comparison(certified("a", 0.9), certified("b", 0.5, rigor=Rigor.RIGOROUS))
    check = only(gate(both, Limits(min_certified_accuracy=0.5, rigor="rigorous")))
    assert check.passed and check.method == "b" and check.rigor is Rigor.RIGOROUS
    assert not gate(both, Limits(min_certified_accuracy=0.6, rigor=Rigor.RIGOROUS)).passed
    # a row may not claim more than its bound
    lying = dataclasses.replace(certified("a", 0.9), rigor=Rigor.RIGOROUS)
    assert not gate(comparison(lying), Limits(min_certified_accuracy=0.6, rigor="rigorous")).passed


def test_no_rows_at_all():
    report = gate(comparison(), Limits(0.1, 1.0, 1.0, 0.1))
    assert [c.passed for c in report.checks] == [False] * 4


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("min_certified_accuracy", 0.0), ("min_certified_accuracy", 1.1), ("min_certified_accuracy", math.nan),
        ("max_lipschitz", math.inf), ("max_lipschitz", -1.0), ("max_loss_gap", math.nan), ("max_loss_gap", "1"),
        ("min_robust_accuracy", True), ("rigor", "heuristic"),
    ],
)  # fmt: skip
def test_limits_that_ask_nothing_are_refused(name, value):
    with pytest.raises(InputError) as info:
        Limits(**{name: value})
    assert info.value.argument == name


# -- baselines ----------------------------------------------------------------------------------------------------

def saved_baseline(tmp_path, *rows, **more):
    Baseline.of(comparison(*(rows or FULL), **more)).save(tmp_path / "base.json")
    return Baseline.load(tmp_path / "base.json")


def test_baseline_round_trip(tmp_path):
    base = saved_baseline(tmp_path)
    assert base == Baseline.of(comparison(*FULL))
    assert base.values == {
        "certified accuracy": 0.7, "Lipschitz constant": 8.0, "loss gap": 1.5, "robust accuracy": 0.8
    }  # fmt: skip
    data = json.loads((tmp_path / "base.json").read_text())
    assert data["schema_version"] == 1 and data["shape"] == [4, 5, 3] and data["norm"] == "inf"
    assert list(tmp_path.iterdir()) == [tmp_path / "base.json"]


def test_the_same_numbers_pass_and_better_ones_too(tmp_path):
    base = saved_baseline(tmp_path)
    report = gate(comparison(*FULL), None, base)
    assert report.passed and len(report.checks) == 4 and {c.kind for c in report.checks} == {"baseline"}
    better = [certified("CROWN", 0.9), lipschitz("m", 1.0), gap("m", 0.1), attacked("a", 0.95)]
    assert gate(comparison(*better), None, base, tolerance=0.0).passed


@pytest.mark.parametrize(
    ("worse", "name", "enough"),
    [
        (certified("CROWN", 0.68), "certified accuracy", 0.03),
        (lipschitz("recursion", 8.4), "Lipschitz constant", 0.06),
        (gap("CROWN", 1.6), "loss gap", 0.07),
        (attacked("apgd-ce", 0.75), "robust accuracy", 0.06),
    ],
)
def test_a_regression_fails_beyond_the_tolerance(tmp_path, worse, name, enough):
    base = saved_baseline(tmp_path)
    rows = [
        worse if (r.method, r.quantity, r.sense) == (worse.method, worse.quantity, worse.sense) else r for r in FULL
    ]
    report = gate(comparison(*rows), None, base)
    assert [c.name for c in report.checks if not c.passed] == [name] and report.exit_code == 1
    assert "baseline" in next(c for c in report.checks if not c.passed).reason
    assert gate(comparison(*rows), None, base, tolerance=enough).passed
    assert not gate(comparison(*rows), None, base, tolerance=enough / 10).passed


def test_what_is_no_longer_proved_is_a_regression(tmp_path):
    base = saved_baseline(tmp_path)
    rows = [dataclasses.replace(r, status=Status.NOT_INSTALLED) if r.method == "apgd-ce" else r for r in FULL]
    report = gate(comparison(*rows), None, base, tolerance=0.99)
    assert [c.name for c in report.checks if not c.passed] == ["robust accuracy"]


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({"delta": 0.2}, "delta"),
        ({"norm": 2.0}, "norm"),
        ({"n_samples": 11}, "number of samples"),
        ({"shape": (4, 6, 3)}, "network shape"),
        ({"shape": (4, 5, 5, 3)}, "network shape"),
        ("other samples", "samples"),
    ],
)
def test_a_baseline_about_something_else_is_refused(tmp_path, more, word):
    base = saved_baseline(tmp_path)
    rows = FULL
    if more == "other samples":
        rows, more = [certified("CROWN", 0.9, domain=DOMAIN.replace("abc", "def"))], {}
    with pytest.raises(InputError, match=f"a baseline with {word} ") as info:
        gate(comparison(*rows, **more), None, base)
    assert info.value.argument == "baseline"


@pytest.mark.parametrize(
    "content",
    [
        "", "{", "[]", "{}", '{"kind": "certbound gate baseline", "schema_version": 1}',
        pytest.param(lambda d: d.update(schema_version=99), id="schema"),
        pytest.param(lambda d: d.update(kind="x"), id="kind"),
        pytest.param(lambda d: d["values"].update({"loss gap": math.nan}), id="nan"),
        pytest.param(lambda d: d["values"].update({"loss gap": "inf"}), id="inf"),
        pytest.param(lambda d: d["values"].pop("loss gap"), id="missing"),
        pytest.param(lambda d: d.update(shape="abc"), id="shape"),
    ],
)  # fmt: skip
def test_damaged_baselines_are_refused(tmp_path, content):
    path = tmp_path / "base.json"
    saved_baseline(tmp_path)
    if callable(content):
        data = json.loads(path.read_text())
        content(data)
        content = json.dumps(data)
    path.write_text(content)
    with pytest.raises(InputError, match=r"base\.json"):
        Baseline.load(path)


def test_a_baseline_without_numbers_and_bad_tolerances(tmp_path):
    base = saved_baseline(tmp_path, certified("m", 0.0))
    with pytest.raises(InputError, match="without numbers"):
        gate(comparison(*FULL), None, base)
    for tolerance in (-1.0, math.nan, math.inf, True, "0.1"):
        with pytest.raises(InputError, match="tolerance"):
            gate(comparison(*FULL), Limits(0.1), tolerance=tolerance)


# -- reports ----------------------------------------------------------------------------------------------------------


def test_junit_is_valid_and_says_why():
    note = "bad \x00\x1b[31m <&> \ud800 note"
    rows = (*FULL[1:], attacked("apgd-ce", 1.0, status=Status.FAILED, note=note))
    report = gate(comparison(*rows), Limits(0.5, 1.0, None, 0.5), seconds=1.25)
    root = ET.fromstring(report.to_junit().encode("utf-8"))
    assert root.tag == "testsuites" and (root.get("tests"), root.get("failures")) == ("3", "2")
    (suite,) = root.findall("testsuite")
    assert suite.get("time") == "1.250" and suite.get("errors") == "0"
    cases = suite.findall("testcase")
    assert [c.get("name") for c in cases] == [
        "certified accuracy >= 0.5 (limit)", "Lipschitz constant <= 1 (limit)", "robust accuracy >= 0.5 (limit)"
    ]  # fmt: skip
    assert len({c.get("name") for c in cases}) == 3
    failures = [c.find("failure") for c in cases]
    assert [f is None for f in failures] == [True, False, False]
    assert "8 proved by recursion; needed <= 1" in failures[1].get("message")
    assert "failed" in failures[2].get("message") and "<&>" in failures[2].text
    names = {p.get("name"): p.get("value") for p in suite.find("properties")}
    assert names["network"] == "net" and names["samples"] == DOMAIN


def test_report_is_json():
    report = gate(comparison(*FULL), Limits(0.5, 1.0))
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert data["schema_version"] == 1 and data["passed"] is False
    assert [c["method"] for c in data["checks"]] == ["CROWN", "recursion"]
    assert "no checks" in str(gate(comparison(*FULL))) and gate(comparison(*FULL)).passed


def test_on_a_real_comparison():
    rng = np.random.default_rng(0)
    net = Network.from_weights([rng.standard_normal((4, 3)) / 2, rng.standard_normal((2, 4)) / 2])
    x = rng.random((8, 3))
    y = net.forward(x).argmax(axis=1)
    found = compare(net, x, y, delta=0.01, norm=2, methods=["product", "recursion", "gradient"])
    best = min(found.row(m, "Lipschitz constant").value for m in ("product", "recursion"))
    assert gate(found, Limits(max_lipschitz=best)).passed
    check = only(gate(found, Limits(max_lipschitz=math.nextafter(best, 0))))
    assert not check.passed and check.value == best
    assert "sha256" in gate(found).samples
