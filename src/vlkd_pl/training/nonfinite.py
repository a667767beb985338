"""Skips optimizer steps whose loss or gradient is not finite."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from pytorch_lightning.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from vlkd_pl.distributed import gather_objects

MIN_GRADIENT_SCALE = 1.0
"""A scale of float16's gradients below this one is no help: it would make them overflow without any scaling."""

_NUM_NAMED = 64


class StepSkipped(Exception):
    """Leaves an optimizer's step before it has changed anything."""


class NonFiniteSteps:
    """Counts the optimizer steps that are skipped because a loss or the gradient was NaN or infinite.

    An optimizer step is skipped on all ranks when the loss of one of its batches was not finite on one of them, or when
    the norm of its gradient, which is the same on all ranks, is not. Losses and norm are read once for each optimizer
    step, so that a GPU is not waited for more often.

    In float16 the gradient scaler skips steps by itself and lowers its scale, which is normal now and then. These steps
    are counted apart, and have no limit but that of the scale.

    Args:
        limit: The most steps that may be skipped in a run, also over all its resumptions.

    Attributes:
        count: Steps skipped because of a loss or, without a scaler, a gradient.
        num_overflows: Steps that the gradient scaler skipped.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.count = 0
        self.num_overflows = 0
        self._losses: list[Tensor] = []
        self._keys: list[list[str]] = []

    @property
    def is_accumulating(self) -> bool:
        """Whether batches have been seen since the last optimizer step."""
        return bool(self._losses)

    def see(self, loss: Tensor, batch: Any) -> None:
        """Notes the loss of a batch, and the keys of its samples where it has them."""
        self._losses.append(loss.detach())
        self._keys.append(batch.get("keys", []))

    def must_skip(self, trainer: pl.Trainer, gradient_norm: Tensor | None = None) -> bool:
        """Whether the present optimizer step is to be skipped; to be called on all ranks.

        Args:
            trainer: The trainer.
            gradient_norm: Norm of the gradient of all ranks; None where a gradient scaler looks at the gradient.

        Raises:
            MisconfigurationException: More than ``limit`` steps have been skipped.
        """
        device = self._losses[-1].device
        values = self._losses if gradient_norm is None else [*self._losses, gradient_norm]
        finite = torch.stack([value.detach().float().to(device) for value in values]).isfinite().tolist()
        has_finite_gradient = gradient_norm is None or finite.pop()
        has_finite_losses = trainer.strategy.reduce_boolean_decision(all(finite))
        # of a gradient any of the step's samples may be the cause
        keys = [
            key for good, part in zip(finite, self._keys, strict=True) if has_finite_losses or not good for key in part
        ]
        self._losses.clear()
        self._keys.clear()
        if has_finite_losses and has_finite_gradient:
            return False
        self.count += 1
        what = "gradient" if has_finite_losses else "loss"
        keys = gather_objects(keys)
        which = f"step {trainer.global_step}" + (f", samples {', '.join(keys[:_NUM_NAMED])}" if keys else "")
        if len(keys) > _NUM_NAMED:
            which += f" and {len(keys) - _NUM_NAMED} more"
        if self.count > self.limit:
            raise MisconfigurationException(
                f"the loss or the gradient was NaN or infinite in {self.count} optimizer steps, more than "
                f"model.max_skipped_steps ({self.limit}) allows; the last was the {what} of {which}: look at these "
                "samples, lower the learning rate, or train in bf16-mixed or 32-true"
            )
        rank_zero_warn(f"the {what} is NaN or infinite: the optimizer step is skipped ({which})")
        return True

    def check_scale(self, scale: float, step: int) -> None:
        """Checks the scale that a gradient scaler has fallen to.

        Args:
            scale: The scale after a step that the scaler skipped.
            step: The number of that optimizer step.

        Raises:
            MisconfigurationException: The scale is below ``MIN_GRADIENT_SCALE``.
        """
        if scale < MIN_GRADIENT_SCALE:
            raise MisconfigurationException(
                f"the scale of float16's gradients fell to {scale:g} at step {step}: they were NaN or infinite in "
                f"{self.num_overflows} optimizer steps; lower the learning rate, or train in bf16-mixed or 32-true"
            )

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps; to be called on all ranks."""
        losses = [float(loss) for loss in self._losses]
        pending = gather_objects([(losses, list(self._keys))])
        return {"count": self.count, "num_overflows": self.num_overflows, "pending": pending}

    def load_state(self, state: dict[str, Any], rank: int) -> None:
        """Resumes from what a checkpoint kept; the batches of a step not ended count for ranks that there were."""
        self.count = state["count"]
        self.num_overflows = state.get("num_overflows", 0)  # version 0.4.0 kept none
        losses, keys = state["pending"][rank] if rank < len(state["pending"]) else ([], [])
        self._losses = [torch.tensor(loss) for loss in losses]
        self._keys = list(keys)
