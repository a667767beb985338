"""GLUE's tasks in the small language: readable as GLUE's files, balanced, and true."""

import random
from collections import Counter

import pytest
from scenes_of_captions import scene_of

from vlkd_pl.batch import GLUE_LABELS
from vlkd_pl.datamodules.glue import GLUEDataModule
from vlkd_pl.sample.glue import write_glue
from vlkd_pl.sample.language import captions
from vlkd_pl.sample.scenes import distinct_scenes

SIZE = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("glue")
    write_glue(folder, 2 * SIZE, SIZE, random.Random(0))
    return folder


def read(folder, task, split):
    return GLUEDataModule(task, str(folder), evaluated="test").read(split)


@pytest.mark.parametrize("task", GLUE_LABELS)
def test_every_file_is_read_whole_and_balanced(folder, task):
    parts = 2 if task == "mnli" else 1
    assert len(read(folder, task, "train")) == 2 * SIZE
    assert len(read(folder, task, "dev")) == parts * SIZE
    hidden = read(folder, task, "test")
    assert len(hidden) == parts * SIZE
    assert all(sample.label is None for sample in hidden)
    counts = Counter(sample.label for sample in read(folder, task, "dev"))
    assert len(counts) == (len(GLUE_LABELS[task]) or 6)
    assert len(set(counts.values())) == 1


def test_the_same_seed_writes_the_same(folder, tmp_path):
    write_glue(tmp_path, 2 * SIZE, SIZE, random.Random(0))
    for path in folder.rglob("*.tsv"):
        assert path.read_bytes() == (tmp_path / path.relative_to(folder)).read_bytes()


def test_acceptable_sentences_are_captions_and_the_others_their_words_in_another_order(folder):
    rng = random.Random(0)
    statements = {
        text for split in ("train", "val") for scene in distinct_scenes(rng, split, 400) for text in captions(scene)
    }
    lengths = {len(text.split()) for text in statements}
    first_words = {text.split()[0] for text in statements}
    for sample in read(folder, "cola", "train"):
        words = sample.texts[0].split()
        assert len(words) in lengths
        if sample.label == 1:
            assert words[0] in first_words
        assert sample.texts[0] not in statements or sample.label == 1


def test_what_evaluation_states_is_not_in_training(folder):
    for split, expected in (("train", "train"), ("dev", "val")):
        assert {scene_of(sample.texts[0]).split for sample in read(folder, "stsb", split)} == {expected}


def test_similarity_counts_what_two_captions_share(folder):
    for sample in read(folder, "stsb", "train"):
        first, second = (scene_of(text) for text in sample.texts)
        shared = [first.place == second.place]
        for one, other in zip(first.items, second.items, strict=True):
            shared += [one.color == other.color, one.object == other.object]
        assert sum(shared) == sample.label


def test_a_statement_that_follows_names_what_the_scene_shows(folder):
    for sample in read(folder, "mnli", "train"):
        premise, statement = sample.texts
        words = statement.replace("keys", "key").split()
        color = words[-1]
        if sample.label == 0 and words[0] == "the":
            assert color in premise
        if sample.label == 2 and words[0] == "the":
            assert f"{color} {words[1]}" not in premise
    assert {
        ("a row" in s.texts[0] or "," in s.texts[0]) for s in read(folder, "mnli", "dev") if s.part == "matched"
    } == {False}
    assert all("," in sample.texts[0] for sample in read(folder, "mnli", "dev") if sample.part == "mismatched")


def test_paraphrases_tell_one_scene(folder):
    for sample in read(folder, "mrpc", "train"):
        first, second = (sorted(set(text.replace(",", "").split())) for text in sample.texts)
        if sample.label == 1:
            content = {word for word in {*first} ^ {*second} if word not in FILLERS}
            assert not content, sample


FILLERS = {
    *(
        "a",
        "an",
        "one",
        "just",
        "there",
        "is",
        "are",
        "group",
        "of",
        "row",
        "from",
        "left",
        "to",
        "right",
        "above",
        "below",
    )
}
