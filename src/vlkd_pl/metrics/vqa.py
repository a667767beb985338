"""Accuracy of answers, as VQA's own evaluator (``vqaEval.py`` of GT-Vision-Lab/VQA) computes it."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from vlkd_pl.metrics.base import SampleMetric, check_lengths
from vlkd_pl.metrics.pairing import check_pairing

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGITS_WITH_COMMA = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")  # VQA's pattern also has (?!<=\d) in front, which is always true
_NUM_PERIODS = 32  # VQA's evaluator passes re.UNICODE, which is 32, as re.sub's number of replacements
_NUMBER_WORDS = "zero one two three four five six seven eight nine ten"
_NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(_NUMBER_WORDS.split())}
_NUM_ANSWERS = 10
_FULL_MARKS = 4  # with as many equal answers, three remain to agree with when one is left out
_ARTICLES = ("a", "an", "the")
_CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock
oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
# a word that lacks one of its apostrophes gets it back; VQA's list has one entry the wrong way round
_CONTRACTIONS = {
    word[:index] + word[index + 1 :]: word
    for word in _CONTRACTED.split()
    for index, character in enumerate(word)
    if character == "'"
} | {"somebody'd": "somebodyd"}


class AnsweredQuestion(Protocol):
    """A question with people's answers."""

    @property
    def question_id(self) -> int:
        """The question's id in the annotations."""

    @property
    def answers(self) -> Sequence[str]:
        """People's answers, ten in VQA v2 and OK-VQA."""

    @property
    def question_type(self) -> str:
        """The question type in the annotations, such as ``how many``."""

    @property
    def answer_type(self) -> str:
        """The answer type in the annotations: ``yes/no``, ``number`` or ``other``."""


class VQAScores(NamedTuple):
    """Accuracies in percent, rounded to two decimals.

    Attributes:
        overall: The mean over all questions.
        per_answer_type: The mean for each answer type.
        per_question_type: The mean for each question type.
        per_question: The accuracy of each question.

    Example:
        >>> VQAScores(100.0, {"yes/no": 100.0}, {"is this": 100.0}, {1: 100.0}).overall
        100.0
    """

    overall: float
    per_answer_type: dict[str, float]
    per_question_type: dict[str, float]
    per_question: dict[int, float]


class VQAAccuracy(SampleMetric):
    """The accuracy of answers by the rule of VQA, in percent, rounded to two decimals as VQA's evaluator does.

    ``update`` receives question ids, one predicted answer for each, and all of people's answers to each; a question
    counts once. See ``answer_accuracy`` for the rule.

    Example:
        >>> from vlkd_pl.metrics import VQAAccuracy
        >>> metric = VQAAccuracy()
        >>> metric.update([1, 2], ["yes", "two"], [["yes"] * 3 + ["no"] * 7, ["2"] * 9 + ["3"]])
        >>> float(metric.compute())
        95.0
    """

    def update(
        self, ids: Sequence[Hashable] | Tensor, predictions: Sequence[str], answers: Sequence[Sequence[str]]
    ) -> None:
        """Add the accuracies of B answers.

        Args:
            ids: B question ids.
            predictions: One answer to each question.
            answers: People's answers to each question, one or more.

        Raises:
            ValueError: The arguments differ in length, or a question has no answers.
        """
        check_lengths(ids=ids, predictions=predictions, answers=answers)
        accuracies = [answer_accuracy(*pair) for pair in zip(predictions, answers, strict=True)]
        self._append(ids, [[accuracy] for accuracy in accuracies])

    def compute(self) -> Tensor:
        """Return the mean accuracy, a scalar in [0, 100], float64."""
        return torch.tensor(_percent(torch.cat(self._unique_rows()).tolist()), dtype=torch.float64)


