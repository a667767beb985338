"""Logs that a resumed run continues in their files, and that a full disk does not end a run by."""

from __future__ import annotations

import csv
import errno
import io
import os
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter
from pytorch_lightning.utilities.rank_zero import rank_zero_warn

from vlkd_pl.files import write_text

METRICS_FILE = "metrics.csv"
"""The file of a ``CSVLogger`` that the metrics of training go to."""


class MetricsFile(ExperimentWriter):
    """A CSV file of metrics that a resumed run continues, where Lightning's own deletes it.

    Rows that cannot be written, as on a full disk, wait for the next time, and training goes on. The file is replaced
    atomically when a metric has a new name, which needs another header.

    Args:
        log_dir: Directory of the file.
        file_name: Name of the file.
        resume: Whether the rows that are in the file stay.

    Attributes:
        num_rows: Rows logged so far.
    """

    def __init__(self, log_dir: str, file_name: str, resume: bool) -> None:
        self.path = Path(log_dir) / file_name
        self.num_rows = 0
        self._warned = False
        super().__init__(log_dir)
        if resume and self.path.is_file():
            self.metrics_keys, rows = self._rows()
            self.num_rows = len(rows)

    def _check_log_dir_exists(self) -> None:
        """Leave the directory as it is: Lightning deletes the file here."""

    def log_metrics(self, metrics_dict: dict[str, float], step: int | None = None) -> None:
        """Record a row."""
        super().log_metrics(metrics_dict, step)
        self.num_rows += 1

    def resume(self, step: int, num_rows: int) -> None:
        """Drop the rows that a resumed run logs again, and a last row that was cut.

        Args:
            step: Optimizer steps that the checkpoint has seen.
            num_rows: Rows that had been logged when it was written. Of an optimizer step that was half done a
                validation may be among them.
        """
        if self.metrics_keys:
            names, rows = self._rows()
            kept = [row for n, row in enumerate(rows) if n < num_rows or int(row["step"]) < step]
            self._replace(names, kept)
            self.num_rows = len(kept)

    def save(self) -> None:
        """Write the rows since the last time."""
        names = sorted({*self.metrics_keys, *(name for row in self.metrics for name in row)})
        if not self.metrics:
            return
        try:
            if names != self.metrics_keys:
                earlier: list[dict[str, Any]] = [*self._rows()[1]] if self.metrics_keys else []
                self._replace(names, [*earlier, *self.metrics])
            else:
                _append(self.path, _lines(names, self.metrics))
        except OSError as error:
            if not self._warned:
                rank_zero_warn(f"{self.path} cannot be written ({error}): its rows wait, and training goes on")
            self._warned = True
        else:
            self.metrics_keys, self.metrics = names, []

    def _rows(self) -> tuple[list[str], list[dict[str, str]]]:
        """The names and the rows of the file, without a last row that was cut."""
        text = self.path.read_text(encoding="utf-8")
        rows = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1]))
        return list(rows.fieldnames or []), list(rows)

    def _replace(self, names: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
        header = _lines(names, [dict(zip(names, names, strict=True))])
        write_text(self.path, header + _lines(names, rows))


def _lines(names: Sequence[str], rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO(newline="")
    csv.DictWriter(text, names).writerows(rows)
    return text.getvalue()


def _append(path: Path, text: str) -> None:
    """Append to a file, or leave it as it was where that fails."""
    size = path.stat().st_size
    try:
        with path.open("ab", buffering=0) as file:
            content = text.encode()
            if file.write(content) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError:
        os.truncate(path, size)
        raise


class ContinueLogs(Callback):
    """Lets the logs of a resumed run continue where its checkpoint was written."""

    def __init__(self) -> None:
        self._files: list[MetricsFile] = []
        self._num_rows: list[int] = []

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Find the files of metrics, on the first rank."""
        experiments = [logger.experiment for logger in trainer.loggers if isinstance(logger, CSVLogger)]
        self._files = [experiment for experiment in experiments if isinstance(experiment, MetricsFile)]

    def state_dict(self) -> dict[str, Any]:
        """How many rows have been logged."""
        return {"num_rows": [file.num_rows for file in self._files]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Note how many had been."""
        self._num_rows = state_dict["num_rows"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Drop what the run before has logged of what is trained again."""
        for number, file in enumerate(self._files):
            file.resume(trainer.global_step, self._num_rows[number] if number < len(self._num_rows) else 0)
        for logger in trainer.loggers if trainer.is_global_zero and trainer.global_step else ():
            if isinstance(logger, TensorBoardLogger):
                _hide_events_from(logger.experiment, trainer.global_step)


def set_up_logs(loggers: Sequence[Any], file_name: str, resume: bool) -> None:
    """Give loggers that write to local disks files that are continued, and that survive a full disk.

    To be called on the first rank, before the loggers are used.

    Args:
        loggers: Those of a trainer.
        file_name: Name of the file that a ``CSVLogger`` writes.
        resume: Whether the rows that are in it stay.
    """
    for logger in loggers:
        if isinstance(logger, CSVLogger) and "://" not in logger.log_dir:
            logger._experiment = MetricsFile(logger.log_dir, file_name, resume)
        if isinstance(logger, TensorBoardLogger):
            _keep_events_from_failing()
            save: Any = partial(_save, logger, logger.save)
            logger.save = save  # type: ignore[method-assign]


def _hide_events_from(writer: Any, step: int) -> None:
    """Let TensorBoard show nothing of a step or later ones that is in the files of earlier starts."""
    try:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[import-untyped]
    except ImportError:  # tensorboardX stands in for it
        return
    writer.file_writer.add_event(Event(session_log=SessionLog(status=SessionLog.START)), step)


def _save(logger: TensorBoardLogger, save: Any) -> None:
    try:
        save()
    except OSError as error:  # of hparams.yaml
        rank_zero_warn(f"the logs in {logger.log_dir} cannot be written ({error}): training goes on")


@cache
def _keep_events_from_failing() -> None:
    """Let TensorBoard's writer warn where it cannot write.

    It writes in a thread that ends with a traceback, and raises the error again whenever something is logged later.
    """
    try:
        from tensorboard.summary.writer import event_file_writer  # type: ignore[import-untyped]
    except ImportError:  # tensorboardX stands in for it
        return

    class Events(event_file_writer.RecordWriter):
        """Writes events until that fails once; what follows half an event cannot be read."""

        failed = False

        def _tried(self, write: Any, *data: bytes) -> None:
            if self.failed:
                return
            try:
                write(*data)
            except Exception as error:  # TensorFlow, where it is installed, has errors of its own
                self.failed = True
                rank_zero_warn(f"TensorBoard's log cannot be written ({error}): it ends here, and training goes on")

        def write(self, data: bytes) -> None:
            """Write an event."""
            self._tried(super().write, data)

        def flush(self) -> None:
            """Flush the file."""
            self._tried(super().flush)

        def close(self) -> None:
            """Close the file."""
            self._tried(super().close)

    event_file_writer.RecordWriter = Events
