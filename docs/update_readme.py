"""Put the demo's table and pictures, the example's output and the certificate's script into README.md.

``make readme`` after ``make demo``; the tables of benchmarks/rigour.py and benchmarks/lipschitz are taken from
results/rigour.txt and results/lipschitz if they are there.
"""

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


def shortened(table: str) -> str:
    """Of the benchmark's table the two largest networks, the traps and the counts; without the remarks."""
    lines = table.split("\nRemarks:")[0].rstrip().splitlines()
    nets = list(dict.fromkeys(line.split()[0] for line in lines[1 : lines.index("")]))[-2:]
    rows = [line for line in lines[1 : lines.index("")] if line.split()[0] in nets and "not applicable" not in line]
    return "\n".join([lines[0], *rows, *lines[lines.index("") :]])


def main() -> None:
    """Rewrite README.md from results/demo."""
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    demo = RESULTS / "summary.txt"
    if demo.exists():
        text = between(text, "demo-table", f"```text\n{demo.read_text(encoding='utf-8').rstrip()}\n```")
    text = between(text, "example-output", f"```text\n{example_output(text)}\n```")
    script = (ROOT / "docs" / "certificate" / "check.py").read_text(encoding="utf-8").rstrip()
    text = between(text, "certificate-script", f"```python\n{script}\n```")
    rigour = ROOT / "results" / "rigour.txt"
    if rigour.exists():
        text = between(text, "rigour-table", f"```text\n{rigour.read_text(encoding='utf-8').rstrip()}\n```")
    lipschitz = ROOT / "results" / "lipschitz"
    if (lipschitz / "table.txt").exists():
        table = (lipschitz / "table.txt").read_text(encoding="utf-8")
        (ROOT / "docs" / "lipschitz_benchmark.txt").write_text(table, encoding="utf-8")
        text = between(text, "lipschitz-table", f"```text\n{shortened(table)}\n```")
        shutil.copyfile(lipschitz / "tightness.png", ROOT / "docs" / "images" / "lipschitz.png")
    readme.write_text(text, encoding="utf-8")
    for name in ("bounds.png", "accuracy.png", "attribution.png"):
        if demo.exists():
            shutil.copyfile(RESULTS / name, ROOT / "docs" / "images" / name)


if __name__ == "__main__":
    main()
