"""VQA v2's question and annotation files, whose format OK-VQA shares; VL-T5's splits."""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from pytorch_lightning.utilities.exceptions import MisconfigurationException

from vlkd_pl.data.image_files import ImageFinder, check_present
from vlkd_pl.text_files import Entries, Pairs, is_encodable, json_object, read_json

Paths = str | Path | Sequence[str | Path]
"""Path of a file, or a list of paths of files that form one set."""

_DOMAINS = {True: "in-domain", False: "out-of-domain"}


class Question(NamedTuple):
    """A question about an image, with the answers of ten annotators where they are public.

    Attributes:
        question_id: Number of the question.
        image_id: Number of the image.
        text: The question.
        answers: The answers; empty if they are secret.
        answer_type: ``yes/no``, ``number`` or ``other``.
        question_type: Category in the annotations: the first words for VQA v2, as ``what color is the``; the kind of
            knowledge for OK-VQA, as ``Cooking and Food``.
        domain: ``in-domain`` or ``out-of-domain`` in a split of VL-T5; empty otherwise.
    """

    question_id: int
    image_id: int
    text: str
    answers: tuple[str, ...] = ()
    answer_type: str = ""
    question_type: str = ""
    domain: str = ""


class AskedImage(NamedTuple):
    """An image with all its questions.

    Attributes:
        image_id: Number of the image.
        file: Path of the image.
        questions: The questions, at least one.
    """

    image_id: int
    file: Path
    questions: list[Question]


class AskedQuestion(NamedTuple):
    """A question to train on.

    Attributes:
        question: The question with its answers.
        file: Path of the image.
    """

    question: Question
    file: Path


@dataclass(frozen=True)
class QuestionFiles:
    """The files of one set of questions: VQA v2's format, which OK-VQA shares.

    >>> import json
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     Path(folder, "000000000042.jpg").touch()
    ...     content = {"questions": [{"question_id": 421, "image_id": 42, "question": "Is it red?"}]}
    ...     _ = Path(folder, "questions.json").write_text(json.dumps(content))
    ...     (image,) = QuestionFiles(f"{folder}/questions.json", folder).read()
    ...     print(image.file.name, image.questions[0].text)
    000000000042.jpg Is it red?
    """

    questions: str | list[str]
    """Path of ``v2_OpenEnded_mscoco_val2014_questions.json`` or another file of its format, or a list of paths."""
    images: str
    """Folder of the images, whose names end in their numbers."""
    annotations: str | list[str] | None = None
    """Path of ``v2_mscoco_val2014_annotations.json`` or another file of its format, or a list of paths; None if the
    answers are secret."""
    split: str | None = None
    """Path of a split of VL-T5, such as ``karpathy_test.json``, to use its questions only; None to use all."""

    def read(self, num_samples: int | None = None) -> list[AskedImage]:
        """Read the images with their questions, in the order of the first questions; or the first ``num_samples``.

        Raises:
            FileNotFoundError: If a file or an image is missing.
            MisconfigurationException: If a file is invalid, or the files do not hold the same questions.
        """
        finder = ImageFinder(self.images)
        questions_of: dict[int, list[Question]] = {}
        for question in read_questions(self.questions, self.annotations, self.split):
            questions_of.setdefault(question.image_id, []).append(question)
        samples = [
            AskedImage(image_id, finder.by_number(image_id), questions)
            for image_id, questions in list(questions_of.items())[:num_samples]
        ]
        check_present([sample.file for sample in samples], joined_names(self.questions))
        return samples

    def read_training(self, share: float = 1.0, seed: int = 0) -> list[AskedQuestion]:
        """Read the questions to train on, with their answers.

        Args:
            share: Share of the questions that is used, above 0 and at most 1; see ``uniform_subset``.
            seed: Seed that decides which questions are used.

        Raises:
            FileNotFoundError: If a file or an image is missing.
            MisconfigurationException: If a file is invalid, or answers are missing.
        """
        if self.annotations is None:
            raise MisconfigurationException("there is nothing to train on: give data.train.annotations")
        finder = ImageFinder(self.images)
        questions = uniform_subset(read_questions(self.questions, self.annotations, self.split), share, seed)
        if unanswered := [question.question_id for question in questions if not question.answers]:
            raise MisconfigurationException(
                f"{joined_names(self.annotations)} holds no answer to {len(unanswered)} of {len(questions)} questions "
                f"to train on: leave them out; first: {unanswered[:3]}"
            )
        files = {image_id: finder.by_number(image_id) for image_id in {question.image_id for question in questions}}
        check_present(list(files.values()), joined_names(self.questions))
        return [AskedQuestion(question, files[question.image_id]) for question in questions]


def read_questions(
    questions: Paths, annotations: Paths | None = None, split: str | Path | None = None
) -> list[Question]:
    """Read questions and annotations in the format of VQA v2 and OK-VQA.

    Args:
        questions: Path of a JSON file with ``questions``, or a list of paths.
        annotations: Path of a JSON file with ``annotations`` of the same questions, or a list of paths; None if the
            answers are secret.
        split: Path of a file that ``read_split`` reads, to return its questions with their domains; None for all.

    Returns:
        The questions in the order of their files.

    Raises:
        FileNotFoundError: If a file does not exist.
        MisconfigurationException: If a file is invalid or empty, a question is repeated, or the files do not hold the
            same questions.
    """
    samples = [question for path in _path_list(questions) for question in _read_question_file(path)]
    asked_ids = _unique_ids(questions, [question.question_id for question in samples])
    if annotations is not None:
        annotated = [item for path in _path_list(annotations) for item in _read_annotation_file(path)]
        answered_ids = _unique_ids(annotations, [number for number, _ in annotated])
        if asked_ids != answered_ids:
            raise MisconfigurationException(
                f"{joined_names(questions)} and {joined_names(annotations)} are not of the same questions, "
                f"{len(asked_ids - answered_ids)} have no answers and {len(answered_ids - asked_ids)} are not asked: "
                f"give the files of one split; first: {sorted(asked_ids ^ answered_ids)[:3]}"
            )
        answers = dict(annotated)
        samples = [Question(*question[:3], *answers[question.question_id]) for question in samples]
    if split is None:
        return samples
    domains = read_split(split)
    if missing := domains.keys() - asked_ids:
        raise MisconfigurationException(
            f"{len(missing)} of {len(domains)} questions of {split} are not in {joined_names(questions)}: give "
            "all files that the split was made of, for VL-T5's those of train2014 and val2014; first: "
            f"{sorted(missing)[:3]}"
        )
    return [
        question._replace(domain=domains[question.question_id])
        for question in samples
        if question.question_id in domains
    ]


