"""Retrieval: the distilled BART encoder in the place of CLIP's text encoder (Section 1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vlkd_pl.batch import ImageBatch
from vlkd_pl.evaluation.report import Report
from vlkd_pl.evaluation.table import score_table
from vlkd_pl.metrics.retrieval import recall_at_k
from vlkd_pl.models.vlkd import VLKDModel
from vlkd_pl.modules.vlkd import VLKDModule

_TEXTS_IN_A_BATCH = 256


class RetrievalModule(VLKDModule):
    """Finds images by their captions and captions by their images, with both text encoders.

    Args:
        fold_size: Images in a fold; recall is that among all images, and the mean of that in each fold. COCO's test
            split holds 5,000 images, and the field states recall among all and among 1,000.
        **options: See ``VLKDModule``.
    """

    def __init__(self, fold_size: int = 1000, **options: Any) -> None:
        super().__init__(**options)
        self.fold_size = fold_size

    def evaluate(self, batch: ImageBatch) -> list[dict[str, Any]]:
        """Embeds the images and all their captions; the samples are ``CaptionedImage``."""
        image_embedding = self.model.clip.encode_image(batch["image"])[:, 0].cpu()
        counts = [len(sample.references) for sample in batch["samples"]]
        texts = [text for sample in batch["samples"] for text in sample.references]
        embeddings = embed_with_both(self.model, self.data.clip_tokenizer, texts)
        of_samples = {name: embedding.cpu().split(counts) for name, embedding in embeddings.items()}
        return [
            {"id": sample.image_id, "image_embedding": image_embedding[index]}
            | {name: parts[index] for name, parts in of_samples.items()}
            for index, sample in enumerate(batch["samples"])
        ]

    def compute(self, items: list[dict[str, Any]]) -> Report:
        """Recall@1, 5 and 10 both ways, of BART and of CLIP's own text encoder."""
        folds = [items[first : first + self.fold_size] for first in range(0, len(items), self.fold_size)]
        full = [fold for fold in folds if len(fold) == self.fold_size]
        settings = {f"{len(items)}": [items]} | ({f"{self.fold_size}": full} if len(items) > self.fold_size else {})
        columns = {
            f"{name} of {size}": _mean_recall(parts, name)
            for size, parts in settings.items()
            for name in ("bart", "clip")
        }
        scores = {
            f"{head.replace(' of ', '_')}_{row}": value
            for head, column in columns.items()
            for row, value in column.items()
        }
        lines = [f"{len(items)} images, {sum(len(item['bart']) for item in items)} captions"]
        return Report(scores, "\n".join([*lines, score_table(list(columns), list(columns.values()))]))


@torch.no_grad()
def embed_with_both(
    model: VLKDModel, clip_tokenizer: Callable[[Sequence[str]], Tensor], texts: Sequence[str]
) -> dict[str, Tensor]:
    """Embeds texts with the distilled BART and with CLIP's own text encoder.

    Args:
        model: Holds both.
        clip_tokenizer: From texts to CLIP's ids (B, L) int64.
        texts: B texts.

    Returns:
        ``bart`` and ``clip``: (B, d_1) float32, l2-normalised.
    """
    by_clip = [
        model.clip.encode_text(clip_tokenizer(texts[first : first + _TEXTS_IN_A_BATCH]).to(model.bart.device))
        for first in range(0, len(texts), _TEXTS_IN_A_BATCH)
    ]
    return {"bart": model.embed_texts(texts, _TEXTS_IN_A_BATCH), "clip": torch.cat(by_clip)}


def _mean_recall(folds: Sequence[Sequence[dict[str, Any]]], name: str) -> dict[str, float]:
    """The mean over folds of the recall by one text encoder."""
    recalls = []
    for fold in folds:
        counts = torch.tensor([len(item[name]) for item in fold])
        recalls.append(
            recall_at_k(
                torch.stack([item["image_embedding"] for item in fold]),
                torch.cat([item[name] for item in fold]),
                torch.arange(len(fold)).repeat_interleave(counts),
            )
        )
    return {key: sum(recall[key] for recall in recalls) / len(recalls) for key in recalls[0]}
