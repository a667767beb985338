"""Captioning, zero-shot and fine-tuned: the paper's Tables 1 and 2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor

from vlkd_pl.batch import CaptioningBatch, ImageBatch
from vlkd_pl.evaluation.captioning import CaptioningEvaluator, CaptionPrediction
from vlkd_pl.losses import icti_loss
from vlkd_pl.metrics.captions import CAPTION_METRICS
from vlkd_pl.models.decoding import caption
from vlkd_pl.models.prompts import caption_prompt
from vlkd_pl.models.vlkd import VLKDModel
from vlkd_pl.modules.vlkd import VLKDModule

_SLOW_METRICS = ("METEOR", "SPICE")  # programs in Java, which the validations of a training do without


class CaptioningModule(VLKDModule):
    """Captions images, and scores the captions against what people wrote.

    Straight to ``test`` it does so zero-shot (Section 4.3.1); ``fit`` trains it on the same prompt (Section 4.4), with
    the loss ``icti`` alone.

    Args:
        metrics: Which scores are computed; METEOR and SPICE need Java, and are reported as not computed without. While
            it trains they are left out.
        **options: See ``VLKDModule``; ``num_masks`` is m of the prompt and ``decoding`` holds the beams.

    Raises:
        MisconfigurationException: There is no such metric.
    """

    def __init__(self, metrics: Sequence[str] = tuple(CAPTION_METRICS), **options: Any) -> None:
        unknown = [metric for metric in metrics if metric not in CAPTION_METRICS]
        if unknown:
            raise MisconfigurationException(
                f"model.metrics: there is no {unknown[0]!r}: choose from {', '.join(CAPTION_METRICS)}"
            )
        super().__init__(**options)
        self.metrics = metrics
        self.evaluator: CaptioningEvaluator = CaptioningEvaluator(metrics, self.evaluator.panel_size)
        self.logit_scale.requires_grad_(False)  # no part of the loss: DistributedDataParallel would wait for it

    def compute_losses(self, batch: CaptioningBatch) -> dict[str, Tensor]:  # type: ignore[override]
        """The negative log-likelihood of "A picture of {caption}.", given the image and the prompt (Eq. 2).

        Returns:
            ``icti``, since it is Image-Conditioned Text Infilling with the masks in place of the caption.
        """
        image_tokens = self.model.clip.encode_image(batch["image"])
        condition, mask = caption_condition(self.model, image_tokens, self.num_masks)
        return {"icti": self._caption_loss(condition, mask, batch)}

    def _caption_loss(self, condition: Tensor, mask: Tensor, batch: CaptioningBatch) -> Tensor:
        """The loss of all captions of the batch."""
        prompt = caption_prompt(self.num_masks)
        rows = [row for row, captions in enumerate(batch["labels"]) for _ in captions]
        texts = [prompt.filled(as_continuation(text)) for captions in batch["labels"] for text in captions]
        longest = self.model.bart.config.max_position_embeddings
        told = self.model.tokenizer(texts, padding=True, truncation=True, max_length=longest, return_tensors="pt")
        labels = told["input_ids"].masked_fill(told["attention_mask"] == 0, -100).to(self.device)
        return icti_loss(self.model.decode(condition[rows], mask[rows], labels), labels, self.icti_reduction)

    def evaluate(self, batch: ImageBatch) -> list[CaptionPrediction]:
        """Caption the images; the samples are ``CaptionedImage``."""
        image_tokens = self.model.clip.encode_image(batch["image"])
        captions = caption(self.model, image_tokens, self.num_masks, self.decoding)
        return [
            CaptionPrediction(
                id=sample.image_id,
                caption=captions[index][0].text,
                references=sample.references,
                domain=sample.domain,
                off_prompt=captions[index][0].off_prompt,
                image=self.evaluator.panel_image(batch["image"][index], index),
            )
            for index, sample in enumerate(batch["samples"])
        ]

    def setup(self, stage: str) -> None:
        """Leave METEOR and SPICE out of the validations of a training."""
        super().setup(stage)
        slow = _SLOW_METRICS if stage == "fit" else ()
        self.evaluator.metrics = [metric for metric in self.metrics if metric not in slow]


def caption_condition(model: VLKDModel, image_tokens: Tensor, num_masks: int) -> tuple[Tensor, Tensor]:
    """C of Eq. (1) for "A picture of <mask>×m." with each image.

    Args:
        model: The model.
        image_tokens: (B, 1 + N, d_1) of ``FrozenCLIP.encode_image``.
        num_masks: m.

    Returns:
        C (B, S, d_2) and its mask (B, S).
    """
    prompt = caption_prompt(num_masks).text(model.tokenizer.mask_token)
    read = model.tokenizer([prompt] * len(image_tokens), return_tensors="pt").to(image_tokens.device)
    text_mask = read["attention_mask"]
    return model.condition(model.encode_text(read["input_ids"], text_mask), text_mask, image_tokens)


def as_continuation(caption: str) -> str:
    """A person's caption as it goes on from "A picture of": one line, no full stop, no capital for a first word's sake.

    "A man on a bike. " becomes "a man on a bike"; "TV on a desk" stays.
    """
    text = " ".join(caption.split()).rstrip(". ")
    return text if text[1:2].isupper() else text[:1].lower() + text[1:]
