"""Training of the sample world's small CLIP and small BART from random weights."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from transformers import AutoTokenizer, BartConfig, BartForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from vlkd_pl.clip.frozen import FrozenCLIP, normalized
from vlkd_pl.clip.openai import CLIP
from vlkd_pl.losses import clamp_logit_scale_, itcl_loss
from vlkd_pl.losses.precision import at_least_float32
from vlkd_pl.metrics.retrieval import recall_at_k
from vlkd_pl.models.bart import clean_tokenizer, load_bart
from vlkd_pl.sample.scenes import LIMITS
from vlkd_pl.training.exact_resume import ExactResume
from vlkd_pl.training.nonfinite import NonFiniteSteps
from vlkd_pl.training.optim import linear_warmup_and_decay, make_optimizer, parameter_groups

if TYPE_CHECKING:
    from vlkd_pl.sample.pretraining_data import CorpusBatch


class PretrainingModule(pl.LightningModule, ABC):
    """Base class of the pretraining modules, with their optimizer and export.

    A resumed run ends with the same model as an uninterrupted one.

    Args:
        output: Folder that the trained model is written to at the end of training.
        learning_rate: Peak learning rate of AdamW.
        weight_decay: Weight decay of all weights but biases and norms.
        warmup_steps: Number of optimizer steps of linear warm-up; then the rate falls linearly to 0 at the last step.
    """

    def __init__(self, output: str, learning_rate: float, weight_decay: float, warmup_steps: int) -> None:
        super().__init__()
        self.output = Path(output)
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.warmup_steps = warmup_steps

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Configure AdamW with warm-up and linear decay."""
        groups = parameter_groups(self, self.weight_decay, self.learning_rate)
        optimizer = make_optimizer("adamw", groups, self.learning_rate, (0.9, 0.98), eps=1e-8)
        schedule = linear_warmup_and_decay(optimizer, self.warmup_steps, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_callbacks(self) -> list[Callback]:
        """Return the callback that saves the random state, of dropout for example."""
        return [ExactResume(NonFiniteSteps(limit=0))]

    def on_fit_end(self) -> None:
        """Write the trained model to ``output``, also where a resumed run finds nothing left to train."""
        if self.trainer.is_global_zero:
            self.export(self.output)

    @abstractmethod
    def export(self, folder: Path) -> None:
        """Write the model to a folder for ``--model.clip`` or ``--model.bart``."""


def beats_hard_negatives(image: Tensor, text: Tensor, num_captions: Sequence[int]) -> Tensor:
    """Check which images are more similar to their caption than to any caption of their hard negatives.

    Args:
        image: Embeddings (B, D) of B images, of norm 1.
        text: Embeddings (T, D) of the captions of all images in their order, the right caption of an image first.
        num_captions: Number of captions of each image, at least 2; T in all.

    Returns:
        Truth values (B,) bool.

    Example:
        >>> image = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> text = torch.tensor([[0.6, 0.8], [0.0, 1.0], [0.6, 0.8], [1.0, 0.0], [0.8, 0.6]])
        >>> beats_hard_negatives(image, text, [2, 3])
        tensor([True, True])
    """
    similarities = [texts @ features for texts, features in zip(text.split(list(num_captions)), image, strict=True)]
    return torch.stack([(row[0] > row[1:]).all() for row in similarities])


class CLIPPretrainingModule(PretrainingModule):
    """Contrastive training of a CLIP of OpenAI's class from random weights (Radford et al., 2021).

    Args:
        vocab_size: Number of tokens in the text encoder's vocabulary.
        context_length: Number of positions of the text encoder.
        image_size: Width and height of an image in pixels.
        embedding_dim: Size of the joint space.
        vision_layers: Number of blocks in each of the ResNet's four stages.
        vision_width: Number of channels of the ResNet's first stage.
        text_width: Width of the text encoder; one head for every 64.
        text_layers: Number of layers of the text encoder.
        merges: Gzip file of the tokenizer's byte-pair merges; None for OpenAI's vocabulary.
        output: Folder that the trained model is written to at the end of training.
        learning_rate: Peak learning rate of AdamW.
        weight_decay: Weight decay of all weights but biases and norms.
        warmup_steps: Number of optimizer steps of linear warm-up.
    """

    def __init__(
        self,
        vocab_size: int,
        context_length: int,
        output: str,
        image_size: int = 64,
        embedding_dim: int = 256,
        vision_layers: tuple[int, int, int, int] = (1, 1, 1, 1),
        vision_width: int = 16,
        text_width: int = 256,
        text_layers: int = 2,
        merges: str | None = None,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.05,
        warmup_steps: int = 200,
    ) -> None:
        super().__init__(output, learning_rate, weight_decay, warmup_steps)
        self.merges = Path(merges) if merges else None
        self.clip = CLIP(
            embedding_dim,
            image_size,
            vision_layers,
            vision_width,
            None,
            context_length,
            vocab_size,
            text_width,
            text_width // 64,
            text_layers,
        ).float()
        self.eval_embeddings: list[tuple[Tensor, Tensor]] = []

    def embed(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Compute the l2-normalised image and text embeddings of a batch, (B, D) each."""
        text_ids = nn.functional.pad(
            batch["clip_text_ids"], (0, self.clip.context_length - batch["clip_text_ids"].shape[1])
        )
        image, text = self.clip.encode_image(normalized(batch["image"])), self.clip.encode_text(text_ids)
        return nn.functional.normalize(image, dim=-1), nn.functional.normalize(text, dim=-1)

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> Tensor:
        """Compute the contrastive loss."""
        loss = itcl_loss(*self.embed(batch), self.clip.logit_scale.exp())
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def optimizer_step(self, *args: Any, **options: Any) -> None:
        """Clamp the temperature after the step."""
        super().optimizer_step(*args, **options)
        clamp_logit_scale_(self.clip.logit_scale)

    def validation_step(self, batch: dict[str, Any], batch_index: int, dataloader_idx: int = 0) -> None:
        """Store the embeddings of a batch of pairs, or log how many captions beat all of their hard negatives."""
        if dataloader_idx == 0:
            self.eval_embeddings.append(self.embed(batch))
            return
        beaten = beats_hard_negatives(*self.embed(batch), batch["num_captions"])
        name = ("val/hard_negatives", "val/hard_negatives_unseen")[dataloader_idx - 1]
        self.log(name, beaten.float().mean(), add_dataloader_idx=False, batch_size=len(beaten), prog_bar=True)

    def on_validation_epoch_end(self) -> None:
        """Log recall@1 over all validation pairs."""
        image, text = (torch.cat(parts) for parts in zip(*self.eval_embeddings, strict=True))
        self.eval_embeddings.clear()
        recall = recall_at_k(image, text, torch.arange(len(image)), ks=(1,))
        self.log_dict({f"val/{name}": value for name, value in recall.items()}, prog_bar=True)

    def export(self, folder: Path) -> None:
        """Write ``clip.safetensors`` in half precision, the merges, and the limits of the sample world."""
        clip = copy.deepcopy(self.clip)
        # OpenAI's files hold half-precision weights, too; FrozenCLIP converts them to float32.
        for value in clip.state_dict().values():
            if value.is_floating_point():
                value.copy_(value.half())
        FrozenCLIP(clip, self.merges.read_bytes() if self.merges else None, LIMITS).save(folder)


class BARTPretrainingModule(PretrainingModule):
    """Denoising training of a BART from random weights by text infilling (Lewis et al., 2020).

    Args:
        tokenizer: Folder of a BART tokenizer.
        output: Folder that the trained model is written to at the end of training.
        start_from: Folder of a BART of these sizes that is trained further; None for random weights.
        width: Size of the hidden states.
        num_layers: Number of layers of the encoder and of the decoder.
        num_heads: Number of attention heads.
        feedforward_width: Width of the feed-forward layers.
        max_positions: Maximum length of a text in tokens.
        dropout: Dropout probability in [0, 1), in training and in the exported model.
        answer_weight: Weight in the loss of the tokens after " Answer:": answer, full stop and end token; others have
            weight 1.
        learning_rate: Peak learning rate of AdamW.
        weight_decay: Weight decay of all weights but biases and norms.
        warmup_steps: Number of optimizer steps of linear warm-up.
    """

    def __init__(
        self,
        tokenizer: str,
        output: str,
        start_from: str | None = None,
        width: int = 128,
        num_layers: int = 3,
        num_heads: int = 4,
        feedforward_width: int = 512,
        max_positions: int = 64,
        dropout: float = 0.0,
        answer_weight: float = 1.0,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.01,
        warmup_steps: int = 200,
    ) -> None:
        super().__init__(output, learning_rate, weight_decay, warmup_steps)
        self.answer_weight = answer_weight
        self.tokenizer = AutoTokenizer.from_pretrained(tokenizer)
        self.bart = BartForConditionalGeneration(
            BartConfig(
                vocab_size=len(self.tokenizer),
                d_model=width,
                encoder_layers=num_layers,
                decoder_layers=num_layers,
                encoder_attention_heads=num_heads,
                decoder_attention_heads=num_heads,
                encoder_ffn_dim=feedforward_width,
                decoder_ffn_dim=feedforward_width,
                max_position_embeddings=max_positions,
                dropout=dropout,
                attention_dropout=0.0,
                forced_eos_token_id=None,
                forced_bos_token_id=self.tokenizer.bos_token_id,
                attn_implementation="eager",  # PyTorch's fused attention is slow in bfloat16 on a CPU
            )
        )
        if start_from:
            self.bart.load_state_dict(load_bart(start_from)[0].state_dict())

    def training_step(self, batch: CorpusBatch, batch_index: int) -> Tensor:
        """Compute the denoising loss."""
        loss = self.loss(batch, self.logits(batch))
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: CorpusBatch, batch_index: int, dataloader_idx: int = 0) -> None:
        """Log the loss, and how much of teacher-forced predictions is correct.

        ``val/exact`` is the share of texts whose tokens are all predicted correctly. ``val/answers`` is the share of
        questions with a passage whose answer is, and for example ``val/answers_color`` that of one kind of question.
        ``val_separate`` is in place of ``val`` where passages are encoded apart from their questions.
        """
        part = ("val", "val_separate")[dataloader_idx]
        logits = self.logits(batch)
        right = (logits.argmax(-1) == batch["labels"]) | (batch["labels"] == -100)
        self._log(f"{part}/loss", float(self.loss(batch, logits)), len(right))
        self._log(f"{part}/exact", float(right.all(1).float().mean()), len(right))
        is_answered = (right | (batch["answer_mask"] == 0)).all(1).tolist()
        answers: dict[str, list[float]] = {}
        for kind, answered in zip(batch["question_kinds"], is_answered, strict=True):
            if kind:
                answers.setdefault(f"{part}/answers", []).append(answered)
                answers.setdefault(f"{part}/answers_{kind.replace('/', '_')}", []).append(answered)
        for name, values in answers.items():
            self._log(name, sum(values) / len(values), len(values))

    def _log(self, name: str, value: float, size: int) -> None:
        prog_bar = name.endswith(("/exact", "/answers"))
        self.log(name, value, prog_bar=prog_bar, batch_size=size, add_dataloader_idx=False)

    def loss(self, batch: CorpusBatch, logits: Tensor) -> Tensor:
        """Compute the mean cross-entropy over all tokens of the batch, where those of answers have ``answer_weight``.

        Args:
            batch: Batch of the data module.
            logits: Logits (B, M, V) of the batch.

        Returns:
            Scalar Σ w·ce / Σ w in nats.
        """
        labels = batch["labels"].flatten()
        losses = nn.functional.cross_entropy(at_least_float32(logits).flatten(0, 1), labels, reduction="none")
        weights = (labels != -100) * (1 + (self.answer_weight - 1) * batch["answer_mask"].flatten())
        return (weights * losses).sum() / weights.sum()

    def logits(self, batch: CorpusBatch) -> Tensor:
        """Compute teacher-forced logits (B, M, V) over the vocabulary."""
        mask, separate = batch["corrupted_mask"], batch["passage_mask"].any(1)
        features = self._encode(batch["corrupted_ids"], mask)
        if separate.any():
            passages = features.new_zeros(*batch["passage_mask"].shape, features.shape[-1])
            passages[separate] = self._encode(batch["passage_ids"][separate], batch["passage_mask"][separate])
            features, mask = torch.cat([passages, features], 1), torch.cat([batch["passage_mask"], mask], 1)
        return self.bart(
            encoder_outputs=BaseModelOutput(last_hidden_state=features),
            attention_mask=mask,
            labels=batch["labels"],
            use_cache=False,
        ).logits

    def _encode(self, ids: Tensor, mask: Tensor) -> Tensor:
        features: Tensor = self.bart.model.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        return features

    def export(self, folder: Path) -> None:
        """Write a Hugging Face folder with the tokenizer, in half precision."""
        copy.deepcopy(self.bart).half().save_pretrained(folder)
        clean_tokenizer(self.tokenizer).save_pretrained(folder)
