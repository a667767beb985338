"""The evaluation of summaries against reference summaries (Table 6)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from vlkd_pl.evaluation.evaluator import Evaluator
from vlkd_pl.evaluation.report import Report
from vlkd_pl.evaluation.table import score_table
from vlkd_pl.metrics.summaries import SUMMARY_METRICS, rouge_scorer, summary_scores


class SummaryPrediction(NamedTuple):
    """A generated summary with its reference.

    Attributes:
        id: Row of the document in its file, from 0.
        summary: The generated summary.
        reference: The summary that a person wrote.
    """

    id: int
    summary: str
    reference: str


class SummarizationEvaluator(Evaluator[SummaryPrediction]):
    """Computes F1 of ROUGE in percent.

    Raises:
        MissingPackageError: The package of the extra ``summaries`` is not installed.

    Example:
        >>> evaluator = SummarizationEvaluator()
        >>> evaluator.update([SummaryPrediction(0, "a dog barks", "a dog barks")])
        >>> evaluator.compute().scores["rouge1"]
        100.0
    """

    def __init__(self) -> None:
        rouge_scorer()  # a missing package is reported before training
        super().__init__(panel_size=0)

    def report(self, results: Sequence[SummaryPrediction]) -> Report:
        """Compute the scores; ``vlkd-pl score summaries`` gives the same for the two text files."""
        summaries, references = [result.summary for result in results], [result.reference for result in results]
        scores = summary_scores(references, summaries)
        files = {
            "predictions.json": [result._asdict() for result in results],
            "predictions.txt": "".join(f"{text}\n" for text in summaries),
            "references.txt": "".join(f"{text}\n" for text in references),
        }
        table = f"{len(results)} summaries\n{score_table(['score'], [scores], 'percent', digits=2)}"
        logged = {SUMMARY_METRICS[name].lower(): value for name, value in scores.items()}
        return Report(logged, table, files, units="percent")
