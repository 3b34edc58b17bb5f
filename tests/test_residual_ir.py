"""Residual blocks in the network IR, in the importer and back to torch: what torch computes, or a refusal by name."""

from __future__ import annotations

import copy
import itertools
import math
import operator

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from certbound.activations import Activation
from certbound.errors import InputError, UnsupportedLayerError
from certbound.io import torch_layers
from certbound.io.to_torch import to_torch
from certbound.io.torch_layers import FlatInput
from certbound.io.torch_module import from_module
from certbound.network import Affine, Flatten, Network, Normalise, ReLU, Residual, affine_layers

EYE = np.eye(2)
TANH = Activation("tanh")


def linear(n_in, n_out, seed=0, dtype=torch.float32):
    layer = nn.Linear(n_in, n_out, dtype=dtype)
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.from_numpy(rng.standard_normal(tuple(parameter.shape))))
    return layer


def assert_same(model, shape=(4,), input_shape=None):
    """The network, after comparison with the module itself, converted to float64 and run by torch."""
    model = model.eval()
    net = from_module(model, input_shape=input_shape)
    x = np.random.default_rng(1).standard_normal((16, *shape))
    with torch.no_grad():
        expected = copy.deepcopy(model).double()(torch.from_numpy(x.copy())).numpy().reshape(16, -1)
    np.testing.assert_allclose(net.forward(x), expected, rtol=1e-9, atol=1e-9)
    return net


class Net(nn.Module):
    """``function(m, x)`` with layers a, b, c (4 → 4), up (4 → 6), down (6 → 4) and narrow (4 → 1)."""

    def __init__(self, function, dtype=torch.float32):
        super().__init__()
        self.a, self.b, self.c = (linear(4, 4, seed, dtype) for seed in (1, 2, 3))
        self.up, self.down, self.narrow = linear(4, 6, 4, dtype), linear(6, 4, 5, dtype), linear(4, 1, 6, dtype)
        self.relu, self.inplace, self.drop = nn.ReLU(), nn.ReLU(inplace=True), nn.Dropout(0.5)
        self.function = function

    def forward(self, x):
        return self.function(self, x)


def shapes(layers):
    """The structure alone: a for an affine layer, r for ReLU, (body|shortcut) for a block."""
    marks = {Affine: "a", ReLU: "r", Activation: "t", Flatten: "f", Normalise: "n"}
    return "".join(
        f"({shapes(x.body)}|{shapes(x.shortcut)})" if isinstance(x, Residual) else marks[type(x)] for x in layers
    )


# -- the IR ----------------------------------------------------------------------------------------


def test_forward_by_hand():
    block = Residual((Affine([[1.0, 1.0]]), ReLU()), (Affine([[0.0, 2.0]], [1.0]),))
    net = Network((block, Affine([[10.0]])))
    # (3, −1): body max(2, 0), shortcut −2 + 1
    assert net.forward([[3.0, -1.0]]).tolist() == [[10.0]]
    assert (net.n_inputs, net.n_outputs) == (2, 1)
    identity = Network((Affine(EYE), Residual((ReLU(),))))
    assert identity.forward([[3.0, -1.0]]).tolist() == [[6.0, -1.0]]


def test_widths_are_known_from_inside_a_block():
    assert Network((ReLU(), Residual((ReLU(), Affine(np.ones((5, 3)))), (Affine(np.ones((5, 3))),)))).n_inputs == 3
    shortcut_only = Network((Residual((TANH,), (TANH, Affine(EYE))), ReLU()))
    assert (shortcut_only.n_inputs, shortcut_only.n_outputs) == (2, 2)


def test_no_chain_and_the_block_is_named():
    net = Network((Affine(EYE), ReLU(), Residual((Affine(EYE),))))
    assert not net.is_relu_chain
    with pytest.raises(UnsupportedLayerError, match=r"layers\[2\] \(Residual\)"):
        net.chain
    opened = net.open_ended
    assert isinstance(opened.layers[-1], Affine) and opened.digest == net.digest and len(opened.layers) == 4
    x = np.random.default_rng(0).standard_normal((5, 2))
    assert np.array_equal(opened.forward(x), net.forward(x))


