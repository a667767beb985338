"""Captioning, zero-shot and fine-tuned: the paper's Tables 1 and 2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor

from vlkd_pl.batch import CaptioningBatch, ImageBatch
from vlkd_pl.evaluation.panel import PanelItem
from vlkd_pl.evaluation.report import Report
from vlkd_pl.evaluation.table import score_table
from vlkd_pl.losses import icti_loss
from vlkd_pl.metrics.captions import CAPTION_METRICS, caption_scores, cider_note
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

    def evaluate(self, batch: ImageBatch) -> list[dict[str, Any]]:
        """Captions the images; the samples are ``CaptionedImage``."""
        image_tokens = self.model.clip.encode_image(batch["image"])
        captions = caption(self.model, image_tokens, self.num_masks, self.decoding)
        return [
            {
                "id": sample.image_id,
                "caption": captions[index][0].text,
                "off_prompt": captions[index][0].off_prompt,
                "references": sample.references,
                "domain": sample.domain,
                "image": self.shown_image(batch["image"][index], index),
            }
            for index, sample in enumerate(batch["samples"])
        ]

    def compute(self, items: list[dict[str, Any]]) -> Report:
        """Scores over all images and in each domain; ``predictions.json`` is what COCO's and NoCaps' servers take."""
        results = [{"image_id": item["id"], "caption": item["caption"]} for item in items]
        scores = {"off_prompt": sum(item["off_prompt"] for item in items) / len(items)}
        files: dict[str, Any] = {"predictions.json": results}
        known = [item for item in items if item["references"]]
        domains = sorted({item["domain"] for item in known if item["domain"] is not None})
        lines, columns, notes = [f"{len(items)} images, of {len(known)} captions are known"], {}, []
        for name in ["all", *domains] if known else []:
            part = [item for item in known if name in ("all", item["domain"])]
            references = {item["id"]: item["references"] for item in part}
            predictions = {item["id"]: item["caption"] for item in part}
            scored = caption_scores(references, predictions, self._metrics_of_this_run(), progress=True)
            if "CIDEr" in scored.scores and (note := cider_note(references)):
                notes.append(note if name == "all" else f"{name}: {note}")
            columns[name] = scored.scores
            prefix = "" if name == "all" else f"{name}/"
            scores |= {f"{prefix}{_log_name(metric)}": value for metric, value in scored.scores.items()}
            if name == "all":
                files["scores_per_image.json"] = [
                    result | scored.per_image[result["image_id"]]
                    for result in results
                    if result["image_id"] in scored.per_image
                ]
                missing = [f"{metric} not computed: {reason}" for metric, reason in scored.not_computed.items()]
        if columns:
            lines += [score_table(list(columns), list(columns.values())), *missing]
        lines.append(f"off_prompt from the prompt: {sum(item['off_prompt'] for item in items)}")
        shown = [
            PanelItem(item["image"], item["caption"], "".join(item["references"][:1]))
            for item in items
            if item["image"] is not None
        ]
        return Report(scores, "\n".join(lines), files, shown, notes=notes)

    def _metrics_of_this_run(self) -> list[str]:
        fitting = self.trainer.state.fn == TrainerFn.FITTING
        return [metric for metric in self.metrics if not (fitting and metric in _SLOW_METRICS)]


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


def _log_name(metric: str) -> str:
    """The name that a score is logged under: ``bleu_4``, ``rouge_l``, ``cider``."""
    return metric.lower().replace("-", "_")
