"""ImageNet and Flickr30k from local files, one image at a time, as torch data sets; some of ImageNet as arrays."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from certbound.demo.data import F32
from certbound.errors import InputError
from certbound.io.to_torch import import_torch
from experiments.data.images import Images
from experiments.data.local import Root, damaged, folder, import_datasets, missing

if TYPE_CHECKING:
    from torch.utils.data import Dataset, Subset
    from torchvision.datasets import Flickr30k

Transform = Callable[[Any], Any]

_CAPTIONS: Final = "results_20130124.token"
_KARPATHY: Final = "dataset_flickr30k.json"
_EXPECTED: Final = {
    "imagenet": ("train/CLASS/IMAGE", "val/CLASS/IMAGE", "meta.bin, if torchvision made one"),
    "flickr30k": ("flickr30k-images/IMAGE.jpg", _CAPTIONS, _KARPATHY),
}
_OBTAIN: Final = {
    "imagenet": "get ILSVRC2012 from https://image-net.org and sort its images into one folder a class, "
    "which torchvision.datasets.ImageNet(ROOT, split) does to the official archives",
    "flickr30k": "ask https://shannon.cs.illinois.edu/DenotationGraph/ for images and captions, and take "
    f"{_KARPATHY} from https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip",
}


def image_dataset(name: str, root: Root, *, train: bool, transform: Transform | None = None) -> Dataset[Any]:
    """A data set too large for arrays, as a torch ``Dataset``; images are RGB, and PIL images without ``transform``.

    "imagenet" gives (image, label), from ``root/train`` or ``root/val`` with one folder a class. The label is the
    place of the class folder in the sorted list, which is the usual label if all 1,000 are there
    (``len(dataset.classes)``). With ``root/meta.bin`` it is ``torchvision.datasets.ImageNet``, which knows the names
    of the classes, else ``ImageFolder``.

    "flickr30k" gives (image, list of its captions), a ``torchvision.datasets.Flickr30k`` of ``root/flickr30k-images``
    and ``root/results_20130124.token``. It has no official split: this is Karpathy's, from
    ``root/dataset_flickr30k.json``, whose 1,014 validation images are in neither part.

    Raises
    ------
    InputError : another name, no ``root``, files that are missing or cannot be read, class folders that differ
        between training and validation (labels would not agree). An image that is damaged or truncated raises it
        when it is read, with its path.
    MissingDependencyError : torchvision is not installed.
    """
    if name not in _EXPECTED:
        raise InputError(
            "name", got=repr(name), needed=f"one of {', '.join(_EXPECTED)}", fix="other sets are read by load(name, …)"
        )
    base = folder(name, root, _EXPECTED[name], _OBTAIN[name])
    return _imagenet(base, train, transform) if name == "imagenet" else _flickr30k(base, train, transform)


def read_image(path: str | Path) -> Any:
    """The image as RGB, all of it decoded. InputError names the file that is not there or damaged."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:  # what PIL raises for the damage it finds
        raise damaged(Path(path), f"no readable image ({error})", "a whole image file") from error


def _imagenet(root: Path, train: bool, transform: Transform | None) -> Dataset[Any]:
    part, other = (root / "train", root / "val") if train else (root / "val", root / "train")
    if not part.is_dir():
        raise missing("imagenet", [part], "this folder, with one folder of images a class", _OBTAIN["imagenet"])
    if other.is_dir():
        differ = sorted(_subfolders(part) ^ _subfolders(other))
        if differ:
            raise InputError(
                "root", got=f"{differ[0]} and {len(differ) - 1} more class folders in only one of {part} and {other}",
                needed="the same classes in both, since a label is the place of a folder", fix="complete both folders",
            )  # fmt: skip
    datasets = import_datasets("ImageNet")
    try:
        if (root / "meta.bin").is_file():
            return datasets.ImageNet(str(root), split=part.name, transform=transform, loader=read_image)
        return datasets.ImageFolder(str(part), transform=transform, loader=read_image)
    except Exception as error:  # torch's loader of meta.bin raises what it likes on damaged bytes
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise damaged(part, f"what torchvision cannot read ({reason})", "class folders with images") from error


def _subfolders(path: Path) -> set[str]:
    return {child.name for child in path.iterdir() if child.is_dir()}


def _flickr30k(root: Path, train: bool, transform: Transform | None) -> Flickr30k:
    images, captions, karpathy = root / "flickr30k-images", root / _CAPTIONS, root / _KARPATHY
    absent = [p for p in (images, captions, karpathy) if not p.exists()]
    if absent:
        raise missing("flickr30k", absent, "images, captions and Karpathy's split", _OBTAIN["flickr30k"])
    try:
        entries = json.loads(karpathy.read_text(encoding="utf-8"))["images"]
        wanted = {e["filename"] for e in entries if e["split"] == ("train" if train else "test")}
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(karpathy, f"another format ({error!r})", "images with filename and split") from error
    if not wanted:
        raise damaged(karpathy, f"no image of {'training' if train else 'test'}", "images of each split")
    datasets = import_datasets("Flickr30k")
    try:
        found = datasets.Flickr30k(str(images), str(captions), transform=transform, loader=read_image)
    except ValueError as error:
        raise damaged(captions, f"a line that is not IMAGE.jpg#N, tab, caption ({error})", "such lines only") from error
    found.ids = [image for image in found.ids if image in wanted]
    gone = [images / image for image in found.ids if not (images / image).is_file()]
    if gone:
        needed = f"all images of the captions ({len(gone)} are missing)"
        raise missing("flickr30k", gone[:3], needed, _OBTAIN["flickr30k"])
    if len(found.ids) < len(wanted):
        raise damaged(captions, f"captions of {len(found.ids)} of the {len(wanted)} images of the split", "all of them")
    return found


