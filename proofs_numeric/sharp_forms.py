"""Sharp forms of Theorem 3.1: the best bounds that (k, ε, β) allow.

Statement. With ``c♯ = (1 + a + t)^(−1/2)``, ``t = (ε S/(1−ε))²/(r−k)`` (0 at k = r),
``mean``: ``S = max(1, k(1−β))``, ``a = (S−1)²/(k−1)`` (0 at k = 1); ``kth``: ``S = 1 + (k−1)(1−β)``,
``a = (k−1)(1−β)²``: every θ of length r with exact (k, ε, β), or smaller ε or larger β, has
``‖θ‖_∞ <= c♯ ‖θ‖_2``. It is attained for every feasible exact (k, ε, β), is at most 1 and at most the factor of
Theorem 3.1, and c♯(mean) <= c♯(kth). Rows: ``‖W‖_∞ <= ρ c♯(k_ν, ε_ν, β_ν, m) ‖W‖_F`` with
``ρ = √k_r √(1−ε_r²) + √(n−k_r) ε_r``, ε_r >= the largest q = 2 row tail, held at most ``√((n−k_r)/n)``; attained too,
and at most the derived form.

Proof. Put θ_1 = 1. Given the sum S of the top k, ``Σ_{i<=k} θ_i²`` is least when entries 2 … k are equal; given the
tail's sum ``ε S/(1−ε)``, its square sum is least when flat. For ``kth`` entries 2 … k are at least 1−β, and the least
choice has the least S. The minimiser is sorted whenever any vector has these numbers, so it attains the bound. Rows:
``‖w‖_1 <= ρ‖w‖_2`` is the same with the top k_r and the rest flat.

Source: certbound theory, section 2.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flint import fmpq, fmpq_mat

from proofs_numeric.harness.exact import (
    Real,
    Vector,
    draw_fraction,
    draw_matrix,
    draw_vector,
    frobenius2,
    real,
    row_l1,
    sqrt,
)
from proofs_numeric.harness.lemma import (
    Broken,
    Comparison,
    Counterexample,
    Lemma,
    Query,
    Search,
    Variant,
    Witness,
    compare,
)
from proofs_numeric.harness.profile import less, more, profile, torch_profile

if TYPE_CHECKING:
    import torch

ROW_LABELS = ("rows, mean", "rows, kth")
HALF = "(r-k)/2 for r-k"
NO_MAX = "max(1, ·) dropped"
MIXED = "β_mean in the kth formula"
SMALL_RHO = "rho without the tail"


@dataclass(frozen=True)
class Instance:
    """θ, k and slacks; with ``W``, the row statement instead (θ unused). ``attained``: equality is claimed."""

    theta: Vector
    k: int
    epsilon_slack: fmpq
    beta_slack: fmpq
    W: fmpq_mat | None = None
    k_row: int = 1
    row_slack: fmpq | int = 0
    attained: str = ""


def extremal(k: int, r: int, b: fmpq, u: fmpq) -> Vector:
    """The vector that attains: (1, b … b, b u … b u), k entries on top; u in [0, 1] (for k = 1 the tail is u)."""
    tail = b * u if k > 1 else u
    return [fmpq(1)] + [b] * (k - 1) + [tail] * (r - k)


def draw(rng: random.Random, size: int) -> Instance:
    m, n = rng.randint(1, 5 + size), rng.randint(1, 5 + size)
    k, k_row = rng.randint(1, m), rng.randint(1, n)
    kind = rng.randrange(4)
    if kind == 0:  # the optimum, for random feasible parameters
        theta = extremal(k, m, draw_fraction(rng), draw_fraction(rng))
        return Instance(theta, k, fmpq(0), fmpq(0), attained="θ")
    if kind == 1:  # rows of one shape, scaled by an extremal ν
        row = [fmpq(1)] * k_row + [draw_fraction(rng)] * (n - k_row)
        if k_row < n:
            row[k_row:] = [row[k_row]] * (n - k_row)
        nu = extremal(k, m, draw_fraction(rng), draw_fraction(rng))
        W = fmpq_mat([[s * v * rng.choice((-1, 1)) for v in row] for s in nu])
        return Instance([], k, fmpq(0), fmpq(0), W, k_row, attained="rows")
    slack = [fmpq(0) if rng.random() < 0.6 else draw_fraction(rng) for _ in range(3)]
    if kind == 2:
        return Instance(draw_vector(rng, m), k, slack[0], slack[1])
    return Instance([], k, slack[0], slack[1], draw_matrix(rng, m, n), k_row, slack[2])


def sharp_squared(k: int, epsilon: Any, beta: Any, r: int, reading: str, broken: Broken = None) -> Any:
    """``1/c♯²`` on rationals; ``β`` is the dispersion in the reading's sense."""
    if reading == "mean":
        S = k * (1 - beta) if broken == NO_MAX else max(fmpq(1), k * (1 - beta))
        a = (S - 1) ** 2 / (k - 1) if k > 1 else fmpq(0)
    else:
        S = 1 + (k - 1) * (1 - beta)
        a = (k - 1) * (1 - beta) ** 2
    rest = fmpq(r - k, 2) if broken == HALF else fmpq(r - k)
    t = (epsilon * S / (1 - epsilon)) ** 2 / rest if k < r else fmpq(0)
    return 1 + a + t


