"""``vlkd-pl summary``: what ``make distill`` made, in ten lines, and what to run next."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from vlkd_pl.commands.score import as_value_error
from vlkd_pl.commands.scores import Record, read_record

_COLUMNS = ("before", "distilled", "shuffled control")
_ROWS: dict[str, tuple[tuple[str, str] | None, ...]] = {
    "captions, CIDEr": (("before", "cider"), ("after", "cider"), ("after", "cider_shuffled")),
    "answers, VQA accuracy": (
        None,
        ("zeroshot_vqav2", "accuracy/overall"),
        ("zeroshot_vqav2", "accuracy_shuffled_image/overall"),
    ),
    "recall@1, text to image": (("before", "bart_text_to_image_r1"), ("after", "bart_text_to_image_r1"), None),
}
"""For each row of the table and each of its columns the test and the score; None where there is no such test."""

_MISSING = "missing"


def main(arguments: Sequence[str]) -> int:
    """Print the summary.

    Returns:
        0, or 1 after a line on stderr where a ``scores.json`` is invalid.
    """
    parser = argparse.ArgumentParser(
        prog="vlkd-pl summary",
        description="Print the model that make distill made in the sample world, its scores next to those before "
        "distillation and of the shuffled-image control, the path of its caption panel, and what to run next.",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder of make distill: runs/sample")
    options = parser.parse_args(arguments[1:])
    try:
        print("\n".join(as_value_error(lambda: summary_lines(options.folder, _program()))))
    except ValueError as error:
        print(f"vlkd-pl summary: {error}", file=sys.stderr)
        return 1
    return 0


def summary_lines(folder: Path, program: str = "vlkd-pl") -> list[str]:
    """Summarize a distillation in the sample world; what is missing is stated as missing.

    Args:
        folder: Folder with the run ``distill`` and the tests ``before``, ``after`` and ``zeroshot_vqav2``.
        program: The command that ``vlkd-pl`` is called by.

    Returns:
        Ten lines, of at most 80 characters where ``folder`` is short; fewer without a model.

    Raises:
        MisconfigurationException: A ``scores.json`` cannot be read, or has another format.
        ValueError: The unit of a score is unknown.

    Example:
        >>> for line in summary_lines(Path("nowhere")):
        ...     print(line)
        model  missing
                                         before  distilled  shuffled control
               captions, CIDEr          missing    missing           missing
               answers, VQA accuracy          -    missing           missing
               recall@1, text to image  missing    missing                 -
        panel  missing
        next   make distill, which writes the model
    """
    files = {run: folder / run / "scores.json" for run in ("before", "after", "zeroshot_vqav2")}
    records = {run: read_record(file) for run, file in files.items() if file.is_file()}
    model = folder / "distill" / "model"
    panel = records["after"].panel if "after" in records else None
    is_complete = (model / "config.json").is_file()
    lines = [f"model  {model if is_complete else _MISSING}", *_table(records), f"panel  {panel or _MISSING}"]
    if not is_complete:
        return [*lines, "next   make distill, which writes the model"]
    return [
        *lines,
        f"next   {program} caption docs/images/scene.jpg --num-masks 3 \\",
        f"         --model {model}",
        f"       {program} ask IMAGE QUESTION --model {model}",
        "       make demo, make zeroshot, make finetune; docs/tutorial.md",
    ]


def _table(records: dict[str, Record]) -> list[str]:
    rows = {name: [_cell(records, place) for place in places] for name, places in _ROWS.items()}
    widths = [max(len(name), len(_MISSING)) for name in _COLUMNS]
    label_width = max(map(len, rows))
    return [
        "       " + "  ".join([f"{name:{label_width}}", *map(str.rjust, cells, widths)]).rstrip()
        for name, cells in {"": list(_COLUMNS), **rows}.items()
    ]


def _cell(records: dict[str, Record], place: tuple[str, str] | None) -> str:
    """Format a score in percent, and CIDEr times 100."""
    if place is None:
        return "-"
    run, name = place
    if run not in records or name not in records[run].scores:
        return _MISSING
    score = records[run].scores[name]
    return f"{score if records[run].units[name] == 'percent' else 100 * score:.1f}"


def _program() -> str:
    """The command that the user can call ``vlkd-pl`` by, such as ``.venv/bin/vlkd-pl``."""
    is_on_path = shutil.which("vlkd-pl") is not None or Path(sys.argv[0]).name != "vlkd-pl"
    return "vlkd-pl" if is_on_path else sys.argv[0]
