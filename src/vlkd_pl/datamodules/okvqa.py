"""OK-VQA, questions that need knowledge from outside the image."""

from __future__ import annotations

from collections.abc import Sequence

from torch.utils.data import DataLoader

from vlkd_pl.batch import ImageBatch
from vlkd_pl.data.image_files import EvaluationImages, collate_images
from vlkd_pl.data.vqa_files import AskedImage, QuestionFiles
from vlkd_pl.datamodules.base import BaseDataModule


class OKVQADataModule(BaseDataModule):
    """OK-VQA (Marino et al., 2019): knowledge questions about COCO's images.

    The ground truth is the field ``answer`` of the annotations, which the authors reduced to word stems. The paper does
    not train on OK-VQA; ``VQAv2DataModule`` reads its training set, since both share a format.

    Args:
        questions: Path of ``OpenEnded_mscoco_val2014_questions.json`` or another file of its format, or a list of
            paths.
        images: Folder of the images, whose names end in their numbers.
        annotations: Path of ``mscoco_val2014_annotations.json`` or another file of its format, or a list of paths; None
            if the answers are secret.
        clip: Name, file or folder of the CLIP, for its image size and its tokenizer.
        image_size: Width and height of a prepared image in pixels; those of the CLIP if None.
        batch_size: Number of images in a batch of one rank, each with all its questions.
        num_workers: Number of worker processes of each rank.
        num_samples: Number of images to evaluate, the first of their file; all if None.

    >>> import json
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> from PIL import Image
    >>> with TemporaryDirectory() as folder:
    ...     Image.new("RGB", (300, 200)).save(f"{folder}/000000000042.png")
    ...     content = {"questions": [{"question_id": 421, "image_id": 42, "question": "Who invented it?"}]}
    ...     _ = Path(folder, "questions.json").write_text(json.dumps(content))
    ...     data = OKVQADataModule(f"{folder}/questions.json", folder, clip="ViT-B/16", num_workers=0)
    ...     data.setup("test")
    >>> data.samples[0].questions[0].text
    'Who invented it?'
    """

    def __init__(
        self,
        questions: str | list[str],
        images: str,
        annotations: str | list[str] | None = None,
        *,
        clip: str,
        image_size: int | None = None,
        batch_size: int = 32,
        num_workers: int = 4,
        num_samples: int | None = None,
    ) -> None:
        super().__init__(num_workers)
        self.batch_size = batch_size
        self.files = QuestionFiles(questions, images, annotations)
        self.images = EvaluationImages(clip, image_size, num_samples, num_workers)
        self.clip_tokenizer = self.images.tokenizer
        self.samples: Sequence[AskedImage] = []

    def setup(self, stage: str) -> None:
        """Read the questions, and check the images unless they are for prediction.

        Raises:
            FileNotFoundError: If a file or an image is missing.
            MisconfigurationException: If a file is invalid, the files do not hold the same questions, or an image
                cannot be read.
        """
        self.samples = self.images.read(self.files, stage)

    def test_dataloader(self) -> DataLoader[ImageBatch]:
        """Load the images with their questions, in order."""
        return self.loader(self.images.dataset(), self.batch_size, collate_images)

    val_dataloader = predict_dataloader = test_dataloader
