"""What an evaluation found, as it is printed, logged and written."""

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
    """What an evaluation found.

    Attributes:
        scores: By the names that they are logged under.
        table: The lines for a person to read.
        files: The content of each file by its name: a string as it is, anything else as JSON.
        shown: Images for the panel.
        units: What ``scores`` are in, all or each by its name; ``scores.json`` and the logs hold them so.
        notes: Why a score means less than it seems to, a line each.
    """

    scores: dict[str, float]
    table: str = ""
    files: dict[str, Any] | None = None
    shown: Sequence[PanelItem] = ()
    units: Unit | Mapping[str, Unit] = "fraction"
    notes: Sequence[str] = ()

    def write(self, folder: Path, panel: Path | None) -> None:
        """Writes ``scores.json`` and the other files to a run's log folder.

        Args:
            folder: Made where it is not there.
            panel: The file of the caption panel, where there is one.

        Raises:
            MisconfigurationException: They cannot be written.
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
