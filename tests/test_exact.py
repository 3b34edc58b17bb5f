"""The exact constant against independent enumerations in rationals (1-D, 2-D), known constants and the other bounds."""

from __future__ import annotations

import itertools
import json
import math
from fractions import Fraction

import numpy as np
import pytest
from budget import matrix_settings, network_settings
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from certbound.errors import CertificateError, InputError
from certbound.lipschitz import exact as module
from certbound.lipschitz.alignment import lipschitz_alignment
from certbound.lipschitz.exact import ExactResult, lipschitz_exact, positive_point
from certbound.lipschitz.patterns import pattern_bound
from certbound.lipschitz.product import lipschitz_product
from certbound.lipschitz.sampled import lipschitz_sampled
from certbound.lipschitz.sdp import lipschitz_sdp
from certbound.network import Affine, Network, ReLU
from certbound.testing import zoo
from certbound.testing.strategies import relu_networks
from certbound.types import Quantity, Rigor, Sense, Status

UP = 1 + 1e-9
both_norms = pytest.mark.parametrize("norm", [2.0, math.inf])
some = settings(max_examples=network_settings.max_examples)


# -- independent oracles ---------------------------------------------------------------------------------


def layers_of(net):
    """(rows, offsets, relu after it) in Fractions."""
    chain = net.chain
    for i, (w, b) in enumerate(zip(chain.weights, chain.biases, strict=True)):
        relu = i < len(chain.weights) - 1 or chain.final_relu
        yield [[Fraction(v) for v in r] for r in w.tolist()], [Fraction(v) for v in b.tolist()], relu


def value_at(net, x):
    h = list(x)
    for rows, offsets, relu in layers_of(net):
        h = [sum((a * v for a, v in zip(r, h, strict=True)), o) for r, o in zip(rows, offsets, strict=True)]
        h = [max(v, Fraction(0)) for v in h] if relu else h
    return h


def zeros_between(points, values):
    """Where piecewise linear functions, given at sorted points and linear between and beyond, cross 0."""
    found = set()
    for (p, u), (q, v) in itertools.pairwise(zip(points, values, strict=True)):
        for a, b in zip(u, v, strict=True):
            if a != b:
                x = p - a * (q - p) / (b - a)
                inner = (p <= x <= q) or (p == points[0] and x < p) or (q == points[-1] and x > q)
                found |= {x} if inner else set()
    return found


def gradients_1d(net):
    """Slopes of all pieces, by exact difference quotients between breakpoints: no activation pattern is used."""
    points = [Fraction(-1), Fraction(1)]
    functions = [[x] for x in points]
    for rows, offsets, relu in layers_of(net):

        def apply(h, rows=rows, offsets=offsets):
            return [sum((a * v for a, v in zip(r, h, strict=True)), o) for r, o in zip(rows, offsets, strict=True)]

        z = [apply(h) for h in functions]
        if not relu:
            functions = z
            break
        inner = sorted(set(points) | zeros_between(points, z))
        # one point beyond each end, where nothing more happens, keeps the last pieces linear
        new = [inner[0] - 1, *inner, inner[-1] + 1]

        def interpolate(x, points=points, z=z):
            k = next((i for i in range(1, len(points) - 1) if x <= points[i]), len(points) - 1)
            p, q = points[k - 1], points[k]
            return [a + (b - a) * (x - p) / (q - p) for a, b in zip(z[k - 1], z[k], strict=True)]

        functions = [[max(v, Fraction(0)) for v in interpolate(x)] for x in new]
        points = new
    return [
        [[(b - a) / (q - p)] for a, b in zip(u, v, strict=True)]
        for (p, u), (q, v) in itertools.pairwise(zip(points, functions, strict=True))
    ]


def cut(polygon, values):
    """The parts of a convex polygon where a function given at its corners is >= 0 and <= 0; None if degenerate."""
    parts = []
    for sign in (1, -1):
        out = []
        for i, (p, v) in enumerate(zip(polygon, values, strict=True)):
            q, w = polygon[(i + 1) % len(polygon)], values[(i + 1) % len(polygon)]
            if v * sign >= 0:
                out.append(p)
            if v * w < 0:
                t = v / (v - w)
                out.append((p[0] + t * (q[0] - p[0]), p[1] + t * (q[1] - p[1])))
        area = sum(a[0] * b[1] - a[1] * b[0] for a, b in ((out[i], out[(i + 1) % len(out)]) for i in range(len(out))))
        parts.append(out if area != 0 else None)
    return parts


