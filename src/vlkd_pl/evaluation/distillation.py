"""The evaluation of a distillation: captions and retrieval on a small validation set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vlkd_pl.evaluation.evaluator import Evaluator
from vlkd_pl.evaluation.panel import panel_items
from vlkd_pl.evaluation.report import Report
from vlkd_pl.evaluation.table import score_table
from vlkd_pl.metrics.captions import cider, cider_note
from vlkd_pl.metrics.retrieval import recall_at_k


class DistillationResult(NamedTuple):
    """The caption of an image, and the embeddings of the image and of its first reference.

    Attributes:
        id: The image's number.
        caption: The generated caption.
        references: Captions that people wrote, at least one.
        image_embedding: (D,) of CLIP, l2-normalized.
        bart_text_embedding: (D,) of the first reference by the distilled BART, l2-normalized.
        clip_text_embedding: (D,) of the first reference by CLIP's text encoder, l2-normalized.
        image: (3, H, W) uint8 or normalized floats for the panel, or None.
    """

    id: int
    caption: str
    references: Sequence[str]
    image_embedding: Tensor
    bart_text_embedding: Tensor
    clip_text_embedding: Tensor
    image: Tensor | None = None


class DistillationEvaluator(Evaluator[DistillationResult]):
    """Computes recall in both directions and CIDEr, also of captions of other images (``cider_shuffled``).

    Args:
        panel_size: Most images that results keep for the panel; at least 0.

    Example:
        >>> evaluator = DistillationEvaluator()
        >>> captions = ["a red fish", "two blue boats", "a tree"]
        >>> rows = zip(captions, torch.eye(3))
        >>> evaluator.update(DistillationResult(i, text, [text], *[row] * 3) for i, (text, row) in enumerate(rows))
        >>> evaluator.compute().scores["bart_image_to_text_r1"]
        1.0
    """

    def report(self, results: Sequence[DistillationResult]) -> Report:
        """Compute the recalls and CIDEr."""
        captions = {result.id: result.caption for result in results}
        references = {result.id: result.references for result in results}
        image_embedding = torch.stack([result.image_embedding for result in results])
        text_embeddings = {
            "bart": torch.stack([result.bart_text_embedding for result in results]),
            "clip": torch.stack([result.clip_text_embedding for result in results]),
        }
        scores: dict[str, float] = {}
        for encoder, text_embedding in text_embeddings.items():
            recall = recall_at_k(image_embedding, text_embedding, torch.arange(len(results)))
            scores |= {f"{encoder}_{name}": value for name, value in recall.items()}
        scores["cider"] = cider(references, captions)[0]
        scores["cider_shuffled"] = cider(references, _shuffled(captions))[0]
        predictions = [{"image_id": image_id, "caption": caption} for image_id, caption in captions.items()]
        items = panel_items((result.image, result.caption, result.references[0]) for result in results)
        notes = [note for note in (cider_note(references),) if note]
        table = score_table(["score"], [scores])
        return Report(scores, table, {"predictions.json": predictions}, items, notes=notes)


def _shuffled(captions: Mapping[int, str]) -> dict[int, str]:
    """Assign to each image the caption of another one, which gives the score of captions that ignore the image."""
    ids = list(captions)
    half = max(1, len(ids) // 2)
    return {image_id: captions[other] for image_id, other in zip(ids, ids[half:] + ids[:half], strict=True)}