def test_digests_tell_structures_apart():
    a, b, r = Affine(EYE), Affine(2 * EYE), ReLU()
    nets = [
        (a, b, r),
        (Residual((a, b, r)),),
        (Residual((a, b), (r,)),),
        (Residual((a,), (b, r)),),
        (Residual((b, r), (a,)),),
        (Residual((a,)), b, r),
        (Residual((a, b)), r),
        (Residual((Residual((a, b)), r)),),
        (Residual((Residual((a,)), b, r)),),
        (Residual((Residual((a,), (b,)), r)),),
        (Residual((Residual((a,)),), (b, r)),),
        (Residual((a,), (Residual((b,)), r)),),
        (Residual((a,), (Residual((b, r)),)),),
        (Residual((a,), (Residual((b,), (r,)),)),),
        (Residual((Residual((a,), (r,)),), (b,)),),
    ]
    assert len({Network(layers).digest for layers in nets}) == len(nets)


W3 = np.ones((3, 2))


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Network((Affine(EYE), Residual((Affine(W3),)))), InputError, r"layers\[1\]: .*gives 3 .*gives 2;"),
        (lambda: Network((Affine(W3), Residual((Affine([[1.0] * 3]),)))), InputError, r"layers\[1\]: .*broadcast"),
        (lambda: Network((Affine(EYE), ReLU(), Residual((ReLU(), Affine([[1.0] * 3]))))), InputError,
         r"^layers\[2\]\.body\[1\]: got a weight with 3 inputs after 2"),
        (lambda: Network((Residual((Affine(EYE),), (Residual((ReLU(), Affine([[1.0]]))),)),)), InputError,
         r"^layers\[0\]\.shortcut\[0\]\.body\[1\]"),
        (lambda: Network((Residual((Affine(W3),), (Affine(W3),)), Affine(EYE))), InputError, r"^layers\[1\]: got a w"),
        (lambda: Network((Residual((ReLU(),)),)), InputError, "no Affine layer"),
        (lambda: Network((Affine(EYE), Residual((Flatten(),)))), UnsupportedLayerError,
         r"^layers\[1\]\.body\[0\]: got a Flatten inside a Residual"),
        (lambda: Network((Affine(EYE), Residual((ReLU(),), (Normalise(0.0, 1.0),)))), UnsupportedLayerError,
         r"^layers\[1\]\.shortcut\[0\]: got a Normalise inside a Residual"),
        (lambda: Network((Affine(EYE), Residual((ReLU(), "relu")))), UnsupportedLayerError, r"layers\[1\]\.body\[1\]"),
        (lambda: Residual(()), InputError, "^body: got no layer"),
        (lambda: Residual(Affine(EYE)), InputError, "^body: got a Affine"),
        (lambda: Residual((ReLU(),), ReLU()), InputError, "^shortcut: got a ReLU"),
    ],
)  # fmt: skip
def test_blocks_that_do_not_fit_are_refused_by_path(make, error, words):
    with pytest.raises(error, match=words):
        make()


# -- import: accepted ------------------------------------------------------------------------------


def block(m, x):
    return x + m.b(torch.relu(m.a(x)))


def iadd(m, x):
    out = m.b(torch.relu(m.a(x)))
    out += x
    return out


def in_place_inside(m, x):
    """The ReLU overwrites the block's own value, which nobody else reads."""
    return x + m.b(m.inplace(m.a(x)))


def in_place_after_the_skip_was_read(m, x):
    skip = m.c(x)
    return skip + m.b(functional.relu_(x))


def stack(m, x):
    for layer in (m.a, m.b, m.c):
        x = torch.relu(x + layer(torch.relu(layer(x))))
    return x


def nested(m, x):
    inner = m.a(x)
    inner = inner + m.b(torch.relu(inner))
    return torch.relu(x) + m.c(inner)


def three_ways(m, x):
    return x + m.a(x) + torch.relu(m.b(x))


