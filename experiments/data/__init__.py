"""The data sets and pre-trained models of the studies: real data, from packages or from local files, never fetched.

:func:`load` gives arrays; :func:`image_dataset` gives the sets that are too large for that, as a torch ``Dataset``.
"""

from __future__ import annotations

from typing import Final

from experiments.data.arrays import STREAMS, load
from experiments.data.clip import Clip, clip_model
from experiments.data.images import Images
from experiments.data.streams import image_dataset, image_subset, labelled_subset

NAMES: Final[tuple[str, ...]] = (
    "digits", "mnist5k", "mnist", "cifar10", "cifar100", "svhn", "imagenet", "flickr30k",
)  # fmt: skip
"""All data sets: the first two come inside packages, the others from a local folder; the last two are streams."""

__all__ = [
    "NAMES", "STREAMS", "Clip", "Images", "clip_model", "image_dataset", "image_subset", "labelled_subset", "load",
]  # fmt: skip
