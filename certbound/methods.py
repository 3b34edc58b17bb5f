"""The methods that ``compare`` runs, each with what it can do and what it needs; found lazily.

Three kinds: ``lipschitz`` methods give a constant for every margin ``f_j − f_y`` once per network; ``margins`` methods
bound the margins on a ball of given radius; ``attack`` methods find perturbed points.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from typing import Literal, cast

import numpy as np

from certbound.arrays import F64, I64
from certbound.bound import Bound, Result
from certbound.errors import UnsupportedLayerError
from certbound.lipschitz.graph_margin_constants import product_constants
from certbound.lipschitz.margin_constants import margin_constants
from certbound.lipschitz.patterns import pattern_maximum
from certbound.lipschitz.sdp_cvxpy import CLARABEL_LIMIT, SCS_LIMIT, lmi_size
from certbound.lipschitz.system import activation_widths
from certbound.losses import class_head
from certbound.network import Network
from certbound.robustness import (
    Certified,
    Samples,
    gap_of_margins,
    gradient_constants,
    head_constants,
    is_chain,
    network_margins,
)
from certbound.theorems.theorem32 import encoder_bounds
from certbound.types import Rigor, Sense, Status

MAX_PATTERNS = 2**10
"""Patterns enumerated per pair of layers inside ``compare``: a fraction of a second."""
PATTERN_NEURONS = 12
"""Hidden neurons up to which ``compare`` enumerates all patterns, for every margin."""
LIPSDP_WORK = 4e11
"""Operations that the SDP of a Network that is no plain chain may spend on solving, at effort 1: some ten seconds."""
_SOLVES, _PROOF = 160.0, 20.0
"""Operations, in units of (rows of the LMI)³, of solving one margin, and of the closed form of one with its proof."""

Kind = Literal["lipschitz", "margins", "attack"]


@dataclass(frozen=True, eq=False)
class Problem:
    """One network, one sample set, one norm; what several methods share is computed once."""

    samples: Samples
    seed: int
    indices: I64  # of the samples in what the caller passed
    deadline: float | None = None
    effort: float = 1.0  # of the SDP, in units of its default

    def seconds_left(self) -> float | None:
        """Seconds to the deadline; None without one."""
        return None if self.deadline is None else self.deadline - time.perf_counter()

    @property
    def chain(self) -> Network:
        """The network of a method that knows plain chains only: :func:`_no_chain` keeps others from it."""
        network = self.samples.network
        assert isinstance(network, Network)
        return network

    @cached_property
    def encoder(self) -> tuple[dict[str, Bound], float]:
        """The encoder's five Lipschitz bounds of Theorem 3.2, and the seconds they took together."""
        start = time.perf_counter()
        network = self.chain
        bounds, _, _ = encoder_bounds(
            network.chain.encoder, self.samples.norm, network.digest, max_patterns=MAX_PATTERNS
        )
        return bounds, time.perf_counter() - start


@dataclass(frozen=True, eq=False)
class Constants:
    """Lipschitz constants of the margins, shape (classes, classes), on the stated side."""

    values: F64
    status: Status = Status.OK
    seconds: float | None = None  # where several methods share one computation


@dataclass(frozen=True, eq=False)
class Attacked:
    """What an attack found, in float64.

    ``margins``: (samples, classes), the smallest of those at the points found, which may be two of a sample: that of
    the highest loss and a misclassified one. ``loss_gap``: (samples,), at the points of the highest loss, ``points``
    (flat).
    """

    margins: F64
    loss_gap: F64
    points: F64 | None = None


@dataclass(frozen=True)
class Method:
    """A method with what it can do.

    ``sense``: the side of its loss gap or constant. ``packages``: what must be installed (any one of a tuple inside).
    ``too_large``: a reason why the problem exceeds the method, or None; ``unsupported``: why the method does not apply
    to it at all. ``corollary``: the loss gap is Corollary 3.3's. ``default``: runs if no methods are named.
    """

    name: str
    kind: Kind
    sense: Sense
    source: str
    constants: Callable[[Problem], Constants] | None = None
    certify: Callable[[Problem, float], Certified] | None = None
    attack: Callable[[Problem, float], Attacked] | None = None
    packages: tuple[tuple[str, ...], ...] = ()
    install: str = ""
    rigor: Rigor = Rigor.NUMERICAL
    corollary: bool = False
    too_large: Callable[[Problem], str | None] = lambda _: None
    unsupported: Callable[[Problem], str | None] = lambda _: None
    default: bool = True

    def missing(self) -> str | None:
        """The command that installs what is missing, or None."""
        present = all(any(find_spec(name) is not None for name in group) for group in self.packages)
        return None if present else self.install


