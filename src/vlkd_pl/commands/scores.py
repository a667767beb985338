"""``vlkd-pl scores``: the scores of finished tests side by side."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str]) -> int:
    """Prints a table with one column for each run folder that holds a ``scores.json``."""
    parser = argparse.ArgumentParser(
        prog="vlkd-pl scores", description="Prints the scores of finished tests side by side."
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
    records = [json.loads((run / "scores.json").read_text()) for run in options.runs]
    print(table([str(run) for run in options.runs], [record["scores"] for record in records]))
    for run, record in zip(options.runs, records, strict=True):
        print(f"caption panel of {run}: {record['caption_panel']}")
    return 0


def table(names: Sequence[str], scores: Sequence[dict[str, float]]) -> str:
    """Lays out scores in one row each, one column for each run; a score that a run lacks is left blank."""
    rows = list(dict.fromkeys(row for column in scores for row in column))
    label_width = max(map(len, rows))
    widths = [max(len(name), 8) for name in names]
    lines = ["  ".join([" " * label_width, *(f"{name:>{width}}" for name, width in zip(names, widths, strict=True))])]
    for row in rows:
        cells = [f"{column[row]:.3f}" if row in column else "" for column in scores]
        lines.append(
            "  ".join(
                [f"{row:<{label_width}}", *(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))]
            )
        )
    return "\n".join(lines)
