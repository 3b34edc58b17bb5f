"""The public strategies give what they say, and the zoo's constants are exact, found here by other means."""

from __future__ import annotations

import importlib
import itertools
import math
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import find, given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from certbound import testing
from certbound.errors import InputError, MissingDependencyError
from certbound.network import Affine, Network
from certbound.testing import ZooEntry, zoo
from certbound.testing.strategies import (
    KINDS,
    compressible_matrices,
    labelled_batches,
    rational_matrices,
    relu_networks,
    tiny_relu_networks,
)

quick = settings(max_examples=40, deadline=None)


# -- the zoo --------------------------------------------------------------------------------------


def fractions(array):
    return [[Fraction(float(v)) for v in row] for row in np.atleast_2d(array)]


def product(a, b):
    return [[sum((u * v for u, v in zip(row, column, strict=True)), Fraction(0)) for column in zip(*b, strict=True)]
            for row in a]


def sup_norm(j):
    return max(sum(abs(v) for v in row) for row in j)


def two_norm_squared(j):
    """λ_max(J Jᵀ): exact for one row or one column, closed form for two rows, LAPACK beyond."""
    gram = product(j, [list(c) for c in zip(*j, strict=True)])
    if len(gram) == 1:
        return float(gram[0][0])
    if len(gram) == 2:
        (a, b), (_, d) = gram
        return float((a + d) / 2) + math.sqrt(float(((a - d) / 2) ** 2 + b * b))
    return float(np.linalg.eigvalsh(np.array([[float(v) for v in row] for row in gram]))[-1])


def realised(constraints, n):
    """Is there an x (with a neighbourhood) with ``s (a·x + c) > 0`` for each ``(s, a, c)``?"""
    rows, right = [], []
    for sign, a, c in constraints:
        if not any(a):  # constant on the region: 0 counts as either, since its row of the Jacobian is 0 too
            if sign * c < 0:
                return False
            continue
        rows.append([*(-sign * float(v) for v in a), 1.0])
        right.append(float(sign * c))
    if not rows:
        return True
    found = linprog([0.0] * n + [-1.0], rows, right, bounds=[(-100, 100)] * n + [(None, 1)])
    return found.status == 0 and -found.fun > 1e-7


def all_patterns(net):
    """(Jacobian, whether some open set of inputs has it) for every 0/1 pattern, in exact arithmetic."""
    chain = net.chain
    weights, biases = [fractions(w) for w in chain.weights], [fractions(b)[0] for b in chain.biases]
    switched = len(weights) - (0 if chain.final_relu else 1)
    choices = [itertools.product((0, 1), repeat=len(w)) for w in weights[:switched]]
    for pattern in itertools.product(*(list(c) for c in choices)):
        j = [[Fraction(int(a == b)) for b in range(net.n_inputs)] for a in range(net.n_inputs)]
        shift = [Fraction(0)] * net.n_inputs
        constraints = []
        for i, (w, b) in enumerate(zip(weights, biases, strict=True)):
            shift = [s + t for s, t in zip((r[0] for r in product(w, [[v] for v in shift])), b, strict=True)]
            j = product(w, j)
            if i < switched:
                constraints += [(1 if d else -1, row, c) for d, row, c in zip(pattern[i], j, shift, strict=True)]
                j = [[d * v for v in row] for d, row in zip(pattern[i], j, strict=True)]
                shift = [d * s for d, s in zip(pattern[i], shift, strict=True)]
        yield j, realised(constraints, net.n_inputs)


by_name = pytest.mark.parametrize("entry", zoo, ids=lambda e: e.name)


@by_name
def test_zoo_constants_by_exact_enumeration(entry):
    """Lipschitz constant: maximum over the realised linear pieces (f is continuous and piecewise linear)."""
    every = list(all_patterns(entry.network))
    assert any(r for _, r in every)
    pieces = [j for j, r in every if r]
    assert float(max(map(sup_norm, pieces))) == entry.lipschitz_inf
    assert float(max(sup_norm(j) for j, _ in every)) == entry.pattern_inf
    assert math.sqrt(max(map(two_norm_squared, pieces))) == pytest.approx(entry.lipschitz_2, rel=1e-14, abs=1e-15)
    assert math.sqrt(max(two_norm_squared(j) for j, _ in every)) == pytest.approx(entry.pattern_2, rel=1e-14, abs=1e-15)


