"""torch.export → Graph: each operation against torch, what is refused and by what name, nothing is changed."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune
from torchvision import transforms

from certbound import ops
from certbound.errors import InputError, MissingDependencyError, UnsupportedLayerError
from certbound.io import exported_ops
from certbound.io.exported import from_module
from tests.module_state import assert_untouched, state

IMAGE = (3, 8, 8)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


class Call(nn.Module):
    """A function as a module, with other modules inside if given."""

    def __init__(self, function, **modules):
        super().__init__()
        self.function = function
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, *inputs):
        return self.function(*inputs) if not list(self.children()) else self.function(self, *inputs)


def random_statistics(model):
    """BatchNorm layers whose statistics are not 0 and 1."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None:
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
        affine = isinstance(module, (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm))
        if affine and module.weight is not None:
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return model


def as_double(model, x):
    """The oracle: the model in float64, run by torch."""
    with torch.no_grad():
        return copy.deepcopy(model).double()(torch.from_numpy(x)).numpy().reshape(len(x), -1)


def same(model, shape=IMAGE, *, train=False, rtol=1e-9):
    """The graph of the model, after comparing both on inputs of its own."""
    model = random_statistics(model if train else model.eval())
    graph = from_module(model, input_shape=shape)
    x = np.random.default_rng(5).standard_normal((2, *shape))
    np.testing.assert_allclose(graph.forward(x), as_double(model, x), rtol=rtol, atol=rtol)
    return graph


def kinds(graph):
    return [node.op.kind for node in graph.nodes[1:]]


def refused(model, *words, shape=IMAGE, error=UnsupportedLayerError, train=False):
    with pytest.raises(error) as caught:
        from_module(model if train else model.eval(), input_shape=shape)
    for word in words:
        assert word in str(caught.value), str(caught.value)


# -- layers -----------------------------------------------------------------------------------------------------------

CONVOLUTIONS = [
    (nn.Conv2d(3, 4, 3, padding=1), IMAGE),
    (nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(0, 1), dilation=(1, 2), bias=False), IMAGE),
    (nn.Conv2d(6, 4, 3, groups=2), (6, 5, 7)),
    (nn.Conv2d(4, 8, 3, groups=4, padding="same"), (4, 5, 7)),
    (nn.Conv2d(3, 4, 4, padding="same"), IMAGE),  # one more on the right
    (nn.Conv2d(3, 4, (4, 3), padding="same", dilation=(1, 2), padding_mode="reflect"), IMAGE),
    (nn.Conv2d(3, 4, 3, padding="valid"), IMAGE),
    (nn.Conv2d(3, 4, 3, padding=(2, 1), padding_mode="circular"), IMAGE),
    (nn.Conv2d(3, 4, 3, padding=(0, 1), padding_mode="replicate"), IMAGE),
    (nn.Conv1d(3, 4, 3, padding=2, padding_mode="replicate"), (3, 9)),
    (nn.Conv1d(3, 6, 4, stride=3, padding=1, groups=3), (3, 9)),
    (nn.Conv3d(3, 6, (3, 2, 1), stride=(1, 2, 1), padding=(1, 0, 1), dilation=(1, 2, 1), groups=3), (3, 5, 6, 4)),
    (nn.Conv3d(2, 2, 2, padding=1, padding_mode="circular"), (2, 3, 4, 5)),
]


@pytest.mark.parametrize(("model", "shape"), CONVOLUTIONS)
def test_convolutions(model, shape):
    graph = same(model, shape)
    assert kinds(graph) == ["Conv"]
    op = graph.nodes[1].op
    assert op.padding_mode == model.padding_mode
    np.testing.assert_array_equal(op.weight, model.weight.detach().double().numpy())
    assert graph.nodes[1].parameters == (("weight",) if model.bias is None else ("weight", "bias"))


NORMALISATIONS = [
    (nn.BatchNorm1d(3), (3,), ["BatchNorm"]),
    (nn.BatchNorm1d(3), (3, 5), ["BatchNorm"]),
    (nn.BatchNorm2d(3, eps=1e-2), IMAGE, ["BatchNorm"]),
    (nn.BatchNorm2d(3, affine=False), IMAGE, ["BatchNorm"]),
    (nn.BatchNorm3d(3), (3, 2, 3, 4), ["BatchNorm"]),
    (nn.InstanceNorm2d(3), IMAGE, ["Reshape", "LayerNorm", "Reshape"]),
    (nn.InstanceNorm2d(3, affine=True), IMAGE, ["Reshape", "LayerNorm", "Reshape", "Scale", "Shift"]),
    (nn.InstanceNorm2d(3, affine=True, track_running_stats=True), IMAGE, ["BatchNorm"]),
    (nn.GroupNorm(1, 3), IMAGE, ["Reshape", "LayerNorm", "Reshape", "Scale", "Shift"]),
    (nn.GroupNorm(2, 6, affine=False), (6, 3, 2), ["Reshape", "LayerNorm", "Reshape"]),
    (nn.LayerNorm(8, eps=1e-2), IMAGE, ["LayerNorm"]),
    (nn.LayerNorm((8, 8)), IMAGE, ["LayerNorm"]),
    (nn.LayerNorm(8, elementwise_affine=False), IMAGE, ["LayerNorm"]),
]


