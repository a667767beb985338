"""CC3M, or any image-text pairs, streamed from webdataset shards or read from a feature cache."""

from __future__ import annotations

from typing import Any

from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader

from vlkd_pl.batch import EvaluationBatch, ImageTextBatch, StreamPosition
from vlkd_pl.clip.tokenizer import load_clip_tokenizer
from vlkd_pl.clip.transform import clip_transform
from vlkd_pl.clip.weights import clip_image_size
from vlkd_pl.data.coco_files import COCOCaptions, EvaluationFiles
from vlkd_pl.data.collate import Collator
from vlkd_pl.data.image_files import check_readable
from vlkd_pl.data.infilling import Masking, TextInfilling
from vlkd_pl.data.shard_source import ImageLimits, ShardSource
from vlkd_pl.data.stream import TextCorpus, TextCorpusFile
from vlkd_pl.datamodules.base import BaseDataModule
from vlkd_pl.features.cache import FeatureCache
from vlkd_pl.features.dataset import identity
from vlkd_pl.features.source import CacheSource
from vlkd_pl.models.bart import load_bart_tokenizer
from vlkd_pl.shards.decoder import SampleDecoder

PAPER_MASKING = Masking()
DEFAULT_LIMITS = ImageLimits()
NO_EVALUATION = EvaluationFiles()