def vqa_scores(questions: Iterable[AnsweredQuestion], predictions: Mapping[int, str]) -> VQAScores:
    """Compute the accuracies that VQA's evaluator prints.

    Args:
        questions: The questions with people's answers.
        predictions: One answer to each of the same questions, by ``question_id``.

    Raises:
        ValueError: A question has no prediction or no answers, or a prediction no question.

    Example:
        >>> from types import SimpleNamespace
        >>> question = SimpleNamespace(
        ...     question_id=1, answers=["red"] * 10, question_type="what color", answer_type="other"
        ... )
        >>> vqa_scores([question], {1: "red"}).per_answer_type
        {'other': 100.0}
    """
    question_of = {question.question_id: question for question in questions}
    check_pairing(question_of.keys(), predictions.keys(), "question")
    per_question: dict[int, float] = {}
    per_answer_type: dict[str, list[float]] = {}
    per_question_type: dict[str, list[float]] = {}
    for key, question in question_of.items():
        if not question.answers:
            raise ValueError(f"question {key!r} has no answers to compare with")
        accuracy = answer_accuracy(predictions[key], question.answers)
        per_question[key] = accuracy
        per_answer_type.setdefault(question.answer_type, []).append(accuracy)
        per_question_type.setdefault(question.question_type, []).append(accuracy)
    return VQAScores(
        _percent(list(per_question.values())),
        {name: _percent(accuracies) for name, accuracies in per_answer_type.items()},
        {name: _percent(accuracies) for name, accuracies in per_question_type.items()},
        {key: _percent([accuracy]) for key, accuracy in per_question.items()},
    )


def few_answers_note(questions: Iterable[AnsweredQuestion]) -> str:
    """Report how many questions have fewer than the ten answers that VQA's rule is made for.

    Args:
        questions: The questions with people's answers.

    Returns:
        One line, or the empty string where each question has at least ten answers.
    """
    counts = [len(question.answers) for question in questions]
    few, fewest = sum(count < _NUM_ANSWERS for count in counts), sum(count < _FULL_MARKS for count in counts)
    if not few:
        return ""
    note = f"{few} of {len(counts)} questions have fewer than the {_NUM_ANSWERS} answers that VQA's rule is made for"
    if not fewest:
        return note
    return (
        f"{note}; {fewest} have fewer than {_FULL_MARKS}, and score at most 66.7 with three answers, 33.3 with two and "
        "0 with one, since only the other people's answers are compared with"
    )


def answer_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Compute VQA's accuracy of one answer: min(1, matches / 3), averaged over leaving out each person's answer.

    Answers are normalised only where people's answers differ; where all agree the prediction must be equal to theirs
    letter by letter, apart from white space around it.

    Args:
        prediction: The answer to score.
        answers: People's answers, one or more. Equal answers of several people count separately.

    Returns:
        The accuracy in [0, 1].

    Raises:
        ValueError: There are no answers.

    Example:
        >>> round(answer_accuracy("two", ["2", "2", "3"]), 3)
        0.444
    """
    if not answers:
        raise ValueError("there are no answers to compare with")
    prediction, answers = _strip(prediction), [_strip(answer) for answer in answers]
    if len(set(answers)) > 1:
        prediction, answers = normalize_answer(prediction), [normalize_answer(answer) for answer in answers]
    matches = [answer == prediction for answer in answers]
    return sum(min(1.0, (sum(matches) - match) / 3) for match in matches) / len(matches)


@lru_cache(maxsize=1 << 16)  # most answers are a few words that occur again and again
def normalize_answer(text: str) -> str:
    """Normalise an answer by the rules of VQA's evaluator: lower case, digits, no articles and no punctuation.

    A punctuation mark becomes a space, or nothing where it has a space next to it anywhere in the text, or where the
    text has a comma between digits. Periods are removed unless a digit follows. Apostrophes and colons stay; a
    contraction without its apostrophe gets it.
    """
    plain = text
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        plain = plain.replace(mark, "" if beside_space or _DIGITS_WITH_COMMA.search(text) else " ")
    plain = _PERIOD.sub("", plain, count=_NUM_PERIODS)
    words = [_NUMBERS.get(word, word) for word in plain.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def _strip(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _percent(accuracies: Sequence[float]) -> float:
    return round(100 * sum(accuracies) / len(accuracies), 2)