def gradients_2d(net):
    """Gradients on all cells: polygons are cut by every neuron, f is evaluated at corners and interpolated."""
    R = Fraction(10**9)  # beyond every corner of small integer nets, so that unbounded cells are met too
    cells = [[(-R, -R), (R, -R), (R, R), (-R, R)]]
    layers = list(layers_of(net))
    for depth in range(1, len(layers) + 1):
        if not layers[depth - 1][2]:
            break
        rows, offsets, _ = layers[depth - 1]
        for k in range(len(rows)):
            new = []
            for polygon in cells:
                values = []
                for p in polygon:
                    h = list(p)
                    for r, o, _ in layers[: depth - 1]:
                        h = [
                            max(sum((a * v for a, v in zip(row, h, strict=True)), c), Fraction(0))
                            for row, c in zip(r, o, strict=True)
                        ]
                    values.append(sum((a * v for a, v in zip(rows[k], h, strict=True)), offsets[k]))
                new += [part for part in cut(polygon, values) if part is not None] if any(values) else [polygon]
            cells = new
    out = []
    for polygon in cells:
        a = polygon[0]
        b, c = next(
            (b, c)
            for b, c in itertools.combinations(polygon[1:], 2)
            if (b[0] - a[0]) * (c[1] - a[1]) != (b[1] - a[1]) * (c[0] - a[0])
        )
        fa, fb, fc = (value_at(net, p) for p in (a, b, c))
        u, v = (b[0] - a[0], b[1] - a[1]), (c[0] - a[0], c[1] - a[1])
        det = u[0] * v[1] - u[1] * v[0]
        out.append(
            [
                [((y - x) * v[1] - (z - x) * u[1]) / det, ((z - x) * u[0] - (y - x) * v[0]) / det]
                for x, y, z in zip(fa, fb, fc, strict=True)
            ]
        )
    return out


def size(J, norm, outputs=None):
    J = np.array([[float(v) for v in row] for row in J])
    if outputs is not None:
        J = J[[outputs]] if isinstance(outputs, int) else J[[outputs[0]]] - J[[outputs[1]]]
    return float(np.linalg.norm(J, 2 if norm == 2 else np.inf))


def maybe_relu(net, last):
    return Network((*net.layers, ReLU())) if last else net


def check(net, norm, true, outputs=None):
    result = lipschitz_exact(net, norm, outputs=outputs)
    assert result.status is Status.OK and result.exact
    assert result.value == pytest.approx(true, rel=1e-9, abs=1e-12)
    assert result.value >= true * (1 - 1e-13)
    assert result.lower.value == pytest.approx(true, rel=1e-9, abs=1e-12)
    assert result.witness.verify(net)
    return result


@both_norms
@pytest.mark.parametrize(("inputs", "oracle"), [(1, gradients_1d), (2, gradients_2d)])
@some
@given(data=st.data(), last=st.booleans())
def test_against_exact_breakpoints(norm, inputs, oracle, data, last):
    net = maybe_relu(data.draw(relu_networks(3, 4, n_inputs=inputs, integer=True, max_hidden=5)), last)
    gradients = oracle(net)
    check(net, norm, max(size(J, norm) for J in gradients))
    if net.n_outputs > 1:
        for outputs in (0, (0, 1)):
            check(net, norm, max(size(J, norm, outputs) for J in gradients), outputs)


def test_the_oracles_themselves():
    """relu(x) − 2 relu(x − 1) + relu(x − 2): slopes 0, 1, −1, 0; the same along the first of two inputs."""
    for inputs, oracle in ((1, gradients_1d), (2, gradients_2d)):
        first = np.eye(inputs)[[0, 0, 0]]
        hat = Network.from_weights([first, [[1, -2, 1]]], [[0, -1, -2], None])
        assert {J[0][0] for J in oracle(hat)} == {0, 1, -1}


# -- the zoo and the ladder ------------------------------------------------------------------------------


@both_norms
@pytest.mark.parametrize("entry", zoo, ids=lambda e: e.name)
def test_zoo(entry, norm):
    true = entry.lipschitz_2 if norm == 2 else entry.lipschitz_inf
    result = check(entry.network, norm, true)
    claim = result.bound.claim
    assert (claim.quantity, claim.norm_in, claim.norm_out, claim.outputs) == (Quantity.LIPSCHITZ, norm, norm, "all")
    assert claim.subject == entry.network.digest and claim == result.lower.claim
    assert (result.bound.sense, result.lower.sense) == (Sense.UPPER, Sense.LOWER)
    assert result.bound.rigor is result.lower.rigor is Rigor.NUMERICAL
    json.dumps(result.to_dict(), allow_nan=False)


