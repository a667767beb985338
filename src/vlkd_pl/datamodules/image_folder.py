"""Folders of images, for prediction, retrieval and classification."""

from __future__ import annotations

from collections.abc import Sequence

from torch.utils.data import DataLoader

from vlkd_pl.batch import ImageBatch
from vlkd_pl.data.coco_files import CaptionedImage
from vlkd_pl.data.image_files import EvaluationImages, ImageFile, collate_images
from vlkd_pl.data.image_folders import CaptionFolder, ClassFolder, ImageFolder, LabelledImage
from vlkd_pl.datamodules.base import BaseDataModule


class FolderDataModule(BaseDataModule):
    """The images of a folder, for ``vlkd-pl predict``.

    Args:
        images: Path of a folder, which is searched recursively, or of an image file.
        clip: Name, file or folder of the CLIP, for its image size and its tokenizer.
        image_size: Width and height of a prepared image in pixels; those of the CLIP if None.
        batch_size: Number of images in a batch of one rank.
        num_workers: Number of worker processes of each rank.
        num_samples: Number of images to evaluate, the first of the folder; all if None.

    >>> from tempfile import TemporaryDirectory
    >>> from PIL import Image
    >>> with TemporaryDirectory() as folder:
    ...     Image.new("RGB", (300, 200)).save(f"{folder}/boat.png")
    ...     data = FolderDataModule(folder, "ViT-B/16", num_workers=0)
    ...     data.setup("predict")
    ...     batch = next(iter(data.predict_dataloader()))
    >>> batch["image"].shape, [sample.image_id for sample in batch["samples"]]
    (torch.Size([1, 3, 224, 224]), ['boat.png'])
    """

    def __init__(
        self,
        images: str,
        clip: str,
        image_size: int | None = None,
        batch_size: int = 32,
        num_workers: int = 4,
        num_samples: int | None = None,
    ) -> None:
        super().__init__(num_workers)
        self.batch_size = batch_size
        self.files = ImageFolder(images)
        self.images = EvaluationImages(clip, image_size, num_samples, num_workers)
        self.clip_tokenizer = self.images.tokenizer
        self.samples: Sequence[ImageFile] = []

    def setup(self, stage: str) -> None:
        """List the images, and check them unless they are for prediction.

        Raises:
            FileNotFoundError: If the folder does not exist or holds no image.
            MisconfigurationException: If an image cannot be read.
        """
        self.samples = self.images.read(self.files, stage)

    def test_dataloader(self) -> DataLoader[ImageBatch]:
        """Load the images, in order."""
        return self.loader(self.images.dataset(), self.batch_size, collate_images)

    val_dataloader = predict_dataloader = test_dataloader


class CaptionFolderDataModule(BaseDataModule):
    """A folder of images, each with its captions in a text file of the same name, one per line.

    Args:
        images: Path of the folder, which is searched recursively; the ``files`` output of img2dataset has this layout.
        clip: Name, file or folder of the CLIP, for its image size and its tokenizer.
        image_size: Width and height of a prepared image in pixels; those of the CLIP if None.
        batch_size: Number of images in a batch of one rank.
        num_workers: Number of worker processes of each rank.
        num_samples: Number of images to evaluate, the first of the folder; all if None.

    >>> from tempfile import TemporaryDirectory
    >>> from pathlib import Path
    >>> from PIL import Image
    >>> with TemporaryDirectory() as folder:
    ...     Image.new("RGB", (300, 200)).save(f"{folder}/boat.png")
    ...     _ = Path(folder, "boat.txt").write_text("A boat on a lake.")
    ...     data = CaptionFolderDataModule(folder, "ViT-B/16", num_workers=0)
    ...     data.setup("test")
    >>> data.samples[0].references
    ['A boat on a lake.']
    """

    def __init__(
        self,
        images: str,
        clip: str,
        image_size: int | None = None,
        batch_size: int = 32,
        num_workers: int = 4,
        num_samples: int | None = None,
    ) -> None:
        super().__init__(num_workers)
        self.batch_size = batch_size
        self.files = CaptionFolder(images)
        self.images = EvaluationImages(clip, image_size, num_samples, num_workers)
        self.clip_tokenizer = self.images.tokenizer
        self.samples: Sequence[CaptionedImage] = []

    def setup(self, stage: str) -> None:
        """Read the captions, and check the images unless they are for prediction.

        Raises:
            FileNotFoundError: If the folder does not exist or holds no image, or if an image has no caption.
            MisconfigurationException: If a text file is not UTF-8, or an image cannot be read.
        """
        self.samples = self.images.read(self.files, stage)

    def test_dataloader(self) -> DataLoader[ImageBatch]:
        """Load the images, in order."""
        return self.loader(self.images.dataset(), self.batch_size, collate_images)

    val_dataloader = predict_dataloader = test_dataloader


class ClassFolderDataModule(BaseDataModule):
    """A folder with one folder of images for each class, the layout of ImageNet and of torchvision's ``ImageFolder``.

    Args:
        images: Path of the folder.
        clip: Name, file or folder of the CLIP, for its image size and its tokenizer.
        class_names: Path of a text file with one class name per line, in the order of the sorted folders. If None, the
            classes have the names of their folders, with spaces for underscores.
        image_size: Width and height of a prepared image in pixels; those of the CLIP if None.
        batch_size: Number of images in a batch of one rank.
        num_workers: Number of worker processes of each rank.
        num_samples: Number of images to evaluate, the first of all; all if None.

    Attributes:
        class_names: Names of the classes in the order of their numbers, after ``setup``.

    >>> from tempfile import TemporaryDirectory
    >>> from pathlib import Path
    >>> from PIL import Image
    >>> with TemporaryDirectory() as folder:
    ...     Path(folder, "red_fish").mkdir()
    ...     Image.new("RGB", (300, 200)).save(f"{folder}/red_fish/1.png")
    ...     data = ClassFolderDataModule(folder, "ViT-B/16", num_workers=0)
    ...     data.setup("test")
    >>> data.class_names, data.samples[0].label
    (['red fish'], 0)
    """

    def __init__(
        self,
        images: str,
        clip: str,
        class_names: str | None = None,
        image_size: int | None = None,
        batch_size: int = 32,
        num_workers: int = 4,
        num_samples: int | None = None,
    ) -> None:
        super().__init__(num_workers)
        self.batch_size = batch_size
        self.files = ClassFolder(images, class_names)
        self.class_names: list[str] = []
        self.images = EvaluationImages(clip, image_size, num_samples, num_workers)
        self.clip_tokenizer = self.images.tokenizer
        self.samples: Sequence[LabelledImage] = []

    def setup(self, stage: str) -> None:
        """Read the class names, list the images, and check them unless they are for prediction.

        Raises:
            FileNotFoundError: If the folder or the file of names does not exist, or a class has no image.
            MisconfigurationException: If the numbers of names and folders differ, the file of names is not UTF-8, or an
                image cannot be read.
        """
        self.class_names = self.files.read_class_names()
        self.samples = self.images.read(self.files, stage)

    def test_dataloader(self) -> DataLoader[ImageBatch]:
        """Load the images, in order."""
        return self.loader(self.images.dataset(), self.batch_size, collate_images)

    val_dataloader = predict_dataloader = test_dataloader
