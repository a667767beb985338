"""Random states and pending gradients in checkpoints."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vlkd_pl.distributed import gather_objects, gather_on_first_rank, is_sharded, sharded_as

_RANDOM_STATES = "random_states"
_PENDING_GRADIENTS = "pending_gradients"


RandomState = dict[str, Any]


def random_state() -> RandomState:
    """The state of all that this process draws random numbers from."""
    numpy_state: Any = np.random.get_state()
    name, words, *rest = numpy_state
    return {
        "python": random.getstate(),
        "numpy": (name, words.tolist(), *rest),  # a list, since an array would have to be unpickled
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def set_random_state(state: RandomState) -> None:
    """Continues the sequences of random numbers from ``state``."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["cpu"].cpu())
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


def keep_random_states(checkpoint: dict[str, Any]) -> None:
    """Puts each rank's random state into a checkpoint; to be called on all ranks."""
    checkpoint[_RANDOM_STATES] = gather_objects([random_state()])


def random_state_of(checkpoint: dict[str, Any], rank: int) -> RandomState | None:
    """The random state that ``rank`` had when the checkpoint was written; None where there were fewer ranks."""
    states = checkpoint.get(_RANDOM_STATES, [])
    return states[rank] if rank < len(states) else None


def keep_pending_gradients(checkpoint: dict[str, Any], module: nn.Module) -> None:
    """Puts gradients that wait for the rest of an accumulated step into a checkpoint; to be called on all ranks.

    Each rank has its own until the step ends: a mean of them would be rounded once more than in a run that goes on.
    """
    gradients = {}
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            of_ranks = gather_on_first_rank(parameter.grad)
            if of_ranks is not None:  # the first rank writes
                gradients[name] = of_ranks.cpu()
    checkpoint[_PENDING_GRADIENTS] = gradients


def pending_gradients_of(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """The gradients that waited when the checkpoint was written, (ranks, …), by the names of their parameters."""
    return checkpoint.get(_PENDING_GRADIENTS, {})


def set_pending_gradients(module: nn.Module, gradients: dict[str, Tensor], rank: int, num_ranks: int) -> None:
    """Lets an accumulated step go on from these gradients.

    Each rank takes its own. Where there were other numbers of ranks, or the parameters are sharded, it takes the mean,
    which is what becomes of them in the end.

    Args:
        module: Its parameters get them.
        gradients: See ``pending_gradients_of``.
        rank: The number of this rank.
        num_ranks: How many there are now.
    """
    for name, of_ranks in gradients.items():
        parameter = module.get_parameter(name)
        has_own = len(of_ranks) == num_ranks and not is_sharded(parameter)
        gradient = of_ranks[rank].clone() if has_own else of_ranks.mean(0)
        parameter.grad = sharded_as(parameter, gradient.to(parameter.device))
