"""The directory of a run: its loggers, the checks before a start, and the clean-up after a failed one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from vlkd_pl.shards.addresses import is_address
from vlkd_pl.training.export import ExportModel
from vlkd_pl.training.logs import METRICS_FILE
from vlkd_pl.training.prediction_writer import PredictionWriter

RUN_DIR = "<run_dir>"
"""The ``save_dir`` of a default logger until the run's directory is known."""

_LEFTOVERS = ("config*.yaml", "hparams.yaml", "events.out.tfevents.*", "checkpoint.tmp")


def log_directories(trainer: pl.Trainer) -> list[Path]:
    """The local directories that a trainer's loggers write to; ``default_root_dir`` for a trainer without loggers."""
    folders = [logger.log_dir for logger in trainer.loggers if isinstance(logger, TensorBoardLogger | CSVLogger)]
    return [Path(path) for path in folders or [trainer.default_root_dir] if not is_address(str(path))]


def default_loggers(command: str) -> list[dict[str, Any]]:
    """The loggers of a command, as configurations that ``place_loggers`` completes.

    Args:
        command: ``fit``, which logs to TensorBoard and CSV, or another command, which logs to CSV.

    >>> [logger["class_path"] for logger in default_loggers("fit")]
    ['TensorBoardLogger', 'CSVLogger']
    """
    names = ("TensorBoardLogger", "CSVLogger") if command == "fit" else ("CSVLogger",)
    return [{"class_path": name, "init_args": {"save_dir": RUN_DIR, "name": "", "version": ""}} for name in names]


def place_loggers(loggers: Iterable[Any], run_dir: str, moves_all: bool) -> None:
    """Let TensorBoardLoggers and CSVLoggers write to a directory itself, without a folder for each version.

    Args:
        loggers: Configurations of loggers, with ``class_path`` and ``init_args``; those of other classes stay.
        run_dir: The directory.
        moves_all: Whether loggers that the user configured are moved as well, rather than the default ones alone, of
            which a configured name or version stays.
    """
    save_dir, name = os.path.split(run_dir.rstrip("/"))
    for logger in loggers:
        arguments: Any = getattr(logger, "init_args", None)
        if moves_all and names_file_logger(logger):
            arguments.save_dir, arguments.name, arguments.version = save_dir or ".", name, ""
        elif is_default_logger(logger):
            arguments.save_dir, arguments.name = save_dir or ".", arguments.name or name


def is_default_logger(logger: Any) -> bool:
    """Return whether the configuration of a logger is one of ``default_loggers``."""
    return names_file_logger(logger) and logger.init_args.get("save_dir") == RUN_DIR


def names_file_logger(logger: Any) -> bool:
    """Return whether a logger's configuration names a TensorBoardLogger or CSVLogger."""
    return getattr(logger, "class_path", "").rpartition(".")[2] in ("TensorBoardLogger", "CSVLogger")


def checkpoint_directories(trainer: pl.Trainer) -> list[Path]:
    """The directories that a trainer's ``ModelCheckpoint`` callbacks write to.

    All ranks must call it.
    """
    log_dir = trainer.log_dir or trainer.default_root_dir
    callbacks = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
    return [Path(callback.dirpath or Path(log_dir) / "checkpoints") for callback in callbacks]


def check_no_run(trainer: pl.Trainer) -> None:
    """Refuse to start a new run in a directory that holds another one.

    All ranks must call it. A directory holds a run if it has a checkpoint, a log of metrics or an exported model; the
    files of a start that failed before its first logged step do not count.

    Args:
        trainer: The trainer of the new run, whose callbacks and loggers name the directories.

    Raises:
        MisconfigurationException: A directory holds a run.
    """
    for path in _results(trainer):
        raise MisconfigurationException(
            f"{path} is of an earlier run, which is not overwritten: resume that run with --ckpt_path last, or start "
            "another in another directory with --run_dir DIR"
        )


def _results(trainer: pl.Trainer) -> Iterator[Path]:
    """Checkpoints, metrics and models where a trainer will write."""
    for folder in checkpoint_directories(trainer):
        yield from folder.glob("*.ckpt")
    for folder in log_directories(trainer):
        if (folder / METRICS_FILE).is_file():
            yield folder / METRICS_FILE
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, ExportModel) and (callback.folder(trainer) / "config.json").exists():
            yield callback.folder(trainer)


def check_writable(trainer: pl.Trainer) -> None:
    """Check that the directories that a trainer will write to can be created, without creating them.

    Raises:
        MisconfigurationException: A directory is a file, or its disk or parent cannot be written.
    """
    folders = [("trainer.logger", folder) for folder in log_directories(trainer)]
    folders += [("trainer.default_root_dir", Path(trainer.default_root_dir))]
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, ModelCheckpoint | ExportModel) and callback.dirpath is not None:
            folders.append((f"{type(callback).__name__}.dirpath", Path(callback.dirpath)))
        if isinstance(callback, PredictionWriter) and callback.path is not None:
            folders.append(("PredictionWriter.path", Path(callback.path).parent))
    for setting, folder in folders:
        if ":/" in str(folder):  # an address, of which a Path keeps one slash
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
    """Remove the directories that a start has created if it fails before it wrote any results."""
    created = [
        path
        for folder in log_directories(trainer)
        for path in (folder / "checkpoints", folder, *folder.parents)
        if not path.exists()
    ]
    try:
        yield
    except BaseException:
        if trainer.is_global_zero:
            for folder in sorted(set(created), key=lambda path: len(path.parts), reverse=True):
                _remove_start(folder)
        raise


def _remove_start(folder: Path) -> None:
    """Remove a folder that holds nothing but the files of a failed start."""
    leftovers = {path for pattern in _LEFTOVERS for path in folder.glob(pattern)}
    if folder.is_dir() and leftovers == set(folder.iterdir()):
        for path in leftovers:
            path.unlink()
        folder.rmdir()
