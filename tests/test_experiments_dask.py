"""The cells on a real Dask cluster: a scheduler and two workers, each a process of its own, one of them killed."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import distributed
import pytest
import toy_study

from certbound.errors import InputError
from experiments import cluster, environment, runner, store

ROOT = Path(__file__).resolve().parents[1]


class Cluster:
    """``dask scheduler`` and ``dask worker`` on loopback."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[subprocess.Popen[bytes]] = []
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
        port = self.address.rpartition(":")[2]
        self.start("scheduler", "--host", "127.0.0.1", "--port", port, "--no-dashboard")

    def start(self, *words: str, path: tuple[Path, ...] = (ROOT, ROOT / "tests")) -> subprocess.Popen[bytes]:
        with (self.folder / f"log-{len(self.processes)}").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "dask", *words],
                cwd=self.folder,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path)), "OMP_NUM_THREADS": "1"},
                stdout=log,
                stderr=log,
            )
        self.processes.append(process)
        return process

    def worker(self, *more: str, path: tuple[Path, ...] = (ROOT, ROOT / "tests")) -> subprocess.Popen[bytes]:
        words = ("--host", "127.0.0.1", "--nthreads", "1", "--no-nanny", "--no-dashboard", *more)
        return self.start("worker", self.address, *words, path=path)

    def wait(self, workers: int) -> None:
        with distributed.Client(self.address, timeout=60, set_as_default=False) as client:
            client.wait_for_workers(workers, timeout=60)

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture
def scheduler(tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(tmp_path)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def strict_scheduler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """One that gives a task up as soon as a worker has died of it, not after the fourth."""
    monkeypatch.setenv("DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES", "0")
    made = Cluster(tmp_path)
    try:
        yield made
    finally:
        made.close()


def run(out: Path, dask: str | None, **changes: object) -> runner.RunReport:
    settings = {"scale": "cpu", "seeds": 3, "out": out, "dask": dask, "progress": False, "function": toy_study.slow}
    return runner.run([toy_study.study(levels=20)], **(settings | changes))


def test_a_worker_is_killed_in_the_middle(scheduler, tmp_path, caplog):
    computed = tmp_path / "computed"
    workers = [scheduler.worker(), scheduler.worker()]
    scheduler.wait(2)
    done_at_kill: list[int] = []

    def kill_the_first() -> None:
        """Once it has computed some cells."""
        while True:
            lines = computed.read_text().splitlines() if computed.exists() else []
            if sum(line.split()[0] == str(workers[0].pid) for line in lines) >= 5:
                workers[0].send_signal(signal.SIGKILL)
                done_at_kill.append(len(lines))
                return
            time.sleep(0.01)

    killer = threading.Thread(target=kill_the_first, daemon=True)
    killer.start()
    report = run(tmp_path / "dask", scheduler.address, root=str(computed))
    killer.join(timeout=10)
    assert workers[0].wait(timeout=10) == -signal.SIGKILL
    assert workers[1].poll() is None

    counts = report.studies["toy"]
    assert (counts.run, counts.reused, counts.kept, counts.failed) == (60, 0, 0, 0)
    assert report.exit_code == 0
    rows = store.load_rows(tmp_path / "dask", "cpu", "toy")
    assert len(rows) == len({row.key for row in rows}) == 60
    lines = [line.split() for line in computed.read_text().splitlines()]
    by_worker = Counter(pid for pid, _, _ in lines)
    assert done_at_kill[0] < 50, "it was killed too late to matter"
    assert by_worker[str(workers[0].pid)] >= 5
    assert by_worker[str(workers[1].pid)] >= 10
    # what the lost worker had in memory or at hand was computed again, nothing else was
    assert {key for _, _, key in lines} == {row.key for row in rows}
    assert all(times == 1 for times in Counter(key for pid, _, key in lines if pid == str(workers[1].pid)).values())

    run(tmp_path / "joblib", None, jobs=2, root=None)
    assert toy_study.table(rows) == toy_study.table(store.load_rows(tmp_path / "joblib", "cpu", "toy"))
    assert run(tmp_path / "dask", scheduler.address).studies["toy"].kept == 60


def test_cells_that_fail_and_cells_that_kill_their_worker(strict_scheduler, tmp_path, caplog):
    strict_scheduler.worker()
    strict_scheduler.wait(1)
    study = toy_study.study(levels=4)
    settings = {"scale": "cpu", "seeds": 1, "dask": strict_scheduler.address, "progress": False}
    report = runner.run([study], out=tmp_path / "fails", function=toy_study.fails_at_two, **settings)
    assert (report.studies["toy"].run, report.studies["toy"].failed) == (3, 1)
    assert "no number for two" in caplog.text

    strict_scheduler.worker()
    strict_scheduler.wait(2)
    report = runner.run([study], out=tmp_path / "dies", function=toy_study.dies_at_two, **settings)
    assert report.studies["toy"].failed >= 1  # and what the same worker had at hand
    assert report.studies["toy"].run + report.studies["toy"].failed == 4
    assert "KilledWorker" in caplog.text
    assert any(name.startswith("toy toy 2 seed 0") for name in report.failed)


def test_a_key_sent_twice_is_one_task(scheduler, tmp_path):
    """Two runs at once of the same cells: the scheduler knows each by its key."""
    computed = tmp_path / "computed"
    scheduler.worker()
    scheduler.wait(1)
    cells = toy_study.study(levels=10).cells("cpu", 2)
    settings = {"address": scheduler.address, "device": "cpu", "root": str(computed)}
    found: list[list[str]] = [[], []]

    def collect(mine: list[str]) -> None:
        mine += [o.key for o in cluster.outcomes_of_cluster(cells, toy_study.slow, **settings)]

    threads = [threading.Thread(target=collect, args=(mine,)) for mine in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert sorted(found[0]) == sorted(found[1]) == sorted(cell.key for cell in cells)
    keys = [line.split()[2] for line in computed.read_text().splitlines()]
    assert len(keys) < 40, "every cell was computed for both"


def test_names_of_tasks():
    one, two = toy_study.study(levels=2).cells("cpu", 1)
    other = toy_study.study("other", levels=2).cells("cpu", 1)[0]
    name = cluster.task_name(one, toy_study.slow, "cpu", None)
    assert name.startswith(f"toy-{one.key}-")
    assert name == cluster.task_name(one, toy_study.slow, "cpu", None)
    different = {
        cluster.task_name(two, toy_study.slow, "cpu", None),
        cluster.task_name(other, toy_study.slow, "cpu", None),
        cluster.task_name(one, toy_study.numbers, "cpu", None),
        cluster.task_name(one, toy_study.slow, "cuda", None),
        cluster.task_name(one, toy_study.slow, "cpu", "data"),
    }
    assert len(different - {name}) == 5


def test_no_scheduler(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "TIMEOUT", 1.0)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{nobody.getsockname()[1]}"
        start = time.monotonic()
        with pytest.raises(InputError, match="a scheduler that answers within 1 s") as caught:
            run(tmp_path, address)
    assert caught.value.argument == "dask"
    assert address in str(caught.value)
    assert time.monotonic() - start < 10
    assert list(tmp_path.rglob("*.json")) == []


@pytest.mark.parametrize("address", ["nonsense://x", "", "tcp://127.0.0.1", "tcp://127.0.0.1:notaport"])
def test_an_address_that_is_none(tmp_path, monkeypatch, address):
    monkeypatch.setattr(cluster, "TIMEOUT", 1.0)
    with pytest.raises(InputError, match="dask"):
        run(tmp_path, address)


def test_a_scheduler_without_workers(scheduler, tmp_path, monkeypatch):
    with distributed.Client(scheduler.address, timeout=60, set_as_default=False):
        pass  # it is up
    monkeypatch.setattr(cluster, "TIMEOUT", 5.0)
    with pytest.raises(InputError, match="a scheduler without workers"):
        run(tmp_path, scheduler.address)


def test_a_worker_with_other_versions_is_named_and_threads_are(scheduler, tmp_path, monkeypatch, caplog):
    scheduler.worker("--nthreads", "2")
    scheduler.wait(1)
    real = environment.versions()
    monkeypatch.setattr(cluster, "versions", Other({**real, "torch": "1.0", "certbound": "9"}))
    with caplog.at_level(logging.WARNING, "experiments"):
        run(tmp_path, scheduler.address, seeds=1)
    assert f"has certbound {real['certbound']}, this process 9" in caplog.text
    assert f"has torch {real['torch']}, this process 1.0" in caplog.text
    assert "runs 2 cells at once" in caplog.text


class Other:
    """Versions of this process; on a worker, where it is rebuilt as the real function, those of the worker."""

    def __init__(self, found: dict[str, object]) -> None:
        self.found = found

    def __call__(self) -> dict[str, object]:
        return self.found

    def __reduce__(self) -> object:
        return _real_versions, ()


def _real_versions() -> object:
    return environment.versions


def test_equal_versions_are_not_mentioned_and_a_device_is_asked_of_the_workers(scheduler, tmp_path, caplog):
    scheduler.worker()
    scheduler.wait(1)
    with caplog.at_level(logging.WARNING, "experiments"):
        run(tmp_path, scheduler.address, seeds=1)
    assert "has certbound" not in caplog.text
    assert "has torch" not in caplog.text
    assert "cells at once" not in caplog.text
    with pytest.raises(InputError, match="the device on every worker") as caught:
        run(tmp_path, scheduler.address, device="tpu9")
    assert caught.value.argument == "device"


def test_a_worker_without_the_code(scheduler, tmp_path):
    (tmp_path / "empty" / "experiments").mkdir(parents=True)
    (tmp_path / "empty" / "experiments" / "__init__.py").write_text("")  # another package of this name
    scheduler.worker(path=(tmp_path / "empty",))
    scheduler.wait(1)
    with pytest.raises(InputError, match="import experiments"):
        run(tmp_path / "out", scheduler.address)
