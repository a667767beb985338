"""Cross-entropy over a large vocabulary in chunks, with the logits of a few tokens in memory at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

_LARGEST_SCALE = 2.0**10


def chunked_cross_entropy(hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, chunk_size: int) -> Tensor:
    """Compute the sum of ``cross_entropy(hidden @ weight.T + bias, labels)`` in chunks, to save memory.

    The gradient is computed together with the loss, chunk by chunk, so that the backward pass needs no logits; it can
    run once. Under autocast, matrix products use its precision; softmax, loss and sums use float32. PyTorch's
    ``linear_cross_entropy`` (2.14) computes the same, but in its chunks all products are in float32 under autocast.

    Args:
        hidden: Features (N, D) of N tokens.
        weight: Output embeddings (V, D) of the vocabulary.
        bias: Logit bias (V,); it gets no gradient.
        labels: Token ids (N,) int64; none is ignored.
        chunk_size: Number of tokens whose logits are in memory at a time, from 1.

    Returns:
        Scalar in nats, in at least float32.

    Example:
        >>> chunked_cross_entropy(torch.ones(3, 4), torch.zeros(10, 4), torch.zeros(10), torch.arange(3), chunk_size=2)
        tensor(6.9078)
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    loss: Tensor = _ChunkedCrossEntropy.apply(hidden, weight, bias, labels, chunk_size, dtype, torch.is_grad_enabled())
    return loss


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor,
        labels: Tensor,
        chunk_size: int,
        dtype: torch.dtype,
        with_gradient: bool,
    ) -> Tensor:
        precise = torch.promote_types(dtype, torch.float32)
        cast_weight, cast_bias = weight.to(dtype), bias.to(dtype)
        total = torch.zeros((), dtype=precise, device=hidden.device)
        scale = _gradient_scale(hidden, dtype, chunk_size)
        hidden_gradient, weight_gradient = torch.empty_like(hidden), torch.zeros_like(weight)
        for first in range(0, len(labels), chunk_size):
            tokens = slice(first, first + chunk_size)
            cast_hidden, chunk_labels = hidden[tokens].to(dtype), labels[tokens]
            log_probability = functional.linear(cast_hidden, cast_weight, cast_bias).to(precise).log_softmax(-1)
            total += functional.nll_loss(log_probability, chunk_labels, reduction="sum")
            if not with_gradient:
                continue
            gradient = log_probability.exp_()
            gradient[torch.arange(len(chunk_labels), device=labels.device), chunk_labels] -= 1
            cast_gradient = gradient.mul_(scale).to(dtype)
            hidden_gradient[tokens] = cast_gradient @ cast_weight
            if dtype == weight.dtype:
                weight_gradient.addmm_(cast_gradient.T, cast_hidden)
            else:
                weight_gradient += cast_gradient.T @ cast_hidden
        ctx.save_for_backward(hidden_gradient, weight_gradient, scale)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss_gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden_gradient, weight_gradient, scale = ctx.saved_tensors
        factor = loss_gradient / scale
        # in place, since the gradient is as large as the weight; autograd refuses a second backward pass
        return hidden_gradient.mul_(factor), weight_gradient.mul_(factor), None, None, None, None, None


def _gradient_scale(hidden: Tensor, dtype: torch.dtype, chunk_size: int) -> Tensor:
    """Choose a power of two that keeps small probabilities within float16's range; 1 for types of wider range.

    The sum over a chunk is at most ``chunk_size`` times the largest value of ``hidden``, which must not overflow.
    """
    one = torch.ones((), device=hidden.device)
    if dtype != torch.float16 or len(hidden) == 0:
        return one
    bound = 2.0**15 / (chunk_size * hidden.detach().abs().amax().float())
    return bound.log2().floor().exp2().clamp(max=_LARGEST_SCALE)
