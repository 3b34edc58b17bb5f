"""Drawn small networks against ``lipschitz_sdp(method="barrier")``: one JSON line a network, so that a run resumes.

Of every network, in ℓ2 (all outputs) and ℓ∞ (one output): the bound is at least the norm of the Jacobian of every 0/1
pattern (by brute force here, and in rationals where it looks as if not), the certificate verifies, and an altered one
is refused. Of every hundredth network 100,000 Jacobians at random inputs as well.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from campaign.runner import ROOT, say
from certbound.certificate import from_bytes, to_bytes
from certbound.errors import CertificateError
from certbound.lipschitz.product import ProductCertificate
from certbound.lipschitz.sdp import lipschitz_sdp
from certbound.network import Affine, Layer, Network
from certbound.types import Status

F64 = npt.NDArray[np.float64]
Rng = np.random.Generator
Bound = Callable[[Network, float, int | None], Any]

_TESTED: Final = ("rounding.py", *(f"lipschitz/{n}.py" for n in (
    "barrier", "recursion", "repair", "pattern_pair", "product", "sdp", "sdp_certificate", "sdp_chain")))  # fmt: skip
TOLERANCE: Final = 1e-4
_SAMPLED_EVERY: Final = 100
_SAMPLES: Final = 100_000
_SLACK: Final = 1e-9


@dataclass(frozen=True, eq=False)
class DrawnNet:
    """A ReLU network, the recipe that it comes from, and the output that ℓ∞ is asked for."""

    kind: str
    weights: list[F64]
    biases: list[F64 | None]
    output: int
    turn: int

    @property
    def network(self) -> Network:
        """As the library sees it."""
        return Network.from_weights(self.weights, self.biases)


# ---------------------------------------------------------------- what is drawn


def _plain(rng: Rng, W: list[F64]) -> None:
    """Gaussian: as they are."""


def _integers(rng: Rng, W: list[F64]) -> None:
    for w in W:
        w[:] = rng.integers(-3, 4, w.shape)


def _deficient(rng: Rng, W: list[F64]) -> None:
    """One matrix, or all, of rank one; or with equal rows."""
    some = W if rng.random() < 0.5 else [W[int(rng.integers(len(W)))]]
    for w in some:
        if rng.random() < 0.5:
            w[:] = np.outer(rng.standard_normal(w.shape[0]), rng.standard_normal(w.shape[1]))
        else:
            w[:] = w[rng.integers(0, len(w), len(w))] * rng.choice([1.0, -1.0], (len(w), 1))


def _dead(rng: Rng, W: list[F64]) -> None:
    """Neurons without inputs, without outputs, inputs that nothing reads."""
    for i, w in enumerate(W):
        if i + 1 < len(W):
            w[rng.random(len(w)) < 0.3] = 0.0
        w[:, rng.random(w.shape[1]) < 0.3] = 0.0


def _scaled(rng: Rng, W: list[F64]) -> None:
    """Rows and columns of 1e±8."""
    for w in W:
        w *= 10.0 ** (rng.integers(-8, 9, (len(w), 1)) * (rng.random((len(w), 1)) < 0.4))
        if rng.random() < 0.3:
            w *= 10.0 ** rng.integers(-8, 9, (1, w.shape[1]))


def _rescaled(rng: Rng, W: list[F64]) -> None:
    """Rows of 1e±8 that the next layer's columns undo: the same function."""
    for w, after in pairwise(W):
        scale = 10.0 ** rng.integers(-8, 9, len(w))
        w *= scale[:, None]
        after /= scale


def _sparse(rng: Rng, W: list[F64]) -> None:
    for w in W:
        w *= rng.random(w.shape) < 0.4


def _positive(rng: Rng, W: list[F64]) -> None:
    """No cancellation: the product of norms is nearly, or exactly, attained."""
    for w in W:
        np.abs(w, out=w)