def _encoder_method(name: str, source: str) -> Method:
    def constants(problem: Problem) -> Constants:
        bounds, seconds = problem.encoder
        head = problem.chain.chain.head
        return Constants(head_constants(bounds[name].value, head, problem.samples.norm), seconds=seconds)

    return Method(
        name, "lipschitz", Sense.UPPER, source, constants=constants, corollary=True, unsupported=_no_chain
    )


_CHAIN = "Theorems 3.1 and 3.2 are proved for chains of fully connected layers and ReLU; see certbound.layer_report"


def _no_chain(problem: Problem) -> str | None:
    """Why a method for plain chains does not apply."""
    return None if is_chain(problem.samples.network) else _CHAIN


def _no_patterns(problem: Problem) -> str | None:
    return None if is_chain(problem.samples.network) else "patterns are enumerated for plain ReLU chains only"


def _no_network(problem: Problem) -> str | None:
    """Why LipSDP does not apply."""
    network = problem.samples.network
    if isinstance(network, Network):
        return None
    from certbound.io.graph_to_network import dense_network

    try:
        dense_network(network)
    except UnsupportedLayerError as error:
        return f"no Network of dense layers: {error}"
    return None


def _no_cvxpy(problem: Problem) -> str | None:
    return None if is_chain(problem.samples.network) else "the reference for plain ReLU chains only; sdp takes others"


def _product(problem: Problem) -> Constants:
    """Encoder times head norm: of a chain by Corollary 3.3, of all else by the product rule of its graph."""
    if is_chain(problem.samples.network):
        bounds, seconds = problem.encoder
        constants = head_constants(bounds["product"].value, problem.chain.chain.head, problem.samples.norm)
        return Constants(constants, seconds=seconds)
    return Constants(product_constants(problem.samples.network, problem.samples.norm))


def _closed(problem: Problem, method: Literal["closed-form", "sdp"]) -> Constants:
    """Of a chain all margins together; of another Network LipSDP margin by margin."""
    samples = problem.samples
    assert isinstance(samples.network, Network)
    if not is_chain(samples.network):
        return _lipsdp(problem, samples.network, solve=method == "sdp")
    left = problem.seconds_left() if method == "sdp" else None
    values, status = margin_constants(samples.network, samples.norm, method, left, problem.effort)
    return Constants(values, status)


def _lipsdp(problem: Problem, network: Network, *, solve: bool) -> Constants:
    """The closed form of every margin; with ``solve`` the largest ones again, by the barrier.

    How many is a count of operations, as for chains: equal calls give equal numbers on every machine.
    """
    from certbound.lipschitz.sdp import lipschitz_sdp

    norm, n = problem.samples.norm, network.n_outputs
    pairs = [(j, y) for y in range(n) for j in range(y)]
    asked: list[int | tuple[int, int]] = [*pairs] if n > 1 else [0]

    def asked_for(
        outputs: int | tuple[int, int], method: Literal["closed-form", "barrier"], left: float | None
    ) -> Result:
        found = lipschitz_sdp(network, norm, outputs=outputs, method=method, time_limit=left)
        assert isinstance(found, Result)  # a tuple of them for all margins only
        return found

    values = np.array([asked_for(o, "closed-form", None).value for o in asked])
    status = Status.OK
    if solve:
        count = max(1, int(problem.effort * LIPSDP_WORK / (_SOLVES * _rows(network) ** 3)))
        for i in np.argsort(-values, kind="stable")[:count]:
            left = problem.seconds_left()
            if left is not None and left <= 0.0:
                status = Status.TIME_LIMIT
                break
            found = asked_for(asked[i], "barrier", left)
            values[i] = min(values[i], found.value)
            status = status if found.status is Status.OK else found.status
    constants = np.zeros((max(n, 2),) * 2)
    for (j, y), value in zip(pairs or [(0, 1)], values, strict=True):
        constants[j, y] = constants[y, j] = value
    return Constants(constants, status)


def _rows(network: Network) -> int:
    """Rows of the LMI: inputs and neurons."""
    return network.n_inputs + sum(activation_widths(network))


