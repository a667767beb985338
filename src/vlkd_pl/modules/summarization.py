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
from vlkd_pl.training.optim import TABLE_10, Optimization


class SummarizationModule(TaskModule):
    """Trains BART to summarize as Lewis et al. (2020) do, which the paper follows (Appendix A).

    Summaries begin with BART's begin token, in training as in decoding and in BART's own pretraining.

    Args:
        model: Model folder of ``vlkd-pl fit``, or a plain BART: a Hugging Face name, or a folder.
        route: Whether the encoder's output of a distilled model goes ``around`` W'_e W_e or ``through`` it.
        label_smoothing: Share ε of the loss's target that other tokens get, in [0, 1).
        dropout: Dropout probability of the embeddings and of each layer's output.
        attention_dropout: Dropout probability of the attention weights.
        decoding: Decoding of summaries in validation, test and prediction.
        optimization: Settings of optimizer and schedule.

    Raises:
        FileNotFoundError: There is no BART at ``model``.
        MissingPackageError: The package of the extra ``summaries`` is not installed.

    Example:
        >>> from vlkd_pl.sample import BART_FOLDER
        >>> module = SummarizationModule(BART_FOLDER)
        >>> module.label_smoothing
        0.1
    """

    def __init__(
        self,
        model: str,
        route: TextRoute = "around",
        label_smoothing: float = 0.1,
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
        decoding: SummaryDecoding = XSUM_DECODING,
        optimization: Optimization = TABLE_10,
    ) -> None:
        super().__init__(SummarizationEvaluator(), optimization)
        self.model = TextModel.load(model, route)
        self.model.set_dropout(dropout, attention_dropout)
        self.label_smoothing = label_smoothing
        self.decoding = decoding

    def compute_losses(self, batch: SummaryBatch) -> dict[str, Tensor]:
        """Compute the label-smoothed cross-entropy ``summary``, the mean over the batch's tokens.

        Accumulated batches have equal weights, as have those of several ranks; fairseq weighs them by their tokens.
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

    def predict(self, batch: SummaryBatch) -> list[dict[str, Any]]:
        """Summarize the documents."""
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
