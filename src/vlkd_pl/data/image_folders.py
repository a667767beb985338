"""Folders of images: alone, with captions in text files, or with one folder for each class."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pytorch_lightning.utilities.exceptions import MisconfigurationException

from vlkd_pl.data.coco_files import CaptionedImage
from vlkd_pl.data.image_files import ImageFile, ImageFinder, iter_image_files, read_lines


class LabelledImage(NamedTuple):
    """An image with its class.

    Attributes:
        image_id: Path of the image relative to the folder of all classes.
        file: Path of the image.
        label: Number of the class, from 0.
    """

    image_id: str
    file: Path
    label: int


@dataclass(frozen=True)
class ImageFolder:
    """A folder of images, searched recursively, or one image file.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     Path(folder, "boat.jpg").touch()
    ...     print([image.image_id for image in ImageFolder(folder).read()])
    ['boat.jpg']
    """

    images: str
    """Path of the folder or file."""

    def read(self, num_samples: int | None = None) -> list[ImageFile]:
        """List the images, or the first ``num_samples`` of them.

        Raises:
            FileNotFoundError: If the folder does not exist or holds no image.
        """
        if Path(self.images).is_file():
            return [ImageFile(Path(self.images), Path(self.images).name)]
        folder = ImageFinder(self.images).folder
        images = [ImageFile(path, path.relative_to(folder).as_posix()) for path in iter_image_files([folder])]
        if not images:
            raise _no_images(folder)
        return images[:num_samples]


@dataclass(frozen=True)
class CaptionFolder:
    """A folder of images, each with its captions in a text file of the same name, one per line.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     Path(folder, "boat.jpg").touch()
    ...     _ = Path(folder, "boat.txt").write_text("A boat on a lake.")
    ...     print([image.references for image in CaptionFolder(folder).read()])
    [['A boat on a lake.']]
    """

    images: str
    """Path of the folder, which is searched recursively."""

    def read(self, num_samples: int | None = None) -> list[CaptionedImage]:
        """List the images with their captions, or the first ``num_samples`` of them.

        Raises:
            FileNotFoundError: If the folder does not exist or holds no image, or if an image has no caption.
            MisconfigurationException: If a text file is not UTF-8.
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
                f"of the same name: write them, or remove the images; first: {', '.join(without[:3])}"
            )
        if not samples:
            raise _no_images(folder)
        return samples[:num_samples]


@dataclass(frozen=True)
class ClassFolder:
    """A folder with one folder of images for each class, the layout of ImageNet and of torchvision's ``ImageFolder``.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     for name in ("red_fish", "boat"):
    ...         Path(folder, name).mkdir()
    ...         Path(folder, name, "1.jpg").touch()
    ...     files = ClassFolder(folder)
    ...     print(files.read_class_names(), [image.label for image in files.read()])
    ['boat', 'red fish'] [0, 1]
    """

    images: str
    """Path of the folder."""
    class_names: str | None = None
    """Path of a text file with one class name per line, in the order of the sorted folders. If None, the classes have
    the names of their folders, with spaces for underscores."""

    def read(self, num_samples: int | None = None) -> list[LabelledImage]:
        """List the images of all classes, or the first ``num_samples`` of them.

        Raises:
            FileNotFoundError: If the folder does not exist, or a class has no image.
        """
        root, folders = self._folders()
        samples = [
            LabelledImage(path.relative_to(root).as_posix(), path, label)
            for label, folder in enumerate(folders)
            for path in iter_image_files([folder])
        ]
        labels = {sample.label for sample in samples}
        if empty := [folder.name for label, folder in enumerate(folders) if label not in labels]:
            raise FileNotFoundError(
                f"{len(empty)} of {len(folders)} folders in {root} have no images: fill or remove them; first: "
                f"{', '.join(empty[:3])}"
            )
        return samples[:num_samples]

    def read_class_names(self) -> list[str]:
        """Return the names of the classes, in the order of their numbers.

        Raises:
            FileNotFoundError: If the folder or the file of names does not exist.
            MisconfigurationException: If the numbers of names and folders differ, or the file of names is not UTF-8.
        """
        root, folders = self._folders()
        if self.class_names is None:
            return [folder.name.replace("_", " ") for folder in folders]
        if not Path(self.class_names).is_file():
            raise FileNotFoundError(f"{self.class_names}, the file of class names, does not exist: give another path")
        names = read_lines(self.class_names)
        if len(names) != len(folders):
            raise MisconfigurationException(
                f"{self.class_names} names {len(names)} classes, but {root} has {len(folders)} folders: give one name "
                "per line, in the order of the sorted folders"
            )
        return names

    def _folders(self) -> tuple[Path, list[Path]]:
        root = ImageFinder(self.images).folder
        folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
        if not folders:
            raise FileNotFoundError(f"there are no folders in {root}: give one folder of images for each class")
        return root, folders


def _no_images(folder: Path) -> FileNotFoundError:
    return FileNotFoundError(f"there are no images in {folder}: give another folder as data.images")
