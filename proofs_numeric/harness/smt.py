"""SMT over the reals (z3): hypotheses plus ``computed > claimed`` must be unsatisfiable, the hypotheses alone not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from proofs_numeric.harness.lemma import Query

TIMEOUT_SECONDS = 10


@dataclass(frozen=True)
class SmtOutcome:
    """``answer`` to the negated statement (unsat: proved), ``vacuous``: the hypotheses contradict each other."""

    label: str
    answer: str
    vacuous: bool
    margin: float


def _number(value: Any) -> float:
    """A model's value as a float (algebraic numbers to 12 digits)."""
    text = str(value.as_decimal(12)).rstrip("?")
    return float(text)


def decide(query: Query) -> SmtOutcome:
    """Ask z3; ``unknown`` (also a timeout) is reported as such."""
    import z3

    hypotheses, computed, claimed = query.build()
    computed, claimed = (v if z3.is_expr(v) else z3.RealVal(v) for v in (computed, claimed))
    # a context of its own: the order in which a shared one has seen terms changes how long nlsat takes
    own = z3.Context()
    hypotheses = [h.translate(own) for h in hypotheses]
    computed, claimed = computed.translate(own), claimed.translate(own)
    solver = z3.SolverFor("QF_NRA", ctx=own)
    solver.set("timeout", 1000 * TIMEOUT_SECONDS)
    solver.set("random_seed", 0)
    solver.add(*hypotheses)
    solver.push()
    solver.add(computed > claimed)
    answer, margin = str(solver.check()), 0.0
    if answer == "sat":
        model = solver.model()
        x, y = (_number(z3.simplify(model.eval(v, model_completion=True))) for v in (computed, claimed))
        margin = (x - y) / (abs(x) + abs(y)) if x or y else 0.0
    solver.pop()
    return SmtOutcome(query.label, answer, str(solver.check()) != "sat", margin)
