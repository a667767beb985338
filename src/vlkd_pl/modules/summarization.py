"""Abstractive summarization, by a distilled BART or a plain one: the paper's Table 6."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vlkd_pl.batch import SummaryBatch
from vlkd_pl.evaluation.summarization import SummarizationEvaluator, SummaryPrediction
from vlkd_pl.losses import label_smoothed_loss
from vlkd_pl.models.summarize import XSUM_DECODING, SummaryDecoding, summarize
from vlkd_pl.models.text import TextModel, TextRoute
from vlkd_pl.modules.base import TaskModule


class SummarizationModule(TaskModule):
    """Trains BART to summarize as Lewis et al. (2020) do, which the paper follows (Appendix A).

    Summaries begin with BART's begin token, in training as in decoding and in BART's own pretraining.

    Args:
        model: Distilled or plain, see ``TextModel.load``.
        route: Of a distilled model, whether the encoder's output goes through W'_e W_e.
        label_smoothing: ε of the loss.
        dropout: Of the embeddings and of each layer's output.
        attention_dropout: Of the attention weights.
        decoding: How summaries are decoded in validation, test and prediction.
        **options: See ``TaskModule``.

    Raises:
        FileNotFoundError: There is no BART at ``model``.
        MissingPackageError: The package of the extra ``summaries`` is not installed.
    """

    def __init__(
        self,
        model: str,
        route: TextRoute = "around",
        label_smoothing: float = 0.1,
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
        decoding: SummaryDecoding = XSUM_DECODING,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.evaluator = SummarizationEvaluator()
        self.model = TextModel.load(model, route)
        self.model.set_dropout(dropout, attention_dropout)
        self.label_smoothing = label_smoothing
        self.decoding = decoding

    def compute_losses(self, batch: SummaryBatch) -> dict[str, Tensor]:
        """The label-smoothed cross-entropy of the summaries, as ``summary``: the mean over the batch's tokens.

        The batches of several processes and accumulated ones count alike; fairseq weighs them by their tokens.
        """
        features = self.model.encode(batch["document_ids"], batch["document_mask"])
        return {"summary": self._loss(features, batch)}

    def evaluate(self, batch: SummaryBatch) -> list[SummaryPrediction]:
        """Summarize the documents; logs the loss, the mean over all tokens."""
        features = self.model.encode(batch["document_ids"], batch["document_mask"])
        stage = "test" if self.trainer.testing else "val"
        num_tokens = int((batch["labels"] != -100).sum())
        self.log(f"{stage}/loss", self._loss(features, batch), batch_size=num_tokens, sync_dist=True)
        return [
            SummaryPrediction(document.number, text, document.summary)
            for document, text in zip(batch["samples"], self._summaries(features, batch), strict=True)
        ]

    def predict(self, batch: SummaryBatch) -> list[dict[str, Any]]:  # type: ignore[override]
        """A summary of each document."""
        features = self.model.encode(batch["document_ids"], batch["document_mask"])
        return [
            {"id": document.number, "summary": text}
            for document, text in zip(batch["samples"], self._summaries(features, batch), strict=True)
        ]

    def _loss(self, features: Tensor, batch: SummaryBatch) -> Tensor:
        logits = self.model.decode(features, batch["document_mask"], batch["labels"])
        return label_smoothed_loss(logits, batch["labels"], self.label_smoothing)

    def _summaries(self, features: Tensor, batch: SummaryBatch) -> list[str]:
        return summarize(self.model, features, batch["document_mask"], self.decoding)