def _vector(x: Instance, broken: Broken) -> list[Comparison]:
    p = profile(x.theta, x.k)
    r, square = p.size, p.l2_squared
    e = less(p.epsilon, x.epsilon_slack)
    b = {"mean": more(p.beta_mean, x.beta_slack), "kth": more(p.beta_kth, x.beta_slack)}
    if broken == MIXED:
        b["kth"] = p.beta_mean
    result = []
    for reading, beta in b.items():
        inverse = sharp_squared(x.k, e, beta, r, reading, broken)
        result.append(compare(reading, p.top * p.top, square / inverse, squared=True))
        if broken is None:
            result.append(compare(f"c♯({reading}) <= 1", 1 / inverse, 1, squared=True))
            paper = None if beta == 1 else ((1 - e) / ((1 - beta) * x.k)) ** 2 * r
            result.append(compare(f"c♯({reading}) <= Theorem 3.1", 1 / inverse, paper, squared=True))
    if broken is None:
        mean, kth = (sharp_squared(x.k, p.epsilon, v, r, name) for name, v in _betas(p))
        result.append(compare("c♯(mean) <= c♯(kth)", 1 / mean, 1 / kth, squared=True))
        result += _optimum(p)
        if x.attained:
            result.append(compare("attained, mean", square / mean, p.top * p.top, squared=True))
            result.append(compare("attained, kth", square / kth, p.top * p.top, squared=True))
    return result


def _optimum(p: Any) -> list[Comparison]:
    """Build the optimal vector from (k, ε, β) alone; it must have exactly these numbers, and attain the bound."""
    k, r, result = p.k, p.size, []
    for reading, beta in _betas(p):
        if reading == "mean":
            S = k * (1 - beta)
            top = [fmpq(1)] + [(S - 1) / (k - 1)] * (k - 1) if k > 1 else [fmpq(1)]
        else:
            S = 1 + (k - 1) * (1 - beta)
            top = [fmpq(1)] + [1 - beta] * (k - 1)
        best = top + ([p.epsilon * S / ((1 - p.epsilon) * (r - k))] * (r - k) if k < r else [])
        q = profile(best, k)
        off = abs(q.epsilon - p.epsilon) + abs((q.beta_mean if reading == "mean" else q.beta_kth) - beta)
        claimed = q.l2_squared / sharp_squared(k, p.epsilon, beta, r, reading)
        result.append(compare(f"optimum has the same (k, ε, β), {reading}", off, 0))
        result.append(compare(f"optimum attains, {reading}", claimed, q.top * q.top, squared=True))
    return result


def _betas(p: Any) -> tuple[tuple[str, fmpq], tuple[str, fmpq]]:
    return ("mean", p.beta_mean), ("kth", p.beta_kth)


def rho(n: int, k_row: int, epsilon2: fmpq, broken: Broken = None) -> Real:
    """``√k_r √(1−ε_r²) + √(n−k_r) ε_r`` from ε_r², held at most (n−k_r)/n."""
    e2 = min(epsilon2, fmpq(n - k_row, n))
    top = sqrt(k_row * (1 - e2))
    return top if broken == SMALL_RHO else top + sqrt((n - k_row) * e2)


