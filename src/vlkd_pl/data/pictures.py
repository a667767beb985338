"""Pictures in files with what is known of them: what every evaluation reads."""

from __future__ import annotations

import os
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from PIL import Image
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vlkd_pl.batch import PictureBatch
from vlkd_pl.data.base import CLIPTokenizer, clip_image_size, load_clip_tokenizer, one_thread
from vlkd_pl.data.images import ImageError, check_image, read_image
from vlkd_pl.data.order import OrderedDataModule
from vlkd_pl.data.transforms import clip_transform
from vlkd_pl.distributed import gather_objects, rank, world_size
from vlkd_pl.reading import iter_lines

PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm"})
"""Endings of the files that are taken from a folder; a file that is named itself may have any."""

_NUMBER = re.compile(r"(\d+)$")


class Sample(Protocol):
    """What is known of a picture; each data module has its own kind."""

    @property
    def file(self) -> Path:
        """The picture's file."""


class Picture(NamedTuple):
    """A picture of which nothing else is known.

    Attributes:
        file: Its file.
        image_id: Its path below the folder it was found in.
    """

    file: Path
    image_id: str


def iter_pictures(paths: Iterable[str | Path]) -> Iterator[Path]:
    """Goes through files and, recursively, the pictures of folders, in the order of names, one folder at a time.

    Links are followed, but no folder is gone through twice. A folder that cannot be read is warned of.

    Args:
        paths: Files, which are taken as they are, and folders, of which ``PICTURE_SUFFIXES`` are taken, but nothing
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
                if os.path.splitext(name)[1].lower() in PICTURE_SUFFIXES and not name.startswith("."):
                    yield Path(folder, name)


class PictureFinder:
    """Finds the files of pictures under a folder, by path, by name, or by number.

    Args:
        folder: Folder of pictures, with or without the sub-folders that annotation files name.

    Raises:
        FileNotFoundError: There is no such folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise FileNotFoundError(f"there is no folder of pictures at {folder}: give the one they lie in")
        self._by_number: dict[int, Path] | None = None

    def by_name(self, file_name: str) -> Path:
        """The file ``file_name`` below the folder; else the file of that name in the folder itself."""
        path = self.folder / file_name
        return path if path.is_file() else self.folder / path.name

    def by_number(self, image_id: int) -> Path:
        """The picture whose name ends in the number: COCO's ``COCO_val2014_000000000042.jpg`` or ``000000000042.jpg``.

        Of several it is the first ``.jpg`` in the order of ``iter_pictures``, since COCO's masks are ``.png``; a path
        where nothing lies if there is none.
        """
        if self._by_number is None:
            self._by_number = {}
            for path in sorted(iter_pictures([self.folder]), key=lambda path: path.suffix.lower() != ".jpg"):
                if match := _NUMBER.search(path.stem):
                    self._by_number.setdefault(int(match[1]), path)
        return self._by_number.get(image_id, self.folder / f"{image_id:012d}.jpg")


def check_present(files: Sequence[Path], named_in: str | Path) -> None:
    """Raises unless all pictures are there.

    Raises:
        FileNotFoundError: Some are missing; the first are named.
    """
    missing = [str(path) for path in files if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(files)} pictures of {named_in} are missing: give the folder that they lie in; "
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


class PictureDataset(Dataset[tuple[Tensor | None, Any, str]]):
    """Reads pictures.

    Args:
        samples: Each with its ``file``.
        transform: From a picture to a tensor.
    """

    def __init__(self, samples: Sequence[Sample], transform: Callable[[Image.Image], Tensor]) -> None:
        self.samples = samples
        self.transform = transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor | None, Any, str]:
        """The picture, what is known of it, and why it cannot be read where it is None."""
        sample = self.samples[index]
        try:
            return self.transform(read_image(sample.file)), sample, ""
        except ImageError as error:
            return None, sample, str(error)


def collate_pictures(items: Sequence[tuple[Tensor | None, Any, str]]) -> PictureBatch:
    """A batch of the pictures that could be read, with a line on each of the others."""
    read = [(image, sample) for image, sample, _ in items if image is not None]
    return {
        "image": torch.stack([image for image, _ in read]) if read else torch.empty(0),
        "samples": [sample for _, sample in read],
        "unreadable": [reason for image, _, reason in items if image is None],
    }


