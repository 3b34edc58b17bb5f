"""Dense against compressed: what compression changes, and how far the two can differ anywhere in the ball."""

from __future__ import annotations

import csv
import io
import logging
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from certbound import text
from certbound.arrays import F64, as_float64, as_labels, frozen
from certbound.bound import Bound, Claim
from certbound.comparison import Comparison, compare
from certbound.crown.graph_problem import WorkLimitError
from certbound.difference import difference_network, two_sided
from certbound.errors import InputError, LadderError, MissingDependencyError, UnsupportedLayerError
from certbound.graph import Graph, Node, as_graph
from certbound.lipschitz.graph_margin_constants import product_constants
from certbound.lipschitz.graph_product import graph_product
from certbound.lipschitz.margin_constants import margin_constants
from certbound.lipschitz.product import product_bound
from certbound.lipschitz.recursion import forward, recursion_inf, rows_norm_2
from certbound.losses import perturbation_domain
from certbound.network import Network
from certbound.ops import Add, Linear, Reshape
from certbound.robustness import network_margins, scaled
from certbound.theorems.corollary33 import classifier
from certbound.types import SCHEMA_VERSION, Quantity, Rigor, Sense, Status, norm_name, parse_delta, parse_norm

logger = logging.getLogger(__name__)

RadiusMethod = Literal["recursion", "CROWN"]
_BOX = (0.0, 1.0)
_BISECTIONS = 10


@dataclass(frozen=True, eq=False)
class ModelComparison:
    """Two networks on the same samples; made by :func:`compare_models`.

    ``output_change``: (samples,), certified upper bounds of ``max_a max_j |f_j(x + a) − g_j(x + a)|`` over the ball;
    ``measured_change``: the same at the clean and the attacked points (a lower bound); ``radii``: certified radius of
    each sample, by network; ``dense``, ``compressed``: the full comparisons.
    """

    dense: Comparison
    compressed: Comparison
    output_change: F64
    measured_change: F64
    output_change_bound: Bound
    radii: Mapping[str, F64] = field(repr=False)
    radius_method: RadiusMethod = "recursion"

    @property
    def changes(self) -> dict[str, float | None]:
        """Compressed less dense: standard, robust (under attack) and best certified accuracy, empirical gap."""

        def best(c: Comparison, sense: Sense) -> float | None:
            values = [
                r.value
                for r in c.rows
                if r.quantity is Quantity.ROBUST_ACCURACY and r.sense is sense and r.status is Status.OK
            ]
            if not values:
                return None
            return min(values) if sense is Sense.UPPER else max(values)

        def less(a: float | None, b: float | None) -> float | None:
            return None if a is None or b is None else a - b

        return {
            "standard accuracy": self.compressed.clean_accuracy - self.dense.clean_accuracy,
            "robust accuracy": less(best(self.compressed, Sense.UPPER), best(self.dense, Sense.UPPER)),
            "certified accuracy": less(best(self.compressed, Sense.LOWER), best(self.dense, Sense.LOWER)),
            "empirical gap": less(self.compressed.empirical_gap, self.dense.empirical_gap),
        }

    def __str__(self) -> str:
        rows = [(f"change of {k}", text.number(v)) for k, v in self.changes.items()]
        rows += [
            ("largest |f - g| on the balls", text.at_most(self.output_change_bound.value)),
            ("largest |f - g| seen", text.at_least(float(self.measured_change.max()))),
        ]
        for name, radii in self.radii.items():
            rows.append((f"median certified radius, {name}", text.number(float(np.median(radii)))))
        title = f"compressed - dense, norm {norm_name(self.dense.norm)}, delta {self.dense.delta:g}"
        return text.table(rows, (title, "value"))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with ``schema_version``."""
        return {
            "schema_version": SCHEMA_VERSION,
            "dense": self.dense.to_dict(),
            "compressed": self.compressed.to_dict(),
            "changes": self.changes,
            "output_change_bound": self.output_change_bound.to_dict(),
            "output_change": [text.json_number(v) for v in self.output_change],
            "measured_change": [text.json_number(v) for v in self.measured_change],
            "radii": {k: [text.json_number(v) for v in r] for k, r in self.radii.items()},
            "radius_method": self.radius_method,
        }

    def save_csv(self, path: str | Path) -> Path:
        """Per-sample table: index, label, certified radii, output change; written whole or not at all."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        names = list(self.radii)
        writer.writerow(["sample", "label", *(f"certified_radius_{n}" for n in names), "change_bound", "change_seen"])
        y = self.dense.problem.samples.y
        for i, label in enumerate(y):
            row = [int(self.dense.problem.indices[i]), int(label), *(repr(float(self.radii[n][i])) for n in names)]
            writer.writerow([*row, repr(float(self.output_change[i])), repr(float(self.measured_change[i]))])
        target = Path(path)
        part = target.with_name(target.name + ".part")
        part.write_text(buffer.getvalue(), encoding="utf-8")
        os.replace(part, target)
        return target


