"""Precision of the losses."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """Convert a tensor to float32, unless its precision is higher."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
