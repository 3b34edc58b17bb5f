"""Activations other than ReLU in the network IR, in the importer and back to torch."""

from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from certbound.activations import Activation
from certbound.errors import InputError, UnsupportedLayerError
from certbound.io import torch_module
from certbound.io.layers import named_matrices
from certbound.io.to_torch import to_torch
from certbound.io.torch_module import from_module
from certbound.network import Affine, Flatten, Network, Normalise, ReLU, Residual


def _float32(x):
    """What a float32 kernel makes of a Python number."""
    return float(np.float32(x))


EYE = np.eye(2)
MODULES = {
    "leaky_relu": lambda: nn.LeakyReLU(0.125),
    "leaky_relu default": lambda: nn.LeakyReLU(_float32(0.01)),
    "leaky_relu negative": lambda: nn.LeakyReLU(-2.5),
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "silu": nn.SiLU,
}
NAMES = ("leaky_relu", "tanh", "sigmoid", "gelu", "gelu_tanh", "silu")


def model_of(make, widths=(4, 6, 5, 3), dtype=torch.float32, scale=1.0):
    layers = []
    generator = torch.Generator().manual_seed(0)
    for a, b in itertools.pairwise(widths):
        layer = nn.Linear(a, b, dtype=dtype)
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
        layers += [layer, make()]
    return nn.Sequential(*layers[:-1])


def in_double(model, x):
    with torch.no_grad():
        return copy.deepcopy(model).double().eval()(torch.from_numpy(x)).numpy()


# -- the IR ----------------------------------------------------------------------------------------


def test_the_digests_of_relu_chains_are_those_of_published_certificates():
    assert Network.from_weights([[[1.0, -1.0]], [[2.0]]]).digest == "5bf4f6d43cacae58"
    layers = (Normalise(0.5, 0.25), Flatten(), Affine([[1.0, 2.0]], [3.0]), ReLU(), Affine([[4.0]]))
    assert Network(layers, (1, 2)).digest == "a3c465ce8d220479"


def test_digests_tell_activations_and_parameters_apart():
    layers = [ReLU(), *(Activation(name) for name in NAMES if name != "leaky_relu")]
    layers += [Activation("leaky_relu", slope) for slope in (0.1, 0.2, -0.1)]
    nets = [Network((Affine(EYE), layer, Affine(EYE))) for layer in layers]
    nets.append(Network((Affine(EYE), Affine(EYE), Activation("tanh"))))
    assert len({net.digest for net in nets}) == len(nets)


@pytest.mark.parametrize(
    "layer",
    [Activation("relu"), Activation("leaky_relu", 0.0), Activation("leaky_relu", -0.0), Activation("relu", 3.0)],
)
def test_an_activation_that_is_the_relu_becomes_one(layer):
    net = Network((Affine(EYE), layer, Affine(EYE)))
    assert net.layers[1] == ReLU() and net.is_relu_chain
    assert net.digest == Network((Affine(EYE), ReLU(), Affine(EYE))).digest
    inside = Network((Residual((layer,), (layer, Affine(EYE))),)).layers[0]
    assert inside.body == (ReLU(),) and inside.shortcut[0] == ReLU()


def test_forward_by_hand():
    net = Network((Affine([[1.0], [-2.0]], [0.0, 1.0]), Activation("leaky_relu", 0.25), Affine([[1.0, 2.0]])))
    # x = 3: (3, −5) → (3, −1.25) → 0.5
    assert net.forward([[3.0]]).tolist() == [[0.5]]
    assert (net.n_inputs, net.n_outputs) == (1, 1)


def test_forward_normalises_per_channel():
    layers = (Normalise([0.0, 1.0], [1.0, 2.0]), Activation("tanh"), Flatten(), Affine(np.arange(8.0).reshape(1, 8)))
    x = np.random.default_rng(0).random((3, 2, 2, 2))
    scaled = (x - np.array([0.0, 1.0])[:, None, None]) / np.array([1.0, 2.0])[:, None, None]
    expected = np.tanh(scaled).reshape(3, 8) @ np.arange(8.0)
    np.testing.assert_allclose(Network(layers, (2, 2, 2)).forward(x)[:, 0], expected, rtol=1e-13)
    with pytest.raises(InputError, match="input_shape"):
        Network(layers)
    # two numbers after the Affine: one each, no more one per row of the image
    later = Network((Affine(np.eye(4)[:2]), Activation("tanh"), Normalise([0.0, 1.0], 1.0)), (2, 2))
    np.testing.assert_allclose(later.forward(np.zeros((1, 2, 2))), [[0.0, -1.0]])
    flat = Network((Flatten(), Normalise([0.0, 1.0], 1.0), Affine(EYE), Activation("tanh")), (2, 1))
    np.testing.assert_allclose(flat.forward([[0.0, 1.0]]), [[0.0, 0.0]])


