"""GUARANTEES.md names tests and functions that exist, and says of each call what its bounds say."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import numpy as np
import pytest

import certbound
from certbound.graph import Graph, Node
from certbound.ops import Conv, Input, MaxPool
from certbound.types import Rigor

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "GUARANTEES.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"(test_\w+\.py)(?:::(test_\w+))?", TEXT)))


@pytest.mark.parametrize(("file", "function"), NAMED, ids=["::".join(filter(None, n)) for n in NAMED])
def test_every_test_that_is_named_exists(file, function):
    tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
    names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert any(name.startswith("test_") for name in names)
    assert not function or function in names


def test_assumptions_are_guarded():
    assert len(NAMED) >= 12
    model = TEXT.split("## The floating-point model")[1].split("## ")[0]
    points = re.split(r"\n\d\. ", model)[1:]
    assert len(points) == 7
    # what Python documents of itself needs no test of ours; every other assumption names one
    assert all("test_" in p for p in points[:6])


def test_what_is_called_rigorous_of_graphs_is():
    claimed = TEXT.split("**Rigorous today:**")[1].split("**Numerical:**")[0]
    conv = Conv(np.random.default_rng(0).standard_normal((2, 1, 3, 3)), padding=((1, 1), (1, 1)))
    for side in ("upper", "lower"):
        assert f"operator_norm_{side}" in claimed
        bound = getattr(certbound, f"operator_norm_{side}")(conv, input_shape=(1, 4, 4))
        assert bound.rigor is Rigor.RIGOROUS
        assert bound.certificate.verify(conv)
    graph = Graph((Node(Input((1, 1, 4, 4))), Node(conv, (0,)), Node(MaxPool((2, 2), (2, 2), ()), (1,))))
    product = certbound.lipschitz_product(graph)
    assert product.bound.rigor is Rigor.RIGOROUS and product.certificate.verify(graph)
    local = certbound.lipschitz_local(graph, certbound.Ball(np.zeros(16), 0.1, 2))
    assert local.bound.rigor is Rigor.RIGOROUS and local.certificate is None
    assert "of graphs" in claimed and "`lipschitz_local` (without a certificate)" in claimed


def test_what_is_called_rigorous_is():
    claimed = TEXT.split("**Rigorous today:**")[1].split("**Numerical:**")[0]
    W = np.random.default_rng(0).standard_normal((3, 3))
    for kind in ("spectral", "inf", "one", "frobenius"):
        assert f"{kind}_norm_*" in claimed
        for side in ("upper", "lower"):
            assert getattr(certbound, f"{kind}_norm_{side}")(W, rigor="rigorous").rigor is Rigor.RIGOROUS
            assert getattr(certbound, f"{kind}_norm_{side}")(W).rigor is Rigor.NUMERICAL
    report31 = certbound.check_theorem31(W, rigor="rigorous")
    report32 = certbound.check_theorem32([W, W], rigor="rigorous")
    parts = (report31.spectral, report31.neuron)
    bounds = [getattr(part, name) for part in parts for name in ("bound", "sharp", "lower")]
    bounds += [getattr(report32, name) for name in ("product", "cover", "printed", "derived", "sharp")]
    results = [
        certbound.lipschitz_alignment([W, W], rigor="rigorous"),
        certbound.lipschitz_product([W, W]),
        certbound.lipschitz_sdp([W, W], method="closed-form"),
        certbound.lipschitz_sdp([W, W], method="cvxpy"),
        certbound.lipschitz_sampled([W, W]),
    ]
    bounds += [r.bound for r in results]
    assert {b.rigor for b in bounds} == {Rigor.RIGOROUS}
    assert all(r.certificate.verify([W, W]) for r in results)
    for name in ("check_theorem31", "check_theorem32", "lipschitz_alignment", "lipschitz_product", "lipschitz_sdp",
                 "lipschitz_sampled"):  # fmt: skip
        assert name in claimed


def test_what_is_called_numerical_is():
    claimed = TEXT.split("**Numerical:**")[1].split("\n\n")[0]
    W = [np.eye(2), np.eye(2)]
    x, y = np.full((2, 2), 0.5), np.array([0, 1])
    assert "CROWN" in claimed and "compare" in claimed
    assert "numerical" in str(certbound.margins(W, x, y, delta=0.1, norm="inf", method="CROWN"))
    comparison = certbound.compare(W, x, y, delta=0.1, norm="inf", methods=["apgd-ce", "CROWN", "recursion"])
    assert {row.rigor for row in comparison.rows if row.method in ("CROWN", "recursion")} == {Rigor.NUMERICAL}
    assert "rounding is not accounted for" in str(comparison) and "CROWN" in str(comparison).split("rounding")[1]
    assert certbound.lipschitz_patterns(W).bound.rigor is Rigor.NUMERICAL
