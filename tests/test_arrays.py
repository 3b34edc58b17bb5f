"""Every number that comes in is kept exactly or refused with a message that teaches."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from budget import matrix_settings
from hypothesis import given
from hypothesis import strategies as st

from certbound.arrays import as_float64, as_labels, as_matrix, digest, frozen, is_torch, power_of_two_scale
from certbound.errors import InputError
from certbound.network import Network

nn = torch.nn

LD = np.longdouble
WIDE = np.finfo(LD).nmant > 52  # False where long double is double


def refusal(value, read=as_matrix, name="W", **kwargs) -> InputError:
    """The error, checked to name the argument, what came, what is needed and the fix; nothing may warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputError) as info:
            read(value, name=name, **kwargs) if kwargs else read(value, name)
    error = info.value
    assert error.argument == name
    assert error.got and error.needed and error.fix
    for part in (f"{name}: got ", error.got, "needed " + error.needed, "Fix: " + error.fix):
        assert part in str(error)
    return error


# -- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.longdouble])
def test_nan_and_infinity_are_refused_with_their_place(bad, dtype):
    array = np.ones((2, 3), dtype=dtype)
    array[1, 2] = bad
    error = refusal(array)
    assert "(1, 2)" in error.got and str(float(bad)) in error.got
    refusal(torch.tensor(array.astype(np.float64)))
    refusal([[1.0, bad]])
    refusal(bad, as_float64)


BAD = {
    "complex": np.ones((2, 2), dtype=complex),
    "complex zero imaginary part": np.eye(2) + 0j,
    "complex list": [[1 + 0j]],
    "object array": np.array([[1, None]], dtype=object),
    "object array of floats": np.eye(2).astype(object),
    "None in a list": [[1.0, None]],
    "None": None,
    "string": "weights.npy",
    "string array": np.array([["1", "2"]]),
    "strings": [["1", "2"]],
    "bytes": b"\x00\x01",
    "numbers beside strings": [[1.0, "2"]],
    "ragged": [[1, 2], [3]],
    "ragged deeper": [[[1], [2, 3]]],
    "dict": {"weight": [[1.0]]},
    "set": {1.0},
    "generator": (x for x in [1.0]),
    "function": len,
    "datetime": np.zeros((2, 2), dtype="M8[s]"),
    "timedelta": np.zeros((2, 2), dtype="m8[s]"),
    "structured": np.zeros((2, 2), dtype=[("a", float)]),
    "masked": np.ma.array([[1.0, 2.0]], mask=[[0, 1]]),
    "masked, nothing masked": np.ma.array([[1.0, 2.0]]),
    "rows that are masked": [np.ma.array([1.0, 2.0], mask=[0, 1])],
    "int64 beyond 2**53": np.array([[2**53 + 1]]),
    "largest int64": np.array([[2**63 - 1]]),
    "largest uint64": np.array([[2**64 - 1]], dtype=np.uint64),
    "python int beyond 2**53": [[2**53 + 1]],
    "python int beyond 2**64": [[2**70 + 1]],
    "python int beyond the largest float": [[10**400]],
    "fraction beyond the largest float": [[Fraction(10**400)]],
    "one third": [[Fraction(1, 3)]],
    "decimal tenth": [[Decimal("0.1")]],
    "complex tensor": torch.ones(2, 2, dtype=torch.complex64),
    "meta tensor": torch.ones(2, 2, device="meta"),
    "int64 tensor beyond 2**53": torch.tensor([[2**53 + 1]]),
    "list of tensors that require grad": [torch.ones(2, requires_grad=True)],
    "list of bfloat16 tensors": [torch.ones(2).bfloat16()],
    "NaN tensor": torch.full((2, 2), math.nan),
    "linear on meta": nn.Linear(2, 2, device="meta"),
    "convolution": nn.Conv2d(1, 1, 3),
    "sequential": nn.Sequential(nn.Linear(2, 2)),
    "scalar": 3.0,
    "vector": [1.0, 2.0],
    "vector tensor": torch.ones(3),
    "three axes": np.ones((2, 2, 2)),
    "four axes": torch.ones(2, 2, 3, 3),
    "empty": [],
    "no rows": np.ones((0, 3)),
    "no columns": np.ones((3, 0)),
    "no columns, list": [[]],
    "no rows, tensor": torch.ones(0, 3),
}


@pytest.mark.parametrize("value", BAD.values(), ids=BAD.keys())
@pytest.mark.parametrize("name", ["W", "weights[3]"])
def test_bad_matrices(value, name):
    refusal(value, name=name)


