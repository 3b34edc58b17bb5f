"""Which factor is to blame? ``log(bound / empirical gap)`` as a sum of the losses of the single steps.

From the bound down to what the attack finds, each step replaces one inequality by something tighter: Theorem 3.1's
value of each layer → its norm; blocks of layers multiplied → the layers bounded together; encoder times head norm →
each margin as one network; the worst class → the loss itself; the closed form → the best relaxation there is; global →
local (CROWN); what is left lies between the best certificate and the attack. The steps telescope, so they sum to the
whole; a step that gains instead of losing is negative and stays so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from certbound import text
from certbound.arrays import F64
from certbound.errors import InputError, UnsupportedLayerError
from certbound.lipschitz.recursion import recursion_2, recursion_inf
from certbound.methods import Problem
from certbound.robustness import certify_by_constants, head_constants, is_chain
from certbound.theorems.theorem31 import PaperForm, best_value, check_theorem31, measure
from certbound.types import SCHEMA_VERSION, norm_name

STARTS = ("printed", "derived", "sharp", "product", "cover", "recursion")
"""The bounds that can be taken apart."""

_TIGHTER = ("sdp", "patterns")
_LOCAL = ("CROWN", "alpha-CROWN", "CROWN-IBP", "IBP", "forward")


@dataclass(frozen=True)
class Step:
    """One step: ``log`` is the natural logarithm of the factor it loses; ``layer`` is 0-based, None for the network."""

    name: str
    log: float
    layer: int | None = None

    @property
    def label(self) -> str:
        """Name with its layer, counted from 1 as in the paper."""
        return self.name if self.layer is None else f"{self.name}, layer {self.layer + 1}"


@dataclass(frozen=True)
class Attribution:
    """The steps from a bound to the empirical gap; ``total`` = log(bound / empirical gap) = sum of the logs."""

    bound: str
    norm: float
    delta: float
    bound_gap: float
    empirical_gap: float
    steps: tuple[Step, ...]

    @property
    def total(self) -> float:
        """``log(bound / empirical gap)``."""
        return math.log(self.bound_gap / self.empirical_gap)

    @property
    def largest(self) -> Step:
        """The step that loses most."""
        return max(self.steps, key=lambda s: s.log)

    def by_name(self) -> dict[str, float]:
        """Logs added up over layers, in order."""
        result: dict[str, float] = {}
        for step in self.steps:
            result[step.name] = result.get(step.name, 0.0) + step.log
        return result

    def __str__(self) -> str:
        total = self.total
        rows = [
            (s.label, f"{math.exp(s.log):.4g}", f"{100 * s.log / total:.1f} %" if total else "-") for s in self.steps
        ]
        rows.append(("all", f"{math.exp(total):.4g}", "100.0 %"))
        title = f"{self.bound}, norm {norm_name(self.norm)}, delta {self.delta:g}"
        return text.table(rows, (title, "factor", "share of log"))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with ``schema_version``."""
        return {
            "schema_version": SCHEMA_VERSION,
            "bound": self.bound,
            "norm": text.json_number(self.norm),
            "delta": self.delta,
            "bound_gap": self.bound_gap,
            "empirical_gap": self.empirical_gap,
            "total": self.total,
            "steps": [{"name": s.name, "layer": s.layer, "log": s.log} for s in self.steps],
        }


def _theorem31_steps(problem: Problem, form: str) -> list[Step]:
    """Theorem 3.1 per layer: bound / norm as its named factors (all >= 1)."""
    part = "neuron" if math.isinf(problem.samples.norm) else "spectral"
    steps: list[Step] = []
    for i, w in enumerate(problem.chain.chain.encoder):
        if form == "sharp":
            m = measure(w)
            norm = m.vector(part).top * m.scale
            steps.append(Step("Theorem 3.1, sharp form", math.log(best_value(m, part, "sharp") / norm), i))
            continue
        report = check_theorem31(w, form=cast(PaperForm, form))
        items = (report.neuron if part == "neuron" else report.spectral).bound.slack
        steps += [Step(f"Theorem 3.1, {name}", math.log(factor), i) for name, factor in items]
    return steps


