"""Collective operations of the ranks of a distributed run; each works without ranks too."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.distributed
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

Item = TypeVar("Item")


def is_distributed() -> bool:
    """Return whether this process is one of several ranks."""
    return (
        torch.distributed.is_available()
        and torch.distributed.is_initialized()
        and torch.distributed.get_world_size() > 1
    )


def rank() -> int:
    """The rank of this process, from 0; 0 in a run of one process."""
    return torch.distributed.get_rank() if is_distributed() else 0


def world_size() -> int:
    """The number of ranks; 1 in a run of one process."""
    return torch.distributed.get_world_size() if is_distributed() else 1


def gather_with_gradient(tensor: Tensor) -> Tensor:
    """Concatenate the tensors of all ranks; gradients flow back to the rank that each row came from.

    Args:
        tensor: Tensor (B, …) of the same shape on every rank.

    Returns:
        Tensor (world size · B, …) in the order of ranks; ``tensor`` itself in a run of one process.
    """
    if not is_distributed():
        return tensor
    gathered: Tensor = _Gather.apply(tensor)
    return gathered


class _Gather(torch.autograd.Function):
    """All-gather with gradients; PyTorch deprecates its public one, and the replacement is private."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        parts = [torch.empty_like(tensor) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Sum the gradients that all ranks have for this rank's rows."""
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total)
        return total.chunk(torch.distributed.get_world_size())[rank()]


def mean_over_ranks(count: Tensor) -> Tensor:
    """The mean of a count over all ranks; a collective operation.

    A sum divided by it becomes, once ranks are averaged, the mean over the items of all ranks.

    Args:
        count: Scalar of any type; it gets no gradient.

    Returns:
        Scalar float32; ``count`` itself in a run of one process.
    """
    if not is_distributed():
        return count
    total = count.detach().float()
    torch.distributed.all_reduce(total)
    return total / torch.distributed.get_world_size()


def check_equal_batches(size: int, device: torch.device) -> None:
    """Check that the batches of all ranks have the same size, which all-gather and averaging over ranks rely on.

    Args:
        size: Samples in this rank's batch.
        device: Device of the tensors that the ranks exchange.

    Raises:
        MisconfigurationException: Batches differ in size; raised on all ranks, so that none waits for another.
    """
    if not is_distributed():
        return
    sizes = [torch.tensor([size], device=device) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(sizes, sizes[rank()].clone())
    rank_sizes = [int(size) for size in torch.cat(sizes).tolist()]
    if len(set(rank_sizes)) > 1:
        raise MisconfigurationException(
            f"the ranks have batches of {', '.join(map(str, rank_sizes))} samples, but all must have the same size: "
            "set drop_last in the data loader"
        )


def gather_objects(items: list[Item]) -> list[Item]:
    """Concatenate the lists of all ranks, in the order of ranks; any picklable items."""
    if not is_distributed():
        return items
    gathered: list[list[Item]] = [[] for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(gathered, items)
    return [item for part in gathered for item in part]


def is_sharded(tensor: Tensor) -> bool:
    """Return whether each rank holds a shard of a tensor (a ``DTensor``)."""
    return isinstance(tensor, DTensor)


def full_tensor(tensor: Tensor) -> Tensor:
    """Assemble a sharded tensor from the shards of all ranks, on each rank; any other tensor stays as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sharded_as(like: Tensor, tensor: Tensor) -> Tensor:
    """Shard a full tensor in the way a parameter is sharded.

    Args:
        like: Parameter. If it is not sharded, or has another shape than the tensor, the tensor stays as it is.
        tensor: Full tensor, equal on all ranks.

    Returns:
        This rank's shard, as a ``DTensor``.
    """
    if not isinstance(like, DTensor) or like.shape != tensor.shape:
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)


def gather_on_first_rank(tensor: Tensor) -> Tensor | None:
    """Stack the tensors of all ranks on rank 0.

    Args:
        tensor: Tensor of the same shape on every rank, or a tensor sharded over the ranks.

    Returns:
        Tensor (world size, …) on rank 0, or (1, …) of a sharded tensor; None on the other ranks.
    """
    is_first = rank() == 0
    if not is_distributed() or is_sharded(tensor):
        gathered = [full_tensor(tensor)]  # on all ranks
    else:
        gathered = [torch.empty_like(tensor) for _ in range(torch.distributed.get_world_size())] if is_first else []
        torch.distributed.gather(tensor.contiguous(), gathered or None)
    return torch.stack(gathered) if is_first else None