def _rows(x: Instance, W: fmpq_mat, broken: Broken) -> list[Comparison]:
    m, n = W.nrows(), W.ncols()
    p = profile(row_l1(W), x.k)
    tail2 = max(profile(row, x.k_row).epsilon2 for row in W.tolist()) * (1 + x.row_slack * x.row_slack) ** 2
    factor, fro = rho(n, x.k_row, tail2, broken), sqrt(frobenius2(W))
    e = less(p.epsilon, x.epsilon_slack)
    result = []
    for reading, beta in _betas(p):
        b = more(beta, x.beta_slack)
        claimed = factor * sqrt(1 / sharp_squared(x.k, e, b, m, reading, broken)) * fro
        result.append(compare(f"rows, {reading}", p.top, claimed))
        if broken is None:
            if b < 1:
                derived = (sqrt(m * x.k_row) + sqrt(m * n * tail2)) * fro * ((1 - e) / ((1 - b) * x.k))
                result.append(compare(f"rows, {reading} <= derived", claimed, derived))
            if x.attained:
                result.append(compare(f"rows attained, {reading}", claimed, p.top))
    return result


def evaluate(x: Instance, broken: Broken) -> list[Comparison]:
    return _vector(x, broken) if x.W is None else _rows(x, x.W, broken)


def _torch_inverse(k: int, e: Any, b: Any, r: int, reading: str, broken: Broken) -> Any:
    if reading == "mean":
        S = k * (1 - b)
        S = S if broken == NO_MAX else S.clamp(min=1.0)
        a = (S - 1) ** 2 / max(k - 1, 1) if k > 1 else 0 * S
    else:
        S = 1 + (k - 1) * (1 - b)
        a = (k - 1) * (1 - b) ** 2
    rest = (r - k) / 2 if broken == HALF else r - k
    return 1 + a + ((e * S / (1 - e)) ** 2 / rest if k < r else 0 * S)


