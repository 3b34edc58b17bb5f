"""ONNX files as files: headers, inputs, limits, damage, external data; nothing but certbound's own errors."""

from __future__ import annotations

import builtins
import os
import tracemalloc
from contextlib import contextmanager

import fuzz_bytes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from test_onnx_operators import f4, graph_of, made, node, vector

from certbound.errors import InputError, MissingDependencyError, UnsupportedLayerError
from certbound.io import onnx_check, onnx_ops
from certbound.io.factory import load_model
from certbound.io.onnx_file import OnnxLimits, load_onnx
from certbound.io.onnx_wire import import_onnx
from certbound.network import Network
from certbound.ops import Linear, Scale


def chain(**options):
    """x ↦ W₂ relu(W₁ x + b)."""
    nodes = [node("Gemm", ["x", "w1", "b1"], ["h"], transB=1), node("Relu", ["h"], ["r"]),
             node("Gemm", ["r", "w2"], ["y"], transB=1)]  # fmt: skip
    arrays = {"w1": np.array([[1.0, -2.0], [0.5, 3.0]], np.float32), "b1": np.array([1, -1], np.float32),
              "w2": np.array([[1.0, 1.0]], np.float32)}  # fmt: skip
    return made(nodes, options.pop("shape", [1, 2]), **arrays, **options)


