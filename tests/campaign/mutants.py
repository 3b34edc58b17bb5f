"""Proof that the campaign can fail: the library made wrong in known ways, and the same checks run on it.

Every mutant must be caught, or be declared sound with the reason why no check can object to it. A patch reaches the
name in every module of certbound that imported it.
"""

from __future__ import annotations

import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, Final

import numpy as np

from campaign.checks import Adjust, Tally, check_matrix, honest
from campaign.generate import F64, Drawn, each_matrix
from campaign.oracle import Number
from campaign.runner import say
from certbound import rounding
from certbound.norms import dense, singular_values, verified
from certbound.rounding import Interval
from certbound.theorems import theorem31_rigorous
from certbound.types import Sense

_NORM_STEPS: Final = tuple(f"{n}_norm" for n in ("spectral", "inf", "one", "frobenius"))

_RIGOROUS_STEPS: Final = (*_NORM_STEPS, "check_theorem31", "certificate.verify", "singular_values")


@dataclass(frozen=True)
class Mutant:
    """``patches``: (module, name) to what replaces it. ``required``: checks that must object, each; any one if empty.

    ``sound``: why nothing can object; the mutant is run all the same.
    """

    name: str
    patches: dict[tuple[Any, str], Any] = field(default_factory=dict)
    adjust: Adjust = honest
    required: tuple[str, ...] = ()
    sound: str = ""
    only: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Outcome:
    """``caught``: check to the number of matrices it took."""

    mutant: Mutant
    caught: dict[str, int]
    matrices: int
    seconds: float

    @property
    def passed(self) -> bool:
        """Caught as it must be; a mutant declared sound must survive, else the declaration is wrong."""
        if self.mutant.sound:
            return not self.caught
        missing = [name for name in self.mutant.required if name not in self.caught]
        return bool(self.caught) and not missing


@contextmanager
def patched(patches: dict[tuple[Any, str], Any]) -> Iterator[None]:
    """Replace names in their module and wherever they were imported; back to what was afterwards."""
    undo: list[tuple[Any, str, Any]] = []
    try:
        for (home, name), new in patches.items():
            old = getattr(home, name)
            undo.append((home, name, old))
            setattr(home, name, new)
            for module in [m for key, m in sys.modules.items() if key.split(".")[0] == "certbound"]:
                if getattr(module, name, None) is old:
                    undo.append((module, name, old))
                    setattr(module, name, new)
        yield
    finally:
        for module, name, old in reversed(undo):
            setattr(module, name, old)


class _Caught(Exception):  # noqa: N818  # no error: it is what was hoped for
    pass


def try_mutant(mutant: Mutant, matrices: int, seed: int) -> Outcome:
    """Run the campaign's checks on the mutant until all that must object has, or the matrices are used up."""
    tally, caught, started = Tally(), dict[str, int](), time.perf_counter()
    wanted = set(mutant.required)

    def visit(drawn: Drawn) -> None:
        before = len(tally.violations)
        check_matrix(drawn, tally, mutant.adjust, mutant.only)
        for violation in tally.violations[before:]:
            caught.setdefault(violation.check, sum(tally.kinds.values()))
        if caught and wanted <= set(caught):
            raise _Caught

    with warnings.catch_warnings(), patched(mutant.patches):
        warnings.simplefilter("ignore", RuntimeWarning)
        with suppress(_Caught):
            each_matrix(seed, matrices, visit)
    return Outcome(mutant, caught, sum(tally.kinds.values()), time.perf_counter() - started)


# ---------------------------------------------------------------- mutants of the reported numbers


def _upper_less(name: str, low: Number, high: Number) -> tuple[Number, Number]:
    return low, Fraction(high) - (Fraction(high) - Fraction(low)) / 100


def _lower_more(name: str, low: Number, high: Number) -> tuple[Number, Number]:
    return Fraction(low) + (Fraction(high) - Fraction(low)) / 100, high


# ---------------------------------------------------------------- mutants of the rounding


def _identity(x: Any) -> Any:
    return x


