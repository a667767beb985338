"""Self-Critical Sequence Training: captioning trained for CIDEr-D, the rows "w/ SCST" of the paper's Tables 1 and 2."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from vlkd_pl.batch import CaptioningBatch, ImageBatch
from vlkd_pl.evaluation.captioning import CaptioningEvaluator, CaptionPrediction
from vlkd_pl.losses import scst_loss, token_kl_loss
from vlkd_pl.metrics.captions import CAPTION_METRICS
from vlkd_pl.metrics.cider import CIDErDReward
from vlkd_pl.metrics.ptb import tokenize
from vlkd_pl.models.decoding import CAPTION_DECODING, Decoding
from vlkd_pl.models.prompts import caption_prompt
from vlkd_pl.models.vlkd import ImageFeatures
from vlkd_pl.modules.captioning import (
    caption_condition,
    caption_labels,
    caption_predictions,
    check_metrics,
    metrics_of_stage,
)
from vlkd_pl.modules.vlkd import PLAIN, Execution, VLKDModule
from vlkd_pl.training.contracts import HasTrainingReferences, data_of
from vlkd_pl.training.optim import TABLE_10, Optimization

_END = "<eos>"
"""The end token as a word of the reward: no word of a caption, since the tokenizer splits it."""


class SCSTModule(VLKDModule):
    """Trains captioning for the CIDEr-D of sampled captions (Rennie et al., 2017), from a model that captions already.

    In the reward the end token counts as a word, as in the reference implementation (Luo, 2020): references have it, in
    the document frequencies too, and so do samples that ended. Without it a caption that breaks off ("… on a") often
    has a higher reward than the finished one.

    Document frequencies are those of the training references. A training sample is an image with all its captions:
    ``train_by: image`` of ``COCODataModule``. The paper gives no settings of its SCST; these are ours.

    Args:
        clip: Name of an OpenAI CLIP, or path of a file or folder; None for that of the model folder ``init_from``.
        bart: Hugging Face name of a BART, or path of a folder; None for that of the model folder ``init_from``.
        image_features: ``pooled``, ``patches`` or ``all``; None for those of the model folder ``init_from``.
        clip_sha256: Checksum that the CLIP file must have; see ``FrozenCLIP.load``.
        init_from: Model folder or checkpoint of an earlier stage; see ``VLKDModule``.
        num_samples: Captions that are drawn for each image, with dropout on; at least 2 for the baseline ``others``.
        baseline: Baseline of a caption's reward: the mean of the ``others`` of the same image (Luo, 2020), or that of
            the ``greedy`` caption without dropout, as in the original.
        kl_weight: Weight of the divergence from the initial model, at least 0; see ``token_kl_loss``.
        cross_entropy_weight: Weight of the loss of ``CaptioningModule`` on the same images, at least 0.
        end_token_in_reward: Whether the end token is a word of the reward.
        reward_cache: Folder for the reward's counts of the references, or None for no cache; see ``CIDErDReward``.
        icti_reduction: ``sum`` or ``mean`` over the tokens of a caption in the loss of ``CaptioningModule``.
        num_masks: Number m of masks in the prompt "A picture of <mask>×m.".
        decoding: Decoding of captions in validation, test and prediction.
        metrics: Names of the metrics in ``CAPTION_METRICS``; see ``CaptioningModule``.
        panel_size: Most images in the panel of captions; at least 0.
        optimization: Settings of optimizer and schedule.
        execution: Settings that trade memory for time.

    Raises:
        FileNotFoundError: CLIP, BART or ``init_from`` cannot be found.
        MisconfigurationException: The number of samples is too small for the baseline, CLIP or BART is missing or does
            not fit ``init_from``, or a metric is unknown.

    Example:
        >>> from vlkd_pl.sample import BART_FOLDER, CLIP_FOLDER
        >>> module = SCSTModule(CLIP_FOLDER, BART_FOLDER, num_samples=3)
        >>> module.loss_weights["scst"]
        1.0
    """

    evaluator: CaptioningEvaluator

    def __init__(
        self,
        clip: str | None = None,
        bart: str | None = None,
        image_features: ImageFeatures | None = None,
        clip_sha256: str | None = None,
        init_from: str | None = None,
        num_samples: int = 5,
        baseline: Literal["others", "greedy"] = "others",
        kl_weight: float = 0.0,
        cross_entropy_weight: float = 0.0,
        end_token_in_reward: bool = True,
        reward_cache: str | None = None,
        icti_reduction: Literal["mean", "sum"] = "sum",
        num_masks: int = 6,
        decoding: Decoding = CAPTION_DECODING,
        metrics: Sequence[str] = tuple(CAPTION_METRICS),
        panel_size: int = 16,
        optimization: Optimization = TABLE_10,
        execution: Execution = PLAIN,
    ) -> None:
        if num_samples < (2 if baseline == "others" else 1):
            raise MisconfigurationException(
                f"model.num_samples is {num_samples}: the baseline {baseline!r} needs "
                f"{'two or more' if baseline == 'others' else 'one or more'}"
            )
        check_metrics(metrics)
        super().__init__(
            clip=clip,
            bart=bart,
            image_features=image_features,
            clip_sha256=clip_sha256,
            init_from=init_from,
            icti_reduction=icti_reduction,
            num_masks=num_masks,
            decoding=decoding,
            optimization=optimization,
            execution=execution,
        )
        weights = {"scst": 1.0, "kl": kl_weight, "icti": cross_entropy_weight}
        self._evaluate_task(CaptioningEvaluator(metrics, panel_size), weights)
        self.metrics = metrics
        self.num_samples = num_samples
        self.baseline = baseline
        self.end_token_in_reward = end_token_in_reward
        self.reward_cache = reward_cache
        self.reward: CIDErDReward[int | str] | None = None
        # in a tuple, so that it is no part of the module: it is neither trained nor saved in checkpoints
        self._start: tuple[Any, ...] = (self._copy_of_model(),) if kl_weight else ()

    def setup(self, stage: str) -> None:
        """Leave METEOR and SPICE out of the validations of a training."""
        super().setup(stage)
        self.evaluator.metrics = metrics_of_stage(self.metrics, stage)

    def evaluate(self, batch: ImageBatch) -> list[CaptionPrediction]:
        """Caption the images; the samples are ``CaptionedImage``."""
        return caption_predictions(self, batch)

    def _copy_of_model(self) -> Any:
        clip = self.model.clip  # frozen, and so shared
        return copy.deepcopy(self.model, {id(clip): clip}).eval().requires_grad_(False)

    def on_fit_start(self) -> None:
        """Prepare the reward of the training references.

        Raises:
            MisconfigurationException: The data module has no training references.
        """
        super().on_fit_start()
        data = data_of(self.trainer, HasTrainingReferences, "SCSTModule", "reference captions of training images")
        references = {
            image_id: [self._rewarded(tokenize(text), has_ended=True) for text in texts]
            for image_id, texts in data.training_references().items()
        }
        self.reward = CIDErDReward(references, Path(self.reward_cache) if self.reward_cache is not None else None)
        for model in self._start:
            model.to(self.device)

    def compute_losses(self, batch: CaptioningBatch) -> dict[str, Tensor]:  # type: ignore[override]
        """Sample captions and compare their rewards with the baseline.

        Returns:
            ``scst``; ``kl`` and ``icti`` where they have a weight.
        """
        image_tokens = self.model.clip.encode_image(batch["image"])
        condition, mask = caption_condition(self.model, image_tokens, self.num_masks)
        ids, prefix_length = self._sample(condition, mask)
        image_ids = [sample.image_id for sample in batch["samples"]]
        texts = self._read(ids[:, prefix_length:])
        reward = self._reward(image_ids, texts, ids[:, prefix_length:])
        baseline = self._baseline(image_ids, reward, image_tokens)
        self.log("train/reward", reward.mean(), prog_bar=True)
        self.log("train/baseline", baseline.mean())
        self.log("train/caption_length", sum(len(text.split()) for text in texts) / len(texts))

        # generate has no gradients: a second pass gives the logits of all samples
        texts_ids = ids[:, 1:].masked_fill(ids[:, 1:] == self.model.tokenizer.pad_token_id, -100)
        labels = texts_ids.clone()
        labels[:, : prefix_length - 1] = -100
        logits = self.model.decode(*self._repeated(condition, mask), texts_ids)
        losses = {"scst": scst_loss(logits, labels, reward.flatten(), baseline.flatten())}
        if self.loss_weights["kl"]:
            losses["kl"] = token_kl_loss(logits, self._start_logits(image_tokens, texts_ids), labels)
        if self.loss_weights["icti"]:
            rows, caption_ids = caption_labels(self.model, batch["labels"], self.num_masks)
            losses |= self._infilling_losses({"icti": (condition[rows], mask[rows], caption_ids)})
        return losses

    @torch.no_grad()
    def _sample(self, condition: Tensor, mask: Tensor, greedy: bool = False) -> tuple[Tensor, int]:
        """Write captions after "A picture of".

        Args:
            condition: C (B, S, d_2).
            mask: (B, S), 1 at real positions.
            greedy: Whether to take the likeliest tokens of one caption for each image, in place of ``num_samples``
                drawn captions.

        Returns:
            Token ids (B · n, M), padded after their end tokens, and the length of the prefix in them, which is the
            decoder's start token and the prompt. A caption without an end after the most tokens gets none.
        """
        tokenizer, bart = self.model.tokenizer, self.model.bart
        words = tokenizer(caption_prompt(self.num_masks).before, add_special_tokens=False)["input_ids"]
        prefix = torch.tensor([bart.config.decoder_start_token_id, tokenizer.bos_token_id, *words], device=self.device)
        drawn = {"do_sample": True, "top_k": 0, "num_return_sequences": self.num_samples}
        likeliest = {"do_sample": False, "num_beams": 1, "num_return_sequences": 1}
        ids: Tensor = bart.generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=condition.detach()),
            attention_mask=mask,
            decoder_input_ids=prefix.expand(len(condition), -1),
            max_new_tokens=self.decoding.max_new_tokens,
            forced_eos_token_id=None,
            **(likeliest if greedy else drawn),
        )
        return ids, len(prefix)

    def _read(self, ids: Tensor) -> list[str]:
        """Read the captions in token ids as evaluation does, and tokenize them for the reward."""
        prompt = caption_prompt(self.num_masks)
        texts = self.model.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [tokenize(prompt.read(text, is_continuation=True)[0]) for text in texts]

    def _rewarded(self, text: str, has_ended: bool) -> str:
        """Add the end token to a caption that has ended, where the reward has it."""
        return f"{text} {_END}" if has_ended and self.end_token_in_reward else text

    def _reward(self, image_ids: list[int | str], texts: list[str], ids: Tensor) -> Tensor:
        """Compute CIDEr-D (B, n) of n captions of each image.

        Args:
            image_ids: Ids of B images.
            texts: B · n captions as ``_read`` returns them.
            ids: Token ids (B · n, M) of the captions; those of captions that have ended hold an end token.
        """
        assert self.reward is not None
        num_each = len(texts) // len(image_ids)
        ended = (ids == self.model.tokenizer.eos_token_id).any(1).tolist()
        captions = [self._rewarded(text, has_ended) for text, has_ended in zip(texts, ended, strict=True)]
        scores = self.reward([image_id for image_id in image_ids for _ in range(num_each)], captions)
        return torch.tensor(scores, dtype=torch.float32, device=self.device).view(len(image_ids), num_each)

    @torch.no_grad()
    def _baseline(self, image_ids: list[int | str], reward: Tensor, image_tokens: Tensor) -> Tensor:
        """Compute the baseline of each of the rewards (B, n)."""
        if self.baseline == "others":
            return (reward.sum(1, keepdim=True) - reward) / (self.num_samples - 1)
        self.model.eval()
        condition = caption_condition(self.model, image_tokens, self.num_masks)
        ids, prefix_length = self._sample(*condition, greedy=True)
        self.model.train()
        return self._reward(image_ids, self._read(ids[:, prefix_length:]), ids[:, prefix_length:]).expand_as(reward)

    @torch.no_grad()
    def _start_logits(self, image_tokens: Tensor, ids: Tensor) -> Tensor:
        """Compute the logits of the initial model for the same samples."""
        (model,) = self._start
        logits: Tensor = model.decode(*self._repeated(*caption_condition(model, image_tokens, self.num_masks)), ids)
        return logits

    def _repeated(self, condition: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Repeat each row for the captions that are drawn for it."""
        return condition.repeat_interleave(self.num_samples, 0), mask.repeat_interleave(self.num_samples, 0)