@both_norms
@network_settings
@given(net=relu_networks(4, 4, max_hidden=7))
def test_ladder(norm, net):
    result = lipschitz_exact(net, norm)
    assert result.status is Status.OK and result.exact
    assert result.lower.value <= result.value * UP and result.value <= result.lower.value * UP
    assert lipschitz_sampled(net, norm, n_samples=50, ascent_steps=3).value <= result.value * UP
    patterns = pattern_bound(net, norm).value
    assert result.value <= patterns * UP
    for bound in (
        lipschitz_sdp(net, norm, method="closed-form"),
        lipschitz_sdp(net, norm, method="cvxpy"),
        lipschitz_alignment(net, norm),
        lipschitz_product(net, norm),
    ):
        assert result.value <= bound.value * UP


@both_norms
@network_settings
@given(net=relu_networks(4, 4, max_hidden=8), limit=st.integers(1, 20), data=st.data())
def test_bracket_at_every_moment(norm, net, limit, data):
    outputs = None if net.n_outputs == 1 else data.draw(st.sampled_from([None, 0, (0, net.n_outputs - 1)]))
    true = lipschitz_exact(net, norm, outputs=outputs)
    result = lipschitz_exact(net, norm, outputs=outputs, max_patterns=limit)
    assert result.status in (Status.OK, Status.TOO_LARGE)
    assert result.exact == (result.status is Status.OK)
    assert result.lower.value <= true.value * UP and true.lower.value <= result.value * UP
    if outputs is None:
        assert result.value <= lipschitz_sdp(net, norm, method="closed-form").value * UP


def deep(seed, sizes, biased=True):
    rng = np.random.default_rng(seed)
    weights = [rng.standard_normal((b, a)) for a, b in itertools.pairwise(sizes)]
    return Network.from_weights(weights, [rng.standard_normal(b) if biased else None for b in sizes[1:]])


@both_norms
def test_without_the_head_start_and_the_pruning(norm, monkeypatch):
    """Every prefix searched, no sampled point: the same constant, and more patterns."""
    for seed in range(4):
        net = deep(seed, (2, 4, 3, 2))
        quick = lipschitz_exact(net, norm)
        with monkeypatch.context() as m:
            m.setattr(module._Search, "bound", lambda self, node: 1e9)
            m.setattr(module._Search, "try_point", lambda self, point: None)
            full = lipschitz_exact(net, norm)
        assert full.value == pytest.approx(quick.value, rel=1e-11)
        stats = dict(full.stats)
        assert stats["complete patterns"] > dict(quick.stats)["complete patterns"]
        # 4 lines cut the plane into at most 11 cells, and each of those into at most 7 by 3 more
        assert stats["complete patterns"] <= 77


@both_norms
def test_bounds_of_prefixes_hold(norm, monkeypatch):
    """The bound of a prefix is at least the norm of every complete pattern below it."""
    seen: dict[object, float] = {}
    bound, offer = module._Search.bound, module._Search.offer

    def recorded(self, node):
        value = bound(self, node)
        seen[(node.stage.masks, node.on)] = value
        return math.nextafter(math.inf, 0)  # nothing is pruned

    complete = []

    def offered(self, masks, point):
        before, self.best = self.best, -1.0
        offer(self, masks, point)
        complete.append((tuple(map(tuple, masks)), self.best))
        self.best = max(self.best, before)

    monkeypatch.setattr(module._Search, "bound", recorded)
    monkeypatch.setattr(module._Search, "offer", offered)
    for seed in range(6):
        seen.clear(), complete.clear()
        lipschitz_exact(deep(seed, (2, 4, 4, 2), biased=bool(seed % 2)), norm)
        assert len(complete) > 5
        for masks, value in complete:
            for (before, on), ceiling in seen.items():
                if masks[: len(before)] == before and all(
                    a in (-1, b) for a, b in zip(on, masks[len(before)], strict=True)
                ):
                    assert value <= ceiling * (1 + 1e-14)


# -- thin cells, tiny and huge weights -------------------------------------------------------------------


@both_norms
@pytest.mark.parametrize("width", [1e-3, 1e-9, 1e-12, 1e-200])
def test_thin_cells_count(norm, width):
    """A hat of that width: slopes 0, 1, −1, 0. A solver with a tolerance of 1e-7 sees only the zeros."""
    hat = Network.from_weights([[[1], [1], [1]], [[1, -2, 1]]], [[0, -width, -2 * width], None])
    check(hat, norm, 1.0)
    assert pattern_bound(hat, norm).value == pytest.approx(2.0)  # the second alone, on in no cell


