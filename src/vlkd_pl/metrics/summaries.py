"""ROUGE of summaries against those that people wrote."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from vlkd_pl.errors import needs_extra

SUMMARY_METRICS = {"ROUGE-1": "rouge1", "ROUGE-2": "rouge2", "ROUGE-L": "rougeL", "ROUGE-Lsum": "rougeLsum"}
"""The scores, with their names in the package ``rouge-score``."""

_SENTENCE_END = re.compile(r"([.!?…]+)[\"'”’)\]]*\s+(?=[\"'“‘(\[]*(\w))")
_ABBREVIATIONS = """
mr mrs ms dr prof rev hon gen col capt lt sgt gov sen rep st vs jr sr inc ltd co corp dept est approx fig
jan feb mar apr jun jul aug sep sept oct nov dec
"""


def summary_scores(references: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """F1 of ROUGE (Lin, 2004) by the package ``rouge-score``, on word stems, in percent: the mean over all pairs.

    Args:
        references: What people wrote.
        predictions: A summary for each of them, in the same order.

    Returns:
        ``ROUGE-1``, ``ROUGE-2``, ``ROUGE-L`` and ``ROUGE-Lsum``, which compares sentence by sentence; sentences are
        those of ``split_sentences``.

    Raises:
        ValueError: There are none, or not as many predictions as references.
        MissingPackageError: ``rouge-score`` is not installed.
    """
    scorer = rouge_scorer()
    if len(references) != len(predictions) or not references:
        raise ValueError(f"{len(references)} references and {len(predictions)} predictions: give one for each")
    totals = dict.fromkeys(SUMMARY_METRICS, 0.0)
    for reference, prediction in zip(references, predictions, strict=True):
        scores = scorer.score("\n".join(split_sentences(reference)), "\n".join(split_sentences(prediction)))
        for name, theirs in SUMMARY_METRICS.items():
            totals[name] += scores[theirs].fmeasure
    return {name: 100 * total / len(references) for name, total in totals.items()}


def rouge_scorer() -> Any:
    """The scorer of ``rouge-score``.

    Raises:
        MissingPackageError: It is not installed.
    """
    with needs_extra("summaries"):
        from rouge_score.rouge_scorer import RougeScorer
    return RougeScorer(list(SUMMARY_METRICS.values()), use_stemmer=True)


def split_sentences(text: str) -> list[str]:
    """Lines where a text has several, else its sentences.

    A sentence ends at ``.``, ``!``, ``?`` or an ellipsis before white space and anything but a small letter; a period
    after an initial or a common abbreviation ends none. The field mostly takes nltk's punkt model, which must be
    downloaded; the two differ on rare abbreviations.
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
