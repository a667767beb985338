"""The evaluation of zero-shot classification."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from vlkd_pl.evaluation.evaluator import Evaluator
from vlkd_pl.evaluation.panel import panel_items
from vlkd_pl.evaluation.report import Report
from vlkd_pl.evaluation.table import score_table


class ClassRanking(NamedTuple):
    """The nearest classes of an image, by each text encoder.

    Attributes:
        id: The image's path in its folder.
        label: Number of the image's class.
        bart: Numbers of up to five classes by the distilled BART, the nearest first.
        clip: The same by CLIP's text encoder.
        image: (3, H, W) uint8 or normalized floats for the panel, or None.
    """

    id: int | str
    label: int
    bart: Sequence[int]
    clip: Sequence[int]
    image: Tensor | None = None


class ClassificationEvaluator(Evaluator[ClassRanking]):
    """Computes top-1 and top-5 accuracy of the distilled BART and of CLIP's text encoder.

    Args:
        class_names: Names of the classes, in the order of their numbers.
        panel_size: Most images that results keep for the panel; at least 0.

    Example:
        >>> evaluator = ClassificationEvaluator(["cat", "dog"])
        >>> evaluator.update([ClassRanking("a.jpg", 1, [1, 0], [0, 1])])
        >>> evaluator.compute().scores["bart_top_1_accuracy"]
        1.0
    """

    def __init__(self, class_names: Sequence[str], panel_size: int = 16) -> None:
        super().__init__(panel_size)
        self.class_names = class_names

    def report(self, results: Sequence[ClassRanking]) -> Report:
        """Compute the accuracies; ``predictions.json`` holds the nearest class by the distilled BART."""
        columns = {
            encoder: {
                f"top-{k} accuracy": sum(result.label in getattr(result, encoder)[:k] for result in results)
                / len(results)
                for k in (1, 5)
            }
            for encoder in ("bart", "clip")
        }
        scores = {
            f"{encoder}_{row.replace('-', '_').replace(' ', '_')}": value
            for encoder, column in columns.items()
            for row, value in column.items()
        }
        names = [(self.class_names[result.bart[0]], self.class_names[result.label]) for result in results]
        predictions = [
            {"image_id": result.id, "class": prediction, "truth": truth}
            for result, (prediction, truth) in zip(results, names, strict=True)
        ]
        items = panel_items((result.image, *pair) for result, pair in zip(results, names, strict=True))
        table = score_table(list(columns), list(columns.values()))
        head = f"{len(results)} images, {len(self.class_names)} classes"
        return Report(scores, f"{head}\n{table}", {"predictions.json": predictions}, items)
