"""The algebra of trust: Claim, Bound, Result, compose, tightest.

A number alone is no bound. A :class:`Bound` says what it bounds (:class:`Claim`), on which side,
how far it can be trusted, by which method and theorem, and under which unchecked assumptions.
Composition never raises the trust, and rounds outward.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol, cast

from certbound import text
from certbound.errors import ClaimMismatchError, InputError
from certbound.types import GLOBAL, SCHEMA_VERSION, Quantity, Rigor, Sense, Status, norm_name

Outputs = str | int | tuple[int, int]


@dataclass(frozen=True)
class Claim:
    """What is bounded.

    Parameters
    ----------
    quantity : what is measured.
    norm_in, norm_out : 1, 2 or ∞; None where the quantity has no such norm.
    domain : ``"all inputs"``, or the set of inputs in words with a digest of its samples.
    outputs : ``"all"``, one output index, or a pair ``(j, y)`` for ``f_j − f_y``.
    subject : digest of the weights the claim is about; bounds on two networks are two claims.
    """

    quantity: Quantity
    norm_in: float | None = None
    norm_out: float | None = None
    domain: str = GLOBAL
    outputs: Outputs = "all"
    subject: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "quantity", Quantity(self.quantity))

    def __str__(self) -> str:
        norms = "" if self.norm_in is None else f" {norm_name(self.norm_in)}"
        norms += "" if self.norm_out is None else f"->{norm_name(self.norm_out)}"
        return f"{self.quantity}{norms}, outputs {self.outputs}, on {self.domain}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        outputs = list(self.outputs) if isinstance(self.outputs, tuple) else self.outputs
        return {
            "quantity": str(self.quantity),
            "norm_in": text.json_number(self.norm_in),
            "norm_out": text.json_number(self.norm_out),
            "domain": self.domain,
            "outputs": outputs,
            "subject": self.subject,
        }


class Certificate(Protocol):
    """Evidence that can be re-checked without the solver that found it."""

    def verify(self, network_or_weights: object) -> bool:
        """True, or raises CertificateError with the reason."""
        ...


@dataclass(frozen=True)
class Bound:
    """A value on a stated side of a stated quantity.

    Parameters
    ----------
    value : the number; ∞ (upper) or 0 (lower) when it says nothing. NaN is refused.
    claim : what is bounded.
    sense : ``Sense.UPPER`` (true value <= value) or ``Sense.LOWER``.
    rigor : how far the number can be trusted.
    method : how it was computed. source : paper and theorem.
    assumptions : what was taken for granted and not checked.
    slack : itemised looseness, pairs ``(name, factor)``.
    terms : the bounds this one was made of.
    parameters : the numbers that went in, pairs ``(name, value)``, so that it can be recomputed.
    certificate : evidence that re-proves the value without the method that found it, where there is one.

    Raises
    ------
    InputError : NaN; a negative bound of a non-negative quantity; a lower bound of +∞.

    >>> claim = Claim(Quantity.OPERATOR_NORM, 2.0, 2.0)
    >>> b = Bound(1.0, claim, Sense.UPPER, Rigor.NUMERICAL, "svd", "definition")
    >>> b.vacuous
    False
    >>> b < b
    Traceback (most recent call last):
        ...
    certbound.errors.ClaimMismatchError: bounds are not ordered: compare .value (and look at .claim)
    """

    value: float
    claim: Claim
    sense: Sense
    rigor: Rigor
    method: str
    source: str
    assumptions: tuple[str, ...] = ()
    slack: tuple[tuple[str, float], ...] = ()
    terms: tuple[Bound, ...] = ()
    parameters: tuple[tuple[str, float], ...] = ()
    certificate: Certificate | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        value = float(self.value)
        object.__setattr__(self, "value", value)
        object.__setattr__(self, "sense", Sense(self.sense))
        object.__setattr__(self, "rigor", Rigor.parse(self.rigor))
        if math.isnan(value):
            raise InputError(
                "value",
                got="NaN",
                needed="a number",
                fix="report a failed method with its vacuous bound and a status",
            )
        if value < 0 and self.claim.quantity is not Quantity.MARGIN:
            raise InputError(
                "value",
                got=repr(value),
                needed=f"a number >= 0 for the quantity '{self.claim.quantity}'",
                fix="check the sign; the vacuous lower bound is 0",
            )
        if value == math.inf and self.sense is Sense.LOWER:
            raise InputError(
                "value",
                got="inf",
                needed="a finite lower bound",
                fix="an overflowed lower bound must be rounded down to a finite number",
            )

    @property
    def vacuous(self) -> bool:
        """True when the value says nothing."""
        limit = self.claim.quantity.vacuous(self.sense)
        return self.value >= limit if self.sense is Sense.UPPER else self.value <= limit

    def _refuse_order(self, _other: object) -> NoReturn:
        raise ClaimMismatchError("bounds are not ordered: compare .value (and look at .claim)")

    __lt__ = __le__ = __gt__ = __ge__ = _refuse_order

    def __str__(self) -> str:
        says = text.at_most(self.value) if self.sense is Sense.UPPER else text.at_least(self.value)
        rows = [
            (f"{self.claim.quantity}", f"{says}  ({self.rigor})"),
            ("claim", str(self.claim)),
            ("method", self.method),
            ("source", self.source),
        ]
        rows += [("assumes", a) for a in self.assumptions]
        return text.table(rows)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with ``schema_version``."""
        return {
            "schema_version": SCHEMA_VERSION,
            "value": text.json_number(self.value),
            "claim": self.claim.to_dict(),
            "sense": str(self.sense),
            "rigor": str(self.rigor),
            "method": self.method,
            "source": self.source,
            "assumptions": list(self.assumptions),
            "slack": {k: text.json_number(v) for k, v in self.slack},
            "parameters": {k: text.json_number(v) for k, v in self.parameters},
            "terms": [t.to_dict() for t in self.terms],
        }


