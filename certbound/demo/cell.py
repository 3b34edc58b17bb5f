"""One cell of the demo: train one network, attack it and bound it at every radius. A pure function of its arguments."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from certbound.comparison import Comparison, compare_curve
from certbound.compressibility import first_k, profile
from certbound.demo.data import mnist5k
from certbound.demo.train import NUCLEAR_STRENGTHS, RANKS, TrainConfig, train_fcn
from certbound.io.torch_module import from_module
from certbound.network import Network
from certbound.norms.dense import singular_values
from certbound.types import norm_name

TARGET_EPSILON: Final = 0.1
"""Compressibility is read off at the k that leaves this share of the nuclear norm in the tail."""

DELTAS: Final[dict[float, tuple[float, ...]]] = {
    2.0: (0.0, 0.1, 0.25, 0.5, 1.0, 3.0),
    math.inf: (0.0, 0.005, 0.01, 0.02, 0.05, 0.2),
}
"""Radii in pixel units; no perturbation first, one that breaks every network last."""

HEADLINE: Final[dict[float, float]] = {2.0: 0.5, math.inf: 0.02}
"""The radius at which tables compare gaps."""


@dataclass(frozen=True)
class CellConfig:
    """What decides a cell: the training configuration (with its seed) and the number of attacked images."""

    train: TrainConfig
    n_samples: int = 200

    @property
    def family(self) -> str:
        """Which kind of compression it belongs to."""
        if self.train.rank is not None:
            return "low rank"
        return "nuclear norm" if self.train.nuclear > 0 else "dense"


@dataclass(frozen=True)
class CellResult:
    """The cell's numbers, JSON-ready: ``rows`` (one per radius, method and quantity) and what was trained."""

    name: str
    family: str
    seed: int
    train_accuracy: float
    test_accuracy: float
    train_seconds: float
    compressibility: float
    rows: tuple[dict[str, Any], ...]
    comparisons: tuple[dict[str, Any], ...]
    attributions: tuple[dict[str, Any], ...]


def cells(seeds: int, *, device: str, quick: bool) -> list[CellConfig]:
    """Dense, five ranks, three nuclear-norm strengths, for each seed; two small models when ``quick``."""
    base = TrainConfig(device=device)
    models = [base]
    models += [replace(base, rank=r) for r in RANKS]
    models += [replace(base, nuclear=v) for v in NUCLEAR_STRENGTHS]
    if quick:
        models = [replace(base, epochs=3), replace(base, epochs=3, rank=RANKS[-1])]
    return [CellConfig(replace(m, seed=s), 40 if quick else 200) for s in range(seeds) for m in models]


def spectral_compressibility(network: Network, epsilon: float = TARGET_EPSILON) -> float:
    """``1 − k/r``, averaged over the encoder's layers: k the smallest with ``τ_{1,k}(σ) <= ε``, r = min(m, n).

    0 would be a flat spectrum that needs (almost) all its singular values, 1 − 1/r a matrix of rank one.
    """
    shares = []
    for w in network.chain.encoder:
        tails = profile(singular_values(w)[0]).epsilon
        shares.append(1.0 - first_k(tails, epsilon) / len(tails))
    return float(np.mean(shares)) if shares else 0.0


def run_cell(config: CellConfig) -> CellResult:
    """Train, attack, bound. torch uses one thread here: two cells in two processes beat one with two threads."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _run(config)
    finally:
        torch.set_num_threads(threads)


def _run(config: CellConfig) -> CellResult:
    split = mnist5k(config.train.seed)
    t = config.train
    model = train_fcn(
        split,
        hidden=t.hidden,
        rank=t.rank,
        nuclear=t.nuclear,
        seed=t.seed,
        epochs=t.epochs,
        lr=t.lr,
        momentum=t.momentum,
        batch_size=t.batch_size,
        bias=t.bias,
        device=t.device,
    )
    network = from_module(model.module)
    # the test set is shuffled already (by the seed): the first n are a random sample, the same for all models
    x, y = split.x_test[: config.n_samples], split.y_test[: config.n_samples]
    rows: list[dict[str, Any]] = []
    comparisons: list[dict[str, Any]] = []
    attributions: list[dict[str, Any]] = []
    for norm, deltas in DELTAS.items():
        for comparison in compare_curve(network, x, y, deltas=deltas, norm=norm, seed=t.seed):
            comparisons.append(comparison.to_dict())
            rows += _rows(comparison)
            if comparison.delta == HEADLINE[norm]:
                attributions.append(comparison.attribution("printed").to_dict())
    return CellResult(
        name=model.name,
        family=config.family,
        seed=t.seed,
        train_accuracy=model.train_accuracy,
        test_accuracy=model.test_accuracy,
        train_seconds=model.seconds,
        compressibility=spectral_compressibility(network),
        rows=tuple(rows),
        comparisons=tuple(comparisons),
        attributions=tuple(attributions),
    )


def _rows(comparison: Comparison) -> list[dict[str, Any]]:
    """Flat rows for the CSV."""
    return [
        {
            "norm": norm_name(comparison.norm),
            "delta": comparison.delta,
            "method": row.method,
            "quantity": str(row.quantity),
            "sense": str(row.sense),
            "value": row.value,
            "ratio": row.ratio,
            "rigor": str(row.rigor),
            "status": row.status.name,
            "note": row.note,
            "seconds": round(row.seconds, 4),
            "clean_accuracy": comparison.clean_accuracy,
        }
        for row in comparison.rows
    ]
