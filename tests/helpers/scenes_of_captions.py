"""The scene that a caption of the sample world describes."""

import re

from vlkd_pl.sample.language import WHERE
from vlkd_pl.sample.scenes import COLORS, OBJECTS, RELATIONS, SIZES, Item, Scene


def scene_of(caption):
    """The scene that a first caption describes."""
    place = next(place for place, where in WHERE.items() if caption.endswith(f" {where}"))
    named = re.findall(rf"\b({'|'.join(COLORS)}) ({'|'.join(OBJECTS)})", caption)
    items = tuple(Item(color, name) for color, name in named)
    count = {"two": 2, "three": 3}.get(caption.split()[0], 1)
    size = next((size for size in SIZES if f" {size} " in caption), "")
    relation = next((relation for relation in RELATIONS if relation in caption), "")
    layout = "row" if len(items) == 3 else "pair" if relation else "one" if size else "count"
    return Scene(layout, items, place, size, count, relation)
