"""What ranks tell each other."""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.distributed
import torch.distributed.nn.functional
from torch import Tensor

Item = TypeVar("Item")


def is_distributed() -> bool:
    """Whether this process is one of several ranks."""
    return (
        torch.distributed.is_available()
        and torch.distributed.is_initialized()
        and torch.distributed.get_world_size() > 1
    )


def rank() -> int:
    """The number of this process among all ranks; 0 without ranks."""
    return torch.distributed.get_rank() if is_distributed() else 0


def gather_with_gradient(tensor: Tensor) -> Tensor:
    """The tensors of all ranks, one after the other; gradients flow back to the rank that each came from.

    Args:
        tensor: (B, …), of the same shape on every rank.

    Returns:
        (ranks · B, …); ``tensor`` itself without ranks.
    """
    if not is_distributed():
        return tensor
    return torch.cat(torch.distributed.nn.functional.all_gather(tensor.contiguous()))


def gather_objects(items: list[Item]) -> list[Item]:
    """The items of all ranks in the order of ranks; the list itself without ranks."""
    if not is_distributed():
        return items
    gathered: list[list[Item]] = [[] for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(gathered, items)
    return [item for part in gathered for item in part]


def gather_on_first_rank(tensor: Tensor) -> Tensor | None:
    """The tensors of all ranks, stacked (ranks, …), on the first rank; None on the others."""
    if not is_distributed():
        return tensor.unsqueeze(0)
    is_first = rank() == 0
    gathered = [torch.empty_like(tensor) for _ in range(torch.distributed.get_world_size())] if is_first else None
    torch.distributed.gather(tensor.contiguous(), gathered)
    return torch.stack(gathered) if gathered is not None else None