def read_split(path: str | Path) -> dict[int, str]:
    """Read a split in the format of VL-T5 (Cho et al., 2021): ``karpathy_train.json``, ``_val`` or ``_test``.

    The test split has 26,280 questions on the images of Karpathy's test split. In 24,722 of them the best answers are
    among the 3,129 that VL-T5 counts as common; they are *in-domain*, and ``is_topk_optimal`` is true. The other 1,558
    are *out-of-domain*.

    Args:
        path: Path of a JSON list with ``question_id`` and, for all questions or none, ``is_topk_optimal``.

    Returns:
        The domain of each question by its number: ``in-domain``, ``out-of-domain``, or an empty text if the file has no
        domains.

    Raises:
        FileNotFoundError: If the file does not exist.
        MisconfigurationException: If the file is invalid or empty, a question is repeated, or some questions only have
            a domain.
    """
    content, complaint = _content(path, "questions", "VL-T5's format")
    entries = Entries(content, complaint)
    numbers = entries.numbers("question_id")
    is_common = entries.values("is_topk_optimal", {bool}, "true or false", None)
    domains = ["" if common is None else _DOMAINS[common] for common in is_common]
    _unique_ids(path, numbers)
    if 0 < domains.count("") < len(domains):
        raise MisconfigurationException(
            f"{path} has is_topk_optimal for {len(domains) - domains.count('')} questions but not for "
            f"{domains.count('')}: give it for all or for none"
        )
    return dict(zip(numbers, domains, strict=True))


def uniform_subset(questions: Sequence[Question], share: float, seed: int = 0) -> list[Question]:
    """Draw a uniform subset of questions, the same on every machine and in any order of the questions.

    It consists of the questions with the smallest hashes of seed and number, so that a larger share contains a smaller
    one.

    Args:
        questions: List of N questions.
        share: Share of the questions, above 0 and at most 1.
        seed: Seed that decides which questions are drawn.

    Returns:
        About share × N questions, rounded and at least one, in their order.

    >>> questions = [Question(number, 1, "Is it red?") for number in range(5)]
    >>> [question.question_id for question in uniform_subset(questions, share=0.4)]
    [0, 4]
    """
    size = max(1, round(share * len(questions)))
    chosen = set(
        sorted((question.question_id for question in questions), key=lambda number: _hash(seed, number))[:size]
    )
    return [question for question in questions if question.question_id in chosen]


def _read_question_file(path: str | Path) -> list[Question]:
    entries = _entries(*_content(path, "questions"), "questions")
    texts = entries.texts("question")
    columns = entries.numbers("question_id"), entries.numbers("image_id"), texts
    questions = [Question(*row) for row in zip(*columns, strict=True)]
    _unique_ids(path, [question.question_id for question in questions])
    if not all(map(str.strip, texts)):
        empty = next(question.question_id for question in questions if not question.text.strip())
        raise MisconfigurationException(f"{path}: the question {empty} has no text")
    return questions


def _read_annotation_file(path: str | Path) -> list[tuple[int, tuple[tuple[str, ...], str, str]]]:
    """Return the number of each question with its answers, answer type and question type."""
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
    """Read a JSON file; return its content and the beginning of a message that it is invalid."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file at {path}: give one with the {key} in {of_format}")
    file_format = f"a file of {key} in {of_format}"
    return read_json(path, file_format, make_object), f"{path} is not {file_format}"


def _entries(content: Any, complaint: str, key: str) -> Entries:
    if not isinstance(content, dict) or key not in content:
        raise MisconfigurationException(f"{complaint}: it must be an object with {key}")
    return Entries(content[key], f"{complaint}: {key}")


def _answer_text(pairs: Pairs) -> Any:
    # two million answers, of which most are the same few words, are gigabytes as dictionaries
    item = dict(pairs)
    text = item.get("answer")
    return sys.intern(text) if type(text) is str and len(item) == len(pairs) else json_object(pairs)


def _unique_ids(paths: Paths, numbers: Sequence[int]) -> set[int]:
    """Check that files hold questions, and each of them once; return their numbers."""
    if not numbers:
        raise MisconfigurationException(f"{joined_names(paths)} holds no question: give another file")
    counts = Counter(numbers)
    repeated = [number for number, count in counts.items() if count > 1]
    if repeated:
        raise MisconfigurationException(
            f"{joined_names(paths)} holds questions more than once: remove the others of {repeated[:3]}"
        )
    return set(counts)


def _path_list(paths: Paths) -> Sequence[str | Path]:
    return [paths] if isinstance(paths, str | Path) else paths


def joined_names(paths: Paths) -> str:
    """Join the paths of one or several files for a message."""
    return " and ".join(map(str, _path_list(paths)))


def _hash(seed: int, number: int) -> bytes:
    return hashlib.blake2b(f"{seed}/{number}".encode(), digest_size=8).digest()
