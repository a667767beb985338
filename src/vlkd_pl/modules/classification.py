"""Zero-shot classification from a list of class names, as CLIP does it (Radford et al., 2021, Section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional

from vlkd_pl.batch import ImageBatch
from vlkd_pl.evaluation.panel import PanelItem
from vlkd_pl.evaluation.report import Report
from vlkd_pl.evaluation.table import score_table
from vlkd_pl.modules.retrieval import embed_with_both
from vlkd_pl.modules.vlkd import VLKDModule


class ClassificationModule(VLKDModule):
    """Classifies images by the nearest class name, embedded by the distilled BART and by CLIP's own text encoder.

    Args:
        templates: Sentences with ``{}`` in the place of the class name; a class is embedded as the mean of all of them.
        **options: See ``VLKDModule``.
    """

    def __init__(self, templates: Sequence[str] = ("a photo of a {}.",), **options: Any) -> None:
        super().__init__(**options)
        self.templates = templates
        self._class_embeddings: dict[str, Tensor] = {}

    def evaluate(self, batch: ImageBatch) -> list[dict[str, Any]]:
        """Ranks the classes for each image; the samples are ``LabelledImage``."""
        ranked = self._ranked(batch["image"])
        return [
            {"id": sample.image_id, "label": sample.label, "image": self.shown_image(batch["image"][index], index)}
            | {name: classes[index] for name, (classes, _) in ranked.items()}
            for index, sample in enumerate(batch["samples"])
        ]

    def compute(self, items: list[dict[str, Any]]) -> Report:
        """The share of images whose class is the nearest, or among the five nearest, by each text encoder."""
        class_names = self.data.class_names
        columns = {
            name: {
                f"top-{k} accuracy": sum(item["label"] in item[name][:k] for item in items) / len(items) for k in (1, 5)
            }
            for name in ("bart", "clip")
        }
        scores = {
            f"{name}_{row.replace('-', '_').replace(' ', '_')}": value
            for name, column in columns.items()
            for row, value in column.items()
        }
        results = [
            {"image_id": item["id"], "class": class_names[item["bart"][0]], "truth": class_names[item["label"]]}
            for item in items
        ]
        shown = [
            PanelItem(item["image"], class_names[item["bart"][0]], class_names[item["label"]])
            for item in items
            if item["image"] is not None
        ]
        head = f"{len(items)} images, {len(class_names)} classes"
        table = score_table(list(columns), list(columns.values()))
        return Report(scores, f"{head}\n{table}", {"predictions.json": results}, shown)

    def predict(self, batch: ImageBatch) -> list[dict[str, Any]]:
        """The class nearest each image, by the distilled BART, with its cosine."""
        classes, cosines = self._ranked(batch["image"])["bart"]
        return [
            {"image_id": sample.image_id, "class": self.data.class_names[ranks[0]], "score": cosine[0]}
            for sample, ranks, cosine in zip(batch["samples"], classes, cosines, strict=True)
        ]

    def _ranked(self, image: Tensor) -> dict[str, tuple[list[list[int]], list[list[float]]]]:
        """For each text encoder the five nearest classes of each image, and their cosines."""
        if not self._class_embeddings:
            self._class_embeddings = self._embed_classes()
        image_embedding = self.model.clip.encode_image(image)[:, 0]
        ranked = {}
        for name, classes in self._class_embeddings.items():
            cosine, nearest = (image_embedding @ classes.T).topk(min(5, len(classes)))
            ranked[name] = (nearest.tolist(), cosine.tolist())
        return ranked

    def _embed_classes(self) -> dict[str, Tensor]:
        """The embedding of each class by each text encoder, (classes, d_1)."""
        texts = [template.format(name) for name in self.data.class_names for template in self.templates]
        embeddings = embed_with_both(self.model, self.data.clip_tokenizer, texts)
        return {
            name: functional.normalize(embedding.unflatten(0, (-1, len(self.templates))).mean(1), dim=-1)
            for name, embedding in embeddings.items()
        }

    def on_test_epoch_start(self) -> None:
        """Forgets the classes of an earlier test."""
        self._class_embeddings = {}
