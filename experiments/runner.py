"""Runs the cells of studies: what is stored is kept, what another study has computed is copied, the rest is computed.

Whenever a run is killed, the rows that are stored are whole and the next run goes on from them to the same table. This
process is the only one that writes; workers (joblib, or a Dask cluster) send it their numbers.
"""

from __future__ import annotations

import json
import logging
import math
import random
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from certbound import text
from certbound.errors import InputError, MissingDependencyError
from certbound.types import SCHEMA_VERSION
from experiments import store
from experiments.config import Config
from experiments.environment import check_device, describe, one_thread
from experiments.study import Cell, Point, Row, Study

log = logging.getLogger(__name__)

CellFunction = Callable[..., tuple[Mapping[str, float | None], Mapping[str, Any]]]
"""``function(cell, device=…, root=…)`` gives measures and details, as ``experiments.cell.run_cell``."""

RELATIVE: Final = 1e-6
"""How far a number may lie from the stored one when it is checked: other machines sum in another order."""

ABSOLUTE: Final = 1e-12
"""The same for numbers that are rounding noise about zero."""


IDLE: Final = 15
"""Seconds after which a worker process without work ends: soon enough after its parent was killed."""


@dataclass(frozen=True)
class Outcome:
    """What a worker sends home. ``error``: the traceback of a cell that failed, which then has no numbers."""

    key: str
    measures: Mapping[str, float | None] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    finished: str = ""
    error: str | None = None


@dataclass(frozen=True)
class How:
    """Where and with what cells are computed. ``dask``: address of a scheduler, for which ``jobs`` does not matter."""

    function: CellFunction
    jobs: int = 1
    device: str = "cpu"
    root: str | None = None
    dask: str | None = None


@dataclass
class Counts:
    """Cells of a study: computed now, copied from an equal cell, stored before, failed; ``seconds`` of the first."""

    run: int = 0
    reused: int = 0
    kept: int = 0
    failed: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class RunReport:
    """What a run did. ``failed``: cells without a row, in words."""

    studies: Mapping[str, Counts]
    failed: tuple[str, ...]
    wall_seconds: float
    cpu_seconds: float

    @property
    def exit_code(self) -> int:
        """1 if a cell failed."""
        return 1 if self.failed else 0

    def __str__(self) -> str:
        total = Counts(*(sum(getattr(c, n) for c in self.studies.values()) for n in Counts.__dataclass_fields__))
        lines = [_line(name, counts) for name, counts in self.studies.items()]
        if len(lines) > 1:
            lines.append(_line("all", total))
        header = ("study", "run", "reused", "kept", "failed", "seconds a cell")
        said = f"{text.table(lines, header)}\n\n{self.wall_seconds:.1f} s wall, {self.cpu_seconds:.1f} s CPU"
        if self.failed:
            said += "\nfailed (their traceback is above):" + "".join(f"\n  {name}" for name in self.failed)
        return said

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "schema_version": SCHEMA_VERSION,
            "studies": {name: asdict(counts) for name, counts in self.studies.items()},
            "failed": list(self.failed),
            "wall_seconds": self.wall_seconds,
            "cpu_seconds": self.cpu_seconds,
        }


def _line(name: str, counts: Counts) -> tuple[str, ...]:
    mean = f"{counts.seconds / counts.run:.2f}" if counts.run else "-"
    return name, str(counts.run), str(counts.reused), str(counts.kept), str(counts.failed), mean


# ---------------------------------------------------------------- one cell


def work(cell: Cell, function: CellFunction, device: str, root: str | None) -> Outcome:
    """Compute a cell, in whatever process; its errors are part of the outcome, so that the others go on."""
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        with one_thread():
            measures, details = function(cell, device=device, root=root)
            environment = describe(device)
        numbers = {name: None if value is None else float(value) for name, value in measures.items()}
        return Outcome(
            key=cell.key,
            measures=store.normalised(numbers, "measures"),
            details=store.normalised(details, "details"),
            environment=environment,
            seconds=time.perf_counter() - wall,
            cpu_seconds=time.process_time() - cpu,
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
        )
    except Exception:  # noqa: BLE001  # any error of a cell: it goes home, is logged there, and fails the run at its end
        return Outcome(key=cell.key, error=traceback.format_exc())


def outcomes(cells: Sequence[Cell], how: How) -> Iterator[Outcome]:
    """Compute cells with distinct keys, each once, in any order."""
    if how.dask is not None:
        from experiments.cluster import outcomes_of_cluster

        yield from outcomes_of_cluster(cells, how.function, address=how.dask, device=how.device, root=how.root)
    elif how.jobs == 1:
        for cell in cells:
            yield work(cell, how.function, how.device, how.root)
    else:
        yield from _outcomes_of_processes(cells, how)