_MAKERS: Final[dict[str, Callable[[Rng, list[F64]], None]]] = {
    "gaussian": _plain,
    "integers": _integers,
    "rank-deficient": _deficient,
    "dead": _dead,
    "badly-scaled": _scaled,
    "rescaled": _rescaled,
    "sparse": _sparse,
    "positive": _positive,
    "scalar-in": _plain,
    "scalar-out": _plain,
    "scalar-both": _integers,
}
KINDS: Final = tuple(_MAKERS)


def draw(seed: int, index: int) -> DrawnNet:
    """Network ``index`` of a campaign: the same one for the same seed."""
    rng = np.random.Generator(np.random.PCG64([seed, index]))
    kind = KINDS[index % len(KINDS)]
    sizes = rng.integers(1, 7, int(rng.integers(1, 4)) + 2).tolist()
    if kind in ("scalar-in", "scalar-both"):
        sizes[0] = 1
    if kind in ("scalar-out", "scalar-both"):
        sizes[-1] = 1
    W = [rng.standard_normal((b, a)) for a, b in pairwise(sizes)]
    _MAKERS[kind](rng, W)
    biased = bool(rng.integers(2))
    biases: list[F64 | None] = [rng.standard_normal(len(w)) if biased else None for w in W]
    return DrawnNet(kind, W, biases, int(rng.integers(sizes[-1])), int(rng.integers(2**30)))


# ---------------------------------------------------------------- the oracles


def norms_of(J: F64, norm: float) -> F64:
    """Norms of a stack of matrices."""
    if math.isinf(norm):
        return np.abs(J).sum(axis=2).max(axis=1)
    # the small Gram matrix: its largest eigenvalue is as exact as LAPACK's largest singular value
    gram = J @ J.transpose(0, 2, 1) if J.shape[1] <= J.shape[2] else J.transpose(0, 2, 1) @ J
    top = np.abs(gram).max(axis=(1, 2), initial=0.0)
    scale = np.where(top > 0.0, top, 1.0)
    return np.asarray(np.sqrt(np.maximum(np.linalg.eigvalsh(gram / scale[:, None, None])[:, -1], 0.0) * scale))


def pattern_maximum(weights: list[F64], norm: float) -> tuple[float, list[int]]:
    """``max_D ‖W_m D_{m−1} … D_1 W_1‖`` over all patterns, and the bits of one that attains it, layer by layer."""
    best, where = -1.0, [0] * (len(weights) - 1)

    def masks(h: int) -> F64:
        return ((np.arange(2**h)[:, None] >> np.arange(h)) & 1).astype(np.float64)

    def descend(J: F64, layer: int, bits: list[int]) -> None:
        nonlocal best, where
        m = masks(len(J))
        after = np.einsum("oh,ph,hi->poi", weights[layer], m, J, optimize=True)
        if layer + 1 < len(weights):
            for b in range(len(m)):
                descend(after[b], layer + 1, [*bits, b])
            return
        # the Frobenius norm is above the others' ℓ2; a row sum costs nothing
        above = np.sqrt(np.einsum("poi,poi->p", after, after)) if norm == 2.0 else norms_of(after, norm)
        chosen = np.flatnonzero(above > best)
        if len(chosen) == 0:
            return
        values = norms_of(after[chosen], norm) if norm == 2.0 else above[chosen]
        i = int(np.argmax(values))
        if values[i] > best:
            best, where = float(values[i]), [*bits, int(chosen[i])]

    descend(weights[0], 1, [])
    return max(best, 0.0), where


def really_above(weights: list[F64], bits: list[int], norm: float, value: float) -> bool:
    """In rationals: whether the Jacobian of the pattern has a norm above ``value (1 − 1e-9)``."""
    from rationals import fractions, product, spectral_norm_at_most

    J = fractions(weights[0])
    for b, w in zip(bits, weights[1:], strict=True):
        J = product(fractions(w), [row if (b >> i) & 1 else [Fraction(0)] * len(row) for i, row in enumerate(J)])
    least = Fraction(value) * (1 - Fraction(1, 10**9))
    if math.isinf(norm):
        return max(sum((abs(x) for x in row), Fraction(0)) for row in J) > least
    return not spectral_norm_at_most(J, least)


