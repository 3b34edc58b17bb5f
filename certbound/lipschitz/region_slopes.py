"""The slopes that activations have on a ball: found from certified pre-activation bounds, checked, stored and read.

Certificates that hold on a ball keep the ball and the slopes; what they say of the slopes is found anew from the ball.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from certbound.activations import Activation
from certbound.certificate import Stored, take, take_array
from certbound.errors import CertificateError
from certbound.lipschitz.preactivation import preactivation_bounds
from certbound.lipschitz.system import Slopes
from certbound.network import Ball, Layer, Network, ReLU, Residual

FIELDS: Final = ("slopes", "radius", "ball norm")
"""What :func:`store_region` writes beside arrays."""


def activations(layers: Sequence[Layer]) -> list[Activation]:
    """Every activation layer in order of execution; of a residual block the body first."""
    found: list[Activation] = []
    for layer in layers:
        if isinstance(layer, Residual):
            found += activations(layer.body) + activations(layer.shortcut)
        elif isinstance(layer, ReLU):
            found.append(Activation("relu"))
        elif isinstance(layer, Activation):
            found.append(layer)
    return found


def slopes_on(network: Network, ball: Ball, *, air: float = 0.0) -> list[Slopes]:
    """Enclosures of every activation layer's slopes on the ball, from certified pre-activation bounds.

    ``air`` widens those bounds, relative to their size, so that another machine's bounds imply the same slopes.
    """
    bounds = preactivation_bounds(network, ball)
    result: list[Slopes] = []
    for activation, low, high in zip(activations(network.layers), bounds.lower, bounds.upper, strict=True):
        with np.errstate(over="ignore"):
            size = np.abs(low) + np.abs(high)
        size = np.where(np.isfinite(size), size, 0.0)
        room = air * size + air * float(np.max(size, initial=0.0))
        result.append(activation.slopes(low - room, high + room))
    return result


def check_region(network: Network, ball: Ball | None, slopes: Sequence[Slopes], kind: str) -> None:
    """CertificateError unless the slopes hold for every input of the ball (None: all inputs, and no slopes)."""
    if ball is None:
        if slopes:
            raise CertificateError(f"{kind}: slopes without a ball")
        return
    if ball.center.size != network.n_inputs:
        raise CertificateError(f"{kind}: a ball in {ball.center.size} dimensions; needed {network.n_inputs}")
    needed = slopes_on(network, ball)
    if len(needed) != len(slopes):
        raise CertificateError(f"{kind}: slopes of {len(slopes)} layers; needed {len(needed)}")
    for i, ((low, high), (least, most)) in enumerate(zip(slopes, needed, strict=True)):
        fits = low.shape == high.shape == least.shape
        if not fits or not bool(np.all((low <= least) & (high >= most))):  # so that NaN fails
            raise CertificateError(f"{kind}: the slopes of layer {i} are not those of every input of the ball")


def store_region(ball: Ball | None, slopes: Sequence[Slopes]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fields and arrays of a certificate that holds on a ball, or everywhere."""
    arrays: dict[str, Any] = {} if ball is None else {"center": ball.center}
    for i, (low, high) in enumerate(slopes):
        arrays |= {f"low.{i}": low, f"high.{i}": high}
    values = (len(slopes), None if ball is None else ball.radius, None if ball is None else ball.norm)
    return dict(zip(FIELDS, values, strict=True)), arrays


def restore_region(stored: Stored) -> tuple[Ball | None, tuple[Slopes, ...], list[str]]:
    """Ball, slopes and the names of their arrays, from a certificate's file."""
    count = take(stored, "slopes", int)
    if not 0 <= count <= 10_000:
        raise CertificateError(f"{stored.kind}: slopes of {count} layers")
    slopes = tuple(
        (take_array(stored, f"low.{i}", ndim=1), take_array(stored, f"high.{i}", ndim=1)) for i in range(count)
    )
    names = [name for i in range(count) for name in (f"low.{i}", f"high.{i}")]
    if take(stored, "radius", float, type(None)) is not None:
        center = take_array(stored, "center")
        ball = Ball(center, take(stored, "radius", float), take(stored, "ball norm", float))
        return ball, slopes, [*names, "center"]
    if take(stored, "ball norm", float, type(None)) is not None:
        raise CertificateError(f"{stored.kind}: a norm of a ball without its radius")
    return None, slopes, names


__all__ = ["FIELDS", "activations", "check_region", "restore_region", "slopes_on", "store_region"]