def test_no_chain_and_the_layer_is_named():
    net = Network((Affine(EYE), ReLU(), Affine(EYE), Activation("tanh"), Affine(EYE)))
    assert not net.is_relu_chain
    with pytest.raises(UnsupportedLayerError, match=r"layers\[3\] \(Activation 'tanh'\)"):
        net.chain


def test_open_ended_ends_in_an_affine_map_and_keeps_the_digest():
    net = Network((Affine(EYE), Activation("tanh")))
    opened = net.open_ended
    assert isinstance(opened.layers[-1], Affine) and np.array_equal(opened.layers[-1].weight, EYE)
    assert opened.digest == net.digest
    x = np.random.default_rng(0).standard_normal((5, 2))
    assert np.array_equal(opened.forward(x), net.forward(x))
    ends_affine = Network((Activation("tanh"), Affine(EYE), Flatten()))
    assert ends_affine.open_ended is ends_affine
    assert len(Network((Affine(EYE), Activation("tanh"), Flatten())).open_ended.layers) == 4


@pytest.mark.parametrize(
    "layers", [(Activation("tanh"),), (Affine(EYE), Activation("tanh"), Affine([[1.0]])), (Affine(EYE), "tanh")]
)
def test_networks_that_make_no_sense(layers):
    with pytest.raises(InputError, match="layers"):
        Network(layers)


# -- import ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES.keys())
@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_modules_compute_the_same(make, scale):
    model = model_of(make, scale=scale)
    net = from_module(model)
    x = np.random.default_rng(1).standard_normal((32, 4)) * 3
    np.testing.assert_allclose(net.forward(x), in_double(model, x), rtol=1e-9, atol=1e-9)
    assert isinstance(net.layers[1], Activation)


def test_names_and_parameters():
    layers = [from_module(nn.Sequential(nn.Linear(2, 2), make())).layers[1] for make in MODULES.values()]
    assert layers == [
        Activation("leaky_relu", 0.125),
        Activation("leaky_relu", _float32(0.01)),
        Activation("leaky_relu", -2.5),
        *(Activation(name) for name in NAMES[1:]),
    ]
    assert from_module(nn.Sequential(nn.Linear(2, 2), nn.LeakyReLU(0.0))).is_relu_chain


SPELLINGS = {
    "F.leaky_relu": (functional.leaky_relu, Activation("leaky_relu", _float32(0.01))),
    "F.leaky_relu 0.3": (lambda x: functional.leaky_relu(x, _float32(0.3)), Activation("leaky_relu", _float32(0.3))),
    "F.leaky_relu kw": (lambda x: functional.leaky_relu(input=x, negative_slope=2), Activation("leaky_relu", 2.0)),
    "F.leaky_relu inplace": (
        lambda x: functional.leaky_relu(x, _float32(0.3), True),
        Activation("leaky_relu", _float32(0.3)),
    ),
    "F.leaky_relu inplace kw": (
        lambda x: functional.leaky_relu(x, inplace=True),
        Activation("leaky_relu", _float32(0.01)),
    ),
    "F.leaky_relu_": (lambda x: functional.leaky_relu_(x, _float32(0.3)), Activation("leaky_relu", _float32(0.3))),
    "torch.tanh": (torch.tanh, Activation("tanh")),
    "torch.tanh_": (torch.tanh_, Activation("tanh")),
    "x.tanh": (lambda x: x.tanh(), Activation("tanh")),
    "x.tanh_": (lambda x: x.tanh_(), Activation("tanh")),
    "F.tanh": (functional.tanh, Activation("tanh")),
    "torch.sigmoid": (torch.sigmoid, Activation("sigmoid")),
    "torch.sigmoid_": (torch.sigmoid_, Activation("sigmoid")),
    "x.sigmoid": (lambda x: x.sigmoid(), Activation("sigmoid")),
    "x.sigmoid_": (lambda x: x.sigmoid_(), Activation("sigmoid")),
    "F.sigmoid": (functional.sigmoid, Activation("sigmoid")),
    "expit": (torch.special.expit, Activation("sigmoid")),
    "F.gelu": (functional.gelu, Activation("gelu")),
    "F.gelu none": (lambda x: functional.gelu(x, approximate="none"), Activation("gelu")),
    "F.gelu tanh": (lambda x: functional.gelu(x, approximate="tanh"), Activation("gelu_tanh")),
    "F.silu": (functional.silu, Activation("silu")),
    "F.silu inplace": (lambda x: functional.silu(x, inplace=True), Activation("silu")),
    "F.silu inplace positional": (lambda x: functional.silu(x, True), Activation("silu")),
}


