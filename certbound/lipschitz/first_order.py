"""Multipliers of the LipSDP-neuron relaxation for large and residual networks, in torch. A hint, never a bound.

Steps ``z⁺ = H z + G ψ(W z)``, ψ elementwise with slopes in [0, 1], and the output ``C z_L``. For ``T_l = diag(t_l)``
the backward recursion ``P_L = CᵀC``, ``S_l = 2T_l − GᵀPG``, ``P_l = HᵀPH + (HᵀPG + WᵀT_l) S_l^{-1} (·)ᵀ`` gives, while
all ``S_l ≻ 0``, ``‖f(x) − f(y)‖_2² <= ΔᵀP_0Δ``: every such T is a bound, so the search can stop at any time.

What is minimised is convex: ``τ c − log det(D − P_0) − Σ_l log det S_l`` for growing τ, with ``D = ρI``, ``c = ρ`` (ℓ2;
ρ is eliminated exactly) or ``D = diag(d)``, ``c = Σd`` (ℓ∞); the log det are those of M(D, T), which is never formed.
Its derivatives are covariances of the Gaussian with precision M, which a forward sweep gives, as in a Kalman filter:
``z_0`` with covariance ``(D − P_0)^{-1}``, ``v = K z + e``, ``K = S^{-1}(GᵀPH + TW)``, ``cov e = S^{-1}``,
``z⁺ = H z + G v``. With ``b = v − W z``: ``∂/∂t_j = −2 cov(b_j, v_j)``, and the second derivative is
``2 (cov(b_j, v_k) cov(b_k, v_j) + cov(b_j, b_k) cov(v_j, v_k))``.

``full`` curvature is Newton's method, with all second derivatives: ``O(L² n³)`` a step for the sweep and ``O((Ln)³)/3``
for the one factorisation. ``layers`` has those within one layer only, ``O(L n³)`` time and ``O(L n²)`` memory, and
learns the others from past gradients (L-BFGS): for networks whose Hessian does not fit.

Source: Fazlyab et al., NeurIPS 2019 (the relaxation); Boyd & Vandenberghe, *Convex Optimization*, ch. 11 (the barrier);
Nocedal & Wright, *Numerical Optimization*, ch. 7 (L-BFGS); certbound theory, section 5 (the residual recursion).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from certbound.arrays import F64
from certbound.errors import InputError
from certbound.io.to_torch import import_torch

Tensor = Any  # torch is imported when something is solved, not before
Step = tuple[F64, F64 | None, F64 | None]
Curvature = Literal["auto", "full", "layers"]

FULL_LIMIT = 6000
"""Variables up to which ``auto`` takes the full Hessian: some 300 MB a copy, four of them."""
_GROWTH = 3.0  # of τ, from one centre to the next
_GROWTH_INF = 2.0  # ℓ∞: a longer way ends in corners of the domain
_GROWTH_LAYERS = 1.6
_CENTRED = 0.25  # half the squared Newton decrement below which a centre counts as reached
_CENTRED_LAYERS = 0.02  # the same by the approximate Hessian, which can make it too small
_FIRST = 3.0  # τ of the first centre, as a multiple of (rows of M)/(value of the start)
_MEMORY = 20  # pairs of L-BFGS
_TINY = 1e-30  # of normalised quantities: nothing


@dataclass(frozen=True, eq=False)
class FirstOrderAnswer:
    """Multipliers, one vector a step, and the metric d, in units of L²: the theory's ``M(ρI, T)`` or ``M(diag(d), T)``.

    ``value``: L² there, ``ρ = λ_max(P_0)`` or ``Σd``, without account of rounding (heuristic); ``d``: ones for ℓ2.
    ``status``: ``converged``, ``step limit``, ``time limit``, ``stalled`` (rounding), or ``out of range`` (multipliers
    that are no normal doubles in the caller's units: divide the weights by powers of two).
    """

    t: tuple[F64, ...]
    d: F64
    value: float
    steps: int
    status: str


@dataclass(frozen=True, eq=False)
class _System:
    """The steps in units (powers of two) in which every P_l is about 1; G = None stands for the identity, H for 0.

    ``free``: the multipliers that move; ``v_exponents``, ``z_exponent``: v and the input are ``2**`` these times ours.
    """

    torch: Any
    W: tuple[Tensor, ...]
    H: tuple[Tensor | None, ...]
    G: tuple[Tensor | None, ...]
    C: Tensor
    free: Tensor
    infinity: bool
    v_exponents: tuple[int, ...]
    z_exponent: int

    @property
    def sizes(self) -> list[int]:
        return [int(w.shape[0]) for w in self.W]

    @property
    def inputs(self) -> int:
        return int(self.W[0].shape[1])

    @property
    def metric(self) -> int:
        """Variables before the multipliers: d for ℓ∞, none for ℓ2."""
        return self.inputs if self.infinity else 0

    @property
    def rows(self) -> int:
        """Rows of M that have a say."""
        return self.inputs + int(self.free.sum())

    def to(self, dtype: Any) -> _System:
        def cast(xs: tuple[Tensor | None, ...]) -> tuple[Any, ...]:
            return tuple(None if x is None else x.to(dtype) for x in xs)

        return replace(self, W=cast(self.W), H=cast(self.H), G=cast(self.G), C=self.C.to(dtype))


@dataclass(frozen=True, eq=False)
class _Sweep:
    """Backward: Cholesky factors of S_l, gains K_l, P_0, and Σ log det S_l."""

    factors: list[Tensor]
    gains: list[Tensor]
    P: Tensor
    logdet: float


def _back(torch: Any, P: Tensor, step: tuple[Tensor, Tensor | None, Tensor | None], t: Tensor) -> Any:
    """One step back: (Cholesky factor of S, K, the P before), or None where S is not positive definite."""
    W, H, G = step
    PG = P if G is None else P @ G
    R, info = torch.linalg.cholesky_ex(torch.diag(2.0 * t) - (PG if G is None else G.T @ PG))
    if int(info) != 0:
        return None
    Y = t[:, None] * W
    if H is not None:
        Y = Y + PG.T @ H
    B = torch.linalg.solve_triangular(R, Y, upper=False)
    K = torch.linalg.solve_triangular(R.T, B, upper=True)
    return R, K, B.T @ B if H is None else H.T @ P @ H + B.T @ B


def _sweep(s: _System, t: Tensor) -> _Sweep | None:
    """The backward recursion; None where T is not feasible."""
    factors: list[Tensor] = []
    gains: list[Tensor] = []
    logdet = 0.0
    P = s.C.T @ s.C
    for *step, tl in reversed(list(zip(s.W, s.H, s.G, t.split(s.sizes), strict=True))):
        found = _back(s.torch, P, (step[0], step[1], step[2]), tl)
        if found is None:
            return None
        R, K, P = found
        factors.append(R)
        gains.append(K)
        logdet += 2.0 * float(s.torch.log(s.torch.diagonal(R)).sum())
    if not math.isfinite(logdet):  # LAPACK completes on NaN
        return None
    return _Sweep(factors[::-1], gains[::-1], 0.5 * (P + P.T), logdet)


@dataclass(frozen=True, eq=False)
class _Point:
    """``x``: (d and) t; ``D``: the metric's diagonal; ``merit``: the barrier; ``value``: L² that x proves (ρ or Σd)."""

    x: Tensor
    sweep: _Sweep
    D: Tensor
    merit: float
    value: float


def _rho(eigenvalues: F64, tau: float) -> float:
    """The minimiser of ``τρ − Σ log(ρ − λ)``: the root of ``Σ 1/(ρ − λ) = τ`` above all λ.

    >>> round(_rho(np.array([0.0, 3.0]), 1.25), 9)
    4.0
    """
    gaps = eigenvalues[-1] - eigenvalues
    x = 1.0 / tau  # the sum is convex and decreasing, and here at least τ: Newton climbs to the root
    for _ in range(100):
        inverse = 1.0 / (x + gaps)
        move = (float(np.sum(inverse)) - tau) / float(np.sum(inverse * inverse))
        x += move
        if move <= 1e-14 * x:
            break
    return float(eigenvalues[-1]) + x


def _eigenvalues(s: _System, A: Tensor) -> F64:
    return s.torch.linalg.eigvalsh(A).cpu().numpy().astype(np.float64)


def _at(s: _System, x: Tensor, tau: float) -> _Point | None:
    """The barrier at x; None outside its domain."""
    n = s.metric
    sweep = _sweep(s, x[n:])
    if sweep is None:
        return None
    if s.infinity:
        D = x[:n]
        R, info = s.torch.linalg.cholesky_ex(s.torch.diag(D) - sweep.P)
        if int(info) != 0:
            return None
        value = float(D.sum())
        merit = tau * value - sweep.logdet - 2.0 * float(s.torch.log(s.torch.diagonal(R)).sum())
    else:
        eigenvalues = _eigenvalues(s, sweep.P)
        value, rho = float(eigenvalues[-1]), _rho(eigenvalues, tau)
        D = s.torch.full_like(sweep.P[0], rho)
        merit = tau * rho - sweep.logdet - float(np.sum(np.log(rho - eigenvalues)))
    return _Point(x, sweep, D, merit, value) if math.isfinite(merit) else None


@dataclass(frozen=True, eq=False)
class _Derivatives:
    """Gradient, the diagonal blocks of the Hessian (d, then a step each), and all of it if asked for."""

    gradient: Tensor
    blocks: list[Tensor]
    hessian: Tensor | None


def _derivatives(s: _System, p: _Point, tau: float, full: bool) -> _Derivatives:
    """Of the barrier at p (for ℓ2: of its minimum over ρ): the forward sweep of covariances."""
    torch = s.torch
    n = s.metric
    cov = torch.cholesky_inverse(torch.linalg.cholesky(torch.diag(p.D) - p.sweep.P))  # of z_l, from l = 0
    first = cov
    gradient = torch.empty_like(p.x)
    gradient[:n] = tau - torch.diagonal(cov)[:n]
    blocks: list[Tensor] = [cov * cov] if s.infinity else []
    hessian: Tensor = p.x.new_zeros((len(p.x), len(p.x))) if full else None
    if full and s.infinity:
        hessian[:n, :n] = blocks[0]
    mixed = torch.zeros_like(p.x)  # ∂²/∂ρ∂t
    # covariances with z_l of: z_0, all v before, all b before
    with_z = cov
    with_v = with_b = p.x.new_zeros((0, s.inputs))
    at = n
    last = len(s.W) - 1
    for i, (W, H, G, R, K) in enumerate(zip(s.W, s.H, s.G, p.sweep.factors, p.sweep.gains, strict=True)):
        here = slice(at, at + len(W))
        vz, wz = K @ cov, W @ cov
        bz = vz - wz
        vv = vz @ K.T + torch.cholesky_inverse(R)
        bv = vv - wz @ K.T
        bb = bv - bz @ W.T
        gradient[here] = -2.0 * torch.diagonal(bv)
        blocks.append(2.0 * (bv * bv.T + bb * vv))
        if full:
            zv = with_z @ K.T
            cross = 2.0 * zv * (zv - with_z @ W.T)
            mixed[here] = cross.sum(0)
            hessian[here, here] = blocks[-1]
            hessian[:n, here] = cross[:n]
            av, cv = with_v @ K.T, with_b @ K.T
            hessian[n:at, here] = 2.0 * (cv * (av - with_v @ W.T) + (cv - with_b @ W.T) * av)
            hessian[here, :at] = hessian[:at, here].T
            if i < last:
                with_z = _carried(with_z, zv, H, G)
                with_v = torch.cat([_carried(with_v, av, H, G), _carried(vz, vv, H, G)])
                with_b = torch.cat([_carried(with_b, cv, H, G), _carried(bz, bv, H, G)])
        if i < last:
            v_next = _carried(vz, vv, H, G)
            moved = v_next if G is None else G @ v_next
            if H is not None:
                moved = moved + H @ _carried(cov, vz.T, H, G)
            cov = _symmetric(moved)
        at += len(W)
    if full and not s.infinity:
        hessian -= torch.outer(mixed, mixed) / (first * first).sum()
    return _Derivatives(gradient, blocks, hessian)


def _symmetric(A: Tensor) -> Tensor:
    return 0.5 * (A + A.T)


def _carried(with_z: Tensor, with_v: Tensor, H: Tensor | None, G: Tensor | None) -> Tensor:
    """Covariances with ``z⁺ = H z + G v`` from those with z and v."""
    moved = with_v if G is None else with_v @ G.T
    return moved if H is None else with_z @ H.T + moved


@dataclass(eq=False)
class _Pairs:
    """L-BFGS: the last moves and what they did to the gradient."""

    kept: list[tuple[Tensor, Tensor, float]] = field(default_factory=list)

    def add(self, move: Tensor, change: Tensor) -> None:
        curvature = float(move @ change)
        if curvature > 0.0:
            self.kept = [*self.kept[1 - _MEMORY :], (move, change, curvature)]

    def direction(self, gradient: Tensor, first: Callable[[Tensor], Tensor]) -> Tensor:
        """Minus the inverse Hessian times the gradient; ``first``: the inverse to start from."""
        q, weights = gradient, list[float]()
        for move, change, curvature in reversed(self.kept):
            weights.append(float(move @ q) / curvature)
            q = q - weights[-1] * change
        q = first(q)
        for (move, change, curvature), w in zip(self.kept, reversed(weights), strict=True):
            q = q + (w - float(change @ q) / curvature) * move
        return -q


def _solver(s: _System, matrices: list[Tensor], free: Tensor) -> Callable[[Tensor], Tensor] | None:
    """The inverse of a block diagonal matrix, the identity on what is not free; None where that is not definite."""
    torch = s.torch
    sizes = [len(A) for A in matrices]
    factors: list[Tensor] = []
    for A, moving in zip(matrices, free.split(sizes), strict=True):
        if not bool(moving.all()):
            A.mul_(moving[:, None]).mul_(moving)
            A.diagonal().add_((~moving).to(A.dtype))
        L, info = torch.linalg.cholesky_ex(A)
        if int(info) != 0 or not bool(torch.isfinite(torch.diagonal(L)).all()):
            return None
        factors.append(L)

    def inverse(q: Tensor) -> Tensor:
        parts = zip(q.split(sizes), factors, strict=True)
        return torch.cat([torch.cholesky_solve(v[:, None], L)[:, 0] for v, L in parts])

    return inverse


def _exponent(a: F64 | None) -> int | None:
    """Of two, of the largest entry; None for zeros or nothing."""
    m = 0.0 if a is None else float(np.max(np.abs(a), initial=0.0))
    return math.frexp(m)[1] if m > 0.0 else None


def _alive(steps: Sequence[Step]) -> tuple[list[Any], Any]:
    """Neurons whose input is not 0 for every input of the network, step by step, and such entries of z_L."""
    reach = np.ones(steps[0][0].shape[1], dtype=np.bool_)
    alive: list[Any] = []
    for W, H, G in steps:
        alive.append(np.any(W[:, reach] != 0.0, axis=1))
        after = alive[-1] if G is None else np.any(G[:, alive[-1]] != 0.0, axis=1)
        reach = after if H is None else after | np.any(H[:, reach] != 0.0, axis=1)
    return alive, reach


def _half_exponent(torch: Any, P: Tensor) -> tuple[float, int]:
    """``λ_max``, and the k for which ``4^{-k}`` times it is about 1."""
    top = float(torch.linalg.eigvalsh(P)[-1])
    return (top, round(0.5 * math.log2(top))) if top > _TINY else (1.0, 0)


def _normalised(
    torch: Any, steps: Sequence[Step], head: F64, infinity: bool, dtype: Any, device: Any
) -> tuple[_System, Tensor] | None:
    """The system in units of its own and its closed form, ``T_l = c λ_max(GᵀPG) I``; None for a constant network.

    c is 1 for a chain (the best for the worst W of its norm) and for a residual step the best of powers of two. The
    multiplier of a neuron that no input reaches would go to infinity: it is set large and stays.
    """

    def send(a: F64, exponent: int) -> Tensor:
        return torch.as_tensor(np.ldexp(a, exponent), dtype=torch.float64, device=device)

    alive, reached = _alive(steps)
    if not np.any(head[:, reached]):
        return None
    small, large = (1e-10, 1e8) if dtype == torch.float64 else (1e-5, 1e3)
    z = -(_exponent(head) or 0)
    C = send(head, z)
    P = C.T @ C
    parts: list[tuple[Tensor, Tensor | None, Tensor | None]] = []
    exponents: list[int] = []
    ts: list[Tensor] = []
    free: list[Tensor] = []
    for (W, H, G), live in zip(reversed(steps), reversed(alive), strict=True):
        v, g = z, None
        if G is not None:
            own = _exponent(G) or 0
            g = send(G, -own)
            _, k = _half_exponent(torch, g.T @ P @ g)
            g, v = g * 2.0**-k, z - own - k
        before = max([e - of for e, of in ((_exponent(W), v), (_exponent(H), z)) if e is not None], default=z)
        w, h = send(W, -before - v), None if H is None else send(H, -before - z)
        top, _ = _half_exponent(torch, P if g is None else g.T @ P @ g)
        moving = torch.as_tensor(live, device=device) & (torch.linalg.norm(w, dim=1) > small)
        ones = torch.ones_like(w[:, 0])
        best: tuple[float, Tensor, Tensor] | None = None
        for c in (1.0,) if h is None else (2.0**j for j in range(13)):
            t = c * top * torch.where(moving, ones, large * ones)
            found = _back(torch, P, (w, h, g), t)
            if found is not None:
                gain, _ = _half_exponent(torch, found[2])
                best = min(best or (math.inf, t, found[2]), (gain, t, found[2]), key=lambda b: b[0])
        assert best is not None  # S >= λ_max(GᵀPG) I
        _, k = _half_exponent(torch, best[2])
        parts.append((w * 2.0**-k, None if h is None else h * 2.0**-k, g))
        P, z = best[2] * 4.0**-k, -before - k
        exponents.append(v)
        ts.append(best[1])
        free.append(moving)
    Ws, Hs, Gs = zip(*parts[::-1], strict=True)
    Ws, Hs = _narrowed(torch, Ws, Hs, infinity)
    s = _System(torch, Ws, Hs, Gs, C, torch.cat(free[::-1]), infinity, tuple(exponents[::-1]), z)
    return s, torch.cat(ts[::-1])


def _narrowed(torch: Any, Ws: Any, Hs: Any, infinity: bool) -> tuple[Any, Any]:
    """‖·‖_2 does not see a rotation of the input: the LQ factor of what it meets has as many columns as rows."""
    met = Ws[0] if Hs[0] is None else torch.cat([Ws[0], Hs[0]])
    if infinity or met.shape[1] <= met.shape[0]:
        return Ws, Hs
    narrow = torch.linalg.qr(met.T, mode="r").R.T
    h = len(Ws[0])
    return (narrow[:h], *Ws[1:]), (None if Hs[0] is None else narrow[h:], *Hs[1:])


def _tight(s: _System, P: Tensor, d: Tensor | None = None) -> tuple[Tensor, float]:
    """The least multiple of d (ℓ∞; to start with: the row sums of ``|P|``) above P, and Σd; for ℓ2 ones, λ_max."""
    if not s.infinity:
        return s.torch.ones_like(P[0]), float(_eigenvalues(s, P)[-1])
    own: Tensor = P.abs().sum(1) if d is None else d
    own = own.clamp_min(1e-12 * float(own.max()))
    root = s.torch.sqrt(own)
    own = own * float(_eigenvalues(s, P / root / root[:, None])[-1])
    return own, float(own.sum())


def _feasible(s: _System, t: Tensor, closed: Tensor) -> Tensor:
    """t, moved towards a multiple of the closed form, and at least a little, until the recursion is feasible."""
    for theta in (1e-3, 0.03, 0.3):
        mixed = (1.0 - theta) * t + 1.5 * theta * closed
        if _sweep(s, mixed) is not None:
            return mixed
    return closed


@dataclass(frozen=True)
class _Limits:
    """When to stop."""

    steps: int
    tolerance: float
    deadline: float | None
    progress: Callable[[int, float], None] | None


def _minimised(s: _System, x: Tensor, full: bool, limits: _Limits) -> tuple[Tensor, int, str]:
    """The best point found from x on, the steps, and how it ended."""
    torch = s.torch
    free = torch.cat([torch.ones_like(s.free[:1]).expand(s.metric), s.free])
    noise = 100.0 * float(torch.finfo(x.dtype).eps)
    p = _at(s, x, 1.0)
    if p is None or not p.value > 0.0:
        return x, 0, "stalled"
    rows = s.rows
    growth = (_GROWTH_INF if s.infinity else _GROWTH) if full else _GROWTH_LAYERS
    tau = _FIRST * rows / p.value
    best, pairs, previous = p, _Pairs(), None
    p = _at(s, x, tau)
    for step in range(1, limits.steps + 1):
        if limits.deadline is not None and time.perf_counter() > limits.deadline:
            return best.x, step - 1, "time limit"
        if p is None:
            return best.x, step - 1, "stalled"
        found = _derivatives(s, p, tau, full)
        gradient = found.gradient
        inverse = _solver(s, found.blocks if found.hessian is None else [found.hessian], free)
        if inverse is None:
            return best.x, step, "stalled"
        if previous is not None and not full:
            pairs.add(p.x - previous[0], gradient - previous[1])
        move = pairs.direction(gradient, inverse)
        decrement = -float(gradient @ move)
        # no variable may turn negative: the domain ends before that
        cap = 0.95 / max(-float((move / p.x).min()), 1e-3)
        size, trial = _searched(s, p, move, tau, decrement, cap, noise)
        if trial is None:
            return best.x, step, "stalled"
        previous, p = (p.x, gradient), trial
        best = min(best, p, key=lambda q: q.value)
        excess = 0.5 * rows / (tau * p.value)
        if limits.progress is not None:
            limits.progress(step, excess)
        if size == 1.0 and 0.5 * decrement <= (_CENTRED if full else _CENTRED_LAYERS):
            if excess <= limits.tolerance:
                return best.x, step, "converged"
            tau *= growth
            pairs, previous = _Pairs(), None
            p = _at(s, p.x, tau)
    return best.x, limits.steps, "step limit"


def _searched(
    s: _System, p: _Point, move: Tensor, tau: float, decrement: float, cap: float, noise: float
) -> tuple[float, _Point | None]:
    """A step at which the barrier falls as it should, the best of its halves or doubles; None if there is none."""
    size = min(1.0, cap)
    while True:
        found = _at(s, p.x + size * move, tau)
        if found is not None and found.merit <= p.merit - 0.1 * size * decrement + noise * abs(p.merit):
            break
        size *= 0.5
        if size < 1e-12:
            return size, None
    if decrement <= 1.0:
        return size, found
    # far from the centre: the first step that will do often ends next to the boundary, and creeps along it from there
    for factor in (0.5, 2.0):
        while 1e-3 < factor * size <= cap:
            further = _at(s, p.x + factor * size * move, tau)
            if further is None or further.merit >= found.merit:
                break
            size, found = factor * size, further
    return size, found


def _device(torch: Any, device: object) -> Any:
    """A device that computes in float64, or InputError."""
    try:
        found = torch.device("cpu" if device is None else device)
        works = float(torch.ones(2, dtype=torch.float64, device=found).sum()) == 2.0
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        raise InputError(
            "device",
            got=f"{device!r} ({str(error).splitlines()[0][:120]})",
            needed="a torch device of this machine that computes in float64",
            fix="pass device='cpu', or 'cuda' where torch.cuda.is_available()",
        ) from error
    assert works
    return found


def _checked(steps: Sequence[Step], head: F64, norm: float, dtype: str) -> None:
    arrays = [head, *(a for step in steps for a in step if a is not None)]
    if not steps or not all(bool(np.all(np.isfinite(a))) for a in arrays):
        raise InputError("steps", got="none" if not steps else "weights that are not finite",
                         needed="one step or more, of finite weights", fix="check the network's weights")  # fmt: skip
    if norm not in (2.0, math.inf):
        raise InputError("norm", got=repr(norm), needed="2 or inf", fix="pass norm=2")
    if dtype not in ("float64", "float32"):
        raise InputError("dtype", got=repr(dtype), needed="'float64' or 'float32'", fix="pass dtype='float64'")


def solve(
    steps: Sequence[Step],
    head: F64,
    norm: float,
    *,
    device: object = None,
    max_steps: int = 2000,
    time_limit: float | None = None,
    tolerance: float = 1e-3,
    start: Sequence[F64] | None = None,
    progress: Callable[[int, float], None] | None = None,
    dtype: str = "float64",
    curvature: Curvature = "auto",
) -> FirstOrderAnswer | None:
    """Minimise the LipSDP-neuron bound of ``z⁺ = H z + G ψ(W z)``, output ``C z_L``; None for a constant network.

    Parameters
    ----------
    steps : ``(W, H, G)`` a step, of shapes ``(h, n)``, ``(n⁺, n)``, ``(n⁺, h)``; H = None is 0, G = None the identity.
        A plain ReLU network has its weight matrices, None and None. Any scale of weights.
    head : C, of shape ``(outputs, n_L)``. For ℓ∞ the bound is ``‖f(x) − f(y)‖_2 <= √Σd ‖x − y‖_∞``: pass one row.
    norm : 2 or inf, of the input.
    device : None (cpu), or any torch device that computes in float64.
    max_steps, time_limit : the best point so far is returned. A step under way is finished.
    tolerance : relative, of L: of the distance from the optimum at an exact centre, ``rows of M/(2 τ L²)``. What is
        returned is nearer by far, since for ℓ2 the value is ``λ_max(P_0)``, not ρ.
    start : multipliers to start from, in the units of the answer; it is never worse (ℓ∞: with the d that goes with
        them here). None: the closed form.
    progress : called with the step and the relative excess that ``tolerance`` is about.
    dtype : of the search. The answer is evaluated in float64.
    curvature : ``full``, ``layers`` (see the module), or ``auto``: full up to ``FULL_LIMIT`` variables.

    Raises
    ------
    InputError : weights that are not finite, another norm or dtype, or a device that is not there.
    MissingDependencyError : torch is not installed.

    >>> w = np.array([[1.0], [-1.0]])
    >>> answer = solve([(w, None, None)], np.array([[1.0, 1.0]]), 2.0)  # |x|
    >>> round(answer.value, 2), answer.status
    (1.0, 'converged')
    >>> block = (np.array([[1.0]]), np.array([[1.0]]), np.array([[-0.5]]))  # x − relu(x)/2
    >>> round(solve([block], np.array([[3.0]]), 2.0).value, 4)
    9.0
    """
    torch = import_torch("the first-order Lipschitz solver")
    begin = time.perf_counter()
    _checked(steps, head, norm, dtype)
    where, kind = _device(torch, device), getattr(torch, dtype)
    with torch.no_grad():
        found = _normalised(torch, steps, head, math.isinf(norm), kind, where)
        if found is None:
            return None
        s, closed = found
        candidates = [closed]
        t = closed
        if start is not None:
            own = [np.ldexp(a, 2 * e) for a, e in zip(start, s.v_exponents, strict=True)]
            given = torch.as_tensor(np.concatenate(own), dtype=torch.float64, device=where)
            candidates.append(given)
            t = _feasible(s, torch.where(s.free, given.clamp_min(1e-12), closed), closed)
        sweep = _sweep(s, t)
        assert sweep is not None  # the closed form is feasible, and so is what was mixed with it
        d = 1.05 * _tight(s, sweep.P)[0][: s.metric]
        full = curvature == "full" or (curvature == "auto" and s.metric + int(s.free.sum()) <= FULL_LIMIT)
        limits = _Limits(max_steps, tolerance, None if time_limit is None else begin + time_limit, progress)
        x, taken, status = _minimised(s.to(kind), torch.cat([d, t]).to(kind), full, limits)
        x = x.to(torch.float64)
        return _answer(s, [*candidates, x[s.metric :]], x[: s.metric], steps[0][0].shape[1],
                       taken, status)  # fmt: skip


def _answer(s: _System, candidates: list[Tensor], d: Tensor, inputs: int, taken: int, status: str) -> FirstOrderAnswer:
    """The best of the candidates in the caller's units; d goes with the last."""
    results: list[tuple[float, Tensor, Tensor]] = []
    for i, t in enumerate(candidates):
        sweep = _sweep(s, t)
        if sweep is not None:
            metrics = [None, d] if s.infinity and i == len(candidates) - 1 else [None]
            results += [(value, t, m) for m, value in (_tight(s, sweep.P, m) for m in metrics)]
    value, t, metric = min(results, key=lambda r: r[0])
    parts = np.split(t.cpu().numpy(), np.cumsum(s.sizes)[:-1])
    with np.errstate(over="ignore", under="ignore"):
        own = tuple(np.ldexp(a, -2 * e) for a, e in zip(parts, s.v_exponents, strict=True))
        scaled = np.ldexp(metric.cpu().numpy(), -2 * s.z_exponent) if s.infinity else np.ones(inputs)
        squared = float(np.ldexp(value, -2 * s.z_exponent))
    least = np.finfo(np.float64).tiny
    normal = all(bool(np.all((a >= least) & np.isfinite(a))) for a in (*own, scaled, np.array([squared])))
    return FirstOrderAnswer(own, scaled, squared, taken, status if normal else "out of range")


__all__ = ["FULL_LIMIT", "FirstOrderAnswer", "Step", "solve"]
