"""A folder of one's own images."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from pytorch_lightning.utilities.exceptions import MisconfigurationException

from vlkd_pl.data.coco_files import CaptionedImage
from vlkd_pl.data.image_files import (
    ImageFile,
    ImageFinder,
    iter_image_files,
    read_lines,
)
from vlkd_pl.datamodules.base import ImageDataModule


class FolderDataModule(ImageDataModule):
    """The images of a folder of one's own, for ``vlkd-pl predict``.

    Args:
        images: A folder, searched recursively; or an image file.
        **options: See ``ImageDataModule``.
    """

    def __init__(self, images: str, **options: Any) -> None:
        super().__init__(**options)
        self.images = images

    def read_samples(self) -> list[ImageFile]:
        """All images of the folder.

        Raises:
            FileNotFoundError: There is no such folder, or no image in it.
        """
        if Path(self.images).is_file():
            return [ImageFile(Path(self.images), Path(self.images).name)]
        folder = ImageFinder(self.images).folder
        images = [ImageFile(path, path.relative_to(folder).as_posix()) for path in iter_image_files([folder])]
        if not images:
            raise FileNotFoundError(f"there are no images in {folder}: give another folder as data.images")
        return images


class CaptionFolderDataModule(ImageDataModule):
    """A folder of one's own images, each with its captions in a text file of the same name, one a line.

    Args:
        images: A folder, searched recursively; img2dataset's ``files`` output has this layout.
        **options: See ``ImageDataModule``.
    """

    def __init__(self, images: str, **options: Any) -> None:
        super().__init__(**options)
        self.images = images

    def read_samples(self) -> list[CaptionedImage]:
        """All images, each with its captions.

        Raises:
            FileNotFoundError: There is no such folder, or no image in it, or an image has no text file or an empty
                one.
            MisconfigurationException: A text file is not UTF-8.
        """
        folder, samples, without = ImageFinder(self.images).folder, [], []
        for path in iter_image_files([folder]):
            text = path.with_suffix(".txt")
            references = read_lines(text) if text.is_file() else []
            if references:
                samples.append(CaptionedImage(path.relative_to(folder).as_posix(), path, references))
            else:
                without.append(str(path))
        if without:
            raise FileNotFoundError(
                f"{len(without)} of {len(samples) + len(without)} images in {folder} have no captions in a .txt file "
                f"beside them: write them, or take the images away; first: {', '.join(without[:3])}"
            )
        if not samples:
            raise FileNotFoundError(f"there are no images in {folder}: give another folder as data.images")
        return samples


class LabelledImage(NamedTuple):
    """An image with its class.

    Attributes:
        image_id: Its path below the folder.
        file: Its file.
        label: The number of its class.
    """

    image_id: str
    file: Path
    label: int


class ClassFolderDataModule(ImageDataModule):
    """A folder with one folder of images for each class, the layout of ImageNet and of torchvision's ``ImageFolder``.

    Args:
        images: The folder.
        class_names: Text file with a name a line, in the order of the sorted folders; by default the folders' own
            names, with spaces for underscores.
        **options: See ``ImageDataModule``.
    """

    def __init__(self, images: str, class_names: str | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.images = images
        self.class_names_file = class_names
        self.class_names: list[str] = []

    def read_samples(self) -> list[LabelledImage]:
        """All images of all classes.

        Raises:
            FileNotFoundError: The folder or the file of names is missing, or a class has no image.
            MisconfigurationException: There are not as many names as folders, or their file is not UTF-8.
        """
        root = ImageFinder(self.images).folder
        folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
        if not folders:
            raise FileNotFoundError(f"there are no folders in {root}: give one folder of images for each class")
        self.class_names = [folder.name.replace("_", " ") for folder in folders]
        if self.class_names_file is not None:
            if not Path(self.class_names_file).is_file():
                raise FileNotFoundError(
                    f"there is no file of class names at {self.class_names_file}: give a name a line"
                )
            self.class_names = read_lines(self.class_names_file)
            if len(self.class_names) != len(folders):
                raise MisconfigurationException(
                    f"{self.class_names_file} names {len(self.class_names)} classes, but {root} has {len(folders)} "
                    "folders: give a name a line, in the order of the sorted folders"
                )
        samples = [
            LabelledImage(path.relative_to(root).as_posix(), path, label)
            for label, folder in enumerate(folders)
            for path in iter_image_files([folder])
        ]
        empty = [
            folders[label].name for label in sorted(set(range(len(folders))) - {sample.label for sample in samples})
        ]
        if empty:
            raise FileNotFoundError(
                f"{len(empty)} of {len(folders)} folders in {root} have no images: fill or remove them; first: "
                f"{', '.join(empty[:3])}"
            )
        return samples
