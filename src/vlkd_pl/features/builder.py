"""Building a feature cache in Lightning's predict loop: its size, its files, and waiting for other ranks."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from vlkd_pl.batch import ShardBatch
from vlkd_pl.features.format import SUFFIX, FeatureSettings, FeatureWriter
from vlkd_pl.features.module import Features
from vlkd_pl.shards.subset import text_keys

Progress = Callable[[str, int, int], None]
"""Reports what is done, how many of it are done, and how many there are."""

_NUM_COUNTED = 3
_POLL_SECONDS = 0.5
_PATIENCE_SECONDS = 6 * 3600.0
_TEXT_BYTES = 80  # approximately, of a caption and its key


class CacheWriter(pl.Callback):
    """Writes the features of each shard to its file.

    Args:
        folder: Folder of the cache.
        settings: Settings that the cache is made with.
        progress: Context manager of a progress bar on the first rank, which receives the number of files that all ranks
            have finished; None for no bar.
    """

    def __init__(
        self, folder: Path, settings: FeatureSettings, progress: AbstractContextManager[Progress] | None = None
    ) -> None:
        self.folder = folder
        self.settings = settings
        self.progress = progress
        self._missing: list[Path] = []
        self._num_files = 0
        self._bar = ExitStack()
        self._show: Progress | None = None
        self._writers: dict[str, FeatureWriter] = {}

    def on_predict_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """List the files that all ranks write, and show the progress bar."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        self._missing = [self.folder / f"{name}{SUFFIX}" for name, _ in data.missing]
        self._num_files = len(self._missing)
        if self.progress is not None and trainer.is_global_zero:
            self._show = self._bar.enter_context(self.progress)
            self._update()

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        outputs: Features,
        batch: ShardBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write a batch, and finish the file of a shard after its last batch.

        Raises:
            MisconfigurationException: If the file cannot be written, as when the disk is full.
        """
        shard = batch["shard"]
        try:
            if shard not in self._writers:
                self._writers[shard] = FeatureWriter(self.folder / f"{shard}{SUFFIX}", self.settings)
            self._writers[shard].append(*outputs, batch["texts"], batch["keys"])
            if batch["end"] is not None:
                self._writers.pop(shard).finish(batch["end"])
                self._update()
        except OSError as error:
            raise MisconfigurationException(
                f"{self.folder} cannot be written ({error}): make room there; the same command then resumes"
            ) from error

    def on_predict_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Wait for the files of all ranks, before the first rank writes the index.

        A barrier of the ranks would time out after half an hour, but one rank may need that much longer than another.

        Raises:
            MisconfigurationException: If no further file has been finished for hours.
        """
        changed = time.monotonic()
        while self._missing:
            if self._update():
                changed = time.monotonic()
            elif time.monotonic() - changed > _PATIENCE_SECONDS:
                raise MisconfigurationException(
                    f"{len(self._missing)} files are missing in {self.folder}, first {self._missing[0].name}, and none "
                    "has been finished for hours: all machines must see the same folder; if another process has ended, "
                    "the same command resumes"
                )
            else:
                time.sleep(_POLL_SECONDS)
        self._bar.close()

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        """Remove the progress bar."""
        self._bar.close()

    def _update(self) -> bool:
        """Look for finished files; return whether there are further ones."""
        num_missing = len(self._missing)
        self._missing = [path for path in self._missing if not path.exists()]
        if self._show is not None:
            self._show("encoded", self._num_files - len(self._missing), self._num_files)
        return len(self._missing) < num_missing


def estimate_size(
    folder: Path,
    shards: Sequence[str],
    num_missing: int,
    subset_size: int | None,
    settings: FeatureSettings,
    num_tokens: int,
    embedding_dim: int,
) -> str:
    """Estimate the size of a cache from a few shards, and check that the disk has room for it.

    Args:
        folder: Folder of the cache, which is created.
        shards: Paths of all shards.
        num_missing: Number of the shards that are not in the cache yet.
        subset_size: Number of samples of the uniform subset that is cached; None for all.
        settings: Settings that the cache is made with.
        num_tokens: Number of image tokens of a sample.
        embedding_dim: Dimension of CLIP's embeddings.

    Returns:
        A line that states the number of samples, their size, and the room on the disk.

    Raises:
        MisconfigurationException: If the disk has too little room.
    """
    sample_bytes = settings.num_bytes(num_tokens, embedding_dim) + _TEXT_BYTES
    counted = shards[:: max(1, len(shards) // _NUM_COUNTED)][:_NUM_COUNTED]
    num_samples = sum(1 for path in counted for _ in text_keys(path)) * len(shards) // len(counted)
    num_samples = min(num_samples, subset_size or num_samples) * num_missing // len(shards)
    size = num_samples * sample_bytes
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    estimate = (
        f"about {num_samples:,} samples of {sample_bytes / 1e3:.1f} KB in {num_missing} of {len(shards)} shards are to "
        f"be encoded: {size / 1e9:.2f} GB, and {folder} has room for {free / 1e9:.2f} GB"
    )
    if size > free:
        raise MisconfigurationException(f"{estimate}: give another --output, or --dtype int8")
    return estimate
