"""From Lipschitz constants of margins to what they certify on samples: margins, loss gaps, accuracy.

If every margin ``f_y − f_j`` has Lipschitz constant ``L_jy`` (input norm p), then for ``‖a‖_p <= δ``
``(f_y − f_j)(x + a) >= (f_y − f_j)(x) − δ L_jy``. The cross-entropy is ``log(1 + Σ_{j≠y} exp(−margin_j))``, which falls
in every margin, so margin bounds bound the loss; and ``loss(x + a) − loss(x) <= δ max_j L_jy`` (log-sum-exp is
1-Lipschitz in the ∞-norm of the margins), which is Corollary 3.3 with ``L_jy = L̂ ‖C_j − C_y‖_{p*}``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeGuard

import numpy as np
import numpy.typing as npt

from certbound.arrays import F64, I64, digest
from certbound.errors import InputError
from certbound.graph import Graph, read_model
from certbound.graph_margins import graph_margins, head_constants, quotient_constants
from certbound.losses import class_head, loss_of_margins, perturbation_domain
from certbound.network import Network
from certbound.norms.dense import row_dual_norms

Clip = tuple[float, float]


def read_network(model: object, x: F64) -> Network | Graph:
    """:func:`certbound.graph.read_model` for samples of this shape."""
    # the sample's shape tells the channels of a per-channel normalisation, and the size of a convolution
    known = isinstance(model, (Network, Graph)) or x.ndim < 2
    shape = tuple(x.shape[1:])
    try:
        return read_model(model, input_shape=None if known or x.ndim == 2 else shape)
    except InputError as error:
        if error.argument != "input_shape" or known:
            raise
        return read_model(model, input_shape=shape)


def is_chain(network: Network | Graph) -> bool:
    """Affine layers with ReLU between: a Network that has a :attr:`~certbound.network.Network.chain`."""
    return isinstance(network, Network) and network.is_relu_chain


def network_margins(network: Network | Graph, x: F64, y: I64) -> F64:
    """``f_y − f_j`` as ``(C_y − C_j)·Φ(x) + (b_y − b_j)``, ``+∞`` at j = y; shape (samples, classes).

    Differences of head rows come first: two classes with the same row tie exactly, and a tie is an error. As
    differences of logits they may come out one rounding apart, with a Lipschitz constant of 0 that never catches up.

    >>> network_margins(Network.from_weights([[[3.0], [1.0]]]), np.array([[2.0]]), np.array([0]))
    array([[inf,  4.]])
    """
    with np.errstate(over="ignore", invalid="ignore"):  # refused below
        margins = _chain_margins(network, x, y) if _is_plain(network) else graph_margins(network, x, y)
    if np.any(np.isnan(margins)) or np.any(np.isneginf(margins)) or np.any(np.isposinf(margins).sum(axis=1) > 1):
        raise InputError(
            "model",
            got="margins that overflow float64",
            needed="finite outputs on the samples",
            fix="rescale the weights",
        )
    return margins
def _is_plain(network: Network | Graph) -> TypeGuard[Network]:
    return is_chain(network)


def _chain_margins(network: Network, x: F64, y: I64) -> F64:
    chain = network.open_ended.chain
    h = x
    for w, b in zip(chain.encoder, chain.biases[:-1], strict=True):
        h = np.maximum(h @ w.T + b, 0.0)
    rows = class_head(chain.head)
    bias = chain.biases[-1] if len(rows) == len(chain.biases[-1]) else np.concatenate([[0.0], chain.biases[-1]])
    margins = np.empty((len(y), len(rows)))
    for label in np.unique(y):
        mine = y == label
        margins[mine] = h[mine] @ (rows[label] - rows).T + (bias[label] - bias)
        margins[mine, label] = math.inf
    return margins


@dataclass(frozen=True, eq=False)
class Samples:
    """Labelled samples of one network with their clean margins and losses, and the norm of the attack."""

    network: Network | Graph
    x: F64
    y: I64
    norm: float
    clip: Clip | None
    margins: F64
    loss: F64

    @classmethod
    def of(cls, network: Network | Graph, x: F64, y: I64, norm: float, clip: Clip | None) -> Samples:
        """Evaluate the network on flat inputs, shape (samples, inputs)."""
        margins = network_margins(network, x, y)
        return cls(network, x, y, norm, clip, margins, loss_of_margins(margins))

    def domain(self, delta: float) -> str:
        """The domain of claims about perturbations up to δ."""
        return perturbation_domain(self.x, self.y, delta, self.norm, self.clip)

    @property
    def clean_accuracy(self) -> float:
        """Share of samples whose every margin is > 0 (a tie counts as an error)."""
        return float(np.mean(np.all(self.margins > 0, axis=1)))

    @property
    def digest(self) -> str:
        """Digest of inputs and labels."""
        return digest(self.x, self.y)


@dataclass(frozen=True, eq=False)
class Certified:
    """What one method proves on the samples at one δ.

    ``margins``: (samples, classes), lower bounds of ``f_y − f_j`` on the ball, +∞ at j = y;
    ``loss_gap``: (samples,), upper bounds of ``max_a loss(x + a) − loss(x)``.
    """

    margins: F64
    loss_gap: F64

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        """Samples certified against every perturbation."""
        return np.all(self.margins > 0, axis=1)


def scaled(constants: F64, delta: float) -> F64:
    """``δ L`` with 0 · ∞ = 0: no perturbation, no change."""
    return np.zeros_like(constants) if delta == 0 else constants * delta


def certify_by_constants(samples: Samples, constants: F64, delta: float, *, corollary: bool) -> Certified:
    """Margins and loss gaps from Lipschitz constants of the margins, shape (classes, classes).

    ``corollary=True`` takes the gap of Corollary 3.3, ``δ max_{j≠y} L_jy``; otherwise the loss at the margin bounds,
    which is never larger.
    """
    loss_of = scaled(constants, delta)[:, samples.y].T  # (samples, classes): δ L_jy for each j
    with np.errstate(invalid="ignore"):
        margins = samples.margins - loss_of
    rows = np.arange(len(samples.y))
    margins[rows, samples.y] = math.inf
    gap = np.max(loss_of, axis=1)
    if not corollary:
        gap = np.minimum(gap, gap_of_margins(samples, margins))
    return Certified(margins, gap)


def gap_of_margins(samples: Samples, margins: F64) -> F64:
    """Loss at the margin bounds less the clean loss: an upper bound of the loss gap, at least 0."""
    gap: F64 = np.maximum(loss_of_margins(margins) - samples.loss, 0.0)
    return gap


def activation_pattern(encoder: Sequence[F64], biases: Sequence[F64], x: F64) -> list[F64] | None:
    """0/1 activations of every hidden layer at x; None where rounding could have flipped a sign, as at any kink.

    At a kink a 0/1 pattern may belong to no neighbourhood, and its Jacobian can exceed the true constant. A running
    error bound decides: ``e ← |W| e + (n + 2) 2u (|W||h| + |b|)``, u = 2^-53. Neurons without inputs do not matter.

    >>> one = [np.array([[1.0]])]
    >>> activation_pattern(one, [np.zeros(1)], np.array([0.0])) is None
    True
    >>> activation_pattern(one, [np.zeros(1)], np.array([-2.0]))
    [array([0.])]
    """
    h, error = x, np.zeros_like(x)
    actives: list[F64] = []
    for w, b in zip(encoder, biases, strict=True):
        size = np.abs(w)
        z = w @ h + b
        error = size @ error + (w.shape[1] + 2) * 2.0**-52 * (size @ np.abs(h) + np.abs(b))
        if np.any((np.abs(z) <= error) & np.any(w != 0.0, axis=1)):
            return None
        active = z > 0
        actives.append(active.astype(np.float64))
        h, error = np.where(active, z, 0.0), np.where(active, error, 0.0)
    return actives


def gradient_constants(samples: Samples) -> F64:
    """Largest dual norm of ``∇(f_j − f_y)`` over the samples, for every pair: LOWER bounds of the margin constants.

    Samples at a kink are left out (:func:`activation_pattern`). What is no plain chain has difference quotients
    instead (:func:`certbound.graph_margins.quotient_constants`).
    """
    if not _is_plain(samples.network):
        return quotient_constants(samples.network, samples.x, samples.norm)
    chain = samples.network.open_ended.chain
    rows = class_head(chain.head)
    n = len(rows)
    best = np.zeros((n, n))
    for x in samples.x:
        actives = activation_pattern(chain.encoder, chain.biases[:-1], x)
        if actives is None:
            continue
        jacobian = rows
        for w, active in zip(reversed(chain.encoder), reversed(actives), strict=True):
            jacobian = (jacobian * active) @ w
        for y in range(n):
            norms = row_dual_norms(jacobian - jacobian[y], samples.norm)
            best[y] = np.maximum(best[y], norms)
    return np.maximum(best, best.T)


__all__ = [
    "Certified", "Clip", "Samples", "activation_pattern", "certify_by_constants", "gap_of_margins",
    "gradient_constants", "head_constants", "is_chain", "network_margins", "read_network", "scaled",
]  # fmt: skip
