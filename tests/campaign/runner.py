"""Chunks of matrices, each one file written in one step, so that a killed run loses at most what is in flight."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import platform
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from campaign.checks import Adjust, Tally, check_matrix, honest
from campaign.generate import Drawn, each_matrix

ROOT: Final = Path(__file__).resolve().parents[2]
_TESTED: Final = ("rounding.py", "compressibility.py", "arrays.py", "norms/*.py", "theorems/theorem31*.py")
_OURS: Final = ("generate.py", "oracle.py", "checks.py")
_KEPT: Final = 20  # violations written out for each chunk; all are counted


@dataclass(frozen=True)
class Plan:
    """Which chunks make up a campaign; chunk i has seed ``seed + i``."""

    matrices: int
    out: Path
    seed: int = 20261122
    chunk: int = 2000

    def sizes(self) -> list[int]:
        """Matrices in each chunk."""
        full, rest = divmod(self.matrices, self.chunk)
        return [self.chunk] * full + ([rest] if rest else [])

    def path(self, index: int) -> Path:
        """The file of one chunk."""
        return self.out / f"chunk-{self.seed + index:010d}.json"


def source_digest(root: Path = ROOT) -> str:
    """Of the files under test and of those that judge them: a chunk counts for these sources only."""
    files = [f for pattern in _TESTED for f in sorted((root / "certbound").glob(pattern))]
    files += [Path(__file__).parent / name for name in _OURS]
    h = hashlib.sha256()
    for file in files:
        h.update(f"{file.name}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\0".encode())
    return h.hexdigest()[:16]


def run_chunk(seed: int, count: int, adjust: Adjust = honest, parent: int | None = None) -> dict[str, Any]:
    """Draw and check ``count`` matrices; JSON-ready."""
    tally, seen, started = Tally(), set[bytes](), time.perf_counter()

    def visit(drawn: Drawn) -> None:
        if parent is not None and len(seen) % 64 == 0 and os.getppid() != parent:
            raise SystemExit(1)  # the run was killed: what is in flight is dropped
        W = drawn.matrix
        seen.add(hashlib.blake2b(bytes(W.shape) + W.tobytes(), digest_size=16).digest())
        check_matrix(drawn, tally, adjust)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # overflow on the way to an infinite bound
        each_matrix(seed, count, visit)
    return {
        "seed": seed,
        "count": sum(tally.kinds.values()),
        "distinct": len(seen),
        "kinds": dict(sorted(tally.kinds.items())),
        "checks": dict(sorted(tally.counts.items())),
        "n_violations": len(tally.violations),
        "violations": [asdict(v) for v in tally.violations[:_KEPT]],
        "seconds": round(time.perf_counter() - started, 3),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("numpy", "hypothesis", "python-flint")},
        },
    }


def write_atomically(path: Path, content: dict[str, Any]) -> None:
    """Under another name first: a reader finds the whole file or none."""
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    with temporary.open("w") as f:
        json.dump(content, f, indent=1)
        f.flush()
        os.fsync(f.fileno())
    os.replace(temporary, path)


def read_chunk(path: Path) -> dict[str, Any] | None:
    """A finished chunk, or None."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def unfinished(plan: Plan, digest: str) -> list[int]:
    """Chunks without a file of these sources and this size."""
    left = []
    for index, size in enumerate(plan.sizes()):
        done = read_chunk(plan.path(index))
        if done is None or done.get("digest") != digest or done.get("count") != size:
            left.append(index)
    return left


def _work(plan: Plan, indices: list[int], digest: str, parent: int | None) -> Iterator[dict[str, Any]]:
    sizes = plan.sizes()
    for index in indices:
        result = {"digest": digest, **run_chunk(plan.seed + index, sizes[index], parent=parent)}
        write_atomically(plan.path(index), result)
        yield result


def _worker(plan: Plan, indices: list[int], digest: str, parent: int, queue: Any) -> None:
    for result in _work(plan, indices, digest, parent):
        queue.put(result)
    queue.put(None)


