"""Accuracy of answers, as the official evaluator of VQA computes it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple, Protocol

from vlkd_pl.metrics.pairing import check_pairing

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGITS_WITH_COMMA = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")  # the official pattern also has (?!<=\d) in front, which is always true there
_NUM_PERIODS = (
    32  # the official evaluator passes re.UNICODE, which is 32, where re.sub takes the number of replacements
)
_NUMBER_WORDS = "zero one two three four five six seven eight nine ten"
_NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(_NUMBER_WORDS.split())}
_NUM_ANSWERS = 10
_FULL_MARKS = 4  # so many equal answers leave three to agree with when each is left out in turn
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
# a word that lacks one of its apostrophes gets it back; the official list has one entry the wrong way round
_CONTRACTIONS = {
    word[:index] + word[index + 1 :]: word
    for word in _CONTRACTED.split()
    for index, character in enumerate(word)
    if character == "'"
} | {"somebody'd": "somebodyd"}


class AnsweredQuestion(Protocol):
    """What must be known of a question."""

    @property
    def question_id(self) -> int:
        """Its number."""

    @property
    def answers(self) -> Sequence[str]:
        """People's answers, ten in VQA v2 and OK-VQA."""

    @property
    def question_type(self) -> str:
        """The kind of question that the annotations name."""

    @property
    def answer_type(self) -> str:
        """``yes/no``, ``number`` or ``other``."""


class VQAScores(NamedTuple):
    """Accuracies in percent, rounded to two decimals.

    Attributes:
        overall: The mean over all questions.
        per_answer_type: The mean for each type of answer.
        per_question_type: The mean for each type of question.
        per_question: For each question.
    """

    overall: float
    per_answer_type: dict[str, float]
    per_question_type: dict[str, float]
    per_question: dict[int, float]


def vqa_scores(questions: Iterable[AnsweredQuestion], predictions: Mapping[int, str]) -> VQAScores:
    """The accuracies that the official evaluator (``vqaEval.py`` of GT-Vision-Lab/VQA) prints.

    Args:
        questions: The questions with people's answers.
        predictions: One answer for each of the same questions, by ``question_id``.

    Raises:
        ValueError: A question has no prediction or no answers, or a prediction no question.
    """
    asked = {question.question_id: question for question in questions}
    check_pairing(asked.keys(), predictions.keys(), "question")
    per_question: dict[int, float] = {}
    per_answer_type: dict[str, list[float]] = {}
    per_question_type: dict[str, list[float]] = {}
    for key, question in asked.items():
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
    """Says how many questions have fewer than ten answers, for which the official rule was made.

    Args:
        questions: The questions with people's answers.

    Returns:
        A line, or the empty string where each question has ten answers at least.
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
    """How far people gave the same answer: min(1, matches / 3) among all but one of them, averaged over that one.

    Answers are normalised only where people's differ; where all agree the prediction must be theirs letter by letter,
    apart from white space around it.

    Args:
        prediction: The answer to judge.
        answers: People's answers, each counted for itself (the official evaluator tells them apart by their
            ``answer_id``).

    Returns:
        Between 0 and 1.
    """
    prediction, answers = _strip(prediction), [_strip(answer) for answer in answers]
    if len(set(answers)) > 1:
        prediction, answers = normalize_answer(prediction), [normalize_answer(answer) for answer in answers]
    matches = [answer == prediction for answer in answers]
    return sum(min(1.0, (sum(matches) - match) / 3) for match in matches) / len(matches)


@lru_cache(maxsize=1 << 16)  # most answers are a few words, given over and over
def normalize_answer(text: str) -> str:
    """Lower case, digits for number words, no articles and no punctuation, by the official evaluator's rules.

    A punctuation mark becomes a space, or nothing where it has a space beside it anywhere in the text, or where the
    text has a comma between digits. Periods go unless a digit follows. Apostrophes and colons stay; a contraction
    without its apostrophe gets it.
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
