"""nn.Module → Network: what is accepted computes the same, what is not is refused by name, nothing is ignored."""

from __future__ import annotations

import copy
import itertools
import math
import warnings
from importlib import import_module

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize, prune

from certbound import network as ir
from certbound.errors import InputError, UnsupportedLayerError
from certbound.io import torch_module
from certbound.io.torch_layers import Normalise
from certbound.io.torch_module import from_module


def linear(n_in, n_out, seed=0, bias=True, dtype=torch.float32):
    layer = nn.Linear(n_in, n_out, bias=bias, dtype=dtype)
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.from_numpy(rng.standard_normal(tuple(parameter.shape))))
    return layer


def as_double(model, x):
    """The oracle: the model itself, converted to float64 and run by torch."""
    with torch.no_grad():
        return copy.deepcopy(model).double().eval()(torch.from_numpy(x)).numpy().reshape(len(x), -1)


def assert_same(model, shape=(4,), input_shape=None, atol=1e-9):
    net = from_module(model, input_shape=input_shape)
    x = np.random.default_rng(1).standard_normal((16, *shape))
    np.testing.assert_allclose(net.forward(x), as_double(model, x), rtol=1e-9, atol=atol)
    return net


class Custom(nn.Module):
    """fc1 → ``between`` → fc2, with the function under test in the middle or around."""

    def __init__(self, function, n_in=4, hidden=3, n_out=2):
        super().__init__()
        self.fc1 = linear(n_in, hidden, 1)
        self.fc2 = linear(hidden, n_out, 2)
        self.function = function

    def forward(self, x):
        return self.function(self, x)


# -- accepted --------------------------------------------------------------------------------------


def test_bare_linear_is_read_exactly():
    layer = linear(4, 3)
    net = assert_same(layer)
    (affine,) = net.layers
    assert np.array_equal(affine.weight, layer.weight.detach().double().numpy())
    assert np.array_equal(affine.bias, layer.bias.detach().double().numpy())


def test_nested_sequential_with_every_accepted_layer():
    model = nn.Sequential(
        nn.Flatten(),
        nn.Sequential(linear(4, 5), nn.ReLU(inplace=True), nn.Identity()),
        nn.Dropout(0.5),
        nn.Sequential(linear(5, 3, 1, bias=False)),
    ).eval()
    net = assert_same(model)
    assert [type(layer) for layer in net.layers] == [ir.Flatten, ir.Affine, ir.ReLU, ir.Affine]


def test_final_relu_is_kept():
    net = assert_same(nn.Sequential(linear(4, 3), nn.ReLU()))
    assert net.chain.final_relu


@pytest.mark.parametrize(
    "relu",
    [
        functional.relu,
        torch.relu,
        torch.relu_,
        lambda x: x.relu(),
        lambda x: x.relu_(),
        lambda x: functional.relu(x, inplace=True),
    ],
)
def test_every_spelling_of_relu(relu):
    net = assert_same(Custom(lambda m, x: m.fc2(relu(m.fc1(x)))))
    assert ir.ReLU() in net.layers


def unpacked(x):
    n, _channels, _height, _width = x.shape
    return x.view(n, -1)


FLATTENS = {
    "torch.flatten": lambda x: torch.flatten(x, 1),
    "torch.flatten kw": lambda x: torch.flatten(x, start_dim=1, end_dim=-1),
    "flatten": lambda x: x.flatten(1),
    "view -1 n": lambda x: x.view(-1, 4),
    "view tuple": lambda x: x.view((-1, 4)),
    "view size -1": lambda x: x.view(x.size(0), -1),
    "view shape n": lambda x: x.view(x.shape[0], 4),
    "view size()": lambda x: x.view(x.size()[0], -1),
    "view dim kw": lambda x: x.view(x.size(dim=0), -1),
    "unpacked": unpacked,
    "reshape": lambda x: x.contiguous().reshape(x.size(0), -1),
    "torch.reshape": lambda x: torch.reshape(x, (x.size(0), -1)),
    "torch.reshape kw": lambda x: torch.reshape(x, shape=(-1, 4)),
}


@pytest.mark.parametrize("flatten", FLATTENS.values(), ids=FLATTENS.keys())
def test_every_spelling_of_flatten(flatten):
    model = Custom(lambda m, x: m.fc2(torch.relu(m.fc1(flatten(x)))))
    net = assert_same(model, shape=(1, 2, 2), input_shape=(1, 2, 2))
    assert net.input_shape == (1, 2, 2)
    assert isinstance(net.layers[0], ir.Flatten)


def test_functional_linear_with_parameters():
    net = assert_same(
        Custom(lambda m, x: functional.linear(functional.linear(x, m.fc1.weight, m.fc1.bias), weight=m.fc2.weight))
    )
    assert net.layers[1].bias is None


