"""Images with captions: COCO's caption files, Karpathy's split of them, NoCaps, and folders of one's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from pytorch_lightning.utilities.exceptions import MisconfigurationException

from vlkd_pl.batch import CaptioningBatch
from vlkd_pl.data.coco_files import CaptionedImage, CaptionFiles, collate_captions
from vlkd_pl.data.image_files import (
    ImageDataset,
)
from vlkd_pl.data.sampler import OrderedDataset
from vlkd_pl.datamodules.base import TrainedImageDataModule


class COCODataModule(TrainedImageDataModule):
    """COCO captions: Karpathy's split or the official files.

    Args:
        annotations: Karpathy's ``dataset_coco.json``, or a file of COCO's caption format; for test and prediction.
        images: Folder of the images; for ``dataset_coco.json`` also that of ``train2014`` and ``val2014``.
        split: Of ``dataset_coco.json``; the paper tests on ``test``. None for a file of COCO's own format.
        val: The captions to validate on; those of the test by default.
        train: The captions to train on.
        train_by: A training sample is an image with one ``caption``, so that it comes as often as it has captions; or
            a ``image`` with all of them.
        train_batch_size: Samples in a training batch of one process.
        **options: See ``TrainedImageDataModule``.
    """

    def __init__(
        self,
        annotations: str,
        images: str,
        split: str | None = None,
        val: CaptionFiles | None = None,
        train: CaptionFiles | None = None,
        train_by: Literal["caption", "image"] = "caption",
        train_batch_size: int = 40,
        **options: Any,
    ) -> None:
        super().__init__(CaptionFiles(annotations, images, split), val, train, train_batch_size, **options)
        self.train_by = train_by

    def read_samples(self) -> list[CaptionedImage]:
        """The images to evaluate, with captions or without.

        Raises:
            FileNotFoundError: The file or an image is missing.
            MisconfigurationException: The file is of another format, or has no such split.
        """
        return self.evaluated.read(self.num_samples)

    def read_training(self) -> list[CaptionedImage]:
        """The images with a caption, with ``train_by`` ``caption`` once for each.

        Raises:
            FileNotFoundError: The file or an image is missing.
            MisconfigurationException: The file is of another format, or there is no caption to train on.
        """
        samples = [sample for sample in self.train_files.read() if sample.references]
        if not samples:
            raise MisconfigurationException(f"{self.train_files.annotations} holds no caption to train on")
        if self.train_by == "image":
            return samples
        return [each._replace(references=[caption]) for each in samples for caption in each.references]

    def training_dataset(self) -> tuple[OrderedDataset, Callable[[Any], CaptioningBatch]]:
        """The images with their captions."""
        return OrderedDataset(ImageDataset(self.training, self.transform)), collate_captions

    def training_references(self) -> dict[int | str, list[str]]:
        """All captions of each training image."""
        references: dict[int | str, list[str]] = {}
        for sample in self.training:
            references.setdefault(sample.image_id, []).extend(sample.references)
        return references
