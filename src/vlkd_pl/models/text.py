"""A BART for text-only tasks, plain or distilled."""

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
    """BART for tasks without images, plain or distilled.

    Args:
        bart: The BART; it is converted to float32 in place.
        tokenizer: Tokenizer of the BART.
        projections: W_e and W'_e, which the encoder's output passes through; None to leave them out.
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
            model: Folder that ``VLKDModel.save_pretrained`` wrote; or a folder or Hugging Face name of a plain BART.
            route: Whether the encoder's output passes ``through`` W'_e W_e, as in distillation, or ``around`` it; both
                are the same for a plain BART. The paper leaves it open. At its sizes W'_e W_e loses rank (512 of 1,024
                with ViT-B/16); ``docs/sample_world.md`` has figures of both.

        Raises:
            FileNotFoundError: Neither the folder nor the name exists.
            ModelFileError: The folder holds no BART, or a file is missing or corrupt.

        Example:
            >>> from vlkd_pl.sample import BART_FOLDER
            >>> TextModel.load(BART_FOLDER).bart.config.d_model
            128
        """
        if (Path(model) / "bart").is_dir():
            joint = VLKDModel.from_pretrained(model)
            projections = (joint.text_projection, joint.text_back_projection) if route == "through" else None
            return cls(joint.bart, joint.tokenizer, projections)
        return cls(*load_bart(model))

    def encode(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Encode texts to the features that the decoder attends to.

        Args:
            ids: BART's token ids (B, L) int64.
            mask: Mask (B, L), 1 at real tokens.

        Returns:
            Features (B, L, d_2): E, or W'_e W_e E with projections.
        """
        features: Tensor = self.bart.model.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        projected: Tensor = self.projections(features)
        return projected

    def decode(self, features: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        """Compute the decoder's logits with teacher forcing.

        Args:
            features: Features (B, L, d_2) of ``encode``.
            mask: Mask (B, L), 1 at real tokens.
            labels: Token ids (B, M) int64 of the target texts, -100 at padding.

        Returns:
            Logits (B, M, V) over the vocabulary.
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
        """Set the dropout probabilities in training, replacing those that the BART was loaded with.

        Args:
            dropout: Probability in [0, 1) for the embeddings and each layer's output.
            attention_dropout: Probability in [0, 1) for the attention weights.
            activation_dropout: Probability in [0, 1) inside the feed-forward layers.
        """
        values = {"dropout": dropout, "attention_dropout": attention_dropout, "activation_dropout": activation_dropout}
        for name, value in values.items():
            setattr(self.bart.config, name, value)
        for part in self.bart.modules():
            if isinstance(part, BartAttention):
                part.dropout = attention_dropout
                continue
            for name in ("dropout", "activation_dropout"):
                if isinstance(getattr(part, name, None), float | int):
                    setattr(part, name, values[name])
