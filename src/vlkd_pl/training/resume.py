"""Resuming after an interruption: atomic checkpoint files, the last good one, and SLURM's signals."""

from __future__ import annotations

import logging
import os
import signal
import sys
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.plugins.environments import LightningEnvironment, SLURMEnvironment
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.utilities.exceptions import MisconfigurationException, SIGTERMException
from pytorch_lightning.utilities.rank_zero import rank_zero_warn

from vlkd_pl.errors import ModelFileError
from vlkd_pl.files import atomic_write
from vlkd_pl.shards.addresses import is_address
from vlkd_pl.training.checkpoint import read_checkpoint
from vlkd_pl.training.runs import checkpoint_directories, names_file_logger
from vlkd_pl.weights.model_files import first_line

_TEMPORARY = "checkpoint.tmp"
_INTERRUPTED = "interrupted.ckpt"
_REQUEUED = "hpc_ckpt_*.ckpt"
_HANDED_OVER = ".temp.ckpt"
"""Lightning's name for the weights alone, which processes that it forked leave to the main process when they end."""
_ENTRIES = ("pytorch-lightning_version", "epoch", "global_step")
_TRAINING_ENTRIES = (*_ENTRIES, "loops", "optimizer_states", "lr_schedulers")


class CheckpointFiles(TorchCheckpointIO):
    """Checkpoint files that are written atomically, and whose failed writes do not end training.

    A checkpoint that cannot be written, as on a full disk, gives a warning, and training continues: the checkpoint
    before it stays, and none is rotated out until one has been written again. If the first checkpoint of a run cannot
    be written, training stops.

    Args:
        resumes: Whether checkpoints are read to resume training, which needs more than the weights.

    Attributes:
        num_failed: Number of checkpoints that could not be written.
    """

    def __init__(self, resumes: bool = False) -> None:
        self.resumes = resumes
        self.num_failed = 0
        self._last_written: Path | None = None
        self._last_failed = False
        self._outdated: list[Any] = []

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint.

        Args:
            checkpoint: What to write.
            path: A file on a local disk, or an address that fsspec knows.
            storage_options: None.

        Raises:
            MisconfigurationException: The first checkpoint of a run cannot be written.
        """
        try:
            if is_address(str(path)):
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
        problem = first_line(error.__context__ or error)
        if "inline_container" in problem:  # PyTorch's archive, of which the disk took a part
            problem = "the disk took a part of it alone: it may be full"
        reason = f"the checkpoint {path} cannot be written ({problem})"
        if self._last_written is None:
            raise MisconfigurationException(f"{reason}: make room for it, or give another folder") from error
        self.num_failed += 1
        self._last_failed = True
        rank_zero_warn(f"{reason}: training goes on, and {self._last_written} stays the last good one")

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint, without ever unpickling objects from it, whatever ``weights_only`` is.

        Args:
            path: A file on a local disk, or an address that fsspec knows.
            map_location: Where the tensors go; see ``torch.load``.
            weights_only: Not used.

        Raises:
            FileNotFoundError: The file does not exist.
            ModelFileError: It is corrupt or no checkpoint; or holds the weights alone, where training is to be resumed.
        """
        if Path(path).name == _HANDED_OVER:
            return torch.load(path, map_location=map_location, weights_only=True)
        try:
            return read_checkpoint(path, _TRAINING_ENTRIES if self.resumes else _ENTRIES, map_location)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"ckpt_path: {error}") from error
        except ModelFileError as error:
            others = [other for other in _newest_first([Path(path).parent]) if other != Path(path) and _is_whole(other)]
            advice = f"; the newest good one next to it is {others[0]}" if others else ""
            raise ModelFileError(f"ckpt_path: {error}{advice}") from error

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a checkpoint; not before a later one has been written."""
        if self._last_failed:
            self._outdated.append(path)
        else:
            super().remove_checkpoint(path)


def _write(checkpoint: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # one name, so that a run that is killed again and again leaves one at most
    with atomic_write(path, path.parent / _TEMPORARY) as file:
        torch.save(checkpoint, file)


def last_checkpoint(folders: Iterable[str | Path]) -> Path | None:
    """The newest intact checkpoint in folders, whatever its name, or None; corrupt ones are warned of."""
    return _newest_intact(_newest_first(folders))


def last_of_run(trainer: pl.Trainer) -> Path | None:
    """The newest intact checkpoint of a trainer's run, with those that Lightning writes when SLURM ends a job.

    To be called on all ranks.
    """
    root = Path(trainer.default_root_dir)
    return _newest_intact(
        _newest_first(checkpoint_directories(trainer), [*root.glob(_REQUEUED), *root.glob(_INTERRUPTED)])
    )


def is_requeued(trainer: pl.Trainer) -> bool:
    """Return whether Lightning resumes by itself from the checkpoint that it wrote at SLURM's signal."""
    return SLURMEnvironment.detect() and any(Path(trainer.default_root_dir).glob(_REQUEUED))


def _newest_intact(paths: Iterable[Path]) -> Path | None:
    for path in paths:
        if _is_whole(path):
            return path
        rank_zero_warn(f"the checkpoint {path} is corrupt: the one before it is taken")
    return None


