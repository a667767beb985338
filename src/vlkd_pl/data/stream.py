"""The stream of training batches from shards, and the texts that are added to them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch.utils.data import IterableDataset, get_worker_info
from transformers import PreTrainedTokenizerBase

from vlkd_pl.batch import ImageText, ImageTextBatch, StreamPosition
from vlkd_pl.clip.tokenizer import CLIPTokenizer
from vlkd_pl.data.collate import Collator
from vlkd_pl.data.infilling import Masking, TextInfilling
from vlkd_pl.models.prompts import passage_caption
from vlkd_pl.shards.decoder import PAIR_PARTS, RawSample, SampleDecoder
from vlkd_pl.shards.reader import SHARD_ERRORS, KeepSample, read_shard
from vlkd_pl.text_files import iter_lines


@dataclass(frozen=True)
class TextCorpusFile:
    """A file of texts without images, to which infilling is applied next to that of the captions.

    Raises:
        MisconfigurationException: A number of passages is below 0, or both are 0.

    Example:
        >>> TextCorpusFile("corpus.txt", batch_size=0, text_as_image=16).answer_mask_share
        0.0
    """

    path: str
    """Path of a text file with one passage per line; it is held in memory. A tab may separate a passage from a question
    about it with its answer: "a red fish in the snow.<tab>what color is the fish? Answer: red."."""
    batch_size: int = 32
    """Number of passages that are added to each batch of pairs, from 0; a tab in them is read as a space."""
    mask_share: float | list[float] | None = None
    """Share of the tokens that is masked, in [0, 1], or a list of shares of which each passage draws one; that of the
    captions if None."""
    answer_mask_share: float = 0.0
    """Of the passages that end in " Answer: x.", the share in which x alone is masked, by one mask."""
    text_as_image: int = 0
    """Number of lines with a tab that are added to each batch of pairs for text as image, an extension beyond the
    paper; 0 for none. CLIP's embedding of the passage takes the place of an image's, and what follows the tab is
    reconstructed from both. Where it ends in " Answer: x.", x alone is masked, otherwise all of it."""

    def __post_init__(self) -> None:
        for name, value in (("batch_size", self.batch_size), ("text_as_image", self.text_as_image)):
            if value < 0:
                raise MisconfigurationException(f"data.text_corpus.{name} is {value}: give 0 or more")
        if self.batch_size == self.text_as_image == 0:
            raise MisconfigurationException(
                "data.text_corpus.batch_size and text_as_image are both 0: give 1 or more of one, or text_corpus: null"
            )


class TextCorpus:
    """Texts without images that are drawn at random for each batch of pairs.

    Args:
        file: File of the passages, and how many of them are added to each batch.
        infilling: Corrupts the passages.
        question_infilling: Corrupts what follows the tab of a line.
        clip_tokenizer: Tokenizer of the CLIP that embeds what precedes the tab.

    Raises:
        FileNotFoundError: If the file does not exist.
        MisconfigurationException: If the file is empty or not UTF-8; or, for text as image, no line has a tab, or a
            line has several or nothing on a side of it.
    """

    def __init__(
        self,
        file: TextCorpusFile,
        infilling: TextInfilling,
        question_infilling: TextInfilling,
        clip_tokenizer: CLIPTokenizer,
    ) -> None:
        path = file.path
        if not Path(path).is_file():
            raise FileNotFoundError(f"data.text_corpus.path: there is no text file at {path}")
        numbered = [(number, line) for number, line in enumerate(iter_lines(path), start=1) if line.strip()]
        if not numbered:
            raise MisconfigurationException(f"data.text_corpus.path: {path} is empty")
        self.lines = [line for _, line in numbered]
        self.with_passage = np.empty(0, dtype=np.int64)
        if file.text_as_image:
            self.with_passage = _lines_with_passage(numbered, path)
        self.infilling = infilling
        self.question_infilling = question_infilling
        self.clip_tokenizer = clip_tokenizer
        self.batch_size = file.batch_size
        self.num_as_image = file.text_as_image

    @classmethod
    def open(
        cls,
        file: TextCorpusFile,
        tokenizer: PreTrainedTokenizerBase,
        clip_tokenizer: CLIPTokenizer,
        masking: Masking,
    ) -> TextCorpus:
        """Read a corpus, whose passages are corrupted as the captions where its file does not say otherwise.

        Args:
            file: File of the passages.
            tokenizer: Tokenizer of the BART.
            clip_tokenizer: Tokenizer of the CLIP.
            masking: How the captions are corrupted.
        """
        mask_share = masking.mask_share if file.mask_share is None else file.mask_share
        infilling, question_infilling = (
            TextInfilling(tokenizer, share, masking.mean_span_length, answer_share, masking.max_text_length)
            # what follows a tab is all to be read from the passage's embedding
            for share, answer_share in ((mask_share, file.answer_mask_share), (1.0, 1.0))
        )
        return cls(file, infilling, question_infilling, clip_tokenizer)

    def add_to(self, batch: ImageTextBatch, rng: np.random.Generator) -> None:
        """Draw and corrupt passages, and add them to a batch of pairs."""
        if self.batch_size:
            drawn = rng.integers(len(self.lines), size=self.batch_size)
            texts = [self.lines[index].replace("\t", " ") for index in drawn]
            batch["text_infilling"] = self.infilling(texts, [rng] * len(texts))
        if self.num_as_image:
            drawn = self.with_passage[rng.integers(len(self.with_passage), size=self.num_as_image)]
            pairs = [self.lines[index].split("\t") for index in drawn]
            corrupted = self.question_infilling([question.strip() for _, question in pairs], [rng] * len(pairs))
            clip_text_ids = self.clip_tokenizer([passage_caption(passage) for passage, _ in pairs])
            batch["text_as_image"] = {**corrupted, "clip_text_ids": clip_text_ids}


def _lines_with_passage(numbered: Sequence[tuple[int, str]], path: str) -> NDArray[np.int64]:
    """The indices of the lines with a passage, a tab and what is asked about it."""
    indices, bad = [], []
    for index, (number, line) in enumerate(numbered):
        sides = line.split("\t")
        if len(sides) > 2 or not all(side.strip() for side in sides):
            bad.append((number, line))
        elif len(sides) == 2:
            indices.append(index)
    if bad:
        number, line = bad[0]
        raise MisconfigurationException(
            f"data.text_corpus.path: {len(bad)} of {len(numbered)} lines of {path} have several tabs, or nothing "
            f"before or after one; the first is line {number}, {line[:60]!r}: repair them, or set text_as_image to 0"
        )
    if not indices:
        raise MisconfigurationException(
            f"data.text_corpus.text_as_image: no line of {path} has a tab between a passage and a question about it: "
            "add such lines, or set it to 0"
        )
    return np.array(indices, dtype=np.int64)


class ShardStream(IterableDataset[ImageTextBatch]):
    """An endless stream of batches: pass after pass over the shards, each in another order.

    What a worker yields is a function of the seed, its number and the number of workers of all ranks, so that it can
    resume exactly from a ``StreamPosition``. A ``DataLoader`` requests a batch from each worker in turn, beginning with
    the first; a resumed run renumbers the workers to begin with the one whose turn it is.

    Args:
        shards: Paths of all shards.
        decoder: Decodes samples and counts the bad ones.
        collator: Makes batches.
        batch_size: Number of pairs in a batch.
        shuffle_buffer: Number of raw samples that a worker holds to draw from.
        shuffle_buffer_bytes: Largest number of bytes of these samples; with large samples the buffer holds fewer.
        keep: Selects the samples to use; None for all.
        corpus: Texts without images to add to each batch; None for none.
        seed: Seed of the order.
        rank: Number of this rank.
        world_size: Number of ranks.
        start: Position of each worker to resume from.
        first_worker: Number of the worker that makes the first batch.
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
                        self.corpus.add_to(batch, np.random.default_rng((self.seed, epoch, part, index)))
                    yield batch
                    samples = []
            if num_good == 0 and num_skip == 0:
                raise MisconfigurationException(
                    f"data.shards: a whole pass over {len(self.shards[part::num_parts])} shards gave no usable sample "
                    f"({self.decoder.skipped}): check the files, or lower data.num_workers"
                )
            epoch, num_skip = epoch + 1, 0

    def _shuffled(self, epoch: int, part: int, num_parts: int, worker: int) -> Iterator[RawSample]:
        """Yield the raw samples of one pass over a part of the shards, drawn from a buffer."""
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
