"""The precision that losses are computed in."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """A tensor in float32, or as it is where its precision is higher."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