def output_change_bounds(network: Network | Graph, x: F64, delta: float, norm: float) -> F64:
    """Upper bounds of ``max_j |h_j(x + a)|``, ``‖a‖ <= δ``, for each sample: Lipschitz, and CROWN where installed.

    ``|h_j(x + a)| <= |h_j(x)| + δ L_j`` with the closed-form recursion's L_j (at most the product of norms; of what is
    no plain chain the product rule's, one L for all j); CROWN bounds ``h`` and ``−h`` as margins of a constant output.
    The smaller of both, sample by sample; ∞ where neither knows the network.
    """
    if not isinstance(network, Network) or not network.is_relu_chain:
        return _graph_change(as_graph(network), x, delta, norm)
    chain = network.chain
    if math.isinf(norm):
        single = [recursion_inf(chain.encoder, row)[0] for row in chain.head]
    else:
        single = rows_norm_2(forward(chain.encoder, np.ones(network.n_inputs)), chain.head)
    constants = np.array([min(v, product_bound(network, norm, j).value) for j, v in enumerate(single)])
    values = np.abs(network.forward(x))
    change: F64 = np.max(values + (constants * delta if delta else 0.0), axis=1)
    if find_spec("auto_LiRPA") is not None and find_spec("torch") is not None:
        from certbound.crown.margins import margins

        report = margins(
            two_sided(network), x, np.zeros(len(x)), delta=delta, norm=norm, method="CROWN", clip=_box_of(x)
        )
        # margins of output 0 are −(±h): the largest negated lower bound bounds |h| from above
        change = np.minimum(change, np.max(-report.lower[:, 1:], axis=1))
    return np.maximum(change, np.max(values, axis=1))


def _graph_change(graph: Graph, x: F64, delta: float, norm: float) -> F64:
    values = np.max(np.abs(graph.forward(x)), axis=1)
    change = np.full(len(x), math.inf if delta else 0.0) + values
    try:
        change = values + scaled(np.array(graph_product(graph, norm).value), delta)
    except UnsupportedLayerError as error:
        logger.info("no product bound of the difference: %s", error)
    if find_spec("auto_LiRPA") is not None and find_spec("torch") is not None:
        from certbound.crown.margins import margins

        n = graph.n_outputs
        # outputs (0, h, −h): margins of output 0 are −(±h)
        both = Linear(np.vstack([np.zeros((1, n)), np.eye(n), -np.eye(n)]), np.zeros(2 * n + 1))
        two = Graph((*graph.nodes, Node(both, (len(graph.nodes) - 1,))))
        try:
            report = margins(two, x, np.zeros(len(x)), delta=delta, norm=norm, method="CROWN", clip=_box_of(x))
            change = np.minimum(change, np.max(-report.lower[:, 1:], axis=1))
        except (UnsupportedLayerError, WorkLimitError) as error:
            logger.info("no CROWN bound of the difference: %s", error)
    return np.maximum(change, values)


