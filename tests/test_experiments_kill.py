"""A run that is killed, again and again and in the middle of writes, ends with the table of a run that was not."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import toy_study

from experiments import runner, store

ROOT = Path(__file__).resolve().parents[1]
SEEDS = 4
STUDY = toy_study.study(levels=16)

DRIVER = '''
"""Runs the toy study. With KILL_AT > 0 the process kills itself when half of the KILL_AT-th file is written."""
import os, signal, sys
from pathlib import Path
sys.path.insert(0, os.environ["TESTS"])
import toy_study
from experiments import runner, store

out, computed, kills, kill_at, jobs = sys.argv[1:]
real, calls = store.write_bytes, []

def write_bytes(descriptor, data):
    calls.append(None)
    if len(calls) == int(kill_at):
        half = data[: len(data) // 2]
        real(descriptor, half)
        name = os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))
        with open(kills, "a") as file:
            file.write(f"mid-write {name} {len(half)} of {len(data)}\\n")
            file.flush()
            os.fsync(file.fileno())
        os.kill(os.getpid(), signal.SIGKILL)
    real(descriptor, data)

store.write_bytes = write_bytes

if __name__ == "__main__":
    print("started", flush=True)
    study = toy_study.study(levels=16)
    report = runner.run([study], scale="cpu", seeds=4, out=Path(out), root=computed, jobs=int(jobs), progress=False,
                        function=toy_study.slow)
    print("run", report.studies["toy"].run, "kept", report.studies["toy"].kept, flush=True)
'''


class Place:
    """Folders and logs of one test."""

    def __init__(self, folder: Path) -> None:
        self.out = folder / "out"
        self.rows_folder = self.out / "cpu" / "toy"
        self.computed, self.kills, self.driver = folder / "computed", folder / "kills", folder / "driver.py"
        self.computed.touch()
        self.kills.touch()
        self.driver.write_text(DRIVER)

    def start(self, kill_at: int = 0, jobs: int = 1) -> subprocess.Popen[str]:
        words = [self.driver, self.out, self.computed, self.kills, kill_at, jobs]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "TESTS": str(ROOT / "tests")}
        command = [sys.executable, *map(str, words)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True)
        assert child.stdout is not None
        assert child.stdout.readline() == "started\n"
        return child

    def note(self, line: str) -> None:
        with self.kills.open("a") as file:
            file.write(line + "\n")

    def kill_points(self) -> list[list[str]]:
        return [line.split() for line in self.kills.read_text().splitlines()]

    def computed_keys(self) -> list[str]:
        return [line.split()[2] for line in self.computed.read_text().splitlines()]

    def stored(self) -> list[str]:
        return sorted(path.name for path in self.rows_folder.glob("*.json"))

    def temporary(self) -> list[Path]:
        return sorted(self.rows_folder.glob(".*.tmp"))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("uninterrupted")
    runner.run([STUDY], scale="cpu", seeds=SEEDS, out=out, progress=False, function=toy_study.numbers)
    return toy_study.table(store.load_rows(out, "cpu", "toy"))


def killed_at_random(place: Place, draw: random.Random) -> Iterator[None]:
    """Children killed by this process, some time after they started."""
    while True:
        child = place.start()
        delay = draw.uniform(0.0, 0.3)
        time.sleep(delay)
        child.kill()
        child.communicate()
        assert child.returncode == -signal.SIGKILL, "it ended before it was killed"
        place.note(f"random after {delay:.3f} s with {len(place.stored())} rows")
        yield


def killed_in_a_write(place: Place, files: tuple[int, ...]) -> Iterator[None]:
    """Children that kill themselves with half of a file written."""
    for count in files:
        before = place.stored()
        child = place.start(kill_at=count)
        child.communicate()
        assert child.returncode == -signal.SIGKILL
        (word, name, half, _, whole) = place.kill_points()[-1]
        assert word == "mid-write"
        (left,) = place.temporary()  # what earlier kills left is gone, this one's half is there
        assert left.name == name
        assert left.stat().st_size == int(half) == int(whole) // 2 > 0
        assert len(place.stored()) == len(before) + count - 1
        yield


def test_killed_ten_times(place, uninterrupted):
    draw = random.Random(0)
    in_write, at_random = killed_in_a_write(place, (1, 3, 4, 2)), killed_at_random(place, draw)
    kinds = [in_write] * 4 + [at_random] * 7
    draw.shuffle(kinds)
    before: list[str] = []
    for kind in kinds:
        computed = len(place.computed_keys())
        next(kind)
        rows = store.load_rows(place.out, "cpu", "toy")
        assert len(rows) == len(place.stored()), "a file that is no row has the name of one"
        assert set(before) <= set(place.stored()), "a row was lost"
        again = {name.partition("-")[0] for name in before} & set(place.computed_keys()[computed:])
        assert not again, "a stored cell was computed again"
        before = place.stored()

    words = [point[0] for point in place.kill_points()]
    assert Counter(words) == {"mid-write": 4, "random": 7}

    last = place.start()
    said, _ = last.communicate()
    assert last.returncode == 0
    kept = len(before)
    assert 0 < kept < 64, "the kills must have left work to do"
    assert said == f"run {64 - kept} kept {kept}\n"
    assert toy_study.table(store.load_rows(place.out, "cpu", "toy")) == uninterrupted
    assert len(place.stored()) == 64
    assert place.temporary() == []
    assert sorted(path.name for path in place.rows_folder.iterdir()) == [".lock", *place.stored()]
    # each cell was computed once, but for those that a kill cut off between their end and their row
    times = Counter(place.computed_keys())
    assert set(times) == {cell.key for cell in STUDY.cells("cpu", SEEDS)}
    assert sum(times.values()) - 64 <= len(words)


def end_workers(child: subprocess.Popen[str]) -> None:
    """The workers of a killed child, which are the rest of its session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


@pytest.mark.parametrize("whom", ["parent", "group"])
def test_killed_with_two_workers(place, uninterrupted, whom):
    child = place.start(jobs=2)
    try:
        deadline = time.monotonic() + 300
        while len(place.stored()) < 5:
            assert time.monotonic() < deadline
            assert child.poll() is None
            time.sleep(0.01)
        if whom == "parent":
            child.kill()
        else:
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        place.note(f"{whom} with {len(place.stored())} rows")
        kept = len(place.stored())
        assert 5 <= kept < 64
        with store.locked(place.out, "cpu", "toy"):
            pass  # at once, whatever the workers still do
        second = place.start(jobs=2)
        said, _ = second.communicate(timeout=300)
        assert second.returncode == 0
        assert said == f"run {64 - kept} kept {kept}\n"
    finally:
        end_workers(child)
    assert toy_study.table(store.load_rows(place.out, "cpu", "toy")) == uninterrupted
    assert len(place.stored()) == 64
    assert place.temporary() == []


def test_killed_in_a_write_with_two_workers(place, uninterrupted):
    child = place.start(kill_at=7, jobs=2)
    try:
        child.wait(timeout=300)
        assert child.returncode == -signal.SIGKILL
        assert len(place.stored()) == 6
        assert len(place.temporary()) == 1
        second = place.start(jobs=2)
        second.communicate(timeout=300)
        assert second.returncode == 0
    finally:
        end_workers(child)
    assert toy_study.table(store.load_rows(place.out, "cpu", "toy")) == uninterrupted
    assert place.temporary() == []
