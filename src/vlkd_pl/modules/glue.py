"""GLUE: the paper's Table 5."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers.models.bart.modeling_bart import BartClassificationHead, shift_tokens_right

from vlkd_pl.batch import GLUE_LABELS, GLUEBatch, GLUETask
from vlkd_pl.evaluation.glue import GLUEEvaluator, GLUEPrediction, submitted
from vlkd_pl.models.text import TextModel, TextRoute
from vlkd_pl.modules.base import TaskModule
from vlkd_pl.training.optim import TABLE_10, Optimization


class GLUEModule(TaskModule):
    """Fine-tunes a BART, plain or distilled, on a task of GLUE (Section 4.5).

    As in BART (Lewis et al., 2020) the text goes into the encoder and into the decoder, a pair as
    ``<s> a </s></s> b </s>``, and the decoder's last state is classified; of STS-B it is regressed on.

    Args:
        model: Model folder of ``vlkd-pl fit``, or a plain BART: a Hugging Face name, or a folder.
        task: Name of the task.
        route: Whether the encoder's output goes ``around`` W'_e W_e or ``through`` it; see ``TextModel``.
        max_tokens: Most tokens of a text or pair, at least 4; a longer pair is cut in its longer text.
        optimization: Settings of optimizer and schedule.

    Raises:
        FileNotFoundError: There is no BART at ``model``.

    Example:
        >>> from vlkd_pl.sample import BART_FOLDER
        >>> module = GLUEModule(BART_FOLDER, "mnli")
        >>> module.head.out_proj.out_features
        3
    """

    def __init__(
        self,
        model: str,
        task: GLUETask,
        route: TextRoute = "around",
        max_tokens: int = 512,
        optimization: Optimization = TABLE_10,
    ) -> None:
        super().__init__(GLUEEvaluator(task), optimization)
        self.model = TextModel.load(model, route)
        self.task: GLUETask = task
        self.max_tokens = min(max_tokens, self.model.bart.config.max_position_embeddings)
        config = self.model.bart.config
        num_outputs = len(GLUE_LABELS[task]) or 1
        self.head = BartClassificationHead(config.d_model, config.d_model, num_outputs, config.classifier_dropout)
        self.head.apply(self.model.bart._init_weights)

    def logits(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Classify the decoder's state at the final end token.

        Args:
            ids: Token ids (B, L) int64 of BART, padded on the right.
            mask: Mask (B, L) int64, 1 at real tokens.

        Returns:
            Logits (B, classes), or similarities (B, 1) for STS-B.
        """
        bart = self.model.bart
        hidden = bart.model.decoder(
            input_ids=shift_tokens_right(ids, bart.config.pad_token_id, bart.config.decoder_start_token_id),
            encoder_hidden_states=self.model.encode(ids, mask),
            encoder_attention_mask=mask,
            use_cache=False,
        ).last_hidden_state
        logits: Tensor = self.head(hidden[torch.arange(len(ids), device=ids.device), mask.sum(1) - 1])
        return logits

    def compute_losses(self, batch: GLUEBatch) -> dict[str, Tensor]:
        """Compute the cross-entropy, or for STS-B the mean squared error."""
        logits, labels = self._logits_of(batch), batch["labels"]
        if self.task == "stsb":
            return {"regression": functional.mse_loss(logits.squeeze(1), labels.float())}
        return {"classification": functional.cross_entropy(logits, labels.long())}

    def evaluate(self, batch: GLUEBatch) -> list[GLUEPrediction]:
        """Predict the label of each sample; the samples are ``GLUEText``."""
        return [
            GLUEPrediction(sample.part, sample.number, value, sample.label)
            for sample, value in zip(batch["samples"], self._predictions(batch), strict=True)
        ]

    def predict(self, batch: GLUEBatch) -> list[dict[str, Any]]:
        """Predict the label of each sample by the server's names."""
        return [
            {"index": sample.number, "prediction": submitted(self.task, value)}
            | ({"part": sample.part} if sample.part else {})
            for sample, value in zip(batch["samples"], self._predictions(batch), strict=True)
        ]

    def _logits_of(self, batch: GLUEBatch) -> Tensor:
        columns = [list(column) for column in zip(*(sample.texts for sample in batch["samples"]), strict=True)]
        encoded = self.model.tokenizer(
            *columns, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        ).to(self.device)
        return self.logits(encoded["input_ids"], encoded["attention_mask"]).float()

    def _predictions(self, batch: GLUEBatch) -> list[float]:
        """Predict class numbers, or similarities."""
        logits = self._logits_of(batch)
        values: list[float] = (logits.squeeze(1) if self.task == "stsb" else logits.argmax(1)).tolist()
        return values
