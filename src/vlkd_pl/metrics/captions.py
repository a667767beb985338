"""The COCO caption evaluation: all scores of captions against reference captions."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

from vlkd_pl.metrics.java import NotComputedError, meteor, spice
from vlkd_pl.metrics.pairing import check_pairing, check_references
from vlkd_pl.metrics.ptb import tokenize_all

Key = TypeVar("Key", bound=Hashable)

CAPTION_METRICS = {
    "BLEU": ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4"),
    "METEOR": ("METEOR",),
    "ROUGE-L": ("ROUGE-L",),
    "CIDEr": ("CIDEr",),
    "SPICE": ("SPICE",),
}
"""The names of the scores of each metric."""

_MAX_ORDER = 4  # CIDEr's longest n-grams


@dataclass(frozen=True)
class CaptionScores(Generic[Key]):
    """Scores of captions as fractions; tables print them times 100.

    Attributes:
        scores: The scores over all images: ``BLEU-1`` to ``BLEU-4``, ``METEOR``, ``ROUGE-L``, ``CIDEr``, ``SPICE``.
        per_image: The same scores for each image.
        not_computed: For each score that is missing the reason.

    Example:
        >>> scores = caption_scores({1: ["a red fish"]}, {1: "a red fish"}, ["BLEU"])
        >>> isinstance(scores, CaptionScores), round(scores.scores["BLEU-1"], 4)
        (True, 1.0)
    """

    scores: dict[str, float]
    per_image: dict[Key, dict[str, float]]
    not_computed: dict[str, str]


def caption_scores(
    references: Mapping[Key, Sequence[str]],
    predictions: Mapping[Key, str],
    metrics: Collection[str] = tuple(CAPTION_METRICS),
    progress: bool = False,
) -> CaptionScores[Key]:
    """Score captions as the COCO caption evaluation (``pycocoevalcap``) does.

    CIDEr's document frequencies are those of the references passed. METEOR needs Java; SPICE needs Java 8 to 11 and
    the models of Stanford CoreNLP, which are never downloaded from here. An empty caption scores 0, by METEOR too.

    Args:
        references: All reference captions of each image.
        predictions: One caption for each of the same images.
        metrics: The metrics to compute, some of ``CAPTION_METRICS``.
        progress: Whether to show a progress bar on stderr where that is a terminal.

    Raises:
        ValueError: An image has no prediction or no reference, a prediction no image, or a metric is unknown.

    Example:
        >>> references = {1: ["a red fish", "a fish"], 2: ["two boats at night"]}
        >>> scored = caption_scores(references, {1: "a red fish", 2: "two boats"}, ["BLEU", "CIDEr"])
        >>> round(scored.scores["BLEU-1"], 3), round(scored.per_image[1]["CIDEr"], 3)
        (0.67, 4.757)
    """
    from rich.console import Console
    from rich.progress import Progress

    unknown = [metric for metric in metrics if metric not in CAPTION_METRICS]
    if unknown:
        raise ValueError(f"unknown caption metric {unknown[0]!r}: choose from {', '.join(CAPTION_METRICS)}")
    with Progress(console=Console(stderr=True), transient=True, disable=not (progress and sys.stderr.isatty())) as bar:
        task = bar.add_task("tokenizing", total=(1 + len(metrics)) * len(predictions))
        references, predictions = _tokenized(references, predictions)
        scores: dict[str, float] = {}
        per_image: dict[Key, dict[str, float]] = {key: {} for key in references}
        not_computed: dict[str, str] = {}
        for number, metric in enumerate(metrics, start=1):
            bar.update(task, description=metric, completed=number * len(predictions))
            try:
                overall, rows = _score(metric, references, predictions, lambda: bar.advance(task))
            except NotComputedError as error:
                not_computed |= dict.fromkeys(CAPTION_METRICS[metric], str(error))
                continue
            scores |= overall
            for key, row in zip(references, rows, strict=True):
                per_image[key] |= row
    return CaptionScores(scores, per_image, not_computed)


def cider(references: Mapping[Key, Sequence[str]], predictions: Mapping[Key, str]) -> tuple[float, dict[Key, float]]:
    """Compute CIDEr-D (Vedantam et al., 2015) as the COCO caption evaluation does, without Java.

    Args:
        references: All reference captions of each image.
        predictions: One caption for each of the same images.

    Returns:
        The mean score and that of each image; tables print 1.0 as 100.

    Raises:
        ValueError: An image has no prediction or no reference, or a prediction no image.
    """
    scored = caption_scores(references, predictions, ["CIDEr"])
    return scored.scores["CIDEr"], {key: scores["CIDEr"] for key, scores in scored.per_image.items()}


def cider_note(references: Mapping[Key, Sequence[str]]) -> str:
    """Explain why CIDEr is 0 whatever the captions are, where the n-grams of all images' references are the same.

    CIDEr weights an n-gram by the logarithm of the share of images whose references contain it. That is 0 where all
    images do: with a single image, and where all images have the same references.

    Args:
        references: All reference captions of each image.

    Returns:
        One line, or the empty string where CIDEr is meaningful.
    """
    if len(references) == 1:
        return "CIDEr is 0, since it weights n-grams by how few images have them, and there is one image alone"
    grams_of_images = (
        {
            tuple(words[start : start + order])
            for words in map(str.split, tokenize_all(texts))
            for order in range(1, _MAX_ORDER + 1)
            for start in range(len(words) - order + 1)
        }
        for texts in references.values()
    )
    first = next(grams_of_images)
    if any(grams != first for grams in grams_of_images):
        return ""
    return f"CIDEr is 0, since the references of all {len(references)} images hold the same n-grams"


def _tokenized(
    references: Mapping[Key, Sequence[str]], predictions: Mapping[Key, str]
) -> tuple[dict[Key, list[str]], dict[Key, str]]:
    """Return references and predictions as tokens with spaces between them, in the same order."""
    check_pairing(references.keys(), predictions.keys(), "image")
    check_references(references, references.values())
    tokens = iter(tokenize_all([text for texts in references.values() for text in texts]))
    tokenized = {key: list(islice(tokens, len(texts))) for key, texts in references.items()}
    if not any(text for texts in tokenized.values() for text in texts):
        raise ValueError("no reference caption holds a word")
    return tokenized, dict(zip(references, tokenize_all([predictions[key] for key in references]), strict=True))


def _score(
    metric: str, references: dict[Key, list[str]], predictions: dict[Key, str], on_image: Callable[[], None]
) -> tuple[dict[str, float], list[dict[str, float]]]:
    """Return the scores of one metric over all images, and those of each image."""
    # imports inside: torchmetrics takes seconds
    if metric == "BLEU":
        from vlkd_pl.metrics.bleu import bleu, bleu_counts

        return bleu([bleu_counts(predictions[key], texts) for key, texts in references.items()])
    if metric == "METEOR":
        overall, per_image = meteor(references, predictions, on_image)
    elif metric == "SPICE":
        overall, per_image = spice(references, predictions)
    else:
        if metric == "ROUGE-L":
            from vlkd_pl.metrics.rouge_l import rouge_l

            per_image = [rouge_l(predictions[key], texts) for key, texts in references.items()]
        else:
            from vlkd_pl.metrics.cider import cider_d

            per_image = cider_d(list(predictions.values()), list(references.values())).tolist()
        overall = sum(per_image) / len(per_image)
    return {metric: overall}, [{metric: score} for score in per_image]
