"""What decides one model of a study: data, architecture, training, what is done to it afterwards, how it is measured.

A configuration holds plain values only; together with a seed it decides every number of its cell.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from types import UnionType
from typing import Any, Final, Literal, Union, get_args, get_origin, get_type_hints

from certbound.compress import PGD, Training, UniversalTraining
from certbound.errors import InputError

FORMAT: Final = 1
"""Raise it when the meaning of a configuration or of a measure changes: every stored row is then stale."""

INF: Final = math.inf

Kind = Literal["epsilon-rows", "epsilon-spectral", "matched-rows", "matched-ranks", "unstructured"]
"""What can be done to a trained model. ``matched-…`` with ε prunes uniformly to the number of parameters (rows) or the
sum of ranks that ε-pruning by ε leaves."""


@dataclass(frozen=True)
class Transform:
    """Pruning of the trained weights. ``amount``: ε, or the share removed."""

    kind: Kind
    amount: float


@dataclass(frozen=True)
class Transfer:
    """Train on ``source`` classes first; then freeze the encoder and train a linear head on the configuration's own."""

    source: tuple[int, ...]
    data: str | None = None
    epochs: int = 20
    lr: float = 0.1


@dataclass(frozen=True)
class Measure:
    """How a model is measured.

    Parameters
    ----------
    deltas_2, deltas_inf : radii of the attacks, ascending; ``headline_…``: those at which bounds are computed.
    n_attack, n_bounds : test samples (the first ones of the shuffled test set).
    attack, steps, restarts : of ``certbound.attack``; ``"worst"`` runs every loss of AutoPGD, those that do not feel
        the scale of the logits too.
    methods : of ``certbound.compare``; none computes no bound.
    effort : of the SDP row, see ``compare``. time_limit : seconds of ``compare`` (paper scale; a cell with a limit is
        no pure function of its configuration, so there is none at cpu scale).
    universal : a universal perturbation is searched on training samples and evaluated on test samples, at
        ``universal_factor`` times the headline radius.
    pictures : points of the representation and the spectrum of the attacks are kept.
    checks : attack checks: Square, transfer from a second model, twice the steps.
    """

    deltas_2: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0)
    deltas_inf: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2)
    headline_2: float = 0.5
    headline_inf: float = 0.05
    n_attack: int = 360
    n_bounds: int = 100
    attack: str = "apgd-ce"
    steps: int = 100
    restarts: int = 1
    methods: tuple[str, ...] = ("printed", "derived", "sharp", "product", "cover", "recursion", "sdp", "IBP", "CROWN")
    effort: float = 0.02
    time_limit: float | None = None
    universal: bool = False
    universal_factor: float = 3.0
    pictures: bool = False
    checks: bool = False


ArchitectureKind = Literal[
    "cnn", "vgg", "resnet", "wide-resnet", "vit", "windowed",
    "resnet18", "vgg16", "wrn-101-2", "vit-b-16", "swin-t", "clip-vit-b-32",
]  # fmt: skip
"""Small networks of ``experiments.architectures``; then those of torchvision, and CLIP of open_clip."""


@dataclass(frozen=True)
class Architecture:
    """A network that is no chain of dense layers.

    Parameters
    ----------
    kind : see :mod:`experiments.architectures`.
    width, depth : of the small networks: channels of the first stage (or the tokens' dimension), blocks (of a stage).
    pretrained : the weights come from ``ROOT/weights/KIND.safetensors`` (or ``.pt``, ``.pth``); CLIP's always come from
        ``ROOT/clip``. A head for another number of classes is drawn anew.
    resize : images are scaled to this many pixels inside the network; perturbations stay in the data set's own size.
    """

    kind: ArchitectureKind
    width: int = 8
    depth: int = 1
    pretrained: bool = False
    resize: int | None = None


