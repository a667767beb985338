"""The directory of a run: whether it can be written, whether it holds a run already, and what a failed start leaves."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from vlkd_pl.training.export import ExportModel
from vlkd_pl.training.logs import METRICS_FILE
from vlkd_pl.training.prediction_writer import PredictionWriter

_LEFT_BY_A_START = ("config*.yaml", "hparams.yaml", "events.out.tfevents.*", "checkpoint.tmp")


def log_directories(trainer: pl.Trainer) -> list[Path]:
    """The directories on local disks that a trainer's loggers write to; without loggers its ``default_root_dir``."""
    found = [logger.log_dir for logger in trainer.loggers if isinstance(logger, TensorBoardLogger | CSVLogger)]
    return [Path(path) for path in found or [trainer.default_root_dir] if "://" not in str(path)]


def place_loggers(loggers: Iterable[Any], directory: Path) -> None:
    """Let TensorBoardLoggers and CSVLoggers write to a directory.

    Args:
        loggers: Their configurations, with ``class_path`` and ``init_args``.
        directory: Where their files, and those of the run, go.
    """
    place = {"save_dir": str(directory.absolute().parent), "name": directory.name, "version": ""}
    for logger in loggers:
        if names_file_logger(logger):
            for name, value in place.items():
                logger.init_args[name] = value


def names_file_logger(logger: Any) -> bool:
    """Whether the configuration of a logger is of a TensorBoardLogger or CSVLogger."""
    return getattr(logger, "class_path", "").rpartition(".")[2] in ("TensorBoardLogger", "CSVLogger")


def checkpoint_directories(trainer: pl.Trainer) -> list[Path]:
    """The directories that a trainer's ``ModelCheckpoint`` callbacks write to; to be called on all ranks."""
    log_dir = trainer.log_dir or trainer.default_root_dir
    callbacks = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
    return [Path(callback.dirpath or Path(log_dir) / "checkpoints") for callback in callbacks]


def check_no_run(trainer: pl.Trainer) -> None:
    """Check that a new run finds no other run where it will write; to be called on all ranks.

    A directory holds a run where there is a checkpoint, a log of metrics, or an exported model. What a start leaves
    that failed before its first logged step is no run.

    Args:
        trainer: Its callbacks and loggers say where it will write.

    Raises:
        MisconfigurationException: There is one.
    """
    for held in _held(trainer):
        raise MisconfigurationException(
            f"{held} is of an earlier run, which is not overwritten: resume that run with --ckpt_path last, or start "
            "another in another directory with --run_dir DIR (or trainer.logger's save_dir and name)"
        )


def _held(trainer: pl.Trainer) -> Iterator[Path]:
    for folder in checkpoint_directories(trainer):
        yield from folder.glob("*.ckpt")
    for folder in log_directories(trainer):
        if (folder / METRICS_FILE).is_file():
            yield folder / METRICS_FILE
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, ExportModel) and (callback.folder(trainer) / "config.json").exists():
            yield callback.folder(trainer)


def check_writable(trainer: pl.Trainer) -> None:
    """Check that the directories that a trainer will write to can be made and written, without making them.

    Raises:
        MisconfigurationException: One is a file, or lies where nothing can be written.
    """
    folders = [("trainer.logger", folder) for folder in log_directories(trainer)]
    folders += [("trainer.default_root_dir", Path(trainer.default_root_dir))]
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, ModelCheckpoint | ExportModel) and callback.dirpath is not None:
            folders.append((f"{type(callback).__name__}.dirpath", Path(callback.dirpath)))
        if isinstance(callback, PredictionWriter) and callback.path is not None:
            folders.append(("PredictionWriter.path", Path(callback.path).parent))
    for setting, folder in folders:
        if "://" in str(folder) or ":/" in str(folder):
            continue
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists() or path.is_symlink())
        if not existing.is_dir():
            raise MisconfigurationException(f"{setting}: {existing} is not a directory: give another one")
        try:
            tempfile.TemporaryFile(dir=existing).close()
        except OSError as error:
            raise MisconfigurationException(
                f"{setting}: {folder} cannot be written ({error.strerror}): give another directory"
            ) from error


@contextmanager
def removed_if_failed(trainer: pl.Trainer) -> Iterator[None]:
    """Remove the directories that a start made if it fails before it has anything to keep."""
    made = [
        path
        for folder in log_directories(trainer)
        for path in (folder / "checkpoints", folder, *folder.parents)
        if not path.exists()
    ]
    try:
        yield
    except BaseException:
        if trainer.is_global_zero:
            for folder in sorted(set(made), key=lambda path: len(path.parts), reverse=True):
                _remove_start(folder)
        raise


def _remove_start(folder: Path) -> None:
    left = {path for pattern in _LEFT_BY_A_START for path in folder.glob(pattern)}
    if folder.is_dir() and left == set(folder.iterdir()):
        for path in left:
            path.unlink()
        folder.rmdir()
