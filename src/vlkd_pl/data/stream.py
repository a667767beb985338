"""The stream of training batches: what to read next, and beside which texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch.utils.data import IterableDataset, get_worker_info

from vlkd_pl.batch import ImageText, ImageTextBatch, InfillingBatch, StreamPosition
from vlkd_pl.data.collate import Collator
from vlkd_pl.data.infilling import TextInfilling
from vlkd_pl.shards.decoder import PAIR_PARTS, RawSample, SampleDecoder
from vlkd_pl.shards.reader import SHARD_ERRORS, KeepSample, read_shard
from vlkd_pl.text_files import iter_lines


class TextCorpus:
    """Texts without images, drawn to stand beside a batch of pairs.

    Args:
        path: A text file, one passage a line; it is held in memory.
        infilling: Corrupts the passages.
        batch_size: Passages for each batch.

    Raises:
        FileNotFoundError: There is no such file.
        MisconfigurationException: It has no line, or is no text in UTF-8.
    """

    def __init__(self, path: str, infilling: TextInfilling, batch_size: int) -> None:
        if not Path(path).is_file():
            raise FileNotFoundError(f"data.text_corpus: there is no text file at {path}")
        self.lines = [line for line in iter_lines(path) if line.strip()]
        if not self.lines:
            raise MisconfigurationException(f"data.text_corpus: {path} is empty")
        self.infilling = infilling
        self.batch_size = batch_size

    def draw(self, rng: np.random.Generator) -> InfillingBatch:
        """Draws and corrupts passages."""
        texts = [self.lines[index] for index in rng.integers(len(self.lines), size=self.batch_size)]
        return self.infilling(texts, [rng] * len(texts))


class ShardStream(IterableDataset[ImageTextBatch]):
    """Batches without end: pass after pass over the shards, shuffled anew each time.

    What a worker yields is a function of the seed, its number and the number of workers of all ranks; from any
    ``StreamPosition`` it goes on exactly as it would have. A ``DataLoader`` takes a batch from each worker in turn,
    from the first on: the workers are renumbered for a resumed run to go on with the one whose turn it is.

    Args:
        shards: All shards.
        decoder: Makes samples, and counts the bad ones.
        collator: Makes batches.
        batch_size: Pairs in a batch.
        shuffle_buffer: Raw samples that a worker holds to draw from.
        shuffle_buffer_bytes: Bytes of these samples at most; the buffer holds fewer samples where they are large.
        keep: Which samples to take; None for all.
        corpus: Texts to put beside the pairs.
        seed: Decides the order.
        rank: Number of this process.
        world_size: Processes.
        start: Where each worker begins.
        first_worker: Which worker's turn it is.
    """

    def __init__(
        self,
        shards: Sequence[str],
        decoder: SampleDecoder,
        collator: Collator,
        batch_size: int,
        shuffle_buffer: int,
        shuffle_buffer_bytes: int,
        keep: KeepSample | None,
        corpus: TextCorpus | None,
        seed: int,
        rank: int,
        world_size: int,
        start: dict[int, StreamPosition],
        first_worker: int = 0,
    ) -> None:
        self.shards = shards
        self.decoder = decoder
        self.collator = collator
        self.batch_size = batch_size
        self.shuffle_buffer = shuffle_buffer
        self.shuffle_buffer_bytes = shuffle_buffer_bytes
        self.keep = keep
        self.corpus = corpus
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.start = start
        self.first_worker = first_worker

    def __iter__(self) -> Iterator[ImageTextBatch]:
        info = get_worker_info()
        number, num_workers = (info.id, info.num_workers) if info is not None else (0, 1)
        worker = (number + self.first_worker) % num_workers
        part, num_parts = self.rank * num_workers + worker, self.world_size * num_workers
        start = self.start.get(worker, StreamPosition(worker, num_workers, 0, 0))
        epoch, num_skip = start.epoch, start.num_samples
        samples: list[ImageText] = []
        while True:
            num_good = 0
            for index, raw in enumerate(self._shuffled(epoch, part, num_parts, worker)):
                if index < num_skip:
                    if index + 1 == num_skip and start.counts:  # reading up to here has counted anew
                        self.decoder.counts[worker] = torch.tensor(start.counts)
                    continue
                sample = self.decoder(raw, worker)
                if sample is None:
                    continue
                num_good += 1
                samples.append({**sample, "key": f"{epoch}/{sample['key']}"})
                if len(samples) == self.batch_size:
                    batch = self.collator(samples)
                    counts = tuple(self.decoder.counts[worker].tolist())
                    batch["stream_position"] = StreamPosition(worker, num_workers, epoch, index + 1, counts)
                    if self.corpus is not None:
                        rng = np.random.default_rng((self.seed, epoch, part, index))
                        batch["text_infilling"] = self.corpus.draw(rng)
                    yield batch
                    samples = []
            if num_good == 0 and num_skip == 0:
                raise MisconfigurationException(
                    f"data.shards: a whole pass over {len(self.shards[part::num_parts])} shards gave no usable sample "
                    f"({self.decoder.skipped}): check the files, or lower data.num_workers"
                )
            epoch, num_skip = epoch + 1, 0

    def _shuffled(self, epoch: int, part: int, num_parts: int, worker: int) -> Iterator[RawSample]:
        """The raw samples of one pass over this part's shards, drawn from a buffer."""
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.shards))
        rng = np.random.default_rng((self.seed, epoch, part))
        buffer: list[RawSample] = []
        num_bytes = 0
        for shard in order[part::num_parts]:
            for raw in self._kept(self.shards[shard], worker):
                buffer.append(raw)
                num_bytes += _num_bytes(raw)
                num_choices = max(1, len(buffer) - 1)  # all but the newest, which takes the place of the one drawn
                while len(buffer) > self.shuffle_buffer or num_bytes > self.shuffle_buffer_bytes:
                    drawn = int(rng.integers(num_choices))
                    buffer[drawn], buffer[-1] = buffer[-1], buffer[drawn]
                    num_bytes -= _num_bytes(buffer[-1])
                    yield buffer.pop()
                    num_choices = len(buffer)
        for drawn in rng.permutation(len(buffer)):
            yield buffer[drawn]

    def _kept(self, path: str, worker: int) -> Iterator[RawSample]:
        try:
            yield from read_shard(path, self.keep, PAIR_PARTS, on_retry=lambda: self.decoder.count("retries", worker))
        except SHARD_ERRORS:
            self.decoder.count("broken_tar", worker)


def _num_bytes(raw: RawSample) -> int:
    return sum(map(len, raw.values()))
