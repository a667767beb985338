"""Image-text pairs from shards: which samples are used, how far they have been read, and how many are bad."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from vlkd_pl.batch import StreamPosition
from vlkd_pl.data.collate import Collator
from vlkd_pl.data.stream import ShardStream, TextCorpus
from vlkd_pl.distributed import gather_objects
from vlkd_pl.shards.decoder import MAX_IMAGE_PIXELS, SampleDecoder, skip_summary
from vlkd_pl.shards.reader import KeepSample, find_shards, read_captions
from vlkd_pl.shards.subset import UniformSubset

_MIN_SEEN = 1000


@dataclass(frozen=True)
class ImageLimits:
    """Which images of the shards are trained on, and how they are decoded."""

    max_image_pixels: int = MAX_IMAGE_PIXELS
    """Largest number of pixels of an image; larger images are skipped."""
    skip_non_rgb: bool = True
    """Whether images of another mode than RGB are skipped; otherwise they are converted."""
    draft_decoding: bool = False
    """Whether JPEG images are decoded at a half, a quarter or an eighth of their size if that is still larger than
    CLIP's. Images of 1024 × 768 pixels are read about twice as fast, but the pixels differ from those of CLIP's
    preprocessing by half a level of 255 on average and by up to 20."""
    max_bad_share: float = 0.1
    """Share of bad samples, or of unreadable shards, above which training stops."""


class ShardSource:
    """Streams pairs from shards, and resumes the stream exactly.

    Args:
        patterns: Paths or addresses of the shards, with braces and wildcards; see ``find_shards``.
        decoder: Decodes the samples and counts the bad ones.
        subset_size: Number of samples of a uniform subset to use; all if None.
        shuffle_buffer: Number of raw samples that each worker holds to draw from.
        shuffle_buffer_bytes: Largest number of bytes of these samples.
        max_bad_share: Share of bad samples, or of unreadable shards, above which training stops.
        seed: Seed of the order.

    Attributes:
        shards: Paths of the shards, after ``open``.
        keep: Which samples belong to the subset; None for all.
        positions: Position of each worker of this rank after the last batch that was trained on.
        next_worker: Number of the worker that makes the next batch.
    """

    def __init__(
        self,
        patterns: str | list[str],
        decoder: SampleDecoder,
        subset_size: int | None,
        shuffle_buffer: int,
        shuffle_buffer_bytes: int,
        max_bad_share: float,
        seed: int,
    ) -> None:
        self.patterns = patterns
        self.decoder = decoder
        self.subset_size = subset_size
        self.shuffle_buffer = shuffle_buffer
        self.shuffle_buffer_bytes = shuffle_buffer_bytes
        self.max_bad_share = max_bad_share
        self.seed = seed
        self.shards: list[str] = []
        self.keep: KeepSample | None = None
        self.positions: dict[int, StreamPosition] = {}
        self.next_worker = 0
        self._world_size = 1
        self._stream: ShardStream | None = None

    def open(self, world_size: int) -> None:
        """Find the shards, and choose the subset.

        Args:
            world_size: Number of ranks.

        Raises:
            FileNotFoundError: If a shard does not exist.
            MisconfigurationException: If there are fewer shards than workers of all ranks, or fewer samples than the
                subset needs.
        """
        self._world_size = world_size
        self.shards = find_shards(self.patterns)
        num_workers = max(1, self.decoder.num_workers)
        if len(self.shards) < world_size * num_workers:
            raise MisconfigurationException(
                f"data.shards: {len(self.shards)} shards are too few for {world_size} processes × {num_workers} "
                f"workers, which need at least one each: lower data.num_workers to {len(self.shards) // world_size}, "
                "or write more and smaller shards"
            )
        if self.subset_size is not None:
            self.keep = UniformSubset(self.shards, self.subset_size)

    def stream(self, collator: Collator, batch_size: int, corpus: TextCorpus | None, rank: int) -> ShardStream:
        """Return the stream of training batches, from the first batch that has not been trained on.

        Args:
            collator: Makes batches.
            batch_size: Number of pairs in a batch.
            corpus: Texts without images to add to each batch; None for none.
            rank: Number of this rank.
        """
        self._stream = ShardStream(
            self.shards,
            self.decoder,
            collator,
            batch_size,
            self.shuffle_buffer,
            self.shuffle_buffer_bytes,
            self.keep,
            corpus,
            self.seed,
            rank,
            self._world_size,
            self.positions,  # as they are when an epoch begins
            self.next_worker,
        )
        return self._stream

    def record(self, position: StreamPosition) -> None:
        """Record the position of a batch that is trained on, and check the share of bad samples.

        Raises:
            MisconfigurationException: If more than ``max_bad_share`` of the samples, or of the shards, are bad.
        """
        self.positions[position.worker] = position
        self.next_worker = (position.worker + 1) % position.num_workers
        if self._stream is not None:
            self._stream.first_worker = self.next_worker
        skipped, num_seen = self.decoder.skipped, self.decoder.num_seen
        num_bad = sum(skipped.values()) - skipped["broken_tar"]
        bad_share = num_bad / num_seen if num_seen >= _MIN_SEEN else 0.0
        num_passes = 1 + max(position.epoch for position in self.positions.values())
        unreadable_share = skipped["broken_tar"] / (len(self.shards) / self._world_size * num_passes)
        if max(bad_share, unreadable_share) > self.max_bad_share:
            raise MisconfigurationException(
                f"data.shards: too much is bad, {num_bad} of {num_seen} samples and {skipped['broken_tar']} shards "
                f"({skipped}): repair the shards, or raise data.image_limits.max_bad_share from {self.max_bad_share}"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the positions of all ranks; all ranks must call it."""
        positions = {worker: tuple(position) for worker, position in self.positions.items()}
        return {"positions": gather_objects([positions]), "next_worker": self.next_worker}

    def load_state_dict(self, state_dict: dict[str, Any], rank: int, world_size: int) -> None:
        """Resume from the positions of a checkpoint; with another number of ranks or workers, from the next pass.

        Args:
            state_dict: State of a checkpoint.
            rank: Number of this rank.
            world_size: Number of ranks.
        """
        of_ranks = [
            {worker: StreamPosition(*position) for worker, position in positions.items()}
            for positions in state_dict["positions"]
        ]
        num_workers = max(1, self.decoder.num_workers)
        positions = [position for of_rank in of_ranks for position in of_rank.values()]
        if len(of_ranks) == world_size and all(position.num_workers == num_workers for position in positions):
            self.positions = of_ranks[rank]
            self.next_worker = state_dict.get("next_worker", 0)
            for worker, position in self.positions.items():
                if position.counts:
                    self.decoder.counts[worker] = torch.tensor(position.counts)
        elif positions:
            epoch = max(position.epoch for position in positions) + 1
            warnings.warn(
                f"the checkpoint was written with another number of ranks or workers: the data resume at pass {epoch}",
                stacklevel=2,
            )
            self.positions = {worker: StreamPosition(worker, num_workers, epoch, 0) for worker in range(num_workers)}

    def captions(self, num: int) -> list[str]:
        """Return the first captions of the shards, the same on every rank."""
        return read_captions(self.shards, num, self.keep)

    def report(self) -> str:
        """Summarize in one line what all ranks have read and skipped; all ranks must call it."""
        num_seen = sum(gather_objects([self.decoder.num_seen]))
        of_ranks = gather_objects([self.decoder.skipped])
        totals = {reason: sum(skipped[reason] for skipped in of_ranks) for reason in self.decoder.skipped}
        num_retries = sum(gather_objects([self.decoder.num_retries]))
        retries = f"; {num_retries} reads tried again" if num_retries else ""
        return f"data: {num_seen} samples read, skipped: {skip_summary(totals)}{retries}"
