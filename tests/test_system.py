"""A network as a system of steps: the same Jacobians, exactly; the errors of its matrices; what ``proves`` believes."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from itertools import product as every

import numpy as np
import pytest
from rationals import fractions, product, semidefinite, transposed

from certbound import Affine, Network, Normalise, ReLU
from certbound.activations import Activation
from certbound.errors import NumericalError
from certbound.lipschitz import riccati, system_certificate
from certbound.lipschitz.region_slopes import activations
from certbound.lipschitz.sdp_system import SystemRequest, system_bound
from certbound.lipschitz.system import Map, System, _difference_up, activation_widths, reduced
from certbound.lipschitz.system_certificate import certify, proves, value_of
from certbound.network import Flatten, Residual
from certbound.types import Status

LEAKY = Activation("leaky_relu", 0.25)
STEEP = Activation("leaky_relu", 2.0)
KINKED = (ReLU(), LEAKY, STEEP, Activation("leaky_relu", -0.5))


# -- networks ------------------------------------------------------------------------------------------


def random_layers(rng, n, depth, weight, *, nested=True):
    """Layers on n numbers; returns them and the width after them."""
    layers = []
    for _ in range(depth):
        what = rng.integers(5 if nested else 3)
        if what == 0:
            layers.append(KINKED[rng.integers(len(KINKED))])
        elif what <= 2:
            m = int(rng.integers(1, 4))
            layers.append(Affine(weight(rng, (m, n)), rng.integers(-2, 3, m).astype(float)))
            n = m
        else:
            body, m = random_layers(rng, n, 2, weight, nested=what == 4)
            shortcut = []
            if rng.random() < 0.3 or m != n:
                shortcut, k = random_layers(rng, n, 1, weight, nested=False)
                shortcut = shortcut if k == m else [*shortcut, Affine(weight(rng, (m, k)))]
            layers.append(Residual(tuple(body), tuple(shortcut)))
            n = m
    return layers, n


def integers(rng, shape):
    return rng.integers(-2, 3, shape).astype(float)


def gaussian(rng, shape):
    return rng.standard_normal(shape) * 10.0 ** rng.integers(-2, 3)


def random_network(seed, weight=integers, *, start=(), least=1, most=7):
    """With residual sums (also nested, with and without projections), leaky activations, before and after affine."""
    rng = np.random.default_rng(seed)
    while True:
        n = int(rng.integers(1, 4))
        layers, _ = random_layers(rng, n, int(rng.integers(2, 6)), weight)
        layers = [*start, Affine(weight(rng, (n, n))), *layers]
        network = Network(tuple(layers))
        if least <= sum(activation_widths(network)) <= most:
            return network, rng


# -- the oracles ---------------------------------------------------------------------------------------


def identity(n):
    return [[Fraction(int(i == j)) for j in range(n)] for i in range(n)]


def added(A, B):
    return [[x + y for x, y in zip(a, b, strict=True)] for a, b in zip(A, B, strict=True)]


def scaled(rows, A):
    return [[r * x for x in row] for r, row in zip(rows, A, strict=True)]


def layers_jacobian(layers, J, slopes):
    """The Jacobian of the layers after J, exactly; ``slopes`` (an iterator) gives each activation its diagonal."""
    for layer in layers:
        if isinstance(layer, Affine):
            J = product(fractions(layer.weight), J)
        elif isinstance(layer, Normalise):
            std = np.broadcast_to(layer.std, (len(J),))
            J = scaled([1 / Fraction(float(s)) for s in std], J)
        elif isinstance(layer, Residual):
            body = layers_jacobian(layer.body, J, slopes)
            J = added(body, layers_jacobian(layer.shortcut, J, slopes))
        elif not isinstance(layer, Flatten):
            J = scaled(next(slopes), J)
    return J


def steps_of(system):
    """(W, H, G) of the steps and the head in rationals, as they are stored."""
    steps = []
    for W, H, G in system.plain:
        h = len(W)
        rows = h if G is None else len(G)
        n = W.shape[1]
        exact_H = [[Fraction(0)] * n for _ in range(rows)] if H is None else fractions(H)
        steps.append((fractions(W), exact_H, identity(h) if G is None else fractions(G)))
    return steps, fractions(system.head.matrix)


def system_jacobian(steps, head, n_inputs, psi):
    """The Jacobian of the system with slopes ``psi[i]`` of ψ at step i."""
    Z = identity(n_inputs)
    for (W, H, G), e in zip(steps, psi, strict=True):
        Z = added(product(H, Z), product(G, scaled(e, product(W, Z))))
    return product(head, Z)


class ExactBuilder:
    """The walk of System in rationals: what every W, H and the head truly are."""

    def __init__(self, n, slopes):
        self.now, self.waiting, self.slopes, self.steps = identity(n), [], list(slopes), []
        self.layer, self.stepped, self.masks = -1, [], []

    def run(self, layers):
        for layer in layers:
            if isinstance(layer, Affine):
                self.now = product(fractions(layer.weight), self.now)
            elif isinstance(layer, Normalise):
                std = np.broadcast_to(layer.std, (len(self.now),))
                self.now = scaled([1 / Fraction(float(s)) for s in std], self.now)
            elif isinstance(layer, Residual):
                self.waiting.append(self.now)
                self.run(layer.body)
                body, self.now = self.now, self.waiting.pop()
                self.waiting.append(body)
                self.run(layer.shortcut)
                self.now = added(self.waiting.pop(), self.now)
            elif not isinstance(layer, Flatten):
                low, high = self.slopes.pop(0)
                self.layer += 1
                linear = scaled([Fraction(float(a)) for a in low], self.now)
                open_ = [bool(b > a) for a, b in zip(low, high, strict=True)]
                if not any(open_):
                    self.now = linear
                    continue
                self.stepped.append(self.layer)
                self.masks.append((open_, [o and any(row) for o, row in zip(open_, self.now, strict=True)]))
                self.steps.append(([r for r, o in zip(self.now, open_, strict=True) if o],
                                   [row for part in (*self.waiting, linear) for row in part]))  # fmt: skip
                sizes = [len(x) for x in (*self.waiting, linear)]
                whole, at, parts = identity(sum(sizes)), 0, []
                for size in sizes:
                    parts.append(whole[at : at + size])
                    at += size
                *self.waiting, self.now = parts


def encloses(m, exact):
    for i, j in np.ndindex(m.matrix.shape):
        if abs(Fraction(m.matrix[i, j]) - exact[i][j]) > Fraction(m.off[i, j]):
            return False
    return m.matrix.shape == (len(exact), len(exact[0]))


def exact_lmi(system, t, d, s):
    """M of the whole system in rationals: ``M ⪰ 0`` is what the inequalities step by step amount to."""
    steps, head = steps_of(system)
    n = system.n_inputs
    N = n + sum(len(W) for W, _, _ in steps)
    M = [[Fraction(0)] * N for _ in range(N)]
    for j in range(n):
        M[j][j] = Fraction(float(s)) * Fraction(float(d[j]))
    Z = [[Fraction(int(i == j)) for j in range(N)] for i in range(n)]
    at = n
    for (W, H, G), ti in zip(steps, t, strict=True):
        A = product(W, Z)
        for k, weight in enumerate(ti):
            T = Fraction(float(weight))
            M[at + k][at + k] += 2 * T
            for j in range(N):
                M[at + k][j] -= T * A[k][j]
                M[j][at + k] -= T * A[k][j]
        fresh = [[Fraction(int(at + k == j)) for j in range(N)] for k in range(len(ti))]
        Z = added(product(H, Z), product(G, fresh))
        at += len(ti)
    C = product(head, Z)
    return [[a - b for a, b in zip(x, y, strict=True)] for x, y in zip(M, product(transposed(C), C), strict=True)]


def bounded(J, d, s):
    """``|J x|² <= s Σ d x²`` for all x, exactly."""
    gram = product(transposed(J), J)
    return semidefinite([[(Fraction(float(s)) * Fraction(float(d[i])) if i == j else 0) - g for j, g in enumerate(row)]
                         for i, row in enumerate(gram)])  # fmt: skip


def dyadic_slopes(rng, widths):
    """Intervals of slopes in eighths: exact in floats, some of them points."""
    found = []
    for n in widths:
        low = rng.integers(-8, 9, n) / 8.0
        found.append((low, low + rng.integers(0, 5, n) / 4.0))
    return found


# -- the relation --------------------------------------------------------------------------------------


@pytest.mark.parametrize("regional", [False, True], ids=["global", "slopes"])
def test_the_system_has_the_networks_jacobians(regional):
    """Exactly, for arbitrary slopes within the intervals: integer weights, slopes in eighths."""
    seen, tried = set(), 0
    for seed in range(250):
        network, rng = random_network(seed)
        widths = activation_widths(network)
        own = activations(network.layers)
        slopes = [tuple(np.broadcast_to(x, n) for x in a.slopes()) for a, n in zip(own, widths, strict=True)]
        if regional:
            slopes = dyadic_slopes(rng, widths)
        system = System.of(network, "all", slopes if regional else None)
        steps, head = steps_of(system)
        seen |= {(H is not None, G is not None) for _, H, G in system.plain}
        exact = ExactBuilder(network.n_inputs, slopes)
        exact.run(network.layers)
        if any(open_ != moving for open_, moving in exact.masks):
            continue  # what no input moves may be left out or not: see below
        tried += 1
        for _ in range(3):
            chosen, psi = [], []
            for low, high in slopes:
                share = [Fraction(int(rng.integers(0, 5)), 4) for _ in low]
                ends = [(Fraction(float(a)), Fraction(float(b))) for a, b in zip(low, high, strict=True)]
                chosen.append([a + u * (b - a) for (a, b), u in zip(ends, share, strict=True)])
                psi.append(share)
            J = layers_jacobian(network.layers, identity(network.n_inputs), iter(chosen))
            stepped = [psi[i] for i in exact.stepped]
            kept = [[u for u, m in zip(share, mask, strict=True) if m]
                    for share, (mask, _) in zip(stepped, exact.masks, strict=True)]  # fmt: skip
            assert system_jacobian(steps, head, network.n_inputs, kept) == J
    assert {(False, False), (True, True), (True, False)} <= seen and tried > 80


@pytest.mark.parametrize("folded", [False, True], ids=["plain", "normalised"])
def test_errors_enclose_the_exact_matrices(folded):
    """Entry by entry against rationals, with weights that round; and they are not wildly large."""
    rounded = 0
    for seed in range(120):
        rng = np.random.default_rng(seed)
        start = (Normalise(rng.random(1), rng.uniform(0.1, 3.0, 1)),) if folded else ()
        network, rng = random_network(seed, gaussian, start=start)
        widths = activation_widths(network)
        slopes = None
        if seed % 2:
            slopes = [(x := rng.uniform(-0.3, 0.5, n), x + rng.choice([0.0, 0.3], n)) for n in widths]
        pairs = slopes or [tuple(np.broadcast_to(x, n) for x in a.slopes())
                           for a, n in zip(activations(network.layers), widths, strict=True)]  # fmt: skip
        outputs = ["all", 0, (0, 1)][seed % 3] if network.n_outputs > 1 else "all"
        system = System.of(network, outputs, slopes)
        exact = ExactBuilder(network.n_inputs, pairs)
        exact.run(network.layers)
        head = exact.now
        if outputs != "all":
            head = [head[0]] if outputs == 0 else [[a - b for a, b in zip(head[0], head[1], strict=True)]]
        assert len(system.steps) == len(exact.steps)
        for step, (W, H) in zip(system.steps, exact.steps, strict=True):
            assert encloses(step.W, W)
            if step.H is not None:
                assert encloses(step.H, H)
                rounded += sum(Fraction(step.H.matrix[i, j]) != H[i][j] for i, j in np.ndindex(step.H.matrix.shape))
            else:
                assert not any(map(any, H))
            assert float(np.max(step.W.off)) <= 1e-12 * max(1.0, float(np.max(np.abs(step.W.matrix)))) * 1e8
        assert encloses(system.head, head)
    assert rounded > 50


def test_maps_against_rationals():
    """Products, sums, scalings and divisions of maps that are off already: every true matrix stays within the error."""
    rng = np.random.default_rng(0)
    for _ in range(60):
        k, n, m = rng.integers(1, 4, 3)
        A, B, D = (gaussian(rng, shape) for shape in ((k, n), (n, m), (k, m)))
        offs = [np.abs(gaussian(rng, x.shape)) * 1e-3 for x in (A, B, D)]
        # the extreme true matrices: off by the whole error, with signs
        true = [[[Fraction(x) + int(rng.choice([-1, 1])) * Fraction(e) for x, e in zip(row, off, strict=True)]
                 for row, off in zip(X.tolist(), Off.tolist(), strict=True)]
                for X, Off in zip((A, B, D), offs, strict=True)]  # fmt: skip
        a, b, d = (Map(x, o) for x, o in zip((A, B, D), offs, strict=True))
        r = rng.uniform(0.1, 3.0, k)
        exact_r = [Fraction(x) for x in r.tolist()]
        assert encloses(a.after(b), product(true[0], true[1]))
        assert encloses(a.after(b).plus(d), added(product(true[0], true[1]), true[2]))
        assert encloses(a.scaled(r), scaled(exact_r, true[0]))
        assert encloses(a.divided(r), scaled([1 / x for x in exact_r], true[0]))
        assert encloses(a.scaled(np.where(r > 1.0, 1.0, 0.0)),
                        scaled([Fraction(int(x > 1)) for x in r.tolist()], true[0]))  # fmt: skip
        assert encloses(a.rows([0]), true[0][:1])
        # of maps that are exact, the rounding of one operation
        plain = [fractions(x) for x in (A, B, D)]
        assert encloses(Map(A).after(Map(B)), product(plain[0], plain[1]))
        assert encloses(Map(A @ B).plus(Map(D)), added(fractions(A @ B), plain[2]))
        assert encloses(Map(A).scaled(r), scaled(exact_r, plain[0]))
        assert encloses(Map(A).divided(r), scaled([1 / x for x in exact_r], plain[0]))
    assert Map(A).scaled(np.ones(k)).error is None and Map(A).off.shape == A.shape


def test_maps_whose_products_underflow():
    """2^-540 squared is no float: the error covers what is lost; 2^401 and NaN are refused."""
    tiny = np.array([[2.0**-540]])
    assert encloses(Map(tiny).after(Map(tiny)), [[Fraction(2) ** -1080]])
    assert encloses(Map(np.array([[2.0**-1040]])).scaled(np.array([2.0**-100])), [[Fraction(2) ** -1140]])
    assert encloses(Map(np.array([[2.0**-1040]])).divided(np.array([2.0**100])), [[Fraction(2) ** -1140]])
    off = Map(np.zeros((1, 1)), tiny)
    assert encloses(off.after(Map(tiny)), [[Fraction(2) ** -1080]])
    for wrong in (2.0**401, math.inf, math.nan):
        with pytest.raises(NumericalError):
            Map(np.array([[wrong]]))
        with pytest.raises(NumericalError):
            Map(np.zeros((1, 1)), np.array([[wrong]]))


def test_widths_of_slopes_are_rounded_up():
    rng = np.random.default_rng(0)
    a = rng.uniform(-1, 2, 2000)
    b = np.minimum(a, rng.uniform(-1, 1, 2000) * 10.0 ** rng.integers(-18, 1, 2000))
    up = _difference_up(a, b)
    nearest = a - b
    assert all(Fraction(u) >= Fraction(x) - Fraction(y) for u, x, y in zip(up, a, b, strict=True))
    assert np.all(up <= np.nextafter(nearest, math.inf)) and np.any(up > nearest)


def test_slopes_belong_to_layers_in_order_of_execution():
    net = Network((Affine([[1.0]]), Residual((ReLU(), Affine([[2.0]])), (LEAKY, Affine([[3.0]]))), ReLU()))
    assert activation_widths(net) == [1, 1, 1]
    # the body open, the shortcut 1/2, the last one 1: 2 ψ + 3/2
    slopes = [(np.zeros(1), np.ones(1)), (np.full(1, 0.5), np.full(1, 0.5)), (np.ones(1), np.ones(1))]
    steps, head = steps_of(System.of(net, "all", slopes))
    assert [system_jacobian(steps, head, 1, [[Fraction(e)]])[0][0] for e in (0, 1)] == [Fraction(3, 2), Fraction(7, 2)]
    with pytest.raises(ValueError, match="more slopes"):
        System.of(net, "all", [*slopes, slopes[0]])
    with pytest.raises((IndexError, ValueError)):
        System.of(net, "all", slopes[:2])


def test_outputs_that_nothing_moves_are_constants():
    """A row of zeros in the head: no steps, and the proof of 0; the others keep theirs."""
    net = Network((Affine(np.ones((2, 2))), LEAKY, Affine([[0.0, 0.0], [1.0, 1.0]])))
    constant = System.of(net, 0)
    assert constant.steps == () and constant.head.matrix.shape == (1, 2)
    for norm in (2.0, math.inf):
        proof = certify(constant, 0, norm, (), None)
        assert proof is not None and proof.value == 0.0
        certificate, status, _ = system_bound(net, norm, "all", None, SystemRequest("barrier"))
        assert certificate is not None and certificate.verify(net) and status is Status.OK
        truth = 2.0 * math.sqrt(2.0) if norm == 2.0 else 4.0
        assert truth * (1 - 1e-12) <= certificate.value <= truth * (1 + 1e-3)
    assert len(System.of(net, 1).steps) == len(System.of(net).steps) == 1


def test_neurons_that_cannot_bend_or_move_are_no_neurons():
    W = [np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]), np.ones((1, 3))]
    system = System.of(Network.from_weights(W))
    assert [len(s.W.matrix) for s in system.steps] == [2]
    assert system.steps[0].G is not None and system.steps[0].G.tolist() == [[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]
    steps, head = steps_of(system)
    for e in every((Fraction(0), Fraction(1)), repeat=2):
        assert system_jacobian(steps, head, 2, [e]) == [list(e)]
    leaky = System.of(Network((Affine(W[0]), LEAKY, Affine(W[1]))))
    steps, head = steps_of(leaky)
    assert [len(s.W.matrix) for s in leaky.steps] == [2]
    assert system_jacobian(steps, head, 2, [[Fraction(0), Fraction(1)]]) == [[Fraction(1, 4), Fraction(1)]]
    fixed = [(np.array([1.0, 0.0, 0.0]), np.array([1.0, 1.0, 0.0]))]
    assert System.of(Network.from_weights(W), "all", fixed).steps == ()


# -- reductions and the recursion ----------------------------------------------------------------------


def test_the_recursions_storage_is_a_storage():
    """``P⁻`` of the recursion makes each inequality singular: exactly what is needed, to rounding."""
    for seed in range(30):
        network, _ = random_network(seed, gaussian)
        system = System.of(network)
        t = riccati.closed_form(system)
        P = None if t is None else riccati.storage(system, t)
        if P is None:
            continue
        for step, ti, before, after in zip(system.steps, t, P[:-1], P[1:], strict=True):
            W, G = step.W.matrix, np.eye(len(after)) if step.G is None else step.G
            H = np.zeros((len(after), len(before))) if step.H is None else step.H.matrix
            S, N = np.diag(2 * ti) - G.T @ after @ G, H.T @ after @ G + W.T * ti
            want = H.T @ after @ H + N @ np.linalg.solve(S, N.T)
            np.testing.assert_allclose(before, want, rtol=1e-6, atol=1e-8 * float(np.abs(want).max()))


def test_the_metric_dominates():
    rng = np.random.default_rng(0)
    for n in range(1, 6):
        for _ in range(20):
            X = rng.standard_normal((n, rng.integers(1, 4))) * 10.0 ** rng.integers(-4, 5, (n, 1))
            P = X @ X.T
            d = riccati.metric(P)
            root = 1 / np.sqrt(d)
            assert np.linalg.eigvalsh(root[:, None] * P * root)[-1] <= 1 + 1e-9
            assert d.sum() <= n * np.linalg.eigvalsh(P)[-1] * (1 + 1e-9)


def test_the_reduced_input_has_the_same_norms():
    rng = np.random.default_rng(1)
    network = Network((Affine(rng.standard_normal((2, 9))), LEAKY, Affine(rng.standard_normal((2, 2)))))
    system = System.of(network)
    small, basis = reduced(system)
    assert basis is not None and small.n_inputs <= 4
    np.testing.assert_allclose(small.steps[0].W.matrix @ basis.T, system.steps[0].W.matrix, atol=1e-12)
    np.testing.assert_allclose(small.steps[0].H.matrix @ basis.T, system.steps[0].H.matrix, atol=1e-12)
    assert reduced(System.of(Network.from_weights([np.eye(2), np.eye(2)])))[1] is None


# -- what proves() believes ----------------------------------------------------------------------------


def small_systems(count, weight=integers):
    for seed in range(count):
        network, rng = random_network(seed, weight, least=1, most=4)
        outputs = 0 if seed % 2 else "all"
        system = System.of(network, outputs)
        t = riccati.closed_form(system) if system.steps else None
        if t is not None and riccati.storage(system, t) is not None:
            yield system, t, rng


def least(system, t, d, slack=0.0):
    P = riccati.storage(system, t, slack)
    root = 1 / np.sqrt(d)
    return None if P is None else float(np.linalg.eigvalsh(root[:, None] * P[0] * root)[-1])


def test_proves_is_sharp_and_never_wrong_against_the_exact_lmi():
    """Around the least s, to the last few ulps, with any T, d and slack: what is proved holds in rationals."""
    proved = refused = close = 0
    for system, t, rng in small_systems(120):
        d = np.ones(system.n_inputs) if rng.random() < 0.5 else rng.uniform(0.1, 1.0, system.n_inputs)
        shaken = [x * np.exp(rng.uniform(-0.2, 0.4, len(x))) for x in t]
        t = shaken if riccati.storage(system, shaken) is not None else list(t)
        s = least(system, t, d)
        if not s:
            continue
        assert proves(system, t, d, s * (1 + 1e-4), 1e-9) and not proves(system, t, d, s * (1 - 1e-9), 1e-12)
        for off in (*10.0 ** rng.uniform(-16, -6, 4), *-(10.0 ** rng.uniform(-16, -6, 4)), 0.0):
            slack = float(rng.choice([0.0, 1e-16, 1e-14, 1e-12, 1e-10, 1e-8, 0.5]))
            if proves(system, t, d, s * (1 + off), slack):
                assert semidefinite(exact_lmi(system, t, d, s * (1 + off)))
                proved += 1
                close += off < 1e-9
            else:
                refused += 1
    assert proved > 50 and refused > 50 and close > 5


def test_what_is_proved_bounds_every_jacobian_exactly():
    """Random T, d, s and slack: proved means that every 0/1 slope of ψ obeys the bound (its vertices are enough)."""
    proved = 0
    for system, t, rng in small_systems(80):
        steps, head = steps_of(system)
        for _ in range(6):
            d = np.exp(rng.uniform(-2, 0, system.n_inputs))
            own = [x * np.exp(rng.uniform(-1, 1, len(x)) * rng.choice([0.01, 1.0])) for x in t]
            s = least(system, own, d)
            if not s:
                continue
            s *= float(rng.choice([0.5, 0.9, 0.999, 1 + 1e-7, 1.1]))
            if not proves(system, own, d, s, float(rng.choice([0.0, 1e-12, 1e-9]))):
                continue
            proved += 1
            for bits in every(*[every((Fraction(0), Fraction(1)), repeat=len(W)) for W, _, _ in steps]):
                assert bounded(system_jacobian(steps, head, system.n_inputs, bits), d, s)
    assert proved > 60


def test_nonsense_is_not_proved():
    network, _ = random_network(3)
    system = System.of(network, 0)
    t, d = list(riccati.closed_form(system)), np.ones(system.n_inputs)
    s = 2.0 * least(system, t, d)
    assert proves(system, t, d, s, 1e-12)
    n = system.n_inputs
    for wrong in (0.0, -1.0, math.nan, math.inf, 1e300, 1e-300):
        assert not proves(system, t, d, wrong * s, 1e-12), wrong
        assert not proves(system, t, d * wrong, s, 1e-12), wrong
        assert not proves(system, [x * wrong for x in t], d, s, 1e-12), wrong
        one = d.copy()
        one[-1] = wrong
        assert not proves(system, t, one, s, 1e-12), wrong
    for slack in (-1e-12, 1.0, 2.0, math.nan, math.inf, -math.inf):
        assert not proves(system, t, d, s, slack), slack
    assert not proves(system, t, -d, -s, 1e-12)
    assert not proves(system, t, -np.linspace(1.0, 9.0, n), -s, 1e-12)


def with_error(m, error):
    return Map(m.matrix, np.full(m.matrix.shape, error))


def test_every_error_of_a_map_enters_the_proof():
    """A tight proof fails when a matrix is off by more, whichever it is; how much it bears falls with the error."""
    rng = np.random.default_rng(0)
    network = Network((Affine(rng.standard_normal((3, 3))), Residual((LEAKY, Affine(rng.standard_normal((3, 3)))), ()),
                       STEEP, Affine(rng.standard_normal((2, 3)))))  # fmt: skip
    system = System.of(network)
    t, d = list(riccati.closed_form(system)), np.ones(3)
    s = least(system, t, d) * (1 + 1e-3)
    assert proves(system, t, d, s, 1e-6)
    first, second = system.steps
    assert first.H is not None and second.H is not None
    for error, fine in ((1e-12, True), (1e-1, False)):
        changed = {
            "W of the first": replace(system, steps=(replace(first, W=with_error(first.W, error)), second)),
            "W of the last": replace(system, steps=(first, replace(second, W=with_error(second.W, error)))),
            "H of the first": replace(system, steps=(replace(first, H=with_error(first.H, error)), second)),
            "H of the last": replace(system, steps=(first, replace(second, H=with_error(second.H, error)))),
            "head": replace(system, head=with_error(system.head, error)),
        }
        for name, moved in changed.items():
            assert proves(moved, t, d, s, 1e-6) is fine, (name, error)


def test_what_a_sum_cancels_is_not_forgotten():
    """``b a − fl(b a)`` is 0 in floats and up to half an ulp of 1e16 in truth: without the error 0 would be proved."""
    rng = np.random.default_rng(5)
    wrong = 0
    for _ in range(20):
        a, b = rng.uniform(1e8, 2e8, 2)
        exact = abs(Fraction(a) * Fraction(b) - Fraction(a * b))
        block = Residual((Affine([[a]]), Affine([[b]])), (Affine([[-a * b]]),))
        for last in ((), (LEAKY,)):
            system = System.of(Network((Affine([[1.0]]), block, *last)))
            top = Map(system.steps[0].W.matrix, system.steps[0].W.error) if last else system.head
            assert top.matrix[0, 0] == 0.0 and Fraction(top.off[0, 0]) >= exact
        # x + leaky(the sum of x): slopes 1 + the sum's, times 1/4 or 1
        system = System.of(Network((Affine([[1.0]]), Residual((block, LEAKY), ()))))
        off = Fraction(a) * Fraction(b) - Fraction(a * b)
        truth = max(abs(1 + off), abs(1 + off / 4))
        blind = System(1, tuple(replace(x, W=Map(x.W.matrix), H=Map(x.H.matrix)) for x in system.steps),
                       Map(system.head.matrix))  # fmt: skip
        for s in (1.001, 1.1, 1.5, 3.0, 10.0):
            for t in (1e3, 3.0, 1.0):
                assert not proves(system, [np.full(1, t)], np.ones(1), s, 1e-12) or truth**2 <= Fraction(s)
                wrong += proves(blind, [np.full(1, t)], np.ones(1), s, 1e-12) and truth**2 > Fraction(s)
    assert wrong > 5  # the errors are what refuses


def test_values_are_rounded_up():
    rng = np.random.default_rng(0)
    for _ in range(300):
        d, s = rng.uniform(0.1, 1.0, 3), rng.uniform(0.1, 10.0)
        exact = [Fraction(x) for x in d.tolist()]
        assert Fraction(value_of(d, s, 2.0)) ** 2 >= Fraction(s) * max(exact)
        assert Fraction(value_of(d, s, math.inf)) ** 2 >= Fraction(s) * sum(exact)
        assert value_of(d, s, 2.0) == pytest.approx(math.sqrt(s * d.max()), rel=1e-14)


def test_the_metric_of_the_first_step_is_rounded_down(monkeypatch):
    """What is proved is proved for the product ``s d`` that the value takes, not for a float above it."""
    seen = []
    true = system_certificate._inequality

    def watch(step, t, before, after):
        seen.append(np.diagonal(before))
        return true(step, t, before, after)

    monkeypatch.setattr(system_certificate, "_inequality", watch)
    rng = np.random.default_rng(0)
    network = Network((Affine(rng.standard_normal((3, 3))), LEAKY, Affine(rng.standard_normal((2, 3)))))
    system = System.of(network)
    t = riccati.closed_form(system)
    for _ in range(20):
        d, s = rng.uniform(0.5, 1.0, 3), rng.uniform(50.0, 100.0)
        assert proves(system, t, d, s, 1e-12)
        assert all(Fraction(x) <= Fraction(s) * Fraction(y) for x, y in zip(seen[-1], d, strict=True))


def test_certify_takes_multipliers_in_any_units():
    """And proves hardly more than the least factor; nonsense proves nothing."""
    for system, t, _ in small_systems(40, gaussian):
        for scale in (1.0, 2.0**40, 2.0**-40):
            moved = System(system.n_inputs, system.steps, Map(system.head.matrix * scale))
            proof = certify(moved, "all", 2.0, [x * scale**2 for x in t], None)
            assert proof is not None
            s = least(system, t, np.ones(system.n_inputs))
            assert math.sqrt(s) * scale <= proof.value <= math.sqrt(s) * scale * (1 + 1e-6)
        assert certify(system, "all", 2.0, [x * math.nan for x in t], None) is None
        assert certify(system, "all", 2.0, [x * 1e-9 for x in t], None) is None


def test_closed_forms_are_those_of_chains():
    """``T = τ I`` on a plain chain of two layers is the product of norms or less."""
    rng = np.random.default_rng(0)
    for sizes in ((3, 4, 2), (2, 3, 3, 1), (4, 4, 4, 4)):
        W = [rng.standard_normal((b, a)) for a, b in pairwise(sizes)]
        system = System.of(Network.from_weights(W))
        t = riccati.closed_form(system)
        s = least(system, t, np.ones(sizes[0]))
        assert math.sqrt(s) <= math.prod(float(np.linalg.norm(w, 2)) for w in W) * (1 + 1e-9)
