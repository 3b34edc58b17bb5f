"""docs/real_models.md and docs/resnet18.md say what the stored numbers say, and cheap parts of these come out again."""

from __future__ import annotations

import csv
import importlib.util
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from certbound.graph import as_graph
from certbound.ops import Conv
from certbound.theorems.layer_rows import Settings, conv_row, linear_row
from certbound.types import Rigor

DOCS = Path(__file__).parents[1] / "docs"
spec = importlib.util.spec_from_file_location("real_models", DOCS / "real_models.py")
docs = importlib.util.module_from_spec(spec)
sys.modules["real_models"] = docs  # dataclasses look their module up
spec.loader.exec_module(docs)


def stored(name):
    return json.loads((DOCS / "layers" / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize(("page", "numbers", "write"), docs.PAGES, ids=lambda v: getattr(v, "__name__", v))
def test_pages_are_what_the_numbers_render_to(page, numbers, write):
    assert (DOCS / page).read_text(encoding="utf-8") == write(stored(numbers))


def test_all_six_models_are_there_and_covered():
    models = stored("models.json")
    assert list(models) == list(docs.MODELS)
    for name, m in models.items():
        assert m["coverage"]["share"] >= 0.999 and m["initialised_randomly"] is True
        with (DOCS / "layers" / f"{name}.csv").open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 2 * m["linear"] + 4 * m["conv"] + m["additive"]


def test_attention_has_its_reason_and_the_others_have_bounds():
    for name, m in stored("models.json").items():
        for part in m["network"].values():
            assert (part["bound"] is None) == (name in ("vit", "swin", "clip")) == bool(part["reason"])


def test_bars_of_the_issue():
    m = stored("models.json")["resnet18"]
    assert m["cpu"] / 2 < 60 and m["peak"] < 2.0  # two cores


def test_a_lower_bound_of_epsilon_is_never_rounded_up():
    assert docs.epsilon({"epsilon": 0.9999999, "exact": False}) == ">= 0.99999"
    assert docs.epsilon({"epsilon": 0.25, "exact": True}) == "0.25"


def test_filters_are_said_to_bound_nothing_and_do_not():
    """On the trained net the theorem on kernel matrices falls below true norms; on the operators it never does."""
    rows = [r for r in stored("cifar.json")["rows"] if r["filters"]]
    assert sum(r["filters"]["spectral"]["bound"] < r["norm_2"][0] for r in rows) > len(rows) / 2
    assert all(r["spectral"]["bound"] >= r["norm_2"][0] and r["neuron"]["bound"] >= r["norm_inf"] for r in rows)


@pytest.mark.parametrize("norm", ["2", "inf"])
def test_the_attack_stays_below_what_the_product_allows(norm):
    data = stored("cifar.json")
    found = data["attacks"][norm]
    assert 0 < found["gap"] <= docs.allowed_gap(data["network"][norm]["bound"], found["delta"], norm)
    assert found["robust"] <= found["clean"]


def test_the_gap_that_a_constant_allows():
    # two logits ±L x: a perturbation δ changes the margin by 2 L δ in ℓ∞, by √2 L' δ with L' = √2 L in ℓ2
    assert math.isclose(docs.allowed_gap(3.0, 0.5, "inf"), 3.0)
    assert math.isclose(docs.allowed_gap(3.0, 0.5, "2"), 1.5 * math.sqrt(2))


def test_numbers_of_small_layers_come_out_again():
    """The stem, a shortcut and the head of the trained net, from the weights."""
    rows = {r["name"]: r for r in stored("cifar.json")["rows"]}
    graph = as_graph(docs.cifar_resnet(), input_shape=(3, 32, 32))
    settings = Settings("fast", Rigor.NUMERICAL, "mean", 0.1)
    seen = 0
    for node in graph.nodes:
        if node.name not in ("conv1", "layer2.0.shortcut.0", "linear"):
            continue
        shape = graph.shapes[node.inputs[0]][1:]
        make = conv_row if isinstance(node.op, Conv) else linear_row
        again, old = make(node.op, (), node.name, shape, settings).operator, rows[node.name]
        assert np.allclose(again.norm_2, old["norm_2"], rtol=1e-2) and math.isclose(again.norm_inf[1], old["norm_inf"])
        assert math.isclose(again.neuron.bound, old["neuron"]["bound"], rel_tol=1e-9)
        assert again.norm_2[0] <= old["norm_2"][1] * (1 + 1e-9) and old["norm_2"][0] <= again.norm_2[1] * (1 + 1e-9)
        seen += 1
    assert seen == 3


def test_images_are_the_twenty_of_foolbox():
    x, y = docs.cifar_images()
    assert x.shape == (20, 3, 32, 32) and 0.0 <= x.min() < x.max() <= 1.0
    assert y[:4].tolist() == [3, 8, 8, 0]  # the names of the files end in the label
    with torch.no_grad():
        predicted = docs.cifar_resnet()(torch.tensor(x, dtype=torch.float32)).argmax(1).numpy()
    assert np.mean(predicted == y) == stored("cifar.json")["attacks"]["2"]["clean"]
