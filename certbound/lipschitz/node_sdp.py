"""One node of a branch and bound over activation patterns: its LipSDP bound, proved, and what its dual says.

With ``Z = M^{-1}/τ`` at the last iterate, ``Z_vv/Z_uu`` of a neuron (``u_j = a_jᵀξ`` is what it reads, v_j its output)
is the part of its mass that is on: 0 or 1 if the relaxation has decided.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from certbound.arrays import F64, I64, frozen
from certbound.errors import NumericalError
from certbound.lipschitz.barrier import Limits, Lmi, newton
from certbound.lipschitz.product import Outputs
from certbound.lipschitz.riccati import closed_form, metric, storage
from certbound.lipschitz.sdp_system import system_lmi
from certbound.lipschitz.system import Map, Slopes, System, reduced
from certbound.lipschitz.system_certificate import SystemProof, certify, linear, proves, value_of
from certbound.lipschitz.tree_certificate import Neurons
from certbound.network import Affine, Flatten, Layer, Network, Normalise, Residual

_THETAS = (0.0, 1e-6, 1e-4, 1e-2)
_WORSE = 1.0 + 1e-3  # a parent's multipliers that prove this much less here than there are compared to the closed form
_LOOSE_ROW = 1e3  # multiplier of a row that the parent's system has not, over its largest: what is read is about 0


@dataclass(frozen=True, eq=False)
class NodeBound:
    """A proof for the node's slopes, its multipliers and the dual's ``Z_vv`` and ``Z_uu``, one for each neuron of the
    network; NaN for neurons that are not in the node's system, and in the dual for those that no input reaches.
    """

    proof: SystemProof
    t: F64
    on: F64
    whole: F64

    @property
    def value(self) -> float:
        """The bound."""
        return self.proof.value


def free(neurons: Neurons) -> npt.NDArray[np.bool_]:
    """The neurons whose slope is not fixed, smooth ones too: no others are in the node's system."""
    return neurons.low < neurons.high


class _Reader:
    """Walks a network as :meth:`System.of` does, and notes which neurons get a row: open, and moved by some input.

    The same arithmetic, since what rounding may move counts as moved.
    """

    def __init__(self, network: Network, slopes: list[Slopes]) -> None:
        self.now = Map(np.eye(network.n_inputs))
        self.waiting: list[Map] = []
        self.slopes = iter(slopes)
        self.found: list[npt.NDArray[np.bool_]] = []
        self.run(network.layers, network.input_shape)

    def run(self, layers: Sequence[Layer], shape: tuple[int, ...] | None) -> None:
        for layer in layers:
            if isinstance(layer, Affine):
                self.now, shape = Map(layer.weight).after(self.now), None
            elif isinstance(layer, Normalise):
                self.now = self.now.divided(layer.per_input(shape, len(self.now.matrix))[1])
            elif isinstance(layer, Flatten):
                shape = None
            elif isinstance(layer, Residual):
                self.waiting.append(self.now)
                self.run(layer.body, None)
                body, self.now = self.now, self.waiting.pop()
                self.waiting.append(body)
                self.run(layer.shortcut, None)
                self.now, shape = self.waiting.pop().plus(self.now), None
            else:
                self.activation()

    def activation(self) -> None:
        low, high = next(self.slopes)
        opened = (low < high) & _moved(self.now)
        self.found.append(opened)
        self.now = self.now.scaled(low)
        if not opened.any():
            return
        # the state: parts that are 0 for every input are not read
        parts = [*(_moved(w) for w in self.waiting), _moved(self.now) | opened]
        whole = np.diag(np.concatenate(parts).astype(np.float64))
        *self.waiting, self.now = (Map(x) for x in np.split(whole, np.cumsum([len(x) for x in parts])[:-1]))


def _moved(m: Map) -> npt.NDArray[np.bool_]:
    return np.any(m.matrix != 0.0, axis=1) | np.any(m.off != 0.0, axis=1)


def members(network: Network, neurons: Neurons, system: System) -> I64:
    """The neurons that are in the system, read off the network with the neurons' slopes: of each row its neuron.

    Raises NumericalError where that is unknown.

    >>> net = Network.from_weights([[[1.0], [0.0], [2.0]], [[1.0, 1.0, 1.0]]])  # no input moves neuron 1
    >>> members(net, Neurons.of(net), System.of(net)).tolist()
    [0, 2]
    """
    if not system.steps:
        return np.zeros(0, dtype=np.int64)
    found = _Reader(network, neurons.slopes).found
    if [int(x.sum()) for x in found if x.any()] != [len(s.W.matrix) for s in system.steps]:
        raise NumericalError("the neurons of a system are not known")
    return np.flatnonzero(np.concatenate(found))