def sampled_maximum(net: DrawnNet, weights: list[F64], norm: float, count: int, rng: Rng) -> float:
    """The largest Jacobian norm at ``count`` random inputs."""
    x = rng.standard_normal((count, weights[0].shape[1])) * np.exp(rng.uniform(-4.0, 4.0, (count, 1)))
    seen: list[npt.NDArray[np.bool_]] = []
    for w, b in zip(weights[:-1], net.biases, strict=False):
        x = x @ w.T + (0.0 if b is None else b)
        seen.append(x > 0.0)
        x = np.maximum(x, 0.0)
    found = np.unique(np.hstack(seen), axis=0)
    J = np.broadcast_to(weights[0], (len(found), *weights[0].shape))
    at = 0
    for w in weights[1:]:
        h = w.shape[1]
        J = w @ (found[:, at : at + h, None] * J)
        at += h
    return float(norms_of(J, norm).max())


# ---------------------------------------------------------------- altered certificates


def altered(certificate: Any, network: Network, most: float, turn: int) -> Iterator[tuple[str, Callable[[], bool]]]:
    """Wrong certificates, each with the call that must not come out True.

    ``most`` is the pattern maximum, below which no bound is: what is made smaller claims less than that.
    """
    value, false = certificate.value, most * (1.0 - 1e-6)
    ratio = false / value if value > 0.0 else 0.0

    def verify(changed: Any) -> Callable[[], bool]:
        return lambda: bool(changed.verify(network))

    other = Network(tuple(_moved(x) for x in network.layers))
    yield "another network", lambda: bool(certificate.verify(other))
    data = to_bytes(certificate.stored())
    at = turn % len(data)
    flipped = data[:at] + bytes([data[at] ^ (1 << turn % 8)]) + data[at + 1 :]
    yield "a bit", lambda: bool(from_bytes(flipped).verify(network))
    yield "cut off", lambda: bool(from_bytes(data[:at]).verify(network))
    yield "NaN", verify(replace(certificate, value=math.nan))
    if most == 0.0:
        return
    yield "a smaller value", verify(replace(certificate, value=false))
    if isinstance(certificate, ProductCertificate):
        norms = (certificate.norms[0] * ratio, *certificate.norms[1:])
        yield "smaller norms", verify(replace(certificate, norms=norms, value=false))
        return
    (p,) = certificate.proofs
    if not p.t:
        return

    def proof(**changed: Any) -> Callable[[], bool]:
        return verify(replace(certificate, value=false, proofs=(replace(p, value=false, **changed),)))

    yield "a smaller value of the proof", proof()
    yield "a smaller s", proof(s=p.s * ratio**2)
    yield "a smaller d", proof(d=p.d * ratio**2)
    yield "T of zeros", proof(t=tuple(0.0 * x for x in p.t), s=p.s * ratio**2)
    yield "larger T", proof(t=tuple(1e3 * x for x in p.t), s=p.s * ratio**2)
    yield "smaller T", proof(t=tuple(ratio**2 * x for x in p.t), s=p.s * ratio**2)
    yield "d and s below 0", proof(d=-p.d * np.linspace(1.0, 2.0, len(p.d)), s=-p.s)
    yield "no proof", verify(replace(certificate, proofs=()))
    yield "another exponent", proof(exponents=(p.exponents[0] - 1, *p.exponents[1:]))


def _moved(layer: Layer) -> Layer:
    return Affine(layer.weight * 1.5 + 0.25, layer.bias) if isinstance(layer, Affine) else layer


def _altered_accepted(certificate: Any, network: Network, most: float, turn: int) -> tuple[str, bool]:
    """One alteration, and whether it was believed."""
    every = list(altered(certificate, network, most, turn))
    name, call = every[turn % len(every)]
    try:
        return name, call()
    except CertificateError:
        return name, False


