"""What ranks tell each other."""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.distributed
import torch.distributed.nn.functional
from pytorch_lightning.utilities.exceptions import MisconfigurationException
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


def check_equal_batches(size: int, device: torch.device) -> None:
    """Looks whether the batches of all ranks are equally large, as gathering and averaging over ranks take for granted.

    Args:
        size: Samples in this rank's batch.
        device: Where ranks tell each other.

    Raises:
        MisconfigurationException: They are not; on all ranks, so that none waits for another.
    """
    if not is_distributed():
        return
    sizes = [torch.tensor([size], device=device) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(sizes, sizes[rank()].clone())
    told = [int(size) for size in torch.cat(sizes).tolist()]
    if len(set(told)) > 1:
        raise MisconfigurationException(
            f"the batches of the ranks hold {', '.join(map(str, told))} samples, but must be equally large: let the "
            "data loader leave out what does not fill a batch of every rank (drop_last)"
        )


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
