"""The README's example is run, and its output is the one shown."""

import contextlib
import io
import json
import math
import re
from pathlib import Path

from certbound.text import at_most
from experiments import results
from experiments.rules import At, Change, Correlation, MatchedChange

README = Path(__file__).parents[1] / "README.md"


def test_example_prints_what_the_readme_shows():
    text = README.read_text(encoding="utf-8")
    pattern = r"<!-- example -->\n```python\n(.*?)```\n+<!-- example-output -->\n```text\n(.*?)```"
    match = re.search(pattern, text, re.DOTALL)
    assert match, "README.md has no example between the markers"
    code, shown = match.groups()
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, "README.md", "exec"), {})
    assert out.getvalue().strip() == shown.strip()


def test_picture_and_commands_are_there():
    text = README.read_text(encoding="utf-8")
    for picture in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text):
        assert (README.parent / picture).is_file(), picture
    assert "make demo" in text
    assert "make test" in text


def test_what_the_readme_says_of_the_studies_comes_from_their_rows():
    """The verdicts by name, and the numbers of its sentences."""
    text = README.read_text(encoding="utf-8").split("## The paper's experiments, re-run", 1)[1].split("\n## ", 1)[0]
    page = (README.parent / "experiments" / "RESULTS.md").read_text(encoding="utf-8")
    cells = next(line for line in text.splitlines() if line.startswith("| nuclear norm at")).strip("|").split("|")
    for cell, word in zip(cells, ("supported", "not supported", "inconclusive"), strict=True):
        named = set(re.findall(r"\((e\d\d)\)", cell))
        assert named == set(re.findall(rf"^\| \[(e\d\d)\].*\| \*\*{word}\*\* \|", page, re.MULTILINE)), word
    rows = results.packed(README.parent / "experiments")

    def words(found, sign=1):
        low, high = sorted((sign * found.low, sign * found.high))
        return f"{sign * found.value:.2f} [{low:.2f}, {high:.2f}]"

    free, fixed = "nuclear norm", "nuclear norm, ‖W‖_F fixed"
    for arm, sign in ((free, 1), (fixed, -1)):
        assert words(Change("ra_inf", At(arm, 0.03), At(arm, "first")).estimate(rows["e01"]), sign) in text
    for gap in ("attack_2", "gap_normalised_2"):
        found = Correlation("bound_2/printed", gap, ("low rank",)).estimate(rows["e07"])
        assert f"{found.value:.2f} with" in text
    folded = Change("folded_compressibility_rows", At("row sparsity", "last"), At("row sparsity", "first"))
    assert words(folded.estimate(rows["e05"])) in text
    matched = MatchedChange("ra_inf", "sa", At("row sparsity", "last"), "dense, fewer epochs")
    assert words(matched.estimate(rows["e05"]), -1) in text
    assert f"{len({row.key for study in rows.values() for row in study})} models" in text


def test_what_the_readme_says_of_a_trained_resnet_comes_from_the_stored_numbers():
    text = README.read_text(encoding="utf-8").split("## Real architectures", 1)[1].split("\n## ", 1)[0]
    stored = json.loads((README.parent / "docs" / "layers" / "cifar.json").read_text(encoding="utf-8"))
    factors = [row["factor_2"] for row in stored["rows"] if row["shape"][-2:] == [3, 3]]
    assert f"{min(factors):.1f} to {max(factors):.1f} times" in text
    assert f"at most\n  {math.ceil(1000 * stored['gap_max']) / 10} % above" in text
    worst = max(row["tight gap %"] for row in stored["tight"])
    assert f"within {math.ceil(10 * worst) / 10} % on every layer" in text
    assert f"{sum(row['fast s'] for row in stored['tight']):.1f} s for its {stored['conv']} convolutions" in text
    assert at_most(stored["network"]["2"]["bound"], 2)[3:] + " in ℓ2" in text