def difference(f: Network | Graph, g: Network | Graph) -> Network | Graph:
    """``f − g``, bounded together: of two plain chains a Network, of any others a Graph.

    >>> f, g = as_graph([[[1.0]], [[2.0]]]), Network.from_weights([[[1.0]]])
    >>> difference(f, g).forward([[3.0], [-3.0]]).tolist()  # 2 max(x, 0) − x
    [[3.0], [3.0]]
    """
    if isinstance(f, Network) and isinstance(g, Network) and f.is_relu_chain and g.is_relu_chain:
        return difference_network(f, g)
    left, right = as_graph(f), as_graph(g)
    if (left.n_inputs, left.n_outputs) != (right.n_inputs, right.n_outputs):
        raise InputError(
            "compressed",
            got=f"{right.n_inputs} inputs and {right.n_outputs} outputs",
            needed=f"{left.n_inputs} inputs and {left.n_outputs} outputs, as the dense network has",
            fix="compare networks for the same task; merge structural pruning back to the full input",
        )
    nodes = list(left.nodes)
    last, first, flat = len(nodes) - 1, 0, (1, left.n_outputs)
    if left.input_shape != right.input_shape:
        nodes.append(Node(Reshape(right.shapes[0]), (0,)))
        first = len(nodes) - 1
    start = len(nodes) - 1
    nodes += [
        replace(node, inputs=tuple(j + start if j else first for j in node.inputs), name=f"compressed.{node.name}")
        for node in right.nodes[1:]
    ]
    ends = (last, len(nodes) - 1 if len(right.nodes) > 1 else first)
    nodes += [Node(Reshape(flat), (end,)) for end in ends]
    nodes.append(Node(Add(subtracts=True), (len(nodes) - 2, len(nodes) - 1)))
    return Graph(tuple(nodes))


def _box_of(x: F64) -> tuple[float, float] | None:
    return _BOX if x.min() >= _BOX[0] and x.max() <= _BOX[1] else None


def certified_radii(
    model: object,
    x: object,
    y: object,
    *,
    norm: object,
    method: RadiusMethod = "recursion",
    max_radius: float = 1.0,
) -> F64:
    """Certified radius of each sample: no perturbation smaller than it changes the (correct) class; 0 if it is wrong.

    ``recursion``: ``min_j margin_j / L_jy`` with the closed-form LipSDP constants (holds on all of R^n), or for what is
    no plain chain those of the product rule (0 where it refuses the network). ``CROWN``:
    bisection of ten steps in [0, max_radius], perturbed inputs kept in [0, 1] for ℓ∞; never below the radius of
    ``recursion`` (capped at max_radius).

    Raises
    ------
    InputError : bad arrays, norm, method or radius. MissingDependencyError : CROWN without auto_LiRPA.

    >>> identity = [[[1.0, 0.0], [0.0, 1.0]]]
    >>> certified_radii(identity, [[0.75, 0.25]], [0], norm="inf").round(9).tolist()  # 0.5 / ‖(1, −1)‖_1
    [0.25]
    """
    samples = as_float64(x, "x")
    network = classifier(model, samples)
    flat = network.flat_inputs(samples)
    labels = as_labels(y, len(flat), max(2, network.n_outputs))
    p = parse_norm(norm)
    top = parse_delta(max_radius, "max_radius")
    if method not in ("recursion", "CROWN"):
        raise InputError("method", got=repr(method), needed="'recursion' or 'CROWN'", fix="CROWN is tighter and slower")
    clean = network_margins(network, flat, labels)
    if isinstance(network, Network) and network.is_relu_chain:
        constants, _ = margin_constants(network, p, "closed-form")
    else:
        constants = _or_infinite(network, p)
    per_class = constants[:, labels].T  # (samples, classes)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(per_class > 0, clean / per_class, np.where(clean > 0, math.inf, -math.inf))
    rows = np.arange(len(labels))
    ratio[rows, labels] = math.inf
    # at the radius itself the margin may be 0: one float inwards
    radii = np.maximum(ratio.min(axis=1), 0.0)
    radii = np.where(np.isinf(radii), radii, np.nextafter(radii, 0.0))
    if method == "CROWN":
        if find_spec("auto_LiRPA") is None or find_spec("torch") is None:
            raise MissingDependencyError("auto-lirpa", purpose="certified radii by CROWN", command=_INSTALL)
        radii = np.minimum(radii, top)
        radii = np.maximum(radii, _bisect(network, flat, labels, p, top, np.all(clean > 0, axis=1)))
    return radii


