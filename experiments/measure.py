"""Everything that is measured of one trained model, as flat names and numbers.

What an attack finds is a lower bound of a gap and an upper bound of a robust accuracy; what ``compare`` proves lies on
the other side, and a number on the wrong side raises LadderError and stores nothing.
"""

from __future__ import annotations

import copy
import logging
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from certbound.arrays import F64, I64
from certbound.attacks.apgd import AttackReport, attack
from certbound.bound import Result
from certbound.comparison import compare_curve
from certbound.compressibility import first_k, profile
from certbound.errors import InputError, UnsupportedLayerError
from certbound.lipschitz.alignment import alignment_pair
from certbound.lipschitz.sdp import lipschitz_sdp
from certbound.losses import loss_of_margins
from certbound.network import Network
from certbound.norms.dense import singular_values, spectral_norm
from certbound.robustness import network_margins
from certbound.types import Quantity, Sense, Status, norm_name
from experiments import modules
from experiments.config import Measure

if TYPE_CHECKING:
    from experiments.data import Images

log = logging.getLogger(__name__)

Numbers = dict[str, float | None]

TAIL: Final = 0.1
"""Compressibility is 1 − k/r, k the smallest number of terms that leaves at most this share of the sum in the tail."""

TOP_DIRECTIONS: Final = 5
"""Right singular vectors of the first layer whose share of an attack's energy is measured."""

_NORMS: Final = (2.0, math.inf)
_PICTURED: Final = 60
_PAIR_SDP: Final = 512
_SPECTRUM: Final = 20


@dataclass(frozen=True, eq=False)
class Model:
    """A trained model, and the data of its task.

    Parameters
    ----------
    module : the trained ``nn.Module``. network : the same as a chain of dense layers; None where it is none: then
        samples keep the shape of images, and the module itself is evaluated.
    second : a model of another seed, for transferred attacks; a network or a module as this one.
    """

    module: Any
    network: Network | None
    images: Images
    seed: int
    device: str
    second: Any = None

    @property
    def target(self) -> Any:
        """What is attacked and bounded."""
        return self.module if self.network is None else self.network

    def points(self, x: Any) -> Any:
        """Samples in the shape that the model takes: flat for a chain, images else."""
        return x if self.network is not None else x.reshape(len(x), *self.images.shape)

    def margins(self, x: Any, y: I64) -> F64:
        """``f_y − f_j`` in float64, of samples in the shape of :meth:`points` (or flat)."""
        if self.network is None:
            return modules.margins(self.module, self.points(x), y, self.device)
        return network_margins(self.network, self.network.flat_inputs(x), y)

    def flat(self, x: Any) -> F64:
        """One row a sample."""
        return x.reshape(len(x), -1) if self.network is None else self.network.flat_inputs(x)

    def encode(self, x: Any) -> F64:
        """The representation ``Φ(x)``: what the head reads."""
        return modules.encode(self.module, x, self.device) if self.network is None else encode(self.network, x)


def measure(model: Model, settings: Measure) -> tuple[Numbers, dict[str, Any]]:
    """All numbers of one model, and the lists for its pictures."""
    x, y = _test(model, settings.n_attack)
    numbers = {**_accuracy(model), **_structure_of(model), **_gradients(model)}
    details: dict[str, Any] = {}
    for norm in _NORMS:
        found = _attacks(model, x, y, norm, settings, numbers)
        numbers.update(_headline(model, x, y, norm, settings, found, numbers))
        if norm == 2.0:
            numbers.update(_mechanism(model, x, found, details, pictures=settings.pictures))
        numbers.update(_bounds(model, norm, settings))
        if settings.universal:
            numbers[f"universal_{norm_name(norm)}"] = _universal(model, norm, settings)
        if settings.checks:
            from experiments.checks import other_attacks

            numbers.update(other_attacks(model, x, y, norm, settings))
    return numbers, details


def radii(settings: Measure, norm: float) -> tuple[float, ...]:
    """The radii of the attacks in one norm."""
    return settings.deltas_inf if math.isinf(norm) else settings.deltas_2


def headline(settings: Measure, norm: float) -> float:
    """The radius at which bounds are computed."""
    return settings.headline_inf if math.isinf(norm) else settings.headline_2


def _test(model: Model, n: int) -> tuple[F64, I64]:
    images = model.images
    return model.points(images.x_test[:n].astype(np.float64)), images.y_test[:n]


