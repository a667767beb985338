"""GLUE's tasks (Wang et al., 2019), from the official files or from Hugging Face ``datasets``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from pytorch_lightning.utilities.rank_zero import rank_zero_info
from torch.utils.data import DataLoader

from vlkd_pl.batch import GLUE_LABELS, GLUEBatch, GLUETask
from vlkd_pl.data.base import one_thread
from vlkd_pl.data.order import EpochOrder, OrderedDataModule, OrderedDataset
from vlkd_pl.errors import needs_extra
from vlkd_pl.reading import Entries, iter_lines

Split = Literal["train", "dev", "test"]

_COLA_COLUMNS = ["source", "label", "star", "sentence"]
_HUB_SPLITS: dict[Split, str] = {"train": "train", "dev": "validation", "test": "test"}


class Layout(NamedTuple):
    """Where a task's texts stand.

    Attributes:
        folder: Folder of the official files.
        columns: Of the texts in the official files.
        label: Column of the label in the official files.
        hub_columns: Of the texts in ``datasets``, where the label's is ``label``.
    """

    folder: str
    columns: tuple[str, ...]
    label: str
    hub_columns: tuple[str, ...]


LAYOUTS: dict[GLUETask, Layout] = {
    "cola": Layout("CoLA", ("sentence",), "label", ("sentence",)),
    "sst2": Layout("SST-2", ("sentence",), "label", ("sentence",)),
    "rte": Layout("RTE", ("sentence1", "sentence2"), "label", ("sentence1", "sentence2")),
    "mrpc": Layout("MRPC", ("#1 String", "#2 String"), "Quality", ("sentence1", "sentence2")),
    "qqp": Layout("QQP", ("question1", "question2"), "is_duplicate", ("question1", "question2")),
    "mnli": Layout("MNLI", ("sentence1", "sentence2"), "gold_label", ("premise", "hypothesis")),
    "qnli": Layout("QNLI", ("question", "sentence"), "label", ("question", "sentence")),
    "stsb": Layout("STS-B", ("sentence1", "sentence2"), "score", ("sentence1", "sentence2")),
}


class GLUEText(NamedTuple):
    """A sentence or a pair.

    Attributes:
        number: Its place in its file from 0, as the server counts; broken lines count too.
        texts: One or two.
        label: The number of its class in ``GLUE_LABELS``, or a similarity from 0 to 5; None where it is secret.
        part: ``matched`` or ``mismatched`` for MNLI's evaluation sets.
    """

    number: int
    texts: tuple[str, ...]
    label: float | None = None
    part: str = ""


def read_tsv(path: str | Path, task: GLUETask, part: str = "") -> tuple[list[GLUEText], list[int]]:
    """Reads an official file as the official readers do: quotes mean nothing, and a line is a sample.

    Args:
        path: The file; CoLA's has no header unless it is called ``test.tsv``.
        task: Says which columns are read.
        part: Of MNLI.

    Returns:
        The samples, and the places of the broken lines, which are left out: the number of columns is not the header's,
        or the label is none of the task's. Where there is no column of labels, they are secret.

    Raises:
        FileNotFoundError: There is no such file.
        MisconfigurationException: It is not of the task's format.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file at {path}: give the folder of GLUE's official files as data.source")
    layout = LAYOUTS[task]
    samples, broken = [], []
    rows = [line.split("\t") for line in iter_lines(path) if line]
    names = _COLA_COLUMNS if task == "cola" and path.name != "test.tsv" else rows[0] if rows else []
    if missing := [name for name in layout.columns if name not in names]:
        raise MisconfigurationException(f"{path} has no column {missing[0]!r}: give GLUE's official file of {task}")
    places = [names.index(name) for name in layout.columns]
    label_place = names.index(layout.label) if layout.label in names else None
    for index, row in enumerate(rows if names is _COLA_COLUMNS else rows[1:]):
        label = None
        if len(row) == len(names) and label_place is not None:
            label = _label(task, row[label_place])
        if len(row) != len(names) or (label is None and label_place is not None):
            broken.append(index)
            continue
        samples.append(GLUEText(index, tuple(row[place] for place in places), label, part))
    return samples, broken


