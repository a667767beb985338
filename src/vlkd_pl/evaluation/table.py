"""Scores as a table for a person to read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

Unit = Literal["fraction", "percent"]
"""What a score is stored in: as a fraction of 1, or in percent."""


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


def score_table(
    names: Sequence[str],
    columns: Sequence[Mapping[str, float]],
    units: Unit | Mapping[str, Unit] = "fraction",
    digits: int = 1,
) -> str:
    """Lays out scores as papers print them: in percent, and CIDEr times 100. The first line says so.

    Args:
        names: The heads of the columns.
        columns: For each column its scores by the names of the rows; one that it lacks is left blank.
        units: What the scores are stored in, all or each by its name.
        digits: Digits after the point.

    Returns:
        The lines, without one at the end.
    """
    stored = units_of([row for column in columns for row in column], units)
    scaled = [
        {row: value if stored[row] == "percent" else 100 * value for row, value in column.items()} for column in columns
    ]
    has_cider = any(row.split("/")[-1].lower().startswith("cider") for row in stored)
    kinds = set(stored.values())
    in_json = (
        "hold fractions" if kinds == {"fraction"} else "hold the same" if kinds == {"percent"} else "name the units"
    )
    heading = f"in percent{', CIDEr times 100' if has_cider else ''} (JSON files {in_json})"
    return f"{heading}\n{format_table(names, scaled, digits)}"


def units_of(scores: Iterable[str], units: Unit | Mapping[str, Unit]) -> dict[str, Unit]:
    """The unit of each score, where all may have the same.

    Args:
        scores: The names of the scores.
        units: The unit of all, or of each by its name.
    """
    return {name: units if isinstance(units, str) else units[name] for name in scores}
