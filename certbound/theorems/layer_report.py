# pyright: reportUnnecessaryIsInstance=false, reportUnnecessaryCast=false
"""The layer report of a real model: Theorem 3.1, true operator norms and alignment, one row a weight.

Every parameter with two or more dimensions has a row: of Linear layers (attention's ``in_proj_weight`` is one), of
convolutions in two readings (see :mod:`certbound.theorems.layer_numbers`), and, without numbers, of what is added or
multiplied elementwise (position embeddings, class tokens): those are no operators.
"""

from __future__ import annotations

import csv
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

from certbound import text
from certbound.arrays import is_torch
from certbound.compressibility import Dispersion, check_dispersion
from certbound.errors import InputError, LadderError
from certbound.graph import Graph, Node, as_graph
from certbound.lipschitz.alignment import alignment_pair
from certbound.norms.dense import check_rigor
from certbound.ops import Constant, Conv, Linear, Pointwise, Scale, Shape, Shift
from certbound.progress import track
from certbound.theorems.layer_network import GraphNorms, NetworkPart
from certbound.theorems.layer_numbers import Numbers
from certbound.theorems.layer_rows import (
    READINGS,
    Alignment,
    LayerRow,
    Reading,
    Settings,
    conv_row,
    linear_row,
)
from certbound.types import SCHEMA_VERSION, Rigor

Weights = Literal["random", "pretrained"]

ALIGNMENT_SIZE = 2**30
"""Alignment of a pair is computed up to this product of outputs, hidden neurons and inputs (some seconds)."""

_PATTERNS = 2**12  # activation patterns of a pair that are enumerated, as in lipschitz_alignment

ADDITIVE = "additive: no operator"
ELEMENTWISE = "elementwise factor: a diagonal, no matrix"
UNREAD = "not read by this forward"


@dataclass(frozen=True)
class Coverage:
    """How much of the parameters with two or more dimensions the rows hold, counted in numbers.

    ``parameters``: how many such parameters the model has, ``numbers``: their entries; of these ``operators`` belong to
    a Linear or a convolution, ``additive`` are added or multiplied elementwise, ``unread`` are not read by the forward
    at all (named in ``missing``): those have a row, but count as not covered.
    """

    parameters: int
    numbers: int
    operators: int
    additive: int
    unread: int
    missing: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        """Covered part: 1.0 only where nothing is missing."""
        return 1.0 if self.numbers == 0 else (self.operators + self.additive) / self.numbers

    def __str__(self) -> str:
        words = (
            f"{self.parameters} parameters of two or more dimensions with {self.numbers:,} numbers: "
            f"{self.operators:,} in operators, {self.additive:,} additive or elementwise, {self.unread:,} not read; "
            f"covered {self.share:.4%}"
        )
        return words + (f"\nnot read: {', '.join(self.missing)}" if self.missing else "")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        names = ("parameters", "numbers", "operators", "additive", "unread", "share")
        return {**{n: getattr(self, n) for n in names}, "missing": list(self.missing)}