def _or_infinite(network: Network | Graph, norm: float) -> F64:
    """Constants by the product rule; ∞ for a network that is not globally Lipschitz."""
    try:
        return product_constants(network, norm)
    except UnsupportedLayerError as error:
        logger.info("no product bound: %s", error)
        n = max(network.n_outputs, 2)
        return np.where(np.eye(n, dtype=bool), 0.0, math.inf)


_INSTALL = "pip install 'certbound[crown]' && pip install --no-deps auto-lirpa==0.3"


def _bisect(network: Network | Graph, x: F64, y: Any, norm: float, top: float, correct: Any) -> F64:
    """Largest radius of the bisection at which CROWN certifies; samples of equal radius are bounded together."""
    from certbound.crown.margins import margins

    low, high = np.zeros(len(y)), np.full(len(y), top)
    high[~correct] = 0.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        for radius in np.unique(middle[correct]):
            index = np.flatnonzero(correct & (middle == radius))
            proof = margins(network, x[index], y[index], delta=float(radius), norm=norm, clip=_box_of(x))
            low[index[proof.certified]] = radius
            high[index[~proof.certified]] = radius
    return low


def compare_models(
    dense: object,
    compressed: object,
    x: object,
    y: object,
    *,
    delta: object,
    norm: object,
    radius_method: RadiusMethod = "recursion",
    **options: Any,
) -> ModelComparison:
    """What compression changes: accuracies, gaps, certificates, and a certified bound of ``|f − g|`` over the balls.

    Parameters
    ----------
    dense, compressed : nn.Module, Network, Graph or weights, with the same inputs and outputs.
    x, y, delta, norm, options : as for :func:`certbound.compare`, which runs on both.
    radius_method : ``recursion`` or ``CROWN`` for the per-sample certified radii.

    Raises
    ------
    InputError : networks of different shape, bad arguments. LadderError : a broken bound, of either network or of the
    difference: the change seen at some point exceeds its bound.
    """
    samples = as_float64(x, "x")
    f, g = classifier(dense, samples), classifier(compressed, samples)
    gap_network = difference(f, g)
    radius, p = parse_delta(delta), parse_norm(norm)
    first = compare(f, x, y, delta=radius, norm=p, **options)
    second = compare(g, x, y, delta=radius, norm=p, **options)
    flat, labels = first.problem.samples.x, first.problem.samples.y
    change = output_change_bounds(gap_network, flat, radius, p)
    seen = np.max(np.abs(gap_network.forward(flat)), axis=1)
    for comparison in (first, second):
        for found in comparison.attacked.values():
            if found.points is not None:
                at = np.abs(f.forward(found.points) - g.forward(found.points))
                seen = np.maximum(seen, np.max(at, axis=1))
    excess = float(np.max(seen - change * (1 + 1e-9)))
    if excess > 1e-9:
        raise LadderError(f"|f - g| of {excess:.3g} above its certified bound was seen at a point of the ball")
    claim = Claim(
        Quantity.OUTPUT_CHANGE,
        p,
        math.inf,
        perturbation_domain(flat, labels, radius, p, _BOX),
        "all",
        gap_network.digest,
    )
    bound = Bound(
        float(change.max()),
        claim,
        Sense.UPPER,
        Rigor.NUMERICAL,
        "difference network: recursion and CROWN",
        "certbound theory, sections 4 and 5",
    )
    make: Callable[[Network | Graph], F64] = lambda net: certified_radii(  # noqa: E731  # two calls, one set of arguments
        net, flat, labels, norm=p, method=radius_method, max_radius=max(2 * radius, 1e-3)
    )
    radii = MappingProxyType({"dense": frozen(make(f)), "compressed": frozen(make(g))})
    return ModelComparison(first, second, frozen(change), frozen(seen), bound, radii, radius_method)
