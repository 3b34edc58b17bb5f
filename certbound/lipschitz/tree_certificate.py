"""Certificates of bounds by branch and bound over activation patterns, with a LipSDP proof at every leaf.

At almost every input each ReLU has slope 0 or 1, so the Lipschitz constant is at most the largest Jacobian norm over
all 0/1 patterns (where a pre-activation is 0 on a set of positive measure its gradient is 0 there almost everywhere,
and either slope gives the same Jacobian: it counts as off). A binary tree splits the patterns by one neuron at a time,
off (``z <= 0``) and on (``z > 0``). A leaf is proved by multipliers for the network with those slopes fixed
(:mod:`certbound.lipschitz.system_certificate`), or no input of positive measure is in its cell
(:mod:`certbound.lipschitz.empty_cells`). The largest proof bounds them all.

Leaky ReLUs split into their two slopes; smooth activations are never split, their slopes stay free in every leaf.

Source: Fazlyab et al., NeurIPS 2019 (multipliers); Rademacher; certbound theory, sections 5, 6 and 8.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from certbound.arrays import F64, I64, frozen
from certbound.bound import Bound, Claim
from certbound.certificate import Saveable, Stored, finish, take, take_array
from certbound.errors import CertificateError
from certbound.lipschitz.empty_cells import Chain, Form, contradiction
from certbound.lipschitz.product import Outputs, plain_outputs, read_outputs
from certbound.lipschitz.region_slopes import FIELDS, activations, check_region, restore_region, store_region
from certbound.lipschitz.system import Slopes, activation_widths
from certbound.lipschitz.system_certificate import SystemProof, check_proof
from certbound.network import Ball, Network, as_network
from certbound.rounding import check_arithmetic
from certbound.types import GLOBAL, Quantity, Rigor, Sense

PROVED, EMPTY = -1, -2
"""Leaves, where an inner node has the number of the neuron that it splits."""
METHOD = "LipSDP branch and bound"
SOURCE = "Fazlyab et al., NeurIPS 2019 (LipSDP), over activation patterns; certbound theory, sections 5 and 8"

T = TypeVar("T")
Path = tuple[tuple[int, bool], ...]
"""Neurons and whether they are on."""


@dataclass(frozen=True, eq=False)
class Neurons:
    """The neurons of all activation layers, numbered in order of execution, and what is known of their slopes.

    ``off``: the slope of a neuron that is off (on: 1); NaN for smooth activations, which are never split.
    """

    widths: tuple[int, ...]
    low: F64
    high: F64
    off: F64

    @classmethod
    def of(cls, network: Network, slopes: Sequence[Slopes] | None = None) -> Neurons:
        """``slopes``: of every activation layer on a ball; None: over all inputs.

        >>> neurons = Neurons.of(Network.from_weights([[[1.0], [-1.0]], [[1.0, 1.0]]]))
        >>> neurons.widths, neurons.open.tolist()
        ((2,), [True, True])
        """
        kinds, widths = activations(network.layers), activation_widths(network)
        every = [a.slopes() for a in kinds] if slopes is None else list(slopes)
        low = [np.broadcast_to(s[0], (n,)) for s, n in zip(every, widths, strict=True)]
        high = [np.broadcast_to(s[1], (n,)) for s, n in zip(every, widths, strict=True)]
        below = {"relu": 0.0}
        off = [
            np.full(n, a.parameter if a.name == "leaky_relu" else below.get(a.name, math.nan))
            for a, n in zip(kinds, widths, strict=True)
        ]
        nothing = [np.zeros(0)]
        return cls(tuple(widths), *(frozen(np.concatenate(nothing + x).astype(np.float64)) for x in (low, high, off)))

    @property
    def open(self) -> npt.NDArray[np.bool_]:
        """Which can be split."""
        return (self.low < self.high) & ~np.isnan(self.off)

    def split(self, neuron: int) -> tuple[Neurons, Neurons]:
        """With the neuron off, and on."""
        return self.fixed(neuron, on=False), self.fixed(neuron, on=True)

    def fixed(self, neuron: int, *, on: bool) -> Neurons:
        """With one neuron's slope fixed."""
        low, high = self.low.copy(), self.high.copy()
        low[neuron] = high[neuron] = 1.0 if on else self.off[neuron]
        return Neurons(self.widths, low, high, self.off)

    @property
    def slopes(self) -> list[Slopes]:
        """Layer by layer."""
        cuts = np.cumsum(self.widths)[:-1]
        return list(zip(np.split(self.low, cuts), np.split(self.high, cuts), strict=True)) if self.widths else []

    def place(self, neuron: int) -> tuple[int, int]:
        """Layer and index in it."""
        layer = int(np.searchsorted(np.cumsum(self.widths), neuron, side="right"))
        return layer, neuron - sum(self.widths[:layer])


