"""experiments.runner and the command line: what is kept, copied, computed; what failed; what is said."""

from __future__ import annotations

import json
import logging
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import toy_study

from certbound import cli
from certbound.commands import study as command
from certbound.errors import InputError
from experiments import __main__, actions, environment, runner, store
from experiments import study as studies
from experiments.study import Study

ROOT = Path(__file__).resolve().parents[1]


def run(study: Study | list[Study], out: Path, **changes: Any) -> runner.RunReport:
    settings = {"scale": "cpu", "seeds": 3, "out": out, "progress": False, "function": toy_study.numbers}
    chosen = study if isinstance(study, list) else [study]
    return runner.run(chosen, **(settings | changes))


def counts(report: runner.RunReport, name: str = "toy") -> tuple[int, int, int, int]:
    found = report.studies[name]
    return found.run, found.reused, found.kept, found.failed


def rows(out: Path, name: str = "toy", scale: str = "cpu") -> tuple[studies.Row, ...]:
    return store.load_rows(out, scale, name)


class Ran:
    """A cell function that counts its calls."""

    def __init__(self) -> None:
        self.keys: list[str] = []

    def __call__(self, cell: studies.Cell, *, device: str, root: str | None) -> Any:
        self.keys.append(cell.key)
        return toy_study.numbers(cell, device=device, root=root)


