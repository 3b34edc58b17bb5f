"""Wrong versions of the library that the tests must notice; ``mutate.py`` runs them.

Append to :data:`MUTATIONS`. ``old`` must occur exactly once in ``file`` (choose text that a formatter leaves alone), or
``count`` times; ``tests`` are the pytest node ids (or modules) of which at least one must fail.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mutations_certificates import CERTIFICATES
from mutations_rigour import RIGOUR
from mutations_system import SYSTEM
from mutations_theorems import THEOREMS


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
    Mutation(
        "epsilon test flipped",
        _T31,
        "if epsilon > exact_eps + tol:",
        "if epsilon < exact_eps - tol:",
        _t31("test_the_trap"),
    ),
    Mutation("epsilon test dropped", _T31, "if epsilon > exact_eps + tol:", "if epsilon > 1.0 + tol:", _t31(_NOT_MET)),
    Mutation(
        "epsilon test loose",
        _T31,
        "if epsilon > exact_eps + tol:",
        "if epsilon > exact_eps + 0.1:",
        _t31("test_the_trap_at_every_k"),
    ),
    Mutation(
        "epsilon membership accepted at both ends",
        _T31,
        "elif epsilon < exact_eps - tol:",
        "elif epsilon < exact_eps - 1.0:",
        _t31(_ONE_SIDED),
    ),
    Mutation("beta test flipped", _T31, "if beta < mean_beta - tol:", "if beta > mean_beta + tol:", _t31(_ONE_SIDED)),
    Mutation("beta test dropped", _T31, "if beta < mean_beta - tol:", "if beta < -1.0:", _t31(_NOT_MET)),
    Mutation(
        "beta compared with the k-th",
        _T31,
        "if beta < mean_beta - tol:",
        "if beta < exact_beta - tol:",
        _t31("test_beta_between_mean_and_kth_uses_the_mean_formula"),
    ),
    Mutation(
        "kth formula for a smaller beta",
        _T31,
        "and b >= p.beta_kth[k - 1] else",
        "and b >= 0.0 else",
        _t31("test_beta_between_mean_and_kth_uses_the_mean_formula"),
    ),
    Mutation(
        "holds flipped",
        _T31,
        "holds = top <= min(value, sharp) * (1 + tol)",
        "holds = top >= min(value, sharp) * (1 + tol)",
        _t31(_NEURON),
    ),
    Mutation(
        "holds ignores the hypothesis",
        _T31,
        "    if used.met:\n        holds = top",
        "    if True:\n        holds = top",
        _t31("test_the_trap"),
    ),
    Mutation(
        "bound given without hypothesis",
        _T31,
        "    if used.met:\n        bound = Bound(",
        "    if True:\n        bound = Bound(",
        _t31("test_the_trap"),
    ),
    Mutation(
        "status always ok",
        _T31,
        "status=Status.OK if used.met else Status.HYPOTHESIS_NOT_MET",
        "status=Status.OK",
        _t31("test_the_trap"),
    ),
    Mutation(
        "holds of the sweep flipped",
        _T31,
        "np.all(p.top <= np.minimum(values, sharps)",
        "np.all(p.top >= np.minimum(values, sharps)",
        _t31(_LADDER),
    ),
    Mutation(
        "report holds if either part does",
        _T31,
        "return None if None in parts else True",
        "return True if True in parts else None",
        _t31("test_one_part_in_the_trap_does_not_hide_the_other"),
    ),
    # -- Theorem 3.1: formulas
    Mutation("beta dropped", _T31, "kept / np.where(beta < 1.0, 1.0 - beta, 1.0)", "kept", _t31(_NEURON)),
    Mutation(
        "beta squared",
        _T31,
        "kept / np.where(beta < 1.0, 1.0 - beta, 1.0)",
        "kept / np.where(beta < 1.0, 1.0 - beta * beta, 1.0)",
        _t31(_NEURON),
    ),
    Mutation(
        "1/k_nu forgotten, derived",
        _T31,
        "return whole[best] / k, ",
        "return whole[best] / np.ones_like(k), ",
        _t31(_NEURON),
    ),
    Mutation(
        "1/k_nu forgotten, printed",
        _T31,
        "math.sqrt(m * n) * eps / kv",
        "math.sqrt(m * n) * eps",
        _t31("test_k_row_by_hand"),
    ),
    Mutation(
        "1/k_nu twice, printed",
        _T31,
        "whole = np.sqrt(m * kr) + math.sqrt(m * n) * eps / kv",
        "whole = (np.sqrt(m * kr) + math.sqrt(m * n) * eps) / kv",
        _t31(_NEURON),
    ),
    Mutation(
        "sqrt(r) dropped", _T31, "factor = math.sqrt(measured.size(part)) / k", "factor = 1.0 / k", _t31(_SPECTRAL)
    ),
    Mutation(
        "r = max(m, n)",
        _T31,
        'min(self.shape) if part == "spectral" else self.shape[0]',
        'max(self.shape) if part == "spectral" else self.shape[0]',
        _t31(_SPECTRAL),
    ),
    Mutation(
        "1/k_sigma forgotten",
        _T31,
        "factor = math.sqrt(measured.size(part)) / k",
        "factor = math.sqrt(measured.size(part)) / np.ones_like(k)",
        _t31(_SPECTRAL),
    ),
    Mutation(
        "row step halved",
        _T31,
        "whole = np.sqrt(m * kr) + math.sqrt(m * n) * eps\n",
        "whole = (np.sqrt(m * kr) + math.sqrt(m * n) * eps) / 2\n",
        _t31(_NEURON),
    ),
    Mutation(
        "row tail forgotten",
        _T31,
        "whole = np.sqrt(m * kr) + math.sqrt(m * n) * eps\n",
        "whole = np.sqrt(m * kr)\n",
        _t31(_NEURON),
    ),
    Mutation("worst row count", _T31, "best = int(np.argmin(rho))", "best = int(np.argmax(rho))", _t31(_NEURON)),
    Mutation(
        "clamp too low",
        _T31,
        "np.minimum(eps, np.sqrt((n - kr) / n))",
        "np.minimum(eps, (n - kr) / n)",
        _t31("test_sharp_is_attained", _NEURON),
    ),
    Mutation(
        "rho loses its tail",
        _T31,
        "rho = np.sqrt(kr) * np.sqrt(1.0 - clamped**2) + np.sqrt(n - kr) * clamped",
        "rho = np.sqrt(kr) * np.sqrt(1.0 - clamped**2)",
        _t31("test_row_step_of_the_sharp_form_is_attained"),
    ),
    Mutation(
        "sharp with (size - k)/2",
        _T31,
        "t = np.divide(ratio**2, size - k,",
        "t = np.divide(ratio**2, (size - k) / 2,",
        _t31(_SPECTRAL),
    ),
    Mutation(
        "sharp with 2 (size - k)",
        _T31,
        "t = np.divide(ratio**2, size - k,",
        "t = np.divide(ratio**2, 2 * (size - k),",
        _t31("test_sharp_is_attained"),
    ),
    Mutation(
        "sharp, mean: S below 1",
        _T31,
        "s = np.maximum(1.0, k * (1.0 - beta))",
        "s = k * (1.0 - beta)",
        _t31("test_beta_between_mean_and_kth_uses_the_mean_formula"),
    ),
    Mutation(
        "sharp, kth: beta not squared",
        _T31,
        "a = (k - 1.0) * (1.0 - beta) ** 2",
        "a = (k - 1.0) * (1.0 - beta)",
        _t31("test_sharp_is_attained"),
    ),
    Mutation(
        "lower bound, rows: kept/k forgotten",
        _T31,
        "return measured.neuron.kept[i] / k * measured.frobenius",
        "return measured.neuron.kept[i] * measured.frobenius",
        _t31(_NEURON),
    ),
    Mutation(
        "lower bound, spectral: k forgotten",
        _T31,
        "np.maximum(0.0, 1.0 - eps * eps) / k)",
        "np.maximum(0.0, 1.0 - eps * eps))",
        _t31(_SPECTRAL),
    ),
    Mutation(
        "lower bound, spectral: q = 1 tail",
        _T31,
        "eps = measured.spectral.epsilon_2[i]",
        "eps = measured.spectral.epsilon[i]",
        _t31(_SPECTRAL),
    ),
    Mutation(
        "vacuous for rows against the Frobenius norm",
        _T31,
        'measured.frobenius * (1.0 if part == "spectral" else math.sqrt(measured.shape[1]))',
        "measured.frobenius",
        _t31("test_vacuous_by_definition"),
    ),
    Mutation(
        "best k is the worst",
        _T31,
        "np.argmax(values <= values.min() * (1 + measured.tolerance))",
        "np.argmax(values >= values.max() * (1 - measured.tolerance))",
        _t31(_LADDER),
    ),
    Mutation(
        "scale forgotten in measure",
        _T31,
        "    scale = power_of_two_scale(W)\n",
        "    scale = 1.0\n",
        _t31("test_extreme_matrices"),
    ),
    Mutation(
        "scale not multiplied back",
        _T31,
        "            rescale(value, scale, Sense.UPPER),",
        "            value,",
        _t31(_NEURON),
    ),
    # -- compressibility
    Mutation("epsilon + 0.01", _COMPRESSIBILITY, "epsilon=tail / total,", "epsilon=tail / total + 0.01,", _PROFILE),
    Mutation("kept - 0.01", _COMPRESSIBILITY, "kept=head / total,", "kept=head / total - 0.01,", _t31(_NEURON)),
    Mutation(
        "mean for kth",
        _COMPRESSIBILITY,
        'self.beta_kth if dispersion == "kth"',
        'self.beta_mean if dispersion == "kth"',
        _t31(_NEURON),
    ),
    Mutation(
        "tail keeps one too many",
        _COMPRESSIBILITY,
        "tail = np.concatenate([np.cumsum(t[::-1])[::-1][1:], [0.0]])",
        "tail = np.cumsum(t[::-1])[::-1]",
        _PROFILE,
    ),
    Mutation(
        "kth off by one",
        _COMPRESSIBILITY,
        "beta_kth=1.0 - t / t[0],",
        "beta_kth=1.0 - np.roll(t, -1) / t[0],",
        _PROFILE,
    ),
    Mutation("mean over d, not k", _COMPRESSIBILITY, "1.0 - head / (k * t[0])", "1.0 - head / (d * t[0])", _PROFILE),
    Mutation(
        "best row tail, not worst",
        _COMPRESSIBILITY,
        "np.sqrt(ratio.max(axis=0))",
        "np.sqrt(ratio.min(axis=0))",
        _in("compressibility", "test_row_tails_against_exact_rationals"),
    ),
    Mutation(
        "row tails in one unit",
        _COMPRESSIBILITY,
        "np.ldexp(magnitudes, -exponents[:, None])",
        "magnitudes",
        _in("compressibility", "test_row_tails_against_exact_rationals"),
    ),
    Mutation(
        "smallest k too small",
        _COMPRESSIBILITY,
        "np.argmax(tails <= target)) + 1",
        "np.argmax(tails <= target))",
        _in("compressibility", "test_values_by_hand"),
    ),
    # -- the algebra of trust
    Mutation(
        "rounding outward removed",
        _BOUND,
        "return math.nextafter(a * b, math.inf)",
        "return a * b",
        _in("bound", "test_multiply_up_is_never_below_the_exact_product"),
    ),
    Mutation(
        "rounding inward",
        _BOUND,
        "return math.nextafter(a * b, math.inf)",
        "return math.nextafter(a * b, 0.0)",
        _in("bound", "test_compose_bounds_the_exact_product_and_never_raises_trust"),
    ),
    Mutation(
        "zero times infinity",
        _BOUND,
        "    if a == 0.0 or b == 0.0:\n",
        "    if False:\n",
        _in("bound", "test_multiply_up_is_never_below_the_exact_product"),
    ),
    Mutation(
        "rigor raised",
        _BOUND,
        "min(b.rigor for b in bounds)",
        "max(b.rigor for b in bounds)",
        _in("bound", "test_compose_bounds_the_exact_product_and_never_raises_trust"),
    ),
    Mutation(
        "assumptions of the first part only",
        _BOUND,
        "a for b in bounds for a in b.assumptions",
        "a for b in bounds[:1] for a in b.assumptions",
        _in("bound", "test_compose_bounds_the_exact_product_and_never_raises_trust"),
    ),
    Mutation(
        "norms need not chain",
        _BOUND,
        "if i and b.claim.norm_in != bounds[i - 1].claim.norm_out:",
        "if False:",
        _in("bound", "test_compose_refuses_what_does_not_chain"),
    ),
    Mutation(
        "local map anywhere",
        _BOUND,
        "if i and b.claim.domain != GLOBAL:",
        "if False:",
        _in("bound", "test_compose_refuses_what_does_not_chain"),
    ),
    Mutation(
        "one output fed to the next map",
        _BOUND,
        'if i < len(bounds) - 1 and b.claim.outputs != "all":',
        "if False:",
        _in("bound", "test_compose_refuses_what_does_not_chain"),
    ),
    Mutation(
        "lower bounds multiplied",
        _BOUND,
        "        if b.sense is not Sense.UPPER:\n",
        "        if False:\n",
        _in("bound", "test_compose_refuses_what_does_not_chain"),
    ),
    Mutation(
        "tightest takes the loosest",
        _BOUND,
        "sign = 1.0 if every[0].sense is Sense.UPPER else -1.0",
        "sign = -1.0 if every[0].sense is Sense.UPPER else 1.0",
        _in("bound", "test_tightest_is_the_best_of_its_inputs"),
    ),
    Mutation(
        "tightest takes heuristics",
        _BOUND,
        "        if b.rigor is Rigor.HEURISTIC:\n",
        "        if False:\n",
        _in("bound", "test_tightest_refuses_heuristics_even_as_the_worst"),
    ),
    Mutation(
        "tightest mixes claims",
        _BOUND,
        "if b.claim != every[0].claim or b.sense",
        "if b.sense",
        _in("bound", "test_tightest_refuses_other_claims"),
    ),
    Mutation(
        "NaN accepted",
        _BOUND,
        "        if math.isnan(value):\n",
        "        if False:\n",
        _in("bound", "test_nan_and_negative_values_are_refused"),
    ),
    # -- norms
    Mutation(
        "rescale down",
        _NORMS,
        "return math.nextafter(product, math.inf)",
        "return product",
        _in("norms", "test_rescale_never_errs_to_the_wrong_side"),
    ),
    Mutation(
        "rescale up for lower bounds",
        _NORMS,
        "return math.nextafter(product, 0.0)",
        "return product",
        _in("norms", "test_rescale_never_errs_to_the_wrong_side"),
    ),
    Mutation(
        "lower bound rounded up",
        _NORMS,
        "return rescale(float(values[0]), scale, sense)",
        "return rescale(float(values[0]), scale, Sense.UPPER)",
        _in("norms", "test_subnormal_matrices_have_their_lower_bound_below"),
    ),
    Mutation(
        "columns for rows",
        _NORMS,
        "np.abs(W / scale).sum(axis=1).max()",
        "np.abs(W / scale).sum(axis=0).max()",
        _in("norms", "test_known_norms"),
    ),
    Mutation(
        "no scale in norms",
        _NORMS,
        "float(np.linalg.norm(W / scale))",
        "float(np.linalg.norm(W)) / scale",
        _in("norms", "test_known_norms"),
    ),
    Mutation(
        "rigour claimed",
        _NORMS,
        "    if word is Rigor.HEURISTIC:\n",
        "    if False:\n",
        _in("norms", "test_a_word_is_not_given_for_less"),
    ),
    # -- arrays
    Mutation(
        "NaN read",
        _ARRAYS,
        "    if not np.all(np.isfinite(array)):\n",
        "    if False:\n",
        _in("arrays", "test_nan_and_infinity_are_refused_with_their_place"),
    ),
    Mutation(
        "large integers rounded",
        _ARRAYS,
        "if not inside or not bool(np.all(back == raw)):",
        "if False:",
        _in("arrays", "test_bad_matrices"),
    ),
    Mutation(
        "input aliased",
        _ARRAYS,
        'array = np.array(raw, dtype=np.float64, order="C")',
        'array = np.asarray(raw, dtype=np.float64, order="C")',
        _in("arrays", "test_the_input_is_neither_aliased_nor_changed"),
    ),
    Mutation(
        "digest without shape",
        _ARRAYS,
        "{contiguous.dtype.str}{contiguous.shape}",
        "{contiguous.dtype.str}",
        _in("arrays", "test_digests_tell_arrays_apart"),
    ),
]

_PAIRS = "certbound/lipschitz/pattern_pair.py"
_PATTERNS = "certbound/lipschitz/patterns.py"
_ALIGNMENT = "certbound/lipschitz/alignment.py"
_RECURSION = "certbound/lipschitz/recursion.py"
_REPAIR = "certbound/lipschitz/repair.py"
_SDP = "certbound/lipschitz/sdp_chain.py"
_MARGIN_CONSTANTS = "certbound/lipschitz/margin_constants.py"
_T32 = "certbound/theorems/theorem32.py"
_ROBUSTNESS = "certbound/robustness.py"
_COMPARISON = "certbound/comparison.py"
_DENSE_LMI = "test_closed_form_point_satisfies_the_dense_lmi"
_EVERY_PATTERN = _in("pattern_pair", "test_each_pattern_can_be_the_best_one")
_TOO_SMALL = _in("comparison", "test_a_bound_that_is_too_small_breaks_the_ladder")

MUTATIONS.extend([
    # -- pairs of layers
    Mutation("last pattern of a half missing", _PAIRS, "np.arange(2**bits)", "np.arange(max(1, 2**bits - 1))",
             _EVERY_PATTERN),
    Mutation("pattern missing in exact_2", _PAIRS, "min(start + 4096, 2**h)", "min(start + 4096, max(1, 2**h - 2))",
             _in("pattern_pair", "test_each_pattern_can_be_the_best_one", "test_exact_2_is_the_rational_maximum",
                 "test_exact_2_visits_all_patterns")),
    Mutation("last block of exact_2 missing", _PAIRS, "for start in range(0, 2**h, 4096):",
             "for start in range(0, max(1, 2**h - 4096), 4096):", _EVERY_PATTERN),
    Mutation("pruning that loses", _PAIRS, "np.maximum(part + plus, minus - part).sum(axis=1)",
             "np.abs(part).sum(axis=1)", _in("pattern_pair", "test_split_enumeration_against_brute_force")),
    Mutation("decoupled with one sign", _PAIRS, "np.maximum(up, down).sum(axis=1)", "up.sum(axis=1)",
             _in("pattern_pair", "test_decoupled_needs_both_signs_of_a_product")),
    Mutation("closed form with 3I", _PAIRS, "Y = 2.0 * np.eye(A.shape[0])", "Y = 3.0 * np.eye(A.shape[0])",
             _in("pattern_pair", "test_closed_form_2_lies_between")),
    Mutation("pairs not balanced", _PAIRS, "    A, B, exponent = balanced(A, B)\n", "    exponent = 0\n",
             _in("pattern_pair", "test_paths_through_tiny_and_huge_weights")),
    Mutation("last pattern of a deep net missing", _PATTERNS, "range(2 ** len(active))", "range(2 ** len(active) - 1)",
             _in("lipschitz", "test_patterns_against_brute_force")),
    Mutation("deep patterns not balanced", _PATTERNS, "balanced(weights[i], weights[i + 1])",
             "(weights[i], weights[i + 1], 0)", _in("lipschitz", "test_extreme_weights")),
    # -- alignment
    Mutation("remainder dropped", _ALIGNMENT, "value = core + remainder", "value = core",
             _in("alignment", "test_without_the_remainder_the_truncated_maximum_is_too_small")),
    Mutation("remainder of one side only", _ALIGNMENT, "min(nbk * nea + neb, nea + neb * nak)",
             "min(nbk * nea, neb * nak)", _in("alignment", "test_core_and_remainder_are_those_of_the_theorem")),
    Mutation("competing rows without remainder", _ALIGNMENT, "max(core + nbk * nea, neb)", "max(core, neb)",
             _in("alignment", "test_without_the_remainder_the_truncated_maximum_is_too_small")),
    Mutation("cut rows forgotten", _ALIGNMENT, "max(core + nbk * nea, neb)", "core + nbk * nea",
             _in("alignment", "test_competing_rows_make_the_remainder_smaller_for_inf")),
    Mutation("worst cover taken", _ALIGNMENT, "best.append(min(options", "best.append(max(options",
             _in("alignment", "test_best_cover_is_the_best_of_all")),
    Mutation("alignment above 1", _ALIGNMENT, "    value = min(1.0, value)\n", "",
             _in("alignment", "test_alignment_is_an_upper_bound_for_every_k")),
    Mutation("vanished entries ignored", _ALIGNMENT, "np.abs(v) < 2.0**-1000", "np.abs(v) < 0.0",
             _in("lipschitz", "test_absolute_value_through_huge_and_tiny_weights")),
    Mutation("no kinks left out in 3.2", _ROBUSTNESS, "np.abs(z) <= error", "np.abs(z) < 0",
             _in("theorem32", "test_sampled_leaves_kinks_out")),
    Mutation("holds without the ladder", _T32, "ladder and fine and largest", "fine and largest",
             _in("theorem32", "test_holds_says_no_when_a_bound_is_wrong")),
    Mutation("holds without the patterns", _T32, "ladder and fine and largest", "ladder and largest",
             _in("theorem32", "test_holds_sees_a_pair_bound_that_a_pattern_beats")),
    Mutation("alignment not in the three forms", _T32, "compose(*layers, *factors, subject=subject)",
             "compose(*layers, subject=subject)", _in("theorem32", "test_bounds_are_made_of_theorem31_and_the_blocks")),
    # -- recursion, repair, SDP
    Mutation("recursion with 3I", _RECURSION, "2.0 * np.eye(len(K)) - K / kappa", "3.0 * np.eye(len(K)) - K / kappa",
             _in("lipschitz", _DENSE_LMI)),
    Mutation("recursion with I", _RECURSION, "2.0 * np.eye(len(K)) - K / kappa", "1.001 * np.eye(len(K)) - K / kappa",
             _in("lipschitz", "test_recursion_and_product")),
    Mutation("recursion without T", _RECURSION, "2.0 * np.eye(len(K)) - K / kappa", "2.0 * np.eye(len(K))",
             _in("lipschitz", _DENSE_LMI)),
    Mutation("gains not multiplied", _RECURSION, "0.5 * (run.log2_gain() +", "0.5 * (0.0 * run.log2_gain() +",
             _in("lipschitz", "test_sandwich")),
    Mutation("sum of d forgotten in the recursion", _RECURSION, "extra=float(d.sum())", "extra=1.0",
             _in("lipschitz", "test_sandwich")),
    Mutation("repair without feasibility", _REPAIR, "np.linalg.cholesky(Y - 8 * len(Y) * 2.0**-53 * np.eye(len(Y)))",
             "np.linalg.cholesky(Y + (abs(float(np.linalg.eigvalsh(Y)[0])) + 1.0) * np.eye(len(Y)))",
             _in("lipschitz", "test_infeasible_multipliers_give_no_gain")),
    Mutation("repair with half the head", _REPAIR, "np.eye(len(ti)) - half @ half.T",
             "np.eye(len(ti)) - 0.5 * half @ half.T", _in("lipschitz", "test_repair_of_any_hint_is_feasible")),
    Mutation("repair without the metric", _REPAIR, "half / np.sqrt(d)[:, None]", "half",
             _in("lipschitz", "test_gain_is_the_smallest_feasible_one")),
    Mutation("minimum with the closed form removed", _SDP, "if fallback.proof.value <= proof.value:", "if False:",
             _in("lipschitz", "test_wrong_multipliers_are_repaired", "test_rubbish_multipliers")),
    Mutation("minimum removed for margins", _MARGIN_CONSTANTS,
             "min(value, multiply_up(ceiling, functional_bound(row, norm, pair).value))", "value",
             _in("lipschitz", "test_closed_form_inf_can_exceed_the_product_and_is_then_replaced")),
    Mutation("solver value shown", _SDP, "    proof, theta = found\n",
             "    old, theta = found\n    proof = Proof(outputs, value, old.t, old.d, old.s, old.exponents)\n",
             _in("lipschitz", "test_a_solver_value_is_never_the_bound")),
    Mutation("deadline of margins ignored", _MARGIN_CONSTANTS, "else deadline - time.perf_counter()", "else 10.0",
             _in("lipschitz", "test_margin_constants_by_cvxpy")),
    Mutation("LQ factor for inf", _SDP, "if not math.isinf(norm) and weights[0].shape[1]", "if weights[0].shape[1]",
             _in("lipschitz", "test_wide_inputs")),
    Mutation("smallest output", _SDP, "worst = max(found, key=", "worst = min(found, key=",
             _in("lipschitz", "test_sandwich")),
    # -- from constants to samples
    Mutation("dual norm forgotten", _NORMS, "ord=1 if math.isinf(norm) else 2", "ord=np.inf if math.isinf(norm) else 2",
             _in("robustness", "test_head_constants_by_hand")),
    Mutation("2-norm of the head for inf", _NORMS, "ord=1 if math.isinf(norm) else 2", "ord=2",
             _in("corollary33", "test_the_wrong_dual_norm_would_be_caught")),
    Mutation("1-norm of the head for 2", _NORMS, "ord=1 if math.isinf(norm) else 2", "ord=1",
             _in("corollary33", "test_one_logit_linear_model")),
    Mutation("margins without delta", _ROBUSTNESS, "margins = samples.margins - loss_of",
             "margins = samples.margins.copy()", _in("robustness", "test_certified_numbers_against_a_grid")),
    Mutation("delta forgotten", _ROBUSTNESS, "else constants * delta", "else constants",
             _in("corollary33", "test_bound_grows_in_proportion_to_delta")),
    Mutation("gap of the easiest class", _ROBUSTNESS, "gap = np.max(loss_of, axis=1)",
             "gap = np.sort(loss_of, axis=1)[:, 1]", _in("corollary33", "test_the_worst_class_decides")),
    Mutation("kinks not left out", _ROBUSTNESS, "np.abs(z) <= error", "np.abs(z) < 0",
             _in("robustness", "test_gradient_at_a_kink_is_left_out")),
    Mutation("ties certified", _ROBUSTNESS, "        return np.all(self.margins > 0, axis=1)",
             "        return np.all(self.margins >= 0, axis=1)",
             _in("robustness", "test_certified_margin_must_be_positive")),
    # -- the ladder
    Mutation("ladder tolerance infinite", _COMPARISON, "_TOLERANCE = 1e-9", "_TOLERANCE = math.inf", _TOO_SMALL),
    Mutation("ladder not checked", _COMPARISON, "    _check_ladder(links, samples.network.digest)\n", "", _TOO_SMALL),
    Mutation("margins not in the ladder", _COMPARISON, "proof.margins[finite],", "found.margins[finite],",
             _in("comparison", "test_attack_margins_below_the_certified_ones_break_the_ladder")),
    Mutation("ladder absolute", _COMPARISON, "scale = np.where(np.isfinite(high) & (high > 0), high, 1.0)",
             "scale = np.ones_like(high)", _in("comparison", "test_small_constants_are_compared_relatively")),
    Mutation("undefined links hold", _COMPARISON, "closest <= _TOLERANCE", "not closest > _TOLERANCE",
             _in("comparison", "test_infinite_and_undefined_numbers_in_links"), count=2),
])  # fmt: skip

MUTATIONS.extend(Mutation(*row) for row in (*RIGOUR, *CERTIFICATES, *THEOREMS, *SYSTEM))
