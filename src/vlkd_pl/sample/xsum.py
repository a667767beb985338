"""Writing of documents with one-sentence summaries, in the format of fairseq's XSum files."""

from __future__ import annotations

import random
from pathlib import Path

from vlkd_pl.sample.language import FACTS, NUMBERS, OPPOSITE, WHERE, captions, plural
from vlkd_pl.sample.scenes import Item, Scene

_NUM_ASIDES = (0, 1, 1, 2)
_ROW = ("on the left", "in the middle", "on the right")


def write_documents(folder: Path, split: str, scenes: list[Scene], rng: random.Random) -> None:
    """Write ``{split}.source`` and ``{split}.target``: a document and its summary a line.

    A document describes a scene in several sentences, in any order, mixed with facts about its objects; the summary is
    the scene's first caption. For a pair, the document may state the inverse relation.

    Args:
        folder: Folder that the two files are written to.
        split: Name of the split.
        scenes: Scenes of the documents.
        rng: Random generator of the documents.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = {"source": [document(scene, rng) for scene in scenes], "target": [captions(scene)[0] for scene in scenes]}
    for end, texts in lines.items():
        (folder / f"{split}.{end}").write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")


def document(scene: Scene, rng: random.Random) -> str:
    """Draw a document of three to six sentences about a scene."""
    sentences = [*_descriptions(scene, rng), *rng.sample(_asides(scene), rng.choice(_NUM_ASIDES))]
    rng.shuffle(sentences)
    return " ".join(f"{sentence}." for sentence in sentences)


def _descriptions(scene: Scene, rng: random.Random) -> list[str]:
    """Draw sentences that describe a scene completely."""
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
    """The facts about a scene's objects."""
    facts = [(plural(item.object), *FACTS[item.object]) for item in scene.items]
    return [
        sentence
        for many, fan, material, home in facts
        for sentence in (f"the {fan} likes {many}", f"{many} are made of {material}", f"{many} are kept in the {home}")
    ]
