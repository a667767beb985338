"""Logs that a resumed run continues, and that a full disk does not interrupt."""

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
from vlkd_pl.shards.addresses import is_address

METRICS_FILE = "metrics.csv"
"""The file of a ``CSVLogger`` that the metrics of training go to."""


class MetricsFile(ExperimentWriter):
    """A CSV file of metrics that a resumed run continues, where Lightning's own deletes it.

    Rows that cannot be written, as on a full disk, wait for the next write, and training continues. The file is
    replaced atomically when a new metric changes the header.

    Args:
        log_dir: Directory of the file.
        file_name: Name of the file.
        resume: Whether the rows in the file stay.

    Attributes:
        num_rows: Number of rows logged so far.
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
        """Drop the rows that a resumed run logs again, and a truncated last row.

        Args:
            step: Optimizer steps of the checkpoint.
            num_rows: Number of rows logged when the checkpoint was written. They stay even at later steps, since a
                validation may fall between the accumulated batches of a step.
        """
        if self.metrics_keys:
            names, rows = self._rows()
            rows = [row for n, row in enumerate(rows) if n < num_rows or int(row["step"]) < step]
            self._replace(names, rows)
            self.num_rows = len(rows)

    def save(self) -> None:
        """Write the rows that are not in the file yet."""
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
                rank_zero_warn(f"{self.path} cannot be written ({error}): its rows wait, and training continues")
            self._warned = True
        else:
            self.metrics_keys, self.metrics = names, []

    def _rows(self) -> tuple[list[str], list[dict[str, str]]]:
        """The names and the rows of the file, without a truncated last row."""
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
    """Append to a file, or leave it unchanged on an error."""
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
    """Continues the logs of a resumed run at the step of its checkpoint."""

    def __init__(self) -> None:
        self._files: list[MetricsFile] = []
        self._num_rows: list[int] = []

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Find the files of metrics on the first rank."""
        experiments = [logger.experiment for logger in trainer.loggers if isinstance(logger, CSVLogger)]
        self._files = [experiment for experiment in experiments if isinstance(experiment, MetricsFile)]

    def state_dict(self) -> dict[str, Any]:
        """The number of rows logged to each file."""
        return {"num_rows": [file.num_rows for file in self._files]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the number of rows of the checkpoint."""
        self._num_rows = state_dict["num_rows"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Drop logs of the steps that are trained again."""
        for number, file in enumerate(self._files):
            file.resume(trainer.global_step, self._num_rows[number] if number < len(self._num_rows) else 0)
        for logger in trainer.loggers if trainer.is_global_zero and trainer.global_step else ():
            if isinstance(logger, TensorBoardLogger):
                _hide_events_from(logger.experiment, trainer.global_step)


def set_up_logs(loggers: Sequence[Any], file_name: str, resume: bool) -> None:
    """Let loggers that write to local disks resume their files, and survive a full disk.

    The first rank must call it before the loggers are used.

    Args:
        loggers: Loggers of a trainer.
        file_name: Name of the file that a ``CSVLogger`` writes.
        resume: Whether the rows in that file stay.
    """
    for logger in loggers:
        if isinstance(logger, CSVLogger) and not is_address(logger.log_dir):
            logger._experiment = MetricsFile(logger.log_dir, file_name, resume)
        if isinstance(logger, TensorBoardLogger):
            _keep_events_from_failing()
            save: Any = partial(_save, logger, logger.save)
            logger.save = save  # type: ignore[method-assign]


def _hide_events_from(writer: Any, step: int) -> None:
    """Let TensorBoard hide events of earlier starts from a step on."""
    try:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[import-untyped]
    except ImportError:  # tensorboardX stands in for it
        return
    writer.file_writer.add_event(Event(session_log=SessionLog(status=SessionLog.START)), step)


def _save(logger: TensorBoardLogger, save: Any) -> None:
    try:
        save()
    except OSError as error:  # of hparams.yaml
        rank_zero_warn(f"the logs in {logger.log_dir} cannot be written ({error}): training continues")


@cache
def _keep_events_from_failing() -> None:
    """Let TensorBoard's writer warn when it cannot write.

    By default its thread ends with a traceback, and each later event raises the error again.
    """
    try:
        from tensorboard.summary.writer import event_file_writer  # type: ignore[import-untyped]
    except ImportError:  # tensorboardX stands in for it
        return

    class Events(event_file_writer.RecordWriter):
        """Writes events until a write fails; events after a partial one would be unreadable."""

        failed = False

        def _tried(self, write: Any, *data: bytes) -> None:
            if self.failed:
                return
            try:
                write(*data)
            except Exception as error:  # of any class, if TensorFlow is installed
                self.failed = True
                rank_zero_warn(f"TensorBoard's log cannot be written ({error}): it ends here, and training continues")

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
