"""The layer report: rows, readings, coverage, alignment, the network's bound, printing, files, the command."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from cli_runs import run
from torch import nn

from certbound.activations import Activation
from certbound.errors import InputError, LadderError
from certbound.graph import Graph, Node, as_graph
from certbound.lipschitz.graph_product import graph_product
from certbound.ops import Add, Conv, Input, Linear, Pointwise, Scale, Shift
from certbound.report.layer_plots import plot_layers
from certbound.theorems import layer_report as module
from certbound.theorems.layer_report import ADDITIVE, ELEMENTWISE, UNREAD, layer_report
from certbound.types import Rigor

RELU = Activation("relu")


def chain(*ops, shape):
    """A graph in which every operation reads the one before."""
    nodes = [Node(Input((1, *shape)))]
    nodes += [Node(op, (i,), f"layer{i}") for i, op in enumerate(ops)]
    return Graph(tuple(nodes))


@pytest.fixture(scope="module")
def small():
    """Conv, BatchNorm, ReLU, conv, pooling, two Linear with a ReLU between: one of everything."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3), nn.ReLU(),
        nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5), nn.ReLU(),
        nn.Linear(5, 2),
    ).eval()  # fmt: skip
    with torch.no_grad():
        net[1].running_var.copy_(torch.tensor([0.5, 2.0, 1.0]))
        net[1].weight.copy_(torch.tensor([2.0, -3.0, 0.5]))
    return net


@pytest.fixture(scope="module")
def report(small):
    return layer_report(small, input_shape=(2, 6, 6))


def operator(conv, shape):
    """By the op's own forward."""
    return np.stack([conv.apply(e.reshape(1, *shape)).ravel() for e in np.eye(math.prod(shape))], axis=1)


# -- rows -----------------------------------------------------------------------------------------------------------


def test_one_row_a_weight_in_order(report, small):
    weights = [n for n, p in small.named_parameters() if p.ndim >= 2]
    assert [row.parameters for row in report.rows] == [(n,) for n in weights]
    assert [row.name for row in report.rows] == ["0", "3", "6", "8"]
    assert [row.shape for row in report.rows] == [(3, 2, 3, 3), (4, 3, 3, 3), (5, 4), (2, 5)]
    assert [row.input_shape for row in report.rows] == [(2, 6, 6), (3, 6, 6), (4,), (5,)]
    assert [[r.name for r in row.readings] for row in report.rows] == [["filters", "operator"]] * 2 + [["matrix"]] * 2
    assert [[r.guaranteed for r in row.readings] for row in report.rows] == [[False, True]] * 2 + [[True]] * 2


def test_numbers_of_every_row_against_dense_matrices(report, small):
    convs = {"0": ((1, 1), (2, 6, 6)), "3": ((2, 2), (3, 6, 6))}
    for row in report.rows:
        weight = small.get_parameter(row.parameters[0]).detach().double().numpy()
        matrices = {"matrix": weight, "filters": weight.reshape(len(weight), -1)}
        if row.name in convs:
            stride, shape = convs[row.name]
            matrices["operator"] = operator(Conv(weight, None, stride, ((1, 1), (1, 1))), shape)
        for reading in row.readings:
            A = matrices[reading.name]
            two, inf = np.linalg.norm(A, 2), np.abs(A).sum(axis=1).max()
            assert reading.shape == A.shape
            assert reading.norm_2[0] * (1 - 1e-9) <= two <= reading.norm_2[1] * (1 + 1e-9)
            assert math.isclose(reading.norm_inf[1], inf, rel_tol=1e-9)
            assert math.isclose(reading.frobenius, np.linalg.norm(A), rel_tol=1e-9)
            assert min(reading.spectral.bound / two, reading.neuron.bound / inf) >= 1 - 1e-12
            assert max(reading.spectral.lower / two, reading.neuron.lower / inf) <= 1 + 1e-12


def test_batchnorm_behind_a_convolution_is_one_map_with_it(report, small):
    factors = (small[1].weight / (small[1].running_var + small[1].eps).sqrt()).detach().double().numpy()
    weight = small[0].weight.detach().double().numpy() * factors[:, None, None, None]
    A = operator(Conv(weight, None, (1, 1), ((1, 1), (1, 1))), (2, 6, 6))
    two, inf = report.rows[0].with_batchnorm
    assert np.linalg.norm(A, 2) * (1 - 1e-6) <= two <= np.linalg.norm(A, 2) * 1.02
    assert math.isclose(inf, np.abs(A).sum(axis=1).max(), rel_tol=1e-6)
    assert report.rows[0].operator.norm_2[1] < two and report.rows[1].with_batchnorm is None