@both_norms
def test_a_cell_narrower_than_floats(norm):
    """2^60 relu(x − 1) less 1, and less 2: slope 2^60 between the kinks, 0 beyond, no float between."""
    net = Network.from_weights([[[1.0]], [[2.0**60], [2.0**60]], [[1.0, -1.0]]], [[-1.0], [-1.0, -2.0], None])
    result = check(net, norm, 2.0**60)
    x = result.witness.point[0]
    assert 1 + Fraction(1, 2**60) < x < 1 + Fraction(2, 2**60)
    assert result.witness.x.tolist() == [1.0]  # no float64 is in there


@both_norms
@pytest.mark.parametrize("exponent", [-500, -60, 60, 500])
def test_huge_and_tiny_weights(norm, exponent):
    """|x| through 2^e and 2^-e, and two paths of which only the tiny one is realised."""
    s = 2.0**exponent
    net = Network.from_weights([[[s], [-1 / s]], [[1 / s, s]]])
    check(net, norm, 1.0)
    net = Network.from_weights([[[1.0]], [[-s], [1.0]], [[1.0, 1.0]]], [[0.0], [0.0, 0.0], None])
    check(net, norm, 1.0)  # −s relu(x) is never on


@both_norms
def test_overflow_and_underflow_stay_on_their_side(norm):
    huge = Network.from_weights([[[1e200]], [[1e200]], [[1e-100]]])
    assert lipschitz_exact(huge, norm).value == pytest.approx(1e300)
    result = lipschitz_exact([[[1e200]], [[1e200]]], norm)
    assert result.value == math.inf and 1e308 < result.lower.value < math.inf
    result = lipschitz_exact([[[1e-200]], [[1e-200]]], norm)
    assert 0 < result.value < 1e-300 and result.lower.value == 0.0


@both_norms
@pytest.mark.parametrize("factor", [1.0, 0.1])
def test_a_cancelled_row_is_constant(norm, factor, monkeypatch):
    """relu(relu(c) + 5 relu(0) − relu(x)), relu(c) from a row that cancels: slope −1 on (0, 1) for c = 1, else 0."""
    monkeypatch.setattr(module._Search, "try_point", lambda self, point: None)  # the search itself must find it
    for c, true in ((1.0, 1.0), (-1.0, 0.0), (0.0, 0.0)):
        net = Network.from_weights(
            [[[factor], [factor]], [[1.0, -1.0], [1.0, 0.0], [-2.0, 2.0]], [[1.0, -1.0, 5.0]], [[1.0]]],
            [[0.0, 0.0], [c, 0.0, 0.0], [0.0], None],
        )
        check(net, norm, factor * true)


@both_norms
def test_what_is_dropped_counts(norm, monkeypatch):
    """With prefixes dropped that could be 50 % better, the value is above the constant all the same."""
    for seed in range(5):
        net = deep(seed, (3, 5, 4, 2))
        true = lipschitz_exact(net, norm)
        with monkeypatch.context() as m:
            m.setattr(module, "_TIE", 1.5)
            m.setattr(module._Search, "try_point", lambda self, point: None)
            rough = lipschitz_exact(net, norm)
        assert true.lower.value <= rough.value * UP and rough.lower.value <= true.value * UP


def test_row_sums_are_rounded_up():
    true = 1 + Fraction(1, 2**60)
    result = lipschitz_exact([[[1.0, 2.0**-60]]], "inf")
    assert Fraction(result.lower.value) <= true <= Fraction(result.value) < true * Fraction(UP)


@both_norms
def test_duplicates_and_proportional_rows(norm):
    """A neuron split into two proportional ones: the same function."""
    for seed in range(5):
        net = deep(seed, (3, 4, 2))
        (w, v), (b, c) = net.chain.weights, net.chain.biases
        split = Network.from_weights(
            [np.vstack([w, 4 * w[:1], w[1:2]]), np.hstack([v * [0.5, 0.25, 1, 1], v[:, :1] / 8, v[:, 1:2] * 0.75])],
            [np.concatenate([b, 4 * b[:1], b[1:2]]), c],
        )
        assert lipschitz_exact(split, norm).value == pytest.approx(lipschitz_exact(net, norm).value, rel=1e-9)