class TestRun:
    def test_every_cell_is_a_row_with_all_that_decides_it(self, tmp_path):
        study = toy_study.study()
        report = run(study, tmp_path, root="data", device="cpu")
        assert counts(report) == (12, 0, 0, 0)
        assert report.exit_code == 0
        found = rows(tmp_path)
        assert [(r.level, r.seed) for r in found] == [(float(i), s) for i in range(4) for s in range(3)]
        for cell in study.cells("cpu", 3):
            (row,) = [r for r in found if r.key == cell.key]
            measures, details = toy_study.numbers(cell, device="cpu", root="data")
            assert (row.study, row.scale, row.arm, row.level) == ("toy", "cpu", "toy", cell.point.level)
            assert row.seed == cell.seed
            assert row.config == cell.point.config.to_dict()
            assert row.rule == study.rule.hash
            assert row.measures == measures
            assert row.details == details
            assert row.seconds > 0
            assert row.finished.endswith("+00:00")

    def test_environment(self, tmp_path):
        run(toy_study.study(levels=1), tmp_path, seeds=1)
        (row,) = rows(tmp_path)
        found = row.environment
        assert found["python"].startswith("3.")
        assert {"certbound", "numpy", "scipy", "torch", "machine", "threads", "device_name"} <= set(found)
        assert found["device"] == "cpu"
        git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
        assert found["revision"] == (git.stdout.strip() if git.returncode == 0 else None)

    def test_stored_cells_are_kept(self, tmp_path):
        study = toy_study.study()
        run(study, tmp_path, seeds=2)
        first = rows(tmp_path)
        ran = Ran()
        assert counts(run(study, tmp_path, seeds=3, function=ran)) == (4, 0, 8, 0)
        assert ran.keys == [c.key for c in study.cells("cpu", 3) if c.seed == 2]
        assert set(map(store.encode, first)) <= set(map(store.encode, rows(tmp_path)))
        assert counts(run(study, tmp_path, seeds=2, function=ran)) == (0, 0, 8, 0)
        assert len(rows(tmp_path)) == 12

    def test_fresh_computes_all_again(self, tmp_path):
        study = toy_study.study()
        run(study, tmp_path)
        assert counts(run(study, tmp_path, fresh=True)) == (12, 0, 0, 0)
        assert len(rows(tmp_path)) == 12
        assert counts(run(toy_study.study("other"), tmp_path, fresh=True), "other") == (12, 0, 0, 0)

    def test_two_processes_give_the_same_table(self, tmp_path):
        study = toy_study.study(levels=3)
        run(study, tmp_path / "one")
        report = run(study, tmp_path / "two", jobs=2)
        assert counts(report) == (9, 0, 0, 0)
        assert toy_study.table(rows(tmp_path / "one")) == toy_study.table(rows(tmp_path / "two"))

    @pytest.mark.parametrize(("jobs", "limiter"), [(1, True), (1, False), (2, True)])
    def test_one_thread_each(self, tmp_path, jobs, limiter, monkeypatch):
        import torch

        if not limiter:
            monkeypatch.setitem(sys.modules, "threadpoolctl", None)  # not installed
        before = torch.get_num_threads()
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        torch.set_num_threads(3)
        try:
            run(toy_study.study(levels=2), tmp_path, seeds=1, jobs=jobs, function=toy_study.threads)
            assert torch.get_num_threads() == 3  # the caller's own setting is back
        finally:
            torch.set_num_threads(before)
        for row in rows(tmp_path):
            assert (row.measures["threads"], row.details["omp"], row.environment["threads"]) == (1.0, "1", 1)

    def test_smoke_rows_lie_apart_and_are_the_ends_of_the_arms(self, tmp_path):
        study = toy_study.study(arms=("a", "b"))
        run(study, tmp_path, smoke=True, seeds=1)
        assert rows(tmp_path) == ()
        found = rows(tmp_path, scale="cpu-smoke")
        assert [(r.arm, r.level) for r in found] == [("a", 0.0), ("a", 3.0), ("b", 0.0), ("b", 3.0)]
        assert {r.scale for r in found} == {"cpu-smoke"}
        assert all(r.config["training"]["epochs"] == 1 for r in found)
        assert counts(run(study, tmp_path, seeds=1)) == (8, 0, 0, 0)

    def test_a_second_run_of_the_study_is_refused(self, tmp_path):
        with store.locked(tmp_path, "cpu", "toy"):
            with pytest.raises(InputError, match="one run of a study at a time"):
                run(toy_study.study(), tmp_path)
            run(toy_study.study("other"), tmp_path)
        assert rows(tmp_path) == ()

    def test_nothing_is_computed_while_a_later_study_is_locked(self, tmp_path):
        ran = Ran()
        with store.locked(tmp_path, "cpu", "b"), pytest.raises(InputError, match="b, where process"):
            run([toy_study.study("a"), toy_study.study("b")], tmp_path, function=ran)
        assert ran.keys == []
        run(toy_study.study("a"), tmp_path)  # and its own lock is free again

    def test_a_disk_that_is_full_ends_the_run_and_what_is_stored_stays(self, tmp_path, monkeypatch):
        real = store.write_bytes
        written = []

        def full(descriptor: int, data: bytes) -> None:
            if len(written) == 5:
                raise OSError(28, "No space left on device")
            written.append(data)
            real(descriptor, data)

        monkeypatch.setattr(store, "write_bytes", full)
        with pytest.raises(OSError, match="No space"):
            run(toy_study.study(), tmp_path)
        monkeypatch.undo()
        assert len(rows(tmp_path)) == 5
        assert not list(tmp_path.rglob("*.tmp"))
        assert counts(run(toy_study.study(), tmp_path)) == (7, 0, 5, 0)

    def test_a_configuration_twice_in_one_arm_at_one_level_is_refused(self, tmp_path):
        study = toy_study.study(points=lambda scale: (toy_study.point("a", 1.0), toy_study.point("a", 1.0)))
        with pytest.raises(InputError, match="distinct points"):
            run(study, tmp_path)

    @pytest.mark.parametrize(
        ("changes", "argument"),
        [
            ({"seeds": 0}, "seeds"), ({"seeds": -1}, "seeds"), ({"seeds": 2.0}, "seeds"), ({"seeds": True}, "seeds"),
            ({"jobs": 0}, "jobs"), ({"jobs": None}, "jobs"), ({"scale": "gpu"}, "scale"),
            ({"device": "tpu9"}, "device"), ({"device": "cuda:99"}, "device"), ({"device": ""}, "device"),
        ],
    )  # fmt: skip
    def test_bad_arguments_are_refused_by_name_before_anything_is_made(self, tmp_path, changes, argument):
        with pytest.raises(InputError) as caught:
            run(toy_study.study(), tmp_path, **changes)
        assert caught.value.argument == argument
        assert list(tmp_path.iterdir()) == []


