"""Networks whose Lipschitz constants are known by hand: what every bound must respect.

A bound is tested on both sides: an upper bound must not be below ``lipschitz_2``, a lower bound not above it, and a
method that claims the pattern maximum must give ``pattern_2``. Needs numpy alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from certbound.errors import InputError
from certbound.network import Affine, Flatten, Layer, Network, Normalise, ReLU


@dataclass(frozen=True, eq=False)
class ZooEntry:
    """A network and its exact constants, correctly rounded to float64.

    Parameters
    ----------
    name : short and unique.
    network : the network.
    lipschitz_2, lipschitz_inf : least L with ``‖f(x) − f(y)‖_p ≤ L ‖x − y‖_p`` for all x, y; p = 2 and ∞ (on both
        sides, so the largest over outputs). None where it is not known.
    why : one sentence, how the constants are known.
    pattern_2, pattern_inf : maximum of ``‖D W … D W‖_p`` over ALL 0/1 patterns D, those no input realises too.
        Never below the Lipschitz constant; equal to it if not given.
    """

    name: str
    network: Network
    lipschitz_2: float | None
    lipschitz_inf: float | None
    why: str
    pattern_2: float | None = field(default=None)
    pattern_inf: float | None = field(default=None)

    def __post_init__(self) -> None:
        for norm in ("2", "inf"):
            exact, pattern = getattr(self, f"lipschitz_{norm}"), getattr(self, f"pattern_{norm}")
            if pattern is None:
                object.__setattr__(self, f"pattern_{norm}", exact)
            elif exact is not None and not pattern >= exact:
                raise InputError(
                    f"pattern_{norm}",
                    got=f"{pattern} below the constant {exact}",
                    needed="a maximum over more patterns than inputs realise",
                    fix="check both by hand",
                )


def _relu_net(
    weights: Sequence[object], biases: Sequence[object | None] | None = None, *, last: bool = False
) -> Network:
    net = Network.from_weights(weights, biases)
    return Network((*net.layers, ReLU())) if last else net


_HADAMARD: Final = [[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]
_HALF: Final = np.array(_HADAMARD) / 2  # orthogonal, and exact in float64
_STANDARDISED: Final[tuple[Layer, ...]] = (
    Normalise(np.array([0.5, 0.25]), np.array([0.5, 0.25])),
    Flatten(),
    Affine(np.array([[1.0, -2.0, 1.0, 0.0]])),
)

zoo: Final[tuple[ZooEntry, ...]] = (
    ZooEntry("identity", _relu_net([np.eye(3)]), 1.0, 1.0, "f(x) = x."),
    ZooEntry(
        "one layer", _relu_net([[[3, 4], [0, 0]]], [[1, -1]]), 5.0, 7.0,
        "Affine: the norms of the row (3, 4), 5 and its dual for inf, 3 + 4.",
    ),
    ZooEntry(
        "one layer and ReLU", _relu_net([[[3, -4]]], last=True), 5.0, 7.0,
        "relu(3x - 4y): the norms of the row (3, -4), attained where it is positive.",
    ),
    ZooEntry(
        "absolute value", _relu_net([[[1], [-1]], [[1, 1]]]), 1.0, 1.0,
        "relu(x) + relu(-x) = |x|; the product of norms says 2 for either norm.",
    ),
    ZooEntry(
        "sum of 9", _relu_net([np.ones((1, 9)), [[1]]]), 3.0, 9.0,
        "relu(x_1 + ... + x_9): gradient (1, ..., 1) of l2 norm 3 and l1 norm 9.",
    ),
    ZooEntry(
        "diagonal", _relu_net([np.diag([3, 0.5, -2]), np.diag([2, 1, 1])]), 6.0, 6.0,
        "Output i depends on input i alone: the largest |a_i b_i| = 3 * 2.",
    ),
    ZooEntry(
        "rank one", _relu_net([np.outer([3, 4], [2, 2, 1]), [[1, 0], [0, 1]]]), 15.0, 20.0,
        "Both hidden neurons are multiples of 2x + 2y + z: on together, (3, 4) outer (2, 2, 1): 5 * 3, and 4 * 5.",
    ),
    ZooEntry(
        "permutations",
        _relu_net([np.eye(3)[[1, 2, 0]], -np.eye(3)[[2, 0, 1]], np.eye(3)], [[0] * 3, [1] * 3, [0] * 3]),
        1.0, 1.0,
        "Signed permutations have norm 1; near (1/2, 1/2, 1/2) every ReLU is on (1 - 1/2 > 0), so 1 is attained.",
    ),
    ZooEntry(
        "orthogonal stack", _relu_net([_HALF, _HALF]), 1.0, 1.5,
        "H/2 is orthogonal, so l2 is at most 1, attained with all on, where f(x) = x; every pattern is realised since "
        "H is invertible, and with three on HDH/4 = I - hh'/4 has row sums 3/4 + 3/4.",
    ),
    ZooEntry(
        "positive weights", _relu_net([[[1, 2], [3, 4]], [[1, 1], [2, 0]]]), 4 + 2 * math.sqrt(5), 10.0,
        "Weights >= 0: with x > 0 all ReLUs are on and no pattern has a larger entry, so the norms of the product "
        "[[4, 6], [2, 4]]: l2 squared is 36 + 16 sqrt 5 = (4 + 2 sqrt 5)^2.",
    ),
    ZooEntry(
        "dead neuron", _relu_net([[[1], [1]], [[1, 0], [0, -1]], [[1, 10]]]), 1.0, 1.0,
        "The second path is 10 relu(-relu(x)) = 0 for all x, so f = relu(x); the pattern with it alone on gives 10.",
        pattern_2=10.0, pattern_inf=10.0,
    ),
    ZooEntry(
        "zero layer", _relu_net([[[1, 2], [3, 4]], [[0, 0], [0, 0]], [[5, 6]]], [[1, 1], [1, -1], [2]]), 0.0, 0.0,
        "A zero matrix in between: f is constant.",
    ),
    ZooEntry(
        "square root of six", _relu_net([[[2, 1, 0, -1], [-2, 0, -1, -1]], [[1, 1]]]), math.sqrt(6), 4.0,
        "Either row, and their sum, has l2 norm sqrt 6 and l1 norm 4; the rows are independent, so all patterns are "
        "realised. The SDP's optimum is above it (2.598 at l2).",
    ),
    ZooEntry(
        "never both on", _relu_net([[[1], [-1]], [[1, -1]]], [[-1, -1], None]), 1.0, 1.0,
        "relu(x - 1) - relu(-x - 1): slope 1 for x > 1 and x < -1, 0 between; both on would need x > 1 and x < -1, "
        "and has slope 2.",
        pattern_2=2.0, pattern_inf=2.0,
    ),
    ZooEntry(
        "maximum", _relu_net([[[1, -1], [0, 1], [0, -1]], [[1, 1, -1]]]), 1.0, 1.0,
        "relu(x - y) + relu(y) - relu(-y) = max(x, y), of gradient (1, 0) or (0, 1); relu(y) and relu(-y) together "
        "on would give (0, 2).",
        pattern_2=2.0, pattern_inf=2.0,
    ),
    ZooEntry(
        "hat", _relu_net([[[1], [1], [1]], [[1, -2, 1]]], [[0, -1, -2], None]), 1.0, 1.0,
        "relu(x) - 2 relu(x - 1) + relu(x - 2) has slopes 0, 1, -1, 0; only the second on (slope -2) would need "
        "x > 1 and x < 0, and the product of norms says 4 for inf.",
        pattern_2=2.0, pattern_inf=2.0,
    ),
    ZooEntry(
        "normalised", Network(_STANDARDISED, (2, 1, 2)), 6.0, 10.0,
        "Division by 1/2, 1/2, 1/4, 1/4 makes the row (1, -2, 1, 0) into (2, -4, 4, 0): norms 6 and 10, in the units "
        "of the raw input.",
    ),
)
"""All entries; names are unique, no network has more than 8 hidden neurons."""
