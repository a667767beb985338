"""The order of training samples in files, each epoch another, from which a resumed run goes on."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl

from vlkd_pl.data.sampler import EpochOrder


class OrderedDataModule(pl.LightningDataModule):
    """Trains on samples in files in the order of ``EpochOrder``, and keeps in checkpoints how far it has come.

    Args:
        seed: Decides the order of training.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.seed = seed
        self.num_trained_batches = 0

    def training_order(self, num_samples: int, batch_size: int) -> EpochOrder:
        """The order of this rank; see ``EpochOrder``."""
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)
        return EpochOrder(num_samples, batch_size, lambda: self.num_trained_batches, self.seed, rank, world_size)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Counts a training batch when it is used, not when it was read ahead."""
        if self.trainer is not None and self.trainer.training:
            self.num_trained_batches += 1
        return batch

    def state_dict(self) -> dict[str, Any]:
        """How many batches each rank has been trained on."""
        return {"num_trained_batches": self.num_trained_batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on behind these batches."""
        self.num_trained_batches = state_dict.get("num_trained_batches", 0)
