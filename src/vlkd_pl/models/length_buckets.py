"""Rows of a batch in groups of similar length, so that less is computed at padding; and joined batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional


def in_length_groups(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], masks: Sequence[Tensor], num_groups: int
) -> Tensor:
    """Apply a function to groups of rows of similar length, each truncated to the longest row of its group.

    The function must treat rows independently and ignore padding. The number of groups does not depend on the lengths,
    so that all ranks of a sharded model call the function equally often.

    Args:
        function: Function from the inputs of some rows to a tensor (rows, L, D), L being the last input's length.
        inputs: Tensors (B, L_i, …), padded on the right.
        masks: Mask (B, L_i) of each input, True or 1 at real positions. Rows are sorted by the sum of their lengths.
        num_groups: Maximum number of groups, from 1; 1 calls the function once with the inputs unchanged.

    Returns:
        Tensor (B, L, D) in the order of the inputs; 0 at positions beyond a group's longest row.

    Example:
        >>> mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
        >>> in_length_groups(lambda ids: ids.unsqueeze(-1), [mask * 7], [mask], num_groups=2).squeeze(-1)
        tensor([[7, 7, 7],
                [7, 0, 0]])
    """
    if num_groups == 1:
        return function(*inputs)
    lengths = torch.stack([mask.sum(1) for mask in masks])
    order = lengths.sum(0).argsort(stable=True)
    groups = order.tensor_split(min(num_groups, len(order)))
    longest = torch.stack([lengths[:, rows].amax(1) for rows in groups]).tolist()  # the only synchronisation with a GPU
    parts = []
    for rows, ends in zip(groups, longest, strict=True):
        part = function(*(value[rows, :end] for value, end in zip(inputs, ends, strict=True)))
        parts.append(functional.pad(part, (0, 0, 0, inputs[-1].shape[1] - part.shape[1])))
    return torch.cat(parts).index_select(0, order.argsort())


def embed_in_length_groups(encode_text: Callable[[Tensor], Tensor], clip_text_ids: Tensor, num_groups: int) -> Tensor:
    """Embed texts with CLIP in groups of similar length; ``FrozenCLIP.encode_text`` ignores what follows the end token.

    Args:
        encode_text: Function from token ids (rows, L) to embeddings (rows, D).
        clip_text_ids: CLIP's token ids (B, L) int64; the end token has the highest id.
        num_groups: Maximum number of groups, from 1.

    Returns:
        Embeddings (B, D).
    """
    mask = torch.arange(clip_text_ids.shape[1], device=clip_text_ids.device) <= clip_text_ids.argmax(1, keepdim=True)
    return in_length_groups(lambda ids: encode_text(ids).unsqueeze(1), (clip_text_ids,), (mask,), num_groups)[:, 0]


def stacked(parts: Sequence[Tensor], value: float) -> Tensor:
    """Concatenate the rows of tensors, padded on the right to the longest.

    Args:
        parts: Tensors (B_i, L_i, …) of one type; one alone is returned unchanged.
        value: Value at padding.

    Returns:
        Tensor (ΣB_i, max L_i, …).

    Example:
        >>> stacked([torch.ones(1, 3), torch.ones(1, 1)], value=0)
        tensor([[1., 1., 1.],
                [1., 0., 0.]])
    """
    if len(parts) == 1:
        return parts[0]
    longest = max(part.shape[1] for part in parts)
    rest = (0, 0) * (parts[0].ndim - 2)
    return torch.cat([functional.pad(part, (*rest, 0, longest - part.shape[1]), value=value) for part in parts])
