"""From a picture to a tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from PIL import Image
from torch import Tensor


def clip_transform(image_size: int) -> Callable[[Image.Image], Tensor]:
    """CLIP's own preprocessing, from the ``clip`` package: bicubic resize of the shorter side, centre crop, normalise.

    Args:
        image_size: Width and height of the result in pixels.

    Returns:
        A function from a picture of any size and mode to (3, ``image_size``, ``image_size``) float32.
    """
    from clip.clip import _transform  # imports torchvision: only where pictures are read

    return cast(Callable[[Image.Image], Tensor], _transform(image_size))
