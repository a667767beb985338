"""Scores as a table of plain text.

Not by ``rich.table``, which cuts columns at 80 characters in pipes and reads brackets in names as markup.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

Unit = Literal["fraction", "percent"]
"""The unit that a score is stored in: a fraction of 1, or percent."""


def format_table(names: Sequence[str], columns: Sequence[Mapping[str, float]], digits: int = 3) -> str:
    """Format scores as a table with one row for each score.

    Args:
        names: The headings of the columns.
        columns: For each column its scores by the names of the rows; missing scores are left blank.
        digits: The number of digits after the decimal point.

    Returns:
        The lines, without a line break at the end.

    Example:
        >>> print(format_table(["base", "large"], [{"accuracy": 0.5}, {"accuracy": 0.75}]))
                      base     large
        accuracy     0.500     0.750
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
    """Format scores as papers print them: in percent, and CIDEr times 100. The first line states the units.

    Args:
        names: The headings of the columns.
        columns: For each column its scores by the names of the rows; missing scores are left blank.
        units: The unit that all scores are stored in, or that of each score by its name.
        digits: The number of digits after the decimal point.

    Returns:
        The lines, without a line break at the end.

    Example:
        >>> print(score_table(["test"], [{"BLEU-4": 0.25, "CIDEr": 1.2}]))
        in percent, CIDEr times 100 (JSON files hold fractions)
                    test
        BLEU-4      25.0
        CIDEr      120.0
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
    """Return the unit of each score by its name.

    Args:
        scores: The names of the scores.
        units: The unit of all scores, or that of each score by its name.
    """
    return {name: units if isinstance(units, str) else units[name] for name in scores}