def _vector_search(r: int, k: int, broken: Broken) -> Search:
    def objective(v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        p = torch_profile(v[:, :r], k)
        e = less(p.epsilon, v[:, r])
        claims = []
        for reading, beta in (("mean", p.beta_mean), ("kth", p.beta_kth)):
            b = p.beta_mean if broken == MIXED and reading == "kth" else more(beta, v[:, r + 1])
            claims.append(p.l2 / _torch_inverse(k, e, b, r, reading, broken).sqrt())
        claimed = torch.stack(claims, 1)
        return p.top[:, None].expand_as(claimed), claimed

    def instance(v: Sequence[Any]) -> Instance:
        return Instance(list(v[:r]), k, v[r], v[r + 1])

    return Search(f"vectors, r = {r}, k = {k}", r + 2, objective, instance, ("mean", "kth"))


def _row_search(m: int, n: int, k: int, k_row: int, broken: Broken) -> Search:
    d = m * n

    def objective(v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        W = v[:, :d].reshape(-1, m, n)
        p = torch_profile(W.abs().sum(2), k)
        e2 = torch_profile(W, k_row).epsilon2.max(1).values.clamp(max=(n - k_row) / n)
        factor = (k_row * (1 - e2)).sqrt()
        if broken != SMALL_RHO:
            factor = factor + ((n - k_row) * e2).sqrt()
        fro = W.square().sum((1, 2)).sqrt()
        claims = []
        for reading, beta in (("mean", p.beta_mean), ("kth", p.beta_kth)):
            inverse = _torch_inverse(k, less(p.epsilon, v[:, d]), more(beta, v[:, d + 1]), m, reading, broken)
            claims.append(factor * fro / inverse.sqrt())
        claimed = torch.stack(claims, 1)
        return p.top[:, None].expand_as(claimed), claimed

    def instance(v: Sequence[Any]) -> Instance:
        W = fmpq_mat([list(v[i * n : (i + 1) * n]) for i in range(m)])
        return Instance([], k, v[d], v[d + 1], W, k_row)

    return Search(f"rows, {m} x {n}, k = {k}, k_r = {k_row}", d + 2, objective, instance, ROW_LABELS)


def searches(broken: Broken, size: int = 0) -> list[Search]:
    return [
        _vector_search(5 + 2 * size, 2 + size, broken),
        _vector_search(4 + size, 3, broken),
        _vector_search(6 + size, 1, broken),
        _row_search(3 + size, 4 + size, 2, 2, broken),
    ]


def queries(broken: Broken) -> list[Query]:
    def mean() -> tuple[Sequence[Any], Any, Any]:
        import z3

        # θ = (1, b, c, d), k = 2, any β >= β_mean, any q = ε/(1−ε) at most that of the tail: t = (q S)²/2
        b, c, d, beta, q, S = z3.Reals("b c d beta q S")
        hypotheses = [0 <= d, d <= c, c <= b, b <= 1, q >= 0, q * (1 + b) <= c + d]
        two = 2 * (1 - beta)
        hypotheses += [beta >= 0, beta < 1, two <= 1 + b]
        hypotheses.append(two == S if broken == NO_MAX else z3.If(two >= 1, two, z3.RealVal(1)) == S)
        rest = 1 if broken == HALF else 2
        return hypotheses, 1 + (S - 1) * (S - 1) + q * q * S * S / rest, 1 + b * b + c * c + d * d

    def kth() -> tuple[Sequence[Any], Any, Any]:
        import z3

        # θ = (1, b, c), k = 2, kept = 1 − β_kth = b (or 1 − β_mean), t from ε = c/(1 + b + c)
        b, c, kept, t = z3.Reals("b c kept t")
        hypotheses = [0 <= c, c <= b, b <= 1, t >= 0, t * (1 + b) == c * (1 + kept)]
        hypotheses.append(2 * kept == 1 + b if broken == MIXED else kept == b)
        rest = z3.Q(1, 2) if broken == HALF else 1
        return hypotheses, 1 + kept * kept + t * t / rest, 1 + b * b + c * c

    return [Query("mean, r = 4, k = 2, one-sided", mean), Query("kth, r = 3, k = 2", kth)]


def _mixed() -> Comparison:
    p = profile([fmpq(2), fmpq(1)], 2)
    inverse = sharp_squared(2, p.epsilon, p.beta_mean, 2, "kth")
    return compare("kth with β_mean", p.top * p.top, p.l2_squared / inverse, squared=True)


def _without_max() -> Comparison:
    p = profile([fmpq(1), fmpq(0)], 2)
    inverse = sharp_squared(2, p.epsilon, fmpq(1), 2, "mean", NO_MAX)
    return compare("mean without max", p.top * p.top, p.l2_squared / inverse, squared=True)


def _unclamped() -> Comparison:
    # ρ falls in ε_r beyond √((n−k_r)/n): ε_r = 1 on a flat row of 2, k_r = 1, gives ρ = 1 where ‖w‖_1/‖w‖_2 = √2
    return compare("ρ at ε_r = 1", sqrt(2), real(1))


_FLAT_ROWS = fmpq_mat([[fmpq(2), fmpq(1), fmpq(-1)], [fmpq(-1), fmpq(1, 2), fmpq(1, 2)]])

LEMMA = Lemma(
    name="sharp_forms",
    statement="‖θ‖_∞ <= c♯(k, ε, β) ‖θ‖_2, attained; ‖W‖_∞ <= ρ c♯(k_ν, ε_ν, β_ν, m) ‖W‖_F, attained",
    source="theory.md section 2",
    draw=draw,
    evaluate=evaluate,
    searches=searches,
    queries=queries,
    witnesses=(
        Witness(
            "mean: (1, b, b, t, t)",
            lambda: Instance(extremal(3, 5, fmpq(2, 3), fmpq(1, 2)), 3, fmpq(0), fmpq(0), attained="θ"),
            "attained, mean",
        ),
        Witness(
            "kth: (1, b, b, t, t)",
            lambda: Instance(extremal(3, 5, fmpq(2, 3), fmpq(1, 2)), 3, fmpq(0), fmpq(0), attained="θ"),
            "attained, kth",
        ),
        Witness(
            "rows of one shape",
            lambda: Instance([], 1, fmpq(0), fmpq(0), _FLAT_ROWS, 1, attained="rows"),
            "rows attained, mean",
        ),
    ),
    counterexamples=(
        Counterexample("β_mean in the kth formula: θ = (2, 1), k = 2", _mixed),
        Counterexample("mean without max(1, ·): θ = (1, 0), k = 2, β = 1", _without_max),
        Counterexample("ρ without the clamp: row (1, 1), k_r = 1, ε_r = 1", _unclamped),
    ),
    broken={
        HALF: Variant("c♯ with (r−k)/2 for r−k"),
        NO_MAX: Variant("S = k(1−β) without max(1, ·)"),
        MIXED: Variant("β_mean put into the kth formula"),
        SMALL_RHO: Variant("ρ without its tail term", ("exact", "ascent")),
    },
)