@by_name
def test_zoo_constants_by_sampling(entry):
    """From the forward pass alone: no difference quotient above the constant, and one that attains it."""
    net, n = entry.network, entry.network.n_inputs
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.uniform(-s, s, (400, n)) for s in (1.0, 3.0)])
    step = 1e-6
    changes = [net.forward(x + step * e) - net.forward(x - step * e) for e in np.eye(n)]
    jacobians = np.stack(changes, axis=2) / (2 * step)
    for found, exact in (
        (np.linalg.svd(jacobians, compute_uv=False)[:, 0].max(), entry.lipschitz_2),
        (np.abs(jacobians).sum(axis=2).max(), entry.lipschitz_inf),
    ):
        assert found == pytest.approx(exact, rel=1e-7, abs=1e-12)
    y = rng.permutation(x)
    change, gap = net.forward(x) - net.forward(y), x - y
    slack = 1 + 1e-12
    far = np.linalg.norm(gap, axis=1) > 0
    assert np.all(np.linalg.norm(change, axis=1)[far] <= slack * entry.lipschitz_2 * np.linalg.norm(gap, axis=1)[far])
    assert np.all(np.abs(change).max(axis=1) <= slack * entry.lipschitz_inf * np.abs(gap).max(axis=1))


def test_zoo_is_complete_and_small():
    names = [e.name for e in zoo]
    assert len(set(names)) == len(names) >= 15
    assert all(e.why.endswith(".") and len(e.why) < 400 for e in zoo)
    assert all(sum(len(w) for w in e.network.chain.weights[:-1]) <= 8 for e in zoo)
    # what the entries are there for
    assert any(e.pattern_2 > e.lipschitz_2 for e in zoo)
    assert any(e.network.chain.final_relu for e in zoo)
    assert any(e.network.input_shape for e in zoo)
    assert any(e.lipschitz_2 == 0 for e in zoo)
    assert any(e.network.n_outputs > 1 and len(e.network.chain.weights) > 1 for e in zoo)
    assert any(len(e.network.chain.weights) > 2 for e in zoo)
    with pytest.raises(AttributeError):
        zoo[0].name = "other"


def test_zoo_entry_refuses_an_impossible_pattern_maximum():
    with pytest.raises(InputError, match="pattern_2"):
        ZooEntry("x", zoo[0].network, 2.0, 2.0, "why.", pattern_2=1.0)
    unknown = ZooEntry("x", zoo[0].network, None, 1.0, "why.", pattern_2=1.0)
    assert unknown.lipschitz_2 is None and unknown.pattern_2 == 1.0 == unknown.pattern_inf


# -- without hypothesis -----------------------------------------------------------------------------