def _outcomes_of_processes(cells: Sequence[Cell], how: How) -> Iterator[Outcome]:
    """Worker processes on this machine.

    When one dies (out of memory, a crash in native code) joblib gives up all that were sent: those are then computed
    one by one, each in a process of its own, so that only the culprit fails.
    """
    try:
        from joblib import Parallel, delayed, parallel_config
        from joblib.externals.loky.process_executor import TerminatedWorkerError
    except ImportError as error:
        raise MissingDependencyError(
            "joblib", purpose="more than one job", command="pip install 'certbound[demo]'"
        ) from error
    waiting = list(cells)
    while waiting:
        sent: dict[str, Cell] = {}

        def tasks(cells: Sequence[Cell] = tuple(waiting), sent: dict[str, Cell] = sent) -> Iterator[Any]:
            for cell in cells:
                sent[cell.key] = cell
                yield delayed(work)(cell, how.function, how.device, how.root)

        done: set[str] = set()
        try:
            with parallel_config("loky", inner_max_num_threads=1):
                # max_nbytes: no memory maps, whose files a killed run would leave behind
                made: Any = Parallel  # its annotations lag behind what it takes
                pool = made(
                    n_jobs=how.jobs, return_as="generator_unordered", batch_size=1, max_nbytes=None,
                    idle_worker_timeout=IDLE,
                )  # fmt: skip
            for outcome in pool(tasks()):
                done.add(outcome.key)
                yield outcome
            return
        except TerminatedWorkerError as error:
            log.warning("a worker process died: %s", str(error).splitlines()[0])
        for key, cell in sent.items():
            if key not in done:
                yield _alone(cell, how)
        waiting = [cell for cell in waiting if cell.key not in sent]


def _alone(cell: Cell, how: How) -> Outcome:
    from joblib.externals.loky.process_executor import ProcessPoolExecutor, TerminatedWorkerError

    with ProcessPoolExecutor(max_workers=1) as pool:
        try:
            outcome: Outcome = pool.submit(work, cell, how.function, how.device, how.root).result()
        except TerminatedWorkerError as error:
            return Outcome(key=cell.key, error=f"its process died: {error}")
    return outcome


# ---------------------------------------------------------------- a run


def run(
    studies: Sequence[Study],
    *,
    scale: str,
    seeds: int,
    out: Path,
    jobs: int = 1,
    smoke: bool = False,
    fresh: bool = False,
    device: str = "cpu",
    root: str | None = None,
    dask: str | None = None,
    progress: bool = True,
    function: CellFunction | None = None,
) -> RunReport:
    """Compute and store every cell of the studies that has no row yet.

    Parameters
    ----------
    studies : distinct. scale : "cpu" or "paper". seeds : 0 to ``seeds`` − 1. out : folder of the store.
    jobs : processes; 1 computes in this one. smoke : see ``Study.cells``.
    fresh : compute anew what is stored. device, root : of the cell function. dask : address of a scheduler.
    function : ``experiments.cell.run_cell`` if None.

    A row is kept if the study's rule is still the one it was computed under; else its cell is stale and run anew. The
    row of an equal cell (configuration and seed) of another study at the same scale is copied, and says so.

    Raises
    ------
    InputError : an argument that cannot be used, a study that another process is running. OSError : a row that cannot
        be written; what is stored stays.
    """
    name = store.label(scale, smoke=smoke)
    _check_count("seeds", seeds)
    how = _how(jobs, device, root, dask, function)
    start = time.perf_counter()
    with ExitStack() as stack:
        for study in studies:
            stack.enter_context(store.locked(out, name, study.id))
        counts = {study.id: Counts() for study in studies}
        plan: dict[str, list[tuple[Study, Cell]]] = {}
        for study in studies:
            _plan(study, study.cells(scale, seeds, smoke=smoke), out, name, fresh, plan, counts[study.id])
        if not fresh:
            _reuse(plan, out, name, counts)
        failed: list[str] = []
        cpu_seconds = 0.0
        with _bar(len(plan), enabled=progress) as advance:
            for outcome in outcomes([places[0][1] for places in plan.values()], how):
                places = plan[outcome.key]
                advance(places[0][0].id)
                cpu_seconds += outcome.cpu_seconds
                if outcome.error is None:
                    _store(outcome, places, out, name, counts)
                    continue
                log.error("%s failed: %s\n%s", _words(places[0][1]), _configuration(places[0][1]), outcome.error)
                for study, cell in places:
                    counts[study.id].failed += 1
                    failed.append(_words(cell))
    return RunReport(counts, tuple(failed), time.perf_counter() - start, cpu_seconds)


