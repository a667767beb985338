"""GLUE's tasks (Wang et al., 2019), from the official files or from Hugging Face ``datasets``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from pytorch_lightning.utilities.rank_zero import rank_zero_info
from torch.utils.data import DataLoader

from vlkd_pl.batch import GLUETask
from vlkd_pl.data.glue_files import LAYOUTS, GLUEText, collate, read_dataset, read_tsv
from vlkd_pl.data.sampler import EpochOrder, OrderedDataset
from vlkd_pl.data.workers import worker_init_fn
from vlkd_pl.datamodules.order import OrderedDataModule

Split = Literal["train", "dev", "test"]

_HUB_SPLITS: dict[Split, str] = {"train": "train", "dev": "validation", "test": "test"}


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
            worker_init_fn=worker_init_fn,
            collate_fn=collate,
            generator=torch.Generator(),  # or else evaluation would shift the random numbers of training
        )
