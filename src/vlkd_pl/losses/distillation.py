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
"""CLIP's upper bound of the learnable ln(1/τ) (Radford et al., 2021): τ is at least 0.01."""


def ttdm_loss(clip_text_embedding: Tensor, bart_text_embedding: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Text-Text Distance Minimization (Section 3.2.1).

    The paper's equation sums over the D dimensions. Its text puts the loss three orders of magnitude below the others,
    which holds for the mean; the mean is the default.

    Args:
        clip_text_embedding: Embeddings t_eos (B, D) of CLIP's text encoder, l2-normalised.
        bart_text_embedding: Embeddings ē_norm (B, D) of BART's encoder, l2-normalised.
        reduction: Reduction over the dimensions, ``mean`` or ``sum``; the batch is always averaged.

    Returns:
        Scalar in [0, 4 / D] for ``mean`` and [0, 4] for ``sum``.

    Example:
        >>> embedding = functional.normalize(torch.ones(2, 4), dim=-1)
        >>> ttdm_loss(embedding, -embedding)
        tensor(1.)
    """
    squared = (at_least_float32(clip_text_embedding) - at_least_float32(bart_text_embedding)).square()
    per_text = squared.mean(-1) if reduction == "mean" else squared.sum(-1)
    return per_text.mean()


@torch.no_grad()
def clamp_logit_scale_(logit_scale: Tensor) -> None:
    """Clamp ln(1/τ) in place to CLIP's bound, after an optimizer step.

    A clamp in the forward pass would have gradient 0 above the bound, so that τ could never return.

    Args:
        logit_scale: Parameter ln(1/τ) of any shape, which may be sharded over ranks.

    Example:
        >>> logit_scale = torch.tensor(5.0)
        >>> clamp_logit_scale_(logit_scale)
        >>> logit_scale.exp()
        tensor(100.0000)
    """
    logit_scale.clamp_(max=MAX_LOGIT_SCALE)


def itcl_loss(image_embedding: Tensor, text_embedding: Tensor, logit_scale: Tensor) -> Tensor:
    """Image-Text Contrastive Learning: symmetric InfoNCE with the pairs of all ranks as negatives (Section 3.2.2).

    Each rank computes the similarities of its pairs to the pairs of all ranks. DistributedDataParallel averages the
    gradients over ranks, which gives the loss of the joint batch.

    Args:
        image_embedding: Embeddings v_cls (B, D) of this rank's images, l2-normalised; B is the same on every rank.
        text_embedding: Embeddings ē_norm (B, D) of the same pairs' texts, l2-normalised.
        logit_scale: Inverse temperature 1/τ, one element.

    Returns:
        Scalar in nats, the loss of this rank's pairs.

    Raises:
        MisconfigurationException: The ranks have different numbers of pairs; raised on all ranks.

    Example:
        >>> embedding = torch.eye(2)
        >>> itcl_loss(embedding, embedding, torch.tensor(100.0)) < 1e-6
        tensor(True)
    """
    check_equal_batches(len(image_embedding), image_embedding.device)
    image_embedding, text_embedding = at_least_float32(image_embedding), at_least_float32(text_embedding)
    all_images, all_texts = gather_with_gradient(image_embedding), gather_with_gradient(text_embedding)
    labels = torch.arange(len(image_embedding), device=image_embedding.device) + rank() * len(image_embedding)
    with torch.autocast(labels.device.type, enabled=False):  # similarities up to 100 need more than half precision
        image_to_text = functional.cross_entropy(logit_scale * image_embedding @ all_texts.T, labels)
        text_to_image = functional.cross_entropy(logit_scale * text_embedding @ all_images.T, labels)
    return (image_to_text + text_to_image) / 2


def icti_loss(logits: Tensor, labels: Tensor, reduction: Reduction = "sum") -> Tensor:
    """Image-Conditioned Text Infilling: the negative log-likelihood of the whole text (Section 3.2.3, Eq. 2).

    Args:
        logits: Logits (B, L, V) of the decoder.
        labels: Token ids (B, L) int64, -100 at padding.
        reduction: ``sum`` adds up a text's tokens and averages the B texts, as in Eq. 2; ``mean`` averages over the
            tokens of all ranks.

    Returns:
        Scalar in nats. For ``mean``, the average over ranks is the mean over the tokens of all ranks, even if ranks
        have different numbers of tokens.

    Example:
        >>> icti_loss(torch.zeros(2, 3, 10), torch.tensor([[4, 2, -100], [4, 5, 2]]), reduction="mean")  # ln 10
        tensor(2.3026)
    """
    logits = at_least_float32(logits).flatten(0, 1)
    loss = functional.cross_entropy(logits, labels.flatten(), ignore_index=-100, reduction="sum")
    return loss / (len(labels) if reduction == "sum" else mean_over_ranks((labels != -100).sum()))


def chunked_icti_loss(
    hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, chunk_size: int, reduction: Reduction = "sum"
) -> Tensor:
    """Compute ``icti_loss`` of the logits ``hidden @ weight.T + bias`` in chunks, to save memory.

    Args:
        hidden: Features (B, L, D) of the decoder; those at padding are ignored.
        weight: Output embeddings (V, D) of the vocabulary.
        bias: Logit bias (V,); it gets no gradient.
        labels: Token ids (B, L) int64, -100 at padding.
        chunk_size: Number of tokens whose logits are in memory at a time, from 1.
        reduction: ``sum`` or ``mean``, as for ``icti_loss``.

    Returns:
        Scalar in nats.

    Example:
        >>> hidden, weight, labels = torch.ones(1, 2, 4), torch.zeros(10, 4), torch.tensor([[3, -100]])
        >>> chunked_icti_loss(hidden, weight, torch.zeros(10), labels, chunk_size=1)  # ln 10
        tensor(2.3026)
    """
    real = labels != -100
    loss = chunked_cross_entropy(hidden[real], weight, bias, labels[real], chunk_size)
    return loss / (len(labels) if reduction == "sum" else mean_over_ranks(real.sum()))