@dataclass(frozen=True)
class Config:
    """One model: see the parts.

    Parameters
    ----------
    classes : only these are kept (relabelled 0, 1, …). n_train : training samples; None for all.
    hidden, rank, bias : the ReLU network; ``rank`` of every layer but the head, None for dense layers.
    random_factor : with ``rank``: the inner factor of each layer is a random projection that is not trained.
    init_scale : factor of the encoder's initial weights (with ``training.frobenius`` their norm stays there).
    architecture : another network than the ReLU one, whose settings then mean nothing.
    backbone : a training that comes first: ``training`` starts from its weights (fine-tuning).
    fixed_head : the last ``nn.Linear`` is not trained (after the backbone), as in zero-shot models.
    n_test : test samples; None for all.

    The last four came later: at their defaults they are in no dictionary and no digest, so that rows that were stored
    before keep their names.
    """

    data: str = "digits"
    classes: tuple[int, ...] | None = None
    n_train: int | None = None
    hidden: tuple[int, ...] = (64, 64)
    rank: int | None = None
    bias: bool = True
    random_factor: bool = False
    init_scale: float = 1.0
    training: Training = field(default_factory=Training)
    transform: Transform | None = None
    transfer: Transfer | None = None
    measure: Measure = field(default_factory=Measure)
    architecture: Architecture | None = None
    backbone: Training | None = None
    fixed_head: bool = False
    n_test: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; :meth:`from_dict` gives the same configuration back."""
        data: dict[str, Any] = _plain(self)
        return {name: value for name, value in data.items() if name not in _LATER or value != _LATER[name]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Config:
        """The configuration of a stored row. Raises InputError for fields that there are none."""
        made = _build(cls, data, "config")
        assert isinstance(made, cls)
        return made

    def key(self, seed: int) -> str:
        """Digest of configuration and seed: the name of the cell.

        >>> Config().key(0) == Config().key(0) != Config().key(1)
        True
        """
        content = {"format": FORMAT, "config": self.to_dict(), "seed": seed}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]

    def trained(self, **changes: Any) -> Config:
        """The same with changes of the training: ``config.trained(epochs=5)``."""
        return replace(self, training=replace(self.training, **changes))

    def measured(self, **changes: Any) -> Config:
        """The same with changes of the measurement."""
        return replace(self, measure=replace(self.measure, **changes))

    def smoke(self) -> Config:
        """The same in seconds: one epoch (of at most eight steps), few samples, few attack steps."""
        m = self.measure
        small = replace(
            self,
            training=_shortened(self.training),
            backbone=None if self.backbone is None else _shortened(self.backbone),
            measure=replace(m, n_attack=20, n_bounds=10, steps=5, restarts=1, effort=0.0),
        )
        return small if small.transfer is None else replace(small, transfer=replace(small.transfer, epochs=1))

    def one_step(self) -> Config:
        """The same for one step of training: the smoke run of the paper scale.

        A large architecture is trained on one batch of two and attacked with one loss at one radius: a step of
        WRN-101-2 takes as long as a whole study of dense networks.
        """
        small = self.smoke()
        limited = replace(small.measure, n_attack=4, n_bounds=2, steps=2)
        training = replace(small.training, max_steps=1)
        if self.architecture is None:
            return replace(small, training=training, measure=limited)
        limited = replace(
            limited, attack="apgd-ce", n_attack=2, n_bounds=1, deltas_2=(limited.headline_2,),
            deltas_inf=(limited.headline_inf,),
        )  # fmt: skip
        if self.data == "imagenet":  # CLIP's head is made of as many texts as there are classes
            small = replace(small, classes=tuple(range(4)), n_train=4, n_test=4)
        return replace(small, training=replace(training, batch_size=2), measure=limited)


_LATER: Final = {"architecture": None, "backbone": None, "fixed_head": False, "n_test": None}
"""Fields that are younger than the first stored rows, with their defaults."""


def _shortened(training: Training) -> Training:
    return replace(training, epochs=1, max_steps=8)


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    if isinstance(value, float) and math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return value


def _build(kind: Any, value: Any, where: str) -> Any:
    """``value`` of JSON as the annotated type: dataclasses, tuples, optional values, ``"inf"``."""
    if get_origin(kind) in (Union, UnionType):
        if value is None:
            return None
        return _build(next(a for a in get_args(kind) if a is not type(None)), value, where)
    if is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, Mapping):
            raise InputError(where, got=repr(value), needed="a mapping of fields", fix="see Config.to_dict")
        hints = get_type_hints(kind)
        unknown = sorted(set(value) - {f.name for f in dataclasses.fields(kind)})
        if unknown:
            raise InputError(where, got=f"unknown fields {unknown}", needed=str(sorted(hints)), fix="see Config")
        return kind(**{name: _build(hints[name], v, f"{where}.{name}") for name, v in value.items()})
    if get_origin(kind) is tuple:
        inner = get_args(kind)
        items = [inner[0]] * len(value) if inner[1:] == (Ellipsis,) else list(inner)
        return tuple(_build(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(items, value, strict=True)))
    if kind is float and value is not None:
        return float(value)
    return value


__all__ = [
    "FORMAT", "INF", "PGD", "Architecture", "ArchitectureKind", "Config", "Kind", "Measure", "Training", "Transfer",
    "Transform", "UniversalTraining",
]  # fmt: skip