def _accuracy(model: Model) -> Numbers:
    found: Numbers = {}
    for name, x, y in (
        ("_train", model.images.x_train, model.images.y_train),
        ("", model.images.x_test, model.images.y_test),
    ):
        if model.network is None:  # float32, as it was trained: float64 would take as long as training
            margins = modules.margins(model.module, model.points(x), y, model.device, "float32")
        else:
            margins = network_margins(model.network, x.astype(np.float64), y)
        found[f"sa{name}"] = float(np.mean(np.all(margins > 0, axis=1)))
        found[f"loss{name}"] = float(np.mean(loss_of_margins(margins)))
        if not name:
            smallest = np.min(margins, axis=1)
            found["margin"] = float(np.mean(np.abs(smallest)))
    return found


def _structure_of(model: Model) -> Numbers:
    return _structure_of_module(model.module) if model.network is None else _structure(model.network)


def _structure_of_module(module: Any) -> Numbers:
    """As :func:`_structure` of the weights that are compressed; ``folded_…`` with BatchNorm multiplied in."""
    numbers = _summary([_of_layer(w, modules.singular_values(w)) for w in modules.encoder_matrices(module)])
    folded = modules.folded_matrices(module)
    if folded is not None:
        rows = [_dominance("rows", np.abs(w).sum(axis=1)) for w in folded]
        numbers |= {f"folded_{name}": float(np.mean([found[name] for found in rows])) for name in rows[0]}
    numbers |= {f"alignment_{norm_name(norm)}": None for norm in _NORMS}
    parameters, nonzero = modules.count_weights(module)
    return numbers | {"parameters": float(parameters), "nonzero": float(nonzero)}


def _summary(each: list[dict[str, float]]) -> Numbers:
    """Means over layers; products and counts over all."""
    numbers: Numbers = {}
    for name in each[0]:
        values = [found[name] for found in each]
        if name.endswith("_product"):
            numbers[name] = math.prod(values)
        else:
            numbers[name] = sum(values) if name in ("ranks", "nonzero_rows") else float(np.mean(values))
    return numbers


def _structure(network: Network) -> Numbers:
    """Compressibility, scale and alignment of the encoder: means over layers, products and counts over all."""
    layers = network.chain.encoder
    numbers = _summary([_of_layer(w) for w in layers])
    for norm in _NORMS:
        pairs = [_alignment(a, b, norm) for a, b in pairwise(layers)]
        known = [v for v in pairs if v is not None]
        numbers[f"alignment_{norm_name(norm)}"] = float(np.mean(known)) if known and len(known) == len(pairs) else None
    matrices = [*layers, network.chain.head]
    numbers["parameters"] = float(sum(w.size for w in matrices))
    numbers["nonzero"] = float(sum(np.count_nonzero(w) for w in matrices))
    return numbers


def _of_layer(w: F64, sigma: F64 | None = None) -> dict[str, float]:
    """What is measured of one weight matrix, whose singular values may be known already."""
    if sigma is None:
        scaled, scale = singular_values(w)
        sigma = scaled * scale
    rows = np.abs(w).sum(axis=1)
    frobenius = float(np.linalg.norm(w))
    share = sigma[sigma > 0] / np.sum(sigma) if sigma[0] > 0 else np.ones(1)
    # float32 weights: singular values below their rounding are zeros
    rank = np.sum(sigma > sigma[0] * max(w.shape) * np.finfo(np.float32).eps)
    return {
        **_dominance("spectral", sigma),
        **_dominance("rows", rows),
        "effective_rank": float(np.exp(-np.sum(share * np.log(share)))),
        "stable_rank": (frobenius / float(sigma[0])) ** 2 if sigma[0] > 0 else 0.0,
        "structure_2": float(sigma[0]) / frobenius if frobenius > 0 else 0.0,
        "structure_inf": float(rows.max()) / (math.sqrt(len(w)) * frobenius) if frobenius > 0 else 0.0,
        "frobenius_product": frobenius,
        "spectral_product": float(sigma[0]),
        "inf_product": float(rows.max()),
        "ranks": float(rank),
        "nonzero_rows": float(np.count_nonzero(rows)),
    }


