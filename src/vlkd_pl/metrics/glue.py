"""GLUE's scores (Wang et al., 2019)."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlkd_pl.batch import GLUETask
from vlkd_pl.metrics.base import SampleMetric, check_lengths


class GLUEScore(SampleMetric):
    """The scores of a task of GLUE; see ``glue_scores``.

    ``update`` receives sample ids, predictions and labels; a sample counts once.

    Args:
        task: ``cola``, ``sst2``, ``rte``, ``mrpc``, ``qqp``, ``mnli``, ``qnli`` or ``stsb``.

    Example:
        >>> from vlkd_pl.metrics import GLUEScore
        >>> metric = GLUEScore("mrpc")
        >>> metric.update([0, 1, 2, 3], [1, 1, 0, 0], [1, 0, 0, 0])
        >>> {name: round(float(score), 3) for name, score in metric.compute().items()}
        {'accuracy': 0.75, 'f1': 0.667}
    """

    def __init__(self, task: GLUETask) -> None:
        super().__init__()
        self.task: GLUETask = task

    def update(
        self,
        ids: Sequence[Hashable] | Tensor,
        predictions: Sequence[float] | Tensor,
        labels: Sequence[float] | Tensor,
    ) -> None:
        """Add B predictions.

        Args:
            ids: B sample ids.
            predictions: B class numbers, or similarities for STS-B.
            labels: The correct ones.
        """
        check_lengths(ids=ids, predictions=predictions, labels=labels)
        columns = [torch.as_tensor(column, dtype=torch.float64) for column in (predictions, labels)]
        self._append(ids, list(torch.stack(columns, 1)))

    def compute(self) -> dict[str, Tensor]:
        """Return the scores as scalars in [-1, 1], float64."""
        predictions, labels = torch.stack(self._unique_rows()).T.tolist()
        scores = glue_scores(self.task, predictions, labels)
        return {name: torch.tensor(score, dtype=torch.float64) for name, score in scores.items()}


def glue_scores(task: GLUETask, predictions: Sequence[float], references: Sequence[float]) -> dict[str, float]:
    """Compute the scores of a task's predictions, as GLUE's own script and Hugging Face's ``evaluate`` do.

    Args:
        task: ``cola``, ``sst2``, ``rte``, ``mrpc``, ``qqp``, ``mnli``, ``qnli`` or ``stsb``.
        predictions: N class numbers, or similarities for STS-B.
        references: The N labels, in the same order.

    Returns:
        ``matthews_correlation`` for CoLA, ``pearson`` and ``spearmanr`` for STS-B, ``accuracy`` and ``f1`` of class 1
        for MRPC and QQP, and ``accuracy`` for the others, each in [-1, 1]. Where they are not defined, Matthews'
        correlation and F1 are 0, and Pearson's and Spearman's correlation NaN.

    Raises:
        ValueError: There are no predictions, or not as many as references.

    Example:
        >>> glue_scores("sst2", [1, 0, 0, 1], [1, 0, 1, 1])
        {'accuracy': 0.75}
    """
    check_lengths(predictions=predictions, references=references)
    if not len(predictions):
        raise ValueError(f"there are no predictions of {task} to score")
    guesses, labels = np.asarray(predictions), np.asarray(references)
    if task == "stsb":
        return {
            "pearson": _correlation(guesses, labels),
            "spearmanr": _correlation(_ranks(guesses), _ranks(labels)),
        }
    if task == "cola":
        return {"matthews_correlation": _correlation(guesses, labels, undefined=0.0)}
    scores = {"accuracy": float((guesses == labels).mean())}
    if task in ("mrpc", "qqp"):
        num_positive = (guesses == 1).sum() + (labels == 1).sum()
        scores["f1"] = float(2 * ((guesses == 1) & (labels == 1)).sum() / max(num_positive, 1))
    return scores


def _correlation(first: NDArray[Any], second: NDArray[Any], undefined: float = float("nan")) -> float:
    """Return Pearson's correlation; of two classes it is Matthews'."""
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        if np.isnan(undefined):
            warnings.warn("the correlation is NaN: the predictions or the labels are constant", stacklevel=3)
        return undefined
    return float(np.corrcoef(first, second)[0, 1])


def _ranks(values: NDArray[Any]) -> NDArray[np.float64]:
    """Return the rank of each value; equal values share their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: NDArray[np.float64] = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return ranks