def test_functional_dropout_when_off():
    assert_same(Custom(lambda m, x: m.fc2(functional.dropout(m.fc1(x), 0.5, training=m.training))).eval())


def test_reused_and_shared_layers():
    square = linear(4, 4)
    model = nn.Sequential(square, nn.ReLU(), square, nn.ReLU(), nn.Sequential(square))
    assert len(assert_same(model).chain.weights) == 3


def test_branches_on_the_model_not_the_data():
    assert_same(Custom(lambda m, x: m.fc2(torch.relu(m.fc1(x)) if m.fc1.bias is not None else x)))


def test_flat_input_needs_no_shape():
    assert_same(Custom(lambda m, x: m.fc2(m.fc1(x.view(x.size(0), -1)).relu())))


def test_linear_under_another_name():
    layer = nn.modules.linear.NonDynamicallyQuantizableLinear(4, 2)
    assert_same(nn.Sequential(layer))


def test_an_imported_network_is_traced_like_any_graph_module():
    assert_same(torch.fx.symbolic_trace(nn.Sequential(linear(4, 3), nn.ReLU(), linear(3, 2))))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_dtype_is_exact(dtype):
    model = nn.Sequential(linear(20, 8, dtype=dtype), nn.ReLU(), linear(8, 3, 1, dtype=dtype))
    net = assert_same(model, (20,))
    assert np.array_equal(net.layers[2].weight, model[2].weight.detach().double().numpy())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_wide_and_deep_models_pass_the_round_trip(dtype):
    widths = [784, 512, 256, 64, 10]
    torch.manual_seed(3)
    layers = [x for a, b in itertools.pairwise(widths) for x in (nn.Linear(a, b, dtype=dtype), nn.ReLU())]
    net = from_module(nn.Sequential(*layers[:-1]))
    assert [w.shape[0] for w in net.chain.weights] == widths[1:]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e30])
def test_extreme_weights_pass_the_round_trip(scale):
    model = nn.Sequential(linear(4, 50), nn.ReLU(), linear(50, 2, 1))  # wide: no input leaves all 50 off
    with torch.no_grad():
        model[0].weight.mul_(scale)
        model[2].weight.mul_(scale)
        model[0].bias.zero_()
        model[2].bias.zero_()
    from_module(model)


@pytest.mark.filterwarnings("error")
def test_inputs_that_overflow_are_left_out_without_a_warning():
    model = nn.Sequential(linear(4, 5, dtype=torch.float64), nn.ReLU(), linear(5, 2, 1, dtype=torch.float64))
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.mul_(1e153)
            layer.bias.zero_()
    from_module(model)


def test_zero_weights_pass():
    model = nn.Linear(3, 2)
    nn.init.zeros_(model.weight)
    assert not from_module(model).layers[0].weight.any()


def test_as_network_uses_the_importer():
    assert isinstance(ir.as_network(linear(3, 2)), ir.Network)


# -- normalisation ---------------------------------------------------------------------------------

SHAPE = (3, 2, 2)
MEAN, STD = [0.5, 0.25, 0.125], [0.5, 2.0, 0.25]


def test_own_normalise_per_channel():
    net = assert_same(nn.Sequential(Normalise(MEAN, STD), nn.Flatten(), linear(12, 2)), SHAPE, SHAPE)
    mean, std = net.layers[0].per_input(SHAPE, 12)
    assert np.array_equal(mean, np.repeat(MEAN, 4)) and np.array_equal(std, np.repeat(STD, 4))


def test_own_normalise_scalar_and_per_feature_need_no_shape():
    assert_same(nn.Sequential(Normalise(0.5, 0.25), linear(4, 2)))
    assert_same(nn.Sequential(Normalise([1.0, 2.0, 3.0, 4.0], 0.5), linear(4, 2)))
    assert_same(nn.Sequential(linear(4, 3), Normalise([1.0, 2.0, 3.0], [1.0, 2.0, 4.0]), nn.ReLU(), linear(3, 2)))


def test_own_normalise_per_pixel_and_broadcast():
    pixels = np.arange(12.0).reshape(SHAPE)
    assert_same(nn.Sequential(Normalise(pixels, pixels + 1), nn.Flatten(), linear(12, 2)), SHAPE, SHAPE)
    rows = np.array([[[1.0], [2.0]]])  # per row of the image: neither per channel nor per input
    assert_same(nn.Sequential(Normalise(rows, 2.0), nn.Flatten(), linear(12, 2)), SHAPE, SHAPE)


