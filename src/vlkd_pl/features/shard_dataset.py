"""The samples of shards that a feature cache lacks, in their order."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from vlkd_pl.batch import ImageText, ShardBatch, ShardEnd
from vlkd_pl.clip.tokenizer import CLIPTokenizer
from vlkd_pl.data.workers import worker_init_fn
from vlkd_pl.features.cache import finished_file
from vlkd_pl.features.format import SUFFIX, FeatureSettings
from vlkd_pl.shards.decoder import PAIR_PARTS, SKIP_REASONS, SampleDecoder
from vlkd_pl.shards.reader import SHARD_ERRORS, KeepSample, ShardSample, shard_samples
from vlkd_pl.shards.subset import key_hash


def shard_names(shards: Sequence[str]) -> list[str]:
    """Name shards by their paths relative to the folder that all share, without ``.tar``.

    Raises:
        MisconfigurationException: If a shard is repeated.

    >>> shard_names(["data/a/0.tar", "data/b/0.tar"])
    ['a/0', 'b/0']
    """
    if len(set(shards)) < len(shards):
        repeated = next(shard for shard in shards if shards.count(shard) > 1)
        raise MisconfigurationException(f"data.shards: {repeated} is repeated: a cache holds each shard once")
    folder = os.path.commonpath([os.path.dirname(shard) or "." for shard in shards])
    return [os.path.relpath(shard, folder).removesuffix(".tar") for shard in shards]


class UncachedShards(IterableDataset[ShardBatch]):
    """Batches of the samples of shards; a batch holds samples of one shard, and one worker reads a shard.

    The content of a batch depends on its shard only, so that a cache is bitwise the same however it is made.

    Args:
        shards: Names and paths of the shards to read.
        decoder: Decodes samples.
        clip_tokenizer: Tokenizer of the CLIP.
        batch_size: Largest number of samples in a batch.
        keep: Selects the samples to use; None for all.
        rank: Number of this rank.
        world_size: Number of ranks, which share the shards.
    """

    def __init__(
        self,
        shards: Sequence[tuple[str, str]],
        decoder: SampleDecoder,
        clip_tokenizer: CLIPTokenizer,
        batch_size: int,
        keep: KeepSample | None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.shards = shards
        self.decoder = decoder
        self.clip_tokenizer = clip_tokenizer
        self.batch_size = batch_size
        self.keep = keep
        self.rank = rank
        self.world_size = world_size

    def __iter__(self) -> Iterator[ShardBatch]:
        info = get_worker_info()
        worker, num_workers = (info.id, info.num_workers) if info is not None else (0, 1)
        for name, path in self.shards[self.rank * num_workers + worker :: self.world_size * num_workers]:
            yield from self._batches(name, path)

    def _batches(self, name: str, path: str) -> Iterator[ShardBatch]:
        key_hashes: list[int] = []
        skipped = dict.fromkeys(SKIP_REASONS, 0)
        samples: list[ImageText] = []
        for shard_sample in self._samples(path, skipped):
            if "txt" in shard_sample.extensions:
                key_hashes.append(key_hash(shard_sample.raw["__key__"]))
            if not shard_sample.is_kept:
                continue
            sample = self.decoder.decode(shard_sample.raw)
            if isinstance(sample, str):
                skipped[sample] += 1
                continue
            if len(samples) == self.batch_size:
                yield self._batch(name, samples, None)
                samples = []
            samples.append(sample)
        yield self._batch(name, samples, ShardEnd(key_hashes, skipped))

    def _batch(self, name: str, samples: Sequence[ImageText], end: ShardEnd | None) -> ShardBatch:
        texts = [sample["text"] for sample in samples]
        images = [sample["image"] for sample in samples]
        return {
            "image": torch.stack(images) if images else torch.empty(0),
            "clip_text_ids": self.clip_tokenizer(texts) if texts else torch.empty(0, dtype=torch.int64),
            "texts": texts,
            "keys": [sample["key"] for sample in samples],
            "shard": name,
            "end": end,
        }

    def _samples(self, path: str, skipped: dict[str, int]) -> Iterator[ShardSample]:
        try:
            yield from shard_samples(path, self.keep, PAIR_PARTS)
        except SHARD_ERRORS:
            skipped["broken_tar"] += 1


class UncachedDataModule(pl.LightningDataModule):
    """Loads the samples of the shards that are not in a cache yet, for the prediction of ``FeatureModule``.

    Args:
        folder: Folder of the cache.
        settings: Settings that the cache is made with.
        shards: Paths of all shards.
        decoder: Decodes samples.
        clip_tokenizer: Tokenizer of the CLIP.
        batch_size: Largest number of samples in a batch.
        keep: Selects the samples to use; None for all.
        num_workers: Number of worker processes of each rank.
        check_content: Whether to read the finished files completely, to find damaged ones.

    Attributes:
        names: Names of all shards.
        missing: Names and paths of the shards that are not in the cache yet.
    """

    def __init__(
        self,
        folder: Path,
        settings: FeatureSettings,
        shards: Sequence[str],
        decoder: SampleDecoder,
        clip_tokenizer: CLIPTokenizer,
        batch_size: int,
        keep: KeepSample | None,
        num_workers: int = 0,
        check_content: bool = False,
    ) -> None:
        super().__init__()
        self.folder = folder
        self.settings = settings
        self.decoder = decoder
        self.clip_tokenizer = clip_tokenizer
        self.batch_size = batch_size
        self.keep = keep
        self.num_workers = num_workers
        self.names = shard_names(shards)
        self.missing = [
            (name, path)
            for name, path in zip(self.names, shards, strict=True)
            if finished_file(folder / f"{name}{SUFFIX}", settings, check_content) is None
        ]

    def setup(self, stage: str) -> None:
        """Remove damaged files, and let all ranks use the first rank's list of missing files.

        Another run may have finished a file since, and the lists must not differ.
        """
        assert self.trainer is not None
        if self.trainer.is_global_zero:
            for name, _ in self.missing:
                (self.folder / f"{name}{SUFFIX}").unlink(missing_ok=True)
        self.missing = self.trainer.strategy.broadcast(self.missing)

    def predict_dataloader(self) -> DataLoader[ShardBatch]:
        """Load this rank's share of the missing shards."""
        assert self.trainer is not None
        samples = UncachedShards(
            self.missing,
            self.decoder,
            self.clip_tokenizer,
            self.batch_size,
            self.keep,
            self.trainer.global_rank,
            self.trainer.world_size,
        )
        return DataLoader(
            samples,
            batch_size=None,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=worker_init_fn,
        )