ACCEPTED = {
    "pre-activation": (lambda m, x: block(m, x), "(ara|)"),
    "skip second": (lambda m, x: m.a(x) + x, "(a|)"),
    "post-activation": (lambda m, x: torch.relu(x + m.b(torch.relu(m.a(x)))), "(ara|)r"),
    "one activation": (lambda m, x: m.a(x + torch.tanh(x)), "(t|)a"),
    "projection": (lambda m, x: m.down(m.up(x) + m.up(torch.relu(m.a(x)))), "(ara|a)a"),
    "projection first": (lambda m, x: m.up(x) + m.up(torch.relu(x)), "(ra|a)"),
    "two bodies": (lambda m, x: m.a(torch.tanh(x)) + m.b(torch.relu(x)), "(ta|ra)"),
    "two linear bodies": (lambda m, x: m.a(x) + m.b(x), "(a|a)"),
    "the same layer twice": (lambda m, x: m.a(x) + m.a(x), "(a|a)"),
    "after a layer": (lambda m, x: block(m, m.down(torch.relu(m.up(x)))), "ara(ara|)"),
    "stack": (stack, "(ara|)r(ara|)r(ara|)r"),
    "nested": (nested, "(r|a(ra|)a)"),
    "nested deeply": (lambda m, x: x + m.a(block(m, torch.relu(block(m, x)))), "((ara|)r(ara|)a|)"),
    "three ways": (three_ways, "(ar|(a|))"),
    "the skip twice": (lambda m, x: x + (x + m.a(x)), "((a|)|)"),
    "iadd": (iadd, "(ara|)"),
    "torch.add": (lambda m, x: torch.add(x, m.a(x)), "(a|)"),
    "torch.add kw": (lambda m, x: torch.add(input=m.a(x), other=x, alpha=1), "(a|)"),
    "method add": (lambda m, x: x.add(m.a(x), alpha=1.0), "(a|)"),
    "method add kw": (lambda m, x: m.a(x).add(other=x), "(a|)"),
    "method add_": (lambda m, x: m.a(x).add_(x), "(a|)"),
    "operator.add": (lambda m, x: operator.add(m.a(x), x), "(a|)"),
    "dropout": (lambda m, x: x + m.drop(m.a(m.drop(x))), "(a|)"),
    "flat flatten": (lambda m, x: x.flatten(1) + m.a(x.view(x.size(0), -1)), "(a|)"),
    "in place inside": (in_place_inside, "(ara|)"),
    "in place after the skip": (in_place_after_the_skip_was_read, "(ra|a)"),
    "in place on the sum": (lambda m, x: m.b(m.inplace(x + m.a(x))), "(a|)ra"),
}


@pytest.mark.parametrize(("function", "structure"), ACCEPTED.values(), ids=ACCEPTED.keys())
def test_blocks_compute_the_same(function, structure):
    net = assert_same(Net(function))
    assert shapes(net.layers) == structure


class Block(nn.Module):
    """As in torchvision's ResNet, with linear layers."""

    def __init__(self, n_in, n_out, seed):
        super().__init__()
        self.fc1, self.fc2 = linear(n_in, n_out, seed), linear(n_out, n_out, seed + 1)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None if n_in == n_out else nn.Sequential(linear(n_in, n_out, seed + 2))

    def forward(self, x):
        identity = x
        out = self.fc2(self.relu(self.fc1(x)))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


def test_a_resnet_of_linear_layers():
    widths = (6, 6, 8, 8, 4)
    blocks = [Block(a, b, 10 * i) for i, (a, b) in enumerate(itertools.pairwise(widths))]
    model = nn.Sequential(linear(5, 6), nn.ReLU(inplace=True), *blocks, linear(4, 3))
    net = assert_same(model, (5,))
    assert shapes(net.layers) == "ar(ara|)r(ara|a)r(ara|)r(ara|a)ra"
    assert (net.n_inputs, net.n_outputs) == (5, 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_deep_stacks_pass_the_round_trip(dtype):
    torch.manual_seed(3)
    blocks = [torch_layers.Residual(nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64))) for _ in range(6)]
    net = from_module(nn.Sequential(nn.Linear(100, 64), *blocks, nn.Linear(64, 10)).to(dtype))
    assert len(list(affine_layers(net.layers))) == 14


def test_images_are_flattened_before_the_block():
    inner = Net(lambda m, x: torch.relu(block(m, x.flatten(1))))
    net = assert_same(inner, (1, 2, 2), (1, 2, 2))
    assert shapes(net.layers) == "f(ara|)r"
    normalised = nn.Sequential(torch_layers.Normalise(0.5, 0.25), Net(block))
    assert shapes(assert_same(normalised).layers) == "n(ara|)"
    unflattened = nn.Sequential(Net(lambda m, x: torch.relu(x) + torch.tanh(x)), nn.Flatten(), linear(4, 2))
    assert shapes(assert_same(unflattened, (1, 2, 2), (1, 2, 2)).layers) == "(r|t)fa"
    one_row = assert_same(Net(lambda m, x: block(m, m.c(x)) + x), (1, 4), (1, 4))
    assert shapes(one_row.layers) == "(a(ara|)|)"


