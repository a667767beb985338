"""Vision-language knowledge distillation: the paper's main experiment."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from vlkd_pl.batch import ImageBatch, ImageTextBatch, InfillingBatch
from vlkd_pl.evaluation.distillation import DistillationEvaluator, DistillationResult
from vlkd_pl.losses import chunked_icti_loss, clamp_logit_scale_, icti_loss, itcl_loss, ttdm_loss
from vlkd_pl.models.decoding import CAPTION_DECODING, Decoding, caption
from vlkd_pl.models.length_buckets import in_length_groups
from vlkd_pl.models.vlkd import ImageFeatures, mean_pooled
from vlkd_pl.modules.base import TaskModule
from vlkd_pl.training.checkpoint import drop_clip, load_model, restore_clip


class Encoded(NamedTuple):
    """What the encoders make of a batch.

    Attributes:
        image_tokens: (B, 1 + N, d_1) of ``FrozenCLIP.encode_image``.
        clip_text_embedding: t_eos (B, d_1).
        bart_text_embedding: ē_norm (B, d_1).
        corrupted_features: E of the corrupted texts (B, L, d_2).
    """

    image_tokens: Tensor
    clip_text_embedding: Tensor
    bart_text_embedding: Tensor
    corrupted_features: Tensor


class VLKDModule(TaskModule):
    """Distils a frozen CLIP into BART with TTDM, ITCL and ICTI (Section 3.2).

    Args:
        clip: Name of an OpenAI CLIP, or the path of a file or folder; see ``FrozenCLIP.load``. A model folder given as
            ``init_from`` holds this and the next two, which need not be given then.
        bart: Hugging Face name of a BART, or a local folder.
        image_features: V of Eq. (1): ``pooled`` for a ViT and ``patches`` for a ResNet, as in the paper; or ``all``.
            ``pooled`` by default.
        clip_sha256: Checksum that the CLIP file must have; OpenAI's own by default where the file's name is OpenAI's.
            It vouches for a file that is neither OpenAI's nor written by this package; see ``FrozenCLIP.load``.
        ttdm_weight: γ, the weight of TTDM.
        itcl_weight: Weight of ITCL.
        icti_weight: Weight of ICTI.
        text_infilling_weight: Weight of infilling on text without images, where the data has it.
        ttdm_reduction: ``mean`` or ``sum`` over the dimensions; see ``ttdm_loss``.
        icti_reduction: ``sum`` or ``mean`` over a text's tokens; see ``icti_loss``.
        temperature: τ at the start; it is learnt, and 0.01 at least, as CLIP's own.
        start: ``random`` projections as in the paper, or W_e and W_i in ``closed_form`` from training captions.
        num_start_texts: Captions that the closed form is computed on.
        num_masks: m of the captioning prompt "A picture of <mask>×m.".
        decoding: How captions are decoded in validation, test and prediction.
        init_from: Model folder or checkpoint of an earlier stage to start from. A folder's own CLIP and BART are used:
            others that are passed with it must be the same.
        activation_checkpointing: Whether BART's layers are computed again in the backward pass, which takes a third
            more time and a fraction of the memory.
        compile: Whether BART's encoder and decoder are compiled for training, which takes minutes at the start.
        num_length_groups: Groups of texts of about the same length that BART reads and writes a batch in, each padded
            to its own longest alone. The losses are still those of the whole batch, to rounding. Of 512 captions
            half is padding with 1 group, a fifth with 4 and a tenth with 8.
        vocabulary_chunk_size: Tokens whose logits over the vocabulary are held at a time for ICTI, which then computes
            none at padding; the same losses, to rounding. None holds those of the whole batch with its padding.
        panel_size: Most images in the panel of captions.
        **options: See ``TaskModule``; its defaults are the paper's (Table 10).

    Raises:
        MisconfigurationException: A number of groups or of tokens is below 1.
        FileNotFoundError: CLIP, BART or ``init_from`` cannot be found.
    """

    def __init__(
        self,
        clip: str | None = None,
        bart: str | None = None,
        image_features: ImageFeatures | None = None,
        clip_sha256: str | None = None,
        ttdm_weight: float = 1e3,
        itcl_weight: float = 1.0,
        icti_weight: float = 1.0,
        text_infilling_weight: float = 1.0,
        ttdm_reduction: Literal["mean", "sum"] = "mean",
        icti_reduction: Literal["mean", "sum"] = "sum",
        temperature: float = 0.07,
        start: Literal["random", "closed_form"] = "random",
        num_start_texts: int = 4000,
        num_masks: int = 6,
        decoding: Decoding = CAPTION_DECODING,
        init_from: str | None = None,
        activation_checkpointing: bool = False,
        compile: bool = False,
        num_length_groups: int = 1,
        vocabulary_chunk_size: int | None = None,
        panel_size: int = 16,
        **options: Any,
    ) -> None:
        for name, value in (("num_length_groups", num_length_groups), ("vocabulary_chunk_size", vocabulary_chunk_size)):
            if value is not None and value < 1:
                raise MisconfigurationException(f"{name} is {value}: give 1 or more")
        super().__init__(**options)
        self.model = load_model(clip, bart, image_features, clip_sha256, init_from)
        if activation_checkpointing:
            self.model.checkpoint_activations()
        if compile:
            self.model.compile_training()
        self.logit_scale = nn.Parameter(torch.tensor([-math.log(temperature)]))  # FSDP shards no scalars
        self.loss_weights = {
            "ttdm": ttdm_weight,
            "itcl": itcl_weight,
            "icti": icti_weight,
            "text_infilling": text_infilling_weight,
        }
        self.ttdm_reduction: Literal["mean", "sum"] = ttdm_reduction
        self.icti_reduction: Literal["mean", "sum"] = icti_reduction
        self.start = start if init_from is None else "given"
        self.num_start_texts = num_start_texts
        self.num_masks = num_masks
        self.decoding = decoding
        self.num_length_groups = num_length_groups
        self.vocabulary_chunk_size = vocabulary_chunk_size
        self.evaluator = DistillationEvaluator(panel_size)

    def setup(self, stage: str) -> None:
        """Looks at cached features before anything is trained, and computes the closed-form start.

        Raises:
            MisconfigurationException: They are another CLIP's, or lack what is needed.
        """
        if stage != "fit":
            return
        cache = getattr(self.data, "cache", None)
        if cache is not None:
            cache.check_clip(self.model.clip.fingerprint, self.model.image_features)
        if self.start == "closed_form" and self.trainer.ckpt_path is None:
            self.to(self.trainer.strategy.root_device)
            self._start_in_closed_form(self.data.training_captions(self.num_start_texts))

    # Losses

    def compute_losses(self, batch: ImageTextBatch) -> dict[str, Tensor]:
        """The losses of a batch, unweighted.

        Their weighted sum is L = γ L_TTDM + L_ITCL + L_ICTI (Section 3.2.3).

        Returns:
            ``ttdm``, ``itcl`` and ``icti``, and ``text_infilling`` where the batch holds text without images.
        """
        return self._losses_of(self._encode(batch), batch)

    def _encode(self, batch: ImageTextBatch) -> Encoded:
        clean_features, corrupted_features = self._encode_together(batch)
        image_tokens, clip_text_embedding = self._encode_by_clip(batch)
        return Encoded(
            image_tokens=image_tokens,
            clip_text_embedding=clip_text_embedding,
            bart_text_embedding=self.model.embed_text(clean_features, batch["bart_text_mask"]),
            corrupted_features=corrupted_features,
        )

    def _encode_by_clip(self, batch: ImageTextBatch) -> tuple[Tensor, Tensor]:
        """CLIP's image tokens and text embedding in float32, cached or made now."""
        if "image_tokens" in batch:
            image_tokens = batch["image_tokens"].float()
            if "image_scales" in batch:
                image_tokens = image_tokens * batch["image_scales"].float().unsqueeze(-1)
            return image_tokens, batch["clip_text_embedding"].float()
        return self.model.clip.encode_image(batch["image"]), self.model.clip.encode_text(batch["clip_text_ids"])

    def _encode_together(self, batch: ImageTextBatch) -> tuple[Tensor, Tensor]:
        """BART's encoder over the clean and the corrupted texts in one pass: features (B, L, d_2) of each."""
        clean_ids, corrupted_ids = batch["bart_text_ids"], batch["corrupted_ids"]
        longest = max(clean_ids.shape[1], corrupted_ids.shape[1])
        pad_id = self.model.bart.config.pad_token_id

        def joined(clean: Tensor, corrupted: Tensor, value: int) -> Tensor:
            parts = (clean, corrupted)
            return torch.cat([nn.functional.pad(part, (0, longest - part.shape[1]), value=value) for part in parts])

        mask = joined(batch["bart_text_mask"], batch["corrupted_mask"], 0)
        clean, corrupted = self._encode_text(joined(clean_ids, corrupted_ids, pad_id), mask).chunk(2)
        return clean[:, : clean_ids.shape[1]], corrupted[:, : corrupted_ids.shape[1]]

    def _encode_text(self, ids: Tensor, mask: Tensor) -> Tensor:
        return in_length_groups(self.model.encode_text, (ids, mask), (mask, mask), self.num_length_groups)

    def _losses_of(self, encoded: Encoded, batch: ImageTextBatch) -> dict[str, Tensor]:
        image_embedding, text_embedding = encoded.image_tokens[:, 0], encoded.bart_text_embedding
        losses = {
            "ttdm": ttdm_loss(encoded.clip_text_embedding, text_embedding, self.ttdm_reduction),
            "itcl": itcl_loss(image_embedding, text_embedding, self.logit_scale.exp()),
            "icti": self._infilling_loss(encoded.corrupted_features, batch, encoded.image_tokens),
        }
        if "text_infilling" in batch:
            text_only = batch["text_infilling"]
            features = self._encode_text(text_only["corrupted_ids"], text_only["corrupted_mask"])
            losses["text_infilling"] = self._infilling_loss(features, text_only)
        return losses

    def _infilling_loss(self, features: Tensor, batch: InfillingBatch, image_tokens: Tensor | None = None) -> Tensor:
        condition, mask = self.model.condition(features, batch["corrupted_mask"], image_tokens)
        labels = batch["labels"]
        inputs, masks = (condition, mask, labels), (mask, mask, labels != -100)
        hidden = in_length_groups(self.model.decode_features, inputs, masks, self.num_length_groups)
        if self.vocabulary_chunk_size is None:
            return icti_loss(self.model.vocabulary_logits(hidden), labels, self.icti_reduction)
        weight, bias = self.model.bart.lm_head.weight, self.model.bart.final_logits_bias[0]
        return chunked_icti_loss(hidden, weight, bias, labels, self.vocabulary_chunk_size, self.icti_reduction)

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        """The weighted sum of the losses; also logs the temperature that they are computed with."""
        self.log("train/temperature", self.logit_scale.detach().neg().exp())
        return super().training_step(batch, batch_index)

    def on_train_start(self) -> None:
        """Bounds a temperature that a run starts with, or that a checkpoint of version 0.4.0 holds."""
        super().on_train_start()
        clamp_logit_scale_(self.logit_scale)

    def optimizer_step(self, *args: Any, **options: Any) -> None:
        """Bounds the temperature after the step."""
        super().optimizer_step(*args, **options)
        clamp_logit_scale_(self.logit_scale)

    # The start

    def _start_in_closed_form(self, captions: list[str]) -> None:
        self.eval()
        bart_embeddings, clip_embeddings, norms = [], [], []
        for first in range(0, len(captions), 256):
            texts = captions[first : first + 256]
            encoded = self.model.tokenizer(texts, padding=True, truncation=True, max_length=64, return_tensors="pt").to(
                self.device
            )
            ids, mask = encoded["input_ids"], encoded["attention_mask"]
            with torch.no_grad():
                features = self.model.encode_text(ids, mask)
                clip_text_ids = self.data.clip_tokenizer(texts).to(self.device)
                clip_embeddings.append(self.model.clip.encode_text(clip_text_ids))
            bart_embeddings.append(mean_pooled(features, mask))
            norms.append(features.norm(dim=-1)[mask.bool()].mean())
        self.model.initialize_from_text(
            torch.cat(bart_embeddings), torch.cat(clip_embeddings), float(torch.stack(norms).mean())
        )
        for projection in (self.model.text_projection, self.model.image_projection, self.model.text_back_projection):
            projection.weight.data.copy_(self.trainer.strategy.broadcast(projection.weight.data))

    # Validation, test and prediction

    def evaluate(self, batch: Any) -> Sequence[Any]:
        """Compute losses, captions and embeddings of an ``EvaluationBatch``."""
        encoded = self._encode(batch)
        losses = self._losses_of(encoded, batch)
        stage = "test" if self.trainer.testing else "val"
        size = len(batch["labels"])
        self.log_dict({f"{stage}/{name}_loss": loss for name, loss in losses.items()}, batch_size=size, sync_dist=True)
        captions = caption(self.model, encoded.image_tokens, self.num_masks, self.decoding)
        return [
            DistillationResult(
                id=image_id,
                caption=captions[index][0].text,
                references=batch["references"][index],
                image_embedding=encoded.image_tokens[index, 0].cpu(),
                bart_text_embedding=encoded.bart_text_embedding[index].cpu(),
                clip_text_embedding=encoded.clip_text_embedding[index].cpu(),
                image=self.evaluator.panel_image(batch["image"][index], index),
            )
            for index, image_id in enumerate(batch["image_id"].tolist())
        ]

    def predict(self, batch: ImageBatch) -> list[dict[str, Any]]:
        """A caption for each image."""
        image_tokens = self.model.clip.encode_image(batch["image"])
        captions = caption(self.model, image_tokens, self.num_masks, self.decoding)
        return [
            {"image_id": sample.image_id, "caption": texts[0].text}
            for sample, texts in zip(batch["samples"], captions, strict=True)
        ]

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leaves the frozen CLIP out."""
        super().on_save_checkpoint(checkpoint)
        drop_clip(checkpoint, self.model)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes the frozen CLIP from the model itself."""
        restore_clip(checkpoint, self.model)
        super().on_load_checkpoint(checkpoint)
