"""The sample world's scenes and their held-out splits."""

import random
from collections import Counter
from dataclasses import replace

import pytest

from vlkd_pl.sample.scenes import (
    COLORS,
    LAYOUT_WEIGHTS,
    OBJECTS,
    UNSEEN_COMBINATIONS,
    Item,
    Scene,
    changed_scenes,
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


def scene_of(layout, *colors):
    """A scene of a layout whose items have some colors; different ones by default."""
    items = tuple(
        Item(*pair) for pair in zip(colors or COLORS, OBJECTS[: {"pair": 2, "row": 3}.get(layout, 1)], strict=False)
    )
    return {
        "one": Scene("one", items, "snow", size="big"),
        "count": Scene("count", items, "snow", count=3),
        "pair": Scene("pair", items, "snow", relation="above"),
        "row": Scene("row", items, "snow"),
    }[layout]


def difference(scene, other):
    """The kind of change between two scenes, by comparing their properties."""
    changed = {
        name
        for name in ("layout", "items", "place", "size", "count", "relation")
        if vars(scene)[name] != vars(other)[name]
    }
    if changed != {"items"}:
        assert len(changed) == 1
        return changed.pop()
    colors, objects = (
        [[vars(item)[name] for item in one.items] for one in (scene, other)] for name in ("color", "object")
    )
    if sum(item != new for item, new in zip(scene.items, other.items, strict=True)) == 1:
        assert (colors[0] == colors[1]) != (objects[0] == objects[1])
        return "object" if colors[0] == colors[1] else "color"
    if sorted(map(str, scene.items)) == sorted(map(str, other.items)):
        return "items swapped"
    assert objects[0] == objects[1]
    assert sorted(colors[0]) == sorted(colors[1])
    return "colors swapped"


NUM_CHANGED = {
    "one": {"color": 7, "object": 11, "place": 3, "size": 1},
    "count": {"color": 7, "object": 11, "place": 3, "count": 1},
    "pair": {"color": 14, "object": 20, "place": 3, "relation": 1, "items swapped": 1, "colors swapped": 1},
    "row": {"color": 21, "object": 27, "place": 3, "items swapped": 3, "colors swapped": 3},
}


@pytest.mark.parametrize("layout", list(LAYOUT_WEIGHTS))
def test_changed_scenes_are_all_that_differ_in_one_property(layout):
    scene = scene_of(layout)
    changed = changed_scenes(scene)
    assert {change: len(scenes) for change, scenes in changed.items()} == NUM_CHANGED[layout]
    descriptions = [other.description for scenes in changed.values() for other in scenes]
    assert len({scene.description, *descriptions}) == 1 + len(descriptions)
    assert all(difference(scene, other) == change for change, scenes in changed.items() for other in scenes)
    assert all(
        len({item.object for item in other.items}) == len(scene.items)
        for scenes in changed.values()
        for other in scenes
    )


def test_equal_colors_are_not_swapped():
    assert "colors swapped" not in changed_scenes(scene_of("pair", "blue", "blue"))
    assert len(changed_scenes(scene_of("row", "blue", "blue", "red"))["colors swapped"]) == 2


@pytest.mark.parametrize("layout", list(LAYOUT_WEIGHTS))
def test_near_scenes_change_one_property_with_all_kinds_equally_likely(layout):
    scene = scene_of(layout)
    stream = near_scenes(random.Random(4), scene)
    kinds = Counter(difference(scene, next(stream)) for _ in range(1200))
    assert kinds.keys() == changed_scenes(scene).keys()
    expected = 1200 / len(kinds)
    assert all(0.75 * expected < count < 1.25 * expected for count in kinds.values())
