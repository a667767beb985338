"""Pictures with questions: VQA v2's official files (Goyal et al., 2017), whose format OK-VQA shares; VL-T5's splits."""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.utils.data import Dataset

from vlkd_pl.batch import QuestionBatch
from vlkd_pl.data.pictures import PictureDataset, PictureFinder, TrainedPictureDataModule, check_present
from vlkd_pl.reading import Entries, Pairs, is_encodable, json_object, read_json

Paths = str | Path | Sequence[str | Path]
"""A file, or several that together are one set."""

Target = Literal["drawn", "most_common"]

_DOMAINS = {True: "in-domain", False: "out-of-domain"}


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
        domain: ``in-domain`` or ``out-of-domain`` in a split of VL-T5's; see ``read_split``.
    """

    question_id: int
    image_id: int
    text: str
    answers: tuple[str, ...] = ()
    answer_type: str = ""
    question_type: str = ""
    domain: str = ""


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


class AskedQuestion(NamedTuple):
    """A question to train on.

    Attributes:
        question: With its answers.
        file: Its picture's file.
    """

    question: Question
    file: Path


@dataclass(frozen=True)
class QuestionFiles:
    """The files of one set of questions.

    Args:
        questions: ``v2_OpenEnded_mscoco_val2014_questions.json`` or another of its format, or several.
        images: Folder of the pictures, whose names end in their numbers.
        annotations: ``v2_mscoco_val2014_annotations.json``, or several; None where the answers are secret.
        split: Takes the questions of this file alone, see ``read_split``.
    """

    questions: str | list[str]
    images: str
    annotations: str | list[str] | None = None
    split: str | None = None

    def read(self) -> list[Question]:
        """The questions; see ``read_questions``."""
        return read_questions(self.questions, self.annotations, self.split)


def read_questions(
    questions: Paths, annotations: Paths | None = None, split: str | Path | None = None
) -> list[Question]:
    """Reads the official questions and annotations of VQA v2 or OK-VQA.

    Args:
        questions: The JSON file with ``questions``, or several.
        annotations: The JSON file with ``annotations`` for each of the questions, or several; None where they are kept
            secret.
        split: A file that ``read_split`` reads; its questions alone are taken, with their domains.

    Returns:
        The questions in the order of their files.

    Raises:
        FileNotFoundError: A file is missing.
        MisconfigurationException: A file is of another format, has nothing in it or a question twice, or they do not
            hold the same questions.
    """
    read = [question for path in _each(questions) for question in _read_asked(path)]
    asked = _ids(questions, [question.question_id for question in read])
    if annotations is not None:
        known = [each for path in _each(annotations) for each in _read_answered(path)]
        answered = _ids(annotations, [number for number, _ in known])
        if asked != answered:
            raise MisconfigurationException(
                f"{_names(questions)} and {_names(annotations)} are not of the same questions, "
                f"{len(asked - answered)} have no answers and {len(answered - asked)} are not asked: give the files "
                f"of one split; first: {sorted(asked ^ answered)[:3]}"
            )
        answers = dict(known)
        read = [Question(*each[:3], *answers[each.question_id]) for each in read]
    if split is None:
        return read
    domains = read_split(split)
    if missing := domains.keys() - asked:
        raise MisconfigurationException(
            f"{len(missing)} of {len(domains)} questions of {split} are not in {_names(questions)}: give all files "
            f"that the split was made of, for VL-T5's those of train2014 and val2014; first: {sorted(missing)[:3]}"
        )
    return [each._replace(domain=domains[each.question_id]) for each in read if each.question_id in domains]


def read_split(path: str | Path) -> dict[int, str]:
    """Reads a split in the format of VL-T5 (Cho et al., 2021): ``karpathy_train.json``, ``_val`` or ``_test``.

    The test split has 26,280 questions on the pictures of Karpathy's test split. In 24,722 of them the best answers are
    among the 3,129 that VL-T5 counts as common; they are *in-domain*, and ``is_topk_optimal`` is true. The other 1,558
    are *out-of-domain*.

    Args:
        path: A JSON list with ``question_id`` and, for all or none, ``is_topk_optimal``.

    Returns:
        For each question ``in-domain``, ``out-of-domain`` or, where the file does not tell, the empty string.

    Raises:
        FileNotFoundError: There is no such file.
        MisconfigurationException: It is of another format, has nothing in it or a question twice, or tells the domain
            of some questions only.
    """
    content, complaint = _content(path, "questions", "VL-T5's format")
    entries = Entries(content, complaint)
    numbers = entries.numbers("question_id")
    is_common = entries.values("is_topk_optimal", {bool}, "true or false", None)
    domains = ["" if common is None else _DOMAINS[common] for common in is_common]
    _ids(path, numbers)
    if 0 < domains.count("") < len(domains):
        raise MisconfigurationException(
            f"{path} tells is_topk_optimal of {len(domains) - domains.count('')} questions and not of "
            f"{domains.count('')}: give it for all or for none"
        )
    return dict(zip(numbers, domains, strict=True))


def uniform_subset(questions: Sequence[Question], share: float, seed: int = 0) -> list[Question]:
    """A uniform subset of questions, the same on every machine and in whichever order they come.

    It holds those with the smallest hashes of seed and number, so that a larger share holds the smaller one's too.

    Args:
        questions: N questions.
        share: Of them, above 0 and at most 1.
        seed: Decides which.

    Returns:
        The nearest whole number to share × N of them, one at least, in their order.
    """
    size = max(1, round(share * len(questions)))
    kept = set(sorted((question.question_id for question in questions), key=lambda number: _hash(seed, number))[:size])
    return [question for question in questions if question.question_id in kept]


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
    """Reads the pictures of questions, and draws their answers.

    Args:
        samples: The questions.
        transform: From a picture to a tensor.
        target: Which answer; see ``target_answer``.
        seed: Decides what is drawn.
    """

    def __init__(
        self, samples: Sequence[AskedQuestion], transform: Callable[[Image.Image], Tensor], target: Target, seed: int
    ) -> None:
        self.pictures = PictureDataset(samples, transform)
        self.target: Target = target
        self.seed = seed

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor | None, Question, str, str]:
        """The picture, the question, the answer, and why the picture cannot be read where it is None.

        Args:
            key: The epoch and the sample's number.
        """
        epoch, index = key
        image, (question, _), reason = self.pictures[index]
        return image, question, target_answer(question, self.target, epoch, self.seed), reason


def collate_questions(items: Sequence[tuple[Tensor | None, Question, str, str]]) -> QuestionBatch:
    """A batch of the questions whose pictures could be read, each picture once."""
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


class VQAv2DataModule(TrainedPictureDataModule):
    """VQA v2's questions on COCO's pictures.

    Evaluation batches are of pictures, each with all its questions; training batches are of questions.

    Args:
        questions: ``v2_OpenEnded_mscoco_val2014_questions.json`` or another of its format, or several, for validation
            and test.
        images: Folder of the pictures, whose names end in their numbers.
        annotations: ``v2_mscoco_val2014_annotations.json``, or several; None for test-dev and test, whose answers are
            secret.
        split: VL-T5's ``karpathy_test.json``: its questions alone are evaluated, by domain; see ``read_split``.
        val: Other questions for the validation of a training.
        train: The questions to train on.
        train_batch_size: Questions in a training batch of one process.
        train_share: Share of the training questions that is used; 0.01 is the paper's 1%-shot. See ``uniform_subset``.
        target: Which of people's answers is trained on, ``drawn`` by their share, anew in each epoch, or the
            ``most_common``.
        **options: See ``TrainedPictureDataModule``; ``seed`` also decides the subset and the drawn answers.

    Raises:
        MisconfigurationException: ``train_share`` is not above 0 and at most 1, or see ``PictureDataModule``.
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
        """The pictures that a question is asked of, in the order of their first questions.

        Raises:
            FileNotFoundError: A file or a picture is missing.
            MisconfigurationException: A file is of another format, or the two are not of the same questions.
        """
        finder = PictureFinder(self.evaluated.images)
        asked: dict[int, list[Question]] = {}
        for question in self.evaluated.read():
            asked.setdefault(question.image_id, []).append(question)
        samples = [
            AskedImage(image_id, finder.by_number(image_id), questions)
            for image_id, questions in list(asked.items())[: self.num_samples]
        ]
        check_present([sample.file for sample in samples], _names(self.evaluated.questions))
        return samples

    def read_training(self) -> list[AskedQuestion]:
        """The questions of the share, with their answers.

        Raises:
            FileNotFoundError: A file or a picture is missing.
            MisconfigurationException: A file is of another format, or there are no answers.
        """
        if self.train_files.annotations is None:
            raise MisconfigurationException("there is nothing to train on: give data.train.annotations")
        finder = PictureFinder(self.train_files.images)
        questions = uniform_subset(self.train_files.read(), self.train_share, self.seed)
        if unanswered := [question.question_id for question in questions if not question.answers]:
            raise MisconfigurationException(
                f"{_names(self.train_files.annotations)} holds no answer to {len(unanswered)} of {len(questions)} "
                f"questions to train on: leave them out; first: {unanswered[:3]}"
            )
        files = {image_id: finder.by_number(image_id) for image_id in {each.image_id for each in questions}}
        check_present(list(files.values()), _names(self.train_files.questions))
        return [AskedQuestion(question, files[question.image_id]) for question in questions]

    def training_dataset(self) -> tuple[QuestionDataset, Callable[[Any], QuestionBatch]]:
        """The questions with their pictures and with the answers of the epoch."""
        return QuestionDataset(self.training, self.transform, self.target, self.seed), collate_questions


