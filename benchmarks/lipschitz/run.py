"""Run the cells, each in a process of its own, and keep each as a file."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks.lipschitz import cells as store
from benchmarks.lipschitz import nets
from benchmarks.lipschitz.cells import Cell
from benchmarks.lipschitz.child import OVERRUN
from benchmarks.lipschitz.methods import TRAP_METHODS, Answer, Method, find

ROOT: Final = Path(__file__).resolve().parents[2]
JUDGES: Final = ("product", "sampled", "reference")
"""Always run: the other rows are judged by them."""
_PATIENCE: Final = 4.0  # of the reference, whose time is nobody's result
_THREADS: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_READING: Final = 600.0  # seconds for imports before and checks after the timed part


@dataclass(frozen=True)
class Plan:
    """What to run.

    Parameters
    ----------
    nets, problems, methods, traps : names. seed : of weights and training.
    limit : wall-clock seconds a cell; grace : seconds more for what keeps the limit itself. memory : GiB a cell.
    jobs : cells at a time. out : folder of the results.
    """

    nets: tuple[str, ...]
    problems: tuple[str, ...]
    methods: tuple[str, ...]
    traps: tuple[str, ...] = ()
    seed: int = 0
    limit: float = 300.0
    memory: float = 8.0
    grace: float = 10.0
    jobs: int = 1
    out: Path = Path("benchmarks/results/lipschitz")

    def cells(self) -> list[Cell]:
        """All of them, network by network."""
        chosen = [find(name) for name in dict.fromkeys((*JUDGES, *self.methods))]
        found = [Cell(n, p, m) for n in self.nets for p in self.problems for m in chosen]
        named = dict.fromkeys((*TRAP_METHODS, *(m for m in self.methods if ":" in m)))
        return found + [Cell(t, "l2", find(m), trap=True) for t in self.traps for m in named]


def parse_problem(name: str, n_outputs: int) -> tuple[float, tuple[int, int] | int | None]:
    """Norm and outputs: ``l2``; ``linf-J-Y`` is the margin ``f_J − f_Y`` (its only output, of a scalar network).

    >>> parse_problem("l2", 10), parse_problem("linf-0-1", 10), parse_problem("linf-0-1", 1)
    ((2.0, None), (inf, (0, 1)), (inf, 0))
    """
    if name == "l2":
        return 2.0, None
    match = re.fullmatch(r"linf-(\d+)-(\d+)", name)
    if match is None or match[1] == match[2]:
        raise ValueError(f"{name!r} is no problem: l2 or linf-0-1 (the margin of outputs 0 and 1)")
    if n_outputs == 1:
        return math.inf, 0
    pair = (int(match[1]), int(match[2]))
    if max(pair) >= n_outputs:
        raise ValueError(f"{name!r}: the network has {n_outputs} outputs")
    return math.inf, pair


def _environment() -> dict[str, str]:
    known = dict(os.environ) | dict.fromkeys(_THREADS, "1") | {"CUDA_VISIBLE_DEVICES": ""}
    known["PYTHONPATH"] = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH", "")) if p)
    return known


def _ended(code: int, error: str) -> Answer:
    """What a process that wrote no answer died of."""
    last = error.strip().splitlines()[-1:] or [""]
    if code == -signal.SIGALRM:
        return Answer(None, "time-out")
    name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return Answer(None, "failed", notes=(f"process died: {name} {last[0][:200]}".strip(),))


@dataclass(eq=False)
class Workers:
    """The processes under way, so that an interrupted run can end them."""

    processes: set[subprocess.Popen[bytes]] = field(default_factory=set)
    stopped: bool = False

    def stop(self) -> None:
        """End them; their cells are not kept."""
        self.stopped = True
        for process in tuple(self.processes):
            process.kill()

    def wait(self, command: list[str], error: Any, seconds: float) -> int:
        """Run one; its exit code."""
        # stdin stays open as long as this process lives: the child dies with it. A session of its own: Ctrl-C is ours.
        process = subprocess.Popen(
            command, cwd=ROOT, env=_environment(), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=error,
            start_new_session=True,
        )  # fmt: skip
        assert process.stdin is not None
        self.processes.add(process)
        try:
            if self.stopped:
                process.kill()
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGALRM)  # as its own clock would have done
            return process.wait()
        finally:
            process.stdin.close()
            self.processes.discard(process)


def measure(cell: Cell, plan: Plan, n_outputs: int, workers: Workers) -> dict[str, Any]:
    """One cell in a process of its own."""
    norm, outputs = parse_problem(cell.problem, n_outputs)
    limit = plan.limit * (_PATIENCE if cell.method.name == "reference" else 1.0)
    request = {"net": cell.net, "trap": cell.trap, "seed": plan.seed, "nets": str((plan.out / "nets").resolve()),
               "method": cell.method.name, "norm": norm, "outputs": outputs, "limit": limit,
               "grace": plan.grace, "memory": plan.memory}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = Path(folder, "request.json"), Path(folder, "answer.json")
        asked.write_text(json.dumps(request), encoding="utf-8")
        command = [sys.executable, "-m", "benchmarks.lipschitz.child", str(asked), str(answered)]
        with Path(folder, "stderr").open("w+", encoding="utf-8", errors="replace") as error:
            code = workers.wait(command, error, OVERRUN * limit + plan.grace + _READING)
            error.seek(0)
            said = error.read()
        times: dict[str, Any] = {"cpu_seconds": None, "wall_seconds": None, "peak_bytes": None}
        if code == 0 and answered.exists():
            return times | json.loads(answered.read_text(encoding="utf-8"))
        return times | asdict(_ended(code, said))


@contextlib.contextmanager
def _bar(total: int, *, quiet: bool) -> Iterator[Callable[[str], None]]:
    """A progress bar on stderr, called with what was done; plain lines without tqdm."""
    if quiet:
        yield lambda _: None
        return
    try:
        from tqdm import tqdm
    except ImportError:
        done = 0

        def plain(text: str) -> None:
            nonlocal done
            done += 1
            print(f"[{done}/{total}] {text}", file=sys.stderr)

        yield plain
        return
    with tqdm(total=total, unit="cell", desc="lipschitz", dynamic_ncols=True, file=sys.stderr) as bar:

        def show(text: str) -> None:
            bar.set_postfix_str(text)
            bar.update(1)

        yield show


def run(plan: Plan, *, quiet: bool = False) -> list[dict[str, Any]]:
    """Every cell of the plan, stored or measured now, in the plan's order."""
    folder = plan.out / "nets"
    networks = {name: nets.stored(name, plan.seed, folder) for name in plan.nets}
    for net in networks.values():
        for problem in plan.problems:
            parse_problem(problem, len(net.weights[-1]))
    todo = plan.cells()
    found: dict[Cell, dict[str, Any]] = {}
    workers = Workers()

    def one(cell: Cell) -> dict[str, Any]:
        subject = "trap" if cell.trap else networks[cell.net].digest
        path = plan.out / "cells" / cell.filename
        wanted = store.key(cell, subject, plan.seed)
        stored = store.read(path, wanted, plan.limit, plan.memory)
        if stored is not None:
            return stored
        n_outputs = 1 if cell.trap else len(networks[cell.net].weights[-1])
        answer = measure(cell, plan, n_outputs, workers)
        head = {"key": wanted, "limit": plan.limit, "memory": plan.memory, "net": cell.net, "trap": cell.trap,
                "problem": cell.problem, "method": cell.method.name, "label": cell.method.label}  # fmt: skip
        data = head | answer
        if not workers.stopped:
            store.write(path, data)
        return data

    with _bar(len(todo), quiet=quiet) as show, ThreadPoolExecutor(max(1, plan.jobs)) as pool:
        waiting = {pool.submit(one, cell): cell for cell in todo}
        try:
            for future in as_completed(waiting):
                cell = waiting[future]
                found[cell] = future.result()
                show(f"{cell}: {_brief(found[cell])}")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            workers.stop()
            raise
    return [found[cell] for cell in todo]


def _brief(cell: dict[str, Any]) -> str:
    if cell["value"] is None:
        return str(cell["status"])
    return f"{cell['value']:.5g}" + ("" if cell["cpu_seconds"] is None else f", {cell['cpu_seconds']:.3g} s")


def describe_methods(methods: Sequence[Method]) -> str:
    """For --help."""
    return "\n".join(f"  {m.name:<13} {m.label}" for m in methods)
