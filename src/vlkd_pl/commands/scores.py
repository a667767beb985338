"""``vlkd-pl scores``: the scores of finished tests side by side."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from vlkd_pl.table import format_table


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
    print(format_table([str(run) for run in options.runs], [record["scores"] for record in records]))
    for run, record in zip(options.runs, records, strict=True):
        if "caption_panel" in record:
            print(f"caption panel of {run}: {record['caption_panel']}")
    return 0