@dataclass(frozen=True)
class LayerReport:
    """See :func:`layer_report`."""

    rows: tuple[LayerRow, ...]
    coverage: Coverage
    network: tuple[NetworkPart, ...]
    input_shape: Shape
    subject: str
    tier: str
    rigor: Rigor
    dispersion: Dispersion
    share: float | None
    weights: Weights | None
    n_parameters: int
    seconds: float

    @property
    def initialised_randomly(self) -> bool | None:
        """What the caller said of the weights; None if nothing. Nothing is guessed from the numbers."""
        return None if self.weights is None else self.weights == "random"

    @property
    def operator_rows(self) -> tuple[LayerRow, ...]:
        """Rows with numbers: Linear layers and convolutions."""
        return tuple(row for row in self.rows if row.operator is not None)

    def __str__(self) -> str:
        said = "nothing was said" if self.weights is None else f"as given by the caller: {_WEIGHTS[self.weights]}"
        at = "k = 1" if self.share is None else f"k = {self.share:g} of the singular values and of the rows"
        head = [
            f"Layer report, input {_shape(self.input_shape)}, {self.n_parameters:,} parameters; weights: {said}",
            f"Theorem 3.1 (derived, {self.dispersion}, {at}); tier {self.tier}; {self.seconds:.1f} s",
        ]
        columns = ("layer", "shape", "kind", "reading", "part", "norm", "k", "epsilon", "beta", "bound", "sharp",
                   "/ norm", "lower", "operator/kernel", "with BatchNorm")  # fmt: skip
        lines = [line for row in self.rows for line in _lines(row)]
        used = {r.name for row in self.rows for r in row.readings}
        notes = [f"{name}: {words}" for name, words in READINGS.items() if name in used]
        if any(not n.exact for row in self.rows for r in row.readings for n in (r.spectral, r.neuron)):
            notes.append("epsilon with >=: a lower bound of the tail ratio enters, which Theorem 3.1 allows")
        notes += [f"alignment, {row.name}: {_alignment(row)}" for row in self.rows if _has_alignment(row)]
        reasons = Counter(row.alignment.note for row in self.rows if row.alignment and not _has_alignment(row))
        notes += [f"alignment not given for {count} weights: {reason}" for reason, count in reasons.items()]
        notes += [str(part) for part in self.network]
        return "\n".join([*head, text.table(lines, columns), *notes, str(self.coverage)])

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with ``schema_version``."""
        return {
            "schema_version": SCHEMA_VERSION,
            "input_shape": list(self.input_shape),
            "subject": self.subject,
            "tier": self.tier,
            "rigor": str(self.rigor),
            "dispersion": self.dispersion,
            "share": self.share,
            "weights": self.weights,
            "initialised_randomly": self.initialised_randomly,
            "n_parameters": self.n_parameters,
            "seconds": self.seconds,
            "coverage": self.coverage.to_dict(),
            "network": [part.to_dict() for part in self.network],
            "rows": [row.to_dict() for row in self.rows],
        }

    def records(self) -> list[dict[str, Any]]:
        """One flat record a row, reading and part, for tables and CSV; rows without numbers give one record."""
        return [record for row in self.rows for record in _records(row)]

    def to_csv(self, path: str | Path) -> Path:
        """Write :meth:`records` and return the path."""
        target = Path(path)
        records = self.records()
        with target.open("w", newline="", encoding="utf-8") as file:
            writer: csv.DictWriter[str] = csv.DictWriter(file, list(_FIELDS))
            writer.writeheader()
            writer.writerows(records)
        return target


_WEIGHTS: dict[Weights, str] = {"random": "random initialisation", "pretrained": "pretrained"}


# ---------------------------------------------------------------- printing


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _norm_of(reading: Reading, part: Numbers) -> str:
    low, high = reading.norm_2 if part.part == "spectral" else reading.norm_inf
    # a closed form computed twice agrees to the last digits
    return text.number(high) if high <= low * (1.0 + 1e-9) else f"{text.at_least(low)[3:]}..{text.at_most(high)[3:]}"


def _lines(row: LayerRow) -> list[tuple[str, ...]]:
    """One line a reading and part; what the layer is stands in the first."""
    head = (row.name, _shape(row.shape), row.kind)
    if row.operator is None:
        return [(*head, *("-",) * 12)]
    lines: list[tuple[str, ...]] = []
    for reading in row.readings:
        name = "filters (no guarantee)" if reading.name == "filters" else reading.name
        for part in (reading.spectral, reading.neuron):
            epsilon = text.number(part.epsilon) if part.exact else text.at_least(part.epsilon)
            factor, joined = (None, None) if reading.name == "filters" else _extras(row, part)
            first = ("", "", "") if lines else head
            cells = (name, part.part, _norm_of(reading, part), str(part.k), epsilon, text.number(part.beta))
            bounds = (_above(part.bound), _above(part.sharp), text.number(part.slack), text.at_least(part.lower)[3:])
            lines.append((*first, *cells, *bounds, text.number(factor), _above(joined)))
    return lines


def _above(value: float | None) -> str:
    """An upper bound, rounded up."""
    return "-" if value is None else text.at_most(value)[3:]


def _extras(row: LayerRow, part: Numbers) -> tuple[float | None, float | None]:
    """Factor operator / kernel, and the norm with the BatchNorm behind."""
    spectral = part.part == "spectral"
    factor = row.factor_2 if spectral else row.factor_inf
    joined = None if row.with_batchnorm is None else row.with_batchnorm[0 if spectral else 1]
    return factor, joined


def _has_alignment(row: LayerRow) -> bool:
    return row.alignment is not None and (row.alignment.two is not None or row.alignment.inf is not None)


def _alignment(row: LayerRow) -> str:
    assert row.alignment is not None
    return f"A_2 = {text.number(row.alignment.two)}, A_inf = {text.number(row.alignment.inf)} ({row.alignment.note})"


_FIELDS: tuple[str, ...] = (
    "layer", "parameters", "shape", "kind", "input_shape", "reading", "guaranteed", "part", "norm_lower", "norm_upper",
    "frobenius", "k", "epsilon", "epsilon_exact", "beta", "bound", "sharp", "lower", "slack", "vacuous",
    "operator_over_kernel", "with_batchnorm", "alignment",
)  # fmt: skip


def _records(row: LayerRow) -> list[dict[str, Any]]:
    base: dict[str, Any] = {
        "layer": row.name, "parameters": " ".join(row.parameters), "shape": _shape(row.shape), "kind": row.kind,
        "input_shape": _shape(row.input_shape),
    }  # fmt: skip
    if row.operator is None:
        return [base]
    found: list[dict[str, Any]] = []
    for reading in row.readings:
        for part in (reading.spectral, reading.neuron):
            low, high = reading.norm_2 if part.part == "spectral" else reading.norm_inf
            own = reading.name != "filters"
            factor, joined = _extras(row, part) if own else (None, None)
            aligned = None if row.alignment is None else getattr(row.alignment, "two" if part.k_row is None else "inf")
            found.append(
                base | {
                    "reading": reading.name, "guaranteed": reading.guaranteed, "part": part.part, "norm_lower": low,
                    "norm_upper": high, "frobenius": reading.frobenius, "k": part.k, "epsilon": part.epsilon,
                    "epsilon_exact": part.exact, "beta": part.beta, "bound": part.bound, "sharp": part.sharp,
                    "lower": part.lower, "slack": part.slack, "vacuous": part.vacuous,
                    "operator_over_kernel": factor, "with_batchnorm": joined, "alignment": aligned if own else None,
                }
            )  # fmt: skip
    return found


# ---------------------------------------------------------------- walking the graph


@dataclass(frozen=True)
class _Parameters:
    """Shapes of the model's parameters with two or more dimensions, by name."""

    shapes: Mapping[str, tuple[int, ...]]
    n_all: int

    @classmethod
    def of(cls, model: object, graph: Graph) -> _Parameters:
        """Of a module those that it names; of a graph those that its operations hold."""
        if is_torch(model, "Module"):
            named = [(str(name), p) for name, p in cast("Any", model).named_parameters()]
            return cls({n: tuple(p.shape) for n, p in named if p.ndim >= 2}, sum(int(p.numel()) for _, p in named))
        shapes: dict[str, tuple[int, ...]] = {}
        total = 0
        for i, node in enumerate(graph.nodes):
            arrays = node.op.parts()[1:]
            total += sum(a.size for a in arrays)
            if isinstance(node.op, (Linear, Conv)):
                shapes[_weight_name(node, i)] = tuple(node.op.weight.shape)
            elif (value := _constant(node)) is not None and value.ndim >= 2:
                shapes[_weight_name(node, i)] = tuple(value.shape)
        return cls(shapes, total)

    def read_by(self, node: Node, index: int) -> tuple[str, ...]:
        """Those that a node reads; a graph made by hand names none: then the node's own name stands."""
        known = tuple(name for name in node.parameters if name in self.shapes)
        own = _weight_name(node, index)
        return known or ((own,) if own in self.shapes else ())


