"""A study whose cells take no time, for the tests of the runner: real configurations, numbers made from the key."""

from __future__ import annotations

import hashlib
import math
import os
import signal
import time
from dataclasses import replace
from typing import Any

from experiments.config import Config
from experiments.rules import At, Change, Condition, Rule
from experiments.study import Cell, Point, Row, Study


def rule(threshold: float = 0.0) -> Rule:
    return Rule((Condition("falls", Change("ra_inf", At("toy", 1.0), At("toy", 0.0)), "<", threshold),))


def point(arm: str, level: float, hidden: int | None = None) -> Point:
    return Point(arm, level, Config(hidden=(int(level) + 1 if hidden is None else hidden,)))


def study(name: str = "toy", arms: tuple[str, ...] = ("toy",), levels: int = 4, **changes: Any) -> Study:
    """``levels`` points an arm; arms share no configuration."""
    points = tuple(point(arm, float(i), 1 + i + 1000 * a) for a, arm in enumerate(arms) for i in range(levels))
    words = dict.fromkeys(("title", "claim", "source", "level", "varies", "fixed", "supported_if", "refuted_if"), "toy")
    made = Study(id=name, **words, rule=rule(), points=lambda scale: points)
    return replace(made, **changes)


def numbers(cell: Cell, *, device: str, root: str | None) -> tuple[dict[str, float | None], dict[str, Any]]:
    """Measures that depend on the key alone."""
    digits = hashlib.sha256(cell.key.encode()).digest()
    measures = {"sa": digits[0] / 255, "ra_inf": digits[1] / 7, "bound_inf/printed": math.inf, "bound_inf/sdp": None}
    return measures, {"curve": [b / 3 for b in digits], "root": root}


def slow(cell: Cell, *, device: str, root: str | None) -> tuple[dict[str, float | None], dict[str, Any]]:
    """The same after a while; it notes that it was run in the file ``root``, if there is one."""
    time.sleep(0.05)
    if root is not None:
        with open(root, "a", encoding="utf-8") as file:
            file.write(f"{os.getpid()} {cell.study} {cell.key}\n")
    return numbers(cell, device=device, root=None)


def fails_at_two(cell: Cell, *, device: str, root: str | None) -> tuple[dict[str, float | None], dict[str, Any]]:
    if cell.point.level == 2.0:
        raise RuntimeError("no number for two")
    return numbers(cell, device=device, root=root)


def dies_at_two(cell: Cell, *, device: str, root: str | None) -> tuple[dict[str, float | None], dict[str, Any]]:
    if cell.point.level == 2.0:
        os.kill(os.getpid(), signal.SIGKILL)
    return slow(cell, device=device, root=root)


def nan_at_two(cell: Cell, *, device: str, root: str | None) -> tuple[dict[str, float | None], dict[str, Any]]:
    measures, details = numbers(cell, device=device, root=root)
    return (measures | {"sa": math.nan} if cell.point.level == 2.0 else measures), details


def threads(cell: Cell, *, device: str, root: str | None) -> tuple[dict[str, float | None], dict[str, Any]]:
    import torch

    return {"threads": float(torch.get_num_threads())}, {"omp": os.environ["OMP_NUM_THREADS"]}


def interrupted_at_two(cell: Cell, *, device: str, root: str | None) -> tuple[dict[str, float | None], dict[str, Any]]:
    if cell.point.level == 2.0:
        raise KeyboardInterrupt
    return numbers(cell, device=device, root=root)


def table(rows: tuple[Row, ...]) -> str:
    """All that two runs of the same cells must agree on, byte for byte."""
    from experiments.store import pack

    return pack(replace(row, environment={}, seconds=0.0, finished="") for row in rows)