def test_alignment_where_it_is_defined(report):
    conv, other, first, second = (row.alignment for row in report.rows)
    assert conv.two is None and "convolution" in conv.note and other.two is None
    assert first.two is None and "not defined: reads a Reshape" in first.note
    assert 0 < second.two <= 1 and 0 < second.inf <= 1 and second.note == "with 6, enumerated"


def test_alignment_of_the_absolute_value():
    # |x| = (1 1) relu((1; −1) x): the maximum over patterns is 1, the products of norms are √2 √2 and 2 · 1
    report = layer_report(chain(Linear([[1.0], [-1.0]]), Pointwise(RELU), Linear([[1.0, 1.0]]), shape=(1,)))
    aligned = report.rows[1].alignment
    assert math.isclose(aligned.two, 0.5) and math.isclose(aligned.inf, 0.5)
    between = layer_report(chain(Linear([[1.0]]), Pointwise(Activation("gelu")), Linear([[1.0]]), shape=(1,)))
    assert between.rows[1].alignment.note == "not defined: reads a gelu, not a ReLU after a Linear"
    alone = layer_report(chain(Pointwise(RELU), Linear([[1.0]]), shape=(1,)))
    assert alone.rows[0].alignment.note == "not defined: the ReLU before it reads an Input, not a Linear"


def test_alignment_stops_at_its_size(monkeypatch):
    monkeypatch.setattr(module, "ALIGNMENT_SIZE", 7)
    report = layer_report(chain(Linear(np.eye(2)), Pointwise(RELU), Linear(np.eye(2)), shape=(2,)))
    assert report.rows[1].alignment.two is None and "not computed" in report.rows[1].alignment.note


def test_a_linear_on_tokens_is_the_operator_on_each():
    report = layer_report(chain(Linear([[0.0, 2.0], [3.0, 0.0]]), shape=(5, 2)))
    (row,) = report.rows
    assert row.kind == "linear on 5 vectors" and row.output_shape == (5, 2)
    assert math.isclose(row.operator.norm_2[1], 3.0)


def test_what_is_added_or_multiplied_has_a_row_without_numbers():
    graph = chain(Shift(np.ones((2, 3))), Scale(np.full((2, 1), 2.0)), Linear(np.eye(3)), shape=(2, 3))
    report = layer_report(graph)
    assert [(row.kind, row.operator) for row in report.rows[:2]] == [(ADDITIVE, None), (ELEMENTWISE, None)]
    c = report.coverage
    assert (c.parameters, c.numbers, c.operators, c.additive, c.unread, c.share) == (3, 17, 9, 8, 0, 1.0)


def test_weights_that_the_forward_does_not_read_are_named_and_not_covered():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(2, 2), nn.Linear(2, 3)

        def forward(self, x):
            return self.used(x)

    report = layer_report(Half().eval(), input_shape=(2,))
    assert report.coverage.missing == ("unused.weight",) and report.coverage.share == 4 / 10
    assert (report.coverage.operators, report.coverage.unread) == (4, 6)
    assert report.rows[-1].kind == UNREAD and report.rows[-1].parameters == ("unused.weight",)
    assert "not read: unused.weight" in str(report)


def test_a_weight_used_twice_has_two_rows_and_is_counted_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def forward(self, x):
            return self.fc(torch.relu(self.fc(x)))

    report = layer_report(Twice().eval(), input_shape=(2,))
    assert [row.parameters for row in report.rows] == [("fc.weight",)] * 2
    assert report.coverage.operators == report.coverage.numbers == 4 and report.n_parameters == 6


def test_what_is_added_twice_has_one_row():
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.where, self.fc = nn.Parameter(torch.ones(2, 2)), nn.Linear(2, 2)

        def forward(self, x):
            return self.fc(torch.relu(x + self.where) + self.where)

    report = layer_report(Shifted().eval(), input_shape=(2, 2), network=False)
    assert [row.kind for row in report.rows] == [ADDITIVE, "linear on 2 vectors"]
    assert (report.coverage.additive, report.coverage.operators, report.coverage.share) == (4, 4, 1.0)


# -- the network ----------------------------------------------------------------------------------------------------


def test_network_bound_is_that_of_the_graph(report, small):
    graph = as_graph(small, input_shape=(2, 6, 6))
    for part in report.network:
        assert part.bound.value == graph_product(graph, part.norm).value
        assert part.bound.rigor is Rigor.RIGOROUS and part.bound.certificate.verify(small)
    assert report.subject == graph.digest


