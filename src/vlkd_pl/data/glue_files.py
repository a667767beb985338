"""Readers of GLUE's files and of GLUE in Hugging Face ``datasets``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from vlkd_pl.batch import GLUE_LABELS, GLUEBatch, GLUETask
from vlkd_pl.errors import needs_extra
from vlkd_pl.text_files import Entries, iter_lines

_COLA_COLUMNS = ["source", "label", "star", "sentence"]


class Layout(NamedTuple):
    """The folder and the columns of a task.

    Attributes:
        folder: Folder of the benchmark files.
        columns: Columns of the texts in the benchmark files.
        label: Column of the label in the benchmark files.
        hub_columns: Columns of the texts in ``datasets``, where the column of the label is ``label``.
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
    """A sentence, or a pair of sentences, with its label.

    Attributes:
        number: Index in the file, from 0, as GLUE's server counts; invalid lines count too.
        texts: One or two texts.
        label: Number of the class in ``GLUE_LABELS``, or a similarity from 0 to 5; None if it is secret.
        part: ``matched`` or ``mismatched`` for MNLI's evaluation sets; empty otherwise.
    """

    number: int
    texts: tuple[str, ...]
    label: float | None = None
    part: str = ""


def read_tsv(path: str | Path, task: GLUETask, part: str = "") -> tuple[list[GLUEText], list[int]]:
    r"""Read a benchmark file as GLUE's readers do: quotes have no meaning, and a line is a sample.

    Args:
        path: Path of the file; CoLA's files other than ``test.tsv`` have no header.
        task: Name of the task, which decides the columns.
        part: ``matched`` or ``mismatched`` for MNLI's evaluation sets; empty otherwise.

    Returns:
        The samples, and the indices of the invalid lines, which are skipped: lines with another number of columns than
        the header, or with a label that the task does not have. Labels are secret if the file has no column for them.

    Raises:
        FileNotFoundError: If the file does not exist.
        MisconfigurationException: If the file does not have the columns of the task.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder, "dev.tsv")
    ...     _ = path.write_text("sentence\tlabel\na fine film\t1\nno label\n")
    ...     read_tsv(path, "sst2")
    ([GLUEText(number=0, texts=('a fine film',), label=1, part='')], [1])
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}: give the folder of GLUE's files as data.source")
    layout = LAYOUTS[task]
    samples, invalid = [], []
    rows = [line.split("\t") for line in iter_lines(path) if line]
    names = _COLA_COLUMNS if task == "cola" and path.name != "test.tsv" else rows[0] if rows else []
    if missing := [name for name in layout.columns if name not in names]:
        raise MisconfigurationException(f"{path} has no column {missing[0]!r}: give GLUE's file of {task}")
    places = [names.index(name) for name in layout.columns]
    label_place = names.index(layout.label) if layout.label in names else None
    for index, row in enumerate(rows if names is _COLA_COLUMNS else rows[1:]):
        label = None
        if len(row) == len(names) and label_place is not None:
            label = _label(task, row[label_place])
        if len(row) != len(names) or (label is None and label_place is not None):
            invalid.append(index)
            continue
        samples.append(GLUEText(index, tuple(row[place] for place in places), label, part))
    return samples, invalid


def read_dataset(source: str, task: GLUETask, split: str, part: str = "") -> tuple[list[GLUEText], list[int]]:
    """Read a split of a task from Hugging Face ``datasets``.

    Args:
        source: Folder that ``save_to_disk`` wrote, or a folder with such a folder for each task; or a name on the
            Hugging Face hub, as ``nyu-mll/glue``.
        task: Name of the task, which decides the columns.
        split: Split of the dataset, as ``validation_matched``.
        part: ``matched`` or ``mismatched`` for MNLI's evaluation sets; empty otherwise.

    Returns:
        The samples and the indices of the invalid rows, as ``read_tsv``; a label of -1 is secret.

    Raises:
        FileNotFoundError: If the dataset or the split does not exist.
        MisconfigurationException: If the dataset does not have the columns of the task.
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
            f"data.source: no dataset of {task} can be loaded from {source}: give a folder that save_to_disk wrote, "
            f"or a name on the Hugging Face hub where there is a network ({first_line})"
        ) from error
    if split not in loaded:
        raise FileNotFoundError(f"data.source: the dataset {source} has no split {split!r} but {sorted(loaded)}")
    columns = [*LAYOUTS[task].hub_columns, "label"]
    if missing := [name for name in columns if name not in loaded[split].column_names]:
        raise MisconfigurationException(f"data.source: {source} has no column {missing[0]!r}: give GLUE's {task}")
    rows = Entries(list(loaded[split].select_columns(columns)), f"data.source: {source}, split {split}")
    texts_of = [rows.texts(name, None) for name in columns[:-1]]
    samples, invalid = [], []
    for index, (number, *texts) in enumerate(
        zip(rows.values("label", {int, float}, "a number"), *texts_of, strict=True)
    ):
        secret = number == -1
        label = None if secret else _label_of_number(task, number)
        if None in texts or (label is None and not secret):
            invalid.append(index)
            continue
        samples.append(GLUEText(index, tuple(texts), label, part))
    return samples, invalid


def collate(samples: Sequence[GLUEText]) -> GLUEBatch:
    """Collate samples into a batch; without labels if one is secret."""
    labels = [sample.label for sample in samples if sample.label is not None]
    return {
        "samples": list(samples),
        "labels": torch.tensor(labels if len(labels) == len(samples) else []),
        "unreadable": [],
    }


def _label(task: GLUETask, text: str) -> float | None:
    """Convert a label in a benchmark file to a number; None if it is invalid."""
    if task != "stsb":
        return GLUE_LABELS[task].index(text) if text in GLUE_LABELS[task] else None
    try:
        return _label_of_number(task, float(text))
    except ValueError:
        return None


def _label_of_number(task: GLUETask, number: float) -> float | None:
    return number if 0 <= number <= (5 if task == "stsb" else len(GLUE_LABELS[task]) - 1) else None
