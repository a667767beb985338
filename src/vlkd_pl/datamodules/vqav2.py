"""Images with questions: VQA v2's official files (Goyal et al., 2017), whose format OK-VQA shares; VL-T5's splits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pytorch_lightning.utilities.exceptions import MisconfigurationException

from vlkd_pl.batch import QuestionBatch
from vlkd_pl.data.image_files import ImageFinder, check_present
from vlkd_pl.data.questions import QuestionDataset, Target, collate_questions
from vlkd_pl.data.vqa_files import AskedImage, AskedQuestion, Question, QuestionFiles, joined_names, uniform_subset
from vlkd_pl.datamodules.base import TrainedImageDataModule


class VQAv2DataModule(TrainedImageDataModule):
    """VQA v2's questions on COCO's images.

    Evaluation batches are of images, each with all its questions; training batches are of questions.

    Args:
        questions: ``v2_OpenEnded_mscoco_val2014_questions.json`` or another of its format, or several, for validation
            and test.
        images: Folder of the images, whose names end in their numbers.
        annotations: ``v2_mscoco_val2014_annotations.json``, or several; None for test-dev and test, whose answers are
            secret.
        split: VL-T5's ``karpathy_test.json``: its questions alone are evaluated, by domain; see ``read_split``.
        val: Other questions for the validation of a training.
        train: The questions to train on.
        train_batch_size: Questions in a training batch of one process.
        train_share: Share of the training questions that is used; 0.01 is the paper's 1%-shot. See ``uniform_subset``.
        target: Which of people's answers is trained on, ``drawn`` by their share, anew in each epoch, or the
            ``most_common``.
        **options: See ``TrainedImageDataModule``; ``seed`` also decides the subset and the drawn answers.

    Raises:
        MisconfigurationException: ``train_share`` is not above 0 and at most 1, or see ``ImageDataModule``.
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
        **options: Any,
    ) -> None:
        super().__init__(QuestionFiles(questions, images, annotations, split), val, train, train_batch_size, **options)
        if not 0 < train_share <= 1:
            raise MisconfigurationException(f"data.train_share is {train_share}: give more than 0 and at most 1")
        self.train_share = train_share
        self.target: Target = target

    def read_samples(self) -> list[AskedImage]:
        """The images that a question is asked of, in the order of their first questions.

        Raises:
            FileNotFoundError: A file or an image is missing.
            MisconfigurationException: A file is of another format, or the two are not of the same questions.
        """
        finder = ImageFinder(self.evaluated.images)
        asked: dict[int, list[Question]] = {}
        for question in self.evaluated.read():
            asked.setdefault(question.image_id, []).append(question)
        samples = [
            AskedImage(image_id, finder.by_number(image_id), questions)
            for image_id, questions in list(asked.items())[: self.num_samples]
        ]
        check_present([sample.file for sample in samples], joined_names(self.evaluated.questions))
        return samples

    def read_training(self) -> list[AskedQuestion]:
        """The questions of the share, with their answers.

        Raises:
            FileNotFoundError: A file or an image is missing.
            MisconfigurationException: A file is of another format, or there are no answers.
        """
        if self.train_files.annotations is None:
            raise MisconfigurationException("there is nothing to train on: give data.train.annotations")
        finder = ImageFinder(self.train_files.images)
        questions = uniform_subset(self.train_files.read(), self.train_share, self.seed)
        if unanswered := [question.question_id for question in questions if not question.answers]:
            raise MisconfigurationException(
                f"{joined_names(self.train_files.annotations)} holds no answer to {len(unanswered)} of "
                f"{len(questions)} questions to train on: leave them out; first: {unanswered[:3]}"
            )
        files = {image_id: finder.by_number(image_id) for image_id in {each.image_id for each in questions}}
        check_present(list(files.values()), joined_names(self.train_files.questions))
        return [AskedQuestion(question, files[question.image_id]) for question in questions]

    def training_dataset(self) -> tuple[QuestionDataset, Callable[[Any], QuestionBatch]]:
        """The questions with their images and with the answers of the epoch."""
        return QuestionDataset(self.training, self.transform, self.target, self.seed), collate_questions
