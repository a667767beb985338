"""The evaluation of captions against reference captions (Tables 1 and 2)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from vlkd_pl.evaluation.evaluator import Evaluator, count_off_prompt
from vlkd_pl.evaluation.panel import panel_items
from vlkd_pl.evaluation.report import Report
from vlkd_pl.evaluation.table import score_table
from vlkd_pl.metrics.captions import CAPTION_METRICS, CaptionScores, caption_scores, cider_note


class CaptionPrediction(NamedTuple):
    """A generated caption with the reference captions of its image.

    Attributes:
        id: The image's number, or its path in a folder.
        caption: The generated caption.
        references: Captions that people wrote; empty where they are secret.
        domain: NoCaps' ``in-domain``, ``near-domain`` or ``out-domain``; None for other datasets.
        off_prompt: Whether the model left the prompt, see ``Reconstruction``; None where that is unknown.
        image: (3, H, W) uint8 or normalized floats for the panel, or None.
    """

    id: int | str
    caption: str
    references: Sequence[str] = ()
    domain: str | None = None
    off_prompt: bool | None = None
    image: Tensor | None = None


class CaptioningEvaluator(Evaluator[CaptionPrediction]):
    """Scores captions over all images and in each domain.

    Args:
        metrics: Names of metrics in ``CAPTION_METRICS``; METEOR and SPICE need Java.
        panel_size: Most images that results keep for the panel; at least 0.

    Example:
        >>> evaluator = CaptioningEvaluator(metrics=["BLEU"])
        >>> evaluator.update([CaptionPrediction(1, "a red fish swims", ["a red fish swims"])])
        >>> round(evaluator.compute().scores["bleu_4"], 3)
        1.0
    """

    def __init__(self, metrics: Collection[str] = tuple(CAPTION_METRICS), panel_size: int = 16) -> None:
        super().__init__(panel_size)
        self.metrics = metrics

    def report(self, results: Sequence[CaptionPrediction]) -> Report:
        """Compute the scores; ``predictions.json`` is what COCO's and NoCaps' servers take."""
        predictions = [{"image_id": result.id, "caption": result.caption} for result in results]
        num_off_prompt = count_off_prompt(results)
        scores = {} if num_off_prompt is None else {"off_prompt": num_off_prompt / len(results)}
        files: dict[str, Any] = {"predictions.json": predictions}
        referenced = [result for result in results if result.references]
        lines, notes = [f"{len(results)} images, {len(referenced)} with reference captions"], []
        not_computed: dict[str, str] = {}
        parts = _by_domain(referenced) if referenced else {}
        columns = {domain: _scores(part, self.metrics) for domain, part in parts.items()}
        for domain, column in columns.items():
            prefix = "" if domain == "all" else f"{domain}/"
            scores |= {f"{prefix}{log_name(metric)}": value for metric, value in column.scores.items()}
            if "CIDEr" in column.scores and (note := cider_note(_references(parts[domain]))):
                notes.append(note if domain == "all" else f"{domain}: {note}")
        if columns:
            per_image = columns["all"].per_image
            not_computed = {name: reason for column in columns.values() for name, reason in column.not_computed.items()}
            files["scores_per_image.json"] = [
                prediction | per_image[result.id]
                for result, prediction in zip(results, predictions, strict=True)
                if result.id in per_image
            ]
            lines.append(score_table(list(columns), [column.scores for column in columns.values()]))
            lines += [f"{metric} not computed: {reason}" for metric, reason in not_computed.items()]
        if num_off_prompt is not None:
            lines.append(f"off-prompt: {num_off_prompt}")
        items = panel_items((result.image, result.caption, "".join(result.references[:1])) for result in results)
        return Report(scores, "\n".join(lines), files, items, notes=notes, not_computed=not_computed)


def scores_by_domain(
    predictions: Sequence[CaptionPrediction], metrics: Collection[str] = tuple(CAPTION_METRICS)
) -> dict[str, CaptionScores[int | str]]:
    """Compute the scores of all captions, and those of each domain.

    Args:
        predictions: Captions of images with references.
        metrics: Names of metrics in ``CAPTION_METRICS``.

    Returns:
        The scores under ``all`` and under the name of each domain.

    Raises:
        ValueError: There are no captions, or an image has no reference.
    """
    return {domain: _scores(part, metrics) for domain, part in _by_domain(predictions).items()}


def log_name(metric: str) -> str:
    """Name that a score is logged under, such as ``bleu_4``, ``rouge_l`` or ``cider``."""
    return metric.lower().replace("-", "_")


def _by_domain(predictions: Sequence[CaptionPrediction]) -> dict[str, Sequence[CaptionPrediction]]:
    """Split predictions: ``all`` of them, and those of each domain."""
    domains = sorted({prediction.domain for prediction in predictions if prediction.domain is not None})
    parts = {domain: [prediction for prediction in predictions if prediction.domain == domain] for domain in domains}
    return {"all": predictions, **parts}


def _references(predictions: Sequence[CaptionPrediction]) -> dict[int | str, Sequence[str]]:
    return {prediction.id: prediction.references for prediction in predictions}


def _scores(predictions: Sequence[CaptionPrediction], metrics: Collection[str]) -> CaptionScores[int | str]:
    captions = {prediction.id: prediction.caption for prediction in predictions}
    return caption_scores(_references(predictions), captions, metrics, progress=True)