def _weight_name(node: Node, index: int) -> str:
    return node.parameters[0] if node.parameters else f"{node.name or f'nodes[{index}]'}.weight"


def _constant(node: Node) -> Any:
    op = node.op
    return op.value if isinstance(op, Constant) else op.offset if isinstance(op, Shift) else (
        op.factor if isinstance(op, Scale) else None)  # fmt: skip


def _row(norms: GraphNorms, index: int, parameters: tuple[str, ...], settings: Settings) -> LayerRow:
    """The row of a Linear or a Conv."""
    start, graph = time.perf_counter(), norms.graph
    node = graph.nodes[index]
    shape = graph.shapes[node.inputs[0]]
    # a Linear takes a vector, or several, as they come: (4,) or (8, 4)
    inputs = shape[1:] if isinstance(node.op, Conv) or (shape[0] == 1 and len(shape) > 1) else shape
    name = node.name or (parameters[0] if parameters else f"nodes[{index}]")
    if isinstance(node.op, Conv):
        run = norms.joined(index)
        joined = None if run is None else norms.joined_norms(run)
        row = conv_row(
            node.op, parameters, name, inputs, settings, joined=joined, upper=lambda low: norms.upper(index, low)
        )
        aligned = Alignment(None, None, "not defined: theory's pairs are matrices, this is a convolution")
    else:
        row = linear_row(cast("Linear", node.op), parameters, name, inputs, settings)
        aligned = _aligned(graph, index)
    _check_ladder(row)
    return replace(row, alignment=aligned, seconds=time.perf_counter() - start)


