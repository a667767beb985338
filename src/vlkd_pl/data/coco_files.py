"""COCO's caption files and Karpathy's split of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.utils.data import Dataset

from vlkd_pl.batch import CaptioningBatch, ImageTexts
from vlkd_pl.data.image_files import (
    ImageFinder,
    check_present,
    collate_images,
)
from vlkd_pl.images import read_image
from vlkd_pl.text_files import Entries, read_json


class CaptionedImage(NamedTuple):
    """An image with what people wrote of it.

    Attributes:
        image_id: Its number in the annotation file; in a folder of one's own its path below the folder.
        file: Its path as the annotation file gives it; with data modules the file itself.
        references: The captions; empty where they are kept secret.
        domain: NoCaps' ``in-domain``, ``near-domain`` or ``out-domain``.
    """

    image_id: int | str
    file: Path
    references: list[str]
    domain: str | None = None


@dataclass(frozen=True)
class CaptionFiles:
    """The files of one set of captions.

    Args:
        annotations: Karpathy's ``dataset_coco.json``, or a file of COCO's caption format.
        images: Folder of the images; for ``dataset_coco.json`` also that of ``train2014`` and ``val2014``.
        split: Of ``dataset_coco.json``, or several: Karpathy's training set is ``[train, restval]``. None for a file of
            COCO's own format.
    """

    annotations: str
    images: str
    split: str | list[str] | None = None

    def read(self, num_samples: int | None = None) -> list[CaptionedImage]:
        """The images, all of which are there; with ``num_samples`` the first alone.

        Raises:
            FileNotFoundError: The file or an image is missing.
            MisconfigurationException: The file is of another format, or has no such split.
        """
        splits = self.split if isinstance(self.split, list) else [self.split]
        samples = [sample for split in splits for sample in read_coco_captions(self.annotations, split)]
        return _found(samples[:num_samples], self.images, self.annotations)


def read_coco_captions(path: str | Path, split: str | None = None) -> list[CaptionedImage]:
    """Reads COCO's caption format (also NoCaps' and test sets without captions) or Karpathy's ``dataset_coco.json``.

    Args:
        path: The JSON file; one without ``images`` tells captions alone.
        split: Karpathy's ``train``, ``restval``, ``val`` or ``test``; all by default. COCO's own files have no splits.

    Returns:
        The images in the order of the file.

    Raises:
        FileNotFoundError: There is no such file.
        MisconfigurationException: It is of another format, or holds no image of ``split``, or one twice.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no caption file at {path}: give one of COCO's format")
    file_format = "a caption file of COCO's format"
    content = read_json(path, file_format)
    complaint = f"{path} is not {file_format}"
    if not isinstance(content, dict) or not content.keys() & {"images", "annotations"}:
        raise MisconfigurationException(f"{complaint}: it is no object with images and annotations")
    annotations = Entries(content.get("annotations", []), f"{complaint}: annotations")
    images = Entries(content["images"], f"{complaint}: images") if "images" in content else None
    if images is not None and images.items and "sentences" in images.items[0]:
        read = _karpathys(images, split)
    elif split is not None:
        raise MisconfigurationException(
            f"{path} has no splits: give Karpathy's dataset_coco.json for the split {split}, or leave split out"
        )
    else:
        read = _cocos(images, annotations)
    if not read:
        of_split = f" of the split {split}: give train, restval, val or test" if split else ": give another file"
        raise MisconfigurationException(f"{path} holds no image{of_split}")
    repeated = [image_id for image_id, count in Counter(sample.image_id for sample in read).items() if count > 1]
    if repeated:
        raise MisconfigurationException(f"{path} holds images more than once: remove the others of {repeated[:3]}")
    return read


def _karpathys(images: Entries, split: str | None) -> list[CaptionedImage]:
    """The images of a split of ``dataset_coco.json``, or of all."""
    columns = (
        images.ids("cocoid"),
        images.texts("filepath", ""),
        images.texts("filename"),
        images.nested_texts("sentences", "raw"),
        [split] * len(images) if split is None else images.texts("split"),
    )
    return [
        CaptionedImage(image_id, Path(folder, name), sentences)
        for image_id, folder, name, sentences, of_split in zip(*columns, strict=True)
        if of_split == split
    ]


def _cocos(images: Entries | None, annotations: Entries) -> list[CaptionedImage]:
    """The images of a file of COCO's own format; without a list of them those that are captioned."""
    captioned = annotations.ids("image_id")
    if images is None:
        ids: list[int | str] = list(dict.fromkeys(captioned))
        names, domains = [""] * len(ids), [None] * len(ids)
    else:
        ids, names, domains = images.ids("id"), images.texts("file_name"), images.texts("domain", None)
    references: dict[int | str, list[str]] = {image_id: [] for image_id in ids}
    for image_id, caption in zip(captioned, annotations.texts("caption"), strict=True):
        references.setdefault(image_id, []).append(caption)
    return [
        CaptionedImage(image_id, Path(name), references[image_id], domain)
        for image_id, name, domain in zip(ids, names, domains, strict=True)
    ]


class COCOCaptions(Dataset[ImageTexts]):
    """Images with all their captions, for the validation of the distillation.

    Args:
        annotations: A file that ``read_coco_captions`` reads, whose images' ids are numbers.
        images: The folder that the images lie in.
        transform: From an image to a tensor.
        num_samples: Images to take, the first in the file that have a caption; all by default.

    Raises:
        FileNotFoundError: The file or an image is missing.
        MisconfigurationException: The file is of another format, or no image has a caption.
    """

    def __init__(
        self,
        annotations: str | Path,
        images: str | Path,
        transform: Callable[[Image.Image], Tensor],
        num_samples: int | None = None,
    ) -> None:
        captioned = [sample for sample in read_coco_captions(annotations) if sample.references][:num_samples]
        if not captioned:
            raise MisconfigurationException(f"{annotations} holds no image with a caption")
        if not all(isinstance(sample.image_id, int) for sample in captioned):
            raise MisconfigurationException(f"{annotations} has images whose id is not a number: give each its number")
        self.samples = _found(captioned, images, annotations)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> ImageTexts:
        sample = self.samples[index]
        return {
            "image": self.transform(read_image(sample.file)),
            "image_id": int(sample.image_id),
            "references": sample.references,
        }


def collate_captions(items: Sequence[tuple[Tensor | None, CaptionedImage, str]]) -> CaptioningBatch:
    """A batch of the images that could be read, with their captions."""
    batch = collate_images(items)
    return {**batch, "labels": [sample.references for sample in batch["samples"]]}


def _found(samples: Sequence[CaptionedImage], images: str | Path, annotations: str | Path) -> list[CaptionedImage]:
    """The samples with the files of their images, all of which are there."""
    finder = ImageFinder(images)
    found = [sample._replace(file=finder.by_name(str(sample.file))) for sample in samples]
    check_present([sample.file for sample in found], annotations)
    return found
