"""BLEU (Papineni et al., 2002) of captions, as the COCO caption evaluation computes it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from pycocoevalcap.bleu.bleu_scorer import BleuScorer, cook_refs, cook_test
from torch import Tensor

from vlkd_pl.metrics.base import SampleMetric, tokenized_captions

_MAX_ORDER = 4
BLEU_NAMES = tuple(f"BLEU-{order}" for order in range(1, _MAX_ORDER + 1))
"""The names of the scores."""


class BLEU(SampleMetric):
    """BLEU-1 to BLEU-4 of captions over all images, from n-gram counts summed over the images.

    Captions are tokenized as the COCO caption evaluation does. ``update`` receives image ids, one predicted caption
    for each, and all reference captions of each; an image counts once.

    Example:
        >>> from vlkd_pl.metrics import BLEU
        >>> metric = BLEU()
        >>> metric.update([42], ["A red fish on grass."], [["a red fish on the grass", "There is a red fish."]])
        >>> {name: round(float(score), 3) for name, score in metric.compute().items()}
        {'BLEU-1': 1.0, 'BLEU-2': 0.866, 'BLEU-3': 0.794, 'BLEU-4': 0.707}
    """

    row_dtype = torch.int64

    def update(
        self, ids: Sequence[Hashable] | Tensor, predictions: Sequence[str], references: Sequence[Sequence[str]]
    ) -> None:
        """Add the n-gram counts of B captions.

        Args:
            ids: B image ids.
            predictions: B captions.
            references: All reference captions of each image.
        """
        pairs = tokenized_captions(ids, predictions, references)
        self._append(ids, [bleu_counts(prediction, texts) for prediction, texts in pairs])

    def compute(self) -> dict[str, Tensor]:
        """Return ``BLEU-1`` to ``BLEU-4`` as scalars in [0, 1], float64."""
        overall, _ = bleu([row.tolist() for row in self._unique_rows()])
        return {name: torch.tensor(overall[name], dtype=torch.float64) for name in overall}


def bleu_counts(prediction: str, references: Sequence[str]) -> list[int]:
    """Count the n-grams of one caption: everything that BLEU needs of it.

    Args:
        prediction: Tokens with spaces between them.
        references: The same for each reference caption.

    Returns:
        Ten counts: the words of the caption, those of the reference of the closest length, the caption's n-grams of
        orders 1 to 4, and for each order how many of these occur in a reference.
    """
    counts = cook_test(prediction, cook_refs(references), eff="closest")
    return [counts["testlen"], counts["reflen"], *counts["guess"], *counts["correct"]]


def bleu(counts: Sequence[Sequence[int]]) -> tuple[dict[str, float], list[dict[str, float]]]:
    """Compute BLEU from n-gram counts.

    Args:
        counts: The ``bleu_counts`` of each caption.

    Returns:
        ``BLEU-1`` to ``BLEU-4`` over all captions, and those of each caption.
    """
    scorer = BleuScorer(n=_MAX_ORDER)
    scorer.ctest = [
        {"testlen": row[0], "reflen": [row[1]], "guess": row[2 : 2 + _MAX_ORDER], "correct": row[2 + _MAX_ORDER :]}
        for row in counts
    ]
    overall, per_order = scorer.compute_score(option="closest")
    return (
        dict(zip(BLEU_NAMES, overall, strict=True)),
        [dict(zip(BLEU_NAMES, scores, strict=True)) for scores in zip(*per_order, strict=True)],
    )
