"""Norms of a graph's linear maps, each proved once: for the rows of a layer report and for the network's bound.

The network's bound takes a convolution and the BatchNorm behind it (and factors before it) as one map D A C. Where that
has been proved, it bounds the bare layer too: ``‖A‖ <= ‖D A C‖ / (min|d| min|c|)``, which is as good as D and C are
even.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from certbound import text
from certbound.arrays import digest
from certbound.bound import Bound
from certbound.errors import UnsupportedLayerError
from certbound.graph import Graph
from certbound.lipschitz.graph_pieces import ConvPiece, Piece, Proof
from certbound.lipschitz.graph_product import GraphProductCertificate, LinearRun, Reader, Rule
from certbound.norms.convolution import conv_digest
from certbound.norms.operator import operator_norm_upper
from certbound.ops import BatchNorm, Conv, Scale, Shift
from certbound.rounding import down, up
from certbound.types import norm_name

_EVEN = 1.005  # a joined map's bound is taken for the bare layer if factors differ by no more than this,
_CLOSE = 1.02  # or if it is no further than this above the lower bound: what the fast tier gives itself


@dataclass(frozen=True)
class NetworkPart:
    """The bound of the whole network in one norm, or the reason why there is none."""

    norm: float
    bound: Bound | None
    reason: str = ""

    def __str__(self) -> str:
        if self.bound is None:
            return f"network, norm {norm_name(self.norm)}: no bound: {self.reason}"
        value = text.at_most(self.bound.value)
        return f"network, norm {norm_name(self.norm)}: Lipschitz constant {value} ({self.bound.method})"

    def to_dict(self) -> dict[str, object]:
        """JSON-ready."""
        return {
            "norm": text.json_number(self.norm),
            "bound": None if self.bound is None else self.bound.to_dict(),
            "reason": self.reason,
        }


@dataclass(eq=False)
class GraphNorms:
    """Proofs of the norms of a graph's linear maps, kept for as long as a report is made."""

    graph: Graph
    tier: str
    _proofs: dict[tuple[str, float], Proof] = field(default_factory=dict[tuple[str, float], Proof], init=False)

    @cached_property
    def reader(self) -> Reader:
        """How the graph is read into linear maps."""
        return Reader(self.graph)

    def prove(self, piece: Piece, norm: float) -> Proof:
        """An upper bound of a piece's norm, with what proves it; once."""
        key = (_name(piece), norm)
        if key not in self._proofs or not key[0]:
            self._proofs[key] = piece.prove(norm, self.tier)
        return self._proofs[key]

    def network(self, norm: float) -> NetworkPart:
        """:func:`certbound.lipschitz.graph_product.graph_product`, with the norms that are known already."""
        proofs: list[Proof] = []

        def ask(piece: Piece) -> float:
            proofs.append(self.prove(piece, norm))
            return proofs[-1].value

        try:
            value = Rule(self.graph, norm, ask).bound("all")
        except UnsupportedLayerError as error:
            return NetworkPart(norm, None, f"{error.argument}: {error.got}; needed {error.needed}")
        graph = self.graph
        certificate = GraphProductCertificate(graph.digest, norm, "all", value, graph.input_shape, tuple(proofs))
        return NetworkPart(norm, certificate.bound)

    def joined(self, index: int) -> LinearRun | None:
        """A convolution with the diagonal maps around it, as the network's bound takes it; None if there are none."""
        last, nodes = index, self.graph.nodes
        while True:
            readers = [i for i, node in enumerate(nodes) if last in node.inputs]
            if len(readers) != 1 or not isinstance(nodes[readers[0]].op, (BatchNorm, Scale, Shift)):
                break
            last = readers[0]
        run = self.reader.run(last)
        return None if run is None or (run.rows is None and run.columns is None) else run

    def joined_norms(self, run: LinearRun) -> tuple[float, float]:
        """Upper bounds (2, ∞) of the joined map."""
        piece = self.reader.piece(run)
        return self.prove(piece, 2.0).value, self.prove(piece, math.inf).value

    def upper(self, index: int, low: float) -> float:
        """Upper bound of the 2-norm of a bare convolution whose norm is at least ``low``."""
        node = self.graph.nodes[index]
        assert isinstance(node.op, Conv)
        shape = self.graph.shapes[node.inputs[0]][1:]
        run = self.joined(index)
        if run is None:
            return self.prove(ConvPiece(node.op, shape), 2.0).value
        factors = [f for f in (run.rows, run.columns) if f is not None]
        smallest = [float(np.min(f.low)) for f in factors]
        if min(smallest) > 0.0:
            above, spread = self.joined_norms(run)[0], 1.0
            for factor, least in zip(factors, smallest, strict=True):
                above = up(above / least)
                spread *= factor.largest / least
            if spread <= _EVEN or (self.tier == "fast" and above <= down(low * _CLOSE)):
                return above
        return operator_norm_upper(node.op, 2, shape, tier=self.tier).value


def _name(piece: Piece) -> str:
    """A digest by which a convolution is known again; empty for what nobody asks for twice."""
    if isinstance(piece, ConvPiece):
        error = "" if piece.error is None else digest(piece.error)
        return f"{conv_digest(piece.conv, piece.input_shape)} {error}"
    return ""


__all__ = ["GraphNorms", "NetworkPart"]
