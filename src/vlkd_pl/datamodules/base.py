"""Images in files with what is known of them: what every evaluation reads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader, Dataset

from vlkd_pl.batch import ImageBatch
from vlkd_pl.clip.tokenizer import CLIPTokenizer, load_clip_tokenizer
from vlkd_pl.clip.transform import clip_transform
from vlkd_pl.clip.weights import clip_image_size
from vlkd_pl.data.image_files import (
    ImageDataset,
    Sample,
    check_readable,
    collate_images,
)
from vlkd_pl.data.workers import worker_init_fn
from vlkd_pl.datamodules.order import OrderedDataModule


class ImageDataModule(OrderedDataModule, ABC):
    """Images for validation, test and prediction; a subclass says which, in ``read_samples``.

    Prediction goes on without the images that cannot be read, and names them; training and scores need every image.

    Args:
        clip: CLIP's name, file or folder, for its tokenizer and image size.
        image_size: Width and height of an image in pixels; CLIP's own by default.
        batch_size: Images in a batch of one process.
        num_workers: Worker processes of one process.
        num_samples: Images to take, the first of all; all by default.
        seed: Decides the order of training, where there is one.

    Raises:
        MisconfigurationException: CLIP's image size is unknown, or ``num_samples`` is below 1.
    """

    def __init__(
        self,
        clip: str,
        image_size: int | None = None,
        batch_size: int = 32,
        num_workers: int = 4,
        num_samples: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        if num_samples is not None and num_samples < 1:
            raise MisconfigurationException(f"data.num_samples is {num_samples}: give at least 1, or null for all")
        self.clip = clip
        self.transform = clip_transform(image_size or clip_image_size(clip))
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.num_samples = num_samples
        self.samples: Sequence[Sample] = []
        self._clip_tokenizer: CLIPTokenizer | None = None

    @abstractmethod
    def read_samples(self) -> Sequence[Sample]:
        """What there is to evaluate, one sample for each image."""

    @property
    def clip_tokenizer(self) -> CLIPTokenizer:
        """CLIP's tokenizer, loaded on first use."""
        if self._clip_tokenizer is None:
            self._clip_tokenizer = load_clip_tokenizer(self.clip)
        return self._clip_tokenizer

    def setup(self, stage: str) -> None:
        """Reads what there is, once; images that are to be scored are all decoded before the first is used.

        Raises:
            FileNotFoundError: A file or image is missing.
            MisconfigurationException: A file is of another format, there is nothing in it, or an image cannot be read.
        """
        if not self.samples:
            samples = self.read_samples()[: self.num_samples]
            if stage != "predict":
                check_readable((sample.file for sample in samples), self.num_workers)
            self.samples = samples

    def val_dataloader(self) -> DataLoader[ImageBatch]:
        """The images, in order."""
        return self._evaluation_loader()

    def test_dataloader(self) -> DataLoader[ImageBatch]:
        """The images, in order."""
        return self._evaluation_loader()

    def predict_dataloader(self) -> DataLoader[ImageBatch]:
        """The images, in order."""
        return self._evaluation_loader()

    def on_before_batch_transfer(self, batch: ImageBatch, dataloader_idx: int) -> ImageBatch:
        """Also stops training and test at an image that cannot be read; workers' errors are many lines long.

        Raises:
            MisconfigurationException: An image cannot be read.
        """
        if batch["unreadable"] and self.trainer is not None and not self.trainer.predicting:
            raise MisconfigurationException(
                f"the image {batch['unreadable'][0]}: it cannot be read, but every image is needed: replace it"
            )
        counted: ImageBatch = super().on_before_batch_transfer(batch, dataloader_idx)
        return counted

    def _evaluation_loader(self) -> DataLoader[ImageBatch]:
        return self.loader(ImageDataset(self.samples, self.transform), self.batch_size, collate_images)

    def loader(
        self, dataset: Dataset[Any], batch_size: int, collate: Callable[[Any], Any], **options: Any
    ) -> DataLoader[Any]:
        """A loader with the options that are the same for all."""
        return DataLoader[Any](
            dataset,
            batch_size=batch_size,
            num_workers=self.num_workers,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=worker_init_fn,
            generator=torch.Generator(),  # or else evaluation and resuming would shift the random numbers of training
            **options,
        )


class TrainedImageDataModule(ImageDataModule):
    """Images to train on and to evaluate.

    Args:
        test_files: What test and prediction take, of a kind that the subclass reads.
        val_files: The same of the validation of a training; ``test_files`` by default.
        train_files: The same of training.
        train_batch_size: Samples in a training batch of one process.
        **options: See ``ImageDataModule``; ``num_samples`` is of the images to evaluate.
    """

    def __init__(
        self, test_files: Any, val_files: Any, train_files: Any, train_batch_size: int, **options: Any
    ) -> None:
        super().__init__(**options)
        self.test_files = test_files
        self.val_files = val_files or test_files
        self.train_files = train_files
        self.train_batch_size = train_batch_size
        self.evaluated = test_files
        self.training: Sequence[Any] = []

    @abstractmethod
    def read_training(self) -> Sequence[Sample]:
        """What there is to train on, one sample for each place in an epoch."""

    @abstractmethod
    def training_dataset(self) -> tuple[Dataset[Any], Callable[[Any], Any]]:
        """What reads ``training`` by the keys of ``EpochOrder``, and what makes a batch of it."""

    def setup(self, stage: str) -> None:
        """Reads the files of a stage, once, and looks for every image before the first is used.

        Raises:
            FileNotFoundError: A file or image is missing.
            MisconfigurationException: A file is of another format, or there is nothing to evaluate or to train on.
        """
        evaluated = self.val_files if stage in ("fit", "validate") else self.test_files
        if evaluated != self.evaluated:
            self.evaluated, self.samples = evaluated, []
        super().setup(stage)
        if stage == "fit" and not self.training:
            if self.train_files is None:
                raise MisconfigurationException("there is nothing to train on: give data.train")
            self.training = self.read_training()

    def train_dataloader(self) -> DataLoader[Any]:
        """The samples, shuffled in each epoch; a resumed run goes on where it was."""
        dataset, collate = self.training_dataset()
        order = self.training_order(len(self.training), self.train_batch_size)
        return self.loader(dataset, self.train_batch_size, collate, sampler=order, drop_last=True)
