"""Wrong versions of the library that the tests must notice; ``mutate.py`` runs them.

Append to :data:`MUTATIONS`. ``old`` must occur exactly once in ``file`` (choose text that a formatter leaves alone), or
``count`` times; ``tests`` are the pytest node ids of which at least one must fail.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Mutation:
    """One wrong library: in ``file`` (relative to the repository) ``old`` becomes ``new``."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    count: int = 1


_T31 = "certbound/theorems/theorem31.py"
_COMPRESSIBILITY = "certbound/compressibility.py"
_BOUND = "certbound/bound.py"
_NORMS = "certbound/norms/dense.py"
_ARRAYS = "certbound/arrays.py"


def _t31(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/test_theorem31.py::{name}" for name in names)


def _in(module: str, *names: str) -> tuple[str, ...]:
    return tuple(f"tests/test_{module}.py::{name}" for name in names)


_NEURON = "test_neuron_part_against_exact_rationals"
_SPECTRAL = "test_spectral_part_against_known_singular_values"
_ONE_SIDED = "test_any_smaller_epsilon_and_larger_beta_is_valid"
_NOT_MET = "test_a_larger_epsilon_or_smaller_beta_is_not_a_hypothesis"
_LADDER = "test_the_ladder_holds_on_every_matrix_and_every_k"
_PROFILE = _in("compressibility", "test_profile_against_exact_rationals")

MUTATIONS: Final[list[Mutation]] = [
    # -- Theorem 3.1: hypothesis and verdict
    Mutation("epsilon test flipped", _T31, "if epsilon > exact_eps + tol:", "if epsilon < exact_eps - tol:",
             _t31("test_the_trap")),
    Mutation("epsilon test dropped", _T31, "if epsilon > exact_eps + tol:", "if epsilon > 1.0 + tol:", _t31(_NOT_MET)),
    Mutation("epsilon test loose", _T31, "if epsilon > exact_eps + tol:", "if epsilon > exact_eps + 0.1:",
             _t31("test_the_trap_at_every_k")),
    Mutation("epsilon membership accepted at both ends", _T31, "elif epsilon < exact_eps - tol:",
             "elif epsilon < exact_eps - 1.0:", _t31(_ONE_SIDED)),
    Mutation("beta test flipped", _T31, "if beta < mean_beta - tol:", "if beta > mean_beta + tol:", _t31(_ONE_SIDED)),
    Mutation("beta test dropped", _T31, "if beta < mean_beta - tol:", "if beta < -1.0:", _t31(_NOT_MET)),
    Mutation("beta compared with the k-th", _T31, "if beta < mean_beta - tol:", "if beta < exact_beta - tol:",
             _t31("test_beta_between_mean_and_kth_uses_the_mean_formula")),
    Mutation("kth formula for a smaller beta", _T31, "and b >= p.beta_kth[k - 1] else", "and b >= 0.0 else",
             _t31("test_beta_between_mean_and_kth_uses_the_mean_formula")),
    Mutation("holds flipped", _T31, "holds = top <= min(value, sharp) * (1 + tol)",
             "holds = top >= min(value, sharp) * (1 + tol)", _t31(_NEURON)),
    Mutation("holds ignores the hypothesis", _T31, "    if used.met:\n        holds = top", "    if True:\n        holds = top",
             _t31("test_the_trap")),
    Mutation("bound given without hypothesis", _T31, "    if used.met:\n        bound = Bound(",
             "    if True:\n        bound = Bound(", _t31("test_the_trap")),
    Mutation("status always ok", _T31, "status=Status.OK if used.met else Status.HYPOTHESIS_NOT_MET", "status=Status.OK",
             _t31("test_the_trap")),
    Mutation("holds of the sweep flipped", _T31, "np.all(p.top <= np.minimum(values, sharps)",
             "np.all(p.top >= np.minimum(values, sharps)", _t31(_LADDER)),
    Mutation("report holds if either part does", _T31, "return None if None in parts else True",
             "return True if True in parts else None", _t31("test_one_part_in_the_trap_does_not_hide_the_other")),
    # -- Theorem 3.1: formulas
    Mutation("beta dropped", _T31, "kept / np.where(beta < 1.0, 1.0 - beta, 1.0)", "kept", _t31(_NEURON)),
    Mutation("beta squared", _T31, "kept / np.where(beta < 1.0, 1.0 - beta, 1.0)",
             "kept / np.where(beta < 1.0, 1.0 - beta * beta, 1.0)", _t31(_NEURON)),
    Mutation("1/k_nu forgotten, derived", _T31, "return whole[best] / k, ", "return whole[best] / np.ones_like(k), ",
             _t31(_NEURON)),
    Mutation("1/k_nu forgotten, printed", _T31, "math.sqrt(m * n) * eps / kv", "math.sqrt(m * n) * eps",
             _t31("test_k_row_by_hand")),
    Mutation("1/k_nu twice, printed", _T31, "whole = np.sqrt(m * kr) + math.sqrt(m * n) * eps / kv",
             "whole = (np.sqrt(m * kr) + math.sqrt(m * n) * eps) / kv", _t31(_NEURON)),
    Mutation("sqrt(r) dropped", _T31, "factor = math.sqrt(measured.size(part)) / k", "factor = 1.0 / k", _t31(_SPECTRAL)),
    Mutation("r = max(m, n)", _T31, 'min(self.shape) if part == "spectral" else self.shape[0]',
             'max(self.shape) if part == "spectral" else self.shape[0]', _t31(_SPECTRAL)),
    Mutation("1/k_sigma forgotten", _T31, "factor = math.sqrt(measured.size(part)) / k",
             "factor = math.sqrt(measured.size(part)) / np.ones_like(k)", _t31(_SPECTRAL)),
    Mutation("row step halved", _T31, "whole = np.sqrt(m * kr) + math.sqrt(m * n) * eps\n",
             "whole = (np.sqrt(m * kr) + math.sqrt(m * n) * eps) / 2\n", _t31(_NEURON)),
    Mutation("row tail forgotten", _T31, "whole = np.sqrt(m * kr) + math.sqrt(m * n) * eps\n",
             "whole = np.sqrt(m * kr)\n", _t31(_NEURON)),
    Mutation("worst row count", _T31, "best = int(np.argmin(rho))", "best = int(np.argmax(rho))", _t31(_NEURON)),
    Mutation("clamp too low", _T31, "np.minimum(eps, np.sqrt((n - kr) / n))", "np.minimum(eps, (n - kr) / n)",
             _t31("test_sharp_is_attained", _NEURON)),
    Mutation("rho loses its tail", _T31, "rho = np.sqrt(kr) * np.sqrt(1.0 - clamped**2) + np.sqrt(n - kr) * clamped",
             "rho = np.sqrt(kr) * np.sqrt(1.0 - clamped**2)", _t31("test_row_step_of_the_sharp_form_is_attained")),
    Mutation("sharp with (size - k)/2", _T31, "t = np.divide(ratio**2, size - k,", "t = np.divide(ratio**2, (size - k) / 2,",
             _t31(_SPECTRAL)),
    Mutation("sharp with 2 (size - k)", _T31, "t = np.divide(ratio**2, size - k,", "t = np.divide(ratio**2, 2 * (size - k),",
             _t31("test_sharp_is_attained")),
    Mutation("sharp, mean: S below 1", _T31, "s = np.maximum(1.0, k * (1.0 - beta))", "s = k * (1.0 - beta)",
             _t31("test_beta_between_mean_and_kth_uses_the_mean_formula")),
    Mutation("sharp, kth: beta not squared", _T31, "a = (k - 1.0) * (1.0 - beta) ** 2", "a = (k - 1.0) * (1.0 - beta)",
             _t31("test_sharp_is_attained")),
    Mutation("lower bound, rows: kept/k forgotten", _T31, "return measured.neuron.kept[i] / k * measured.frobenius",
             "return measured.neuron.kept[i] * measured.frobenius", _t31(_NEURON)),
    Mutation("lower bound, spectral: k forgotten", _T31, "np.maximum(0.0, 1.0 - eps * eps) / k)",
             "np.maximum(0.0, 1.0 - eps * eps))", _t31(_SPECTRAL)),
    Mutation("lower bound, spectral: q = 1 tail", _T31, "eps = measured.spectral.epsilon_2[i]",
             "eps = measured.spectral.epsilon[i]", _t31(_SPECTRAL)),
    Mutation("vacuous for rows against the Frobenius norm", _T31,
             'measured.frobenius * (1.0 if part == "spectral" else math.sqrt(measured.shape[1]))', "measured.frobenius",
             _t31("test_vacuous_by_definition")),
    Mutation("best k is the worst", _T31, "np.argmax(values <= values.min() * (1 + measured.tolerance))",
             "np.argmax(values >= values.max() * (1 - measured.tolerance))", _t31(_LADDER)),
    Mutation("scale forgotten in measure", _T31, "    scale = power_of_two_scale(W)\n", "    scale = 1.0\n",
             _t31("test_extreme_matrices")),
    Mutation("scale not multiplied back", _T31, "            rescale(value, scale, Sense.UPPER),", "            value,",
             _t31(_NEURON)),
    # -- compressibility
    Mutation("epsilon + 0.01", _COMPRESSIBILITY, "epsilon=tail / total,", "epsilon=tail / total + 0.01,", _PROFILE),
    Mutation("kept - 0.01", _COMPRESSIBILITY, "kept=head / total,", "kept=head / total - 0.01,", _t31(_NEURON)),
    Mutation("mean for kth", _COMPRESSIBILITY, 'self.beta_kth if dispersion == "kth"', 'self.beta_mean if dispersion == "kth"',
             _t31(_NEURON)),
    Mutation("tail keeps one too many", _COMPRESSIBILITY, "tail = np.concatenate([np.cumsum(t[::-1])[::-1][1:], [0.0]])",
             "tail = np.cumsum(t[::-1])[::-1]", _PROFILE),
    Mutation("kth off by one", _COMPRESSIBILITY, "beta_kth=1.0 - t / t[0],", "beta_kth=1.0 - np.roll(t, -1) / t[0],", _PROFILE),
    Mutation("mean over d, not k", _COMPRESSIBILITY, "1.0 - head / (k * t[0])", "1.0 - head / (d * t[0])", _PROFILE),
    Mutation("best row tail, not worst", _COMPRESSIBILITY, "np.sqrt(ratio.max(axis=0))", "np.sqrt(ratio.min(axis=0))",
             _in("compressibility", "test_row_tails_against_exact_rationals")),
    Mutation("row tails in one unit", _COMPRESSIBILITY, "np.ldexp(magnitudes, -exponents[:, None])", "magnitudes",
             _in("compressibility", "test_row_tails_against_exact_rationals")),
    Mutation("smallest k too small", _COMPRESSIBILITY, "np.argmax(tails <= target)) + 1", "np.argmax(tails <= target))",
             _in("compressibility", "test_values_by_hand")),
    # -- the algebra of trust
    Mutation("rounding outward removed", _BOUND, "return math.nextafter(a * b, math.inf)", "return a * b",
             _in("bound", "test_multiply_up_is_never_below_the_exact_product")),
    Mutation("rounding inward", _BOUND, "return math.nextafter(a * b, math.inf)", "return math.nextafter(a * b, 0.0)",
             _in("bound", "test_compose_bounds_the_exact_product_and_never_raises_trust")),
    Mutation("zero times infinity", _BOUND, "    if a == 0.0 or b == 0.0:\n", "    if False:\n",
             _in("bound", "test_multiply_up_is_never_below_the_exact_product")),
    Mutation("rigor raised", _BOUND, "min(b.rigor for b in bounds)", "max(b.rigor for b in bounds)",
             _in("bound", "test_compose_bounds_the_exact_product_and_never_raises_trust")),
    Mutation("assumptions of the first part only", _BOUND, "a for b in bounds for a in b.assumptions",
             "a for b in bounds[:1] for a in b.assumptions",
             _in("bound", "test_compose_bounds_the_exact_product_and_never_raises_trust")),
    Mutation("norms need not chain", _BOUND, "if i and b.claim.norm_in != bounds[i - 1].claim.norm_out:", "if False:",
             _in("bound", "test_compose_refuses_what_does_not_chain")),
    Mutation("local map anywhere", _BOUND, "if i and b.claim.domain != GLOBAL:", "if False:",
             _in("bound", "test_compose_refuses_what_does_not_chain")),
    Mutation("one output fed to the next map", _BOUND, 'if i < len(bounds) - 1 and b.claim.outputs != "all":', "if False:",
             _in("bound", "test_compose_refuses_what_does_not_chain")),
    Mutation("lower bounds multiplied", _BOUND, "        if b.sense is not Sense.UPPER:\n", "        if False:\n",
             _in("bound", "test_compose_refuses_what_does_not_chain")),
    Mutation("tightest takes the loosest", _BOUND, "sign = 1.0 if every[0].sense is Sense.UPPER else -1.0",
             "sign = -1.0 if every[0].sense is Sense.UPPER else 1.0",
             _in("bound", "test_tightest_is_the_best_of_its_inputs")),
    Mutation("tightest takes heuristics", _BOUND, "        if b.rigor is Rigor.HEURISTIC:\n", "        if False:\n",
             _in("bound", "test_tightest_refuses_heuristics_even_as_the_worst")),
    Mutation("tightest mixes claims", _BOUND, "if b.claim != every[0].claim or b.sense", "if b.sense",
             _in("bound", "test_tightest_refuses_other_claims")),
    Mutation("NaN accepted", _BOUND, "        if math.isnan(value):\n", "        if False:\n",
             _in("bound", "test_nan_and_negative_values_are_refused")),
    # -- norms
    Mutation("rescale down", _NORMS, "return math.nextafter(product, math.inf)", "return product",
             _in("norms", "test_rescale_never_errs_to_the_wrong_side")),
    Mutation("rescale up for lower bounds", _NORMS, "return math.nextafter(product, 0.0)", "return product",
             _in("norms", "test_rescale_never_errs_to_the_wrong_side")),
    Mutation("lower bound rounded up", _NORMS, "return rescale(float(values[0]), scale, sense)",
             "return rescale(float(values[0]), scale, Sense.UPPER)",
             _in("norms", "test_subnormal_matrices_have_their_lower_bound_below")),
    Mutation("columns for rows", _NORMS, "np.abs(W / scale).sum(axis=1).max()", "np.abs(W / scale).sum(axis=0).max()",
             _in("norms", "test_known_norms")),
    Mutation("no scale in norms", _NORMS, "float(np.linalg.norm(W / scale))", "float(np.linalg.norm(W)) / scale",
             _in("norms", "test_known_norms")),
    Mutation("rigour claimed", _NORMS, "    if word is not Rigor.NUMERICAL:\n", "    if False:\n",
             _in("norms", "test_a_word_is_not_given_for_less")),
    # -- arrays
    Mutation("NaN read", _ARRAYS, "    if not np.all(np.isfinite(array)):\n", "    if False:\n",
             _in("arrays", "test_nan_and_infinity_are_refused_with_their_place")),
    Mutation("large integers rounded", _ARRAYS, "if not inside or not bool(np.all(back == raw)):", "if False:",
             _in("arrays", "test_bad_matrices")),
    Mutation("input aliased", _ARRAYS, 'array = np.array(raw, dtype=np.float64, order="C")',
             'array = np.asarray(raw, dtype=np.float64, order="C")',
             _in("arrays", "test_the_input_is_neither_aliased_nor_changed")),
    Mutation("digest without shape", _ARRAYS, '{contiguous.dtype.str}{contiguous.shape}', '{contiguous.dtype.str}',
             _in("arrays", "test_digests_tell_arrays_apart")),
]
