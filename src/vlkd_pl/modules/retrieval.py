"""Retrieval: the distilled BART encoder in the place of CLIP's text encoder (Section 1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vlkd_pl.batch import ImageBatch
from vlkd_pl.evaluation.retrieval import RetrievalEvaluator, RetrievalResult
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
        self.evaluator = RetrievalEvaluator(fold_size)

    def evaluate(self, batch: ImageBatch) -> list[RetrievalResult]:
        """Embeds the images and all their captions; the samples are ``CaptionedImage``."""
        image_embedding = self.model.clip.encode_image(batch["image"])[:, 0].cpu()
        counts = [len(sample.references) for sample in batch["samples"]]
        texts = [text for sample in batch["samples"] for text in sample.references]
        embeddings = embed_with_both(self.model, self.data.clip_tokenizer, texts)
        of_samples = {name: embedding.cpu().split(counts) for name, embedding in embeddings.items()}
        return [
            RetrievalResult(
                sample.image_id, image_embedding[index], of_samples["bart"][index], of_samples["clip"][index]
            )
            for index, sample in enumerate(batch["samples"])
        ]


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