def _cholesky_completes(diagonal: Any, lower: Any, *, error: float = 0.0, shift: float | None = None) -> bool:
    try:
        np.linalg.cholesky(diagonal[0])
    except np.linalg.LinAlgError:
        return False
    return True


def _nearest_sum(values: F64, *, exact: bool = False) -> tuple[float, float]:
    total = math.fsum(values.ravel().tolist())
    return total, total


def _nearest_norm(values: F64, *, exact: bool = False) -> tuple[float, float]:
    size = float(np.linalg.norm(values))
    return size, size


def _not_widened(low: F64, high: F64, steps: int) -> Interval:
    return Interval(np.minimum(low, np.finfo(float).max), np.maximum(low, high))


def _plain_rescale(value: float, scale: float, sense: Any) -> float:
    product = value * scale
    return product if sense is Sense.UPPER else min(product, sys.float_info.max)


def _lapack_upper(A: F64, square: float) -> float:
    return math.sqrt(square)


def _plain_lower(A: F64, v: F64, times: float = 2.0) -> float:
    return float(np.linalg.norm(A @ v) / np.linalg.norm(v))


def _computed_distance(target: F64, A: F64, B: F64) -> float:
    return 0.0


class _LosslessScaled(verified.Scaled):
    @classmethod
    def of(cls, W: F64) -> verified.Scaled:
        return replace(super().of(W), lost=0.0)


_svd, _eigh, _cholesky = np.linalg.svd, np.linalg.eigh, np.linalg.cholesky


def _bad_svd(A: F64, **options: Any) -> Any:
    """Singular values too small by 1e-10."""
    if options.get("compute_uv") is False:
        return _svd(A, **options)
    left, s, right = _svd(A, **options)
    return left, s * (1 - 1e-10), right


def _bad_eigh(A: F64) -> Any:
    """The largest eigenvalue too small by 1e-10, its vector tilted and too long."""
    values, vectors = _eigh(A)
    return values * (1 - 1e-10), vectors * (1 + 1e-10) + 1e-10


def _bad_cholesky(A: F64) -> Any:
    """A factor of something else, and one for matrices that have none."""
    return _cholesky(A + 1e-10 * np.trace(np.abs(A)) * np.eye(len(A)))


def _computed_tails(W: F64) -> Interval:
    return Interval.of(theorem31_rigorous.row_tails(W))


