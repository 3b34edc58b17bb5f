"""experiments.store: rows are written whole or not at all, and come back as they were or not at all."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import toy_study

from certbound.errors import InputError
from experiments import store
from experiments.config import Config
from experiments.study import Row

ROOT = Path(__file__).resolve().parents[1]


def row(arm: str = "toy", level: float = 1.0, seed: int = 0, **changes: object) -> Row:
    config = toy_study.point(arm, level).config
    made = Row(
        study="toy", scale="cpu", arm=arm, level=level, seed=seed, key=config.key(seed), rule="r" * 64,
        config=config.to_dict(), measures={"sa": 0.1, "ra_inf": 1 / 3}, details={"curve": [0.1, 0.2]},
        environment={"device": "cpu"}, seconds=0.5, finished="2026-11-22T12:00:00+00:00",
    )  # fmt: skip
    return replace(made, **changes)


def files(out: Path) -> list[str]:
    return sorted(p.name for p in (out / "cpu" / "toy").iterdir() if p.name != ".lock")


class TestText:
    def test_round_trip_is_exact(self):
        numbers = {"a": 0.1, "b": -0.0, "c": 5e-324, "d": 1.7976931348623157e308, "e": 2.0**-1074, "f": None}
        there = row(measures=numbers)
        back = store.decode(store.encode(there))
        assert back == there
        assert math.copysign(1, back.measures["b"]) == -1

    def test_infinite_numbers(self):
        there = row(measures={"up": math.inf, "down": -math.inf}, details={"list": [math.inf, "inf"]})
        there = replace(there, level=math.inf)
        line = store.encode(there)
        assert json.loads(line)["measures"] == {"up": "inf", "down": "-inf"}
        back = store.decode(line)
        assert back == there
        assert back.measures["down"] == -math.inf
        assert back.details["list"] == [math.inf, "inf"]  # the number is a number again, the text still a text

    @pytest.mark.parametrize("words", ["inf", "-inf", "text:", "text:inf", "text:text:inf", "nan", "", "ℓ∞"])
    def test_texts_stay_texts(self, words):
        assert store.decode(store.encode(row(details={"t": words}))).details["t"] == words

    def test_the_configuration_comes_back(self):
        there = row()
        assert Config.from_dict(store.decode(store.encode(there)).config).key(0) == there.key

    @pytest.mark.parametrize(
        ("changes", "where"),
        [
            ({"measures": {"gap": math.nan}}, "measures.gap"),
            ({"measures": {"gap": np.float64("nan")}}, "measures.gap"),
            ({"details": {"curve": [0.0, math.nan]}}, "details.curve[1]"),
            ({"details": {"points": np.array([[0.0, np.nan]])}}, "details.points[0][1]"),
            ({"seconds": math.nan}, "seconds"),
            ({"details": {"f": max}}, "details.f"),
            ({"details": {1: 2}}, "details"),
        ],
    )
    def test_what_cannot_be_stored_is_refused_by_name(self, changes, where):
        with pytest.raises(InputError) as caught:
            store.encode(row(**changes))
        assert caught.value.argument == where

    def test_arrays_become_lists(self):
        there = row(details={"x": np.arange(3.0), "n": np.int64(4), "f": np.float32(0.5)})
        assert store.decode(store.encode(there)).details == {"x": [0.0, 1.0, 2.0], "n": 4, "f": 0.5}

    def test_every_changed_byte_is_seen(self):
        """One bit of each byte of a row is flipped: it is never read as another row."""
        there = row()
        line = store.encode(there).encode()
        for i in range(len(line)):
            changed = bytearray(line)
            changed[i] ^= 1
            try:
                assert store.decode(changed.decode()) == there  # 1e5 and 1E5, say
            except (store.DamagedError, UnicodeDecodeError):
                continue

    def test_every_truncation_is_seen(self):
        line = store.encode(row())
        for length in range(len(line)):
            with pytest.raises(store.DamagedError):
                store.decode(line[:length])

    @pytest.mark.parametrize(
        "line", ["", "null", "[]", "3", '"x"', "{}", '{"digest": 3}', "NaN", '{"digest": "", "x": NaN}', "[" * 100_000]
    )
    def test_other_json_is_no_row(self, line):
        with pytest.raises(store.DamagedError):
            store.decode(line)

    def test_another_schema_version_is_refused_although_its_digest_fits(self):
        content = json.loads(store.encode(row()))
        del content["digest"]
        content["schema_version"] += 1
        content["digest"] = store._digest(content)
        with pytest.raises(store.DamagedError, match="schema version"):
            store.decode(json.dumps(content))

    def test_a_field_that_a_row_has_not_is_refused_although_its_digest_fits(self):
        content = json.loads(store.encode(row()))
        del content["digest"]
        content["more"] = 1
        content["digest"] = store._digest(content)
        with pytest.raises(store.DamagedError, match="fields"):
            store.decode(json.dumps(content))


class TestPack:
    rows = tuple(row(arm, level, seed) for arm in ("b", "a") for level in (2.0, 0.5, 10.0) for seed in (1, 0))

    def test_order_does_not_matter(self):
        assert store.pack(self.rows) == store.pack(reversed(self.rows))

    def test_round_trip_is_sorted(self):
        back = store.unpack(store.pack(self.rows))
        assert sorted(map(store.encode, back)) == sorted(map(store.encode, self.rows))
        assert [(r.arm, r.level, r.seed) for r in back] == sorted((r.arm, r.level, r.seed) for r in self.rows)

    def test_one_line_a_row(self):
        assert [json.loads(line)["study"] for line in store.pack(self.rows).splitlines()] == ["toy"] * 12

    def test_a_changed_number_is_refused_with_its_line(self):
        lines = store.pack(self.rows).splitlines()
        lines[4] = lines[4].replace('"sa": 0.1', '"sa": 0.2')
        with pytest.raises(InputError, match=r"line 5.*digest"):
            store.unpack("\n".join(lines))

    def test_a_row_twice_is_refused(self):
        text = store.pack(self.rows)
        with pytest.raises(InputError, match="line 13"):
            store.unpack(text + text.splitlines()[0])

    def test_nothing(self):
        assert store.pack(()) == ""
        assert store.unpack("") == ()


class TestFiles:
    def test_saved_rows_come_back_sorted(self, tmp_path):
        rows = [row("b", 1.0, 0), row("a", 10.0, 1), row("a", 10.0, 0), row("a", 2.0, 0)]
        for each in rows:
            store.save_row(tmp_path, each)
        assert store.load_rows(tmp_path, "cpu", "toy") == (rows[3], rows[2], rows[1], rows[0])
        assert store.load_rows(tmp_path, "cpu", "other") == ()
        assert store.load_rows(tmp_path, "paper", "toy") == ()

    def test_two_arms_with_one_configuration_are_two_files(self, tmp_path):
        baseline = row("a", 0.0)
        store.save_row(tmp_path, baseline)
        store.save_row(tmp_path, replace(baseline, arm="b"))
        store.save_row(tmp_path, replace(baseline, level=-1.0))
        assert len(store.load_rows(tmp_path, "cpu", "toy")) == 3
        assert len(files(tmp_path)) == 3
        assert all(name.startswith(baseline.key) for name in files(tmp_path))

    def test_the_same_cell_is_one_file(self, tmp_path):
        store.save_row(tmp_path, row())
        store.save_row(tmp_path, row(measures={"sa": 0.9}))
        (back,) = store.load_rows(tmp_path, "cpu", "toy")
        assert back.measures == {"sa": 0.9}

    @pytest.mark.parametrize(
        "damage",
        [
            lambda b: b[: len(b) // 2],
            lambda b: b"",
            lambda b: b.replace(b'"sa": 0.1', b'"sa": 0.3'),
            lambda b: bytes([b[0], b[1] ^ 0x80]) + b[2:],
            lambda b: b + b"{}",
            lambda b: b"\xff\xfe\x00" + b,
            lambda b: b"\x00" * len(b),
        ],
        ids=["half", "empty", "another number", "flipped bit", "more behind", "no UTF-8", "zeros"],
    )
    def test_damaged_files_are_left_out_and_set_aside(self, tmp_path, damage, caplog):
        whole, broken = row(level=1.0), row(level=2.0)
        store.save_row(tmp_path, whole)
        path = store.save_row(tmp_path, broken)
        content = damage(path.read_bytes())
        path.write_bytes(content)
        with caplog.at_level(logging.WARNING, "experiments"):
            assert store.load_rows(tmp_path, "cpu", "toy") == (whole,)
            assert path.exists()  # who only reads moves nothing
            store.tidy(tmp_path, "cpu", "toy")
        assert path.name in caplog.text
        assert files(tmp_path) == sorted([store.file_name(whole), f"{path.name}.damaged"])
        assert (path.parent / f"{path.name}.damaged").read_bytes() == content

    def test_rows_in_a_wrong_place_are_damaged(self, tmp_path):
        path = store.save_row(tmp_path, row())
        for other in (
            path.with_name(path.name.replace(path.name[0], "f" if path.name[0] != "f" else "0", 1)),  # another key
            store.folder_of(tmp_path, "cpu", "other") / path.name,
            store.folder_of(tmp_path, "paper", "toy") / path.name,
        ):
            other.parent.mkdir(parents=True, exist_ok=True)
            other.write_bytes(path.read_bytes())
            with pytest.raises(store.DamagedError, match="the row of cpu/toy"):
                store.read_row(other)
        assert store.read_row(path) == row()

    def test_nothing_set_aside_is_overwritten(self, tmp_path):
        path = store.save_row(tmp_path, row())
        for content in (b"first", b"second", b"third"):
            path.write_bytes(content)
            store.tidy(tmp_path, "cpu", "toy")
        kept = [(path.parent / name).read_bytes() for name in files(tmp_path)]
        assert sorted(kept) == [b"first", b"second", b"third"]

    def test_temporary_files_of_dead_runs_go_and_foreign_files_stay(self, tmp_path):
        path = store.save_row(tmp_path, row())
        (path.parent / f".{path.name}.4711.tmp").write_bytes(b"half")
        (path.parent / "notes.txt").write_text("mine")
        (path.parent / "report").mkdir()
        store.tidy(tmp_path, "cpu", "toy")
        assert files(tmp_path) == sorted([path.name, "notes.txt", "report"])

    def test_tidy_of_nothing(self, tmp_path):
        store.tidy(tmp_path, "cpu", "toy")

    @pytest.mark.parametrize("scale", ["CPU", "", None, "cpu-smoke"])
    def test_unknown_scales_are_refused(self, scale):
        with pytest.raises(InputError, match="scale"):
            store.label(scale)


class TestWhole:
    """write_whole at its worst moments; a kill in the middle is in test_experiments_kill."""

    def saved(self, tmp_path: Path) -> Path:
        return store.save_row(tmp_path, row())

    @pytest.mark.parametrize("call", ["open", "write", "fsync", "replace", "close"])
    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EACCES])
    def test_a_call_that_fails_leaves_the_old_file_and_no_other(self, tmp_path, monkeypatch, call, code):
        path = self.saved(tmp_path)
        before = path.read_bytes()
        real = getattr(os, call)

        def fails(*arguments: object) -> object:
            if call == "write":
                real(arguments[0], arguments[1][:10])  # the disk is full in the middle
            if call == "close":
                real(*arguments)
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, call, fails)
        with pytest.raises(OSError, match=os.strerror(code)):
            store.save_row(tmp_path, row(measures={"sa": 0.9}))
        with pytest.raises(OSError, match=os.strerror(code)):
            store.save_row(tmp_path, row(level=3.0))
        monkeypatch.undo()
        assert path.read_bytes() == before
        assert files(tmp_path) == [path.name]

    def test_short_writes_are_continued(self, tmp_path, monkeypatch):
        real = os.write
        monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:7]))
        path = self.saved(tmp_path)
        monkeypatch.undo()
        assert store.read_row(path) == row()

    def test_what_is_renamed_is_on_the_disk_and_so_is_its_name(self, tmp_path, monkeypatch):
        """The order that survives a loss of power: write, fsync of the file, rename, fsync of the folder."""
        self.saved(tmp_path)
        calls = []
        for name in ("write", "fsync", "replace"):
            real = getattr(os, name)

            def noted(*arguments: object, name: str = name, real: object = real) -> object:
                target = os.readlink(f"/proc/self/fd/{arguments[0]}") if name == "fsync" else ""
                calls.append((name, "folder" if target and Path(target).is_dir() else ""))
                return real(*arguments)

            monkeypatch.setattr(os, name, noted)
        store.save_row(tmp_path, row(level=3.0))
        assert calls == [("write", ""), ("fsync", ""), ("replace", ""), ("fsync", "folder")]

    def test_the_temporary_file_names_its_process_and_lies_in_the_same_folder(self, tmp_path, monkeypatch):
        seen = []
        real = os.replace
        monkeypatch.setattr(os, "replace", lambda a, b: (seen.append((Path(a), Path(b))), real(a, b)))
        path = self.saved(tmp_path)
        assert seen == [(path.with_name(f".{path.name}.{os.getpid()}.tmp"), path)]

    def test_nan_writes_nothing(self, tmp_path):
        path = self.saved(tmp_path)
        before = path.read_bytes()
        with pytest.raises(InputError, match="NaN"):
            store.save_row(tmp_path, row(measures={"sa": math.nan}))
        assert path.read_bytes() == before
        assert files(tmp_path) == [path.name]

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_no_permission(self, tmp_path):
        path = self.saved(tmp_path)
        path.parent.chmod(0o500)
        try:
            with pytest.raises(PermissionError):
                store.save_row(tmp_path, row(level=3.0))
        finally:
            path.parent.chmod(0o700)
        assert files(tmp_path) == [path.name]

    def test_the_folder_is_a_file(self, tmp_path):
        (tmp_path / "cpu").write_text("")
        with pytest.raises(OSError, match=r"exists|directory"):
            self.saved(tmp_path)


HOLDER = """
import sys
from pathlib import Path
from experiments import store
with store.locked(Path(sys.argv[1]), "cpu", "toy"):
    print("held", flush=True)
    sys.stdin.read()
