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

from vlkd_pl.text_files import Entries, Pairs, is_encodable, json_object, read_json

Paths = str | Path | Sequence[str | Path]
"""A file, or several that together are one set."""

_DOMAINS = {True: "in-domain", False: "out-of-domain"}


class Question(NamedTuple):
    """A question, with the answers of ten people where they are known.

    Attributes:
        question_id: Its number.
        image_id: Its image's number.
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
    """An image with all its questions.

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
        file: Its image's file.
    """

    question: Question
    file: Path


@dataclass(frozen=True)
class QuestionFiles:
    """The files of one set of questions.

    Args:
        questions: ``v2_OpenEnded_mscoco_val2014_questions.json`` or another of its format, or several.
        images: Folder of the images, whose names end in their numbers.
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
                f"{joined_names(questions)} and {joined_names(annotations)} are not of the same questions, "
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
            f"{len(missing)} of {len(domains)} questions of {split} are not in {joined_names(questions)}: give "
            "all files that the split was made of, for VL-T5's those of train2014 and val2014; first: "
            f"{sorted(missing)[:3]}"
        )
    return [each._replace(domain=domains[each.question_id]) for each in read if each.question_id in domains]


def read_split(path: str | Path) -> dict[int, str]:
    """Reads a split in the format of VL-T5 (Cho et al., 2021): ``karpathy_train.json``, ``_val`` or ``_test``.

    The test split has 26,280 questions on the images of Karpathy's test split. In 24,722 of them the best answers are
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
        raise MisconfigurationException(f"{joined_names(paths)} holds no question: give another file")
    counts = Counter(numbers)
    repeated = [number for number, count in counts.items() if count > 1]
    if repeated:
        raise MisconfigurationException(
            f"{joined_names(paths)} holds questions more than once: remove the others of {repeated[:3]}"
        )
    return set(counts)


def _each(paths: Paths) -> Sequence[str | Path]:
    return [paths] if isinstance(paths, str | Path) else paths


def joined_names(paths: Paths) -> str:
    """The names of one or several files, for messages."""
    return " and ".join(map(str, _each(paths)))


def _hash(seed: int, number: int) -> bytes:
    return hashlib.blake2b(f"{seed}/{number}".encode(), digest_size=8).digest()
