"""What operator_norm_upper and _lower read, what they refuse, and their certificates."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conv_cases import materialised, scaled_svd
from tamper import every_flip_refused, forged
from torch import nn
from torch.nn.utils import parametrizations

from certbound import CertificateError, InputError, UnsupportedLayerError, load_certificate, spectral_norm_upper
from certbound.certificate import to_bytes
from certbound.norms.conv_certificate import ConvNormCertificate
from certbound.norms.conv_torus import Grid, symbol_of, torus_bound
from certbound.norms.convolution import check_input_shape, conv_adjoint, conv_axes
from certbound.norms.operator import as_conv, conv_norm_bound, operator_norm_lower, operator_norm_upper
from certbound.ops import Conv, Linear
from certbound.types import Quantity, Rigor, Sense

BOTH = (operator_norm_lower, operator_norm_upper)


def layer(seed=0, **more):
    rng = np.random.default_rng(seed)
    given = {"padding": ((1, 1), (1, 1)), **more}
    return Conv(rng.standard_normal((4, 3, 3, 3)), np.ones(4), **given)


SHAPE = (3, 5, 6)


# ---------------------------------------------------------------- layers that are read

TORCH = {
    "plain": lambda: nn.Conv2d(4, 6, 3, padding=1),
    "strided": lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(2, 0), dilation=(1, 2)),
    "groups": lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2, bias=False),
    "same": lambda: nn.Conv2d(4, 6, (4, 2), padding="same", dilation=(1, 3)),
    "valid": lambda: nn.Conv2d(4, 6, 3, padding="valid"),
    "reflect": lambda: nn.Conv2d(4, 6, 3, padding=2, padding_mode="reflect"),
    "replicate": lambda: nn.Conv2d(4, 6, 3, padding=2, padding_mode="replicate"),
    "circular": lambda: nn.Conv2d(4, 6, 3, padding=2, padding_mode="circular"),
    "same reflect": lambda: nn.Conv2d(4, 6, 4, padding="same", padding_mode="reflect"),
    "half": lambda: nn.Conv2d(4, 6, 3, padding=1).half(),
    "bfloat16": lambda: nn.Conv2d(4, 6, 3, padding=1).bfloat16(),
    "weight norm": lambda: parametrizations.weight_norm(nn.Conv2d(4, 6, 3, padding=1).double()),
    "old weight norm": lambda: nn.utils.weight_norm(nn.Conv2d(4, 6, 3, padding=1).double()),
    "1d": lambda: nn.Conv1d(4, 6, 3, padding=1),
    "3d": lambda: nn.Conv3d(4, 2, 2, padding=(1, 0, 1)),
}


def as_torch_applies_it(module: nn.Module, shape):
    """The linear part of the module itself, by running it."""
    module = module.double()
    units = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)
    with torch.no_grad():
        images = module(units) - module(torch.zeros(1, *shape, dtype=torch.float64))
    return images.reshape(len(units), -1).T.numpy()


@pytest.mark.parametrize("name", TORCH)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning", "ignore:Using padding='same'")
def test_torch_layers_are_what_they_compute(name):
    torch.manual_seed(0)
    module = TORCH[name]().eval()
    shape = (4, *{"1d": (7,), "3d": (3, 4, 3)}.get(name, (6, 5)))
    lower, upper = (f(module, 2, shape, tier="tight") for f in BOTH)
    rows = [f(module, "inf", shape) for f in BOTH]
    assert upper.certificate.verify(module) and lower.certificate.verify(module)
    A = as_torch_applies_it(module, shape)
    true = np.linalg.norm(A, 2)
    assert true * 0.99 <= lower.value <= true * (1 + 1e-12)
    assert true * (1 - 1e-12) <= upper.value <= true * 1.0101
    assert rows[0].value == pytest.approx(np.abs(A).sum(axis=1).max(), rel=1e-12)
    assert rows[0].value <= rows[1].value <= math.nextafter(rows[0].value, math.inf)


def test_matrices_are_read_as_matrices():
    W = np.array([[3.0, 0.0], [4.0, 5.0]])
    linear = nn.Linear(2, 2)
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(W))
    for given in (W, W.tolist(), linear, Linear(W), torch.from_numpy(W)):
        upper, lower = operator_norm_upper(given), operator_norm_lower(given)
        assert upper.rigor is Rigor.RIGOROUS and upper.certificate is not None
        assert lower.value <= math.sqrt(45) <= upper.value <= math.sqrt(45) * (1 + 1e-13)
        assert operator_norm_upper(given, "inf").value == 9.0 == operator_norm_lower(given, math.inf).value
    assert operator_norm_upper(W, rigor="numerical") == spectral_norm_upper(W)
    assert operator_norm_upper(W, 2, (7, 2)).value == operator_norm_upper(W).value


def test_a_linear_with_a_parametrization_is_read_as_it_computes():
    linear = parametrizations.weight_norm(nn.Linear(3, 2)).eval()
    weight = linear.weight.detach().double().numpy()
    assert operator_norm_upper(linear).value == pytest.approx(np.linalg.norm(weight, 2), rel=1e-9)


def test_the_bound_says_what_it_is():
    bound = operator_norm_upper(layer(), 2, SHAPE)
    assert bound.claim.quantity is Quantity.OPERATOR_NORM
    assert (bound.claim.norm_in, bound.claim.norm_out, bound.sense) == (2.0, 2.0, Sense.UPPER)
    assert "torus" in bound.method or "Cholesky" in bound.method
    assert "Delattre" in bound.source or bound.source == "definition"
    assert "Lanczos" in operator_norm_lower(layer(), 2, SHAPE).method
    assert "row sum" in operator_norm_upper(layer(), "inf", SHAPE).method
    # the bias and how the layer was given are no part of the claim; the size and the geometry are
    other = replace(layer(), bias=None)
    assert operator_norm_upper(other, 2, SHAPE).claim == bound.claim
    subjects = {
        operator_norm_upper(given, 2, shape).claim.subject
        for given, shape in [
            (layer(), SHAPE), (layer(), (3, 6, 5)), (layer(stride=(2, 2)), SHAPE), (layer(dilation=(2, 2)), SHAPE),
            (layer(padding=((1, 0), (1, 1))), SHAPE), (layer(padding_mode="reflect"), SHAPE), (layer(1), SHAPE),
        ]
    }  # fmt: skip
    assert len(subjects) == 7


# ---------------------------------------------------------------- what is refused


class Own(nn.Conv2d):
    def forward(self, input):
        return 2 * super().forward(input)


def own_forward():
    module = nn.Conv2d(4, 6, 3)
    module.forward = lambda x: x
    return module


def hooked():
    module = nn.Conv2d(4, 6, 3)
    module.register_forward_hook(lambda *_: None)
    return module


@pytest.mark.parametrize(
    "make",
    [
        lambda: Own(4, 6, 3), own_forward, hooked, lambda: nn.ConvTranspose2d(4, 6, 3), lambda: nn.ReLU(),
        lambda: nn.Sequential(nn.Conv2d(4, 6, 3)), lambda: nn.LazyConv2d(6, 3), lambda: nn.BatchNorm2d(4),
        lambda: type("MyLinear", (nn.Linear,), {})(3, 2),
    ],
)  # fmt: skip
@pytest.mark.parametrize("call", BOTH)
def test_other_modules_are_refused(make, call):
    module = make()
    with pytest.raises(UnsupportedLayerError) as error:
        call(module, 2, (4, 8, 8))
    assert type(module).__name__ in str(error.value)


@pytest.mark.parametrize(
    ("change", "argument"),
    [
        ({"input_shape": None}, "input_shape"),
        ({"input_shape": (3, 5)}, "input_shape"),
        ({"input_shape": (1, 3, 5, 6)}, "input_shape"),
        ({"input_shape": (4, 5, 6)}, "input_shape"),
        ({"input_shape": (3, 0, 6)}, "input_shape"),
        ({"input_shape": (3, -5, 6)}, "input_shape"),
        ({"input_shape": (3, 5.0, 6)}, "input_shape"),
        ({"input_shape": (3, True, 6)}, "input_shape"),
        ({"input_shape": "356"}, "input_shape"),
        ({"norm": 1}, "norm"),
        ({"norm": "fro"}, "norm"),
        ({"tier": "exact"}, "tier"),
        ({"rigor": "heuristic"}, "rigor"),
        ({"rigor": 7}, "rigor"),
    ],
)
@pytest.mark.parametrize("call", BOTH)
def test_arguments_are_refused_by_name(call, change, argument):
    given = {"norm": 2, "input_shape": SHAPE, **change}
    with pytest.raises(InputError) as error:
        call(layer(), **given)
    assert error.value.argument == argument


@pytest.mark.parametrize("call", BOTH)
def test_inputs_smaller_than_the_kernel_or_its_padding_are_refused(call):
    with pytest.raises(InputError, match="window"):
        call(layer(padding=()), 2, (3, 2, 6))
    with pytest.raises(InputError, match="reflect padding"):
        call(layer(padding=((5, 5), (1, 1)), padding_mode="reflect"), 2, SHAPE)
    with pytest.raises(InputError, match="circular padding"):
        call(layer(padding=((6, 5), (1, 1)), padding_mode="circular"), 2, SHAPE)
    with pytest.raises(InputError) as error:
        call(np.eye(3), 2, (4,))
    assert error.value.argument == "input_shape"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused(bad):
    module = nn.Conv2d(1, 1, 3)
    with torch.no_grad():
        module.weight[0, 0, 1, 1] = bad
    with pytest.raises(InputError) as error:
        operator_norm_upper(module, 2, (1, 5, 5))
    assert error.value.argument == "layer.weight"


def test_complex_meta_and_one_dimensional_weights_are_refused():
    with pytest.raises(InputError, match="complex"):
        operator_norm_upper(nn.Conv2d(1, 1, 3, dtype=torch.complex64), 2, (1, 5, 5))
    with pytest.raises(InputError, match="meta"):
        operator_norm_upper(nn.Conv2d(1, 1, 3, device="meta"), 2, (1, 5, 5))
    with pytest.raises(InputError):
        operator_norm_upper(np.ones(3))
    with pytest.raises(InputError):
        operator_norm_upper(np.ones((2, 2, 3, 3)), 2, (2, 5, 5))


@pytest.mark.parametrize("bad", [-0.1, 1.0, math.nan, math.inf])
def test_relative_errors_are_checked(bad):
    with pytest.raises(InputError) as error:
        conv_norm_bound(layer(), SHAPE, 2.0, Sense.UPPER, relative_error=bad)
    assert error.value.argument == "relative_error"


def test_the_adjoint_checks_what_it_is_given():
    with pytest.raises(InputError) as error:
        conv_adjoint(layer(), np.zeros((4, 5, 5)), SHAPE)
    assert error.value.argument == "y"


def test_shapes_may_be_lists_and_numpy_integers():
    assert check_input_shape(layer(), [3, np.int64(5), 6]) == SHAPE


# ---------------------------------------------------------------- certificates


def certificates(conv):
    return {
        "torus": conv_norm_bound(conv, SHAPE, 2.0, Sense.UPPER).certificate,
        "cholesky": conv_norm_bound(conv, SHAPE, 2.0, Sense.UPPER, "tight").certificate,
        "vector": conv_norm_bound(conv, SHAPE, 2.0, Sense.LOWER).certificate,
        "rows": conv_norm_bound(conv, SHAPE, math.inf, Sense.UPPER).certificate,
    }


def torus_certificate(conv):
    grid = Grid((6, 7), (2, 2))
    value = torus_bound(symbol_of(conv, SHAPE), grid, tolerance=1e-9) * (1 + 2.0**-30)
    subject = operator_norm_upper(conv, "inf", SHAPE).claim.subject
    return ConvNormCertificate(subject, SHAPE, 2.0, Sense.UPPER, value, "torus", grid.points, grid.shifts)


def test_certificates_are_saved_loaded_and_verified(tmp_path):
    conv = layer()
    every = {**certificates(conv), "torus": torus_certificate(conv)}
    assert {c.method for c in every.values()} == set(every)
    for name, certificate in every.items():
        again = load_certificate(certificate.save(tmp_path / f"{name}.certificate"))
        assert again.verify(conv)
        assert again.verify(replace(conv, bias=None))
        assert to_bytes(again.stored()) == to_bytes(certificate.stored())
        assert again.bound == certificate.bound


def test_every_byte_of_a_certificate_counts(tmp_path):
    conv = Conv([[[1.0, 2.0]]])
    for bound in (operator_norm_upper(conv, 2, (1, 3)), operator_norm_lower(conv, 2, (1, 3))):
        every_flip_refused(bound.certificate, conv, tmp_path)


@pytest.mark.parametrize("name", ["torus", "cholesky", "vector", "rows"])
def test_values_beyond_what_is_proved_are_refused(name, tmp_path):
    conv = layer()
    certificate = torus_certificate(conv) if name == "torus" else certificates(conv)[name]
    true, scale = scaled_svd(materialised(conv, SHAPE))
    exact = np.abs(materialised(conv, SHAPE)).sum(axis=1).max() if name == "rows" else true * scale
    wrong = exact * (1 - 1e-9 if certificate.sense is Sense.UPPER else 1 + 1e-9)
    for value in (wrong, math.nan, -1.0, 0.0 if certificate.sense is Sense.UPPER else math.inf):
        with pytest.raises(CertificateError):
            replace(certificate, value=value).verify(conv)
    weaker = exact * (1.5 if certificate.sense is Sense.UPPER else 0.5)
    assert replace(certificate, value=weaker).verify(conv)
    assert replace(certificate, value=math.inf if certificate.sense is Sense.UPPER else 0.0).verify(conv)
    with pytest.raises(CertificateError, match="about the convolution"):
        certificate.verify(layer(1))
    with pytest.raises(CertificateError, match="about the convolution"):
        certificate.verify(layer(stride=(2, 2)))
    with pytest.raises(CertificateError, match="not a matrix"):
        certificate.verify(np.eye(3))
    with pytest.raises(CertificateError):
        replace(certificate, input_shape=(3, 6, 6)).verify(conv)


def test_certificates_of_another_kind_of_proof_are_refused():
    conv = layer()
    every = certificates(conv)
    for method in ("torus", "cholesky", "vector", "rows"):
        for name, certificate in every.items():
            forged_one = replace(certificate, method=method, value=certificate.value)
            fits = {"torus": (), "cholesky": ("torus", "cholesky"), "vector": ("vector",), "rows": ("rows",)}[method]
            if name in fits or method == certificate.method:
                continue
            with pytest.raises(CertificateError):
                forged_one.verify(conv)


@pytest.mark.parametrize(
    ("points", "shifts"),
    [((1, 1), (0, 0)), ((2, 2), (2, 2)), ((6,), (2,)), ((6, 7, 8), (2, 2, 2)), ((0, 7), (2, 2)), ((10**9, 7), (2, 2))],
)
def test_grids_that_prove_nothing_are_refused(points, shifts):
    """The two frequencies π/2 of a grid of 2 are far from the peak of this kernel, at 0."""
    conv = Conv(np.ones((1, 3, 3, 3)), padding=((1, 1), (1, 1)))
    certificate = torus_certificate(conv)
    assert certificate.verify(conv)
    with pytest.raises(CertificateError):
        replace(certificate, points=points, shifts=shifts).verify(conv)


def test_a_twisted_torus_proves_nothing_for_circular_padding():
    """There θ = 1/2 is another operator: it would miss the peak at frequency 0, which the layer reaches."""
    conv = Conv(np.ones((1, 1, 3)), padding=((1, 1),), padding_mode="circular")
    assert operator_norm_upper(conv, 2, (1, 4)).value == pytest.approx(3.0, rel=1e-9)
    symbol = symbol_of(conv, (1, 4))
    assert torus_bound(symbol, Grid((4,), (0,))) == pytest.approx(3.0, rel=1e-9)
    assert torus_bound(symbol, Grid((4,), (2,))) >= 3.0
    assert torus_bound(symbol, Grid((5,), (2,))) >= 3.0


@pytest.mark.parametrize(
    "fields",
    [{"norm": "1"}, {"sense": "both"}, {"method": "faith"}, {"points": [1.5, 2]}, {"input_shape": ["a"]},
     {"value": "x"}, {"parameters": {"gap": "small"}}, {"parameters": []}, {"relative_error": 1},
     {"more": 1}, {"shifts": 3}],
)  # fmt: skip
def test_files_with_other_fields_are_refused(fields, tmp_path):
    with pytest.raises(CertificateError):
        forged(certificates(layer())["rows"], tmp_path, **fields)


@pytest.mark.parametrize("rate", [1.0, -0.5, math.inf])
def test_relative_errors_of_certificates_are_checked(rate):
    certificate = certificates(layer())["rows"]
    with pytest.raises(CertificateError):
        replace(certificate, relative_error=rate, value=math.inf).verify(layer())


def test_vectors_of_another_shape_are_refused():
    certificate = certificates(layer())["vector"]
    for vector in (None, np.ones(90), np.ones((3, 6, 5))):
        with pytest.raises(CertificateError):
            replace(certificate, vector=vector).verify(layer())
    with pytest.raises(CertificateError):
        replace(certificate, vector=np.ones(SHAPE)).verify(layer())


def test_a_wider_relative_error_is_not_proved_by_a_narrower_one():
    conv = layer()
    for sense in Sense:
        for norm in (2.0, math.inf):
            certificate = conv_norm_bound(conv, SHAPE, norm, sense, relative_error=1e-3).certificate
            assert certificate.verify(conv)
            with pytest.raises(CertificateError):
                replace(certificate, relative_error=0.5).verify(conv)
    torus = torus_certificate(conv)
    with pytest.raises(CertificateError):
        replace(torus, relative_error=0.5).verify(conv)


def test_as_conv_returns_what_it_is_given():
    conv = layer()
    assert as_conv(conv) is conv
    assert as_conv(np.eye(2)) is None
    assert as_conv(nn.Linear(2, 2)) is None
    assert len(conv_axes(conv, SHAPE)) == 2