def test_normalise_after_flatten_is_per_input():
    assert_same(nn.Sequential(nn.Flatten(), Normalise(np.arange(4.0), 2.0), linear(4, 2)), (1, 2, 2), (1, 2, 2))


def test_own_normalise_follows_dtype_and_is_not_trained():
    layer = Normalise(MEAN, STD).double()
    assert layer.mean.dtype is torch.float64 and not list(layer.parameters())
    assert set(layer.state_dict()) == {"mean", "std"}
    assert_same(nn.Sequential(Normalise(0.1, 0.3), linear(4, 2)).half())


@pytest.mark.parametrize(
    ("mean", "std", "argument"),
    [
        (0.0, 0.0, "std"),
        (0.0, -1.0, "std"),
        (math.nan, 1.0, "mean"),
        ([], 1.0, "mean"),
        ("a", 1.0, "mean"),
        (0.0, math.inf, "std"),
        ([1.0, 2.0], [1.0, 2.0, 3.0], "std"),
    ],
)
def test_own_normalise_refuses_bad_statistics(mean, std, argument):
    with pytest.raises(InputError) as caught:
        Normalise(mean, std)
    assert caught.value.argument == argument


@pytest.mark.parametrize("shape", [(2, 1, 4, 4), (2, 4), (2,), (2, 4, 3)])
def test_own_normalise_never_enlarges_its_input(shape):
    with pytest.raises(InputError, match="mean and std of shape"):
        Normalise(MEAN, STD)(torch.zeros(shape))


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("inplace", [False, True])
def test_torchvision_normalize(version, inplace):
    transforms = import_module("torchvision.transforms" + (".v2" if version == "v2" else ""))
    model = nn.Sequential(transforms.Normalize(MEAN, STD, inplace=inplace), nn.Flatten(), linear(12, 2))
    net = from_module(model, input_shape=SHAPE)
    x = torch.rand(5, *SHAPE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(x.clone()).numpy()
    np.testing.assert_allclose(net.forward(x.numpy()), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="channels, height, width") as caught:
        from_module(model)
    assert caught.value.argument == "input_shape" and "0 (Normalize)" in str(caught.value)


def test_torchvision_normalize_of_one_channel_needs_no_shape():
    transforms = import_module("torchvision.transforms")
    model = nn.Sequential(transforms.Normalize([0.1307], [0.3081]), nn.Flatten(), linear(4, 2))
    layer = from_module(model).layers[0]
    # the number that its forward uses: 0.1307 as float32
    assert layer.mean.item() == float(np.float32(0.1307)) != 0.1307


def test_torchvision_normalize_takes_no_flat_input():
    transforms = import_module("torchvision.transforms")
    with pytest.raises(InputError, match="channels, height, width"):  # three channels are not three features
        from_module(nn.Sequential(transforms.Normalize(MEAN, STD), nn.Flatten(), linear(3, 2)))


def test_torchvision_normalize_broadcasting_one_channel_into_three_is_refused():
    transforms = import_module("torchvision.transforms")
    with pytest.raises(InputError):
        from_module(nn.Sequential(transforms.Normalize(MEAN, STD), nn.Flatten(), linear(12, 2)), input_shape=(1, 2, 2))


def test_torchvision_subclasses_and_other_transforms_are_refused():
    transforms = import_module("torchvision.transforms")

    class Twice(transforms.Normalize):
        def forward(self, x):
            return 2 * super().forward(x)

    with pytest.raises(UnsupportedLayerError, match=r"0 \(Twice\)"):
        from_module(nn.Sequential(Twice(MEAN, STD), nn.Flatten(), linear(12, 2)), input_shape=SHAPE)
    with pytest.raises(UnsupportedLayerError):
        from_module(nn.Sequential(transforms.RandomErasing(), nn.Flatten(), linear(12, 2)), input_shape=SHAPE)


def test_zero_std_is_refused_with_its_path():
    layer = Normalise(0.0, 1.0)
    layer.std.zero_()
    with pytest.raises(InputError, match=r"^0\.std: got 0\.0"):
        from_module(nn.Sequential(layer, linear(4, 2)))


@pytest.mark.parametrize("mean", [MEAN, np.zeros((3, 1, 1)), np.zeros((1, 2, 2))])
def test_per_channel_normalise_without_shape_says_what_to_pass(mean):
    with pytest.raises(InputError, match=r"pass input_shape=\(channels, height, width\)") as caught:
        from_module(nn.Sequential(Normalise(mean, 1.0), nn.Flatten(), linear(12, 2)))
    assert caught.value.argument == "input_shape"


# -- refused by name -------------------------------------------------------------------------------


class Residual(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.fc = linear(width, width)

    def forward(self, x):
        return x + torch.relu(self.fc(x))


def test_the_sum_of_a_residual_net_is_never_ignored():
    """A public peer ignores the sum and reports 0.031 for a net like this one, whose constant is above 1."""
    body = nn.Sequential(Residual(), Residual())
    with torch.no_grad():
        for parameter in body.parameters():
            parameter.mul_(0.01)
    x = torch.zeros(2, 4)
    x[1, 0] = 100.0
    with torch.no_grad():
        gap = torch.linalg.vector_norm(body(x)[1] - body(x)[0]) / 100.0
    assert gap > 0.9  # the identity path alone: no product of the small weights bounds it
    net = assert_same(body)
    assert [type(layer) for layer in net.layers] == [ir.Residual, ir.Residual] and not net.is_relu_chain
    with pytest.raises(UnsupportedLayerError, match=r"layers\[0\] \(Residual\)"):
        net.chain


class Deep(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Identity(), nn.Module()])
        self.blocks[1].conv = layer
        self.head = linear(4, 2)

    def forward(self, x):
        return self.head(self.blocks[1].conv(x).flatten(1))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(1, 1, 1),
        nn.BatchNorm1d(4),
        nn.LayerNorm(4),
        nn.PReLU(),
        nn.LogSigmoid(),
        nn.Softmax(-1),
        nn.Hardtanh(),
        nn.ReLU6(),
        nn.MaxPool1d(1),
        nn.Bilinear(4, 4, 4),
        nn.TransformerEncoderLayer(4, 1),
        nn.Unflatten(1, (2, 2)),
        nn.DataParallel(nn.Linear(4, 4)),
        nn.Dropout1d(),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_unknown_layers_are_named_with_their_path(layer):
    with pytest.raises(UnsupportedLayerError) as caught:
        from_module(Deep(layer).eval())
    assert f"blocks.1.conv ({type(layer).__name__})" in str(caught.value)
    assert caught.value.argument == "model"


def test_bare_unknown_layer():
    with pytest.raises(UnsupportedLayerError, match=r"the model itself \(Conv2d\)"):
        from_module(nn.Conv2d(1, 1, 1))


OPERATIONS = {
    "elu": (lambda m, x: m.fc2(functional.elu(m.fc1(x))), "elu"),
    "softmax": (lambda m, x: functional.softmax(m.fc2(m.fc1(x)), -1), "functional.softmax"),
    "log_softmax": (lambda m, x: m.fc2(m.fc1(x)).log_softmax(-1), "method log_softmax"),
    "times 2": (lambda m, x: m.fc2(m.fc1(x) * 2), "operator.mul"),
    "negative": (lambda m, x: m.fc2(-m.fc1(x)), "operator.neg"),
    "plus constant": (lambda m, x: m.fc2(m.fc1(x) + 1.0), "operator.add"),
    "plus tensor": (lambda m, x: m.fc2(m.fc1(x) + torch.ones(3)), "operator.add"),
    "plus parameter": (lambda m, x: m.fc1(x) + m.fc1.bias, "operator.add"),
    "in place": (lambda m, x: m.fc2(m.fc1(x).mul_(2)), "method mul_"),
    "iadd": (lambda m, x: m.fc2(operator_iadd(m.fc1(x))), r"operator\.i?add"),
    "abs": (lambda m, x: m.fc2(torch.abs(m.fc1(x))), "abs"),
    "clamp": (lambda m, x: m.fc2(m.fc1(x).clamp(min=0)), "method clamp"),
    "index": (lambda m, x: m.fc2(m.fc1(x))[:, 0], "getitem"),
    "mean": (lambda m, x: m.fc2(m.fc1(x)).mean(0), "method mean"),
    "detach": (lambda m, x: m.fc2(m.fc1(x)).detach(), "method detach"),
    "data": (lambda m, x: m.fc2(m.fc1(x)).data, "getattr"),
    "half": (lambda m, x: m.fc2(m.fc1(x).half().float()), "method half"),
    "matmul": (lambda m, x: m.fc2(x @ m.fc1.weight), "operator.matmul"),
    "cat": (lambda m, x: m.fc1(torch.cat([x[:, :2], x[:, 2:]], 1)), "getitem"),
    "cat twice": (lambda m, x: torch.cat([m.fc1(x), x], 1), "cat, which joins 2 values|cat"),
    "dropout on": (lambda m, x: m.fc2(functional.dropout(m.fc1(x))), "functional.dropout"),
    "computed weight": (lambda m, x: functional.linear(x, m.fc1.weight * 2), "operator.mul.*computed weight"),
    "flatten all": (lambda m, x: m.fc2(m.fc1(x).flatten()), "flatten .* of the axes 0"),
    "torch.flatten all": (lambda m, x: m.fc2(torch.flatten(m.fc1(x))), "flatten .* of the axes 0"),
    "partial flatten": (lambda m, x: m.fc2(m.fc1(x).flatten(1, 1)), "flatten .* of the axes 1 to 1"),
    "view -1": (lambda m, x: m.fc2(m.fc1(x).view(-1)), "view"),
    "view -1 -1": (lambda m, x: m.fc2(m.fc1(x).view(-1, -1)), "view"),
    "view splits": (lambda m, x: m.fc2(m.fc1(x).view(-1, 1)), "view"),
    "view fixed batch": (lambda m, x: m.fc2(m.fc1(x).view(41, 3)), "view"),
    "view wrong axis": (lambda m, x: m.fc2(m.fc1(x).view(x.size(1), -1)), "view"),
    "view 3": (lambda m, x: m.fc2(m.fc1(x).view(x.size(0), 1, 3)), "view"),
    "view dtype": (lambda m, x: m.fc1(x).view(torch.int32), "view"),
    "transpose": (lambda m, x: m.fc2(m.fc1(x.t().t())), "method t"),
    "value twice": (lambda m, x: (m.fc1(x), m.fc2(m.fc1(x)))[1], "used twice"),
    "dropped": (lambda m, x: (m.fc1(x), functional.relu(m.fc1(x)))[0], "used twice|the last value"),
    "relu in place, other returned": (lambda m, x: return_before_relu(m.fc1(x)), "the last value"),
    "two outputs": (lambda m, x: (h := m.fc1(x), h.size(0)), "the last value"),
    "list": (lambda m, x: [m.fc1(x)], "the last value"),
    "dict": (lambda m, x: {"logits": m.fc1(x)}, "the last value"),
    "constant": (lambda m, x: torch.zeros(2), "the last value"),
    "size as output": (lambda m, x: m.fc1(x).size(0), "the last value"),
    "linear of a constant": (lambda m, x: m.fc1(torch.zeros(1, 4)), "no value computed from the input"),
}


def operator_iadd(h):
    h += 1
    return h


def return_before_relu(h):
    functional.relu_(h)
    return h


@pytest.mark.parametrize(("function", "name"), OPERATIONS.values(), ids=OPERATIONS.keys())
def test_unknown_operations_are_named(function, name):
    with pytest.raises(UnsupportedLayerError, match=name) as caught:
        from_module(Custom(function).eval())
    assert caught.value.argument == "model"


def test_functional_operations_name_their_module():
    inner = Custom(lambda m, x: functional.elu(m.fc1(x)))
    with pytest.raises(UnsupportedLayerError, match=r"elu \(node 'elu' in 1\.block \(Custom\)\)"):
        from_module(nn.Sequential(nn.Identity(), nn.Sequential()).append(nn.Identity())[:1].append(wrap(inner)))


def wrap(inner):
    outer = nn.Sequential()
    outer.add_module("block", inner)
    return outer


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: m.fc1(x) if x.sum() > 0 else -m.fc1(x),
        lambda m, x: m.fc1(x)[: int(x[0, 0])],
        lambda m, x: m.fc1(torch.stack(list(x))),
        lambda m, x: m.fc1(x) if x.dim() == 2 else m.fc1(x.flatten(1)),
        lambda m, x: m.fc1(torch.from_numpy(x.numpy())),
        lambda m, x: 1 / 0,
    ],
)
def test_what_fx_cannot_trace_says_so(forward):
    with pytest.raises(UnsupportedLayerError, match=r"0 \(Custom\).*cannot trace|the (method|function)"):
        from_module(nn.Sequential(Custom(forward)))