def test_zoo_without_hypothesis_or_torch():
    code = (
        "import sys; sys.modules['hypothesis'] = None\n"
        "import certbound.testing as t\n"
        "assert len(t.zoo) > 10 and 'torch' not in sys.modules and 'scipy' not in sys.modules\n"
        "try: t.relu_networks\n"
        "except ImportError as e: assert 'pip install hypothesis' in str(e), e\n"
        "else: raise SystemExit('no error')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_lazy_names(monkeypatch):
    assert all(getattr(testing, name) is not None for name in testing.__all__)
    assert testing.compressible_matrices is compressible_matrices
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = testing.nothing
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    with pytest.raises(MissingDependencyError, match=r"certbound\.testing\.KINDS"):
        _ = testing.KINDS
    monkeypatch.undo()
    assert importlib.import_module("certbound.testing.strategies").KINDS == testing.KINDS


# -- matrices -------------------------------------------------------------------------------------------


def rank(w):
    return np.linalg.matrix_rank(w)


SAYS = {
    "zero": lambda w: not w.any(),
    "integer": lambda w: np.all(w == np.rint(w)) and np.all(np.abs(w) <= 3),
    "one-row": lambda w: w.shape[0] == 1,
    "one-column": lambda w: w.shape[1] == 1,
    "rank-one": lambda w: np.all(w != 0) and rank(w) == 1,
    "low-rank": lambda w: rank(w) <= max(1, min(w.shape) - 1),
    "row-sparse": lambda w: (np.abs(w).max(axis=1) >= 1).sum() <= max(1, len(w) // 2),
    "float16": lambda w: np.array_equal(w, w.astype(np.float16)),
    "orthogonal": lambda w: np.ptp(np.linalg.svd(w, compute_uv=False)) <= 1e-13 * np.abs(w).max() * 10,
    "near-orthogonal": lambda w: np.linalg.svd(w, compute_uv=False)[0] < 3,
    "power-law": lambda w: np.linalg.svd(w, compute_uv=False)[0] == pytest.approx(1.0, rel=1e-12),
    "cauchy": lambda w: np.abs(w).max() <= 1e150,
    "scaled": lambda w: np.all((w == 0) | ((np.abs(w) > 0.99e-150) & (np.abs(w) < 1.01e150))),
}


def test_every_kind_has_its_description():
    assert set(SAYS) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
@quick
@given(data=st.data())
def test_each_kind_is_what_it_says(kind, data):
    w = data.draw(compressible_matrices(kinds=[kind]))
    assert w.dtype == np.float64 and w.ndim == 2
    assert max(w.shape) <= 8 and min(w.shape) >= 1
    assert np.all(np.isfinite(w))
    with np.errstate(over="raise"):
        assert np.isfinite(np.linalg.norm(w))
    assert SAYS[kind](w)
    Affine(w)  # legal


@given(data=st.data())
@quick
def test_power_law_spectrum(data):
    w = data.draw(compressible_matrices(2, 6, kinds=["power-law"]))
    s = np.linalg.svd(w, compute_uv=False)
    i = np.arange(1, len(s) + 1)
    exponents = [0.0, 0.5, 1.0, 2.0, 4.0]
    assert any(np.allclose(s, i**-a, rtol=1e-9, atol=1e-12) for a in exponents)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, "float64"])
@quick
@given(data=st.data())
def test_dtypes_stay_finite(dtype, data):
    w = data.draw(compressible_matrices(dtype=dtype))
    assert w.dtype == np.dtype(dtype) and np.all(np.isfinite(w))


@pytest.mark.parametrize(
    "wanted",
    [
        lambda w: np.abs(w).max() > 1e149,
        lambda w: w.any() and np.abs(w[w != 0]).min() < 1e-149,
        lambda w: min(w.shape) > 2 and np.allclose(w @ w.T, np.eye(len(w))),
        lambda w: min(w.shape) > 2 and not w.any(),
        lambda w: min(w.shape) > 2 and w.any() and np.any(np.abs(w).max(axis=1) == 0),
        lambda w: min(w.shape) > 2 and rank(w) == 1,
        lambda w: np.any(np.abs(w) == 65504),
        lambda w: w.shape == (1, 8),
        lambda w: w.shape == (8, 1),
        lambda w: np.median(np.abs(w)) * 50 < np.abs(w).max() < 1e4 and not np.array_equal(w, w.astype(np.float16)),
    ],
)
def test_the_default_reaches_the_hard_ones(wanted):
    find(compressible_matrices(), wanted, settings=settings(max_examples=5000, deadline=None, derandomize=True))


def test_failures_shrink_to_something_readable():
    how = settings(max_examples=2000, deadline=None, derandomize=True)
    assert find(compressible_matrices(), lambda w: w.any(), settings=how).tolist() == [[1.0]]
    small = find(compressible_matrices(), lambda w: min(w.shape) > 1 and rank(w) == 2, settings=how)
    assert small.shape == (2, 2) and np.abs(small).max() <= 1
    net = find(relu_networks(), lambda n: len(n.chain.weights) > 1, settings=how)
    assert [w.tolist() for w in net.chain.weights] == [[[0.0]], [[0.0]]]