@pytest.mark.parametrize(("model", "shape", "expected"), NORMALISATIONS)
def test_normalisations(model, shape, expected):
    assert kinds(same(model, shape)) == expected


POOLS = [
    (nn.MaxPool1d(3, 2, 1), (2, 7)),
    (nn.MaxPool2d(3, 2, 1), IMAGE),
    (nn.MaxPool2d((2, 3), dilation=(2, 1)), IMAGE),
    (nn.MaxPool2d(3, 2, 1, ceil_mode=True), (2, 7, 8)),
    (nn.MaxPool2d(2, 3, ceil_mode=True), (2, 7, 8)),
    (nn.MaxPool2d(2, 3, ceil_mode=True), (2, 6, 9)),  # one more window would begin beyond the input
    (nn.AvgPool2d(2, 3, ceil_mode=True), (2, 6, 9)),
    (nn.MaxPool3d(2, ceil_mode=True), (1, 3, 4, 5)),
    (nn.AvgPool1d(3, 2, 1), (2, 8)),
    (nn.AvgPool2d(3, 2, 1, ceil_mode=True), (2, 7, 8)),
    (nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False), (2, 7, 8)),
    (nn.AvgPool2d(2, 3, ceil_mode=True), (2, 7, 8)),
    (nn.AvgPool2d(2, ceil_mode=True, divisor_override=3), (2, 5, 4)),
    (nn.AvgPool2d(3, 1, 1, count_include_pad=False), IMAGE),
    (nn.AvgPool3d(2, padding=1), (1, 3, 4, 5)),
    (nn.AdaptiveAvgPool1d(3), (2, 7)),
    (nn.AdaptiveAvgPool2d((3, 1)), (2, 7, 4)),
    (nn.AdaptiveAvgPool2d((None, 2)), (2, 7, 4)),
    (nn.AdaptiveAvgPool3d(2), (1, 3, 4, 5)),
    (nn.AdaptiveMaxPool2d((2, 1)), (2, 6, 5)),
]


@pytest.mark.parametrize(("model", "shape"), POOLS)
def test_pools(model, shape):
    same(model, shape)


ACTIVATIONS = [
    (nn.ReLU(), ["relu"]), (nn.ReLU(inplace=True), ["relu"]), (nn.ReLU6(), ["Clip"]), (nn.Hardtanh(-2, 1), ["Clip"]),
    (nn.Tanh(), ["tanh"]), (nn.Sigmoid(), ["sigmoid"]), (nn.GELU(), ["gelu"]), (nn.GELU("tanh"), ["gelu_tanh"]),
    (nn.SiLU(inplace=True), ["silu"]), (nn.LeakyReLU(0.25), ["leaky_relu"]), (nn.PReLU(), ["leaky_relu"]),
    (nn.Hardsigmoid(), ["Shift", "Clip", "Scale"]), (nn.Hardswish(), ["Shift", "Clip", "Scale", "Multiply"]),
    (nn.Softmax(-1), ["Softmax"]), (nn.Softmax(1), ["Softmax"]), (nn.Identity(), []), (nn.Dropout(), []),
    (nn.Dropout2d(), []), (nn.Flatten(), ["Reshape"]),
    (nn.ZeroPad2d((1, 2, 0, 3)), ["Pad"]), (nn.ConstantPad2d((1, -2, 0, 3), 0.5), ["Slice", "Pad"]),
    (nn.ReflectionPad2d((1, 2, 3, 0)), ["Gather", "Gather"]), (nn.ReplicationPad2d((0, 2, 0, 0)), ["Gather"]),
    (nn.CircularPad2d((1, 0, 0, 2)), ["Gather", "Gather"]),
]  # fmt: skip


@pytest.mark.parametrize(("model", "expected"), ACTIVATIONS)
def test_activations_and_padding(model, expected):
    assert kinds(same(model)) == expected


def test_pixel_shuffle():
    assert kinds(same(nn.PixelShuffle(2), (8, 3, 2))) == ["Reshape", "Permute", "Reshape"]


