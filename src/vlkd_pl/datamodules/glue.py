"""GLUE's tasks, from the benchmark files or from Hugging Face ``datasets``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pytorch_lightning.utilities.exceptions import MisconfigurationException
from pytorch_lightning.utilities.rank_zero import rank_zero_info
from torch.utils.data import DataLoader

from vlkd_pl.batch import GLUETask
from vlkd_pl.data.glue_files import LAYOUTS, GLUEText, collate, read_dataset, read_tsv
from vlkd_pl.data.sampler import OrderedDataset
from vlkd_pl.datamodules.base import BaseDataModule

Split = Literal["train", "dev", "test"]

_HUB_SPLITS: dict[Split, str] = {"train": "train", "dev": "validation", "test": "test"}


class GLUEDataModule(BaseDataModule):
    r"""A task of GLUE (Wang et al., 2019).

    Args:
        task: Name of the task; on the command line it is the model's.
        source: Folder of the benchmark files with a folder for each task, as ``CoLA/train.tsv``; with ``reader:
            datasets`` a folder that ``save_to_disk`` wrote, or a name on the Hugging Face hub, as ``nyu-mll/glue``.
        reader: ``tsv`` for the benchmark files, or ``datasets``.
        evaluated: Split for test and prediction: ``dev``, as in the paper's Table 5, or ``test``, whose labels are
            secret.
        batch_size: Number of samples in a batch of one rank.
        num_workers: Number of worker processes of each rank.
        seed: Seed of the training order.

    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     Path(folder, "SST-2").mkdir()
    ...     _ = Path(folder, "SST-2", "dev.tsv").write_text("sentence\tlabel\na fine film\t1\n")
    ...     data = GLUEDataModule("sst2", folder, num_workers=0)
    ...     data.setup("test")
    >>> next(iter(data.test_dataloader()))["labels"]
    tensor([1])
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
        super().__init__(num_workers, seed)
        self.task: GLUETask = task
        self.source = source
        self.reader = reader
        self.evaluated: Literal["dev", "test"] = evaluated
        self.batch_size = batch_size
        self.samples: dict[Split, list[GLUEText]] = {}

    def setup(self, stage: str) -> None:
        """Read the splits of a stage once, and report invalid lines.

        Raises:
            FileNotFoundError: If a file, dataset or split is missing.
            MisconfigurationException: If one is invalid, holds no sample, or lacks labels to train on; or if the test
                set, of which the server needs every prediction, has invalid lines.
        """
        training: list[Split] = ["train", "dev"]
        for split in {"fit": training, "validate": training[1:]}.get(stage, [self.evaluated]):
            if split not in self.samples:
                self.samples[split] = self.read(split)

    def read(self, split: Split) -> list[GLUEText]:
        """Read the samples of a split; of MNLI's the matched and then the mismatched set."""
        parts = ("matched", "mismatched") if self.task == "mnli" and split != "train" else ("",)
        samples: list[GLUEText] = []
        for part in parts:
            suffix = f"_{part}" if part else ""
            place = f"{Path(self.source, LAYOUTS[self.task].folder, f'{split}{suffix}.tsv')}"
            if self.reader == "tsv":
                rows, invalid = read_tsv(place, self.task, part)
            else:
                name = f"{_HUB_SPLITS[split]}{suffix}"
                place = f"{self.source}, {self.task}, {name}"
                rows, invalid = read_dataset(self.source, self.task, name, part)
            if invalid:
                line = f"{place}: {len(invalid)} invalid lines are skipped; first: {invalid[:5]}"
                if split == "test":
                    raise MisconfigurationException(f"{line}; the server needs all: give GLUE's file")
                rank_zero_info(line)
            if not rows:
                raise MisconfigurationException(f"{place} holds no samples: give another data.source")
            if split != "test" and any(sample.label is None for sample in rows):
                raise MisconfigurationException(f"{place} holds no labels: give GLUE's {split} set")
            samples += rows
        return samples

    def train_dataloader(self) -> DataLoader[GLUEText]:
        """Load the training set, shuffled in each epoch; a resumed run continues within its epoch."""
        samples = self.samples["train"]
        order = self.training_order(len(samples), self.batch_size)
        return self.loader(OrderedDataset(samples), self.batch_size, collate, order)

    def val_dataloader(self) -> DataLoader[GLUEText]:
        """Load the dev set, in order."""
        return self._evaluation_loader("dev")

    def test_dataloader(self) -> DataLoader[GLUEText]:
        """Load the evaluated split, in order."""
        return self._evaluation_loader(self.evaluated)

    predict_dataloader = test_dataloader

    def _evaluation_loader(self, split: Split) -> DataLoader[GLUEText]:
        samples: Any = self.samples[split]
        return self.loader(samples, self.batch_size, collate)
