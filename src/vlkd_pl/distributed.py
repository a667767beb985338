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


def average_over_ranks(tensor: Tensor) -> None:
    """Replaces a tensor by its mean over all ranks; leaves it without ranks."""
    if is_distributed():
        torch.distributed.all_reduce(tensor)
        tensor /= torch.distributed.get_world_size()


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor from the shards of all ranks, on each of them; any other as it is."""
    full_tensor = getattr(tensor, "full_tensor", None)
    return tensor if full_tensor is None else full_tensor()


def sharded_as(like: Tensor, tensor: Tensor) -> Tensor:
    """This rank's shard of a tensor that all ranks have whole.

    Args:
        like: A parameter. Where it is not sharded, or not of the tensor's shape, the tensor stays as it is.
        tensor: The same on all ranks.
    """
    if not hasattr(like, "full_tensor") or like.shape != tensor.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor  # in PyTorch 2.4 it is elsewhere, but nothing is sharded

    sharded: Tensor = distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)  # type: ignore[attr-defined]
    return sharded