def test_a_slope_is_the_float32_that_torch_multiplies_by():
    model = nn.LeakyReLU(0.1)
    assert from_module(model, input_shape=(3,)).nodes[1].op.activation.parameter == float(np.float32(0.1))
    model = nn.Sequential(nn.Linear(3, 3), nn.LeakyReLU(0.1)).double()
    assert from_module(model, input_shape=(3,)).nodes[2].op.activation.parameter == 0.1


FUNCTIONS = [
    lambda x: x + x[:, :1],
    lambda x: x[:, :1] - x,
    lambda x: x * x[..., :1],
    lambda x: torch.add(x, x.flip(1), alpha=2),
    lambda x: 1 - x / 4,
    lambda x: torch.rsub(x, torch.arange(8.0), alpha=0.5),
    lambda x: -x,
    lambda x: x**2 + x.square() + x**1,
    lambda x: x / torch.tensor([2.0, 4.0, 8.0]).reshape(3, 1, 1),
    lambda x: torch.ones(2, 1, 1, 1)[:1] * x,
    lambda x: x.unsqueeze(1) + torch.arange(15.0).reshape(5, 3, 1, 1),  # the constant is larger
    lambda x: x.mean((2, 3)) + x.sum((2, 3)) + x.flatten(2).mean(-1),
    lambda x: x.mean((1, 2, 3), keepdim=True),
    lambda x: x.clamp(-0.5),
    lambda x: x.clamp(max=0.25).clamp_min(-0.125),
    lambda x: x @ x.transpose(2, 3),
    lambda x: x @ torch.arange(16.0).reshape(8, 2).to(x.dtype),
    lambda x: torch.arange(16.0).reshape(2, 8).to(x.dtype) @ x,
    lambda x: torch.bmm(x.flatten(0, 1), x.flatten(0, 1)).reshape(x.shape),
    lambda x: torch.baddbmm(*(x.flatten(0, 1),) * 3, beta=0.5, alpha=2).reshape(x.shape),
    lambda x: torch.addmm(x.new_ones(4), x.flatten(1), x.new_ones(192, 4), beta=3, alpha=0.5),
    lambda x: torch.cat([x, torch.ones(len(x), 1, 8, 8), x * 2], 1),
    lambda x: torch.stack([x, x + 1], 2),
    lambda x: torch.cat(x.chunk(3, 2), 1) if x.shape[2] == 9 else torch.cat(x.split([3, 5], 2)[::-1], 2),
    lambda x: torch.cat([a + i for i, a in enumerate(x.chunk(3, 3))], 3),
    lambda x: sum(x.unbind(1)),
    lambda x: x[:, torch.tensor([2, 0, 0])],
    lambda x: x[:, :, torch.tensor([[1, -2], [3, 4]])],
    lambda x: x.index_select(2, torch.tensor([7, 0])),
    lambda x: x[:, -1:, ::2, 1:-1].narrow(2, 1, 2),
    lambda x: x.flip(1, 3),
    lambda x: x.roll((1, -2), (2, 3)),
    lambda x: x.roll(5) if len(x) == 0 else x.roll(3, 1),
    lambda x: x.repeat(1, 2, 1, 3),
    lambda x: x.expand(len(x), 3, 8, 8)[:, :, None].expand(-1, -1, 4, -1, -1),
    lambda x: x.permute(0, 2, 3, 1).reshape(len(x), -1, 3).mT.unflatten(2, (8, 8)).contiguous(),
    lambda x: x.swapaxes(1, 2)[:, :1].squeeze(1).unsqueeze(-1).reshape(len(x), 2, -1),
    lambda x: torch.where(torch.eye(8) > 0, x, torch.tensor(2.0)),
    lambda x: torch.where(torch.eye(8) > 0, x, x * 3),
    lambda x: x.masked_fill(torch.ones(8, 8).tril() > 0, -1.5),
    lambda x: x + x.new_zeros(8).fill_(2.0) + torch.full_like(x, 0.5),
    lambda x: x.add_(1).relu_().mul_(2),
    lambda x: F.pad(x, (1, 1, 2, 0), value=0.25),
    lambda x: F.scaled_dot_product_attention(x, x, x, scale=0.3),
    lambda x: F.scaled_dot_product_attention(x, x.flip(1), x, attn_mask=torch.full((8, 8), -2.0).triu(1)),
    lambda x: F.scaled_dot_product_attention(x, x, x, attn_mask=torch.ones(8, 8) > 0),
    lambda x: (x + torch.full((8, 8), -100.0).triu(1)).softmax(-1),
    lambda x: F.hardtanh(F.relu6(x)) + F.dropout(x, training=False),
    lambda x: x.to(torch.float64).to(x.dtype) if x.dtype == torch.float64 else x.to(x.dtype),
    lambda x: x.detach().clone() + x.type_as(x),
]


