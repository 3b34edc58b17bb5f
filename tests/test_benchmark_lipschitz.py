"""benchmarks/lipschitz: its judge catches values that are too small, its cells survive a kill, its dual is a dual."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.lipschitz import cells, methods, nets, report
from benchmarks.lipschitz.__main__ import main
from benchmarks.lipschitz.child import measure
from benchmarks.lipschitz.dual import dual_bound, dual_value, relaxation_matrix
from benchmarks.lipschitz.judge import Facts, facts, judge
from benchmarks.lipschitz.run import Plan, run
from certbound import lipschitz_sdp

ROOT = Path(__file__).resolve().parents[1]

FAKES = '''
import os, time
from benchmarks.lipschitz.methods import Answer
from certbound import lipschitz_sampled, lipschitz_sdp

bytearray(b"x") * (200 << 20)  # a peak before the timed part, which is not the method's

def lazy(case):
    """0.99 of the optimum."""
    return Answer(0.99 * lipschitz_sdp(case.subject(), 2, method="barrier").value, kind="relaxation")

def absurd(case):
    return 0.5 * lipschitz_sampled(case.subject(), 2).value

def counted(case):
    with open(os.environ["COUNT"], "a") as file:
        file.write("ran\\\\n")
    return 1000.0

def slow(case):
    if not os.path.exists(os.environ["COUNT"] + ".fast"):
        open(os.environ["COUNT"] + ".begun", "w").write(str(os.getpid()))
        time.sleep(60)
    return 1000.0

def crash(case):
    os.kill(os.getpid(), 11)

def raises(case):
    raise RuntimeError("no solution")

def hungry(case):
    return float(len(bytearray(1 << 30)))

def buffer(case):
    held = bytearray(b"x") * (64 << 20)
    del held
    return 1000.0

def spins(case):
    end = time.process_time() + 0.3
    while time.process_time() < end:
        pass
    return 1000.0
'''


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Methods under the names ``fakes:...``, importable by the processes of a run; and the file they count in."""
    (tmp_path / "fakes.py").write_text(FAKES.replace("\\\\n", "\\n"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("COUNT", str(tmp_path / "count"))
    return tmp_path / "count"


def words(out: Path) -> dict[str, str]:
    return {r["method"]: r["verdict"] for r in json.loads((out / "results.json").read_text())["rows"]}


def random_net(*sizes: int, seed: int = 0) -> tuple[list[np.ndarray], np.ndarray]:
    rng = np.random.default_rng(seed)
    *encoder, head = (rng.standard_normal((b, a)) / math.sqrt(a) for a, b in pairwise(sizes))
    return encoder, head


# ---------------------------------------------------------------- the judge


def test_values_below_the_truth_are_named(fakes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--nets", "8-3", "--problems", "l2", "--methods", "barrier,fakes:lazy,fakes:absurd", "--no-traps",
                 "--out", str(tmp_path / "out"), "--quiet"]  # fmt: skip
    assert main(arguments) == 0
    assert words(tmp_path / "out") == {
        "product": "proved", "sampled": "proved", "reference": "not shown", "barrier": "proved",
        "fakes:lazy": "wrong side", "fakes:absurd": "INVALID",
    }  # fmt: skip
    printed = capsys.readouterr().out
    assert "wrong side (1.0e-02 below the optimum)" in printed
    assert "INVALID (0.5 of a sampled lower bound)" in printed
    assert (tmp_path / "out" / "table.txt").read_text().strip() in printed
    assert (tmp_path / "out" / "tightness.png").stat().st_size > 5000
    assert "<svg" in (tmp_path / "out" / "tightness.svg").read_text()
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    (reference,) = [r for r in rows if r["method"] == "reference"]
    (barrier,) = [r for r in rows if r["method"] == "barrier"]
    assert barrier["optimum_known"] and 0.0 <= reference["value"] / reference["least"] - 1.0 < 1e-5
    assert reference["least"] <= barrier["value"] <= reference["least"] * (1.0 + 2e-4)


def cell(value: float | None, kind: str = "relaxation", proved: bool | None = None, **more: Any) -> dict[str, Any]:
    return {"value": value, "kind": kind, "proved": proved, "least": None, "method": "x", **more}


KNOWN = Facts(lower=1.0, least=2.0, proved=2.0001, product=4.0)


@pytest.mark.parametrize(
    ("given", "word"),
    [
        (cell(2.0 * (1 - 5e-7)), "not shown"),
        (cell(2.0 * (1 - 2e-6)), "wrong side"),
        (cell(2.0 * (1 - 2e-6), proved=True), "wrong side"),  # a certificate of ours would be wrong as well
        (cell(1.5, kind="upper"), "not shown"),  # claims nothing of the relaxation
        (cell(2.0001), "valid"),
        (cell(2.0, proved=True), "proved"),
        (cell(1.0 - 1e-10), "wrong side"),
        (cell(1.0 - 1e-10, kind="upper"), "not shown"),  # its rounding
        (cell(1.0 - 1e-10, kind="upper", proved=True), "INVALID"),  # a proof has no rounding
        (cell(0.99, kind="upper"), "INVALID"),
        (cell(math.nan), "INVALID"),
        (cell(-1.0), "INVALID"),
        (cell(1.0, kind="lower", proved=True), "proved"),
        (cell(1.0, kind="lower"), "numerical"),
        (cell(2.1, kind="lower", proved=True), "INVALID"),
        (cell(None), "-"),
    ],
)
def test_verdicts(given: dict[str, Any], word: str) -> None:
    assert judge(given, KNOWN).word == word


def test_facts_leave_out_what_is_refuted() -> None:
    lower = cell(1.0, kind="lower", proved=True)
    assert facts([lower, cell(0.9, proved=True), cell(3.0, proved=True), cell(2.5)]).proved == 3.0
    assert facts([lower, cell(5.0, kind="lower", proved=False)]).lower == 1.0
    assert facts([cell(2.0, least=1.9), cell(2.0, least=1.8)]).least == 1.9
    assert Facts(proved=2.1, least=2.0).optimum == (2.1, False)
    assert Facts(proved=2.1, least=2.0, solved=2.00001).optimum == (2.0, True)
    assert Facts(least=2.0).optimum is None


# ---------------------------------------------------------------- the dual bound


@pytest.mark.parametrize("norm", [2.0, math.inf])
@pytest.mark.parametrize("sizes", [(3, 4, 1), (4, 5, 5, 1), (3, 4, 4, 4, 1)])
def test_every_dual_value_is_below_the_optimum(sizes: tuple[int, ...], norm: float) -> None:
    encoder, head = random_net(*sizes, seed=len(sizes))
    proved = lipschitz_sdp([*encoder, head], norm, outputs=0, method="barrier", tolerance=1e-6).value
    rng = np.random.default_rng(1)
    n, best = sum(sizes[:-1]), 0.0
    for rank in (1, 2, n):
        for _ in range(300):
            half = rng.standard_normal((n, rank))
            best = max(best, dual_value(encoder, head, half @ half.T, norm))
    # covariances of true signals: x along random directions, neurons as the network computes them
    for _ in range(300):
        x = rng.standard_normal(sizes[0])
        parts = [x]
        for w in encoder:
            parts.append(np.maximum(w @ parts[-1], 0.0))
        z = np.concatenate(parts)
        best = max(best, dual_value(encoder, head, np.outer(z, z), norm))
    assert 0.2 * proved < math.sqrt(best) <= proved


@pytest.mark.parametrize("norm", [2.0, math.inf])
def test_the_reference_brackets_the_optimum(norm: float) -> None:
    net = nets.build("6-4")
    case = methods.Case(net, norm, None if norm == 2.0 else (0, 1), 60.0)
    job = methods.METHODS["reference"].prepare(case)
    answer = job.read(job.run())
    assert answer.value is not None and answer.least is not None
    assert answer.least <= answer.value <= answer.least * (1.0 + 1e-5)
    proved = lipschitz_sdp(net.network(), norm, outputs=case.outputs, method="barrier", tolerance=1e-6).value
    assert answer.least <= proved <= answer.value * (1.0 + 1e-4)


def test_dual_bound_says_nothing_of_indefinite_multipliers() -> None:
    encoder, head = random_net(3, 4, 1)
    assert dual_bound(encoder, head, np.full(3, 1e-3), [np.ones(4)], 2.0) == 0.0


def test_relaxation_matrix_is_the_quadratic_form() -> None:
    encoder, head = random_net(3, 4, 5, 2)
    rng = np.random.default_rng(0)
    d, t = rng.uniform(1, 2, 3), [rng.uniform(1, 2, 4), rng.uniform(1, 2, 5)]
    x, a, b = rng.standard_normal(3), rng.standard_normal(4), rng.standard_normal(5)
    z = np.concatenate([x, a, b])
    by_hand = (d * x) @ x + 2 * t[0] @ (a * (a - encoder[0] @ x)) + 2 * t[1] @ (b * (b - encoder[1] @ a))
    assert z @ relaxation_matrix(encoder, head, d, t) @ z == pytest.approx(by_hand - np.sum((head @ b) ** 2), rel=1e-12)


# ---------------------------------------------------------------- methods


def test_liplt_by_hand() -> None:
    (a, b), c = random_net(3, 4, 5, 2)

    def size(x: np.ndarray) -> float:
        return float(np.linalg.norm(x, 2))

    m1 = size(a)
    m2 = size(b @ a) / 2 + size(b) * m1 / 2
    expected = size(c @ b @ a) / 4 + size(c @ b) * m1 / 4 + size(c) * m2 / 2
    assert methods.liplt([a, b], c, 2.0) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("norm", [2.0, math.inf])
@pytest.mark.parametrize("name", ["scs", "chordal", "clarabel"])
def test_cvxpy_agrees_with_the_barrier(name: str, norm: float) -> None:
    encoder, head = random_net(4, 3, 3, 2)
    net = nets.Net("small", (*encoder, head), tuple(np.zeros(len(w)) for w in (*encoder, head)))
    case = methods.Case(net, norm, None if norm == 2.0 else (0, 1), 20.0)
    optimum = lipschitz_sdp(case.subject(), norm, outputs=case.outputs, method="barrier", tolerance=1e-6).value
    job = methods.METHODS[name].prepare(case)
    answer = job.read(job.run())
    assert answer.status == "ok"
    assert answer.value == pytest.approx(optimum, rel=1e-3)
    assert answer.kind == "relaxation" and answer.proved is None
    assert isinstance(answer.numbers["raw feasible"], bool)


def test_raw_multipliers_are_checked() -> None:
    encoder, head = [np.eye(2)], np.eye(2)
    # ρ = 1, T = I: M = [[I, −I], [−I, I]], exactly semidefinite
    assert methods._raw_check(encoder, head, np.ones(2), [np.ones(2)])[1]
    assert not methods._raw_check(encoder, head, np.full(2, 1.0 - 1e-9), [np.ones(2)])[1]
    assert not methods._raw_check([np.zeros((2, 2))], 0.0 * head, np.array([1.0, -1e-18]), [np.ones(2)])[1]


STAND_IN = """
class LipConstEstimator:
    def __init__(self, model):
        self.n = sum(type(m).__name__ == "Linear" for m in model.modules())

    def estimate(self, method):
        if method == "ECLipsE":
            print("Optimization reached a boundary solution. Falling back to ECLipsE-Fast for the current stage.")
        return 7.0 * self.n
"""


def test_eclipse_is_called_as_its_readme_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "eclipse_nn.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "eclipse_nn", raising=False)
    case = methods.Case(nets.build("4-3"), 2.0, None, 1.0)
    for name, status in (("eclipse-fast", "ok"), ("eclipse-sdp", "fell back")):
        job = methods.METHODS[name].prepare(case)
        answer = job.read(job.run())
        assert (answer.value, answer.status) == (21.0, status)
    with pytest.raises(methods.NotApplicableError):
        methods.METHODS["eclipse-fast"].prepare(methods.Case(case.net, math.inf, (0, 1), 1.0))
    sys.modules.pop("eclipse_nn", None)


def request(method: str, **more: Any) -> dict[str, Any]:
    return {"net": "skip", "trap": True, "seed": 0, "nets": "", "method": method, "norm": 2.0, "outputs": None,
            "limit": 60.0, "grace": 0.0, "memory": 8.0, **more}  # fmt: skip


def test_what_is_missing_is_a_status(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "eclipse_nn", None)
    assert measure(request("eclipse-fast"))["status"] == "not installed"
    # a certbound that does not know the method
    unknown = methods.Method("later", "later", methods._ours("sixth-order"), ours=True)
    monkeypatch.setitem(methods.METHODS, "later", unknown)
    assert measure(request("later"))["status"] == "not available"


@pytest.mark.parametrize("name", list(nets.TRAPS))
def test_traps_trap_and_ours_is_not_caught(name: str) -> None:
    model = nets.TRAPS[name].module()
    linear = [m.weight.numpy() for m in model.modules() if isinstance(m, torch.nn.Linear)]
    ignored = math.prod(float(np.linalg.norm(w, 2)) for w in linear)
    lower = measure(request("sampled", net=name))
    assert lower["kind"] == "lower" and lower["value"] > ignored * 1.01  # who reads the Linear layers alone is wrong
    ours = measure(request("auto", net=name))
    assert ours["status"] == "refused" or (ours["proved"] and ours["value"] >= lower["value"])


# ---------------------------------------------------------------- networks


@pytest.mark.parametrize("name", ["64", "64-1", "0-3", "mnist", "mnist-0", "1-2-3-4", "../x", "64-3 "])
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError):
        nets.check_name(name)


def test_stored_networks_come_back(tmp_path: Path) -> None:
    built, again = nets.stored("8-3", 1, tmp_path), nets.stored("8-3", 1, tmp_path)
    assert built.digest == again.digest == nets.build("8-3", 1).digest != nets.build("8-3", 2).digest
    x = np.random.default_rng(0).standard_normal((5, 64))
    theirs = built.module()(torch.tensor(x)).numpy()
    np.testing.assert_allclose(built.network().forward(x), theirs, rtol=1e-12)


# ---------------------------------------------------------------- cells


def test_when_a_stored_cell_counts(tmp_path: Path) -> None:
    path, key = tmp_path / "cell.json", {"net": "8-3"}

    def kept(status: str, value: float | None, limit: float, memory: float = 8.0) -> bool:
        wall = None if value is None else 5.0
        data = asdict(methods.Answer(value, status)) | {"key": key, "limit": 30.0, "memory": 8.0, "wall_seconds": wall}
        cells.write(path, data)
        return cells.read(path, key, limit, memory) is not None

    assert kept("ok", 1.0, 30.0) and kept("ok", 1.0, 300.0) and kept("ok", 1.0, 6.0) and not kept("ok", 1.0, 4.0)
    assert kept("time-out", None, 20.0) and not kept("time-out", None, 60.0)
    assert kept("time limit", 1.0, 20.0) and not kept("time limit", 1.0, 60.0)
    assert kept("optimal_inaccurate", 1.0, 20.0) and not kept("optimal_inaccurate", 1.0, 60.0)
    assert kept("failed", None, 30.0) and not kept("failed", None, 60.0)
    assert not kept("out of memory", None, 30.0, memory=16.0)
    assert not kept("not installed", None, 30.0) and not kept("not available", None, 30.0)
    assert kept("ok", 1.0, 30.0)
    assert cells.read(path, {"net": "other"}, 30.0, 8.0) is None
    whole = path.read_bytes()
    for torn in (b"", whole[: len(whole) // 2], b"[]", b"{}"):
        path.write_bytes(torn)
        assert cells.read(path, key, 30.0, 8.0) is None
    assert cells.read(tmp_path / "none.json", key, 30.0, 8.0) is None
    assert [p.name for p in tmp_path.iterdir()] == ["cell.json"]  # no partial files


def test_the_key_knows_weights_sources_and_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    def keyed(name: str, subject: str = "a") -> dict[str, Any]:
        return cells.key(cells.Cell("8-3", "l2", methods.METHODS[name]), subject, 0)

    before = {name: keyed(name) for name in ("barrier", "scs")}
    assert keyed("barrier", "b") != before["barrier"]
    monkeypatch.setattr(cells, "sources", lambda _: "edited")
    assert keyed("barrier") != before["barrier"] and keyed("scs") == before["scs"]
    monkeypatch.setattr(cells, "version", lambda _: "99")
    assert keyed("scs") != before["scs"]


def test_a_killed_run_goes_on(fakes: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "benchmarks.lipschitz", "--nets", "8-3", "--problems", "l2", "--methods",
               "fakes:counted,fakes:slow", "--no-traps", "--quiet", "--out", str(out)]  # fmt: skip
    begun = Path(f"{fakes}.begun")
    with subprocess.Popen(command, cwd=ROOT) as process:
        deadline = time.monotonic() + 120
        while not (begun.exists() and begun.read_text()) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.kill()
    child = int(begun.read_text())
    assert len(list((out / "cells").glob("*.json"))) == 4  # three judges and the counted one
    (counted,) = (out / "cells").glob("*counted*.json")
    before = counted.stat().st_mtime_ns
    while _alive(child):  # it ends with its parent, long before its minute of sleep
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert time.monotonic() - (deadline - 120) < 55
    Path(f"{fakes}.fast").touch()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "slow" in done.stdout
    assert fakes.read_text() == "ran\n"  # not measured twice
    assert counted.stat().st_mtime_ns == before
    assert len(list((out / "cells").glob("*.json"))) == 5


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_an_interrupted_run_keeps_no_half_measured_cell(fakes: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.lipschitz", "--nets", "8-3", "--problems", "l2", "--methods",
               "fakes:slow", "--no-traps", "--quiet", "--out", str(tmp_path / "out")]  # fmt: skip
    begun = Path(f"{fakes}.begun")
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        while not (begun.exists() and begun.read_text()):
            assert process.poll() is None
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to the whole group
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "the same command goes on" in said
    assert len(list((tmp_path / "out" / "cells").glob("*.json"))) == 3  # the judges


def test_what_dies_is_a_row(fakes: Path, tmp_path: Path) -> None:
    names = ("crash", "raises", "hungry", "buffer", "spins")
    plan = Plan(("2-2",), ("l2",), tuple(f"fakes:{n}" for n in names), memory=0.25, limit=50.0, out=tmp_path / "out")
    found = {r["method"]: r for r in run(plan, quiet=True)}
    crash, raises, hungry, buffer, spins = (found[f"fakes:{n}"] for n in names)
    assert crash["status"] == "failed" and "SIGSEGV" in crash["notes"][0] and crash["value"] is None
    assert raises["status"] == "failed" and raises["notes"] == ["RuntimeError: no solution"]
    assert hungry["status"] == "out of memory"
    assert 60 < buffer["peak_bytes"] / 2**20 < 75
    assert spins["peak_bytes"] / 2**20 < 10
    assert 0.3 <= spins["cpu_seconds"] < 0.5
    text = report.table(list(found.values()))
    assert "SIGSEGV" in text and "out of memory" in text


def test_the_clock_kills(fakes: Path, tmp_path: Path) -> None:
    plan = Plan(("2-2",), ("l2",), ("fakes:slow",), limit=1.0, grace=0.5, out=tmp_path / "out")
    start = time.monotonic()
    (slow,) = [r for r in run(plan, quiet=True) if r["method"] == "fakes:slow"]
    assert slow["status"] == "time-out" and slow["value"] is None
    assert time.monotonic() - start < 50
    assert "> 1" in report.table([slow])


@pytest.mark.parametrize(
    "arguments",
    [["--nets", "64"], ["--methods", "magic"], ["--problems", "l3"], ["--problems", "linf-0-10"], ["--traps", "x"],
     ["--limit", "0"], ["--jobs", "0"], ["--seed", "-1"]],
)  # fmt: skip
def test_bad_arguments_are_refused_before_anything_runs(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as info:
        main([*arguments, "--out", str(tmp_path / "out")])
    assert info.value.code == 2
    assert "usage: python -m benchmarks.lipschitz" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
