"""Writes documents of the sample world with one-sentence summaries, in the format of fairseq's files of XSum."""

from __future__ import annotations

import random
from pathlib import Path

from vlkd_pl.sample.language import FACTS, NUMBERS, OPPOSITE, WHERE, captions, plural
from vlkd_pl.sample.scenes import Item, Scene

_NUM_ASIDES = (0, 1, 1, 2)
_ROW = ("on the left", "in the middle", "on the right")


def write_documents(folder: Path, split: str, scenes: list[Scene], rng: random.Random) -> None:
    """Write ``{split}.source`` and ``{split}.target``: a document and its summary a line.

    A document tells a scene in pieces, in any order, among facts about its objects that do not belong to the scene; the
    summary is the scene's first caption. Of a pair the document may tell the opposite relation.

    Args:
        folder: Gets the two files.
        split: The split's name.
        scenes: One for each document.
        rng: Decides the documents.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = {"source": [document(scene, rng) for scene in scenes], "target": [captions(scene)[0] for scene in scenes]}
    for end, texts in lines.items():
        (folder / f"{split}.{end}").write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")


def document(scene: Scene, rng: random.Random) -> str:
    """A document about a scene, of three to six sentences."""
    sentences = [*_told(scene, rng), *rng.sample(_asides(scene), rng.choice(_NUM_ASIDES))]
    rng.shuffle(sentences)
    return " ".join(f"{sentence}." for sentence in sentences)


def _told(scene: Scene, rng: random.Random) -> list[str]:
    """The sentences that tell all of a scene."""
    place = rng.choice([f"it is {WHERE[scene.place]}", f"all is {WHERE[scene.place]}"])
    if scene.layout == "count":
        (item,) = scene.items
        many = plural(item.object)
        return [place, f"there are {NUMBERS[scene.count]} {many}", f"the {many} are {item.color}"]
    things = [_thing(item) for item in scene.items]
    if scene.layout == "row":
        return [place, *(f"{where} is {thing}" for where, thing in zip(_ROW, things, strict=True))]
    if scene.layout == "one":
        return [place, rng.choice([f"there is {things[0]}", f"one sees {things[0]}"]), f"it is {scene.size}"]
    first, second = (f"the {item.color} {item.object}" for item in scene.items)
    forward, backward = scene.relation, OPPOSITE[scene.relation]
    return [
        place,
        f"one sees a {rng.choice(scene.items).object}",
        rng.choice([f"{first} is {forward} {second}", f"{second} is {backward} {first}"]),
    ]


def _thing(item: Item) -> str:
    return f"{'an' if item.color == 'orange' else 'a'} {item.color} {item.object}"


def _asides(scene: Scene) -> list[str]:
    """Facts about the scene's objects."""
    facts = [(plural(item.object), *FACTS[item.object]) for item in scene.items]
    return [
        sentence
        for many, fan, material, home in facts
        for sentence in (f"the {fan} likes {many}", f"{many} are made of {material}", f"{many} are kept in the {home}")
    ]