def _newest_first(folders: Iterable[str | Path], more: Iterable[Path] = ()) -> list[Path]:
    candidates = {*more, *(path for folder in folders for path in Path(folder).glob("*.ckpt"))}
    files = [path for path in candidates if path.is_file()]  # a FIFO would block
    return sorted(files, key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)


def _is_whole(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False


def is_of_run(path: str | Path, trainer: pl.Trainer) -> bool:
    """Return whether a checkpoint is in the folders that a trainer writes to; a collective operation."""
    folders = [*checkpoint_directories(trainer), Path(trainer.default_root_dir)]
    return Path(path).resolve().parent in [folder.resolve() for folder in folders]


def remove_requeued_before(last: Path) -> None:
    """Remove what Lightning wrote next to a checkpoint at earlier ends of a SLURM job: it keeps one for each."""
    for path in last.parent.glob(_REQUEUED):
        if path.stat().st_mtime_ns < last.stat().st_mtime_ns:
            path.unlink()


def reuse_last_version(loggers: Sequence[Any]) -> None:
    """Let loggers continue in the newest ``version_N`` folder of the first one that holds checkpoints, if there is one.

    Without it each start would have a folder of its own, where none of the earlier checkpoints are found.

    Args:
        loggers: The configurations of TensorBoardLoggers or CSVLoggers, with ``class_path`` and ``init_args``; one with
            a version stays as it is.
    """
    if not loggers or not _has_no_version(loggers[0]):
        return
    root = Path(loggers[0].init_args.save_dir) / str(loggers[0].init_args.get("name") or "")
    versions = [
        int(path.name.removeprefix("version_"))
        for path in root.glob("version_*")
        if path.name.removeprefix("version_").isdigit() and any(path.glob("checkpoints/*.ckpt"))
    ]
    for logger in filter(_has_no_version, loggers) if versions else ():
        logger.init_args.version = max(versions)


def _has_no_version(logger: Any) -> bool:
    if not names_file_logger(logger):
        return False
    return logger.init_args.get("version") is None and logger.init_args.get("save_dir") is not None


class SaveOnSignal(Callback):
    """Save a checkpoint when a signal announces the end of the job.

    Lightning saves and requeues immediately at SLURM's signal (``SLURMEnvironment``, SIGUSR1), which may be in the
    middle of an optimizer step. At SIGTERM, its ranks exchange messages in the middle of other collective operations,
    so that all hang. This callback defers both signals to the end of the optimizer step: SIGUSR1 until all ranks have
    received it, SIGTERM until one has. On SIGTERM it writes ``interrupted.ckpt`` and ends the run.

    The first SIGINT (Ctrl-C) is handled as SIGTERM; the second ends the process at once.
    """

    def __init__(self) -> None:
        self._requeue: Callable[..., Any] | None = None
        self._received: set[int] = set()
        self._step = 0

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Install the handlers, which defer to Lightning's."""
        handler = signal.getsignal(signal.SIGUSR1)
        if SLURMEnvironment.detect() and callable(handler):
            self._requeue = handler
            signal.signal(signal.SIGUSR1, self._note)
        if trainer.world_size > 1:
            signal.signal(signal.SIGTERM, self._note)
        signal.signal(signal.SIGINT, self._interrupt)  # Lightning puts the old one back when training ends
        logging.getLogger("pytorch_lightning.trainer.connectors.signal_connector").setLevel(logging.WARNING)
        self._step = trainer.global_step

    def _note(self, number: int, frame: Any) -> None:
        self._received.add(number)

    def _interrupt(self, number: int, frame: Any) -> None:
        self._received.add(number)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if sys.stderr.isatty():  # a handler may interrupt a print, so that it cannot print itself
            os.write(2, b"\x1b[?25h\nsaving at the end of the step; press Ctrl-C again to end at once\n")
        signal.raise_signal(signal.SIGTERM)

    def on_train_batch_end(self, trainer: pl.Trainer, *arguments: Any) -> None:
        """Hand SIGUSR1 over to Lightning; on SIGTERM, end the run on all ranks.

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
        """Write ``interrupted.ckpt`` next to the other checkpoints; gives the exception its exit status."""
        if not isinstance(exception, SIGTERMException):
            return
        path = (*checkpoint_directories(trainer), Path(trainer.default_root_dir))[0] / _INTERRUPTED
        trainer.save_checkpoint(path, weights_only=False)
        interrupted = trainer.strategy.reduce_boolean_decision(signal.SIGINT in self._received, all=False)
        exception.code = 128 + (signal.SIGINT if interrupted else signal.SIGTERM)
        if trainer.is_global_zero:
            name = "SIGINT" if interrupted else "SIGTERM"
            print(f"vlkd-pl fit: {name}: saved {path}; --ckpt_path last resumes from it", file=sys.stderr)
        elif isinstance(trainer.strategy.cluster_environment, LightningEnvironment):  # type: ignore[attr-defined]
            exception.code = 0  # Lightning kills the first rank, with status 137, where one that it started fails
