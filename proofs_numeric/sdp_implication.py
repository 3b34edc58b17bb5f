"""The SDP implication: ANY multipliers T with all X_i ≻ 0 give a Lipschitz bound.

Statement. ``f = W_{m+1} φ(W_m … φ(W_1 x))``, biases anywhere, slopes in [0, 1], diagonal T_i, ``X_0 = diag(d) ≻ 0``,
``X_i = 2T_i − T_i W_i X_{i−1}^{-1} W_iᵀ T_i ≻ 0`` for all i. For all diagonal D_i with entries in [0, 1],
``J = W_{m+1} D_m W_m … D_1 W_1`` has ``J diag(d)^{-1} Jᵀ ⪯ W_{m+1} X_m^{-1} W_{m+1}ᵀ``. Hence ``L_2² <= λ_max`` of the
right side (d = 1), and one output has ``L_∞² <= Σd`` times it; also the block tridiagonal ``M(ρ diag(d), ρT) ⪰ 0``.
Residual blocks ``z⁺ = H z + G φ(W z)``, backward from ``P = CᵀC``:
``P⁻ = HᵀPH + (HᵀPG + WᵀT)(2T − GᵀPG)^{-1}(·)ᵀ`` with ``2T ≻ GᵀPG``; then ``JᵀJ ⪯ P_0`` for every pattern. Slopes in
[α_i, β_i]: ``X_i = 2T − T(α+β)W (X_{i−1} + 2WᵀαTβW)^{-1} Wᵀ(α+β)T``, which needs the bracket ≻ 0 too (α < 0).

Proof. ``z = D W z'`` has ``zᵀTz <= zᵀTWz'``; with v = Tz, ``zᵀX_i z = 2 zᵀTz − vᵀW X_{i−1}^{-1} Wᵀv <=
2 vᵀWz' − vᵀW X_{i−1}^{-1} Wᵀ v <= z'ᵀX_{i−1}z'``. So ``ZᵀX_m Z ⪯ X_0``, and X_m ≻ 0 inverts it. Residual: the same
S-procedure, completed to a square. The network version with coupled multipliers fails: neurons with
different pre-activations may sit at different slopes.

Source: Fazlyab et al., NeurIPS 2019 (LipSDP-neuron); Pabbaraju et al., ICLR 2021; certbound theory, section 5.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from flint import fmpq, fmpq_mat

from proofs_numeric.harness.exact import (
    Vector,
    diagonal,
    draw_fraction,
    draw_rational,
    identity,
    is_pd,
    is_psd,
    matrix,
    patterns,
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
    compare_psd,
)

if TYPE_CHECKING:
    import torch

LABELS = ("J diag(d)⁻¹ Jᵀ ⪯ H X⁻¹ Hᵀ", "one output, ℓ∞")
NOT_POSITIVE = "T with one X_i not positive"


@dataclass(frozen=True)
class Instance:
    """``weights`` W_1 … W_{m+1}, t_1 … t_m, the input metric d, slopes D_1 … D_m, biases and two points.

    With ``blocks`` (H, G, W, t) and a head instead: the residual form. ``ranges``: slopes in [α, β] per neuron instead
    of [0, 1]; then D has entries there, and there are no points (the activation is not a ReLU).
    """

    weights: list[fmpq_mat]
    t: list[Vector]
    d: Vector
    slopes: list[Vector]
    biases: list[Vector] = field(default_factory=list)
    points: tuple[Vector, Vector] = ((), ())  # type: ignore[assignment]
    blocks: list[tuple[fmpq_mat, fmpq_mat, fmpq_mat, Vector]] = field(default_factory=list)
    ranges: list[tuple[Vector, Vector]] = field(default_factory=list)


def _column(v: Sequence[fmpq]) -> fmpq_mat:
    return fmpq_mat([[u] for u in v])


def _inverse(v: Sequence[fmpq]) -> fmpq_mat:
    return diagonal([1 / u for u in v])


def recursion(weights: Sequence[fmpq_mat], t: Sequence[Vector], d: Vector) -> list[fmpq_mat]:
    """X_1 … X_m; raises ZeroDivisionError where one before the last is singular."""
    X, result = diagonal(d), []
    for W, ti in zip(weights, t, strict=False):
        T = diagonal(ti)
        X = 2 * T - T * W * X.inv() * W.transpose() * T
        result.append(X)
    return result


def local_step(W: fmpq_mat, t: Vector, X: fmpq_mat, low: Vector, high: Vector) -> tuple[fmpq_mat, fmpq_mat]:
    """``(X_{i−1} + 2WᵀαTβW, X_i)`` for slopes in [low, high]."""
    T, both = diagonal(t), diagonal([a + b for a, b in zip(low, high, strict=True)])
    inner = X + 2 * W.transpose() * diagonal([a * b * v for a, b, v in zip(low, high, t, strict=True)]) * W
    half = T * both * W
    return inner, 2 * T - half * inner.inv() * half.transpose()


def _local(x: Instance, broken: Broken) -> list[Comparison]:
    X, positive = diagonal(x.d), True
    for W, given, (low, high) in zip(x.weights, x.t, x.ranges, strict=False):
        t = given
        try:
            inner, Y = local_step(W, t, X, low, high)
            while broken is None and not (is_pd(inner) and is_pd(Y)):
                t = [v * fmpq(3, 5) for v in t]
                inner, Y = local_step(W, t, X, low, high)
        except ZeroDivisionError:
            return []
        positive = positive and is_pd(inner) and is_pd(Y)
        X = Y
    if (broken and positive) or X.det() == 0:
        return []
    right = x.weights[-1] * X.inv() * x.weights[-1].transpose()
    J = jacobian(x.weights, x.slopes)
    return [compare_psd("slopes in [α, β]", J * _inverse(x.d) * J.transpose(), right)]


def _shrunk(weights: Sequence[fmpq_mat], t: Sequence[Vector], d: Vector) -> list[Vector]:
    """Multipliers scaled down, layer by layer, until X_i ≻ 0: small T_i always are feasible."""
    X, result = diagonal(d), []
    for W, ti in zip(weights, t, strict=False):
        while True:
            T = diagonal(ti)
            Y = 2 * T - T * W * X.inv() * W.transpose() * T
            if is_pd(Y):
                break
            ti = [v * fmpq(3, 5) for v in ti]
        X = Y
        result.append(ti)
    return result


def _draw_matrix(rng: random.Random, m: int, n: int) -> fmpq_mat:
    return fmpq_mat([[draw_rational(rng, 3, (1, 1, 2)) for _ in range(n)] for _ in range(m)])


def _positive(rng: random.Random) -> fmpq:
    return fmpq(rng.randint(1, 12), rng.randint(1, 6))


def _slopes(rng: random.Random, n: int) -> Vector:
    return [draw_fraction(rng) if rng.random() < 0.3 else fmpq(rng.randint(0, 1)) for _ in range(n)]


def draw(rng: random.Random, size: int) -> Instance:
    if rng.random() < 0.25:
        return _draw_residual(rng, size)
    layers = rng.randint(1, 3)
    widths = [rng.randint(1, 3 + size) for _ in range(layers + 1)] + [rng.randint(1, 2)]
    weights = [_draw_matrix(rng, m, n) for n, m in pairwise(widths)]
    hidden = widths[1:-1]
    d = [fmpq(1)] * widths[0] if rng.random() < 0.5 else [_positive(rng) for _ in range(widths[0])]
    if rng.random() < 0.3:
        t, slopes, ranges = [], [], []
        for h in hidden:
            low = [fmpq(rng.randint(-2, 8), 10) for _ in range(h)]
            high = [a + fmpq(rng.randint(0, 5), 10) for a in low]
            slopes.append([a + (b - a) * draw_fraction(rng) for a, b in zip(low, high, strict=True)])
            ranges.append((low, high))
            t.append([_positive(rng) for _ in range(h)])
        return Instance(weights, t, d, slopes, ranges=ranges)
    points = tuple([draw_rational(rng) for _ in range(widths[0])] for _ in range(2))
    return Instance(
        weights,
        [[_positive(rng) for _ in range(h)] for h in hidden],
        d,
        [_slopes(rng, h) for h in hidden],
        [[draw_rational(rng) for _ in range(h)] for h in hidden],
        points,  # type: ignore[arg-type]
    )


def _draw_residual(rng: random.Random, size: int) -> Instance:
    n, h = rng.randint(1, 2 + size), rng.randint(1, 2 + size)
    blocks, slopes = [], []
    for _ in range(rng.randint(1, 2)):
        H = identity(n) if rng.random() < 0.5 else _draw_matrix(rng, n, n)
        blocks.append((H, _draw_matrix(rng, n, h), _draw_matrix(rng, h, n), [_positive(rng) for _ in range(h)]))
        slopes.append(_slopes(rng, h))
    return Instance([_draw_matrix(rng, rng.randint(1, 2), n)], [], [], slopes, blocks=blocks)


def jacobian(weights: Sequence[fmpq_mat], slopes: Sequence[Sequence[int | fmpq]]) -> fmpq_mat:
    """``W_{m+1} D_m W_m … D_1 W_1``."""
    J = weights[0]
    for W, s in zip(weights[1:], slopes, strict=True):
        J = W * diagonal(list(s)) * J
    return J


def network(x: Instance, point: Sequence[fmpq]) -> fmpq_mat:
    """f at a point, as a column."""
    z = _column(point)
    for W, b in zip(x.weights, x.biases, strict=False):
        z = fmpq_mat([[max(u, fmpq(0)) for u in row] for row in (W * z + _column(b)).tolist()])
    return x.weights[-1] * z


def block_matrix(x: Instance, t: Sequence[Vector], scale: fmpq) -> fmpq_mat:
    """``M(scale · diag(d), scale · T)``: block tridiagonal, the last block less ``W_{m+1}ᵀ W_{m+1}``."""
    sizes = [len(x.d), *(len(v) for v in t)]
    total, starts = sum(sizes), [sum(sizes[:i]) for i in range(len(sizes))]
    M = [[fmpq(0)] * total for _ in range(total)]
    for i, values in enumerate([x.d, *([2 * u for u in v] for v in t)]):
        for j, u in enumerate(values):
            M[starts[i] + j][starts[i] + j] = scale * u
    for i, W in enumerate(x.weights[:-1]):
        for a in range(W.nrows()):
            for b in range(W.ncols()):
                value = -scale * t[i][a] * W[a, b]
                M[starts[i + 1] + a][starts[i] + b] = M[starts[i] + b][starts[i + 1] + a] = value
    gram = x.weights[-1].transpose() * x.weights[-1]
    for a in range(gram.nrows()):
        for b in range(gram.ncols()):
            M[starts[-1] + a][starts[-1] + b] -= gram[a, b]
    return fmpq_mat(M)


def evaluate(x: Instance, broken: Broken) -> list[Comparison]:
    if x.blocks:
        return _residual(x, broken)
    if x.ranges:
        return _local(x, broken)
    t = x.t if broken else _shrunk(x.weights, x.t, x.d)
    try:
        X = recursion(x.weights, t, x.d)
        right = x.weights[-1] * X[-1].inv() * x.weights[-1].transpose()
    except ZeroDivisionError:
        return []
    if broken and all(is_pd(v) for v in X):
        return []
    J, metric = jacobian(x.weights, x.slopes), _inverse(x.d)
    result = [compare_psd("J diag(d)⁻¹ Jᵀ ⪯ H X⁻¹ Hᵀ", J * metric * J.transpose(), right)]
    # the same for every 0/1 pattern of a small net, and for each output against ‖·‖_∞
    for i, row in enumerate(J.tolist()):
        l1 = sum((abs(v) for v in row), fmpq(0))
        result.append(compare("one output, ℓ∞", l1 * l1, right[i, i] * sum(x.d, fmpq(0)), squared=True))
    if x.biases:
        change = network(x, x.points[0]) - network(x, x.points[1])
        step2 = sum((w * (u - v) ** 2 for u, v, w in zip(*x.points, x.d, strict=True)), fmpq(0))
        result += [
            compare("two points", change[i, 0] ** 2, right[i, i] * step2, squared=True) for i in range(change.nrows())
        ]
    if broken is None and right.nrows() == 1:
        scale = right[0, 0]
        if scale > 0:
            M = block_matrix(x, t, scale)
            result.append(compare_psd("M ⪰ 0 at ρ = H X⁻¹ Hᵀ", 0 * M, M))
    return result


def _residual(x: Instance, broken: Broken) -> list[Comparison]:
    C = x.weights[0]
    P, positive = C.transpose() * C, True
    for H, G, W, t in reversed(x.blocks):
        T = diagonal(t)
        inner = 2 * T - G.transpose() * P * G
        while broken is None and not is_pd(inner):
            T = 2 * T
            inner = 2 * T - G.transpose() * P * G
        if inner.det() == 0:
            return []
        positive = positive and is_pd(inner)
        cross = H.transpose() * P * G + W.transpose() * T
        P = H.transpose() * P * H + cross * inner.inv() * cross.transpose()
    if broken and positive:
        return []
    J = C
    for (H, G, W, _), s in reversed(list(zip(x.blocks, x.slopes, strict=True))):
        J = J * (H + G * diagonal(s) * W)
    return [compare_psd("residual: JᵀJ ⪯ P_0", J.transpose() * J, P)]


def _search(widths: Sequence[int], metric: bool, broken: Broken) -> Search:
    """Weights, multipliers, metric and slopes are all free; one output. T is made feasible by construction."""
    shapes = list(zip(widths[1:], widths, strict=False))
    hidden = list(widths[1:-1])
    n_weights = sum(m * n for m, n in shapes)
    total = sum(hidden)
    size = n_weights + 3 * total + len(hidden) + widths[0]

    def unpack(v: Any, m: Any, offset: Any) -> tuple[list[Any], list[Any], list[Any], list[Any], Any]:
        weights, at = [], 0
        for rows, columns in shapes:
            weights.append(m(v, at, rows, columns))
            at += rows * columns
        parts: list[list[Any]] = [[], []]
        for part in parts:
            for h in hidden:
                part.append(v[..., at : at + h])
                at += h
        scales = [v[..., at + i] for i in range(len(hidden))]
        at += len(hidden)
        d = v[..., at : at + widths[0]] ** 2 + offset if metric else v[..., at : at + widths[0]] * 0 + 1
        slopes = [1 / (1 + (3 * p) ** 2) for p in parts[0]]
        return weights, slopes, parts[1], scales, d

    def solve(v: torch.Tensor) -> tuple[Any, ...]:
        import torch

        weights, slopes, raw, scales, d = unpack(
            v, lambda v, at, r, c: v[:, at : at + r * c].reshape(-1, r, c), 2.0**-7
        )
        inverse = torch.diag_embed(1 / d)
        t = []
        for W, s, c in zip(weights, raw, scales, strict=False):
            K = W @ inverse @ W.transpose(1, 2)
            values = s * s + 0.01
            if broken:
                ti = values
            else:
                half = values.sqrt()
                top = torch.linalg.eigvalsh(half[:, :, None] * K * half[:, None, :])[:, -1]
                ti = values * (1.999 / (1 + c * c) / (top + 1e-9))[:, None]
            t.append(ti)
            X = 2 * torch.diag_embed(ti) - ti[:, :, None] * K * ti[:, None, :]
            inverse = torch.linalg.inv(X + 1e-12 * torch.eye(X.shape[1], dtype=X.dtype))
        J = weights[0]
        for W, s in zip(weights[1:], slopes, strict=True):
            J = W @ (s[:, :, None] * J)
        right = (weights[-1] @ inverse @ weights[-1].transpose(1, 2))[:, 0, 0]
        return weights, slopes, t, d, J[:, 0], right

    def objective(v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        *_, d, J, right = solve(v)
        euclidean, l1, reach = (J.square() / d).sum(1), J.abs().sum(1), right * d.sum(1)
        root = reach.sign() * reach.abs().sqrt()
        return torch.stack([euclidean, l1], 1), torch.stack([right, root], 1)

    def instance(v: Sequence[Any]) -> Instance:
        import numpy as np
        import torch

        exact = np.array(list(v), dtype=object)
        # (the multipliers' normalisation has an eigenvalue in it: they are rounded, then shrunk until feasible)
        floats = torch.tensor([[float(u) for u in v]], dtype=torch.float64)
        t = [[fmpq(*float(u).as_integer_ratio()) for u in ti[0].tolist()] for ti in solve(floats)[2]]

        def cut(v: Any, at: int, r: int, c: int) -> fmpq_mat:
            return fmpq_mat([list(v[at + i * c : at + (i + 1) * c]) for i in range(r)])

        weights, slopes, _, _, d = unpack(exact, cut, fmpq(1, 128))
        return Instance(weights, t, [fmpq(u) for u in d], [list(s) for s in slopes])

    name = "ℓ∞" if metric else "ℓ2"
    return Search(f"{name}: widths {'-'.join(map(str, widths))}", size, objective, instance, LABELS)


def searches(broken: Broken, size: int = 0) -> list[Search]:
    shapes = [((2, 2, 1), False), ((2, 2, 2, 1), True), ((1, 1, 1, 1), False)]
    if size:
        shapes += [((2 + size, 2 + size, 1), True), ((2, 3, 3, 2, 1), False), ((3, 2, 2, 3, 1), True)]
    return [_search(widths, metric, broken) for widths, metric in shapes]


def queries(broken: Broken) -> list[Query]:
    def build() -> tuple[Sequence[Any], Any, Any]:
        import z3

        # widths 1-1-1-1, all weights 1 (they can be scaled into t), d = 1: (d_1 d_2)² <= 1/X_2
        t1, t2, d1, d2, i1, i2 = z3.Reals("t1 t2 d1 d2 i1 i2")
        x1, x2 = 2 * t1 - t1 * t1, 2 * t2 - t2 * t2 * i1
        hypotheses = [i1 * x1 == 1, i2 * x2 == 1, x2 > 0, d1 >= 0, d1 <= 1, d2 >= 0, d2 <= 1, t1 > 0, t2 > 0]
        hypotheses.append(x1 < 0 if broken == NOT_POSITIVE else x1 > 0)
        return hypotheses, d1 * d1 * d2 * d2, i2

    return [Query("1-1-1-1, all T and all slopes", build)]


def _coupled(t: Vector, couplings: dict[tuple[int, int], int]) -> fmpq_mat:
    """``Σ λ_i e_i e_iᵀ + Σ μ_ij (e_i − e_j)(e_i − e_j)ᵀ``: the network version's multipliers."""
    T = diagonal(t).tolist()
    for (i, j), mu in couplings.items():
        T[i][i] += mu
        T[j][j] += mu
        T[i][j] -= mu
        T[j][i] -= mu
    return fmpq_mat(T)


