"""Zero-shot classification from a list of class names, as CLIP does it (Radford et al., 2021, Section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from torch.nn import functional

from vlkd_pl.batch import ImageBatch
from vlkd_pl.evaluation.classification import ClassificationEvaluator, ClassRanking
from vlkd_pl.models.vlkd import ImageFeatures
from vlkd_pl.modules.retrieval import embed_with_both
from vlkd_pl.training.checkpoint import load_model, take_weights
from vlkd_pl.training.contracts import HasClassNames, data_of
from vlkd_pl.training.evaluation_report import EvaluationReport

_NUM_CLASSES = 5


class ClassificationModule(pl.LightningModule):
    """Classifies images by the nearest class name, embedded by both text encoders; it does not train.

    ``predict`` writes the class nearest each image by the distilled BART, with its cosine as ``score``.

    Args:
        clip: Name of an OpenAI CLIP, or path of a file or folder; None for that of the model folder ``init_from``.
        bart: Hugging Face name of a BART, or path of a folder; None for that of the model folder ``init_from``.
        image_features: ``pooled``, ``patches`` or ``all``; None for those of the model folder ``init_from``.
        clip_sha256: Checksum that the CLIP file must have; see ``FrozenCLIP.load``.
        init_from: Model folder or checkpoint of an earlier stage; see ``VLKDModule``.
        templates: Sentences with ``{}`` in the place of the class name; a class is embedded as the mean of all of them.
        panel_size: Most images in the panel of classes; at least 0.

    Example:
        >>> from vlkd_pl.sample import BART_FOLDER, CLIP_FOLDER
        >>> module = ClassificationModule(CLIP_FOLDER, BART_FOLDER, templates=["a {}"])
        >>> module.templates
        ['a {}']
    """

    def __init__(
        self,
        clip: str | None = None,
        bart: str | None = None,
        image_features: ImageFeatures | None = None,
        clip_sha256: str | None = None,
        init_from: str | None = None,
        templates: Sequence[str] = ("a photo of a {}.",),
        panel_size: int = 16,
    ) -> None:
        super().__init__()
        self.model = load_model(clip, bart, image_features, clip_sha256, init_from)
        self.templates = templates
        self.evaluator = ClassificationEvaluator([], panel_size)
        self._class_embeddings: dict[str, Tensor] = {}

    def configure_callbacks(self) -> list[Callback]:
        """Return the callback that reports."""
        return [EvaluationReport(self.evaluator)]

    def on_validation_start(self) -> None:
        """Embed the classes of the data."""
        self._embed_classes()

    on_test_start = on_predict_start = on_validation_start

    def evaluate(self, batch: ImageBatch) -> list[ClassRanking]:
        """Rank the classes for each image; the samples are ``LabelledImage``."""
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

    def validation_step(self, batch: ImageBatch, batch_index: int) -> dict[str, Any]:
        """Compute the ``results`` of a batch, which ``EvaluationReport`` collects."""
        return {"results": self.evaluate(batch)}

    test_step = validation_step

    def predict_step(self, batch: ImageBatch, batch_index: int) -> list[dict[str, Any]]:
        """Classify each readable image of a batch by the distilled BART."""
        if not batch["samples"]:
            return []
        classes, cosines = self._ranked(batch["image"])["bart"]
        return [
            {"image_id": sample.image_id, "class": self.evaluator.class_names[ranks[0]], "score": cosine[0]}
            for sample, ranks, cosine in zip(batch["samples"], classes, cosines, strict=True)
        ]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the model of a checkpoint of a ``VLKDModule``."""
        take_weights(checkpoint, self)

    def _ranked(self, image: Tensor) -> dict[str, tuple[list[list[int]], list[list[float]]]]:
        """Find the five nearest classes of each image by each text encoder, and their cosines."""
        image_embedding = self.model.clip.encode_image(image)[:, 0]
        ranked = {}
        for name, classes in self._class_embeddings.items():
            cosine, nearest = (image_embedding @ classes.T).topk(min(_NUM_CLASSES, len(classes)))
            ranked[name] = (nearest.tolist(), cosine.tolist())
        return ranked

    def _embed_classes(self) -> None:
        """Embed each class by each text encoder, (classes, d_1)."""
        data = data_of(self.trainer, HasClassNames, "ClassificationModule", "class names (ClassFolderDataModule)")
        self.evaluator.class_names = data.class_names
        texts = [template.format(name) for name in data.class_names for template in self.templates]
        embeddings = embed_with_both(self.model, data.clip_tokenizer, texts)
        self._class_embeddings = {
            name: functional.normalize(embedding.unflatten(0, (-1, len(self.templates))).mean(1), dim=-1)
            for name, embedding in embeddings.items()
        }