class TestFailures:
    @pytest.mark.parametrize("jobs", [1, 2])
    def test_a_cell_that_raises_does_not_stop_the_others(self, tmp_path, jobs, caplog):
        study = toy_study.study()
        with caplog.at_level(logging.ERROR, "experiments"):
            report = run(study, tmp_path, jobs=jobs, function=toy_study.fails_at_two)
        assert counts(report) == (9, 0, 0, 3)
        assert report.exit_code == 1
        assert sorted({r.level for r in rows(tmp_path)}) == [0.0, 1.0, 3.0]
        failed = [c for c in study.cells("cpu", 3) if c.point.level == 2.0]
        assert sorted(report.failed) == sorted(f"toy toy 2 seed {c.seed} ({c.key})" for c in failed)
        assert all(name in str(report) for name in report.failed)
        assert caplog.text.count("RuntimeError: no number for two") == 3
        assert '"hidden": [3]' in caplog.text  # its configuration
        assert counts(run(study, tmp_path)) == (3, 0, 9, 0)  # the next run tries them again

    def test_nan_is_an_error_of_its_cell(self, tmp_path, caplog):
        report = run(toy_study.study(), tmp_path, function=toy_study.nan_at_two)
        assert counts(report) == (9, 0, 0, 3)
        assert "measures.sa: got NaN" in caplog.text

    def test_a_worker_that_dies_fails_its_cell_alone(self, tmp_path, caplog):
        report = run(toy_study.study(levels=6), tmp_path, seeds=1, jobs=2, function=toy_study.dies_at_two)
        assert counts(report) == (5, 0, 0, 1)
        assert report.exit_code == 1
        assert report.failed[0].startswith("toy toy 2 seed 0")
        assert "its process died" in caplog.text

    def test_a_failure_counts_for_every_study_that_waits_for_it(self, tmp_path):
        report = run([toy_study.study("a"), toy_study.study("b")], tmp_path, function=toy_study.fails_at_two)
        assert counts(report, "a") == (9, 0, 0, 3)
        assert counts(report, "b") == (0, 9, 0, 3)
        assert len(report.failed) == 6

    def test_interrupted(self, tmp_path):
        with pytest.raises(KeyboardInterrupt):
            run(toy_study.study(), tmp_path, function=toy_study.interrupted_at_two)
        assert [r.level for r in rows(tmp_path)] == [0.0, 1.0]
        assert counts(run(toy_study.study(), tmp_path)) == (10, 0, 2, 0)


class TestDamage:
    def test_a_damaged_row_is_set_aside_and_computed_anew(self, tmp_path, caplog):
        study = toy_study.study()
        run(study, tmp_path)
        before = toy_study.table(rows(tmp_path))
        path = sorted((tmp_path / "cpu" / "toy").glob("*.json"))[4]
        path.write_bytes(path.read_bytes().replace(b'"sa": 0.', b'"sa": 1.'))
        ran = Ran()
        assert counts(run(study, tmp_path, function=ran)) == (1, 0, 11, 0)
        assert [path.name.startswith(key) for key in ran.keys] == [True]
        assert "set aside as" in caplog.text
        assert toy_study.table(rows(tmp_path)) == before
        assert path.with_name(path.name + ".damaged").exists()

    def test_rows_of_cells_that_the_study_has_no_more_are_set_aside(self, tmp_path, caplog):
        run(toy_study.study(levels=4), tmp_path)
        smaller = toy_study.study(levels=3)
        assert len(runner.current_rows(smaller, tmp_path, "cpu")) == 9  # who only reads leaves them out
        assert len(rows(tmp_path)) == 12
        assert counts(run(smaller, tmp_path, seeds=1)) == (0, 0, 3, 0)
        assert {r.level for r in rows(tmp_path)} == {0.0, 1.0, 2.0}
        assert {r.seed for r in rows(tmp_path)} == {0, 1, 2}  # other seeds than those asked for are no left-overs
        assert len(list((tmp_path / "cpu" / "toy").glob("*.leftover"))) == 3
        assert "no cell of the study has this row any more" in caplog.text


