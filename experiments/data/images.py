"""A training and a test set of images, as flat float32 arrays with the shape of an image beside them."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from certbound.demo.data import F32, Split
from certbound.errors import InputError


@dataclass(frozen=True, eq=False)
class Images(Split):
    """A :class:`Split` that knows the shape of its images.

    Parameters
    ----------
    x_train, x_test : float32, shape (samples, C·H·W), pixels in [0, 1].
    y_train, y_test : int64, shape (samples,), labels 0, 1, … below ``n_classes``.
    shape : (C, H, W).
    name : of the data set.
    classes : what the set calls its label 0, 1, …; by default 0 up to the largest label. Kept so that a subset
        without a sample of the last class still has as many classes as the whole.

    The arrays are read-only, as in ``Split``; their order is that of the seed they were loaded with.

    Raises
    ------
    InputError : arrays of another dtype or shape, pixels outside [0, 1] or NaN, labels outside ``classes``.

    >>> x, y = np.zeros((3, 4), dtype=np.float32), np.array([0, 2, 1])
    >>> images = Images(x, y, x, y, (1, 2, 2), "zeros")
    >>> images.n_classes, images.restricted((2, 0)).y_train.tolist(), images.as_images()[0].shape
    (3, [1, 0], (3, 1, 2, 2))
    """

    shape: tuple[int, int, int]
    name: str
    classes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.classes:
            largest = max(int(self.y_train.max()), int(self.y_test.max()))
            object.__setattr__(self, "classes", tuple(range(largest + 1)))
        for part, x, y in (("train", self.x_train, self.y_train), ("test", self.x_test, self.y_test)):
            if x.dtype != np.float32 or x.shape[1] != math.prod(self.shape):
                raise InputError(
                    f"x_{part}", got=f"{x.dtype} of shape {x.shape}", fix="flatten the images, divide by 255",
                    needed=f"float32 with {math.prod(self.shape)} pixels a sample, for images of shape {self.shape}",
                )  # fmt: skip
            low, high = float(x.min()), float(x.max())
            if not (low >= 0.0 and high <= 1.0):  # so written, NaN is refused too
                raise InputError(
                    f"x_{part}", got=f"pixels from {low:g} to {high:g}", needed="pixels in [0, 1]",
                    fix="divide by 255 and leave the normalisation to the model",
                )  # fmt: skip
            if y.dtype != np.int64 or y.min() < 0 or y.max() >= self.n_classes:
                raise InputError(
                    f"y_{part}", got=f"{y.dtype} labels from {y.min()} to {y.max()}",
                    needed=f"int64 labels 0…{self.n_classes - 1}", fix="number the classes from 0",
                )  # fmt: skip

    @property
    def n_classes(self) -> int:
        """The number of classes of the set, whether or not each has a sample here."""
        return len(self.classes)

    @cached_property
    def digest(self) -> str:
        """The first 16 hex digits of the SHA-256 of arrays, shape and classes: equal data, equal digest."""
        found = hashlib.sha256(repr((self.shape, self.classes)).encode())
        for array in (self.x_train, self.y_train, self.x_test, self.y_test):
            found.update(repr(array.shape).encode())
            found.update(np.ascontiguousarray(array).data)
        return found.hexdigest()[:16]

    def restricted(self, classes: tuple[int, ...]) -> Images:
        """The samples of these classes, in their old order; ``classes[i]`` gets the label i.

        Raises
        ------
        InputError : fewer than two classes, one named twice, one that the set does not have or has no training or no
            test sample of.
        """
        unknown = [c for c in classes if c not in range(self.n_classes)]
        if len(classes) < 2 or len(set(classes)) < len(classes) or unknown:
            raise InputError(
                "classes", got=f"{classes}", needed=f"two or more different classes out of 0…{self.n_classes - 1}",
                fix="leave classes out to keep all of them",
            )  # fmt: skip
        empty = [c for c in classes if not (np.any(self.y_train == c) and np.any(self.y_test == c))]
        if empty:
            raise InputError(
                "classes", got=f"{empty}, without training or without test samples here", needed="samples of each",
                fix="restrict the classes first and take the first samples then",
            )  # fmt: skip
        new = np.full(self.n_classes, -1, dtype=np.int64)
        new[list(classes)] = np.arange(len(classes))
        train, test = new[self.y_train], new[self.y_test]
        return replace(
            self,
            x_train=self.x_train[train >= 0], y_train=train[train >= 0],
            x_test=self.x_test[test >= 0], y_test=test[test >= 0],
            classes=tuple(self.classes[c] for c in classes),
        )  # fmt: skip

    def first(self, n_train: int | None = None, n_test: int | None = None) -> Images:
        """The first samples, as views; ``None`` keeps all. The order is already shuffled, so this is a random draw.

        Raises
        ------
        InputError : fewer than one sample, or more than there are.
        """
        for argument, n, there in (("n_train", n_train, len(self.y_train)), ("n_test", n_test, len(self.y_test))):
            if n is not None and not 1 <= n <= there:
                raise InputError(
                    argument, got=f"{n}", needed=f"1…{there} samples of {self.name}", fix="pass None to keep all"
                )
        return replace(
            self,
            x_train=self.x_train[:n_train], y_train=self.y_train[:n_train],
            x_test=self.x_test[:n_test], y_test=self.y_test[:n_test],
        )  # fmt: skip

    def as_images(self) -> tuple[F32, F32]:
        """Training and test images as views of shape (samples, C, H, W), for convolutional networks."""
        return self.x_train.reshape(-1, *self.shape), self.x_test.reshape(-1, *self.shape)
