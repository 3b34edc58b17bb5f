"""Quantised weights → float64: ``scale · (q − zero_point)``, without torch's float32 detour.

``q − zero_point`` is an exact integer of a few bits. Its product with a float32 scale (24 bits) is exact in float64.
A float64 scale has 53 bits of its own, and the product may then be rounded once, by a relative 2⁻⁵³ at most; torch
keeps the scales of its own quantised tensors in float64. Which of the two it was is said in the log, and by
:func:`is_exact`.
"""

from __future__ import annotations

import logging
from fractions import Fraction
from typing import Any

import numpy as np

from certbound.arrays import F64, as_float64
from certbound.errors import InputError

logger = logging.getLogger(__name__)

_BITS = 53


def _parts(q: object, scale: object, zero_point: object, axis: int | None) -> tuple[F64, F64]:
    """``q − zero_point`` and the scales, broadcast against each other; both exact."""
    integers, scales, zeros = as_float64(q, "q"), as_float64(scale, "scale"), as_float64(zero_point, "zero_point")
    for name, array in (("q", integers), ("zero_point", zeros)):
        if np.any(array != np.trunc(array)) or np.any(np.abs(array) > 2.0**32):
            raise InputError(
                name,
                got="numbers that are no integers of at most 32 bits",
                needed="the integers of the quantisation",
                fix="pass the integer tensor (int_repr() of a torch one) and its integer zero point",
            )
    if np.any(scales <= 0):
        raise InputError("scale", got=f"{scales.min():g}", needed="numbers > 0", fix="see how the scales were stored")
    if axis is None:
        if scales.size != 1 or zeros.size != 1:
            raise InputError(
                "axis",
                got=f"None with {scales.size} scales and {zeros.size} zero points",
                needed="the axis along which they run",
                fix="pass axis=0 for one scale per output",
            )
        return integers - zeros.reshape(()), np.broadcast_to(scales.reshape(()), integers.shape)
    if isinstance(axis, bool) or not isinstance(axis, int) or not -integers.ndim <= axis < integers.ndim:
        raise InputError("axis", got=repr(axis), needed=f"an axis of q, which has {integers.ndim}", fix="pass axis=0")
    along = [1] * integers.ndim
    along[axis] = integers.shape[axis]
    for name, array in (("scale", scales), ("zero_point", zeros)):
        if array.size not in (1, along[axis]):
            raise InputError(
                name,
                got=f"{array.size} values",
                needed=f"one, or {along[axis]}: one per entry of axis {axis}",
                fix="check the axis",
            )
    shaped_zeros = zeros.reshape(along if zeros.size > 1 else [1] * integers.ndim)
    shaped_scales = scales.reshape(along if scales.size > 1 else [1] * integers.ndim)
    return integers - shaped_zeros, np.broadcast_to(shaped_scales, integers.shape)


def dequantise(q: object, scale: object, zero_point: object = 0, axis: int | None = None) -> F64:
    """``scale · (q − zero_point)`` in float64.

    Exact whenever :func:`is_exact` says so, always for float32 scales and integers of up to 28 bits; otherwise each
    product is rounded once (relative error at most 2⁻⁵³), which is logged as a warning.

    Parameters
    ----------
    q : integers, any shape. scale : one number > 0, or one per entry of ``axis``. zero_point : integers likewise.
    axis : along which per-channel scales run; None for per-tensor quantisation.

    Raises
    ------
    InputError : q or zero_point no integers, a scale <= 0, sizes that do not fit; a product outside float64.

    >>> dequantise([[-128, 127]], 0.5, 3)
    array([[-65.5,  62. ]])
    >>> dequantise([[1, 2], [3, 4]], [0.5, 0.25], axis=0)
    array([[0.5 , 1.  ],
           [0.75, 1.  ]])
    """
    integers, scales = _parts(q, scale, zero_point, axis)
    with np.errstate(over="ignore", under="ignore"):
        values: F64 = scales * integers
    if not np.all(np.isfinite(values)) or np.any((np.abs(values) < 2.0**-1022) != (integers == 0)):
        raise InputError(
            "scale", got=f"scales from {scales.min():g} to {scales.max():g}",
            needed="products within the range of float64", fix="check how the scales were stored",
        )  # fmt: skip
    if not _products_exact(integers, scales):
        logger.warning(
            "dequantised weights are rounded to float64 (relative error at most 2**-53): the scales have more bits "
            "than a float32, and the bounds are those of the rounded weights"
        )
    return values


def is_exact(q: object, scale: object, zero_point: object = 0, axis: int | None = None) -> bool:
    """True if :func:`dequantise` rounds nothing.

    >>> import numpy as np
    >>> is_exact([100, 3], np.float32(0.1)), is_exact([100, 3], 0.1)
    (True, False)
    """
    return _products_exact(*_parts(q, scale, zero_point, axis))


def _products_exact(integers: F64, scales: F64) -> bool:
    if integers.size == 0:
        return True
    # A sufficient test first: the bits of the scale and those of the integer fit into one significand together, and
    # the product stays clear of the subnormal numbers.
    mantissa, _ = np.frexp(scales)
    whole = mantissa * 2.0**_BITS  # integers below 2**53; the trailing zero bits are not needed
    bits = int(np.max(np.abs(integers))).bit_length()
    low = 2.0**bits  # a scale with `bits` trailing zeros has at most 53 - bits significant ones
    if np.all(np.mod(whole, low) == 0.0) and float(np.min(scales)) > 2.0**-960:
        return True
    pairs = np.unique(np.stack([integers.ravel(), scales.ravel()]), axis=1)
    return all(Fraction(float(s)) * int(d) == Fraction(float(s) * float(d)) for d, s in pairs.T)


def from_torch(tensor: Any, name: str) -> F64:
    """A quantised torch tensor, per tensor or per channel, as float64.

    Raises
    ------
    InputError : a scheme with float zero points, where ``scale · (q − zero_point)`` is not what torch computes.
    """
    import torch

    scheme, q = tensor.qscheme(), tensor.int_repr()
    if scheme in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        return dequantise(q, tensor.q_scale(), tensor.q_zero_point())
    if scheme in (torch.per_channel_affine, torch.per_channel_symmetric):
        return dequantise(
            q, tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points(), axis=int(tensor.q_per_channel_axis())
        )
    raise InputError(
        name,
        got=f"a quantised tensor of the scheme {scheme}",
        needed="per-tensor or per-channel quantisation with integer zero points",
        fix="dequantise it yourself and state how",
    )


__all__ = ["dequantise", "from_torch", "is_exact"]
