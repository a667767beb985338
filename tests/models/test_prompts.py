"""Prompts, and the extraction of texts from reconstructions."""

import json
import zipfile
from pathlib import Path

import pycocoevalcap
import pytest
import torch

from vlkd_pl.models.bart import load_bart_tokenizer
from vlkd_pl.models.decoding import written_texts
from vlkd_pl.models.prompts import caption_passage, caption_prompt, passage_caption, question_prompt
from vlkd_pl.modules.captioning import as_continuation


@pytest.mark.parametrize(
    ("text", "is_continuation", "filled", "off_prompt"),
    [
        (" red.", True, "red", False),
        (" red", True, "red", False),
        (" 3.5 feet.", True, "3.5 feet", False),
        (" red. It is a fish.", True, "red. It is a fish", False),
        (" red .", True, "red", False),
        (" u.s..", True, "u.s.", False),
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
def test_what_stands_in_place_of_the_masks(text, is_continuation, filled, off_prompt):
    assert question_prompt("what is it?").read(text, is_continuation) == (filled, off_prompt)


def test_an_off_prompt_caption_stays_unchanged():
    assert caption_prompt(6).read("a group of dogs.", False) == ("a group of dogs", True)
    assert caption_prompt(6).read("A picture of a group of dogs.", False) == ("a group of dogs", False)


def test_prompts_are_the_papers():
    assert caption_prompt(3).text("<mask>") == "A picture of <mask><mask><mask>."
    assert question_prompt("Where is it? ").text("<mask>") == "Where is it? Answer: <mask>."
    assert question_prompt("Why?", 2, "a fish.").text("<mask>") == "a fish. Why? Answer: <mask><mask>."


TEXTS = (
    """
a red fish|dr. pepper|st. bernard|mr. smith|u.s.|5 p.m.|no. 5|3.5|...|.|.5|a.|a U.S. Air Force plane on display
two signs. one says stop. the other no. 5|what is it?|"hello."|mt. helens, wash.|e.g. this|¿qué?|a man's hat , 's .
""".replace("\n", "|")
    .strip("|")
    .split("|")
)


@pytest.mark.parametrize("is_continuation", [True, False])
@pytest.mark.parametrize(
    "prompt", [caption_prompt(6), question_prompt("Who is Dr. No? "), question_prompt("A. B.", 2, "c.")]
)
@pytest.mark.parametrize("text", TEXTS)
def test_a_filled_prompt_is_read_back(text, prompt, is_continuation):
    filled = prompt.filled(text)
    assert prompt.read(filled.removeprefix(prompt.before) if is_continuation else filled, is_continuation) == (
        text,
        False,
    )


@pytest.mark.parametrize(
    ("passage", "caption"),
    [
        (caption_passage("a red fish"), "a red fish"),
        (caption_prompt(1).filled("a red fish"), "a red fish"),
        (" The Normans settled in France. They spoke French. ", "The Normans settled in France. They spoke French"),
        ("A picture of", "A picture of"),
    ],
)
def test_what_clip_embeds_of_a_passage(passage, caption):
    assert passage_caption(passage) == caption


def test_white_space_is_one_space():
    assert caption_prompt(6).read("A  picture of a\nred  fish .", False) == ("a red fish", False)


@pytest.mark.parametrize("clean_up", [False, True])
def test_texts_come_back_through_the_tokenizer(bart_folder, clean_up):
    tokenizer = load_bart_tokenizer(str(bart_folder))
    tokenizer.clean_up_tokenization_spaces = clean_up  # as tokenizers were saved before transformers 5
    for prompt in (caption_prompt(6), question_prompt("Where is Dr. No?")):
        for text in TEXTS:
            before, filled = tokenizer([prompt.before, prompt.filled(text)], add_special_tokens=False)["input_ids"]
            ids = torch.tensor([[*filled[len(before) :], tokenizer.eos_token_id]])
            assert prompt.read(*written_texts(tokenizer, ids), is_continuation=True) == (text, False)


@pytest.mark.slow
@pytest.mark.parametrize(("split", "number"), [("val", 202_654), ("train", 414_113)])
def test_every_caption_of_coco_comes_back(split, number):
    prompt = caption_prompt(6)
    with zipfile.ZipFile(Path(next(iter(pycocoevalcap.__path__))) / "spice" / "spice-1.0.jar") as jar:
        annotations = json.loads(jar.read(f"coco/annotations/captions_{split}2014.json"))["annotations"]
    captions = {" ".join(annotation["caption"].split()) for annotation in annotations}
    texts = captions | {as_continuation(caption) for caption in captions} - {""}
    assert len(annotations) == number
    for text in texts:
        assert prompt.read(prompt.filled(text), is_continuation=False) == (text, False)
