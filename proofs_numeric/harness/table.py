"""Results as tables: through rich where it is installed, else plain text."""

from __future__ import annotations

from collections.abc import Sequence

from proofs_numeric.harness.runner import LemmaResult, SelfTestResult


def closest(ratio: float) -> str:
    """computed/claimed; what is not equal must not look equal."""
    if ratio == 1.0:
        return "1 (equal)"
    if 1.0 - ratio < 1e-6:
        return f"1 - {1.0 - ratio:.1e}"
    return f"{ratio:.6f}"


def lemma_rows(results: Sequence[LemmaResult]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the main table."""
    header = ["lemma", "checked how", "examples", "restarts", "closest approach", "time", "result"]
    rows = [
        [
            r.name,
            ", ".join(r.checked),
            str(r.examples),
            str(r.restarts),
            closest(r.closest),
            f"{r.seconds:.1f} s",
            "holds" if r.passed else "FAILED",
        ]
        for r in results
    ]
    return header, rows


def self_test_rows(results: Sequence[SelfTestResult]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the self-test: the margin by which each part found the violation."""

    def margin(result: SelfTestResult, part: str) -> str:
        if part not in result.found:
            return "-"
        value = result.found[part]
        return "NOT FOUND" if value is None else f"{value:.1e}"

    header = ["lemma", "broken statement", "exact", "ascent", "SMT", "time", "result"]
    rows = [
        [
            r.name,
            r.variant,
            *(margin(r, part) for part in ("exact", "ascent", "smt")),
            f"{r.seconds:.1f} s",
            "found" if r.passed else "MISSED",
        ]
        for r in results
    ]
    return header, rows


def render(header: Sequence[str], rows: Sequence[Sequence[str]], title: str) -> str:
    """A table as text."""
    try:
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table
    except ImportError:
        widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
        aligned = [[cell.ljust(w) for cell, w in zip(row, widths, strict=True)] for row in (header, *rows)]
        return "\n".join([title, *("  ".join(row).rstrip() for row in aligned)])
    table = Table(*header, title=title, title_justify="left")
    for row in rows:
        table.add_row(*map(escape, row))
    console = Console(width=150, color_system=None, highlight=False)
    with console.capture() as capture:
        console.print(table)
    return capture.get().rstrip()
