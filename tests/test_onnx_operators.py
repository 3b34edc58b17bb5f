"""Every operator of ONNX that is read, against onnx.reference on the whole model in float64, and by hand."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from certbound.activations import Activation
from certbound.errors import InputError, UnsupportedLayerError
from certbound.io.onnx_file import load_onnx
from certbound.ops import Add, BatchNorm, Clip, Conv, LayerNorm, Linear, MaxPool, Mean, Pointwise, Softmax

RNG = np.random.default_rng(3)
node = helper.make_node


def made(nodes, shape, opset=18, kind=TensorProto.FLOAT, **arrays):
    """A model of ``x`` to ``y``; the arrays are initializers, Python floats and ints become tensors of rank 0."""
    kept = [numpy_helper.from_array(_array(a), n) for n, a in arrays.items()]
    given = helper.make_tensor_value_info("x", kind, shape)
    out = helper.make_tensor_value_info("y", kind, None)
    graph = helper.make_graph(nodes, "g", [given], [out], kept)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def _array(value):
    if isinstance(value, float):
        return np.array(value, dtype=np.float32)
    return np.asarray(value)


def double(model):
    """The model with every float32 as a float64, so that the reference rounds as the graph does."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for i, tensor in enumerate(copy.graph.initializer):
        array = numpy_helper.to_array(tensor)
        if array.dtype.kind == "f":
            copy.graph.initializer[i].CopyFrom(numpy_helper.from_array(array.astype(np.float64), tensor.name))
    return copy


def graph_of(model, tmp_path, **options):
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    return load_onnx(path, **options)


def same(model, tmp_path, *, tolerance=1e-12, batch_first=True):
    """The graph, equal to the reference on three samples."""
    graph = graph_of(model, tmp_path)
    shape = [d.dim_value or 1 for d in model.graph.input[0].type.tensor_type.shape.dim]
    for _ in range(3):
        x = RNG.standard_normal(shape)
        (y,) = ReferenceEvaluator(double(model)).run(None, {"x": x})
        got = graph.forward(x.reshape(1, -1))[0]
        assert graph.shapes[-1] == y.shape
        np.testing.assert_allclose(got, y.reshape(-1), rtol=tolerance, atol=tolerance * max(1, np.abs(y).max()))
    return graph


def f4(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def kinds(graph):
    return [type(n.op) for n in graph.nodes[1:]]


# ---------------------------------------------------------------- affine layers


@pytest.mark.parametrize("extra", [
    {}, {"pads": [1, 0, 2, 1]}, {"auto_pad": "SAME_UPPER"}, {"auto_pad": "SAME_LOWER"}, {"auto_pad": "VALID"},
    {"auto_pad": "SAME_UPPER", "strides": [2, 3]}, {"auto_pad": "SAME_LOWER", "strides": [3, 2]},
    {"strides": [2, 1], "pads": [0, 1, 0, 1]}, {"dilations": [2, 1]}, {"auto_pad": "SAME_LOWER", "dilations": [1, 2]},
    {"kernel_shape": [2, 3]},
])  # fmt: skip
@pytest.mark.parametrize("opset", [7, 11, 22])
def test_conv(extra, opset, tmp_path):
    graph = same(made([node("Conv", ["x", "w", "b"], ["y"], **extra)], [1, 2, 7, 8], opset, w=f4(4, 2, 2, 3), b=f4(4)),
                 tmp_path)  # fmt: skip
    assert kinds(graph) == [Conv]


def test_conv_in_groups_and_in_one_and_three_dimensions(tmp_path):
    same(made([node("Conv", ["x", "w"], ["y"], group=2)], [1, 4, 5, 5], w=f4(6, 2, 3, 3)), tmp_path)
    same(made([node("Conv", ["x", "w"], ["y"], pads=[1, 2])], [1, 2, 9], w=f4(3, 2, 3)), tmp_path)
    same(made([node("Conv", ["x", "w"], ["y"], strides=[1, 2, 1])], [1, 1, 4, 5, 4], w=f4(2, 1, 2, 2, 2)), tmp_path)


@pytest.mark.parametrize("turned", [0, 1])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (0.5, 3.0), (0.1, 0.0)])
@pytest.mark.parametrize("c", [(5,), (1, 5), (1, 1), ()])
def test_gemm(turned, alpha, beta, c, tmp_path):
    weight = f4(5, 3) if turned else f4(3, 5)
    gemm = node("Gemm", ["x", "w", "c"], ["y"], transB=turned, alpha=alpha, beta=beta)
    graph = same(made([gemm], [1, 3], 11, w=weight, c=f4(*c)), tmp_path, tolerance=1e-7 if alpha == 0.1 else 1e-12)
    linear = graph.nodes[1].op
    assert isinstance(linear, Linear)
    stored = float(np.float32(alpha))
    exact = (weight if turned else weight.T).astype(np.float64) * stored
    np.testing.assert_array_equal(linear.weight, exact)  # 24 + 24 bits: no product is rounded
    assert (linear.bias is None) == (beta == 0.0) or c in ((1, 1), ())


def test_gemm_with_weights_of_53_bits_scales_apart(tmp_path):
    weight = RNG.standard_normal((3, 2))
    model = made([node("Gemm", ["x", "w"], ["y"], alpha=0.1)], [1, 3], kind=TensorProto.DOUBLE, w=weight)
    graph = graph_of(model, tmp_path)
    assert [n.op.kind for n in graph.nodes] == ["Input", "Linear", "Scale"]
    np.testing.assert_array_equal(graph.nodes[1].op.weight, weight.T)


