"""Rigorous against numerical: time ratios and widths, measured side by side in one run.

``python benchmarks/rigour.py [--largest 2000] [--repeats 5]``: one thread is fair (OMP_NUM_THREADS=1). Times are the
least of the repeats, taken in turns; only the ratios mean something on a shared machine.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import scipy
import scipy.linalg

import certbound
from certbound import text
from certbound.lipschitz.recursion import recursion_2, recursion_inf
from certbound.norms.verified import enclose_frobenius_norm, enclose_inf_norm, enclose_spectral_norm


def least_times(calls: list[Callable[[], object]], repeats: int) -> list[float]:
    """The least wall-clock time of each call, called in turns."""
    best = [math.inf] * len(calls)
    for _ in range(repeats):
        for i, call in enumerate(calls):
            start = time.perf_counter()
            call()
            best[i] = min(best[i], time.perf_counter() - start)
    return best


def matrices(n: int) -> dict[str, np.ndarray]:
    """Three matrices of one size: no structure, equal singular values, one singular value."""
    rng = np.random.default_rng(n)
    W = rng.standard_normal((n, n))
    return {"Gaussian": W, "orthogonal": np.linalg.qr(W)[0], "rank one": np.outer(W[0], W[1])}


def network(*sizes: int) -> list[np.ndarray]:
    """Gaussian weights at He's scale."""
    rng = np.random.default_rng(sum(sizes))
    return [rng.standard_normal((b, a)) * math.sqrt(2 / a) for a, b in pairwise(sizes)]


def rows(largest: int, repeats: int) -> list[dict[str, object]]:
    """One row a comparison."""
    found: list[dict[str, object]] = []

    def add(what: str, size: str, rigorous: Callable[[], object], plain: Callable[[], object], width: float) -> None:
        mine, theirs = least_times([rigorous, plain], repeats)
        found.append({"what": what, "size": size, "rigorous_s": mine, "numerical_s": theirs, "width": width})

    for n in (n for n in (50, 200, 500, 1000, 2000) if n <= largest):
        for kind, W in matrices(n).items():
            low, high = enclose_spectral_norm(W)
            add(f"||W||_2, {kind}", f"{n} x {n}", lambda W=W: enclose_spectral_norm(W),
                lambda W=W: scipy.linalg.svdvals(W), (high - low) / high)  # fmt: skip
        W = matrices(n)["Gaussian"]
        low, high = enclose_inf_norm(W)
        add("||W||_inf", f"{n} x {n}", lambda W=W: enclose_inf_norm(W), lambda W=W: np.linalg.norm(W, np.inf),
            (high - low) / high)  # fmt: skip
        low, high = enclose_frobenius_norm(W)
        add("||W||_F", f"{n} x {n}", lambda W=W: enclose_frobenius_norm(W), lambda W=W: np.linalg.norm(W),
            (high - low) / high)  # fmt: skip
    for shape in ((10, 200), (200, 200), (200, 784)):
        W = np.random.default_rng(0).standard_normal(shape)
        proved, plain = (certbound.check_theorem31(W, rigor=r) for r in ("rigorous", "numerical"))
        width = proved.spectral.bound.value / plain.spectral.bound.value - 1
        add("check_theorem31", f"{shape[0]} x {shape[1]}", lambda W=W: certbound.check_theorem31(W, rigor="rigorous"),
            lambda W=W: certbound.check_theorem31(W), width)  # fmt: skip
    for sizes in ((64, 64, 64, 10), (784, 200, 200, 10), (64, *[64] * 8, 10)):
        W = network(*sizes)
        name = f"{sizes[0]}-{sizes[1]}x{len(sizes) - 2}-{sizes[-1]}"
        result = certbound.lipschitz_sdp(W, 2, method="closed-form")
        add("lipschitz_sdp, closed form, l2", name, lambda W=W: certbound.lipschitz_sdp(W, 2, method="closed-form"),
            lambda W=W: recursion_2(W[:-1], W[-1]), result.value / recursion_2(W[:-1], W[-1]) - 1)  # fmt: skip
        add("  its certificate.verify", name, lambda W=W, c=result.certificate: c.verify(W),
            lambda W=W: recursion_2(W[:-1], W[-1]), 0.0)  # fmt: skip
        plain = max(recursion_inf(W[:-1], r)[0] for r in W[-1])
        value = certbound.lipschitz_sdp(W, math.inf, method="closed-form").value
        add("lipschitz_sdp, closed form, linf", name,
            lambda W=W: certbound.lipschitz_sdp(W, math.inf, method="closed-form"),
            lambda W=W: max(recursion_inf(W[:-1], r)[0] for r in W[-1]), value / plain - 1)  # fmt: skip
    return found


def main() -> None:
    """Print the table; --json keeps it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--largest", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = rows(options.largest, options.repeats)
    lines = [
        (str(r["what"]), str(r["size"]), f"{r['rigorous_s']:.4f}", f"{r['numerical_s']:.4f}",
         f"{r['rigorous_s'] / r['numerical_s']:.2f}", f"{r['width']:.1e}")
        for r in found
    ]
    print(text.table(lines, ("what", "size", "rigorous s", "numerical s", "ratio", "relative width")))
    if options.json:
        versions = {"python": platform.python_version(), "numpy": np.__version__, "scipy": scipy.__version__}
        options.json.write_text(json.dumps({"versions": versions, "rows": found}, indent=1))


if __name__ == "__main__":
    main()
