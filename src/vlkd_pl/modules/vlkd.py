"""Vision-language knowledge distillation: the paper's main experiment."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from vlkd_pl.batch import ImageBatch, ImageTextBatch
from vlkd_pl.evaluation.distillation import DistillationEvaluator, DistillationResult
from vlkd_pl.evaluation.evaluator import Evaluator
from vlkd_pl.losses import chunked_icti_loss, clamp_logit_scale_, icti_loss, itcl_loss, ttdm_loss
from vlkd_pl.models.decoding import CAPTION_DECODING, Decoding, caption
from vlkd_pl.models.length_buckets import embed_in_length_groups, in_length_groups, stacked
from vlkd_pl.models.vlkd import ImageFeatures, mean_pooled
from vlkd_pl.modules.base import TaskModule
from vlkd_pl.training.checkpoint import drop_clip, load_model, restore_clip
from vlkd_pl.training.contracts import HasFeatureCache, HasTrainingCaptions, data_module, data_of
from vlkd_pl.training.optim import TABLE_10, Optimization


@dataclass(frozen=True)
class Execution:
    """Settings that trade memory for time and leave the losses as they are, to rounding.

    Raises:
        MisconfigurationException: A number of groups or of tokens is below 1.

    Example:
        >>> Execution(num_length_groups=4, vocabulary_chunk_size=256).compile
        False
    """

    activation_checkpointing: bool = False
    """Whether BART's layers are computed again in the backward pass: a third more time, a fraction of the memory."""
    compile: bool = False
    """Whether BART's encoder and decoder are compiled for training, which takes minutes at the start."""
    num_length_groups: int = 1
    """Groups of texts of similar length that BART processes a batch in, each padded to its longest text. Of 512
    captions half is padding with 1 group, a fifth with 4 and a tenth with 8."""
    vocabulary_chunk_size: int | None = None
    """Tokens whose logits over the vocabulary are held at a time, none of them padding; null for the whole batch with
    its padding."""

    def __post_init__(self) -> None:
        sizes = {"num_length_groups": self.num_length_groups, "vocabulary_chunk_size": self.vocabulary_chunk_size}
        for name, value in sizes.items():
            if value is not None and value < 1:
                raise MisconfigurationException(f"model.execution.{name} is {value}: give 1 or more")


PLAIN = Execution()
"""The execution without any of the savings."""


class Encoded(NamedTuple):
    """Outputs of the encoders for a batch.

    Attributes:
        image_tokens: (B, 1 + N, d_1) of ``FrozenCLIP.encode_image``.
        clip_text_embedding: t_eos (B, d_1).
        bart_text_embedding: ē_norm (B, d_1).
        corrupted_features: E of the corrupted texts (B, L, d_2).
        passage_embedding: CLIP's embeddings (T, d_1) of the passages of text as image, with noise; None without them.
        question_features: E of the corrupted texts about them (T, M, d_2); None without them.
        text_only_features: E of the corrupted texts without images (U, K, d_2); None without them.
    """

    image_tokens: Tensor
    clip_text_embedding: Tensor
    bart_text_embedding: Tensor
    corrupted_features: Tensor
    passage_embedding: Tensor | None = None
    question_features: Tensor | None = None
    text_only_features: Tensor | None = None


InfillingInputs = tuple[Tensor, Tensor, Tensor]
"""Condition C (B, S, d_2), its mask (B, S), and the labels (B, M) of texts that the decoder reconstructs."""


