"""COCO's caption files and Karpathy's split of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

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

TrainBy = Literal["caption", "image"]


class CaptionedImage(NamedTuple):
    """An image with its reference captions.

    Attributes:
        image_id: Number of the image in the annotation file; for a folder of images the path relative to the folder.
        file: Path of the image as the annotation file has it; with data modules the path of the image file.
        references: Captions of the image; empty if they are secret.
        domain: ``in-domain``, ``near-domain`` or ``out-domain`` for NoCaps; None for other files.
    """

    image_id: int | str
    file: Path
    references: list[str]
    domain: str | None = None


@dataclass(frozen=True)
class CaptionFiles:
    """The files of one set of captioned images: COCO's caption format, or Karpathy's ``dataset_coco.json``.

    >>> import json
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     Path(folder, "boat.jpg").touch()
    ...     content = {"images": [{"id": 7, "file_name": "boat.jpg"}],
    ...                "annotations": [{"image_id": 7, "caption": "A boat on a lake."}]}
    ...     _ = Path(folder, "captions.json").write_text(json.dumps(content))
    ...     (image,) = CaptionFiles(f"{folder}/captions.json", folder).read()
    ...     print(image.image_id, image.references)
    7 ['A boat on a lake.']
    """

    annotations: str
    """Path of the JSON file with the captions."""
    images: str
    """Folder of the images; for ``dataset_coco.json`` the folder that holds ``train2014`` and ``val2014``."""
    split: str | list[str] | None = None
    """Split of ``dataset_coco.json``, or a list of splits: Karpathy's training set is ``[train, restval]``. None for a
    file of COCO's caption format."""

    def read(self, num_samples: int | None = None) -> list[CaptionedImage]:
        """Read the images with their captions, or the first ``num_samples`` of them.

        Raises:
            FileNotFoundError: If the annotation file or an image is missing.
            MisconfigurationException: If the annotation file is invalid, or does not have the split.
        """
        splits = self.split if isinstance(self.split, list) else [self.split]
        samples = [sample for split in splits for sample in read_coco_captions(self.annotations, split)]
        return _with_files(samples[:num_samples], self.images, self.annotations)

    def read_training(self, train_by: TrainBy) -> list[CaptionedImage]:
        """Read the training samples.

        Args:
            train_by: ``caption`` for one sample per caption, ``image`` for one sample per image with all its captions.

        Raises:
            FileNotFoundError: If the annotation file or an image is missing.
            MisconfigurationException: If the annotation file is invalid, or holds no caption.
        """
        samples = [sample for sample in self.read() if sample.references]
        if not samples:
            raise MisconfigurationException(f"{self.annotations} holds no caption to train on")
        if train_by == "image":
            return samples
        return [sample._replace(references=[caption]) for sample in samples for caption in sample.references]


@dataclass(frozen=True)
class NoCapsFiles:
    """The files of NoCaps: validation with captions and domains, or test without either."""

    annotations: str
    """Path of ``nocaps_val_4500_captions.json`` or ``nocaps_test_image_info.json``."""
    images: str
    """Folder of the images."""

    def read(self, num_samples: int | None = None) -> list[CaptionedImage]:
        """Read the images with their captions and domains, or the first ``num_samples`` of them.

        Raises:
            FileNotFoundError: If the annotation file or an image is missing.
            MisconfigurationException: If the annotation file is invalid, or has captions but no domains.
        """
        samples = CaptionFiles(self.annotations, self.images).read(num_samples)
        if any(sample.references and sample.domain is None for sample in samples):
            raise MisconfigurationException(
                f"{self.annotations} has images without the field domain: give NoCaps' file, or use COCODataModule"
            )
        return samples


