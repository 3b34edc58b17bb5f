"""One cell: load the data, train the model, change it, measure it. A pure function of configuration and seed."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from certbound.compress import pruning, truncation
from certbound.compress.factorised import linear_groups, relu_network
from certbound.compress.training import train
from certbound.compress.transfer import frozen_encoder
from certbound.errors import InputError
from certbound.io.torch_module import from_module
from experiments.config import Config, Measure, Transfer, Transform
from experiments.data import STREAMS, Images, image_subset, load
from experiments.measure import Model, Numbers, measure
from experiments.study import Cell

SECOND_MODEL = 1000
"""Added to the seed of the model whose adversarial points are tried on a cell's own."""


def run_cell(cell: Cell, *, device: str = "cpu", root: str | None = None) -> tuple[Numbers, dict[str, Any]]:
    """The numbers of a cell, and the lists for pictures."""
    return run_config(cell.point.config, cell.seed, device=device, root=root)


def run_config(
    config: Config, seed: int, *, device: str = "cpu", root: str | None = None
) -> tuple[Numbers, dict[str, Any]]:
    """Train and measure one configuration.

    Raises
    ------
    InputError : data that are missing, settings that do not fit. LadderError : a bound on the wrong side.
    """
    images = task(config, seed, root)
    module, history = trained(config, images, seed, device, root)
    second = None
    if config.measure.checks:
        second = trained(config, images, seed + SECOND_MODEL, device, root)[0]
    if config.architecture is None:
        second = None if second is None else from_module(second)
        model = Model(module, from_module(module), images, seed, device, second)
    else:
        model = Model(module.to(device), None, images, seed, device, second)
    numbers, details = measure(model, config.measure)
    numbers["steps"] = float(history["steps"])
    # the seconds are no measure: they are no function of the configuration
    return numbers, {**details, "train_seconds": float(history["seconds"]), "data": images.digest}


def task(config: Config, seed: int, root: str | None) -> Images:
    """The data that the model is measured on."""
    if config.data in STREAMS:
        return image_subset(
            config.data, root, seed=seed, n_train=config.n_train, n_test=config.n_test, classes=config.classes
        )
    images = load(config.data, seed=seed, root=root)
    if config.classes is not None:
        images = images.restricted(config.classes)
    whole = config.n_train is None and config.n_test is None
    return images if whole else images.first(config.n_train, config.n_test)


def trained(config: Config, images: Images, seed: int, device: str, root: str | None) -> tuple[Any, dict[str, Any]]:
    """The module in eval mode on the CPU, after training, transfer and pruning."""
    if config.transfer is None:
        module = _network(config, images, seed, root, device)
        if config.backbone is not None:
            module.load_state_dict(_backbone(config, images, seed, device, root))
        if config.fixed_head:
            _freeze_head(module)
        history = _fit(module, config, images, seed, device)
    else:
        module, history = _transferred(config, config.transfer, images, seed, device, root)
    if config.transform is not None:
        module = transformed(module, config.transform)
    return module.cpu().eval().requires_grad_(False), history


def _network(config: Config, images: Images, seed: int, root: str | None = None, device: str = "cpu") -> Any:
    import torch

    if config.architecture is not None:
        from experiments.architectures import build

        return build(
            config.architecture, images.shape, images.classes, seed, data=config.data, root=root, device=device
        )
    n_classes = int(images.n_classes)
    outputs = n_classes
    generator = torch.Generator().manual_seed(seed)
    widths = (images.x_train.shape[1], *config.hidden, outputs)
    module = relu_network(widths, rank=config.rank, bias=config.bias, generator=generator)
    if config.random_factor:
        _freeze_inner_factors(module, generator)
    if config.init_scale != 1.0:
        module = truncation.scale_weights(module, config.init_scale)
    return module


def _freeze_head(module: Any) -> None:
    import torch

    [m for m in module.modules() if isinstance(m, torch.nn.Linear)][-1].requires_grad_(False)