class CC3MDataModule(BaseDataModule):
    """Image-text pairs for distillation (Section 3.3), and captioned images for its evaluation.

    The pairs are streamed from shards, shuffled by a buffer, or read from a cache of ``vlkd-pl cache``, shuffled over
    the whole dataset in each epoch.

    Args:
        shards: Tar files with ``key.jpg`` and ``key.txt``, as img2dataset writes them: paths, or addresses on S3, GCS
            or HTTP. Braces and wildcards are expanded.
        clip: Name, file or folder of the CLIP, for its image size and its tokenizer.
        bart: Name or folder of the BART, for its tokenizer.
        batch_size: Number of pairs in a batch of one rank.
        num_workers: Number of worker processes of each rank.
        shuffle_buffer: Number of raw samples that each worker holds to draw from.
        shuffle_buffer_bytes: Largest number of bytes of these samples; with large samples the buffer holds fewer.
        seed: Seed of the order and of the corruption of the texts.
        subset_size: Number of samples of a uniform subset to train on, the same in every run: 1,000,000 or 100,000 for
            the paper's Table 9. All if None.
        image_size: Width and height of a prepared image in pixels; those of the CLIP if None.
        masking: How the captions are corrupted for ICTI.
        text_corpus: Texts without images to add to each batch, for infilling and for text as image, extensions beyond
            the paper; None for none.
        image_limits: Which images are trained on, and how they are decoded.
        evaluation: Captioned images for validation and test.
        features: Folder of CLIP features that ``vlkd-pl cache`` wrote, to train on in place of the images; the shards
            are then not read and may be missing. Of a folder on S3, GCS or HTTP each machine makes a copy before
            training; complete files are not copied again.
        features_copy: Local folder for that copy; one in ``~/.cache/vlkd_pl/features`` if None.

    Attributes:
        clip_tokenizer: Tokenizer of the CLIP.
        decoder: Decodes the samples of the shards, and counts those that are skipped.
        collator: Makes batches.

    Raises:
        FileNotFoundError: If the tokenizer of the BART cannot be found.
        MisconfigurationException: If the image size of the CLIP is unknown, or ``batch_size`` is below 1.

    >>> import random
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> from vlkd_pl.sample import BART_FOLDER, CLIP_FOLDER
    >>> from vlkd_pl.sample.writers import write_shards
    >>> with TemporaryDirectory() as folder:
    ...     write_shards(Path(folder), 4, 1, random.Random(0))
    ...     data = CC3MDataModule(f"{folder}/*.tar", CLIP_FOLDER, BART_FOLDER, 4, num_workers=0)
    ...     data.setup("fit")
    ...     batch = next(iter(data.train_dataloader()))
    >>> batch["image"].shape
    torch.Size([4, 3, 64, 64])
    """

    def __init__(
        self,
        shards: str | list[str],
        clip: str,
        bart: str,
        batch_size: int,
        num_workers: int = 4,
        shuffle_buffer: int = 1000,
        shuffle_buffer_bytes: int = 1 << 30,
        seed: int = 0,
        subset_size: int | None = None,
        image_size: int | None = None,
        masking: Masking = PAPER_MASKING,
        text_corpus: TextCorpusFile | None = None,
        image_limits: ImageLimits = DEFAULT_LIMITS,
        evaluation: EvaluationFiles = NO_EVALUATION,
        features: str | None = None,
        features_copy: str | None = None,
    ) -> None:
        super().__init__(num_workers, seed)
        if batch_size < 1:
            raise MisconfigurationException(f"data.batch_size is {batch_size}: give at least 1")
        self.batch_size = batch_size
        self.subset_size = subset_size
        self.image_size = image_size or clip_image_size(clip)
        self.image_limits = image_limits
        self.text_corpus = text_corpus
        self.evaluation = evaluation
        self.transform = clip_transform(self.image_size)
        self.clip_tokenizer = load_clip_tokenizer(clip)
        self.bart_tokenizer = load_bart_tokenizer(bart)
        self.masking = masking
        infilling = TextInfilling(
            self.bart_tokenizer, masking.mask_share, masking.mean_span_length, max_length=masking.max_text_length
        )
        self.collator = Collator(self.clip_tokenizer, infilling, seed)
        self.decoder = SampleDecoder(
            self.transform,
            image_limits.max_image_pixels,
            image_limits.skip_non_rgb,
            num_workers,
            self.image_size if image_limits.draft_decoding else None,
        )
        self.shard_source = ShardSource(
            shards,
            self.decoder,
            subset_size,
            shuffle_buffer,
            shuffle_buffer_bytes,
            image_limits.max_bad_share,
            seed,
        )
        self.cache_source = CacheSource(features, features_copy) if features is not None else None
        self.corpus: TextCorpus | None = None
        self.evaluation_data: dict[str, COCOCaptions] = {}

    @property
    def cache(self) -> FeatureCache | None:
        """The feature cache that is trained on, after ``setup``; None without one."""
        return self.cache_source.cache if self.cache_source is not None else None

    @property
    def skipped(self) -> dict[str, int]:
        """The number of samples that this rank has skipped for each reason."""
        return self.decoder.skipped

    def prepare_data(self) -> None:
        """Copy cached features from an address before training, once on each machine.

        Raises:
            FileNotFoundError: If the address holds no finished cache.
            MisconfigurationException: If the cache cannot be copied.
        """
        if self.cache_source is not None and (self.trainer is None or self.trainer.state.fn == TrainerFn.FITTING):
            self.cache_source.fetch()

    def setup(self, stage: str) -> None:
        """Check every file before training.

        Raises:
            FileNotFoundError: If a shard, caption file, image or text file is missing.
            MisconfigurationException: If there are fewer shards than workers of all ranks, a file is invalid, an image
                to evaluate cannot be read, or cached features are damaged or were made with other settings.
        """
        if stage == "fit":
            self.decoder.reset_counts()
            self._open_source()
            if self.text_corpus is not None:
                self.corpus = TextCorpus.open(self.text_corpus, self.bart_tokenizer, self.clip_tokenizer, self.masking)
        for name, (captions, images) in self.evaluation.of_stages().items():
            if (name == stage or (name == "validate" and stage == "fit")) and captions is not None:
                dataset = COCOCaptions(captions, images or "", self.transform, self.evaluation.num_samples)
                check_readable((sample.file for sample in dataset.samples), self.num_workers)
                self.evaluation_data[name] = dataset

    def train_dataloader(self) -> DataLoader[ImageTextBatch]:
        """Load the endless stream of batches, or an epoch of cached features; a resumed run continues exactly."""
        if self.cache_source is not None:
            pairs = self.cache_source.pairs(self.collator, self.corpus, self.seed)
            order = self.training_order(len(pairs), self.batch_size)
            return self.loader(pairs, self.batch_size, identity, order)
        stream = self.shard_source.stream(self.collator, self.batch_size, self.corpus, self.rank)
        # starting the stream draws a seed from torch's random state: runs of before 0.5 did, and stay as they are
        return self.loader(stream, None, isolate_random_state=False)

    def val_dataloader(self) -> DataLoader[EvaluationBatch] | list[Any]:
        """Load the validation images, in order; an empty list without files for validation."""
        return self._evaluation_loader("validate")

    def test_dataloader(self) -> DataLoader[EvaluationBatch]:
        """Load the test images, in order.

        Raises:
            MisconfigurationException: If there are no files for the test.
        """
        loader = self._evaluation_loader("test")
        if isinstance(loader, list):
            raise MisconfigurationException(
                "there is nothing to test on: give data.evaluation.test_captions and data.evaluation.test_images"
            )
        return loader

    def training_captions(self, num: int) -> list[str]:
        """Return the first captions of the training data, the same on every rank.

        Args:
            num: Number of captions.
        """
        return (self.cache_source or self.shard_source).captions(num)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Record the position of a training batch when it is used, not when it is loaded.

        Raises:
            MisconfigurationException: If more than ``max_bad_share`` of the samples, or of the shards, are bad.
        """
        if "stream_position" in batch:
            self.shard_source.record(StreamPosition(*batch.pop("stream_position")))
        return super().on_before_batch_transfer(batch, dataloader_idx)

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the data of every rank; all ranks must call it."""
        return {**super().state_dict(), **self.shard_source.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from the position of a checkpoint; with another number of ranks or workers, from the next pass."""
        super().load_state_dict(state_dict)
        self.shard_source.load_state_dict(state_dict, self.rank, self.world_size)

    def report(self) -> str:
        """Summarize in one line what all ranks have read and skipped; all ranks must call it."""
        return (self.cache_source or self.shard_source).report()

    def _open_source(self) -> None:
        if self.cache_source is None:
            self.shard_source.open(self.world_size)
        else:
            limits = self.image_limits
            self.cache_source.open(
                self.subset_size,
                limits.max_bad_share,
                image_size=self.image_size,
                max_image_pixels=limits.max_image_pixels,
                skip_non_rgb=limits.skip_non_rgb,
                draft_decoding=limits.draft_decoding,
            )

    def _evaluation_loader(self, name: str) -> DataLoader[EvaluationBatch] | list[Any]:
        if name not in self.evaluation_data:
            return []
        return self.loader(self.evaluation_data[name], self.evaluation.batch_size, self.collator.evaluation)