@pytest.mark.parametrize("i", range(len(FUNCTIONS)))
def test_functions(i):
    same(Call(FUNCTIONS[i]), rtol=1e-7)  # constants such as 0.3 are rounded to float32


def test_writing_into_a_copy():
    class Writes(nn.Module):
        def forward(self, x):
            y = x.clone()
            y[:, 0] = 0
            y[:, 1:2] = x[:, :1]
            y[:, :, 3] = 1.5
            y[..., 2:] += x[..., 2:] * 2
            return y

    same(Writes())


def test_x_times_sigmoid_is_silu():
    for function in (lambda x: x * torch.sigmoid(x), lambda x: torch.sigmoid(x) * x):
        assert kinds(same(Call(function))) == ["silu"]
    quick = same(Call(lambda x: x * torch.sigmoid(1.702 * x)), rtol=1e-7)
    assert kinds(quick) == ["Scale", "silu", "Scale"]
    assert kinds(same(Call(lambda x: x * torch.sigmoid(x / 4)))) == ["Scale", "silu", "Scale"]
    # another value, another factor for each channel: a product, not a silu
    assert "Multiply" in kinds(same(Call(lambda x: x.flip(1) * torch.sigmoid(x))))
    assert "Multiply" in kinds(same(Call(lambda x: x * torch.sigmoid(x * torch.arange(1.0, 9.0)))))
    assert "Multiply" in kinds(same(Call(lambda x: x * torch.sigmoid(0.0 * x))))


# -- attention --------------------------------------------------------------------------------------------------------


class SelfAttention(nn.Module):
    def __init__(self, **given):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.given = given

    def forward(self, x):
        return self.attention(x, x, x, **self.given)[0]


@pytest.mark.parametrize("weights", [True, False])
def test_multihead_attention(weights):
    graph = same(SelfAttention(need_weights=weights), (5, 8))
    assert kinds(graph).count("Softmax") == 1
    assert kinds(graph).count("MatMul") == 2
    assert {p for node in graph.nodes for p in node.parameters} == {
        f"attention.{name}" for name in ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
    }


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_transformer_layer_whose_fast_path_torch_takes_in_eval_mode(norm_first, activation):
    layer = nn.TransformerEncoderLayer(8, 2, 16, activation=activation, batch_first=True, norm_first=norm_first)
    graph = same(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), (5, 8))
    assert kinds(graph).count("LayerNorm") == 4


def test_batch_axis_second_is_refused():
    """The samples would be the tokens."""
    layer = nn.TransformerEncoderLayer(8, 2, 16)
    refused(layer, "batch of two", "batch_first=True", shape=(5, 8), error=InputError)


# -- parameters and names ---------------------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.Conv2d(3, 3, 1)
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x):
        return torch.relu(x + self.conv2(self.bn(self.conv1(x))))


def test_nodes_have_the_paths_of_their_modules():
    graph = same(nn.Sequential(Block(), nn.Sequential(nn.Flatten(), nn.Linear(192, 2))))
    assert [(node.name, node.op.kind, node.parameters) for node in graph.nodes[1:]] == [
        ("0.conv1", "Conv", ("0.conv1.weight",)),
        ("0.bn", "BatchNorm", ("0.bn.weight", "0.bn.bias")),
        ("0.conv2", "Conv", ("0.conv2.weight", "0.conv2.bias")),
        ("0", "Add", ()),
        ("0", "relu", ()),
        ("1.0", "Reshape", ()),
        ("1.1", "Linear", ("1.1.weight", "1.1.bias")),
    ]


def test_computed_weights_are_constants_that_name_all_their_parameters():
    model = parametrizations.weight_norm(nn.Linear(8, 3))
    graph = same(model, (8,), rtol=1e-6)
    originals = ("parametrizations.weight.original1", "parametrizations.weight.original0")
    assert graph.nodes[1].parameters == (*originals, "bias")
    np.testing.assert_array_equal(graph.nodes[1].op.weight, model.weight.detach().double().numpy())


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "wrap",
    [
        parametrizations.spectral_norm,
        parametrizations.orthogonal,
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
        lambda m: prune.l1_unstructured(m, "weight", 5),
    ],
)
def test_reparametrized_weights(wrap):
    model = nn.Sequential(wrap(nn.Linear(8, 3)), nn.ReLU()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)  # an optimiser step: model.weight is stale
    graph = from_module(model, input_shape=(8,))
    x = np.random.default_rng(1).standard_normal((4, 8))
    with torch.no_grad():
        expected = model(torch.from_numpy(x).float()).double().numpy()
    np.testing.assert_allclose(graph.forward(x), expected, rtol=1e-4, atol=1e-5)
    assert kinds(graph) == ["Linear", "relu"]


