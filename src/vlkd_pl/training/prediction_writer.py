"""Predictions of ``vlkd-pl predict`` as JSON lines."""

from __future__ import annotations

import json
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

import pytorch_lightning as pl
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from vlkd_pl.distributed import gather_objects
from vlkd_pl.files import atomic_write


class PredictionWriter(pl.Callback):
    """Write the results of ``predict_step`` at once, one JSON line for each, without keeping them in memory.

    Each rank writes a part, ``predictions.jsonl.0``, which remains after an interruption. At the end the parts are
    joined in the order of ranks, which must share a file system.

    Args:
        path: File of the predictions; by default ``predictions.jsonl`` in the run's log folder.

    Attributes:
        num_skipped: Number of unreadable images of all ranks.

    Example:
        >>> writer = PredictionWriter("captions.jsonl")  # for Trainer(callbacks=[writer]).predict(...)
    """

    def __init__(self, path: str | None = None) -> None:
        self.path = path
        self.num_written = 0
        self.num_skipped = 0
        self._file: TextIO | None = None

    def on_predict_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Open this rank's part of the file."""
        trainer.predict_loop.return_predictions = False
        path = self._path(trainer)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.num_written = self.num_skipped = 0
        # bytes of a file's name that are not UTF-8 become JSON's own escapes
        self._file = _part(path, trainer.global_rank).open("w", encoding="utf-8", errors="backslashreplace")

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write the predictions of a batch, and report the unreadable files.

        Raises:
            MisconfigurationException: They cannot be written.
        """
        assert self._file is not None
        try:
            self._file.writelines(f"{json.dumps(record, ensure_ascii=False)}\n" for record in outputs)
            self._file.flush()
        except OSError as error:
            raise MisconfigurationException(
                f"{self._file.name} cannot be written ({error}): make room for it"
            ) from error
        self.num_written += len(outputs)
        self.num_skipped += len(batch["unreadable"])
        for reason in batch["unreadable"]:
            print(f"vlkd-pl predict: skipped {reason}", file=sys.stderr)

    def on_predict_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Join the parts of all ranks, and report the number of predictions."""
        assert self._file is not None
        self._file.close()
        path = self._path(trainer)
        self.num_written, self.num_skipped = (
            sum(gather_objects([number])) for number in (self.num_written, self.num_skipped)
        )
        if trainer.is_global_zero:
            parts = [_part(path, rank) for rank in range(trainer.world_size)]
            with atomic_write(path) as joined:
                for part in parts:
                    with part.open("rb") as lines:
                        shutil.copyfileobj(lines, joined)
            for part in parts:
                part.unlink()
            print(f"{self.num_written} predictions, {self.num_skipped} images skipped: {path}")

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        """Says where the predictions are that were made before the run was cut."""
        if self._file is not None and not self._file.closed:
            with suppress(OSError):  # the disk may be full
                self._file.close()
            print(f"vlkd-pl predict: cut after {self.num_written} predictions: {self._file.name}", file=sys.stderr)

    def _path(self, trainer: pl.Trainer) -> Path:
        log_dir = trainer.log_dir or trainer.default_root_dir  # asked on all ranks: it is broadcast
        return Path(self.path or Path(log_dir) / "predictions.jsonl")


def _part(path: Path, rank: int) -> Path:
    return path.with_name(f"{path.name}.{rank}")
