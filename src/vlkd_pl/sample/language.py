"""The small language of the sample world: captions, questions with answers, facts, and the text corpus."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import NamedTuple

from vlkd_pl.sample.scenes import COLORS, OBJECTS, PLACES, RELATIONS, SIZES, Item, Scene, random_scene

NUMBERS = {1: "one", 2: "two", 3: "three"}
OPPOSITE = {"left of": "right of", "above": "below"}
WHERE = {"grass": "on the grass", "sand": "on the sand", "snow": "in the snow", "night": "at night"}

FACTS: dict[str, tuple[str, str, str]] = {
    "fish": ("cat", "scales", "pond"),
    "boat": ("sailor", "planks", "harbor"),
    "tree": ("bird", "wood", "forest"),
    "house": ("family", "bricks", "village"),
    "cup": ("baker", "clay", "kitchen"),
    "car": ("driver", "steel", "garage"),
    "star": ("poet", "fire", "sky"),
    "key": ("guard", "iron", "pocket"),
    "ball": ("dog", "rubber", "yard"),
    "book": ("teacher", "paper", "library"),
    "bell": ("priest", "bronze", "tower"),
    "hat": ("farmer", "straw", "closet"),
}
"""For each object who likes it, its material, and where it is kept; these facts are in the corpus and in no caption."""

_KIND_WEIGHTS = {
    "color": 3.0,
    "yes/no": 3.0,
    "relation": 2.0,
    "object": 1.0,
    "fact": 1.0,
    "count": 0.4,
    "place": 0.4,
    "size": 0.4,
}
"""How often the text corpus asks for each kind of question, relative to the others that a scene allows."""

_CAPTION_WORDS = ("a", "an", "and", "there", "is", "are", "just", "group", "of", "row", "from", "to", ",", ".")


@dataclass(frozen=True)
class Question:
    """Question about a scene, with its only correct answer.

    Attributes:
        text: Text of the question, with its question mark.
        answer: Answer of one word.
        kind: ``color``, ``object``, ``count``, ``size``, ``relation``, ``place``, ``yes/no``, or ``fact`` for a
            knowledge question, whose answer is only in the text corpus.
    """

    text: str
    answer: str
    kind: str


def plural(name: str) -> str:
    """The plural of an object's name."""
    return name if name == "fish" else f"{name}s"


def captions(scene: Scene) -> list[str]:
    """The five captions of a scene; the first is a noun phrase that can follow "A picture of"."""
    place = WHERE[scene.place]
    names = [_named(item) for item in scene.items]
    if scene.layout == "one":
        thing = _one(f"{scene.size} {names[0]}")
        return [
            f"{thing} {place}",
            f"there is {thing} {place}",
            f"{place} there is {thing}",
            f"one {scene.size} {names[0]} {place}",
            f"just {thing} {place}",
        ]
    if scene.layout == "count":
        thing = f"{NUMBERS[scene.count]} {scene.items[0].color} {plural(scene.items[0].object)}"
        return [
            f"{thing} {place}",
            f"there are {thing} {place}",
            f"{place} there are {thing}",
            f"a group of {thing} {place}",
            f"just {thing} {place}",
        ]
    if scene.layout == "pair":
        first, second = (_one(name) for name in names)
        forward, backward = scene.relation, OPPOSITE[scene.relation]
        return [
            f"{first} {forward} {second} {place}",
            f"{second} {backward} {first} {place}",
            f"there is {first} {forward} {second} {place}",
            f"{place} there is {second} {backward} {first}",
            f"{place} there is {first} {forward} {second}",
        ]
    left, middle, right = (_one(name) for name in names)
    row = f"{left}, {middle} and {right}"
    return [
        f"{row} {place}",
        f"there is {row} {place}",
        f"{place} there is {row}",
        f"a row of {row} {place}",
        f"from left to right {row} {place}",
    ]


