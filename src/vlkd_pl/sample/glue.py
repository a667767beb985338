"""GLUE's eight tasks in the small language of the sample world."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from vlkd_pl.sample.language import FACTS, NUMBERS, WHERE, captions, plural, random_caption
from vlkd_pl.sample.scenes import COLORS, OBJECTS, PLACES, SIZES, Item, Scene, Split, near_scenes, random_scene

Example = tuple[str, ...]
"""One or two texts and the label."""

_MNLI_COLUMNS = [
    "index",
    "promptID",
    "pairID",
    "genre",
    "sentence1_binary_parse",
    "sentence2_binary_parse",
    "sentence1_parse",
    "sentence2_parse",
    "sentence1",
    "sentence2",
]
_STSB_COLUMNS = ["index", "genre", "filename", "year", "old_index", "source1", "source2", "sentence1", "sentence2"]


def write_glue(folder: Path, num_train: int, num_evaluation: int, rng: random.Random) -> None:
    """Write the eight tasks in the layouts of GLUE's files, ``{folder}/CoLA/train.tsv`` and so on.

    Training sets use scenes of the split ``train``, dev and test sets those of ``val`` and ``test``. The test sets have
    no labels, as in GLUE. The labels say:

    - CoLA: whether the words are in the order of a caption;
    - SST-2: whether somebody likes the scene;
    - RTE, MNLI: whether the second sentence follows from the first; only MNLI's mismatched set has rows of three
      things;
    - MRPC, QQP: whether two captions describe the same scene, or two questions have the same meaning;
    - QNLI: whether the sentence answers the question;
    - STS-B: how many of five properties two captions share.

    Args:
        folder: Folder that the folders of the tasks are written to.
        num_train: Number of lines of each training set.
        num_evaluation: Number of lines of each dev and test set.
        rng: Random generator of everything that is drawn.
    """
    sizes = {"train": num_train, "dev": num_evaluation, "test": num_evaluation}
    splits: dict[str, Split] = {"train": "train", "dev": "val", "test": "test"}
    for name, size in sizes.items():
        split = splits[name]
        for task, draw in _TASKS.items():
            _write_simple(folder / task / f"{name}.tsv", task, list(_examples(draw, rng, split, size)))
        for part in [""] if name == "train" else ["_matched", "_mismatched"]:
            drawn = _examples(partial(_mnli, rows=part == "_mismatched"), rng, split, size)
            _write_mnli(folder / "MNLI" / f"{name}{part}.tsv", "rows" if part == "_mismatched" else "scenes", drawn)
        _write_stsb(folder / "STS-B" / f"{name}.tsv", _examples(_stsb, rng, split, size))


# Drawing examples: all labels of a task are equally frequent


def _cola(rng: random.Random, split: Split, number: int) -> Example:
    words = random_caption(rng, random_scene(rng, split)).split()
    if number % 2:
        return " ".join(words), "1"
    shuffled = words
    while shuffled == words:
        place = rng.randrange(len(words) - 1)
        shuffled = [*words[:place], words[place + 1], words[place], *words[place + 2 :]]
    return " ".join(shuffled), "0"


def _sst2(rng: random.Random, split: Split, number: int) -> Example:
    scene = random_scene(rng, split)
    fan, phrase = FACTS[rng.choice(OBJECTS)][0], captions(scene)[0]
    good = [f"{phrase} is liked by the {fan}", f"who likes {phrase}? the {fan}"]
    bad = [f"{phrase} is not liked by the {fan}", f"who likes {phrase}? no {fan}"]
    if scene.layout != "count":  # other layouts have an article that "no" can replace
        good.append(f"the {fan} likes {phrase}")
        bad.append(f"the {fan} likes no {phrase.split(' ', 1)[1]}")
    return rng.choice(good if number % 2 else bad), str(number % 2)


def _rte(rng: random.Random, split: Split, number: int) -> Example:
    scene = _scene(rng, split, rows=False)
    label = "entailment" if number % 2 else "not_entailment"
    kind = "entailment" if number % 2 else rng.choice(["neutral", "contradiction"])
    return random_caption(rng, scene), _statement(rng, scene, kind), label


def _mnli(rng: random.Random, split: Split, number: int, rows: bool) -> Example:
    scene = _scene(rng, split, rows)
    kind = ("entailment", "neutral", "contradiction")[number % 3]
    return random_caption(rng, scene), _statement(rng, scene, kind), kind


def _mrpc(rng: random.Random, split: Split, number: int) -> Example:
    scene = random_scene(rng, split)
    if number % 2:
        return (*rng.sample(captions(scene), 2), "1")
    return random_caption(rng, scene), random_caption(rng, next(near_scenes(rng, scene))), "0"


def _qqp(rng: random.Random, split: Split, number: int) -> Example:
    topic = rng.randrange(len(_wordings("cup")))
    name = rng.choice(OBJECTS)
    if number % 2:
        return (*rng.sample(_wordings(name)[topic], 2), "1")
    if rng.random() < 0.5:
        other = _wordings(rng.choice([other for other in OBJECTS if other != name]))[topic]
    else:
        other = rng.choice([wordings for place, wordings in enumerate(_wordings(name)) if place != topic])
    return rng.choice(_wordings(name)[topic]), rng.choice(other), "0"


def _qnli(rng: random.Random, split: Split, number: int) -> Example:
    scene = random_scene(rng, split)
    present = {item.object for item in scene.items}
    name = rng.choice([name for name in OBJECTS if (name in present) == bool(number % 2)])
    question = rng.choice([f"what color is the {name}?", f"where is the {name}?"])
    return question, random_caption(rng, scene), "entailment" if number % 2 else "not_entailment"


def _stsb(rng: random.Random, split: Split, number: int) -> Example:
    while True:
        scene = random_scene(rng, split)
        if scene.layout == "pair":
            break
    changed = set(rng.sample(range(5), 5 - number % 6))
    items: list[Item] = []
    for place, item in enumerate(scene.items):
        others = [name for name in OBJECTS if name not in {other.object for other in [*scene.items, *items]}]
        items.append(
            Item(
                rng.choice([value for value in COLORS if value != item.color]) if 2 * place in changed else item.color,
                rng.choice(others) if 2 * place + 1 in changed else item.object,
            )
        )
    where = rng.choice([value for value in PLACES if value != scene.place]) if 4 in changed else scene.place
    other = replace(scene, items=tuple(items), place=where)
    return captions(scene)[0], captions(other)[0], f"{number % 6:.3f}"


_TASKS: dict[str, Callable[[random.Random, Split, int], Example]] = {
    "CoLA": _cola,
    "SST-2": _sst2,
    "RTE": _rte,
    "MRPC": _mrpc,
    "QQP": _qqp,
    "QNLI": _qnli,
}


def _examples(
    draw: Callable[[random.Random, Split, int], Example], rng: random.Random, split: Split, size: int
) -> Iterator[Example]:
    numbers = list(range(size))
    rng.shuffle(numbers)
    return (draw(rng, split, number) for number in numbers)


def _scene(rng: random.Random, split: Split, rows: bool) -> Scene:
    while True:
        scene = random_scene(rng, split)
        if (scene.layout == "row") == rows:
            return scene


def _statement(rng: random.Random, scene: Scene, kind: str) -> str:
    """A sentence that is true of a scene, false of it (``contradiction``), or neither (``neutral``)."""
    item = rng.choice(scene.items)
    named, verb = (item.object, "is") if scene.count == 1 else (plural(item.object), "are")
    if kind == "neutral":
        fan, _, home = FACTS[item.object]
        statements = [f"the {fan} has the {named}", f"the {named} {verb} from the {home}"]
        if scene.layout != "one":
            statements.append(f"the {named} {verb} {rng.choice(SIZES)}")
        return rng.choice(statements)
    color, place, size, count = item.color, scene.place, scene.size, scene.count
    if kind == "contradiction":
        color = rng.choice([value for value in COLORS if value != color])
        place = rng.choice([value for value in PLACES if value != place])
        size = "small" if size == "big" else "big"
        count = 2 if count == 3 else 3
    statements = [f"the {named} {verb} {color}", f"the {named} {verb} {WHERE[place]}"]
    if scene.layout == "one":
        statements.append(f"the {named} is {size}")
    if scene.layout == "count":
        statements.append(f"there are {NUMBERS[count]} {plural(item.object)}")
    return rng.choice(statements)


def _wordings(name: str) -> list[list[str]]:
    """Questions about an object, each in several wordings."""
    many = plural(name)
    return [
        [f"what color is the {name}?", f"the {name} is of what color?", f"of what color is the {name}?"],
        [f"where is the {name} kept?", f"the {name} is kept where?", f"where are {many} kept?"],
        [f"who likes the {name}?", f"the {name} is liked by who?", f"who likes {many}?"],
        [f"what is the {name} made of?", f"the {name} is made of what?", f"what are {many} made of?"],
        [f"how many {many} are there?", f"there are how many {many}?", f"how many {many}?"],
    ]


# Layouts of GLUE's files


def _write(path: Path, header: Sequence[str] | None, rows: Sequence[Sequence[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["\t".join(row) for row in ([header] if header else []) + list(rows)]
    # MRPC's files begin with a byte order mark
    encoding = "utf-8-sig" if path.parent.name == "MRPC" else "utf-8"
    path.write_text("".join(f"{line}\n" for line in lines), encoding=encoding)


def _write_simple(path: Path, task: str, examples: Sequence[Example]) -> None:
    secret = path.stem == "test"
    numbered = list(enumerate(examples))
    if task == "CoLA" and not secret:
        _write(path, None, [["sw", label, "" if label == "1" else "*", text] for text, label in examples])
    elif task in ("CoLA", "SST-2"):
        if secret:
            _write(path, ["index", "sentence"], [[str(number), text] for number, (text, _) in numbered])
        else:
            _write(path, ["sentence", "label"], examples)
    elif task == "MRPC":
        ids = ["#1 ID", "#2 ID", "#1 String", "#2 String"]
        rows = [
            [str(number) if secret else label, str(2 * number), str(2 * number + 1), first, second]
            for number, (first, second, label) in numbered
        ]
        _write(path, ["index" if secret else "Quality", *ids], rows)
    elif task == "QQP":
        rows = [
            [str(number), *([] if secret else [str(2 * number), str(2 * number + 1)]), first, second]
            for number, (first, second, _) in numbered
        ]
        header = ["id", *([] if secret else ["qid1", "qid2"]), "question1", "question2"]
        _write(path, *_labelled(header, rows, "is_duplicate", examples, secret))
    else:
        header = ["index", *(["question", "sentence"] if task == "QNLI" else ["sentence1", "sentence2"])]
        rows = [[str(number), first, second] for number, (first, second, _) in numbered]
        _write(path, *_labelled(header, rows, "label", examples, secret))


def _write_mnli(path: Path, genre: str, drawn: Iterator[Example]) -> None:
    examples = list(drawn)
    rows = [
        [str(number), str(number), f"{number}x", genre, "( )", "( )", "(ROOT )", "(ROOT )", first, second]
        for number, (first, second, _) in enumerate(examples)
    ]
    # labels of one annotator in training and of five in evaluation; the last column holds the majority
    num_people = {"train": 1, "test": 0}.get(path.stem.split("_")[0], 5)
    header = _MNLI_COLUMNS
    for column in [*(f"label{person + 1}" for person in range(num_people)), *(["gold_label"] if num_people else [])]:
        header, rows = _labelled(header, rows, column, examples, secret=False)
    _write(path, header, rows)


def _write_stsb(path: Path, drawn: Iterator[Example]) -> None:
    examples = list(drawn)
    rows = [
        [str(number), "main-captions", "sample", "2026", f"{number:04d}", "none", "none", first, second]
        for number, (first, second, _) in enumerate(examples)
    ]
    _write(path, *_labelled(_STSB_COLUMNS, rows, "score", examples, secret=path.stem == "test"))


def _labelled(
    header: list[str], rows: list[list[str]], column: str, examples: Sequence[Example], secret: bool
) -> tuple[list[str], list[list[str]]]:
    """Append a column of labels to header and rows, unless the labels are secret."""
    if secret:
        return header, rows
    return [*header, column], [[*row, example[-1]] for row, example in zip(rows, examples, strict=True)]