def test_control_flow_names_module_and_reason():
    model = nn.Sequential(Custom(lambda m, x: m.fc1(x) if x.sum() > 0 else x))
    with pytest.raises(UnsupportedLayerError, match=r"0 \(Custom\), whose forward .* cannot trace .*control flow"):
        from_module(model)


def test_several_inputs():
    class Two(nn.Module):
        def forward(self, x, y):
            return x

    with pytest.raises(UnsupportedLayerError, match=r"the model itself \(Two\).*cannot trace.*argument"):
        from_module(Two())


def test_module_that_is_not_a_child():
    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = [linear(4, 2)]

        def forward(self, x):
            return self.layers[0](x)

    with pytest.raises(UnsupportedLayerError, match="not installed as a submodule"):
        from_module(Hidden())


@pytest.mark.parametrize("base", [nn.Linear, nn.ReLU, nn.Flatten, nn.Identity, nn.Dropout, Normalise])
def test_subclasses_are_refused(base):
    class Sub(base):
        def forward(self, x):
            return super().forward(x) + 1

    arguments = {nn.Linear: (4, 4), Normalise: (0.0, 1.0)}.get(base, ())
    with pytest.raises(UnsupportedLayerError, match=r"fc \(Sub\)"):
        model = nn.Sequential()
        model.add_module("fc", Sub(*arguments))
        from_module(model.append(linear(4, 4)).eval())


