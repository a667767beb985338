"""The evaluation of GLUE (Table 5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from vlkd_pl.batch import GLUE_LABELS, GLUETask
from vlkd_pl.evaluation.evaluator import Evaluator
from vlkd_pl.evaluation.report import Report
from vlkd_pl.evaluation.table import score_table
from vlkd_pl.metrics.glue import glue_scores

_SUBMISSIONS: dict[tuple[GLUETask, str], str] = {
    ("cola", ""): "CoLA.tsv",
    ("sst2", ""): "SST-2.tsv",
    ("rte", ""): "RTE.tsv",
    ("mrpc", ""): "MRPC.tsv",
    ("qqp", ""): "QQP.tsv",
    ("mnli", "matched"): "MNLI-m.tsv",
    ("mnli", "mismatched"): "MNLI-mm.tsv",
    ("qnli", ""): "QNLI.tsv",
    ("stsb", ""): "STS-B.tsv",
}
"""The file that GLUE's server takes for each task and part."""


class GLUEPrediction(NamedTuple):
    """A prediction for a sentence or a pair of sentences.

    Attributes:
        part: ``matched`` or ``mismatched`` for MNLI, and empty for the other tasks.
        number: Row of the sample in its file, from 0.
        prediction: Number of the class, or the similarity for STS-B.
        label: The correct one; None where it is secret.
    """

    part: str
    number: int
    prediction: float
    label: float | None = None

    @property
    def id(self) -> tuple[str, int]:
        """The part and the row in its file."""
        return self.part, self.number


class GLUEEvaluator(Evaluator[GLUEPrediction]):
    """Computes the scores of a GLUE task, and the files that GLUE's server takes.

    Args:
        task: Name of the task.

    Example:
        >>> evaluator = GLUEEvaluator("rte")
        >>> evaluator.update([GLUEPrediction("", 0, 1, 1), GLUEPrediction("", 1, 0, 1)])
        >>> evaluator.compute().scores["accuracy"]
        0.5
    """

    def __init__(self, task: GLUETask) -> None:
        super().__init__(panel_size=0)
        self.task: GLUETask = task

    def report(self, results: Sequence[GLUEPrediction]) -> Report:
        """Compute the scores of each part, and ``score``, their mean as in Table 5."""
        scores: dict[str, float] = {}
        files: dict[str, Any] = {}
        for part in sorted({result.part for result in results}):
            rows = [result for result in results if result.part == part]
            lines = [f"{result.number}\t{submitted(self.task, result.prediction)}\n" for result in rows]
            files[_SUBMISSIONS[self.task, part]] = "".join(["index\tprediction\n", *lines])
            labels = [result.label for result in rows if result.label is not None]
            if len(labels) < len(rows):
                continue
            part_scores = glue_scores(self.task, [result.prediction for result in rows], labels)
            scores |= {f"{name}_{part}" if part else name: value for name, value in part_scores.items()}
        if not scores:
            return Report({}, f"{len(results)} predictions; the labels are secret", files)
        scores["score"] = sum(scores.values()) / len(scores)
        return Report(scores, score_table([self.task], [scores]), files)


def submitted(task: GLUETask, prediction: float) -> str:
    """Format a prediction as GLUE's server takes it.

    Args:
        task: Name of the task.
        prediction: Number of the class, or the similarity for STS-B.

    Returns:
        The label's name, or a similarity from 0 to 5.
    """
    if task == "stsb":
        return f"{min(max(prediction, 0.0), 5.0):.3f}"
    return GLUE_LABELS[task][int(prediction)]