@pytest.mark.skipif(not WIDE, reason="long double is double here")
def test_longdouble_only_if_double_holds_it():
    refusal(np.array([[LD(1) / LD(3)]]))
    refusal(np.array([[LD(1) + np.finfo(LD).eps]]))
    assert "float64 cannot hold" in refusal(np.array([[LD(10) ** 400]])).got
    assert "float64 cannot hold" in refusal(np.array([[LD(10) ** -400]])).got
    assert as_matrix(np.array([[LD(0.1)]]), "W")[0, 0] == 0.1


# -- what is read, exactly -----------------------------------------------------------------------------------------

GOOD = {
    "float16 smallest and largest": np.array([[2.0**-24, 65504.0]], dtype=np.float16),
    "float32 smallest and largest": np.array([[1e-45, 3.4028235e38]], dtype=np.float32),
    "float64 smallest and largest": np.array([[5e-324, 1.7976931348623157e308]]),
    "int8": np.array([[-128, 127]], dtype=np.int8),
    "uint8": np.array([[0, 255]], dtype=np.uint8),
    "int64 at 2**53": np.array([[2**53, -(2**53)]]),
    "int64 that float64 holds": np.array([[2**62, 2**53 + 2]]),
    "bool": np.array([[True, False]]),
    "list of ints": [[1, 2], [3, 4]],
    "tuple of arrays": (np.array([1.0, 2.0]), np.array([3.0, 4.0])),
    "fractions": [[Fraction(1, 4), Fraction(3)]],
    "decimals": [[Decimal("0.25")]],
    "large int that float64 holds": [[2**70]],
    "big-endian": np.array([[1.5, -2.5]], dtype=">f8"),
    "big-endian int": np.array([[1, -2]], dtype=">i4"),
    "Fortran order": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "transposed": np.arange(6.0).reshape(2, 3).T,
    "every second": np.arange(24.0).reshape(4, 6)[::2, ::3],
    "negative strides": np.arange(6.0).reshape(2, 3)[::-1, ::-1],
    "zero strides": np.broadcast_to(np.arange(3.0), (2, 3)),
    "read-only": frozen(np.arange(6.0).reshape(2, 3)),
    "negative zero": np.array([[-0.0, 1.0]]),
}


@pytest.mark.parametrize("value", GOOD.values(), ids=GOOD.keys())
def test_good_matrices_are_read_exactly_and_copied(value):
    expected = np.array([[Fraction(float(v)) for v in row] for row in np.asarray(value).tolist()])
    source = np.asarray(value)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = as_matrix(value)
    assert result.dtype == np.float64 and result.dtype.isnative and type(result) is np.ndarray
    assert result.flags.c_contiguous and result.flags.owndata and result.flags.writeable
    assert result.shape == source.shape
    assert np.array([[Fraction(float(v)) for v in row] for row in result]).tolist() == expected.tolist()
    if isinstance(value, np.ndarray):
        assert not np.shares_memory(result, value)


FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", [*FLOATS, torch.int8, torch.int64, torch.bool])
def test_tensors_of_every_dtype(dtype):
    tensor = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0]]).to(dtype)
    assert as_matrix(tensor).tolist() == [[0.0, 1.0, 1.0], [1.0, 0.0, 1.0]]
    if dtype in FLOATS:
        third = (torch.ones(1, 1, dtype=torch.float64) / 3).to(dtype)  # rounded to its own dtype, and kept so
        assert as_matrix(third)[0, 0] == third.item()
        smallest = torch.full((1, 1), torch.finfo(dtype).tiny, dtype=dtype)
        assert as_matrix(smallest)[0, 0] == torch.finfo(dtype).tiny


def test_tensors_in_every_state():
    plain = torch.arange(6.0, dtype=torch.float64).reshape(2, 3)
    expected = plain.tolist()
    states = {
        "requires grad": plain.clone().requires_grad_(),
        "not a leaf": plain.clone().requires_grad_() * 1.0,
        "parameter": nn.Parameter(plain.clone()),
        "coo": plain.to_sparse(),
        "coo requires grad": plain.to_sparse().requires_grad_(),
        "transposed twice": plain.t().contiguous().t(),
        "expanded then sliced": torch.cat([plain, plain])[:2],
        "negative bit": torch.conj(torch.complex(torch.zeros_like(plain), -plain)).imag,
        "inference": torch.inference_mode()(lambda: plain.clone())(),
    }
    for name, tensor in states.items():
        assert as_matrix(tensor).tolist() == expected, name
        if tensor.is_leaf and tensor.requires_grad:
            assert tensor.requires_grad and tensor.grad is None
    assert as_matrix(plain[:, ::2]).tolist() == [[0.0, 2.0], [3.0, 5.0]]


