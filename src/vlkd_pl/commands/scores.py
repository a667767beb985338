"""``vlkd-pl scores``: the scores of finished tests side by side."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from vlkd_pl.commands.score import as_value_error
from vlkd_pl.evaluation.table import Unit, score_table
from vlkd_pl.text_files import Entries, read_json

_UNITS: tuple[Unit, ...] = ("fraction", "percent")
_IN_PERCENT = ("accuracy/", "accuracy_shuffled_image/", "rouge-")  # prefixes of their names


class Record(NamedTuple):
    """The content of a ``scores.json``.

    Attributes:
        scores: The scores by their names.
        units: The unit of each score.
        panel: The file of the caption panel; None without one.
    """

    scores: dict[str, float]
    units: dict[str, Unit]
    panel: str | None


def main(arguments: Sequence[str]) -> int:
    """Print a table with one column for each run folder.

    Returns:
        0, or 1 after a line on stderr where a ``scores.json`` is missing or invalid.
    """
    parser = argparse.ArgumentParser(
        prog="vlkd-pl scores", description="Print the scores of finished tests side by side."
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="log folder of a vlkd-pl test")
    options = parser.parse_args(arguments[1:])
    missing = [str(run) for run in options.runs if not (run / "scores.json").is_file()]
    if missing:
        print(
            f"vlkd-pl scores: no scores.json in {', '.join(missing)}: give the log folder of a vlkd-pl test",
            file=sys.stderr,
        )
        return 1
    try:
        records = as_value_error(lambda: [read_record(run / "scores.json") for run in options.runs])
    except ValueError as error:
        print(f"vlkd-pl scores: {error}", file=sys.stderr)
        return 1
    units = {name: unit for record in records for name, unit in record.units.items()}
    print(score_table([str(run) for run in options.runs], [record.scores for record in records], units, digits=2))
    for run, record in zip(options.runs, records, strict=True):
        if record.panel is not None:
            print(f"caption panel of {run}: {record.panel}")
    return 0


def read_record(path: Path) -> Record:
    """Read a ``scores.json``.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: The file does not exist.
        MisconfigurationException: It cannot be read, or has another format.
        ValueError: The unit of a score is unknown.
    """
    file_format = "a file of scores that vlkd-pl test writes"
    complaint = f"{path} is not {file_format}"
    entry = Entries([read_json(path, file_format)], complaint, is_numbered=False)
    (scores,) = entry.values("scores", {dict}, "an object")
    (units,) = entry.values("units", {dict}, "an object", {})
    (panel,) = entry.texts("caption_panel", None)
    for name in scores:
        Entries([scores], f"{complaint}: scores", is_numbered=False).values(name, {int, float}, "a number")
        if name not in units:  # files of 0.4.0 have no units
            units[name] = "percent" if name.startswith(_IN_PERCENT) else "fraction"
        if units[name] not in _UNITS:
            raise ValueError(f"{complaint}: the unit of {name} must be one of {', '.join(_UNITS)}")
    return Record(scores, units, panel)
