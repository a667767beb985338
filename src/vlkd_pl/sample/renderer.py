"""Rendering of the sample world's scenes as small images."""

from __future__ import annotations

import random
from functools import cache

from PIL import Image, ImageDraw

from vlkd_pl.sample.scenes import Scene

IMAGE_SIZE = 64
"""Width and height of an image in pixels."""

_RGB = {
    "red": (222, 40, 44),
    "orange": (246, 138, 30),
    "yellow": (250, 222, 56),
    "green": (40, 150, 62),
    "blue": (52, 96, 226),
    "purple": (142, 62, 186),
    "pink": (246, 138, 190),
    "brown": (128, 80, 44),
}
_GROUND = {
    "grass": ((150, 206, 118), (120, 182, 92)),
    "sand": ((234, 214, 164), (212, 190, 138)),
    "snow": ((242, 247, 252), (206, 222, 238)),
    "night": (((24, 28, 66)), (150, 156, 196)),
}
_NUM_GROUNDS = 6
_SUPERSAMPLING = 4

Points = list[tuple[float, float]]


def render(scene: Scene, rng: random.Random) -> Image.Image:
    """Draw a scene with random background texture, sizes and positions.

    Args:
        scene: Scene to draw.
        rng: Random generator of texture, sizes and positions.

    Returns:
        RGB image of ``IMAGE_SIZE`` by ``IMAGE_SIZE`` pixels.

    Example:
        >>> from vlkd_pl.sample.scenes import Item
        >>> scene = Scene("one", (Item("red", "fish"),), "snow", size="big")
        >>> render(scene, random.Random(0)).size
        (64, 64)
    """
    image = _ground(scene.place, rng.randrange(_NUM_GROUNDS)).copy()
    for color, name, size, (x, y) in _placed(scene, rng):
        sprite = _sprite(color, name, size)
        image.paste(sprite, (round(x - size / 2), round(y - size / 2)), sprite)
    return image


def _placed(scene: Scene, rng: random.Random) -> list[tuple[str, str, int, tuple[float, float]]]:
    """Color, object, side in pixels and centre of each pictogram."""
    items = list(scene.items)
    jitter = rng.uniform
    centre = IMAGE_SIZE / 2
    if scene.layout == "one":
        size = rng.randint(20, 25) if scene.size == "small" else rng.randint(40, 48)
        reach = centre - size / 2 - 2
        positions = [(centre + jitter(-reach, reach), centre + jitter(-reach, reach))]
    elif scene.layout == "pair":
        size = rng.randint(23, 27)
        near, across = jitter(15, 17), jitter(-12, 12)
        positions = [(centre - near, centre + across), (centre + near, centre - across)]
        if scene.relation == "above":
            positions = [(y, x) for x, y in positions]
    else:
        items = items * scene.count
        size = rng.randint(18, 20)
        step = 21 if len(items) == 3 else jitter(21, 30)
        first = centre - step * (len(items) - 1) / 2
        positions = [(first + step * i, centre + jitter(-18, 18)) for i in range(len(items))]
    return [(item.color, item.object, size, position) for item, position in zip(items, positions, strict=True)]


@cache
def _ground(place: str, index: int) -> Image.Image:
    base, mark = _GROUND[place]
    image = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), base)
    draw = ImageDraw.Draw(image)
    rng = random.Random(f"{place} {index}")
    for _ in range(40):
        x, y = rng.randrange(IMAGE_SIZE), rng.randrange(IMAGE_SIZE)
        if place == "grass":
            draw.line([x, y, x + rng.choice((-1, 0, 1)), y - 3], fill=mark)
        elif place == "sand":
            draw.point((x, y), fill=mark)
        elif place == "snow":
            draw.ellipse([x, y, x + 1, y + 1], fill=mark)
        elif rng.random() < 0.4:
            draw.point((x, y), fill=mark)
    return image


@cache
def _sprite(color: str, name: str, size: int) -> Image.Image:
    """The pictogram of ``name`` in ``color`` on a transparent square of ``size`` pixels."""
    side = size * _SUPERSAMPLING
    image = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    pen = _Pen(ImageDraw.Draw(image), side, _RGB[color])
    _PICTOGRAMS[name](pen)
    return image.resize((size, size), Image.Resampling.LANCZOS)