def node_bound(
    network: Network, neurons: Neurons, outputs: Outputs, norm: float, parent: NodeBound | None, limits: Limits
) -> NodeBound | None:
    """The node's bound. ``parent``: its multipliers are feasible here too, up to rounding; None: the closed form.

    ``limits.below`` is in units of L. None where nothing was proved.

    >>> net = Network.from_weights([[[1.0], [-1.0]], [[1.0, 1.0]]])  # |x|
    >>> found = node_bound(net, Neurons.of(net), "all", 2.0, None, Limits(1e-4))
    >>> round(found.value, 3)
    1.0
    """
    try:
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            system = System.of(network, outputs, neurons.slopes)
            index = members(network, neurons, system)
            start = None if parent is None else _inherited(system, parent.t[index], parent.value, norm)
            found = _bound(system, outputs, norm, start, limits)
    except (NumericalError, np.linalg.LinAlgError):
        return None
    if found is None:
        return None

    def spread(values: F64) -> F64:
        every = np.full(len(neurons.low), math.nan)
        every[index] = values
        return every

    return replace(found, t=spread(found.t), on=spread(found.on), whole=spread(found.whole))


def _inherited(system: System, known: F64, bound: float, norm: float) -> list[F64] | None:
    """A parent's multipliers as a start; None where they are not feasible, or worse than the closed form.

    They can be: the child's system may have other units, or rows that are 0 but for rounding, which the parent's has
    not.
    """
    seen = np.isfinite(known)
    if not seen.any():
        return None
    whole = np.where(seen, known, _LOOSE_ROW * float(np.max(known[seen])))
    t = list(np.split(whole, np.cumsum([len(s.W.matrix) for s in system.steps])[:-1]))
    own = _worth(system, t, norm)
    if own <= bound * _WORSE:
        return t
    closed = closed_form(system)
    if closed is not None and _worth(system, closed, norm) < own:
        return list(closed)
    return t if own < math.inf else None


def _worth(system: System, t: Sequence[F64], norm: float) -> float:
    """About what the multipliers prove as they are; ∞ where they are not feasible."""
    P = storage(system, t)
    if P is None or not bool(np.all(np.isfinite(P[0]))):
        return math.inf
    gain = float(metric(P[0]).sum()) if math.isinf(norm) else float(np.linalg.eigvalsh(P[0])[-1])
    return math.sqrt(max(gain, 0.0))


def _bound(system: System, outputs: Outputs, norm: float, t: list[F64] | None, limits: Limits) -> NodeBound | None:
    """The bound of a system, from a feasible start or the closed form; its arrays are of the system's neurons."""
    widths = [len(s.W.matrix) for s in system.steps]
    unknown = np.full(sum(widths), math.nan)
    if not system.steps:
        proof = linear(system, outputs, norm)
        return None if proof is None else NodeBound(proof, unknown, unknown, unknown)
    if t is None:
        closed = closed_form(system)
        if closed is None:
            return _constant(system, outputs, norm, widths)
        t = list(closed)
    try:
        solved = _solved(system, norm, t, limits)
    except np.linalg.LinAlgError:
        solved = None
    own_d: F64 | None = None
    on, whole = unknown, unknown
    better = t
    if solved is not None:
        better, own_d, on, whole = solved
    for theta in _THETAS:
        mixed = [(1.0 - theta) * a + 1.05 * theta * b for a, b in zip(better, t, strict=True)]
        proof = certify(system, outputs, norm, mixed, own_d)
        if proof is not None:
            return NodeBound(proof, np.concatenate(proof.t), on, whole)
    proof = certify(system, outputs, norm, t, None)
    if proof is None:
        return _constant(system, outputs, norm, widths)
    return NodeBound(proof, np.concatenate(proof.t), unknown, unknown)


def _solved(
    system: System, norm: float, start: list[F64], limits: Limits
) -> tuple[list[F64], F64 | None, F64, F64] | None:
    """What Newton makes of the start: multipliers, the metric (ℓ∞), and the dual's masses."""
    infinity = math.isinf(norm)
    small = system if infinity else reduced(system)[0]
    P = storage(small, start)
    if P is None:
        return None
    rho = metric(P[0]) if infinity else np.full(small.n_inputs, float(np.linalg.eigvalsh(P[0])[-1]))
    unit = float(rho.sum()) if infinity else float(rho[0])
    if not 0.0 < unit < math.inf:
        return None
    small = replace(small, head=Map(small.head.matrix / math.sqrt(unit)))
    lmi, alive = system_lmi(small, infinity)
    used = [a for a in alive if a.any()]
    if not used:
        return None
    if len(used) < len(alive):  # a layer that no input reaches is no layer of the LMI
        lmi = replace(lmi, layers=tuple(x for x, a in zip(lmi.layers, alive, strict=True) if a.any()))
    first = [x[a] / unit for x, a in zip(start, alive, strict=True) if a.any()]
    below = limits.below**2 / unit if limits.below > 0.0 else -math.inf
    # ρ alone a little above what the recursion needs: M may be singular there, and stay so where the head is blind
    reached = newton(lmi, 1.02 * rho / unit, first, replace(limits, below=below))
    if reached is None or reached.steps == 0:
        return None
    found = iter(reached.multipliers.t)
    t: list[F64] = []
    for x, a in zip(start, alive, strict=True):
        whole = x.copy()
        if a.any():
            whole[a] = unit * next(found)
        t.append(whole)
    mask = np.concatenate(alive)
    on, total = np.full(len(mask), math.nan), np.full(len(mask), math.nan)
    masses = _masses(lmi, reached.multipliers.d if infinity else np.array([reached.value]), reached.multipliers.t)
    if masses is not None:
        on[mask], total[mask] = masses
    return t, reached.multipliers.d if infinity else None, on, total


