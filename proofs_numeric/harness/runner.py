"""Runs lemmas and self-tests, and says what failed. Prints nothing."""

from __future__ import annotations

import importlib
import math
import pkgutil
import platform
import random
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from typing import Any

import proofs_numeric
from proofs_numeric.harness.ascent import run_searches
from proofs_numeric.harness.exact import UndecidedError
from proofs_numeric.harness.lemma import Comparison, Lemma, Part
from proofs_numeric.harness.smt import decide

_NOT_LEMMAS = {"__main__", "harness"}


@dataclass(frozen=True)
class Budget:
    """How hard to try. ``size`` enlarges the instances, ``round_`` makes each round of a deep run a new one."""

    seed: int = 0
    examples: int = 600
    restarts: int = 160
    steps: int = 40
    size: int = 0
    round_: int = 0


TINY = Budget(examples=6, restarts=8, steps=3)


@dataclass(frozen=True)
class LemmaResult:
    """One row of the table. ``closest``: the largest computed/claimed that was seen, decided exactly."""

    name: str
    statement: str
    seed: int
    examples: int
    comparisons: int
    restarts: int
    closest: float
    closest_at: str
    smt: tuple[str, ...]
    counterexamples: tuple[str, ...]
    witnesses: tuple[str, ...]
    failures: tuple[str, ...]
    seconds: float
    checked: tuple[str, ...] = field(default=())

    @property
    def passed(self) -> bool:
        """No part failed."""
        return not self.failures


