"""NoCaps."""

from __future__ import annotations

from typing import Any

from pytorch_lightning.utilities.exceptions import MisconfigurationException

from vlkd_pl.data.coco_files import CaptionedImage
from vlkd_pl.datamodules.coco import COCODataModule


class NoCapsDataModule(COCODataModule):
    """NoCaps (Agrawal et al., 2019): validation with captions and domains, or test without either.

    Args:
        annotations: ``nocaps_val_4500_captions.json`` or ``nocaps_test_image_info.json``.
        images: Folder of the images.
        **options: See ``ImageDataModule``.
    """

    def __init__(self, annotations: str, images: str, **options: Any) -> None:
        super().__init__(annotations, images, None, **options)

    def read_samples(self) -> list[CaptionedImage]:
        """The images, with captions or without.

        Raises:
            FileNotFoundError: The file or an image is missing.
            MisconfigurationException: The file is of another format, or has captions and no domains.
        """
        samples = super().read_samples()
        if any(sample.references and sample.domain is None for sample in samples):
            raise MisconfigurationException(
                f"{self.evaluated.annotations} has images without the field domain: give NoCaps' file, or use "
                "COCODataModule"
            )
        return samples