def test_linear_layers():
    layer = nn.Linear(3, 2)
    assert as_matrix(layer).shape == (2, 3)
    assert as_matrix(layer).tolist() == layer.weight.double().tolist()
    assert as_matrix(layer.half()).tolist() == layer.weight.double().tolist()
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))
    assert as_matrix(normed).tolist() == normed.weight.double().tolist()
    with pytest.raises(ValueError, match="uninitialized"):
        as_matrix(nn.LazyLinear(2))


@pytest.mark.parametrize("make", [np.array, lambda v: torch.tensor(v, dtype=torch.float64)], ids=["numpy", "torch"])
def test_the_input_is_neither_aliased_nor_changed(make):
    source = make([[1.0, 2.0], [3.0, 4.0]])
    result = as_matrix(source)
    result[0, 0] = 99.0
    assert source[0, 0] == 1.0
    source[1, 1] = 77.0
    assert result[1, 1] == 4.0
    # and a network keeps its weights whatever happens to what it was made of
    network = Network.from_weights([source])
    before = network.digest
    source[0, 1] = 55.0
    weight = network.chain.weights[0]
    assert weight[0, 1] == 2.0 and network.digest == before
    with pytest.raises(ValueError, match="read-only"):
        weight[0, 0] = 0.0
    layer = network.layers[0]
    with pytest.raises(ValueError, match="read-only"):
        layer.weight[0, 0] = 0.0  # type: ignore[union-attr]


def test_frozen_makes_the_array_itself_read_only():
    array = np.arange(3.0)
    # a view would leave its base open: what a digest was taken of could change behind it
    assert frozen(array) is array
    assert not array.flags.writeable


def test_reading_arrays_does_not_import_torch():
    code = "import sys; from certbound.arrays import *; as_matrix([[1.0]]); assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert is_torch(torch.ones(1), "Tensor") and not is_torch(np.ones(1), "Tensor")


# -- labels --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "y", [[0, 2, 1], (0.0, 2.0, 1.0), np.array([0, 2, 1], dtype=np.uint8), torch.tensor([0, 2, 1])]
)
def test_labels(y):
    result = as_labels(y, 3, 3)
    assert result.dtype == np.int64 and result.tolist() == [0, 2, 1]


@pytest.mark.parametrize(
    ("y", "n", "n_classes"),
    [
        ([0, 1], 3, 2),
        ([[0], [1]], 2, 2),
        (0, 1, 2),
        ([0, 2], 2, 2),
        ([-1, 1], 2, 2),
        ([0.5, 1], 2, 2),
        ([1e300, 1], 2, None),
        ([-1], 1, None),
        ([math.nan], 1, 2),
        ([2**53 + 1], 1, None),
        (["0"], 1, 2),
        (np.eye(2), 2, 2),
        ([1 + 0j], 1, 2),
    ],
)
def test_bad_labels(y, n, n_classes):
    refusal(y, as_labels, name="y", n=n, n_classes=n_classes)


# -- digests and scales --------------------------------------------------------------------------------------------


def test_digests_tell_arrays_apart():
    a = np.arange(6.0)
    every = [
        digest(a),
        digest(a.reshape(2, 3)),
        digest(a.reshape(3, 2)),
        digest(a.reshape(1, 6)),
        digest(a.astype(np.float32)),
        digest(a[:3], a[3:]),
        digest(np.append(a[:5], math.nextafter(5.0, 6.0))),
        digest(),
    ]
    assert len(set(every)) == len(every)
    assert all(len(d) == 16 for d in every)
    assert digest(np.asfortranarray(a.reshape(2, 3))) == digest(a.reshape(2, 3))


@matrix_settings
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=4))
def test_scales_are_powers_of_two_and_bring_the_largest_into_one_to_two(entries):
    array = np.array(entries)
    scale = power_of_two_scale(array)
    top = float(np.max(np.abs(array)))
    assert math.frexp(scale)[0] == 0.5
    if top == 0.0:
        assert scale == 1.0
    else:
        assert 1.0 <= top / scale < 2.0
        assert Fraction(top / scale) * Fraction(scale) == Fraction(top)
