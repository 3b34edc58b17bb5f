"""ONNX files as a :class:`~certbound.graph.Graph`: read with limits, never executed, checked by a round trip.

The onnx package parses the bytes (after :mod:`certbound.io.onnx_wire` has walked them) and evaluates single operators
for the check; its checker and its shape inference, which are C++ and trust their input, are not used: shapes are
those of the graph, which is built for one sample.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from certbound.errors import CertboundError, InputError, UnsupportedLayerError
from certbound.graph import Graph
from certbound.io.files import existing_file, listed
from certbound.io.graph_builder import parse_input_shape
from certbound.io.onnx_check import Traced, check_round_trip
from certbound.io.onnx_constants import fold
from certbound.io.onnx_ops import HANDLERS
from certbound.io.onnx_tensors import FLOATS, TensorReader
from certbound.io.onnx_values import (
    Const,
    LimitedBuilder,
    OnnxNode,
    Pending,
    PendingQuotient,
    Value,
    attributes_of,
    label,
)
from certbound.io.onnx_wire import OnnxLimits, import_onnx, read_model, short
from certbound.ops import Shape

logger = logging.getLogger(__name__)

_FIRST_OPSET = 7
_DOMAINS = ("", "ai.onnx")


def load_onnx(
    path: str | os.PathLike[str],
    *,
    input_shape: Sequence[int] | None = None,
    limits: OnnxLimits | None = None,
    argument: str = "model",
) -> Graph:
    """The network in an ONNX file, in exact arithmetic: every stored number as it is, no rounding to float32 between.

    The file is read with limits and nothing in it is run. External data is read from plain files inside the model's
    folder only. After reading, every node is evaluated once more on a random input, in float64, by the onnx package's
    own reference implementation, and compared.

    Operators (opsets 7 to the onnx package's newest): convolution, Gemm, MatMul, BatchNormalization and
    LayerNormalization, pooling, ReduceMean and ReduceSum, Softmax, Attention without a cache; Relu, LeakyRelu, PRelu
    with one slope, Tanh, Sigmoid, HardSigmoid, Gelu, Swish, Clip; sums, products, quotients by constants; everything
    that moves numbers by constant indices; anything on constants alone; and GELU, SiLU and LayerNorm written out in
    parts (:mod:`certbound.io.onnx_patterns`). A Cast between floats is the identity, as in exact arithmetic it is.

    Parameters
    ----------
    path : a ``.onnx`` file with one float input, whose first axis is the batch (of 1, or of any size: one sample is
        taken), and one output.
    input_shape : shape of one sample, without the batch axis; needed where the file leaves axes open.
    limits : what the file may ask for.

    Raises
    ------
    InputError : no such file, a damaged one, one beyond the limits, a shape that does not fit, a failed round trip.
    UnsupportedLayerError : an operator that certbound does not model, named with its node.
    MissingDependencyError : the onnx package is not installed.
    """
    file = existing_file(path, argument)
    limits = limits or OnnxLimits()
    model = read_model(file, limits, argument)
    reader = TensorReader(file.absolute().parent, limits, argument)
    try:
        reading = _Reading(model, reader, argument, None if input_shape is None else parse_input_shape(input_shape))
        graph, traced = reading.graph()
        check_round_trip(traced, graph, argument)
    except CertboundError:
        raise
    except (MemoryError, RecursionError) as error:
        raise InputError(
            argument, got=f"{file.name}, which asks for too much ({type(error).__name__})", needed="a smaller model",
            fix="check where the file comes from",
        ) from error  # fmt: skip
    logger.info("%s: %s, %d operators", file.name, graph, len(model.graph.node))
    return graph


@dataclass
class _Reading:
    """One file on its way to a graph."""

    model: Any
    reader: TensorReader
    argument: str
    input_shape: Shape | None
    values: dict[str, Value] = field(default_factory=dict[str, Value])
    absent: dict[str, OnnxNode] = field(default_factory=dict[str, OnnxNode])

    def graph(self) -> tuple[Graph, Traced]:
        """Read everything."""
        opset = self.check_header()
        proto = self.model.graph
        for tensor in proto.initializer:
            if not tensor.name or tensor.name in self.values:
                raise self.bad(f"the initializer {short(tensor.name)} twice", "different names")
            self.values[tensor.name] = Const(self.reader.read(tensor, tensor.name), (tensor.name,))
        name, shape = self.input()
        builder = LimitedBuilder(shape, limits=self.reader.limits)
        self.values[name] = 0
        traced = Traced(builder, opset, self.values, name)
        for node in proto.node:
            traced.nodes.append(self.read_node(node, opset, builder))
        last = self.output()
        self.check_complete(builder, last, proto.node)
        traced.output = last
        try:
            return builder.finish(last), traced
        except InputError as error:
            raise InputError(self.argument, got=error.got, needed=error.needed, fix=error.fix) from error

    def bad(self, got: str, needed: str, fix: str = "write the file again") -> InputError:
        return InputError(self.argument, got=got, needed=needed, fix=fix)

    # -- before the nodes ---------------------------------------------------------------------------------------------

    def check_header(self) -> int:
        """The opset, where the file has one graph and nothing that would be code."""
        model, limits = self.model, self.reader.limits
        if not model.HasField("graph"):
            raise self.bad("a file without a graph", "an ONNX model")
        for got, found in (
            ("functions", [f.name for f in model.functions]),
            ("training information", [str(i) for i in range(len(model.training_info))]),
            ("sparse initializers", [t.values.name for t in model.graph.sparse_initializer]),
        ):
            if found:
                raise UnsupportedLayerError(
                    self.argument, got=f"an ONNX file with {got} ({short(listed(found))})",
                    needed="operators of ONNX and dense weights", fix="inline the functions, or export the model anew",
                )  # fmt: skip
        if len(model.graph.node) > limits.nodes:
            raise self.bad(f"{len(model.graph.node):,} nodes", f"at most {limits.nodes:,}", "pass limits=OnnxLimits(…)")
        opsets = [o.version for o in model.opset_import if o.domain in _DOMAINS]
        newest = int(import_onnx().defs.onnx_opset_version())
        if len(opsets) != 1 or not _FIRST_OPSET <= opsets[0] <= newest:
            raise self.bad(
                f"opset {opsets[0] if len(opsets) == 1 else opsets}", f"one of {_FIRST_OPSET} to {newest}",
                "convert it with onnx.version_converter, or update the onnx package",
            )  # fmt: skip
        return int(opsets[0])

    def input(self) -> tuple[str, Shape]:
        """Name of the one input and shape of one sample."""
        inputs = [i for i in self.model.graph.input if i.name not in self.values]
        if len(inputs) != 1:
            raise UnsupportedLayerError(
                self.argument, got=f"{len(inputs)} inputs ({short(listed([i.name for i in inputs]))})",
                needed="one input", fix="make the others initializers, or export a model of one input",
            )  # fmt: skip
        (found,) = inputs
        what = f"the input {short(found.name)}"
        if found.type.WhichOneof("value") != "tensor_type":
            raise self.bad(f"{what} that is no tensor", "a tensor of floats")
        tensor = found.type.tensor_type
        types = import_onnx().TensorProto.DataType
        kind = types.Name(tensor.elem_type) if tensor.elem_type in types.values() else str(tensor.elem_type)
        if kind not in FLOATS:
            raise self.bad(f"{what} of type {kind}", f"one of {list(FLOATS)}", "leave out the conversion from integers")
        if not tensor.HasField("shape"):
            if self.input_shape is None:
                raise self.open_axes(f"{what} without a shape")
            return found.name, self.input_shape
        lengths = [d.dim_value if d.WhichOneof("value") == "dim_value" else None for d in tensor.shape.dim]
        shown = tuple("?" if n is None else n for n in lengths)
        if len(lengths) < 2 or lengths[0] not in (None, 1):
            raise self.bad(
                f"{what} of shape {short(shown)}", "a batch axis of length 1 or of any length, and at least one more",
                "export it for a batch of one",
            )  # fmt: skip
        if any(n is not None and n < 1 for n in lengths):
            raise self.bad(f"{what} of shape {short(shown)}", "lengths >= 1")
        rest = lengths[1:]
        if self.input_shape is None:
            if None in rest:
                raise self.open_axes(f"{what} of shape {short(shown)}")
            return found.name, tuple(n for n in rest if n is not None)
        fits = len(rest) == len(self.input_shape) and all(
            n in (None, m) for n, m in zip(rest, self.input_shape, strict=True)
        )
        if not fits:
            raise InputError(
                "input_shape", got=f"{self.input_shape} for {what} of shape {short(shown)}",
                needed="a shape that it has", fix="leave input_shape out where the file says the shape",
            )  # fmt: skip
        return found.name, self.input_shape

    def open_axes(self, what: str) -> InputError:
        return InputError(
            "input_shape", got=f"{what} and no input_shape", needed="the shape of one sample",
            fix="pass input_shape=(3, 224, 224) or the like; on the command line --input-shape",
        )  # fmt: skip

    def output(self) -> int:
        """The builder's node of the one output."""
        outputs = list(self.model.graph.output)
        if len(outputs) != 1:
            raise UnsupportedLayerError(
                self.argument, got=f"{len(outputs)} outputs ({short(listed([o.name for o in outputs]))})",
                needed="one output", fix="export the logits alone",
            )  # fmt: skip
        found = self.values.get(outputs[0].name)
        if found is None or isinstance(found, Const):
            raise self.bad(
                f"the output {short(outputs[0].name)}, which "
                + ("no node gives" if found is None else "does not depend on the input"),
                "a value computed from the input", "check the model",
            )  # fmt: skip
        return found

    # -- the nodes ----------------------------------------------------------------------------------------------------

    def read_node(self, proto: Any, opset: int, builder: LimitedBuilder) -> OnnxNode:
        """One node: its outputs become values."""
        if proto.domain not in _DOMAINS:
            raise UnsupportedLayerError(
                self.argument, got=f"{label(proto)} of the domain {short(proto.domain)}", needed="operators of ONNX",
                fix="export the model without custom operators",
            )  # fmt: skip
        missing = [n for n in proto.input if n and n not in self.values]
        if missing and missing[0] in self.absent:
            self.absent[missing[0]].refuse(f"its output {short(missing[0])} is used", "its first output only")
        if missing:
            raise self.bad(
                f"{label(proto)} on {short(missing[0])}, which no earlier node gives", "nodes in the order of use"
            )
        inputs: list[Value | None] = [self.values[n] if n else None for n in proto.input]
        attributes = attributes_of(proto, self.reader, self.argument)
        node = OnnxNode(proto, opset, inputs, attributes, self.argument, builder, self.reader)
        results = self.computed(node)
        node.all_used()
        for i, name in enumerate(proto.output):
            if not name:
                continue
            if name in self.values or name in self.absent:
                raise self.bad(f"{label(proto)} and another node that both give {short(name)}", "one node per value")
            if i < len(results):
                self.values[name] = results[i]
            else:
                self.absent[name] = node
        return node

    def computed(self, node: OnnxNode) -> tuple[Value, ...]:
        """What the node gives; whatever goes wrong is an InputError with the node's name."""
        try:
            arrays = [v.array for v in node.inputs if isinstance(v, Const)]
            if arrays and len(arrays) == len([v for v in node.inputs if v is not None]):
                folded = fold(node, arrays)
                if folded is not None:
                    return (Const(folded, node.names(*node.inputs)),)
            handler = HANDLERS.get(node.op)
            if handler is None:
                node.refuse("an operator that certbound does not model", "one of those that load_onnx lists")
            found = handler(node)
            return found if isinstance(found, tuple) else (found,)
        except UnsupportedLayerError as error:
            if error.argument == self.argument and node.label in error.got:
                raise
            raise UnsupportedLayerError(
                self.argument, got=f"{node.label}: {error.got}", needed=error.needed, fix=error.fix
            ) from error
        except InputError as error:
            got = error.got if node.label in error.got else f"{node.label}: {error.argument}: {error.got}"
            raise InputError(self.argument, got=got, needed=error.needed, fix=error.fix) from error
        # a file can hold any shapes, types and numbers: numpy raises what it likes where they do not fit
        except Exception as error:
            reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            raise InputError(
                self.argument, got=f"{node.label}, whose values do not fit ({reason})",
                needed="shapes and types that its operator takes", fix="check the model",
            ) from error  # fmt: skip

    def check_complete(self, builder: LimitedBuilder, last: int, protos: Any) -> None:
        """No step of a pattern may be left that no pattern took."""
        needed = {last}
        for i in range(last, -1, -1):
            if i in needed:
                needed.update(builder.nodes[i].inputs)
        left = [i for i in needed if isinstance(builder.nodes[i].op, (Pending, PendingQuotient))]
        if not left:
            return
        first = min(left)
        op = builder.nodes[first].op
        names = {v: n for n, v in self.values.items() if isinstance(v, int)}
        found = [p for p in protos if names.get(first) in p.output]
        shown = label(found[0]) if found else f"the node {short(builder.nodes[first].name)} ({op.kind})"
        raise UnsupportedLayerError(
            self.argument,
            got=f"{shown}, which is no part of a GELU, SiLU or LayerNorm as exporters write them",
            needed="operators with bounded slopes", fix="pass the part of the model before it",
        )  # fmt: skip


__all__ = ["OnnxLimits", "load_onnx"]
