"""Plain tables, columns as wide as what stands in them."""

from collections.abc import Sequence

Cell = str | float | int | None


def table(headings: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """Return rows under headings; the first column is flush left, the others right."""
    lines = [list(headings), *([_text(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _text(cell: Cell) -> str:
    match cell:
        case None:
            return "-"
        case float():
            # Three digits that count, as far as whole numbers allow.
            digits = 3 if cell < 1 else 2 if cell < 10 else 1 if cell < 100 else 0
            return f"{cell:,.{digits}f}"
        case int():
            return f"{cell:,}"
    return cell