# ---------------------------------------------------------------- one network


def by_barrier(network: Network, norm: float, output: int | None) -> Any:
    """What is tested."""
    return lipschitz_sdp(network, norm, outputs=output, method="barrier", tolerance=TOLERANCE)


def check(seed: int, index: int, bound: Bound = by_barrier) -> dict[str, Any]:
    """Draw and check one network; JSON-ready. ``wrong`` lists what must not happen."""
    net = draw(seed, index)
    network = net.network
    wrong: list[str] = []
    record: dict[str, Any] = {"index": index, "kind": net.kind,
                              "sizes": [network.n_inputs, *(len(w) for w in net.weights)]}  # fmt: skip
    for norm, output in ((2.0, None), (math.inf, net.output)):
        started = time.perf_counter()
        weights = net.weights if output is None else [*net.weights[:-1], net.weights[-1][[output]]]
        name = "2" if norm == 2.0 else "inf"
        try:
            result = bound(network, norm, output)
            most, bits = pattern_maximum(weights, norm)
            value = result.value
            if not value >= most * (1.0 - _SLACK) and really_above(weights, bits, norm, value):
                wrong.append(f"{name}: {value!r} is below the pattern maximum {most!r}")
            if not result.certificate.verify(network) or result.certificate.value != value:
                wrong.append(f"{name}: the certificate does not prove the value")
            tampered, believed = _altered_accepted(result.certificate, network, most, net.turn)
            if believed:
                wrong.append(f"{name}: believed {tampered}")
            sampled = None
            if index % _SAMPLED_EVERY == 0:
                rng = np.random.Generator(np.random.PCG64([seed, index, 1]))
                sampled = sampled_maximum(net, weights, norm, _SAMPLES, rng)
                if not sampled <= value * (1.0 + _SLACK):
                    wrong.append(f"{name}: {value!r} is below a sampled Jacobian, {sampled!r}")
        except Exception as error:  # noqa: BLE001  # an exception of the library is a finding, not the campaign's end
            wrong.append(f"{name}: {type(error).__name__}: {error}")
            continue
        record[name] = {"value": value, "patterns": most, "status": result.status.word, "gap": result.gap,
                        "proof": result.certificate.kind, "altered": tampered, "sampled": sampled,
                        "solver": dict(result.stats).get("solver", "none needed"),
                        "seconds": round(time.perf_counter() - started, 4)}  # fmt: skip
    return {**record, "wrong": wrong}


def tight(one: dict[str, Any]) -> bool:
    """Status OK, and within the tolerance of the optimum: or exact without a solver (a constant, one affine map)."""
    gap = one["gap"]
    exact = one["solver"] == "none needed" and one["value"] <= one["patterns"] * (1.0 + TOLERANCE)
    return one["status"] == Status.OK.word and (exact if gap is None else gap <= TOLERANCE or exact)


# ---------------------------------------------------------------- the run


