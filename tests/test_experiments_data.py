"""The loaders of the studies, on files made here in each data set's own format on disk."""

from __future__ import annotations

import builtins
import gzip
import hashlib
import json
import pickle
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from image_files import (
    idx,
    pixels,
    write_cifar_binary,
    write_cifar_python,
    write_imagenet_classes,
    write_mnist,
    write_svhn,
)
from PIL import Image
from scipy.io import savemat
from sklearn.datasets import load_digits
from torchvision import datasets
from torchvision.transforms.functional import to_tensor

from certbound.errors import InputError, MissingDependencyError
from experiments import data
from experiments.data import Images, image_dataset, labelled_subset, load


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a loader opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def without(monkeypatch, package):
    """Make every import of the package fail, as where it is not installed."""
    real = builtins.__import__

    def failing(name, *args, **kwargs):
        if name.split(".")[0] == package:
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", failing)


WRITERS = {
    "mnist": write_mnist,
    "cifar10": lambda root: write_cifar_binary(root, "cifar10"),
    "cifar100": lambda root: write_cifar_binary(root, "cifar100"),
    "svhn": write_svhn,
}
SHAPES = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32), "cifar100": (3, 32, 32), "svhn": (3, 32, 32)}


def assert_holds(images, truth, shape):
    """Every written image is there once, unchanged, with its own label."""
    for part, found in (("train", images.x_train), ("test", images.x_test)):
        x, y = truth[part]
        labels = images.y_train if part == "train" else images.y_test
        assert found.dtype == np.float32 and labels.dtype == np.int64
        back = np.rint(found * 255).astype(np.uint8).reshape(-1, *shape)
        place = {image.tobytes(): i for i, image in enumerate(x.reshape(-1, *shape))}
        order = [place[image.tobytes()] for image in back]
        assert sorted(order) == list(range(len(x)))
        assert order != sorted(order)  # shuffled
        assert labels.tolist() == [int(y[i]) for i in order]
        expected = torch.from_numpy(x[order[0]].reshape(shape)).float().div(255).numpy()
        assert np.array_equal(found[0].reshape(shape), expected)


# -- the official sets -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WRITERS)
def test_official_set_is_read_as_written(tmp_path, name, caplog):
    truth = WRITERS[name](tmp_path)
    images = load(name, seed=3, root=tmp_path)
    assert images.shape == SHAPES[name] and images.name == name
    assert images.n_classes == (100 if name == "cifar100" else 10)
    assert_holds(images, truth, SHAPES[name])
    assert f"{len(truth['train'][1])} train samples, officially" in caplog.text  # part of a set is told


@pytest.mark.parametrize("name", WRITERS)
def test_seed_decides_the_order_and_nothing_else(tmp_path, name):
    WRITERS[name](tmp_path)
    one, again, other = load(name, seed=1, root=tmp_path), load(name, seed=1, root=str(tmp_path)), load(
        name, seed=2, root=tmp_path
    )  # fmt: skip
    assert one.digest == again.digest != other.digest
    assert np.array_equal(one.x_train, again.x_train) and not np.array_equal(one.x_train, other.x_train)
    assert np.array_equal(np.sort(one.y_test), np.sort(other.y_test))
    assert sorted(map(bytes, one.x_test)) == sorted(map(bytes, other.x_test))


def test_mnist_is_read_packed_and_as_torchvision_reads_it(tmp_path):
    truth = write_mnist(tmp_path / "packed", packed=True)
    assert_holds(load("mnist", seed=0, root=tmp_path / "packed"), truth, (1, 28, 28))
    truth = write_mnist(tmp_path)
    theirs = datasets.MNIST(str(tmp_path), train=True)
    assert np.array_equal(theirs.data.numpy(), truth["train"][0])  # the files made here are MNIST's format
    ours = load("mnist", seed=0, root=tmp_path)
    place = [np.flatnonzero((theirs.data.numpy().reshape(23, -1) == np.rint(x * 255)).all(1))[0] for x in ours.x_train]
    assert np.array_equal(ours.y_train, theirs.targets.numpy()[place])
    assert np.array_equal(ours.as_images()[0][0], to_tensor(theirs[int(place[0])][0]).numpy())


def test_svhn_is_read_as_torchvision_reads_it(tmp_path, monkeypatch):
    write_svhn(tmp_path)
    monkeypatch.setattr(datasets.SVHN, "_check_integrity", lambda self: True)  # its MD5 sums are the official ones
    theirs = datasets.SVHN(str(tmp_path), split="test")
    ours = load("svhn", seed=0, root=tmp_path)
    back = np.rint(ours.as_images()[1] * 255).astype(np.uint8)
    place = [np.flatnonzero((theirs.data == x).all((1, 2, 3)))[0] for x in back]
    assert sorted(place) == list(range(12))
    assert np.array_equal(ours.y_test, theirs.labels[place])