def test_attention_has_no_global_bound_and_the_reason_is_printed():
    torch.manual_seed(0)
    net = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, dropout=0.0).eval()
    report = layer_report(net, input_shape=(3, 4))
    for part in report.network:
        assert part.bound is None and "depend on the input" in part.reason
    assert "no bound: " in str(report)
    assert "self_attn.in_proj_weight" in {p for row in report.operator_rows for p in row.parameters}
    assert report.coverage.share == 1.0 and report.coverage.operators == report.coverage.numbers
    aligned = [row.alignment for row in report.rows if row.name.endswith("linear2")]
    assert aligned[0].two is not None


def test_the_bound_of_a_bare_convolution_may_come_from_the_one_with_batchnorm():
    """With even factors nothing is lost and nothing is computed twice; with uneven ones the bare layer is bounded."""
    torch.manual_seed(0)
    for factors in ([2.0, 2.0], [1.0, 50.0], [0.0, 1.0]):
        net = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1, bias=False), nn.BatchNorm2d(2, eps=1e-9)).eval()
        with torch.no_grad():
            net[1].weight.copy_(torch.tensor(factors))
        (row,) = layer_report(net, input_shape=(2, 5, 5)).rows
        A = operator(Conv(net[0].weight.detach().double().numpy(), None, (1, 1), ((1, 1), (1, 1))), (2, 5, 5))
        assert np.linalg.norm(A, 2) <= row.operator.norm_2[1] <= np.linalg.norm(A, 2) * 1.02


# -- words and files ------------------------------------------------------------------------------------------------


def test_what_is_said_of_the_weights_is_printed_as_such(small):
    said = layer_report(small, input_shape=(2, 6, 6), weights="random", network=False)
    assert said.initialised_randomly is True and "weights: as given by the caller: random initialisation" in str(said)
    told = layer_report(small, input_shape=(2, 6, 6), weights="pretrained", network=False)
    assert told.initialised_randomly is False and "as given by the caller: pretrained" in str(told)
    nothing = layer_report(small, input_shape=(2, 6, 6), network=False)
    assert nothing.initialised_randomly is None and "weights: nothing was said" in str(nothing)


def test_printed_table_cannot_be_mistaken(report):
    shown = str(report)
    assert shown.count("filters (no guarantee)") == 4
    assert "filters: NO guarantee for the layer" in shown and "operator: guaranteed" in shown
    assert ">= " in shown and "a lower bound of the tail ratio enters" in shown
    assert "covered 100.0000%" in shown


def test_json_and_csv_hold_every_number(report, tmp_path):
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert data["rows"][0]["filters"]["guaranteed"] is False
    assert data["rows"][0]["operator"]["spectral"]["bound"] == report.rows[0].operator.spectral.bound
    assert data["network"][0]["bound"]["value"] == report.network[0].bound.value
    with report.to_csv(tmp_path / "layers.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 4 + 2 * 2
    assert float(rows[2]["norm_upper"]) == report.rows[0].operator.norm_2[1] and rows[2]["guaranteed"] == "True"
    assert float(rows[2]["with_batchnorm"]) == report.rows[0].with_batchnorm[0] and rows[0]["with_batchnorm"] == ""
    assert float(rows[-1]["alignment"]) == report.rows[-1].alignment.inf


def test_picture(report, tmp_path):
    target = plot_layers(report, tmp_path / "new" / "layers.png", title="small")
    assert target.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    bare = layer_report(chain(Linear(np.zeros((2, 2))), shape=(2,)))
    assert plot_layers(bare, tmp_path / "zero.png").exists()


def test_picture_without_numbers_is_refused(report, tmp_path):
    from dataclasses import replace

    with pytest.raises(InputError, match="no row with numbers"):
        plot_layers(replace(report, rows=()), tmp_path / "x.png")


# -- options --------------------------------------------------------------------------------------------------------


def test_share_and_dispersion(small):
    tenth = layer_report(small, input_shape=(2, 6, 6), share=0.5, dispersion="mean", network=False)
    matrix = tenth.rows[2].operator
    assert (matrix.spectral.k, matrix.neuron.k) == (2, 3)
    one = layer_report(small, input_shape=(2, 6, 6), network=False).rows[2].operator
    assert one.spectral.k == 1
    # with the mean reading every k has the same bound
    assert math.isclose(matrix.spectral.bound, one.spectral.bound, rel_tol=1e-12)
    assert tenth.rows[0].operator.spectral.k == 1 and tenth.rows[0].operator.neuron.k == 54


def test_tight_tier_and_rigorous_matrices(small):
    report = layer_report(small, input_shape=(2, 6, 6), tier="tight", rigor="rigorous", network=False)
    for row in report.rows[:2]:
        low, high = row.operator.norm_2
        assert low <= high <= low * 1.01
    assert report.rows[2].operator.rigor is Rigor.RIGOROUS
    assert report.rows[2].operator.spectral.rigor is Rigor.RIGOROUS


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"tier": "quick"}, "tier"),
        ({"weights": "trained"}, "weights"),
        ({"share": 0.0}, "share"),
        ({"share": "x"}, "share"),
        ({"rigor": "heuristic"}, "rigor"),
        ({"dispersion": "median"}, "dispersion"),
        ({"input_shape": None}, "input_shape"),
    ],
)
def test_refusals(small, options, word):
    with pytest.raises(InputError, match=word):
        layer_report(small, **{"input_shape": (2, 6, 6), **options})


