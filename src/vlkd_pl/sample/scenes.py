"""Scenes of the sample world: their contents, random drawing, and the held-out splits."""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, get_args

OBJECTS = ("fish", "boat", "tree", "house", "cup", "car", "star", "key", "ball", "book", "bell", "hat")
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown")
SIZES = ("small", "big")
PLACES = ("grass", "sand", "snow", "night")
RELATIONS = ("left of", "above")
COUNTS = (2, 3)

UNSEEN_COMBINATIONS = frozenset(
    {
        ("red", "key"),
        ("orange", "tree"),
        ("yellow", "boat"),
        ("green", "bell"),
        ("blue", "hat"),
        ("purple", "cup"),
        ("pink", "car"),
        ("brown", "star"),
    }
)
"""Pairs of color and object that occur only in images of the split ``unseen``."""

LIMITS = (
    f"This model knows twelve kinds of pictograms: {', '.join(OBJECTS[:-1])} and {OBJECTS[-1]}, in the colors "
    f"{', '.join(COLORS[:-1])} and {COLORS[-1]}, on {', '.join(PLACES[:-1])} or at {PLACES[-1]}. It knows nothing "
    "else, and describes a photograph in these words too."
)
"""What a model of this world says about itself: ``limits.txt`` in the folder of the sample world's CLIP."""

Split = Literal["train", "val", "test", "unseen", "text_only"]
"""A scene's split; ``text_only`` scenes hold an unseen combination and occur in the text corpus but in no image."""

Layout = Literal["one", "count", "pair", "row"]
LAYOUT_WEIGHTS: dict[Layout, float] = {"one": 0.25, "count": 0.15, "pair": 0.4, "row": 0.2}

Change = Literal["color", "object", "place", "size", "count", "relation", "items swapped", "colors swapped"]
CHANGES: tuple[Change, ...] = get_args(Change)
"""Kinds of change that make a scene a hard negative of another one."""


@dataclass(frozen=True)
class Item:
    """Pictogram of an object in a color."""

    color: str
    object: str


@dataclass(frozen=True)
class Scene:
    """Scene of one to three pictograms on a background.

    Attributes:
        layout: ``one`` item of a stated size; ``count`` copies of one item; a ``pair`` in a relation; a ``row`` of
            three from left to right.
        items: Different items: one, two in the order of ``relation``, or three from left to right.
        place: Background, one of ``PLACES``.
        size: ``small`` or ``big``, for the layout ``one`` only.
        count: Number of copies of the item, for the layout ``count`` only.
        relation: ``left of`` or ``above``, from the first item to the second, for the layout ``pair`` only.
    """

    layout: Layout
    items: tuple[Item, ...]
    place: str
    size: str = ""
    count: int = 1
    relation: str = ""

    @property
    def description(self) -> str:
        """All properties of the scene in a fixed wording; scenes with equal descriptions look alike."""
        items = ", ".join(f"{item.color} {item.object}" for item in self.items)
        return f"{self.layout}: {items}; {self.size} {self.count} {self.relation}; {self.place}"

    @property
    def split(self) -> Split:
        """The split of the scene, which depends only on its description."""
        bucket = hashlib.blake2b(self.description.encode(), digest_size=2).digest()
        share = int.from_bytes(bucket, "big") / 2**16
        if any((item.color, item.object) in UNSEEN_COMBINATIONS for item in self.items):
            return "unseen" if share < 0.5 else "text_only"
        return "test" if share < 0.08 else "val" if share < 0.14 else "train"


def random_scene(rng: random.Random, split: Split) -> Scene:
    """Draw a scene of ``split``, with layouts in the proportions of ``LAYOUT_WEIGHTS``."""
    layout = rng.choices(list(LAYOUT_WEIGHTS), list(LAYOUT_WEIGHTS.values()))[0]
    while True:
        scene = _random_scene_of(rng, layout)
        if scene.split == split:
            return scene