def test_gemm_of_a_turned_value(tmp_path):
    same(made([node("Reshape", ["x", "s"], ["r"]), node("Gemm", ["r", "w"], ["y"], transA=1)], [1, 6],
              s=np.array([3, 2]), w=f4(3, 4)), tmp_path)  # fmt: skip
    same(made([node("Reshape", ["x", "s"], ["r"]), node("Gemm", ["r", "r"], ["y"], transA=1)], [1, 6],
              s=np.array([3, 2])), tmp_path)  # fmt: skip


def test_matmul_of_values_and_constants(tmp_path):
    graph = same(made([node("MatMul", ["x", "w"], ["h"]), node("Add", ["b", "h"], ["y"])], [1, 4, 3], w=f4(3, 5),
                      b=f4(5)), tmp_path)  # fmt: skip
    assert kinds(graph) == [Linear]  # the bias is joined
    same(made([node("MatMul", ["w", "x"], ["y"])], [1, 4, 3], w=f4(5, 4)), tmp_path)
    same(made([node("MatMul", ["x", "w"], ["y"])], [1, 4, 3], w=f4(2, 1, 3, 5)), tmp_path)
    turned = node("Transpose", ["x"], ["t"], perm=[0, 2, 1])
    same(made([turned, node("MatMul", ["x", "t"], ["y"])], [1, 4, 3]), tmp_path)


@pytest.mark.parametrize("opset", [7, 9, 14, 15])
def test_batch_normalization(opset, tmp_path):
    arrays = {"s": f4(3), "b": f4(3), "m": f4(3), "v": np.abs(f4(3)) + 1}
    extra = {"momentum": 0.3} | ({"spatial": 1} if opset == 7 else {})
    bn = node("BatchNormalization", ["x", "s", "b", "m", "v"], ["y"], epsilon=0.125, **extra)
    graph = graph_of(made([bn], [1, 3, 4], opset, **arrays), tmp_path)
    (op,) = (n.op for n in graph.nodes[1:])
    assert isinstance(op, BatchNorm) and op.eps == 0.125
    x = RNG.standard_normal((1, 3, 4))
    s, b, m, v = (arrays[k].astype(np.float64)[:, None] for k in "sbmv")
    np.testing.assert_allclose(graph.forward(x)[0], ((x[0] - m) / np.sqrt(v + 0.125) * s + b).reshape(-1), rtol=1e-12)


# ---------------------------------------------------------------- pooling