@dataclass(frozen=True)
class SelfTestResult:
    """One broken statement: the margin of each part that found it, None for a part that should have and did not."""

    name: str
    variant: str
    description: str
    found: dict[str, float | None]
    seconds: float
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Every part named by the variant found the violation."""
        return bool(self.found) and all(v is not None for v in self.found.values())


def lemma_names() -> list[str]:
    """Every module of the package but the machinery is a lemma: a new file registers itself."""
    return sorted(m.name for m in pkgutil.iter_modules(proofs_numeric.__path__) if m.name not in _NOT_LEMMAS)


def load(name: str) -> Lemma:
    """The lemma of a file: its ``LEMMA``, named like the file."""
    lemma = importlib.import_module(f"proofs_numeric.{name}").LEMMA
    if lemma.name != name:
        raise ValueError(f"proofs_numeric/{name}.py calls its lemma {lemma.name!r}")
    return lemma


def _seed(budget: Budget, lemma: Lemma, part: str) -> int:
    return random.Random(f"{budget.seed}/{budget.round_}/{lemma.name}/{part}").getrandbits(48)


def _describe(c: Comparison) -> str:
    return f"{c.label}: computed {c.computed:.9g} > claimed {c.claimed:.9g} (margin {c.margin:.2e})"


def _examples(lemma: Lemma, budget: Budget) -> int:
    return max(3, round(budget.examples * lemma.weight))


def _exact(
    lemma: Lemma, broken: str | None, budget: Budget, *, stop_after: int | None = None
) -> tuple[int, list[Comparison]]:
    """Decide random exact instances; (instances, comparisons)."""
    rng = random.Random(_seed(budget, lemma, "exact"))
    decided: list[Comparison] = []
    for i in range(_examples(lemma, budget)):
        decided.extend(lemma.evaluate(lemma.draw(rng, budget.size), broken))
        if stop_after is not None and sum(not c.holds for c in decided) >= stop_after:
            return i + 1, decided
    return _examples(lemma, budget), decided


def check_lemma(lemma: Lemma, budget: Budget) -> LemmaResult:
    """All four parts, and SMT, of one lemma."""
    started = time.perf_counter()
    failures: list[str] = []
    seen: list[Comparison] = []
    examples = restarts = 0
    try:
        examples, decided = _exact(lemma, None, budget)
        seen += decided
        failures += [f"exact: {_describe(c)}" for c in decided if not c.holds][:5]
    except UndecidedError as error:
        failures.append(f"exact: undecided, {error}")
    if not seen:
        failures.append("exact: no comparison was made")
    comparisons = len(seen)

    try:
        outcome = run_searches(
            lemma,
            None,
            restarts=budget.restarts,
            steps=budget.steps,
            seed=_seed(budget, lemma, "ascent"),
            size=budget.size,
            stop_at_first=False,
        )
        restarts = outcome.restarts
        seen += outcome.confirmed
        failures += [f"ascent: {_describe(c)}" for c in outcome.violations][:5]
        failures += [f"ascent: {note}" for note in outcome.unconfirmed]
        if not outcome.confirmed:
            failures.append("ascent: nothing was decided")
    except UndecidedError as error:
        failures.append(f"ascent: undecided, {error}")

    witnesses: list[str] = []
    for witness in lemma.witnesses:
        decided = [c for c in lemma.evaluate(witness.instance(), None) if c.label == witness.comparison]
        seen += decided
        top = max((c.ratio for c in decided), default=-math.inf)
        reached = any(c.sign == 0 for c in decided) if witness.at_least == 1.0 else top >= witness.at_least
        witnesses.append(f"{witness.label}: {top:.6g}")
        if not reached or any(not c.holds for c in decided):
            failures.append(f"witness: {witness.label} reaches {top:.9g}, needed {witness.at_least:g}")

    counterexamples: list[str] = []
    for counter in lemma.counterexamples:
        c = counter.check()
        counterexamples.append(f"{counter.label}: {c.computed:.6g} > {c.claimed:.6g}")
        if c.holds:
            failures.append(f"counterexample: {counter.label} is not violated ({c.computed:.9g} <= {c.claimed:.9g})")

    smt: list[str] = []
    for query in lemma.queries(None) if lemma.queries else ():
        result = decide(query)
        smt.append(f"{query.label}: {result.answer}")
        if result.answer != "unsat":
            failures.append(f"smt: {query.label}: {result.answer}, needed unsat")
        if result.vacuous:
            failures.append(f"smt: {query.label}: the hypotheses have no model (vacuous)")
    if not smt and not lemma.no_smt:
        failures.append("smt: no query and no reason given")

    closest = max((c for c in seen if c.holds), key=lambda c: c.ratio, default=None)
    checked = ["exact", "ascent"]
    checked += ["witness"] if witnesses else []
    checked += ["counterexample"] if counterexamples else []
    checked += ["SMT"] if smt else []
    return LemmaResult(
        name=lemma.name,
        statement=lemma.statement,
        seed=budget.seed,
        examples=examples,
        comparisons=comparisons,
        restarts=restarts,
        closest=closest.ratio if closest else 0.0,
        closest_at=closest.label if closest else "",
        smt=tuple(smt),
        counterexamples=tuple(counterexamples),
        witnesses=tuple(witnesses),
        failures=tuple(failures),
        seconds=time.perf_counter() - started,
        checked=tuple(checked),
    )


def self_test_variant(lemma: Lemma, variant: str, budget: Budget) -> SelfTestResult:
    """Run the parts of a lemma on a broken statement: each part that the variant names must find it false."""
    started = time.perf_counter()
    wanted: tuple[Part, ...] = lemma.broken[variant].parts
    found: dict[str, float | None] = {}
    notes: list[str] = []
    if "exact" in wanted:
        try:
            _, decided = _exact(lemma, variant, budget, stop_after=3)
            found["exact"] = max((c.margin for c in decided if not c.holds), default=None)
        except UndecidedError as error:
            found["exact"] = None
            notes.append(f"exact: undecided, {error}")
    if "ascent" in wanted:
        try:
            outcome = run_searches(
                lemma,
                variant,
                restarts=budget.restarts,
                steps=budget.steps,
                seed=_seed(budget, lemma, "ascent"),
                size=budget.size,
                stop_at_first=True,
            )
            found["ascent"] = max((c.margin for c in outcome.violations), default=None)
            notes += outcome.unconfirmed
        except UndecidedError as error:
            found["ascent"] = None
            notes.append(f"ascent: undecided, {error}")
    if "smt" in wanted:
        results = [decide(q) for q in (lemma.queries(variant) if lemma.queries else ())]
        found["smt"] = max((r.margin for r in results if r.answer == "sat"), default=None)
        notes += [f"{r.label}: {r.answer}" for r in results if r.answer not in {"sat", "unsat"}]
    return SelfTestResult(
        name=lemma.name,
        variant=variant,
        description=lemma.broken[variant].description,
        found=found,
        seconds=time.perf_counter() - started,
        notes=tuple(notes),
    )


def variants() -> list[tuple[str, str]]:
    """Every broken statement as (lemma, variant)."""
    return [(name, variant) for name in lemma_names() for variant in load(name).broken]


def _check_named(task: tuple[str, Budget]) -> LemmaResult:
    return check_lemma(load(task[0]), task[1])


def _self_test_named(task: tuple[str, str, Budget]) -> SelfTestResult:
    return self_test_variant(load(task[0]), task[1], task[2])


def _map(function: Any, tasks: Sequence[Any], jobs: int) -> Iterable[Any]:
    if jobs <= 1 or len(tasks) <= 1:
        yield from map(function, tasks)
        return
    # spawn: a forked child would share torch's and z3's state
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield from pool.map(function, tasks)


def check_all(names: Sequence[str], budget: Budget, jobs: int = 1) -> Iterable[LemmaResult]:
    """Results in the order of ``names``."""
    return _map(_check_named, [(name, budget) for name in names], jobs)


def self_test_all(names: Sequence[str], budget: Budget, jobs: int = 1) -> Iterable[SelfTestResult]:
    """Every broken statement of the named lemmas."""
    return _map(_self_test_named, [(n, v, budget) for n, v in variants() if n in names], jobs)


def merge(first: Sequence[LemmaResult], second: Sequence[LemmaResult]) -> list[LemmaResult]:
    """Two passes as one: counts and times add up, failures are joined, the closest approach is the closer."""
    merged = []
    for a, b in zip(first, second, strict=True):
        near = max(a, b, key=lambda r: r.closest)
        merged.append(
            replace(
                b,
                examples=a.examples + b.examples,
                comparisons=a.comparisons + b.comparisons,
                restarts=a.restarts + b.restarts,
                closest=near.closest,
                closest_at=near.closest_at,
                failures=a.failures + b.failures,
                seconds=a.seconds + b.seconds,
            )
        )
    return merged


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    found = {"python": platform.python_version()}
    for package in ("python-flint", "torch", "numpy", "z3-solver"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


def to_dict(results: Sequence[LemmaResult | SelfTestResult], budget: Budget, seconds: float) -> dict[str, Any]:
    """JSON-ready."""
    return {
        "schema_version": 1,
        "seed": budget.seed,
        "budget": asdict(budget),
        "versions": versions(),
        "seconds": seconds,
        "passed": all(r.passed for r in results),
        "results": [asdict(r) | {"passed": r.passed} for r in results],
    }