class Custom(nn.Module):
    """fc1 → ``function`` → fc2, with weights that show what lies between."""

    def __init__(self, function):
        super().__init__()
        inner = model_of(nn.Identity, (4, 4, 2))
        self.fc1, self.fc2, self.function = inner[0], inner[2], function

    def forward(self, x):
        return self.fc2(self.function(self.fc1(x)))


@pytest.mark.parametrize(("function", "layer"), SPELLINGS.values(), ids=SPELLINGS.keys())
def test_every_spelling(function, layer):
    model = Custom(function)
    net = from_module(model)
    assert net.layers[1] == layer
    x = np.random.default_rng(1).standard_normal((16, 4))
    np.testing.assert_allclose(net.forward(x), in_double(model, x), rtol=1e-9, atol=1e-9)


REFUSED = {
    "unknown argument": (lambda x: torch.tanh(x, out=None), r"torch\.tanh .*with an argument that is not known"),
    "slope of the data": (lambda x: functional.leaky_relu(x, x.size(1)), "negative_slope"),
    "slope nan": (lambda x: functional.leaky_relu(x, math.nan), "negative_slope=nan"),
    "slope inf": (lambda x: functional.leaky_relu(x, math.inf), "negative_slope=inf"),
    "slope tensor": (lambda x: functional.leaky_relu(x, torch.tensor(0.5)), "negative_slope"),
    "gelu unknown": (lambda x: functional.gelu(x, approximate="erf"), "approximate='erf'"),
    "hardtanh": (functional.hardtanh, "hardtanh"),
    "softplus": (functional.softplus, "softplus"),
    "elu": (functional.elu, "elu"),
    "logsigmoid": (functional.logsigmoid, "logsigmoid|log_sigmoid"),
    "exp": (torch.exp, "exp"),
    "silu by hand": (lambda x: x * x.sigmoid(), "operator.mul .*joins 2 values"),
}


