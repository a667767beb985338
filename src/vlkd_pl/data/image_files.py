"""Image files: finding, checking and reading them."""

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
from vlkd_pl.clip.tokenizer import load_clip_tokenizer
from vlkd_pl.clip.transform import clip_transform
from vlkd_pl.clip.weights import clip_image_size
from vlkd_pl.distributed import gather_objects, rank, world_size
from vlkd_pl.images import ImageError, check_image, read_image
from vlkd_pl.text_files import iter_lines

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm"})
"""Suffixes of the files that are read from a folder; a file that is named directly may have any suffix."""

_NUMBER = re.compile(r"(\d+)$")


class Sample(Protocol):
    """An image file with its metadata, such as captions or questions; each data module has a type for it."""

    @property
    def file(self) -> Path:
        """The path of the image file."""


class SampleSource(Protocol):
    """The files of a set of images, such as ``CaptionFiles``; equal sources have equal samples."""

    def read(self, num_samples: int | None = None) -> Sequence[Sample]:
        """Read the samples, or the first ``num_samples`` of them."""


class ImageFile(NamedTuple):
    """An image file without metadata.

    Attributes:
        file: Path of the file.
        image_id: Path relative to the folder that was searched.
    """

    file: Path
    image_id: str


def iter_image_files(paths: Iterable[str | Path]) -> Iterator[Path]:
    """Iterate over image files and, recursively, over the images of folders, sorted by name within each folder.

    Links are followed, but no folder is visited twice. An unreadable folder is skipped with a warning.

    Args:
        paths: Files, which are yielded unchanged, and folders, of which the files with ``IMAGE_SUFFIXES`` are yielded.
            Files and folders whose name starts with a dot are skipped.
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
    """Find image files in a folder by path, by name or by number.

    Args:
        folder: Folder of images, with or without the subfolders that annotation files name.

    Raises:
        FileNotFoundError: If the folder does not exist.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     Path(folder, "COCO_val2014_000000000042.jpg").touch()
    ...     print(ImageFinder(folder).by_number(42).name)
    COCO_val2014_000000000042.jpg
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise FileNotFoundError(f"there is no folder of images at {folder}: give the one they lie in")
        self._by_number: dict[int, Path] | None = None

    def by_name(self, file_name: str) -> Path:
        """Return the file at the path ``file_name`` in the folder, else the one of that name without subfolders."""
        path = self.folder / file_name
        return path if path.is_file() else self.folder / path.name

    def by_number(self, image_id: int) -> Path:
        """Return the image whose name ends in a number, as ``COCO_val2014_000000000042.jpg`` or ``000000000042.jpg``.

        Of several files it is the first ``.jpg`` in the order of ``iter_image_files``, since COCO's masks are ``.png``.
        Without any it is the path at which COCO would store the image.
        """
        if self._by_number is None:
            self._by_number = {}
            for path in sorted(iter_image_files([self.folder]), key=lambda path: path.suffix.lower() != ".jpg"):
                if match := _NUMBER.search(path.stem):
                    self._by_number.setdefault(int(match[1]), path)
        return self._by_number.get(image_id, self.folder / f"{image_id:012d}.jpg")


def check_present(files: Sequence[Path], named_in: str | Path) -> None:
    """Check that image files exist.

    Args:
        files: Paths of the images.
        named_in: File that lists the images, for the error message.

    Raises:
        FileNotFoundError: If images are missing; the message counts them and names the first three.
    """
    missing = [str(path) for path in files if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(files)} images of {named_in} are missing: give the folder that they lie in; "
            f"first: {', '.join(missing[:3])}"
        )


