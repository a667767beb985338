"""Scores as a table for a person to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def format_table(names: Sequence[str], columns: Sequence[Mapping[str, float]], digits: int = 3) -> str:
    """Lays out scores in one row each.

    Args:
        names: The heads of the columns.
        columns: For each column its scores by the names of the rows; one that it lacks is left blank.
        digits: Digits after the point.

    Returns:
        The lines, without one at the end.
    """
    rows = list(dict.fromkeys(row for column in columns for row in column))
    label_width = max(map(len, rows), default=0)
    widths = [max(len(name), 8) for name in names]
    lines = [[" " * label_width, *(f"{name:>{width}}" for name, width in zip(names, widths, strict=True))]]
    for row in rows:
        cells = [f"{column[row]:.{digits}f}" if row in column else "" for column in columns]
        lines.append(
            [f"{row:<{label_width}}", *(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))]
        )
    return "\n".join("  ".join(line) for line in lines)