_TOLERANCE = 1e-6
"""Relative allowance of the ladder: singular values from Gram matrices, and sums of many of them."""


def _check_ladder(row: LayerRow) -> None:
    """In every reading ``lower <= norm <= sharp <= bound``; a norm known from both sides counts with its nearer end.

    Raises LadderError: somebody's bound is wrong.
    """
    for reading in row.readings:
        for part, (low, high) in ((reading.spectral, reading.norm_2), (reading.neuron, reading.norm_inf)):
            pairs = (("lower bound", part.lower, "norm", high), ("norm", low, "sharp bound", part.sharp),
                     ("sharp bound", part.sharp, "bound", part.bound))  # fmt: skip
            for name, smaller, other, larger in pairs:
                if not smaller <= larger * (1.0 + _TOLERANCE):
                    where = f"{row.name}, {reading.name}, {part.part}"
                    raise LadderError(f"{where}: the {name} {smaller!r} exceeds the {other} {larger!r}")


def _aligned(graph: Graph, index: int) -> Alignment:
    """Alignment of a Linear with the Linear before it, if a ReLU and nothing else is between them."""
    node = graph.nodes[index]
    between = graph.nodes[node.inputs[0]]
    if not (isinstance(between.op, Pointwise) and between.op.activation.name == "relu"):
        return Alignment(None, None, f"not defined: reads {_article(between.op.kind)}, not a ReLU after a Linear")
    first = graph.nodes[between.inputs[0]]
    if not isinstance(first.op, Linear):
        return Alignment(None, None, f"not defined: the ReLU before it reads {_article(first.op.kind)}, not a Linear")
    B, A = cast("Linear", node.op).weight, first.op.weight
    if B.shape[0] * A.size > ALIGNMENT_SIZE:
        return Alignment(
            None, None,
            f"not computed: outputs x hidden x inputs above {ALIGNMENT_SIZE:,}, the size up to which it takes seconds",
        )  # fmt: skip
    two, inf = (alignment_pair(B, A, norm=p, max_patterns=_PATTERNS) for p in (2.0, math.inf))
    exact = "enumerated" if two.exact and inf.exact else "upper bounds"
    return Alignment(two.value, inf.value, f"with {first.name or 'the Linear before'}, {exact}")


def _article(kind: str) -> str:
    return f"{'an' if kind[:1].lower() in 'aeiou' else 'a'} {kind}"


def _plain_kind(node: Node) -> str:
    """What a parameter is that is no Linear's and no convolution's."""
    return ADDITIVE if isinstance(node.op, (Constant, Shift)) else ELEMENTWISE


