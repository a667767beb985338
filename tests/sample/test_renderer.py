"""The sample world's images."""

import random

import numpy as np
import pytest

from vlkd_pl.sample.renderer import IMAGE_SIZE, render
from vlkd_pl.sample.scenes import COLORS, OBJECTS, Item, Scene, random_scene


def pixels(scene, seed=0):
    return np.asarray(render(scene, random.Random(seed))).astype(int)


def test_size_mode_and_determinism():
    scene = random_scene(random.Random(0), "train")
    image = render(scene, random.Random(1))
    assert (image.mode, image.size) == ("RGB", (IMAGE_SIZE, IMAGE_SIZE))
    assert image.tobytes() == render(scene, random.Random(1)).tobytes()
    assert image.tobytes() != render(scene, random.Random(2)).tobytes()


@pytest.mark.parametrize("size", ["small", "big"])
def test_objects_and_colors_all_look_different(size):
    images = {
        pixels(Scene("one", (Item(color, name),), "snow", size=size)).tobytes() for color in COLORS for name in OBJECTS
    }
    assert len(images) == len(COLORS) * len(OBJECTS)


def center(image, color):
    """Mean row and column of the pixels near a color."""
    near = np.abs(image - np.array(color)).sum(-1) < 40
    assert near.sum() > 30
    return np.argwhere(near).mean(0)


@pytest.mark.parametrize(("relation", "axis"), [("left of", 1), ("above", 0)])
def test_relations_hold_in_the_image(relation, axis):
    for seed in range(20):
        image = pixels(Scene("pair", (Item("red", "ball"), Item("blue", "house")), "snow", relation=relation), seed)
        assert center(image, (222, 40, 44))[axis] < center(image, (52, 96, 226))[axis] - 10
