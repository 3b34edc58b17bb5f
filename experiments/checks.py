"""Attack checks: what a gap found by APGD must survive before anybody believes it.

Square queries outputs only, so masked gradients do not hide from it; points made for another model need no gradient of
this one at all; twice the steps must not find much more.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from certbound.arrays import F64, I64
from certbound.attacks.apgd import attack, attack_library
from certbound.attacks.common import into_ball, own_state
from certbound.types import norm_name
from experiments.config import Measure
from experiments.measure import Model, Numbers, batch_size, headline

SQUARE_QUERIES = 300


def other_attacks(model: Model, x: F64, y: I64, norm: float, settings: Measure) -> Numbers:
    """Robust accuracies under Square, under points made for a second model, and under APGD with twice the steps."""
    name, delta = norm_name(norm), headline(settings, norm)
    longer = attack(
        model.target, x, y, delta=delta, norm=norm, method=settings.attack, steps=2 * settings.steps,
        seed=model.seed, device=model.device, batch_size=batch_size(model),
    )  # fmt: skip
    numbers: Numbers = {
        f"ra_{name}_double_steps": longer.robust_accuracy,
        f"ra_{name}_square": accuracy(model, square(model, x, y, norm, delta, settings), y),
    }
    if model.second is not None:
        found = attack(
            model.second, x, y, delta=delta, norm=norm, steps=settings.steps, seed=model.seed, device=model.device,
            batch_size=batch_size(model),
        )  # fmt: skip
        clean = np.all(model.margins(x, y) > 0, axis=1)
        moved = np.all(model.margins(found.x_adv, y) > 0, axis=1)
        numbers[f"ra_{name}_transfer"] = float(np.mean(clean & moved))
    return numbers


def accuracy(model: Model, x: F64, y: I64) -> float:
    """Share of samples all of whose margins are positive."""
    return float(np.mean(np.all(model.margins(x, y) > 0, axis=1)))


def square(model: Model, x: F64, y: I64, norm: float, delta: float, settings: Measure) -> F64:
    """The points that Square finds (Andriushchenko et al. 2020, arXiv:1912.00049), moved into the ball in float64.

    In the shape of ``x``: flat, or images where the model is no chain of dense layers.
    """
    import torch

    from certbound.io.to_torch import to_torch

    library, _ = attack_library("SquareAttack", "square")
    if model.network is not None:
        module, where = to_torch(model.network, dtype="float32"), torch.device("cpu")
    else:
        module, where = model.module, torch.device(model.device)
    shape = (len(x), *model.images.shape)

    def logits(points: Any) -> Any:
        return module(points.reshape(len(points), *x.shape[1:]))

    with own_state(torch, where, model.seed), torch.no_grad():
        attacker = library(
            logits, norm="Linf" if math.isinf(norm) else "L2", n_queries=max(2, SQUARE_QUERIES * settings.steps // 100),
            eps=delta, seed=model.seed, device=str(where),
        )  # fmt: skip
        points_32 = torch.tensor(x, dtype=torch.float32, device=where).reshape(shape)
        found = attacker.perturb(points_32, torch.tensor(y, device=where))
    points = found.reshape(x.shape).double().cpu().numpy()
    return into_ball(x, np.clip(points, 0.0, 1.0), delta, norm)


__all__ = ["SQUARE_QUERIES", "accuracy", "other_attacks", "square"]
