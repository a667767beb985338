"""Progress bar of training."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import RichProgressBar


class StepProgressBar(RichProgressBar):
    """Lightning's progress bar for runs of ``max_steps`` optimizer steps.

    Lightning's bar counts batches up to the number of optimizer steps, so that it shows 8/4 when two batches are
    accumulated, and shows -1 for an unlimited number of epochs. The arguments are those of ``RichProgressBar``.

    Example:
        >>> progress_bar = StepProgressBar(refresh_rate=10)  # for Trainer(callbacks=[progress_bar])
    """

    @property
    def total_train_batches(self) -> int | float:
        """The number of training batches of the epoch, up to the last optimizer step."""
        trainer = self.trainer
        if trainer.max_steps < 0:
            return trainer.num_training_batches
        num_done = trainer.fit_loop.batch_idx + 1
        num_left = (trainer.max_steps - trainer.global_step) * trainer.accumulate_grad_batches
        return min(trainer.num_training_batches, num_done + num_left - num_done % trainer.accumulate_grad_batches)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch, also of those that the epoch has left."""
        if self.progress is not None and self.train_progress_bar_id is not None:
            self.progress.update(self.train_progress_bar_id, total=self.total_train_batches)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def _get_train_description(self, current_epoch: int) -> str:
        description = super()._get_train_description(current_epoch)
        return description.replace("/-2", "") if self.trainer.max_epochs == -1 else description
