"""``.npy`` and ``.npz`` files: weight matrices, and samples with labels. Never unpickled."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from certbound.arrays import F64, as_float64, as_matrix
from certbound.errors import InputError
from certbound.io.files import existing_file, listed, natural_key, numbered
from certbound.network import Network

Array = npt.NDArray[Any]

_PAIRED = re.compile(r"([Wb])([0-9]+)")


def load_arrays(path: str | os.PathLike[str], argument: str = "file") -> dict[str, Array]:
    """All arrays of a ``.npz`` in the order of the file; those of a ``.npy`` under its stem. No pickles.

    Raises
    ------
    InputError : no such file, no numpy file or a damaged one, arrays of Python objects.
    """
    file = existing_file(path, argument)
    try:
        with open(file, "rb") as stream:
            loaded = np.load(stream, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return {file.stem: loaded}
            with loaded:
                return {name: loaded[name] for name in loaded.files}
    # on damaged bytes numpy, zipfile, zlib and tokenize raise what they like: no list of exceptions was ever complete
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        objects = "pickle" in reason.lower()
        raise InputError(
            argument,
            got=f"{file.name}, which numpy cannot read without unpickling" if objects
            else f"{file.name}, which numpy cannot read ({reason})",
            needed="a .npy or .npz file of numbers; a pickle can run any code, so none is ever loaded",
            fix="write the file anew with np.save or np.savez, from arrays of numbers",
        ) from error  # fmt: skip


def load_matrices(
    path: str | os.PathLike[str], *, layers: Sequence[str] | None = None, argument: str = "weights"
) -> dict[str, tuple[F64, F64 | None]]:
    """Weight matrices with their biases (or None), first layer first, by the name of the matrix.

    Parameters
    ----------
    path : a ``.npy`` with one matrix, or a ``.npz``.
    layers : keys of the ``.npz`` in order of application; a vector after a matrix is its bias. None: the keys W1, b1,
        W2, … in the order of their numbers, or matrices whose names differ in their numbers only (np.savez's arr_0,
        arr_1, …). Names that give no order are refused.

    Raises
    ------
    InputError : a file that cannot be read; keys that are missing or whose order is not known; what is no matrix.
    """
    arrays = load_arrays(path, argument)
    if layers is None:
        keys = _order(arrays, argument)
    else:
        keys = list(layers)
        missing = [k for k in keys if k not in arrays]
        if missing or not keys or len(set(keys)) != len(keys):
            raise InputError(
                "layers",
                got=f"{keys}" + (f", of which {listed(missing)} are not in the file" if missing else ""),
                needed=f"different keys among {listed(list(arrays))}",
                fix="name the arrays in order of application, for instance W1,b1,W2,b2",
            )
    found: dict[str, tuple[F64, F64 | None]] = {}
    last: str | None = None  # the matrix that still may get a bias
    for key in keys:
        if arrays[key].ndim == 1 and last is not None:
            found[last] = (found[last][0], as_float64(arrays[key], key))
            last = None
        else:
            found[key] = (as_matrix(arrays[key], key), None)
            last = key
    return found


def _order(arrays: dict[str, Array], argument: str) -> list[str]:
    names = list(arrays)
    if not names:
        raise InputError(argument, got="a file without arrays", needed="weight matrices", fix="save them with np.savez")
    pairs = [_PAIRED.fullmatch(n) for n in names]
    if all(p is not None for p in pairs):
        weights = {int(p[2]) for p in pairs if p is not None and p[1] == "W"}
        biases = {int(p[2]) for p in pairs if p is not None and p[1] == "b"}
        if not biases <= weights:
            raise InputError(
                argument,
                got=f"biases without a matrix: {listed([f'b{i}' for i in sorted(biases - weights)])}",
                needed="a W for every b",
                fix="check the keys",
            )
        if len(weights) + len(biases) != len(names):
            raise InputError(argument, got=f"keys {listed(names)}", needed="each number once", fix="W1, not W01")
        return sorted(names, key=lambda n: (int(n[1:]), n[0] != "W"))
    if not numbered(names):
        raise InputError(
            argument,
            got=f"arrays named {listed(names)}: their order of application is not known",
            needed="keys W1, b1, W2, b2, …, or names that differ in their numbers only",
            fix="pass layers=(…), on the command line --layers, with the keys in order",
        )
    return sorted(names, key=natural_key)


def load_network(
    path: str | os.PathLike[str], *, layers: Sequence[str] | None = None, argument: str = "weights"
) -> Network:
    """The ReLU network of :func:`load_matrices`: a ReLU between each two matrices, none after the last."""
    found = load_matrices(path, layers=layers, argument=argument)
    return Network.from_weights([w for w, _ in found.values()], [b for _, b in found.values()])


def load_samples(path: str | os.PathLike[str], argument: str = "data") -> tuple[F64, Array]:
    """``x`` and ``y`` of a ``.npz``; x as float64 without changing a number, y as stored.

    Raises
    ------
    InputError : a file that cannot be read, or without x or y; x that is no finite real array.
    """
    arrays = load_arrays(path, argument)
    missing = [k for k in ("x", "y") if k not in arrays]
    if missing:
        raise InputError(
            argument,
            got=f"a file with {listed(list(arrays)) or 'no arrays'}: no {' and no '.join(missing)}",
            needed="a .npz with the samples x and the class indices y",
            fix="write it with np.savez(path, x=x, y=y)",
        )
    return as_float64(arrays["x"], f"{argument}: x"), arrays["y"]


__all__ = ["load_arrays", "load_matrices", "load_network", "load_samples"]