def test_subclasses_are_refused_even_where_their_forward_could_be_traced():
    class Positive(nn.Linear):
        def forward(self, x):
            return functional.linear(x, self.weight, self.bias).relu()

    class Same(nn.ReLU):
        pass

    for layer in (Positive(4, 4), Same()):
        with pytest.raises(UnsupportedLayerError, match=rf"0 \({type(layer).__name__}\)"):
            from_module(nn.Sequential(layer, linear(4, 2)))


def test_replaced_forward_of_a_layer_is_refused_and_of_a_model_is_traced():
    model = nn.Sequential(linear(4, 4), nn.ReLU(), linear(4, 2))
    model[0].forward = lambda x: 2 * x
    with pytest.raises(UnsupportedLayerError, match=r"0 \(Linear\), whose forward was replaced"):
        from_module(model)
    other = nn.Sequential(linear(4, 4))
    other.forward = lambda x: functional.elu(x)
    with pytest.raises(UnsupportedLayerError, match="elu"):
        from_module(other)


def test_flatten_from_another_axis():
    for layer in (nn.Flatten(0), nn.Flatten(2), nn.Flatten(1, 2)):
        with pytest.raises(UnsupportedLayerError, match=r"0 \(Flatten\) of the axes"):
            from_module(nn.Sequential(layer, linear(4, 2)))


