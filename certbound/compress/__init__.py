"""Compressible networks: penalties and training that make them so, pruning, low rank, and controls for both.

Public names are imported on first use: ``import certbound.compress`` does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from certbound.compress.adversarial import PGD, UniversalTraining
    from certbound.compress.factorised import linear_groups, linear_maps, low_rank_linear, relu_network
    from certbound.compress.frobenius import FrobeniusNorms
    from certbound.compress.layers import as_matrix, weight_groups, weight_parameters
    from certbound.compress.penalties import (
        PENALTIES,
        PROXIMAL_STEPS,
        alignment_penalty,
        dispersion_penalty,
        group_lasso_penalty,
        group_lasso_proximal_step,
        l1_penalty,
        l1_proximal_step,
        nuclear_norm_penalty,
        nuclear_norm_proximal_step,
        row_sparsity_penalty,
    )
    from certbound.compress.pruning import (
        Pruned,
        PrunedLayer,
        epsilon_prune,
        ratio_for_size,
        spectral_prune,
        uniform_prune,
    )
    from certbound.compress.training import History, Training, train
    from certbound.compress.transfer import frozen_encoder
    from certbound.compress.truncation import low_rank, random_rank, scale_weights

_HOMES = {
    "certbound.compress.adversarial": ("PGD", "UniversalTraining"),
    "certbound.compress.factorised": ("linear_groups", "linear_maps", "low_rank_linear", "relu_network"),
    "certbound.compress.frobenius": ("FrobeniusNorms",),
    "certbound.compress.layers": ("as_matrix", "weight_groups", "weight_parameters"),
    "certbound.compress.penalties": (
        "PENALTIES",
        "PROXIMAL_STEPS",
        "alignment_penalty",
        "dispersion_penalty",
        "group_lasso_penalty",
        "group_lasso_proximal_step",
        "l1_penalty",
        "l1_proximal_step",
        "nuclear_norm_penalty",
        "nuclear_norm_proximal_step",
        "row_sparsity_penalty",
    ),
    "certbound.compress.pruning": (
        "Pruned",
        "PrunedLayer",
        "epsilon_prune",
        "ratio_for_size",
        "spectral_prune",
        "uniform_prune",
    ),
    "certbound.compress.training": ("History", "Training", "train"),
    "certbound.compress.transfer": ("frozen_encoder",),
    "certbound.compress.truncation": ("low_rank", "random_rank", "scale_weights"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    # pruning and low rank
    "Pruned",
    "PrunedLayer",
    "epsilon_prune",
    "spectral_prune",
    "uniform_prune",
    "ratio_for_size",
    "low_rank",
    "random_rank",
    "scale_weights",
    # penalties
    "PENALTIES",
    "PROXIMAL_STEPS",
    "l1_penalty",
    "nuclear_norm_penalty",
    "group_lasso_penalty",
    "row_sparsity_penalty",
    "dispersion_penalty",
    "alignment_penalty",
    "l1_proximal_step",
    "nuclear_norm_proximal_step",
    "group_lasso_proximal_step",
    "FrobeniusNorms",
    # training
    "Training",
    "PGD",
    "UniversalTraining",
    "History",
    "train",
    "frozen_encoder",
    # weights and networks of low rank
    "weight_parameters",
    "weight_groups",
    "as_matrix",
    "low_rank_linear",
    "relu_network",
    "linear_groups",
    "linear_maps",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME_OF])