def _how(jobs: int, device: str, root: str | None, dask: str | None, function: CellFunction | None) -> How:
    _check_count("jobs", jobs)
    if dask is None:  # else the workers' devices count: see the cluster
        check_device(device)
    if function is None:
        from experiments.cell import run_cell as function
    assert function is not None
    return How(function, jobs, device, root, dask)


def _check_count(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(name, got=repr(value), needed="an integer >= 1", fix=f"pass {name}=1 or more")


def _name(cell: Cell) -> str:
    return store.name_of(cell.key, cell.point.arm, cell.point.level)


def _words(cell: Cell) -> str:
    return f"{cell.study} {cell.point.arm} {cell.point.level:g} seed {cell.seed} ({cell.key})"


def _configuration(cell: Cell) -> str:
    return json.dumps(cell.point.config.to_dict())


def _plan(
    study: Study,
    cells: Sequence[Cell],
    out: Path,
    name: str,
    fresh: bool,
    plan: dict[str, list[tuple[Study, Cell]]],
    counts: Counts,
) -> None:
    """Add to ``plan`` (key → where its numbers go) the cells without a row; set aside what is no row of the study."""
    if len({_name(cell) for cell in cells}) != len(cells):
        raise InputError(
            f"{study.id}.points", got="a configuration twice in one arm at one level", needed="distinct points",
            fix="remove one",
        )  # fmt: skip
    store.tidy(out, name, study.id)
    present, left_over = _split(study, out, name)
    for row in left_over:
        path = store.set_left_over_aside(out, row)
        log.warning("%s: no cell of the study has this row any more, it is now %s", study.id, path.name)
    stored = {store.file_name(row): row for row in present}
    stale = 0
    for cell in cells:
        row = None if fresh else stored.get(_name(cell))
        if row is not None and row.rule == study.rule.hash:
            counts.kept += 1
            continue
        stale += row is not None
        plan.setdefault(cell.key, []).append((study, cell))
    if stale:
        log.warning("%s: %d rows were computed under another rule; their cells are run anew", study.id, stale)


def _split(study: Study, out: Path, name: str) -> tuple[list[Row], list[Row]]:
    """Stored rows that are of a cell the study has now, for whatever seed, and those of cells that it had."""
    rows = store.load_rows(out, name, study.id)
    scale, _, smoke = name.partition("-")
    seeds = 1 + max((row.seed for row in rows), default=0)
    names = {_name(cell) for cell in study.cells(scale, seeds, smoke=bool(smoke))}
    present = [row for row in rows if store.file_name(row) in names]
    return present, [row for row in rows if store.file_name(row) not in names]


def current_rows(study: Study, out: Path, scale: str) -> tuple[Row, ...]:
    """The stored rows of the cells that the study has now, sorted; ``scale`` is a :func:`store.label`."""
    return tuple(_split(study, out, scale)[0])


def _reuse(plan: dict[str, list[tuple[Study, Cell]]], out: Path, name: str, counts: Mapping[str, Counts]) -> None:
    """Take from the plan what an equal cell has computed. Stale rows give nothing: their rule asks for a new run."""
    files = store.files_by_key(out, name)
    for key, places in list(plan.items()):
        stale = {store.folder_of(out, name, study.id) / _name(cell) for study, cell in places}
        if stale & set(files.get(key, ())):
            continue
        donor = next(_readable(files.get(key, ())), None)
        if donor is None:
            continue
        for study, cell in places:
            store.save_row(out, _copy(donor, study, cell))
            counts[study.id].reused += 1
        del plan[key]


def _readable(paths: Iterable[Path]) -> Iterator[Row]:
    for path in paths:
        try:
            yield store.read_row(path)
        except (store.DamagedError, OSError) as error:  # the next run of its own study sets it aside
            log.warning("%s is not reused: %s", path, error)


def _copy(donor: Row, study: Study, cell: Cell) -> Row:
    origin = donor.environment.get("reused_from", f"{donor.study} {donor.arm} {donor.level:g}")
    return replace(
        donor, study=study.id, arm=cell.point.arm, level=cell.point.level, rule=study.rule.hash,
        environment={**donor.environment, "reused_from": origin},
    )  # fmt: skip


def _store(
    outcome: Outcome, places: Sequence[tuple[Study, Cell]], out: Path, name: str, counts: Mapping[str, Counts]
) -> None:
    """Write the outcome as the row of the cell that was run, and as a copy for every equal one."""
    study, cell = places[0]
    row = Row(
        study=study.id, scale=name, arm=cell.point.arm, level=cell.point.level, seed=cell.seed, key=cell.key,
        rule=study.rule.hash, config=cell.point.config.to_dict(), measures=outcome.measures, details=outcome.details,
        environment=outcome.environment, seconds=outcome.seconds, finished=outcome.finished,
    )  # fmt: skip
    store.save_row(out, row)
    counts[study.id].run += 1
    counts[study.id].seconds += outcome.seconds
    for other, equal in places[1:]:
        store.save_row(out, _copy(row, other, equal))
        counts[other.id].reused += 1


@contextmanager
def _bar(total: int, *, enabled: bool) -> Iterator[Callable[[str], None]]:
    """A progress bar on stderr: cells done, time left, the study of the last one. Messages appear above it."""
    if not enabled or total == 0:
        yield lambda study: None
        return
    try:
        from tqdm import tqdm
        from tqdm.contrib.logging import logging_redirect_tqdm
    except ImportError:
        yield lambda study: None
        return
    ours = [logging.getLogger("experiments")]
    with tqdm(total=total, unit="cell", dynamic_ncols=True) as bar, logging_redirect_tqdm(ours):

        def advance(study: str) -> None:
            bar.set_description_str(study, refresh=False)
            bar.update(1)

        yield advance


# ---------------------------------------------------------------- a check


@dataclass(frozen=True)
class CheckReport:
    """Stored cells that were run again: their names, and what differs, in words."""

    study: str
    checked: tuple[str, ...]
    differences: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        """1 if a number differs."""
        return 1 if self.differences else 0

    def __str__(self) -> str:
        said = [f"{self.study}: {len(self.checked)} cells run again from their stored configuration", *self.checked]
        return "\n".join([*said, *(self.differences or ("every number comes back",))])

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}