def test_dropout_in_training_mode():
    model = nn.Sequential(linear(4, 4), nn.Dropout(0.1))
    with pytest.raises(UnsupportedLayerError, match=r"1 \(Dropout\) in training mode.*call model\.eval\(\)"):
        from_module(model)


def test_linear_on_the_last_axis_of_an_image():
    with pytest.raises(UnsupportedLayerError, match=r"itself \(Linear\).*last axis.*\(3, 4\)"):
        from_module(linear(4, 2), input_shape=(3, 4))
    assert from_module(linear(4, 2), input_shape=(1, 4)).n_inputs == 4  # one row: nothing is mixed up


def test_several_arguments_to_a_layer():
    with pytest.raises(UnsupportedLayerError, match="several or named"):
        from_module(Custom(lambda m, x: m.fc1(input=x)))
    with pytest.raises(UnsupportedLayerError, match="several or named"):
        from_module(Custom(lambda m, x: m.fc1(x, scale=2)))


def test_scripted_model():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(nn.Sequential(linear(4, 2)))
    with pytest.raises(UnsupportedLayerError, match="TorchScript"):
        from_module(scripted)


@pytest.mark.parametrize("value", [3, None, [np.eye(2)], nn.Linear])
def test_not_a_module(value):
    with pytest.raises(InputError, match=r"an nn\.Module") as caught:
        from_module(value)
    assert caught.value.argument == "model"


@pytest.mark.parametrize("shape", [784, (), (0,), (-1, 2), (2.0, 2), "ab", (True, 4)])
def test_bad_input_shape(shape):
    with pytest.raises(InputError, match="positive integers") as caught:
        from_module(linear(4, 2), input_shape=shape)
    assert caught.value.argument == "input_shape"


def test_input_shape_that_does_not_fit():
    with pytest.raises(InputError, match="8 numbers per sample where 1 takes 4") as caught:
        from_module(nn.Sequential(nn.Flatten(), linear(4, 2)), input_shape=(2, 4))
    assert caught.value.argument == "input_shape"
    with pytest.raises(InputError, match="3 numbers per sample where 1 takes 4"):
        from_module(nn.Sequential(linear(4, 3), linear(4, 2)))


def test_no_affine_layer():
    with pytest.raises(InputError, match="no Affine layer"):
        from_module(nn.ReLU())


# -- weights ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["weight", "bias"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_not_finite(where, bad):
    model = nn.Sequential(nn.Identity(), nn.Sequential(linear(4, 2)))
    with torch.no_grad():
        getattr(model[1][0], where).view(-1)[0] = bad
    with pytest.raises(InputError, match=rf"^1\.0\.{where}: got {bad}"):
        from_module(model)


def test_meta_and_complex_weights():
    with pytest.raises(InputError, match=r"^0\.weight: got a meta tensor"):
        from_module(nn.Sequential(nn.Linear(4, 2, device="meta")))
    with pytest.raises(InputError, match=r"^0\.weight: got dtype torch\.complex64"):
        from_module(nn.Sequential(nn.Linear(4, 2, dtype=torch.complex64)))