def labelled_subset(dataset: Any, n: int, seed: int) -> Subset[Any]:
    """``n`` samples, the classes as equal in number as the data set allows; a smaller subset begins a larger one.

    The data set is shuffled by ``seed``, and then the first sample of each class is taken, then the second one, …

    Parameters
    ----------
    dataset : with a label for each sample in ``dataset.targets``, as those of ``image_dataset("imagenet", …)``.
    n : from 1 to ``len(dataset)``.

    Raises
    ------
    InputError : a data set without labels, or more samples than it has.
    """
    torch = import_torch("subsets of data sets")
    if not hasattr(dataset, "targets"):
        raise InputError(
            "dataset", got=type(dataset).__name__, needed="labels in dataset.targets", fix="use torch.utils.data.Subset"
        )
    if not 1 <= n <= len(dataset):
        raise InputError("n", got=f"{n}", needed=f"1…{len(dataset)} samples", fix="lower n")
    order = np.random.default_rng(seed).permutation(len(dataset))
    labels = np.asarray(dataset.targets)[order]
    turn = np.empty(len(order), dtype=np.int64)  # how many of the same class come before it
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        turn[members] = np.arange(len(members))
    chosen = order[np.argsort(turn, kind="stable")][:n]
    return torch.utils.data.Subset(dataset, chosen.tolist())


def image_subset(
    name: str, root: Root, *, seed: int, n_train: int | None, n_test: int | None,
    classes: tuple[int, ...] | None = None,
) -> Images:  # fmt: skip
    """Some images of ImageNet as arrays: 224×224, the shorter side scaled to that (bicubic) and the middle cut out.

    The classes as equal in number as the data allow, see :func:`labelled_subset`; ``seed`` draws and orders them. Every
    number is a pixel divided by 255: 600 kB an image.

    Parameters
    ----------
    n_train, n_test : samples of ``train`` and of ``val``. classes : only these, relabelled 0, 1, …; None for all 1,000.

    Raises
    ------
    InputError : another data set, no numbers of samples, fewer than the 1,000 class folders (labels would mean other
        classes), a class that there is none, more samples than there are.
    """
    if name != "imagenet" or n_train is None or n_test is None:
        raise InputError(
            "data", got=f"{name!r} with n_train={n_train} and n_test={n_test}", needed="'imagenet' with both numbers",
            fix="all of it does not fit into memory: say how many",
        )  # fmt: skip
    x_train, y_train, kept = _chosen(root, True, n_train, seed, classes)
    x_test, y_test, _ = _chosen(root, False, n_test, seed, classes)
    return Images(x_train, y_train, x_test, y_test, (3, SIDE, SIDE), name, kept)


SIDE: Final = 224
"""Pixels of an image of ``image_subset``."""

_CLASSES: Final = 1000


def _chosen(
    root: Root, train: bool, n: int, seed: int, classes: tuple[int, ...] | None
) -> tuple[F32, Any, tuple[int, ...]]:
    from torchvision import transforms

    cut = transforms.Compose(
        [transforms.Resize(SIDE, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(SIDE)]
    )
    dataset: Any = image_dataset("imagenet", root, train=train, transform=cut)
    if len(dataset.classes) != _CLASSES:
        raise InputError(
            "root", got=f"{len(dataset.classes)} class folders", needed=f"all {_CLASSES} of ImageNet",
            fix="complete train and val: the place of a folder is the label",
        )  # fmt: skip
    kept = tuple(range(_CLASSES)) if classes is None else classes
    wrong = [c for c in kept if c not in range(_CLASSES)]
    if wrong:
        raise InputError("classes", got=str(wrong), needed=f"0…{_CLASSES - 1}", fix="leave them out")
    place = {c: i for i, c in enumerate(kept)}
    torch = import_torch("subsets of data sets")
    mine = np.flatnonzero(np.isin(dataset.targets, kept))
    part = torch.utils.data.Subset(dataset, mine.tolist())
    part.targets = [dataset.targets[i] for i in mine]
    subset = labelled_subset(part, n, seed)
    x = np.empty((n, 3 * SIDE * SIDE), dtype=np.float32)
    y = np.empty(n, dtype=np.int64)
    for row, i in enumerate(np.random.default_rng(seed).permutation(n)):
        image, label = subset[int(i)]
        x[row] = np.asarray(image, dtype=np.float32).transpose(2, 0, 1).reshape(-1) / 255.0
        y[row] = place[label]
    return x, y, kept
