"""The cross-entropy over a large vocabulary, of which only some tokens' logits are held at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

_LARGEST_SCALE = 2.0**10


def chunked_cross_entropy(hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, chunk_size: int) -> Tensor:
    """The sum of ``cross_entropy(hidden @ weight.T + bias, labels)``, equal to rounding.

    The gradient is computed along with the loss, chunk by chunk, so that no logits are kept for the backward pass or
    computed again in it; it can be taken once. Under autocast the matrix products are in its precision, and the
    softmax, the loss, and the sums over chunks are in float32.

    Args:
        hidden: (N, D), of N tokens.
        weight: (V, D), of the vocabulary.
        bias: (V,); it gets no gradient.
        labels: (N,) int64 token ids; none is ignored.
        chunk_size: Tokens whose logits are held at a time.

    Returns:
        Scalar in nats, float32 at least.
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
            cast_hidden, told = hidden[tokens].to(dtype), labels[tokens]
            log_probability = functional.linear(cast_hidden, cast_weight, cast_bias).to(precise).log_softmax(-1)
            total += functional.nll_loss(log_probability, told, reduction="sum")
            if not with_gradient:
                continue
            gradient = log_probability.exp_()
            gradient[torch.arange(len(told), device=told.device), told] -= 1
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
        # in place, since the weight's is as large as the weight; a second pass would fail, as autograd notices it
        return hidden_gradient.mul_(factor), weight_gradient.mul_(factor), None, None, None, None, None


def _gradient_scale(hidden: Tensor, dtype: torch.dtype, chunk_size: int) -> Tensor:
    """A power of two that keeps small probabilities in float16's range, or 1 for types of a wider one.

    A chunk adds up to at most chunk_size times the largest of ``hidden``, which this keeps below float16's largest.
    """
    one = torch.ones((), device=hidden.device)
    if dtype != torch.float16 or len(hidden) == 0:
        return one
    bound = 2.0**15 / (chunk_size * hidden.detach().abs().amax().float())
    return bound.log2().floor().exp2().clamp(max=_LARGEST_SCALE)
