"""The pair of samples and perturbed samples: evidence of a lower bound that anyone can evaluate again."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction
from typing import ClassVar, Self

import numpy as np

from certbound import losses
from certbound.arrays import F64, I64
from certbound.attacks.common import BOX
from certbound.attacks.gap import mean_gap_below
from certbound.bound import Bound, Claim
from certbound.certificate import Saveable, Stored, finish, take, take_array
from certbound.errors import CertificateError, InputError, NumericalError, UnsupportedLayerError
from certbound.network import Network, as_network
from certbound.types import Quantity, Rigor, Sense, norm_name

TOLERANCE = 1e-9
"""What a *numerical* pair's recomputed gap may fall below the claimed one by: another machine's rounding."""

_ROOM = 4.0
"""Error bounds that a new pair keeps away from: another BLAS computes margins up to 2 away, and takes off its own."""

_UNIT = 2.0**-53


@dataclass(frozen=True, eq=False)
class AttackPair(Saveable):
    """Samples x, points ``x_adv`` of their balls, and the mean loss gap between them: a certificate of that gap.

    The largest mean gap over the balls is at least the one at any points of the balls, and at least 0; :meth:`verify`
    evaluates it again with numpy alone, every rounding enclosed. :meth:`proving` makes the pair with the largest value
    that this proves.

    Parameters
    ----------
    x, x_adv : float64 of one shape (samples, …), both in [0, 1].
    y : labels.
    delta, norm : ``‖x_adv − x‖ <= delta`` for every sample, in exact arithmetic.
    value : the claim: a lower bound of the mean over samples of ``loss(x_adv) − loss(x)``, cross-entropy.
    subject : digest of the network.
    method : what found the points; nothing depends on it.
    numerical : why the value is only *numerical*, evaluated in float64 and checked up to 1e-9; empty: it is rigorous.

    >>> pair = AttackPair([[0.75, 0.25]], [[0.5, 0.5]], [0], 0.25, math.inf, 0.2191, "")
    >>> network = as_network([[[1.0, 0.0], [0.0, 1.0]]])
    >>> import dataclasses
    >>> dataclasses.replace(pair, subject=network.digest).verify(network)  # log 2 − log(1 + e^−0.5) = 0.21907
    Traceback (most recent call last):
        ...
    certbound.errors.CertificateError: attack pair: the mean loss gap is at least 0.2190..., 0.2191 is claimed
    >>> dataclasses.replace(pair, subject=network.digest, value=0.219).verify(network)
    True
    """

    kind: ClassVar[str] = "attack pair"

    x: F64 = field(repr=False)
    x_adv: F64 = field(repr=False)
    y: I64
    delta: float
    norm: float
    value: float
    subject: str
    method: str = ""
    numerical: str = ""

    def __post_init__(self) -> None:
        for name, kind in (("x", np.float64), ("x_adv", np.float64), ("y", np.int64)):
            own = np.array(getattr(self, name), dtype=kind)
            own.flags.writeable = False
            object.__setattr__(self, name, own)

    @classmethod
    def proving(
        cls, network: Network, x: F64, x_adv: F64, y: I64, delta: float, norm: float, method: str, measured: float
    ) -> Self:
        """The pair with the largest value that every machine's :meth:`verify` accepts, but none above ``measured``.

        Where the enclosure leaves the range of float64, and for a network that is no ReLU chain, ``measured`` itself,
        as a *numerical* value with the reason.
        """
        reason = ""
        try:
            gap = mean_gap_below(network, network.flat_inputs(x), network.flat_inputs(x_adv), y, room=_ROOM)
            value = max(0.0, min(gap, measured))  # no perturbation is one too
        except (NumericalError, UnsupportedLayerError) as error:
            reason = f"rounding is not enclosed: {error}"
            value = min(measured, mean_gap(network, x, x_adv, y))
        return cls(x, x_adv, y, delta, norm, value, network.digest, method, reason)

    @property
    def domain(self) -> str:
        """The domain of the claim, in words, with the digest of the samples."""
        flat = np.ascontiguousarray(self.x.reshape(len(self.x), -1))
        return losses.perturbation_domain(flat, self.y, self.delta, self.norm, BOX)

    @property
    def bound(self) -> Bound:
        """The claim: a lower bound of the largest mean loss gap, at least 0; a numerical one less the tolerance."""
        claim = Claim(Quantity.LOSS_GAP, self.norm, None, self.domain, "all", self.subject)
        value = self.value - TOLERANCE if self.numerical else self.value
        return Bound(
            max(value, 0.0), claim, Sense.LOWER, Rigor.NUMERICAL if self.numerical else Rigor.RIGOROUS,
            self.method or self.kind, "attack pair, re-evaluated", (self.numerical,) if self.numerical else (),
            parameters=(("delta", self.delta),), certificate=self,
        )  # fmt: skip

    def verify(self, network_or_weights: object) -> bool:
        """Check points, ball, network and loss gap anew, without torch.

        Parameters
        ----------
        network_or_weights : Network, list of weight matrices or nn.Module; its digest must be ``subject``.

        Returns
        -------
        True.

        Raises
        ------
        CertificateError : with the reason: NaN, shapes, a point outside [0, 1] or its ball, another network, a
            ``value`` above the lower bound that the evaluation with all roundings enclosed gives (and above 0), or,
            of a *numerical* pair, more than 1e-9 above the float64 value.
        InputError : ``network_or_weights`` is no network at all.
        """
        self._check_numbers()
        self._check_ball()
        network = as_network(network_or_weights, input_shape=self.x.shape[1:] if self.x.ndim > 2 else None)
        if network.digest != self.subject:
            raise _error(f"it is about the network {self.subject!r}, not {network.digest!r}")
        gap = mean_gap(network, self.x, self.x_adv, self.y)  # also refuses what does not fit the network
        if self.numerical:
            if not gap >= self.value - TOLERANCE:  # so that NaN fails
                raise _error(f"the mean loss gap is {gap!r}, {self.value!r} is claimed")
            return True
        try:
            proved = mean_gap_below(network, network.flat_inputs(self.x), network.flat_inputs(self.x_adv), self.y)
        except NumericalError as error:
            raise _error(str(error)) from error
        if not max(proved, 0.0) >= self.value:
            raise _error(f"the mean loss gap is at least {proved!r}, {self.value!r} is claimed")
        return True

    def stored(self) -> Stored:
        """Fields and arrays, for :meth:`save`."""
        fields = {
            "delta": float(self.delta), "method": self.method, "norm": float(self.norm), "numerical": self.numerical,
            "subject": self.subject, "value": float(self.value),
        }  # fmt: skip
        return Stored(self.kind, fields, {"x": self.x, "x_adv": self.x_adv, "y": self.y})

    @classmethod
    def restored(cls, stored: Stored) -> Self:
        """The pair again; :meth:`verify` checks what it says."""
        words = ("method", "numerical", "subject")
        numbers = ("delta", "norm", "value")
        finish(stored, fields=(*words, *numbers), arrays=("x", "x_adv", "y"))
        x, x_adv, y = take_array(stored, "x"), take_array(stored, "x_adv"), take_array(stored, "y", dtype=np.int64)
        delta, norm, value = (take(stored, n, float) for n in numbers)
        method, numerical, subject = (take(stored, n, str) for n in words)
        return cls(x, x_adv, y, delta, norm, value, subject, method, numerical)

    def _check_numbers(self) -> None:
        if self.x.ndim < 2 or self.x.size == 0 or self.x.shape != self.x_adv.shape or self.y.shape != self.x.shape[:1]:
            raise _error(f"x, x_adv and y have shapes {self.x.shape}, {self.x_adv.shape} and {self.y.shape}")
        if self.norm not in (2.0, math.inf):
            raise _error(f"norm {self.norm!r} is neither 2 nor inf")
        for name, number in (("delta", self.delta), ("value", self.value)):
            if not math.isfinite(number) or (name == "delta" and number < 0):
                raise _error(f"{name} is {number!r}")
        for name, array in (("x", self.x), ("x_adv", self.x_adv)):
            if not np.all((array >= BOX[0]) & (array <= BOX[1])):  # so that NaN fails
                raise _error(f"{name} has entries outside [0, 1] or NaN")

    def _check_ball(self) -> None:
        shift = (self.x_adv - self.x).reshape(len(self.x), -1)
        flat, flat_adv = self.x.reshape(shift.shape), self.x_adv.reshape(shift.shape)
        if math.isinf(self.norm):
            # rounding is monotone: fl(a) < δ proves a <= δ, fl(a) > δ proves a > δ
            size = np.abs(shift)
            open_entries = zip(*np.nonzero(size == self.delta), strict=True)
            outside = bool(np.any(size > self.delta)) or any(
                abs(Fraction(flat_adv[k].item()) - Fraction(flat[k].item())) > Fraction(self.delta)
                for k in open_entries
            )
        else:
            # the computed norm is off by (n/2 + 3) u relative, and by what underflows; in doubt, fractions decide
            n = shift.shape[1]
            size = np.sqrt(np.sum(shift * shift, axis=1))
            slack = (n + 8) * _UNIT * self.delta + math.sqrt(n) * 2.0**-537
            outside = bool(np.any(size > self.delta + slack)) or any(
                _exceeds(flat[i], flat_adv[i], self.delta) for i in np.nonzero(size > self.delta - slack)[0]
            )
        if outside:
            raise _error(f"a point is outside the ball ||a||_{norm_name(self.norm)} <= {self.delta!r}")


def _exceeds(x: F64, x_adv: F64, delta: float) -> bool:
    """``‖x_adv − x‖_2 > delta`` in exact arithmetic."""
    shift = (Fraction(b) - Fraction(a) for a, b in zip(x.tolist(), x_adv.tolist(), strict=True))
    return sum((a * a for a in shift), Fraction(0)) > Fraction(delta) ** 2


def _error(reason: str) -> CertificateError:
    return CertificateError(f"attack pair: {reason}")


def mean_gap(network: object, x: F64, x_adv: F64, y: I64) -> float:
    """Mean of ``loss(x_adv) − loss(x)`` by ``Network.forward``; NaN outputs give NaN.

    Raises CertificateError if network, points and labels do not fit.

    >>> round(mean_gap([[[1.0, 0.0], [0.0, 1.0]]], np.array([[0.8, 0.2]]), np.array([[0.4, 0.6]]), np.array([0])), 4)
    0.3607
    """
    own = as_network(network)
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            before, after = (losses.class_logits(own.forward(points)) for points in (x, x_adv))
    except InputError as error:
        raise _error(str(error)) from error
    if not (np.all(np.isfinite(before)) and np.all(np.isfinite(after))):
        raise _error("outputs that are not finite at the points of the pair")
    if np.any(y < 0) or np.any(y >= before.shape[1]):
        raise _error(f"labels from {y.min()} to {y.max()} for {before.shape[1]} classes")
    with np.errstate(invalid="ignore"):
        return float(np.mean(losses.cross_entropy(after, y) - losses.cross_entropy(before, y)))
