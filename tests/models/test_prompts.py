"""Prompts, and what is read in what a model wrote."""

import pytest

from vlkd_pl.models.prompts import caption_prompt, question_prompt


@pytest.mark.parametrize(
    ("text", "is_continuation", "filled", "wandered"),
    [
        (" red.", True, "red", False),
        (" red", True, "red", False),
        (" 3.5 feet.", True, "3.5 feet", False),
        (" red. It is a fish.", True, "red", True),
        (" red? Answer: red.", True, "red? Answer: red", True),
        (" .", True, "", True),
        ("", True, "", True),
        ("what is it? Answer: red.", False, "red", False),
        ("what  is it?  Answer: red", False, "red", False),
        ("what is this? Answer: red.", False, "red", True),
        ("Answer: blue. Answer: red.", False, "red", True),
        ("a red fish.", False, "a red fish", True),
        ("", False, "", True),
    ],
)
def test_what_stands_in_place_of_the_masks(text, is_continuation, filled, wandered):
    assert question_prompt("what is it?").read(text, is_continuation) == (filled, wandered)


def test_a_caption_that_wandered_is_kept_whole():
    assert caption_prompt(6).read("a group of dogs.", False) == ("a group of dogs", True)
    assert caption_prompt(6).read("A picture of a group of dogs.", False) == ("a group of dogs", False)


def test_prompts_are_the_papers():
    assert caption_prompt(3).text("<mask>") == "A picture of <mask><mask><mask>."
    assert question_prompt("Where is it? ").text("<mask>") == "Where is it? Answer: <mask>."
    assert question_prompt("Why?", 2, "a fish.").text("<mask>") == "a fish. Why? Answer: <mask><mask>."


def test_a_filled_prompt_is_read_back():
    prompt = caption_prompt(6)
    assert prompt.filled("a red fish") == "A picture of a red fish."
    assert prompt.read(prompt.filled("a red fish"), is_continuation=False) == ("a red fish", False)