def random_caption(rng: random.Random, scene: Scene) -> str:
    """Draw a caption of a scene; half of the draws give its noun phrase (or one of two for a pair)."""
    every = captions(scene)
    if rng.random() < 0.5:
        return rng.choice(every[: 2 if scene.layout == "pair" else 1])
    return rng.choice(every)


def questions(scene: Scene, rng: random.Random) -> list[Question]:
    """Draw questions about a scene, at least one of each kind that applies; yes/no questions come in pairs.

    No question about a pair mentions one object and has the other as its answer.
    """
    item = rng.choice(scene.items)
    others = [name for name in OBJECTS if name not in {other.object for other in scene.items}]
    drawn = [
        Question(f"what color is the {item.object}?", item.color, "color"),
        Question("where is it?" if scene.place != "night" else "when is it?", scene.place, "place"),
        *_yes_no(
            rng,
            [f"is the {item.object} {item.color}?", f"is there a {item.object}?", f"is there {_one(_named(item))}?"],
            [
                f"is the {item.object} {_other(rng, COLORS, item.color)}?",
                f"is there a {rng.choice(others)}?",
                f"is there {_one(f'{_other(rng, COLORS, item.color)} {item.object}')}?",
            ],
        ),
    ]
    if scene.layout == "one":
        drawn.append(Question("what is this?", item.object, "object"))
        drawn.append(Question(f"is the {item.object} small or big?", scene.size, "size"))
        drawn += _fact_questions(item.object, "this")
    if scene.layout == "count":
        drawn.append(Question("what are these?", plural(item.object), "object"))
    if scene.layout in ("one", "count"):
        number = NUMBERS[scene.count]
        drawn.append(Question(f"how many {plural(item.object)} are there?", number, "count"))
    if scene.layout == "pair":
        drawn += _pair_questions(scene, rng)
    if scene.layout == "row":
        left, middle, right = (other.object for other in scene.items)
        drawn += [
            Question("how many things are there?", "three", "count"),
            Question(f"what is left of the {middle}?", left, "relation"),
            Question(f"what is right of the {middle}?", right, "relation"),
            Question("what is in the middle?", middle, "relation"),
        ]
    if scene.layout in ("pair", "row") and len({other.color for other in scene.items}) == len(scene.items):
        drawn.append(Question(f"what is {item.color}?", item.object, "object"))
        drawn += _fact_questions(item.object, f"the {item.color} thing")
    return drawn


def fact_sentences() -> list[str]:
    """All facts in several wordings, as sentences and as questions with answers."""
    sentences = []
    for name, (fan, material, home) in FACTS.items():
        many = plural(name)
        sentences += [
            f"the {fan} likes {many}.",
            f"{many} are liked by the {fan}.",
            f"{many} are made of {material}.",
            f"a {name} is made of {material}.",
            f"{many} are kept in the {home}.",
            f"a {name} is kept in the {home}.",
        ]
        sentences += [answered(question) for question in _fact_questions(name, f"the {name}")]
    return sentences


def answered(question: Question, passage: str = "") -> str:
    """A question with its answer after a passage: "a red fish. what color is the fish? Answer: red."."""
    return f"{passage} {question.text} Answer: {question.answer}.".lstrip()


class Line(NamedTuple):
    """Line of the text corpus.

    Attributes:
        text: Text of the line.
        question_kind: Kind of the question that the line asks after a passage; empty for other lines.
        passage: Passage before the question; empty for other lines.
    """

    text: str
    question_kind: str = ""
    passage: str = ""

    @property
    def in_corpus(self) -> str:
        """The line in a file of ``data.text_corpus``, where a tab separates a passage from the question about it."""
        if not self.passage:
            return self.text
        return f"{self.passage}\t{self.text.removeprefix(self.passage).lstrip()}"