def _read_asked(path: str | Path) -> list[Question]:
    entries = _entries(*_content(path, "questions"), "questions")
    texts = entries.texts("question")
    columns = entries.numbers("question_id"), entries.numbers("image_id"), texts
    read = [Question(*each) for each in zip(*columns, strict=True)]
    _ids(path, [question.question_id for question in read])
    if not all(map(str.strip, texts)):
        raise MisconfigurationException(
            f"{path}: the question {next(each.question_id for each in read if not each.text.strip())} has no text"
        )
    return read


def _read_answered(path: str | Path) -> list[tuple[int, tuple[tuple[str, ...], str, str]]]:
    """For each question its number, its answers, and their and its type."""
    content, complaint = _content(path, "annotations", make_object=_answer_text)
    entries = _entries(content, complaint, "annotations")
    answers = entries.values("answers", {list}, "a list")
    is_text = set(map(type, chain.from_iterable(answers))) <= {str}
    if not (is_text and is_encodable("".join(set(chain.from_iterable(answers))))):
        for items in answers:
            items[:] = [{"answer": item} if type(item) is str else item for item in items]
        answers = entries.nested_texts("answers", "answer")  # says which is wrong
    # OK-VQA's, whose annotations have codes
    (type_names,) = Entries([content], complaint, is_numbered=False).values("question_types", {dict}, "an object", {})
    types = entries.texts("question_type")
    names = Entries([type_names], f"{complaint}: question_types", is_numbered=False)
    named = {code: names.texts(code, code)[0] for code in set(types)}
    return [
        (number, (tuple(texts), sys.intern(answer_type), sys.intern(named[question_type])))
        for number, texts, answer_type, question_type in zip(
            entries.numbers("question_id"), answers, entries.texts("answer_type"), types, strict=True
        )
    ]


