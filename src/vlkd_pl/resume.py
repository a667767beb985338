"""How a cut run goes on: checkpoint files that are never half written, the last good one, and SLURM's signals."""

from __future__ import annotations

import pickle
import signal
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import fsspec
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.plugins.environments import SLURMEnvironment
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.utilities.exceptions import MisconfigurationException, SIGTERMException
from pytorch_lightning.utilities.rank_zero import rank_zero_info, rank_zero_warn

from vlkd_pl.files import written_whole

_TEMPORARY = "checkpoint.tmp"
_INTERRUPTED = "interrupted.ckpt"


class CheckpointFiles(TorchCheckpointIO):
    """Writes each checkpoint beside its place, and puts it there when it is whole and on the disk.

    A file that cannot be written, as on a full disk, is warned of, and training goes on: the checkpoint before it
    stays, and nothing is rotated out until one has been written again. When not even the first of a run can be written
    training stops.

    Attributes:
        num_failed: Checkpoints that could not be written.
    """

    def __init__(self) -> None:
        self.num_failed = 0
        self._last_written: Path | None = None
        self._last_failed = False
        self._outdated: list[Any] = []

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Writes a checkpoint.

        Args:
            checkpoint: What to write.
            path: A file on a local disk, or an address that fsspec knows.
            storage_options: None.

        Raises:
            MisconfigurationException: The first checkpoint of a run cannot be written.
        """
        try:
            if "://" in str(path):
                super().save_checkpoint(checkpoint, path, storage_options)
            else:
                _write(checkpoint, Path(path))
        except (OSError, RuntimeError) as error:  # torch.save makes RuntimeErrors of those of the file
            self._fail(path, error)
            return
        self._last_written, self._last_failed = path, False
        for outdated in self._outdated:
            if outdated != path:
                super().remove_checkpoint(outdated)
        self._outdated.clear()

    def _fail(self, path: Any, error: Exception) -> None:
        reason = f"the checkpoint {path} cannot be written ({_first_line(error.__context__ or error)})"
        if self._last_written is None:
            raise MisconfigurationException(f"{reason}: make room for it, or give another folder") from error
        self.num_failed += 1
        self._last_failed = True
        rank_zero_warn(f"{reason}: training goes on, and {self._last_written} stays the last good one")

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        """Reads a checkpoint, without ever unpickling objects from it, whatever ``weights_only`` is.

        Args:
            path: A file on a local disk, or an address that fsspec knows.
            map_location: Where the tensors go; see ``torch.load``.
            weights_only: Not used.

        Raises:
            FileNotFoundError: There is no such file.
            MisconfigurationException: It is broken, or no checkpoint.
        """
        try:
            with fsspec.open(str(path), "rb") as file:
                return torch.load(file, map_location=map_location, weights_only=True)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"ckpt_path: there is no checkpoint at {path}") from error
        except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
            others = [other for other in _newest_first([Path(path).parent]) if other != Path(path) and _is_whole(other)]
            advice = f"; the newest good one beside it is {others[0]}" if others else ""
            raise MisconfigurationException(
                f"the checkpoint {path} is broken or is none ({_first_line(error)}){advice}"
            ) from error

    def remove_checkpoint(self, path: Any) -> None:
        """Removes a checkpoint; not before a later one has been written."""
        if self._last_failed:
            self._outdated.append(path)
        else:
            super().remove_checkpoint(path)


def _write(checkpoint: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # one name, so that a run that is killed again and again leaves one at most
    with written_whole(path, path.parent / _TEMPORARY) as file:
        torch.save(checkpoint, file)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def last_checkpoint(folders: Iterable[str | Path]) -> Path | None:
    """The newest whole checkpoint in folders, whatever its name, or None; broken ones are warned of."""
    for path in _newest_first(folders):
        if _is_whole(path):
            return path
        rank_zero_warn(f"the checkpoint {path} is broken: the one before it is taken")
    return None


def _newest_first(folders: Iterable[str | Path]) -> list[Path]:
    found = {path for folder in folders for path in Path(folder).glob("*.ckpt") if path.exists()}
    return sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)


def _is_whole(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False


def checkpoint_folders(trainer: pl.Trainer) -> list[Path]:
    """Where a trainer's checkpoints lie, with those that Lightning writes when SLURM ends a job."""
    log_dir = trainer.log_dir or trainer.default_root_dir
    callbacks = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
    return [Path(callback.dirpath or Path(log_dir) / "checkpoints") for callback in callbacks] + [
        Path(trainer.default_root_dir)
    ]