def test_a_layer_used_twice_has_the_name_of_its_parameter():
    layer = nn.Linear(8, 8)
    graph = same(nn.Sequential(layer, nn.ReLU(), layer), (8,))
    assert [node.parameters for node in graph.nodes[1:]] == [("0.weight", "0.bias"), (), ("0.weight", "0.bias")]


def test_constants_of_forward_are_tokens_and_shifts():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.token, self.position = nn.Parameter(torch.randn(1, 1, 4)), nn.Parameter(torch.randn(1, 6, 4))
            self.register_buffer("mean", torch.randn(4))

        def forward(self, x):
            return torch.cat([self.token.expand(len(x), -1, -1), x - self.mean], 1) + self.position

    graph = same(Tokens(), (5, 4))
    assert kinds(graph) == ["Shift", "Constant", "Concat", "Shift"]
    assert [node.parameters for node in graph.nodes[1:]] == [(), ("token",), (), ("position",)]


# -- dtypes and modes -------------------------------------------------------------------------------------------------


def small():
    layers = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.LeakyReLU(0.1), nn.Flatten(), nn.Linear(144, 2))
    return nn.Sequential(*layers).eval()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_weights_are_exact_in_every_dtype(dtype):
    model = random_statistics(small()).to(dtype)
    before, training = state(model), model.training
    graph = from_module(model, input_shape=IMAGE)
    conv, norm = graph.nodes[1].op, graph.nodes[2].op
    np.testing.assert_array_equal(conv.weight, model[0].weight.detach().double().numpy())
    np.testing.assert_array_equal(norm.variance, model[1].running_var.double().numpy())
    assert_untouched(model, before)
    assert model.training == training
    assert model[0].weight.dtype is dtype


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_within_no_grad_and_inference_mode(mode):
    outside = small()
    with mode():
        graphs = [from_module(model, input_shape=IMAGE) for model in (outside, small())]
    assert all(kinds(graph) == ["Conv", "BatchNorm", "leaky_relu", "Reshape", "Linear"] for graph in graphs)


def test_gradient_modes_and_autocast_inside_forward():
    class Modes(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, x):
            with torch.no_grad():
                y = self.fc(x)
            with torch.enable_grad():
                y = y + self.fc(x)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=False):
                return y + self.fc(x)

    same(Modes(), (8,))


def test_nothing_of_the_user_is_changed():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.calls = nn.Linear(8, 3), 0

        def forward(self, x):
            self.calls += 1
            self.last = x
            if not is_export(x):
                torch.rand(3)  # as dropout that is drawn and thrown away
            return self.fc(x)

    model = nn.Sequential(Counts(), nn.Dropout())
    model[1].eval()
    model[0].fc.weight.requires_grad_(False)
    before, generator = state(model), torch.get_rng_state()
    np.random.seed(1)  # noqa: NPY002  # the user's
    numpy_before = np.random.get_state()[1].copy()  # noqa: NPY002
    graph = from_module(model, input_shape=(8,))
    assert kinds(graph) == ["Linear"]
    assert model[0].calls == 0
    assert not hasattr(model[0], "last")
    assert_untouched(model, before)
    assert torch.equal(torch.get_rng_state(), generator)
    assert np.array_equal(np.random.get_state()[1], numpy_before)  # noqa: NPY002
    assert [m.training for m in model.modules()] == [True, True, True, False]
    assert [p.requires_grad for p in model.parameters()] == [False, True]
    assert torch.is_grad_enabled()
    assert all(p.grad is None for p in model.parameters())


def test_casts_inside_forward_change_no_number():
    class Casts(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 3)

        def forward(self, x):
            return torch.relu(self.fc(x).float() * 0.1)

    graph = from_module(Casts(), input_shape=(8,))
    assert kinds(graph) == ["Linear", "Scale", "relu"]


# -- refusals ---------------------------------------------------------------------------------------------------------


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(8, 4, batch_first=True)

    def forward(self, x):
        return self.rnn(x)[0]


