"""A zero-padded, strided convolution against the circular one on a torus that holds image and padding.

Statement. A convolution (one spatial axis, kernels K of several channels) with zero padding (p, q) on n points, stride
s: its matrix A is a sub-matrix of the circulant C on N >= n + p + q points, ``A = R C E`` with selections R, E. So
``A Aᵀ ⪯ R C Cᵀ Rᵀ``, ``‖A‖_2 <= ‖C‖_2`` and every singular value of A is at most that of C. On N = n points (the
image alone) it is false: K = (1, −1, 0) on one point.

Proof. Output position i of A reads the padded points ``i s … i s + k − 1``, all within the torus, so its row of C is
the same row, and the padded points are 0: E embeds the image. ``E Eᵀ ⪯ I`` gives the order; singular values of
sub-matrices interlace.

Source: Sedghi, Gupta & Long 2019, arXiv:1805.10408 (circular); Araujo et al. 2021, arXiv:2006.08391 (padding).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flint import fmpq, fmpq_mat

from proofs_numeric.harness.exact import draw_rational, spectral_norm
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

IMAGE_ONLY = "torus of the image alone"
Kernel = list[list[list[fmpq]]]
"""out × in × taps."""


@dataclass(frozen=True)
class Instance:
    """Kernel, image length, padding and stride."""

    kernel: Kernel
    n: int
    padding: tuple[int, int]
    stride: int

    @property
    def positions(self) -> int:
        """Output positions."""
        return (self.n + sum(self.padding) - len(self.kernel[0][0])) // self.stride + 1


def draw(rng: random.Random, size: int) -> Instance:
    taps, channels, outputs = rng.randint(1, 3), rng.randint(1, 2), rng.randint(1, 2)
    padding = (rng.randint(0, 2), rng.randint(0, 2))
    n = rng.randint(max(1, taps - sum(padding)), 4 + min(size, 2))
    kernel = [[[draw_rational(rng) for _ in range(taps)] for _ in range(channels)] for _ in range(outputs)]
    return Instance(kernel, n, padding, rng.randint(1, 2))


def real_matrix(x: Instance) -> fmpq_mat:
    """The matrix of the layer: rows (output, position), columns (channel, point)."""
    low = x.padding[0]
    rows: list[list[fmpq]] = []
    for out in x.kernel:
        for i in range(x.positions):
            row = [fmpq(0)] * (len(out) * x.n)
            for c, taps in enumerate(out):
                for t, value in enumerate(taps):
                    point = i * x.stride + t - low
                    if 0 <= point < x.n:
                        row[c * x.n + point] += value
            rows.append(row)
    return fmpq_mat(rows)


def torus_matrix(x: Instance, points: int, positions: Sequence[int]) -> fmpq_mat:
    """Rows of the circulant on so many points, at the given starts."""
    rows: list[list[fmpq]] = []
    for out in x.kernel:
        for i in positions:
            row = [fmpq(0)] * (len(out) * points)
            for c, taps in enumerate(out):
                for t, value in enumerate(taps):
                    row[c * points + (i + t) % points] += value
            rows.append(row)
    return fmpq_mat(rows)


def evaluate(x: Instance, broken: Broken) -> list[Comparison]:
    points = x.n if broken == IMAGE_ONLY else x.n + sum(x.padding)
    A, C = real_matrix(x), torus_matrix(x, points, range(points))
    found = [compare("‖A‖_2", spectral_norm(A), spectral_norm(C))]
    if broken is None:
        rows = torus_matrix(x, points, [i * x.stride for i in range(x.positions)])
        found.append(compare_psd("A Aᵀ ⪯ R C Cᵀ Rᵀ", A * A.transpose(), rows * rows.transpose()))
    return found


_TAPS = 3


def searches(broken: Broken, size: int = 0) -> list[Search]:
    n = 3

    def built(v: torch.Tensor, columns: int, rows: int, shift: int, wraps: bool) -> torch.Tensor:
        import torch

        matrix = torch.zeros(len(v), rows, columns, dtype=v.dtype)
        for i in range(rows):
            for t in range(_TAPS):
                j = i + t - shift
                if wraps or 0 <= j < columns:
                    matrix[:, i, j % columns] += v[:, t]
        return matrix

    def objective(v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        points = n if broken == IMAGE_ONLY else n + 2
        real = built(v, n, n, 1, wraps=False)
        torus = built(v, points, points, 0, wraps=True)
        noise = 1e-13 * v[:, :1, None]
        return torch.linalg.matrix_norm(real + noise, 2), torch.linalg.matrix_norm(torus + noise, 2)

    def instance(v: Sequence[Any]) -> Instance:
        return Instance([[list(v)]], n, (1, 1), 1)

    return [Search("3 points, 3 taps, padding 1", _TAPS, objective, instance, ("‖A‖_2",))]


def queries(broken: Broken) -> list[Query]:
    def build() -> tuple[Sequence[Any], Any, Any]:
        import z3

        # one point, taps (a, b, c), padding 1: A = b. The circulant's Gram applied to 1 and to a real wave bounds its
        # norm from below: on 3 points ‖C‖² >= ‖(a, b, c)‖² (a column), on 1 point ‖C‖² = (a + b + c)².
        a, b, c = z3.Reals("a b c")
        claimed = (a + b + c) * (a + b + c) if broken == IMAGE_ONLY else a * a + b * b + c * c
        return [], b * b, claimed

    return [Query("one point, three taps", build)]


def _one_point() -> Comparison:
    """K = (1, −1, 0) on one point with padding 1: the layer is x ↦ −x, the circulant on one point is 0."""
    return next(iter(evaluate(Instance([[[fmpq(1), fmpq(-1), fmpq(0)]]], 1, (1, 1), 1), IMAGE_ONLY)))


LEMMA = Lemma(
    name="convolution_torus",
    statement="A = R C E for zero padding on a torus of n + p + q points: A Aᵀ ⪯ R C Cᵀ Rᵀ, ‖A‖_2 <= ‖C‖_2",
    source="issue of real architectures; Sedghi et al. 2019, Araujo et al. 2021",
    draw=draw,
    evaluate=evaluate,
    searches=searches,
    queries=queries,
    witnesses=(
        Witness(
            "one tap: no border",
            lambda: Instance([[[fmpq(2)]]], 3, (0, 0), 1),
            "‖A‖_2",
        ),
    ),
    counterexamples=(Counterexample("the torus of the image alone: K = (1, −1, 0) on one point", _one_point),),
    broken={IMAGE_ONLY: Variant("no room for the padding on the torus")},
)
