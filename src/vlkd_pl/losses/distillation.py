"""The losses of the distillation (Section 3.2), computed in at least float32."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from vlkd_pl.distributed import check_equal_batches, gather_with_gradient, mean_over_ranks, rank
from vlkd_pl.losses.precision import at_least_float32
from vlkd_pl.losses.vocabulary import chunked_cross_entropy

Reduction = Literal["mean", "sum"]

MAX_LOGIT_SCALE = math.log(100)
"""CLIP's bound on the learnable ln(1/τ) (Radford et al., 2021): τ is 0.01 at least."""


def ttdm_loss(clip_text_embedding: Tensor, bart_text_embedding: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Text-Text Distance Minimization (Section 3.2.1).

    The equation is a sum over the D dimensions; the text sets its magnitude three orders below the other losses, which
    is the mean over them. The mean is the default.

    Args:
        clip_text_embedding: t_eos (B, D), l2-normalised.
        bart_text_embedding: ē_norm (B, D), l2-normalised.
        reduction: Over the dimensions; over the batch it is always the mean.

    Returns:
        Scalar in [0, 4 / D] for ``mean`` and [0, 4] for ``sum``.
    """
    squared = (at_least_float32(clip_text_embedding) - at_least_float32(bart_text_embedding)).square()
    per_text = squared.mean(-1) if reduction == "mean" else squared.sum(-1)
    return per_text.mean()


@torch.no_grad()
def clamp_logit_scale_(logit_scale: Tensor) -> None:
    """Put ln(1/τ) back to CLIP's bound, after each optimizer step.

    Within the forward pass a clamp would have gradient 0 above the bound, and τ would never return from there.

    Args:
        logit_scale: ln(1/τ), of any shape; changed in place, also where ranks hold shards of it.
    """
    logit_scale.clamp_(max=MAX_LOGIT_SCALE)


def itcl_loss(image_embedding: Tensor, text_embedding: Tensor, logit_scale: Tensor) -> Tensor:
    """Image-Text Contrastive Learning: symmetric InfoNCE with the pairs of all ranks as negatives (Section 3.2.2).

    Each rank holds the rows of its own pairs against the columns of all. The mean over ranks, which is what
    DistributedDataParallel takes of the gradients, is the loss of the joint batch.

    Args:
        image_embedding: v_cls (B, D), l2-normalised, of this rank; every rank holds as many pairs.
        text_embedding: ē_norm (B, D), l2-normalised, of the same pairs.
        logit_scale: 1/τ, one element.

    Returns:
        Scalar, the loss of this rank's pairs.

    Raises:
        MisconfigurationException: Another rank holds more or fewer pairs; on all ranks.
    """
    check_equal_batches(len(image_embedding), image_embedding.device)
    image_embedding, text_embedding = at_least_float32(image_embedding), at_least_float32(text_embedding)
    all_images, all_texts = gather_with_gradient(image_embedding), gather_with_gradient(text_embedding)
    own = torch.arange(len(image_embedding), device=image_embedding.device) + rank() * len(image_embedding)
    with torch.autocast(own.device.type, enabled=False):  # similarities of up to 100 need more than half precision
        image_to_text = functional.cross_entropy(logit_scale * image_embedding @ all_texts.T, own)
        text_to_image = functional.cross_entropy(logit_scale * text_embedding @ all_images.T, own)
    return (image_to_text + text_to_image) / 2


def icti_loss(logits: Tensor, labels: Tensor, reduction: Reduction = "sum") -> Tensor:
    """Image-Conditioned Text Infilling: the negative log-likelihood of the whole text (Section 3.2.3, Eq. 2).

    Args:
        logits: (B, L, V) of the decoder.
        labels: Token ids (B, L), -100 at padding.
        reduction: ``sum`` over a text's tokens and mean over the B texts, as Eq. 2; or ``mean`` over all tokens, those
            of all ranks.

    Returns:
        Scalar in nats, of which DistributedDataParallel takes the mean over ranks: for ``mean`` that is the mean over
        the tokens of all ranks, however unequal their numbers are.
    """
    logits = at_least_float32(logits).flatten(0, 1)
    loss = functional.cross_entropy(logits, labels.flatten(), ignore_index=-100, reduction="sum")
    return loss / (len(labels) if reduction == "sum" else mean_over_ranks((labels != -100).sum()))


def chunked_icti_loss(
    hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, chunk_size: int, reduction: Reduction = "sum"
) -> Tensor:
    """``icti_loss`` of the logits ``hidden @ weight.T + bias``, of which only some tokens' are held at a time.

    Args:
        hidden: (B, L, D) of the decoder; what is at padding is not looked at.
        weight: (V, D) of the vocabulary.
        bias: (V,); it gets no gradient.
        labels: Token ids (B, L), -100 at padding.
        chunk_size: Tokens whose logits are held at a time.
        reduction: See ``icti_loss``.

    Returns:
        Scalar in nats.
    """
    real = labels != -100
    loss = chunked_cross_entropy(hidden[real], weight, bias, labels[real], chunk_size)
    return loss / (len(labels) if reduction == "sum" else mean_over_ranks(real.sum()))
