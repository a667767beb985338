"""CC3M, or any image-text pairs, streamed from webdataset shards or read from cached features."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader

from vlkd_pl.batch import EvaluationBatch, ImageTextBatch, StreamPosition
from vlkd_pl.clip.tokenizer import load_clip_tokenizer
from vlkd_pl.clip.transform import clip_transform
from vlkd_pl.clip.weights import clip_image_size
from vlkd_pl.data.coco_files import COCOCaptions
from vlkd_pl.data.collate import Collator
from vlkd_pl.data.image_files import check_readable
from vlkd_pl.data.infilling import TextInfilling
from vlkd_pl.data.stream import ShardStream, TextCorpus
from vlkd_pl.data.workers import worker_init_fn
from vlkd_pl.datamodules.base import BaseDataModule
from vlkd_pl.distributed import gather_objects
from vlkd_pl.features.cache import FeatureCache
from vlkd_pl.features.dataset import CachedPairs, ready
from vlkd_pl.features.remote_copy import default_copy, fetch_cache
from vlkd_pl.models.bart import load_bart_tokenizer
from vlkd_pl.shards.addresses import is_address
from vlkd_pl.shards.decoder import MAX_IMAGE_PIXELS, SampleDecoder, skip_summary
from vlkd_pl.shards.reader import KeepSample, find_shards, read_captions
from vlkd_pl.shards.subset import UniformSubset

_MIN_SEEN = 1000


class CC3MDataModule(BaseDataModule):
    """Streams image-text pairs for distillation (Section 3.3) and reads COCO-format captions for evaluation.

    From a cache of ``vlkd-pl cache`` the pairs come in an order over the whole data set, each epoch another; a pass
    over the shards is drawn from a buffer.

    Args:
        shards: Tar files of ``key.jpg`` and ``key.txt`` as img2dataset writes them, on local disks or at addresses of
            S3, GCS or HTTP; braces and wildcards are expanded, see ``find_shards``.
        clip: CLIP's name, file or folder, for its tokenizer and image size.
        bart: BART's name or folder, for its tokenizer.
        batch_size: Pairs in a batch of one process.
        num_workers: Worker processes of one process.
        shuffle_buffer: Raw samples that each worker holds to draw from.
        seed: Decides order and corruption.
        subset_size: Samples of a uniform subset, the same on every run: 1,000,000 or 100,000 for Table 9.
        image_size: Width and height of an image in pixels; CLIP's own by default.
        max_text_length: Most BART tokens of a text.
        mask_share: Share of masked tokens; of several, each text draws one.
        mean_span_length: λ of the span lengths.
        max_image_pixels: Images with more are skipped.
        skip_non_rgb: Whether images of another mode than RGB are skipped or converted.
        draft_decoding: Whether training images in JPEG are decoded at a half, a quarter or an eighth of their size
            where they are so much larger than CLIP takes them. Of 1024 × 768 pixels it reads about twice as many a
            second, but the pixels are no longer CLIP's own: off by half a level of 255 in the mean, and by up to 20.
        max_bad_share: Share of bad samples, or of broken shards, above which training stops.
        text_corpus: Text file, one passage a line, for infilling without images beside the pairs; not in the paper.
        text_batch_size: Passages for each batch.
        text_mask_share: Their share of masked tokens; ``mask_share`` by default.
        answer_mask_share: Of the passages that end in " Answer: x.", the share in which just x is masked.
        val_images: Folder of validation images.
        val_captions: Their captions, a file of COCO's format.
        test_images: Folder of test images.
        test_captions: Their captions.
        eval_batch_size: Images in an evaluation batch of one process.
        num_eval_samples: Images to evaluate on, the first of the file; all by default.
        features: Folder of CLIP's features, made with ``vlkd-pl cache``, to train on in place of the images; the
            shards are then not read, and need not be there. Of a folder on S3, GCS or HTTP each machine makes a copy
            before training; files that are there already are not copied again.
        features_copy: Local folder for that copy; one in ``~/.cache/vlkd_pl/features`` by default.
        shuffle_buffer_bytes: Bytes of the raw samples in the buffer of each worker at most: of large samples it holds
            fewer than ``shuffle_buffer``.

    Raises:
        FileNotFoundError: BART's tokenizer cannot be found.
        MisconfigurationException: CLIP's image size is unknown, or ``batch_size`` is below 1.
    """

    def __init__(
        self,
        shards: str | list[str],
        clip: str,
        bart: str,
        batch_size: int,
        num_workers: int = 4,
        shuffle_buffer: int = 1000,
        seed: int = 0,
        subset_size: int | None = None,
        image_size: int | None = None,
        max_text_length: int = 64,
        mask_share: float | list[float] = 0.15,
        mean_span_length: float = 3.0,
        max_image_pixels: int = MAX_IMAGE_PIXELS,
        skip_non_rgb: bool = True,
        draft_decoding: bool = False,
        max_bad_share: float = 0.1,
        text_corpus: str | None = None,
        text_batch_size: int = 32,
        text_mask_share: float | list[float] | None = None,
        answer_mask_share: float = 0.0,
        val_images: str | None = None,
        val_captions: str | None = None,
        test_images: str | None = None,
        test_captions: str | None = None,
        eval_batch_size: int = 50,
        num_eval_samples: int | None = None,
        features: str | None = None,
        features_copy: str | None = None,
        shuffle_buffer_bytes: int = 1 << 30,
    ) -> None:
        super().__init__(num_workers, seed)
        if batch_size < 1:
            raise MisconfigurationException(f"data.batch_size is {batch_size}: give at least 1")
        self.shard_patterns = shards
        self.batch_size = batch_size
        self.shuffle_buffer = shuffle_buffer
        self.shuffle_buffer_bytes = shuffle_buffer_bytes
        self.subset_size = subset_size
        self.max_bad_share = max_bad_share
        self.text_corpus = text_corpus
        self.text_batch_size = text_batch_size
        self.eval_files = {"validate": (val_captions, val_images), "test": (test_captions, test_images)}
        self.eval_batch_size = eval_batch_size
        self.num_eval_samples = num_eval_samples
        self.features = features
        self.features_copy = features_copy
        self.image_size = image_size or clip_image_size(clip)
        self.transform = clip_transform(self.image_size)
        self.clip_tokenizer = load_clip_tokenizer(clip)
        tokenizer = load_bart_tokenizer(bart)
        self.collator = Collator(
            self.clip_tokenizer,
            TextInfilling(tokenizer, mask_share, mean_span_length, max_length=max_text_length),
            seed,
        )
        self.text_infilling = TextInfilling(
            tokenizer,
            mask_share if text_mask_share is None else text_mask_share,
            mean_span_length,
            answer_mask_share,
            max_text_length,
        )
        self.decoder = SampleDecoder(
            self.transform, max_image_pixels, skip_non_rgb, num_workers, self.image_size if draft_decoding else None
        )
        self.shards: list[str] = []
        self.keep: KeepSample | None = None
        self.corpus: TextCorpus | None = None
        self.cache: FeatureCache | None = None
        self._cached_samples: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self.evaluation: dict[str, COCOCaptions] = {}
        self._positions: dict[int, StreamPosition] = {}
        self._next_worker = 0
        self._stream: ShardStream | None = None

    def prepare_data(self) -> None:
        """Copies cached features from an address; called once on each machine.

        Raises:
            FileNotFoundError: There is no finished cache.
            MisconfigurationException: It cannot be copied.
        """
        if self._is_copied and (self.trainer is None or self.trainer.state.fn == TrainerFn.FITTING):
            fetch_cache(str(self.features), self._features_folder)

    def setup(self, stage: str) -> None:
        """Looks at every file before anything is trained.

        Raises:
            FileNotFoundError: A shard, caption file, image or text file is missing.
            MisconfigurationException: There are fewer shards than workers of all ranks, a file is of another format, an
                image to evaluate on cannot be read, or cached features are damaged or were made in another way.
        """
        if stage == "fit":
            self.decoder.reset_counts()
            if self.features is not None:
                self._open_cache(self._features_folder)
            else:
                self._find_shards()
            if self.text_corpus is not None:
                self.corpus = TextCorpus(self.text_corpus, self.text_infilling, self.text_batch_size)
        for name, (captions, images) in self.eval_files.items():
            if (name == stage or (name == "validate" and stage == "fit")) and captions is not None:
                dataset = COCOCaptions(captions, images or "", self.transform, self.num_eval_samples)
                check_readable((sample.file for sample in dataset.samples), self.num_workers)
                self.evaluation[name] = dataset

    def train_dataloader(self) -> DataLoader[ImageTextBatch]:
        """A stream without end, or the epochs of cached features; a resumed run goes on where it was."""
        if self.cache is not None:
            return self._cached_dataloader(self.cache)
        rank = self.trainer.global_rank if self.trainer is not None else 0
        self._stream = ShardStream(
            self.shards,
            self.decoder,
            self.collator,
            self.batch_size,
            self.shuffle_buffer,
            self.shuffle_buffer_bytes,
            self.keep,
            self.corpus,
            self.seed,
            rank,
            self._world_size,
            self._positions,  # as they are when an epoch begins
            self._next_worker,
        )
        return DataLoader(
            self._stream,
            batch_size=None,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=worker_init_fn,
        )

    def val_dataloader(self) -> DataLoader[EvaluationBatch] | list[Any]:
        """The validation images, in order; none where no files were given."""
        return self._eval_dataloader("validate")

    def test_dataloader(self) -> DataLoader[EvaluationBatch]:
        """The test images, in order.

        Raises:
            MisconfigurationException: No files were given.
        """
        loader = self._eval_dataloader("test")
        if isinstance(loader, list):
            raise MisconfigurationException("there is nothing to test on: give data.test_captions and data.test_images")
        return loader

    def training_captions(self, num: int) -> list[str]:
        """The first captions of the shards, the same on every rank."""
        if self.cache is not None:
            return self.cache.captions(self._cached_samples[:num])
        return read_captions(self.shards, num, self.keep)

    @property
    def skipped(self) -> dict[str, int]:
        """How many samples this rank has skipped for each reason."""
        return self.decoder.skipped

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Notes the position of a training batch when it is used, not when it was read ahead.

        Raises:
            MisconfigurationException: More than ``max_bad_share`` of the samples, or of the shards, are bad.
        """
        if "stream_position" in batch:
            position = StreamPosition(*batch.pop("stream_position"))
            self._positions[position.worker] = position
            self._next_worker = (position.worker + 1) % position.num_workers
            if self._stream is not None:
                self._stream.first_worker = self._next_worker
            self._check_bad_share()
        return super().on_before_batch_transfer(batch, dataloader_idx)

    def state_dict(self) -> dict[str, Any]:
        """The stream's position on every rank; to be called on all ranks."""
        positions = {worker: tuple(position) for worker, position in self._positions.items()}
        return {
            **super().state_dict(),
            "positions": gather_objects([positions]),
            "next_worker": self._next_worker,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from the position of a checkpoint; with another number of ranks or workers, at the next pass."""
        super().load_state_dict(state_dict)
        of_ranks = [
            {worker: StreamPosition(*position) for worker, position in positions.items()}
            for positions in state_dict["positions"]
        ]
        num_workers = max(1, self.num_workers)
        known = [position for positions in of_ranks for position in positions.values()]
        if len(of_ranks) == self._world_size and all(position.num_workers == num_workers for position in known):
            rank = self.trainer.global_rank if self.trainer is not None else 0
            self._positions = of_ranks[rank]
            self._next_worker = state_dict.get("next_worker", 0)
            for worker, position in self._positions.items():
                if position.counts:
                    self.decoder.counts[worker] = torch.tensor(position.counts)
        elif known:
            epoch = max(position.epoch for position in known) + 1
            warnings.warn(
                f"the checkpoint was written with other numbers of ranks or workers: the data go on at pass {epoch}",
                stacklevel=2,
            )
            self._positions = {worker: StreamPosition(worker, num_workers, epoch, 0) for worker in range(num_workers)}

    def report(self) -> str:
        """One line on what all ranks have read and skipped; to be called on all ranks."""
        if self.cache is not None:
            return f"data: {len(self.cache)} samples in {self.features}; {self.cache.losses}"
        num_seen = sum(gather_objects([self.decoder.num_seen]))
        of_ranks = gather_objects([self.skipped])
        totals = {reason: sum(skipped[reason] for skipped in of_ranks) for reason in self.skipped}
        num_retries = sum(gather_objects([self.decoder.num_retries]))
        retried = f"; {num_retries} reads tried again" if num_retries else ""
        return f"data: {num_seen} samples read, skipped: {skip_summary(totals)}{retried}"

    @property
    def _world_size(self) -> int:
        return self.trainer.world_size if self.trainer is not None else 1

    @property
    def _is_copied(self) -> bool:
        return self.features is not None and is_address(self.features)

    @property
    def _features_folder(self) -> Path:
        features = str(self.features)
        if not self._is_copied:
            return Path(features)
        return default_copy(features) if self.features_copy is None else Path(self.features_copy)

    def _find_shards(self) -> None:
        self.shards = find_shards(self.shard_patterns)
        num_parts = self._world_size * max(1, self.num_workers)
        if len(self.shards) < num_parts:
            raise MisconfigurationException(
                f"data.shards: {len(self.shards)} shards are too few for {self._world_size} processes × "
                f"{max(1, self.num_workers)} workers, which take one each at least: lower data.num_workers to "
                f"{len(self.shards) // self._world_size}, or write more and smaller shards"
            )
        if self.subset_size is not None:
            self.keep = UniformSubset(self.shards, self.subset_size)

    def _open_cache(self, folder: Path) -> None:
        self.cache = FeatureCache(folder)
        self.cache.check_data(
            self.max_bad_share,
            image_size=self.image_size,
            max_image_pixels=self.decoder.max_image_pixels,
            skip_non_rgb=self.decoder.skip_non_rgb,
            draft_decoding=self.decoder.draft_size is not None,
        )
        self._cached_samples = self.cache.subset(self.subset_size)

    def _cached_dataloader(self, cache: FeatureCache) -> DataLoader[ImageTextBatch]:
        pairs = CachedPairs(cache, self._cached_samples, self.collator, self.corpus, self.seed)
        return DataLoader(
            pairs,
            batch_size=self.batch_size,
            sampler=self.training_order(len(pairs), self.batch_size),
            drop_last=True,
            num_workers=self.num_workers,
            collate_fn=ready,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=worker_init_fn,
            generator=torch.Generator(),  # or else an epoch's start would shift the random numbers of training
        )

    def _eval_dataloader(self, name: str) -> DataLoader[EvaluationBatch] | list[Any]:
        if name not in self.evaluation:
            return []
        return DataLoader[Any](
            self.evaluation[name],
            batch_size=self.eval_batch_size,
            num_workers=self.num_workers,
            collate_fn=self.collator.evaluation,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=worker_init_fn,
            generator=torch.Generator(),  # or else validation would shift the random numbers of training
        )

    def _check_bad_share(self) -> None:
        skipped, num_seen = self.skipped, self.decoder.num_seen
        num_bad = sum(skipped.values()) - skipped["broken_tar"]
        bad_share = num_bad / num_seen if num_seen >= _MIN_SEEN else 0.0
        num_passes = 1 + max(position.epoch for position in self._positions.values())
        broken_share = skipped["broken_tar"] / (len(self.shards) / self._world_size * num_passes)
        if max(bad_share, broken_share) > self.max_bad_share:
            raise MisconfigurationException(
                f"data.shards: too much is bad, {num_bad} of {num_seen} samples and {skipped['broken_tar']} shards "
                f"({skipped}): repair the shards, or raise data.max_bad_share from {self.max_bad_share}"
            )
