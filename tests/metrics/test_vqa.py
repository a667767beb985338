"""VQA accuracy: cases with the values that VQA's evaluator computes."""

from typing import NamedTuple

import pytest

from vlkd_pl.metrics.vqa import answer_accuracy, few_answers_note, normalize_answer, vqa_scores


class Question(NamedTuple):
    question_id: int
    answers: list
    question_type: str
    answer_type: str


@pytest.mark.parametrize(
    ("prediction", "answers", "percent"),
    [
        # leave-one-out: 1, 2, 3, 4 and 10 of ten people gave the answer
        ("yes", ["yes"] + ["no"] * 9, 30),
        ("yes", ["yes"] * 2 + ["no"] * 8, 60),
        ("yes", ["yes"] * 3 + ["no"] * 7, 90),
        ("yes", ["yes"] * 4 + ["no"] * 6, 100),
        ("yes", ["yes"] * 10, 100),
        ("no", ["yes"] * 10, 0),
        # few people
        ("yes", ["yes"], 0),
        ("yes", ["yes", "yes"], 33.33),
        ("yes", ["yes", "yes", "no"], 44.44),
        # all people agree: letter by letter, but for white space around it
        ("Yes", ["yes"] * 10, 0),
        ("yes.", ["yes"] * 10, 0),
        ("two", ["2"] * 10, 0),
        ("none", ["none"] * 10, 100),
        ("\tyes\n", ["yes"] * 10, 100),
        ("yes", [" yes\n"] * 10, 100),
        ("new\nyork", ["new york"] * 10, 100),
        ("", [""] * 10, 100),
        # they disagree: both sides are normalised
        ("Yes", ["yes"] * 9 + ["no"], 100),
        ("yes.", ["yes"] * 9 + ["no"], 100),
        ("yes", ["yes"] * 5 + ["Yes"] * 5, 100),
        ("two", ["2"] * 9 + ["3"], 100),
        ("2", ["two"] * 9 + ["Three"], 100),
        ("none", ["0"] * 9 + ["1"], 100),
        ("none", ["none"] * 9 + ["0"], 100),
        ("the dog", ["dog"] * 9 + ["cat"], 100),
        ("dog", ["a dog"] * 5 + ["the dog"] * 5, 100),
        ("dont know", ["don't know"] * 9 + ["no"], 100),
        ("don't know", ["dont know"] * 9 + ["no"], 100),
        ("1,000", ["1000"] * 9 + ["100"], 100),
        ("new\tyork", ["new york"] * 9 + ["york"], 100),
        # empty before or after
        ("", ["yes"] * 9 + ["no"], 0),
        ("", [""] * 5 + ["a"] * 5, 100),
        ("the", ["a"] * 5 + ["an"] * 5, 100),
    ],
)
def test_accuracy(prediction, answers, percent):
    assert round(100 * answer_accuracy(prediction, answers), 2) == percent


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        # articles and number words, in any case
        ("The Dog", "dog"),
        ("one a two", "1 2"),
        ("an a the", ""),
        ("None", "0"),
        ("zero", "0"),
        ("ten", "10"),
        ("eleven", "eleven"),
        ("  many   spaces ", "many spaces"),
        ("ÉTÉ", "été"),
        # contractions, with those that are odd
        ("isnt", "isn't"),
        ("isn't", "isn't"),
        ("dont,", "don't"),
        ("weve", "we've"),
        ("twas", "'twas"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("yall'd've", "y'all'd've"),
        ("ow's'at", "'ow's'at"),
        ("ows'at", "ows'at"),
        ("somebody'd", "somebodyd"),
        ("somebody'dve", "somebody'd've"),
        ("Im", "im"),
        ("lets", "lets"),
        # a mark becomes a space, or nothing next to one
        ("e-mail", "e mail"),
        ("x_y", "x y"),
        ("back\\slash", "back slash"),
        ("a/ b", "b"),
        ("a/ b/c", "bc"),
        ("e - mail", "e mail"),
        ("top-left, right", "top left right"),
        ("what?!", "what"),
        ('"[{(<quoted>)}]"', "quoted"),
        ("a+b=c", "b c"),
        ("no;yes", "no yes"),
        # a comma between digits makes every mark nothing
        ("1,000", "1000"),
        ("1,000-2", "10002"),
        ("(1,000) x-y", "1000 xy"),
        ("1 , 2", "1 2"),
        # periods: not those before a digit, and 32 of them
        ("3.5.", "3.5"),
        (".5", ".5"),
        ("U.S.", "us"),
        ("x" + "." * 40, "x" + "." * 8),
        # apostrophes, colons and other signs stay
        ("dog's", "dog's"),
        ("2:30", "2:30"),
        ("$5", "$5"),
        ("50%", "50%"),
    ],
)
def test_normalize(text, normal):
    assert normalize_answer(text) == normal


QUESTIONS = [
    Question(11, ["yes"] * 3 + ["no"] * 7, "is the", "yes/no"),
    Question(12, ["2"] * 9 + ["3"], "how many", "number"),
    Question(13, ["red"] + ["blue"] * 9, "what color", "other"),
    Question(14, ["no"] * 10, "is the", "yes/no"),
]


def test_means():
    scores = vqa_scores(QUESTIONS, {14: "yes", 13: "red", 12: "two", 11: "yes"})
    assert scores.overall == 55
    assert scores.per_answer_type == {"yes/no": 45, "number": 100, "other": 30}
    assert scores.per_question_type == {"is the": 45, "how many": 100, "what color": 30}
    assert scores.per_question == {11: 90, 12: 100, 13: 30, 14: 0}


def test_two_decimals():
    scores = vqa_scores(QUESTIONS[:3], {11: "yes", 12: "two", 13: "red"})
    assert scores.overall == 73.33


def test_mismatched_predictions_are_listed():
    with pytest.raises(
        ValueError, match=r"3 of 4 questions have no prediction \(first: 12, 13, 14\); 1 of 2 pred.* 99"
    ):
        vqa_scores(QUESTIONS, {11: "yes", 99: "no"})


def test_no_answers_to_compare_with():
    with pytest.raises(ValueError, match="question 5 has no answers"):
        vqa_scores([Question(5, [], "is the", "yes/no")], {5: "yes"})
    with pytest.raises(ValueError, match="there are no answers"):
        answer_accuracy("yes", [])


@pytest.mark.parametrize(("number", "most"), [(1, 0), (2, 33.33), (3, 66.67), (4, 100), (9, 100), (10, 100)])
def test_few_answers_are_noted(number, most):
    question = Question(5, ["yes"] * number, "is the", "yes/no")
    assert vqa_scores([question], {5: "yes"}).overall == most
    note = few_answers_note([question, *QUESTIONS])
    assert note.startswith("1 of 5 questions have fewer than the 10 answers") == (number < 10)
    assert ("1 have fewer than 4" in note) == (number < 4)
    assert few_answers_note(QUESTIONS) == ""