def vacuous_bound(claim: Claim, sense: Sense, *, method: str, source: str) -> Bound:
    """The bound that says nothing; it is true whatever happens, hence rigorous.

    >>> vacuous_bound(Claim(Quantity.LIPSCHITZ, 2.0, 2.0), Sense.UPPER, method="m", source="s").value
    inf
    """
    return Bound(claim.quantity.vacuous(sense), claim, sense, Rigor.RIGOROUS, method, source)


@dataclass(frozen=True)
class Result:
    """A bound with how it came about.

    ``bound`` is valid whatever ``status`` says: a method that failed gives the vacuous bound, or
    a weaker valid one. ``stats`` holds counters and solver values (heuristic: not bounds).
    """

    bound: Bound
    status: Status
    certificate: Certificate | None = None
    seconds: float = 0.0
    stats: tuple[tuple[str, float | str], ...] = field(default=())

    @property
    def value(self) -> float:
        """``bound.value``."""
        return self.bound.value

    @property
    def gap(self) -> float | None:
        """Relative distance to the optimum of the relaxation; None where it is not known."""
        return cast("float | None", dict(self.stats).get("gap"))

    def __str__(self) -> str:
        rows = [("status", f"{self.status}: {self.status.sentence}"), ("seconds", f"{self.seconds:.3g}")]
        rows += [(k, text.number(v) if isinstance(v, float) else str(v)) for k, v in self.stats]
        return f"{self.bound}\n{text.table(rows)}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with ``schema_version``."""
        return {
            "schema_version": SCHEMA_VERSION,
            "bound": self.bound.to_dict(),
            "status": self.status.name,
            "status_sentence": self.status.sentence,
            "seconds": self.seconds,
            "stats": {k: v if isinstance(v, str) else text.json_number(v) for k, v in self.stats},
        }


def multiply_up(a: float, b: float) -> float:
    """Upper bound of the exact product of two numbers >= 0: rounded outward by one step.

    A factor that is exactly 0 makes the product 0, also against ∞: a constant map stays constant.

    >>> multiply_up(0.0, math.inf), multiply_up(0.5, 0.0)
    (0.0, 0.0)
    >>> multiply_up(1e-200, 1e-200) > 0  # underflow stays on the safe side
    True
    """
    if a == 0.0 or b == 0.0:
        return 0.0
    return math.nextafter(a * b, math.inf)


