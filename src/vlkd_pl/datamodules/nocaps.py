"""NoCaps, captions of objects that COCO's captions do not name."""

from __future__ import annotations

from collections.abc import Sequence

from torch.utils.data import DataLoader

from vlkd_pl.batch import ImageBatch
from vlkd_pl.data.coco_files import CaptionedImage, NoCapsFiles
from vlkd_pl.data.image_files import EvaluationImages, collate_images
from vlkd_pl.datamodules.base import BaseDataModule


class NoCapsDataModule(BaseDataModule):
    """NoCaps (Agrawal et al., 2019): validation with captions and domains, or test without either.

    Args:
        annotations: Path of ``nocaps_val_4500_captions.json`` or ``nocaps_test_image_info.json``.
        images: Folder of the images.
        clip: Name, file or folder of the CLIP, for its image size and its tokenizer.
        image_size: Width and height of a prepared image in pixels; those of the CLIP if None.
        batch_size: Number of images in a batch of one rank.
        num_workers: Number of worker processes of each rank.
        num_samples: Number of images to evaluate, the first of their file; all if None.

    >>> import json
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> from PIL import Image
    >>> with TemporaryDirectory() as folder:
    ...     Image.new("RGB", (300, 200)).save(f"{folder}/boat.png")
    ...     content = {"images": [{"id": 7, "file_name": "boat.png", "domain": "near-domain"}],
    ...                "annotations": [{"image_id": 7, "caption": "A boat on a lake."}]}
    ...     _ = Path(folder, "nocaps.json").write_text(json.dumps(content))
    ...     data = NoCapsDataModule(f"{folder}/nocaps.json", folder, "ViT-B/16", num_workers=0)
    ...     data.setup("test")
    >>> data.samples[0].domain
    'near-domain'
    """

    def __init__(
        self,
        annotations: str,
        images: str,
        clip: str,
        image_size: int | None = None,
        batch_size: int = 32,
        num_workers: int = 4,
        num_samples: int | None = None,
    ) -> None:
        super().__init__(num_workers)
        self.batch_size = batch_size
        self.files = NoCapsFiles(annotations, images)
        self.images = EvaluationImages(clip, image_size, num_samples, num_workers)
        self.clip_tokenizer = self.images.tokenizer
        self.samples: Sequence[CaptionedImage] = []

    def setup(self, stage: str) -> None:
        """Read the annotations, and check the images unless they are for prediction.

        Raises:
            FileNotFoundError: If the annotation file or an image is missing.
            MisconfigurationException: If the annotation file is invalid or has captions but no domains, or an image
                cannot be read.
        """
        self.samples = self.images.read(self.files, stage)

    def test_dataloader(self) -> DataLoader[ImageBatch]:
        """Load the images, in order."""
        return self.loader(self.images.dataset(), self.batch_size, collate_images)

    val_dataloader = predict_dataloader = test_dataloader
