"""Training batches of questions about images."""

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
    """Choose the answer of a question that is trained on.

    Args:
        question: Question with its answers.
        target: ``drawn`` for the answer of a random annotator, so that an answer is drawn by its share of them;
            ``most_common`` for the most common answer, of several the first.
        epoch: Number of the epoch; with the question and the seed it decides which answer is drawn.
        seed: Seed of the draw.

    >>> target_answer(Question(1, 42, "Is it red?", ("no", "yes", "yes")), "most_common", epoch=0)
    'yes'
    """
    if target == "most_common":
        return Counter(question.answers).most_common(1)[0][0]
    rng = np.random.default_rng((seed, epoch, question.question_id))
    return question.answers[int(rng.integers(len(question.answers)))]


class QuestionDataset(Dataset[tuple[Tensor | None, Question, str, str]]):
    """A dataset that reads the images of questions and draws their answers; its keys are those of ``EpochOrder``.

    Args:
        samples: Questions, each with its image.
        transform: Converts an image to a tensor.
        target: Which answer is trained on; see ``target_answer``.
        seed: Seed of the drawn answers.
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
        """Return the image, the question, the answer, and an empty text; for an unreadable image None and the reason.

        Args:
            key: Number of the epoch and index of the sample.
        """
        epoch, index = key
        image, (question, _), reason = self.images[index]
        return image, question, target_answer(question, self.target, epoch, self.seed), reason


def collate_questions(items: Sequence[tuple[Tensor | None, Question, str, str]]) -> QuestionBatch:
    """Collate the questions whose images are readable; an image of several questions is in the batch once."""
    images = {question.image_id: image for image, question, _, _ in items if image is not None}
    rows = {image_id: row for row, image_id in enumerate(images)}
    pairs = [(question, answer) for _, question, answer, _ in items if question.image_id in rows]
    return {
        "image": torch.stack(list(images.values())) if images else torch.empty(0),
        "image_index": torch.tensor([rows[question.image_id] for question, _ in pairs], dtype=torch.int64),
        "questions": [question.text for question, _ in pairs],
        "labels": [answer for _, answer in pairs],
        "unreadable": [reason for image, _, _, reason in items if image is None],
    }
