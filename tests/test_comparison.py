"""``compare``: every method beside the attack, rows that survive failures, a ladder that breaks on wrong bounds."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import time

import numpy as np
import pytest

from certbound import methods as methods_module
from certbound.comparison import Comparison, compare, compare_curve, ladder_links
from certbound.errors import InputError, LadderError, UnsupportedLayerError
from certbound.methods import LADDER, METHODS, Attacked, Constants
from certbound.network import Affine, Network, ReLU
from certbound.robustness import Certified
from certbound.types import Quantity, Rigor, Sense, Status

both_norms = pytest.mark.parametrize("norm", [2.0, math.inf])
DEFAULT = [m for m in METHODS.values() if m.default]
UPPER = [m.name for m in DEFAULT if m.sense is Sense.UPPER]
LIPSCHITZ = [m.name for m in DEFAULT if m.kind == "lipschitz"]
MARGINS = [m.name for m in DEFAULT if m.kind == "margins"]


def random_problem(seed=0, widths=(4, 5, 4, 3), n=12):
    rng = np.random.default_rng(seed)
    pairs = list(itertools.pairwise(widths))
    W = [rng.standard_normal((b, a)) / math.sqrt(a) for a, b in pairs]
    net = Network.from_weights(W, [0.1 * rng.standard_normal(b) for _, b in pairs])
    x = rng.random((n, widths[0]))
    y = net.forward(x).argmax(axis=1)
    y[::5] = (y[::5] + 1) % widths[-1]  # some are wrong
    return net, x, y


@pytest.fixture(scope="module", params=[2.0, math.inf], ids=["2", "inf"])
def full(request):
    """All methods on a random 3-layer net; 9 hidden neurons, so that patterns run too."""
    net, x, y = random_problem()
    return net, x, y, compare(net, x, y, delta=0.05, norm=request.param)


# -- all methods, all rows -------------------------------------------------------------------------------


def test_every_method_runs(full):
    *_, c = full
    assert {r.method for r in c.rows} == {m.name for m in DEFAULT}
    assert {r.status for r in c.rows} == {Status.OK}
    assert all(math.isfinite(r.value) for r in c.rows)
    for name in UPPER:
        gap, accuracy = c.row(name), c.row(name, "robust accuracy")
        assert (gap.sense, accuracy.sense) == (Sense.UPPER, Sense.LOWER)
    for name in LIPSCHITZ:
        assert c.row(name, Quantity.LIPSCHITZ).sense is METHODS[name].sense
    assert c.row("apgd-ce").sense is Sense.LOWER
    assert c.row("apgd-ce", "robust accuracy").sense is Sense.UPPER
    assert {r.rigor for r in c.rows} == {Rigor.NUMERICAL}
    with pytest.raises(KeyError):
        c.row("gradient")  # a lower bound of a constant bounds no loss gap


def test_every_link_is_checked_and_holds(full):
    *_, c = full
    names = {link.name for link in c.ladder}
    assert all(link.holds for link in c.ladder)
    links = [(low, high) for low, high in LADDER if {low, high} <= set(LIPSCHITZ)]
    for low, high in links:
        assert f"{low} <= {high} (Lipschitz constants of margins)" in names
    for name in UPPER:
        assert f"apgd-ce <= {name} (loss gap of each sample)" in names
        assert f"{name} <= apgd-ce (margin of each sample and class)" in names
    for name in set(LIPSCHITZ) - {"gradient"}:
        assert f"gradient <= {name} (Lipschitz constants of margins)" in names
    assert len(c.ladder) == len(links) + 2 * len(UPPER) + len(LIPSCHITZ) - 1


def test_numbers_are_in_order(full):
    *_, c = full
    gap = c.row("apgd-ce").value
    robust = c.row("apgd-ce", "robust accuracy").value
    assert 0 < gap == c.empirical_gap
    for name in UPPER:
        row = c.row(name)
        assert row.value >= gap * (1 - 1e-9)
        assert row.ratio == pytest.approx(row.value / gap)
        assert c.row(name, "robust accuracy").value <= robust <= c.clean_accuracy
    assert c.row("apgd-ce").ratio is None
    constant = {name: c.row(name, Quantity.LIPSCHITZ).value for name in LIPSCHITZ}
    for low, high in (*LADDER, ("gradient", "patterns")):
        if not {low, high} <= set(constant):
            continue  # the reference SDP is no default
        assert constant[low] <= constant[high] * (1 + 1e-9)


def test_rows_are_json(full):
    *_, c = full
    text = json.dumps(c.to_dict(), allow_nan=False)
    again = json.loads(text)
    assert again["schema_version"] == 1 and len(again["rows"]) == len(c.rows)
    assert {r["status"] for r in again["rows"]} == {"OK"}
    assert again["n_samples"] == 12 and again["clean_accuracy"] == c.clean_accuracy
    assert f"{len(c.ladder)} links hold" in str(c)
    assert all(m.name in str(c) for m in DEFAULT)
    for row in c.rows:
        assert row.bound.value == row.value and row.bound.claim.subject == c.subject


def test_repeated_runs_agree(full):
    net, x, y, c = full
    again = compare(net, x, y, delta=0.05, norm=c.norm, methods=["apgd-ce", "gradient", "cover", "IBP"])
    for row in again.rows:
        assert row.value == c.row(row.method, row.quantity).value


def test_trained_network():
    import torch

    rng = np.random.default_rng(0)
    x = rng.random((60, 2))
    y = (x.sum(axis=1) > 1).astype(int)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    optimiser = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(150):
        loss = torch.nn.functional.cross_entropy(model(torch.tensor(x, dtype=torch.float32)), torch.tensor(y))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    for norm in (2.0, math.inf):
        c = compare(model, x, y, delta=0.02, norm=norm)
        assert {r.status for r in c.rows} == {Status.OK}
        assert c.clean_accuracy > 0.9
        assert c.row("CROWN", "robust accuracy").value > 0.5  # not vacuous
        assert c.row("CROWN").ratio < 3 < c.row("printed").ratio


# -- a wrong bound is found out ---------------------------------------------------------------------------

_HALF = np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2
_HEAD = np.array([[0.0, 0.0, 0.0, 0.0], [2.0, 0.0, 0.0, 0.0]])


def tight_problem(norm):
    """A network on which every bound is within a factor 1/0.3 of what is attained.

    All ReLUs are on (biases of 5). ℓ2: an orthogonal layer, flat spectrum. ℓ∞: equal entries, where Theorem 3.1's
    neuron part is an equality. The head reads one neuron, so that interval bounds lose nothing. Labels are wrong by a
    margin of about 10: the loss is linear there, and the gap is δ times the constant.
    """
    W = _HALF if norm == 2 else np.full((4, 4), 0.25)
    net = Network((Affine(W, np.full(4, 5.0)), ReLU(), Affine(_HEAD)))
    x = np.full((2, 4), 0.5) + np.array([[0.0], [0.1]])
    return net, x, np.array([0, 0])


DELTA = 0.05


@both_norms
def test_tight_network_is_tight(norm):
    c = compare(*tight_problem(norm), delta=DELTA, norm=norm)
    assert {r.status for r in c.rows} == {Status.OK}
    low = c.row("gradient", Quantity.LIPSCHITZ).value
    assert low == pytest.approx(2.0)
    for name in UPPER:
        assert 1 - 1e-9 <= c.row(name).ratio < 1 / 0.3 / 1.2, name
    for name in set(LIPSCHITZ) - {"gradient"}:
        assert c.row(name, Quantity.LIPSCHITZ).value < 2.0 / 0.3 / 1.2, name


def mutated(monkeypatch, name, factor):
    """The method with its constants, or the slack of its margins and loss gaps, times ``factor``."""
    method = METHODS[name]
    if method.constants is not None:
        real_constants = method.constants

        def constants(problem):
            return dataclasses.replace(found := real_constants(problem), values=found.values * factor)

        changed = dataclasses.replace(method, constants=constants)
    elif method.certify is not None:
        real_certify = method.certify

        def certify(problem, delta):
            found, clean = real_certify(problem, delta), problem.samples.margins
            with np.errstate(invalid="ignore"):
                margins = np.where(np.isinf(clean), math.inf, clean - factor * (clean - found.margins))
            return Certified(margins, found.loss_gap * factor)

        changed = dataclasses.replace(method, certify=certify)
    else:
        real_attack = method.attack

        def attack(problem, delta):
            found = real_attack(problem, delta)
            return Attacked(found.margins, found.loss_gap * factor)

        changed = dataclasses.replace(method, attack=attack)
    monkeypatch.setitem(METHODS, name, changed)


@both_norms
@pytest.mark.parametrize("name", [m.name for m in DEFAULT if m.name not in ("apgd-ce", "gradient")])
def test_a_bound_that_is_too_small_breaks_the_ladder(name, norm, monkeypatch):
    net, x, y = tight_problem(norm)
    mutated(monkeypatch, name, 0.3)
    with pytest.raises(LadderError) as caught:
        compare(net, x, y, delta=DELTA, norm=norm)
    message = str(caught.value)
    assert f"'apgd-ce <= {name} (loss gap of each sample)' exceeded" in message
    assert f"'{name} <= apgd-ce (margin of each sample and class)' exceeded" in message
    if METHODS[name].kind == "lipschitz":
        assert f"'gradient <= {name} (Lipschitz constants of margins)' exceeded" in message
    for low, high in LADDER:  # and no link that the method is not part of
        link = f"'{low} <= {high} (Lipschitz constants of margins)' exceeded"
        if high == name and METHODS[low].default:
            assert link in message
        elif low != name:
            assert link not in message
    assert net.digest in message


@both_norms
@pytest.mark.parametrize("name", ["apgd-ce", "gradient"])
def test_a_lower_bound_that_is_too_large_breaks_the_ladder(name, norm, monkeypatch):
    mutated(monkeypatch, name, 4.0)
    with pytest.raises(LadderError) as caught:
        compare(*tight_problem(norm), delta=DELTA, norm=norm)
    for upper in UPPER if name == "apgd-ce" else set(LIPSCHITZ) - {"gradient"}:
        assert f"'{name} <= {upper} (" in str(caught.value)


@both_norms
def test_attack_margins_below_the_certified_ones_break_the_ladder(norm, monkeypatch):
    """The loss gap alone may look right: the margins are compared too."""
    method = METHODS["apgd-ce"]

    def attack(problem, delta):
        found = method.attack(problem, delta)
        return Attacked(np.where(np.isinf(found.margins), math.inf, found.margins - 1.0), found.loss_gap)

    monkeypatch.setitem(METHODS, "apgd-ce", dataclasses.replace(method, attack=attack))
    with pytest.raises(LadderError, match=r"'CROWN <= apgd-ce \(margin of each sample and class\)' exceeded"):
        compare(*tight_problem(norm), delta=DELTA, norm=norm)


@pytest.mark.parametrize("name", ["sharp", "derived", "cover", "patterns", "recursion", "sdp", "sdp-cvxpy"])
def test_links_between_bounds_alone(name, monkeypatch):
    """Without attack and gradient: the order of the bounds among themselves is checked as well."""
    partners = [m for pair in LADDER for m in pair if name in pair and m != name]
    mutated(monkeypatch, name, 4.0)
    uppers = [high for low, high in LADDER if low == name]
    with pytest.raises(LadderError) as caught:
        compare(*tight_problem(2.0), delta=DELTA, norm=2, methods=[name, *partners])
    assert any(f"'{name} <= {high} (" in str(caught.value) for high in uppers)


def constants_of(*values):
    return [np.array([[0.0, v], [v, 0.0]]) for v in values]


@pytest.mark.parametrize("excess", [1e-6, 0.5, math.inf])
def test_small_excesses_break_links_and_rounding_does_not(excess):
    low, high = constants_of(3.0 * (1 + excess), 3.0)
    assert not all(k.holds for k in ladder_links({"cover": low, "product": high}, {}, {}))
    low, high = constants_of(3.0 * (1 + 1e-13), 3.0)
    assert all(k.holds for k in ladder_links({"cover": low, "product": high}, {}, {}))


def test_small_constants_are_compared_relatively():
    low, high = constants_of(2e-30, 1e-30)
    assert not all(k.holds for k in ladder_links({"cover": low, "product": high}, {}, {}))


def test_infinite_and_undefined_numbers_in_links():
    one, inf, nan = constants_of(1.0, math.inf, math.nan)
    assert all(k.holds for k in ladder_links({"cover": one, "product": inf}, {}, {}))
    assert all(k.holds for k in ladder_links({"cover": inf, "product": inf}, {}, {}))
    assert not all(k.holds for k in ladder_links({"cover": inf, "product": one}, {}, {}))
    # what cannot be compared does not hold
    assert not all(k.holds for k in ladder_links({"cover": nan, "product": one}, {}, {}))
    assert not all(k.holds for k in ladder_links({"cover": one, "product": nan}, {}, {}))


# -- rows that survive ------------------------------------------------------------------------------------


@both_norms
def test_packages_that_are_not_installed(norm, monkeypatch):
    real = methods_module.find_spec
    absent = {"cvxpy", "auto_LiRPA", "autoattack", "pyautoattack"}
    monkeypatch.setattr(methods_module, "find_spec", lambda name: None if name in absent else real(name))
    net, x, y = random_problem()
    c = compare(
        net, x, y, delta=0.05, norm=norm, methods=[m.name for m in METHODS.values() if m.default] + ["sdp-cvxpy"]
    )
    for name in ("sdp-cvxpy", "IBP", "CROWN"):
        gap, accuracy = c.row(name), c.row(name, "robust accuracy")
        assert gap.status is Status.NOT_INSTALLED and "pip install" in gap.note
        assert (gap.value, accuracy.value) == (math.inf, 0.0)
        assert gap.bound.vacuous and accuracy.bound.vacuous and gap.rigor is Rigor.RIGOROUS
    assert (c.row("apgd-ce").value, c.row("apgd-ce", "robust accuracy").value) == (0.0, 1.0)
    assert c.empirical_gap is None and all(r.ratio is None for r in c.rows)
    assert c.row("cover").status is Status.OK and c.row("cover").value < math.inf
    json.dumps(c.to_dict(), allow_nan=False)
    assert "not installed" in str(c)


@pytest.mark.parametrize(
    "error", [np.linalg.LinAlgError("no convergence"), RuntimeError("dead"), MemoryError(), OverflowError()]
)
@pytest.mark.parametrize("name", ["recursion", "CROWN", "apgd-ce"])
def test_a_method_that_fails_keeps_its_row(name, error, monkeypatch):
    def fail(*_):
        raise error

    method = METHODS[name]
    part = next(p for p in ("constants", "certify", "attack") if getattr(method, p) is not None)
    monkeypatch.setitem(METHODS, name, dataclasses.replace(method, **{part: fail}))
    net, x, y = random_problem()
    chosen = ["apgd-ce", "recursion", "CROWN", "cover"]
    c = compare(net, x, y, delta=0.05, norm=2, methods=chosen)
    assert {r.method for r in c.rows if r.status is Status.FAILED} == {name}
    for row in c.rows:
        assert row.bound.vacuous == (row.method == name) or row.value == 0.0
    assert type(error).__name__ in c.row(name).note
    monkeypatch.undo()
    untouched = compare(net, x, y, delta=0.05, norm=2, methods=chosen)
    for row in c.rows:
        if row.method != name:
            assert row.value == untouched.row(row.method, row.quantity).value


def test_broken_bounds_and_bad_input_are_not_swallowed(monkeypatch):
    def fail(_):
        raise InputError("x", got="a", needed="b", fix="c")

    monkeypatch.setitem(METHODS, "cover", dataclasses.replace(METHODS["cover"], constants=fail))
    net, x, y = random_problem()
    with pytest.raises(InputError):
        compare(net, x, y, delta=0.05, norm=2, methods=["cover"])


@pytest.mark.parametrize("norm", [2, math.inf])
def test_effort_decides_how_many_programmes_are_solved(norm, monkeypatch):
    """Little effort: looser bounds that are bounds still, of the same call the same number."""
    from certbound.lipschitz import margin_constants as module

    solved = []
    real = module.solved
    monkeypatch.setattr(module, "solved", lambda *a: solved.append(1) or real(*a))
    net, x, y = random_problem(widths=(6, 12, 12, 6))
    values, counts = [], []
    for effort in (0.0, 1.0):
        solved.clear()
        c = compare(net, x, y, delta=0.05, norm=norm, methods=["recursion", "sdp"], effort=effort)
        assert c.row("sdp").status is Status.OK
        assert c.to_dict()["effort"] == effort
        values.append(c.constants["sdp"])
        counts.append(len(solved))
        assert np.all(c.constants["sdp"] <= c.constants["recursion"] * (1 + 1e-9))
    assert counts == [0, 15], "one programme for all outputs together, or one for each of 15 margins"
    assert np.all(values[1] <= values[0] * (1 + 1e-9)) and values[0].max() > values[1].max()
    again = compare(net, x, y, delta=0.05, norm=norm, methods=["sdp"], effort=0.0)
    assert np.array_equal(again.constants["sdp"], values[0])


@pytest.mark.parametrize("effort", [-1.0, math.nan, math.inf, True, "much", None])
def test_effort_that_is_no_number_is_refused(effort):
    net, x, y = random_problem()
    with pytest.raises(InputError, match="effort"):
        compare(net, x, y, delta=0.05, norm=2, effort=effort)


def test_time_limit():
    net, x, y = random_problem()
    c = compare(net, x, y, delta=0.05, norm=2, time_limit=1e-9)
    assert {r.method for r in c.rows} == {m.name for m in DEFAULT}
    assert {r.status for r in c.rows} == {Status.TIME_LIMIT}
    assert all(r.bound.vacuous for r in c.rows)
    json.dumps(c.to_dict(), allow_nan=False)


def test_time_limit_stops_what_comes_later(monkeypatch):
    def slow(problem):
        time.sleep(0.3)
        return Constants(np.full((3, 3), 1e3) - 1e3 * np.eye(3))

    monkeypatch.setitem(METHODS, "printed", dataclasses.replace(METHODS["printed"], constants=slow))
    net, x, y = random_problem()
    c = compare(net, x, y, delta=0.05, norm=2, methods=["printed", "derived", "CROWN"], time_limit=0.2)
    assert c.row("printed").status is Status.OK
    assert c.row("derived").status is Status.TIME_LIMIT is c.row("CROWN").status
    assert c.row("derived").value == math.inf


def test_too_large(monkeypatch):
    net, x, y = random_problem(widths=(4, 10, 10, 3))
    c = compare(net, x, y, delta=0.05, norm=2, methods=["patterns", "cover"])
    assert c.row("patterns").status is Status.TOO_LARGE and c.row("patterns").bound.vacuous
    assert c.row("cover").status is Status.OK


# -- samples, seeds, radii ------------------------------------------------------------------------------------


def test_subset_of_the_samples():
    net, x, y = random_problem(n=30)
    chosen = {"delta": 0.05, "norm": 2, "methods": ["apgd-ce", "cover"]}
    a, b, other = (compare(net, x, y, n_samples=7, seed=s, **chosen) for s in (1, 1, 2))
    assert a.n_samples == 7 == len(a.certified["cover"].loss_gap)
    assert [r.value for r in a.rows] == [r.value for r in b.rows]
    assert [r.bound.claim for r in a.rows] == [r.bound.claim for r in b.rows]
    assert a.row("cover").bound.claim != other.row("cover").bound.claim  # other samples, another claim
    assert compare(net, x, y, n_samples=99, **chosen).n_samples == 30


@both_norms
def test_no_perturbation(norm):
    net, x, y = random_problem()
    c = compare(net, x, y, delta=0, norm=norm)
    for row in c.rows:
        if row.quantity is Quantity.LOSS_GAP:
            assert row.value == 0.0, row.method
        if row.quantity is Quantity.ROBUST_ACCURACY:
            assert row.value == c.clean_accuracy, row.method
        assert row.ratio is None


@both_norms
def test_several_radii(norm):
    net, x, y = random_problem()
    few = ["apgd-ce", "gradient", "cover", "CROWN"]
    curve = compare_curve(net, x, y, deltas=[0.0, 0.02, 0.05], norm=norm, methods=few)
    assert [c.delta for c in curve] == [0.0, 0.02, 0.05]
    for name in ("cover", "CROWN"):
        gaps = [c.row(name).value for c in curve]
        assert gaps == sorted(gaps) and gaps[1] > 0
    alone = compare(net, x, y, delta=0.05, norm=norm, methods=few)
    assert [r.value for r in alone.rows] == [r.value for r in curve[2].rows]


@both_norms
def test_one_logit(norm):
    """Labels 0 and 1; the same numbers as the two logits (0, z)."""
    rng = np.random.default_rng(0)
    W, C = rng.standard_normal((4, 3)), rng.standard_normal((1, 4))
    x, y = rng.random((6, 3)), np.array([0, 1, 0, 1, 1, 0])
    one = compare([W, C], x, y, delta=0.1, norm=norm)
    two = compare([W, np.vstack([0 * C, C])], x, y, delta=0.1, norm=norm)
    assert {r.status for r in one.rows} == {Status.OK}
    for row in one.rows:
        assert row.value == pytest.approx(two.row(row.method, row.quantity).value, rel=1e-3, abs=1e-9), row.method


@both_norms
def test_linear_model(norm):
    """No hidden layer: every Lipschitz method is exact."""
    C = np.array([[3.0, 0.0], [0.0, 4.0]])
    c = compare([C], [[0.9, 0.1], [0.2, 0.3]], [0, 1], delta=0.05, norm=norm)
    exact = 7.0 if norm == math.inf else 5.0
    for name in LIPSCHITZ:
        assert c.row(name, Quantity.LIPSCHITZ).value == pytest.approx(exact, rel=1e-6), name


def test_single_methods_and_their_names():
    net, x, y = random_problem()
    assert isinstance(compare(net, x, y, delta=0.05, norm="inf", methods="cover"), Comparison)
    mixed = compare(net, x, y, delta=0.05, norm=2, methods=["cover", "product"])
    assert [r.method for r in mixed.rows if r.quantity is Quantity.LOSS_GAP] == ["product", "cover"]


# -- bad input --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "wrong"),
    [
        ("methods", {"methods": ["nothing"]}),
        ("methods", {"methods": ["cover", "x"]}),
        ("methods", {"methods": []}),
        ("delta", {"delta": -1}),
        ("delta", {"delta": math.nan}),
        ("norm", {"norm": 1}),
        ("norm", {"norm": "l1"}),
        ("n_samples", {"n_samples": 0}),
        ("n_samples", {"n_samples": -3}),
        ("n_samples", {"n_samples": 1.5}),
        ("n_samples", {"n_samples": 99.5}),
        ("n_samples", {"n_samples": "7"}),
        ("n_samples", {"n_samples": True}),
        ("time_limit", {"time_limit": 0}),
        ("time_limit", {"time_limit": -1}),
        ("time_limit", {"time_limit": math.nan}),
    ],
)
def test_bad_arguments(argument, wrong):
    net, x, y = random_problem()
    with pytest.raises(InputError, match=argument):
        compare(net, x, y, **{"delta": 0.05, "norm": 2, "methods": ["cover"]} | wrong)


@pytest.mark.parametrize("value", [-0.01, 1.01, math.nan, math.inf])
def test_samples_outside_the_box(value):
    net, x, y = random_problem()
    x[3, 1] = value
    with pytest.raises(InputError, match="x"):
        compare(net, x, y, delta=0.05, norm=2, methods=["cover"])


@pytest.mark.parametrize("label", [-1, 3, 0.5])
def test_bad_labels(label):
    net, x, y = random_problem()
    y = y.astype(float)
    y[0] = label
    with pytest.raises(InputError, match="y"):
        compare(net, x, y, delta=0.05, norm=2, methods=["cover"])


def test_a_layer_that_is_not_modelled_is_named():
    import torch

    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Sequential(torch.nn.Softplus()), torch.nn.Linear(3, 2))
    with pytest.raises(UnsupportedLayerError, match=r"1\.0.*[Ss]oftplus"):
        compare(model, np.full((2, 4), 0.5), [0, 1], delta=0.05, norm=2)


def test_a_model_that_ends_in_a_relu_is_refused():
    net = Network((Affine(np.eye(2)), ReLU()))
    with pytest.raises(InputError, match="ReLU"):
        compare(net, [[0.5, 0.5]], [0], delta=0.05, norm=2)
