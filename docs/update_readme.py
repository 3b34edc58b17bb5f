"""Put the demo's table and pictures, and the example's output, into README.md: ``make readme`` after ``make demo``."""

import contextlib
import io
import re
import shutil
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results" / "demo"


def example_output(text: str) -> str:
    """What the ten-line example prints."""
    match = re.search(r"<!-- example -->\n```python\n(.*?)```", text, re.DOTALL)
    if match is None:
        raise SystemExit("README.md has no example")
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(match.group(1), "README.md", "exec"), {})
    return out.getvalue().strip()


def between(text: str, name: str, content: str) -> str:
    """Replace what stands between ``<!-- name -->`` and ``<!-- /name -->``."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(\n<!-- /{name} -->)", re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"README.md has no place for {name}")
    return pattern.sub(lambda m: m.group(1) + content + m.group(2), text)


def main() -> None:
    """Rewrite README.md from results/demo."""
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    summary = (RESULTS / "summary.txt").read_text(encoding="utf-8").rstrip()
    text = between(text, "demo-table", f"```text\n{summary}\n```")
    text = between(text, "example-output", f"```text\n{example_output(text)}\n```")
    readme.write_text(text, encoding="utf-8")
    for name in ("bounds.png", "accuracy.png", "attribution.png"):
        shutil.copyfile(RESULTS / name, ROOT / "docs" / "images" / name)


if __name__ == "__main__":
    main()
