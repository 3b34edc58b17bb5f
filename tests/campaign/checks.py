"""What one matrix is put through: every number reported is compared with the exact one.

Spectral norm from both sides and one rigorous ``check_theorem31`` for each matrix; the other norms, forms, dispersions,
user-supplied (k, ε, β), certificates, all singular values and the numerical paths in turn, by ``Drawn.turn``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, Final

import numpy as np

from campaign.generate import F64, Drawn
from campaign.oracle import Exact, Number, float_ball, gram_difference, semidefinite
from certbound import rounding
from certbound.errors import CertificateError
from certbound.norms import bounds, singular_values, verified
from certbound.theorems import theorem31, theorem31_rigorous
from certbound.types import Rigor

Adjust = Callable[[str, Number, Number], tuple[Number, Number]]
"""A mutant's last word on a certified pair (name, low, high): the identity in an honest run."""

NORMS: Final = ("spectral", "inf", "one", "frobenius")
_PARTS: Final = ("spectral", "neuron")
_DISPERSIONS: Final = ("kth", "mean")
_FORMS: Final = ("derived", "printed")
_LOOSE: Final = 1e-9  # relative: far above what any of the enclosures should have at 6 x 6


@dataclass(frozen=True)
class Violation:
    """A number on the wrong side, or an exception; ``matrix`` as hex floats, row by row."""

    check: str
    kind: str
    detail: str
    matrix: list[list[str]]


@dataclass(eq=False)
class Tally:
    """What was done; ``counts`` by check, undecided, infinite and loose ones included."""

    counts: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    violations: list[Violation] = field(default_factory=list)


def honest(name: str, low: Number, high: Number) -> tuple[Number, Number]:
    """Take the numbers as they are."""
    return low, high


def read_matrix(rows: list[list[str]]) -> F64:
    """The matrix of a violation."""
    return np.array([[float.fromhex(v) for v in row] for row in rows])


def check_matrix(drawn: Drawn, tally: Tally, adjust: Adjust = honest, only: tuple[str, ...] | None = None) -> None:
    """Put one matrix through its checks (or those in ``only``); what is wrong goes into ``tally.violations``."""
    tally.kinds[drawn.kind] += 1
    one = _One(drawn, tally, adjust)
    for check, step in one.steps():
        if only is not None and check not in only:
            continue
        try:
            step()
        except Exception as error:  # noqa: BLE001  # an exception of the library is a finding, not the campaign's end
            one.wrong(check, f"raised {type(error).__name__}: {error}")