def _joint_encoder(problem: Problem) -> float:
    """The encoder's Lipschitz constant with all layers bounded together (closed-form recursion), p → p."""
    encoder = problem.chain.chain.encoder
    if math.isinf(problem.samples.norm):
        return max(recursion_inf(encoder[:-1], row)[0] for row in encoder[-1])
    return recursion_2(encoder[:-1], encoder[-1])


def attribute(
    problem: Problem,
    constants: Mapping[str, F64],
    gaps: Mapping[str, float],
    empirical: float | None,
    delta: float,
    bound: str = "printed",
) -> Attribution:
    """Take ``log(bound / empirical gap)`` apart; see :meth:`certbound.Comparison.attribution`.

    ``constants``: margin constants by method; ``gaps``: mean loss-gap bounds of the methods that ran; ``empirical``:
    the gap that an attack found.
    """
    if bound not in STARTS:
        raise InputError("bound", got=repr(bound), needed=f"one of {STARTS}", fix="'printed' is the paper's")
    if not is_chain(problem.samples.network):
        raise UnsupportedLayerError(
            "model",
            got="a network that is no chain of fully connected layers and ReLU",
            needed="one: the steps (Theorem 3.1 per layer, alignment, head) are those of such a chain",
            fix="compare the rows with each other; layer_report shows Theorem 3.1 layer by layer",
        )
    if bound not in gaps or empirical is None:
        raise InputError(
            "bound",
            got=f"a comparison without a '{bound}' bound or without an attack that ran",
            needed="both ends of the ratio",
            fix=f"run compare with methods=None, or with '{bound}' and 'apgd-ce' among them",
        )
    start = gaps[bound]
    if not (empirical > 0 and 0 < start < math.inf):
        raise InputError(
            "bound",
            got=f"a bound of {start:g} and an empirical gap of {empirical:g}",
            needed="both positive and finite: the logarithm of their ratio is taken apart",
            fix="choose a larger delta",
        )
    samples = problem.samples
    head = problem.chain.chain.head
    encoder_bounds, _ = problem.encoder
    steps: list[Step] = []
    value = start

    def gap(margin_constants: F64, *, corollary: bool) -> float:
        return float(np.mean(certify_by_constants(samples, margin_constants, delta, corollary=corollary).loss_gap))

    def go(name: str, to: float) -> None:
        """One step of the telescope."""
        nonlocal value
        steps.append(Step(name, math.log(value / to)))
        value = to

    if problem.chain.chain.encoder and bound != "recursion":
        if bound in ("printed", "derived", "sharp"):
            steps += _theorem31_steps(problem, bound)
            # the same alignment factors stand in both, so the quotient is Theorem 3.1's alone
            value = gap(head_constants(encoder_bounds["cover"].value, head, samples.norm), corollary=True)
        elif bound == "product":
            cover = head_constants(encoder_bounds["cover"].value, head, samples.norm)
            go("product of norms instead of pairs' alignment", gap(cover, corollary=True))
        joint = head_constants(_joint_encoder(problem), head, samples.norm)
        go("blocks of layers multiplied instead of bounded together", gap(joint, corollary=True))
    if bound != "recursion" and "recursion" in constants:
        go("encoder times head norm instead of margins", gap(constants["recursion"], corollary=True))
        go("largest class constant instead of the loss", gap(constants["recursion"], corollary=False))
    for name in _TIGHTER:
        if name in gaps:
            go(f"relaxation (closed form instead of {name})", gaps[name])
    local = [gaps[name] for name in _LOCAL if 0 < gaps.get(name, 0.0) < math.inf]
    if local:
        go("global instead of local", min(local))
        go("local certificate against attack", empirical)
    else:
        go("global instead of local, relaxation and attack", empirical)
    return Attribution(bound, samples.norm, delta, start, empirical, tuple(steps))