def cell_is_empty(chain: Chain, neurons: Neurons, path: Path, chosen: Sequence[int]) -> bool:
    """True proves that almost no input has the signs that the path gives to the chosen neurons.

    >>> net = Network.from_weights([[[1.0], [1.0]], [[1.0, 1.0]]], [[0.0, 1.0], None])  # x and x + 1
    >>> path = ((0, True), (1, False))
    >>> cell_is_empty(Chain.of(net), Neurons.of(net).fixed(0, on=True).fixed(1, on=False), path, [0, 1])
    True
    """
    signs = dict(path)
    if not all(n in signs for n in chosen):
        return False
    slopes = neurons.slopes
    forms: list[Form] = []
    for n in chosen:
        form = chain.form(*neurons.place(n), slopes)
        if form is None:
            return False
        forms.append(form)
    return contradiction(forms, [signs[n] for n in chosen])


@dataclass(frozen=True, eq=False)
class Tree:
    """The tree of one block of outputs, in preorder: a neuron to split (off first, then on), PROVED or EMPTY.

    ``proofs``: of the proved leaves in turn; ``empty``: of the empty ones, the neurons whose signs contradict.
    """

    outputs: Outputs
    nodes: tuple[int, ...]
    proofs: tuple[SystemProof, ...]
    empty: tuple[tuple[int, ...], ...] = ()

    @property
    def value(self) -> float:
        """The largest proof; 0 where there is none, since then every cell is empty."""
        return max((p.value for p in self.proofs), default=0.0)


