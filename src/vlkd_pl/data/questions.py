"""A dataset of questions about images, for training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from vlkd_pl.batch import QuestionBatch
from vlkd_pl.data.image_files import ImageDataset
from vlkd_pl.data.vqa_files import AskedQuestion, Question

Target = Literal["drawn", "most_common"]


def target_answer(question: Question, target: Target, epoch: int, seed: int = 0) -> str:
    """The answer to train on.

    Args:
        question: With its answers.
        target: ``drawn``: one of people's answers, so that each is drawn by its share of them; or ``most_common``, of
            several the one that was given first.
        epoch: Decides what is drawn, together with the question and
        seed: this.
    """
    if target == "most_common":
        return Counter(question.answers).most_common(1)[0][0]
    rng = np.random.default_rng((seed, epoch, question.question_id))
    return question.answers[int(rng.integers(len(question.answers)))]


class QuestionDataset(Dataset[tuple[Tensor | None, Question, str, str]]):
    """Reads the images of questions, and draws their answers.

    Args:
        samples: The questions.
        transform: From an image to a tensor.
        target: Which answer; see ``target_answer``.
        seed: Decides what is drawn.
    """

    def __init__(
        self, samples: Sequence[AskedQuestion], transform: Callable[[Image.Image], Tensor], target: Target, seed: int
    ) -> None:
        self.images = ImageDataset(samples, transform)
        self.target: Target = target
        self.seed = seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor | None, Question, str, str]:
        """The image, the question, the answer, and why the image cannot be read where it is None.

        Args:
            key: The epoch and the sample's number.
        """
        epoch, index = key
        image, (question, _), reason = self.images[index]
        return image, question, target_answer(question, self.target, epoch, self.seed), reason


def collate_questions(items: Sequence[tuple[Tensor | None, Question, str, str]]) -> QuestionBatch:
    """A batch of the questions whose images could be read, each image once."""
    images = {question.image_id: image for image, question, _, _ in items if image is not None}
    rows = {image_id: row for row, image_id in enumerate(images)}
    read = [(question, answer) for _, question, answer, _ in items if question.image_id in rows]
    return {
        "image": torch.stack(list(images.values())) if images else torch.empty(0),
        "image_index": torch.tensor([rows[question.image_id] for question, _ in read], dtype=torch.int64),
        "questions": [question.text for question, _ in read],
        "labels": [answer for _, answer in read],
        "unreadable": [reason for image, _, _, reason in items if image is None],
    }
