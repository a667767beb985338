"""Recall@k of images by text and of text by images."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from vlkd_pl.metrics.base import SampleMetric, check_lengths

_CHUNK = 1024


class RetrievalRecall(SampleMetric):
    """Recall@k of images by their texts and of texts by their images, among all images received.

    ``update`` receives image ids, the embeddings of the images, and those of all texts of each image; an image counts
    once. See ``recall_at_k`` for the scores.

    Args:
        ks: The ranks k.

    Example:
        >>> import torch
        >>> from vlkd_pl.metrics import RetrievalRecall
        >>> metric = RetrievalRecall(ks=(1,))
        >>> texts = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
        >>> metric.update([7, 8], torch.eye(2), texts, torch.tensor([0, 0, 1]))
        >>> {name: round(float(score), 3) for name, score in metric.compute().items()}
        {'image_to_text_r1': 1.0, 'text_to_image_r1': 0.667}
    """

    row_dtype = torch.float32

    def __init__(self, ks: Sequence[int] = (1, 5, 10)) -> None:
        super().__init__()
        self.ks = ks

    def update(
        self,
        ids: Sequence[Hashable] | Tensor,
        image_embedding: Tensor,
        text_embedding: Tensor,
        text_image_index: Tensor,
    ) -> None:
        """Add the embeddings of N images and of their M texts.

        Args:
            ids: N image ids.
            image_embedding: (N, D), l2-normalised; kept in float32.
            text_embedding: (M, D), l2-normalised; kept in float32.
            text_image_index: (M,) the row in ``image_embedding`` that each text belongs to.
        """
        check_lengths(ids=ids, image_embedding=image_embedding)
        check_lengths(text_embedding=text_embedding, text_image_index=text_image_index)
        rows = []
        for number, image in enumerate(image_embedding.float()):
            texts = text_embedding[text_image_index == number].float()
            rows.append(torch.cat([torch.tensor([len(texts)]).to(image), image, texts.flatten()]))
        self._append(ids, rows)

    def compute(self) -> dict[str, Tensor]:
        """Return the ``recall_at_k`` of all images, each a scalar in [0, 1]."""
        parts = [row[1:].view(1 + int(row[0]), -1) for row in self._unique_rows()]
        num_texts = torch.tensor([len(part) - 1 for part in parts])
        recall = recall_at_k(
            torch.stack([part[0] for part in parts]),
            torch.cat([part[1:] for part in parts]),
            torch.arange(len(parts)).repeat_interleave(num_texts),
            self.ks,
        )
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in recall.items()}


def recall_at_k(
    image_embedding: Tensor, text_embedding: Tensor, text_image_index: Tensor, ks: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """Compute Recall@k in both directions.

    Args:
        image_embedding: (N, D), l2-normalised.
        text_embedding: (M, D), l2-normalised.
        text_image_index: (M,) the row in ``image_embedding`` that each text belongs to.
        ks: The ranks k.

    Returns:
        ``image_to_text_r{k}``: the share of images with any of their texts among the k nearest;
        ``text_to_image_r{k}``: the share of texts with their image among the k nearest. A tie counts
        against, and so does NaN: an encoder that collapsed or diverged scores 0.

    Example:
        >>> embedding = torch.eye(3)
        >>> recall_at_k(embedding, embedding, torch.tensor([0, 2, 1]), ks=(1,))["text_to_image_r1"]
        0.3333333432674408
    """
    device = image_embedding.device
    text_image_index = text_image_index.to(device)
    image_rank = torch.zeros(len(text_embedding), dtype=torch.long, device=device)
    best = torch.full((len(image_embedding),), -torch.inf, device=device)
    for first in range(0, len(text_embedding), _CHUNK):
        rows = slice(first, first + _CHUNK)
        similarity = text_embedding[rows] @ image_embedding.T
        index = text_image_index[rows]
        right = similarity.gather(1, index[:, None])
        image_rank[rows] = (~(similarity < right)).sum(1) - 1  # not >=, which NaN would never be
        best.scatter_reduce_(0, index, right[:, 0].to(best), "amax")
    text_rank = torch.zeros(len(image_embedding), dtype=torch.long, device=device)
    for first in range(0, len(text_embedding), _CHUNK):
        rows = slice(first, first + _CHUNK)
        similarity = text_embedding[rows] @ image_embedding.T
        others = text_image_index[rows][:, None] != torch.arange(len(image_embedding), device=device)
        text_rank += (~(similarity < best) & others).sum(0)
    recall = {f"image_to_text_r{k}": (text_rank < k).float().mean().item() for k in ks}
    return recall | {f"text_to_image_r{k}": (image_rank < k).float().mean().item() for k in ks}