class TestReuse:
    def test_a_cell_of_another_study_is_copied(self, tmp_path):
        first, second = toy_study.study("a"), toy_study.study("b", arms=("other",), rule=toy_study.rule(0.5))
        run(first, tmp_path, seeds=2)
        ran = Ran()
        assert counts(run(second, tmp_path, function=ran), "b") == (4, 8, 0, 0)
        assert len(ran.keys) == 4
        there = {r.key: r for r in rows(tmp_path, "a")}
        for row in rows(tmp_path, "b"):
            assert (row.study, row.arm, row.rule) == ("b", "other", second.rule.hash)
            if row.seed == 2:
                assert "reused_from" not in row.environment
                continue
            donor = there[row.key]
            assert row.environment == {**donor.environment, "reused_from": f"a toy {donor.level:g}"}
            assert (row.measures, row.details, row.config) == (donor.measures, donor.details, donor.config)
            assert (row.seconds, row.finished) == (donor.seconds, donor.finished)

    def test_a_copy_of_a_copy_names_the_first(self, tmp_path):
        for name in ("a", "b"):
            run(toy_study.study(name, levels=1), tmp_path, seeds=1)
        (tmp_path / "cpu" / "a" / store.file_name(rows(tmp_path, "a")[0])).unlink()
        run(toy_study.study("c", levels=1), tmp_path, seeds=1)
        assert rows(tmp_path, "c")[0].environment["reused_from"] == "a toy 0"

    def test_studies_of_one_run_share_their_cells(self, tmp_path):
        ran = Ran()
        report = run([toy_study.study("a"), toy_study.study("b", levels=6)], tmp_path, fresh=True, function=ran)
        assert counts(report, "a") == (12, 0, 0, 0)
        assert counts(report, "b") == (6, 12, 0, 0)
        assert len(ran.keys) == len(set(ran.keys)) == 18
        assert len(rows(tmp_path, "b")) == 18

    def test_two_arms_with_one_configuration_run_once(self, tmp_path):
        study = toy_study.study(points=lambda scale: (toy_study.point("a", 0.0), toy_study.point("b", 0.0)))
        ran = Ran()
        assert counts(run(study, tmp_path, function=ran)) == (3, 3, 0, 0)
        assert len(ran.keys) == 3
        assert [(r.arm, r.seed) for r in rows(tmp_path)] == [("a", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 1), ("b", 2)]
        assert counts(run(study, tmp_path)) == (0, 0, 6, 0)

    def test_a_damaged_row_of_another_study_is_not_copied(self, tmp_path):
        run(toy_study.study("a"), tmp_path)
        for path in (tmp_path / "cpu" / "a").glob("*.json"):
            path.write_text("{")
        assert counts(run(toy_study.study("b"), tmp_path), "b") == (12, 0, 0, 0)

    def test_other_scales_give_nothing(self, tmp_path):
        # the same configurations at both scales, so that only the folder tells them apart
        run(toy_study.study("a"), tmp_path, scale="paper")
        assert counts(run(toy_study.study("b"), tmp_path), "b") == (12, 0, 0, 0)

    def test_rows_under_another_rule_are_run_anew(self, tmp_path, caplog):
        old, new = toy_study.study(), toy_study.study(rule=toy_study.rule(-0.1))
        assert old.rule.hash != new.rule.hash
        run(old, tmp_path)
        run(toy_study.study("other"), tmp_path)  # equal cells, which must not be copied in their place
        ran = Ran()
        with caplog.at_level(logging.WARNING, "experiments"):
            assert counts(run(new, tmp_path, function=ran)) == (12, 0, 0, 0)
        assert len(ran.keys) == 12
        assert {r.rule for r in rows(tmp_path)} == {new.rule.hash}
        assert "12 rows were computed under another rule" in caplog.text