def test_a_shared_block():
    shared = torch_layers.Residual(nn.Sequential(linear(4, 4), nn.ReLU()))
    assert shapes(assert_same(nn.Sequential(shared, nn.Tanh(), shared)).layers) == "(ar|)t(ar|)"


# -- import: refused by name -----------------------------------------------------------------------


def dense(m, x):
    """As in DenseNet: the second skip begins inside the first block."""
    inner = torch.relu(m.a(x))
    outer = x + m.b(inner)
    return m.c(outer) + inner


def crossing(m, x):
    """Three sums, the middle one of a value from inside either neighbour."""
    h, k = m.a(x), m.b(x)
    return (h + m.c(k)) + (torch.tanh(h) + k)


REFUSED = {
    "x + x": (lambda m, x: m.a(x + x), r"operator\.add .*adds a value to itself"),
    "x + identity of x": (lambda m, x: m.a(x + m.drop(x)), "adds a value to itself"),
    "constant": (lambda m, x: m.a(x) + 1.0, r"operator\.add .*something other than two values"),
    "constant first": (lambda m, x: 1 + m.a(x), r"operator\.add .*something other than two values"),
    "parameter": (lambda m, x: m.a(x) + m.a.bias, r"operator\.add .*something other than two values"),
    "size": (lambda m, x: m.a(x) + x.size(1), r"operator\.add .*something other than two values"),
    "list": (lambda m, x: operator.add(m.a(x), [1.0] * 4), r"operator\.add .*something other than two values"),
    "alpha": (lambda m, x: torch.add(m.a(x), x, alpha=2), "torch.add .*alpha"),
    "out": (lambda m, x: torch.add(m.a(x), x, out=None), "torch.add .*alpha, out"),
    "difference": (lambda m, x: m.a(x) - x, r"operator\.sub .*joins 2 values"),
    "product": (lambda m, x: m.a(x) * x, r"operator\.mul .*joins 2 values"),
    "cat": (lambda m, x: torch.cat([m.a(x), x], 1), r"torch\.cat .*joins 2 values"),
    "maximum": (lambda m, x: torch.maximum(m.a(x), x), r"maximum .*joins 2 values"),
    "attention": (lambda m, x: torch.softmax(m.a(x) @ m.b(x).t(), -1) @ m.c(x), "method t"),
    "gate": (lambda m, x: x + torch.sigmoid(m.a(x)) * m.b(x), r"operator\.mul .*joins 2 values"),
    "bilinear": (lambda m, x: functional.linear(m.a(x), x), r"linear .*joins 2 values"),
    "dense": (dense, r"relu .*used twice .*seen at .*operator\.add \(node 'add_1'"),
    "crossing": (crossing, "used twice .*not overlap"),
    "broadcast": (lambda m, x: x + m.narrow(x), r"operator\.add .*broadcasts: it adds \(4,\) and \(1,\)"),
    "broadcast of branches": (lambda m, x: m.narrow(x) + m.up(x), "broadcasts"),
    "dropped branch": (lambda m, x: (m.b(x), m.a(x))[1], r"b \(Linear\).*does not reach the output"),
    "dropped sum": (lambda m, x: (x + m.b(x), m.a(x))[1], "does not reach the output"),
    "two outputs": (lambda m, x: (x + m.b(x), x), "the last value"),
    "normalised inside": (lambda m, x: x + m.norm(m.a(x)), r"norm \(Normalise\), a normalisation inside a residual"),
    "sum()": (lambda m, x: sum([m.a(x), x]), "something other than two values"),
    "sub layer": (lambda m, x: x + functional.softmax(m.a(x), -1), "softmax"),
}


@pytest.mark.parametrize(("function", "name"), REFUSED.values(), ids=REFUSED.keys())
def test_other_joins_are_refused_by_name(function, name):
    model = Net(function)
    model.norm = torch_layers.Normalise(0.0, 2.0)
    with pytest.raises(UnsupportedLayerError, match=name) as caught:
        from_module(model.eval())
    assert caught.value.argument == "model"


