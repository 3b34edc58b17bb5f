"""auto_LiRPA on graphs: convolutions, residual sums, pooling. Interval bounds first, then CROWN a chunk at a time.

auto_LiRPA could find the bounds of the neurons itself, but not these: it would form one identity matrix for all neurons
of a convolution (a 32 GiB one in ResNet-18's first layer), or use its "patches", which are wrong for grouped kernels
and crash on dilated ones; and the bounds of a sample would depend on the batch. So each layer's unstable neurons are
bounded here, some at a time, and handed over as its intermediate bounds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from certbound.crown.compat import bounded_module, exact_l2_convolutions
from certbound.crown.lowering import lowered
from certbound.errors import InputError
from certbound.graph import Graph
from certbound.io.graph_to_torch import graph_to_torch
from certbound.io.to_torch import import_torch, two_class
from certbound.ops import Conv, Linear

WORK_LIMIT = 2e12
"""Operations that bounding the neurons by CROWN may take in one call: some ten minutes of one core."""

_CHUNK_NUMBERS = 2**20
"""Numbers (float64) that the linear bounds of one chunk hold in all layers together: what is in the cache is fast."""

_JOINT_NUMBERS = 2**18
"""Slopes up to which α-CROWN optimises the bounds of the neurons as well as those of the margins."""

MATRIX = {"conv_mode": "matrix", "sparse_intermediate_bounds": False, "verbosity": 0}
"""Bound options: no "patches", which are wrong for grouped kernels."""


class WorkLimitError(InputError):
    """A method that would take longer, on this network, than anybody waits."""


@dataclass(frozen=True)
class Cost:
    """Of one linear bound, backwards through the whole graph: operations and numbers held."""

    operations: float
    numbers: int

    @classmethod
    def of(cls, graph: Graph) -> Cost:
        """Two passes (lower and upper bound), a multiplication and an addition for each weight and place.

        >>> from certbound.graph import Node
        >>> from certbound.ops import Input
        >>> Cost.of(Graph((Node(Input((1, 3))), Node(Linear([[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]]), (0,)))))
        Cost(operations=24.0, numbers=5)
        """
        sizes = [math.prod(s) for s in graph.shapes]
        operations = 0.0
        for node, shape in zip(graph.nodes, graph.shapes, strict=True):
            if isinstance(node.op, Conv):
                operations += 4.0 * node.op.weight.size * math.prod(shape[2:])
            elif isinstance(node.op, Linear):
                operations += 4.0 * node.op.weight.size
        return cls(operations, sum(sizes))


class GraphProblem:
    """A graph as the module that auto_LiRPA bounds, and the bounds of its neurons."""

    def __init__(self, graph: Graph, method: str, samples: int) -> None:
        self.torch, self.method, self.samples = import_torch("margins"), method, samples
        self.plain = lowered(graph, native_max_pool=method == "IBP")
        self.cost = Cost.of(self.plain)
        self.module: Any = graph_to_torch(self.plain)
        if graph.n_outputs == 1:
            self.module = two_class(self.module)
        self.example = self.torch.zeros((1, *graph.input_shape), dtype=self.torch.float64)

    def bounded(self, options: dict[str, Any] | None = None) -> Any:
        """A new bounded module."""
        made = bounded_module(self.module, self.example, {**MATRIX, **(options or {})})
        exact_l2_convolutions(made)
        # it asks for the dtype of the first one, by an override that a current torch calls with another argument
        made.parameters = lambda recurse=True: iter([self.example])
        return made

    def optimises_neurons(self, samples: int) -> bool:
        """Whether α-CROWN optimises the neurons' bounds too: one slope for each pair of neurons of two layers."""
        sizes = [math.prod(shape) for node, shape in zip(self.plain.nodes, self.plain.shapes, strict=True)
                 if node.op.kind == "relu"]  # fmt: skip
        return samples * sum(sizes) ** 2 <= _JOINT_NUMBERS

    def intermediate(self, bounded: Any, inputs: tuple[Any]) -> dict[str, list[Any]]:
        """Bounds of what every ReLU gets, by CROWN where IBP does not show it to be stable, sample by sample."""
        torch = self.torch
        bounded.compute_bounds(x=inputs, method="IBP")
        layers = list(_pre_activations(bounded))
        intervals = {pre.name: (pre.lower.detach(), pre.upper.detach()) for pre in layers}
        self._refuse_too_much(intervals)
        found: dict[str, list[Any]] = {}
        for pre in layers:
            low, high = (bound.clone() for bound in intervals[pre.name])
            batch = len(low)
            fixed = ((low >= 0) | (high <= 0)).reshape(batch, -1)
            flat_low, flat_high = low.reshape(batch, -1), high.reshape(batch, -1)
            exact = type(pre.inputs[0]).__name__ == "BoundInput"  # intervals of an affine map of the ball
            where = torch.nonzero(~fixed.all(dim=0)).reshape(-1)
            rows_at_once = max(4, _CHUNK_NUMBERS // (batch * self.cost.numbers))
            for part in () if exact or not len(where) else where.split(rows_at_once):
                rows = torch.zeros((batch, len(part), flat_low.shape[1]), dtype=low.dtype)
                rows[:, torch.arange(len(part)), part] = 1.0
                below, above = bounded.compute_bounds(
                    x=inputs, C=rows.reshape(batch, len(part), *low.shape[1:]), method="CROWN",
                    final_node_name=pre.name, intermediate_layer_bounds=dict(found),
                )
                keep = fixed[:, part]
                flat_low[:, part] = torch.where(keep, flat_low[:, part], below.detach().reshape(batch, -1))
                flat_high[:, part] = torch.where(keep, flat_high[:, part], above.detach().reshape(batch, -1))
            found[pre.name] = [flat_low.reshape(low.shape), flat_high.reshape(low.shape)]
        return found

    def _refuse_too_much(self, intervals: dict[str, tuple[Any, Any]]) -> None:
        layers = [int(((low < 0) & (high > 0)).any(dim=0).sum()) for low, high in intervals.values()]
        # each goes back through what lies before it: half the graph on average
        work = self.samples * sum(layers) * self.cost.operations / 2
        if work > WORK_LIMIT:
            raise WorkLimitError(
                "method",
                got=f"{self.method!r} with {sum(layers)} unstable neurons a sample, about {work:.1g} operations in all",
                needed=f"at most {WORK_LIMIT:.1g}",
                fix="CROWN-IBP bounds the neurons by intervals and takes seconds; or fewer samples, a smaller delta",
            )


def _pre_activations(bounded: Any) -> Iterator[Any]:
    """The nodes before the ReLUs, in the order of execution, each once."""
    seen: set[str] = set()
    for node in bounded.modules():
        if type(node).__name__ == "BoundRelu" and node.inputs[0].name not in seen:
            seen.add(node.inputs[0].name)
            yield node.inputs[0]


__all__ = ["MATRIX", "WORK_LIMIT", "Cost", "GraphProblem", "WorkLimitError"]
