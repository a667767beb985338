"""The sample world's captions, questions and text."""

import random
import re

import pytest

from vlkd_pl.sample.language import FACTS, captions, fact_sentences, questions, random_line
from vlkd_pl.sample.scenes import COLORS, OBJECTS, Item, Scene, distinct_scenes, random_scene

PAIR = Scene("pair", (Item("red", "fish"), Item("orange", "boat")), "snow", relation="left of")


def test_captions_of_a_pair_tell_it_from_both_sides():
    assert captions(PAIR)[:2] == [
        "a red fish left of an orange boat in the snow",
        "an orange boat right of a red fish in the snow",
    ]


def test_different_scenes_share_no_caption():
    scenes = distinct_scenes(random.Random(0), "train", 2000)
    all_captions = [caption for scene in scenes for caption in set(captions(scene))]
    assert len(set(all_captions)) == len(all_captions)
    assert all(len(set(captions(scene))) == 5 for scene in scenes)


def test_every_object_has_facts_that_no_caption_states():
    assert set(FACTS) == set(OBJECTS)
    fact_words = {word for facts in FACTS.values() for word in facts}
    caption_words = {
        word
        for scene in distinct_scenes(random.Random(0), "train", 500)
        for text in captions(scene)
        for word in text.split()
    }
    assert not fact_words & caption_words
    assert all(
        any(f"{name}" in line and word in line for line in fact_sentences())
        for name, facts in FACTS.items()
        for word in facts
    )


@pytest.mark.parametrize("seed", range(3))
def test_answers_are_right(seed):
    """Each answer follows from the scene by a rule of this test."""
    rng = random.Random(seed)
    for _ in range(300):
        scene = random_scene(rng, "train")
        colors = {item.object: item.color for item in scene.items}
        for question in questions(scene, rng):
            words = re.findall(r"\w+", question.text)
            if question.kind == "color":
                assert colors[words[-1]] == question.answer
            elif question.kind == "count":
                assert {"one": 1, "two": 2, "three": 3}[question.answer] == len(scene.items) * scene.count
            elif question.kind == "place":
                assert question.answer == scene.place
            elif question.kind == "yes/no" and words[1] == "there":
                name = words[-1]
                color = words[-2] if words[-2] in COLORS else colors.get(name)
                assert (colors.get(name) == color and name in colors) == (question.answer == "yes")
            elif question.kind == "yes/no" and words[-1] in COLORS:
                assert (colors[words[2]] == words[-1]) == (question.answer == "yes")
            elif question.kind == "yes/no":
                first, second = (item.object for item in scene.items)
                forward = words[3] in ("left", "above")
                horizontal = words[3] in ("left", "right")
                true = ((words[2], words[-1]) == (first, second)) == forward and horizontal == (
                    scene.relation == "left of"
                )
                assert true == (question.answer == "yes")
            elif question.kind == "fact":
                named = next((item.object for item in scene.items if item.color in words), scene.items[0].object)
                assert question.answer in FACTS[named]


def test_yes_and_no_are_even():
    rng = random.Random(5)
    answers = [q.answer for _ in range(500) for q in questions(random_scene(rng, "train"), rng) if q.kind == "yes/no"]
    assert answers.count("yes") == answers.count("no")


def test_no_relation_question_is_answered_by_the_other_object_it_names():
    rng = random.Random(6)
    for _ in range(500):
        scene = random_scene(rng, "train")
        names = [item.object for item in scene.items]
        for question in questions(scene, rng):
            named = [name for name in names if name in question.text.split() or f"{name}?" in question.text.split()]
            if question.kind == "relation" and question.answer in names and named:
                assert len(names) == 3


def test_a_tab_separates_a_passage_from_its_question():
    rng = random.Random(8)
    lines = [random_line(rng) for _ in range(300)]
    assert all(line.in_corpus.replace("\t", " ") == line.text for line in lines)
    with_passage = [line for line in lines if line.passage]
    assert 100 < len(with_passage) < 250
    for line in lines:
        assert bool(line.passage) == bool(line.question_kind) == ("\t" in line.in_corpus)
    for passage, question in (line.in_corpus.split("\t") for line in with_passage):
        assert passage.endswith(".")
        assert re.fullmatch(r"[^.?]+\? Answer: \w+\.", question)


def test_the_corpus_states_no_scene_of_the_evaluation_splits():
    rng = random.Random(7)
    lines = " ".join(random_line(rng).text for _ in range(5000))
    for split in ("val", "test", "unseen"):
        for scene in distinct_scenes(random.Random(0), split, 300):
            assert not any(f" {caption}." in lines for caption in captions(scene))