class PictureDataModule(OrderedDataModule, ABC):
    """Pictures for validation, test and prediction; a subclass says which, in ``read_samples``.

    Prediction goes on without the pictures that cannot be read, and names them; training and scores need every picture.

    Args:
        clip: CLIP's name, file or folder, for its tokenizer and picture size.
        image_size: Width and height of a picture in pixels; CLIP's own by default.
        batch_size: Pictures in a batch of one process.
        num_workers: Worker processes of one process.
        num_samples: Pictures to take, the first of all; all by default.
        seed: Decides the order of training, where there is one.

    Raises:
        MisconfigurationException: CLIP's picture size is unknown, or ``num_samples`` is below 1.
    """

    def __init__(
        self,
        clip: str,
        image_size: int | None = None,
        batch_size: int = 32,
        num_workers: int = 4,
        num_samples: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        if num_samples is not None and num_samples < 1:
            raise MisconfigurationException(f"data.num_samples is {num_samples}: give at least 1, or null for all")
        self.clip = clip
        self.transform = clip_transform(image_size or clip_image_size(clip))
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.num_samples = num_samples
        self.samples: Sequence[Sample] = []
        self._clip_tokenizer: CLIPTokenizer | None = None

    @abstractmethod
    def read_samples(self) -> Sequence[Sample]:
        """What there is to evaluate, one sample for each picture."""

    @property
    def clip_tokenizer(self) -> CLIPTokenizer:
        """CLIP's tokenizer, loaded on first use."""
        if self._clip_tokenizer is None:
            self._clip_tokenizer = load_clip_tokenizer(self.clip)
        return self._clip_tokenizer

    def setup(self, stage: str) -> None:
        """Reads what there is, once; images that are to be scored are all decoded before the first is used.

        Raises:
            FileNotFoundError: A file or picture is missing.
            MisconfigurationException: A file is of another format, there is nothing in it, or an image cannot be read.
        """
        if not self.samples:
            samples = self.read_samples()[: self.num_samples]
            if stage != "predict":
                check_readable((sample.file for sample in samples), self.num_workers)
            self.samples = samples

    def val_dataloader(self) -> DataLoader[PictureBatch]:
        """The pictures, in order."""
        return self._evaluation_loader()

    def test_dataloader(self) -> DataLoader[PictureBatch]:
        """The pictures, in order."""
        return self._evaluation_loader()

    def predict_dataloader(self) -> DataLoader[PictureBatch]:
        """The pictures, in order."""
        return self._evaluation_loader()

    def on_before_batch_transfer(self, batch: PictureBatch, dataloader_idx: int) -> PictureBatch:
        """Also stops training and test at a picture that cannot be read; workers' errors are many lines long.

        Raises:
            MisconfigurationException: A picture cannot be read.
        """
        if batch["unreadable"] and self.trainer is not None and not self.trainer.predicting:
            raise MisconfigurationException(
                f"the picture {batch['unreadable'][0]}: it cannot be read, but every picture is needed: replace it"
            )
        counted: PictureBatch = super().on_before_batch_transfer(batch, dataloader_idx)
        return counted

    def _evaluation_loader(self) -> DataLoader[PictureBatch]:
        return self.loader(PictureDataset(self.samples, self.transform), self.batch_size, collate_pictures)

    def loader(
        self, dataset: Dataset[Any], batch_size: int, collate: Callable[[Any], Any], **options: Any
    ) -> DataLoader[Any]:
        """A loader with the options that are the same for all."""
        return DataLoader[Any](
            dataset,
            batch_size=batch_size,
            num_workers=self.num_workers,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=one_thread,
            generator=torch.Generator(),  # or else evaluation and resuming would shift the random numbers of training
            **options,
        )


class TrainedPictureDataModule(PictureDataModule):
    """Pictures to train on and to evaluate.

    Args:
        test_files: What test and prediction take, of a kind that the subclass reads.
        val_files: The same of the validation of a training; ``test_files`` by default.
        train_files: The same of training.
        train_batch_size: Samples in a training batch of one process.
        **options: See ``PictureDataModule``; ``num_samples`` is of the pictures to evaluate.
    """

    def __init__(
        self, test_files: Any, val_files: Any, train_files: Any, train_batch_size: int, **options: Any
    ) -> None:
        super().__init__(**options)
        self.test_files = test_files
        self.val_files = val_files or test_files
        self.train_files = train_files
        self.train_batch_size = train_batch_size
        self.evaluated = test_files
        self.training: Sequence[Any] = []

    @abstractmethod
    def read_training(self) -> Sequence[Sample]:
        """What there is to train on, one sample for each place in an epoch."""

    @abstractmethod
    def training_dataset(self) -> tuple[Dataset[Any], Callable[[Any], Any]]:
        """What reads ``training`` by the keys of ``EpochOrder``, and what makes a batch of it."""

    def setup(self, stage: str) -> None:
        """Reads the files of a stage, once, and looks for every picture before the first is used.

        Raises:
            FileNotFoundError: A file or picture is missing.
            MisconfigurationException: A file is of another format, or there is nothing to evaluate or to train on.
        """
        evaluated = self.val_files if stage in ("fit", "validate") else self.test_files
        if evaluated != self.evaluated:
            self.evaluated, self.samples = evaluated, []
        super().setup(stage)
        if stage == "fit" and not self.training:
            if self.train_files is None:
                raise MisconfigurationException("there is nothing to train on: give data.train")
            self.training = self.read_training()

    def train_dataloader(self) -> DataLoader[Any]:
        """The samples, shuffled in each epoch; a resumed run goes on where it was."""
        dataset, collate = self.training_dataset()
        order = self.training_order(len(self.training), self.train_batch_size)
        return self.loader(dataset, self.train_batch_size, collate, sampler=order, drop_last=True)


class FolderDataModule(PictureDataModule):
    """The pictures of a folder of one's own, for ``vlkd-pl predict``.

    Args:
        images: A folder, searched recursively; or an image file.
        **options: See ``PictureDataModule``.
    """

    def __init__(self, images: str, **options: Any) -> None:
        super().__init__(**options)
        self.images = images

    def read_samples(self) -> list[Picture]:
        """All pictures of the folder.

        Raises:
            FileNotFoundError: There is no such folder, or no picture in it.
        """
        if Path(self.images).is_file():
            return [Picture(Path(self.images), Path(self.images).name)]
        folder = PictureFinder(self.images).folder
        pictures = [Picture(path, path.relative_to(folder).as_posix()) for path in iter_pictures([folder])]
        if not pictures:
            raise FileNotFoundError(f"there are no pictures in {folder}: give another folder as data.images")
        return pictures


def _warn_of_folder(error: OSError) -> None:
    warnings.warn(f"the folder {error.filename} is left out, since it cannot be read: {error.strerror}", stacklevel=2)
