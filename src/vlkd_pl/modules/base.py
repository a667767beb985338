"""The base class of modules that are trained: losses, optimizer steps, evaluation and checkpoints."""

from __future__ import annotations

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from vlkd_pl.distributed import full_tensor
from vlkd_pl.evaluation.evaluator import Evaluator
from vlkd_pl.training.checkpoint import check_weights
from vlkd_pl.training.evaluation_report import EvaluationReport
from vlkd_pl.training.exact_resume import ExactResume
from vlkd_pl.training.monitor import TrainingMonitor
from vlkd_pl.training.nonfinite import NonFiniteSteps, StepSkipped, gradient_scaler
from vlkd_pl.training.optim import TABLE_10, Optimization, configure_optimizer


class TaskModule(pl.LightningModule, ABC):
    """A module that trains on the weighted sum of its losses; a subclass defines losses, results and predictions.

    Optimizer steps whose loss or gradient is NaN or infinite are skipped. Callbacks report, make a resume exact, and
    log the training.

    Args:
        evaluator: Evaluator that takes the results of validation and test.
        optimization: Settings of optimizer and schedule.
        loss_weights: Weight of each loss that ``compute_losses`` returns; 1 for losses without one.
    """

    def __init__(
        self,
        evaluator: Evaluator[Any],
        optimization: Optimization = TABLE_10,
        loss_weights: dict[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.evaluator = evaluator
        self.optimization = optimization
        self.loss_weights = loss_weights or {}
        self.skipped_steps = NonFiniteSteps(optimization.max_skipped_steps)

    @abstractmethod
    def compute_losses(self, batch: Any) -> dict[str, Tensor]:
        """Compute the losses of a training batch, unweighted, by their names."""

    @abstractmethod
    def evaluate(self, batch: Any) -> Sequence[Any]:
        """Compute the results of a batch of validation or test, which ``evaluator`` takes."""

    @abstractmethod
    def predict(self, batch: Any) -> list[dict[str, Any]]:
        """Compute the predictions of a batch, of which ``vlkd-pl predict`` writes a JSON line each."""

    def configure_callbacks(self) -> list[Callback]:
        """Return the callbacks that report, save the exact state, and log; the report draws before states are reset."""
        return [
            EvaluationReport(self.evaluator),
            ExactResume(self.skipped_steps),
            TrainingMonitor(self.skipped_steps),
        ]

    # Training

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        """Compute the weighted sum of the losses, which the trainer divides by ``accumulate_grad_batches``."""
        losses = self.compute_losses(batch)
        total = torch.stack([self.loss_weights.get(name, 1.0) * loss for name, loss in losses.items()]).sum()
        self.log("train/loss", total, prog_bar=True)
        self.log_dict({f"train/{name}_loss": loss for name, loss in losses.items()})
        self.skipped_steps.record(total, batch)
        return total * self._share_of_step(batch_index)

    def _share_of_step(self, batch_index: int) -> float:
        """Factor above 1 where an epoch ends with fewer batches than are accumulated, whose step would be small."""
        num_batches, num_accumulated = self.trainer.num_training_batches, self.trainer.accumulate_grad_batches
        num_left = num_batches % num_accumulated if num_batches != math.inf else 0
        return num_accumulated / num_left if batch_index >= num_batches - num_left else 1.0

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Step, unless a loss or the gradient is NaN or infinite.

        Raises:
            MisconfigurationException: More than ``max_skipped_steps`` steps were skipped, or the scale of float16's
                gradients keeps falling.
        """
        loss = optimizer_closure()  # the batch's forward and backward pass
        scaler = gradient_scaler(self.trainer)
        if scaler is None:
            with contextlib.suppress(StepSkipped):
                super().optimizer_step(epoch, batch_idx, optimizer, lambda: loss)
            return
        if self.skipped_steps.must_skip(self.trainer):  # before the scaler takes it for an overflow
            return
        num_overflows = self.skipped_steps.num_overflows
        self.log("train/gradient_scale", scaler.get_scale())
        super().optimizer_step(epoch, batch_idx, optimizer, lambda: loss)
        if self.skipped_steps.num_overflows > num_overflows:
            self.skipped_steps.check_scale(scaler.get_scale(), self.trainer.global_step)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimizer and its schedule; see ``configure_optimizer``."""
        return configure_optimizer(self, self.optimization)

    def on_fit_start(self) -> None:
        """Put BART in training mode, since ``from_pretrained`` leaves it in evaluation mode."""
        self.train()

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradient, and log its norm, unscaled and before clipping; it is computed once for both.

        Raises:
            StepSkipped: The norm or a loss is NaN or infinite, and there is no gradient scaler to skip the step.
            MisconfigurationException: More than ``max_skipped_steps`` steps were skipped.
        """
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        norm = get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        full_norm = full_tensor(norm)
        self.log("train/grad_norm", full_norm)
        if gradient_scaler(self.trainer) is None:
            if self.skipped_steps.must_skip(self.trainer, full_norm):
                raise StepSkipped
        elif not full_norm.isfinite():
            self.skipped_steps.num_overflows += 1
            optimizer.zero_grad()  # the scaler steps where the norm alone has overflowed
            return
        if gradient_clip_algorithm == "value":
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val:
            clip_grads_with_norm_(parameters, gradient_clip_val, norm)

    # Validation, test and prediction

    def validation_step(self, batch: Any, batch_index: int) -> dict[str, Any]:
        """Compute the ``results`` of a batch, which ``EvaluationReport`` collects."""
        return {"results": self.evaluate(batch)}

    test_step = validation_step

    def predict_step(self, batch: Any, batch_index: int) -> list[dict[str, Any]]:
        """Compute the predictions for the readable samples of a batch."""
        return self.predict(batch) if batch["samples"] else []

    # Checkpoints

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint fits.

        Raises:
            ModelFileError: The checkpoint is of another module or model.
        """
        check_weights(checkpoint, self)