class TestCheck:
    def test_every_number_comes_back(self, tmp_path):
        run(toy_study.study(), tmp_path)
        report = runner.check("toy", scale="cpu", out=tmp_path, sample=5, function=toy_study.numbers)
        assert report.exit_code == 0
        assert len(set(report.checked)) == 5
        again = runner.check("toy", scale="cpu", out=tmp_path, sample=5, function=toy_study.numbers)
        other = runner.check("toy", scale="cpu", out=tmp_path, sample=5, seed=1, function=toy_study.numbers)
        assert again == report
        assert other.checked != report.checked
        every = runner.check("toy", scale="cpu", out=tmp_path, sample=100, function=toy_study.numbers)
        assert len(every.checked) == 12

    @pytest.mark.parametrize(
        ("stored", "now", "same"),
        [
            (1.0, 1.0 + 1e-7, True), (1.0, 1.0 + 1e-5, False), (1e-9, 2e-9, False), (0.0, 1e-13, True),
            (1e9, 1e9 + 1, True), (math.inf, math.inf, True), (math.inf, -math.inf, False), (math.inf, 1e300, False),
            (None, None, True), (None, 0.0, False), (0.5, None, False),
        ],
    )  # fmt: skip
    def test_what_differs_is_named(self, tmp_path, stored, now, same):
        def at(value: float | None) -> Any:
            return lambda cell, *, device, root: ({"sa": 0.5, "gap_inf": value, "train_seconds": id(value)}, {})

        run(toy_study.study(levels=1), tmp_path, seeds=1, function=at(stored))
        report = runner.check("toy", scale="cpu", out=tmp_path, function=at(now))
        assert report.exit_code == (0 if same else 1)
        if not same:
            assert len(report.differences) == 1
            assert report.differences[0].startswith("toy toy 0 seed 0: gap_inf was ")

    def test_a_measure_that_came_or_went_is_named(self, tmp_path):
        run(toy_study.study(levels=1), tmp_path, seeds=1, function=lambda c, *, device, root: ({"old": 1.0}, {}))
        report = runner.check("toy", scale="cpu", out=tmp_path, function=lambda c, *, device, root: ({"new": 1.0}, {}))
        assert [d.split(": ")[1].split(" ")[0] for d in report.differences] == ["new", "old"]

    def test_it_runs_the_stored_configuration(self, tmp_path):
        run(toy_study.study(levels=3), tmp_path)
        ran = Ran()
        runner.check("toy", scale="cpu", out=tmp_path, sample=9, function=ran)
        assert sorted(ran.keys) == sorted(r.key for r in rows(tmp_path))

    def test_a_key_that_is_not_that_of_the_configuration(self, tmp_path):
        run(toy_study.study(levels=1), tmp_path, seeds=1)
        (row,) = rows(tmp_path)
        store.save_row(tmp_path, replace(row, config={**row.config, "hidden": [77]}))
        report = runner.check("toy", scale="cpu", out=tmp_path, function=toy_study.numbers)
        assert report.exit_code == 1
        assert "what a configuration means has changed" in report.differences[0]

    def test_a_cell_that_fails_is_a_difference(self, tmp_path):
        run(toy_study.study(), tmp_path)
        report = runner.check("toy", scale="cpu", out=tmp_path, sample=12, function=toy_study.fails_at_two)
        assert report.exit_code == 1
        assert len(report.differences) == 3
        assert "no number for two" in report.differences[0]

    def test_no_rows(self, tmp_path):
        with pytest.raises(InputError, match="run it first"):
            runner.check("toy", scale="cpu", out=tmp_path, function=toy_study.numbers)

    @pytest.mark.parametrize("sample", [0, -1, 1.5])
    def test_bad_sample(self, tmp_path, sample):
        with pytest.raises(InputError, match="sample"):
            runner.check("toy", scale="cpu", out=tmp_path, sample=sample, function=toy_study.numbers)


class TestEnvironment:
    def repository(self, folder: Path) -> Path:
        for name in ("certbound", "experiments"):
            (folder / name).mkdir()
            (folder / name / "code.py").write_text("x = 1\n")
        for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
            author = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
            subprocess.run(["git", *author, *words], cwd=folder, check=True)
        return folder

    def test_clean_and_dirty(self, tmp_path):
        folder = self.repository(tmp_path)
        state = environment.git_state(folder)
        assert len(str(state["revision"])) == 40
        assert state["dirty"] is False
        (folder / "results.txt").write_text("what is not code makes no revision dirty")
        assert environment.git_state(folder) == state
        (folder / "experiments" / "new.py").write_text("")
        assert environment.git_state(folder) == {**state, "dirty": True}
        (folder / "experiments" / "new.py").unlink()
        (folder / "certbound" / "code.py").write_text("x = 2\n")
        assert environment.git_state(folder) == {**state, "dirty": True}

    def test_no_repository(self, tmp_path):
        assert environment.git_state(tmp_path) == {"revision": None, "dirty": None}