def _freeze_inner_factors(module: Any, generator: Any) -> None:
    """Control: W = A B with B a random projection, so that the rank is low but no direction was chosen by learning."""
    import torch

    for group in linear_groups(module)[:-1]:
        inner = group[0].weight
        q, _ = torch.linalg.qr(torch.randn(inner.shape[1], inner.shape[0], generator=generator))
        with torch.no_grad():
            inner.copy_(q.T)
        inner.requires_grad_(False)


def _fit(module: Any, config: Config, images: Images, seed: int, device: str) -> dict[str, Any]:
    x = images.x_train if config.architecture is None else images.as_images()[0]
    history = train(module, x, images.y_train, config.training, seed=seed, device=device)
    return {"steps": history.steps, "seconds": history.seconds}


def _backbone(config: Config, images: Images, seed: int, device: str, root: str | None) -> dict[str, Any]:
    """The weights that fine-tuning starts from: those of the same network after the training ``config.backbone``."""
    assert config.backbone is not None
    plain = replace(
        config, training=config.backbone, backbone=None, fixed_head=False, transform=None, measure=Measure()
    )
    return _pretrained(plain, _Data(images.digest, images), seed, device, root)


@dataclass(frozen=True)
class _Data:
    """Data that are equal if their digests are."""

    digest: str
    images: Images = field(compare=False)


@lru_cache(maxsize=2)  # every λ of a seed starts here; the second one is that of the attack checks
def _pretrained(config: Config, data: _Data, seed: int, device: str, root: str | None) -> dict[str, Any]:
    return trained(config, data.images, seed, device, root)[0].state_dict()


def _transferred(
    config: Config, transfer: Transfer, images: Images, seed: int, device: str, root: str | None
) -> tuple[Any, dict[str, Any]]:
    """An encoder trained on the source classes, frozen; a new linear head trained on the task."""
    source = load(transfer.data or config.data, seed=seed, root=root).restricted(transfer.source)
    module = _network(config, source, seed, root, device)
    first = _fit(module, config, source, seed, device)
    module = frozen_encoder(module, images.n_classes, seed=seed)
    plain = replace(
        config.training, penalties=(), frobenius=False, adversarial=None, universal=None, weight_decay=0.0,
        epochs=transfer.epochs, lr=transfer.lr,
    )  # fmt: skip
    second = _fit(module, replace(config, training=plain), images, seed, device)
    return module, {name: first[name] + second[name] for name in first}


def _equal_ranks(module: Any, amount: float) -> Any:
    """Uniform spectral pruning with the sum of ranks nearest to that of ε-pruning; the smaller of two.

    Parameters would not do: a layer of high rank has more of them as two factors than as one matrix, and ε-pruning to
    rank 40 of 64 counts as no pruning at all.
    """
    layers = pruning.spectral_prune(module, amount).layers
    wanted, largest = sum(layer.kept for layer in layers), max(layer.total for layer in layers)

    def left(removed: int) -> int:  # as uniform_prune counts
        return sum(max(1, layer.total - round(removed / largest * layer.total)) for layer in layers)

    removed = min(range(largest), key=lambda r: (abs(left(r) - wanted), left(r)))
    return pruning.uniform_prune(module, removed / largest, kind="spectral").model


def transformed(module: Any, transform: Transform) -> Any:
    """The module after pruning; the given one is not changed."""
    kind, amount = transform.kind, transform.amount
    if kind == "epsilon-rows":
        return pruning.epsilon_prune(module, amount).model
    if kind == "epsilon-spectral":
        return pruning.spectral_prune(module, amount).model
    if kind == "matched-rows":
        wanted = pruning.epsilon_prune(module, amount)
        ratio = pruning.ratio_for_size(module, wanted.kept_parameters, kind="rows")
        return pruning.uniform_prune(module, ratio, kind="rows").model
    if kind == "matched-ranks":
        return _equal_ranks(module, amount)
    if kind == "unstructured":
        return pruning.uniform_prune(module, amount, kind="unstructured").model
    raise InputError("transform", got=repr(kind), needed="a kind of experiments.config.Kind", fix="see Transform")


__all__ = ["run_cell", "run_config", "task", "trained", "transformed"]
