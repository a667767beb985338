"""The pretraining data of the sample world's models."""

import itertools
import random

import pytest
import torch

from vlkd_pl.sample.language import captions
from vlkd_pl.sample.pretraining_data import HardNegatives, SceneDataModule, TextDataModule, grouped_scenes
from vlkd_pl.sample.scenes import COLORS, OBJECTS, PLACES, SIZES, Item, Scene, changed_scenes
from vlkd_pl.sample.tokenizers import clip_merges


@pytest.fixture
def scene_data(tmp_path):
    (tmp_path / "merges.txt.gz").write_bytes(clip_merges())
    return lambda **options: SceneDataModule(str(tmp_path / "merges.txt.gz"), batch_size=16, **options)


@pytest.fixture
def text_data(bart_folder):
    return lambda **options: TextDataModule(str(bart_folder), **options)


def take(loader, num):
    return [batch for batch, _ in zip(loader, range(num), strict=False)]


def equal(first, second):
    return all(
        torch.equal(first[key], second[key]) if isinstance(first[key], torch.Tensor) else first[key] == second[key]
        for key in first.keys() | second.keys()
    )


def test_groups_are_near_and_no_description_comes_twice():
    scenes = grouped_scenes(random.Random(0), "train", 64, 8)
    assert len({scene.description for scene in scenes}) == 64
    assert {scene.split for scene in scenes} == {"train"}
    for first in range(0, 64, 8):
        assert len({scene.layout for scene in scenes[first : first + 8]}) == 1


def test_clip_batches(scene_data):
    module = scene_data(num_val_batches=2, num_hard_negatives=3, num_workers=0)
    batch = next(iter(module.train_dataloader()))
    assert batch["image"].shape == (16, 3, 64, 64)
    assert batch["clip_text_ids"].shape[1] <= 24
    first, second = ([list(loader) for loader in module.val_dataloader()] for _ in range(2))
    assert [len(batches) for batches in first] == [2, 3, 3]
    for pair in zip(itertools.chain(*first), itertools.chain(*second), strict=True):
        assert equal(*pair)


@pytest.mark.parametrize("split", ["val", "unseen"])
def test_hard_negatives_are_in_the_wording_of_the_caption(split):
    """Of images with one item: all their captions are known."""
    choices = itertools.product(COLORS, OBJECTS, PLACES, SIZES)
    every = [Scene("one", (Item(color, name),), place, size) for color, name, place, size in choices]
    known_captions = {text: (scene, number) for scene in every for number, text in enumerate(captions(scene))}
    batch = HardNegatives(lambda texts: texts, split, batch_size=30, seed=0)[0]
    assert batch["image"].shape == (30, 3, 64, 64)
    assert sum(batch["num_captions"]) == len(batch["clip_text_ids"])
    wordings, texts = set(), iter(batch["clip_text_ids"])
    for num_captions in batch["num_captions"]:
        right, *others = itertools.islice(texts, num_captions)
        if right in known_captions:
            scene, wording = known_captions[right]
            assert scene.split == split
            negatives = [other for others in changed_scenes(scene).values() for other in others]
            assert [known_captions[text] for text in others] == [(other, wording) for other in negatives]
            wordings.add(wording)
    assert len(wordings) > 1


@pytest.mark.parametrize("kind", ["scene_data", "text_data"])
def test_batches_depend_on_seed_and_index_alone(request, kind):
    make = request.getfixturevalue(kind)
    batches = take(make(num_workers=0).train_dataloader(), 4)
    assert not any(equal(batches[0], other) for other in batches[1:])
    assert not equal(batches[0], take(make(num_workers=0, seed=1).train_dataloader(), 1)[0])
    resumed = make(num_workers=2)
    resumed.load_state_dict({"num_trained_batches": 1})
    for expected, batch in zip(batches[1:], take(resumed.train_dataloader(), 3), strict=True):
        assert equal(expected, batch)


def test_text_batches(text_data):
    module = text_data(num_workers=0, num_val_batches=1)
    batch = next(iter(module.train_dataloader()))
    mask_id = module.tokenizer.mask_token_id
    assert (batch["corrupted_ids"] == mask_id).any(1).all()
    texts = module.tokenizer.batch_decode(
        next(iter(module.val_dataloader()[0]))["corrupted_ids"], skip_special_tokens=False
    )
    requests = [text for text in texts if "?" in text]
    assert requests
    assert all("Answer:<mask>." in text for text in requests)


@pytest.mark.parametrize("share", [0.0, 0.7, 1.0])
def test_the_share_of_passages_with_a_question(text_data, share):
    module = text_data(batch_size=600, question_share=share, num_workers=0)
    batch = next(iter(module.train_dataloader()))
    texts = module.tokenizer.batch_decode(batch["labels"].clamp(min=0), skip_special_tokens=True)
    has_passage = ["?" in text and ". " in text.partition("?")[0] for text in texts]
    assert [bool(kind) for kind in batch["question_kinds"]] == has_passage
    by_chance = 0.7 * 0.8  # what language.random_line draws
    assert sum(has_passage) / 600 == pytest.approx(by_chance + share * (1 - by_chance), abs=0.06)


def test_separate_passages(text_data):
    """A passage that is encoded apart stands in no corrupted text and in no label, and the question in no passage."""
    module = text_data(batch_size=200, question_share=1.0, separate_share=0.5, num_workers=0)
    batch = next(iter(module.train_dataloader()))
    decode = module.tokenizer.batch_decode
    passages = decode(batch["passage_ids"], skip_special_tokens=True)
    labels = decode(batch["labels"].clamp(min=0), skip_special_tokens=True)
    separate = batch["passage_mask"].any(1).tolist()
    assert sum(separate) == pytest.approx(100, abs=30)
    for passage, text, is_separate in zip(passages, labels, separate, strict=True):
        assert ("?" in passage, passage.endswith("."), ". " in text.partition("?")[0]) == (
            (False, True, False) if is_separate else (False, False, True)
        )


def test_answers_are_marked_up_to_the_end_token(text_data):
    module = text_data(batch_size=100, num_workers=0)
    batch = next(iter(module.train_dataloader()))
    for labels, mask in zip(batch["labels"], batch["answer_mask"], strict=True):
        text = module.tokenizer.decode(labels[labels != -100])
        marked = module.tokenizer.decode(labels[mask == 1])
        assert marked == (text.partition(" Answer:")[2] if "?" in text else "")
