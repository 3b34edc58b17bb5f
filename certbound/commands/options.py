"""Options that several subcommands share, and how their values are read. Imports nothing heavy."""

from __future__ import annotations

import argparse
from fractions import Fraction
from typing import Any

Subparsers = Any  # argparse._SubParsersAction is private


def add_command(subparsers: Subparsers, name: str, *, help: str, description: str, examples: str) -> Any:
    """A subparser with examples at its end, ``--json`` and ``--quiet``."""
    parser = subparsers.add_parser(
        name,
        help=help,
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print JSON (with schema_version), and nothing else")
    parser.add_argument("--quiet", action="store_true", help="no progress and no messages but errors on stderr")
    return parser


def add_model(parser: Any) -> None:
    """``--model``, ``--weights``, ``--layers``."""
    group = parser.add_argument_group("the network")
    group.add_argument(
        "--model",
        metavar="MODEL",
        help="file.py:factory, a Python file and the function in it that returns the nn.Module (it is run, in eval "
        "mode), or net.onnx (it is read, never run). The model holds its own normalisation, so that inputs are in "
        "[0, 1]",
    )
    group.add_argument(
        "--weights",
        metavar="FILE",
        help="weights for a module: safetensors, or a torch state dict (never unpickled). Without --model: matrices "
        "in order (.npy, .npz, or a file with nothing but *.weight and *.bias), read as a ReLU network",
    )
    group.add_argument(
        "--layers", type=names, metavar="KEYS", help="keys of a .npz of weights in order, for instance W1,b1,W2"
    )


def add_data(parser: Any) -> None:
    """``--data``, ``--delta``, ``--norm``, ``--n-samples``, ``--seed``, ``--input-shape``."""
    group = parser.add_argument_group("the samples")
    group.add_argument(
        "--data",
        required=True,
        metavar="DATA",
        help="a .npz with x (in [0, 1]) and y (class indices); mnist5k: 1,000 test images; digits: 1,797 of 8x8",
    )
    group.add_argument(
        "--delta", required=True, type=number, metavar="R", help="radius in the units of x: 0.03 or 8/255"
    )
    group.add_argument("--norm", required=True, metavar="P", help="2 or inf")
    group.add_argument("--n-samples", type=positive, metavar="N", help="a random subset (--seed); default: all")
    group.add_argument("--seed", type=natural, default=0, metavar="N", help="default: %(default)s")
    group.add_argument(
        "--input-shape",
        type=shape,
        metavar="C,H,W",
        help="shape of one input, where the model wants images, or an ONNX file leaves it open",
    )


def number(value: str) -> float:
    """A float, or a fraction such as 8/255.

    >>> number("8/255") == 8 / 255
    True
    """
    try:
        found = float(Fraction(value.strip())) if "/" in value else float(value)
    except (ValueError, ZeroDivisionError, OverflowError):
        raise argparse.ArgumentTypeError(f"got {value!r}; needed a number or a fraction such as 8/255") from None
    return found


def positive(value: str) -> int:
    """An integer >= 1."""
    return _integer(value, 1)


def natural(value: str) -> int:
    """An integer >= 0."""
    return _integer(value, 0)


def _integer(value: str, least: int) -> int:
    try:
        found = int(value)
    except ValueError:
        found = least - 1
    if found < least:
        raise argparse.ArgumentTypeError(f"got {value!r}; needed an integer >= {least}")
    return found


def names(value: str) -> list[str]:
    """Names separated by commas.

    >>> names("CROWN, IBP")
    ['CROWN', 'IBP']
    """
    found = [n.strip() for n in value.split(",")]
    if not all(found):
        raise argparse.ArgumentTypeError(f"got {value!r}; needed names separated by commas")
    return found


def shape(value: str) -> tuple[int, ...]:
    """Integers >= 1 separated by commas."""
    return tuple(positive(v) for v in names(value))


def per_part(value: str) -> Any:
    """One number for both parts of Theorem 3.1, or ``spectral=…,neuron=…``.

    >>> per_part("3"), per_part("spectral=3,neuron=5")
    (3, {'spectral': 3, 'neuron': 5})
    """
    if "=" not in value:
        return _number_of(value)
    found = {k.strip(): _number_of(v) for k, _, v in (part.partition("=") for part in value.split(","))}
    if set(found) != {"spectral", "neuron"}:
        raise argparse.ArgumentTypeError(f"got {value!r}; needed one number, or spectral=NUMBER,neuron=NUMBER")
    return found


def _number_of(value: str) -> int | float:
    found = number(value)
    return int(value) if value.strip().isdigit() else found
