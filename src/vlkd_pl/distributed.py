"""What ranks tell each other."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.distributed
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

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


def world_size() -> int:
    """The number of ranks; 1 without."""
    return torch.distributed.get_world_size() if is_distributed() else 1


def gather_with_gradient(tensor: Tensor) -> Tensor:
    """The tensors of all ranks, one after the other; gradients flow back to the rank that each came from.

    Args:
        tensor: (B, …), of the same shape on every rank.

    Returns:
        (ranks · B, …); ``tensor`` itself without ranks.
    """
    if not is_distributed():
        return tensor
    gathered: Tensor = _Gather.apply(tensor)
    return gathered


class _Gather(torch.autograd.Function):
    """PyTorch's own in ``torch.distributed.nn.functional`` is deprecated, and what replaces it is private."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        parts = [torch.empty_like(tensor) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """All ranks have a part in what each gave: the sum of their gradients for it."""
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total)
        return total.chunk(torch.distributed.get_world_size())[rank()]


def mean_over_ranks(count: Tensor) -> Tensor:
    """The mean of each rank's count, which what ranks average has to be divided by; to be called on all ranks.

    Args:
        count: A number, of any type; it gets no gradient.

    Returns:
        Scalar, float32; ``count`` itself without ranks.
    """
    if not is_distributed():
        return count
    total = count.detach().float()
    torch.distributed.all_reduce(total)
    return total / torch.distributed.get_world_size()


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


def is_sharded(tensor: Tensor) -> bool:
    """Whether each rank holds a shard of a tensor (a ``DTensor``)."""
    return isinstance(tensor, DTensor)


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor from the shards of all ranks, on each of them; any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sharded_as(like: Tensor, tensor: Tensor) -> Tensor:
    """This rank's shard of a tensor that all ranks have whole.

    Args:
        like: A parameter. Where it is not sharded, or not of the tensor's shape, the tensor stays as it is.
        tensor: The same on all ranks.
    """
    if not isinstance(like, DTensor) or like.shape != tensor.shape:
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)


def gather_on_first_rank(tensor: Tensor) -> Tensor | None:
    """The tensors of all ranks, stacked (ranks, …), on the first rank; None on the others.

    Of a sharded tensor the ranks have one between them: (1, …).
    """
    is_first = rank() == 0
    if not is_distributed() or is_sharded(tensor):
        gathered = [whole(tensor)]  # on all ranks
    else:
        gathered = [torch.empty_like(tensor) for _ in range(torch.distributed.get_world_size())] if is_first else []
        torch.distributed.gather(tensor.contiguous(), gathered or None)
    return torch.stack(gathered) if is_first else None