@dataclass(frozen=True, eq=False)
class TreeCertificate(Saveable):
    """``Lip_p(f) <= value``, everywhere or on a ball, for the outputs named. :meth:`verify` needs numpy only.

    >>> from certbound.lipschitz.system import System
    >>> from certbound.lipschitz.system_certificate import certify
    >>> net = Network.from_weights([[[1.0], [-1.0]], [[1.0, 1.0]]])  # |x|: off, off would be 0, on, on is 1 − 1
    >>> neurons = Neurons.of(net)
    >>> leaves = [n for half in neurons.split(0) for n in half.split(1)]
    >>> proofs = tuple(certify(System.of(net, "all", n.slopes), "all", 2.0, (), None) for n in leaves)
    >>> tree = Tree("all", (0, 1, PROVED, PROVED, 1, PROVED, PROVED), proofs)
    >>> certificate = TreeCertificate(net.digest, 2.0, "all", tree.value, (tree,))
    >>> certificate.verify(net), round(certificate.value, 9)
    (True, 1.0)
    """

    kind: ClassVar[str] = "LipSDP branch and bound"

    subject: str
    norm: float
    outputs: Outputs
    value: float
    trees: tuple[Tree, ...]
    ball: Ball | None = None
    slopes: tuple[Slopes, ...] = ()

    @property
    def bound(self) -> Bound:
        """The claim, as a bound that carries this certificate."""
        domain = GLOBAL if self.ball is None else str(self.ball)
        claim = Claim(Quantity.LIPSCHITZ, self.norm, self.norm, domain, self.outputs, self.subject)
        return Bound(self.value, claim, Sense.UPPER, Rigor.RIGOROUS, METHOD, SOURCE, certificate=self)

    def verify(self, network_or_weights: object) -> bool:
        """Prove every leaf anew for the network; CertificateError with the reason if that fails."""
        check_arithmetic()
        if self.norm not in (2.0, math.inf) or math.isnan(self.value) or not self.trees:
            raise self._refusal("it makes no claim")
        network = as_network(network_or_weights)
        if network.digest != self.subject:
            raise self._refusal(f"it is about the network {self.subject!r}, not {network.digest!r}")
        blocks: list[Outputs] = [self.outputs]
        if self.outputs == "all" and math.isinf(self.norm):
            blocks = list(range(network.n_outputs))
        if [t.outputs for t in self.trees] != blocks:
            raise self._refusal(f"trees for the outputs {[t.outputs for t in self.trees]}; needed {blocks}")
        indices = () if self.outputs == "all" else self.outputs if isinstance(self.outputs, tuple) else (self.outputs,)
        if not all(isinstance(i, int) and 0 <= i < network.n_outputs for i in indices):
            raise self._refusal(f"outputs {self.outputs!r} of a network with {network.n_outputs}")
        check_region(network, self.ball, self.slopes, self.kind)
        neurons = Neurons.of(network, None if self.ball is None else self.slopes)
        chain = Chain.of(network)
        for tree in self.trees:
            self._check_tree(network, chain, neurons, tree)
        return True

    def _check_tree(self, network: Network, chain: Chain | None, neurons: Neurons, tree: Tree) -> None:
        proofs, empty = iter(tree.proofs), iter(tree.empty)
        for mark, leaf, path in self._leaves(neurons, tree):
            if mark == EMPTY:
                self._check_empty(chain, leaf, path, _next(empty, self._refusal("an empty leaf without evidence")))
            else:
                proof = _next(proofs, self._refusal("a leaf without a proof"))
                if proof.outputs != tree.outputs:
                    raise self._refusal(f"a proof for the outputs {proof.outputs!r} in the tree of {tree.outputs!r}")
                if not proof.value <= self.value:  # so that NaN fails
                    raise self._refusal(f"a leaf is bounded by {proof.value!r}, {self.value!r} is claimed")
                check_proof(network, proof, self.norm, leaf.slopes, self.kind)
        if next(proofs, None) is not None or next(empty, None) is not None:
            raise self._refusal("evidence without a leaf")

    def _leaves(self, neurons: Neurons, tree: Tree) -> Iterator[tuple[int, Neurons, Path]]:
        """The leaves of a tree that is whole: every split has two children, and nothing is left over."""
        waiting: list[tuple[Neurons, Path]] = [(neurons, ())]
        for node in tree.nodes:
            if not waiting:
                raise self._refusal("nodes beyond the last leaf")
            here, path = waiting.pop()
            if node in (PROVED, EMPTY):
                yield node, here, path
                continue
            if not 0 <= node < len(here.low):
                raise self._refusal(f"a split of neuron {node} of {len(here.low)}")
            if not here.open[node]:
                raise self._refusal(f"a split of neuron {node}, whose slope is fixed already or has no two values")
            off, on = here.split(node)
            waiting += [(on, (*path, (node, True))), (off, (*path, (node, False)))]
        if waiting:
            raise self._refusal(f"{len(waiting)} parts of the tree are missing")

    def _check_empty(self, chain: Chain | None, leaf: Neurons, path: Path, chosen: tuple[int, ...]) -> None:
        if chain is None:
            raise self._refusal("an empty leaf in a network with residual sums")
        if not cell_is_empty(chain, leaf, path, chosen):
            raise self._refusal(f"the signs of the neurons {list(chosen)} do not contradict each other")

    def stored(self) -> Stored:
        """For :func:`certbound.certificate.to_bytes`: what the leaves have, one after the other."""
        arrays: dict[str, Any] = {}
        for i, tree in enumerate(self.trees):
            proofs = tree.proofs
            layers = [x for p in proofs for x in p.t]
            metrics = [p.d for p in proofs if p.t and p.d is not None]
            arrays |= {
                f"nodes.{i}": _integers(tree.nodes),
                f"values.{i}": np.array([p.value for p in proofs], dtype=np.float64),
                f"factors.{i}": np.array([p.s for p in proofs], dtype=np.float64),
                f"slacks.{i}": np.array([p.slack for p in proofs], dtype=np.float64),
                f"layers.{i}": _integers([len(p.t) for p in proofs]),
                f"widths.{i}": _integers([len(x) for x in layers]),
                f"t.{i}": np.concatenate([np.zeros(0), *layers]),
                f"d.{i}": np.stack(metrics) if metrics else np.zeros((0, 0)),
                f"signs.{i}": _integers([len(x) for x in tree.empty]),
                f"neurons.{i}": _integers([n for x in tree.empty for n in x]),
            }
        region, more = store_region(self.ball, self.slopes)
        fields = {"subject": self.subject, "norm": self.norm, "outputs": plain_outputs(self.outputs),
                  "value": self.value, "trees": [plain_outputs(t.outputs) for t in self.trees], **region}  # fmt: skip
        arrays |= more
        return Stored(self.kind, fields, arrays)

    @classmethod
    def restored(cls, stored: Stored) -> TreeCertificate:
        """From a file; CertificateError names the field that is wrong."""
        expected: list[str] = []
        trees: list[Tree] = []
        for i, outputs in enumerate(take(stored, "trees", list)):
            part = Stored(stored.kind, {"outputs": outputs}, {})
            trees.append(_restored_tree(stored, i, read_outputs(part, "outputs")))
            expected += [f"{name}.{i}" for name in ("nodes", "values", "factors", "slacks", "layers", "widths", "t",
                                                    "d", "signs", "neurons")]  # fmt: skip
        ball, slopes, names = restore_region(stored)
        expected += names
        result = cls(take(stored, "subject", str), take(stored, "norm", float), read_outputs(stored, "outputs"),
                     take(stored, "value", float), tuple(trees), ball, slopes)  # fmt: skip
        finish(stored, arrays=expected, fields=("subject", "norm", "outputs", "value", "trees", *FIELDS))
        return result

    def _refusal(self, reason: str) -> CertificateError:
        return CertificateError(f"{self.kind}: {reason}")


