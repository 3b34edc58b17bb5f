"""Corollary 3.3: the adversarial loss exceeds the clean loss by at most δ · L̂ · (norm of the head).

Head C on the encoder Φ. Binary logistic loss ``log(1 + exp(−y C·Φ(x)))``, attack ``‖a‖_p <= δ``:
``F_adv <= F + δ L̂_∞ ‖C‖_1`` (p = ∞), ``F_adv <= F + δ L̂_2 ‖C‖_2`` (p = 2). Cross-entropy with logits ``C Φ(x)``, per
sample: ``loss(x + a) − loss(x) <= δ L̂_p max_{j≠y} ‖C_j − C_y‖_{p*}``, p* the dual norm.

Source: Barsbey et al., ICLR 2026, Corollary 3.3.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from certbound import text
from certbound.arrays import F64, as_float64, as_labels, frozen
from certbound.bound import Bound, Claim
from certbound.errors import InputError, UnsupportedLayerError
from certbound.graph import Graph
from certbound.network import Network, ReLU
from certbound.ops import Pointwise
from certbound.robustness import Samples, certify_by_constants, head_constants, read_network
from certbound.theorems.theorem32 import encoder_bounds
from certbound.types import SCHEMA_VERSION, Quantity, Sense, norm_name, parse_delta, parse_norm

logger = logging.getLogger(__name__)

_SOURCE = "Barsbey et al., ICLR 2026, Corollary 3.3"
_MAX_PATTERNS = 2**12  # a fraction of a second a pair; larger pairs get certified upper bounds
_TOLERANCE = 1e-9


@dataclass(frozen=True, eq=False)
class Corollary33Report:
    """Bound against measured gap.

    ``loss_gap_bound``: mean over samples of ``δ L̂ max_j ‖C_j − C_y‖_{p*}``, L̂ with the derived form of Theorem 3.1;
    ``by_form``: the same with each Lipschitz bound (printed, derived, sharp, product, cover); ``measured_gap``: the
    mean gap that AutoPGD found (LOWER); ``per_sample``: arrays ``bound``, ``measured``, ``clean_loss``; ``holds``: no
    sample's measured gap exceeds its bound, with any of the five.
    """

    delta: float
    norm: float
    loss_gap_bound: Bound
    measured_gap: Bound
    by_form: Mapping[str, Bound]
    holds: bool
    per_sample: Mapping[str, F64] = field(repr=False)

    def __str__(self) -> str:
        rows = [("measured (APGD)", text.number(self.measured_gap.value), str(self.measured_gap.rigor))]
        rows += [(name, text.number(b.value), str(b.rigor)) for name, b in self.by_form.items()]
        title = f"mean loss gap, norm {norm_name(self.norm)}, delta {self.delta:g}"
        return f"{text.table(rows, (title, 'value', 'rigor'))}\nholds: {'yes' if self.holds else 'NO'}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with ``schema_version``."""
        return {
            "schema_version": SCHEMA_VERSION,
            "delta": self.delta,
            "norm": text.json_number(self.norm),
            "loss_gap_bound": self.loss_gap_bound.to_dict(),
            "measured_gap": self.measured_gap.to_dict(),
            "by_form": {k: b.to_dict() for k, b in self.by_form.items()},
            "holds": self.holds,
            "per_sample": {k: [text.json_number(v) for v in a] for k, a in self.per_sample.items()},
        }


def classifier(model: object, x: F64) -> Network | Graph:
    """Read a classifier for samples of this shape: its outputs are logits.

    A Graph that is small enough to be a Network of dense layers becomes one, for which there are more methods
    (:func:`certbound.io.graph_to_network.dense_network`); what is no Network stays a Graph.

    Raises
    ------
    InputError : no model, or a ReLU network whose last layer is no affine one.
    """
    network = read_network(model, x)
    if isinstance(network, Graph):
        from certbound.io.graph_to_network import dense_network

        try:
            network = dense_network(network)
        except UnsupportedLayerError as error:
            logger.info("no Network of dense layers: %s", error)
    if (network.chain.final_relu if isinstance(network, Network) and network.is_relu_chain else _ends_in_relu(network)):
        raise InputError(
            "model",
            got="a network that ends in a ReLU",
            needed="logits: an affine last layer",
            fix="drop the last ReLU",
        )
    return network