def test_lazy_and_integer_weights():
    with pytest.raises(UnsupportedLayerError, match=r"0 \(LazyLinear\)"):
        from_module(nn.Sequential(nn.LazyLinear(2)))
    layer = nn.Linear(4, 2, bias=False)
    layer.weight = nn.Parameter(torch.ones(2, 4, dtype=torch.int64), requires_grad=False)
    with pytest.raises(UnsupportedLayerError, match="int64"):
        from_module(nn.Sequential(layer))


# -- hooks and parametrizations --------------------------------------------------------------------


def test_parametrizations():
    for wrap_layer in (parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal):
        model = nn.Sequential(wrap_layer(linear(4, 4)), nn.ReLU(), linear(4, 2)).eval()
        assert parametrize.is_parametrized(model[0])
        net = from_module(model)
        assert np.array_equal(net.layers[0].weight, model[0].weight.detach().double().numpy())


def test_parametrized_bias():
    layer = linear(4, 2)

    class Twice(nn.Module):
        def forward(self, b):
            return 2 * b

    before = layer.bias.detach().double().numpy().copy()
    parametrize.register_parametrization(layer, "bias", Twice())
    assert np.array_equal(from_module(layer.eval()).layers[0].bias, 2 * before)


@pytest.mark.parametrize("wrap_layer", [parametrizations.spectral_norm, torch.nn.utils.spectral_norm])
def test_spectral_norm_in_training_mode_is_refused_and_left_alone(wrap_layer):
    model = nn.Sequential(wrap_layer(linear(4, 4)))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UnsupportedLayerError, match=r"0 \(Linear\) with a parametrized weight in training mode.*eval"):
        from_module(model)
    after = model.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_pruning_and_old_norms_give_what_the_next_forward_uses():
    masked = linear(4, 4)
    prune.l1_unstructured(masked, "weight", 0.5)
    prune.random_structured(masked, "weight", 1, dim=0)  # now a container of two
    prune.l1_unstructured(masked, "bias", 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        normed = torch.nn.utils.weight_norm(linear(4, 4, 1))
    spectral = torch.nn.utils.spectral_norm(linear(4, 4, 2))
    model = nn.Sequential(masked, normed, spectral).eval()
    stale = [layer.weight for layer in model]
    with torch.no_grad():  # an optimiser step: the attribute `weight` is now the one of the last forward
        masked.weight_orig.mul_(3)
        masked.bias_orig.mul_(3)
        normed.weight_g.mul_(5)
        spectral.weight_orig.add_(1)
    net = from_module(model)
    assert all(layer.weight is old for layer, old in zip(model, stale, strict=True))  # not touched by the import
    x = torch.rand(3, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(x).numpy()  # recomputes all three
    np.testing.assert_allclose(net.forward(x.numpy()), expected, rtol=1e-4, atol=1e-5)
    for i in range(3):
        assert np.array_equal(net.layers[i].weight, model[i].weight.detach().double().numpy())
    assert np.array_equal(net.layers[0].bias, masked.bias.detach().double().numpy())
    assert (net.layers[0].bias == 0).sum() == 1


def test_two_hooks_on_one_weight():
    layer = linear(4, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.nn.utils.weight_norm(layer)
    prune.identity(layer, "bias")
    from_module(layer.eval())
    layer.register_forward_pre_hook(next(h for h in layer._forward_pre_hooks.values() if hasattr(h, "dim")))
    with pytest.raises(UnsupportedLayerError, match="2 hooks that compute its weight"):
        from_module(layer)


@pytest.mark.parametrize("where", ["root", "layer", "inner"])
@pytest.mark.parametrize("kind", ["forward", "pre"])
def test_hooks_are_refused(where, kind):
    model = nn.Sequential(nn.Sequential(linear(4, 2)))
    target = {"root": model, "inner": model[0], "layer": model[0][0]}[where]

    def double(_module, args, *output):
        return 2 * output[0] if output else (2 * args[0],)

    handle = (target.register_forward_hook if kind == "forward" else target.register_forward_pre_hook)(double)
    with pytest.raises(UnsupportedLayerError, match=r"forward hook 'double'.*\.remove\(\)"):
        from_module(model)
    handle.remove()
    from_module(model)


# -- the round trip --------------------------------------------------------------------------------


def perturb(change):
    return torch.nn.modules.module.register_module_forward_hook(
        lambda module, _args, out: change(out) if type(module) is nn.Linear else None
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    "change",
    [
        lambda out: 1.5 * out,
        lambda out: out + 0.25,
        lambda out: out.clamp(max=1e3),  # seen by large inputs only
        lambda out: out * float("nan"),
        lambda out: out[:, :1],
        lambda out: (out, out),
        lambda out: out.to(torch.complex64),
    ],
)
def test_round_trip_sees_what_tracing_cannot(change, dtype):
    """A global hook is in no module's list and in no trace."""
    model = nn.Sequential(linear(6, 3, dtype=dtype))
    from_module(model)
    handle = perturb(change)
    try:
        with pytest.raises(InputError, match="an output of") as caught:
            from_module(model)
    finally:
        handle.remove()
    assert caught.value.argument == "model"


def test_round_trip_is_sharp_in_float32():
    model = nn.Sequential(linear(6, 5), nn.ReLU(), linear(5, 3, 1))
    handle = perturb(lambda out: out * (1 + 1e-4))
    try:
        with pytest.raises(InputError, match="rounding explains"):
            from_module(model)
    finally:
        handle.remove()


def test_forward_that_rejects_the_input():
    class Strict(nn.Module):
        def __init__(self):
            super().__init__()
            self.unfold = linear(4, 2)

        def forward(self, x):
            return self.unfold(x.view(x.size(0), x.size(1)).flatten(1))

    with pytest.raises(UnsupportedLayerError, match="view"):
        from_module(Strict())
    with pytest.raises(InputError, match="pass input_shape"):  # per-pixel: no flat batch goes through
        from_module(nn.Sequential(nn.Flatten(), Normalise(np.zeros((2, 2)), 1.0), linear(4, 2)), input_shape=(2, 2))
    model = nn.Sequential(linear(4, 2))
    handle = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda m, args: 1 / 0 if type(args[0]) is torch.Tensor else None  # not while it is traced
    )
    try:
        with pytest.raises(InputError, match="ZeroDivisionError from its forward"):
            from_module(model)
    finally:
        handle.remove()


def test_overflow_cannot_be_checked():
    model = nn.Sequential(linear(4, 4), linear(4, 2))
    with torch.no_grad():
        model[0].bias.fill_(3e38)
    with pytest.raises(InputError, match=r"overflows.*model\.double"):
        from_module(model)
    from_module(model.double())


# -- the module is left as it was ------------------------------------------------------------------


def test_nothing_is_changed():
    class Recorder(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = linear(4, 3)
            self.seen = "before"
            self.calls = 0
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            self.count = self.count + 1
            self.seen = x
            self.fresh = x
            return self.fc(x)

    model = Recorder()
    model(torch.ones(2, 4)).sum().backward()
    model.seen, model.calls = "before", 1
    del model.fresh
    state = copy.deepcopy(model.state_dict())
    grads = [p.grad.clone() for p in model.parameters()]
    attributes = {k: id(v) for k, v in vars(model).items()}
    parameters = [id(p) for p in model.parameters()]
    torch.manual_seed(5)
    saved = np.random.get_state()  # noqa: NPY002
    np.random.seed(123)  # noqa: NPY002
    numpy_state = np.random.get_state()[1].copy()  # noqa: NPY002
    torch_state = torch.get_rng_state()
    from_module(model)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    np.random.set_state(saved)  # noqa: NPY002
    assert {k: id(v) for k, v in vars(model).items()} == attributes
    assert [id(p) for p in model.parameters()] == parameters
    assert model.training and model.fc.training and model.seen == "before" and model.calls == 1
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    assert all(torch.equal(g, p.grad) for g, p in zip(grads, model.parameters(), strict=True))
    assert all(p.requires_grad for p in model.parameters())
    assert torch.is_grad_enabled()
    # nn.Module's patches are gone after a failed trace too
    with pytest.raises(UnsupportedLayerError):
        from_module(Custom(lambda m, x: 1 / 0))
    assert torch.is_grad_enabled() and type(model.fc(torch.ones(1, 4))) is torch.Tensor


def test_later_training_does_not_reach_the_network():
    model = linear(4, 2, dtype=torch.float64)
    net = from_module(model)
    before = net.digest, net.forward(np.ones((1, 4))).copy()
    with torch.no_grad():
        model.weight.mul_(2)
    assert np.array_equal(net.forward(np.ones((1, 4))), before[1])
    assert from_module(model).digest != before[0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("tf32", [False, True])
def test_on_a_gpu(dtype, tf32):
    model = nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10)).to("cuda", dtype)
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        net = from_module(model)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    assert np.array_equal(net.layers[0].weight, model[0].weight.detach().double().cpu().numpy())


def test_without_a_weight_torch_rejects_it_too():
    with pytest.raises(UnsupportedLayerError):
        from_module(Custom(lambda m, x: functional.linear(x, None)))


def test_module_names():
    assert torch_module._path("model") == "the model itself"
    assert torch_module._path("model.model.0") == "model.0"