def test_an_unsupported_layer_is_named_with_its_path():
    refused(nn.Sequential(nn.Linear(8, 8), Recurrent()), "1.rnn (LSTM)", "aten.lstm", shape=(3, 8))
    refused(nn.Sequential(nn.Linear(8, 8), nn.ELU()), "1 (ELU)", "aten.elu", shape=(8,))
    refused(nn.ConvTranspose2d(3, 4, 3), "the model itself (ConvTranspose2d)", "aten.conv_transpose2d")


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x: x / (1 + x * x), ("division by a value",)),
        (lambda x: F.normalize(x), ("aten.linalg_vector_norm",)),
        (lambda x: x**3, ("another exponent",)),
        (lambda x: x.abs().sqrt(), ("aten.abs",)),
        (lambda x: torch.where(x > 0, x, -x), ("aten.gt",)),
        (lambda x: x.max(1).values, ("aten.max",)),
        (lambda x: torch.fft.fft(x).real, ("aten.fft_fft",)),
        (lambda x: x.round(), ("aten.round",)),
        (lambda x: x.to(torch.int64).to(x.dtype), ("a cast to torch.int64",)),
        (lambda x: torch.div(x, 2, rounding_mode="floor"), ("which rounds",)),
        (lambda x: x[:, torch.tensor([0, 1]), torch.tensor([0, 1])], ("2 index tensors",)),
        (lambda x: x[..., torch.arange(8) > 3], ("whose shape depends on the values",)),
        (lambda x: x[:, x[0, :, 0, 0].long()], ("a cast to torch.int64",)),
        (lambda x: F.linear(x, x[0, 0]), ("a weight that is computed from the input",)),
        (lambda x: F.linear(x, torch.ones(2, 8), x[0, 0, 0, :2]), ("a bias that is computed from the input",)),
        (lambda x: F.conv2d(x, x), ("a weight that is computed from the input",)),
        (lambda x: F.layer_norm(x, (8,), weight=x[0, 0, 0]), ("a weight that is computed from the input",)),
        (lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True), ("is_causal",)),
        (lambda x: F.scaled_dot_product_attention(x, x, x, attn_mask=torch.eye(8) > 0), ("excludes tokens",)),
        (lambda x: F.scaled_dot_product_attention(x, x, x, attn_mask=torch.full((8, 8), -math.inf).triu(1)), ("−∞",)),
        (lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.5), ("dropout", "model.eval()")),
        (lambda x: (x + torch.full((8, 8), -math.inf).triu(1)).softmax(-1), ("−∞",)),
        (lambda x: x.masked_fill(torch.ones(8, 8).triu(1) > 0, -math.inf).softmax(-1), ("−∞",)),
        (lambda x: x + torch.rand_like(x), ("aten.rand_like", "random")),
        (lambda x: x + torch.randn(8), ("aten.randn", "random")),
        (lambda x: x.clamp(x[:, :1], x[:, 1:2] + 9), ("limits that are not numbers",)),
        (lambda x: F.prelu(x, torch.tensor([0.1, 0.2, 0.3])), ("a slope for each channel",)),
        (lambda x: F.adaptive_max_pool2d(x, 3), ("windows of different sizes",)),
        (lambda x: F.max_pool2d(x, 2, return_indices=True)[1].float(), ("another result than the first",)),
        (lambda x: F.dropout(x), ("model.eval()",)),
        (lambda x: x[:, ::2].index_put((torch.tensor([0]),), torch.tensor(1.0)), ("aten.index_put",)),
    ],
)  # fmt: skip
def test_operations_that_are_refused(function, words):
    refused(Call(function), *words)


def test_layers_in_training_mode():
    refused(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)), "1 (BatchNorm2d)", "model.eval()", train=True)
    refused(nn.BatchNorm2d(3, track_running_stats=False), "without running statistics")
    refused(nn.Sequential(nn.Linear(8, 8), nn.Dropout()), "1 (Dropout)", "model.eval()", train=True)
    refused(parametrizations.spectral_norm(nn.Linear(8, 3)), "buffer", "_u", "model.eval()", train=True)
    same(nn.Sequential(nn.Linear(8, 8), nn.ReLU()), train=True)  # in training mode, with nothing that notices it


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x: x if x.sum() > 0 else -x, ("control flow that depends on the input's values",)),
        (lambda x: (x, x + 1), ("2 outputs", "one tensor")),
        (lambda x: (x + 1,), ("no plain tensor",)),
        (lambda x: {"logits": x + 1}, ("no plain tensor",)),
        (lambda x: None, ("no plain tensor",)),
        (lambda x, y: x + y, ("missing 1 required positional argument",)),
        (lambda x: x.numpy(), ("torch.export cannot read",)),
        (lambda x: x.reshape(7, -1), ("torch.export cannot read", "input_shape")),
    ],
)
def test_forwards_that_are_no_function_of_one_sample(function, words, capfd):
    refused(Call(function), *words)
    assert capfd.readouterr() == ("", "")


def test_an_output_without_the_input():
    refused(Call(lambda x: torch.ones(3)), "does not depend on the input", error=InputError)


def test_integer_input_is_refused():
    refused(nn.Embedding(4, 3), "Embedding", "real numbers", shape=(4,))


