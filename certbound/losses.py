"""Margins and the cross-entropy loss in float64; one logit is read as the two classes (0, z).

The binary logistic loss ``log(1 + exp(−y z))``, y = ±1, equals the cross-entropy of the logits
``(0, z)`` with label 0 for −1 and 1 for +1, so one set of formulas serves both.
"""

from __future__ import annotations

import math

import numpy as np

from certbound.arrays import F64, I64, digest
from certbound.types import norm_name


def class_logits(outputs: F64) -> F64:
    """Logits of shape (samples, classes >= 2).

    >>> class_logits(np.array([[3.0]]))
    array([[0., 3.]])
    """
    if outputs.shape[1] == 1:
        return np.hstack([np.zeros_like(outputs), outputs])
    return outputs


def class_head(head: F64) -> F64:
    """Head rows, one per class; a one-row head C becomes the rows (0, C).

    >>> class_head(np.array([[1.0, 2.0]]))
    array([[0., 0.],
           [1., 2.]])
    """
    return np.vstack([np.zeros_like(head), head]) if head.shape[0] == 1 else head


def margins_of(logits: F64, y: I64) -> F64:
    """``f_y − f_j`` for every class j, ``+∞`` at j = y; shape (samples, classes).

    >>> margins_of(np.array([[1.0, 4.0]]), np.array([1]))
    array([[ 3., inf]])
    """
    rows = np.arange(len(y))
    margins = logits[rows, y][:, None] - logits
    margins[rows, y] = math.inf
    return margins


def loss_of_margins(margins: F64) -> F64:
    """Cross-entropy from margins, ``log(1 + Σ_{j≠y} exp(−m_j))``: decreasing in every margin.

    >>> loss_of_margins(np.array([[0.0, math.inf]])).round(6)  # log 2
    array([0.693147])
    """
    # logaddexp.reduce works for any size of margin; the term of class y itself is exp(0) = 1
    zeros = np.zeros((margins.shape[0], 1))
    terms = np.hstack([zeros, -margins])
    loss: F64 = np.logaddexp.reduce(terms, axis=1)
    return loss


def cross_entropy(logits: F64, y: I64) -> F64:
    """Per-sample cross-entropy loss."""
    return loss_of_margins(margins_of(logits, y))


def _plain(value: float) -> str:
    """Every digit that tells numbers apart; integers without ``.0``."""
    return f"{value:g}" if float(f"{value:g}") == value else repr(float(value))


def perturbation_domain(x: F64, y: I64, delta: float, norm: float, clip: tuple[float, float] | None) -> str:
    """The domain of a claim about perturbed samples, in words, with a digest of the samples.

    >>> perturbation_domain(np.zeros((1, 2)), np.array([0]), 0.1, math.inf, None)[:38]
    '||a||_inf <= 0.1 around 1 samples (sha'
    """
    box = "" if clip is None else f", x + a in [{_plain(clip[0])}, {_plain(clip[1])}]"
    return f"||a||_{norm_name(norm)} <= {delta!r}{box} around {len(y)} samples (sha256 {digest(x, y)})"