def distinct_scenes(rng: random.Random, split: Split, num_scenes: int) -> list[Scene]:
    """Draw ``num_scenes`` scenes of ``split``, no two with the same description."""
    scenes: dict[str, Scene] = {}
    while len(scenes) < num_scenes:
        scene = random_scene(rng, split)
        scenes.setdefault(scene.description, scene)
    return list(scenes.values())


def near_scenes(rng: random.Random, scene: Scene) -> Iterator[Scene]:
    """Yield endless scenes that differ from ``scene`` in one property: hard negatives for contrastive training.

    All kinds of change that are possible are equally likely, and all scenes of a kind.

    Args:
        rng: Random generator of the changes.
        scene: Scene that is changed.

    Example:
        >>> scene = Scene("one", (Item("red", "fish"),), "grass", size="big")
        >>> next(near_scenes(random.Random(0), scene)).description
        'one: green fish; big 1 ; grass'
    """
    while True:
        scenes = _changed(scene, rng.choice(CHANGES))
        if scenes:
            yield rng.choice(scenes)


def changed_scenes(scene: Scene) -> dict[Change, list[Scene]]:
    """List all scenes that differ from ``scene`` in one property.

    Args:
        scene: Scene that is changed.

    Returns:
        The scenes by the kind of change, without kinds that are not possible. Two items swap their places or their
        colors; the latter if their colors differ.

    Example:
        >>> scene = Scene("one", (Item("red", "fish"),), "grass", size="big")
        >>> {change: len(scenes) for change, scenes in changed_scenes(scene).items()}
        {'color': 7, 'object': 11, 'place': 3, 'size': 1}
    """
    return {change: scenes for change in CHANGES if (scenes := _changed(scene, change))}


def _changed(scene: Scene, change: Change) -> list[Scene]:
    """All scenes that differ from ``scene`` by one kind of change; none if it does not apply."""
    items, layout = scene.items, scene.layout
    pairs = list(itertools.combinations(range(len(items)), 2))
    if change == "color":
        return [
            _with_items(scene, {place: replace(item, color=color)})
            for place, item in enumerate(items)
            for color in COLORS
            if color != item.color
        ]
    if change == "object":
        taken = {item.object for item in items}
        return [
            _with_items(scene, {place: replace(item, object=name)})
            for place, item in enumerate(items)
            for name in OBJECTS
            if name not in taken
        ]
    if change == "items swapped":
        return [_with_items(scene, {i: items[j], j: items[i]}) for i, j in pairs]
    if change == "colors swapped":
        return [
            _with_items(scene, {i: replace(items[i], color=items[j].color), j: replace(items[j], color=items[i].color)})
            for i, j in pairs
            if items[i].color != items[j].color
        ]
    if change == "place":
        return [replace(scene, place=place) for place in PLACES if place != scene.place]
    if change == "size":
        return [replace(scene, size=size) for size in SIZES if layout == "one" and size != scene.size]
    if change == "count":
        return [replace(scene, count=count) for count in COUNTS if layout == "count" and count != scene.count]
    return [replace(scene, relation=other) for other in RELATIONS if layout == "pair" and other != scene.relation]


def _with_items(scene: Scene, items: dict[int, Item]) -> Scene:
    """A scene with other items at some places."""
    return replace(scene, items=tuple(items.get(place, item) for place, item in enumerate(scene.items)))


def _random_scene_of(rng: random.Random, layout: Layout) -> Scene:
    objects = rng.sample(OBJECTS, {"one": 1, "count": 1, "pair": 2, "row": 3}[layout])
    items = tuple(Item(rng.choice(COLORS), name) for name in objects)
    return Scene(
        layout=layout,
        items=items,
        place=rng.choice(PLACES),
        size=rng.choice(SIZES) if layout == "one" else "",
        count=rng.choice(COUNTS) if layout == "count" else 1,
        relation=rng.choice(RELATIONS) if layout == "pair" else "",
    )