def _lipsdp_too_large(problem: Problem) -> str | None:
    """Of a network that is no chain each margin is proved for itself."""
    network = problem.samples.network
    if is_chain(network) or not isinstance(network, Network):
        return None
    pairs, rows = max(1, math.comb(network.n_outputs, 2)), _rows(network)
    if pairs * _PROOF * rows**3 <= 5.0 * LIPSDP_WORK:
        return None
    return f"an LMI of {rows} rows for each of {pairs} margins takes hours; lipschitz_sdp takes one of them"


def _recursion(problem: Problem) -> Constants:
    return _closed(problem, "closed-form")


def _sdp(problem: Problem) -> Constants:
    return _closed(problem, "sdp")


def _cvxpy(problem: Problem) -> Constants:
    values, status = margin_constants(problem.chain, problem.samples.norm, "cvxpy", problem.seconds_left())
    return Constants(values, status)


def _cvxpy_too_large(problem: Problem) -> str | None:
    chain = problem.chain.chain
    if not chain.encoder:
        return None
    size = lmi_size(chain.encoder, problem.samples.norm)
    pairs = math.comb(len(class_head(chain.head)), 2)
    # One SDP a margin, whose time grows like the fourth power of the LMI's size: about a minute in all at the limit.
    limit = min(SCS_LIMIT, int((CLARABEL_LIMIT**4 / pairs) ** 0.25))
    if size <= limit:
        return None
    return f"an LMI of {size} rows for each of {pairs} margins (limit {limit}); lipschitz_sdp takes more"


def _patterns(problem: Problem) -> Constants:
    chain, norm = problem.chain.chain, problem.samples.norm
    rows = class_head(chain.head)
    values = np.zeros((len(rows), len(rows)))
    for y in range(len(rows)):
        for j in range(y):
            values[j, y] = values[y, j] = pattern_maximum(chain.encoder, (rows[j] - rows[y])[None], norm)
    return Constants(values)


def _patterns_too_large(problem: Problem) -> str | None:
    hidden = sum(w.shape[0] for w in problem.chain.chain.encoder)
    return None if hidden <= PATTERN_NEURONS else f"{hidden} hidden neurons (limit {PATTERN_NEURONS})"


def _gradient(problem: Problem) -> Constants:
    return Constants(gradient_constants(problem.samples))


def _margins_by(method: str) -> Callable[[Problem, float], Certified]:
    def certify(problem: Problem, delta: float) -> Certified:
        from certbound.crown.margins import margins

        s = problem.samples
        report = margins(s.network, s.x, s.y, delta=delta, norm=s.norm, method=method, clip=s.clip)
        if report.status is not Status.OK:  # its bounds are another method's: compare shows the failure
            raise RuntimeError(report.note)
        return Certified(report.lower, gap_of_margins(s, report.lower))

    return certify


def _margin_method(name: str, source: str, *, default: bool = True) -> Method:
    return Method(
        name,
        "margins",
        Sense.UPPER,
        source,
        certify=_margins_by(name),
        packages=_LIRPA,
        install=_CROWN_INSTALL,
        default=default,
    )


def _attack_by(method: str) -> Callable[[Problem, float], Attacked]:
    def search(problem: Problem, delta: float) -> Attacked:
        from certbound.attacks.apgd import attack

        s = problem.samples
        found = attack(s.network, s.x, s.y, delta=delta, norm=s.norm, method=method, seed=problem.seed)
        points, wrong = (s.network.flat_inputs(x) for x in (found.x_adv, found.x_wrong))
        margins = [network_margins(s.network, x, s.y) for x in (points, wrong)]
        return Attacked(np.minimum(*margins), cast("F64", found.per_sample_gap), points)

    return search


def _too_few_classes(least: int) -> Callable[[Problem], str | None]:
    def reason(problem: Problem) -> str | None:
        classes = problem.samples.margins.shape[1]
        return None if classes >= least else f"{classes} classes (its loss needs {least}); use apgd-ce"

    return reason


def _attack_method(name: str, source: str, least_classes: int, *, default: bool = True) -> Method:
    return Method(
        name,
        "attack",
        Sense.LOWER,
        source,
        attack=_attack_by(name),
        default=default,
        packages=(("torch",), ("autoattack", "pyautoattack")),
        install="pip install 'certbound[attack]'",
        unsupported=_too_few_classes(least_classes),
    )