"""


class TestLock:
    def holder(self, out: Path) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    def test_a_second_run_is_refused_with_the_process(self, tmp_path):
        process = self.holder(tmp_path)
        try:
            with pytest.raises(InputError, match=f"process {process.pid} "), store.locked(tmp_path, "cpu", "toy"):
                pass
            with store.locked(tmp_path, "cpu", "other"), store.locked(tmp_path, "paper", "toy"):
                pass  # other folders are free
        finally:
            process.kill()
            process.communicate()
        # killed, not closed: the system gave the lock back
        with store.locked(tmp_path, "cpu", "toy"):
            assert (tmp_path / "cpu" / "toy" / ".lock").read_text() == f"{os.getpid()}\n"

    def test_a_run_that_ended_leaves_it_free(self, tmp_path):
        for _ in range(2):
            with store.locked(tmp_path, "cpu", "toy"):
                pass

    def test_a_run_that_failed_leaves_it_free(self, tmp_path):
        with pytest.raises(ZeroDivisionError), store.locked(tmp_path, "cpu", "toy"):
            raise ZeroDivisionError
        with store.locked(tmp_path, "cpu", "toy"):
            pass


def test_every_field_of_a_row_is_stored():
    assert set(json.loads(store.encode(row()))) == {f.name for f in fields(Row)} | {"schema_version", "digest"}