def mutants() -> tuple[Mutant, ...]:
    """All of them."""
    one_ulp = ("spectral_norm", "inf_norm", "one_norm", "frobenius_norm")
    r, v, s, t = rounding, verified, singular_values, theorem31_rigorous
    gone: Callable[..., float] = lambda *_, **__: 0.0  # noqa: E731
    return (
        Mutant("upper bounds lowered by 1 % of their width", adjust=_upper_less, only=_NORM_STEPS,
               required=tuple(f"{n}_upper" for n in one_ulp)),
        Mutant("lower bounds raised by 1 % of their width", adjust=_lower_more, only=_NORM_STEPS,
               required=tuple(f"{n}_lower" for n in one_ulp)),
        Mutant("theorem 3.1 norm intervals: upper ends lowered by 1 %", adjust=_upper_less, only=("check_theorem31",),
               required=("theorem31 spectral norm_interval", "theorem31 neuron norm_interval")),
        Mutant("theorem 3.1 norm intervals: lower ends raised by 1 %", adjust=_lower_more, only=("check_theorem31",),
               required=("theorem31 spectral norm_interval", "theorem31 neuron norm_interval")),
        Mutant("gamma = 0", {(r, "gamma"): gone}),
        Mutant("up and down = identity", {(r, "up"): _identity, (r, "down"): _identity}),
        Mutant("up = identity", {(r, "up"): _identity}),
        Mutant("down = identity", {(r, "down"): _identity}),
        Mutant("default_shift = 0, Cholesky's residual ignored",
               {(r, "default_shift"): gone, (r, "block_definite"): _cholesky_completes}),
        Mutant("block_definite = 'Cholesky completes'", {(r, "block_definite"): _cholesky_completes}),
        Mutant("gram_error = 0", {(v, "gram_error"): gone}),
        Mutant("TINY = 0", {(r, "TINY"): 0.0},
               sound="every place that adds TINY is inside up() or down(): one float of a scaled matrix, whose largest "
               "entry is in [1, 2), is more than anything that underflowed. 'lost = 0' is the mutant that drops it"),
        Mutant("lost = 0: what scaling flushes to zero is forgotten", {(v, "Scaled"): _LosslessScaled}),
        Mutant("enclose_sum rounds to nearest", {(r, "enclose_sum"): _nearest_sum}),
        Mutant("enclose_norm rounds to nearest", {(r, "enclose_norm"): _nearest_norm}),
        Mutant("sqrt_up, sqrt_down = sqrt", {(r, "sqrt_up"): math.sqrt, (r, "sqrt_down"): math.sqrt}),
        Mutant("rescale rounds to nearest", {(dense, "rescale"): _plain_rescale}),
        Mutant("spectral_upper = LAPACK's value", {(v, "spectral_upper"): _lapack_upper}),
        Mutant("spectral_lower without its error", {(v, "spectral_lower"): _plain_lower}),
        Mutant("SVD residuals ignored", {(s, "distance"): _computed_distance},
               sound="LAPACK is right to a few u, and the rounding of left·s still counts; see the wrong SVD"),
        Mutant("SVD wrong by 1e-10, residuals kept", {(np.linalg, "svd"): _bad_svd}, only=_RIGOROUS_STEPS,
               sound="LAPACK is not trusted: its errors are in the residuals"),
        Mutant("SVD wrong by 1e-10, residuals ignored",
               {(np.linalg, "svd"): _bad_svd, (s, "distance"): _computed_distance}, only=_RIGOROUS_STEPS),
        Mutant("eigh wrong by 1e-10, proofs kept", {(np.linalg, "eigh"): _bad_eigh}, only=_RIGOROUS_STEPS,
               sound="LAPACK is not trusted: eigenvalue and vector are hints"),
        Mutant("Cholesky of another matrix, residual kept", {(np.linalg, "cholesky"): _bad_cholesky},
               only=_RIGOROUS_STEPS, sound="LAPACK is not trusted: the factor is multiplied out"),
        Mutant("Cholesky of another matrix, residual ignored",
               {(np.linalg, "cholesky"): _bad_cholesky, (r, "block_definite"): _cholesky_completes},
               only=_RIGOROUS_STEPS),
        Mutant("theorem 3.1: outward rounding dropped", {(t, "_widened"): _not_widened}),
        Mutant("theorem 3.1: row tails not widened", {(t, "enclose_row_tails"): _computed_tails}),
        Mutant("theorem 3.1: neither", {(t, "_widened"): _not_widened, (t, "enclose_row_tails"): _computed_tails}),
    )  # fmt: skip


def self_test(matrices: int, seed: int, only: str | None = None) -> int:
    """Print what became of each mutant; 1 unless every one was caught (or is declared sound, with the reason)."""
    chosen = [m for m in mutants() if only is None or only in m.name]
    failed = 0
    for mutant in chosen:
        # what is expected to survive takes all it is given
        outcome = try_mutant(mutant, matrices // 4 if mutant.sound else matrices, seed)
        failed += not outcome.passed
        words = "caught" if outcome.caught else "survived"
        words = words if outcome.passed else f"{words}: WRONG"
        say(f"{mutant.name}: {words} ({outcome.matrices:,} matrices, {outcome.seconds:.1f} s)")
        for check, taken in outcome.caught.items():
            say(f"    by {check} after {taken:,}")
        missing = [name for name in mutant.required if name not in outcome.caught]
        if missing:
            say(f"    not by {', '.join(missing)}")
        if mutant.sound:
            say(f"    sound: {mutant.sound}")
    say(f"{len(chosen) - failed} of {len(chosen)} mutants as they must be")
    return int(failed > 0 or not chosen)
