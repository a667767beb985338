"""The evaluation of retrieval between images and captions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from vlkd_pl.evaluation.evaluator import Evaluator
from vlkd_pl.evaluation.report import Report
from vlkd_pl.evaluation.table import score_table
from vlkd_pl.metrics.retrieval import recall_at_k

TextEncoder = Literal["bart", "clip"]
TEXT_ENCODERS: tuple[TextEncoder, TextEncoder] = ("bart", "clip")
"""The distilled BART, and CLIP's text encoder."""


class RetrievalResult(NamedTuple):
    """The embeddings of an image and of its captions.

    Attributes:
        id: The image's number, or its path in a folder.
        image_embedding: (D,) float, l2-normalized.
        bart: Embeddings (C, D) of the image's C captions by the distilled BART, l2-normalized.
        clip: The same by CLIP's text encoder.
    """

    id: int | str
    image_embedding: Tensor
    bart: Tensor
    clip: Tensor


class RetrievalEvaluator(Evaluator[RetrievalResult]):
    """Computes Recall@1, 5 and 10 in both directions, for the distilled BART and for CLIP's text encoder.

    Args:
        fold_size: Images in a fold; recall is computed among all images, and as the mean over folds of this size.

    Example:
        >>> evaluator = RetrievalEvaluator()
        >>> evaluator.update(RetrievalResult(i, row, row[None], row[None]) for i, row in enumerate(torch.eye(3)))
        >>> evaluator.compute().scores["bart_3_text_to_image_r1"]
        1.0
    """

    def __init__(self, fold_size: int = 1000) -> None:
        super().__init__(panel_size=0)
        self.fold_size = fold_size

    def report(self, results: Sequence[RetrievalResult]) -> Report:
        """Compute the recalls; a last fold that is not full is left out."""
        folds = [results[first : first + self.fold_size] for first in range(0, len(results), self.fold_size)]
        full = [fold for fold in folds if len(fold) == self.fold_size]
        settings = {len(results): [results]} | ({self.fold_size: full} if len(results) > self.fold_size else {})
        columns = {
            (encoder, size): _mean_recall(parts, encoder)
            for size, parts in settings.items()
            for encoder in TEXT_ENCODERS
        }
        scores = {
            f"{encoder}_{size}_{row}": value
            for (encoder, size), column in columns.items()
            for row, value in column.items()
        }
        head = f"{len(results)} images, {sum(len(result.bart) for result in results)} captions"
        table = score_table([f"{encoder} of {size}" for encoder, size in columns], list(columns.values()))
        return Report(scores, f"{head}\n{table}")


def _mean_recall(folds: Sequence[Sequence[RetrievalResult]], encoder: TextEncoder) -> dict[str, float]:
    """Mean over folds of the recall by one text encoder."""
    recalls = []
    for fold in folds:
        texts = [result.bart if encoder == "bart" else result.clip for result in fold]
        recalls.append(
            recall_at_k(
                torch.stack([result.image_embedding for result in fold]),
                torch.cat(texts),
                torch.arange(len(fold)).repeat_interleave(torch.tensor([len(part) for part in texts])),
            )
        )
    return {key: sum(recall[key] for recall in recalls) / len(recalls) for key in recalls[0]}
