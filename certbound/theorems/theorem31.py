"""Theorem 3.1: compressibility forces operator norms up, "structure x scale".

For W of shape (m, n), r = min(m, n), singular values σ and row ℓ1 norms ν (decreasing):

* spectral: ``‖W‖_2 <= (1−ε_σ)/(1−β_σ) · √r/k_σ · ‖W‖_F``;
* neuron, derived: ``‖W‖_∞ <= (1−ε_ν)/(1−β_ν) · (√(m k_r) + √(m n) ε_r)/k_ν · ‖W‖_F``;
* neuron, printed: ``‖W‖_∞ <= (1−ε_ν)/(1−β_ν) · (√(m k_r) + √(m n) ε_r/k_ν) · ‖W‖_F``.

ε is the EXACT tail ratio or anything smaller, β the exact dispersion or anything larger: the bound
falls in ε, so membership "τ <= ε" alone proves nothing (W = I_4, k = 1, ε = 0.9 "violates" it).

Source: Barsbey, Ribeiro, Simsekli, Birdal, *On the Interaction of Compressibility and Adversarial
Robustness*, ICLR 2026, Theorem 3.1; the derived and the sharp forms are certbound's.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np

from certbound import text
from certbound.arrays import F64, as_matrix, digest, power_of_two_scale
from certbound.bound import Bound, Claim, vacuous_bound
from certbound.compressibility import (
    Dispersion,
    Profile,
    check_dispersion,
    check_fraction,
    check_k,
    first_k,
    profile,
    row_tails,
)
from certbound.errors import InputError
from certbound.norms.dense import check_rigor, rescale
from certbound.types import SCHEMA_VERSION, Quantity, Rigor, Sense, Status

Form = Literal["derived", "printed", "sharp"]
PaperForm = Literal["derived", "printed"]
Part = Literal["spectral", "neuron"]

_SOURCE = "Barsbey et al., ICLR 2026, Theorem 3.1"
_SHARP_SOURCE = "certbound theory, section 2 (sharp form of Theorem 3.1)"


@dataclass(frozen=True, eq=False)
class Sweep:
    """One part for every k (arrays of equal length, k = 1 …), with exact ε and β.

    Rigorous: ``bound`` and ``sharp`` are upper ends, ``lower`` lower ends; ``holds`` is None where undecided.
    """

    k: F64
    epsilon: F64
    beta: F64
    bound: F64
    sharp: F64
    lower: F64
    holds: bool | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready lists."""
        names = ("k", "epsilon", "beta", "bound", "sharp", "lower")
        return {name: [text.json_number(v) for v in getattr(self, name)] for name in names}


