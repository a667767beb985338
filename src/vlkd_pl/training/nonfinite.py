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

_MAX_KEYS = 64


class StepSkipped(Exception):
    """Ends an optimizer's step before it has changed anything."""


def gradient_scaler(trainer: pl.Trainer) -> torch.amp.GradScaler | None:
    """Return the gradient scaler of float16 training; None in other precisions.

    Args:
        trainer: Trainer with a precision plugin.
    """
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return scaler if scaler is not None and scaler.is_enabled() else None


class NonFiniteSteps:
    """Counter of the optimizer steps that are skipped because a loss or the gradient was NaN or infinite.

    An optimizer step is skipped on all ranks when the loss of one of its batches was not finite on one of them, or when
    the norm of its gradient, which is the same on all ranks, is not. Losses and norm are read from the GPU once for
    each optimizer step.

    In float16 the gradient scaler also skips steps and lowers its scale, which is normal now and then. These steps are
    counted separately; their only limit is that of the scale.

    Args:
        limit: Most steps that may be skipped in a run with all its resumptions; at least 0.

    Attributes:
        count: Number of steps skipped because of a loss or, without a scaler, a gradient.
        num_overflows: Number of steps that the gradient scaler skipped.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.count = 0
        self.num_overflows = 0
        self._losses: list[Tensor] = []
        self._keys: list[list[str]] = []

    @property
    def is_accumulating(self) -> bool:
        """Return whether batches have been recorded since the last optimizer step."""
        return bool(self._losses)

    def record(self, loss: Tensor, batch: Any) -> None:
        """Record a batch of the present optimizer step.

        Args:
            loss: Scalar loss of the batch.
            batch: Batch as a dict, with the keys of its samples under ``keys`` where it has them.
        """
        self._losses.append(loss.detach())
        self._keys.append(batch.get("keys", []))

    def must_skip(self, trainer: pl.Trainer, gradient_norm: Tensor | None = None) -> bool:
        """Decide whether the present optimizer step is skipped; to be called on all ranks.

        Args:
            trainer: Trainer of the run.
            gradient_norm: Scalar norm of the gradient of all ranks; None where a gradient scaler checks the gradient.

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
        which = f"step {trainer.global_step}" + (f", samples {', '.join(keys[:_MAX_KEYS])}" if keys else "")
        if len(keys) > _MAX_KEYS:
            which += f" and {len(keys) - _MAX_KEYS} more"
        if self.count > self.limit:
            raise MisconfigurationException(
                f"the loss or the gradient was NaN or infinite in {self.count} optimizer steps, more than "
                f"model.optimization.max_skipped_steps ({self.limit}) allows; the last was the {what} of {which}: look "
                "at these samples, lower the learning rate, or train in bf16-mixed or 32-true"
            )
        rank_zero_warn(f"the {what} is NaN or infinite: the optimizer step is skipped ({which})")
        return True

    def check_scale(self, scale: float, step: int) -> None:
        """Check the scale that a gradient scaler has fallen to.

        Args:
            scale: Scale after a step that the scaler skipped.
            step: Number of that optimizer step.

        Raises:
            MisconfigurationException: The scale is below ``MIN_GRADIENT_SCALE``.
        """
        if scale < MIN_GRADIENT_SCALE:
            raise MisconfigurationException(
                f"the scale of float16's gradients fell to {scale:g} at step {step}: they were NaN or infinite in "
                f"{self.num_overflows} optimizer steps; lower the learning rate, or train in bf16-mixed or 32-true"
            )

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint; to be called on all ranks."""
        losses = [float(loss) for loss in self._losses]
        pending = gather_objects([(losses, list(self._keys))])
        return {"count": self.count, "num_overflows": self.num_overflows, "pending": pending}

    def load_state(self, state: dict[str, Any], rank: int) -> None:
        """Restore the state of a checkpoint.

        Args:
            state: Return value of ``state``; the batches of a pending step are those of the same rank.
            rank: Number of this rank.
        """
        self.count = state["count"]
        self.num_overflows = state.get("num_overflows", 0)  # version 0.4.0 kept none
        losses, keys = state["pending"][rank] if rank < len(state["pending"]) else ([], [])
        self._losses = [torch.tensor(loss) for loss in losses]
        self._keys = list(keys)