@both_norms
def test_wide_inputs_and_low_rank(norm):
    rng = np.random.default_rng(3)
    low = rng.integers(-3, 4, (5, 2)).astype(float) @ rng.integers(-3, 4, (2, 30)).astype(float)
    net = Network.from_weights([low, rng.integers(-3, 4, (2, 5)).astype(float)], [rng.integers(-9, 9, 5), None])
    result = lipschitz_exact(net, norm)
    assert result.exact and result.witness.verify(net)
    assert result.value <= pattern_bound(net, norm).value * UP
    assert lipschitz_sampled(net, norm).value <= result.value * UP


# -- outputs and the final ReLU --------------------------------------------------------------------------


@both_norms
def test_a_margin_after_a_final_relu(norm):
    """relu(x) − relu(x − 1) has slope 1, though both rows of the head are equal; the same beyond the size limit."""
    net = Network((Affine(np.ones((2, 1)), np.array([0.0, -1.0])), ReLU()))
    check(net, norm, 1.0, (0, 1))
    wide = Network((Affine(np.ones((70, 1)), np.arange(70.0)), ReLU()))
    result = lipschitz_exact(wide, norm, outputs=(0, 1))
    assert result.status is Status.TOO_LARGE and result.value >= 1.0
    assert lipschitz_sampled(net, norm, outputs=(0, 1)).value <= UP


# -- limits and bad arguments ----------------------------------------------------------------------------


@both_norms
def test_too_large_and_out_of_time(norm):
    large = deep(0, (3, 65, 2))
    result = lipschitz_exact(large, norm)
    assert result.status is Status.TOO_LARGE and not result.exact and result.witness is result.lower is None
    assert result.value == lipschitz_sdp(large, norm, method="closed-form").value
    json.dumps(result.to_dict(), allow_nan=False)
    net = deep(0, (3, 8, 8, 2))
    result = lipschitz_exact(net, norm, time_limit=1e-9)
    assert result.status is Status.TIME_LIMIT and not result.exact
    assert result.lower.value <= lipschitz_exact(net, norm).value * UP <= result.value * UP**2
    assert isinstance(result, ExactResult)
    result = lipschitz_exact(net, norm, max_patterns=2)
    assert result.status is Status.TOO_LARGE and dict(result.stats)["prefixes"] == 2.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"norm": 1},
        {"outputs": 5},
        {"outputs": "margins"},
        {"max_patterns": 0},
        {"max_patterns": True},
        {"max_patterns": 2.0},
        {"time_limit": 0},
    ],
)
def test_bad_arguments(wrong):
    with pytest.raises(InputError):
        lipschitz_exact([[[1.0]], [[1.0]]], **wrong)


def test_witness_of_another_network():
    net = deep(1, (2, 4, 2))
    witness = lipschitz_exact(net).witness
    with pytest.raises(CertificateError):
        witness.verify([w / 2 for w in net.chain.weights])
    with pytest.raises(CertificateError):
        witness.verify([[[1.0]]])


# -- the linear programme --------------------------------------------------------------------------------


@matrix_settings
@given(
    n=st.integers(1, 3),
    k=st.integers(0, 6),
    seed=st.integers(0, 2**32 - 1),
    largest=st.sampled_from([1, 3, 50, 2**40]),
)
def test_positive_point(n, k, seed, largest):
    rng = np.random.default_rng(seed)
    A, a = rng.integers(-largest, largest + 1, (k, n)).tolist(), rng.integers(-largest, largest + 1, n).tolist()
    s, g = rng.integers(1, largest + 1, k).tolist(), -int(rng.integers(0, largest + 1))
    found = positive_point(A, s, a, g)
    if found is not None:
        y, D = found
        assert D > 0 and g * D + sum(u * v for u, v in zip(a, y, strict=True)) > 0
        assert all(c * D + sum(u * v for u, v in zip(row, y, strict=True)) >= 0 for row, c in zip(A, s, strict=True))
    elif any(a) and largest <= 50:
        answer = linprog(-np.array(a), A_ub=-np.array(A).reshape(k, n), b_ub=s, bounds=(None, None), method="highs")
        assert answer.status == 0 and g - answer.fun <= 1e-7
    elif not any(a):
        assert g <= 0


def test_positive_point_far_away():
    """A boundary at 2^200, and one 1 beyond it: nothing is rounded."""
    assert positive_point([[-1, 0]], [2**200], [1, 0], -(2**200)) is None
    y, D = positive_point([[-1, 0]], [2**200 + 1], [1, 0], -(2**200))
    assert Fraction(y[0], D) > 2**200
