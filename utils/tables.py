"""Rows as text and as Markdown, and the place of a table in a document."""

from collections.abc import Sequence
from pathlib import Path

from utils.files import atomic_write


def format_table(rows: Sequence[Sequence[object]], headers: Sequence[str]) -> str:
    """Lay out rows as text in columns; floats get two decimals, numbers stand to the right.

    Args:
        rows: one sequence per row, as long as `headers`.
        headers: one per column.

    Returns:
        The table, one line per row under the headers and a rule, without a final newline.
    """
    cells = [[f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(headers, *cells, strict=True)]
    numeric = [all(isinstance(cell, (int, float)) for cell in column) for column in zip(*rows, strict=True)]
    numeric = numeric or [False] * len(headers)

    def line(texts: Sequence[str]) -> str:
        aligned = (
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(texts, widths, numeric, strict=True)
        )
        return "  ".join(aligned).rstrip()

    return "\n".join([line(headers), "  ".join("-" * width for width in widths), *map(line, cells)])


def markdown_table(rows: Sequence[Sequence[str]], headers: Sequence[str]) -> str:
    """Lay out rows as a Markdown table."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (headers, ["---"] * len(headers), *rows))


def read_text(document: Path, heading: str) -> tuple[str, str]:
    """Return what a document says before and after a section of the second level.

    Raises:
        ValueError: if the document has no such heading.
    """
    line = f"## {heading}\n"
    before, found, after = document.read_text(encoding="utf-8").partition(line)
    if not found:
        raise ValueError(f"{document} has no line '{line.strip()}', under which the figures go; add it")
    _, next_heading, rest = after.partition("\n## ")
    return before, f"{next_heading}{rest}"


def replace_section(document: Path, heading: str, text: str) -> None:
    """Put a text, without final newline, in the place of a section's; the document is whole at any time."""
    before, after = read_text(document, heading)
    with atomic_write(document) as file:
        file.write(f"{before}## {heading}\n\n{text}\n{after}".encode())
