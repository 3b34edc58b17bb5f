"""certbound.compress.transfer: a frozen encoder below a new head."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from certbound.compress.adversarial import PGD, UniversalTraining
from certbound.compress.factorised import relu_network
from certbound.compress.training import accuracy, train
from certbound.compress.training_config import Training
from certbound.compress.transfer import frozen_encoder
from certbound.errors import InputError, UnsupportedLayerError
from certbound.network import as_network

RNG = np.random.default_rng(0)
X = RNG.random((60, 6)).astype(np.float32)
Y = np.arange(60) % 3


def _net(seed: int = 0, **options: Any) -> nn.Sequential:
    return relu_network((6, 8, 7, 4), generator=torch.Generator().manual_seed(seed), **options)


class Branches(nn.Module):
    """A module that is no nn.Sequential, with BatchNorm and Dropout in its encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(_net(), nn.BatchNorm1d(4), nn.Dropout(0.5))
        self.skip = relu_network((6, 4), generator=torch.Generator().manual_seed(1))
        self.fc = relu_network((4, 5), generator=torch.Generator().manual_seed(2))[0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.relu(self.body(x) + self.skip(x)))


def test_the_encoder_is_the_model_without_its_head() -> None:
    model = _net()
    before, state = copy.deepcopy(model), torch.random.get_rng_state()
    downstream = frozen_encoder(model, 3, seed=0)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not any(m.training for m in downstream[0].modules())
    x = torch.tensor(X)
    torch.testing.assert_close(downstream[0](x), before[:-1](x))
    torch.testing.assert_close(downstream(x), downstream[1](before[:-1](x)))
    # the given model is as it was, and shares nothing with the copy
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(v, before.state_dict()[k]) for k, v in model.state_dict().items())
    with torch.no_grad():
        downstream[0][0].weight.zero_()
    assert torch.equal(model[0].weight, before[0].weight)


def test_the_new_head_is_drawn_from_its_seed() -> None:
    model = relu_network((6, 400, 4), generator=torch.Generator().manual_seed(0))
    heads = [frozen_encoder(model, 50, seed=seed)[1] for seed in (1, 1, 2)]
    assert torch.equal(heads[0].weight, heads[1].weight) and not torch.equal(heads[0].weight, heads[2].weight)
    assert heads[0].weight.shape == (50, 400) and float(heads[0].bias.detach().abs().max()) == 0.0
    assert float(heads[0].weight.detach().std()) == pytest.approx(400**-0.5, rel=0.02)
    assert frozen_encoder(_net().double(), 3, seed=0)[1].weight.dtype == torch.float64


@pytest.mark.parametrize("options", [
    {}, {"weight_decay": 0.1}, {"adversarial": PGD(0.1, "inf")}, {"universal": UniversalTraining(0.1, 2)},
    {"validation": 0.2, "patience": 2},
])  # fmt: skip
@pytest.mark.parametrize("make", [_net, Branches])
def test_training_moves_only_the_head(make: Any, options: dict[str, Any]) -> None:
    downstream = frozen_encoder(make(), 3, seed=0)
    before = copy.deepcopy(downstream.state_dict())
    train(downstream, X, Y, Training(epochs=3, **options), seed=0)
    for name, value in downstream.state_dict().items():  # BatchNorm's statistics among them
        assert torch.equal(value, before[name]) == name.startswith("0."), name


def test_dropout_in_the_encoder_stays_off() -> None:
    downstream = frozen_encoder(Branches(), 3, seed=0)
    modes: list[bool] = []
    downstream[0].body[2].register_forward_hook(lambda m, *_: modes.append(m.training))
    head_modes: list[bool] = []
    downstream[1].register_forward_hook(lambda m, *_: head_modes.append(m.training))
    train(downstream, X, Y, Training(epochs=2), seed=0)
    assert modes and not any(modes) and any(head_modes)


def test_a_partly_frozen_model_trains_the_rest() -> None:
    model = Branches()
    model.skip.requires_grad_(False)
    model.body[1].requires_grad_(False)  # this BatchNorm keeps its statistics
    before = copy.deepcopy(model.state_dict())
    train(model, X, Y, Training(epochs=1), seed=0)
    still = {name for name, value in model.state_dict().items() if torch.equal(value, before[name])}
    assert still == {name for name in before if name.startswith(("skip.", "body.1."))}


def test_a_head_on_an_encoder_of_0_to_4_tells_5_to_9_apart() -> None:
    x, y = load_digits(return_X_y=True)
    x = x / 16.0
    source, target = y < 5, y >= 5
    model = relu_network((64, 32, 32, 5), generator=torch.Generator().manual_seed(0))
    train(model, x[source], y[source], Training(epochs=10), seed=0)
    downstream = frozen_encoder(model, 5, seed=0)
    x_target, y_target = x[target], y[target] - 5
    train(downstream, x_target[:500], y_target[:500], Training(epochs=20), seed=0)
    assert accuracy(downstream, x_target[500:], y_target[500:]) > 0.6  # 0.2 by chance


def test_the_result_is_read_by_the_importer() -> None:
    downstream = frozen_encoder(_net(), 3, seed=0)
    network = as_network(downstream)
    x = X[:5].astype(np.float64)
    with torch.no_grad():
        expected = downstream.double()(torch.tensor(x)).numpy()
    np.testing.assert_allclose(network.forward(x), expected, rtol=1e-9, atol=1e-12)


def test_what_follows_the_head_is_refused_unless_it_changes_nothing() -> None:
    with pytest.raises(UnsupportedLayerError, match="Softmax"):
        frozen_encoder(nn.Sequential(_net(), nn.LogSoftmax(dim=1)), 3, seed=0)
    assert frozen_encoder(nn.Sequential(_net(), nn.Dropout(0.1)), 3, seed=0)(torch.tensor(X)).shape == (60, 3)


@pytest.mark.parametrize(
    ("model", "options", "word"),
    [
        (nn.Linear(6, 4), {}, "head alone"), (nn.Sequential(nn.Flatten(), nn.Linear(6, 4)), {}, "head alone"),
        (nn.ReLU(), {}, r"no nn\.Linear"), ([[1.0]], {}, "model"), (_net(), {"n_classes": 1}, "n_classes"),
        (_net(), {"n_classes": 2.0}, "n_classes"), (_net(), {"n_classes": True}, "n_classes"),
        (_net(), {"seed": -1}, "seed"), (_net(), {"seed": None}, "seed"),
    ],
)  # fmt: skip
def test_bad_arguments_are_refused_by_name(model: Any, options: dict[str, Any], word: str) -> None:
    with pytest.raises(InputError, match=word):
        frozen_encoder(model, **{"n_classes": 3, "seed": 0, **options})


def test_penalties_of_a_frozen_encoder_are_refused() -> None:
    downstream = frozen_encoder(_net(), 3, seed=0)
    for options, word in (({"penalties": (("nuclear", 0.1),)}, "penalties"), ({"frobenius": True}, "frobenius")):
        with pytest.raises(InputError, match=f"{word}.*frozen"):
            train(downstream, X, Y, Training(**options), seed=0)  # type: ignore[arg-type]
