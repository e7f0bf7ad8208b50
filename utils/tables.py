"""Rows as text and as Markdown."""

from collections.abc import Sequence


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