def test_the_wrong_input_shape():
    refused(nn.Conv2d(3, 4, 3), "expected input", "input_shape", shape=(4, 8, 8))
    for shape in ((), (3, -1), 3.0):
        with pytest.raises((InputError, TypeError)):
            from_module(nn.ReLU(), input_shape=shape)
    with pytest.raises(InputError, match="without the batch axis"):
        from_module(nn.ReLU())
    with pytest.raises(InputError, match="needed an nn"):
        from_module([1.0], input_shape=(3,))


def test_weights_that_are_no_numbers():
    for name, value in (("weight", math.nan), ("bias", math.inf)):
        layer = nn.Linear(8, 3)
        with torch.no_grad():
            getattr(layer, name).view(-1)[1] = value
        refused(nn.Sequential(nn.ReLU(), layer), f"1 (Linear): {name}", shape=(8,), error=InputError)
    refused(nn.Linear(8, 3, device="meta"), "meta", shape=(8,), error=InputError)
    refused(nn.Linear(8, 3, dtype=torch.complex64), "complex64", shape=(8,), error=InputError)
    refused(nn.LazyLinear(3), "lazy", shape=(8,), error=InputError)
    norm = nn.BatchNorm2d(3)
    norm.running_var[0] = -1.0
    refused(norm, "BatchNorm2d", "variance", error=InputError)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_modules_that_hide_their_code():
    hooked = nn.Linear(8, 3)
    hooked.register_forward_hook(lambda *a: None)
    refused(nn.Sequential(hooked), "0 (Linear)", "forward hook", shape=(8,))
    refused(torch.jit.trace(nn.Linear(8, 3), torch.zeros(1, 8)), "TorchScript", shape=(8,))
    refused(torch.compile(nn.Linear(8, 3)), "compiled", "_orig_mod", shape=(8,))
    compiled = nn.Linear(8, 3)
    compiled.compile()
    refused(nn.Sequential(compiled), "0 (Linear)", "compiled", shape=(8,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        refused(nn.Linear(8, 3), "autocast", shape=(8,), error=InputError)


def test_a_global_hook():
    handle = torch.nn.modules.module.register_module_forward_hook(lambda m, i, o: None)
    try:
        refused(nn.Linear(8, 3), "global forward hook", shape=(8,))
    finally:
        handle.remove()


def test_an_old_torch_is_named(monkeypatch):
    monkeypatch.setattr(torch.export, "export", lambda f, args: None)
    with pytest.raises(MissingDependencyError, match=r"torch>=2\.5"):
        from_module(nn.ReLU(), input_shape=(3,))


# -- the round trip ---------------------------------------------------------------------------------------------------


def is_export(x):
    return type(x).__name__ in ("FakeTensor", "FunctionalTensor", "FunctionalTensorWrapper")


class Diverges(nn.Module):
    """A forward that export sees differently from a call."""

    def __init__(self, how):
        super().__init__()
        self.fc, self.how, self.calls = nn.Linear(8, 3), how, 0

    def forward(self, x):
        y = self.fc(x)
        if self.how == "exporting" and not torch.compiler.is_compiling():
            y = y + 1e-4
        if self.how == "little" and not is_export(x):
            y = y * (1 + 1e-7)
        if self.how == "type" and not is_export(x):
            y = y * 1.0001
        if self.how == "size" and len(x) > 1:
            y = y + 1
        if self.how == "mean":
            y = y - 0.5 * y.mean(0, keepdim=True)
        if self.how == "counter":
            self.calls += 1
            y = y * self.calls
        if self.how == "nan" and not is_export(x):
            y = y * math.nan
        if self.how == "shape" and not is_export(x):
            y = torch.cat([y, y], 1)
        if self.how == "raises" and not is_export(x):
            raise KeyError("no such batch")
        return y


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("how", "word"),
    [
        ("exporting", "torch.export recorded"),
        ("type", "torch.export recorded"),
        ("size", "batch of two"),
        ("mean", "batch of two"),
        ("counter", "second call"),
        ("nan", "torch.export recorded"),
        ("shape", "torch.export recorded"),
        ("raises", "KeyError"),
    ],
)
def test_what_export_does_not_see_is_noticed(how, word, dtype):
    refused(Diverges(how).to(dtype), word, shape=(8,), error=InputError)


def test_a_module_that_differs_in_float64_is_refused_unless_forward_casts():
    def scaled(self, x):
        return self.fc(x) * (2 if x.dtype == torch.float64 else 4)

    refused(Call(scaled, fc=nn.Linear(8, 3)), "the module in float64", "dtype", shape=(8,), error=InputError)
    cast = Call(lambda self, x: scaled(self, x.float()), fc=nn.Linear(8, 3))  # its copy fails: x.float() is no float64
    assert kinds(from_module(cast, input_shape=(8,))) == ["Linear", "Scale"]
    cast = Call(lambda self, x: self.fc(torch.relu(x / 3).float().to(x.dtype)), fc=nn.Linear(8, 3))  # it loses digits
    assert kinds(from_module(cast, input_shape=(8,))) == ["Scale", "relu", "Linear"]


def test_a_difference_below_the_rounding_of_the_dtype_is_noticed_by_the_float64_copy():
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        model = Diverges("little").to(dtype)
        refused(model, "the module in float64", "torch.export recorded", shape=(8,), error=InputError)


def test_a_module_that_cannot_be_copied_is_compared_in_its_own_dtype():
    class Uncopied(Diverges):
        def __deepcopy__(self, memo):
            raise RuntimeError("not me")

    assert kinds(from_module(Uncopied(""), input_shape=(8,))) == ["Linear"]
    refused(Uncopied("type"), "torch.export recorded", shape=(8,), error=InputError)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_that_cannot_be_copied_is_compared_up_to_its_rounding(dtype):
    class Uncopied(Diverges):
        def __deepcopy__(self, memo):
            raise RuntimeError("not me")

    assert kinds(from_module(Uncopied("").to(dtype), input_shape=(8,))) == ["Linear"]
    refused(Uncopied("shape").to(dtype), "torch.export recorded", shape=(8,), error=InputError)
    refused(Uncopied("size").to(dtype), "batch of two", shape=(8,), error=InputError)


def test_a_wrong_translation_is_noticed(monkeypatch):
    """A bug of our own: relu read as tanh, a factor forgotten."""
    monkeypatch.setitem(exported_ops.METHODS, "relu", exported_ops._pointwise("tanh"))
    wrong = "other values than the imported graph"
    refused(nn.Sequential(nn.Linear(8, 3), nn.ReLU()), wrong, shape=(8,), error=InputError)
    monkeypatch.setitem(exported_ops.METHODS, "mul", lambda t, c: c["self"].index)
    refused(Call(lambda x: x * 1.00001), wrong, shape=(8,), error=InputError)
    silent = nn.Sequential(nn.Linear(8, 3), nn.ReLU(), nn.Linear(3, 2))
    for parameter in silent[2].parameters():
        nn.init.zeros_(parameter)
    refused(silent, "1 (ReLU)", wrong, shape=(8,), error=InputError)
    monkeypatch.setitem(exported_ops.METHODS, "mean", lambda t, c: t.add(c, ops.Mean((1,), True), c["self"].index))
    refused(Call(lambda x: x.mean(1)), "where (1, 1)", shape=(8,))


def test_weights_that_overflow():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 3)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1e200)
    refused(model, "not finite", shape=(8,), error=InputError)


