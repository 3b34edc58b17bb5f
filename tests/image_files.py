"""Tiny data sets in their own formats on disk, with the pixels and labels that a loader must find in them."""

import gzip
import pickle
import struct

import numpy as np
from PIL import Image
from scipy.io import savemat
from torchvision import datasets

RNG = np.random.default_rng(7)


def idx(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def pixels(n, *shape):
    return RNG.integers(0, 256, size=(n, *shape), dtype=np.uint8)


def write_mnist(root, packed=False):
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    truth = {}
    for part, prefix, n in (("train", "train", 23), ("test", "t10k", 11)):
        x, y = pixels(n, 28, 28), np.arange(n) % 10
        truth[part] = x, y
        for name, array in ((f"{prefix}-images-idx3-ubyte", x), (f"{prefix}-labels-idx1-ubyte", y)):
            if packed:
                (raw / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
            else:
                (raw / name).write_bytes(idx(array))
    return truth


def write_cifar_binary(root, name, n=12):
    folder, files, n_labels, n_classes = {
        "cifar10": ("cifar-10-batches-bin", [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"], 1, 10),
        "cifar100": ("cifar-100-binary", ["train.bin", "test.bin"], 2, 100),
    }[name]
    (root / folder).mkdir(parents=True)
    truth = {"train": [], "test": []}
    for i, file in enumerate(files):
        x, y = pixels(n, 3, 32, 32), (np.arange(n) * 7 + i) % n_classes
        coarse = np.full(n, 19)
        labels = np.stack([coarse, y], axis=1)[:, -n_labels:].astype(np.uint8)
        (root / folder / file).write_bytes(np.concatenate([labels, x.reshape(n, -1)], axis=1).tobytes())
        truth["test" if "test" in file else "train"].append((x, y))
    return {k: (np.concatenate([x for x, _ in v]), np.concatenate([y for _, y in v])) for k, v in truth.items()}


def write_cifar_python(root, name, extra=None):
    """The official layout: pickled dictionaries of uint8 rows, with another content and so another MD5 sum."""
    cls, key = {"cifar10": (datasets.CIFAR10, "labels"), "cifar100": (datasets.CIFAR100, "fine_labels")}[name]
    folder = root / cls.base_folder
    folder.mkdir(parents=True)
    truth = {"train": [], "test": []}
    for part, files in (("train", cls.train_list), ("test", cls.test_list)):
        for file, _ in files:
            x, y = pixels(6, 3, 32, 32), np.arange(6)
            content = {"data": x.reshape(6, -1), key: y.tolist(), "extra": extra}
            (folder / file).write_bytes(pickle.dumps(content, protocol=2))
            truth[part].append((x, y))
    (folder / cls.meta["filename"]).write_bytes(pickle.dumps({cls.meta["key"]: ["a"] * 10}, protocol=2))
    return {k: (np.concatenate([x for x, _ in v]), np.concatenate([y for _, y in v])) for k, v in truth.items()}


def write_imagenet_classes(root, classes=1000):
    """One folder a class in train and val, each with one image of its own colour; the folders' names are in order."""
    for part in ("train", "val"):
        for c in range(classes):
            folder = root / part / f"n{c:08d}"
            folder.mkdir(parents=True)
            colour = (c % 256, c // 256 * 60, 100 if part == "train" else 200)
            Image.new("RGB", (6, 4), colour).save(folder / "0.png")
    return root


def write_svhn(root, sizes=(21, 12)):
    root.mkdir(parents=True, exist_ok=True)
    truth = {}
    for part, n in zip(("train", "test"), sizes, strict=True):
        x, y = pixels(n, 3, 32, 32), np.arange(n) % 10
        truth[part] = x, y
        stored = np.where(y == 0, 10, y).astype(np.uint8)[:, None]  # the digit 0 is class 10 in the files
        savemat(root / f"{part}_32x32.mat", {"X": x.transpose(2, 3, 1, 0), "y": stored}, do_compression=True)
    return truth