class VLKDModule(TaskModule):
    """Distills a frozen CLIP into BART with TTDM, ITCL and ICTI (Section 3.2).

    Args:
        clip: Name of an OpenAI CLIP, or path of a file or folder; see ``FrozenCLIP.load``. None for that of the model
            folder ``init_from``.
        bart: Hugging Face name of a BART, or path of a folder. None for that of the model folder ``init_from``.
        image_features: V of Eq. (1): ``pooled`` for a ViT and ``patches`` for a ResNet, as in the paper, or ``all``.
            None for those of the model folder ``init_from``, and without one for ``pooled``.
        clip_sha256: Checksum that the CLIP file must have; None for OpenAI's where the file has a name of OpenAI's. A
            file that is neither OpenAI's nor written by this package needs it; see ``FrozenCLIP.load``.
        init_from: Model folder or checkpoint of an earlier stage to start from. A folder's CLIP and BART are used:
            others that are passed with it must be the same.
        prefix_length: Number of tokens that W_i makes of each image token: 1 as in the paper, or more as in ClipCap
            (Mokady et al., 2021), an extension. None for that of the model folder ``init_from``, and without one for 1.
        ttdm_weight: Weight γ of TTDM.
        itcl_weight: Weight of ITCL.
        icti_weight: Weight of ICTI.
        text_infilling_weight: Weight of infilling on text without images, where the data module has a text corpus.
        text_infilling_around: Share of these texts whose features go around W'_e W_e, in [0, 1], so that BART
            keeps what it can without them, too; an extension. The others go through.
        text_as_image_weight: Weight of text as image, where ``data.text_corpus.text_as_image`` is above 0: infilling of
            texts about a passage, whose CLIP embedding takes the place of an image's (DeCap, Li et al., 2023).
        text_as_image_noise: Standard deviation in each dimension of the Gaussian noise that is added to this embedding,
            l2-normalised, to bridge the gap to those of images (CapDec, Nukrai et al., 2022); at least 0.
        ttdm_reduction: ``mean`` or ``sum`` over the dimensions; see ``ttdm_loss``.
        icti_reduction: ``sum`` or ``mean`` over the tokens of a text; see ``icti_loss``.
        temperature: Initial τ, at least 0.01, which is its bound while it is learned.
        start: ``random`` projections as in the paper, or W_e and W_i in ``closed_form`` from training captions.
        num_start_texts: Number of captions that the closed form is computed on.
        num_masks: Number m of masks in the captioning prompt "A picture of <mask>×m.".
        decoding: Decoding of captions in validation, test and prediction.
        panel_size: Most images in the panel of captions; at least 0.
        optimization: Settings of optimizer and schedule.
        execution: Settings that trade memory for time.

    Raises:
        FileNotFoundError: CLIP, BART or ``init_from`` cannot be found.
        ModelFileError: One of their files is corrupt, incomplete, or of another model.
        MisconfigurationException: CLIP or BART is missing, or does not fit ``init_from``; or the noise is below 0.

    Example:
        >>> from vlkd_pl.sample import BART_FOLDER, CLIP_FOLDER
        >>> module = VLKDModule(CLIP_FOLDER, BART_FOLDER, optimization=Optimization(warmup_steps=50))
        >>> module.model.image_features
        'pooled'
    """

    def __init__(
        self,
        clip: str | None = None,
        bart: str | None = None,
        image_features: ImageFeatures | None = None,
        clip_sha256: str | None = None,
        init_from: str | None = None,
        prefix_length: int | None = None,
        ttdm_weight: float = 1e3,
        itcl_weight: float = 1.0,
        icti_weight: float = 1.0,
        text_infilling_weight: float = 1.0,
        text_infilling_around: float = 0.0,
        text_as_image_weight: float = 1.0,
        text_as_image_noise: float = 0.02,
        ttdm_reduction: Literal["mean", "sum"] = "mean",
        icti_reduction: Literal["mean", "sum"] = "sum",
        temperature: float = 0.07,
        start: Literal["random", "closed_form"] = "random",
        num_start_texts: int = 4000,
        num_masks: int = 6,
        decoding: Decoding = CAPTION_DECODING,
        panel_size: int = 16,
        optimization: Optimization = TABLE_10,
        execution: Execution = PLAIN,
    ) -> None:
        if not 0 <= text_as_image_noise < math.inf:
            raise MisconfigurationException(
                f"model.text_as_image_noise is {text_as_image_noise}: give a standard deviation from 0"
            )
        if not 0 <= text_infilling_around <= 1:
            raise MisconfigurationException(
                f"model.text_infilling_around is {text_infilling_around}: give a share from 0 to 1"
            )
        weights = {
            "ttdm": ttdm_weight,
            "itcl": itcl_weight,
            "icti": icti_weight,
            "text_infilling": text_infilling_weight,
            "text_as_image": text_as_image_weight,
        }
        super().__init__(DistillationEvaluator(panel_size), optimization, weights)
        self.model = load_model(clip, bart, image_features, clip_sha256, init_from, prefix_length)
        if execution.activation_checkpointing:
            self.model.checkpoint_activations()
        if execution.compile:
            self.model.compile_training()
        self.logit_scale = nn.Parameter(torch.tensor([-math.log(temperature)]))  # FSDP shards no scalars
        self.text_infilling_around = text_infilling_around
        self.text_as_image_noise = text_as_image_noise
        self.ttdm_reduction: Literal["mean", "sum"] = ttdm_reduction
        self.icti_reduction: Literal["mean", "sum"] = icti_reduction
        self.starts_in_closed_form = start == "closed_form" and init_from is None
        self.num_start_texts = num_start_texts
        self.num_masks = num_masks
        self.decoding = decoding
        self.execution = execution

    def _evaluate_task(self, evaluator: Evaluator[Any], loss_weights: dict[str, float]) -> None:
        """Set up a subclass for another task, whose losses do not use the temperature."""
        self.evaluator, self.loss_weights = evaluator, loss_weights
        self.logit_scale.requires_grad_(False)  # or DistributedDataParallel would wait for its gradient

    def setup(self, stage: str) -> None:
        """Check cached features before anything is trained, and compute the closed-form start.

        Raises:
            MisconfigurationException: The features are of another CLIP or lack what the model reads; or the data module
                has no training captions for the closed-form start.
        """
        if stage != "fit":
            return
        data = data_module(self.trainer)
        if isinstance(data, HasFeatureCache) and data.cache is not None:
            data.cache.check_clip(self.model.clip.fingerprint, self.model.image_features)
        if self.starts_in_closed_form and self.trainer.ckpt_path is None:
            captions = data_of(self.trainer, HasTrainingCaptions, "start: closed_form", "training captions")
            self.to(self.trainer.strategy.root_device)
            self._start_in_closed_form(captions)

    # Losses

    def compute_losses(self, batch: ImageTextBatch) -> dict[str, Tensor]:
        """Compute the losses of a batch, unweighted.

        Their weighted sum is L = γ L_TTDM + L_ITCL + L_ICTI (Section 3.2.3).

        Returns:
            ``ttdm``, ``itcl`` and ``icti``; ``text_infilling`` and ``text_as_image`` where the batch holds their texts.
        """
        return self._losses_of(self._encode(batch), batch)

    def _encode(self, batch: ImageTextBatch) -> Encoded:
        texts = {
            "clean": (batch["bart_text_ids"], batch["bart_text_mask"]),
            "corrupted": (batch["corrupted_ids"], batch["corrupted_mask"]),
        }
        for name in ("text_as_image", "text_infilling"):
            if name in batch:
                texts[name] = (batch[name]["corrupted_ids"], batch[name]["corrupted_mask"])
        features = self._encode_together(texts)
        image_tokens, clip_text_embedding = self._encode_by_clip(batch)
        questions = batch.get("text_as_image")
        return Encoded(
            image_tokens=image_tokens,
            clip_text_embedding=clip_text_embedding,
            bart_text_embedding=self.model.embed_text(features["clean"], batch["bart_text_mask"]),
            corrupted_features=features["corrupted"],
            passage_embedding=None if questions is None else self._embed_passages(questions["clip_text_ids"]),
            question_features=features.get("text_as_image"),
            text_only_features=features.get("text_infilling"),
        )

    def _embed_passages(self, clip_text_ids: Tensor) -> Tensor:
        embedding = self._embed_by_clip(clip_text_ids)
        if self.text_as_image_noise == 0:
            return embedding
        return embedding + self.text_as_image_noise * torch.randn_like(embedding)

    def _embed_by_clip(self, clip_text_ids: Tensor) -> Tensor:
        return embed_in_length_groups(self.model.clip.encode_text, clip_text_ids, self.execution.num_length_groups)

    def _encode_by_clip(self, batch: ImageTextBatch) -> tuple[Tensor, Tensor]:
        """Read CLIP's image tokens and text embedding in float32 from the batch, or compute them."""
        if "image_tokens" in batch:
            image_tokens = batch["image_tokens"].float()
            if "image_scales" in batch:
                image_tokens = image_tokens * batch["image_scales"].float().unsqueeze(-1)
            return image_tokens, batch["clip_text_embedding"].float()
        return self.model.clip.encode_image(batch["image"]), self._embed_by_clip(batch["clip_text_ids"])

    def _encode_together(self, texts: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        """Encode texts in one pass of BART's encoder: features (B, L, d_2) of each pair of ids and mask (B, L)."""
        ids = stacked([ids for ids, _ in texts.values()], self.model.bart.config.pad_token_id)
        mask = stacked([mask for _, mask in texts.values()], 0)
        features = in_length_groups(
            self.model.encode_text, (ids, mask), (mask, mask), self.execution.num_length_groups
        ).split([len(ids) for ids, _ in texts.values()])
        return {name: part[:, : ids.shape[1]] for part, (name, (ids, _)) in zip(features, texts.items(), strict=True)}

    def _losses_of(self, encoded: Encoded, batch: ImageTextBatch) -> dict[str, Tensor]:
        image_embedding, text_embedding = encoded.image_tokens[:, 0], encoded.bart_text_embedding
        return {
            "ttdm": ttdm_loss(encoded.clip_text_embedding, text_embedding, self.ttdm_reduction),
            "itcl": itcl_loss(image_embedding, text_embedding, self.logit_scale.exp()),
            **self._infilling_losses(self._infilling_inputs(encoded, batch)),
        }

    def _infilling_inputs(self, encoded: Encoded, batch: ImageTextBatch) -> dict[str, InfillingInputs]:
        mask = batch["corrupted_mask"]
        inputs = {
            "icti": (*self.model.condition(encoded.corrupted_features, mask, encoded.image_tokens), batch["labels"])
        }
        if encoded.passage_embedding is not None and encoded.question_features is not None:
            questions, passage = batch["text_as_image"], encoded.passage_embedding.unsqueeze(1)
            condition = self.model.condition_on(encoded.question_features, questions["corrupted_mask"], passage)
            inputs["text_as_image"] = (*condition, questions["labels"])
        if encoded.text_only_features is not None:
            features, texts = encoded.text_only_features, batch["text_infilling"]
            mask, num_around = texts["corrupted_mask"], round(self.text_infilling_around * len(features))
            through, _ = self.model.condition(features[num_around:], mask[num_around:])
            inputs["text_infilling"] = (torch.cat([features[:num_around], through]), mask, texts["labels"])
        return inputs

    def _infilling_losses(self, inputs: Mapping[str, InfillingInputs]) -> dict[str, Tensor]:
        """Compute negative log-likelihoods (Eq. 2) in one pass of BART's decoder."""
        condition, mask = (stacked([part[index] for part in inputs.values()], 0) for index in (0, 1))
        labels = stacked([part[2] for part in inputs.values()], -100)
        arguments, masks = (condition, mask, labels), (mask, mask, labels != -100)
        hidden = in_length_groups(self.model.decode_features, arguments, masks, self.execution.num_length_groups)
        losses, first = {}, 0
        for name, (_, _, part_labels) in inputs.items():
            rows, length = part_labels.shape
            losses[name] = self._likelihood_loss(hidden[first : first + rows, :length], part_labels)
            first += rows
        return losses

    def _likelihood_loss(self, hidden: Tensor, labels: Tensor) -> Tensor:
        chunk_size = self.execution.vocabulary_chunk_size
        if chunk_size is None:
            return icti_loss(self.model.vocabulary_logits(hidden), labels, self.icti_reduction)
        weight, bias = self.model.bart.lm_head.weight, self.model.bart.final_logits_bias[0]
        return chunked_icti_loss(hidden, weight, bias, labels, chunk_size, self.icti_reduction)

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        """Compute the weighted sum of the losses, and log the temperature that they are computed with."""
        self.log("train/temperature", self.logit_scale.detach().neg().exp())
        return super().training_step(batch, batch_index)

    def on_train_start(self) -> None:
        """Bound the initial temperature, or that of a checkpoint of version 0.4.0."""
        super().on_train_start()
        clamp_logit_scale_(self.logit_scale)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Step, and bound the temperature."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        clamp_logit_scale_(self.logit_scale)

    # Closed-form start

    def _start_in_closed_form(self, data: HasTrainingCaptions) -> None:
        captions = data.training_captions(self.num_start_texts)
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
                clip_text_ids = data.clip_tokenizer(texts).to(self.device)
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
        """Caption the images."""
        image_tokens = self.model.clip.encode_image(batch["image"])
        captions = caption(self.model, image_tokens, self.num_masks, self.decoding)
        return [
            {"image_id": sample.image_id, "caption": texts[0].text}
            for sample, texts in zip(batch["samples"], captions, strict=True)
        ]

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the frozen CLIP out."""
        drop_clip(checkpoint, self.model)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the frozen CLIP from the model."""
        restore_clip(checkpoint, self.model)
        super().on_load_checkpoint(checkpoint)
