"""ROUGE-L (Lin, 2004) of captions, as the COCO caption evaluation computes it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from pycocoevalcap.rouge.rouge import Rouge
from torch import Tensor

from vlkd_pl.metrics.base import SampleMetric, tokenized_captions


class ROUGEL(SampleMetric):
    """ROUGE-L of captions: the mean over all images. ``vlkd_pl.metrics.ROUGE`` scores summaries.

    Captions are tokenized as the COCO caption evaluation does. ``update`` receives image ids, one predicted caption
    for each, and all reference captions of each; an image counts once.

    Example:
        >>> from vlkd_pl.metrics import ROUGEL
        >>> metric = ROUGEL()
        >>> metric.update([42], ["A red fish on grass."], [["a red fish on the grass", "There is a red fish."]])
        >>> round(float(metric.compute()), 3)
        0.894
    """

    def update(
        self, ids: Sequence[Hashable] | Tensor, predictions: Sequence[str], references: Sequence[Sequence[str]]
    ) -> None:
        """Add the scores of B captions.

        Args:
            ids: B image ids.
            predictions: B captions.
            references: All reference captions of each image.
        """
        pairs = tokenized_captions(ids, predictions, references)
        self._append(ids, [[rouge_l(prediction, texts)] for prediction, texts in pairs])

    def compute(self) -> Tensor:
        """Return the mean score, a scalar in [0, 1], float64."""
        return torch.cat(self._unique_rows()).mean()


def rouge_l(prediction: str, references: Sequence[str]) -> float:
    """Compute the F-measure (β = 1.2) of the longest common subsequence of a caption with its references.

    Args:
        prediction: Tokens with spaces between them.
        references: The same for each reference caption.

    Returns:
        The score in [0, 1], of the best precision and the best recall among the references.
    """
    return float(Rouge().calc_score([prediction], references))
