"""GraphBuilder: broadcasting arithmetic against numpy, constants folded, nothing lost; as_graph and read_model."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from certbound import network as ir
from certbound import ops
from certbound.activations import Activation
from certbound.errors import InputError, UnsupportedLayerError
from certbound.graph import Graph, Node, as_graph, read_model
from certbound.io.graph_builder import GraphBuilder, parse_input_shape
from certbound.io.network_graph import from_network

X = np.random.default_rng(0).standard_normal(12)


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def run(builder, node):
    """The value of a node at X, in its shape."""
    return builder.finish(node).forward(X[None]).reshape(builder.shape(node))


def kinds(builder):
    return [node.op.kind for node in builder.nodes[1:]]


# -- one node at a time -----------------------------------------------------------------------------------------------


def test_shapes_are_known_at_every_step():
    b = GraphBuilder((3, 4))
    assert b.shape(0) == (1, 3, 4)
    flat = b.add(ops.Reshape((1, 12)), 0, name="flatten")
    assert b.shape(flat) == (1, 12)
    assert b.shape(b.add(ops.Linear(numbers(5, 12)), flat)) == (1, 5)


def test_a_shape_that_does_not_fit_is_named_at_once():
    b = GraphBuilder((3, 4))
    with pytest.raises(InputError, match=r"layer1.fc \(Linear\)"):
        b.add(ops.Linear(numbers(5, 12)), 0, name="layer1.fc")
    assert len(b.nodes) == 1


def test_operations_on_constants_are_computed_at_once():
    b = GraphBuilder((3, 4))
    one = b.node(np.array([1.0, -2.0]), name="a", parameters=("a",))
    y = b.add(ops.Pointwise(Activation("relu")), one, name="act", parameters=("b",))
    assert isinstance(b.nodes[y].op, ops.Constant)
    assert b.array(y).tolist() == [1.0, 0.0]
    assert b.nodes[y].parameters == ("a", "b")
    assert b.nodes[y].inputs == ()
    assert b.array(0) is None


def test_finish_drops_what_the_output_does_not_need_and_keeps_the_rest_in_order():
    b = GraphBuilder((12,))
    unused = b.add(ops.Scale(np.array(5.0)), 0, name="unused")
    used = b.add(ops.Scale(np.array(2.0)), 0, name="used", parameters=("w",))
    b.add(ops.Add(), unused, used, name="dead end")
    graph = b.finish(b.add(ops.Add(), used, 0, name="sum"))
    assert [(n.name, n.inputs, n.parameters) for n in graph.nodes] == [
        ("input", (), ()), ("used", (0,), ("w",)), ("sum", (1, 0), ()),
    ]  # fmt: skip
    np.testing.assert_array_equal(graph.forward(X[None]), 3 * X[None])


def test_finish_takes_the_last_node_by_default():
    b = GraphBuilder((12,))
    b.add(ops.Scale(np.array(2.0)), 0)
    np.testing.assert_array_equal(b.finish().forward(X[None]), 2 * X[None])


def test_an_output_without_the_input_is_refused():
    b = GraphBuilder((12,))
    with pytest.raises(InputError, match="does not depend on the input"):
        b.finish(b.node(np.ones(3)))


@pytest.mark.parametrize("shape", [(), None, 3, (0,), (-1, 2), (2.0,), (True, 2), "ab", [[1]]])
def test_bad_input_shapes(shape):
    with pytest.raises(InputError, match="input_shape"):
        parse_input_shape(shape)


# -- arithmetic with broadcasting -------------------------------------------------------------------------------------

SHAPES = st.sampled_from([(), (1,), (4,), (3, 1), (3, 4), (1, 3, 4), (2, 1, 4), (2, 3, 4), (1, 1, 1)])


def operand(b, shape, kind):
    """A value, a constant array or a Constant node of the given shape, and what it is at X."""
    if kind == "value":
        size = int(np.prod(shape))
        node = b.reshape(b.add(ops.Slice(1, 0, size), 0), shape) if shape else b.add(ops.Slice(1, 3, 4, drops=True), 0)
        node = node if shape else b.reshape(node, ())
        return node, (X[:size].reshape(shape) if shape else X[3])
    array = numbers(*shape, seed=1) + 3.0
    return (array if kind == "array" else b.node(array)), array


OPERATIONS = {
    "sum": np.add,
    "difference": np.subtract,
    "product": np.multiply,
    "quotient": np.divide,
}


def apply(b, operation, left, right, **given):
    if operation == "difference":
        return b.sum(left, right, subtracts=True, **given)
    return getattr(b, operation)(left, right, **given)


KINDS = ["value", "array", "node"]
PAIRS = [pair for pair in itertools.product(KINDS, KINDS) if "value" in pair]


@pytest.mark.parametrize("name", sorted(OPERATIONS))
@pytest.mark.parametrize(("kind_one", "kind_other"), PAIRS)
@given(one=SHAPES, other=SHAPES)
def test_arithmetic_is_numpys(one, other, name, kind_one, kind_other):
    if name == "quotient" and kind_other == "value":
        return  # refused
    if int(np.prod(one)) > 12 or int(np.prod(other)) > 12:
        one, other = one[-1:], other[-1:]
    b = GraphBuilder((12,))
    left, x = operand(b, one, kind_one)
    right, y = operand(b, other, kind_other)
    node = apply(b, name, left, right, name="here", parameters=("p",))
    expected = OPERATIONS[name](x, y)
    assert b.shape(node) == expected.shape
    np.testing.assert_allclose(run(b, node), expected, rtol=1e-14)
    assert b.nodes[node].name == "here"
    assert b.nodes[node].parameters == ("p",)


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_two_constants_are_one(name):
    b = GraphBuilder((12,))
    node = apply(b, name, numbers(3), numbers(2, 3, seed=1))
    np.testing.assert_array_equal(b.array(node), OPERATIONS[name](numbers(3), numbers(2, 3, seed=1)))


def test_a_constant_brings_its_parameters():
    b = GraphBuilder((12,))
    constant = b.node(numbers(12), parameters=("bias",))
    for name in ("sum", "product"):
        assert b.nodes[apply(b, name, 0, constant)].parameters == ("bias",)
    weight = b.node(numbers(12, 5), parameters=("weight",))
    assert b.nodes[b.matmul(0, weight)].parameters == ("weight",)


def test_a_constant_makes_no_operation_of_two_values():
    b = GraphBuilder((12,))
    b.sum(0, np.ones(12))
    b.product(np.ones(12), 0)
    b.quotient(0, np.array(2.0))
    b.sum(np.ones(12), 0, subtracts=True)
    assert kinds(b) == ["Shift", "Scale", "Scale", "Scale", "Shift"]


def test_division_by_a_value_is_refused():
    b = GraphBuilder((12,))
    with pytest.raises(UnsupportedLayerError, match="here, which divides by a value"):
        b.quotient(np.ones(12), 0, name="here")
    with pytest.raises(InputError, match="0 as a divisor"):
        b.quotient(0, np.zeros(12))


@pytest.mark.parametrize("name", ["sum", "product", "quotient", "matmul"])
def test_shapes_that_do_not_broadcast(name):
    b = GraphBuilder((3, 4))
    with pytest.raises(InputError, match=r"here|Linear"):
        apply(b, name, 0, numbers(5, 3, 4) if name == "matmul" else numbers(5), name="here")


MATRICES = [(4,), (3, 4), (1, 3, 4), (2, 3, 4), (2, 1, 3, 4)]


@pytest.mark.parametrize(("rows", "columns"), list(itertools.product(MATRICES, MATRICES)))
@pytest.mark.parametrize("kinds_", [("value", "array"), ("array", "value"), ("value", "value"), ("node", "value")])
def test_products_of_matrices_are_numpys(rows, columns, kinds_):
    """Also vectors on either side, and leading axes that broadcast."""
    right = columns if len(columns) == 1 else (*columns[:-2], 4, 3)
    b = GraphBuilder((24,))
    values = np.random.default_rng(3).standard_normal(24)
    found = []
    for shape, kind in zip((rows, right), kinds_, strict=True):
        size = int(np.prod(shape))
        if kind == "value":
            found.append((b.reshape(b.slice(0, 1, 0, size), shape), values[:size].reshape(shape)))
        else:
            array = numbers(*shape, seed=7)
            found.append((array if kind == "array" else b.node(array), array))
    (left, x), (other, y) = found
    node = b.matmul(left, other, name="here", parameters=("p",))
    expected = np.matmul(x, y)
    assert b.shape(node) == expected.shape
    graph = b.finish(node)
    np.testing.assert_allclose(graph.forward(values[None])[0], expected.reshape(-1), rtol=1e-12, atol=1e-12)


def test_a_constant_matrix_on_either_side_is_a_linear_map():
    b = GraphBuilder((3, 4))
    b.finish(b.matmul(0, numbers(4, 2)))
    assert kinds(b) == ["Linear"]
    b = GraphBuilder((3, 4))
    b.finish(b.matmul(numbers(2, 3), 0))
    assert kinds(b) == ["Permute", "Linear", "Permute"]


@pytest.mark.parametrize("mask", [None, numbers(3, 3), numbers(2, 3, 3)])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_attention(mask, scale):
    b = GraphBuilder((2, 3, 4))
    x = numbers(1, 2, 3, 4)
    got = b.finish(b.attention(0, 0, 0, scale=scale, mask=mask)).forward(x).reshape(x.shape)
    t = torch.from_numpy(x)
    given = None if mask is None else torch.from_numpy(mask)
    expected = nn.functional.scaled_dot_product_attention(t, t, t, attn_mask=given, scale=scale)
    np.testing.assert_allclose(got, expected.numpy(), rtol=1e-12)


def test_reshapes_and_permutations_in_a_row_become_one():
    b = GraphBuilder((3, 4))
    assert b.reshape(b.reshape(0, (12,)), (1, 3, 4)) == 0
    y = b.reshape(b.reshape(0, (12,)), (2, 6))
    assert b.nodes[y].inputs == (0,)
    assert b.permute(b.permute(0, (2, 0, 1)), (1, 2, 0)) == 0
    z = b.permute(b.permute(0, (2, 0, 1)), (1, 0, -1))
    x = X.reshape(1, 3, 4)
    np.testing.assert_array_equal(run(b, z), x.transpose(2, 0, 1).transpose(1, 0, 2))
    assert b.nodes[z].inputs == (0,)
    assert b.slice(0, 1, 0, 3) == 0
    assert b.expand(0, (1, 3, 4)) == 0


# -- a Network as a Graph ---------------------------------------------------------------------------------------------

NETWORKS = [
    ir.Network((ir.Affine(numbers(3, 12), numbers(3)), ir.ReLU(), ir.Affine(numbers(2, 3)))),
    ir.Network((ir.Affine(numbers(3, 12)), ir.Activation("gelu"), ir.Activation("leaky_relu", 0.2))),
    ir.Network(
        (ir.Normalise(numbers(3), np.array([1.0, 2.0, 4.0])), ir.Flatten(), ir.Affine(numbers(2, 12))), (3, 2, 2)
    ),
    ir.Network((ir.Normalise(0.5, 0.25), ir.ReLU(), ir.Affine(numbers(2, 12))), (3, 2, 2)),
    ir.Network(
        (
            ir.Residual((ir.Affine(numbers(12, 12)), ir.ReLU()), (ir.Activation("tanh"),)),
            ir.Residual((ir.Residual((ir.Affine(numbers(12, 12, seed=4)),)), ir.ReLU()),),
            ir.Affine(numbers(2, 12)),
        ),
        (3, 4),
    ),
]


@pytest.mark.parametrize("network", NETWORKS)
def test_a_network_as_a_graph_computes_the_same(network):
    graph = from_network(network)
    x = numbers(5, 12, seed=9)
    np.testing.assert_allclose(graph.forward(x), network.forward(x), rtol=1e-12, atol=1e-12)
    assert graph.input_shape == (network.input_shape or (12,))
    names = {node.name for node in graph.nodes if isinstance(node.op, ops.Linear)}
    assert names == {path for path, _ in ir.affine_layers(network.layers)}


# -- as_graph, read_model ---------------------------------------------------------------------------------------------


def test_as_graph_reads_what_it_is_given():
    network = NETWORKS[0]
    graph = as_graph(network)
    assert isinstance(graph, Graph)
    assert as_graph(graph) is graph
    assert as_graph(graph, input_shape=(12,)) is graph
    np.testing.assert_array_equal(as_graph([[[1.0, -1.0]], [[2.0]]]).forward([[3.0, 1.0]]), [[4.0]])
    with pytest.raises(InputError, match="the input of the graph"):
        as_graph(graph, input_shape=(3, 4))
    with pytest.raises(InputError, match="model"):
        as_graph("resnet18")


def test_a_module_needs_its_input_shape():
    module = nn.Sequential(nn.Conv2d(3, 4, 3))
    for read in (as_graph, read_model):
        with pytest.raises(InputError, match="without the batch axis") as caught:
            read(module)
        assert caught.value.argument == "input_shape"
    assert as_graph(module, input_shape=(3, 8, 8)).n_outputs == 4 * 36


def test_read_model_prefers_the_network():
    dense = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    assert isinstance(read_model(dense), ir.Network)
    assert isinstance(read_model(nn.Sequential(nn.Conv1d(1, 1, 1)), input_shape=(1, 3)), Graph)
    graph = Graph((Node(ops.Input((1, 2))),))
    assert read_model(graph) is graph
    with pytest.raises(UnsupportedLayerError, match="LSTM"):
        read_model(nn.LSTM(3, 2), input_shape=(4, 3))
    with pytest.raises(InputError, match="nan"):  # no other reader is tried on damaged weights
        read_model([[[float("nan")]]])