def _restored_tree(stored: Stored, i: int, outputs: Outputs) -> Tree:
    def vector(name: str, dtype: npt.DTypeLike = np.float64) -> npt.NDArray[Any]:
        return take_array(stored, f"{name}.{i}", ndim=1, dtype=dtype)

    values, factors, slacks, t = vector("values"), vector("factors"), vector("slacks"), vector("t")
    layers, widths = vector("layers", np.int64), vector("widths", np.int64)
    signs, chosen = vector("signs", np.int64), vector("neurons", np.int64)
    d = take_array(stored, f"d.{i}", ndim=2)
    parts = [tuple(g) for g in _cut(stored, _cut(stored, t, widths), layers)]
    if not len(values) == len(factors) == len(slacks) == len(parts) or len(d) != sum(1 for p in parts if p):
        raise CertificateError(f"{stored.kind}: proofs of tree {i} that do not fit together")
    rows = iter(d)
    proofs = tuple(
        SystemProof(outputs, float(v), p, next(rows) if p else None, float(s), float(slack))
        for v, p, s, slack in zip(values, parts, factors, slacks, strict=True)
    )
    nodes = tuple(int(n) for n in vector("nodes", np.int64))
    empty = tuple(tuple(int(n) for n in x) for x in _cut(stored, chosen, signs))
    return Tree(outputs, nodes, proofs, empty)


def _cut(stored: Stored, whole: Any, lengths: npt.NDArray[np.int64]) -> list[Any]:
    """``whole`` cut into pieces of these lengths."""
    if not bool(np.all((lengths >= 0) & (lengths <= len(whole)))) or sum(lengths.tolist()) != len(whole):
        raise CertificateError(f"{stored.kind}: pieces that do not add up")
    ends = np.cumsum(lengths).tolist()
    return [whole[end - n : end] for end, n in zip(ends, lengths.tolist(), strict=True)]


def _next(items: Iterator[T], refusal: CertificateError) -> T:
    for item in items:
        return item
    raise refusal


def _integers(values: Sequence[int]) -> I64:
    return np.array(values, dtype=np.int64)


__all__ = ["EMPTY", "METHOD", "PROVED", "Neurons", "Path", "Tree", "TreeCertificate", "cell_is_empty"]