class Opened:
    """Unpickling it writes a file: the harm that a made data batch could do."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (Path(self.marker),)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_pickles_that_are_not_the_official_ones_are_refused_unopened(tmp_path, name):
    marker = tmp_path / "opened"
    write_cifar_python(tmp_path, name, extra=Opened(marker))
    with pytest.raises(InputError, match=r"MD5 sums are not those of the official ones \(nothing was unpickled\)") as e:
        load(name, seed=0, root=tmp_path)
    assert str(tmp_path) in e.value.argument
    assert not marker.exists()
    folder = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}[name]
    first = tmp_path / folder / {"cifar10": "data_batch_1", "cifar100": "train"}[name]
    pickle.loads(first.read_bytes())
    assert marker.exists()  # so it would have been harmful


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_python_version_with_the_sums_it_should_have_is_read(tmp_path, name, monkeypatch):
    truth = write_cifar_python(tmp_path, name)
    cls = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]

    def md5(file):
        return hashlib.md5((tmp_path / cls.base_folder / file).read_bytes()).hexdigest()

    monkeypatch.setattr(cls, "train_list", [[f, md5(f)] for f, _ in cls.train_list])
    monkeypatch.setattr(cls, "test_list", [[f, md5(f)] for f, _ in cls.test_list])
    monkeypatch.setattr(cls, "meta", {**cls.meta, "md5": md5(cls.meta["filename"])})
    assert_holds(load(name, seed=5, root=tmp_path), truth, (3, 32, 32))
    binary = write_cifar_binary(tmp_path, name)  # and where there are both, the one without pickles is read
    assert_holds(load(name, seed=5, root=tmp_path), binary, (3, 32, 32))


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("mnist", ["MNIST/raw/train-images-idx3-ubyte"]),
        ("cifar10", ["cifar-10-batches-bin", "cifar-10-batches-py"]),
        ("cifar100", ["cifar-100-binary", "cifar-100-python"]),
        ("svhn", ["train_32x32.mat"]),
    ],
)
def test_missing_files_are_named_and_not_fetched(tmp_path, name, files):
    with pytest.raises(InputError, match="nothing is downloaded") as missing:
        load(name, seed=0, root=tmp_path)
    assert missing.value.argument == "root"
    for file in files:
        assert str(tmp_path / file) in missing.value.got
    with pytest.raises(InputError, match="pass --root FOLDER") as none:
        load(name, seed=0)
    assert files[0] in none.value.needed
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("mnist", "MNIST/raw/t10k-labels-idx1-ubyte"),
        ("cifar10", "cifar-10-batches-bin/data_batch_4.bin"),
        ("cifar10", "cifar-10-batches-bin/test_batch.bin"),
        ("cifar100", "cifar-100-binary/test.bin"),
        ("svhn", "test_32x32.mat"),
    ],
)
def test_one_missing_file_of_many_is_named(tmp_path, name, file):
    WRITERS[name](tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(InputError, match="got no ") as missing:
        load(name, seed=0, root=tmp_path)
    assert str(tmp_path / file) in missing.value.got


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("mnist", "MNIST/raw/train-images-idx3-ubyte"),
        ("mnist", "MNIST/raw/t10k-labels-idx1-ubyte"),
        ("cifar10", "cifar-10-batches-bin/data_batch_2.bin"),
        ("cifar100", "cifar-100-binary/train.bin"),
        ("svhn", "train_32x32.mat"),
    ],
)
@pytest.mark.parametrize("left", [0, 3, 12, -1])
def test_truncated_files_are_refused_by_name(tmp_path, name, file, left):
    WRITERS[name](tmp_path)
    path = tmp_path / file
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(InputError) as damaged:
        load(name, seed=0, root=tmp_path)
    assert damaged.value.argument == str(path)


def test_longer_or_damaged_mnist_files_are_refused(tmp_path):
    write_mnist(tmp_path)
    raw = tmp_path / "MNIST" / "raw"
    images, labels = raw / "train-images-idx3-ubyte", raw / "train-labels-idx1-ubyte"
    whole, whole_labels = images.read_bytes(), labels.read_bytes()

    def refused(match):
        with pytest.raises(InputError, match=match):
            load("mnist", seed=0, root=tmp_path)

    images.write_bytes(whole + b"\0")
    refused("18033 bytes of data")  # 23·784 + 1
    images.write_bytes(whole[:2] + b"\x0d" + whole[3:])  # type 13: floats
    refused("begin with '00 00 0d 03'")
    images.write_bytes(idx(pixels(23, 27, 28)))
    refused(r"images of shape \(27, 28\)")
    images.write_bytes(idx(pixels(22, 28, 28)))
    refused("23 labels for 22 images")
    images.write_bytes(whole)
    labels.write_bytes(whole_labels[:-1] + b"\x0a")
    refused("labels 0…10")
    labels.write_bytes(idx(np.zeros(0)))
    images.write_bytes(idx(pixels(0, 28, 28)))
    refused("no samples")
    images.unlink()
    packed = gzip.compress(whole)
    no_deflate = packed[:10] + b"\xff" * (len(packed) - 10)
    for bad in (packed[:40], b"no gzip", packed[:-8] + b"\0" * 8, no_deflate):
        images.with_name(f"{images.name}.gz").write_bytes(bad)
        refused("damaged gzip")


@pytest.mark.parametrize(("name", "file", "label"), [
    ("cifar10", "cifar-10-batches-bin/data_batch_1.bin", 10), ("cifar100", "cifar-100-binary/test.bin", 100),
])  # fmt: skip
def test_cifar_labels_that_there_are_none_are_refused(tmp_path, name, file, label):
    WRITERS[name](tmp_path)
    content = bytearray((tmp_path / file).read_bytes())
    content[0 if name == "cifar10" else 1] = label
    (tmp_path / file).write_bytes(content)
    with pytest.raises(InputError, match=f"…{label}; needed samples with labels 0…{label - 1}"):
        load(name, seed=0, root=tmp_path)


@pytest.mark.parametrize(("content", "match"), [
    ({"X": np.zeros((32, 32, 3, 2), np.uint8)}, "no variable y"),
    ({"y": np.ones((2, 1), np.uint8)}, "no variable X"),
    ({"X": np.zeros((32, 32, 3, 3), np.uint8), "y": np.ones((2, 1), np.uint8)}, "with 2 labels"),
    ({"X": np.zeros((3, 32, 32, 2), np.uint8), "y": np.ones((2, 1), np.uint8)}, r"shape \(3, 32, 32, 2\)"),
    ({"X": np.zeros((32, 32, 3, 2)), "y": np.ones((2, 1), np.uint8)}, "X float64"),
    ({"X": np.zeros((32, 32, 3, 2), np.uint8), "y": np.array([[0], [1]], np.uint8)}, "labels 0…1"),
    ({"X": np.zeros((32, 32, 3, 2), np.uint8), "y": np.array([[11], [1]], np.uint8)}, "labels 1…11"),
])  # fmt: skip
def test_svhn_with_other_content_is_refused(tmp_path, content, match):
    write_svhn(tmp_path)
    savemat(tmp_path / "test_32x32.mat", content, do_compression=True)
    with pytest.raises(InputError, match=match):
        load("svhn", seed=0, root=tmp_path)


def test_svhn_files_that_crash_scipy_are_refused_before(tmp_path):
    truth = write_svhn(tmp_path)
    path = tmp_path / "test_32x32.mat"
    compressed = path.read_bytes()
    x, y = truth["test"]
    savemat(path, {"X": x.transpose(2, 3, 1, 0), "y": y[:, None]})  # nothing in it is protected by a checksum
    for content in (path.read_bytes(), compressed + b"\x0f\0\0\0", compressed[:124] + b"\x01\x00MI" + compressed[128:]):
        path.write_bytes(content)
        with pytest.raises(InputError, match="needed a MATLAB 5 file with compressed variables"):
            load("svhn", seed=0, root=tmp_path)
    path.write_bytes(compressed[:3000] + bytes([compressed[3000] ^ 1]) + compressed[3001:])
    with pytest.raises(InputError, match="scipy cannot read"):
        load("svhn", seed=0, root=tmp_path)


# -- the packaged sets -----------------------------------------------------------------------------------------------


def test_digits_are_all_there_split_by_class_and_disjoint():
    x, y = load_digits(return_X_y=True)
    images = load("digits", seed=0)
    assert images.shape == (1, 8, 8) and images.n_classes == 10
    assert (len(images.y_train), len(images.y_test)) == (1437, 360)
    ours = sorted([*map(bytes, images.x_train), *map(bytes, images.x_test)])
    assert ours == sorted(map(bytes, (x / 16).astype(np.float32)))  # none twice, none missing
    share = np.bincount(images.y_test) / np.bincount(y)
    assert np.all(np.abs(share - 0.2) < 1 / 174)  # within one sample of the smallest class
    place = {(row / 16).astype(np.float32).tobytes(): int(label) for row, label in zip(x, y, strict=True)}
    assert [place[row.tobytes()] for row in images.x_test] == images.y_test.tolist()
    assert images.digest == load("digits", seed=0).digest
    assert images.digest != load("digits", seed=1).digest


def test_mnist5k_is_the_split_of_the_demo():
    from certbound.demo.data import mnist5k

    images, split = load("mnist5k", seed=4), mnist5k(4)
    assert np.array_equal(images.x_train, split.x_train) and np.array_equal(images.y_test, split.y_test)
    assert images.shape == (1, 28, 28) and images.n_classes == 10
    assert not {*map(bytes, images.x_train)} & {*map(bytes, images.x_test)}
    assert np.bincount(images.y_test).tolist() == [100] * 10


def test_loading_leaves_the_global_generators_alone(tmp_path):
    write_mnist(tmp_path)
    before, torch_before = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    load("digits", seed=0)
    load("mnist", seed=0, root=tmp_path)
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002
    assert torch.equal(torch_before, torch.get_rng_state())


def test_names_and_seeds_that_there_are_none_are_refused():
    for name in ("imagenet", "flickr30k"):
        with pytest.raises(InputError, match=f"image_dataset\\('{name}'"):
            load(name, seed=0)
    with pytest.raises(InputError, match="one of cifar10, cifar100, digits, mnist, mnist5k, svhn"):
        load("MNIST", seed=0)
    with pytest.raises(InputError, match="other sets are read by load"):
        image_dataset("mnist", "/tmp", train=True)
    for seed in (-1, 2**32):
        with pytest.raises(InputError, match="seed: got"):
            load("digits", seed=seed)
    with pytest.raises(TypeError):
        load("digits", seed=0.5)
    assert len(load("digits", seed=2**32 - 1).y_test) == 360


def test_every_name_is_loaded_by_one_of_the_two(tmp_path):
    for name in data.NAMES:
        stream = name in ("imagenet", "flickr30k")
        if name in ("digits", "mnist5k"):
            assert load(name, seed=0).name == name
        else:
            with pytest.raises(InputError, match="nothing is downloaded"):
                image_dataset(name, tmp_path, train=True) if stream else load(name, seed=0, root=tmp_path)


def test_missing_packages_are_named(monkeypatch, tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "train" / "a").mkdir(parents=True)
    with monkeypatch.context() as m:
        without(m, "sklearn")
        with pytest.raises(MissingDependencyError, match="scikit-learn"):
            load("digits", seed=0)
    with monkeypatch.context() as m:
        without(m, "torchvision")
        with pytest.raises(MissingDependencyError, match="pip install torchvision"):
            load("cifar10", seed=0, root=tmp_path)
        with pytest.raises(MissingDependencyError, match="pip install torchvision"):
            image_dataset("imagenet", tmp_path, train=True)
    with monkeypatch.context() as m:
        without(m, "open_clip")
        with pytest.raises(MissingDependencyError, match="pip install open_clip_torch"):
            data.clip_model(tmp_path)


def test_the_package_is_imported_without_torch():
    code = "import sys, experiments.data; print('torch' in sys.modules, 'sklearn' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.stdout.split() == ["False", "False"], done.stderr


# -- Images ----------------------------------------------------------------------------------------------------------


def small():
    x = np.linspace(0, 1, 24, dtype=np.float32).reshape(6, 4)
    return Images(x, np.array([0, 1, 2, 2, 1, 0]), x[:4].copy(), np.array([2, 1, 0, 2]), (1, 2, 2), "small")


def test_restricted_keeps_rows_and_renumbers_in_the_order_given():
    images = small()
    part = images.restricted((2, 0))
    assert np.array_equal(part.x_train, images.x_train[[0, 2, 3, 5]])
    assert part.y_train.tolist() == [1, 0, 0, 1]
    assert np.array_equal(part.x_test, images.x_test[[0, 2, 3]])
    assert part.y_test.tolist() == [0, 1, 0]
    assert (part.n_classes, part.classes, part.name, part.shape) == (2, (2, 0), "small", (1, 2, 2))
    assert images.n_classes == 3 and images.y_train.tolist() == [0, 1, 2, 2, 1, 0]
    assert part.restricted((1, 0)).classes == (0, 2)  # labels of the part, names of the whole


@pytest.mark.parametrize("classes", [(), (1,), (0, 0), (0, 3), (-1, 0), (0, 1, 2, 1)])
def test_restricted_refuses(classes):
    with pytest.raises(InputError, match="needed two or more different classes out of 0…2"):
        small().restricted(classes)


def test_restricted_refuses_a_class_without_samples_here():
    with pytest.raises(InputError, match=r"\[2\], without training or without test samples"):
        small().first(2).restricted((0, 2))
    with pytest.raises(InputError, match=r"\[0\], without training or without test samples"):
        small().first(None, 2).restricted((2, 0))


def test_first_takes_the_first_as_views_and_keeps_the_classes():
    images = small()
    part = images.first(2, 1)
    assert np.array_equal(part.x_train, images.x_train[:2]) and part.y_test.tolist() == [2]
    assert np.shares_memory(part.x_train, images.x_train)
    assert part.n_classes == 3  # though class 2 has no training sample left
    assert images.first(None, None).digest == images.digest == images.first().digest
    for n in (0, -1, 7):
        with pytest.raises(InputError, match="n_train: got"):
            images.first(n)
    with pytest.raises(InputError, match="n_test: got 5; needed 1…4 samples of small"):
        images.first(None, 5)


def test_images_are_views_in_the_order_channel_row_column():
    images = small()
    train, test = images.as_images()
    assert train.shape == (6, 1, 2, 2) and test.shape == (4, 1, 2, 2)
    assert np.shares_memory(train, images.x_train) and not train.flags.writeable
    assert train[1, 0, 1, 0] == images.x_train[1, 2]


def test_digest_depends_on_every_part():
    x, y = np.zeros((2, 4), np.float32), np.array([0, 1])

    def digest(**changes):
        arguments = {"x_train": x, "y_train": y, "x_test": x, "y_test": y, "shape": (1, 2, 2), "name": "n", **changes}
        return Images(**{k: np.array(v) if isinstance(v, np.ndarray) else v for k, v in arguments.items()}).digest

    base = digest()
    assert base == digest() == digest(name="another") and len(base) == 16
    changed = [
        digest(x_train=x + np.float32(1)), digest(x_test=x + np.float32(1)), digest(y_train=y[::-1]),
        digest(y_test=y[::-1]), digest(shape=(1, 1, 4)), digest(classes=(0, 1, 2)),
    ]  # fmt: skip
    assert len({base, *changed}) == 7


@pytest.mark.parametrize(("changes", "match"), [
    ({"x_train": np.zeros((2, 4))}, "x_train: got float64"),
    ({"x_test": np.zeros((2, 5), np.float32)}, r"x_test: got float32 of shape \(2, 5\)"),
    ({"x_test": np.full((2, 4), np.nan, np.float32)}, "x_test: got pixels from nan"),
    ({"x_train": np.full((2, 4), 1.01, np.float32)}, "pixels from 1.01"),
    ({"x_train": np.full((2, 4), -0.01, np.float32)}, "pixels from -0.01"),
    ({"y_train": np.array([0, -1])}, "y_train: got int64 labels from -1"),
    ({"y_test": np.array([0, 5]), "classes": (0, 1)}, "y_test: got int64 labels from 0 to 5"),
    ({"y_test": np.array([0, 1], np.int32)}, "y_test: got int32"),
    ({"y_test": np.array([0])}, "x_test: got shape"),
])  # fmt: skip
def test_images_refuse_what_is_no_data_set(changes, match):
    good = {
        "x_train": np.zeros((2, 4), np.float32), "y_train": np.array([0, 1]),
        "x_test": np.ones((2, 4), np.float32), "y_test": np.array([1, 0]), "shape": (1, 2, 2), "name": "n",
    }  # fmt: skip
    assert Images(**good).n_classes == 2
    with pytest.raises(InputError, match=match):
        Images(**{**good, **changes})


# -- streams ---------------------------------------------------------------------------------------------------------

COLOURS = {"n01": (255, 0, 0), "n02": (0, 255, 0), "n03": (0, 0, 255)}


def write_imagenet(root):
    for part, n in (("train", 3), ("val", 2)):
        for name, colour in COLOURS.items():
            (root / part / name).mkdir(parents=True)
            for i in range(n):  # PNG is exact, JPEG nearly so
                suffix = "png" if i == 0 else "JPEG"
                Image.new("RGB", (8 + i, 6), colour).save(root / part / name / f"{name}_{i}.{suffix}")


def test_imagenet_folders_are_read_in_the_order_of_their_names(tmp_path):
    write_imagenet(tmp_path)
    train = image_dataset("imagenet", tmp_path, train=True, transform=to_tensor)
    val = image_dataset("imagenet", str(tmp_path), train=False)
    assert (len(train), len(val)) == (9, 6)
    assert train.classes == val.classes == ["n01", "n02", "n03"]
    for dataset in (train, val):
        for image, label in dataset:
            tensor = image if dataset is train else to_tensor(image)
            assert tensor.shape[:2] == (3, 6)
            assert torch.allclose(tensor.mean((1, 2)), torch.eye(3)[label], atol=0.02)
    exact = [tensor for tensor, _ in train if tensor.shape[2] == 8]
    assert len(exact) == 3 and torch.equal(exact[0][0], torch.ones(6, 8))


def test_imagenet_with_meta_is_torchvisions(tmp_path):
    write_imagenet(tmp_path)
    names = {wnid: (f"name of {wnid}", "alias") for wnid in COLOURS}
    torch.save((names, []), tmp_path / "meta.bin")
    val = image_dataset("imagenet", tmp_path, train=False, transform=to_tensor)
    assert isinstance(val, datasets.ImageNet)
    assert val.classes[1] == ("name of n02", "alias") and val.targets == [0, 0, 1, 1, 2, 2]
    assert torch.equal(val[2][0].mean((1, 2)), torch.eye(3)[1])


def test_imagenets_meta_is_not_unpickled(tmp_path):
    write_imagenet(tmp_path)
    marker = tmp_path / "opened"
    torch.save((Opened(marker), []), tmp_path / "meta.bin")
    with pytest.raises(InputError, match="torchvision cannot read"):
        image_dataset("imagenet", tmp_path, train=True)
    assert not marker.exists()
    (tmp_path / "meta.bin").write_bytes(b"nothing")
    with pytest.raises(InputError, match="torchvision cannot read"):
        image_dataset("imagenet", tmp_path, train=True)


def test_imagenet_missing_or_unequal_folders_are_refused(tmp_path):
    with pytest.raises(InputError, match="nothing is downloaded") as missing:
        image_dataset("imagenet", tmp_path, train=False)
    assert str(tmp_path / "val") in missing.value.got
    with pytest.raises(InputError, match="pass --root"):
        image_dataset("imagenet", None, train=False)
    write_imagenet(tmp_path)
    (tmp_path / "val" / "n00").mkdir()  # a class more would shift all labels
    with pytest.raises(InputError, match="n00 and 0 more class folders in only one of"):
        image_dataset("imagenet", tmp_path, train=True)
    (tmp_path / "train" / "n00").mkdir()
    with pytest.raises(InputError, match="n00"):  # and has no image
        image_dataset("imagenet", tmp_path, train=True)


@pytest.mark.parametrize("name", ["n01_0.png", "n01_1.JPEG"])
@pytest.mark.parametrize("left", [0, 20, -10])
def test_damaged_image_is_named_when_it_is_read(tmp_path, name, left):
    write_imagenet(tmp_path)
    path = tmp_path / "train" / "n01" / name
    Image.fromarray(pixels(40, 40, 3)).save(path)
    path.write_bytes(path.read_bytes()[:left] if left >= 0 else path.read_bytes()[: -path.stat().st_size // 2])
    dataset = image_dataset("imagenet", tmp_path, train=True)
    place = [file for file, _ in dataset.samples].index(str(path))
    with pytest.raises(InputError, match="no readable image") as damaged:
        dataset[place]
    assert damaged.value.argument == str(path)


def write_flickr30k(root):
    folder = root / "flickr30k-images"
    folder.mkdir(parents=True)
    lines, entries = [], []
    for i, split in enumerate(["train", "test", "val", "train", "test"]):
        name = f"10000{i}.jpg"
        Image.new("RGB", (10, 8), (40 * i, 0, 0)).save(folder / name)
        lines += [f"{name}#{k}\tCaption {k} of image {i} ." for k in range(5)]
        entries.append({"filename": name, "split": split, "sentids": [], "imgid": i, "sentences": []})
    (root / "results_20130124.token").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (root / "dataset_flickr30k.json").write_text(json.dumps({"images": entries, "dataset": "flickr30k"}))


def test_flickr30k_gives_images_with_their_captions_in_karpathys_split(tmp_path):
    write_flickr30k(tmp_path)
    test = image_dataset("flickr30k", tmp_path, train=False)
    train = image_dataset("flickr30k", tmp_path, train=True, transform=to_tensor)
    assert train.ids == ["100000.jpg", "100003.jpg"] and test.ids == ["100001.jpg", "100004.jpg"]
    assert len(test) == 2 and isinstance(test, datasets.Flickr30k)
    image, captions = test[1]
    assert image.getpixel((3, 3))[0] == pytest.approx(160, abs=3) and image.size == (10, 8)
    assert captions == [f"Caption {k} of image 4 ." for k in range(5)]
    assert train[1][0].shape == (3, 8, 10)


def test_flickr30k_incomplete_or_damaged_is_refused(tmp_path):
    with pytest.raises(InputError, match="nothing is downloaded") as missing:
        image_dataset("flickr30k", tmp_path, train=True)
    for name in ("flickr30k-images", "results_20130124.token", "dataset_flickr30k.json"):
        assert str(tmp_path / name) in missing.value.got
    write_flickr30k(tmp_path)
    captions, split = tmp_path / "results_20130124.token", tmp_path / "dataset_flickr30k.json"
    text, entries = captions.read_text(), split.read_text()

    def refused(path, content, match):
        old = path.read_bytes()
        path.write_text(content)
        with pytest.raises(InputError, match=match) as error:
            image_dataset("flickr30k", tmp_path, train=True)
        path.write_bytes(old)
        assert error.value.argument == str(path)

    refused(captions, text + "100009.jpg#0 no tab\n", "a line that is not IMAGE.jpg#N, tab, caption")
    refused(captions, text.replace("100003.jpg", "200003.jpg"), "captions of 1 of the 2 images")
    refused(split, entries[:-5], "another format")
    refused(split, "[]", "another format")
    refused(split, entries.replace("train", "val"), "no image of training")
    (tmp_path / "flickr30k-images" / "100003.jpg").unlink()
    with pytest.raises(InputError, match=r"100003.jpg; needed all images of the captions \(1 are missing\)"):
        image_dataset("flickr30k", tmp_path, train=True)


class Labelled(torch.utils.data.Dataset):
    def __init__(self, targets):
        self.targets = targets

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, i):
        return i, self.targets[i]


def test_labelled_subset_takes_the_classes_in_turn():
    dataset = Labelled([0] * 50 + [1] * 50 + [2] * 3)
    subset = labelled_subset(dataset, 9, seed=0)
    assert isinstance(subset, torch.utils.data.Subset)
    assert np.bincount([y for _, y in subset]).tolist() == [3, 3, 3]
    assert np.bincount([y for _, y in labelled_subset(dataset, 23, seed=0)]).tolist() == [10, 10, 3]
    assert sorted(labelled_subset(dataset, 103, seed=1).indices) == list(range(103))
    assert labelled_subset(dataset, 50, seed=0).indices[:9] == subset.indices
    assert labelled_subset(dataset, 9, seed=0).indices == subset.indices
    assert labelled_subset(dataset, 9, seed=1).indices != subset.indices
    assert subset.indices[:3] != [0, 50, 100]  # drawn, not the first of each class


def test_labelled_subset_refuses(tmp_path):
    for n in (0, 4):
        with pytest.raises(InputError, match="needed 1…3 samples"):
            labelled_subset(Labelled([0, 1, 1]), n, seed=0)
    write_flickr30k(tmp_path)
    with pytest.raises(InputError, match=r"got Flickr30k; needed labels in dataset\.targets"):
        labelled_subset(image_dataset("flickr30k", tmp_path, train=True), 1, seed=0)


def test_some_of_imagenet_as_arrays(tmp_path):
    """The middle of the image, scaled so that its shorter side has 224 pixels; labels are places in ``classes``."""
    write_imagenet_classes(tmp_path)
    chosen = data.image_subset("imagenet", tmp_path, seed=1, n_train=3, n_test=2, classes=(700, 2, 5))
    assert (chosen.shape, chosen.classes, chosen.n_classes) == ((3, 224, 224), (700, 2, 5), 3)
    assert sorted(chosen.y_train.tolist()) == [0, 1, 2] and len(set(chosen.y_test.tolist())) == 2
    for row, label in zip(chosen.x_train.reshape(3, 3, 224, 224), chosen.y_train, strict=True):
        c = (700, 2, 5)[label]
        colour = np.array([c % 256, c // 256 * 60, 100], dtype=np.float32) / 255
        np.testing.assert_array_equal(row, np.broadcast_to(colour[:, None, None], row.shape))
    again = data.image_subset("imagenet", tmp_path, seed=1, n_train=3, n_test=2, classes=(700, 2, 5))
    assert again.digest == chosen.digest
    assert data.image_subset("imagenet", tmp_path, seed=2, n_train=7, n_test=7).n_classes == 1000
    for arguments, match in (
        ({"n_train": None}, "say how many"), ({"classes": (3, 1000)}, "1000"), ({"n_train": 4}, "samples"),
        ({"name": "flickr30k"}, "imagenet"),
    ):
        settings = {"name": "imagenet", "seed": 0, "n_train": 2, "n_test": 2, "classes": (0, 1, 2)} | arguments
        with pytest.raises(InputError, match=match):
            data.image_subset(settings.pop("name"), tmp_path, **settings)


def test_imagenet_with_fewer_classes_has_other_labels_and_is_refused(tmp_path):
    write_imagenet_classes(tmp_path, classes=3)
    with pytest.raises(InputError, match="3 class folders; needed all 1000"):
        data.image_subset("imagenet", tmp_path, seed=0, n_train=1, n_test=1)


def test_the_middle_of_an_image_is_cut_out(tmp_path):
    write_imagenet_classes(tmp_path)
    wide = np.zeros((224, 448, 3), dtype=np.uint8)
    wide[:, 112:336] = pixels(224, 224, 3)
    Image.fromarray(wide).save(tmp_path / "train" / "n00000000" / "0.png")
    found = data.image_subset("imagenet", tmp_path, seed=0, n_train=2, n_test=2, classes=(0, 1))
    x = found.x_train[found.y_train == 0].reshape(3, 224, 224)
    np.testing.assert_array_equal(x, wide[:, 112:336].transpose(2, 0, 1).astype(np.float32) / 255)


# -- CLIP ------------------------------------------------------------------------------------------------------------

TINY = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """A random CLIP of the smallest sizes, under a name that open_clip then knows; and the folder for its weights."""
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", TINY)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.CLIP(**open_clip.get_model_config("tiny")).eval()
    (tmp_path / "clip").mkdir()
    return model, tmp_path


def assert_same_clip(clip, model):
    image = Image.fromarray(pixels(20, 30, 3))
    x = clip.transform(image)
    assert x.shape == (3, 16, 16) and float(x.min()) >= 0 and float(x.max()) <= 1 and float(x.max()) > 0.5
    text = clip.tokenizer(["a photo of a cat"])
    assert text[0, :7].tolist() == [49406, 320, 1125, 539, 320, 2368, 49407]  # CLIP's vocabulary, inside open_clip
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    assert torch.allclose(clip.normalise(x), (x - mean) / std, atol=1e-6)
    with torch.no_grad():
        z = ((x - mean) / std)[None]
        assert torch.equal(clip.model.encode_image(clip.normalise(x)[None]), model.encode_image(z))
        assert torch.equal(clip.model.encode_text(text), model.encode_text(text))
        assert torch.equal(clip.model.logit_scale, model.logit_scale)
    assert not clip.model.training


def test_clip_from_safetensors_and_from_a_state_dict(tiny, caplog):
    from safetensors.torch import save_file

    model, root = tiny
    state = torch.get_rng_state()
    torch.save({"epoch": 3, "state_dict": model.state_dict()}, root / "clip" / "tiny.pt")
    assert_same_clip(data.clip_model(root, "tiny"), model)
    with torch.no_grad():
        model.logit_scale.fill_(2.5)
    save_file(model.state_dict(), root / "clip" / "tiny.safetensors")  # comes first where there are both
    assert_same_clip(data.clip_model(str(root), "tiny"), model)
    assert torch.equal(state, torch.get_rng_state())
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_clip_weights_that_are_missing_or_do_not_fit_are_refused(tiny):
    from safetensors.torch import save_file

    model, root = tiny
    with pytest.raises(InputError, match="nothing is downloaded") as missing:
        data.clip_model(root, "tiny")
    assert str(root / "clip" / "tiny.safetensors") in missing.value.got
    assert "huggingface.co/laion" in missing.value.fix
    with pytest.raises(InputError, match="pass --root"):
        data.clip_model(None, "tiny")

    path = root / "clip" / "tiny.safetensors"
    weights = model.state_dict()
    save_file({k: v for k, v in weights.items() if k != "logit_scale"}, path)
    with pytest.raises(InputError, match="missing: logit_scale"):
        data.clip_model(root, "tiny")
    save_file({**weights, "text_projection": torch.zeros(16, 9)}, path)
    with pytest.raises(InputError, match="of another shape: text_projection"):
        data.clip_model(root, "tiny")
    save_file(weights, path)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(InputError, match="no safetensors file"):
        data.clip_model(root, "tiny")
    path.unlink()
    marker = root / "opened"
    torch.save({"state_dict": weights, "more": Opened(marker)}, root / "clip" / "tiny.pt")
    with pytest.raises(InputError, match="more than weights"):
        data.clip_model(root, "tiny")
    assert not marker.exists()


def test_clip_models_that_open_clip_would_fetch_are_refused(tmp_path):
    for name in ("hf-hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "ViT-B-99"):
        with pytest.raises(InputError, match=r"a model of open_clip\.list_models"):
            data.clip_model(tmp_path, name)
    for name in ("xlm-roberta-base-ViT-B-32", "ViT-B-16-SigLIP", "coca_ViT-B-32", "ViT-L-14-CLIPA"):
        with pytest.raises(InputError, match="a text tower or tokenizer of its own"):
            data.clip_model(tmp_path, name)
