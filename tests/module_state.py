"""Whether a function left the given module as it was."""

import torch


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_untouched(model, before):
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
