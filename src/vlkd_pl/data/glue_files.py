"""GLUE's files and Hugging Face datasets of them."""

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
