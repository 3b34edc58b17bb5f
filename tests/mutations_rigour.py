"""Wrong versions of outward rounding, verified norms and certificates; joined to the table in ``mutations.py``."""

# ruff: noqa: E501 (one mutation a line or two: the texts must stay as they are in the source)

from __future__ import annotations

from typing import Final

_ROUNDING = "certbound/rounding.py"
_VERIFIED = "certbound/norms/verified.py"
_EVIDENCE = "certbound/norms/evidence.py"
_PRODUCT = "certbound/lipschitz/product.py"
_SDP = "certbound/lipschitz/sdp_certificate.py"
_NETWORK = "certbound/network.py"


def _r(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/test_rounding.py::{name}" for name in names)


def _v(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/test_verified_norms.py::{name}" for name in names)


def _s(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/test_sdp_certificate.py::{name}" for name in names)


_SUMS = _r("test_sums_are_neighbouring_floats_around_the_exact_sum")
_SQUARES = _r("test_square_sums_and_norms")
_INTERVALS = _r("test_intervals_hold_every_result")
_SHIFT = _r("test_no_shift_proves_what_is_false", "test_wrong_shifts_prove_nothing_false")
_NORMS = _v("test_rigorous_norms_against_rationals")
_FORGED = _v("test_forged_values_are_refused")
_FOLDED = _s("test_folding_errors_are_bounds_entry_by_entry")
_ALTERED = _s("test_multipliers_that_prove_less_are_refused")
_VALUES = _s("test_values_below_what_is_proved_are_refused")

RIGOUR: Final[tuple[tuple[str, str, str, str, tuple[str, ...]], ...]] = (
    # -- sums, intervals
    ("sums rounded to nearest", _ROUNDING, "up(nearest) if rest > 0 else nearest", "nearest", _SUMS),
    ("sums never rounded down", _ROUNDING, "math.nextafter(nearest, -math.inf) if rest < 0 else nearest", "nearest", _SUMS),
    ("squares without their low halves", _ROUNDING, "_directed([*square.tolist(), *error.tolist()])",
     "_directed([*square.tolist()])", _SQUARES),
    ("tiny squares forgotten", _ROUNDING, "above if rest == 0.0 else up(above + rest)", "above", _SQUARES),
    ("quick norm without its factor", _ROUNDING, "up(up(square * (1.0 + g)) + loss)", "square", _SQUARES),
    ("quick norm below without its factor", _ROUNDING, "max(0.0, down(square * (1.0 - g)) - loss)", "square", _SQUARES),
    ("long sums without their factor", _ROUNDING, "up(total * (1.0 + g) * (1.0 + 4 * U))", "total",
     _r("test_long_sums")),
    ("root above not checked", _ROUNDING, "return up(root) if math.isfinite(root)", "return root if math.isfinite(root)",
     _r("test_square_roots_are_the_nearest_on_their_side")),
    ("root below not checked", _ROUNDING, "return math.nextafter(root, 0.0) if math.isfinite(root)",
     "return root if math.isfinite(root)", _r("test_square_roots_are_the_nearest_on_their_side")),
    ("interval sum to nearest", _ROUNDING, "Interval(_floor(self.low + other.low), up(self.high + other.high))",
     "Interval(self.low + other.low, self.high + other.high)", _INTERVALS),
    ("interval product to nearest", _ROUNDING, "up(product))", "product)", _INTERVALS),
    ("interval quotient to nearest", _ROUNDING, "up(self.high / other.low), math.inf)", "self.high / other.low, math.inf)",
     _INTERVALS),
    ("interval difference of like ends", _ROUNDING, "low, high = self.low - other.high, self.high - other.low",
     "low, high = self.low - other.low, self.high - other.high", _INTERVALS),
    ("interval root to nearest", _ROUNDING, "up(np.sqrt(self.high))", "np.sqrt(self.high)", _INTERVALS),
    ("cumulative sums to nearest", _ROUNDING, "up(np.cumsum(self.high) * (1.0 + g) * (1.0 + 4 * U))",
     "np.cumsum(self.high)", _r("test_cumulative_sums")),
    ("gamma of one", _ROUNDING, "n * U / (1.0 - n * U)", "U / (1.0 - U)", _r("test_gamma")),
    ("flushed subnormals accepted", _ROUNDING, "if not (nearest and gradual):", "if not nearest:",
     _r("test_flushed_subnormals_are_refused")),
    ("other rounding accepted", _ROUNDING, "if not (nearest and gradual):", "if not gradual:",
     _r("test_another_rounding_mode_is_refused")),
    # -- positive definiteness
    ("Cholesky believed", _ROUNDING, "return up(up(up(math.sqrt(squares)) + rounding) + error) <= c", "return True",
     (*_SHIFT, *_r("test_positive_definite_is_a_proof"))),
    ("residual forgotten", _ROUNDING, "up(up(up(math.sqrt(squares)) + rounding) + error) <= c",
     "up(rounding + error) <= c", _r("test_a_factor_that_is_wrong_is_noticed")),
    ("rounding of L Lt forgotten", _ROUNDING, "up(up(up(math.sqrt(squares)) + rounding) + error) <= c",
     "up(up(math.sqrt(squares)) + error) <= c", _r("test_the_rounding_of_the_residual_enters_the_proof")),
    ("error forgotten", _ROUNDING, "up(up(up(math.sqrt(squares)) + rounding) + error) <= c",
     "up(up(math.sqrt(squares)) + rounding) <= c", _r("test_the_rounding_of_the_residual_enters_the_proof")),
    ("off-diagonal residual forgotten", _ROUNDING, "squares = up(squares + 2.0 * up(r * r))", "squares = squares",
     _r("test_a_wrong_factor_below_the_diagonal_is_noticed")),
    ("rounding of products forgotten", _ROUNDING, "return up(up(gamma(n) * up(a * b)) + underflow)", "return underflow",
     _r("test_product_errors")),
    # -- norms
    ("what scaling loses forgotten", _VERIFIED, "0.0 if exact else up(up(math.sqrt(W.size)) * TINY)", "0.0",
     _v("test_entries_that_scaling_loses_are_counted")),
    ("only one candidate row", _VERIFIED, "rows = np.flatnonzero(sums * (1.0 + g) >= sums.max() * (1.0 - g))",
     "rows = np.array([int(np.argmin(sums))])", _NORMS),
    ("error of the Gram matrix forgotten", _VERIFIED, "positive_definite(matrix, up(gram_error(side) + up(",
     "positive_definite(matrix, up(0.0 + up(", _v("test_every_error_enters_the_proof")),
    ("square rounded up", _VERIFIED, "square = down(s * s)", "square = up(s * s) * (1 + 1e-12)",
     _v("test_nothing_false_is_proved", "test_forged_values_are_refused")),
    ("error of the image forgotten", _VERIFIED, "down(max(0.0, down(image - times * error)) / length)", "image / length",
     _v("test_every_error_enters_the_proof")),
    ("easy bound without Hölder", _VERIFIED, "return min(quick_norm(A)[1], sqrt_up(", "return min(quick_norm(A)[1], 0.9 * sqrt_up(",
     _NORMS),
    ("width of a tenth", _VERIFIED, "margin = 1.05 * needed", "margin = 1e3 * needed",
     _v("test_rigorous_norms_against_rationals", "test_width_of_larger_matrices")),
    # -- certificates of norms
    ("any matrix accepted", _EVIDENCE, "if digest(W) == self.subject:", "if True:", _v("test_another_matrix_is_refused")),
    ("upper values unchecked", _EVIDENCE, "claimed >= verified.easy_upper(s.matrix) or verified.proves_upper(s.matrix, claimed)",
     "True", _FORGED),
    ("lower values unchecked", _EVIDENCE, "return claimed <= verified.spectral_lower(s.matrix, v, times=1.0)", "return True",
     _FORGED),
    ("sums unchecked above", _EVIDENCE, "return self.value >= _sums(W, self.norm)[1]", "return True", _FORGED),
    ("sums unchecked below", _EVIDENCE, "return self.value <= _sums(W, self.norm)[0]", "return True", _FORGED),
    ("NaN claimed", _EVIDENCE, "self.norm not in _NAMES or math.isnan(self.value) or self.value < 0.0",
     "self.norm not in _NAMES", _FORGED),
    ("infinite lower bound claimed", _EVIDENCE, "        if self.value == math.inf:\n            return False\n", "", _FORGED),
    ("scaling loss forgotten in verify", _EVIDENCE, "- Fraction(s.lost)", "- 0",
     _v("test_entries_that_scaling_loses_are_counted")),
    # -- products
    ("difference of rows not rounded", _PRODUCT, "np.where(row == 0.0, 0.0, np.nextafter(row * U, math.inf))",
     "np.zeros_like(row)", _s("test_a_difference_of_rows_is_rounded")),
    ("folding forgotten in norms", _PRODUCT, "        if error is None:\n            return bound\n", "        return bound\n",
     _s("test_bounds_of_folded_networks_hold_for_the_exact_layers", "test_folding_enters_the_bounds")),
    ("norms of a product unchecked", _PRODUCT, "if not proves_norm(W, norm, value, off):", "if False:", _VALUES),
    ("folding forgotten in verify", _PRODUCT, "rest = value if off == 0.0 else down(value - off)", "rest = value",
     _s("test_folding_enters_the_bounds")),
    ("product above its value", _PRODUCT, "        if not proved <= self.value:\n", "        if False:\n", _VALUES),
    ("product of another network", _PRODUCT, "if network.digest != self.subject:", "if False:",
     _s("test_another_network_is_refused")),
    # -- LipSDP certificates
    ("another network", _SDP, "if network.digest != self.subject:", "if False:", _s("test_another_network_is_refused")),
    ("proofs that are missing", _SDP, "if [p.outputs for p in self.proofs] != whole:", "if False:",
     (*_ALTERED, *_s("test_all_outputs_in_inf_need_all_proofs"))),
    ("value below its proofs", _SDP, "if not p.value <= self.value:", "if False:",
     (*_VALUES, *_s("test_all_outputs_in_inf_need_all_proofs"))),
    ("M not checked", _SDP, "if not proves(problem, p.t, p.d, p.s):", "if False:", _ALTERED),
    ("value not computed", _SDP, "proved = value_of(problem, p.d, p.s, self.norm)", "proved = p.value", _ALTERED),
    ("sizes not checked", _SDP, "if not fits or len(p.exponents) != len(sizes) + 1 or any(abs(e) > 2200 for e in p.exponents):",
     "if False:", _ALTERED),
    ("metric not summed", _SDP, "gain = up(math.fsum(d)) if math.isinf(norm) else float(np.max(d))",
     "gain = float(np.max(d))", _s("test_the_closed_form_bounds_every_pattern_exactly")),
    ("smallest metric", _SDP, "else float(np.max(d))\n    root", "else float(np.min(d))\n    root",
     _s("test_a_metric_that_is_not_constant")),
    ("T instead of 2T", _SDP, "diagonal[1:-1] = [2.0 * v for v in diagonal[1:-1]]", "diagonal[1:-1] = [4.0 * v for v in diagonal[1:-1]]",
     _s("test_whatever_is_proved_is_true")),
    ("head left out", _SDP, "weights, errors = (*problem.encoder, problem.head), (*problem.errors, problem.head_error)",
     "weights, errors = (*problem.encoder, 0.5 * problem.head), (*problem.errors, problem.head_error)",
     _s("test_the_closed_form_bounds_every_pattern_exactly", "test_whatever_is_proved_is_true")),
    ("difference of rows exact", _SDP, "up(up(U * quick_norm(difference)[1]) + up(2.0 * errors[-1]))", "0.0",
     _s("test_every_error_enters_the_sdp")),
    ("rounding of T W forgotten", _SDP, "rounding = up(U * quick_norm(block)[1]) if i < len(t) else 0.0", "rounding = 0.0",
     _s("test_every_error_enters_the_sdp")),
    ("folding forgotten in M", _SDP, "lost = up(up(float(np.max(left)) * float(np.max(units[i]))) * e) if e else 0.0", "lost = 0.0",
     _s("test_every_error_enters_the_sdp", "test_folding_enters_the_bounds")),
    ("exponents forgotten", _SDP, "exponent = sum(problem.exponents)", "exponent = 0", _s("test_extreme_scales")),
    # -- folding
    ("folded products exact", _NETWORK, "inner = np.ldexp(size, -_exponent(b)) * _gamma(n + 4) + ", "inner = ",
     _s("test_products_of_layers_are_rounded")),
    ("folding errors unscaled", _NETWORK, "(scaled * (1 + 2.0**-20) + 8 * n * TINY, _exponent(a) + _exponent(b))",
     "(scaled * (1 + 2.0**-20), _exponent(a) + _exponent(b) - 2000)", _FOLDED),
    ("folding scaled twice", _NETWORK, "np.ldexp(product, _exponent(a) + _exponent(b)), 2.0**-1000)", "product * a * b, 2.0**-1000)",
     ("tests/test_review_rigour.py::test_folding_through_subnormal_numbers",)),
    ("a norm below its error", _PRODUCT, "return rest >= 0.0 and NormCertificate(digest(W), norm, Sense.UPPER, rest)", "return NormCertificate(digest(W), norm, Sense.UPPER, max(rest, 0.0))",
     ("tests/test_review_rigour.py::test_a_layer_stored_as_zero_is_not_proved_to_be_zero",)),
    ("subnormal boundary", "certbound/norms/dense.py", "if product <= sys.float_info.min", "if product < sys.float_info.min",
     ("tests/test_review_rigour.py::test_lower_bounds_at_the_smallest_normal_number",)),
    ("flushed weights read", "certbound/arrays.py", "if bool(np.any((exponents == 0) & ", "if False and bool(np.any((exponents == 0) & ",
     ("tests/test_review_rigour.py::test_subnormal_weights_are_not_read_as_zeros",)),
    ("radius rounded", _NETWORK, "{self.radius!r}", "{self.radius:g}",
     ("tests/test_review_rigour.py::test_domains_that_print_alike_are_told_apart",)),
    ("earlier folding forgotten", _NETWORK, "np.zeros_like(self.weight) if self.error is None else self.error", "np.zeros_like(self.weight)",
     _s("test_errors_of_earlier_layers_are_carried_on")),
    ("earlier biases forgotten", _NETWORK, "spread = np.zeros(n) if self.bias_error is None else self.bias_error", "spread = np.zeros(n)",
     _s("test_errors_of_earlier_layers_are_carried_on")),
    ("division without what came before", _NETWORK, "self.error / std[:, None]\n", "0.0\n",
     _s("test_errors_of_earlier_layers_are_carried_on")),
    ("normalisation exact", _NETWORK, "_above(np.abs(weight) * _gamma(4) + spread, 1)", "_above(spread + 0.0 * weight, 1)",
     _FOLDED),
    ("folded biases exact", _NETWORK, "(np.abs(self.bias) + np.abs(mean)) / std * _gamma(6) + moved", "0.0 * std + moved",
     _s("test_biases_of_folded_layers")),
    ("biases through weights exact", _NETWORK, "(carried + _gamma(4) * own) * (1 + 2.0**-20) + 8 * n * TINY",
     "0.0 * (carried + own)", (*_s("test_biases_of_folded_layers"),
     "tests/test_review_rigour.py::test_errors_of_tiny_biases_are_amplified")),
)  # fmt: skip