class _One:
    def __init__(self, drawn: Drawn, tally: Tally, adjust: Adjust) -> None:
        self.drawn, self.W, self.turn, self.tally, self.adjust = drawn, drawn.matrix, drawn.turn, tally, adjust
        self.exact = Exact(drawn.matrix)
        self.zero = not drawn.matrix.any()
        self.certificates: list[Any] = []
        e = self.exact
        self.at_most: dict[str, Callable[[Number], bool]] = {
            "spectral": e.sigma_at_most,
            "inf": lambda x: e.against(x, e.row_sums[0]) >= 0,
            "one": lambda x: e.against(x, e.column_sum) >= 0,
            "frobenius": lambda x: e.against_root(x, e.square_sum) >= 0,
        }
        self.at_least: dict[str, Callable[[Number], bool]] = {
            "spectral": e.sigma_at_least,
            "inf": lambda x: e.against(x, e.row_sums[0]) <= 0,
            "one": lambda x: e.against(x, e.column_sum) <= 0,
            "frobenius": lambda x: e.against_root(x, e.square_sum) <= 0,
        }

    def steps(self) -> list[tuple[str, Callable[[], None]]]:
        """The checks this matrix gets."""
        turn = self.turn
        other = NORMS[1 + turn % 3]
        steps: list[tuple[str, Callable[[], None]]] = [
            ("spectral_norm", lambda: self.norm("spectral")),
            (f"{other}_norm", lambda: self.norm(other)),
            ("check_theorem31", self.theorem),
        ]
        if turn // 3 % 8 == 0:
            steps.append(("certificate.verify", self.verify))
        elif turn // 3 % 8 == 1:
            steps += [("singular_values", self.all_singular_values), ("row_tails", self.all_row_tails)]
        elif turn // 3 % 8 == 3:
            steps.append(("positive_definite", self.definite))
        elif turn // 3 % 16 == 2:
            steps.append(("numerical", self.numerical))
        return steps

    # ------------------------------------------------------------ reporting

    def wrong(self, check: str, detail: str) -> None:
        matrix = [[float(v).hex() for v in row] for row in self.W]
        self.tally.violations.append(Violation(check, self.drawn.kind, detail, matrix))

    def truth(self, holds: bool, check: str, detail: Callable[[], str]) -> None:
        self.tally.counts[check] += 1
        if not holds:
            self.wrong(check, detail())

    def pair(self, name: str, low: float, high: float, below: Callable[[Number], bool], above: Callable[[Number], bool],
             names: tuple[str, str]) -> None:  # fmt: skip
        """``low <= truth <= high``; ``above(x)`` says truth <= x, ``below(x)`` truth >= x."""
        if high == math.inf:
            self.tally.counts[f"infinite: {name}"] += 1
        elif high - low > _LOOSE * high and high > 1e-290:
            self.tally.counts[f"loose: {name}"] += 1
        new_low, new_high = (low, high) if math.isinf(high) else self.adjust(name, low, high)
        self.truth(below(new_low), names[0], lambda: f"{name} >= {new_low!r} reported, and it is less")
        if high != math.inf:
            self.truth(above(new_high), names[1], lambda: f"{name} <= {new_high!r} reported, and it is more")

    def ball_at_most(self, value: Any, reported: Any, check: str, words: str) -> None:
        """value <= reported, both balls."""
        self.tally.counts[check] += 1
        if value > reported:
            self.wrong(check, f"{words}: {reported.str(20)} reported, and the exact value is {value.str(20)}, more")
        elif not value <= reported:
            self.tally.counts[f"undecided: {check}"] += 1

    def ball_at_least(self, value: Any, reported: Any, check: str, words: str) -> None:
        self.tally.counts[check] += 1
        if value < reported:
            self.wrong(check, f"{words}: {reported.str(20)} reported, and the exact value is {value.str(20)}, less")
        elif not value >= reported:
            self.tally.counts[f"undecided: {check}"] += 1

    # ------------------------------------------------------------ the norms

    def norm(self, name: str) -> None:
        upper = getattr(bounds, f"{name}_norm_upper")(self.W, rigor="rigorous")
        lower = getattr(bounds, f"{name}_norm_lower")(self.W, rigor="rigorous")
        self.certificates += [(name, "upper", upper), (name, "lower", lower)]
        names = (f"{name}_norm_lower", f"{name}_norm_upper")
        self.pair(f"{name} norm", lower.value, upper.value, self.at_least[name], self.at_most[name], names)
        self.truth(upper.rigor is lower.rigor is Rigor.RIGOROUS, f"{name}_norm rigor", lambda: "not called rigorous")

    def verify(self) -> None:
        """Published certificates hold; of values between them and beyond, none that is wrong is accepted."""
        values = {(name, side): bound.value for name, side, bound in self.certificates}
        for name, side, bound in self.certificates:
            self.truth(bound.certificate.verify(self.W) is True, "certificate.verify", lambda: "not True")
            other = values[name, "lower" if side == "upper" else "upper"]
            if not math.isfinite(other) or not math.isfinite(bound.value) or other <= 0.0:
                continue
            # bisection to where acceptance ends, between the published value and one that is wrong by 2^-46 or 2^-20
            good, bad = (
                bound.value,
                other * (1.0 + (-1 if side == "upper" else 1) * 2.0 ** (-20 - 26 * (self.turn % 2))),
            )
            if name != "spectral":
                good, bad = bad, math.nextafter(other, 0.0 if side == "upper" else math.inf)  # one try: bad itself
            if math.isinf(bad):  # beside the largest float; no norm is infinite, and the oracle knows no such number
                refused = not self.accepts(bound.certificate, bad)
                self.truth(refused, "certificate.verify (forged)", lambda name=name: f"inf below the {name} norm")
                continue
            while True:
                middle = bad if name != "spectral" else good + (bad - good) / 2
                if name == "spectral" and middle in (good, bad):
                    break
                accepted = self.accepts(bound.certificate, middle)
                right = (self.at_most if side == "upper" else self.at_least)[name](middle)
                self.truth(
                    right or not accepted,
                    "certificate.verify (forged)",
                    lambda name=name, side=side, x=middle: f"{side} {x!r} of the {name} norm is wrong, and accepted",
                )
                if name != "spectral":
                    break
                good, bad = (middle, bad) if accepted else (good, middle)

    def accepts(self, certificate: Any, value: float) -> bool:
        try:
            return bool(replace(certificate, value=value).verify(self.W))
        except CertificateError:
            return False

    def definite(self) -> None:
        """The proof under every upper bound of ‖W‖_2, on matrices that are singular up to rounding; and its error."""
        A = verified.Scaled.of(self.W).matrix
        A = A if len(A) <= len(A[0]) else np.ascontiguousarray(A.T)
        gram = A @ A.T
        claimed = verified.gram_error(A)
        self.truth(
            gram_difference(A, gram) <= Fraction(claimed) ** 2, "gram_error", lambda: f"{claimed!r} is too small"
        )
        M = np.tril(gram) + np.tril(gram, -1).T
        error = (0.0, 2.0**-50, 2.0**-30)[self.turn // 31 % 3]
        hint = float(np.linalg.eigvalsh(M)[0])
        # from a little below singular to where a proof succeeds
        M[np.diag_indices_from(M)] -= hint - error + (8 - self.turn // 97 % 56) * 2.0**-53 * float(np.trace(M))
        if rounding.positive_definite(M, error):
            self.tally.counts["positive_definite: proof"] += 1
            self.truth(semidefinite(M, error), "positive_definite", lambda: f"{M.tolist()} with error {error!r}")
        else:
            self.tally.counts["positive_definite: no proof"] += 1

    def all_row_tails(self) -> None:
        tails = theorem31_rigorous.enclose_row_tails(self.W)
        for q, low, high in zip(self.exact.row_tails, tails.low.tolist(), tails.high.tolist(), strict=True):
            self.ball_at_least(q, float_ball(low), "row_tails", "row tail")
            self.ball_at_most(q, float_ball(high), "row_tails", "row tail")

    def all_singular_values(self) -> None:
        sigma, scale = singular_values.enclose_singular_values(self.W)
        for i, (low, high) in enumerate(zip(sigma.low.tolist(), sigma.high.tolist(), strict=True), 1):
            a, b = Fraction(low) * Fraction(scale), Fraction(high) * Fraction(scale)
            self.truth(self.exact.sigma_at_least(a, i), "singular_values", lambda i=i, a=a: f"sigma_{i} < {a!r}")
            self.truth(self.exact.sigma_at_most(b, i), "singular_values", lambda i=i, b=b: f"sigma_{i} > {b!r}")

    def numerical(self) -> None:
        """Numbers without a proof keep their documented tolerance 64 u max(m, n), and one subnormal."""
        tolerance = Fraction(64 * max(self.W.shape), 2**53)
        for name in NORMS:
            value = getattr(bounds, f"{name}_norm_upper")(self.W).value
            if value == math.inf:
                continue
            v, least = Fraction(value), Fraction(5e-324)
            right = self.at_most[name](v * (1 + tolerance) + least)
            right = right and self.at_least[name](v * (1 - tolerance) - least)
            self.truth(right, f"numerical {name} norm", lambda name=name, value=value: f"{value!r} for the {name} norm")
        form, dispersion = _FORMS[self.turn // 48 % 2], _DISPERSIONS[self.turn // 96 % 2]
        report = theorem31.check_theorem31(self.W, form=form, dispersion=dispersion)
        self.truth(report.holds is True, "numerical check_theorem31", lambda: f"holds is {report.holds}")

    # ------------------------------------------------------------ Theorem 3.1

    def theorem(self) -> None:
        choice = self.turn // 1024
        form, dispersion = _FORMS[choice % 2], _DISPERSIONS[choice // 2 % 2]
        way, choice = choice // 4 % 4, choice // 16
        given: dict[str, Any] = {}
        if way >= 2:
            sizes = {"spectral": min(self.W.shape), "neuron": self.W.shape[0]}
            given["k"] = {p: 1 + (choice // 7) % size for p, size in sizes.items()}
            if choice % 2:
                given["k_row"] = 1 + choice // 2 % self.W.shape[1]
        if way == 3 and not self.zero:
            given["epsilon"] = {p: self.user_epsilon(p, given["k"][p], choice // 64) for p in _PARTS}
            if choice % 3:
                given["beta"] = {p: self.user_beta(p, given["k"][p], dispersion, choice // 512) for p in _PARTS}
        report = theorem31.check_theorem31(self.W, form=form, dispersion=dispersion, rigor="rigorous", **given)
        self.truth(report.holds is not False, "check_theorem31 holds", lambda: f"holds is False: {given}, {form}")
        spectral_too = self.turn // 7 % 20 == 0
        if spectral_too and not self.exact.sigma_is_affordable:
            spectral_too = False
            self.tally.counts["spectral formula: range too wide for the oracle"] += 1
        for part in _PARTS:
            self.part(report, part, given, form, dispersion, formulas=part == "neuron" or spectral_too)

    def part(
        self, report: Any, part: str, given: dict[str, Any], form: str, dispersion: str, *, formulas: bool
    ) -> None:
        p = getattr(report, part)
        name = "spectral" if part == "spectral" else "inf"
        at_most, at_least = self.at_most[name], self.at_least[name]
        words = f"{part}, {form}, {dispersion}, {given}"
        sweep = None if report.sweep is None else report.sweep[part]
        sides = {"bound": p.bound.value, "sharp": p.sharp.value}
        lowers = [p.lower.value]
        if sweep is not None:
            # the norm is one number: the least upper and the largest lower bound are enough
            sides = {k: min(v, float(getattr(sweep, k).min())) for k, v in sides.items()}
            lowers.append(float(sweep.lower.max()))
        for side, value in sides.items():
            if value == math.inf:
                continue
            check = f"theorem31 {part} {side}"
            self.truth(at_most(value), check, lambda value=value, side=side: f"{side} {value!r} < norm: {words}")
        self.truth(at_least(max(lowers)), f"theorem31 {part} lower", lambda: f"lower {max(lowers)!r} > norm: {words}")
        self.truth(p.holds is not False, "theorem31 holds", lambda: f"holds is False: {words}")
        names = (f"theorem31 {part} norm_interval",) * 2
        self.pair(names[0], *p.norm_interval, at_least, at_most, names)
        if not p.hypothesis_met:
            refused = p.holds is None and p.bound.value == p.sharp.value == math.inf
            self.truth(refused, "theorem31 hypothesis", lambda: f"not met, yet a bound or a verdict: {words}")
        if self.zero:
            return
        if part in given.get("epsilon", {}):
            self.trap(p, part, given, words)
        if not formulas:
            return
        e = self.exact
        for what, ends, value in (
            ("epsilon", p.epsilon_interval, e.epsilon(part, p.k)),
            ("beta", p.beta_interval, 1 - e.spread(part, dispersion, p.k)),
        ):
            check = f"theorem31 {part} {what}_interval"
            low, high = self.adjust(check, *ends)
            self.ball_at_least(value, float_ball(low), check, words)
            self.ball_at_most(value, float_ball(high), check, words)
        if "epsilon" in given:
            return
        k_row = given.get("k_row") if part == "neuron" else None
        every = (
            [(p.k, p.bound.value, p.sharp.value, p.lower.value)]
            if sweep is None
            else zip(range(1, len(sweep.k) + 1), sweep.bound.tolist(), sweep.sharp.tolist(), sweep.lower.tolist(),
                     strict=True)
        )  # fmt: skip
        for k, bound, sharp, lower in every:
            check = f"theorem31 {part} formula"
            for kind, reported in ((form, bound), ("sharp", sharp)):
                if reported == math.inf:
                    continue
                value = e.form(part, kind, dispersion, k, k_row)
                if value is None:
                    self.wrong(check, f"{kind} bound {reported!r} where beta = 1 at k = {k}: {words}")
                    continue
                self.ball_at_most(value, e.ball(reported), f"{check} ({kind})", f"k = {k}, {words}")
            self.ball_at_least(e.two_sided(part, k), e.ball(lower), f"{check} (lower)", f"k = {k}, {words}")
        if not p.vacuous and math.isfinite(p.bound.value):
            value = e.form(part, form, dispersion, p.k, k_row)
            reference = e.frobenius if part == "spectral" else e.frobenius * float_ball(e.shape[1]).sqrt()
            wrong = value is None or value > reference
            self.truth(not wrong, "theorem31 vacuous", lambda: f"called non-vacuous, and it is not: {words}")

    def trap(self, p: Any, part: str, given: dict[str, Any], words: str) -> None:
        """ε above the exact tail ratio by more than the documented tolerance: the hypothesis must not count as met."""
        if part == "spectral":
            return  # its exact tail ratio costs roots; the bound itself was compared with the norm
        exact = self.exact.neuron
        truth = Fraction(exact.tails[p.k - 1], exact.heads[-1])
        excess = Fraction(given["epsilon"][part]) - truth
        met = p.hypothesis_met and excess > Fraction(2 * 64 * max(self.W.shape), 2**53)
        self.truth(not met, "theorem31 trap", lambda: f"epsilon above the tail ratio counts: {words}")

    def user_epsilon(self, part: str, k: int, choice: int) -> float:
        """Around the exact tail ratio: equal, a few floats beside it, well below, above."""
        exact = self.tail(part, k)
        options = (
            exact,
            math.nextafter(exact, 0.0),
            math.nextafter(exact, 1.0),
            exact * (1 - 2.0**-20),
            exact * 0.5,
            0.0,
            exact + 1e-14,
            exact * (1 - 1e-13),
            exact + 0.1,
            0.999,
        )
        return min(1.0, max(0.0, options[choice % len(options)]))

    def user_beta(self, part: str, k: int, dispersion: str, choice: int) -> float:
        theta = self.theta(part)
        kept = theta[k - 1] if dispersion == "kth" else theta[:k].mean()
        exact = 1.0 - float(kept / theta[0])
        options = (exact, math.nextafter(exact, 1.0), exact + 1e-14, exact + 1e-5, 1.0, exact * 0.5,
                   exact * (1 - 1e-13), 1.0 - float(theta[:k].mean() / theta[0]))  # fmt: skip
        return min(1.0, max(0.0, options[choice % len(options)]))

    def theta(self, part: str) -> F64:
        """σ or ν in floats, decreasing: only to choose what a user might type."""
        W = self.W / 2.0 ** (np.frexp(np.max(np.abs(self.W)))[1] - 1)
        if part == "spectral":
            return np.asarray(np.linalg.svd(W, compute_uv=False), dtype=np.float64)
        return -np.sort(-np.abs(W).sum(axis=1))

    def tail(self, part: str, k: int) -> float:
        theta = self.theta(part)
        return float(theta[k:].sum() / theta.sum())