def _ends_in_relu(network: Network | Graph) -> bool:
    last = network.nodes[-1].op if isinstance(network, Graph) else network.layers[-1]
    return isinstance(last, ReLU) or (isinstance(last, Pointwise) and last.kind == "relu")


def check_chain(network: Network | Graph, what: str) -> Network:
    """The network, refused with the reason where ``what`` is not proved for it."""
    if not isinstance(network, Network) or not network.is_relu_chain:
        raise UnsupportedLayerError(
            "model",
            got="a network with convolutions that are no small matrices, residual sums, or other activations",
            needed=f"a chain of fully connected layers and ReLU: {what} is proved for those",
            fix="compare bounds such a network by what holds for it; layer_report shows Theorem 3.1 layer by layer",
        )
    return network


def check_corollary33(
    model: object, x: object, y: object, *, delta: object, norm: object, steps: int = 100, seed: int = 0
) -> Corollary33Report:
    """Check Corollary 3.3 on samples: the analytic bound of the loss gap against the gap that AutoPGD finds.

    Parameters
    ----------
    model : nn.Module, Network, small Graph or list of weights; the last affine map is the head C, the rest the
        encoder Φ.
    x : (samples, …) in [0, 1]. y : class indices; one logit: 0/1, read as −1/+1.
    delta : radius in the units of x. norm : 2 or ∞.

    Raises
    ------
    InputError : bad arrays, labels, delta, norm, or a model that ends in a ReLU.
    UnsupportedLayerError : a model that is no chain of dense layers and ReLU.
    MissingDependencyError : no torch or no AutoPGD to measure the gap with.

    Source: Barsbey et al., ICLR 2026, Corollary 3.3.
    """
    from certbound.attacks.apgd import attack

    samples_x = as_float64(x, "x")
    network = check_chain(classifier(model, samples_x), "Corollary 3.3 with Theorem 3.2")
    flat = network.flat_inputs(samples_x)
    n_classes = max(2, network.n_outputs)
    labels = as_labels(y, len(flat), n_classes)
    radius, p = parse_delta(delta), parse_norm(norm)
    found = attack(network, samples_x, labels, delta=radius, norm=p, steps=steps, seed=seed)
    samples = Samples.of(network, flat, labels, p, (0.0, 1.0))
    measured = np.maximum(found.adversarial_loss - found.clean_loss, 0.0)

    encoder, _, _ = encoder_bounds(network.chain.encoder, p, network.digest, max_patterns=_MAX_PATTERNS)
    claim = Claim(Quantity.LOSS_GAP, p, None, samples.domain(radius), "all", network.digest)
    by_form: dict[str, Bound] = {}
    per_sample: dict[str, F64] = {"measured": frozen(measured), "clean_loss": frozen(samples.loss)}
    holds = True
    for name in ("printed", "derived", "sharp", "product", "cover"):
        constants = head_constants(encoder[name].value, network.chain.head, p)
        gap = certify_by_constants(samples, constants, radius, corollary=True).loss_gap
        by_form[name] = Bound(
            float(np.mean(gap)),
            claim,
            Sense.UPPER,
            encoder[name].rigor,
            f"Corollary 3.3, {name}",
            _SOURCE,
            terms=(encoder[name],),
        )
        holds = holds and bool(np.all(measured <= gap + _TOLERANCE * (1.0 + samples.loss)))
        if name == "derived":
            per_sample["bound"] = frozen(gap)
    return Corollary33Report(
        radius, p, by_form["derived"], found.loss_gap, MappingProxyType(by_form), holds, MappingProxyType(per_sample)
    )