def check(
    study: str,
    *,
    scale: str,
    out: Path,
    smoke: bool = False,
    sample: int = 3,
    seed: int = 0,
    jobs: int = 1,
    device: str = "cpu",
    root: str | None = None,
    function: CellFunction | None = None,
) -> CheckReport:
    """Run stored cells again, each from its stored configuration, and compare every measure but times.

    Parameters
    ----------
    sample : how many, drawn with ``seed`` from the stored rows; all if there are fewer. The others: see :func:`run`.

    Raises
    ------
    InputError : no rows, an argument that cannot be used, a configuration that cannot be read any more.
    """
    name = store.label(scale, smoke=smoke)
    _check_count("sample", sample)
    how = _how(jobs, device, root, None, function)
    rows = {row.key: row for row in store.load_rows(out, name, study)}
    if not rows:
        raise InputError(
            "study", got=f"{study}, of which {store.folder_of(out, name, study)} holds no row", needed="stored rows",
            fix=f"run it first: python -m experiments run {study} --scale {scale}",
        )  # fmt: skip
    drawn = random.Random(seed).sample(sorted(rows), min(sample, len(rows)))
    cells = [
        Cell(study, scale, Point(rows[key].arm, rows[key].level, Config.from_dict(rows[key].config)), rows[key].seed)
        for key in drawn
    ]
    differences = [
        f"{_words(cell)}: its stored key is {key}: what a configuration means has changed since"
        for cell, key in zip(cells, drawn, strict=True)
        if cell.key != key
    ]
    if not differences:
        for outcome in outcomes(cells, how):
            differences += _differences(rows[outcome.key], outcome)
    return CheckReport(study, tuple(_words(cell) for cell in cells), tuple(differences))


def _differences(row: Row, outcome: Outcome) -> Iterable[str]:
    where = f"{row.study} {row.arm} {row.level:g} seed {row.seed}"
    if outcome.error is not None:
        yield f"{where} failed: {outcome.error}"
        return
    for name in sorted(set(row.measures) | set(outcome.measures)):
        old, new = (m.get(name, "absent") for m in (row.measures, outcome.measures))
        if not name.endswith("seconds") and not _same(old, new):
            yield f"{where}: {name} was {old!r} and is now {new!r}"


def _same(old: float | str | None, new: float | str | None) -> bool:
    if isinstance(old, float) and isinstance(new, float):
        return math.isclose(old, new, rel_tol=RELATIVE, abs_tol=ABSOLUTE)
    return old == new


__all__ = [
    "CellFunction", "CheckReport", "Counts", "How", "Outcome", "RunReport", "check", "current_rows", "outcomes", "run",
    "work",
]  # fmt: skip
