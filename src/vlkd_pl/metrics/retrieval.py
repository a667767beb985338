"""Recall of images by text and of text by images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_CHUNK = 1024


def recall_at_k(
    image_embedding: Tensor, text_embedding: Tensor, text_image_index: Tensor, ks: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """Recall@k both ways.

    Args:
        image_embedding: (N, D), l2-normalised.
        text_embedding: (M, D), l2-normalised.
        text_image_index: (M,) the row of the image that each text tells of.
        ks: Ranks that count as found.

    Returns:
        ``image_to_text_r{k}``: the share of images with any of their texts among the k nearest;
        ``text_to_image_r{k}``: the share of texts with their image among the k nearest. A tie counts
        against, and so does NaN: an encoder that collapsed or diverged finds nothing.
    """
    device = image_embedding.device
    text_image_index = text_image_index.to(device)
    own = torch.zeros(len(text_embedding), dtype=torch.long, device=device)
    best = torch.full((len(image_embedding),), -torch.inf, device=device)
    for first in range(0, len(text_embedding), _CHUNK):
        rows = slice(first, first + _CHUNK)
        similarity = text_embedding[rows] @ image_embedding.T
        index = text_image_index[rows]
        right = similarity.gather(1, index[:, None])
        own[rows] = (~(similarity < right)).sum(1) - 1  # not >=, which NaN would never be
        best.scatter_reduce_(0, index, right[:, 0].to(best), "amax")
    nearer = torch.zeros(len(image_embedding), dtype=torch.long, device=device)
    for first in range(0, len(text_embedding), _CHUNK):
        rows = slice(first, first + _CHUNK)
        similarity = text_embedding[rows] @ image_embedding.T
        others = text_image_index[rows][:, None] != torch.arange(len(image_embedding), device=device)
        nearer += (~(similarity < best) & others).sum(0)
    recall = {f"image_to_text_r{k}": (nearer < k).float().mean().item() for k in ks}
    return recall | {f"text_to_image_r{k}": (own < k).float().mean().item() for k in ks}