def run(plan: Plan, *, jobs: int = 1, quiet: bool = False) -> int:
    """Do the chunks that are not done; 1 if any chunk of the plan has a violation, 2 if a worker died."""
    plan.out.mkdir(parents=True, exist_ok=True)
    digest = source_digest()
    left = unfinished(plan, digest)
    sizes = plan.sizes()
    total = sum(sizes[i] for i in left)
    if not quiet and len(left) < len(sizes):
        say(f"{len(sizes) - len(left)} of {len(sizes)} chunks are done already")
    progress = _Progress(total, quiet)
    died = False
    if jobs == 1 or len(left) <= 1:
        for result in _work(plan, left, digest, None):
            progress.step(result)
    else:
        context = multiprocessing.get_context("spawn")
        queue: Any = context.Queue()
        workers = [
            context.Process(target=_worker, args=(plan, left[j::jobs], digest, os.getpid(), queue), daemon=True)
            for j in range(jobs)
        ]
        for worker in workers:
            worker.start()
        running = jobs
        while running:
            try:
                result = queue.get(timeout=5.0)
            except Exception:  # noqa: BLE001  # queue.Empty of another context
                died = any(w.exitcode not in (None, 0) for w in workers)
                if died and not any(w.is_alive() for w in workers):
                    break
                continue
            if result is None:
                running -= 1
            else:
                progress.step(result)
        for worker in workers:
            worker.join()
    progress.close()
    if source_digest() != digest:
        say("the sources changed while the campaign ran: run it again", error=True)
        return 2
    summary = summarise(plan, digest)
    if not quiet:
        say(table(summary))
    return 2 if died or summary["chunks"] < len(sizes) else int(summary["violations"] > 0)


def summarise(plan: Plan, digest: str | None = None) -> dict[str, Any]:
    """Add up the finished chunks of a folder (of one digest; None: the current sources')."""
    digest = source_digest() if digest is None else digest
    kinds: Counter[str] = Counter()
    checks: Counter[str] = Counter()
    seeds: list[int] = []
    found: list[dict[str, Any]] = []
    matrices = distinct = violations = other = 0
    seconds = 0.0
    for path in sorted(plan.out.glob("chunk-*.json")):
        chunk = read_chunk(path)
        if chunk is None or chunk.get("digest") != digest:
            other += 1
            continue
        seeds.append(chunk["seed"])
        matrices += chunk["count"]
        distinct += chunk["distinct"]
        violations += chunk["n_violations"]
        seconds += chunk["seconds"]
        kinds.update(chunk["kinds"])
        checks.update(chunk["checks"])
        found += chunk["violations"]
    return {
        "digest": digest,
        "chunks": len(seeds),
        "chunks_of_other_sources": other,
        "matrices": matrices,
        "distinct": distinct,
        "violations": violations,
        "seeds": [min(seeds), max(seeds)] if seeds else [],
        "seconds": round(seconds, 1),
        "kinds": dict(sorted(kinds.items())),
        "checks": dict(sorted(checks.items())),
        "found": found[:_KEPT],
    }


def table(summary: dict[str, Any]) -> str:
    """For people."""
    seeds = summary["seeds"]
    per = 1000 * summary["seconds"] / max(1, summary["matrices"])
    rows = [
        ("sources", summary["digest"]),
        ("chunks", str(summary["chunks"])),
        ("matrices", f"{summary['matrices']:,} ({summary['distinct']:,} distinct within their chunk)"),
        ("violations", str(summary["violations"])),
        ("seeds", f"{seeds[0]} … {seeds[1]}" if seeds else "-"),
        ("process seconds", f"{summary['seconds']:,.0f} ({per:.2f} ms a matrix)"),
    ]
    if summary["chunks_of_other_sources"]:
        rows.append(("other sources", f"{summary['chunks_of_other_sources']} chunks, not counted"))
    rows += [(f"  {name}", f"{n:,}") for part in ("kinds", "checks") for name, n in summary[part].items()]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {value}" for name, value in rows]
    lines += [f"VIOLATION {v['check']} ({v['kind']}): {v['detail']}\n  {v['matrix']}" for v in summary["found"]]
    return "\n".join(lines)


def say(line: str, *, error: bool = False) -> None:
    """One line to the terminal."""
    (sys.stderr if error else sys.stdout).write(line + "\n")


class _Progress:
    """tqdm where it is installed, else a line a chunk; on stderr."""

    def __init__(self, total: int, quiet: bool) -> None:
        self.total, self.quiet, self.done, self.bad, self.started = total, quiet, 0, 0, time.perf_counter()
        self.bar: Any = None
        if not quiet:
            try:
                from tqdm import tqdm
            except ImportError:
                pass
            else:
                self.bar = tqdm(total=total, unit="matrix", mininterval=5.0)

    def step(self, result: dict[str, Any]) -> None:
        self.done += result["count"]
        self.bad += result["n_violations"]
        if self.quiet:
            return
        if self.bar is not None:
            self.bar.set_postfix_str(f"{self.bad} violations", refresh=False)
            self.bar.update(result["count"])
            return
        left = (time.perf_counter() - self.started) * (self.total - self.done) / max(1, self.done)
        say(f"{self.done:,} of {self.total:,}, {self.bad} violations, {left / 60:.1f} min left", error=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


__all__ = ["Plan", "read_chunk", "run", "run_chunk", "say", "source_digest", "summarise", "table", "unfinished"]