def test_a_model_without_weights_is_refused():
    with pytest.raises(InputError, match="without weights"):
        layer_report(chain(Pointwise(RELU), shape=(2,)))


def test_residual_blocks_are_read(small):
    ops = Node(Conv(np.ones((1, 1, 3)), padding=((1, 1),)), (0,), "conv")
    graph = Graph((Node(Input((1, 1, 4))), ops, Node(Pointwise(RELU), (1,)), Node(Add(), (0, 2))))
    report = layer_report(graph)
    # ‖I + relu∘A‖ <= 1 + ‖A‖, in ℓ∞ 1 + 3
    assert math.isclose(report.network[1].bound.value, 4.0, rel_tol=1e-9)


# -- the command ----------------------------------------------------------------------------------------------------

MODEL = """
from torch import nn

def make():
    return nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32, 2))
"""


def test_command(capsys, tmp_path):
    path = tmp_path / "net.py"
    path.write_text(MODEL)
    options = ["layers", "--model", f"{path}:make", "--input-shape", "1,4,4", "--said", "random", "--quiet"]
    code, out, _ = run(
        capsys, *options, "--json", "--plot", tmp_path / "p.png", "--csv", tmp_path / "l.csv", "--no-network"
    )
    data = json.loads(out)
    assert code == 0 and [row["name"] for row in data["rows"]] == ["0", "3"] and data["initialised_randomly"] is True
    assert data["network"] == [] and (tmp_path / "p.png").exists() and (tmp_path / "l.csv").exists()
    code, out, _ = run(capsys, *options, "--tier", "tight")
    assert code == 0 and "filters (no guarantee)" in out and "network, norm 2" in out


def test_command_refuses(capsys, tmp_path):
    path = tmp_path / "net.py"
    path.write_text(MODEL)
    code, _, err = run(capsys, "layers", "--model", f"{path}:make", "--input-shape", "1,4,4", "--tier", "quick")
    assert code == 2 and "tier" in err


def test_printed_bounds_are_rounded_outward(report):
    for row in report.operator_rows:
        parts = [part for reading in row.readings for part in (reading.spectral, reading.neuron)]
        for cells, part in zip(module._lines(row), parts, strict=True):
            bound, sharp, _, lower, _, joined = cells[9:]
            assert float(bound) >= part.bound and float(sharp) >= part.sharp and float(lower) <= part.lower
            if joined != "-":
                assert float(joined) >= row.with_batchnorm[0 if part.part == "spectral" else 1]


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("bound", 0.99, "the sharp bound .* exceeds the bound"),
        ("sharp", 0.5, "the norm .* exceeds the sharp bound"),
        ("lower", 1.5, "the lower bound .* exceeds the norm"),
    ],
)
@pytest.mark.parametrize("part", ["spectral", "neuron"])
@pytest.mark.parametrize("reading", ["filters", "operator"])
def test_a_broken_link_is_an_error(report, reading, part, field, value, words):
    row = next(row for row in report.operator_rows if row.filters is not None)
    module._check_ladder(row)
    numbers = getattr(getattr(row, reading), part)
    changed = replace(numbers, **{field: value * (numbers.sharp if field == "bound" else numbers.norm)})
    broken = replace(row, **{reading: replace(getattr(row, reading), **{part: changed})})
    with pytest.raises(LadderError, match=f"{reading}, {part}: {words}"):
        module._check_ladder(broken)


def test_the_ladder_of_every_row_is_checked(small, monkeypatch):
    seen = []
    monkeypatch.setattr(module, "_check_ladder", lambda row: seen.append(row.name))
    found = layer_report(small, input_shape=(2, 6, 6), network=False)
    assert seen == [row.name for row in found.operator_rows]
