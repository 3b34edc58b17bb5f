"""certbound: analytic, certified and empirical robustness bounds of compressed neural networks, side by side.

Public names are imported on first use, so that ``import certbound`` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from certbound.attacks.apgd import AttackReport, attack
    from certbound.attacks.pair import AttackPair
    from certbound.attacks.universal import UniversalReport, universal_perturbation
    from certbound.attribution import Attribution
    from certbound.bound import Bound, Claim, Result, compose, tightest
    from certbound.certificate import load_certificate
    from certbound.ci_gate import Baseline, GateReport, Limits, gate
    from certbound.comparison import Comparison, compare, compare_curve
    from certbound.compressibility import dispersion, smallest_k, tail_ratio
    from certbound.crown.margins import MarginReport, margins
    from certbound.errors import (
        CertboundError,
        CertificateError,
        ClaimMismatchError,
        InputError,
        LadderError,
        MissingDependencyError,
        UnsupportedLayerError,
    )
    from certbound.graph import Graph, as_graph
    from certbound.io.factory import load_model
    from certbound.io.onnx_file import load_onnx
    from certbound.io.onnx_wire import OnnxLimits
    from certbound.io.quantised import dequantise
    from certbound.lipschitz.alignment import lipschitz_alignment
    from certbound.lipschitz.branch_and_bound import Bracket, lipschitz_bracket
    from certbound.lipschitz.exact import ExactResult, lipschitz_exact
    from certbound.lipschitz.graph_local import lipschitz_local
    from certbound.lipschitz.patterns import lipschitz_patterns
    from certbound.lipschitz.product import lipschitz_product
    from certbound.lipschitz.sampled import SmoothPoint, lipschitz_sampled
    from certbound.lipschitz.sdp import lipschitz_sdp
    from certbound.model_comparison import ModelComparison, certified_radii, compare_models
    from certbound.network import Activation, Affine, Ball, Flatten, Network, Normalise, ReLU, Residual, as_network
    from certbound.norms.bounds import (
        frobenius_norm_lower,
        frobenius_norm_upper,
        inf_norm_lower,
        inf_norm_upper,
        one_norm_lower,
        one_norm_upper,
        spectral_norm_lower,
        spectral_norm_upper,
    )
    from certbound.norms.operator import operator_norm_lower, operator_norm_upper
    from certbound.theorems.corollary33 import Corollary33Report, check_corollary33
    from certbound.theorems.layer_report import LayerReport, layer_report
    from certbound.theorems.theorem31 import Theorem31Report, check_theorem31
    from certbound.theorems.theorem32 import Theorem32Report, check_theorem32
    from certbound.types import Quantity, Rigor, Sense, Status

_HOMES = {
    "certbound.attribution": ("Attribution",),
    "certbound.certificate": ("load_certificate",),
    "certbound.ci_gate": ("Baseline", "GateReport", "Limits", "gate"),
    "certbound.io.quantised": ("dequantise",),
    "certbound.graph": ("Graph", "as_graph"),
    "certbound.io.factory": ("load_model",),
    "certbound.io.onnx_file": ("load_onnx",),
    "certbound.io.onnx_wire": ("OnnxLimits",),
    "certbound.lipschitz.graph_local": ("lipschitz_local",),
    "certbound.norms.operator": ("operator_norm_lower", "operator_norm_upper"),
    "certbound.theorems.layer_report": ("LayerReport", "layer_report"),
    "certbound.model_comparison": ("ModelComparison", "certified_radii", "compare_models"),
    "certbound.attacks.pair": ("AttackPair",),
    "certbound.attacks.universal": ("UniversalReport", "universal_perturbation"),
    "certbound.lipschitz.branch_and_bound": ("Bracket", "lipschitz_bracket"),
    "certbound.lipschitz.exact": ("ExactResult", "lipschitz_exact"),
    "certbound.lipschitz.sampled": ("SmoothPoint", "lipschitz_sampled"),
    "certbound.attacks.apgd": ("AttackReport", "attack"),
    "certbound.bound": ("Bound", "Claim", "Result", "compose", "tightest"),
    "certbound.comparison": ("Comparison", "compare", "compare_curve"),
    "certbound.compressibility": ("dispersion", "smallest_k", "tail_ratio"),
    "certbound.crown.margins": ("MarginReport", "margins"),
    "certbound.errors": (
        "CertboundError",
        "CertificateError",
        "ClaimMismatchError",
        "InputError",
        "LadderError",
        "MissingDependencyError",
        "UnsupportedLayerError",
    ),
    "certbound.lipschitz.alignment": ("lipschitz_alignment",),
    "certbound.lipschitz.patterns": ("lipschitz_patterns",),
    "certbound.lipschitz.product": ("lipschitz_product",),
    "certbound.lipschitz.sdp": ("lipschitz_sdp",),
    "certbound.network": (
        "Activation",
        "Affine",
        "Ball",
        "Flatten",
        "Network",
        "Normalise",
        "ReLU",
        "Residual",
        "as_network",
    ),
    "certbound.norms.bounds": (
        "frobenius_norm_lower",
        "frobenius_norm_upper",
        "inf_norm_lower",
        "inf_norm_upper",
        "one_norm_lower",
        "one_norm_upper",
        "spectral_norm_lower",
        "spectral_norm_upper",
    ),
    "certbound.theorems.corollary33": ("Corollary33Report", "check_corollary33"),
    "certbound.theorems.theorem31": ("Theorem31Report", "check_theorem31"),
    "certbound.theorems.theorem32": ("Theorem32Report", "check_theorem32"),
    "certbound.types": ("Quantity", "Rigor", "Sense", "Status"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "ExactResult",
    "SmoothPoint",
    "AttackPair",
    "Attribution",
    "Baseline",
    "GateReport",
    "Limits",
    "gate",
    "dequantise",
    "load_certificate",
    "load_model",
    "load_onnx",
    "OnnxLimits",
    "Graph",
    "as_graph",
    "LayerReport",
    "layer_report",
    "lipschitz_local",
    "operator_norm_lower",
    "operator_norm_upper",
    "ModelComparison",
    "certified_radii",
    "compare_models",
    "UniversalReport",
    "universal_perturbation",
    "lipschitz_bracket",
    "lipschitz_exact",
    "lipschitz_sampled",
    "__version__",
    "Activation",
    "Affine",
    "AttackReport",
    "Ball",
    "Bound",
    "Bracket",
    "CertboundError",
    "CertificateError",
    "Claim",
    "ClaimMismatchError",
    "Comparison",
    "Corollary33Report",
    "Flatten",
    "InputError",
    "LadderError",
    "MarginReport",
    "MissingDependencyError",
    "Network",
    "Normalise",
    "Quantity",
    "ReLU",
    "Residual",
    "Result",
    "Rigor",
    "Sense",
    "Status",
    "Theorem31Report",
    "Theorem32Report",
    "UnsupportedLayerError",
    "as_network",
    "attack",
    "check_corollary33",
    "check_theorem31",
    "check_theorem32",
    "compare",
    "compare_curve",
    "compose",
    "dispersion",
    "frobenius_norm_upper",
    "inf_norm_upper",
    "lipschitz_alignment",
    "lipschitz_patterns",
    "lipschitz_product",
    "lipschitz_sdp",
    "margins",
    "smallest_k",
    "spectral_norm_lower",
    "frobenius_norm_lower",
    "inf_norm_lower",
    "one_norm_lower",
    "one_norm_upper",
    "spectral_norm_upper",
    "tail_ratio",
    "tightest",
]


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        value = getattr(import_module(_HOME_OF[name]), name)
        globals()[name] = value
        return value
    if name in ("testing", "compress"):
        return import_module(f"certbound.{name}")
    raise AttributeError(f"module 'certbound' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME_OF])
