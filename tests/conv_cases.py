"""Small convolutions of every kind, and their matrices built by torch from unit vectors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import strategies as st
from torch.nn import functional

from certbound.ops import Conv

MODES = ("zeros", "reflect", "replicate", "circular")
KINDS = ("integers", "gaussian", "half", "one tap", "zeros", "spread", "tiny", "huge")


@dataclass(frozen=True, eq=False)
class Case:
    """A layer, the shape of its input, and how its kernel was drawn."""

    conv: Conv
    shape: tuple[int, ...]
    kind: str

    def __repr__(self) -> str:
        c = self.conv
        return (
            f"Case({self.kind}, {self.shape}, weight={c.weight.tolist()}, stride={c.stride}, padding={c.padding}, "
            f"dilation={c.dilation}, groups={c.groups}, {c.padding_mode})"
        )


def materialised(conv: Conv, shape: tuple[int, ...]) -> np.ndarray:
    """The operator as a matrix (outputs, inputs); every entry is exact where no two taps meet, or for integers."""
    axes = len(shape) - 1
    units = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)
    pads = [p for pair in reversed(conv.padding) for p in pair]
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    padded = functional.pad(units, pads, mode=mode) if any(pads) else units
    function = (functional.conv1d, functional.conv2d, functional.conv3d)[axes - 1]
    weight = torch.from_numpy(conv.weight.copy())
    images = function(padded, weight, stride=conv.stride, dilation=conv.dilation, groups=conv.groups)
    return images.reshape(len(units), -1).T.numpy().copy()


def kernel(kind: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    gaussian = rng.standard_normal(shape)
    if kind == "integers":
        return rng.integers(-3, 4, shape).astype(float)
    if kind == "half":
        return gaussian.astype(np.float16).astype(float)
    if kind == "zeros":
        return np.zeros(shape)
    if kind == "one tap":
        taps = np.zeros(shape)
        taps.flat[rng.integers(taps.size)] = gaussian.flat[0]
        return taps
    if kind == "spread":
        return gaussian * 10.0 ** rng.uniform(-12, 0, shape)
    return gaussian * {"gaussian": 1.0, "tiny": 1e-300, "huge": 1e300}[kind]


@st.composite
def cases(draw, *, modes=MODES, kinds=KINDS, largest=6):
    """Up to three axes, strides, dilations, groups and lopsided padding, of at most a few hundred numbers."""
    axes = draw(st.sampled_from((1, 1, 2, 2, 3)))
    mode = draw(st.sampled_from(modes))
    groups = draw(st.sampled_from((1, 1, 1, 2, 3)))
    per_group = (draw(st.integers(1, 2)), draw(st.integers(1, 3 if groups == 1 else 2)))
    top = largest if axes < 3 else 3
    sizes, kernels, strides, pads, dilations = [], [], [], [], []
    for _ in range(axes):
        n = draw(st.integers(1, top if axes == 2 else 2 * top))
        limit = {"zeros": 3, "reflect": n - 1, "replicate": 3, "circular": n}[mode]
        pad = (draw(st.integers(0, min(limit, 3))), draw(st.integers(0, min(limit, 3))))
        d = draw(st.integers(1, 2))
        k = draw(st.integers(1, min(3 if axes > 1 else 4, (n + sum(pad) - 1) // d + 1)))
        sizes.append(n)
        kernels.append(k)
        strides.append(draw(st.integers(1, 3)))
        pads.append(pad)
        dilations.append(d)
    kind = draw(st.sampled_from(kinds))
    shape = (groups * per_group[1], per_group[0], *kernels)
    weight = kernel(kind, shape, draw(st.integers(0, 2**32 - 1)))
    conv = Conv(weight, None, tuple(strides), tuple(pads), tuple(dilations), groups, mode)
    return Case(conv, (groups * per_group[0], *sizes), kind)


def scaled_svd(matrix: np.ndarray) -> tuple[float, float]:
    """``(σ_1, scale)`` of matrix / scale by LAPACK."""
    top = np.abs(matrix).max(initial=0.0)
    scale = 2.0 ** math.frexp(top)[1] if top else 1.0
    return float(np.linalg.svd(matrix / scale, compute_uv=False)[0]), scale
