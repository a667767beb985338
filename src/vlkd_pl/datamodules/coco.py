"""Images with captions in COCO's format, or in Karpathy's split of COCO."""

from __future__ import annotations

from collections.abc import Sequence

from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader

from vlkd_pl.batch import CaptioningBatch, ImageBatch
from vlkd_pl.data.coco_files import CaptionedImage, CaptionFiles, TrainBy, collate_captions
from vlkd_pl.data.image_files import EvaluationImages, ImageDataset, collate_images
from vlkd_pl.data.sampler import OrderedDataset
from vlkd_pl.datamodules.base import BaseDataModule


class COCODataModule(BaseDataModule):
    """COCO captions (Chen et al., 2015): Karpathy's split, or any file in COCO's caption format.

    Args:
        annotations: Path of Karpathy's ``dataset_coco.json`` or of a file in COCO's caption format, for test and
            prediction; a test set may lack captions.
        images: Folder of the images; for ``dataset_coco.json`` the folder that holds ``train2014`` and ``val2014``.
        split: Split of ``dataset_coco.json``; the paper tests on ``test``. None for a file in COCO's format.
        val: Files for validation; those of the test if None.
        train: Files for training; None without training.
        train_by: Training sample: ``caption`` for an image with one caption, so that an image is repeated for each of
            its captions; ``image`` for an image with all its captions.
        train_batch_size: Number of samples in a training batch of one rank.
        clip: Name, file or folder of the CLIP, for its image size and its tokenizer.
        image_size: Width and height of a prepared image in pixels; those of the CLIP if None.
        batch_size: Number of images in an evaluation batch of one rank.
        num_workers: Number of worker processes of each rank.
        num_samples: Number of images to evaluate, the first of their file; all if None.
        seed: Seed of the training order.

    Attributes:
        samples: Images to evaluate, after ``setup``.
        training: Training samples, after ``setup("fit")``.

    >>> import json
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> from PIL import Image
    >>> with TemporaryDirectory() as folder:
    ...     Image.new("RGB", (300, 200)).save(f"{folder}/boat.png")
    ...     content = {"images": [{"id": 7, "file_name": "boat.png"}],
    ...                "annotations": [{"image_id": 7, "caption": "A boat on a lake."}]}
    ...     _ = Path(folder, "captions.json").write_text(json.dumps(content))
    ...     data = COCODataModule(f"{folder}/captions.json", folder, clip="ViT-B/16", num_workers=0)
    ...     data.setup("test")
    ...     batch = next(iter(data.test_dataloader()))
    >>> batch["image"].shape, batch["samples"][0].references
    (torch.Size([1, 3, 224, 224]), ['A boat on a lake.'])
    """

    def __init__(
        self,
        annotations: str,
        images: str,
        split: str | None = None,
        val: CaptionFiles | None = None,
        train: CaptionFiles | None = None,
        train_by: TrainBy = "caption",
        train_batch_size: int = 40,
        *,
        clip: str,
        image_size: int | None = None,
        batch_size: int = 32,
        num_workers: int = 4,
        num_samples: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(num_workers, seed)
        self.test_files = CaptionFiles(annotations, images, split)
        self.val_files = val or self.test_files
        self.train_files = train
        self.train_by: TrainBy = train_by
        self.train_batch_size = train_batch_size
        self.batch_size = batch_size
        self.images = EvaluationImages(clip, image_size, num_samples, num_workers)
        self.clip_tokenizer = self.images.tokenizer
        self.samples: Sequence[CaptionedImage] = []
        self.training: list[CaptionedImage] = []

    def setup(self, stage: str) -> None:
        """Read the captions of a stage once, and check its images.

        Raises:
            FileNotFoundError: If a file or an image is missing.
            MisconfigurationException: If a file is invalid, an image to evaluate cannot be read, or there is no caption
                to train on.
        """
        self.samples = self.images.read(self.val_files if stage in ("fit", "validate") else self.test_files, stage)
        if stage == "fit" and not self.training:
            if self.train_files is None:
                raise MisconfigurationException("there is nothing to train on: give data.train")
            self.training = self.train_files.read_training(self.train_by)

    def train_dataloader(self) -> DataLoader[CaptioningBatch]:
        """Load the training samples, shuffled in each epoch; a resumed run continues within its epoch."""
        dataset = OrderedDataset(ImageDataset(self.training, self.images.transform))
        order = self.training_order(len(self.training), self.train_batch_size)
        return self.loader(dataset, self.train_batch_size, collate_captions, order)

    def test_dataloader(self) -> DataLoader[ImageBatch]:
        """Load the images to evaluate, in order."""
        return self.loader(self.images.dataset(), self.batch_size, collate_images)

    val_dataloader = predict_dataloader = test_dataloader

    def training_references(self) -> dict[int | str, list[str]]:
        """Return all captions of each training image by its id."""
        references: dict[int | str, list[str]] = {}
        for sample in self.training:
            references.setdefault(sample.image_id, []).extend(sample.references)
        return references
