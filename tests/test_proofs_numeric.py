"""The runner of proofs_numeric: it passes, it fails where it must, and no lemma, part or broken statement is forgotten.

The lemmas themselves are checked by ``python -m proofs_numeric``; here a few examples of each.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
from flint import fmpq

import proofs_numeric
from proofs_numeric.__main__ import main
from proofs_numeric.harness import runner
from proofs_numeric.harness.ascent import disagreement
from proofs_numeric.harness.exact import (
    Real,
    UndecidedError,
    cayley,
    identity,
    is_psd,
    matrix,
    rational,
    real,
    softplus,
    spectral_norm,
    sqrt,
)
from proofs_numeric.harness.lemma import Counterexample, Query, Witness, compare
from proofs_numeric.harness.runner import TINY, check_lemma, lemma_names, load, self_test_variant

# theory.md, section 7, and the files the issue names
LEMMAS = {
    "core_identity",
    "theorem31_spectral",
    "theorem31_neuron_printed",
    "theorem31_neuron_derived",
    "two_sided",
    "sharp_forms",
    "trap",
    "alignment",
    "block_cover",
    "decoupled",
    "corollary33",
    "sdp_implication",
    "svd_norm",
    "verified_cholesky",
    # real architectures
    "convolution_torus",
    "layer_norm",
    "max_pool",
    "softmax",
}
# the broken statements that the issue lists: (lemma, variant)
BROKEN = {
    ("core_identity", "beta dropped"),
    ("theorem31_spectral", "beta dropped"),
    ("theorem31_spectral", "epsilon too large"),
    ("trap", "epsilon too large"),
    ("theorem31_spectral", "r^(1/4) for sqrt(r)"),
    ("corollary33", "dual norm missing"),
    ("theorem31_neuron_derived", "row term halved"),
    ("theorem31_neuron_printed", "row term halved"),
    ("sharp_forms", "(r-k)/2 for r-k"),
    ("alignment", "R dropped"),
    ("sdp_implication", "T with one X_i not positive"),
    ("verified_cholesky", "Cholesky shift zero"),
    ("convolution_torus", "torus of the image alone"),
    ("max_pool", "overlap ignored"),
}


def lemma(name="core_identity", **changes):
    return replace(load(name), **changes)


def failures(changed, budget=TINY):
    return check_lemma(changed, budget).failures


def test_every_file_is_a_registered_lemma():
    files = {p.stem for p in Path(proofs_numeric.__path__[0]).glob("*.py")} - {"__init__", "__main__"}
    assert files == set(lemma_names()) == LEMMAS
    for name in LEMMAS:
        found = load(name)
        assert found.name == name and found.statement and found.source and found.broken
        assert found.queries or found.no_smt
        assert found.witnesses


def test_a_file_whose_lemma_has_another_name_is_refused(monkeypatch):
    monkeypatch.setattr("proofs_numeric.trap.LEMMA", load("core_identity"))
    with pytest.raises(ValueError, match="core_identity"):
        load("trap")


def test_every_broken_statement_of_the_issue_is_in_the_self_test():
    assert set(runner.variants()) >= BROKEN
    for name, variant in runner.variants():
        parts = load(name).broken[variant].parts
        assert {"exact", "ascent"} <= set(parts), "both falsifiers must be able to win"
    for name in LEMMAS - {"verified_cholesky"}:
        # an SMT query that cannot answer sat is vacuous
        assert any("smt" in v.parts for v in load(name).broken.values())


def test_tiny_run_passes_and_writes_what_it_did(tmp_path, capsys):
    file = tmp_path / "results.json"
    assert main(["--tiny", "--jobs", "1", "--seed", "7", "--json", str(file)]) == 0
    out = capsys.readouterr().out
    assert "passed in" in out and all(name in out for name in LEMMAS)
    data = json.loads(file.read_text())
    assert data["passed"] and data["seed"] == 7 and not data["self_test"] and data["seconds"] > 0
    assert {"python-flint", "torch", "z3-solver", "numpy"} <= {k for k, v in data["versions"].items() if v != "absent"}
    assert {r["name"] for r in data["results"]} == LEMMAS
    for r in data["results"]:
        assert r["passed"] and not r["failures"] and r["seed"] == 7
        assert r["examples"] > 0 and r["comparisons"] > 0 and r["restarts"] > 0 and r["witnesses"]
        assert {"exact", "ascent", "witness"} <= set(r["checked"])
        assert 0.99 < r["closest"] <= 1.0
        assert all(line.endswith(": unsat") for line in r["smt"])
        assert r["smt"] or r["name"] == "verified_cholesky"
    refuted = {line.split(":")[0] for r in data["results"] for line in r["counterexamples"]}
    readings = ("membership", "h = m ", "h = n ", "h = min", "β_mean in the kth", "max(1", "network version", "thin V")
    for word in (*readings, "induced 1-norm", "local search"):
        assert any(word in line for line in refuted), word


def test_exit_status_of_a_broken_lemma(monkeypatch, capsys):
    true = load("core_identity")
    false = replace(true, evaluate=lambda x, broken: true.evaluate(x, "beta dropped"))
    monkeypatch.setattr(runner, "load", lambda name: false)
    assert main(["--tiny", "--jobs", "1", "--only", "core_identity"]) == 1
    out = capsys.readouterr().out
    assert "FAILED" in out and "core_identity: exact: mean, <=" in out


def test_exit_status_of_a_self_test_that_misses(monkeypatch, capsys):
    assert main(["--self-test", "--jobs", "1", "--only", "core_identity"]) == 0
    assert "beta dropped" in capsys.readouterr().out
    true = load("core_identity")
    blind = replace(true, evaluate=lambda x, broken: true.evaluate(x, None), queries=lambda broken: true.queries(None))
    monkeypatch.setattr(runner, "load", lambda name: blind)
    assert main(["--self-test", "--jobs", "1", "--tiny", "--only", "core_identity"]) == 1
    assert capsys.readouterr().out.count("NOT FOUND") == 3


def test_each_part_can_fail():
    core = load("core_identity")
    assert any(f.startswith("exact: no comparison") for f in failures(lemma(evaluate=lambda x, b: [])))
    assert any(f.startswith("ascent: nothing") for f in failures(lemma(searches=lambda broken, size: [])))
    wrong = lemma(searches=lambda broken, size: core.searches("beta dropped", size))
    assert any("exact arithmetic" in f for f in failures(wrong)), "a search of another formula"
    loose = Witness("loose", core.witnesses[0].instance, "no such comparison")
    assert any(f.startswith("witness: loose") for f in failures(lemma(witnesses=(loose,))))
    true_one = Counterexample("true", lambda: compare("1 <= 2", 1, 2))
    assert any("true is not violated" in f for f in failures(lemma(counterexamples=(true_one,))))
    false_query = lemma(queries=lambda broken: core.queries("beta dropped"))
    assert any(f.endswith("sat, needed unsat") for f in failures(false_query))
    assert any(f.startswith("smt: no query") for f in failures(lemma(queries=None)))

    def contradiction():
        import z3

        x = z3.Real("x")
        return [x > 0, x < 0], x, x

    empty = lemma(queries=lambda broken: [Query("contradiction", contradiction)])
    assert any("vacuous" in f for f in failures(empty))


def test_what_the_floats_find_is_decided_exactly():
    # a claim smaller by 1e-12: no random example sees it, the ascent proposes it, exact arithmetic confirms it
    true = load("theorem31_spectral")

    def slightly_less(x, broken):
        p = runner.load("theorem31_spectral")
        return [
            compare(c.label, rational(c.computed), rational(c.claimed * (1 - 1e-12))) for c in p.evaluate(x, broken)[:1]
        ]

    found = failures(replace(true, evaluate=slightly_less, draw=_two_by_two), replace(TINY, restarts=64, steps=200))
    assert any(f.startswith("ascent: mean") for f in found) and not any(f.startswith("exact:") for f in found)


def _two_by_two(rng, size):
    from proofs_numeric.theorem31_spectral import Instance

    return Instance((2, 2), [fmpq(2), fmpq(1)], [fmpq(0)], [fmpq(0)], 1, fmpq(0), fmpq(0))


def test_seeds_reproduce():
    def run(seed):
        r = check_lemma(load("theorem31_spectral"), replace(TINY, seed=seed))
        return replace(r, seconds=0.0)

    assert run(3) == run(3)
    draws = [load("theorem31_spectral").draw(__import__("random").Random(s), 0) for s in (3, 3, 4)]
    assert draws[0] == draws[1] != draws[2]
    test = self_test_variant(load("trap"), "epsilon too large", TINY)
    assert test.found == self_test_variant(load("trap"), "epsilon too large", TINY).found and test.passed


def test_searches_are_of_the_same_statement():
    for name in LEMMAS:
        for size in (0, 1):
            for search in load(name).searches(None, size):
                assert search.labels or name == "verified_cholesky"  # there the search climbs a surrogate
                assert not search.labels or disagreement(load(name), search, 11) is None


# -- the exact numbers ----------------------------------------------------------------------------------------------


def test_sums_of_roots():
    assert (sqrt(2) + sqrt(8) - sqrt(18)).sign() == 0
    assert (sqrt(2) + sqrt(3) - sqrt(5) - fmpq(91, 100)).sign() == 1  # 0.910196…
    assert (sqrt(2) * sqrt(3) - sqrt(6)).sign() == 0 and (sqrt(6) / sqrt(2) - sqrt(3)).sign() == 0
    tiny = fmpq(1, 10**200)
    assert (sqrt(2) - sqrt(2 + tiny)).sign() == -1 and (sqrt(2) - sqrt(2)).sign() == 0
    assert float(softplus(0)) == pytest.approx(math.log(2)) and (softplus(0) * 0).sign() == 0
    with pytest.raises(UndecidedError):
        (softplus(0) - softplus(0)).sign()
    with pytest.raises(ZeroDivisionError):
        real(1) / real(0)
    assert rational(0.1) == fmpq(*Fraction(0.1).as_integer_ratio())


def test_spectral_norms_and_semidefiniteness():
    golden = spectral_norm(matrix([[1, 1], [1, 0]]))
    assert float(golden) == pytest.approx((1 + 5**0.5) / 2) and isinstance(golden, Real)
    assert (spectral_norm(matrix([[3, 0], [0, -4]])) - 4).sign() == 0
    Q = cayley([fmpq(1), fmpq(1, 2), fmpq(3)], 3)
    assert Q.transpose() * Q == identity(3)
    for rows, psd in (
        ([[1, 1], [1, 1]], True),
        ([[0, 1], [1, 5]], False),
        ([[0, 0], [0, 1]], True),
        ([[1, 2], [2, 1]], False),
        ([[2, -1], [-1, 2]], True),
        ([[-1]], False),
    ):
        assert is_psd(matrix(rows)) is psd


def test_ties_are_not_called_smaller():
    assert compare("equal", sqrt(8), sqrt(2) * 2).sign == 0
    over = compare("over", sqrt(2) + fmpq(1, 10**60), sqrt(2))
    assert over.sign == 1 and over.ratio > 1 and not over.holds
    under = compare("under", sqrt(2), sqrt(2) + fmpq(1, 10**60))
    assert under.ratio < 1 and under.holds
    assert not compare("enclosures", spectral_norm(matrix([[1, 1], [1, 0]])) * fmpq(10**50 + 1, 10**50), golden()).holds
    assert compare("the same enclosure", golden(), golden()).holds


def golden():
    return spectral_norm(matrix([[1, 1], [1, 0]]))


@pytest.mark.parametrize(
    "arguments", [["--only", "nonsense"], ["--deep", "0"], ["--deep", "1", "--tiny"], ["--deep", "1", "--self-test"]]
)
def test_bad_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as info:
        main(arguments)
    assert info.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_list(capsys):
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in LEMMAS) and all(variant in out for _, variant in BROKEN)


def test_deep_adds_rounds_with_new_seeds(monkeypatch):
    rounds = []

    def check(names, budget, jobs):
        rounds.append(budget)
        return [replace(one, examples=10, closest=0.5 + 0.1 * len(rounds))]

    one = check_lemma(load("core_identity"), TINY)
    monkeypatch.setattr("proofs_numeric.__main__.check_all", check)
    clock = iter([0.0, 1.0, 2.0, 10_000.0])
    monkeypatch.setattr("proofs_numeric.__main__.time.monotonic", lambda: next(clock))
    from proofs_numeric.__main__ import _run

    (merged,) = _run(["core_identity"], TINY, 1, 1.0)
    assert [b.round_ for b in rounds] == [0, 1, 2] and rounds[1].size > 0 and rounds[1].examples > TINY.examples
    assert merged.examples == 30 and merged.closest == pytest.approx(0.8)