class TestCommandLine:
    @pytest.fixture(autouse=True)
    def toys(self, monkeypatch, tmp_path):
        made = {name: toy_study.study(name, levels=3) for name in ("toy", "other")}
        monkeypatch.setattr(studies, "MODULES", dict.fromkeys(made, ""))
        monkeypatch.chdir(tmp_path)

        def find(name: str) -> Study:
            if name not in made:
                raise InputError("study", got=repr(name), needed=f"one of {', '.join(made)}", fix="see `list`")
            return made[name]

        monkeypatch.setattr(studies, "find", find)
        self.function = toy_study.numbers

        def how(jobs: int, device: str, root: str | None, dask: str | None, function: object) -> runner.How:
            runner._check_count("jobs", jobs)
            environment.check_device(device)
            return runner.How(self.function, jobs, device, root, dask)

        monkeypatch.setattr(runner, "_how", how)

    @pytest.mark.parametrize("main", [__main__.main, lambda words: cli.main(["study", *words])])
    def test_list_run_check(self, capsys, main, tmp_path):
        assert main(["run", "toy", "--seeds", "2", "--quiet"]) == 0
        shown = capsys.readouterr()
        assert shown.out.split("\n")[1].split()[:5] == ["toy", "6", "0", "0", "0"]
        assert shown.err == ""
        assert len(rows(tmp_path / "results" / "studies")) == 6
        assert main(["list"]) == 0
        assert "cpu 6 (" in capsys.readouterr().out
        assert main(["check", "toy", "--sample", "2"]) == 0
        assert "every number comes back" in capsys.readouterr().out

    def test_json(self, capsys):
        assert cli.main(["study", "run", "all", "--seeds", "2", "--json", "--quiet"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["studies"]["toy"]["run"] == 6
        assert found["studies"]["other"]["reused"] == 6
        assert cli.main(["study", "list", "--json"]) == 0
        listed = json.loads(capsys.readouterr().out)["studies"]
        assert [row["study"] for row in listed] == ["toy", "other"]
        assert listed[0]["cells"] == {"cpu": 15, "paper": 15}
        assert listed[0]["stored"]["cpu"]["rows"] == 6
        assert cli.main(["study", "check", "toy", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["differences"] == []

    def test_progress_and_quiet(self, capsys):
        assert cli.main(["study", "run", "toy", "--seeds", "2"]) == 0
        assert "6/6" in capsys.readouterr().err
        assert cli.main(["study", "run", "toy", "--seeds", "3", "--quiet"]) == 0
        assert capsys.readouterr().err == ""

    def test_a_failed_cell_is_exit_code_1_and_named(self, capsys):
        self.function = toy_study.fails_at_two
        assert cli.main(["study", "run", "toy", "--seeds", "1", "--quiet"]) == 1
        shown = capsys.readouterr()
        assert "toy toy 2 seed 0" in shown.out
        assert "no number for two" in shown.err  # also where progress is silenced

    def test_a_number_that_differs_is_exit_code_1_and_named(self, capsys):
        assert cli.main(["study", "run", "toy", "--quiet"]) == 0
        self.function = lambda cell, *, device, root: ({"sa": -1.0}, {})
        assert cli.main(["study", "check", "toy", "--sample", "1", "--quiet"]) == 1
        assert "sa was " in capsys.readouterr().out

    def test_interrupt_is_exit_code_130(self, tmp_path):
        self.function = toy_study.interrupted_at_two
        assert cli.main(["study", "run", "toy", "--quiet"]) == 130
        assert len(rows(tmp_path / "results" / "studies")) == 2

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["run", "e99"], "study: got 'e99'"),
            (["report", "e99"], "study: got 'e99'"),
            (["check", "e99"], "study: got 'e99'"),
            (["run", "toy", "--device", "tpu9"], "device: got 'tpu9"),
            (["check", "toy"], "run it first"),
            (["report", "toy"], "run it first"),
        ],
    )
    def test_bad_input_is_exit_code_2(self, words, said, capsys, monkeypatch):
        monkeypatch.setitem(sys.modules, "experiments.report", Reports([]))
        assert cli.main(["study", *words]) == 2
        assert said in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["run", "toy", "--seeds", "0"], "--seeds: got '0'"),
            (["run", "toy", "--seeds", "many"], "--seeds: got 'many'"),
            (["run", "toy", "--jobs", "-1"], "--jobs: got '-1'"),
            (["run", "toy", "--scale", "gpu"], "--scale: invalid choice: 'gpu'"),
            (["check", "toy", "--sample", "0"], "--sample: got '0'"),
            (["run"], "STUDY"),
            ([], "ACTION"),
            (["walk"], "walk"),
        ],
    )
    def test_bad_usage_is_exit_code_2(self, words, said, capsys):
        with pytest.raises(SystemExit) as caught:
            cli.main(["study", *words])
        assert caught.value.code == 2
        assert said in capsys.readouterr().err

    def test_locked(self, capsys, tmp_path):
        with store.locked(tmp_path / "results" / "studies", "cpu", "toy"):
            assert cli.main(["study", "run", "toy"]) == 2
        assert "one run of a study at a time" in capsys.readouterr().err

    def test_report_of_what_is_stored(self, monkeypatch, capsys, tmp_path):
        calls: list[Any] = []
        monkeypatch.setitem(sys.modules, "experiments.report", Reports(calls))
        assert cli.main(["study", "run", "toy", "--seeds", "2", "--out", "o", "--quiet"]) == 0
        next((tmp_path / "o" / "cpu" / "toy").glob("*.json")).unlink()
        assert cli.main(["study", "report", "all", "--out", "o"]) == 0
        ((study, given, folder),) = calls
        assert (study.id, folder) == ("toy", Path("o/cpu/toy/report"))
        assert given == rows(tmp_path / "o")
        shown = capsys.readouterr()
        assert shown.out.endswith("\nwhat the report says\n")
        assert "toy: 1 cells of 2 seeds have no row" in shown.err
        assert "other has no rows" in shown.err

    def test_results(self, monkeypatch, capsys):
        calls: list[Any] = []
        monkeypatch.setitem(sys.modules, "experiments.results", Reports(calls))
        assert cli.main(["study", "results"]) == 0
        assert cli.main(["study", "results", "--from", "a", "--into", "b"]) == 0
        assert cli.main(["study", "results", "--scale", "paper", "--json"]) == 0
        here = (Path("results/studies"), Path("experiments"))
        assert calls == [(*here, "cpu"), (Path("a"), Path("b"), "cpu"), (*here, "paper")]
        assert "what the report says" in capsys.readouterr().out

    @pytest.mark.parametrize("missing", ["experiments", "experiments.actions"])
    def test_without_the_folder_a_checkout_is_asked_for(self, monkeypatch, capsys, missing):
        real = command.importlib.util.find_spec
        monkeypatch.setattr(
            command.importlib.util, "find_spec", lambda name, *more: None if name == missing else real(name, *more)
        )
        assert cli.main(["study", "list"]) == 2
        said = capsys.readouterr().err
        assert "checkout of the repository" in said
        assert "python -m experiments" in said

    def test_each_study_is_chosen_once(self):
        assert [s.id for s in actions.chosen(["other", "all", "toy"])] == ["other", "toy"]


class Reports:
    """Stands for the modules that write reports."""

    def __init__(self, calls: list[Any]) -> None:
        self.calls = calls

    def write_report(self, *arguments: Any) -> str:
        self.calls.append(arguments)
        return "what the report says"

    write_results = write_report


def test_real_studies_are_listed():
    words = [sys.executable, "-m", "experiments", "list", "--json", "--seeds", "1"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [row["study"] for row in json.loads(done.stdout)["studies"]] == list(studies.MODULES)
