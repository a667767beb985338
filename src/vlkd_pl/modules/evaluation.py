"""How modules evaluate and predict, and what they report."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
from torch import Tensor

from vlkd_pl.batch import PictureBatch
from vlkd_pl.distributed import gather_objects
from vlkd_pl.modules.panel import Shown, caption_panel, log_panel


class Report(NamedTuple):
    """What an evaluation found.

    Attributes:
        scores: By the names that they are logged under.
        table: The lines for a person to read.
        files: The content of each JSON file by its name.
        shown: Pictures for the panel.
    """

    scores: dict[str, float]
    table: str = ""
    files: dict[str, Any] | None = None
    shown: Sequence[Shown] = ()

    def write(self, folder: Path, panel: Path | None) -> None:
        """Writes ``scores.json`` and the other files to a run's log folder.

        Args:
            folder: Made where it is not there.
            panel: The file of the caption panel, where there is one.
        """
        folder.mkdir(parents=True, exist_ok=True)
        record: dict[str, Any] = {"scores": self.scores}
        if panel is not None:
            record["caption_panel"] = str(panel)
        for name, content in {"scores.json": record, **(self.files or {})}.items():
            (folder / name).write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")


class EvaluatedModule(pl.LightningModule, ABC):
    """A module that evaluates batches and concludes from all of them; a subclass says how, in three methods.

    Args:
        panel_size: Pictures in the caption panel.
    """

    def __init__(self, panel_size: int = 16) -> None:
        super().__init__()
        self.panel_size = panel_size
        self.evaluated: list[dict[str, Any]] = []

    @property
    def data(self) -> Any:
        """The trainer's data module."""
        return getattr(self.trainer, "datamodule", None)

    @abstractmethod
    def evaluate(self, batch: Any) -> list[dict[str, Any]]:
        """Evaluates a batch of validation or test.

        Args:
            batch: Of the kind that the task's data module makes.

        Returns:
            An item for each thing that is evaluated, with its ``id``: of items with the same one the last counts, since
            a distributed sampler repeats some to fill the last batch.
        """

    @abstractmethod
    def conclude(self, items: list[dict[str, Any]]) -> Report:
        """Scores the items of all ranks, in the order of their ids; runs on the first rank alone."""

    @abstractmethod
    def predict(self, batch: PictureBatch) -> list[dict[str, Any]]:
        """What ``vlkd-pl predict`` writes of a batch, a JSON line each."""

    def shown_image(self, image: Tensor, index: int) -> Tensor | None:
        """The picture for the panel, while it has room; ``index`` is its number in the batch."""
        return image.cpu() if len(self.evaluated) + index < self.panel_size else None

    def validation_step(self, batch: Any, batch_index: int) -> None:
        """Evaluates a batch."""
        self.evaluated += self.evaluate(batch)

    def test_step(self, batch: Any, batch_index: int) -> None:
        """As in validation."""
        self.evaluated += self.evaluate(batch)

    def predict_step(self, batch: PictureBatch, batch_index: int) -> list[dict[str, Any]]:
        """The predictions for the pictures of a batch that could be read."""
        return self.predict(batch) if batch["samples"] else []

    def on_test_start(self) -> None:
        """Leaves the printing to ``on_test_epoch_end``, which has more to say than the trainer's own table."""
        self.trainer.test_loop.verbose = False

    def on_validation_epoch_end(self) -> None:
        """Logs the scores, and draws the panel."""
        self._conclude("val")

    def on_test_epoch_end(self) -> None:
        """As in validation; also prints the scores and writes them, with the predictions, to the run's log folder."""
        self._conclude("test")

    def _conclude(self, stage: str) -> None:
        folder = self.trainer.log_dir  # asked on all ranks: it is broadcast
        items = {item["id"]: item for item in gather_objects(self.evaluated)}
        self.evaluated.clear()
        report = self.conclude([items[key] for key in sorted(items)]) if self.trainer.is_global_zero else None
        scores = self.trainer.strategy.broadcast(report.scores if report is not None else {})
        for name, value in scores.items():
            self.log(f"{stage}/{name}", value, prog_bar=name == "cider", sync_dist=True)
        if report is None:
            return
        panel, shown = None, report.shown[: self.panel_size]
        if shown and not self.trainer.sanity_checking:
            panel = log_panel(self.trainer, f"{stage}/captions", caption_panel(shown), folder)
        if stage == "test":
            print(f"\n{report.table}")
            if folder is not None:
                report.write(Path(folder), panel)
                print(f"scores and predictions: {folder}")