def _dominance(name: str, theta: F64) -> dict[str, float]:
    """How far few terms carry the whole, and how uneven the top 5 % (two at least) are: ``1 − |θ|_(k)/|θ|_(1)``."""
    tails = profile(theta).epsilon
    top = np.sort(theta)[::-1]
    k = min(len(top), max(2, math.ceil(0.05 * len(top))))
    return {
        f"compressibility_{name}": 1.0 - first_k(tails, TAIL) / len(theta),
        f"epsilon_{name}": float(tails[max(1, len(theta) // 4) - 1]),
        f"beta_{name}": 1.0 - float(top[k - 1] / top[0]) if top[0] > 0 else 0.0,
    }


def _alignment(first: F64, second: F64, norm: float) -> float | None:
    """An upper bound of A_p of two adjacent layers: decoupled (∞), or the pair's SDP (2), where its size allows."""
    if math.isinf(norm):
        return alignment_pair(second, first, norm=norm, max_patterns=1).value
    product = spectral_norm(first) * spectral_norm(second)
    if product == 0.0:
        return 0.0
    if len(first) > _PAIR_SDP:
        return None
    found = lipschitz_sdp([first, second], norm=2, tolerance=1e-3)
    assert isinstance(found, Result)  # a tuple of them for all margins only
    return min(1.0, found.bound.value / product)


def _gradients(model: Model) -> Numbers:
    """Mean dual norm of the loss's gradient in x: what a first-order attack would gain per unit of δ."""
    x, y = _test(model, 1000)
    if model.network is None:
        gradients = modules.input_gradients(model.module, x, y, model.device)
    else:
        gradients = input_gradients(model.network, x, y)
    return {
        "gradient_2": float(np.mean(np.linalg.norm(gradients, axis=1))),
        "gradient_inf": float(np.mean(np.abs(gradients).sum(axis=1))),
    }


def input_gradients(network: Network, x: F64, y: I64) -> F64:
    """``∇_x`` of each sample's cross-entropy, by hand through the ReLU chain (slope 0 at 0)."""
    chain = network.open_ended.chain
    h, slopes = x, []
    for w, b in zip(chain.encoder, chain.biases[:-1], strict=True):
        z = h @ w.T + b
        slopes.append(z > 0)
        h = np.maximum(z, 0.0)
    logits = h @ chain.head.T + chain.biases[-1]
    if logits.shape[1] == 1:  # d/dz log(1 + exp(−s z)), s = ±1
        sign = 2.0 * y[:, None] - 1.0
        g = -sign * _sigmoid(-sign * logits)
    else:
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        g = p / p.sum(axis=1, keepdims=True)
        g[np.arange(len(y)), y] -= 1.0
    g = g @ chain.head
    for w, slope in zip(reversed(chain.encoder), reversed(slopes), strict=True):
        g = (g * slope) @ w
    gradients: F64 = g
    return gradients


def _sigmoid(t: F64) -> F64:
    value: F64 = np.exp(-np.logaddexp(0.0, -t))
    return value


def _attacks(
    model: Model, x: F64, y: I64, norm: float, settings: Measure, numbers: Numbers
) -> AttackReport:
    """Robust accuracy and loss gap at every radius into ``numbers``; the report at the headline radius."""
    at_headline: AttackReport | None = None
    name = norm_name(norm)
    still = np.ones(len(y), dtype=bool)
    for delta in sorted({*radii(settings, norm), headline(settings, norm)}):
        found = attack(
            model.target, x, y, delta=delta, norm=norm, method=settings.attack, steps=settings.steps,
            restarts=settings.restarts, seed=model.seed, device=model.device, batch_size=batch_size(model),
        )  # fmt: skip
        # what a smaller ball contains the larger one contains too
        still &= found.adversarial_correct
        numbers[f"ra_{name}@{delta:g}"] = float(np.mean(still))
        numbers[f"gap_{name}@{delta:g}"] = found.loss_gap.value
        if delta == headline(settings, norm):
            at_headline = found
    assert at_headline is not None
    return at_headline


def _headline(
    model: Model, x: F64, y: I64, norm: float, settings: Measure, found: AttackReport, numbers: Numbers
) -> Numbers:
    name, delta = norm_name(norm), headline(settings, norm)
    ra = numbers[f"ra_{name}@{delta:g}"]
    assert ra is not None
    clean, moved = model.margins(x, y), model.margins(found.x_adv, y)
    accuracy = float(np.mean(np.all(clean > 0, axis=1)))
    scale = float(np.mean(np.abs(np.min(clean, axis=1))))
    normalised = None
    if scale > 0:
        normalised = float(np.mean(loss_of_margins(moved / scale) - loss_of_margins(clean / scale)))
    return {
        f"ra_{name}": ra,
        f"gap_{name}": found.loss_gap.value,
        f"gap_normalised_{name}": normalised,
        f"ra_sa_{name}": ra / accuracy if accuracy > 0 else None,
    }


def batch_size(model: Model) -> int:
    """Samples attacked together; a large network's activations of a thousand images would not fit into memory."""
    return 1024 if model.network is not None else modules.BATCH


def _mechanism(
    model: Model, x: F64, found: AttackReport, details: dict[str, Any], *, pictures: bool
) -> Numbers:
    """Where attacks point, and how far they move the representation: the mechanism that e02 looks into."""
    a = model.flat(found.x_adv) - model.flat(x)
    sizes = np.linalg.norm(a, axis=1)
    moved = sizes > 0
    numbers: Numbers = {"attack_energy": None, "relative_shift": None}
    if moved.any() and model.network is not None:
        _, _, vh = np.linalg.svd(model.network.chain.encoder[0], full_matrices=False)
        energy = ((a[moved] @ vh.T) / sizes[moved, None]) ** 2
        numbers["attack_energy"] = float(np.mean(energy[:, :TOP_DIRECTIONS].sum(axis=1)))
        if pictures:
            details["energy"] = [float(v) for v in energy.mean(axis=0)[:_SPECTRUM]]
    z, z_adv = model.encode(x), model.encode(x + a.reshape(x.shape))
    length = np.linalg.norm(z, axis=1)
    usable = length > 0
    if usable.any():
        numbers["relative_shift"] = float(np.mean(np.linalg.norm(z_adv - z, axis=1)[usable] / length[usable]))
    if pictures:
        details["pca"] = _pca(z[:_PICTURED], z_adv[:_PICTURED])
    return numbers


def encode(network: Network, x: F64) -> F64:
    """The representation ``Φ(x)``: what the head reads."""
    h = x
    chain = network.open_ended.chain
    for w, b in zip(chain.encoder, chain.biases[:-1], strict=True):
        h = np.maximum(h @ w.T + b, 0.0)
    return h


def _pca(z: F64, z_adv: F64) -> dict[str, list[list[float]]]:
    """Both sets on the two main axes of the clean one."""
    centre = z.mean(axis=0)
    _, _, vh = np.linalg.svd(z - centre, full_matrices=False)
    axes = vh[:2]

    def rounded(points: F64) -> list[list[float]]:
        return [[round(float(v), 4) for v in row] for row in (points - centre) @ axes.T]

    return {"clean": rounded(z), "adversarial": rounded(z_adv)}


def _bounds(model: Model, norm: float, settings: Measure) -> Numbers:
    """The rows of ``compare`` at the headline radius; None for a method that did not finish."""
    name = norm_name(norm)
    if not settings.methods:
        return {}
    x, y = _test(model, settings.n_bounds)
    try:
        table = compare_curve(
            _bounded(model), x, y, deltas=[headline(settings, norm)], norm=norm, seed=model.seed,
            methods=["apgd-ce", *settings.methods], effort=settings.effort, time_limit=settings.time_limit,
        )[0]  # fmt: skip
    except UnsupportedLayerError as error:
        if model.network is not None:
            raise
        log.warning("no bounds: %s", error)  # an architecture that cannot be read: attacks are all there is
        return {f"bound_{name}/{method}": None for method in settings.methods}
    numbers: Numbers = {f"attack_{name}": table.empirical_gap}
    for row in table.rows:
        value = row.value if row.status is Status.OK else None
        if row.quantity is Quantity.LOSS_GAP and row.sense is Sense.UPPER:
            numbers[f"bound_{name}/{row.method}"] = value
        elif row.quantity is Quantity.ROBUST_ACCURACY and row.sense is Sense.LOWER:
            numbers[f"certified_{name}/{row.method}"] = value
        elif row.quantity is Quantity.LIPSCHITZ and row.sense is Sense.UPPER:
            numbers[f"lipschitz_{name}/{row.method}"] = value
    return numbers


def _bounded(model: Model) -> Any:
    """What ``compare`` gets: it works on the CPU."""
    return model.network if model.network is not None else copy.deepcopy(model.module).cpu()


def normalised(network: Network, x: F64, y: I64) -> Network:
    """The network with its logits divided by the mean size of its margins: the same classes, and gradients of the
    cross-entropy that neither vanish nor saturate because the weights are large or small.
    """
    scale = float(np.mean(np.abs(np.min(network_margins(network, x, y), axis=1))))
    if not 0 < scale < math.inf:
        return network
    open_ended = network.open_ended
    chain = open_ended.chain
    return Network.from_weights(
        [*chain.encoder, chain.head / scale], biases=[*chain.biases[:-1], chain.biases[-1] / scale]
    )


def _universal(model: Model, norm: float, settings: Measure) -> float:
    """Success rate on test samples of one perturbation made on training samples, at the headline radius."""
    from certbound.attacks.universal import universal_perturbation

    images = model.images
    if model.network is None:
        raise InputError(
            "universal", got="an architecture that is no chain of dense layers", needed="a dense network",
            fix="measure without universal perturbations",
        )  # fmt: skip
    x, y = images.x_train[:1000].astype(np.float64), images.y_train[:1000]
    report = universal_perturbation(
        normalised(model.network, x, y), x, y, delta=settings.universal_factor * headline(settings, norm), norm=norm,
        steps=settings.steps * 2, seed=model.seed, held_out=_test(model, len(images.y_test)), device=model.device,
    )  # fmt: skip
    assert report.held_out is not None
    return report.held_out.success_rate


__all__ = [
    "Model", "Numbers", "batch_size", "encode", "headline", "input_gradients", "measure", "normalised", "radii",
]  # fmt: skip