def layer_report(
    model: object,
    *,
    input_shape: tuple[int, ...] | None = None,
    tier: str = "fast",
    rigor: Rigor | str = Rigor.NUMERICAL,
    dispersion: Dispersion = "kth",
    share: float | None = None,
    weights: str | None = None,
    network: bool = True,
    progress: bool = False,
) -> LayerReport:
    """Theorem 3.1, operator norms and alignment of every weight of a real model.

    Parameters
    ----------
    model : ``nn.Module`` (run in eval mode), :class:`certbound.graph.Graph`, or what else :func:`certbound.as_graph`
        takes.
    input_shape : of one sample, without the batch axis: (3, 224, 224). Needed for modules: a convolution's norm depends
        on it.
    tier : of convolutions' 2-norms: ``"fast"`` or ``"tight"`` (<= 1 % where it can, minutes a model).
    rigor : of matrices: ``"numerical"``, or ``"rigorous"``: norms and Theorem 3.1 with every rounding enclosed (an SVD
        with factors each: slow above 2000 x 2000). Norms of convolutions are always rigorous, Theorem 3.1 on their
        operators always numerical.
    dispersion : the reading of β, ``"kth"`` (the paper's) or ``"mean"``.
    share : k = ⌈share · size⌉ singular values and rows; None: k = 1, which has the smallest bound (with ``"mean"``
        every k has the same). One-sided rows keep k = 1.
    weights : ``"random"``, ``"pretrained"`` or None: what you say of the weights, printed as such; nothing is guessed.
    network : False leaves the network's bound out.
    progress : a bar on stderr.

    Returns
    -------
    A frozen :class:`LayerReport`: ``.rows`` (one a weight with two or more dimensions; one a use, where a weight is
    used several times), ``.coverage`` (exact), ``.network`` (bounds in ℓ2 and ℓ∞, or the reason why there is none). It
    prints as a table.

    Raises
    ------
    InputError : unusable arguments. UnsupportedLayerError : a layer that certbound does not model, by its path.
    LadderError : a number on the wrong side of another.

    >>> from certbound.activations import Activation
    >>> relu = Node(Pointwise(Activation("relu")), (1,))
    >>> nodes = (Linear([[1.0], [-1.0]]), relu.op, Linear([[1.0, 1.0]]))
    >>> from certbound.ops import Input
    >>> chain = Graph((Node(Input((1, 1))), Node(nodes[0], (0,), "a"), relu, Node(nodes[2], (2,), "b")))  # |x|
    >>> report = layer_report(chain, network=False)
    >>> [row.name for row in report.rows], report.rows[1].alignment.inf, report.coverage.share
    (['a', 'b'], 0.5, 1.0)
    """
    start = time.perf_counter()
    if tier not in ("fast", "tight"):
        raise InputError("tier", got=repr(tier), needed="'fast' or 'tight'", fix="pass tier='tight' for gaps below 1 %")
    if weights is not None and weights not in _WEIGHTS:
        raise InputError(
            "weights", got=repr(weights), needed="'random', 'pretrained' or None", fix="say what you know of them"
        )
    if share is not None and not (isinstance(share, (int, float)) and 0.0 < share <= 1.0):
        raise InputError("share", got=repr(share), needed="a number in (0, 1], or None", fix="0.1 keeps a tenth")
    settings = Settings(tier, check_rigor(rigor), check_dispersion(dispersion), share)
    graph = as_graph(model, input_shape=input_shape)
    known, norms = _Parameters.of(model, graph), GraphNorms(graph, tier)
    # first: the rows then take the norms from there
    parts = tuple(norms.network(p) for p in (2.0, math.inf)) if network else ()
    rows, seen, listed = list[LayerRow](), set[str](), set[str]()
    for index in track(range(len(graph.nodes)), "layers", enabled=progress):
        node = graph.nodes[index]
        names = known.read_by(node, index)
        if isinstance(node.op, (Linear, Conv)):
            rows.append(_row(norms, index, names, settings))
            seen.update(names)
        else:
            for name in names:
                if name not in listed:
                    rows.append(LayerRow(name, (name,), known.shapes[name], _plain_kind(node)))
                    listed.add(name)
    listed -= seen
    missing = tuple(name for name in known.shapes if name not in seen | listed)
    rows += [LayerRow(name, (name,), known.shapes[name], UNREAD) for name in missing]
    if not rows:
        raise InputError(
            "model", got="a model without weights of two or more dimensions", needed="at least one", fix="check it"
        )

    def count(names: set[str]) -> int:
        return sum(math.prod(known.shapes[name]) for name in names)

    coverage = Coverage(
        len(known.shapes), count(set(known.shapes)), count(seen), count(listed), count(set(missing)), missing
    )
    return LayerReport(
        tuple(rows), coverage, parts, graph.input_shape, graph.digest, settings.tier, settings.rigor,
        settings.dispersion, share, cast("Weights | None", weights), known.n_all, time.perf_counter() - start,
    )  # fmt: skip


__all__ = ["ALIGNMENT_SIZE", "Coverage", "LayerReport", "NetworkPart", "layer_report"]
