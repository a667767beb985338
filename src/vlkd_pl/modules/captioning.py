"""Captioning, zero-shot and fine-tuned: the paper's Tables 1 and 2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor

from vlkd_pl.batch import CaptioningBatch, ImageBatch
from vlkd_pl.evaluation.captioning import CaptioningEvaluator, CaptionPrediction
from vlkd_pl.metrics.captions import CAPTION_METRICS
from vlkd_pl.models.decoding import CAPTION_DECODING, Decoding, caption
from vlkd_pl.models.prompts import caption_prompt
from vlkd_pl.models.vlkd import ImageFeatures, VLKDModel
from vlkd_pl.modules.vlkd import PLAIN, Execution, VLKDModule
from vlkd_pl.training.optim import TABLE_10, Optimization

_SLOW_METRICS = ("METEOR", "SPICE")  # programs in Java


class CaptioningModule(VLKDModule):
    """Captions images, and scores the captions against reference captions.

    ``test`` of a distilled model is zero-shot (Section 4.3.1); ``fit`` trains on the same prompt (Section 4.4), with
    the loss ``icti`` alone.

    Args:
        clip: Name of an OpenAI CLIP, or path of a file or folder; None for that of the model folder ``init_from``.
        bart: Hugging Face name of a BART, or path of a folder; None for that of the model folder ``init_from``.
        image_features: ``pooled``, ``patches`` or ``all``; None for those of the model folder ``init_from``.
        clip_sha256: Checksum that the CLIP file must have; see ``FrozenCLIP.load``.
        init_from: Model folder or checkpoint of an earlier stage; see ``VLKDModule``.
        icti_reduction: ``sum`` or ``mean`` over the tokens of a caption; see ``icti_loss``.
        num_masks: Number m of masks in the prompt "A picture of <mask>×m.".
        decoding: Decoding of captions in validation, test and prediction.
        metrics: Names of the metrics in ``CAPTION_METRICS``. METEOR and SPICE need Java; they are left out while the
            module trains.
        panel_size: Most images in the panel of captions; at least 0.
        optimization: Settings of optimizer and schedule.
        execution: Settings that trade memory for time.

    Raises:
        FileNotFoundError: CLIP, BART or ``init_from`` cannot be found.
        MisconfigurationException: CLIP or BART is missing or does not fit ``init_from``, or a metric is unknown.

    Example:
        >>> from vlkd_pl.sample import BART_FOLDER, CLIP_FOLDER
        >>> module = CaptioningModule(CLIP_FOLDER, BART_FOLDER, metrics=["CIDEr"])
        >>> module.evaluator.metrics
        ['CIDEr']
    """

    evaluator: CaptioningEvaluator

    def __init__(
        self,
        clip: str | None = None,
        bart: str | None = None,
        image_features: ImageFeatures | None = None,
        clip_sha256: str | None = None,
        init_from: str | None = None,
        icti_reduction: Literal["mean", "sum"] = "sum",
        num_masks: int = 6,
        decoding: Decoding = CAPTION_DECODING,
        metrics: Sequence[str] = tuple(CAPTION_METRICS),
        panel_size: int = 16,
        optimization: Optimization = TABLE_10,
        execution: Execution = PLAIN,
    ) -> None:
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
        self._evaluate_task(CaptioningEvaluator(metrics, panel_size), {})
        self.metrics = metrics

    def setup(self, stage: str) -> None:
        """Leave METEOR and SPICE out of the validations of a training."""
        super().setup(stage)
        self.evaluator.metrics = metrics_of_stage(self.metrics, stage)

    def compute_losses(self, batch: CaptioningBatch) -> dict[str, Tensor]:  # type: ignore[override]
        """Compute the negative log-likelihood of "A picture of {caption}.", given the image and the prompt (Eq. 2).

        Returns:
            ``icti``, since it is Image-Conditioned Text Infilling with the masks in place of the caption.
        """
        image_tokens = self.model.clip.encode_image(batch["image"])
        condition, mask = caption_condition(self.model, image_tokens, self.num_masks)
        rows, labels = caption_labels(self.model, batch["labels"], self.num_masks)
        return self._infilling_losses({"icti": (condition[rows], mask[rows], labels)})

    def evaluate(self, batch: ImageBatch) -> list[CaptionPrediction]:
        """Caption the images; the samples are ``CaptionedImage``."""
        return caption_predictions(self, batch)


def check_metrics(metrics: Sequence[str]) -> None:
    """Check that all metrics are in ``CAPTION_METRICS``.

    Args:
        metrics: Names of metrics.

    Raises:
        MisconfigurationException: A metric is unknown.
    """
    unknown = [metric for metric in metrics if metric not in CAPTION_METRICS]
    if unknown:
        raise MisconfigurationException(
            f"model.metrics: there is no {unknown[0]!r}: choose from {', '.join(CAPTION_METRICS)}"
        )


def metrics_of_stage(metrics: Sequence[str], stage: str) -> list[str]:
    """Select the metrics of a stage: the validations of a training do without METEOR and SPICE, which are slow.

    Args:
        metrics: Names of metrics in ``CAPTION_METRICS``.
        stage: Lightning's name of the stage: ``fit``, ``validate``, ``test`` or ``predict``.
    """
    return [metric for metric in metrics if stage != "fit" or metric not in _SLOW_METRICS]


def caption_condition(model: VLKDModel, image_tokens: Tensor, num_masks: int) -> tuple[Tensor, Tensor]:
    """Compute C of Eq. (1) for "A picture of <mask>×m." with each image.

    Args:
        model: Model that captions.
        image_tokens: Image tokens (B, 1 + N, d_1) of ``FrozenCLIP.encode_image``.
        num_masks: Number m of masks, at least 1.

    Returns:
        C (B, S, d_2) and its mask (B, S).
    """
    prompt = caption_prompt(num_masks).text(model.tokenizer.mask_token)
    tokens = model.tokenizer([prompt] * len(image_tokens), return_tensors="pt").to(image_tokens.device)
    text_mask = tokens["attention_mask"]
    return model.condition(model.encode_text(tokens["input_ids"], text_mask), text_mask, image_tokens)


def caption_labels(model: VLKDModel, captions: Sequence[Sequence[str]], num_masks: int) -> tuple[list[int], Tensor]:
    """Tokenize "A picture of {caption}." for all captions of images.

    Args:
        model: Model whose BART reads the labels.
        captions: Captions of B images.
        num_masks: Number m of masks of the prompt, at least 1.

    Returns:
        The row of each caption's image, and token ids (C, M) int64 of all C captions, -100 at padding.
    """
    prompt = caption_prompt(num_masks)
    rows = [row for row, texts in enumerate(captions) for _ in texts]
    filled = [prompt.filled(as_continuation(text)) for texts in captions for text in texts]
    longest = model.bart.config.max_position_embeddings
    tokens = model.tokenizer(filled, padding=True, truncation=True, max_length=longest, return_tensors="pt")
    labels = tokens["input_ids"].masked_fill(tokens["attention_mask"] == 0, -100)
    return rows, labels.to(model.bart.device)


def caption_predictions(module: VLKDModule, batch: ImageBatch) -> list[CaptionPrediction]:
    """Caption the images of a batch for ``CaptioningEvaluator``.

    Args:
        module: Module with a model, the decoding and an evaluator.
        batch: Images whose samples are ``CaptionedImage``.
    """
    image_tokens = module.model.clip.encode_image(batch["image"])
    captions = caption(module.model, image_tokens, module.num_masks, module.decoding)
    return [
        CaptionPrediction(
            id=sample.image_id,
            caption=captions[index][0].text,
            references=sample.references,
            domain=sample.domain,
            off_prompt=captions[index][0].off_prompt,
            image=module.evaluator.panel_image(batch["image"][index], index),
        )
        for index, sample in enumerate(batch["samples"])
    ]


def as_continuation(caption: str) -> str:
    """Write a person's caption so that it continues "A picture of": one line, no full stop, no initial capital.

    Args:
        caption: The caption; a first word whose second letter is a capital stays as it is.

    Example:
        >>> as_continuation("A man on a bike. "), as_continuation("TV on a desk")
        ('a man on a bike', 'TV on a desk')
    """
    text = " ".join(caption.split()).rstrip(". ")
    return text if text[1:2].isupper() else text[:1].lower() + text[1:]
