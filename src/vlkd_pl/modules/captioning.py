"""Captioning: the paper's Tables 1 and 2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pytorch_lightning.utilities.exceptions import MisconfigurationException

from vlkd_pl.batch import PictureBatch
from vlkd_pl.metrics.captions import CAPTION_METRICS, caption_scores
from vlkd_pl.models.decoding import caption
from vlkd_pl.modules.panel import Shown
from vlkd_pl.modules.report import Report
from vlkd_pl.modules.vlkd import VLKDModule
from vlkd_pl.table import format_table


class CaptioningModule(VLKDModule):
    """Captions pictures, and scores the captions against what people wrote; zero-shot in ``test`` (Section 4.3.1).

    Args:
        metrics: Which scores are computed; METEOR and SPICE need Java, and are reported as not computed without.
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

    def evaluate(self, batch: PictureBatch) -> list[dict[str, Any]]:
        """Captions the pictures; the samples are ``CaptionedImage``."""
        image_tokens = self.model.clip.encode_image(batch["image"])
        captions = caption(self.model, image_tokens, self.num_masks, self.decoding)
        return [
            {
                "id": sample.image_id,
                "caption": captions[index][0].text,
                "wandered": captions[index][0].wandered,
                "references": sample.references,
                "domain": sample.domain,
                "image": self.shown_image(batch["image"][index], index),
            }
            for index, sample in enumerate(batch["samples"])
        ]

    def conclude(self, items: list[dict[str, Any]]) -> Report:
        """Scores over all pictures and in each domain; ``predictions.json`` is what COCO's and NoCaps' servers take."""
        results = [{"image_id": item["id"], "caption": item["caption"]} for item in items]
        scores = {"wandered": sum(item["wandered"] for item in items) / len(items)}
        files: dict[str, Any] = {"predictions.json": results}
        known = [item for item in items if item["references"]]
        domains = sorted({item["domain"] for item in known if item["domain"] is not None})
        lines, columns = [f"{len(items)} pictures, of {len(known)} captions are known"], {}
        for name in ["all", *domains] if known else []:
            part = [item for item in known if name in ("all", item["domain"])]
            scored = caption_scores(
                {item["id"]: item["references"] for item in part},
                {item["id"]: item["caption"] for item in part},
                self.metrics,
                progress=True,
            )
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
            lines += [format_table(list(columns), list(columns.values())), *missing]
        lines.append(f"wandered from the prompt: {sum(item['wandered'] for item in items)}")
        shown = [
            Shown(item["image"], item["caption"], "".join(item["references"][:1]))
            for item in items
            if item["image"] is not None
        ]
        return Report(scores, "\n".join(lines), files, shown)


def _log_name(metric: str) -> str:
    """The name that a score is logged under: ``bleu_4``, ``rouge_l``, ``cider``."""
    return metric.lower().replace("-", "_")