class _Pen:
    """Draws shapes in coordinates of 0 to 100 with the item's fill and a darker outline."""

    def __init__(self, draw: ImageDraw.ImageDraw, side: int, fill: tuple[int, int, int]) -> None:
        self.draw, self.scale, self.fill = draw, side / 100, fill
        self.line = tuple(round(value * 0.35) for value in fill)
        self.width = max(2, round(4 * self.scale))

    def polygon(self, points: Points, dark: bool = False) -> None:
        scaled = [(x * self.scale, y * self.scale) for x, y in points]
        self.draw.polygon(scaled, fill=self.line if dark else self.fill, outline=self.line, width=self.width)

    def box(self, x0: float, y0: float, x1: float, y1: float, dark: bool = False) -> None:
        self.polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], dark)

    def oval(self, x0: float, y0: float, x1: float, y1: float, dark: bool = False, hollow: bool = False) -> None:
        box = [value * self.scale for value in (x0, y0, x1, y1)]
        fill = None if hollow else self.line if dark else self.fill
        self.draw.ellipse(
            box, fill=fill, outline=self.fill if hollow else self.line, width=self.width * (3 if hollow else 1)
        )

    def stroke(self, points: Points, width: float = 4) -> None:
        scaled = [(x * self.scale, y * self.scale) for x, y in points]
        self.draw.line(scaled, fill=self.line, width=max(2, round(width * self.scale)))


def _fish(pen: _Pen) -> None:
    pen.polygon([(62, 50), (96, 24), (96, 76)])
    pen.oval(4, 26, 74, 74)
    pen.oval(18, 40, 28, 50, dark=True)


def _boat(pen: _Pen) -> None:
    pen.box(46, 8, 52, 66, dark=True)
    pen.polygon([(54, 8), (92, 58), (54, 58)])
    pen.polygon([(4, 64), (96, 64), (80, 92), (20, 92)])


def _tree(pen: _Pen) -> None:
    pen.box(42, 70, 58, 97, dark=True)
    pen.polygon([(50, 3), (78, 38), (22, 38)])
    pen.polygon([(50, 24), (92, 74), (8, 74)])


def _house(pen: _Pen) -> None:
    pen.box(16, 46, 84, 95)
    pen.polygon([(50, 4), (97, 48), (3, 48)])
    pen.box(42, 66, 58, 95, dark=True)


def _cup(pen: _Pen) -> None:
    pen.oval(58, 30, 97, 72, hollow=True)
    pen.polygon([(8, 18), (76, 18), (68, 90), (16, 90)])
    pen.box(6, 12, 78, 24, dark=True)


def _car(pen: _Pen) -> None:
    pen.polygon([(24, 26), (70, 26), (84, 52), (12, 52)])
    pen.box(3, 48, 97, 74)
    pen.oval(14, 62, 38, 88, dark=True)
    pen.oval(62, 62, 86, 88, dark=True)


def _star(pen: _Pen) -> None:
    pen.polygon([(50, 2), (62, 36), (98, 37), (69, 58), (80, 94), (50, 73), (20, 94), (31, 58), (2, 37), (38, 36)])


def _key(pen: _Pen) -> None:
    pen.oval(2, 28, 46, 72)
    pen.oval(14, 40, 32, 58, dark=True)
    pen.box(44, 43, 98, 57)
    pen.box(70, 57, 80, 76)
    pen.box(86, 57, 97, 82)


def _ball(pen: _Pen) -> None:
    pen.oval(6, 6, 94, 94)
    pen.stroke([(50, 6), (38, 30), (38, 70), (50, 94)])
    pen.stroke([(6, 50), (94, 50)])


def _book(pen: _Pen) -> None:
    pen.polygon([(4, 20), (48, 30), (48, 90), (4, 80)])
    pen.polygon([(96, 20), (52, 30), (52, 90), (96, 80)])
    pen.box(47, 28, 53, 92, dark=True)


def _bell(pen: _Pen) -> None:
    pen.oval(40, 76, 60, 97, dark=True)
    pen.polygon([(40, 8), (60, 8), (74, 30), (78, 66), (94, 82), (6, 82), (22, 66), (26, 30)])


def _hat(pen: _Pen) -> None:
    pen.polygon([(26, 14), (74, 14), (78, 74), (22, 74)])
    pen.box(22, 54, 78, 68, dark=True)
    pen.oval(2, 66, 98, 90)


_PICTOGRAMS = {
    "fish": _fish,
    "boat": _boat,
    "tree": _tree,
    "house": _house,
    "cup": _cup,
    "car": _car,
    "star": _star,
    "key": _key,
    "ball": _ball,
    "book": _book,
    "bell": _bell,
    "hat": _hat,
}