def check_readable(files: Iterable[Path], num_threads: int = 1) -> None:
    """Decode every image once before a model is used; the ranks share the work and all raise on an error.

    Args:
        files: Image files, the same on every rank; repeated files are decoded once.
        num_threads: Number of threads of this rank; a core decodes about 500 images of COCO per second.

    Raises:
        MisconfigurationException: If images cannot be read; the message counts them and names the first three.
    """
    unique = list(dict.fromkeys(files))
    with ThreadPoolExecutor(max(1, num_threads)) as threads:
        problems = gather_objects(
            [problem for problem in threads.map(_problem, unique[rank() :: world_size()]) if problem]
        )
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
    """Read the lines of a UTF-8 text file, stripped and without empty lines.

    Raises:
        FileNotFoundError: If the file does not exist.
        MisconfigurationException: If the file cannot be read or is not UTF-8.
    """
    return [line.strip() for line in iter_lines(path) if line.strip()]


class ImageDataset(Dataset[tuple[Tensor | None, Any, str]]):
    """A dataset that reads the images of samples.

    Args:
        samples: Samples, each with the path of its image as ``file``.
        transform: Converts an image to a tensor.
    """

    def __init__(self, samples: Sequence[Sample], transform: Callable[[Image.Image], Tensor]) -> None:
        self.samples = samples
        self.transform = transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor | None, Any, str]:
        """Return the image, its sample and an empty text; for an unreadable image None, its sample and the reason."""
        sample = self.samples[index]
        try:
            return self.transform(read_image(sample.file)), sample, ""
        except ImageError as error:
            return None, sample, str(error)


def collate_images(items: Sequence[tuple[Tensor | None, Any, str]]) -> ImageBatch:
    """Collate the readable images of a batch, and list the reasons why the others cannot be read."""
    readable = [(image, sample) for image, sample, _ in items if image is not None]
    return {
        "image": torch.stack([image for image, _ in readable]) if readable else torch.empty(0),
        "samples": [sample for _, sample in readable],
        "unreadable": [reason for image, _, reason in items if image is None],
    }


class EvaluationImages:
    """The images that a data module evaluates, prepared as a CLIP takes them.

    Args:
        clip: Name, file or folder of the CLIP, for its image size and its tokenizer.
        image_size: Width and height of a prepared image in pixels; those of the CLIP if None.
        num_samples: Number of images to read, the first of their source; all if None.
        num_threads: Number of threads that check the images.

    Attributes:
        transform: Converts an image to a uint8 tensor (3, H, W).
        tokenizer: Tokenizer of the CLIP.

    Raises:
        MisconfigurationException: If the image size of the CLIP is unknown, or ``num_samples`` is below 1.

    >>> images = EvaluationImages("ViT-B/16")
    >>> images.transform(Image.new("RGB", (300, 200))).shape
    torch.Size([3, 224, 224])
    """

    def __init__(
        self, clip: str, image_size: int | None = None, num_samples: int | None = None, num_threads: int = 1
    ) -> None:
        if num_samples is not None and num_samples < 1:
            raise MisconfigurationException(f"data.num_samples is {num_samples}: give at least 1, or null for all")
        self.transform = clip_transform(image_size or clip_image_size(clip))
        self.tokenizer = load_clip_tokenizer(clip)
        self.num_samples = num_samples
        self.num_threads = num_threads
        self._source: SampleSource | None = None
        self._samples: Sequence[Any] = []

    def read(self, source: SampleSource, stage: str) -> Sequence[Any]:
        """Read the samples of a source, unless they are those that were read last.

        Args:
            source: The files to read.
            stage: Lightning's stage. Every image is decoded before the first is used, except for ``predict``, which
                skips and reports unreadable images.

        Raises:
            FileNotFoundError: If a file or an image is missing.
            MisconfigurationException: If a file is invalid, or an image cannot be read.
        """
        if source != self._source:
            samples = source.read(self.num_samples)
            if stage != "predict":
                check_readable((sample.file for sample in samples), self.num_threads)
            self._source, self._samples = source, samples
        return self._samples

    def dataset(self) -> ImageDataset:
        """Return a dataset of the images that were read last, in order."""
        return ImageDataset(self._samples, self.transform)


def _warn_of_folder(error: OSError) -> None:
    warnings.warn(f"the folder {error.filename} is skipped, since it cannot be read: {error.strerror}", stacklevel=2)