@contextmanager
def at_most(number_of_bytes):
    """No more is allocated meanwhile."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < number_of_bytes
    finally:
        tracemalloc.stop()


def written(model, tmp_path, name="m.onnx"):
    path = tmp_path / name
    path.write_bytes(model.SerializeToString())
    return path


# ---------------------------------------------------------------- what is read


def test_by_hand(tmp_path):
    graph = graph_of(chain(), tmp_path)
    # W₁ (3, 1) + b = (1 + 1, 4.5 − 1) = (2, 3.5); (−3, 1): (−5 + 1, 1.5 − 1) → (0, 0.5)
    assert graph.forward([[3.0, 1.0], [-3.0, 1.0]]).tolist() == [[5.5], [0.5]]
    assert [n.parameters for n in graph.nodes] == [(), ("w1", "b1"), (), ("w2",)]


def test_a_chain_of_dense_layers_is_a_network(tmp_path):
    path = written(chain(), tmp_path)
    network = load_model(str(path))
    assert isinstance(network, Network) and network.is_relu_chain
    weights, biases = [[[1.0, -2.0], [0.5, 3.0]], [[1.0, 1.0]]], [[1.0, -1.0], None]
    assert network.digest == Network.from_weights(weights, biases).digest


def test_what_is_no_chain_stays_a_graph(tmp_path):
    for nodes, arrays in (
        ([node("Conv", ["x", "w"], ["y"])], {"w": f4(1, 1, 2)}),
        ([node("MatMul", ["x", "m"], ["y"])], {"m": f4(4, 2)}),  # along tokens: no matrix of the layer
        ([node("Softmax", ["x"], ["y"])], {}),
    ):
        assert type(load_model(str(written(made(nodes, [1, 1, 4] if "m" not in arrays else [1, 3, 4], **arrays),
                                           tmp_path)))).__name__ == "Graph"  # fmt: skip


def test_the_batch_axis(tmp_path):
    for first in (1, "batch", None):
        assert graph_of(chain(shape=[first, 2]), tmp_path).input_shape == (2,)
    with pytest.raises(InputError, match=r"shape '\(8, 2\)'; needed a batch axis of length 1"):
        graph_of(chain(shape=[8, 2]), tmp_path)
    with pytest.raises(InputError, match="needed a batch axis"):
        graph_of(chain(shape=[2]), tmp_path)


def test_open_axes_need_input_shape(tmp_path):
    model = made([node("GlobalAveragePool", ["x"], ["y"])], [1, 2, "h", "w"])
    with pytest.raises(InputError, match=r"^input_shape: .*pass input_shape"):
        graph_of(model, tmp_path)
    assert graph_of(model, tmp_path, input_shape=(2, 3, 5)).shapes[-1] == (1, 2, 1, 1)
    for wrong in ((3, 3, 5), (2, 3), (2, 3, 0), "2,3"):
        with pytest.raises(InputError, match=r"^input_shape"):
            graph_of(model, tmp_path, input_shape=wrong)
    shapeless = chain()
    shapeless.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(InputError, match="without a shape"):
        graph_of(shapeless, tmp_path)
    assert graph_of(shapeless, tmp_path, input_shape=[2]).input_shape == (2,)


def test_initializers_may_be_inputs_too(tmp_path):
    model = chain()
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, tensor.dims))
    assert graph_of(model, tmp_path).digest == graph_of(chain(), tmp_path).digest


def test_several_inputs_and_outputs_are_refused_by_name(tmp_path):
    model = chain()
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, [1]))
    with pytest.raises(UnsupportedLayerError, match=r"2 inputs \('x, mask'\)"):
        graph_of(model, tmp_path)
    model = chain()
    model.graph.output.append(helper.make_tensor_value_info("r", TensorProto.FLOAT, [1, 2]))
    with pytest.raises(UnsupportedLayerError, match=r"2 outputs \('y, r'\)"):
        graph_of(model, tmp_path)


def changed(change):
    model = chain()
    change(model)
    return model


@pytest.mark.parametrize(("change", "words"), [
    (lambda m: m.opset_import[0].__setattr__("version", 6), "opset 6; needed one of 7 to"),
    (lambda m: m.opset_import[0].__setattr__("version", 999), "opset 999"),
    (lambda m: m.ClearField("opset_import"), r"opset \[\]"),
    (lambda m: m.ClearField("graph"), "without a graph"),
    (lambda m: m.functions.add(name="f"), "functions \\('f'\\)"),
    (lambda m: m.training_info.add(), "training information"),
    (lambda m: m.graph.sparse_initializer.add(), "sparse initializers"),
    (lambda m: m.graph.initializer.append(m.graph.initializer[0]), "'w1' twice"),
    (lambda m: m.graph.initializer[0].ClearField("name"), "initializer '' twice"),
    (lambda m: m.graph.input[0].type.tensor_type.__setattr__("elem_type", TensorProto.UINT8), "of type UINT8"),
    (lambda m: m.graph.input[0].type.ClearField("tensor_type"), "no tensor"),
    (lambda m: m.graph.output[0].__setattr__("name", "nobody"), "'nobody', which no node gives"),
    (lambda m: m.graph.output[0].__setattr__("name", "w1"), "does not depend on the input"),
    (lambda m: m.graph.node[2].input.__setitem__(0, "z"), "on 'z', which no earlier node gives"),
    (lambda m: m.graph.node[2].output.__setitem__(0, "r"), "both give 'r'"),
    (lambda m: m.graph.node.insert(0, m.graph.node.pop()), "on 'r', which no earlier node gives"),
    (lambda m: m.graph.node[0].attribute.append(m.graph.node[0].attribute[0]), "'transB' twice"),
    (lambda m: m.graph.node[0].attribute[0].__setattr__("ref_attr_name", "t"), "attribute of a function"),
    (lambda m: m.graph.node[0].attribute[0].ClearField("type"), "of type UNDEFINED"),
    (lambda m: m.graph.node[0].attribute[0].__setattr__("type", 1), "attribute transB is '0.0'"),
    (lambda m: m.graph.initializer[0].__setattr__("data_type", TensorProto.STRING), "'w1' of type STRING"),
    (lambda m: m.graph.initializer[0].__setattr__("data_type", 77), "'w1' of type 77"),
    (lambda m: m.graph.initializer[0].dims.append(-1), "of shape"),
    (lambda m: m.graph.initializer[0].dims.append(2), "with 16 bytes; needed 32 bytes"),
    (lambda m: m.graph.initializer[0].__setattr__("raw_data", b"\xff" * 16), "'h' \\(Gemm\\): weight: got nan|nan"),
    (lambda m: m.graph.initializer[0].ClearField("raw_data"), "with 0 numbers; needed 4"),
    (lambda m: m.graph.initializer[0].segment.__setattr__("begin", 0), "in segments"),
])  # fmt: skip
def test_refusals(change, words, tmp_path):
    with pytest.raises(InputError, match=words):
        graph_of(changed(change), tmp_path)


def test_long_names_are_cut_in_messages(tmp_path):
    model = changed(lambda m: m.graph.node[2].input.__setitem__(0, "z" * 10**6))
    with pytest.raises(InputError) as caught:
        graph_of(model, tmp_path)
    assert len(str(caught.value)) < 500


def test_the_package_is_named_where_it_is_missing(monkeypatch, tmp_path):
    real = builtins.__import__

    def without(name, *args, **options):
        if name == "onnx":
            raise ImportError(name)
        return real(name, *args, **options)

    path = written(chain(), tmp_path)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDependencyError, match=r"pip install 'certbound\[onnx\]'"):
        load_onnx(path)
    monkeypatch.undo()
    assert import_onnx() is onnx


# ---------------------------------------------------------------- the round trip


@pytest.mark.parametrize(("operator", "wrong"), [
    ("Gemm", lambda n: n.add(Linear(n.floats(1, "w") if n.integer("transB", 0) else n.floats(1, "w").T), n.value(0))),
    ("Relu", lambda n: n.add(Scale(np.array(1.0 + 1e-9)), n.value(0))),
])  # fmt: skip
def test_a_wrong_translation_is_found_and_named(operator, wrong, monkeypatch, tmp_path):
    monkeypatch.setitem(onnx_ops.HANDLERS, operator, wrong)
    name = {"Gemm": "h", "Relu": "r"}[operator]
    with pytest.raises(InputError, match=rf"'{name}' \({operator}\): values that differ by .* in the round trip"):
        graph_of(chain(), tmp_path)


def test_a_wrong_constant_is_found(monkeypatch, tmp_path):
    from certbound.io import onnx_constants

    monkeypatch.setitem(onnx_constants._BINARY, "Add", np.subtract)
    model = made([node("Add", ["a", "b"], ["c"]), node("Add", ["x", "c"], ["y"])], [1, 2], a=f4(2), b=f4(2))
    with pytest.raises(InputError, match=r"'c' \(Add\): values that differ"):
        graph_of(model, tmp_path)


def test_a_wrong_convolution_of_a_large_image_is_found(monkeypatch, tmp_path):
    monkeypatch.setattr(onnx_check, "_WORK", 0)
    good = made([node("Conv", ["x", "w"], ["p"], strides=[2, 1], pads=[1, 0, 2, 1]),
                 node("MaxPool", ["p"], ["m"], kernel_shape=[3, 3], strides=[2, 2]),
                 node("AveragePool", ["m"], ["y"], kernel_shape=[2, 2])], [1, 2, 90, 70], w=f4(3, 2, 3, 4))  # fmt: skip
    calls = []
    part = onnx_check._part
    monkeypatch.setattr(onnx_check, "_part", lambda *a: calls.append(part(*a)) or calls[-1])
    assert graph_of(good, tmp_path).input_shape == (2, 90, 70)
    assert [c[0][0].shape[2:] for c in calls] == [(20, 20)] * 3
    conv = onnx_ops.HANDLERS["Conv"]

    def transposed(n):
        n.attributes["strides"] = [1, 2]
        return conv(n)

    monkeypatch.setitem(onnx_ops.HANDLERS, "Conv", transposed)
    with pytest.raises(InputError, match=r"'p' \(Conv\): shape"):
        graph_of(good, tmp_path)


def test_extreme_weights_are_no_failure(tmp_path):
    """Sums that cancel are rounded by the size of their terms, not of the sum."""
    weight = np.array([[1e30], [-1e30], [1.0]], np.float32)
    nodes = [node("Concat", ["x", "x", "x"], ["c"], axis=1), node("MatMul", ["c", "w"], ["y"])]
    assert graph_of(made(nodes, [1, 1], w=weight), tmp_path).forward([[0.5]]).shape == (1, 1)
    many = RNG_WIDE.standard_normal((4000, 1)).astype(np.float32) * np.float32(1e18)
    assert graph_of(made([node("MatMul", ["x", "w"], ["y"])], [1, 4000], w=many), tmp_path).n_inputs == 4000


RNG_WIDE = np.random.default_rng(0)

# ---------------------------------------------------------------- damage


def test_every_beginning_of_a_file_is_refused(tmp_path):
    for data in fuzz_bytes.corpus("onnx"):
        path = tmp_path / "m.onnx"
        for n in range(len(data)):
            path.write_bytes(data[:n])
            with pytest.raises(InputError):
                load_onnx(path)


@pytest.mark.parametrize("more", [b"\0", b"\x08\x08", b"\xff" * 12, b"\x98\x06\x01", b"\x3a\x00"])
def test_bytes_after_the_end_are_refused(more, tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(chain().SerializeToString() + more)
    with pytest.raises(InputError, match="which is no ONNX model"):
        load_onnx(path)


def test_two_models_in_one_file_are_refused(tmp_path):
    """protobuf would merge them into one with six nodes."""
    path = tmp_path / "m.onnx"
    path.write_bytes(chain().SerializeToString() * 2)
    with pytest.raises(InputError, match=r"ModelProto with two values of ir_version"):
        load_onnx(path)


@pytest.mark.parametrize("seed", range(5))
def test_flipped_bits_give_a_network_or_an_error(seed, tmp_path):
    rng = np.random.default_rng(seed)
    data = fuzz_bytes.corpus("onnx")[seed % 4]
    for _ in range(60):
        wrong = bytearray(data)
        for _ in range(rng.integers(1, 4)):
            wrong[rng.integers(len(wrong))] ^= 1 << rng.integers(8)
        fuzz_bytes.onnx(bytes(wrong))


def field(number, data):
    """A field with its length before it."""
    length, prefix = len(data), bytearray()
    key = number << 3 | 2
    for value in (key, length):
        while value > 127:
            prefix.append(value & 127 | 128)
            value >>= 7
        prefix.append(value)
    return bytes(prefix) + data


def test_deep_nesting_is_refused(tmp_path):
    deep = b""
    for _ in range(40):  # a sequence of sequences of …: TypeProto.sequence_type.elem_type
        deep = field(4, field(1, deep))
    value = field(1, b"x") + field(2, deep)
    path = tmp_path / "m.onnx"
    path.write_bytes(b"\x08\x08" + field(7, field(11, value)))
    with pytest.raises(InputError, match="nested more than 16 deep"):
        load_onnx(path)


def test_many_fields_are_refused_before_they_are_made(tmp_path):
    """Four megabytes of empty nodes would be hundreds in memory."""
    path = tmp_path / "m.onnx"
    path.write_bytes(b"\x08\x08" + field(7, b"\x0a\x00" * 2_000_000))
    with at_most(10e6), pytest.raises(InputError, match="more fields than the limit"):
        load_onnx(path, limits=OnnxLimits(fields=50_000))


def test_limits(tmp_path):
    path = written(chain(), tmp_path)
    size = path.stat().st_size
    load_onnx(path, limits=OnnxLimits(file_bytes=size, nodes=3, elements=4, total_elements=8, work=100))
    for limits, words in (
        (OnnxLimits(file_bytes=size - 1), f"of {size} bytes; needed at most {size - 1}"),
        (OnnxLimits(nodes=2), "3 nodes; needed at most 2"),
        (OnnxLimits(elements=3), "tensor 'w1' of 4 numbers"),
        (OnnxLimits(total_elements=7), "8 in all constants so far"),
        (OnnxLimits(work=3), "multiplications; needed at most 3"),
        (OnnxLimits(fields=20), "more fields than the limit"),
    ):
        with pytest.raises(InputError, match=words):
            load_onnx(path, limits=limits)


@pytest.mark.parametrize("dims", [[2**62, 2**62], [2**40, 2], [2**31, 2**31, 0, 3], [65536, 65536]])
def test_shapes_beyond_the_data_allocate_nothing(dims, tmp_path):
    model = chain()
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].dims.extend(dims)
    with at_most(5e6), pytest.raises(InputError):
        graph_of(model, tmp_path)


BOMBS = {
    "fill": ([node("ConstantOfShape", ["n"], ["c"]), node("ReduceSum", ["c"], ["s"]), node("Add", ["x", "s"], ["y"])],
             {"n": vector(2**20, 2**20)}),
    "range": ([node("Range", ["a", "n0", "one"], ["c"]), node("Shape", ["c"], ["y"])],
              {"a": np.array(0), "n0": np.array(2**40), "one": np.array(1)}),
    "expand": ([node("Expand", ["x", "n"], ["y"])], {"n": vector(2**20, 2**20, 2)}),
    "tile": ([node("Tile", ["x", "n"], ["y"])], {"n": vector(2**20, 2**20)}),
    "pad": ([node("Pad", ["x", "n"], ["y"])], {"n": vector(0, 0, 0, 2**60)}),
    "conv pad": ([node("Unsqueeze", ["x", "one1"], ["u"]), node("Conv", ["u", "w"], ["y"], pads=[2**40, 2**40])],
                 {"one1": vector(1), "w": f4(1, 1, 1)}),
    "pool": ([node("Unsqueeze", ["x", "one1"], ["u"]), node("MaxPool", ["u"], ["y"], kernel_shape=[2**40],
              pads=[2**39, 2**39])], {"one1": vector(1)}),
    "broadcast": ([node("Reshape", ["x", "s"], ["t"]), node("Add", ["t", "w"], ["y"])],
                  {"s": vector(2, 1), "w": np.zeros((1, 1, 1000), np.float32)}),
    "constants": ([node("Add", ["v", "w"], ["c"]), node("MatMul", ["c", "c"], ["d"]),
                   node("Gather", ["d", "i"], ["y"])],
                  {"v": np.zeros((10**4, 1), np.float32), "w": np.zeros((1, 10**4), np.float32), "i": vector(0)}),
    "gather": ([node("Gather", ["x", "i"], ["g"], axis=1), node("Gather", ["g", "i"], ["h"], axis=1),
                node("MatMul", ["h", "x"], ["y"])], {"i": np.zeros((1000, 100), np.int64)}),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_small_files_that_ask_for_much(name, tmp_path):
    nodes, arrays = BOMBS[name]
    limits = OnnxLimits(elements=10**6 if name not in ("broadcast",) else 1999)
    model = made(nodes, [1, 2], 18, **arrays)
    with at_most(30e6), pytest.raises(InputError, match=r"pass limits|of \d[\d,]* numbers|fewer numbers|at most"):
        graph_of(model, tmp_path, limits=limits)


# ---------------------------------------------------------------- external data


def outside(location="data.bin", offset=None, length=None, **more):
    model = chain()
    tensor = model.graph.initializer[0]
    data = tensor.raw_data
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    given = {"location": location, "offset": offset, "length": length, **more}
    for key, value in given.items():
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))
    return model, data


def test_external_data(tmp_path):
    wanted = graph_of(chain(), tmp_path).digest
    for options, before in (({}, b""), ({"offset": 8, "length": 16}, b"12345678"), ({"location": "sub/d.bin"}, b"")):
        model, data = outside(**options)
        file = tmp_path / options.get("location", "data.bin")
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(before + data + b"more")
        assert graph_of(model, tmp_path).digest == wanted
    os.chdir(tmp_path)  # the folder is the model's, not the working one's
    assert load_onnx("m.onnx").digest == wanted


@pytest.mark.parametrize("location", [
    "/etc/passwd", "../secret.bin", "sub/../../secret.bin", "link.bin", "sub/up/secret.bin", "", ".", "a:b", "a\\b",
    "a\0b", "missing.bin", "sub", "pipe", "loop", "x" * 5000, "sub/../inside.bin",
])  # fmt: skip
def test_nothing_outside_the_folder_is_read(location, tmp_path):
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "secret.bin").write_bytes(b"\0" * 16)
    (folder / "inside.bin").write_bytes(b"\0" * 16)  # named with a '..', which is refused as it is
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    (folder / "sub" / "up").symlink_to(tmp_path)
    (folder / "loop").symlink_to(folder / "loop")
    os.mkfifo(folder / "pipe")
    model, _ = outside(location)
    with pytest.raises(InputError, match="the tensor 'w1' in "):
        graph_of(model, folder)


@pytest.mark.parametrize(("options", "words"), [
    ({"offset": 1}, "at bytes 1 to 17 of data.bin, which has 16"), ({"offset": -1}, "offset '-1'"),
    ({"offset": 10**30}, "the offset"), ({"length": 15}, "15 bytes of external data; needed 16"),
    ({"length": "١٦"}, "the length"), ({"basepath": "/"}, "described by"),
])  # fmt: skip
def test_external_data_of_another_size(options, words, tmp_path):
    model, data = outside(**options)
    (tmp_path / "data.bin").write_bytes(data)
    with pytest.raises(InputError, match=words):
        graph_of(model, tmp_path)


def test_external_data_is_counted(tmp_path):
    model, data = outside()
    (tmp_path / "data.bin").write_bytes(data)
    graph_of(model, tmp_path, limits=OnnxLimits(external_bytes=16))
    with pytest.raises(InputError, match="external data of more than 15 bytes"):
        graph_of(model, tmp_path, limits=OnnxLimits(external_bytes=15))
    both = chain()
    both.graph.initializer[0].external_data.add(key="location", value="data.bin")
    with pytest.raises(InputError, match="external data that it does not use"):
        graph_of(both, tmp_path)


def test_numbers_outside_their_type_are_refused(tmp_path):
    for kind, value in ((TensorProto.FLOAT16, 2**16), (TensorProto.INT8, 128), (TensorProto.UINT8, -1),
                        (TensorProto.BOOL, 300)):  # fmt: skip
        model = made([node("Identity", ["x"], ["y"])], [1, 2])
        model.graph.initializer.append(TensorProto(name="q", data_type=kind, dims=[1], int32_data=[value]))
        with pytest.raises(InputError, match="'q' with numbers outside"):
            graph_of(model, tmp_path)
    model = made([node("Identity", ["x"], ["y"])], [1, 2])
    model.graph.initializer.append(numpy_helper.from_array(np.array([2**63], np.uint64), "q"))
    with pytest.raises(InputError, match="integers of 64 bits"):
        graph_of(model, tmp_path)


# ---------------------------------------------------------------- as a model


def test_load_model_takes_no_weights_beside_it(tmp_path):
    path = str(written(chain(), tmp_path))
    with pytest.raises(InputError, match="an ONNX file, which has its own"):
        load_model(path, tmp_path / "w.npz")
    with pytest.raises(InputError, match=r"^layers"):
        load_model(path, layers=["a"])
    with pytest.raises(InputError, match="--model"):
        load_model(None, path)


def test_a_missing_file(tmp_path):
    with pytest.raises(InputError, match="model: got no file"):
        load_onnx(tmp_path / "no.onnx")