def remove_requeued_before(last: Path) -> None:
    """Removes what Lightning wrote beside a checkpoint at earlier ends of a SLURM job: it keeps one for each."""
    for path in last.parent.glob("hpc_ckpt_*.ckpt"):
        if path.stat().st_mtime_ns < last.stat().st_mtime_ns:
            path.unlink()


def go_on_in_last_version(logger: Any) -> None:
    """Lets a logger go on in the newest ``version_N`` folder that holds checkpoints, if there is one.

    Without it each start would have a folder of its own, where none of the earlier checkpoints are found.

    Args:
        logger: The configuration of a TensorBoardLogger or CSVLogger, with ``class_path`` and ``init_args``; one with a
            version stays as it is.
    """
    options = getattr(logger, "init_args", None)
    if options is None or "version" not in options or options.version is not None or options.get("save_dir") is None:
        return
    root = Path(options.save_dir) / str(options.get("name") or "")
    versions = [
        int(path.name.removeprefix("version_"))
        for path in root.glob("version_*")
        if path.name.removeprefix("version_").isdigit() and any(path.glob("checkpoints/*.ckpt"))
    ]
    if versions:
        options.version = max(versions)


def keep_logged(trainer: pl.Trainer) -> None:
    """Keeps the file of a ``CSVLogger`` from an earlier start, which it would delete, as ``metrics_before_N.csv``."""
    for logger in trainer.loggers:
        path = Path(logger.log_dir) / "metrics.csv" if isinstance(logger, CSVLogger) else None
        if path is not None and path.is_file() and trainer.is_global_zero:
            number = 1 + len(list(path.parent.glob("metrics_before_*.csv")))
            path.rename(path.with_name(f"metrics_before_{number}.csv"))


class SaveOnSignal(Callback):
    """Saves when the job is about to be ended.

    Lightning saves and requeues at once when SLURM's signal arrives (``SLURMEnvironment``, SIGUSR1), which may be in
    the middle of an optimizer step; and of several ranks each tells the others of SIGTERM at once, in the middle of
    what else they tell each other, so that all wait for ever. This lets both wait for the end of the optimizer step:
    SIGUSR1 until all ranks have it, SIGTERM until one has. On SIGTERM it writes ``interrupted.ckpt`` and ends the run.
    """

    def __init__(self) -> None:
        self._requeue: Callable[..., Any] | None = None
        self._received: set[int] = set()
        self._step = 0

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Puts itself before Lightning's handlers, where there are some."""
        handler = signal.getsignal(signal.SIGUSR1)
        if SLURMEnvironment.detect() and callable(handler):
            self._requeue = handler
            signal.signal(signal.SIGUSR1, self._note)
        if trainer.world_size > 1:
            signal.signal(signal.SIGTERM, self._note)
        self._step = trainer.global_step

    def _note(self, number: int, frame: Any) -> None:
        self._received.add(number)

    def on_train_batch_end(self, trainer: pl.Trainer, *arguments: Any) -> None:
        """Hands SIGUSR1 over to Lightning; on SIGTERM ends the run on all ranks.

        Raises:
            SIGTERMException: One of several ranks has got SIGTERM.
        """
        if trainer.global_step == self._step:  # more batches are to be accumulated
            return
        self._step = trainer.global_step
        together = trainer.strategy.reduce_boolean_decision
        if self._requeue is not None and together(signal.SIGUSR1 in self._received):
            self._received.discard(signal.SIGUSR1)
            self._requeue(signal.SIGUSR1, None)
        if trainer.world_size > 1 and together(signal.SIGTERM in self._received, all=False):
            raise SIGTERMException

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        """Writes ``interrupted.ckpt`` beside the other checkpoints."""
        if isinstance(exception, SIGTERMException):
            path = checkpoint_folders(trainer)[0] / _INTERRUPTED
            trainer.save_checkpoint(path)
            rank_zero_info(f"SIGTERM: saved {path}")
