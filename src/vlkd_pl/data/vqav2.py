"""Pictures with questions: the official files of VQA v2 (Goyal et al., 2017), which OK-VQA shares."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from pytorch_lightning.utilities.exceptions import MisconfigurationException

from vlkd_pl.data.pictures import PictureDataModule, PictureFinder, check_present


class Question(NamedTuple):
    """A question, with the answers of ten people where they are known.

    Attributes:
        question_id: Its number.
        image_id: Its picture's number.
        text: The question.
        answers: The answers; empty where they are kept secret.
        answer_type: ``yes/no``, ``number`` or ``other``.
        question_type: What the annotations sort questions by: in VQA v2 their first words, ``what color is the``; in
            OK-VQA the knowledge they need, ``Cooking and Food``.
    """

    question_id: int
    image_id: int
    text: str
    answers: tuple[str, ...] = ()
    answer_type: str = ""
    question_type: str = ""


class AskedImage(NamedTuple):
    """A picture with all its questions.

    Attributes:
        image_id: Its number.
        file: Its file.
        questions: At least one.
    """

    image_id: int
    file: Path
    questions: list[Question]


def read_questions(questions: str | Path, annotations: str | Path | None = None) -> list[Question]:
    """Reads the official questions and annotations of VQA v2 or OK-VQA.

    Args:
        questions: The JSON file with ``questions``.
        annotations: The JSON file with ``annotations`` for each of the questions; None where they are kept secret.

    Returns:
        The questions in the order of their file.

    Raises:
        FileNotFoundError: A file is missing.
        MisconfigurationException: A file is of another format, has nothing in it or a question twice, or the two do not
            hold the same questions.
    """
    with _content(questions, "questions") as content:
        read = [
            Question(int(each["question_id"]), int(each["image_id"]), each["question"]) for each in content["questions"]
        ]
    asked = _ids(questions, [question.question_id for question in read])
    if annotations is None:
        return read
    with _content(annotations, "annotations") as content:
        numbers = [int(each["question_id"]) for each in content["annotations"]]
        type_names = content.get("question_types", {})  # OK-VQA's, whose annotations have codes
        known = {
            number: (
                tuple(each["answers"]),
                sys.intern(each["answer_type"]),
                sys.intern(type_names.get(each["question_type"], each["question_type"])),
            )
            for number, each in zip(numbers, content["annotations"], strict=True)
        }
    answered = _ids(annotations, numbers)
    if asked != answered:
        raise MisconfigurationException(
            f"{questions} and {annotations} are not of the same questions, {len(asked - answered)} have no answers and "
            f"{len(answered - asked)} are not asked: give two files of one split; first: {sorted(asked ^ answered)[:3]}"
        )
    return [Question(*question[:3], *known[question.question_id]) for question in read]


class VQAv2DataModule(PictureDataModule):
    """VQA v2's questions on COCO's pictures.

    Args:
        questions: ``v2_OpenEnded_mscoco_val2014_questions.json`` or another of its format.
        images: Folder of the pictures, whose names end in their numbers.
        annotations: ``v2_mscoco_val2014_annotations.json``; None for test-dev and test, whose answers are secret.
        **options: See ``PictureDataModule``; a batch is of pictures, each with all its questions.
    """

    def __init__(self, questions: str, images: str, annotations: str | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.questions = questions
        self.images = images
        self.annotations = annotations

    def read_samples(self) -> list[AskedImage]:
        """The pictures that a question is asked of, in the order of their first questions.

        Raises:
            FileNotFoundError: A file or a picture is missing.
            MisconfigurationException: A file is of another format, or the two are not of the same questions.
        """
        finder = PictureFinder(self.images)
        asked: dict[int, list[Question]] = {}
        for question in read_questions(self.questions, self.annotations):
            asked.setdefault(question.image_id, []).append(question)
        samples = [
            AskedImage(image_id, finder.by_number(image_id), questions)
            for image_id, questions in list(asked.items())[: self.num_samples]
        ]
        check_present([sample.file for sample in samples], self.questions)
        return samples


@contextmanager
def _content(path: str | Path, key: str) -> Iterator[dict[str, Any]]:
    """What the file holds, with each of ten answers as its text alone; explains what goes wrong while it is used."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file at {path}: give one with the {key} in VQA v2's format")
    try:
        yield json.loads(Path(path).read_text(encoding="utf-8"), object_hook=_answer_text)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MisconfigurationException(f"{path} is not a file of {key} in VQA v2's format: {error!r}") from error


def _answer_text(item: dict[str, Any]) -> Any:
    # two million answers, of which most are the same few words, are gigabytes as dictionaries
    return sys.intern(item["answer"]) if "answer" in item else item


def _ids(path: str | Path, numbers: Sequence[int]) -> set[int]:
    """The numbers of the questions in a file; there are some, each once."""
    if not numbers:
        raise MisconfigurationException(f"{path} holds no question: give another file")
    counts = Counter(numbers)
    repeated = [number for number, count in counts.items() if count > 1]
    if repeated:
        raise MisconfigurationException(f"{path} holds questions more than once: remove the others of {repeated[:3]}")
    return set(counts)
