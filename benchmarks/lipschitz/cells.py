"""Cells on disk: one JSON file each, written whole or not at all, used again while what it depends on is the same."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import certbound
from benchmarks.lipschitz.methods import Method

FORMAT: Final = 1
"""Raise it when what a peer is given, or what a cell stores, changes: every cell is then measured anew."""
_TRANSIENT: Final = frozenset({"not installed", "not available", "interrupted"})


@dataclass(frozen=True)
class Cell:
    """What is measured: a network (or trap), a problem (``l2``, ``linf-0-1``) and a method."""

    net: str
    problem: str
    method: Method
    trap: bool = False

    @property
    def filename(self) -> str:
        """Of the cell's file."""
        words = ("trap" if self.trap else "net", self.net, self.problem, self.method.name)
        return "__".join(re.sub(r"[^\w.-]", "_", w) for w in words) + ".json"

    def __str__(self) -> str:
        return f"{self.net} {self.problem} {self.method.name}"


@cache
def sources(folder: Path) -> str:
    """Digest of the Python files that decide our bounds."""
    seen = hashlib.sha256()
    package = folder / "certbound"
    own = folder / "benchmarks" / "lipschitz"
    files = [p for part in ("lipschitz", "norms", "io") for p in (package / part).glob("*.py")]
    files += [package / name for name in ("activations.py", "network.py", "rounding.py")]
    files = [*filter(Path.exists, files), own / "methods.py", own / "dual.py"]
    for path in sorted(files):
        seen.update(path.name.encode() + path.read_bytes())
    return seen.hexdigest()[:16]


def version(package: str) -> str:
    """The installed version, or "missing"."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def key(cell: Cell, subject: str, seed: int) -> dict[str, Any]:
    """What the cell's numbers depend on, apart from the limit; ``subject``: the digest of the weights."""
    found: dict[str, Any] = {"format": FORMAT, "net": cell.net, "problem": cell.problem, "method": cell.method.name,
                             "trap": cell.trap, "subject": subject, "seed": seed}  # fmt: skip
    if cell.method.ours or cell.trap:
        found["sources"] = sources(Path(certbound.__file__).parents[1])
    found["packages"] = {p: version(p) for p in cell.method.packages}
    return found


def write(path: Path, data: Mapping[str, Any]) -> None:
    """Atomically: a killed run leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with partial.open("w", encoding="utf-8") as file:
        json.dump(data, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read(path: Path, wanted: Mapping[str, Any], limit: float, memory: float) -> dict[str, Any] | None:
    """The stored cell if it still counts under this key and these limits, else None.

    A number found within the time counts; what ran out of time counts under its own limit or a smaller one; what failed
    under the same limits only. A file that cannot be read is measured anew.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["key"] != dict(wanted) or data["status"] in _TRANSIENT:
            return None
        ran_out = "time" in data["status"] or "limit" in data["status"] or "inaccurate" in data["status"]
        if ran_out:
            fits = limit <= data["limit"]
        elif data["value"] is not None:
            fits = data["wall_seconds"] <= limit or limit == data["limit"]
        else:
            fits = (limit, memory) == (data["limit"], data["memory"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return data if fits else None
