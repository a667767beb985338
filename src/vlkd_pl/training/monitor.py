"""The callback that logs the learning rate, the speed and what was skipped."""

from __future__ import annotations

import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities.rank_zero import rank_zero_info

from vlkd_pl.training.contracts import CountsSkippedSamples, data_module
from vlkd_pl.training.nonfinite import NonFiniteSteps, gradient_scaler


class TrainingMonitor(Callback):
    """Logs the learning rate, samples per second, skipped optimizer steps and skipped samples.

    Lightning's ``LearningRateMonitor`` logs one name for each parameter group, in CSV rows apart from the losses;
    ``ThroughputMonitor`` waits for the GPU in every batch, and is not shown in the progress bar. The speed here is that
    of a batch to the next, without validations, and is logged as ``train/samples_per_second``.

    Args:
        skipped_steps: Counter of the optimizer steps that were skipped.
    """

    def __init__(self, skipped_steps: NonFiniteSteps) -> None:
        self.skipped_steps = skipped_steps
        self._batch_end_s: float | None = None
        self._data: CountsSkippedSamples | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find out whether the data module counts skipped samples."""
        data = data_module(trainer)
        self._data = data if isinstance(data, CountsSkippedSamples) else None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the values of a batch."""
        pl_module.log("train/learning_rate", trainer.optimizers[0].param_groups[0]["lr"])
        pl_module.log("train/skipped_steps", float(self.skipped_steps.count))
        if gradient_scaler(trainer) is not None:
            pl_module.log("train/overflowed_steps", float(self.skipped_steps.num_overflows))
        if self._data is not None:
            num_skipped = float(sum(self._data.skipped.values()))
            pl_module.log("data/skipped_samples", num_skipped, reduce_fx="sum", sync_dist=True)
        now_s = time.perf_counter()
        if self._batch_end_s is not None:
            num_samples = len(batch["labels"]) * trainer.world_size
            pl_module.log("train/samples_per_second", num_samples / (now_s - self._batch_end_s), prog_bar=True)
        self._batch_end_s = now_s

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the time of a validation out of the speed of training."""
        self._batch_end_s = None

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report the samples that the data module skipped."""
        if self._data is not None:
            rank_zero_info(self._data.report())