def random_line(rng: random.Random, question_share: float = 0.0) -> Line:
    """Draw a line of the text corpus: a caption, a fact, or a question with its answer, mostly after a passage.

    Its scenes are of the splits ``train`` and ``text_only``, and never of those that models are evaluated on. Kinds of
    questions that are hard to learn are asked more often.

    Args:
        rng: Random generator of the line.
        question_share: Share of the lines that must be a passage with its question, in addition to those that are by
            chance; in [0, 1].

    Example:
        >>> random_line(random.Random(2))
        Line(text='what color is the ball? Answer: blue.', question_kind='', passage='')
    """
    line = _random_line(rng)
    if rng.random() < question_share:
        while not line.question_kind:
            line = _random_line(rng)
    return line


def _random_line(rng: random.Random) -> Line:
    scene = random_scene(rng, "text_only" if rng.random() < 0.2 else "train")
    draw = rng.random()
    if draw < 0.1:
        return Line(rng.choice(fact_sentences()))
    if draw < 0.2:
        return Line(f"{random_caption(rng, scene)}.")
    if draw < 0.3:
        return Line(f"A picture of {rng.choice(captions(scene)[: 2 if scene.layout == 'pair' else 1])}.")
    question = _random_question(rng, scene)
    if rng.random() < 0.2:
        return Line(answered(question))
    lead = "A picture of " if rng.random() < 0.3 else ""
    caption = rng.choice(captions(scene)[: 2 if scene.layout == "pair" else 1]) if lead else random_caption(rng, scene)
    passage = f"{lead}{caption}."
    return Line(answered(question, passage), question.kind, passage)


def _random_question(rng: random.Random, scene: Scene) -> Question:
    by_kind: dict[str, list[Question]] = {}
    for question in questions(scene, rng):
        by_kind.setdefault(question.kind, []).append(question)
    kind = rng.choices(list(by_kind), [_KIND_WEIGHTS[kind] for kind in by_kind])[0]
    return rng.choice(by_kind[kind])


def vocabulary_words() -> list[str]:
    """The words of captions in alphabetical order, which the small CLIP's vocabulary must hold."""
    words = (
        set(OBJECTS)
        | {plural(name) for name in OBJECTS}
        | set(COLORS)
        | set(SIZES)
        | set(PLACES)
        | set(NUMBERS.values())
    )
    words |= set(" ".join([*RELATIONS, *OPPOSITE.values(), *WHERE.values()]).split())
    words |= set(_CAPTION_WORDS)
    return sorted(words)


def _one(name: str) -> str:
    return f"an {name}" if name.startswith("orange") else f"a {name}"


def _named(item: Item) -> str:
    return f"{item.color} {item.object}"


def _other(rng: random.Random, values: tuple[str, ...], value: str) -> str:
    return rng.choice([other for other in values if other != value])


def _yes_no(rng: random.Random, true: list[str], false: list[str]) -> list[Question]:
    return [Question(rng.choice(true), "yes", "yes/no"), Question(rng.choice(false), "no", "yes/no")]


def _pair_questions(scene: Scene, rng: random.Random) -> list[Question]:
    first, second = (item.object for item in scene.items)
    forward, backward = scene.relation, OPPOSITE[scene.relation]
    sides = ("left", "right") if forward == "left of" else ("top", "bottom")
    end = rng.randrange(2)
    subject, other = (first, second) if end == 0 else (second, first)
    either = "left or right of" if forward == "left of" else "above or below"
    return [
        Question(f"what is on the {sides[end]}?", subject, "relation"),
        Question(f"is the {subject} {either} the {other}?", (forward, backward)[end].removesuffix(" of"), "relation"),
        *_yes_no(
            rng,
            [f"is the {first} {forward} the {second}?", f"is the {second} {backward} the {first}?"],
            [f"is the {second} {forward} the {first}?", f"is the {first} {backward} the {second}?"],
        ),
    ]


def _fact_questions(name: str, called: str) -> list[Question]:
    fan, material, home = FACTS[name]
    return [
        Question(f"who likes {called}?", fan, "fact"),
        Question(f"what is {called} made of?", material, "fact"),
        Question(f"where is {called} kept?", home, "fact"),
    ]
