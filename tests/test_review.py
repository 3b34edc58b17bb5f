"""Defects that a review found, each as it was shown."""

import csv
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import certbound
from certbound import InputError, Limits, Network, Normalise, ReLU, certified_radii, compare, compare_models, gate
from certbound.attacks.pair import TOLERANCE, AttackPair
from certbound.commands.compare import network_arrays
from certbound.errors import CertificateError
from certbound.io.factory import load_model
from certbound.network import Affine
from certbound.types import Status

EYE = np.eye(2)


def tied(seed):
    """A network two of whose classes are the same function, and samples of those classes."""
    g = np.random.default_rng(seed)
    head = g.normal(size=(10, 64))
    head[9] = head[1]
    net = Network.from_weights([g.normal(size=(64, 20)), head])
    x = g.random((50, 20))
    y = np.argmax(net.forward(x), axis=1)
    mine = (y == 1) | (y == 9)
    return net, x[mine], y[mine]


@pytest.mark.parametrize("norm", [2, "inf"])
def test_equal_classes_are_never_certified(norm):
    seen = 0
    for seed in range(60):
        net, x, y = tied(seed)
        if len(x) == 0:
            continue
        seen += len(x)
        assert np.all(certified_radii(net, x, y, norm=norm) == 0.0)
        c = compare(net, x, y, delta=1e-3, norm=norm, methods=["recursion", "product"])
        assert c.clean_accuracy == 0.0
        assert c.row("recursion", "robust accuracy").value == 0.0
        assert not gate(c, Limits(min_certified_accuracy=0.01)).passed
    assert seen > 50


@pytest.mark.parametrize(
    "layers",
    [
        (Affine([[1e200], [1e-200]]), Affine([[1e-200, 1e200]])),  # f(x) = 2 x
        (Affine([[1e-200]]), Normalise([0.0], [1e200]), Affine([[1e300]])),
        (Affine([[1e-200]]), Normalise([0.0], [1e200])),
        (Normalise([0.0], [1e308]), Affine([[1e-10]])),
    ],
)
def test_folding_that_loses_an_entry_is_refused(layers):
    with pytest.raises(InputError, match=r"^layers"):
        Network(layers)


def test_tensors_beside_a_nested_state_dict_are_not_dropped(tmp_path):
    path = tmp_path / "c.pt"
    inner = {"0.weight": torch.eye(2), "2.weight": torch.eye(2)}
    torch.save({"model": inner, "4.weight": 100 * torch.eye(2), "4.bias": torch.ones(2)}, path)
    with pytest.raises(InputError, match=r"4\.weight"):
        load_model(None, path)
    torch.save({"model": inner, "epoch": 3}, path)
    assert len(load_model(None, path).chain.weights) == 2


def pair(net, x, x_adv, y, value, delta=1.0):
    return AttackPair(np.array(x), np.array(x_adv), np.array(y), delta, 2.0, value, net.digest)


def test_a_pair_claims_no_more_than_it_is_checked_for():
    constant = Network.from_weights([np.zeros((2, 1))])
    with pytest.raises(CertificateError, match="is claimed"):
        pair(constant, [[0.5]], [[0.5]], [0], TOLERANCE, delta=0.0).verify(constant)
    forged = replace(pair(constant, [[0.5]], [[0.5]], [0], TOLERANCE, delta=0.0), numerical="evaluated in float64")
    assert forged.verify(constant)
    assert forged.bound.value == 0.0
    huge = Network.from_weights([[[1e200]], [[1e200]], [[1e-200], [-1e-200]]])
    with pytest.raises(CertificateError, match="finite"):
        pair(huge, [[0.0]], [[1.0]], [1], 1e307).verify(huge)


def test_radii_of_overflowing_networks_are_refused_and_unbounded_ones_infinite():
    with pytest.raises(InputError, match=r"^model"):
        certified_radii([np.eye(2) * 1e200] * 2, [[0.5, 0.25], [0.25, 0.5]], [0, 0], norm="inf")
    constant = Network((Affine([[1.0]]), ReLU(), Affine([[0.0], [0.0]], [1.0, 0.0])))
    assert certified_radii(constant, [[0.5]], [0], norm=2)[0] == math.inf


def test_networks_with_one_chain_and_two_digests_have_two_cache_keys():
    a = Network.from_weights([EYE, EYE])
    b = Network((Affine(EYE, [0.0, 0.0]), ReLU(), Affine(EYE, [0.0, 0.0])))
    assert a.digest != b.digest
    one, other = (b"".join(x.tobytes() for x in network_arrays(n)) for n in (a, b))
    assert one != other


def test_csv_names_the_samples_as_the_caller_does(tmp_path):
    g = np.random.default_rng(0)
    w = [g.normal(size=(5, 4)), g.normal(size=(3, 5))]
    x = g.random((20, 4))
    y = np.arange(20) % 3
    r = compare_models(w, w, x, y, delta=0.01, norm=2, n_samples=4, seed=3, methods=["recursion"])
    with r.save_csv(tmp_path / "r.csv").open(encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    index = [int(row["sample"]) for row in rows]
    assert index == r.dense.problem.indices.tolist()
    assert index != list(range(4))
    assert [int(row["label"]) for row in rows] == y[index].tolist()
    np.testing.assert_array_equal(r.dense.problem.samples.x, x[index])


def test_nan_of_one_method_costs_its_row_only():
    net = Network((Affine([[1e200, 0], [0, 1e-200]]), ReLU(), Affine([[1e-200, 1e200], [0, 0]])))
    c = compare(net, [[0.5, 0.25]], [0], delta=0.1, norm=2, methods=["product", "patterns", "IBP"])
    assert c.row("IBP").status is Status.FAILED
    assert c.row("IBP").value == math.inf
    assert c.row("patterns").status is Status.OK


def test_a_tolerance_that_lets_everything_pass_is_refused():
    c = compare([EYE], [[0.9, 0.1]], [0], delta=0.1, norm=2, methods=["product"])
    base = certbound.Baseline.of(c)
    assert gate(c, None, base, tolerance=0.5).passed
    for tolerance in (1.0, 1e300, -0.1, math.nan):
        with pytest.raises(InputError, match=r"^tolerance"):
            gate(c, None, base, tolerance=tolerance)


def test_weights_cannot_be_changed_through_the_base():
    weight = Network.from_weights([EYE]).chain.weights[0]
    owner = weight if weight.base is None else weight.base
    assert not owner.flags.writeable


def test_layers_left_out_of_check_are_named_even_when_quiet(tmp_path, capsys):
    from certbound.cli import main

    model = tmp_path / "net.py"
    model.write_text(
        "from torch import nn\n"
        "def conv():\n"
        "    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))\n",
        encoding="utf-8",
    )
    assert main(["check", "--model", f"{model}:conv", "--quiet"]) == 0
    assert "Conv2d" in capsys.readouterr().err
