"""Retrieval: the distilled BART encoder in the place of CLIP's text encoder (Section 1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor

from vlkd_pl.batch import ImageBatch
from vlkd_pl.evaluation.retrieval import RetrievalEvaluator, RetrievalResult
from vlkd_pl.models.vlkd import ImageFeatures, VLKDModel
from vlkd_pl.training.checkpoint import load_model, take_weights
from vlkd_pl.training.contracts import HasSamples, TokenizesForCLIP, data_of
from vlkd_pl.training.evaluation_report import EvaluationReport

_TEXT_BATCH_SIZE = 256
_NUM_CAPTIONS = 5


class RetrievalModule(pl.LightningModule):
    """Evaluates retrieval of images by captions and of captions by images, with both text encoders; it does not train.

    ``predict`` ranks all captions of the data for each image by the distilled BART. It writes the five nearest with
    their cosines, and ``rank``, the place of the image's best caption among all, from 1.

    Args:
        clip: Name of an OpenAI CLIP, or path of a file or folder; None for that of the model folder ``init_from``.
        bart: Hugging Face name of a BART, or path of a folder; None for that of the model folder ``init_from``.
        image_features: ``pooled``, ``patches`` or ``all``; None for those of the model folder ``init_from``.
        clip_sha256: Checksum that the CLIP file must have; see ``FrozenCLIP.load``.
        init_from: Model folder or checkpoint of an earlier stage; see ``VLKDModule``.
        fold_size: Images in a fold; recall is computed among all images, and as the mean over folds. COCO's test split
            holds 5,000 images, and the field reports recall among all and among 1,000.

    Example:
        >>> from vlkd_pl.sample import BART_FOLDER, CLIP_FOLDER
        >>> module = RetrievalModule(CLIP_FOLDER, BART_FOLDER)
        >>> module.evaluator.fold_size
        1000
    """

    def __init__(
        self,
        clip: str | None = None,
        bart: str | None = None,
        image_features: ImageFeatures | None = None,
        clip_sha256: str | None = None,
        init_from: str | None = None,
        fold_size: int = 1000,
    ) -> None:
        super().__init__()
        self.model = load_model(clip, bart, image_features, clip_sha256, init_from)
        self.evaluator = RetrievalEvaluator(fold_size)
        self._captions: list[str] = []
        self._caption_embeddings: Tensor | None = None

    def configure_callbacks(self) -> list[Callback]:
        """Return the callback that reports."""
        return [EvaluationReport(self.evaluator)]

    def evaluate(self, batch: ImageBatch) -> list[RetrievalResult]:
        """Embed the images and all their captions; the samples are ``CaptionedImage``."""
        data = data_of(self.trainer, TokenizesForCLIP, "RetrievalModule", "CLIP's tokenizer")
        image_embedding = self.model.clip.encode_image(batch["image"])[:, 0].cpu()
        counts = [len(sample.references) for sample in batch["samples"]]
        texts = [text for sample in batch["samples"] for text in sample.references]
        embeddings = embed_with_both(self.model, data.clip_tokenizer, texts)
        parts = {name: embedding.cpu().split(counts) for name, embedding in embeddings.items()}
        return [
            RetrievalResult(sample.image_id, image_embedding[row], parts["bart"][row], parts["clip"][row])
            for row, sample in enumerate(batch["samples"])
        ]

    def validation_step(self, batch: ImageBatch, batch_index: int) -> dict[str, Any]:
        """Compute the ``results`` of a batch, which ``EvaluationReport`` collects."""
        return {"results": self.evaluate(batch)}

    test_step = validation_step

    def on_predict_start(self) -> None:
        """Embed all captions of the data.

        Raises:
            MisconfigurationException: The data has no captions.
        """
        needs = "images with captions (COCODataModule, CaptionFolderDataModule)"
        data = data_of(self.trainer, HasSamples, "RetrievalModule", needs)
        captions = [text for sample in data.samples for text in getattr(sample, "references", [])]
        if not captions:
            raise MisconfigurationException(f"RetrievalModule needs {needs}: this data has no captions to rank")
        self._captions = list(dict.fromkeys(captions))
        self._caption_embeddings = self.model.embed_texts(self._captions, _TEXT_BATCH_SIZE)

    def predict_step(self, batch: ImageBatch, batch_index: int) -> list[dict[str, Any]]:
        """Rank the captions for each readable image of a batch."""
        if not batch["samples"]:
            return []
        assert self._caption_embeddings is not None
        image_embedding = self.model.clip.encode_image(batch["image"])[:, 0]
        cosines = image_embedding @ self._caption_embeddings.T
        order = cosines.argsort(dim=1, descending=True, stable=True).tolist()
        predictions = []
        for sample, cosine, indices in zip(batch["samples"], cosines.tolist(), order, strict=True):
            references = set(sample.references)
            ranks = (rank for rank, index in enumerate(indices, 1) if self._captions[index] in references)
            predictions.append(
                {
                    "image_id": sample.image_id,
                    "captions": [self._captions[index] for index in indices[:_NUM_CAPTIONS]],
                    "scores": [cosine[index] for index in indices[:_NUM_CAPTIONS]],
                    "rank": next(ranks, None),
                }
            )
        return predictions

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the model of a checkpoint of a ``VLKDModule``."""
        take_weights(checkpoint, self)


@torch.no_grad()
def embed_with_both(
    model: VLKDModel, clip_tokenizer: Callable[[Sequence[str]], Tensor], texts: Sequence[str]
) -> dict[str, Tensor]:
    """Embed texts with the distilled BART and with CLIP's text encoder.

    Args:
        model: Model with both encoders.
        clip_tokenizer: Function from texts to CLIP's token ids (B, L) int64.
        texts: B texts.

    Returns:
        ``bart`` and ``clip``: (B, d_1) float32, l2-normalized.
    """
    by_clip = [
        model.clip.encode_text(clip_tokenizer(texts[first : first + _TEXT_BATCH_SIZE]).to(model.bart.device))
        for first in range(0, len(texts), _TEXT_BATCH_SIZE)
    ]
    return {"bart": model.embed_texts(texts, _TEXT_BATCH_SIZE), "clip": torch.cat(by_clip)}