def compose(*bounds: Bound, subject: str | None = None) -> Bound:
    """Lipschitz bound of a composition, first map first: the product of the parts.

    ``Lip(g ∘ f) <= Lip(g) · Lip(f)``. Norms must chain (``norm_out`` of one is ``norm_in`` of the
    next); every part must be an upper bound of an operator norm or a Lipschitz constant, and every
    map but the first must be bounded on all inputs. The product is rounded outward; the rigor is the least of
    the parts; assumptions are joined.

    Raises
    ------
    InputError : no bounds. ClaimMismatchError : parts that do not chain.

    >>> claim = Claim(Quantity.OPERATOR_NORM, 2.0, 2.0)
    >>> three = Bound(3.0, claim, Sense.UPPER, Rigor.RIGOROUS, "m", "s")
    >>> two = Bound(2.0, claim, Sense.UPPER, Rigor.NUMERICAL, "m", "s")
    >>> both = compose(three, two)
    >>> round(both.value, 12), str(both.rigor)
    (6.0, 'numerical')
    """
    if not bounds:
        raise InputError("bounds", got="none", needed="at least one bound", fix="pass the layers' bounds")
    for i, b in enumerate(bounds):
        if b.sense is not Sense.UPPER:
            raise ClaimMismatchError(f"part {i} is a lower bound: a product of lower bounds bounds nothing")
        if b.claim.quantity not in (Quantity.OPERATOR_NORM, Quantity.LIPSCHITZ, Quantity.PATTERN_NORM):
            raise ClaimMismatchError(f"part {i} bounds a {b.claim.quantity}, which does not multiply")
        if b.claim.norm_in is None or b.claim.norm_out is None:
            raise ClaimMismatchError(f"part {i} names no norms: it cannot be known whether it chains")
        if i and b.claim.norm_in != bounds[i - 1].claim.norm_out:
            raise ClaimMismatchError(
                f"norms do not chain: part {i - 1} ends in norm {norm_name(bounds[i - 1].claim.norm_out)}, "
                f"part {i} starts in norm {norm_name(b.claim.norm_in)}"
            )
        if i and b.claim.domain != GLOBAL:
            raise ClaimMismatchError(f"part {i} holds only on {b.claim.domain}: only the first map may be local")
        if i < len(bounds) - 1 and b.claim.outputs != "all":
            raise ClaimMismatchError(f"part {i} bounds only outputs {b.claim.outputs}: the next map sees all of them")
    value = bounds[0].value
    for b in bounds[1:]:
        value = multiply_up(value, b.value)
    assumptions = tuple(dict.fromkeys(a for b in bounds for a in b.assumptions))
    if subject is None:
        parts = [b.claim.subject for b in bounds]
        subject = " then ".join(parts) if all(parts) else ""
    first, last = bounds[0].claim, bounds[-1].claim
    claim = Claim(Quantity.LIPSCHITZ, first.norm_in, last.norm_out, first.domain, last.outputs, subject)
    return Bound(
        value,
        claim,
        Sense.UPPER,
        min(b.rigor for b in bounds),
        "product: " + " x ".join(dict.fromkeys(b.method for b in bounds)),
        "Lip(g o f) <= Lip(g) Lip(f)",
        assumptions,
        terms=tuple(bounds),
    )


def tightest(bounds: Iterable[Bound]) -> Bound:
    """The smallest upper (or largest lower) bound of one claim; ties to the most rigorous.

    Raises
    ------
    InputError : no bounds, or a heuristic number among them (it may be on the wrong side).
    ClaimMismatchError : two different claims, or both senses.

    >>> claim = Claim(Quantity.OPERATOR_NORM, 2.0, 2.0)
    >>> a = Bound(3.0, claim, Sense.UPPER, Rigor.RIGOROUS, "m", "s")
    >>> b = Bound(2.0, claim, Sense.UPPER, Rigor.NUMERICAL, "m", "s")
    >>> tightest([a, b]).value
    2.0
    """
    every = list(bounds)
    if not every:
        raise InputError("bounds", got="none", needed="at least one bound", fix="pass the bounds to choose from")
    for b in every:
        if b.rigor is Rigor.HEURISTIC:
            raise InputError(
                "bounds",
                got=f"a heuristic number from {b.method!r}",
                needed="bounds of rigor numerical or rigorous",
                fix="leave heuristic numbers out: they may be on the wrong side",
            )
        if b.claim != every[0].claim or b.sense is not every[0].sense:
            raise ClaimMismatchError(f"different claims: '{every[0].sense} {every[0].claim}' and '{b.sense} {b.claim}'")
    sign = 1.0 if every[0].sense is Sense.UPPER else -1.0
    return min(every, key=lambda b: (sign * b.value, -b.rigor))
