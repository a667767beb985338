"""The report of an evaluation: what is logged, printed, drawn and written."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pytorch_lightning.utilities.exceptions import MisconfigurationException

from vlkd_pl.evaluation.panel import PanelItem
from vlkd_pl.evaluation.table import Unit, units_of
from vlkd_pl.files import write_text


class Report(NamedTuple):
    """The scores of an evaluation with its table, files and images.

    Attributes:
        scores: Scores by their log names.
        table: Lines to print.
        files: Content of each file by its name: a string is written as text, anything else as JSON.
        panel_items: Images for the panel.
        units: Unit of all scores, or of each by its name; ``scores.json`` and the logs hold the scores in it.
        notes: One line for each reason why a score means less than it seems to.
        not_computed: For each score that could not be computed the reason.

    Example:
        >>> Report({"cider": 1.25}, files={"predictions.json": [{"image_id": 1, "caption": "a fish"}]}).scores
        {'cider': 1.25}
    """

    scores: dict[str, float]
    table: str = ""
    files: dict[str, Any] | None = None
    panel_items: Sequence[PanelItem] = ()
    units: Unit | Mapping[str, Unit] = "fraction"
    notes: Sequence[str] = ()
    not_computed: Mapping[str, str] | None = None

    def write(self, folder: Path, panel: Path | None = None) -> None:
        """Write ``scores.json`` and the other files.

        Args:
            folder: The run's log folder, which is created where it is missing.
            panel: File of the caption panel, or None.

        Raises:
            MisconfigurationException: A file cannot be written.
        """
        record: dict[str, Any] = {"scores": self.scores, "units": units_of(self.scores, self.units)}
        if self.notes:
            record["notes"] = self.notes
        if panel is not None:
            record["caption_panel"] = str(panel)
        for name, content in {"scores.json": record, **(self.files or {})}.items():
            text = content if isinstance(content, str) else json.dumps(content, indent=1, ensure_ascii=False)
            try:
                folder.mkdir(parents=True, exist_ok=True)
                write_text(folder / name, text)
            except OSError as error:
                raise MisconfigurationException(
                    f"{folder / name} cannot be written ({error}): make room, and run the test again"
                ) from error
