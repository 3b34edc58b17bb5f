"""The methods compared: each gets a case ready (imports, modules; untimed), runs (timed), and reads its answer.

A tool of your own joins by name, ``--methods mypackage.mymodule:function``: a function from a :class:`Case` to a number
(an upper bound) or an :class:`Answer`.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from benchmarks.lipschitz.dual import dual_bound, relaxation_matrix
from benchmarks.lipschitz.nets import Net, Trap

F64 = npt.NDArray[np.float64]
Kind = Literal["upper", "relaxation", "lower"]
"""An upper bound; one from a feasible point of LipSDP-neuron, so never below its optimum; a lower bound."""


class NotApplicableError(Exception):
    """The tool has no such request (a norm, a kind of network)."""


@dataclass(frozen=True, eq=False)
class Case:
    """What is asked: a network (or a trap), the norm, the outputs (None: all), and the seconds allowed."""

    net: Net | Trap
    norm: float
    outputs: tuple[int, int] | int | None
    limit: float

    def subject(self) -> Any:
        """What certbound is given: its own Network, or the trap's module."""
        return self.net.network() if isinstance(self.net, Net) else self.net.module()

    def matrices(self) -> tuple[list[F64], F64]:
        """The hidden layers' weights, and the rows of the head that the outputs select."""
        if isinstance(self.net, Trap):
            raise NotApplicableError("takes weight matrices")
        *encoder, head = self.net.weights
        if isinstance(self.outputs, tuple):
            head = (head[self.outputs[0]] - head[self.outputs[1]])[None]
        elif self.outputs is not None:
            head = head[[self.outputs]]
        return encoder, head


