"""The doctor's table and the command line's exit codes and streams."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from certbound import cli, doctor
from certbound.errors import CertboundError, CertificateError, InputError, LadderError, MissingDependencyError

ROOT = Path(__file__).resolve().parent.parent


def _fake_demo(monkeypatch: pytest.MonkeyPatch, behaviour: Any) -> list[dict[str, Any]]:
    """Put a module in the place of certbound.demo.run; returns the arguments of its calls."""
    calls: list[dict[str, Any]] = []

    def run_demo(**arguments: Any) -> Any:
        calls.append(arguments)
        if isinstance(behaviour, BaseException):
            raise behaviour
        return behaviour

    module = ModuleType("certbound.demo.run")
    module.run_demo = run_demo  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "certbound.demo.run", module)
    return calls


# ---------------------------------------------------------------- doctor


def test_doctor_sees_a_blocked_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cvxpy", None)
    report = doctor.diagnose()
    row = next(r for r in report.rows if r.package == "cvxpy")
    assert row.installed is None
    assert row in report.missing
    assert "pip install 'certbound[sdp]'" in str(report)


def test_doctor_shows_auto_lirpas_own_command(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "auto_LiRPA" else real(name))
    (row,) = [r for r in doctor.diagnose().missing if r.package == "auto-lirpa"]
    assert "--no-deps auto-lirpa==0.3" in row.command


def test_doctor_says_nothing_is_missing_only_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert "Nothing is missing." in str(doctor.diagnose())
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    report = doctor.diagnose()
    assert len(report.missing) == len(report.rows) > 10
    assert "Nothing is missing." not in str(report)


def test_doctor_imports_nothing_heavy() -> None:
    code = (
        "import sys; from certbound.doctor import diagnose; str(diagnose());"
        "heavy = {'torch', 'numpy', 'scipy', 'cvxpy', 'matplotlib', 'auto_LiRPA', 'pyautoattack', 'sklearn'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_doctor_agrees_with_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def names(requirements: list[str]) -> set[str]:
        found = {re.split(r"[<>=\[; ]", r, maxsplit=1)[0] for r in requirements}
        return found - {"certbound"}

    declared = {"core": names(project["dependencies"])}
    extras = project["optional-dependencies"]
    declared |= {extra: names(extras[extra]) for extra in extras if extra != "dev"}
    declared["crown"] |= {"auto-lirpa"}  # cannot be declared: see pyproject.toml
    declared["report"] -= {"tqdm"}  # listed once, under crown
    rows = doctor.diagnose().rows
    shown = {extra: {r.package for r in rows if r.extra == extra} for extra in {r.extra for r in rows}}
    assert shown == declared


def test_doctor_verbose_lists_devices() -> None:
    environment = dict(doctor.diagnose(verbose=True).environment)
    assert "torch threads" in environment
    assert "cuda" in environment or "cuda:0" in environment


# ---------------------------------------------------------------- command line


def test_doctor_json_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--json"]) == 0
    out, err = capsys.readouterr()
    data = json.loads(out)
    assert data["schema_version"] == 1
    assert {"package", "installed", "command", "extra", "purpose", "module"} <= set(data["rows"][0])
    assert err == ""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (LadderError("5 > 3"), 1),
        (CertificateError("not positive definite"), 1),
        (InputError("delta", got="-1", needed=">= 0", fix="pass a radius"), 2),
        (PermissionError("results/demo"), 2),
        (MissingDependencyError("mlxtend", purpose="data", command="pip install 'certbound[data]'"), 3),
        (CertboundError("training diverged"), 70),
        (ZeroDivisionError("a defect"), 70),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, code: int
) -> None:
    _fake_demo(monkeypatch, error)
    assert cli.main(["demo"]) == code
    out, err = capsys.readouterr()
    assert out == ""  # nothing that looks like a result
    assert (str(error) or "interrupted") in err
    assert ("Traceback" in err) == isinstance(error, ZeroDivisionError)


def test_demo_passes_its_options(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    calls = _fake_demo(monkeypatch, "the table")
    assert cli.main(["demo", "--out", "a/b", "--seeds", "3", "--device", "cuda:0", "--quiet", "--quick"]) == 0
    assert calls == [{"out": Path("a/b"), "seeds": 3, "device": "cuda:0", "quiet": True, "quick": True}]
    assert capsys.readouterr().out == "the table\n"


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["demo", "--seeds", "0"], ["demo", "--seeds", "x"]])
def test_bad_usage_is_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as info:
        cli.main(arguments)
    assert info.value.code == 2
    assert "usage: certbound" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--help"], ["demo", "--help"], ["doctor", "--help"]])
def test_help_has_examples(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as info:
        cli.main(arguments)
    assert info.value.code == 0
    out = capsys.readouterr().out
    assert "example" in out and "certbound d" in out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as info:
        cli.main(["--version"])
    assert info.value.code == 0
    assert capsys.readouterr().out.startswith("certbound ")


def test_progress_goes_to_stderr_and_logging_is_left_as_it_was(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = logging.getLogger("certbound")
    before = (logger.level, list(logger.handlers))

    class Result:
        def __str__(self) -> str:
            logging.getLogger("certbound.demo").info("working")
            return "done"

    _fake_demo(monkeypatch, Result())
    assert cli.main(["demo"]) == 0
    assert capsys.readouterr() == ("done\n", "working\n")
    assert cli.main(["demo", "--quiet"]) == 0
    assert capsys.readouterr() == ("done\n", "")
    assert (logger.level, list(logger.handlers)) == before


def test_missing_package_in_a_real_process(tmp_path: Path) -> None:
    # joblib is what the demo needs first, before it starts workers; the limit is for a demo that does not notice
    code = "import sys; sys.modules['joblib'] = None; from certbound.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, "demo", "--quick", "--out", str(tmp_path)],
        capture_output=True, text=True, cwd=ROOT, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert "pip install 'certbound[demo]'" in done.stderr
    assert done.stdout == ""


def test_a_closed_pipe_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)  # the reader has gone before anything is written
    try:
        done = subprocess.run(
            [sys.executable, "-m", "certbound.cli", "doctor"],
            stdout=write, stderr=subprocess.PIPE, text=True, cwd=ROOT, check=False,
        )  # fmt: skip
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (0, "")