def _content(
    path: str | Path, key: str, of_format: str = "VQA v2's format", make_object: Callable[[Pairs], Any] = json_object
) -> tuple[Any, str]:
    """What the file holds, and how a message begins that says it is of another format."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file at {path}: give one with the {key} in {of_format}")
    file_format = f"a file of {key} in {of_format}"
    return read_json(path, file_format, make_object), f"{path} is not {file_format}"


def _entries(content: Any, complaint: str, key: str) -> Entries:
    if not isinstance(content, dict) or key not in content:
        raise MisconfigurationException(f"{complaint}: it is no object with {key}")
    return Entries(content[key], f"{complaint}: {key}")


def _answer_text(pairs: Pairs) -> Any:
    # two million answers, of which most are the same few words, are gigabytes as dictionaries
    item = dict(pairs)
    text = item.get("answer")
    return sys.intern(text) if type(text) is str and len(item) == len(pairs) else json_object(pairs)


def _ids(paths: Paths, numbers: Sequence[int]) -> set[int]:
    """The numbers of the questions in files; there are some, each once."""
    if not numbers:
        raise MisconfigurationException(f"{_names(paths)} holds no question: give another file")
    counts = Counter(numbers)
    repeated = [number for number, count in counts.items() if count > 1]
    if repeated:
        raise MisconfigurationException(
            f"{_names(paths)} holds questions more than once: remove the others of {repeated[:3]}"
        )
    return set(counts)


def _each(paths: Paths) -> Sequence[str | Path]:
    return [paths] if isinstance(paths, str | Path) else paths


def _names(paths: Paths) -> str:
    return " and ".join(map(str, _each(paths)))


def _hash(seed: int, number: int) -> bytes:
    return hashlib.blake2b(f"{seed}/{number}".encode(), digest_size=8).digest()
