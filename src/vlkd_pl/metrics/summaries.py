"""ROUGE of summaries against reference summaries."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from vlkd_pl.errors import needs_extra
from vlkd_pl.metrics.base import SampleMetric, check_lengths

SUMMARY_METRICS = {"ROUGE-1": "rouge1", "ROUGE-2": "rouge2", "ROUGE-L": "rougeL", "ROUGE-Lsum": "rougeLsum"}
"""The scores, and their names in the package ``rouge-score``."""

_SENTENCE_END = re.compile(r"([.!?…]+)[\"'”’)\]]*\s+(?=[\"'“‘(\[]*(\w))")
_ABBREVIATIONS = """
mr mrs ms dr prof rev hon gen col capt lt sgt gov sen rep st vs jr sr inc ltd co corp dept est approx fig
jan feb mar apr jun jul aug sep sept oct nov dec
"""


class ROUGE(SampleMetric):
    """F1 of ROUGE-1, ROUGE-2, ROUGE-L and ROUGE-Lsum of summaries, in percent: the mean over all summaries.

    ``update`` receives document ids, predicted summaries and reference summaries; a document counts once.
    ``vlkd_pl.metrics.ROUGEL`` scores captions.

    Raises:
        MissingPackageError: ``rouge-score`` is not installed.

    Example:
        >>> from vlkd_pl.metrics import ROUGE
        >>> metric = ROUGE()
        >>> metric.update([0], ["a dog barks at night"], ["the dogs barked at the cat"])
        >>> {name: round(float(score), 1) for name, score in metric.compute().items()}
        {'ROUGE-1': 54.5, 'ROUGE-2': 44.4, 'ROUGE-L': 54.5, 'ROUGE-Lsum': 54.5}
    """

    def __init__(self) -> None:
        super().__init__()
        self._scorer = rouge_scorer()

    def update(self, ids: Sequence[Hashable] | Tensor, predictions: Sequence[str], references: Sequence[str]) -> None:
        """Add the scores of B summaries.

        Args:
            ids: B document ids.
            predictions: B summaries.
            references: The reference summary of each document.
        """
        check_lengths(ids=ids, predictions=predictions, references=references)
        self._append(ids, _rouge(self._scorer, references, predictions))

    def compute(self) -> dict[str, Tensor]:
        """Return the mean scores as scalars in [0, 100], float64."""
        return dict(zip(SUMMARY_METRICS, torch.stack(self._unique_rows()).mean(0), strict=True))


def summary_scores(references: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Compute the F1 of ROUGE (Lin, 2004) by the package ``rouge-score`` on word stems: the mean in percent.

    Args:
        references: N reference summaries.
        predictions: One summary for each of them, in the same order.

    Returns:
        ``ROUGE-1``, ``ROUGE-2``, ``ROUGE-L`` and ``ROUGE-Lsum``, which compares sentence by sentence; sentences are
        those of ``split_sentences``.

    Raises:
        ValueError: There are none, or not as many predictions as references.
        MissingPackageError: ``rouge-score`` is not installed.

    Example:
        >>> round(summary_scores(["a dog barked", "a cat"], ["a dog barks", "a fish"])["ROUGE-1"], 1)
        75.0
    """
    scorer = rouge_scorer()
    if len(references) != len(predictions) or not references:
        raise ValueError(f"{len(references)} references and {len(predictions)} predictions: pass one for each")
    columns = zip(*_rouge(scorer, references, predictions), strict=True)
    return {name: sum(column) / len(column) for name, column in zip(SUMMARY_METRICS, columns, strict=True)}


def rouge_scorer() -> Any:
    """Return the scorer of ``rouge-score``.

    Raises:
        MissingPackageError: The package is not installed.
    """
    with needs_extra("summaries"):
        from rouge_score.rouge_scorer import RougeScorer
    return RougeScorer(list(SUMMARY_METRICS.values()), use_stemmer=True)


def _rouge(scorer: Any, references: Sequence[str], predictions: Sequence[str]) -> list[list[float]]:
    """Return the ``SUMMARY_METRICS`` of each summary, in percent."""
    rows = []
    for reference, prediction in zip(references, predictions, strict=True):
        scores = scorer.score("\n".join(split_sentences(reference)), "\n".join(split_sentences(prediction)))
        rows.append([100 * scores[name].fmeasure for name in SUMMARY_METRICS.values()])
    return rows


def split_sentences(text: str) -> list[str]:
    """Split a text into its lines where it has several, else into sentences.

    A sentence ends at ``.``, ``!``, ``?`` or an ellipsis before white space and anything but a lower-case letter; a
    period after an initial or a common abbreviation does not end one. The field mostly uses nltk's punkt model, which
    must be downloaded; the two differ on rare abbreviations.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) != 1:
        return lines
    sentences, start = [], 0
    for end in _SENTENCE_END.finditer(lines[0]):
        word = re.split(r"[\s(\[\"'“‘]", lines[0][start : end.start()])[-1]
        abbreviated = end[1] == "." and (
            word.lower() in _ABBREVIATIONS.split() or re.fullmatch(r"(\w\.)*[^\W\d_]", word)
        )
        if not end[2].islower() and not abbreviated:
            sentences.append(lines[0][start : end.end()].strip())
            start = end.end()
    return [*sentences, lines[0][start:]]
