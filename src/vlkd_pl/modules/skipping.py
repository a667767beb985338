"""Leaves out optimizer steps whose loss is not finite."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from pytorch_lightning.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from vlkd_pl.distributed import gather_objects

_NUM_NAMED = 64


class SkippedSteps:
    """Counts the optimizer steps left out because a loss was NaN or infinite.

    An optimizer step is left out on all ranks when the loss of one of its batches was not finite on one of them. The
    losses are looked at once for each optimizer step, so that a GPU is not waited for more often.

    Args:
        limit: The most steps that may be left out in a run, also over all its resumptions.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.count = 0
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

    def must_skip(self, trainer: pl.Trainer) -> bool:
        """Whether the present optimizer step is to be left out; to be called on all ranks.

        Raises:
            MisconfigurationException: More than ``limit`` steps have been left out.
        """
        device = self._losses[-1].device
        finite = torch.stack([loss.float().to(device) for loss in self._losses]).isfinite().tolist()
        keys = [key for good, part in zip(finite, self._keys, strict=True) if not good for key in part]
        self._losses.clear()
        self._keys.clear()
        if trainer.strategy.reduce_boolean_decision(all(finite)):
            return False
        self.count += 1
        keys = gather_objects(keys)
        which = f"step {trainer.global_step}" + (f", samples {', '.join(keys[:_NUM_NAMED])}" if keys else "")
        if len(keys) > _NUM_NAMED:
            which += f" and {len(keys) - _NUM_NAMED} more"
        if self.count > self.limit:
            raise MisconfigurationException(
                f"the loss was NaN or infinite in {self.count} optimizer steps, more than model.max_skipped_steps "
                f"({self.limit}) allows; the last was {which}: look at these samples, lower the learning rate, or "
                "train in bf16-mixed or 32-true"
            )
        rank_zero_warn(f"the loss is NaN or infinite: the optimizer step is left out ({which})")
        return True

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps; to be called on all ranks."""
        losses = [float(loss) for loss in self._losses]
        return {"count": self.count, "pending": gather_objects([(losses, list(self._keys))])}

    def load_state(self, state: dict[str, Any], rank: int) -> None:
        """Goes on from what a checkpoint kept; the batches of a step not ended count for ranks that there were."""
        self.count = state["count"]
        losses, keys = state["pending"][rank] if rank < len(state["pending"]) else ([], [])
        self._losses = [torch.tensor(loss) for loss in losses]
        self._keys = list(keys)