@pytest.mark.parametrize("extra", [
    {}, {"strides": [2, 2]}, {"strides": [2, 2], "ceil_mode": 1}, {"pads": [1, 0, 0, 1], "strides": [2, 3]},
    {"pads": [1, 1, 1, 1], "strides": [2, 2], "ceil_mode": 1}, {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
    {"auto_pad": "SAME_LOWER"}, {"strides": [3, 3], "ceil_mode": 1}, {"strides": [4, 4], "ceil_mode": 1},
])  # fmt: skip
@pytest.mark.parametrize("kind", ["MaxPool", "AveragePool"])
def test_pooling(kind, extra, tmp_path):
    same(made([node(kind, ["x"], ["y"], kernel_shape=[2, 3], **extra)], [1, 2, 7, 8], 12), tmp_path)


def test_pooling_that_counts_its_padding_and_dilated(tmp_path):
    pool = node("AveragePool", ["x"], ["y"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1)
    same(made([pool], [1, 2, 5, 5], 11), tmp_path)
    both = node("AveragePool", ["x"], ["y"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1, ceil_mode=1,
                strides=[3, 3])  # fmt: skip
    with pytest.raises(UnsupportedLayerError, match=r"ceil_mode with padding that counts"):
        graph_of(made([both], [1, 2, 6, 6], 19), tmp_path)
    graph = same(made([node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], dilations=[2, 1])], [1, 2, 5, 5]), tmp_path)
    assert kinds(graph) == [MaxPool]


@pytest.mark.parametrize("kind", ["GlobalAveragePool", "GlobalMaxPool"])
def test_global_pooling(kind, tmp_path):
    same(made([node(kind, ["x"], ["y"])], [1, 2, 3, 5]), tmp_path)


@pytest.mark.parametrize("opset", [11, 13, 18])
@pytest.mark.parametrize("kind", ["ReduceMean", "ReduceSum"])
@pytest.mark.parametrize("keep", [0, 1])
def test_reductions(opset, kind, keep, tmp_path):
    as_input = opset >= (13 if kind == "ReduceSum" else 18)
    reduce = (node(kind, ["x", "a"], ["y"], keepdims=keep) if as_input
              else node(kind, ["x"], ["y"], keepdims=keep, axes=[1, -1]))  # fmt: skip
    same(made([reduce], [1, 2, 3, 4], opset, a=np.array([1, -1])), tmp_path)


# ---------------------------------------------------------------- activations


@pytest.mark.parametrize(("nodes", "name", "parameter"), [
    ([node("Relu", ["x"], ["y"])], "relu", 0.0),
    ([node("LeakyRelu", ["x"], ["y"], alpha=0.3)], "leaky_relu", float(np.float32(0.3))),
    ([node("LeakyRelu", ["x"], ["y"])], "leaky_relu", float(np.float32(0.01))),
    ([node("PRelu", ["x", "quarter"], ["y"])], "leaky_relu", 0.25),
    ([node("Tanh", ["x"], ["y"])], "tanh", 0.0),
    ([node("Sigmoid", ["x"], ["y"])], "sigmoid", 0.0),
    ([node("Gelu", ["x"], ["y"])], "gelu", 0.0),
    ([node("Gelu", ["x"], ["y"], approximate="tanh")], "gelu_tanh", 0.0),
    ([node("Sigmoid", ["x"], ["s"]), node("Mul", ["s", "x"], ["y"])], "silu", 0.0),
    ([node("Clip", ["x", "zero"], ["y"])], "relu", 0.0),
    ([node("Max", ["zero", "x"], ["y"])], "relu", 0.0),
])  # fmt: skip
def test_activations(nodes, name, parameter, tmp_path):
    model = made(nodes, [1, 40], 20, zero=0.0, quarter=np.full((1,), 0.25, np.float32))
    graph = graph_of(model, tmp_path)
    assert [n.op.activation for n in graph.nodes[1:]] == [Activation(name, parameter)]
    x = RNG.standard_normal((1, 40)) * 4
    expected = {"gelu": lambda t: t * (1 + math.erf(t / math.sqrt(2))) / 2,
                "gelu_tanh": lambda t: t * (1 + math.tanh(math.sqrt(2 / math.pi) * (t + 0.044715 * t**3))) / 2,
                "silu": lambda t: t / (1 + math.exp(-t)), "relu": lambda t: max(t, 0.0), "tanh": math.tanh,
                "sigmoid": lambda t: 1 / (1 + math.exp(-t)),
                "leaky_relu": lambda t: t if t > 0 else parameter * t}[name]  # fmt: skip
    np.testing.assert_allclose(graph.forward(x)[0], [expected(t) for t in x[0]], rtol=1e-13, atol=1e-15)


HALVES = {
    "divided": [node("Div", ["x", "r2"], ["d"]), node("Erf", ["d"], ["e"]), node("Add", ["e", "one"], ["p"]),
                node("Mul", ["x", "p"], ["m"]), node("Mul", ["m", "half"], ["y"])],
    "half first": [node("Mul", ["x", "half"], ["h"]), node("Mul", ["x", "i2"], ["d"]), node("Erf", ["d"], ["e"]),
                   node("Add", ["one", "e"], ["p"]), node("Mul", ["h", "p"], ["y"])],
    "gate halved": [node("Mul", ["x", "i2"], ["d"]), node("Erf", ["d"], ["e"]), node("Add", ["one", "e"], ["p"]),
                    node("Mul", ["p", "half"], ["g"]), node("Mul", ["g", "x"], ["y"])],
    "halves added": [node("Mul", ["x", "i2"], ["d"]), node("Erf", ["d"], ["e"]), node("Mul", ["e", "half"], ["eh"]),
                     node("Add", ["eh", "half"], ["g"]), node("Mul", ["g", "x"], ["y"])],
}  # fmt: skip
CUBES = {
    "power": [node("Pow", ["x", "three"], ["c"]), node("Mul", ["c", "k"], ["ck"]), node("Add", ["x", "ck"], ["s"])],
    "products": [node("Mul", ["x", "x"], ["q"]), node("Mul", ["q", "x"], ["c"]), node("Mul", ["c", "k"], ["ck"]),
                 node("Add", ["x", "ck"], ["s"])],
    "factored": [node("Mul", ["x", "x"], ["q"]), node("Mul", ["q", "k"], ["kq"]), node("Add", ["kq", "one"], ["f"]),
                 node("Mul", ["x", "f"], ["s"])],
}  # fmt: skip
GATE = [node("Mul", ["s", "w"], ["a"]), node("Tanh", ["a"], ["t"]), node("Add", ["t", "one"], ["p"]),
        node("Mul", ["x", "half"], ["h"]), node("Mul", ["h", "p"], ["y"])]  # fmt: skip
NUMBERS = {"r2": 2**0.5, "i2": 0.5**0.5, "one": 1.0, "half": 0.5, "three": 3.0, "k": 0.044715,
           "w": math.sqrt(2 / math.pi)}  # fmt: skip


@pytest.mark.parametrize("form", HALVES)
def test_gelu_in_parts(form, tmp_path):
    graph = same(made(HALVES[form], [1, 30], **NUMBERS), tmp_path, tolerance=1e-6)
    assert [n.op for n in graph.nodes[1:]] != [] and [n.op.kind for n in graph.nodes[1:]] == ["gelu"]


@pytest.mark.parametrize("form", CUBES)
def test_gelu_tanh_in_parts(form, tmp_path):
    graph = same(made(CUBES[form] + GATE, [1, 30], **NUMBERS), tmp_path, tolerance=1e-6)
    assert [n.op.kind for n in graph.nodes[1:]] == ["gelu_tanh"]


@pytest.mark.parametrize(("form", "wrong"), [
    (HALVES["divided"], {"r2": 1.4142}), (HALVES["divided"], {"one": 1.0001}),
    (HALVES["half first"], {"i2": -0.70710677}), (HALVES["halves added"], {"half": 0.25, "i2": 0.7072}),
])  # fmt: skip
def test_what_is_nearly_gelu_is_refused(form, wrong, tmp_path):
    with pytest.raises(UnsupportedLayerError, match=r"'e' \(Erf\), which is no part of a GELU"):
        graph_of(made(form, [1, 3], **(NUMBERS | wrong)), tmp_path)


@pytest.mark.parametrize("wrong", [{"k": 0.0447}, {"w": 0.8}, {"one": 1.5}])
def test_what_is_nearly_gelu_tanh_stays_in_its_parts(wrong, tmp_path):
    graph = same(made(CUBES["power"] + GATE, [1, 5], **(NUMBERS | wrong)), tmp_path)
    assert "gelu_tanh" not in [n.op.kind for n in graph.nodes]


def test_quick_gelu_is_a_scaled_silu(tmp_path):
    nodes = [node("Mul", ["x", "c"], ["u"]), node("Sigmoid", ["u"], ["s"]), node("Mul", ["x", "s"], ["y"])]
    graph = same(made(nodes, [1, 30], c=1.702), tmp_path)
    assert [n.op.kind for n in graph.nodes[1:]] == ["Scale", "silu", "Scale"]


def test_a_gate_of_another_value_is_a_product(tmp_path):
    nodes = [node("Tanh", ["x"], ["t"]), node("Sigmoid", ["t"], ["s"]), node("Mul", ["x", "s"], ["y"])]
    assert "silu" not in [n.op.kind for n in same(made(nodes, [1, 5]), tmp_path).nodes]


@pytest.mark.parametrize("opset", [9, 11, 13])
def test_clip(opset, tmp_path):
    clip = node("Clip", ["x"], ["y"], min=0.0, max=6.0) if opset < 11 else node("Clip", ["x", "a", "b"], ["y"])
    graph = same(made([clip], [1, 20], opset, a=0.0, b=6.0), tmp_path)
    assert isinstance(graph.nodes[-1].op, Clip) and (graph.nodes[-1].op.low, graph.nodes[-1].op.high) == (0.0, 6.0)
    if opset > 9:
        one = same(made([node("Clip", ["x", "", "b"], ["y"])], [1, 20], opset, b=0.5), tmp_path)
        assert one.nodes[-1].op.low == -math.inf
        big = float(np.finfo(np.float32).max)
        both = made([node("Clip", ["x", "a", "b"], ["h"]), node("Relu", ["h"], ["y"])], [1, 3], opset, a=-big, b=big)
        assert kinds(graph_of(both, tmp_path)) == [Pointwise]


def test_min_max_hard_sigmoid_and_swish(tmp_path):
    same(made([node("Min", ["x", "c"], ["h"]), node("Max", ["h", "d"], ["y"])], [1, 20], c=0.5, d=-0.5), tmp_path)
    same(made([node("HardSigmoid", ["x"], ["y"], alpha=0.25, beta=0.5)], [1, 20], 6 + 1), tmp_path)
    same(made([node("Swish", ["x"], ["y"], alpha=0.5)], [1, 20], 24), tmp_path)


def test_softmax_before_and_since_opset_13(tmp_path):
    for opset, axis in ((12, 3), (13, 1), (13, -1)):
        graph = same(made([node("Softmax", ["x"], ["y"], axis=axis)], [1, 2, 3, 4], opset), tmp_path)
        assert sum(isinstance(n.op, Softmax) for n in graph.nodes) == 1
    # until 12 of all axes from the first on together: the sum over (2, 3, 4) is one
    flat = graph_of(made([node("Softmax", ["x"], ["y"])], [1, 2, 3, 4], 12), tmp_path)
    assert flat.forward(RNG.standard_normal((1, 24))).sum() == pytest.approx(1.0)
    halves = graph_of(made([node("Softmax", ["x"], ["y"], axis=2)], [1, 2, 3, 4], 11), tmp_path)
    assert halves.forward(RNG.standard_normal((1, 24))).sum() == pytest.approx(2.0)
    last = graph_of(made([node("Softmax", ["x"], ["y"])], [1, 2, 3, 4], 13), tmp_path)
    assert last.forward(RNG.standard_normal((1, 24))).sum() == pytest.approx(6.0)


# ---------------------------------------------------------------- normalisation


def test_layer_normalization(tmp_path):
    for axis in (-1, 1, 2):
        arrays = {"s": f4(*([3, 4][axis % 3 - 1 :])), "b": f4(*([3, 4][axis % 3 - 1 :]))}
        layer = node("LayerNormalization", ["x", "s", "b"], ["y"], axis=axis, epsilon=0.25)
        assert kinds(same(made([layer], [1, 3, 4], **arrays), tmp_path)) == [LayerNorm]
    same(made([node("LayerNormalization", ["x", "s"], ["y", "mean", "inverse"])], [1, 3, 4], s=f4(4)), tmp_path)


def normalisation(square, end, opset=17):
    mean = node("ReduceMean", ["x"], ["m"], axes=[-1])
    squares = [node("Pow", ["d", "two"], ["q"])] if square == "pow" else [node("Mul", ["d", "d2"], ["q"])]
    again = [node("Sub", ["x", "m"], ["d2"])] if square == "twice" else [node("Identity", ["d"], ["d2"])]
    ends = {
        "div": [node("Sqrt", ["e"], ["t"]), node("Div", ["d", "t"], ["n"])],
        "reciprocal": [node("Sqrt", ["e"], ["t"]), node("Reciprocal", ["t"], ["r"]), node("Mul", ["r", "d"], ["n"])],
        "one over": [node("Sqrt", ["e"], ["t"]), node("Div", ["one", "t"], ["r"]), node("Mul", ["d", "r"], ["n"])],
        "power": [node("Pow", ["e", "minus"], ["r"]), node("Mul", ["d", "r"], ["n"])],
    }
    return [mean, node("Sub", ["x", "m"], ["d"]), *again, *squares, node("ReduceMean", ["q"], ["v"], axes=[-1]),
            node("Add", ["v", "eps"], ["e"]), *ends[end]]  # fmt: skip


@pytest.mark.parametrize("square", ["pow", "mul", "twice"])
@pytest.mark.parametrize("end", ["div", "reciprocal", "one over", "power"])
def test_layer_normalization_in_parts(square, end, tmp_path):
    nodes = [*normalisation(square, end), node("Mul", ["n", "w"], ["nw"]), node("Add", ["nw", "b"], ["y"])]
    numbers = {"two": 2.0, "eps": 1e-5, "one": 1.0, "minus": -0.5, "w": f4(4), "b": f4(4)}
    graph = same(made(nodes, [1, 3, 4], 17, **numbers), tmp_path, tolerance=1e-9)
    (op,) = (n.op for n in graph.nodes[1:])
    assert isinstance(op, LayerNorm) and op.eps == float(np.float32(1e-5))
    np.testing.assert_array_equal(op.weight, numbers["w"])
    np.testing.assert_array_equal(op.bias, numbers["b"])


@pytest.mark.parametrize("change", ["eps", "axes", "other", "none"])
def test_what_is_nearly_layer_normalization_is_refused(change, tmp_path):
    nodes = normalisation("mul", "div")
    if change == "axes":
        nodes[4] = node("ReduceMean", ["q"], ["v"], axes=[-2])
    if change == "other":
        nodes[-1] = node("Div", ["x", "t"], ["n"])
    numbers = {"eps": -1e-3 if change == "eps" else 1e-3, "two": 2.0, "one": 1.0, "minus": -0.5}
    if change == "eps":
        nodes[5] = node("Sub", ["v", "eps2"], ["e"])
        numbers["eps2"] = 1e-3
    model = made([*nodes, node("Identity", ["n"], ["y"])], [1, 3, 4], 17, **numbers)
    if change == "none":
        assert kinds(same(model, tmp_path, tolerance=1e-9)) == [LayerNorm]
    else:
        with pytest.raises(UnsupportedLayerError, match=r"'t' \(Sqrt\), which is no part of"):
            graph_of(model, tmp_path)


def test_attention_as_one_operator(tmp_path):
    nodes = [node("Attention", ["x", "x", "x", "mask"], ["y"], scale=0.25)]
    same(made(nodes, [1, 2, 3, 4], 23, mask=f4(3, 3)), tmp_path)


# ---------------------------------------------------------------- arithmetic


@pytest.mark.parametrize("operator", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize("shape", [(), (4,), (3, 1), (1, 3, 4), (2, 1, 3, 4)])
def test_arithmetic_with_a_constant(operator, shape, tmp_path):
    constant = f4(*shape) if shape else np.float32(1.75)
    same(made([node(operator, ["x", "c"], ["y"])], [1, 3, 4], c=constant), tmp_path)
    if operator == "Div":
        with pytest.raises(UnsupportedLayerError, match=r"'y' \(Div\), which is no part"):
            graph_of(made([node(operator, ["c", "x"], ["y"])], [1, 3, 4], c=constant), tmp_path)
    else:
        same(made([node(operator, ["c", "x"], ["y"])], [1, 3, 4], c=constant), tmp_path)


def test_arithmetic_of_values(tmp_path):
    first = node("Slice", ["x", "zero", "one", "two"], ["f"])
    numbers = {"zero": np.array([0]), "one": np.array([1]), "two": np.array([2])}
    for operator in ("Add", "Sub", "Mul"):
        same(made([first, node(operator, ["x", "f"], ["y"])], [1, 3, 4], **numbers), tmp_path)
        same(made([first, node(operator, ["f", "x"], ["y"])], [1, 3, 4], **numbers), tmp_path)
    same(made([node("Neg", ["x"], ["n"]), node("Sum", ["x", "n", "x", "c"], ["y"])], [1, 3], c=f4(3)), tmp_path)
    same(made([node("Tanh", ["x"], ["n"]), node("Mean", ["x", "n", "x"], ["y"])], [1, 3]), tmp_path)
    graph = same(made([node("Tanh", ["x"], ["n"]), node("Add", ["x", "n"], ["y"])], [1, 3]), tmp_path)
    assert kinds(graph) == [Pointwise, Add]


# ---------------------------------------------------------------- moving numbers


def vector(*numbers):
    return np.array(numbers, dtype=np.int64)


@pytest.mark.parametrize(("nodes", "numbers"), [
    ([node("Flatten", ["x"], ["y"])], {}),
    ([node("Flatten", ["x"], ["y"], axis=2)], {}),
    ([node("Flatten", ["x"], ["y"], axis=-1)], {}),
    ([node("Reshape", ["x", "s"], ["y"])], {"s": vector(0, -1, 2)}),
    ([node("Reshape", ["x", "s"], ["y"])], {"s": vector(4, 6)}),
    ([node("Unsqueeze", ["x", "a"], ["u"]), node("Squeeze", ["u", "b"], ["y"])], {"a": vector(0, 3), "b": vector(3)}),
    ([node("Squeeze", ["x"], ["y"])], {}),
    ([node("Transpose", ["x"], ["y"])], {}),
    ([node("Transpose", ["x"], ["y"], perm=[0, 2, 3, 1])], {}),
    ([node("Slice", ["x", "s", "e", "a"], ["y"])], {"s": vector(1, -3), "e": vector(9, -1), "a": vector(3, 2)}),
    ([node("Slice", ["x", "s", "e", "a", "t"], ["y"])],
     {"s": vector(0, 3), "e": vector(2**63 - 1, -(2**63)), "a": vector(2, 3), "t": vector(2, -1)}),
    ([node("Gather", ["x", "i"], ["y"], axis=2)], {"i": np.array([[2, 0], [-1, 2]])}),
    ([node("Gather", ["x", "i"], ["y"], axis=3)], {"i": np.array(1)}),
    ([node("GatherElements", ["x", "i"], ["y"], axis=3)],
     {"i": np.array([[[[1, -1], [0, 0], [3, 2]], [[0, 1], [2, 3], [-4, 2]]]])}),
    ([node("GatherND", ["x", "i"], ["y"])], {"i": np.array([[0, 1, 2], [0, 0, -1]])}),
    ([node("Split", ["x"], ["p", "q"], axis=3), node("Concat", ["q", "p"], ["y"], axis=1)], {}),
    ([node("Split", ["x", "s"], ["p", "q"], axis=2), node("Concat", ["q", "p"], ["y"], axis=-2)], {"s": vector(1, 2)}),
    ([node("Concat", ["x", "c", "x"], ["y"], axis=1)], {"c": f4(1, 1, 3, 4)}),
    ([node("Expand", ["x", "s"], ["y"])], {"s": vector(2, 1, 2, 3, 1)}),
    ([node("Tile", ["x", "s"], ["y"])], {"s": vector(1, 2, 1, 3)}),
    ([node("Pad", ["x", "p"], ["y"])], {"p": vector(0, 0, 1, 0, 0, 1, 0, 2)}),
    ([node("Pad", ["x", "p", "v"], ["y"])], {"p": vector(0, 0, 1, 1, 0, 1, 0, 2), "v": 1.5}),
    ([node("Pad", ["x", "p", "", "a"], ["y"])], {"p": vector(1, 0), "a": vector(-2)}),
    ([node("Pad", ["x", "p"], ["y"], mode="reflect")], {"p": vector(0, 0, 1, 2, 0, 0, 2, 3)}),
    ([node("Pad", ["x", "p"], ["y"], mode="edge")], {"p": vector(0, 0, 1, 5, 0, 1, 2, 3)}),
    ([node("Where", ["m", "x", "c"], ["y"])], {"m": np.array([True, False, True, True]), "c": f4(3, 1)}),
    ([node("Where", ["m", "c", "x"], ["y"])], {"m": np.array([True, False, True, True]), "c": f4(3, 1)}),
    ([node("SpaceToDepth", ["x"], ["s"], blocksize=1), node("Identity", ["s"], ["y"])], {}),
    ([node("Dropout", ["x"], ["y"])], {}),
    ([node("Cast", ["x"], ["y"], to=TensorProto.FLOAT16)], {}),
    ([node("CastLike", ["x", "c"], ["y"])], {"c": 1.0}),
])  # fmt: skip
def test_moving_numbers(nodes, numbers, tmp_path):
    halved = nodes[0].op_type == "Split" and len(nodes[0].input) == 1
    opset = 13 if halved else 18  # in 18 it has num_outputs
    model = made(nodes, [1, 2, 3, 4], opset, **numbers)
    if nodes[0].op_type in ("Cast", "CastLike"):  # the reference rounds; the graph is the exact network
        graph = graph_of(model, tmp_path)
        x = RNG.standard_normal((2, 24))
        np.testing.assert_array_equal(graph.forward(x), x)
    else:
        same(model, tmp_path)


def test_blocks_of_pixels(tmp_path):
    for mode in ("DCR", "CRD"):
        same(made([node("DepthToSpace", ["x"], ["y"], blocksize=2, mode=mode)], [1, 8, 2, 3]), tmp_path)
    same(made([node("SpaceToDepth", ["x"], ["y"], blocksize=2)], [1, 3, 4, 6]), tmp_path)


def test_older_opsets_have_their_axes_as_attributes(tmp_path):
    nodes = [node("Unsqueeze", ["x"], ["u"], axes=[2]), node("Slice", ["u"], ["s"], starts=[1], ends=[3], axes=[3]),
             node("Split", ["s"], ["p", "q"], axis=3, split=[1, 1]), node("Concat", ["q", "p"], ["c"], axis=1),
             node("Squeeze", ["c"], ["z"], axes=[2]), node("Pad", ["z"], ["y"], pads=[0, 0, 1, 0, 0, 0], value=2.0)]
    graph = graph_of(made(nodes, [1, 2, 4], 9), tmp_path)
    # [a b c d] → [b c] → its halves in the other order, one channel after the other → a 2 before each
    np.testing.assert_array_equal(graph.forward(np.arange(8.0).reshape(1, 2, 4))[0], [2, 2, 2, 6, 2, 1, 2, 5])


# ---------------------------------------------------------------- constants


def test_shapes_are_computed(tmp_path):
    nodes = [
        node("Shape", ["x"], ["s"]), node("Gather", ["s", "zero"], ["n"]), node("Unsqueeze", ["n", "zero1"], ["n1"]),
        node("Mul", ["s", "s"], ["ss"]), node("ReduceProd", ["s"], ["total"], keepdims=0),
        node("Div", ["total", "n"], ["rest"]), node("Unsqueeze", ["rest", "zero1"], ["r1"]),
        node("Concat", ["n1", "r1"], ["t"], axis=0), node("Cast", ["t"], ["tf"], to=TensorProto.FLOAT),
        node("Cast", ["tf"], ["ti"], to=TensorProto.INT64), node("Reshape", ["x", "ti"], ["r"]),
        node("Sqrt", ["four"], ["two"]), node("Mul", ["r", "two"], ["y"]),
    ]  # fmt: skip
    graph = same(made(nodes, [1, 2, 6], zero=np.array(0), zero1=vector(0), four=4.0), tmp_path)
    assert [n.op.kind for n in graph.nodes] == ["Input", "Reshape", "Scale"]


def test_ranges_masks_and_scatters(tmp_path):
    nodes = [
        node("Range", ["zero", "six", "one"], ["i"]), node("Less", ["i", "three"], ["m"]), node("Not", ["m"], ["nm"]),
        node("Where", ["nm", "big", "small"], ["w"]), node("ConstantOfShape", ["n"], ["z"]),
        node("ScatterND", ["z", "where", "what"], ["sc"]), node("Add", ["w", "sc"], ["c"]),
        node("Trilu", ["sq"], ["tri"]), node("MatMul", ["c", "tri"], ["ct"]), node("Add", ["x", "ct"], ["y"]),
    ]  # fmt: skip
    numbers = {"zero": np.array(0), "six": np.array(6), "one": np.array(1), "three": np.array(3), "big": -100.0,
               "small": 0.5, "n": vector(6), "where": np.array([[1], [4]]), "what": np.array([7, 8], np.float32),
               "sq": f4(6, 6)}  # fmt: skip
    graph = graph_of(made(nodes, [1, 6], **numbers), tmp_path)
    c = np.array([0.5, 7.5, 0.5, -100, -92, -100]) @ np.triu(numbers["sq"].astype(np.float64))
    np.testing.assert_allclose(graph.forward(np.zeros((1, 6)))[0], c, rtol=1e-12)


@pytest.mark.parametrize(("operator", "a", "b", "result"), [
    ("Div", [-7, 7, -6], [2, -2, 4], [-3, -3, -1]), ("Mod", [-7, 7, 5], [3, -3, 3], [2, -2, 2]),
    ("Pow", [2, 3, -2], [3, 2, 3], [8, 9, -8]), ("Sub", [1, 2, 3], [3, 3, 3], [-2, -1, 0]),
    ("Min", [1, 5, 3], [3, 3, 3], [1, 3, 3]),
])  # fmt: skip
def test_integers(operator, a, b, result, tmp_path):
    nodes = [node(operator, ["a", "b"], ["c"]), node("Cast", ["c"], ["f"], to=TensorProto.FLOAT),
             node("Add", ["x", "f"], ["y"])]  # fmt: skip
    graph = graph_of(made(nodes, [1, 3], a=vector(*a), b=vector(*b)), tmp_path)
    np.testing.assert_array_equal(graph.forward(np.zeros((1, 3)))[0], result)


def test_a_cast_of_a_constant_rounds(tmp_path):
    for to, dtype in ((TensorProto.FLOAT16, np.float16), (TensorProto.FLOAT, np.float32)):
        nodes = [node("Cast", ["c"], ["h"], to=to), node("Cast", ["h"], ["d"], to=TensorProto.DOUBLE),
                 node("Add", ["x", "d"], ["y"])]  # fmt: skip
        graph = graph_of(made(nodes, [1, 1], kind=TensorProto.DOUBLE, c=np.array([0.1])), tmp_path)
        assert graph.forward([[0.0]])[0, 0] == float(dtype(0.1)) != 0.1
    nodes = [node("Cast", ["c"], ["h"], to=TensorProto.BFLOAT16), node("Cast", ["h"], ["d"], to=TensorProto.FLOAT),
             node("Add", ["x", "d"], ["y"])]  # fmt: skip
    graph = graph_of(made(nodes, [1, 1], c=np.array([0.1], np.float32)), tmp_path)
    assert graph.forward([[0.0]])[0, 0] == 0.10009765625


@pytest.mark.parametrize("zero", [False, True])
def test_dequantised_weights_are_exact(zero, tmp_path):
    q = np.array([[-128, 127, 3], [1, 2, -5]], dtype=np.int8)
    scale, zeros = np.array([0.1, 0.3], np.float32), np.array([3, -2], np.int8)
    nodes = [node("DequantizeLinear", ["q", "s", *(["z"] if zero else [])], ["w"], axis=0),
             node("Gemm", ["x", "w"], ["y"], transB=1)]  # fmt: skip
    graph = graph_of(made(nodes, [1, 3], q=q, s=scale, z=zeros), tmp_path)
    shifted = q.astype(np.float64) - (zeros[:, None] if zero else 0)
    np.testing.assert_array_equal(graph.nodes[1].op.weight, shifted * scale.astype(np.float64)[:, None])
    assert graph.nodes[1].parameters == (("q", "s", "z") if zero else ("q", "s"))


@pytest.mark.parametrize(("kind", "bits"), [
    (TensorProto.FLOAT16, [0x3C01, 0xC000, 1]), (TensorProto.BFLOAT16, [0x3F81, 0xC000, 1]),
])  # fmt: skip
@pytest.mark.parametrize("raw", [False, True])
def test_short_floats_are_exact(kind, bits, raw, tmp_path):
    tensor = TensorProto(name="w", data_type=kind, dims=[3, 1])
    if raw:
        tensor.raw_data = np.array(bits, "<u2").tobytes()
    else:
        tensor.int32_data.extend(bits)
    model = made([node("Gemm", ["x", "w"], ["y"])], [1, 3], kind=kind)
    model.graph.initializer.append(tensor)
    weight = graph_of(model, tmp_path).nodes[1].op.weight[0]
    one = 1 + 2.0**-10 if kind == TensorProto.FLOAT16 else 1 + 2.0**-7
    assert weight.tolist() == [one, -2.0, 2.0**-24 if kind == TensorProto.FLOAT16 else 2.0**-133]


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.DOUBLE])
def test_doubles_and_floats_are_as_stored(kind, tmp_path):
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    weight = RNG.standard_normal((3, 2)).astype(dtype)
    graph = graph_of(made([node("Gemm", ["x", "w"], ["y"])], [1, 3], kind=kind, w=weight), tmp_path)
    np.testing.assert_array_equal(graph.nodes[1].op.weight, weight.T.astype(np.float64))


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(("nodes", "numbers", "words"), [
    ([node("ConvTranspose", ["x", "w"], ["y"], name="up")], {"w": f4(2, 2, 2, 2)}, "'up' \\(ConvTranspose\\): an oper"),
    ([node("Resize", ["x", "", "s"], ["y"])], {"s": f4(4)}, "'y' \\(Resize\\)"),
    ([node("LSTM", ["x", "w", "w"], ["y"])], {"w": f4(2, 2)}, "\\(LSTM\\)"),
    ([node("Exp", ["x"], ["y"])], {}, "\\(Exp\\)"),
    ([node("QuantizeLinear", ["x", "s"], ["y"])], {"s": 1.0}, "\\(QuantizeLinear\\)"),
    ([node("Conv", ["x", "x"], ["y"])], {}, "a constant weight"),
    ([node("BatchNormalization", ["x", "s", "s", "s", "s"], ["y"], training_mode=1)], {"s": f4(2)}, "training mode"),
    ([node("Dropout", ["x", "r", "t"], ["y"])], {"r": 0.5, "t": np.array(True)}, "training mode"),
    ([node("Cast", ["x"], ["y"], to=TensorProto.INT32)], {}, "not Lipschitz"),
    ([node("Relu", ["x"], ["y"], domain="com.microsoft")], {}, "domain 'com.microsoft'"),
    ([node("MaxPool", ["x"], ["p", "y"], kernel_shape=[2, 2]), node("Identity", ["y"], ["y2"])], {}, "output 'y' is"),
    ([node("AveragePool", ["x"], ["y"], kernel_shape=[2, 2], dilations=[2, 2])], {}, "none in an average"),
    ([node("PRelu", ["x", "s"], ["y"])], {"s": f4(2, 1, 1)}, "slopes that differ"),
    ([node("Sqrt", ["x"], ["y"])], {}, "'y' \\(Sqrt\\), which is no part"),
    ([node("Div", ["x", "x"], ["y"])], {}, "'y' \\(Div\\), which is no part"),
    ([node("Where", ["m", "x", "c"], ["y"])], {"m": np.array([True, False, True]), "c": np.float32("-inf")}, "-inf"),
    ([node("Relu", ["x"], ["y"], alpha=1.0)], {}, "attributes .*alpha"),
    ([node("Reshape", ["x", "s"], ["y"])], {"s": vector(5, 5)}, "to \\(5, 5\\); needed equally many"),
    ([node("Gather", ["x", "i"], ["y"])], {"i": vector(7)}, "indices outside an axis"),
    ([node("Slice", ["x", "s", "e"], ["y"])], {"s": vector(0), "e": vector(0)}, "an empty part"),
    ([node("Add", ["x", "c"], ["y"])], {"c": f4(4)}, "shapes that broadcast"),
    ([node("Add", ["x", "c"], ["y"])], {"c": vector(1)}, "integers or booleans"),
    ([node("Softmax", ["x"], ["y"], axis=9)], {}, "the axis 9"),
    ([node("Pad", ["x", "p"], ["y"])], {"p": vector(0, 0, -1, 0, 0, 0, 0, 0)}, "crop with a Slice"),
])  # fmt: skip
def test_refusals_name_the_node(nodes, numbers, words, tmp_path):
    with pytest.raises(InputError, match=words):
        graph_of(made(nodes, [1, 2, 3, 3], 20, **numbers), tmp_path)


def test_subgraphs_are_refused(tmp_path):
    branch = helper.make_graph([node("Relu", ["x"], ["z"])], "b", [], [helper.make_tensor_value_info("z", 1, None)])
    condition = node("If", ["c"], ["y"], then_branch=branch, else_branch=branch, name="choice")
    with pytest.raises(UnsupportedLayerError, match=r"'choice' \(If\) with a subgraph"):
        graph_of(made([condition], [1, 2], c=np.array(True)), tmp_path)


def test_the_mean_of_no_axes(tmp_path):
    same(made([node("ReduceMean", ["x"], ["y"], noop_with_empty_axes=1)], [1, 2]), tmp_path)
    graph = graph_of(made([node("ReduceMean", ["x"], ["y"])], [1, 2]), tmp_path)
    assert kinds(graph) == [Mean] and graph.shapes[-1] == (1, 1)