def _masses(lmi: Lmi, d: F64, t: tuple[F64, ...]) -> tuple[F64, F64] | None:
    """``Z_vv`` and ``Z_uu``, up to a factor."""
    try:
        G = np.linalg.inv(lmi.matrix(np.concatenate([d, *t])))
    except np.linalg.LinAlgError:
        return None
    n0 = lmi.n_inputs
    read = [np.einsum("ij,jk,ik->i", x.matrix, G[x.columns, x.columns], x.matrix, optimize=True) for x in lmi.layers]
    return np.asarray(np.diagonal(G)[n0:], dtype=np.float64), np.concatenate(read)


def _constant(system: System, outputs: Outputs, norm: float, widths: list[int]) -> NodeBound | None:
    """A proof that a node's map does not move at all, or hardly: its bound is tiny, where the recursion gives 0."""
    size = sum(widths)
    unknown = np.full(size, math.nan)
    t = [np.ones(n) for n in widths]
    scale = max(1.0, float(np.abs(system.head.matrix).sum()) ** 2)
    t = [x * scale for x in t]
    d = np.ones(system.n_inputs)
    for slack in (1e-9, 1e-6):
        for s in (1e-18, 1e-12):
            if proves(system, t, d, s, slack, air=4.0):
                proof = SystemProof(outputs, value_of(d, s, norm), tuple(frozen(x) for x in t), frozen(d), s, slack)
                return NodeBound(proof, np.concatenate(t), unknown, unknown)
    return None


def pattern_norms(system: System, patterns: F64, norm: float) -> F64:
    """``‖C D_m … ‖`` for patterns of the system's neurons, shape (k, neurons), each in [0, 1] (numerical).

    >>> net = Network.from_weights([[[1.0], [-1.0]], [[1.0, 1.0]]])
    >>> pattern_norms(System.of(net), np.array([[1.0, 0.0], [1.0, 1.0]]), 2.0).tolist()
    [1.0, 0.0]
    """
    k = len(patterns)
    Z = np.broadcast_to(np.eye(system.n_inputs), (k, system.n_inputs, system.n_inputs))
    at = 0
    for W, H, G in system.plain:
        h = len(W)
        V = patterns[:, at : at + h, None] * (W @ Z)
        new = V if G is None else G @ V
        Z = new if H is None else H @ Z + new
        at += h
    J = system.head.matrix @ Z
    J = np.where(np.isfinite(J).all(axis=(1, 2), keepdims=True), J, 0.0)  # what overflows is of no use
    if math.isinf(norm):
        return np.abs(J).sum(axis=2).max(axis=1)
    if J.shape[1] == 1:
        return np.sqrt((J * J).sum(axis=(1, 2)))
    return np.asarray(np.linalg.svd(J, compute_uv=False)[:, 0], dtype=np.float64)


def best_pattern(system: System, start: F64, norm: float, rounds: int = 30) -> tuple[F64, float, F64]:
    """A 0/1 pattern that no single flip improves, its norm, and what each flip loses (numerical, a local search).

    >>> net = Network.from_weights([[[1.0], [-1.0]], [[1.0, 1.0]]])
    >>> best_pattern(System.of(net), np.zeros(2), 2.0)
    (array([1., 0.]), 1.0, array([1., 1.]))
    """
    x, n = start.copy(), len(start)
    value = float(pattern_norms(system, x[None], norm)[0])
    losses = np.zeros(n)
    for _ in range(rounds):
        flips = np.repeat(x[None], n, axis=0)
        flips[np.arange(n), np.arange(n)] = 1.0 - x
        norms = pattern_norms(system, flips, norm)
        losses = value - norms
        best = int(np.argmax(norms)) if n else 0
        if n == 0 or norms[best] <= value * (1 + 1e-12):
            break
        x, value = flips[best], float(norms[best])
    return x, value, losses


__all__ = ["NodeBound", "best_pattern", "free", "members", "node_bound", "pattern_norms"]
