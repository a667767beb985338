"""GLUE's scores (Wang et al., 2019), through Hugging Face's ``evaluate`` and without its network."""

from __future__ import annotations

from collections.abc import Sequence

from vlkd_pl.errors import needs_extra

with needs_extra("glue"):
    import evaluate
    from datasets import Features, Value
    from scipy.stats import pearsonr, spearmanr
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

_CITATION = "Wang et al., GLUE: A multi-task benchmark and analysis platform for natural language understanding, 2019"


class GLUEMetric(evaluate.Metric):
    """What ``evaluate.load("glue", task)`` is, which would fetch its script from the hub at each use.

    Its ``compute(predictions=..., references=...)`` gives ``matthews_correlation`` for CoLA, ``pearson`` and
    ``spearmanr`` for STS-B, ``accuracy`` and ``f1`` of class 1 for MRPC and QQP, and ``accuracy`` for the others, each
    in [-1, 1]. As there, Matthews' correlation and F1 are 0 where they are not defined, and Pearson's and Spearman's
    NaN.

    Args:
        task: ``cola``, ``sst2``, ``rte``, ``mrpc``, ``qqp``, ``mnli``, ``qnli`` or ``stsb``.
    """

    def __init__(self, task: str) -> None:
        super().__init__(config_name=task, keep_in_memory=True)

    def _info(self) -> evaluate.MetricInfo:
        kind = "float64" if self.config_name == "stsb" else "int64"
        return evaluate.MetricInfo(
            description=f"GLUE's scores of {self.config_name}",
            citation=_CITATION,
            inputs_description="predictions and references: class numbers, or similarities for stsb",
            features=Features({"predictions": Value(kind), "references": Value(kind)}),
        )

    def _compute(self, predictions: Sequence[float], references: Sequence[float]) -> dict[str, float]:
        if self.config_name == "cola":
            return {"matthews_correlation": float(matthews_corrcoef(references, predictions))}
        if self.config_name == "stsb":
            return {
                "pearson": float(pearsonr(predictions, references).statistic),
                "spearmanr": float(spearmanr(predictions, references).statistic),
            }
        scores = {"accuracy": float(accuracy_score(references, predictions))}
        if self.config_name in ("mrpc", "qqp"):
            scores["f1"] = float(f1_score(references, predictions, zero_division=0))
        return scores


def glue_scores(task: str, predictions: Sequence[float], references: Sequence[float]) -> dict[str, float]:
    """The scores of a task's predictions.

    Args:
        task: See ``GLUEMetric``.
        predictions: Class numbers, or similarities for STS-B.
        references: The truth, in the same order.

    Returns:
        The scores by their names; see ``GLUEMetric``.
    """
    scores: dict[str, float] = GLUEMetric(task).compute(predictions=list(predictions), references=list(references))
    return scores