@dataclass(frozen=True)
class Theorem31Part:
    """One part (spectral or neuron) of the report; see :func:`check_theorem31` for the words.

    The three intervals are there in rigorous mode: the norm and the exact ε and β lie between their ends. ``norm``,
    ``epsilon``, ``beta`` and ``slack`` are floats for reading in both modes.
    """

    part: Part
    norm: float
    frobenius_norm: float
    k: int
    epsilon: float
    beta: float
    exact_epsilon: float
    exact_beta: float
    hypothesis_met: bool
    hypothesis: str
    bound: Bound
    sharp: Bound
    lower: Bound
    slack: float
    vacuous: bool
    holds: bool | None
    status: Status
    k_row: int | None = None
    epsilon_row: float | None = None
    norm_interval: tuple[float, float] | None = None
    epsilon_interval: tuple[float, float] | None = None
    beta_interval: tuple[float, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        result: dict[str, Any] = {}
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if isinstance(value, Bound):
                value = value.to_dict()
            elif isinstance(value, Status):
                value = value.name
            elif isinstance(value, float):
                value = text.json_number(value)
            elif isinstance(value, tuple):
                value = [text.json_number(v) for v in cast("tuple[float, ...]", value)]
            result[name] = value
        return result


@dataclass(frozen=True)
class Theorem31Report:
    """Both parts of Theorem 3.1 for one matrix. ``holds`` is None where the hypothesis is not met, or (rigorous)
    where the enclosures cannot tell.
    """

    shape: tuple[int, int]
    subject: str
    form: PaperForm
    dispersion: Dispersion
    rigor: Rigor
    spectral: Theorem31Part
    neuron: Theorem31Part
    sweep: Mapping[Part, Sweep] | None

    @property
    def hypothesis_met(self) -> bool:
        """True when both parts' numbers satisfy the hypothesis."""
        return self.spectral.hypothesis_met and self.neuron.hypothesis_met

    @property
    def holds(self) -> bool | None:
        """True, False, or None: a hypothesis not met, or undecided (a met hypothesis that fails wins: False)."""
        parts = (self.spectral.holds, self.neuron.holds)
        if False in parts:
            return False
        return None if None in parts else True

    def __str__(self) -> str:
        header = (f"Theorem 3.1 ({self.form}, {self.dispersion})", "spectral (2)", "neuron (inf)")
        parts = (self.spectral, self.neuron)
        rows = [
            ("norm", *(text.number(p.norm) for p in parts)),
            ("k", *(str(p.k) for p in parts)),
            ("epsilon", *(text.number(p.epsilon) for p in parts)),
            ("beta", *(text.number(p.beta) for p in parts)),
            ("bound", *(text.number(p.bound.value) for p in parts)),
            ("sharp bound", *(text.number(p.sharp.value) for p in parts)),
            ("lower bound", *(text.number(p.lower.value) for p in parts)),
            ("bound / norm", *(text.number(p.slack) for p in parts)),
            ("vacuous", *("yes" if p.vacuous else "no" for p in parts)),
            ("holds", *(_yes_no(p.holds) for p in parts)),
            ("status", *(str(p.status) for p in parts)),
        ]
        notes = "\n".join(f"{p.part}: {p.hypothesis}" for p in parts if not p.hypothesis_met)
        return text.table(rows, header) + (f"\n{notes}" if notes else "")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with ``schema_version``."""
        return {
            "schema_version": SCHEMA_VERSION,
            "shape": list(self.shape),
            "subject": self.subject,
            "form": self.form,
            "dispersion": self.dispersion,
            "rigor": str(self.rigor),
            "holds": self.holds,
            "hypothesis_met": self.hypothesis_met,
            "spectral": self.spectral.to_dict(),
            "neuron": self.neuron.to_dict(),
            "sweep": None if self.sweep is None else {k: v.to_dict() for k, v in self.sweep.items()},
        }


def _yes_no(value: bool | None) -> str:
    return "-" if value is None else "yes" if value else "NO"


@dataclass(frozen=True, eq=False)
class Measured:
    """One pass over a matrix: all that any form, any k and any dispersion of Theorem 3.1 needs.

    Norms are in units of ``scale`` (a power of two), so that extreme matrices stay finite.
    """

    shape: tuple[int, int]
    subject: str
    scale: float
    frobenius: float
    spectral: Profile
    neuron: Profile
    row_epsilon: F64
    sum_row_l2: float

    @property
    def tolerance(self) -> float:
        """Relative rounding allowance of a numerical comparison: ``64 u max(m, n)``."""
        return 64 * 2.0**-53 * max(self.shape)

    def size(self, part: Part) -> int:
        """The largest k of a part: min(m, n) singular values, m rows."""
        return min(self.shape) if part == "spectral" else self.shape[0]

    def vector(self, part: Part) -> Profile:
        """The profile of σ or of ν."""
        return self.spectral if part == "spectral" else self.neuron


def measure(W: F64) -> Measured:
    """Measure a matrix for Theorem 3.1: one SVD, one sort per row."""
    scale = power_of_two_scale(W)
    scaled = W / scale
    return Measured(
        shape=(W.shape[0], W.shape[1]),
        subject=digest(W),
        scale=scale,
        frobenius=float(np.linalg.norm(scaled)),
        spectral=profile(np.asarray(np.linalg.svd(scaled, compute_uv=False), dtype=np.float64)),
        neuron=profile(np.abs(scaled).sum(axis=1)),
        row_epsilon=row_tails(scaled),
        sum_row_l2=float(np.linalg.norm(scaled, axis=1).sum()),
    )


def sharp_constant(k: F64, kept: F64, beta: F64, size: int, dispersion: Dispersion) -> F64:
    """``c♯ = (1 + a + t)^(−1/2)``: the largest ``θ_1/‖θ‖_2`` given (k, ε, β), for vectors of length ``size``.

    ``mean``: ``S = max(1, k(1−β))``, ``a = (S−1)²/(k−1)``; ``kth``: ``S = 1 + (k−1)(1−β)``,
    ``a = (k−1)(1−β)²``; both: ``t = (ε S/(1−ε))²/(size−k)``, 0 at k = size. ``kept`` is 1 − ε > 0.

    >>> one = np.ones(1)
    >>> float(sharp_constant(one, 0.25 * one, 0.0 * one, 4, "kth")[0])  # the flat vector: 1/sqrt(4)
    0.5
    """
    if dispersion == "mean":
        s = np.maximum(1.0, k * (1.0 - beta))
        a = np.divide((s - 1.0) ** 2, k - 1.0, out=np.zeros_like(s), where=k > 1)
    else:
        s = 1.0 + (k - 1.0) * (1.0 - beta)
        a = (k - 1.0) * (1.0 - beta) ** 2
    with np.errstate(over="ignore", divide="ignore"):
        ratio = np.where(kept > 0, (1.0 - kept) * s / np.where(kept > 0, kept, 1.0), math.inf)
        t = np.divide(ratio**2, size - k, out=np.zeros_like(s), where=k < size)
    return 1.0 / np.sqrt(1.0 + a + t)


def row_factor(measured: Measured, form: Form, k: F64, k_row: int | None = None) -> tuple[F64, F64]:
    """The factor of ‖W‖_F that the rows contribute, and the k_r it uses, for each k_ν.

    derived: ``(√(m k_r) + √(m n) ε_r)/k_ν``; printed: ``√(m k_r) + √(m n) ε_r/k_ν``; sharp (no 1/k_ν):
    ``ρ = √k_r √(1−ε_r²) + √(n−k_r) ε_r`` with ``ε_r <= √((n−k_r)/n)``. Each holds for every k_r
    (the row tails are measured at that k_r), so the smallest is taken unless ``k_row`` is given.
    """
    m, n = measured.shape
    kr = np.arange(1, n + 1, dtype=float) if k_row is None else np.array([float(k_row)])
    eps = measured.row_epsilon if k_row is None else measured.row_epsilon[k_row - 1 : k_row]
    if form == "sharp":
        clamped = np.minimum(eps, np.sqrt((n - kr) / n))
        rho = np.sqrt(kr) * np.sqrt(1.0 - clamped**2) + np.sqrt(n - kr) * clamped
        best = int(np.argmin(rho))
        return np.full_like(k, rho[best]), np.full_like(k, kr[best])
    if form == "derived":
        whole = np.sqrt(m * kr) + math.sqrt(m * n) * eps
        best = int(np.argmin(whole))
        return whole[best] / k, np.full_like(k, kr[best])
    factors, chosen = np.empty_like(k), np.empty_like(k)
    for i, kv in enumerate(k):  # the best k_r of the printed form moves with k_ν
        whole = np.sqrt(m * kr) + math.sqrt(m * n) * eps / kv
        best = int(np.argmin(whole))
        factors[i], chosen[i] = whole[best], kr[best]
    return factors, chosen


def form_values(
    measured: Measured,
    part: Part,
    form: Form,
    dispersion: Dispersion,
    k: F64,
    kept: F64,
    beta: F64,
    k_row: int | None = None,
) -> F64:
    """Upper bounds of the part's norm (in units of ``measured.scale``) for arrays of k, 1 − ε and β."""
    fro = measured.frobenius
    if fro == 0.0:
        return np.zeros_like(k)
    if form == "sharp":
        c = sharp_constant(k, kept, beta, measured.size(part), dispersion)
        rho = row_factor(measured, "sharp", k, k_row)[0] if part == "neuron" else 1.0
        return c * rho * fro
    if part == "spectral":
        factor = math.sqrt(measured.size(part)) / k
    else:
        factor = row_factor(measured, form, k, k_row)[0]
    with np.errstate(divide="ignore", over="ignore"):
        return np.where(beta < 1.0, kept / np.where(beta < 1.0, 1.0 - beta, 1.0), math.inf) * factor * fro


def best_value(
    measured: Measured, part: Part, form: Form, dispersion: Dispersion = "kth", k: int | None = None
) -> float:
    """The form's upper bound of the norm with exact ε and β: at ``k``, or the smallest over all k."""
    p = measured.vector(part)
    pick = slice(None) if k is None else slice(k - 1, k)
    ks = np.arange(1.0, measured.size(part) + 1)[pick]
    values = form_values(measured, part, form, dispersion, ks, p.kept[pick], p.beta(dispersion)[pick])
    return rescale(float(values.min()), measured.scale, Sense.UPPER)


def _choice(value: object, part: Part, argument: str) -> object:
    """One value for both parts, or a mapping with the parts as keys."""
    if not isinstance(value, Mapping):
        return value
    given = cast("Mapping[object, object]", value)
    unknown = set(given) - {"spectral", "neuron"}
    if unknown:
        raise InputError(
            argument,
            got=f"the keys {sorted(map(str, unknown))}",
            needed="'spectral' and/or 'neuron'",
            fix=f"pass {argument}={{'spectral': …, 'neuron': …}} or one value for both",
        )
    return given.get(part)


def _lower_value(measured: Measured, part: Part, k: F64) -> F64:
    """Two-sided form: ``σ_1 >= √(1−ε²)/√k ‖W‖_F`` (q = 2), ``‖W‖_∞ >= (1−ε)/k ‖W‖_F`` (q = 1), exact ε."""
    i = k.astype(int) - 1
    if part == "spectral":
        eps = measured.spectral.epsilon_2[i]
        return np.sqrt(np.maximum(0.0, 1.0 - eps * eps) / k) * measured.frobenius
    return measured.neuron.kept[i] / k * measured.frobenius


@dataclass(frozen=True)
class _Inputs:
    """(k, ε, β) as they enter the formulas, and what is known of them."""

    k: int
    kept: float
    epsilon: float
    beta: float
    met: bool
    sharp_dispersion: Dispersion
    words: str


def _inputs(
    measured: Measured, part: Part, k: int, epsilon: float | None, beta: float | None, dispersion: Dispersion
) -> _Inputs:
    """Decide which hypotheses user-supplied ε and β satisfy: exact, one-sided valid, or not met."""
    p, tol = measured.vector(part), measured.tolerance
    exact_eps, exact_beta = float(p.epsilon[k - 1]), float(p.beta(dispersion)[k - 1])
    mean_beta = float(p.beta_mean[k - 1])
    problems: list[str] = []
    one_sided = False
    kept, eps, b = float(p.kept[k - 1]), exact_eps, exact_beta
    if epsilon is not None:
        if epsilon > exact_eps + tol:
            problems.append(
                f"epsilon = {epsilon:g} exceeds the exact tail ratio {exact_eps:.6g} at k = {k} "
                "(membership tau <= epsilon is not enough: the bound falls in epsilon)"
            )
            eps, kept = epsilon, 1.0 - epsilon
        elif epsilon < exact_eps - tol:
            one_sided = True
            eps, kept = epsilon, 1.0 - epsilon
    if beta is not None:
        if beta < mean_beta - tol:
            problems.append(f"beta = {beta:g} is below the mean dispersion {mean_beta:.6g} at k = {k}")
            b = beta
        else:
            one_sided = one_sided or abs(beta - exact_beta) > tol
            b = exact_beta if abs(beta - exact_beta) <= tol else max(beta, mean_beta)
    # The sharp form of the k-th reading needs beta >= beta_kth; a smaller valid beta is read as `mean`.
    sharp_dispersion: Dispersion = "kth" if dispersion == "kth" and b >= p.beta_kth[k - 1] else "mean"
    if problems:
        words = "not met: " + "; ".join(problems)
    elif one_sided:
        words = f"one-sided valid: epsilon <= {exact_eps:.6g} and beta >= {mean_beta:.6g}"
    else:
        words = f"exact: epsilon is the tail ratio and beta the {dispersion} dispersion at k = {k}"
    return _Inputs(k, kept, eps, b, not problems, sharp_dispersion, words)


def _slack_items(
    measured: Measured, part: Part, form: Form, used: _Inputs, k_row: int | None
) -> tuple[tuple[str, float], ...]:
    """Bound / norm as a product of named factors, each >= 1 (up to rounding)."""
    p = measured.vector(part)
    if measured.frobenius == 0.0 or used.beta >= 1.0:
        return ()
    top = p.top / p.sum
    core = used.kept / ((1.0 - used.beta) * used.k) / top
    if part == "spectral":
        cauchy = math.sqrt(measured.size(part)) * measured.frobenius / p.sum
        return (("epsilon and dispersion", core), ("Cauchy-Schwarz over singular values", cauchy))
    m, n = measured.shape
    assert k_row is not None  # the caller resolves it for the neuron part
    eps = float(measured.row_epsilon[k_row - 1])
    rows = (math.sqrt(k_row) + math.sqrt(n) * eps) * measured.sum_row_l2 / p.sum
    cauchy = math.sqrt(m) * measured.frobenius / measured.sum_row_l2
    items = [("epsilon and dispersion", core), ("row step", rows), ("Cauchy-Schwarz over rows", cauchy)]
    if form == "printed":
        derived = (math.sqrt(m * k_row) + math.sqrt(m * n) * eps) / used.k
        printed = math.sqrt(m * k_row) + math.sqrt(m * n) * eps / used.k
        items.append(("1/k_nu missing from one term", printed / derived))
    return tuple(items)


def _check_part(
    measured: Measured,
    part: Part,
    form: PaperForm,
    dispersion: Dispersion,
    k: object,
    k_row: object,
    epsilon: object,
    beta: object,
    target: object,
) -> tuple[Theorem31Part, Sweep | None]:
    size, p, scale = measured.size(part), measured.vector(part), measured.scale
    eps = None if epsilon is None else check_fraction(epsilon, "epsilon")
    b = None if beta is None else check_fraction(beta, "beta")
    if k is None and (eps is not None or b is not None):
        raise InputError(
            "epsilon" if eps is not None else "beta",
            got="a value without k",
            needed="the k it belongs to",
            fix="pass k as well, or target_epsilon to let k be chosen",
        )
    if k is not None and target is not None:
        raise InputError("target_epsilon", got="both k and target_epsilon", needed="one of them", fix="drop one")
    fixed_row = check_k(k_row, measured.shape[1], "k_row") if k_row is not None and part == "neuron" else None

    sweep: Sweep | None = None
    if k is None and target is None:
        ks = np.arange(1.0, size + 1)
        values = form_values(measured, part, form, dispersion, ks, p.kept, p.beta(dispersion), fixed_row)
        sharps = form_values(measured, part, "sharp", dispersion, ks, p.kept, p.beta(dispersion), fixed_row)
        every = bool(np.all(p.top <= np.minimum(values, sharps) * (1 + measured.tolerance)))
        lowers = _lower_value(measured, part, ks)
        every = every and bool(np.all(lowers <= p.top * (1 + measured.tolerance)))
        # ties (all k, with `mean`) go to the smallest k, whatever the last digits say
        chosen = int(np.argmax(values <= values.min() * (1 + measured.tolerance))) + 1
        sweep = Sweep(
            ks,
            p.epsilon,
            p.beta(dispersion),
            np.array([rescale(float(v), scale, Sense.UPPER) for v in values]),
            np.array([rescale(float(v), scale, Sense.UPPER) for v in sharps]),
            np.array([rescale(float(v), scale, Sense.LOWER) for v in lowers]),
            every,
        )
    elif target is not None:
        chosen = first_k(p.epsilon, check_fraction(target, "target_epsilon"))
    else:
        chosen = check_k(k, size, f"k ({part} part)")

    used = _inputs(measured, part, chosen, eps, b, dispersion)
    one = np.ones(1)
    kk, kept, bb = chosen * one, used.kept * one, used.beta * one
    value = float(form_values(measured, part, form, dispersion, kk, kept, bb, fixed_row)[0])
    sharp = float(form_values(measured, part, "sharp", used.sharp_dispersion, kk, kept, bb, fixed_row)[0])
    lower = float(_lower_value(measured, part, kk)[0])

    norm = 2.0 if part == "spectral" else math.inf
    claim = Claim(Quantity.OPERATOR_NORM, norm, norm, subject=measured.subject)
    row = int(row_factor(measured, form, kk, fixed_row)[1][0]) if part == "neuron" else None
    sharp_row = int(row_factor(measured, "sharp", kk, fixed_row)[1][0]) if part == "neuron" else None

    def parameters(k_r: int | None) -> tuple[tuple[str, float], ...]:
        """What went in: enough to recompute the bound with a pocket calculator."""
        items = [("k", float(chosen)), ("epsilon", used.epsilon), ("beta", used.beta)]
        items.append(("frobenius_norm", rescale(measured.frobenius, scale, Sense.UPPER)))
        if k_r is not None:
            items += [("k_row", float(k_r)), ("epsilon_row", float(measured.row_epsilon[k_r - 1]))]
        return tuple(items)

    method = f"Theorem 3.1, {part}, {form}, {dispersion}"
    if used.met:
        bound = Bound(
            rescale(value, scale, Sense.UPPER),
            claim,
            Sense.UPPER,
            Rigor.NUMERICAL,
            method,
            _SOURCE,
            slack=_slack_items(measured, part, form, used, row),
            parameters=parameters(row),
        )
        sharp_bound = Bound(
            rescale(sharp, scale, Sense.UPPER),
            claim,
            Sense.UPPER,
            Rigor.NUMERICAL,
            f"Theorem 3.1, {part}, sharp, {used.sharp_dispersion}",
            _SHARP_SOURCE,
            parameters=parameters(sharp_row),
        )
    else:
        bound = vacuous_bound(claim, Sense.UPPER, method=method, source=_SOURCE)
        sharp_bound = vacuous_bound(claim, Sense.UPPER, method=method, source=_SHARP_SOURCE)
    lower_bound = Bound(
        min(rescale(lower, scale, Sense.LOWER), sys.float_info.max),
        claim,
        Sense.LOWER,
        Rigor.NUMERICAL,
        f"two-sided form, {part}, exact tail at k = {chosen}",
        _SHARP_SOURCE,
    )

    # Comparisons are made in scaled units, where nothing over- or underflows.
    top, tol = p.top, measured.tolerance
    holds: bool | None = None
    if used.met:
        holds = top <= min(value, sharp) * (1 + tol) and lower <= top * (1 + tol)
        if sweep is not None:
            holds = holds and bool(sweep.holds)
    reference = measured.frobenius * (1.0 if part == "spectral" else math.sqrt(measured.shape[1]))
    shown = value if used.met else math.inf
    return (
        Theorem31Part(
            part=part,
            norm=rescale(top, scale, Sense.UPPER),
            frobenius_norm=rescale(measured.frobenius, scale, Sense.UPPER),
            k=chosen,
            epsilon=used.epsilon if eps is None or used.met else eps,
            beta=used.beta,
            exact_epsilon=float(p.epsilon[chosen - 1]),
            exact_beta=float(p.beta(dispersion)[chosen - 1]),
            hypothesis_met=used.met,
            hypothesis=used.words,
            bound=bound,
            sharp=sharp_bound,
            lower=lower_bound,
            slack=1.0 if measured.frobenius == 0.0 and used.met else shown / top if top > 0 else math.inf,
            vacuous=shown >= reference * (1 - tol),
            holds=holds,
            status=Status.OK if used.met else Status.HYPOTHESIS_NOT_MET,
            k_row=row,
            epsilon_row=None if row is None else float(measured.row_epsilon[row - 1]),
        ),
        sweep,
    )


def check_theorem31(
    W: object,
    *,
    k: object = None,
    k_row: object = None,
    epsilon: object = None,
    beta: object = None,
    target_epsilon: object = None,
    dispersion: Dispersion = "kth",
    form: PaperForm = "derived",
    rigor: Rigor | str = Rigor.NUMERICAL,
) -> Theorem31Report:
    """Check Theorem 3.1 on one matrix: both parts, the sharp form and the two-sided lower bound.

    Parameters
    ----------
    W : matrix of shape (m outputs, n inputs): numpy, torch, ``nn.Linear``, nested lists.
    k : kept rows / singular values; None checks every k (``.sweep``) and shows the one with the smallest
        bound, ties to the smallest k. With ``kth`` that is always k = 1; with ``mean`` the spectral and the
        derived bound are the same for every k, so k = 1 is shown too.
    k_row : entries kept per row (neuron part); None takes the best. Row tails are (2, k_r)-tails.
    epsilon, beta : your own numbers for the given k. They count only if epsilon <= the exact tail ratio
        and beta >= the mean dispersion; otherwise ``.bound`` is ∞ with status HYPOTHESIS_NOT_MET.
    target_epsilon : take the smallest k whose tail ratio is <= this.
    k, epsilon, beta, target_epsilon : one value for both parts or ``{"spectral": …, "neuron": …}``.
    dispersion : ``kth`` (the paper's) or ``mean`` (tighter). form : ``derived`` or ``printed``
        (they differ in the neuron part only).
    rigor : ``rigorous`` encloses every rounding: ``.bound``, ``.sharp`` and ``.lower`` are on the right side in exact
        arithmetic for the stored weights, and the intervals of the norm, ε and β are given. An ``epsilon`` or ``beta``
        of yours that is not provably valid, but within rounding of the exact value, is replaced by its enclosure;
        ``target_epsilon`` takes the smallest k whose tail is provably <= it.

    Returns
    -------
    Theorem31Report with ``.holds`` (True / False / None), ``.hypothesis_met``, ``.spectral``, ``.neuron``.
    ``holds`` compares with the relative tolerance 64 u max(m, n); in rigorous mode it is True only where "lower <= norm
    <= sharp, bound" is proved, False only where it is disproved, None where the enclosures overlap (orthogonal matrices
    with ``mean``: equality). W = 0 has bound 0 and slack 1.
    ``vacuous``: bound >= ‖W‖_F (spectral), >= √n ‖W‖_F (neuron).

    Raises
    ------
    InputError : W is no finite real matrix; k, k_row, epsilon, beta out of range; epsilon or beta without k.
    NumericalError : (rigorous) the processor rounds otherwise than IEEE asks, or the SVD fails.

    Source: Barsbey et al., ICLR 2026, Theorem 3.1.

    >>> report = check_theorem31([[3.0, 0.0], [0.0, 1.0]])
    >>> report.holds, report.spectral.k, report.spectral.epsilon
    (True, 1, 0.25)
    >>> round(report.spectral.bound.value, 6)  # (1 - 1/4) sqrt(2) sqrt(10)
    3.354102
    >>> trap = check_theorem31([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], k=1, epsilon=0.9)
    >>> trap.holds is None, trap.spectral.bound.value, str(trap.spectral.status)
    (True, inf, 'hypothesis not met')
    >>> sure = check_theorem31([[3.0, 0.0], [0.0, 1.0]], rigor="rigorous").spectral
    >>> sure.holds, str(sure.bound.rigor), sure.norm_interval, 0 < sure.bound.value - 0.75 * 20**0.5 < 1e-13
    (True, 'rigorous', (3.0, 3.0), True)
    """
    matrix = as_matrix(W)
    word = check_rigor(rigor)
    check_dispersion(dispersion)
    if form not in ("derived", "printed"):
        raise InputError("form", got=repr(form), needed="'derived' or 'printed'", fix="the sharp form is always there")
    measured = measure(matrix)
    enclosure = None
    if word is Rigor.RIGOROUS:
        from certbound.theorems.theorem31_rigorous import enclose  # imported here: numerical checks do without

        enclosure = enclose(matrix)
    parts: dict[Part, Theorem31Part] = {}
    sweeps: dict[Part, Sweep] = {}
    both: tuple[Part, Part] = ("spectral", "neuron")
    for part in both:
        at, target = _choice(k, part, "k"), _choice(target_epsilon, part, "target_epsilon")
        eps, b = _choice(epsilon, part, "epsilon"), _choice(beta, part, "beta")
        result, sweep = _check_part(measured, part, form, dispersion, at, k_row, eps, b, target)
        if enclosure is not None:
            from certbound.theorems.theorem31_rigorous import provable_k, refine

            if target is not None:
                at = provable_k(enclosure, part, check_fraction(target, "target_epsilon"))
                result, sweep = _check_part(measured, part, form, dispersion, at, k_row, eps, b, None)
            result, sweep = refine(
                result,
                sweep,
                enclosure,
                measured,
                form,
                dispersion,
                None if k_row is None else check_k(k_row, measured.shape[1], "k_row"),
                None if eps is None else check_fraction(eps, "epsilon"),
                None if b is None else check_fraction(b, "beta"),
            )
        parts[part] = result
        if sweep is not None:
            sweeps[part] = sweep
    return Theorem31Report(
        measured.shape, measured.subject, form, dispersion, word, parts["spectral"], parts["neuron"], sweeps or None
    )
