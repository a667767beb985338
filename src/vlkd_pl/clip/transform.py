"""CLIP's image preprocessing."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from PIL import Image
from torch import Tensor

IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
"""Mean and standard deviation of red, green and blue in [0, 1] with which CLIP normalises images."""


def clip_transform(image_size: int) -> Callable[[Image.Image], Tensor]:
    """CLIP's preprocessing without the normalisation: bicubic resize of the shorter side, centre crop, RGB.

    The pixels equal those of the ``clip`` package bit for bit. ``FrozenCLIP.encode_image`` normalises them, so that
    batches in uint8 take a quarter of the memory.

    Args:
        image_size: Width and height of the result in pixels.

    Returns:
        Function from an image of any size and mode to a tensor (3, ``image_size``, ``image_size``) uint8.

    Example:
        >>> transform = clip_transform(64)
        >>> transform(Image.new("RGB", (100, 80))).shape
        torch.Size([3, 64, 64])
    """
    return partial(_pixels, image_size=image_size)


def _pixels(image: Image.Image, image_size: int) -> Tensor:
    width, height = (int(image_size * side / min(image.size)) for side in image.size)
    left, top = round((width - image_size) / 2), round((height - image_size) / 2)
    if image.mode == "RGB":
        # Pillow resizes rows first and rounds to 8 bits before the columns, so that cropped columns can go in between
        image = image.resize((width, image.height), Image.Resampling.BICUBIC)
        image = image.crop((left, 0, left + image_size, image.height))
        width, left = image_size, 0
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    image = image.crop((left, top, left + image_size, top + image_size))
    if image.mode != "RGB":
        image = image.convert("RGB")
    planes = bytearray().join(image.tobytes("raw", band) for band in "RGB")
    return torch.frombuffer(planes, dtype=torch.uint8).view(3, image_size, image_size)