def test_the_place_in_the_model_is_named():
    with pytest.raises(UnsupportedLayerError, match=r"operator\.mul \(node 'mul' in 1\.0 \(Net\)\)"):
        from_module(nn.Sequential(nn.ReLU(), nn.Sequential(Net(lambda m, x: x * m.a(x)))))


def test_flattening_an_image_inside_a_block():
    model = Net(lambda m, x: x.flatten(1) + m.a(torch.relu(x).flatten(1)))
    with pytest.raises(UnsupportedLayerError, match=r"method flatten .*shape \(1, 2, 2\) inside a residual block"):
        from_module(model, input_shape=(1, 2, 2))
    # (N, 2, 2) + (N, 4): torch would broadcast or fail
    with pytest.raises(UnsupportedLayerError, match=r"broadcasts: it adds \(2, 2\) and \(4,\)"):
        from_module(Net(lambda m, x: x + m.a(x.flatten(1))), input_shape=(2, 2))


def test_broadcasting_that_shapes_do_not_show():
    """(N, 1, 4) + (N, 4) is (N, N, 4) in torch: nn.Linear kept an axis that the network does not count."""
    with pytest.raises(InputError):
        from_module(Net(lambda m, x: (h := m.a(x)) + m.b(h.flatten(1))), input_shape=(1, 4))


# -- operations in place ---------------------------------------------------------------------------


