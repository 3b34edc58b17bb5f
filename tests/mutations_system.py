"""Wrong versions of the LipSDP of systems, of its certificates and solvers; joined to the table in ``mutations.py``."""

# ruff: noqa: E501 (one mutation a line or two: the texts must stay as they are in the source)

from __future__ import annotations

from typing import Final

_SYSTEM = "certbound/lipschitz/system.py"
_RICCATI = "certbound/lipschitz/riccati.py"
_CERTIFICATE = "certbound/lipschitz/system_certificate.py"
_REGION = "certbound/lipschitz/region_slopes.py"
_SOLVED = "certbound/lipschitz/sdp_system.py"
_BARRIER = "certbound/lipschitz/barrier.py"


def _s(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/test_system.py::{name}" for name in names)


def _c(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/test_system_certificate.py::{name}" for name in names)


def _l(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/test_local.py::{name}" for name in names)


_MAPS = _s("test_maps_against_rationals")
_ENTRIES = _s("test_errors_enclose_the_exact_matrices")
_JACOBIANS = _s("test_the_system_has_the_networks_jacobians")
_TRUE = _s(
    "test_what_is_proved_bounds_every_jacobian_exactly", "test_proves_is_sharp_and_never_wrong_against_the_exact_lmi"
)
_ERRORS = _s("test_every_error_of_a_map_enters_the_proof")
_ALTERED = _c("test_multipliers_that_prove_less_are_refused")
_LOWER = _c("test_values_below_what_is_proved_are_refused")
_FIELDS = _c("test_fields_that_make_no_sense_are_refused_on_loading")
_BALL = _c("test_the_ball_is_part_of_the_claim")

SYSTEM: Final[tuple[tuple[str, str, str, str, tuple[str, ...]], ...]] = (
    # -- maps and their errors
    ("product of maps without its rounding", _SYSTEM, "error = gamma(n + 4) * (np.abs(A) @ np.abs(B))",
     "error = 0.0 * (np.abs(A) @ np.abs(B))", _ENTRIES),
    ("error of the first map forgotten", _SYSTEM, "error += np.abs(A) @ first.error", "error += 0.0", _MAPS),
    ("product of two errors forgotten", _SYSTEM, "self.error @ (np.abs(B) + first.off)", "self.error @ np.abs(B)", _MAPS),
    ("underflow of a product of maps forgotten", _SYSTEM, "lost = 8 * (n + 1) * TINY * (2.0 + _top(A) + _top(B))",
     "lost = 0.0", _s("test_maps_whose_products_underflow")),
    ("sum of maps without its rounding", _SYSTEM, "(self.off + other.off + U * np.abs(total))", "(self.off + other.off)",
     _ENTRIES),
    ("error of the other summand forgotten", _SYSTEM, "(self.off + other.off + U * np.abs(total))",
     "(self.off + U * np.abs(total))", (*_MAPS, *_s("test_what_a_sum_cancels_is_not_forgotten"))),
    ("scaled map without its rounding", _SYSTEM, "error = np.abs(rows)[:, None] * self.off + U * np.abs(matrix)",
     "error = np.abs(rows)[:, None] * self.off", _MAPS),
    ("divided map without its rounding", _SYSTEM, "error = self.off / rows[:, None] + U * np.abs(matrix)",
     "error = self.off / rows[:, None]", _MAPS),
    ("range of maps not checked", _SYSTEM, "if not bool(np.all(size < _RANGE)) or (", "if (", _s("test_maps_whose_products_underflow")),
    ("widths of slopes to nearest", _SYSTEM, "np.where(error > 0.0, np.nextafter(d, math.inf), d)", "d",
     _s("test_widths_of_slopes_are_rounded_up")),
    # -- the walk
    ("lower slopes forgotten", _SYSTEM, "linear = self.now.scaled(low)", "linear = self.now.scaled(0.0 * low)", _JACOBIANS),
    ("widths of slopes forgotten", _SYSTEM, "np.arange(G.shape[1])] = width[open_]", "np.arange(G.shape[1])] = 1.0", _JACOBIANS),
    ("residual sum without its body", _SYSTEM, "self.now = self.waiting.pop().plus(self.now)",
     "self.waiting.pop()", _JACOBIANS),
    ("margin as a sum", _SYSTEM, "rows = rows.plus(Map(-other.matrix, other.error))",
     "rows = rows.plus(Map(other.matrix, other.error))", _ENTRIES),
    ("neurons that nothing moves are kept", _SYSTEM, "open_ = (width > 0.0) & moves", "open_ = width > 0.0",
     _s("test_neurons_that_cannot_bend_or_move_are_no_neurons")),
    ("no G where a neuron is left out", _SYSTEM, "np.all(open_ & (width == 1.0))", "np.all(width == 1.0)",
     _s("test_neurons_that_cannot_bend_or_move_are_no_neurons")),
    ("constant outputs kept with their steps", _SYSTEM, "if not head.matrix.any() and not head.off.any():", "if False:",
     _s("test_outputs_that_nothing_moves_are_constants")),
    ("outputs with an error taken for constants", _SYSTEM, "if not head.matrix.any() and not head.off.any():",
     "if not head.matrix.any():", _s("test_what_a_sum_cancels_is_not_forgotten")),
    # -- the recursion
    ("half the multipliers in the recursion", _RICCATI, "S = np.diag(2.0 * t) -", "S = np.diag(t) -",
     _s("test_the_recursions_storage_is_a_storage")),
    ("metric that does not dominate", _RICCATI, "best, best_sum = s * d, s * float(d.sum())",
     "best, best_sum = d, s * float(d.sum())", _s("test_the_metric_dominates")),
    ("metric of a storage of 0", _RICCATI, "if not top > 2.0**-900:", "if False:",
     _l("test_the_metric_of_nothing_is_positive")),
    # -- the proof
    ("signs of d and s not checked", _CERTIFICATE, "for v in (d, np.array([s]), d * s, *t):", "for v in (d * s, *t):", _ALTERED),
    ("metric rounded to nearest", _CERTIFICATE, "P[0] = np.diag(np.nextafter(d * s, 0.0))", "P[0] = np.diag(d * s)",
     _s("test_the_metric_of_the_first_step_is_rounded_down")),
    ("inequality of the head not proved", _CERTIFICATE, "if not _semidefinite(last, air):", "if False:", _ERRORS),
    ("inequalities of the steps not proved", _CERTIFICATE, "return all(\n            _semidefinite(",
     "return True or all(\n            _semidefinite(", (*_TRUE, *_ALTERED)),
    ("skip connection not in the inequality", _CERTIFICATE,
     "top_left = top_left.plus(_negative(_transposed(step.H).after(PH)))", "pass", _TRUE),
    ("error of the multipliers' block forgotten", _CERTIFICATE, "(E, top_left.off, low_left.off, low_right.off)",
     "(E, top_left.off, 0.0 * low_left.off, low_right.off)", _ERRORS),
    ("error of the entries forgotten", _CERTIFICATE, "positive_definite(A, up(air * quick_norm(B)[1]))",
     "positive_definite(A)", _ERRORS),
    ("smallest of d", _CERTIFICATE, "else float(np.max(d)))))", "else float(np.min(d)))))", _s("test_values_are_rounded_up")),
    ("proofs without air", _CERTIFICATE, "proves(system, t, own, s, slack, air=_AIR)", "proves(system, t, own, s, slack)",
     _c("test_a_proof_bears_four_times_its_rounding")),
    ("error of the head not in a linear proof", _CERTIFICATE, "if proves_norm(C.matrix, norm, value, off):",
     "value = norm_of * (1.0 + step)\n        if proves_norm(C.matrix, norm, value):", _c("test_errors_of_the_head_enter_the_linear_proof")),
    # -- the certificate
    ("certificate of another network", _CERTIFICATE, "if network.digest != self.subject:", "if False:",
     _c("test_another_network_is_refused")),
    ("proofs of other outputs", _CERTIFICATE, "if [p.outputs for p in self.proofs] != blocks:", "if False:",
     (*_c("test_all_outputs_in_inf_need_all_proofs"), *_ALTERED)),
    ("value below a proof's", _CERTIFICATE, "if not p.value <= self.value:", "if False:", _LOWER),
    ("value below what is proved", _CERTIFICATE, "if not proved <= p.value:", "if False:", (*_LOWER, *_ALTERED)),
    ("slopes without a ball", _REGION, "        if slopes:\n", "        if False:\n", _BALL),
    ("ball of other dimensions", _REGION, "if ball.center.size != network.n_inputs:", "if False:", _BALL),
    ("slopes of fewer layers", _REGION, "if len(needed) != len(slopes):", "if False:",
     _c("test_narrowed_slopes_are_refused")),
    ("slopes not compared above", _REGION, "np.all((low <= least) & (high >= most))", "np.all(low <= least)",
     _c("test_narrowed_slopes_are_refused")),
    ("slopes not compared below", _REGION, "np.all((low <= least) & (high >= most))", "np.all(high >= most)",
     _c("test_narrowed_slopes_are_refused")),
    ("last layer's norm instead of multipliers", _CERTIFICATE, "        if system.steps:\n", "        if False:\n",
     _c("test_the_norm_of_the_last_map_alone_proves_nothing")),
    ("norm of the linear map not proved", _CERTIFICATE,
     "if not proves_norm(system.head.matrix, norm, p.value, error_norm(system.head.error, norm)):", "if False:",
     _c("test_linear_on_the_ball")),
    ("several outputs at once against inf", _CERTIFICATE, "if math.isinf(norm) and len(system.head.matrix) != 1:", "if False:",
     _c("test_one_proof_of_several_outputs_says_nothing_against_inf")),
    ("multipliers not proved", _CERTIFICATE, "if not proves(system, p.t, p.d, p.s, p.slack):", "if False:", _ALTERED),
    ("sizes of multipliers not compared", _CERTIFICATE, "if not fits or p.d is None or p.d.shape != (network.n_inputs,):",
     "if p.d is None:", _ALTERED),
    ("arithmetic not checked", _CERTIFICATE, "        check_arithmetic()\n", "",
     _c("test_a_check_of_the_arithmetic_comes_first")),
    ("any method in a file", _CERTIFICATE, 'if not set(take(stored, "method", str).split("; ")) <= set(METHODS):', "if False:",
     _FIELDS),
    ("norm of a ball without a radius", _REGION, '    if take(stored, "ball norm", float, type(None)) is not None:',
     "    if False:", _FIELDS),
    ("no air for slopes", _REGION, "activation.slopes(low - room, high + room)", "activation.slopes(low + room, high - room)",
     _c("test_slopes_are_found_with_a_little_air")),
    ("metric of a linear map", _CERTIFICATE, "if p.d is not None or p.s != 0.0 or p.slack != 0.0:", "if False:",
     ("tests/test_branch_and_bound.py::test_forged_linear_leaves_are_refused",)),
    ("leaves of a tree not proved", "certbound/lipschitz/tree_certificate.py",
     "check_proof(network, proof, self.norm, leaf.slopes, self.kind)", "pass",
     ("tests/test_branch_and_bound.py::test_forged_trees_are_refused",)),
    ("leaves proved for all slopes at once", "certbound/lipschitz/tree_certificate.py", "leaf.slopes, self.kind", "None, self.kind",
     ("tests/test_branch_and_bound.py::test_forged_trees_are_refused",)),
    ("slopes of a tree not checked", "certbound/lipschitz/tree_certificate.py",
     "check_region(network, self.ball, self.slopes, self.kind)", "pass",
     ("tests/test_branch_and_bound.py::test_on_a_ball",)),
    ("gap of another bound called 0", "certbound/lipschitz/sdp.py", "max(0.0, (1.0 + gap) * best.value / result.value - 1.0)",
     "0.0", _l("test_the_gap_follows_the_bound_that_is_shown")),
    # -- what is solved
    ("outputs against inf in one block", _SOLVED, "list(range(network.n_outputs)) if several else [outputs]", "[outputs]",
     _c("test_all_outputs_in_inf_need_all_proofs")),
    ("smallest of the outputs", _SOLVED, "worst = max(every, key=lambda f: f.proof.value)",
     "worst = min(every, key=lambda f: f.proof.value)", _c("test_saved_loaded_and_every_byte_counts")),
    ("dead neurons with small multipliers", _BARRIER, "1e6 * fed[reached].sum(axis=0)", "0.0 * fed[reached].sum(axis=0)",
     _l("test_neurons_that_no_input_reaches_cost_nothing")),
    ("dead neurons that feed dead ones", _BARRIER, "10.0 * fed[~reached].sum(axis=0)", "0.0 * fed[~reached].sum(axis=0)",
     _l("test_neurons_that_no_input_reaches_cost_nothing")),
    ("small multipliers raised", "certbound/lipschitz/sdp_certificate.py", "np.maximum(a, 1e-60 * float(np.max(a)))",
     "np.maximum(a, 1e-12 * float(np.max(a)))", _l("test_badly_scaled_rows_keep_their_multipliers")),
)  # fmt: skip
