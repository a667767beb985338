"""The base of all data modules: the training order, its state in checkpoints, and the data loader."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader, Dataset

from vlkd_pl.data.sampler import EpochOrder
from vlkd_pl.data.workers import worker_init_fn


class BaseDataModule(pl.LightningDataModule):
    """Shuffles training samples reproducibly, and resumes the order from a checkpoint.

    A data module subclasses it directly, reads its files in ``setup``, and builds its loaders with ``loader``.

    Args:
        num_workers: Number of worker processes of each rank; 0 loads in the main process.
        seed: Seed of the training order.

    >>> data = BaseDataModule(seed=3)
    >>> list(data.training_order(num_samples=5, batch_size=2))
    [(0, 4), (0, 2), (0, 1), (0, 3)]
    >>> data.load_state_dict({"num_trained_batches": 1})
    >>> list(data.training_order(num_samples=5, batch_size=2))
    [(0, 1), (0, 3)]
    """

    def __init__(self, num_workers: int = 0, seed: int = 0) -> None:
        super().__init__()
        self.num_workers = num_workers
        self.seed = seed
        self.num_trained_batches = 0

    @property
    def rank(self) -> int:
        """The number of this process among all ranks; 0 without a trainer."""
        return self.trainer.global_rank if self.trainer is not None else 0

    @property
    def world_size(self) -> int:
        """The number of ranks; 1 without a trainer."""
        return self.trainer.world_size if self.trainer is not None else 1

    def training_order(self, num_samples: int, batch_size: int) -> EpochOrder:
        """Shuffle samples for this rank, from the first batch that it has not been trained on.

        Args:
            num_samples: Number of training samples of all ranks.
            batch_size: Number of samples in a batch of one rank.
        """
        return EpochOrder(
            num_samples, batch_size, lambda: self.num_trained_batches, self.seed, self.rank, self.world_size
        )

    def loader(
        self,
        dataset: Dataset[Any],
        batch_size: int | None,
        collate: Callable[[Any], Any] | None = None,
        order: Iterable[Any] | None = None,
        isolate_random_state: bool = True,
    ) -> DataLoader[Any]:
        """Build a data loader with the options that all data modules share.

        Args:
            dataset: Dataset of samples, or of batches where ``batch_size`` is None.
            batch_size: Number of samples in a batch of one rank; None for a dataset of batches.
            collate: Makes a batch of a list of samples; PyTorch's default collation if None.
            order: Keys of the dataset in the order of loading, such as an ``EpochOrder``, whose keys are pairs of epoch
                and index; None to load in order.
            isolate_random_state: Whether the seed of the workers is drawn from a generator of the loader, so that
                starting the loader does not shift the random numbers of training.
        """
        return DataLoader[Any](
            dataset,
            batch_size=batch_size,
            sampler=order,
            num_workers=self.num_workers,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=worker_init_fn,
            generator=torch.Generator() if isolate_random_state else None,
        )

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Refuse a batch with an unreadable image, and count a training batch when it is used, not when it is loaded.

        Only prediction accepts a batch that lacks some of its images.

        Raises:
            MisconfigurationException: If an image cannot be read during training, validation or test. It is raised
                here since the traceback of a worker process would hide it.
        """
        if self.trainer is None:
            return batch
        if batch.get("unreadable") and not self.trainer.predicting:
            raise MisconfigurationException(
                f"the image {batch['unreadable'][0]}: it cannot be read, but every image is needed: replace it"
            )
        if self.trainer.training:
            self.num_trained_batches += 1
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Return the number of batches that each rank has been trained on."""
        return {"num_trained_batches": self.num_trained_batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume the training order after the batches of a checkpoint."""
        self.num_trained_batches = state_dict.get("num_trained_batches", 0)