def read_dataset(source: str, task: GLUETask, split: str, part: str = "") -> tuple[list[GLUEText], list[int]]:
    """Reads a split of Hugging Face ``datasets``.

    Args:
        source: A folder that ``save_to_disk`` wrote, or one with such a folder for each task; or a name on the hub,
            ``nyu-mll/glue``.
        task: Says which columns are read.
        split: Of the data set: ``validation_matched``.
        part: Of MNLI.

    Returns:
        See ``read_tsv``; a label of -1 is secret.

    Raises:
        FileNotFoundError: There is no such data set or split.
        MisconfigurationException: It is not of the task's format.
    """
    with needs_extra("datasets"):
        import datasets

    folder = Path(source)
    try:
        if folder.is_dir():
            loaded = datasets.load_from_disk(folder / task if (folder / task).is_dir() else folder)
        else:
            loaded = datasets.load_dataset(source, task)
    except (OSError, ValueError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise FileNotFoundError(
            f"data.source: no data set of {task} can be loaded from {source}: give a folder that save_to_disk wrote, "
            f"or a name on the Hugging Face hub where there is a network ({first_line})"
        ) from error
    if split not in loaded:
        raise FileNotFoundError(f"data.source: the data set {source} has no split {split!r} but {sorted(loaded)}")
    columns = [*LAYOUTS[task].hub_columns, "label"]
    if missing := [name for name in columns if name not in loaded[split].column_names]:
        raise MisconfigurationException(f"data.source: {source} has no column {missing[0]!r}: give GLUE's {task}")
    rows = Entries(list(loaded[split].select_columns(columns)), f"data.source: {source}, split {split}")
    texts_of = [rows.texts(name, None) for name in columns[:-1]]
    samples, broken = [], []
    for index, (number, *texts) in enumerate(
        zip(rows.values("label", {int, float}, "a number"), *texts_of, strict=True)
    ):
        secret = number == -1
        label = None if secret else _label_of_number(task, number)
        if None in texts or (label is None and not secret):
            broken.append(index)
            continue
        samples.append(GLUEText(index, tuple(texts), label, part))
    return samples, broken


def collate(samples: Sequence[GLUEText]) -> GLUEBatch:
    """A batch; without labels where one is secret."""
    labels = [sample.label for sample in samples if sample.label is not None]
    return {
        "samples": list(samples),
        "labels": torch.tensor(labels if len(labels) == len(samples) else []),
        "unreadable": [],
    }


class GLUEDataModule(OrderedDataModule):
    """A task of GLUE.

    Args:
        task: Which one; given once, to the model.
        source: Folder of the official files, one folder for each task, as ``CoLA/train.tsv``; with ``reader``
            ``datasets``, see ``read_dataset``.
        reader: ``tsv`` for the official files, or ``datasets``.
        evaluated: What test and prediction take: ``dev``, as in Table 5, or ``test``, whose labels the server keeps.
        batch_size: Samples in a batch of one process.
        num_workers: Worker processes of one process.
        seed: Decides the order of training.
    """

    def __init__(
        self,
        task: GLUETask,
        source: str,
        reader: Literal["tsv", "datasets"] = "tsv",
        evaluated: Literal["dev", "test"] = "dev",
        batch_size: int = 32,
        num_workers: int = 2,
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        self.task: GLUETask = task
        self.source = source
        self.reader = reader
        self.evaluated: Literal["dev", "test"] = evaluated
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.samples: dict[Split, list[GLUEText]] = {}

    def setup(self, stage: str) -> None:
        """Reads what the stage needs, once, and reports broken lines.

        Raises:
            FileNotFoundError: A file, data set or split is missing.
            MisconfigurationException: One is of another format, has no sample in it, or no labels to train on; or there
                are broken lines in what the server must get a prediction of.
        """
        training: list[Split] = ["train", "dev"]
        for split in {"fit": training, "validate": training[1:]}.get(stage, [self.evaluated]):
            if split not in self.samples:
                self.samples[split] = self.read(split)

    def read(self, split: Split) -> list[GLUEText]:
        """The samples of a split; MNLI's evaluation sets after one another."""
        parts = ("matched", "mismatched") if self.task == "mnli" and split != "train" else ("",)
        samples: list[GLUEText] = []
        for part in parts:
            suffix = f"_{part}" if part else ""
            place = f"{Path(self.source, LAYOUTS[self.task].folder, f'{split}{suffix}.tsv')}"
            if self.reader == "tsv":
                read, broken = read_tsv(place, self.task, part)
            else:
                name = f"{_HUB_SPLITS[split]}{suffix}"
                place = f"{self.source}, {self.task}, {name}"
                read, broken = read_dataset(self.source, self.task, name, part)
            if broken:
                line = f"{place}: {len(broken)} broken lines are left out; first: {broken[:5]}"
                if split == "test":
                    raise MisconfigurationException(f"{line}; the server needs all: give the official file")
                rank_zero_info(line)
            if not read:
                raise MisconfigurationException(f"{place} holds no samples: give another data.source")
            if split != "test" and any(sample.label is None for sample in read):
                raise MisconfigurationException(f"{place} holds no labels: give GLUE's {split} set")
            samples += read
        return samples

    def train_dataloader(self) -> DataLoader[GLUEText]:
        """The training set, shuffled in each epoch; a resumed run goes on where it was."""
        order = self.training_order(len(self.samples["train"]), self.batch_size)
        return self._dataloader("train", order)

    def val_dataloader(self) -> DataLoader[GLUEText]:
        """The dev set, in order."""
        return self._dataloader("dev")

    def test_dataloader(self) -> DataLoader[GLUEText]:
        """What is evaluated, in order."""
        return self._dataloader(self.evaluated)

    def predict_dataloader(self) -> DataLoader[GLUEText]:
        """What is evaluated, in order."""
        return self._dataloader(self.evaluated)

    def _dataloader(self, split: Split, order: EpochOrder | None = None) -> DataLoader[GLUEText]:
        samples: Any = self.samples[split]
        return DataLoader(
            samples if order is None else OrderedDataset(samples),
            batch_size=self.batch_size,
            sampler=order,
            num_workers=self.num_workers,
            worker_init_fn=one_thread,
            collate_fn=collate,
            generator=torch.Generator(),  # or else evaluation would shift the random numbers of training
        )


def _label(task: GLUETask, text: str) -> float | None:
    """A label of the official files as a number; None where it is none."""
    if task != "stsb":
        return GLUE_LABELS[task].index(text) if text in GLUE_LABELS[task] else None
    try:
        return _label_of_number(task, float(text))
    except ValueError:
        return None


def _label_of_number(task: GLUETask, number: float) -> float | None:
    return number if 0 <= number <= (5 if task == "stsb" else len(GLUE_LABELS[task]) - 1) else None
