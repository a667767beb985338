"""VQA v2, questions about COCO's images."""

from __future__ import annotations

from collections.abc import Sequence

from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader

from vlkd_pl.batch import ImageBatch, QuestionBatch
from vlkd_pl.data.image_files import EvaluationImages, collate_images
from vlkd_pl.data.questions import QuestionDataset, Target, collate_questions
from vlkd_pl.data.vqa_files import AskedImage, AskedQuestion, QuestionFiles
from vlkd_pl.datamodules.base import BaseDataModule


class VQAv2DataModule(BaseDataModule):
    """VQA v2 (Goyal et al., 2017): questions about COCO's images, for evaluation and training.

    An evaluation batch consists of images, each with all its questions; a training batch consists of questions.

    Args:
        questions: Path of ``v2_OpenEnded_mscoco_val2014_questions.json`` or another file of its format, or a list of
            paths, for validation, test and prediction.
        images: Folder of the images, whose names end in their numbers.
        annotations: Path of ``v2_mscoco_val2014_annotations.json`` or another file of its format, or a list of paths;
            None for test-dev and test, whose answers are secret.
        split: Path of VL-T5's ``karpathy_test.json``, to evaluate its questions only, by domain; None to evaluate all.
        val: Files for the validation of a training; those of the test if None.
        train: Files for training; None without training.
        train_batch_size: Number of questions in a training batch of one rank.
        train_share: Share of the training questions that is used, above 0 and at most 1; 0.01 for the paper's 1%-shot.
        target: Answer that is trained on: ``drawn`` for that of a random annotator, drawn in each epoch, or
            ``most_common``.
        clip: Name, file or folder of the CLIP, for its image size and its tokenizer.
        image_size: Width and height of a prepared image in pixels; those of the CLIP if None.
        batch_size: Number of images in an evaluation batch of one rank, each with all its questions.
        num_workers: Number of worker processes of each rank.
        num_samples: Number of images to evaluate, the first of their file; all if None.
        seed: Seed of the training order, of the share of the questions and of the drawn answers.

    Attributes:
        samples: Images to evaluate, after ``setup``.
        training: Training questions, after ``setup("fit")``.

    Raises:
        MisconfigurationException: If ``train_share`` is not above 0 and at most 1, ``num_samples`` is below 1, or the
            image size of the CLIP is unknown.

    >>> import json
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> from PIL import Image
    >>> with TemporaryDirectory() as folder:
    ...     Image.new("RGB", (300, 200)).save(f"{folder}/000000000042.png")
    ...     content = {"questions": [{"question_id": 421, "image_id": 42, "question": "Is it red?"}]}
    ...     _ = Path(folder, "questions.json").write_text(json.dumps(content))
    ...     data = VQAv2DataModule(f"{folder}/questions.json", folder, clip="ViT-B/16", num_workers=0)
    ...     data.setup("test")
    ...     batch = next(iter(data.test_dataloader()))
    >>> batch["image"].shape, batch["samples"][0].questions[0].text
    (torch.Size([1, 3, 224, 224]), 'Is it red?')
    """

    def __init__(
        self,
        questions: str | list[str],
        images: str,
        annotations: str | list[str] | None = None,
        split: str | None = None,
        val: QuestionFiles | None = None,
        train: QuestionFiles | None = None,
        train_batch_size: int = 32,
        train_share: float = 1.0,
        target: Target = "drawn",
        *,
        clip: str,
        image_size: int | None = None,
        batch_size: int = 32,
        num_workers: int = 4,
        num_samples: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(num_workers, seed)
        if not 0 < train_share <= 1:
            raise MisconfigurationException(f"data.train_share is {train_share}: give more than 0 and at most 1")
        self.test_files = QuestionFiles(questions, images, annotations, split)
        self.val_files = val or self.test_files
        self.train_files = train
        self.train_batch_size = train_batch_size
        self.train_share = train_share
        self.target: Target = target
        self.batch_size = batch_size
        self.images = EvaluationImages(clip, image_size, num_samples, num_workers)
        self.clip_tokenizer = self.images.tokenizer
        self.samples: Sequence[AskedImage] = []
        self.training: list[AskedQuestion] = []

    def setup(self, stage: str) -> None:
        """Read the questions of a stage once, and check its images.

        Raises:
            FileNotFoundError: If a file or an image is missing.
            MisconfigurationException: If a file is invalid, an image to evaluate cannot be read, or there is no answer
                to train on.
        """
        self.samples = self.images.read(self.val_files if stage in ("fit", "validate") else self.test_files, stage)
        if stage == "fit" and not self.training:
            if self.train_files is None:
                raise MisconfigurationException("there is nothing to train on: give data.train")
            self.training = self.train_files.read_training(self.train_share, self.seed)

    def train_dataloader(self) -> DataLoader[QuestionBatch]:
        """Load the training questions, shuffled in each epoch; a resumed run continues within its epoch."""
        dataset = QuestionDataset(self.training, self.images.transform, self.target, self.seed)
        order = self.training_order(len(self.training), self.train_batch_size)
        return self.loader(dataset, self.train_batch_size, collate_questions, order)

    def test_dataloader(self) -> DataLoader[ImageBatch]:
        """Load the images with their questions, in order."""
        return self.loader(self.images.dataset(), self.batch_size, collate_images)

    val_dataloader = predict_dataloader = test_dataloader