def _network_version(W: fmpq_mat, head: fmpq_mat, T: fmpq_mat, rho: int) -> Comparison:
    """M(ρ, T) ⪰ 0 with coupled T, and yet some pattern that inputs realise has ‖J‖² > ρ."""
    n, h = W.ncols(), W.nrows()
    off = -1 * (T * W)
    top = [[fmpq(rho) if i == j else fmpq(0) for j in range(n)] + [off[i2, i] for i2 in range(h)] for i in range(n)]
    corner = 2 * T - head.transpose() * head
    bottom = [off.tolist()[i] + corner.tolist()[i] for i in range(h)]
    if not is_psd(fmpq_mat(top + bottom)):
        raise AssertionError("the network version's matrix must be positive semidefinite")
    true = max(sum((v * v for v in jacobian([W, head], [s]).entries()), fmpq(0)) for s in patterns(h))
    return compare("network version", true, rho, squared=True)


def _four_four_one() -> Comparison:
    W = matrix([[1, -2, 1, 0], [-1, 0, 2, 2], [-1, 2, -1, 1], [-1, 1, 1, 2]])
    if W.det() == 0:
        raise AssertionError("W must be invertible, so that inputs realise every pattern")
    T = _coupled([fmpq(0), fmpq(2), fmpq(1), fmpq(0)], {(0, 1): 2, (1, 3): 2, (2, 3): 8})
    return _network_version(W, matrix([[-1, 2, 2, -2]]), T, 37)


