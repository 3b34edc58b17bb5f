"""Corollary 3.3: the loss gap under attack, binary logistic and multi-class cross-entropy.

Statement. Φ with ``‖Φ(x+a) − Φ(x)‖_p <= L ‖a‖_p`` (p = 2 or ∞), ``‖a‖_p <= δ``, p* the dual exponent. Binary, head C,
y = ±1, loss ``log(1 + exp(−y C·Φ))``: the gap is at most ``δ L ‖C‖_{p*}`` (p = ∞: the vector ℓ1 norm). Multi-class,
logits ``C Φ``, cross-entropy: at most ``δ L max_{j≠y} ‖C_j − C_y‖_{p*}``. Each margin ``(C_y − C_j)Φ`` falls by at most
``δ L ‖C_j − C_y‖_{p*}``, so a sample with more margin keeps its class. Means over samples follow.

Proof. Hölder for the margin; ``log(1 + e^t)`` is increasing and 1-Lipschitz; log-sum-exp of the margins is monotone and
moves by at most the largest change.

Source: Barsbey et al., ICLR 2026, Corollary 3.3; certbound theory, section 4.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flint import fmpq, fmpq_mat

from proofs_numeric.decoupled import pattern_maximum
from proofs_numeric.harness.exact import (
    Real,
    Vector,
    draw_matrix,
    draw_rational,
    draw_skew,
    draw_vector,
    identity,
    largest,
    log_sum_exp,
    matrix,
    norm_inf,
    real,
    softplus,
    sqrt,
    with_spectrum,
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

if TYPE_CHECKING:
    import torch

NO_DUAL = "dual norm missing"
NO_DIFFERENCE = "C_j for C_j - C_y"


@dataclass(frozen=True)
class Instance:
    """An encoder with its exact constant ``lipschitz`` in the norm, a head, a point, an attack and a label.

    The encoder is ``φ(W x + b)``, or ``φ(W2 φ(W x + b))`` where ``W2`` is given. One row of ``C``: binary, label ±1.
    """

    norm: str
    W: fmpq_mat
    b: Vector
    W2: fmpq_mat | None
    lipschitz: fmpq
    C: fmpq_mat
    x: Vector
    a: Vector
    label: int


def _column(v: Sequence[fmpq]) -> fmpq_mat:
    return fmpq_mat([[u] for u in v])


def _relu(v: fmpq_mat) -> fmpq_mat:
    return fmpq_mat([[max(u, fmpq(0)) for u in row] for row in v.tolist()])


def encoder(x: Instance, point: Sequence[fmpq]) -> fmpq_mat:
    """Φ at a point, as a column."""
    z = _relu(x.W * _column(point) + _column(x.b))
    return z if x.W2 is None else _relu(x.W2 * z)


def draw(rng: random.Random, size: int) -> Instance:
    n, h, classes = rng.randint(1, 3 + size), rng.randint(1, 3 + size), rng.choice((1, 1, 2, 3))
    W2 = None
    if rng.random() < 0.5:
        W = draw_matrix(rng, h, n)
        lipschitz, norm = norm_inf(W), "inf"
        if rng.random() < 0.4:
            W2 = draw_matrix(rng, rng.randint(1, 3), h)
            lipschitz = pattern_maximum(W2, W)
    else:
        s = draw_vector(rng, min(h, n))
        W, norm = with_spectrum(s, h, n, draw_skew(rng, h), draw_skew(rng, n)), "2"
        lipschitz = max(abs(v) for v in s)
    C = draw_matrix(rng, classes, h if W2 is None else W2.nrows())
    b = [draw_rational(rng) for _ in range(h)]
    label = rng.choice((-1, 1)) if classes == 1 else rng.randrange(classes)
    return Instance(norm, W, b, W2, lipschitz, C, [draw_rational(rng) for _ in range(n)], draw_vector(rng, n), label)


def head_norm(c: Sequence[fmpq], norm: str, broken: Broken = None) -> Real:
    """``‖c‖_{p*}`` of a row of the head (or of a difference of rows)."""
    if norm == "2":
        return sqrt(sum((v * v for v in c), fmpq(0)))
    if broken == NO_DUAL:
        return real(max(abs(v) for v in c))
    return real(sum((abs(v) for v in c), fmpq(0)))


def evaluate(x: Instance, broken: Broken) -> list[Comparison]:
    moved = [u + v for u, v in zip(x.x, x.a, strict=True)]
    before, after = encoder(x, x.x), encoder(x, moved)
    delta = real(max(abs(v) for v in x.a)) if x.norm == "inf" else sqrt(sum((v * v for v in x.a), fmpq(0)))
    rows = x.C.tolist()
    z, z2 = [v[0] for v in (x.C * before).tolist()], [v[0] for v in (x.C * after).tolist()]
    reach = delta * x.lipschitz
    if len(rows) == 1:
        y = x.label
        claimed = reach * head_norm(rows[0], x.norm, broken)
        result = [compare(f"{x.norm}: margin, binary", y * (z[0] - z2[0]), claimed)]
        if claimed.sign() > 0:
            gap = softplus(-y * z2[0]) - softplus(-y * z[0])
            result.append(compare(f"{x.norm}: logistic loss", gap, claimed))
        return result
    y = x.label
    norms, result = [], []
    for j, row in enumerate(rows):
        if j == y:
            continue
        difference = row if broken == NO_DIFFERENCE else [u - v for u, v in zip(row, rows[y], strict=True)]
        norms.append(head_norm(difference, x.norm, broken))
        fall = (z2[j] - z2[y]) - (z[j] - z[y])
        result.append(compare(f"{x.norm}: margin, multi-class", fall, reach * norms[-1]))
    claimed = reach * largest(norms)
    if claimed.sign() > 0:
        gap = (log_sum_exp(z2) - z2[y]) - (log_sum_exp(z) - z[y])
        result.append(compare(f"{x.norm}: cross-entropy", gap, claimed))
    return result


def _search(norm: str, classes: int, broken: Broken) -> Search:
    """Width-2 encoder on two inputs. p = 2: W from a prescribed spectrum and one Cayley parameter a side."""
    h = 2
    cuts = [4, 6, 8, 10, 10 + classes * h]  # W, b, x, a, C

    def build_W(p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        if norm == "inf":
            W = p.reshape(-1, 2, 2)
            return W, W.abs().sum(2).amax(1)

        def turn(c: torch.Tensor) -> torch.Tensor:
            cos, sin = (1 - c * c) / (1 + c * c), 2 * c / (1 + c * c)
            return torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)

        # exact.cayley((c,)) is the rotation by 2 atan c
        W = (turn(p[:, 2]) * p[:, None, :2]) @ turn(p[:, 3]).transpose(1, 2)
        return W, p[:, :2].abs().amax(1)

    def objective(v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        W, lipschitz = build_W(v[:, :4])
        b, x, a = (v[:, cuts[i] : cuts[i + 1]] for i in range(3))
        C = v[:, cuts[3] : cuts[4]].reshape(-1, classes, h)

        def logits(point: torch.Tensor) -> torch.Tensor:
            return (C @ torch.relu(W @ point[:, :, None] + b[:, :, None]))[:, :, 0]

        z, z2 = logits(x), logits(x + a)
        delta = a.abs().amax(1) if norm == "inf" else a.norm(dim=1)

        def dual(c: torch.Tensor) -> torch.Tensor:
            if norm == "2":
                return c.norm(dim=-1)
            return c.abs().amax(-1) if broken == NO_DUAL else c.abs().sum(-1)

        if classes == 1:
            gap = torch.nn.functional.softplus(-z2[:, 0]) - torch.nn.functional.softplus(-z[:, 0])
            return gap, delta * lipschitz * dual(C[:, 0])
        loss = torch.logsumexp(z2, 1) - z2[:, 0] - torch.logsumexp(z, 1) + z[:, 0]
        difference = C[:, 1:] if broken == NO_DIFFERENCE else C[:, 1:] - C[:, :1]
        return loss, delta * lipschitz * dual(difference).amax(1)

    def instance(v: Sequence[Any]) -> Instance:
        p = list(v)
        if norm == "inf":
            W = fmpq_mat([p[:2], p[2:4]])
            lipschitz = norm_inf(W)
        else:
            W, lipschitz = with_spectrum(p[:2], 2, 2, [p[2]], [p[3]]), max(abs(p[0]), abs(p[1]))
        C = fmpq_mat([p[cuts[3] + i * h : cuts[3] + (i + 1) * h] for i in range(classes)])
        label = 1 if classes == 1 else 0
        return Instance(norm, W, p[4:6], None, lipschitz, C, p[6:8], p[8:10], label)

    loss = "logistic loss" if classes == 1 else "cross-entropy"
    return Search(f"{norm}, {classes} outputs", cuts[4], objective, instance, (f"{norm}: {loss}",))


def searches(broken: Broken, size: int = 0) -> list[Search]:
    if broken == NO_DIFFERENCE:
        return [_search("inf", 3, broken), _search("2", 3, broken)]
    return [_search(norm, classes, broken) for norm in ("inf", "2") for classes in (1, 3)]


def queries(broken: Broken) -> list[Query]:
    def build() -> tuple[Sequence[Any], Any, Any]:
        import z3

        # what the loss rests on: |c·u| for ‖u‖_∞ <= 1 (u the change of Φ over δL), three neurons
        c, u = z3.Reals("c1 c2 c3"), z3.Reals("u1 u2 u3")
        sizes = [z3.If(v >= 0, v, -v) for v in c]
        claimed = sizes[0] + sizes[1] + sizes[2]
        if broken == NO_DUAL:
            first = z3.If(sizes[0] >= sizes[1], sizes[0], sizes[1])
            claimed = z3.If(first >= sizes[2], first, sizes[2])
        box = [z3.And(v >= -1, v <= 1) for v in u]
        return box, c[0] * u[0] + c[1] * u[1] + c[2] * u[2], claimed

    def difference() -> tuple[Sequence[Any], Any, Any]:
        import z3

        # margin of class j against y with two neurons
        c, d, u = z3.Reals("c1 c2"), z3.Reals("d1 d2"), z3.Reals("u1 u2")
        rows = c if broken == NO_DIFFERENCE else [a - b for a, b in zip(c, d, strict=True)]
        claimed = sum((z3.If(v >= 0, v, -v) for v in rows), z3.RealVal(0))
        box = [z3.And(v >= -1, v <= 1) for v in u]
        return box, (c[0] - d[0]) * u[0] + (c[1] - d[1]) * u[1], claimed

    return [Query("Hölder, p = ∞, three neurons", build), Query("margin, p = ∞, two neurons", difference)]


def _induced() -> Comparison:
    """The induced 1-norm of the 1 × h matrix C is max |c|, not Σ |c|."""
    W = identity(2)
    x = Instance("inf", W, [fmpq(0)] * 2, None, fmpq(1), matrix([[1, 1]]), [fmpq(9)] * 2, [fmpq(-8)] * 2, 1)
    return evaluate(x, NO_DUAL)[0]


def _rows_alone() -> Comparison:
    """C_j = −C_y: the margin moves twice as fast as either logit."""
    C = matrix([[1, 1], [-1, -1]])
    x = Instance("inf", identity(2), [fmpq(0)] * 2, None, fmpq(1), C, [fmpq(9)] * 2, [fmpq(-8)] * 2, 0)
    return evaluate(x, NO_DIFFERENCE)[0]


def _aligned(classes: int) -> Instance:
    """All signs aligned and the loss in its linear part: the gap is δ L ‖C‖_1 but for e^−margin."""
    C = matrix([[1, 1]]) if classes == 1 else matrix([[1, 1], [-1, -1]])
    start, step = [fmpq(2)] * 2, [fmpq(40)] * 2
    label = -1 if classes == 1 else 1
    return Instance("inf", identity(2), [fmpq(0)] * 2, None, fmpq(1), C, start, step, label)


LEMMA = Lemma(
    name="corollary33",
    statement="F_adv − F <= δ L ‖C‖_{p*} (logistic); <= δ L max_j ‖C_j − C_y‖_{p*} (cross-entropy)",
    source="Barsbey et al., ICLR 2026, Corollary 3.3; theory.md section 4",
    draw=draw,
    evaluate=evaluate,
    searches=searches,
    queries=queries,
    witnesses=(
        Witness("aligned attack, margin", lambda: _aligned(1), "inf: margin, binary"),
        Witness("aligned attack, logistic loss", lambda: _aligned(1), "inf: logistic loss", 0.999),
        Witness("aligned attack, cross-entropy", lambda: _aligned(2), "inf: cross-entropy", 0.999),
    ),
    counterexamples=(
        Counterexample("induced 1-norm of the head", _induced),
        Counterexample("max_j ‖C_j‖ for max_j ‖C_j − C_y‖", _rows_alone),
    ),
    broken={
        NO_DUAL: Variant("‖C‖_p for ‖C‖_{p*} (which is the induced 1-norm of the head for p = ∞)"),
        NO_DIFFERENCE: Variant("max_j ‖C_j‖ for max_j ‖C_j − C_y‖"),
    },
)