_PAPER = "Barsbey et al., ICLR 2026, Corollary 3.3 with "
_LIRPA = (("auto_LiRPA",), ("torch",))
_CROWN_INSTALL = "pip install 'certbound[crown]' && pip install --no-deps auto-lirpa==0.3"

METHODS: dict[str, Method] = {
    m.name: m
    for m in (
        _attack_method("apgd-ce", "AutoPGD, cross-entropy (Croce & Hein, ICML 2020)", 2),
        _attack_method("apgd-dlr", "AutoPGD, difference of logits ratio (Croce & Hein, ICML 2020)", 3, default=False),
        _attack_method("apgd-t", "AutoPGD, targeted DLR (Croce & Hein, ICML 2020)", 4, default=False),
        Method("gradient", "lipschitz", Sense.LOWER, "margin gradients at the samples", constants=_gradient),
        _encoder_method("printed", _PAPER + "Theorem 3.1 as printed"),
        _encoder_method("derived", _PAPER + "Theorem 3.1, derived form"),
        _encoder_method("sharp", _PAPER + "Theorem 3.1, sharp form"),
        Method(
            "product", "lipschitz", Sense.UPPER, _PAPER + "the product of norms; of graphs with sums of branches",
            constants=_product, corollary=True,
        ),
        _encoder_method("cover", _PAPER + "the alignment cover of Theorem 3.2"),
        Method(
            "patterns",
            "lipschitz",
            Sense.UPPER,
            "all 0/1 activation patterns",
            constants=_patterns,
            too_large=_patterns_too_large,
            unsupported=_no_patterns,
        ),
        Method(
            "recursion",
            "lipschitz",
            Sense.UPPER,
            "LipSDP-neuron, closed-form feasible point",
            constants=_recursion,
            unsupported=_no_network,
            too_large=_lipsdp_too_large,
        ),
        Method(
            "sdp",
            "lipschitz",
            Sense.UPPER,
            "LipSDP-neuron by the barrier, proved; for many margins the multipliers of the largest",
            constants=_sdp,
            unsupported=_no_network,
            too_large=_lipsdp_too_large,
        ),
        Method(
            "sdp-cvxpy",
            "lipschitz",
            Sense.UPPER,
            "LipSDP-neuron by cvxpy, repaired",
            constants=_cvxpy,
            packages=(("cvxpy",),),
            install="pip install 'certbound[sdp]'",
            too_large=_cvxpy_too_large,
            unsupported=_no_cvxpy,
            default=False,
        ),
        _margin_method("IBP", "interval bound propagation (auto_LiRPA)"),
        _margin_method("CROWN-IBP", "CROWN on IBP's bounds of the neurons (auto_LiRPA)", default=False),
        _margin_method("forward", "forward linear bounds (auto_LiRPA)", default=False),
        _margin_method("CROWN", "CROWN (auto_LiRPA)"),
        _margin_method("alpha-CROWN", "CROWN with optimised slopes (auto_LiRPA)", default=False),
    )
}
"""Every method, by name, in the order of the tables. The slower and the looser ones are no defaults."""


def empirical_gap(attacked: Mapping[str, Attacked]) -> float | None:
    """Mean over samples of the largest loss gap that any attack found; None without an attack.

    >>> one, other = (Attacked(np.zeros((2, 2)), np.array(gap)) for gap in ([1.0, 0.0], [0.0, 3.0]))
    >>> empirical_gap({"a": one, "b": other})
    2.0
    """
    if not attacked:
        return None
    return float(np.mean(np.max([a.loss_gap for a in attacked.values()], axis=0)))


LADDER: tuple[tuple[str, str], ...] = (
    ("patterns", "sdp"),
    ("patterns", "sdp-cvxpy"),
    ("patterns", "recursion"),
    ("patterns", "cover"),
    ("patterns", "product"),
    ("sdp", "recursion"),
    ("sdp-cvxpy", "recursion"),
    ("recursion", "product"),
    ("cover", "product"),
    ("cover", "sharp"),
    ("sharp", "derived"),
    ("derived", "printed"),
)
"""Pairs of methods whose margin constants are ordered, entry by entry (theory, section 8)."""

__all__ = ["LADDER", "METHODS", "Attacked", "Constants", "Method", "Problem", "empirical_gap"]