def _one_two_one() -> Comparison:
    """f(x) = φ(x) − φ(x + 1) has constant 1; the coupling asks both neurons to move together and "proves" 1/2."""
    T = _coupled([fmpq(1, 4), fmpq(1, 4)], {(0, 1): 5})
    W, head = matrix([[1], [1]]), matrix([[1, -1]])
    Y = 2 * T - head.transpose() * head
    rho = (W.transpose() * T * Y.inv() * T * W)[0, 0]
    if not is_pd(Y):
        raise AssertionError("2T − HᵀH must be positive definite")
    x, y = fmpq(-1), fmpq(0)
    change = (max(x, fmpq(0)) - max(x + 1, fmpq(0))) - (max(y, fmpq(0)) - max(y + 1, fmpq(0)))
    return compare("network version, two points", change**2, rho * (x - y) ** 2, squared=True)


LEMMA = Lemma(
    name="sdp_implication",
    statement="all X_i ≻ 0 ⟹ J diag(d)⁻¹ Jᵀ ⪯ W_{m+1} X_m⁻¹ W_{m+1}ᵀ; residual: JᵀJ ⪯ P_0",
    source="Fazlyab et al., NeurIPS 2019; theory.md section 5",
    draw=draw,
    evaluate=evaluate,
    searches=searches,
    queries=queries,
    counterexamples=(
        Counterexample("network version (coupled T), 1-2-1 with biases", _one_two_one),
        Counterexample("network version (coupled T), 4-4-1, ρ = 37", _four_four_one),
    ),
    witnesses=(
        Witness(
            "one neuron at its best T",
            lambda: Instance([matrix([[3]]), matrix([[2]])], [[fmpq(1, 9)]], [fmpq(1)], [[fmpq(1)]]),
            "J diag(d)⁻¹ Jᵀ ⪯ H X⁻¹ Hᵀ",
        ),
    ),
    broken={NOT_POSITIVE: Variant("the formula used where some X_i is not positive definite")},
    weight=0.7,
)