# ---------------------------------------------------------------- normalisation of the input


MOMENTS = ([0.5, 0.4, 0.3], [0.2, 0.3, 0.25])


class ReadAgain(nn.Module):
    """What the normalisation gets is read once more, behind it."""

    def __init__(self, normalise):
        super().__init__()
        self.normalise, self.conv = normalise, nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        return (self.conv(self.normalise(x)) + x).flatten(1)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("given", [MOMENTS, ([0.5], [0.2])], ids=["per channel", "one number"])
def test_torchvisions_normalize_in_a_convolutional_net(given, inplace):
    normalise = transforms.Normalize(*given, inplace=inplace)
    model = ReadAgain(normalise).eval()
    graph = from_module(model, input_shape=(3, 6, 6))
    assert {"normalise (Shift)", "normalise (Scale)"} <= {str(node) for node in graph.nodes}
    assert "forward" not in vars(normalise)
    x = torch.rand(3, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    expected = copy.deepcopy(model).double()(x.double()).detach().numpy()  # in place the sum reads what was overwritten
    np.testing.assert_allclose(graph.forward(x.double().numpy()), expected, rtol=1e-6, atol=1e-6)


def test_normalize_with_an_std_of_zero_is_refused():
    model = ReadAgain(transforms.Normalize([0.5], [0.0])).eval()
    with pytest.raises(InputError, match=r"normalise \(Normalize\).*0 as a divisor"):
        from_module(model, input_shape=(3, 6, 6))


def test_a_subclass_of_normalize_is_run_as_it_is():
    class Normalize(transforms.Normalize):
        def forward(self, tensor):
            return 2.0 * tensor

    graph = from_module(ReadAgain(Normalize(*MOMENTS)).eval(), input_shape=(3, 6, 6))
    factors = [node.op.factor for node in graph.nodes if node.op.kind == "Scale"]
    assert len(factors) == 1 and np.all(factors[0] == 2.0)
