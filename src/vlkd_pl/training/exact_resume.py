"""The callback that makes a resumed run equal to an uninterrupted one: random states and pending gradients."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn

from vlkd_pl.distributed import gather_objects, gather_on_first_rank, is_sharded, sharded_as
from vlkd_pl.training.nonfinite import NonFiniteSteps

_RANDOM_STATES = "random_states"
_PENDING_GRADIENTS = "pending_gradients"
_SKIPPED_STEPS = "skipped_steps"

RandomState = dict[str, Any]


class ExactResume(Callback):
    """Saves and restores what an exact resume needs next to weights and optimizer.

    These are the random state of each rank, the gradients of an optimizer step that more batches are to be accumulated
    for, and the counts of skipped steps. A validation leaves the random state as it was, so that it does not change the
    training.

    Args:
        skipped_steps: Counter of the optimizer steps that were skipped; it also knows the batches of a pending step.
    """

    def __init__(self, skipped_steps: NonFiniteSteps) -> None:
        self.skipped_steps = skipped_steps
        self._resumed: tuple[RandomState | None, dict[str, Tensor]] | None = None
        self._before_validation: RandomState | None = None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Restore the state of a checkpoint, after everything that draws random numbers at start-up."""
        if self._resumed is not None:
            state, gradients = self._resumed
            if state is not None:
                set_random_state(state)
            set_pending_gradients(pl_module, gradients, trainer.global_rank, trainer.world_size)
            self._resumed = None

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the random state of training."""
        self._before_validation = random_state()

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore the random state of training, before a checkpoint is written."""
        if self._before_validation is not None:
            set_random_state(self._before_validation)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the random states, the pending gradients and the counts."""
        checkpoint[_RANDOM_STATES] = gather_objects([random_state()])
        checkpoint[_SKIPPED_STEPS] = self.skipped_steps.state()
        if self.skipped_steps.is_accumulating:
            checkpoint[_PENDING_GRADIENTS] = pending_gradients(pl_module)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the state of this rank until training continues; checkpoints of 0.4 hold it under the same names."""
        states, rank = checkpoint.get(_RANDOM_STATES, []), trainer.global_rank
        state = states[rank] if rank < len(states) else None  # there may have been fewer ranks
        self._resumed = state, checkpoint.get(_PENDING_GRADIENTS, {})
        if _SKIPPED_STEPS in checkpoint:
            self.skipped_steps.load_state(checkpoint[_SKIPPED_STEPS], rank)


def random_state() -> RandomState:
    """Return the state of all random number generators of this process."""
    numpy_state: Any = np.random.get_state()
    name, words, *rest = numpy_state
    return {
        "python": random.getstate(),
        "numpy": (name, words.tolist(), *rest),  # a list, since an array would have to be unpickled
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def set_random_state(state: RandomState) -> None:
    """Set all random number generators of this process.

    Args:
        state: Return value of ``random_state``.
    """
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["cpu"].cpu())
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


def pending_gradients(module: nn.Module) -> dict[str, Tensor]:
    """Gather the gradients of an accumulated step; to be called on all ranks.

    Each rank has other gradients until the step ends: their mean would be rounded once more than in an uninterrupted
    run.

    Args:
        module: Module whose parameters have the gradients.

    Returns:
        Gradients (ranks, ...) on the CPU by the names of their parameters, on the first rank; empty on the others.
    """
    gradients = {}
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            of_ranks = gather_on_first_rank(parameter.grad)
            if of_ranks is not None:  # the first rank writes
                gradients[name] = of_ranks.cpu()
    return gradients


def set_pending_gradients(module: nn.Module, gradients: dict[str, Tensor], rank: int, num_ranks: int) -> None:
    """Restore the gradients of an accumulated step.

    Each rank takes its gradients. Where the number of ranks has changed, or the parameters are sharded, it takes the
    mean of all, which is what the step uses in the end.

    Args:
        module: Module whose parameters get the gradients.
        gradients: Gradients (ranks, ...) by the names of their parameters.
        rank: Number of this rank.
        num_ranks: Present number of ranks.
    """
    for name, of_ranks in gradients.items():
        parameter = module.get_parameter(name)
        keeps_rank = len(of_ranks) == num_ranks and not is_sharded(parameter)
        gradient = of_ranks[rank].clone() if keeps_rank else of_ranks.mean(0)
        parameter.grad = sharded_as(parameter, gradient.to(parameter.device))
