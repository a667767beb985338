"""Documents of the sample world."""

import random

import pytest

from vlkd_pl.data.xsum_files import iter_documents
from vlkd_pl.models.bart import load_bart_tokenizer
from vlkd_pl.sample import BART_FOLDER
from vlkd_pl.sample.language import FACTS, captions
from vlkd_pl.sample.scenes import Item, Scene, distinct_scenes
from vlkd_pl.sample.xsum import document, write_documents

SCENES = distinct_scenes(random.Random(0), "train", 300)


def test_the_reader_reads_what_is_written(tmp_path):
    write_documents(tmp_path, "val", SCENES[:20], random.Random(0))
    read = list(iter_documents(str(tmp_path), "val"))
    assert [item.summary for item in read] == [captions(scene)[0] for scene in SCENES[:20]]
    rng = random.Random(0)
    assert [item.text for item in read] == [document(scene, rng) for scene in SCENES[:20]]


def test_a_document_states_all_of_the_scene():
    scene = Scene("pair", (Item("orange", "fish"), Item("blue", "boat")), "night", relation="left of")
    rng = random.Random(0)
    sentences = {frozenset(document(scene, rng).removesuffix(".").split(". ")) for _ in range(200)}
    asides = {f"the {FACTS['fish'][0]} likes fish", "boats are made of planks"}
    wordings = [
        {"it is at night", "all is at night"},
        {"one sees a fish", "one sees a boat"},
        {"the orange fish is left of the blue boat", "the blue boat is right of the orange fish"},
    ]
    for expected in sentences:
        assert all(len(expected & wording) == 1 for wording in wordings)
        assert len(expected) <= len(wordings) + 2
    assert set().union(*sentences) > set().union(*wordings) | asides


@pytest.mark.parametrize(
    ("scene", "expected"),
    [
        (Scene("one", (Item("red", "cup"),), "sand", size="big"), {"it is big"}),
        (Scene("count", (Item("red", "cup"),), "sand", count=3), {"there are three cups", "the cups are red"}),
        (
            Scene("row", tuple(Item("red", name) for name in ("cup", "key", "hat")), "sand"),
            {"on the left is a red cup", "in the middle is a red key", "on the right is a red hat"},
        ),
    ],
)
def test_layouts(scene, expected):
    for seed in range(20):
        assert expected <= set(document(scene, random.Random(seed)).removesuffix(".").split(". "))


def test_documents_and_summaries_fit_the_small_bart():
    tokenizer, rng = load_bart_tokenizer(BART_FOLDER), random.Random(0)
    texts = [document(scene, rng) for scene in SCENES]
    assert max(map(len, tokenizer(texts)["input_ids"])) <= tokenizer.model_max_length
    assert max(map(len, tokenizer([captions(scene)[0] for scene in SCENES])["input_ids"])) <= 30
    assert len(set(texts)) == len(texts)