def digest() -> str:
    """Of the files under test and of this one: a line counts for these sources only."""
    h = hashlib.sha256()
    for file in (*(ROOT / "certbound" / name for name in _TESTED), Path(__file__)):
        h.update(f"{file.name}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\0".encode())
    return h.hexdigest()[:16]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Whole lines; what a killed run left of one is dropped."""
    found: list[dict[str, Any]] = []
    if not path.exists():
        return found
    for line in path.read_text().splitlines():
        try:
            item = json.loads(line)
        except ValueError:
            continue
        if isinstance(item, dict) and "index" in item:
            found.append(item)
    return found


def run(networks: int, out: Path, seed: int, *, quiet: bool = False, bound: Bound = by_barrier) -> int:
    """Do the networks that have no line yet; 1 if anything is wrong."""
    out.parent.mkdir(parents=True, exist_ok=True)
    sources = digest()
    done = {r["index"] for r in read_lines(out) if r["digest"] == sources and r["seed"] == seed}
    left = [i for i in range(networks) if i not in done]
    if not quiet and done:
        say(f"{networks - len(left)} of {networks} networks are done already")
    started = time.perf_counter()
    whole = not out.exists() or out.stat().st_size == 0 or out.read_bytes().endswith(b"\n")
    with out.open("a") as f, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        if not whole:
            f.write("\n")
        for n, index in enumerate(left, 1):
            record = {"digest": sources, "seed": seed, **check(seed, index, bound)}
            f.write(json.dumps(record) + "\n")
            f.flush()
            if n % 100 == 0:
                os.fsync(f.fileno())
                if not quiet:
                    rest = (time.perf_counter() - started) * (len(left) - n) / n
                    say(f"{n:,} of {len(left):,}, {rest / 60:.1f} min left", error=True)
    summary = summarise(out, seed, sources, networks)
    if not quiet:
        say(table(summary))
    if digest() != sources:
        say("the sources changed while the campaign ran: run it again", error=True)
        return 2
    return int(summary["wrong"] > 0)


def summarise(out: Path, seed: int, sources: str | None = None, networks: int | None = None) -> dict[str, Any]:
    """Add up the lines of one seed (and of one digest; None: the current sources')."""
    sources = digest() if sources is None else sources
    mine = [r for r in read_lines(out) if r["digest"] == sources and r["seed"] == seed]
    every = {r["index"]: r for r in mine if networks is None or r["index"] < networks}
    ones = [(r, r[name]) for r in every.values() for name in ("2", "inf") if name in r]
    loose = [(r, o) for r, o in ones if not tight(o)]
    ratios = [o["value"] / o["patterns"] for _, o in ones if o["patterns"] > 0.0]
    return {
        "digest": sources,
        "networks": len(every),
        "distinct": len({json.dumps([r.get(n, {}).get("value") for n in ("2", "inf")]) for r in every.values()}),
        "bounds": len(ones),
        "wrong": sum(bool(r["wrong"]) for r in every.values()),
        "status OK, gap <= 1e-4": len(ones) - len(loose),
        "not so": dict(Counter(f"{r['kind']}: {o['status']}, {o['solver'].partition(',')[0]}" for r, o in loose)),
        "sampled": sum(o["sampled"] is not None for _, o in ones),
        "smallest bound over patterns": min(ratios, default=math.nan),
        "median bound over patterns": float(np.median(ratios)) if ratios else math.nan,
        "seconds": round(sum(o["seconds"] for _, o in ones), 1),
        "kinds": dict(Counter(r["kind"] for r in every.values())),
        "proofs": dict(Counter(o["proof"] for _, o in ones)),
        "altered": dict(Counter(o["altered"] for _, o in ones)),
        "found": [r for r in every.values() if r["wrong"]][:20],
    }


def table(summary: dict[str, Any]) -> str:
    """For people."""
    bounds = max(1, summary["bounds"])
    share = 100.0 * summary["status OK, gap <= 1e-4"] / bounds
    lines: list[tuple[str, str]] = []
    for name, x in summary.items():
        if name == "found":
            continue
        if isinstance(x, dict):
            lines += [(name, f"{n:>7,}  {what}") for what, n in sorted(x.items())]
        else:
            said = f"{x:,}" if isinstance(x, int) else str(x)
            lines.append((name, f"{said} ({share:.2f} %)" if name.startswith("status OK") else said))
    width = max(len(name) for name, _ in lines)
    rows = [f"{name:<{width}}  {value}" for name, value in lines]
    rows += [f"WRONG {r['kind']} (index {r['index']}, sizes {r['sizes']}): {'; '.join(r['wrong'])}"
             for r in summary["found"]]  # fmt: skip
    return "\n".join(rows)


__all__ = ["check", "draw", "pattern_maximum", "run", "summarise", "table"]