@given(rational_matrices(2, 3, largest=5, denominator=4))
@quick
def test_rational_matrices_are_exact(w):
    assert set(w.shape) <= {2, 3}
    assert all(abs(Fraction(float(v)) * 4) <= 5 and (Fraction(float(v)) * 4).denominator == 1 for v in w.flat)


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda: compressible_matrices(0, 3), "max_side"),
        (lambda: compressible_matrices(4, 3), "max_side"),
        (lambda: compressible_matrices(kinds=["integer", "flat"]), "kinds"),
        (lambda: compressible_matrices(kinds=[]), "kinds"),
        (lambda: compressible_matrices(dtype=np.int64), "dtype"),
        (lambda: rational_matrices(denominator=3), "denominator"),
        (lambda: rational_matrices(denominator=0), "denominator"),
        (lambda: rational_matrices(3, 2), "max_side"),
        (lambda: relu_networks(0), "max_layers"),
        (lambda: relu_networks(max_width=0), "max_width"),
        (lambda: relu_networks(n_inputs=0), "n_inputs"),
        (lambda: relu_networks(n_outputs=-1), "n_outputs"),
        (lambda: relu_networks(5, min_layers=4, max_hidden=2), "max_hidden"),
        (lambda: labelled_batches(zoo[0].network, 0), "max_samples"),
    ],
)
def test_limits_that_cannot_be_met(call, argument):
    with pytest.raises(InputError) as caught:
        call()
    assert caught.value.argument == argument


# -- networks and batches ---------------------------------------------------------------------------------


@given(relu_networks(4, 6, min_layers=2, n_inputs=3, n_outputs=2, max_hidden=7))
@quick
def test_networks_respect_their_limits(net):
    weights = net.chain.weights
    assert isinstance(net, Network) and 2 <= len(weights) <= 4 and not net.chain.final_relu
    assert (net.n_inputs, net.n_outputs) == (3, 2)
    assert max(len(w) for w in weights) <= 6
    assert sum(len(w) for w in weights[:-1]) <= 7
    assert np.all(np.isfinite(net.forward(np.ones((1, 3)))))


@given(tiny_relu_networks(biases=False))
@quick
def test_tiny_networks_can_be_enumerated(net):
    assert sum(len(w) for w in net.chain.weights[:-1]) <= 8
    assert all(np.array_equal(w, np.rint(w)) and np.abs(w).max() <= 3 for w in net.chain.weights)
    assert not any(layer.bias is not None for layer in net.layers if isinstance(layer, Affine))


@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("integer", [True, False])
def test_both_values_of_each_switch_are_reachable_and_kept(biases, integer):
    def is_it(net):
        first = net.layers[0]
        return (first.bias is not None) == biases and np.array_equal(first.weight, np.rint(first.weight)) == integer

    how = settings(max_examples=500, deadline=None, derandomize=True)
    find(relu_networks(), is_it, settings=how)

    @quick
    @given(relu_networks(biases=biases, integer=integer))
    def kept(net):
        assert is_it(net)

    kept()


def test_depths_and_widths_are_reached():
    how = settings(max_examples=2000, deadline=None, derandomize=True)
    find(relu_networks(), lambda n: len(n.chain.weights) == 3 and len(n.chain.weights[0]) == 5, settings=how)
    find(relu_networks(), lambda n: len(n.chain.weights) == 1, settings=how)
    find(tiny_relu_networks(), lambda n: sum(len(w) for w in n.chain.weights[:-1]) == 8, settings=how)


@by_name
@quick
@given(data=st.data())
def test_labelled_batches(entry, data):
    net = entry.network
    x, y = data.draw(labelled_batches(net, 3))
    assert x.shape[1:] == (net.input_shape or (net.n_inputs,)) and 1 <= len(x) <= 3
    assert x.min() >= 0 and x.max() <= 1 and y.dtype == np.int64 and y.shape == (len(x),)
    assert y.min() >= 0 and y.max() < max(2, net.n_outputs)
    assert net.forward(x).shape == (len(x), net.n_outputs)


def test_batches_reach_every_class_and_both_ends():
    net = zoo[0].network
    how = settings(max_examples=2000, deadline=None, derandomize=True)
    find(labelled_batches(net), lambda b: set(b[1]) == {0, 1, 2} and b[0].max() == 1 and b[0].min() == 0, settings=how)