class Hazard(nn.Module):
    """``x + body(x)`` whose body overwrites x: torch computes relu(x) + fc(relu(x))."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.ReLU(inplace=True), linear(4, 4))

    def forward(self, x):
        return x + self.body(x)


def test_a_skip_that_torch_overwrites():
    model = Hazard()
    x = torch.tensor([[-1.0, 2.0, -3.0, 4.0]])
    with torch.no_grad():
        seen = model(x.clone())
        assert torch.equal(seen, x.relu() + model.body[1](x.relu()))
        assert not torch.equal(seen, x + model.body[1](x.relu()))  # what the traced graph says
    words = r"body\.0 \(ReLU\), which works in place .*read again.*'add'"
    with pytest.raises(UnsupportedLayerError, match=words) as caught:
        from_module(model)
    assert "inplace=False" in str(caught.value)
    model.body[0] = nn.ReLU()
    assert shapes(assert_same(model).layers) == "(ra|)"


def overwritten_view(m, x):
    flat = x.view(x.size(0), -1)
    return x + m.a(torch.relu_(flat))


def sum_over_the_skip(m, x):
    h = m.c(x)
    skip = h
    h += m.a(h)
    return skip + m.b(h)


IN_PLACE = {
    "F.relu": lambda m, x: x + m.a(functional.relu(x, inplace=True)),
    "F.relu positional": lambda m, x: x + m.a(functional.relu(x, True)),
    "relu_": lambda m, x: x + m.a(torch.relu_(x)),
    "x.relu_": lambda m, x: x + m.a(x.relu_()),
    "tanh_": lambda m, x: x + m.a(torch.tanh_(x)),
    "leaky": lambda m, x: x + m.a(functional.leaky_relu(x, 0.1, True)),
    "silu": lambda m, x: x + m.a(functional.silu(x, inplace=True)),
    "module": lambda m, x: x + m.a(m.inplace(x)),
    "skip second": lambda m, x: m.a(m.inplace(x)) + x,
    "inner value": lambda m, x: (h := m.c(x)) + m.a(m.inplace(h)),
    "view": overwritten_view,
    "identity": lambda m, x: x + m.a(m.inplace(m.drop(x))),
    "view read": lambda m, x: operator.add(x.flatten(1), m.a(m.inplace(x))),
    "iadd": sum_over_the_skip,
    "add_": lambda m, x: (h := m.c(x)) + m.b(h.add_(m.a(h))),
    "output": lambda m, x: (h := m.a(x), h.relu_())[0],
    "chain": lambda m, x: (h := m.a(x), h.relu_(), m.b(h))[2],
}


@pytest.mark.parametrize("function", IN_PLACE.values(), ids=IN_PLACE.keys())
def test_what_is_overwritten_and_read_again_is_refused(function):
    with pytest.raises(UnsupportedLayerError, match=r"in place on a value that is read again|the last value"):
        from_module(Net(function).eval())


@pytest.mark.parametrize("function", IN_PLACE.values(), ids=IN_PLACE.keys())
def test_the_round_trip_would_see_it_too(function, monkeypatch):
    """The second line of defence, with the first one switched off."""
    from certbound.io import torch_module

    monkeypatch.setattr(torch_module._Importer, "_read", lambda *_: None)
    with pytest.raises(InputError, match=r"rounding explains|the last value|used twice"):
        from_module(Net(function).eval())


# -- the round trip --------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [lambda out: 1.001 * out, lambda out: out + 0.25, lambda out: out.clamp(max=1e3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_changed_layer_inside_a_block_is_seen(change, dtype):
    model = nn.Sequential(linear(5, 4, 7, dtype), Net(block, dtype))
    from_module(model)
    target = model[1].b
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, _args, out: change(out) if module is target else None
    )
    try:
        with pytest.raises(InputError, match="rounding explains"):
            from_module(model)
    finally:
        handle.remove()


def test_a_block_whose_inside_overflows_is_not_compared_there():
    """Inputs on which the body overflows float16 are left out, though the sum of the two sides would not show it."""
    model = Net(lambda m, x: x + m.b(torch.tanh(m.a(x)))).half()
    with torch.no_grad():
        model.a.weight.mul_(1000.0)
    assert_same(model)


# -- back to torch ---------------------------------------------------------------------------------


def random_layers(rng, width, depth, budget):
    """Random layers of a given input width, and their output width."""
    layers = []
    for _ in range(budget):
        kind = rng.integers(4 if depth else 3)
        if kind == 0:
            out = int(rng.integers(1, 5))
            bias = rng.standard_normal(out) if rng.random() < 0.5 else None
            layers.append(Affine(rng.standard_normal((out, width)), bias))
            width = out
        elif kind == 1:
            layers.append(ReLU())
        elif kind == 2:
            layers.append(Activation(("tanh", "gelu", "silu", "sigmoid", "gelu_tanh")[rng.integers(5)]))
        else:
            body, out = random_layers(rng, width, depth - 1, int(rng.integers(1, 4)))
            shortcut, other = random_layers(rng, width, depth - 1, int(rng.integers(0, 3)))
            if other != out or (not shortcut and out != width):
                shortcut.append(Affine(rng.standard_normal((out, other))))
            layers.append(Residual(tuple(body), tuple(shortcut)))
            width = out
    return layers, width


@pytest.mark.parametrize("seed", range(60))
def test_random_networks_to_torch_and_back(seed):
    rng = np.random.default_rng(seed)
    layers, width = random_layers(rng, 3, 3, 4)
    net = Network((*layers, Affine(rng.standard_normal((2, width)))))
    if not any(isinstance(x, (Residual, Activation)) for x in net.layers):
        net = Network((*net.layers, Residual((TANH,))))
    module = to_torch(net)
    x = rng.standard_normal((6, net.n_inputs))
    np.testing.assert_allclose(module(torch.from_numpy(x)).numpy(), net.forward(x), rtol=1e-10, atol=1e-10)
    again = from_module(module)
    assert again.digest == net.digest
    assert shapes(again.layers) == shapes(net.layers)


def test_flat_input_takes_any_shape():
    net = Network((Residual((Affine(np.eye(4)), TANH)), Affine(np.ones((1, 4)))))
    x = np.random.default_rng(0).random((3, 1, 2, 2))
    np.testing.assert_allclose(to_torch(net)(torch.from_numpy(x)).numpy(), net.forward(x), rtol=1e-13)
    images = from_module(to_torch(net), input_shape=(1, 2, 2))
    assert shapes(images.layers) == "f(at|)a"

    class Sub(FlatInput):
        pass

    with pytest.raises(UnsupportedLayerError, match=r"0 \(Sub\)"):
        from_module(nn.Sequential(Sub(), linear(4, 2)))


def test_a_subclass_of_the_block_is_what_its_forward_says():
    class Twice(torch_layers.Residual):
        def forward(self, x):
            return super().forward(super().forward(x))

    assert shapes(assert_same(Twice(linear(4, 4))).layers) == "(a|)(a|)"
    assert math.isclose(Network((Affine(EYE), Residual((ReLU(),)))).forward([[1.0, 0.0]])[0, 0], 2.0)
