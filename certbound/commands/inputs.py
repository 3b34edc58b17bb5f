"""The network and the samples that the command line names."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from typing import Any

from certbound.arrays import F64
from certbound.errors import InputError, MissingDependencyError
from certbound.graph import Graph
from certbound.network import Network


@dataclass(frozen=True, eq=False)
class Problem:
    """What ``--model``, ``--weights`` and ``--data`` say."""

    model: Any
    x: F64
    y: Any

    @property
    def network(self) -> Network | Graph:
        """The model in the IR: a Network where it is a chain of dense layers, else a Graph; refused by name if it is
        neither.
        """
        from certbound.robustness import read_network

        return read_network(self.model, self.x)


def load_samples(name: str, *, seed: int) -> tuple[Any, Any]:
    """``mnist5k`` (the test images of the seed's split), ``digits``, or a ``.npz`` with x and y."""
    if name == "mnist5k":
        from certbound.demo.data import mnist5k

        split = mnist5k(seed)
        return split.x_test, split.y_test
    if name == "digits":
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise MissingDependencyError(
                "scikit-learn", purpose="the digits data set", command="pip install 'certbound[data]'"
            ) from error
        images, labels = load_digits(return_X_y=True)
        return images / 16.0, labels  # pixels 0…16: exact
    if not name.lower().endswith(".npz"):
        raise InputError(
            "data", got=repr(name), needed="a .npz file with x and y, mnist5k or digits",
            fix="write one with np.savez(path, x=x, y=y)",
        )  # fmt: skip
    from certbound.io import npy

    return npy.load_samples(name)


def read_problem(args: argparse.Namespace) -> Problem:
    """Samples first: they are quicker to refuse."""
    from certbound.arrays import as_float64
    from certbound.io.factory import load_model

    x, y = load_samples(args.data, seed=args.seed)
    x = as_float64(x, "data: x")
    if args.input_shape is not None:
        if x.ndim < 2 or math.prod(x.shape[1:]) != math.prod(args.input_shape):
            raise InputError(
                "input_shape", got=f"{args.input_shape} for samples of shape {x.shape[1:]}",
                needed="the same number of values", fix="leave out the batch axis",
            )  # fmt: skip
        x = x.reshape(len(x), *args.input_shape)
    return Problem(load_model(args.model, args.weights, layers=args.layers, input_shape=args.input_shape), x, y)
