# ruff: noqa: T201  # a script: it prints
"""Break the library on purpose, one way at a time, and check that a test notices.

    python tests/mutate.py [word …]      # those whose name, file or tests contain a word; all without arguments

Each mutation of ``mutations.py`` is applied to a copy of ``certbound`` and ``tests`` in a temporary folder, and its
tests are run there with CERTBOUND_PROFILE=quick. The exit code is 1 if a mutation survives, or if the tests fail
without it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from mutations import MUTATIONS, Mutation

ROOT = Path(__file__).resolve().parent.parent


def run_tests(folder: Path, tests: Sequence[str]) -> tuple[int, str]:
    """Pytest's exit code and output in the copy."""
    environment = {
        **os.environ,
        "CERTBOUND_PROFILE": "quick",
        "PYTHONPATH": str(folder),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--tb=no", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def mutated(mutation: Mutation) -> str:
    """The file's text with the mutation in it."""
    source = (ROOT / mutation.file).read_text()
    if source.count(mutation.old) != mutation.count:
        found = source.count(mutation.old)
        raise SystemExit(f"{mutation.name}: {mutation.old!r} occurs {found} times in {mutation.file}: update the table")
    return source.replace(mutation.old, mutation.new)


def copy_of_the_repository(folder: Path) -> None:
    """What the tests need, and nothing that they could change."""
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("certbound", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", folder)


def main(names: Sequence[str]) -> int:
    """Run the mutations whose name, file or tests contain one of the words given."""
    chosen = [m for m in MUTATIONS if not names or any(w in f"{m.name} {m.file} {m.tests}" for w in names)]
    if not chosen:
        print("no mutation of that name; there are: " + ", ".join(m.name for m in MUTATIONS))
        return 2
    texts = [mutated(m) for m in chosen]  # all must apply before anything runs
    survivors: list[str] = []
    with tempfile.TemporaryDirectory(prefix="certbound-mutations-") as name:
        folder = Path(name)
        copy_of_the_repository(folder)
        code, output = run_tests(folder, sorted({test for m in chosen for test in m.tests}))
        if code:
            print(output, "\nthe tests fail without any mutation: repair them first", sep="")
            return 1
        for mutation, text in zip(chosen, texts, strict=True):
            target = folder / mutation.file
            original = target.read_text()
            target.write_text(text)
            started = time.perf_counter()
            code, output = run_tests(folder, mutation.tests)
            target.write_text(original)
            failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE)
            # 1: tests ran and failed. Anything else (2 interrupted, 4 usage, 5 none collected) caught nothing
            caught = failed[0] if code == 1 and failed else ""
            if not caught:
                survivors.append(mutation.name)
            seconds = time.perf_counter() - started
            print(f"{mutation.name:50}  {caught or f'SURVIVED (pytest {code})':90}  {seconds:5.1f} s", flush=True)
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} caught" + "".join(f"\nsurvived: {s}" for s in survivors))
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