@dataclass(frozen=True)
class Answer:
    """What a method said.

    Parameters
    ----------
    value : the number it reports; None if none.
    status : ``ok``, or what happened instead.
    kind : what the number claims to be.
    proved : whether its certificate verified; None where the tool has none.
    least : a lower bound of the relaxation's optimum that came with it.
    notes : short remarks for the table.
    numbers : anything else worth keeping.
    """

    value: float | None
    status: str = "ok"
    kind: Kind = "upper"
    proved: bool | None = None
    least: float | None = None
    notes: tuple[str, ...] = ()
    numbers: Mapping[str, float | str | bool | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """A case made ready: ``run`` is timed, ``read`` is not."""

    run: Callable[[], Any]
    read: Callable[[Any], Answer]


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Parameters
    ----------
    name : on the command line. label : in tables. prepare : a case made ready.
    ours : its code is in this repository, so that its results depend on the sources.
    packages : whose versions its results depend on.
    """

    name: str
    label: str
    prepare: Callable[[Case], Job]
    ours: bool = False
    packages: tuple[str, ...] = ()


# ---------------------------------------------------------------- certbound


def _upper(result: Any, seconds: float, kind: Kind) -> Answer:
    """An answer from certbound's Result whose certificate has been verified (the timing includes it)."""
    stats = dict(result.stats)
    notes = [f"verified in {seconds:.2g} s"] if result.certificate is not None else []
    said = [str(stats[k]) for k in ("solver", "choice") if k in stats]
    numbers = {"gap reported": result.gap, "verify seconds": seconds, "method": result.bound.method}
    # only a rigorous bound with a certificate that verified counts as proved
    proved = result.certificate is not None and str(result.bound.rigor) == "rigorous"
    return Answer(result.value, str(result.status), kind, proved, None, tuple(notes + said), numbers)


def _ours(method: str) -> Callable[[Case], Job]:
    def prepare(case: Case) -> Job:
        from certbound import lipschitz_sdp

        subject = case.subject()

        def run() -> tuple[Any, float]:
            result = lipschitz_sdp(
                subject, case.norm, outputs=case.outputs, method=method, time_limit=case.limit  # type: ignore[arg-type]
            )  # fmt: skip
            start = time.process_time()
            if result.certificate is not None:  # type: ignore[union-attr]
                result.certificate.verify(subject)  # type: ignore[union-attr]  # CertificateError: the cell fails
            return result, time.process_time() - start

        return Job(run, lambda found: _upper(found[0], found[1], "relaxation"))

    return prepare


def _product(case: Case) -> Job:
    from certbound.lipschitz.product import certified_product
    from certbound.network import as_network

    network = as_network(case.subject())

    def run() -> tuple[Any, float]:
        bound = certified_product(network, case.norm, "all" if case.outputs is None else case.outputs)
        start = time.process_time()
        assert bound.certificate is not None
        bound.certificate.verify(network)
        return bound, time.process_time() - start

    return Job(run, lambda found: Answer(found[0].value, proved=True, numbers={"verify seconds": found[1]}))


def _sampled(case: Case) -> Job:
    if isinstance(case.net, Trap):
        return _sampled_module(case)
    from certbound import lipschitz_sampled

    subject = case.subject()

    def run() -> Any:
        result = lipschitz_sampled(subject, case.norm, outputs=case.outputs)
        if result.certificate is not None:
            result.certificate.verify(subject)
        return result

    def read(result: Any) -> Answer:
        proved = result.certificate is not None and str(result.bound.rigor) == "rigorous"
        return Answer(result.value, str(result.status), "lower", proved)

    return Job(run, read)


def _sampled_module(case: Case) -> Job:
    """The largest Jacobian norm at 4,000 random points: autograd's, in float64, less its rounding (numerical)."""
    import torch

    assert isinstance(case.net, Trap)
    model, shape = case.net.module(), case.net.input_shape
    generator = torch.Generator().manual_seed(0)
    sizes = 10.0 ** torch.empty(4000, *(1 for _ in shape), dtype=torch.float64).uniform_(-2.0, 2.0, generator=generator)
    points = sizes * torch.randn(4000, *shape, dtype=torch.float64, generator=generator)

    def run() -> float:
        each = torch.func.jacrev(lambda x: model(x[None])[0])
        jacobians = torch.vmap(each, chunk_size=500)(points)
        return float(torch.linalg.matrix_norm(jacobians.flatten(2), 2).max())

    return Job(run, lambda value: Answer(value * (1.0 - 1e-9), kind="lower", notes=("numerical",)))


def _unit(case: Case) -> tuple[list[F64], F64, float]:
    """Weights of norm 1 and what was taken out of them; for ℓ2 a wide input reduced by the LQ factor, which changes
    nothing: every solver is given the smaller, better scaled problem.
    """
    encoder, head = case.matrices()
    if not math.isinf(case.norm) and encoder[0].shape[1] > len(encoder[0]):
        encoder = [np.linalg.qr(encoder[0].T)[1].T, *encoder[1:]]
    norms = [float(np.linalg.norm(w, 2)) for w in (*encoder, head)]
    unit = [w / n for w, n in zip((*encoder, head), norms, strict=True)]
    return unit[:-1], unit[-1], math.prod(norms)


def _reference(case: Case) -> Job:
    """Our barrier at tolerance 1e-7, and a dual value, which does not depend on what the barrier says of itself."""
    from certbound.lipschitz import barrier

    encoder, head, scale = _unit(case)

    def run() -> Any:
        return barrier.solve(
            encoder, head, case.norm, barrier.Limits(tolerance=1e-7, time_limit=case.limit, centred=True)
        )

    def read(found: Any) -> Answer:
        if found is None:
            return Answer(None, "failed", "relaxation")
        t = [np.asarray(x) for x in found.multipliers.t]
        d = found.multipliers.d if math.isinf(case.norm) else np.full(encoder[0].shape[1], found.value)
        least = math.sqrt(dual_bound(encoder, head, d, t, case.norm)) * scale
        value = math.sqrt(found.value) * scale
        status = "ok" if found.status == "optimal" else str(found.status)
        notes = (f"{found.steps} steps", f"dual within {value / least - 1.0:.1e}" if least > 0.0 else "no dual value")
        return Answer(value, status, "relaxation", None, least, notes)

    return Job(run, read)


# ---------------------------------------------------------------- other bounds


def liplt(encoder: Sequence[F64], head: F64, norm: float) -> float:
    """LipLT in plain float64: ``φ(z) = z/2 + ψ(z)`` with ψ of constant 1/2, so with ``W_{m+1}`` the head
    ``m_k = Σ_{j<k} 2^{-(k−1−j)} ‖W_k … W_{j+1}‖ c_j``, ``c_0 = 1``, ``c_j = m_j/2``.

    (An input passes to layer k by ``W_k … W_1 / 2^{k−1}``; ψ of layer j, of constant ``m_j/2``, by
    ``W_k … W_{j+1} / 2^{k−1−j}``.) Source: Fazlyab et al., NeurIPS 2023.

    >>> liplt([np.array([[3.0]])], np.array([[2.0]]), 2.0)
    6.0
    """
    weights = [*encoder, head]
    order = np.inf if math.isinf(norm) else 2
    carried: list[F64] = []  # of ψ_j (and the input, j = 0): W_k … W_{j+1} / 2^(k−1−j)
    sizes: list[float] = []
    bound = 1.0
    for k, w in enumerate(weights):
        carried = [w @ c for c in carried]
        if k:
            carried = [0.5 * c for c in carried]
        carried.append(w)
        sizes.append(1.0 if k == 0 else 0.5 * bound)
        bound = math.fsum(s * float(np.linalg.norm(c, order)) for s, c in zip(sizes, carried, strict=True))
    return bound


def _liplt(case: Case) -> Job:
    try:
        from certbound.lipschitz.path_norms import path_bound  # type: ignore[import-not-found]
    except ImportError:
        encoder, head = case.matrices()
        return Job(lambda: liplt(encoder, head, case.norm), lambda v: Answer(v, notes=("plain float64",)))
    from certbound.network import as_network

    network = as_network(case.subject())

    def read(bound: Any) -> Answer:
        value = float(getattr(bound, "value", bound))
        certificate = getattr(bound, "certificate", None)
        proved = bool(certificate.verify(network)) if certificate is not None else None
        return Answer(value, proved=proved)

    return Job(lambda: path_bound(network, case.norm, "all" if case.outputs is None else case.outputs), read)


def _eclipse(mode: str) -> Callable[[Case], Job]:
    def prepare(case: Case) -> Job:
        from eclipse_nn import LipConstEstimator  # type: ignore[import-not-found]

        if math.isinf(case.norm) or case.outputs is not None:
            raise NotApplicableError("ℓ2 of the whole output only")
        model = case.net.module()

        def run() -> tuple[Any, str]:
            # as its README says: LipConstEstimator(model=model).estimate("ECLipsE")
            said = io.StringIO()
            with contextlib.redirect_stdout(said):
                value = LipConstEstimator(model=model).estimate(mode)
            return value, said.getvalue()

        def read(found: tuple[Any, str]) -> Answer:
            value, said = found
            # it returns a number only; that its SDP failed stands in what it prints
            fell_back = "Falling back to ECLipsE-Fast" in said
            notes = ("its SDP failed its own check: this is Fast's value",) if fell_back else ()
            return Answer(float(value), "fell back" if fell_back else "ok", "relaxation", None, None, notes)

        return Job(run, read)

    return prepare


# ---------------------------------------------------------------- cvxpy


def _cvxpy(solver: str, *, chordal: bool = False) -> Callable[[Case], Job]:
    """LipSDP-neuron as the paper states it; SCS at eps 1e-5, Clarabel as it comes."""

    def prepare(case: Case) -> Job:
        import cvxpy as cp

        if solver not in cp.installed_solvers():
            raise ImportError(f"cvxpy has no {solver}")
        encoder, head, scale = _unit(case)
        infinity = math.isinf(case.norm)

        def run() -> tuple[Any, list[Any], Any]:
            n = encoder[0].shape[1]
            t = [cp.Variable(len(w), nonneg=True) for w in encoder]
            P: Any = cp.Variable(n, nonneg=True) if infinity else cp.Variable(nonneg=True)
            first = cp.diag(P) if infinity else P * np.eye(n)
            constraints = (_chordal if chordal else _whole)(cp, encoder, head, first, t)
            problem = cp.Problem(cp.Minimize(cp.sum(P)), constraints)
            options: dict[str, Any] = (
                {"eps": 1e-5, "max_iters": 10**7, "time_limit_secs": case.limit}
                if solver == "SCS"
                else {"time_limit": case.limit}
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # "solution may be inaccurate": the status says so
                problem.solve(solver=solver, **options)
            return problem, t, P

        def read(found: tuple[Any, list[Any], Any]) -> Answer:
            problem, t, P = found
            status = "ok" if problem.status == "optimal" else str(problem.status)
            values = [x.value for x in t]
            if problem.value is None or P.value is None or any(x is None for x in values):
                return Answer(None, status, "relaxation")
            if not (0.0 <= float(problem.value) < math.inf):
                return Answer(None, "failed", "relaxation", notes=(f"objective {problem.value}",))
            d = np.broadcast_to(np.asarray(P.value, dtype=np.float64), (encoder[0].shape[1],))
            least, feasible = _raw_check(encoder, head, d, values)
            note = "raw M ⪰ 0" if feasible else f"raw M not ⪰ 0 (λ_min/λ_max {least:.0e})"
            numbers = {"raw feasible": feasible, "raw λ_min/λ_max": least, "solver status": str(problem.status)}
            value = math.sqrt(float(problem.value)) * scale
            return Answer(value, status, "relaxation", None, None, (note,), numbers)

        return Job(run, read)

    return prepare


def _whole(cp: Any, encoder: list[F64], head: F64, first: Any, t: list[Any]) -> list[Any]:
    sizes = [encoder[0].shape[1], *(len(w) for w in encoder)]
    blocks: list[list[Any]] = [[np.zeros((a, b)) for b in sizes] for a in sizes]
    blocks[0][0] = first
    for i, (w, x) in enumerate(zip(encoder, t, strict=True), start=1):
        blocks[i][i] = 2 * cp.diag(x)
        blocks[i][i - 1] = -cp.diag(x) @ w
        blocks[i - 1][i] = blocks[i][i - 1].T
    blocks[-1][-1] = blocks[-1][-1] - head.T @ head
    return [cp.bmat(blocks) >> 0]


def _chordal(cp: Any, encoder: list[F64], head: F64, first: Any, t: list[Any]) -> list[Any]:
    """One block ``[[X_{i−1}, −W_iᵀT_i], [−T_iW_i, 2T_i − X_i]] ⪰ 0`` a layer, ``X_m = HᵀH``: the same optimum, since M
    is block tridiagonal (Agler et al. 1988).
    """
    before, found = first, []
    for i, (w, x) in enumerate(zip(encoder, t, strict=True), start=1):
        after = head.T @ head if i == len(encoder) else cp.Variable((len(w), len(w)), symmetric=True)
        off = -cp.diag(x) @ w
        found.append(cp.bmat([[before, off.T], [off, 2 * cp.diag(x) - after]]) >> 0)
        before = after
    return found


def _raw_check(encoder: list[F64], head: F64, d: F64, t: Sequence[F64]) -> tuple[float, bool]:
    """``λ_min/λ_max`` of M at the solver's own values, and whether M is ⪰ 0 and T >= 0 up to rounding."""
    values = np.linalg.eigvalsh(relaxation_matrix(encoder, head, d, t))
    ratio = float(values[0] / values[-1])
    below = min(float(np.min(x)) for x in (d, *t))
    return ratio, ratio >= -len(values) * 1e-15 and below >= 0.0


# ---------------------------------------------------------------- the list


_SDP = ("cvxpy", "scs")
METHODS: Final = {
    m.name: m
    for m in (
        Method("product", "product of norms", _product, ours=True),
        Method("sampled", "sampled lower bound", _sampled, ours=True),
        Method("liplt", "LipLT", _liplt, ours=True),
        Method("eclipse-fast", "eclipse-nn, Fast", _eclipse("ECLipsE_Fast"), packages=("eclipse-nn", "torch")),
        Method("eclipse-sdp", "eclipse-nn, SDP", _eclipse("ECLipsE"), packages=("eclipse-nn", "torch", *_SDP)),
        Method("scs", "cvxpy + SCS, eps 1e-5", _cvxpy("SCS"), packages=_SDP),
        Method("chordal", "chordal, cvxpy + SCS", _cvxpy("SCS", chordal=True), packages=_SDP),
        Method("clarabel", "cvxpy + Clarabel", _cvxpy("CLARABEL"), packages=("cvxpy", "clarabel")),
        Method("closed-form", "certbound, closed form", _ours("closed-form"), ours=True),
        Method("first-order", "certbound, first order", _ours("first-order"), ours=True),
        Method("barrier", "certbound, barrier", _ours("barrier"), ours=True),
        Method("auto", "certbound, auto", _ours("auto"), ours=True),
        Method("reference", "reference (barrier, 1e-7)", _reference, ours=True),
    )
}

TRAP_METHODS: Final = ("sampled", "eclipse-fast", "eclipse-sdp", "auto")


def find(name: str) -> Method:
    """A method by its name, or ``module:function``; ValueError for neither."""
    if name in METHODS:
        return METHODS[name]
    module, _, function = name.partition(":")
    if not function:
        raise ValueError(f"{name!r} is no method: {', '.join(METHODS)}, or module:function")

    def prepare(case: Case) -> Job:
        call = getattr(importlib.import_module(module), function)
        return Job(lambda: call(case), lambda x: x if isinstance(x, Answer) else Answer(float(x)))

    return Method(name, function, prepare)
