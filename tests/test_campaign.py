"""The fuzz campaign on a small scale: no number on the wrong side, every mutant caught, nothing lost or done twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from campaign import mutants
from campaign.checks import read_matrix
from campaign.generate import KINDS
from campaign.runner import Plan, read_chunk, run, run_chunk, source_digest, summarise, unfinished

CAMPAIGN = Path(__file__).parent / "campaign"


def _without_time(summary: dict[str, object]) -> dict[str, object]:
    return {k: v for k, v in summary.items() if k != "seconds"}


def test_no_violations() -> None:
    result = run_chunk(seed=11, count=1000)
    assert result["violations"] == []
    assert result["count"] == 1000
    assert result["distinct"] > 800
    assert set(result["kinds"]) <= set(KINDS)
    assert len(result["kinds"]) >= len(KINDS) - 2


def test_the_same_seed_draws_the_same_matrices() -> None:
    first, second = run_chunk(3, 40), run_chunk(3, 40)
    assert first["checks"] == second["checks"]
    assert first["kinds"] == second["kinds"]
    assert first["kinds"] != run_chunk(4, 40)["kinds"]


@pytest.mark.parametrize(
    ("name", "matrices"),
    [
        ("lower bounds raised by 1 % of their width", 2000),
        ("up and down = identity", 200),
        ("enclose_norm rounds to nearest", 200),
        ("theorem 3.1: outward rounding dropped", 200),
        ("SVD wrong by 1e-10, residuals ignored", 200),
        ("Cholesky of another matrix, residual ignored", 200),
        ("Cholesky of another matrix, residual kept", 100),
    ],
)
def test_mutants(name: str, matrices: int) -> None:
    (mutant,) = [m for m in mutants.mutants() if m.name == name]
    outcome = mutants.try_mutant(mutant, matrices, seed=1)
    assert outcome.passed, outcome


def test_patches_are_undone_and_reach_every_import() -> None:
    from certbound import rounding
    from certbound.norms import verified

    old = rounding.up
    with mutants.patched({(rounding, "up"): abs}):
        assert rounding.up is verified.up is abs
    assert rounding.up is verified.up is old


def test_a_mutant_is_reported_with_its_matrix(tmp_path: Path) -> None:
    from certbound import rounding

    with mutants.patched({(rounding, "up"): mutants._identity, (rounding, "down"): mutants._identity}):
        plan = Plan(40, tmp_path, seed=1, chunk=40)
        assert run(plan, quiet=True) == 1
    found = read_chunk(plan.path(0))
    assert found is not None
    assert found["n_violations"] > 0
    assert read_matrix(found["violations"][0]["matrix"]).ndim == 2


def test_a_killed_run_resumes_to_the_same_table(tmp_path: Path) -> None:
    def command(out: Path) -> list[str]:
        arguments = ["run", "--matrices", "160", "--chunk", "40", "--seed", "5", "--quiet", "--out", str(out)]
        return [sys.executable, str(CAMPAIGN), *arguments]

    killed, whole = Plan(160, tmp_path / "killed", 5, 40), Plan(160, tmp_path / "whole", 5, 40)
    process = subprocess.Popen(command(killed.out))
    deadline = time.monotonic() + 60
    while not killed.path(0).exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = {p: p.read_bytes() for p in killed.out.glob("chunk-*.json")}
    assert kept
    # in processes of their own: Hypothesis also draws constants that it finds in the modules a process has loaded
    assert subprocess.run(command(killed.out), check=False).returncode == 0
    assert all(p.read_bytes() == content for p, content in kept.items())  # nothing is done twice
    assert subprocess.run(command(whole.out), check=False).returncode == 0
    assert _without_time(summarise(killed)) == _without_time(summarise(whole))
    assert summarise(killed)["matrices"] == 160


def test_a_chunk_of_other_sources_is_done_again(tmp_path: Path) -> None:
    plan = Plan(30, tmp_path, seed=7, chunk=20)
    assert plan.sizes() == [20, 10]
    assert run(plan, quiet=True) == 0
    assert unfinished(plan, source_digest()) == []
    old = json.loads(plan.path(1).read_text())
    plan.path(1).write_text(json.dumps({**old, "digest": "another", "n_violations": 3}))
    plan.path(0).write_text(plan.path(0).read_text()[:100])  # as no run of ours would leave it
    assert unfinished(plan, source_digest()) == [0, 1]
    assert summarise(plan)["matrices"] == 0
    assert run(plan, quiet=True) == 0
    assert summarise(plan)["matrices"] == 30
    assert summarise(plan)["violations"] == 0
