"""The sample world's scenes and their held-out splits."""

import random
from dataclasses import replace

import pytest

from vlkd_pl.sample.scenes import (
    LAYOUT_WEIGHTS,
    UNSEEN_COMBINATIONS,
    Item,
    Scene,
    distinct_scenes,
    near_scenes,
    random_scene,
)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_no_seen_split_shows_an_unseen_combination(split):
    rng = random.Random(0)
    for _ in range(500):
        scene = random_scene(rng, split)
        assert not {(item.color, item.object) for item in scene.items} & UNSEEN_COMBINATIONS


@pytest.mark.parametrize("split", ["unseen", "text_only"])
def test_unseen_splits_hold_an_unseen_combination(split):
    rng = random.Random(0)
    for _ in range(100):
        scene = random_scene(rng, split)
        assert {(item.color, item.object) for item in scene.items} & UNSEEN_COMBINATIONS


def test_splits_share_no_description():
    rng = random.Random(1)
    seen = {
        split: {random_scene(rng, split).description for _ in range(1000)}
        for split in ("train", "val", "test", "unseen", "text_only")
    }
    splits = list(seen)
    for index, split in enumerate(splits):
        for other in splits[index + 1 :]:
            assert not seen[split] & seen[other]


def test_the_split_depends_on_what_a_caption_can_tell():
    scene = Scene("one", (Item("red", "fish"),), "grass", size="big")
    assert replace(scene).split == scene.split
    assert {
        replace(scene, place=place, size=size).split
        for place in ("grass", "sand", "snow", "night")
        for size in ("big", "small")
    } > {"train"}


def test_distinct_scenes_differ():
    scenes = distinct_scenes(random.Random(2), "test", 100)
    assert len({scene.description for scene in scenes}) == 100


@pytest.mark.parametrize("layout", list(LAYOUT_WEIGHTS))
def test_near_scenes_keep_the_layout_and_mostly_change_something(layout):
    rng = random.Random(3)
    scene = next(scene for scene in iter(lambda: random_scene(rng, "train"), None) if scene.layout == layout)
    stream = near_scenes(rng, scene)
    near = [next(stream) for _ in range(200)]
    assert {other.layout for other in near} == {layout}
    assert len({other.description for other in near} - {scene.description}) >= 10
    assert all(len({item.object for item in other.items}) == len(scene.items) for other in near)
