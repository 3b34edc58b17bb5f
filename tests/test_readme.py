"""The README's example is run, and its output is the one shown."""

import contextlib
import io
import re
from pathlib import Path

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
