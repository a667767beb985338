"""Image files: finding them, and datasets that read them."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from PIL import Image
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.utils.data import Dataset

from vlkd_pl.batch import ImageBatch
from vlkd_pl.distributed import gather_objects, rank, world_size
from vlkd_pl.images import ImageError, check_image, read_image
from vlkd_pl.text_files import iter_lines

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm"})
"""Endings of the files that are taken from a folder; a file that is named itself may have any."""

_NUMBER = re.compile(r"(\d+)$")


class Sample(Protocol):
    """What is known of an image; each data module has its own kind."""

    @property
    def file(self) -> Path:
        """The image's file."""


class ImageFile(NamedTuple):
    """A picture of which nothing else is known.

    Attributes:
        file: Its file.
        image_id: Its path below the folder it was found in.
    """

    file: Path
    image_id: str


def iter_image_files(paths: Iterable[str | Path]) -> Iterator[Path]:
    """Goes through files and, recursively, the images of folders, in the order of names, one folder at a time.

    Links are followed, but no folder is gone through twice. A folder that cannot be read is warned of.

    Args:
        paths: Files, which are taken as they are, and folders, of which ``IMAGE_SUFFIXES`` are taken, but nothing
            whose name starts with a dot.
    """
    for path in paths:
        if not os.path.isdir(path):
            yield Path(path)
            continue
        visited: set[str] = set()
        for folder, folders, files in os.walk(path, onerror=_warn_of_folder, followlinks=True):
            real = os.path.realpath(folder)
            if real in visited:
                folders.clear()
                continue
            visited.add(real)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(files):
                if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith("."):
                    yield Path(folder, name)


class ImageFinder:
    """Finds the files of images under a folder, by path, by name, or by number.

    Args:
        folder: Folder of images, with or without the sub-folders that annotation files name.

    Raises:
        FileNotFoundError: There is no such folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise FileNotFoundError(f"there is no folder of images at {folder}: give the one they lie in")
        self._by_number: dict[int, Path] | None = None

    def by_name(self, file_name: str) -> Path:
        """The file ``file_name`` below the folder; else the file of that name in the folder itself."""
        path = self.folder / file_name
        return path if path.is_file() else self.folder / path.name

    def by_number(self, image_id: int) -> Path:
        """The image whose name ends in the number: COCO's ``COCO_val2014_000000000042.jpg`` or ``000000000042.jpg``.

        Of several it is the first ``.jpg`` in the order of ``iter_image_files``, since COCO's masks are ``.png``; a
        path where nothing lies if there is none.
        """
        if self._by_number is None:
            self._by_number = {}
            for path in sorted(iter_image_files([self.folder]), key=lambda path: path.suffix.lower() != ".jpg"):
                if match := _NUMBER.search(path.stem):
                    self._by_number.setdefault(int(match[1]), path)
        return self._by_number.get(image_id, self.folder / f"{image_id:012d}.jpg")


def check_present(files: Sequence[Path], named_in: str | Path) -> None:
    """Raises unless all images are there.

    Raises:
        FileNotFoundError: Some are missing; the first are named.
    """
    missing = [str(path) for path in files if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(files)} images of {named_in} are missing: give the folder that they lie in; "
            f"first: {', '.join(missing[:3])}"
        )


def check_readable(files: Iterable[Path], num_threads: int = 1) -> None:
    """Decodes images once, before a model needs them; each rank takes a share, and all ranks learn the result.

    Args:
        files: Image files, the same on every rank.
        num_threads: Threads of this rank; about 500 COCO images a second are decoded by a core.

    Raises:
        MisconfigurationException: Some cannot be read; the first are named.
    """
    unique = list(dict.fromkeys(files))
    with ThreadPoolExecutor(max(1, num_threads)) as threads:
        problems = gather_objects([each for each in threads.map(_problem, unique[rank() :: world_size()]) if each])
    if problems:
        raise MisconfigurationException(
            f"{len(problems)} of {len(unique)} images cannot be read, but every one is needed: replace them; first: "
            f"{'; '.join(problems[:3])}"
        )


def _problem(file: Path) -> str:
    try:
        check_image(file)
    except ImageError as error:
        return str(error)
    except Exception as error:  # the other ranks wait for this one
        return f"{file}: {error!r}"
    return ""


def read_lines(path: str | Path) -> list[str]:
    """The lines of a text file that hold anything, without the white space around them; see ``iter_lines``.

    Raises:
        FileNotFoundError: There is no such file.
        MisconfigurationException: It cannot be read, or is no text in UTF-8.
    """
    return [line.strip() for line in iter_lines(path) if line.strip()]


class ImageDataset(Dataset[tuple[Tensor | None, Any, str]]):
    """Reads images.

    Args:
        samples: Each with its ``file``.
        transform: From an image to a tensor.
    """

    def __init__(self, samples: Sequence[Sample], transform: Callable[[Image.Image], Tensor]) -> None:
        self.samples = samples
        self.transform = transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor | None, Any, str]:
        """The image, what is known of it, and why it cannot be read where it is None."""
        sample = self.samples[index]
        try:
            return self.transform(read_image(sample.file)), sample, ""
        except ImageError as error:
            return None, sample, str(error)


def collate_images(items: Sequence[tuple[Tensor | None, Any, str]]) -> ImageBatch:
    """A batch of the images that could be read, with a line on each of the others."""
    read = [(image, sample) for image, sample, _ in items if image is not None]
    return {
        "image": torch.stack([image for image, _ in read]) if read else torch.empty(0),
        "samples": [sample for _, sample in read],
        "unreadable": [reason for image, _, reason in items if image is None],
    }


def _warn_of_folder(error: OSError) -> None:
    warnings.warn(f"the folder {error.filename} is left out, since it cannot be read: {error.strerror}", stacklevel=2)
