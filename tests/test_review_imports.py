"""Regressions of a review of the importers and of what runs on their graphs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from graph_models import Draft, head

from certbound import ops
from certbound.activations import Activation
from certbound.crown.lowering import lowered
from certbound.errors import InputError, UnsupportedLayerError


@pytest.mark.parametrize(
    "op",
    [
        ops.Clip(0.0, 6.0),  # ReLU6
        ops.Clip(-1.0, math.inf),
        ops.Scale(np.array(-0.5)),
        ops.Shift(np.array([[0.7]])),
    ],
    ids=["relu6", "clip", "scale", "shift"],
)
def test_one_number_that_waits_passes_a_flatten(op):
    """A scale or shift of one number had as many axes as the value: too many after Flatten (CROWN on MobileNets)."""
    rng = np.random.default_rng(0)
    draft = Draft((2, 3, 4))
    draft.add(ops.Pointwise(Activation("relu")))
    draft.add(op)
    graph = head(draft, rng)
    x = 5.0 * rng.standard_normal((4, 24))
    np.testing.assert_allclose(lowered(graph).forward(x), graph.forward(x), rtol=1e-12)


def test_images_with_their_channels_last_are_not_read_as_others():
    """They have as many numbers as (C, H, W), in another order; an ONNX model and its data are read apart."""
    draft = Draft((3, 2, 4))
    graph = head(draft, np.random.default_rng(0))
    x = np.random.default_rng(1).random((5, 3, 2, 4))
    with pytest.raises(InputError, match=r"samples of shape \(2, 4, 3\).*needed \(3, 2, 4\)"):
        graph.forward(x.transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(graph.forward(x.reshape(5, -1)), graph.forward(x))


def test_axes_of_length_1_do_not_matter():
    draft = Draft((1, 2, 4))
    graph = head(draft, np.random.default_rng(0))
    x = np.random.default_rng(1).random((5, 2, 4))
    for shape in ((5, 1, 2, 4), (5, 2, 4, 1), (5, 8), (5, 8, 1)):
        np.testing.assert_array_equal(graph.forward(x.reshape(shape)), graph.forward(x))


def test_a_clip_whose_lower_end_is_the_largest_float(tmp_path):
    """It was read as +inf, as if that were the spelling of no lower end."""
    onnx = pytest.importorskip("onnx")
    from certbound.io.onnx_file import load_onnx

    helper, largest = onnx.helper, np.finfo(np.float32).max
    node = helper.make_node("Clip", ["x", "low"], ["y"])
    values = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, 2]) for n in "xy"]
    low = onnx.numpy_helper.from_array(np.array(largest), "low")
    model = helper.make_model(
        helper.make_graph([node], "g", values[:1], values[1:], [low]),
        opset_imports=[helper.make_opsetid("", 13)],
        ir_version=8,
    )
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    np.testing.assert_array_equal(load_onnx(tmp_path / "m.onnx").forward([[0.0, 1.0]]), [[largest, largest]])


def test_a_cast_to_8_bits_is_refused():
    """It saturates: float8_e4m3fn ends at 448; the check of the round trip allowed for its rounding."""
    torch = pytest.importorskip("torch")
    from certbound.graph import as_graph

    class Quantised(torch.nn.Module):
        def forward(self, x):
            return x.to(torch.float8_e4m3fn).float()

    with pytest.raises(UnsupportedLayerError, match=r"the model itself \(Quantised\).*a cast to torch\.float8_e4m3fn"):
        as_graph(Quantised(), input_shape=(4,))