def read_coco_captions(path: str | Path, split: str | None = None) -> list[CaptionedImage]:
    """Read captions in COCO's format, which NoCaps and test sets without captions share, or Karpathy's splits.

    Args:
        path: Path of the JSON file; a file without ``images`` lists the captioned images only.
        split: Split of Karpathy's ``dataset_coco.json``: ``train``, ``restval``, ``val`` or ``test``; all if None.
            Files in COCO's format have no splits.

    Returns:
        The images with their captions in the order of the file; ``file`` is the path that the file has for an image.

    Raises:
        FileNotFoundError: If the file does not exist.
        MisconfigurationException: If the file is invalid, or holds no image of the split or an image twice.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no caption file at {path}: give one of COCO's format")
    file_format = "a caption file of COCO's format"
    content = read_json(path, file_format)
    complaint = f"{path} is not {file_format}"
    if not isinstance(content, dict) or not content.keys() & {"images", "annotations"}:
        raise MisconfigurationException(f"{complaint}: it must be an object with images and annotations")
    annotations = Entries(content.get("annotations", []), f"{complaint}: annotations")
    images = Entries(content["images"], f"{complaint}: images") if "images" in content else None
    if images is not None and images.items and "sentences" in images.items[0]:
        samples = _karpathy_images(images, split)
    elif split is not None:
        raise MisconfigurationException(
            f"{path} has no splits: give Karpathy's dataset_coco.json for the split {split}, or leave split out"
        )
    else:
        samples = _coco_images(images, annotations)
    if not samples:
        of_split = f" of the split {split}: give train, restval, val or test" if split else ": give another file"
        raise MisconfigurationException(f"{path} holds no image{of_split}")
    repeated = [image_id for image_id, count in Counter(sample.image_id for sample in samples).items() if count > 1]
    if repeated:
        raise MisconfigurationException(f"{path} holds images more than once: remove the others of {repeated[:3]}")
    return samples


def _karpathy_images(images: Entries, split: str | None) -> list[CaptionedImage]:
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


def _coco_images(images: Entries | None, annotations: Entries) -> list[CaptionedImage]:
    """Join images and captions; without a list of images they are those of the captions."""
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


@dataclass(frozen=True)
class EvaluationFiles:
    """Captioned images in COCO's format for the validation and the test of a distillation."""

    val_images: str | None = None
    """Folder of the validation images."""
    val_captions: str | None = None
    """Path of the captions of the validation images; None for no validation."""
    test_images: str | None = None
    """Folder of the test images."""
    test_captions: str | None = None
    """Path of the captions of the test images; None for no test."""
    batch_size: int = 50
    """Number of images in an evaluation batch of one rank."""
    num_samples: int | None = None
    """Number of images to evaluate, the first of their file; all if None."""

    def of_stages(self) -> dict[str, tuple[str | None, str | None]]:
        """Return the captions and images of Lightning's stages ``validate`` and ``test``."""
        return {
            "validate": (self.val_captions, self.val_images),
            "test": (self.test_captions, self.test_images),
        }


class COCOCaptions(Dataset[ImageTexts]):
    """Images with all their captions, for the validation of the distillation.

    Args:
        annotations: Path of a file that ``read_coco_captions`` reads, with numbers as image ids.
        images: Folder of the images.
        transform: Converts an image to a tensor.
        num_samples: Number of images to read, the first in the file that have a caption; all if None.

    Raises:
        FileNotFoundError: If the annotation file or an image is missing.
        MisconfigurationException: If the annotation file is invalid, or no image has a caption.
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
        self.samples = _with_files(captioned, images, annotations)
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
    """Collate the readable images of a batch with their captions."""
    batch = collate_images(items)
    return {**batch, "labels": [sample.references for sample in batch["samples"]]}


def _with_files(samples: Sequence[CaptionedImage], images: str | Path, annotations: str | Path) -> list[CaptionedImage]:
    """Replace the paths in the annotation file by those of the image files, which must exist."""
    finder = ImageFinder(images)
    located = [sample._replace(file=finder.by_name(str(sample.file))) for sample in samples]
    check_present([sample.file for sample in located], annotations)
    return located
