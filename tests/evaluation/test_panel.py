"""The caption panel shows the images that the tensors were made of."""

import numpy as np
import pytest
from PIL import Image

from vlkd_pl.clip.frozen import normalized
from vlkd_pl.clip.transform import clip_transform
from vlkd_pl.evaluation.panel import PanelItem, caption_panel


@pytest.mark.parametrize("as_floats", [False, True])
@pytest.mark.parametrize(("num", "columns"), [(1, 4), (5, 4), (3, 2)])
def test_layout(num, columns, as_floats):
    image = clip_transform(64)(Image.new("RGB", (64, 64), (200, 30, 60)))
    image = normalized(image) if as_floats else image
    panel = caption_panel([PanelItem(image, "a red image", "red, all over")] * num, columns)
    pixels = np.asarray(panel).astype(int)
    red = np.abs(pixels - (200, 30, 60)).sum(-1) < 6
    assert red.sum() == num * 168 * 168
    # each image has words under it: ink that is neither white nor red
    ink = (pixels.sum(-1) < 500) & ~red
    assert ink.sum() > num * 100


def test_an_empty_caption_is_said(tmp_path):
    image = clip_transform(64)(Image.new("RGB", (64, 64)))
    assert caption_panel([PanelItem(image, "", "a")]).size == caption_panel([PanelItem(image, "(nothing)", "a")]).size
