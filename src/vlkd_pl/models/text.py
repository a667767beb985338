"""BART for text alone, as it was or as distillation left it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from torch import Tensor, nn
from transformers import BartForConditionalGeneration, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.bart.modeling_bart import BartAttention, shift_tokens_right

from vlkd_pl.models.bart import load_bart
from vlkd_pl.models.vlkd import VLKDModel

TextRoute = Literal["around", "through"]


class TextModel(nn.Module):
    """A BART for tasks without images.

    Args:
        bart: Plain or distilled.
        tokenizer: Its tokenizer.
        projections: W_e and W'_e, for the encoder's output to go ``through``; None to go ``around`` them.
    """

    def __init__(
        self,
        bart: BartForConditionalGeneration,
        tokenizer: PreTrainedTokenizerBase,
        projections: tuple[nn.Linear, nn.Linear] | None = None,
    ) -> None:
        super().__init__()
        self.bart = bart.float()
        self.tokenizer = tokenizer
        self.projections = nn.Sequential(*projections) if projections is not None else nn.Identity()

    @classmethod
    def load(cls, model: str, route: TextRoute = "around") -> TextModel:
        """Load a BART.

        Args:
            model: A folder that ``VLKDModel.save_pretrained`` wrote; or a plain BART: a Hugging Face name, or a folder.
            route: Whether the encoder's output goes ``through`` W'_e W_e, as in distillation, or ``around`` it. The
                paper does not say. ``around`` is the better on GLUE, where the projections take away what the order of
                words tells, and hardly the worse on XSum: in the sample world, three seeds, CoLA 70 against 20, RTE 92
                against 79, ROUGE-L 95.3 against 97.0. At the paper's sizes W'_e W_e also loses rank (512 of 1,024 with
                ViT-B/16); in the sample world it does not. A plain BART has no projections, so that both are the same.

        Raises:
            FileNotFoundError: There is no such folder or name.
            ModelFileError: It holds no BART, or a file is missing or corrupt.
        """
        if (Path(model) / "bart").is_dir():
            joint = VLKDModel.from_pretrained(model)
            projections = (joint.text_projection, joint.text_back_projection) if route == "through" else None
            return cls(joint.bart, joint.tokenizer, projections)
        return cls(*load_bart(model))

    def encode(self, ids: Tensor, mask: Tensor) -> Tensor:
        """What the decoder attends to.

        Args:
            ids: BART's token ids (B, L).
            mask: (B, L), 1 at real tokens.

        Returns:
            (B, L, d_2): E, or W'_e W_e E.
        """
        features: Tensor = self.bart.model.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        projected: Tensor = self.projections(features)
        return projected

    def decode(self, features: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        """BART's decoder with teacher forcing.

        Args:
            features: What ``encode`` gives (B, L, d_2).
            mask: (B, L), 1 at real tokens.
            labels: The text to be told, (B, M) token ids with -100 at padding.

        Returns:
            Logits (B, M, vocabulary).
        """
        config = self.bart.config
        logits: Tensor = self.bart(
            encoder_outputs=BaseModelOutput(last_hidden_state=features),
            attention_mask=mask,
            decoder_input_ids=shift_tokens_right(labels, config.pad_token_id, config.decoder_start_token_id),
            use_cache=False,
        ).logits
        return logits

    def set_dropout(self, dropout: float, attention_dropout: float, activation_dropout: float = 0.0) -> None:
        """Set the probabilities of dropout in training, whatever those are that the BART was loaded with.

        Args:
            dropout: Of the embeddings and of each layer's output.
            attention_dropout: Of the attention weights.
            activation_dropout: Inside the feed-forward layers.
        """
        given = {"dropout": dropout, "attention_dropout": attention_dropout, "activation_dropout": activation_dropout}
        for name, value in given.items():
            setattr(self.bart.config, name, value)
        for part in self.bart.modules():
            if isinstance(part, BartAttention):
                part.dropout = attention_dropout
                continue
            for name in ("dropout", "activation_dropout"):
                if isinstance(getattr(part, name, None), float | int):
                    setattr(part, name, given[name])