@pytest.mark.parametrize(("function", "name"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_not_known_is_refused_by_name(function, name):
    with pytest.raises(UnsupportedLayerError, match=name) as caught:
        from_module(Custom(function))
    assert caught.value.argument == "model"


def test_a_slope_that_is_no_number_of_python():
    model = nn.Sequential(nn.Linear(2, 2), nn.LeakyReLU())
    del model[1].negative_slope
    model[1].negative_slope = nn.Parameter(torch.tensor(0.01))  # leaves vars(module): no default must stand in for it
    with pytest.raises(UnsupportedLayerError, match=r"1 \(LeakyReLU\) with negative_slope"):
        from_module(model)


@pytest.mark.parametrize("base", [nn.LeakyReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU])
def test_subclasses_and_replaced_forwards_are_refused(base):
    class Sub(base):
        def forward(self, x):
            return super().forward(x) + 1

    with pytest.raises(UnsupportedLayerError, match=r"1 \(Sub\)"):
        from_module(nn.Sequential(nn.Linear(2, 2), Sub()))
    replaced = nn.Sequential(nn.Linear(2, 2), base())
    replaced[1].forward = lambda x: x
    with pytest.raises(UnsupportedLayerError, match="whose forward was replaced"):
        from_module(replaced)


def test_in_place_on_a_value_that_is_read_again():
    def later(x):
        x.tanh_()
        return x

    with pytest.raises(UnsupportedLayerError, match=r"method tanh_ .*in place on a value that is read again"):
        from_module(Custom(later))


# -- the round trip --------------------------------------------------------------------------------


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES.keys())
def test_wide_and_deep_models_pass(make, dtype):
    from_module(model_of(make, (100, 200, 100, 50, 10), dtype, scale=0.1))
    from_module(model_of(make, (4, 6, 5, 3), dtype, scale=8.0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES.keys())
def test_a_changed_activation_is_seen(make, dtype):
    model = model_of(make, (4, 6, 3), dtype)
    kind, factor = type(model[1]), 1.5 if dtype is torch.bfloat16 else 1 + 1e-4
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, _args, out: factor * out if type(module) is kind else None
    )
    try:
        with pytest.raises(InputError, match="rounding explains"):
            from_module(model)
    finally:
        handle.remove()


@pytest.mark.parametrize("name", NAMES)
def test_the_allowance_covers_a_perturbed_evaluation(name):
    """Each layer's result is moved by as much as one rounding may, to the side that hurts."""
    rng = np.random.default_rng(5)
    activation = Activation(name, 3.0 if name == "leaky_relu" else 0.0)
    layers = (Affine(rng.standard_normal((6, 4))), activation, Affine(rng.standard_normal((3, 6))), activation)
    network = Network((*layers, Residual((Affine(rng.standard_normal((3, 3))), activation))))
    x = rng.standard_normal((20, 4)) * 4
    eps = 2.0**-10
    allowed, largest = torch_module._allowance(network, x, torch.float16, torch.device("cpu"))

    def run(signs):
        def moved(value):
            return value * (1 + signs.standard_normal(value.shape).clip(-1, 1) * eps / 2)

        h = x
        for layer in layers:
            h = moved(h @ layer.weight.T if isinstance(layer, Affine) else layer.forward(h))
        block = network.layers[-1]
        return moved(h + moved(activation.forward(moved(h @ block.body[0].weight.T))))

    exact = network.forward(x)
    worst = np.max([np.abs(run(np.random.default_rng(seed)) - exact) for seed in range(200)], axis=0)
    assert np.all(worst <= allowed)
    assert np.all(largest >= np.max(np.abs(exact), axis=1))


def test_the_allowance_step_by_step():
    h = np.array([[-5.0, 0.0, 2.0]])
    for name in NAMES:
        layer = Activation(name, 3.0 if name == "leaky_relu" else 0.0)
        value, error, size = torch_module._step(layer, h, np.zeros_like(h), 2.0**-10, 0.0)
        assert np.array_equal(value, layer.forward(h))
        cancels = name.startswith("gelu")  # float16 rounds 1 + erf(−5/√2), of size 1 before it cancels
        assert np.all(error >= 2.0**-10 * np.abs(h if cancels else value))
        assert np.all(size >= np.abs(h)) and np.all(size >= np.abs(value))
    _, error, _ = torch_module._step(Activation("leaky_relu", 3.0), h, np.ones_like(h), 0.0, 0.0)
    assert np.all(error == 3.0)
    block = Residual((Affine(np.diag([100.0] * 3)), Affine(np.diag([0.01] * 3))), (ReLU(),))
    total, error, size = torch_module._step(block, h, np.ones_like(h), 0.0, 0.0)
    np.testing.assert_allclose(error, 2.0)
    assert np.max(size) == 500.0 and np.allclose(total, [[-5.0, 0.0, 4.0]])
    _, error, _ = torch_module._step(Residual((ReLU(),)), h, np.zeros_like(h), 2.0**-10, 0.0)
    assert np.all(error >= 2.0**-11 * np.array([5.0, 0.0, 4.0]))


# -- back to torch ---------------------------------------------------------------------------------


@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES.keys())
def test_back_to_torch_and_in_again(make):
    net = from_module(nn.Sequential(nn.Flatten(), model_of(make, dtype=torch.float64)))
    module = to_torch(net)
    assert not module.training and not any(p.requires_grad for p in module.parameters())
    x = np.random.default_rng(1).standard_normal((8, 2, 2))
    out = module(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(out, net.forward(x), rtol=1e-12, atol=1e-12)
    assert from_module(module).digest == net.digest
    assert to_torch(net, dtype="float32")(torch.from_numpy(x).float()).dtype == torch.float32


def test_normalisation_and_missing_biases_survive_the_way_back():
    rng = np.random.default_rng(0)
    net = Network(
        (
            Normalise(0.1, [0.3, 0.7]),
            Affine(rng.standard_normal((3, 2))),
            Activation("silu"),
            Normalise(rng.random(3), 0.5),
            Affine(rng.standard_normal((1, 3)), [0.1]),
        )
    )
    module = to_torch(net)
    assert from_module(module).digest == net.digest  # 0.1 and 0.3 are no float32 numbers
    layers = (Normalise([0.1, 0.2], [0.3, 0.4]), Activation("tanh"), Flatten(), Affine(np.ones((1, 8))))
    image = Network(layers, (2, 2, 2))
    x = rng.random((4, 2, 2, 2))
    np.testing.assert_allclose(to_torch(image)(torch.from_numpy(x)).numpy(), image.forward(x), rtol=1e-12)


def test_matrices_by_name():
    net = Network((Affine(EYE), Activation("tanh"), Residual((Affine(2 * EYE),), (Affine(3 * EYE),))))
    assert {name: w[0, 0] for name, w in named_matrices(net).items()} == {
        "layers[0]": 1.0, "layers[2].body[0]": 2.0, "layers[2].shortcut[0]": 3.0,
    }  # fmt: skip
    assert list(named_matrices([EYE, 2 * EYE])) == ["weights[0]", "weights[1]"]
