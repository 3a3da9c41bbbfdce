"""Tables of a report: Markdown for people, CSV for programs."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from shared.errors import UserError
from shared.files import write_text

__all__ = ["Cell", "duration", "markdown", "number", "read_csv", "write_csv"]

Cell = str | int | float | None
ABSENT = "-"


def number(value: float, form: str = ".4g") -> str:
    """A number as text in a format of Python's mini-language (default: four significant digits); -0 becomes 0."""
    text = format(value, form)
    return text.removeprefix("-") if text.startswith("-") and not text.strip("-0.") else text


def duration(seconds: float) -> str:
    """Seconds as a reader says them: `48 s`, `12 min 30 s`, `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def markdown(
    header: Sequence[str], rows: Sequence[Sequence[Cell]], forms: Sequence[str] | None = None, align: str = ""
) -> str:
    """Write a Markdown table without a line end after it.

    Args:
        header: one text a column.
        rows: cells; None is shown as a dash, numbers by `number` with the format of their column.
        forms: one format a column (those of columns of text are not used); default `.4g` everywhere, whole numbers as
            they are.
        align: one letter a column, l or r; default: r for the columns that hold only numbers.

    Raises:
        ValueError: a row, or `align`, is not as long as the header.
    """
    if align and len(align) != len(header):
        raise ValueError(f"align={align!r} for {len(header)} columns")
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"a row has {len(row)} cells under {len(header)} headings: {row}")
    texts = [[_shown(cell, forms[i] if forms else None) for i, cell in enumerate(row)] for row in rows]
    right = [align[i] == "r" if align else _numeric([row[i] for row in rows]) for i in range(len(header))]
    lines = [[_escaped(heading) for heading in header], ["---:" if each else "---" for each in right], *texts]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
    """Write a CSV file with a heading line; floats in full precision, None as an empty cell.

    Raises:
        UserError: the file cannot be written.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, buffer.getvalue())


def read_csv(path: Path) -> tuple[list[str], list[list[Cell]]]:
    """Read a CSV file of `write_csv`: heading and rows, numbers as numbers, empty cells as None.

    Raises:
        UserError: the file is missing or empty, or a row is shorter or longer than the heading.
    """
    try:
        lines = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"))))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    if not lines:
        raise UserError(f"{path} is empty: a table needs a heading line")
    for i, line in enumerate(lines[1:], 2):
        if len(line) != len(lines[0]):
            raise UserError(f"{path}: line {i} has {len(line)} cells under {len(lines[0])} headings")
    return lines[0], [[_parsed(cell) for cell in line] for line in lines[1:]]


def _parsed(cell: str) -> Cell:
    if cell == "":
        return None
    for kind in (int, float):
        try:
            return kind(cell)
        except ValueError:
            continue
    return cell


def _numeric(column: Sequence[Cell]) -> bool:
    cells = [cell for cell in column if cell is not None]
    return bool(cells) and all(isinstance(cell, int | float) for cell in cells)


def _shown(cell: Cell, form: str | None) -> str:
    if cell is None:
        return ABSENT
    if isinstance(cell, str):
        return _escaped(cell)
    if isinstance(cell, int) and not form:
        return str(cell)
    return number(cell, form or ".4g")


def _escaped(text: str) -> str:
    """One line, with the bars that would end a cell made harmless (but not those already escaped)."""
    return " ".join(text.split()).replace("\\|", "|").replace("|", "\\|")
