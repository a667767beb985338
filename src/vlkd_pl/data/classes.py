"""Pictures in one folder for each class, for zero-shot classification."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from pytorch_lightning.utilities.exceptions import MisconfigurationException

from vlkd_pl.data.pictures import PictureDataModule, PictureFinder, iter_pictures, read_lines


class LabelledImage(NamedTuple):
    """A picture with its class.

    Attributes:
        image_id: Its path below the folder.
        file: Its file.
        label: The number of its class.
    """

    image_id: str
    file: Path
    label: int


class ClassFolderDataModule(PictureDataModule):
    """A folder with one folder of pictures for each class, the layout of ImageNet and of torchvision's ``ImageFolder``.

    Args:
        images: The folder.
        class_names: Text file with a name a line, in the order of the sorted folders; by default the folders' own
            names, with spaces for underscores.
        **options: See ``PictureDataModule``.
    """

    def __init__(self, images: str, class_names: str | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.images = images
        self.class_names_file = class_names
        self.class_names: list[str] = []

    def read_samples(self) -> list[LabelledImage]:
        """All pictures of all classes.

        Raises:
            FileNotFoundError: The folder or the file of names is missing, or a class has no picture.
            MisconfigurationException: There are not as many names as folders, or their file is not UTF-8.
        """
        root = PictureFinder(self.images).folder
        folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
        if not folders:
            raise FileNotFoundError(f"there are no folders in {root}: give one folder of pictures for each class")
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
            for path in iter_pictures([folder])
        ]
        empty = [
            folders[label].name for label in sorted(set(range(len(folders))) - {sample.label for sample in samples})
        ]
        if empty:
            raise FileNotFoundError(
                f"{len(empty)} of {len(folders)} folders in {root} have no pictures: fill or remove them; first: "
                f"{', '.join(empty[:3])}"
            )
        return samples
