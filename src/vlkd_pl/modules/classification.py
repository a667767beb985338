"""Zero-shot classification from a list of class names, as CLIP does it (Radford et al., 2021, Section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional

from vlkd_pl.batch import ImageBatch
from vlkd_pl.evaluation.classification import ClassificationEvaluator, ClassRanking
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
        self.evaluator: ClassificationEvaluator = ClassificationEvaluator([], self.evaluator.panel_size)
        self._class_embeddings: dict[str, Tensor] = {}

    def evaluate(self, batch: ImageBatch) -> list[ClassRanking]:
        """Ranks the classes for each image; the samples are ``LabelledImage``."""
        ranked = self._ranked(batch["image"])
        return [
            ClassRanking(
                id=sample.image_id,
                label=sample.label,
                bart=ranked["bart"][0][index],
                clip=ranked["clip"][0][index],
                image=self.evaluator.panel_image(batch["image"][index], index),
            )
            for index, sample in enumerate(batch["samples"])
        ]

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
        self.evaluator.class_names = self.data.class_names
