"""What every experiment shares: the optimizer, what training logs, and how evaluation runs and reports."""

from __future__ import annotations

import contextlib
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities.rank_zero import rank_zero_info, rank_zero_warn
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from vlkd_pl.batch import ImageBatch
from vlkd_pl.distributed import full_tensor
from vlkd_pl.evaluation.evaluator import Evaluator
from vlkd_pl.evaluation.panel import caption_panel, log_panel
from vlkd_pl.training.checkpoint import check_weights
from vlkd_pl.training.nonfinite import NonFiniteSteps, StepSkipped
from vlkd_pl.training.optim import OptimizerName, linear_warmup_and_decay, make_optimizer, parameter_groups
from vlkd_pl.training.random_state import (
    RandomState,
    keep_pending_gradients,
    keep_random_states,
    pending_gradients_of,
    random_state,
    random_state_of,
    set_pending_gradients,
    set_random_state,
)


class TaskModule(pl.LightningModule, ABC):
    """An experiment: a subclass says what its losses are, how a batch is evaluated, and what is concluded from all.

    Args:
        learning_rate: Peak learning rate.
        projection_learning_rate: Peak learning rate of W_e, W_i and W'_e; that of the rest by default.
        betas: The optimizer's β.
        eps: The optimizer's ε.
        weight_decay: Weight decay of all weights but biases, norms and τ.
        warmup_steps: Optimizer steps of linear warm-up.
        warmup_epochs: Epochs of linear warm-up, in place of ``warmup_steps``.
        total_steps: Optimizer steps after which the rate has fallen to 0; the trainer's own number by default.
        optimizer: ``adamw``, or ``lamb``; see ``make_optimizer``.
        max_skipped_steps: The most optimizer steps that are skipped in a run because a loss or the gradient is NaN or
            infinite; with one more training stops. The steps that float16's gradient scaler skips do not count.

    Attributes:
        evaluator: Collects the results of validation and test.
        loss_weights: The weight of each loss that ``compute_losses`` returns; 1 for those that it does not name.
    """

    def __init__(
        self,
        learning_rate: float = 5e-5,
        projection_learning_rate: float | None = None,
        betas: tuple[float, float] = (0.99, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        warmup_steps: int = 12_000,
        warmup_epochs: float | None = None,
        total_steps: int | None = None,
        optimizer: OptimizerName = "adamw",
        max_skipped_steps: int = 100,
    ) -> None:
        super().__init__()
        self.evaluator: Evaluator[Any]
        self.learning_rate = learning_rate
        self.projection_learning_rate = projection_learning_rate
        self.betas = betas
        self.eps = eps
        self.weight_decay = weight_decay
        self.warmup_steps = warmup_steps
        self.warmup_epochs = warmup_epochs
        self.total_steps = total_steps
        self.optimizer: OptimizerName = optimizer
        self.loss_weights: dict[str, float] = {}
        self.skipped_steps = NonFiniteSteps(max_skipped_steps)
        self._resumed: tuple[RandomState | None, dict[str, Tensor]] | None = None
        self._random_state: RandomState | None = None
        self._batch_ended: float | None = None

    @property
    def data(self) -> Any:
        """The trainer's data module."""
        return getattr(self.trainer, "datamodule", None)

    # What a subclass says

    @abstractmethod
    def compute_losses(self, batch: Any) -> dict[str, Tensor]:
        """The losses of a training batch, unweighted."""

    @abstractmethod
    def evaluate(self, batch: Any) -> Sequence[Any]:
        """Compute the results of a batch of validation or test, which ``evaluator`` takes."""

    @abstractmethod
    def predict(self, batch: ImageBatch) -> list[dict[str, Any]]:
        """What ``vlkd-pl predict`` writes of a batch, a JSON line each."""

    # Training

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        """The weighted sum of the losses, for the trainer to divide by ``accumulate_grad_batches``."""
        losses = self.compute_losses(batch)
        total = torch.stack([self.loss_weights.get(name, 1.0) * loss for name, loss in losses.items()]).sum()
        self.log("train/loss", total, prog_bar=True)
        self.log_dict({f"train/{name}_loss": loss for name, loss in losses.items()})
        self.skipped_steps.see(total, batch)
        return total * self._share_of_step(batch_index)

    def _share_of_step(self, batch_index: int) -> float:
        """1; more where an epoch ends with fewer batches than are accumulated, which would make its last step small."""
        num_batches, num_accumulated = self.trainer.num_training_batches, self.trainer.accumulate_grad_batches
        num_left = num_batches % num_accumulated if num_batches != math.inf else 0
        return num_accumulated / num_left if batch_index >= num_batches - num_left else 1.0

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Leaves the weights and the optimizer as they are where a loss or the gradient is NaN or infinite.

        Raises:
            MisconfigurationException: That was so more than ``max_skipped_steps`` times; or the scale of float16's
                gradients keeps falling.
        """
        loss = optimizer_closure()  # the batch's forward and backward pass
        scaler = self._gradient_scaler
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

    @property
    def _gradient_scaler(self) -> torch.amp.GradScaler | None:
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        return scaler if scaler is not None and scaler.is_enabled() else None

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer, with linear warm-up and linear decay to 0 (Tables 10 and 11, Appendix A)."""
        groups = parameter_groups(self, self.weight_decay, self.learning_rate, self.projection_learning_rate)
        optimizer = make_optimizer(self.optimizer, groups, self.learning_rate, self.betas, self.eps)
        num_steps = int(self.trainer.estimated_stepping_batches)
        warmup_steps = self.warmup_steps
        if self.warmup_epochs is not None:
            warmup_steps = round(self.warmup_epochs * num_steps / (self.trainer.max_epochs or 1))
        schedule = linear_warmup_and_decay(optimizer, warmup_steps, self.total_steps or num_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_fit_start(self) -> None:
        """Puts BART in training mode: ``from_pretrained`` leaves it in evaluation."""
        self.train()

    def on_train_batch_start(self, batch: Any, batch_index: int) -> None:
        """Continues a resumed run where it was, after everything that draws random numbers at start-up."""
        if self._resumed is not None:
            state, gradients = self._resumed
            if state is not None:
                set_random_state(state)
            set_pending_gradients(self, gradients, self.global_rank, self.trainer.world_size)
            self._resumed = None

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_index: int) -> None:
        """Logs the learning rate, the speed, and what the data skipped."""
        self.log("train/learning_rate", self.trainer.optimizers[0].param_groups[0]["lr"])
        self.log("train/skipped_steps", float(self.skipped_steps.count))
        if self._gradient_scaler is not None:
            self.log("train/overflowed_steps", float(self.skipped_steps.num_overflows))
        if hasattr(self.data, "skipped"):
            num_skipped = float(sum(self.data.skipped.values()))
            self.log("data/skipped_samples", num_skipped, reduce_fx="sum", sync_dist=True)
        now = time.perf_counter()
        if self._batch_ended is not None:
            num_samples = len(batch["labels"]) * self.trainer.world_size
            self.log("train/samples_per_second", num_samples / (now - self._batch_ended), prog_bar=True)
        self._batch_ended = now

    def on_validation_end(self) -> None:
        """Leaves the time of a validation out of the speed of training."""
        self._batch_ended = None

    def on_train_end(self) -> None:
        """Reports what the data skipped."""
        if hasattr(self.data, "report"):
            rank_zero_info(self.data.report())

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips the gradient, and logs its norm, unscaled and before clipping: it is computed once for both.

        Raises:
            StepSkipped: The norm or a loss is NaN or infinite, and no gradient scaler skips the step.
            MisconfigurationException: That was so more than ``max_skipped_steps`` times.
        """
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        norm = get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        full_norm = full_tensor(norm)
        self.log("train/grad_norm", full_norm)
        if self._gradient_scaler is None:
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

    def validation_step(self, batch: Any, batch_index: int) -> None:
        """Evaluates a batch."""
        self.evaluator.update(self.evaluate(batch))

    def test_step(self, batch: Any, batch_index: int) -> None:
        """As in validation."""
        self.evaluator.update(self.evaluate(batch))

    def predict_step(self, batch: ImageBatch, batch_index: int) -> list[dict[str, Any]]:
        """The predictions for the images of a batch that could be read."""
        return self.predict(batch) if batch["samples"] else []

    def on_test_start(self) -> None:
        """Leaves the printing to ``on_test_epoch_end``, which has more to say than the trainer's own table."""
        self.trainer.test_loop.verbose = False

    def on_validation_start(self) -> None:
        """Notes the random state, for training to go on as if there had been no validation.

        As in a test, the scores are printed by ``on_validation_epoch_end`` alone.
        """
        self.trainer.validate_loop.verbose = False
        self._random_state = random_state()

    def on_validation_epoch_end(self) -> None:
        """Logs the scores, and draws the panel; outside of training also prints the scores."""
        self._compute("val")
        if self._random_state is not None:  # before a checkpoint is written
            set_random_state(self._random_state)

    def on_test_epoch_end(self) -> None:
        """As in validation; also prints the scores and writes them, with the predictions, to the run's log folder."""
        self._compute("test")

    def _compute(self, stage: str) -> None:
        folder = self.trainer.log_dir  # asked on all ranks: it is broadcast
        self.evaluator.synchronize()
        report = self.evaluator.compute() if self.trainer.is_global_zero else None
        self.evaluator.reset()
        scores = self.trainer.strategy.broadcast(report.scores if report is not None else {})
        for name, value in scores.items():
            self.log(f"{stage}/{name}", value, prog_bar=name == "cider", sync_dist=True)
        if report is None:
            return
        panel, panel_items = None, report.panel_items[: self.evaluator.panel_size]
        if panel_items and not self.trainer.sanity_checking:
            panel = log_panel(self.trainer, f"{stage}/captions", caption_panel(panel_items), folder)
        if not self.trainer.sanity_checking:
            for note in report.notes:
                rank_zero_warn(note)  # Python shows a warning once
        if self.trainer.state.fn != TrainerFn.FITTING:
            print(f"\n{report.table}")
        if stage == "test" and folder is not None:
            report.write(Path(folder), panel)
            print(f"scores and predictions: {folder}")

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the random states, and what an accumulated step has gathered."""
        keep_random_states(checkpoint)
        checkpoint["skipped_steps"] = self.skipped_steps.state()
        if self.skipped_steps.is_accumulating:
            keep_pending_gradients(checkpoint, self)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Notes these of this rank, for when training goes on.

        Raises:
            ModelFileError: The checkpoint is of another module or model.
        """
        check_weights(checkpoint, self)
        self._resumed = random_state_of(checkpoint, self.global_rank), pending_gradients_of(checkpoint)
        if "skipped_steps" in checkpoint:
            self.skipped_steps.load_state(checkpoint["skipped_steps"], self.global_rank)
