"""Operator norms of the convolutions of a trained CIFAR-10 ResNet-18 (the one that pyautoattack ships), at 32 x 32.

``OMP_NUM_THREADS=1 python benchmarks/conv_norms.py [--layers layer4] [--no-tight] [--json FILE]``: a table of the
kernel norm that papers report, the lower bound, both upper bounds with their gaps, and processor seconds. The 20
convolutions take about 15 s with ``--no-tight``, and some minutes without: four of them need Cholesky.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from certbound import Bound, text
from certbound.norms.convolution import conv_kernel_norm, conv_output_shape
from certbound.norms.operator import operator_norm_lower, operator_norm_upper
from certbound.ops import Conv

FIRST = (3, 32, 32)


def weights() -> dict[str, torch.Tensor]:
    """The state dictionary, read without executing anything in it."""
    spec = importlib.util.find_spec("pyautoattack")
    if spec is None or spec.origin is None:
        raise SystemExit("the trained model is part of the package pyautoattack: pip install pyautoattack")
    path = Path(spec.origin).parent / "examples" / "model_test.pt"
    return torch.load(path, map_location="cpu", weights_only=True)


def layers() -> Iterator[tuple[str, Conv, tuple[int, ...]]]:
    """Name, convolution and shape of the input of each, in order; every block of layers 2 to 4 starts with stride 2."""
    shape = block = FIRST
    for name, weight in weights().items():
        if weight.ndim != 4:
            continue
        first = name.endswith(("0.conv1.weight", "shortcut.0.weight")) and not name.startswith("layer1")
        side = weight.shape[-1] // 2
        conv = Conv(weight.double().numpy(), stride=(2, 2) if first else (1, 1), padding=((side, side),) * 2)
        start = block if "shortcut" in name else shape
        if name.endswith("conv1.weight"):
            block = shape
        yield name.removesuffix(".weight"), conv, start
        shape = conv_output_shape(conv, start)


def timed(call: Callable[[], Bound]) -> tuple[Bound, float]:
    """The bound, and processor seconds."""
    start = time.process_time()
    bound = call()
    return bound, time.process_time() - start


def row(name: str, conv: Conv, shape: tuple[int, ...], tight: bool) -> dict[str, object]:
    """One layer."""
    low, low_s = timed(lambda: operator_norm_lower(conv, 2, shape, tier="tight"))
    fast, fast_s = timed(lambda: operator_norm_upper(conv, 2, shape))
    found: dict[str, object] = {
        "layer": name,
        "kernel": "x".join(map(str, conv.weight.shape)),
        "input": "x".join(map(str, shape)),
        "kernel norm": conv_kernel_norm(conv),
        "lower": low.value,
        "fast": fast.value,
        "fast gap %": 100 * (fast.value / low.value - 1),
        "factor": low.value / conv_kernel_norm(conv),
        "lower s": low_s,
        "fast s": fast_s,
    }
    if tight:
        upper, seconds = timed(lambda: operator_norm_upper(conv, 2, shape, tier="tight"))
        found |= {"tight": upper.value, "tight gap %": 100 * (upper.value / low.value - 1), "tight s": seconds}
        found["method"] = "Cholesky" if "Cholesky" in upper.method else "torus"
    found["peak MiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return found


def main() -> None:
    """Print the table, a line a layer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", default="", help="only names that begin with this")
    parser.add_argument("--no-tight", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found: list[dict[str, object]] = []
    for name, conv, shape in layers():
        if name.startswith(arguments.layers):
            found.append(row(name, conv, shape, not arguments.no_tight))
            if len(found) == 1:
                sys.stdout.write("  ".join(found[0]) + "\n")
            cells = (text.number(v) if isinstance(v, float) else str(v) for v in found[-1].values())
            sys.stdout.write("  ".join(cells) + "\n")
            sys.stdout.flush()
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
