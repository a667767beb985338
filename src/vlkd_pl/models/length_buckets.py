"""Rows of a batch in groups of about the same length, so that less is computed at padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional


def in_length_groups(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], masks: Sequence[Tensor], num_groups: int
) -> Tensor:
    """Apply a function to each group of rows, cut to its own longest; for one that rows and padding do not change.

    There are as many groups whatever the lengths are, and of the same sizes to one row, so that the ranks of a sharded
    model call the function equally often.

    Args:
        function: Takes the inputs of some rows, and gives (rows, L, D) for the last one's length L.
        inputs: Tensors (B, L_i, ...), padded on the right.
        masks: Of each input, (B, L_i), true or 1 at real positions. The last one's lengths are what rows are sorted by.
        num_groups: At most so many groups; 1 calls the function with the inputs as they are.

    Returns:
        (B, L, D) in the order of the inputs; what no row of a group reaches is 0.
    """
    if num_groups == 1:
        return function(*inputs)
    lengths = torch.stack([mask.sum(1) for mask in masks])
    order = lengths[-1].argsort(stable=True)
    groups = order.tensor_split(min(num_groups, len(order)))
    longest = torch.stack([lengths[:, rows].amax(1) for rows in groups]).tolist()  # the one wait for a GPU
    parts = []
    for rows, ends in zip(groups, longest, strict=True):
        part = function(*(value[rows, :end] for value, end in zip(inputs, ends, strict=True)))
        parts.append(functional.pad(part, (0, 0, 0, inputs[-1].shape[1] - part.shape[1])))
    return torch.cat(parts).index_select(0, order.argsort())
