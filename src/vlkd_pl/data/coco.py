"""COCO's caption files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.utils.data import Dataset

from vlkd_pl.data.base import ImageTexts


class COCOCaptions(Dataset[ImageTexts]):
    """Pictures with all their captions.

    Args:
        annotations: A caption file of COCO's format, with ``images`` and ``annotations``.
        images: The folder that each picture's ``file_name`` lies in.
        transform: From a picture to a tensor.
        num_samples: Pictures to take, the first in the file that have a caption; all by default.

    Raises:
        FileNotFoundError: The file or a picture is missing.
        MisconfigurationException: The file is not of COCO's caption format, or no picture has a caption.
    """

    def __init__(
        self,
        annotations: str | Path,
        images: str | Path,
        transform: Callable[[Image.Image], Tensor],
        num_samples: int | None = None,
    ) -> None:
        if not Path(annotations).is_file():
            raise FileNotFoundError(f"there is no caption file at {annotations}: give one of COCO's format")
        try:
            content = json.loads(Path(annotations).read_text(encoding="utf-8"))
            references: dict[int, list[str]] = {}
            for annotation in content["annotations"]:
                references.setdefault(annotation["image_id"], []).append(annotation["caption"])
            files = {image["id"]: Path(images) / image["file_name"] for image in content["images"]}
        except (ValueError, KeyError, TypeError) as error:
            raise MisconfigurationException(
                f"{annotations} is not a caption file of COCO's format: {error!r}"
            ) from error
        captioned = [(image_id, path) for image_id, path in files.items() if image_id in references][:num_samples]
        if not captioned:
            raise MisconfigurationException(f"{annotations} holds no picture with a caption")
        missing = [str(path) for _, path in captioned if not path.is_file()]
        if missing:
            raise FileNotFoundError(
                f"{len(missing)} pictures of {annotations} are missing; first: {', '.join(missing[:3])}"
            )
        self.samples = [(image_id, path, references[image_id]) for image_id, path in captioned]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> ImageTexts:
        image_id, path, references = self.samples[index]
        with Image.open(path) as image:
            return {"image": self.transform(image), "image_id": image_id, "references": references}
