"""Gradient ascent on the violation ``(computed − claimed)/(|computed| + |claimed|)``, from hundreds of starts.

Floating point only proposes: the best points are rounded to rationals and decided by the lemma's ``evaluate``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from proofs_numeric.harness.exact import rational, snapped
from proofs_numeric.harness.lemma import Broken, Comparison, Lemma, Search

if TYPE_CHECKING:
    import torch

_POINTS = 6  # points at which a search is held against the exact statement
_TOLERANCE = 1e-5
_ENOUGH = 0.02  # a violation this large needs no further climbing


@dataclass(frozen=True)
class AscentOutcome:
    """What the searches of one lemma came to. ``violations`` are confirmed in exact arithmetic."""

    restarts: int
    best_margin: float
    violations: tuple[Comparison, ...]
    confirmed: tuple[Comparison, ...]
    unconfirmed: tuple[str, ...]


def climb(search: Search, *, restarts: int, steps: int, seed: int) -> tuple[list[list[float]], float]:
    """The best parameter vectors of a search and the largest margin seen."""
    import torch

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(restarts, search.size, generator=generator, dtype=torch.float64)
    # statements break where values tie or vanish: a third of the starts are small integers, slightly moved
    moved = torch.round(1.5 * start) + 0.01 * torch.randn(start.shape, generator=generator, dtype=torch.float64)
    start[::3] = moved[::3]
    x = start.requires_grad_()
    optimiser = torch.optim.Adam([x], lr=0.08)
    best = torch.full((restarts,), -math.inf, dtype=torch.float64)
    where = x.detach().clone()
    for step in range(steps + 1):
        for group in optimiser.param_groups:
            group["lr"] = 0.08 * (1.0 - step / (steps + 1)) + 1e-3
        margin = margins(search, x).max(dim=1).values
        with torch.no_grad():
            better = margin > best
            best = torch.where(better, margin, best)
            where[better] = x.detach()[better]
        if step == steps or float(best.max()) > _ENOUGH:
            break
        optimiser.zero_grad()
        (-margin.sum()).backward()
        x.grad = torch.nan_to_num(x.grad, nan=0.0, posinf=0.0, neginf=0.0).clamp(-1e3, 1e3)
        optimiser.step()
    order = torch.argsort(best, descending=True)[: search.candidates]
    return [where[i].tolist() for i in order], float(best.max())


def exact_candidates(search: Search, point: Sequence[float], *, every_digit: bool) -> list[list[object]]:
    """A parameter vector as rationals: short denominators, where ties are exact, and the floats themselves."""
    result: list[list[object]] = [[snapped(v, 12) for v in point], [snapped(v, 2000) for v in point]]
    if every_digit:
        result.append([rational(v) for v in point])
    return result


def margins(search: Search, x: torch.Tensor) -> torch.Tensor:
    """Each column's violation, (restarts, columns); NaN counts as none."""
    import torch

    computed, claimed = search.objective(x)
    scale = (computed.abs() + claimed.abs()).detach() + 1e-300
    return torch.nan_to_num(((computed - claimed) / scale).reshape(len(x), -1), nan=-1.0)


def disagreement(lemma: Lemma, search: Search, seed: int) -> str | None:
    """Hold the search's formula against the exact one at random points, lest it climb another statement."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(_POINTS, search.size, generator=generator, dtype=torch.float64)
    columns = margins(search, points).tolist()
    compared: set[str] = set()
    for point, floats in zip(points.tolist(), columns, strict=True):
        decided = lemma.evaluate(search.instance([rational(v) for v in point]), None)
        for label, value in zip(search.labels, floats, strict=True):
            exact = max((c.margin for c in decided if c.label == label), default=None)
            if exact is None:
                continue  # outside the hypothesis: nothing is claimed
            compared.add(label)
            if not abs(exact - value) <= _TOLERANCE:
                return f"{search.label}, {label}: the search computes {value:.6g}, exact arithmetic {exact:.6g}"
    missing = set(search.labels) - compared
    return f"{search.label}: {sorted(missing)} never compared with exact arithmetic" if missing else None


def run_searches(
    lemma: Lemma, broken: Broken, *, restarts: int, steps: int, seed: int, size: int = 0, stop_at_first: bool
) -> AscentOutcome:
    """Run every search of a lemma, deciding the best points exactly."""
    total, top = 0, -math.inf
    violations: list[Comparison] = []
    confirmed: list[Comparison] = []
    unconfirmed: list[str] = []
    for i, search in enumerate(lemma.searches(broken, size)):
        points, margin = climb(search, restarts=restarts, steps=steps, seed=seed + 7919 * i)
        total, top = total + restarts, max(top, margin)
        found = False
        if broken is None and search.labels:
            note = disagreement(lemma, search, seed + i)
            unconfirmed += [note] if note else []
        for point in points:
            # every digit is slow, and matters only where the floats say "violated" or "equal"
            for parameters in exact_candidates(search, point, every_digit=margin > -1e-9):
                decided = lemma.evaluate(search.instance(parameters), broken)
                confirmed.extend(decided)
                bad = [c for c in decided if not c.holds]
                violations.extend(bad)
                found = found or bool(bad)
            if found and stop_at_first:
                break
        if margin > 1e-7 and not found:
            unconfirmed.append(f"{search.label}: the floats say violated by {margin:.1e}, exact arithmetic does not")
        if found and stop_at_first:
            break
    return AscentOutcome(total, top, tuple(violations), tuple(confirmed), tuple(unconfirmed))
